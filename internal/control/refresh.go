package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// askEvery is how often a fact that no event tells is asked for.
const askEvery = 100 * time.Millisecond

// ErrStillWaiting says that a wait ended before what it waited for came.
var ErrStillWaiting = errors.New("still waiting")

// Until asks until the answer is yes or an error; false where ctx ended before.
func Until(ctx context.Context, ask func() (bool, error)) (bool, error) {
	every := time.NewTicker(askEvery)
	defer every.Stop()
	for {
		yes, err := ask()
		switch {
		case ctx.Err() != nil:
			return false, nil
		case yes || err != nil:
			return yes, err
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-every.C:
		}
	}
}

// RefreshFailedError says that X did not renew an account's token.
type RefreshFailedError struct {
	Account string
	Words   string // what the refresh said
	Reauth  bool   // nothing but connecting the account again helps
	Doubt   bool   // X's answer was lost: nobody tries before the access token ends
}

func (e *RefreshFailedError) Error() string {
	return fmt.Sprintf("refresh account %s: %s", e.Account, e.Words)
}

// Hint tells the operator what to do.
func (e *RefreshFailedError) Hint() string {
	if e.Doubt {
		return "wait: its posts go out meanwhile, and jetpost accounts show " + e.Account + " tells more"
	}
	if e.Reauth {
		return AdviceFor(jetpost.CodeAccountReauthRequired, e.Account, "")
	}
	return AdviceFor(jetpost.CodeTokenRefreshFailed, e.Account, "")
}

// AccountRefresh asks for the refresh of one account's token and waits until a worker has
// made it; without a wait it only asks. It fails with store.ErrNotFound,
// *RefreshFailedError or ErrStillWaiting.
//
// A worker that is killed between the order and the note of it may have it ordered twice:
// that renews the token twice, and harms nobody.
func (c *Control) AccountRefresh(ctx context.Context, account string, in jetpost.AccountRefresh) (jetpost.AccountInfo, error) {
	op, err := call(jetpost.OpAccountRefresh, account, in.OperationID, in)
	if err != nil {
		return jetpost.AccountInfo{}, err
	}
	if was, repeated, err := done[jetpost.AccountInfo](ctx, c, op); repeated || err != nil {
		return was, err
	}
	before, err := c.Ledger.Account(ctx, account)
	if err != nil {
		return jetpost.AccountInfo{}, accountError(account, err)
	}
	if before.RequiresReauth { // no worker would try
		return infoOf(before, op.Now), &RefreshFailedError{Account: account, Words: before.RefreshError, Reauth: true}
	}
	if err := c.doubt(ctx, account); err != nil {
		return infoOf(before, op.Now), err
	}
	if err := c.publisher.OrderRefresh(ctx, account, in.Force, in.OperationID); err != nil {
		return infoOf(before, op.Now), err
	}
	asked, repeated, err := operate(ctx, c, op, func(context.Context, store.Changes) (jetpost.AccountInfo, error) { return infoOf(before, op.Now), nil })
	if in.WaitSeconds == 0 && store.Unavailable(err) { // the order stands, and a worker takes it
		c.Log.Warn("operation.not_noted", "operation", jetpost.OpAccountRefresh, "account", account, "error", err)
		return infoOf(before, op.Now), nil
	}
	if in.WaitSeconds == 0 || repeated || err != nil {
		return asked, err
	}
	after, err := c.refreshed(ctx, before, time.Duration(in.WaitSeconds)*time.Second)
	if err == nil {
		c.answered(ctx, op, infoOf(after, op.Now))
	} else if is := APIError(err); is.Definite() {
		c.answered(ctx, op, jetpost.ErrorAnswer{Error: is})
	}
	return infoOf(after, op.Now), err
}

// refreshed waits until an account's token was exchanged, or was tried to be.
func (c *Control) refreshed(ctx context.Context, before store.Account, wait time.Duration) (store.Account, error) {
	waiting, stop := context.WithTimeout(ctx, wait)
	defer stop()
	name, after := before.Name, before
	done, err := Until(waiting, func() (bool, error) {
		is, err := c.Ledger.Account(waiting, name)
		if err == nil {
			after = is
		}
		return !after.LastRefreshAt.Equal(before.LastRefreshAt) || !after.RefreshFailedAt.Equal(before.RefreshFailedAt), accountError(name, err)
	})
	switch {
	case err != nil:
		return before, err
	case !done && ctx.Err() != nil:
		return before, ctx.Err()
	case !done:
		return before, fmt.Errorf("refresh account %s: %w", name, ErrStillWaiting)
	case after.RefreshError != "":
		return after, &RefreshFailedError{Account: name, Words: after.RefreshError, Reauth: after.RequiresReauth}
	}
	return after, nil
}

// doubt says so where no worker would present the account's refresh token now.
func (c *Control) doubt(ctx context.Context, name string) error {
	token, err := c.Ledger.Token(ctx, name)
	if err != nil {
		return DatabaseError(err)
	}
	now := time.Now()
	if token.StartedAt.IsZero() || token.LeaseUntil.After(now) || !token.NextAttemptAt.After(now) {
		return nil
	}
	return &RefreshFailedError{Account: name, Doubt: true, Words: fmt.Sprintf(
		"X's answer to its last exchange was lost, and its token may be spent; it is tried again near its end, at %s",
		token.NextAttemptAt.Local().Format(time.RFC3339))}
}
