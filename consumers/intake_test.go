package consumers

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

func TestIntakeAccepts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	d := b.job("acme", []byte(`{"id":"one","posts":[{"text":"one"}],"metadata":{"k":"v"}}`))
	for i := range 2 { // the second time it is a repeat
		take(t, b.intake(), d)
		r := b.want(t, store.Key{Account: "acme", ID: "one"}, jetpost.StateQueued, "", 0)
		testkit.Equal(t, "revision", r.Status.Revision, 1)
		testkit.Equal(t, "wake-ups", b.messages(t, b.names.LanesStream()), 1)
		event := b.lastEvent(t, r.Key)
		testkit.Equal(t, "event", event.Type, jetpost.EventRequestAccepted)
		testkit.Equal(t, "metadata", event.Request.Metadata["k"], "v")
		testkit.Equal(t, fmt.Sprintf("events after %d", i), b.messages(t, b.names.EventsStream()), 1)
	}
}

// TestIntakeNamesJobs: a job without an id is identified by its sequence, so that its
// redelivery is no second job, and another job is.
func TestIntakeNamesJobs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	body := []byte(`{"account":"acme","posts":[{"text":"one"}]}`)
	first, second := b.job("", body), b.job("", body)
	first.Subject, second.Subject = b.names.PublishRequest(""), b.names.PublishRequest("") // the subject without an account
	for _, d := range []delivery{first, first, second} {
		take(t, b.intake(), d)
	}
	testkit.Equal(t, "requests", b.counts(t)[jetpost.StateQueued], 2)
}

func TestIntakeRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, account, body string
		code                jetpost.Code
		problems            int
	}{
		{"account unknown", "nobody", `{"id":"one","posts":[{"text":"one"}]}`, jetpost.CodeAccountUnknown, 1},
		{"conflict", "acme", `{"id":"taken","posts":[{"text":"another"}]}`, jetpost.CodeIdentityConflict, 1},
		{"invalid", "acme", `{"id":"one","posts":[{"text":""}],"publish":"now"}`, jetpost.CodeInvalidRequest, 2},
		{"no account", "", `{"id":"one","posts":[{"text":"one"}]}`, jetpost.CodeInvalidRequest, 1},
		{"no JSON", "acme", `hello`, jetpost.CodeInvalidRequest, 1},
		{"nothing", "acme", ``, jetpost.CodeInvalidRequest, 1},
		{"other account", "acme", `{"account":"bolt","posts":[{"text":"one"}]}`, jetpost.CodeInvalidRequest, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			taken := b.accept(t, jetpost.Request{ID: "taken", Posts: thread("one")})
			d := b.job(test.account, []byte(test.body))
			if test.account == "" {
				d.Subject = b.names.PublishRequest("")
			}
			for range 2 { // the second time it is published again, and stored once
				take(t, b.intake(), d)
			}
			b.want(t, taken, jetpost.StateQueued, "", 0)
			testkit.Equal(t, "requests", len(b.counts(t)), 1)
			refusals, err := b.ledger.Refusals(t.Context(), 10)
			testkit.Must(t, err)
			if len(refusals) != 1 || refusals[0].Code != test.code || len(refusals[0].Problems) != test.problems || refusals[0].Account != test.account {
				t.Errorf("refusals are %+v, want one for %s with %d problems", refusals, test.code, test.problems)
			}
			deadLetters, err := b.deadLetters.List(t.Context(), publishers.DeadLetterFilter{})
			testkit.Must(t, err)
			if len(deadLetters) != 1 || !deadLetters[0].Refused || deadLetters[0].Code != test.code || string(deadLetters[0].Body) != test.body ||
				deadLetters[0].Origin != b.names.PublishRequest(test.account) {
				t.Errorf("records are %+v", deadLetters)
			}
			testkit.Equal(t, "event of the first one", b.lastEvent(t, taken).Type, jetpost.EventRequestAccepted)
		})
	}
}

// brokenWakeups wakes no lane.
type brokenWakeups struct{}

func (brokenWakeups) WakeAll(context.Context, []string) error { return errAway }

// brokenDoor is a ledger that does not answer for a while.
type brokenDoor struct {
	intakeLedger
	broken int
}

var errNoDatabase = &store.UnavailableError{Database: "test", Err: errAway}

func (l *brokenDoor) AcceptMany(ctx context.Context, lease store.Lease, in []store.Acceptance) ([]store.Received, error) {
	if l.broken--; l.broken >= 0 {
		return nil, errNoDatabase
	}
	return l.intakeLedger.AcceptMany(ctx, lease, in)
}

func (l *brokenDoor) Refuse(ctx context.Context, refusal jetpost.Refusal, body []byte) error {
	if l.broken--; l.broken >= 0 {
		return errNoDatabase
	}
	return l.intakeLedger.Refuse(ctx, refusal, body)
}

// TestIntakeGivesBack: while a dependency does not answer, jobs are given back each time,
// and in the end accepted once.
func TestIntakeGivesBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	h := b.intake()
	const times = ownFailures + 2
	h.Ledger = &brokenDoor{b.ledger, times}
	good := b.job("acme", []byte(`{"id":"one","posts":[{"text":"one"}]}`))
	for range times {
		done, err := h.HandleBatch(t.Context(), store.Lease{}, []delivery{good})
		wantAway(t, err)
		testkit.Equal(t, "done", done, 0)
	}
	take(t, h, good)
	b.want(t, store.Key{Account: "acme", ID: "one"}, jetpost.StateQueued, "", 0)
	testkit.Equal(t, "wake-ups", b.messages(t, b.names.LanesStream()), 1)

	// The valid one of both is accepted, but the invalid one is not rejected yet.
	h.Ledger = &brokenDoor{b.ledger, 0}
	refusing := &brokenDoor{h.Ledger, 0}
	h.Ledger = refusing
	bad, next := b.job("acme", []byte(`no`)), b.job("acme", []byte(`{"id":"two","posts":[{"text":"two"}]}`))
	take(t, h, next)
	refusing.broken = 1
	done, err := h.HandleBatch(t.Context(), store.Lease{}, []delivery{bad, next})
	wantAway(t, err)
	testkit.Equal(t, "done", done, 0)
	take(t, h, bad, next)
}

// TestIntakeNeedsNoWakeup: a wake-up that fails is left to the sweeper.
func TestIntakeNeedsNoWakeup(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	h := b.intake()
	h.Wakeups = brokenWakeups{}
	take(t, h, b.job("acme", []byte(`{"id":"one","posts":[{"text":"one"}]}`)))
	testkit.Must(t, b.sweeper("sweeper").Sweep(t.Context()))
	testkit.Equal(t, "wake-ups", b.messages(t, b.names.LanesStream()), 1)
}

func TestIntakeScheduled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "later", Posts: thread("later"), PublishAt: time.Now().Add(time.Hour)})
	b.want(t, key, jetpost.StateScheduled, "", 0)
	testkit.Equal(t, "event", b.lastEvent(t, key).Type, jetpost.EventRequestScheduled)
}

// TestIntakeNewerVersion: a request that only a newer worker can read is stored for it.
// Only its bytes decide whether two such requests are equal.
func TestIntakeNewerVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	for i, body := range []string{
		`{"version":99,"id":"new","posts":[{"text":"one","mood":"glad"}]}`,
		`{"version":99,"id":"new","posts":[{"text":"one","mood":"glad"}]}`,
		`{"version":99,"id":"new","posts":[]}`, // another body
	} {
		take(t, b.intake(), b.job("acme", []byte(body)))
		b.want(t, store.Key{Account: "acme", ID: "new"}, jetpost.StateHeld, jetpost.CodeNeedsNewerWorker, 0)
		refusals, err := b.ledger.Refusals(t.Context(), 10)
		testkit.Must(t, err)
		testkit.Equal(t, "refused", len(refusals), i/2)
	}
}

// A body can have so many mistakes that they fill more than one message. It must not block
// its partition for ever.
func TestIntakeRefusalIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	body := strings.Repeat(`{"`+strings.Repeat("<", 512)+`":`, 31) + "{" + strings.Repeat(`"a":1,`, 60) + `"b":1}` + strings.Repeat("}", 31)
	take(t, b.intake(), b.job("acme", []byte(body)))
}
