package sqlite

import (
	"context"
	"database/sql"
	"time"

	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	sqlAddLink = `
INSERT INTO connect_links (token_hash, account, return_to, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)`
	sqlForgetLinks = `
DELETE FROM connect_links WHERE token_hash IN
    (SELECT token_hash FROM connect_links WHERE expires_at < ?1 ORDER BY expires_at LIMIT ?2)`
)

// AddLink implements store.Links.
func (s *Store) AddLink(ctx context.Context, link store.NewLink) error {
	return s.change(ctx, "add link", func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, sqlAddLink, store.LinkDigest(link.Token), link.Account, link.ReturnTo, micros(link.Now), micros(link.ExpiresAt))
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, sqlForgetLinks, micros(link.Now.Add(-rules.LinkRetention)), rules.MaxForgottenLinks)
		return err
	})
}

const (
	linkColumns = `token_hash, account, return_to, created_at, expires_at, used_at`

	sqlLink = `SELECT ` + linkColumns + ` FROM connect_links WHERE token_hash = ?1`
)

// Link implements store.Links.
func (s *Store) Link(ctx context.Context, id string) (link store.Link, err error) {
	digest, err := rules.ParseLinkID(id)
	if err == nil {
		link, err = scanLink(s.row(ctx, sqlLink, digest))
	}
	return link, s.wrap("read link", missing(err, store.ErrNotFound))
}

// scanLink scans the columns of a link, and the columns after them.
func scanLink(row scanner, more ...any) (l store.Link, err error) {
	var digest []byte
	err = row.Scan(append([]any{&digest, &l.Account, &l.ReturnTo, at{&l.CreatedAt}, at{&l.ExpiresAt}, at{&l.UsedAt}}, more...)...)
	l.ID = store.LinkID(digest)
	return l, err
}

const (
	sqlLinkBusy = `SELECT ` + linkColumns + `, coalesce(busy_until > ?2, 0) FROM connect_links WHERE token_hash = ?1`

	sqlBeginAttempt = `
UPDATE connect_links
SET attempt_state = ?2, attempt_browser = ?3, attempt_verifier = ?4, attempt_expires_at = ?5, busy_until = NULL
WHERE token_hash = ?1`
)

// BeginAttempt implements store.Links.
func (s *Store) BeginAttempt(ctx context.Context, id string, attempt store.LinkAttempt) (link store.Link, err error) {
	err = s.change(ctx, "begin attempt", func(ctx context.Context, tx *sql.Tx) error {
		digest, err := rules.ParseLinkID(id)
		if err != nil {
			return err
		}
		var busy bool
		link, err = scanLink(tx.QueryRowContext(ctx, sqlLinkBusy, digest, micros(attempt.Now)), &busy)
		if err != nil {
			return missing(err, store.ErrNotFound)
		}
		if err := rules.MayBegin(link, busy, attempt.Now); err != nil {
			return err
		}
		verifier, err := rules.SealVerifier(s.sealer, link.ID, attempt.Verifier)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, sqlBeginAttempt, digest, attempt.State, attempt.Browser, verifier, micros(attempt.ExpiresAt))
		return err
	})
	if err != nil {
		return store.Link{}, err
	}
	return link, nil
}

const (
	sqlAttempt = `
SELECT ` + linkColumns + `, attempt_browser, coalesce(attempt_verifier, ''), attempt_expires_at
FROM connect_links WHERE attempt_state = ?1`
	sqlTakeAttempt = `UPDATE connect_links SET attempt_verifier = NULL, busy_until = ?2 WHERE attempt_state = ?1`
)

// scanAttempt scans an attempt with its link.
func scanAttempt(row scanner) (a rules.StoredAttempt, err error) {
	a.Link, err = scanLink(row, &a.Browser, &a.Verifier, at{&a.ExpiresAt})
	return a, missing(err, store.ErrNotFound)
}

// AttemptLink implements store.Links.
func (s *Store) AttemptLink(ctx context.Context, state, browser []byte, now time.Time) (store.Link, error) {
	a, err := scanAttempt(s.row(ctx, sqlAttempt, state))
	if err == nil {
		err = a.MayTake(browser, now)
	}
	if err != nil {
		return store.Link{}, s.wrap("read attempt", err)
	}
	return a.Link, nil
}

// TakeAttempt implements store.Links.
func (s *Store) TakeAttempt(ctx context.Context, state, browser []byte, lease time.Duration, now time.Time) (link store.Link, verifier secret.String, err error) {
	err = s.change(ctx, "take attempt", func(ctx context.Context, tx *sql.Tx) error {
		a, err := scanAttempt(tx.QueryRowContext(ctx, sqlAttempt, state))
		if err != nil {
			return err
		}
		link = a.Link
		if verifier, err = a.Take(s.sealer, browser, now); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, sqlTakeAttempt, state, micros(now.Add(lease)))
		return err
	})
	if err != nil {
		return store.Link{}, secret.String{}, err
	}
	return link, verifier, nil
}

const (
	sqlGiveUpAttempt = `
UPDATE connect_links SET busy_until = NULL WHERE token_hash = ?1 AND attempt_state = ?2 AND attempt_verifier IS NULL`
	sqlUseLink = `
UPDATE connect_links SET used_at = coalesce(used_at, ?2), attempt_verifier = NULL, busy_until = NULL WHERE token_hash = ?1`
)

// GiveUpAttempt implements store.Links.
func (s *Store) GiveUpAttempt(ctx context.Context, id string, state []byte) error {
	return s.change(ctx, "give up attempt", func(ctx context.Context, tx *sql.Tx) error {
		digest, err := rules.ParseLinkID(id)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, sqlGiveUpAttempt, digest, state)
		return err
	})
}

// UseLink implements store.Links.
func (s *Store) UseLink(ctx context.Context, id string, now time.Time) error {
	return s.change(ctx, "use link", func(ctx context.Context, tx *sql.Tx) error {
		digest, err := rules.ParseLinkID(id)
		if err != nil {
			return err
		}
		n, err := changed(ctx, tx, sqlUseLink, digest, micros(now))
		if err == nil && n == 0 {
			return store.ErrNotFound
		}
		return err
	})
}
