package store

import (
	"context"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
)

// Account is an X account and the state of its token.
type Account struct {
	Name      string    `json:"name"`
	XUserID   string    `json:"x_user_id"`
	Username  string    `json:"username"`
	CreatedAt time.Time `json:"created_at"`
	// Open counts its unfinished requests, up to MaxOpen.
	Open           int       `json:"open_requests"`
	TokenExpiresAt time.Time `json:"token_expires_at"`
	// Pause is the account's latest pause, even if it has already ended.
	Pause Pause `json:"pause,omitzero"`
	TokenMeta
}

// Pause keeps an account from posting, because a person wants that or because X refuses
// the account.
type Pause = jetpost.Pause

// MaxOpen bounds how many unfinished requests of an account are counted, so that the
// time to count them is bounded, too.
const MaxOpen = 1000

// TokenMeta is what is known of a token's refreshes, as the row's metadata holds it.
type TokenMeta struct {
	LastRefreshAt   time.Time `json:"lastRefreshAt,omitzero"`
	RefreshError    string    `json:"refreshError,omitempty"`
	RefreshFailedAt time.Time `json:"refreshFailedAt,omitzero"`
	// RequiresReauth is set by a refused grant and by Disconnect. Only connecting the
	// account again ends it.
	RequiresReauth bool `json:"requiresReauth,omitempty"`
}

// Disconnected is the RefreshError of an account that a person has disconnected.
const Disconnected = "disconnected"

// Disconnected reports whether a person has disconnected the account.
func (m TokenMeta) Disconnected() bool { return m.RequiresReauth && m.RefreshError == Disconnected }

// Pair is a token pair as X gives it.
type Pair struct {
	Access    secret.String
	Refresh   secret.String
	ExpiresAt time.Time // of the access token
	Scope     string
}

// RefreshAfter is when half of the lifetime of a pair that came at that time is over.
// It is never before that time; otherwise the pair could become due in a round that was
// opened before.
func (p Pair) RefreshAfter(came time.Time) time.Time {
	return came.Add(max(0, p.ExpiresAt.Sub(came)/2))
}

// Import is an account with its tokens, and the X user that they belong to.
type Import struct {
	Name     string
	XUserID  string
	Username string
	Pair     Pair
	// Consented is set if the pair comes from a consent given a moment ago. Such a
	// consent ends earlier pairs at X, so this pair is stored even while an exchange is
	// under way.
	Consented bool
	Now       time.Time
}

// ImportResult is the result of an Import.
type ImportResult string

// The results of an import.
const (
	AccountCreated ImportResult = "created"
	TokenReplaced  ImportResult = "replaced"
	// TokenUnchanged: this pair was also the last one imported. Refreshes may have
	// spent it since, so the stored pair is as good or better.
	TokenUnchanged ImportResult = "unchanged"
)

// MaxMoved bounds the requests, pruned ones included, of an account that is renamed or
// removed: they are changed in one transaction.
const MaxMoved = 20_000

// Accounts stores the accounts.
type Accounts interface {
	// ImportAccount creates the account with its lane and token, or replaces the token
	// of the same X user and ends its requests' wait for that (EndHolds with
	// account_reauth_required and account_scope_missing). A pair whose refresh token
	// was the last one imported replaces nothing, even if the account requires
	// re-authorising: a spent token cannot help.
	//
	// Errors: ErrNameTaken; ErrUserTaken; ErrTokenBusy while a live lease holds a token
	// that would be replaced, unless in is Consented; *KeyError if no configured key
	// opens the stored pair, because it can be opened again once the key is back;
	// *DamagedError if the row is damaged and the pair is the one that was imported
	// last. Another pair replaces a damaged one.
	ImportAccount(ctx context.Context, in Import) (ImportResult, error)
	// Account returns one account, or ErrNotFound.
	Account(ctx context.Context, name string) (Account, error)
	// Accounts returns all accounts by name.
	Accounts(ctx context.Context) ([]Account, error)
	// RenameAccount gives an account another name. Its lane, token, links and requests go
	// with it, so that an id which has posted posts nothing under the new name, and API
	// tokens name it as before. Errors: ErrNotFound; ErrNameTaken, also if requests are
	// left of an account that had the name; ErrUnfinished; ErrAccountBusy;
	// ErrManyRequests.
	RenameAccount(ctx context.Context, name, to string, now time.Time) error
	// RemoveAccount forgets an account that is not connected. Of its requests the
	// identities stay, as if they were pruned: an account of that name that is connected
	// later posts none of them again. Errors: ErrNotFound; ErrConnected;
	// ErrUnfinished; ErrAccountBusy; ErrManyRequests.
	RemoveAccount(ctx context.Context, name string, now time.Time) error
	// AccountsAfter returns up to limit accounts by name, those behind a name.
	AccountsAfter(ctx context.Context, after string, limit int) ([]Account, error)
}
