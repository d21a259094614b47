package chaos

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// This chaos run keeps tokens fresh by rounds, while the database stalls and customers
// connect their accounts again at the worst moment. Then X's own call log says whether a
// token was lost without a reason, presented again without an entry in the journal, or
// overwritten.
//
// The lease of an exchange is shrunk from 30 s to one or two, and the life of an access
// token from two hours to some dozens of seconds.

// tokenPlan says how a run goes, beside what every run has.
type tokenPlan struct {
	tokens int
	rounds int           // of all tokens, while things go wrong
	life   time.Duration // of an access token
}

const (
	// minLeasesPerLife keeps the order of the margins; with real times it is 240.
	minLeasesPerLife = 20
	// longestWait is, in leases, more than the longest wait for a token's next attempt.
	longestWait = 200
	// tokenTable is the table that is stalled.
	tokenTable = "oauth_tokens"
)

// tokenArguments are the defaults of a long run, and what is said otherwise.
func tokenArguments(t testkit.T, c chaosConfig, args []string) (_ chaosConfig, plan tokenPlan) {
	t.Helper()
	c.workers, c.claimFor = 8, 2*time.Second
	flags := c.stormFlags(runTokens, "lease of one exchange")
	flags.IntVar(&plan.tokens, "tokens", 10_000, "accounts, each with one token")
	flags.IntVar(&plan.rounds, "rounds", 5, "rounds of all tokens while things go wrong")
	flags.DurationVar(&plan.life, "life", 40*time.Second, "life of an access token")
	c.parse(t, flags, runTokens, args)
	if plan.life < minLeasesPerLife*c.claimFor {
		t.Fatalf("--life: %s, want %d leases at least", plan.life, minLeasesPerLife)
	}
	return c, plan
}

// tokenRun is one run.
type tokenRun struct {
	*chaos
	tokenPlan
	view   *tokenView
	people *people
	// exchanges and retries are what the call log and the journal count at the end.
	exchanges, retries int
	lost               [len(causes)]int // accounts, by the proven cause
}

func runTokenChaos(t testkit.T, cfg chaosConfig, plan tokenPlan) {
	t.Helper()
	c := newTokenRun(t, cfg, plan)
	c.say("seed %d: %d tokens, %d workers, lease %s, life %s", c.seed, c.tokens, c.workers, c.claimFor, c.life)
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

// newTokenRun makes an installation with its accounts, and breaks what shall be
// broken.
func newTokenRun(t testkit.T, cfg chaosConfig, plan tokenPlan) *tokenRun {
	t.Helper()
	c := &tokenRun{chaos: newChaos(t, runTokens, cfg, harness.SiteConfig{Minute: 2 * cfg.claimFor}), tokenPlan: plan}
	c.Sim.AccessTokenTTL = c.life
	c.view = newTokenView(c.chaos.view)
	c.fleet.flags = []string{"--roles", "refresh", "--lease", (2 * c.claimFor).String(), "--exchange-lease", c.claimFor.String()}
	c.fleet.table = tokenTable
	c.fleet.starting = (&ackWaits{chaos: c.chaos}).starting
	c.fleet.onAnswer = func(w http.ResponseWriter) http.ResponseWriter { return &withRetryAfter{w} }
	names := make([]string, c.tokens)
	for i := range names {
		names[i] = fmt.Sprintf("acct%05d", i)
	}
	c.people = c.newPeople(names)
	testkit.Must(t, c.importAll())
	testkit.Must(t, c.breakGuard(t.Context()))
	return c
}

// importAll connects every account for the first time.
func (c *tokenRun) importAll() error {
	var group errgroup.Group
	group.SetLimit(4)
	for _, name := range c.people.names {
		group.Go(func() error {
			grant, err := c.Sim.AddAccount(xsim.NewAccount{Handle: name})
			if err != nil {
				return err
			}
			now := time.Now()
			_, err = c.Ledger.ImportAccount(c.T.Context(), store.Import{
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
func (c *tokenRun) storm(ctx context.Context, actors *errgroup.Group) {
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
			c.cluster.Restart(c.T)
			c.say("PostgreSQL was restarted")
		}
		round, whole := c.summary(ctx, opened, 2*c.life)
		c.say("round %d: %s, whole %t, after %s", n, round, whole, time.Since(began).Round(lookEvery))
	}
}

// calm waits until every doubt has ended, and then has rounds go on until one has
// refreshed every token: where the machine itself is too slow for the shrunk times,
// another one helps.
func (c *tokenRun) calm(ctx context.Context) {
	testkit.Must(c.T, c.Sim.SetFaults(nil))
	end := time.Now().Add(2*c.life + chaosPatience)
	for n := 1; ; n++ {
		if !c.settle(ctx) {
			c.findings.add("not settled", "all workers at work %t, all customers content %t, in doubt or waiting: %s",
				c.fleet.well(), c.people.content(), c.view.stragglers(c.T.Context()))
			return
		}
		c.allDue(ctx)
		opened := c.tick()
		round, whole := c.summary(ctx, opened, chaosPatience)
		starved, err := c.view.names(c.T.Context(), c.view.starved, opened.UnixMicro())
		testkit.Must(c.T, err)
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
func (c *tokenRun) settle(ctx context.Context) bool {
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
func (c *tokenRun) allDue(ctx context.Context) {
	c.until(ctx, c.life, func() bool {
		young, err := c.view.count(ctx, c.view.young)
		return err == nil && young == 0
	})
}

// tick asks for a round. It returns a time before it.
func (c *tokenRun) tick() time.Time {
	now := time.Now()
	_, err := c.Conn.JS.Publish(c.T.Context(), c.Conn.Names.RefreshTick(), nil)
	testkit.Must(c.T, err)
	return now
}

// summary waits for the summary of the round that was opened after a tick, or
// until its time is up: the messages of a worker that was killed come again after
// a while.
func (c *tokenRun) summary(ctx context.Context, ticked time.Time, atMost time.Duration) (round roundRow, whole bool) {
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

// tell tells the verdict.
func (c *tokenRun) tell() {
	var losses []string
	for why, n := range c.lost {
		if causes[why] != "" {
			losses = append(losses, fmt.Sprintf("%s %d", causes[why], n))
		}
	}
	c.conclude("tokens=%d workers=%d rounds=%d exchanges=%d kills=%d freezes=%d doubts=%d retries=%d outdated=%d lost=%d (%s) unexplained=%d",
		c.tokens, c.workers, c.rounds, c.exchanges, c.fleet.kills.Load(), c.fleet.freezes.Load(), len(c.people.doubts), c.retries, c.fleet.outdated(),
		len(c.people.losses), strings.Join(losses, ", "), c.findings.counts[unexplained])
}
