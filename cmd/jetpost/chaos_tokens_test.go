package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// A chaos run keeps tokens fresh by rounds while everything goes wrong that can:
// workers are killed, frozen and thawed, X fails before and after the effect and
// loses answers, the database stalls, and customers connect their accounts again
// at the worst moment. Then X's own books say whether a token was lost without a
// reason, presented again without an entry in the journal, or overwritten.
//
// Real times are shrunk together: the lease of an exchange from 30 s to one or
// two, and the life of an access token from two hours to some dozens of seconds.

// chaosConfig says how a run goes.
type chaosConfig struct {
	seed     uint64
	guard    string // the one that is switched off: guardJournal, guardFence or ""
	sqlite   bool
	restart  bool // PostgreSQL is restarted once
	tokens   int
	workers  int
	rounds   int           // of all tokens, while things go wrong
	claimFor time.Duration // the lease of an exchange
	life     time.Duration // of an access token
	faults   float64       // how often X fails: 1 is some percent of the exchanges
	harm     time.Duration // between two harms of one worker, on average
	logs     string        // directory of the workers' logs
	verdict  string        // path of a file for the verdict line; "" in a test of the suite
}

const (
	// minLeasesPerLife keeps the order of the margins; with real times it is 240.
	minLeasesPerLife = 20
	// chaosPatience bounds each wait beyond what the life of a token explains.
	chaosPatience = 3 * time.Minute
	// longestWait is, in leases, more than the longest wait for a token's next attempt.
	longestWait = 200
	// lookEvery is how often the ledger is asked how far things are.
	lookEvery = 200 * time.Millisecond
)

// TestChaosTokens runs short as a test of the suite. scripts/chaos runs it long,
// with arguments of its own behind those of package testing.
func TestChaosTokens(t *testing.T) {
	t.Parallel()
	if flag.NArg() > 0 {
		runChaos(t, chaosArguments(t, flag.Args()))
		return
	}
	short := chaosConfig{
		seed: uint64(time.Now().UnixNano()), tokens: 300, workers: 3, rounds: 3, faults: 3,
		claimFor: time.Second, life: 20 * time.Second, harm: 4 * time.Second,
	}
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		runChaos(t, short)
	})
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		onSQLite := short
		onSQLite.sqlite, onSQLite.tokens, onSQLite.workers = true, 120, 2
		runChaos(t, onSQLite)
	})
}

// chaosArguments are the defaults of a long run, and what is said otherwise.
func chaosArguments(t *testing.T, args []string) chaosConfig {
	t.Helper()
	var c chaosConfig
	flags := flag.NewFlagSet("chaos tokens", flag.ContinueOnError)
	flags.Uint64Var(&c.seed, "seed", uint64(time.Now().UnixNano()), "of everything that is left to chance")
	flags.StringVar(&c.guard, "break", "", "guard to switch off: journal or fence")
	flags.BoolVar(&c.sqlite, "sqlite", false, "on SQLite instead of PostgreSQL")
	flags.BoolVar(&c.restart, "restart", true, "restart PostgreSQL once")
	flags.IntVar(&c.tokens, "tokens", 10_000, "accounts, each with one token")
	flags.IntVar(&c.workers, "workers", 8, "worker processes")
	flags.IntVar(&c.rounds, "rounds", 5, "rounds of all tokens while things go wrong")
	flags.DurationVar(&c.claimFor, "lease", 2*time.Second, "lease of one exchange")
	flags.DurationVar(&c.life, "life", 40*time.Second, "life of an access token")
	flags.Float64Var(&c.faults, "faults", 1, "how often X fails: 1 is some percent of the exchanges")
	flags.DurationVar(&c.harm, "harm", 12*time.Second, "between two harms of one worker, on average")
	flags.StringVar(&c.logs, "logs", "", "directory of the workers' logs")
	flags.StringVar(&c.verdict, "verdict", os.DevNull, "file for the verdict line")
	must(t, flags.Parse(args))
	switch {
	case flags.NArg() > 0:
		t.Fatalf("chaos tokens takes no %q", flags.Args())
	case c.guard != "" && (c.sqlite || c.guard != guardJournal && c.guard != guardFence):
		t.Fatalf("--break: %q, want %s or %s, on PostgreSQL", c.guard, guardJournal, guardFence)
	case c.life < minLeasesPerLife*c.claimFor:
		t.Fatalf("--life: %s, want %d leases at least", c.life, minLeasesPerLife)
	}
	return c
}

// chaos is one run.
type chaos struct {
	*site
	chaosConfig
	began    time.Time
	cluster  *pgtest.Cluster // nil where PostgreSQL is not restarted
	view     *ledgerView
	fleet    *fleet
	people   *people
	findings findings
	// exchanges and retries are what the books and the journal count at the end.
	exchanges, retries int
	lost               [len(causes)]int // accounts, by the proven cause
}

func runChaos(t *testing.T, cfg chaosConfig) {
	t.Helper()
	c := newChaos(t, cfg)
	c.say("seed %d: %d tokens, %d workers, lease %s, life %s", c.seed, c.tokens, c.workers, c.claimFor, c.life)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	actors, ctx := errgroup.WithContext(ctx)
	c.storm(ctx, actors)
	c.calm(ctx)
	stop()
	must(t, actors.Wait())
	c.judge()
	c.conclude()
}

// newChaos makes an installation with its accounts, and breaks what shall be
// broken.
func newChaos(t *testing.T, cfg chaosConfig) *chaos {
	t.Helper()
	c := &chaos{chaosConfig: cfg, began: time.Now()}
	var where siteConfig
	switch {
	case cfg.sqlite:
		where.database = "sqlite:" + t.TempDir() + "/ledger.db"
	case cfg.restart:
		c.cluster = pgtest.Start(t)
		where.database = c.cluster.URL()
	}
	c.site = newSite(t, where)
	c.sim.Seed, c.sim.AccessTokenTTL = cfg.seed, cfg.life
	c.view = openView(t, c.cfg.DatabaseURL, cfg.sqlite)
	if c.logs == "" {
		c.logs = t.TempDir()
	}
	c.people = c.newPeople()
	c.fleet = c.newFleet()
	if c.cluster != nil {
		must(t, c.view.vacuumByItself(t.Context()))
	}
	must(t, c.importAll())
	must(t, c.view.breakGuard(t.Context(), cfg.guard))
	return c
}

// importAll connects every account for the first time.
func (c *chaos) importAll() error {
	var group errgroup.Group
	group.SetLimit(4)
	for _, name := range c.people.names {
		group.Go(func() error {
			grant, err := c.sim.AddAccount(xsim.NewAccount{Handle: name})
			if err != nil {
				return err
			}
			now := time.Now()
			_, err = c.ledger.ImportAccount(c.t.Context(), store.Import{
				Name: name, XUserID: grant.ID, Username: name, Now: now,
				Pair: store.Pair{
					Access: secret.New(grant.AccessToken), Refresh: secret.New(grant.RefreshToken),
					ExpiresAt: now.Add(c.life), Scope: grant.Scope,
				},
			})
			return err
		})
	}
	return group.Wait()
}

// storm runs the rounds while everything goes wrong. The actors go on without
// harm when it returns.
func (c *chaos) storm(ctx context.Context, actors *errgroup.Group) {
	stormy, clearUp := context.WithCancel(ctx)
	defer clearUp()
	for i := range c.workers {
		actors.Go(func() error { return c.fleet.keep(ctx, stormy, i) })
	}
	actors.Go(func() error { return c.weather(stormy) })
	actors.Go(func() error { return c.people.live(ctx, stormy) })
	for n := 1; n <= c.rounds && ctx.Err() == nil; n++ {
		c.allDue(ctx)
		began := time.Now()
		opened := c.tick()
		if c.cluster != nil && n == (c.rounds+1)/2 {
			c.cluster.Restart(c.t)
			c.say("PostgreSQL was restarted")
		}
		round, whole := c.summary(ctx, opened, 2*c.life)
		c.say("round %d: %s, whole %t, after %s", n, round, whole, time.Since(began).Round(lookEvery))
	}
}

// calm waits until every doubt has ended, and then has rounds go on until one has
// refreshed every token: where the machine itself is too slow for the shrunk times,
// another one helps.
func (c *chaos) calm(ctx context.Context) {
	must(c.t, c.sim.SetFaults(nil))
	end := time.Now().Add(2*c.life + chaosPatience)
	for n := 1; ; n++ {
		if !c.settle(ctx) {
			c.findings.add("not settled", "all workers at work %t, all customers content %t, in doubt or waiting: %s",
				c.fleet.well(), c.people.content(), c.view.stragglers(c.t.Context()))
			return
		}
		c.allDue(ctx)
		opened := c.tick()
		round, whole := c.summary(ctx, opened, chaosPatience)
		starved, err := c.view.names(c.t.Context(), c.view.starved, opened.UnixMicro())
		must(c.t, err)
		c.say("calm round %d: %s, whole %t, after %s, %d tokens left out", n, round, whole, time.Since(opened).Round(lookEvery), len(starved))
		switch {
		case whole && len(starved) == 0:
			return
		case time.Now().After(end) || ctx.Err() != nil:
			c.findings.add("starved", "%d tokens were not refreshed in the last calm round: %s", len(starved), firstOf(starved))
			return
		}
	}
}

// settle has rounds go on until no token is in doubt or waits for its next
// attempt, and nobody has to connect again.
func (c *chaos) settle(ctx context.Context) bool {
	end := time.Now().Add(2*c.life + longestWait*c.claimFor)
	for time.Now().Before(end) && ctx.Err() == nil {
		c.summary(ctx, c.tick(), c.life)
		waiting, err := c.view.count(ctx, c.view.unsettled)
		if err == nil && waiting == 0 && c.fleet.well() && c.people.content() {
			return true
		}
		pause(ctx, c.claimFor)
	}
	return false
}

// allDue waits until all tokens are due but those in doubt or lost.
func (c *chaos) allDue(ctx context.Context) {
	c.until(ctx, c.life, func() bool {
		young, err := c.view.count(ctx, c.view.young)
		return err == nil && young == 0
	})
}

// tick asks for a round. It returns a time before it.
func (c *chaos) tick() time.Time {
	now := time.Now()
	_, err := c.conn.JS.Publish(c.t.Context(), c.conn.Names.RefreshTick(), nil)
	must(c.t, err)
	return now
}

// summary waits for the summary of the round that was opened after a tick, or
// until its time is up: the messages of a worker that was killed come again after
// a while.
func (c *chaos) summary(ctx context.Context, ticked time.Time, atMost time.Duration) (round roundRow, whole bool) {
	whole = c.until(ctx, atMost, func() bool {
		rounds, err := c.view.rounds(ctx, ticked)
		if err != nil || len(rounds) == 0 {
			return false
		}
		round = rounds[len(rounds)-1]
		return round.announced
	})
	return round, whole
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
	line := fmt.Sprintf("%4.0fs  ", time.Since(c.began).Seconds()) + fmt.Sprintf(format, args...)
	if c.verdict == "" {
		c.t.Log(line)
		return
	}
	fmt.Println(line)
}

// findings are what no correct program does, by kind.
type findings struct {
	mu     sync.Mutex
	counts map[string]int
	lines  []string
}

// maxFindingsTold bounds what is told of one run beside the counts.
const maxFindingsTold = 12

func (f *findings) add(kind, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.counts = map[string]int{}
	}
	f.counts[kind]++
	if len(f.lines) < maxFindingsTold {
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

// conclude tells the verdict. Whoever wants it in a file prints it himself.
func (c *chaos) conclude() {
	for _, line := range c.findings.lines {
		c.say("%s", line)
	}
	word, violations := "PASS", c.findings.total()
	if violations > 0 {
		word = "FAIL"
	}
	var losses []string
	for why, n := range c.lost {
		if causes[why] != "" {
			losses = append(losses, fmt.Sprintf("%s %d", causes[why], n))
		}
	}
	line := fmt.Sprintf("chaos tokens: %s seed=%d tokens=%d workers=%d rounds=%d exchanges=%d kills=%d freezes=%d doubts=%d retries=%d outdated=%d "+
		"lost=%d (%s) unexplained=%d violations=%d in %.0fs",
		word, c.seed, c.tokens, c.workers, c.rounds, c.exchanges, c.fleet.kills.Load(), c.fleet.freezes.Load(), len(c.people.doubts), c.retries, c.fleet.outdated(),
		len(c.people.losses), strings.Join(losses, ", "), c.findings.counts[unexplained], violations, time.Since(c.began).Seconds())
	if violations > 0 {
		line += ": " + c.findings.String()
	}
	if c.verdict != "" {
		must(c.t, os.WriteFile(c.verdict, []byte(line+"\n"), 0o600))
		if violations > 0 {
			c.t.Fail()
		}
		return
	}
	c.t.Log(line)
	if violations > 0 {
		c.t.Error("rerun with: scripts/chaos tokens --seed and the numbers above")
	}
}

// firstOf shortens a list for people.
func firstOf(names []string) string {
	if len(names) > maxNamed {
		return strings.Join(names[:maxNamed], " ") + " ..."
	}
	return strings.Join(names, " ")
}
