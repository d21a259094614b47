// Package admissiontest has what tests of admission need.
package admissiontest

import (
	"context"
	"sync"
	"time"

	"github.com/jetpost/jetpost/publishers"
)

// Board is an admission.Board in memory, of one scope. It tells nobody else.
type Board struct {
	mu       sync.Mutex
	revision uint64
	// Stop is the one on record, without a scope where there is none.
	Stop publishers.Stop
	// OnSet comes before the answer to Set, and OnProbe before that to Probe. They may
	// fail it.
	OnSet, OnProbe func() error
	// Watch learns of each change, as all workers do.
	Watch func(publishers.Picture)
}

// Set is that of publishers.Stops.
func (b *Board) Set(_ context.Context, stop publishers.Stop) (publishers.Stop, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next, changed := stop.Upon(b.Stop)
	if changed {
		b.Put(next)
	}
	if b.OnSet != nil {
		if err := b.OnSet(); err != nil {
			return publishers.Stop{}, false, err
		}
	}
	return b.Stop, changed, nil
}

// Probe is that of publishers.Stops.
func (b *Board) Probe(_ context.Context, _, worker string, now, until time.Time) (publishers.Stop, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.OnProbe != nil {
		return publishers.Stop{}, false, b.OnProbe()
	}
	if !b.Stop.Due(now) {
		return b.Stop, false, nil
	}
	claimed := b.Stop
	claimed.Worker, claimed.NextProbeAt = worker, until
	b.Put(claimed)
	return b.Stop, true, nil
}

// End is that of publishers.Stops.
func (b *Board) End(_ context.Context, stop publishers.Stop) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if stop.Revision != b.Stop.Revision {
		return false, nil
	}
	b.Put(publishers.Stop{})
	return true, nil
}

// Put puts a stop on record; without a scope it ends the one that is there.
func (b *Board) Put(stop publishers.Stop) {
	b.revision++
	if b.Stop = stop; stop.Scope != "" {
		b.Stop.Revision = b.revision
	}
	if b.Watch != nil {
		b.Watch(b.Picture())
	}
}

// Picture is what a watch shows now.
func (b *Board) Picture() publishers.Picture {
	p := publishers.Picture{Revision: b.revision}
	if b.Stop.Scope != "" {
		p.Stops = []publishers.Stop{b.Stop}
	}
	return p
}

// Clear is a person who resumes.
func (b *Board) Clear() publishers.Picture {
	b.Put(publishers.Stop{})
	return b.Picture()
}
