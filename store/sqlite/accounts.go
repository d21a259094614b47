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
	sqlUserOfAccount = `SELECT x_user_id FROM accounts WHERE name = ?1`
	sqlAccountOfUser = `SELECT name FROM accounts WHERE platform = 'x' AND x_user_id = ?1`
	sqlAddAccount    = `INSERT INTO accounts (name, x_user_id, username, created_at) VALUES (?1, ?2, ?3, ?4)`
	sqlAddLane       = `INSERT INTO lanes (account) VALUES (?1)`
	sqlAddToken      = `
INSERT INTO oauth_tokens (id, user_id, access_token, refresh_token, expires_at, refresh_after, scope, version, refreshed_at, imported)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1, ?8, ?9)`
	sqlRenameUser   = `UPDATE accounts SET username = ?2 WHERE name = ?1`
	sqlStoredToken  = `SELECT id, imported = ?2, coalesce(lease_until > ?3, 0), access_token, refresh_token FROM oauth_tokens WHERE user_id = ?1`
	sqlReplaceToken = `
UPDATE oauth_tokens
SET access_token = ?2, refresh_token = ?3, expires_at = ?4, refresh_after = ?5, scope = ?6, refreshed_at = ?7, imported = ?8,
    version = version + 1, lease_id = NULL, lease_until = NULL, refresh_started_at = NULL, attempts = 0, next_attempt_at = NULL,
    metadata = json_remove(metadata, '$.refreshError', '$.refreshFailedAt', '$.requiresReauth')
WHERE id = ?1`
)

// ImportAccount implements store.Accounts.
func (s *Store) ImportAccount(ctx context.Context, in store.Import) (result store.ImportResult, err error) {
	err = s.change(ctx, "import account", func(ctx context.Context, tx *sql.Tx) error {
		user, err := lookUp(ctx, tx, sqlUserOfAccount, in.Name)
		switch {
		case err != nil:
			return err
		case user == in.XUserID:
			result, err = s.replaceToken(ctx, tx, in)
			return err
		case user != "":
			return store.ErrNameTaken
		}
		name, err := lookUp(ctx, tx, sqlAccountOfUser, in.XUserID)
		switch {
		case err != nil:
			return err
		case name != "":
			return store.ErrUserTaken
		}
		result = store.AccountCreated
		return s.addAccount(ctx, tx, in)
	})
	if err != nil {
		return "", err
	}
	return result, nil
}

// lookUp returns a name, or "" if there is none; a name is never empty.
func lookUp(ctx context.Context, tx *sql.Tx, query, by string) (string, error) {
	name, err := scanText(tx.QueryRowContext(ctx, query, by))
	return name, missing(err, nil)
}

func (s *Store) addAccount(ctx context.Context, tx *sql.Tx, in store.Import) error {
	id := uuid.NewString()
	access, refresh, err := s.sealer.SealPair(id, in.Pair)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, sqlAddAccount, in.Name, in.XUserID, in.Username, micros(in.Now)); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, sqlAddLane, in.Name); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, sqlAddToken, id, in.Name, access, refresh,
		micros(in.Pair.ExpiresAt), micros(in.Pair.RefreshAfter(in.Now)), in.Pair.Scope, micros(in.Now), rules.PairDigest(in.Pair))
	return err
}

// replaceToken gives a known account its new pair, unless that pair is an old one.
func (s *Store) replaceToken(ctx context.Context, tx *sql.Tx, in store.Import) (store.ImportResult, error) {
	if _, err := tx.ExecContext(ctx, sqlRenameUser, in.Name, in.Username); err != nil {
		return "", err
	}
	var id string
	var again, busy bool
	there := store.SealedToken{Token: store.Token{Account: in.Name}}
	err := tx.QueryRowContext(ctx, sqlStoredToken, in.Name, rules.PairDigest(in.Pair), micros(in.Now)).Scan(&id, &again, &busy, &there.SealedAccess, &there.SealedRefresh)
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
	_, err = tx.ExecContext(ctx, sqlReplaceToken, id, access, refresh,
		micros(in.Pair.ExpiresAt), micros(in.Pair.RefreshAfter(in.Now)), in.Pair.Scope, micros(in.Now), rules.PairDigest(in.Pair))
	if err != nil {
		return "", err
	}
	for _, code := range []jetpost.Code{jetpost.CodeAccountReauthRequired, jetpost.CodeAccountScopeMissing} {
		if _, err = endHolds(ctx, tx, in.Name, code, in.Now); err != nil {
			break
		}
	}
	return store.TokenReplaced, err
}

const (
	// unfinished is spelled exactly as in the schema's partial indexes; otherwise
	// SQLite would not use them.
	unfinished = `state NOT IN ('published', 'failed', 'cancelled')`

	maxOpen = "1000" // store.MaxOpen

	sqlFromAccounts = `
SELECT a.name, a.x_user_id, a.username, a.created_at, t.expires_at, t.metadata, l.paused_at, l.paused_until, l.pause_reason, l.pause_cause,
       (SELECT count(*) FROM (SELECT 1 FROM requests WHERE account = a.name AND ` + unfinished + ` LIMIT ` + maxOpen + `))
FROM accounts AS a JOIN oauth_tokens AS t ON t.user_id = a.name JOIN lanes AS l ON l.account = a.name`
	sqlAccount  = sqlFromAccounts + ` WHERE a.name = ?1`
	sqlAccounts = sqlFromAccounts + ` ORDER BY a.name`

	sqlAccountsAfter = sqlFromAccounts + ` WHERE a.name > ?1 ORDER BY a.name LIMIT ?2`
)

// Account implements store.Accounts.
func (s *Store) Account(ctx context.Context, name string) (account store.Account, err error) {
	account, err = scanAccount(s.row(ctx, sqlAccount, name))
	return account, s.wrap("read account", missing(err, store.ErrNotFound))
}

// Accounts implements store.Accounts.
func (s *Store) Accounts(ctx context.Context) (accounts []store.Account, err error) {
	err = s.report(ctx, "list accounts", func(ctx context.Context, tx *sql.Tx) error {
		accounts, err = collect(ctx, tx, scanAccount, sqlAccounts)
		return err
	})
	return accounts, err
}

// AccountsAfter implements store.Accounts.
func (s *Store) AccountsAfter(ctx context.Context, after string, limit int) (accounts []store.Account, err error) {
	err = s.report(ctx, "list accounts", func(ctx context.Context, tx *sql.Tx) error {
		accounts, err = collect(ctx, tx, scanAccount, sqlAccountsAfter, after, limit)
		return err
	})
	return accounts, err
}

func scanAccount(row scanner) (a store.Account, err error) {
	var meta []byte
	err = row.Scan(&a.Name, &a.XUserID, &a.Username, at{&a.CreatedAt}, at{&a.TokenExpiresAt}, &meta,
		pausedAt{&a.Pause}, at{&a.Pause.Reason.Until}, &a.Pause.Reason.Detail, rules.CauseOf{Pause: &a.Pause}, &a.Open)
	if err != nil {
		return store.Account{}, err
	}
	if err := json.Unmarshal(meta, &a.TokenMeta); err != nil {
		return store.Account{}, fmt.Errorf("read token metadata of %s: %w", a.Name, err)
	}
	return a, nil
}

const (
	sqlWhole = `
SELECT coalesce(l.lease_until > ?2 OR t.lease_until > ?2, 0) OR t.refresh_started_at IS NOT NULL OR t.requires_reauth <> t.reauth_told
        OR EXISTS (SELECT 1 FROM requests WHERE account = ?1 AND announced < revision) OR EXISTS (SELECT 1 FROM pause_changes WHERE account = ?1),
    l.unpublish_at IS NOT NULL OR EXISTS (SELECT 1 FROM requests WHERE account = ?1 AND ` + unfinished + `), t.requires_reauth,
    (SELECT count(*) FROM (SELECT 1 FROM requests WHERE account = ?1 LIMIT ?3 + 1)) + (SELECT count(*) FROM (SELECT 1 FROM pruned WHERE account = ?1 LIMIT ?3 + 1))
FROM lanes AS l JOIN oauth_tokens AS t ON t.user_id = l.account WHERE l.account = ?1`
	sqlNameUsed = `SELECT EXISTS (SELECT 1 FROM accounts WHERE name = ?1) OR EXISTS (SELECT 1 FROM pruned WHERE account = ?1)`
	// sqlDeferReferences has references checked when the transaction is committed.
	sqlDeferReferences = `PRAGMA defer_foreign_keys = ON`

	sqlRenameName      = `UPDATE accounts SET name = ?2 WHERE name = ?1`
	sqlRenameToken     = `UPDATE oauth_tokens SET user_id = ?2 WHERE user_id = ?1`
	sqlRenameLane      = `UPDATE lanes SET account = ?2, fence = fence + 1 WHERE account = ?1`
	sqlRenameRequests  = `UPDATE requests SET account = ?2 WHERE account = ?1`
	sqlRenamePosts     = `UPDATE posts SET account = ?2 WHERE account = ?1`
	sqlRenameUnruled   = `UPDATE unruled SET account = ?2 WHERE account = ?1`
	sqlRenamePruned    = `UPDATE pruned SET account = ?2 WHERE account = ?1`
	sqlRenameExpenses  = `UPDATE expenses SET account = ?2 WHERE account = ?1`
	sqlRenameSpending  = `UPDATE spending SET account = ?2 WHERE account = ?1`
	sqlRenameLinks     = `UPDATE connect_links SET account = ?2 WHERE account = ?1`
	sqlRenameHooks     = `UPDATE hooks SET account = ?2 WHERE account = ?1`
	sqlRenameAPITokens = `
UPDATE api_tokens SET accounts = trim(replace(' ' || accounts || ' ', ' ' || ?1 || ' ', ' ' || ?2 || ' '))
WHERE instr(' ' || accounts || ' ', ' ' || ?1 || ' ') > 0`

	sqlRemoveRequests = `
INSERT INTO pruned (account, id, digest, state, revision, accepted_at, finished_at)
SELECT account, id, substr(digest, 1, ?2), state, revision, accepted_at, updated_at FROM requests WHERE account = ?1`
	sqlRemovePosts     = `DELETE FROM posts WHERE account = ?1`
	sqlRemoveBodies    = `DELETE FROM requests WHERE account = ?1`
	sqlRemoveUnruled   = `DELETE FROM unruled WHERE account = ?1`
	sqlRemoveExpenses  = `DELETE FROM expenses WHERE account = ?1`
	sqlRemoveSpending  = `DELETE FROM spending WHERE account = ?1`
	sqlRemoveLinks     = `DELETE FROM connect_links WHERE account = ?1`
	sqlRemoveHooks     = `DELETE FROM hooks WHERE account = ?1`
	sqlRemoveLane      = `DELETE FROM lanes WHERE account = ?1`
	sqlRemoveJournal   = `DELETE FROM refresh_journal WHERE token_id IN (SELECT id FROM oauth_tokens WHERE user_id = ?1)`
	sqlRemoveToken     = `DELETE FROM oauth_tokens WHERE user_id = ?1`
	sqlRemoveName      = `DELETE FROM accounts WHERE name = ?1`
	sqlRemoveAPITokens = `
UPDATE api_tokens SET accounts = trim(replace(' ' || accounts || ' ', ' ' || ?1 || ' ', ' '))
WHERE instr(' ' || accounts || ' ', ' ' || ?1 || ' ') > 0`
)

// whole reads what decides about an account as a whole.
func whole(ctx context.Context, tx *sql.Tx, name string, now time.Time) (w rules.Whole, err error) {
	err = tx.QueryRowContext(ctx, sqlWhole, name, micros(now), store.MaxMoved).Scan(&w.Busy, &w.Unfinished, &w.Reauth, &w.Requests)
	return w, missing(err, store.ErrNotFound)
}

// each runs statements with the same arguments.
func each(ctx context.Context, tx *sql.Tx, statements []string, args ...any) error {
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement, args...); err != nil {
			return err
		}
	}
	return nil
}

// RenameAccount implements store.Accounts.
func (s *Store) RenameAccount(ctx context.Context, name, to string, now time.Time) error {
	return s.change(ctx, "rename account", func(ctx context.Context, tx *sql.Tx) error {
		w, err := whole(ctx, tx, name, now)
		if err == nil {
			err = w.Check()
		}
		var used bool
		if err == nil {
			err = tx.QueryRowContext(ctx, sqlNameUsed, to).Scan(&used)
		}
		switch {
		case err != nil:
			return err
		case used:
			return store.ErrNameTaken
		}
		if err := each(ctx, tx, []string{sqlDeferReferences}); err != nil {
			return err
		}
		return each(ctx, tx, []string{
			sqlRenameName, sqlRenameToken, sqlRenameLane, sqlRenameRequests, sqlRenamePosts, sqlRenameUnruled, sqlRenamePruned,
			sqlRenameExpenses, sqlRenameSpending, sqlRenameLinks, sqlRenameHooks, sqlRenameAPITokens,
		}, name, to)
	})
}

// RemoveAccount implements store.Accounts.
func (s *Store) RemoveAccount(ctx context.Context, name string, now time.Time) error {
	return s.change(ctx, "remove account", func(ctx context.Context, tx *sql.Tx) error {
		w, err := whole(ctx, tx, name, now)
		if err == nil {
			err = w.CheckRemoval()
		}
		if err == nil {
			err = each(ctx, tx, []string{sqlRemoveRequests}, name, rules.DigestKept)
		}
		if err != nil {
			return err
		}
		return each(ctx, tx, []string{
			sqlRemovePosts, sqlRemoveBodies, sqlRemoveUnruled, sqlRemoveLinks, sqlRemoveHooks, sqlRemoveLane, sqlRemoveJournal, sqlRemoveToken, sqlRemoveName,
			sqlRemoveExpenses, sqlRemoveSpending, sqlRemoveAPITokens,
		}, name)
	})
}
