package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// unpublished waits until nothing of a request is left on X.
func (s *site) unpublished(account, id string) {
	s.t.Helper()
	eventually(s.t, "request "+id+" is unpublished", func() bool {
		u := s.status(account, id).Unpublish
		return u != nil && !u.DoneAt.IsZero()
	})
}

// TestUnpublish: a worker deletes a thread and is killed as X has deleted a post and has
// not answered; the next one goes on, and what waits behind goes out.
func TestUnpublish(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteConfig{lease: shortLease, accounts: []string{"alice"}})
	w := s.worker("worker-1")
	thread, other := &job{account: "alice", id: "thread", posts: 4}, &job{account: "alice", id: "other", posts: 2}
	s.publish([]*job{thread, other})
	s.allPublished(2)
	third := s.live(thread)[2].ID
	reached := s.atCall("DELETE", postPath+"/"+third, 1, true, func() { w.signal(syscall.SIGKILL) })
	code, stdout, stderr := s.run("requests", "unpublish", "thread")
	if code != exitOK || !strings.Contains(stdout, "of 4 live posts deleted; follow it with: ") {
		t.Fatalf("exit code %d, printed %q and %q", code, stdout, stderr)
	}
	wait(t, "the deletion of the third post", reached)
	behind := &job{account: "alice", id: "behind", posts: 1}
	s.publish([]*job{behind})
	w = s.worker("worker-2")
	s.unpublished("alice", "thread")
	s.allPublished(3)
	s.wantCallLog([]*job{other, behind})
	for i, p := range s.status("alice", "thread").Posts {
		if p.DeletedAt.IsZero() {
			t.Errorf("post %d has no deleted_at", i+1)
		}
	}
	var order []string
	for _, call := range s.sim.Calls() {
		if call.Endpoint == xsim.EndpointDeletePost {
			order = append(order, call.Path)
		}
	}
	if !slices.IsSortedFunc(order, func(a, b string) int { return strings.Compare(b, a) }) || len(order) < 4 {
		t.Errorf("deleted in this order: %v", order)
	}
	stop(w)
}

// TestVerify: what X took away, what stands there twice, and what the owner posted by hand.
func TestVerify(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteConfig{lease: shortLease, accounts: []string{"alice", "bob"}})
	s.sim.DuplicateWindow, s.sim.AllowEqualPosts = -1, true // before anybody calls
	vanishes := &job{account: "alice", id: "vanishes", posts: 1}
	must(t, s.sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultVanish, Text: vanishes.text(0)}}))
	w := s.worker("worker-1")
	thread, gone := &job{account: "alice", id: "thread", posts: 2}, &job{account: "alice", id: "gone", posts: 1}
	fine := &job{account: "bob", id: "fine", posts: 1}
	s.publish([]*job{vanishes, thread, gone, fine})
	s.allPublished(4)
	byHand := func(text string) string {
		t.Helper()
		token, _ := s.sim.CurrentToken("alice")
		created, err := xapi.New(token.AccessToken, xapi.WithBaseURL(s.x.URL)).CreatePost(t.Context(), xapi.Post{Text: text})
		must(t, err)
		return created.ID
	}
	twice, foreign := byHand(thread.text(0)), byHand("the owner's own words")
	if code, _, stderr := s.run("requests", "unpublish", "gone"); code != exitOK {
		t.Fatalf("unpublish: exit code %d, %s", code, stderr)
	}
	s.unpublished("alice", "gone")
	var code int
	var stdout, stderr string
	got := map[string]app.Verification{}
	eventually(t, "no post is too young to tell", func() bool {
		code, stdout, stderr = s.run("requests", "verify", "--yes", "-o", "json")
		for line := range strings.Lines(stdout) {
			var v app.Verification
			must(t, json.Unmarshal([]byte(line), &v))
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
	missing := s.status("alice", "vanishes").Posts[0].PostID
	want := []string{"doubled thread " + twice, "foreign  " + foreign, "missing vanishes " + missing}
	if !slices.Equal(found, want) || got["alice"].Checked != 4 {
		t.Errorf("of alice: %+v, want %q", got["alice"], want)
	}
	if v := got["bob"]; len(v.Findings) != 0 || v.Checked != 1 {
		t.Errorf("of bob: %+v", v)
	}
	code, stdout, _ = s.run("requests", "verify", "--account", "bob", "--yes")
	if code != exitOK || stdout != "bob  1 post checked, 1 on X, 0 missing, 0 doubled\n" {
		t.Errorf("exit code %d, printed %q", code, stdout)
	}
	stop(w)
}
