package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// Actors, beside the workers, which are counted from zero.
const (
	actorWeather = 1<<32 + iota
	actorPeople
)

// tokenAt is a pair of the ledger.
type tokenAt struct {
	account string
	version int64
}

// saved is how the attempt to store the next pair ended, and when.
type saved struct {
	stored bool
	at     time.Time
}

// withRetryAfter adds to each 429 when to come again: without it a client has to
// wait for a quarter of an hour.
type withRetryAfter struct{ http.ResponseWriter }

func (w *withRetryAfter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *withRetryAfter) WriteHeader(status int) {
	if status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	w.ResponseWriter.WriteHeader(status)
}

// ackWaits is how long NATS waits for messages of the refresh stream.
type ackWaits struct {
	*chaos
	mu      sync.Mutex
	starts  int           // processes that are about to check what NATS has
	ackWait time.Duration // as it was set up
}

// starting has NATS wait for messages as the worker that starts wants it. While
// none does, it gives up those of a silent worker after as much shorter a time as
// all else is: this alone is no setting of ours.
func (a *ackWaits) starting(ctx context.Context, more int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.starts
	a.starts += more
	if (before > 0) == (a.starts > 0) && a.ackWait != 0 {
		return nil
	}
	consumer, err := a.Conn.JS.Consumer(ctx, a.Conn.Names.RefreshStream(), jetpost.ConsumerRefresh)
	if err != nil {
		return fmt.Errorf("find refresh consumer: %w", err)
	}
	config := consumer.CachedInfo().Config
	if a.ackWait == 0 {
		a.ackWait = config.AckWait
	}
	config.AckWait = a.ackWait
	if a.starts == 0 {
		config.AckWait = 3 * a.claimFor
	}
	_, err = a.Conn.JS.UpdateConsumer(ctx, a.Conn.Names.RefreshStream(), config)
	return err
}

// tokenLog is what a worker's log tells, by account and version of the token.
type tokenLog struct {
	saved    map[tokenAt]saved
	failed   map[tokenAt]string // the errors of its exchanges that brought no pair
	outdated int                // pairs that came too late
}

func newTokenLog() tokenLog {
	return tokenLog{saved: map[tokenAt]saved{}, failed: map[tokenAt]string{}}
}

func (l *tokenLog) note(e entry) {
	version, _ := e.Version.(float64)
	about := tokenAt{e.Account, int64(version)}
	switch e.Msg {
	case "token.refreshed", "token.rescued":
		l.saved[about] = saved{stored: true, at: e.Time}
	case "token.refresh_failed":
		l.failed[about] += e.Error + "; " // one text may follow on another, of a retry
	case "token.save_failed", "token.rescue_not_needed":
		l.saved[about] = saved{at: e.Time}
		l.outdated++
	}
}

// outdated counts the pairs that a fence refused, because newer ones were there.
func (f *fleet) outdated() (n int) {
	for _, l := range f.all() {
		l.learn()
		n += l.outdated
	}
	return n
}

// stored tells whether the process says that until then it had stored the pair
// that comes after another one.
func (l *life) stored(after tokenAt, until time.Time) bool {
	l.learn()
	l.mu.Lock()
	defer l.mu.Unlock()
	end := l.saved[after]
	return end.stored && end.at.Before(until)
}

// weather has X fail in changing ways, and at times stalls the database.
func (c *tokenRun) weather(ctx context.Context) error {
	random := c.chance(actorWeather)
	for ctx.Err() == nil {
		if err := c.Sim.SetFaults(c.badDay(random)); err != nil {
			return err
		}
		pause(ctx, between(random, c.claimFor, 3*c.claimFor))
		if random.IntN(3) == 0 {
			c.stall(ctx, tokenTable, between(random, c.claimFor/20, c.claimFor/3))
		}
	}
	return nil
}

// badDay are X's faults for a while.
func (c *tokenRun) badDay(random *rand.Rand) []xsim.Fault {
	often := c.faults * (0.2 + 2*random.Float64())
	fault := func(f xsim.Fault, percent float64) xsim.Fault {
		f.Endpoint, f.Probability = xsim.EndpointToken, min(1, often*percent/100)
		return f
	}
	faults := []xsim.Fault{
		{Kind: xsim.FaultLatency, Endpoint: xsim.EndpointToken, Probability: 0.6, DelayMS: c.claimFor.Milliseconds() / 40},
		{Kind: xsim.FaultLatency, Endpoint: xsim.EndpointToken, Probability: 0.6, DelayMS: c.claimFor.Milliseconds() / 40, After: true},
		fault(xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusServiceUnavailable}, 0.4),
		fault(xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusTooManyRequests}, 0.4),
		fault(xsim.Fault{Kind: xsim.FaultCut}, 0.3),
		fault(xsim.Fault{Kind: xsim.FaultCut, After: true}, 0.1),
		fault(xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusServiceUnavailable, After: true}, 0.1),
		fault(xsim.Fault{Kind: xsim.FaultGarbage}, 0.1),
		fault(xsim.Fault{Kind: xsim.FaultLostAnswer, DelayMS: c.claimFor.Milliseconds()}, 0.1),
	}
	if random.IntN(40) == 0 {
		faults = append(faults, xsim.Fault{Kind: xsim.FaultOutage, Endpoint: xsim.EndpointToken})
	}
	return faults
}

// people are the customers. They connect an account again when it has to be, and
// now and then one that is merely in doubt, while its worker may yet bring a pair.
type people struct {
	*tokenRun
	names    []string
	importer func() *app.Importer
	connects errgroup.Group

	mu        sync.Mutex
	customers map[string]*customer // by name of the account
	losses    []loss
	doubts    map[tokenAt]bool
}

type customer struct {
	consents int  // given to X so far: the number of the family in force
	busy     bool // connects just now
	calls    time.Time
	// base is the version of the first pair of each family.
	base map[int]int64
}

const (
	// maxConnects is how many customers connect at once.
	maxConnects = 8
	// eagerOneIn is how often somebody connects an account in doubt when the
	// customers look: every so many times; and where its worker is frozen, and may
	// go on with an older pair, every so many times.
	eagerOneIn       = 15
	eagerFrozenOneIn = 3
)

func (c *tokenRun) newPeople(names []string) *people {
	p := &people{
		tokenRun: c, names: names,
		importer:  func() *app.Importer { return &app.Importer{Ledger: c.Ledger, NATS: c.Conn, XURL: c.Cfg.X.URL} },
		customers: map[string]*customer{}, doubts: map[tokenAt]bool{},
	}
	p.connects.SetLimit(maxConnects)
	for _, name := range names {
		p.customers[name] = &customer{consents: 1, base: map[int]int64{1: 1}}
	}
	return p
}

// live looks after the accounts until the context ends.
func (p *people) live(ctx, stormy context.Context) error {
	random := p.chance(actorPeople)
	for ctx.Err() == nil {
		// While the database is away nobody can look.
		if lost, err := p.view.names(ctx, p.view.reauth); err == nil {
			p.reconnect(ctx, random, lost)
		}
		if doubts, err := p.view.doubtful(ctx); err == nil {
			p.note(doubts)
			if stormy.Err() == nil && len(doubts) > 0 {
				p.eager(ctx, random, doubts)
			}
		}
		pause(ctx, lookEvery)
	}
	return p.connects.Wait()
}

func (p *people) note(doubts []tokenAt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range doubts {
		p.doubts[d] = true
	}
}

// reconnect has those whose accounts are lost come back, each after a while.
func (p *people) reconnect(ctx context.Context, random *rand.Rand, names []string) {
	for _, name := range names {
		if p.waits(name, between(random, 0, 2*p.claimFor)) || !p.take(name) {
			continue
		}
		p.busy(name, func() error {
			token, ok := p.token(ctx, name)
			if !ok || !token.RequiresReauth {
				return nil // a late answer has come
			}
			p.lose(name, token)
			return p.connect(ctx, name)
		})
	}
}

// waits tells whether a customer still waits before he calls, for so long from the
// first time on.
func (p *people) waits(name string, d time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	who := p.customers[name]
	if who.calls.IsZero() {
		who.calls = time.Now().Add(d)
	}
	return time.Now().Before(who.calls)
}

// take marks a customer as busy, if he is not.
func (p *people) take(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	who := p.customers[name]
	if who.busy {
		return false
	}
	who.busy = true
	return true
}

// busy does what a customer who was taken does, unless too many are at it.
func (p *people) busy(name string, do func() error) {
	if !p.connects.TryGo(func() error {
		defer p.release(name)
		return do()
	}) {
		p.release(name)
	}
}

func (p *people) release(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	who := p.customers[name]
	who.busy, who.calls = false, time.Time{}
}

// eager has somebody connect an account that is merely in doubt, now and then.
func (p *people) eager(ctx context.Context, random *rand.Rand, doubts []tokenAt) {
	random.Shuffle(len(doubts), func(i, j int) { doubts[i], doubts[j] = doubts[j], doubts[i] })
	frozen := slices.IndexFunc(doubts, func(d tokenAt) bool {
		seen := p.Sim.Exchanges(d.account)
		return len(seen) > 0 && p.fleet.isFrozen(seen[len(seen)-1].Host)
	})
	oneIn := eagerOneIn
	if frozen >= 0 {
		oneIn = eagerFrozenOneIn
	}
	name := doubts[max(0, frozen)].account
	if random.IntN(oneIn) > 0 || !p.take(name) {
		return
	}
	p.busy(name, func() error { return p.connect(ctx, name) })
}

// content tells whether nobody connects just now.
func (p *people) content() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, who := range p.customers {
		if who.busy {
			return false
		}
	}
	return true
}

// lose notes a lost account as the ledger has it, for judgeLosses.
func (p *people) lose(name string, token store.Token) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.losses = append(p.losses, loss{name: name, family: p.customers[name].consents, token: token, seen: time.Now()})
}

// connect consents at X once more and imports what it gave, which must be in the
// ledger from then on, whatever comes later of the time before.
func (p *people) connect(ctx context.Context, name string) error {
	grant, err := p.Sim.AddAccount(xsim.NewAccount{Handle: name})
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.customers[name].consents++
	p.mu.Unlock()
	line := app.ImportLine{Name: name, AccessToken: grant.AccessToken, RefreshToken: grant.RefreshToken, ExpiresAt: time.Now().Add(p.life)}
	for {
		// The claim of a worker, or a database that is away, is over soon.
		_, err = p.importer().Import(ctx, line)
		if err == nil || ctx.Err() != nil {
			break
		}
		if time.Now().After(line.ExpiresAt) {
			return fmt.Errorf("connect %s: %w", name, err)
		}
		pause(ctx, p.claimFor/4)
	}
	return p.noteBase(ctx, name)
}

// token reads what the ledger holds, once it can be asked.
func (p *people) token(ctx context.Context, name string) (token store.Token, ok bool) {
	ok = p.until(ctx, chaosPatience, func() bool {
		var err error
		token, err = p.Ledger.Token(ctx, name)
		return err == nil
	})
	return token, ok
}

// noteBase learns which version the first pair of the newest family has.
func (p *people) noteBase(ctx context.Context, name string) error {
	token, ok := p.token(ctx, name)
	if !ok {
		return nil // the run is over
	}
	family, rotation, known := p.Sim.Locate(token.Refresh.Reveal())
	p.mu.Lock()
	defer p.mu.Unlock()
	who := p.customers[name]
	if !known || family != who.consents {
		p.findings.add("overwritten", "%s: the ledger holds a pair of consent %d, after one of consent %d was imported", name, family, who.consents)
		return nil
	}
	who.base[family] = token.Version - int64(rotation)
	return nil
}
