package client

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

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

// readerIdle is how long NATS keeps the consumer of a reader that is gone.
const readerIdle = 5 * time.Minute

// Changes yields what happens from now on, until ctx ends, which is no error: each event by
// its subject, without its content, and by its place in the stream of events. Last is the
// place of the latest one before. It resumes without a gap after a lost connection; an error
// ends it. It can be ranged over once; it must be, or ctx must end.
func (c *Client) Changes(ctx context.Context) (last uint64, changes iter.Seq2[jetpost.Change, error], err error) {
	js, err := jetstream.New(c.nc)
	if err != nil {
		return 0, nil, notWatched(err)
	}
	asking, cancel := context.WithTimeout(ctx, subscribeWithin)
	defer cancel()
	stream, err := js.Stream(asking, c.names.EventsStream())
	if err != nil {
		return 0, nil, notWatched(err)
	}
	last = stream.CachedInfo().State.LastSeq
	consumer, err := js.OrderedConsumer(asking, c.names.EventsStream(), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{c.names.AllEvents()}, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: last + 1,
		HeadersOnly: true, InactiveThreshold: readerIdle,
	})
	if err != nil {
		return 0, nil, notWatched(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		return 0, nil, notWatched(err)
	}
	context.AfterFunc(ctx, messages.Stop)
	return last, func(yield func(jetpost.Change, error) bool) {
		defer messages.Stop()
		for {
			msg, err := messages.Next(jetstream.NextContext(ctx))
			if ctx.Err() != nil {
				return
			}
			var at *jetstream.MsgMetadata
			if err == nil {
				at, err = msg.Metadata()
			}
			if err != nil {
				yield(jetpost.Change{}, notWatched(err))
				return
			}
			change := c.names.ReadEventSubject(msg.Subject())
			change.Sequence = at.Sequence.Stream
			if !yield(change, nil) {
				return
			}
		}
	}, nil
}

func notWatched(err error) *Error {
	return &Error{Code: jetpost.ErrUnavailable, Detail: fmt.Sprintf("watch changes: %v", err)}
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
