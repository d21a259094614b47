package admission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission/admissiontest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// A server that is shut down while it sets up a source keeps waiting for it.
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*stream).trySetupSourceConsumer.func3"))
}

// errAway is a server that does not answer.
var errAway = errors.New("it is away")

// sleep lets time pass in a synctest bubble, whose clock jumps ahead.
func sleep(d time.Duration) { time.Sleep(d) } //nolint:forbidigo // only called in a bubble

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newGate(b PauseStore) *Gate { return NewGate(b, "worker", 0, slog.New(slog.DiscardHandler)) }

func paused(g *Gate, target Target) bool {
	_, ok := g.Paused(target, time.Now())
	return ok
}

func reason(until time.Time) jetpost.Reason {
	return jetpost.Reason{Code: jetpost.CodeAppRateLimited, Until: until}
}

func TestGateMergesPauses(t *testing.T) {
	t.Parallel()
	const none = -1 // a pause without an end
	tests := []struct{ first, second, want int }{{1, 2, 2}, {2, 1, 2}, {1, none, none}, {none, 1, none}, {1, 1, 1}}
	for _, shared := range []bool{true, false} {
		for _, test := range tests {
			t.Run(fmt.Sprintf("%d then %d, shared %t", test.first, test.second, shared), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					now := time.Now()
					end := func(minutes int) time.Time {
						if minutes == none {
							return time.Time{}
						}
						return now.Add(time.Duration(minutes) * time.Minute)
					}
					b := &admissiontest.PauseStore{}
					if !shared {
						b.OnSet = func() error { return errAway }
					}
					g := newGate(b)
					for _, minutes := range []int{test.first, test.second} {
						testkit.Equal(t, "failed", g.Pause(t.Context(), TargetPublish, reason(end(minutes)), now) != nil, !shared)
					}
					pause, ok := g.Paused(TargetPublish, now)
					until := end(test.want)
					if until.IsZero() {
						until = now.Add(UndatedPause) // when the probe is due
					}
					if !ok || !pause.NextAt().Equal(until) || pause.Probed() != (test.want == none) || pause.Probed() != pause.Reason.Until.IsZero() {
						t.Errorf("paused is %t (probed: %t) until %v, want %v", ok, pause.Probed(), pause.NextAt(), until)
					}
					testkit.Equal(t, "another target is paused", paused(g, TargetRefresh), false)
					g.Learn(b.Snapshot())
					sleep(time.Minute + time.Second)
					testkit.Equal(t, "paused later", paused(g, TargetPublish), test.want != 1)
				})
			})
		}
	}
}

// TestGateOldPauses: a snapshot of the pauses that was already on its way when this worker
// set a pause does not contain it.
func TestGateOldPauses(t *testing.T) {
	t.Parallel()
	hour := func() jetpost.Reason { return reason(time.Now().Add(time.Hour)) }

	t.Run("after the pause", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := &admissiontest.PauseStore{}
			g := newGate(b)
			old := b.Snapshot()
			check(t, g.Pause(t.Context(), TargetPublish, hour(), time.Now()))
			g.Learn(old)
			testkit.Equal(t, "paused", paused(g, TargetPublish), true)
			g.Learn(b.Snapshot())
			testkit.Equal(t, "paused", paused(g, TargetPublish), true)
			// A lane that sets the same pause later changes nothing.
			check(t, g.Pause(t.Context(), TargetPublish, hour(), time.Now()))
			g.Learn(b.Clear())
			testkit.Equal(t, "paused after the end", paused(g, TargetPublish), false)
		})
	})
	t.Run("of a shorter pause", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := &admissiontest.PauseStore{}
			g := newGate(b)
			b.Put(publishers.Pause{Target: string(TargetPublish), Reason: reason(time.Now().Add(time.Second)), Since: time.Now()})
			old := b.Snapshot()
			g.Learn(old)
			check(t, g.Pause(t.Context(), TargetPublish, hour(), time.Now()))
			g.Learn(old)
			pause, _ := g.Paused(TargetPublish, time.Now())
			testkit.Equal(t, "end", pause.Reason.Until, b.Pause.Reason.Until)
		})
	})
	t.Run("resumed before the answer", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := &admissiontest.PauseStore{}
			g := newGate(b)
			b.OnSet = func() error {
				g.Learn(b.Snapshot())
				g.Learn(publishers.Pauses{Revision: b.Snapshot().Revision + 1}) // a person has resumed the app
				return nil
			}
			check(t, g.Pause(t.Context(), TargetPublish, hour(), time.Now()))
			testkit.Equal(t, "paused", paused(g, TargetPublish), false)
		})
	})
	t.Run("resumed in the same snapshot", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := &admissiontest.PauseStore{}
			g := newGate(b)
			check(t, g.Pause(t.Context(), TargetPublish, hour(), time.Now()))
			g.Learn(b.Clear())
			testkit.Equal(t, "paused", paused(g, TargetPublish), false)
		})
	})
	t.Run("while NATS is away", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			g := newGate(&admissiontest.PauseStore{OnSet: func() error { return errAway }})
			if err := g.Pause(t.Context(), TargetPublish, hour(), time.Now()); !errors.Is(err, errAway) {
				t.Errorf("error is %v", err)
			}
			g.Learn(publishers.Pauses{Revision: 7})
			sleep(59 * time.Minute)
			testkit.Equal(t, "paused", paused(g, TargetPublish), true)
			sleep(2 * time.Minute)
			testkit.Equal(t, "paused after its end", paused(g, TargetPublish), false)
		})
	})
}

func answer(status int) *xapi.APIError { return &xapi.APIError{Status: status} }

// call has X answer one call through the gate.
func call(t *testing.T, g *Gate, err error) {
	t.Helper()
	done, refused := g.Allow(time.Now())
	check(t, refused)
	done(err)
}

// trip trips the breaker.
func trip(t *testing.T, g *Gate) {
	t.Helper()
	for range BreakerThreshold {
		if _, out := g.Outage(); out {
			t.Fatal("the breaker opened too early")
		}
		call(t, g, &xapi.AmbiguousError{Err: answer(http.StatusServiceUnavailable)})
	}
}

func TestGateBreakerOpens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(&admissiontest.PauseStore{})
		now := time.Now()
		trip(t, g)
		reason, out := g.Outage()
		if !out || reason.Code != jetpost.CodeXOutage {
			t.Errorf("outage is %t: %+v", out, reason)
		}
		_, err := g.Allow(now)
		var wait *WaitError
		if !errors.As(err, &wait) || wait.Reason.Code != jetpost.CodeXUnavailable || !wait.Reason.Until.After(now) {
			t.Errorf("the call after the breaker has tripped: %v", err)
		}
	})
}

// TestGateBreakerNeverCounts: an answer of X is no outage, and a call that X never saw says
// nothing.
func TestGateBreakerNeverCounts(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{
		"400":            &xapi.RefusedError{Kind: xapi.RefusedInvalid, Err: answer(400)},
		"401":            &xapi.UnauthorizedError{Err: answer(401)},
		"402":            &xapi.AppError{Err: answer(402)},
		"403":            &xapi.RefusedError{Kind: xapi.RefusedRule, Err: answer(403)},
		"429":            &xapi.RateLimitError{Err: answer(429)},
		"grant refused":  &xapi.GrantRefusedError{Err: answer(400)},
		"no id":          &xapi.AmbiguousError{Err: answer(201)},
		"not called":     ErrNotCalled,
		"success":        nil,
		"too late":       &xapi.NotSentError{Err: xapi.ErrNotAfter},
		"worker stopped": &xapi.AmbiguousError{Err: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGate(&admissiontest.PauseStore{})
			for range 3 * BreakerThreshold {
				call(t, g, err)
			}
			_, out := g.Outage()
			testkit.Equal(t, "outage", out, false)
		})
	}
}

func TestGateBreakerHalfOpen(t *testing.T) {
	t.Parallel()
	outage := &xapi.UnavailableError{Err: answer(http.StatusBadGateway)}
	tests := []struct {
		name   string
		probe  error
		admits bool // another call, after the probe
		out    bool
	}{
		{"fails", outage, false, true},
		{"finds a refusal", &xapi.RefusedError{Err: answer(403)}, true, false},
		{"is not made", ErrNotCalled, true, false},
		{"succeeds", nil, true, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := newGate(&admissiontest.PauseStore{})
				trip(t, g)
				sleep(BreakerOpen + time.Second)
				done, err := g.Allow(time.Now())
				check(t, err)
				_, err = g.Allow(time.Now())
				var wait *WaitError
				if !errors.As(err, &wait) {
					t.Fatalf("a second call during the probe: %v", err)
				}
				done(test.probe)
				_, out := g.Outage()
				testkit.Equal(t, "outage", out, test.out)
				_, err = g.Allow(time.Now())
				testkit.Equal(t, "another call is let through", err == nil, test.admits)
				if _, err := g.Allow(time.Now()); errors.Is(test.probe, ErrNotCalled) && err == nil {
					t.Error("a probe that was not made proved that X is back")
				}
			})
		})
	}
}
