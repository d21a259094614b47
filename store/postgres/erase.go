package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	sqlBeginErase = `
INSERT INTO erasures (account, asked_at) SELECT $1, $2::timestamptz WHERE EXISTS (SELECT FROM accounts WHERE name = $1)
ON CONFLICT (account) DO UPDATE SET asked_at = excluded.asked_at`
	sqlErasing = `
SELECT account, asked_at,
    (SELECT count(*) FROM requests WHERE account = e.account),
    (SELECT count(*) FROM posts WHERE account = e.account AND state = 'posted' AND deleted_at IS NULL),
    (SELECT count(*) FROM posts WHERE account = e.account AND state = 'sending')
FROM erasures AS e WHERE account = $1`
	sqlErasures = `SELECT account, asked_at, 0, 0, 0 FROM erasures ORDER BY asked_at, account`
	sqlEndErase = `DELETE FROM erasures WHERE account = $1`

	sqlLockName = `SELECT FROM accounts WHERE name = $1 FOR UPDATE`
	// sqlHoldLane finds out whether a claim still has its lane.
	sqlHoldLane    = `SELECT fence FROM lanes WHERE account = $1 AND fence = $2 AND lease_owner IS NOT NULL FOR UPDATE`
	sqlEraseThese  = `SELECT id, state FROM requests WHERE account = $1 AND id = ANY ($2::text[])`
	sqlErasePruned = `SELECT id, state FROM pruned WHERE account = $1 LIMIT $2`
	sqlNoRequests  = `SELECT NOT EXISTS (SELECT FROM requests WHERE account = $1)`
	sqlAddErased   = `
INSERT INTO erased (identity, state, erased_at) SELECT identity, state, $3 FROM unnest($1::bytea[], $2::text[]) AS e (identity, state) ON CONFLICT DO NOTHING`

	sqlErasedAnswers = `
UPDATE operations SET answer = convert_to($3::text, 'UTF8')
WHERE position(convert_to($1::text, 'UTF8') IN answer) > 0 OR position(convert_to($2::text, 'UTF8') IN answer) > 0`
	sqlDropAPIToken = `DELETE FROM api_tokens WHERE name = $1`
	sqlNarrowToken  = `UPDATE api_tokens SET accounts = $2 WHERE name = $1`
)

// requestRows are those of requests, in the order in which they can go.
func requestRows() []string {
	return []string{
		`DELETE FROM outbox WHERE account = $1 AND id = ANY ($2::text[])`, `DELETE FROM posts WHERE account = $1 AND request_id = ANY ($2::text[])`,
		`DELETE FROM requests WHERE account = $1 AND id = ANY ($2::text[])`, `DELETE FROM pruned WHERE account = $1 AND id = ANY ($2::text[])`,
	}
}

// accountRows are those of an account, in the order in which they can go.
func accountRows() []string {
	return []string{
		`DELETE FROM unruled WHERE account = $1`, `DELETE FROM pause_changes WHERE account = $1`, `DELETE FROM expenses WHERE account = $1`,
		`DELETE FROM spending WHERE account = $1`, `DELETE FROM outbox WHERE account = $1`,
		`DELETE FROM refresh_journal WHERE token_id IN (SELECT id FROM oauth_tokens WHERE user_id = $1)`, `DELETE FROM oauth_tokens WHERE user_id = $1`,
		`DELETE FROM lanes WHERE account = $1`, `DELETE FROM accounts WHERE name = $1`,
	}
}

// namingRows are those that name an account, which need not exist.
func namingRows() []string {
	return []string{
		`DELETE FROM refusals WHERE account = $1`, `DELETE FROM connect_links WHERE account = $1`, `DELETE FROM hooks WHERE account = $1`,
		`UPDATE audit SET target = '' WHERE account = $1 AND target <> ''`, // ids of its requests
	}
}

func scanErasing(row scanner) (e store.Erasing, err error) {
	err = row.Scan(&e.Account, at{&e.AskedAt}, &e.Requests, &e.Live, &e.Doubtful)
	return e, err
}

// BeginErase implements store.Erasures.
func (s *Store) BeginErase(ctx context.Context, account string, now time.Time) (e store.Erasing, err error) {
	err = s.change(ctx, "begin to erase account", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlBeginErase, account, now); err != nil {
			return err
		}
		e, err = scanErasing(tx.QueryRow(ctx, sqlErasing, account))
		return missing(err, store.ErrNotFound)
	})
	return e, err
}

func holdLane(ctx context.Context, tx pgx.Tx, lane store.Claim) error {
	return missing(tx.QueryRow(ctx, sqlHoldLane, lane.Account, lane.Fence).Scan(new(int64)), store.ErrFenced)
}

func eraseIdentities(ctx context.Context, tx pgx.Tx, account string, now time.Time, query string, args ...any) (n int, err error) {
	var identities [][]byte
	var states []string
	ids, err := collect(ctx, tx, func(row scanner) (id string, err error) {
		var state jetpost.State
		if err = row.Scan(&id, &state); err == nil {
			identities = append(identities, rules.ErasedIdentity(store.Key{Account: account, ID: id}))
			states = append(states, string(rules.ErasedState(state)))
		}
		return id, err
	}, query, args...)
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	_, err = tx.Exec(ctx, sqlAddErased, identities, states, now)
	for _, drop := range requestRows() {
		if err == nil {
			_, err = tx.Exec(ctx, drop, account, ids)
		}
	}
	return len(ids), err
}

// EraseRequests implements store.Erasures.
func (s *Store) EraseRequests(ctx context.Context, lane store.Claim, ids []string, now time.Time) error {
	return s.change(ctx, "erase requests", func(ctx context.Context, tx pgx.Tx) error {
		err := holdLane(ctx, tx, lane)
		if err == nil {
			_, err = eraseIdentities(ctx, tx, lane.Account, now, sqlEraseThese, lane.Account, ids)
		}
		return err
	})
}

// EraseAccount implements store.Erasures.
func (s *Store) EraseAccount(ctx context.Context, lane store.Claim, now time.Time) (done bool, err error) {
	err = s.change(ctx, "erase account", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlLockName, lane.Account); err != nil { // first, as an import does
			return err
		}
		if err := holdLane(ctx, tx, lane); err != nil {
			return err
		}
		n, err := eraseIdentities(ctx, tx, lane.Account, now, sqlErasePruned, lane.Account, rules.MaxErasedIdentities)
		if err != nil || n > 0 {
			return err
		}
		if err := tx.QueryRow(ctx, sqlNoRequests, lane.Account).Scan(&done); err != nil || !done {
			return err
		}
		for _, drop := range accountRows() {
			if _, err := tx.Exec(ctx, drop, lane.Account); err != nil {
				return err
			}
		}
		return nil
	})
	return done && err == nil, err
}

// EraseRest implements store.Erasures. PostgreSQL overwrites what was deleted when it
// vacuums.
func (s *Store) EraseRest(ctx context.Context, account string) error {
	return s.change(ctx, "erase rest of account", func(ctx context.Context, tx pgx.Tx) error {
		for _, drop := range namingRows() {
			if _, err := tx.Exec(ctx, drop, account); err != nil {
				return err
			}
		}
		texts := rules.AnswersOf(account)
		if _, err := tx.Exec(ctx, sqlErasedAnswers, texts[0], texts[1], rules.ErasedAnswer); err != nil {
			return err
		}
		tokens, err := collect(ctx, tx, scanAPIToken, sqlAPITokens)
		for _, t := range tokens {
			rest, had := rules.WithoutAccount(t, account)
			switch {
			case err != nil || !had:
			case len(rest) == 0:
				_, err = tx.Exec(ctx, sqlDropAPIToken, t.Name)
			default:
				_, err = tx.Exec(ctx, sqlNarrowToken, t.Name, wordsOf(&rest).String())
			}
		}
		return err
	})
}

// Erasing implements store.Erasures.
func (s *Store) Erasing(ctx context.Context) ([]store.Erasing, error) {
	all, err := collect(ctx, s.db, scanErasing, sqlErasures)
	return all, s.wrap("list accounts that are being erased", err)
}

// EndErase implements store.Erasures.
func (s *Store) EndErase(ctx context.Context, account string) error {
	_, err := changed(ctx, s.db, sqlEndErase, account)
	return s.wrap("end erasing of account", err)
}
