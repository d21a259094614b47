package consumers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

func (b *testBundle) sweeper(worker string) *sweeper {
	return &sweeper{
		Ledger: b.ledger, Wakeups: b.wakeups, Announce: b.relay(), Gate: admission.NewGate(b.pauses, worker, 0, b.log), Health: &health{},
		Timing: timing{Lease: MinLease}, Worker: worker, Log: b.log,
	}
}

// sweep runs a sweeper until the test ends.
func (b *testBundle) sweep(t *testing.T, s *sweeper) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
}

func (b *testBundle) purge(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		stream, err := b.js.Stream(t.Context(), name)
		testkit.Must(t, err)
		testkit.Must(t, stream.Purge(t.Context()))
	}
}

// TestSweepHeals loses every wake-up, every schedule and every event.
func TestSweepHeals(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.account(t, "bolt", 0)
	now := b.accept(t, jetpost.Request{ID: "now", Posts: thread("now")})
	later := b.accept(t, jetpost.Request{Account: "bolt", ID: "later", Posts: thread("later"), PublishAt: time.Now().Add(time.Second)})
	h := b.lane()
	b.run(t, h, "bolt")
	testkit.Equal(t, "schedules", b.messages(t, b.names.ScheduleStream()), 2) // including the one for refreshes
	_, err := b.ledger.Accept(t.Context(), store.Acceptance{                  // its worker dies before it tells anybody
		Request: jetpost.Request{Account: "acme", ID: "untold", Posts: thread("untold")},
		Body:    []byte(`{"id":"untold","posts":[{"text":"untold"}]}`), Digest: []byte("x"), Now: time.Now(),
	})
	testkit.Must(t, err)
	b.purge(t, b.names.LanesStream(), b.names.ScheduleStream(), b.names.EventsStream())

	s := b.sweeper("sweeper")
	b.sweep(t, s)
	b.work(t, h)
	untold := store.Key{Account: "acme", ID: "untold"}
	for _, key := range []store.Key{now, later, untold} {
		testkit.Eventually(t, key.ID+" is published", func() bool { return b.record(t, key).Status.State == jetpost.StatePublished })
		testkit.Eventually(t, key.ID+" is told", func() bool { return b.lastEvent(t, key).Type == jetpost.EventRequestPublished })
	}
	testkit.Must(t, s.Health.Err())
}

// TestSweepTells: changes that were committed and not published are published, and an event
// that cannot be published does not block the others.
func TestSweepTells(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	ago := time.Now().Add(-time.Minute)
	for _, id := range []string{"first", "second"} {
		ago = ago.Add(time.Second)
		_, err := b.ledger.Accept(t.Context(), store.Acceptance{
			Request: jetpost.Request{Account: "acme", ID: id, Posts: thread(id)}, Body: []byte(id), Digest: []byte(id), Now: ago,
		})
		testkit.Must(t, err)
	}
	s := b.sweeper("sweeper")
	s.Announce.Ledger = blindLedger{b.ledger}
	if err := s.Sweep(t.Context()); err == nil {
		t.Error("a sweep that could not tell everything has no error")
	}
	testkit.Equal(t, "event", b.lastEvent(t, store.Key{Account: "acme", ID: "second"}).Type, jetpost.EventRequestAccepted)
	s.Announce = b.relay()
	testkit.Must(t, s.Sweep(t.Context()))
	testkit.Equal(t, "event", b.lastEvent(t, store.Key{Account: "acme", ID: "first"}).Type, jetpost.EventRequestAccepted)
	testkit.Equal(t, "events", b.messages(t, b.names.EventsStream()), 2)
}

// blindLedger is a ledger that cannot read the request "first".
type blindLedger struct{ OutboxLedger }

func (l blindLedger) Request(ctx context.Context, key store.Key) (store.Record, error) {
	if key.ID == "first" {
		return store.Record{}, errAway
	}
	return l.OutboxLedger.Request(ctx, key)
}

// TestAnnounceOvertaken: while one worker publishes the state of a request, another one
// moves it on and publishes the newer state. The last event is still the request's state.
func TestAnnounceOvertaken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	ctx, now := t.Context(), time.Now()
	_, err := b.ledger.Accept(ctx, store.Acceptance{
		Request: jetpost.Request{Account: "acme", ID: "one", Posts: thread("one")}, Body: []byte("one"), Digest: []byte("one"), Now: now,
	})
	testkit.Must(t, err)
	key := store.Key{Account: "acme", ID: "one"}
	slow := b.relay()
	slow.DeadLetters = overtakenDeadLetters{slow.DeadLetters, func() {
		_, err := b.ledger.Cancel(ctx, key, now)
		if errors.Is(err, store.ErrNotRunnable) {
			return
		}
		testkit.Must(t, err)
		testkit.Must(t, b.relay().Announce(ctx, key))
	}}
	testkit.Must(t, slow.Announce(ctx, key))
	testkit.Equal(t, "last event", b.lastEvent(t, key).Type, jetpost.EventRequestCancelled)
}

// overtakenDeadLetters lets another worker publish first, with each event.
type overtakenDeadLetters struct {
	DeadLetters
	first func()
}

func (r overtakenDeadLetters) Event(ctx context.Context, subject string, e jetpost.Event) error {
	r.first()
	return r.DeadLetters.Event(ctx, subject, e)
}

// brokenWakeup wakes no lane for a while.
type brokenWakeup struct {
	manyWaker
	broken int
}

func (r *brokenWakeup) WakeAll(ctx context.Context, accounts []string) error {
	if r.broken > 0 {
		r.broken--
		return errAway
	}
	return r.manyWaker.WakeAll(ctx, accounts)
}

// countedWakeup counts wake-ups.
type countedWakeup struct {
	manyWaker
	generation int
}

func (r *countedWakeup) WakeAll(ctx context.Context, accounts []string) error {
	r.generation += len(accounts)
	return r.manyWaker.WakeAll(ctx, accounts)
}

// served handles that many wake-ups: it takes a snapshot of each lane and releases it.
func (b *testBundle) served(t *testing.T, n int) (accounts []string) {
	t.Helper()
	lanes, err := b.js.Consumer(t.Context(), b.names.LanesStream(), jetpost.ConsumerLanes)
	testkit.Must(t, err)
	batch, err := lanes.FetchNoWait(n)
	testkit.Must(t, err)
	for msg := range batch.Messages() {
		account := msg.Subject()[strings.LastIndexByte(msg.Subject(), '.')+1:]
		accounts = append(accounts, account)
		lane, claimed, err := b.ledger.ClaimLane(t.Context(), account, "server", time.Hour, time.Now())
		testkit.Must(t, err)
		testkit.Equal(t, "claimed "+account, claimed, true)
		snapshot, err := b.ledger.Snapshot(t.Context(), lane, time.Now())
		testkit.Must(t, err)
		_, err = b.ledger.ReleaseLane(t.Context(), lane, snapshot.Generation, time.Time{}, time.Now())
		testkit.Must(t, err)
		testkit.Must(t, msg.Ack())
	}
	return accounts
}

// TestSweepStarvesNobody: many lanes are due, few are served between sweeps, and new jobs
// come for those that wait, and for others. The lane that is due for longest is served
// first, whatever wakes it.
func TestSweepStarvesNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const lanes, atOnce = 1200, 150
	began := time.Now().Add(-time.Hour)
	for i := range lanes {
		account := fmt.Sprintf("acme%04d", i)
		b.account(t, account, 0)
		_, err := b.ledger.Accept(t.Context(), store.Acceptance{ // and its wake-up is lost
			Request: jetpost.Request{Account: account, ID: "first", Posts: thread("first")}, Body: []byte("first"), Digest: []byte("first"),
			Now: began.Add(time.Duration(i) * time.Second),
		})
		testkit.Must(t, err)
	}
	s := b.sweeper("sweeper")
	s.Announce.Ledger = toldLedger{b.ledger}
	var got []string
	for round := 0; len(got) < lanes && round < 2*lanes/atOnce; round++ {
		testkit.Must(t, s.Sweep(t.Context()))
		for i := range 20 { // more jobs: of the lanes that wait longest, and of the newest
			for _, account := range []string{fmt.Sprintf("acme%04d", len(got)+i), fmt.Sprintf("acme%04d", lanes-1-i)} {
				id := fmt.Sprint("more", round)
				take(t, b.intake(), b.job(account, fmt.Appendf(nil, `{"id":%q,"posts":[{"text":%q}]}`, id, account+id)))
			}
		}
		got = append(got, b.served(t, atOnce)...)
	}
	for i, account := range got {
		if want := fmt.Sprintf("acme%04d", i); account != want {
			t.Fatalf("served %d is %s, want %s", i, account, want)
		}
	}
	testkit.Equal(t, "served", len(got), lanes)
}

// toldLedger has nothing to publish, which is not part of the test.
type toldLedger struct{ OutboxLedger }

func (toldLedger) OutboxPending(context.Context, time.Time, int) ([]store.Key, error) {
	return nil, nil
}

// TestSweepWakesWhatWasHeard: a wake-up that was delivered and is not acknowledged yet may
// have been handled too early. A lane that is due is woken again all the same.
func TestSweepWakesWhatWasHeard(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	lanes, err := b.js.Consumer(t.Context(), b.names.LanesStream(), jetpost.ConsumerLanes)
	testkit.Must(t, err)
	s := b.sweeper("sweeper")
	var last uint64
	for range 3 {
		msg, err := lanes.Next(jetstream.FetchMaxWait(patience))
		testkit.Must(t, err)
		meta, err := msg.Metadata()
		testkit.Must(t, err)
		testkit.Equal(t, "another wake-up", meta.Sequence.Stream > last && meta.NumDelivered == 1, true)
		last = meta.Sequence.Stream
		for range 3 { // at most one of them wakes
			testkit.Must(t, s.Sweep(t.Context()))
		}
		testkit.Equal(t, "wake-ups", b.messages(t, b.names.LanesStream()), 1)
	}
}

// TestSweepOneOfTwo: one worker sweeps for all, and another one takes over when its lease
// expires.
func TestSweepOneOfTwo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	one, two := &countedWakeup{manyWaker: b.wakeups}, &countedWakeup{manyWaker: b.wakeups}
	first, second := b.sweeper("one"), b.sweeper("two")
	first.Wakeups, second.Wakeups = one, two
	first.Timing, second.Timing = timing{Lease: time.Hour}, timing{Lease: time.Hour}
	for range 3 {
		testkit.Must(t, first.Sweep(t.Context()))
		testkit.Must(t, second.Sweep(t.Context()))
	}
	testkit.Equal(t, "wake-ups of the first", one.generation, 3)
	testkit.Equal(t, "wake-ups of the second", two.generation, 0)

	first.Timing, second.Timing = timing{Lease: MinLease}, timing{Lease: MinLease}
	testkit.Must(t, first.Sweep(t.Context())) // its last one
	b.sweep(t, &sweeper{
		Ledger: b.ledger, Wakeups: b.wakeups, Announce: b.relay(), Gate: admission.NewGate(b.pauses, "two", 0, b.log), Health: &health{}, Timing: timing{Lease: MinLease}, Worker: "two", Log: b.log,
	})
	b.purge(t, b.names.LanesStream())
	testkit.Eventually(t, "the other one sweeps", func() bool { return b.messages(t, b.names.LanesStream()) == 1 })
}

// TestSweepLeavesLivingLanes: a lane that a worker holds is not woken.
func TestSweepLeavesLivingLanes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	b.purge(t, b.names.LanesStream())
	lane, _, err := b.ledger.ClaimLane(t.Context(), "acme", "worker", time.Hour, time.Now())
	testkit.Must(t, err)
	s := b.sweeper("sweeper")
	testkit.Must(t, s.Sweep(t.Context()))
	testkit.Equal(t, "wake-ups", b.messages(t, b.names.LanesStream()), 0)
	testkit.Must(t, b.ledger.ExtendLane(t.Context(), lane, time.Microsecond, time.Now().Add(-time.Minute)))
	testkit.Must(t, s.Sweep(t.Context()))
	testkit.Equal(t, "wake-ups", b.messages(t, b.names.LanesStream()), 1)
}

// TestSweepHealth: a fault of a sweep is reported while it lasts.
func TestSweepHealth(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	s := b.sweeper("sweeper")
	s.Wakeups = &brokenWakeup{b.wakeups, 2}
	b.sweep(t, s)
	testkit.Eventually(t, "health tells", func() bool { return s.Health.Err() != nil })
	testkit.Eventually(t, "health is back", func() bool { return s.Health.Err() == nil })
}

// TestAnnounceCatchesUp: the last event of a request is its state, even if the request
// moves on while an earlier event is published.
func TestAnnounceCatchesUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	a := b.relay()
	failed := b.accept(t, jetpost.Request{ID: "two", Posts: thread("two")})
	lane, _, err := b.ledger.ClaimLane(t.Context(), "acme", "worker", time.Hour, time.Now())
	testkit.Must(t, err)
	testkit.Must(t, b.ledger.Conclude(t.Context(), lane, "two", store.Outcome{
		State: jetpost.StateFailed, Reason: jetpost.Reason{Code: jetpost.CodeExpired}, Post: -1, Now: time.Now(),
	}))
	a.DeadLetters = movingDeadLetters{DeadLetters: b.deadLetters, move: func() { _, err := b.ledger.Replay(t.Context(), failed, time.Now()); testkit.Must(t, err) }}
	testkit.Must(t, a.Announce(t.Context(), failed))
	testkit.Equal(t, "event", b.lastEvent(t, failed).Type, jetpost.EventRequestResumed)
	record := b.record(t, failed)
	testkit.Equal(t, "announced", record.Delivered, record.Status.Revision)
}

// movingDeadLetters moves the request while its event is published.
type movingDeadLetters struct {
	DeadLetters
	move func()
}

func (r movingDeadLetters) Event(ctx context.Context, subject string, e jetpost.Event) error {
	err := r.DeadLetters.Event(ctx, subject, e)
	r.move()
	return err
}

// TestSweepFreesWhatAPauseHeld: a request that was held by a pause goes on at once when the
// pause ends early, whatever the hold says. None is freed during the pause.
func TestSweepFreesWhatAPauseHeld(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	s := b.sweeper("one")
	b.learn(t, s.Gate)
	b.sweep(t, s)
	h := b.lane(func(h *publishHandler) { h.Gate = s.Gate })
	testkit.Must(t, s.Gate.Pause(t.Context(), admission.TargetPublish, jetpost.Reason{Code: jetpost.CodeSpendCapReached, Until: time.Now().Add(24 * time.Hour)}, time.Now()))
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StateHeld, jetpost.CodeAppPaused, 0)
	b.purge(t, b.names.LanesStream())
	b.work(t, h)
	testkit.Must(t, b.pauses.Clear(t.Context(), publishers.TargetPublish)) // by another process
	testkit.Eventually(t, "it is published", func() bool { return b.record(t, key).Status.State == jetpost.StatePublished })
}

// TestSweepFreesWhatIsHeldLate: a worker that learns of the end of a pause later than the
// sweeper may hold a freed request once more. It is freed again.
func TestSweepFreesWhatIsHeldLate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	late := admission.NewGate(b.pauses, "late", 0, b.log)
	late.Learn(publishers.Pauses{Pauses: []publishers.Pause{{
		Target: publishers.TargetPublish, Since: time.Now(), Reason: jetpost.Reason{Code: jetpost.CodeSpendCapReached, Until: time.Now().Add(24 * time.Hour)},
	}}})
	s := b.sweeper("one")
	testkit.Must(t, s.Sweep(t.Context()))
	b.run(t, b.lane(func(h *publishHandler) { h.Gate = late }), "acme")
	b.want(t, key, jetpost.StateHeld, jetpost.CodeAppPaused, 0)
	b.sweep(t, s)
	b.work(t, b.lane())
	testkit.Eventually(t, "it is published", func() bool { return b.record(t, key).Status.State == jetpost.StatePublished })
}
