package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// sameHold is how far the ends of two holds for the same reason may differ
// before people are told of the second one.
const sameHold = time.Second

const (
	// Of two that claim at once, the second waits for the row and then sees
	// the first one's lease.
	sqlClaimLane = `
UPDATE lanes
SET fence = fence + 1, lost_claims = lost_claims + 1, lease_owner = $2, lease_until = clock_timestamp() + $3::interval
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
	sqlRings = `SELECT rings FROM lanes WHERE account = $1 AND fence = $2 AND lease_owner IS NOT NULL`
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
		err := tx.QueryRow(ctx, sqlRings, lane.Account, lane.Fence).Scan(&look.Rings)
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

// Begin implements store.Requests. It also refuses a post before whose
// predecessor is live: a thread is in order or it stops.
func (s *Store) Begin(ctx context.Context, claim store.Lane, id string, intent store.Intent) error {
	key := store.Key{Account: claim.Account, ID: id}
	return s.changeLane(ctx, "begin post", claim, key, func(tx pgx.Tx, _ lane, r *request) error {
		if !r.runnable(intent.Post) {
			return store.ErrNotRunnable
		}
		p := r.post(intent.Post)
		p.State, p.ParentID, p.TextHash, p.MediaIDs = jetpost.PostSending, intent.ParentID, intent.TextHash, intent.MediaIDs
		p.SentAt, p.NotAfter, p.Attempt = intent.Now, intent.NotAfter, claim.Fence
		if err := savePost(ctx, tx, key, p); err != nil {
			return err
		}
		r.begin(intent.Now)
		if err := saveRevision(ctx, tx, r, intent.Now); err != nil {
			return err
		}
		// The lane is locked and was ours when it was: this changes its row.
		_, err := tx.Exec(ctx, sqlExtendLane, claim.Account, claim.Fence, intent.Lease)
		return err
	})
}

// changeLane is changeRequest for the holder of the lane. It fails with
// store.ErrFenced for anybody else.
func (s *Store) changeLane(ctx context.Context, what string, claim store.Lane, key store.Key, f func(pgx.Tx, lane, *request) error) error {
	return s.changeRequest(ctx, what, key, func(tx pgx.Tx, line lane, r *request) error {
		if !line.heldBy(claim) {
			return store.ErrFenced
		}
		return f(tx, line, r)
	})
}

// runnable tells whether that post is the next one to be sent.
func (r *request) runnable(post int) bool {
	p := r.post(post)
	if p == nil || p.State != jetpost.PostPending || r.Status.State.Finished() || r.Status.State == jetpost.StateUnknown {
		return false
	}
	for _, earlier := range r.Posts[:post] {
		if earlier.State != jetpost.PostPosted {
			return false
		}
	}
	return true
}

// begin makes the request publishing. That alone is not worth an event, only
// the end of a hold is; an event that is still to be published stays so.
func (r *request) begin(now time.Time) {
	event := r.Event
	if r.Status.State == jetpost.StateHeld {
		event = jetpost.EventRequestResumed
	} else if r.Announced == r.Status.Revision {
		r.Announced++
	}
	r.move(jetpost.StatePublishing, event, nil)
	r.Status.Attempts++
	if r.beganAt.IsZero() {
		r.beganAt = now
	}
}

const sqlProgress = `UPDATE lanes SET lost_claims = 0 WHERE account = $1`

// Posted implements store.Requests. The holder of the lane may tell it too:
// it may have found the post of an earlier one at X.
func (s *Store) Posted(ctx context.Context, claim store.Lane, id string, post int, postID string, now time.Time) (state jetpost.State, err error) {
	key := store.Key{Account: claim.Account, ID: id}
	err = s.changeRequest(ctx, "record post", key, func(tx pgx.Tx, line lane, r *request) error {
		state = r.Status.State
		p := r.post(post)
		switch {
		case p != nil && p.State == jetpost.PostPosted && p.PostID == postID:
			return nil
		case p == nil, p.State == jetpost.PostPosted, p.Attempt == 0,
			p.Attempt != claim.Fence && line.fence != claim.Fence:
			return store.ErrFenced
		}
		p.State, p.PostID = jetpost.PostPosted, postID
		if err := savePost(ctx, tx, key, p); err != nil {
			return err
		}
		r.posted(now)
		if err := saveRevision(ctx, tx, r, now); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlProgress, claim.Account); err != nil {
			return err
		}
		doubted := state == jetpost.StateUnknown
		state = r.Status.State
		if doubted || line.fence != claim.Fence {
			return ring(ctx, tx, claim.Account, now)
		}
		return nil
	})
	return state, err
}

// posted moves the request after one of its posts turned out to be live. A
// request that was taken back, or failed, stays so, with one more post told.
func (r *request) posted(now time.Time) {
	r.Holds = 0
	if r.beganAt.IsZero() {
		r.beganAt = now
	}
	switch state := r.Status.State; {
	case state == jetpost.StateCancelled:
	case r.left() == 0:
		r.move(jetpost.StatePublished, jetpost.EventRequestPublished, nil)
	case state == jetpost.StateUnknown:
		r.move(jetpost.StateQueued, jetpost.EventRequestResumed, nil)
	case state != jetpost.StateFailed:
		r.Event = jetpost.EventRequestProgress
	}
}

// Conclude implements store.Requests.
func (s *Store) Conclude(ctx context.Context, claim store.Lane, id string, out store.Outcome) error {
	key := store.Key{Account: claim.Account, ID: id}
	return s.changeLane(ctx, "conclude request", claim, key, func(tx pgx.Tx, line lane, r *request) error {
		p := r.post(out.Post)
		if p != nil && p.State == jetpost.PostPosted {
			return nil // the doubt was settled while the worker was in it
		}
		if p != nil {
			if p.State == jetpost.PostSending && out.PostState == jetpost.PostPending {
				r.Status.Attempts--
			}
			p.State = out.PostState
			if err := savePost(ctx, tx, key, p); err != nil {
				return err
			}
		}
		if r.conclude(out, line.rings) {
			return saveRevision(ctx, tx, r, out.Now)
		}
		return saveRequest(ctx, tx, r)
	})
}

// conclude moves the request and tells whether that is a new revision. A
// finished request stays as it is, and so does what people are told of a hold
// that is just the same again.
func (r *request) conclude(out store.Outcome, rings int64) bool {
	if r.Status.State.Finished() {
		return r.Status.State == jetpost.StateCancelled && out.Post >= 0
	}
	if out.State != jetpost.StateHeld {
		event := jetpost.EventRequestFailed
		if out.State == jetpost.StateUnknown {
			event = jetpost.EventRequestUnknown
		}
		r.move(out.State, event, &out.Reason)
		return true
	}
	same := r.Status.State == jetpost.StateHeld && r.Status.Reason.Code == out.Reason.Code &&
		r.Status.Reason.Until.Sub(out.Reason.Until).Abs() < sameHold
	if !same {
		r.move(jetpost.StateHeld, jetpost.EventRequestHeld, &out.Reason)
	}
	r.Holds++
	r.HoldUntil = out.Reason.Until
	if r.HoldUntil.IsZero() && rings != out.Rings {
		r.HoldUntil = out.Now
	}
	return !same
}
