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
	"github.com/jetpost/jetpost/internal/admission/admissiontest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// pausedRun is the pass of a lane during a pause whose probe is due after wait.
func pausedRun(t *testing.T, b *admissiontest.PauseStore, wait time.Duration) *Pass {
	t.Helper()
	g := newGate(b)
	b.Watch = g.Learn
	check(t, g.Pause(t.Context(), TargetPublish, jetpost.Reason{Code: jetpost.CodeXOutage}, time.Now().Add(wait-BreakerOpen)))
	return newPass(g)
}

// newPass is the pass of a claim of acme's lane.
func newPass(g *Gate) *Pass {
	log := slog.New(slog.DiscardHandler)
	return &Pass{Gate: g, Windows: NewWindows(noStore{}, log), Lane: store.Claim{Account: "acme"}, CallTimeout: 15 * time.Second, Log: log}
}

// TestProbeFailsWithoutNATS: a failed probe ends, even if NATS cannot store the result.
func TestProbeFailsWithoutNATS(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &admissiontest.PauseStore{}
		r := pausedRun(t, b, time.Second)
		sleep(time.Second)
		permit, err := r.Permit(t.Context(), Calls{Endpoint: xapi.EndpointMe, N: 1})
		check(t, err)
		b.OnSet = func() error { return errors.New("NATS is away") }
		b.Watch = nil
		permit.Done(&xapi.UnavailableError{Err: errors.New("503")})
		if r.paused(t.Context(), time.Now()) == nil {
			t.Error("the run goes on after its probe has failed")
		}
	})
}

// TestProbeByManyUploads: the uploads of a thread may check the same probe at the same
// time.
func TestProbeByManyUploads(t *testing.T) {
	t.Parallel()
	for range 200 {
		r := pausedRun(t, &admissiontest.PauseStore{}, 0)
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() { _ = r.paused(t.Context(), time.Now()) })
		}
		group.Wait()
	}
}

// TestProbeThatCannotAsk: if the harmless call is not admitted, nothing else is tried.
func TestProbeThatCannotAsk(t *testing.T) {
	t.Parallel()
	r := pausedRun(t, &admissiontest.PauseStore{}, 0)
	r.Windows.Learn(xapi.Window{Account: "acme", Endpoint: xapi.EndpointMe, Kind: xapi.Window15Min, Limit: 75, Reset: time.Now().Add(time.Hour)})
	check(t, r.paused(t.Context(), time.Now())) // it probes
	err := r.Open(t.Context(), &store.Record{}, store.Pause{}, func(ctx context.Context) error {
		_, err := r.Permit(ctx, Calls{Endpoint: xapi.EndpointMe, N: 1})
		return err
	})
	var wait *WaitError
	if !errors.As(err, &wait) || wait.Reason.Code != jetpost.CodeRateLimited {
		t.Errorf("got %v, want a wait for the window", err)
	}
}

// TestPauseEndsSegments: an upload goes on while only the breaker has tripped, but not once
// the app is paused.
func TestPauseEndsSegments(t *testing.T) {
	t.Parallel()
	for _, pauses := range []bool{false, true} {
		g := newGate(&admissiontest.PauseStore{})
		trip(t, g)
		if pauses {
			check(t, g.Pause(t.Context(), TargetPublish, jetpost.Reason{Code: jetpost.CodePausedByHand, Until: time.Now().Add(time.Hour)}, time.Now()))
		}
		called := false
		_, _ = Call(t.Context(), newPass(g), Calls{Endpoint: xapi.EndpointAppendMedia, N: 1}, func() (struct{}, error) {
			called = true
			return struct{}{}, nil
		})
		testkit.Equal(t, "called", called, !pauses)
	}
}

// TestProbeOfCredits: a pause that X imposed on the app ends only with a post that X
// accepts, or refuses for its content.
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
		"the same again":  {&xapi.AppError{Err: answer(402)}, false},
		"not called":      {ErrNotCalled, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := &admissiontest.PauseStore{}
				r := pausedRun(t, b, 0)
				b.Put(publishers.Pause{Target: publishers.TargetPublish, Reason: jetpost.Reason{Code: jetpost.CodeCreditsDepleted}, NextProbeAt: time.Now(), Wait: UndatedPause})
				permit, err := r.Permit(t.Context(), Calls{Endpoint: xapi.EndpointCreatePost, N: 1})
				check(t, err)
				permit.Done(tc.err)
				testkit.Equal(t, "ended", b.Pause.Target == "", tc.ends)
			})
		})
	}
}

// TestDuePauseWithoutNATS: if NATS cannot say who probes, a head waits until a time that is
// ahead.
func TestDuePauseWithoutNATS(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &admissiontest.PauseStore{}
		r := pausedRun(t, b, 0)
		b.OnProbe = func() error { return errAway }
		var wait *WaitError
		if err := r.paused(t.Context(), time.Now()); !errors.As(err, &wait) || !wait.CheckAt.After(time.Now()) || !wait.Reason.Until.IsZero() {
			t.Errorf("got %v, want a wait until a time after %v", err, time.Now())
		}
	})
}

// TestAhead: the call behind one whose answer is not committed yet is admitted only where no
// condition needs more than this worker knows.
func TestAhead(t *testing.T) {
	t.Parallel()
	window := func(w xapi.Window) func(*Pass) {
		w.Endpoint, w.Reset = xapi.EndpointCreatePost, time.Now().Add(time.Hour)
		return func(p *Pass) { p.Windows.Learn(w) }
	}
	for name, tc := range map[string]struct {
		change func(*Pass)
		want   bool
	}{
		"nothing is known":         {func(*Pass) {}, true},
		"windows have calls left":  {window(xapi.Window{Account: "acme", Kind: xapi.Window15Min, Limit: 50, Remaining: 2}), true},
		"the account's is used up": {window(xapi.Window{Account: "acme", Kind: xapi.Window15Min, Limit: 50, Remaining: 1}), false},
		"the app's gets scarce":    {window(xapi.Window{Kind: xapi.WindowApp24h, Limit: 10_000, Remaining: 1000}), false},
		"one of the app's two is used up": {func(p *Pass) { // with the call in flight
			window(xapi.Window{Kind: xapi.Window15Min, Limit: 10_000, Remaining: 9000})(p)
			window(xapi.Window{Kind: xapi.WindowApp24h, Limit: 10_000, Remaining: 1})(p)
		}, false},
		"an interval between posts": {func(p *Pass) { p.PostingLimits.MinInterval = time.Minute }, false},
		"a limit of posts an hour":  {func(p *Pass) { p.PostingLimits.PostsPerHour = 100 }, false},
		"a monthly limit":           {func(p *Pass) { p.Budget.App = 1 }, false},
		"the account's own limit":   {func(p *Pass) { p.OwnLimit = 1 }, false},
		"the worker stops":          {func(p *Pass) { stop := make(chan struct{}); close(stop); p.Stopping = stop }, false},
		"the disk is full":          {func(p *Pass) { p.Room = func() error { return errors.New("full") } }, false},
		"the breaker has tripped":   {func(p *Pass) { trip(t, p.Gate) }, false},
		"the account is paused":     {func(*Pass) {}, false},
		"the app is paused": {func(p *Pass) {
			check(t, p.Gate.Pause(t.Context(), TargetPublish, jetpost.Reason{Code: jetpost.CodePausedByHand, Until: time.Now().Add(time.Hour)}, time.Now()))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPass(newGate(&admissiontest.PauseStore{}))
			first, err := p.Permit(t.Context(), Calls{Endpoint: xapi.EndpointCreatePost, N: 1})
			check(t, err)
			tc.change(p)
			var pause store.Pause
			if name == "the account is paused" {
				pause = jetpost.AccountPause(time.Now(), time.Time{}, "test")
			}
			next, admitted := p.Ahead(t.Context(), pause, Calls{Endpoint: xapi.EndpointCreatePost, N: 1, SetAside: 1})
			testkit.Equal(t, "admitted", admitted, tc.want)
			_, paused := p.Gate.Paused(TargetPublish, time.Now())
			testkit.Equal(t, "paused", paused, name == "the app is paused")
			first.Done(nil)
			if admitted {
				next.Done(ErrNotCalled)
			}
		})
	}
}
