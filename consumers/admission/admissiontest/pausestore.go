// Package admissiontest has what tests of admission need.
package admissiontest

import (
	"context"
	"sync"
	"time"

	"github.com/jetpost/jetpost/publishers"
)

// PauseStore is an admission.PauseStore in memory, of one scope. It tells nobody else.
type PauseStore struct {
	mu       sync.Mutex
	revision uint64
	// Pause is the one on record, without a scope where there is none.
	Pause publishers.Pause
	// OnSet comes before the answer to Set, and OnProbe before that to Probe. They may
	// fail it.
	OnSet, OnProbe func() error
	// Watch learns of each change, as all workers do.
	Watch func(publishers.Pauses)
}

// Set is that of publishers.AppPauses.
func (b *PauseStore) Set(_ context.Context, pause publishers.Pause) (publishers.Pause, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next, changed := pause.Upon(b.Pause)
	if changed {
		b.Put(next)
	}
	if b.OnSet != nil {
		if err := b.OnSet(); err != nil {
			return publishers.Pause{}, false, err
		}
	}
	return b.Pause, changed, nil
}

// Probe is that of publishers.AppPauses.
func (b *PauseStore) Probe(_ context.Context, _, worker string, now, until time.Time) (publishers.Pause, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.OnProbe != nil {
		return publishers.Pause{}, false, b.OnProbe()
	}
	if !b.Pause.Due(now) {
		return b.Pause, false, nil
	}
	claimed := b.Pause
	claimed.Worker, claimed.NextProbeAt = worker, until
	b.Put(claimed)
	return b.Pause, true, nil
}

// End is that of publishers.AppPauses.
func (b *PauseStore) End(_ context.Context, pause publishers.Pause) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if pause.Revision != b.Pause.Revision {
		return false, nil
	}
	b.Put(publishers.Pause{})
	return true, nil
}

// Put puts a stop on record; without a scope it ends the one that is there.
func (b *PauseStore) Put(pause publishers.Pause) {
	b.revision++
	if b.Pause = pause; pause.Target != "" {
		b.Pause.Revision = b.revision
	}
	if b.Watch != nil {
		b.Watch(b.Picture())
	}
}

// Pauses is what a watch shows now.
func (b *PauseStore) Picture() publishers.Pauses {
	p := publishers.Pauses{Revision: b.revision}
	if b.Pause.Target != "" {
		p.Pauses = []publishers.Pause{b.Pause}
	}
	return p
}

// Clear is a person who resumes.
func (b *PauseStore) Clear() publishers.Pauses {
	b.Put(publishers.Pause{})
	return b.Picture()
}
