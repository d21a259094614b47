package postgres

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

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

// TestFoundByKey: a plan that was made while the ledger was empty, and is kept as long as
// the session, finds a request by its whole key, not among all of its account.
func TestFoundByKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.st = open(t, b.url+"&pool_max_conns=1", newSealer(t))
	if err := b.mix(t.Context(), "r"); faulty(err) {
		t.Fatal(err)
	}
	rows, err := b.st.db.Query(t.Context(), "SELECT name, cardinality(parameter_types), statement FROM pg_prepared_statements WHERE generic_plans > 0")
	check(t, err)
	type prepared struct {
		Name, Statement string
		Parameters      int
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p prepared, err error) {
		return p, row.Scan(&p.Name, &p.Parameters, &p.Statement)
	})
	check(t, err)
	filters := regexp.MustCompile(`Filter: .*\b(request_)?id = .*`)
	seen := 0
	for _, p := range all {
		if !strings.Contains(p.Statement, "requests") && !strings.Contains(p.Statement, "posts") {
			continue
		}
		seen++
		nulls := strings.TrimSuffix(strings.Repeat("NULL, ", p.Parameters), ", ")
		rows, err := b.st.db.Query(t.Context(), fmt.Sprintf("EXPLAIN EXECUTE %q (%s)", p.Name, nulls), pgx.QueryExecModeSimpleProtocol)
		check(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		check(t, err)
		plan := strings.Join(lines, "\n")
		if found := filters.FindString(plan); found != "" {
			t.Errorf("%s\n%s\n%s", found, p.Statement, plan)
		}
	}
	if seen == 0 {
		t.Error("no statement was seen")
	}
}
