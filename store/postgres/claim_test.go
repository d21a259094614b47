package postgres

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost/internal/pgtest"
)

const (
	// churnRounds is how many rounds a ledger has behind it when it is measured. Each
	// round takes one of every churnRounds tokens.
	churnRounds = 10
	// flatness is the allowed ratio of the buffers that a large and a small ledger
	// touch.
	flatness = 3
	// claims is how many claims of a batch are measured.
	claims = 7
)

// fillTokens makes that many tokens, as long as real ones. One in churnRounds is due in
// each hour. The tables are unlogged, because churn writes the whole table ten times
// over.
const fillTokens = `
ALTER TABLE refresh_journal SET UNLOGGED;
ALTER TABLE oauth_tokens SET UNLOGGED;
INSERT INTO accounts (name, x_user_id, username, created_at) SELECT 'a' || n, n, 'u', now() FROM generate_series(1, %[1]d) AS n;
INSERT INTO oauth_tokens (id, user_id, access_token, refresh_token, expires_at, refresh_after, scope, version, refreshed_at, imported)
SELECT gen_random_uuid(), name, 'jp1.' || repeat('a', 160), 'jp1.' || repeat('r', 160), due + interval '1 hour', due,
       'tweet.read tweet.write users.read media.write offline.access', 1, now(), sha256('')
FROM accounts, LATERAL (SELECT '2026-01-01T00:00:00Z'::timestamptz + x_user_id::int %% 10 * interval '1 hour'
    + x_user_id::int * interval '1 millisecond' AS due) AS t;
VACUUM (ANALYZE) oauth_tokens;`

// claimAll is ClaimDue for every token that is due in a round.
const claimAll = `
UPDATE oauth_tokens
SET lease_id = gen_random_uuid(), lease_until = clock_timestamp() + interval '30 seconds', refresh_started_at = $1,
    attempts = attempts + 1, next_attempt_at = greatest($1 + interval '30 seconds', expires_at - interval '2 minutes')
WHERE NOT requires_reauth AND due_at < $1 AND (lease_until IS NULL OR lease_until <= clock_timestamp())`

// saveClaimed is SaveToken for every claimed token but one in fifty. The exchange of
// that one had no result, and it still waits when the ledger is measured.
const saveClaimed = `
UPDATE oauth_tokens
SET access_token = access_token, refresh_token = refresh_token, version = version + 1, lease_id = NULL, lease_until = NULL,
    refresh_started_at = NULL,
    refresh_after = CASE WHEN substr(user_id, 2)::int % 50 = 0 THEN refresh_after ELSE $1::timestamptz + interval '570 minutes' END,
    expires_at = CASE WHEN substr(user_id, 2)::int % 50 = 0 THEN expires_at ELSE $1::timestamptz + interval '11 hours' END,
    next_attempt_at = CASE WHEN substr(user_id, 2)::int % 50 = 0 THEN $1::timestamptz + interval '150 minutes' END,
    attempts = CASE WHEN substr(user_id, 2)::int % 50 = 0 THEN attempts ELSE 0 END
WHERE lease_id IS NOT NULL`

// TestClaimStaysFlat: a claim among a hundred thousand tokens (a million with
// JETPOST_TEST_FULL) touches hardly more buffers than one among a thousand, after
// rounds that have rewritten all tokens. Vacuum runs after each round, as autovacuum
// does by the table's own setting.
func TestClaimStaysFlat(t *testing.T) {
	t.Parallel()
	small := claimBuffers(t, 1_000)
	many := 100_000
	if os.Getenv("JETPOST_TEST_FULL") != "" {
		many = 1_000_000
	}
	large := claimBuffers(t, many)
	t.Logf("buffers of a claim of 10: %d of a thousand tokens, %d of %d: %.2f times as many", small, large, many, float64(large)/float64(small))
	if large > flatness*small {
		t.Errorf("a claim touches %d buffers among %d tokens, and %d among a thousand: more than %d times as many", large, many, small, flatness)
	}
}

// claimBuffers is the median of the buffers that a claim touches in a ledger of that
// many tokens.
func claimBuffers(t *testing.T, tokens int) int {
	t.Helper()
	conn := connect(t, pgtest.Migrated(t, Migrate))
	run := func(statement string, args ...any) {
		t.Helper()
		_, err := conn.Exec(t.Context(), statement, args...)
		check(t, err)
	}
	for statement := range strings.SplitSeq(fmt.Sprintf(fillTokens, tokens), ";\n") {
		run(statement)
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for range churnRounds {
		now = now.Add(time.Hour)
		run(claimAll, now)
		run(saveClaimed, now)
		run("VACUUM oauth_tokens")
	}
	run("ANALYZE oauth_tokens")
	now = now.Add(time.Hour)
	round := openRound(t, conn, now)
	var all []int
	for range claims {
		plan := explainClaim(t, conn, now, round)
		if strings.Contains(plan.text, "Seq Scan") && tokens > 1000 {
			t.Fatalf("a claim scans a table:\n%s", plan.text)
		}
		if plan.rows != 10 {
			t.Fatalf("a claim took %d tokens, want 10:\n%s", plan.rows, plan.text)
		}
		all = append(all, plan.buffers)
	}
	slices.Sort(all)
	t.Logf("%d tokens: %v", tokens, all)
	return all[len(all)/2]
}

func openRound(t *testing.T, conn *pgx.Conn, now time.Time) string {
	t.Helper()
	id, err := uuid.NewV7()
	check(t, err)
	_, err = conn.Exec(t.Context(), sqlAddRound, id.String(), now, now.Add(24*time.Hour), 0, 0)
	check(t, err)
	return id.String()
}

// explained is what a claim did.
type explained struct {
	text          string
	buffers, rows int
}

// explainClaim claims a batch and reports on it.
func explainClaim(t *testing.T, conn *pgx.Conn, now time.Time, round string) explained {
	t.Helper()
	return explainQuery(t, conn, sqlClaimDue, []any{now, 30 * time.Second, 2 * time.Minute, time.Minute, round, 10})
}

// explainQuery runs a query and reports on it.
func explainQuery(t *testing.T, conn *pgx.Conn, query string, args []any) explained {
	t.Helper()
	const explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
	var text string
	check(t, conn.QueryRow(t.Context(), explain+query, args...).Scan(&text))
	var plans []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
			Rows int `json:"Actual Rows"`
		}
	}
	check(t, json.Unmarshal([]byte(text), &plans))
	top := plans[0].Plan
	return explained{text: text, buffers: top.Hit + top.Read, rows: top.Rows}
}
