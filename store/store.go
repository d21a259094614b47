package store

import (
	"context"
	"errors"
	"time"
)

var (
	// ErrNotFound says that no such account, request, token, user or session is known.
	ErrNotFound = errors.New("not found")
	// ErrFenced says that another worker has taken the lane or the token since it was
	// claimed. The caller stops at once and writes nothing more.
	ErrFenced = errors.New("taken over by another worker")
	// ErrNotRunnable says that the request is no longer one that may be
	// posted, for instance because it was cancelled.
	ErrNotRunnable = errors.New("request is not runnable")
	// ErrExpired says that the request expires before it would be published.
	ErrExpired = errors.New("request expires before that time")
	// ErrNameTaken says that the account name belongs to another X user.
	ErrNameTaken = errors.New("account name belongs to another X user")
	// ErrUserTaken says that the X user is known under another account name.
	ErrUserTaken = errors.New("X user is known under another account name")
	// ErrAccountBusy says that something of the account is under way, or not told yet.
	ErrAccountBusy = errors.New("something of the account is under way just now")
	// ErrUnfinished says that the account has requests, or deletions, that are not finished.
	ErrUnfinished = errors.New("account has unfinished requests")
	// ErrConnected says that the account's tokens are in use.
	ErrConnected = errors.New("account is connected")
	// ErrManyRequests says that an account has more requests than one change may move.
	ErrManyRequests = errors.New("account has too many requests")
	// ErrTokenBusy says that another worker is exchanging the account's token. The
	// result is not known yet.
	ErrTokenBusy = errors.New("the account's token is being renewed just now")
	// ErrPostTaken says that the post on X is already recorded for another of our
	// posts.
	ErrPostTaken = errors.New("post is recorded for another request")
	// ErrLinkUsed says that the link has already connected an account.
	ErrLinkUsed = errors.New("link was used")
	// ErrLinkExpired says that the link has expired.
	ErrLinkExpired = errors.New("link has expired")
	// ErrLinkBusy says that an account is being connected by the link. The result is
	// not known yet.
	ErrLinkBusy = errors.New("link is being used just now")
	// ErrAttemptOver says that the attempt was finished or has expired.
	ErrAttemptOver = errors.New("attempt is over")
	// ErrOtherBrowser says that another browser began the attempt.
	ErrOtherBrowser = errors.New("attempt was begun by another browser")
)

// Store is everything that a database offers. Handlers take one of the smaller
// interfaces instead, so that each sees only its part.
type Store interface {
	Ledger
	Accounts
	Tokens
	Keys
	Intake
	Lanes
	Control
	Queries
	Outbox
	Links
	Spending
	APITokens
	Users
	Audits
	Hooks
	Erasures
	Upkeep
	Operations
	Retention
	Recovery
}

// Ledger is the database as a whole.
type Ledger interface {
	// LedgerID is a UUID made with the schema. Streams carry it: a worker refuses to
	// start if its database is not the one that the streams belong to.
	LedgerID(ctx context.Context) (string, error)
	// Fits fails with *SchemaError once the schema is one on which this program cannot
	// go on, because a newer one has migrated it since.
	Fits(ctx context.Context) error
	// Clock reads the clock by which leases are judged.
	Clock(ctx context.Context) (time.Time, error)
	// CheckKeys fails with *KeyError when the sealer cannot open what this database
	// holds. The first call on a new database stores a key check value. The value is
	// sealed with the first key once no token needs another key. An older key can be
	// dropped after that, and not before.
	CheckKeys(ctx context.Context) error
	// TryLease takes or renews a named lease for its owner, for work that one worker
	// does for all.
	TryLease(ctx context.Context, name, owner string, d time.Duration, now time.Time) (bool, error)
	// TakeLeases takes or renews the named leases that no other owner holds, and
	// returns those that the owner holds afterwards. A name gets a new fence when its
	// owner changes or when its owner let the lease run out.
	TakeLeases(ctx context.Context, names []string, owner string, d time.Duration, now time.Time) ([]Lease, error)
	// DropLeases ends the owner's leases of those names, so that other workers need not
	// wait for them to run out.
	DropLeases(ctx context.Context, names []string, owner string, now time.Time) error
	Close() error
}

// Lease is a claim of a name. At most one owner holds it. Each owner gets another
// fence, which identifies a write of an earlier owner.
type Lease struct {
	Name, Owner string
	Fence       int64
}
