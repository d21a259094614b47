package consumers

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// errNoRoom is the error of a disk that is full.
var errNoRoom = errors.New("no space left on device")

// watchedBoat is a lifeboat that counts what is synced, and calls hooks before each step.
type watchedBoat struct {
	lifeboat
	write, keep func() error
	drop        func()
	kept        atomic.Int64
}

func (w *watchedBoat) Write(claim store.Token, pair store.Pair, now time.Time) error {
	if w.write != nil {
		if err := w.write(); err != nil {
			return err
		}
	}
	return w.lifeboat.Write(claim, pair, now)
}

func (w *watchedBoat) Keep(claim store.Token, pair store.Pair, now time.Time) error {
	if w.keep != nil {
		if err := w.keep(); err != nil {
			return err
		}
	}
	err := w.lifeboat.Keep(claim, pair, now)
	w.kept.Add(1)
	return err
}

func (w *watchedBoat) Drop(claim store.Token) error {
	step(w.drop)
	return w.lifeboat.Drop(claim)
}

// boatTest is a worker whose lifeboat and ledger are watched, and a token that is due.
type boatTest struct {
	*testBundle
	r      *refresher
	boat   *watchedBoat
	ledger *tokensHook
}

func inBoat(t *testing.T) *boatTest {
	t.Helper()
	b := offline(t)
	b.due(t, "acme", time.Minute)
	bt := &boatTest{testBundle: b, r: b.bubble(), boat: &watchedBoat{lifeboat: b.lifeboat}, ledger: &tokensHook{Tokens: b.ledger}}
	bt.r.Lifeboat, bt.r.Tokens = bt.boat, bt.ledger
	return bt
}

// renewed exchanges the token, and fails unless the pair is stored and left the lifeboat
// for good.
func (b *boatTest) renewed(t *testing.T) {
	t.Helper()
	_, err := b.r.EnsureFresh(t.Context(), "acme", 0)
	testkit.Must(t, err)
	b.stored(t, "acme", 1)
	testkit.Equal(t, "pairs left in the lifeboat", b.afloat(t), 0)
	sleep(10 * syncAfter)
	testkit.Equal(t, "pairs in the lifeboat later", b.afloat(t), 0)
}

// TestPairOfFastCommit: a pair whose commit is fast is in the lifeboat meanwhile, and its
// file is never synced.
func TestPairOfFastCommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := inBoat(t)
		b.ledger.save = func() error {
			testkit.Equal(t, "pairs in the lifeboat", b.afloat(t), 1)
			return nil
		}
		b.renewed(t)
		testkit.Equal(t, "syncs", b.boat.kept.Load(), 0)
	})
}

// TestPairOfSlowCommit: a pair whose commit takes long is synced meanwhile, once.
func TestPairOfSlowCommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := inBoat(t)
		b.ledger.save = func() error {
			testkit.Equal(t, "syncs at first", b.boat.kept.Load(), 0)
			sleep(10 * syncAfter)
			testkit.Equal(t, "syncs by then", b.boat.kept.Load(), 1)
			testkit.Equal(t, "pairs in the lifeboat", b.afloat(t), 1)
			return nil
		}
		b.renewed(t)
		testkit.Equal(t, "syncs", b.boat.kept.Load(), 1)
	})
}

// TestPairOfFailedCommit: with the first error of the database the pair is synced, before
// the next try.
func TestPairOfFailedCommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := inBoat(t)
		tries := 0
		var failed time.Time
		b.ledger.save = func() error {
			if tries++; tries < 4 {
				testkit.Equal(t, "syncs before a try", b.boat.kept.Load(), int64(min(tries-1, 1)))
				failed = time.Now()
				return errAway
			}
			return nil
		}
		b.boat.keep = func() error {
			testkit.Equal(t, "time since the error", time.Since(failed), 0)
			return nil
		}
		b.renewed(t)
		testkit.Equal(t, "syncs", b.boat.kept.Load(), 1)
	})
}

// TestPairLeftBehind: a worker that stops leaves a pair in the lifeboat once its file is
// synced, and not before.
func TestPairLeftBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := inBoat(t)
		stopping := make(chan struct{})
		close(stopping)
		b.r.Stopping = stopping
		full := 5
		b.boat.keep = func() error {
			if full--; full >= 0 {
				return errNoRoom
			}
			return nil
		}
		tries := 0
		b.ledger.save = func() error {
			tries++
			return errAway
		}
		if _, err := b.r.EnsureFresh(t.Context(), "acme", 1); err == nil {
			t.Error("a pair that was not stored was given out")
		}
		if full > 0 || b.boat.kept.Load() != 1 {
			t.Errorf("given up after %d tries, with %d syncs", tries, b.boat.kept.Load())
		}
		testkit.Equal(t, "pairs in the lifeboat", b.afloat(t), 1)
		testkit.Must(t, b.bubble().Recover(t.Context()))
		b.stored(t, "acme", 1)
	})
}

// TestPairDroppedWhileSynced: the commit ends while the file is being synced. It is dropped
// after that, and does not come back.
func TestPairDroppedWhileSynced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := inBoat(t)
		began, dropped := make(chan struct{}), make(chan struct{})
		b.boat.keep = func() error {
			close(began)
			select {
			case <-dropped:
				t.Error("the pair is dropped while its file is being synced")
			case <-time.After(time.Second): // once everything else waits
			}
			return nil
		}
		b.boat.drop = func() { close(dropped) }
		b.ledger.save = func() error {
			<-began
			return nil
		}
		b.renewed(t)
		testkit.Equal(t, "syncs", b.boat.kept.Load(), 1)
	})
}

// TestPairOnFullDisk: a pair for which the disk has no room is synced at once, into the room
// that the lifeboat has set aside, before the database is asked.
func TestPairOnFullDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := inBoat(t)
		b.boat.write = func() error { return errNoRoom }
		b.ledger.save = func() error {
			testkit.Equal(t, "syncs", b.boat.kept.Load(), 1)
			testkit.Equal(t, "pairs in the lifeboat", b.afloat(t), 1)
			return nil
		}
		b.renewed(t)
	})
}

// TestRecoverBesideTornPair: the machine crashed before one of two pairs was synced. The
// other one is recovered, and the log names the lost one.
func TestRecoverBesideTornPair(t *testing.T) {
	t.Parallel()
	b := offline(t)
	id, err := b.ledger.LedgerID(t.Context())
	testkit.Must(t, err)
	dir := t.TempDir()
	boat := store.NewLifeboat(dir, id, b.sealer)
	claims := map[string]store.Token{}
	for _, name := range []string{"torn", "whole"} {
		b.account(t, name, 0)
		token := b.token(t, name)
		claims[name] = token
		pair := store.Pair{Access: secret.New("access-" + name), Refresh: secret.New("refresh-" + name), ExpiresAt: time.Now().Add(time.Hour)}
		testkit.Must(t, boat.Write(token, pair, time.Now()))
	}
	files, err := filepath.Glob(filepath.Join(dir, claims["torn"].ID+"*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the file of the pair is %v, %v", files, err)
	}
	testkit.Must(t, os.Truncate(files[0], 0))
	var log bytes.Buffer
	r := b.bubble()
	r.Lifeboat, r.Log = boat, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))
	for range 2 {
		testkit.Must(t, r.Recover(context.WithoutCancel(t.Context())))
	}
	testkit.Equal(t, "refresh token", b.token(t, "whole").Refresh.Reveal(), "refresh-whole")
	testkit.Equal(t, "version without its pair", b.token(t, "torn").Version, claims["torn"].Version)
	if said := log.String(); strings.Count(said, "token.torn") != 1 || !strings.Contains(said, claims["torn"].ID) || !strings.Contains(said, dir) {
		t.Errorf("the log says %q", said)
	}
}

// TestRecoverBesideUnopenablePair: a pair that no key opens is reported, and the others are saved.
func TestRecoverBesideUnopenablePair(t *testing.T) {
	t.Parallel()
	b := offline(t)
	id, err := b.ledger.LedgerID(t.Context())
	testkit.Must(t, err)
	dir := t.TempDir()
	lost, err := store.NewSealer(store.GenerateKey().Reveal())
	testkit.Must(t, err)
	r, boat := b.bubble(), store.NewLifeboat(dir, id, b.sealer)
	r.Lifeboat = boat
	for name, boat := range map[string]*store.Lifeboat{"first": store.NewLifeboat(dir, id, lost), "second": boat, "third": store.NewLifeboat(dir, id, lost)} {
		b.account(t, name, 0)
		testkit.Must(t, boat.Keep(b.token(t, name), rescue(), time.Now()))
	}
	if err := r.Recover(context.WithoutCancel(t.Context())); !errors.As(err, new(*store.KeyError)) {
		t.Errorf("error is %v, want a KeyError", err)
	}
	testkit.Equal(t, "refresh token", b.token(t, "second").Refresh.Reveal(), "rescued-refresh")
	left, err := boat.Count()
	testkit.Must(t, err)
	testkit.Equal(t, "pairs left", left, 2)
}

func rescue() store.Pair {
	return store.Pair{Access: secret.New("rescued-access"), Refresh: secret.New("rescued-refresh"), ExpiresAt: time.Now().Add(time.Hour)}
}

// TestRecoverAfterRestore: a pair is saved although the database was restored from a backup of
// an older version of its row, unless the row has got a later pair since, or the account was
// disconnected.
func TestRecoverAfterRestore(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		since func(t *testing.T, b *testBundle)
		saved bool
	}{
		"restored": {func(*testing.T, *testBundle) {}, true},
		"connected again since": {func(t *testing.T, b *testBundle) {
			t.Helper()
			account, err := b.ledger.Account(t.Context(), "acme")
			testkit.Must(t, err)
			_, err = b.ledger.ImportAccount(t.Context(), store.Import{
				Name: "acme", XUserID: account.XUserID, Consented: true, Now: time.Now(),
				Pair: store.Pair{Access: secret.New("a"), Refresh: secret.New("consented"), ExpiresAt: time.Now().Add(time.Hour)},
			})
			testkit.Must(t, err)
		}, false},
		"disconnected since": {func(t *testing.T, b *testBundle) {
			t.Helper()
			_, err := b.ledger.Disconnect(t.Context(), "acme", time.Now())
			testkit.Must(t, err)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := offline(t)
			id, err := b.ledger.LedgerID(t.Context())
			testkit.Must(t, err)
			r, boat := b.bubble(), store.NewLifeboat(t.TempDir(), id, b.sealer)
			r.Lifeboat = boat
			b.account(t, "acme", 0)
			claim := b.token(t, "acme")
			claim.Version += 5 // of which the backup has nothing
			testkit.Must(t, boat.Keep(claim, rescue(), time.Now()))
			test.since(t, b)
			testkit.Must(t, r.Recover(context.WithoutCancel(t.Context())))
			testkit.Equal(t, "saved", b.token(t, "acme").Refresh.Reveal() == "rescued-refresh", test.saved)
			left, err := boat.Count()
			testkit.Must(t, err)
			testkit.Equal(t, "pairs left", left, 0)
		})
	}
}
