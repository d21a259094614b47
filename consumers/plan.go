package consumers

import (
	"context"
	"time"

	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/publishers"
)

// Plan notes an app pause in the ledger alone, as a part of the transaction that in is of. Set
// tells it to the bucket after that; where nobody does, Mend does.
func (c *AppPauseControl) Plan(ctx context.Context, in DesiredStore, pause publishers.Pause) (holds publishers.Pause, changed bool, err error) {
	part := &AppPauseControl{Ledger: in}
	err = part.note(ctx, admission.Target(pause.Target), func(is desiredPause) (desiredPause, bool) {
		was := is.Pause
		if !is.holds(pause.Since) {
			was = publishers.Pause{}
		}
		holds, changed = pause.Upon(was)
		return desiredPause{Pause: holds}, changed
	})
	return holds, changed, err
}

// PlanEnd notes in the ledger alone, as Plan does, that every app pause is over, and returns
// those that there were. They are those of the ledger and, of targets that it knows
// nothing of, those that stand in the bucket, which is to be cleared after that; where
// nobody does, Mend does.
func (c *AppPauseControl) PlanEnd(ctx context.Context, in DesiredStore, stands []publishers.Pause) (ended []publishers.Pause, err error) {
	part := &AppPauseControl{Ledger: in}
	bucket := map[string]publishers.Pause{}
	for _, pause := range stands {
		bucket[pause.Target] = pause
	}
	for _, target := range publishers.Targets() {
		pause, there := bucket[target]
		err := part.note(ctx, admission.Target(target), func(is desiredPause) (desiredPause, bool) {
			if !there && is.version > 0 && !is.Ended {
				pause = is.Pause // which the bucket was not told of, or has lost
			}
			return desiredPause{Pause: pause, Told: true, Ended: true, EndedAt: time.Now()}, is.version > 0 || there
		})
		if err != nil {
			return ended, err
		}
		if pause.Target != "" {
			ended = append(ended, pause)
		}
	}
	return ended, nil
}
