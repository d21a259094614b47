//go:build unix

package pgtest

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost/internal/testkit"
)

// serverVariable names a server that tests may create databases on. Its user
// needs CREATEDB.
const serverVariable = "TEST_DATABASE_URL"

// dropTimeout bounds the removal of a test's database.
const dropTimeout = 30 * time.Second

// New creates an empty database for this test alone and returns its URL. The
// database is dropped after the test, also from under open sessions.
func New(t testkit.T) string {
	t.Helper()
	return create(t, server(t), "")
}

// Migrated is New with a schema: migrate runs once for the whole process, and
// each test gets a clone of what it made, with the rows that it wrote. Every
// call in a process must pass the same migrate.
func Migrated(t testkit.T, migrate func(ctx context.Context, url string) error) string {
	t.Helper()
	if os.Getenv(serverVariable) != "" {
		// A template would stay on a server that is not ours, because nothing runs at
		// the end of a test process.
		database := New(t)
		if err := migrate(t.Context(), database); err != nil {
			t.Fatalf("migrate test database: %v", err)
		}
		return database
	}
	admin := server(t)
	template.once.Do(func() { template.err = makeTemplate(t.Context(), admin, migrate) })
	if template.err != nil {
		t.Fatalf("make template database: %v", template.err)
	}
	return create(t, admin, templateName)
}

const templateName = "jetpost_template"

// template is state of the process because its server is.
var template struct {
	once sync.Once
	err  error
}

func makeTemplate(ctx context.Context, admin string, migrate func(context.Context, string) error) error {
	if err := execute(ctx, admin, "CREATE DATABASE "+templateName); err != nil {
		return err
	}
	return migrate(ctx, withDatabase(admin, templateName))
}

// server returns the URL at which databases are created.
func server(t testkit.T) string {
	t.Helper()
	if given := os.Getenv(serverVariable); given != "" {
		return given
	}
	cluster, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return cluster.URL()
}

func create(t testkit.T, admin, template string) string {
	t.Helper()
	name := "jetpost_test_" + strings.ToLower(rand.Text())
	statement := "CREATE DATABASE " + name
	if template != "" {
		statement += " TEMPLATE " + template + " STRATEGY file_copy" // which writes no log of what it copies
	}
	if err := execute(t.Context(), admin, statement); err != nil {
		t.Fatalf("create test database: %v", err)
	}
	t.Cleanup(func() {
		// The test's own context has ended by now.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), dropTimeout)
		defer cancel()
		if err := execute(ctx, admin, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("drop test database: %v", err)
		}
	})
	return withDatabase(admin, name)
}

// VacuumByItself has the server of that URL vacuum and analyze by itself, as every server
// does but those of tests, until the test ends.
func VacuumByItself(t testkit.T, database string) {
	t.Helper()
	t.Cleanup(func() { vacuum(t, database, "off") })
	vacuum(t, database, "on")
}

func vacuum(t testkit.T, database, state string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	for _, statement := range []string{"ALTER SYSTEM SET autovacuum = " + state, "SELECT pg_reload_conf()"} {
		testkit.Must(t, execute(ctx, database, statement))
	}
	testkit.Eventually(t, "autovacuum "+state, func() bool {
		return execute(ctx, database, "SELECT 1 / (current_setting('autovacuum') = '"+state+"')::int") == nil
	})
}

func execute(ctx context.Context, server, statement string) error {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	if closeErr := conn.Close(ctx); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("run %q: %w", statement, err)
	}
	return nil
}

// withDatabase returns the URL of another database on the same server.
func withDatabase(server, name string) string {
	u, err := url.Parse(server)
	if err != nil {
		// Connecting has parsed it before, so it can only be a keyword/value string, in
		// which the last value of a keyword counts.
		return server + " dbname=" + name
	}
	u.Path = "/" + name
	return u.String()
}
