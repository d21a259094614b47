package chaos

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
)

// This chaos run looks for silence. Jobs come all the time, for many accounts, and some
// of them poison. One harm after the other is done, of harms.go: to one
// dependency of one worker, to what stands in NATS, to the disk, by producers that
// attack. Twice a second it is judged whether jobs are accepted and posts are sent, or
// 'jetpost status' of that moment says why not, in the right words. In the end X's call log
// and the ledger are compared, as the runs on posts and on tokens do.
//
// On PostgreSQL three workers reach the database and NATS through proxies of their own.
// With --sqlite the run is on 'jetpost up', whose disk is a small one that is filled.
//
// The lease of a lane is shrunk, as in the run on posts. All other deadlines are real.

// standPlan says how a run goes, beside what every run has. A harm lasts shortestHarm at
// least, and chaosConfig.harm at most.
type standPlan struct {
	rounds   int // of all harms
	accounts int
	rate     int // jobs a second
}

const (
	shortestHarm = 2 * time.Second
	// standsWithin is how long nothing may be accepted, or nothing sent, while something
	// waits for it: then status has to say why.
	standsWithin = 30 * time.Second
	// standLook is how often that is judged, and judgeAgain how often while it lasts.
	standLook, judgeAgain = 500 * time.Millisecond, 5 * time.Second
	// movesWithin is how long what goes on may take to be seen.
	movesWithin = 2 * time.Second
	// toldWithin is how long status may take to tell what stands everything still, or keeps
	// a worker from its work: its last heartbeat counts for 15 s.
	toldWithin = 20 * time.Second
	// mendedWithin is how long upkeep may take.
	mendedWithin = time.Minute
	// exchangeEvery is how often an operator orders the exchange of some account's tokens.
	exchangeEvery = 300 * time.Millisecond
	// poisonOneIn is how many jobs there are for one that poisons.
	poisonOneIn = 12
	// heldUp is the finding that a job waited for long, though workers were well.
	heldUp = "held up"
	// standSlots is how many accounts one worker works on at once.
	standSlots = 16
	// standExchange is the lease of an exchange, shrunk.
	standExchange = 6 * time.Second
)

// standArguments are the defaults of a long run, and what is said otherwise.
func standArguments(t testkit.T, c chaosConfig, args []string) (_ chaosConfig, plan standPlan) {
	t.Helper()
	c.workers, c.claimFor = 3, 6*time.Second
	flags := c.chaosFlags(runStandstill, "lease of a lane")
	flags.StringVar(&c.guard, "break", "", "guard to switch off: "+strings.Join(slices.Sorted(maps.Keys(brokenStandGuards)), ", "))
	flags.DurationVar(&c.harm, "harm", 50*time.Second, "how long a harm lasts at most")
	flags.IntVar(&plan.rounds, "rounds", 2, "how often each harm is done")
	flags.IntVar(&plan.accounts, "accounts", 45, "accounts that the jobs are for, in turn")
	flags.IntVar(&plan.rate, "rate", 6, "jobs a second")
	c.parse(t, flags, runStandstill, args)
	if c.sqlite {
		c.workers = 1
	}
	if plan.rounds < 1 || plan.accounts < 1 || plan.rate < 1 || c.harm < shortestHarm || c.workers < 1 {
		t.Fatalf("--rounds %d, --accounts %d, --rate %d, --workers %d, want 1 at least of each; --harm %s, want %s",
			plan.rounds, plan.accounts, plan.rate, c.workers, c.harm, shortestHarm)
	}
	if c.guard != "" {
		c.harm = max(c.harm, 2*standsWithin) // so that it is seen
	}
	return c, plan
}

// standRun is one run.
type standRun struct {
	*publishRun
	standPlan
	tokens   *tokenRun   // what it knows of tokens
	paths    []path      // of each worker; none with 'up'
	instance *upInstance // 'up'; else nil
	sender   *nats.Conn  // a producer without a login
	out      jetstream.JetStream
	spaces   jetpost.Names
	cron     *publishers.Cron // as it was set up

	sentAt  map[*thread]time.Time
	poisons []poison
	harms   map[string]int  // done, by name
	told    atomic.Int64    // looks at which status said why everything stood still
	longest [2]atomic.Int64 // in which nothing was accepted, and nothing sent
	slowest time.Duration   // from NATS to acceptance, of a job
	moved   atomic.Pointer[standing]

	mu      sync.Mutex
	excuses []excuse // of all harms so far
}

// path is how one worker reaches what it depends on.
type path struct{ database, nats *pgtest.Proxy }

// excuse is a harm, and what it may stand still until everything had the time to go on.
type excuse struct {
	harm  string
	codes []string // with which status says so
	from  time.Time
	until time.Time // zero while it lasts
}

// standing is how far everything is.
type standing struct {
	accepted, posted, done int64 // jobs, posts of them, jobs published
	waiting, due           bool  // jobs that are not accepted, posts that are due
}

func runStandstillChaos(t testkit.T, cfg chaosConfig, plan standPlan) {
	t.Helper()
	c := newStandRun(t, cfg, plan)
	c.say("seed %d: %d jobs a second on %d accounts, %d workers, lease %s", c.seed, c.rate, plan.accounts, c.workers, c.claimFor)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	actors, ctx := errgroup.WithContext(ctx)
	sending, enough := context.WithCancel(ctx)
	defer enough()
	calm, clearUp := context.WithCancel(ctx)
	clearUp() // the fleet does no harm of its own, and no customer is eager
	for i := range c.workers {
		actors.Go(func() error { return c.fleet.keep(ctx, calm, i) })
	}
	c.begin()
	var producing sync.WaitGroup
	producing.Go(func() { c.produceAll(sending) })
	actors.Go(func() error { return c.watch(ctx) })
	actors.Go(func() error { return c.operator(ctx) })
	actors.Go(func() error { return c.exchange(ctx) })
	actors.Go(func() error { return c.tokens.people.live(ctx, calm) })
	c.storm(ctx)
	enough()
	producing.Wait()
	if c.guard == "" {
		c.calm(ctx)
	}
	stop()
	testkit.Must(t, actors.Wait())
	c.judge()
	c.tell()
}

// newStandRun makes an installation with its accounts, and breaks what shall be broken.
func newStandRun(t testkit.T, cfg chaosConfig, plan standPlan) *standRun {
	t.Helper()
	c := &standRun{publishRun: &publishRun{publishPlan: publishPlan{accounts: plan.accounts, slots: standSlots}}, standPlan: plan, harms: map[string]int{}, sentAt: map[*thread]time.Time{}}
	c.moved.Store(&standing{})
	if cfg.sqlite {
		c.newInstance(t, cfg)
	} else {
		c.newFleetOfPaths(t, cfg)
	}
	c.Sim.DuplicateWindow, c.Sim.AllowEqualPosts = -1, true
	c.Sim.Limits = noLimits()
	c.fleet.flags = append(c.fleet.flags, "--slots", fmt.Sprint(standSlots), "--lease", c.claimFor.String(), "--exchange-lease", standExchange.String())
	testkit.Must(t, c.importAccounts())
	c.jobs = make([][]*thread, len(c.names))
	c.tokens = &tokenRun{chaos: c.chaos, tokenPlan: tokenPlan{life: 2 * time.Hour}, view: newTokenView(c.view)}
	c.tokens.people = c.tokens.newPeople(c.names)
	c.tokens.people.importer = func() *app.Importer {
		return &app.Importer{Ledger: c.Ledger, NATS: c.control(), XURL: c.Cfg.X.URL}
	}
	for _, statement := range poisonTriggers(c.sqlite) {
		_, err := c.view.db.ExecContext(t.Context(), statement)
		testkit.Must(t, err)
	}
	testkit.Must(t, c.breakGuard(t.Context()))
	return c
}

// newFleetOfPaths is an installation on PostgreSQL, and on a NATS with walls, unless they
// shall be missing.
func (c *standRun) newFleetOfPaths(t testkit.T, cfg chaosConfig) {
	t.Helper()
	address, user := standNATS(t, cfg.guard != guardWalls)
	c.chaos = newChaos(t, runStandstill, cfg, harness.SiteConfig{NATS: "nats://" + user("setup") + address})
	for range c.workers {
		c.paths = append(c.paths, path{database: pgtest.NewProxy(t, c.Cfg.DatabaseURL.Reveal()), nats: pgtest.NewProxyTo(t, address)})
	}
	c.fleet.own = func(worker int) []string {
		p := c.paths[worker]
		return []string{"DATABASE_URL=" + p.database.URL(), "NATS_URL=nats://" + user("worker") + p.nats.Address()}
	}
	c.address = address
}

// begin waits for the workers, and has everything at hand that the run needs of NATS.
func (c *standRun) begin() {
	c.T.Helper()
	testkit.Eventually(c.T, "all workers to be at work", c.fleet.well)
	if c.instance != nil {
		testkit.Must(c.T, c.instance.connect(c))
	}
	var err error
	c.sender, err = nats.Connect("nats://"+c.address, nats.MaxReconnects(-1), nats.ReconnectWait(standLook),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})) // an attack meets errors
	testkit.Must(c.T, err)
	c.T.Cleanup(c.sender.Close)
	c.out, err = jetstream.New(c.sender)
	testkit.Must(c.T, err)
	c.cron, _, err = publishers.ReadCron(c.T.Context(), c.Conn.JS, c.Conn.Names)
	testkit.Must(c.T, err)
	testkit.Must(c.T, c.layBait(c.T.Context()))
}

// control is a trusted connection to NATS. An 'up' that was started again has another
// password, and is connected to anew.
func (c *standRun) control() *app.Connection {
	now := func() *app.Connection {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.Conn
	}
	if c.instance != nil && !now().Conn.IsConnected() {
		c.until(c.T.Context(), standsWithin, func() bool { return c.instance.connect(c) == nil })
	}
	return now()
}

// storm does one harm after the other. The next one comes once everything moves again.
func (c *standRun) storm(ctx context.Context) {
	random := c.chance(actorServers)
	for range c.rounds {
		for _, h := range c.order(random) {
			if ctx.Err() != nil || c.seen() {
				return
			}
			c.say("%s", h.name)
			over := c.excused(h)
			h.do(ctx, c, random)
			over()
			c.harms[h.name]++
			c.goesOn(ctx, h.name)
		}
	}
}

// seen tells that a broken run has seen what it is for.
func (c *standRun) seen() bool { return c.guard != "" && c.findings.total() > 0 }

// goesOn waits until jobs are accepted and posts are sent again.
func (c *standRun) goesOn(ctx context.Context, harm string) {
	began, before := time.Now(), c.moved.Load()
	moves := c.until(ctx, 2*standsWithin, func() bool {
		now := c.moved.Load()
		return now.accepted > before.accepted && now.posted > before.posted || c.seen()
	})
	if !moves && ctx.Err() == nil {
		c.findings.add("standstill", "%s after the end of %q jobs or posts still did not move: %+v", time.Since(began).Round(time.Second), harm, *c.moved.Load())
	}
}

// excused notes a harm, and with over its end.
func (c *standRun) excused(h standHarm) (over func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := len(c.excuses)
	c.excuses = append(c.excuses, excuse{harm: h.name, codes: h.codes, from: time.Now()})
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.excuses[at].until = time.Now().Add(standsWithin)
	}
}

// excuseAt is what may stand everything still at a moment.
func (c *standRun) excuseAt(at time.Time) excuse {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := excuse{harm: "nothing"}
	for _, e := range c.excuses {
		if !at.Before(e.from) && (e.until.IsZero() || at.Before(e.until)) && (len(e.codes) > 0 || len(found.codes) == 0) {
			found = e
		}
	}
	return found
}

// still is since when a count has not changed, though it should have.
type still struct {
	since time.Time
	last  int64
}

func (s *still) look(now time.Time, count int64, wanted bool) time.Duration {
	if s.since.IsZero() || count != s.last || !wanted {
		s.since, s.last = now, count
	}
	return now.Sub(s.since)
}

// watch judges how far everything is, until the context ends.
func (c *standRun) watch(ctx context.Context) error {
	var accepting, posting still
	judged := time.Now()
	for ; ctx.Err() == nil; pause(ctx, standLook) {
		sent := c.sent.Load()
		now, err := c.view.standing(ctx, time.Now())
		if err != nil {
			continue // of 'up' that starts, say: the clock goes on
		}
		now.waiting = sent > now.accepted
		c.moved.Store(now)
		c.finished.Store(now.done)
		at := time.Now()
		for i, s := range []struct {
			what string
			d    time.Duration
		}{{"accepted", accepting.look(at, now.accepted, now.waiting)}, {"sent", posting.look(at, now.posted, now.due)}} {
			c.longest[i].Store(max(c.longest[i].Load(), int64(s.d)))
			if s.d > standsWithin && time.Since(judged) > judgeAgain {
				judged = time.Now()
				c.judgeStill(ctx, s.what, s.d)
			}
		}
		if time.Since(judged) > judgeAgain && c.judgeOldest(ctx) {
			judged = time.Now()
		}
	}
	return nil
}

// judgeOldest wants the oldest job in NATS to have come a moment ago, whatever becomes of
// the others.
func (c *standRun) judgeOldest(ctx context.Context) (found bool) {
	once, cancel := context.WithTimeout(ctx, standLook)
	defer cancel()
	jobs, err := c.control().JS.Stream(once, c.spaces.JobsStream())
	if err != nil {
		return false
	}
	info := jobs.CachedInfo()
	wait := info.TimeStamp.Sub(info.State.FirstTime)
	if info.State.Msgs == 0 || wait <= standsWithin || len(c.excuseAt(info.State.FirstTime).codes) > 0 || len(c.excuseAt(info.TimeStamp).codes) > 0 {
		return false
	}
	c.findings.add(heldUp, "the oldest of %d jobs is not accepted after %s, during %q", info.State.Msgs, wait.Round(time.Second), c.excuseAt(info.TimeStamp).harm)
	return true
}

// judgeStill wants status to say why nothing moves, and a good reason for that. What moves
// by the time that it has said so is no standstill any more.
func (c *standRun) judgeStill(ctx context.Context, what string, d time.Duration) {
	d = d.Round(time.Second)
	before, why := *c.moved.Load(), c.excuseAt(time.Now())
	status, err := c.status(ctx)
	died := len(why.codes) > 0 && errors.As(err, new(*app.DiedError)) // which 'up' does after a full disk
	codes := append([]string{intakeStuck, lanesStuck}, why.codes...)
	if died || err == nil && len(why.codes) > 0 && status.State == health.NotPublishing && slices.Contains(codes, status.Code) {
		c.told.Add(1)
		return
	}
	if c.until(ctx, movesWithin, func() bool {
		now, err := c.view.standing(ctx, time.Now())
		return err == nil && now.accepted > before.accepted && now.posted > before.posted
	}) || ctx.Err() != nil {
		return
	}
	switch {
	case err != nil:
		c.findings.add("silent", "nothing was %s for %s, and status says nothing: %v", what, d, err)
	case status.State == health.Publishing || status.State == health.Degraded:
		c.findings.add("silent", "nothing was %s for %s during %q, and status says %q", what, d, why.harm, status.Summary)
	case len(why.codes) == 0:
		c.findings.add("standstill", "nothing was %s for %s during %q; status says %q", what, d, why.harm, status.Summary)
	default:
		c.findings.add("wrong words", "nothing was %s for %s during %q, want one of %q, status says %q (%s)", what, d, why.harm, codes, status.Summary, status.Code)
	}
}

// status is what 'jetpost status' says.
func (c *standRun) status(ctx context.Context) (app.Status, error) {
	cfg := c.Cfg
	if c.instance != nil {
		var err error
		if cfg, err = c.instance.reach(c); err != nil {
			return app.Status{}, err
		}
	}
	return cfg.Status(ctx, slog.New(slog.DiscardHandler))
}

// tells waits until status names a cause that stands everything still.
func (c *standRun) tells(ctx context.Context, codes ...string) {
	var last app.Status
	var err error
	if !c.until(ctx, toldWithin, func() bool {
		last, err = c.status(ctx)
		return err == nil && last.State == health.NotPublishing && slices.Contains(codes, last.Code)
	}) && ctx.Err() == nil {
		c.findings.add("not told", "want one of %q from status, and it says %q (%s), %v", codes, last.Summary, last.Code, err)
	}
}

// exchange has the tokens of some account exchanged all the time.
func (c *standRun) exchange(ctx context.Context) error {
	random := c.chance(actorPeople)
	for ; ctx.Err() == nil; pause(ctx, exchangeEvery) {
		control := c.control()
		once, cancel := context.WithTimeout(ctx, standLook)
		_ = publishers.New(control.JS, control.Names).OrderRefresh(once, c.names[random.IntN(len(c.names))], true, "") // or the next time
		cancel()
	}
	return nil
}

// calm waits until all jobs are published, and everything is as it was set up.
func (c *standRun) calm(ctx context.Context) {
	all := c.moving(ctx, func() bool { return c.finished.Load() == c.sent.Load() })
	c.say("%d jobs sent, %d published", c.sent.Load(), c.finished.Load())
	if !all {
		c.findings.add("not finished", "%d jobs sent, %d published: %v", c.sent.Load(), c.finished.Load(), c.Counts())
	}
	c.mends(ctx, "the refresh schedule", func() bool {
		cron, _, err := publishers.ReadCron(ctx, c.control().JS, c.control().Names)
		return err == nil && cron != nil && *cron == *c.cron
	})
	var last app.Status
	if !c.until(ctx, mendedWithin, func() bool {
		var err error
		last, err = c.status(ctx)
		return err == nil && (last.State == health.Publishing || last.Code == "disk_low")
	}) && ctx.Err() == nil {
		c.findings.add("not well", "all is over, and status says %q", last.Summary)
	}
}

// mends waits until workers have put something right.
func (c *standRun) mends(ctx context.Context, what string, is func() bool) {
	if !c.until(ctx, mendedWithin, func() bool { return is() || c.seen() }) && ctx.Err() == nil {
		c.findings.add("upkeep", "%s was not put right within %s", what, mendedWithin)
	}
}

// judge compares X's call log with the jobs, the ledger with X's call log, and what became of
// the poison.
func (c *standRun) judge() {
	ctx := c.T.Context()
	c.endFleet()
	requests := c.requests(ctx)
	for i, name := range c.names {
		posts := c.posts(name)
		c.judgeAccount(name, c.jobs[i], posts, requests[name])
		c.published.posts += len(posts)
		c.judgeWaits(c.jobs[i], requests[name])
	}
	c.tokens.judgeTokens(ctx)
	if c.guard != "" {
		return // it ended as soon as it was seen
	}
	c.judgePoison(ctx, requests)
	for _, h := range standHarms {
		if h.applies(c) && c.harms[h.name] < c.rounds {
			c.findings.add("blind", "the run has done %q %d times, want %d", h.name, c.harms[h.name], c.rounds)
		}
	}
	if c.tokens.exchanges == 0 {
		c.findings.add("blind", "the run has seen no exchange of tokens")
	}
}

// judgeWaits wants each job to be accepted in time, but for those that came while
// everything stood still.
func (c *standRun) judgeWaits(jobs []*thread, rows map[string]*requestRow) {
	for _, j := range jobs {
		row, sent := rows[j.id], c.sentAt[j]
		if row == nil || sent.IsZero() {
			continue
		}
		wait := time.UnixMicro(row.accepted).Sub(sent)
		c.slowest = max(c.slowest, wait)
		if wait > standsWithin && len(c.excuseAt(sent).codes) == 0 && len(c.excuseAt(sent.Add(standsWithin)).codes) == 0 {
			c.findings.add(heldUp, "job %s of %s was accepted %s after NATS had it, during %q", j.id, j.account, wait.Round(time.Second), c.excuseAt(sent).harm)
		}
	}
}

// tell tells the verdict.
func (c *standRun) tell() {
	var told []string
	for _, kind := range []string{twice, missing, unruly, lost, unclear, failed, unexplained} {
		told = append(told, fmt.Sprintf("%s=%d", strings.ReplaceAll(kind, " ", "_"), c.findings.counts[kind]))
	}
	harms := 0
	for _, n := range c.harms {
		harms += n
	}
	c.conclude("jobs=%d posts=%d poison=%d accounts=%d workers=%d lease=%s harms=%d (of %d kinds) still_accepting=%s still_sending=%s slowest_job=%s told=%d exchanges=%d pairs_lost=%d %s",
		c.sent.Load(), c.published.posts, len(c.poisons), len(c.names), c.workers, c.claimFor, harms, len(c.harms),
		time.Duration(c.longest[0].Load()).Round(time.Second), time.Duration(c.longest[1].Load()).Round(time.Second), c.slowest.Round(time.Second), c.told.Load(),
		c.tokens.exchanges, len(c.tokens.people.losses), strings.Join(told, " "))
}

// standing asks the ledger how far everything is.
func (v *ledgerView) standing(ctx context.Context, now time.Time) (*standing, error) {
	ctx, cancel := context.WithTimeout(ctx, judgeAgain)
	defer cancel()
	s := &standing{}
	err := v.db.QueryRowContext(ctx, "SELECT count(*), coalesce(sum(CASE WHEN state = 'published' THEN 1 ELSE 0 END), 0), "+
		"coalesce(sum(CASE WHEN state IN ('queued', 'publishing') AND "+v.micros("due_at")+" <= $1 THEN 1 ELSE 0 END), 0) > 0, "+
		"(SELECT count(*) FROM posts WHERE state = 'posted') FROM requests WHERE id LIKE 'job-%'", now.UnixMicro()).
		Scan(&s.accepted, &s.done, &s.due, &s.posted)
	return s, err
}

// author writes the next job of an account, mostly short.
func (c *standRun) author(random *rand.Rand, n int) *thread {
	a := n % len(c.names)
	j := &thread{account: c.names[a], id: fmt.Sprintf("job-%d", n), picture: random.IntN(eachOneIn) == 0}
	for k := range 1 + random.IntN(3) {
		j.texts = append(j.texts, fmt.Sprintf("%s of %s, post %d", j.id, j.account, k+1))
	}
	c.jobs[a] = append(c.jobs[a], j)
	return j
}

// produceAll sends jobs, and poison among them, until the context ends.
func (c *standRun) produceAll(ctx context.Context) {
	random := c.chance(actorProducer)
	every := time.NewTicker(time.Second / time.Duration(c.rate))
	defer every.Stop()
	for n := 0; ctx.Err() == nil; {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		if c.sent.Load() > c.finished.Load()+int64(jobsAhead*len(c.names)) {
			continue // it would only make the lines longer
		}
		j := c.author(random, n)
		body, err := j.bytes()
		if err == nil {
			c.deliver(ctx, j.account, body)
			c.sentAt[j] = time.Now()
		}
		c.sent.Add(1)
		if n++; n%poisonOneIn == 0 {
			c.poison(ctx, random, n)
		}
	}
}

// deliver publishes a job until NATS says that it has it: what NATS may have is not given
// up, unless the run is broken.
func (c *standRun) deliver(ctx context.Context, account string, body []byte) {
	if c.guard == "" {
		ctx = c.T.Context()
	}
	for ctx.Err() == nil {
		once, cancel := context.WithTimeout(ctx, judgeAgain)
		_, err := c.out.Publish(once, c.spaces.PublishRequest(account), body)
		cancel()
		if err == nil {
			return
		}
		pause(ctx, lookEvery)
	}
}
