package control

import (
	"context"
	"fmt"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// PrunedError says that only the identity of a request is left.
type PrunedError struct{ Record store.Record }

func (e *PrunedError) Error() string {
	return fmt.Sprintf("request %s of account %s is %s, and was pruned: its body and its posts are no longer stored",
		e.Record.ID, e.Record.Account, e.Record.Status.State)
}
func (e *PrunedError) Unwrap() error { return store.ErrPruned }

// Hint tells the operator what to do.
func (*PrunedError) Hint() string {
	return "send a new request under another id; finished requests are kept for --keep-finished"
}

// findPruned finds what is left of a pruned request. notFound is its error if there is none.
func findPruned(ctx context.Context, ledger store.Retention, account, id string, notFound error) error {
	left, err := ledger.PrunedRequests(ctx, account, id)
	switch {
	case err != nil:
		return DatabaseError(err)
	case len(left) == 0:
		return notFound
	case len(left) > 1:
		ambiguous := &AmbiguousError{ID: id}
		for _, r := range left {
			ambiguous.Accounts = append(ambiguous.Accounts, r.Account)
		}
		return ambiguous
	}
	pruned := &PrunedError{Record: left[0]}
	return &Error{Code: jetpost.ErrConflict, Err: pruned, Help: pruned.Hint()}
}
