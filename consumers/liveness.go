package consumers

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/jetpost/jetpost/store"
)

const (
	// probeEvery is how often a worker checks that its dependencies answer, and
	// probeWithin how long it waits for an answer. Together with giving back what the
	// worker holds they stay below 10 s.
	probeEvery  = 2 * time.Second
	probeWithin = 3 * time.Second
	// probeAgain is how often it checks while a dependency does not answer.
	probeAgain = 500 * time.Millisecond
)

// liveness checks that the dependencies of a worker answer. While one does not, the worker
// takes no messages and gives back those that it holds, so that other workers get them.
type liveness struct {
	// Answer returns an error if the database or NATS does not answer. If Answer is nil,
	// nothing is checked.
	Answer func(context.Context) error
	// Outdated is called, once, if Answer fails with a *store.SchemaError; it may be nil.
	Outdated func(error)
	Health   *health
	Log      *slog.Logger

	once    sync.Once
	doubted chan struct{}
	mu      sync.Mutex
	beat    context.Context // ends when a dependency does not answer
	end     context.CancelFunc
	changed chan struct{} // closed when all answer again
}

func (p *liveness) init(ctx context.Context) {
	p.once.Do(func() {
		p.doubted, p.changed = make(chan struct{}, 1), make(chan struct{})
		p.beat, p.end = context.WithCancel(context.WithoutCancel(ctx))
	})
}

// Beat waits until all dependencies answer. It returns a context that ends when one does
// not, and false if ctx ends first.
func (p *liveness) Beat(ctx context.Context) (context.Context, bool) {
	p.init(ctx)
	for {
		p.mu.Lock()
		beat, changed := p.beat, p.changed
		p.mu.Unlock()
		if beat.Err() == nil {
			return beat, ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return nil, false
		case <-changed:
		}
	}
}

// Doubt has the dependencies checked now, because a call has failed.
func (p *liveness) Doubt() {
	select {
	case p.doubted <- struct{}{}:
	default:
	}
}

// run checks the dependencies until the context ends.
func (p *liveness) run(ctx context.Context) {
	p.init(ctx)
	if p.Answer == nil {
		return
	}
	wait := probeEvery
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-p.doubted:
			timer.Stop()
		case <-timer.C:
		}
		bounded, cancel := context.WithTimeout(ctx, probeWithin)
		err := p.Answer(bounded)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if p.Outdated != nil && errors.As(err, new(*store.SchemaError)) {
			p.Outdated(err)
			return
		}
		if wait = probeEvery; err != nil {
			wait = probeAgain
		}
		p.set(ctx, err)
	}
}

func (p *liveness) set(ctx context.Context, err error) {
	p.Health.Set("dependencies", err)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch silent := p.beat.Err() != nil; {
	case err != nil && !silent:
		p.Log.Error("worker.silent", "error", err)
		p.end()
		p.changed = make(chan struct{})
	case err == nil && silent:
		p.Log.Info("worker.answers")
		p.beat, p.end = context.WithCancel(context.WithoutCancel(ctx))
		close(p.changed)
	}
}
