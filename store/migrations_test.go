package store_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"testing/fstest"

	"github.com/jetpost/jetpost/store"
)

func TestOldestSchema(t *testing.T) {
	t.Parallel()
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	const survived, stops = "-- Older workers go on.\n-- +goose Up\n", "-- What it is.\n\n-- Older workers stop.\n-- +goose Up\n"
	for name, test := range map[string]struct {
		files  fstest.MapFS
		oldest int64
	}{
		"none":          {fstest.MapFS{}, 0},
		"survived":      {fstest.MapFS{"00001_a.sql": file(survived), "00002_b.sql": file(survived)}, 0},
		"one stops":     {fstest.MapFS{"00001_a.sql": file(stops), "00003_b.sql": file(stops), "00004_c.sql": file(survived)}, 3},
		"one is silent": {fstest.MapFS{"00001_a.sql": file(survived), "00002_b.sql": file("-- +goose Up\n")}, 2},
	} {
		if oldest, err := store.OldestSchema(test.files); err != nil || oldest != test.oldest {
			t.Errorf("%s: %d, %v, want %d", name, oldest, err, test.oldest)
		}
	}
	if _, err := store.OldestSchema(fstest.MapFS{"first.sql": file(survived)}); err == nil {
		t.Error("a migration without a number is no error")
	}
}

// TestMigrationsTellOlderWorkers: each migration says what it does to workers of before, the
// same for both databases.
func TestMigrationsTellOlderWorkers(t *testing.T) {
	t.Parallel()
	said := map[string]string{}
	for _, driver := range []string{"postgres", "sqlite"} {
		files, err := fs.Glob(os.DirFS(driver), "migrations/*.sql")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			text, err := os.ReadFile(filepath.Join(driver, name))
			if err != nil {
				t.Fatal(err)
			}
			lines := regexp.MustCompile(`(?m)^-- Older workers (?:go on|stop)\.\n-- \+goose Up$`).FindAllString(string(text), -1)
			if len(lines) != 1 {
				t.Errorf("%s/%s: has no line before its Up that says \"-- Older workers go on.\" or \"-- Older workers stop.\"", driver, name)
				continue
			}
			if other, found := said[name]; found && other != lines[0] {
				t.Errorf("%s: says %q for PostgreSQL and %q for SQLite", name, other, lines[0])
			}
			said[name] = lines[0]
		}
	}
}
