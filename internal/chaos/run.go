package chaos

import (
	"cmp"
	"context"
	"database/sql"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
)

// This file is what the chaos runs share, beside the fleet. A run has real workers
// work while everything goes wrong that can: they are killed, frozen and thawed, X
// fails before and after the effect and loses answers, servers stall and restart.
// Then X's own call log says whether the promises were kept.
//
// Real times are shrunk together, all in the measure of one lease.

// chaosConfig says how a run goes, whatever it is about.
type chaosConfig struct {
	seed     uint64
	guard    string // the one that is switched off, or ""
	sqlite   bool
	restart  bool // the servers are restarted once
	workers  int
	claimFor time.Duration // the lease of what the run is about: an exchange, or a lane
	faults   float64       // how often X fails: 1 is some percent of the calls
	harm     time.Duration // between two harms of one worker, on average
	logs     string        // directory of the workers' logs
	verdict  func(string)  // gets the verdict line; nil in a test of the suite
}

const (
	// chaosPatience bounds each wait beyond what the run's own times explain.
	chaosPatience = 3 * time.Minute
	// lookEvery is how often the ledger is asked how far things are.
	lookEvery = 200 * time.Millisecond
)

// chaosFlags are the arguments of every run, with the defaults that c holds.
func (c *chaosConfig) chaosFlags(run, lease string) *flag.FlagSet {
	flags := flag.NewFlagSet("chaos "+run, flag.ContinueOnError)
	flags.Uint64Var(&c.seed, "seed", uint64(time.Now().UnixNano()), "of everything that is left to chance")
	flags.BoolVar(&c.sqlite, "sqlite", false, "on SQLite instead of PostgreSQL")
	flags.IntVar(&c.workers, "workers", c.workers, "worker processes")
	flags.DurationVar(&c.claimFor, "lease", c.claimFor, lease)
	flags.StringVar(&c.logs, "logs", c.logs, "directory of the workers' logs")
	return flags
}

// stormFlags are those of the runs in which things go wrong at random.
func (c *chaosConfig) stormFlags(run, lease string) *flag.FlagSet {
	flags := c.chaosFlags(run, lease)
	flags.StringVar(&c.guard, "break", "", "guard to switch off: "+strings.Join(slices.Sorted(maps.Keys(brokenGuards[run])), ", "))
	flags.BoolVar(&c.restart, "restart", true, "restart the servers once")
	flags.Float64Var(&c.faults, "faults", 1, "how often X fails: 1 is some percent of the calls")
	flags.DurationVar(&c.harm, "harm", 12*time.Second, "between two harms of one worker, on average")
	return flags
}

// parse reads the arguments and refuses what no run can do.
func (c *chaosConfig) parse(t testkit.T, flags *flag.FlagSet, run string, args []string) {
	t.Helper()
	testkit.Must(t, flags.Parse(args))
	if flags.NArg() > 0 {
		t.Fatalf("chaos %s takes no %q", run, flags.Args())
	}
	if _, known := brokenGuards[run][c.guard]; c.guard != "" && (c.sqlite || !known) {
		t.Fatalf("--break: %q, want one of %q, on PostgreSQL", c.guard, slices.Sorted(maps.Keys(brokenGuards[run])))
	}
}

// chaos is what every run has.
type chaos struct {
	*harness.Site
	chaosConfig
	name     string // of the run
	began    time.Time
	cluster  *pgtest.Cluster // nil where PostgreSQL is not restarted
	view     *ledgerView
	fleet    *fleet
	findings findings
}

// newChaos makes an installation, without accounts.
func newChaos(t testkit.T, run string, cfg chaosConfig, where harness.SiteConfig) *chaos {
	t.Helper()
	c := &chaos{name: run, chaosConfig: cfg, began: time.Now()}
	switch {
	case cfg.sqlite:
		where.Database = "sqlite:" + t.TempDir() + "/ledger.db"
	case cfg.restart:
		c.cluster = pgtest.Start(t)
		where.Database = c.cluster.URL()
	}
	where.Minute = cmp.Or(where.Minute, cfg.claimFor/harness.LeaseMinutes)
	c.open(harness.NewSite(t, where))
	if c.cluster != nil {
		pgtest.VacuumByItself(t, c.cluster.URL()) // each row is rewritten many times
	}
	return c
}

// open takes an installation, whose workers are the fleet's.
func (c *chaos) open(s *harness.Site) {
	s.T.Helper()
	c.Site = s
	c.Sim.Seed = c.seed
	c.view = openView(c.T, c.Cfg.DatabaseURL, c.sqlite)
	if c.logs == "" {
		c.logs = c.T.TempDir()
	}
	c.fleet = c.newFleet()
}

// chance is the source of one actor's decisions, so that actors at once do not
// disturb each other's.
func (c *chaos) chance(actor uint64) *rand.Rand { return rand.New(rand.NewPCG(c.seed, actor)) }

// between is a time from a to b.
func between(random *rand.Rand, a, b time.Duration) time.Duration {
	return a + time.Duration(random.Int64N(int64(b-a)+1))
}

// until waits for a fact, for so long at most.
func (c *chaos) until(ctx context.Context, atMost time.Duration, is func() bool) bool {
	end := time.Now().Add(atMost)
	for !is() {
		if !time.Now().Before(end) || ctx.Err() != nil {
			return false
		}
		pause(ctx, lookEvery)
	}
	return true
}

// pause waits, or returns early when the context ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// say tells how far the run is.
func (c *chaos) say(format string, args ...any) {
	c.T.Log(fmt.Sprintf("%4.0fs  ", time.Since(c.began).Seconds()) + fmt.Sprintf(format, args...))
}

// findings are what no correct program does, by kind.
type findings struct {
	mu     sync.Mutex
	counts map[string]int
	lines  []string
}

// maxNamed bounds the names that one line tells.
const maxNamed = 10

// maxFindingsTold bounds what is told of each kind beside the counts.
const maxFindingsTold = 5

func (f *findings) add(kind, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.counts = map[string]int{}
	}
	f.counts[kind]++
	if f.counts[kind] <= maxFindingsTold {
		f.lines = append(f.lines, kind+": "+fmt.Sprintf(format, args...))
	}
}

// String is empty where there is nothing to tell.
func (f *findings) String() string {
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(f.counts)) {
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, f.counts[kind]))
	}
	return strings.Join(kinds, ", ")
}

func (f *findings) total() (n int) {
	for _, count := range f.counts {
		n += count
	}
	return n
}

// conclude tells the verdict, with the run's own numbers.
func (c *chaos) conclude(format string, args ...any) {
	for _, line := range c.findings.lines {
		c.say("%s", line)
	}
	word, violations := "PASS", c.findings.total()
	if violations > 0 {
		word = "FAIL"
	}
	line := fmt.Sprintf("chaos %s: %s seed=%d "+format+" violations=%d in %.0fs",
		append(append([]any{c.name, word, c.seed}, args...), violations, time.Since(c.began).Seconds())...)
	if violations > 0 {
		line += ": " + c.findings.String()
	}
	if c.verdict != nil {
		if c.verdict(line); violations > 0 {
			c.T.Fail()
		}
		return
	}
	c.T.Log(line)
	if violations > 0 {
		c.T.Errorf("rerun with: scripts/chaos %s --seed and the numbers above", c.name)
	}
}

// firstOf shortens a list for people.
func firstOf(names []string) string {
	if len(names) > maxNamed {
		return strings.Join(names[:maxNamed], " ") + " ..."
	}
	return strings.Join(names, " ")
}

// ledgerView is the ledger as no worker sees it: its tables.
type ledgerView struct {
	db     *sql.DB
	sqlite bool
}

// openView opens the database beside the workers.
func openView(t testkit.T, address secret.String, sqlite bool) *ledgerView {
	t.Helper()
	driver, source := "pgx", address.Reveal()
	if sqlite {
		driver, source = "sqlite", "file:"+strings.TrimPrefix(source, "sqlite:")+"?_pragma=busy_timeout(10000)&_txlock=immediate"
	}
	db, err := sql.Open(driver, source)
	testkit.Must(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return &ledgerView{db: db, sqlite: sqlite}
}

// now is the time as the ledger's columns have it.
func (v *ledgerView) now() string {
	if v.sqlite {
		return "CAST(unixepoch('subsec') * 1000000 AS INTEGER)"
	}
	return "clock_timestamp()"
}

// micros is a column of time in microseconds.
func (v *ledgerView) micros(column string) string {
	if v.sqlite {
		return column
	}
	return "(extract(epoch FROM " + column + ") * 1000000)::bigint"
}

type scanFunc func(dest ...any) error

func rowsOf[T any](ctx context.Context, db *sql.DB, query string, read func(scan scanFunc) (T, error), args ...any) ([]T, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err has told everything
	var all []T
	for rows.Next() {
		one, err := read(rows.Scan)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// stall keeps everybody else from writing a table for a while.
func (v *ledgerView) stall(ctx context.Context, table string, d time.Duration) error {
	tx, err := v.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // nothing was changed
	if !v.sqlite {                       // where a transaction is the lock
		if _, err := tx.ExecContext(ctx, "LOCK TABLE "+table+" IN SHARE ROW EXCLUSIVE MODE"); err != nil {
			return err
		}
	}
	pause(ctx, d)
	return nil
}

// brokenGuards are, by run and guard, the statements that have the database itself
// undo what a guard writes, so that the program needs no place for it.
var brokenGuards = map[string]map[string][]string{runTokens: brokenTokenGuards, runPublish: brokenPublishGuards, runStandstill: brokenStandGuards}

// The runs.
const (
	runTokens     = "tokens"
	runPublish    = "publish"
	runLimits     = "limits"
	runStandstill = "standstill"
)

func (c *chaos) breakGuard(ctx context.Context) error {
	for _, statement := range brokenGuards[c.name][c.guard] {
		if _, err := c.view.db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("switch off the %s: %w", c.guard, err)
		}
	}
	return nil
}
