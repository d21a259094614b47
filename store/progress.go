package store

import (
	"context"
	"time"

	"github.com/jetpost/jetpost"
)

const (
	// MaxCounted bounds what CountRequests counts of one state, so that its duration is
	// bounded, too.
	MaxCounted = 100_000 // requests
	// MaxProgress bounds each count of a Progress.
	MaxProgress = 1000
)

// Desired is an entry of the desired state of NATS: an app pause or the refresh
// schedule. NATS holds a copy, which may be lost or replaced. The ledger's entry is the
// truth.
type Desired struct {
	Name    string
	Value   []byte
	Version int64 // grows with every change; 0 in an entry that is stored for the first time
}

// Standing is an account that posts nothing at present.
type Standing struct {
	Account string
	Reauth  bool  // it must be connected again
	Pause   Pause // if it holds, else the zero value
}

// BlockedQueue is an account whose queue does not move until a person acts.
type BlockedQueue struct {
	Key     // the first such request
	State   jetpost.State
	Code    jetpost.Code
	Waiting int // how many are due in the queue, including that one; at most MaxProgress
}

// Holder is a worker that holds lanes.
type Holder struct {
	Worker string
	Lanes  int
}

// Progress says what has moved in the ledger and what has not. The time to read it
// grows with the number of accounts, not with the backlog.
type Progress struct {
	Accounts int
	Standing []Standing // by name
	// DueSince is when the oldest lane that is due and that no worker holds fell due,
	// and DueAccount is its account; zero if there is none.
	DueAccount string
	DueSince   time.Time
	// Holders are the workers that hold lanes, by name.
	Holders []Holder
	// AcceptedAt, PostedAt: the latest request, the intent of the latest live post.
	AcceptedAt time.Time
	PostedAt   time.Time
	// UntoldSince is the oldest change whose event is not known to be published.
	UntoldSince time.Time
	// Refused counts the messages refused within the last hour, up to MaxProgress.
	Refused int
	// LateRequests counts the requests of which nothing was sent though they were due
	// at lateBefore, up to MaxProgress. LateSince is when the first of them was due.
	LateRequests int
	LateSince    time.Time
	// Blocked are the accounts that wait for a person, up to the limit asked for, those
	// with a post in doubt first. BlockedAccounts counts all of them.
	Blocked         []BlockedQueue
	BlockedAccounts int
}

// ProgressQuery asks for a Progress.
type ProgressQuery struct {
	Now        time.Time
	LateBefore time.Time
	Blocked    int // how many accounts to name
}

// Upkeep is the part of the ledger that the maintenance of an installation needs.
type Upkeep interface {
	// Desired returns the whole desired state, by name.
	Desired(ctx context.Context) ([]Desired, error)
	// Keep stores a value in place of the one with its version. It returns false if
	// another version is stored by now.
	Keep(ctx context.Context, k Desired) (bool, error)
	// Progress returns what has moved and what has not.
	Progress(ctx context.Context, q ProgressQuery) (Progress, error)
	// Pools tells how the connections to the database stand. It asks nobody.
	Pools() []Pool
}
