package consumers

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
)

// alarmAhead is when a request is due: on a busy machine a lane is run after some seconds.
const alarmAhead = 4 * time.Second

// wakeUp is when the account's schedule wakes it; zero if there is none.
func (b *testBundle) wakeUp(t *testing.T, account string) (at time.Time) {
	t.Helper()
	msg := b.last(t, b.names.ScheduleStream(), b.names.ScheduleWake(account))
	if msg == nil {
		return at
	}
	at, err := time.Parse("@at "+time.RFC3339Nano, msg.Header.Get(jetstream.ScheduleHeader))
	testkit.Must(t, err)
	return at
}

// wokenBy is the schedule that last woke the account; "" if a worker did.
func (b *testBundle) wokenBy(t *testing.T, account string) string {
	t.Helper()
	return b.last(t, b.names.LanesStream(), b.names.PublishWake(account)).Header.Get("Nats-Scheduler")
}

// withAlarm accepts a request of acme that is due at the given time, and runs its lane on a
// worker that sets an alarm for it.
func (b *testBundle) withAlarm(t *testing.T, at time.Time) *alarms {
	t.Helper()
	b.account(t, "acme", 0)
	b.accept(t, jetpost.Request{ID: "1", Posts: thread("one"), PublishAt: at})
	b.purge(t, b.names.LanesStream())
	alarms := &alarms{Wakeups: b.wakeups, Log: b.log}
	t.Cleanup(alarms.Stop)
	b.run(t, b.lane(func(h *publishHandler) { h.Alarms = alarms }), "acme")
	return alarms
}

// TestAlarmWakes: a worker wakes a lane that it has released when it is due, before the
// schedule in NATS does.
func TestAlarmWakes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	at := time.Now().Add(alarmAhead).Round(time.Microsecond)
	b.withAlarm(t, at)
	testkit.Equal(t, "schedule", b.wakeUp(t, "acme").Sub(at), alarmGrace)
	within(t, gapPatience, time.Millisecond, "a wake-up", func() bool { return b.messages(t, b.names.LanesStream()) == 1 })
	if time.Now().Before(at) {
		t.Errorf("it was woken %s before its time", time.Until(at))
	}
	testkit.Equal(t, "schedule that woke it", b.wokenBy(t, "acme"), "")
	b.run(t, b.lane(), "acme")
	b.texts(t, "acme", "one")
}

// TestAlarmOfDeadWorker: if the worker is gone, the schedule wakes the lane.
func TestAlarmOfDeadWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.withAlarm(t, time.Now().Add(alarmAhead)).Stop()
	within(t, gapPatience, gapPoll, "the schedule's end", func() bool { return b.wakeUp(t, "acme").IsZero() })
	testkit.Equal(t, "schedule that woke it", b.wokenBy(t, "acme"), b.names.ScheduleWake("acme"))
	b.run(t, b.lane(), "acme")
	b.texts(t, "acme", "one")
}

// TestAlarmTakenBack: a lane that is due in more than a minute is woken earlier, so that a
// worker sets an alarm for it. The alarm is removed when the lane is claimed and then has
// nothing to do.
func TestAlarmTakenBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	at := time.Now().Add(time.Hour).Round(time.Microsecond)
	alarms := b.withAlarm(t, at)
	testkit.Equal(t, "schedule", at.Sub(b.wakeUp(t, "acme")), alarmLead)
	testkit.Equal(t, "alarms for a later minute", len(alarms.timers), 0)

	soon := time.Now().Add(alarmWithin / 2)
	key := b.accept(t, jetpost.Request{ID: "2", Posts: thread("two"), PublishAt: soon})
	h := b.lane(func(h *publishHandler) { h.Alarms = alarms })
	b.run(t, h, "acme")
	testkit.Equal(t, "alarms", len(alarms.timers), 1)
	_, err := b.ledger.Cancel(t.Context(), key, time.Now())
	testkit.Must(t, err)
	b.run(t, h, "acme")
	testkit.Equal(t, "alarms of what was cancelled", len(alarms.timers), 0)
}

// TestAlarmByTheDatabasesClock: an alarm follows the clock of the database, which decides
// what is due.
func TestAlarmByTheDatabasesClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const behind = time.Second
		there := func(context.Context) (time.Time, error) { return time.Now().Add(-behind), nil }
		c := &clocks{Database: there, Health: &health{}, Log: offline(t).log}
		c.Compare(t.Context())
		at := time.Now()
		testkit.Equal(t, "how much later that is here", c.Here(at).Sub(at), behind)
		c.Database = func(context.Context) (time.Time, error) { return time.Time{}, errAway }
		c.Compare(t.Context())
		testkit.Equal(t, "while it does not answer", c.Here(at).Sub(at), behind)
	})
}
