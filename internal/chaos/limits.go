package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// This chaos run has more to post than X allows. X's own call log says how much of
// its windows was used while jobs waited, and whether anything was called that X had
// forbidden; allowance.go defines each figure. It goes through four acts:
//
//	accounts  single posts and threads, where each account's window binds
//	app       single posts, where the window of the whole app binds
//	stops     what stops the whole app in mid-load, and how it goes on
//	joins     workers that come into a window which is used up already
//
// In the first two another program posts with the same app's tokens now and then, so
// that what workers count is wrong. Nothing else fails.
//
// X's windows are shrunk from a quarter of an hour to some seconds. They cannot be
// shorter than four: X names a reset in whole seconds, so a window of one second would
// be measured by half of its length. They last half a second less than whole seconds,
// so that the next reset comes a whole number of seconds after the last one wherever
// the first call comes within the first half second; a later one costs a second. In a
// test of the suite, on a machine that may be busy, that is 0.8 s, and less must be used.

// The acts.
const (
	actAccounts = "accounts"
	actApp      = "app"
	actStops    = "stops"
	actJoins    = "joins"
)

// limitPlan says how a run goes, beside what every run has.
type limitPlan struct {
	acts     []string
	accounts int // of each kind of job, in the first two acts
	singles  int // jobs of one post, in each of them
	cycles   int // windows that the threads of an account fill
	thefts   int // windows of a shared account that others use up

	windowMS   int64 // milliseconds
	accountMax int   // posts of an account in a window
	appMax     int   // of all accounts

	stops    int
	closedMS int64   // milliseconds of a window that workers come into
	want     float64 // the least share of a window that must be used
	slots    int     // of one worker
}

const (
	// stopsWithin is how long after a pause is known a call may begin anywhere.
	stopsWithin = 100 * time.Millisecond
	// The goals for the first call after the end of a pause.
	firstGoal, firstWorstGoal = 200 * time.Millisecond, time.Second

	// sharedOneIn is how many accounts there are for one whose token others use, too:
	// such an account is judged by its 429s alone. They use up its window at one in
	// every so many of its calls, a few times. It has less to post for it, so that the
	// others need not be waited for.
	sharedOneIn, othersOneIn = 6, 4
	// stopAccounts and joinAccounts are those of the last acts.
	stopAccounts, joinAccounts = 16, 8
	// stopPosts is how many posts are queued for each pause, and before the first one.
	stopPosts, stopPostsFirst = 120, 100
	// stopCallMS is how long, in milliseconds, X takes for a call then, so that the
	// jobs last.
	stopCallMS = 100
	// stopWindowMax is more than all accounts can post in a window then.
	stopWindowMax = 1000
	// windowPlenty is more than a run posts in all.
	windowPlenty = 1_000_000
	// stopLasts is how long a pause lasts whose end the run can choose, and
	// restartLasts one in which NATS is killed.
	stopLasts, restartLasts = time.Second, 3 * time.Second
	// stopCalls is how many calls have to come between two pauses.
	stopCalls = 30
	// joinPosts is how many posts use up a window that workers come into, of an account.
	joinPosts = 2
	// joinAhead is how long before its reset they have to be at work.
	joinAhead = 500 * time.Millisecond
	// callLogEnd is how many calls X's call log keeps.
	callLogEnd = 10_000
	// resumesWithin is when an app that does not go on is given up.
	resumesWithin = 20 * time.Second
)

// limitArguments are the defaults of a long run, and what is said otherwise.
func limitArguments(t testkit.T, c chaosConfig, args []string) (_ chaosConfig, plan limitPlan) {
	t.Helper()
	c.workers, c.claimFor = 4, 12*time.Second
	plan = limitPlan{thefts: 3, windowMS: 4500, closedMS: 8500, want: 0.97, slots: 32}
	flags := c.chaosFlags(runLimits, "lease of a lane")
	flags.IntVar(&plan.accounts, "accounts", 30, "accounts of each kind of job")
	flags.IntVar(&plan.singles, "singles", 2000, "jobs of one post, queued at once")
	flags.IntVar(&plan.cycles, "cycles", 11, "windows that the threads of an account fill")
	flags.IntVar(&plan.accountMax, "account-max", 6, "posts of an account in a window")
	flags.IntVar(&plan.appMax, "app-max", 280, "posts of all accounts in a window")
	flags.IntVar(&plan.stops, "stops", 20, "app pauses")
	acts := flags.String("acts", strings.Join([]string{actAccounts, actApp, actStops, actJoins}, ","), "what to go through")
	c.parse(t, flags, runLimits, args)
	for _, name := range strings.Split(*acts, ",") {
		if !slices.Contains([]string{actAccounts, actApp, actStops, actJoins}, name) {
			t.Fatalf("--acts: there is no %q", name)
		}
		plan.acts = append(plan.acts, name)
	}
	return c, plan
}

// limitsRun is one run.
type limitsRun struct {
	*publishRun
	limitPlan
	ended        func() // ends the present workers' keepers
	desiredStore *errgroup.Group
	others       others
	stops        pauseControl
	// The workers' calls so far, and when the last one came, in nanoseconds: reading X's
	// call log again and again would keep X busy.
	arrived, lastCall atomic.Int64

	jobsSent          int
	figures           []string // of the verdict, by act
	excused, disputed int      // 429s in windows that others had called in, and such windows
	closed            int      // calls into a window of which X had said that it was closed
	shown             []stopShown
}

func runLimitsChaos(t testkit.T, cfg chaosConfig, plan limitPlan) {
	t.Helper()
	c := newLimitsRun(t, cfg, plan)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	c.say("seed %d: %d workers, windows of %d ms", c.seed, c.workers, plan.windowMS)
	testkit.Must(t, c.stops.watch(ctx, c.Conn.JS, c.Conn.Names))
	c.man(ctx)
	acts := map[string]func(context.Context) bool{actAccounts: c.accountsAct, actApp: c.appAct, actStops: c.stopsAct, actJoins: c.joinsAct}
	for _, name := range plan.acts {
		// One that does not come to its end leaves the others nothing to measure.
		if !acts[name](ctx) {
			break
		}
	}
	c.dismiss()
	c.judgePosts()
	c.tell()
}

func newLimitsRun(t testkit.T, cfg chaosConfig, plan limitPlan) *limitsRun {
	t.Helper()
	accounts := 3*plan.accounts + stopAccounts + 2*joinAccounts + 1
	base := newPublisher(t, runLimits, cfg, publishPlan{accounts: accounts, slots: plan.slots}, true)
	c := &limitsRun{publishRun: base, limitPlan: plan}
	c.jobs = make([][]*thread, accounts)
	c.others.random = c.chance(actorOthers)
	c.fleet.onCall = c.onCall
	return c
}

// Actors, beside the workers.
const (
	actorOthers = 3<<32 + iota
	actorWriter
)

// man starts the workers, and waits until all are at work.
func (c *limitsRun) man(ctx context.Context) {
	ctx, c.ended = context.WithCancel(ctx)
	c.desiredStore, ctx = errgroup.WithContext(ctx)
	calm, cancel := context.WithCancel(ctx)
	cancel() // nobody is harmed
	for i := range c.workers {
		c.desiredStore.Go(func() error { return c.fleet.keep(ctx, calm, i) })
	}
	if !c.until(ctx, chaosPatience, c.fleet.well) {
		c.findings.add("run", "the workers do not start; see %s", c.logs)
	}
}

// dismiss stops the workers as an operator would.
func (c *limitsRun) dismiss() {
	c.ended()
	testkit.Must(c.T, c.desiredStore.Wait())
	c.endFleet()
}

// ours tells the calls of workers.
func (c *limitsRun) ours(call xsim.Call) bool { return c.fleet.of(call.Host) != nil }

// part is what one act, or one kind of job in it, is about.
type part struct {
	name   string
	first  int // of its accounts
	names  []string
	began  time.Time
	queued time.Time // when its jobs were
	calls  []xsim.Call
	ids    map[string]string // of accounts at X, by name
}

// part begins one with so many accounts from the first on.
func (c *limitsRun) part(name string, first, accounts int) *part {
	p := &part{name: name, first: first, names: c.names[first : first+accounts], began: time.Now(), ids: map[string]string{}}
	for _, a := range c.Sim.Accounts() {
		p.ids[a.Handle] = a.ID
	}
	return p
}

// limit puts one window in force that binds. X tells of the other one, too, in which
// there is always plenty left. No window of before counts any more.
func (c *limitsRun) limit(l xsim.Limit) {
	other := l
	other.Scope, other.Max = xsim.ScopeUser, windowPlenty
	if l.Scope == xsim.ScopeUser {
		other.Scope = xsim.ScopeApp24h
	}
	testkit.Must(c.T, c.Sim.SetLimits(append(noLimits(), l, other)))
}

func (c *limitsRun) accountLimit() xsim.Limit {
	return xsim.Limit{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: c.accountMax, WindowMS: c.windowMS}
}

func (c *limitsRun) appLimit() xsim.Limit {
	return xsim.Limit{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeApp24h, Max: c.appMax, WindowMS: c.windowMS}
}

// write writes one job of a part's account.
func (c *limitsRun) write(p *part, account, posts int) *thread {
	a := p.first + account
	j := &thread{account: c.names[a], id: fmt.Sprintf("%s-%d", p.name, len(c.jobs[a]))}
	for k := range posts {
		j.texts = append(j.texts, fmt.Sprintf("%s of %s, post %d of %d", j.id, j.account, k+1, posts))
	}
	c.jobs[a] = append(c.jobs[a], j)
	return j
}

// queue sends jobs, and waits until all are accepted.
func (c *limitsRun) queue(ctx context.Context, jobs []*thread) bool {
	for _, j := range jobs {
		body, err := j.bytes()
		testkit.Must(c.T, err)
		_, err = c.Conn.JS.PublishAsync(c.Conn.Names.PublishRequest(j.account), body)
		testkit.Must(c.T, err)
	}
	c.jobsSent += len(jobs)
	accepted := c.until(ctx, chaosPatience, func() bool {
		total := 0
		for _, n := range c.Counts() {
			total += n
		}
		return total >= c.jobsSent
	})
	if !accepted {
		c.findings.add("not finished", "of %d jobs not all were accepted: %v", c.jobsSent, c.Counts())
	}
	return accepted
}

// queueAtOnce has jobs be accepted while the app is paused, so that all are there when
// the first is posted.
func (c *limitsRun) queueAtOnce(ctx context.Context, jobs []*thread, parts ...*part) bool {
	_, _, err := harness.SignedPauses(c.T, c.Conn, c.Ledger).Set(ctx, publishers.Pause{
		Target: publishers.TargetPublish, Since: time.Now(),
		Reason: jetpost.Reason{Code: jetpost.CodeCreditsDepleted, Detail: "jobs are queued", Until: time.Now().Add(chaosPatience)},
	})
	testkit.Must(c.T, err)
	if !c.queue(ctx, jobs) {
		return false
	}
	for _, p := range parts {
		p.queued = time.Now()
	}
	c.say("%d jobs are queued", len(jobs))
	testkit.Must(c.T, c.resume())
	return true
}

// resume ends the app pause, as an operator would.
func (c *limitsRun) resume() error {
	if code, _, stderr := c.Run("resume", "--app"); code != 0 {
		return fmt.Errorf("resume ended with code %d: %s", code, stderr)
	}
	return nil
}

// drain waits until all jobs are finished, for so long at most.
func (c *limitsRun) drain(ctx context.Context, atMost time.Duration, parts ...*part) bool {
	drained := c.until(ctx, atMost, func() bool {
		counts := c.Counts()
		return counts[jetpost.StatePublished]+counts[jetpost.StateFailed]+counts[jetpost.StateUnknown] >= c.jobsSent
	})
	if !drained {
		c.findings.add("not finished", "%d jobs sent, after %s: %v", c.jobsSent, atMost, c.Counts())
	}
	calls := c.Sim.Calls()
	for _, p := range parts {
		if len(calls) >= callLogEnd && calls[0].At.After(p.began) {
			c.findings.add("run", "X's call log does not reach back to %s: too many calls for one act", clock(p.began))
		}
		p.calls = slices.DeleteFunc(slices.Clone(calls), func(call xsim.Call) bool {
			return call.At.Before(p.began) || call.Endpoint != xsim.EndpointCreatePost
		})
	}
	return drained
}

// of are a part's calls for one account.
func (p *part) of(name string) []xsim.Call {
	return slices.DeleteFunc(slices.Clone(p.calls), func(call xsim.Call) bool { return call.Account != p.ids[name] })
}

// inTime is how long so many cycles may take a bad worker.
func inTime(cycles int, l xsim.Limit) time.Duration {
	return time.Duration(2*cycles)*cycleOf(l) + time.Minute/2
}

// accountsAct queues single posts and threads at once, on accounts whose windows are
// far too small for them.
func (c *limitsRun) accountsAct(ctx context.Context) bool {
	random := c.chance(actorWriter)
	limit := c.accountLimit()
	c.limit(limit)
	single, long := c.part("single", 0, c.accounts), c.part("thread", c.accounts, c.accounts)
	shared := slices.Concat(sharedOf(single), sharedOf(long))
	stolen := c.thefts * c.accountMax // of a shared account
	quota := (c.singles + stolen*len(sharedOf(single)) + c.accounts - 1) / c.accounts
	var jobs []*thread
	for n := range quota {
		for a, name := range single.names {
			if n < quota-stolen || !slices.Contains(shared, name) {
				jobs = append(jobs, c.write(single, a, 1))
			}
		}
	}
	for a, name := range long.names {
		cycles := c.cycles
		if slices.Contains(shared, name) {
			cycles -= c.thefts
		}
		for _, n := range filling(random, cycles, c.accountMax) {
			jobs = append(jobs, c.write(long, a, n))
		}
	}
	c.others.share(c.tokensOf(shared), c.thefts)
	ok := c.queueAtOnce(ctx, jobs, single, long) && c.drain(ctx, inTime(max(c.cycles, quota/c.accountMax), limit), single, long)
	c.others.share(nil, 0)
	c.judgeShare("singles", c.judgeAccounts(single, limit))
	c.judgeShare("threads", c.judgeAccounts(long, limit))
	c.judgeClosed(single.began)
	return ok
}

// filling are the lengths of threads that fill so many windows, in the best order.
func filling(random *rand.Rand, windows, limit int) (lengths []int) {
	for {
		more := append(slices.Clone(lengths), 1+random.IntN(longestThread))
		if len(wholeThreads(0, more, limit)) > windows {
			return lengths
		}
		lengths = more
	}
}

// sharedOf are the accounts of a part that others use, too.
func sharedOf(p *part) (names []string) {
	for i, name := range p.names {
		if i%sharedOneIn == 0 {
			names = append(names, name)
		}
	}
	return names
}

// judgeAccounts measures the windows of the accounts, and looks at what went wrong.
func (c *limitsRun) judgeAccounts(p *part, l xsim.Limit) (total usage) {
	until := time.Now()
	shared := sharedOf(p)
	for i, name := range p.names {
		windows := windowsIn(p.of(name), l)
		c.checkWindows(name, windows, l)
		c.judgeRefusals(name, windows, 0)
		if slices.Contains(shared, name) {
			continue
		}
		d := demand{queued: p.queued, until: until}
		for _, j := range c.jobs[p.first+i] {
			d.threads = append(d.threads, len(j.texts))
		}
		total.add(useOf(windows, l, d, c.ours))
		for _, call := range cutShort(windows, l.Max, c.begins(name, c.jobs[p.first+i])) {
			c.findings.add("cut", "%s began a thread at %s for which its window had not enough left", name, clock(call.At))
		}
	}
	return total
}

// begins are the threads that X has of an account, by the moment of the first post.
func (c *limitsRun) begins(account string, jobs []*thread) map[time.Time]int {
	begins, lengths := map[time.Time]int{}, map[string]int{}
	for _, j := range jobs {
		lengths[j.texts[0]] = len(j.texts)
	}
	for _, p := range c.posts(account) {
		if n := lengths[p.Text]; n > 0 {
			begins[p.CreatedAt] = n
		}
	}
	return begins
}

// checkWindows wants the windows that were replayed to be those that X had.
func (c *limitsRun) checkWindows(whose string, windows []rateWindow, l xsim.Limit) {
	for _, w := range windows {
		if len(w.made) > l.Max || len(w.refused) > 0 && len(w.made) < l.Max {
			c.findings.add("run", "the window of %s from %s does not fit X's: %d calls made and %d refused of %d", whose, clock(w.opened), len(w.made), len(w.refused), l.Max)
		}
	}
}

func clock(t time.Time) string { return t.UTC().Format(time.TimeOnly + ".000") }

// judgeRefusals wants no 429 but in windows that others had called in.
func (c *limitsRun) judgeRefusals(whose string, windows []rateWindow, together time.Duration) {
	excused, blamed := refusals(windows, c.ours, together)
	c.disputed += len(excused)
	for _, calls := range excused {
		c.excused += len(calls)
		for _, call := range calls {
			c.others.excuse(call)
		}
	}
	for _, call := range blamed {
		c.findings.add("429", "%s of %s was refused at %s", c.nameOf(call.Host), whose, clock(call.At))
	}
}

func (c *limitsRun) nameOf(host string) string {
	if l := c.fleet.of(host); l != nil {
		return l.Name
	}
	return host
}

// judgeClosed wants no call into a window of which X had said that it is closed, but for
// those that were excused.
func (c *limitsRun) judgeClosed(since time.Time) {
	for _, v := range c.Sim.Violations() {
		if v.Kind != xsim.ViolationCallInClosedWindow || v.At.Before(since) || c.others.excused(v) {
			continue
		}
		c.closed++
		c.findings.add("closed", "%s at %s: %s", v.Account, clock(v.At), v.Detail)
	}
}

func (c *limitsRun) judgeShare(what string, u usage) {
	c.say("%s: %s", what, u)
	c.figures = append(c.figures, fmt.Sprintf("%s=%.1f%% gap=%s", what, 100*u.share(), gapsOf(u)))
	if u.windows == 0 {
		c.findings.add("blind", "no window counts for the %s", what)
	} else if u.share() < c.want {
		c.findings.add("unused", "the %s used %.1f%% of what X allowed, want %.0f%%", what, 100*u.share(), 100*c.want)
	}
}

func (u usage) String() string {
	return fmt.Sprintf("used %.1f%%, %d of %.0f calls in %d windows, first call %s after a reset (median/worst)",
		100*u.share(), u.used, u.allowed, u.windows, gapsOf(u))
}

// gapsOf are the median and the worst time from a reset to the next call.
func gapsOf(u usage) string {
	middle, worst := middleAndWorst(u.gaps)
	return fmt.Sprintf("%s/%s", inMS(middle), inMS(worst))
}

func inMS(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// appAct queues single posts at once, more than the window of the app has.
func (c *limitsRun) appAct(ctx context.Context) bool {
	limit := c.appLimit()
	c.limit(limit)
	p := c.part("app", 2*c.accounts, c.accounts)
	var jobs []*thread
	for i := range c.singles {
		jobs = append(jobs, c.write(p, i%c.accounts, 1))
	}
	// Others use up the second window half-way.
	c.others.strikeAt(c.appMax+c.appMax/2, c.stranger())
	ok := c.queueAtOnce(ctx, jobs, p) && c.drain(ctx, inTime(c.singles/c.appMax, limit), p)
	c.others.strikeAt(0, "")
	windows := windowsIn(p.calls, limit)
	c.checkWindows("the app", windows, limit)
	// Those on their way, until the pause is stored and known.
	c.judgeRefusals("the app", windows, 2*stopsWithin)
	c.judgeClosed(p.began)
	d := demand{threads: slices.Repeat([]int{1}, c.singles), queued: p.queued, until: time.Now()}
	c.judgeShare("app", useOf(windows, limit, d, c.ours))
	return ok
}

// stopsAct stops the app again and again in mid-load.
func (c *limitsRun) stopsAct(ctx context.Context) bool {
	limit := c.appLimit()
	limit.Max = stopWindowMax
	c.limit(limit)
	p := c.part("stop", 3*c.accounts, stopAccounts)
	testkit.Must(c.T, c.Sim.SetFaults(c.slowCalls(p)))
	var jobs []*thread
	for range (stopPostsFirst+stopPosts*(c.limitPlan.stops+1))/(stopAccounts*longestThread) + 1 {
		for a := range p.names {
			jobs = append(jobs, c.write(p, a, longestThread))
		}
	}
	if !c.queueAtOnce(ctx, jobs, p) {
		return false
	}
	since := p.queued
	kinds := []func(context.Context, *part, xsim.Limit) (stopSeen, error){
		c.stopByFault("credits depleted", xsim.Fault{Status: http.StatusPaymentRequired}),
		c.stopByFault("usage cap", xsim.Fault{Status: http.StatusTooManyRequests, Variant: "usage-capped"}),
		c.stopByFault("spend cap", xsim.Fault{Status: http.StatusForbidden, Variant: "spend-cap"}),
		c.stopByWindow,
		c.stopByHand,
	}
	going := true
	for i := 0; going && i < c.limitPlan.stops; i++ {
		since, going = c.oneStop(ctx, p, limit, since, kinds[i%len(kinds)])
	}
	if going {
		_, going = c.oneStop(ctx, p, limit, since, c.stopAndRestart)
	}
	testkit.Must(c.T, c.Sim.SetFaults(nil))
	c.judgeStops()
	return c.drain(ctx, time.Minute, p) && going
}

// slowCalls are faults that have the calls of a part's accounts take a while.
func (c *limitsRun) slowCalls(p *part, more ...xsim.Fault) []xsim.Fault {
	for _, name := range p.names {
		more = append(more, xsim.Fault{Kind: xsim.FaultLatency, Endpoint: xsim.EndpointCreatePost, Account: name, DelayMS: stopCallMS})
	}
	return more
}

// callsSince are all calls in X's call log from a moment on.
func (c *limitsRun) callsSince(t time.Time) []xsim.Call {
	return slices.DeleteFunc(c.Sim.Calls(), func(call xsim.Call) bool { return call.At.Before(t) })
}

// oneStop waits for load, stops the app in one way, and waits until it goes on. It
// returns when the pause ended, and false if the app does not go on.
func (c *limitsRun) oneStop(ctx context.Context, p *part, l xsim.Limit, since time.Time, stop func(context.Context, *part, xsim.Limit) (stopSeen, error)) (time.Time, bool) {
	before := c.arrived.Load()
	if !c.soon(ctx, func() bool { return c.arrived.Load() >= before+stopCalls }) {
		c.findings.add("not resumed", "%d calls since %s, and then fewer than %d in %s; %v", countOf(c.callsSince(since), c.ours), clock(since), stopCalls, resumesWithin, c.Counts())
		return since, false
	}
	began := time.Now()
	seen, err := stop(ctx, p, l)
	if err != nil {
		c.findings.add("stop", "%v", err)
		return since, false
	}
	c.soon(ctx, func() bool { return c.lastCall.Load() >= seen.end.UnixNano() })
	c.soon(ctx, func() bool { return countOf(c.callsSince(seen.end), c.ours) > 0 }) // X logs it at its end
	shown := seen.shown(c.callsSince(began), c.ours, stopsWithin)
	c.shown = append(c.shown, shown)
	first := "none"
	if shown.first >= 0 {
		first = "first " + inMS(shown.first).String()
	}
	c.say("stop %d, %s: lasted %s, last call %s after it was known, %s after its end", len(c.shown), seen.kind,
		inMS(seen.end.Sub(seen.known)), inMS(shown.latest), first)
	for _, call := range shown.broken {
		c.findings.add("stop broken", "%s: %s called %s %s after the stop was known, %s before its end", seen.kind, c.nameOf(call.Host), call.Endpoint,
			inMS(call.At.Sub(seen.known)), inMS(seen.end.Sub(call.At)))
	}
	if shown.first < 0 {
		c.findings.add("not resumed", "%s: no call within %s of its end", seen.kind, resumesWithin)
	}
	return seen.end, shown.first >= 0
}

// soon waits for a fact that should be one within moments.
func (c *limitsRun) soon(ctx context.Context, is func() bool) bool {
	end := time.Now().Add(resumesWithin)
	for !is() {
		if ctx.Err() != nil || time.Now().After(end) {
			return false
		}
		pause(ctx, testkit.AskAgain)
	}
	return true
}

// known waits until NATS has stored a stop.
func (c *limitsRun) known(ctx context.Context, kind string, since time.Time) (stopRevision, error) {
	var revision stopRevision
	var ok bool
	if !c.soon(ctx, func() bool { revision, ok = c.stops.first(since, false); return ok }) {
		return revision, fmt.Errorf("%s: NATS has stored no stop within %s", kind, resumesWithin)
	}
	return revision, nil
}

// stopByFault has X answer one call with what stops the app for a quarter of an hour or
// longer, and an operator end that before its time.
func (c *limitsRun) stopByFault(kind string, fault xsim.Fault) func(context.Context, *part, xsim.Limit) (stopSeen, error) {
	fault.Kind, fault.Endpoint, fault.Times = xsim.FaultStatus, xsim.EndpointCreatePost, 1
	return func(ctx context.Context, p *part, _ xsim.Limit) (stopSeen, error) {
		since := time.Now()
		testkit.Must(c.T, c.Sim.SetFaults(c.slowCalls(p, fault)))
		revision, err := c.known(ctx, kind, since)
		if err != nil {
			return stopSeen{}, err
		}
		pause(ctx, stopLasts)
		if err := c.resume(); err != nil {
			return stopSeen{}, fmt.Errorf("%s: %w", kind, err)
		}
		var over stopRevision
		var ok bool
		// The sweeper may have tidied away the stop before meanwhile.
		if !c.soon(ctx, func() bool { over, ok = c.stops.first(revision.at, true); return ok }) {
			return stopSeen{}, fmt.Errorf("%s: NATS has not stored that the stop is over", kind)
		}
		return stopSeen{kind: kind, known: revision.at, end: over.at}, nil
	}
}

// stopByWindow has others use up the app's window, so that X refuses a call while the
// workers believe that there is much left.
func (c *limitsRun) stopByWindow(ctx context.Context, p *part, l xsim.Limit) (stopSeen, error) {
	const kind = "window of the app"
	var now rateWindow
	window := func() rateWindow {
		windows := windowsIn(c.callsSince(p.began), l)
		return windows[len(windows)-1]
	}
	var since time.Time
	for ok := false; !ok && ctx.Err() == nil; ok = time.Now().Before(now.end) {
		// Long enough before its reset that the stop can be seen.
		c.soon(ctx, func() bool { now = window(); return time.Until(now.end) > cycleOf(l)/2 })
		since = time.Now()
		c.useUp(c.stranger(), "X-App-Limit-24hour-Remaining")
	}
	seen := stopSeen{kind: kind, end: now.end}
	known := func() bool {
		// Where a worker had the last call of the window itself, it knows without a refusal.
		calls := c.callsSince(since)
		refused := slices.IndexFunc(calls, func(call xsim.Call) bool { return c.ours(call) && call.Status == http.StatusTooManyRequests })
		if revision, ok := c.stops.first(since, false); ok {
			seen.known = revision.at
		} else if refused >= 0 {
			seen.known = calls[refused].Counted
		}
		return !seen.known.IsZero()
	}
	if !c.soon(ctx, known) {
		return stopSeen{}, fmt.Errorf("%s: nobody has noticed", kind)
	}
	// What a worker was told it may store a moment later.
	pause(ctx, stopsWithin)
	known()
	return seen, nil
}

// stopByHand stops the app until a moment.
func (c *limitsRun) stopByHand(ctx context.Context, _ *part, _ xsim.Limit) (stopSeen, error) {
	return c.stopUntil(ctx, "by hand", time.Now().Add(stopLasts))
}

// stopAndRestart kills NATS while the app is paused, and starts it again.
func (c *limitsRun) stopAndRestart(ctx context.Context, _ *part, _ xsim.Limit) (stopSeen, error) {
	seen, err := c.stopUntil(ctx, "NATS killed", time.Now().Add(restartLasts))
	if err == nil {
		pause(ctx, stopsWithin)
		c.bounceNATS()
	}
	return seen, err
}

// bounceNATS kills NATS and starts it again at once.
func (c *limitsRun) bounceNATS() {
	c.nats.Kill()
	c.nats = harness.StartNATS(c.T, c.natsDir, c.address)
	c.restarts++
	c.say("NATS was killed and started again")
}

func (c *limitsRun) stopUntil(ctx context.Context, kind string, end time.Time) (stopSeen, error) {
	since := time.Now()
	_, _, err := harness.SignedPauses(c.T, c.Conn, c.Ledger).Set(ctx, publishers.Pause{
		Target: publishers.TargetPublish, Since: since,
		Reason: jetpost.Reason{Code: jetpost.CodeXOutage, Detail: "a chaos run", Until: end},
	})
	if err != nil {
		return stopSeen{}, err
	}
	revision, err := c.known(ctx, kind, since)
	return stopSeen{kind: kind, known: revision.at, end: end}, err
}

// joinsAct has windows used up to the last call, with nothing left to post. Then all
// workers are replaced by ones that know nothing, which get new jobs. The app's window
// outlasts a NATS that is killed as well.
func (c *limitsRun) joinsAct(ctx context.Context) bool {
	account := xsim.Limit{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: joinPosts, WindowMS: c.closedMS}
	app := account
	app.Scope, app.Max = xsim.ScopeApp24h, joinPosts*joinAccounts
	first := 3*c.accounts + stopAccounts
	return c.join(ctx, c.part("join", first, joinAccounts), account, false) &&
		c.join(ctx, c.part("joinapp", first+joinAccounts, joinAccounts), app, true)
}

func (c *limitsRun) join(ctx context.Context, p *part, l xsim.Limit, killNATS bool) bool {
	c.limit(l)
	jobs := func() (jobs []*thread) {
		for range joinPosts {
			for a := range p.names {
				jobs = append(jobs, c.write(p, a, 1))
			}
		}
		return jobs
	}
	if !c.queue(ctx, jobs()) || !c.drain(ctx, inTime(1, l), p) {
		return false
	}
	c.dismiss()
	if killNATS {
		c.bounceNATS()
	}
	c.man(ctx)
	if !c.queue(ctx, jobs()) {
		return false
	}
	joined := time.Now()
	drained := c.drain(ctx, inTime(2, l), p)
	var after usage
	for whose, windows := range c.windowsBy(p, l) {
		c.checkWindows(whose, windows, l)
		c.judgeRefusals(whose, windows, 0)
		if len(windows) < 2 || len(windows[0].made) != l.Max || windows[0].end.Sub(joined) < joinAhead {
			c.findings.add("blind", "the window of %s was not closed for long enough after workers came at %s", whose, clock(joined))
			continue
		}
		for _, call := range begunIn(p.calls, windows[0].made[l.Max-1].Counted.Add(time.Nanosecond), windows[0].end, func(call xsim.Call) bool {
			return c.ours(call) && (l.Scope == xsim.ScopeApp24h || call.Account == p.ids[whose])
		}) {
			c.findings.add("joined", "%s called for %s %s before the reset", c.nameOf(call.Host), whose, inMS(windows[0].end.Sub(call.At)))
		}
		after.gaps = append(after.gaps, windows[1].opened.Sub(windows[0].end))
	}
	c.judgeClosed(p.began)
	c.figures = append(c.figures, fmt.Sprintf("%s gap=%s", p.name, gapsOf(after)))
	c.say("%s: new workers had jobs %s before the reset, first call %s after it (median/worst)", p.name, inMS(closest(c.windowsBy(p, l), joined)), gapsOf(after))
	return drained
}

// closest is the time to the first reset.
func closest(all map[string][]rateWindow, from time.Time) (least time.Duration) {
	for _, windows := range all {
		if d := windows[0].end.Sub(from); least == 0 || d < least {
			least = d
		}
	}
	return least
}

// windowsBy are the windows of a part by whose they are.
func (c *limitsRun) windowsBy(p *part, l xsim.Limit) map[string][]rateWindow {
	if l.Scope == xsim.ScopeApp24h {
		return map[string][]rateWindow{"the app": windowsIn(p.calls, l)}
	}
	all := map[string][]rateWindow{}
	for _, name := range p.names {
		all[name] = windowsIn(p.of(name), l)
	}
	return all
}

// judgePosts compares X's posts with the jobs, and the ledger with X's posts.
func (c *limitsRun) judgePosts() {
	requests := c.requests(c.T.Context())
	for i, name := range c.names {
		posts := c.posts(name)
		c.judgeAccount(name, c.jobs[i], posts, requests[name])
		c.published.posts += len(posts)
	}
	for _, v := range c.Sim.Violations() {
		if v.Kind != xsim.ViolationCallInClosedWindow { // which the acts judge
			c.findings.add("X's call log", "%s of %s: %s", v.Kind, v.Account, v.Detail)
		}
	}
	if c.disputed == 0 && (slices.Contains(c.acts, actAccounts) || slices.Contains(c.acts, actApp)) {
		c.findings.add("blind", "others have used up no window")
	}
}

// judgeStops sums up the stops.
func (c *limitsRun) judgeStops() {
	var firsts []time.Duration
	var latest time.Duration
	broken := 0
	for _, s := range c.shown {
		broken += len(s.broken)
		latest = max(latest, s.latest)
		if s.first < 0 {
			s.first = resumesWithin // at least
		}
		firsts = append(firsts, s.first)
	}
	against := func(is, goal time.Duration) string {
		word := "met"
		if is > goal || len(firsts) == 0 {
			word = "missed"
		}
		return fmt.Sprintf("%s (goal %s %s)", inMS(is), goal, word)
	}
	middle, worst := middleAndWorst(firsts)
	c.figures = append(c.figures, fmt.Sprintf("stops=%d broken=%d latest=%s first=%s worst=%s",
		len(c.shown), broken, inMS(latest), against(middle, firstGoal), against(worst, firstWorstGoal)))
}

// tell tells the verdict.
func (c *limitsRun) tell() {
	var told []string
	for _, kind := range []string{twice, missing, unruly, lost, unclear, failed} {
		told = append(told, fmt.Sprintf("%s=%d", kind, c.findings.counts[kind]))
	}
	c.conclude("jobs=%d posts=%d workers=%d window=%dms; %s; 429s=%d in %d windows that others used, blamed=%d closed=%d cut=%d joined=%d; %s",
		c.jobsSent, c.published.posts, c.workers, c.windowMS, strings.Join(c.figures, "; "),
		c.excused, c.disputed, c.findings.counts["429"], c.closed, c.findings.counts["cut"], c.findings.counts["joined"], strings.Join(told, " "))
}

// others is another program that posts with the same app's tokens.
type others struct {
	random *rand.Rand

	mu     sync.Mutex
	shared map[string]int // access tokens of accounts that it posts for, too, and how often
	calls  int            // of workers, until it strikes once
	token  string         // with which it then uses up the app's window
	pardon map[callKey]bool
	posts  int
}

// callKey finds a call that is a violation.
type callKey struct {
	account string
	at      time.Time
}

// share has windows of these accounts be used up, so many of each.
func (o *others) share(tokens []string, thefts int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.shared = map[string]int{}
	for _, token := range tokens {
		o.shared[token] = thefts
	}
}

// strikeAt has the app's window be used up at the nth call of a worker from now on.
func (o *others) strikeAt(n int, token string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls, o.token = n, token
}

func (o *others) excuse(call xsim.Call) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pardon == nil {
		o.pardon = map[callKey]bool{}
	}
	o.pardon[callKey{call.Account, call.At}] = true
}

func (o *others) excused(v xsim.Violation) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.pardon[callKey{v.Account, v.At}]
}

// strikes tells whether a window is to be used up just before a worker's call, with
// which token, and in which header X says how much is left.
func (o *others) strikes(token string) (with, header string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.calls > 0 {
		if o.calls--; o.calls == 0 {
			return o.token, "X-App-Limit-24hour-Remaining"
		}
	}
	if o.shared[token] > 0 && o.random.IntN(othersOneIn) == 0 {
		o.shared[token]--
		return token, "X-Rate-Limit-Remaining"
	}
	return "", ""
}

func (o *others) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.posts++
	return fmt.Sprintf("%sthought %d", handmade, o.posts)
}

// onCall sees each call of a worker before X does.
func (c *limitsRun) onCall(r *http.Request) {
	c.arrived.Add(1)
	c.lastCall.Store(time.Now().UnixNano())
	if r.Method != http.MethodPost || r.URL.Path != harness.PostPath {
		return
	}
	if token, header := c.others.strikes(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")); token != "" {
		c.useUp(token, header)
	}
}

// useUp posts with a token until X says that nothing is left. X takes nobody for told:
// whoever posts has gone before the answers.
func (c *limitsRun) useUp(token, header string) {
	ctx, leave := context.WithCancel(c.T.Context())
	leave()
	for {
		body, err := json.Marshal(map[string]string{"text": c.others.text()})
		if err != nil {
			return
		}
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, harness.PostPath, strings.NewReader(string(body)))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		c.Sim.ServeHTTP(w, r)
		if w.Code != http.StatusCreated || w.Header().Get(header) == "0" {
			return
		}
	}
}

func (c *limitsRun) tokensOf(names []string) (tokens []string) {
	for _, name := range names {
		token, _ := c.Sim.CurrentToken(name)
		tokens = append(tokens, token.AccessToken)
	}
	return tokens
}

// stranger is the token of an account that has no jobs.
func (c *limitsRun) stranger() string { return c.tokensOf(c.names[len(c.names)-1:])[0] }

// pauseControl is what NATS has stored of stops of posts.
type pauseControl struct {
	mu        sync.Mutex
	revisions []stopRevision
}

// stopRevision is one value of a pause. Over is one that ended it before its time.
type stopRevision struct {
	at   time.Time // by the clock of NATS
	stop publishers.Pause
	over bool
}

// watch notes each revision until the context ends.
func (b *pauseControl) watch(ctx context.Context, js jetstream.JetStream, names jetpost.Names) error {
	kv, err := js.KeyValue(ctx, names.LimitsBucket())
	if err != nil {
		return err
	}
	watcher, err := kv.Watch(ctx, "pause."+publishers.TargetPublish)
	if err != nil {
		return err
	}
	go func() {
		for entry := range watcher.Updates() {
			if entry != nil {
				b.note(entry)
			}
		}
	}()
	return nil
}

func (b *pauseControl) note(entry jetstream.KeyValueEntry) {
	r := stopRevision{at: entry.Created(), over: entry.Operation() != jetstream.KeyValuePut}
	value := struct{ Value *publishers.Pause }{&r.stop} // beside its seal
	if !r.over && json.Unmarshal(entry.Value(), &value) != nil {
		return // the stop is then never known, and the run says so
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.revisions = append(b.revisions, r)
}

// first is the first revision since a moment that stops posts, or that ends a stop.
func (b *pauseControl) first(since time.Time, over bool) (stopRevision, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.revisions {
		if r.over == over && !r.at.Before(since) && (over || r.stop.Active(r.at)) {
			return r, true
		}
	}
	return stopRevision{}, false
}
