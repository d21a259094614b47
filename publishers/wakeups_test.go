package publishers

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// storeIn starts a server on the directory of one that has ended.
func storeIn(dir string) func(*server.Options) {
	return func(o *server.Options) { o.StoreDir = dir }
}

func TestWakeups(t *testing.T) {
	t.Parallel()

	t.Run("Wake replaces the wake-up before", func(t *testing.T) {
		t.Parallel()
		tb := setup(t)
		wakeups := NewWakeups(tb.js, tb.names)
		for i := range 100 {
			if err := wakeups.Wake(t.Context(), fmt.Sprintf("account-%d", i%2)); err != nil {
				t.Fatal(err)
			}
		}
		if n := tb.streamInfo(t, tb.names.LanesStream()).State.Msgs; n != 2 {
			t.Errorf("two accounts have %d wake-ups", n)
		}
	})

	t.Run("Wake reaches the lanes, also while one is in flight", func(t *testing.T) {
		t.Parallel()
		tb := setup(t)
		wakeups := NewWakeups(tb.js, tb.names)
		lanes, err := tb.js.Consumer(t.Context(), tb.names.LanesStream(), jetpost.ConsumerLanes)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := wakeups.Wake(t.Context(), "acme"); err != nil {
				t.Fatal(err)
			}
			msg, err := lanes.Next(jetstream.FetchMaxWait(patience)) // and no ack
			if err != nil || msg.Subject() != tb.names.PublishWake("acme") {
				t.Fatalf("got %v, %v", msg, err)
			}
		}
	})

	t.Run("WakeAt wakes no earlier than asked", func(t *testing.T) {
		t.Parallel()
		tb := setup(t)
		at := time.Now().Add(900 * time.Millisecond)
		if err := NewWakeups(tb.js, tb.names).WakeAt(t.Context(), "acme", at); err != nil {
			t.Fatal(err)
		}
		msg := tb.next(t, tb.names.LanesStream(), jetpost.ConsumerLanes)
		if msg.Subject() != tb.names.PublishWake("acme") || len(msg.Data()) != 0 {
			t.Errorf("got %s with %q", msg.Subject(), msg.Data())
		}
		if now := time.Now(); now.Before(at) {
			t.Errorf("woke %v early", at.Sub(now))
		}
	})

	t.Run("WakeAt replaces the wake-up before", func(t *testing.T) {
		t.Parallel()
		tb := setup(t)
		wakeups := NewWakeups(tb.js, tb.names)
		for _, in := range []time.Duration{time.Hour, -time.Hour} {
			if err := wakeups.WakeAt(t.Context(), "acme", time.Now().Add(in)); err != nil {
				t.Fatal(err)
			}
		}
		if msg := tb.next(t, tb.names.LanesStream(), jetpost.ConsumerLanes); msg.Subject() != tb.names.PublishWake("acme") {
			t.Errorf("got %s", msg.Subject())
		}
		left := tb.streamInfo(t, tb.names.ScheduleStream(), jetstream.WithSubjectFilter(tb.names.ScheduleWake("*"))).State.Subjects
		if len(left) != 0 {
			t.Errorf("the wake-up that was replaced is still there: %v", left)
		}
	})
}
