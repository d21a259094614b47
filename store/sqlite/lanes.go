package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const sqlClaimLane = `
UPDATE lanes
SET fence = fence + 1, lease_owner = ?2, lease_until = ?3, lost_claims = lost_claims + 1, reserved = 0
WHERE account = ?1 AND (lease_until IS NULL OR lease_until <= ?4)
RETURNING fence, lost_claims - 1`

// ClaimLane implements store.Lanes.
func (s *Store) ClaimLane(ctx context.Context, account, worker string, lease time.Duration, now time.Time) (lane store.Claim, claimed bool, err error) {
	err = s.change(ctx, "claim lane", func(ctx context.Context, tx *sql.Tx) (err error) {
		lane, claimed, err = claimLane(ctx, tx, account, store.LaneClaim{Worker: worker, Lease: lease}, now)
		if err == nil && !claimed {
			_, err = readLane(ctx, tx, account)
		}
		return err
	})
	if err != nil || !claimed {
		return store.Claim{}, false, err
	}
	return lane, true, nil
}

// claimLane claims a lane if there is one and nobody holds it.
func claimLane(ctx context.Context, tx *sql.Tx, account string, by store.LaneClaim, now time.Time) (store.Claim, bool, error) {
	lane := store.Claim{Account: account, Memory: &rules.ClaimCache{}}
	err := tx.QueryRowContext(ctx, sqlClaimLane, account, by.Worker, micros(now.Add(by.Lease)), micros(now)).
		Scan(&lane.Fence, &lane.LostClaims)
	if errors.Is(err, sql.ErrNoRows) {
		return store.Claim{}, false, nil
	}
	if err == nil {
		err = readAhead(ctx, tx, lane, now)
	}
	return lane, err == nil, err
}

const sqlExtendLane = `
UPDATE lanes SET lease_until = ?3 WHERE account = ?1 AND fence = ?2 AND lease_owner IS NOT NULL`

// ExtendLane implements store.Lanes.
func (s *Store) ExtendLane(ctx context.Context, lane store.Claim, lease time.Duration, now time.Time) error {
	return s.change(ctx, "extend lane", func(ctx context.Context, tx *sql.Tx) error {
		return fenced(changed(ctx, tx, sqlExtendLane, lane.Account, lane.Fence, micros(now.Add(lease))))
	})
}

const (
	sqlReleaseLane = `
UPDATE lanes SET lease_owner = NULL, lease_until = NULL, wake_at = ?4, lost_claims = 0, reserved = 0
WHERE account = ?1 AND fence = ?2 AND generation = ?3 AND lease_owner IS NOT NULL`
	sqlGenerations = `SELECT generation, paused_at, paused_until, pause_reason, pause_cause, unpublish_at, coalesce(monthly_limit, 0) FROM lanes WHERE account = ?1 AND fence = ?2 AND lease_owner IS NOT NULL`
)

// ReleaseLane implements store.Lanes.
func (s *Store) ReleaseLane(ctx context.Context, lane store.Claim, generation int64, wakeAt, _ time.Time) (released bool, err error) {
	cache := rules.CacheOf(lane)
	told, latest := cache.Mark(), true
	defer func() {
		if err == nil {
			cache.Marked(told, latest)
		}
	}()
	err = s.change(ctx, "release lane", func(ctx context.Context, tx *sql.Tx) (err error) {
		if latest, err = markTold(ctx, tx, told, ""); err != nil {
			return err
		}
		n, err := changed(ctx, tx, sqlReleaseLane, lane.Account, lane.Fence, generation, micros(wakeAt))
		if released = n > 0; released || err != nil {
			return err
		}
		_, err = readGenerations(ctx, tx, lane)
		return err
	})
	return released && err == nil, err
}

// markTold marks as delivered what a lane has published, in the transaction of its next
// step. If that step writes the same request, its own event follows.
func markTold(ctx context.Context, tx *sql.Tx, told store.Revision, writes string) (latest bool, err error) {
	if told.Number == 0 {
		return true, nil
	}
	err = tx.QueryRowContext(ctx, sqlMarkDelivered, told.Account, told.ID, told.Number).Scan(&latest)
	return latest || told.ID == writes, missing(err, store.ErrNotFound)
}

// readGenerations reads the lane's own part of a snapshot. It fails with
// store.ErrFenced if the lane is no longer held.
func readGenerations(ctx context.Context, tx *sql.Tx, lane store.Claim) (snapshot store.Snapshot, err error) {
	pause := &snapshot.Pause
	err = tx.QueryRowContext(ctx, sqlGenerations, lane.Account, lane.Fence).
		Scan(&snapshot.Generation, pausedAt{pause}, at{&pause.Reason.Until}, &pause.Reason.Detail, rules.CauseOf{Pause: pause}, at{&snapshot.UnpublishAt}, &snapshot.MonthlyLimit)
	return snapshot, missing(err, store.ErrFenced)
}

const sqlDueLanes = `
SELECT account FROM lanes
WHERE wake_at <= ?1 AND (lease_until IS NULL OR lease_until <= ?1)
ORDER BY wake_at, account LIMIT ?2`

// DueLanes implements store.Lanes.
func (s *Store) DueLanes(ctx context.Context, now time.Time, limit int) (accounts []string, err error) {
	err = s.view(ctx, "list due lanes", func(ctx context.Context, tx *sql.Tx) error {
		accounts, err = collect(ctx, tx, scanText, sqlDueLanes, micros(now), limit)
		return err
	})
	return accounts, err
}

const (
	// sqlFront reads the front of a queue. A begun request goes first, and it is due
	// whatever another worker's clock says.
	sqlFront = `
SELECT coalesce(
    (SELECT id FROM requests WHERE account = ?1 AND began_at IS NOT NULL AND ` + unfinished + `
     ORDER BY due_at, seq LIMIT 1),
    (SELECT id FROM requests WHERE account = ?1 AND due_at <= ?2 AND ` + unfinished + `
     ORDER BY due_at, seq LIMIT 1),
    ''),
    (SELECT due_at FROM requests WHERE account = ?1 AND due_at > ?2 AND ` + unfinished + `
     ORDER BY due_at LIMIT 1)`
	// sqlBehindHead reads the due request behind one that has begun.
	sqlBehindHead = `
SELECT id FROM requests WHERE account = ?1 AND due_at <= ?2 AND id <> ?3 AND ` + unfinished + `
ORDER BY due_at, seq LIMIT 1`
)

// Snapshot implements store.Lanes.
func (s *Store) Snapshot(ctx context.Context, lane store.Claim, now time.Time) (snapshot store.Snapshot, err error) {
	err = s.view(ctx, "read snapshot of lane", func(ctx context.Context, tx *sql.Tx) error {
		snapshot, err = readFront(ctx, tx, lane, now)
		return err
	})
	return snapshot, err
}

// readFront fails with store.ErrFenced.
func readFront(ctx context.Context, tx *sql.Tx, lane store.Claim, now time.Time) (snapshot store.Snapshot, err error) {
	if snapshot, err = readGenerations(ctx, tx, lane); err != nil {
		return snapshot, err
	}
	var head string
	err = tx.QueryRowContext(ctx, sqlFront, lane.Account, micros(now)).Scan(&head, at{&snapshot.NextDue})
	if err != nil || head == "" {
		return snapshot, err
	}
	r, err := readRequest(ctx, tx, store.Key{Account: lane.Account, ID: head})
	if err != nil {
		return snapshot, err
	}
	record := r.Told()
	snapshot.Head = &record
	return snapshot, nil
}

// readAhead reads the front of a lane for [store.Claim.Next], in the transaction that
// claimed the lane or finished its head.
func readAhead(ctx context.Context, tx *sql.Tx, lane store.Claim, now time.Time) error {
	snapshot, err := readFront(ctx, tx, lane, now)
	if err == nil {
		rules.CacheOf(lane).Saw(rules.LaneRow{}, snapshot, nil, true)
	}
	return err
}

// Begin implements store.Lanes.
func (s *Store) Begin(ctx context.Context, claim store.Claim, id string, intent store.Intent) error {
	cache := rules.CacheOf(claim)
	told, latest := cache.Mark(), true
	err := s.change(ctx, "begin post", func(ctx context.Context, tx *sql.Tx) (err error) {
		if latest, err = markTold(ctx, tx, told, id); err != nil {
			return err
		}
		_, err = apply(ctx, tx, store.Key{Account: claim.Account, ID: id}, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
			return r.Begin(laneRow, claim, intent)
		})
		if err == nil {
			err = seeBehind(ctx, tx, claim, id, intent.Now)
		}
		return err
	})
	if err == nil {
		cache.Marked(told, latest)
	}
	return err
}

// seeBehind reads the request behind the one that begins, for [store.Claim.Behind].
func seeBehind(ctx context.Context, tx *sql.Tx, claim store.Claim, head string, now time.Time) error {
	cache := rules.CacheOf(claim)
	if cache == nil {
		return nil
	}
	cache.SawBehind(nil)
	var id string
	err := tx.QueryRowContext(ctx, sqlBehindHead, claim.Account, micros(now), head).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	row, err := readRequest(ctx, tx, store.Key{Account: claim.Account, ID: id})
	if err == nil {
		cache.SawBehind(row)
	}
	return err
}

const sqlProgress = `UPDATE lanes SET lost_claims = 0 WHERE account = ?1`

// Posted implements store.Lanes. The lane's holder may call it too, because it may
// have found an earlier holder's post on X.
func (s *Store) Posted(ctx context.Context, claim store.Claim, id string, live store.LivePost) (jetpost.State, error) {
	var state jetpost.State
	cache := rules.CacheOf(claim)
	told, latest := cache.Mark(), true
	err := s.change(ctx, "record post", func(ctx context.Context, tx *sql.Tx) (err error) {
		if latest, err = markTold(ctx, tx, told, id); err != nil {
			return err
		}
		var change rules.Change
		var row *rules.Row
		state, err = apply(ctx, tx, store.Key{Account: claim.Account, ID: id}, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
			row = r
			change, err = r.Posted(laneRow, claim, live)
			return change, err
		})
		if err == nil {
			row.Status.UpdatedAt = row.Status.UpdatedAt.UTC().Truncate(time.Microsecond) // as it is stored
			cache.Write(row)
		}
		if wakes := !change.WakeAt.IsZero(); err != nil || cache == nil || wakes || !state.Finished() {
			return err
		}
		// An earlier holder may report its post, too; it gets no snapshot.
		if err := follow(ctx, tx, claim, live); !errors.Is(err, store.ErrFenced) {
			return err
		}
		return nil
	})
	if err != nil {
		cache.Forget()
		return "", err
	}
	cache.Marked(told, latest)
	return state, nil
}

// follow reads the front of the lane for [store.Claim.Next]. If that is the request of
// live.Following, it commits its intent before.
func follow(ctx context.Context, tx *sql.Tx, claim store.Claim, live store.LivePost) error {
	snapshot, err := readFront(ctx, tx, claim, live.Now)
	if err != nil {
		return err
	}
	f, head := live.Following, snapshot.Head
	begins := f != nil && head != nil && head.ID == f.ID && head.Status.Revision == f.Revision
	if begins {
		_, err = apply(ctx, tx, head.Key, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
			return r.Begin(laneRow, claim, f.Intent)
		})
		if begins = err == nil; !begins && !errors.Is(err, store.ErrNotRunnable) {
			return err
		}
	}
	if !begins {
		rules.CacheOf(claim).Saw(rules.LaneRow{}, snapshot, nil, true)
		return nil
	}
	if err := readAhead(ctx, tx, claim, live.Now); err != nil {
		return err
	}
	return seeBehind(ctx, tx, claim, f.ID, f.Intent.Now)
}

// Conclude implements store.Lanes.
func (s *Store) Conclude(ctx context.Context, claim store.Claim, id string, out store.Outcome) error {
	_, err := s.move(ctx, "conclude request", store.Key{Account: claim.Account, ID: id}, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
		return r.Conclude(laneRow, claim, out)
	})
	return err
}

// Uploaded implements store.Lanes.
func (s *Store) Uploaded(ctx context.Context, claim store.Claim, id string, media map[int][]store.Media) error {
	_, err := s.move(ctx, "keep media", store.Key{Account: claim.Account, ID: id}, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
		return r.Uploaded(laneRow, claim, media)
	})
	return err
}

const (
	sqlAppWindow = `
INSERT INTO app_windows AS w (name, x_reset, remaining) VALUES (?1, ?2, ?3)
ON CONFLICT (name) DO UPDATE SET
    x_reset   = max(w.x_reset, excluded.x_reset),
    remaining = CASE WHEN excluded.x_reset > w.x_reset THEN excluded.remaining
                     WHEN excluded.x_reset < w.x_reset THEN w.remaining
                     ELSE min(w.remaining, excluded.remaining) END
RETURNING remaining`
	sqlSetAside = `
SELECT coalesce(sum(reserved), 0) FROM lanes WHERE reserved > 0 AND account <> ?1 AND lease_until > ?2`
	sqlReserve = `UPDATE lanes SET reserved = ?3 WHERE account = ?1 AND fence = ?2 AND lease_owner IS NOT NULL`
)

// Reserve implements store.Lanes.
func (s *Store) Reserve(ctx context.Context, lane store.Claim, r store.Reservation) (out store.Reserved, err error) {
	err = s.change(ctx, "reserve calls", func(ctx context.Context, tx *sql.Tx) error {
		var left, others, take int
		if err := tx.QueryRowContext(ctx, sqlAppWindow, r.Window, r.XReset, r.Left).Scan(&left); err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, sqlSetAside, lane.Account, micros(r.Now)).Scan(&others); err != nil {
			return err
		}
		out, take = rules.Reserve(r, left, others)
		return fenced(changed(ctx, tx, sqlReserve, lane.Account, lane.Fence, take))
	})
	return out, err
}

// sqlBehind reads what waits in a queue behind a held head.
const sqlBehind = sqlFromRequests + `
WHERE account = ?1 AND state IN ('scheduled', 'queued') AND ` + unfinished + ` AND due_at <= ?2 ORDER BY due_at, seq LIMIT ?3`

// HoldQueue implements store.Lanes.
func (s *Store) HoldQueue(ctx context.Context, claim store.Claim, reason jetpost.Reason, generation int64, now time.Time) (held []store.Key, err error) {
	err = s.change(ctx, "hold queue", func(ctx context.Context, tx *sql.Tx) error {
		held = nil
		laneRow, err := readLane(ctx, tx, claim.Account)
		if err == nil && !laneRow.HeldBy(claim) {
			err = store.ErrFenced
		}
		if err != nil {
			return err
		}
		behind, err := collect(ctx, tx, scanRequest, sqlBehind, claim.Account, micros(now), store.MaxHoldQueue)
		if err != nil {
			return err
		}
		for _, r := range behind {
			change, err := r.HoldBehind(laneRow, claim, reason, generation, now)
			if err == nil {
				err = save(ctx, tx, laneRow, r, change)
			}
			if err != nil {
				return err
			}
			held = append(held, r.Key)
		}
		return nil
	})
	return held, err
}
