package store

import (
	"context"
	"time"
)

// Erasing is an account that is being erased.
type Erasing struct {
	Account string
	AskedAt time.Time
	// Requests counts the account's requests, Live its posts that are live on X, and
	// Doubtful those that may be.
	Requests, Live, Doubtful int
}

// Erasures removes what is known of accounts whose owners leave. What is left of their
// requests are hashes of their identities.
type Erasures interface {
	// BeginErase notes that an account is to be erased, so that it is known until
	// EndErase, and returns what it has. ErrNotFound: there is no such account, and none
	// is being erased.
	BeginErase(ctx context.Context, account string, now time.Time) (Erasing, error)
	// EraseRequests replaces those requests of an account, whatever their state, by the
	// hashes of their identities, for the holder of its lane. ErrFenced.
	EraseRequests(ctx context.Context, lane Claim, ids []string, now time.Time) error
	// EraseAccount removes the account, its token and its lane, for the holder of that,
	// and pruned requests as EraseRequests does. It returns false after
	// some of these, and where requests are left: call it again. ErrFenced.
	EraseAccount(ctx context.Context, lane Claim, now time.Time) (done bool, err error)
	// EraseRest removes what else names an account: refused messages, links, webhooks,
	// the account in API tokens, and the answers to operations, which say then that the
	// account was erased. It overwrites what was removed, as far as the database does
	// not do so by itself.
	EraseRest(ctx context.Context, account string) error
	// Erasing returns the accounts that are being erased, without counts.
	Erasing(ctx context.Context) ([]Erasing, error)
	// EndErase says that nothing of the account is left.
	EndErase(ctx context.Context, account string) error
}
