package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
	"pgregory.net/rapid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/postgres"
	"github.com/jetpost/jetpost/store/sqlite"
)

const patience = 20 * time.Second

// bundle is a ledger with the account acme, and a NATS that is set up for it.
type bundle struct {
	*testing.T
	server *server.Server
	ledger store.Store
	nc     *nats.Conn
	js     jetstream.JetStream
	client *client.Client
	ids    int
	consents
}

// databases are those on which a ledger can be.
func databases() map[string]func(t *testing.T, sealer *store.Sealer) (store.Store, error) {
	return map[string]func(*testing.T, *store.Sealer) (store.Store, error){
		"postgres": func(t *testing.T, sealer *store.Sealer) (store.Store, error) {
			t.Helper()
			return postgres.Open(t.Context(), pgtest.Migrated(t, postgres.Migrate), sealer)
		},
		"sqlite": func(t *testing.T, sealer *store.Sealer) (store.Store, error) {
			t.Helper()
			path := filepath.Join(t.TempDir(), "ledger.db")
			empty, err := emptyLedger()
			if err == nil {
				err = os.WriteFile(path, empty, 0o600)
			}
			if err != nil {
				return nil, err
			}
			return sqlite.Open(t.Context(), path, sealer)
		},
	}
}

func setup(t *testing.T) *bundle {
	t.Helper()
	return setupOn(t, databases()["sqlite"])
}

func setupOn(t *testing.T, open func(*testing.T, *store.Sealer) (store.Store, error)) *bundle {
	t.Helper()
	b := &bundle{T: t, server: natstest.Server(t)}
	sealer, err := store.NewSealer(store.GenerateKey().Reveal())
	b.must(err)
	b.ledger, err = open(t, sealer)
	b.must(err)
	t.Cleanup(func() { _ = b.ledger.Close() })
	id, err := b.ledger.LedgerID(t.Context())
	b.must(err)
	nc, js := natstest.Connect(t, b.server)
	b.nc, b.js = nc, js
	_, err = publishers.Setup(t.Context(), js, publishers.TopologyConfig{LedgerID: id})
	b.must(err)
	_, err = b.ledger.ImportAccount(t.Context(), store.Import{Name: "acme", XUserID: "1", Username: "acme", Now: time.Now(), Pair: store.Pair{
		Access: secret.New("access"), Refresh: secret.New("refresh"), ExpiresAt: time.Now().Add(time.Hour),
	}})
	b.must(err)
	b.client = b.newClient()
	return b
}

// emptyLedger is a database with its schema, made once.
var emptyLedger = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "ledger")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // it was read
	path := filepath.Join(dir, "empty.db")
	if err := sqlite.Migrate(context.Background(), path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

func (b *bundle) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bundle) newClient() *client.Client {
	b.Helper()
	nc, _ := natstest.Connect(b.T, b.server)
	c, err := client.New(nc)
	b.must(err)
	return c
}

// serve has a worker serve operations on a ledger until it is stopped, or the test ends.
func (b *bundle) serve(name string, wrap func(store.Store, *nats.Conn) store.Store) (stop func()) {
	b.Helper()
	nc, js := natstest.Connect(b.T, b.server)
	ledger, log := b.ledger, slog.New(slog.DiscardHandler)
	if wrap != nil {
		ledger = wrap(ledger, nc)
	}
	relay := &consumers.OutboxRelay{Ledger: ledger, DeadLetters: publishers.NewDeadLetters(js, jetpost.Names{}), Log: log}
	started := make(chan struct{})
	s := &control.Service{
		Control: control.New(control.Control{
			Ledger: ledger, JS: js, OutboxRelay: relay, Log: log, X: b.x(), Connect: b.connect, Link: b.makeLink,
		}),
		Conn: nc, Worker: name, Version: "v1.2.3", Log: log, Started: func() { close(started) },
	}
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) }) // of one that is killed it tells of its connection
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	b.Cleanup(stop)
	<-started
	return stop
}

// TestStoppingAnswers: no call is lost or fails because a worker is stopped while another one
// serves; also one that the server has sent to the worker that stops at the last moment.
func TestStoppingAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("second", nil)
	for range 20 {
		stop := b.serve("first", nil)
		var calls sync.WaitGroup
		for range 8 {
			c := b.newClient()
			calls.Go(func() {
				for range 10 {
					if _, err := c.RequestCount(t.Context(), "acme"); err != nil {
						t.Errorf("a call beside a worker that stops: %v", err)
					}
				}
			})
		}
		stop()
		calls.Wait()
	}
}

// infos are those of the workers that serve.
func (b *bundle) infos() (list []micro.Info) {
	b.Helper()
	inbox := nats.NewInbox()
	answers, err := b.nc.SubscribeSync(inbox)
	b.must(err)
	defer func() { _ = answers.Unsubscribe() }()
	b.must(b.nc.PublishRequest("$SRV.INFO.jetpost", inbox, nil))
	for wait := patience; ; wait = 100 * time.Millisecond { // the first answers, and then the others soon
		msg, err := answers.NextMsg(wait)
		if err != nil || len(msg.Data) == 0 {
			return list
		}
		var info micro.Info
		b.must(json.Unmarshal(msg.Data, &info))
		list = append(list, info)
	}
}

func (b *bundle) eventually(what string, is func() bool) {
	b.Helper()
	end := time.After(patience)
	for every := time.NewTicker(10 * time.Millisecond); ; {
		if is() {
			every.Stop()
			return
		}
		select {
		case <-end:
			b.Fatalf("waited %s for %s", patience, what)
		case <-every.C:
		}
	}
}

// scheduled accepts a request that is due tomorrow, and returns its id.
func (b *bundle) scheduled() string {
	b.Helper()
	b.ids++
	id := fmt.Sprint("r", b.ids)
	r := jetpost.Request{Account: "acme", ID: id, PublishAt: time.Now().Add(24 * time.Hour), Posts: []jetpost.Post{{Text: id}}}
	body, err := json.Marshal(r)
	b.must(err)
	_, err = b.ledger.Accept(b.Context(), store.Acceptance{Request: r, Body: body, Digest: r.Digest(), Now: time.Now()})
	b.must(err)
	return id
}

func (b *bundle) status(id string) jetpost.RequestStatus {
	b.Helper()
	record, err := b.ledger.Request(b.Context(), store.Key{Account: "acme", ID: id})
	b.must(err)
	return record.Status
}

// held is what the ledger holds of the latest requests, accounts, pauses and links, and how many
// refreshes are ordered.
func (b *bundle) held(limit int) string {
	b.Helper()
	requests, err := b.ledger.ListRequests(b.Context(), store.Filter{Limit: limit})
	b.must(err)
	for i := range requests {
		requests[i].Delivered = 0 // which the sweeper may tell
	}
	accounts, err := b.ledger.Accounts(b.Context())
	b.must(err)
	desired, err := b.ledger.Desired(b.Context())
	b.must(err)
	orders, err := b.js.Stream(b.Context(), (jetpost.Names{}).RefreshStream())
	b.must(err)
	text, err := json.Marshal([]any{requests, accounts, desired, orders.CachedInfo().State.Msgs, b.linksMade(), b.used()})
	b.must(err)
	return string(text)
}

// change is one that several clients ask for, whole or cut off.
type change func(ctx context.Context, c *client.Client) error

// drawChange draws a change under an id of its own. Moves of requests are counted.
func (b *bundle) drawChange(r *rapid.T, ids []string, n int, moves map[string]int) change {
	operation := fmt.Sprint(ids[0], "-", n)
	switch rapid.SampledFrom([]string{"move", "move", "pause", "limit", "token", "media"}).Draw(r, "operation") {
	case "pause":
		return func(ctx context.Context, c *client.Client) error {
			return second(c.AccountPause(ctx, "acme", jetpost.PauseRequest{OperationID: operation, Reason: operation}))
		}
	case "limit":
		return func(ctx context.Context, c *client.Client) error {
			return second(c.AccountLimit(ctx, "acme", jetpost.AccountLimit{OperationID: operation, MonthlyUSD: float64(n) + 0.5}))
		}
	case "token":
		in := shopToken(operation)
		in.Name = "t-" + operation
		return func(ctx context.Context, c *client.Client) error { return second(c.TokenCreate(ctx, in)) }
	case "media":
		in := jetpost.MediaPut{OperationID: operation, Data: picture(100)}
		return func(ctx context.Context, c *client.Client) error { return second(put(ctx, c, "acme", in)) }
	}
	id := rapid.SampledFrom(ids).Draw(r, "request")
	moves[id]++
	at := time.Now().Add(48 * time.Hour).Truncate(time.Hour).Add(time.Duration(n) * time.Hour)
	return func(ctx context.Context, c *client.Client) error {
		return second(c.RequestReschedule(ctx, "acme", jetpost.RequestReschedule{OperationID: operation, ID: id, At: at}))
	}
}

// atOnce has clients ask for each change, some more than once, and some cut off.
func (b *bundle) atOnce(ctx context.Context, r *rapid.T, clients []*client.Client, changes []change) {
	var all sync.WaitGroup
	for n, ask := range changes {
		for range rapid.IntRange(0, 3).Draw(r, "repeats") {
			cut := rapid.Bool().Draw(r, "cut off")
			all.Go(func() {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				if cut {
					var stop context.CancelFunc
					ctx, stop = context.WithTimeout(ctx, time.Millisecond)
					defer stop()
				}
				if err := ask(ctx, clients[(n+1)%len(clients)]); err != nil && !cut {
					b.Errorf("a repeat: %v", err)
				}
			})
		}
		all.Go(func() {
			if err := ask(ctx, clients[n%len(clients)]); err != nil {
				b.Errorf("a call: %v", err)
			}
		})
	}
	all.Wait()
}

// TestOperationsTakeEffectOnce: changes of many clients at once, repeated, cut off and
// repeated late, each take effect once, and are noted once.
func TestOperationsTakeEffectOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	b.serve("two", nil)
	clients := []*client.Client{b.newClient(), b.newClient(), b.newClient()}
	rapid.Check(t, func(r *rapid.T) {
		ids := make([]string, rapid.IntRange(1, 2).Draw(r, "requests"))
		for i := range ids {
			ids[i] = b.scheduled()
		}
		moves := map[string]int{}
		var changes []change
		for n := range rapid.IntRange(1, 5).Draw(r, "operations") {
			changes = append(changes, b.drawChange(r, ids, n, moves))
		}
		who := "case:" + ids[0]
		ctx := jetpost.WithActor(b.Context(), who)
		b.atOnce(ctx, r, clients, changes)
		for _, id := range ids {
			if got, want := b.status(id).Revision, int64(1+moves[id]); got != want {
				r.Errorf("%s is of revision %d after %d operations, want %d", id, got, moves[id], want)
			}
		}
		before := b.held(len(ids))
		for n, ask := range changes {
			if err := ask(ctx, clients[n%len(clients)]); err != nil {
				r.Errorf("a late repeat: %v", err)
			}
		}
		if b.held(len(ids)) != before {
			r.Errorf("late repeats have changed something")
		}
		if noted := strings.Count(b.noted(jetpost.AuditList{Actor: who}), "\n") + 1; noted != len(changes) {
			r.Errorf("%d changes are noted, want %d", noted, len(changes))
		}
	})
}

// TestCancelMany: a dry run tells what would be done and does nothing; what was accepted
// since is left alone, and so is what nobody has meant.
func TestCancelMany(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	one, two := b.scheduled(), b.scheduled()
	shown := time.Now()
	dry, err := b.client.RequestCancelMany(t.Context(), "", jetpost.RequestCancelMany{All: true, Before: shown, DryRun: true})
	b.must(err)
	want := []jetpost.Cancelled{
		{Account: "acme", ID: two, Done: true, DryRun: true, State: jetpost.StateScheduled, Total: 1},
		{Account: "acme", ID: one, Done: true, DryRun: true, State: jetpost.StateScheduled, Total: 1},
	}
	if diff := cmp.Diff(jetpost.CancelAnswer{Cancelled: want}, dry); diff != "" || b.status(one).Revision != 1 {
		t.Errorf("the dry run, - is wanted:\n%s", diff)
	}
	since := b.scheduled()
	few, err := b.client.RequestCancelMany(t.Context(), "", jetpost.RequestCancelMany{All: true, Before: shown, Limit: 1})
	b.must(err)
	if len(few.Cancelled) != 1 || few.Cancelled[0].ID != two || !few.More {
		t.Errorf("one of two: %+v", few)
	}
	_, err = b.client.RequestCancelMany(t.Context(), "acme", jetpost.RequestCancelMany{State: jetpost.StateScheduled, Before: shown})
	b.must(err)
	for id, want := range map[string]jetpost.State{one: jetpost.StateCancelled, two: jetpost.StateCancelled, since: jetpost.StateScheduled} {
		if got := b.status(id).State; got != want {
			t.Errorf("request %s is %s, want %s", id, got, want)
		}
	}
	named, err := b.client.RequestCancelMany(t.Context(), "", jetpost.RequestCancelMany{IDs: []string{one, since}})
	b.must(err)
	if len(named.Cancelled) != 2 || named.Cancelled[0].Done || named.Cancelled[0].Detail != "is cancelled" || !named.Cancelled[1].Done {
		t.Errorf("by their ids: %+v", named)
	}
	for _, in := range []jetpost.RequestCancelMany{{}, {IDs: []string{one}, All: true}, {State: jetpost.StateFailed}, {State: "<b>"}} {
		var failed *client.Error
		if _, err := b.client.RequestCancelMany(t.Context(), "", in); !errors.As(err, &failed) || failed.Code != jetpost.ErrInvalid {
			t.Errorf("%+v: %v", in, err)
		}
	}
}

// TestSeriesAndGroups: what is counted for the whole installation.
func TestSeriesAndGroups(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	b.scheduled()
	series, err := b.client.AppSeries(t.Context())
	b.must(err)
	if len(series.Published) != jetpost.SeriesHours || series.DueHour != 0 || !series.Published[jetpost.SeriesHours-1].Start.Equal(series.Now.Truncate(time.Hour)) {
		t.Errorf("series: %+v", series)
	}
	at := time.Now().UTC().Truncate(time.Second)
	for n, code := range []jetpost.Code{jetpost.CodeAccountUnknown, jetpost.CodeInvalidRequest, jetpost.CodeAccountUnknown} {
		refusal := jetpost.Refusal{Account: "acme", Code: code, Sequence: uint64(n + 1), Stored: at.Add(time.Duration(n) * time.Second)}
		b.must(b.ledger.Refuse(t.Context(), refusal, nil))
	}
	groups, err := b.client.DeadLettersGroups(t.Context())
	b.must(err)
	want := []jetpost.DeadLetterGroup{
		{Kind: jetpost.DeadLetterRefused, Code: jetpost.CodeAccountUnknown, Count: 2, FirstSeen: at, LastSeen: at.Add(2 * time.Second)},
		{Kind: jetpost.DeadLetterRefused, Code: jetpost.CodeInvalidRequest, Count: 1, FirstSeen: at.Add(time.Second), LastSeen: at.Add(time.Second)},
	}
	if diff := cmp.Diff(want, groups.Groups); diff != "" {
		t.Errorf("groups, - is wanted:\n%s", diff)
	}
}

// TestOperationReused: an id that was used says so where it comes with another body.
func TestOperationReused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	one, other := b.scheduled(), b.scheduled()
	_, err := b.client.RequestCancel(t.Context(), "acme", jetpost.RequestCancel{OperationID: "op", ID: one})
	b.must(err)
	_, err = b.client.RequestCancel(t.Context(), "acme", jetpost.RequestCancel{OperationID: "op", ID: other})
	var failed *client.Error
	if !errors.As(err, &failed) || failed.Code != jetpost.ErrOperationReused || failed.Help == "" {
		t.Errorf("another request: %v", err)
	}
	_, err = b.client.RequestUnpublish(t.Context(), "acme", jetpost.RequestUnpublish{OperationID: "op", ID: one})
	if !errors.As(err, &failed) || failed.Code != jetpost.ErrOperationReused {
		t.Errorf("another operation: %v", err)
	}
	if state := b.status(other).State; state != jetpost.StateScheduled {
		t.Errorf("the other request is %s", state)
	}
	// An id is the account's own: nobody uses up that of another.
	if _, err := b.client.RequestCancel(t.Context(), "", jetpost.RequestCancel{OperationID: "op", ID: other}); err != nil {
		t.Errorf("the same id without an account: %v", err)
	}
	// A refusal is an answer, too.
	_, first := b.client.RequestCancel(t.Context(), "acme", jetpost.RequestCancel{OperationID: "early", ID: "r9"})
	b.ids = 8
	if id := b.scheduled(); id != "r9" {
		t.Fatal(id)
	}
	_, late := b.client.RequestCancel(t.Context(), "acme", jetpost.RequestCancel{OperationID: "early", ID: "r9"})
	if first == nil || late == nil || first.Error() != late.Error() || b.status("r9").State != jetpost.StateScheduled {
		t.Errorf("refused with %v, and late with %v", first, late)
	}
}

// triedLedger closes tried after the first change that finds an account busy.
type triedLedger struct {
	store.Store
	tried chan struct{}
	once  sync.Once
}

func (l *triedLedger) Operate(ctx context.Context, op store.Operation, do func(context.Context, store.Changes) ([]byte, error)) ([]byte, bool, error) {
	body, repeated, err := l.Store.Operate(ctx, op, do)
	if errors.Is(err, store.ErrAccountBusy) {
		l.once.Do(func() { close(l.tried) })
	}
	return body, repeated, err
}

// TestRenameWaits: who renames an account does not have to hit a moment in which nothing of
// it is under way.
func TestRenameWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tried := make(chan struct{})
	b.serve("worker", func(ledger store.Store, _ *nats.Conn) store.Store { return &triedLedger{Store: ledger, tried: tried} })
	lane, claimed, err := b.ledger.ClaimLane(t.Context(), "acme", "worker", time.Minute, time.Now())
	b.must(err)
	if !claimed {
		t.Fatal("the lane is not claimed")
	}
	done := make(chan error, 1)
	go func() {
		_, err := b.client.AccountRename(t.Context(), "acme", jetpost.AccountRename{To: "other"})
		done <- err
	}()
	select {
	case <-tried:
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	}
	snapshot, err := b.ledger.Snapshot(t.Context(), lane, time.Now())
	b.must(err)
	_, err = b.ledger.ReleaseLane(t.Context(), lane, snapshot.Generation, time.Time{}, time.Now())
	b.must(err)
	b.must(<-done)
}

// TestServiceIsFound: ping, info and stats tell of the workers and of each operation.
func TestServiceIsFound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	infos := b.infos()
	if len(infos) != 1 || infos[0].Version != "1.2.3" {
		t.Fatalf("infos are %+v", infos)
	}
	subjects := map[string]bool{}
	for _, e := range infos[0].Endpoints {
		subjects[e.Subject] = true
	}
	for _, o := range jetpost.Operations() {
		for account, served := range map[string]bool{"": o.Account != jetpost.OfOne, "*": o.Account != jetpost.OfNone} {
			if subject := (jetpost.Names{}).API(o.Operation, account); subjects[subject] != served {
				t.Errorf("%s is served: %t", subject, subjects[subject])
			}
		}
	}
	_, err := b.client.RequestGet(t.Context(), "acme", jetpost.RequestGet{ID: "none"})
	var failed *client.Error
	if !errors.As(err, &failed) || failed.Code != jetpost.ErrNotFound {
		t.Fatalf("no such request: %v", err)
	}
	b.eventually("the error to be counted", func() bool {
		msg, err := b.nc.Request("$SRV.STATS.jetpost", nil, patience)
		b.must(err)
		var stats micro.Stats
		b.must(json.Unmarshal(msg.Data, &stats))
		for _, e := range stats.Endpoints {
			if e.Subject == "jetpost.api.v1.request.get.*" && string(e.Data) != "" {
				var data struct {
					Answered int
					Errors   map[jetpost.ErrorCode]int
				}
				b.must(json.Unmarshal(e.Data, &data))
				return data.Answered == 1 && data.Errors[jetpost.ErrNotFound] == 1
			}
		}
		return false
	})
}
