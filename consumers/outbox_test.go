package consumers

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// marksLedger counts marks that are separate statements.
type marksLedger struct {
	store.Store
	mu    sync.Mutex
	marks []store.Revision
}

func (l *marksLedger) MarkDelivered(ctx context.Context, key store.Key, revision int64) (bool, error) {
	l.note(store.Revision{Key: key, Number: revision})
	return l.Store.MarkDelivered(ctx, key, revision)
}

func (l *marksLedger) MarkManyDelivered(ctx context.Context, told []store.Revision) ([]store.Key, error) {
	l.note(told...)
	return l.Store.MarkManyDelivered(ctx, told)
}

func (l *marksLedger) note(told ...store.Revision) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marks = append(l.marks, told...)
}

// TestMarksGather: the events of a request that is published at once need no separate mark.
// A request that waits is marked later, together with others.
func TestMarksGather(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.account(t, "bolt", 0)
	ledger := &marksLedger{Store: b.ledger}
	relay := b.relay()
	relay.Ledger, relay.MarkAfter = ledger, time.Hour
	intake := b.intake()
	intake.Announce = relay
	keys := map[string]store.Key{}
	for _, account := range []string{"acme", "bolt"} {
		body, err := json.Marshal(jetpost.Request{Account: account, ID: "1", Posts: thread(account)})
		testkit.Must(t, err)
		take(t, intake, b.job(account, body))
		keys[account] = store.Key{Account: account, ID: "1"}
		testkit.Equal(t, "event of "+account, b.lastEvent(t, keys[account]).Type, jetpost.EventRequestAccepted)
		testkit.Equal(t, "announced of "+account, b.record(t, keys[account]).Delivered, int64(0))
	}
	b.run(t, b.lane(func(h *publishHandler) { h.Announce = relay }), "acme")
	r := b.want(t, keys["acme"], jetpost.StatePublished, "", 1)
	testkit.Equal(t, "announced, with the release", r.Delivered, r.Status.Revision)
	testkit.Equal(t, "marks on their own", len(ledger.marks), 0)
	relay.Flush(t.Context())
	testkit.Equal(t, "marks that have gathered", len(ledger.marks), 1)
	testkit.Equal(t, "mark", ledger.marks[0], store.Revision{Key: keys["bolt"], Number: 1})
	testkit.Equal(t, "announced", b.record(t, keys["bolt"]).Delivered, int64(1))
	relay.Flush(t.Context())
	testkit.Equal(t, "marks that gathered since", len(ledger.marks), 1)
}

// TestMovedOnIsToldAgain: a request is cancelled, and its event is published, between two
// posts of a thread. The event of the first post is published after that. The last event
// says that the request is cancelled.
func TestMovedOnIsToldAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "1", Posts: thread("one", "two")})
	hook := &ledgerHook{Store: b.ledger}
	hook.after = nth("posted", 1, func() error {
		_, err := b.ledger.Cancel(t.Context(), key, time.Now())
		testkit.Must(t, err)
		return b.relay().Announce(t.Context(), key)
	})
	b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
	r := b.want(t, key, jetpost.StateCancelled, "", 1)
	testkit.Equal(t, "last event", b.lastEvent(t, key).Type, jetpost.EventRequestCancelled)
	testkit.Equal(t, "announced", r.Delivered, r.Status.Revision)
}

// lateLetters publishes events late.
type lateLetters struct {
	DeadLetters
	before func()
	given  chan struct{} // has one for each call
}

func (l *lateLetters) Events(ctx context.Context, events []publishers.Told) func() []error {
	l.given <- struct{}{}
	return func() []error {
		l.before()
		return l.DeadLetters.Events(ctx, events)()
	}
}

// TestToldTooLateIsToldAgain: if the event of an acceptance comes behind a newer one that is
// already marked, the newer one is published again, so that it stays the last.
func TestToldTooLateIsToldAgain(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]func(h *intakeHandler, lane func()){
		"another worker was faster": func(h *intakeHandler, lane func()) { h.Ledger = lateDoor{h.Ledger, lane} },
		"the event was repeated": func(h *intakeHandler, lane func()) {
			h.Announce.DeadLetters = &lateLetters{DeadLetters: h.Announce.DeadLetters, before: lane, given: make(chan struct{}, 1)}
			h.Announce.MarkAfter = time.Hour
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			key := store.Key{Account: "acme", ID: "one"}
			h := b.intake()
			late(h, func() {
				b.run(t, b.lane(), "acme")
				r := b.want(t, key, jetpost.StatePublished, "", 1)
				testkit.Equal(t, "announced", r.Delivered, r.Status.Revision)
			})
			take(t, h, b.job("acme", []byte(`{"id":"one","posts":[{"text":"one"}]}`)))
			h.Announce.Flush(t.Context())
			testkit.Equal(t, "last event", b.lastEvent(t, key).Type, jetpost.EventRequestPublished)
		})
	}
}

// TestAnswerWaitsForNoEvent: what X has answered is committed although NATS does not answer to
// the event before. The next event waits for that answer.
func TestAnswerWaitsForNoEvent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "1", Posts: thread("one", "two")})
	committed := make(chan struct{})
	hook := &ledgerHook{Store: b.ledger, after: nth("posted", 2, func() error { close(committed); return nil })}
	late := &lateLetters{DeadLetters: b.deadLetters, given: make(chan struct{}, 2)}
	var first sync.Once
	late.before = func() {
		first.Do(func() {
			select {
			case <-committed:
			case <-time.After(testkit.Patience):
				t.Error("the second post waits for the event of the first")
			}
			<-late.given // the first
			select {
			case <-late.given:
				t.Error("the event of the second post does not wait for the first")
			case <-time.After(testkit.AskAgain):
			}
		})
	}
	b.run(t, b.lane(func(h *publishHandler) {
		h.Ledger, h.Announce = hook, b.relay()
		h.Announce.DeadLetters = late
	}), "acme")
	r := b.want(t, key, jetpost.StatePublished, "", 2)
	testkit.Equal(t, "announced", r.Delivered, r.Status.Revision)
	testkit.Equal(t, "last event", b.lastEvent(t, key).Type, jetpost.EventRequestPublished)
}
