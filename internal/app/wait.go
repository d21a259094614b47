package app

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/publishers"
)

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
	return w.Request.Settled()
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
	taken, err := control.Until(ctx, func() (bool, error) {
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

// ErrStillWaiting says that a wait ended before what it waited for came.
var ErrStillWaiting = control.ErrStillWaiting

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
