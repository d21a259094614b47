package e2e

import (
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

var updateStatus = flag.Bool("update-status", false, "rewrite testdata/status")

// never, of which no round is a line of the status.
const never = harness.Never

// sqliteURL is a database for a test whose workers are on one machine anyway.
func sqliteURL(t *testing.T) string {
	t.Helper()
	return "sqlite:" + filepath.Join(t.TempDir(), "jetpost.db")
}

// wantStopped has 'jetpost status' say, word by word, what
// testdata/status/NAME.txt has, and returns the command that it advises.
func (s *site) wantStopped(name string) (advice []string) {
	s.T.Helper()
	var code int
	var stdout, stderr string
	testkit.Eventually(s.T, "jetpost status to say that nothing goes out", func() bool {
		code, stdout, stderr = harness.RunCommand(s.T, append(s.Settings(), "TZ=UTC"), "jetpost", "status")
		return code != exitOK
	})
	if code != exitFailed || strings.Contains(stdout, "PUBLISHING\n") {
		s.T.Errorf("exit code %d, want %d and no word of PUBLISHING\n%s%s", code, exitFailed, stdout, stderr)
	}
	got, path := s.normal(stdout), filepath.Join("testdata", "status", name+".txt")
	if *updateStatus {
		testkit.Must(s.T, os.WriteFile(path, []byte(got), 0o600))
	}
	want, err := os.ReadFile(path)
	testkit.Must(s.T, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		s.T.Errorf("jetpost status is not what %s has; rewrite it with -update-status\n(-want +got):\n%s", path, diff)
	}
	command := regexp.MustCompile(`\n  do: .*?jetpost ((?:[a-z-]+ ?)+)`).FindStringSubmatch(stdout)
	if command == nil {
		return nil
	}
	return strings.Fields(command[1])
}

// normal replaces what is different each time.
func (s *site) normal(text string) string {
	text = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)`).ReplaceAllStringFunc(text, func(found string) string {
		at, err := time.Parse(time.RFC3339, found)
		if err != nil || time.Until(at).Abs() > 24*time.Hour {
			return found // X's own date
		}
		return "TIME"
	})
	if u, err := url.Parse(s.Cfg.X.URL); err == nil {
		text = strings.ReplaceAll(text, u.Host, "X")
	}
	if u, err := url.Parse(s.Cfg.NATS.URL); err == nil {
		text = strings.ReplaceAll(text, u.Host, "NATS")
	}
	database := s.Cfg.DatabaseURL.Reveal()
	if path, isFile := strings.CutPrefix(database, "sqlite:"); isFile {
		text = strings.ReplaceAll(text, filepath.Dir(path), "DIR")
	} else if u, err := url.Parse(database); err == nil {
		text = strings.ReplaceAll(text, u.Query().Get("host"), "DIR")
	}
	return text
}

// wantPublishing waits for 'jetpost status' to say that posts go out. It tells of a fault
// that is over until the worker's next heartbeat.
func (s *site) wantPublishing() {
	s.T.Helper()
	var said string
	defer func() {
		if s.T.Failed() {
			s.T.Log(said)
		}
	}()
	testkit.Eventually(s.T, "the status to be PUBLISHING with exit code 0", func() bool {
		code, stdout, stderr := s.Run("status")
		said = fmt.Sprintf("status: exit code %d\n%s%s", code, stdout, stderr)
		return code == exitOK && strings.HasPrefix(stdout, "PUBLISHING\n")
	})
}

// wantHelp runs a command that the status advises.
func (s *site) wantHelp(advice []string, want string) {
	s.T.Helper()
	if got := strings.Join(advice, " "); got != want {
		s.T.Fatalf("the status advises %q, want %q", got, want)
	}
	if code, stdout, stderr := s.Run(advice...); code != exitOK {
		s.T.Fatalf("%s: exit code %d\n%s%s", want, code, stdout, stderr)
	}
}

// held waits until a request is held for a reason.
func (s *site) held(j *harness.Job, code jetpost.Code) {
	s.T.Helper()
	testkit.Eventually(s.T, "job "+j.Id+" to be held: "+string(code), func() bool {
		record, err := s.Ledger.Request(s.T.Context(), store.Key{Account: j.Account, ID: j.Id})
		return err == nil && record.Status.Reason != nil && record.Status.Reason.Code == code
	})
}

// accepted waits until every job is in the ledger, and none is in NATS alone.
func (s *site) accepted(n int) {
	s.T.Helper()
	testkit.Eventually(s.T, fmt.Sprintf("%d accepted jobs", n), func() bool {
		total := 0
		for _, count := range s.Counts() {
			total += count
		}
		jobs, err := s.Conn.JS.Stream(s.T.Context(), s.Conn.Names.JobsStream())
		return err == nil && total == n && jobs.CachedInfo().State.Msgs == 0
	})
}

// Each answer of X that pauses the whole app is told in X's own words, with a
// command that lets what waited go out once its cause is gone.
func TestStatusOfAppPauses(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]xsim.Fault{
		"credits":             {Status: http.StatusPaymentRequired},
		"credits-legacy":      {Status: http.StatusPaymentRequired, Variant: "legacy"},
		"spend-cap":           {Status: http.StatusForbidden, Variant: "spend-cap"},
		"client-not-enrolled": {Status: http.StatusForbidden, Variant: "client-not-enrolled"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: longLease, Accounts: []string{"alice"}, RefreshCron: never})
			fault.Kind, fault.Endpoint = xsim.FaultStatus, xsim.EndpointCreatePost
			testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{fault}))
			w := s.Worker("worker")
			jobs := []*harness.Job{{Account: "alice", Id: "first", Posts: 1}, {Account: "alice", Id: "second", Posts: 2}}
			s.Publish(jobs)
			s.accepted(len(jobs))
			s.held(jobs[0], jetpost.CodeAppPaused)
			advice := s.wantStopped(name)
			testkit.Must(t, s.Sim.SetFaults(nil))
			s.wantHelp(advice, "resume --app")
			s.AllPublished(len(jobs))
			s.WantCallLog(jobs)
			s.wantPublishing()
			harness.Stop(w)
		})
	}
}

// Nobody listens where X was, for as many calls as open the breaker.
func TestStatusOfOutage(t *testing.T) {
	t.Parallel()
	accounts := harness.AccountNames(5)
	// Half a lease is how long X is left alone: time to look.
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: 12 * time.Second, Accounts: accounts, RefreshCron: never})
	w := s.Worker("worker")
	s.X.Close()
	jobs := harness.MakeJobs(len(accounts), accounts, harness.One)
	s.Publish(harness.Deal(jobs, len(jobs))...)
	testkit.Eventually(t, "every account to be held", func() bool { return s.Counts()[jetpost.StateHeld] == len(jobs) })
	s.wantStopped("outage")
	s.XBack()
	s.AllPublished(len(jobs))
	s.WantCallLog(jobs)
	s.wantPublishing()
	harness.Stop(w)
}

func TestStatusWithoutNATS(t *testing.T) {
	t.Parallel()
	dir, address := t.TempDir(), testkit.ClosedAddress(t)
	server := harness.StartNATS(t, dir, address)
	s := newSite(t, harness.SiteConfig{NATS: "nats://" + address, Database: sqliteURL(t), Lease: longLease, Accounts: []string{"alice"}, RefreshCron: never})
	w := s.Worker("worker")
	jobs := harness.MakeJobs(2, []string{"alice"}, harness.One)
	s.Publish(jobs[:1])
	s.AllPublished(1)
	server.Kill()
	s.wantStopped("nats-down")
	harness.StartNATS(t, dir, address)
	s.Publish(jobs[1:])
	s.AllPublished(2)
	s.WantCallLog(jobs)
	s.wantPublishing()
	harness.Stop(w)
}

func TestStatusWithoutDatabase(t *testing.T) {
	t.Parallel()
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		cluster := pgtest.Start(t)
		s := newSite(t, harness.SiteConfig{Database: cluster.URL(), Lease: longLease, Accounts: []string{"alice"}, RefreshCron: never})
		w := s.Worker("worker")
		cluster.Stop(t)
		jobs := harness.MakeJobs(1, []string{"alice"}, harness.One)
		s.Publish(jobs) // which waits in NATS
		s.wantStopped("database-down")
		cluster.Restart(t)
		s.AllPublished(1)
		s.WantCallLog(jobs)
		s.wantPublishing()
		harness.Stop(w)
	})
	t.Run("file", func(t *testing.T) {
		t.Parallel()
		database := sqliteURL(t)
		s := newSite(t, harness.SiteConfig{Database: database, Lease: longLease, Accounts: []string{"alice"}, RefreshCron: never})
		dir := filepath.Dir(strings.TrimPrefix(database, "sqlite:"))
		testkit.Must(t, os.Rename(dir, dir+"-away"))
		s.wantStopped("database-gone")
		testkit.Must(t, os.Rename(dir+"-away", dir))
		w := s.Worker("worker")
		s.wantPublishing()
		harness.Stop(w)
	})
}

func TestStatusWithoutWorker(t *testing.T) {
	t.Parallel()
	for name, killed := range map[string]bool{"no-worker": false, "worker-killed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: shortLease, Accounts: []string{"alice"}, RefreshCron: never})
			jobs := harness.MakeJobs(1, []string{"alice"}, harness.One)
			if killed {
				// It leaves a wake-up that nobody acknowledges.
				w := s.Worker("worker-1")
				accepted := make(chan struct{})
				reached := s.AtCall("POST", harness.PostPath, 1, true, func() {
					select {
					case <-accepted: // the post may be on its way before the job is acknowledged
					case <-t.Context().Done():
					}
					w.Signal(syscall.SIGKILL)
				})
				s.Publish(jobs)
				s.accepted(1)
				close(accepted)
				testkit.Wait(t, "a post to kill the worker at", reached)
				w.Exit()
			} else {
				s.Publish(jobs)
			}
			if advice := s.wantStopped(name); strings.Join(advice, " ") != "worker" {
				t.Fatalf("the status advises %q", advice)
			}
			w := s.Worker("worker-2")
			s.AllPublished(1)
			s.WantCallLog(jobs)
			s.wantPublishing()
			harness.Stop(w)
		})
	}
}

// Everybody has taken back what was allowed to the app.
func TestStatusOfLostGrants(t *testing.T) {
	t.Parallel()
	accounts := []string{"alice", "bob"}
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: longLease, Accounts: accounts, RefreshCron: never})
	w := s.Worker("worker")
	jobs := harness.MakeJobs(2, accounts, harness.One)
	for i, name := range accounts {
		if i == len(accounts)-1 {
			s.wantPublishing() // since one account is left
		}
		s.Sim.RevokeConsent(name)
		s.force(name)
		s.Publish(jobs[i : i+1])
		s.held(jobs[i], jetpost.CodeAccountReauthRequired)
	}
	advice := s.wantStopped("reauth")
	if got := strings.Join(advice, " "); got != "accounts connect" {
		t.Fatalf("the status advises %q", got)
	}
	for _, name := range accounts {
		c := s.connect(t, s.Settings(), name)
		c.follow("&user=" + name)
		if code, stdout, stderr := c.exit(); code != exitOK {
			t.Fatalf("connect: exit code %d\n%s%s", code, stdout, stderr)
		}
	}
	s.AllPublished(2)
	s.wantPublishing()
	s.WantCallLog(jobs)
	harness.Stop(w)
}
