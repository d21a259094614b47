package store_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

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
