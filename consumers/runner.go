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

	"github.com/jetpost/jetpost/store"
)

const (
	// heartbeats is how many heartbeats a delivery gives in the time after
	// which the server would take it for lost, and give it to somebody else.
	heartbeats = 3
	// nextAgain is when a message that has not come is asked for a second time.
	nextAgain = time.Second
	// ackTimeout bounds one confirmed acknowledgement.
	ackTimeout = 5 * time.Second
	// stallMin and stallMax bound the wait before what could not be done is tried
	// again: a delivery that was given back, a subscription, a call of the ledger.
	// It doubles in between.
	stallMin = 250 * time.Millisecond
	stallMax = 5 * time.Second
	// stallDoublings keeps the doubling from overflowing.
	stallDoublings = 10
	// DefaultStopGrace is how long a stop waits for calls in flight. It is
	// longer than any one call to X.
	DefaultStopGrace = 30 * time.Second
)

// Delivery is one message, as a handler sees it.
type Delivery struct {
	Subject  string
	Data     []byte
	Sequence uint64    // place in its stream
	Stored   time.Time // when the stream took it
	// Stopping is closed when the worker is asked to stop: a handler then
	// finishes the call in flight and begins no other.
	Stopping <-chan struct{}
}

func (d Delivery) stopping() bool {
	select {
	case <-d.Stopping:
		return true
	default:
		return false
	}
}

// Handler handles a delivery. Nil says that all of it is done: only then is it
// acknowledged. A *SetAsideError sets it aside; any other error, and a panic,
// gives it back, to be handled again here or elsewhere.
//
// It must be safe for concurrent use and must return soon after its context ends.
type Handler interface {
	Handle(ctx context.Context, d Delivery) error
}

// SetAsideError says that a delivery will never be handled, and why not. What it
// stands for is kept elsewhere: the Runner drops it as the hint that it is.
type SetAsideError struct{ Err error }

func (e *SetAsideError) Error() string { return "set aside: " + e.Err.Error() }

func (e *SetAsideError) Unwrap() error { return e.Err }

// BatchHandler handles the deliveries of one partition, in the order of the stream,
// as the holder of its lease. It returns how many of them, from the first on, are
// done: those are acknowledged, the others given back, with an error or without. Of
// those that are done a *waiting names some that are kept, to be handled again.
//
// It must return soon after its context ends.
type BatchHandler interface {
	HandleBatch(ctx context.Context, lease store.Lease, batch []Delivery) (done int, err error)
}

// Binding ties a consumer that exists on the server to its handler.
type Binding struct {
	Stream, Consumer string
	// Slots is how many deliveries are handled at once.
	Slots   int
	Handler Handler
	// Batch is set, in place of Slots and Handler, for a partition: one worker at a
	// time reads it, many deliveries at once.
	Batch BatchHandler
}

// Runner takes deliveries, one a slot, and acknowledges them: nothing else
// does. A message is asked for only when a slot is free, since one that waits
// in a buffer of ours would outlive its AckWait there.
type Runner struct {
	JetStream jetstream.JetStream
	Bindings  []Binding
	// Leases says which worker reads a partition; Worker is this one.
	Leases leaseLedger
	Worker string
	// Liveness may be nil, where nothing is asked whether it answers.
	Liveness *Liveness
	Health   *Health
	Log      *slog.Logger
	// StopGrace is DefaultStopGrace where zero.
	StopGrace time.Duration
}

// Run works until the context ends, then lets every delivery in flight finish,
// for StopGrace at most. It returns an error if a consumer cannot be bound.
func (r *Runner) Run(ctx context.Context) error {
	var consumers []jetstream.Consumer
	for _, b := range r.Bindings {
		c, err := r.JetStream.Consumer(ctx, b.Stream, b.Consumer)
		if ctx.Err() != nil {
			return nil // it was asked to stop before it began
		}
		if err != nil {
			return fmt.Errorf("bind consumer %s of %s: %w", b.Consumer, b.Stream, err)
		}
		consumers = append(consumers, c)
	}
	// Work outlives the request to stop by the grace period, and no longer.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	grace := r.StopGrace
	if grace == 0 {
		grace = DefaultStopGrace
	}
	stopTimer := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	defer stopTimer()

	if r.Liveness == nil {
		r.Liveness = &Liveness{}
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

// slot takes one message after the other until ctx ends, while everything answers.
// A consumer whose subscription breaks is subscribed again.
func (r *Runner) slot(ctx, work context.Context, c jetstream.Consumer, b Binding) {
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
		pause(ctx, wait)
		wait = min(2*wait, stallMax)
	}
}

// pull handles messages until the subscription ends, or beat.
func (r *Runner) pull(beat, ctx, work context.Context, c jetstream.Consumer, b Binding) error {
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
	// Drain, not Stop: a message that is already on its way is still handled, or
	// given back, where a dropped one would block its account until AckWait ends.
	defer context.AfterFunc(ctx, iter.Drain)()
	defer context.AfterFunc(beat, iter.Drain)()
	for {
		msg, err := next(iter)
		if err != nil {
			return fmt.Errorf("pull: %w", err)
		}
		if beat.Err() != nil && ctx.Err() == nil {
			r.nak(msg, 0)
			continue
		}
		r.deliver(beat, ctx, work, b, msg, info.Config.AckWait)
		if ctx.Err() != nil {
			return nil // nothing is on its way; asking again could bring something
		}
	}
}

// next waits for a message, as long as it takes. The client asks the server for one
// when Next begins, but not while it is still busy with the request before, which a
// short handler can outrun on a busy machine: a second look asks for what the first
// one did not.
func next(iter jetstream.MessagesContext) (jetstream.Msg, error) {
	msg, err := iter.Next(jetstream.NextMaxWait(nextAgain))
	if errors.Is(err, nats.ErrTimeout) {
		msg, err = iter.Next()
	}
	return msg, err //nolint:wrapcheck // the caller says what it did
}

// deliver handles one message to its end and acknowledges it.
func (r *Runner) deliver(beat, ctx, work context.Context, b Binding, msg jetstream.Msg, ackWait time.Duration) {
	d, meta, err := delivery(ctx, msg)
	if err != nil {
		r.Log.Error("delivery.unreadable", "subject", msg.Subject(), "error", err)
		return
	}
	stopBeat := r.heartbeat(beat, work, msg, ackWait/heartbeats)
	defer stopBeat()

	began := time.Now()
	err = r.guard(d, func() error { return b.Handler.Handle(work, d) })
	var aside *SetAsideError
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

// delivery is a message as handlers see it.
func delivery(stopping context.Context, msg jetstream.Msg) (Delivery, *jetstream.MsgMetadata, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return Delivery{}, nil, fmt.Errorf("read metadata: %w", err)
	}
	return Delivery{
		Subject: msg.Subject(), Data: msg.Data(),
		Sequence: meta.Sequence.Stream, Stored: meta.Timestamp.UTC(), Stopping: stopping.Done(),
	}, meta, nil
}

// guard makes an error of a panic, so that the message is not lost, and is loud.
func (r *Runner) guard(d Delivery, do func() error) error { return guard(r.Log, d, do) }

func guard(log *slog.Logger, d Delivery, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("delivery.panic", "subject", d.Subject, "sequence", d.Sequence, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("handler panicked: %v", p)
		}
	}()
	return do()
}

// giveBack has the server deliver the message again: after a wait that grows, or at
// once to somebody else where this worker stops.
func (r *Runner) giveBack(ctx context.Context, msg jetstream.Msg, b Binding, d Delivery, cause error, deliveries uint64) {
	r.Health.Met("handler "+b.Consumer, cause)
	wait := min(stallMin<<min(deliveries-1, stallDoublings), stallMax)
	if ctx.Err() != nil {
		wait = 0
	}
	r.Log.Warn("delivery.given_back", "subject", d.Subject, "sequence", d.Sequence, "delivery", deliveries, "error", cause, "again_in", wait)
	r.nak(msg, wait)
}

// nak has the server deliver the message again after a wait.
func (r *Runner) nak(msg jetstream.Msg, wait time.Duration) {
	if err := msg.NakWithDelay(wait); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		r.Log.Warn("delivery.nak_failed", "subject", msg.Subject(), "error", err) // AckWait ends it
	}
}

func (r *Runner) ack(ctx context.Context, msg jetstream.Msg, b Binding, d Delivery, deliveries uint64, took time.Duration) {
	r.Health.Set("handler "+b.Consumer, nil)
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	// Confirmed by the server: an acknowledgement lost on the way would bring
	// the message again. That would do no harm, but cost a look.
	err := msg.DoubleAck(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) && !errors.Is(err, nats.ErrConnectionClosed) {
		r.Log.Warn("delivery.ack_failed", "subject", d.Subject, "sequence", d.Sequence, "error", err)
	}
	r.Log.Debug("delivery.done", "consumer", b.Consumer, "subject", d.Subject, "sequence", d.Sequence,
		"delivery", deliveries, "duration", took)
}

// heartbeat tells the server that the message is at work until stop is called. What
// cannot be worked on is given back meanwhile: whoever has it then finds out by the
// ledger whether it still is.
func (r *Runner) heartbeat(beat, ctx context.Context, msg jetstream.Msg, interval time.Duration) (stop func()) {
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
				r.Log.Warn("delivery.given_back", "subject", msg.Subject(), "error", "the worker cannot work")
				r.nak(msg, 0)
				return
			case <-every.C:
				// A lost heartbeat at worst brings a second delivery, which
				// finds the lane taken.
				if err := msg.InProgress(); err != nil {
					r.Log.Debug("delivery.heartbeat_failed", "subject", msg.Subject(), "error", err)
				}
			}
		}
	})
	return func() { cancel(); done.Wait() }
}

// pause waits, or returns early when the context ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// faultFor is how long a fault is told that only its absence ends: what a handler
// failed on may be in other hands.
const faultFor = 15 * time.Second

// Health collects what is wrong right now, by name. The zero value is healthy.
type Health struct {
	mu     sync.Mutex
	faults map[string]fault
}

type fault struct {
	err   error
	until time.Time // zero: until it is ended
}

// Set records a fault, or with nil its end.
func (h *Health) Set(name string, err error) { h.set(name, fault{err: err}) }

// Met records a fault that is over if it is not met again.
func (h *Health) Met(name string, err error) {
	h.set(name, fault{err: err, until: time.Now().Add(faultFor)})
}

func (h *Health) set(name string, f fault) {
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

// Err joins every fault, or is nil where there is none.
func (h *Health) Err() error {
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
