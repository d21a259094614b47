package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// openFresh opens a new ledger and gives access to its pools.
func openFresh(t *testing.T) *Store {
	t.Helper()
	sealer, err := store.NewSealer(store.GenerateKey().Reveal())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ledger.db")
	if err := Migrate(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), path, sealer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// queries reads every constant whose name starts with sql from the source, so that none
// is missed.
func queries(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	constants := make(map[string]ast.Expr)
	for _, file := range files {
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(node ast.Node) bool {
			if spec, ok := node.(*ast.ValueSpec); ok && len(spec.Values) == 1 {
				constants[spec.Names[0].Name] = spec.Values[0]
			}
			return true
		})
	}
	all := make(map[string]string)
	for name, value := range constants {
		if strings.HasPrefix(name, "sql") && !strings.HasPrefix(name, "sqlFrom") {
			all[name] = text(t, constants, value)
		}
	}
	return all
}

// text evaluates a sum of string constants.
func text(t *testing.T, constants map[string]ast.Expr, value ast.Expr) string {
	t.Helper()
	switch v := value.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(v.Value)
		if err != nil {
			t.Fatal(err)
		}
		return s
	case *ast.BinaryExpr:
		return text(t, constants, v.X) + text(t, constants, v.Y)
	case *ast.Ident:
		return text(t, constants, constants[v.Name])
	}
	t.Fatalf("a query is made of %T", value)
	return ""
}

func TestQueriesPrepare(t *testing.T) {
	t.Parallel()
	s := openFresh(t)
	all := queries(t)
	if len(all) < 40 {
		t.Errorf("found %d queries: the search misses some", len(all))
	}
	for name, query := range all {
		if err := prepare(t.Context(), s.write, query); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func prepare(ctx context.Context, db *sql.DB, query string) (err error) {
	statement, err := db.PrepareContext(ctx, query)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, statement.Close()) }()
	return nil
}

// TestQueriesNeverScan asks SQLite how it would run each query. Whatever grows with the
// number of accounts, requests or rounds must be found by an index, and none of it is
// sorted.
func TestQueriesNeverScan(t *testing.T) {
	t.Parallel()
	mayScan := map[string]bool{
		"sqlAccounts":       true, // all of them are wanted
		"sqlAPITokens":      true, // the same
		"sqlUsers":          true, // the same
		"sqlAddHook":        true, // the webhooks, which have a bound
		"sqlHooks":          true, // the same
		"sqlRenameHooks":    true, // the same
		"sqlRemoveHooks":    true, // the same
		"sqlErasures":       true, // a handful
		"sqlErasedAnswers":  true, // a week of operations, for an account that is erased
		"sqlEraseThese":     true, // the ids that are asked for
		"sqlBlocked":        true, // the accounts, and of each the first such request
		"sqlCountAccounts":  true, // the accounts
		"sqlCountBlocked":   true, // the same
		"sqlCountOtherKeys": true, // once at start
		"sqlCountRequests":  true, // over an index that holds just the states
		// the states, and of each the rows of one account
		"sqlCountAccountRequests": true,
		"sqlCountCodes":           true, // sorts the reasons: few
		"sqlDueSoon":              true, // the accounts, and of each what is due, up to a limit
		"sqlHours":                true, // the accounts, and of each the posts of a day
		"sqlForgetBatches":        true, // the rounds: few, as this forgets old ones
		"sqlForgetRounds":         true, // the same
		"sqlHasVersions":          true, // the catalogue
		"sqlKeyUses":              true, // all of them are counted, for a person
		"sqlHolders":              true, // the lanes
		"sqlDesired":              true, // a handful
		"sqlLate":                 true, // the lanes, and of each what is late: for a person
		"sqlLateSum":              true, // the accounts, and of each what is late, up to a limit
		"sqlLedgerID":             true, // one row
		"sqlListRequests":         true, // in the order of the index, up to the limit
		"sqlMoved":                true, // the accounts, and of each the latest post
		"sqlNotices":              true, // over an index that holds just what is to be told
		"sqlDeleted":              true, // the ids that are asked for
		"sqlOwned":                true, // the same
		"sqlPrunable":             true, // sorts requests of one moment and sequence alone
		"sqlPrune":                true, // the ids that are asked for
		"sqlPrunedRequests":       true, // for a person who names no account
		"sqlReadKeyCheck":         true, // one row
		// Of links and API tokens there are few, and an account is seldom renamed or removed.
		"sqlRenameLinks": true, "sqlRemoveLinks": true, "sqlRenameAPITokens": true, "sqlRemoveAPITokens": true,
		"sqlRefusals":     true, // in the order of the key, up to the limit
		"sqlSetAside":     true, // over an index that holds just those
		"sqlSetKeyCheck":  true, // one row
		"sqlStanding":     true, // the accounts
		"sqlPauseChanges": true, // what is to be told, and no more
		"sqlVersion":      true, // one row a migration
	}
	scan := regexp.MustCompile(`^SCAN [a-z]`)
	s := openFresh(t)
	for name, query := range queries(t) {
		for _, step := range plan(t, s.write, query) {
			if (scan.MatchString(step) || strings.Contains(step, "TEMP B-TREE")) && !mayScan[name] {
				t.Errorf("%s: %s", name, step)
			}
		}
	}
}

// maxArgs is more than any query takes.
const maxArgs = 32

func plan(t *testing.T, db *sql.DB, query string) (steps []string) {
	t.Helper()
	var args []any
	for i := 1; i <= maxArgs; i++ {
		if strings.Contains(query, fmt.Sprintf("?%d", i)) {
			args = append(args, make([]any, i-len(args))...)
		}
	}
	rows, err := db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, detail)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return steps
}

func TestSchemaVersionIsTheNewestMigration(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	newest, _, _ := strings.Cut(filepath.Base(files[len(files)-1]), "_")
	if version, err := strconv.Atoi(newest); err != nil || version != schemaVersion {
		t.Errorf("the newest migration is %s, schemaVersion is %d", newest, schemaVersion)
	}
}

func TestPools(t *testing.T) {
	t.Parallel()
	s := openFresh(t)
	for name, db := range map[string]*sql.DB{"read": s.read, "write": s.write} {
		for pragma, want := range map[string]string{
			"busy_timeout": strconv.Itoa(busyTimeoutMillis), "foreign_keys": "1", "journal_mode": "wal", "synchronous": "2",
		} {
			var got string
			if err := db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
				t.Errorf("%s pool: %s is %s, want %s (%v)", name, pragma, got, want, err)
			}
		}
	}
	if _, err := s.read.ExecContext(t.Context(), "DELETE FROM leases"); err == nil {
		t.Error("the read pool can write")
	}
}

// TestWritersNeverMeetHalfWay shows that a transaction that reads first has
// the write lock already: with deferred ones the second would fail.
func TestWritersNeverMeetHalfWay(t *testing.T) {
	t.Parallel()
	s := openFresh(t)
	other, err := Open(t.Context(), s.path, s.sealer)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	const each = 20
	failures := make(chan error, 2)
	for i, one := range []*Store{s, other} {
		go func() {
			for n := range each {
				err := one.change(t.Context(), "test", func(_ context.Context, tx *sql.Tx) error { return readThenWrite(t.Context(), tx, i*each+n) })
				if err != nil {
					failures <- err
					return
				}
			}
			failures <- nil
		}()
	}
	for range 2 {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
}

func readThenWrite(ctx context.Context, tx *sql.Tx, n int) error {
	var rows int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM leases").Scan(&rows); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "INSERT INTO leases (name, owner, until) VALUES (?1, 'x', ?2)", strconv.Itoa(n), rows)
	return err
}

func TestFullDiskNamesThePath(t *testing.T) {
	t.Parallel()
	s := openFresh(t)
	// A file that may not grow is what a full disk is to SQLite.
	if _, err := s.write.ExecContext(t.Context(), "PRAGMA max_page_count = 1"); err != nil {
		t.Fatal(err)
	}
	err := s.Refuse(t.Context(), jetpost.Refusal{Sequence: 1, Stored: time.Now()}, make([]byte, 1<<20))
	if err == nil || !strings.Contains(err.Error(), s.path) || !strings.Contains(err.Error(), "full") {
		t.Errorf("error is %v, want one that names the path and says that it is full", err)
	}
}

// TestWaitIsBounded: who waits for a lock is told so, also where another process
// holds it, and what was given up takes no effect later. What only reads does not wait.
func TestWaitIsBounded(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"in this process", "in another"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := openFresh(t)
				holder := s
				if where == "in another" {
					var err error
					holder, err = Open(t.Context(), s.path, s.sealer)
					if err != nil {
						t.Fatal(err)
					}
					defer func() { _ = holder.Close() }()
				}
				if err := s.CheckKeys(t.Context()); err != nil { // it stores the key check value
					t.Fatal(err)
				}
				err := transact(t.Context(), time.Hour, holder.write, nil, func(context.Context, *sql.Tx) error {
					took, err := s.TryLease(t.Context(), "name", "late", time.Hour, time.Now())
					if took || !store.Unavailable(err) {
						t.Errorf("took the lease: %t, %v; want an UnavailableError", took, err)
					}
					if err := s.CheckKeys(t.Context()); err != nil {
						t.Errorf("check keys: %v, though they were checked before", err)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if took, err := s.TryLease(t.Context(), "name", "next", time.Hour, time.Now()); !took || err != nil {
					t.Errorf("the lease was taken by what was given up: %v", err)
				}
			})
		})
	}
}
