package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/jetpost/jetpost/store"
)

const (
	tokenColumns = `id, user_id, access_token, refresh_token, expires_at, scope, version, refreshed_at,
    coalesce(lease_id, ''), lease_until, next_attempt_at, metadata`

	sqlToken = `SELECT ` + tokenColumns + ` FROM oauth_tokens WHERE user_id = ?1`
)

// sealedToken is a token as it is stored: the pair is not opened yet.
type sealedToken struct {
	store.Token
	access, refresh string
}

func scanToken(row scanner) (t sealedToken, err error) {
	var meta []byte
	err = row.Scan(&t.ID, &t.Account, &t.access, &t.refresh, at{&t.ExpiresAt}, &t.Scope, &t.Version, at{&t.RefreshedAt},
		&t.LeaseID, at{&t.LeaseUntil}, at{&t.NextAttemptAt}, &meta)
	if err != nil {
		return sealedToken{}, err
	}
	if err := json.Unmarshal(meta, &t.TokenMeta); err != nil {
		return sealedToken{}, fmt.Errorf("read token metadata of %s: %w", t.Account, err)
	}
	return t, nil
}

// The two columns that are sealed, each for its own place.
const (
	accessColumn  = "/access_token"
	refreshColumn = "/refresh_token"
)

func (s *Store) openToken(sealed sealedToken) (store.Token, error) {
	t := sealed.Token
	var err, err2 error
	t.Access, err = s.sealer.Open(sealed.access, t.ID+accessColumn)
	t.Refresh, err2 = s.sealer.Open(sealed.refresh, t.ID+refreshColumn)
	if err = cmp.Or(err, err2); err != nil {
		return store.Token{}, fmt.Errorf("open token of %s: %w", t.Account, err)
	}
	return t, nil
}

func (s *Store) sealPair(id string, pair store.Pair) (access, refresh string, err error) {
	if access, err = s.sealer.Seal(pair.Access, id+accessColumn); err != nil {
		return "", "", err
	}
	refresh, err = s.sealer.Seal(pair.Refresh, id+refreshColumn)
	return access, refresh, err
}

// refreshAfter is when half of the pair's lifetime is over.
func refreshAfter(pair store.Pair, now time.Time) time.Time {
	return now.Add(pair.ExpiresAt.Sub(now) / 2)
}

// Token implements store.Tokens.
func (s *Store) Token(ctx context.Context, account string) (store.Token, error) {
	sealed, err := scanToken(s.read.QueryRowContext(ctx, sqlToken, account))
	if err != nil {
		return store.Token{}, s.wrap("read token", missing(err, store.ErrNotFound))
	}
	token, err := s.openToken(sealed)
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
		if _, err := tx.ExecContext(ctx, sqlAddRound, id.String(), micros(now), total, batches); err != nil {
			return err
		}
		round, err = readRound(ctx, tx, id.String())
		return err
	})
	return round, err
}

const sqlClaimDue = `
UPDATE oauth_tokens
SET lease_id = ?4, lease_until = ?5, refresh_started_at = ?1, last_round = coalesce(nullif(?3, ''), last_round)
WHERE id IN (SELECT id FROM oauth_tokens WHERE ` + isDue + ` ORDER BY expires_at, id LIMIT ?6)
RETURNING ` + tokenColumns

// ClaimDue implements store.Tokens.
func (s *Store) ClaimDue(ctx context.Context, claim store.DueClaim) ([]store.Token, error) {
	var rows []sealedToken
	err := s.change(ctx, "claim due tokens", func(tx *sql.Tx) (err error) {
		rows, err = collect(ctx, tx, scanToken, sqlClaimDue, micros(claim.Now), micros(claim.Now.Add(claim.Window)), claim.Round,
			uuid.NewString(), micros(claim.Now.Add(claim.Lease)), claim.Limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(rows, func(a, b sealedToken) int { // RETURNING keeps no order
		return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), cmp.Compare(a.ID, b.ID))
	})
	var tokens []store.Token
	var failures []error
	for _, row := range rows {
		token, err := s.openToken(row)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		tokens = append(tokens, token)
	}
	return tokens, s.wrap("claim due tokens", errors.Join(failures...))
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
		token, err = s.openToken(sealed)
		claimed = n > 0
		return err
	})
	return token, claimed && err == nil, err
}

const sqlSaveToken = `
UPDATE oauth_tokens
SET access_token = ?3, refresh_token = ?4, expires_at = ?5, refresh_after = ?6, scope = ?7, refreshed_at = ?8,
    version = version + 1, lease_id = NULL, lease_until = NULL, next_attempt_at = NULL, metadata = ?9
WHERE id = ?1 AND version = ?2`

// SaveToken implements store.Tokens.
func (s *Store) SaveToken(ctx context.Context, claim store.Token, pair store.Pair, now time.Time) error {
	return s.change(ctx, "save token", func(tx *sql.Tx) error {
		access, refresh, err := s.sealPair(claim.ID, pair)
		if err != nil {
			return err
		}
		meta, err := json.Marshal(store.TokenMeta{LastRefreshAt: now.UTC().Truncate(time.Microsecond)})
		if err != nil {
			return err
		}
		return fenced(changed(ctx, tx, sqlSaveToken, claim.ID, claim.Version, access, refresh,
			micros(pair.ExpiresAt), micros(refreshAfter(pair, now)), pair.Scope, micros(now), string(meta)))
	})
}

const sqlSaveTokenFailure = `
UPDATE oauth_tokens
SET lease_id = NULL, lease_until = NULL, next_attempt_at = ?4, metadata = json_patch(metadata, ?5)
WHERE id = ?1 AND version = ?2 AND lease_id = ?3`

// SaveTokenFailure implements store.Tokens. The patch leaves out what is not
// set, so the latest success and an earlier refusal stay on record.
func (s *Store) SaveTokenFailure(ctx context.Context, claim store.Token, failure store.TokenFailure) error {
	return s.change(ctx, "save token failure", func(tx *sql.Tx) error {
		patch, err := json.Marshal(store.TokenMeta{
			RefreshError:    failure.Error,
			RefreshFailedAt: failure.Now.UTC().Truncate(time.Microsecond),
			RequiresReauth:  failure.Reauth,
		})
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
