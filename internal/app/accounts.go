package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"time"

	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// ImportLine is one account to import, as a JSON line gives it.
type ImportLine struct {
	Name         string    `json:"name"`
	AccessToken  string    `json:"access_token"`
	RefreshToken string    `json:"refresh_token"`
	ExpiresAt    time.Time `json:"expires_at"`
}

var accountName = regexp.MustCompile(`^[a-z0-9_-]{1,63}$`)

func (l ImportLine) validate() error {
	var errs []error
	if !accountName.MatchString(l.Name) {
		errs = append(errs, fmt.Errorf("name %q: use 1 to 63 of a-z 0-9 _ -", l.Name))
	}
	if l.AccessToken == "" {
		errs = append(errs, errors.New("access_token: is missing"))
	}
	if l.RefreshToken == "" {
		errs = append(errs, errors.New("refresh_token: is missing; ask for the scope offline.access"))
	}
	if l.ExpiresAt.IsZero() {
		errs = append(errs, errors.New("expires_at: is missing; it is when the access token ends, for example 2026-12-01T09:00:00Z"))
	}
	return errors.Join(errs...)
}

// Importer brings accounts into the ledger.
type Importer struct {
	Ledger store.Accounts
	NATS   *Connection
	XURL   string // xapi.DefaultBaseURL where empty
}

// Imported is an account that was imported.
type Imported struct {
	Name     string `json:"name"`
	XUserID  string `json:"x_user_id"`
	Username string `json:"username"`
	// Result is created, replaced (the account was known, its tokens are new)
	// or unchanged (it has these tokens, or newer ones that came of them).
	Result store.ImportResult `json:"result"`
}

// Import asks X whose tokens these are, keeps them, and rings the account's
// lane, which may have waited for them. Tokens that were imported before change
// nothing. That an account has recovered is told by the workers.
func (im *Importer) Import(ctx context.Context, line ImportLine) (Imported, error) {
	if err := line.validate(); err != nil {
		return Imported{}, err
	}
	client := xapi.New(line.AccessToken, xapi.WithBaseURL(cmp.Or(im.XURL, xapi.DefaultBaseURL)), xapi.WithHTTPClient(&http.Client{Transport: xapi.NewTransport()}))
	me, err := client.Me(ctx)
	if err != nil {
		var unauthorized *xapi.UnauthorizedError
		if errors.As(err, &unauthorized) {
			return Imported{}, &HintError{
				Err:  fmt.Errorf("X does not accept the access token of %s: %w", line.Name, err),
				Help: "it may have expired: import an account while its access token is alive (two hours), or authorise it again",
			}
		}
		return Imported{}, fmt.Errorf("ask X whose token this is: %w", err)
	}
	result, err := im.Ledger.ImportAccount(ctx, store.Import{
		Name: line.Name, XUserID: me.ID, Username: me.Username, Now: time.Now(),
		Pair: store.Pair{Access: secret.New(line.AccessToken), Refresh: secret.New(line.RefreshToken), ExpiresAt: line.ExpiresAt},
	})
	switch {
	case errors.Is(err, store.ErrTokenBusy):
		return Imported{}, &HintError{
			Err:  fmt.Errorf("import %s as @%s: %w", line.Name, me.Username, err),
			Help: "import it again in a moment",
		}
	case errors.Is(err, store.ErrNameTaken):
		return Imported{}, &HintError{
			Err:  fmt.Errorf("import %s as @%s: %w", line.Name, me.Username, err),
			Help: "choose another name; jetpost accounts list shows who has it",
		}
	case errors.Is(err, store.ErrUserTaken):
		return Imported{}, &HintError{
			Err:  fmt.Errorf("import %s as @%s: %w", line.Name, me.Username, err),
			Help: "use the name that it has; jetpost accounts list shows it",
		}
	case err != nil:
		return Imported{}, fmt.Errorf("store account %s: %w", line.Name, err)
	}
	imported := Imported{Name: line.Name, XUserID: me.ID, Username: me.Username, Result: result}
	if result == store.TokenUnchanged {
		return imported, nil
	}
	if err := publishers.NewBells(im.NATS.JS, im.NATS.Names).Ring(ctx, line.Name); err != nil {
		return Imported{}, fmt.Errorf("ring lane of %s: %w", line.Name, err)
	}
	return imported, nil
}
