package sqlite

import (
	"context"
	"database/sql"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	userColumns = `name, role, password_hash, created_at, password_at`

	sqlUser    = `SELECT ` + userColumns + ` FROM users WHERE name = ?1`
	sqlUsers   = `SELECT ` + userColumns + ` FROM users ORDER BY name`
	sqlAddUser = `INSERT INTO users (` + userColumns + `) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING`
	sqlSetUser = `
UPDATE users SET role = coalesce(nullif(?2, ''), role), password_hash = coalesce(nullif(?3, ''), password_hash),
    password_at = CASE ?3 WHEN '' THEN password_at ELSE ?4 END
WHERE name = ?1 RETURNING ` + userColumns
	sqlRemoveUser = `DELETE FROM users WHERE name = ?1 RETURNING ` + userColumns

	sessionColumns = `digest, user_name, (SELECT role FROM users WHERE name = user_name), created_at, seen_at`

	sqlAddSession = `
INSERT INTO sessions (digest, user_name, created_at, seen_at) SELECT ?1, name, ?3, ?3 FROM users WHERE name = ?2
ON CONFLICT (digest) DO UPDATE SET seen_at = sessions.seen_at WHERE sessions.user_name = excluded.user_name`
	sqlSession        = `SELECT ` + sessionColumns + ` FROM sessions WHERE digest = ?1 AND seen_at > ?2 AND created_at > ?3`
	sqlSeeSession     = `UPDATE sessions SET seen_at = ?2 WHERE digest = ?1 AND seen_at < ?2`
	sqlEndSession     = `DELETE FROM sessions WHERE digest = ?1 RETURNING ` + sessionColumns
	sqlEndSessions    = `DELETE FROM sessions WHERE user_name = ?1`
	sqlForgetSessions = `
DELETE FROM sessions WHERE rowid IN (SELECT rowid FROM sessions WHERE seen_at <= ?1 ORDER BY seen_at LIMIT ?2)`

	sqlCountAttempt = `
INSERT INTO login_attempts (key, count, since) VALUES (?1, 1, ?2)
ON CONFLICT (key) DO UPDATE SET
    count = CASE WHEN since <= ?3 THEN 1 ELSE count + 1 END, since = CASE WHEN since <= ?3 THEN excluded.since ELSE since END
RETURNING count`
	sqlForgiveAttempt = `UPDATE login_attempts SET count = count - 1 WHERE key = ?1 AND count > 0`
	sqlForgetAttempts = `
DELETE FROM login_attempts WHERE rowid IN (SELECT rowid FROM login_attempts WHERE since <= ?1 ORDER BY since LIMIT ?2)`

	sqlAddAudit = `INSERT INTO audit (at, actor, operation, account, target, outcome) VALUES (?1, ?2, ?3, ?4, ?5, ?6)`
	sqlAudits   = `
SELECT seq, at, actor, operation, account, target, outcome FROM audit
WHERE seq < ?1 AND (?2 = '' OR actor = ?2) AND (?3 = '' OR operation = ?3) AND (?4 = '' OR account = ?4) AND (?5 IS NULL OR at >= ?5)
ORDER BY seq DESC LIMIT ?6`
	sqlForgetAudits = `
DELETE FROM audit WHERE seq IN (SELECT seq FROM audit WHERE at < ?1 ORDER BY at LIMIT ?2)`
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
	return s.change(ctx, "add user", func(ctx context.Context, tx *sql.Tx) error {
		n, err := changed(ctx, tx, sqlAddUser, u.Name, string(u.Role), u.PasswordHash, micros(u.CreatedAt), micros(u.PasswordAt))
		if err == nil && n == 0 {
			err = store.ErrUserExists
		}
		return err
	})
}

// SetUser implements store.Users.
func (s *Store) SetUser(ctx context.Context, name string, role jetpost.Role, passwordHash string, now time.Time) (u store.User, err error) {
	err = s.change(ctx, "set user", func(ctx context.Context, tx *sql.Tx) error {
		if u, err = scanUser(tx.QueryRowContext(ctx, sqlSetUser, name, string(role), passwordHash, micros(now))); err != nil || passwordHash == "" {
			return missing(err, store.ErrNotFound)
		}
		_, err = tx.ExecContext(ctx, sqlEndSessions, name)
		return err
	})
	return u, err
}

// RemoveUser implements store.Users.
func (s *Store) RemoveUser(ctx context.Context, name string) (u store.User, err error) {
	err = s.change(ctx, "remove user", func(ctx context.Context, tx *sql.Tx) error {
		u, err = scanUser(tx.QueryRowContext(ctx, sqlRemoveUser, name))
		return missing(err, store.ErrNotFound)
	})
	return u, err
}

// User implements store.Users.
func (s *Store) User(ctx context.Context, name string) (store.User, error) {
	u, err := scanUser(s.row(ctx, sqlUser, name))
	return u, s.wrap("read user", missing(err, store.ErrNotFound))
}

// Users implements store.Users.
func (s *Store) Users(ctx context.Context) (users []store.User, err error) {
	err = s.report(ctx, "list users", func(ctx context.Context, tx *sql.Tx) error {
		users, err = collect(ctx, tx, scanUser, sqlUsers)
		return err
	})
	return users, err
}

// AddSession implements store.Users.
func (s *Store) AddSession(ctx context.Context, session store.Session) error {
	return s.change(ctx, "add session", func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, sqlForgetSessions, micros(session.CreatedAt.Add(-jetpost.SessionIdle)), rules.MaxForgottenSessions); err != nil {
			return err
		}
		n, err := changed(ctx, tx, sqlAddSession, blob(session.Digest), session.User, micros(session.CreatedAt))
		if err == nil && n == 0 {
			err = store.ErrNotFound
		}
		return err
	})
}

// UseSession implements store.Users.
func (s *Store) UseSession(ctx context.Context, digest []byte, now time.Time) (store.Session, error) {
	session, err := scanSession(s.row(ctx, sqlSession, blob(digest), micros(now.Add(-jetpost.SessionIdle)), micros(now.Add(-jetpost.SessionLife))))
	if err != nil || now.Sub(session.SeenAt) < rules.SessionSeenEvery {
		return session, s.wrap("use session", missing(err, store.ErrNotFound))
	}
	session.SeenAt = now
	return session, s.change(ctx, "use session", func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, sqlSeeSession, blob(digest), micros(now))
		return err
	})
}

// EndSession implements store.Users.
func (s *Store) EndSession(ctx context.Context, digest []byte) (session store.Session, err error) {
	err = s.change(ctx, "end session", func(ctx context.Context, tx *sql.Tx) error {
		session, err = scanSession(tx.QueryRowContext(ctx, sqlEndSession, blob(digest)))
		return missing(err, store.ErrNotFound)
	})
	return session, err
}

// CountAttempts implements store.Users.
func (s *Store) CountAttempts(ctx context.Context, keys [][]byte, window time.Duration, now time.Time) (counts []int, err error) {
	err = s.change(ctx, "count attempts", func(ctx context.Context, tx *sql.Tx) error {
		counts = make([]int, len(keys))
		began := micros(now.Add(-window))
		if _, err := tx.ExecContext(ctx, sqlForgetAttempts, began, rules.MaxForgottenAttempts); err != nil {
			return err
		}
		for i, key := range keys {
			if err := tx.QueryRowContext(ctx, sqlCountAttempt, blob(key), micros(now), began).Scan(&counts[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return counts, err
}

// ForgiveAttempts implements store.Users.
func (s *Store) ForgiveAttempts(ctx context.Context, keys [][]byte) error {
	return s.change(ctx, "forgive attempts", func(ctx context.Context, tx *sql.Tx) error {
		for _, key := range keys {
			if _, err := tx.ExecContext(ctx, sqlForgiveAttempt, blob(key)); err != nil {
				return err
			}
		}
		return nil
	})
}

// AddAudit implements store.Audits.
func (s *Store) AddAudit(ctx context.Context, a store.Audit) error {
	return s.change(ctx, "add audit", func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, sqlForgetAudits, micros(a.At.Add(-rules.AuditRetention)), rules.MaxForgottenAudits); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, sqlAddAudit, micros(a.At), a.Actor, string(a.Operation), a.Account, a.Target, a.Outcome)
		return err
	})
}

// Audits implements store.Audits.
func (s *Store) Audits(ctx context.Context, f store.AuditFilter) (audits []store.Audit, err error) {
	err = s.report(ctx, "list audit", func(ctx context.Context, tx *sql.Tx) error {
		audits, err = collect(ctx, tx, scanAudit, sqlAudits, f.Before, f.Actor, f.Operation, f.Account, micros(f.Since), f.Limit)
		return err
	})
	return audits, err
}
