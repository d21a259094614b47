package consumers

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

func (b *testBundle) control() *AppPauseControl {
	return &AppPauseControl{Bucket: b.pauses, Ledger: b.ledger, Log: b.log, Silence: time.Second}
}

func (b *testBundle) topology(t *testing.T) publishers.TopologyConfig {
	t.Helper()
	id, err := b.ledger.LedgerID(t.Context())
	testkit.Must(t, err)
	return publishers.TopologyConfig{Names: b.names, LedgerID: id}
}

func (b *testBundle) upkeep(t *testing.T) *upkeep {
	t.Helper()
	return &upkeep{Pauses: b.control(), Ledger: b.ledger, JS: b.js, Topology: b.topology(t), Health: &health{}, Log: b.log}
}

// follow has a gate follow the control while the test runs.
func (b *testBundle) follow(t *testing.T, control *AppPauseControl, g *admission.Gate) *health {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	faults := &health{}
	var group sync.WaitGroup
	group.Go(func() { control.follow(ctx, g, faults) })
	t.Cleanup(func() { cancel(); group.Wait() })
	return faults
}

// lanesPaused reports whether the lanes' consumer is paused.
func (b *testBundle) lanesPaused(t *testing.T) bool {
	t.Helper()
	lanes, err := b.js.Consumer(t.Context(), b.names.LanesStream(), jetpost.ConsumerLanes)
	testkit.Must(t, err)
	return lanes.CachedInfo().Paused
}

func (b *testBundle) mend(t *testing.T, control *AppPauseControl) string {
	t.Helper()
	mended, err := control.Mend(t.Context(), time.Now())
	testkit.Must(t, err)
	return strings.Join(mended, "; ")
}

// remake deletes the bucket of pauses and creates it again, empty.
func (b *testBundle) remake(t *testing.T) {
	t.Helper()
	testkit.Must(t, b.js.DeleteStream(t.Context(), "KV_"+b.names.LimitsBucket()))
	_, err := publishers.Setup(t.Context(), b.js, b.topology(t))
	testkit.Must(t, err)
}

func byHand(now time.Time) publishers.Pause {
	return publishers.Pause{Target: publishers.TargetPublish, Reason: jetpost.Reason{Code: jetpost.CodePausedByHand, Detail: "by hand"}, Since: now}
}

// TestPauseOutlivesBucket: a bucket that was deleted and created again loses no pause, and
// later pauses and resumes still reach all workers.
func TestPauseOutlivesBucket(t *testing.T) {
	t.Parallel()
	b := setup(t)
	control := b.control()
	g := admission.NewGate(control, "worker", 0, b.log)
	other := publishers.Pause{Target: publishers.TargetRefresh, Reason: jetpost.Reason{Code: jetpost.CodeAppMisconfigured}, Since: time.Now(), Wait: time.Hour}
	for range 3 { // so that the revisions of the new bucket are lower
		_, _, err := control.Set(t.Context(), byHand(time.Now()))
		testkit.Must(t, err)
		_, err = control.Clear(t.Context(), admission.TargetPublish)
		testkit.Must(t, err)
	}
	for _, pause := range []publishers.Pause{byHand(time.Now()), other} {
		_, _, err := control.Set(t.Context(), pause)
		testkit.Must(t, err)
	}
	b.follow(t, control, g)
	testkit.Eventually(t, "the gate knows of both", func() bool { return paused(g, admission.TargetPublish) && paused(g, admission.TargetRefresh) })

	b.remake(t)
	forgot := make(chan struct{})
	var once sync.Once
	ctx, cancel := context.WithCancel(t.Context())
	var watched sync.WaitGroup
	watched.Go(func() {
		for ctx.Err() == nil {
			if !paused(g, admission.TargetPublish) {
				once.Do(func() { close(forgot) })
			}
			sleepContext(ctx, time.Millisecond)
		}
	})
	testkit.Eventually(t, "the gate watches the new bucket, while it is empty", func() bool {
		pause, is := g.Paused(admission.TargetPublish, time.Now())
		return is && pause.Revision == 0
	})
	testkit.Equal(t, "mended", b.mend(t, control), "the pause of publish was lost; the pause of refresh was lost")
	testkit.Equal(t, "mended again", b.mend(t, control), "")
	testkit.Eventually(t, "the gate watches the new bucket", func() bool {
		pause, is := g.Paused(admission.TargetPublish, time.Now())
		return is && pause.Revision > 0
	})
	cancel()
	watched.Wait()
	select {
	case <-forgot:
		t.Error("the gate lost the pause meanwhile")
	default:
	}
	testkit.Equal(t, "the lanes are paused", b.lanesPaused(t), true)
	_, err := control.Clear(t.Context(), admission.TargetPublish)
	testkit.Must(t, err)
	testkit.Eventually(t, "the gate learns of the resume", func() bool { return !paused(g, admission.TargetPublish) })
	testkit.Equal(t, "another target is paused", paused(g, admission.TargetRefresh), true)
	_, _, err = control.Set(t.Context(), byHand(time.Now()))
	testkit.Must(t, err)
	testkit.Eventually(t, "the gate learns of the next pause", func() bool { return paused(g, admission.TargetPublish) })
}

// TestPauseWithoutBucket: while there is no bucket, the pauses are read from the ledger, and
// the worker reports a fault, which ends with the first snapshot of the new bucket.
func TestPauseWithoutBucket(t *testing.T) {
	t.Parallel()
	b := setup(t)
	control := b.control()
	control.Silence = time.Hour // the watch of the new bucket does not end in this test
	testkit.Must(t, b.js.DeleteStream(t.Context(), "KV_"+b.names.LimitsBucket()))
	if _, _, err := control.Set(t.Context(), byHand(time.Now())); err == nil {
		t.Error("a pause that NATS did not store has no error")
	}
	g := admission.NewGate(control, "worker", 0, b.log)
	faults := b.follow(t, control, g)
	testkit.Eventually(t, "the gate knows of it", func() bool { return paused(g, admission.TargetPublish) })
	testkit.Eventually(t, "the worker reports the bucket", func() bool { return faults.Err() != nil })
	if _, err := control.Mend(t.Context(), time.Now()); err == nil || publishers.Hint(err) != "run: jetpost setup" {
		t.Errorf("what Mend says without a bucket is %v, with the hint %q", err, publishers.Hint(err))
	}
	_, err := publishers.Setup(t.Context(), b.js, b.topology(t))
	testkit.Must(t, err)
	testkit.Equal(t, "mended", b.mend(t, control), "the pause of publish was not stored in NATS")
	testkit.Equal(t, "the lanes are paused", b.lanesPaused(t), true)
	testkit.Eventually(t, "the fault has ended", func() bool { return faults.Err() == nil })
}

// TestResumeThatDied: if a resume ends at any point, the rest is done later.
func TestResumeThatDied(t *testing.T) {
	t.Parallel()
	died := errors.New("died")
	for name, dies := range map[string]struct {
		die    func(b *testBundle, control *AppPauseControl)
		mended string
	}{
		"before the bucket": {
			func(_ *testBundle, control *AppPauseControl) { control.Bucket = dyingStore{control.Bucket, died} },
			"the pause of publish was resumed, but was still stored in NATS",
		},
		"before the lanes go on": {
			func(b *testBundle, control *AppPauseControl) {
				control.Bucket = deletingStore{control.Bucket, b.js, b.names, died}
			},
			"the pause of the consumer lanes: it is paused, and no app pause holds",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			control := b.control()
			_, _, err := control.Set(t.Context(), byHand(time.Now()))
			testkit.Must(t, err)
			dying := b.control()
			dies.die(b, dying)
			if _, err := dying.Clear(t.Context(), admission.TargetPublish); !errors.Is(err, died) {
				t.Fatalf("resume: %v", err)
			}
			testkit.Equal(t, "the lanes are paused", b.lanesPaused(t), true)
			testkit.Equal(t, "mended", b.mend(t, control), dies.mended)
			testkit.Equal(t, "the lanes are paused", b.lanesPaused(t), false)
			_, there, err := b.pauses.Get(t.Context(), publishers.TargetPublish)
			testkit.Must(t, err)
			testkit.Equal(t, "a pause is stored", there, false)
			testkit.Equal(t, "mended again", b.mend(t, control), "")
		})
	}
}

// dyingStore fails before it resumes anything.
type dyingStore struct {
	PauseBucket
	err error
}

func (d dyingStore) Clear(context.Context, string) error { return d.err }

// deletingStore fails between the end of a pause and the end of its effect.
type deletingStore struct {
	PauseBucket
	js    jetstream.JetStream
	names jetpost.Names
	err   error
}

func (d deletingStore) Clear(ctx context.Context, scope string) error {
	kv, err := d.js.KeyValue(ctx, d.names.LimitsBucket())
	return errors.Join(d.err, err, kv.Delete(ctx, "pause."+scope))
}

// awayStore is a NATS server that does not answer at times.
type awayStore struct {
	PauseBucket
	away *bool
}

func (a awayStore) Set(ctx context.Context, pause publishers.Pause) (publishers.Pause, bool, error) {
	if *a.away {
		return publishers.Pause{}, false, errAway
	}
	return a.PauseBucket.Set(ctx, pause)
}

// awayLedger is a ledger that does not answer at times.
type awayLedger struct {
	DesiredStore
	away *bool
}

func (a awayLedger) Desired(ctx context.Context) ([]store.Desired, error) {
	if *a.away {
		return nil, errAway
	}
	return a.DesiredStore.Desired(ctx)
}

// TestPauseToldLater: a pause that could not be stored in NATS is stored later, by any
// worker that knows of it, unless the app was resumed meanwhile.
func TestPauseToldLater(t *testing.T) {
	t.Parallel()
	b := setup(t)
	natsAway, ledgerAway := true, true
	control := &AppPauseControl{Bucket: awayStore{b.pauses, &natsAway}, Ledger: awayLedger{b.ledger, &ledgerAway}, Log: b.log}
	g := admission.NewGate(control, "worker", 0, b.log)
	pause := func() error {
		return g.Pause(t.Context(), admission.TargetPublish, jetpost.Reason{Code: jetpost.CodeUsageCapped, Until: time.Now().Add(time.Hour)}, time.Now().Add(-time.Minute))
	}
	if err := pause(); !errors.Is(err, errAway) {
		t.Fatalf("pause: %v", err)
	}
	natsAway, ledgerAway = false, false
	testkit.Must(t, g.Retell(t.Context(), time.Now()))
	told, there, err := b.pauses.Get(t.Context(), publishers.TargetPublish)
	testkit.Must(t, err)
	testkit.Equal(t, "told", there && told.Reason.Code == jetpost.CodeUsageCapped, true)
	testkit.Equal(t, "the lanes are paused", b.lanesPaused(t), true)
	_, err = control.Clear(t.Context(), admission.TargetPublish)
	testkit.Must(t, err)

	// Only the ledger has it, and its worker dies.
	natsAway = true
	g = admission.NewGate(control, "worker", 0, b.log)
	if _, _, err := control.Set(t.Context(), byHand(time.Now())); !errors.Is(err, errAway) {
		t.Fatalf("pause: %v", err)
	}
	natsAway = false
	testkit.Equal(t, "mended", b.mend(t, control), "the pause of publish was not stored in NATS")
	testkit.Equal(t, "the lanes are paused", b.lanesPaused(t), true)

	// A person resumes before the worker that has set the pause stores it.
	natsAway = true
	if err := pause(); !errors.Is(err, errAway) {
		t.Fatalf("pause: %v", err)
	}
	natsAway = false
	_, err = control.Clear(t.Context(), admission.TargetPublish)
	testkit.Must(t, err)
	testkit.Must(t, g.Retell(t.Context(), time.Now()))
	testkit.Equal(t, "the lanes are paused", b.lanesPaused(t), false)
	testkit.Equal(t, "the worker is paused", paused(g, admission.TargetPublish), false)
}

// TestUpkeepCopiesPauses: a pause that a worker set while it could not reach the ledger is
// copied to the ledger, and so outlives the bucket.
func TestUpkeepCopiesPauses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	control := b.control()
	_, _, err := b.pauses.Set(t.Context(), byHand(time.Now()))
	testkit.Must(t, err)
	testkit.Equal(t, "mended", b.mend(t, control), "")
	b.remake(t)
	testkit.Equal(t, "mended", b.mend(t, control), "the pause of publish was lost")
	_, err = control.Clear(t.Context(), admission.TargetPublish)
	testkit.Must(t, err)
	b.remake(t)
	testkit.Equal(t, "mended after the resume", b.mend(t, control), "")
}

// TestPauseUndone: if someone unpauses the lanes' consumer during an app pause, or pauses
// it without one, upkeep corrects it.
func TestPauseUndone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	control := b.control()
	_, err := b.js.PauseConsumer(t.Context(), b.names.LanesStream(), jetpost.ConsumerLanes, time.Now().Add(time.Hour))
	testkit.Must(t, err)
	testkit.Equal(t, "mended", b.mend(t, control), "the pause of the consumer lanes: it is paused, and no app pause holds")
	testkit.Equal(t, "the lanes are paused", b.lanesPaused(t), false)
	dated := byHand(time.Now())
	dated.Reason.Until = time.Now().Add(time.Hour)
	for _, pause := range []publishers.Pause{byHand(time.Now()), dated} {
		_, _, err = control.Set(t.Context(), pause)
		testkit.Must(t, err)
		testkit.Equal(t, "mended", b.mend(t, control), "")
		_, err = b.js.ResumeConsumer(t.Context(), b.names.LanesStream(), jetpost.ConsumerLanes)
		testkit.Must(t, err)
		testkit.Equal(t, "mended", b.mend(t, control), "the pause of the consumer lanes: it is not paused, and publish is paused")
		_, err = b.js.PauseConsumer(t.Context(), b.names.LanesStream(), jetpost.ConsumerLanes, time.Now().Add(time.Minute))
		testkit.Must(t, err)
		testkit.Equal(t, "mended", b.mend(t, control), "the pause of the consumer lanes: its pause does not end with the app pause")
		testkit.Equal(t, "mended again", b.mend(t, control), "")
	}
}

// TestUpkeepMendsCron: the refresh schedule that was set up is restored if it was replaced
// or lost. A schedule that the ledger does not know yet is taken over.
func TestUpkeepMendsCron(t *testing.T) {
	t.Parallel()
	b := setup(t)
	u := b.upkeep(t)
	stands := func() publishers.Cron { // the zero value if there is none
		cron, _, err := publishers.ReadCron(t.Context(), b.js, b.names)
		testkit.Must(t, err)
		if cron == nil {
			return publishers.Cron{}
		}
		return *cron
	}
	was := stands()
	testkit.Must(t, u.Run(t.Context(), time.Now())) // takes it over
	for name, spoil := range map[string]func(){
		"replaced": func() {
			msg := nats.NewMsg(b.names.ScheduleRefresh())
			msg.Header.Set(jetstream.ScheduleHeader, "0 0 0 29 2 *")
			msg.Header.Set(jetstream.ScheduleTargetHeader, b.names.DueRefresh("nowhere"))
			_, err := b.js.PublishMsg(t.Context(), msg)
			testkit.Must(t, err)
		},
		"lost": func() { b.purge(t, b.names.ScheduleStream()) },
	} {
		spoil()
		testkit.Equal(t, "schedule that was "+name, stands(), publishers.Cron{})
		testkit.Must(t, u.Run(t.Context(), time.Now())) // too soon after the last check
		u.checked = time.Time{}
		testkit.Must(t, u.Run(t.Context(), time.Now()))
		testkit.Equal(t, "schedule once more", stands(), was)
	}
	another := publishers.Cron{Cron: "0 30 * * * *", TTL: time.Hour}
	testkit.Must(t, KeepCron(t.Context(), b.ledger, another))
	u.checked = time.Time{}
	testkit.Must(t, u.Run(t.Context(), time.Now()))
	testkit.Equal(t, "the desired one", stands(), another)
}

// TestUpkeepReports: what only jetpost setup may create is reported and left alone.
func TestUpkeepReports(t *testing.T) {
	t.Parallel()
	b := setup(t)
	u := b.upkeep(t)
	testkit.Must(t, b.js.DeleteConsumer(t.Context(), b.names.JobsStream(), jetpost.ConsumerIntake(3)))
	testkit.Must(t, u.Run(t.Context(), time.Now()))
	err := u.Health.Err()
	if err == nil || !strings.Contains(err.Error(), "intake-3 is missing") || publishers.Hint(err) != "run: jetpost setup" {
		t.Errorf("health is %v, with the hint %q", err, publishers.Hint(err))
	}
	if _, err := b.js.Consumer(t.Context(), b.names.JobsStream(), jetpost.ConsumerIntake(3)); !errors.Is(err, jetstream.ErrConsumerNotFound) {
		t.Errorf("the consumer was made: %v", err)
	}
	_, err = publishers.Setup(t.Context(), b.js, u.Topology)
	testkit.Must(t, err)
	u.checked = time.Time{}
	testkit.Must(t, u.Run(t.Context(), time.Now()))
	testkit.Must(t, u.Health.Err())
}

// TestForgedPauseIsPutRight: a pause that no worker wrote, in place of a real one, is
// reported, and the real one restored.
func TestForgedPauseIsPutRight(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var signers [4]publishers.Signer
	var group sync.WaitGroup
	for i := range signers { // of workers that start at the same time
		group.Go(func() {
			var err error
			signers[i], err = LedgerSigner(t.Context(), b.ledger)
			testkit.Must(t, err)
		})
	}
	group.Wait()
	forged := b.pauses
	b.pauses = forged.Signed(signers[0])
	control := b.control()
	_, _, err := control.Set(t.Context(), byHand(time.Now()))
	testkit.Must(t, err)
	for _, signer := range signers {
		_, there, err := forged.Signed(signer).Get(t.Context(), publishers.TargetPublish)
		testkit.Must(t, err)
		testkit.Equal(t, "is believed by all", there, true)
	}

	kv, err := b.js.KeyValue(t.Context(), b.names.LimitsBucket())
	testkit.Must(t, err)
	_, err = kv.PutString(t.Context(), "pause.publish", `{"target":"publish","reason":{"code":"x_outage","until":"2020-01-01T00:00:00Z"}}`)
	testkit.Must(t, err)
	_, err = kv.PutString(t.Context(), "pause.refresh", `{"target":"refresh","reason":{"code":"paused_by_hand"}}`)
	testkit.Must(t, err)
	testkit.Equal(t, "mended", b.mend(t, control), "the stored pause of publish was not written by a worker; the stored pause of refresh was not written by a worker; the pause of publish was lost")
	testkit.Equal(t, "mended again", b.mend(t, control), "")

	// A real one from before, which all workers know has ended.
	entry, err := kv.Get(t.Context(), "pause.publish")
	testkit.Must(t, err)
	_, err = control.Clear(t.Context(), admission.TargetPublish)
	testkit.Must(t, err)
	later := byHand(time.Now().Add(time.Minute))
	_, _, err = control.Set(t.Context(), later)
	testkit.Must(t, err)
	_, err = control.Clear(t.Context(), admission.TargetPublish)
	testkit.Must(t, err)
	testkit.Must(t, control.note(t.Context(), admission.TargetPublish, func(is desiredPause) (desiredPause, bool) {
		is.EndedAt = is.EndedAt.Add(2 * time.Minute) // as time passes
		return is, true
	}))
	_, err = kv.Put(t.Context(), "pause.publish", entry.Value())
	testkit.Must(t, err)
	testkit.Equal(t, "an old one", b.mend(t, control), "the pause of publish was resumed, but was still stored in NATS")
	_, there, err := b.pauses.Get(t.Context(), publishers.TargetPublish)
	testkit.Must(t, err)
	testkit.Equal(t, "is there", there, false)

	_, _, err = control.Set(t.Context(), byHand(time.Now().Add(3*time.Minute)))
	testkit.Must(t, err)
	pauses, err := DesiredPauses(t.Context(), b.ledger, time.Now().Add(4*time.Minute))
	testkit.Must(t, err)
	testkit.Equal(t, "pauses in the ledger", len(pauses), 1)
	testkit.Equal(t, "lanes are paused", b.lanesPaused(t), true)
}
