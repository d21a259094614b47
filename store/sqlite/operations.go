package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	sqlOperation       = `SELECT digest, answer FROM operations WHERE id = ?1`
	sqlAddOperation    = `INSERT INTO operations (id, digest, answer, done_at) VALUES (?1, ?2, ?3, ?4)`
	sqlAnswerOperation = `UPDATE operations SET answer = ?2 WHERE id = ?1`
	// sqlForgetOperations forgets the oldest ones.
	sqlForgetOperations = `
DELETE FROM operations WHERE rowid IN (SELECT rowid FROM operations WHERE done_at < ?1 ORDER BY done_at LIMIT ?2)`
)

// Operate implements store.Operations. As one connection writes, of several with one id
// the others find what the first has done.
func (s *Store) Operate(ctx context.Context, op store.Operation, change func(context.Context, store.Changes) ([]byte, error)) (answer []byte, repeated bool, err error) {
	var own error // of the change, which is told as it is
	err = s.change(ctx, "do operation", func(ctx context.Context, tx *sql.Tx) error {
		var digest []byte
		err := tx.QueryRowContext(ctx, sqlOperation, op.ID).Scan(&digest, &answer)
		switch {
		case err == nil:
			repeated = true
			return rules.SameOperation(op, digest)
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		bound := *s
		bound.tx = tx
		if answer, own = change(ctx, &bound); own != nil || op.ID == "" {
			return own
		}
		if _, err := tx.ExecContext(ctx, sqlAddOperation, op.ID, blob(op.Digest), blob(answer), micros(op.Now)); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, sqlForgetOperations, micros(op.Now.Add(-rules.OperationRetention)), rules.MaxForgottenOperations)
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

// AnswerOperation implements store.Operations.
func (s *Store) AnswerOperation(ctx context.Context, id string, answer []byte) error {
	return s.change(ctx, "answer operation", func(ctx context.Context, tx *sql.Tx) error {
		n, err := changed(ctx, tx, sqlAnswerOperation, id, blob(answer))
		if err == nil && n == 0 {
			err = store.ErrNotFound
		}
		return err
	})
}

// These statements keep what fails in a transaction from leaving half of it.
const (
	savepoint   = `SAVEPOINT part`
	releasePart = `RELEASE part`
	backToPart  = `ROLLBACK TO part; RELEASE part`
)

// within is a change that is a part of the store's own transaction.
func (s *Store) within(ctx context.Context, f func(context.Context, *sql.Tx) error) error {
	if _, err := s.tx.ExecContext(ctx, savepoint); err != nil {
		return err
	}
	if err := f(ctx, s.tx); err != nil {
		_, backErr := s.tx.ExecContext(ctx, backToPart)
		return errors.Join(err, backErr)
	}
	_, err := s.tx.ExecContext(ctx, releasePart)
	return err
}
