package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// breakerThreshold is how many calls in a row must fail, all by X's or the
	// network's fault, before the whole app stops calling.
	breakerThreshold = 5
	// breakerOpen is how long it then leaves X alone before one call probes.
	breakerOpen = 30 * time.Second
	// probeWait holds a lane that comes while another one probes.
	probeWait = 2 * time.Second
	// pictureWithin is how long the watch of the stops may take to show a stop
	// that this worker has set.
	pictureWithin = 5 * time.Second
)

// stopBoard is where stops are kept for all workers.
type stopBoard interface {
	Set(ctx context.Context, stop publishers.Stop) (publishers.Stop, bool, error)
}

// Gate is the one place that stops the app. The stop itself stands in NATS for
// all workers, whose lanes consumer is paused by it; each Gate also keeps what
// it knows at hand, since messages that were on their way still arrive after a
// pause.
//
// Round X stands a circuit breaker that counts outages (5xx, timeouts, dial
// failures; never 4xx or 429) and asks for a stop when it opens. Limits do not
// open it: their end is known, and kept beside it.
type Gate struct {
	board   stopBoard
	log     *slog.Logger
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	open    time.Duration

	mu sync.Mutex
	// learned is the latest picture of the stops that stand in NATS.
	learned map[Scope]publishers.Stop
	// own is what this worker has set and no picture has shown yet. A picture
	// that was on its way meanwhile does not know of it.
	own map[Scope]ownStop
}

// ownStop counts beside the pictures until alone.
type ownStop struct {
	publishers.Stop
	until time.Time
}

// NewGate makes a gate that opens its breaker for open after an outage;
// 30 seconds where zero.
func NewGate(board stopBoard, open time.Duration, log *slog.Logger) *Gate {
	if open == 0 {
		open = breakerOpen
	}
	return &Gate{
		board: board, log: log, open: open, own: map[Scope]ownStop{},
		breaker: gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
			Name:         "x",
			MaxRequests:  1,
			Timeout:      open,
			ReadyToTrip:  func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= breakerThreshold },
			IsExcluded:   saysNothing,
			IsSuccessful: func(err error) bool { return !xapi.IsOutage(err) },
		}),
	}
}

// saysNothing tells errors of calls that X never saw, such as one that was
// given up before it was made: they prove neither that X fails nor that it is
// back.
func saysNothing(err error) bool {
	var answer *xapi.APIError
	return err != nil && !xapi.IsOutage(err) && !errors.As(err, &answer)
}

// Learn replaces what the gate knows by the stops that stand in NATS. A stop
// of its own that they do not show yet is kept.
func (g *Gate) Learn(stops []publishers.Stop) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.learned = make(map[Scope]publishers.Stop, len(stops))
	for _, s := range stops {
		scope := Scope(s.Scope)
		g.learned[scope] = s
		if own, ok := g.own[scope]; ok && !own.Outlasts(s) {
			delete(g.own, scope)
		}
	}
}

// Stopped returns the stop that holds for the scope now. One whose end has
// passed holds no more, whether or not anybody has cleared it away.
func (g *Gate) Stopped(scope Scope, now time.Time) (publishers.Stop, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	stop, ok := g.learned[scope]
	if own, mine := g.own[scope]; mine && now.Before(own.until) && (!ok || own.Outlasts(stop)) {
		stop, ok = own.Stop, true
	}
	if !ok || !stop.Active(now) {
		return publishers.Stop{}, false
	}
	return stop, true
}

// Stop stops the scope for all workers until reason.Until, or until somebody
// resumes it. The latest end wins.
func (g *Gate) Stop(ctx context.Context, scope Scope, reason jetpost.Reason, now time.Time) error {
	wanted := publishers.Stop{Scope: string(scope), Reason: reason, Since: now}
	// This worker stops at once, and to the end if NATS cannot be told.
	g.keep(wanted, now)
	holds, changed, err := g.board.Set(ctx, wanted)
	if err != nil {
		return fmt.Errorf("stop %s: %w", scope, err)
	}
	g.share(holds, time.Now())
	if changed {
		g.log.Warn("app.stopped", "scope", scope, "code", reason.Code, "until", holds.Reason.Until, "detail", reason.Detail)
	}
	return nil
}

func (g *Gate) keep(stop publishers.Stop, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	until := stop.Reason.Until
	if until.IsZero() {
		until = now.Add(undatedStop)
	}
	old, ok := g.own[Scope(stop.Scope)]
	if !ok || !now.Before(old.until) || stop.Outlasts(old.Stop) {
		g.own[Scope(stop.Scope)] = ownStop{Stop: stop, until: until}
	}
}

// share notes what stands in NATS after a stop of ours was set there. From now
// on the pictures count, which show it unless they have done so already: then
// somebody may even have ended it.
func (g *Gate) share(holds publishers.Stop, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.own[Scope(holds.Scope)]; ok {
		g.own[Scope(holds.Scope)] = ownStop{Stop: holds, until: now.Add(pictureWithin)}
	}
}

// Allow asks for one call to X. The caller tells done how it ended. Where the
// breaker is open, or another call probes, it returns a hold instead.
func (g *Gate) Allow(now time.Time) (done func(error), err error) {
	done, err = g.breaker.Allow()
	switch {
	case errors.Is(err, gobreaker.ErrOpenState):
		return nil, &holdError{Hold(jetpost.CodeXUnavailable, now.Add(g.open), "X fails call after call")}
	case errors.Is(err, gobreaker.ErrTooManyRequests): // half-open: not an answer of X
		return nil, &holdError{Hold(jetpost.CodeXUnavailable, now.Add(probeWait), "another call finds out whether X is back")}
	case err != nil:
		return nil, fmt.Errorf("ask breaker: %w", err)
	}
	return done, nil
}

// Outage tells whether the breaker is open: then the app should stop.
func (g *Gate) Outage(now time.Time) (jetpost.Reason, bool) {
	if g.breaker.State() != gobreaker.StateOpen {
		return jetpost.Reason{}, false
	}
	return jetpost.Reason{Code: jetpost.CodeXOutage, Detail: "X fails call after call", Until: now.Add(g.open)}, true
}
