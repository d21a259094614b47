package postgres

import (
	"fmt"
	"testing"
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
