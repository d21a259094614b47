package postgres

import (
	"io/fs"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/store"
)

// TestOutboxOfOldRows: what a ledger of before the outbox had not told is told.
func TestOutboxOfOldRows(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	config, err := parseURL(url)
	check(t, err)
	files, err := fs.Sub(migrations, "migrations")
	check(t, err)
	db := stdlib.OpenDB(*config.ConnConfig)
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithDisableGlobalRegistry(true))
	check(t, err)
	const before = 10
	_, err = provider.UpTo(t.Context(), before)
	check(t, err)
	check(t, db.Close())
	execute(t, url, "INSERT INTO accounts (name, x_user_id, username, created_at) VALUES ('acme', '1', '', now())")
	execute(t, url, "INSERT INTO lanes (account) VALUES ('acme')")
	execute(t, url, `
INSERT INTO requests (account, id, seq, state, revision, announced, event, began_at, accepted_at, due_at, updated_at, body, digest)
VALUES ('acme', 'told', 1, 'published', 3, 3, 'request.published', now(), now(), now(), now(), '', ''),
       ('acme', 'half', 2, 'published', 3, 1, 'request.published', now(), now(), now(), now(), '', ''),
       ('acme', 'untold', 3, 'queued', 1, 0, 'request.accepted', NULL, now(), now(), now() + interval '1 second', '', '')`)
	check(t, Migrate(t.Context(), url))
	st := open(t, url, newSealer(t))
	keys, err := st.OutboxPending(t.Context(), time.Now().Add(time.Minute), 10)
	check(t, err)
	want := []store.Key{{Account: acme, ID: "half"}, {Account: acme, ID: "untold"}}
	if len(keys) != len(want) || keys[0] != want[0] || keys[1] != want[1] {
		t.Errorf("to be told: %v, want %v", keys, want)
	}
	for id, announced := range map[string]int64{"told": 3, "half": 1, "untold": 0} {
		r, err := st.Request(t.Context(), store.Key{Account: acme, ID: id})
		check(t, err)
		if r.Delivered != announced {
			t.Errorf("of %s %d was told, want %d", id, r.Delivered, announced)
		}
	}
	provider, err = goose.NewProvider(goose.DialectPostgres, stdlib.OpenDB(*config.ConnConfig), files, goose.WithDisableGlobalRegistry(true))
	check(t, err)
	_, err = provider.DownTo(t.Context(), before)
	check(t, err)
	check(t, provider.Close())
	conn := connect(t, url)
	if got := texts(t, conn, "SELECT string_agg(announced::text, ' ' ORDER BY seq) FROM requests"); got[0] != "3 1 0" {
		t.Errorf("told, after the way back: %v", got)
	}
}
