package consumers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/internal/xspectest"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/sqlite"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// patience is how long a test waits for a fact. It is long enough for a loaded machine.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// An upload of an object that ends before this goroutine of its own has begun leaves
		// it behind, in nats.go.
		goleak.IgnoreAnyFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect"),
		// A server that is shut down while it sets up a source keeps waiting for it.
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*stream).trySetupSourceConsumer.func3"))
}

// testBundle is an installation: a ledger in a file, a NATS server, and a simulated X.
type testBundle struct {
	names  jetpost.Names
	server *server.Server
	js     jetstream.JetStream
	path   string // of the database
	sealer *store.Sealer
	media  *mediaSource
	ledger store.Store
	// lifeboat is the lifeboat of the machine, shared by all workers.
	lifeboat    *store.Lifeboat
	x           *xsim.Server
	hc          *http.Client // goes to x
	wakeups     *publishers.Wakeups
	deadLetters *publishers.DeadLetters
	pauses      *publishers.AppPauses
	windows     admission.WindowStore
	pub         *publishers.Publisher
	log         *slog.Logger
	seq         atomic.Uint64 // of deliveries that tests make
	// reuse is true if X's call log may contain a refresh token that was presented again:
	// it cannot tell a client that was killed from a careless one.
	reuse bool
	// hurried is true if the test ended a hold whose wake-up is still to come.
	hurried bool
}

// setup starts all components. When the test ends, X's call log must contain no violation.
func setup(t *testing.T, opts ...func(*xsim.Server)) *testBundle {
	t.Helper()
	return setupOn(t, nil, opts...)
}

// setupOn is setup with another ledger than a file.
func setupOn(t *testing.T, open func(*testing.T, *store.Sealer) store.Store, opts ...func(*xsim.Server)) *testBundle {
	t.Helper()
	b := offline(t, opts...)
	if open != nil {
		b.ledger = open(t, b.sealer)
	}
	id, err := b.ledger.LedgerID(t.Context())
	testkit.Must(t, err)
	b.server = natstest.Server(t)
	_, b.js = natstest.Connect(t, b.server)
	_, err = publishers.Setup(t.Context(), b.js, publishers.TopologyConfig{Names: b.names, LedgerID: id})
	testkit.Must(t, err)
	b.wakeups, b.deadLetters = publishers.NewWakeups(b.js, b.names), publishers.NewDeadLetters(b.js, b.names)
	b.windows = publishers.NewWindows(b.js, b.names)
	b.pauses, b.pub = publishers.NewAppPauses(b.js, b.names), publishers.New(b.js, b.names)
	b.media.Objects, err = b.js.ObjectStore(t.Context(), b.names.MediaBucket())
	testkit.Must(t, err)
	return b
}

// offline is setup without NATS. It uses no socket, so it works in a synctest bubble.
func offline(t *testing.T, opts ...func(*xsim.Server)) *testBundle {
	t.Helper()
	b := &testBundle{x: &xsim.Server{}, media: &mediaSource{}, windows: noStore{}, log: slog.New(slog.DiscardHandler), path: filepath.Join(t.TempDir(), "ledger.db")}
	for _, opt := range opts {
		opt(b.x)
	}
	proxy, err := xspectest.New("../xapi/xsim/openapi.json", b.x)
	testkit.Must(t, err)
	proxy.Answers.Store(false) // faults must stay as they are
	b.hc = &http.Client{Transport: proxy}
	b.sealer, err = store.NewSealer(store.GenerateKey().Reveal())
	testkit.Must(t, err)
	testkit.SQLite(t, b.path, sqlite.Migrate)
	b.ledger = b.open(t, b.sealer)
	id, err := b.ledger.LedgerID(t.Context())
	testkit.Must(t, err)
	b.lifeboat = store.NewLifeboat(t.TempDir(), id, b.sealer)
	t.Cleanup(func() {
		b.x.Wait()
		for _, v := range proxy.Violations() {
			t.Errorf("not of X's specification: %s", v)
		}
		for _, l := range b.x.Leniencies() {
			if !strings.Contains(l.What, "tweet.fields") { // the older names, if X refuses the others
				t.Errorf("X had to be lenient: %s: %s", l.Endpoint, l.What)
			}
		}
		for _, v := range b.x.Violations() {
			if b.reuse && v.Kind == xsim.ViolationRefreshTokenReused {
				continue
			}
			t.Errorf("violation at X: %s: %s", v.Kind, v.Detail)
		}
	})
	return b
}

// noStore is an admission.WindowStore for a single worker.
type noStore struct{}

func (noStore) Put(context.Context, string, []publishers.Window) error { return nil }

func (noStore) Get(context.Context, string) ([]publishers.Window, error) { return nil, nil }

// open opens the ledger again, as another worker does.
func (b *testBundle) open(t *testing.T, sealer *store.Sealer) store.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), b.path, sealer)
	testkit.Must(t, err)
	t.Cleanup(func() { testkit.Must(t, s.Close()) })
	return s
}

// account creates an account at X and imports it. Its token lives for ttl; X's two hours if
// zero.
func (b *testBundle) account(t *testing.T, name string, ttl time.Duration) xsim.Grant {
	t.Helper()
	grant, err := b.x.AddAccount(xsim.NewAccount{Handle: name, AccessTokenTTL: int64(ttl / time.Second)})
	testkit.Must(t, err)
	b.importGrant(t, grant, time.Now())
	return grant
}

// reconnect is account for one that exists, after the lease of an exchange in flight has
// expired.
func (b *testBundle) reconnect(t *testing.T, name string) {
	t.Helper()
	grant, err := b.x.AddAccount(xsim.NewAccount{Handle: name})
	testkit.Must(t, err)
	b.importGrant(t, grant, time.Now().Add(DefaultExchangeLease+time.Second))
}

func (b *testBundle) importGrant(t *testing.T, grant xsim.Grant, now time.Time) {
	t.Helper()
	_, err := b.ledger.ImportAccount(t.Context(), store.Import{
		Name: grant.Handle, XUserID: grant.ID, Username: grant.Handle, Now: now,
		Pair: store.Pair{
			Access: secret.New(grant.AccessToken), Refresh: secret.New(grant.RefreshToken),
			ExpiresAt: now.Add(time.Duration(grant.ExpiresIn) * time.Second), Scope: grant.Scope,
		},
	})
	testkit.Must(t, err)
}

func (b *testBundle) relay() *OutboxRelay {
	return &OutboxRelay{Ledger: b.ledger, DeadLetters: b.deadLetters, Names: b.names, Log: b.log}
}

func (b *testBundle) intake() *intakeHandler {
	return &intakeHandler{Ledger: b.ledger, Announce: b.relay(), Wakeups: b.wakeups, Media: b.media, Names: b.names, Log: b.log}
}

func (b *testBundle) refresher() *refresher {
	return &refresher{
		Tokens: b.ledger, X: &xapi.OAuth{ClientID: "app", BaseURL: "https://x.test", HTTPClient: b.hc},
		Gate: admission.NewGate(b.pauses, "worker", 0, b.log), DeadLetters: b.deadLetters, Announce: b.relay(), Lifeboat: b.lifeboat,
		Names: b.names, Health: &health{}, Log: b.log,
	}
}

// lane returns the lane handler of one worker.
func (b *testBundle) lane(opts ...func(*publishHandler)) *publishHandler {
	r := b.refresher()
	h := &publishHandler{
		Ledger: b.ledger, Announce: b.relay(), Wakeups: b.wakeups, Tokens: r, Gate: r.Gate,
		Windows: admission.NewWindows(b.windows, b.log),
		Media:   b.media, Health: r.Health, Names: b.names, Worker: "worker", Log: b.log,
	}
	h.Client = func(account, token string) *xapi.Client {
		return xapi.New(token, xapi.WithBaseURL("https://x.test"), xapi.WithHTTPClient(b.hc), xapi.WithLimits(h.Windows.Limits, account))
	}
	for _, opt := range opts {
		opt(h)
	}
	return h
}

// run handles a wake-up of the account at the worker.
func (b *testBundle) run(t *testing.T, h *publishHandler, account string) {
	t.Helper()
	testkit.Must(t, h.Handle(t.Context(), b.wake(account)))
}

func (b *testBundle) wake(account string) delivery {
	return delivery{Subject: b.names.PublishWake(account)}
}

func thread(texts ...string) []jetpost.Post {
	posts := make([]jetpost.Post, len(texts))
	for i, text := range texts {
		posts[i].Text = text
	}
	return posts
}

// accept has intake accept a request.
func (b *testBundle) accept(t *testing.T, r jetpost.Request) store.Key {
	t.Helper()
	if r.Account == "" {
		r.Account = "acme"
	}
	body, err := json.Marshal(r)
	testkit.Must(t, err)
	take(t, b.intake(), b.job(r.Account, body))
	key := store.Key{Account: r.Account, ID: r.ID}
	b.record(t, key) // fails if the request is not there
	return key
}

// take has the handler handle deliveries as one batch.
func take(t *testing.T, h *intakeHandler, batch ...delivery) {
	t.Helper()
	done, err := h.HandleBatch(t.Context(), store.Lease{}, batch)
	testkit.Must(t, err)
	testkit.Equal(t, "done", done, len(batch))
}

func (b *testBundle) job(account string, body []byte) delivery {
	return delivery{Subject: b.names.PublishIntake("0", account), Data: body, Sequence: b.seq.Add(1), Stored: time.Now().UTC()}
}

func (b *testBundle) record(t *testing.T, key store.Key) store.Record {
	t.Helper()
	record, err := b.ledger.Request(t.Context(), key)
	testkit.Must(t, err)
	return record
}

// want fails unless the request is in that state, for that reason, with that many posts
// live.
func (b *testBundle) want(t *testing.T, key store.Key, state jetpost.State, code jetpost.Code, posted int) store.Record {
	t.Helper()
	r := b.record(t, key)
	var got jetpost.Code
	detail := ""
	if r.Status.Reason != nil {
		got, detail = r.Status.Reason.Code, r.Status.Reason.Detail
	}
	if r.Status.State != state || got != code || r.Status.Posted != posted {
		t.Fatalf("request %s is %s (%s: %s) with %d posts live, want %s (%s) with %d", key.ID, r.Status.State, got, detail, r.Status.Posted, state, code, posted)
	}
	return r
}

// texts fails unless these are the account's posts on X, each a reply to the one before it
// in its thread.
func (b *testBundle) texts(t *testing.T, account string, want ...string) {
	t.Helper()
	var got []string
	for _, p := range b.x.Posts(account) {
		got = append(got, p.Text)
	}
	testkit.Equal(t, "posts of "+account, fmt.Sprintf("%q", got), fmt.Sprintf("%q", want))
}

// calls counts the calls that X received at an endpoint.
func (b *testBundle) calls(endpoint string) (n int) {
	for _, count := range b.x.Counts()[endpoint] {
		n += count
	}
	return n
}

func (b *testBundle) faults(t *testing.T, faults ...xsim.Fault) {
	t.Helper()
	testkit.Must(t, b.x.SetFaults(faults))
}

// paused reports whether the lanes' consumer is paused for all workers.
func (b *testBundle) paused(t *testing.T) bool {
	t.Helper()
	lanes, err := b.js.Consumer(t.Context(), b.names.LanesStream(), jetpost.ConsumerLanes)
	testkit.Must(t, err)
	return lanes.CachedInfo().Paused
}

// lastEvent is the request's newest event.
func (b *testBundle) lastEvent(t *testing.T, key store.Key) jetpost.Event {
	t.Helper()
	event, _, err := b.pub.LastEvent(t.Context(), key.Account, key.ID)
	testkit.Must(t, err)
	return event
}

// messages counts the messages of a stream.
func (b *testBundle) messages(t *testing.T, stream string) uint64 {
	t.Helper()
	s, err := b.js.Stream(t.Context(), stream)
	testkit.Must(t, err)
	return s.CachedInfo().State.Msgs
}

// ledgerHook is a ledger that calls hooks before and after each commit of a lane. A hook
// may panic, which simulates the death of the worker.
type ledgerHook struct {
	store.Store
	before, after func(op string) error

	mu   sync.Mutex
	lane store.Claim // the latest claim
}

// hooked runs one commit between the hooks. If the hook after it fails, the answer of the
// commit is lost.
func hooked[T any](l *ledgerHook, op string, commit func() (T, error)) (out T, err error) {
	if l.before != nil {
		if err := l.before(op); err != nil {
			return out, err
		}
	}
	if out, err = commit(); err != nil || l.after == nil {
		return out, err
	}
	return out, l.after(op)
}

func (l *ledgerHook) ClaimLane(ctx context.Context, account, worker string, lease time.Duration, now time.Time) (store.Claim, bool, error) {
	claimed := false
	lane, err := hooked(l, "claim", func() (lane store.Claim, err error) {
		if lane, claimed, err = l.Store.ClaimLane(ctx, account, worker, lease, now); claimed {
			l.mu.Lock()
			l.lane = lane
			l.mu.Unlock()
		}
		return lane, err
	})
	return lane, claimed, err
}

func (l *ledgerHook) Snapshot(ctx context.Context, lane store.Claim, now time.Time) (store.Snapshot, error) {
	return hooked(l, "snapshot", func() (store.Snapshot, error) { return l.Store.Snapshot(ctx, lane, now) })
}

func (l *ledgerHook) Begin(ctx context.Context, lane store.Claim, id string, intent store.Intent) error {
	_, err := hooked(l, "begin", func() (struct{}, error) { return struct{}{}, l.Store.Begin(ctx, lane, id, intent) })
	return err
}

func (l *ledgerHook) Posted(ctx context.Context, lane store.Claim, id string, live store.LivePost) (jetpost.State, error) {
	return hooked(l, "posted", func() (jetpost.State, error) { return l.Store.Posted(ctx, lane, id, live) })
}

func (l *ledgerHook) Conclude(ctx context.Context, lane store.Claim, id string, out store.Outcome) error {
	_, err := hooked(l, "conclude", func() (struct{}, error) { return struct{}{}, l.Store.Conclude(ctx, lane, id, out) })
	return err
}

func (l *ledgerHook) Uploaded(ctx context.Context, lane store.Claim, id string, media map[int][]store.Media) error {
	_, err := hooked(l, "uploaded", func() (struct{}, error) { return struct{}{}, l.Store.Uploaded(ctx, lane, id, media) })
	return err
}

func (l *ledgerHook) ReleaseLane(ctx context.Context, lane store.Claim, generation int64, wakeAt, now time.Time) (bool, error) {
	return hooked(l, "release", func() (bool, error) { return l.Store.ReleaseLane(ctx, lane, generation, wakeAt, now) })
}

// expire ends the lease of the latest claim.
func (l *ledgerHook) expire(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	testkit.Must(t, l.ExtendLane(t.Context(), l.lane, time.Microsecond, time.Now().Add(-time.Minute)))
}

// nth returns a hook that calls do at the nth commit of that kind, counted from 1.
func nth(op string, n int, do func() error) func(string) error {
	var seen atomic.Int64
	return func(got string) error {
		if got == op && seen.Add(1) == int64(n) {
			return do()
		}
		return nil
	}
}

// errAway is the error of a database that does not answer.
var errAway = errors.New("database is away")

// wantAway fails unless the handler gives the delivery back for errAway.
func wantAway(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, errAway) {
		t.Errorf("the handler returns %v, want %v", err, errAway)
	}
}

// transport is a function as an http.RoundTripper.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// within waits for a fact, which it checks at an interval.
func within(t *testing.T, limit, every time.Duration, what string, fact func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	again := time.NewTicker(every)
	defer again.Stop()
	for !fact() {
		select {
		case <-deadline.C:
			t.Fatalf("%s: not within %v", what, limit)
		case <-again.C:
		}
	}
}

// sleep lets time pass in a synctest bubble, whose clock jumps ahead.
func sleep(d time.Duration) { time.Sleep(d) } //nolint:forbidigo // only called in a bubble
