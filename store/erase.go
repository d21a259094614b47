package store

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/jetpost/jetpost"
)

// MaxErasedIdentities bounds the pruned requests that one transaction erases.
const MaxErasedIdentities = 1000

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
	// MaxErasedIdentities of these, and where requests are left: call it again. ErrFenced.
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

// ErasedIdentity is what is kept of the identity of a request whose account was erased.
func ErasedIdentity(key Key) []byte {
	sum := sha256.Sum256([]byte("jetpost erased 1\x00" + key.Account + "\x00" + key.ID))
	return sum[:]
}

// ErasedState is the state that is kept with it.
func ErasedState(state jetpost.State) jetpost.State {
	if state.Finished() {
		return state
	}
	return jetpost.StateCancelled
}

// ErasedAnswer replaces the answer to an operation that tells of an erased account.
const ErasedAnswer = `{"error":{"code":"conflict","detail":"the account of this operation was erased since"}}`

// AnswersOf are texts by which the answers that tell of an account are found.
func AnswersOf(account string) []string {
	return []string{`"account":"` + account + `"`, `"name":"` + account + `","x_user_id"`}
}

// WithoutAccount are the accounts of an API token but for one; false if that is not among
// them.
func (t APIToken) WithoutAccount(account string) (rest []string, had bool) {
	for _, a := range t.Accounts {
		if a == account {
			had = true
		} else {
			rest = append(rest, a)
		}
	}
	return rest, had
}
