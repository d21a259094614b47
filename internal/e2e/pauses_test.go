package e2e

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// events are those of the stream on a subject, oldest first.
func (s *site) events(subject string) []jetpost.Event {
	s.T.Helper()
	stream, err := s.Conn.JS.Stream(s.T.Context(), s.Conn.Names.EventsStream())
	testkit.Must(s.T, err)
	var found []jetpost.Event
	for next := uint64(1); ; {
		msg, err := stream.GetMsg(s.T.Context(), next, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return found
		}
		testkit.Must(s.T, err)
		var event jetpost.Event
		testkit.Must(s.T, json.Unmarshal(msg.Data, &event))
		found = append(found, event)
		next = msg.Sequence + 1
	}
}

// appEvents are those that tell what became of a scope.
func (s *site) appEvents(t jetpost.EventType, scope string) []jetpost.Event {
	s.T.Helper()
	return slices.DeleteFunc(s.events(s.Conn.Names.EventSubject(t, "", "")), func(e jetpost.Event) bool {
		return e.App == nil || e.App.Target != scope
	})
}

// stopped waits until the app is stopped, and returns the event that tells it.
func (s *site) stopped() jetpost.Event {
	s.T.Helper()
	var told []jetpost.Event
	testkit.Eventually(s.T, "the app to be stopped", func() bool {
		told = s.appEvents(jetpost.EventAppPaused, publishers.TargetPublish)
		return len(told) > 0
	})
	return told[len(told)-1]
}

// resting waits until no worker is at any of the accounts: calls that were on their
// way as the app was stopped are over. An account rests whose head is held, or
// that is due and that nobody has claimed.
func (s *site) resting(jobs []*harness.Job) {
	s.T.Helper()
	of := func(account string, state jetpost.State) int {
		found, err := s.Ledger.ListRequests(s.T.Context(), store.Filter{Account: account, State: state, Limit: len(jobs)})
		testkit.Must(s.T, err)
		return len(found)
	}
	testkit.Eventually(s.T, "the calls in flight to be settled", func() bool {
		due, err := s.Ledger.DueLanes(s.T.Context(), time.Now(), len(jobs))
		testkit.Must(s.T, err)
		for _, list := range byAccount(jobs) {
			account := list[0].Account
			if of(account, jetpost.StateHeld) == 0 && !slices.Contains(due, account) && of(account, jetpost.StatePublished) < len(list) {
				return false
			}
		}
		return true
	})
}

// posts counts the calls that would create one, by status.
func (s *site) posts() map[string]int { return s.Sim.Counts()[xsim.EndpointCreatePost] }

// The spend cap is met in the middle of a queue: everything waits, tokens are
// kept alive meanwhile, and what waited goes out once the cap is raised.
func TestSpendCapInMidQueue(t *testing.T) {
	t.Parallel()
	const before = 100 // posts, until the cap is met
	accounts := harness.AccountNames(10)
	s := newSite(t, harness.SiteConfig{Lease: longLease, Accounts: accounts, RefreshCron: "* * * * * *"})
	testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{
		{Kind: xsim.FaultStatus, Endpoint: xsim.EndpointCreatePost, Skip: before, Status: http.StatusForbidden, Variant: "spend-cap"},
	}))
	workers := []*harness.Process{s.Worker("worker-1"), s.Worker("worker-2")}
	jobs := harness.MakeJobs(500, accounts, harness.One)
	s.Publish(byAccount(jobs)...)
	told := s.stopped()
	s.accepted(len(jobs))
	s.resting(jobs)

	// Token care goes on: a token that falls due now is exchanged by a round,
	// and one of an account that waits when it is asked for.
	s.Account("idle", 2*time.Second)
	testkit.Eventually(t, "a round that exchanges a token", func() bool {
		return slices.ContainsFunc(s.events(s.Conn.Names.EventSubject(jetpost.EventRefreshCompleted, "", "")), func(e jetpost.Event) bool {
			return e.Time.After(told.Time) && e.Refresh.Refreshed > 0
		})
	})
	if code, stdout, stderr := s.Run("refresh", accounts[0], "--force", "--wait"); code != exitOK {
		t.Errorf("refresh: exit code %d\n%s%s", code, stdout, stderr)
	}
	for _, name := range []string{"idle", accounts[0]} {
		if n := len(s.Sim.Exchanges(name)); n != 1 {
			t.Errorf("%d exchanges of %s during the pause, want 1", n, name)
		}
		s.wantCurrent(name)
	}

	// Nobody has asked X for a post meanwhile.
	posts, counts := s.posts(), s.Counts()
	if posts["201"] != before || posts["403"] == 0 || posts["403"] > len(accounts) || len(posts) != 2 {
		t.Errorf("calls to post by status: %v, want %d of 201 and one of 403 for each account at most", posts, before)
	}
	if counts[jetpost.StatePublished] != before || counts[jetpost.StateHeld]+counts[jetpost.StateQueued] != len(jobs)-before {
		t.Errorf("requests by state: %v, want %d published, the others held or queued", counts, before)
	}
	s.wantAttempts(jobs, map[jetpost.State]int{jetpost.StatePublished: 1})
	s.wantUntil(told)

	testkit.Must(t, s.Sim.SetFaults(nil))
	s.wantHelp([]string{"resume", "--app"}, "resume --app")
	s.AllPublished(len(jobs))
	s.wantAttempts(jobs, map[jetpost.State]int{jetpost.StatePublished: 1})
	s.WantCallLog(jobs)
	if now := s.posts(); now["403"] != posts["403"] || now["201"] != len(jobs) {
		t.Errorf("calls to post by status: %v, want no 403 beyond those of %v", now, posts)
	}
	if resumed := s.appEvents(jetpost.EventAppResumed, publishers.TargetPublish); len(resumed) != 1 {
		t.Errorf("%d events tell that the app was resumed, want 1", len(resumed))
	} else if reason := resumed[0].App.Reason; reason == nil || !reason.Until.Equal(told.App.Reason.Until) {
		t.Errorf("the event of the resume has the reason %+v, want the one of the pause, until %s", reason, told.App.Reason.Until)
	}
	harness.Stop(workers...)
}

// wantAttempts checks how many attempts each job has cost, by its state.
func (s *site) wantAttempts(jobs []*harness.Job, want map[jetpost.State]int) {
	s.T.Helper()
	for _, j := range jobs {
		if status := s.Status(j.Account, j.Id); status.Attempts != want[status.State] {
			s.T.Errorf("job %s of %s is %s after %d attempts, want %d", j.Id, j.Account, status.State, status.Attempts, want[status.State])
		}
	}
}

// wantUntil checks that the pause and each request that it holds tell until when.
func (s *site) wantUntil(stopped jetpost.Event) {
	s.T.Helper()
	if stopped.App.Reason == nil || !stopped.App.Reason.Until.After(stopped.Time) {
		s.T.Errorf("the event of the pause has the reason %+v, want an until ahead of %s", stopped.App.Reason, stopped.Time)
		return
	}
	held := s.events(s.Conn.Names.EventSubject(jetpost.EventRequestHeld, "*", "*"))
	if len(held) == 0 {
		s.T.Error("no event tells of a request that is held")
	}
	for _, e := range held {
		reason := e.Request.Reason
		if reason == nil || reason.Code != jetpost.CodeAppPaused || !reason.Until.After(e.Time) || reason.Until.After(stopped.App.Reason.Until) {
			s.T.Errorf("the event of job %s has the reason %+v, want an until ahead of %s, at %s at the latest", e.Request.ID, reason, e.Time, stopped.App.Reason.Until)
		}
	}
}

// NATS is killed in the middle of a pause and comes back on its data, another
// worker joins, and the one that has set the pause goes: nothing forgets it.
func TestPauseOutlivesNATS(t *testing.T) {
	t.Parallel()
	const most = 10 // posts of the whole app in a window
	dir, address := t.TempDir(), testkit.ClosedAddress(t)
	server := harness.StartNATS(t, dir, address)
	accounts := harness.AccountNames(4)
	s := newSite(t, harness.SiteConfig{NATS: "nats://" + address, Database: sqliteURL(t), Lease: longLease, Accounts: append(accounts, "fresh"), RefreshCron: never})
	s.Sim.ClosedWindowGrace = time.Second // for calls that were on their way
	began := time.Now()
	first := s.Worker("worker-1")
	// Long enough for what happens in it, on a slow machine as well.
	window := 6*time.Second + 10*time.Since(began)
	testkit.Must(t, s.Sim.SetLimits([]xsim.Limit{{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeApp24h, Max: most, WindowMS: window.Milliseconds()}}))
	jobs := harness.MakeJobs(most+8, accounts, harness.One)
	s.Publish(byAccount(jobs)...)
	s.stopped()
	s.accepted(len(jobs))
	s.resting(jobs)
	told := s.stopped() // the last one: answers may differ by a second
	until := told.App.Reason.Until
	s.wantUntil(told)
	calls := len(s.Sim.Calls())

	server.Kill()
	harness.StartNATS(t, dir, address)
	second := s.Worker("worker-2")
	harness.Stop(first)
	if code, stdout, stderr := s.Run("status"); code != exitFailed || !strings.HasPrefix(stdout, "NOT PUBLISHING: paused until ") || !strings.Contains(stdout, "paused\n") {
		t.Errorf("status: exit code %d, want %d, stopped and the lanes paused\n%s%s", code, exitFailed, stdout, stderr)
	}
	// A pause that somebody undoes is put back, and a wake-up that comes meanwhile must
	// not make it call, not even for an account that nobody has told to wait.
	fresh := &harness.Job{Account: "fresh", Id: "fresh", Posts: 1}
	s.Publish([]*harness.Job{fresh})
	jobs = append(jobs, fresh)
	s.accepted(len(jobs))
	_, err := s.Conn.JS.ResumeConsumer(t.Context(), s.Conn.Names.LanesStream(), jetpost.ConsumerLanes)
	testkit.Must(t, err)
	if late := time.Since(until); late > 0 {
		t.Fatalf("the machine is too slow: the pause has ended %s ago, and nothing is shown", late)
	}
	second.Until("upkeep.mended")
	s.AllPublished(len(jobs))
	s.WantCallLog(jobs)
	later := s.Sim.Calls()[calls:]
	if len(later) != len(jobs)-most {
		t.Errorf("%d calls after the pause began, want %d", len(later), len(jobs)-most)
	}
	for _, call := range later {
		if call.At.Before(until) {
			t.Errorf("%s %s came %s before the end of the pause", call.Method, call.Path, until.Sub(call.At))
		}
	}
	harness.Stop(second)
}
