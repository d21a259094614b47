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
	"github.com/jetpost/jetpost/store"
)

const (
	// loadAccount names the account of a row, by number.
	loadAccount = "load-%06d"
	// refreshers renew tokens while they are sealed anew: every second one is a
	// worker that still has the old key first.
	refreshers = 4
	// readers open tokens meanwhile, as lanes do.
	readers = 2
)

// LoadRow is one account for a bulk load.
type LoadRow struct {
	TokenID, Account, Access, Refresh string // sealed
	ExpiresAt                         time.Time
}

// RunRotationUnderLoad seals so many rows anew, a multiple of four, while
// workers renew and open tokens. load brings the rows in.
func RunRotationUnderLoad(t *testing.T, ledger Ledger, rows int, load func(t *testing.T, rows []LoadRow)) {
	older, newer := store.GenerateKey().Reveal(), store.GenerateKey().Reveal()
	b := &bundle{ledger: ledger, keys: older}
	b.st = b.open(t, older)
	check(t, b.st.CheckKeys(t.Context()))
	b.now = b.clock(t)
	load(t, b.loadRows(t, rows))

	stop := make(chan struct{})
	var work sync.WaitGroup
	l := &loaded{b: b, rows: rows, stop: stop, pairs: make([]atomic.Int64, rows)}
	for i := range refreshers {
		keys := newer + "," + older
		if i%2 == 0 {
			keys = older + "," + newer
		}
		st := b.open(t, keys)
		work.Go(func() { l.renew(t, st, i) })
	}
	for i := range readers {
		st := b.open(t, older+","+newer)
		work.Go(func() { l.read(t, st, i) })
	}
	r := b.rotation(t, newer+","+older)
	first, err := l.rotate(t, r)
	if err != nil {
		t.Errorf("rotate: %v", err)
	}
	close(stop)
	work.Wait()
	if l.renewed.Load() == 0 || l.opened.Load() == 0 {
		t.Errorf("%d tokens were renewed and %d opened meanwhile: this shows nothing", l.renewed.Load(), l.opened.Load())
	}
	// The workers with the old key first are gone now: what they have sealed since
	// is sealed anew.
	last, err := l.rotate(t, r)
	check(t, err)
	t.Logf("%d rows sealed anew while %d were renewed and %d opened; %d of them behind then, %d sealed anew in the end",
		first.Resealed, l.renewed.Load(), l.opened.Load(), first.Behind, last.Resealed)
	if first.Left()+last.Left() > 0 || last.Behind > 0 || l.failed.Load() > 0 {
		t.Errorf("%d rows were left, %d behind, %d did not open", first.Left()+last.Left(), last.Behind, l.failed.Load())
	}
	check(t, b.open(t, newer+","+older).CheckKeys(t.Context()))
	l.wantPairs(t, newer)
}

func (b *bundle) loadRows(t *testing.T, n int) []LoadRow {
	t.Helper()
	sealer, err := store.NewSealer(b.keys)
	check(t, err)
	rows := make([]LoadRow, n)
	for i := range rows {
		id := uuid.NewString()
		access, refresh, err := sealer.SealPair(id, loadPair(i, 0))
		check(t, err)
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

// loaded is what happens while rows are sealed anew.
type loaded struct {
	b     *bundle
	rows  int
	stop  chan struct{}
	pairs []atomic.Int64 // how many each account has had, by number

	renewed, opened, failed atomic.Int64
}

// rotate runs the rotation, again where the database was too busy for it.
func (l *loaded) rotate(t *testing.T, r store.Rotation) (done store.RotationProgress, err error) {
	t.Helper()
	err = asked(func() (err error) {
		before := done.Resealed
		done, err = r.Run(t.Context(), quietly)
		done.Resealed += before
		return err
	})
	return done, err
}

// asked asks a database that is too busy to answer again, as workers do.
func asked(ask func() error) error {
	for end := time.Now().Add(patience); ; {
		err := ask()
		if err == nil || errors.Is(err, store.ErrFenced) || errors.As(err, new(*store.KeyError)) || time.Now().After(end) {
			return err
		}
	}
}

func (l *loaded) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// renew renews accounts of its own, each a long step from the last, so that
// they lie before and behind the rotation.
func (l *loaded) renew(t *testing.T, st store.Store, worker int) {
	for n := worker; !l.stopped(); n += 7919 * refreshers {
		account := n % l.rows
		name := fmt.Sprintf(loadAccount, account)
		var claim store.Token
		ok := false
		err := asked(func() (err error) {
			claim, ok, err = st.ClaimToken(t.Context(), store.TokenClaim{
				Account: name, UsedVersion: l.pairs[account].Load() + 1, Force: true, Pace: pace(longLease), Now: l.b.now,
			})
			return err
		})
		if err != nil || !ok {
			l.fail(t, name, err)
			return
		}
		next := l.pairs[account].Load() + 1
		pair := loadPair(account, int(next))
		pair.ExpiresAt = l.b.now.Add(time.Hour)
		if err := asked(func() error { return st.SaveToken(t.Context(), claim, pair, l.b.now) }); err != nil {
			l.fail(t, name, err)
			return
		}
		l.pairs[account].Store(next)
		l.renewed.Add(1)
	}
}

func (l *loaded) read(t *testing.T, st store.Store, reader int) {
	for n := reader; !l.stopped(); n += 104729 {
		name := fmt.Sprintf(loadAccount, n%l.rows)
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
	check(t, st.CheckKeys(t.Context()))
	sealer, err := store.NewSealer(keys)
	check(t, err)
	seen := 0
	for after := ""; ; {
		rows, err := st.SealedTokens(t.Context(), after, 1000)
		check(t, err)
		if len(rows) == 0 {
			equal(t, "rows", seen, l.rows)
			return
		}
		for _, row := range rows {
			token, err := sealer.OpenToken(row)
			check(t, err)
			var account int
			_, err = fmt.Sscanf(token.Account, "load-%d", &account)
			check(t, err)
			if want := loadPair(account, int(l.pairs[account].Load())); token.Access != want.Access || token.Refresh != want.Refresh {
				t.Fatalf("%s does not hold the pair that was saved last", token.Account)
			}
		}
		seen += len(rows)
		after = rows[len(rows)-1].ID
	}
}
