package chaos

import (
	"cmp"
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

	"github.com/jetpost/jetpost/internal/e2e/harness"
)

// fleet are the workers. Each process has an address of X to itself, so that the
// call log tells which one called.
type fleet struct {
	*chaos
	settings []string
	server   *http.Server
	// command is what runs: "worker" where it is empty.
	command string
	// flags are those of the run's workers, beside name and log format.
	flags []string
	// own, where it is set, are settings of one worker, which go before settings.
	own func(worker int) []string
	// ends, where it is set, is what the last words of a process hold that ends itself, to
	// be started again.
	ends string
	// table is what is stalled where harm is to come with a stalled database.
	table string
	// starting, where it is set, is told of each process that is about to check what
	// NATS has, and with -1 of its end.
	starting func(ctx context.Context, more int) error
	// OnCall, if it is set, sees each call before X does.
	onCall func(r *http.Request)
	// onAnswer, where it is set, sees the answers of X.
	onAnswer func(w http.ResponseWriter) http.ResponseWriter

	kills, freezes atomic.Int64

	mu     sync.Mutex
	lives  map[string]*life // by the address of X
	now    []*life          // by worker; nil while there is none
	frozen map[string]bool  // addresses of X
}

// life is one process of a worker.
type life struct {
	*harness.Process
	host  string
	calls chan struct{} // gets something when X is called

	mu      sync.Mutex
	harms   []harm
	read    int64 // how much of the log is known
	started bool
	bad     string // what no log should have
	ends    string // of the fleet
	ended   bool   // with those words
	tokenLog
	postLog
}

// harm is what was done to a process. A kill has no end.
type harm struct {
	killed   bool
	from, to time.Time
}

func (c *chaos) newFleet() *fleet {
	f := &fleet{
		chaos: c, settings: c.Settings(), lives: map[string]*life{}, frozen: map[string]bool{}, now: make([]*life, c.workers),
	}
	f.server = &http.Server{Handler: http.HandlerFunc(f.serveX), ReadHeaderTimeout: chaosPatience}
	c.T.Cleanup(func() { _ = f.server.Close() })
	return f
}

// serveX is X with an ear for who calls.
func (f *fleet) serveX(w http.ResponseWriter, r *http.Request) {
	select {
	case f.of(r.Host).calls <- struct{}{}:
	default:
	}
	if f.onCall != nil {
		f.onCall(r)
	}
	if f.onAnswer != nil {
		w = f.onAnswer(w)
	}
	f.Sim.ServeHTTP(w, r)
}

// keep runs one worker, restarts it whenever it ends, and harms it while it is
// stormy.
func (f *fleet) keep(ctx, stormy context.Context, worker int) error {
	random := f.chance(uint64(worker))
	strikes := worker // a worker is killed and frozen in turn, and not all begin with the same
	for vain := 0; ctx.Err() == nil; {
		l, err := f.begin(ctx, worker)
		if err != nil {
			return err
		}
		for f.set(worker, l); l.alive() && ctx.Err() == nil; {
			if l.wait(stormy, time.Duration(random.ExpFloat64()*float64(f.harm))) && l.called(stormy, random) {
				f.strike(stormy, random, l, strikes%2 == 0)
				strikes++
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
			return fmt.Errorf("%s does not start; see %s", l.Name, l.Log)
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
	if ctx.Err() == nil && !l.wasKilled() && !l.hasEnded() {
		f.findings.add("worker ended", "%s ended with code %d; see %s", l.Name, l.Cmd.ProcessState.ExitCode(), l.Log)
	}
}

// begin starts a process with an address of X of its own. The address stays
// taken until the end of the run, so that no other process is mistaken for it.
func (f *fleet) begin(ctx context.Context, worker int) (*life, error) {
	if f.starting != nil {
		if err := f.starting(ctx, 1); err != nil {
			return nil, err
		}
	}
	listener, err := (&net.ListenConfig{}).Listen(f.T.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	host := listener.Addr().String()
	f.mu.Lock()
	defer f.mu.Unlock()
	name := fmt.Sprintf("worker-%d-%d", worker+1, len(f.lives)+1)
	env := append(slices.Clone(f.settings), "X_API_URL=http://"+host)
	if f.own != nil {
		env = append(env, f.own(worker)...)
	}
	args := append([]string{cmp.Or(f.command, "worker"), "--worker-name", name, "--log-format", "json"}, f.flags...)
	p, err := harness.Launch(f.T, name, filepath.Join(f.logs, name+".log"), env, "jetpost", args...)
	if err != nil {
		return nil, err
	}
	l := &life{Process: p, host: host, calls: make(chan struct{}, 1), ends: f.ends, tokenLog: newTokenLog()}
	f.lives[host] = l
	go func() { _ = f.server.Serve(listener) }() // until the run is over
	if f.starting == nil {
		return l, nil
	}
	go func() {
		f.until(ctx, chaosPatience, func() bool { l.learn(); return l.started || !l.alive() })
		if err := f.starting(ctx, -1); err != nil && ctx.Err() == nil {
			f.findings.add("run", "%v", err)
		}
	}()
	return l, nil
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

// strike does one harm to a worker: it kills it, or freezes it for less than a lease or
// for more, and then thaws or kills it.
func (f *fleet) strike(ctx context.Context, random *rand.Rand, l *life, deadly bool) {
	if deadly {
		f.kill(l)
		return
	}
	kind := random.IntN(5)
	d := between(random, f.claimFor/5, f.claimFor*9/10)
	if kind >= 1 {
		d = between(random, f.claimFor*6/5, f.claimFor*4)
		if random.IntN(2) == 0 {
			// With the database stalled, answers pile up that are not stored yet:
			// the worker will bring them late.
			stalled := make(chan struct{})
			go func() {
				defer close(stalled)
				f.stall(ctx, f.table, f.claimFor/3)
			}()
			pause(ctx, f.claimFor/6)
			defer func() { <-stalled }()
		}
	}
	f.freeze(l)
	pause(f.T.Context(), d)
	if kind == 4 {
		f.kill(l)
	}
	f.thaw(l)
}

func (f *fleet) kill(l *life) {
	f.kills.Add(1)
	l.harmed(harm{killed: true, from: time.Now()})
	l.send(syscall.SIGKILL)
	<-l.Done
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
	slices.SortFunc(list, func(a, b *life) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// endFleet stops the workers as an operator would, and looks at their logs.
func (c *chaos) endFleet() {
	for _, l := range c.fleet.all() {
		if !l.alive() {
			continue
		}
		if l.Signal(syscall.SIGTERM); l.Exit() != 0 {
			c.findings.add("worker ended", "%s ended with code %d when it was told to stop; see %s", l.Name, l.Exit(), l.Log)
		}
	}
	for _, l := range c.fleet.all() {
		if l.learn(); l.started && l.bad != "" {
			c.findings.add("worker broke", "%s logged %q; see %s", l.Name, l.bad, l.Log)
		}
	}
}

// send sends a signal, if the process has not ended meanwhile.
func (l *life) send(sig syscall.Signal) { _ = l.Cmd.Process.Signal(sig) }

func (l *life) alive() bool {
	select {
	case <-l.Done:
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
	case <-l.Done:
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
		case <-l.Done:
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

// hasEnded tells whether the process has ended itself, to be started again.
func (l *life) hasEnded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

// entry is a line of a worker's log, as far as the run reads it.
type entry struct {
	Time    time.Time `json:"time"`
	Msg     string    `json:"msg"`
	Account string    `json:"account"`
	Version any       `json:"version"` // a token's is a number, a program's is not
	Error   string    `json:"error"`
	Code    string    `json:"code"`
	Detail  string    `json:"detail"`
}

// learn reads what the log has got since the last time.
func (l *life) learn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := os.Open(l.Log)
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

func (l *life) note(line string) {
	var e entry
	if json.Unmarshal([]byte(line), &e) != nil {
		if l.ended = l.ended || l.ends != "" && strings.Contains(line, l.ends); !l.ended {
			l.bad = line // a panic, or a hint of a start that failed
		}
		return
	}
	switch e.Msg {
	case "worker.started":
		l.started, l.bad = true, ""
	case "delivery.panic":
		l.bad = line
	default:
		l.tokenLog.note(e)
		l.postLog.note(e)
	}
}

// stall keeps everybody from writing a table for a while. A database that is being
// restarted stalls by itself.
func (c *chaos) stall(ctx context.Context, table string, d time.Duration) {
	_ = c.view.stall(ctx, table, d)
}
