package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// chance is the source of one actor's decisions, so that actors at once do not
// disturb each other's.
func (c *chaos) chance(actor uint64) *rand.Rand { return rand.New(rand.NewPCG(c.seed, actor)) }

// Actors, beside the workers, which are counted from zero.
const (
	actorWeather = 1<<32 + iota
	actorPeople
)

// between is a time from a to b.
func between(random *rand.Rand, a, b time.Duration) time.Duration {
	return a + time.Duration(random.Int64N(int64(b-a)+1))
}

// fleet are the workers. Each process has an address of X to itself, so that the
// books tell which one called.
type fleet struct {
	*chaos
	settings []string
	server   *http.Server

	kills, freezes atomic.Int64

	// starts counts the processes that are about to check what NATS has.
	starts  int
	startMu sync.Mutex
	ackWait time.Duration // of the refresh consumer, as it was set up

	mu     sync.Mutex
	lives  map[string]*life // by the address of X
	now    []*life          // by worker; nil while there is none
	frozen map[string]bool  // addresses of X
}

// life is one process of a worker.
type life struct {
	*process
	host  string
	calls chan struct{} // gets something when X is called

	mu    sync.Mutex
	harms []harm
	read  int64 // how much of the log is known
	// What the log tells, by account and version of the token.
	saved    map[tokenAt]saved
	failed   map[tokenAt]string // the errors of its exchanges that brought no pair
	outdated int                // pairs that came too late
	started  bool
	bad      string // what no log should have
}

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

// harm is what was done to a process. A kill has no end.
type harm struct {
	killed   bool
	from, to time.Time
}

func (c *chaos) newFleet() *fleet {
	f := &fleet{
		chaos: c, settings: c.settings(), lives: map[string]*life{}, frozen: map[string]bool{}, now: make([]*life, c.workers),
	}
	f.server = &http.Server{Handler: http.HandlerFunc(f.serveX), ReadHeaderTimeout: chaosPatience}
	c.t.Cleanup(func() { _ = f.server.Close() })
	return f
}

// serveX is X with an ear for who calls.
func (f *fleet) serveX(w http.ResponseWriter, r *http.Request) {
	select {
	case f.of(r.Host).calls <- struct{}{}:
	default:
	}
	f.sim.ServeHTTP(&withRetryAfter{w}, r)
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

// keep runs one worker, restarts it whenever it ends, and harms it while it is
// stormy.
func (f *fleet) keep(ctx, stormy context.Context, worker int) error {
	random := f.chance(uint64(worker))
	for vain := 0; ctx.Err() == nil; {
		l, err := f.begin(ctx, worker)
		if err != nil {
			return err
		}
		for f.set(worker, l); l.alive() && ctx.Err() == nil; {
			if l.wait(stormy, time.Duration(random.ExpFloat64()*float64(f.harm))) && l.called(stormy, random) {
				f.strike(stormy, random, l)
			} else if stormy.Err() != nil {
				l.wait(ctx, chaosPatience)
			}
		}
		f.set(worker, nil)
		switch l.learn(); {
		case l.started:
			vain = 0
			f.bury(ctx, l)
		case vain > maxVainStarts:
			return fmt.Errorf("%s does not start; see %s", l.name, l.log)
		}
		vain++
		pause(ctx, between(random, 0, f.claimFor))
	}
	return nil
}

// maxVainStarts is how often in a row a worker may be started in vain: one that
// finds no database says so and ends.
const maxVainStarts = 20

// bury looks why a process that was at work has ended: it should carry on,
// whatever is away.
func (f *fleet) bury(ctx context.Context, l *life) {
	if ctx.Err() == nil && !l.wasKilled() {
		f.findings.add("worker ended", "%s ended with code %d; see %s", l.name, l.cmd.ProcessState.ExitCode(), l.log)
	}
}

// begin starts a process with an address of X of its own. The address stays
// taken until the end of the run, so that no other process is mistaken for it.
func (f *fleet) begin(ctx context.Context, worker int) (*life, error) {
	if err := f.starting(ctx, 1); err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(f.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	host := listener.Addr().String()
	f.mu.Lock()
	defer f.mu.Unlock()
	name := fmt.Sprintf("worker-%d-%d", worker+1, len(f.lives)+1)
	env := append(slices.Clone(f.settings), "X_API_URL=http://"+host)
	p, err := launch(f.t, name, filepath.Join(f.logs, name+".log"), env, "jetpost", "worker", "--worker-name", name,
		"--roles", "refresh", "--lease", (2 * f.claimFor).String(), "--exchange-lease", f.claimFor.String(), "--log-format", "json")
	if err != nil {
		return nil, err
	}
	l := &life{process: p, host: host, calls: make(chan struct{}, 1), saved: map[tokenAt]saved{}, failed: map[tokenAt]string{}}
	f.lives[host] = l
	go func() { _ = f.server.Serve(listener) }() // until the run is over
	go func() {
		f.until(ctx, chaosPatience, func() bool { l.learn(); return l.started || !l.alive() })
		if err := f.starting(ctx, -1); err != nil && ctx.Err() == nil {
			f.findings.add("run", "%v", err)
		}
	}()
	return l, nil
}

// starting has NATS wait for messages as the worker that starts wants it. While
// none does, it gives up those of a silent worker after as much shorter a time as
// all else is: this alone is no setting of ours.
func (f *fleet) starting(ctx context.Context, more int) error {
	f.startMu.Lock()
	defer f.startMu.Unlock()
	before := f.starts
	f.starts += more
	if (before > 0) == (f.starts > 0) && f.ackWait != 0 {
		return nil
	}
	consumer, err := f.conn.JS.Consumer(ctx, f.conn.Names.RefreshStream(), jetpost.ConsumerRefresh)
	if err != nil {
		return fmt.Errorf("find refresh consumer: %w", err)
	}
	config := consumer.CachedInfo().Config
	if f.ackWait == 0 {
		f.ackWait = config.AckWait
	}
	config.AckWait = f.ackWait
	if f.starts == 0 {
		config.AckWait = 3 * f.claimFor
	}
	_, err = f.conn.JS.UpdateConsumer(ctx, f.conn.Names.RefreshStream(), config)
	return err
}

func (f *fleet) set(worker int, l *life) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now[worker] = l
}

// well tells whether every worker is at work.
func (f *fleet) well() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.now {
		if l == nil || !l.alive() || f.frozen[l.host] {
			return false
		}
		if l.learn(); !l.started {
			return false
		}
	}
	return true
}

// strike does one harm to a worker: it kills it, or freezes it for less than a
// lease or for more, and then thaws or kills it.
func (f *fleet) strike(ctx context.Context, random *rand.Rand, l *life) {
	kind := random.IntN(10)
	if kind < 4 {
		f.kill(l)
		return
	}
	d := between(random, f.claimFor/5, f.claimFor*9/10)
	if kind >= 6 {
		d = between(random, f.claimFor*6/5, f.claimFor*4)
		if random.IntN(2) == 0 {
			// With the database stalled, answers pile up that are not stored yet:
			// the worker will bring them late.
			stalled := make(chan struct{})
			go func() {
				defer close(stalled)
				f.stall(ctx, f.claimFor/3)
			}()
			pause(ctx, f.claimFor/6)
			defer func() { <-stalled }()
		}
	}
	f.freeze(l)
	pause(f.t.Context(), d)
	if kind == 9 {
		f.kill(l)
	}
	f.thaw(l)
}

func (f *fleet) kill(l *life) {
	f.kills.Add(1)
	l.harmed(harm{killed: true, from: time.Now()})
	l.send(syscall.SIGKILL)
	<-l.done
}

func (f *fleet) freeze(l *life) {
	f.freezes.Add(1)
	l.harmed(harm{from: time.Now()})
	l.send(syscall.SIGSTOP)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen[l.host] = true
}

func (f *fleet) thaw(l *life) {
	if !l.wasKilled() {
		l.send(syscall.SIGCONT)
	}
	l.thawed()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.frozen, l.host)
}

func (f *fleet) isFrozen(host string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.frozen[host]
}

// of returns the process that called an address of X.
func (f *fleet) of(host string) *life {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lives[host]
}

func (f *fleet) all() []*life {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]*life, 0, len(f.lives))
	for _, l := range f.lives {
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b *life) int { return strings.Compare(a.name, b.name) })
	return list
}

// outdated counts the pairs that a fence refused, because newer ones were there.
func (f *fleet) outdated() (n int) {
	for _, l := range f.all() {
		l.learn()
		n += l.outdated
	}
	return n
}

// send sends a signal, if the process has not ended meanwhile.
func (l *life) send(sig syscall.Signal) { _ = l.cmd.Process.Signal(sig) }

func (l *life) alive() bool {
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

// wait waits, and returns false early if the context or the process ends.
func (l *life) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-l.done:
	case <-timer.C:
		return true
	}
	return false
}

// called waits, most of the time, until X is called, and then a little: a harm to
// a worker that has nothing to do proves little.
func (l *life) called(ctx context.Context, random *rand.Rand) bool {
	if random.IntN(4) > 0 {
		select {
		case <-l.calls: // may be an old one
		default:
		}
		select {
		case <-l.calls:
		case <-ctx.Done():
		case <-l.done:
		}
	}
	return l.wait(ctx, between(random, 0, 60*time.Millisecond))
}

func (l *life) harmed(h harm) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.harms = append(l.harms, h)
}

func (l *life) thawed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.harms {
		if h := &l.harms[i]; !h.killed && h.to.IsZero() {
			h.to = time.Now()
		}
	}
}

func (l *life) wasKilled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.harms, func(h harm) bool { return h.killed })
}

// entry is a line of a worker's log, as far as the run reads it.
type entry struct {
	Time    time.Time `json:"time"`
	Msg     string    `json:"msg"`
	Account string    `json:"account"`
	Version any       `json:"version"` // a token's is a number, a program's is not
	Error   string    `json:"error"`
}

// learn reads what the log has got since the last time.
func (l *life) learn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := os.Open(l.log)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.NewSectionReader(f, l.read, 1<<40))
	if err != nil {
		return
	}
	whole := text[:strings.LastIndexByte(string(text), '\n')+1]
	l.read += int64(len(whole))
	for line := range strings.Lines(string(whole)) {
		l.note(line)
	}
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

func (l *life) note(line string) {
	var e entry
	if json.Unmarshal([]byte(line), &e) != nil {
		l.bad = line // a panic, or a hint of a start that failed
		return
	}
	version, _ := e.Version.(float64)
	about := tokenAt{e.Account, int64(version)}
	switch e.Msg {
	case "worker.started":
		l.started, l.bad = true, ""
	case "token.refreshed", "token.rescued":
		l.saved[about] = saved{stored: true, at: e.Time}
	case "token.refresh_failed":
		l.failed[about] += e.Error + "; " // one text may follow on another, of a retry
	case "token.save_failed", "token.rescue_not_needed":
		l.saved[about] = saved{at: e.Time}
		l.outdated++
	case "delivery.panic":
		l.bad = line
	}
}

// weather has X fail in changing ways, and at times stalls the database.
func (c *chaos) weather(ctx context.Context) error {
	random := c.chance(actorWeather)
	for ctx.Err() == nil {
		if err := c.sim.SetFaults(c.badDay(random)); err != nil {
			return err
		}
		pause(ctx, between(random, c.claimFor, 3*c.claimFor))
		if random.IntN(3) == 0 {
			c.stall(ctx, between(random, c.claimFor/20, c.claimFor/3))
		}
	}
	return nil
}

// badDay are X's faults for a while.
func (c *chaos) badDay(random *rand.Rand) []xsim.Fault {
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

// stall keeps everybody from writing tokens for a while. A database that is
// being restarted stalls by itself.
func (c *chaos) stall(ctx context.Context, d time.Duration) { _ = c.view.stall(ctx, d) }

// people are the customers. They connect an account again when it has to be, and
// now and then one that is merely in doubt, while its worker may yet bring a pair.
type people struct {
	*chaos
	names    []string
	importer app.Importer
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

func (c *chaos) newPeople() *people {
	p := &people{
		chaos: c, importer: app.Importer{Ledger: c.ledger, NATS: c.conn, XURL: c.cfg.X.URL},
		customers: map[string]*customer{}, doubts: map[tokenAt]bool{},
	}
	p.connects.SetLimit(maxConnects)
	for i := range c.tokens {
		name := fmt.Sprintf("acct%05d", i)
		p.names = append(p.names, name)
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
		seen := p.sim.Exchanges(d.account)
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
	grant, err := p.sim.AddAccount(xsim.NewAccount{Handle: name})
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.customers[name].consents++
	p.mu.Unlock()
	line := app.ImportLine{Name: name, AccessToken: grant.AccessToken, RefreshToken: grant.RefreshToken, ExpiresAt: time.Now().Add(p.life)}
	for {
		// The claim of a worker, or a database that is away, is over soon.
		_, err = p.importer.Import(ctx, line)
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
		token, err = p.ledger.Token(ctx, name)
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
	family, rotation, known := p.sim.Locate(token.Refresh.Reveal())
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
