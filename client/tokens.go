package client

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"regexp"

	"github.com/jetpost/jetpost"
)

const (
	tokenPrefix = "jp_"
	// secretBytes is how much of a token nobody can guess.
	secretBytes = 32
)

// tokenPattern is a token: its name, and a secret.
var tokenPattern = regexp.MustCompile(`^jp_([a-z0-9-]{1,64})_[A-Za-z0-9_-]{43}$`)

// NewToken makes an API token of that name. TokenCreate makes its digest known; the token
// itself is known to its holder alone.
func NewToken(name string) (token, digest string) {
	secret := make([]byte, secretBytes)
	_, _ = rand.Read(secret) // never fails: it ends the program instead
	token = tokenPrefix + name + "_" + base64.RawURLEncoding.EncodeToString(secret)
	return token, digestOf(token)
}

// ReadToken returns the name and the digest of an API token; false where it is none.
func ReadToken(token string) (name, digest string, ok bool) {
	parts := tokenPattern.FindStringSubmatch(token)
	if parts == nil {
		return "", "", false
	}
	return parts[1], digestOf(token), true
}

func digestOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// TokenCreate makes an API token of [NewToken] known.
func (c *Client) TokenCreate(ctx context.Context, in jetpost.TokenCreate) (jetpost.APIToken, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.APIToken](ctx, c, jetpost.OpTokenCreate, "", in)
}

// TokenList returns a page of API tokens, by name.
func (c *Client) TokenList(ctx context.Context, in jetpost.TokenList) (jetpost.TokenPage, error) {
	return call[jetpost.TokenPage](ctx, c, jetpost.OpTokenList, "", in)
}

// TokenRevoke ends an API token now.
func (c *Client) TokenRevoke(ctx context.Context, in jetpost.TokenRevoke) (jetpost.APIToken, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.APIToken](ctx, c, jetpost.OpTokenRevoke, "", in)
}

// TokenCheck tells whether an API token allows an operation. Where it does not the error's
// code is unauthenticated or forbidden.
func (c *Client) TokenCheck(ctx context.Context, in jetpost.TokenCheck) (jetpost.APIToken, error) {
	return call[jetpost.APIToken](ctx, c, jetpost.OpTokenCheck, "", in)
}
