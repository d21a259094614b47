package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

const (
	tokenColumns = `t.id::text, t.user_id, t.access_token, t.refresh_token, t.expires_at, t.scope, t.version, t.refreshed_at,
    coalesce(t.lease_id::text, ''), t.lease_until, t.next_attempt_at, t.metadata`

	sqlToken = `SELECT ` + tokenColumns + ` FROM oauth_tokens AS t WHERE t.user_id = $1`
)

func scanToken(row scanner) (t store.SealedToken, err error) {
	err = row.Scan(&t.ID, &t.Account, &t.SealedAccess, &t.SealedRefresh, at{&t.ExpiresAt}, &t.Scope, &t.Version, at{&t.RefreshedAt},
		&t.LeaseID, at{&t.LeaseUntil}, at{&t.NextAttemptAt}, &t.TokenMeta)
	return t, err
}

// Token implements store.Tokens.
func (s *Store) Token(ctx context.Context, account string) (store.Token, error) {
	token, err := s.readToken(ctx, s.pool, account)
	return token, s.wrap("read token", err)
}

func (s *Store) readToken(ctx context.Context, q querier, account string) (store.Token, error) {
	sealed, err := scanToken(q.QueryRow(ctx, sqlToken, account))
	if err != nil {
		return store.Token{}, missing(err, store.ErrNotFound)
	}
	return s.sealer.OpenToken(sealed)
}

const (
	// isDue takes now as $1, the latest expiry as $2 and the round as $3; an
	// empty round claims whatever is due.
	isDue = `NOT requires_reauth AND expires_at <= $2 AND refresh_after <= $1
  AND (next_attempt_at IS NULL OR next_attempt_at <= $1)
  AND (lease_until IS NULL OR lease_until <= clock_timestamp())
  AND ($3 = '' OR last_round IS NULL OR last_round < $3)`

	sqlCountDue = `SELECT count(*) FROM oauth_tokens WHERE ` + isDue
	sqlAddRound = `INSERT INTO refresh_rounds (id, opened_at, total, batches) VALUES ($1, $2, $3, $4)`

	sqlForgetBatches = `DELETE FROM refresh_batches WHERE round IN (SELECT id FROM refresh_rounds WHERE opened_at < $1)`
	sqlForgetRounds  = `DELETE FROM refresh_rounds WHERE opened_at < $1`
)

// OpenRound implements store.Tokens. Ids of rounds are UUIDs of version 7,
// since a token's last round is compared by order.
func (s *Store) OpenRound(ctx context.Context, window time.Duration, batchSize int, now time.Time) (round store.Round, err error) {
	err = s.change(ctx, "open round", func(tx pgx.Tx) error {
		if batchSize < 1 {
			return fmt.Errorf("batch size is %d, want at least 1", batchSize)
		}
		id, err := uuid.NewV7()
		if err != nil {
			return err
		}
		var total int
		if err := tx.QueryRow(ctx, sqlCountDue, now, now.Add(window), id.String()).Scan(&total); err != nil {
			return err
		}
		batches := (total + batchSize - 1) / batchSize
		if err := forgetRounds(ctx, tx, now.Add(-store.RoundRetention)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlAddRound, id.String(), now, total, batches); err != nil {
			return err
		}
		round, err = readRound(ctx, tx, id.String())
		return err
	})
	return round, err
}

func forgetRounds(ctx context.Context, tx pgx.Tx, before time.Time) error {
	_, err := tx.Exec(ctx, sqlForgetBatches, before)
	if err == nil {
		_, err = tx.Exec(ctx, sqlForgetRounds, before)
	}
	return err
}

// sqlClaimDue picks the rows as an array, which is made exactly once. As a
// plain subquery the planner may run it again and again, and claim more than
// the limit.
const sqlClaimDue = `
UPDATE oauth_tokens AS t
SET lease_id = gen_random_uuid(), lease_until = clock_timestamp() + $5::interval, refresh_started_at = $1,
    last_round = coalesce(nullif($3, ''), last_round)
WHERE id = ANY (ARRAY(
    SELECT id FROM oauth_tokens WHERE ` + isDue + `
    ORDER BY expires_at, id LIMIT $4 FOR UPDATE SKIP LOCKED))
RETURNING ` + tokenColumns

// ClaimDue implements store.Tokens. Tokens that do not open stay claimed until
// their lease ends and come back as the error, beside the ones that do.
func (s *Store) ClaimDue(ctx context.Context, claim store.DueClaim) ([]store.Token, error) {
	rows, err := collect(ctx, s.pool, scanToken, sqlClaimDue,
		claim.Now, claim.Now.Add(claim.Window), claim.Round, claim.Limit, claim.Lease)
	if err != nil {
		return nil, s.wrap("claim due tokens", err)
	}
	tokens, err := s.sealer.OpenTokens(rows)
	return tokens, s.wrap("claim due tokens", err)
}

const sqlClaimToken = `
UPDATE oauth_tokens
SET lease_id = gen_random_uuid(), lease_until = clock_timestamp() + $4::interval, refresh_started_at = $3
WHERE user_id = $1 AND version = $2 AND NOT requires_reauth
  AND (lease_until IS NULL OR lease_until <= clock_timestamp())
  AND ($5 OR next_attempt_at IS NULL OR next_attempt_at <= $3)`

// ClaimToken implements store.Tokens. A token that does not open is not
// claimed: the transaction is rolled back.
func (s *Store) ClaimToken(ctx context.Context, account string, usedVersion int64, force bool, lease time.Duration, now time.Time) (token store.Token, claimed bool, err error) {
	err = s.change(ctx, "claim token", func(tx pgx.Tx) error {
		n, err := changed(ctx, tx, sqlClaimToken, account, usedVersion, now, lease, force)
		if err != nil {
			return err
		}
		token, err = s.readToken(ctx, tx, account)
		claimed = n > 0
		return err
	})
	return token, claimed && err == nil, err
}

const (
	sqlLockClaim = `SELECT user_id, requires_reauth FROM oauth_tokens WHERE id = $1 AND version = $2 FOR UPDATE`
	sqlSaveToken = `
UPDATE oauth_tokens
SET access_token = $3, refresh_token = $4, expires_at = $5, refresh_after = $6, scope = $7, refreshed_at = $8,
    version = version + 1, lease_id = NULL, lease_until = NULL, next_attempt_at = NULL, metadata = $9
WHERE id = $1 AND version = $2`
)

// SaveToken implements store.Tokens.
func (s *Store) SaveToken(ctx context.Context, claim store.Token, pair store.Pair, now time.Time) error {
	access, refresh, err := s.sealer.SealPair(claim.ID, pair)
	if err != nil {
		return s.wrap("save token", err)
	}
	return s.change(ctx, "save token", func(tx pgx.Tx) error {
		var account string
		var reauth bool
		err := tx.QueryRow(ctx, sqlLockClaim, claim.ID, claim.Version).Scan(&account, &reauth)
		if err != nil {
			return missing(err, store.ErrFenced)
		}
		_, err = tx.Exec(ctx, sqlSaveToken, claim.ID, claim.Version, access, refresh,
			pair.ExpiresAt, pair.RefreshAfter(now), pair.Scope, now, store.RefreshedMeta(now))
		if err != nil || !reauth {
			return err
		}
		_, err = endHolds(ctx, tx, account, jetpost.CodeAccountReauthRequired, now)
		return err
	})
}

const sqlSaveTokenFailure = `
UPDATE oauth_tokens
SET lease_id = NULL, lease_until = NULL, next_attempt_at = $4, metadata = metadata || $5
WHERE id = $1 AND version = $2 AND lease_id = nullif($3, '')::uuid`

// SaveTokenFailure implements store.Tokens.
func (s *Store) SaveTokenFailure(ctx context.Context, claim store.Token, failure store.TokenFailure) error {
	failure.Error = storable(failure.Error)
	return s.wrap("save token failure", fenced(changed(ctx, s.pool, sqlSaveTokenFailure,
		claim.ID, claim.Version, claim.LeaseID, moment(failure.NextAttempt), failure.MetaPatch())))
}

const (
	sqlAddBatch = `
INSERT INTO refresh_batches (round, batch, refreshed, failed, skipped, done_at) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (round, batch) DO NOTHING`
	sqlRound = `
SELECT r.id, r.total, r.batches, r.announced, count(b.batch) >= r.batches,
       coalesce(sum(b.refreshed), 0), coalesce(sum(b.failed), 0), coalesce(sum(b.skipped), 0)
FROM refresh_rounds AS r LEFT JOIN refresh_batches AS b ON b.round = r.id
WHERE r.id = $1 GROUP BY r.id`
)

// BatchDone implements store.Tokens. The round is read after the batch was
// committed: of two workers that count the last batches at once, the later one
// sees both.
func (s *Store) BatchDone(ctx context.Context, round string, batch, refreshed, failed, skipped int, now time.Time) (store.Round, error) {
	r, err := readRound(ctx, s.pool, round)
	if err == nil {
		_, err = s.pool.Exec(ctx, sqlAddBatch, round, batch, refreshed, failed, skipped, now)
	}
	if err == nil {
		r, err = readRound(ctx, s.pool, round)
	}
	return r, s.wrap("count batch", err)
}

func readRound(ctx context.Context, q querier, id string) (r store.Round, err error) {
	err = q.QueryRow(ctx, sqlRound, id).Scan(&r.Round, &r.Total, &r.Batches, &r.Announced, &r.Completed,
		&r.Refreshed, &r.Failed, &r.Skipped)
	return r, missing(err, store.ErrNotFound)
}

const sqlRoundAnnounced = `UPDATE refresh_rounds SET announced = true WHERE id = $1`

// RoundAnnounced implements store.Tokens.
func (s *Store) RoundAnnounced(ctx context.Context, round string) error {
	n, err := changed(ctx, s.pool, sqlRoundAnnounced, round)
	return s.wrap("mark round announced", orNone(n, err, store.ErrNotFound))
}
