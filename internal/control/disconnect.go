package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/store"
)

// NotRevokedError says that an account is disconnected, and its requests wait, but
// that X did not confirm that its tokens are dead.
type NotRevokedError struct {
	Account string
	Words   string // of the failure
}

func (e *NotRevokedError) Error() string {
	return fmt.Sprintf("%s is disconnected here, but X did not confirm that its tokens were revoked: %s", e.Account, e.Words)
}

// Hint tells the operator what to do.
func (e *NotRevokedError) Hint() string {
	return "try once more with: jetpost accounts disconnect " + e.Account +
		"    or withdraw the app's access on X: Settings, Security and account access, Apps and sessions, Connected apps"
}

// AccountDisconnect ends the use of an account: first here, so that whatever happens
// next its requests wait and nobody uses its tokens, then at X. Where X does not confirm
// that, the answer says so. It fails with store.ErrNotFound, and with store.ErrTokenBusy
// inside while its token is being renewed.
func (c *Control) AccountDisconnect(ctx context.Context, account string, in jetpost.AccountDisconnect) (jetpost.Disconnected, error) {
	if c.X == nil {
		return jetpost.Disconnected{}, &Error{Code: jetpost.ErrUnsupported, Err: errors.New("disconnect: X_CLIENT_ID is not set here")}
	}
	op, err := call(jetpost.OpAccountDisconnect, account, in.OperationID, in)
	if err != nil {
		return jetpost.Disconnected{}, err
	}
	var token store.Token
	out, repeated, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (out jetpost.Disconnected, err error) {
		is, err := ledger.Account(ctx, account)
		if err != nil {
			return out, accountError(account, err)
		}
		out = jetpost.Disconnected{Name: account, XUserID: is.XUserID, Username: is.Username, Open: is.Open, NotRevoked: "X was not asked yet"}
		if token, err = ledger.Disconnect(ctx, account, op.Now); errors.Is(err, store.ErrTokenBusy) {
			return out, &Error{Code: jetpost.ErrBusy, Err: fmt.Errorf("disconnect %s: %w", account, store.ErrTokenBusy), Help: "try again in a moment"}
		}
		return out, accountError(account, err)
	})
	if err != nil || repeated {
		return out, err
	}
	ctx = context.WithoutCancel(ctx)
	if err := c.OutboxRelay.AnnounceAccounts(ctx, account); err != nil {
		c.Log.Warn("event.delayed", "account", account, "error", err)
	}
	out.NotRevoked = ""
	if err := consumers.Revoke(ctx, c.X, token.Refresh.Reveal(), token.Access.Reveal()); err != nil {
		out.NotRevoked = oneLine(err)
		c.answered(ctx, op, out)
		return out, nil
	}
	out.Revoked = true
	if err := c.Ledger.ForgetPair(ctx, token); err != nil && !errors.Is(err, store.ErrFenced) {
		c.Log.Warn("token.not_forgotten", "account", account, "error", err) // it is dead at X
	}
	c.answered(ctx, op, out)
	return out, nil
}

// AccountLink makes a one-time link with which a customer connects an account. Its secret
// is kept nowhere, so that a repeat does not get it again.
func (c *Control) AccountLink(ctx context.Context, account string, in jetpost.AccountLink) (jetpost.Link, error) {
	if c.Link == nil {
		return jetpost.Link{}, &Error{Code: jetpost.ErrUnsupported, Err: errors.New("link: nobody here makes any")}
	}
	op, err := call(jetpost.OpAccountLink, account, in.OperationID, in)
	if err != nil {
		return jetpost.Link{}, err
	}
	var link jetpost.Link
	kept, repeated, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.Link, error) {
		link, err = c.Link(ctx, ledger, account, in)
		kept := link
		kept.URL = ""
		return kept, err
	})
	if err == nil && repeated {
		return kept, conflict("ask for another one, under another operation_id", "this link for %s was made, and its address is told once", account)
	}
	return link, err
}
