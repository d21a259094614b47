package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const sqlSetPause = `UPDATE lanes SET paused_at = $2, paused_until = $3, pause_reason = $4, pause_cause = $5 WHERE account = $1`

// PauseAccount implements store.Control.
func (s *Store) PauseAccount(ctx context.Context, account string, pause store.Pause) error {
	return s.change(ctx, "pause account", func(ctx context.Context, tx pgx.Tx) error {
		_, err := s.setPause(ctx, tx, account, pause, pause.Since)
		return err
	})
}

// ResumeAccount implements store.Control.
func (s *Store) ResumeAccount(ctx context.Context, account string, now time.Time) (before store.Pause, err error) {
	err = s.change(ctx, "resume account", func(ctx context.Context, tx pgx.Tx) error {
		if before, err = s.setPause(ctx, tx, account, store.Pause{}, now); err == nil {
			_, err = tx.Exec(ctx, sqlForgetUnruled, account)
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
func (s *Store) setPause(ctx context.Context, tx pgx.Tx, account string, pause store.Pause, now time.Time) (before store.Pause, err error) {
	laneRow, err := s.lockLane(ctx, tx, account)
	if err != nil {
		return store.Pause{}, err
	}
	if err := writePause(ctx, tx, account, pause, laneRow.PauseChange(pause, account, now)); err != nil {
		return store.Pause{}, err
	}
	if code := laneRow.Pause.Reason.Code; code != "" {
		_, err = endHolds(ctx, tx, account, code, s.now(now))
		return laneRow.Pause, err
	}
	err = wake(ctx, tx, account, s.now(now))
	return laneRow.Pause, err
}

// writePause writes a pause, and the change that an event must report.
func writePause(ctx context.Context, tx pgx.Tx, account string, pause store.Pause, change store.PauseChange) error {
	_, err := tx.Exec(ctx, sqlSetPause, account, moment(pause.Since), moment(pause.Reason.Until), storable(pause.Reason.Detail), storable(rules.CauseOf{Pause: &pause}.String()))
	if err != nil || change.Event == "" {
		return err
	}
	_, err = tx.Exec(ctx, sqlPauseChange, account, string(change.Event), moment(change.At), string(change.Reason.Code), storable(change.Reason.Detail), moment(change.Reason.Until))
	return err
}

const (
	sqlPauseChange = `
INSERT INTO pause_changes (account, event, changed_at, reason_code, reason_detail, reason_until) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (account) DO UPDATE SET event = excluded.event, changed_at = excluded.changed_at,
    reason_code = excluded.reason_code, reason_detail = excluded.reason_detail, reason_until = excluded.reason_until`
	sqlPauseChanges = `
SELECT account, event, changed_at, reason_code, reason_detail, reason_until FROM pause_changes
WHERE $1 = '' OR account = $1 ORDER BY account LIMIT $2`
	sqlMarkPauseChangeTold = `DELETE FROM pause_changes WHERE account = $1 AND event = $2 AND changed_at = $3`
)

// PauseChanges implements store.Outbox.
func (s *Store) PauseChanges(ctx context.Context, account string, limit int) ([]store.PauseChange, error) {
	changes, err := collect(ctx, s.db, scanPauseChange, sqlPauseChanges, account, limit)
	return changes, s.wrap("read pause changes", err)
}

func scanPauseChange(row scanner) (t store.PauseChange, err error) {
	err = row.Scan(&t.Account, &t.Event, at{&t.At}, &t.Reason.Code, &t.Reason.Detail, at{&t.Reason.Until})
	return t, err
}

// MarkPauseChangeTold implements store.Outbox.
func (s *Store) MarkPauseChangeTold(ctx context.Context, change store.PauseChange) error {
	_, err := changed(ctx, s.db, sqlMarkPauseChangeTold, change.Account, string(change.Event), change.At)
	return s.wrap("mark pause change", err)
}

// BlockAccount implements store.Lanes. It wakes the lane only if the account may
// post again.
func (s *Store) BlockAccount(ctx context.Context, lane store.Claim, pause store.Pause, now time.Time) (holds store.Pause, err error) {
	rules.CacheOf(lane).Forget()
	err = s.change(ctx, "block account", func(ctx context.Context, tx pgx.Tx) error {
		laneRow, err := s.lockLane(ctx, tx, lane.Account)
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
		_, err = endHolds(ctx, tx, lane.Account, holds.Reason.Code, s.now(now))
		return err
	})
	return holds, err
}

const (
	sqlUnruled = `
INSERT INTO unruled (account, request_id, words, refused_at) VALUES ($1, $2, $3, coalesce($4::timestamptz, statement_timestamp()))
ON CONFLICT (account, request_id) DO UPDATE SET words = excluded.words, refused_at = excluded.refused_at`
	// Refusals do not count any more once X took a post of the account after them.
	sqlUnruledOver = `
DELETE FROM unruled WHERE account = $1
    AND refused_at < (SELECT max(sent_at) FROM posts WHERE account = $1 AND state = 'posted')`
	sqlCountUnruled = `
SELECT (SELECT count(*) FROM unruled WHERE account = $1),
    (SELECT count(DISTINCT account) FROM unruled WHERE words = $2 AND refused_at > coalesce($3::timestamptz, statement_timestamp()) - $4::interval)`
	sqlForgetUnruled = `DELETE FROM unruled WHERE account = $1`
)

// Refused implements store.Lanes.
func (s *Store) Refused(ctx context.Context, lane store.Claim, id string, refusal store.UnruledRefusal) (n store.Refusals, err error) {
	digest := store.TextHash(refusal.Words)
	err = s.change(ctx, "note refusal", func(ctx context.Context, tx pgx.Tx) error {
		laneRow, err := s.lockLane(ctx, tx, lane.Account)
		if err == nil && !laneRow.HeldBy(lane) {
			err = store.ErrFenced
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlUnruledOver, lane.Account); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlUnruled, lane.Account, id, digest, s.now(refusal.Now)); err != nil {
			return err
		}
		return tx.QueryRow(ctx, sqlCountUnruled, lane.Account, digest, s.now(refusal.Now), refusal.Within).Scan(&n.InARow, &n.Accounts)
	})
	return n, err
}

// unsent is true for a request r of which nothing was sent. A request without posts
// could not be read so far.
const unsent = `r.state IN ('scheduled', 'queued', 'held') AND
    coalesce((SELECT bool_and(state = 'pending') FROM posts WHERE account = r.account AND request_id = r.id), false)`

// sqlLate reads the front of each queue, and the posts of each late request once.
const sqlLate = `
SELECT l.account, count(*) FILTER (WHERE unsent), min(due_at) FILTER (WHERE unsent), count(*) FILTER (WHERE NOT unsent)
FROM lanes AS l CROSS JOIN LATERAL (
    SELECT due_at, ` + unsent + ` AS unsent FROM (
        SELECT account, id, state, due_at FROM requests WHERE account = l.account AND ` + unfinished + ` AND due_at < $2
        ORDER BY due_at, seq LIMIT $3) AS r) AS late
WHERE $1 = '' OR l.account = $1
GROUP BY l.account ORDER BY l.account COLLATE "C"`

// Late implements store.Queries.
func (s *Store) Late(ctx context.Context, account string, dueBefore time.Time, limit int) ([]store.LateQueue, error) {
	return reportAll(ctx, s, "find late requests", func(row scanner) (l store.LateQueue, err error) {
		err = row.Scan(&l.Account, &l.Unsent, at{&l.Since}, &l.Begun)
		return l, err
	}, sqlLate, account, dueBefore, limit)
}

const sqlLateUnsent = `
SELECT ` + requestColumns + ` FROM requests AS r
WHERE account = $1 AND due_at < $2 AND ` + unsent + ` ORDER BY due_at, seq LIMIT $3 FOR UPDATE`

// ExpireLate implements store.Control.
func (s *Store) ExpireLate(ctx context.Context, account string, dueBefore time.Time, limit int, now time.Time) (expired []store.Key, err error) {
	err = s.change(ctx, "expire late requests", func(ctx context.Context, tx pgx.Tx) error {
		expired = nil
		laneRow, err := s.lockLane(ctx, tx, account)
		if err != nil {
			return err
		}
		late, err := readRequests(ctx, tx, sqlLateUnsent, account, dueBefore, limit)
		if err != nil || len(late) == 0 {
			return err
		}
		for _, r := range late {
			change, err := r.Expire(dueBefore, laneRow.At(now))
			if err == nil {
				err = save(ctx, tx, laneRow, r, change)
			}
			if err != nil {
				return err
			}
			expired = append(expired, r.Key)
		}
		return wake(ctx, tx, account, s.now(now))
	})
	if err != nil {
		return nil, err
	}
	return expired, nil
}

const sqlSent = `
SELECT sent_at FROM posts WHERE account = $1 AND state = 'posted' AND sent_at > $2 ORDER BY sent_at DESC LIMIT $3`

// Sent implements store.Lanes.
func (s *Store) Sent(ctx context.Context, account string, after time.Time, limit int) ([]time.Time, error) {
	sent, err := collect(ctx, s.db, func(row scanner) (t time.Time, err error) {
		err = row.Scan(at{&t})
		return t, err
	}, sqlSent, account, after, limit)
	return sent, s.wrap("find sent posts", err)
}
