package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// A forecast that is taken before the first post names the number of windows that each
// account then needs, and its end, on real workers: one account goes through forty of
// X's windows. They are of a second, since X tells their ends in whole seconds.
func TestForecastComesTrue(t *testing.T) {
	t.Parallel()
	if os.Getenv("JETPOST_TEST_FULL") == "" {
		t.Skip("skipped: it counts posts within 300 ms, which takes a quiet machine; set JETPOST_TEST_FULL=1")
	}
	const (
		limit = 4 // posts of a window
		// length is that of a window which begins within the part of a second that
		// is left: then it ends with that second.
		length = 300 * time.Millisecond
		whole  = time.Second
	)
	repeat := func(n int, posts ...int) (all []int) {
		for range n {
			all = append(all, posts...)
		}
		return all
	}
	// The threads of each account, by their posts, and the windows that they need.
	plans := map[string][]int{
		"acct0": repeat(40, 4),                   // each takes all of a window
		"acct1": repeat(30, 1),                   // the last one is half empty
		"acct2": repeat(12, 3, 2),                // a thread waits where it does not fit
		"acct3": append([]int{9, 1, 1}, 2, 4, 1), // one that no window takes
		"acct4": append(repeat(3, 1), repeat(2, 2)...),
	}
	s := newSite(t, harness.SiteConfig{Lease: longLease, Accounts: harness.AccountNames(len(plans))})
	testkit.Must(t, s.Sim.SetLimits([]xsim.Limit{{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: limit, WindowMS: length.Milliseconds()}}))
	s.Worker("w1")
	s.Worker("w2")
	warm := s.warmUp(harness.AccountNames(len(plans)), whole)

	at := time.Now().Add(8 * time.Second).Truncate(time.Second)
	var jobs []*harness.Job
	var lists [][]*harness.Job
	posts := map[string]int{}
	for account, threads := range plans {
		var list []*harness.Job
		for i, n := range threads {
			list = append(list, &harness.Job{Account: account, Id: fmt.Sprintf("job-%d", i), Posts: n, At: at})
			posts[account] += n
		}
		lists = append(lists, list)
		jobs = append(jobs, list...)
	}
	s.Publish(lists...)
	testkit.Eventually(t, "all jobs to be accepted", func() bool { return s.Counts()[jetpost.StateScheduled] == len(jobs) })
	code, stdout, stderr := s.Run("forecast", "-o", "json")
	if code != exitOK {
		t.Fatalf("forecast: exit code %d: %s", code, stderr)
	}
	var f app.Forecast
	testkit.Must(t, json.Unmarshal([]byte(stdout), &f))
	if !f.Now.Before(at) {
		t.Fatalf("the forecast was taken %s after the first post", f.Now.Sub(at))
	}
	_, text, _ := s.Run("forecast")
	t.Log(text)
	s.AllPublished(len(jobs) + len(warm))

	wantPosts, wantWindows := 0, 0
	for _, a := range f.Accounts {
		windows, late, last := s.windows(a.Account, at, length)
		t.Logf("%s: %d windows until %s; forecast %d until %s; %s lost in between", a.Account, windows, last, a.Windows, a.DoneAt, late)
		if a.Posts != posts[a.Account] || a.Requests != len(plans[a.Account]) || a.Windows != windows || a.Estimated || a.Blocked != nil {
			t.Errorf("%s: forecast %+v, X counts %d windows for %d posts", a.Account, a, windows, posts[a.Account])
		}
		// What a machine that stands still costs is not the forecast's.
		if off := last.Sub(a.DoneAt); off.Abs() > whole+late || late > time.Duration(windows)*whole/4 {
			t.Errorf("%s: done at %s, %s off the forecast, and %s were lost", a.Account, last, off, late)
		}
		wantPosts, wantWindows = wantPosts+a.Posts, max(wantWindows, windows)
	}
	if len(f.Accounts) != len(plans) || f.Posts != wantPosts || f.Windows != wantWindows || wantWindows < 40 {
		t.Errorf("forecast of %d accounts, %d posts, %d windows, want %d, %d, %d", len(f.Accounts), f.Posts, f.Windows, len(plans), wantPosts, wantWindows)
	}
	s.WantCallLog(append(jobs, warm...))
}

// warmUp lets each account post until the length of its window is known.
func (s *site) warmUp(accounts []string, length time.Duration) (jobs []*harness.Job) {
	s.T.Helper()
	shared := publishers.NewWindows(s.Conn.JS, s.Conn.Names)
	testkit.Eventually(s.T, "the windows' length to be known", func() bool {
		known, err := shared.All(s.T.Context())
		testkit.Must(s.T, err)
		var lists [][]*harness.Job
		for _, account := range accounts {
			if !slices.ContainsFunc(known, func(w publishers.Window) bool {
				return w.Account == account && w.Endpoint == xsim.EndpointCreatePost && w.Length == length
			}) {
				j := &harness.Job{Account: account, Id: fmt.Sprintf("warm-%d", len(jobs)), Posts: 1}
				jobs = append(jobs, j)
				lists = append(lists, []*harness.Job{j})
			}
		}
		s.Publish(lists...)
		s.AllPublished(len(jobs))
		return len(lists) == 0
	})
	return jobs
}

// windows reads in X's call log how many windows an account's posts since then fell into,
// how much later they ended than if each had ended with its second, and when the last
// post came.
func (s *site) windows(account string, since time.Time, length time.Duration) (n int, late time.Duration, last time.Time) {
	s.T.Helper()
	accounts := s.Sim.Accounts()
	user := accounts[slices.IndexFunc(accounts, func(a xsim.Account) bool { return a.Handle == account })]
	var end time.Time
	for _, call := range s.Sim.Calls() {
		if call.Endpoint != xsim.EndpointCreatePost || call.Account != user.ID || call.At.Before(since) {
			continue
		}
		if last = call.At; last.Before(end) {
			continue
		}
		before := end
		end = last.Add(length + time.Second - 1).Truncate(time.Second)
		if n > 0 {
			late += end.Sub(before) - time.Second
		}
		n++
	}
	return n, late, last
}
