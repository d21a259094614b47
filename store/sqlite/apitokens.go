package sqlite

import (
	"context"
	"database/sql"
	"time"

	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	apiTokenColumns = `name, digest, accounts, verbs, created_at, expires_at, revoked_at`

	sqlAPIToken        = `SELECT ` + apiTokenColumns + ` FROM api_tokens WHERE name = ?1`
	sqlAPITokens       = `SELECT ` + apiTokenColumns + ` FROM api_tokens ORDER BY name`
	sqlForgetAPITokens = `DELETE FROM api_tokens WHERE expires_at < ?1`
	sqlAddAPIToken     = `
INSERT INTO api_tokens (name, digest, accounts, verbs, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT DO NOTHING`
	sqlRevokeAPIToken = `
UPDATE api_tokens SET revoked_at = coalesce(revoked_at, ?2) WHERE name = ?1 RETURNING ` + apiTokenColumns
)

func scanAPIToken(row scanner) (t store.APIToken, err error) {
	err = row.Scan(&t.Name, &t.Digest, wordsOf(&t.Accounts), wordsOf(&t.Verbs), at{&t.CreatedAt}, at{&t.ExpiresAt}, at{&t.RevokedAt})
	return t, err
}

func wordsOf[S ~string](of *[]S) rules.Words[S] { return rules.Words[S]{Of: of} }

// AddAPIToken implements store.APITokens.
func (s *Store) AddAPIToken(ctx context.Context, t store.APIToken) error {
	return s.change(ctx, "add API token", func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, sqlForgetAPITokens, micros(t.CreatedAt.Add(-rules.APITokenRetention))); err != nil {
			return err
		}
		n, err := changed(ctx, tx, sqlAddAPIToken,
			t.Name, blob(t.Digest), wordsOf(&t.Accounts).String(), wordsOf(&t.Verbs).String(), micros(t.CreatedAt), micros(t.ExpiresAt))
		if err == nil && n == 0 {
			err = store.ErrAPITokenExists
		}
		return err
	})
}

// RevokeAPIToken implements store.APITokens.
func (s *Store) RevokeAPIToken(ctx context.Context, name string, now time.Time) (t store.APIToken, err error) {
	err = s.change(ctx, "revoke API token", func(ctx context.Context, tx *sql.Tx) error {
		t, err = scanAPIToken(tx.QueryRowContext(ctx, sqlRevokeAPIToken, name, micros(now)))
		return missing(err, store.ErrNotFound)
	})
	return t, err
}

// APIToken implements store.APITokens.
func (s *Store) APIToken(ctx context.Context, name string) (store.APIToken, error) {
	t, err := scanAPIToken(s.row(ctx, sqlAPIToken, name))
	return t, s.wrap("read API token", missing(err, store.ErrNotFound))
}

// APITokens implements store.APITokens.
func (s *Store) APITokens(ctx context.Context) (tokens []store.APIToken, err error) {
	err = s.report(ctx, "list API tokens", func(ctx context.Context, tx *sql.Tx) error {
		tokens, err = collect(ctx, tx, scanAPIToken, sqlAPITokens)
		return err
	})
	return tokens, err
}
