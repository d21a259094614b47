package consumers

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// taken takes a slot as soon as one waits.
func (d *direct) taken(t *testing.T) (slot *turn) {
	t.Helper()
	testkit.Eventually(t, "a slot waits", func() (free bool) {
		slot, free = d.take()
		return free
	})
	return slot
}

// runs has the next slot that waits handle a delivery.
func (d *direct) runs(t *testing.T, subject string) {
	t.Helper()
	testkit.Eventually(t, "a slot takes "+subject, func() bool {
		slot, free := d.take()
		return free && slot.give(delivery{Subject: subject})
	})
}

// TestDirectSlot: a slot that runs a lane of its own worker takes no message. One that the
// server sends to it is given back, and another slot handles it.
func TestDirectSlot(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	q := newQueue(t, js, time.Hour)
	var mu sync.Mutex
	handled := map[string]int{}
	began, goOn := make(chan struct{}), make(chan struct{})
	r := q.runner(2, func(_ context.Context, d delivery) error {
		if d.Subject == "direct" {
			close(began)
			<-goOn
		}
		mu.Lock()
		defer mu.Unlock()
		handled[d.Subject+string(d.Data)]++
		return nil
	})
	slots := newDirect()
	r.Bindings[0].Direct = slots
	(&testBundle{}).start(t, r)
	testkit.Eventually(t, "both slots have asked for a message", func() bool { return q.info(t).NumWaiting == 2 })
	slots.runs(t, "direct")
	<-began
	q.publish(t, "one", "two", "three") // the server may send any of them to the busy slot
	testkit.Eventually(t, "all is acknowledged", func() bool { return q.empty(t) })
	mu.Lock()
	testkit.Equal(t, "handled beside the lane", fmt.Sprint(handled), "map[queue.xone:1 queue.xthree:1 queue.xtwo:1]")
	mu.Unlock()
	other := slots.taken(t)
	if _, free := slots.take(); free {
		t.Error("a slot was taken twice")
	}
	other.letGo() // there was nothing to do
	close(goOn)
	slots.runs(t, "last")
	testkit.Eventually(t, "the slot works on", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return handled["last"] == 1
	})
}

// TestDirectSlotStops: a stop waits for the lane, and tells it. Another worker gets the
// message that came meanwhile. A panic ends no slot, and is a fault of the worker.
func TestDirectSlotStops(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	q := newQueue(t, js, time.Second)
	began := make(chan struct{})
	r := q.runner(1, func(ctx context.Context, d delivery) error {
		if d.Subject == "panic" {
			panic("a bug")
		}
		close(began)
		<-d.Stopping
		testkit.Must(t, ctx.Err()) // the call in flight goes on
		return nil
	})
	slots := newDirect()
	r.Bindings[0].Direct = slots
	stop := (&testBundle{}).start(t, r)
	slots.runs(t, "panic")
	slots.runs(t, "direct")
	<-began
	if r.Health.Err() == nil {
		t.Error("the worker does not report the panic")
	}
	q.publish(t, "one")
	stop()
	if _, free := slots.take(); free {
		t.Error("a slot waits after the stop")
	}
	seen := make(chan struct{})
	(&testBundle{}).start(t, q.runner(1, func(context.Context, delivery) error { close(seen); return nil }))
	<-seen
}

// TestDirectSlotLeaves: a slot that waits for a lane in vain takes messages again, and no
// lane is given to it after that.
func TestDirectSlotLeaves(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	q := newQueue(t, js, time.Hour)
	seen := make(chan string, 1)
	r := q.runner(1, func(_ context.Context, d delivery) error {
		seen <- string(d.Data)
		return nil
	})
	slots := newDirect()
	slots.patience = time.Millisecond
	r.Bindings[0].Direct = slots
	(&testBundle{}).start(t, r)
	slot := slots.taken(t)
	q.publish(t, "one")
	testkit.Equal(t, "handled", <-seen, "one")
	testkit.Equal(t, "given to a slot that has left", slot.give(delivery{}), false)
	slot.letGo()
}

// lateDoor is a ledger that takes long to accept.
type lateDoor struct {
	intakeLedger
	accepted func()
}

func (l lateDoor) AcceptMany(ctx context.Context, lease store.Lease, in []store.Acceptance) ([]store.Received, error) {
	defer l.accepted()
	return l.intakeLedger.AcceptMany(ctx, lease, in)
}

// TestIntakeMissesItsSlot: if the acceptance takes so long that the slot has left, the lane
// is free, and woken; also if it was woken meanwhile, or the partition was lost.
func TestIntakeMissesItsSlot(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		meanwhile func(t *testing.T, b *testBundle, lose func())
		lost      bool // so that the wake-up may be lost, too
	}{
		"late": {meanwhile: func(*testing.T, *testBundle, func()) {}},
		"woken": {meanwhile: func(t *testing.T, b *testBundle, _ func()) {
			t.Helper()
			testkit.Must(t, b.ledger.PauseAccount(t.Context(), "acme", store.Pause{Since: time.Now(), Reason: jetpost.Reason{Code: jetpost.CodeAccountPaused}}))
			_, err := b.ledger.ResumeAccount(t.Context(), "acme", time.Now())
			testkit.Must(t, err)
		}},
		"partition lost": {func(_ *testing.T, _ *testBundle, lose func()) { lose() }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			h := b.intake()
			h.Slots, h.Claim, h.May = roomFor(1), store.LaneClaim{Worker: "worker", Lease: time.Minute}, b.lane().unasked
			h.Slots.patience = time.Nanosecond
			ctx, lose := context.WithCancel(t.Context())
			h.Ledger = lateDoor{h.Ledger, func() {
				_, comes := (<-h.Slots.free).wait(nil)
				testkit.Equal(t, "the slot has got its lane", comes, false)
				test.meanwhile(t, b, lose)
			}}
			_, _ = h.HandleBatch(ctx, store.Lease{}, []delivery{b.job("acme", []byte(`{"id":"one","posts":[{"text":"one"}]}`))})
			lose()
			if !test.lost {
				testkit.Equal(t, "wake-ups", b.messages(t, b.names.LanesStream()), 1)
			}
			b.run(t, b.lane(), "acme")
			b.want(t, store.Key{Account: "acme", ID: "one"}, jetpost.StatePublished, "", 1)
		})
	}
}

// orderedLetters holds the answers to events back until a lane was handed to a slot.
type orderedLetters struct {
	silentDeadLetters
	t     *testing.T
	slots *direct
}

func (l *orderedLetters) Events(_ context.Context, events []publishers.Told) func() []error {
	slot := <-l.slots.free // as a waiting slot would
	select {
	case d, comes := <-slot.work:
		l.t.Errorf("%s (%t) came before the event of its request", d.Subject, comes)
		return func() []error { return make([]error, len(events)) }
	default:
	}
	return func() []error {
		_, comes := <-slot.work
		testkit.Equal(l.t, "the lane comes before the answers", comes, true)
		return make([]error, len(events))
	}
}

// roomFor makes slots of which that many wait.
func roomFor(slots int) *direct { return &direct{free: make(chan *turn, slots)} }

// TestIntakeRunsLanes: the lane of an accepted job runs in a slot that waits, and is not
// woken. It comes behind the event of its job, and does not wait for NATS.
func TestIntakeRunsLanes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.account(t, "beta", 0)
	h := b.intake()
	h.Slots, h.Claim, h.May = roomFor(1), store.LaneClaim{Worker: "worker", Lease: time.Minute}, b.lane().unasked
	letters := &orderedLetters{t: t, slots: h.Slots}
	h.Announce.DeadLetters = letters
	take(t, h, b.job("acme", []byte(`{"id":"one","posts":[{"text":"one"}]}`)), b.job("beta", []byte(`{"id":"one","posts":[{"text":"one"}]}`)),
		b.job("acme", []byte(`{"id":"two","posts":[{"text":"two"}]}`)))
	wakes := func(account string) bool {
		return b.last(t, b.names.LanesStream(), b.names.PublishWake(account)) != nil
	}
	testkit.Equal(t, "acme's lane is woken", wakes("acme"), false)
	testkit.Equal(t, "beta's lane is woken", wakes("beta"), true)
	_, free, err := b.ledger.ClaimLane(t.Context(), "acme", "another", time.Minute, time.Now())
	testkit.Must(t, err)
	testkit.Equal(t, "acme's lane is free", free, false)
}

// TestIntakeTakesNoSlot: a slot that was taken for nothing waits on.
func TestIntakeTakesNoSlot(t *testing.T) {
	t.Parallel()
	later := time.Now().Add(time.Hour).Format(time.RFC3339)
	tests := []struct {
		name, account, body string
		change              func(*intakeHandler)
		lane                func(*testing.T, *publishHandler)
		taken               bool
	}{
		{name: "nothing is due", body: `{"id":"one","publish_at":"` + later + `","posts":[{"text":"one"}]}`},
		{name: "a bad job", body: `{"id":"one","posts":[]}`},
		{name: "a later version", body: `{"version":9,"id":"one","posts":[{"text":"one"}]}`},
		{name: "texts that are refused", body: `{"id":"one","posts":[{"text":"one"}]}`, change: func(h *intakeHandler) { h.Rules.SameText = SameTextRefuse }},
		{name: "no room on the disk", body: `{"id":"one","posts":[{"text":"one"}]}`, lane: func(_ *testing.T, h *publishHandler) { h.Room = func() error { return errAway } }},
		{name: "the app is paused", body: `{"id":"one","posts":[{"text":"one"}]}`, lane: func(t *testing.T, h *publishHandler) {
			t.Helper()
			testkit.Must(t, h.Gate.Pause(t.Context(), admission.TargetPublish, jetpost.Reason{Code: jetpost.CodeAppRateLimited, Until: time.Now().Add(time.Hour)}, time.Now()))
		}},
		{name: "an unknown account", account: "nobody", body: `{"id":"one","posts":[{"text":"one"}]}`, taken: true},
		{name: "no database", body: `{"id":"one","posts":[{"text":"one"}]}`, taken: true, change: func(h *intakeHandler) { h.Ledger = &brokenDoor{h.Ledger, 1} }},
		{name: "a lane that another holds", account: "held", body: `{"id":"one","posts":[{"text":"one"}]}`, taken: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			b.account(t, "held", 0)
			_, _, err := b.ledger.ClaimLane(t.Context(), "held", "another", time.Minute, time.Now())
			testkit.Must(t, err)
			h := b.intake()
			lane := b.lane()
			h.Slots, h.Claim, h.May = roomFor(1), store.LaneClaim{Worker: "worker", Lease: time.Minute}, lane.unasked
			if test.lane != nil {
				test.lane(t, lane)
			}
			if test.change != nil {
				test.change(h)
			}
			account := test.account
			if account == "" {
				account = "acme"
			}
			_, _ = h.HandleBatch(t.Context(), store.Lease{}, []delivery{b.job(account, []byte(test.body))})
			testkit.Equal(t, "taken", len(h.Slots.free) == 1, test.taken)
			if !test.taken {
				return
			}
			if d, comes := <-(<-h.Slots.free).work; comes {
				t.Errorf("the slot got %+v", d)
			}
			if account == "held" {
				testkit.Equal(t, "the lane is woken", b.messages(t, b.names.LanesStream()), 1)
				b.want(t, store.Key{Account: "held", ID: "one"}, jetpost.StateQueued, "", 0)
			}
		})
	}
}
