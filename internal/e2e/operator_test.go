package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// attempt is what an operator tries, with settings that differ from the right
// ones; an empty one is missing.
type attempt struct {
	args     []string
	settings map[string]string
	// never must not be printed.
	never string
}

// operatorError is an attempt that fails.
type operatorError struct {
	name string
	attempt
	code int
	want []string // on standard error
}

// setting is an attempt to start a worker with one other setting.
func setting(name, value string) attempt {
	return attempt{args: []string{"worker"}, settings: map[string]string{name: value}}
}

// wrongSettings are of the environment and the command line.
func wrongSettings(t *testing.T) []operatorError {
	t.Helper()
	notFound := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(notFound.Close)
	return []operatorError{
		{"configuration wrong in many places", attempt{
			args: []string{"worker", "--lease", "1ms", "--slots", "5000"}, never: "hidden",
			settings: map[string]string{"NATS_URL": "http://x", "DATABASE_URL": "mysql://u:hidden@h/d", "HUB_ENCRYPTION_KEY": "hidden", "X_CLIENT_ID": ""},
		}, exitUsage, []string{"NATS_URL: ", "DATABASE_URL: ", "HUB_ENCRYPTION_KEY, ", "X_CLIENT_ID: ", "lease: ", "slots: "}},
		{"encryption key missing", setting("HUB_ENCRYPTION_KEY", ""), exitUsage, []string{"HUB_ENCRYPTION_KEY: is missing", "jetpost keys generate"}},
		{"encryption key of another", setting("HUB_ENCRYPTION_KEY", store.GenerateKey().Reveal()), exitFailed, []string{"encryption key", "HUB_ENCRYPTION_KEY"}},
		{"flag misspelt", attempt{args: []string{"worker", "--leese", "5s"}}, exitUsage, []string{`did you mean "--lease"?`, "--help"}},
		{"real X made faster", attempt{args: []string{"worker"}, settings: map[string]string{"X_API_URL": "", app.SimMinuteVariable: "1s"}}, exitUsage, []string{app.SimMinuteVariable + ": is for a simulated X"}},
		{"X made faster that is not simulated", attempt{args: []string{"worker"}, settings: map[string]string{"X_API_URL": notFound.URL, app.SimMinuteVariable: "1s"}}, exitFailed, []string{"404 Not Found", "no simulated X", app.SimMinuteVariable}},
	}
}

func wrongDatabases(t *testing.T) []operatorError {
	t.Helper()
	return []operatorError{
		{"database has another password", wrongPassword(t), exitFailed, []string{"password authentication failed", "DATABASE_URL"}},
		{"database not set up", setting("DATABASE_URL", pgtest.New(t)), exitFailed, []string{"has no schema yet", "do: run jetpost setup"}},
		{"database unreachable", setting("DATABASE_URL", "postgres://u:p@"+testkit.ClosedAddress(t)+"/d"), exitFailed, []string{"connection refused", "DATABASE_URL"}},
	}
}

func wrongNATS(t *testing.T) []operatorError {
	t.Helper()
	emptyNATS := natstest.Server(t, natstest.Listen).ClientURL()
	guardedNATS := natstest.Server(t, natstest.Listen, func(o *server.Options) { o.Username, o.Password = "jetpost", "right" }).ClientURL()
	otherDatabase := "sqlite:" + filepath.Join(t.TempDir(), "other.db")
	testkit.Must(t, app.Config{DatabaseURL: secret.New(otherDatabase)}.Migrate(t.Context()))
	return []operatorError{
		{"credentials of NATS wrong", attempt{
			args: []string{"worker"}, never: "hidden", settings: map[string]string{"NATS_URL": guardedNATS, "NATS_USER": "jetpost", "NATS_PASSWORD": "hidden"},
		}, exitFailed, []string{"Authorization Violation", "NATS_PASSWORD"}},
		{"NATS not set up", setting("NATS_URL", emptyNATS), exitFailed, []string{"not set up", "do: run: jetpost setup"}},
		{"NATS of another database", setting("DATABASE_URL", otherDatabase), exitFailed, []string{"belongs to another database", "JETPOST_PREFIX"}},
		{"NATS too old", setting("NATS_URL", oldNATS(t)), exitFailed, []string{`"2.10.7"`, "need 2.14", "upgrade"}},
		{"NATS unreachable", setting("NATS_URL", "nats://"+testkit.ClosedAddress(t)), exitFailed, []string{"connect to NATS", "NATS_URL"}},
		{"stream of a stranger", foreignStream(t), exitFailed, []string{"stream JETPOST_JOBS was not made by jetpost", "JETPOST_PREFIX"}},
	}
}

// wrongPlaces are of directories, disks and ports. The file stands where a directory should.
func wrongPlaces(t *testing.T, s *site, file string) []operatorError {
	t.Helper()
	limited := up("--data", t.TempDir())
	limited.args = append([]string{"sh", "-c", `ulimit -f 64 && exec "$@"`, "sh", "jetpost"}, limited.args...)
	return []operatorError{
		{"data directory in use", s.upTwice(t), exitFailed, []string{"in use by another jetpost", "--data"}},
		{"data directory is a file", up("--data", file), exitFailed, []string{"data directory", "--data"}},
		{"data directory unwritable", up("--data", "/proc/jetpost"), exitFailed, []string{"data directory", "--data"}},
		{"disk full", limited, exitFailed, []string{"disk", "has room"}},
		{"lifeboat cannot be made", attempt{args: []string{"worker", "--lifeboat", filepath.Join(file, "lifeboat")}}, exitFailed, []string{"make lifeboat", "--lifeboat"}},
		{"port of health in use", attempt{args: []string{"worker", "--health-listen", harness.HoldPort(t).Addr().String()}}, exitFailed, []string{"address already in use", "--health-listen"}},
		{"port of NATS in use", up("--data", t.TempDir(), "--nats-listen", harness.HoldPort(t).Addr().String()), exitFailed, []string{"address already in use", "--nats-listen"}},
		{"port of the simulator in use", attempt{args: []string{"sim", "--listen", harness.HoldPort(t).Addr().String()}}, exitFailed, []string{"address already in use", "--listen"}},
	}
}

// wrongSimulators are of its directory, journal and scenario.
func wrongSimulators(t *testing.T, s *site) []operatorError {
	t.Helper()
	return []operatorError{
		{"simulator's data directory in use", s.simTwice(t), exitFailed, []string{"in use by another jetpost", "--data"}},
		{"simulator's journal broken", attempt{args: []string{"sim", "--data", brokenSim(t)}}, exitFailed, []string{"x.jsonl: line 2: invalid character 'o'", "remove it"}},
		{"simulator on real accounts", attempt{args: []string{"sim", "--data", realData(t)}}, exitFailed, []string{"holds real accounts", "--data"}},
		{"scenario misspelt", attempt{args: []string{"sim", "--scenario", badScenario(t)}}, exitFailed, []string{"line 3: step 1: json: unknown field \"at\"", "docs/SIMULATOR.md"}},
		{"scenario of nobody", attempt{args: []string{"sim", "--scenario", "/none.json"}}, exitFailed, []string{"read scenario: open /none.json", "--scenario"}},
	}
}

// Whatever an operator gets wrong is told in one message with what to do about
// it, before anything has begun, and a job that waits meanwhile is not lost.
func TestOperatorErrors(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Lease: longLease, Accounts: []string{"alice"}})
	waiting := &harness.Job{Account: "alice", Id: "waiting", Posts: 2}
	s.Publish([]*harness.Job{waiting})
	file := filepath.Join(t.TempDir(), "file")
	testkit.Must(t, os.WriteFile(file, []byte("precious"), 0o600))

	t.Run("each", func(t *testing.T) {
		for _, test := range slices.Concat(wrongSettings(t), wrongDatabases(t), wrongNATS(t), wrongPlaces(t, s, file), wrongSimulators(t, s)) {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				test.isTold(t, s)
			})
		}
	})

	if text, err := os.ReadFile(file); string(text) != "precious" {
		t.Errorf("the file in the data directory's place holds %q, %v", text, err)
	}
	if n := len(s.Sim.Posts("")); n != 0 {
		t.Errorf("X has %d posts before any worker was started as it should be", n)
	}
	w := s.Worker("worker")
	s.AllPublished(1)
	s.WantCallLog([]*harness.Job{waiting})
	harness.Stop(w)
}

// isTold in one message, with what to do about it.
func (is operatorError) isTold(t *testing.T, s *site) {
	t.Helper()
	a := is.attempt
	program := "jetpost"
	if a.args[0] == "sh" {
		program, a.args = a.args[0], a.args[1:]
	}
	code, stdout, stderr := harness.RunCommand(t, s.settingsBut(t, a.settings), program, a.args...)
	if code != is.code {
		t.Errorf("exit code %d, want %d", code, is.code)
	}
	for _, want := range is.want {
		if !strings.Contains(stderr, want) {
			t.Errorf("standard error lacks %q", want)
		}
	}
	messages, advice := strings.Count("\n"+stderr, "\njetpost: "), strings.Count(stderr, "\n  do: ")
	if messages != 1 || advice != 1 || strings.Contains(stderr, "goroutine ") {
		t.Errorf("%d messages and %d lines of advice, want one of each", messages, advice)
	}
	if a.never != "" && strings.Contains(stderr+stdout, a.never) {
		t.Errorf("%q is printed", a.never)
	}
	if t.Failed() {
		t.Logf("%v printed:\n%s%s", a.args, stdout, stderr)
	}
}

// settingsBut are the site's, some of them replaced.
func (s *site) settingsBut(t *testing.T, other map[string]string) []string {
	t.Helper()
	settings := s.Settings()
	for name, value := range other {
		settings = append(settings, name+"="+value) // the last one counts
	}
	return settings
}

// up is an attempt to run everything on this machine; NATS and database are
// its own.
func up(args ...string) attempt {
	return attempt{
		args:     append([]string{"up", "--sim", "--sim-listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0"}, args...),
		settings: map[string]string{"NATS_URL": "", "DATABASE_URL": "", "HUB_ENCRYPTION_KEY": ""},
	}
}

// upTwice runs one on a directory for the attempt to run another there.
func (s *site) upTwice(t *testing.T) attempt {
	t.Helper()
	a := up("--data", t.TempDir())
	first := harness.Start(t, "up", s.settingsBut(t, a.settings), "jetpost", a.args...)
	first.Until("worker.started")
	return a
}

// simTwice runs a simulator on a directory for the attempt to run another there.
func (s *site) simTwice(t *testing.T) attempt {
	t.Helper()
	data := t.TempDir()
	startSim(t, "--data", data)
	return attempt{args: []string{"sim", "--listen", "127.0.0.1:0", "--data", data}}
}

// brokenSim is a directory whose simulated X was written to by somebody.
func brokenSim(t *testing.T) string {
	t.Helper()
	data := t.TempDir()
	testkit.Must(t, os.WriteFile(filepath.Join(data, "simulated"), nil, 0o600))
	testkit.Must(t, os.WriteFile(filepath.Join(data, "x.jsonl"), []byte(`{"format":1}`+"\nother\n"), 0o600))
	return data
}

// badScenario is a file with a step that has a member too much.
func badScenario(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "scenario.json")
	testkit.Must(t, os.WriteFile(path, []byte("{\"steps\": [\n\n{\"do\": \"POST /_sim/reset\", \"at\": \"5s\"}\n]}\n"), 0o600))
	return path
}

// realData is a directory of accounts that X knows.
func realData(t *testing.T) string {
	t.Helper()
	data := t.TempDir()
	testkit.Must(t, os.WriteFile(filepath.Join(data, "jetpost.db"), nil, 0o600))
	return data
}

// wrongPassword has a PostgreSQL ask for one.
func wrongPassword(t *testing.T) attempt {
	t.Helper()
	cluster := pgtest.Start(t)
	u, err := url.Parse(cluster.URL())
	testkit.Must(t, err)
	rules := filepath.Join(u.Query().Get("host"), "data", "pg_hba.conf")
	text, err := os.ReadFile(rules)
	testkit.Must(t, err)
	testkit.Must(t, os.WriteFile(rules, append([]byte("local all guarded scram-sha-256\n"), text...), 0o600))
	conn, err := pgx.Connect(t.Context(), cluster.URL())
	testkit.Must(t, err)
	_, err = conn.Exec(t.Context(), "CREATE ROLE guarded LOGIN PASSWORD 'right'; SELECT pg_reload_conf()")
	testkit.Must(t, errors.Join(err, conn.Close(t.Context())))
	u.User = url.UserPassword("guarded", "hidden")
	testkit.Eventually(t, "PostgreSQL to ask for passwords", func() bool {
		conn, err := pgx.Connect(t.Context(), u.String())
		return err != nil || conn.Close(t.Context()) != nil
	})
	return attempt{args: []string{"worker"}, never: "hidden", settings: map[string]string{"DATABASE_URL": u.String()}}
}

// foreignStream makes a NATS on which somebody else has a stream of our name,
// with a message that must stay.
func foreignStream(t *testing.T) attempt {
	t.Helper()
	server := natstest.Server(t, natstest.Listen)
	_, js := natstest.Connect(t, server)
	theirs := jetstream.StreamConfig{Name: "JETPOST_JOBS", Subjects: []string{"theirs"}}
	_, err := js.CreateStream(t.Context(), theirs)
	testkit.Must(t, err)
	_, err = js.Publish(t.Context(), "theirs", []byte("precious"))
	testkit.Must(t, err)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		for info := range js.ListStreams(ctx).Info() {
			if info.Config.Name != theirs.Name || info.State.Msgs != 1 || len(info.Config.Subjects) != 1 {
				t.Errorf("the stranger's NATS has stream %+v", info)
			}
		}
	})
	return attempt{args: []string{"setup"}, settings: map[string]string{"NATS_URL": server.ClientURL()}}
}

// oldNATS speaks as much of the NATS protocol as an old server needs to tell
// its age: it greets, and answers what JetStream is asked first.
func oldNATS(t *testing.T) string {
	t.Helper()
	listener := harness.HoldPort(t)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // the test is over
			}
			go serveOldNATS(conn)
		}
	}()
	return "nats://" + listener.Addr().String()
}

func serveOldNATS(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	const account = `{"type":"io.nats.jetstream.api.v1.account_info_response","api":{"level":0}}`
	fmt.Fprint(conn, `INFO {"server_id":"old","version":"2.10.7","proto":1,"headers":true,"jetstream":true,"max_payload":1048576}`+"\r\n")
	lines := bufio.NewReader(conn)
	inbox := "" // the subscription that answers come to
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		words := strings.Fields(line)
		switch words[0] {
		case "PING":
			fmt.Fprint(conn, "PONG\r\n")
		case "SUB":
			inbox = words[len(words)-1]
		case "PUB": // SUBJECT REPLY BYTES
			bytes, err := strconv.Atoi(words[3])
			if err != nil {
				return
			}
			if _, err := lines.Discard(bytes + len("\r\n")); err != nil {
				return
			}
			fmt.Fprintf(conn, "MSG %s %s %d\r\n%s\r\n", words[2], inbox, len(account), account)
		}
	}
}
