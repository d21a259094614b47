package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// upSite is 'jetpost up --sim' in a process of its own, with NATS's own command
// line as its producer.
type upSite struct {
	t    *testing.T
	up   *harness.Process
	data string // directory of 'up'
	sim  string // URL of the simulated X
	nats string // URL of NATS
	conn *app.Connection
	cli  string // path of the nats command
	env  []string
}

func newUpSite(t *testing.T, more ...string) *upSite {
	t.Helper()
	data := t.TempDir()
	a := up(append([]string{"--data", data}, more...)...)
	s := &upSite{t: t, data: data, cli: buildNATSCommand(t), env: harness.Environment(t, nil)}
	s.up = harness.Start(t, "up", s.env, "jetpost", append(a.args, "--log-format", "json", "--log-level", "debug")...)
	s.up.Until("worker.started")
	s.sim = s.printed(`simulated X on (http://\S+),`)
	s.nats = s.printed(`NATS listens on (nats://\S+)`)
	cfg, _, err := app.Config{}.Running(data)
	testkit.Must(t, err)
	s.conn, err = cfg.Connect(t.Context(), slog.New(slog.DiscardHandler), "test")
	testkit.Must(t, err)
	t.Cleanup(s.conn.Close)
	return s
}

// printed reads what 'up' tells a newcomer.
func (s *upSite) printed(pattern string) string {
	s.t.Helper()
	found := regexp.MustCompile(pattern).FindStringSubmatch(s.up.Output())
	if found == nil {
		s.t.Fatalf("'up' did not print %s", pattern)
	}
	return found[1]
}

// buildNATSCommand builds the nats command line from the version that
// tools/natscli pins, in a module of its own so that its dependencies stay there.
func buildNATSCommand(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nats")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, "github.com/nats-io/natscli/nats")
	build.Dir = filepath.Join("..", "..", "tools", "natscli")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the nats command: %v\n%s", err, out)
	}
	return path
}

// natsCommand runs the nats command line without credentials: as a producer.
func (s *upSite) natsCommand(t *testing.T, args ...string) (code int, output string) {
	t.Helper()
	code, stdout, stderr := harness.RunCommand(t, s.env, s.cli, append([]string{"--server", s.nats, "--timeout", "1s"}, args...)...)
	return code, stdout + stderr
}

// pub publishes a job and returns its place in the job stream.
func (s *upSite) pub(subject, body string) uint64 {
	s.t.Helper()
	code, output := s.natsCommand(s.t, "pub", "--jetstream", "--no-templates", subject, body)
	var sequence uint64
	if found := regexp.MustCompile(`Sequence: (\d+)`).FindStringSubmatch(output); found != nil {
		_, _ = fmt.Sscan(found[1], &sequence) // it is a number
	}
	if code != 0 || sequence == 0 {
		s.t.Fatalf("nats pub %s: exit code %d\n%s", subject, code, output)
	}
	return sequence
}

// ask reads the simulator's call log.
func ask[T any](s *upSite, path string) (answer T) {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.sim+path, nil)
	testkit.Must(s.t, err)
	response, err := http.DefaultClient.Do(request)
	testkit.Must(s.t, err)
	body, err := io.ReadAll(response.Body)
	testkit.Must(s.t, err)
	testkit.Must(s.t, response.Body.Close())
	testkit.Must(s.t, json.Unmarshal(body, &answer))
	return answer
}

func (s *upSite) texts(user string) []string {
	s.t.Helper()
	var texts []string
	for _, post := range ask[[]xsim.Post](s, "/_sim/posts?user="+user) {
		texts = append(texts, post.Text)
	}
	return texts
}

// posted waits until a user has those posts.
func (s *upSite) posted(user string, want ...string) {
	s.t.Helper()
	testkit.Eventually(s.t, fmt.Sprintf("posts of %s to be %q", user, want), func() bool { return slices.Equal(s.texts(user), want) })
}

// refused waits for the record and the event of a job that was refused, and
// returns what is wrong with it by the record's own list.
func (s *upSite) refused(account string, sequence uint64, code jetpost.Code) []jetpost.Problem {
	s.t.Helper()
	subject := fmt.Sprintf("publish.refused.%s.%d", account, sequence)
	deadLetters, err := s.conn.JS.Stream(s.t.Context(), s.conn.Names.FailedStream())
	testkit.Must(s.t, err)
	var record *jetstream.RawStreamMsg
	testkit.Eventually(s.t, "a record on "+subject, func() bool {
		record, err = deadLetters.GetLastMsgForSubject(s.t.Context(), subject)
		return err == nil
	})
	if got := record.Header.Get(jetpost.HeaderCode); got != string(code) {
		s.t.Errorf("%s has code %q, want %q", subject, got, code)
	}
	events, err := s.conn.JS.Stream(s.t.Context(), s.conn.Names.EventsStream())
	testkit.Must(s.t, err)
	testkit.Eventually(s.t, "the event of "+subject, func() bool {
		_, err := events.GetLastMsgForSubject(s.t.Context(), fmt.Sprintf("jetpost.event.request.refused.%s.sequence.%d", account, sequence))
		return err == nil
	})
	var problems []jetpost.Problem
	testkit.Must(s.t, json.Unmarshal([]byte(record.Header.Get(jetpost.HeaderErrors)), &problems))
	return problems
}

func TestUpWithNATSCommandLine(t *testing.T) {
	t.Parallel()
	s := newUpSite(t, "--refresh-cron", "0 0 0 1 1 *") // a tick would change the streams that 'denied' compares
	const hello, again = `{"version":1,"id":"hello","posts":[{"text":"Hello"}]}`, `{"version":1,"id":"hello","posts":[{"text":"Other"}]}`

	s.pub("publish.request.alice", hello)
	s.posted("alice", "Hello")
	s.pub("publish.request.alice", hello) // the same again is one job
	// The same id with another body is refused. Jobs of an account are taken in
	// order, so that by then the repeat was taken as well.
	if problems := s.refused("alice", s.pub("publish.request.alice", again), jetpost.CodeIdentityConflict); len(problems) != 1 || problems[0].Pointer != "/id" {
		t.Errorf("a second body is refused for %+v, want /id", problems)
	}
	s.posted("alice", "Hello")
	s.pub("publish.request.bob", hello) // an id is the account's own
	s.posted("bob", "Hello")

	wrong := s.pub("publish.request.alice", `{"version":1,"id":"no spaces","posts":[{"text":""},{"txt":"x"}],"publish_att":"2026-12-01T09:00:00Z"}`)
	var pointers []string
	for _, p := range s.refused("alice", wrong, jetpost.CodeInvalidRequest) {
		pointers = append(pointers, p.Pointer)
	}
	for _, want := range []string{"/id", "/posts/0/text", "/posts/1/txt", "/publish_att"} {
		if !slices.Contains(pointers, want) {
			t.Errorf("an invalid job is refused for %q, want %s among them", pointers, want)
		}
	}
	s.posted("alice", "Hello")

	t.Run("denied", func(t *testing.T) { s.denied(t) })

	t.Run("reads", func(t *testing.T) { s.reads(t) })

	clip := filepath.Join(t.TempDir(), "clip.mp4")
	testkit.Must(t, os.WriteFile(clip, append([]byte("\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom"), make([]byte, 3_000_000)...), 0o600))
	if code, output := s.natsCommand(t, "obj", "put", "--no-progress", "-f", "--name", "clip", "JETPOST_MEDIA", clip); code != 0 {
		t.Errorf("put media: exit code %d\n%s", code, output)
	}
	s.pub("publish.request.bob", `{"version":1,"id":"clip","posts":[{"text":"A clip","media":[{"object":"clip"}]}]}`)
	s.posted("bob", "Hello", "A clip")

	if violations := ask[[]xsim.Violation](s, "/_sim/violations"); len(violations) != 0 {
		t.Errorf("violations: %+v", violations)
	}
	if posts := ask[[]xsim.Post](s, "/_sim/posts"); len(posts) != 3 {
		t.Errorf("X has %d posts, want 3", len(posts))
	}
	harness.Stop(s.up)
}

// reads has a job's events read by each kind of consumer that the command makes.
func (s *upSite) reads(t *testing.T) {
	t.Helper()
	const events, filter = "JETPOST_EVENTS", "jetpost.event.request.*.alice.hello"
	want := []string{"jetpost.event.request.accepted.alice.hello", "jetpost.event.request.published.alice.hello"}
	find := regexp.MustCompile(`jetpost\.event\.request\.\w+\.alice\.hello`)
	check := func(t *testing.T, output string) {
		t.Helper()
		if got := find.FindAllString(output, -1); !slices.Equal(got, want) {
			t.Errorf("it reads %q, want %q:\n%s", got, want, output)
		}
	}
	run := func(t *testing.T, args ...string) string {
		t.Helper()
		code, output := s.natsCommand(t, args...)
		if code != 0 {
			t.Fatalf("nats %s: exit code %d\n%s", strings.Join(args, " "), code, output)
		}
		return output
	}
	testkit.Eventually(t, "the last event of the job", func() bool {
		_, output := s.natsCommand(t, "stream", "get", events, "--last-for", filter)
		return strings.Contains(output, want[1])
	})
	add := []string{"consumer", "add", events, "--defaults", "--deliver", "all", "--filter", filter}
	t.Run("pull", func(t *testing.T) {
		t.Parallel()
		run(t, append(add, "mine", "--pull")...)
		check(t, run(t, "consumer", "next", events, "mine", "--count", "2", "--ack"))
		if output := run(t, "consumer", "info", events, "mine"); !regexp.MustCompile(`Outstanding Acks: 0\b`).MatchString(output) {
			t.Errorf("not all is acknowledged:\n%s", output)
		}
	})
	t.Run("pull, ephemeral", func(t *testing.T) {
		t.Parallel()
		name := regexp.MustCompile(events + ` > (\S+)`).FindStringSubmatch(run(t, append(add, "--ephemeral", "--pull")...))
		check(t, run(t, "consumer", "next", events, name[1], "--count", "2", "--ack"))
	})
	t.Run("push", func(t *testing.T) {
		t.Parallel()
		run(t, append(add, "pushed", "--target", "_INBOX.pushed", "--ack", "explicit")...)
		sub := harness.Start(t, "sub", s.env, s.cli, "--server", s.nats, "consumer", "sub", events, "pushed", "--ack")
		testkit.Eventually(t, "both events", func() bool { return len(find.FindAllString(sub.Output(), -1)) >= 2 })
		sub.Kill() // it never ends by itself
		check(t, sub.Output())
	})
	t.Run("ordered", func(t *testing.T) {
		t.Parallel()
		check(t, run(t, "sub", "--stream", events, "--all", "--count", "2", "--subjects-only", filter))
	})
	t.Run("live", func(t *testing.T) {
		t.Parallel()
		sub := harness.Start(t, "live", s.env, s.cli, "--server", s.nats, "sub", "--count", "1", "--subjects-only", "jetpost.event.request.refused.>")
		testkit.Eventually(t, "a live event", func() bool {
			s.pub("publish.request.nobody", "{}") // nothing tells when the command listens
			return strings.Contains(sub.Output(), "jetpost.event.request.refused.nobody.")
		})
		if code := sub.Exit(); code != 0 {
			t.Errorf("exit code %d:\n%s", code, sub.Output())
		}
	})
}

// denied tries what a producer may not do.
func (s *upSite) denied(t *testing.T) {
	t.Helper()
	streams := func() []string {
		var found []string
		for info := range s.conn.JS.ListStreams(t.Context()).Info() {
			if info.Config.Name == "KV_"+s.conn.Names.LimitsBucket() {
				continue // the worker tells there what is left of X's windows, as time passes
			}
			found = append(found, fmt.Sprint(info.Config.Name, info.State.LastSeq, info.State.FirstSeq, info.State.Consumers))
		}
		slices.Sort(found)
		return found
	}
	// What a producer's NATS account has nobody for is not answered; what it has is
	// refused by the stream.
	refusal := regexp.MustCompile(`no responders|no Stream name supplied|deadline exceeded|timeout|not found|rollup not permitted|message schedules is disabled`)
	// The last job's refusal is told before its message is acknowledged.
	for _, name := range []string{s.conn.Names.JobsStream(), s.conn.Names.LanesStream()} {
		testkit.Eventually(t, name+" to be empty", func() bool {
			stream, err := s.conn.JS.Stream(t.Context(), name)
			return err == nil && stream.CachedInfo().State.Msgs == 0
		})
	}
	before := streams()
	t.Run("each", func(t *testing.T) {
		at := time.Now().Add(time.Hour).Format(time.RFC3339)
		for name, args := range map[string][]string{
			"delete jobs":          {"stream", "rm", "-f", s.conn.Names.JobsStream()},
			"delete lanes":         {"stream", "rm", "-f", s.conn.Names.LanesStream()},
			"pause lanes":          {"consumer", "pause", "-f", s.conn.Names.LanesStream(), jetpost.ConsumerLanes, "1h"},
			"purge jobs by header": {"pub", "--jetstream", "-H", "Nats-Rollup:all", "publish.request.alice", "{}"},
			"purge schedules":      {"stream", "purge", "-f", s.conn.Names.ScheduleStream()},
			"wake a lane":          {"pub", "--jetstream", "publish.wake.alice", "{}"},
			"schedule by header":   {"pub", "--jetstream", "--schedule-at", at, "--schedule-dest", "publish.wake.alice", "publish.request.alice", "{}"},
			"write a schedule":     {"pub", "--jetstream", "schedule.wake.alice", "{}"},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				code, output := s.natsCommand(t, args...)
				if code == 0 || !refusal.MatchString(output) {
					t.Errorf("nats %s: exit code %d, want it denied\n%s", strings.Join(args, " "), code, output)
				}
			})
		}
	})
	if after := streams(); !slices.Equal(before, after) {
		t.Errorf("streams were %q, are %q", before, after)
	}
}

// Without any flag but --sim, 'up' and the commands of a newcomer find each
// other, in a directory apart from that of real accounts; what died is told
// from what runs, and comes back with its accounts.
func TestUpSimulatedByDefault(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	env := append(harness.Environment(t, nil), "XDG_DATA_HOME="+home)
	begin := func(name string) *harness.Process {
		p := harness.Start(t, name, env, "jetpost", "up", "--sim", "--sim-listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0", "--log-format", "json")
		p.Until("worker.started")
		return p
	}
	first := begin("first")
	grant := `{"name":"carol","access_token":"none","refresh_token":"none","expires_at":"2026-12-01T09:00:00Z"}`
	if code, _, stderr := harness.RunCommand(t, env, "jetpost", "publish", "alice", "Hello", "--id", "hello", "--wait"); code != exitOK {
		t.Fatalf("publish: exit code %d\n%s", code, stderr)
	}
	if code, _, stderr := harness.RunCommand(t, env, "jetpost", "refresh", "alice", "--force", "--wait"); code != exitOK {
		t.Fatalf("refresh: exit code %d\n%s", code, stderr)
	}
	// The simulated X does not know carol; the one that X_API_URL names, which
	// nobody listens at, was not asked.
	code, stdout, _ := harness.RunCommand(t, append(env, "X_API_URL=http://127.0.0.1:1"), "sh", "-c", "echo '"+grant+"' | jetpost accounts import")
	if code != exitFailed || !strings.Contains(stdout, "401 Unauthorized") {
		t.Errorf("import into a simulation: exit code %d, it printed\n%s", code, stdout)
	}
	if dir := filepath.Join(home, "jetpost"); exists(dir) {
		t.Errorf("%s was made", dir)
	}
	first.Kill()
	code, _, stderr := harness.RunCommand(t, env, "jetpost", "status")
	if want := filepath.Join(home, "jetpost-sim") + " has died"; code != exitUsage || !strings.Contains(stderr, want) || !strings.Contains(stderr, "jetpost up --sim") {
		t.Errorf("status of what died: exit code %d, want %d and %q\n%s", code, exitUsage, want, stderr)
	}
	second := begin("second")
	if text := second.Output(); !strings.Contains(text, "with the accounts alice and bob") || strings.Contains(text, "back it up") {
		t.Errorf("the second start printed\n%s", text)
	}
	if code, stdout, _ := harness.RunCommand(t, env, "jetpost", "status"); code != exitOK || !strings.HasPrefix(stdout, "PUBLISHING\n") {
		t.Errorf("status: exit code %d\n%s", code, stdout)
	}
	if code, _, stderr := harness.RunCommand(t, env, "jetpost", "publish", "alice", "Hello again", "--wait"); code != exitOK {
		t.Errorf("publish to what came back: exit code %d\n%s", code, stderr)
	}
	harness.Stop(second)
	// A new simulated X gives tokens of its own, not those of the one before, which a
	// refresh has spent.
	testkit.Must(t, os.Remove(filepath.Join(home, "jetpost-sim", "x.jsonl")))
	third := begin("third")
	if code, _, stderr := harness.RunCommand(t, env, "jetpost", "publish", "alice", "Hello, new X", "--wait"); code != exitOK {
		t.Errorf("publish to an X that has forgotten: exit code %d\n%s", code, stderr)
	}
	harness.Stop(third)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Whoever has seen enough of the demo ends it with Ctrl-C, and nothing stays.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	temp := t.TempDir()
	demo := harness.Start(t, "demo", append(harness.Environment(t, nil), "TMPDIR="+temp), "jetpost", "demo")
	testkit.Eventually(t, "the demo to publish", func() bool { return strings.Contains(demo.Output(), "publishing") })
	demo.Signal(syscall.SIGINT)
	if code := demo.Exit(); code != exitInterrupted {
		t.Errorf("the demo ended with code %d, want %d", code, exitInterrupted)
	}
	left, err := os.ReadDir(temp)
	testkit.Must(t, err)
	if text := demo.Output(); len(left) > 0 || !strings.HasSuffix(text, "\njetpost: interrupted\n") || strings.Contains(text, `"level"`) {
		t.Errorf("%d directories are left; the demo printed\n%s", len(left), text)
	}
}

// What status says to do where a stream is missing can be done beside 'up', and leaves
// everything else as 'up' was told to have it.
func TestSetupBesideUp(t *testing.T) {
	t.Parallel()
	data, env := t.TempDir(), harness.Environment(t, nil)
	up := harness.Start(t, "up", env, "jetpost", append(up("--data", data).args, "--refresh-cron", never, "--jobs-mib", "8", "--log-format", "json")...)
	well := func() bool {
		code, _, _ := harness.RunCommand(t, env, "jetpost", "status", "--data", data)
		return code == exitOK
	}
	up.Until("worker.started")
	testkit.Eventually(t, "status to be well", well) // it consumes by now: at start a missing stream ends it
	cfg, _, err := app.Config{}.Running(data)
	testkit.Must(t, err)
	conn, err := cfg.Connect(t.Context(), slog.New(slog.DiscardHandler), "test")
	testkit.Must(t, err)
	t.Cleanup(conn.Close)
	testkit.Must(t, conn.JS.DeleteStream(t.Context(), conn.Names.LanesStream()))
	code, stdout, stderr := harness.RunCommand(t, env, "jetpost", "status", "--data", data)
	if code != exitFailed || !strings.Contains(stdout, "do: run: jetpost setup\n") {
		t.Errorf("status: exit code %d\n%s%s", code, stdout, stderr)
	}
	code, stdout, stderr = harness.RunCommand(t, env, "jetpost", "setup", "--data", data)
	if code != exitOK || !strings.Contains(stdout, "created    stream JETPOST_LANES\n") || strings.Contains(stdout, "updated") {
		t.Fatalf("setup: exit code %d\n%s%s", code, stdout, stderr)
	}
	testkit.Eventually(t, "status to be well again", well)
	cron, _, err := publishers.ReadCron(t.Context(), conn.JS, conn.Names)
	testkit.Must(t, err)
	if cron == nil || cron.Cron != never {
		t.Errorf("the refresh schedule is %+v, want %s", cron, never)
	}
	harness.Stop(up)
}
