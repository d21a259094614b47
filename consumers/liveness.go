package consumers

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// probeEvery is how often it is asked whether what a worker depends on answers,
	// and probeWithin for how long an answer is waited for. Together with giving
	// back what is held they stay below 10 s.
	probeEvery  = 2 * time.Second
	probeWithin = 3 * time.Second
	// probeAgain is the same while something does not answer.
	probeAgain = 500 * time.Millisecond
)

// Progress knows whether what a worker cannot work without answers. While it does not,
// the worker takes nothing, and gives back what it holds, so that others have it.
type Progress struct {
	// Answer is an error where the database or NATS gives none. Where it is nil, all do.
	Answer func(context.Context) error
	Health *Health
	Log    *slog.Logger

	once    sync.Once
	doubted chan struct{}
	mu      sync.Mutex
	beat    context.Context // ends when something no longer answers
	end     context.CancelFunc
	changed chan struct{} // closed when it does again
}

func (p *Progress) init(ctx context.Context) {
	p.once.Do(func() {
		p.doubted, p.changed = make(chan struct{}, 1), make(chan struct{})
		p.beat, p.end = context.WithCancel(context.WithoutCancel(ctx))
	})
}

// Beat waits until everything answers and returns a context that ends when it no
// longer does. It is false where ctx ends first.
func (p *Progress) Beat(ctx context.Context) (context.Context, bool) {
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

// Doubt has everything be asked now, since something has failed.
func (p *Progress) Doubt() {
	select {
	case p.doubted <- struct{}{}:
	default:
	}
}

// run asks until the context ends.
func (p *Progress) run(ctx context.Context) {
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
		if wait = probeEvery; err != nil {
			wait = probeAgain
		}
		p.set(ctx, err)
	}
}

func (p *Progress) set(ctx context.Context, err error) {
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
