package harness

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/cli"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/postgres"
	"github.com/jetpost/jetpost/xapi/xsim"
)

const (
	// CommandTime bounds a command that does not stay.
	CommandTime = 60 * time.Second
	// Never is a refresh cron that no test meets.
	Never = "0 0 0 29 2 *"
	// maxLogBytes is how much of the end of a process's log a failure shows.
	maxLogBytes = 32 << 10
)

// Site is an installation whose workers are real processes: this test binary
// under the name jetpost. NATS and PostgreSQL are real, X is simulated in this
// process, so that a test knows exactly when a call reaches it.
type Site struct {
	T      testkit.T
	Sim    *xsim.Server
	X      *httptest.Server // where the simulator listens
	Cfg    app.Config
	Lease  time.Duration
	Minute time.Duration // of the simulated X
	Conn   *app.Connection
	Ledger store.Store
	// OnCall, if it is set, sees each call twice: as it arrives, and when
	// its effect is made and the answer has not left yet.
	OnCall atomic.Pointer[func(r *http.Request, made bool)]
}

// LeaseMinutes is how many minutes of the simulated X pass in a lease, by default.
const LeaseMinutes = 4

// SiteConfig says what differs from a server and a database of the test's own.
type SiteConfig struct {
	NATS     string // URL of a server that the test may kill
	Replicas int    // of each stream; 1 where zero
	Database string // URL of a database that the test may stop; empty of tables
	Lease    time.Duration
	Accounts []string
	// RefreshCron is when refresh rounds begin; every six hours where empty.
	RefreshCron string
	// minute is how long a minute of the simulated X takes; a quarter of the lease
	// where zero.
	Minute time.Duration
}

func NewSite(t testkit.T, c SiteConfig) *Site {
	t.Helper()
	s := &Site{T: t, Sim: &xsim.Server{}, Lease: c.Lease, Minute: cmp.Or(c.Minute, c.Lease/LeaseMinutes)}
	s.X = httptest.NewServer(s)
	t.Cleanup(func() { s.X.Close() })
	if c.NATS == "" {
		c.NATS = natstest.Server(t, natstest.Listen).ClientURL()
	}
	if c.Database == "" {
		c.Database = pgtest.Migrated(t, postgres.Migrate)
	}
	s.Cfg = app.Config{
		NATS: app.NATSConfig{URL: c.NATS, Replicas: max(c.Replicas, 1)}, DatabaseURL: secret.New(c.Database),
		Keys: store.GenerateKey(), X: app.XConfig{URL: s.X.URL, ClientID: "e2e"}, Refresh: app.RefreshConfig{Cron: c.RefreshCron},
	}
	ctx, log := t.Context(), slog.New(slog.DiscardHandler)
	_, err := s.Cfg.Setup(ctx, log)
	testkit.Must(t, err)
	s.Conn, err = s.Cfg.Connect(ctx, log, "test")
	testkit.Must(t, err)
	t.Cleanup(s.Conn.Close)
	s.Ledger, err = s.Cfg.OpenStore(ctx)
	testkit.Must(t, err)
	t.Cleanup(func() { _ = s.Ledger.Close() })
	for _, name := range c.Accounts {
		s.Account(name, 0)
	}
	return s
}

// Account makes an account at X and imports it. Its access token lives as long
// as X's do, or the shorter life given: then it is soon due for a refresh.
func (s *Site) Account(name string, life time.Duration) {
	s.T.Helper()
	grant, err := s.Sim.AddAccount(xsim.NewAccount{Handle: name})
	testkit.Must(s.T, err)
	importer := app.Importer{Ledger: s.Ledger, NATS: s.Conn, XURL: s.Cfg.X.URL}
	_, err = importer.Import(s.T.Context(), app.ImportLine{
		Name: name, AccessToken: grant.AccessToken, RefreshToken: grant.RefreshToken,
		ExpiresAt: time.Now().Add(cmp.Or(life, time.Duration(grant.ExpiresIn)*time.Second)),
	})
	testkit.Must(s.T, err)
}

// XBack has X listen again where it did before it was closed.
func (s *Site) XBack() {
	s.T.Helper()
	l, err := (&net.ListenConfig{}).Listen(s.T.Context(), "tcp", s.X.Listener.Addr().String())
	testkit.Must(s.T, err)
	s.X = httptest.NewUnstartedServer(s)
	testkit.Must(s.T, s.X.Listener.Close())
	s.X.Listener = l
	s.X.Start()
}

// ServeHTTP is X, with a look at each call.
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	look := func(made bool) {
		if f := s.OnCall.Load(); f != nil {
			(*f)(r, made)
		}
	}
	look(false)
	answer := httptest.NewRecorder()
	s.Sim.ServeHTTP(answer, r)
	look(true)
	maps.Copy(w.Header(), answer.Header())
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes()) // the caller may be dead by now
}

// AtCall has do run once, at the nth call to an endpoint from now on: as it
// arrives or, with made, before its answer leaves.
func (s *Site) AtCall(method, path string, nth int, made bool, do func()) (reached <-chan struct{}) {
	done := make(chan struct{})
	var seen atomic.Int64
	f := func(r *http.Request, isMade bool) {
		if r.Method == method && r.URL.Path == path && isMade == made && seen.Add(1) == int64(nth) {
			do()
			close(done)
		}
	}
	s.OnCall.Store(&f)
	return done
}

const (
	PostPath   = "/2/tweets"
	UploadPath = "/2/media/upload"
)

// Slow makes each call to X take a while, before and after its effect, so that
// whatever happens to a worker happens in the middle of some.
func (s *Site) Slow(d time.Duration) {
	testkit.Must(s.T, s.Sim.SetFaults([]xsim.Fault{
		{Kind: xsim.FaultLatency, DelayMS: d.Milliseconds()},
		{Kind: xsim.FaultLatency, DelayMS: d.Milliseconds(), After: true},
	}))
}

// Settings are the environment of a process that shall use this site alone.
func (s *Site) Settings() []string {
	return Environment(s.T, map[string]string{
		"NATS_URL": s.Cfg.NATS.URL, "DATABASE_URL": s.Cfg.DatabaseURL.Reveal(), "HUB_ENCRYPTION_KEY": s.Cfg.Keys.Reveal(),
		"X_API_URL": s.Cfg.X.URL, "X_CLIENT_ID": s.Cfg.X.ClientID, app.SimMinuteVariable: s.Minute.String(),
	})
}

// Environment is this process's without any setting of jetpost's but these.
// Empty ones are left out.
func Environment(t testkit.T, settings map[string]string) []string {
	t.Helper()
	env := append(cli.WithoutSettings(os.Environ()), "HOME="+t.TempDir(), "XDG_DATA_HOME=", "XDG_CONFIG_HOME=")
	for name, value := range settings {
		if value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// Worker starts a worker process and waits until it works.
func (s *Site) Worker(name string, flags ...string) *Process {
	s.T.Helper()
	args := []string{"worker", "--worker-name", name, "--lease", s.Lease.String(), "--log-level", "debug", "--log-format", "json"}
	p := Start(s.T, name, s.Settings(), "jetpost", append(args, flags...)...)
	p.Until("worker.started")
	return p
}

// Run runs a command to its end.
func (s *Site) Run(args ...string) (code int, stdout, stderr string) {
	s.T.Helper()
	return RunCommand(s.T, s.Settings(), "jetpost", args...)
}

// Job is what a producer sends, as JSON of its own making.
type Job struct {
	Account, Id string
	Posts       int       // length of the thread
	Picture     int       // the post with a picture, counted from 1; 0 for none
	At          time.Time // publish_at; zero for now
	Sequence    uint64    // its place in the job stream, once it is published
}

// Text is unique for each post of a test: X refuses repeats, and the call log are
// read by it.
func (j *Job) Text(post int) string {
	return fmt.Sprintf("%s, job %s, post %d of %d", j.Account, j.Id, post+1, j.Posts)
}

func (j *Job) Body(t testkit.T) []byte {
	t.Helper()
	var posts []map[string]any
	for i := range j.Posts {
		post := map[string]any{"text": j.Text(i)}
		if i+1 == j.Picture {
			picture, err := Picture()
			testkit.Must(t, err)
			post["media"] = []map[string]any{{"data": picture}}
		}
		posts = append(posts, post)
	}
	request := map[string]any{"version": 1, "id": j.Id, "posts": posts}
	if !j.At.IsZero() {
		request["publish_at"] = j.At.Format(time.RFC3339Nano)
	}
	body, err := json.Marshal(request)
	testkit.Must(t, err)
	return body
}

// Publish sends the jobs of each list in order, all lists at once. A job whose
// acknowledgement is lost is sent again, as its id allows.
func (s *Site) Publish(lists ...[]*Job) {
	s.T.Helper()
	ctx, cancel := context.WithTimeout(s.T.Context(), testkit.Patience)
	defer cancel()
	var producers sync.WaitGroup
	for _, list := range lists {
		producers.Go(func() {
			for _, j := range list {
				body := j.Body(s.T)
				for {
					ack, err := s.Conn.JS.Publish(ctx, "publish.request."+j.Account, body)
					if err == nil {
						j.Sequence = ack.Sequence
						break
					}
					if ctx.Err() != nil {
						s.T.Errorf("publish job %s of %s: %v", j.Id, j.Account, err)
						return
					}
				}
			}
		})
	}
	producers.Wait()
}

// MakeJobs makes so many jobs, in turn for each account.
func MakeJobs(n int, accounts []string, posts func(i int) int) []*Job {
	jobs := make([]*Job, n)
	for i := range jobs {
		jobs[i] = &Job{Account: accounts[i%len(accounts)], Id: fmt.Sprintf("job-%d", i), Posts: posts(i)}
	}
	return jobs
}

// Deal gives the jobs to so many producers in turn.
func Deal(jobs []*Job, producers int) [][]*Job {
	lists := make([][]*Job, producers)
	for i, j := range jobs {
		lists[i%producers] = append(lists[i%producers], j)
	}
	return lists
}

func AccountNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("acct%d", i)
	}
	return names
}

func One(int) int { return 1 }

// Stops are those that workers believe.
func (s *Site) Stops() *publishers.AppPauses {
	s.T.Helper()
	return SignedPauses(s.T, s.Conn, s.Ledger)
}

func SignedPauses(t testkit.T, conn *app.Connection, ledger store.Store) *publishers.AppPauses {
	t.Helper()
	signer, err := consumers.LedgerSigner(t.Context(), ledger)
	testkit.Must(t, err)
	return publishers.NewAppPauses(conn.JS, conn.Names).Signed(signer)
}

// Counts asks the ledger how many requests are in each state; nil while it
// cannot be asked.
func (s *Site) Counts() map[jetpost.State]int {
	counts, err := s.Ledger.CountRequests(s.T.Context())
	if err != nil {
		return nil
	}
	return counts
}

// AllPublished waits until so many requests are published and none is left.
func (s *Site) AllPublished(n int) {
	s.T.Helper()
	var last map[jetpost.State]int
	defer func() {
		if s.T.Failed() {
			s.T.Logf("requests by state: %v, want %d published", last, n)
		}
	}()
	testkit.Eventually(s.T, fmt.Sprintf("%d published requests", n), func() bool {
		last = s.Counts()
		return last[jetpost.StatePublished] == n
	})
}

// Status is where a request stands.
func (s *Site) Status(account, id string) jetpost.RequestStatus {
	s.T.Helper()
	record, err := s.Ledger.Request(s.T.Context(), store.Key{Account: account, ID: id})
	testkit.Must(s.T, err)
	return record.Status
}

// Live are the posts of a job that X has, which must be its first ones, in
// order.
func (s *Site) Live(j *Job) []xsim.Post {
	s.T.Helper()
	var live []xsim.Post
	for _, post := range s.Sim.Posts(j.Account) {
		if !strings.HasPrefix(post.Text, j.Account+", job "+j.Id+",") {
			continue
		}
		if post.Text != j.Text(len(live)) {
			s.T.Errorf("X has %q, want %q first", post.Text, j.Text(len(live)))
		}
		live = append(live, post)
	}
	return live
}

// WantCallLog checks that X has every post of the jobs once and no other, the
// jobs of each account in the order of the job stream, no thread mixed with
// another and each a chain of replies; that the ledger knows each by its id;
// and that nothing was done that a correct client never does. Jobs for later
// have their time instead of an order.
func (s *Site) WantCallLog(jobs []*Job) {
	s.T.Helper()
	byAccount := map[string][]*Job{}
	for _, j := range jobs {
		byAccount[j.Account] = append(byAccount[j.Account], j)
	}
	total := 0
	for account, list := range byAccount {
		slices.SortStableFunc(list, func(a, b *Job) int { return int(a.Sequence) - int(b.Sequence) })
		posts := s.Sim.Posts(account)
		total += len(posts)
		s.wantThreads(account, list, posts)
	}
	if found := len(s.Sim.Posts("")); found != total {
		s.T.Errorf("X has %d posts, %d of these accounts", found, total)
	}
	for _, v := range s.Sim.Violations() {
		s.T.Errorf("violation: %s of %s: %s", v.Kind, v.Account, v.Detail)
	}
}

func (s *Site) wantThreads(account string, jobs []*Job, posts []xsim.Post) {
	s.T.Helper()
	var wanted, found, laterWanted, laterFound []string
	byText := map[string]*Job{}
	for _, j := range jobs {
		byText[j.Text(0)] = j
		if j.At.IsZero() {
			wanted = append(wanted, j.Id)
		} else {
			laterWanted = append(laterWanted, j.Id)
		}
	}
	for len(posts) > 0 {
		j := byText[posts[0].Text]
		if j == nil || len(posts) < j.Posts {
			s.T.Errorf("X has %q of %s where a thread should begin, or it is not whole", posts[0].Text, account)
			return
		}
		parent := ""
		for i, post := range posts[:j.Posts] {
			if post.Text != j.Text(i) || post.InReplyTo != parent {
				s.T.Errorf("X has %q below %q, want %q below %q", post.Text, post.InReplyTo, j.Text(i), parent)
			}
			if known := s.Status(account, j.Id).Posts[i]; known.PostID != post.ID || known.State != jetpost.PostPosted {
				s.T.Errorf("the ledger has post %d of job %s as %+v, X as %s", i+1, j.Id, known, post.ID)
			}
			parent = post.ID
		}
		if j.At.IsZero() {
			found = append(found, j.Id)
		} else {
			laterFound = append(laterFound, j.Id)
			if posts[0].CreatedAt.Before(j.At) {
				s.T.Errorf("job %s of %s came %s before its time", j.Id, account, j.At.Sub(posts[0].CreatedAt))
			}
		}
		posts = posts[j.Posts:]
	}
	slices.Sort(laterWanted)
	slices.Sort(laterFound)
	if !slices.Equal(found, wanted) || !slices.Equal(laterFound, laterWanted) {
		s.T.Errorf("X has %v and later %v of %s, want %v and later %v", found, laterFound, account, wanted, laterWanted)
	}
}
