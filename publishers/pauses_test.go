package publishers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// hours is so many hours from now.
func hours(n int) time.Time {
	return time.Now().UTC().Truncate(time.Second).Add(time.Duration(n) * time.Hour)
}

// pausedUntil is an app pause with an end.
func pausedUntil(at time.Time) Pause {
	return Pause{
		Target: TargetPublish,
		Reason: jetpost.Reason{Code: jetpost.CodeAppRateLimited, Detail: "why", Until: at},
		Since:  hours(0),
	}
}

// lanesPaused returns how much longer the lanes' consumer pauses.
func (tb *testBundle) lanesPaused(t *testing.T) (time.Duration, bool) {
	t.Helper()
	lanes, err := tb.js.Consumer(t.Context(), tb.names.LanesStream(), jetpost.ConsumerLanes)
	if err != nil {
		t.Fatal(err)
	}
	return lanes.CachedInfo().PauseRemaining, lanes.CachedInfo().Paused
}

func TestAppPausesTellChanges(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	pauses := NewAppPauses(tb.js, tb.names)
	events, err := New(tb.js, tb.names).Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, pause := range []Pause{pausedUntil(hours(2)), pausedUntil(hours(1))} { // the second changes nothing
		if _, _, err := pauses.Set(t.Context(), pause); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // and here too
		if err := pauses.Clear(t.Context(), TargetPublish); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := pauses.Set(t.Context(), pausedUntil(hours(3))); err != nil {
		t.Fatal(err)
	}
	var got []string
	for e, err := range events {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(e.Type)+" "+e.App.Target)
		if len(got) == 3 {
			break
		}
	}
	if diff := cmp.Diff([]string{"app.paused publish", "app.resumed publish", "app.paused publish"}, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestAppPausesClearResumes(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	pauses := NewAppPauses(tb.js, tb.names)
	if _, _, err := pauses.Set(t.Context(), pausedUntil(time.Time{})); err != nil {
		t.Fatal(err)
	}
	if left, ok := tb.lanesPaused(t); !ok || left < pauseForever/2 {
		t.Errorf("a pause without an end pauses for %v", left)
	}
	if err := NewWakeups(tb.js, tb.names).Wake(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also where there is nothing to clear
		if err := pauses.Clear(t.Context(), TargetPublish); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok, err := pauses.Get(t.Context(), TargetPublish); ok || err != nil {
		t.Errorf("a cleared pause is still there: %v", err)
	}
	tb.next(t, tb.names.LanesStream(), jetpost.ConsumerLanes)
	if _, changed, err := pauses.Set(t.Context(), pausedUntil(hours(1))); err != nil || !changed {
		t.Errorf("a pause after a cleared one: changed %v, %v", changed, err)
	}
}

// TestAppPausesOfOtherTargets do not pause the lanes.
func TestAppPausesOfOtherTargets(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	pause := pausedUntil(hours(1))
	pause.Target = TargetRefresh
	if _, _, err := NewAppPauses(tb.js, tb.names).Set(t.Context(), pause); err != nil {
		t.Fatal(err)
	}
	if _, ok := tb.lanesPaused(t); ok {
		t.Error("a pause of refreshes pauses the lanes")
	}
	pause.Target = "all"
	if _, _, err := NewAppPauses(tb.js, tb.names).Set(t.Context(), pause); err == nil {
		t.Error("an unknown scope was taken")
	}
}

// TestAppPausesLatestEndWins of twenty.
func TestAppPausesLatestEndWins(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	pauses := NewAppPauses(tb.js, tb.names)
	const writers = 20
	ends := make([]time.Time, writers)
	for i := range ends {
		ends[i] = hours(i + 1)
	}
	var wg sync.WaitGroup
	for _, i := range rand.Perm(writers) {
		wg.Go(func() {
			holds, changed, err := pauses.Set(t.Context(), pausedUntil(ends[i]))
			if err != nil {
				t.Error(err)
			}
			if holds.Reason.Until.Before(ends[i]) {
				t.Errorf("pause until %v holds, after one until %v was set", holds.Reason.Until, ends[i])
			}
			if changed != holds.Reason.Until.Equal(ends[i]) {
				t.Errorf("changed is %v, but the pause ends %v, want %v", changed, holds.Reason.Until, ends[i])
			}
		})
	}
	wg.Wait()
	got, ok, err := pauses.Get(t.Context(), TargetPublish)
	if err != nil || !ok || !got.Reason.Until.Equal(ends[writers-1]) {
		t.Errorf("pause is %+v, %v, %v; want until %v", got, ok, err, ends[writers-1])
	}
	if left, ok := tb.lanesPaused(t); !ok || left < (writers-1)*time.Hour-time.Minute {
		t.Errorf("the consumer pauses for %v, want until the latest end", left)
	}
}

// TestAppPausesConsumerFollows setters and clearers.
func TestAppPausesConsumerFollows(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	pauses := NewAppPauses(tb.js, tb.names)
	for range 10 {
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				var err error
				if i%3 == 0 {
					err = pauses.Clear(t.Context(), TargetPublish)
				} else {
					_, _, err = pauses.Set(t.Context(), pausedUntil(hours(i)))
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		_, isPaused, err := pauses.Get(t.Context(), TargetPublish)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := tb.lanesPaused(t); ok != isPaused {
			t.Fatalf("isPaused is %v, but paused is %v", isPaused, ok)
		}
	}
}

// TestAppPausesRules: who wins, one after the other.
func TestAppPausesRules(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	pauses := NewAppPauses(tb.js, tb.names)
	first := pausedUntil(hours(2))
	first.Since = hours(-1)
	for i, tt := range []struct {
		pause   Pause
		changed bool
	}{
		{first, true},
		{pausedUntil(hours(1)), false},
		{first, false},
		{pausedUntil(hours(3)), true},
		{pausedUntil(time.Time{}), true},
		{pausedUntil(hours(99)), false},
		{pausedUntil(time.Time{}), false},
	} {
		before, _, err := pauses.Get(t.Context(), TargetPublish)
		if err != nil {
			t.Fatal(err)
		}
		want := before
		if tt.changed {
			want = tt.pause
			want.Since = first.Since // one pause, prolonged
		}
		got, changed, err := pauses.Set(t.Context(), tt.pause)
		if err != nil || changed != tt.changed {
			t.Fatalf("%d: changed is %v, %v", i, changed, err)
		}
		want.Revision = got.Revision
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d: %s", i, diff)
		}
	}
}

// TestAppPausesWatch is complete from the first snapshot on.
func TestAppPausesWatch(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	pauses := NewAppPauses(tb.js, tb.names)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	empty, err := pauses.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got := <-empty; len(got.Pauses) != 0 {
		t.Errorf("the first snapshot is %v, want none", got)
	}
	for _, scope := range []string{TargetPublish, TargetRefresh, TargetMedia} {
		if _, _, err := pauses.Set(ctx, Pause{Target: scope}); err != nil {
			t.Fatal(err)
		}
	}
	snapshots, err := pauses.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	scopes := func(p Pauses) string {
		var s []string
		for _, pause := range p.Pauses {
			s = append(s, pause.Target)
		}
		return fmt.Sprint(s)
	}
	if got := scopes(<-snapshots); got != "[media publish refresh]" {
		t.Errorf("the first snapshot is %s", got)
	}
	kv, err := tb.js.KeyValue(ctx, tb.names.LimitsBucket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(ctx, "window.acme", "no pause"); err != nil {
		t.Fatal(err)
	}
	if err := pauses.Clear(ctx, TargetPublish); err != nil {
		t.Fatal(err)
	}
	if got := scopes(<-snapshots); got != "[media refresh]" {
		t.Errorf("the next snapshot is %s", got)
	}
	// A reader that was slow sees the newest, and not one of before.
	if got := awaitPauses(t, empty, 2); scopes(got) != "[media refresh]" {
		t.Errorf("a slow reader sees %s", scopes(got))
	}
	if _, err := kv.PutString(ctx, pausePrefix+TargetPublish, "{"); err != nil {
		t.Fatal(err)
	}
	if got := <-snapshots; len(got.Pauses) != 3 || !got.Pauses[1].Active(hours(1000)) {
		t.Errorf("an unreadable pause does not pause: %+v", got)
	}
	cancel()
	for range snapshots { // a last snapshot may be under way
	}
}

// awaitPauses reads on until a snapshot has n pauses.
func awaitPauses(t *testing.T, snapshots <-chan Pauses, n int) Pauses {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case got := <-snapshots:
			if len(got.Pauses) == n {
				return got
			}
		case <-deadline:
			t.Fatalf("no snapshot of %d pauses", n)
		}
	}
}

func TestAppPausesHoldPublishing(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	if _, _, err := NewAppPauses(tb.js, tb.names).Set(t.Context(), Pause{
		Target: TargetPublish,
		Reason: jetpost.Reason{Until: time.Now().Add(time.Second)},
	}); err != nil {
		t.Fatal(err)
	}
	if err := NewWakeups(tb.js, tb.names).Wake(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	lanes, err := tb.js.Consumer(t.Context(), tb.names.LanesStream(), jetpost.ConsumerLanes)
	if err != nil {
		t.Fatal(err)
	}
	asked := time.Now()
	msg, err := lanes.Next(jetstream.FetchMaxWait(patience))
	if err != nil {
		t.Fatalf("the lanes do not resume when the pause ends: %v", err)
	}
	if msg.Subject() != tb.names.PublishWake("acme") {
		t.Errorf("got %s after %v", msg.Subject(), time.Since(asked))
	}
}

// TestAppPausesProbe: one of all workers may find out whether a pause is over, and what
// it finds makes the next wait twice as long.
func TestAppPausesProbe(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	pauses := NewAppPauses(tb.js, tb.names)
	start := time.Now().UTC().Truncate(time.Millisecond)
	set := func(worker string, since time.Time) Pause {
		t.Helper()
		holds, _, err := pauses.Set(t.Context(), Pause{
			Target: TargetPublish, Reason: jetpost.Reason{Code: jetpost.CodeXOutage, Detail: "why"}, Since: since,
			Wait: time.Minute, MaxWait: 3 * time.Minute, Worker: worker,
		})
		if err != nil {
			t.Fatal(err)
		}
		return holds
	}
	probe := func(worker string, now time.Time) bool {
		t.Helper()
		pause, mine, err := pauses.Probe(t.Context(), TargetPublish, worker, now, now.Add(30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if !pause.Active(now) || mine != (pause.Worker == worker) {
			t.Errorf("probe by %s: %t, the pause is %+v", worker, mine, pause)
		}
		return mine
	}
	until := func(what string, pause Pause, at time.Time) {
		t.Helper()
		if !pause.NextProbeAt.Equal(at) || !pause.Reason.Until.IsZero() || !pause.Since.Equal(start) || !pause.Active(at.Add(time.Hour)) {
			t.Errorf("%s: the pause is since %v until %v, want %v until %v", what, pause.Since, pause.NextProbeAt, start, at)
		}
	}
	until("at first", set("one", start), start.Add(time.Minute))
	until("others have met it too", set("two", start.Add(time.Second)), start.Add(time.Minute))
	if probe("one", start.Add(59*time.Second)) {
		t.Error("a probe before its time")
	}
	due := start.Add(time.Minute)
	if !probe("one", due) || probe("two", due) {
		t.Error("want a probe by the first that asks, and by nobody else")
	}
	until("a late answer of another one", set("two", due.Add(time.Second)), due.Add(30*time.Second))
	until("the probe has failed", set("one", due.Add(2*time.Second)), due.Add(2*time.Minute+2*time.Second))
	due = due.Add(2*time.Minute + 2*time.Second)
	if !probe("two", due) || probe("one", due.Add(29*time.Second)) || !probe("one", due.Add(30*time.Second)) {
		t.Error("want a probe of which nothing is heard to be another worker's later")
	}
	due = due.Add(30 * time.Second)
	until("as long as it ever gets", set("one", due), due.Add(3*time.Minute))

	if err := pauses.Clear(t.Context(), TargetPublish); err != nil {
		t.Fatal(err)
	}
	if _, mine, err := pauses.Probe(t.Context(), TargetPublish, "one", due.Add(time.Hour), due.Add(2*time.Hour)); mine || err != nil {
		t.Errorf("a probe of no pause: %t, %v", mine, err)
	}
	start = start.Add(time.Hour)
	until("a new one begins anew", set("one", start), start.Add(time.Minute))
	// A pause that ends later than the next probe replaces it; another one does not.
	for at, want := range map[time.Duration]time.Duration{30 * time.Second: time.Minute, time.Hour: time.Hour} {
		holds, _, err := pauses.Set(t.Context(), Pause{Target: TargetPublish, Reason: jetpost.Reason{Code: jetpost.CodeAppRateLimited, Until: start.Add(at)}, Since: start})
		if err != nil || at == time.Hour && !holds.Reason.Until.Equal(start.Add(want)) || holds.Probed() && at == time.Hour {
			t.Errorf("a pause for %s: holds until %v, %v", at, holds.Reason.Until, err)
		}
	}
}

// TestPauseOfOlderWorker: a probe in an older worker's words, whose end was the next probe,
// is believed.
func TestPauseOfOlderWorker(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	kv, err := tb.js.KeyValue(t.Context(), tb.names.LimitsBucket())
	if err != nil {
		t.Fatal(err)
	}
	older := `{"target":"publish","reason":{"code":"x_outage","until":"2026-12-01T09:00:00Z"},"since":"2026-12-01T08:59:00Z","probe":true,"wait_ns":60000000000}`
	if _, err := kv.PutString(t.Context(), "pause.publish", older); err != nil {
		t.Fatal(err)
	}
	pause, there, err := NewAppPauses(tb.js, tb.names).Get(t.Context(), TargetPublish)
	due := time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	if err != nil || !there || !pause.Active(due.Add(time.Hour)) || !pause.Due(due) || pause.Due(due.Add(-1)) || !pause.Reason.Until.IsZero() || pause.Wait != time.Minute {
		t.Errorf("it is read as %+v, %t, %v", pause, there, err)
	}
}

// TestPauseByHand: a person's pause wins over what X says meanwhile, and over a pause
// that would be probed before its end.
func TestPauseByHand(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Truncate(time.Second)
	setFor := func(code jetpost.Code, hours int, probe bool) Pause {
		s := Pause{Target: TargetPublish, Reason: jetpost.Reason{Code: code}, Since: now}
		if probe {
			s.Wait = time.Hour
		}
		if hours > 0 {
			s.Reason.Until = now.Add(time.Duration(hours) * time.Hour)
		}
		return s
	}
	pause := func(hours int) Pause { return setFor(jetpost.CodePausedByHand, hours, false) }
	outage, window := setFor(jetpost.CodeXOutage, 0, true), setFor(jetpost.CodeAppRateLimited, 3, false)
	outage.NextProbeAt = now.Add(2 * time.Hour)
	over := pause(1)
	over.Since, over.Reason.Until = now.Add(-time.Hour), now
	for name, tc := range map[string]struct {
		s, was  Pause
		changed bool
	}{
		"on nothing":                 {pause(1), Pause{}, true},
		"X says more":                {window, pause(1), false},
		"X fails":                    {outage, pause(1), false},
		"on an outage":               {pause(1), outage, true},
		"on a longer limit":          {pause(1), window, false},
		"on a shorter limit":         {pause(4), window, true},
		"for ever, on a limit":       {pause(0), window, true},
		"shortened":                  {pause(1), pause(2), true},
		"X says more once it's over": {window, over, true},
	} {
		holds, changed := tc.s.Upon(tc.was)
		want := tc.was
		if tc.changed {
			want = tc.s
		}
		if changed != tc.changed || holds.Reason.Code != want.Reason.Code {
			t.Errorf("%s: %t, holds %+v", name, changed, holds)
		}
	}
}

// TestForgedPause: a pause that no holder of the signing key has written pauses
// nothing, and gives way to a signed one.
func TestForgedPause(t *testing.T) {
	t.Parallel()
	pause := Pause{Target: TargetPublish, Reason: jetpost.Reason{Code: jetpost.CodePausedByHand, Detail: "why"}, Since: time.Now()}
	forge := map[string]func(t *testing.T, tb *testBundle, kv jetstream.KeyValue){
		"plain": func(t *testing.T, _ *testBundle, kv jetstream.KeyValue) {
			t.Helper()
			mustPut(t, kv, TargetPublish, []byte(`{"target":"publish","reason":{"code":"paused_by_hand"},"since":"2026-12-01T08:59:00Z"}`))
		},
		"no JSON": func(t *testing.T, _ *testBundle, kv jetstream.KeyValue) {
			t.Helper()
			mustPut(t, kv, TargetPublish, []byte("x"))
		},
		"with another key": func(t *testing.T, tb *testBundle, _ jetstream.KeyValue) {
			t.Helper()
			if _, _, err := NewAppPauses(tb.js, tb.names).Signed(NewSigner([]byte("another"))).Set(t.Context(), pause); err != nil {
				t.Fatal(err)
			}
		},
		"another scope's": func(t *testing.T, tb *testBundle, kv jetstream.KeyValue) {
			t.Helper()
			other := pause
			other.Target = TargetMedia
			if _, _, err := NewAppPauses(tb.js, tb.names).Signed(testSigner).Set(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			entry, err := kv.Get(t.Context(), pausePrefix+TargetMedia)
			if err != nil {
				t.Fatal(err)
			}
			mustPut(t, kv, TargetPublish, entry.Value())
		},
	}
	for name, forge := range forge {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tb := setup(t)
			kv, err := tb.js.KeyValue(t.Context(), tb.names.LimitsBucket())
			if err != nil {
				t.Fatal(err)
			}
			pauses := NewAppPauses(tb.js, tb.names).Signed(testSigner)
			forge(t, tb, kv)
			wantForged(t, pauses)
			if removed, err := pauses.Sweep(t.Context()); err != nil || len(removed) != 1 || removed[0] != TargetPublish {
				t.Errorf("removed %q, %v", removed, err)
			}
			if _, err := kv.Get(t.Context(), pausePrefix+TargetPublish); err == nil {
				t.Error("it is still there")
			}
			forge(t, tb, kv)
			if _, changed, err := pauses.Set(t.Context(), pause); err != nil || !changed {
				t.Errorf("a true one is set: %t, %v", changed, err)
			}
			if _, there, err := pauses.Get(t.Context(), TargetPublish); err != nil || !there {
				t.Errorf("the true one is there: %t, %v", there, err)
			}
			forge(t, tb, kv)
			if restored, err := pauses.Restore(t.Context(), pause); err != nil || !restored {
				t.Errorf("the true one is put back: %t, %v", restored, err)
			}
			if removed, err := pauses.Sweep(t.Context()); err != nil || len(removed) > 0 {
				t.Errorf("removed %q, %v", removed, err)
			}
		})
	}
}

var testSigner = NewSigner([]byte("a key of the ledger's, of its own"))

func mustPut(t *testing.T, kv jetstream.KeyValue, scope string, value []byte) {
	t.Helper()
	if _, err := kv.Put(t.Context(), pausePrefix+scope, value); err != nil {
		t.Fatal(err)
	}
}

// wantForged fails unless nobody sees a pause of all posts.
func wantForged(t *testing.T, pauses *AppPauses) {
	t.Helper()
	if pause, there, err := pauses.Get(t.Context(), TargetPublish); err != nil || there {
		t.Errorf("read: %+v, %t, %v", pause, there, err)
	}
	snapshots, err := pauses.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, pause := range (<-snapshots).Pauses {
		if pause.Target == TargetPublish {
			t.Errorf("watched: %+v", pause)
		}
	}
	if wrong, err := pauses.Settle(t.Context(), time.Now()); err != nil {
		t.Errorf("settled: %q, %v", wrong, err)
	}
}
