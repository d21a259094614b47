package consumers

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/store"
)

const (
	// sweepLanes bounds the lanes of one sweep. Those that are due for longest come first.
	// A wake-up that no worker has handled yet stays in its place in the stream.
	sweepLanes = 20_000
	// sweepHeld bounds the requests that one sweep frees after an app pause.
	sweepHeld = 1000
	// heldSweeps is how many sweeps pass before held requests are freed again: a worker
	// that learns of the end of a pause later may have held a freed request once more.
	heldSweeps = 6
	// sweepEvents bounds the late events of one sweep.
	sweepEvents = 1000
	// sweepFailures is how many late events may fail before a sweep gives up. It is more
	// than one, so that an event that always fails does not block those behind it.
	sweepFailures = 5
	// eventPatience is how long a committed change may be unpublished before a sweep
	// publishes it.
	eventPatience = 2 * time.Second
)

// sweepLedger holds the ledger calls of a sweep.
type sweepLedger interface {
	TryLease(ctx context.Context, name, owner string, d time.Duration, now time.Time) (bool, error)
	DueLanes(ctx context.Context, now time.Time, limit int) ([]string, error)
	OutboxPending(ctx context.Context, before time.Time, limit int) ([]store.Key, error)
	ListRequests(ctx context.Context, filter store.Filter) ([]store.Record, error)
	EndHolds(ctx context.Context, account string, code jetpost.Code, now time.Time) (int, error)
}

// sweeper repairs what got lost in NATS. One worker at a time reads from the ledger the
// lanes that are due and that no worker holds, and wakes them, and the changes that were not
// published, and publishes them. So the system recovers from a crash, a lost schedule or a
// purged stream by itself.
type sweeper struct {
	Ledger   sweepLedger
	Wakeups  manyWaker
	Announce *OutboxRelay
	Gate     *admission.Gate
	Health   *health
	Timing   timing
	Worker   string
	Log      *slog.Logger
	// Upkeep, if set, runs first in each sweep.
	Upkeep *upkeep
	// heldFrom is when to check again for requests that a pause holds that is over.
	heldFrom time.Time
}

// Run sweeps until the context ends.
func (s *sweeper) Run(ctx context.Context) {
	every := time.NewTicker(s.Timing.sweepEvery())
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		case <-s.Gate.Ended():
			s.heldFrom = time.Time{}
		}
		err := s.Sweep(ctx)
		if ctx.Err() != nil {
			return
		}
		s.Health.Set("sweep", err)
		if err != nil {
			s.Log.Warn("sweep.failed", "error", err)
		}
	}
}

// Sweep sweeps once if no other worker does.
func (s *sweeper) Sweep(ctx context.Context) error {
	now := time.Now()
	told := s.Gate.Retell(ctx, now)
	mine, err := s.Ledger.TryLease(ctx, "sweep", s.Worker, 3*s.Timing.sweepEvery(), now)
	if err != nil || !mine {
		if s.Upkeep != nil {
			s.Upkeep.Rest()
		}
		return errors.Join(told, err)
	}
	failures := []error{told}
	if s.Upkeep != nil { // a failure of it does not end the sweep
		failures = append(failures, s.Upkeep.Run(ctx, now))
	}
	accounts, err := s.Ledger.DueLanes(ctx, now, sweepLanes)
	if err != nil {
		return err
	}
	if err := s.Wakeups.WakeAll(ctx, accounts); err != nil {
		return err
	}
	if err := s.release(ctx, now); err != nil {
		return err
	}
	keys, err := s.Ledger.OutboxPending(ctx, now.Add(-eventPatience), sweepEvents)
	if err != nil {
		return err
	}
	failures = append(failures, s.Announce.AnnounceAccounts(ctx, ""), s.Announce.AnnouncePauseChanges(ctx, ""))
	failed := 0
	for _, key := range keys {
		if err := s.Announce.Announce(ctx, key); err != nil {
			failures = append(failures, err)
			if failed++; failed >= sweepFailures {
				break
			}
		}
	}
	if len(accounts)+len(keys) > 0 {
		s.Log.Debug("sweep.done", "woken", len(accounts), "told", len(keys))
	}
	return errors.Join(failures...)
}

// release ends the pauses whose end has passed, and frees the heads that were held by a pause
// that ended early. Requests behind a head go on by themselves.
func (s *sweeper) release(ctx context.Context, now time.Time) error {
	for _, target := range []admission.Target{admission.TargetPublish, admission.TargetRefresh} {
		if pause, over := s.Gate.Over(target, now); over {
			if err := s.Gate.End(ctx, pause); err != nil {
				return err
			}
		}
	}
	if _, paused := s.Gate.Paused(admission.TargetPublish, now); paused {
		s.heldFrom = time.Time{}
		return nil
	}
	if now.Before(s.heldFrom) {
		return nil
	}
	held, err := s.Ledger.ListRequests(ctx, store.Filter{State: jetpost.StateHeld, Code: jetpost.CodeAppPaused, Limit: sweepHeld})
	if err != nil {
		return err
	}
	woken := map[string]bool{}
	for _, r := range held {
		if woken[r.Account] {
			continue
		}
		woken[r.Account] = true
		if _, err := s.Ledger.EndHolds(ctx, r.Account, jetpost.CodeAppPaused, now); err != nil {
			return err
		}
		if err := s.Wakeups.WakeAll(ctx, []string{r.Account}); err != nil {
			return err
		}
	}
	if len(held) < sweepHeld {
		s.heldFrom = now.Add(heldSweeps * s.Timing.sweepEvery())
	}
	return nil
}
