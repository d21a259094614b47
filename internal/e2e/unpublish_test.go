package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// unpublished waits until nothing of a request is left on X.
func (s *site) unpublished(account, id string) {
	s.T.Helper()
	testkit.Eventually(s.T, "request "+id+" is unpublished", func() bool {
		u := s.Status(account, id).Unpublish
		return u != nil && !u.DoneAt.IsZero()
	})
}

// TestUnpublish: a worker deletes a thread and is killed as X has deleted a post and has
// not answered; the next one goes on, and what waits behind goes out.
func TestUnpublish(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Lease: shortLease, Accounts: []string{"alice"}})
	w := s.Worker("worker-1")
	thread, other := &harness.Job{Account: "alice", Id: "thread", Posts: 4}, &harness.Job{Account: "alice", Id: "other", Posts: 2}
	s.Publish([]*harness.Job{thread, other})
	s.AllPublished(2)
	third := s.Live(thread)[2].ID
	reached := s.AtCall("DELETE", harness.PostPath+"/"+third, 1, true, func() { w.Signal(syscall.SIGKILL) })
	code, stdout, stderr := s.Run("requests", "unpublish", "thread")
	if code != exitOK || !strings.Contains(stdout, "of 4 live posts deleted; follow it with: ") {
		t.Fatalf("exit code %d, printed %q and %q", code, stdout, stderr)
	}
	testkit.Wait(t, "the deletion of the third post", reached)
	behind := &harness.Job{Account: "alice", Id: "behind", Posts: 1}
	s.Publish([]*harness.Job{behind})
	w = s.Worker("worker-2")
	s.unpublished("alice", "thread")
	s.AllPublished(3)
	s.WantCallLog([]*harness.Job{other, behind})
	for i, p := range s.Status("alice", "thread").Posts {
		if p.DeletedAt.IsZero() {
			t.Errorf("post %d has no deleted_at", i+1)
		}
	}
	var order []string
	for _, call := range s.Sim.Calls() {
		if call.Endpoint == xsim.EndpointDeletePost {
			order = append(order, call.Path)
		}
	}
	if !slices.IsSortedFunc(order, func(a, b string) int { return strings.Compare(b, a) }) || len(order) < 4 {
		t.Errorf("deleted in this order: %v", order)
	}
	harness.Stop(w)
}

// TestVerify: what X took away, what stands there twice, and what the owner posted by hand.
func TestVerify(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Lease: shortLease, Accounts: []string{"alice", "bob"}})
	s.Sim.DuplicateWindow, s.Sim.AllowEqualPosts = -1, true // before anybody calls
	vanishes := &harness.Job{Account: "alice", Id: "vanishes", Posts: 1}
	testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultVanish, Text: vanishes.Text(0)}}))
	w := s.Worker("worker-1")
	thread, gone := &harness.Job{Account: "alice", Id: "thread", Posts: 2}, &harness.Job{Account: "alice", Id: "gone", Posts: 1}
	fine := &harness.Job{Account: "bob", Id: "fine", Posts: 1}
	s.Publish([]*harness.Job{vanishes, thread, gone, fine})
	s.AllPublished(4)
	byHand := func(text string) string {
		t.Helper()
		token, _ := s.Sim.CurrentToken("alice")
		created, err := xapi.New(token.AccessToken, xapi.WithBaseURL(s.X.URL)).CreatePost(t.Context(), xapi.Post{Text: text})
		testkit.Must(t, err)
		return created.ID
	}
	twice, foreign := byHand(thread.Text(0)), byHand("the owner's own words")
	if code, _, stderr := s.Run("requests", "unpublish", "gone"); code != exitOK {
		t.Fatalf("unpublish: exit code %d, %s", code, stderr)
	}
	s.unpublished("alice", "gone")
	var code int
	var stdout, stderr string
	got := map[string]jetpost.Verification{}
	testkit.Eventually(t, "no post is too young to tell", func() bool {
		code, stdout, stderr = s.Run("requests", "verify", "--yes", "-o", "json")
		for line := range strings.Lines(stdout) {
			var v jetpost.Verification
			testkit.Must(t, json.Unmarshal([]byte(line), &v))
			got[v.Account] = v
		}
		return got["alice"].Unchecked+got["bob"].Unchecked == 0
	})
	if code != exitFailed || !strings.Contains(stderr, "ledger and X differ in 2 posts") || !strings.Contains(stderr, "5 posts of 2 accounts to look for") {
		t.Errorf("exit code %d, standard error %q", code, stderr)
	}
	var found []string
	for _, f := range got["alice"].Findings {
		found = append(found, strings.TrimSpace(string(f.Kind)+" "+f.ID+" "+f.PostID))
	}
	slices.Sort(found)
	missing := s.Status("alice", "vanishes").Posts[0].PostID
	want := []string{"doubled thread " + twice, "foreign  " + foreign, "missing vanishes " + missing}
	if !slices.Equal(found, want) || got["alice"].Checked != 4 {
		t.Errorf("of alice: %+v, want %q", got["alice"], want)
	}
	if v := got["bob"]; len(v.Findings) != 0 || v.Checked != 1 {
		t.Errorf("of bob: %+v", v)
	}
	code, stdout, _ = s.Run("requests", "verify", "--account", "bob", "--yes")
	if code != exitOK || stdout != "bob  1 post checked, 1 on X, 0 missing, 0 doubled\n" {
		t.Errorf("exit code %d, printed %q", code, stdout)
	}
	harness.Stop(w)
}
