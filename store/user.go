package store

import (
	"context"
	"errors"
	"time"

	"github.com/jetpost/jetpost"
)

// ErrUserExists says that a user has the name.
var ErrUserExists = errors.New("a user has that name")

// User is a user of the dashboard.
type User struct {
	Name string
	Role jetpost.Role
	// PasswordHash is made of the password, which is stored nowhere.
	PasswordHash string
	// PasswordAt is when it was last set.
	CreatedAt, PasswordAt time.Time
}

// Session is a browser in which a user has logged in.
type Session struct {
	Digest []byte // SHA-256 of its secret, which is stored nowhere
	User   string
	// Role is the user's.
	Role jetpost.Role
	// SeenAt is when it was last used, or up to a minute before.
	CreatedAt, SeenAt time.Time
}

// Ends is when the session ends, where nobody uses it before.
func (s Session) Ends() time.Time {
	ends, last := s.SeenAt.Add(jetpost.SessionIdle), s.CreatedAt.Add(jetpost.SessionLife)
	if last.Before(ends) {
		return last
	}
	return ends
}

// Users keeps the users of the dashboard, their sessions, and what they try to log in.
type Users interface {
	// AddUser stores a user. ErrUserExists.
	AddUser(ctx context.Context, user User) error
	// SetUser gives a user another role, unless it is "", and another password, unless its
	// hash is "", which ends the user's sessions. ErrNotFound.
	SetUser(ctx context.Context, name string, role jetpost.Role, passwordHash string, now time.Time) (User, error)
	// RemoveUser removes a user with all sessions. ErrNotFound.
	RemoveUser(ctx context.Context, name string) (User, error)
	// User returns a user, or ErrNotFound.
	User(ctx context.Context, name string) (User, error)
	// Users returns all users by name.
	Users(ctx context.Context) ([]User, error)

	// AddSession stores a session, whose CreatedAt is now, and forgets some that have
	// ended. One of that digest stays as it is. ErrNotFound: there is no such user.
	AddSession(ctx context.Context, session Session) error
	// UseSession returns a session that lasts, with its user's role, and notes that it was
	// used. ErrNotFound.
	UseSession(ctx context.Context, digest []byte, now time.Time) (Session, error)
	// EndSession removes a session, and returns it. ErrNotFound.
	EndSession(ctx context.Context, digest []byte) (Session, error)

	// CountAttempts counts an attempt under each key, before it is made, and returns the
	// counts in the order of the keys: those of a window that began with the first one. It
	// forgets some of windows that have ended.
	CountAttempts(ctx context.Context, keys [][]byte, window time.Duration, now time.Time) ([]int, error)
	// ForgiveAttempts takes one attempt back, which was none to be counted.
	ForgiveAttempts(ctx context.Context, keys [][]byte) error
}

// Audit is a change that was made or refused, and who asked for it.
type Audit struct {
	// Seq grows with each.
	Seq int64
	At  time.Time
	// Actor, Account, Target and Outcome are as in jetpost.AuditEntry.
	Actor, Account, Target, Outcome string
	Operation                       jetpost.Operation
}

// AuditFilter picks changes. Zero fields match all.
type AuditFilter struct {
	Actor, Operation, Account string
	Since                     time.Time
	// Before picks those with a smaller Seq.
	Before int64
	Limit  int
}

// Audits tells who changed what.
type Audits interface {
	// AddAudit stores a change, and forgets some older than a year.
	AddAudit(ctx context.Context, audit Audit) error
	// Audits returns changes, the latest first.
	Audits(ctx context.Context, filter AuditFilter) ([]Audit, error)
}
