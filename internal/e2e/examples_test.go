package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/testkit"
)

// TestExamples runs the programs of examples/ against 'jetpost up --sim'.
func TestExamples(t *testing.T) {
	t.Parallel()
	s := newUpSite(t, "--web-listen", "127.0.0.1:0")
	examples, err := filepath.Abs(filepath.Join("..", "..", "examples"))
	testkit.Must(t, err)
	bin := buildExamples(t, filepath.Join(examples, "go"))
	env := slices.Concat(s.env, []string{"NATS_URL=" + s.nats, "DATABASE_URL=" + pgtest.New(t), "PATH=" + filepath.Dir(s.cli) + ":" + os.Getenv("PATH")})

	watcher := harness.Start(t, "watcher", env, filepath.Join(bin, "watcher"), "alice")
	told := func(want string) {
		t.Helper()
		testkit.Eventually(t, "the watcher to print "+want, func() bool { return strings.Contains(watcher.Output(), want) })
	}
	told("watching")

	run := func(t *testing.T, want string, program string, args ...string) {
		t.Helper()
		code, stdout, stderr := harness.RunCommand(t, env, program, args...)
		if code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("%s %q: exit code %d, output %q%q, want %q", filepath.Base(program), args, code, stdout, stderr, want)
		}
	}
	run(t, "/status/", filepath.Join(bin, "producer"), "alice", "from-go", "From Go")
	run(t, "/status/", filepath.Join(bin, "producer"), "alice", "from-go", "From Go") // is one request
	s.posted("alice", "From Go")
	told("request.published alice from-go published")

	const events = 4 // an acceptance and an end of each request
	shell := harness.Start(t, "watch.sh", env, filepath.Join(examples, "bash", "watch.sh"), "alice", strconv.Itoa(events))
	run(t, "/status/", filepath.Join(examples, "bash", "publish.sh"), "alice", "from-bash", "From Bash")
	<-shell.Done
	if told := shell.Output(); !strings.Contains(told, "request.published alice from-bash published") {
		t.Errorf("watch.sh prints %q", told)
	}
	s.posted("alice", "From Go", "From Bash")
	if code, _, stderr := harness.RunCommand(t, env, filepath.Join(examples, "bash", "publish.sh"), "alice", "no id", "Text"); code == 0 || !strings.Contains(stderr, `"invalid"`) {
		t.Errorf("a request that breaks the contract: exit code %d, %q", code, stderr)
	}

	pages := s.printed(`pages on (http://\S+);`)
	python := filepath.Join(examples, "python", "publish.py")
	env = append(env, "JETPOST_URL="+pages, "JETPOST_TOKEN="+s.token(t, "shop", "bob", "publish,read"))
	looker := harness.Start(t, "watch.py", env, filepath.Join(examples, "python", "watch.py"), "bob")
	run(t, "/status/", python, "bob", "from-python", "From Python")
	testkit.Eventually(t, "watch.py to print it", func() bool { return strings.Contains(looker.Output(), "bob from-python published") })
	s.posted("bob", "From Python")
	if code, _, stderr := harness.RunCommand(t, env, python, "alice", "from-python", "From Python"); code != 1 || !strings.Contains(stderr, "forbidden: ") {
		t.Errorf("another account: exit code %d, %q", code, stderr)
	}

	s.called(t, env, filepath.Join(examples, "bash", "call.sh"))

	run(t, "sent product-1 as job", filepath.Join(bin, "outbox"), "bob", "New: blue shoes")
	run(t, "sent product-2 as job", filepath.Join(bin, "outbox"), "bob", "New: red shoes")
	s.posted("bob", "From Python", "From curl", "Held by the pause", "New: blue shoes", "New: red shoes")
	s.posted("alice", "From Go", "From Bash")
}

// called has curl do what the program of another module does over NATS: publish, look, cancel,
// replay and pause, with a token of these verbs and one account.
func (s *upSite) called(t *testing.T, env []string, program string) {
	t.Helper()
	env = append(env, "JETPOST_TOKEN="+s.token(t, "curl", "bob", "publish,read,manage"))
	call := func(operation, account, body string) (code int, stdout, stderr string) {
		t.Helper()
		return harness.RunCommand(t, env, program, operation, account, body)
	}
	does := func(want, operation, body string) {
		t.Helper()
		if code, stdout, stderr := call(operation, "bob", body); code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("%s %s: exit code %d, %q%q, want %q", operation, body, code, stdout, stderr, want)
		}
	}
	does(`"state":"`, "request.publish", `{"id":"curl-1","posts":[{"text":"From curl"}]}`)
	testkit.Eventually(t, "the request to be published", func() bool {
		_, stdout, _ := call("request.get", "bob", `{"id":"curl-1"}`)
		return strings.Contains(stdout, `"state":"published"`)
	})
	does(`"since":"`, "account.pause", `{"operation_id":"curl-pause","reason":"lunch"}`)
	does(`"state":"scheduled"`, "request.publish", `{"id":"curl-2","publish_at":"2099-01-01T00:00:00Z","posts":[{"text":"Later"}]}`)
	does(`"state":"cancelled"`, "request.cancel", `{"operation_id":"curl-cancel","id":"curl-2"}`)
	does(`"state":"cancelled"`, "request.cancel", `{"operation_id":"curl-cancel","id":"curl-2"}`)
	does(`"state":"queued"`, "request.publish", `{"id":"curl-3","posts":[{"text":"Held by the pause"}]}`)
	does(`"expired":1`, "account.resume", `{"operation_id":"curl-resume","expire_before":"2098-01-01T00:00:00Z"}`)
	does(`"action":"queued"`, "request.replay", `{"operation_id":"curl-replay","ids":["curl-3"]}`)
	testkit.Eventually(t, "the replayed request to be published", func() bool {
		_, stdout, _ := call("request.get", "bob", `{"id":"curl-3"}`)
		return strings.Contains(stdout, `"state":"published"`)
	})
	for operation, account := range map[string]string{
		"request.get": "alice", "request.publish": "alice", "request.cancel": "alice", "request.replay": "alice", "account.pause": "alice",
		"request.list": "-", "app.pause": "-", "token.list": "-", "account.connect": "alice",
	} {
		if code, stdout, stderr := call(operation, account, `{"id":"from-go"}`); code != 1 || stdout != "" || !strings.Contains(stderr, `"forbidden"`) {
			t.Errorf("%s of %s: exit code %d, %q%q", operation, account, code, stdout, stderr)
		}
	}
}

// token makes an API token as an operator does.
func (s *upSite) token(t *testing.T, name, accounts, verbs string) string {
	t.Helper()
	code, stdout, stderr := harness.RunCommand(t, slices.Concat(s.env, []string{"JETPOST_DATA=" + s.data}), "jetpost", "tokens", "create", name, "--accounts", accounts, "--verbs", verbs)
	token, _, _ := strings.Cut(stdout, "\n")
	if code != 0 || token == "" {
		t.Fatalf("create a token: exit code %d, %s%s", code, stdout, stderr)
	}
	return token
}

// buildExamples builds the programs below a directory, and returns where they are.
func buildExamples(t *testing.T, dir string) string {
	t.Helper()
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+string(filepath.Separator), "./...")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the examples: %v\n%s", err, out)
	}
	return bin
}
