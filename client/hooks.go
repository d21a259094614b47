package client

import (
	"context"

	"github.com/jetpost/jetpost"
)

// HookCreate makes a webhook, to which the events of the account or, with "", of all are
// sent. The secret in the answer is told once.
func (c *Client) HookCreate(ctx context.Context, account string, in jetpost.HookCreate) (jetpost.HookCreated, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.HookCreated](ctx, c, jetpost.OpHookCreate, account, in)
}

// HookList returns a page of webhooks, the oldest first, of the account or, with "", all.
func (c *Client) HookList(ctx context.Context, account string, in jetpost.HookList) (jetpost.HookPage, error) {
	return call[jetpost.HookPage](ctx, c, jetpost.OpHookList, account, in)
}

// HookTest sends an event of the type hook.test to the receiver, and tells what it answered.
func (c *Client) HookTest(ctx context.Context, account string, in jetpost.HookTest) (jetpost.HookTested, error) {
	return call[jetpost.HookTested](ctx, c, jetpost.OpHookTest, account, in)
}

// HookEnable has a webhook that was disabled send again what waits for it.
func (c *Client) HookEnable(ctx context.Context, account string, in jetpost.HookEnable) (jetpost.Hook, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.Hook](ctx, c, jetpost.OpHookEnable, account, in)
}

// HookRemove ends a webhook. What waits for it is not sent.
func (c *Client) HookRemove(ctx context.Context, account string, in jetpost.HookRemove) (jetpost.Hook, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.Hook](ctx, c, jetpost.OpHookRemove, account, in)
}
