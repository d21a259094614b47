package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// userName is the name of a user of the dashboard.
var userName = regexp.MustCompile(`^[a-z0-9][a-z0-9._@-]{0,63}$`)

const (
	// attemptWindow is how long a wrong password counts. Within it there are so many
	// attempts on one name from one address, on one name from all, and from one address
	// on all names.
	attemptWindow  = 15 * time.Minute
	maxPerBoth     = 10
	maxPerName     = 100
	maxPerAddress  = 100
	addressBits    = 64 // of an IPv6 address: a network is one asker
	maxAddressText = 100
)

// UserAdd makes a user of the dashboard.
func (c *Control) UserAdd(ctx context.Context, in jetpost.UserAdd) (jetpost.User, error) {
	password := in.Password
	in.Password = "" // no part of the digest, which is a fast one
	op, err := call(jetpost.OpUserAdd, "", in.OperationID, in)
	if err == nil {
		err = invalid(checkUserName(in.Name), checkRole(in.Role), checkPassword(password))
	}
	if err != nil {
		return jetpost.User{}, err
	}
	hash, err := c.passwords.hash(ctx, password)
	if err != nil {
		return jetpost.User{}, err
	}
	now := wholeMillis(op.Now.UTC())
	user := store.User{Name: in.Name, Role: in.Role, PasswordHash: hash, CreatedAt: now, PasswordAt: now}
	answer, _, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.User, error) {
		err := ledger.AddUser(ctx, user)
		if errors.Is(err, store.ErrUserExists) {
			return jetpost.User{}, conflict("choose another name, or set the role or the password of this one", "user %s: there is one", in.Name)
		}
		return userOf(user), err
	})
	return answer, err
}

func checkUserName(name string) error {
	if !userName.MatchString(name) {
		return fmt.Errorf("name: is %q, want 1 to 64 of a-z 0-9 . _ @ -, of which the first is a letter or a digit", name)
	}
	return nil
}

func checkRole(role jetpost.Role) error {
	if !slices.Contains(jetpost.Roles(), role) {
		return fmt.Errorf("role: %q is none of %v", role, jetpost.Roles())
	}
	return nil
}

func checkPassword(password string) error {
	if n := len(password); n < jetpost.MinPassword || n > jetpost.MaxPassword {
		return fmt.Errorf("password: has %d bytes, want %d to %d", n, jetpost.MinPassword, jetpost.MaxPassword)
	}
	return nil
}

// invalid is the first mistake.
func invalid(mistakes ...error) error {
	for _, err := range mistakes {
		if err != nil {
			return &Error{Code: jetpost.ErrInvalid, Err: err}
		}
	}
	return nil
}

// userOf is a user as the contract has it.
func userOf(u store.User) jetpost.User {
	return jetpost.User{Name: u.Name, Role: u.Role, CreatedAt: u.CreatedAt, PasswordAt: u.PasswordAt}
}

// UserList returns a page of users, by name.
func (c *Control) UserList(ctx context.Context, in jetpost.UserList) (jetpost.UserPage, error) {
	page := jetpost.UserPage{Users: []jetpost.User{}}
	var after string
	if err := readCursor(in.Cursor, &after); err != nil {
		return page, err
	}
	users, err := c.Ledger.Users(ctx)
	if err != nil {
		return page, DatabaseError(err)
	}
	users = slices.DeleteFunc(users, func(u store.User) bool { return u.Name <= after })
	users, page.Next = cut(users, in.Limit, func(u store.User) string { return u.Name })
	for _, u := range users {
		page.Users = append(page.Users, userOf(u))
	}
	return page, nil
}

// UserGet returns a user.
func (c *Control) UserGet(ctx context.Context, in jetpost.UserGet) (jetpost.User, error) {
	user, err := c.Ledger.User(ctx, in.Name)
	return userOf(user), userError(in.Name, err)
}

// userError names a user that is not there.
func userError(name string, err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return &Error{Code: jetpost.ErrNotFound, Err: fmt.Errorf("user %s: %w", name, store.ErrNotFound), Help: "see the names with: jetpost users list"}
	}
	return DatabaseError(err)
}

// UserSet gives a user another role or password.
func (c *Control) UserSet(ctx context.Context, in jetpost.UserSet) (jetpost.User, error) {
	password, hash := in.Password, ""
	in.Password = ""
	op, err := call(jetpost.OpUserSet, "", in.OperationID, in)
	if err == nil && in.Role == "" && password == "" {
		err = invalid(errors.New("give a role, a password, or both"))
	}
	if err == nil && in.Role != "" {
		err = invalid(checkRole(in.Role))
	}
	if err == nil && password != "" {
		if err = invalid(checkPassword(password)); err == nil {
			hash, err = c.passwords.hash(ctx, password)
		}
	}
	if err != nil {
		return jetpost.User{}, err
	}
	answer, _, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.User, error) {
		user, err := ledger.SetUser(ctx, in.Name, in.Role, hash, wholeMillis(op.Now))
		return userOf(user), userError(in.Name, err)
	})
	return answer, err
}

// UserRemove removes a user, and ends all sessions of the user.
func (c *Control) UserRemove(ctx context.Context, in jetpost.UserRemove) (jetpost.User, error) {
	op, err := call(jetpost.OpUserRemove, "", in.OperationID, in)
	if err != nil {
		return jetpost.User{}, err
	}
	answer, _, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.User, error) {
		user, err := ledger.RemoveUser(ctx, in.Name)
		return userOf(user), userError(in.Name, err)
	})
	return answer, err
}

// errWrongLogin tells nobody whether there is such a user.
var errWrongLogin = errors.New("name and password are no user's")

// SessionBegin logs a user in. Whether there is such a user shows neither in the answer nor
// in its time; an attempt is counted before it is made, so that many at once are no more.
func (c *Control) SessionBegin(ctx context.Context, in jetpost.SessionBegin) (jetpost.Session, error) {
	digest, err := readDigest(in.Digest)
	if err != nil {
		return jetpost.Session{}, err
	}
	if len(in.Password) > jetpost.MaxPassword || len(in.Address) > maxAddressText {
		return jetpost.Session{}, invalid(errors.New("password or address: too long"))
	}
	if !userName.MatchString(in.Name) {
		in.Name = "" // who is nobody, and costs as much
	}
	now := time.Now()
	keys := attemptKeys(in.Name, in.Address)
	counts, err := c.Ledger.CountAttempts(ctx, keys, attemptWindow, now)
	if err != nil {
		return jetpost.Session{}, DatabaseError(err)
	}
	if counts[0] > maxPerBoth || counts[1] > maxPerName || counts[2] > maxPerAddress {
		return jetpost.Session{}, &Error{Code: jetpost.ErrTooMany, Err: errors.New("too many wrong passwords"), Help: fmt.Sprintf("try again in %s", attemptWindow)}
	}
	user, err := c.Ledger.User(ctx, in.Name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return jetpost.Session{}, DatabaseError(err)
	}
	right, err := c.passwords.match(ctx, in.Password, user.PasswordHash)
	if err != nil {
		return jetpost.Session{}, err
	}
	session := store.Session{Digest: digest, User: user.Name, Role: user.Role, CreatedAt: wholeMillis(now.UTC()), SeenAt: wholeMillis(now.UTC())}
	actor := "address:" + in.Address // nobody knows who types a wrong password
	if right {
		actor = "user:" + user.Name
	}
	op := store.Operation{Name: jetpost.OpSessionBegin, Target: user.Name, Now: now} // not what was typed: it may be a password
	answer, _, err := operate(jetpost.WithActor(ctx, actor), c, op, func(ctx context.Context, ledger store.Changes) (jetpost.Session, error) {
		if right {
			err := ledger.AddSession(ctx, session)
			if err == nil {
				return sessionOf(session), ledger.ForgiveAttempts(ctx, keys)
			}
			if !errors.Is(err, store.ErrNotFound) { // somebody has removed the user since
				return jetpost.Session{}, DatabaseError(err)
			}
		}
		return jetpost.Session{}, &Error{Code: jetpost.ErrUnauthenticated, Err: errWrongLogin}
	})
	return answer, err
}

// attemptKeys are those under which a login is counted: by both, by name, by address.
func attemptKeys(name, address string) [][]byte {
	if ip, err := netip.ParseAddr(address); err == nil && ip.Unmap().Is6() {
		network, _ := ip.Prefix(addressBits)
		address = network.String()
	} else if err == nil {
		address = ip.Unmap().String()
	}
	key := func(kind, of string) []byte {
		sum := sha256.Sum256([]byte(kind + "\x00" + of))
		return sum[:]
	}
	return [][]byte{key("both", name+"\x00"+address), key("name", name), key("address", address)}
}

func readDigest(text string) ([]byte, error) {
	digest, err := hex.DecodeString(text)
	if err != nil || len(digest) != sha256.Size {
		return nil, invalid(errors.New("digest: is not the SHA-256 of a session's secret in hexadecimal digits"))
	}
	return digest, nil
}

func sessionOf(s store.Session) jetpost.Session {
	return jetpost.Session{User: s.User, Role: s.Role, CreatedAt: s.CreatedAt, ExpiresAt: s.Ends()}
}

// SessionCheck tells whose a session is, and counts as a use of it.
func (c *Control) SessionCheck(ctx context.Context, in jetpost.SessionCheck) (jetpost.Session, error) {
	digest, err := readDigest(in.Digest)
	if err != nil {
		return jetpost.Session{}, err
	}
	session, err := c.Ledger.UseSession(ctx, digest, time.Now())
	if errors.Is(err, store.ErrNotFound) {
		return jetpost.Session{}, &Error{Code: jetpost.ErrUnauthenticated, Err: errors.New("there is no such session, or it has ended"), Help: "log in"}
	}
	return sessionOf(session), DatabaseError(err)
}

// SessionEnd ends a session at once. One that has ended stays so.
func (c *Control) SessionEnd(ctx context.Context, in jetpost.SessionEnd) (jetpost.SessionEnded, error) {
	digest, err := readDigest(in.Digest)
	if err != nil {
		return jetpost.SessionEnded{}, err
	}
	op := store.Operation{Name: jetpost.OpSessionEnd, Now: time.Now()}
	answer, _, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.SessionEnded, error) {
		_, err := ledger.EndSession(ctx, digest)
		if errors.Is(err, store.ErrNotFound) {
			return jetpost.SessionEnded{}, errNotDone
		}
		return jetpost.SessionEnded{Ended: true}, err
	})
	if errors.Is(err, errNotDone) {
		err = nil
	}
	return answer, err
}
