package store

import (
	"context"
	"errors"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
)

// ErrOperationReused says that the id of an operation was used for another one.
var ErrOperationReused = errors.New("operation id was used for another operation")

// Operation is a change that somebody asks for under an id of their own: asked for again
// it does nothing, and is answered as it was.
type Operation struct {
	// ID is the asker's. Without one the change is made whenever it is asked for.
	ID string
	// Digest tells it from another operation with the same id.
	Digest []byte
	Now    time.Time
	// Name, Account and Target say what it is and what it concerns. Without a name it is a
	// part of others, and not told by itself.
	Name            jetpost.Operation
	Account, Target string
}

// Audit is what is told of the operation.
func (o Operation) Audit(actor, outcome string) Audit {
	return Audit{At: o.Now.UTC().Truncate(time.Millisecond), Actor: actor, Operation: o.Name, Account: o.Account, Target: o.Target, Outcome: outcome}
}

// Changes is what an operation can do to the ledger in one transaction. Each is as it is
// in [Store]; one that fails leaves nothing of its own behind.
type Changes interface {
	Request(ctx context.Context, key Key) (Record, error)
	Cancel(ctx context.Context, key Key, now time.Time) (jetpost.State, error)
	Reschedule(ctx context.Context, key Key, at, now time.Time) (jetpost.State, error)
	Resolve(ctx context.Context, key Key, postID string, now time.Time) (jetpost.State, error)
	Reconcile(ctx context.Context, key Key, now time.Time) error
	Replay(ctx context.Context, key Key, now time.Time) (ReplayResult, error)
	Unpublish(ctx context.Context, key Key, now time.Time) (jetpost.State, error)

	Account(ctx context.Context, name string) (Account, error)
	ImportAccount(ctx context.Context, in Import) (ImportResult, error)
	PauseAccount(ctx context.Context, account string, pause Pause) error
	ResumeAccount(ctx context.Context, account string, now time.Time) (Pause, error)
	Disconnect(ctx context.Context, account string, now time.Time) (Token, error)
	RenameAccount(ctx context.Context, name, to string, now time.Time) error
	RemoveAccount(ctx context.Context, name string, now time.Time) error

	MonthSpent(ctx context.Context, account string, now time.Time) (Spent, error)
	LimitMonth(ctx context.Context, account string, micros int64, now time.Time) error
	ForgetBilled(ctx context.Context, now time.Time) error

	Desired(ctx context.Context) ([]Desired, error)
	Keep(ctx context.Context, k Desired) (bool, error)

	AddLink(ctx context.Context, link NewLink) error
	BeginAttempt(ctx context.Context, id string, attempt LinkAttempt) (Link, error)
	TakeAttempt(ctx context.Context, state, browser []byte, lease time.Duration, now time.Time) (Link, secret.String, error)
	UseLink(ctx context.Context, id string, now time.Time) error

	AddAPIToken(ctx context.Context, token APIToken) error
	RevokeAPIToken(ctx context.Context, name string, now time.Time) (APIToken, error)

	AddUser(ctx context.Context, user User) error
	SetUser(ctx context.Context, name string, role jetpost.Role, passwordHash string, now time.Time) (User, error)
	RemoveUser(ctx context.Context, name string) (User, error)
	AddSession(ctx context.Context, session Session) error
	EndSession(ctx context.Context, digest []byte) (Session, error)
	ForgiveAttempts(ctx context.Context, keys [][]byte) error

	AddAudit(ctx context.Context, audit Audit) error
	Hooks(ctx context.Context) ([]Hook, error)
	AddHook(ctx context.Context, hook Hook, secret secret.String) error
	RemoveHook(ctx context.Context, id string) (Hook, error)
	EnableHook(ctx context.Context, id string) (Hook, error)

	BeginErase(ctx context.Context, account string, now time.Time) (Erasing, error)
}

// Operations does what is asked for once.
type Operations interface {
	// Operate makes a change and keeps its answer for 7 days, in one
	// transaction. Where an operation of that id was done before, it makes none, and
	// returns the answer to that one and true. An error of the change is returned as it
	// is, and nothing of it is kept. Of several at once with one id one makes the change,
	// and the others wait for it. ErrOperationReused: the one that was done was another.
	Operate(ctx context.Context, op Operation, change func(context.Context, Changes) ([]byte, error)) (answer []byte, repeated bool, err error)
	// AnswerOperation replaces the answer to an operation that was done, for what became
	// of it after its transaction. ErrNotFound.
	AnswerOperation(ctx context.Context, id string, answer []byte) error
}
