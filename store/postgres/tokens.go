package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	tokenColumns = `t.id::text, t.user_id, t.access_token, t.refresh_token, t.expires_at, t.scope, t.version, t.refreshed_at,
    coalesce(t.lease_id::text, ''), t.lease_until, t.refresh_started_at, t.attempts, t.next_attempt_at, t.metadata`

	sqlToken  = `SELECT ` + tokenColumns + `, NULL FROM oauth_tokens AS t WHERE t.user_id = $1`
	sqlTokens = `SELECT ` + tokenColumns + `, NULL FROM oauth_tokens AS t WHERE t.user_id = ANY ($1)`
)

// scanToken reads the columns of a token and the start of the exchange that was in
// doubt when it was claimed.
func scanToken(row scanner) (t store.SealedToken, err error) {
	err = row.Scan(&t.ID, &t.Account, &t.SealedAccess, &t.SealedRefresh, at{&t.ExpiresAt}, &t.Scope, &t.Version, at{&t.RefreshedAt},
		&t.LeaseID, at{&t.LeaseUntil}, at{&t.StartedAt}, &t.Attempts, at{&t.NextAttemptAt}, &t.TokenMeta, at{&t.InDoubtSince})
	return t, err
}

// Token implements store.Tokens.
func (s *Store) Token(ctx context.Context, account string) (store.Token, error) {
	sealed, err := s.tokens.do(ctx, account)
	if err == nil && sealed == nil {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Token{}, s.wrap("read token", err)
	}
	token, err := s.sealer.OpenToken(*sealed)
	return token, s.wrap("read token", err)
}

// takeTokens reads the tokens of many accounts.
func (s *Store) takeTokens(group []*asked[string, *store.SealedToken]) {
	accounts := make([]string, len(group))
	for i, w := range group {
		accounts[i] = w.ask
	}
	found, err := collect(group[0].ctx, s.db, scanToken, sqlTokens, accounts)
	for _, w := range group {
		w.err = err
		for i := range found {
			if found[i].Account == w.ask {
				w.answer = &found[i]
			}
		}
	}
}

func (s *Store) readToken(ctx context.Context, q querier, account string) (store.Token, error) {
	sealed, err := scanToken(q.QueryRow(ctx, sqlToken, account))
	if err != nil {
		return store.Token{}, missing(err, store.ErrNotFound)
	}
	return s.sealer.OpenToken(sealed)
}

const (
	sqlPresent = `SELECT ` + present
	// A token whose lease ends while the round is under way may be claimed by it, so it
	// counts.
	sqlCountDue = `
SELECT count(*) FROM oauth_tokens WHERE NOT requires_reauth AND due_at < $1 AND expires_at <= $2`
	sqlAddRound = `INSERT INTO refresh_rounds (id, opened_at, expires_by, total, batches) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO NOTHING`

	sqlForgetBatches = `DELETE FROM refresh_batches WHERE round IN (SELECT id FROM refresh_rounds WHERE opened_at < $1)`
	sqlForgetRounds  = `DELETE FROM refresh_rounds WHERE opened_at < $1`
	sqlForgetRetries = `DELETE FROM refresh_journal WHERE started_at < $1`
)

// OpenRound implements store.Tokens.
func (s *Store) OpenRound(ctx context.Context, id string, window time.Duration, batchSize int, now time.Time) (round store.Round, err error) {
	err = s.change(ctx, "open round", func(ctx context.Context, tx pgx.Tx) (err error) {
		if batchSize < 1 {
			return fmt.Errorf("batch size is %d, want at least 1", batchSize)
		}
		if err := tx.QueryRow(ctx, sqlPresent, s.now(now)).Scan(&now); err != nil {
			return err
		}
		var total int
		if err := tx.QueryRow(ctx, sqlCountDue, now, now.Add(window)).Scan(&total); err != nil {
			return err
		}
		batches := (total + batchSize - 1) / batchSize
		for _, forget := range []string{sqlForgetBatches, sqlForgetRounds, sqlForgetRetries} {
			if _, err := tx.Exec(ctx, forget, now.Add(-rules.RoundRetention)); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, sqlAddRound, id, now, now.Add(window), total, batches); err != nil {
			return err
		}
		round, err = readRound(ctx, tx, id)
		return err
	})
	return round, err
}

// present is the time in $1, or now.
const present = `coalesce($1::timestamptz, statement_timestamp())`

// claimPicked claims the rows that a CTE "picked" has locked, with now as $1 and the
// pace as $2, $3 and $4, and journals those in doubt. The ids come as an array, which
// is evaluated exactly once; the planner could reorder a join.
const claimPicked = `, journalled AS (
    INSERT INTO refresh_journal (token_id, version, attempt, in_doubt_since, started_at)
    SELECT id, version, attempts + 1, refresh_started_at, ` + present + ` FROM picked WHERE refresh_started_at IS NOT NULL
)
UPDATE oauth_tokens AS t
SET lease_id = gen_random_uuid(), lease_until = clock_timestamp() + $2::interval, refresh_started_at = ` + present + `, attempts = t.attempts + 1,
    next_attempt_at = CASE
        WHEN t.refresh_started_at IS NULL THEN greatest(` + present + ` + $2::interval, t.expires_at - $3::interval)
        ELSE ` + present + ` + $2::interval + $4::interval * (1 << least(t.attempts, ` + maxDoublings + `)) END
FROM picked AS p
WHERE t.id = ANY (ARRAY(SELECT id FROM picked)) AND t.id = p.id
RETURNING ` + tokenColumns + `, p.refresh_started_at`

const maxDoublings = "8" // rules.MaxBackoffDoublings

// sqlClaimDue judges the tokens as of the opening of the round, $5.
const sqlClaimDue = `
WITH picked AS (
    SELECT id, version, attempts, refresh_started_at FROM oauth_tokens
    WHERE NOT requires_reauth AND due_at < (SELECT opened_at FROM refresh_rounds WHERE id = $5)
      AND expires_at <= (SELECT expires_by FROM refresh_rounds WHERE id = $5)
      AND (lease_until IS NULL OR lease_until <= clock_timestamp())
    ORDER BY due_at, id LIMIT $6 FOR UPDATE SKIP LOCKED
)` + claimPicked

// ClaimDue implements store.Tokens.
func (s *Store) ClaimDue(ctx context.Context, claim store.DueClaim) ([]store.Token, error) {
	rows, err := collect(ctx, s.db, scanToken, sqlClaimDue,
		s.now(claim.Now), claim.Pace.Lease, claim.Pace.NearEnd, claim.Pace.Backoff, claim.Round, claim.Limit)
	if err != nil {
		return nil, s.wrap("claim due tokens", err)
	}
	tokens, err := rules.OpenTokens(s.sealer, rows, func(token store.Token, why error) error {
		return s.SaveTokenFailure(ctx, token, store.TokenFailure{Error: why.Error(), NextAttempt: claim.Now, Now: claim.Now})
	})
	return tokens, s.wrap("claim due tokens", err)
}

const sqlClaimToken = `
WITH picked AS (
    SELECT id, version, attempts, refresh_started_at FROM oauth_tokens
    WHERE user_id = $5 AND version = $6 AND NOT requires_reauth
      AND (lease_until IS NULL OR lease_until <= clock_timestamp())
      AND (next_attempt_at IS NULL OR next_attempt_at <= ` + present + ` OR ($7 AND refresh_started_at IS NULL) OR ($8 AND attempts <= 1))
    FOR UPDATE
)` + claimPicked

// ClaimToken implements store.Tokens. A token that cannot be opened is not claimed: the
// transaction is rolled back.
func (s *Store) ClaimToken(ctx context.Context, claim store.TokenClaim) (token store.Token, claimed bool, err error) {
	err = s.change(ctx, "claim token", func(ctx context.Context, tx pgx.Tx) error {
		sealed, err := scanToken(tx.QueryRow(ctx, sqlClaimToken,
			s.now(claim.Now), claim.Pace.Lease, claim.Pace.NearEnd, claim.Pace.Backoff, claim.Account, claim.UsedVersion, claim.Force, claim.Refused))
		switch {
		case err == nil:
			claimed = true
			token, err = s.sealer.OpenToken(sealed)
		case missing(err, nil) == nil:
			token, err = s.readToken(ctx, tx, claim.Account)
		}
		return err
	})
	return token, claimed && err == nil, err
}

const (
	// sqlSaveTokens saves the pairs of many claims, each if the row's version is still the
	// claim's and its account does not require re-authorising. It waits for nobody who holds
	// a row, so it cannot deadlock with a claim of many tokens, a rotation, another worker's
	// save, or whoever locks a lane and a token. A row that is left out is saved alone.
	sqlSaveTokens = `
WITH input AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::text[], $8::timestamptz[], $9::text[])
    AS v (id, version, access, refresh, expires, due, scope, at, metadata)
), locked AS MATERIALIZED (
    SELECT t.id FROM input JOIN oauth_tokens AS t ON t.id = input.id
    WHERE t.version = input.version AND NOT t.requires_reauth ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED
)
UPDATE oauth_tokens AS t
SET access_token = input.access, refresh_token = input.refresh, expires_at = input.expires, refresh_after = input.due, scope = input.scope,
    refreshed_at = input.at, version = t.version + 1, lease_id = NULL, lease_until = NULL, refresh_started_at = NULL, attempts = 0,
    next_attempt_at = NULL, metadata = input.metadata::jsonb
FROM locked JOIN input ON input.id = locked.id
WHERE t.id = locked.id AND t.version = input.version AND NOT t.requires_reauth
RETURNING t.id::text`

	// The lock of a row that has the pair already is a write of its own: its commit
	// waits until a synchronous standby has that pair, too.
	sqlLockClaim = `SELECT user_id, requires_reauth, version, access_token, refresh_token FROM oauth_tokens WHERE id = $1 FOR UPDATE`
	sqlSaveToken = `
UPDATE oauth_tokens
SET access_token = $3, refresh_token = $4, expires_at = $5, refresh_after = $6, scope = $7, refreshed_at = $8,
    version = version + 1, lease_id = NULL, lease_until = NULL, refresh_started_at = NULL, attempts = 0, next_attempt_at = NULL,
    metadata = $9
WHERE id = $1 AND version = $2`
)

// saving is a pair for the row of a claim.
type saving struct {
	claim           store.Token
	pair            store.Pair
	access, refresh string // the pair, sealed
	now             time.Time
}

// SaveToken implements store.Tokens. The pairs that come while the statement before is
// under way are saved together. What that statement leaves out is saved alone: it may be
// fenced or held, have the pair already, or belong to an account that had to be connected
// again.
func (s *Store) SaveToken(ctx context.Context, claim store.Token, pair store.Pair, now time.Time) error {
	access, refresh, err := s.sealer.SealPair(claim.ID, pair)
	if err != nil {
		return s.wrap("save token", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.patience.call) // of both
	defer cancel()
	in := saving{claim: claim, pair: pair, access: access, refresh: refresh, now: now}
	saved, err := s.saves.do(ctx, in)
	if saved || err != nil {
		return s.wrap("save token", err)
	}
	return s.saveAlone(ctx, in)
}

// takeSaves saves the pairs of many claims. If the database refuses the statement, each is
// saved alone, so that one's failure is never another's.
func (s *Store) takeSaves(group []*asked[saving, bool]) {
	saved, err := s.saveMany(group)
	for _, w := range group {
		w.answer = slices.Contains(saved, w.ask.claim.ID)
		if unavailable(err) {
			w.err = err
		}
	}
}

// saveMany returns the ids of the tokens that it saved.
func (s *Store) saveMany(group []*asked[saving, bool]) ([]string, error) {
	var (
		ids, accesses, refreshes, scopes, metadata []string
		versions                                   []int64
		expires, due, at                           []time.Time
	)
	for _, w := range group {
		in := &w.ask
		ids, versions = append(ids, in.claim.ID), append(versions, in.claim.Version)
		accesses, refreshes = append(accesses, in.access), append(refreshes, in.refresh)
		expires, due = append(expires, in.pair.ExpiresAt), append(due, in.pair.RefreshAfter(in.now))
		meta, _ := json.Marshal(rules.RefreshedMeta(in.now)) // which cannot fail
		scopes, at, metadata = append(scopes, in.pair.Scope), append(at, in.now), append(metadata, string(meta))
	}
	return collect(group[0].ctx, s.db, func(row scanner) (id string, err error) {
		err = row.Scan(&id)
		return id, err
	}, sqlSaveTokens, ids, versions, accesses, refreshes, expires, due, scopes, at, metadata)
}

// saveAlone saves one pair under the lock of its row.
func (s *Store) saveAlone(ctx context.Context, in saving) error {
	return s.change(ctx, "save token", func(ctx context.Context, tx pgx.Tx) error {
		there := store.SealedToken{Token: store.Token{ID: in.claim.ID}}
		var reauth bool
		err := tx.QueryRow(ctx, sqlLockClaim, in.claim.ID).
			Scan(&there.Account, &reauth, &there.Version, &there.SealedAccess, &there.SealedRefresh)
		switch {
		case err != nil:
			return missing(err, store.ErrFenced)
		case rules.Saved(s.sealer, there, in.claim, in.pair):
			return nil
		case there.Version != in.claim.Version:
			return store.ErrFenced
		}
		_, err = tx.Exec(ctx, sqlSaveToken, in.claim.ID, in.claim.Version, in.access, in.refresh,
			in.pair.ExpiresAt, in.pair.RefreshAfter(in.now), in.pair.Scope, in.now, rules.RefreshedMeta(in.now))
		if err != nil || !reauth {
			return err
		}
		_, err = endHolds(ctx, tx, there.Account, jetpost.CodeAccountReauthRequired, s.now(in.now))
		return err
	})
}

// sqlSaveTokenFailure notes whose failure it is, so that it can be repeated.
const sqlSaveTokenFailure = `
UPDATE oauth_tokens
SET lease_id = NULL, lease_until = NULL, refresh_started_at = $4, next_attempt_at = $5,
    metadata = metadata || $6 || jsonb_build_object('failedClaim', $3::text)
WHERE id = $1 AND version = $2 AND (lease_id = nullif($3, '')::uuid OR lease_id IS NULL AND metadata ->> 'failedClaim' = nullif($3, ''))`

// SaveTokenFailure implements store.Tokens.
func (s *Store) SaveTokenFailure(ctx context.Context, claim store.Token, failure store.TokenFailure) error {
	failure.Error = storable(failure.Error)
	startedAt, nextAttempt := failure.Leaves(claim)
	return s.wrap("save token failure", fenced(changed(ctx, s.db, sqlSaveTokenFailure,
		claim.ID, claim.Version, claim.LeaseID, moment(startedAt), moment(nextAttempt), rules.FailureMeta(failure))))
}

const (
	sqlDisconnect = `
UPDATE oauth_tokens
SET version = version + 1, lease_id = NULL, lease_until = NULL, refresh_started_at = NULL, attempts = 0, next_attempt_at = NULL,
    metadata = metadata || $2
WHERE user_id = $1 AND (lease_until IS NULL OR lease_until <= clock_timestamp())`
	sqlForgetPair = `UPDATE oauth_tokens SET access_token = $3, refresh_token = $4 WHERE id = $1 AND version = $2 AND requires_reauth`
)

// Disconnect implements store.Tokens. A token that cannot be opened stays as it is: the
// transaction is rolled back.
func (s *Store) Disconnect(ctx context.Context, account string, now time.Time) (token store.Token, err error) {
	err = s.change(ctx, "disconnect account", func(ctx context.Context, tx pgx.Tx) error {
		n, err := changed(ctx, tx, sqlDisconnect, account, rules.DisconnectedMeta(now))
		if err != nil {
			return err
		}
		token, err = s.readToken(ctx, tx, account)
		return orNone(n, err, store.ErrTokenBusy)
	})
	return token, err
}

// ForgetPair implements store.Tokens.
func (s *Store) ForgetPair(ctx context.Context, token store.Token) error {
	access, refresh, err := s.sealer.SealPair(token.ID, store.Pair{})
	if err != nil {
		return s.wrap("forget token", err)
	}
	return s.wrap("forget token", fenced(changed(ctx, s.db, sqlForgetPair, token.ID, token.Version, access, refresh)))
}

const sqlRetries = `
SELECT j.version, j.attempt, j.in_doubt_since, j.started_at
FROM refresh_journal AS j JOIN oauth_tokens AS t ON t.id = j.token_id
WHERE t.user_id = $1 ORDER BY j.version, j.attempt`

// Retries implements store.Tokens.
func (s *Store) Retries(ctx context.Context, account string) ([]store.Retry, error) {
	retries, err := collect(ctx, s.db, func(row scanner) (r store.Retry, err error) {
		err = row.Scan(&r.Version, &r.Attempt, at{&r.InDoubtSince}, at{&r.StartedAt})
		return r, err
	}, sqlRetries, account)
	return retries, s.wrap("read journal", err)
}

const (
	sqlNotices = `
SELECT user_id, requires_reauth, metadata, version, refreshed_at FROM oauth_tokens
WHERE requires_reauth <> reauth_told AND ($1 = '' OR user_id = $1) ORDER BY user_id LIMIT $2`
	// Marks of an older pair may come in any order: the present state is reported
	// again.
	sqlMarkNoticed = `UPDATE oauth_tokens SET reauth_told = CASE WHEN version = $3 THEN $2 ELSE NOT requires_reauth END WHERE user_id = $1`
)

// Notices implements store.Outbox.
func (s *Store) Notices(ctx context.Context, account string, limit int) ([]store.Notice, error) {
	notices, err := collect(ctx, s.db, func(row scanner) (n store.Notice, err error) {
		var meta store.TokenMeta
		err = row.Scan(&n.Account, &n.Required, &meta, &n.Version, at{&n.At})
		return rules.NoticeOf(n, meta), err
	}, sqlNotices, account, limit)
	return notices, s.wrap("read notices", err)
}

// MarkNoticed implements store.Outbox.
func (s *Store) MarkNoticed(ctx context.Context, notice store.Notice) error {
	n, err := changed(ctx, s.db, sqlMarkNoticed, notice.Account, notice.Required, notice.Version)
	return s.wrap("mark notice", orNone(n, err, store.ErrNotFound))
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

// BatchDone implements store.Tokens. It reads the round after the batch was committed:
// if two workers count the last batches at once, the later one sees both.
func (s *Store) BatchDone(ctx context.Context, done store.BatchResult) (store.Round, error) {
	r, err := readRound(ctx, s.db, done.Round)
	if err == nil {
		_, err = s.db.Exec(ctx, sqlAddBatch, done.Round, done.Batch, done.Refreshed, done.Failed, done.Skipped, done.Now)
	}
	if err == nil {
		r, err = readRound(ctx, s.db, done.Round)
	}
	return r, s.wrap("count batch", err)
}

func readRound(ctx context.Context, q querier, id string) (r store.Round, err error) {
	err = q.QueryRow(ctx, sqlRound, id).Scan(&r.Round, &r.Total, &r.Batches, &r.Delivered, &r.Completed,
		&r.Refreshed, &r.Failed, &r.Skipped)
	return r, missing(err, store.ErrNotFound)
}

const sqlRoundDelivered = `UPDATE refresh_rounds SET announced = true WHERE id = $1`

// RoundDelivered implements store.Tokens.
func (s *Store) RoundDelivered(ctx context.Context, round string) error {
	n, err := changed(ctx, s.db, sqlRoundDelivered, round)
	return s.wrap("mark round delivered", orNone(n, err, store.ErrNotFound))
}
