package control_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/crypto/argon2"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/store"
)

const rightPassword = "correct horse battery"

// begin logs in, and returns the code of the error.
func (b *bundle) begin(name, password, address string) (string, jetpost.ErrorCode) {
	b.Helper()
	sum := sha256.Sum256([]byte(client.NewOperationID()))
	digest := hex.EncodeToString(sum[:])
	_, err := b.client.SessionBegin(b.Context(), jetpost.SessionBegin{Name: name, Password: password, Address: address, Digest: digest})
	return digest, codeOf(err)
}

func codeOf(err error) jetpost.ErrorCode {
	var told *jetpost.APIError
	if errors.As(err, &told) {
		return told.Code
	}
	return ""
}

func (b *bundle) addUser(name string) {
	b.Helper()
	_, err := b.client.UserAdd(b.Context(), jetpost.UserAdd{Name: name, Role: jetpost.RoleEditor, Password: rightPassword})
	b.must(err)
}

// addCheapUser makes a user whose password takes next to nothing to compare, so that many
// logins at once are answered in time on a busy machine.
func (b *bundle) addCheapUser(name string) {
	b.Helper()
	encode := base64.RawStdEncoding.EncodeToString
	salt := []byte("sixteen bytes of")
	hash := fmt.Sprintf("$argon2id$v=%d$m=8,t=1,p=1$%s$%s", argon2.Version, encode(salt), encode(argon2.IDKey([]byte(rightPassword), salt, 1, 8, 1, 32)))
	b.must(b.ledger.AddUser(b.Context(), store.User{Name: name, Role: jetpost.RoleEditor, PasswordHash: hash, CreatedAt: time.Now(), PasswordAt: time.Now()}))
}

// noted is what the audit log has, the latest first.
func (b *bundle) noted(in jetpost.AuditList) string {
	b.Helper()
	page, err := b.client.AuditList(b.Context(), in)
	b.must(err)
	lines := make([]string, len(page.Entries))
	for i, e := range page.Entries {
		lines[i] = strings.Join([]string{e.Actor, e.Operation, e.Account, e.Target, e.Outcome}, " ")
	}
	return strings.Join(lines, "\n")
}

// TestUsers: users are made once, changed and removed, by what the contract allows alone.
func TestUsers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	ctx := t.Context()
	for what, in := range map[string]jetpost.UserAdd{
		"no name": {Role: jetpost.RoleViewer, Password: rightPassword}, "a bad name": {Name: "A b", Role: jetpost.RoleViewer, Password: rightPassword},
		"no role": {Name: "anna", Password: rightPassword}, "a bad role": {Name: "anna", Role: "root", Password: rightPassword},
		"a short password": {Name: "anna", Role: jetpost.RoleViewer, Password: "short"},
		"a long password":  {Name: "anna", Role: jetpost.RoleViewer, Password: strings.Repeat("x", jetpost.MaxPassword+1)},
	} {
		if _, err := b.client.UserAdd(ctx, in); codeOf(err) != jetpost.ErrInvalid || in.Password != "" && strings.Contains(fmt.Sprint(err), in.Password) {
			t.Errorf("%s: %v", what, err)
		}
	}
	add := jetpost.UserAdd{OperationID: "op", Name: "anna", Role: jetpost.RoleViewer, Password: rightPassword}
	first, err := b.client.UserAdd(ctx, add)
	b.must(err)
	add.Password += "!" // no part of what makes a repeat: its digest would be a fast hash
	again, err := b.client.UserAdd(ctx, add)
	if err != nil || again != first {
		t.Errorf("a repeat: %+v, %v, want %+v", again, err, first)
	}
	add.OperationID = "another"
	if _, err := b.client.UserAdd(ctx, add); codeOf(err) != jetpost.ErrConflict {
		t.Errorf("a second one of the name: %v", err)
	}
	b.addUser("bob")
	page, err := b.client.UserList(ctx, jetpost.UserList{Limit: 1})
	if err != nil || len(page.Users) != 1 || page.Users[0] != first || page.Next == "" {
		t.Errorf("list: %+v, %v", page, err)
	}
	user, err := b.ledger.User(ctx, "anna")
	if err != nil || !strings.HasPrefix(user.PasswordHash, "$argon2id$v=19$m=19456,t=2,p=1$") || strings.Contains(user.PasswordHash, rightPassword) {
		t.Errorf("stored: %+v, %v", user, err)
	}
	if _, code := b.begin("anna", rightPassword, "192.0.2.7"); code != "" {
		t.Errorf("login: %s", code)
	}
	set, err := b.client.UserSet(ctx, jetpost.UserSet{Name: "anna", Role: jetpost.RoleAdmin, Password: "another password"})
	if err != nil || set.Role != jetpost.RoleAdmin {
		t.Errorf("set: %+v, %v", set, err)
	}
	if _, code := b.begin("anna", rightPassword, "192.0.2.7"); code != jetpost.ErrUnauthenticated {
		t.Errorf("login with the password before: %q", code)
	}
	for what, err := range map[string]error{
		"set nothing": second(b.client.UserSet(ctx, jetpost.UserSet{Name: "anna"})), "set a bad role": second(b.client.UserSet(ctx, jetpost.UserSet{Name: "anna", Role: "root"})),
	} {
		if codeOf(err) != jetpost.ErrInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := b.client.UserRemove(ctx, jetpost.UserRemove{Name: "none"}); codeOf(err) != jetpost.ErrNotFound {
		t.Errorf("remove nobody: %v", err)
	}
	b.must(second(b.client.UserRemove(ctx, jetpost.UserRemove{Name: "anna"})))
	if _, err := b.client.UserGet(ctx, jetpost.UserGet{Name: "anna"}); codeOf(err) != jetpost.ErrNotFound {
		t.Errorf("removed: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestLogin: a wrong password and an unknown name are told alike, and counted alike; many at
// once are no more attempts than one after the other.
func TestLogin(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	b.serve("two", nil)
	b.addCheapUser("anna")
	digest, code := b.begin("anna", rightPassword, "192.0.2.1")
	if code != "" {
		t.Fatalf("login: %s", code)
	}
	session, err := b.client.SessionCheck(t.Context(), jetpost.SessionCheck{Digest: digest})
	if err != nil || session.User != "anna" || session.Role != jetpost.RoleEditor {
		t.Errorf("session: %+v, %v", session, err)
	}
	for _, want := range []bool{true, false} {
		if is, err := b.client.SessionEnd(t.Context(), jetpost.SessionEnd{Digest: digest}); err != nil || is.Ended != want {
			t.Errorf("end: %+v, %v", is, err)
		}
	}
	if _, err := b.client.SessionCheck(t.Context(), jetpost.SessionCheck{Digest: digest}); codeOf(err) != jetpost.ErrUnauthenticated {
		t.Errorf("ended session: %v", err)
	}
	var mu sync.Mutex
	codes := map[jetpost.ErrorCode]int{}
	var all sync.WaitGroup
	for range 15 {
		all.Go(func() {
			_, code := b.begin("anna", "wrong", "192.0.2.1")
			mu.Lock()
			defer mu.Unlock()
			codes[code]++
		})
	}
	all.Wait()
	if codes[jetpost.ErrUnauthenticated] != 10 || codes[jetpost.ErrTooMany] != 5 {
		t.Errorf("15 attempts at once: %v", codes)
	}
	for range 11 {
		_, code = b.begin("nobody", "wrong", "192.0.2.1")
	}
	if code != jetpost.ErrTooMany {
		t.Errorf("11 attempts of an unknown name: %s", code)
	}
	// One network of IPv6 is one asker.
	for i := range 11 {
		_, code = b.begin("anna", "wrong", fmt.Sprintf("2001:db8::%x", i+1))
	}
	if code != jetpost.ErrTooMany {
		t.Errorf("from a network: %s", code)
	}
	if _, code := b.begin("anna", rightPassword, "2001:db8:0:1::1"); code != "" {
		t.Errorf("from another network: %s", code)
	}
	if got := b.noted(jetpost.AuditList{Operation: "session.begin", Limit: 1}); got != "user:anna session.begin  anna done" {
		t.Errorf("noted %q", got)
	}
	if got := b.noted(jetpost.AuditList{Actor: "address:192.0.2.1"}); strings.Count(got, "session.begin  anna unauthenticated") != 10 || strings.Contains(got, "nobody") {
		t.Errorf("noted\n%s", got)
	}
}

// TestAudit: each change is noted once, with who asked for it, and so is a refusal.
func TestAudit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	id := b.scheduled()
	anna := jetpost.WithActor(t.Context(), "user:anna")
	for range 2 {
		b.must(second(b.client.AccountPause(anna, "acme", jetpost.PauseRequest{OperationID: "pause"})))
	}
	b.must(second(b.client.RequestCancel(anna, "", jetpost.RequestCancel{ID: id})))
	if _, err := b.client.RequestCancel(t.Context(), "acme", jetpost.RequestCancel{ID: "none"}); codeOf(err) != jetpost.ErrNotFound {
		t.Errorf("cancel nothing: %v", err)
	}
	b.must(second(b.client.TokenCreate(jetpost.WithActor(t.Context(), "bad\x07actor"), jetpost.TokenCreate{
		Name: "shop", Digest: strings.Repeat("ab", 32), Accounts: []string{"acme"}, Verbs: jetpost.Verbs(), ExpiresAt: time.Now().Add(time.Hour),
	})))
	b.must(second(b.client.RequestCount(anna, "")))
	want := "nats token.create  shop done\nnats request.cancel acme none not_found\nuser:anna request.cancel acme " + id + " done\nuser:anna account.pause acme  done"
	if got := b.noted(jetpost.AuditList{}); got != want {
		t.Errorf("noted\n%s\nwant\n%s", got, want)
	}
	page, err := b.client.AuditList(t.Context(), jetpost.AuditList{Actor: "user:anna", Limit: 1})
	b.must(err)
	rest := b.noted(jetpost.AuditList{Actor: "user:anna", Limit: 1, Cursor: page.Next})
	if rest != "user:anna account.pause acme  done" {
		t.Errorf("the next page is %q", rest)
	}
}

// unnoted is a ledger that cannot note a change.
type unnoted struct{ store.Store }

var errUnnoted = errors.New("no room")

func (u unnoted) Operate(ctx context.Context, op store.Operation, change func(context.Context, store.Changes) ([]byte, error)) ([]byte, bool, error) {
	return u.Store.Operate(ctx, op, func(ctx context.Context, in store.Changes) ([]byte, error) { return change(ctx, unnotedChanges{in}) })
}

type unnotedChanges struct{ store.Changes }

func (unnotedChanges) AddAudit(context.Context, store.Audit) error { return errUnnoted }

// TestAuditIsPartOfTheChange: what cannot be noted is not done.
func TestAuditIsPartOfTheChange(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", func(s store.Store, _ *nats.Conn) store.Store { return unnoted{s} })
	id := b.scheduled()
	if _, err := b.client.RequestCancel(t.Context(), "acme", jetpost.RequestCancel{ID: id}); codeOf(err) != jetpost.ErrInternal {
		t.Errorf("cancel: %v", err)
	}
	record, err := b.ledger.Request(t.Context(), store.Key{Account: "acme", ID: id})
	if err != nil || record.Status.State != jetpost.StateScheduled {
		t.Errorf("the request is %s, %v", record.Status.State, err)
	}
}

// TestConnectIsNoted: an account that is connected is noted once, and so is an attempt that
// comes to nothing, with why.
func TestConnectIsNoted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	link := jetpost.WithActor(t.Context(), "link")
	b.consent("")
	wrong := b.attempt
	wrong.Code = "nonsense"
	if _, err := b.client.AccountConnect(link, "carol", wrong); codeOf(err) != jetpost.ErrInvalid {
		t.Errorf("a wrong code: %v", err)
	}
	b.consent("")
	b.attempt.OperationID = "connect"
	for range 2 {
		b.must(second(b.client.AccountConnect(link, "carol", b.attempt)))
	}
	other := b.attempt
	other.OperationID = "late"
	if _, err := b.client.AccountConnect(link, "carol", other); codeOf(err) != jetpost.ErrLinkUsed {
		t.Errorf("the attempt again: %v", err)
	}
	want := "link account.connect carol  link_used\nlink account.connect carol  done\nlink account.connect carol  invalid"
	if got := b.noted(jetpost.AuditList{Operation: string(jetpost.OpAccountConnect)}); got != want {
		t.Errorf("noted\n%s\nwant\n%s", got, want)
	}
}
