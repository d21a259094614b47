package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// storeBound is how long storing the pair of a consent is tried. It is the only pair
// that X accepts from then on.
const storeBound = 30 * time.Second

// Connector makes a consent that an account's owner gave into tokens.
type Connector struct {
	OAuth    *xapi.OAuth
	Importer *Importer
	Tokens   store.Tokens
	// Announce publishes the events of accounts; nil leaves that to the workers.
	Announce interface {
		AnnounceAccounts(ctx context.Context, account string) error
	}
	Log *slog.Logger
}

// AuthorizeURL is the page on which X asks for the consent that Connect takes.
func (c *Connector) AuthorizeURL(state, verifier, redirectURI string) string {
	return c.OAuth.AuthorizeURL(state, verifier, redirectURI, xapi.ConsentScopes())
}

// Connected is the result of Connect.
type Connected struct {
	Imported
	Scope     string    `json:"scope"`
	ExpiresAt time.Time `json:"token_expires_at"`
}

// Connect exchanges the code of a consent for the tokens of the account and stores
// them. An account that had to be connected again goes on.
//
// X ends the user's earlier tokens when it gives new ones, so the new ones must then be
// stored: ctx only cancels the steps before that. It fails
// with *MissingScopesError, with *WrongUserError, or with a wrapped error of xapi;
// each has a Hint.
func (c *Connector) Connect(ctx context.Context, account, code, verifier, redirectURI string) (Connected, error) {
	if err := ctx.Err(); err != nil {
		return Connected{}, err
	}
	if err := jetpost.CheckAccount(account); err != nil {
		return Connected{}, err
	}
	// Check before the exchange that the pair can be stored: X ends the earlier tokens only
	// when it gives new ones.
	if _, err := c.Tokens.Token(ctx, account); err != nil && !errors.Is(err, store.ErrNotFound) && !errors.As(err, new(*store.DamagedError)) {
		return Connected{}, notYetConnected(account, err)
	}
	ctx = context.WithoutCancel(ctx)
	pair, err := c.OAuth.Exchange(ctx, code, verifier, redirectURI)
	if err != nil {
		return Connected{}, exchangeError(account, redirectURI, err)
	}
	if missing := missingScopes(pair); len(missing) > 0 {
		return Connected{}, &MissingScopesError{Account: account, Missing: missing, NotRevoked: consumers.Revoke(ctx, c.OAuth, pair.RefreshToken, pair.AccessToken)}
	}
	me, err := c.Importer.whose(ctx, pair.AccessToken)
	if err != nil {
		return Connected{}, &HintError{
			Err: fmt.Errorf("connect %s: X does not say whose consent this is: nothing was stored%s: %w",
				account, takenBack(consumers.Revoke(ctx, c.OAuth, pair.RefreshToken, pair.AccessToken)), err),
			Help: "once X answers, connect it again with: " + connectCommand(account),
		}
	}
	in := store.Import{
		Name: account, XUserID: me.ID, Username: me.Username, Consented: true, Now: time.Now(),
		Pair: store.Pair{
			Access: secret.New(pair.AccessToken), Refresh: secret.New(pair.RefreshToken), ExpiresAt: pair.ExpiresAt, Scope: pair.Scope,
		},
	}
	imported, err := c.save(ctx, in)
	switch {
	case errors.Is(err, store.ErrNameTaken), errors.Is(err, store.ErrUserTaken):
		return Connected{}, c.wrongUser(ctx, in)
	case err != nil:
		return Connected{}, notStored(account, err)
	}
	return Connected{Imported: imported, Scope: pair.Scope, ExpiresAt: pair.ExpiresAt}, nil
}

// connectCode is Connect for an operation, which stores the account in its own way.
func (c *Connector) connectCode(ctx context.Context, accounts store.Accounts, code control.ConsentCode) (jetpost.Connected, error) {
	importer := *c.Importer
	importer.Ledger = accounts
	once := *c
	once.Importer = &importer
	connected, err := once.Connect(ctx, code.Account, code.Code, code.Verifier, code.RedirectURI)
	if err != nil {
		return jetpost.Connected{}, &control.Error{Code: connectErrorCode(err), Err: err, Help: Hint(err)}
	}
	return jetpost.Connected{
		Name: connected.Name, XUserID: connected.XUserID, Username: connected.Username, Result: string(connected.Result),
		Scope: connected.Scope, TokenExpiresAt: connected.ExpiresAt,
	}, nil
}

// connectErrorCode says for programs why an account was not connected.
func connectErrorCode(err error) jetpost.ErrorCode {
	var wrong *WrongUserError
	switch {
	case errors.As(err, &wrong) && wrong.Owner != "":
		return jetpost.ErrOtherUser
	case wrong != nil:
		return jetpost.ErrOtherName
	case errors.As(err, new(*MissingScopesError)):
		return jetpost.ErrScopesMissing
	case errors.As(err, new(*xapi.CodeRefusedError)):
		return jetpost.ErrCodeRefused
	case store.Unavailable(err):
		return jetpost.ErrUnavailable
	}
	return jetpost.ErrConnectFailed
}

// save stores the pair of a consent, and wakes the account's lane. If the database
// does not answer, it tries again until storeBound is over.
func (c *Connector) save(ctx context.Context, in store.Import) (imported Imported, err error) {
	waiting, stop := context.WithTimeout(ctx, storeBound)
	defer stop()
	tries := 0
	_, _ = control.Until(waiting, func() (bool, error) { // err tells
		imported, err = c.Importer.store(waiting, in)
		final := err == nil || errors.Is(err, store.ErrNameTaken) || errors.Is(err, store.ErrUserTaken)
		if tries++; tries == 1 && !final {
			c.Log.Warn("ledger.unavailable", "account", in.Name, "error", err, "given_up_in", storeBound)
		}
		return final, nil
	})
	if err != nil {
		return Imported{}, err
	}
	if imported.Result == store.TokenUnchanged {
		// Each code gives another pair, so an earlier try has stored this one, and
		// the database's answer to it was lost.
		imported.Result = store.TokenReplaced
	}
	c.tell(ctx, in.Name, c.Importer.wake(ctx, in.Name))
	return imported, nil
}

// tell publishes the account's events after a committed change. If that fails, the workers
// publish them later.
func (c *Connector) tell(ctx context.Context, account string, err error) {
	if c.Announce != nil {
		err = errors.Join(err, c.Announce.AnnounceAccounts(ctx, account))
	}
	if err != nil {
		c.Log.Warn("event.delayed", "account", account, "error", err)
	}
}

// wrongUser handles a consent of another X user than the account's. If that
// user belongs to another account, X has ended its tokens: the new ones
// are stored there, so that a mistaken login costs no account its tokens.
func (c *Connector) wrongUser(ctx context.Context, in store.Import) error {
	wrong := &WrongUserError{Account: in.Name, Username: in.Username}
	accounts, err := c.Importer.Ledger.Accounts(ctx)
	if err != nil {
		return notStored(in.Name, err)
	}
	for _, a := range accounts {
		switch {
		case a.XUserID == in.XUserID:
			wrong.KnownAs = a.Name
		case a.Name == in.Name:
			wrong.Owner = a.Username
		}
	}
	if wrong.KnownAs == "" {
		wrong.NotRevoked = consumers.Revoke(ctx, c.OAuth, in.Pair.Refresh.Reveal(), in.Pair.Access.Reveal())
		return wrong
	}
	in.Name = wrong.KnownAs
	_, wrong.NotStored = c.save(ctx, in)
	return wrong
}

// connectCommand is what connects an account.
func connectCommand(account string) string { return "jetpost accounts connect " + account }

// notYetConnected says why the code of a consent was not exchanged.
func notYetConnected(account string, err error) error {
	help := "nothing has changed; once the database works, connect it again with: " + connectCommand(account)
	if missing := new(store.KeyError); errors.As(err, &missing) {
		help = missing.Hint() + "; nothing has changed"
	}
	return &HintError{Err: fmt.Errorf("connect %s: read its tokens: %w", account, err), Help: help}
}

func notStored(account string, err error) error {
	return &HintError{
		Err:  fmt.Errorf("connect %s: store its tokens: %w", account, err),
		Help: "X has ended the tokens that it had before: once the database works, connect it again with: " + connectCommand(account),
	}
}

// exchangeError adds a hint to the error of an exchange without tokens.
func exchangeError(account, redirectURI string, err error) error {
	var (
		refused   *xapi.CodeRefusedError
		app       *xapi.AppAuthError
		appError  *xapi.AppError
		ambiguous *xapi.AmbiguousError
		again     = "start again with: " + connectCommand(account)
		help      = "nothing has changed; once X can be reached, " + again
	)
	switch {
	case errors.As(err, &refused) && strings.Contains(strings.ToLower(refused.Err.Words()), "redirect uri"):
		help = "register " + redirectURI + " in X's developer console, to the letter, then " + again
	case errors.As(err, &refused):
		help = "a code works once, and for 30 seconds: " + again
	case errors.As(err, &app):
		help = "correct X_CLIENT_ID and X_CLIENT_SECRET, check the app's type in X's developer console, then " + again
	case errors.As(err, &appError):
		help = Advice(jetpost.Code(appError.Reason)) + "; then " + again
	case errors.As(err, &ambiguous):
		help = "X may have ended the tokens that it had before: as soon as X answers, " + again
	}
	return &HintError{Err: fmt.Errorf("connect %s: %w", account, err), Help: help}
}

// missingScopes are the needed scopes that a consent does not have.
func missingScopes(pair xapi.TokenPair) []string {
	granted := strings.Fields(pair.Scope)
	if len(granted) == 0 { // OAuth: then it is what was asked for
		granted = xapi.ConsentScopes()
	}
	return slices.DeleteFunc(xapi.ConsentScopes(), func(scope string) bool {
		return slices.Contains(granted, scope) && (scope != "offline.access" || pair.RefreshToken != "")
	})
}

// scopePurpose is what jetpost needs a scope for.
func scopePurpose(scope string) string {
	switch scope {
	case "tweet.read", "users.read":
		return "to see whose account it is"
	case "tweet.write":
		return "to post"
	case "offline.access":
		return "to renew its tokens"
	case "media.write":
		return "to upload images"
	default:
		return "to work"
	}
}

// MissingScopesError says that a consent lacks scopes that jetpost needs. Nothing was
// stored.
type MissingScopesError struct {
	Account string
	Missing []string
	// NotRevoked is why X did not confirm the revocation of the consent.
	NotRevoked error
}

func (e *MissingScopesError) Error() string {
	missing := make([]string, len(e.Missing))
	for i, scope := range e.Missing {
		missing[i] = scope + " (" + scopePurpose(scope) + ")"
	}
	return fmt.Sprintf("connect %s: the consent lacks %s: nothing was stored%s", e.Account, strings.Join(missing, ", "), takenBack(e.NotRevoked))
}

// takenBack says whether an unwanted consent was revoked.
func takenBack(notRevoked error) string {
	if notRevoked != nil {
		return ", and X did not confirm that the consent was taken back: " + oneLine(notRevoked)
	}
	return ", and the consent was taken back"
}

// Hint tells the operator what to do.
func (e *MissingScopesError) Hint() string {
	return "X may have ended the tokens that it had before: give the app the permission to read and write in X's developer console, then connect it again with: " +
		connectCommand(e.Account)
}

// WrongUserError says that the consent was given by another X user than the one
// whose account was to be connected.
type WrongUserError struct {
	Account  string
	Owner    string // username of the account, "" where there is none of that name
	Username string // who consented
	// KnownAs is the account that this user is: the new tokens are stored there,
	// unless NotStored says why they are not.
	KnownAs   string
	NotStored error
	// NotRevoked is why X did not confirm that the consent of an unknown user was
	// taken back.
	NotRevoked error
}

func (e *WrongUserError) Error() string {
	whose := fmt.Sprintf("connect %s: the consent is of @%s", e.Account, e.Username)
	if e.Owner != "" {
		whose += fmt.Sprintf(", but %s is @%s", e.Account, e.Owner)
	}
	switch {
	case e.KnownAs == "":
		return whose + ": nothing was stored" + takenBack(e.NotRevoked)
	case e.NotStored != nil:
		return fmt.Sprintf("%s: @%s is account %s, whose new tokens could not be stored: %s", whose, e.Username, e.KnownAs, oneLine(e.NotStored))
	default:
		return fmt.Sprintf("%s: @%s is account %s, where the new tokens are stored", whose, e.Username, e.KnownAs)
	}
}

// Hint tells the operator what to do.
func (e *WrongUserError) Hint() string {
	switch {
	case e.NotStored != nil:
		return "once the database works, connect that one again with: " + connectCommand(e.KnownAs)
	case e.Owner != "":
		return "log in to X as @" + e.Owner + ", then connect it again with: " + connectCommand(e.Account)
	default:
		return "go on with the name that it has; for another account log in to X as that one, then: " + connectCommand(e.Account)
	}
}
