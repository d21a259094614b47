package store

import (
	"context"
	"time"

	"github.com/jetpost/jetpost"
)

// Notice is a change that an event must report: the account requires re-authorising, or
// no longer does.
type Notice struct {
	Account  string
	Required bool
	Error    string // why it is required
	Version  int64
	At       time.Time
}

// PauseChange is the latest change of an account's pause, which an event must report.
// Account, event and time identify it.
type PauseChange struct {
	Account string
	Event   jetpost.EventType
	// Reason is that of a pause that holds; zero if the pause was ended.
	Reason jetpost.Reason
	At     time.Time
}

// Revision names one state of a request.
type Revision struct {
	Key
	Number int64
}

// Outbox is what was committed and not published yet: changes of requests, of accounts'
// pauses and of tokens.
type Outbox interface {
	// OutboxPending returns up to limit requests whose latest revision is older than
	// before and has no published event.
	OutboxPending(ctx context.Context, before time.Time, limit int) ([]Key, error)
	// MarkDelivered records the revision whose event was published. It returns false if
	// the request has a newer revision, whose event must be published then. A revision
	// that only says that an accepted request began to be sent needs no event and is
	// marked, too.
	MarkDelivered(ctx context.Context, key Key, revision int64) (bool, error)
	// MarkManyDelivered is MarkDelivered for many requests. It returns those whose
	// marked revision may not be the latest.
	MarkManyDelivered(ctx context.Context, told []Revision) (rest []Key, err error)
	// PauseChanges returns up to limit pause changes that no event has reported yet,
	// the last one of each account: of one account, or of all if account is "".
	PauseChanges(ctx context.Context, account string, limit int) ([]PauseChange, error)
	// MarkPauseChangeTold deletes a change that an event has reported. A later change
	// stays.
	MarkPauseChangeTold(ctx context.Context, change PauseChange) error
	// Notices returns up to limit changes that no event has reported yet, of one
	// account, or of all if account is "".
	Notices(ctx context.Context, account string, limit int) ([]Notice, error)
	// MarkNoticed records that a notice was published. A change in between becomes a
	// notice of its own.
	MarkNoticed(ctx context.Context, notice Notice) error
}
