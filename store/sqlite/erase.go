package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	sqlBeginErase = `
INSERT INTO erasures (account, asked_at) SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM accounts WHERE name = ?1)
ON CONFLICT (account) DO UPDATE SET asked_at = excluded.asked_at`
	sqlErasing = `
SELECT account, asked_at,
    (SELECT count(*) FROM requests WHERE account = e.account),
    (SELECT count(*) FROM posts WHERE account = e.account AND state = 'posted' AND deleted_at IS NULL),
    (SELECT count(*) FROM posts WHERE account = e.account AND state = 'sending')
FROM erasures AS e WHERE account = ?1`
	sqlErasures = `SELECT account, asked_at, 0, 0, 0 FROM erasures ORDER BY asked_at, account`
	sqlEndErase = `DELETE FROM erasures WHERE account = ?1`

	// sqlHoldLane finds out whether a claim still has its lane.
	sqlHoldLane    = `UPDATE lanes SET fence = fence WHERE account = ?1 AND fence = ?2 AND lease_owner IS NOT NULL`
	sqlEraseThese  = `SELECT id, state FROM requests WHERE account = ?1 AND id IN (SELECT value FROM json_each(?2))`
	sqlErasePruned = `SELECT id, state FROM pruned WHERE account = ?1 LIMIT ?2`
	sqlNoRequests  = `SELECT NOT EXISTS (SELECT 1 FROM requests WHERE account = ?1)`
	sqlAddErased   = `INSERT INTO erased (identity, state, erased_at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING`
	sqlDropPruned  = `DELETE FROM pruned WHERE account = ?1 AND id = ?2`

	sqlErasedAnswers = `UPDATE operations SET answer = CAST(?3 AS BLOB) WHERE instr(answer, CAST(?1 AS BLOB)) > 0 OR instr(answer, CAST(?2 AS BLOB)) > 0`
	sqlDropAPIToken  = `DELETE FROM api_tokens WHERE name = ?1`
	sqlNarrowToken   = `UPDATE api_tokens SET accounts = ?2 WHERE name = ?1`

	emptyWriteAhead = `PRAGMA wal_checkpoint(TRUNCATE)`
)

// accountRows are those of an account, in the order in which they can go.
func accountRows() []string {
	return []string{
		`DELETE FROM unruled WHERE account = ?1`, `DELETE FROM pause_changes WHERE account = ?1`, `DELETE FROM expenses WHERE account = ?1`,
		`DELETE FROM spending WHERE account = ?1`,
		`DELETE FROM refresh_journal WHERE token_id IN (SELECT id FROM oauth_tokens WHERE user_id = ?1)`, `DELETE FROM oauth_tokens WHERE user_id = ?1`,
		`DELETE FROM lanes WHERE account = ?1`, `DELETE FROM accounts WHERE name = ?1`,
	}
}

// namingRows are those that name an account, which need not exist.
func namingRows() []string {
	return []string{
		`DELETE FROM refusals WHERE account = ?1`, `DELETE FROM connect_links WHERE account = ?1`, `DELETE FROM hooks WHERE account = ?1`,
		`UPDATE audit SET target = '' WHERE account = ?1 AND target <> ''`, // ids of its requests
	}
}

func scanErasing(row scanner) (e store.Erasing, err error) {
	err = row.Scan(&e.Account, at{&e.AskedAt}, &e.Requests, &e.Live, &e.Doubtful)
	return e, err
}

// BeginErase implements store.Erasures.
func (s *Store) BeginErase(ctx context.Context, account string, now time.Time) (e store.Erasing, err error) {
	err = s.change(ctx, "begin to erase account", func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, sqlBeginErase, account, micros(now)); err != nil {
			return err
		}
		e, err = scanErasing(tx.QueryRowContext(ctx, sqlErasing, account))
		return missing(err, store.ErrNotFound)
	})
	return e, err
}

// identity is one of a request, and the state in which the request is.
type identity struct {
	store.Key
	state jetpost.State
}

func eraseIdentities(ctx context.Context, tx *sql.Tx, account string, now time.Time, query string, args ...any) (n int, err error) {
	all, err := collect(ctx, tx, func(row scanner) (i identity, err error) {
		i.Account = account
		return i, row.Scan(&i.ID, &i.state)
	}, query, args...)
	for _, i := range all {
		if err == nil {
			_, err = tx.ExecContext(ctx, sqlAddErased, rules.ErasedIdentity(i.Key), string(rules.ErasedState(i.state)), micros(now))
		}
		for _, drop := range [...]string{sqlDropPosts, sqlDropRequest, sqlDropPruned} {
			if err == nil {
				_, err = tx.ExecContext(ctx, drop, i.Account, i.ID)
			}
		}
	}
	return len(all), err
}

// EraseRequests implements store.Erasures.
func (s *Store) EraseRequests(ctx context.Context, lane store.Claim, ids []string, now time.Time) error {
	list, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	return s.change(ctx, "erase requests", func(ctx context.Context, tx *sql.Tx) error {
		err := fenced(changed(ctx, tx, sqlHoldLane, lane.Account, lane.Fence))
		if err == nil {
			_, err = eraseIdentities(ctx, tx, lane.Account, now, sqlEraseThese, lane.Account, string(list))
		}
		return err
	})
}

// EraseAccount implements store.Erasures.
func (s *Store) EraseAccount(ctx context.Context, lane store.Claim, now time.Time) (done bool, err error) {
	err = s.change(ctx, "erase account", func(ctx context.Context, tx *sql.Tx) error {
		if err := fenced(changed(ctx, tx, sqlHoldLane, lane.Account, lane.Fence)); err != nil {
			return err
		}
		n, err := eraseIdentities(ctx, tx, lane.Account, now, sqlErasePruned, lane.Account, rules.MaxErasedIdentities)
		if err != nil || n > 0 {
			return err
		}
		if err := tx.QueryRowContext(ctx, sqlNoRequests, lane.Account).Scan(&done); err != nil || !done {
			return err
		}
		for _, drop := range accountRows() {
			if _, err := tx.ExecContext(ctx, drop, lane.Account); err != nil {
				return err
			}
		}
		return nil
	})
	return done && err == nil, err
}

// EraseRest implements store.Erasures.
func (s *Store) EraseRest(ctx context.Context, account string) error {
	err := s.change(ctx, "erase rest of account", func(ctx context.Context, tx *sql.Tx) error {
		for _, drop := range namingRows() {
			if _, err := tx.ExecContext(ctx, drop, account); err != nil {
				return err
			}
		}
		texts := rules.AnswersOf(account)
		if _, err := tx.ExecContext(ctx, sqlErasedAnswers, texts[0], texts[1], rules.ErasedAnswer); err != nil {
			return err
		}
		return eraseFromTokens(ctx, tx, account)
	})
	if err != nil {
		return err
	}
	// Readers may keep the log from being emptied: it is overwritten then as it grows.
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = s.write.ExecContext(ctx, emptyWriteAhead)
	return s.wrap("empty write-ahead log", err)
}

func eraseFromTokens(ctx context.Context, tx *sql.Tx, account string) error {
	tokens, err := collect(ctx, tx, scanAPIToken, sqlAPITokens)
	for _, t := range tokens {
		rest, had := rules.WithoutAccount(t, account)
		switch {
		case err != nil || !had:
		case len(rest) == 0:
			_, err = tx.ExecContext(ctx, sqlDropAPIToken, t.Name)
		default:
			_, err = tx.ExecContext(ctx, sqlNarrowToken, t.Name, wordsOf(&rest).String())
		}
	}
	return err
}

// Erasing implements store.Erasures.
func (s *Store) Erasing(ctx context.Context) (all []store.Erasing, err error) {
	err = s.view(ctx, "list accounts that are being erased", func(ctx context.Context, tx *sql.Tx) error {
		all, err = collect(ctx, tx, scanErasing, sqlErasures)
		return err
	})
	return all, err
}

// EndErase implements store.Erasures.
func (s *Store) EndErase(ctx context.Context, account string) error {
	return s.change(ctx, "end erasing of account", func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, sqlEndErase, account)
		return err
	})
}
