package client

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/jetpost/jetpost"
)

// lookEvery is how often a request that is waited for is looked at, should an event of it
// be lost.
const lookEvery = 10 * time.Second

// subscribeWithin is how long the server may take to know of a subscription.
const subscribeWithin = 10 * time.Second

// Watch picks events of requests.
type Watch struct {
	// Account is whose they are; all accounts' where empty.
	Account string
	// ID is the request's; all requests' where empty.
	ID string
}

// Watch yields what happens to requests, as it happens, until ctx ends, which is no error.
// What is published while the connection is lost is not heard of: RequestGet tells how a
// request stands. The sequence can be ranged over once; it must be, or ctx must end.
func (c *Client) Watch(ctx context.Context, w Watch) (iter.Seq2[jetpost.Event, error], error) {
	account := cmp.Or(w.Account, "*")
	subjects := []string{c.names.RequestEvents(account, cmp.Or(w.ID, "*"))}
	// A refusal has a token more.
	subjects = append(subjects, c.names.EventSubject(jetpost.EventRequestRefused, account, "sequence.*"))
	messages := make(chan *nats.Msg, 1024)
	for _, subject := range subjects {
		s, err := c.nc.ChanSubscribe(subject, messages)
		if err != nil {
			return nil, &Error{Code: jetpost.ErrUnavailable, Detail: fmt.Sprintf("watch %s: %v", subject, err)}
		}
		context.AfterFunc(ctx, func() { _ = s.Unsubscribe() }) // fails only where it is gone with its connection
	}
	if err := c.nc.FlushTimeout(subscribeWithin); err != nil && ctx.Err() == nil {
		return nil, &Error{Code: jetpost.ErrUnavailable, Detail: fmt.Sprintf("watch: %v", err)}
	}
	return func(yield func(jetpost.Event, error) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case msg := <-messages:
				var event jetpost.Event
				err := json.Unmarshal(msg.Data, &event)
				if err != nil {
					err = fmt.Errorf("decode event on %s: %w", msg.Subject, err)
				} else if r := event.Refusal; r != nil && w.ID != "" && r.ID != w.ID {
					continue
				}
				if !yield(event, err) {
					return
				}
			}
		}
	}, nil
}

// RefusedError says that a request was refused: nothing of it is published.
type RefusedError struct{ Refusal jetpost.Refusal }

func (e *RefusedError) Error() string {
	text := fmt.Sprintf("request %s of account %s was refused: %s", e.Refusal.ID, e.Refusal.Account, e.Refusal.Code)
	for _, p := range e.Refusal.Problems {
		text += fmt.Sprintf("; %s %s", p.Pointer, p.Message)
	}
	return text
}

// PublishAndWait publishes a request of the account and waits until nothing more happens
// to it by itself, or ctx ends. It returns the latest that is known of it; see, where it
// is not nil, is called with each event. A request without an id gets one. It fails with
// *RefusedError, with *Error, or with the end of ctx.
func (c *Client) PublishAndWait(ctx context.Context, account string, r jetpost.Request, see func(jetpost.Event)) (jetpost.RequestStatus, error) {
	r.ID = once(r.ID)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	events, err := c.Watch(watching, Watch{Account: account, ID: r.ID})
	if err != nil {
		return jetpost.RequestStatus{}, err
	}
	answer, err := c.RequestPublish(ctx, account, r)
	switch {
	case err != nil:
		return jetpost.RequestStatus{}, err
	case answer.Refusal != nil:
		return jetpost.RequestStatus{}, &RefusedError{*answer.Refusal}
	}
	latest := *answer.Request
	news := make(chan jetpost.Event)
	go func() {
		for event, err := range events {
			if err != nil || event.Request == nil {
				continue
			}
			select {
			case news <- event:
			case <-watching.Done():
				return
			}
		}
	}()
	every := time.NewTicker(lookEvery)
	defer every.Stop()
	for !latest.Settled() {
		select {
		case <-ctx.Done():
			return latest, ctx.Err()
		case event := <-news:
			if see != nil {
				see(event)
			}
			if event.Request.Revision > latest.Revision {
				latest = *event.Request
			}
		case <-every.C:
			// Who may not ask waits for events alone.
			if is, err := c.RequestGet(ctx, account, jetpost.RequestGet{ID: r.ID}); err == nil && is.Request.Revision > latest.Revision {
				latest = is.Request
			}
		}
	}
	return latest, nil
}
