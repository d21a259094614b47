package control

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// tokenName is the name of an API token.
var tokenName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// TokenCreate makes an API token known, whose secret stays with its maker.
func (c *Control) TokenCreate(ctx context.Context, in jetpost.TokenCreate) (jetpost.APIToken, error) {
	op, err := call(jetpost.OpTokenCreate, "", in.OperationID, in)
	if err != nil {
		return jetpost.APIToken{}, err
	}
	token, err := readToken(in, op.Now)
	if err != nil {
		return jetpost.APIToken{}, &Error{Code: jetpost.ErrInvalid, Err: err}
	}
	answer, _, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.APIToken, error) {
		err := ledger.AddAPIToken(ctx, token)
		if errors.Is(err, store.ErrAPITokenExists) {
			return jetpost.APIToken{}, conflict("choose another name; a name is free 30 days after its token's end", "API token %s: there is one", in.Name)
		}
		return tokenOf(token), err
	})
	return answer, err
}

// readToken holds a token that is to be made to the contract.
func readToken(in jetpost.TokenCreate, now time.Time) (store.APIToken, error) {
	digest, err := hex.DecodeString(in.Digest)
	switch {
	case !tokenName.MatchString(in.Name):
		return store.APIToken{}, fmt.Errorf("name: is %q, want 1 to 64 of a-z 0-9 -", in.Name)
	case err != nil || len(digest) != sha256.Size:
		return store.APIToken{}, errors.New("digest: is not the SHA-256 of a token in hexadecimal digits")
	case len(in.Accounts) == 0 || len(in.Accounts) > jetpost.MaxTokenAccounts:
		return store.APIToken{}, fmt.Errorf("accounts: are %d, want 1 to %d, or * for all", len(in.Accounts), jetpost.MaxTokenAccounts)
	case len(in.Verbs) == 0:
		return store.APIToken{}, fmt.Errorf("verbs: are none, want some of %v", jetpost.Verbs())
	case !in.ExpiresAt.After(now) || in.ExpiresAt.Sub(now) > jetpost.MaxTokenLife:
		return store.APIToken{}, errors.New("expires_at: is not within 5 years from now")
	}
	for _, account := range in.Accounts {
		if account == jetpost.AllAccounts && len(in.Accounts) == 1 {
			continue
		}
		if err := jetpost.CheckAccount(account); err != nil {
			return store.APIToken{}, fmt.Errorf("accounts: %w", err)
		}
	}
	for _, verb := range in.Verbs {
		if !slices.Contains(jetpost.Verbs(), verb) {
			return store.APIToken{}, fmt.Errorf("verbs: %q is none of %v", verb, jetpost.Verbs())
		}
	}
	return store.APIToken{
		Name: in.Name, Digest: digest, Accounts: in.Accounts, Verbs: in.Verbs,
		CreatedAt: now.UTC().Truncate(time.Second), ExpiresAt: in.ExpiresAt.UTC().Truncate(time.Second),
	}, nil
}

// tokenOf is a token as the contract has it.
func tokenOf(t store.APIToken) jetpost.APIToken {
	return jetpost.APIToken{
		Name: t.Name, Accounts: t.Accounts, Verbs: t.Verbs, CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt, RevokedAt: t.RevokedAt,
	}
}

// TokenList returns a page of API tokens, by name.
func (c *Control) TokenList(ctx context.Context, in jetpost.TokenList) (jetpost.TokenPage, error) {
	page := jetpost.TokenPage{Tokens: []jetpost.APIToken{}}
	var after string
	if err := readCursor(in.Cursor, &after); err != nil {
		return page, err
	}
	tokens, err := c.Ledger.APITokens(ctx)
	if err != nil {
		return page, DatabaseError(err)
	}
	tokens = slices.DeleteFunc(tokens, func(t store.APIToken) bool { return t.Name <= after })
	tokens, page.Next = cut(tokens, in.Limit, func(t store.APIToken) string { return t.Name })
	for _, t := range tokens {
		page.Tokens = append(page.Tokens, tokenOf(t))
	}
	return page, nil
}

// TokenRevoke ends an API token now.
func (c *Control) TokenRevoke(ctx context.Context, in jetpost.TokenRevoke) (jetpost.APIToken, error) {
	op, err := call(jetpost.OpTokenRevoke, "", in.OperationID, in)
	if err != nil {
		return jetpost.APIToken{}, err
	}
	answer, _, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.APIToken, error) {
		token, err := ledger.RevokeAPIToken(ctx, in.Name, op.Now.UTC().Truncate(time.Second))
		if errors.Is(err, store.ErrNotFound) {
			return jetpost.APIToken{}, &Error{Code: jetpost.ErrNotFound, Err: fmt.Errorf("API token %s: %w", in.Name, store.ErrNotFound), Help: "see the names with: jetpost tokens list"}
		}
		return tokenOf(token), err
	})
	return answer, err
}

// TokenCheck tells whether an API token allows an operation. A wrong token learns nothing
// of the one whose name it has, neither by the answer nor by its time.
func (c *Control) TokenCheck(ctx context.Context, in jetpost.TokenCheck) (jetpost.APIToken, error) {
	token, err := c.Ledger.APIToken(ctx, in.Name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return jetpost.APIToken{}, DatabaseError(err)
	}
	given, err := hex.DecodeString(in.Digest)
	switch {
	case err != nil || len(token.Digest) == 0 || subtle.ConstantTimeCompare(token.Digest, given) != 1:
		return jetpost.APIToken{}, &Error{Code: jetpost.ErrUnauthenticated, Err: errors.New("there is no such API token"), Help: "make one with: jetpost tokens create"}
	case !token.Live(time.Now()):
		return jetpost.APIToken{}, &Error{
			Code: jetpost.ErrUnauthenticated, Err: fmt.Errorf("API token %s has ended or was revoked", token.Name), Help: "make another one with: jetpost tokens create",
		}
	case !token.Allows(in.Operation, in.Account):
		return jetpost.APIToken{}, &Error{Code: jetpost.ErrForbidden, Err: fmt.Errorf("API token %s does not allow %s here", token.Name, in.Operation), Help: "see what it allows with: jetpost tokens list"}
	}
	return tokenOf(token), nil
}
