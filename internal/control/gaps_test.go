package control_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// consents are what accounts are connected with, and how often that was tried.
type consents struct {
	mu        sync.Mutex
	oauth     *xapi.OAuth
	links     []string // ids of links that were asked for
	attempt   jetpost.AccountConnect
	link      string // of the attempt
	exchanges int
}

// x is a simulated X that revokes tokens.
func (b *bundle) x() *xapi.OAuth {
	b.Helper()
	if b.oauth == nil {
		server := httptest.NewServer(&xsim.Server{ClientID: "app"})
		b.Cleanup(server.Close)
		b.oauth = &xapi.OAuth{ClientID: "app", BaseURL: server.URL}
	}
	return b.oauth
}

// connect exchanges a code, which works once.
func (b *bundle) connect(ctx context.Context, accounts store.Accounts, code control.ConsentCode) (jetpost.Connected, error) {
	b.mu.Lock()
	b.exchanges++
	b.mu.Unlock()
	result, err := accounts.ImportAccount(ctx, store.Import{Name: code.Account, XUserID: "2", Username: "carol", Now: time.Now(), Consented: true, Pair: store.Pair{
		Access: secret.New("access of " + code.Code), Refresh: secret.New("refresh of " + code.Code), ExpiresAt: time.Now().Add(time.Hour),
	}})
	return jetpost.Connected{Name: code.Account, Result: string(result)}, err
}

// makeLink makes a link whose id is remembered.
func (b *bundle) makeLink(ctx context.Context, links control.LinkKeeper, account string, _ jetpost.AccountLink) (jetpost.Link, error) {
	token := secret.New(rand.Text() + rand.Text())
	b.mu.Lock()
	b.links = append(b.links, store.LinkID(store.LinkDigest(token)))
	b.mu.Unlock()
	ends := time.Now().Add(time.Hour)
	return jetpost.Link{URL: "https://a.example/" + token.Reveal(), Account: account, ExpiresAt: ends},
		links.AddLink(ctx, store.NewLink{Token: token, Account: account, ExpiresAt: ends, Now: time.Now()})
}

// linksMade counts the links that were asked for and are there.
func (b *bundle) linksMade() (n int) {
	b.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range b.links {
		_, err := b.ledger.Link(b.Context(), id)
		if err == nil {
			n++
		} else if !errors.Is(err, store.ErrNotFound) {
			b.Fatal(err)
		}
	}
	return n
}

// consent begins an attempt to connect carol, and seals the code that X sends back.
func (b *bundle) consent(string) {
	b.Helper()
	token, verifier := secret.New(rand.Text()+rand.Text()), xapi.NewVerifier()
	key, err := jetpost.NewCodeKey(verifier)
	b.must(err)
	browser := store.LinkDigest(secret.New(rand.Text()))
	b.link = store.LinkID(store.LinkDigest(token))
	now := time.Now()
	b.must(b.ledger.AddLink(b.Context(), store.NewLink{Token: token, Account: "carol", ExpiresAt: now.Add(time.Hour), Now: now}))
	_, err = b.ledger.BeginAttempt(b.Context(), b.link, store.LinkAttempt{
		State: store.LinkDigest(secret.New(key.State())), Browser: browser, Verifier: secret.New(verifier), ExpiresAt: now.Add(time.Hour), Now: now,
	})
	b.must(err)
	code, err := jetpost.SealCode(key.State(), "code")
	b.must(err)
	b.attempt = jetpost.AccountConnect{State: key.State(), Browser: hex.EncodeToString(browser), Code: code, RedirectURI: "https://a.example/callback"}
}

// used tells whether carol was connected with the link of the attempt.
func (b *bundle) used() bool {
	b.Helper()
	if b.link == "" {
		return false
	}
	link, err := b.ledger.Link(b.Context(), b.link)
	b.must(err)
	_, err = b.ledger.Account(b.Context(), "carol")
	if connected := err == nil; connected == link.UsedAt.IsZero() {
		b.Errorf("carol is connected: %t, and the link used at %s", connected, link.UsedAt)
	}
	return !link.UsedAt.IsZero()
}

// errKilled is what a ledger says to a worker that is dead.
var errKilled = errors.New("killed")

// dying kills its worker at an operation: its connection ends, so that nobody hears of it,
// and it changes nothing any more.
type dying struct {
	store.Store
	nc   *nats.Conn
	gap  string
	nth  int // operation
	mu   sync.Mutex
	seen int
	dead chan struct{}
}

func (d *dying) kill() error {
	d.nc.Close()
	close(d.dead)
	return errKilled
}

// alive fails once the worker is dead.
func (d *dying) alive() error {
	select {
	case <-d.dead:
		return errKilled
	default:
		return nil
	}
}

func (d *dying) Operate(ctx context.Context, op store.Operation, change func(context.Context, store.Changes) ([]byte, error)) ([]byte, bool, error) {
	if err := d.alive(); err != nil {
		return nil, false, err
	}
	d.mu.Lock()
	d.seen++
	now := d.seen == d.nth
	d.mu.Unlock()
	if now && d.gap == "before" {
		return nil, false, d.kill()
	}
	answer, repeated, err := d.Store.Operate(ctx, op, func(ctx context.Context, in store.Changes) ([]byte, error) {
		answer, err := change(ctx, in)
		if now && d.gap == "within" {
			return nil, d.kill()
		}
		return answer, err
	})
	if now && d.gap == "after" {
		return nil, false, d.kill()
	}
	return answer, repeated, err
}

func (d *dying) AnswerOperation(ctx context.Context, id string, answer []byte) error {
	if err := d.alive(); err != nil {
		return err
	}
	return d.Store.AnswerOperation(ctx, id, answer)
}

func (d *dying) GiveUpAttempt(ctx context.Context, id string, state []byte) error {
	if err := d.alive(); err != nil {
		return err
	}
	return d.Store.GiveUpAttempt(ctx, id, state)
}

// killable is an operation that a worker may be killed in.
type killable struct {
	name string
	// prepare, where set, brings about what the operation changes.
	prepare func(b *bundle, id string)
	call    func(ctx context.Context, b *bundle, c *client.Client, id, operation string) error
	// done tells by the ledger that it was done.
	done func(b *bundle, id string) bool
	// steps is how many transactions it takes, 2 where zero.
	steps int
	// told are the errors that a repeat may be answered with, and whether it was done then.
	told map[jetpost.ErrorCode]bool
}

func killables() []killable {
	return slices.Concat(requestKillables(), accountKillables(), otherKillables())
}

func requestKillables() []killable {
	now := time.Now().Truncate(time.Second)
	at := now.Add(48 * time.Hour)
	state := func(want jetpost.State) func(*bundle, string) bool {
		return func(b *bundle, id string) bool { return b.status(id).State == want }
	}
	return []killable{
		{name: "cancel", steps: 1, done: state(jetpost.StateCancelled), call: func(ctx context.Context, _ *bundle, c *client.Client, id, operation string) error {
			return second(c.RequestCancel(ctx, "acme", jetpost.RequestCancel{OperationID: operation, ID: id}))
		}},
		{name: "cancel of many", done: state(jetpost.StateCancelled), call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(c.RequestCancelMany(ctx, "acme", jetpost.RequestCancelMany{OperationID: operation, State: jetpost.StateScheduled}))
		}},
		{name: "reschedule", steps: 1, done: func(b *bundle, id string) bool { return b.status(id).PublishAt.Equal(at) }, call: func(ctx context.Context, _ *bundle, c *client.Client, id, operation string) error {
			return second(c.RequestReschedule(ctx, "", jetpost.RequestReschedule{OperationID: operation, ID: id, At: at}))
		}},
		{name: "unpublish", steps: 1, done: state(jetpost.StateCancelled), call: func(ctx context.Context, _ *bundle, c *client.Client, id, operation string) error {
			return second(c.RequestUnpublish(ctx, "acme", jetpost.RequestUnpublish{OperationID: operation, ID: id}))
		}},
		{name: "replay", steps: 3, done: func(b *bundle, id string) bool { return b.status(id).State != jetpost.StateFailed }, prepare: func(b *bundle, _ string) {
			_, err := b.ledger.ExpireLate(b.Context(), "acme", now.Add(30*time.Hour), 1, now)
			b.must(err)
		}, call: func(ctx context.Context, _ *bundle, c *client.Client, id, operation string) error {
			return second(c.RequestReplay(ctx, "acme", jetpost.RequestReplay{OperationID: operation, IDs: []string{id}}))
		}},
		{name: "erase", done: func(b *bundle, _ string) bool {
			_, err := b.ledger.Account(b.Context(), "acme")
			return errors.Is(err, store.ErrNotFound)
		}, call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			erased, err := c.AccountErase(ctx, "acme", jetpost.AccountErase{OperationID: operation})
			if err == nil && !erased.Done {
				err = errors.New(erased.Left)
			}
			return err
		}},
		{name: "expiry and resume", done: state(jetpost.StateFailed), call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(c.AccountResume(ctx, "acme", jetpost.ResumeRequest{OperationID: operation, ExpireBefore: now.Add(30 * time.Hour)}))
		}},
	}
}

func accountKillables() []killable {
	account := func(b *bundle) store.Account {
		account, err := b.ledger.Account(b.Context(), "acme")
		b.must(err)
		return account
	}
	appPaused := func(b *bundle, _ string) bool {
		pauses, err := consumers.DesiredPauses(b.Context(), b.ledger, time.Now())
		b.must(err)
		return len(pauses) > 0
	}
	return []killable{
		{name: "pause", steps: 1, done: func(b *bundle, _ string) bool { return account(b).Pause.Active(time.Now()) }, call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(c.AccountPause(ctx, "acme", jetpost.PauseRequest{OperationID: operation, Reason: "lunch"}))
		}},
		{name: "pause of the app", done: appPaused, call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(c.AppPause(ctx, jetpost.PauseRequest{OperationID: operation, Reason: "audit"}))
		}},
		{name: "resume of the app", done: func(b *bundle, id string) bool { return !appPaused(b, id) }, prepare: func(b *bundle, _ string) {
			own := control.New(control.Control{Ledger: b.ledger, JS: b.js, Log: slog.New(slog.DiscardHandler)})
			b.must(second(own.AppPause(b.Context(), jetpost.PauseRequest{Reason: "audit"})))
		}, call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(c.AppResume(ctx, jetpost.ResumeRequest{OperationID: operation}))
		}},
		{name: "disconnect", done: func(b *bundle, _ string) bool { return account(b).Disconnected() }, call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(c.AccountDisconnect(ctx, "acme", jetpost.AccountDisconnect{OperationID: operation}))
		}},
		{name: "refresh", done: func(b *bundle, _ string) bool {
			orders, err := b.js.Stream(b.Context(), (jetpost.Names{}).RefreshStream())
			b.must(err)
			return orders.CachedInfo().State.Msgs > 0 // one that is ordered twice harms nobody
		}, call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(c.AccountRefresh(ctx, "acme", jetpost.AccountRefresh{OperationID: operation, Force: true}))
		}},
		{name: "link", steps: 1, done: func(b *bundle, _ string) bool { return b.linksMade() == 1 }, told: map[jetpost.ErrorCode]bool{jetpost.ErrConflict: true}, call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(c.AccountLink(ctx, "carol", jetpost.AccountLink{OperationID: operation}))
		}},
		{name: "connect", prepare: (*bundle).consent, done: func(b *bundle, _ string) bool { return b.used() }, told: map[jetpost.ErrorCode]bool{jetpost.ErrStillWaiting: false}, call: func(ctx context.Context, b *bundle, c *client.Client, _, operation string) error {
			in := b.attempt
			in.OperationID = operation
			return second(c.AccountConnect(ctx, "carol", in))
		}},
	}
}

// otherKillables are those on what is no request and no pause.
func otherKillables() []killable {
	const object = "media.put/acme/"
	file := picture(100)
	return []killable{
		{name: "media", done: func(b *bundle, _ string) bool {
			media, err := publishers.OpenMediaObjects(b.Context(), b.js, jetpost.Names{})
			b.must(err)
			all, err := media.List(b.Context())
			b.must(err)
			return len(all) == 1 && strings.HasPrefix(all[0].Name, object)
		}, call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(put(ctx, c, "acme", jetpost.MediaPut{OperationID: operation, Data: file}))
		}},
		{name: "limit", steps: 1, done: func(b *bundle, _ string) bool {
			spent, err := b.ledger.MonthSpent(b.Context(), "acme", time.Now())
			b.must(err)
			return spent.Limit > 0
		}, call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(c.AccountLimit(ctx, "acme", jetpost.AccountLimit{OperationID: operation, MonthlyUSD: 2.5}))
		}},
		{name: "token", steps: 1, done: func(b *bundle, _ string) bool {
			_, err := b.ledger.APIToken(b.Context(), "shop")
			return err == nil
		}, call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(c.TokenCreate(ctx, shopToken(operation)))
		}},
		{name: "webhook", steps: 1, done: func(b *bundle, _ string) bool {
			hooks, err := b.ledger.Hooks(b.Context())
			b.must(err)
			return len(hooks) == 1
		}, call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(c.HookCreate(ctx, "acme", jetpost.HookCreate{OperationID: operation, URL: "https://example.com/in"}))
		}},
		{name: "user", steps: 1, done: func(b *bundle, _ string) bool {
			_, err := b.ledger.User(b.Context(), "anna")
			return err == nil
		}, call: func(ctx context.Context, _ *bundle, c *client.Client, _, operation string) error {
			return second(c.UserAdd(ctx, jetpost.UserAdd{OperationID: operation, Name: "anna", Role: jetpost.RoleViewer, Password: rightPassword}))
		}},
	}
}

// shopToken is an API token that ends at the same time whenever it is asked for.
func shopToken(operation string) jetpost.TokenCreate {
	return jetpost.TokenCreate{
		OperationID: operation, Name: "shop", Digest: strings.Repeat("ab", 32), Accounts: []string{"acme"}, Verbs: jetpost.Verbs(),
		ExpiresAt: time.Now().UTC().Truncate(24 * time.Hour).Add(48 * time.Hour),
	}
}

// TestWorkerDiesInOperation: a worker that is killed in any gap of an operation leaves it
// done or not done; the same call to another worker does it, or finds it done and changes
// nothing, or tells that it was begun and not done.
func TestWorkerDiesInOperation(t *testing.T) {
	t.Parallel()
	for database, open := range databases() {
		for _, op := range killables() {
			for _, gap := range []string{"before", "within", "after"} {
				for nth := 1; nth <= cmp.Or(op.steps, 2); nth++ {
					// What a database does with a transaction that ends shows in one gap of each operation.
					if database == "postgres" && (gap != "after" || nth != 1) && os.Getenv("JETPOST_TEST_FULL") == "" {
						continue
					}
					t.Run(fmt.Sprintf("%s/%s/%s/%d", database, op.name, gap, nth), func(t *testing.T) {
						t.Parallel()
						dieIn(t, setupOn(t, open), op, gap, nth)
					})
				}
			}
		}
	}
}

func dieIn(t *testing.T, b *bundle, op killable, gap string, nth int) {
	t.Helper()
	id := b.scheduled()
	if op.prepare != nil {
		op.prepare(b, id)
	}
	var first *dying
	connections := b.server.NumClients()
	stop := b.serve("first", func(ledger store.Store, nc *nats.Conn) store.Store {
		first = &dying{Store: ledger, nc: nc, gap: gap, nth: nth, dead: make(chan struct{})}
		return first
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		select {
		case <-first.dead:
			cancel() // nobody answers any more
		case <-ctx.Done():
		}
	}()
	err := op.call(ctx, b, b.client, id, "op")
	killed := ctx.Err() != nil
	cancel()
	stop()
	if killed { // a server that has not noticed yet hands the repeat to the dead
		testkit.Eventually(t, "the server to drop the connection", func() bool { return b.server.NumClients() <= connections })
	}
	if killed == (err == nil) {
		t.Fatalf("killed: %t, yet the call ends with %v", killed, err)
	}
	if !killed && nth == 1 {
		t.Fatal("the worker was not killed")
	}
	was, before := op.done(b, id), b.held(0)
	if !killed && !was {
		t.Error("it was answered, and not done")
	}
	b.serve("second", nil)
	done := true
	if err := op.call(t.Context(), b, b.newClient(), id, "op"); err != nil {
		told := &client.Error{}
		_ = errors.As(err, &told) // or it has no code
		var known bool
		if done, known = op.told[told.Code]; !known {
			t.Fatalf("the repeat: %v", err)
		}
	}
	if op.done(b, id) != done {
		t.Errorf("the repeat tells that it is done: %t, and it is not so", done)
	}
	if after := b.held(0); was && gap == "after" && after != before {
		t.Errorf("the repeat of what was done changed\n%s\nto\n%s", before, after)
	}
	if b.exchanges > 1 {
		t.Errorf("the code was exchanged %d times", b.exchanges)
	}
}
