package cli

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// keysBundle is a ledger with an old key and a new one, and what a command
// prints.
type keysBundle struct {
	path       string
	older, new string
	stdout     bytes.Buffer
	stderr     bytes.Buffer
}

func setupKeys(t *testing.T, accounts ...string) *keysBundle {
	t.Helper()
	b := &keysBundle{
		path: filepath.Join(t.TempDir(), "ledger.db"), older: store.GenerateKey().Reveal(), new: store.GenerateKey().Reveal(),
	}
	testkit.Must(t, b.config("").Migrate(t.Context()))
	for _, name := range accounts {
		b.add(t, name, b.older)
	}
	return b
}

func (b *keysBundle) config(keys string) app.Config {
	return app.Config{DatabaseURL: secret.New("sqlite:" + b.path), Keys: secret.New(keys)}
}

// add imports an account with the tokens that its name is part of.
func (b *keysBundle) add(t *testing.T, name, keys string) {
	t.Helper()
	ledger, err := b.config(keys).OpenStore(t.Context())
	testkit.Must(t, err)
	defer func() { testkit.Must(t, ledger.Close()) }()
	_, err = ledger.ImportAccount(t.Context(), store.Import{
		Name: name, XUserID: name, Username: name, Now: time.Now(),
		Pair: store.Pair{Access: secret.New("access-" + name), Refresh: secret.New("refresh-" + name), ExpiresAt: time.Now().Add(time.Hour)},
	})
	testkit.Must(t, err)
}

func (b *keysBundle) exec(t *testing.T, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", b.path)
	testkit.Must(t, err)
	_, err = db.ExecContext(t.Context(), statement)
	testkit.Must(t, errors.Join(err, db.Close()))
}

// run runs a command on a key wake, and returns its exit code.
func (b *keysBundle) run(ctx context.Context, t *testing.T, output, keys string, command func(*env, *app.KeyRing) error) int {
	t.Helper()
	b.stdout.Reset()
	b.stderr.Reset()
	ring, err := b.config(keys).OpenKeyRing(t.Context())
	testkit.Must(t, err)
	defer func() { testkit.Must(t, ring.Close()) }()
	e := &env{ctx: ctx, cli: &cli{Output: output}, log: slog.New(slog.DiscardHandler), stdout: &b.stdout, stderr: &b.stderr}
	return report(&b.stderr, command(e, ring), false)
}

// wants asserts what was printed, and that nothing secret was.
func (b *keysBundle) wants(t *testing.T, texts ...string) {
	t.Helper()
	printed := b.stdout.String() + b.stderr.String()
	for _, want := range texts {
		if !strings.Contains(printed, want) {
			t.Errorf("%q is not printed", want)
		}
	}
	for _, never := range []string{b.older[:8], b.new[:8], b.older[56:], b.new[56:], "access-a", "refresh-a"} {
		if strings.Contains(printed, never) {
			t.Errorf("a part of a key or a token is printed: %q", never)
		}
	}
	if t.Failed() {
		t.Logf("printed:\n%s", printed)
	}
}

func quiet() *rotationLine { return &rotationLine{out: new(bytes.Buffer), told: time.Now()} }

func TestRotationInterrupted(t *testing.T) {
	t.Parallel()
	for _, output := range []string{"json", "text"} {
		t.Run(output, func(t *testing.T) {
			t.Parallel()
			b := setupKeys(t, "alice", "bob")
			ctx, cancel := context.WithCancel(t.Context())
			line := &rotationLine{out: writes(func() { cancel() }), terminal: true}
			code := b.run(ctx, t, output, b.new+","+b.older, func(e *env, ring *app.KeyRing) error { return rotate(e, ring, line) })
			if code != exitInterrupted {
				t.Errorf("exit code %d, want %d", code, exitInterrupted)
			}
			b.wants(t, "jetpost: ended after 2 of 2 rows, 2 sealed anew\n", "do: run jetpost keys rotate again")
			if output == "json" {
				var told rotation
				testkit.Must(t, json.Unmarshal(b.stdout.Bytes(), &told))
				if told.Completed || told.Resealed != 2 {
					t.Errorf("the object says %+v", told)
				}
			}
			code = b.run(t.Context(), t, "text", b.new+","+b.older, func(e *env, ring *app.KeyRing) error { return rotate(e, ring, quiet()) })
			if code != exitOK {
				t.Errorf("exit code %d of the next run, want %d", code, exitOK)
			}
			b.wants(t, "2 rows, 0 sealed anew\n", "the others can be removed from HUB_ENCRYPTION_KEY")
		})
	}
}

// writes calls itself for every write.
type writes func()

func (w writes) Write(p []byte) (int, error) {
	w()
	return len(p), nil
}

// Rows that do not open stay, are named, and say whether a key would help.
func TestKeysNameWhatDoesNotOpen(t *testing.T) {
	t.Parallel()
	b := setupKeys(t, "alice", "bob", "cyd")
	lost := store.GenerateKey().Reveal()
	b.add(t, "dan", lost+","+b.older)
	b.exec(t, "UPDATE oauth_tokens SET access_token = refresh_token WHERE user_id = 'bob'")
	status := func(verify bool) func(*env, *app.KeyRing) error {
		return func(e *env, ring *app.KeyRing) error { return (&keysStatusCmd{Verify: verify}).status(e, ring) }
	}
	both := b.new + "," + b.older
	for _, test := range []struct {
		name    string
		command func(*env, *app.KeyRing) error
		want    []string
	}{
		{"status", status(false), []string{
			"rows not sealed with the first key: 3\n", "rows in need of a key that is missing: 1\n",
			"4 rows, counted by the key ids that they carry; --verify opens them\n", " is missing: add it to HUB_ENCRYPTION_KEY",
		}},
		{"status --verify", status(true), []string{
			"rows not sealed with the first key: 2\n", "rows in need of a key that is missing: 1\n", "rows damaged: 1\n", "opened 2 of 4 rows\n",
			"open token of bob: sealed value of ", "open token of dan: no configured key has the id ",
		}},
		{"rotate", func(e *env, ring *app.KeyRing) error { return rotate(e, ring, quiet()) }, []string{
			"4 rows, 2 sealed anew\n", "open token of bob: sealed value of ", "open token of dan: no configured key has the id ",
			"jetpost: 2 rows do not open, and were left as they are\n", "do: add the keys that they need",
		}},
	} {
		if code := b.run(t.Context(), t, "text", both, test.command); code != exitFailed {
			t.Errorf("%s: exit code %d, want %d", test.name, code, exitFailed)
		}
		b.wants(t, test.want...)
	}

	// With the key back, damage alone is left, and keeps the old key.
	code := b.run(t.Context(), t, "text", both+","+lost, func(e *env, ring *app.KeyRing) error { return rotate(e, ring, quiet()) })
	if code != exitFailed {
		t.Errorf("exit code %d with a damaged row, want %d", code, exitFailed)
	}
	b.wants(t, "4 rows, 1 sealed anew\n", "some rows are damaged", "jetpost: 1 rows are damaged, and were left as they are\n", "do: restore them")
	b.exec(t, "UPDATE ledger SET key_check = 'jp1.nonsense'")
	if code := b.run(t.Context(), t, "text", both+","+lost, status(false)); code != exitFailed {
		t.Errorf("exit code %d with a damaged key check value, want %d", code, exitFailed)
	}
	b.wants(t, "the key check value, which is opened at every start, is damaged")
}

// A worker that was not restarted yet seals with the old key for as long as it
// runs: then the old key is not called free.
func TestRotationBehindAWorker(t *testing.T) {
	t.Parallel()
	b := setupKeys(t, "alice")
	line := &rotationLine{terminal: true, out: writes(func() { b.add(t, "later-"+strings.ToLower(store.GenerateKey().Reveal()[:8]), b.older+","+b.new) })}
	code := b.run(t.Context(), t, "text", b.new+","+b.older, func(e *env, ring *app.KeyRing) error { return rotate(e, ring, line) })
	if code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
	b.wants(t, "sealed with another key meanwhile", "do: a worker still has that key first", "once all workers have it first, run jetpost keys rotate")
}

func TestRotationLine(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := rotationLine{out: &out, terminal: true}
	p.tell(store.RotationProgress{Seen: 1, Total: 2, Resealed: 1})
	p.tell(store.RotationProgress{Seen: 2, Total: 2, Resealed: 1})
	p.end()
	if want := "\r\x1b[K1 of 2 rows, 1 sealed anew\r\x1b[K2 of 2 rows, 1 sealed anew\n"; out.String() != want {
		t.Errorf("on a terminal: %q, want %q", out.String(), want)
	}
	out.Reset()
	p = rotationLine{out: &out, told: time.Now().Add(-progressEvery)}
	p.tell(store.RotationProgress{Seen: 1, Total: 2})
	p.tell(store.RotationProgress{Seen: 2, Total: 2})
	p.end()
	if want := "1 of 2 rows, 0 sealed anew\n"; out.String() != want {
		t.Errorf("elsewhere: %q, want %q", out.String(), want)
	}
}
