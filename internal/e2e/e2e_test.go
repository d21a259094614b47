package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// Leases of the sites. A short one is for tests that wait for a worker to be
// given up; all timeouts of the publish path shrink with it.
const (
	longLease  = 8 * time.Second
	shortLease = 2 * time.Second
)

func TestTwoWorkersShareAccounts(t *testing.T) {
	t.Parallel()
	for name, deleteSchedule := range map[string]bool{"everything in place": false, "schedule stream deleted": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			accounts := harness.AccountNames(20)
			s := newSite(t, harness.SiteConfig{Lease: longLease, Accounts: accounts})
			s.Slow(5 * time.Millisecond)
			workers := []*harness.Process{s.Worker("worker-1"), s.Worker("worker-2")}
			jobs := harness.MakeJobs(200, accounts, func(i int) int { return 1 + i%11/10 }) // a few threads of two
			if deleteSchedule {
				for _, j := range jobs[160:] { // two for each account
					j.At = time.Now().Add(3 * time.Second)
				}
			}
			s.Publish(harness.Deal(jobs, 7)...)
			if deleteSchedule {
				testkit.Eventually(t, "the middle", func() bool { return s.Counts()[jetpost.StatePublished] >= len(jobs)/4 })
				testkit.Must(t, s.Conn.JS.DeleteStream(t.Context(), s.Conn.Names.ScheduleStream()))
			}
			s.AllPublished(len(jobs))
			s.WantCallLog(jobs)
			for _, w := range workers {
				mine := w.Entries("post.published")
				t.Logf("%s sent %d posts", w.Name, len(mine))
				if len(mine) == 0 || mine[0]["worker"] != w.Name {
					t.Errorf("%s sent %d posts; want some, under its name", w.Name, len(mine))
				}
			}
			harness.Stop(workers...)
		})
	}
}

// The ledger is the queue: without the stream of all wake-ups everything is
// merely a little late.
func TestScheduleStreamDeleted(t *testing.T) {
	t.Parallel()
	const window = 6 * time.Second // of X's limit: three posts an account
	accounts := harness.AccountNames(8)
	s := newSite(t, harness.SiteConfig{Lease: longLease, Accounts: append(accounts, "fresh")})
	testkit.Must(t, s.Sim.SetLimits([]xsim.Limit{
		{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 3, WindowMS: window.Milliseconds()},
	}))
	jobs := harness.MakeJobs(48, accounts, harness.One)
	for _, j := range jobs[40:] { // one for each account
		j.At = time.Now().Add(window)
	}
	s.Publish(harness.Deal(jobs, 5)...)
	// One worker uses the windows up: it alone knows when they are closed, and
	// holds each line in the ledger, where all see it.
	workers := []*harness.Process{s.Worker("worker-1")}
	testkit.Eventually(t, "every account to wait for its limit", func() bool { return s.Counts()[jetpost.StateHeld] == len(accounts) })
	workers = append(workers, s.Worker("worker-2"))
	testkit.Must(t, s.Conn.JS.DeleteStream(t.Context(), s.Conn.Names.ScheduleStream()))
	s.AllPublished(len(jobs))
	s.WantCallLog(jobs)

	code, stdout, stderr := s.Run("setup")
	if code != exitOK || !strings.Contains(stdout, "created    stream "+s.Conn.Names.ScheduleStream()) {
		t.Fatalf("setup: exit code %d\n%s%s", code, stdout, stderr)
	}
	// A new worker finds everything in place again.
	workers = append(workers, s.Worker("worker-3"))
	later := &harness.Job{Account: "fresh", Id: "after", Posts: 1, At: time.Now().Add(time.Second)}
	s.Publish([]*harness.Job{later})
	jobs = append(jobs, later)
	s.AllPublished(len(jobs))
	s.WantCallLog(jobs)
	harness.Stop(workers...)
}

func TestWorkerKilledMidThread(t *testing.T) {
	t.Parallel()
	t.Run("at random", func(t *testing.T) {
		t.Parallel()
		strikeAtRandom(t)
	})
	t.Run("between two posts", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, harness.SiteConfig{Lease: shortLease, Accounts: []string{"alice"}})
		progress := s.progress("alice", "thread")
		// The picture of the third post takes X longer than the worker lives.
		testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultLatency, Endpoint: xsim.EndpointUpload, Times: 1, DelayMS: 3000}}))
		w := s.Worker("worker-1")
		thread := &harness.Job{Account: "alice", Id: "thread", Posts: 5, Picture: 3}
		s.Publish([]*harness.Job{thread})
		progress(2)
		w.Kill()
		if live := len(s.Live(thread)); live != 2 {
			t.Fatalf("X has %d posts as the worker dies, want 2", live)
		}
		w = s.Worker("worker-2")
		s.AllPublished(1)
		s.WantCallLog([]*harness.Job{thread})
		harness.Stop(w)
	})
}

// progress subscribes to what happens to a request; the function it returns
// waits until so many posts are told to be live.
func (s *site) progress(account, id string) func(posted int) {
	s.T.Helper()
	events, err := s.Conn.Conn.SubscribeSync(s.Conn.Names.EventSubject(jetpost.EventRequestProgress, account, id))
	testkit.Must(s.T, err)
	return func(posted int) {
		s.T.Helper()
		ctx, cancel := context.WithTimeout(s.T.Context(), testkit.Patience)
		defer cancel()
		for {
			msg, err := events.NextMsgWithContext(ctx)
			testkit.Must(s.T, err)
			var event jetpost.Event
			testkit.Must(s.T, json.Unmarshal(msg.Data, &event))
			if event.Request.Posted >= posted {
				return
			}
		}
	}
}

// strikeAtRandom kills or freezes one of two workers again and again, each time
// as a random call to X arrives or is about to be answered.
func strikeAtRandom(t *testing.T) {
	t.Helper()
	const rounds = 4
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	accounts := harness.AccountNames(12)
	s := newSite(t, harness.SiteConfig{Lease: shortLease, Accounts: accounts})
	s.Slow(10 * time.Millisecond)
	// A thread for each account and, behind it, a single post.
	jobs := harness.MakeJobs(24, accounts, func(i int) int { return 4 - i/12*3 })
	workers := []*harness.Process{s.Worker("worker-1"), s.Worker("worker-2")}
	var frozen []*harness.Process
	for round := range rounds {
		victim, how := random.IntN(len(workers)), []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP}[random.IntN(2)]
		nth, made := 1+random.IntN(6), random.IntN(2) == 0
		t.Logf("round %d: %s to %s at call %d, made %t", round, how, workers[victim].Name, nth, made)
		reached := s.AtCall("POST", harness.PostPath, nth, made, func() { workers[victim].Signal(how) })
		s.Publish(jobs[3*round : 3*round+3])
		testkit.Wait(t, "a call to strike at", reached)
		if how == syscall.SIGKILL {
			workers[victim].Exit()
		} else {
			frozen = append(frozen, workers[victim])
		}
		workers[victim] = s.Worker(fmt.Sprintf("worker-%d", 3+round))
	}
	s.Publish(byAccount(jobs[3*rounds:])...)
	for _, w := range frozen {
		w.Signal(syscall.SIGCONT)
	}
	s.AllPublished(len(jobs)) // every doubt settles itself
	harness.Stop(append(workers, frozen...)...)
	s.WantCallLog(jobs)
}

// A frozen worker is the hardest case: it wakes up after everything was given
// to another, and goes on where it was.
func TestWorkerFrozen(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		path string // of the call in which the worker freezes
		made bool   // whether X has done what it asks
		// doubt tells that the second post may be live, and that the ledger cannot know.
		doubt bool
	}{
		{name: "after a post", path: harness.PostPath, made: true, doubt: true},
		{name: "before a post", path: harness.PostPath, doubt: true},
		{name: "in an upload", path: harness.UploadPath},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, harness.SiteConfig{Lease: shortLease, Accounts: []string{"alice"}})
			frozen := s.Worker("worker-1")
			nth, picture := 1, 1 // before anything is sent
			if test.path == harness.PostPath {
				nth, picture = 2, 2
			}
			reached := s.AtCall("POST", test.path, nth, test.made, func() { frozen.Signal(syscall.SIGSTOP) })
			thread := &harness.Job{Account: "alice", Id: "thread", Posts: 3, Picture: picture}
			s.Publish([]*harness.Job{thread})
			testkit.Wait(t, "the call to freeze in", reached)

			other := s.Worker("worker-2")
			inDoubt := func() bool {
				status := s.Status("alice", "thread")
				held := status.Reason != nil && status.Reason.Code == jetpost.CodeReconciling
				return held || len(other.Entries("post.found")) > 0 || slices.ContainsFunc(other.Entries("request.settled"), func(e map[string]any) bool {
					return e["code"] == string(jetpost.CodeReconciling) // which may be over by now
				})
			}
			testkit.Eventually(t, "worker-2 to take over", func() bool {
				return inDoubt() || s.Status("alice", "thread").State == jetpost.StatePublished
			})
			if inDoubt() != test.doubt {
				t.Errorf("in doubt while its worker is frozen: %t, want %t", inDoubt(), test.doubt)
			}
			frozen.Signal(syscall.SIGCONT)
			// What it has begun before it stops, it finishes.
			harness.Stop(frozen)
			s.AllPublished(1)
			s.WantCallLog([]*harness.Job{thread})
			harness.Stop(other)
		})
	}
}

func TestReplay(t *testing.T) {
	t.Parallel()
	const words = "You are not permitted to perform this action today."
	s := newSite(t, harness.SiteConfig{Lease: longLease, Accounts: []string{"alice"}})
	thread := &harness.Job{Account: "alice", Id: "thread", Posts: 5}
	testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultRefuseText, Text: thread.Text(2), Detail: words}}))
	w := s.Worker("worker-1")
	s.Publish([]*harness.Job{thread})
	testkit.Eventually(t, "the request to fail", func() bool { return s.Counts()[jetpost.StateFailed] == 1 })
	status := s.Status("alice", "thread")
	if status.Posted != 2 || status.Reason.Code != jetpost.CodeRefusedByX || !strings.Contains(status.Reason.Detail, words) {
		t.Errorf("failed with %d posted, reason %+v; want 2, refused with X's own words", status.Posted, status.Reason)
	}
	if live := len(s.Live(thread)); live != 2 {
		t.Errorf("X has %d posts, want 2", live)
	}

	testkit.Must(t, s.Sim.SetFaults(nil))
	for round, want := range []string{"3 of 5 posts left", "is published"} {
		code, stdout, stderr := s.Run("replay", "thread")
		if code != exitOK || !strings.Contains(stdout, want) {
			t.Errorf("replay %d: exit code %d, want 0 and %q\n%s%s", round+1, code, want, stdout, stderr)
		}
		s.AllPublished(1)
	}
	harness.Stop(w) // so that nothing of the second replay is still to come
	s.WantCallLog([]*harness.Job{thread})
	if sent := s.Sim.Counts()[xsim.EndpointCreatePost]; sent["201"] != 5 || sent["403"] != 1 {
		t.Errorf("calls to post by status: %v, want 5 of 201 and one of 403", sent)
	}
}

func TestGracefulStop(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Lease: longLease, Accounts: []string{"alice", "bob"}})
	w := s.Worker("worker-1")
	// The second post is on its way when the worker is asked to stop.
	testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultLatency, Endpoint: xsim.EndpointCreatePost, Skip: 1, Times: 1, DelayMS: 500}}))
	reached := s.AtCall("POST", harness.PostPath, 2, false, func() { w.Signal(syscall.SIGTERM) })
	thread := &harness.Job{Account: "alice", Id: "thread", Posts: 4}
	s.Publish([]*harness.Job{thread})
	testkit.Wait(t, "the second post", reached)
	after := &harness.Job{Account: "bob", Id: "after", Posts: 1}
	s.Publish([]*harness.Job{after})
	if code := w.Exit(); code != exitOK {
		t.Errorf("the worker ended with code %d, want 0", code)
	}
	status := s.Status("alice", "thread")
	if live := len(s.Live(thread)); live != 2 || status.Posted != 2 || status.Posts[2].State != jetpost.PostPending {
		t.Errorf("X has %d posts, the ledger %+v; want the call in flight recorded, and nothing else begun", live, status)
	}
	w = s.Worker("worker-2")
	s.AllPublished(2)
	s.WantCallLog([]*harness.Job{thread, after})
	harness.Stop(w)
}

func TestNATSRestart(t *testing.T) {
	t.Parallel()
	dir, address := t.TempDir(), testkit.ClosedAddress(t)
	server := harness.StartNATS(t, dir, address)
	accounts := harness.AccountNames(5)
	s := newSite(t, harness.SiteConfig{NATS: "nats://" + address, Lease: longLease, Accounts: accounts})
	s.Slow(10 * time.Millisecond)
	workers := []*harness.Process{s.Worker("worker-1"), s.Worker("worker-2")}
	s.hurry(s.Conn.Names.JobsStream())
	jobs := harness.MakeJobs(60, accounts, harness.One)
	reached := s.AtCall("POST", harness.PostPath, 15, true, func() { server.Signal(syscall.SIGKILL) })
	published := make(chan struct{})
	go func() {
		defer close(published)
		s.Publish(byAccount(jobs)...)
	}()
	testkit.Wait(t, "a post to kill NATS at", reached)
	server.Exit()
	harness.StartNATS(t, dir, address)
	testkit.Wait(t, "all jobs to be stored", published)
	s.AllPublished(len(jobs))
	s.WantCallLog(jobs)
	harness.Stop(workers...)
}

// hurry has the server give up a delivery that it lost with its own memory
// after seconds instead of half a minute.
func (s *site) hurry(stream string) {
	s.T.Helper()
	ctx := s.T.Context()
	found, err := s.Conn.JS.Stream(ctx, stream)
	testkit.Must(s.T, err)
	for info := range found.ListConsumers(ctx).Info() {
		info.Config.AckWait = 3 * time.Second
		_, err := found.UpdateConsumer(ctx, info.Config)
		testkit.Must(s.T, err)
	}
}

func TestPostgresRestart(t *testing.T) {
	t.Parallel()
	cluster := pgtest.Start(t)
	accounts := harness.AccountNames(5)
	s := newSite(t, harness.SiteConfig{Database: cluster.URL(), Lease: longLease, Accounts: accounts})
	s.Slow(10 * time.Millisecond)
	workers := []*harness.Process{s.Worker("worker-1"), s.Worker("worker-2")}
	jobs := harness.MakeJobs(60, accounts, harness.One)
	reached := s.AtCall("POST", harness.PostPath, 15, true, func() {})
	s.Publish(byAccount(jobs)...)
	testkit.Wait(t, "a post to restart PostgreSQL at", reached)
	cluster.Restart(t)
	s.AllPublished(len(jobs)) // whatever was in doubt settles itself
	s.WantCallLog(jobs)
	harness.Stop(workers...)
}

// TestDatabaseMoves: the primary is killed with its machine, its synchronous standby
// is promoted, and jobs come meanwhile. None is lost, and none is posted twice.
func TestDatabaseMoves(t *testing.T) {
	t.Parallel()
	const count = 500
	pair := pgtest.StartPair(t)
	accounts := harness.AccountNames(20)
	s := newSite(t, harness.SiteConfig{Database: pair.URL(), Lease: longLease, Accounts: accounts})
	workers := []*harness.Process{s.Worker("worker-1"), s.Worker("worker-2")}
	s.hurry(s.Conn.Names.JobsStream())
	jobs := harness.MakeJobs(count, accounts, harness.One)
	reached := s.AtCall("POST", harness.PostPath, count/5, true, func() { pair.Primary.Kill(t) })
	published := make(chan struct{})
	go func() {
		defer close(published)
		s.Publish(byAccount(jobs)...)
	}()
	testkit.Wait(t, "a post to kill the primary at", reached)
	pair.Promote(t)
	testkit.Wait(t, "all jobs to be stored", published)
	s.AllPublished(count)
	s.WantCallLog(jobs)
	harness.Stop(workers...)
}

// byAccount lists each account's jobs, which keep their order.
func byAccount(jobs []*harness.Job) [][]*harness.Job {
	var accounts []string
	lists := map[string][]*harness.Job{}
	for _, j := range jobs {
		if !slices.Contains(accounts, j.Account) {
			accounts = append(accounts, j.Account)
		}
		lists[j.Account] = append(lists[j.Account], j)
	}
	all := make([][]*harness.Job, len(accounts))
	for i, name := range accounts {
		all[i] = lists[name]
	}
	return all
}
