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
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	tokenColumns = `id, user_id, access_token, refresh_token, expires_at, scope, version, refreshed_at,
    coalesce(lease_id, ''), lease_until, refresh_started_at, attempts, next_attempt_at, metadata`

	sqlToken = `SELECT ` + tokenColumns + `, NULL FROM oauth_tokens WHERE user_id = ?1`
)

// scanToken reads the columns of a token and the start of the exchange that was in
// doubt when it was claimed.
func scanToken(row scanner) (t store.SealedToken, err error) {
	var meta []byte
	err = row.Scan(&t.ID, &t.Account, &t.SealedAccess, &t.SealedRefresh, at{&t.ExpiresAt}, &t.Scope, &t.Version, at{&t.RefreshedAt},
		&t.LeaseID, at{&t.LeaseUntil}, at{&t.StartedAt}, &t.Attempts, at{&t.NextAttemptAt}, &meta, at{&t.InDoubtSince})
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
	sealed, err := scanToken(s.row(ctx, sqlToken, account))
	if err != nil {
		return store.Token{}, s.wrap("read token", missing(err, store.ErrNotFound))
	}
	token, err := s.sealer.OpenToken(sealed)
	return token, s.wrap("read token", err)
}

const (
	// A token whose lease ends while the round is under way may be claimed by it, so it
	// counts.
	sqlCountDue = `
SELECT count(*) FROM oauth_tokens WHERE requires_reauth = 0 AND due_at < ?1 AND expires_at <= ?2`
	sqlAddRound = `INSERT INTO refresh_rounds (id, opened_at, expires_by, total, batches) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING`

	sqlForgetBatches = `DELETE FROM refresh_batches WHERE round IN (SELECT id FROM refresh_rounds WHERE opened_at < ?1)`
	sqlForgetRounds  = `DELETE FROM refresh_rounds WHERE opened_at < ?1`
	sqlForgetRetries = `DELETE FROM refresh_journal WHERE started_at < ?1`
)

// OpenRound implements store.Tokens.
func (s *Store) OpenRound(ctx context.Context, id string, window time.Duration, batchSize int, now time.Time) (round store.Round, err error) {
	err = s.change(ctx, "open round", func(ctx context.Context, tx *sql.Tx) (err error) {
		if batchSize < 1 {
			return fmt.Errorf("batch size is %d, want at least 1", batchSize)
		}
		var total int
		if err := tx.QueryRowContext(ctx, sqlCountDue, micros(now), micros(now.Add(window))).Scan(&total); err != nil {
			return err
		}
		batches := (total + batchSize - 1) / batchSize
		for _, forget := range []string{sqlForgetBatches, sqlForgetRounds, sqlForgetRetries} {
			if _, err := tx.ExecContext(ctx, forget, micros(now.Add(-rules.RoundRetention))); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, sqlAddRound, id, micros(now), micros(now.Add(window)), total, batches); err != nil {
			return err
		}
		round, err = readRound(ctx, tx, id)
		return err
	})
	return round, err
}

const (
	// picked are the matching rows, up to the limit. Both statements of a claim pick
	// the same ones, since no other connection writes in between.
	journal = `
INSERT INTO refresh_journal (token_id, version, attempt, in_doubt_since, started_at)
SELECT id, version, attempts + 1, refresh_started_at, ?1 FROM oauth_tokens
WHERE refresh_started_at IS NOT NULL AND id IN `
	claimRows = `
UPDATE oauth_tokens
SET lease_id = ?2, lease_until = ?1 + ?3, refresh_started_at = ?1, attempts = attempts + 1,
    next_attempt_at = CASE
        WHEN refresh_started_at IS NULL THEN max(?1 + ?3, expires_at - ?4)
        ELSE ?1 + ?3 + ?5 * (1 << min(attempts, ` + maxDoublings + `)) END
WHERE id IN `
	// returning takes the doubt from the journal, because the row no longer has it.
	returning = `
RETURNING ` + tokenColumns + `,
    (SELECT in_doubt_since FROM refresh_journal AS j
     WHERE j.token_id = oauth_tokens.id AND j.version = oauth_tokens.version AND j.attempt = oauth_tokens.attempts)`

	maxDoublings = "8" // rules.MaxBackoffDoublings

	// pickDue judges the tokens as of the opening of the round, ?6.
	pickDue = `(
    SELECT id FROM oauth_tokens
    WHERE requires_reauth = 0 AND due_at < (SELECT opened_at FROM refresh_rounds WHERE id = ?6)
      AND expires_at <= (SELECT expires_by FROM refresh_rounds WHERE id = ?6)
      AND (lease_until IS NULL OR lease_until <= ?1)
    ORDER BY due_at, id LIMIT ?7)`
	sqlJournalDue = journal + pickDue
	sqlClaimDue   = claimRows + pickDue + returning

	pickToken = `(
    SELECT id FROM oauth_tokens
    WHERE user_id = ?6 AND version = ?7 AND requires_reauth = 0 AND (lease_until IS NULL OR lease_until <= ?1)
      AND (next_attempt_at IS NULL OR next_attempt_at <= ?1 OR (?8 AND refresh_started_at IS NULL) OR (?9 AND attempts <= 1)))`
	sqlJournalToken = journal + pickToken
	sqlClaimToken   = claimRows + pickToken + returning
)

// claimArgs are the arguments of every claim and its entries in the journal.
func claimArgs(now time.Time, pace store.Pace, args ...any) []any {
	return append([]any{micros(now), uuid.NewString(), pace.Lease.Microseconds(), pace.NearEnd.Microseconds(), pace.Backoff.Microseconds()}, args...)
}

// ClaimDue implements store.Tokens.
func (s *Store) ClaimDue(ctx context.Context, claim store.DueClaim) ([]store.Token, error) {
	var rows []store.SealedToken
	args := claimArgs(claim.Now, claim.Pace, claim.Round, claim.Limit)
	err := s.change(ctx, "claim due tokens", func(ctx context.Context, tx *sql.Tx) (err error) {
		if _, err := tx.ExecContext(ctx, sqlJournalDue, args...); err != nil {
			return err
		}
		rows, err = collect(ctx, tx, scanToken, sqlClaimDue, args...)
		return err
	})
	if err != nil {
		return nil, err
	}
	tokens, err := rules.OpenTokens(s.sealer, rows, func(token store.Token, why error) error {
		return s.SaveTokenFailure(ctx, token, store.TokenFailure{Error: why.Error(), NextAttempt: claim.Now, Now: claim.Now})
	})
	return tokens, s.wrap("claim due tokens", err)
}

// ClaimToken implements store.Tokens. A token that cannot be opened is not claimed: the
// transaction is rolled back.
func (s *Store) ClaimToken(ctx context.Context, claim store.TokenClaim) (token store.Token, claimed bool, err error) {
	args := claimArgs(claim.Now, claim.Pace, claim.Account, claim.UsedVersion, claim.Force, claim.Refused)
	err = s.change(ctx, "claim token", func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, sqlJournalToken, args...); err != nil {
			return err
		}
		sealed, err := scanToken(tx.QueryRowContext(ctx, sqlClaimToken, args...))
		claimed = err == nil
		if missing(err, nil) == nil && !claimed {
			sealed, err = scanToken(tx.QueryRowContext(ctx, sqlToken, claim.Account))
		}
		if err != nil {
			return missing(err, store.ErrNotFound)
		}
		token, err = s.sealer.OpenToken(sealed)
		return err
	})
	return token, claimed && err == nil, err
}

const (
	sqlClaimed   = `SELECT user_id, requires_reauth, version, access_token, refresh_token FROM oauth_tokens WHERE id = ?1`
	sqlSaveToken = `
UPDATE oauth_tokens
SET access_token = ?3, refresh_token = ?4, expires_at = ?5, refresh_after = ?6, scope = ?7, refreshed_at = ?8,
    version = version + 1, lease_id = NULL, lease_until = NULL, refresh_started_at = NULL, attempts = 0, next_attempt_at = NULL,
    metadata = ?9
WHERE id = ?1 AND version = ?2`
)

// SaveToken implements store.Tokens.
func (s *Store) SaveToken(ctx context.Context, claim store.Token, pair store.Pair, now time.Time) error {
	return s.change(ctx, "save token", func(ctx context.Context, tx *sql.Tx) error {
		access, refresh, err := s.sealer.SealPair(claim.ID, pair)
		if err != nil {
			return err
		}
		meta, err := json.Marshal(rules.RefreshedMeta(now))
		if err != nil {
			return err
		}
		there := store.SealedToken{Token: store.Token{ID: claim.ID}}
		var reauth bool
		err = tx.QueryRowContext(ctx, sqlClaimed, claim.ID).
			Scan(&there.Account, &reauth, &there.Version, &there.SealedAccess, &there.SealedRefresh)
		switch {
		case err != nil:
			return missing(err, store.ErrFenced)
		case rules.Saved(s.sealer, there, claim, pair):
			return nil
		case there.Version != claim.Version:
			return store.ErrFenced
		}
		_, err = tx.ExecContext(ctx, sqlSaveToken, claim.ID, claim.Version, access, refresh,
			micros(pair.ExpiresAt), micros(pair.RefreshAfter(now)), pair.Scope, micros(now), string(meta))
		if err != nil || !reauth {
			return err
		}
		_, err = endHolds(ctx, tx, there.Account, jetpost.CodeAccountReauthRequired, now)
		return err
	})
}

// sqlSaveTokenFailure notes whose failure it is, so that it can be repeated.
const sqlSaveTokenFailure = `
UPDATE oauth_tokens
SET lease_id = NULL, lease_until = NULL, refresh_started_at = ?4, next_attempt_at = ?5,
    metadata = json_set(json_patch(metadata, ?6), '$.failedClaim', ?3)
WHERE id = ?1 AND version = ?2 AND (lease_id = ?3 OR lease_id IS NULL AND metadata ->> 'failedClaim' = ?3)`

// SaveTokenFailure implements store.Tokens.
func (s *Store) SaveTokenFailure(ctx context.Context, claim store.Token, failure store.TokenFailure) error {
	return s.change(ctx, "save token failure", func(ctx context.Context, tx *sql.Tx) error {
		patch, err := json.Marshal(rules.FailureMeta(failure))
		if err != nil {
			return err
		}
		startedAt, nextAttempt := failure.Leaves(claim)
		return fenced(changed(ctx, tx, sqlSaveTokenFailure, claim.ID, claim.Version, claim.LeaseID,
			micros(startedAt), micros(nextAttempt), string(patch)))
	})
}

const (
	sqlDisconnect = `
UPDATE oauth_tokens
SET version = version + 1, lease_id = NULL, lease_until = NULL, refresh_started_at = NULL, attempts = 0, next_attempt_at = NULL,
    metadata = json_patch(metadata, ?3)
WHERE user_id = ?1 AND (lease_until IS NULL OR lease_until <= ?2)`
	sqlForgetPair = `UPDATE oauth_tokens SET access_token = ?3, refresh_token = ?4 WHERE id = ?1 AND version = ?2 AND requires_reauth = 1`
)

// Disconnect implements store.Tokens. A token that cannot be opened stays as it is: the
// transaction is rolled back.
func (s *Store) Disconnect(ctx context.Context, account string, now time.Time) (token store.Token, err error) {
	err = s.change(ctx, "disconnect account", func(ctx context.Context, tx *sql.Tx) error {
		patch, err := json.Marshal(rules.DisconnectedMeta(now))
		if err != nil {
			return err
		}
		n, err := changed(ctx, tx, sqlDisconnect, account, micros(now), string(patch))
		if err != nil {
			return err
		}
		sealed, err := scanToken(tx.QueryRowContext(ctx, sqlToken, account))
		switch {
		case err != nil:
			return missing(err, store.ErrNotFound)
		case n == 0:
			return store.ErrTokenBusy
		}
		token, err = s.sealer.OpenToken(sealed)
		return err
	})
	return token, err
}

// ForgetPair implements store.Tokens.
func (s *Store) ForgetPair(ctx context.Context, token store.Token) error {
	return s.change(ctx, "forget token", func(ctx context.Context, tx *sql.Tx) error {
		access, refresh, err := s.sealer.SealPair(token.ID, store.Pair{})
		if err != nil {
			return err
		}
		return fenced(changed(ctx, tx, sqlForgetPair, token.ID, token.Version, access, refresh))
	})
}

const sqlRetries = `
SELECT j.version, j.attempt, j.in_doubt_since, j.started_at
FROM refresh_journal AS j JOIN oauth_tokens AS t ON t.id = j.token_id
WHERE t.user_id = ?1 ORDER BY j.version, j.attempt`

// Retries implements store.Tokens.
func (s *Store) Retries(ctx context.Context, account string) ([]store.Retry, error) {
	var retries []store.Retry
	err := s.view(ctx, "read journal", func(ctx context.Context, tx *sql.Tx) (err error) {
		retries, err = collect(ctx, tx, func(row scanner) (r store.Retry, err error) {
			err = row.Scan(&r.Version, &r.Attempt, at{&r.InDoubtSince}, at{&r.StartedAt})
			return r, err
		}, sqlRetries, account)
		return err
	})
	return retries, err
}

const (
	sqlNotices = `
SELECT user_id, requires_reauth, metadata, version, refreshed_at FROM oauth_tokens
WHERE requires_reauth <> reauth_told AND (?1 = '' OR user_id = ?1) ORDER BY user_id LIMIT ?2`
	// Marks of an older pair may come in any order: the present state is reported
	// again.
	sqlMarkNoticed = `UPDATE oauth_tokens SET reauth_told = CASE WHEN version = ?3 THEN ?2 ELSE NOT requires_reauth END WHERE user_id = ?1`
)

// Notices implements store.Outbox.
func (s *Store) Notices(ctx context.Context, account string, limit int) ([]store.Notice, error) {
	var notices []store.Notice
	err := s.view(ctx, "read notices", func(ctx context.Context, tx *sql.Tx) (err error) {
		notices, err = collect(ctx, tx, scanNotice, sqlNotices, account, limit)
		return err
	})
	return notices, err
}

func scanNotice(row scanner) (n store.Notice, err error) {
	var text []byte
	if err = row.Scan(&n.Account, &n.Required, &text, &n.Version, at{&n.At}); err != nil {
		return n, err
	}
	var meta store.TokenMeta
	err = json.Unmarshal(text, &meta)
	return rules.NoticeOf(n, meta), err
}

// MarkNoticed implements store.Outbox.
func (s *Store) MarkNoticed(ctx context.Context, notice store.Notice) error {
	return s.change(ctx, "mark notice", func(ctx context.Context, tx *sql.Tx) error {
		n, err := changed(ctx, tx, sqlMarkNoticed, notice.Account, notice.Required, notice.Version)
		if err == nil && n == 0 {
			return store.ErrNotFound
		}
		return err
	})
}

// fenced turns a conditional update that changed nothing into ErrFenced.
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
func (s *Store) BatchDone(ctx context.Context, done store.BatchResult) (r store.Round, err error) {
	err = s.change(ctx, "count batch", func(ctx context.Context, tx *sql.Tx) error {
		if _, err := readRound(ctx, tx, done.Round); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlAddBatch, done.Round, done.Batch, done.Refreshed, done.Failed, done.Skipped, micros(done.Now)); err != nil {
			return err
		}
		r, err = readRound(ctx, tx, done.Round)
		return err
	})
	return r, err
}

func readRound(ctx context.Context, tx *sql.Tx, id string) (r store.Round, err error) {
	err = tx.QueryRowContext(ctx, sqlRound, id).Scan(&r.Round, &r.Total, &r.Batches, &r.Delivered, &r.Completed,
		&r.Refreshed, &r.Failed, &r.Skipped)
	return r, missing(err, store.ErrNotFound)
}

const sqlRoundDelivered = `UPDATE refresh_rounds SET announced = 1 WHERE id = ?1`

// RoundDelivered implements store.Tokens.
func (s *Store) RoundDelivered(ctx context.Context, round string) error {
	return s.change(ctx, "mark round delivered", func(ctx context.Context, tx *sql.Tx) error {
		n, err := changed(ctx, tx, sqlRoundDelivered, round)
		if err == nil && n == 0 {
			return store.ErrNotFound
		}
		return err
	})
}
