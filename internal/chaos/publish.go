package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// This chaos run publishes threads. Producers send each job twice, owners post by hand
// beside it, X loses answers and shows new posts late, NATS and the database restart,
// and an operator sends back what would wait for long. Then X's own call log says whether
// a post is there twice, missing or out of order, and whether the ledger knows each.
//
// The lease of a lane is shrunk from a minute to some seconds. X's duplicate filter is
// off, since it would hide what this run looks for; and X has no rate windows.

// publishPlan says how a run goes, beside what every run has.
type publishPlan struct {
	threads  int
	accounts int
	slots    int           // of one worker
	over     time.Duration // at least, in which the jobs are sent
}

const (
	// longestThread is the most posts of a thread; the fewest is one.
	longestThread = 8
	// jobsAhead is how many jobs an account has waiting, at most, so that they come as
	// long as the storm lasts.
	jobsAhead = 12
	// maxLag is by how much of a lease X's timelines lag at most. A whole one is what
	// a look allows for.
	maxLag = 0.7
	// stormPart is how much of the jobs is published while things go wrong.
	stormPart = 0.9
	// operatorWaits and operatorWaitsForCheck are how many leases a request may have to
	// wait before an operator sends it back: the waits between failures, unlike those
	// for a look, do not shrink with the lease.
	operatorWaits, operatorWaitsForCheck = 5, 12
	// brokenLeases is how long a broken run goes on, in leases, once it was seen.
	brokenLeases = 10
	// handmade is how the posts begin that owners make by hand.
	handmade = "By hand: "
	// laneTable is the table that is stalled.
	laneTable = "lanes"
	// eachOneIn is how many threads there are for one with a twist of each kind.
	eachOneIn = 30
)

// publishArguments are the defaults of a long run, and what is said otherwise.
func publishArguments(t testkit.T, c chaosConfig, args []string) (_ chaosConfig, plan publishPlan) {
	t.Helper()
	c.workers, c.claimFor = 4, 3*time.Second
	flags := c.stormFlags(runPublish, "lease of a lane")
	flags.IntVar(&plan.threads, "threads", 10_000, "jobs, each a thread of 1 to 8 posts")
	flags.IntVar(&plan.accounts, "accounts", 100, "accounts that they are for, in turn")
	flags.IntVar(&plan.slots, "slots", 32, "accounts that one worker works on at once")
	flags.DurationVar(&plan.over, "over", 5*time.Minute, "in which the jobs are sent, at least")
	c.parse(t, flags, runPublish, args)
	if plan.threads < 1 || plan.accounts < 1 {
		t.Fatalf("--threads %d, --accounts %d, want 1 at least of each", plan.threads, plan.accounts)
	}
	return c, plan
}

// publishRun is one run.
type publishRun struct {
	*chaos
	publishPlan
	nats    *harness.Process
	natsDir string
	address string // of NATS
	names   []string
	jobs    [][]*thread // by account, in the order in which they are published

	sent      atomic.Int64 // jobs, each counted once
	finished  atomic.Int64 // as the ledger says
	sentBack  atomic.Int64 // requests, by the operator
	restarts  int
	published publishCounts
}

// thread is one job.
type thread struct {
	account, id string
	texts       []string
	picture     bool          // the first post has one
	later       time.Duration // from its first publication to its publish_at; 0 for none
	body        []byte        // once it is published
	at          time.Time     // its publish_at
}

func runPublishChaos(t testkit.T, cfg chaosConfig, plan publishPlan) {
	t.Helper()
	c := newPublishRun(t, cfg, plan)
	c.say("seed %d: %d threads on %d accounts, %d workers, lease %s", c.seed, plan.threads, c.accounts, c.workers, c.claimFor)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	actors, ctx := errgroup.WithContext(ctx)
	c.storm(ctx, actors)
	c.calm(ctx)
	stop()
	testkit.Must(t, actors.Wait())
	c.judge()
	c.tell()
}

// newPublishRun makes an installation with its accounts and jobs, and breaks what shall
// be broken.
func newPublishRun(t testkit.T, cfg chaosConfig, plan publishPlan) *publishRun {
	t.Helper()
	c := newPublisher(t, runPublish, cfg, plan, cfg.restart)
	c.writeThreads()
	testkit.Must(t, c.breakGuard(t.Context()))
	return c
}

// newPublisher makes an installation that publishes, with its accounts, and NATS in a
// process of its own where that is to be killed.
func newPublisher(t testkit.T, run string, cfg chaosConfig, plan publishPlan, ownNATS bool) *publishRun {
	t.Helper()
	c := &publishRun{publishPlan: plan}
	var where harness.SiteConfig
	if ownNATS {
		c.natsDir, c.address = t.TempDir(), testkit.ClosedAddress(t)
		c.nats = harness.StartNATS(t, c.natsDir, c.address)
		where.NATS = "nats://" + c.address
	}
	c.chaos = newChaos(t, run, cfg, where)
	c.Sim.DuplicateWindow, c.Sim.AllowEqualPosts = -1, true
	c.Sim.Limits = noLimits()
	c.fleet.flags = []string{
		"--roles", "publish", "--slots", fmt.Sprint(c.slots), "--lease", c.claimFor.String(),
		"--exchange-lease", longExchange.String(),
	}
	c.fleet.table = laneTable
	testkit.Must(t, c.importAccounts())
	return c
}

// noLimits makes all of X's windows larger than any run. X still tells of them: where
// it does not, workers count what it documents.
func noLimits() []xsim.Limit {
	limits := xsim.DefaultLimits()
	for i := range limits {
		limits[i].Max = windowPlenty
	}
	return limits
}

// longExchange keeps tokens from being renewed for longer than a run lasts.
const longExchange = 2 * time.Minute

func (c *publishRun) importAccounts() error {
	for i := range c.accounts {
		name := fmt.Sprintf("acct%03d", i)
		grant, err := c.Sim.AddAccount(xsim.NewAccount{Handle: name})
		if err != nil {
			return err
		}
		now := time.Now()
		_, err = c.Ledger.ImportAccount(c.T.Context(), store.Import{
			Name: name, XUserID: grant.ID, Username: name, Now: now,
			Pair: store.Pair{
				Access: secret.New(grant.AccessToken), Refresh: secret.New(grant.RefreshToken),
				ExpiresAt: now.Add(time.Duration(grant.ExpiresIn) * time.Second), Scope: grant.Scope,
			},
		})
		if err != nil {
			return err
		}
		c.names = append(c.names, name)
	}
	// As if just renewed, so that no 401 renews them: that is the other run's matter.
	_, err := c.view.db.ExecContext(c.T.Context(), `UPDATE oauth_tokens SET metadata = '{"lastRefreshAt":"`+time.Now().UTC().Format(time.RFC3339)+`"}'`)
	return err
}

// writeThreads writes all jobs by the seed.
func (c *publishRun) writeThreads() {
	random := c.chance(actorAuthor)
	c.jobs = make([][]*thread, c.accounts)
	for i := range c.threads {
		a := i % c.accounts
		c.jobs[a] = append(c.jobs[a], c.write(random, i, c.jobs[a]))
	}
}

// write writes one job. Most have texts of their own; some repeat a text, or all
// those of the job before.
func (c *publishRun) write(random *rand.Rand, i int, before []*thread) *thread {
	j := &thread{account: c.names[i%c.accounts], id: fmt.Sprintf("job-%d", i)}
	twist := func() bool { return random.IntN(eachOneIn) == 0 }
	n := 1 + random.IntN(longestThread)
	for k := range n {
		text := fmt.Sprintf("%s of %s, post %d of %d", j.id, j.account, k+1, n)
		switch random.IntN(6) {
		case 0:
			text += " & <more> at https://example.com/" + j.id
		case 1:
			text += ", see Example.com… naïve\u0301 日本語"
		}
		j.texts = append(j.texts, text)
	}
	if n > 1 && twist() {
		j.texts[n-1] = j.texts[random.IntN(n-1)]
	}
	if len(before) > 0 && twist() {
		j.texts = before[len(before)-1].texts
	}
	j.picture = twist()
	if twist() {
		j.later = between(random, c.claimFor, 8*c.claimFor)
	}
	return j
}

// bytes are the job as its producer sends it, always the same.
func (j *thread) bytes() ([]byte, error) {
	if j.body != nil {
		return j.body, nil
	}
	posts := make([]map[string]any, len(j.texts))
	for i, text := range j.texts {
		posts[i] = map[string]any{"text": text}
	}
	if j.picture {
		picture, err := harness.Picture()
		if err != nil {
			return nil, err
		}
		posts[0]["media"] = []map[string]any{{"data": picture}}
	}
	request := map[string]any{"version": 1, "id": j.id, "posts": posts}
	if j.later > 0 {
		j.at = time.Now().Add(j.later)
		request["publish_at"] = j.at.Format(time.RFC3339Nano)
	}
	var err error
	j.body, err = json.Marshal(request)
	return j.body, err
}

// Actors, beside the workers.
const (
	actorAuthor = 2<<32 + iota
	actorSky
	actorOwner
	actorServers
	actorProducer // and those after it
)

// storm publishes most of the jobs while everything goes wrong. The actors go on
// without harm when it returns.
func (c *publishRun) storm(ctx context.Context, actors *errgroup.Group) {
	stormy, clearUp := context.WithCancel(ctx)
	defer clearUp()
	sending := ctx
	if c.guard != "" {
		sending = stormy // a broken run ends as soon as it was seen
	}
	for i := range c.workers {
		actors.Go(func() error { return c.fleet.keep(ctx, stormy, i) })
	}
	actors.Go(func() error { return c.sky(stormy) })
	actors.Go(func() error { return c.owners(stormy) })
	actors.Go(func() error { return c.operator(ctx) })
	actors.Go(func() error { return c.count(ctx) })
	for i := range c.producers() {
		actors.Go(func() error { return c.produce(sending, i) })
	}
	random := c.chance(actorServers)
	part := func(p float64) int64 { return int64(p * float64(c.threads)) }
	if !c.stormUntil(ctx, part(stormPart/3)) {
		return
	}
	c.restartNATS(ctx, random)
	if !c.stormUntil(ctx, part(stormPart*2/3)) {
		return
	}
	c.restartPostgres(ctx, random)
	c.stormUntil(ctx, part(stormPart))
	if c.guard == "" {
		c.until(ctx, chaosPatience, func() bool { return c.fleet.kills.Load() > 0 && c.fleet.freezes.Load() > 0 })
	}
}

// stormUntil waits until so many jobs are finished. It returns false if nothing moves
// any more, or a broken guard was seen.
func (c *publishRun) stormUntil(ctx context.Context, finished int64) bool {
	c.moving(ctx, func() bool { return c.finished.Load() >= finished || c.broken() })
	c.say("%d jobs sent, %d finished; %d kills, %d freezes", c.sent.Load(), c.finished.Load(), c.fleet.kills.Load(), c.fleet.freezes.Load())
	return c.finished.Load() >= finished
}

// moving waits for a fact for as long as jobs get finished.
func (c *publishRun) moving(ctx context.Context, is func() bool) bool {
	for {
		before := c.finished.Load()
		if c.until(ctx, chaosPatience, is) {
			return true
		}
		if ctx.Err() != nil || c.finished.Load() == before {
			return false
		}
	}
}

// broken tells that what a guard keeps away has been seen.
func (c *publishRun) broken() bool {
	if c.guard == "" {
		return false
	}
	for i, name := range c.names {
		if extra, _ := c.surplus(c.jobs[i], c.posts(name)); len(extra) > 0 {
			return true
		}
	}
	return false
}

func (c *publishRun) restartNATS(ctx context.Context, random *rand.Rand) {
	if c.nats == nil {
		return
	}
	c.nats.Kill()
	pause(ctx, between(random, 0, 2*c.claimFor))
	c.nats = harness.StartNATS(c.T, c.natsDir, c.address)
	c.restarts++
	c.say("NATS was killed and started again")
}

func (c *publishRun) restartPostgres(ctx context.Context, random *rand.Rand) {
	if c.cluster == nil {
		return
	}
	c.cluster.Stop(c.T)
	pause(ctx, between(random, 0, 2*c.claimFor))
	c.cluster.Restart(c.T)
	c.restarts++
	c.say("PostgreSQL was killed and started again")
}

// calm waits until all jobs are finished. A broken run has shown what it is for, and
// may never be.
func (c *publishRun) calm(ctx context.Context) {
	testkit.Must(c.T, c.Sim.SetFaults(nil))
	if c.guard != "" && c.broken() {
		c.until(ctx, brokenLeases*c.claimFor, func() bool { return c.finished.Load() == c.sent.Load() })
		c.say("%d jobs sent, %d finished", c.sent.Load(), c.finished.Load())
		return
	}
	all := c.moving(ctx, func() bool {
		return c.finished.Load() == c.sent.Load() && (c.guard != "" || c.sent.Load() == int64(c.threads))
	})
	c.say("%d jobs sent, %d finished", c.sent.Load(), c.finished.Load())
	if !all {
		c.findings.add("not finished", "%d jobs sent, %d finished: %v", c.sent.Load(), c.finished.Load(), c.Counts())
	}
}

// count notes how many requests are finished.
func (c *publishRun) count(ctx context.Context) error {
	for ctx.Err() == nil {
		if counts := c.Counts(); counts != nil {
			c.finished.Store(int64(counts[jetpost.StatePublished] + counts[jetpost.StateFailed]))
		}
		pause(ctx, lookEvery)
	}
	return nil
}

// producers is how many there are. The jobs of an account all come from one.
func (c *publishRun) producers() int { return min(4, c.accounts) }

// produce publishes the jobs of every so manieth account, in order, each twice: at
// once, or some others later.
func (c *publishRun) produce(ctx context.Context, producer int) error {
	random := c.chance(actorProducer + uint64(producer))
	var again []*thread
	for n := 0; ctx.Err() == nil; n++ {
		left := false
		for a := producer; a < c.accounts; a += c.producers() {
			if n >= len(c.jobs[a]) {
				continue
			}
			left = true
			for c.tooSoon() && ctx.Err() == nil {
				pause(ctx, lookEvery)
			}
			if err := c.send(ctx, c.jobs[a][n]); err != nil || ctx.Err() != nil {
				return err
			}
			c.sent.Add(1)
			again = append(again, c.jobs[a][n])
			for len(again) > 0 && random.IntN(2) == 0 {
				i := random.IntN(len(again))
				if err := c.send(ctx, again[i]); err != nil {
					return err
				}
				again = append(again[:i], again[i+1:]...)
			}
		}
		if !left {
			break
		}
	}
	for _, j := range again {
		if err := c.send(ctx, j); err != nil {
			return err
		}
	}
	return nil
}

// tooSoon tells whether the next job has time: it would only make the queue longer, or
// the storm shorter.
func (c *publishRun) tooSoon() bool {
	sent := c.sent.Load()
	return sent > c.finished.Load()+int64(jobsAhead*c.accounts) || float64(sent)/float64(c.threads) > float64(time.Since(c.began))/float64(c.over+1)
}

// send publishes a job until NATS says that it has it.
func (c *publishRun) send(ctx context.Context, j *thread) error {
	body, err := j.bytes()
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if _, err := c.Conn.JS.Publish(ctx, c.Conn.Names.PublishRequest(j.account), body); err == nil {
			return nil
		}
		pause(ctx, lookEvery)
	}
	return nil
}

// operator sends back requests that would wait for long, until the context ends.
func (c *publishRun) operator(ctx context.Context) error {
	for ctx.Err() == nil {
		now := time.Now()
		waiting, err := rowsOf(ctx, c.view.db, "SELECT account, id FROM requests WHERE state = 'held' AND (hold_until IS NULL OR "+
			"reason_code <> 'reconciling' AND "+c.view.micros("hold_until")+" > $1 OR "+c.view.micros("hold_until")+" > $2)", func(scan scanFunc) (key store.Key, err error) {
			return key, scan(&key.Account, &key.ID)
		}, now.Add(operatorWaits*c.claimFor).UnixMicro(), now.Add(operatorWaitsForCheck*c.claimFor).UnixMicro())
		if err != nil {
			waiting = nil // a database that is away
		}
		for _, key := range waiting {
			if result, err := c.Ledger.Replay(ctx, key, time.Now()); err == nil && result.Queued {
				c.sentBack.Add(1)
			}
		}
		pause(ctx, c.claimFor)
	}
	return nil
}

// owners post by hand now and then.
func (c *publishRun) owners(ctx context.Context) error {
	random := c.chance(actorOwner)
	for n := 1; ctx.Err() == nil; n++ {
		token, _ := c.Sim.CurrentToken(c.names[random.IntN(len(c.names))])
		body, err := json.Marshal(map[string]string{"text": fmt.Sprintf("%sthought %d", handmade, n)})
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.Cfg.X.URL+harness.PostPath, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+token.AccessToken)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
		}
		pause(ctx, between(random, 0, c.claimFor/2))
	}
	return nil
}

// sky has X fail in changing ways, and at times stalls the database.
func (c *publishRun) sky(ctx context.Context) error {
	random := c.chance(actorSky)
	for ctx.Err() == nil {
		if err := c.Sim.SetFaults(c.badDay(random)); err != nil {
			return err
		}
		pause(ctx, between(random, c.claimFor, 3*c.claimFor))
		if random.IntN(4) == 0 {
			c.stall(ctx, laneTable, between(random, c.claimFor/20, c.claimFor/3))
		}
	}
	return nil
}

// badDay are X's faults for a while.
func (c *publishRun) badDay(random *rand.Rand) []xsim.Fault {
	often := c.faults * (0.2 + 2*random.Float64())
	lease := c.claimFor.Milliseconds()
	var faults []xsim.Fault
	add := func(endpoint string, percent float64, f xsim.Fault) {
		f.Endpoint, f.Probability = endpoint, min(1, often*percent/100)
		faults = append(faults, f)
	}
	if random.IntN(3) == 0 {
		who := c.names[random.IntN(len(c.names))]
		for _, endpoint := range []string{xsim.EndpointCreatePost, xsim.EndpointTimeline} {
			faults = append(faults, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusUnauthorized, Account: who, Endpoint: endpoint})
		}
	}
	if random.IntN(30) == 0 {
		faults = append(faults, xsim.Fault{Kind: xsim.FaultOutage})
	}
	for _, at := range []struct {
		endpoint string
		more     float64 // than a post, of which there are more
	}{{xsim.EndpointCreatePost, 1}, {xsim.EndpointTimeline, 6}, {xsim.EndpointUpload, 3}} {
		endpoint, more := at.endpoint, at.more
		for _, after := range []bool{false, true} {
			faults = append(faults, xsim.Fault{Kind: xsim.FaultLatency, Endpoint: endpoint, Probability: 0.3, DelayMS: 1 + int64(more)*lease/100, After: after})
			add(endpoint, 0.5*more, xsim.Fault{Kind: xsim.FaultLatency, DelayMS: lease / 12, After: after})
			add(endpoint, 0.2*more, xsim.Fault{Kind: xsim.FaultCut, After: after})
			add(endpoint, 0.2*more, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusServiceUnavailable, After: after})
			add(endpoint, 0.1*more, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusInternalServerError, After: after})
		}
		add(endpoint, 0.1*more, xsim.Fault{Kind: xsim.FaultGarbage})
		add(endpoint, 0.1*more, xsim.Fault{Kind: xsim.FaultLostAnswer, DelayMS: lease})
		add(endpoint, 0.1*more, xsim.Fault{Kind: xsim.FaultLatency, DelayMS: lease / 3, After: true}) // longer than a call may take
	}
	if lag := int64(maxLag * random.Float64() * float64(lease)); lag > 0 {
		faults = append(faults, xsim.Fault{Kind: xsim.FaultTimelineLag, Endpoint: xsim.EndpointTimeline, DelayMS: lag})
	}
	return faults
}

// postLog is what a worker's log tells of posts in doubt.
type postLog struct {
	adopted int // found on X
	absent  int // proven not to be there
}

func (l *postLog) note(e entry) {
	switch {
	case e.Msg == "post.found":
		l.adopted++
	case e.Msg == "request.settled" && e.Code == string(jetpost.CodeReconciling) && strings.HasSuffix(e.Detail, "is not on X"):
		l.absent++
	}
}
