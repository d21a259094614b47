package consumers

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// alarmWithin is how far ahead a worker keeps the time itself at which a lane that
	// it has released is to be woken. A lane that is due later is woken alarmLead before,
	// by its schedule in NATS, so that some worker then keeps the time.
	alarmWithin = time.Minute
	alarmLead   = 30 * time.Second
	// alarmGrace is how much later the schedule wakes what a worker keeps the time of,
	// for the case that the worker dies. It is not woken twice where nothing is late.
	alarmGrace = 2 * time.Second
)

// Alarms wake lanes when they are due. The server looks at its schedules every 250 ms at
// best; a worker that has released a lane wakes it in time. An alarm decides nothing
// but when to ask: the ledger says what is due, by its own clock.
type Alarms struct {
	Wakeups manyWaker
	// Here tells when it is that time of the database's clock by this machine's; nil:
	// the clocks agree.
	Here func(time.Time) time.Time
	Log  *slog.Logger

	mu      sync.Mutex
	timers  map[string]*time.Timer // by account
	due     []string
	waking  bool
	stopped bool
}

// schedule is when NATS is to wake a lane whose next run is at that time, and whether
// this worker keeps that time too.
func (a *Alarms) schedule(wakeAt, now time.Time) (at time.Time, keeps bool) {
	switch {
	case a == nil:
		return wakeAt, false
	case wakeAt.Sub(now) > alarmWithin:
		return wakeAt.Add(-alarmLead), false
	default:
		return wakeAt.Add(alarmGrace), true
	}
}

// set wakes the account at that time, and at no other.
func (a *Alarms) set(ctx context.Context, account string, at time.Time) {
	ctx = context.WithoutCancel(ctx)
	if a.Here != nil {
		at = a.Here(at)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		return
	}
	if a.timers == nil {
		a.timers = map[string]*time.Timer{}
	}
	var timer *time.Timer
	timer = time.AfterFunc(time.Until(at), func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.timers[account] == timer { // else it was taken back
			delete(a.timers, account)
			a.wake(ctx, account)
		}
	})
	a.drop(account)
	a.timers[account] = timer
}

// clear wakes the account no more.
func (a *Alarms) clear(account string) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(account)
}

func (a *Alarms) drop(account string) {
	if timer := a.timers[account]; timer != nil {
		timer.Stop()
		delete(a.timers, account)
	}
}

// Pause ends all alarms. Their lanes are woken by their schedules.
func (a *Alarms) Stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	for account := range a.timers {
		a.drop(account)
	}
}

// wake has one call wake all that became due while the one before was under way.
func (a *Alarms) wake(ctx context.Context, account string) {
	a.due = append(a.due, account)
	if a.waking {
		return
	}
	a.waking = true
	go func() {
		for {
			a.mu.Lock()
			due := a.due
			a.due = nil
			a.waking = len(due) > 0
			a.mu.Unlock()
			if len(due) == 0 {
				return
			}
			if err := a.Wakeups.WakeAll(ctx, due); err != nil {
				a.Log.Warn("lane.alarm_failed", "lanes", len(due), "error", err) // their schedules wake instead
			}
		}
	}()
}
