package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

const (
	// Of two that claim at once, the second waits for the row and then sees
	// the first one's lease.
	sqlClaimLane = `
UPDATE lanes
SET fence = fence + 1, lost_claims = lost_claims + 1, reserved = 0, lease_owner = $2, lease_until = clock_timestamp() + $3::interval
WHERE account = $1 AND (lease_until IS NULL OR lease_until <= clock_timestamp())
RETURNING account, fence, lost_claims - 1`
	sqlLaneExists = `SELECT account FROM lanes WHERE account = $1`
)

// ClaimLane implements store.Requests.
func (s *Store) ClaimLane(ctx context.Context, account, worker string, lease time.Duration, _ time.Time) (store.Lane, bool, error) {
	var lane store.Lane
	err := s.pool.QueryRow(ctx, sqlClaimLane, account, worker, lease).Scan(&lane.Account, &lane.Fence, &lane.LostClaims)
	if err == nil {
		return lane, true, nil
	}
	if missing(err, nil) == nil { // somebody holds it, or there is no such lane
		err = missing(s.pool.QueryRow(ctx, sqlLaneExists, account).Scan(&account), store.ErrNotFound)
	}
	return store.Lane{}, false, s.wrap("claim lane", err)
}

const sqlExtendLane = `
UPDATE lanes SET lease_until = clock_timestamp() + $3::interval
WHERE account = $1 AND fence = $2 AND lease_owner IS NOT NULL`

// ExtendLane implements store.Requests.
func (s *Store) ExtendLane(ctx context.Context, lane store.Lane, lease time.Duration, _ time.Time) error {
	return s.wrap("extend lane", fenced(changed(ctx, s.pool, sqlExtendLane, lane.Account, lane.Fence, lease)))
}

// sqlReleaseLane leaves a lane that rang since the look as it is, and only
// tells so.
const sqlReleaseLane = `
UPDATE lanes
SET lease_owner = CASE WHEN rings = $3 THEN NULL ELSE lease_owner END,
    lease_until = CASE WHEN rings = $3 THEN NULL ELSE lease_until END,
    lost_claims = CASE WHEN rings = $3 THEN 0 ELSE lost_claims END,
    reserved    = CASE WHEN rings = $3 THEN 0 ELSE reserved END,
    wake_at     = CASE WHEN rings = $3 THEN $4 ELSE wake_at END
WHERE account = $1 AND fence = $2 AND lease_owner IS NOT NULL
RETURNING rings = $3`

// ReleaseLane implements store.Requests.
func (s *Store) ReleaseLane(ctx context.Context, lane store.Lane, rings int64, wakeAt, _ time.Time) (released bool, err error) {
	err = s.pool.QueryRow(ctx, sqlReleaseLane, lane.Account, lane.Fence, rings, moment(wakeAt)).Scan(&released)
	return released, s.wrap("release lane", missing(err, store.ErrFenced))
}

const sqlDueLanes = `
SELECT account FROM lanes
WHERE wake_at <= $1 AND (lease_until IS NULL OR lease_until <= clock_timestamp())
ORDER BY wake_at, account LIMIT $2`

// DueLanes implements store.Requests.
func (s *Store) DueLanes(ctx context.Context, now time.Time, limit int) ([]string, error) {
	accounts, err := collect(ctx, s.pool, func(row scanner) (account string, err error) {
		err = row.Scan(&account)
		return account, err
	}, sqlDueLanes, now, limit)
	return accounts, s.wrap("list due lanes", err)
}

const (
	sqlRings = `SELECT rings, paused_at, paused_until, pause_reason FROM lanes WHERE account = $1 AND fence = $2 AND lease_owner IS NOT NULL`
	// sqlHead runs two short index scans. What has begun goes first, and once
	// it has it is due, whatever this worker's clock says.
	sqlHead = `
SELECT ` + requestColumns + ` FROM requests WHERE account = $1 AND id = coalesce(
    (SELECT id FROM requests WHERE account = $1 AND began_at IS NOT NULL AND ` + unfinished + `
     ORDER BY due_at, seq LIMIT 1),
    (SELECT id FROM requests WHERE account = $1 AND due_at <= $2 AND ` + unfinished + `
     ORDER BY due_at, seq LIMIT 1))`
	sqlNextDue = `SELECT min(due_at) FROM requests WHERE account = $1 AND due_at > $2 AND ` + unfinished
)

// Look implements store.Requests.
func (s *Store) Look(ctx context.Context, lane store.Lane, now time.Time) (look store.Look, err error) {
	err = s.view(ctx, "look at lane", func(tx pgx.Tx) error {
		look = store.Look{}
		err := tx.QueryRow(ctx, sqlRings, lane.Account, lane.Fence).
			Scan(&look.Rings, pausedAt{&look.Pause}, at{&look.Pause.Reason.Until}, &look.Pause.Reason.Detail)
		if err != nil {
			return missing(err, store.ErrFenced)
		}
		head, err := readRecords(ctx, tx, sqlHead, lane.Account, now)
		if err != nil {
			return err
		}
		if len(head) > 0 {
			look.Head = &head[0]
		}
		return tx.QueryRow(ctx, sqlNextDue, lane.Account, now).Scan(at{&look.NextDue})
	})
	return look, err
}

// Begin implements store.Requests.
func (s *Store) Begin(ctx context.Context, claim store.Lane, id string, intent store.Intent) error {
	_, err := s.move(ctx, "begin post", store.Key{Account: claim.Account, ID: id}, func(line store.Line, r *store.Row) (store.Change, error) {
		return r.Begin(line, claim, intent)
	})
	return err
}

const sqlProgress = `UPDATE lanes SET lost_claims = 0 WHERE account = $1`

// Posted implements store.Requests. The holder of the lane may tell it too:
// it may have found the post of an earlier one at X.
func (s *Store) Posted(ctx context.Context, claim store.Lane, id string, post int, postID string, now time.Time) (jetpost.State, error) {
	return s.move(ctx, "record post", store.Key{Account: claim.Account, ID: id}, func(line store.Line, r *store.Row) (store.Change, error) {
		return r.Posted(line, claim, post, postID, now)
	})
}

// Conclude implements store.Requests.
func (s *Store) Conclude(ctx context.Context, claim store.Lane, id string, out store.Outcome) error {
	_, err := s.move(ctx, "conclude request", store.Key{Account: claim.Account, ID: id}, func(line store.Line, r *store.Row) (store.Change, error) {
		return r.Conclude(line, claim, out)
	})
	return err
}

// Uploaded implements store.Requests.
func (s *Store) Uploaded(ctx context.Context, claim store.Lane, id string, post int, media []store.Media) error {
	_, err := s.move(ctx, "keep media", store.Key{Account: claim.Account, ID: id}, func(line store.Line, r *store.Row) (store.Change, error) {
		return r.Uploaded(line, claim, post, media)
	})
	return err
}

const (
	// Its row is what reservations wait for one another at.
	sqlAppWindow = `
INSERT INTO app_windows AS w (name, x_reset, remaining) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET
    x_reset   = greatest(w.x_reset, excluded.x_reset),
    remaining = CASE WHEN excluded.x_reset > w.x_reset THEN excluded.remaining
                     WHEN excluded.x_reset < w.x_reset THEN w.remaining
                     ELSE least(w.remaining, excluded.remaining) END
RETURNING remaining`
	sqlSetAside = `
SELECT coalesce(sum(reserved), 0) FROM lanes WHERE reserved > 0 AND account <> $1 AND lease_until > clock_timestamp()`
	sqlReserve = `UPDATE lanes SET reserved = $3 WHERE account = $1 AND fence = $2 AND lease_owner IS NOT NULL`
)

// Reserve implements store.Requests.
func (s *Store) Reserve(ctx context.Context, lane store.Lane, r store.Reservation) (out store.Reserved, err error) {
	err = s.change(ctx, "reserve calls", func(tx pgx.Tx) error {
		var left, others, take int
		if err := tx.QueryRow(ctx, sqlAppWindow, r.Window, r.XReset, r.Left).Scan(&left); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, sqlSetAside, lane.Account).Scan(&others); err != nil {
			return err
		}
		out, take = r.Grant(left, others)
		return fenced(changed(ctx, tx, sqlReserve, lane.Account, lane.Fence, take))
	})
	return out, err
}

// sqlBehind reads what waits in a line, behind a head that is held.
const sqlBehind = `SELECT ` + requestColumns + ` FROM requests
WHERE account = $1 AND state IN ('scheduled', 'queued') AND due_at <= $2 ORDER BY due_at, seq LIMIT $3 FOR UPDATE`

// HoldLine implements store.Requests.
func (s *Store) HoldLine(ctx context.Context, claim store.Lane, reason jetpost.Reason, rings int64, now time.Time) (held []store.Key, err error) {
	err = s.change(ctx, "hold line", func(tx pgx.Tx) error {
		held = nil
		line, err := lockLane(ctx, tx, claim.Account)
		if err == nil && !line.HeldBy(claim) {
			err = store.ErrFenced
		}
		if err != nil {
			return err
		}
		behind, err := readRequests(ctx, tx, sqlBehind, claim.Account, now, store.MaxHoldLine)
		if err != nil {
			return err
		}
		for _, r := range behind {
			change, err := r.HoldBehind(line, claim, reason, rings, now)
			if err == nil {
				err = save(ctx, tx, line, r, change)
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
