package control

import (
	"context"
	"errors"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// AccountVerify compares an account's posts with its timeline on X, which X charges for; a
// dry run tells what it will. It fails with store.ErrNotFound.
func (c *Control) AccountVerify(ctx context.Context, account string, in jetpost.AccountVerify) (jetpost.Verification, error) {
	if c.Verify == nil {
		return jetpost.Verification{}, &Error{Code: jetpost.ErrUnsupported, Err: errors.New("verify: nobody here reads timelines")}
	}
	op, err := call(jetpost.OpAccountVerify, account, in.OperationID, in)
	if err != nil {
		return jetpost.Verification{}, err
	}
	if was, repeated, err := done[jetpost.Verification](ctx, c, op); repeated || err != nil {
		return was, err
	}
	is, err := c.Ledger.Account(ctx, account)
	if err != nil {
		return jetpost.Verification{}, accountError(account, err)
	}
	found, err := c.Verify(ctx, is, in)
	if err != nil || in.DryRun {
		return found, err
	}
	found, _, err = operate(ctx, c, op, func(context.Context, store.Changes) (jetpost.Verification, error) { return found, nil })
	return found, err
}
