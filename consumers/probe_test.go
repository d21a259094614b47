package consumers

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// stoppedRun is the run of a lane while a stop is on record that is to be probed after
// a wait.
func stoppedRun(t *testing.T, b *board, wait time.Duration) *laneRun {
	t.Helper()
	g := newGate(b)
	b.watch = g.Learn
	check(t, g.Stop(t.Context(), ScopePublish, jetpost.Reason{Code: jetpost.CodeXOutage}, time.Now().Add(wait-breakerOpen)))
	log := slog.New(slog.DiscardHandler)
	return &laneRun{h: &PublishHandler{Gate: g, Worker: "worker", Log: log}, log: log}
}

// TestProbeFailsWithoutNATS: what a probe has brought ends it, though nobody can be told.
func TestProbeFailsWithoutNATS(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &board{}
		r := stoppedRun(t, b, time.Second)
		sleep(time.Second)
		done, err := r.allow(t.Context(), xapi.EndpointMe)
		check(t, err)
		b.set = func() error { return errors.New("NATS is away") }
		b.watch = nil
		done(&xapi.UnavailableError{Err: errors.New("503")})
		if _, stopped := r.stopped(t.Context(), time.Now()); !stopped {
			t.Error("the run goes on after its probe has failed")
		}
	})
}

// TestProbeByManyUploads: the uploads of a thread look at the same probe at a time.
func TestProbeByManyUploads(t *testing.T) {
	t.Parallel()
	for range 200 {
		r := stoppedRun(t, &board{}, 0)
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() { r.stopped(t.Context(), time.Now()) })
		}
		group.Wait()
	}
}

// storedToken is a token as it is.
type storedToken struct{ tokenSource }

func (storedToken) Stored(context.Context, string) (store.Token, error) { return store.Token{}, nil }

// TestProbeThatCannotAsk: where X cannot be asked harmlessly, nothing else is tried.
func TestProbeThatCannotAsk(t *testing.T) {
	t.Parallel()
	r := stoppedRun(t, &board{}, 0)
	limits := xapi.NewLimits(nil)
	limits.Learn(xapi.Window{Account: "acme", Endpoint: xapi.EndpointMe, Kind: xapi.Window15Min, Limit: 75, Reset: time.Now().Add(time.Hour)})
	r.h.Tokens = storedToken{}
	r.h.Client = func(account, token string) *xapi.Client { return xapi.New(token, xapi.WithLimits(limits, account)) }
	if _, stopped := r.stopped(t.Context(), time.Now()); stopped {
		t.Fatal("the run does not probe")
	}
	v, fails := r.probe(t.Context(), "acme")
	equal(t, "ends there", fails, true)
	equal(t, "code", v.reason.Code, jetpost.CodeRateLimited)
}

// TestStopEndsSegments: an upload under way goes on while only the breaker is open, not
// once the app is stopped.
func TestStopEndsSegments(t *testing.T) {
	t.Parallel()
	for _, stops := range []bool{false, true} {
		log := slog.New(slog.DiscardHandler)
		g := newGate(&board{})
		trip(t, g)
		if stops {
			check(t, g.Stop(t.Context(), ScopePublish, jetpost.Reason{Code: jetpost.CodeAppPaused, Until: time.Now().Add(time.Hour)}, time.Now()))
		}
		u := &uploads{
			t:      &threadRun{r: &laneRun{h: &PublishHandler{Gate: g, Worker: "worker", Log: log}, log: log}},
			client: xapi.New(""), ctx: t.Context(), flying: map[xapi.Endpoint]int{},
		}
		called := false
		_ = u.call(xapi.EndpointAppendMedia, func() error { called = true; return nil })
		equal(t, "called", called, !stops)
	}
}

// TestProbeOfCredits: of what X refuses the app, only a post that X took, or refused for
// what it says, tells that it is over.
func TestProbeOfCredits(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err  error
		ends bool
	}{
		"taken":           {nil, true},
		"refused":         {&xapi.RefusedError{Kind: xapi.RefusedRule, Err: answer(403)}, true},
		"token refused":   {&xapi.UnauthorizedError{Err: answer(401)}, false},
		"account limited": {&xapi.RateLimitError{Err: answer(429)}, false},
		"edge":            {&xapi.UnavailableError{Err: answer(413)}, false},
		"the same again":  {&xapi.AppStopError{Err: answer(402)}, false},
		"not called":      {errNotCalled, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := &board{}
				r := stoppedRun(t, b, 0)
				b.put(publishers.Stop{Scope: publishers.ScopePublish, Reason: jetpost.Reason{Code: jetpost.CodeCreditsDepleted, Until: time.Now()}, Probe: true, Wait: undatedStop})
				done, err := r.allow(t.Context(), xapi.EndpointCreatePost)
				check(t, err)
				done(tc.err)
				equal(t, "ended", b.stop.Scope == "", tc.ends)
			})
		})
	}
}

// TestDueStopWithoutNATS: where nobody can be asked who probes, a head waits until a time
// that is ahead.
func TestDueStopWithoutNATS(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &board{}
		r := stoppedRun(t, b, 0)
		b.probe = func() error { return errAway }
		v, stopped := r.stopped(t.Context(), time.Now())
		if !stopped || !v.reason.Until.After(time.Now()) {
			t.Errorf("stopped %t until %v, now is %v", stopped, v.reason.Until, time.Now())
		}
	})
}

// TestEndOfUnsharedStop: a stop that NATS was not told of is not on record, and its end
// removes nothing there.
func TestEndOfUnsharedStop(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, _, err := b.stops.Set(t.Context(), publishers.Stop{Scope: publishers.ScopePublish, Reason: jetpost.Reason{Code: jetpost.CodeAppPaused}, Since: time.Now()})
	check(t, err)
	g := NewGate(b.stops, "worker", 0, b.log)
	check(t, g.End(t.Context(), publishers.Stop{Scope: publishers.ScopePublish, Reason: jetpost.Reason{Code: jetpost.CodeXOutage}}))
	_, there, err := b.stops.Get(t.Context(), publishers.ScopePublish)
	check(t, err)
	equal(t, "the pause stands", there, true)
}
