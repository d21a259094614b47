package consumers

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/admission/admissiontest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

func newGate(b admission.PauseStore) *admission.Gate {
	return admission.NewGate(b, "worker", 0, slog.New(slog.DiscardHandler))
}

func paused(g *admission.Gate, target admission.Target) bool {
	_, ok := g.Paused(target, time.Now())
	return ok
}

// trip trips the breaker.
func trip(t *testing.T, g *admission.Gate) {
	t.Helper()
	for range admission.BreakerThreshold {
		done, err := g.Allow(time.Now())
		testkit.Must(t, err)
		done(&xapi.UnavailableError{Err: &xapi.APIError{Status: http.StatusServiceUnavailable}})
	}
}

// TestGateWatch has a real watch carry one worker's pause to another worker's gate.
func TestGateWatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one, two := admission.NewGate(b.pauses, "one", 0, b.log), admission.NewGate(b.pauses, "two", 0, b.log)
	snapshots, err := b.pauses.Watch(t.Context())
	testkit.Must(t, err)
	testkit.Must(t, one.Pause(t.Context(), admission.TargetPublish, jetpost.Reason{Code: jetpost.CodeAppRateLimited, Until: time.Now().Add(time.Hour)}, time.Now()))
	for snapshot := range snapshots {
		if two.Learn(snapshot); paused(two, admission.TargetPublish) {
			break
		}
	}
	testkit.Equal(t, "consumer paused", b.paused(t), true)
	testkit.Must(t, b.pauses.Clear(t.Context(), publishers.TargetPublish))
	for snapshot := range snapshots {
		if two.Learn(snapshot); !paused(two, admission.TargetPublish) {
			break
		}
	}
	testkit.Equal(t, "consumer paused", b.paused(t), false)
}

// TestEndOfUnsharedPause: the end of a pause that was never stored in NATS removes nothing
// there.
func TestEndOfUnsharedPause(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, _, err := b.pauses.Set(t.Context(), publishers.Pause{Target: publishers.TargetPublish, Reason: jetpost.Reason{Code: jetpost.CodePausedByHand}, Since: time.Now()})
	testkit.Must(t, err)
	g := admission.NewGate(b.pauses, "worker", 0, b.log)
	testkit.Must(t, g.End(t.Context(), publishers.Pause{Target: publishers.TargetPublish, Reason: jetpost.Reason{Code: jetpost.CodeXOutage}}))
	_, there, err := b.pauses.Get(t.Context(), publishers.TargetPublish)
	testkit.Must(t, err)
	testkit.Equal(t, "the pause stands", there, true)
}

// wakes records wake-ups and schedules, which the test runs itself.
type wakes struct {
	due map[string]time.Time
}

func (w *wakes) WakeAll(ctx context.Context, accounts []string) error {
	for _, account := range accounts {
		if err := w.Wake(ctx, account); err != nil {
			return err
		}
	}
	return nil
}

func (w *wakes) Wake(_ context.Context, account string) error {
	w.due[account] = time.Now()
	return nil
}

func (w *wakes) WakeAt(_ context.Context, account string, at time.Time) error {
	w.due[account] = at
	return nil
}

// next is the account that is woken next, and when.
func (w *wakes) next() (account string, at time.Time) {
	for a, t := range w.due {
		if account == "" || t.Before(at) || t.Equal(at) && a < account {
			account, at = a, t
		}
	}
	return account, at
}

// outage is an installation in a bubble, with accounts whose queues are full and two
// workers.
type outage struct {
	*testBundle
	store   *admissiontest.PauseStore
	wakeups *wakes
	workers []*publishHandler
	sweeper *sweeper
	turn    int
	keys    []store.Key
}

func newOutage(t *testing.T, accounts, requests int) *outage {
	t.Helper()
	o := &outage{testBundle: offline(t), store: &admissiontest.PauseStore{}, wakeups: &wakes{due: map[string]time.Time{}}}
	deadLetters := &silentDeadLetters{}
	for _, name := range []string{"one", "two"} {
		r := o.refresher()
		r.Gate, r.DeadLetters, r.Announce = admission.NewGate(o.store, name, 0, o.log), deadLetters, deadLetters
		o.workers = append(o.workers, o.lane(func(h *publishHandler) {
			h.Wakeups, h.Tokens, h.Gate, h.Worker = o.wakeups, r, r.Gate, name
			h.Announce = &OutboxRelay{Ledger: o.ledger, DeadLetters: deadLetters, Names: o.names, Log: o.log}
		}))
	}
	o.sweeper = &sweeper{Ledger: o.ledger, Wakeups: o.wakeups, Announce: o.workers[0].Announce, Gate: o.workers[0].Gate, Health: &health{}, Worker: "one", Log: o.log}
	o.store.Watch = func(p publishers.Pauses) {
		for _, h := range o.workers {
			h.Gate.Learn(p)
		}
	}
	for a := range accounts {
		account := fmt.Sprintf("acme%d", a)
		o.account(t, account, 0)
		for i := range requests {
			r := jetpost.Request{Account: account, ID: fmt.Sprint(i), Posts: thread(fmt.Sprint(i, "a"), fmt.Sprint(i, "b"))}
			body, err := json.Marshal(r)
			testkit.Must(t, err)
			_, err = o.ledger.Accept(t.Context(), store.Acceptance{Request: r, Body: body, Digest: r.Digest(), Now: time.Now()})
			testkit.Must(t, err)
			o.keys = append(o.keys, store.Key{Account: account, ID: r.ID})
		}
		o.wakeups.due[account] = time.Now()
	}
	return o
}

// until lets time pass and runs the lanes that are woken, until then or until the fact.
func (o *outage) until(t *testing.T, end time.Time, fact func() bool) {
	t.Helper()
	for !fact() {
		account, at := o.wakeups.next()
		if account == "" || at.After(end) {
			sleep(time.Until(end))
			return
		}
		sleep(time.Until(at))
		delete(o.wakeups.due, account)
		o.turn++
		o.run(t, o.workers[o.turn%2], account)
		select {
		case <-o.workers[0].Gate.Ended():
			o.sweeper.heldFrom = time.Time{}
			testkit.Must(t, o.sweeper.Sweep(t.Context()))
		default:
		}
	}
}

func never() bool { return false }

// TestOutageOfADay: while X is unreachable no attempt is counted and X is called rarely.
// Once it is reachable, all lanes go on within one wait, in order.
func TestOutageOfADay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const accounts, requests = 14, 3 // more than can be in doubt
		o := newOutage(t, accounts, requests)
		o.faults(t, xsim.Fault{Kind: xsim.FaultOutage})
		posts := func() int { return o.calls(xsim.EndpointCreatePost) }
		attempts := func() (n int) {
			for _, key := range o.keys {
				n += o.record(t, key).Status.Attempts
			}
			return n
		}
		o.until(t, time.Now().Add(time.Minute), func() bool { return paused(o.workers[0].Gate, admission.TargetPublish) })
		tried := posts()
		if tried >= 2*admission.BreakerThreshold { // each worker counts for itself
			t.Errorf("%d posts tried before the pause", tried)
		}
		before, probes := attempts(), o.calls(xsim.EndpointMe)
		back := time.Now().Add(24 * time.Hour)
		o.until(t, back, never)
		testkit.Equal(t, "posts tried during the outage", posts(), tried)
		testkit.Equal(t, "attempts spent during the outage", attempts(), before)
		testkit.Equal(t, "tokens exchanged during the outage", o.calls(xsim.EndpointToken), 0)
		// One probe a wait: 30 s, 1, 2, 4 min, then every 8 min.
		probes = o.calls(xsim.EndpointMe) - probes
		if most := 4 + int(24*time.Hour/(admission.MaxOpen*admission.BreakerOpen)) + 1; probes > most || probes < most*9/10 {
			t.Errorf("%d probes, want %d", probes, most)
		}
		testkit.Equal(t, "requests that failed", o.counts(t)[jetpost.StateFailed], 0)

		o.faults(t)
		o.until(t, back.Add(time.Hour), func() bool { return len(o.x.Posts("")) > 0 })
		if took := time.Since(back); took > admission.MaxOpen*admission.BreakerOpen {
			t.Errorf("the first post came %s after X was back, want %s at most", took, admission.MaxOpen*admission.BreakerOpen)
		}
		o.until(t, back.Add(time.Hour), func() bool { return o.counts(t)[jetpost.StatePublished] == accounts*requests })
		testkit.Equal(t, "published", o.counts(t)[jetpost.StatePublished], accounts*requests)
		testkit.Equal(t, "attempts in all", attempts(), 2*accounts*requests)
		for a := range accounts {
			o.texts(t, fmt.Sprintf("acme%d", a), "0a", "0b", "1a", "1b", "2a", "2b")
		}
	})
}
