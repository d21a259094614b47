package consumers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

const (
	// batchJobs and batchBytes bound what is accepted in one transaction, and what a
	// worker buffers for the next one.
	batchJobs  = 256
	batchBytes = 4 << 20
	// waitingBytes bounds the jobs that a partition keeps in memory while the object store
	// does not answer, so that later jobs go on. The consumer bounds their number
	// (MaxAckPending).
	waitingBytes = 16 << 20
	// pullExpiry is how long one pull request for jobs lasts. If a worker dies and the
	// server does not notice, the server sends jobs to it until then.
	pullExpiry = 5 * time.Second
	// gapWait is how often a worker checks whether an earlier delivery, which another
	// worker has, has come back.
	gapWait = 100 * time.Millisecond
	// leaseFor is the length of a lease of a partition. leaseEvery is how often a worker
	// renews its leases and takes free ones.
	leaseFor   = 6 * time.Second
	leaseEvery = 1500 * time.Millisecond
	// leaseWithin bounds one ledger call about leases.
	leaseWithin = 3 * time.Second
)

// leaseLedger holds the ledger calls about leases of partitions.
type leaseLedger interface {
	TakeLeases(ctx context.Context, names []string, owner string, d time.Duration, now time.Time) ([]store.Lease, error)
	DropLeases(ctx context.Context, names []string, owner string, now time.Time) error
}

// leases holds a worker's leases of partitions, as long as its dependencies answer.
type leases struct {
	r     *runner
	names []string

	mu      sync.Mutex
	held    map[string]heldLease
	changed chan struct{} // closed when a lease is won
}

// heldLease is a lease, and a context that ends with it.
type heldLease struct {
	store.Lease
	ctx context.Context
	end context.CancelFunc
}

func newLeases(r *runner) *leases {
	l := &leases{r: r, held: map[string]heldLease{}, changed: make(chan struct{})}
	for _, b := range r.Bindings {
		if b.Batch != nil {
			l.names = append(l.names, b.Consumer)
		}
	}
	return l
}

// hold waits for the lease of that name. It returns false if ctx ends first.
func (l *leases) hold(ctx context.Context, name string) (heldLease, bool) {
	for {
		l.mu.Lock()
		held, ok := l.held[name]
		changed := l.changed
		l.mu.Unlock()
		if ok {
			return held, ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return heldLease{}, false
		case <-changed:
		}
	}
}

// run takes leases and renews them until ctx ends. Then it drops them.
func (l *leases) run(ctx context.Context) {
	if len(l.names) == 0 {
		return
	}
	every := time.NewTicker(leaseEvery)
	defer every.Stop()
	defer l.drop(ctx)
	renewed := time.Now()
	for {
		beat, ok := l.r.Liveness.Beat(ctx)
		if !ok {
			return
		}
		asked := time.Now()
		if err := l.renew(beat); err == nil {
			renewed = asked
		} else {
			l.r.Log.Warn("leases.not_renewed", "error", err)
			l.r.Liveness.Doubt()
		}
		if time.Since(renewed) > leaseFor { // other workers have them
			l.set(ctx, nil)
		}
		select {
		case <-ctx.Done():
			return
		case <-beat.Done():
			l.drop(ctx)
		case <-every.C:
		}
	}
}

func (l *leases) renew(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, leaseWithin)
	defer cancel()
	held, err := l.r.Leases.TakeLeases(bounded, l.names, l.r.Worker, leaseFor, time.Now())
	if err == nil {
		l.set(ctx, held)
	}
	return err
}

// set ends the leases that are no longer held, and publishes the new ones to hold.
func (l *leases) set(ctx context.Context, now []store.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, held := range l.held {
		if !slices.Contains(now, held.Lease) {
			held.end()
			delete(l.held, name)
			l.r.Log.Debug("partition.lost", "partition", name)
		}
	}
	for _, lease := range now {
		if _, known := l.held[lease.Name]; known {
			continue
		}
		lasting, end := context.WithCancel(ctx)
		l.held[lease.Name] = heldLease{lease, lasting, end}
		close(l.changed)
		l.changed = make(chan struct{})
		l.r.Log.Debug("partition.taken", "partition", lease.Name, "fence", lease.Fence)
	}
}

// drop gives up all leases, so that other workers need not wait until they expire.
func (l *leases) drop(ctx context.Context) {
	l.set(ctx, nil)
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseWithin)
	defer cancel()
	if err := l.r.Leases.DropLeases(bounded, l.names, l.r.Worker, time.Now()); err != nil {
		l.r.Log.Debug("leases.not_dropped", "error", err)
	}
}

// partition reads one partition of a stream while this worker has its lease. It handles the
// deliveries strictly in order.
type partition struct {
	r        *runner
	leases   *leases
	consumer jetstream.Consumer
	b        binding
}

func (p *partition) run(ctx context.Context) {
	wait := stallMin
	for {
		lease, ok := p.leases.hold(ctx, p.b.Consumer)
		if !ok {
			return
		}
		err := p.read(ctx, lease)
		if ctx.Err() != nil {
			return
		}
		if lease.ctx.Err() != nil {
			p.leaseLost()
			wait = stallMin
			continue
		}
		p.r.Health.Set("nats "+p.b.Stream+"/"+p.b.Consumer, err)
		context.AfterFunc(lease.ctx, p.leaseLost)
		p.r.Log.Warn("consumer.lost", "consumer", p.b.Consumer, "error", err, "retry_in", wait)
		sleepContext(ctx, wait)
		wait = min(2*wait, stallMax)
	}
}

// leaseLost clears the faults of the partition after the lease was lost. The worker that has
// the lease now reports its own.
func (p *partition) leaseLost() {
	p.r.Health.Set("nats "+p.b.Stream+"/"+p.b.Consumer, nil)
	p.r.Health.Set("handler "+p.b.Consumer, nil)
}

// read handles deliveries until the lease, ctx or the subscription ends. It then gives back
// those that it holds.
func (p *partition) read(ctx context.Context, lease heldLease) error {
	stream, err := p.r.JetStream.Stream(ctx, p.b.Stream)
	if err != nil {
		return fmt.Errorf("find stream: %w", err)
	}
	h := &hand{consumer: p.consumer, stream: stream, held: map[uint64]*card{}}
	if err := h.begin(ctx); err != nil {
		return err
	}
	if err := p.clear(ctx, lease, h); err != nil {
		return err
	}
	p.r.Health.Set("nats "+p.b.Stream+"/"+p.b.Consumer, nil)
	iter, err := p.consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(batchJobs, max(batchBytes, maxMessage(stream))),
		jetstream.PullExpiry(pullExpiry), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	defer iter.Stop()
	defer context.AfterFunc(ctx, iter.Drain)()
	defer context.AfterFunc(lease.ctx, iter.Drain)()
	in := newInlet(iter)
	defer func() { // give back what is in hand and what the drain still delivers
		iter.Drain()
		for _, c := range h.held {
			p.r.nak(c.msg, 0)
		}
		for {
			<-in.there
			messages, err := in.get(math.MaxInt, math.MaxInt)
			for _, msg := range messages {
				p.r.nak(msg, 0)
			}
			if err != nil {
				return
			}
		}
	}()
	wait := gapWait
	for {
		if err := h.fill(in, wait); err != nil {
			return err
		}
		settled, err := p.settle(ctx, lease, h)
		if err != nil {
			return err
		}
		if wait = gapWait; settled { // the rest of the hand may be ready, too
			wait = 0
		}
	}
}

// clear handles and removes messages that were acknowledged and are still in the stream: a
// server whose disk is full counts an acknowledgement, cannot remove the message, and never
// delivers it again. Such a message was already accepted, unless the server lost more data.
func (p *partition) clear(ctx context.Context, lease heldLease, h *hand) error {
	for {
		msg, err := h.stream.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(h.subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && msg.Sequence > h.floor {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read leftover messages: %w", err)
		}
		left := delivery{Subject: msg.Subject, Data: msg.Data, Sequence: msg.Sequence, Stored: msg.Time.UTC(), Trace: msg.Header.Get(publishers.HeaderTrace), Stopping: ctx.Done()}
		if done, err := p.handle(lease, []delivery{left}); done == 0 || err != nil {
			return fmt.Errorf("handle leftover message: %w", err)
		}
		p.r.Log.Warn("delivery.left", "subject", msg.Subject, "sequence", msg.Sequence)
		if err := h.stream.DeleteMsg(ctx, msg.Sequence); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			return fmt.Errorf("remove leftover message: %w", err)
		}
	}
}

// maxMessage is the largest size of a message of the stream with its headers, in bytes.
func maxMessage(stream jetstream.Stream) int { return 2 * int(stream.CachedInfo().Config.MaxMsgSize) }

// settle handles the deliveries in hand that are ready.
func (p *partition) settle(ctx context.Context, lease heldLease, h *hand) (settled bool, err error) {
	ready, err := h.ready(lease.ctx)
	if err != nil || len(ready) == 0 {
		return false, err
	}
	batch := make([]delivery, len(ready))
	for i, c := range ready {
		batch[i], _, _ = readDelivery(ctx, c.msg) // take has already checked the metadata
	}
	began := time.Now()
	done, err := p.handle(lease, batch)
	var waits *waiting
	health := err
	if errors.As(err, &waits) {
		err = waits.failure
	}
	finished, kept := p.keep(h, ready[:done], waits)
	h.drop(finished)
	h.drop(ready[done:])
	p.ack(lease.ctx, finished, h)
	p.r.Log.Debug("batch.done", "consumer", p.b.Consumer, "jobs", len(batch), "done", len(finished), "duration", time.Since(began))
	if done == len(ready) {
		p.r.Health.Set("handler "+p.b.Consumer, health)
		if !kept {
			sleepContext(lease.ctx, stallMin)
		}
		return true, nil
	}
	h.next = 0
	for _, c := range ready[done:] {
		p.r.nak(c.msg, 0)
	}
	if err == nil { // the budget of the batch was used up
		return true, nil
	}
	p.r.Health.Set("handler "+p.b.Consumer, health)
	p.r.Log.Warn("batch.given_back", "consumer", p.b.Consumer, "jobs", len(batch)-done, "sequence", batch[done].Sequence, "error", err)
	p.r.Liveness.Doubt()
	sleepContext(lease.ctx, stallMin)
	return false, nil
}

// keep leaves the deliveries in hand that wait for the object store, and returns the others.
// If the waiting ones need too much memory, it gives them back and returns false.
func (p *partition) keep(h *hand, cards []*card, waits *waiting) (finished []*card, kept bool) {
	var held []*card
	bytes := 0
	for _, c := range cards {
		if c.waits = waits.has(c.sequence); !c.waits {
			finished = append(finished, c)
			continue
		}
		held, bytes = append(held, c), bytes+c.bytes
	}
	switch {
	case len(held) == 0:
	case bytes > waitingBytes:
		h.next = 0
		h.drop(held)
		for _, c := range held {
			p.r.nak(c.msg, 0)
		}
		return finished, false
	case !h.again.Equal(waits.away.until):
		h.again = waits.away.until
		p.r.Log.Warn("batch.waits", "consumer", p.b.Consumer, "error", waits)
		for _, c := range held {
			_ = c.msg.InProgress() // if this is lost, the message is only delivered again
		}
	}
	return finished, true
}

// handle calls the handler. If it panics, the whole batch is given back.
func (p *partition) handle(lease heldLease, batch []delivery) (done int, err error) {
	err = p.r.guard(batch[0], func() error {
		done, err = p.b.Batch.HandleBatch(lease.ctx, lease.Lease, batch)
		return err
	})
	return done, err
}

// ack acknowledges deliveries. The server processes the acknowledgements of one connection
// in order, so its answer to the last one confirms all of them.
func (p *partition) ack(ctx context.Context, done []*card, h *hand) {
	for i, c := range done {
		var err error
		if i < len(done)-1 {
			err = c.msg.Ack()
		} else {
			bounded, cancel := context.WithTimeout(ctx, ackTimeout)
			err = c.msg.DoubleAck(bounded)
			cancel()
		}
		if err != nil {
			h.next = 0 // it is delivered again, and then recognised
			p.r.Log.Warn("delivery.ack_failed", "subject", c.msg.Subject(), "sequence", c.sequence, "error", err)
		}
	}
}

// inlet buffers the messages of a subscription while a batch is handled.
type inlet struct {
	there chan struct{} // signals a message or the end

	mu    sync.Mutex
	room  sync.Cond
	queue []jetstream.Msg
	bytes int
	err   error // why the subscription has ended
}

func newInlet(iter jetstream.MessagesContext) *inlet {
	in := &inlet{there: make(chan struct{}, 1)}
	in.room.L = &in.mu
	go func() {
		for {
			msg, err := next(iter)
			if err != nil {
				err = fmt.Errorf("pull: %w", err)
			}
			if in.put(msg, err); err != nil {
				return
			}
		}
	}()
	return in
}

func (in *inlet) put(msg jetstream.Msg, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err != nil {
		in.err = err
	} else {
		for in.bytes >= batchBytes {
			in.room.Wait()
		}
		in.queue = append(in.queue, msg)
		in.bytes += len(msg.Data())
	}
	select {
	case in.there <- struct{}{}:
	default:
	}
}

// get takes messages up to the given number and bytes, but at least one if there is any. It
// returns the error of the subscription after the last message.
func (in *inlet) get(messages, bytes int) (out []jetstream.Msg, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.queue) > 0 && len(out) < messages && (len(out) == 0 || bytes > 0) {
		msg := in.queue[0]
		in.queue = in.queue[1:]
		in.bytes -= len(msg.Data())
		bytes -= len(msg.Data())
		out = append(out, msg)
	}
	in.room.Signal()
	if len(in.queue) > 0 || in.err != nil {
		select { // for the next call
		case in.there <- struct{}{}:
		default:
		}
	}
	if len(out) == 0 {
		return nil, in.err
	}
	return out, nil
}

// card is a delivery in hand.
type card struct {
	msg      jetstream.Msg
	sequence uint64 // in the stream
	bytes    int
	waits    bool // for the object store
}

// hand holds deliveries until no earlier one is outstanding. An outstanding delivery was
// given back, or a worker that lost the lease has it.
type hand struct {
	consumer jetstream.Consumer
	stream   jetstream.Stream
	held     map[uint64]*card // by sequence; a redelivery replaces the earlier delivery
	// next is the consumer sequence of the next delivery if no earlier delivery is
	// outstanding and no other worker gets one; 0 if that is unknown.
	next uint64
	// floor is the stream sequence up to which everything was acknowledged when reading
	// began, and subject the filter subject of the consumer.
	floor   uint64
	subject string
	again   time.Time // when the waiting deliveries may be tried again
}

// begin finds out whether all deliveries so far are acknowledged.
func (h *hand) begin(ctx context.Context) error {
	info, err := h.consumer.Info(ctx)
	if err != nil {
		return fmt.Errorf("find consumer: %w", err)
	}
	h.floor, h.subject = info.AckFloor.Stream, info.Config.FilterSubject
	if info.NumAckPending == 0 {
		h.next = info.Delivered.Consumer + 1
	}
	return nil
}

// fill waits for deliveries and takes up to one batch of them. If some are already in hand,
// it waits no longer than wait. If earlier deliveries may be outstanding, it takes all,
// because those may follow.
func (h *hand) fill(in *inlet, wait time.Duration) error {
	var timeout <-chan time.Time
	if len(h.held) > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-in.there:
	case <-timeout:
	}
	messages, bytes := batchJobs, batchBytes
	if h.next == 0 {
		messages, bytes = math.MaxInt, math.MaxInt
	}
	taken, err := in.get(messages, bytes)
	for _, msg := range taken {
		h.take(msg)
	}
	return err
}

func (h *hand) take(msg jetstream.Msg) {
	meta, err := msg.Metadata()
	if err != nil { // not a JetStream message
		return
	}
	switch {
	case h.next == 0:
	case meta.Sequence.Consumer == h.next && meta.NumDelivered == 1:
		h.next++
	default:
		h.next = 0
	}
	h.held[meta.Sequence.Stream] = &card{msg: msg, sequence: meta.Sequence.Stream, bytes: len(msg.Data())}
}

func (h *hand) drop(cards []*card) {
	for _, c := range cards {
		delete(h.held, c.sequence)
	}
}

// ready returns the deliveries that may be handled now, in the order of the stream. It
// includes the waiting ones, which do not count towards the size of the batch, so that the
// jobs of their accounts stay in order.
func (h *hand) ready(ctx context.Context) ([]*card, error) {
	cards := slices.SortedFunc(maps.Values(h.held), func(a, b *card) int { return int(a.sequence) - int(b.sequence) })
	if h.next == 0 {
		var err error
		if cards, err = h.sure(ctx, cards); err != nil {
			return nil, err
		}
	}
	jobs, bytes := 0, 0
	for i, c := range cards {
		if c.waits {
			continue
		}
		if jobs, bytes = jobs+1, bytes+c.bytes; jobs > batchJobs || jobs > 1 && bytes > batchBytes {
			return cards[:i], nil
		}
	}
	if jobs == 0 && time.Now().Before(h.again) {
		return nil, nil
	}
	return cards, nil
}

// sure returns the cards before the first gap: a message of the partition that is in the
// stream and not in the hand. Another worker has it and may give it back. It drops cards
// whose message is no longer in the stream, because those are done.
func (h *hand) sure(ctx context.Context, cards []*card) ([]*card, error) {
	info, err := h.consumer.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("find consumer: %w", err)
	}
	from := h.floor + 1
	for i := 0; i < len(cards); {
		first, err := h.stream.GetMsg(ctx, from, jetstream.WithGetMsgSubject(info.Config.FilterSubject))
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			h.drop(cards[i:])
			return cards[:i], nil
		case err != nil:
			return nil, fmt.Errorf("read earlier messages: %w", err)
		case first.Sequence > cards[i].sequence:
			h.drop(cards[i : i+1])
			cards = slices.Delete(cards, i, i+1)
			continue
		case first.Sequence < cards[i].sequence:
			return cards[:i], nil
		}
		from = first.Sequence + 1
		i++
	}
	if len(cards) > 0 && info.Delivered.Stream <= cards[len(cards)-1].sequence {
		h.next = info.Delivered.Consumer + 1 // no other delivery is outstanding
	}
	return cards, nil
}
