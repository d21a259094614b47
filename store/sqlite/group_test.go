package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/jetpost/jetpost/store"
)

const sqlNote = `INSERT INTO leases (name, owner, until) VALUES (?1, 'test', 0)`

// caller is the key of who asks, in the context of a change.
type caller struct{}

// note is a change that names itself, and tells in which transaction it was made. It fails in
// the context of another caller.
func note(name string, in **sql.Tx, then error) func(context.Context, *sql.Tx) error {
	return func(ctx context.Context, tx *sql.Tx) error {
		*in = tx
		if of := ctx.Value(caller{}); of != name {
			return fmt.Errorf("made in the context of %v", of)
		}
		if _, err := tx.ExecContext(ctx, sqlNote, name); err != nil {
			return err
		}
		if then != nil && name == "panics" {
			panic(then)
		}
		return then
	}
}

// occupy begins a change that is under way until leave is called, so that others gather.
func (s *Store) occupy(t *testing.T, group *sync.WaitGroup) (leave func()) {
	t.Helper()
	entered, left := make(chan struct{}), make(chan struct{})
	group.Go(func() {
		check(t, s.change(t.Context(), "hold", func(context.Context, *sql.Tx) error {
			close(entered)
			<-left
			return nil
		}))
	})
	<-entered
	return func() { close(left) }
}

// gathered is how many changes wait.
func (s *Store) gathered() int {
	s.group.mu.Lock()
	defer s.group.mu.Unlock()
	return len(s.group.waiting)
}

// TestChangesShareACommit: what waits for a commit shares the next one. A change that
// fails or panics is undone alone, and one that was given up is never made. Each is made in
// the context of its own caller.
func TestChangesShareACommit(t *testing.T) {
	t.Parallel()
	s := openFresh(t)
	var group sync.WaitGroup
	leave := s.occupy(t, &group)
	refused := errors.New("refused")
	names := []string{"a", "fails", "b", "panics", "c"}
	in, errs, panics := make([]*sql.Tx, len(names)), make([]error, len(names)), make([]any, len(names))
	for i, name := range names {
		then := map[string]error{"fails": refused, "panics": refused}[name]
		group.Go(func() {
			defer func() { panics[i] = recover() }()
			errs[i] = s.change(context.WithValue(t.Context(), caller{}, name), name, note(name, &in[i], then))
		})
	}
	for s.gathered() < len(names) {
		runtime.Gosched()
	}
	gone, cancel := context.WithCancel(t.Context())
	var never *sql.Tx
	group.Go(func() {
		if err := s.change(gone, "gone", note("gone", &never, nil)); !errors.Is(err, context.Canceled) {
			t.Errorf("a change that was given up: %v", err)
		}
	})
	for s.gathered() < len(names)+1 {
		runtime.Gosched()
	}
	cancel()
	for s.gathered() > len(names) {
		runtime.Gosched()
	}
	leave()
	group.Wait()
	for i, name := range names {
		if in[i] == nil || in[i] != in[0] {
			t.Errorf("%s was made in another transaction", name)
		}
		if failed := errors.Is(errs[i], refused); failed != (name == "fails") {
			t.Errorf("%s: %v", name, errs[i])
		}
		if (panics[i] != nil) != (name == "panics") {
			t.Errorf("%s panicked with %v", name, panics[i])
		}
	}
	var made []string
	check(t, s.view(t.Context(), "read", func(ctx context.Context, tx *sql.Tx) (err error) {
		made, err = collect(ctx, tx, scanText, "SELECT name FROM leases WHERE owner = 'test' ORDER BY name")
		return err
	}))
	if !slices.Equal(made, []string{"a", "b", "c"}) {
		t.Errorf("made: %v", made)
	}
}

// TestChangesEndTogether: if the transaction ends, as where a process is frozen for too long,
// each of its changes is told that. None is told what the ledger has answered to another one, or
// to itself because of another one that is undone.
func TestChangesEndTogether(t *testing.T) {
	t.Parallel()
	for name, last := range map[string]error{"refused": store.ErrFenced, "made": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openFresh(t)
			var group sync.WaitGroup
			leave := s.occupy(t, &group)
			changes := []func(context.Context, *sql.Tx) error{
				func(ctx context.Context, tx *sql.Tx) error {
					_, err := tx.ExecContext(ctx, sqlNote, "taken")
					return err
				},
				func(ctx context.Context, tx *sql.Tx) error {
					var taken string
					if err := tx.QueryRowContext(ctx, "SELECT name FROM leases WHERE name = 'taken'").Scan(&taken); err != nil {
						return err
					}
					return store.ErrFenced
				},
				func(ctx context.Context, tx *sql.Tx) error {
					<-ctx.Done()
					for { // until the transaction is over
						if _, err := tx.ExecContext(context.WithoutCancel(t.Context()), "SELECT 1"); err != nil {
							return last
						}
						runtime.Gosched()
					}
				},
			}
			errs := make([]error, len(changes))
			for i, f := range changes {
				group.Go(func() { errs[i] = s.change(t.Context(), "change", f) })
				for s.gathered() <= i {
					runtime.Gosched()
				}
			}
			leave()
			group.Wait()
			for i, err := range errs {
				if !store.Unavailable(err) {
					t.Errorf("change %d: %v, want that the database does not answer", i, err)
				}
			}
		})
	}
}

// TestStatementsAreKept: a statement is read once, and one that is in use is not used by
// another.
func TestStatementsAreKept(t *testing.T) {
	t.Parallel()
	s := openFresh(t)
	const query = "SELECT 1 UNION SELECT 2 ORDER BY 1"
	kept := func() any {
		t.Helper()
		conn, err := s.write.Conn(t.Context())
		check(t, err)
		defer func() { check(t, conn.Close()) }()
		var stmt any
		check(t, conn.Raw(func(raw any) error {
			stmt = raw.(*stmtCache).kept[query]
			return nil
		}))
		return stmt
	}
	var first []int
	check(t, s.change(t.Context(), "read", func(ctx context.Context, tx *sql.Tx) error {
		outer, err := tx.QueryContext(ctx, query)
		if err != nil {
			return err
		}
		defer func() { check(t, outer.Close()) }()
		for outer.Next() {
			var n, inner int
			check(t, outer.Scan(&n))
			check(t, tx.QueryRowContext(ctx, query).Scan(&inner))
			first = append(first, n, inner)
		}
		return outer.Err()
	}))
	if !slices.Equal(first, []int{1, 1, 2, 1}) {
		t.Errorf("read %v", first)
	}
	before := kept()
	check(t, s.change(t.Context(), "read", func(ctx context.Context, tx *sql.Tx) error {
		var n int
		return tx.QueryRowContext(ctx, query).Scan(&n)
	}))
	if before == nil || kept() != before {
		t.Error("the statement was read anew")
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
