package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"github.com/jetpost/jetpost"
)

// ErrPruned says that the request finished so long ago that only its identity is left.
var ErrPruned = errors.New("request was pruned")

// MinKeepFinished is the shortest time for which finished requests may be kept: posting
// limits, the search for equal texts and the reconciliation of posts read those of the
// last days.
const MinKeepFinished = 7 * 24 * time.Hour

// PruneHold bounds each statement of a batch of Prune that holds locks.
const PruneHold = 60 * time.Millisecond

// Retention removes what finished long ago.
type Retention interface {
	// Prunable looks at a page of requests, without a lock, and returns those that
	// finished before a time and can be pruned. It leaves out what still has something to
	// tell or to do: a change that is not announced, a deletion that is not done, a post
	// that may be live, and the request of the account's latest live post (its anchor post).
	Prunable(ctx context.Context, page PrunePage) (Prunable, error)
	// Prune replaces requests of one account by their identities: those that can still be
	// pruned. It passes them over if the account's lane is locked. If it would hold its
	// locks longer than PruneHold, it is taken back, with *UnavailableError.
	Prune(ctx context.Context, account string, ids []string, finishedBefore time.Time) (Pruned, error)
	// PrunedRequests returns what is left of pruned requests of that id: of one account
	// or, with "", of all.
	PrunedRequests(ctx context.Context, account, id string) ([]Record, error)
	// MediaUsers calls see with the account and the body of each request that is
	// unfinished, or failed and can be replayed, and that may name a media object; all as
	// of one moment.
	MediaUsers(ctx context.Context, see func(account string, body []byte)) error
}

// PrunePlace is a place in the order in which requests are looked at: of acceptance. The
// zero value is before the first one.
type PrunePlace struct {
	AcceptedAt time.Time
	Seq        int64
	Account    string
}

// PrunePage says what one call of Prunable looks at.
type PrunePage struct {
	FinishedBefore time.Time
	After          PrunePlace
	Limit          int // requests that are looked at
}

// Prunable is what a page came to.
type Prunable struct {
	Keys []Key
	// Next is where the next page begins; Done tells that there is none.
	Next PrunePlace
	Done bool
}

// Pruned is what a call of Prune came to.
type Pruned struct {
	Requests int
	Busy     bool // the lane was locked, and nothing was done
	// Held is how long the locks were held.
	Held time.Duration
}

// DigestKept is how many bytes of a pruned request's digest are kept: enough that no
// other body has the same ones.
const DigestKept = 16

// PrunedRow is the row of a request of which only this is left.
func PrunedRow(key Key, digest []byte, status jetpost.RequestStatus) *Row {
	return &Row{Record: Record{Key: key, Pruned: true, Event: finalEvent(status.State), Delivered: status.Revision, Status: status}, Digest: digest}
}

func finalEvent(state jetpost.State) jetpost.EventType {
	switch state {
	case jetpost.StatePublished:
		return jetpost.EventRequestPublished
	case jetpost.StateFailed:
		return jetpost.EventRequestFailed
	default:
		return jetpost.EventRequestCancelled
	}
}

// repeats tells whether an acceptance is of the body that the pruned request had. One
// that no worker could read has the digest of its bytes.
func (r *Row) repeats(in Acceptance) bool {
	raw := sha256.Sum256(in.Body)
	if len(r.Digest) == 0 { // its body was lost before
		return true
	}
	return bytes.Equal(r.Digest, keptDigest(in.Digest)) || bytes.Equal(r.Digest, keptDigest(raw[:]))
}

func keptDigest(digest []byte) []byte { return digest[:min(len(digest), DigestKept)] }
