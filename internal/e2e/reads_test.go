package e2e

import (
	"net/http"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// doubt is of the second post of the account's thread. X has made it or not, and refuses
// to show it.
type doubt struct {
	account string
	refusal int
	made    bool
}

// doubts are of workers that have read no answer; the last one's was killed before that.
func doubts() []doubt {
	return []doubt{
		{"r403-lost", http.StatusForbidden, false},
		{"r403-made", http.StatusForbidden, true},
		{"r429-lost", http.StatusTooManyRequests, false},
		{"r429-made", http.StatusTooManyRequests, true},
		{"r503-lost", http.StatusServiceUnavailable, false},
		{"r503-made", http.StatusServiceUnavailable, true},
		{"killed", http.StatusServiceUnavailable, true},
	}
}

// faults are what X does to the account.
func (d doubt) faults() []xsim.Fault {
	faults := []xsim.Fault{{Kind: xsim.FaultStatus, Status: d.refusal, Endpoint: xsim.EndpointTimeline, Account: d.account}}
	if d.account == "killed" {
		return faults
	}
	return append(faults, xsim.Fault{
		Kind: xsim.FaultCut, After: d.made, Endpoint: xsim.EndpointCreatePost, Account: d.account, Skip: 1, Times: 1,
	})
}

// sends is how many posts of the thread are sent in all.
func (d doubt) sends() int {
	if d.made {
		return 3
	}
	return 4
}

// TestReadsRefused: answers are lost, workers die, and X refuses to show what became
// of the posts, in each of its ways. These requests wait, the lines of others go on,
// and nothing is sent twice. Once X shows posts again, all doubts settle themselves.
func TestReadsRefused(t *testing.T) {
	t.Parallel()
	others := harness.AccountNames(4)
	accounts := slices.Clone(others)
	var faults []xsim.Fault
	var threads []*harness.Job
	for _, d := range doubts() {
		accounts = append(accounts, d.account)
		threads = append(threads, &harness.Job{Account: d.account, Id: "thread", Posts: 3})
		faults = append(faults, d.faults()...)
	}
	s := newSite(t, harness.SiteConfig{Lease: shortLease, Accounts: accounts})
	// A 429 closes the window of reads for two seconds. The worker that is killed may
	// take it with it, and the next one learn it anew.
	s.Sim.ClosedWindowGrace = 4 * time.Second
	testkit.Must(t, s.Sim.SetLimits([]xsim.Limit{{Endpoint: xsim.EndpointTimeline, Scope: xsim.ScopeUser, Max: 900, WindowMS: 2000}}))
	testkit.Must(t, s.Sim.SetFaults(faults))
	s.losesAnswers(threads)

	second, third := s.Worker("worker-2"), s.Worker("worker-3")
	testkit.Eventually(t, "a refused look at each account", func() bool {
		return !slices.ContainsFunc(doubts(), func(d doubt) bool { return s.refusedReads(d.account) == 0 })
	})
	second.Kill()
	fourth := s.Worker("worker-4")
	singles := harness.MakeJobs(20, others, harness.One)
	s.Publish(harness.Deal(singles, 3)...)
	testkit.Eventually(t, "the others to be published", func() bool { return s.Counts()[jetpost.StatePublished] == len(singles) })
	for _, d := range doubts() {
		s.wantDoubt(d)
	}

	testkit.Must(t, s.Sim.SetFaults(nil))
	jobs := slices.Concat(threads, singles)
	s.AllPublished(len(jobs))
	s.WantCallLog(jobs)
	for _, d := range doubts() {
		if sent := len(s.callsOf(d.account, xsim.EndpointCreatePost)); sent != d.sends() {
			t.Errorf("%d posts of %s were sent in all, want %d", sent, d.account, d.sends())
		}
	}
	harness.Stop(third, fourth)
}

// losesAnswers has a worker bring all threads into doubt. It is killed as the answer to the
// last one is on its way to it, when all other answers are lost.
func (s *site) losesAnswers(threads []*harness.Job) {
	s.T.Helper()
	w := s.Worker("worker-1")
	s.Publish(threads[:len(threads)-1])
	testkit.Eventually(s.T, "the doubts", func() bool {
		// Not of the pause of the app, after that many answers that were lost.
		return s.Counts()[jetpost.StateHeld] == len(threads)-1 && !slices.ContainsFunc(threads[:len(threads)-1], func(j *harness.Job) bool {
			return len(s.callsOf(j.Account, xsim.EndpointCreatePost)) < 2
		})
	})
	reached := s.AtCall("POST", harness.PostPath, 2, true, func() { w.Signal(syscall.SIGKILL) })
	s.Publish(threads[len(threads)-1:])
	testkit.Wait(s.T, "the call to die in", reached)
	w.Exit()
}

// refusedReads counts those of an account's posts.
func (s *site) refusedReads(account string) (n int) {
	s.T.Helper()
	for _, call := range s.callsOf(account, xsim.EndpointTimeline) {
		if call.Status < http.StatusOK || call.Status >= http.StatusMultipleChoices {
			n++
		}
	}
	return n
}

// wantDoubt wants the thread to wait, with nothing sent twice.
func (s *site) wantDoubt(d doubt) {
	s.T.Helper()
	status := s.Status(d.account, "thread")
	// A run of 503 may even stop the app for a second.
	waits := []jetpost.Code{jetpost.CodeReconciling, jetpost.CodeRateLimited, jetpost.CodeXUnavailable, jetpost.CodeAppPaused}
	if status.State != jetpost.StateHeld || !slices.Contains(waits, status.Reason.Code) || status.Posted != 1 {
		s.T.Errorf("%s is %s (%+v) with %d posted while reads are refused, want held with 1", d.account, status.State, status.Reason, status.Posted)
	}
	if sent := len(s.callsOf(d.account, xsim.EndpointCreatePost)); sent != 2 {
		s.T.Errorf("%d posts of %s were sent while reads are refused, want 2", sent, d.account)
	}
}

// callsOf are the account's calls to an endpoint of X.
func (s *site) callsOf(account, endpoint string) []xsim.Call {
	s.T.Helper()
	i := slices.IndexFunc(s.Sim.Accounts(), func(a xsim.Account) bool { return a.Handle == account })
	if i < 0 {
		s.T.Fatalf("X has no account %s", account)
	}
	id := s.Sim.Accounts()[i].ID
	return slices.DeleteFunc(s.Sim.Calls(), func(c xsim.Call) bool { return c.Account != id || c.Endpoint != endpoint })
}
