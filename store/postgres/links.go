package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	sqlAddLink = `
INSERT INTO connect_links (token_hash, account, return_to, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)`
	// sqlForgetLinks skips links that another call is deleting.
	sqlForgetLinks = `
DELETE FROM connect_links WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM connect_links WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))`
)

// AddLink implements store.Links.
func (s *Store) AddLink(ctx context.Context, link store.NewLink) error {
	return s.change(ctx, "add link", func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sqlAddLink, store.LinkDigest(link.Token), link.Account, link.ReturnTo, link.Now, link.ExpiresAt)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, sqlForgetLinks, link.Now.Add(-rules.LinkRetention), rules.MaxForgottenLinks)
		return err
	})
}

const (
	linkColumns = `token_hash, account, return_to, created_at, expires_at, used_at`

	sqlLink = `SELECT ` + linkColumns + ` FROM connect_links WHERE token_hash = $1`
)

// Link implements store.Links.
func (s *Store) Link(ctx context.Context, id string) (link store.Link, err error) {
	digest, err := rules.ParseLinkID(id)
	if err == nil {
		link, err = scanLink(s.db.QueryRow(ctx, sqlLink, digest))
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
	// sqlLockLink waits for a call that takes or begins an attempt.
	sqlLockLink = `
SELECT ` + linkColumns + `, coalesce(busy_until > clock_timestamp(), false) FROM connect_links
WHERE token_hash = $1 FOR UPDATE`
	sqlBeginAttempt = `
UPDATE connect_links
SET attempt_state = $2, attempt_browser = $3, attempt_verifier = $4, attempt_expires_at = $5, busy_until = NULL
WHERE token_hash = $1`
)

// BeginAttempt implements store.Links.
func (s *Store) BeginAttempt(ctx context.Context, id string, attempt store.LinkAttempt) (link store.Link, err error) {
	err = s.change(ctx, "begin attempt", func(ctx context.Context, tx pgx.Tx) error {
		digest, err := rules.ParseLinkID(id)
		if err != nil {
			return err
		}
		var busy bool
		link, err = scanLink(tx.QueryRow(ctx, sqlLockLink, digest), &busy)
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
		_, err = tx.Exec(ctx, sqlBeginAttempt, digest, attempt.State, attempt.Browser, verifier, attempt.ExpiresAt)
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
FROM connect_links WHERE attempt_state = $1`
	sqlLockAttempt = sqlAttempt + ` FOR UPDATE`
	sqlTakeAttempt = `
UPDATE connect_links SET attempt_verifier = NULL, busy_until = clock_timestamp() + $2::interval WHERE attempt_state = $1`
)

// scanAttempt scans an attempt with its link.
func scanAttempt(row scanner) (a rules.StoredAttempt, err error) {
	a.Link, err = scanLink(row, &a.Browser, &a.Verifier, at{&a.ExpiresAt})
	return a, missing(err, store.ErrNotFound)
}

// AttemptLink implements store.Links.
func (s *Store) AttemptLink(ctx context.Context, state, browser []byte, now time.Time) (store.Link, error) {
	a, err := scanAttempt(s.db.QueryRow(ctx, sqlAttempt, state))
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
	err = s.change(ctx, "take attempt", func(ctx context.Context, tx pgx.Tx) error {
		a, err := scanAttempt(tx.QueryRow(ctx, sqlLockAttempt, state))
		if err != nil {
			return err
		}
		link = a.Link
		if verifier, err = a.Take(s.sealer, browser, now); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, sqlTakeAttempt, state, lease)
		return err
	})
	if err != nil {
		return store.Link{}, secret.String{}, err
	}
	return link, verifier, nil
}

const (
	sqlGiveUpAttempt = `
UPDATE connect_links SET busy_until = NULL WHERE token_hash = $1 AND attempt_state = $2 AND attempt_verifier IS NULL`
	sqlUseLink = `
UPDATE connect_links SET used_at = coalesce(used_at, $2), attempt_verifier = NULL, busy_until = NULL WHERE token_hash = $1`
)

// GiveUpAttempt implements store.Links.
func (s *Store) GiveUpAttempt(ctx context.Context, id string, state []byte) error {
	digest, err := rules.ParseLinkID(id)
	if err == nil {
		_, err = s.db.Exec(ctx, sqlGiveUpAttempt, digest, state)
	}
	return s.wrap("give up attempt", err)
}

// UseLink implements store.Links.
func (s *Store) UseLink(ctx context.Context, id string, now time.Time) error {
	digest, err := rules.ParseLinkID(id)
	if err == nil {
		var n int
		n, err = changed(ctx, s.db, sqlUseLink, digest, now)
		err = orNone(n, err, store.ErrNotFound)
	}
	return s.wrap("use link", err)
}
