package app

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// schemaBefore is the one that the workers of before are built for.
const schemaBefore = 9

// installBefore is an installation with that schema, on a SQLite file and a NATS.
func installBefore(t *testing.T) (Config, *Connection, *sql.DB) {
	t.Helper()
	path := filepath.Join(t.TempDir(), databaseFile)
	db, err := sql.Open("sqlite", path)
	testkit.Must(t, err)
	t.Cleanup(func() { _ = db.Close() })
	run := func(statements string) {
		_, err := db.ExecContext(t.Context(), statements)
		testkit.Must(t, err)
	}
	run("CREATE TABLE goose_db_version (id INTEGER PRIMARY KEY AUTOINCREMENT, version_id INTEGER NOT NULL, is_applied INTEGER NOT NULL, tstamp TIMESTAMP DEFAULT (datetime('now')))")
	run("INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, 1)")
	files, err := filepath.Glob("../../store/sqlite/migrations/*.sql")
	testkit.Must(t, err)
	for _, name := range files {
		version, err := strconv.Atoi(filepath.Base(name)[:5])
		testkit.Must(t, err)
		if version > schemaBefore {
			break
		}
		text, err := os.ReadFile(name)
		testkit.Must(t, err)
		_, up, _ := strings.Cut(string(text), "-- +goose Up")
		up, _, _ = strings.Cut(up, "-- +goose Down")
		run(up)
		run(fmt.Sprintf("INSERT INTO goose_db_version (version_id, is_applied) VALUES (%d, 1)", version))
	}
	cfg := Config{
		DatabaseURL: secret.New("sqlite:" + path), Keys: store.GenerateKey(),
		NATS: NATSConfig{URL: wallServers(t, 1, Walls{})[0].ClientURL(), User: setupUser, Password: secret.New(testPassword), Replicas: 1},
	}
	conn, err := cfg.Connect(t.Context(), slog.New(slog.DiscardHandler), "test")
	testkit.Must(t, err)
	t.Cleanup(conn.Close)
	var id string
	testkit.Must(t, db.QueryRowContext(t.Context(), "SELECT id FROM ledger").Scan(&id))
	_, err = publishers.Setup(t.Context(), conn.JS, cfg.Topology(conn.Names, id))
	testkit.Must(t, err)
	return cfg, conn, db
}

// TestSetupBesideOlderWorkers: setup refuses a schema that workers who run do not survive, and
// says what to do: stop them, or force it.
func TestSetupBesideOlderWorkers(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	for _, forced := range []bool{false, true} {
		t.Run(fmt.Sprint("forced ", forced), func(t *testing.T) {
			t.Parallel()
			cfg, conn, db := installBefore(t)
			version := func() (is int64) {
				testkit.Must(t, db.QueryRowContext(t.Context(), "SELECT max(version_id) FROM goose_db_version").Scan(&is))
				return is
			}
			heartbeats := publishers.NewHeartbeats(conn.JS, conn.Names)
			testkit.Must(t, heartbeats.Put(t.Context(), publishers.Heartbeat{Worker: "before-1", Host: "host-1", Version: "v0.1.0"})) // which names no schema
			testkit.Must(t, heartbeats.Put(t.Context(), publishers.Heartbeat{Worker: "after-1", Host: "host-2", Schema: cfg.schemaVersion()}))
			_, err := cfg.Setup(t.Context(), log)
			if err == nil || !strings.Contains(err.Error(), "new schema: before-1 (v0.1.0 on host-1)") || strings.Contains(err.Error(), "after-1") ||
				!strings.Contains(Hint(err), "stop them") || !strings.Contains(Hint(err), "--force") {
				t.Errorf("setup beside an older worker: %v\n  do: %s", err, Hint(err))
			}
			testkit.Equal(t, "schema after a refused setup", version(), schemaBefore)

			if cfg.Force = forced; !forced {
				testkit.Must(t, heartbeats.Remove(t.Context(), "before-1"))
			}
			_, err = cfg.Setup(t.Context(), log)
			testkit.Must(t, err)
			testkit.Equal(t, "schema", version(), cfg.schemaVersion())
			var oldest []byte
			testkit.Must(t, db.QueryRowContext(t.Context(), "SELECT value FROM desired WHERE name = ?", store.DesiredOldestSchema).Scan(&oldest))
			if n, err := strconv.ParseInt(string(oldest), 10, 64); err != nil || n <= schemaBefore || n > cfg.schemaVersion() {
				t.Errorf("workers are told %s", oldest)
			}
		})
	}
}

// TestWorkerMeetsNewerSchema: a worker that cannot go on with a schema says so and ends in
// order: it leaves no heartbeat.
func TestWorkerMeetsNewerSchema(t *testing.T) {
	t.Parallel()
	s := serve(t, Walls{})
	w, err := NewWorker(t.Context(), s.cfg, slog.New(slog.DiscardHandler))
	testkit.Must(t, err)
	defer w.Close()
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	go func() { ended <- w.Run(ctx) }()
	conn, err := s.cfg.Connect(t.Context(), slog.New(slog.DiscardHandler), "test")
	testkit.Must(t, err)
	defer conn.Close()
	living := func() int {
		all, err := publishers.NewHeartbeats(conn.JS, conn.Names).All(t.Context())
		testkit.Must(t, err)
		return len(all)
	}
	testkit.Eventually(t, "a heartbeat", func() bool { return living() == 1 })
	_, err = s.ledger.Keep(t.Context(), store.Desired{Name: store.DesiredOldestSchema, Value: []byte("999")})
	testkit.Must(t, err)
	if err := <-ended; !errors.As(err, new(*store.SchemaError)) || !strings.Contains(err.Error(), "newer than this program") || Hint(err) != "run the newer jetpost that migrated it" {
		t.Errorf("the worker ended with %v, do: %s", err, Hint(err))
	}
	if n := living(); n != 0 {
		t.Errorf("%d heartbeats are left", n)
	}
}
