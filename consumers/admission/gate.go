package admission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// BreakerThreshold is how many calls in a row must fail, all by X's or the
	// network's fault, before the whole app pauses calling.
	BreakerThreshold = 5
	// BreakerOpen is how long it then leaves X alone before one call probes, at first.
	BreakerOpen = 30 * time.Second
	// MaxOpen bounds how often that is doubled, while X stays away: 16 times as long.
	MaxOpen = 16
	// probeWait holds a lane that comes while another one probes.
	probeWait = 2 * time.Second
	// UndatedPause is how long the app pauses at first where X names no end.
	UndatedPause = 15 * time.Minute
	// maxUndatedPause bounds what comes of doubling that.
	maxUndatedPause = 6 * time.Hour
)

// Target is what a app pause stops.
type Target string

const (
	TargetPublish Target = publishers.TargetPublish
	TargetRefresh Target = publishers.TargetRefresh
)

// ErrNotCalled tells the breaker that the call it allowed was not made.
var ErrNotCalled = errors.New("not called")

// PauseStore is where stops are kept for all workers.
type PauseStore interface {
	Set(ctx context.Context, pause publishers.Pause) (publishers.Pause, bool, error)
	Probe(ctx context.Context, target, worker string, now, until time.Time) (publishers.Pause, bool, error)
	End(ctx context.Context, pause publishers.Pause) (bool, error)
}

// Gate is the one place that stops the app. The stop itself stands in NATS for
// all workers, whose lanes consumer is paused by it; each Gate also keeps what
// it knows at hand, since messages that were on their way still arrive after a
// pause.
//
// Round X stands a circuit breaker that counts outages (5xx, timeouts, dial
// failures; never 4xx or 429) and asks for a stop when it opens. Limits do not
// open it: their end is known, and kept beside it.
//
// A stop whose end nobody knows is ended by the first lane that comes when it is time
// to probe: it may call, and the rest wait for what X answers.
type Gate struct {
	board  PauseStore
	worker string
	log    *slog.Logger
	open   time.Duration
	// ended tells that a stop was over before its time.
	ended chan struct{}
	// informed is closed once the stops that stand were learned.
	informed chan struct{}

	mu      sync.Mutex
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	// learned is the latest picture of the stops that stand in NATS, as of a revision.
	learned map[Target]publishers.Pause
	seen    uint64
	// own is what this worker has set and no picture has shown yet; until it stands in
	// NATS it has no revision, and holds to its end.
	own map[Target]publishers.Pause
}

// NewGate makes a worker's gate, which opens its breaker for open after an outage;
// 30 seconds where zero.
func NewGate(board PauseStore, worker string, open time.Duration, log *slog.Logger) *Gate {
	if open == 0 {
		open = BreakerOpen
	}
	return &Gate{
		board: board, worker: worker, log: log, open: open, breaker: newBreaker(open),
		ended: make(chan struct{}, 1), informed: make(chan struct{}), own: map[Target]publishers.Pause{},
	}
}

func newBreaker(open time.Duration) *gobreaker.TwoStepCircuitBreaker[struct{}] {
	return gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:         "x",
		MaxRequests:  1,
		Timeout:      open,
		ReadyToTrip:  func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= BreakerThreshold },
		IsExcluded:   saysNothing,
		IsSuccessful: func(err error) bool { return !xapi.IsOutage(err) },
	})
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
func (g *Gate) Learn(shown publishers.Pauses) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.learned
	if before == nil {
		close(g.informed)
	}
	if shown.Revision < g.seen { // of a bucket that was made anew
		maps.DeleteFunc(g.own, func(_ Target, s publishers.Pause) bool { return s.Revision > 0 })
	}
	g.seen, g.learned = shown.Revision, make(map[Target]publishers.Pause, len(shown.Pauses))
	for _, s := range shown.Pauses {
		g.learned[Target(s.Target)] = s
	}
	for target, own := range g.own {
		if shown := own.Revision > 0 && own.Revision <= g.seen; shown || own.Revision == 0 && g.learned[target].Target != "" && !own.Outlasts(g.learned[target]) {
			delete(g.own, target)
		}
	}
	for target, was := range before {
		if _, there := g.learned[target]; !there {
			g.over(was)
		}
	}
}

// over notes that a stop is no more.
func (g *Gate) over(was publishers.Pause) {
	if was.Reason.Code == jetpost.CodeXOutage {
		// X is back, as another worker has found out: this one need not.
		g.breaker = newBreaker(g.open)
	}
	select {
	case g.ended <- struct{}{}:
	default: // which is still to be noticed
	}
}

// Informed is closed once the gate has learned what stops stand.
func (g *Gate) Informed() <-chan struct{} { return g.informed }

// Ended yields after a stop was ended by a probe or a person: then those that wait
// for its end need not.
func (g *Gate) Ended() <-chan struct{} { return g.ended }

// Paused returns the stop that holds for the target now. One whose end has
// passed holds no more, whether or not anybody has cleared it away.
func (g *Gate) Paused(target Target, now time.Time) (publishers.Pause, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	pause, ok := g.stands(target, now)
	return pause, ok && pause.Active(now)
}

// stands is the stop on record, or what this worker knows better.
func (g *Gate) stands(target Target, now time.Time) (pause publishers.Pause, ok bool) {
	pause, ok = g.learned[target]
	own, mine := g.own[target]
	switch {
	case mine && own.Revision > 0:
		return own, true
	case mine && now.Before(own.NextAt()) && (!ok || own.Outlasts(pause)):
		return own, true
	}
	return pause, ok
}

// Pause stops the target for all workers until reason.Until. The latest end wins. Where
// reason names no end the stop is probed, each time after twice as long.
func (g *Gate) Pause(ctx context.Context, target Target, reason jetpost.Reason, now time.Time) error {
	wanted := publishers.Pause{Target: string(target), Reason: reason, Since: now, Worker: g.worker}
	if reason.Until.IsZero() {
		wanted.Wait, wanted.MaxWait = UndatedPause, maxUndatedPause
		if reason.Code == jetpost.CodeXOutage {
			wanted.Wait, wanted.MaxWait = g.open, MaxOpen*g.open
		}
		wanted.NextProbeAt = now.Add(wanted.Wait)
	}
	// This worker stops at once, and to the end if NATS cannot be told.
	g.keep(wanted, now)
	holds, changed, err := g.board.Set(ctx, wanted)
	if err != nil {
		return fmt.Errorf("stop %s: %w", target, err)
	}
	g.share(holds)
	if changed {
		log := g.log.With("target", target, "code", reason.Code, "detail", reason.Detail)
		switch {
		case holds.Probed():
			log = log.With("next_probe_at", holds.NextProbeAt)
		case !holds.Reason.Until.IsZero():
			log = log.With("until", holds.Reason.Until)
		}
		log.Warn("app.paused")
	}
	return nil
}

// Retell tells NATS of the stops that it could not be told before.
func (g *Gate) Retell(ctx context.Context, now time.Time) error {
	g.mu.Lock()
	var untold []publishers.Pause
	for _, pause := range g.own {
		if pause.Revision == 0 && pause.Active(now) {
			untold = append(untold, pause)
		}
	}
	g.mu.Unlock()
	for _, pause := range untold {
		holds, _, err := g.board.Set(ctx, pause)
		if err != nil {
			return fmt.Errorf("tell of stop %s: %w", pause.Target, err)
		}
		if holds.Target == "" { // the app was resumed since
			holds.Target = pause.Target
		}
		g.share(holds)
	}
	return nil
}

// Probe asks to be the one that finds out whether a stop is over which is due; the
// answer counts for a while. Where it is another one, or NATS cannot be asked, the
// stop holds.
func (g *Gate) Probe(ctx context.Context, pause publishers.Pause, within time.Duration, now time.Time) (mine bool) {
	is, mine, err := g.board.Probe(ctx, pause.Target, g.worker, now, now.Add(within))
	if err != nil {
		g.log.Warn("app.probe_failed", "target", pause.Target, "error", err)
		return false
	}
	if is.Target != "" {
		g.share(is)
	}
	return mine
}

// End ends a stop for all workers, unless another one stands by now: a probe has found
// that X takes calls again, or its time is over.
func (g *Gate) End(ctx context.Context, pause publishers.Pause) error {
	if pause.Revision == 0 { // NATS was never told of it
		return nil
	}
	ended, err := g.board.End(ctx, pause)
	if err != nil || !ended {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	target := Target(pause.Target)
	if own := g.own[target].Revision; own > 0 && own <= pause.Revision {
		delete(g.own, target)
	}
	if g.learned[target].Revision <= pause.Revision {
		delete(g.learned, target)
		g.over(pause)
	}
	g.log.Info("app.resumed", "target", target, "code", pause.Reason.Code, "since", pause.Since)
	return nil
}

// Over returns a stop that is on record though its time has come.
func (g *Gate) Over(target Target, now time.Time) (publishers.Pause, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	pause, ok := g.learned[target]
	return pause, ok && !pause.Active(now)
}

func (g *Gate) keep(pause publishers.Pause, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if old, ok := g.stands(Target(pause.Target), now); !ok || !old.Active(now) || pause.Outlasts(old) {
		g.own[Target(pause.Target)] = pause
	}
}

// share notes what stands in NATS, unless a picture has shown that already: then
// somebody may even have ended it.
func (g *Gate) share(holds publishers.Pause) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if holds.Revision > g.seen {
		g.own[Target(holds.Target)] = holds
	} else {
		delete(g.own, Target(holds.Target))
	}
}

// Allow asks for one call to X. The caller tells done how it ended. Where the
// breaker is open, or another call probes, it returns a *WaitError instead.
func (g *Gate) Allow(now time.Time) (done func(error), err error) {
	g.mu.Lock()
	breaker := g.breaker
	g.mu.Unlock()
	done, err = breaker.Allow()
	switch {
	case errors.Is(err, gobreaker.ErrOpenState):
		return nil, Wait(jetpost.CodeXUnavailable, now.Add(g.open), "X fails call after call")
	case errors.Is(err, gobreaker.ErrTooManyRequests): // half-open: not an answer of X
		return nil, Wait(jetpost.CodeXUnavailable, now.Add(probeWait), "another call finds out whether X is back")
	case err != nil:
		return nil, fmt.Errorf("ask breaker: %w", err)
	}
	return done, nil
}

// Outage tells whether the breaker is open: then the app should stop.
func (g *Gate) Outage() (jetpost.Reason, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return jetpost.Reason{Code: jetpost.CodeXOutage, Detail: "X fails call after call"}, g.breaker.State() == gobreaker.StateOpen
}
