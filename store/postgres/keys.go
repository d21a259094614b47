package postgres

import (
	"context"

	"github.com/jetpost/jetpost/store"
)

const sqlKeyUses = `
SELECT left(access_token, $1), left(refresh_token, $1), count(*) FROM oauth_tokens GROUP BY 1, 2
UNION ALL SELECT left(secret, $1), left(secret, $1), count(*) FROM hooks GROUP BY 1`

// KeyUses implements store.Keys.
func (s *Store) KeyUses(ctx context.Context) ([]store.KeyUse, error) {
	return reportAll(ctx, s, "count keys", func(row scanner) (u store.KeyUse, err error) {
		var access, refresh string
		err = row.Scan(&access, &refresh, &u.Rows)
		u.AccessKey, u.RefreshKey = store.KeyIDOf(access), store.KeyIDOf(refresh)
		return u, err
	}, sqlKeyUses, store.SealedPrefixBytes)
}

const sqlKeyCheck = `SELECT id::text, coalesce(key_check, '') FROM ledger`

// KeyCheck implements store.Keys.
func (s *Store) KeyCheck(ctx context.Context) (ledgerID, keyCheck string, err error) {
	err = s.db.QueryRow(ctx, sqlKeyCheck).Scan(&ledgerID, &keyCheck)
	return ledgerID, keyCheck, s.wrap("read key check value", err)
}

const sqlSealedTokens = `
SELECT ` + tokenColumns + `, NULL FROM oauth_tokens AS t
WHERE id > coalesce(nullif($1, ''), '00000000-0000-0000-0000-000000000000')::uuid ORDER BY t.id LIMIT $2`

// SealedTokens implements store.Keys.
func (s *Store) SealedTokens(ctx context.Context, after string, limit int) ([]store.SealedToken, error) {
	rows, err := collect(ctx, s.db, scanToken, sqlSealedTokens, after, limit)
	return rows, s.wrap("read sealed tokens", err)
}

// sqlReseal changes only rows that still are what was read: what a worker has saved
// since is newer. It waits for nobody who holds a row, so it cannot deadlock with
// another rotation. A skipped row is read again later.
const sqlReseal = `
UPDATE oauth_tokens AS t SET access_token = n.access, refresh_token = n.refresh
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[]) AS n (id, old_access, old_refresh, access, refresh)
WHERE t.id = ANY (ARRAY(SELECT id FROM oauth_tokens WHERE id = ANY ($1::uuid[]) FOR UPDATE SKIP LOCKED))
  AND t.id = n.id AND t.access_token = n.old_access AND t.refresh_token = n.old_refresh`

// Reseal implements store.Keys.
func (s *Store) Reseal(ctx context.Context, rows []store.Resealed) (int, error) {
	var columns [5][]string
	for _, r := range rows {
		for i, value := range []string{r.Old.ID, r.Old.SealedAccess, r.Old.SealedRefresh, r.Access, r.Refresh} {
			columns[i] = append(columns[i], value)
		}
	}
	n, err := changed(ctx, s.db, sqlReseal, columns[0], columns[1], columns[2], columns[3], columns[4])
	return n, s.wrap("seal tokens anew", err)
}
