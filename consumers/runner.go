package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

const (
	// heartbeats is how many heartbeats are sent for a delivery within AckWait, after
	// which the server redelivers it.
	heartbeats = 3
	// nextAgain is how long to wait for a message before asking for it a second time.
	nextAgain = time.Second
	// ackTimeout bounds one confirmed acknowledgement.
	ackTimeout = 5 * time.Second
	// stallMin and stallMax bound the wait before a delivery, a subscription or a ledger
	// call is tried again. The wait doubles in between.
	stallMin = 250 * time.Millisecond
	stallMax = 5 * time.Second
	// stallDoublings keeps the doubling from overflowing.
	stallDoublings = 10
	// DefaultStopGrace is how long a worker that stops waits for calls in flight. It is
	// longer than any one call to X.
	DefaultStopGrace = 30 * time.Second
)

// delivery is one message, as a handler sees it.
type delivery struct {
	Subject  string
	Data     []byte
	Sequence uint64    // in its stream
	Stored   time.Time // when the stream stored it
	Trace    string    // of its producer, as W3C traceparent; "" if it has none
	// Claim is the claim of the lane that it wakes, if the worker has it already.
	Claim *store.Claim
	// Stopping is closed when the worker is asked to stop: a handler then
	// finishes the call in flight and begins no other.
	Stopping <-chan struct{}
}

func (d delivery) stopping() bool {
	select {
	case <-d.Stopping:
		return true
	default:
		return false
	}
}

// handler handles a delivery. A delivery is acknowledged if Handle returns nil. A
// *setAsideError sets it aside. After any other error, or a panic, it is given back and
// handled again by this or another worker.
//
// A handler must be safe for concurrent use, and Handle must return soon after its context
// ends.
type handler interface {
	Handle(ctx context.Context, d delivery) error
}

// setAsideError reports that a delivery can never be handled, and why. What it was about is
// stored elsewhere, so the runner drops it.
type setAsideError struct{ Err error }

func (e *setAsideError) Error() string { return "set aside: " + e.Err.Error() }

func (e *setAsideError) Unwrap() error { return e.Err }

// batchHandler handles the deliveries of one partition, in the order of the stream, as the
// holder of its lease. It returns how many of them, from the first on, are done. Those are
// acknowledged, and the others are given back, with or without an error. If the error is a
// *waiting, the deliveries that it names are not acknowledged but handled again.
//
// HandleBatch must return soon after its context ends.
type batchHandler interface {
	HandleBatch(ctx context.Context, lease store.Lease, batch []delivery) (done int, err error)
}

// binding ties a consumer that exists on the server to its handler.
type binding struct {
	Stream, Consumer string
	// Slots is how many deliveries are handled at once.
	Slots   int
	Handler handler
	// Direct, if set, takes deliveries of this worker's own, for slots that wait.
	Direct *direct
	// Batch is set instead of Slots and Handler for a partition, which one worker at a
	// time reads in batches.
	Batch batchHandler
}

// runner pulls deliveries and acknowledges them; nothing else does. Each slot handles one
// delivery. A message is requested only when a slot is free, because the AckWait of a
// buffered message could pass.
type runner struct {
	JetStream jetstream.JetStream
	Bindings  []binding
	// Leases decides which worker reads a partition. Worker is the name of this one.
	Leases leaseLedger
	Worker string
	// Liveness may be nil: then no dependency is checked.
	Liveness *liveness
	Health   *health
	Log      *slog.Logger
	// StopGrace is DefaultStopGrace if zero.
	StopGrace time.Duration
}

// Run handles deliveries until the context ends. It then waits for those in flight, for at
// most StopGrace. It returns an error if a consumer cannot be bound.
func (r *runner) Run(ctx context.Context) error {
	var consumers []jetstream.Consumer
	for _, b := range r.Bindings {
		c, err := r.JetStream.Consumer(ctx, b.Stream, b.Consumer)
		if ctx.Err() != nil {
			return nil // asked to stop before it began
		}
		if err != nil {
			return fmt.Errorf("bind consumer %s of %s: %w", b.Consumer, b.Stream, err)
		}
		consumers = append(consumers, c)
	}
	// The work context ends one grace period after the request to stop.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	grace := r.StopGrace
	if grace == 0 {
		grace = DefaultStopGrace
	}
	stopTimer := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	defer stopTimer()

	if r.Liveness == nil {
		r.Liveness = &liveness{}
	}
	var slots, background sync.WaitGroup
	background.Go(func() { r.Liveness.run(work) })
	leases := newLeases(r)
	background.Go(func() { leases.run(work) })
	for i, b := range r.Bindings {
		if b.Batch != nil {
			slots.Go(func() { (&partition{r: r, leases: leases, consumer: consumers[i], b: b}).run(ctx) })
		}
		for range b.Slots {
			slots.Go(func() { r.slot(ctx, work, consumers[i], b) })
		}
	}
	slots.Wait()
	cancel()
	background.Wait()
	return nil
}

// slot handles one message after the other until ctx ends, while all dependencies answer. If
// the subscription breaks, slot subscribes again.
func (r *runner) slot(ctx, work context.Context, c jetstream.Consumer, b binding) {
	name := b.Stream + "/" + b.Consumer
	wait := stallMin
	for {
		beat, ok := r.Liveness.Beat(ctx)
		if !ok {
			return
		}
		began := time.Now()
		err := r.pull(beat, ctx, work, c, b)
		if ctx.Err() != nil {
			return
		}
		if beat.Err() != nil {
			continue
		}
		if time.Since(began) > stallMax {
			wait = stallMin
		}
		r.Health.Set("nats "+name, err)
		r.Log.Warn("consumer.lost", "consumer", name, "error", err, "retry_in", wait)
		sleepContext(ctx, wait)
		wait = min(2*wait, stallMax)
	}
}

// pull handles messages until the subscription ends, or beat.
func (r *runner) pull(beat, ctx, work context.Context, c jetstream.Consumer, b binding) error {
	info, err := c.Info(ctx)
	if err != nil {
		return fmt.Errorf("find consumer: %w", err)
	}
	r.Health.Set("nats "+b.Stream+"/"+b.Consumer, nil)
	iter, err := c.Messages(jetstream.PullMaxMessages(1), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	defer iter.Stop()
	// Drain and not Stop: a message that is already on its way is handled or given back.
	// A dropped one blocks its account until AckWait ends.
	defer context.AfterFunc(ctx, iter.Drain)()
	defer context.AfterFunc(beat, iter.Drain)()
	in := newFeed(iter)
	defer in.end(func(msg jetstream.Msg) { r.nak(msg, 0) })
	for {
		select {
		case got := <-in.next():
			in.asked = false
			switch {
			case got.err != nil:
				return fmt.Errorf("pull: %w", got.err)
			case beat.Err() != nil && ctx.Err() == nil:
				r.nak(got.msg, 0)
				continue
			}
			r.deliver(beat, ctx, work, b, got.msg, info.Config.AckWait)
		case t := <-b.Direct.turns():
			in.while(func() { r.direct(ctx, work, b, t) }, func(msg jetstream.Msg) { r.nak(msg, 0) })
		}
		if ctx.Err() != nil {
			return nil // next could bring another message
		}
	}
}

// next waits for a message. The client requests one from the server when Next begins, but
// not while the request before is still being processed. On a busy machine a short handler
// can be faster than that, so a second call of Next makes the request.
func next(iter jetstream.MessagesContext) (jetstream.Msg, error) {
	msg, err := iter.Next(jetstream.NextMaxWait(nextAgain))
	if errors.Is(err, nats.ErrTimeout) {
		msg, err = iter.Next()
	}
	return msg, err //nolint:wrapcheck // the caller wraps it
}

// deliver handles one message to its end and acknowledges it.
func (r *runner) deliver(beat, ctx, work context.Context, b binding, msg jetstream.Msg, ackWait time.Duration) {
	d, meta, err := readDelivery(ctx, msg)
	if err != nil {
		r.Log.Error("delivery.unreadable", "subject", msg.Subject(), "error", err)
		return
	}
	stopBeat := r.heartbeat(beat, work, msg, ackWait/heartbeats)
	defer stopBeat()

	began := time.Now()
	err = r.guard(d, func() error { return b.Handler.Handle(work, d) })
	var aside *setAsideError
	if errors.As(err, &aside) && aside != nil {
		r.Log.Error("delivery.set_aside", "subject", d.Subject, "sequence", d.Sequence, "error", aside.Err)
		err = nil
	}
	if err != nil {
		r.Liveness.Doubt()
		r.giveBack(ctx, msg, b, d, err, meta.NumDelivered)
		return
	}
	r.ack(work, msg, b, d, meta.NumDelivered, time.Since(began))
}

// readDelivery converts a message into a delivery.
func readDelivery(stopping context.Context, msg jetstream.Msg) (delivery, *jetstream.MsgMetadata, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return delivery{}, nil, fmt.Errorf("read metadata: %w", err)
	}
	return delivery{
		Subject: msg.Subject(), Data: msg.Data(),
		Sequence: meta.Sequence.Stream, Stored: meta.Timestamp.UTC(), Trace: msg.Headers().Get(publishers.HeaderTrace), Stopping: stopping.Done(),
	}, meta, nil
}

// guard turns a panic into an error, so that the message is given back, and logs it.
func (r *runner) guard(d delivery, do func() error) error { return guard(r.Log, d, do) }

func guard(log *slog.Logger, d delivery, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("delivery.panic", "subject", d.Subject, "sequence", d.Sequence, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("handler panicked: %v", p)
		}
	}()
	return do()
}

// giveBack has the server deliver the message again: after a wait that doubles, or at once if
// this worker stops.
func (r *runner) giveBack(ctx context.Context, msg jetstream.Msg, b binding, d delivery, cause error, deliveries uint64) {
	r.Health.Met("handler "+b.Consumer, cause)
	wait := min(stallMin<<min(deliveries-1, stallDoublings), stallMax)
	if ctx.Err() != nil {
		wait = 0
	}
	r.Log.Warn("delivery.given_back", "subject", d.Subject, "sequence", d.Sequence, "delivery", deliveries, "error", cause, "again_in", wait)
	r.nak(msg, wait)
}

// nak has the server deliver the message again after a wait.
func (r *runner) nak(msg jetstream.Msg, wait time.Duration) {
	if err := msg.NakWithDelay(wait); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		r.Log.Warn("delivery.nak_failed", "subject", msg.Subject(), "error", err) // the server redelivers it after AckWait
	}
}

func (r *runner) ack(ctx context.Context, msg jetstream.Msg, b binding, d delivery, deliveries uint64, took time.Duration) {
	r.Health.Set("handler "+b.Consumer, nil)
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	// Confirmed by the server, because a lost acknowledgement causes a redelivery. That
	// does no harm, but costs a read of the ledger.
	err := msg.DoubleAck(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) && !errors.Is(err, nats.ErrConnectionClosed) {
		r.Log.Warn("delivery.ack_failed", "subject", d.Subject, "sequence", d.Sequence, "error", err)
	}
	r.Log.Debug("delivery.done", "consumer", b.Consumer, "subject", d.Subject, "sequence", d.Sequence,
		"delivery", deliveries, "duration", took)
}

// heartbeat tells the server that the message is being handled, until stop is called. If a
// dependency does not answer meanwhile, the message is given back. The worker that gets it
// finds out from the ledger whether this worker still holds the lane.
func (r *runner) heartbeat(beat, ctx context.Context, msg jetstream.Msg, interval time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		every := time.NewTicker(interval)
		defer every.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-beat.Done():
				r.Log.Warn("delivery.given_back", "subject", msg.Subject(), "error", "a dependency of the worker does not answer")
				r.nak(msg, 0)
				return
			case <-every.C:
				// A lost heartbeat can at worst cause a second delivery, which
				// finds the lane claimed.
				if err := msg.InProgress(); err != nil {
					r.Log.Debug("delivery.heartbeat_failed", "subject", msg.Subject(), "error", err)
				}
			}
		}
	})
	return func() { cancel(); done.Wait() }
}

// sleepContext waits for d, or until the context ends.
func sleepContext(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// faultFor is how long a fault of Met lasts if it is not met again. Another worker may handle
// the delivery next, so nothing else ends such a fault.
const faultFor = 15 * time.Second

// health collects the current faults by name. The zero value is healthy.
type health struct {
	mu     sync.Mutex
	faults map[string]fault
}

type fault struct {
	err   error
	until time.Time // if zero, until Set ends it
}

// Set records a fault, or its end if err is nil.
func (h *health) Set(name string, err error) { h.set(name, fault{err: err}) }

// Met records a fault that ends after faultFor unless it is met again.
func (h *health) Met(name string, err error) {
	h.set(name, fault{err: err, until: time.Now().Add(faultFor)})
}

func (h *health) set(name string, f fault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f.err == nil {
		delete(h.faults, name)
		return
	}
	if h.faults == nil {
		h.faults = map[string]fault{}
	}
	h.faults[name] = f
}

// Err joins all faults, or is nil if there are none.
func (h *health) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for name, f := range h.faults {
		if f.until.IsZero() || time.Now().Before(f.until) {
			errs = append(errs, fmt.Errorf("%s: %w", name, f.err))
		}
	}
	return errors.Join(errs...)
}
