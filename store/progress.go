package store

import (
	"context"
	"time"

	"github.com/jetpost/jetpost"
)

const (
	// MaxCounted bounds what CountRequests counts of one state, so that it takes no
	// longer the longer the ledger is.
	MaxCounted = 100_000 // requests
	// MaxProgress bounds each count of a Pulse.
	MaxProgress = 1000
	// ProgressRefusals is how far back a Pulse counts refused messages.
	ProgressRefusals = time.Hour
)

// Desired is something of which NATS holds a copy that may be lost, or replaced by
// others: a app pause, the refresh schedule. What stands here is the truth.
type Desired struct {
	Name    string
	Value   []byte
	Version int64 // grows with every change; 0 in what is to be kept for the first time
}

// Standing is an account that posts nothing as it stands.
type Standing struct {
	Account string
	Reauth  bool  // it must be connected again
	Pause   Pause // in force, else the zero value
}

// BlockedQueue is an account whose line does not move until a person acts.
type BlockedQueue struct {
	Key     // the first such request
	State   jetpost.State
	Code    jetpost.Code
	Waiting int // what is due in the line, with that one; MaxProgress at most
}

// Holder is a worker that holds lanes.
type Holder struct {
	Worker string
	Lanes  int
}

// Progress is what has moved in the ledger, and what has not. Reading it takes a time
// that grows with the accounts, and with no backlog.
type Progress struct {
	Accounts int
	Standing []Standing // by name
	// DueSince is when the oldest lane fell due of those that are due and that no
	// worker holds, and DueAccount is whose; zero where there is none.
	DueAccount string
	DueSince   time.Time
	// Holders are the workers that hold lanes, by name.
	Holders []Holder
	// AcceptedAt, PostedAt: the latest request, the intent of the latest live post.
	AcceptedAt time.Time
	PostedAt   time.Time
	// UntoldSince is the oldest change whose event is not known to be published.
	UntoldSince time.Time
	// Refused counts the messages refused within ProgressRefusals, up to MaxProgress.
	Refused int
	// LateRequests counts those of which nothing was sent though they were due at
	// lateBefore, up to MaxProgress, and LateSince is when the first of them was.
	LateRequests int
	LateSince    time.Time
	// Blocked are the accounts that wait for a person, up to the limit asked for,
	// those with a post in doubt first; BlockedAccounts counts all.
	Blocked         []BlockedQueue
	BlockedAccounts int
}

// Stand takes an account in that may post nothing; paused tells whether its pause is in
// force.
func (p *Progress) Stand(one Standing, paused bool) {
	if !paused {
		one.Pause = Pause{}
	}
	if one.Reauth || paused {
		p.Standing = append(p.Standing, one)
	}
}

// ProgressQuery asks for a Pulse.
type ProgressQuery struct {
	Now        time.Time
	LateBefore time.Time
	Blocked    int // how many accounts to name
}

// Upkeep is what looking after an installation needs of the ledger.
type Upkeep interface {
	// Desired returns everything that is kept, by name.
	Desired(ctx context.Context) ([]Desired, error)
	// Keep stores a value in place of the one with its version. It returns false
	// where another one stands there by now.
	Keep(ctx context.Context, k Desired) (bool, error)
	// Progress returns what has moved and what has not.
	Progress(ctx context.Context, q ProgressQuery) (Progress, error)
}
