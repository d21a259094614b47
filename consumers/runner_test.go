package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// handlerFunc is a function as a handler.
type handlerFunc func(context.Context, delivery) error

func (f handlerFunc) Handle(ctx context.Context, d delivery) error { return f(ctx, d) }

// start runs a runner until stop is called, or the test ends. Both wait for deliveries in
// flight.
func (b *testBundle) start(t *testing.T, r *runner) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("runner: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// queue is a work queue with one consumer.
type queue struct {
	js     jetstream.JetStream
	config jetstream.ConsumerConfig
}

const queueName = "QUEUE"

// newQueue creates a queue whose deliveries are redelivered after ackWait.
func newQueue(t *testing.T, js jetstream.JetStream, ackWait time.Duration) *queue {
	t.Helper()
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: queueName, Subjects: []string{"queue.*"}, Retention: jetstream.WorkQueuePolicy})
	testkit.Must(t, err)
	q := &queue{js: js, config: jetstream.ConsumerConfig{Durable: "work", AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait}}
	q.bind(t)
	return q
}

func (q *queue) bind(t *testing.T) {
	t.Helper()
	_, err := q.js.CreateConsumer(t.Context(), queueName, q.config)
	testkit.Must(t, err)
}

func (q *queue) publish(t *testing.T, bodies ...string) {
	t.Helper()
	for _, body := range bodies {
		_, err := q.js.Publish(t.Context(), "queue.x", []byte(body))
		testkit.Must(t, err)
	}
}

func (q *queue) info(t *testing.T) *jetstream.ConsumerInfo {
	t.Helper()
	c, err := q.js.Consumer(t.Context(), queueName, "work")
	testkit.Must(t, err)
	return c.CachedInfo()
}

// empty reports whether every message was acknowledged.
func (q *queue) empty(t *testing.T) bool {
	t.Helper()
	s, err := q.js.Stream(t.Context(), queueName)
	testkit.Must(t, err)
	return s.CachedInfo().State.Msgs == 0
}

func (q *queue) runner(slots int, h handlerFunc) *runner {
	return &runner{
		JetStream: q.js, Health: &health{}, Log: slog.New(slog.DiscardHandler),
		Bindings: []binding{{Stream: queueName, Consumer: "work", Slots: slots, Handler: h}},
	}
}

// TestRunnerAcksNilAlone: whatever else a handler returns, its delivery is redelivered
// until it returns nil.
func TestRunnerAcksNilAlone(t *testing.T) {
	t.Parallel()
	results := map[string]func() error{
		"error":          func() error { return errAway },
		"wrapped":        func() error { return fmt.Errorf("claim: %w", errAway) },
		"joined":         func() error { return errors.Join(nil, errAway) },
		"cancelled":      func() error { return context.Canceled },
		"nil of a type":  func() error { return (*decidedError)(nil) },
		"hold":           func() error { return admission.Wait(jetpost.CodeRateLimited, time.Time{}, "") },
		"done of a lane": func() error { return &decidedError{goOn()} },
		"fenced":         func() error { return store.ErrFenced },
		"panic":          func() error { panic("a bug") },
		"panic of nil":   func() error { panic(nil) }, //nolint:govet // a possible bug
		"no set aside":   func() error { return (*setAsideError)(nil) },
	}
	for name, result := range results {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, js := natstest.Connect(t, natstest.Server(t))
			q := newQueue(t, js, time.Minute)
			q.publish(t, "one", "two")
			seen := map[string]int{}
			r := q.runner(1, func(_ context.Context, d delivery) error {
				testkit.Equal(t, "acknowledged", q.empty(t), false)
				if seen[string(d.Data)]++; seen[string(d.Data)] < 3 {
					return result()
				}
				return nil
			})
			stop := (&testBundle{}).start(t, r)
			testkit.Eventually(t, "all is acknowledged", func() bool { return q.empty(t) })
			stop()
			testkit.Equal(t, "handled", fmt.Sprint(seen), "map[one:3 two:3]")
			testkit.Must(t, r.Health.Err())
		})
	}
}

// TestRunnerSetsAside: a delivery that can never be handled is dropped and logged, and
// those behind it go on.
func TestRunnerSetsAside(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	q := newQueue(t, js, time.Minute)
	q.publish(t, "one", "two")
	var logged strings.Builder
	var seen []string
	r := q.runner(1, func(_ context.Context, d delivery) error {
		if seen = append(seen, string(d.Data)); len(seen) == 1 {
			return fmt.Errorf("handle: %w", &setAsideError{errAway})
		}
		return nil
	})
	r.Log = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelError}))
	stop := (&testBundle{}).start(t, r)
	testkit.Eventually(t, "all is acknowledged", func() bool { return q.empty(t) })
	stop()
	testkit.Equal(t, "handled", fmt.Sprint(seen), "[one two]")
	if !strings.Contains(logged.String(), "delivery.set_aside") || !strings.Contains(logged.String(), errAway.Error()) {
		t.Errorf("the log is %q", logged.String())
	}
}

// TestRunnerGivesBack: a delivery whose handler fails is redelivered, and health reports
// the fault meanwhile.
func TestRunnerGivesBack(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	q := newQueue(t, js, time.Hour)
	var calls, together atomic.Int64
	var r *runner
	r = q.runner(3, func(_ context.Context, d delivery) error {
		if together.Add(1) > 1 {
			t.Error("the delivery was handled twice at once")
		}
		defer together.Add(-1)
		testkit.Equal(t, "body", string(d.Data), "one")
		switch calls.Add(1) {
		case 1:
			testkit.Must(t, r.Health.Err())
			return errAway
		case 2, 3:
			if err := r.Health.Err(); !errors.Is(err, errAway) {
				t.Errorf("health is %v while a delivery cannot be handled", err)
			}
			return errAway
		default:
			return nil
		}
	})
	(&testBundle{}).start(t, r)
	q.publish(t, "one")
	testkit.Eventually(t, "it is acknowledged", func() bool { return q.empty(t) })
	testkit.Equal(t, "calls", calls.Load(), 4)
	testkit.Eventually(t, "health is back", func() bool { return r.Health.Err() == nil })
}

func TestRunnerPanics(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	q := newQueue(t, js, time.Minute)
	var calls atomic.Int64
	(&testBundle{}).start(t, q.runner(1, func(context.Context, delivery) error {
		if calls.Add(1) == 1 {
			panic("a bug")
		}
		return nil
	}))
	q.publish(t, "one", "two")
	testkit.Eventually(t, "all is acknowledged", func() bool { return q.empty(t) })
	testkit.Equal(t, "calls", calls.Load(), 3)
	testkit.Equal(t, "deliveries", q.info(t).Delivered.Consumer, 3)
}

// TestRunnerDrains stops worker after worker in the middle of a queue. A worker finishes
// the deliveries that it has. None waits for AckWait, which is an hour here, and none is
// handled twice.
func TestRunnerDrains(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	q := newQueue(t, js, time.Hour)
	const messages, batch = 300, 10
	for i := range messages {
		q.publish(t, fmt.Sprint(i))
	}
	var mu sync.Mutex
	seen := map[string]int{}
	for workers := 1; !q.empty(t); workers++ {
		if workers > messages {
			t.Fatal("messages are left over")
		}
		var handled, inFlight atomic.Int64
		enough := make(chan struct{})
		stop := (&testBundle{}).start(t, q.runner(4, func(ctx context.Context, d delivery) error {
			inFlight.Add(1)
			defer inFlight.Add(-1)
			if handled.Add(1) == batch {
				close(enough)
			}
			mu.Lock()
			defer mu.Unlock()
			seen[string(d.Data)]++
			testkit.Must(t, ctx.Err())
			return nil
		}))
		testkit.Eventually(t, "some are handled", func() bool { return handled.Load() >= batch || q.empty(t) })
		stop()
		testkit.Equal(t, "in flight after the stop", inFlight.Load(), 0)
	}
	for i := range messages {
		testkit.Equal(t, fmt.Sprint("message ", i), seen[fmt.Sprint(i)], 1)
	}
}

// TestRunnerStops: the handler in flight is told, finishes and is acknowledged. The next
// message stays.
func TestRunnerStops(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	q := newQueue(t, js, time.Hour)
	began := make(chan struct{})
	stop := (&testBundle{}).start(t, q.runner(1, func(ctx context.Context, d delivery) error {
		testkit.Equal(t, "stopping at first", d.stopping(), false)
		close(began)
		<-d.Stopping
		testkit.Must(t, ctx.Err()) // the call in flight goes on
		return nil
	}))
	q.publish(t, "one", "two")
	<-began
	stop()
	info := q.info(t)
	testkit.Equal(t, "acknowledged", info.AckFloor.Consumer, 1)
	testkit.Equal(t, "waiting", info.NumPending, 1)
	testkit.Equal(t, "in flight", info.NumAckPending, 0)
}

// TestRunnerStopGrace: the context of a handler that does not end is cancelled, and its
// message goes to another worker.
func TestRunnerStopGrace(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	q := newQueue(t, js, time.Hour)
	began := make(chan struct{})
	r := q.runner(1, func(ctx context.Context, _ delivery) error {
		close(began)
		<-ctx.Done()
		return ctx.Err()
	})
	r.StopGrace = time.Millisecond
	stop := (&testBundle{}).start(t, r)
	q.publish(t, "one")
	<-began
	stop()
	testkit.Equal(t, "not acknowledged", q.empty(t), false)
}

func TestRunnerNeedsItsConsumer(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	r := (&queue{js: js}).runner(1, nil)
	if err := r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "bind consumer work of QUEUE") {
		t.Errorf("error is %v", err)
	}
}

// TestRunnerConsumerDeleted: the worker reports a fault, and goes on when the consumer
// exists again.
func TestRunnerConsumerDeleted(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	q := newQueue(t, js, time.Minute)
	var calls atomic.Int64
	r := q.runner(2, func(context.Context, delivery) error { calls.Add(1); return nil })
	(&testBundle{}).start(t, r)
	q.publish(t, "one")
	testkit.Eventually(t, "the first is handled", func() bool { return calls.Load() == 1 && q.empty(t) })
	testkit.Must(t, js.DeleteConsumer(t.Context(), queueName, "work"))
	testkit.Eventually(t, "health tells", func() bool { return r.Health.Err() != nil })
	q.bind(t)
	testkit.Eventually(t, "health is back before the next message", func() bool { return r.Health.Err() == nil })
	q.publish(t, "two")
	testkit.Eventually(t, "the second is handled", func() bool { return calls.Load() == 2 && q.empty(t) })
}

// TestRunnerServerRestarts: the server restarts while a delivery is in flight. It is
// acknowledged afterwards, and work goes on.
func TestRunnerServerRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := natstest.Server(t, natstest.Listen, func(o *server.Options) { o.StoreDir = dir })
	back := make(chan struct{})
	nc, err := nats.Connect(first.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond),
		nats.ReconnectHandler(func(*nats.Conn) { close(back) }))
	testkit.Must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	testkit.Must(t, err)
	q := newQueue(t, js, time.Minute)
	began, goOn := make(chan struct{}, 1), make(chan struct{})
	var calls atomic.Int64
	(&testBundle{}).start(t, q.runner(1, func(context.Context, delivery) error {
		calls.Add(1)
		began <- struct{}{}
		<-goOn
		return nil
	}))
	q.publish(t, "one")
	<-began
	address := first.Addr().String()
	first.Shutdown()
	first.WaitForShutdown()
	natstest.Server(t, natstest.Listen, func(o *server.Options) {
		o.StoreDir = dir
		_, err := fmt.Sscanf(address[strings.LastIndexByte(address, ':')+1:], "%d", &o.Port)
		testkit.Must(t, err)
	})
	<-back
	close(goOn)
	testkit.Eventually(t, "the first is acknowledged", func() bool { return q.empty(t) })
	q.publish(t, "two")
	testkit.Eventually(t, "the second is acknowledged", func() bool { return q.empty(t) })
	testkit.Equal(t, "calls", calls.Load(), 2)
}

// TestRunnerReplacedWakeup: if a wake-up replaces the one being handled, the
// acknowledgement must not wait for an answer that never comes.
func TestRunnerReplacedWakeup(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var logged strings.Builder
	began, goOn := make(chan struct{}, 2), make(chan struct{})
	r := &runner{
		JetStream: b.js, Health: &health{}, Log: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Bindings: []binding{{Stream: b.names.LanesStream(), Consumer: jetpost.ConsumerLanes, Slots: 1, Handler: handlerFunc(func(context.Context, delivery) error {
			began <- struct{}{}
			<-goOn
			return nil
		})}},
	}
	stop := b.start(t, r)
	testkit.Must(t, b.wakeups.Wake(t.Context(), "acme"))
	<-began
	testkit.Must(t, b.wakeups.Wake(t.Context(), "acme"))
	close(goOn)
	<-began // the second wake-up is handled, too
	testkit.Eventually(t, "all is acknowledged", func() bool { return b.messages(t, b.names.LanesStream()) == 0 })
	stop()
	testkit.Equal(t, "log", logged.String(), "")
}

func TestHealth(t *testing.T) {
	t.Parallel()
	var h health
	testkit.Must(t, h.Err())
	h.Set("one", errAway)
	h.Set("two", context.Canceled)
	if err := h.Err(); !errors.Is(err, errAway) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "one: ") {
		t.Errorf("health is %v", err)
	}
	h.Set("one", nil)
	h.Set("two", nil)
	h.Set("three", nil)
	testkit.Must(t, h.Err())
}

// TestHealthForgets: a fault of a handler is cleared after a while, because another worker
// may handle the delivery.
func TestHealthForgets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var h health
		h.Met("one", errAway)
		if err := h.Err(); !errors.Is(err, errAway) {
			t.Errorf("health is %v", err)
		}
		sleep(faultFor)
		testkit.Must(t, h.Err())
	})
}
