package postgres

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const sqlLaneExists = `SELECT account FROM lanes WHERE account = $1`

// maxGivenUp bounds how many given-up claims of one lane are remembered. The first one
// is forgotten only after that many claims in a row got no answer.
const maxGivenUp = 8

// givenUp remembers the claims without an answer, by lane. Each may have taken effect
// and would keep its lane from all workers for a lease.
type givenUp struct {
	mu     sync.Mutex
	claims map[string][]string
}

func (g *givenUp) take(account string) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	claims := g.claims[account]
	delete(g.claims, account)
	return claims
}

func (g *givenUp) keep(account string, claims []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.claims == nil {
		g.claims = map[string][]string{}
	}
	claims = append(claims, g.claims[account]...)
	g.claims[account] = claims[max(0, len(claims)-maxGivenUp):]
}

// ClaimLane implements store.Lanes. If two claim at once, the second waits for the
// row and then sees the first one's lease. Each claim has an id of its own, so that a
// claim that takes effect long after it was given up takes no lane from a later one.
func (s *Store) ClaimLane(ctx context.Context, account, worker string, lease time.Duration, now time.Time) (lane store.Claim, claimed bool, err error) {
	id, before := uuid.NewString(), s.givenUp.take(account)
	defer func() {
		if store.Unavailable(err) {
			s.givenUp.keep(account, append(before, id))
		}
	}()
	out, err := s.steps.do(ctx, step{act: actClaim, account: account, owner: worker, claim: id, before: before, lease: lease, now: now, next: true})
	if err == nil && out.found {
		return s.claimed(account, out), true, nil
	}
	if err == nil { // another worker holds it, or there is no such lane
		err = missing(s.db.QueryRow(ctx, sqlLaneExists, account).Scan(&account), store.ErrNotFound)
	}
	return store.Claim{}, false, s.wrap("claim lane", err)
}

// claimed is the claim of a step that took a lane.
func (s *Store) claimed(account string, out stepped) store.Claim {
	cache := &rules.ClaimCache{}
	if out.read {
		cache.Saw(out.laneRow, out.snapshot, out.head, true)
	}
	if out.token != nil {
		cache.SawToken(s.sealer, *out.token)
	}
	return store.Claim{Account: account, Fence: out.fence, LostClaims: out.lost - 1, Memory: cache}
}

const sqlExtendLane = `
UPDATE lanes SET lease_until = clock_timestamp() + $3::interval
WHERE account = $1 AND fence = $2 AND lease_owner IS NOT NULL`

// ExtendLane implements store.Lanes.
func (s *Store) ExtendLane(ctx context.Context, lane store.Claim, lease time.Duration, _ time.Time) error {
	return s.wrap("extend lane", fenced(changed(ctx, s.db, sqlExtendLane, lane.Account, lane.Fence, lease)))
}

// ReleaseLane implements store.Lanes.
func (s *Store) ReleaseLane(ctx context.Context, lane store.Claim, generation int64, wakeAt, now time.Time) (bool, error) {
	cache := rules.CacheOf(lane)
	told := cache.Mark()
	out, err := s.steps.do(ctx, step{act: actRelease, account: lane.Account, fence: lane.Fence, generation: generation, wakeAt: wakeAt, now: now, told: told})
	switch {
	case err != nil:
	case !out.found:
		err = store.ErrFenced
	default:
		cache.Marked(told, out.latest)
	}
	return out.released, s.wrap("release lane", err)
}

const sqlDueLanes = `
SELECT account FROM lanes
WHERE wake_at <= ` + present + ` AND (lease_until IS NULL OR lease_until <= clock_timestamp())
ORDER BY wake_at, account LIMIT $2`

// DueLanes implements store.Lanes.
func (s *Store) DueLanes(ctx context.Context, now time.Time, limit int) ([]string, error) {
	accounts, err := collect(ctx, s.db, func(row scanner) (account string, err error) {
		err = row.Scan(&account)
		return account, err
	}, sqlDueLanes, s.now(now), limit)
	return accounts, s.wrap("list due lanes", err)
}

const (
	sqlGenerations = `SELECT generation, paused_at, paused_until, pause_reason, pause_cause, unpublish_at, coalesce(monthly_limit, 0) FROM lanes WHERE account = $1 AND fence = $2 AND lease_owner IS NOT NULL`
	// sqlHead runs two short index scans. A begun request goes first, and it is due
	// whatever this worker's clock says.
	sqlHead = `
SELECT ` + requestColumns + ` FROM requests WHERE account = $1 AND id = coalesce(
    (SELECT id FROM requests WHERE account = $1 AND began_at IS NOT NULL AND ` + unfinished + `
     ORDER BY due_at, seq LIMIT 1),
    (SELECT id FROM requests WHERE account = $1 AND due_at <= coalesce($2::timestamptz, statement_timestamp()) AND ` + unfinished + `
     ORDER BY due_at, seq LIMIT 1))`
	sqlNextDue = `SELECT min(due_at) FROM requests WHERE account = $1 AND due_at > coalesce($2::timestamptz, statement_timestamp()) AND ` + unfinished
)

// Snapshot implements store.Lanes.
func (s *Store) Snapshot(ctx context.Context, lane store.Claim, now time.Time) (snapshot store.Snapshot, err error) {
	err = s.view(ctx, "read snapshot of lane", func(ctx context.Context, tx pgx.Tx) error {
		snapshot = store.Snapshot{}
		err := tx.QueryRow(ctx, sqlGenerations, lane.Account, lane.Fence).
			Scan(&snapshot.Generation, pausedAt{&snapshot.Pause}, at{&snapshot.Pause.Reason.Until}, &snapshot.Pause.Reason.Detail, rules.CauseOf{Pause: &snapshot.Pause}, at{&snapshot.UnpublishAt}, &snapshot.MonthlyLimit)
		if err != nil {
			return missing(err, store.ErrFenced)
		}
		found, err := readRequests(ctx, tx, sqlHead, lane.Account, s.now(now))
		if err != nil {
			return err
		}
		var head *rules.Row
		if len(found) > 0 {
			head = found[0]
			told := head.Told()
			snapshot.Head = &told
		}
		laneRow := rules.LaneRow{Fence: lane.Fence, Held: true, Generation: snapshot.Generation, Pause: snapshot.Pause}
		rules.CacheOf(lane).Saw(laneRow, snapshot, head, false)
		return tx.QueryRow(ctx, sqlNextDue, lane.Account, s.now(now)).Scan(at{&snapshot.NextDue})
	})
	return snapshot, err
}

// Begin implements store.Lanes.
func (s *Store) Begin(ctx context.Context, claim store.Claim, id string, intent store.Intent) error {
	st := step{post: intent.Post, now: intent.Now, begins: true, within: intent.NotAfter.Sub(intent.Now)}
	_, err := s.write(ctx, "begin post", claim, id, st, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
		return r.Begin(laneRow, claim, intent)
	})
	return err
}

// Posted implements store.Lanes. The lane's holder may call it too, because it may
// have found an earlier holder's post on X.
func (s *Store) Posted(ctx context.Context, claim store.Claim, id string, live store.LivePost) (jetpost.State, error) {
	st := step{post: live.Post, now: live.Now}
	if row, change, may := rules.CacheOf(claim).Follow(claim, live.Following); may {
		st.follows, st.followsWas, st.lease = row, live.Following.Revision, change.Lease
		st.within = live.Following.Intent.NotAfter.Sub(live.Following.Intent.Now)
	}
	return s.write(ctx, "record post", claim, id, st, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
		return r.Posted(laneRow, claim, live)
	})
}

// write applies a rule to the head as the holder of the lane knows it. If the ledger
// has another head by now, it applies the rule to that one.
func (s *Store) write(ctx context.Context, what string, claim store.Claim, id string, st step, rule func(rules.LaneRow, *rules.Row) (rules.Change, error)) (jetpost.State, error) {
	cache := rules.CacheOf(claim)
	laneRow, row, known := cache.Head(id)
	if known {
		before := row.Status
		change, err := rule(laneRow, row)
		if plain := change.Request && change.WakeAt.IsZero() && row.Status.Reason == nil; err == nil && plain {
			st.act, st.account, st.fence, st.lease, st.pause = actWrite, claim.Account, claim.Fence, max(st.lease, change.Lease), laneRow.Pause
			st.row, st.revision, st.progress, st.quiet = row, before.Revision, change.Progress, change.Quiet
			if st.next = st.begins || row.Status.State.Finished(); !st.next {
				st.follows = nil
			}
			st.told = cache.Mark()
			out, err := s.steps.do(ctx, st)
			if violates(err, postConstraint) {
				err = store.ErrPostTaken
			}
			if err != nil {
				cache.Forget()
				return "", s.wrap(what, err)
			}
			if out.wrote {
				row.Status.UpdatedAt = out.at // by the database's clock
				cache.Marked(st.told, out.latest)
				cache.Write(row)
				switch {
				case out.followed:
					st.follows.Status.UpdatedAt = out.at
					told := st.follows.Told()
					out.snapshot.Head = &told
					cache.Saw(out.laneRow, out.snapshot, st.follows, true)
					cache.SawBehind(out.head)
				case st.begins:
					cache.SawBehind(out.head)
				case out.read:
					cache.Saw(out.laneRow, out.snapshot, out.head, true)
				}
				if out.token != nil && out.head != nil {
					cache.SawToken(s.sealer, *out.token)
				}
				return row.Status.State, nil
			}
		}
	}
	cache.Forget()
	return s.move(ctx, what, store.Key{Account: claim.Account, ID: id}, rule)
}

const sqlProgress = `UPDATE lanes SET lost_claims = 0 WHERE account = $1`

// Conclude implements store.Lanes.
func (s *Store) Conclude(ctx context.Context, claim store.Claim, id string, out store.Outcome) error {
	rules.CacheOf(claim).Forget()
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
	// Reservations wait for one another at the row of this table.
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

// Reserve implements store.Lanes.
func (s *Store) Reserve(ctx context.Context, lane store.Claim, r store.Reservation) (out store.Reserved, err error) {
	err = s.change(ctx, "reserve calls", func(ctx context.Context, tx pgx.Tx) error {
		var left, others, take int
		if err := tx.QueryRow(ctx, sqlAppWindow, r.Window, r.XReset, r.Left).Scan(&left); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, sqlSetAside, lane.Account).Scan(&others); err != nil {
			return err
		}
		out, take = rules.Reserve(r, left, others)
		return fenced(changed(ctx, tx, sqlReserve, lane.Account, lane.Fence, take))
	})
	return out, err
}

// sqlBehind reads what waits in a queue behind a held head.
const sqlBehind = `SELECT ` + requestColumns + ` FROM requests
WHERE account = $1 AND state IN ('scheduled', 'queued') AND due_at <= coalesce($2::timestamptz, statement_timestamp()) ORDER BY due_at, seq LIMIT $3 FOR UPDATE`

// HoldQueue implements store.Lanes.
func (s *Store) HoldQueue(ctx context.Context, claim store.Claim, reason jetpost.Reason, generation int64, now time.Time) (held []store.Key, err error) {
	rules.CacheOf(claim).Forget()
	err = s.change(ctx, "hold queue", func(ctx context.Context, tx pgx.Tx) error {
		held = nil
		laneRow, err := s.lockLane(ctx, tx, claim.Account)
		if err == nil && !laneRow.HeldBy(claim) {
			err = store.ErrFenced
		}
		if err != nil {
			return err
		}
		behind, err := readRequests(ctx, tx, sqlBehind, claim.Account, s.now(now), store.MaxHoldQueue)
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
