package control

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// Error says why an operation was not done.
type Error struct {
	Code jetpost.ErrorCode
	Err  error
	Help string
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Hint tells what to do.
func (e *Error) Hint() string { return e.Help }

// AmbiguousError says that requests of several accounts have the id.
type AmbiguousError struct {
	ID       string
	Accounts []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("several accounts have a request %s: %s", e.ID, strings.Join(e.Accounts, ", "))
}

// Hint tells the operator how to name one.
func (e *AmbiguousError) Hint() string { return "name one with --account" }

// conflict says that the state of what an operation is about does not allow it.
func conflict(help, format string, args ...any) error {
	return &Error{Code: jetpost.ErrConflict, Err: fmt.Errorf(format, args...), Help: help}
}

// accountError names an account that is not there.
func accountError(name string, err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return &Error{Code: jetpost.ErrNotFound, Err: fmt.Errorf("account %s: %w", name, store.ErrNotFound), Help: "see the names with: jetpost accounts list"}
	}
	return DatabaseError(err)
}

// DatabaseError tells what to do about an error of the ledger that tells nothing of that.
func DatabaseError(err error) error {
	if err == nil || publishers.Hint(err) != "" {
		return err
	}
	code := jetpost.ErrInternal
	switch {
	case errors.Is(err, store.ErrOperationReused):
		return &Error{Code: jetpost.ErrOperationReused, Err: err, Help: "give each change an operation_id of its own, and keep it for its repeats"}
	case store.Unavailable(err), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		code = jetpost.ErrUnavailable
	}
	return &Error{Code: code, Err: err, Help: "check DATABASE_URL, and that the database runs and lets you in"}
}

// APIError is an error as the contract has it.
func APIError(err error) *jetpost.APIError {
	var (
		told      *jetpost.APIError
		own       *Error
		ambiguous *AmbiguousError
		invalid   *jetpost.InvalidError
		refresh   *RefreshFailedError
	)
	if errors.As(err, &told) {
		return told
	}
	is := &jetpost.APIError{Code: jetpost.ErrInternal, Detail: oneLine(err), Help: publishers.Hint(err)}
	switch {
	case errors.As(err, &own):
		is.Code = own.Code
	case errors.As(err, &ambiguous):
		is.Code, is.Accounts = jetpost.ErrAmbiguous, ambiguous.Accounts
	case errors.As(err, &invalid):
		is.Code, is.Problems = jetpost.ErrInvalid, invalid.Problems
	case errors.As(err, &refresh):
		is.Code = jetpost.ErrRefreshFailed
	case errors.Is(err, store.ErrOperationReused):
		is.Code = jetpost.ErrOperationReused
	case errors.Is(err, store.ErrNotFound):
		is.Code = jetpost.ErrNotFound
	case errors.Is(err, ErrStillWaiting):
		is.Code = jetpost.ErrStillWaiting
	case store.Unavailable(err), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), awayNATS(err):
		is.Code = jetpost.ErrUnavailable
	}
	return is
}

// awayNATS tells a NATS that does not answer, or does not take what it is told.
func awayNATS(err error) bool {
	return errors.As(err, new(*publishers.NoAnswerError)) || errors.As(err, new(*publishers.QueueFullError)) ||
		errors.As(err, new(*publishers.NotSetUpError)) || errors.As(err, new(*publishers.NoJetStreamError))
}

// oneLine keeps what is told one line.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
