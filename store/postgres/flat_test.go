package postgres

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost/internal/pgtest"
)

// fillBacklog makes queues of that many late requests each. The first request of each
// has begun.
const fillBacklog = `
ALTER TABLE posts SET UNLOGGED;
ALTER TABLE requests SET UNLOGGED;
INSERT INTO accounts (name, x_user_id, username, created_at) SELECT 'a' || n, n, 'u', now() FROM generate_series(1, 5) AS n;
INSERT INTO lanes (account, wake_at) SELECT name, now() FROM accounts;
INSERT INTO oauth_tokens (id, user_id, access_token, refresh_token, expires_at, refresh_after, scope, version, refreshed_at, imported)
SELECT gen_random_uuid(), name, 'jp1.a', 'jp1.r', now(), now(), '', 1, now(), sha256('') FROM accounts;
INSERT INTO requests (account, id, seq, state, revision, event, began_at, accepted_at, due_at, updated_at, body, digest)
SELECT name, 'r' || n, n, 'queued', 1, 'request.accepted', CASE WHEN n = 1 THEN due END, due, due, due, '', ''
FROM accounts, LATERAL (SELECT n, now() - interval '2 days' + n * interval '1 second' AS due FROM generate_series(1, %[1]d) AS n) AS t;
INSERT INTO posts (account, request_id, idx) SELECT account, id, 0 FROM requests;
VACUUM (ANALYZE) requests;
VACUUM (ANALYZE) posts;
VACUUM (ANALYZE) lanes;
VACUUM (ANALYZE) accounts`

// TestBacklogCostsNothing: a command or a worker touches hardly more buffers of a
// ledger with ten times as many waiting requests. Buffers say more than time on a busy
// machine.
func TestBacklogCostsNothing(t *testing.T) {
	t.Parallel()
	now := time.Now()
	asked := []struct {
		name, query string
		args        []any
	}{
		{"account", sqlAccount, []any{"a1"}},
		{"accounts", sqlAccounts, nil},
		{"behind the head", sqlBehind, []any{"a1", now, 10}},
		{"calendar", sqlCalendar, []any{pgx.QueryExecModeCacheDescribe, now.Add(-48 * time.Hour), "", 0, now, "", 100}},
		{"calendar of one", sqlCalendar, []any{pgx.QueryExecModeCacheDescribe, now.Add(-48 * time.Hour), "", 0, now, "a1", 100}},
		{"due lanes", sqlDueLanes, []any{now, 10}},
		{"expire", sqlLateUnsent, []any{"a1", now, 10}},
		{"head", sqlHead, []any{"a1", now}},
		{"late of all", sqlLate, []any{"", now, 1}},
		{"late of one", sqlLate, []any{"a1", now, 1}},
		{"latest post", sqlAnchor, []any{"a1"}},
		{"latest requests", sqlListRequests, []any{pgx.QueryExecModeCacheDescribe, "", "", "", "", nil, 100, nil, 0, ""}},
		{"next page", sqlListRequests, []any{pgx.QueryExecModeCacheDescribe, "", "", "", "", nil, 100, now.Add(-47 * time.Hour), 500, "a1"}},
		{"next due", sqlNextDue, []any{"a1", now}},
		{"one request", sqlRequest, []any{"a1", "r7"}},
		{"sent", sqlSent, []any{"a1", now, 10}},
		{"pending events", sqlOutboxPending, []any{now, 10}},
		{"waiting", sqlWaiting, []any{"", nil, 0, 100}},
	}
	small, large := backlog(t, 1_100), backlog(t, 11_000)
	for _, one := range asked {
		few, many := buffersOf(t, small, one.query, one.args), buffersOf(t, large, one.query, one.args)
		t.Logf("%-16s %6d and %6d buffers", one.name, few, many)
		if many > flatness*few+flatness {
			t.Errorf("%s: %d buffers of ten times as many requests, and %d before", one.name, many, few)
		}
	}
}

// backlog is a ledger with queues of that length.
func backlog(t *testing.T, requests int) *pgx.Conn {
	t.Helper()
	conn := connect(t, pgtest.Migrated(t, Migrate))
	for statement := range strings.SplitSeq(fmt.Sprintf(fillBacklog, requests), ";\n") {
		_, err := conn.Exec(t.Context(), statement)
		check(t, err)
	}
	return conn
}

// buffersOf is how many buffers a query touches at its second run.
func buffersOf(t *testing.T, conn *pgx.Conn, query string, args []any) int {
	t.Helper()
	explainQuery(t, conn, query, args)
	return explainQuery(t, conn, query, args).buffers
}
