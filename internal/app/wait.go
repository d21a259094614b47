package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// askEvery is how often a fact that no event tells is asked for.
const askEvery = 100 * time.Millisecond

// Waited is what became of a request by the end of a wait.
type Waited struct {
	Receipt publishers.Receipt
	// Request is the latest that was told of it; nil where nothing was.
	Request *jetpost.RequestStatus
	// Refusal is set where the message never became a request.
	Refusal *jetpost.Refusal
	// Repeat tells that a request of this id was there before: this message
	// changed nothing.
	Repeat bool
}

// Settled tells whether nothing more happens to the request by itself.
func (w Waited) Settled() bool {
	if w.Request == nil {
		return w.Refusal != nil
	}
	if u := w.Request.Unpublish; u != nil && !u.NextTryAt.IsZero() {
		return false
	}
	return w.Request.State.Finished() || w.Request.State == jetpost.StateUnknown
}

// PublishAndWait publishes a request and shows each event of it to see, until
// the request is settled or the time is over, which is no error. It needs no
// database. A request without an id gets one. It fails as
// publishers.Publisher.Publish does, with the receipt filled in.
func (c *Connection) PublishAndWait(ctx context.Context, r jetpost.Request, timeout time.Duration, see func(jetpost.Event)) (Waited, error) {
	if err := r.Validate(); err != nil {
		return Waited{}, err
	}
	if r.ID == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return Waited{}, fmt.Errorf("make request id: %w", err)
		}
		r.ID = id.String()
	}
	waiting, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	publisher := publishers.New(c.JS, c.Names)
	events, err := publisher.Events(waiting,
		c.Names.RequestEvents(r.Account, r.ID), c.Names.EventSubject(jetpost.EventRequestRefused, r.Account, "sequence.*"))
	if err != nil {
		return Waited{}, err
	}
	// A repeat makes no event: what is known of the first one stands here.
	earlier, repeat, err := publisher.LastEvent(ctx, r.Account, r.ID)
	if err != nil {
		return Waited{}, err
	}
	w := Waited{Repeat: repeat}
	if w.Receipt, err = publisher.Publish(ctx, r); err != nil {
		return w, err
	}
	if repeat {
		taken, err := c.confirm(waiting, publisher, &w, see)
		if err != nil || !taken || w.Refusal != nil {
			return w, cmp.Or(ctx.Err(), err)
		}
		w.learn(earlier, see)
	}
	if w.Settled() {
		return w, nil
	}
	for event, err := range events {
		if err != nil {
			return w, err
		}
		if w.learn(event, see); w.Settled() {
			break
		}
	}
	return w, ctx.Err()
}

// learn takes in one event, if it is news of this request.
func (w *Waited) learn(event jetpost.Event, see func(jetpost.Event)) {
	switch {
	case event.Refusal != nil && event.Refusal.Sequence == w.Receipt.Sequence:
		w.Refusal = event.Refusal
	case event.Request != nil && (w.Request == nil || event.Request.Revision > w.Request.Revision):
		w.Request = event.Request
	default:
		return
	}
	see(event)
}

// WatchQuery picks requests: those of the ids, or all; of the account, or of any.
type WatchQuery struct {
	Account string
	IDs     []string
}

// subjects are those of the events that the query is about. Ids stand once.
func (q WatchQuery) subjects(names jetpost.Names) []string {
	account := cmp.Or(q.Account, "*")
	if len(q.IDs) == 0 {
		return []string{names.EventSubject("request.*", account, ">")}
	}
	subjects := []string{names.EventSubject(jetpost.EventRequestRefused, account, "sequence.*")}
	for _, id := range q.IDs {
		subjects = append(subjects, names.RequestEvents(account, id))
	}
	return subjects
}

// Watch shows the events of requests to see as they happen, of those that are named
// by their ids what is known of them first. It ends once these are all settled, and
// else with ctx, which is no error; it returns what is known of them then. It
// needs no database. An id without an account is of the first one that an event
// tells of.
func (c *Connection) Watch(ctx context.Context, q WatchQuery, see func(jetpost.Event)) ([]Waited, error) {
	publisher := publishers.New(c.JS, c.Names)
	events, err := publisher.Events(ctx, q.subjects(c.Names)...)
	if err != nil {
		return nil, err
	}
	named := make([]Waited, len(q.IDs))
	for i, id := range q.IDs {
		named[i].Receipt = publishers.Receipt{Account: q.Account, ID: id}
		event, known, err := publisher.LastEvent(ctx, cmp.Or(q.Account, "*"), id)
		if err != nil {
			return nil, err
		}
		if known {
			named[i].hear(event, see)
		}
	}
	settled := func() bool {
		return len(named) > 0 && !slices.ContainsFunc(named, func(w Waited) bool { return !w.Settled() })
	}
	if settled() {
		return named, nil
	}
	for event, err := range events {
		if err != nil {
			return named, err
		}
		if len(named) == 0 {
			see(event)
		}
		for i := range named {
			named[i].hear(event, see)
		}
		if settled() {
			break
		}
	}
	return named, nil
}

// hear learns from an event of any request, if it is this one's. A refusal counts
// where nothing else is known: one that repeats the id says nothing of the first.
func (w *Waited) hear(event jetpost.Event, see func(jetpost.Event)) {
	var about publishers.Receipt
	switch {
	case event.Request != nil:
		about = publishers.Receipt{Account: event.Request.Account, ID: event.Request.ID}
	case event.Refusal != nil:
		about = publishers.Receipt{Account: event.Refusal.Account, ID: event.Refusal.ID, Sequence: event.Refusal.Sequence}
	}
	if about.ID != w.Receipt.ID || (w.Receipt.Account != "" && about.Account != w.Receipt.Account) {
		return
	}
	if event.Refusal != nil && w.Request != nil {
		see(event)
		return
	}
	w.Receipt = about
	if event.Request != nil {
		w.Refusal = nil // a later message of that id was taken
	}
	w.learn(event, see)
}

// confirm waits until a worker has taken the message, and learns whether it
// refused it: the same id with another body is no repeat, and then the state of
// the first request is none of this one's. The refusal is told before the job
// leaves its stream. It returns false where the time was over before.
func (c *Connection) confirm(ctx context.Context, publisher *publishers.Publisher, w *Waited, see func(jetpost.Event)) (bool, error) {
	taken, err := until(ctx, func() (bool, error) {
		stream, err := c.JS.Stream(ctx, c.Names.JobsStream())
		return err == nil && stream.CachedInfo().State.FirstSeq > w.Receipt.Sequence, err
	})
	if err != nil {
		return false, fmt.Errorf("look for job %d in its stream: %w", w.Receipt.Sequence, err)
	}
	if !taken {
		return false, nil
	}
	event, refused, err := publisher.LastEvent(ctx, w.Receipt.Account, fmt.Sprintf("sequence.%d", w.Receipt.Sequence))
	if refused {
		w.learn(event, see)
	}
	return err == nil, err
}

// until asks until the answer is yes or an error; false where ctx ended before.
func until(ctx context.Context, ask func() (bool, error)) (bool, error) {
	every := time.NewTicker(askEvery)
	defer every.Stop()
	for {
		yes, err := ask()
		switch {
		case ctx.Err() != nil:
			return false, nil
		case yes || err != nil:
			return yes, err
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-every.C:
		}
	}
}

// ErrStillWaiting says that a wait ended before what it waited for came.
var ErrStillWaiting = errors.New("still waiting")

// RefreshRound opens a refresh round and waits for the first one that
// completes. ErrStillWaiting: none did in time.
func (c *Connection) RefreshRound(ctx context.Context, timeout time.Duration) (jetpost.RefreshSummary, error) {
	waiting, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	publisher := publishers.New(c.JS, c.Names)
	events, err := publisher.Events(waiting, c.Names.EventSubject(jetpost.EventRefreshCompleted, "", ""))
	if err != nil {
		return jetpost.RefreshSummary{}, err
	}
	if err := publisher.Tick(ctx); err != nil {
		return jetpost.RefreshSummary{}, err
	}
	for event, err := range events {
		if err != nil {
			return jetpost.RefreshSummary{}, err
		}
		if event.Refresh != nil {
			return *event.Refresh, nil
		}
	}
	return jetpost.RefreshSummary{}, cmp.Or(ctx.Err(), fmt.Errorf("refresh round: %w", ErrStillWaiting))
}

// RefreshFailedError says that X did not renew an account's token.
type RefreshFailedError struct {
	Account string
	Words   string // what the refresh said
	Reauth  bool   // nothing but connecting the account again helps
	Doubt   bool   // X's answer was lost: nobody tries before the access token ends
}

func (e *RefreshFailedError) Error() string {
	return fmt.Sprintf("refresh account %s: %s", e.Account, e.Words)
}

// Hint tells the operator what to do.
func (e *RefreshFailedError) Hint() string {
	if e.Doubt {
		return "wait: its posts go out meanwhile, and jetpost accounts show " + e.Account + " tells more"
	}
	if e.Reauth {
		return AdviceFor(jetpost.CodeAccountReauthRequired, e.Account, "")
	}
	return AdviceFor(jetpost.CodeTokenRefreshFailed, e.Account, "")
}

// RefreshAccount asks for the refresh of one account's token and waits until a
// worker has made it; timeout 0 only asks. It fails with store.ErrNotFound,
// *RefreshFailedError or ErrStillWaiting.
func (d *Control) RefreshAccount(ctx context.Context, name string, force bool, timeout time.Duration) (store.Account, error) {
	before, err := d.account(ctx, name)
	if err != nil {
		return before, err
	}
	if before.RequiresReauth { // no worker would try
		return before, &RefreshFailedError{Account: name, Words: before.RefreshError, Reauth: true}
	}
	if err := d.doubt(ctx, name); err != nil {
		return before, err
	}
	if err := d.publisher.OrderRefresh(ctx, name, force); err != nil || timeout == 0 {
		return before, err
	}
	waiting, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	after := before
	done, err := until(waiting, func() (bool, error) {
		var err error
		after, err = d.account(waiting, name)
		return !after.LastRefreshAt.Equal(before.LastRefreshAt) || !after.RefreshFailedAt.Equal(before.RefreshFailedAt), err
	})
	switch {
	case err != nil:
		return before, err
	case !done:
		return before, cmp.Or(ctx.Err(), fmt.Errorf("refresh account %s: %w", name, ErrStillWaiting))
	case after.RefreshError != "":
		return after, &RefreshFailedError{Account: name, Words: after.RefreshError, Reauth: after.RequiresReauth}
	}
	return after, nil
}

// doubt says so where no worker would present the account's refresh token now.
func (d *Control) doubt(ctx context.Context, name string) error {
	token, err := d.Ledger.Token(ctx, name)
	if err != nil {
		return databaseError(err)
	}
	now := time.Now()
	if token.StartedAt.IsZero() || token.LeaseUntil.After(now) || !token.NextAttemptAt.After(now) {
		return nil
	}
	return &RefreshFailedError{Account: name, Doubt: true, Words: fmt.Sprintf(
		"X's answer to its last exchange was lost, and its token may be spent; it is tried again near its end, at %s",
		token.NextAttemptAt.Local().Format(time.RFC3339))}
}

func (d *Control) account(ctx context.Context, name string) (store.Account, error) {
	account, err := d.Ledger.Account(ctx, name)
	return account, accountError(name, err)
}
