package consumers

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// direct hands deliveries to slots that wait for a message. These deliveries have none:
// nobody delivers them again.
type direct struct{ free chan chan delivery }

func newDirect() *direct { return &direct{free: make(chan chan delivery)} }

// take takes a slot that waits, if there is one. The caller must send it one delivery or
// close it.
func (d *direct) take() (slot chan<- delivery, taken bool) {
	if d == nil {
		return nil, false
	}
	work := make(chan delivery, 1)
	select {
	case d.free <- work:
		return work, true
	default:
		return nil, false
	}
}

// offers is what a slot receives from; nil never brings anything.
func (d *direct) offers() <-chan chan delivery {
	if d == nil {
		return nil
	}
	return d.free
}

// direct handles a delivery that this worker hands to the slot, if there comes one.
func (r *runner) direct(ctx, work context.Context, b binding, offered <-chan delivery) {
	d, comes := <-offered
	if !comes {
		return
	}
	d.Stopping = ctx.Done()
	began := time.Now()
	if err := r.guard(d, func() error { return b.Handler.Handle(work, d) }); err != nil {
		r.Log.Warn("delivery.failed", "subject", d.Subject, "error", err) // its lane is woken again when the lease ends
		r.Liveness.Doubt()
		return
	}
	r.Log.Debug("delivery.done", "consumer", b.Consumer, "subject", d.Subject, "direct", true, "duration", time.Since(began))
}

// feed brings the messages of a subscription, one at a time, and only when it is asked.
type feed struct {
	iter  jetstream.MessagesContext
	ask   chan struct{}
	got   chan received
	asked bool // for a message that did not come yet
}

// received is a message, or the end of the subscription.
type received struct {
	msg jetstream.Msg
	err error
}

func newFeed(iter jetstream.MessagesContext) *feed {
	f := &feed{iter: iter, ask: make(chan struct{}), got: make(chan received)}
	go func() {
		for range f.ask {
			msg, err := next(iter)
			f.got <- received{msg, err}
		}
	}()
	return f
}

// next asks for a message. The receiver has to clear asked.
func (f *feed) next() <-chan received {
	if !f.asked {
		f.asked = true
		f.ask <- struct{}{}
	}
	return f.got
}

// while calls do. A message that comes meanwhile is given back: another slot may be free for
// it.
func (f *feed) while(do func(), giveBack func(jetstream.Msg)) {
	if !f.asked {
		do()
		return
	}
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case got := <-f.got:
			f.asked = false
			if got.err == nil { // else the next one has the same error
				giveBack(got.msg)
			}
		case <-done:
		}
	})
	defer watch.Wait()
	defer close(done)
	do()
}

// end gives back a message that is still on its way.
func (f *feed) end(giveBack func(jetstream.Msg)) {
	f.iter.Drain()
	if f.asked {
		if got := <-f.got; got.err == nil {
			giveBack(got.msg)
		}
	}
	close(f.ask)
}
