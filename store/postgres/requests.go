package postgres

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

const (
	sqlAddRequest = `
INSERT INTO requests (account, id, seq, state, revision, event, reason_code, reason_detail, reason_until, hold_until,
    holds, accepted_at, due_at, publish_at, expires_at, updated_at, metadata, body, digest)
VALUES ($1, $2, $3, $4, 1, $5, nullif($6, ''), $7, $8, $8, $9, $10, $11, $12, $13, $10, $14, $15, $16)`
	sqlAddPosts = `INSERT INTO posts (account, request_id, idx) SELECT $1, $2, generate_series(0, $3::integer - 1)`
	sqlPlaced   = `UPDATE lanes SET next_seq = next_seq + 1, last_due = $2 WHERE account = $1`
	// sqlRing counts a change and brings the lane's next run forward to $2.
	sqlRing = `UPDATE lanes SET rings = rings + 1, wake_at = least(wake_at, $2) WHERE account = $1`
)

// Accept implements store.Requests. The lock on the lane puts acceptances of
// an account into one order.
func (s *Store) Accept(ctx context.Context, in store.Acceptance) (decision store.Decision, err error) {
	err = s.change(ctx, "accept request", func(tx pgx.Tx) error {
		line, err := lockLane(ctx, tx, in.Request.Account)
		if err != nil {
			return err
		}
		r, err := lockRequest(ctx, tx, store.Key{Account: in.Request.Account, ID: in.Request.ID})
		switch {
		case errors.Is(err, store.ErrNotFound):
			decision = store.Accepted
			return accept(ctx, tx, line, in)
		case err != nil:
			return err
		}
		decision, err = acceptAgain(ctx, tx, r, in)
		return err
	})
	if err != nil {
		return 0, err
	}
	return decision, nil
}

func accept(ctx context.Context, tx pgx.Tx, line lane, in store.Acceptance) error {
	r := in.Request
	due, lastDue := r.PublishAt, line.lastDue
	if !r.PublishAt.After(in.Now) {
		// Never before one that was accepted earlier, even if by a worker
		// whose clock is ahead.
		due = latest(in.Now, line.lastDue)
		lastDue = due
	}
	state, event := entry(in)
	var reason jetpost.Reason
	holds := 0
	if in.Hold != nil {
		reason, holds = *in.Hold, 1
	}
	_, err := tx.Exec(ctx, sqlAddRequest, r.Account, r.ID, line.nextSeq, state, event,
		reason.Code, storable(reason.Detail), moment(reason.Until), holds,
		in.Now, due, moment(r.PublishAt), moment(r.ExpiresAt), r.Metadata, blob(in.Body), blob(in.Digest))
	if err != nil {
		return err
	}
	if err := addPosts(ctx, tx, in); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, sqlPlaced, r.Account, moment(lastDue)); err != nil {
		return err
	}
	return ring(ctx, tx, r.Account, due)
}

// entry is the state in which a request enters its line, and the event that
// tells of it.
func entry(in store.Acceptance) (jetpost.State, jetpost.EventType) {
	switch {
	case in.Hold != nil:
		return jetpost.StateHeld, jetpost.EventRequestHeld
	case in.Request.PublishAt.After(in.Now):
		return jetpost.StateScheduled, jetpost.EventRequestScheduled
	default:
		return jetpost.StateQueued, jetpost.EventRequestAccepted
	}
}

// addPosts adds none for a request that nobody can read yet.
func addPosts(ctx context.Context, tx pgx.Tx, in store.Acceptance) error {
	if in.Hold != nil {
		return nil
	}
	_, err := tx.Exec(ctx, sqlAddPosts, in.Request.Account, in.Request.ID, len(in.Request.Posts))
	return err
}

// acceptAgain judges a request whose identity is known. Equal bytes are the
// same request even if the digests differ, for a worker that cannot read it
// has another digest than one that can.
func acceptAgain(ctx context.Context, tx pgx.Tx, r *request, in store.Acceptance) (store.Decision, error) {
	same := bytes.Equal(r.Body, in.Body)
	unread := r.Status.State == jetpost.StateHeld && len(r.Posts) == 0
	switch {
	case same && unread && in.Hold == nil:
		return store.Accepted, readAtLast(ctx, tx, r, in)
	case same || bytes.Equal(r.digest, in.Digest):
		return store.Repeated, nil
	default:
		return store.Conflict, nil
	}
}

const sqlReadAtLast = `
UPDATE requests SET publish_at = $3, expires_at = $4, metadata = $5, digest = $6 WHERE account = $1 AND id = $2`

// readAtLast completes a request that was accepted unread. It keeps its place.
func readAtLast(ctx context.Context, tx pgx.Tx, r *request, in store.Acceptance) error {
	_, err := tx.Exec(ctx, sqlReadAtLast, r.Account, r.ID,
		moment(in.Request.PublishAt), moment(in.Request.ExpiresAt), in.Request.Metadata, blob(in.Digest))
	if err != nil {
		return err
	}
	if err := addPosts(ctx, tx, in); err != nil {
		return err
	}
	state, _ := entry(in)
	r.move(state, jetpost.EventRequestResumed, nil)
	r.Holds = 0
	r.DueAt = latest(r.DueAt, in.Request.PublishAt)
	if err := saveRevision(ctx, tx, r, in.Now); err != nil {
		return err
	}
	return ring(ctx, tx, r.Account, r.DueAt)
}

// blob keeps an empty value from being stored as NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func ring(ctx context.Context, tx pgx.Tx, account string, wakeAt time.Time) error {
	_, err := tx.Exec(ctx, sqlRing, account, wakeAt)
	return err
}

const (
	sqlRefuse = `
INSERT INTO refusals (sequence, stored, account, id, code, problems, body) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (sequence, stored) DO NOTHING`
	sqlRefusals = `
SELECT sequence, stored, account, id, code, problems FROM refusals
ORDER BY stored DESC, sequence DESC LIMIT $1`
)

// Refuse implements store.Requests.
func (s *Store) Refuse(ctx context.Context, refusal jetpost.Refusal, body []byte) error {
	_, err := s.pool.Exec(ctx, sqlRefuse, int64(refusal.Sequence), refusal.Stored,
		storable(refusal.Account), storable(refusal.ID), refusal.Code, refusal.Problems, blob(body))
	return s.wrap("record refusal", err)
}

// Refusals implements store.Requests.
func (s *Store) Refusals(ctx context.Context, limit int) ([]jetpost.Refusal, error) {
	refusals, err := collect(ctx, s.pool, func(row scanner) (r jetpost.Refusal, err error) {
		var sequence int64
		err = row.Scan(&sequence, at{&r.Stored}, &r.Account, &r.ID, &r.Code, &r.Problems)
		r.Sequence = uint64(sequence)
		return r, err
	}, sqlRefusals, limit)
	return refusals, s.wrap("list refusals", err)
}

const sqlEndHolds = `
UPDATE requests SET hold_until = $3
WHERE account = $1 AND state = 'held' AND reason_code = $2 AND (hold_until IS NULL OR hold_until > $3)`

// EndHolds implements store.Requests.
func (s *Store) EndHolds(ctx context.Context, account string, code jetpost.Code, now time.Time) (n int, err error) {
	err = s.change(ctx, "end holds", func(tx pgx.Tx) error {
		n, err = endHolds(ctx, tx, account, code, now)
		return err
	})
	return n, err
}

// endHolds rings even if nothing is held: a worker may be about to commit just
// such a hold, and learns by the ring that it is over already. The requests
// stay held until they move, so that there is nothing to announce.
func endHolds(ctx context.Context, tx pgx.Tx, account string, code jetpost.Code, now time.Time) (int, error) {
	if err := ring(ctx, tx, account, now); err != nil { // first, for its lock
		return 0, err
	}
	return changed(ctx, tx, sqlEndHolds, account, code, now)
}

// Replay implements store.Requests. A post that may be live stays in doubt.
func (s *Store) Replay(ctx context.Context, key store.Key, now time.Time) (result store.ReplayResult, err error) {
	err = s.changeRequest(ctx, "replay request", key, func(tx pgx.Tx, line lane, r *request) error {
		result = store.ReplayResult{State: r.Status.State, Left: r.left()}
		switch {
		case r.Status.State == jetpost.StateFailed:
			// It left the line when it failed, and joins it at the end.
			r.DueAt = latest(latest(now, line.lastDue), r.Status.PublishAt)
			r.beganAt = time.Time{}
		case r.Status.State != jetpost.StateHeld || len(r.Posts) == 0:
			return nil
		}
		result.Queued = true
		for i := range r.Posts {
			if p := &r.Posts[i]; p.State == jetpost.PostFailed {
				p.State = jetpost.PostPending
				if err := savePost(ctx, tx, key, p); err != nil {
					return err
				}
			}
		}
		r.Holds = 0
		r.move(jetpost.StateQueued, jetpost.EventRequestResumed, nil)
		return saveAndRing(ctx, tx, r, now)
	})
	return result, err
}

// Cancel implements store.Requests. It rings the lane, since the request may
// have stood in the way of others.
func (s *Store) Cancel(ctx context.Context, key store.Key, now time.Time) (before jetpost.State, err error) {
	err = s.changeRequest(ctx, "cancel request", key, func(tx pgx.Tx, _ lane, r *request) error {
		before = r.Status.State
		if before.Finished() {
			return store.ErrNotRunnable
		}
		r.move(jetpost.StateCancelled, jetpost.EventRequestCancelled, nil)
		return saveAndRing(ctx, tx, r, now)
	})
	return before, err
}

// Resolve implements store.Requests.
func (s *Store) Resolve(ctx context.Context, key store.Key, postID string, now time.Time) (state jetpost.State, err error) {
	err = s.changeRequest(ctx, "resolve request", key, func(tx pgx.Tx, _ lane, r *request) error {
		p := r.doubtful()
		if p == nil {
			return store.ErrNotRunnable
		}
		p.State = jetpost.PostPending
		if postID != "" {
			p.State, p.PostID = jetpost.PostPosted, postID
		}
		if err := savePost(ctx, tx, key, p); err != nil {
			return err
		}
		r.Holds = 0
		r.move(jetpost.StateQueued, jetpost.EventRequestResumed, nil)
		if r.left() == 0 {
			r.move(jetpost.StatePublished, jetpost.EventRequestPublished, nil)
		}
		state = r.Status.State
		return saveAndRing(ctx, tx, r, now)
	})
	return state, err
}

func saveAndRing(ctx context.Context, tx pgx.Tx, r *request, now time.Time) error {
	if err := saveRevision(ctx, tx, r, now); err != nil {
		return err
	}
	return ring(ctx, tx, r.Account, now)
}

// Request implements store.Requests.
func (s *Store) Request(ctx context.Context, key store.Key) (record store.Record, err error) {
	err = s.view(ctx, "read request", func(tx pgx.Tx) error {
		found, err := readRecords(ctx, tx, sqlRequest, key.Account, key.ID)
		switch {
		case err != nil:
			return err
		case len(found) == 0:
			return store.ErrNotFound
		}
		record = found[0]
		return nil
	})
	return record, err
}

const (
	defaultListLimit = 100 // requests

	sqlListRequests = `
SELECT ` + requestColumns + ` FROM requests
WHERE ($1 = '' OR account = $1) AND ($2 = '' OR id = $2) AND ($3 = '' OR state = $3) AND ($4 = '' OR reason_code = $4)
  AND ($5::timestamptz IS NULL OR accepted_at >= $5)
ORDER BY accepted_at DESC, seq DESC, account LIMIT $6`
)

// ListRequests implements store.Requests. The statement is planned anew for
// each call, since the best index depends on which filters are set.
func (s *Store) ListRequests(ctx context.Context, f store.Filter) (list []store.Record, err error) {
	if f.Limit <= 0 {
		f.Limit = defaultListLimit
	}
	err = s.view(ctx, "list requests", func(tx pgx.Tx) error {
		list, err = readRecords(ctx, tx, sqlListRequests, pgx.QueryExecModeCacheDescribe,
			f.Account, f.ID, f.State, f.Code, moment(f.Since), f.Limit)
		return err
	})
	return list, err
}

const sqlCountRequests = `SELECT state, count(*) FROM requests GROUP BY state`

// CountRequests implements store.Requests.
func (s *Store) CountRequests(ctx context.Context) (map[jetpost.State]int, error) {
	type count struct {
		state jetpost.State
		n     int
	}
	counts, err := collect(ctx, s.pool, func(row scanner) (c count, err error) {
		err = row.Scan(&c.state, &c.n)
		return c, err
	}, sqlCountRequests)
	byState := make(map[jetpost.State]int, len(counts))
	for _, c := range counts {
		byState[c.state] = c.n
	}
	return byState, s.wrap("count requests", err)
}

const sqlUnannounced = `
SELECT account, id FROM requests WHERE announced < revision AND updated_at < $1
ORDER BY updated_at LIMIT $2`

// Unannounced implements store.Requests.
func (s *Store) Unannounced(ctx context.Context, before time.Time, limit int) ([]store.Key, error) {
	keys, err := collect(ctx, s.pool, func(row scanner) (key store.Key, err error) {
		err = row.Scan(&key.Account, &key.ID)
		return key, err
	}, sqlUnannounced, before, limit)
	return keys, s.wrap("list unannounced requests", err)
}

const sqlMarkAnnounced = `
UPDATE requests SET announced = greatest(announced, least($3, revision)) WHERE account = $1 AND id = $2
RETURNING revision = $3`

// MarkAnnounced implements store.Requests.
func (s *Store) MarkAnnounced(ctx context.Context, key store.Key, revision int64) (latest bool, err error) {
	err = s.pool.QueryRow(ctx, sqlMarkAnnounced, key.Account, key.ID, revision).Scan(&latest)
	return latest, s.wrap("mark request announced", missing(err, store.ErrNotFound))
}
