package testkit

import (
	"context"
	"os"
	"path/filepath"
	"sync"
)

// SQLite makes a database file at a path, which must not be there. Migrate makes the schema
// once for the whole process, since that takes half a second under the race detector, and
// each test gets a copy: all have one id. Every call in a process must pass the same migrate.
func SQLite(t T, path string, migrate func(ctx context.Context, path string) error) {
	t.Helper()
	schema.once.Do(func() { schema.file, schema.err = empty(context.WithoutCancel(t.Context()), migrate) })
	Must(t, schema.err)
	Must(t, os.WriteFile(path, schema.file, 0o600))
}

// schema is an empty database.
var schema struct {
	once sync.Once
	file []byte
	err  error
}

func empty(ctx context.Context, migrate func(context.Context, string) error) ([]byte, error) {
	dir, err := os.MkdirTemp("", "schema")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // it was read
	path := filepath.Join(dir, "empty.db")
	if err := migrate(ctx, path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}
