package sqlite

import (
	"context"
	"database/sql"

	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	sqlDesired    = `SELECT name, value, version FROM desired ORDER BY name`
	sqlSetDesired = `
INSERT INTO desired (name, value, version) SELECT ?1, ?2, ?3 + 1
WHERE ?3 = 0 OR EXISTS (SELECT 1 FROM desired WHERE name = ?1)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, version = excluded.version WHERE desired.version = ?3`
)

// Desired implements store.Upkeep.
func (s *Store) Desired(ctx context.Context) (all []store.Desired, err error) {
	err = s.view(ctx, "read desired state", func(ctx context.Context, tx *sql.Tx) error {
		all, err = collect(ctx, tx, func(row scanner) (k store.Desired, err error) {
			err = row.Scan(&k.Name, &k.Value, &k.Version)
			return k, err
		}, sqlDesired)
		return err
	})
	return all, err
}

// Keep implements store.Upkeep.
func (s *Store) Keep(ctx context.Context, k store.Desired) (stored bool, err error) {
	err = s.change(ctx, "keep "+k.Name, func(ctx context.Context, tx *sql.Tx) error {
		n, err := changed(ctx, tx, sqlSetDesired, k.Name, blob(k.Value), k.Version)
		stored = n > 0
		return err
	})
	return stored && err == nil, err
}

// blocked is the condition of the index requests_blocked: the codes are those of
// jetpost.KindHeldForPerson.
const blocked = `(state = 'unknown' OR (state = 'held' AND reason_code IN ('poison', 'key_unavailable', 'account_reauth_required')))`

// Each statement makes one index lookup for each account, or reads the front of one
// index. Counts end at a limit.
const (
	sqlStanding = `
SELECT a.name, t.requires_reauth, l.paused_at, l.paused_until, l.pause_reason, l.pause_cause, l.paused_at IS NOT NULL AND (l.paused_until IS NULL OR l.paused_until > ?1)
FROM accounts AS a JOIN oauth_tokens AS t ON t.user_id = a.name JOIN lanes AS l ON l.account = a.name
WHERE t.requires_reauth OR l.paused_at IS NOT NULL
ORDER BY a.name`
	sqlCountAccounts = `SELECT count(*) FROM accounts`
	sqlHolders       = `
SELECT lease_owner, count(*) FROM lanes WHERE lease_until > ?1 GROUP BY lease_owner ORDER BY lease_owner`
	sqlOldestDue = `
SELECT coalesce(min(account), ''), min(wake_at) FROM (
    SELECT account, wake_at FROM lanes WHERE wake_at <= ?1 AND (lease_until IS NULL OR lease_until <= ?1)
    ORDER BY wake_at, account LIMIT 1)`
	sqlMoved = `
SELECT (SELECT max(accepted_at) FROM requests),
    (SELECT max((SELECT max(sent_at) FROM posts WHERE account = lanes.account AND state = 'posted')) FROM lanes),
    (SELECT min(updated_at) FROM requests WHERE announced < revision),
    (SELECT count(*) FROM (SELECT 1 FROM refusals WHERE stored > ?1 LIMIT ?2))`
	sqlLateSum = `
SELECT count(*), min(due_at) FROM (
    SELECT due_at FROM lanes CROSS JOIN requests
    WHERE requests.account = lanes.account AND ` + unfinished + ` AND due_at < ?1 AND ` + unsent + `
    LIMIT ?2)`
	sqlCountBlocked = `
SELECT count(*) FROM lanes WHERE EXISTS (SELECT 1 FROM requests WHERE account = lanes.account AND ` + blocked + `)`
	sqlBlocked = `
SELECT b.account, b.id, b.state, b.reason_code,
    (SELECT count(*) FROM (SELECT 1 FROM requests WHERE account = b.account AND due_at <= ?1 AND ` + unfinished + ` LIMIT ?3))
FROM lanes CROSS JOIN requests AS b ON b.rowid = (
    SELECT rowid FROM requests WHERE account = lanes.account AND ` + blocked + ` ORDER BY due_at, seq LIMIT 1)
ORDER BY b.state <> 'unknown', b.account LIMIT ?2`
)

// Progress implements store.Upkeep.
func (s *Store) Progress(ctx context.Context, q store.ProgressQuery) (p store.Progress, err error) {
	err = s.view(ctx, "read progress", func(ctx context.Context, tx *sql.Tx) error {
		p = store.Progress{}
		_, err := collect(ctx, tx, func(row scanner) (none struct{}, err error) {
			var one store.Standing
			var paused bool
			err = row.Scan(&one.Account, &one.Reauth, pausedAt{&one.Pause}, at{&one.Pause.Reason.Until}, &one.Pause.Reason.Detail, rules.CauseOf{Pause: &one.Pause}, &paused)
			rules.Stand(&p, one, paused)
			return none, err
		}, sqlStanding, micros(q.Now))
		if err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, sqlCountAccounts).Scan(&p.Accounts); err != nil {
			return err
		}
		p.Holders, err = collect(ctx, tx, func(row scanner) (h store.Holder, err error) {
			err = row.Scan(&h.Worker, &h.Lanes)
			return h, err
		}, sqlHolders, micros(q.Now))
		if err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, sqlOldestDue, micros(q.Now)).Scan(&p.DueAccount, at{&p.DueSince}); err != nil {
			return err
		}
		err = tx.QueryRowContext(ctx, sqlMoved, micros(q.Now.Add(-rules.ProgressRefusals)), store.MaxProgress).
			Scan(at{&p.AcceptedAt}, at{&p.PostedAt}, at{&p.UntoldSince}, &p.Refused)
		if err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, sqlLateSum, micros(q.LateBefore), store.MaxProgress).Scan(&p.LateRequests, at{&p.LateSince}); err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, sqlCountBlocked).Scan(&p.BlockedAccounts); err != nil || p.BlockedAccounts == 0 {
			return err
		}
		p.Blocked, err = collect(ctx, tx, func(row scanner) (b store.BlockedQueue, err error) {
			err = row.Scan(&b.Account, &b.ID, &b.State, &b.Code, &b.Waiting)
			return b, err
		}, sqlBlocked, micros(q.Now), q.Blocked, store.MaxProgress)
		return err
	})
	return p, err
}
