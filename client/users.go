package client

import (
	"context"

	"github.com/jetpost/jetpost"
)

// UserAdd makes a user of the dashboard.
func (c *Client) UserAdd(ctx context.Context, in jetpost.UserAdd) (jetpost.User, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.User](ctx, c, jetpost.OpUserAdd, "", in)
}

// UserList returns a page of users, by name.
func (c *Client) UserList(ctx context.Context, in jetpost.UserList) (jetpost.UserPage, error) {
	return call[jetpost.UserPage](ctx, c, jetpost.OpUserList, "", in)
}

// UserGet returns a user.
func (c *Client) UserGet(ctx context.Context, in jetpost.UserGet) (jetpost.User, error) {
	return call[jetpost.User](ctx, c, jetpost.OpUserGet, "", in)
}

// UserSet gives a user another role or password.
func (c *Client) UserSet(ctx context.Context, in jetpost.UserSet) (jetpost.User, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.User](ctx, c, jetpost.OpUserSet, "", in)
}

// UserRemove removes a user, and ends all sessions of the user.
func (c *Client) UserRemove(ctx context.Context, in jetpost.UserRemove) (jetpost.User, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.User](ctx, c, jetpost.OpUserRemove, "", in)
}

// SessionBegin logs a user in. The error's code is unauthenticated where name and password
// are no user's, and too_many once that was tried too often.
func (c *Client) SessionBegin(ctx context.Context, in jetpost.SessionBegin) (jetpost.Session, error) {
	return call[jetpost.Session](ctx, c, jetpost.OpSessionBegin, "", in)
}

// SessionCheck tells whose a session is. The error's code is unauthenticated where it has
// ended.
func (c *Client) SessionCheck(ctx context.Context, in jetpost.SessionCheck) (jetpost.Session, error) {
	return call[jetpost.Session](ctx, c, jetpost.OpSessionCheck, "", in)
}

// SessionEnd ends a session at once, everywhere.
func (c *Client) SessionEnd(ctx context.Context, in jetpost.SessionEnd) (jetpost.SessionEnded, error) {
	return call[jetpost.SessionEnded](ctx, c, jetpost.OpSessionEnd, "", in)
}

// AuditList returns a page of what was changed, the latest first.
func (c *Client) AuditList(ctx context.Context, in jetpost.AuditList) (jetpost.AuditPage, error) {
	return call[jetpost.AuditPage](ctx, c, jetpost.OpAuditList, "", in)
}
