package e2e

import (
	"database/sql"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// look is what 'jetpost status' says, for programs.
func (s *site) look() (code int, status app.Status) {
	s.T.Helper()
	code, stdout, stderr := s.Run("status", "-o", "json")
	if err := json.Unmarshal([]byte(stdout), &status); err != nil {
		s.T.Fatalf("status: exit code %d, %v\n%s%s", code, err, stdout, stderr)
	}
	return code, status
}

// wantVerdict waits until the status has a cause, as the first one.
func (s *site) wantVerdict(state health.State, cause string) app.Status {
	s.T.Helper()
	var code int
	var status app.Status
	defer func() {
		if s.T.Failed() {
			s.T.Logf("the last status: %s, %s: %s", status.State, status.Code, status.Summary)
		}
	}()
	testkit.Eventually(s.T, "jetpost status to say "+string(state)+", "+cause, func() bool {
		code, status = s.look()
		return status.State == state && status.Code == cause
	})
	if wantCode := map[bool]int{true: exitOK, false: exitFailed}[state == health.Publishing]; code != wantCode {
		s.T.Errorf("status %s: exit code %d, want %d", state, code, wantCode)
	}
	if state != health.Publishing && status.Do == "" {
		s.T.Errorf("status %s says nothing to do: %s", state, status.Summary)
	}
	return status
}

// askWorker asks an address of a worker's, and its answer.
func askWorker(t *testing.T, address string, into any) (status int) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	testkit.Must(t, err)
	response, err := http.DefaultClient.Do(request)
	testkit.Must(t, err)
	body, err := io.ReadAll(response.Body)
	testkit.Must(t, err)
	testkit.Must(t, response.Body.Close())
	testkit.Must(t, json.Unmarshal(body, into))
	return response.StatusCode
}

// What is set and what moves are two things: each row looked well by the settings.
func TestStatusMeasuresProgress(t *testing.T) {
	t.Parallel()
	t.Run("no account", statusOfNoAccount)
	t.Run("frozen worker", statusOfFrozenWorker)
	t.Run("no job is accepted", statusOfStuckIntake)
	t.Run("schedule and pause of the refresh", statusOfRefresh)
}

func statusOfNoAccount(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: longLease, RefreshCron: never})
	w := s.Worker("worker")
	s.wantVerdict(health.NotPublishing, "no_account")
	harness.Stop(w)
}

func statusOfFrozenWorker(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: longLease, Accounts: []string{"alice"}, RefreshCron: never})
	w := s.Worker("worker-1")
	s.wantVerdict(health.Publishing, "")
	w.Signal(syscall.SIGSTOP)
	release := s.holdWriteLock() // as does a worker that is frozen in a change
	jobs := harness.MakeJobs(1, []string{"alice"}, harness.One)
	s.Publish(jobs)
	testkit.Eventually(t, "jetpost status to say that the worker fell silent", func() bool {
		code, status := s.look() // its first cause is no_writes
		return code == exitFailed && slices.ContainsFunc(status.Causes, func(c health.Cause) bool {
			return c.Code == "no_worker" && strings.HasPrefix(c.Reason, "no worker is alive: worker-1 fell silent ")
		})
	})
	code, stdout, stderr := s.Run("workers")
	if code != exitOK || !strings.Contains(stdout, "worker-1  silent for ") {
		t.Errorf("workers: exit code %d\n%s%s", code, stdout, stderr)
	}
	release()
	w.Signal(syscall.SIGCONT)
	s.AllPublished(1)
	s.wantVerdict(health.Publishing, "")
	code, stdout, stderr = s.Run("workers")
	if code != exitOK || !strings.Contains(stdout, "worker-1  alive  ") || !strings.Contains(stdout, "publish, refresh  0 of 16") {
		t.Errorf("workers: exit code %d\n%s%s", code, stdout, stderr)
	}
	harness.Stop(w)
	if code, stdout, stderr = s.Run("workers"); code != exitOK || strings.Contains(stdout, "worker-1") {
		t.Errorf("workers, where one has stopped: exit code %d\n%s%s", code, stdout, stderr)
	}
}

// holdWriteLock keeps everybody from writing to an SQLite file, until it is released.
func (s *site) holdWriteLock() (release func()) {
	s.T.Helper()
	db, err := sql.Open("sqlite", "file:"+strings.TrimPrefix(s.Cfg.DatabaseURL.Reveal(), "sqlite:")+"?_pragma=busy_timeout(10000)")
	testkit.Must(s.T, err)
	s.T.Cleanup(func() { testkit.Must(s.T, db.Close()) })
	conn, err := db.Conn(s.T.Context())
	testkit.Must(s.T, err)
	_, err = conn.ExecContext(s.T.Context(), "BEGIN IMMEDIATE")
	testkit.Must(s.T, err)
	return func() {
		_, err := conn.ExecContext(s.T.Context(), "ROLLBACK")
		testkit.Must(s.T, err)
		testkit.Must(s.T, conn.Close())
	}
}

func statusOfStuckIntake(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: longLease, Accounts: []string{"alice"}, RefreshCron: never})
	w := s.Worker("worker")
	for p := range jetpost.Partitions {
		_, err := s.Conn.JS.PauseConsumer(t.Context(), s.Conn.Names.JobsStream(), jetpost.ConsumerIntake(p), time.Now().Add(time.Hour))
		testkit.Must(t, err)
	}
	jobs := harness.MakeJobs(62, []string{"alice"}, harness.One)
	s.Publish(jobs)
	status := s.wantVerdict(health.NotPublishing, "intake_stuck")
	if want := "NOT PUBLISHING: the oldest of 62 jobs, of alice, is not accepted after "; !strings.HasPrefix(status.Summary, want) {
		t.Errorf("status is %q, want %q", status.Summary, want)
	}
	for p := range jetpost.Partitions {
		_, err := s.Conn.JS.ResumeConsumer(t.Context(), s.Conn.Names.JobsStream(), jetpost.ConsumerIntake(p))
		testkit.Must(t, err)
	}
	s.AllPublished(len(jobs))
	s.wantVerdict(health.Publishing, "")
	harness.Stop(w)
}

func statusOfRefresh(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: shortLease, Accounts: []string{"alice"}})
	msg := nats.NewMsg(s.Conn.Names.ScheduleRefresh())
	msg.Header.Set(jetstream.ScheduleHeader, never)
	msg.Header.Set(jetstream.ScheduleTargetHeader, s.Conn.Names.DueRefresh("tick"))
	msg.Header.Set(jetstream.ScheduleTTLHeader, "6h0m0s")
	_, err := s.Conn.JS.PublishMsg(t.Context(), msg)
	testkit.Must(t, err)
	_, status := s.look()
	if !slices.ContainsFunc(status.Causes, func(c health.Cause) bool { return c.Code == "schedule_differs" }) {
		t.Errorf("of a schedule that was replaced the status says %+v", status.Causes)
	}
	w := s.Worker("worker") // which puts it right
	s.wantVerdict(health.Publishing, "")
	_, _, err = s.Stops().Set(t.Context(), publishers.Pause{
		Target: publishers.TargetRefresh, Reason: jetpost.Reason{Code: jetpost.CodeAppMisconfigured, Detail: "why"}, Since: time.Now(),
	})
	testkit.Must(t, err)
	s.wantVerdict(health.Degraded, "refresh_paused")
	s.wantHelp([]string{"resume", "--app"}, "resume --app")
	s.wantVerdict(health.Publishing, "")
	harness.Stop(w)
}

// A bucket that is deleted while a worker runs takes no pause with it, and leaves the
// worker able to hear of the next; a resume that left the lanes paused is completed by
// the next one.
func TestPauseOutlivesItsBucket(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: shortLease, Accounts: []string{"alice"}, RefreshCron: never})
	s.wantHelp([]string{"pause", "--app", "--reason", "maintenance"}, "pause --app --reason maintenance")
	testkit.Must(t, s.Conn.JS.DeleteStream(t.Context(), "KV_"+s.Conn.Names.LimitsBucket()))
	s.wantHelp([]string{"setup", "--refresh-cron", never}, "setup --refresh-cron "+never)
	_, err := s.Conn.JS.ResumeConsumer(t.Context(), s.Conn.Names.LanesStream(), jetpost.ConsumerLanes)
	testkit.Must(t, err)
	w := s.Worker("worker")
	jobs := harness.MakeJobs(2, []string{"alice"}, harness.One)
	s.Publish(jobs)
	s.accepted(2)
	s.wantVerdict(health.Paused, "paused")
	testkit.Eventually(t, "the pause to be back", func() bool {
		_, there, err := publishers.NewAppPauses(s.Conn.JS, s.Conn.Names).Get(t.Context(), publishers.TargetPublish)
		return err == nil && there
	})
	if n := s.posts()["201"]; n != 0 {
		t.Errorf("%d posts beside a pause", n)
	}
	harness.Stop(w) // so that nobody mends what follows but the command
	kv, err := s.Conn.JS.KeyValue(t.Context(), s.Conn.Names.LimitsBucket())
	testkit.Must(t, err)
	code, stdout, stderr := s.Run("resume", "--app")
	if code != exitOK || !strings.Contains(stdout, "resumed publish, which was paused: paused_by_hand: maintenance") {
		t.Errorf("resume: exit code %d\n%s%s", code, stdout, stderr)
	}
	testkit.Must(t, kv.Delete(t.Context(), "pause.publish"))
	_, err = s.Conn.JS.PauseConsumer(t.Context(), s.Conn.Names.LanesStream(), jetpost.ConsumerLanes, time.Now().Add(100*365*24*time.Hour))
	testkit.Must(t, err)
	if code, stdout, stderr := s.Run("resume", "--app"); code != exitOK || !strings.Contains(stdout, "repaired: the pause of the consumer lanes: it is paused, and no app pause holds") {
		t.Errorf("resume, once more: exit code %d\n%s%s", code, stdout, stderr)
	}
	w = s.Worker("worker")
	s.AllPublished(len(jobs))
	s.WantCallLog(jobs)
	harness.Stop(w)
}

// A spend cap pauses the app, and makes no worker unready: what the whole installation
// does is told elsewhere.
func TestReadyBesidePause(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: longLease, Accounts: []string{"alice"}, RefreshCron: never})
	address := "http://" + testkit.ClosedAddress(t)
	w := s.Worker("worker", "--health-listen", strings.TrimPrefix(address, "http://"))
	var status app.Status
	testkit.Eventually(t, "the worker takes work", func() bool {
		return askWorker(t, address+"/statusz", &status) == http.StatusOK
	})
	if code := askWorker(t, address+"/statusz", &status); code != http.StatusOK || status.State != health.Publishing || !strings.HasPrefix(status.Installation, "NATS at ") {
		t.Errorf("/statusz: %d, %+v", code, status)
	}
	testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultStatus, Endpoint: xsim.EndpointCreatePost, Status: http.StatusForbidden, Variant: "spend-cap"}}))
	s.Publish(harness.MakeJobs(1, []string{"alice"}, harness.One))
	s.stopped()
	testkit.Eventually(t, "/statusz to tell", func() bool {
		return askWorker(t, address+"/statusz", &status) == http.StatusServiceUnavailable && status.State == health.NotPublishing && status.Code == "app_paused"
	})
	var ready map[string]string
	if code := askWorker(t, address+"/readyz", &ready); code != http.StatusOK || ready["status"] != "ready" {
		t.Errorf("/readyz: %d, %v", code, ready)
	}
	harness.Stop(w)
}

// Each change is posted once, whichever of two workers tells it.
func TestNotify(t *testing.T) {
	t.Parallel()
	notices := make(chan app.Notice, 100)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var n app.Notice
		if err := json.NewDecoder(r.Body).Decode(&n); err != nil || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("the webhook got %v, %v", r.Header, err)
		}
		notices <- n
	}))
	t.Cleanup(hook.Close)
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: longLease, Accounts: []string{"alice"}, RefreshCron: never})
	one, two := s.Worker("one", "--notify", hook.URL), s.Worker("two", "--notify", hook.URL)
	want := func(was, is health.State, text string) {
		t.Helper()
		select {
		case n := <-notices:
			if n.Was != was || n.State != is || !strings.HasPrefix(n.Text, text) || n.Installation == "" {
				t.Errorf("notice %+v, want one from %s to %s, %q", n, was, is, text)
			}
		case <-time.After(testkit.Patience):
			t.Fatalf("nobody tells of %s", is)
		}
	}
	s.wantHelp([]string{"pause", "--app", "--reason", "maintenance"}, "pause --app --reason maintenance")
	want(health.Publishing, health.Paused, "PAUSED: maintenance\ndo: ")
	s.wantHelp([]string{"resume", "--app"}, "resume --app")
	want(health.Paused, health.Publishing, "PUBLISHING\n")
	harness.Stop(one, two)
	select {
	case n := <-notices:
		t.Errorf("one more notice: %+v", n)
	default:
	}
}

// With two installations on a machine a command asks which one is meant.
func TestCommandNamesInstallation(t *testing.T) {
	t.Parallel()
	env := harness.Environment(t, map[string]string{"X_CLIENT_ID": "app"})
	args := []string{"--nats-listen", "127.0.0.1:0", "--log-format", "json"}
	realOne := harness.Start(t, "up", env, "jetpost", append([]string{"up"}, args...)...)
	realOne.Until("worker.started")
	home := ""
	for _, setting := range env {
		if dir, is := strings.CutPrefix(setting, "HOME="); is {
			home = dir
		}
	}
	dir := home + "/.local/share/jetpost"
	run := func(args ...string) (int, string, string) { return harness.RunCommand(t, env, "jetpost", args...) }
	if code, stdout, stderr := run("status"); code != exitFailed || !strings.Contains(stdout, "jetpost up on "+dir+", with X\n") {
		t.Errorf("status of the real one alone: exit code %d\n%s%s", code, stdout, stderr)
	}
	simulated := harness.Start(t, "up --sim", env, "jetpost", append([]string{"up", "--sim", "--sim-listen", "127.0.0.1:0"}, args...)...)
	simulated.Until("worker.started")
	for _, command := range [][]string{{"status"}, {"publish", "alice", "hello"}, {"pause", "--app"}, {"workers"}} {
		code, stdout, stderr := run(command...)
		if code != exitUsage || !strings.Contains(stderr, "several run on this machine: jetpost up on "+dir+", with X; jetpost up on "+dir+"-sim, with a simulated X") ||
			!strings.Contains(stderr, "do: say which one with --data "+dir+" or --data "+dir+"-sim") {
			t.Errorf("%v: exit code %d\n%s%s", command, code, stdout, stderr)
		}
	}
	if code, stdout, stderr := run("publish", "alice", "hello", "--wait", "--data", dir+"-sim"); code != exitOK {
		t.Errorf("publish to the one that is named: exit code %d\n%s%s", code, stdout, stderr)
	}
	if code, stdout, stderr := run("status", "--data", dir); code != exitFailed || !strings.HasPrefix(stdout, "NOT PUBLISHING: no account is connected\n") {
		t.Errorf("status of the real one: exit code %d\n%s%s", code, stdout, stderr)
	}
	harness.Stop(realOne, simulated)
}
