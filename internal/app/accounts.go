package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jetpost/jetpost"
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

func (l ImportLine) validate() error {
	var errs []error
	if jetpost.CheckAccount(l.Name) != nil {
		// It is not repeated: it may be a token in the wrong place.
		errs = append(errs, errors.New("name: use 1 to 63 of a-z 0-9 _ -"))
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

// Import asks X whose tokens these are, keeps them, and wakes the account's
// lane, which may have waited for them. Tokens that were imported before change
// nothing. That an account has recovered is told by the workers.
func (im *Importer) Import(ctx context.Context, line ImportLine) (Imported, error) {
	if err := line.validate(); err != nil {
		return Imported{}, err
	}
	me, err := im.whose(ctx, line.AccessToken)
	if err != nil {
		var unauthorized *xapi.UnauthorizedError
		if errors.As(err, &unauthorized) {
			return Imported{}, &HintError{
				Err:  fmt.Errorf("X does not accept the access token of %s: %w", line.Name, err),
				Help: "it may have expired: import an account while its access token is alive (two hours), or connect it with: " + connectCommand(line.Name),
			}
		}
		return Imported{}, fmt.Errorf("ask X whose token this is: %w", err)
	}
	imported, err := im.store(ctx, store.Import{
		Name: line.Name, XUserID: me.ID, Username: me.Username, Now: time.Now(),
		Pair: store.Pair{Access: secret.New(line.AccessToken), Refresh: secret.New(line.RefreshToken), ExpiresAt: line.ExpiresAt},
	})
	help := ""
	switch {
	case err == nil && imported.Result == store.TokenUnchanged:
		return imported, nil
	case err == nil:
		return imported, im.wake(ctx, line.Name)
	case errors.Is(err, store.ErrTokenBusy):
		help = "import it again in a moment"
	case errors.Is(err, store.ErrNameTaken):
		help = "choose another name; jetpost accounts list shows who has it"
	case errors.Is(err, store.ErrUserTaken):
		help = "use the name that it has; jetpost accounts list shows it"
	default:
		return Imported{}, fmt.Errorf("store account %s: %w", line.Name, err)
	}
	return Imported{}, &HintError{Err: fmt.Errorf("import %s as @%s: %w", line.Name, me.Username, err), Help: help}
}

// whose asks X whose access token this is.
func (im *Importer) whose(ctx context.Context, accessToken string) (xapi.User, error) {
	client := xapi.New(accessToken, xapi.WithBaseURL(cmp.Or(im.XURL, xapi.DefaultBaseURL)), xapi.WithHTTPClient(&http.Client{Transport: xapi.NewTransport()}))
	return client.Me(ctx)
}

// store keeps the tokens of an account.
func (im *Importer) store(ctx context.Context, in store.Import) (Imported, error) {
	result, err := im.Ledger.ImportAccount(ctx, in)
	if err != nil {
		return Imported{}, err
	}
	return Imported{Name: in.Name, XUserID: in.XUserID, Username: in.Username, Result: result}, nil
}

// wake has a worker read the account's queue, which may have waited for tokens.
func (im *Importer) wake(ctx context.Context, account string) error {
	if err := publishers.NewWakeups(im.NATS.JS, im.NATS.Names).Wake(ctx, account); err != nil {
		return fmt.Errorf("wake lane of %s: %w", account, err)
	}
	return nil
}

// reauthLook bounds the look at whether an account has to be connected again.
const reauthLook = 2 * time.Second

// ReauthRequired tells why an account must be connected again before anything is
// published for it, nil where it need not, or where nobody can tell just now. The
// ledger says so where it is configured, else the last event, for as long as
// events are kept.
func (c Config) ReauthRequired(ctx context.Context, conn *Connection, account string) *jetpost.Reason {
	ctx, stop := context.WithTimeout(ctx, reauthLook)
	defer stop()
	if c.validate(needs{database: true, keys: true}) == nil {
		if ledger, err := c.OpenStore(ctx); err == nil {
			defer func() { _ = ledger.Close() }() // only read from
			if found, err := ledger.Account(ctx, account); err == nil {
				return reauthReason(found.RequiresReauth, found.RefreshError)
			}
		}
	}
	event, known, err := publishers.New(conn.JS, conn.Names).LastAccountEvent(ctx, account)
	if err != nil || !known || event.Account == nil || event.Account.Reason == nil {
		return nil
	}
	return reauthReason(event.Type == jetpost.EventAccountReauthRequired, event.Account.Reason.Detail)
}

func reauthReason(required bool, detail string) *jetpost.Reason {
	if !required {
		return nil
	}
	return &jetpost.Reason{Code: jetpost.CodeAccountReauthRequired, Detail: detail}
}
