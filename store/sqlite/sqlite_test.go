package sqlite_test

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/storetest"
	"github.com/jetpost/jetpost/store/sqlite"
)

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Ledger {
		path := migrated(t, "ledger.db")
		return storetest.Ledger{
			Open: func(t *testing.T, sealer *store.Sealer) store.Store { return open(t, path, sealer) },
			Dump: func(t *testing.T) []byte { return dump(t, path) },
			Exec: func(t *testing.T, statement string) { exec(t, path, statement) },
		}
	})
}

func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	path := migrated(t, "ledger.db")
	ledger := storetest.Ledger{Open: func(t *testing.T, sealer *store.Sealer) store.Store { return open(t, path, sealer) }}
	storetest.RunRotationUnderLoad(t, ledger, 4_000, func(t *testing.T, rows []storetest.LoadRow) {
		values, err := json.Marshal(rows)
		if err != nil {
			t.Fatal(err)
		}
		exec(t, path, `
INSERT INTO accounts (name, x_user_id, username, created_at)
SELECT value ->> 'Account', value ->> 'Account', '', 0 FROM json_each('`+string(values)+`');
INSERT INTO lanes (account) SELECT name FROM accounts;
INSERT INTO oauth_tokens (id, user_id, access_token, refresh_token, expires_at, refresh_after, scope, version, refreshed_at, imported)
SELECT value ->> 'TokenID', value ->> 'Account', value ->> 'Access', value ->> 'Refresh',
       CAST(unixepoch(value ->> 'ExpiresAt') * 1000000 AS INTEGER), 0, '', 1, 0, zeroblob(32)
FROM json_each('`+string(values)+`');`)
	})
}

// migrated makes a database with its schema in a directory of its own. All have one id.
func migrated(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	testkit.SQLite(t, path, sqlite.Migrate)
	return path
}

func open(t *testing.T, path string, sealer *store.Sealer) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), path, sealer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func newSealer(t *testing.T) *store.Sealer {
	t.Helper()
	sealer, err := store.NewSealer(store.GenerateKey().Reveal())
	if err != nil {
		t.Fatal(err)
	}
	return sealer
}

// dump reads the file and its write-ahead log.
func dump(t *testing.T, path string) []byte {
	t.Helper()
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(content)
	}
	return all.Bytes()
}

func exec(t *testing.T, path, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Errorf("%s: %v", statement, err)
	}
	if err := db.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestMigrateByManyAtOnce(t *testing.T) {
	t.Parallel()
	const processes = 8
	path := filepath.Join(t.TempDir(), "ledger.db")
	var wg sync.WaitGroup
	failures := make([]error, processes)
	for i := range processes {
		wg.Go(func() { failures[i] = sqlite.Migrate(t.Context(), path) })
	}
	wg.Wait()
	if err := errors.Join(failures...); err != nil {
		t.Fatal(err)
	}
	open(t, path, newSealer(t))
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	garbage := filepath.Join(folder, "garbage.db")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("this is no database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(folder, "empty.db")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	newer := migrated(t, "newer.db")
	exec(t, newer, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)")

	tests := []struct {
		name, path string
		schema     bool // a SchemaError is wanted
		hint       string
	}{
		{"Directory", folder, false, ""},
		{"Empty", empty, true, "run jetpost setup"},
		{"Garbage", garbage, false, ""},
		{"Missing", filepath.Join(folder, "none.db"), true, "run jetpost setup"},
		{"Newer", newer, true, "run the newer jetpost that migrated it"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, err := sqlite.Open(t.Context(), test.path, newSealer(t))
			if err == nil {
				t.Fatal(errors.Join(errors.New("it opened"), s.Close()))
			}
			if !strings.Contains(err.Error(), test.path) {
				t.Errorf("error %q does not name the path", err)
			}
			var schema *store.SchemaError
			if errors.As(err, &schema) != test.schema {
				t.Fatalf("error is %T, SchemaError wanted: %t", err, test.schema)
			}
			if test.schema && schema.Hint() != test.hint {
				t.Errorf("hint is %q, want %q", schema.Hint(), test.hint)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(folder, "none.db")); err == nil {
		t.Error("opening what does not exist made a file")
	}
	if err := sqlite.Migrate(t.Context(), filepath.Join(folder, "no", "such", "folder.db")); err == nil || !strings.Contains(err.Error(), folder) {
		t.Errorf("migrating in a folder that does not exist: error is %v, want one that names the path", err)
	}
}

func TestOpenStrangePath(t *testing.T) {
	t.Parallel()
	path := migrated(t, "50% off? #1 + a b.db")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the database is elsewhere: %v", err)
	}
	open(t, path, newSealer(t))
}

// TestPruneTakenBack: a batch that fails half way has pruned nothing, and says so.
func TestPruneTakenBack(t *testing.T) {
	t.Parallel()
	path := migrated(t, "jetpost.db")
	s := open(t, path, newSealer(t))
	now := time.Now()
	key := store.Key{Account: "acme", ID: "old"}
	_, err := s.ImportAccount(t.Context(), store.Import{
		Name: key.Account, XUserID: "1", Now: now,
		Pair: store.Pair{Access: secret.New("a"), Refresh: secret.New("r"), ExpiresAt: now.Add(time.Hour)},
	})
	testkit.Must(t, err)
	_, err = s.Accept(t.Context(), store.Acceptance{
		Request: jetpost.Request{Account: key.Account, ID: key.ID, Posts: make([]jetpost.Post, 1)},
		Body:    []byte("body"), Digest: []byte("digest"), Now: now,
	})
	testkit.Must(t, err)
	_, err = s.Cancel(t.Context(), key, now)
	testkit.Must(t, err)
	exec(t, path, "UPDATE requests SET announced = revision")
	exec(t, path, "CREATE TRIGGER refuse BEFORE DELETE ON requests BEGIN SELECT RAISE(ABORT, 'refused'); END")
	got, err := s.Prune(t.Context(), key.Account, []string{key.ID}, now.Add(time.Hour))
	if err == nil || got != (store.Pruned{}) {
		t.Errorf("pruned %+v, %v; want nothing and an error", got, err)
	}
}
