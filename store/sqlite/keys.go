package sqlite

import (
	"context"
	"database/sql"

	"github.com/jetpost/jetpost/store"
)

const sqlKeyUses = `
SELECT substr(access_token, 1, ?1), substr(refresh_token, 1, ?1), count(*) FROM oauth_tokens GROUP BY 1, 2
UNION ALL SELECT substr(secret, 1, ?1), substr(secret, 1, ?1), count(*) FROM hooks GROUP BY 1`

// KeyUses implements store.Keys.
func (s *Store) KeyUses(ctx context.Context) (uses []store.KeyUse, err error) {
	err = s.report(ctx, "count keys", func(ctx context.Context, tx *sql.Tx) (err error) {
		uses, err = collect(ctx, tx, func(row scanner) (u store.KeyUse, err error) {
			var access, refresh string
			err = row.Scan(&access, &refresh, &u.Rows)
			u.AccessKey, u.RefreshKey = store.KeyIDOf(access), store.KeyIDOf(refresh)
			return u, err
		}, sqlKeyUses, store.SealedPrefixBytes)
		return err
	})
	return uses, err
}

// Key check value implements store.Keys.
func (s *Store) KeyCheck(ctx context.Context) (ledgerID, keyCheck string, err error) {
	err = s.row(ctx, sqlReadKeyCheck).Scan(&ledgerID, &keyCheck)
	return ledgerID, keyCheck, s.wrap("read key check value", err)
}

const sqlSealedTokens = `SELECT ` + tokenColumns + `, NULL FROM oauth_tokens WHERE id > ?1 ORDER BY id LIMIT ?2`

// SealedTokens implements store.Keys.
func (s *Store) SealedTokens(ctx context.Context, after string, limit int) (rows []store.SealedToken, err error) {
	err = s.view(ctx, "read sealed tokens", func(ctx context.Context, tx *sql.Tx) (err error) {
		rows, err = collect(ctx, tx, scanToken, sqlSealedTokens, after, limit)
		return err
	})
	return rows, err
}

// sqlReseal changes only rows that still are what was read: what a worker has saved
// since is newer.
const sqlReseal = `
UPDATE oauth_tokens SET access_token = ?4, refresh_token = ?5 WHERE id = ?1 AND access_token = ?2 AND refresh_token = ?3`

// Reseal implements store.Keys.
func (s *Store) Reseal(ctx context.Context, rows []store.Resealed) (done int, err error) {
	err = s.change(ctx, "seal tokens anew", func(ctx context.Context, tx *sql.Tx) error {
		done = 0
		for _, r := range rows {
			n, err := changed(ctx, tx, sqlReseal, r.Old.ID, r.Old.SealedAccess, r.Old.SealedRefresh, r.Access, r.Refresh)
			if err != nil {
				return err
			}
			done += n
		}
		return nil
	})
	return done, err
}
