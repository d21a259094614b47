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
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

var updateStatus = flag.Bool("update-status", false, "rewrite testdata/status")

// never is a refresh cron that no test meets: a round is a line of the status.
const never = "0 0 0 29 2 *"

// sqliteURL is a database for a test whose workers are on one machine anyway.
func sqliteURL(t *testing.T) string {
	t.Helper()
	return "sqlite:" + filepath.Join(t.TempDir(), "jetpost.db")
}

// wantStopped has 'jetpost status' say, word by word, what
// testdata/status/NAME.txt has, and returns the command that it advises.
func (s *site) wantStopped(name string) (advice []string) {
	s.t.Helper()
	var code int
	var stdout, stderr string
	eventually(s.t, "jetpost status to say that nothing goes out", func() bool {
		code, stdout, stderr = runCommand(s.t, append(s.settings(), "TZ=UTC"), "jetpost", "status")
		return code != exitOK
	})
	if code != exitFailed || strings.Contains(stdout, "PUBLISHING\n") {
		s.t.Errorf("exit code %d, want %d and no word of PUBLISHING\n%s%s", code, exitFailed, stdout, stderr)
	}
	got, path := s.normal(stdout), filepath.Join("testdata", "status", name+".txt")
	if *updateStatus {
		must(s.t, os.WriteFile(path, []byte(got), 0o600))
	}
	want, err := os.ReadFile(path)
	must(s.t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		s.t.Errorf("jetpost status is not what %s has; rewrite it with -update-status\n(-want +got):\n%s", path, diff)
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
	if u, err := url.Parse(s.cfg.X.URL); err == nil {
		text = strings.ReplaceAll(text, u.Host, "X")
	}
	if u, err := url.Parse(s.cfg.NATS.URL); err == nil {
		text = strings.ReplaceAll(text, u.Host, "NATS")
	}
	database := s.cfg.DatabaseURL.Reveal()
	if path, isFile := strings.CutPrefix(database, "sqlite:"); isFile {
		text = strings.ReplaceAll(text, filepath.Dir(path), "DIR")
	} else if u, err := url.Parse(database); err == nil {
		text = strings.ReplaceAll(text, u.Query().Get("host"), "DIR")
	}
	return text
}

// wantPublishing has 'jetpost status' say that posts go out.
func (s *site) wantPublishing() {
	s.t.Helper()
	if code, stdout, stderr := s.run("status"); code != exitOK || !strings.HasPrefix(stdout, "PUBLISHING\n") {
		s.t.Errorf("status: exit code %d, want 0 and PUBLISHING\n%s%s", code, stdout, stderr)
	}
}

// wantHelp runs a command that the status advises.
func (s *site) wantHelp(advice []string, want string) {
	s.t.Helper()
	if got := strings.Join(advice, " "); got != want {
		s.t.Fatalf("the status advises %q, want %q", got, want)
	}
	if code, stdout, stderr := s.run(advice...); code != exitOK {
		s.t.Fatalf("%s: exit code %d\n%s%s", want, code, stdout, stderr)
	}
}

// held waits until a request is held for a reason.
func (s *site) held(j *job, code jetpost.Code) {
	s.t.Helper()
	eventually(s.t, "job "+j.id+" to be held: "+string(code), func() bool {
		record, err := s.ledger.Request(s.t.Context(), store.Key{Account: j.account, ID: j.id})
		return err == nil && record.Status.Reason != nil && record.Status.Reason.Code == code
	})
}

// accepted waits until every job is in the ledger, and none is in NATS alone.
func (s *site) accepted(n int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("%d accepted jobs", n), func() bool {
		total := 0
		for _, count := range s.counts() {
			total += count
		}
		jobs, err := s.conn.JS.Stream(s.t.Context(), s.conn.Names.JobsStream())
		return err == nil && total == n && jobs.CachedInfo().State.Msgs == 0
	})
}

// Each answer of X that stops the whole app is told in X's own words, with a
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
			s := newSite(t, siteConfig{database: sqliteURL(t), lease: longLease, accounts: []string{"alice"}, refreshCron: never})
			fault.Kind, fault.Endpoint = xsim.FaultStatus, xsim.EndpointCreatePost
			must(t, s.sim.SetFaults([]xsim.Fault{fault}))
			w := s.worker("worker")
			jobs := []*job{{account: "alice", id: "first", posts: 1}, {account: "alice", id: "second", posts: 2}}
			s.publish(jobs)
			s.accepted(len(jobs))
			s.held(jobs[0], jetpost.CodeAppPaused)
			advice := s.wantStopped(name)
			must(t, s.sim.SetFaults(nil))
			s.wantHelp(advice, "resume --app")
			s.allPublished(len(jobs))
			s.wantCallLog(jobs)
			s.wantPublishing()
			stop(w)
		})
	}
}

// Nobody listens where X was, for as many calls as open the breaker.
func TestStatusOfOutage(t *testing.T) {
	t.Parallel()
	accounts := accountNames(5)
	// Half a lease is how long X is left alone: time to look.
	s := newSite(t, siteConfig{database: sqliteURL(t), lease: 12 * time.Second, accounts: accounts, refreshCron: never})
	w := s.worker("worker")
	s.x.Close()
	jobs := makeJobs(len(accounts), accounts, one)
	s.publish(deal(jobs, len(jobs))...)
	eventually(t, "every account to be held", func() bool { return s.counts()[jetpost.StateHeld] == len(jobs) })
	s.wantStopped("outage")
	s.xBack()
	s.allPublished(len(jobs))
	s.wantCallLog(jobs)
	s.wantPublishing()
	stop(w)
}

func TestStatusWithoutNATS(t *testing.T) {
	t.Parallel()
	dir, address := t.TempDir(), closedAddress(t)
	server := startNATS(t, dir, address)
	s := newSite(t, siteConfig{nats: "nats://" + address, database: sqliteURL(t), lease: longLease, accounts: []string{"alice"}, refreshCron: never})
	w := s.worker("worker")
	jobs := makeJobs(2, []string{"alice"}, one)
	s.publish(jobs[:1])
	s.allPublished(1)
	server.kill()
	s.wantStopped("nats-down")
	startNATS(t, dir, address)
	s.publish(jobs[1:])
	s.allPublished(2)
	s.wantCallLog(jobs)
	s.wantPublishing()
	stop(w)
}

func TestStatusWithoutDatabase(t *testing.T) {
	t.Parallel()
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		cluster := pgtest.Start(t)
		s := newSite(t, siteConfig{database: cluster.URL(), lease: longLease, accounts: []string{"alice"}, refreshCron: never})
		w := s.worker("worker")
		cluster.Stop(t)
		jobs := makeJobs(1, []string{"alice"}, one)
		s.publish(jobs) // which waits in NATS
		s.wantStopped("database-down")
		cluster.Restart(t)
		s.allPublished(1)
		s.wantCallLog(jobs)
		s.wantPublishing()
		stop(w)
	})
	t.Run("file", func(t *testing.T) {
		t.Parallel()
		database := sqliteURL(t)
		s := newSite(t, siteConfig{database: database, lease: longLease, accounts: []string{"alice"}, refreshCron: never})
		dir := filepath.Dir(strings.TrimPrefix(database, "sqlite:"))
		must(t, os.Rename(dir, dir+"-away"))
		s.wantStopped("database-gone")
		must(t, os.Rename(dir+"-away", dir))
		w := s.worker("worker")
		s.wantPublishing()
		stop(w)
	})
}

func TestStatusWithoutWorker(t *testing.T) {
	t.Parallel()
	for name, killed := range map[string]bool{"no-worker": false, "worker-killed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, siteConfig{database: sqliteURL(t), lease: shortLease, accounts: []string{"alice"}, refreshCron: never})
			jobs := makeJobs(1, []string{"alice"}, one)
			if killed {
				// It leaves a wake-up that nobody acknowledges.
				w := s.worker("worker-1")
				accepted := make(chan struct{})
				reached := s.atCall("POST", postPath, 1, true, func() {
					select {
					case <-accepted: // the post may be on its way before the job is acknowledged
					case <-t.Context().Done():
					}
					w.signal(syscall.SIGKILL)
				})
				s.publish(jobs)
				s.accepted(1)
				close(accepted)
				wait(t, "a post to kill the worker at", reached)
				w.exit()
			} else {
				s.publish(jobs)
			}
			if advice := s.wantStopped(name); strings.Join(advice, " ") != "worker" {
				t.Fatalf("the status advises %q", advice)
			}
			w := s.worker("worker-2")
			s.allPublished(1)
			s.wantCallLog(jobs)
			s.wantPublishing()
			stop(w)
		})
	}
}

// Everybody has taken back what was allowed to the app.
func TestStatusOfLostGrants(t *testing.T) {
	t.Parallel()
	accounts := []string{"alice", "bob"}
	s := newSite(t, siteConfig{database: sqliteURL(t), lease: longLease, accounts: accounts, refreshCron: never})
	w := s.worker("worker")
	jobs := makeJobs(2, accounts, one)
	for i, name := range accounts {
		if i == len(accounts)-1 {
			s.wantPublishing() // since one account is left
		}
		s.sim.RevokeConsent(name)
		s.force(name)
		s.publish(jobs[i : i+1])
		s.held(jobs[i], jetpost.CodeAccountReauthRequired)
	}
	advice := s.wantStopped("reauth")
	if got := strings.Join(advice, " "); got != "accounts connect" {
		t.Fatalf("the status advises %q", got)
	}
	for _, name := range accounts {
		c := s.connect(t, s.settings(), name)
		c.follow("&user=" + name)
		if code, stdout, stderr := c.exit(); code != exitOK {
			t.Fatalf("connect: exit code %d\n%s%s", code, stdout, stderr)
		}
	}
	s.allPublished(2)
	s.wantPublishing()
	s.wantCallLog(jobs)
	stop(w)
}
