package jetpost

import (
	"context"
	"slices"
	"time"
)

// Operations on the users of the dashboard, their sessions, and what was changed by whom.
// No API token allows those on users and sessions.
const (
	OpUserAdd      Operation = "user.add"
	OpUserList     Operation = "user.list"
	OpUserGet      Operation = "user.get"
	OpUserSet      Operation = "user.set"
	OpUserRemove   Operation = "user.remove"
	OpSessionBegin Operation = "session.begin"
	OpSessionCheck Operation = "session.check"
	OpSessionEnd   Operation = "session.end"
	OpAuditList    Operation = "audit.list"
)

// Role is what a user of the dashboard may do.
type Role string

// The roles. Each may do what the one before it may.
const (
	RoleViewer Role = "viewer" // sees everything, and changes nothing
	RoleEditor Role = "editor" // publishes, and changes requests
	RoleAdmin  Role = "admin"  // changes accounts, pauses and users
)

// Roles lists every role, the least first.
func Roles() []Role { return []Role{RoleViewer, RoleEditor, RoleAdmin} }

// Allows tells whether the role may do what needs another one. What is no role allows
// nothing, and nobody may do what needs none of them.
func (r Role) Allows(needed Role) bool {
	want := slices.Index(Roles(), needed)
	return want >= 0 && slices.Index(Roles(), r) >= want
}

const (
	// MinPassword and MaxPassword bound the length of a password.
	MinPassword = 10  // bytes
	MaxPassword = 256 // bytes
	// SessionIdle and SessionLife are how long a session lasts that nobody uses, and one
	// that is used.
	SessionIdle = 12 * time.Hour
	SessionLife = 7 * 24 * time.Hour
)

// UserAdd makes a user of the dashboard.
type UserAdd struct {
	// OperationID makes the change take effect once. The password is no part of it: a
	// repeat with another one is answered as the first.
	OperationID string `json:"operation_id,omitempty"`
	// Name is the user's: 1 to 64 of a-z 0-9 . _ @ -, of which the first is a letter or a digit.
	Name string `json:"name"`
	// Role is what the user may do.
	Role Role `json:"role"`
	// Password is what the user logs in with: MinPassword to MaxPassword bytes.
	Password string `json:"password"`
}

// User is what is known of a user of the dashboard.
type User struct {
	// Name is the user's.
	Name string `json:"name"`
	// Role is what the user may do.
	Role Role `json:"role"`
	// CreatedAt is when the user was made.
	CreatedAt time.Time `json:"created_at"`
	// PasswordAt is when the password was last set.
	PasswordAt time.Time `json:"password_at"`
}

// UserList asks for users, by name.
type UserList struct {
	// Limit is how many are listed at most, 1 to MaxPage; absent means DefaultPage.
	Limit int `json:"limit,omitempty"`
	// Cursor is the Next of the page before; absent begins.
	Cursor string `json:"cursor,omitempty"`
}

// UserPage is a part of the list of users.
type UserPage struct {
	// Users are those of this page.
	Users []User `json:"users"`
	// Next is the cursor of the page after this one; absent where this is the last.
	Next string `json:"next,omitempty"`
}

// UserGet asks for one user.
type UserGet struct {
	// Name is the user's.
	Name string `json:"name"`
}

// UserSet gives a user another role or password.
type UserSet struct {
	// OperationID makes the change take effect once, as in UserAdd.
	OperationID string `json:"operation_id,omitempty"`
	// Name is the user's.
	Name string `json:"name"`
	// Role is the new one, from the next page on; absent keeps it.
	Role Role `json:"role,omitempty"`
	// Password is the new one, which ends all sessions of the user; absent keeps it.
	Password string `json:"password,omitempty"`
}

// UserRemove removes a user, and ends all sessions of the user.
type UserRemove struct {
	// OperationID makes the change take effect once, however often it is asked for.
	OperationID string `json:"operation_id,omitempty"`
	// Name is the user's.
	Name string `json:"name"`
}

// SessionBegin logs a user in. The browser keeps the secret of its session, which travels as
// its digest.
type SessionBegin struct {
	// Name is what was typed as the user's.
	Name string `json:"name"`
	// Password is what was typed.
	Password string `json:"password"`
	// Address is where it comes from; attempts are counted by name and address.
	Address string `json:"address"`
	// Digest is the SHA-256 of the session's secret, in 64 hexadecimal digits.
	Digest string `json:"digest"`
}

// SessionCheck asks whose a session is, and counts as a use of it.
type SessionCheck struct {
	// Digest is the SHA-256 of the session's secret, in 64 hexadecimal digits.
	Digest string `json:"digest"`
}

// SessionEnd ends a session at once. One that has ended stays so.
type SessionEnd struct {
	// Digest is the SHA-256 of the session's secret, in 64 hexadecimal digits.
	Digest string `json:"digest"`
}

// SessionEnded tells what became of a session.
type SessionEnded struct {
	// Ended is false where it had ended before.
	Ended bool `json:"ended"`
}

// Session is a session that lasts.
type Session struct {
	// User is its user's name.
	User string `json:"user"`
	// Role is what the user may do now.
	Role Role `json:"role"`
	// CreatedAt is when the user logged in.
	CreatedAt time.Time `json:"created_at"`
	// ExpiresAt is when it ends, where nobody uses it before.
	ExpiresAt time.Time `json:"expires_at"`
}

// AuditList asks for what was changed, the latest first. Absent fields match all.
type AuditList struct {
	// Actor lets only changes of that one through.
	Actor string `json:"actor,omitempty"`
	// Operation lets only changes by that operation through.
	Operation string `json:"operation,omitempty"`
	// Account lets only changes of that account through.
	Account string `json:"account,omitempty"`
	// Since lets only changes through that were made then or later.
	Since time.Time `json:"since,omitzero"`
	// Limit is how many are listed at most, 1 to MaxPage; absent means DefaultPage.
	Limit int `json:"limit,omitempty"`
	// Cursor is the Next of the page before; absent begins.
	Cursor string `json:"cursor,omitempty"`
}

// AuditPage is a part of the list of changes.
type AuditPage struct {
	// Entries are those of this page.
	Entries []AuditEntry `json:"entries"`
	// Next is the cursor of the page after this one; absent where this is the last.
	Next string `json:"next,omitempty"`
}

// AuditEntry is a change that was made, or was refused.
type AuditEntry struct {
	// At is when.
	At time.Time `json:"at"`
	// Actor is who: user:NAME for a user of the dashboard, dashboard where it has no login,
	// token:NAME over HTTP, cli:NAME for the command line, proxy:NAME for whom a proxy names,
	// account:NAME for a client of another NATS account, address:ADDRESS for a login that
	// failed, and nats where a client says nothing.
	Actor string `json:"actor"`
	// Operation is what was asked for.
	Operation string `json:"operation"`
	// Account is the one that it concerned; absent where it concerned none.
	Account string `json:"account,omitempty"`
	// Target is the id of the request, or the name of the user or the token; absent where
	// the account or the app is all.
	Target string `json:"target,omitempty"`
	// Outcome is done, or the code of the error where it was refused.
	Outcome string `json:"outcome"`
}

// AuditDone is the outcome of a change that was made.
const AuditDone = "done"

// HeaderActor is the header in which a call over NATS states who asks. Workers believe it of
// clients in their own NATS account alone.
const HeaderActor = "Jetpost-Actor"

type actorKey struct{}

// WithActor returns a context whose calls state who asks for them, as the audit log has it.
func WithActor(ctx context.Context, actor string) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

// ActorOf is who asks, or "" where nobody said.
func ActorOf(ctx context.Context) string {
	actor, _ := ctx.Value(actorKey{}).(string)
	return actor
}
