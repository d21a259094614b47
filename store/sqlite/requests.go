package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	// sqlPlaced updates a lane for what entered its queue: the next place, a wake-up
	// for each change, and an earlier next run.
	sqlPlaced = `
UPDATE lanes SET next_seq = ?2, last_due = ?3, generation = generation + ?4, wake_at = min(coalesce(wake_at, ?5), ?5) WHERE account = ?1`
	// sqlWake counts a change and brings the lane's next run forward to ?2.
	sqlWake       = `UPDATE lanes SET generation = generation + 1, wake_at = min(coalesce(wake_at, ?2), ?2) WHERE account = ?1`
	sqlAddRequest = `
INSERT INTO requests (account, id, seq, state, revision, event, reason_code, reason_detail, reason_until, hold_until, holds,
                      accepted_at, due_at, publish_at, expires_at, updated_at, metadata, body, digest, cost_micros, trace)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?12, ?16, ?17, ?18, ?19, ?20)`
	sqlAddPost = `INSERT INTO posts (account, request_id, idx, text_hash, media) VALUES (?1, ?2, ?3, ?4, ?5)`
)

// Accept implements store.Intake.
func (s *Store) Accept(ctx context.Context, in store.Acceptance) (store.Decision, error) {
	out, err := s.AcceptMany(ctx, store.Lease{}, []store.Acceptance{in})
	switch {
	case err != nil:
		return 0, err
	case out[0].Decision == store.NoAccount:
		return 0, s.wrap("accept request", store.ErrNotFound)
	}
	return out[0].Decision, nil
}

// AcceptMany implements store.Intake.
func (s *Store) AcceptMany(ctx context.Context, lease store.Lease, in []store.Acceptance) (out []store.Received, err error) {
	err = s.change(ctx, "accept requests", func(ctx context.Context, tx *sql.Tx) error {
		out = nil
		if lease.Name != "" {
			if err := fenced(changed(ctx, tx, sqlHoldLease, lease.Name, lease.Owner, lease.Fence)); err != nil {
				return err
			}
		}
		b := rules.NewBatch()
		for i := range in {
			if err := acceptOne(ctx, tx, b, &in[i], &out); err != nil {
				return err
			}
		}
		for account, woken := range b.LaneWakes {
			laneRow := b.LaneRows[account]
			_, err := tx.ExecContext(ctx, sqlPlaced, account, laneRow.NextSeq, micros(laneRow.LastDue), woken.Count, micros(woken.WakeAt))
			if err != nil {
				return err
			}
		}
		return claimLanes(ctx, tx, in, out)
	})
	if err != nil {
		return nil, err
	}
	s.findTexts(ctx, in, out)
	return out, nil
}

// claimLanes claims the lanes that acceptances ask for.
func claimLanes(ctx context.Context, tx *sql.Tx, in []store.Acceptance, out []store.Received) error {
	asked, now := map[string]bool{}, rules.LatestOf(in)
	for i := range in {
		account, by := in[i].Request.Account, in[i].Claim
		if by == nil || asked[account] || in[i].RefuseSameText {
			continue
		}
		asked[account] = true
		lane, claimed, err := claimLane(ctx, tx, account, *by, now)
		if err != nil {
			return err
		}
		if claimed {
			out[i].Claim = &lane
		}
	}
	return nil
}

// findTexts looks up the texts of new requests once the requests are visible: if two
// come at once, at least one of them is found.
func (s *Store) findTexts(ctx context.Context, in []store.Acceptance, out []store.Received) {
	var asked []int
	for i := range in {
		if in[i].FindSameText && out[i].Decision == store.Accepted {
			asked = append(asked, i)
		}
	}
	if len(asked) == 0 {
		return
	}
	err := s.view(ctx, "find the same texts", func(ctx context.Context, tx *sql.Tx) (err error) {
		for _, i := range asked {
			if out[i].SameText, _, err = findText(ctx, tx, store.TextsOf(in[i].Request, in[i].Now)); err != nil {
				return err
			}
		}
		return nil
	})
	for _, i := range asked {
		out[i].SameTextErr = err
	}
}

// acceptOne writes one request of a batch, but for its lane. It reads a request that
// comes twice again, since the first may have been written already.
func acceptOne(ctx context.Context, tx *sql.Tx, b *rules.Batch, in *store.Acceptance, out *[]store.Received) error {
	key := in.Key()
	laneRow, known := b.LaneRows[key.Account]
	if !known {
		read, err := readLane(ctx, tx, key.Account)
		switch {
		case err == nil:
			laneRow = &read
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
		b.LaneRows[key.Account] = laneRow
	}
	part := &rules.Batch{LaneRows: b.LaneRows, Rows: map[store.Key]*rules.Row{}, Changes: map[*rules.Row]rules.Change{}, LaneWakes: b.LaneWakes}
	if laneRow != nil {
		r, err := readRequest(ctx, tx, key)
		switch {
		case err == nil:
			part.Rows[key] = r
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
	}
	one := []store.Acceptance{*in}
	decisions := part.Judge(one)
	if decisions[0] == store.Accepted {
		if err := refuseText(ctx, tx, part.Rows[key], *in); err != nil {
			return err
		}
	}
	for _, r := range part.Entered {
		if err := addRequest(ctx, tx, r); err != nil {
			return err
		}
	}
	for r, change := range part.Changes {
		change.WakeAt = time.Time{} // with the others of its lane
		if err := save(ctx, tx, *laneRow, r, change); err != nil {
			return err
		}
	}
	*out = append(*out, part.Received(one, decisions)...)
	return nil
}

func addRequest(ctx context.Context, tx *sql.Tx, r *rules.Row) error {
	st := &r.Status
	code, reason := columns(st.Reason)
	meta, err := metadata(st.Metadata)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, sqlAddRequest, r.Account, r.ID, r.Seq, string(st.State), st.Revision, string(r.Event),
		code, reason.Detail, micros(reason.Until), micros(r.HoldUntil), r.Holds, micros(st.AcceptedAt), micros(r.DueAt),
		micros(st.PublishAt), micros(st.ExpiresAt), meta, blob(r.Body), blob(r.Digest), r.CostMicros, r.Trace)
	if err != nil {
		return err
	}
	return addPosts(ctx, tx, r)
}

func addPosts(ctx context.Context, tx *sql.Tx, r *rules.Row) error {
	for _, p := range r.Posts {
		list, err := mediaColumn(p.Media)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlAddPost, r.Account, r.ID, p.Index, p.TextHash, list); err != nil {
			return err
		}
	}
	return nil
}

// sqlSameText finds a post that is live or may be, or one that is still to be sent.
const sqlSameText = `
SELECT account, request_id FROM posts
WHERE text_hash = ?2 AND account <> ?1 AND state IN ('sending', 'posted') AND sent_at > ?3 AND sent_at < ?4
UNION ALL
SELECT p.account, p.request_id FROM posts AS p JOIN requests AS r ON r.account = p.account AND r.id = p.request_id
WHERE p.text_hash = ?2 AND p.account <> ?1 AND p.state = 'pending' AND r.` + unfinished + `
  AND max(r.due_at, ?5) > ?3 AND max(r.due_at, ?5) < ?4
LIMIT 1`

// refuseText fails a request whose text another account posts, if that is asked for.
// Only one connection writes, so if two come at once the second one fails.
func refuseText(ctx context.Context, tx *sql.Tx, r *rules.Row, in store.Acceptance) error {
	if !in.RefuseSameText {
		return nil
	}
	_, found, err := findText(ctx, tx, store.TextsOf(in.Request, in.Now))
	if found {
		r.RefuseText()
	}
	return err
}

func findText(ctx context.Context, tx *sql.Tx, texts store.TextQuery) (other store.Key, found bool, err error) {
	from, to := rules.TextSpan(texts)
	for _, hash := range texts.Hashes {
		err := tx.QueryRowContext(ctx, sqlSameText, texts.Account, hash, micros(from), micros(to), micros(texts.Now)).Scan(&other.Account, &other.ID)
		if found = err == nil; found || !errors.Is(err, sql.ErrNoRows) {
			return other, found, err
		}
	}
	return store.Key{}, false, nil
}

// SameText implements store.Queries.
func (s *Store) SameText(ctx context.Context, q store.TextQuery) (other store.Key, found bool, err error) {
	err = s.view(ctx, "find the same text", func(ctx context.Context, tx *sql.Tx) error {
		other, found, err = findText(ctx, tx, q)
		return err
	})
	return other, found, err
}

const sqlSaveContents = `
UPDATE requests SET publish_at = ?3, expires_at = ?4, metadata = ?5, digest = ?6, cost_micros = ?7 WHERE account = ?1 AND id = ?2`

// saveContents completes a request that was accepted unread.
func saveContents(ctx context.Context, tx *sql.Tx, r *rules.Row) error {
	st := &r.Status
	meta, err := metadata(st.Metadata)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, sqlSaveContents, r.Account, r.ID,
		micros(st.PublishAt), micros(st.ExpiresAt), meta, blob(r.Digest), r.CostMicros)
	if err != nil {
		return err
	}
	return addPosts(ctx, tx, r)
}

func metadata(of map[string]string) (string, error) {
	if len(of) == 0 {
		return "{}", nil
	}
	text, err := json.Marshal(of)
	return string(text), err
}

// blob keeps an empty value from being stored as NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func wake(ctx context.Context, tx *sql.Tx, account string, wakeAt time.Time) error {
	_, err := tx.ExecContext(ctx, sqlWake, account, micros(wakeAt))
	return err
}

const (
	sqlRefuse = `
INSERT INTO refusals (stored, sequence, account, id, code, problems, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
ON CONFLICT (stored, sequence) DO NOTHING`
	sqlForgetRefusals = `
DELETE FROM refusals WHERE rowid IN (
    SELECT rowid FROM refusals WHERE stored < ?1 ORDER BY stored, sequence LIMIT ?2)`
	sqlRefusals = `
SELECT stored, sequence, account, id, code, problems FROM refusals ORDER BY stored DESC, sequence DESC LIMIT ?1`
)

// Refuse implements store.Intake.
func (s *Store) Refuse(ctx context.Context, refusal jetpost.Refusal, body []byte) error {
	return s.change(ctx, "record refusal", func(ctx context.Context, tx *sql.Tx) error {
		problems, err := json.Marshal(append([]jetpost.Problem{}, refusal.Problems...)) // a list, if an empty one
		if err != nil {
			return err
		}
		// A sequence beyond 63 bits is stored as a negative number and read
		// back as it was.
		_, err = tx.ExecContext(ctx, sqlRefuse, refusal.Stored.UnixMicro(), int64(refusal.Sequence),
			refusal.Account, refusal.ID, string(refusal.Code), string(problems), blob(body))
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, sqlForgetRefusals, refusal.Stored.Add(-rules.RefusalRetention).UnixMicro(), rules.MaxForgottenRefusals)
		return err
	})
}

const (
	sqlJobFailed = `
INSERT INTO intake_failures (stored, sequence, failures, error) VALUES (?1, ?2, 1, ?3)
ON CONFLICT (stored, sequence) DO UPDATE SET failures = failures + 1, error = excluded.error RETURNING failures`
	sqlForgetFailures = `DELETE FROM intake_failures WHERE stored < ?1`
)

// JobFailed implements store.Intake.
func (s *Store) JobFailed(ctx context.Context, f store.JobFailure) (failures int, err error) {
	err = s.change(ctx, "count failure of job", func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, sqlForgetFailures, f.Stored.Add(-rules.RefusalRetention).UnixMicro()); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, sqlJobFailed, f.Stored.UnixMicro(), int64(f.Sequence), f.Error).Scan(&failures)
	})
	return failures, err
}

// Refusals implements store.Queries.
func (s *Store) Refusals(ctx context.Context, limit int) (refusals []jetpost.Refusal, err error) {
	err = s.view(ctx, "list refusals", func(ctx context.Context, tx *sql.Tx) error {
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

// EndHolds implements store.Control.
func (s *Store) EndHolds(ctx context.Context, account string, code jetpost.Code, now time.Time) (n int, err error) {
	err = s.change(ctx, "end holds", func(ctx context.Context, tx *sql.Tx) error {
		n, err = endHolds(ctx, tx, account, code, now)
		return err
	})
	return n, err
}

// endHolds wakes the lane even if nothing is held: a worker may be about to commit just
// such a hold, and learns by the wake-up that it is already over. The requests stay
// held until they move, so there is nothing to publish.
func endHolds(ctx context.Context, tx *sql.Tx, account string, code jetpost.Code, now time.Time) (int, error) {
	n, err := changed(ctx, tx, sqlEndHolds, account, string(code), micros(now))
	if err != nil {
		return 0, err
	}
	if err := retryDeletions(ctx, tx, account, now); err != nil {
		return 0, err
	}
	return n, wake(ctx, tx, account, now)
}

// Replay implements store.Control. A post that may be live stays in doubt.
func (s *Store) Replay(ctx context.Context, key store.Key, now time.Time) (result store.ReplayResult, err error) {
	_, err = s.move(ctx, "replay request", key, func(laneRow rules.LaneRow, r *rules.Row) (change rules.Change, err error) {
		result, change = r.Replay(laneRow, now)
		return change, nil
	})
	return result, err
}

// Cancel implements store.Control.
func (s *Store) Cancel(ctx context.Context, key store.Key, now time.Time) (before jetpost.State, err error) {
	_, err = s.move(ctx, "cancel request", key, func(_ rules.LaneRow, r *rules.Row) (rules.Change, error) {
		before = r.Status.State
		return r.Cancel(now)
	})
	return before, err
}

// Reschedule implements store.Control.
func (s *Store) Reschedule(ctx context.Context, key store.Key, at, now time.Time) (state jetpost.State, err error) {
	_, err = s.move(ctx, "reschedule request", key, func(laneRow rules.LaneRow, r *rules.Row) (change rules.Change, err error) {
		change, err = r.Reschedule(laneRow, at, now)
		state = r.Status.State
		return change, err
	})
	return state, err
}

// Resolve implements store.Control.
func (s *Store) Resolve(ctx context.Context, key store.Key, postID string, now time.Time) (jetpost.State, error) {
	return s.move(ctx, "resolve request", key, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
		return r.Resolve(laneRow, postID, now)
	})
}

// Reconcile implements store.Control.
func (s *Store) Reconcile(ctx context.Context, key store.Key, now time.Time) error {
	_, err := s.move(ctx, "reconcile request", key, func(_ rules.LaneRow, r *rules.Row) (rules.Change, error) {
		return r.Reconcile(now)
	})
	return err
}

const (
	sqlAnchor = `
SELECT a.x_user_id, coalesce(p.post_id, ''), coalesce(p.doubt_since, p.sent_at)
FROM accounts AS a LEFT JOIN posts AS p ON (p.account, p.request_id, p.idx) = (
    SELECT account, request_id, idx FROM posts WHERE account = ?1 AND state = 'posted' AND deleted_at IS NULL ORDER BY sent_at DESC LIMIT 1)
WHERE a.name = ?1`
	sqlOwned = `SELECT post_id FROM posts WHERE post_id IN (SELECT value FROM json_each(?1))`
)

// Anchor implements store.Lanes.
func (s *Store) Anchor(ctx context.Context, account string) (w store.Anchor, err error) {
	err = s.view(ctx, "find latest post", func(ctx context.Context, tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, sqlAnchor, account).Scan(&w.XUserID, &w.PostID, at{&w.SentAt})
		return missing(err, store.ErrNotFound)
	})
	return w, err
}

// Owned implements store.Lanes.
func (s *Store) Owned(ctx context.Context, postIDs []string) (owned []string, err error) {
	ids, err := json.Marshal(append([]string{}, postIDs...))
	if err != nil {
		return nil, fmt.Errorf("find owned posts: %w", err)
	}
	err = s.view(ctx, "find owned posts", func(ctx context.Context, tx *sql.Tx) error {
		owned, err = collect(ctx, tx, func(row scanner) (id string, err error) {
			return id, row.Scan(&id)
		}, sqlOwned, string(ids))
		return err
	})
	return owned, err
}

// Request implements store.Queries.
func (s *Store) Request(ctx context.Context, key store.Key) (record store.Record, err error) {
	err = s.view(ctx, "read request", func(ctx context.Context, tx *sql.Tx) error {
		r, err := readRequest(ctx, tx, key)
		if err == nil {
			record = r.Told()
		}
		return err
	})
	return record, err
}

const sqlListRequests = sqlFromRequests + `
WHERE (?1 = '' OR account = ?1) AND (?2 = '' OR id = ?2) AND (?3 = '' OR state = ?3)
  AND (?4 = '' OR reason_code = ?4) AND (?5 IS NULL OR accepted_at >= ?5)
  AND accepted_at <= coalesce(?7, 9223372036854775807)
  AND (?7 IS NULL OR (accepted_at, seq) < (?7, ?8) OR (accepted_at = ?7 AND seq = ?8 AND account > ?9))
ORDER BY accepted_at DESC, seq DESC, account LIMIT ?6`

// ListRequests implements store.Queries.
func (s *Store) ListRequests(ctx context.Context, f store.Filter) ([]store.Record, error) {
	return s.records(ctx, "list requests", sqlListRequests,
		f.Account, f.ID, string(f.State), string(f.Code), micros(f.Since), rules.ListLimit(f), micros(f.After.AcceptedAt), f.After.Seq, f.After.Account)
}

// records is a report of requests with their posts.
func (s *Store) records(ctx context.Context, what, query string, args ...any) (records []store.Record, err error) {
	err = s.report(ctx, what, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := collect(ctx, tx, scanRequest, query, args...)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if err := readPosts(ctx, tx, r); err != nil {
				return err
			}
			records = append(records, r.Told())
		}
		return nil
	})
	return records, err
}

const sqlCalendar = sqlFromRequests + `
WHERE (due_at, account, seq) > (?1, ?2, ?3) AND due_at < ?4 AND (?5 = '' OR account = ?5) AND seq > 0
ORDER BY due_at, account, seq LIMIT ?6`

// Calendar implements store.Queries.
func (s *Store) Calendar(ctx context.Context, q store.CalendarQuery) ([]store.Record, error) {
	return s.records(ctx, "list calendar", sqlCalendar, micros(q.After.DueAt), q.After.Account, q.After.Seq, micros(q.Before), q.Account, q.Limit)
}

const sqlWaiting = `
SELECT account, id, seq, state, coalesce(reason_code, ''), due_at, hold_until, expires_at, began_at IS NOT NULL,
       (SELECT count(*) FROM posts AS p WHERE p.account = r.account AND p.request_id = r.id),
       (SELECT count(*) FROM posts AS p WHERE p.account = r.account AND p.request_id = r.id AND p.state = 'posted')
FROM requests AS r
WHERE (account, due_at, seq) > (?1, ?2, ?3) AND ` + unfinished + `
ORDER BY account, due_at, seq LIMIT ?4`

// Waiting implements store.Queries.
func (s *Store) Waiting(ctx context.Context, after store.Waiting, limit int) (list []store.Waiting, err error) {
	err = s.report(ctx, "list waiting requests", func(ctx context.Context, tx *sql.Tx) error {
		list, err = collect(ctx, tx, func(row scanner) (w store.Waiting, err error) {
			err = row.Scan(&w.Account, &w.ID, &w.Seq, &w.State, &w.Code, at{&w.DueAt}, at{&w.HoldUntil}, at{&w.ExpiresAt}, &w.Begun, &w.Posts, &w.Live)
			return w, err
		}, sqlWaiting, after.Account, micros(after.DueAt), after.Seq, limit)
		return err
	})
	return list, err
}

const sqlCountCodes = `
SELECT coalesce(reason_code, ''), count(*), min(updated_at), max(updated_at) FROM (
    SELECT reason_code, updated_at FROM requests WHERE state = ?1 ORDER BY rowid DESC LIMIT ?2)
GROUP BY reason_code ORDER BY count(*) DESC, reason_code`

// CountCodes implements store.Queries.
func (s *Store) CountCodes(ctx context.Context, state jetpost.State) (counts []store.CodeCount, err error) {
	err = s.report(ctx, "count reasons", func(ctx context.Context, tx *sql.Tx) error {
		counts, err = collect(ctx, tx, func(row scanner) (c store.CodeCount, err error) {
			err = row.Scan(&c.Code, &c.Count, at{&c.First}, at{&c.Last})
			return c, err
		}, sqlCountCodes, string(state), store.MaxSeries)
		return err
	})
	return counts, err
}

// Each statement makes one index lookup for each account, or reads a part of one index.
const (
	sqlHours = `
SELECT posts.sent_at / 3600000000 AS hour, count(*) FROM lanes CROSS JOIN posts
WHERE posts.account = lanes.account AND posts.state = 'posted' AND posts.sent_at >= ?1 GROUP BY hour`
	sqlDueSoon = `
SELECT count(*) FILTER (WHERE due_at < ?1), count(*) FROM (
    SELECT due_at FROM lanes CROSS JOIN requests
    WHERE requests.account = lanes.account AND ` + unfinished + ` AND due_at < ?2 LIMIT ?3)`
	sqlCost = `
SELECT coalesce(sum(cost_micros) FILTER (WHERE accepted_at >= ?1), 0), coalesce(sum(cost_micros), 0)
FROM requests WHERE accepted_at >= ?2 AND began_at IS NOT NULL`
)

// Series implements store.Queries.
func (s *Store) Series(ctx context.Context, q store.SeriesQuery) (out store.Series, err error) {
	err = s.report(ctx, "count posts", func(ctx context.Context, tx *sql.Tx) error {
		out = store.Series{Posts: map[int64]int{}}
		_, err := collect(ctx, tx, func(row scanner) (none struct{}, err error) {
			var hour int64
			var n int
			err = row.Scan(&hour, &n)
			out.Posts[hour] = n
			return none, err
		}, sqlHours, micros(q.Since))
		if err != nil {
			return err
		}
		err = tx.QueryRowContext(ctx, sqlDueSoon, micros(q.Now.Add(time.Hour)), micros(q.Now.Add(24*time.Hour)), store.MaxSeries).Scan(&out.DueHour, &out.DueDay)
		if err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, sqlCost, micros(q.Day), micros(q.Month)).Scan(&out.CostDay, &out.CostMonth)
	})
	return out, err
}

const sqlCountRequests = `
SELECT value, n FROM (
    SELECT value, (SELECT count(*) FROM (SELECT 1 FROM requests WHERE state = value LIMIT ?2)) AS n FROM json_each(?1))
WHERE n > 0`

const sqlCountAccountRequests = `
SELECT value, n FROM (
    SELECT value, (SELECT count(*) FROM (SELECT 1 FROM requests WHERE account = ?3 AND state = value LIMIT ?2)) AS n FROM json_each(?1))
WHERE n > 0`

// CountRequests implements store.Queries.
func (s *Store) CountRequests(ctx context.Context) (counts map[jetpost.State]int, err error) {
	return s.countRequests(ctx, sqlCountRequests)
}

// CountAccountRequests implements store.Queries.
func (s *Store) CountAccountRequests(ctx context.Context, account string) (counts map[jetpost.State]int, err error) {
	return s.countRequests(ctx, sqlCountAccountRequests, account)
}

// countRequests counts by state, with more arguments than states and limit.
func (s *Store) countRequests(ctx context.Context, query string, more ...any) (counts map[jetpost.State]int, err error) {
	counts = make(map[jetpost.State]int)
	states, err := json.Marshal(jetpost.States())
	if err != nil {
		return nil, err
	}
	err = s.report(ctx, "count requests", func(ctx context.Context, tx *sql.Tx) error {
		_, err := collect(ctx, tx, func(row scanner) (none struct{}, err error) {
			var state jetpost.State
			var n int
			err = row.Scan(&state, &n)
			counts[state] = n
			return none, err
		}, query, append([]any{string(states), store.MaxCounted}, more...)...)
		return err
	})
	return counts, err
}

const sqlOutboxPending = `
SELECT account, id FROM requests WHERE announced < revision AND updated_at < ?1 ORDER BY updated_at LIMIT ?2`

// OutboxPending implements store.Outbox.
func (s *Store) OutboxPending(ctx context.Context, before time.Time, limit int) (keys []store.Key, err error) {
	err = s.view(ctx, "list pending events", func(ctx context.Context, tx *sql.Tx) error {
		keys, err = collect(ctx, tx, func(row scanner) (key store.Key, err error) {
			err = row.Scan(&key.Account, &key.ID)
			return key, err
		}, sqlOutboxPending, micros(before), limit)
		return err
	})
	return keys, err
}

const (
	// begunOnly is true for a request that since revision ?3 has only begun, which no
	// event reports.
	begunOnly        = `(revision = ?3 + 1 AND state = 'publishing' AND event IN ('request.accepted', 'request.scheduled'))`
	sqlMarkDelivered = `
UPDATE requests SET announced = CASE WHEN ` + begunOnly + ` THEN revision ELSE max(announced, min(?3, revision)) END
WHERE account = ?1 AND id = ?2 RETURNING revision = ?3 OR ` + begunOnly
)

// MarkDelivered implements store.Outbox.
func (s *Store) MarkDelivered(ctx context.Context, key store.Key, revision int64) (latest bool, err error) {
	err = s.change(ctx, "mark event delivered", func(ctx context.Context, tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, sqlMarkDelivered, key.Account, key.ID, revision).Scan(&latest)
		return missing(err, store.ErrNotFound)
	})
	return latest, err
}

// MarkManyDelivered implements store.Outbox.
func (s *Store) MarkManyDelivered(ctx context.Context, told []store.Revision) (rest []store.Key, err error) {
	err = s.change(ctx, "mark events delivered", func(ctx context.Context, tx *sql.Tx) error {
		rest = nil
		for _, r := range told {
			var latest bool
			err := tx.QueryRowContext(ctx, sqlMarkDelivered, r.Account, r.ID, r.Number).Scan(&latest)
			switch {
			case errors.Is(err, sql.ErrNoRows), err == nil && !latest:
				rest = append(rest, r.Key)
			case err != nil:
				return err
			}
		}
		return nil
	})
	return rest, err
}
