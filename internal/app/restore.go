package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// RestoreReport says what became of a database that was restored.
type RestoreReport struct {
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
	// Updated, Added and Known count requests by what their events told.
	Updated int `json:"requests_updated"`
	Added   int `json:"requests_added"`
	Known   int `json:"requests_known"`
	// InDoubt are unfinished requests for whose posts X is asked before they are sent.
	InDoubt int `json:"requests_in_doubt"`
	// BodyLost were unfinished and are known by events alone: their producers have to
	// send them again. NotRebuilt are those of which not even that could be noted.
	BodyLost   []LostRequest `json:"requests_body_lost"`
	NotRebuilt []LostRequest `json:"requests_not_rebuilt"`
	// TokensLost are the accounts whose tokens were exchanged since, or were to be: X
	// takes a refresh token once. Exchanged counts the exchanges that events tell of.
	TokensLost []string `json:"tokens_lost"`
	Exchanged  int      `json:"exchanges_told"`
	// EventsFrom is set where NATS has no events of the time before it.
	EventsFrom time.Time `json:"events_from,omitzero"`
}

// LostRequest is one that cannot be rebuilt whole.
type LostRequest struct {
	Account string        `json:"account"`
	ID      string        `json:"id"`
	State   jetpost.State `json:"state"`
	Posted  int           `json:"posted"`
	Total   int           `json:"total"`
	Why     string        `json:"why,omitempty"`
}

// restorePage is how many unfinished requests are read at once.
const restorePage = 500

// restorer brings a restored ledger up to date.
type restorer struct {
	ledger store.Store
	conn   *Connection
	gap    store.Gap
	log    *slog.Logger
	report RestoreReport

	last    map[store.Key]jetpost.Event // the latest of each request
	renewed map[string]bool             // accounts whose consent has changed since
}

// Restored brings a database that was restored to a time up to what is known since: by
// events, and by X, which workers ask before they send what may be live. No worker may
// run. It may be repeated.
func (c Config) Restored(ctx context.Context, since time.Time, log *slog.Logger) (RestoreReport, error) {
	ledger, err := c.OpenStore(ctx)
	if err != nil {
		return RestoreReport{}, err
	}
	defer func() { _ = ledger.Close() }() // all was committed
	conn, err := c.Connect(ctx, log, "jetpost setup")
	if err != nil {
		return RestoreReport{}, err
	}
	defer conn.Close()
	if err := noWorker(ctx, conn); err != nil {
		return RestoreReport{}, err
	}
	now, err := ledger.Clock(ctx)
	if err != nil {
		return RestoreReport{}, databaseError(err)
	}
	r := &restorer{
		ledger: ledger, conn: conn, gap: store.Gap{Since: since, Until: now}, log: log,
		last: map[store.Key]jetpost.Event{}, renewed: map[string]bool{},
	}
	r.report = RestoreReport{Since: since, Until: now, BodyLost: []LostRequest{}, NotRebuilt: []LostRequest{}, TokensLost: []string{}}
	for _, step := range []func(context.Context) error{r.readEvents, r.rebuild, r.doubt, r.tokens} {
		if err := step(ctx); err != nil {
			return r.report, databaseError(err)
		}
	}
	return r.report, nil
}

// noWorker fails while a worker gives heartbeats.
func noWorker(ctx context.Context, conn *Connection) error {
	heartbeats, err := publishers.NewHeartbeats(conn.JS, conn.Names).All(ctx)
	for _, heartbeat := range heartbeats {
		if heartbeat.Age < 3*heartbeatEvery {
			return &HintError{Err: fmt.Errorf("worker %s on %s works on the database that was restored", heartbeat.Worker, heartbeat.Host), Help: "stop all workers, then run this again"}
		}
	}
	return err
}

func (r *restorer) readEvents(ctx context.Context) error {
	from, err := publishers.PastEvents(ctx, r.conn.JS, r.conn.Names, r.gap.Since, func(e jetpost.Event) {
		switch {
		case e.Request != nil:
			key := store.Key{Account: e.Request.Account, ID: e.Request.ID}
			if was := r.last[key]; was.Request == nil || was.Request.Revision <= e.Request.Revision {
				r.last[key] = e
			}
		case e.Refresh != nil:
			r.report.Exchanged += e.Refresh.Refreshed
		case e.Account != nil:
			switch e.Type {
			case jetpost.EventAccountReauthRequired, jetpost.EventAccountRecovered: // by tokens that the database has not
				r.renewed[e.Account.Account] = true
			}
		}
	})
	r.report.EventsFrom = from
	return err
}

// rebuild takes over what events tell, in the order of acceptance.
func (r *restorer) rebuild(ctx context.Context) error {
	events := slices.SortedFunc(maps.Values(r.last), func(a, b jetpost.Event) int { return a.Request.AcceptedAt.Compare(b.Request.AcceptedAt) })
	for _, e := range events {
		in := store.Rebuilt{Status: *e.Request, Event: e.Type, Gap: r.gap}
		if e.Request.State == jetpost.StateFailed {
			if err := r.body(ctx, &in); err != nil {
				return err
			}
		}
		result, err := r.ledger.Rebuild(ctx, in)
		lost := LostRequest{Account: e.Request.Account, ID: e.Request.ID, State: e.Request.State, Posted: e.Request.Posted, Total: e.Request.Total}
		switch {
		case errors.Is(err, store.ErrNotFound):
			lost.Why = "no such account is in the database"
			r.report.NotRebuilt = append(r.report.NotRebuilt, lost)
		case errors.Is(err, store.ErrPostTaken):
			lost.Why = err.Error()
			r.report.NotRebuilt = append(r.report.NotRebuilt, lost)
		case err != nil:
			return err
		case result == store.RebuildBodyLost:
			r.report.BodyLost = append(r.report.BodyLost, lost)
		case result == store.RebuildAdded:
			r.report.Added++
		case result == store.RebuildUpdated:
			r.report.Updated++
		default:
			r.report.Known++
		}
	}
	return nil
}

// body finds the body of a failed request in its record.
func (r *restorer) body(ctx context.Context, in *store.Rebuilt) error {
	deadLetters, err := publishers.NewDeadLetters(r.conn.JS, r.conn.Names).List(ctx, publishers.DeadLetterFilter{Account: in.Status.Account, ID: in.Status.ID})
	for _, record := range deadLetters {
		request, err := jetpost.Decode(record.Account, record.Body)
		if !record.Refused && err == nil && len(request.Posts) == in.Status.Total {
			in.Body, in.Digest = record.Body, request.Digest()
		}
	}
	return err
}

// doubt has X asked for what may have been sent and was not told.
func (r *restorer) doubt(ctx context.Context) error {
	for after := (store.Waiting{}); ; {
		page, err := r.ledger.Waiting(ctx, after, restorePage)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, w := range page {
			after = w
			marked, err := r.ledger.Doubt(ctx, w.Key, r.gap)
			switch {
			case errors.Is(err, store.ErrNotRunnable):
				r.report.NotRebuilt = append(r.report.NotRebuilt, LostRequest{
					Account: w.Account, ID: w.ID, State: w.State, Posted: w.Live, Total: w.Posts,
					Why: "no worker could read it before the backup; a newer one may have sent it since: cancel it, or look on X first",
				})
			case err != nil:
				return err
			case marked:
				r.report.InDoubt++
			}
		}
	}
}

// tokens finds whose tokens may have been exchanged since.
func (r *restorer) tokens(ctx context.Context) error {
	accounts, err := r.ledger.Accounts(ctx)
	for _, a := range accounts {
		token, tokenErr := r.ledger.Token(ctx, a.Name)
		if tokenErr != nil {
			return tokenErr
		}
		due := token.RefreshedAt.Add(token.ExpiresAt.Sub(token.RefreshedAt) / 2)
		if !a.RequiresReauth && due.Before(r.gap.Until) || r.renewed[a.Name] {
			r.report.TokensLost = append(r.report.TokensLost, a.Name)
		}
	}
	return err
}
