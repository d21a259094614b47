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
	// network's fault, before the whole app is paused.
	BreakerThreshold = 5
	// BreakerOpen is how long no call is made before the first probe of an outage. Each
	// failed probe doubles it, up to MaxOpen times BreakerOpen.
	BreakerOpen = 30 * time.Second
	// MaxOpen bounds that doubling.
	MaxOpen = 16
	// probeWait is how long a lane waits while another one probes.
	probeWait = 2 * time.Second
	// UndatedPause is how long the app is paused before the first probe if X names no
	// end. Each failed probe doubles it, up to maxUndatedPause.
	UndatedPause    = 15 * time.Minute
	maxUndatedPause = 6 * time.Hour
)

// Target is what an app pause holds: posts or token refreshes.
type Target string

const (
	TargetPublish Target = publishers.TargetPublish
	TargetRefresh Target = publishers.TargetRefresh
)

// ErrNotCalled tells the breaker that the call it allowed was not made.
var ErrNotCalled = errors.New("not called")

// PauseStore stores app pauses for all workers.
type PauseStore interface {
	Set(ctx context.Context, pause publishers.Pause) (publishers.Pause, bool, error)
	Probe(ctx context.Context, target, worker string, now, until time.Time) (publishers.Pause, bool, error)
	End(ctx context.Context, pause publishers.Pause) (bool, error)
}

// Gate pauses the app. A pause is stored in NATS for all workers and also pauses the lanes'
// consumer. Each Gate keeps a copy of the pauses, because messages that were already in
// flight still arrive after the consumer was paused.
//
// A circuit breaker counts outages (5xx, timeouts, dial failures; never 4xx or 429). When
// it trips, the app is paused. Rate limits do not trip it, because their end is known.
//
// A pause without a known end is probed: once a probe is due, one lane may call X, and the
// others wait for the answer.
type Gate struct {
	store  PauseStore
	worker string
	log    *slog.Logger
	open   time.Duration
	// ended receives a value when a pause ends early.
	ended chan struct{}
	// informed is closed once Learn was called.
	informed chan struct{}

	mu      sync.Mutex
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	// learned is the latest snapshot of the pauses in NATS, and seen its revision.
	learned map[Target]publishers.Pause
	seen    uint64
	// own holds the pauses that this worker has set and no snapshot has shown yet. A pause
	// that is not stored in NATS yet has no revision, and applies until its end.
	own map[Target]publishers.Pause
}

// NewGate returns the gate of a worker. Its breaker lets no call through for the duration
// open after an outage; BreakerOpen if zero.
func NewGate(pauses PauseStore, worker string, open time.Duration, log *slog.Logger) *Gate {
	if open == 0 {
		open = BreakerOpen
	}
	return &Gate{
		store: pauses, worker: worker, log: log, open: open, breaker: newBreaker(open),
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

// saysNothing reports whether err is from a call that X never saw, such as one that was
// cancelled before it was made. Such an error proves neither that X fails nor that it
// answers.
func saysNothing(err error) bool {
	var answer *xapi.APIError
	return err != nil && !xapi.IsOutage(err) && !errors.As(err, &answer)
}

// Learn replaces the gate's copy with a snapshot of the pauses in NATS. A pause that this
// worker has set and that the snapshot does not show yet stays.
func (g *Gate) Learn(shown publishers.Pauses) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.learned
	if before == nil {
		close(g.informed)
	}
	if shown.Revision < g.seen { // the bucket was created again
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

// over notes that a pause has ended.
func (g *Gate) over(was publishers.Pause) {
	if was.Reason.Code == jetpost.CodeXOutage {
		// Another worker has found that X answers again, so this one need not probe.
		g.breaker = newBreaker(g.open)
	}
	select {
	case g.ended <- struct{}{}:
	default: // an earlier end was not received yet
	}
}

// Informed is closed once the gate has its first snapshot of the pauses.
func (g *Gate) Informed() <-chan struct{} { return g.informed }

// Ended receives a value after a probe or a person has ended a pause: requests that wait
// for its end can go on.
func (g *Gate) Ended() <-chan struct{} { return g.ended }

// Paused returns the pause of the target that is in force now. A pause whose end has
// passed is not in force, even if it is still stored.
func (g *Gate) Paused(target Target, now time.Time) (publishers.Pause, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	pause, ok := g.stands(target, now)
	return pause, ok && pause.Active(now)
}

// stands returns the stored pause, or the worker's own one if that is newer.
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

// Pause pauses the target for all workers until reason.Until. If the target is already
// paused, the later end wins. If reason.Until is zero, the pause is probed, and each failed
// probe doubles the wait for the next one.
func (g *Gate) Pause(ctx context.Context, target Target, reason jetpost.Reason, now time.Time) error {
	wanted := publishers.Pause{Target: string(target), Reason: reason, Since: now, Worker: g.worker}
	if reason.Until.IsZero() {
		wanted.Wait, wanted.MaxWait = UndatedPause, maxUndatedPause
		if reason.Code == jetpost.CodeXOutage {
			wanted.Wait, wanted.MaxWait = g.open, MaxOpen*g.open
		}
		wanted.NextProbeAt = now.Add(wanted.Wait)
	}
	// This worker pauses at once, even if NATS cannot store the pause.
	g.keep(wanted, now)
	holds, changed, err := g.store.Set(ctx, wanted)
	if err != nil {
		return fmt.Errorf("pause %s: %w", target, err)
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

// Retell stores the pauses in NATS that could not be stored before.
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
		holds, _, err := g.store.Set(ctx, pause)
		if err != nil {
			return fmt.Errorf("store pause of %s: %w", pause.Target, err)
		}
		if holds.Target == "" { // the app was resumed meanwhile
			holds.Target = pause.Target
		}
		g.share(holds)
	}
	return nil
}

// Probe claims the probe of a pause that is due for the given duration, and reports
// whether this worker has it. If another worker has it, or NATS does not answer, the pause
// stays in force.
func (g *Gate) Probe(ctx context.Context, pause publishers.Pause, within time.Duration, now time.Time) (mine bool) {
	is, mine, err := g.store.Probe(ctx, pause.Target, g.worker, now, now.Add(within))
	if err != nil {
		g.log.Warn("app.probe_failed", "target", pause.Target, "error", err)
		return false
	}
	if is.Target != "" {
		g.share(is)
	}
	return mine
}

// End ends a pause for all workers, because a probe has found that X accepts calls again or
// because its end has passed. If another pause is stored by now, that one stays.
func (g *Gate) End(ctx context.Context, pause publishers.Pause) error {
	if pause.Revision == 0 { // it was never stored in NATS
		return nil
	}
	ended, err := g.store.End(ctx, pause)
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

// Over returns a stored pause whose end has passed.
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

// share notes the pause that is stored in NATS. If a snapshot has already shown that
// revision, the snapshot decides, because the pause may have ended since.
func (g *Gate) share(holds publishers.Pause) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if holds.Revision > g.seen {
		g.own[Target(holds.Target)] = holds
	} else {
		delete(g.own, Target(holds.Target))
	}
}

// Allow asks the breaker for one call to X. The caller must report the result of the call
// with done. If the breaker has tripped, or another call probes, Allow returns a *WaitError.
func (g *Gate) Allow(now time.Time) (done func(error), err error) {
	g.mu.Lock()
	breaker := g.breaker
	g.mu.Unlock()
	done, err = breaker.Allow()
	switch {
	case errors.Is(err, gobreaker.ErrOpenState):
		return nil, Wait(jetpost.CodeXUnavailable, now.Add(g.open), "X fails call after call")
	case errors.Is(err, gobreaker.ErrTooManyRequests): // another call probes
		return nil, Wait(jetpost.CodeXUnavailable, now.Add(probeWait), "another call probes whether X answers again")
	case err != nil:
		return nil, fmt.Errorf("ask breaker: %w", err)
	}
	return done, nil
}

// Outage reports whether the breaker has tripped, which should pause the app.
func (g *Gate) Outage() (jetpost.Reason, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return jetpost.Reason{Code: jetpost.CodeXOutage, Detail: "X fails call after call"}, g.breaker.State() == gobreaker.StateOpen
}
