package consumers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers/admission"
	"github.com/jetpost/jetpost/store"
)

// laneLedger holds the ledger calls of a lane.
type laneLedger interface {
	Accept(ctx context.Context, in store.Acceptance) (store.Decision, error)
	ClaimLane(ctx context.Context, account, worker string, lease time.Duration, now time.Time) (store.Claim, bool, error)
	ExtendLane(ctx context.Context, lane store.Claim, lease time.Duration, now time.Time) error
	ReleaseLane(ctx context.Context, lane store.Claim, generation int64, wakeAt, now time.Time) (bool, error)
	Snapshot(ctx context.Context, lane store.Claim, now time.Time) (store.Snapshot, error)
	Begin(ctx context.Context, lane store.Claim, id string, intent store.Intent) error
	Posted(ctx context.Context, lane store.Claim, id string, post int, postID string, now time.Time) (jetpost.State, error)
	Conclude(ctx context.Context, lane store.Claim, id string, out store.Outcome) error
	Refused(ctx context.Context, lane store.Claim, id, words string, within time.Duration, now time.Time) (store.Refusals, error)
	BlockAccount(ctx context.Context, lane store.Claim, pause store.Pause, now time.Time) (store.Pause, error)
	HoldQueue(ctx context.Context, lane store.Claim, reason jetpost.Reason, generation int64, now time.Time) ([]store.Key, error)
	Anchor(ctx context.Context, account string) (store.Anchor, error)
	Owned(ctx context.Context, postIDs []string) ([]string, error)
	Deleted(ctx context.Context, postIDs []string) ([]string, error)
	Unpublishing(ctx context.Context, lane store.Claim) (store.Record, bool, error)
	PostDeleted(ctx context.Context, lane store.Claim, id string, post int, now time.Time) error
	HoldUnpublish(ctx context.Context, lane store.Claim, id string, out store.Outcome) error
	Uploaded(ctx context.Context, lane store.Claim, id string, post int, media []store.Media) error
	admission.Ledger
}

// keepLease extends the lane's lease while the lane is at work. If the lease is lost,
// uploads end, and the ledger refuses the next write.
func (r *laneRun) keepLease(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		every := time.NewTicker(r.h.Timing.extendEvery())
		defer every.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-every.C:
				err := r.h.Ledger.ExtendLane(ctx, r.lane, r.h.Timing.lease(), time.Now())
				if errors.Is(err, store.ErrFenced) {
					close(r.lost)
					return
				}
			}
		}
	})
	return func() { cancel(); done.Wait() }
}

// persist retries a ledger call until the ledger answers. An answer of X must not be lost
// because the database does not answer for a while, and nothing more may be sent before it
// does.
func persist[T any](ctx context.Context, r *laneRun, what string, ask func() (T, error)) (T, error) {
	wait := stallMin
	for {
		out, err := ask()
		if settled(err) {
			r.h.Health.Set("ledger", nil)
			return out, err
		}
		r.h.Health.Set("ledger", err)
		if ctx.Err() != nil {
			return out, fmt.Errorf("%s: %w", what, err)
		}
		r.log.Warn("ledger.unavailable", "what", what, "error", err, "retry_in", wait)
		pause(ctx, wait)
		wait = min(2*wait, stallMax)
	}
}

// settled reports whether err is an answer of the ledger, and not a failure to reach the
// database.
func settled(err error) bool {
	for _, known := range [...]error{store.ErrFenced, store.ErrNotFound, store.ErrNotRunnable, store.ErrPostTaken} {
		if errors.Is(err, known) {
			return true
		}
	}
	return err == nil || ours(err)
}

// patientLedger gives admission the ledger calls that it makes, retried by persist.
type patientLedger struct{ r *laneRun }

func (l patientLedger) Reserve(ctx context.Context, lane store.Claim, r store.Reservation) (store.Reserved, error) {
	return persist(ctx, l.r, "reserve", func() (store.Reserved, error) { return l.r.h.Ledger.Reserve(ctx, lane, r) })
}

func (l patientLedger) Sent(ctx context.Context, account string, after time.Time, limit int) ([]time.Time, error) {
	return persist(ctx, l.r, "sent", func() ([]time.Time, error) { return l.r.h.Ledger.Sent(ctx, account, after, limit) })
}
