package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// AccountPaused is the state of an account that is paused, whatever that of its token.
const AccountPaused = "paused"

// accountStates are those by which accounts are listed.
func accountStates() []string {
	return []string{TokenOK, AccountPaused, TokenFailing, TokenReauthRequired, TokenDisconnected}
}

// inState tells whether an account is in a state by which accounts are listed; each is in "".
func inState(a store.Account, state string, now time.Time) bool {
	paused := a.Pause.Active(now)
	switch state {
	case "":
		return true
	case AccountPaused:
		return paused
	case TokenDisconnected:
		return a.Disconnected()
	case TokenReauthRequired:
		return a.RequiresReauth && !a.Disconnected()
	case TokenFailing:
		return a.RefreshError != "" && !a.RequiresReauth
	}
	return a.RefreshError == "" && !a.RequiresReauth && !paused
}

// AccountList returns a page of accounts, by name. Of many accounts of which few are in the
// state, a page may have fewer than it might.
func (c *Control) AccountList(ctx context.Context, in jetpost.AccountList) (jetpost.AccountPage, error) {
	page := jetpost.AccountPage{Accounts: []jetpost.AccountInfo{}}
	if in.State != "" && !slices.Contains(accountStates(), in.State) {
		return page, &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("state: %q is none of %s", in.State, strings.Join(accountStates(), ", "))}
	}
	var after string
	if err := readCursor(in.Cursor, &after); err != nil {
		return page, err
	}
	now, batch := time.Now(), pageSize(in.Limit)+1
	if in.State != "" {
		batch = jetpost.MaxPage
	}
	for looked := 0; ; {
		accounts, err := c.Ledger.AccountsAfter(ctx, after, batch)
		if err != nil {
			return page, DatabaseError(err)
		}
		for _, a := range accounts {
			if !inState(a, in.State, now) {
				continue
			}
			if len(page.Accounts) == pageSize(in.Limit) {
				page.Next = cursorOf(page.Accounts[len(page.Accounts)-1].Name)
				return page, nil
			}
			page.Accounts = append(page.Accounts, infoOf(a, now))
		}
		if len(accounts) < batch {
			return page, nil
		}
		after = accounts[len(accounts)-1].Name
		if looked += len(accounts); looked >= maxListed {
			page.Next = cursorOf(after)
			return page, nil
		}
	}
}

// AccountGet tells what is known of an account and its token. store.ErrNotFound.
func (c *Control) AccountGet(ctx context.Context, account string) (jetpost.AccountReport, error) {
	r, err := ReportAccount(ctx, c.Ledger, account)
	if err != nil {
		return jetpost.AccountReport{}, err
	}
	report := jetpost.AccountReport{
		Account: infoOf(r.Account, time.Now()), State: r.State, Do: r.Do, Scope: r.Scope, Missing: r.Missing, Attempts: r.Attempts,
		NextAttemptAt: r.NextAttemptAt, InDoubtSince: r.InDoubtSince,
	}
	for _, retry := range r.Retries {
		report.Retries = append(report.Retries, jetpost.TokenRetry(retry))
	}
	return report, nil
}

// infoOf is an account as the contract has it.
func infoOf(a store.Account, now time.Time) jetpost.AccountInfo {
	info := jetpost.AccountInfo{
		Name: a.Name, XUserID: a.XUserID, Username: a.Username, CreatedAt: a.CreatedAt, Open: a.Open, TokenExpiresAt: a.TokenExpiresAt,
		LastRefreshAt: a.LastRefreshAt, RefreshError: a.RefreshError, RefreshFailedAt: a.RefreshFailedAt, ReauthRequired: a.RequiresReauth,
	}
	if a.Pause.Active(now) {
		info.Pause = a.Pause
	}
	return info
}

// AccountRename gives an account another name, with everything that it has.
func (c *Control) AccountRename(ctx context.Context, account string, in jetpost.AccountRename) (jetpost.AccountInfo, error) {
	if err := jetpost.CheckAccount(in.To); err != nil {
		return jetpost.AccountInfo{}, &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("to: %w", err)}
	}
	op, err := call(jetpost.OpAccountRename, account, in.OperationID, in)
	if err != nil {
		return jetpost.AccountInfo{}, err
	}
	return operateIdle(ctx, c, op, func(ctx context.Context, ledger store.Changes) (info jetpost.AccountInfo, err error) {
		if err := ledger.RenameAccount(ctx, account, in.To, op.Now); err != nil {
			return info, wholeError("rename", account, in.To, err)
		}
		is, err := ledger.Account(ctx, in.To)
		return infoOf(is, op.Now), accountError(in.To, err)
	})
}

// AccountRemove forgets an account, except the identities of its requests.
func (c *Control) AccountRemove(ctx context.Context, account string, in jetpost.AccountRemove) (jetpost.AccountRemoved, error) {
	op, err := call(jetpost.OpAccountRemove, account, in.OperationID, in)
	if err != nil {
		return jetpost.AccountRemoved{}, err
	}
	return operateIdle(ctx, c, op, func(ctx context.Context, ledger store.Changes) (out jetpost.AccountRemoved, err error) {
		is, err := ledger.Account(ctx, account)
		if err != nil {
			return out, accountError(account, err)
		}
		out = jetpost.AccountRemoved{Name: account, XUserID: is.XUserID, Username: is.Username}
		return out, wholeError("remove", account, "", ledger.RemoveAccount(ctx, account, op.Now))
	})
}

// busyFor is how long a change waits for an account that is busy, and busyAgain how often it
// is tried: events of what an account has just done are marked after a second.
const busyFor, busyAgain = 3 * time.Second, 100 * time.Millisecond

// operateIdle is operate for a change of a whole account, which waits a moment while something
// of the account is under way.
func operateIdle[Out any](ctx context.Context, c *Control, op store.Operation, do func(context.Context, store.Changes) (Out, error)) (out Out, err error) {
	waiting, cancel := context.WithTimeout(ctx, busyFor)
	defer cancel()
	every := time.NewTicker(busyAgain)
	defer every.Stop()
	for {
		if out, _, err = operate(ctx, c, op, do); !errors.Is(err, store.ErrAccountBusy) {
			return out, err
		}
		select {
		case <-waiting.Done():
			return out, err
		case <-every.C:
		}
	}
}

// wholeError says why an account cannot be renamed or removed just now, and what to do.
func wholeError(verb, account, to string, err error) error {
	switch {
	case errors.Is(err, store.ErrAccountBusy):
		return &Error{Code: jetpost.ErrBusy, Err: fmt.Errorf("%s %s: %w", verb, account, store.ErrAccountBusy), Help: "try again in a moment"}
	case errors.Is(err, store.ErrUnfinished):
		return conflict("wait for them, or cancel them; see: jetpost requests list --account "+account, "%s %s: %w", verb, account, store.ErrUnfinished)
	case errors.Is(err, store.ErrConnected):
		return conflict("first: jetpost accounts disconnect "+account, "%s %s: %w", verb, account, store.ErrConnected)
	case errors.Is(err, store.ErrManyRequests):
		return conflict(fmt.Sprintf("%d at most can be moved, pruned ones included: keep the name", store.MaxMoved), "%s %s: %w", verb, account, store.ErrManyRequests)
	case errors.Is(err, store.ErrNameTaken):
		return conflict("choose another name", "%s %s: another account has the name %s, or had it", verb, account, to)
	}
	return accountError(account, err)
}

// The states of an account's token, as AccountReport has them.
const (
	TokenOK             = "ok"
	TokenRenewing       = "renewing"        // a worker exchanges it just now
	TokenFailing        = "refresh_failing" // the last exchange came to nothing
	TokenInDoubt        = "in_doubt"        // the answer to an exchange was lost
	TokenUnreadable     = "key_unavailable" // no configured key opens it
	TokenReauthRequired = "reauth_required"
	TokenDisconnected   = "disconnected"
)

// AccountReport is what is known of an account and its token.
type AccountReport struct {
	store.Account
	State string `json:"state"`
	// Do is what a person can do, where there is something.
	Do    string `json:"do,omitempty"`
	Scope string `json:"scope,omitempty"`
	// Missing are the permissions that posts, or those with media, wait for.
	Missing []string `json:"missing_scopes,omitempty"`
	// Attempts counts the exchanges since the pair was stored.
	Attempts int `json:"attempts,omitempty"`
	// NextAttemptAt is the earliest next exchange after a failure or a doubt.
	NextAttemptAt time.Time     `json:"next_attempt_at,omitzero"`
	InDoubtSince  time.Time     `json:"in_doubt_since,omitzero"`
	Retries       []store.Retry `json:"retries,omitempty"`
}

// ReportAccount reads an account, its token and its journal. store.ErrNotFound.
func ReportAccount(ctx context.Context, ledger store.Store, name string) (AccountReport, error) {
	account, err := ledger.Account(ctx, name)
	if err != nil {
		return AccountReport{}, accountError(name, err)
	}
	r := AccountReport{Account: account}
	if r.Pause.Active(time.Now()) {
		r.Do = AdviceFor(r.Pause.Reason.Code, name, "")
	} else {
		r.Pause = store.Pause{}
	}
	token, err := ledger.Token(ctx, name)
	var key *store.KeyError
	var damaged *store.DamagedError
	if unreadable := errors.As(err, &key) || errors.As(err, &damaged); err != nil && !unreadable {
		return AccountReport{}, accountError(name, err)
	} else if unreadable {
		r.State, r.Do = TokenUnreadable, Advice(jetpost.CodeKeyUnavailable)
		return r, nil
	}
	r.Scope, r.Attempts = token.Scope, token.Attempts
	if r.Retries, err = ledger.Retries(ctx, name); err != nil {
		return AccountReport{}, accountError(name, err)
	}
	now, err := ledger.Clock(ctx) // the one that leases are judged by
	if err != nil {
		return AccountReport{}, accountError(name, err)
	}
	r.judge(token, now)
	if r.Missing = missingToPost(token.Scope); len(r.Missing) > 0 && r.Do == "" {
		r.Do = AdviceFor(jetpost.CodeAccountScopeMissing, name, "")
	}
	return r, nil
}

// missingToPost are the permissions for posts and their media that a token with a list of
// its own does not have.
func missingToPost(scope string) (missing []string) {
	has := strings.Fields(scope)
	for _, needed := range []string{xapi.ScopePostWrite, xapi.ScopeMediaWrite} {
		if len(has) > 0 && !slices.Contains(has, needed) {
			missing = append(missing, needed)
		}
	}
	return missing
}

// judge finds the state of a token, and what to do about it.
func (r *AccountReport) judge(token store.Token, now time.Time) {
	leased := token.LeaseUntil.After(now)
	if !leased {
		r.NextAttemptAt, r.InDoubtSince = token.NextAttemptAt, token.StartedAt
	}
	switch {
	case r.Disconnected():
		r.State, r.Do = TokenDisconnected, AdviceFor(jetpost.CodeAccountReauthRequired, r.Name, "")
	case r.RequiresReauth:
		r.State, r.Do = TokenReauthRequired, AdviceFor(jetpost.CodeAccountReauthRequired, r.Name, "")
	case leased:
		r.State = TokenRenewing
	case !r.InDoubtSince.IsZero():
		r.State, r.Do = TokenInDoubt, "wait: the account goes on with its access token; near its end X is asked once more"
	case r.RefreshError != "":
		r.State, r.Do = TokenFailing, AdviceFor(jetpost.CodeTokenRefreshFailed, r.Name, "")
	default:
		r.State = TokenOK
	}
}
