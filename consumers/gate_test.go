package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi"
)

// board is a stopBoard in memory, of one scope.
type board struct {
	mu   sync.Mutex
	stop publishers.Stop
	set  func() error // what comes before the answer
	// watch learns of each change, as all workers do.
	watch func([]publishers.Stop)
}

func (b *board) Set(_ context.Context, stop publishers.Stop) (publishers.Stop, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var changed bool
	b.stop, changed = stop.Upon(b.stop)
	b.tell()
	if b.set != nil {
		if err := b.set(); err != nil {
			return publishers.Stop{}, false, err
		}
	}
	return b.stop, changed, nil
}

func (b *board) Probe(_ context.Context, _, worker string, now, until time.Time) (publishers.Stop, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.stop.Due(now) {
		return b.stop, false, nil
	}
	b.stop.Worker, b.stop.Reason.Until = worker, until
	b.tell()
	return b.stop, true, nil
}

func (b *board) Clear(context.Context, string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stop = publishers.Stop{}
	b.tell()
	return nil
}

func (b *board) tell() {
	switch {
	case b.watch == nil:
	case b.stop.Scope == "":
		b.watch(nil)
	default:
		b.watch([]publishers.Stop{b.stop})
	}
}

func newGate(b stopBoard) *Gate { return NewGate(b, "worker", 0, slog.New(slog.DiscardHandler)) }

func stopped(g *Gate, scope Scope) bool {
	_, ok := g.Stopped(scope, time.Now())
	return ok
}

func reason(until time.Time) jetpost.Reason {
	return jetpost.Reason{Code: jetpost.CodeAppRateLimited, Until: until}
}

func TestGateMergesStops(t *testing.T) {
	t.Parallel()
	const none = -1 // a stop without an end
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
					b := &board{}
					if !shared {
						b.set = func() error { return errAway }
					}
					g := newGate(b)
					for _, minutes := range []int{test.first, test.second} {
						equal(t, "failed", g.Stop(t.Context(), ScopePublish, reason(end(minutes)), now) != nil, !shared)
					}
					stop, ok := g.Stopped(ScopePublish, now)
					until := end(test.want)
					if until.IsZero() {
						until = now.Add(undatedStop) // to be probed then
					}
					if !ok || !stop.Reason.Until.Equal(until) || stop.Probe != (test.want == none) {
						t.Errorf("stopped is %t (probed: %t) until %v, want %v", ok, stop.Probe, stop.Reason.Until, until)
					}
					equal(t, "another scope is stopped", stopped(g, ScopeRefresh), false)
					g.Learn([]publishers.Stop{b.stop})
					sleep(time.Minute + time.Second)
					equal(t, "stopped later", stopped(g, ScopePublish), test.want != 1)
				})
			})
		}
	}
}

// TestGateOldPicture: a picture of the stops that was on its way when this
// worker set one does not know of it.
func TestGateOldPicture(t *testing.T) {
	t.Parallel()
	hour := func() jetpost.Reason { return reason(time.Now().Add(time.Hour)) }

	t.Run("after the stop", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := &board{}
			g := newGate(b)
			check(t, g.Stop(t.Context(), ScopePublish, hour(), time.Now()))
			g.Learn(nil)
			equal(t, "stopped", stopped(g, ScopePublish), true)
			g.Learn([]publishers.Stop{b.stop})
			equal(t, "stopped", stopped(g, ScopePublish), true)
			g.Learn(nil) // somebody has resumed
			equal(t, "stopped after the end", stopped(g, ScopePublish), false)
		})
	})
	t.Run("of a shorter stop", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := &board{}
			g := newGate(b)
			old := publishers.Stop{Scope: string(ScopePublish), Reason: reason(time.Now().Add(time.Second)), Since: time.Now()}
			g.Learn([]publishers.Stop{old})
			check(t, g.Stop(t.Context(), ScopePublish, hour(), time.Now()))
			g.Learn([]publishers.Stop{old})
			stop, _ := g.Stopped(ScopePublish, time.Now())
			equal(t, "end", stop.Reason.Until, b.stop.Reason.Until)
		})
	})
	t.Run("resumed before the answer", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := &board{}
			g := newGate(b)
			b.set = func() error {
				g.Learn([]publishers.Stop{b.stop})
				g.Learn(nil)
				return nil
			}
			check(t, g.Stop(t.Context(), ScopePublish, hour(), time.Now()))
			equal(t, "stopped", stopped(g, ScopePublish), false)
		})
	})
	t.Run("resumed in the same picture", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			g := newGate(&board{})
			check(t, g.Stop(t.Context(), ScopePublish, hour(), time.Now()))
			g.Learn(nil)
			sleep(pictureWithin)
			equal(t, "stopped", stopped(g, ScopePublish), false)
		})
	})
	t.Run("while NATS is away", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			g := newGate(&board{set: func() error { return errAway }})
			if err := g.Stop(t.Context(), ScopePublish, hour(), time.Now()); !errors.Is(err, errAway) {
				t.Errorf("error is %v", err)
			}
			g.Learn(nil)
			sleep(59 * time.Minute)
			equal(t, "stopped", stopped(g, ScopePublish), true)
			sleep(2 * time.Minute)
			equal(t, "stopped after its end", stopped(g, ScopePublish), false)
		})
	})
}

// TestGateWatch has a real watch carry one worker's stop to another's gate.
func TestGateWatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one, two := NewGate(b.stops, "one", 0, b.log), NewGate(b.stops, "two", 0, b.log)
	pictures, err := b.stops.Watch(t.Context())
	check(t, err)
	check(t, one.Stop(t.Context(), ScopePublish, reason(time.Now().Add(time.Hour)), time.Now()))
	for picture := range pictures {
		if two.Learn(picture); stopped(two, ScopePublish) {
			break
		}
	}
	equal(t, "consumer paused", b.paused(t), true)
	check(t, b.stops.Clear(t.Context(), publishers.ScopePublish))
	for picture := range pictures {
		if two.Learn(picture); !stopped(two, ScopePublish) {
			break
		}
	}
	equal(t, "consumer paused", b.paused(t), false)
}

func answer(status int) *xapi.APIError { return &xapi.APIError{Status: status} }

// call has X answer one call through the gate.
func call(t *testing.T, g *Gate, err error) {
	t.Helper()
	done, refused := g.Allow(time.Now())
	check(t, refused)
	done(err)
}

// trip opens the breaker.
func trip(t *testing.T, g *Gate) {
	t.Helper()
	for range breakerThreshold {
		if _, out := g.Outage(); out {
			t.Fatal("the breaker opened too early")
		}
		call(t, g, &xapi.AmbiguousError{Err: answer(http.StatusServiceUnavailable)})
	}
}

func TestGateBreakerOpens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(&board{})
		now := time.Now()
		trip(t, g)
		reason, out := g.Outage()
		if !out || reason.Code != jetpost.CodeXOutage {
			t.Errorf("outage is %t: %+v", out, reason)
		}
		_, err := g.Allow(now)
		if v := judge(err, situation{now: now}); v.kind != kindHold || v.reason.Code != jetpost.CodeXUnavailable || !v.reason.Until.After(now) {
			t.Errorf("an open breaker makes %s of a call: %+v", v, v.reason)
		}
	})
}

// TestGateBreakerNeverCounts: what X answered is no outage, and what X never
// saw says nothing.
func TestGateBreakerNeverCounts(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{
		"400":            &xapi.RefusedError{Kind: xapi.RefusedInvalid, Err: answer(400)},
		"401":            &xapi.UnauthorizedError{Err: answer(401)},
		"402":            &xapi.AppStopError{Err: answer(402)},
		"403":            &xapi.RefusedError{Kind: xapi.RefusedRule, Err: answer(403)},
		"429":            &xapi.RateLimitError{Err: answer(429)},
		"grant refused":  &xapi.GrantRefusedError{Err: answer(400)},
		"no id":          &xapi.AmbiguousError{Err: answer(201)},
		"not called":     errNotCalled,
		"success":        nil,
		"too late":       &xapi.NotSentError{Err: xapi.ErrNotAfter},
		"worker stopped": &xapi.AmbiguousError{Err: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGate(&board{})
			for range 3 * breakerThreshold {
				call(t, g, err)
			}
			_, out := g.Outage()
			equal(t, "outage", out, false)
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
		{"is not made", errNotCalled, true, false},
		{"succeeds", nil, true, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := newGate(&board{})
				trip(t, g)
				sleep(breakerOpen + time.Second)
				done, err := g.Allow(time.Now())
				check(t, err)
				_, err = g.Allow(time.Now())
				var hold *holdError
				if !errors.As(err, &hold) || hold.verdict.kind != kindHold {
					t.Fatalf("a second call beside the probe: %v", err)
				}
				done(test.probe)
				_, out := g.Outage()
				equal(t, "outage", out, test.out)
				_, err = g.Allow(time.Now())
				equal(t, "another call is let through", err == nil, test.admits)
				if _, err := g.Allow(time.Now()); errors.Is(test.probe, errNotCalled) && err == nil {
					t.Error("a probe that was not made proved that X is back")
				}
			})
		})
	}
}
