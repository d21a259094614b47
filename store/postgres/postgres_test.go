package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/storetest"
)

const lease = time.Hour

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Ledger {
		t.Helper()
		url := pgtest.Migrated(t, Migrate)
		// A clone has the id of its template.
		execute(t, url, "UPDATE ledger SET id = gen_random_uuid()")
		return storetest.Ledger{
			Open: func(t *testing.T, sealer *store.Sealer) store.Store {
				t.Helper()
				return open(t, url, sealer, CallersClock())
			},
			Dump: func(t *testing.T) []byte { t.Helper(); return dump(t, url) },
			Exec: func(t *testing.T, statement string) { t.Helper(); execute(t, url, statement) },
		}
	})
}

// TestRotationUnderLoad seals a hundred thousand rows with another key while workers
// renew tokens.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	url := pgtest.Migrated(t, Migrate)
	ledger := storetest.Ledger{Open: func(t *testing.T, sealer *store.Sealer) store.Store {
		t.Helper()
		return open(t, url, sealer, CallersClock())
	}}
	storetest.RunRotationUnderLoad(t, ledger, 100_000, func(t *testing.T, rows []storetest.LoadRow) {
		t.Helper()
		conn := connect(t, url)
		copied := func(table string, columns []string, row func(storetest.LoadRow) []any) {
			_, err := conn.CopyFrom(t.Context(), pgx.Identifier{table}, columns,
				pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) { return row(rows[i]), nil }))
			check(t, err)
		}
		copied("accounts", []string{"name", "x_user_id", "username", "created_at"}, func(r storetest.LoadRow) []any {
			return []any{r.Account, r.Account, "", r.ExpiresAt}
		})
		copied("lanes", []string{"account"}, func(r storetest.LoadRow) []any { return []any{r.Account} })
		copied("oauth_tokens", []string{
			"id", "user_id", "access_token", "refresh_token", "expires_at", "refresh_after", "scope", "version", "refreshed_at", "imported",
		}, func(r storetest.LoadRow) []any {
			return []any{r.TokenID, r.Account, r.Access, r.Refresh, r.ExpiresAt, r.ExpiresAt, "", 1, r.ExpiresAt, make([]byte, 32)}
		})
	})
}

type testBundle struct {
	url string
	key string
	st  *Store
	now time.Time
}

const acme = "acme"

// setup opens a fresh ledger with one account.
func setup(t *testing.T) *testBundle {
	t.Helper()
	b := &testBundle{url: pgtest.Migrated(t, Migrate), key: store.GenerateKey().Reveal(), now: time.Now()}
	sealer, err := store.NewSealer(b.key)
	check(t, err)
	b.st = open(t, b.url, sealer)
	check(t, b.add(t.Context()))
	return b
}

// add imports the account, again if it exists already, always with other tokens.
func (b *testBundle) add(ctx context.Context) error {
	_, err := b.st.ImportAccount(ctx, store.Import{
		Name: acme, XUserID: "1", Username: acme, Now: b.now,
		Pair: store.Pair{Access: secret.New("a"), Refresh: secret.New(uuid.NewString()), ExpiresAt: b.now.Add(time.Hour)},
	})
	return err
}

func (b *testBundle) acceptance(id string) store.Acceptance {
	return store.Acceptance{
		Request: jetpost.Request{Account: acme, ID: id, Posts: make([]jetpost.Post, 1)},
		Body:    []byte(id), Digest: []byte(id), Now: b.now,
	}
}

func newSealer(t *testing.T) *store.Sealer {
	t.Helper()
	sealer, err := store.NewSealer(store.GenerateKey().Reveal())
	check(t, err)
	return sealer
}

func open(t *testing.T, url string, sealer *store.Sealer, options ...Option) *Store {
	t.Helper()
	st, err := Open(t.Context(), url, sealer, options...)
	check(t, err)
	t.Cleanup(func() { check(t, st.Close()) })
	return st
}

// TestCloseWhileServerHangs: a server that does not answer does not keep a process from
// ending.
func TestCloseWhileServerHangs(t *testing.T) {
	t.Parallel()
	direct := pgtest.Migrated(t, Migrate)
	address, freeze := proxy(t, direct)
	st, err := Open(t.Context(), address, newSealer(t))
	check(t, err)
	_, err = st.LedgerID(t.Context())
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	held := freeze()
	go func() {
		<-held // the call is on its way
		cancel()
	}()
	if _, err := st.LedgerID(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was given up ended with %v", err)
	}
	if err := st.Close(); err == nil || !strings.Contains(err.Error(), "did not end") {
		t.Errorf("closed with %v", err)
	}
}

// proxy stands between a pool and its server. Once it is frozen, connections stay, and
// nothing comes through; held is closed once something would have.
func proxy(t *testing.T, direct string) (address string, freeze func() (held <-chan struct{})) {
	t.Helper()
	config, err := pgx.ParseConfig(direct)
	check(t, err)
	network, server := pgconn.NetworkAddress(config.Host, config.Port)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	check(t, err)
	frozen, held := make(chan struct{}), make(chan struct{})
	holds := sync.OnceFunc(func() { close(held) })
	pass := func(to, from net.Conn) {
		defer func() { _ = from.Close() }()
		text := make([]byte, 1<<16)
		for {
			n, err := from.Read(text)
			select {
			case <-frozen:
				if n > 0 {
					holds()
				}
				<-t.Context().Done()
				return
			default:
			}
			if _, lost := to.Write(text[:n]); err != nil || lost != nil {
				_ = to.Close() // which ends the other direction
				return
			}
		}
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			upstream, err := (&net.Dialer{}).DialContext(t.Context(), network, server)
			if err != nil {
				return
			}
			go pass(upstream, client)
			go pass(client, upstream)
		}
	}()
	u := url.URL{Scheme: "postgres", User: url.UserPassword(config.User, config.Password), Host: l.Addr().String(), Path: "/" + config.Database}
	return u.String(), func() <-chan struct{} { close(frozen); return held }
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	check(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func execute(t *testing.T, url, statement string) {
	t.Helper()
	_, err := connect(t, url).Exec(t.Context(), statement)
	check(t, err)
}

func texts(t *testing.T, conn *pgx.Conn, query string) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), query)
	check(t, err)
	laneRows, err := pgx.CollectRows(rows, pgx.RowTo[string])
	check(t, err)
	return laneRows
}

// dump returns every row of every table as text.
func dump(t *testing.T, url string) []byte {
	t.Helper()
	conn := connect(t, url)
	_, err := conn.Exec(t.Context(), "SET bytea_output = 'escape'")
	check(t, err)
	var all bytes.Buffer
	for _, table := range texts(t, conn, "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'") {
		for _, row := range texts(t, conn, "SELECT t::text FROM "+table+" AS t") {
			fmt.Fprintln(&all, table, row)
		}
	}
	return all.Bytes()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConnectionSettings(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, query, setting, want string }{
		{"application name", "", "application_name", applicationName},
		{"application name of the URL", "&application_name=mine", "application_name", "mine"},
		{"compilation", "", "jit", "off"},
		{"compilation of the URL", "&jit=on", "jit", "on"},
		{"idle timeout", "", "idle_in_transaction_session_timeout", idleTimeout},
		{"statement timeout", "", "statement_timeout", statementTimeout},
		{"statement timeout of the URL", "&statement_timeout=7s", "statement_timeout", "7s"},
	}
	url := pgtest.Migrated(t, Migrate)
	if !strings.Contains(url, "?") {
		url += "?"
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			st := open(t, url+test.query, newSealer(t))
			var got string
			check(t, st.pool.QueryRow(t.Context(), "SELECT current_setting($1)", test.setting).Scan(&got))
			if got != test.want {
				t.Errorf("%s is %q, want %q", test.setting, got, test.want)
			}
		})
	}
}

// Every method takes its locks in the same order, so that no mix of them on one account
// can deadlock.
func TestMixedCallsNeverDeadlock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const workers, rounds = 4, 12
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := range rounds {
				if err := b.mix(t.Context(), fmt.Sprintf("r%d-%d", w, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	counts, err := b.st.CountRequests(t.Context())
	check(t, err)
	if n := counts[jetpost.StatePublished] + counts[jetpost.StateCancelled]; n != workers*rounds {
		t.Errorf("requests by state are %v, want %d finished", counts, workers*rounds)
	}
}

// mix takes a request through its life while others do the same.
func (b *testBundle) mix(ctx context.Context, id string) error {
	key := store.Key{Account: acme, ID: id}
	if _, err := b.st.Accept(ctx, b.acceptance(id)); err != nil {
		return err
	}
	lane, claimed, err := b.st.ClaimLane(ctx, acme, id, lease, b.now)
	if err == nil && claimed {
		err = b.run(ctx, lane)
	}
	if err != nil {
		return err
	}
	if _, err := b.st.EndHolds(ctx, acme, jetpost.CodeRateLimited, b.now); err != nil {
		return err
	}
	if _, err := b.st.MarkDelivered(ctx, key, 1); err != nil {
		return err
	}
	if err := b.add(ctx); err != nil {
		return err
	}
	if _, err := b.st.Cancel(ctx, key, b.now); !errors.Is(err, store.ErrNotRunnable) {
		return err
	}
	return nil
}

// run posts what is at the front of a lane, and releases it.
func (b *testBundle) run(ctx context.Context, lane store.Claim) error {
	for {
		snapshot, err := b.st.Snapshot(ctx, lane, b.now)
		if err != nil {
			return err
		}
		if snapshot.Head == nil {
			if released, err := b.st.ReleaseLane(ctx, lane, snapshot.Generation, b.now, b.now); released || err != nil {
				return err
			}
			continue
		}
		err = b.st.Begin(ctx, lane, snapshot.Head.ID, store.Intent{NotAfter: b.now, Now: b.now, Lease: lease})
		if err == nil {
			_, err = b.st.Posted(ctx, lane, snapshot.Head.ID, store.LivePost{PostID: "x-" + snapshot.Head.ID, Now: b.now})
		}
		if err != nil && !errors.Is(err, store.ErrNotRunnable) {
			return err
		}
	}
}

func TestLeasesIgnoreTheCallersClock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	claim := func(now time.Time) bool {
		_, ok, err := b.st.ClaimLane(t.Context(), acme, "worker", lease, now)
		check(t, err)
		return ok
	}
	if !claim(b.now) {
		t.Fatal("a free lane was not claimed")
	}
	if claim(b.now.Add(10 * lease)) {
		t.Error("a worker whose clock is ahead took over a live lease")
	}
	names, err := b.st.DueLanes(t.Context(), b.now.Add(10*lease), 1)
	check(t, err)
	if len(names) > 0 {
		t.Errorf("%v is due under a live lease", names)
	}
}

// TestLosesCommits: a PostgreSQL that answers before its disk has a commit is
// recognised.
func TestLosesCommits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sealer, err := store.NewSealer(b.key)
	check(t, err)
	const setting = "synchronous_commit=off"
	for loose, st := range map[bool]*Store{false: b.st, true: open(t, b.url+"&options=-c%20synchronous_commit%3Doff", sealer)} {
		got, err := st.LosesCommits(t.Context())
		check(t, err)
		if slices.Contains(got, setting) != loose {
			t.Errorf("got %q, want %q in it: %t", got, setting, loose)
		}
	}
}

func TestMigrateAtOnce(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			if err := Migrate(t.Context(), url); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	open(t, url, newSealer(t))
}

// TestMigrateTellsWorkers: before the first migration that older workers do not survive, the
// database says so. Each migration can be taken back.
func TestMigrateTellsWorkers(t *testing.T) {
	t.Parallel()
	const before, stops = 9, 11
	url := pgtest.Migrated(t, Migrate)
	config, err := parseURL(url)
	check(t, err)
	db := stdlib.OpenDB(*config.ConnConfig)
	defer func() { check(t, db.Close()) }()
	files, err := fs.Sub(migrations, "migrations")
	check(t, err)
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithDisableGlobalRegistry(true))
	check(t, err)
	_, err = provider.DownTo(t.Context(), before)
	check(t, err)
	upgrade, err := Upgrade(t.Context(), url)
	if err != nil || upgrade.From != before || upgrade.Oldest < stops || !upgrade.Stops(stops-1) || upgrade.Stops(upgrade.Oldest) {
		t.Errorf("upgrade from %d: %+v, %v", before, upgrade, err)
	}
	check(t, Migrate(t.Context(), url))
	s := open(t, url, newSealer(t))
	desired, err := s.Desired(t.Context())
	if want := strconv.FormatInt(upgrade.Oldest, 10); err != nil || len(desired) != 1 || desired[0].Name != store.DesiredOldestSchema || string(desired[0].Value) != want {
		t.Errorf("the database tells workers %v, %v, want %s", desired, err, want)
	}
	check(t, s.Fits(t.Context()))
}

func TestOpenRefusesAnotherSchema(t *testing.T) {
	t.Parallel()
	newer := pgtest.Migrated(t, Migrate)
	execute(t, newer, fmt.Sprintf("INSERT INTO goose_db_version (version_id, is_applied) VALUES (%d, true)", schemaVersion+1))
	tests := []struct {
		name, url string
		found     int64
	}{
		{"missing", pgtest.New(t), 0},
		{"newer", newer, schemaVersion + 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Open(t.Context(), test.url, newSealer(t))
			var schema *store.SchemaError
			if !errors.As(err, &schema) || schema.Found != test.found || schema.Want != schemaVersion {
				t.Errorf("error is %v, want a SchemaError with version %d found", err, test.found)
			}
		})
	}
}

func TestURLErrorsNameThePlaceButNoPassword(t *testing.T) {
	t.Parallel()
	const password = "hunter2"
	tests := []struct{ name, url, want string }{
		{"bad setting", "postgres://u:hunter2@db.example/jp?pool_max_conns=many&password=hunter2", "pool_max_conns"},
		{"other scheme", "mysql://u:hunter2@db.example/jp", "want postgres://"},
		{"raw character", "postgres://u:hunter2#@db.example/jp", "want postgres://"},
		{"unreachable", "postgres://u:hunter2@127.0.0.1:1/jp", "jp on 127.0.0.1:1"},
		{"unreachable socket", "postgres:///jp?host=/nowhere&password=hunter2", "jp on /nowhere"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, openErr := Open(t.Context(), test.url, newSealer(t))
			for _, err := range []error{openErr, Migrate(t.Context(), test.url)} {
				if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), password) {
					t.Errorf("error is %v, want one with %q and without the password", err, test.want)
				}
			}
		})
	}
}

// A row that an import or a second rotation holds does not block a rotation: it comes
// back to that row.
func TestRotationWaitsForNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.st.ImportAccount(t.Context(), store.Import{
		Name: "free", XUserID: "2", Pair: store.Pair{Access: secret.New("a"), Refresh: secret.New("r"), ExpiresAt: b.now}, Now: b.now,
	})
	check(t, err)
	holder := connect(t, b.url)
	tx, err := holder.Begin(t.Context())
	check(t, err)
	_, err = tx.Exec(t.Context(), "SELECT FROM oauth_tokens WHERE user_id = $1 FOR UPDATE", acme)
	check(t, err)
	sealer, err := store.NewSealer(store.GenerateKey().Reveal() + "," + b.key)
	check(t, err)
	r := store.Rotation{Rows: open(t, b.url, sealer), Sealer: sealer}
	done, err := r.Run(t.Context(), func(store.RotationProgress) {})
	check(t, err)
	if done.Resealed != 1 || done.Behind != 1 {
		t.Errorf("%d rows sealed anew and %d behind while one is held, want one each", done.Resealed, done.Behind)
	}
	check(t, tx.Rollback(t.Context()))
	done, err = r.Run(t.Context(), func(store.RotationProgress) {})
	check(t, err)
	if done.Resealed != 1 || done.Behind != 0 {
		t.Errorf("%d rows sealed anew and %d behind after that, want 1 and 0", done.Resealed, done.Behind)
	}
}

func TestSurvivesRestartOfTheServer(t *testing.T) {
	t.Parallel()
	cluster := pgtest.Start(t)
	check(t, Migrate(t.Context(), cluster.URL()))
	b := &testBundle{st: open(t, cluster.URL(), newSealer(t)), now: time.Now()}
	check(t, b.add(t.Context()))
	_, err := b.st.Accept(t.Context(), b.acceptance("kept"))
	check(t, err)

	cluster.Stop(t)
	if _, err := b.st.CountRequests(t.Context()); err == nil {
		t.Fatal("a stopped server answered")
	}
	cluster.Restart(t)
	// Connections of the pool that died with the server fail once each.
	for range defaultMaxConns {
		if _, err = b.st.CountRequests(t.Context()); err == nil {
			break
		}
	}
	check(t, err)
	if _, err := b.st.Request(t.Context(), store.Key{Account: acme, ID: "kept"}); err != nil {
		t.Error(err)
	}
}

// TestClaimOutlivesACrash: the server crashes right after a claim, and another worker
// takes the lane over. The first worker's intent is refused, because it has lost the
// lane. If the crash lost the claim, both workers would have the same fence, and the
// first one would take the other's intent for its own, of which it knows that nothing
// was sent.
func TestClaimOutlivesACrash(t *testing.T) {
	t.Parallel()
	cluster := pgtest.Start(t)
	check(t, Migrate(t.Context(), cluster.URL()))
	b := &testBundle{st: open(t, cluster.URL(), newSealer(t)), now: time.Now()}
	check(t, b.add(t.Context()))
	_, err := b.st.Accept(t.Context(), b.acceptance("r"))
	check(t, err)
	claim := func(worker string) (lane store.Claim) {
		t.Helper()
		for end := time.Now().Add(patiently); time.Now().Before(end); {
			lane, claimed, err := b.st.ClaimLane(t.Context(), acme, worker, time.Second, b.now)
			if err == nil && claimed {
				return lane
			}
		}
		t.Fatal("the lane was not to be had")
		return lane
	}
	begin := func(lane store.Claim) error {
		now := time.Now()
		return b.st.Begin(t.Context(), lane, "r", store.Intent{NotAfter: now.Add(time.Minute), Now: now, Lease: lease})
	}
	first := claim("first")
	cluster.Stop(t)
	if err := begin(first); !store.Unavailable(err) {
		t.Fatalf("begin while the server is down: %v", err)
	}
	cluster.Restart(t)
	second := claim("second")
	check(t, begin(second))
	if err := begin(first); !errors.Is(err, store.ErrFenced) {
		t.Errorf("begin of the worker before: error is %v, want %v", err, store.ErrFenced)
	}
	if _, err := b.st.Posted(t.Context(), second, "r", store.LivePost{PostID: "1", Now: b.now}); err != nil {
		t.Error(err)
	}
}

// PostgreSQL's text holds no zero character, but X and producers may send one.
func TestZeroCharacters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.acceptance("zero")
	in.Request.Metadata = map[string]string{"key\x00": "value\x00"}
	in.Hold = &jetpost.Reason{Code: jetpost.CodeNeedsNewerWorker, Detail: "bad\x00 \xffdetail"}
	_, err := b.st.Accept(t.Context(), in)
	check(t, err)
	got, err := b.st.Request(t.Context(), store.Key{Account: acme, ID: "zero"})
	check(t, err)
	if got.Status.Metadata["key\x00"] != "value\x00" {
		t.Errorf("metadata is %q", got.Status.Metadata)
	}
	if got.Status.Reason.Detail != "bad \uFFFDdetail" {
		t.Errorf("detail is %q", got.Status.Reason.Detail)
	}
	check(t, b.st.Refuse(t.Context(), jetpost.Refusal{
		Account: "a\x00", ID: "\xff", Problems: []jetpost.Problem{{Message: "not \x00"}}, Stored: b.now,
	}, []byte{0}))
}

// TestClockOfTheDatabase: the database's clock judges what is due, when a post was
// begun and until when it may be sent. A worker whose clock is two minutes off changes
// nothing.
func TestClockOfTheDatabase(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{-2 * time.Minute, 2 * time.Minute} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			before, err := b.st.Clock(t.Context())
			check(t, err)
			wrong := time.Now().Add(off)
			near := func(what string, at time.Time, after time.Duration) {
				t.Helper()
				now, err := b.st.Clock(t.Context())
				check(t, err)
				if at.Before(before.Add(after)) || at.After(now.Add(after)) {
					t.Errorf("%s is %v, want it %v after a moment between %v and %v", what, at, after, before, now)
				}
			}
			due, ahead := b.acceptance("due"), b.acceptance("ahead")
			due.Now, ahead.Now, ahead.Request.PublishAt = wrong, wrong, before.Add(time.Minute)
			for _, in := range []store.Acceptance{due, ahead} {
				_, err := b.st.Accept(t.Context(), in)
				check(t, err)
			}
			names, err := b.st.DueLanes(t.Context(), wrong, 1)
			check(t, err)
			if len(names) != 1 {
				t.Error("the lane is not due")
			}
			lane, _, err := b.st.ClaimLane(t.Context(), acme, "worker", lease, wrong)
			check(t, err)
			snapshot, err := b.st.Snapshot(t.Context(), lane, wrong)
			check(t, err)
			if snapshot.Head == nil || snapshot.Head.ID != "due" || !snapshot.NextDue.Equal(ahead.Request.PublishAt.Truncate(time.Microsecond)) {
				t.Fatalf("the head is %v, the next is due %v", snapshot.Head, snapshot.NextDue)
			}
			near("acceptance", snapshot.Head.Status.AcceptedAt, 0)
			near("due time", snapshot.Head.DueAt, 0)
			const within = 20 * time.Second
			check(t, b.st.Begin(t.Context(), lane, "due", store.Intent{Now: wrong, NotAfter: wrong.Add(within), Lease: lease}))
			begun, err := b.st.Request(t.Context(), store.Key{Account: acme, ID: "due"})
			check(t, err)
			near("intent", begun.Posts[0].SentAt, 0)
			near("end of the intent", begun.Posts[0].NotAfter, within)
			early, err := b.st.Request(t.Context(), store.Key{Account: acme, ID: "ahead"})
			check(t, err)
			if early.Status.State != jetpost.StateScheduled {
				t.Errorf("what is due in a minute is %s", early.Status.State)
			}
		})
	}
}
