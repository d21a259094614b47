package admission

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers/admission/admissiontest"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// stoppedRun is the run of a lane while a stop is on record that is to be probed after
// a wait.
func stoppedRun(t *testing.T, b *admissiontest.Board, wait time.Duration) *Pass {
	t.Helper()
	g := newGate(b)
	b.Watch = g.Learn
	check(t, g.Stop(t.Context(), ScopePublish, jetpost.Reason{Code: jetpost.CodeXOutage}, time.Now().Add(wait-BreakerOpen)))
	return newPass(g)
}

// newPass is that of a claim of acme's lane.
func newPass(g *Gate) *Pass {
	log := slog.New(slog.DiscardHandler)
	return &Pass{Gate: g, Windows: NewWindows(noBoard{}, log), Lane: store.Lane{Account: "acme"}, CallTimeout: 15 * time.Second, Log: log}
}

// TestProbeFailsWithoutNATS: what a probe has brought ends it, though nobody can be told.
func TestProbeFailsWithoutNATS(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &admissiontest.Board{}
		r := stoppedRun(t, b, time.Second)
		sleep(time.Second)
		permit, err := r.Permit(t.Context(), Calls{Endpoint: xapi.EndpointMe, N: 1})
		check(t, err)
		b.OnSet = func() error { return errors.New("NATS is away") }
		b.Watch = nil
		permit.Done(&xapi.UnavailableError{Err: errors.New("503")})
		if r.stopped(t.Context(), time.Now()) == nil {
			t.Error("the run goes on after its probe has failed")
		}
	})
}

// TestProbeByManyUploads: the uploads of a thread look at the same probe at a time.
func TestProbeByManyUploads(t *testing.T) {
	t.Parallel()
	for range 200 {
		r := stoppedRun(t, &admissiontest.Board{}, 0)
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() { _ = r.stopped(t.Context(), time.Now()) })
		}
		group.Wait()
	}
}

// TestProbeThatCannotAsk: where X cannot be asked harmlessly, nothing else is tried.
func TestProbeThatCannotAsk(t *testing.T) {
	t.Parallel()
	r := stoppedRun(t, &admissiontest.Board{}, 0)
	r.Windows.Learn(xapi.Window{Account: "acme", Endpoint: xapi.EndpointMe, Kind: xapi.Window15Min, Limit: 75, Reset: time.Now().Add(time.Hour)})
	check(t, r.stopped(t.Context(), time.Now())) // it probes
	err := r.Open(t.Context(), &store.Record{}, store.Pause{}, func(ctx context.Context) error {
		_, err := r.Permit(ctx, Calls{Endpoint: xapi.EndpointMe, N: 1})
		return err
	})
	var wait *WaitError
	if !errors.As(err, &wait) || wait.Reason.Code != jetpost.CodeRateLimited {
		t.Errorf("got %v, want a wait for the window", err)
	}
}

// TestStopEndsSegments: an upload under way goes on while only the breaker is open, not
// once the app is stopped.
func TestStopEndsSegments(t *testing.T) {
	t.Parallel()
	for _, stops := range []bool{false, true} {
		g := newGate(&admissiontest.Board{})
		trip(t, g)
		if stops {
			check(t, g.Stop(t.Context(), ScopePublish, jetpost.Reason{Code: jetpost.CodeAppPaused, Until: time.Now().Add(time.Hour)}, time.Now()))
		}
		called := false
		_, _ = Call(t.Context(), newPass(g), Calls{Endpoint: xapi.EndpointAppendMedia, N: 1}, func() (struct{}, error) {
			called = true
			return struct{}{}, nil
		})
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
		"not called":      {ErrNotCalled, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := &admissiontest.Board{}
				r := stoppedRun(t, b, 0)
				b.Put(publishers.Stop{Scope: publishers.ScopePublish, Reason: jetpost.Reason{Code: jetpost.CodeCreditsDepleted}, NextProbeAt: time.Now(), Wait: UndatedStop})
				permit, err := r.Permit(t.Context(), Calls{Endpoint: xapi.EndpointCreatePost, N: 1})
				check(t, err)
				permit.Done(tc.err)
				equal(t, "ended", b.Stop.Scope == "", tc.ends)
			})
		})
	}
}

// TestDueStopWithoutNATS: where nobody can be asked who probes, a head waits until a time
// that is ahead.
func TestDueStopWithoutNATS(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &admissiontest.Board{}
		r := stoppedRun(t, b, 0)
		b.OnProbe = func() error { return errAway }
		var wait *WaitError
		if err := r.stopped(t.Context(), time.Now()); !errors.As(err, &wait) || !wait.LookAt.After(time.Now()) || !wait.Reason.Until.IsZero() {
			t.Errorf("got %v, want a wait until a time after %v", err, time.Now())
		}
	})
}
