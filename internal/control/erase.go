package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/store"
)

// erasedReason is what requests of an account show that is being erased.
const erasedReason = "the account is being erased"

// AccountErase removes what is known of an account. From the first transaction on it posts
// nothing more and renews no token; whoever dies after that, another worker goes on. A
// repeat goes on, too, until everything is removed.
func (c *Control) AccountErase(ctx context.Context, account string, in jetpost.AccountErase) (jetpost.Erased, error) {
	if c.JS == nil {
		return jetpost.Erased{}, &Error{Code: jetpost.ErrUnsupported, Err: errors.New("erase: there is no NATS here")}
	}
	eraser, err := consumers.NewEraser(ctx, consumers.EraserConfig{
		Ledger: c.Ledger, JetStream: c.JS, Names: c.Names, Outbox: c.OutboxRelay, X: c.X, Worker: c.Worker, Log: c.Log,
	})
	if err != nil {
		return jetpost.Erased{}, err
	}
	op, err := call(jetpost.OpAccountErase, account, in.OperationID, in)
	if err != nil {
		return jetpost.Erased{}, err
	}
	out, _, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.Erased, error) {
		return c.beginErase(ctx, ledger, account, op)
	})
	if err != nil || out.Done {
		return out, err
	}
	if !out.Revoked {
		out.NotRevoked = ""
		if out.Revoked, err = eraser.TakeBack(ctx, account); err != nil {
			out.NotRevoked = oneLine(err)
		}
		c.answered(ctx, op, out)
	}
	all, err := c.Ledger.Erasing(ctx)
	i := slices.IndexFunc(all, func(e store.Erasing) bool { return e.Account == account })
	if err == nil && i >= 0 { // else workers have done it
		err = eraser.Erase(ctx, all[i])
	}
	if err != nil {
		out.Left = oneLine(err)
		c.Log.Warn("account.not_erased", "account", account, "error", err)
		return out, nil // workers go on with it
	}
	out.Done, out.Left = true, ""
	c.answered(context.WithoutCancel(ctx), op, out)
	return out, nil
}

// beginErase ends the use of an account, and notes that it is to be erased.
func (c *Control) beginErase(ctx context.Context, ledger store.Changes, account string, op store.Operation) (jetpost.Erased, error) {
	out := jetpost.Erased{Name: account, NotRevoked: "X was not asked yet", Left: "all of it"}
	erasing, err := ledger.BeginErase(ctx, account, op.Now)
	if err != nil {
		return out, accountError(account, err)
	}
	out.Requests, out.LivePosts, out.DoubtfulPosts = erasing.Requests, erasing.Live, erasing.Doubtful
	_, err = ledger.Disconnect(ctx, account, op.Now)
	unreadable := errors.As(err, new(*store.KeyError)) || errors.As(err, new(*store.DamagedError))
	switch {
	case errors.Is(err, store.ErrNotFound): // it is erased, but for what is left elsewhere
		return out, nil
	case errors.Is(err, store.ErrTokenBusy):
		return out, &Error{Code: jetpost.ErrBusy, Err: fmt.Errorf("erase %s: %w", account, store.ErrTokenBusy), Help: "try again in a moment"}
	case err != nil && !unreadable:
		return out, accountError(account, err)
	}
	return out, accountError(account, ledger.PauseAccount(ctx, account, jetpost.AccountPause(wholeMillis(op.Now), time.Time{}, erasedReason)))
}
