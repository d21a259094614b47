package consumers

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers/admission"
	"github.com/jetpost/jetpost/store"
)

const (
	// sweepLanes bounds the lanes of one sweep: those that are due for longest. A
	// wake that nobody has heard stays where it is, so that they keep their places.
	sweepLanes = 20_000
	// sweepHeld bounds the requests that one sweep frees of a stop.
	sweepHeld = 1000
	// heldSweeps is after how many sweeps it looks again: a worker that hears of the end
	// of a stop later than this one holds once more what was freed.
	heldSweeps = 6
	// sweepEvents bounds the late events of one sweep.
	sweepEvents = 1000
	// sweepFailures is how many late events in a row may fail before a sweep
	// gives up: one that cannot be told must not silence those behind it.
	sweepFailures = 5
	// eventPatience is how long a committed change may go untold before a
	// sweep tells it.
	eventPatience = 2 * time.Second
)

// sweepLedger is the ledger's part in finding what was not heard.
type sweepLedger interface {
	TryLease(ctx context.Context, name, owner string, d time.Duration, now time.Time) (bool, error)
	DueLanes(ctx context.Context, now time.Time, limit int) ([]string, error)
	OutboxPending(ctx context.Context, before time.Time, limit int) ([]store.Key, error)
	ListRequests(ctx context.Context, filter store.Filter) ([]store.Record, error)
	EndHolds(ctx context.Context, account string, code jetpost.Code, now time.Time) (int, error)
}

// Sweeper makes wake-ups, schedules and events mere hints: one worker at a
// time looks into the ledger for lanes that are due and that nobody works on,
// and wakes them, and for changes that were never told, and tells them. So a
// crash, a lost schedule or a purged stream heals by itself.
type Sweeper struct {
	Ledger   sweepLedger
	Wakeups  manyWaker
	Announce *OutboxRelay
	Gate     *admission.Gate
	Health   *Health
	Timing   Timing
	Worker   string
	Log      *slog.Logger
	// Upkeep, where it is set, comes first in each sweep.
	Upkeep *Upkeep
	// heldFrom is when to look again for what a stop holds that is over.
	heldFrom time.Time
}

// Run sweeps until the context ends.
func (s *Sweeper) Run(ctx context.Context) {
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

// Sweep sweeps once, if no other worker does.
func (s *Sweeper) Sweep(ctx context.Context) error {
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
	if s.Upkeep != nil { // what keeps it from its work keeps nobody from theirs
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
		s.Log.Debug("sweep.done", "rung", len(accounts), "told", len(keys))
	}
	return errors.Join(failures...)
}

// release tells that a stop is over, and lets go what was held by one that was ended
// before its time. Whoever waits in the queue goes on by itself.
func (s *Sweeper) release(ctx context.Context, now time.Time) error {
	for _, scope := range []admission.Target{admission.TargetPublish, admission.TargetRefresh} {
		if stop, over := s.Gate.Over(scope, now); over {
			if err := s.Gate.End(ctx, stop); err != nil {
				return err
			}
		}
	}
	if _, stopped := s.Gate.Paused(admission.TargetPublish, now); stopped {
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
