package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

// xUserConstraint is the constraint that gives an X user at most one name.
const xUserConstraint = "accounts_x_user"

const (
	// sqlAddAccount also waits for an import of the same name that is under way.
	// Afterwards the account is either ours or can be read.
	sqlAddAccount = `
INSERT INTO accounts (name, x_user_id, username, created_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO NOTHING`
	sqlAddLane  = `INSERT INTO lanes (account) VALUES ($1)`
	sqlAddToken = `
INSERT INTO oauth_tokens (id, user_id, access_token, refresh_token, expires_at, refresh_after, scope, version, refreshed_at, imported)
VALUES ($1, $2, $3, $4, $5, $6, $7, 1, $8, $9)`
	sqlRenameUser = `UPDATE accounts SET username = $3 WHERE name = $1 AND x_user_id = $2`
	// sqlLockToken waits for a claim or a save that is under way.
	sqlLockToken = `
SELECT id::text, imported = $2, coalesce(lease_until > clock_timestamp(), false), access_token, refresh_token FROM oauth_tokens
WHERE user_id = $1 FOR UPDATE`
	sqlReplaceToken = `
UPDATE oauth_tokens
SET access_token = $2, refresh_token = $3, expires_at = $4, refresh_after = $5, scope = $6, refreshed_at = $7, imported = $8,
    version = version + 1, lease_id = NULL, lease_until = NULL, refresh_started_at = NULL, attempts = 0, next_attempt_at = NULL,
    metadata = metadata - '{refreshError,refreshFailedAt,requiresReauth}'::text[]
WHERE id = $1`
)

// ImportAccount implements store.Accounts.
func (s *Store) ImportAccount(ctx context.Context, in store.Import) (result store.ImportResult, err error) {
	err = s.change(ctx, "import account", func(ctx context.Context, tx pgx.Tx) error {
		n, err := changed(ctx, tx, sqlAddAccount, in.Name, in.XUserID, in.Username, in.Now)
		var refused *pgconn.PgError
		switch {
		case errors.As(err, &refused) && refused.ConstraintName == xUserConstraint:
			return store.ErrUserTaken
		case err != nil:
			return err
		case n > 0:
			result = store.AccountCreated
			return s.addToken(ctx, tx, in)
		default:
			result, err = s.replaceToken(ctx, tx, in)
			return err
		}
	})
	if err != nil {
		return "", err
	}
	return result, nil
}

// addToken completes a new account.
func (s *Store) addToken(ctx context.Context, tx pgx.Tx, in store.Import) error {
	id := uuid.NewString()
	access, refresh, err := s.sealer.SealPair(id, in.Pair)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, sqlAddLane, in.Name); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, sqlAddToken, id, in.Name, access, refresh,
		in.Pair.ExpiresAt, in.Pair.RefreshAfter(in.Now), in.Pair.Scope, in.Now, rules.PairDigest(in.Pair))
	return err
}

// replaceToken gives a known account its new pair, unless that pair is an old one.
func (s *Store) replaceToken(ctx context.Context, tx pgx.Tx, in store.Import) (store.ImportResult, error) {
	n, err := changed(ctx, tx, sqlRenameUser, in.Name, in.XUserID, in.Username)
	if err := orNone(n, err, store.ErrNameTaken); err != nil {
		return "", err
	}
	var id string
	var again, busy bool
	there := store.SealedToken{Token: store.Token{Account: in.Name}}
	err = tx.QueryRow(ctx, sqlLockToken, in.Name, rules.PairDigest(in.Pair)).Scan(&id, &again, &busy, &there.SealedAccess, &there.SealedRefresh)
	if there.ID = id; err == nil {
		err = rules.MayReplace(s.sealer, there, again)
	}
	switch {
	case err != nil:
		return "", err
	case again:
		return store.TokenUnchanged, nil
	case busy && !in.Consented:
		return "", store.ErrTokenBusy
	}
	access, refresh, err := s.sealer.SealPair(id, in.Pair)
	if err != nil {
		return "", err
	}
	_, err = tx.Exec(ctx, sqlReplaceToken, id, access, refresh,
		in.Pair.ExpiresAt, in.Pair.RefreshAfter(in.Now), in.Pair.Scope, in.Now, rules.PairDigest(in.Pair))
	if err != nil {
		return "", err
	}
	for _, code := range []jetpost.Code{jetpost.CodeAccountReauthRequired, jetpost.CodeAccountScopeMissing} {
		if _, err = endHolds(ctx, tx, in.Name, code, s.now(in.Now)); err != nil {
			break
		}
	}
	return store.TokenReplaced, err
}

const (
	// unfinished is the condition of the partial indexes of requests.
	unfinished = `state IN ('scheduled', 'queued', 'publishing', 'held', 'unknown')`

	maxOpen = "1000" // store.MaxOpen

	sqlFromAccounts = `
SELECT a.name, a.x_user_id, a.username, a.created_at, t.expires_at, t.metadata, l.paused_at, l.paused_until, l.pause_reason, l.pause_cause,
       (SELECT count(*) FROM (SELECT FROM requests WHERE account = a.name AND ` + unfinished + ` LIMIT ` + maxOpen + `) AS few)
FROM accounts AS a JOIN oauth_tokens AS t ON t.user_id = a.name JOIN lanes AS l ON l.account = a.name`
	sqlAccount  = sqlFromAccounts + ` WHERE a.name = $1`
	sqlAccounts = sqlFromAccounts + ` ORDER BY a.name COLLATE "C"`
	// sqlAccountsAfter picks the names first: the rest is looked up for those alone.
	sqlAccountsAfter = sqlFromAccounts + `
WHERE a.name IN (SELECT name FROM accounts WHERE name COLLATE "C" > $1 ORDER BY name COLLATE "C" LIMIT $2) ORDER BY a.name COLLATE "C"`
)

// Account implements store.Accounts.
func (s *Store) Account(ctx context.Context, name string) (store.Account, error) {
	account, err := scanAccount(s.db.QueryRow(ctx, sqlAccount, name))
	return account, s.wrap("read account", missing(err, store.ErrNotFound))
}

// Accounts implements store.Accounts.
func (s *Store) Accounts(ctx context.Context) ([]store.Account, error) {
	return reportAll(ctx, s, "list accounts", scanAccount, sqlAccounts)
}

// AccountsAfter implements store.Accounts.
func (s *Store) AccountsAfter(ctx context.Context, after string, limit int) ([]store.Account, error) {
	return reportAll(ctx, s, "list accounts", scanAccount, sqlAccountsAfter, after, limit)
}

func scanAccount(row scanner) (a store.Account, err error) {
	err = row.Scan(&a.Name, &a.XUserID, &a.Username, at{&a.CreatedAt}, at{&a.TokenExpiresAt}, &a.TokenMeta,
		pausedAt{&a.Pause}, at{&a.Pause.Reason.Until}, &a.Pause.Reason.Detail, rules.CauseOf{Pause: &a.Pause}, &a.Open)
	return a, err
}

const (
	// sqlLockAccount keeps workers from the account, and new requests out of it.
	sqlLockAccount = `
SELECT coalesce(l.lease_until > clock_timestamp() OR t.lease_until > clock_timestamp(), false) OR t.refresh_started_at IS NOT NULL
    OR t.requires_reauth <> t.reauth_told, l.unpublish_at IS NOT NULL, t.requires_reauth
FROM lanes AS l JOIN oauth_tokens AS t ON t.user_id = l.account WHERE l.account = $1 FOR UPDATE OF l, t`
	sqlWhole = `
SELECT EXISTS (SELECT FROM outbox WHERE account = $1) OR EXISTS (SELECT FROM pause_changes WHERE account = $1),
    EXISTS (SELECT FROM requests WHERE account = $1 AND ` + unfinished + `),
    (SELECT count(*) FROM (SELECT FROM requests WHERE account = $1 LIMIT $2 + 1) AS few) +
    (SELECT count(*) FROM (SELECT FROM pruned WHERE account = $1 LIMIT $2 + 1) AS few)`
	sqlNameUsed = `SELECT EXISTS (SELECT FROM accounts WHERE name = $1) OR EXISTS (SELECT FROM pruned WHERE account = $1)`
	// sqlRenameAccount is one statement, as references are checked at its end.
	sqlRenameAccount = `
WITH a AS (UPDATE accounts SET name = $2 WHERE name = $1),
t AS (UPDATE oauth_tokens SET user_id = $2 WHERE user_id = $1),
l AS (UPDATE lanes SET account = $2, fence = fence + 1 WHERE account = $1),
r AS (UPDATE requests SET account = $2 WHERE account = $1),
p AS (UPDATE posts SET account = $2 WHERE account = $1),
u AS (UPDATE unruled SET account = $2 WHERE account = $1),
i AS (UPDATE pruned SET account = $2 WHERE account = $1),
e AS (UPDATE expenses SET account = $2 WHERE account = $1),
s AS (UPDATE spending SET account = $2 WHERE account = $1),
c AS (UPDATE connect_links SET account = $2 WHERE account = $1),
h AS (UPDATE hooks SET account = $2 WHERE account = $1)
UPDATE api_tokens SET accounts = btrim(replace(' ' || accounts || ' ', ' ' || $1::text || ' ', ' ' || $2::text || ' '))
WHERE position(' ' || $1::text || ' ' IN ' ' || accounts || ' ') > 0`
	sqlRemoveAccount = `
WITH i AS (
    INSERT INTO pruned (account, id, digest, state, revision, accepted_at, finished_at)
    SELECT account, id, substring(digest FROM 1 FOR $2), state, revision, accepted_at, updated_at FROM requests WHERE account = $1),
p AS (DELETE FROM posts WHERE account = $1),
r AS (DELETE FROM requests WHERE account = $1),
u AS (DELETE FROM unruled WHERE account = $1),
c AS (DELETE FROM connect_links WHERE account = $1),
e AS (DELETE FROM expenses WHERE account = $1),
s AS (DELETE FROM spending WHERE account = $1),
h AS (DELETE FROM hooks WHERE account = $1),
l AS (DELETE FROM lanes WHERE account = $1),
j AS (DELETE FROM refresh_journal WHERE token_id IN (SELECT id FROM oauth_tokens WHERE user_id = $1)),
t AS (DELETE FROM oauth_tokens WHERE user_id = $1),
a AS (DELETE FROM accounts WHERE name = $1)
UPDATE api_tokens SET accounts = btrim(replace(' ' || accounts || ' ', ' ' || $1::text || ' ', ' '))
WHERE position(' ' || $1::text || ' ' IN ' ' || accounts || ' ') > 0`
)

// whole locks an account and reads what decides about it as a whole.
func whole(ctx context.Context, tx pgx.Tx, name string) (w rules.Whole, err error) {
	var untold, unfinished bool
	err = tx.QueryRow(ctx, sqlLockAccount, name).Scan(&w.Busy, &w.Unfinished, &w.Reauth)
	if err == nil {
		err = tx.QueryRow(ctx, sqlWhole, name, store.MaxMoved).Scan(&untold, &unfinished, &w.Requests)
	}
	w.Busy, w.Unfinished = w.Busy || untold, w.Unfinished || unfinished
	return w, missing(err, store.ErrNotFound)
}

// RenameAccount implements store.Accounts.
func (s *Store) RenameAccount(ctx context.Context, name, to string, _ time.Time) error {
	return s.change(ctx, "rename account", func(ctx context.Context, tx pgx.Tx) error {
		w, err := whole(ctx, tx, name)
		if err == nil {
			err = w.Check()
		}
		var used bool
		if err == nil {
			err = tx.QueryRow(ctx, sqlNameUsed, to).Scan(&used)
		}
		switch {
		case err != nil:
			return err
		case used:
			return store.ErrNameTaken
		}
		_, err = tx.Exec(ctx, sqlRenameAccount, name, to)
		return err
	})
}

// RemoveAccount implements store.Accounts.
func (s *Store) RemoveAccount(ctx context.Context, name string, _ time.Time) error {
	return s.change(ctx, "remove account", func(ctx context.Context, tx pgx.Tx) error {
		w, err := whole(ctx, tx, name)
		if err == nil {
			err = w.CheckRemoval()
		}
		if err == nil {
			_, err = tx.Exec(ctx, sqlRemoveAccount, name, rules.DigestKept)
		}
		return err
	})
}
