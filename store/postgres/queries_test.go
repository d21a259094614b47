package postgres

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jetpost/jetpost/internal/pgtest"
)

// queries holds every statement of the package.
func queries() map[string]string {
	all := map[string]string{}
	for _, part := range []map[string]string{ledgerQueries(), accountQueries(), userQueries(), tokenQueries(), laneQueries(), requestQueries()} {
		maps.Copy(all, part)
	}
	return all
}

// ledgerQueries are of the ledger as a whole.
func ledgerQueries() map[string]string {
	return map[string]string{
		"sqlAddLeases":        sqlAddLeases,
		"sqlBlocked":          sqlBlocked,
		"sqlClock":            sqlClock,
		"sqlCommit":           sqlCommit,
		"sqlDurability":       sqlDurability,
		"sqlCountAccounts":    sqlCountAccounts,
		"sqlCountBlocked":     sqlCountBlocked,
		"sqlDropLeases":       sqlDropLeases,
		"sqlHoldLease":        sqlHoldLease,
		"sqlHolders":          sqlHolders,
		"sqlSetDesired":       sqlSetDesired,
		"sqlDesired":          sqlDesired,
		"sqlOldestSchema":     sqlOldestSchema,
		"sqlSetOldest":        sqlSetOldest,
		"sqlLateSum":          sqlLateSum,
		"sqlLeases":           sqlLeases,
		"sqlLedgerID":         sqlLedgerID,
		"sqlMoved":            sqlMoved,
		"sqlOldestDue":        sqlOldestDue,
		"sqlAddOperation":     sqlAddOperation,
		"sqlAnswerOperation":  sqlAnswerOperation,
		"sqlForgetOperations": sqlForgetOperations,
		"sqlOperation":        sqlOperation,
		"sqlOtherKeys":        sqlOtherKeys,
		"sqlReadKeyCheck":     sqlReadKeyCheck,
		"sqlSetKeyCheck":      sqlSetKeyCheck,
		"sqlStanding":         sqlStanding,
		"sqlTakeLeases":       sqlTakeLeases,
		"sqlTryLease":         sqlTryLease,
		"sqlVersion":          sqlVersion,
	}
}

// accountQueries are of accounts, and of what gives access to them.
func accountQueries() map[string]string {
	return map[string]string{
		"sqlAccount":         sqlAccount,
		"sqlAccounts":        sqlAccounts,
		"sqlLockAccount":     sqlLockAccount,
		"sqlWhole":           sqlWhole,
		"sqlNameUsed":        sqlNameUsed,
		"sqlRenameAccount":   sqlRenameAccount,
		"sqlRemoveAccount":   sqlRemoveAccount,
		"sqlAccountsAfter":   sqlAccountsAfter,
		"sqlAddAccount":      sqlAddAccount,
		"sqlAddLane":         sqlAddLane,
		"sqlAddLink":         sqlAddLink,
		"sqlAddToken":        sqlAddToken,
		"sqlBeginAttempt":    sqlBeginAttempt,
		"sqlAttempt":         sqlAttempt,
		"sqlSpendingClock":   sqlSpendingClock,
		"sqlOpenMonth":       sqlOpenMonth,
		"sqlLockMonth":       sqlLockMonth,
		"sqlMonthSpent":      sqlMonthSpent,
		"sqlOwnLimit":        sqlOwnLimit,
		"sqlOpenExpenses":    sqlOpenExpenses,
		"sqlCloseExpense":    sqlCloseExpense,
		"sqlOpenExpense":     sqlOpenExpense,
		"sqlAddSpending":     sqlAddSpending,
		"sqlNoteBilled":      sqlNoteBilled,
		"sqlForgetBilled":    sqlForgetBilled,
		"sqlLimitMonth":      sqlLimitMonth,
		"sqlAPIToken":        sqlAPIToken,
		"sqlAPITokens":       sqlAPITokens,
		"sqlForgetAPITokens": sqlForgetAPITokens,
		"sqlAddAPIToken":     sqlAddAPIToken,
		"sqlRevokeAPIToken":  sqlRevokeAPIToken,
		"sqlForgetLinks":     sqlForgetLinks,
		"sqlFromAccounts":    sqlFromAccounts,
		"sqlGiveUpAttempt":   sqlGiveUpAttempt,
		"sqlLink":            sqlLink,
		"sqlLockAttempt":     sqlLockAttempt,
		"sqlLockLink":        sqlLockLink,
		"sqlLockToken":       sqlLockToken,
		"sqlRenameUser":      sqlRenameUser,
		"sqlReplaceToken":    sqlReplaceToken,
		"sqlTakeAttempt":     sqlTakeAttempt,
		"sqlUseLink":         sqlUseLink,
	}
}

// userQueries are of the dashboard's users, and of who changed what.
func userQueries() map[string]string {
	return map[string]string{
		"sqlUser":            sqlUser,
		"sqlUsers":           sqlUsers,
		"sqlAddUser":         sqlAddUser,
		"sqlSetUser":         sqlSetUser,
		"sqlRemoveUser":      sqlRemoveUser,
		"sqlAddSession":      sqlAddSession,
		"sqlSession":         sqlSession,
		"sqlSeeSession":      sqlSeeSession,
		"sqlEndSession":      sqlEndSession,
		"sqlEndSessions":     sqlEndSessions,
		"sqlForgetSessions":  sqlForgetSessions,
		"sqlCountAttempts":   sqlCountAttempts,
		"sqlForgiveAttempts": sqlForgiveAttempts,
		"sqlForgetAttempts":  sqlForgetAttempts,
		"sqlAddAudit":        sqlAddAudit,
		"sqlAudits":          sqlAudits,
		"sqlForgetAudits":    sqlForgetAudits,
	}
}

// tokenQueries are of tokens, and of the keys that seal them.
func tokenQueries() map[string]string {
	return map[string]string{
		"sqlAddBatch":         sqlAddBatch,
		"sqlAddRound":         sqlAddRound,
		"sqlKeyCheck":         sqlKeyCheck,
		"sqlClaimDue":         sqlClaimDue,
		"sqlClaimToken":       sqlClaimToken,
		"sqlCountDue":         sqlCountDue,
		"sqlDisconnect":       sqlDisconnect,
		"sqlForgetBatches":    sqlForgetBatches,
		"sqlForgetPair":       sqlForgetPair,
		"sqlForgetRetries":    sqlForgetRetries,
		"sqlForgetRounds":     sqlForgetRounds,
		"sqlKeyUses":          sqlKeyUses,
		"sqlLockClaim":        sqlLockClaim,
		"sqlMarkNoticed":      sqlMarkNoticed,
		"sqlNotices":          sqlNotices,
		"sqlPresent":          sqlPresent,
		"sqlReseal":           sqlReseal,
		"sqlRetries":          sqlRetries,
		"sqlRound":            sqlRound,
		"sqlRoundDelivered":   sqlRoundDelivered,
		"sqlSaveToken":        sqlSaveToken,
		"sqlSaveTokenFailure": sqlSaveTokenFailure,
		"sqlSaveTokens":       sqlSaveTokens,
		"sqlSealedTokens":     sqlSealedTokens,
		"sqlToken":            sqlToken,
		"sqlTokens":           sqlTokens,
	}
}

// laneQueries are of lanes, pauses, the outbox and deletions.
func laneQueries() map[string]string {
	return map[string]string{
		"sqlAppWindow":           sqlAppWindow,
		"sqlBehind":              sqlBehind,
		"sqlDueLanes":            sqlDueLanes,
		"sqlExtendLane":          sqlExtendLane,
		"sqlHead":                sqlHead,
		"sqlLaneExists":          sqlLaneExists,
		"sqlLate":                sqlLate,
		"sqlLateUnsent":          sqlLateUnsent,
		"sqlMarkDelivered":       sqlMarkDelivered,
		"sqlNews":                sqlNews,
		"sqlTold":                "SELECT " + sqlTold + " FROM requests",
		"sqlNextDue":             sqlNextDue,
		"sqlProgress":            sqlProgress,
		"sqlReserve":             sqlReserve,
		"sqlGenerations":         sqlGenerations,
		"sqlSent":                sqlSent,
		"sqlSetAside":            sqlSetAside,
		"sqlSetPause":            sqlSetPause,
		"sqlStep":                sqlStep,
		"sqlUnruled":             sqlUnruled,
		"sqlUnruledOver":         sqlUnruledOver,
		"sqlCountUnruled":        sqlCountUnruled,
		"sqlForgetUnruled":       sqlForgetUnruled,
		"sqlPauseChange":         sqlPauseChange,
		"sqlPauseChanges":        sqlPauseChanges,
		"sqlMarkPauseChangeTold": sqlMarkPauseChangeTold,
		"sqlOutboxPending":       sqlOutboxPending,
		"sqlNextDeletion":        sqlNextDeletion,
		"sqlRetryDeletions":      sqlRetryDeletions,
		"sqlHeldGenerations":     sqlHeldGenerations,
		"sqlUnpublishing":        sqlUnpublishing,
		"sqlDeleted":             sqlDeleted,
	}
}

// requestQueries are of requests and their posts.
func requestQueries() map[string]string {
	return map[string]string{
		"sqlAddPosts":             sqlAddPosts,
		"sqlAddRequests":          sqlAddRequests,
		"sqlCountRequests":        sqlCountRequests,
		"sqlCountAccountRequests": sqlCountAccountRequests,
		"sqlCountCodes":           sqlCountCodes,
		"sqlCost":                 sqlCost,
		"sqlDueSoon":              sqlDueSoon,
		"sqlHours":                sqlHours,
		"sqlEndHolds":             sqlEndHolds,
		"sqlForgetFailures":       sqlForgetFailures,
		"sqlForgetRefusals":       sqlForgetRefusals,
		"sqlJobFailed":            sqlJobFailed,
		"sqlListRequests":         sqlListRequests,
		"sqlLockLane":             sqlLockLane,
		"sqlLockLanes":            sqlLockLanes,
		"sqlLockRequest":          sqlLockRequest,
		"sqlKnownRequests":        sqlKnownRequests,
		"sqlLockTexts":            sqlLockTexts,
		"sqlOwned":                sqlOwned,
		"sqlPlaced":               sqlPlaced,
		"sqlPosts":                sqlPosts,
		"sqlRefusals":             sqlRefusals,
		"sqlRefuse":               sqlRefuse,
		"sqlRequest":              sqlRequest,
		"sqlWake":                 sqlWake,
		"sqlSameText":             sqlSameText,
		"sqlSameTexts":            sqlSameTexts,
		"sqlSaveContents":         sqlSaveContents,
		"sqlSaveMedia":            sqlSaveMedia,
		"sqlSavePost":             sqlSavePost,
		"sqlSaveRequest":          sqlSaveRequest,
		"sqlWaiting":              sqlWaiting,
		"sqlAnchor":               sqlAnchor,
		"sqlSaveBody":             sqlSaveBody,
		"sqlForgetNews":           sqlForgetNews,
		"sqlPrunable":             sqlPrunable,
		"sqlPrune":                sqlPrune,
		"sqlPruned":               sqlPruned,
		"sqlPrunedRequests":       sqlPrunedRequests,
		"sqlMediaUsers":           sqlMediaUsers,
		"sqlCalendar":             sqlCalendar,
		"sqlHooks":                sqlHooks,
		"sqlLockLedger":           sqlLockLedger,
		"sqlAddHook":              sqlAddHook,
		"sqlRemoveHook":           sqlRemoveHook,
		"sqlEnableHook":           sqlEnableHook,
		"sqlHookDelivered":        sqlHookDelivered,
		"sqlHookFailed":           sqlHookFailed,
		"sqlResealHook":           sqlResealHook,
		"sqlBeginErase":           sqlBeginErase,
		"sqlErasing":              sqlErasing,
		"sqlErasures":             sqlErasures,
		"sqlEndErase":             sqlEndErase,
		"sqlLockName":             sqlLockName,
		"sqlHoldLane":             sqlHoldLane,
		"sqlEraseThese":           sqlEraseThese,
		"sqlErasePruned":          sqlErasePruned,
		"sqlNoRequests":           sqlNoRequests,
		"sqlAddErased":            sqlAddErased,
		"sqlErasedAnswers":        sqlErasedAnswers,
		"sqlDropAPIToken":         sqlDropAPIToken,
		"sqlNarrowToken":          sqlNarrowToken,
	}
}

func TestEveryQueryPrepares(t *testing.T) {
	t.Parallel()
	all := queries()
	if missing := slices.DeleteFunc(declared(t), func(name string) bool { return all[name] != "" }); len(missing) > 0 {
		t.Errorf("queries() lacks %v", missing)
	}
	conn := connect(t, pgtest.Migrated(t, Migrate))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if _, err := conn.Prepare(t.Context(), name, all[name]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// declared returns the name of every constant of the package that holds SQL.
func declared(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(".")
	check(t, err)
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".go") || strings.HasSuffix(entry.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), entry.Name(), nil, parser.SkipObjectResolution)
		check(t, err)
		ast.Inspect(file, func(node ast.Node) bool {
			if spec, ok := node.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "sql") {
				names = append(names, spec.Names[0].Name)
			}
			return true
		})
	}
	if len(names) == 0 {
		t.Fatal("no constant found")
	}
	return names
}

// fillTables makes a ledger with a history: of 2000 accounts' tokens and lanes some are
// due, and of the requests of acme most are finished and delivered.
const fillTables = `
INSERT INTO accounts (name, x_user_id, username, created_at) SELECT 'a' || n, n, 'u', now() FROM generate_series(1, 2000) AS n;
INSERT INTO lanes (account, wake_at) SELECT name, CASE WHEN x_user_id::int % 100 = 0 THEN now() END FROM accounts;
INSERT INTO oauth_tokens (id, user_id, access_token, refresh_token, expires_at, refresh_after, scope, version, refreshed_at, imported)
SELECT gen_random_uuid(), name, 'jp1.', 'jp1.', now() + x_user_id::int * interval '1 minute', now() + (x_user_id::int - 60) * interval '1 minute', '', 1, now(), sha256('')
FROM accounts;
INSERT INTO refresh_rounds (id, total, batches, opened_at, expires_by)
SELECT CASE n WHEN 1 THEN 'r' ELSE 'r' || n END, 1, 1, now(), now() + interval '1 day' FROM generate_series(1, 1000) AS n;
INSERT INTO requests (account, id, seq, state, revision, event, began_at, accepted_at, due_at, updated_at, body, digest)
SELECT 'a' || n % 10 + 1, n, n, CASE WHEN n % 50 < 10 THEN 'queued' ELSE 'published' END, 1, 'request.published',
    CASE WHEN n % 50 >= 10 THEN now() END, t, t, t, '', ''
FROM generate_series(1, 5000) AS n, LATERAL (SELECT now() - n * interval '1 minute' AS t) AS times;
INSERT INTO outbox (account, id, announced, revision, since, updated_at) SELECT account, id, 0, 1, updated_at, updated_at FROM requests WHERE seq % 5 = 0;
INSERT INTO posts (account, request_id, idx, state, post_id, sent_at, text_hash)
SELECT account, id, 0, CASE state WHEN 'published' THEN 'posted' ELSE 'pending' END, CASE state WHEN 'published' THEN id END, began_at, sha256(id::bytea) FROM requests;
INSERT INTO pruned (account, id, digest, state, revision, accepted_at, finished_at)
SELECT account, 'old' || id, '', 'published', 1, now(), now() FROM requests;
INSERT INTO refusals (sequence, stored, account, id, code, problems, body) SELECT n, now(), '', '', '', '[]', convert_to(repeat('x', 1000), 'UTF8')
FROM generate_series(1, 1000) AS n;
INSERT INTO connect_links (token_hash, account, return_to, created_at, expires_at, attempt_state, attempt_browser, attempt_expires_at)
SELECT sha256(n::text::bytea), 'a', '', now(), now(), sha256(n::text::bytea), sha256(''), now() FROM generate_series(1, 1000) AS n;
INSERT INTO users SELECT 'u' || n, 'viewer', 'h', now(), now() FROM generate_series(1, 2000) AS n;
INSERT INTO sessions SELECT sha256(n::text::bytea), 'u' || n + 1, now(), now() FROM generate_series(1, 1000) AS n;
INSERT INTO erased SELECT sha256(n::text::bytea), 'published', now() FROM generate_series(1, 5000) AS n;
INSERT INTO login_attempts SELECT sha256(n::text::bytea), 1, now() FROM generate_series(1, 1000) AS n;
INSERT INTO audit (at, actor, operation, account, target, outcome) SELECT now(), 'a', 'o', '', '', 'done' FROM generate_series(1, 1000) AS n;
ANALYZE;`

// hotQuery runs all the time.
type hotQuery struct {
	name, query, arguments string
	indexes                []string
	anew                   bool // planned for each call, with its arguments
}

// hotQueriesOfLanes are of queues, lanes and the sweeper.
func hotQueriesOfLanes() []hotQuery {
	return []hotQuery{
		{"behind", sqlBehind, `'a1', now(), 100`, []string{"requests_line"}, false},
		{"blocked", sqlBlocked, `now(), 20, 1000`, []string{"requests_blocked", "requests_line"}, false},
		{"due lanes", sqlDueLanes, `now(), 100`, []string{"lanes_due"}, false},
		{"end holds", sqlEndHolds, `'a1', 'poison', now()`, []string{"requests_"}, false},
		{"head", sqlHead, `'a1', now()`, []string{"requests_begun", "requests_line", "requests_pkey"}, false},
		{"lock lanes", sqlLockLanes, `'{a1,a2,a3}'`, []string{"lanes_pkey"}, false},
		{"next due", sqlNextDue, `'a1', now()`, []string{"requests_line"}, false},
		{"oldest due", sqlOldestDue, `now()`, []string{"lanes_due"}, false},
		{"step", sqlStep, "'{a1}', '{write}', '{NULL}', '{1}', '{w}', '{NULL}', '{1}', '{1}', '{1}', '{NULL}', '{NULL}', '{true}', '{true}', '{true}', " +
			"'{1}', '{0}', '{NULL}', '{published}', '{2}', '{e}', '{0}', '{1}', '{0}', '{posted}', '{\"\"}', '{1}', ARRAY['[]']::json[], ARRAY[sha256('1')], " +
			"'{1}', '{NULL}', '{\"\"}', '{1}', '{1}', '{2}', '{1}', '{2}', '{1}', '{\"\"}', ARRAY[sha256('2')], '{1}', '0'", []string{"lanes_pkey", "requests_begun", "requests_line", "requests_pkey", "posts_pkey"}, false},
		{"waiting", sqlWaiting, `'a1', now(), 1, 100`, []string{"requests_line", "posts_pkey"}, false},
		{"late", sqlLateUnsent, `'a1', now(), 100`, []string{"requests_line", "posts_pkey"}, false},
		{"late of all", sqlLate, `'', now() - interval '1 hour', 1000`, []string{"requests_line", "posts_pkey"}, false},
		{"hours", sqlHours, `now() - interval '1 day'`, []string{"posts_live"}, false},
		{"due soon", sqlDueSoon, `now(), now() + interval '1 day', 1000`, []string{"requests_line"}, false},
		{"reasons", sqlCountCodes, `'failed', 1000`, []string{"requests_state"}, true},
		{"late, summed up", sqlLateSum, `now() - interval '1 hour', 1000`, []string{"requests_line", "posts_pkey"}, false},
		{"moved", sqlMoved, `now() - interval '1 hour', 10`, []string{"requests_accepted", "posts_live", "outbox_since", "refusals_latest"}, false},
		{"mark announced", sqlMarkDelivered, `'{a1,a2}', '{1,2}', '{1,1}'`, []string{"requests_pkey"}, false},
		{"outbox", sqlOutboxPending, `now(), 10`, []string{"outbox_since"}, false},
		{"notices", sqlNotices, `'', 10`, []string{"oauth_tokens_untold"}, false},
		{"next deletion", sqlNextDeletion, `'a1'`, []string{"requests_unpublish", "lanes_pkey"}, false},
		{"retry deletions", sqlRetryDeletions, `'a1', now()`, []string{"requests_unpublish"}, false},
		{"unpublishing", sqlUnpublishing, `'a1'`, []string{"requests_unpublish"}, false},
	}
}

// hotQueriesOfRequests are of requests and their posts.
func hotQueriesOfRequests() []hotQuery {
	return []hotQuery{
		{"calendar", sqlCalendar, `now() - interval '1 day', '', 0, now(), '', 100`, []string{"requests_due"}, true},
		{"calendar of one", sqlCalendar, `now() - interval '1 day', '', 0, now(), 'a1', 100`, []string{"requests_due"}, true},
		{"list all", sqlListRequests, `'', '', '', '', NULL, 100, NULL, 0, ''`, []string{"requests_accepted"}, true},
		{"list one", sqlListRequests, `'a1', '1', '', '', NULL, 100, NULL, 0, ''`, []string{"requests_pkey"}, true},
		{"list failed", sqlListRequests, `'', '', 'failed', '', NULL, 100, NULL, 0, ''`, []string{"requests_state"}, true},
		{"known requests", sqlKnownRequests, `'{a1,a2}', '{1,2}', ARRAY[sha256('1'), sha256('2')]`, []string{"requests_pkey", "pruned_pkey", "erased_pkey"}, false},
		{"deleted", sqlDeleted, `'{1,2}'`, []string{"posts_post_id"}, false},
		{"owned", sqlOwned, `'{1,2}'`, []string{"posts_post_id"}, false},
		{"posts", sqlPosts, `'{a1,a2}', '{1,2}'`, []string{"posts_pkey"}, false},
		{"prunable", sqlPrunable, `now() - interval '1 day', now() - interval '2 days', 1, 'a1', 100`, []string{"requests_accepted", "posts_sending", "posts_live"}, false},
		{"prune", sqlPrune, `now() - interval '1 day', '{a1,a2}', '{1,2}', 16`, []string{"lanes_pkey", "requests_pkey", "posts_pkey", "posts_live"}, false},
		{"pruned", sqlPruned, `'a1', '1', sha256('1')`, []string{"pruned_pkey", "erased_pkey"}, false},
		{"refusals", sqlRefusals, `10`, []string{"refusals_latest"}, false},
		{"forget refusals", sqlForgetRefusals, `now() - interval '30 days', 100`, []string{"refusals_latest"}, false},
		{"same text", sqlSameText, `'a1', ARRAY[sha256('1'), sha256('2')], now() - interval '1 day', now() + interval '1 day', now()`, []string{"posts_text", "requests_pkey"}, false},
		{"same texts", sqlSameTexts, `'{1}', '{a1}', ARRAY[sha256('1')], ARRAY[now() - interval '1 day'], ARRAY[now() + interval '1 day'], ARRAY[now()]`, []string{"posts_text", "requests_pkey"}, false},
		{"sent", sqlSent, `'a1', now() - interval '1 hour', 10`, []string{"posts_live"}, false},
		{"anchor post", sqlAnchor, `'a1'`, []string{"posts_live", "accounts_pkey"}, false},
	}
}

// hotQueriesOfAccess are of tokens, links and users.
func hotQueriesOfAccess() []hotQuery {
	return []hotQuery{
		{"claim due tokens", sqlClaimDue, `now(), '30s', '2m', '1m', 'r', 10`, []string{"oauth_tokens_due", "oauth_tokens_pkey"}, false},
		{"claim token", sqlClaimToken, `now(), '30s', '2m', '1m', 'a1', 1, false, false`, []string{"oauth_tokens_user_id_key", "oauth_tokens_pkey"}, false},
		{"count attempts", sqlCountAttempts, `ARRAY[sha256('1')], now(), now()`, nil, false},
		{"forget attempts", sqlForgetAttempts, `now() - interval '1 hour', 100`, []string{"login_attempts_since"}, false},
		{"forget audit", sqlForgetAudits, `now() - interval '1 year', 100`, []string{"audit_at"}, false},
		{"forget sessions", sqlForgetSessions, `now() - interval '1 day', 100`, []string{"sessions_seen"}, false},
		{"forget links", sqlForgetLinks, `now() - interval '7 days', 100`, []string{"connect_links_expired"}, false},
		{"link", sqlLockLink, `sha256('1')`, []string{"connect_links_pkey"}, false},
		{"link's attempt", sqlLockAttempt, `sha256('1')`, []string{"connect_links_state"}, false},
		{"reseal", sqlReseal, `'{00000000-0000-0000-0000-000000000001}', '{a}', '{r}', '{a}', '{r}'`, []string{"oauth_tokens_pkey"}, false},
		{"save tokens", sqlSaveTokens, `'{00000000-0000-0000-0000-000000000001}', '{1}', '{a}', '{r}', ARRAY[now()], ARRAY[now()], '{s}', ARRAY[now()], '{"{}"}'`,
			[]string{"oauth_tokens_pkey"}, false},
		{"session", sqlSession, `sha256('1'), now() - interval '12 hours', now() - interval '7 days'`, []string{"sessions_pkey"}, false},
		{"sessions of a user", sqlEndSessions, `'u1'`, []string{"sessions_user"}, false},
		{"sealed tokens", sqlSealedTokens, `'', 10`, []string{"oauth_tokens_pkey"}, false},
	}
}

// The queries that run all the time must not grow slower with the ledger's history,
// neither with a plan for their arguments nor with a generic plan.
func TestHotQueriesUseIndexes(t *testing.T) {
	t.Parallel()
	tests := slices.Concat(hotQueriesOfLanes(), hotQueriesOfRequests(), hotQueriesOfAccess())
	conn := connect(t, pgtest.Migrated(t, Migrate))
	_, err := conn.Exec(t.Context(), fillTables)
	check(t, err)
	for _, mode := range []string{"force_custom_plan", plannedOnce} {
		if mode == plannedOnce { // as in a worker's session
			for _, whole := range paramsWhole {
				_, err := conn.Exec(t.Context(), "SET "+whole+" = off")
				check(t, err)
			}
		}
		_, err := conn.Exec(t.Context(), "SET plan_cache_mode = "+mode)
		check(t, err)
		for i, test := range tests {
			if test.anew && mode == "force_generic_plan" {
				continue
			}
			t.Run(mode+" "+test.name, func(t *testing.T) {
				name := fmt.Sprintf("%s_%d", mode, i)
				_, err := conn.Exec(t.Context(), "PREPARE "+name+" AS "+test.query)
				check(t, err)
				plan := strings.Join(texts(t, conn, "EXPLAIN EXECUTE "+name+"("+test.arguments+")"), "\n")
				// There are as many lanes as accounts, and a progress reads each of
				// them.
				if strings.Contains(strings.ReplaceAll(plan, "Seq Scan on lanes l ", ""), "Seq Scan") {
					t.Errorf("a table is scanned:\n%s", plan)
				}
				for _, index := range test.indexes {
					if !strings.Contains(plan, index) {
						t.Errorf("%s is not used:\n%s", index, plan)
					}
				}
			})
		}
	}
}
