package store

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
)

// ErrAPITokenExists says that an API token has the name.
var ErrAPITokenExists = errors.New("an API token has that name")

// APIToken is a token with which a program calls operations over HTTP.
type APIToken struct {
	Name     string
	Digest   []byte // SHA-256 of the token, which is stored nowhere
	Accounts []string
	Verbs    []jetpost.Verb
	// CreatedAt, ExpiresAt and, where it was revoked, RevokedAt.
	CreatedAt, ExpiresAt, RevokedAt time.Time
}

// Live tells whether the token opens anything at that time.
func (t APIToken) Live(now time.Time) bool { return t.RevokedAt.IsZero() && now.Before(t.ExpiresAt) }

// Allows tells whether the token may be used for an operation on an account, which is
// empty for any, or for the installation.
func (t APIToken) Allows(o jetpost.Operation, account string) bool {
	verb := o.Verb()
	if verb == "" || !slices.Contains(t.Verbs, verb) {
		return false
	}
	return slices.Contains(t.Accounts, jetpost.AllAccounts) || account != "" && !o.Beyond() && slices.Contains(t.Accounts, account)
}

// APITokens keeps API tokens.
type APITokens interface {
	// AddAPIToken stores a token, whose CreatedAt is now, and forgets those that ended 30
	// days before. ErrAPITokenExists.
	AddAPIToken(ctx context.Context, token APIToken) error
	// RevokeAPIToken ends a token. One that was revoked before stays as it is.
	// ErrNotFound.
	RevokeAPIToken(ctx context.Context, name string, now time.Time) (APIToken, error)
	// APIToken returns a token, live or not, or ErrNotFound.
	APIToken(ctx context.Context, name string) (APIToken, error)
	// APITokens returns all tokens by name.
	APITokens(ctx context.Context) ([]APIToken, error)
}
