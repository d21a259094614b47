package consumers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jetpost/jetpost/store"
)

// laneLedger holds the ledger calls of a lane.
type laneLedger interface {
	store.Lanes
	Accept(ctx context.Context, in store.Acceptance) (store.Decision, error)
	Spend(ctx context.Context, account string, e store.Expense) (store.Spent, error)
	NoteBilled(ctx context.Context, now time.Time) error
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
		sleepContext(ctx, wait)
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

func (l patientLedger) Spend(ctx context.Context, account string, e store.Expense) (store.Spent, error) {
	return persist(ctx, l.r, "spend", func() (store.Spent, error) { return l.r.h.Ledger.Spend(ctx, account, e) })
}

func (l patientLedger) NoteBilled(ctx context.Context, now time.Time) error {
	_, err := persist(ctx, l.r, "note billed", func() (struct{}, error) { return struct{}{}, l.r.h.Ledger.NoteBilled(ctx, now) })
	return err
}

func (l patientLedger) Sent(ctx context.Context, account string, after time.Time, limit int) ([]time.Time, error) {
	return persist(ctx, l.r, "sent", func() ([]time.Time, error) { return l.r.h.Ledger.Sent(ctx, account, after, limit) })
}
