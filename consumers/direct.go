package consumers

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// directPatience is how long a slot waits for its lane: longer than an acceptance takes, and
// shorter than anybody should wait for that slot if the database does not answer.
const directPatience = 250 * time.Millisecond

// direct hands deliveries to slots that wait for a message. These deliveries have none:
// nobody delivers them again.
type direct struct {
	free     chan *turn
	patience time.Duration // directPatience if zero
}

func newDirect() *direct { return &direct{free: make(chan *turn)} }

// take takes a slot that waits, if there is one. The caller has to give it one delivery or to
// let it go.
func (d *direct) take() (*turn, bool) {
	t := &turn{work: make(chan delivery, 1), patience: cmp.Or(d.patience, directPatience)}
	select {
	case d.free <- t:
		return t, true
	default:
		return nil, false
	}
}

// turns is what a slot receives from; nil never brings anything.
func (d *direct) turns() <-chan *turn {
	if d == nil {
		return nil
	}
	return d.free
}

// turn is a slot that waits for a delivery.
type turn struct {
	work     chan delivery
	patience time.Duration

	mu   sync.Mutex
	over bool // the slot has its delivery, was let go or has left
}

// give hands the slot its delivery. It returns false if the slot has left.
func (t *turn) give(d delivery) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return false
	}
	t.over = true
	t.work <- d
	return true
}

// letGo tells the slot that there is nothing for it, unless it has left.
func (t *turn) letGo() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.over {
		t.over = true
		close(t.work)
	}
}

// wait waits for the slot's delivery, for a while.
func (t *turn) wait(stopping <-chan struct{}) (d delivery, comes bool) {
	timer := time.NewTimer(t.patience)
	defer timer.Stop()
	select {
	case d, comes = <-t.work:
		return d, comes
	case <-timer.C:
	case <-stopping:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.over {
		t.over = true
		return delivery{}, false
	}
	d, comes = <-t.work // it came in this moment
	return d, comes
}

// direct handles a delivery that this worker hands to the slot, if there comes one.
func (r *runner) direct(ctx, work context.Context, b binding, t *turn) {
	d, comes := t.wait(ctx.Done())
	if !comes {
		return
	}
	d.Stopping = ctx.Done()
	began := time.Now()
	if err := r.guard(d, func() error { return b.Handler.Handle(work, d) }); err != nil {
		r.Health.Met("handler "+b.Consumer, err)
		r.Log.Warn("delivery.failed", "subject", d.Subject, "error", err) // its lane is woken again when the lease ends
		r.Liveness.Doubt()
		return
	}
	r.Health.Set("handler "+b.Consumer, nil)
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
