package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	userColumns = `name, role, password_hash, created_at, password_at`

	sqlUser    = `SELECT ` + userColumns + ` FROM users WHERE name = $1`
	sqlUsers   = `SELECT ` + userColumns + ` FROM users ORDER BY name COLLATE "C"`
	sqlAddUser = `INSERT INTO users (` + userColumns + `) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`
	sqlSetUser = `
UPDATE users SET role = coalesce(nullif($2, ''), role), password_hash = coalesce(nullif($3, ''), password_hash),
    password_at = CASE $3 WHEN '' THEN password_at ELSE $4 END
WHERE name = $1 RETURNING ` + userColumns
	sqlRemoveUser = `DELETE FROM users WHERE name = $1 RETURNING ` + userColumns

	sessionColumns = `digest, user_name, (SELECT role FROM users WHERE name = user_name), created_at, seen_at`

	sqlAddSession = `
INSERT INTO sessions AS s (digest, user_name, created_at, seen_at) SELECT $1, name, $3, $3 FROM users WHERE name = $2
ON CONFLICT (digest) DO UPDATE SET seen_at = s.seen_at WHERE s.user_name = excluded.user_name`
	sqlSession        = `SELECT ` + sessionColumns + ` FROM sessions WHERE digest = $1 AND seen_at > $2 AND created_at > $3`
	sqlSeeSession     = `UPDATE sessions SET seen_at = $2 WHERE digest = $1 AND seen_at < $2`
	sqlEndSession     = `DELETE FROM sessions WHERE digest = $1 RETURNING ` + sessionColumns
	sqlEndSessions    = `DELETE FROM sessions WHERE user_name = $1`
	sqlForgetSessions = `
DELETE FROM sessions WHERE digest IN (
    SELECT digest FROM sessions WHERE seen_at <= $1 ORDER BY seen_at LIMIT $2 FOR UPDATE SKIP LOCKED)`

	// The keys are locked in their order, so that nobody waits for one that waits.
	sqlCountAttempts = `
INSERT INTO login_attempts AS a (key, count, since) SELECT k.key, 1, $2 FROM unnest($1::bytea[]) AS k (key) ORDER BY k.key
ON CONFLICT (key) DO UPDATE SET
    count = CASE WHEN a.since <= $3 THEN 1 ELSE a.count + 1 END, since = CASE WHEN a.since <= $3 THEN excluded.since ELSE a.since END
RETURNING key, count`
	sqlForgiveAttempts = `
WITH locked AS (SELECT key FROM login_attempts WHERE key = ANY ($1::bytea[]) ORDER BY key FOR UPDATE)
UPDATE login_attempts AS a SET count = a.count - 1 FROM locked WHERE a.key = locked.key AND a.count > 0`
	sqlForgetAttempts = `
DELETE FROM login_attempts WHERE key IN (
    SELECT key FROM login_attempts WHERE since <= $1 ORDER BY since LIMIT $2 FOR UPDATE SKIP LOCKED)`

	sqlAddAudit = `INSERT INTO audit (at, actor, operation, account, target, outcome) VALUES ($1, $2, $3, $4, $5, $6)`
	sqlAudits   = `
SELECT seq, at, actor, operation, account, target, outcome FROM audit
WHERE seq < $1 AND ($2 = '' OR actor = $2) AND ($3 = '' OR operation = $3) AND ($4 = '' OR account = $4)
    AND ($5::timestamptz IS NULL OR at >= $5)
ORDER BY seq DESC LIMIT $6`
	sqlForgetAudits = `
DELETE FROM audit WHERE seq IN (SELECT seq FROM audit WHERE at < $1 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED)`
)

func scanUser(row scanner) (u store.User, err error) {
	err = row.Scan(&u.Name, &u.Role, &u.PasswordHash, at{&u.CreatedAt}, at{&u.PasswordAt})
	return u, err
}

func scanSession(row scanner) (s store.Session, err error) {
	err = row.Scan(&s.Digest, &s.User, &s.Role, at{&s.CreatedAt}, at{&s.SeenAt})
	return s, err
}

func scanAudit(row scanner) (a store.Audit, err error) {
	err = row.Scan(&a.Seq, at{&a.At}, &a.Actor, &a.Operation, &a.Account, &a.Target, &a.Outcome)
	return a, err
}

// AddUser implements store.Users.
func (s *Store) AddUser(ctx context.Context, u store.User) error {
	return s.change(ctx, "add user", func(ctx context.Context, tx pgx.Tx) error {
		n, err := changed(ctx, tx, sqlAddUser, u.Name, u.Role, u.PasswordHash, u.CreatedAt, u.PasswordAt)
		return orNone(n, err, store.ErrUserExists)
	})
}

// SetUser implements store.Users.
func (s *Store) SetUser(ctx context.Context, name string, role jetpost.Role, passwordHash string, now time.Time) (u store.User, err error) {
	err = s.change(ctx, "set user", func(ctx context.Context, tx pgx.Tx) error {
		if u, err = scanUser(tx.QueryRow(ctx, sqlSetUser, name, string(role), passwordHash, now)); err != nil || passwordHash == "" {
			return missing(err, store.ErrNotFound)
		}
		_, err = tx.Exec(ctx, sqlEndSessions, name)
		return err
	})
	return u, err
}

// RemoveUser implements store.Users.
func (s *Store) RemoveUser(ctx context.Context, name string) (u store.User, err error) {
	err = s.change(ctx, "remove user", func(ctx context.Context, tx pgx.Tx) error {
		u, err = scanUser(tx.QueryRow(ctx, sqlRemoveUser, name))
		return missing(err, store.ErrNotFound)
	})
	return u, err
}

// User implements store.Users.
func (s *Store) User(ctx context.Context, name string) (store.User, error) {
	u, err := scanUser(s.db.QueryRow(ctx, sqlUser, name))
	return u, s.wrap("read user", missing(err, store.ErrNotFound))
}

// Users implements store.Users.
func (s *Store) Users(ctx context.Context) ([]store.User, error) {
	return reportAll(ctx, s, "list users", scanUser, sqlUsers)
}

// AddSession implements store.Users.
func (s *Store) AddSession(ctx context.Context, session store.Session) error {
	return s.change(ctx, "add session", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlForgetSessions, session.CreatedAt.Add(-jetpost.SessionIdle), rules.MaxForgottenSessions); err != nil {
			return err
		}
		n, err := changed(ctx, tx, sqlAddSession, session.Digest, session.User, session.CreatedAt)
		return orNone(n, err, store.ErrNotFound)
	})
}

// UseSession implements store.Users.
func (s *Store) UseSession(ctx context.Context, digest []byte, now time.Time) (store.Session, error) {
	session, err := scanSession(s.db.QueryRow(ctx, sqlSession, blob(digest), now.Add(-jetpost.SessionIdle), now.Add(-jetpost.SessionLife)))
	if err == nil && now.Sub(session.SeenAt) >= rules.SessionSeenEvery {
		session.SeenAt = now
		_, err = s.db.Exec(ctx, sqlSeeSession, blob(digest), now)
	}
	return session, s.wrap("use session", missing(err, store.ErrNotFound))
}

// EndSession implements store.Users.
func (s *Store) EndSession(ctx context.Context, digest []byte) (session store.Session, err error) {
	err = s.change(ctx, "end session", func(ctx context.Context, tx pgx.Tx) error {
		session, err = scanSession(tx.QueryRow(ctx, sqlEndSession, blob(digest)))
		return missing(err, store.ErrNotFound)
	})
	return session, err
}

// CountAttempts implements store.Users.
func (s *Store) CountAttempts(ctx context.Context, keys [][]byte, window time.Duration, now time.Time) (counts []int, err error) {
	counts = make([]int, len(keys))
	err = s.change(ctx, "count attempts", func(ctx context.Context, tx pgx.Tx) error {
		began := now.Add(-window)
		if _, err := tx.Exec(ctx, sqlForgetAttempts, began, rules.MaxForgottenAttempts); err != nil {
			return err
		}
		type counted struct {
			key   []byte
			count int
		}
		all, err := collect(ctx, tx, func(row scanner) (c counted, err error) { return c, row.Scan(&c.key, &c.count) }, sqlCountAttempts, keys, now, began)
		for _, c := range all {
			for i, key := range keys {
				if string(key) == string(c.key) {
					counts[i] = c.count
				}
			}
		}
		return err
	})
	return counts, err
}

// ForgiveAttempts implements store.Users.
func (s *Store) ForgiveAttempts(ctx context.Context, keys [][]byte) error {
	return s.change(ctx, "forgive attempts", func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sqlForgiveAttempts, keys)
		return err
	})
}

// AddAudit implements store.Audits.
func (s *Store) AddAudit(ctx context.Context, a store.Audit) error {
	return s.change(ctx, "add audit", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlForgetAudits, a.At.Add(-rules.AuditRetention), rules.MaxForgottenAudits); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sqlAddAudit, a.At, storable(a.Actor), string(a.Operation), storable(a.Account), storable(a.Target), a.Outcome)
		return err
	})
}

// Audits implements store.Audits.
func (s *Store) Audits(ctx context.Context, f store.AuditFilter) ([]store.Audit, error) {
	return reportAll(ctx, s, "list audit", scanAudit, sqlAudits, f.Before, storable(f.Actor), f.Operation, storable(f.Account), moment(f.Since), f.Limit)
}
