package postgres

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

const (
	sqlAddRequest = `
INSERT INTO requests (account, id, seq, state, revision, event, reason_code, reason_detail, reason_until, hold_until,
    holds, accepted_at, due_at, publish_at, expires_at, updated_at, metadata, body, digest, cost_micros)
VALUES ($1, $2, $3, $4, $18, $5, nullif($6, ''), $7, $8, $9, $10, $11, $12, $13, $14, $11, $15, $16, $17, $19)`
	sqlAddPosts = `
INSERT INTO posts (account, request_id, idx, text_hash, media)
SELECT $1, $2, idx - 1, hash, media FROM unnest($3::bytea[], $4::json[]) WITH ORDINALITY AS p (hash, media, idx)`
	sqlPlaced = `UPDATE lanes SET next_seq = $2, last_due = $3 WHERE account = $1`
	// sqlRing counts a change and brings the lane's next run forward to $2, or to now.
	sqlRing = `UPDATE lanes SET rings = rings + 1, wake_at = least(wake_at, coalesce($2::timestamptz, statement_timestamp())) WHERE account = $1`
)

// Accept implements store.Requests. The lock on the lane puts acceptances of
// an account into one order.
func (s *Store) Accept(ctx context.Context, in store.Acceptance) (decision store.Decision, err error) {
	err = s.change(ctx, "accept request", func(ctx context.Context, tx pgx.Tx) error {
		line, err := s.lockLane(ctx, tx, in.Request.Account)
		if err != nil {
			return err
		}
		in := in
		in.Now = line.At(in.Now)
		r, err := lockRequest(ctx, tx, store.Key{Account: in.Request.Account, ID: in.Request.ID})
		if errors.Is(err, store.ErrNotFound) {
			decision = store.Accepted
			return enter(ctx, tx, line, in)
		}
		if err != nil {
			return err
		}
		var change store.Change
		decision, change = r.AcceptAgain(in)
		if decision == store.Accepted {
			if err := refuseText(ctx, tx, r, in); err != nil {
				return err
			}
		}
		return save(ctx, tx, line, r, change)
	})
	if err != nil {
		return 0, err
	}
	return decision, nil
}

func enter(ctx context.Context, tx pgx.Tx, line store.Line, in store.Acceptance) error {
	r := line.Enter(in)
	if err := refuseText(ctx, tx, r, in); err != nil {
		return err
	}
	st := &r.Status
	var reason jetpost.Reason
	if st.Reason != nil {
		reason = *st.Reason
	}
	_, err := tx.Exec(ctx, sqlAddRequest, r.Account, r.ID, r.Seq, st.State, r.Event,
		reason.Code, storable(reason.Detail), moment(reason.Until), moment(r.HoldUntil), r.Holds,
		st.AcceptedAt, r.DueAt, moment(st.PublishAt), moment(st.ExpiresAt), st.Metadata, blob(r.Body), blob(r.Digest), st.Revision, r.CostMicros)
	if err != nil {
		return err
	}
	if err := addPosts(ctx, tx, r); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, sqlPlaced, r.Account, line.NextSeq, moment(line.LastDue)); err != nil {
		return err
	}
	return ring(ctx, tx, r.Account, r.DueAt)
}

func addPosts(ctx context.Context, tx pgx.Tx, r *store.Row) error {
	hashes := make([][]byte, len(r.Posts))
	lists := make([]string, len(r.Posts)) // a list of lists would be an array of two dimensions
	for i, p := range r.Posts {
		list, err := json.Marshal(media(p.Media))
		if err != nil {
			return err
		}
		hashes[i], lists[i] = p.TextHash, string(list)
	}
	_, err := tx.Exec(ctx, sqlAddPosts, r.Account, r.ID, hashes, lists)
	return err
}

const (
	// sqlLockTexts has whoever accepts one of the same texts wait until this one is
	// there to be seen. The keys are sorted, so that no two wait for each other.
	sqlLockTexts = `SELECT count(pg_advisory_xact_lock(key)) FROM unnest($1::bigint[]) AS key`
	sqlSameText  = `
SELECT found.account, found.request_id FROM unnest($2::bytea[]) AS t (hash) CROSS JOIN LATERAL (
    (SELECT account, request_id FROM posts
     WHERE text_hash = t.hash AND account <> $1 AND state IN ('sending', 'posted') AND sent_at > $3 AND sent_at < $4 LIMIT 1)
    UNION ALL
    (SELECT p.account, p.request_id FROM posts AS p JOIN requests AS r ON r.account = p.account AND r.id = p.request_id
     WHERE p.text_hash = t.hash AND p.account <> $1 AND p.state = 'pending' AND r.` + unfinished + `
       AND greatest(r.due_at, $5) > $3 AND greatest(r.due_at, $5) < $4 LIMIT 1)
) AS found LIMIT 1`
)

// refuseText fails a request whose text another account posts, where that is
// asked for. Two that come at once see each other: the second one fails.
func refuseText(ctx context.Context, tx pgx.Tx, r *store.Row, in store.Acceptance) error {
	texts := store.TextsOf(in.Request, in.Now)
	if !in.RefuseSameText || len(texts.Hashes) == 0 {
		return nil
	}
	keys := make([]int64, len(texts.Hashes))
	for i, hash := range texts.Hashes {
		keys[i] = int64(binary.BigEndian.Uint64(hash))
	}
	slices.Sort(keys)
	if _, err := tx.Exec(ctx, sqlLockTexts, keys); err != nil {
		return err
	}
	other, found, err := findText(ctx, tx, texts)
	if found {
		r.RefuseText(other)
	}
	return err
}

func findText(ctx context.Context, q querier, texts store.TextQuery) (other store.Key, found bool, err error) {
	if len(texts.Hashes) == 0 {
		return store.Key{}, false, nil
	}
	from, to := texts.Span()
	keys, err := collect(ctx, q, func(row scanner) (key store.Key, err error) {
		return key, row.Scan(&key.Account, &key.ID)
	}, sqlSameText, texts.Account, texts.Hashes, from, to, texts.Now)
	if err != nil || len(keys) == 0 {
		return store.Key{}, false, err
	}
	return keys[0], true, nil
}

// SameText implements store.Requests.
func (s *Store) SameText(ctx context.Context, q store.TextQuery) (other store.Key, found bool, err error) {
	other, found, err = findText(ctx, s.db, q)
	return other, found, s.wrap("look for the same text", err)
}

const sqlSaveContents = `
UPDATE requests SET publish_at = $3, expires_at = $4, metadata = $5, digest = $6, cost_micros = $7 WHERE account = $1 AND id = $2`

// saveContents completes a request that was accepted unread.
func saveContents(ctx context.Context, tx pgx.Tx, r *store.Row) error {
	st := &r.Status
	_, err := tx.Exec(ctx, sqlSaveContents, r.Account, r.ID,
		moment(st.PublishAt), moment(st.ExpiresAt), st.Metadata, blob(r.Digest), r.CostMicros)
	if err != nil {
		return err
	}
	return addPosts(ctx, tx, r)
}

// blob keeps an empty value from being stored as NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func ring(ctx context.Context, tx pgx.Tx, account string, wakeAt any) error {
	_, err := tx.Exec(ctx, sqlRing, account, wakeAt)
	return err
}

const (
	sqlRefuse = `
INSERT INTO refusals (sequence, stored, account, id, code, problems, body) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (sequence, stored) DO NOTHING`
	// sqlForgetRefusals leaves alone what another call is forgetting just now.
	sqlForgetRefusals = `
DELETE FROM refusals WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM refusals WHERE stored < $1 ORDER BY stored, sequence LIMIT $2 FOR UPDATE SKIP LOCKED))`
	sqlRefusals = `
SELECT sequence, stored, account, id, code, problems FROM refusals
ORDER BY stored DESC, sequence DESC LIMIT $1`
)

// Refuse implements store.Requests.
func (s *Store) Refuse(ctx context.Context, refusal jetpost.Refusal, body []byte) error {
	problems := append([]jetpost.Problem{}, refusal.Problems...) // a list, if an empty one
	return s.change(ctx, "record refusal", func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sqlRefuse, int64(refusal.Sequence), refusal.Stored,
			storable(refusal.Account), storable(refusal.ID), refusal.Code, problems, blob(body))
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, sqlForgetRefusals, refusal.Stored.Add(-store.RefusalRetention), store.MaxForgottenRefusals)
		return err
	})
}

// Refusals implements store.Requests.
func (s *Store) Refusals(ctx context.Context, limit int) ([]jetpost.Refusal, error) {
	refusals, err := collect(ctx, s.db, func(row scanner) (r jetpost.Refusal, err error) {
		var sequence int64
		err = row.Scan(&sequence, at{&r.Stored}, &r.Account, &r.ID, &r.Code, &r.Problems)
		r.Sequence = uint64(sequence)
		return r, err
	}, sqlRefusals, limit)
	return refusals, s.wrap("list refusals", err)
}

const sqlEndHolds = `
UPDATE requests SET hold_until = coalesce($3::timestamptz, statement_timestamp())
WHERE account = $1 AND state = 'held' AND reason_code = $2 AND (hold_until IS NULL OR hold_until > coalesce($3::timestamptz, statement_timestamp()))`

// EndHolds implements store.Requests.
func (s *Store) EndHolds(ctx context.Context, account string, code jetpost.Code, now time.Time) (n int, err error) {
	err = s.change(ctx, "end holds", func(ctx context.Context, tx pgx.Tx) error {
		n, err = endHolds(ctx, tx, account, code, s.now(now))
		return err
	})
	return n, err
}

// endHolds rings even if nothing is held: a worker may be about to commit just
// such a hold, and learns by the ring that it is over already. The requests
// stay held until they move, so that there is nothing to announce.
func endHolds(ctx context.Context, tx pgx.Tx, account string, code jetpost.Code, now any) (int, error) {
	if err := ring(ctx, tx, account, now); err != nil { // first, for its lock
		return 0, err
	}
	return changed(ctx, tx, sqlEndHolds, account, code, now)
}

// Replay implements store.Requests. A post that may be live stays in doubt.
func (s *Store) Replay(ctx context.Context, key store.Key, now time.Time) (result store.ReplayResult, err error) {
	_, err = s.move(ctx, "replay request", key, func(line store.Line, r *store.Row) (change store.Change, err error) {
		result, change = r.Replay(line, now)
		return change, nil
	})
	return result, err
}

// Cancel implements store.Requests.
func (s *Store) Cancel(ctx context.Context, key store.Key, now time.Time) (before jetpost.State, err error) {
	_, err = s.move(ctx, "cancel request", key, func(line store.Line, r *store.Row) (store.Change, error) {
		before = r.Status.State
		return r.Cancel(line.At(now))
	})
	return before, err
}

// Reschedule implements store.Requests.
func (s *Store) Reschedule(ctx context.Context, key store.Key, at, now time.Time) (state jetpost.State, err error) {
	_, err = s.move(ctx, "reschedule request", key, func(line store.Line, r *store.Row) (change store.Change, err error) {
		change, err = r.Reschedule(line, at, now)
		state = r.Status.State
		return change, err
	})
	return state, err
}

// Resolve implements store.Requests.
func (s *Store) Resolve(ctx context.Context, key store.Key, postID string, now time.Time) (jetpost.State, error) {
	return s.move(ctx, "resolve request", key, func(line store.Line, r *store.Row) (store.Change, error) {
		return r.Resolve(postID, line.At(now))
	})
}

// Reconcile implements store.Requests.
func (s *Store) Reconcile(ctx context.Context, key store.Key, now time.Time) error {
	_, err := s.move(ctx, "reconcile request", key, func(line store.Line, r *store.Row) (store.Change, error) {
		return r.Reconcile(line.At(now))
	})
	return err
}

const (
	sqlWitness = `
SELECT a.x_user_id, coalesce(p.post_id, ''), coalesce(p.doubt_since, p.sent_at)
FROM accounts AS a LEFT JOIN LATERAL (
    SELECT post_id, sent_at, doubt_since FROM posts WHERE account = a.name AND state = 'posted' ORDER BY sent_at DESC LIMIT 1
) AS p ON true
WHERE a.name = $1`
	sqlOwned = `SELECT post_id FROM posts WHERE post_id = ANY ($1::text[])`
)

// Witness implements store.Requests.
func (s *Store) Witness(ctx context.Context, account string) (w store.Witness, err error) {
	err = s.db.QueryRow(ctx, sqlWitness, account).Scan(&w.XUserID, &w.PostID, at{&w.SentAt})
	return w, s.wrap("find latest post", missing(err, store.ErrNotFound))
}

// Owned implements store.Requests.
func (s *Store) Owned(ctx context.Context, postIDs []string) ([]string, error) {
	owned, err := collect(ctx, s.db, func(row scanner) (id string, err error) {
		return id, row.Scan(&id)
	}, sqlOwned, postIDs)
	return owned, s.wrap("find owned posts", err)
}

// Request implements store.Requests.
func (s *Store) Request(ctx context.Context, key store.Key) (record store.Record, err error) {
	err = s.view(ctx, "read request", func(ctx context.Context, tx pgx.Tx) error {
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

const sqlListRequests = `
SELECT ` + requestColumns + ` FROM requests
WHERE ($1 = '' OR account = $1) AND ($2 = '' OR id = $2) AND ($3 = '' OR state = $3) AND ($4 = '' OR reason_code = $4)
  AND ($5::timestamptz IS NULL OR accepted_at >= $5)
ORDER BY accepted_at DESC, seq DESC, account LIMIT $6`

// ListRequests implements store.Requests. The statement is planned anew for
// each call, since the best index depends on which filters are set.
func (s *Store) ListRequests(ctx context.Context, f store.Filter) (list []store.Record, err error) {
	err = s.report(ctx, "list requests", func(ctx context.Context, tx pgx.Tx) error {
		list, err = readRecords(ctx, tx, sqlListRequests, pgx.QueryExecModeCacheDescribe,
			f.Account, f.ID, f.State, f.Code, moment(f.Since), f.Rows())
		return err
	})
	return list, err
}

const sqlWaiting = `
SELECT account, id, seq, state, coalesce(reason_code, ''), due_at, hold_until, expires_at, began_at IS NOT NULL, p.posts, p.live
FROM requests AS r CROSS JOIN LATERAL (
    SELECT count(*) AS posts, count(*) FILTER (WHERE p.state = 'posted') AS live
    FROM posts AS p WHERE p.account = r.account AND p.request_id = r.id) AS p
WHERE (account, due_at, seq) > ($1, $2::timestamptz, $3) AND ` + unfinished + `
ORDER BY account, due_at, seq LIMIT $4`

// Waiting implements store.Requests.
func (s *Store) Waiting(ctx context.Context, after store.Waiting, limit int) ([]store.Waiting, error) {
	return reportAll(ctx, s, "list waiting requests", func(row scanner) (w store.Waiting, err error) {
		err = row.Scan(&w.Account, &w.ID, &w.Seq, &w.State, &w.Code, at{&w.DueAt}, at{&w.HoldUntil}, at{&w.ExpiresAt}, &w.Begun, &w.Posts, &w.Live)
		return w, err
	}, sqlWaiting, after.Account, moment(after.DueAt), after.Seq, limit)
}

const sqlCountRequests = `SELECT state, count(*) FROM requests GROUP BY state`

// CountRequests implements store.Requests.
func (s *Store) CountRequests(ctx context.Context) (map[jetpost.State]int, error) {
	type count struct {
		state jetpost.State
		n     int
	}
	counts, err := reportAll(ctx, s, "count requests", func(row scanner) (c count, err error) {
		err = row.Scan(&c.state, &c.n)
		return c, err
	}, sqlCountRequests)
	byState := make(map[jetpost.State]int, len(counts))
	for _, c := range counts {
		byState[c.state] = c.n
	}
	return byState, err
}

const sqlUnannounced = `
SELECT account, id FROM requests WHERE announced < revision AND updated_at < $1
ORDER BY updated_at LIMIT $2`

// Unannounced implements store.Requests.
func (s *Store) Unannounced(ctx context.Context, before time.Time, limit int) ([]store.Key, error) {
	keys, err := collect(ctx, s.db, func(row scanner) (key store.Key, err error) {
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
	err = s.db.QueryRow(ctx, sqlMarkAnnounced, key.Account, key.ID, revision).Scan(&latest)
	return latest, s.wrap("mark request announced", missing(err, store.ErrNotFound))
}
