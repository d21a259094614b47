package store

import (
	"context"
	"time"

	"github.com/jetpost/jetpost"
)

// Gap is the time of which a database that was restored knows nothing: what was sent from
// Since until Until may be live although it has nothing of it.
type Gap struct{ Since, Until time.Time }

// Rebuilt is what the events tell of a request.
type Rebuilt struct {
	Status jetpost.RequestStatus
	Event  jetpost.EventType
	// Body is the request's own, nil where it is lost.
	Body   []byte
	Digest []byte // of the body
	Gap    Gap
}

// RebuildResult is what became of a Rebuilt.
type RebuildResult string

// The results of a rebuild.
const (
	RebuildKnown    RebuildResult = "known"     // the ledger knew as much
	RebuildUpdated  RebuildResult = "updated"   // it was there, as it stood earlier
	RebuildAdded    RebuildResult = "added"     // it was not there
	RebuildBodyLost RebuildResult = "body_lost" // it was not there, and goes on once it is sent again
)

// Recovery brings a database that was restored up to what is known elsewhere.
type Recovery interface {
	// Rebuild brings a request to where its events left it, or adds it. One that was
	// unfinished and whose body is lost is added as failed, with CodeBodyLost: accepting it
	// again with as many posts gives it its body, and it goes on where it stood.
	// ErrNotFound: no such account.
	Rebuild(ctx context.Context, r Rebuilt) (RebuildResult, error)
	// Doubt has the account's posts on X looked at before the next post of an unfinished
	// request is sent, and again before the one behind it where that one is found. It is
	// false for a request that is not due by the end of the gap: nothing of it was sent.
	// ErrNotRunnable: no worker could read it yet, or it is finished.
	Doubt(ctx context.Context, key Key, gap Gap) (bool, error)
}
