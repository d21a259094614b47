package storetest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

const (
	// loadAccount names the account of a row, by number.
	loadAccount = "load-%06d"
	// refreshers renew tokens while they are sealed again. Every second one is a worker
	// that still has the old key first.
	refreshers = 4
	// readers open tokens meanwhile, as lanes do.
	readers = 2
	// Each step of the rotation hands out this much work. If the clock did, the faster
	// side would starve the other one on a slow machine.
	renewalsAStep, readsAStep = 16, 64
)

// LoadRow is one account for a bulk load.
type LoadRow struct {
	TokenID, Account, Access, Refresh string // sealed
	ExpiresAt                         time.Time
}

// RunRotationUnderLoad seals that many rows again, a multiple of four, while workers
// renew and open tokens. load inserts the rows.
func RunRotationUnderLoad(t *testing.T, ledger Ledger, rows int, load func(t *testing.T, rows []LoadRow)) {
	older, newer := store.GenerateKey().Reveal(), store.GenerateKey().Reveal()
	b := &bundle{ledger: ledger, keys: older}
	b.st = b.open(t, older)
	testkit.Must(t, b.st.CheckKeys(t.Context()))
	b.now = b.clock(t)
	load(t, b.loadRows(t, rows))

	l := &loaded{
		b: b, rows: rows, pairs: make([]atomic.Int64, rows),
		renewals: make(chan struct{}, renewalsAStep), reads: make(chan struct{}, readsAStep),
	}
	var work sync.WaitGroup
	stores := []store.Store{b.open(t, older+","+newer), b.open(t, newer+","+older)}
	for i := range refreshers {
		work.Go(func() { l.renew(t, stores[i%2], i) })
	}
	for i := range readers {
		work.Go(func() { l.read(t, stores[i%2], i) })
	}
	r := b.rotation(t, newer+","+older)
	l.step(store.RotationProgress{Seen: 1})
	first, err := r.Run(t.Context(), l.step)
	if err != nil {
		t.Errorf("rotate: %v", err)
	}
	close(l.renewals)
	close(l.reads)
	work.Wait()
	if l.renewed.Load() == 0 || l.opened.Load() == 0 {
		t.Errorf("%d tokens were renewed and %d opened meanwhile: this shows nothing", l.renewed.Load(), l.opened.Load())
	}
	// The workers with the old key first have ended: the rows that they have sealed
	// since are sealed again.
	last, err := r.Run(t.Context(), quietly)
	testkit.Must(t, err)
	t.Logf("%d rows sealed anew while %d were renewed and %d opened; %d of them behind then, %d sealed anew in the end",
		first.Resealed, l.renewed.Load(), l.opened.Load(), first.Behind, last.Resealed)
	if first.Left()+last.Left() > 0 || last.Behind > 0 || l.failed.Load() > 0 {
		t.Errorf("%d rows were left, %d behind, %d did not open", first.Left()+last.Left(), last.Behind, l.failed.Load())
	}
	testkit.Must(t, b.open(t, newer+","+older).CheckKeys(t.Context()))
	l.wantPairs(t, newer)
}

func (b *bundle) loadRows(t *testing.T, n int) []LoadRow {
	t.Helper()
	sealer, err := store.NewSealer(b.keys)
	testkit.Must(t, err)
	rows := make([]LoadRow, n)
	for i := range rows {
		id := uuid.NewString()
		access, refresh, err := sealer.SealPair(id, loadPair(i, 0))
		testkit.Must(t, err)
		rows[i] = LoadRow{TokenID: id, Account: fmt.Sprintf(loadAccount, i), Access: access, Refresh: refresh, ExpiresAt: b.now.Add(time.Hour)}
	}
	return rows
}

// loadPair is the nth pair of an account.
func loadPair(account, n int) store.Pair {
	return store.Pair{
		Access:  secret.New(fmt.Sprintf("access-%d-%d", account, n)),
		Refresh: secret.New(fmt.Sprintf("refresh-%d-%d", account, n)),
	}
}

// loaded is what happens while rows are sealed again.
type loaded struct {
	b     *bundle
	rows  int
	pairs []atomic.Int64 // how many each account has had, by number
	seen  int            // rows of the rotation's first pass

	renewals, reads         chan struct{} // what may be done yet
	renewed, opened, failed atomic.Int64
}

// step hands out work for a step of the rotation's first pass. The later passes find
// what was done until then.
func (l *loaded) step(p store.RotationProgress) {
	if p.Seen <= l.seen {
		return
	}
	l.seen = p.Seen
	fill(l.renewals)
	fill(l.reads)
}

// fill fills up a channel, and waits for nobody.
func fill(work chan<- struct{}) {
	for {
		select {
		case work <- struct{}{}:
		default:
			return
		}
	}
}

// renew renews accounts of its own, far apart, so that they are both before and behind
// the rotation.
func (l *loaded) renew(t *testing.T, st store.Store, worker int) {
	n := worker
	for range l.renewals {
		account := n % l.rows
		n += 7919 * refreshers
		name := fmt.Sprintf(loadAccount, account)
		claim, ok, err := st.ClaimToken(t.Context(), store.TokenClaim{
			Account: name, UsedVersion: l.pairs[account].Load() + 1, Force: true, Pace: pace(longLease), Now: l.b.now,
		})
		if err != nil || !ok {
			l.fail(t, name, err)
			return
		}
		next := l.pairs[account].Load() + 1
		pair := loadPair(account, int(next))
		pair.ExpiresAt = l.b.now.Add(time.Hour)
		if err := st.SaveToken(t.Context(), claim, pair, l.b.now); err != nil {
			l.fail(t, name, err)
			return
		}
		l.pairs[account].Store(next)
		l.renewed.Add(1)
	}
}

func (l *loaded) read(t *testing.T, st store.Store, reader int) {
	n := reader
	for range l.reads {
		name := fmt.Sprintf(loadAccount, n%l.rows)
		n += 104729
		if _, err := st.Token(t.Context(), name); err != nil {
			l.fail(t, name, err)
			return
		}
		l.opened.Add(1)
	}
}

func (l *loaded) fail(t *testing.T, name string, err error) {
	if unopened := new(store.KeyError); errors.As(err, &unopened) {
		l.failed.Add(1)
	}
	t.Errorf("%s: %v", name, err)
}

// wantPairs opens every row with the new key alone, and compares it with the
// last pair that was saved.
func (l *loaded) wantPairs(t *testing.T, keys string) {
	t.Helper()
	st := l.b.open(t, keys)
	testkit.Must(t, st.CheckKeys(t.Context()))
	sealer, err := store.NewSealer(keys)
	testkit.Must(t, err)
	seen := 0
	for after := ""; ; {
		rows, err := st.SealedTokens(t.Context(), after, 1000)
		testkit.Must(t, err)
		if len(rows) == 0 {
			equal(t, "rows", seen, l.rows)
			return
		}
		for _, row := range rows {
			token, err := sealer.OpenToken(row)
			testkit.Must(t, err)
			var account int
			_, err = fmt.Sscanf(token.Account, "load-%d", &account)
			testkit.Must(t, err)
			if want := loadPair(account, int(l.pairs[account].Load())); token.Access != want.Access || token.Refresh != want.Refresh {
				t.Fatalf("%s does not hold the pair that was saved last", token.Account)
			}
		}
		seen += len(rows)
		after = rows[len(rows)-1].ID
	}
}
