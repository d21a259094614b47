package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

const (
	sqlClaimLane = `
UPDATE lanes
SET fence = fence + 1, lease_owner = ?2, lease_until = ?3, lost_claims = lost_claims + 1
WHERE account = ?1 AND (lease_until IS NULL OR lease_until <= ?4)
RETURNING fence, lost_claims - 1`
	sqlFence = `SELECT fence FROM lanes WHERE account = ?1`
)

// ClaimLane implements store.Requests.
func (s *Store) ClaimLane(ctx context.Context, account, worker string, lease time.Duration, now time.Time) (lane store.Lane, claimed bool, err error) {
	err = s.change(ctx, "claim lane", func(tx *sql.Tx) error {
		lane = store.Lane{Account: account}
		err := tx.QueryRowContext(ctx, sqlClaimLane, account, worker, micros(now.Add(lease)), micros(now)).
			Scan(&lane.Fence, &lane.LostClaims)
		if claimed = err == nil; claimed || !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		_, err = fence(ctx, tx, account)
		return err
	})
	if err != nil || !claimed {
		return store.Lane{}, false, err
	}
	return lane, true, nil
}

// fence reads the fence of the lane's latest claim.
func fence(ctx context.Context, tx *sql.Tx, account string) (fence int64, err error) {
	err = tx.QueryRowContext(ctx, sqlFence, account).Scan(&fence)
	return fence, missing(err, store.ErrNotFound)
}

const sqlExtendLane = `
UPDATE lanes SET lease_until = ?3 WHERE account = ?1 AND fence = ?2 AND lease_owner IS NOT NULL`

// ExtendLane implements store.Requests.
func (s *Store) ExtendLane(ctx context.Context, lane store.Lane, lease time.Duration, now time.Time) error {
	return s.change(ctx, "extend lane", func(tx *sql.Tx) error {
		return extendLane(ctx, tx, lane, lease, now)
	})
}

func extendLane(ctx context.Context, tx *sql.Tx, lane store.Lane, lease time.Duration, now time.Time) error {
	return fenced(changed(ctx, tx, sqlExtendLane, lane.Account, lane.Fence, micros(now.Add(lease))))
}

const (
	sqlReleaseLane = `
UPDATE lanes SET lease_owner = NULL, lease_until = NULL, wake_at = ?4, lost_claims = 0
WHERE account = ?1 AND fence = ?2 AND rings = ?3 AND lease_owner IS NOT NULL`
	sqlRings = `SELECT rings FROM lanes WHERE account = ?1 AND fence = ?2 AND lease_owner IS NOT NULL`
)

// ReleaseLane implements store.Requests.
func (s *Store) ReleaseLane(ctx context.Context, lane store.Lane, rings int64, wakeAt, _ time.Time) (released bool, err error) {
	err = s.change(ctx, "release lane", func(tx *sql.Tx) error {
		n, err := changed(ctx, tx, sqlReleaseLane, lane.Account, lane.Fence, rings, micros(wakeAt))
		if released = n > 0; released || err != nil {
			return err
		}
		_, err = readRings(ctx, tx, lane)
		return err
	})
	return released && err == nil, err
}

// readRings fails with store.ErrFenced where the lane is no longer held.
func readRings(ctx context.Context, tx *sql.Tx, lane store.Lane) (rings int64, err error) {
	err = tx.QueryRowContext(ctx, sqlRings, lane.Account, lane.Fence).Scan(&rings)
	return rings, missing(err, store.ErrFenced)
}

const sqlDueLanes = `
SELECT account FROM lanes
WHERE wake_at <= ?1 AND (lease_until IS NULL OR lease_until <= ?1)
ORDER BY wake_at, account LIMIT ?2`

// DueLanes implements store.Requests.
func (s *Store) DueLanes(ctx context.Context, now time.Time, limit int) (accounts []string, err error) {
	err = s.view(ctx, "list due lanes", func(tx *sql.Tx) error {
		accounts, err = collect(ctx, tx, scanText, sqlDueLanes, micros(now), limit)
		return err
	})
	return accounts, err
}

// sqlFront reads the front of a line. What has begun goes first, and once it
// has it is due, whatever another worker's clock says.
const sqlFront = `
SELECT coalesce(
    (SELECT id FROM requests WHERE account = ?1 AND began_at IS NOT NULL AND ` + unfinished + `
     ORDER BY due_at, seq LIMIT 1),
    (SELECT id FROM requests WHERE account = ?1 AND due_at <= ?2 AND ` + unfinished + `
     ORDER BY due_at, seq LIMIT 1),
    ''),
    (SELECT due_at FROM requests WHERE account = ?1 AND due_at > ?2 AND ` + unfinished + `
     ORDER BY due_at LIMIT 1)`

// Look implements store.Requests.
func (s *Store) Look(ctx context.Context, lane store.Lane, now time.Time) (look store.Look, err error) {
	err = s.view(ctx, "look at lane", func(tx *sql.Tx) error {
		look = store.Look{}
		if look.Rings, err = readRings(ctx, tx, lane); err != nil {
			return err
		}
		var head string
		err := tx.QueryRowContext(ctx, sqlFront, lane.Account, micros(now)).Scan(&head, at{&look.NextDue})
		if err != nil || head == "" {
			return err
		}
		r, err := readRequest(ctx, tx, store.Key{Account: lane.Account, ID: head})
		if err != nil {
			return err
		}
		record := r.record()
		look.Head = &record
		return nil
	})
	return look, err
}

// Begin implements store.Requests. It also refuses a post before whose
// predecessor is live: a thread is in order or it stops.
func (s *Store) Begin(ctx context.Context, lane store.Lane, id string, intent store.Intent) error {
	return s.change(ctx, "begin post", func(tx *sql.Tx) error {
		if err := extendLane(ctx, tx, lane, intent.Lease, intent.Now); err != nil {
			return err
		}
		r, err := readRequest(ctx, tx, store.Key{Account: lane.Account, ID: id})
		if err != nil {
			return err
		}
		if !r.runnable(intent.Post) {
			return store.ErrNotRunnable
		}
		p := r.post(intent.Post)
		p.State, p.ParentID, p.TextHash, p.MediaIDs = jetpost.PostSending, intent.ParentID, intent.TextHash, intent.MediaIDs
		p.SentAt, p.NotAfter, p.Attempt = intent.Now, intent.NotAfter, lane.Fence
		if err := savePost(ctx, tx, r.Key, p); err != nil {
			return err
		}
		r.begin(intent.Now)
		return saveRevision(ctx, tx, r, intent.Now)
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

const sqlProgress = `UPDATE lanes SET lost_claims = 0 WHERE account = ?1`

// Posted implements store.Requests.
func (s *Store) Posted(ctx context.Context, lane store.Lane, id string, post int, postID string, now time.Time) (state jetpost.State, err error) {
	err = s.change(ctx, "record post", func(tx *sql.Tx) error {
		r, err := readRequest(ctx, tx, store.Key{Account: lane.Account, ID: id})
		if err != nil {
			return err
		}
		holder, err := fence(ctx, tx, lane.Account)
		if err != nil {
			return err
		}
		state = r.Status.State
		p := r.post(post)
		switch {
		case p != nil && p.State == jetpost.PostPosted && p.PostID == postID:
			return nil
		case p == nil, p.State == jetpost.PostPosted, p.Attempt == 0,
			p.Attempt != lane.Fence && holder != lane.Fence:
			return store.ErrFenced
		}
		p.State, p.PostID = jetpost.PostPosted, postID
		if err := savePost(ctx, tx, r.Key, p); err != nil {
			return err
		}
		r.posted(now)
		if err := saveRevision(ctx, tx, r, now); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlProgress, lane.Account); err != nil {
			return err
		}
		doubted := state == jetpost.StateUnknown
		state = r.Status.State
		if doubted || holder != lane.Fence {
			return ring(ctx, tx, lane.Account, now)
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
func (s *Store) Conclude(ctx context.Context, lane store.Lane, id string, out store.Outcome) error {
	return s.change(ctx, "conclude request", func(tx *sql.Tx) error {
		rings, err := readRings(ctx, tx, lane)
		if err != nil {
			return err
		}
		r, err := readRequest(ctx, tx, store.Key{Account: lane.Account, ID: id})
		if err != nil {
			return err
		}
		p := r.post(out.Post)
		if p != nil && p.State == jetpost.PostPosted {
			return nil // the doubt was settled while the worker was in it
		}
		if p != nil {
			if p.State == jetpost.PostSending && out.PostState == jetpost.PostPending {
				r.Status.Attempts--
			}
			p.State = out.PostState
			if err := savePost(ctx, tx, r.Key, p); err != nil {
				return err
			}
		}
		if r.conclude(out, rings) {
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
		r.Status.Reason.Until.Sub(out.Reason.Until).Abs() < time.Second
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
