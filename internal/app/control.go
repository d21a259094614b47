package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// maxListed bounds what one look into the ledger by hand reads.
const maxListed = 10_000 // requests

// Control is where a person looks after requests: takes one back, settles a
// doubt, sends it again. The ledger decides each time; the wake-up and the event
// that follow are hints, which the sweeper makes good should they fail.
type Control struct {
	Ledger      store.Store
	Conn        *Connection
	Wakeups     *publishers.Wakeups
	DeadLetters *publishers.DeadLetters

	publisher *publishers.Publisher
	relay     *consumers.OutboxRelay
	x         XConfig
	log       *slog.Logger
}

// OpenControl opens the ledger and NATS, and makes sure that they belong
// together: a change in one database must not wake the workers of another.
func (c Config) OpenControl(ctx context.Context, log *slog.Logger) (_ *Control, err error) {
	if err := c.validate(needs{nats: true, database: true, keys: true}); err != nil {
		return nil, err
	}
	d := &Control{x: c.X, log: log}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if d.Ledger, err = c.OpenStore(ctx); err != nil {
		return nil, err
	}
	if d.Conn, err = c.Connect(ctx, log, "jetpost command line"); err != nil {
		return nil, err
	}
	id, err := d.Ledger.LedgerID(ctx)
	if err != nil {
		return nil, databaseError(err)
	}
	if err := publishers.Check(ctx, d.Conn.JS, c.Topology(d.Conn.Names, id)); err != nil {
		return nil, err
	}
	d.Wakeups = publishers.NewWakeups(d.Conn.JS, d.Conn.Names)
	d.DeadLetters = publishers.NewDeadLetters(d.Conn.JS, d.Conn.Names)
	d.publisher = publishers.New(d.Conn.JS, d.Conn.Names)
	d.relay = &consumers.OutboxRelay{Ledger: d.Ledger, DeadLetters: d.DeadLetters, Names: d.Conn.Names, Log: log}
	return d, nil
}

// Importer brings accounts into control's ledger.
func (d *Control) Importer() *Importer {
	return &Importer{Ledger: d.Ledger, NATS: d.Conn, XURL: d.x.URL}
}

// Close frees what OpenControl opened.
func (d *Control) Close() {
	if d.Conn != nil {
		d.Conn.Close()
	}
	if d.Ledger != nil {
		_ = d.Ledger.Close() // everything was committed
	}
}

// AmbiguousError says that requests of several accounts have the id.
type AmbiguousError struct {
	ID       string
	Accounts []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("several accounts have a request %s: %s", e.ID, strings.Join(e.Accounts, ", "))
}

// Hint tells the operator how to name one.
func (e *AmbiguousError) Hint() string { return "name one with --account" }

// FindRequest returns the one request with that id, of the account or, where
// that is empty, of any. It fails with store.ErrNotFound or *AmbiguousError.
func FindRequest(ctx context.Context, ledger store.Requests, account, id string) (store.Record, error) {
	found, err := ledger.ListRequests(ctx, store.Filter{Account: account, ID: id})
	switch {
	case err != nil:
		return store.Record{}, databaseError(err)
	case len(found) == 0 && account != "":
		return store.Record{}, &HintError{Err: fmt.Errorf("request %s of account %s: %w", id, account, store.ErrNotFound), Help: "see the ids with: jetpost requests list --account " + account}
	case len(found) == 0:
		return store.Record{}, &HintError{Err: fmt.Errorf("request %s: %w", id, store.ErrNotFound), Help: "see the ids with: jetpost requests list"}
	case len(found) > 1:
		ambiguous := &AmbiguousError{ID: id}
		for _, r := range found {
			ambiguous.Accounts = append(ambiguous.Accounts, r.Account)
		}
		return store.Record{}, ambiguous
	}
	return found[0], nil
}

// Cancel takes a request back and returns it as it is then. One that is
// cancelled already stays so; published and failed ones are an error.
func (d *Control) Cancel(ctx context.Context, account, id string) (jetpost.RequestStatus, error) {
	found, err := FindRequest(ctx, d.Ledger, account, id)
	if err != nil {
		return jetpost.RequestStatus{}, err
	}
	before, err := d.Ledger.Cancel(ctx, found.Key, time.Now())
	switch {
	case errors.Is(err, store.ErrNotRunnable) && before == jetpost.StateCancelled:
		return d.status(ctx, found.Key)
	case errors.Is(err, store.ErrNotRunnable):
		return jetpost.RequestStatus{}, fmt.Errorf("request %s of account %s is %s: there is nothing to cancel", id, found.Account, before)
	case err != nil:
		return jetpost.RequestStatus{}, databaseError(err)
	}
	d.tell(ctx, found.Key)
	return d.status(ctx, found.Key)
}

// Unpublish asks for the deletion of what of a request is live, and takes it back where it
// is unfinished. It returns the request as it is then: a worker deletes. One whose posts
// are deleted already stays so. A dry run changes nothing.
func (d *Control) Unpublish(ctx context.Context, account, id string, dry bool) (jetpost.RequestStatus, error) {
	found, err := FindRequest(ctx, d.Ledger, account, id)
	if err != nil {
		return jetpost.RequestStatus{}, err
	}
	if nothingLive(found) {
		return jetpost.RequestStatus{}, fmt.Errorf("request %s of account %s is %s, and nothing of it is live: there is nothing to delete", id, found.Account, found.Status.State)
	}
	if dry {
		return found.Status, nil
	}
	if _, err := d.Ledger.Unpublish(ctx, found.Key, time.Now()); err != nil {
		return jetpost.RequestStatus{}, databaseError(err)
	}
	d.tell(ctx, found.Key)
	return d.status(ctx, found.Key)
}

// nothingLive tells of a request what the ledger refuses to delete.
func nothingLive(r store.Record) bool {
	return r.Status.State.Finished() && r.Deletion == nil && !slices.ContainsFunc(r.Posts, func(p store.PostRecord) bool {
		return p.State == jetpost.PostPosted || p.State == jetpost.PostSending
	})
}

// Reschedule moves a request of which nothing was sent to another time, or to now
// with one that is not ahead, and returns it as it is then.
func (d *Control) Reschedule(ctx context.Context, account, id string, at time.Time) (jetpost.RequestStatus, error) {
	found, err := FindRequest(ctx, d.Ledger, account, id)
	if err != nil {
		return jetpost.RequestStatus{}, err
	}
	state, err := d.Ledger.Reschedule(ctx, found.Key, at, time.Now())
	switch {
	case errors.Is(err, store.ErrNotRunnable):
		return jetpost.RequestStatus{}, notRescheduled(found.Key, state)
	case errors.Is(err, store.ErrExpired):
		return jetpost.RequestStatus{}, &HintError{
			Err: fmt.Errorf("reschedule request %s of account %s: its expires_at is %s, and it would fail then",
				id, found.Account, found.Status.ExpiresAt.Local().Format(time.RFC3339)),
			Help: "choose an earlier time, or cancel it and send it under another id",
		}
	case err != nil:
		return jetpost.RequestStatus{}, databaseError(err)
	}
	d.tell(ctx, found.Key)
	return d.status(ctx, found.Key)
}

// notRescheduled says what can be done instead.
func notRescheduled(key store.Key, state jetpost.State) error {
	help := "cancel what is not live yet with: jetpost requests cancel " + key.ID
	switch state {
	case jetpost.StateFailed:
		help = "send back what is not live with: jetpost replay " + key.ID
	case jetpost.StatePublished, jetpost.StateCancelled:
		help = "send a new request"
	case jetpost.StateUnknown:
		help = "settle it first with: jetpost requests resolve " + key.ID
	}
	return &HintError{
		Err:  fmt.Errorf("reschedule request %s of account %s: it is %s, and only what waits and has not begun can be moved", key.ID, key.Account, state),
		Help: help,
	}
}

// Resolve settles the doubtful post of a request: it is live on X
// with that id or, where that is empty, it is not live. It returns the request
// as it is then.
func (d *Control) Resolve(ctx context.Context, account, id, postID string) (jetpost.RequestStatus, error) {
	found, err := FindRequest(ctx, d.Ledger, account, id)
	if err != nil {
		return jetpost.RequestStatus{}, err
	}
	_, err = d.Ledger.Resolve(ctx, found.Key, postID, time.Now())
	switch {
	case errors.Is(err, store.ErrNotRunnable):
		return jetpost.RequestStatus{}, noDoubt(found)
	case errors.Is(err, store.ErrPostTaken):
		return jetpost.RequestStatus{}, &HintError{
			Err:  fmt.Errorf("resolve request %s of account %s with post %s: %w", id, found.Account, postID, err),
			Help: "look on X for the id of this very post; where there is none, use --not-posted",
		}
	case err != nil:
		return jetpost.RequestStatus{}, databaseError(err)
	}
	d.tell(ctx, found.Key)
	return d.status(ctx, found.Key)
}

// Reconcile has the account's posts looked at at once for the doubtful post of a
// request, also where that was given up. It returns the request as it is then.
func (d *Control) Reconcile(ctx context.Context, account, id string) (jetpost.RequestStatus, error) {
	found, err := FindRequest(ctx, d.Ledger, account, id)
	if err != nil {
		return jetpost.RequestStatus{}, err
	}
	err = d.Ledger.Reconcile(ctx, found.Key, time.Now())
	switch {
	case errors.Is(err, store.ErrNotRunnable):
		return jetpost.RequestStatus{}, noDoubt(found)
	case err != nil:
		return jetpost.RequestStatus{}, databaseError(err)
	}
	d.tell(ctx, found.Key)
	return d.status(ctx, found.Key)
}

func noDoubt(r store.Record) error {
	return fmt.Errorf("request %s of account %s is %s: none of its posts is in doubt", r.ID, r.Account, r.Status.State)
}

func (d *Control) status(ctx context.Context, key store.Key) (jetpost.RequestStatus, error) {
	record, err := d.Ledger.Request(ctx, key)
	return record.Status, databaseError(err)
}

// tell announces a change that is committed and has a worker look at it.
func (d *Control) tell(ctx context.Context, key store.Key) {
	err := errors.Join(d.relay.Announce(ctx, key), d.Wakeups.Wake(ctx, key.Account))
	if err != nil {
		d.log.Warn("event.delayed", "account", key.Account, "request", key.ID, "error", err)
	}
}
