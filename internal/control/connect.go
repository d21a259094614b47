package control

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// attemptLife is how long a person may take on X, with signing in there.
	attemptLife = 15 * time.Minute
	// connectLease is how long a link is busy with an attempt that is ended: longer than the
	// exchange of a code and the storing of what it brings take.
	connectLease = 2 * time.Minute
	// settleWithin bounds what is written after that.
	settleWithin = 10 * time.Second
	// linkTokenBytes is how much of a link's token nobody can guess.
	linkTokenBytes = 32
	// maxCode bounds the sealed code of a consent.
	maxCode = 2048 // bytes
)

// ConsentCode is what connects an account.
type ConsentCode struct {
	Account, Code, Verifier, RedirectURI string
}

// errOtherAccount says that an attempt is about another account than the call.
var errOtherAccount = errors.New("the link is for another account")

func (c *Control) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

// canConnect says why nobody here connects accounts, or nil.
func (c *Control) canConnect() error {
	if c.X == nil || c.Connect == nil {
		return &Error{Code: jetpost.ErrUnsupported, Err: errors.New("connect: X_CLIENT_ID is not set here"), Help: "set it for the workers"}
	}
	return nil
}

// linkError is an error of store.Links as the contract has it.
func linkError(err error) error {
	const again = "make another link with: jetpost accounts link"
	for _, known := range []struct {
		err  error
		code jetpost.ErrorCode
		help string
	}{
		{store.ErrLinkUsed, jetpost.ErrLinkUsed, again},
		{store.ErrLinkExpired, jetpost.ErrLinkExpired, again},
		{store.ErrLinkBusy, jetpost.ErrBusy, "try again in a moment"},
		{store.ErrAttemptOver, jetpost.ErrAttemptOver, "begin another attempt"},
		{store.ErrOtherBrowser, jetpost.ErrOtherBrowser, "begin an attempt where it is ended"},
		{store.ErrNotFound, jetpost.ErrNotFound, again},
	} {
		if errors.Is(err, known.err) {
			return &Error{Code: known.code, Err: err, Help: known.help}
		}
	}
	return DatabaseError(err)
}

// attemptError is linkError for an attempt that is looked up by its state: one that is not
// there was replaced.
func attemptError(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		err = store.ErrAttemptOver
	}
	return linkError(err)
}

// digestOf reads a digest of a call.
func digestOf(field, text string) ([]byte, error) {
	digest, err := hex.DecodeString(text)
	if err != nil || len(digest) != sha256.Size {
		return nil, &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("%s: is no SHA-256 in hexadecimal digits", field)}
	}
	return digest, nil
}

// stateDigest is what is stored of a state.
func stateDigest(state string) []byte { return store.LinkDigest(secret.New(state)) }

// LinkGet returns a one-time link that still opens something.
func (c *Control) LinkGet(ctx context.Context, in jetpost.LinkGet) (jetpost.LinkInfo, error) {
	if err := c.canConnect(); err != nil {
		return jetpost.LinkInfo{}, err
	}
	link, err := c.link(ctx, in)
	if err != nil {
		return jetpost.LinkInfo{}, err
	}
	page, err := url.Parse(c.X.AuthorizeURL("", "", "", nil))
	if err != nil {
		return jetpost.LinkInfo{}, fmt.Errorf("read address of X's page of consent: %w", err)
	}
	return jetpost.LinkInfo{
		Account: link.Account, ReturnTo: link.ReturnTo, ExpiresAt: link.ExpiresAt, ConsentAt: page.Scheme + "://" + page.Host,
	}, nil
}

func (c *Control) link(ctx context.Context, in jetpost.LinkGet) (store.Link, error) {
	if (in.Link == "") == (in.State == "") {
		return store.Link{}, &Error{Code: jetpost.ErrInvalid, Err: errors.New("give either link, or state and browser")}
	}
	if in.Link != "" {
		link, err := c.Ledger.Link(ctx, in.Link)
		if err == nil {
			err = link.Over(c.now())
		}
		return link, linkError(err)
	}
	browser, err := digestOf("browser", in.Browser)
	if err != nil {
		return store.Link{}, err
	}
	link, err := c.Ledger.AttemptLink(ctx, stateDigest(in.State), browser, c.now())
	return link, attemptError(err)
}

// AccountConsent begins an attempt to connect an account, with a one-time link or without.
// Its state is kept nowhere, so that a repeat does not get it again.
func (c *Control) AccountConsent(ctx context.Context, account string, in jetpost.AccountConsent) (jetpost.Consent, error) {
	if err := c.canConnect(); err != nil {
		return jetpost.Consent{}, err
	}
	browser, err := digestOf("browser", in.Browser)
	if err != nil {
		return jetpost.Consent{}, err
	}
	op, err := call(jetpost.OpAccountConsent, account, in.OperationID, in)
	if err != nil {
		return jetpost.Consent{}, err
	}
	// The key is made of the verifier: one secret of the attempt is kept.
	verifier := xapi.NewVerifier()
	key, err := jetpost.NewCodeKey(verifier)
	if err != nil {
		return jetpost.Consent{}, err
	}
	now := c.now()
	attempt := store.LinkAttempt{State: stateDigest(key.State()), Browser: browser, Verifier: secret.New(verifier), ExpiresAt: now.Add(attemptLife), Now: now}
	consent := jetpost.Consent{
		Page: c.X.AuthorizeURL(key.State(), verifier, in.RedirectURI, xapi.ConsentScopes()), State: key.State(), ExpiresAt: attempt.ExpiresAt.UTC(),
	}
	_, repeated, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.Consent, error) {
		return jetpost.Consent{ExpiresAt: consent.ExpiresAt}, beginAttempt(ctx, ledger, account, in.Link, attempt)
	})
	switch {
	case errors.Is(err, errOtherAccount):
		return jetpost.Consent{}, &Error{Code: jetpost.ErrNotFound, Err: errOtherAccount}
	case err != nil:
		return jetpost.Consent{}, err
	case repeated:
		return jetpost.Consent{}, conflict("begin another one, under another operation_id", "this attempt to connect %s was begun, and its address is told once", account)
	}
	return consent, nil
}

// beginAttempt begins an attempt with a link or, without one, with one that nobody knows.
func beginAttempt(ctx context.Context, ledger store.Changes, account, id string, attempt store.LinkAttempt) error {
	if id == "" {
		value := make([]byte, linkTokenBytes)
		_, _ = rand.Read(value) // never fails: it ends the program instead
		token := secret.New(base64.RawURLEncoding.EncodeToString(value))
		id = store.LinkID(store.LinkDigest(token))
		if err := ledger.AddLink(ctx, store.NewLink{Token: token, Account: account, ExpiresAt: attempt.ExpiresAt, Now: attempt.Now}); err != nil {
			return DatabaseError(err)
		}
	}
	link, err := ledger.BeginAttempt(ctx, id, attempt)
	if err == nil && link.Account != account {
		return errOtherAccount
	}
	return linkError(err)
}

// connectBegun is the answer that is kept while an attempt is ended. A repeat is told it
// where the worker that was at it died.
const connectBegun = "begun"

// AccountConnect ends an attempt: it exchanges the code and stores the account's tokens,
// and uses its link up, in one transaction with the answer. The attempt was taken before
// that, in a transaction of its own, for a code works once. Where a worker dies between
// the two, a repeat tells so, and the account has to be connected again.
func (c *Control) AccountConnect(ctx context.Context, account string, in jetpost.AccountConnect) (jetpost.Connected, error) {
	if err := c.canConnect(); err != nil {
		return jetpost.Connected{}, err
	}
	browser, err := digestOf("browser", in.Browser)
	if err == nil && len(in.Code) > maxCode {
		err = &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("code: has more than %d bytes", maxCode)}
	}
	if err != nil {
		return jetpost.Connected{}, err
	}
	op, err := call(jetpost.OpAccountConnect, account, in.OperationID, in)
	if err != nil {
		return jetpost.Connected{}, err
	}
	taken := jetpost.Connected{Name: account, Result: connectBegun}
	lease := connectLease
	if in.Code == "" { // there is nothing to do
		taken.Result, lease = jetpost.ConnectGivenUp, 0
	}
	e := ending{c: c, op: op, state: in.State}
	taking := op
	if in.Code != "" { // what becomes of it is noted once that is known
		taking.Name = ""
	}
	answer, repeated, err := operate(ctx, c, taking, func(ctx context.Context, ledger store.Changes) (jetpost.Connected, error) {
		e.link, e.verifier, err = ledger.TakeAttempt(ctx, stateDigest(in.State), browser, lease, c.now())
		if err == nil && e.link.Account != account {
			return taken, errOtherAccount
		}
		return taken, attemptError(err)
	})
	switch {
	case errors.Is(err, errOtherAccount):
		return jetpost.Connected{}, e.failed(ctx, &Error{Code: jetpost.ErrAttemptOver, Err: errOtherAccount})
	case err != nil && !repeated && in.Code != "":
		return jetpost.Connected{}, e.failed(ctx, err)
	case err != nil:
		return jetpost.Connected{}, err
	case repeated && answer.Result == connectBegun:
		return e.before(ctx, account)
	case repeated || in.Code == "":
		return answer, nil
	}
	return e.end(ctx, in)
}

// ending is an attempt that was taken, on its way to its end.
type ending struct {
	c        *Control
	op       store.Operation
	link     store.Link
	state    string
	verifier secret.String
}

// stored is the operation of the transaction that stores the account.
func (e *ending) stored() store.Operation {
	op := e.op
	if op.ID != "" {
		op.ID += "/stored"
	}
	return op
}

// before returns what became of an attempt that was taken before.
func (e *ending) before(ctx context.Context, account string) (jetpost.Connected, error) {
	was, stored, err := done[jetpost.Connected](ctx, e.c, e.stored())
	if stored || err != nil {
		return was, err
	}
	return jetpost.Connected{}, &Error{
		Code: jetpost.ErrStillWaiting, Err: fmt.Errorf("connect %s: it was begun, and its end is not known", account),
		Help: "if it is not connected in two minutes, connect it again with: jetpost accounts connect " + account,
	}
}

// end exchanges the code. It goes on when the caller leaves: X may have given tokens by
// then that must not be lost.
func (e *ending) end(ctx context.Context, in jetpost.AccountConnect) (jetpost.Connected, error) {
	ctx = context.WithoutCancel(ctx)
	connected, err := e.exchange(ctx, in)
	if err == nil {
		return connected, nil
	}
	settle, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	if err := e.c.Ledger.GiveUpAttempt(settle, e.link.ID, stateDigest(e.state)); err != nil {
		e.c.Log.Warn("connect.link_stays_busy", "account", e.link.Account, "link", e.link.ID, "lease", connectLease, "error", err)
	}
	e.c.answered(settle, e.op, jetpost.ErrorAnswer{Error: APIError(err)})
	return jetpost.Connected{}, e.failed(settle, err)
}

// failed notes that an account was not connected, and why.
func (e *ending) failed(ctx context.Context, err error) error {
	e.c.noteAlone(ctx, e.op, string(APIError(err).Code))
	return err
}

func (e *ending) exchange(ctx context.Context, in jetpost.AccountConnect) (jetpost.Connected, error) {
	key, err := jetpost.NewCodeKey(e.verifier.Reveal())
	if err != nil {
		return jetpost.Connected{}, err
	}
	code, err := key.Open(in.Code)
	if err != nil {
		return jetpost.Connected{}, &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("code: %w", err)}
	}
	return e.c.Connect(ctx, e.account(), ConsentCode{
		Account: e.link.Account, Code: code, Verifier: e.verifier.Reveal(), RedirectURI: in.RedirectURI,
	})
}

// account is where the account is stored.
func (e *ending) account() store.Accounts { return spending{accounts: e.c.Ledger, e: e} }

// accounts lets a store have a method of that name, too.
type accounts = store.Accounts

// spending uses the link up with the account that it connects.
type spending struct {
	accounts
	e *ending
}

// ImportAccount implements store.Accounts. It may be repeated while its answer is lost.
func (s spending) ImportAccount(ctx context.Context, in store.Import) (store.ImportResult, error) {
	if in.Name != s.e.link.Account { // another account's owner has consented
		return s.accounts.ImportAccount(ctx, in)
	}
	out, _, err := operate(ctx, s.e.c, s.e.stored(), func(ctx context.Context, ledger store.Changes) (out jetpost.Connected, err error) {
		result, err := ledger.ImportAccount(ctx, in)
		if err == nil {
			err = ledger.UseLink(ctx, s.e.link.ID, in.Now)
		}
		return jetpost.Connected{
			Name: in.Name, XUserID: in.XUserID, Username: in.Username, Result: string(result), Scope: in.Pair.Scope, TokenExpiresAt: in.Pair.ExpiresAt,
		}, err
	})
	return store.ImportResult(out.Result), err
}
