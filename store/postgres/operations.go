package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	// sqlAddOperation waits for another transaction that does the same one.
	sqlAddOperation    = `INSERT INTO operations (id, digest, answer, done_at) VALUES ($1, $2, '', coalesce($3::timestamptz, statement_timestamp())) ON CONFLICT DO NOTHING`
	sqlOperation       = `SELECT digest, answer FROM operations WHERE id = $1`
	sqlAnswerOperation = `UPDATE operations SET answer = $2 WHERE id = $1`
	// sqlForgetOperations forgets the oldest ones, but for those that somebody else
	// forgets.
	sqlForgetOperations = `
DELETE FROM operations WHERE id IN (
    SELECT id FROM operations WHERE done_at < coalesce($1::timestamptz, statement_timestamp()) - $2::interval
    ORDER BY done_at LIMIT $3 FOR UPDATE SKIP LOCKED)`
)

// Operate implements store.Operations.
func (s *Store) Operate(ctx context.Context, op store.Operation, change func(context.Context, store.Changes) ([]byte, error)) (answer []byte, repeated bool, err error) {
	var own error // of the change, which is told as it is
	err = s.change(ctx, "do operation", func(ctx context.Context, tx pgx.Tx) error {
		bound := s.bind(tx)
		if op.ID == "" {
			answer, own = change(ctx, bound)
			return own
		}
		n, err := changed(ctx, tx, sqlAddOperation, op.ID, blob(op.Digest), s.now(op.Now))
		if err != nil {
			return err
		}
		if n == 0 {
			var digest []byte
			repeated = true
			if err := tx.QueryRow(ctx, sqlOperation, op.ID).Scan(&digest, &answer); err != nil {
				return err
			}
			return rules.SameOperation(op, digest)
		}
		if answer, own = change(ctx, bound); own != nil {
			return own
		}
		if _, err := tx.Exec(ctx, sqlAnswerOperation, op.ID, blob(answer)); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, sqlForgetOperations, s.now(op.Now), rules.OperationRetention, rules.MaxForgottenOperations)
		return err
	})
	switch {
	case own != nil:
		return nil, false, own
	case err != nil:
		return nil, false, err
	}
	return answer, repeated, nil
}

// bind is the store within a transaction: its changes are parts of that.
func (s *Store) bind(tx pgx.Tx) *Store {
	return &Store{
		name: s.name, sealer: s.sealer, pool: s.pool, db: tx, tx: tx,
		patience: s.patience, callersClock: s.callersClock, sessions: s.sessions,
	}
}

// AnswerOperation implements store.Operations.
func (s *Store) AnswerOperation(ctx context.Context, id string, answer []byte) error {
	n, err := changed(ctx, s.db, sqlAnswerOperation, id, blob(answer))
	return s.wrap("answer operation", orNone(n, err, store.ErrNotFound))
}
