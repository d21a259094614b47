package store

import (
	"context"
	"errors"
	"time"
)

// ErrPruned says that the request finished so long ago that only its identity is left.
var ErrPruned = errors.New("request was pruned")

// MinKeepFinished is the shortest time for which finished requests may be kept: posting
// limits, the search for equal texts and the reconciliation of posts read those of the
// last days.
const MinKeepFinished = 7 * 24 * time.Hour

// Retention removes what finished long ago.
type Retention interface {
	// Prunable looks at a page of requests, without a lock, and returns those that
	// finished before a time and can be pruned. It leaves out what still has something to
	// tell or to do: a change that is not announced, a deletion that is not done, a post
	// that may be live, and the request of the account's latest live post (its anchor post).
	Prunable(ctx context.Context, page PrunePage) (Prunable, error)
	// Prune replaces requests of one account by their identities: those that can still be
	// pruned. It passes them over if the account's lane is locked. If it would hold its
	// locks longer than 60 ms, it is taken back, with *UnavailableError.
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
