package sqlite

import (
	"context"
	"database/sql"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const sqlSetPause = `UPDATE lanes SET paused_at = ?2, paused_until = ?3, pause_reason = ?4, pause_cause = ?5 WHERE account = ?1`

// PauseAccount implements store.Control.
func (s *Store) PauseAccount(ctx context.Context, account string, pause store.Pause) error {
	return s.change(ctx, "pause account", func(ctx context.Context, tx *sql.Tx) error {
		_, err := setPause(ctx, tx, account, pause, pause.Since)
		return err
	})
}

// ResumeAccount implements store.Control.
func (s *Store) ResumeAccount(ctx context.Context, account string, now time.Time) (before store.Pause, err error) {
	err = s.change(ctx, "resume account", func(ctx context.Context, tx *sql.Tx) error {
		if before, err = setPause(ctx, tx, account, store.Pause{}, now); err == nil {
			_, err = tx.ExecContext(ctx, sqlForgetUnruled, account)
		}
		return err
	})
	return before, err
}

// pausedAt reads since when an account is paused, if it is.
type pausedAt struct{ pause *store.Pause }

// Scan implements sql.Scanner.
func (p pausedAt) Scan(value any) error {
	*p.pause = store.Pause{}
	if value != nil {
		*p.pause = jetpost.AccountPause(time.Time{}, time.Time{}, "")
	}
	return at{&p.pause.Since}.Scan(value)
}

// setPause wakes the lane at once: the state of its head may be out of date.
func setPause(ctx context.Context, tx *sql.Tx, account string, pause store.Pause, now time.Time) (before store.Pause, err error) {
	laneRow, err := readLane(ctx, tx, account)
	if err != nil {
		return store.Pause{}, err
	}
	if err := writePause(ctx, tx, account, pause, laneRow.PauseChange(pause, account, now)); err != nil {
		return store.Pause{}, err
	}
	if code := laneRow.Pause.Reason.Code; code != "" {
		_, err = endHolds(ctx, tx, account, code, now)
		return laneRow.Pause, err
	}
	err = wake(ctx, tx, account, now)
	return laneRow.Pause, err
}

// writePause writes a pause, and the change that an event must report.
func writePause(ctx context.Context, tx *sql.Tx, account string, pause store.Pause, change store.PauseChange) error {
	_, err := tx.ExecContext(ctx, sqlSetPause, account, micros(pause.Since), micros(pause.Reason.Until), pause.Reason.Detail, rules.CauseOf{Pause: &pause}.String())
	if err != nil || change.Event == "" {
		return err
	}
	_, err = tx.ExecContext(ctx, sqlPauseChange, account, string(change.Event), micros(change.At), string(change.Reason.Code), change.Reason.Detail, micros(change.Reason.Until))
	return err
}

const (
	sqlPauseChange = `
INSERT INTO pause_changes (account, event, changed_at, reason_code, reason_detail, reason_until) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (account) DO UPDATE SET event = excluded.event, changed_at = excluded.changed_at,
    reason_code = excluded.reason_code, reason_detail = excluded.reason_detail, reason_until = excluded.reason_until`
	sqlPauseChanges = `
SELECT account, event, changed_at, reason_code, reason_detail, reason_until FROM pause_changes
WHERE ?1 = '' OR account = ?1 ORDER BY account LIMIT ?2`
	sqlMarkPauseChangeTold = `DELETE FROM pause_changes WHERE account = ?1 AND event = ?2 AND changed_at = ?3`
)

// PauseChanges implements store.Outbox.
func (s *Store) PauseChanges(ctx context.Context, account string, limit int) (changes []store.PauseChange, err error) {
	err = s.view(ctx, "read pause changes", func(ctx context.Context, tx *sql.Tx) error {
		changes, err = collect(ctx, tx, scanPauseChange, sqlPauseChanges, account, limit)
		return err
	})
	return changes, err
}

func scanPauseChange(row scanner) (t store.PauseChange, err error) {
	err = row.Scan(&t.Account, &t.Event, at{&t.At}, &t.Reason.Code, &t.Reason.Detail, at{&t.Reason.Until})
	return t, err
}

// MarkPauseChangeTold implements store.Outbox.
func (s *Store) MarkPauseChangeTold(ctx context.Context, change store.PauseChange) error {
	return s.change(ctx, "mark pause change", func(ctx context.Context, tx *sql.Tx) error {
		_, err := changed(ctx, tx, sqlMarkPauseChangeTold, change.Account, string(change.Event), micros(change.At))
		return err
	})
}

// BlockAccount implements store.Lanes. It wakes the lane only if the account may
// post again.
func (s *Store) BlockAccount(ctx context.Context, lane store.Claim, pause store.Pause, now time.Time) (holds store.Pause, err error) {
	rules.CacheOf(lane).Forget()
	err = s.change(ctx, "block account", func(ctx context.Context, tx *sql.Tx) error {
		laneRow, err := readLane(ctx, tx, lane.Account)
		if err == nil && !laneRow.HeldBy(lane) {
			err = store.ErrFenced
		}
		if err != nil {
			return err
		}
		var changed bool
		if holds, changed = laneRow.Block(pause, now); !changed {
			return nil
		}
		if err := writePause(ctx, tx, lane.Account, holds, laneRow.PauseChange(holds, lane.Account, now)); err != nil || holds.Active(laneRow.At(now)) {
			return err
		}
		_, err = endHolds(ctx, tx, lane.Account, holds.Reason.Code, now)
		return err
	})
	return holds, err
}

const (
	sqlUnruled = `
INSERT INTO unruled (account, request_id, words, refused_at) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (account, request_id) DO UPDATE SET words = excluded.words, refused_at = excluded.refused_at`
	// Refusals do not count any more once X took a post of the account after them.
	sqlUnruledOver = `
DELETE FROM unruled WHERE account = ?1
    AND refused_at < (SELECT max(sent_at) FROM posts WHERE account = ?1 AND state = 'posted')`
	sqlCountUnruled = `
SELECT (SELECT count(*) FROM unruled WHERE account = ?1),
    (SELECT count(*) FROM (SELECT account FROM unruled WHERE words = ?2 AND refused_at > ?3 GROUP BY account))`
	sqlForgetUnruled = `DELETE FROM unruled WHERE account = ?1`
)

// Refused implements store.Lanes.
func (s *Store) Refused(ctx context.Context, lane store.Claim, id string, refusal store.UnruledRefusal) (n store.Refusals, err error) {
	digest := store.TextHash(refusal.Words)
	err = s.change(ctx, "note refusal", func(ctx context.Context, tx *sql.Tx) error {
		laneRow, err := readLane(ctx, tx, lane.Account)
		if err == nil && !laneRow.HeldBy(lane) {
			err = store.ErrFenced
		}
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlUnruledOver, lane.Account); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlUnruled, lane.Account, id, digest, micros(refusal.Now)); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, sqlCountUnruled, lane.Account, digest, micros(refusal.Now.Add(-refusal.Within))).Scan(&n.InARow, &n.Accounts)
	})
	return n, err
}

// unsent is true for a request of which nothing was sent. A request without posts could
// not be read so far.
const unsent = `(requests.state IN ('scheduled', 'queued', 'held') AND
    coalesce((SELECT min(state = 'pending') FROM posts WHERE account = requests.account AND request_id = requests.id), 0))`

// sqlLate reads the front of each queue, at most ?3 rows.
const sqlLate = `
SELECT account, sum(unsent), min(CASE WHEN unsent THEN due_at END), sum(NOT unsent)
FROM (SELECT requests.account, due_at, ` + unsent + ` AS unsent
      FROM lanes CROSS JOIN requests
      WHERE requests.account = lanes.account AND ` + unfinished + ` AND due_at < ?2 AND (?1 = '' OR lanes.account = ?1)
        AND (due_at, seq) <= (SELECT due_at, seq FROM (
            SELECT due_at, seq FROM requests WHERE account = lanes.account AND ` + unfinished + ` AND due_at < ?2
            ORDER BY due_at, seq LIMIT ?3) ORDER BY due_at DESC, seq DESC LIMIT 1))
GROUP BY account ORDER BY account`

// Late implements store.Queries.
func (s *Store) Late(ctx context.Context, account string, dueBefore time.Time, limit int) (laneRows []store.LateQueue, err error) {
	err = s.report(ctx, "find late requests", func(ctx context.Context, tx *sql.Tx) error {
		laneRows, err = collect(ctx, tx, func(row scanner) (l store.LateQueue, err error) {
			err = row.Scan(&l.Account, &l.Unsent, at{&l.Since}, &l.Begun)
			return l, err
		}, sqlLate, account, micros(dueBefore), limit)
		return err
	})
	return laneRows, err
}

const sqlLateUnsent = sqlFromRequests + `
WHERE account = ?1 AND due_at < ?2 AND ` + unfinished + ` AND ` + unsent + ` ORDER BY due_at, seq LIMIT ?3`

// ExpireLate implements store.Control.
func (s *Store) ExpireLate(ctx context.Context, account string, dueBefore time.Time, limit int, now time.Time) (expired []store.Key, err error) {
	err = s.change(ctx, "expire late requests", func(ctx context.Context, tx *sql.Tx) error {
		expired = nil
		laneRow, err := readLane(ctx, tx, account)
		if err != nil {
			return err
		}
		late, err := collect(ctx, tx, scanRequest, sqlLateUnsent, account, micros(dueBefore), limit)
		if err != nil || len(late) == 0 {
			return err
		}
		for _, r := range late {
			if err := expire(ctx, tx, laneRow, r, dueBefore, now); err != nil {
				return err
			}
			expired = append(expired, r.Key)
		}
		return wake(ctx, tx, account, now)
	})
	if err != nil {
		return nil, err
	}
	return expired, nil
}

func expire(ctx context.Context, tx *sql.Tx, laneRow rules.LaneRow, r *rules.Row, dueBefore, now time.Time) error {
	if err := readPosts(ctx, tx, r); err != nil {
		return err
	}
	change, err := r.Expire(dueBefore, now)
	if err != nil {
		return err
	}
	return save(ctx, tx, laneRow, r, change)
}

const sqlSent = `
SELECT sent_at FROM posts WHERE account = ?1 AND state = 'posted' AND sent_at > ?2 ORDER BY sent_at DESC LIMIT ?3`

// Sent implements store.Lanes.
func (s *Store) Sent(ctx context.Context, account string, after time.Time, limit int) (sent []time.Time, err error) {
	err = s.view(ctx, "find sent posts", func(ctx context.Context, tx *sql.Tx) error {
		sent, err = collect(ctx, tx, func(row scanner) (t time.Time, err error) {
			err = row.Scan(at{&t})
			return t, err
		}, sqlSent, account, micros(after), limit)
		return err
	})
	return sent, err
}
