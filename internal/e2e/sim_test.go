package e2e

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// simProcess is 'jetpost sim' in a process of its own, or that of 'jetpost up --sim'.
type simProcess struct {
	t  *testing.T
	p  *harness.Process
	at *upSite // for its call log
}

func startSim(t *testing.T, args ...string) *simProcess {
	t.Helper()
	s := &simProcess{t: t}
	s.p = harness.Start(t, "sim", harness.Environment(t, nil), "jetpost", append([]string{"sim", "--listen", "127.0.0.1:0"}, args...)...)
	s.at = &upSite{t: t, up: s.p}
	testkit.Eventually(t, "the simulator to listen", func() bool { return strings.Contains(s.p.Output(), "its posts and accounts") })
	s.at.sim = s.at.printed(`simulated X on (http://[^\s;]+)`)
	return s
}

// send sends a request, with a token unless it is empty.
func (s *upSite) send(token, method, path, contentType, body string) (status int, header http.Header, answer string) {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), method, s.sim+path, strings.NewReader(body))
	testkit.Must(s.t, err)
	request.Header.Set("Content-Type", contentType)
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := http.DefaultClient.Do(request)
	testkit.Must(s.t, err)
	text, err := io.ReadAll(response.Body)
	testkit.Must(s.t, err)
	testkit.Must(s.t, response.Body.Close())
	return response.StatusCode, response.Header, string(text)
}

// faults has the simulator do what a JSON list says.
func (s *upSite) faults(list string) {
	s.t.Helper()
	if status, _, answer := s.send("", http.MethodPut, "/_sim/faults", "application/json", list); status != http.StatusOK {
		s.t.Fatalf("faults %s: %d %s", list, status, answer)
	}
}

// A simulator that is killed in the middle of a thread goes on from its directory, and
// one without a directory forgets.
func TestSimKeepsItsMemory(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	s := startSim(t, "--data", data)
	addUser(t, s.at.sim, "ann")
	token := ask[xsim.Token](s.at, "/_sim/tokens?user=ann")
	parent := ""
	post := func(n, want int) {
		t.Helper()
		body := fmt.Sprintf(`{"text":"part %d"}`, n)
		if parent != "" {
			body = fmt.Sprintf(`{"text":"part %d","reply":{"in_reply_to_tweet_id":%q}}`, n, parent)
		}
		status, header, answer := s.at.send(token.AccessToken, http.MethodPost, "/2/tweets", "application/json", body)
		if left := header.Get("X-Rate-Limit-Remaining"); status != want || left != fmt.Sprint(100-n) {
			t.Fatalf("post %d: %d with %q left of the window, want %d: %s", n, status, left, want, answer)
		}
		posts := ask[[]xsim.Post](s.at, "/_sim/posts?user=ann")
		parent = posts[len(posts)-1].ID
	}
	post(1, http.StatusCreated)
	post(2, http.StatusCreated)
	s.p.Kill()
	s = startSim(t, "--data", data)
	post(3, http.StatusCreated)
	refresh := "grant_type=refresh_token&refresh_token=" + token.RefreshToken
	if status, _, answer := s.at.send("", http.MethodPost, "/2/oauth2/token", "application/x-www-form-urlencoded", refresh); status != http.StatusOK {
		t.Fatalf("refresh: %d %s", status, answer)
	}
	s.p.Kill()
	s = startSim(t, "--data", data)
	if status, _, _ := s.at.send("", http.MethodPost, "/2/oauth2/token", "application/x-www-form-urlencoded", refresh); status != http.StatusBadRequest {
		t.Errorf("the token that was spent before the restart is answered %d, want 400", status)
	}
	harness.Stop(s.p)
	s = startSim(t, "--data", data)
	if texts := s.at.texts("ann"); len(texts) != 3 {
		t.Errorf("X has %q, want three posts", texts)
	}
	if calls := ask[map[string]map[string]int](s.at, "/_sim/counts"); calls[xsim.EndpointCreatePost]["201"] != 3 {
		t.Errorf("X has counted %v", calls)
	}
	if accounts := ask[[]xsim.Account](startSim(t).at, "/_sim/accounts"); len(accounts) != 0 {
		t.Errorf("an X without a directory knows %v", accounts)
	}
}

// 'up --sim' that is killed in the middle of a thread ends it after the next start, each
// post once: X knows then what it has of it.
func TestUpSimulatedKilledInMidThread(t *testing.T) {
	t.Parallel()
	const posts = 10
	data := t.TempDir()
	env := harness.Environment(t, map[string]string{app.SimMinuteVariable: "1s"})
	begin := func(name string) *upSite {
		t.Helper()
		s := &upSite{t: t, env: env}
		s.up = harness.Start(t, name, env, "jetpost", append(up("--data", data, "--lease", "4s").args, "--log-format", "json")...)
		s.up.Until("worker.started")
		s.sim = s.printed(`simulated X on (http://\S+),`)
		return s
	}
	s := begin("first")
	s.faults(`[{"kind":"latency","endpoint":"POST /2/tweets","delay_ms":200}]`)
	args := []string{"publish", "alice", "Part 1", "--id", "thread", "--data", data}
	want := []string{"Part 1"}
	for i := 2; i <= posts; i++ {
		args, want = append(args, "--then", fmt.Sprintf("Part %d", i)), append(want, fmt.Sprintf("Part %d", i))
	}
	if code, _, stderr := harness.RunCommand(t, env, "jetpost", args...); code != exitOK {
		t.Fatalf("publish: exit code %d\n%s", code, stderr)
	}
	testkit.Eventually(t, "three posts", func() bool { return len(s.texts("alice")) >= 3 })
	s.up.Kill()
	s = begin("second")
	if have := s.texts("alice"); len(have) < 3 || len(have) == posts {
		t.Fatalf("after the restart X has %q, want a part of the thread", have)
	}
	s.posted("alice", want...)
	parent := ""
	for _, post := range ask[[]xsim.Post](s, "/_sim/posts?user=alice") {
		if post.InReplyTo != parent {
			t.Errorf("%q replies to %q, want %q", post.Text, post.InReplyTo, parent)
		}
		parent = post.ID
	}
	if violations := ask[[]xsim.Violation](s, "/_sim/violations"); len(violations) != 0 {
		t.Errorf("violations: %+v", violations)
	}
	if !exists(filepath.Join(data, "x.jsonl")) {
		t.Error("the data directory has no journal of X")
	}
	harness.Stop(s.up)
}
