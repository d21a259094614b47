package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

func (b *bundle) user(name string, role jetpost.Role) store.User {
	return store.User{Name: name, Role: role, PasswordHash: "hash of " + name, CreatedAt: b.now, PasswordAt: b.now}
}

// session is one that begins so long after now.
func (b *bundle) session(user, secret string, after time.Duration) store.Session {
	digest := sha256.Sum256([]byte(secret))
	return store.Session{Digest: digest[:], User: user, Role: jetpost.RoleEditor, CreatedAt: b.now.Add(after), SeenAt: b.now.Add(after)}
}

// users: a user is kept as it is until it is set or removed, and once only.
func users(t *testing.T, b *bundle) {
	_, err := b.st.User(t.Context(), "anna")
	fails(t, "no user", err, store.ErrNotFound)
	bob, anna := b.user("bob", jetpost.RoleViewer), b.user("anna", jetpost.RoleAdmin)
	testkit.Must(t, b.st.AddUser(t.Context(), bob))
	testkit.Must(t, b.st.AddUser(t.Context(), anna))
	fails(t, "a second user of a name", b.st.AddUser(t.Context(), b.user("bob", jetpost.RoleAdmin)), store.ErrUserExists)
	all, err := b.st.Users(t.Context())
	testkit.Must(t, err)
	equal(t, "users", all, []store.User{anna, bob})

	bob.Role = jetpost.RoleEditor
	got, err := b.st.SetUser(t.Context(), "bob", jetpost.RoleEditor, "", b.now.Add(time.Hour))
	testkit.Must(t, err)
	equal(t, "user with another role", got, bob)
	bob.PasswordHash, bob.PasswordAt = "another", b.now.Add(time.Hour)
	_, err = b.st.SetUser(t.Context(), "bob", "", "another", b.now.Add(time.Hour))
	testkit.Must(t, err)
	got, err = b.st.User(t.Context(), "bob")
	testkit.Must(t, err)
	equal(t, "user with another password", got, bob)
	_, err = b.st.SetUser(t.Context(), "none", jetpost.RoleAdmin, "", b.now)
	fails(t, "set nobody", err, store.ErrNotFound)

	got, err = b.st.RemoveUser(t.Context(), "bob")
	testkit.Must(t, err)
	equal(t, "removed user", got, bob)
	_, err = b.st.RemoveUser(t.Context(), "bob")
	fails(t, "remove nobody", err, store.ErrNotFound)
	got, err = b.st.User(t.Context(), "anna")
	testkit.Must(t, err)
	equal(t, "the other user", got, anna)
}

// sessions: a session lasts until nobody has used it for some time, until its life is over,
// or until it, its user or its user's password goes.
func sessions(t *testing.T, b *bundle) {
	for _, name := range []string{"anna", "bob"} {
		testkit.Must(t, b.st.AddUser(t.Context(), b.user(name, jetpost.RoleEditor)))
	}
	add := func(s store.Session) { t.Helper(); testkit.Must(t, b.st.AddSession(t.Context(), s)) }
	lasts := func(what string, s store.Session, after time.Duration, want bool) {
		t.Helper()
		got, err := b.st.UseSession(t.Context(), s.Digest, b.now.Add(after))
		if want {
			testkit.Must(t, err)
			equal(t, what, got.User+" "+string(got.Role), s.User+" "+string(jetpost.RoleEditor))
			return
		}
		fails(t, what, err, store.ErrNotFound)
	}
	fails(t, "a session of nobody", b.st.AddSession(t.Context(), b.session("none", "x", 0)), store.ErrNotFound)
	idle, used := b.session("anna", "idle", 0), b.session("anna", "used", 0)
	add(idle)
	add(used)
	add(idle) // a repeat
	stolen := b.session("bob", "idle", 0)
	fails(t, "another user's session", b.st.AddSession(t.Context(), stolen), store.ErrNotFound)
	lasts("not used for nearly too long", idle, jetpost.SessionIdle-time.Second, true)
	lasts("used then", idle, 2*jetpost.SessionIdle-2*time.Second, true)
	lasts("not used for too long", idle, 3*jetpost.SessionIdle, false)
	for after := time.Duration(0); after < jetpost.SessionLife; after += jetpost.SessionIdle - time.Minute {
		lasts("used all the time", used, after, true)
	}
	lasts("at the end of its life", used, jetpost.SessionLife, false)

	first, second, other := b.session("anna", "first", 0), b.session("anna", "second", 0), b.session("bob", "other", 0)
	add(first)
	add(second)
	add(other)
	got, err := b.st.EndSession(t.Context(), first.Digest)
	testkit.Must(t, err)
	equal(t, "ended session", got, first)
	_, err = b.st.EndSession(t.Context(), first.Digest)
	fails(t, "ended twice", err, store.ErrNotFound)
	lasts("ended", first, 0, false)
	lasts("the other of that user", second, 0, true)
	_, err = b.st.SetUser(t.Context(), "anna", jetpost.RoleEditor, "", b.now)
	testkit.Must(t, err)
	lasts("after the role was set", second, 0, true)
	_, err = b.st.SetUser(t.Context(), "anna", "", "another", b.now)
	testkit.Must(t, err)
	lasts("after the password was set", second, 0, false)
	lasts("of another user", other, 0, true)
	_, err = b.st.RemoveUser(t.Context(), "bob")
	testkit.Must(t, err)
	lasts("after the user was removed", other, 0, false)
}

// loginAttempts: attempts count in their window alone, however many come at once.
func loginAttempts(t *testing.T, b *bundle) {
	key := func(name string) []byte { sum := sha256.Sum256([]byte(name)); return sum[:] }
	one, two := [][]byte{key("one"), key("both")}, [][]byte{key("both"), key("two")}
	const window = time.Minute
	count := func(keys [][]byte, after time.Duration) string {
		t.Helper()
		counts, err := b.st.CountAttempts(t.Context(), keys, window, b.now.Add(after))
		testkit.Must(t, err)
		return fmt.Sprint(counts)
	}
	equal(t, "the first", count(one, 0), "[1 1]")
	equal(t, "the second", count(two, 30*time.Second), "[2 1]")
	testkit.Must(t, b.st.ForgiveAttempts(t.Context(), two))
	equal(t, "after one was forgiven", count(two, 40*time.Second), "[2 1]")
	equal(t, "once the window of one has ended", count(two, time.Minute), "[1 2]")
	var all sync.WaitGroup
	const askers, each = 8, 5
	for i := range askers {
		st := b.open(t, b.keys)
		keys := [][][]byte{one, two}[i%2]
		all.Go(func() {
			for range each {
				if _, err := st.CountAttempts(t.Context(), keys, window, b.now.Add(2*time.Hour)); err != nil {
					t.Errorf("count: %v", err)
				}
			}
		})
	}
	all.Wait()
	equal(t, "after many at once", count(one, 2*time.Hour), fmt.Sprintf("[%d %d]", askers*each/2+1, askers*each+1))
}

// audits: changes are told the latest first, filtered, and forgotten after their time.
func audits(t *testing.T, b *bundle) {
	add := func(actor string, o jetpost.Operation, account string, after time.Duration) {
		t.Helper()
		testkit.Must(t, b.st.AddAudit(t.Context(), store.Audit{At: b.now.Add(after), Actor: actor, Operation: o, Account: account, Target: "t\x00", Outcome: "done"}))
	}
	add("user:anna", jetpost.OpAccountPause, acme, 0)
	add("cli:root", jetpost.OpAppPause, "", time.Minute)
	add("user:anna", jetpost.OpRequestCancel, "other", 2*time.Minute)
	list := func(f store.AuditFilter) (found string) {
		t.Helper()
		if f.Before == 0 {
			f.Before = 1 << 62
		}
		if f.Limit == 0 {
			f.Limit = 10
		}
		all, err := b.st.Audits(t.Context(), f)
		testkit.Must(t, err)
		for _, a := range all {
			found += fmt.Sprintf("%s %s %s %s;", a.Actor, a.Operation, a.Account, a.At.Sub(b.now))
		}
		return found
	}
	pause, app, cancel := "user:anna account.pause acme 0s;", "cli:root app.pause  1m0s;", "user:anna request.cancel other 2m0s;"
	equal(t, "all", list(store.AuditFilter{}), cancel+app+pause)
	equal(t, "two", list(store.AuditFilter{Limit: 2}), cancel+app)
	equal(t, "of anna", list(store.AuditFilter{Actor: "user:anna"}), cancel+pause)
	equal(t, "app pauses", list(store.AuditFilter{Operation: "app.pause"}), app)
	equal(t, "of acme", list(store.AuditFilter{Account: acme}), pause)
	equal(t, "since", list(store.AuditFilter{Since: b.now.Add(time.Minute)}), cancel+app)
	all, err := b.st.Audits(t.Context(), store.AuditFilter{Before: 1 << 62, Limit: 1})
	testkit.Must(t, err)
	equal(t, "the page after", list(store.AuditFilter{Before: all[0].Seq}), app+pause)
	add("cli:root", jetpost.OpAppResume, "", rules.AuditRetention+30*time.Second)
	equal(t, "a year later", list(store.AuditFilter{Limit: 3, Since: b.now.Add(-time.Hour)}), fmt.Sprintf("cli:root app.resume  %s;", rules.AuditRetention+30*time.Second)+cancel+app)
}

// userOperation: users, sessions and what is noted of a change are parts of the operation
// that makes it.
func userOperation(t *testing.T, b *bundle) {
	session := b.session("anna", "secret", 0)
	key := bytes.Repeat([]byte{1}, sha256.Size)
	does := func(ctx context.Context, in store.Changes) error {
		testkit.Must(t, in.AddUser(ctx, b.user("anna", jetpost.RoleEditor)))
		testkit.Must(t, in.AddSession(ctx, session))
		testkit.Must(t, in.ForgiveAttempts(ctx, [][]byte{key}))
		return in.AddAudit(ctx, b.operation("op").Audit("user:anna", "done"))
	}
	_, err := b.st.CountAttempts(t.Context(), [][]byte{key}, time.Hour, b.now)
	testkit.Must(t, err)
	_, _, err = b.st.Operate(t.Context(), b.operation("op"), func(ctx context.Context, in store.Changes) ([]byte, error) {
		testkit.Must(t, does(ctx, in))
		return nil, context.Canceled
	})
	fails(t, "operation that fails", err, context.Canceled)
	_, err = b.st.User(t.Context(), "anna")
	fails(t, "user of an operation that failed", err, store.ErrNotFound)
	noted, err := b.st.Audits(t.Context(), store.AuditFilter{Before: 1 << 62, Limit: 10})
	testkit.Must(t, err)
	equal(t, "noted of an operation that failed", len(noted), 0)
	for _, repeat := range []bool{false, true} {
		_, repeated := b.operate(t, b.operation("op"), func(ctx context.Context, in store.Changes) ([]byte, error) { return nil, does(ctx, in) })
		equal(t, "repeated", repeated, repeat)
	}
	got, err := b.st.UseSession(t.Context(), session.Digest, b.now)
	testkit.Must(t, err)
	equal(t, "session", got, session)
	noted, err = b.st.Audits(t.Context(), store.AuditFilter{Before: 1 << 62, Limit: 10})
	testkit.Must(t, err)
	equal(t, "noted", len(noted), 1)
	counts, err := b.st.CountAttempts(t.Context(), [][]byte{key}, time.Hour, b.now)
	testkit.Must(t, err)
	equal(t, "attempts", counts[0], 1)
	_, _, err = b.st.Operate(t.Context(), b.operation("end"), func(ctx context.Context, in store.Changes) ([]byte, error) {
		_, err := in.EndSession(ctx, session.Digest)
		testkit.Must(t, err)
		_, err = in.SetUser(ctx, "anna", jetpost.RoleViewer, "", b.now)
		testkit.Must(t, err)
		_, err = in.RemoveUser(ctx, "anna")
		return nil, err
	})
	testkit.Must(t, err)
	_, err = b.st.User(t.Context(), "anna")
	fails(t, "removed user", err, store.ErrNotFound)
}
