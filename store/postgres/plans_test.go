package postgres

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// TestPlannedOnce: what runs all the time is planned once a session, however short the
// arrays are that it comes with.
func TestPlannedOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.st = open(t, b.url+"&pool_max_conns=1", newSealer(t))
	for i := range 12 {
		if err := b.mix(t.Context(), fmt.Sprintf("r%d", i)); faulty(err) {
			t.Fatal(err)
		}
	}
	rows, err := b.st.db.Query(t.Context(), "SELECT left(statement, 60), generic_plans, custom_plans FROM pg_prepared_statements")
	check(t, err)
	defer rows.Close()
	planned := 0
	for rows.Next() {
		var statement string
		var generic, custom int64
		check(t, rows.Scan(&statement, &generic, &custom))
		planned += int(generic)
		if custom > 0 {
			t.Errorf("planned anew %d times: %s", custom, statement)
		}
	}
	check(t, rows.Err())
	if planned == 0 {
		t.Error("nothing was prepared")
	}
}

// TestTokenComesWithTheFront: whoever reads what is next in a lane has the token for it.
func TestTokenComesWithTheFront(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, id := range []string{"first", "second"} {
		_, err := b.st.Accept(t.Context(), b.acceptance(id))
		check(t, err)
	}
	lane, _, err := b.st.ClaimLane(t.Context(), acme, "worker", lease, b.now)
	check(t, err)
	for _, id := range []string{"first", "second"} {
		if token, known := lane.Token(); !known || token.Access.Reveal() != "a" {
			t.Errorf("no token with %s", id)
		}
		now := time.Now()
		check(t, b.st.Begin(t.Context(), lane, id, store.Intent{Now: now, NotAfter: now.Add(lease), Lease: lease}))
		_, err = b.st.Posted(t.Context(), lane, id, store.LivePost{PostID: id, Now: now})
		check(t, err)
	}
	if _, known := lane.Token(); known {
		t.Error("a token with nothing to send")
	}
}

// finished are many requests that were published, and then the statistics of that moment.
const finished = `
INSERT INTO requests (account, id, seq, state, revision, event, began_at, accepted_at, due_at, updated_at, body, digest)
SELECT 'acme', 'old-' || n, -n, 'published', 3, 'request.published', now(), now(), now(), now(), 'x', sha256(n::text::bytea) FROM generate_series(1, 3000) AS n;
INSERT INTO posts (account, request_id, idx, state, post_id, sent_at, attempt, text_hash)
SELECT account, id, 0, 'posted', 1000 - seq, began_at, 1, digest FROM requests WHERE id LIKE 'old-%';
ANALYZE`

// TestFoundByKey: a plan that was made while the ledger was empty, or idle, and is kept as
// long as the session, finds a request by its whole key, not among all of its account or
// all that wait.
func TestFoundByKey(t *testing.T) {
	t.Parallel()
	for name, made := range map[string]string{"empty": "SELECT", "idle": finished} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			execute(t, b.url, made)
			b.st = open(t, b.url+"&pool_max_conns=1", newSealer(t))
			if err := b.mix(t.Context(), "r"); faulty(err) {
				t.Fatal(err)
			}
			in := b.acceptance("texts")
			in.Request.Posts, in.FindSameText = []jetpost.Post{{Text: "text"}}, true
			_, err := b.st.AcceptMany(t.Context(), store.Lease{}, []store.Acceptance{in})
			check(t, err)
			_, _, err = b.st.SameText(t.Context(), store.TextsOf(in.Request, in.Now))
			check(t, err)
			lane, _, err := b.st.ClaimLane(t.Context(), acme, "worker", lease, b.now)
			check(t, err)
			check(t, b.st.Uploaded(t.Context(), lane, "texts", map[int][]store.Media{0: {{ID: "1"}}}))
			plans := b.plans(t)
			if len(plans) == 0 {
				t.Error("no statement was seen")
			}
			for statement, plan := range plans {
				for _, scan := range scans.FindAllStringSubmatch(plan, -1) {
					if found := keyless.FindString(scan[0]); found != "" || !strings.Contains(scan[0], "Index Cond: ") {
						t.Errorf("%s\n%s\n%s", scan[0], statement, plan)
					}
				}
			}
		})
	}
}

var (
	// scans are the parts of a plan that read requests, with what they look for.
	scans = regexp.MustCompile(`(?m)Index (?:Only )?Scan .* on (?:requests|posts|pruned|erased|outbox)\b.*$(?:\n +[A-Z][A-Za-z ]+: .*$)*`)
	// keyless is a condition on an id that the index did not serve.
	keyless = regexp.MustCompile(`Filter: .*\b(request_)?id = .*`)
)

// plans are those that the session keeps, of statements on requests.
func (b *testBundle) plans(t *testing.T) map[string]string {
	t.Helper()
	ctx := t.Context()
	rows, err := b.st.db.Query(ctx, "SELECT name, cardinality(parameter_types), statement FROM pg_prepared_statements WHERE generic_plans > 0")
	check(t, err)
	type prepared struct {
		Name, Statement string
		Parameters      int
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p prepared, err error) {
		return p, row.Scan(&p.Name, &p.Parameters, &p.Statement)
	})
	check(t, err)
	plans := map[string]string{}
	for _, p := range all {
		nulls := strings.TrimSuffix(strings.Repeat("NULL, ", p.Parameters), ", ")
		rows, err := b.st.db.Query(ctx, strings.ReplaceAll(fmt.Sprintf("EXPLAIN EXECUTE %q (%s)", p.Name, nulls), " ()", ""), pgx.QueryExecModeSimpleProtocol)
		check(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		check(t, err)
		plans[p.Statement] = strings.Join(lines, "\n")
	}
	return plans
}
