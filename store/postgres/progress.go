package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	sqlDesired    = `SELECT name, value, version FROM desired ORDER BY name COLLATE "C"`
	sqlSetDesired = `
INSERT INTO desired AS k (name, value, version) SELECT $1, $2, $3 + 1
WHERE $3 = 0 OR EXISTS (SELECT FROM desired WHERE name = $1)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, version = excluded.version WHERE k.version = $3`
)

// Desired implements store.Upkeep.
func (s *Store) Desired(ctx context.Context) ([]store.Desired, error) {
	all, err := collect(ctx, s.db, func(row scanner) (k store.Desired, err error) {
		err = row.Scan(&k.Name, &k.Value, &k.Version)
		return k, err
	}, sqlDesired)
	return all, s.wrap("read desired state", err)
}

// Keep implements store.Upkeep.
func (s *Store) Keep(ctx context.Context, k store.Desired) (bool, error) {
	n, err := changed(ctx, s.db, sqlSetDesired, k.Name, blob(k.Value), k.Version)
	return n > 0, s.wrap("keep "+k.Name, err)
}

// blocked is the condition of the index requests_blocked: the codes are those of
// jetpost.KindHeldForPerson.
const blocked = `(state = 'unknown' OR (state = 'held' AND reason_code IN ('poison', 'key_unavailable', 'account_reauth_required')))`

// Each statement makes one index lookup for each account, or reads the front of one
// index. Counts end at a limit.
const (
	sqlStanding = `
SELECT a.name, t.requires_reauth, l.paused_at, l.paused_until, l.pause_reason, l.pause_cause, l.paused_at IS NOT NULL AND (l.paused_until IS NULL OR l.paused_until > $1)
FROM accounts AS a JOIN oauth_tokens AS t ON t.user_id = a.name JOIN lanes AS l ON l.account = a.name
WHERE t.requires_reauth OR l.paused_at IS NOT NULL
ORDER BY a.name COLLATE "C"`
	sqlCountAccounts = `SELECT count(*) FROM accounts`
	sqlHolders       = `
SELECT lease_owner, count(*) FROM lanes AS l WHERE lease_until > clock_timestamp() GROUP BY lease_owner ORDER BY lease_owner`
	sqlOldestDue = `
SELECT coalesce(min(account), ''), min(wake_at) FROM (
    SELECT account, wake_at FROM lanes WHERE wake_at <= $1 AND (lease_until IS NULL OR lease_until <= clock_timestamp())
    ORDER BY wake_at LIMIT 1) AS oldest`
	sqlMoved = `
SELECT (SELECT max(accepted_at) FROM requests),
    (SELECT max(p.sent_at) FROM lanes AS l CROSS JOIN LATERAL (
        SELECT sent_at FROM posts WHERE account = l.account AND state = 'posted' ORDER BY sent_at DESC LIMIT 1) AS p),
    (SELECT min(since) FROM outbox),
    (SELECT count(*) FROM (SELECT FROM refusals WHERE stored > $1 ORDER BY stored DESC LIMIT $2) AS few)`
	sqlLateSum = `
WITH late AS MATERIALIZED (
    SELECT r.* FROM lanes AS l CROSS JOIN LATERAL (
        SELECT account, id, state, due_at FROM requests WHERE account = l.account AND ` + unfinished + ` AND due_at < $1
        ORDER BY due_at, seq LIMIT $2) AS r
    LIMIT $2)
SELECT count(*), min(due_at) FROM late AS r WHERE ` + unsent
	sqlCountBlocked = `
SELECT count(*) FROM lanes AS l WHERE EXISTS (SELECT FROM requests WHERE account = l.account AND ` + blocked + `)`
	sqlBlocked = `
SELECT l.account, b.id, b.state, b.reason_code,
    (SELECT count(*) FROM (SELECT FROM requests WHERE account = l.account AND due_at <= $1 AND ` + unfinished + ` LIMIT $3) AS few)
FROM lanes AS l CROSS JOIN LATERAL (
    SELECT id, state, reason_code FROM requests WHERE account = l.account AND ` + blocked + ` ORDER BY due_at, seq LIMIT 1) AS b
ORDER BY b.state <> 'unknown', l.account COLLATE "C" LIMIT $2`
)

// Progress implements store.Upkeep.
func (s *Store) Progress(ctx context.Context, q store.ProgressQuery) (p store.Progress, err error) {
	err = s.view(ctx, "read progress", func(ctx context.Context, tx pgx.Tx) error {
		p = store.Progress{}
		_, err := collect(ctx, tx, func(row scanner) (none struct{}, err error) {
			var one store.Standing
			var paused bool
			err = row.Scan(&one.Account, &one.Reauth, pausedAt{&one.Pause}, at{&one.Pause.Reason.Until}, &one.Pause.Reason.Detail, rules.CauseOf{Pause: &one.Pause}, &paused)
			rules.Stand(&p, one, paused)
			return none, err
		}, sqlStanding, q.Now)
		if err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, sqlCountAccounts).Scan(&p.Accounts); err != nil {
			return err
		}
		p.Holders, err = collect(ctx, tx, func(row scanner) (h store.Holder, err error) {
			err = row.Scan(&h.Worker, &h.Lanes)
			return h, err
		}, sqlHolders)
		if err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, sqlOldestDue, q.Now).Scan(&p.DueAccount, at{&p.DueSince}); err != nil {
			return err
		}
		err = tx.QueryRow(ctx, sqlMoved, q.Now.Add(-rules.ProgressRefusals), store.MaxProgress).
			Scan(at{&p.AcceptedAt}, at{&p.PostedAt}, at{&p.UntoldSince}, &p.Refused)
		if err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, sqlLateSum, q.LateBefore, store.MaxProgress).Scan(&p.LateRequests, at{&p.LateSince}); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, sqlCountBlocked).Scan(&p.BlockedAccounts); err != nil || p.BlockedAccounts == 0 {
			return err
		}
		p.Blocked, err = collect(ctx, tx, func(row scanner) (b store.BlockedQueue, err error) {
			err = row.Scan(&b.Account, &b.ID, &b.State, &b.Code, &b.Waiting)
			return b, err
		}, sqlBlocked, q.Now, q.Blocked, store.MaxProgress)
		return err
	})
	return p, err
}
