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
	"github.com/jetpost/jetpost/internal/pgtest"
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
			accounts := accountNames(20)
			s := newSite(t, siteConfig{lease: longLease, accounts: accounts})
			s.slow(5 * time.Millisecond)
			workers := []*process{s.worker("worker-1"), s.worker("worker-2")}
			jobs := makeJobs(200, accounts, func(i int) int { return 1 + i%11/10 }) // a few threads of two
			if deleteSchedule {
				for _, j := range jobs[160:] { // two for each account
					j.at = time.Now().Add(3 * time.Second)
				}
			}
			s.publish(deal(jobs, 7)...)
			if deleteSchedule {
				eventually(t, "the middle", func() bool { return s.counts()[jetpost.StatePublished] >= len(jobs)/4 })
				must(t, s.conn.JS.DeleteStream(t.Context(), s.conn.Names.ScheduleStream()))
			}
			s.allPublished(len(jobs))
			s.wantCallLog(jobs)
			for _, w := range workers {
				mine := w.entries("post.published")
				t.Logf("%s sent %d posts", w.name, len(mine))
				if len(mine) == 0 || mine[0]["worker"] != w.name {
					t.Errorf("%s sent %d posts; want some, under its name", w.name, len(mine))
				}
			}
			stop(workers...)
		})
	}
}

// The ledger is the queue: without the stream of all wake-ups everything is
// merely a little late.
func TestScheduleStreamDeleted(t *testing.T) {
	t.Parallel()
	const window = 6 * time.Second // of X's limit: three posts an account
	accounts := accountNames(8)
	s := newSite(t, siteConfig{lease: longLease, accounts: append(accounts, "fresh")})
	must(t, s.sim.SetLimits([]xsim.Limit{
		{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 3, WindowMS: window.Milliseconds()},
	}))
	jobs := makeJobs(48, accounts, one)
	for _, j := range jobs[40:] { // one for each account
		j.at = time.Now().Add(window)
	}
	s.publish(deal(jobs, 5)...)
	// One worker uses the windows up: it alone knows when they are closed, and
	// holds each line in the ledger, where all see it.
	workers := []*process{s.worker("worker-1")}
	eventually(t, "every account to wait for its limit", func() bool { return s.counts()[jetpost.StateHeld] == len(accounts) })
	workers = append(workers, s.worker("worker-2"))
	must(t, s.conn.JS.DeleteStream(t.Context(), s.conn.Names.ScheduleStream()))
	s.allPublished(len(jobs))
	s.wantCallLog(jobs)

	code, stdout, stderr := s.run("setup")
	if code != exitOK || !strings.Contains(stdout, "created    stream "+s.conn.Names.ScheduleStream()) {
		t.Fatalf("setup: exit code %d\n%s%s", code, stdout, stderr)
	}
	// A new worker finds everything in place again.
	workers = append(workers, s.worker("worker-3"))
	later := &job{account: "fresh", id: "after", posts: 1, at: time.Now().Add(time.Second)}
	s.publish([]*job{later})
	jobs = append(jobs, later)
	s.allPublished(len(jobs))
	s.wantCallLog(jobs)
	stop(workers...)
}

func TestWorkerKilledMidThread(t *testing.T) {
	t.Parallel()
	t.Run("at random", func(t *testing.T) {
		t.Parallel()
		strikeAtRandom(t)
	})
	t.Run("between two posts", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, siteConfig{lease: shortLease, accounts: []string{"alice"}})
		progress := s.progress("alice", "thread")
		// The picture of the third post takes X longer than the worker lives.
		must(t, s.sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultLatency, Endpoint: xsim.EndpointUpload, Times: 1, DelayMS: 3000}}))
		w := s.worker("worker-1")
		thread := &job{account: "alice", id: "thread", posts: 5, picture: 3}
		s.publish([]*job{thread})
		progress(2)
		w.kill()
		if live := len(s.live(thread)); live != 2 {
			t.Fatalf("X has %d posts as the worker dies, want 2", live)
		}
		w = s.worker("worker-2")
		s.allPublished(1)
		s.wantCallLog([]*job{thread})
		stop(w)
	})
}

// progress subscribes to what happens to a request; the function it returns
// waits until so many posts are told to be live.
func (s *site) progress(account, id string) func(posted int) {
	s.t.Helper()
	events, err := s.conn.Conn.SubscribeSync(s.conn.Names.EventSubject(jetpost.EventRequestProgress, account, id))
	must(s.t, err)
	return func(posted int) {
		s.t.Helper()
		ctx, cancel := context.WithTimeout(s.t.Context(), patience)
		defer cancel()
		for {
			msg, err := events.NextMsgWithContext(ctx)
			must(s.t, err)
			var event jetpost.Event
			must(s.t, json.Unmarshal(msg.Data, &event))
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
	accounts := accountNames(12)
	s := newSite(t, siteConfig{lease: shortLease, accounts: accounts})
	s.slow(10 * time.Millisecond)
	// A thread for each account and, behind it, a single post.
	jobs := makeJobs(24, accounts, func(i int) int { return 4 - i/12*3 })
	workers := []*process{s.worker("worker-1"), s.worker("worker-2")}
	var frozen []*process
	for round := range rounds {
		victim, how := random.IntN(len(workers)), []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP}[random.IntN(2)]
		nth, made := 1+random.IntN(6), random.IntN(2) == 0
		t.Logf("round %d: %s to %s at call %d, made %t", round, how, workers[victim].name, nth, made)
		reached := s.atCall("POST", postPath, nth, made, func() { workers[victim].signal(how) })
		s.publish(jobs[3*round : 3*round+3])
		wait(t, "a call to strike at", reached)
		if how == syscall.SIGKILL {
			workers[victim].exit()
		} else {
			frozen = append(frozen, workers[victim])
		}
		workers[victim] = s.worker(fmt.Sprintf("worker-%d", 3+round))
	}
	s.publish(byAccount(jobs[3*rounds:])...)
	for _, w := range frozen {
		w.signal(syscall.SIGCONT)
	}
	s.allPublished(len(jobs)) // every doubt settles itself
	stop(append(workers, frozen...)...)
	s.wantCallLog(jobs)
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
		{name: "after a post", path: postPath, made: true, doubt: true},
		{name: "before a post", path: postPath, doubt: true},
		{name: "in an upload", path: uploadPath},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, siteConfig{lease: shortLease, accounts: []string{"alice"}})
			frozen := s.worker("worker-1")
			nth, picture := 1, 1 // before anything is sent
			if test.path == postPath {
				nth, picture = 2, 2
			}
			reached := s.atCall("POST", test.path, nth, test.made, func() { frozen.signal(syscall.SIGSTOP) })
			thread := &job{account: "alice", id: "thread", posts: 3, picture: picture}
			s.publish([]*job{thread})
			wait(t, "the call to freeze in", reached)

			other := s.worker("worker-2")
			inDoubt := func() bool {
				status := s.status("alice", "thread")
				held := status.Reason != nil && status.Reason.Code == jetpost.CodeReconciling
				return held || len(other.entries("post.found")) > 0 || slices.ContainsFunc(other.entries("request.settled"), func(e map[string]any) bool {
					return e["code"] == string(jetpost.CodeReconciling) // which may be over by now
				})
			}
			eventually(t, "worker-2 to take over", func() bool {
				return inDoubt() || s.status("alice", "thread").State == jetpost.StatePublished
			})
			if inDoubt() != test.doubt {
				t.Errorf("in doubt while its worker is frozen: %t, want %t", inDoubt(), test.doubt)
			}
			frozen.signal(syscall.SIGCONT)
			// What it has begun before it stops, it finishes.
			stop(frozen)
			s.allPublished(1)
			s.wantCallLog([]*job{thread})
			stop(other)
		})
	}
}

func TestReplay(t *testing.T) {
	t.Parallel()
	const words = "You are not permitted to perform this action today."
	s := newSite(t, siteConfig{lease: longLease, accounts: []string{"alice"}})
	thread := &job{account: "alice", id: "thread", posts: 5}
	must(t, s.sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultRefuseText, Text: thread.text(2), Detail: words}}))
	w := s.worker("worker-1")
	s.publish([]*job{thread})
	eventually(t, "the request to fail", func() bool { return s.counts()[jetpost.StateFailed] == 1 })
	status := s.status("alice", "thread")
	if status.Posted != 2 || status.Reason.Code != jetpost.CodeRefusedByX || !strings.Contains(status.Reason.Detail, words) {
		t.Errorf("failed with %d posted, reason %+v; want 2, refused with X's own words", status.Posted, status.Reason)
	}
	if live := len(s.live(thread)); live != 2 {
		t.Errorf("X has %d posts, want 2", live)
	}

	must(t, s.sim.SetFaults(nil))
	for round, want := range []string{"3 of 5 posts left", "is published"} {
		code, stdout, stderr := s.run("replay", "thread")
		if code != exitOK || !strings.Contains(stdout, want) {
			t.Errorf("replay %d: exit code %d, want 0 and %q\n%s%s", round+1, code, want, stdout, stderr)
		}
		s.allPublished(1)
	}
	stop(w) // so that nothing of the second replay is still to come
	s.wantCallLog([]*job{thread})
	if sent := s.sim.Counts()[xsim.EndpointCreatePost]; sent["201"] != 5 || sent["403"] != 1 {
		t.Errorf("calls to post by status: %v, want 5 of 201 and one of 403", sent)
	}
}

func TestGracefulStop(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteConfig{lease: longLease, accounts: []string{"alice", "bob"}})
	w := s.worker("worker-1")
	// The second post is on its way when the worker is asked to stop.
	must(t, s.sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultLatency, Endpoint: xsim.EndpointCreatePost, Skip: 1, Times: 1, DelayMS: 500}}))
	reached := s.atCall("POST", postPath, 2, false, func() { w.signal(syscall.SIGTERM) })
	thread := &job{account: "alice", id: "thread", posts: 4}
	s.publish([]*job{thread})
	wait(t, "the second post", reached)
	after := &job{account: "bob", id: "after", posts: 1}
	s.publish([]*job{after})
	if code := w.exit(); code != exitOK {
		t.Errorf("the worker ended with code %d, want 0", code)
	}
	status := s.status("alice", "thread")
	if live := len(s.live(thread)); live != 2 || status.Posted != 2 || status.Posts[2].State != jetpost.PostPending {
		t.Errorf("X has %d posts, the ledger %+v; want the call in flight recorded, and nothing else begun", live, status)
	}
	w = s.worker("worker-2")
	s.allPublished(2)
	s.wantCallLog([]*job{thread, after})
	stop(w)
}

func TestNATSRestart(t *testing.T) {
	t.Parallel()
	dir, address := t.TempDir(), closedAddress(t)
	server := startNATS(t, dir, address)
	accounts := accountNames(5)
	s := newSite(t, siteConfig{nats: "nats://" + address, lease: longLease, accounts: accounts})
	s.slow(10 * time.Millisecond)
	workers := []*process{s.worker("worker-1"), s.worker("worker-2")}
	s.hurry(s.conn.Names.JobsStream())
	jobs := makeJobs(60, accounts, one)
	reached := s.atCall("POST", postPath, 15, true, func() { server.signal(syscall.SIGKILL) })
	published := make(chan struct{})
	go func() {
		defer close(published)
		s.publish(byAccount(jobs)...)
	}()
	wait(t, "a post to kill NATS at", reached)
	server.exit()
	startNATS(t, dir, address)
	wait(t, "all jobs to be stored", published)
	s.allPublished(len(jobs))
	s.wantCallLog(jobs)
	stop(workers...)
}

// hurry has the server give up a delivery that it lost with its own memory
// after seconds instead of half a minute.
func (s *site) hurry(stream string) {
	s.t.Helper()
	ctx := s.t.Context()
	found, err := s.conn.JS.Stream(ctx, stream)
	must(s.t, err)
	for info := range found.ListConsumers(ctx).Info() {
		info.Config.AckWait = 3 * time.Second
		_, err := found.UpdateConsumer(ctx, info.Config)
		must(s.t, err)
	}
}

func TestPostgresRestart(t *testing.T) {
	t.Parallel()
	cluster := pgtest.Start(t)
	accounts := accountNames(5)
	s := newSite(t, siteConfig{database: cluster.URL(), lease: longLease, accounts: accounts})
	s.slow(10 * time.Millisecond)
	workers := []*process{s.worker("worker-1"), s.worker("worker-2")}
	jobs := makeJobs(60, accounts, one)
	reached := s.atCall("POST", postPath, 15, true, func() {})
	s.publish(byAccount(jobs)...)
	wait(t, "a post to restart PostgreSQL at", reached)
	cluster.Restart(t)
	s.allPublished(len(jobs)) // whatever was in doubt settles itself
	s.wantCallLog(jobs)
	stop(workers...)
}

// TestDatabaseMoves: the primary is killed with its machine, its synchronous standby
// is promoted, and jobs come meanwhile. None is lost, and none is posted twice.
func TestDatabaseMoves(t *testing.T) {
	t.Parallel()
	const count = 500
	pair := pgtest.StartPair(t)
	accounts := accountNames(20)
	s := newSite(t, siteConfig{database: pair.URL(), lease: longLease, accounts: accounts})
	workers := []*process{s.worker("worker-1"), s.worker("worker-2")}
	s.hurry(s.conn.Names.JobsStream())
	jobs := makeJobs(count, accounts, one)
	reached := s.atCall("POST", postPath, count/5, true, func() { pair.Primary.Kill(t) })
	published := make(chan struct{})
	go func() {
		defer close(published)
		s.publish(byAccount(jobs)...)
	}()
	wait(t, "a post to kill the primary at", reached)
	pair.Promote(t)
	wait(t, "all jobs to be stored", published)
	s.allPublished(count)
	s.wantCallLog(jobs)
	stop(workers...)
}

// byAccount lists each account's jobs, which keep their order.
func byAccount(jobs []*job) [][]*job {
	var accounts []string
	lists := map[string][]*job{}
	for _, j := range jobs {
		if !slices.Contains(accounts, j.account) {
			accounts = append(accounts, j.account)
		}
		lists[j.account] = append(lists[j.account], j)
	}
	all := make([][]*job, len(accounts))
	for i, name := range accounts {
		all[i] = lists[name]
	}
	return all
}
