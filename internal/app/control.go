package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/internal/forecast"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/web"
	"github.com/jetpost/jetpost/xapi"
)

// What the operations of control are about.
type (
	AmbiguousError     = control.AmbiguousError
	AccountReport      = control.AccountReport
	Paused             = jetpost.AccountPaused
	Resumed            = jetpost.Resumed
	Replayed           = jetpost.Replayed
	Disconnected       = jetpost.Disconnected
	NotRevokedError    = control.NotRevokedError
	RefreshFailedError = control.RefreshFailedError
	DryRun             = jetpost.CheckAnswer
	DryRunPost         = jetpost.CheckedPost
	DryRunQueue        = jetpost.CheckedQueue
	RequestName        = jetpost.RequestName
	Limits             = jetpost.Limits
	Breaker            = jetpost.Breaker
	LimitPause         = jetpost.LimitPause
	Forecast           = jetpost.Forecast
	AccountForecast    = jetpost.AccountForecast
	QueueBlock         = jetpost.QueueBlock
	RateWindow         = jetpost.RateWindow
	Queued             = forecast.Queued
)

// Control is the operations of control, on the ledger itself.
type Control struct {
	*control.Control
	Conn *Connection

	x   XConfig
	log *slog.Logger
}

// OpenControl opens the ledger and NATS, and makes sure that they belong
// together: a change in one database must not wake the workers of another.
func (c Config) OpenControl(ctx context.Context, log *slog.Logger) (_ *Control, err error) {
	if err := c.validate(needs{nats: true, database: true, keys: true}); err != nil {
		return nil, err
	}
	var ledger store.Store
	var conn *Connection
	defer func() {
		if err != nil {
			closeBoth(conn, ledger)
		}
	}()
	if ledger, err = c.OpenStore(ctx); err != nil {
		return nil, err
	}
	if conn, err = c.Connect(ctx, log, "jetpost command line"); err != nil {
		return nil, err
	}
	id, err := ledger.LedgerID(ctx)
	if err != nil {
		return nil, databaseError(err)
	}
	if err := publishers.Check(ctx, conn.JS, c.Topology(conn.Names, id)); err != nil {
		return nil, err
	}
	deadLetters := publishers.NewDeadLetters(conn.JS, conn.Names)
	relay := &consumers.OutboxRelay{Ledger: ledger, DeadLetters: deadLetters, Names: conn.Names, Log: log}
	status := func(ctx context.Context) (Status, error) {
		return place{cfg: c, conn: conn, ledger: ledger}.status(ctx), ctx.Err()
	}
	return &Control{Control: c.control(conn, ledger, relay, status, log), Conn: conn, x: c.X, log: log}, nil
}

// control puts the operations together.
func (c Config) control(conn *Connection, ledger store.Store, relay *consumers.OutboxRelay, status func(context.Context) (Status, error), log *slog.Logger) *control.Control {
	parts := control.Control{
		Ledger: ledger, JS: conn.JS, Names: conn.Names, OutboxRelay: relay, Rules: c.Rules, Log: log, AliveWithin: health.AliveWithin,
		Status: func(ctx context.Context) (jetpost.StatusReport, error) {
			s, err := status(ctx)
			return s.report(), err
		},
		Notes: func(ctx context.Context, accounts int) ([]string, error) { return forecastNotes(ctx, conn, accounts) },
		Link:  c.MakeLink, Hooks: consumers.NewHookSender(c.MediaAllow), Worker: cmp.Or(c.Worker, workerName()),
	}
	parts.Verify = verifier{ledger: ledger, x: c.X}.verify
	if x, err := c.X.oauth(); err == nil {
		parts.X = x
		connector := Connector{OAuth: x, Importer: &Importer{Ledger: ledger, NATS: conn, XURL: c.X.URL}, Tokens: ledger, Announce: relay, Log: log}
		parts.Connect = connector.connectCode
	}
	return control.New(parts)
}

// oauth is X's token endpoint, as the app.
func (x XConfig) oauth() (*xapi.OAuth, error) {
	if err := (Config{X: x}).validate(needs{x: true}); err != nil {
		return nil, err
	}
	return &xapi.OAuth{
		ClientID: x.ClientID, ClientSecret: x.ClientSecret.Reveal(), BaseURL: x.URL,
		HTTPClient: &http.Client{Transport: xapi.NewTransport()},
	}, nil
}

// MakeLink makes a one-time link to the pages of this installation, or to those that are
// named.
func (c Config) MakeLink(ctx context.Context, links control.LinkKeeper, account string, in jetpost.AccountLink) (jetpost.Link, error) {
	site, err := c.LinkSite(WebConfig{PublicURL: in.PublicURL, ReturnHosts: in.ReturnHosts})
	if err != nil {
		return jetpost.Link{}, &control.Error{Code: jetpost.ErrInvalid, Err: err, Help: Hint(err)}
	}
	life := web.DefaultLinkLife
	if in.TTL != "" {
		if life, err = time.ParseDuration(in.TTL); err != nil {
			return jetpost.Link{}, &control.Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("ttl: %w", err)}
		}
	}
	link, err := site.MakeLink(ctx, links, web.NewLink{Account: account, Life: life, ReturnTo: in.ReturnTo, Now: time.Now()})
	if wrong := new(web.LinkError); errors.As(err, &wrong) {
		err = &control.Error{Code: jetpost.ErrInvalid, Err: err}
	}
	return jetpost.Link(link), err
}

// forecastNotes says what keeps posts from going out, and what no worker has accepted yet.
func forecastNotes(ctx context.Context, conn *Connection, accounts int) (notes []string, err error) {
	now := time.Now().UTC()
	fromNATS := factsOfNATS{now: now}
	if fromNATS.read(ctx, conn); fromNATS.err != nil {
		return nil, fromNATS.err
	}
	var status Status
	facts := health.Facts{Now: now, Accounts: max(accounts, 1)}
	fromNATS.tell(&status, &facts)
	if verdict := health.Judge(facts); verdict.State != health.Publishing {
		notes = append(notes, verdict.Sentence())
	}
	if n := status.QueuedJobs; n != nil && *n > 0 {
		notes = append(notes, fmt.Sprintf("not in it: %d jobs that no worker has accepted yet", *n))
	}
	return notes, nil
}

// Importer brings accounts into control's ledger.
func (d *Control) Importer() *Importer {
	return &Importer{Ledger: d.Ledger, NATS: d.Conn, XURL: d.x.URL}
}

// Connector connects accounts in control's ledger.
func (d *Control) Connector() (*Connector, error) {
	x, err := d.x.oauth()
	if err != nil {
		return nil, err
	}
	return &Connector{OAuth: x, Importer: d.Importer(), Tokens: d.Ledger, Announce: d.OutboxRelay, Log: d.log}, nil
}

// Close frees what OpenControl opened.
func (d *Control) Close() { closeBoth(d.Conn, d.Ledger) }

func closeBoth(conn *Connection, ledger store.Store) {
	if conn != nil {
		conn.Close()
	}
	if ledger != nil {
		_ = ledger.Close() // everything was committed
	}
}

// Limits reads what the workers have told of X's windows and stops.
func (c Config) Limits(ctx context.Context, log *slog.Logger, account string) (Limits, error) {
	if err := c.validate(needs{nats: true}); err != nil {
		return Limits{}, err
	}
	conn, err := c.Connect(ctx, log, "jetpost limits")
	if err != nil {
		return Limits{}, err
	}
	defer conn.Close()
	return control.ReadLimits(ctx, conn.JS, conn.Names, account)
}
