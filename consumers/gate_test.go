package consumers

import (
	"context"
	"encoding/json"
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
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// board is a stopBoard in memory, of one scope.
type board struct {
	mu       sync.Mutex
	stop     publishers.Stop
	revision uint64
	set      func() error // what comes before the answer
	probe    func() error // the same
	// watch learns of each change, as all workers do.
	watch func(publishers.Picture)
}

func (b *board) Set(_ context.Context, stop publishers.Stop) (publishers.Stop, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next, changed := stop.Upon(b.stop)
	if changed {
		b.put(next)
	}
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
	if b.probe != nil {
		return publishers.Stop{}, false, b.probe()
	}
	if !b.stop.Due(now) {
		return b.stop, false, nil
	}
	claimed := b.stop
	claimed.Worker, claimed.Reason.Until = worker, until
	b.put(claimed)
	return b.stop, true, nil
}

func (b *board) End(_ context.Context, stop publishers.Stop) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if stop.Revision != b.stop.Revision {
		return false, nil
	}
	b.put(publishers.Stop{})
	return true, nil
}

func (b *board) put(stop publishers.Stop) {
	b.revision++
	if b.stop = stop; stop.Scope != "" {
		b.stop.Revision = b.revision
	}
	if b.watch != nil {
		b.watch(b.picture())
	}
}

// picture is what a watch shows now.
func (b *board) picture() publishers.Picture {
	p := publishers.Picture{Revision: b.revision}
	if b.stop.Scope != "" {
		p.Stops = []publishers.Stop{b.stop}
	}
	return p
}

// clear is a person who resumes.
func (b *board) clear() publishers.Picture {
	b.put(publishers.Stop{})
	return b.picture()
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
					g.Learn(b.picture())
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
			old := b.picture()
			check(t, g.Stop(t.Context(), ScopePublish, hour(), time.Now()))
			g.Learn(old)
			equal(t, "stopped", stopped(g, ScopePublish), true)
			g.Learn(b.picture())
			equal(t, "stopped", stopped(g, ScopePublish), true)
			// A lane that meets the same later changes nothing.
			check(t, g.Stop(t.Context(), ScopePublish, hour(), time.Now()))
			g.Learn(b.clear())
			equal(t, "stopped after the end", stopped(g, ScopePublish), false)
		})
	})
	t.Run("of a shorter stop", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := &board{}
			g := newGate(b)
			b.put(publishers.Stop{Scope: string(ScopePublish), Reason: reason(time.Now().Add(time.Second)), Since: time.Now()})
			old := b.picture()
			g.Learn(old)
			check(t, g.Stop(t.Context(), ScopePublish, hour(), time.Now()))
			g.Learn(old)
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
				g.Learn(b.picture())
				g.Learn(publishers.Picture{Revision: b.revision + 1}) // which somebody has resumed
				return nil
			}
			check(t, g.Stop(t.Context(), ScopePublish, hour(), time.Now()))
			equal(t, "stopped", stopped(g, ScopePublish), false)
		})
	})
	t.Run("resumed in the same picture", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := &board{}
			g := newGate(b)
			check(t, g.Stop(t.Context(), ScopePublish, hour(), time.Now()))
			g.Learn(b.clear())
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
			g.Learn(publishers.Picture{Revision: 7})
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

// wakes are doorbells and wake-ups that a test rings itself.
type wakes struct {
	due map[string]time.Time
}

func (w *wakes) RingAll(ctx context.Context, accounts []string) error {
	for _, account := range accounts {
		if err := w.Ring(ctx, account); err != nil {
			return err
		}
	}
	return nil
}

func (w *wakes) Ring(_ context.Context, account string) error {
	w.due[account] = time.Now()
	return nil
}

func (w *wakes) WakeAt(_ context.Context, account string, at time.Time) error {
	w.due[account] = at
	return nil
}

// next is the account whose bell rings first, and when.
func (w *wakes) next() (account string, at time.Time) {
	for a, t := range w.due {
		if account == "" || t.Before(at) || t.Equal(at) && a < account {
			account, at = a, t
		}
	}
	return account, at
}

// outage is an installation in a bubble, with accounts whose lines are full and two
// workers.
type outage struct {
	*testBundle
	board   *board
	bells   *wakes
	workers []*PublishHandler
	sweeper *Sweeper
	turn    int
	keys    []store.Key
}

func newOutage(t *testing.T, accounts, requests int) *outage {
	t.Helper()
	o := &outage{testBundle: offline(t), board: &board{}, bells: &wakes{due: map[string]time.Time{}}}
	records := &silentRecords{}
	for _, name := range []string{"one", "two"} {
		r := o.refresher()
		r.Gate, r.Records, r.Announce = NewGate(o.board, name, 0, o.log), records, records
		o.workers = append(o.workers, o.lane(func(h *PublishHandler) {
			h.Bells, h.Tokens, h.Gate, h.Worker = o.bells, r, r.Gate, name
			h.Announce = &Announcer{Ledger: o.ledger, Records: records, Names: o.names, Log: o.log}
		}))
	}
	o.sweeper = &Sweeper{Ledger: o.ledger, Bells: o.bells, Announce: o.workers[0].Announce, Gate: o.workers[0].Gate, Health: &Health{}, Worker: "one", Log: o.log}
	o.board.watch = func(p publishers.Picture) {
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
			check(t, err)
			_, err = o.ledger.Accept(t.Context(), store.Acceptance{Request: r, Body: body, Digest: r.Digest(), Now: time.Now()})
			check(t, err)
			o.keys = append(o.keys, store.Key{Account: account, ID: r.ID})
		}
		o.bells.due[account] = time.Now()
	}
	return o
}

// until lets time pass, and whoever's bell rings run, until then or the fact.
func (o *outage) until(t *testing.T, end time.Time, fact func() bool) {
	t.Helper()
	for !fact() {
		account, at := o.bells.next()
		if account == "" || at.After(end) {
			sleep(time.Until(end))
			return
		}
		sleep(time.Until(at))
		delete(o.bells.due, account)
		o.turn++
		o.run(t, o.workers[o.turn%2], account)
		select {
		case <-o.workers[0].Gate.Ended():
			o.sweeper.free = false
			check(t, o.sweeper.Sweep(t.Context()))
		default:
		}
	}
}

func never() bool { return false }

// TestOutageOfADay: while X is away no attempt is spent and X is asked rarely, and
// once it is back all goes on within one wait, in order.
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
		o.until(t, time.Now().Add(time.Minute), func() bool { return stopped(o.workers[0].Gate, ScopePublish) })
		tried := posts()
		if tried >= 2*breakerThreshold { // each worker counts by itself
			t.Errorf("%d posts tried before the stop", tried)
		}
		before, probes := attempts(), o.calls(xsim.EndpointMe)
		back := time.Now().Add(24 * time.Hour)
		o.until(t, back, never)
		equal(t, "posts tried during the outage", posts(), tried)
		equal(t, "attempts spent during the outage", attempts(), before)
		equal(t, "tokens exchanged during the outage", o.calls(xsim.EndpointToken), 0)
		// One a wait: 30 s, 1, 2, 4 min, then one in 8 min.
		probes = o.calls(xsim.EndpointMe) - probes
		if most := 4 + int(24*time.Hour/(maxOpen*breakerOpen)) + 1; probes > most || probes < most*9/10 {
			t.Errorf("%d probes, want %d", probes, most)
		}
		equal(t, "requests that failed", o.counts(t)[jetpost.StateFailed], 0)

		o.faults(t)
		o.until(t, back.Add(time.Hour), func() bool { return len(o.x.Posts("")) > 0 })
		if took := time.Since(back); took > maxOpen*breakerOpen {
			t.Errorf("the first post came %s after X was back, want %s at most", took, maxOpen*breakerOpen)
		}
		o.until(t, back.Add(time.Hour), func() bool { return o.counts(t)[jetpost.StatePublished] == accounts*requests })
		equal(t, "published", o.counts(t)[jetpost.StatePublished], accounts*requests)
		equal(t, "attempts in all", attempts(), 2*accounts*requests)
		for a := range accounts {
			o.texts(t, fmt.Sprintf("acme%d", a), "0a", "0b", "1a", "1b", "2a", "2b")
		}
	})
}
