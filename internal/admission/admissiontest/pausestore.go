// Package admissiontest has helpers for tests of admission.
package admissiontest

import (
	"context"
	"sync"
	"time"

	"github.com/jetpost/jetpost/publishers"
)

// PauseStore is an admission.PauseStore in memory, for one target.
type PauseStore struct {
	mu       sync.Mutex
	revision uint64
	// Pause is the stored pause. Its target is empty if there is none.
	Pause publishers.Pause
	// OnSet runs before Set returns, and OnProbe instead of a probe. An error fails the
	// call.
	OnSet, OnProbe func() error
	// Watch is called with each change.
	Watch func(publishers.Pauses)
}

// Set does what Set of publishers.AppPauses does.
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

// Probe does what Probe of publishers.AppPauses does.
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

// End does what End of publishers.AppPauses does.
func (b *PauseStore) End(_ context.Context, pause publishers.Pause) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if pause.Revision != b.Pause.Revision {
		return false, nil
	}
	b.Put(publishers.Pause{})
	return true, nil
}

// Put stores a pause. A pause without a target ends the stored one.
func (b *PauseStore) Put(pause publishers.Pause) {
	b.revision++
	if b.Pause = pause; pause.Target != "" {
		b.Pause.Revision = b.revision
	}
	if b.Watch != nil {
		b.Watch(b.Snapshot())
	}
}

// Snapshot is what a watch shows now.
func (b *PauseStore) Snapshot() publishers.Pauses {
	p := publishers.Pauses{Revision: b.revision}
	if b.Pause.Target != "" {
		p.Pauses = []publishers.Pause{b.Pause}
	}
	return p
}

// Clear ends the pause, as a person who resumes the app does.
func (b *PauseStore) Clear() publishers.Pauses {
	b.Put(publishers.Pause{})
	return b.Snapshot()
}
