package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

const (
	// sqlNextPlace hands out a place in the line: a sequence number and, for a
	// request that is due at once (?3), the acceptance time.
	sqlNextPlace = `
UPDATE lanes
SET next_seq = next_seq + 1, last_due = CASE WHEN ?3 THEN max(last_due, ?2) ELSE last_due END
WHERE account = ?1
RETURNING next_seq - 1, last_due`
	// sqlRing counts a change and brings the lane's next run forward to ?2.
	sqlRing       = `UPDATE lanes SET rings = rings + 1, wake_at = min(coalesce(wake_at, ?2), ?2) WHERE account = ?1`
	sqlDigest     = `SELECT digest FROM requests WHERE account = ?1 AND id = ?2`
	sqlAddRequest = `
INSERT INTO requests (account, id, seq, state, event, reason_code, reason_detail, reason_until, hold_until, holds,
                      accepted_at, due_at, publish_at, expires_at, updated_at, metadata, body, digest)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8, ?9, ?10, ?11, ?12, ?13, ?10, ?14, ?15, ?16)`
	sqlAddPost = `INSERT INTO posts (account, request_id, idx) VALUES (?1, ?2, ?3)`
)

// Accept implements store.Requests.
func (s *Store) Accept(ctx context.Context, in store.Acceptance) (decision store.Decision, err error) {
	key := store.Key{Account: in.Request.Account, ID: in.Request.ID}
	err = s.change(ctx, "accept request", func(tx *sql.Tx) error {
		var digest []byte
		err := tx.QueryRowContext(ctx, sqlDigest, key.Account, key.ID).Scan(&digest)
		if errors.Is(err, sql.ErrNoRows) {
			decision = store.Accepted
			return accept(ctx, tx, key, in)
		}
		if err != nil {
			return err
		}
		decision, err = acceptAgain(ctx, tx, key, in, digest)
		return err
	})
	return decision, err
}

func accept(ctx context.Context, tx *sql.Tx, key store.Key, in store.Acceptance) error {
	immediate := !in.Request.PublishAt.After(in.Now)
	var seq int64
	due := in.Request.PublishAt
	var last time.Time
	if err := tx.QueryRowContext(ctx, sqlNextPlace, key.Account, micros(in.Now), immediate).Scan(&seq, at{&last}); err != nil {
		return missing(err, store.ErrNotFound)
	}
	if immediate {
		due = last
	}
	state, event := entry(in)
	var reason jetpost.Reason
	var code any
	holds := 0
	if in.Hold != nil {
		reason, code, holds = *in.Hold, string(in.Hold.Code), 1
	}
	meta, err := metadata(in.Request)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, sqlAddRequest, key.Account, key.ID, seq, string(state), string(event),
		code, reason.Detail, micros(reason.Until), holds, micros(in.Now), micros(due),
		micros(in.Request.PublishAt), micros(in.Request.ExpiresAt), meta, blob(in.Body), blob(in.Digest))
	if err != nil {
		return err
	}
	if err := addPosts(ctx, tx, key, in); err != nil {
		return err
	}
	return ring(ctx, tx, key.Account, due)
}

// entry is the state of a request that enters its line, and the event that
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

func addPosts(ctx context.Context, tx *sql.Tx, key store.Key, in store.Acceptance) error {
	if in.Hold != nil {
		return nil // nothing in it is understood yet
	}
	for i := range in.Request.Posts {
		if _, err := tx.ExecContext(ctx, sqlAddPost, key.Account, key.ID, i); err != nil {
			return err
		}
	}
	return nil
}

// acceptAgain judges a request whose identity is known. The same bytes are the
// same request even where the digests differ, as those of a worker that can
// read it and of one that cannot do.
func acceptAgain(ctx context.Context, tx *sql.Tx, key store.Key, in store.Acceptance, digest []byte) (store.Decision, error) {
	r, err := readRequest(ctx, tx, key)
	if err != nil {
		return 0, err
	}
	sameBody := bytes.Equal(r.Body, in.Body)
	unread := r.Status.State == jetpost.StateHeld && len(r.Posts) == 0
	switch {
	case sameBody && unread && in.Hold == nil:
		return store.Accepted, readAtLast(ctx, tx, r, in)
	case sameBody || bytes.Equal(digest, in.Digest):
		return store.Repeated, nil
	default:
		return store.Conflict, nil
	}
}

const sqlReadAtLast = `
UPDATE requests SET publish_at = ?3, expires_at = ?4, metadata = ?5, digest = ?6 WHERE account = ?1 AND id = ?2`

// readAtLast fills in a request that was accepted unread. It keeps its place.
func readAtLast(ctx context.Context, tx *sql.Tx, r *request, in store.Acceptance) error {
	meta, err := metadata(in.Request)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, sqlReadAtLast, r.Account, r.ID,
		micros(in.Request.PublishAt), micros(in.Request.ExpiresAt), meta, blob(in.Digest))
	if err != nil {
		return err
	}
	if err := addPosts(ctx, tx, r.Key, in); err != nil {
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

func metadata(request jetpost.Request) (string, error) {
	if len(request.Metadata) == 0 {
		return "{}", nil
	}
	text, err := json.Marshal(request.Metadata)
	return string(text), err
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

func ring(ctx context.Context, tx *sql.Tx, account string, wakeAt time.Time) error {
	_, err := tx.ExecContext(ctx, sqlRing, account, micros(wakeAt))
	return err
}

const (
	sqlRefuse = `
INSERT INTO refusals (stored, sequence, account, id, code, problems, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
ON CONFLICT (stored, sequence) DO NOTHING`
	sqlRefusals = `
SELECT stored, sequence, account, id, code, problems FROM refusals ORDER BY stored DESC, sequence DESC LIMIT ?1`
)

// Refuse implements store.Requests.
func (s *Store) Refuse(ctx context.Context, refusal jetpost.Refusal, body []byte) error {
	return s.change(ctx, "record refusal", func(tx *sql.Tx) error {
		problems, err := json.Marshal(refusal.Problems)
		if err != nil {
			return err
		}
		// A sequence beyond 63 bits is stored as a negative number and read
		// back as it was.
		_, err = tx.ExecContext(ctx, sqlRefuse, refusal.Stored.UnixMicro(), int64(refusal.Sequence),
			refusal.Account, refusal.ID, string(refusal.Code), string(problems), blob(body))
		return err
	})
}

// Refusals implements store.Requests.
func (s *Store) Refusals(ctx context.Context, limit int) (refusals []jetpost.Refusal, err error) {
	err = s.view(ctx, "list refusals", func(tx *sql.Tx) error {
		refusals, err = collect(ctx, tx, scanRefusal, sqlRefusals, limit)
		return err
	})
	return refusals, err
}

func scanRefusal(row scanner) (r jetpost.Refusal, err error) {
	var sequence int64
	var problems []byte
	if err = row.Scan(at{&r.Stored}, &sequence, &r.Account, &r.ID, &r.Code, &problems); err != nil {
		return jetpost.Refusal{}, err
	}
	r.Sequence = uint64(sequence)
	return r, json.Unmarshal(problems, &r.Problems)
}

const sqlEndHolds = `
UPDATE requests SET hold_until = ?3
WHERE account = ?1 AND state = 'held' AND reason_code = ?2 AND (hold_until IS NULL OR hold_until > ?3)`

// EndHolds implements store.Requests.
func (s *Store) EndHolds(ctx context.Context, account string, code jetpost.Code, now time.Time) (n int, err error) {
	err = s.change(ctx, "end holds", func(tx *sql.Tx) error {
		n, err = endHolds(ctx, tx, account, code, now)
		return err
	})
	return n, err
}

// endHolds rings even where nothing is held: a worker may be about to commit
// just such a hold, and sees by the ring that it is over already. The state
// stays held until the request moves, so nothing is announced.
func endHolds(ctx context.Context, tx *sql.Tx, account string, code jetpost.Code, now time.Time) (int, error) {
	n, err := changed(ctx, tx, sqlEndHolds, account, string(code), micros(now))
	if err != nil {
		return 0, err
	}
	return n, ring(ctx, tx, account, now)
}

const sqlLastDue = `SELECT last_due FROM lanes WHERE account = ?1`

// Replay implements store.Requests.
func (s *Store) Replay(ctx context.Context, key store.Key, now time.Time) (result store.ReplayResult, err error) {
	err = s.change(ctx, "replay request", func(tx *sql.Tx) error {
		r, err := readRequest(ctx, tx, key)
		if err != nil {
			return err
		}
		result = store.ReplayResult{State: r.Status.State, Left: r.left()}
		switch {
		case r.Status.State == jetpost.StateFailed:
			// It left the line when it failed, and joins it at the end.
			var last time.Time
			if err := tx.QueryRowContext(ctx, sqlLastDue, key.Account).Scan(at{&last}); err != nil {
				return err
			}
			r.DueAt = latest(latest(now, last), r.Status.PublishAt)
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
		return backInLine(ctx, tx, r, now)
	})
	return result, err
}

// backInLine queues a request that waited for a person, and rings its lane.
func backInLine(ctx context.Context, tx *sql.Tx, r *request, now time.Time) error {
	r.move(jetpost.StateQueued, jetpost.EventRequestResumed, nil)
	if err := saveRevision(ctx, tx, r, now); err != nil {
		return err
	}
	return ring(ctx, tx, r.Account, now)
}

// Cancel implements store.Requests. It rings the lane, since the request may
// have stood in the way of others.
func (s *Store) Cancel(ctx context.Context, key store.Key, now time.Time) (before jetpost.State, err error) {
	err = s.change(ctx, "cancel request", func(tx *sql.Tx) error {
		r, err := readRequest(ctx, tx, key)
		if err != nil {
			return err
		}
		before = r.Status.State
		if before.Finished() {
			return store.ErrNotRunnable
		}
		r.move(jetpost.StateCancelled, jetpost.EventRequestCancelled, nil)
		if err := saveRevision(ctx, tx, r, now); err != nil {
			return err
		}
		return ring(ctx, tx, key.Account, now)
	})
	return before, err
}

// Resolve implements store.Requests.
func (s *Store) Resolve(ctx context.Context, key store.Key, postID string, now time.Time) (state jetpost.State, err error) {
	err = s.change(ctx, "resolve request", func(tx *sql.Tx) error {
		r, err := readRequest(ctx, tx, key)
		if err != nil {
			return err
		}
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
		if r.left() > 0 {
			state = jetpost.StateQueued
			return backInLine(ctx, tx, r, now)
		}
		state = jetpost.StatePublished
		r.move(state, jetpost.EventRequestPublished, nil)
		if err := saveRevision(ctx, tx, r, now); err != nil {
			return err
		}
		return ring(ctx, tx, key.Account, now)
	})
	return state, err
}

// doubtful returns the post of an unknown request that may be live.
func (r *request) doubtful() *store.PostRecord {
	if r.Status.State != jetpost.StateUnknown {
		return nil
	}
	for i := range r.Posts {
		if r.Posts[i].State == jetpost.PostSending {
			return &r.Posts[i]
		}
	}
	return nil
}

// Request implements store.Requests.
func (s *Store) Request(ctx context.Context, key store.Key) (record store.Record, err error) {
	err = s.view(ctx, "read request", func(tx *sql.Tx) error {
		r, err := readRequest(ctx, tx, key)
		if err == nil {
			record = r.record()
		}
		return err
	})
	return record, err
}

const (
	defaultListLimit = 100 // requests

	sqlListRequests = sqlFromRequests + `
WHERE (?1 = '' OR account = ?1) AND (?2 = '' OR id = ?2) AND (?3 = '' OR state = ?3)
  AND (?4 = '' OR reason_code = ?4) AND (?5 IS NULL OR accepted_at >= ?5)
ORDER BY accepted_at DESC, seq DESC, account LIMIT ?6`
)

// ListRequests implements store.Requests.
func (s *Store) ListRequests(ctx context.Context, f store.Filter) (records []store.Record, err error) {
	if f.Limit <= 0 {
		f.Limit = defaultListLimit
	}
	err = s.view(ctx, "list requests", func(tx *sql.Tx) error {
		rows, err := collect(ctx, tx, scanRequest, sqlListRequests,
			f.Account, f.ID, string(f.State), string(f.Code), micros(f.Since), f.Limit)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if err := readPosts(ctx, tx, r); err != nil {
				return err
			}
			records = append(records, r.record())
		}
		return nil
	})
	return records, err
}

const sqlCountRequests = `SELECT state, count(*) FROM requests GROUP BY state`

// CountRequests implements store.Requests.
func (s *Store) CountRequests(ctx context.Context) (counts map[jetpost.State]int, err error) {
	counts = make(map[jetpost.State]int)
	err = s.view(ctx, "count requests", func(tx *sql.Tx) error {
		_, err := collect(ctx, tx, func(row scanner) (none struct{}, err error) {
			var state jetpost.State
			var n int
			err = row.Scan(&state, &n)
			counts[state] = n
			return none, err
		}, sqlCountRequests)
		return err
	})
	return counts, err
}

const sqlUnannounced = `
SELECT account, id FROM requests WHERE announced < revision AND updated_at < ?1 ORDER BY updated_at LIMIT ?2`

// Unannounced implements store.Requests.
func (s *Store) Unannounced(ctx context.Context, before time.Time, limit int) (keys []store.Key, err error) {
	err = s.view(ctx, "list unannounced requests", func(tx *sql.Tx) error {
		keys, err = collect(ctx, tx, func(row scanner) (key store.Key, err error) {
			err = row.Scan(&key.Account, &key.ID)
			return key, err
		}, sqlUnannounced, micros(before), limit)
		return err
	})
	return keys, err
}

const sqlMarkAnnounced = `
UPDATE requests SET announced = max(announced, min(?3, revision)) WHERE account = ?1 AND id = ?2 RETURNING revision`

// MarkAnnounced implements store.Requests.
func (s *Store) MarkAnnounced(ctx context.Context, key store.Key, revision int64) (latest bool, err error) {
	err = s.change(ctx, "mark request announced", func(tx *sql.Tx) error {
		var current int64
		err := tx.QueryRowContext(ctx, sqlMarkAnnounced, key.Account, key.ID, revision).Scan(&current)
		latest = err == nil && current == revision
		return missing(err, store.ErrNotFound)
	})
	return latest, err
}
