package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

const (
	tokenColumns = `id, user_id, access_token, refresh_token, expires_at, scope, version, refreshed_at,
    coalesce(lease_id, ''), lease_until, next_attempt_at, metadata`

	sqlToken = `SELECT ` + tokenColumns + ` FROM oauth_tokens WHERE user_id = ?1`
)

func scanToken(row scanner) (t store.SealedToken, err error) {
	var meta []byte
	err = row.Scan(&t.ID, &t.Account, &t.SealedAccess, &t.SealedRefresh, at{&t.ExpiresAt}, &t.Scope, &t.Version, at{&t.RefreshedAt},
		&t.LeaseID, at{&t.LeaseUntil}, at{&t.NextAttemptAt}, &meta)
	if err != nil {
		return store.SealedToken{}, err
	}
	if err := json.Unmarshal(meta, &t.TokenMeta); err != nil {
		return store.SealedToken{}, fmt.Errorf("read token metadata of %s: %w", t.Account, err)
	}
	return t, nil
}

// Token implements store.Tokens.
func (s *Store) Token(ctx context.Context, account string) (store.Token, error) {
	sealed, err := scanToken(s.read.QueryRowContext(ctx, sqlToken, account))
	if err != nil {
		return store.Token{}, s.wrap("read token", missing(err, store.ErrNotFound))
	}
	token, err := s.sealer.OpenToken(sealed)
	return token, s.wrap("read token", err)
}

const (
	// isDue takes now as ?1, the latest expiry as ?2 and the round as ?3; an
	// empty round claims whatever is due.
	isDue = `requires_reauth = 0 AND expires_at <= ?2 AND refresh_after <= ?1
  AND (next_attempt_at IS NULL OR next_attempt_at <= ?1)
  AND (lease_until IS NULL OR lease_until <= ?1)
  AND (?3 = '' OR last_round IS NULL OR last_round < ?3)`

	sqlCountDue = `SELECT count(*) FROM oauth_tokens WHERE ` + isDue
	sqlAddRound = `INSERT INTO refresh_rounds (id, created_at, total, batches) VALUES (?1, ?2, ?3, ?4)`

	sqlForgetBatches = `DELETE FROM refresh_batches WHERE round IN (SELECT id FROM refresh_rounds WHERE created_at < ?1)`
	sqlForgetRounds  = `DELETE FROM refresh_rounds WHERE created_at < ?1`
)

// OpenRound implements store.Tokens. Round ids are version 7 UUIDs, since a
// token's last round is compared by order.
func (s *Store) OpenRound(ctx context.Context, window time.Duration, batchSize int, now time.Time) (round store.Round, err error) {
	err = s.change(ctx, "open round", func(tx *sql.Tx) error {
		if batchSize < 1 {
			return fmt.Errorf("batch size is %d, want at least 1", batchSize)
		}
		id, err := uuid.NewV7()
		if err != nil {
			return err
		}
		var total int
		if err := tx.QueryRowContext(ctx, sqlCountDue, micros(now), micros(now.Add(window)), id.String()).Scan(&total); err != nil {
			return err
		}
		batches := (total + batchSize - 1) / batchSize
		if err := forgetRounds(ctx, tx, now.Add(-store.RoundRetention)); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlAddRound, id.String(), micros(now), total, batches); err != nil {
			return err
		}
		round, err = readRound(ctx, tx, id.String())
		return err
	})
	return round, err
}

func forgetRounds(ctx context.Context, tx *sql.Tx, before time.Time) error {
	_, err := tx.ExecContext(ctx, sqlForgetBatches, micros(before))
	if err == nil {
		_, err = tx.ExecContext(ctx, sqlForgetRounds, micros(before))
	}
	return err
}

const sqlClaimDue = `
UPDATE oauth_tokens
SET lease_id = ?4, lease_until = ?5, refresh_started_at = ?1, last_round = coalesce(nullif(?3, ''), last_round)
WHERE id IN (SELECT id FROM oauth_tokens WHERE ` + isDue + ` ORDER BY expires_at, id LIMIT ?6)
RETURNING ` + tokenColumns

// ClaimDue implements store.Tokens.
func (s *Store) ClaimDue(ctx context.Context, claim store.DueClaim) ([]store.Token, error) {
	var rows []store.SealedToken
	err := s.change(ctx, "claim due tokens", func(tx *sql.Tx) (err error) {
		rows, err = collect(ctx, tx, scanToken, sqlClaimDue, micros(claim.Now), micros(claim.Now.Add(claim.Window)), claim.Round,
			uuid.NewString(), micros(claim.Now.Add(claim.Lease)), claim.Limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	tokens, err := s.sealer.OpenTokens(rows)
	return tokens, s.wrap("claim due tokens", err)
}

const sqlClaimToken = `
UPDATE oauth_tokens
SET lease_id = ?2, lease_until = ?3, refresh_started_at = ?4
WHERE user_id = ?1 AND version = ?5 AND requires_reauth = 0
  AND (lease_until IS NULL OR lease_until <= ?4)
  AND (?6 OR next_attempt_at IS NULL OR next_attempt_at <= ?4)`

// ClaimToken implements store.Tokens. A token that does not open is not
// claimed: the transaction is rolled back.
func (s *Store) ClaimToken(ctx context.Context, account string, usedVersion int64, force bool, lease time.Duration, now time.Time) (token store.Token, claimed bool, err error) {
	err = s.change(ctx, "claim token", func(tx *sql.Tx) error {
		n, err := changed(ctx, tx, sqlClaimToken, account, uuid.NewString(), micros(now.Add(lease)), micros(now), usedVersion, force)
		if err != nil {
			return err
		}
		sealed, err := scanToken(tx.QueryRowContext(ctx, sqlToken, account))
		if err != nil {
			return missing(err, store.ErrNotFound)
		}
		token, err = s.sealer.OpenToken(sealed)
		claimed = n > 0
		return err
	})
	return token, claimed && err == nil, err
}

const (
	sqlClaimed   = `SELECT user_id, requires_reauth FROM oauth_tokens WHERE id = ?1 AND version = ?2`
	sqlSaveToken = `
UPDATE oauth_tokens
SET access_token = ?3, refresh_token = ?4, expires_at = ?5, refresh_after = ?6, scope = ?7, refreshed_at = ?8,
    version = version + 1, lease_id = NULL, lease_until = NULL, next_attempt_at = NULL, metadata = ?9
WHERE id = ?1 AND version = ?2`
)

// SaveToken implements store.Tokens.
func (s *Store) SaveToken(ctx context.Context, claim store.Token, pair store.Pair, now time.Time) error {
	return s.change(ctx, "save token", func(tx *sql.Tx) error {
		access, refresh, err := s.sealer.SealPair(claim.ID, pair)
		if err != nil {
			return err
		}
		meta, err := json.Marshal(store.RefreshedMeta(now))
		if err != nil {
			return err
		}
		var account string
		var reauth bool
		err = tx.QueryRowContext(ctx, sqlClaimed, claim.ID, claim.Version).Scan(&account, &reauth)
		if err != nil {
			return missing(err, store.ErrFenced)
		}
		_, err = tx.ExecContext(ctx, sqlSaveToken, claim.ID, claim.Version, access, refresh,
			micros(pair.ExpiresAt), micros(pair.RefreshAfter(now)), pair.Scope, micros(now), string(meta))
		if err != nil || !reauth {
			return err
		}
		_, err = endHolds(ctx, tx, account, jetpost.CodeAccountReauthRequired, now)
		return err
	})
}

const sqlSaveTokenFailure = `
UPDATE oauth_tokens
SET lease_id = NULL, lease_until = NULL, next_attempt_at = ?4, metadata = json_patch(metadata, ?5)
WHERE id = ?1 AND version = ?2 AND lease_id = ?3`

// SaveTokenFailure implements store.Tokens.
func (s *Store) SaveTokenFailure(ctx context.Context, claim store.Token, failure store.TokenFailure) error {
	return s.change(ctx, "save token failure", func(tx *sql.Tx) error {
		patch, err := json.Marshal(failure.MetaPatch())
		if err != nil {
			return err
		}
		return fenced(changed(ctx, tx, sqlSaveTokenFailure, claim.ID, claim.Version, claim.LeaseID,
			micros(failure.NextAttempt), string(patch)))
	})
}

// fenced reads a conditional update that changed nothing as a lost claim.
func fenced(n int, err error) error {
	if err == nil && n == 0 {
		return store.ErrFenced
	}
	return err
}

const (
	sqlAddBatch = `
INSERT INTO refresh_batches (round, batch, refreshed, failed, skipped, done_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (round, batch) DO NOTHING`
	sqlRound = `
SELECT r.id, r.total, r.batches, r.announced, count(b.batch) >= r.batches,
       coalesce(sum(b.refreshed), 0), coalesce(sum(b.failed), 0), coalesce(sum(b.skipped), 0)
FROM refresh_rounds AS r LEFT JOIN refresh_batches AS b ON b.round = r.id
WHERE r.id = ?1 GROUP BY r.id`
)

// BatchDone implements store.Tokens.
func (s *Store) BatchDone(ctx context.Context, round string, batch, refreshed, failed, skipped int, now time.Time) (r store.Round, err error) {
	err = s.change(ctx, "count batch", func(tx *sql.Tx) error {
		if _, err := readRound(ctx, tx, round); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlAddBatch, round, batch, refreshed, failed, skipped, micros(now)); err != nil {
			return err
		}
		r, err = readRound(ctx, tx, round)
		return err
	})
	return r, err
}

func readRound(ctx context.Context, tx *sql.Tx, id string) (r store.Round, err error) {
	err = tx.QueryRowContext(ctx, sqlRound, id).Scan(&r.Round, &r.Total, &r.Batches, &r.Announced, &r.Completed,
		&r.Refreshed, &r.Failed, &r.Skipped)
	return r, missing(err, store.ErrNotFound)
}

const sqlRoundAnnounced = `UPDATE refresh_rounds SET announced = 1 WHERE id = ?1`

// RoundAnnounced implements store.Tokens.
func (s *Store) RoundAnnounced(ctx context.Context, round string) error {
	return s.change(ctx, "mark round announced", func(tx *sql.Tx) error {
		n, err := changed(ctx, tx, sqlRoundAnnounced, round)
		if err == nil && n == 0 {
			return store.ErrNotFound
		}
		return err
	})
}
