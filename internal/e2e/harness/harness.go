package harness

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/postgres"
	"github.com/jetpost/jetpost/xapi/xsim"
)

const (
	// patience bounds each wait for a fact; a loaded machine needs much of it.
	patience = 3 * time.Minute
	// askAgain is how often a fact is asked for.
	askAgain = 20 * time.Millisecond
	// maxLogBytes is how much of the end of a process's log a failure shows.
	maxLogBytes = 32 << 10
	// commandTime bounds a command that does not stay.
	commandTime = 60 * time.Second
)

// site is an installation whose workers are real processes: this test binary
// under the name jetpost. NATS and PostgreSQL are real, X is simulated in this
// process, so that a test knows exactly when a call reaches it.
type site struct {
	t      *testing.T
	sim    *xsim.Server
	x      *httptest.Server // where the simulator listens
	cfg    app.Config
	lease  time.Duration
	minute time.Duration // of the simulated X
	conn   *app.Connection
	ledger store.Store
	// onCall, where it is set, sees each call twice: as it arrives, and when
	// its effect is made and the answer has not left yet.
	onCall atomic.Pointer[func(r *http.Request, made bool)]
}

// leaseMinutes is how many minutes of the simulated X pass in a lease, by default.
const leaseMinutes = 4

// siteConfig says what differs from a server and a database of the test's own.
type siteConfig struct {
	nats     string // URL of a server that the test may kill
	database string // URL of a database that the test may stop; empty of tables
	lease    time.Duration
	accounts []string
	// refreshCron is when refresh rounds begin; every six hours where empty.
	refreshCron string
	// minute is how long a minute of the simulated X takes; a quarter of the lease
	// where zero.
	minute time.Duration
}

func newSite(t *testing.T, c siteConfig) *site {
	t.Helper()
	s := &site{t: t, sim: &xsim.Server{}, lease: c.lease, minute: cmp.Or(c.minute, c.lease/leaseMinutes)}
	s.x = httptest.NewServer(s)
	t.Cleanup(func() { s.x.Close() })
	if c.nats == "" {
		c.nats = natstest.Server(t, natstest.Listen).ClientURL()
	}
	if c.database == "" {
		c.database = pgtest.Migrated(t, postgres.Migrate)
	}
	s.cfg = app.Config{
		NATS: app.NATSConfig{URL: c.nats, Replicas: 1}, DatabaseURL: secret.New(c.database),
		Keys: store.GenerateKey(), X: app.XConfig{URL: s.x.URL, ClientID: "e2e"}, Refresh: app.RefreshConfig{Cron: c.refreshCron},
	}
	ctx, log := t.Context(), slog.New(slog.DiscardHandler)
	_, err := s.cfg.Setup(ctx, log)
	must(t, err)
	s.conn, err = s.cfg.Connect(ctx, log, "test")
	must(t, err)
	t.Cleanup(s.conn.Close)
	s.ledger, err = s.cfg.OpenStore(ctx)
	must(t, err)
	t.Cleanup(func() { _ = s.ledger.Close() })
	for _, name := range c.accounts {
		s.account(name, 0)
	}
	return s
}

// account makes an account at X and imports it. Its access token lives as long
// as X's do, or the shorter life given: then it is soon due for a refresh.
func (s *site) account(name string, life time.Duration) {
	s.t.Helper()
	grant, err := s.sim.AddAccount(xsim.NewAccount{Handle: name})
	must(s.t, err)
	importer := app.Importer{Ledger: s.ledger, NATS: s.conn, XURL: s.cfg.X.URL}
	_, err = importer.Import(s.t.Context(), app.ImportLine{
		Name: name, AccessToken: grant.AccessToken, RefreshToken: grant.RefreshToken,
		ExpiresAt: time.Now().Add(cmp.Or(life, time.Duration(grant.ExpiresIn)*time.Second)),
	})
	must(s.t, err)
}

// xBack has X listen again where it did before it was closed.
func (s *site) xBack() {
	s.t.Helper()
	l, err := (&net.ListenConfig{}).Listen(s.t.Context(), "tcp", s.x.Listener.Addr().String())
	must(s.t, err)
	s.x = httptest.NewUnstartedServer(s)
	must(s.t, s.x.Listener.Close())
	s.x.Listener = l
	s.x.Start()
}

// ServeHTTP is X, with a look at each call.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	look := func(made bool) {
		if f := s.onCall.Load(); f != nil {
			(*f)(r, made)
		}
	}
	look(false)
	answer := httptest.NewRecorder()
	s.sim.ServeHTTP(answer, r)
	look(true)
	maps.Copy(w.Header(), answer.Header())
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes()) // the caller may be dead by now
}

// atCall has do run once, at the nth call to an endpoint from now on: as it
// arrives or, with made, before its answer leaves.
func (s *site) atCall(method, path string, nth int, made bool, do func()) (reached <-chan struct{}) {
	done := make(chan struct{})
	var seen atomic.Int64
	f := func(r *http.Request, isMade bool) {
		if r.Method == method && r.URL.Path == path && isMade == made && seen.Add(1) == int64(nth) {
			do()
			close(done)
		}
	}
	s.onCall.Store(&f)
	return done
}

const (
	postPath   = "/2/tweets"
	uploadPath = "/2/media/upload"
)

// slow makes each call to X take a while, before and after its effect, so that
// whatever happens to a worker happens in the middle of some.
func (s *site) slow(d time.Duration) {
	must(s.t, s.sim.SetFaults([]xsim.Fault{
		{Kind: xsim.FaultLatency, DelayMS: d.Milliseconds()},
		{Kind: xsim.FaultLatency, DelayMS: d.Milliseconds(), After: true},
	}))
}

// settings are the environment of a process that shall use this site alone.
func (s *site) settings() []string {
	return environment(s.t, map[string]string{
		"NATS_URL": s.cfg.NATS.URL, "DATABASE_URL": s.cfg.DatabaseURL.Reveal(), "HUB_ENCRYPTION_KEY": s.cfg.Keys.Reveal(),
		"X_API_URL": s.cfg.X.URL, "X_CLIENT_ID": s.cfg.X.ClientID, app.SimMinuteVariable: s.minute.String(),
	})
}

// environment is this process's without any setting of jetpost's but these.
// Empty ones are left out.
func environment(t *testing.T, settings map[string]string) []string {
	t.Helper()
	env := append(withoutSettings(os.Environ()), "HOME="+t.TempDir(), "XDG_DATA_HOME=", "XDG_CONFIG_HOME=")
	for name, value := range settings {
		if value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// worker starts a worker process and waits until it works.
func (s *site) worker(name string, flags ...string) *process {
	s.t.Helper()
	args := []string{"worker", "--worker-name", name, "--lease", s.lease.String(), "--log-level", "debug", "--log-format", "json"}
	p := start(s.t, name, s.settings(), "jetpost", append(args, flags...)...)
	p.until("worker.started")
	return p
}

// run runs a command to its end.
func (s *site) run(args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	return runCommand(s.t, s.settings(), "jetpost", args...)
}

func runCommand(t *testing.T, env []string, program string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
	// What a killed command leaves running must not keep the test waiting.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %s %v: %v", program, args, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// job is what a producer sends, as JSON of its own making.
type job struct {
	account, id string
	posts       int       // length of the thread
	picture     int       // the post with a picture, counted from 1; 0 for none
	at          time.Time // publish_at; zero for now
	sequence    uint64    // its place in the job stream, once it is published
}

// text is unique for each post of a test: X refuses repeats, and the call log are
// read by it.
func (j *job) text(post int) string {
	return fmt.Sprintf("%s, job %s, post %d of %d", j.account, j.id, post+1, j.posts)
}

func (j *job) body(t *testing.T) []byte {
	t.Helper()
	var posts []map[string]any
	for i := range j.posts {
		post := map[string]any{"text": j.text(i)}
		if i+1 == j.picture {
			picture, err := demoImage()
			must(t, err)
			post["media"] = []map[string]any{{"data": picture}}
		}
		posts = append(posts, post)
	}
	request := map[string]any{"version": 1, "id": j.id, "posts": posts}
	if !j.at.IsZero() {
		request["publish_at"] = j.at.Format(time.RFC3339Nano)
	}
	body, err := json.Marshal(request)
	must(t, err)
	return body
}

// publish sends the jobs of each list in order, all lists at once. A job whose
// acknowledgement is lost is sent again, as its id allows.
func (s *site) publish(lists ...[]*job) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	var producers sync.WaitGroup
	for _, list := range lists {
		producers.Go(func() {
			for _, j := range list {
				body := j.body(s.t)
				for {
					ack, err := s.conn.JS.Publish(ctx, "publish.request."+j.account, body)
					if err == nil {
						j.sequence = ack.Sequence
						break
					}
					if ctx.Err() != nil {
						s.t.Errorf("publish job %s of %s: %v", j.id, j.account, err)
						return
					}
				}
			}
		})
	}
	producers.Wait()
}

// makeJobs makes so many jobs, in turn for each account.
func makeJobs(n int, accounts []string, posts func(i int) int) []*job {
	jobs := make([]*job, n)
	for i := range jobs {
		jobs[i] = &job{account: accounts[i%len(accounts)], id: fmt.Sprintf("job-%d", i), posts: posts(i)}
	}
	return jobs
}

// deal gives the jobs to so many producers in turn.
func deal(jobs []*job, producers int) [][]*job {
	lists := make([][]*job, producers)
	for i, j := range jobs {
		lists[i%producers] = append(lists[i%producers], j)
	}
	return lists
}

func accountNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("acct%d", i)
	}
	return names
}

func one(int) int { return 1 }

// stops are those that workers believe.
func (s *site) stops() *publishers.AppPauses {
	s.t.Helper()
	return signedPauses(s.t, s.conn, s.ledger)
}

func signedPauses(t *testing.T, conn *app.Connection, ledger store.Store) *publishers.AppPauses {
	t.Helper()
	signer, err := consumers.LedgerSigner(t.Context(), ledger)
	must(t, err)
	return publishers.NewAppPauses(conn.JS, conn.Names).Signed(signer)
}

// counts asks the ledger how many requests are in each state; nil while it
// cannot be asked.
func (s *site) counts() map[jetpost.State]int {
	counts, err := s.ledger.CountRequests(s.t.Context())
	if err != nil {
		return nil
	}
	return counts
}

// allPublished waits until so many requests are published and none is left.
func (s *site) allPublished(n int) {
	s.t.Helper()
	var last map[jetpost.State]int
	defer func() {
		if s.t.Failed() {
			s.t.Logf("requests by state: %v, want %d published", last, n)
		}
	}()
	eventually(s.t, fmt.Sprintf("%d published requests", n), func() bool {
		last = s.counts()
		return last[jetpost.StatePublished] == n
	})
}

// status is where a request stands.
func (s *site) status(account, id string) jetpost.RequestStatus {
	s.t.Helper()
	record, err := s.ledger.Request(s.t.Context(), store.Key{Account: account, ID: id})
	must(s.t, err)
	return record.Status
}

// live are the posts of a job that X has, which must be its first ones, in
// order.
func (s *site) live(j *job) []xsim.Post {
	s.t.Helper()
	var live []xsim.Post
	for _, post := range s.sim.Posts(j.account) {
		if !strings.HasPrefix(post.Text, j.account+", job "+j.id+",") {
			continue
		}
		if post.Text != j.text(len(live)) {
			s.t.Errorf("X has %q, want %q first", post.Text, j.text(len(live)))
		}
		live = append(live, post)
	}
	return live
}

// wantCallLog checks that X has every post of the jobs once and no other, the
// jobs of each account in the order of the job stream, no thread mixed with
// another and each a chain of replies; that the ledger knows each by its id;
// and that nothing was done that a correct client never does. Jobs for later
// have their time instead of an order.
func (s *site) wantCallLog(jobs []*job) {
	s.t.Helper()
	byAccount := map[string][]*job{}
	for _, j := range jobs {
		byAccount[j.account] = append(byAccount[j.account], j)
	}
	total := 0
	for account, list := range byAccount {
		slices.SortStableFunc(list, func(a, b *job) int { return int(a.sequence) - int(b.sequence) })
		posts := s.sim.Posts(account)
		total += len(posts)
		s.wantThreads(account, list, posts)
	}
	if found := len(s.sim.Posts("")); found != total {
		s.t.Errorf("X has %d posts, %d of these accounts", found, total)
	}
	for _, v := range s.sim.Violations() {
		s.t.Errorf("violation: %s of %s: %s", v.Kind, v.Account, v.Detail)
	}
}

func (s *site) wantThreads(account string, jobs []*job, posts []xsim.Post) {
	s.t.Helper()
	var wanted, found, laterWanted, laterFound []string
	byText := map[string]*job{}
	for _, j := range jobs {
		byText[j.text(0)] = j
		if j.at.IsZero() {
			wanted = append(wanted, j.id)
		} else {
			laterWanted = append(laterWanted, j.id)
		}
	}
	for len(posts) > 0 {
		j := byText[posts[0].Text]
		if j == nil || len(posts) < j.posts {
			s.t.Errorf("X has %q of %s where a thread should begin, or it is not whole", posts[0].Text, account)
			return
		}
		parent := ""
		for i, post := range posts[:j.posts] {
			if post.Text != j.text(i) || post.InReplyTo != parent {
				s.t.Errorf("X has %q below %q, want %q below %q", post.Text, post.InReplyTo, j.text(i), parent)
			}
			if known := s.status(account, j.id).Posts[i]; known.PostID != post.ID || known.State != jetpost.PostPosted {
				s.t.Errorf("the ledger has post %d of job %s as %+v, X as %s", i+1, j.id, known, post.ID)
			}
			parent = post.ID
		}
		if j.at.IsZero() {
			found = append(found, j.id)
		} else {
			laterFound = append(laterFound, j.id)
			if posts[0].CreatedAt.Before(j.at) {
				s.t.Errorf("job %s of %s came %s before its time", j.id, account, j.at.Sub(posts[0].CreatedAt))
			}
		}
		posts = posts[j.posts:]
	}
	slices.Sort(laterWanted)
	slices.Sort(laterFound)
	if !slices.Equal(found, wanted) || !slices.Equal(laterFound, laterWanted) {
		s.t.Errorf("X has %v and later %v of %s, want %v and later %v", found, laterFound, account, wanted, laterWanted)
	}
}

// process is a process of the test's own, which ends with the test at the
// latest. Its output is shown if the test fails.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	log  string        // path
	done chan struct{} // closed when it has ended
}

func start(t *testing.T, name string, env []string, program string, args ...string) *process {
	t.Helper()
	p, err := launch(t, name, filepath.Join(t.TempDir(), name+".log"), env, program, args...)
	must(t, err)
	t.Cleanup(func() {
		<-p.done
		text := p.output()
		for _, bad := range []string{"WARNING: DATA RACE", "delivery.panic", "goroutine 1 ["} {
			if strings.Contains(text, bad) {
				t.Errorf("%s: its log has %q", name, bad)
			}
		}
		if t.Failed() {
			t.Logf("%s wrote:\n%s", name, text[max(0, len(text)-maxLogBytes):])
		}
	})
	return p
}

// launch is start without a look at the output, for any goroutine.
func launch(t *testing.T, name, log string, env []string, program string, args ...string) (*process, error) {
	t.Helper()
	p := &process{t: t, name: name, log: log, done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	p.cmd = exec.CommandContext(t.Context(), program, args...) // killed when the test ends
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = env, out, out
	_, err = p.cmd.StdinPipe() // its end is the end of this process
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	go func() {
		_ = p.cmd.Wait() // the exit code tells the same
		_ = out.Close()
		close(p.done)
	}()
	return p, nil
}

func (p *process) output() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// entries are the log's lines of one message.
func (p *process) entries(message string) []map[string]any {
	var found []map[string]any
	for line := range strings.Lines(p.output()) {
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) == nil && entry["msg"] == message {
			found = append(found, entry)
		}
	}
	return found
}

// until waits for a log message.
func (p *process) until(message string) {
	p.t.Helper()
	eventually(p.t, p.name+" to log "+message, func() bool {
		select {
		case <-p.done:
			p.t.Fatalf("%s ended with code %d before it logged %s", p.name, p.cmd.ProcessState.ExitCode(), message)
		default:
		}
		return len(p.entries(message)) > 0
	})
}

// signal sends a signal. It may be called on any goroutine. A process that is told to
// freeze has done so when signal returns: on a busy machine its threads run on for a
// moment, in which they could commit what is on its way.
func (p *process) signal(sig syscall.Signal) {
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Errorf("send %s to %s: %v", sig, p.name, err)
		return
	}
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for late := time.After(patience); sig == syscall.SIGSTOP && p.runs(); {
		select {
		case <-again.C:
		case <-late:
			p.t.Errorf("%s does not freeze", p.name)
			return
		}
	}
}

// runs tells whether a thread of the process is not frozen, as far as Linux tells.
func (p *process) runs() bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
	return slices.ContainsFunc(threads, func(name string) bool {
		stat, err := os.ReadFile(name)
		return err == nil && !bytes.Contains(stat, []byte(") T "))
	})
}

// exit waits for the end and returns the exit code, -1 after a signal.
func (p *process) exit() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		p.t.Fatalf("%s does not end", p.name)
		return 0
	}
}

// kill ends the process as a power cut would.
func (p *process) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	p.exit()
}

// stop ends processes as an operator would.
func stop(processes ...*process) {
	for _, p := range processes {
		p.signal(syscall.SIGTERM)
	}
	for _, p := range processes {
		p.t.Helper()
		if code := p.exit(); code != exitOK {
			p.t.Errorf("%s ended with code %d, want 0", p.name, code)
		}
	}
}

// eventually waits for a fact.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	end := time.After(patience)
	again := time.NewTicker(askAgain)
	defer again.Stop()
	for !is() {
		select {
		case <-again.C:
		case <-end:
			t.Fatalf("waited %s in vain for %s", patience, what)
		}
	}
}

// wait waits for a channel to be closed.
func wait(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("waited %s in vain for %s", patience, what)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// natsServerCommand is the name under which this test binary is a NATS server
// in a process of its own: natsServerCommand DIR PORT, or natsServerCommand CONFIG.
const natsServerCommand = "e2e-nats-server"

// natsServer runs it, until it is killed or the test process ends.
func natsServer() {
	options := &server.Options{ServerName: "e2e", Host: "127.0.0.1", JetStream: true, StoreDir: os.Args[1]}
	var err error
	if len(os.Args) == 2 {
		options, err = server.ProcessConfigFile(os.Args[1])
	} else {
		options.Port, err = strconv.Atoi(os.Args[2])
	}
	if err != nil {
		panic(err)
	}
	options.NoSigs = true
	s, err := server.NewServer(options)
	if err != nil {
		panic(err)
	}
	s.ConfigureLogger()
	s.Start()
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.Shutdown()
}

// startNATS runs a server on a directory and port and waits until it listens.
func startNATS(t *testing.T, dir, address string) *process {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	must(t, err)
	p := start(t, "nats-server", os.Environ(), natsServerCommand, dir, port)
	eventually(t, "nats-server to listen", func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	return p
}

// closedAddress is a port that nobody listens on just now.
func closedAddress(t *testing.T) string {
	t.Helper()
	l := holdPort(t)
	must(t, l.Close())
	return l.Addr().String()
}

// holdPort holds a port.
func holdPort(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() }) // it may be closed already
	return l
}
