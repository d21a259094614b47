package rules

import (
	"crypto/sha256"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// MaxErasedIdentities bounds the pruned requests that one transaction erases.
const MaxErasedIdentities = 1000

// ErasedIdentity is what is kept of the identity of a request whose account was erased.
func ErasedIdentity(key store.Key) []byte {
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
func WithoutAccount(t store.APIToken, account string) (rest []string, had bool) {
	for _, a := range t.Accounts {
		if a == account {
			had = true
		} else {
			rest = append(rest, a)
		}
	}
	return rest, had
}
