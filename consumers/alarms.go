package consumers

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// alarmWithin is how far ahead a worker sets an alarm for a lane that it has released.
	// A lane that is due later is woken by its schedule in NATS, alarmLead before it is
	// due, so that the worker that then releases it sets the alarm.
	alarmWithin = time.Minute
	alarmLead   = 30 * time.Second
	// alarmGrace is how long after an alarm the schedule wakes the same lane, in case the
	// worker has died. A lane that is woken on time is not woken again by its schedule.
	alarmGrace = 2 * time.Second
)

// alarms wake lanes when they are due. The NATS server checks its schedules every 250 ms at
// best; the worker that has released a lane wakes it on time. An alarm only says when to
// ask the ledger, which decides by its own clock what is due.
type alarms struct {
	Wakeups manyWaker
	// Here converts a time of the database's clock to this machine's clock. If it is nil,
	// the clocks agree.
	Here func(time.Time) time.Time
	Log  *slog.Logger

	mu      sync.Mutex
	timers  map[string]*time.Timer // by account
	due     []string
	waking  bool
	stopped bool
}

// schedule returns when NATS has to wake a lane that is due at wakeAt, and whether this
// worker sets an alarm for it, too.
func (a *alarms) schedule(wakeAt, now time.Time) (at time.Time, keeps bool) {
	switch {
	case a == nil:
		return wakeAt, false
	case wakeAt.Sub(now) > alarmWithin:
		return wakeAt.Add(-alarmLead), false
	default:
		return wakeAt.Add(alarmGrace), true
	}
}

// set wakes the account at the given time. It replaces an earlier alarm.
func (a *alarms) set(ctx context.Context, account string, at time.Time) {
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
		if a.timers[account] == timer { // else the alarm was cleared or replaced
			delete(a.timers, account)
			a.wake(ctx, account)
		}
	})
	a.drop(account)
	a.timers[account] = timer
}

// clear removes the account's alarm.
func (a *alarms) clear(account string) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(account)
}

func (a *alarms) drop(account string) {
	if timer := a.timers[account]; timer != nil {
		timer.Stop()
		delete(a.timers, account)
	}
}

// Stop removes all alarms. The schedules in NATS wake their lanes.
func (a *alarms) Stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopped = true
	for account := range a.timers {
		a.drop(account)
	}
}

// wake wakes the account. Accounts that become due during a call are woken together by the
// next one.
func (a *alarms) wake(ctx context.Context, account string) {
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
