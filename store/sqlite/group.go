package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync"
	"time"
)

// maxGroup is how many changes one transaction takes: more than a worker has slots.
const maxGroup = 64

// group has the changes that gather while one commit is on its way share the next: what
// a change costs is mostly the disk's answer to its commit.
type group struct {
	mu      sync.Mutex
	waiting []*member
	busy    bool
}

// member is one change of a group.
type member struct {
	ctx      context.Context // outlives the caller's: the changes of many go together
	f        func(context.Context, *sql.Tx) error
	err      error
	panicked any
	done     chan struct{}
}

// errPanicked undoes what a change has written before it panicked, where its caller is.
var errPanicked = errors.New("the change panicked")

// together makes a change with others, and tells what became of this one. Whoever gives
// up before its turn has changed nothing.
func (s *Store) together(ctx context.Context, f func(context.Context, *sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return err
	}
	m := &member{ctx: context.WithoutCancel(ctx), f: f, done: make(chan struct{})}
	s.group.add(m, s.lead)
	select {
	case <-m.done:
	case <-ctx.Done():
		if s.group.giveUp(m) {
			return ctx.Err()
		}
		<-m.done // its transaction is under way, and has an end of its own
	}
	if m.panicked != nil {
		panic(m.panicked)
	}
	return m.err
}

func (g *group) add(m *member, lead func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, m)
	if !g.busy {
		g.busy = true
		go lead()
	}
}

// giveUp takes back a change whose turn has not come.
func (g *group) giveUp(m *member) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.waiting, m)
	if i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	}
	return i >= 0
}

func (g *group) take() []*member {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := min(len(g.waiting), maxGroup)
	members := slices.Clone(g.waiting[:n])
	g.waiting = slices.Delete(g.waiting, 0, n)
	g.busy = n > 0
	return members
}

// lead makes group after group until nothing waits.
func (s *Store) lead() {
	for members := s.group.take(); len(members) > 0; members = s.group.take() {
		if err := s.commit(members); err != nil {
			for _, m := range members { // also one that failed: what it has read may never have been
				m.err = err
			}
		}
		for _, m := range members {
			close(m.done)
		}
	}
}

// commit makes all changes in one transaction. One that fails leaves the others; what
// ends the transaction ends all.
func (s *Store) commit(members []*member) error {
	end := time.Now().Add(callTimeout)
	ctx, cancel := context.WithDeadline(members[0].ctx, end)
	defer cancel()
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	made := 0
	for _, m := range members {
		if m.err = m.change(end, tx, len(members) > 1); m.err == nil {
			made++
			continue
		}
		if len(members) == 1 {
			break
		}
		if _, err := tx.ExecContext(ctx, "ROLLBACK TO one"); err != nil { // all of it is over
			_ = tx.Rollback()
			if unavailable(m.err) { // SQLite has ended it, and this says why
				return m.err
			}
			return err // never what the ledger has answered to this change alone
		}
	}
	if made == 0 {
		_ = tx.Rollback() // the changes' own errors tell
		return nil
	}
	return tx.Commit()
}

// change makes one change, beside others within a savepoint. It has the values of its own
// caller's context, which say who asks.
func (m *member) change(end time.Time, tx *sql.Tx, beside bool) (err error) {
	ctx, cancel := context.WithDeadline(m.ctx, end)
	defer cancel()
	defer func() {
		if m.panicked = recover(); m.panicked != nil {
			err = errPanicked
		}
	}()
	if beside {
		if _, err := tx.ExecContext(ctx, "SAVEPOINT one"); err != nil {
			return err
		}
	}
	if err := m.f(ctx, tx); err != nil || !beside {
		return err
	}
	_, err = tx.ExecContext(ctx, "RELEASE one")
	return err
}
