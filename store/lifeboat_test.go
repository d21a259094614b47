package store

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/jetpost/jetpost/internal/secret"
)

func lifeboatPair() (Token, Pair, time.Time) {
	at := time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	claim := Token{ID: "0d2f8a9e-33d3-4a11-9b77-8b6a0a6f1c11", Account: "acme", Version: 7}
	pair := Pair{Access: secret.New("fresh-access"), Refresh: secret.New("fresh-refresh"), ExpiresAt: at.Add(2 * time.Hour), Scope: "tweet.read"}
	return claim, pair, at
}

func lifeboatSealer(t *testing.T) *Sealer {
	t.Helper()
	sealer, err := NewSealer(GenerateKey().Reveal())
	if err != nil {
		t.Fatal(err)
	}
	return sealer
}

func TestLifeboat(t *testing.T) {
	t.Parallel()
	dir, sealer := filepath.Join(t.TempDir(), "new", "lifeboat"), lifeboatSealer(t)
	boat := NewLifeboat(dir, "ledger", sealer)
	claim, pair, at := lifeboatPair()
	load := func() []Rescued {
		t.Helper()
		rescued, _, err := boat.Load()
		if err != nil {
			t.Fatal(err)
		}
		return rescued
	}
	if found := load(); len(found) != 0 {
		t.Fatalf("a lifeboat that was never made holds %v", found)
	}
	if err := boat.Prepare(); err != nil {
		t.Fatal(err)
	}
	want := []Rescued{{Claim: claim, Pair: pair, At: at}}
	for _, store := range []func(Token, Pair, time.Time) error{boat.Write, boat.Write, boat.Keep, boat.Keep} { // each replaces the one before
		if err := store(claim, pair, at); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, load(), cmp.Comparer(func(a, b secret.String) bool { return a == b })); diff != "" {
			t.Errorf("rescued (-want +got):\n%s", diff)
		}
	}
	other := NewLifeboat(dir, "another ledger", sealer)
	if found, _, err := other.Load(); err != nil || len(found) != 0 {
		t.Errorf("another ledger finds %v, %v", found, err)
	}
	for range 2 {
		if err := boat.Drop(claim); err != nil {
			t.Fatal(err)
		}
	}
	if found := load(); len(found) != 0 {
		t.Errorf("the emptied lifeboat holds %v", found)
	}
}

func TestLifeboatIsSealedAndPrivate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	boat := NewLifeboat(dir, "ledger", lifeboatSealer(t))
	claim, pair, at := lifeboatPair()
	if err := boat.Keep(claim, pair, at); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("the directory holds %v, %v", entries, err)
	}
	path := filepath.Join(dir, entries[0].Name())
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the file is %v, %v", info.Mode(), err)
	}
	text, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(text, []byte("acme")) {
		t.Fatalf("the file is %s, %v", text, err)
	}
	for _, token := range []string{"fresh-access", "fresh-refresh"} {
		if bytes.Contains(text, []byte(token)) {
			t.Errorf("%s lies in the file in clear", token)
		}
	}
}

// TestLifeboatShared: workers that live keep their pairs to themselves, and what one
// leaves that is gone is another's.
func TestLifeboatShared(t *testing.T) {
	t.Parallel()
	dir, sealer := t.TempDir(), lifeboatSealer(t)
	claim, pair, at := lifeboatPair()
	boat := func(ledger string) *Lifeboat {
		t.Helper()
		made := NewLifeboat(dir, ledger, sealer)
		if err := made.Prepare(); err != nil {
			t.Fatal(err)
		}
		return made
	}
	want := func(whose string, l *Lifeboat, n int) {
		t.Helper()
		if found, _, err := l.Load(); err != nil || len(found) != n {
			t.Errorf("%s finds %d pairs, %v, want %d", whose, len(found), err, n)
		}
	}
	before := NewLifeboat(dir, "ledger", sealer) // as one without worker directories has it
	if err := before.Write(claim, pair, at); err != nil {
		t.Fatal(err)
	}
	first, second, foreign := boat("ledger"), boat("ledger"), boat("another ledger")
	want("a ledger whose pair it is not", foreign, 0)
	want("the first", first, 1)
	want("the second while the first lives", second, 0)
	// A process that is killed closes its lock, and no more.
	if err := first.lock.Close(); err != nil {
		t.Fatal(err)
	}
	want("another ledger", foreign, 0)
	want("the second after the first ended", second, 1)
	want("the same again", second, 1)
	if exists(first.workerDir) {
		t.Error("the emptied worker directory is still there")
	}
	if err := errors.Join(second.Close(), foreign.Close()); err != nil {
		t.Fatal(err)
	}
	if exists(foreign.workerDir) {
		t.Error("the worker directory of one that ended in order is still there")
	}
	third := boat("ledger")
	want("the next start", third, 1)
	if err := errors.Join(third.Drop(claim), third.Close()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("at the end there is %v, %v", left, err)
	}
}

// TestLifeboatSparesOnce: the spare files are looked for only after one was used, and not
// with each pair.
func TestLifeboatSparesOnce(t *testing.T) {
	t.Parallel()
	boat := NewLifeboat(t.TempDir(), "ledger", lifeboatSealer(t))
	if err := boat.Prepare(); err != nil {
		t.Fatal(err)
	}
	claim, pair, at := lifeboatPair()
	want := func(when string, n int) {
		t.Helper()
		if found, err := list(boat.workerDir, sparePrefix, halfSuffix); err != nil || len(found) != n {
			t.Errorf("%s there are %d spare files, %v, want %d", when, len(found), err, n)
		}
	}
	want("at the start", spares)
	spare, err := list(boat.workerDir, sparePrefix, halfSuffix)
	if err == nil {
		err = os.Remove(spare[0]) // unknown to the lifeboat
	}
	if err := errors.Join(err, boat.Keep(claim, pair, at), boat.Drop(claim)); err != nil {
		t.Fatal(err)
	}
	want("after a pair that had room", spares-1)
	if err := boat.intoSpare(boat.path(claim), []byte("{}\n")); err != nil {
		t.Fatal(err)
	}
	want("after a pair that had none", spares-2)
	if err := boat.Drop(claim); err != nil {
		t.Fatal(err)
	}
	want("after it was dropped", spares)
	if err := boat.Close(); err != nil {
		t.Error(err)
	}
}

// TestLifeboatTorn: the machine crashed before a pair was synced. What it left of that pair
// is reported once and keeps nobody from the others.
func TestLifeboatTorn(t *testing.T) {
	t.Parallel()
	for name, tear := range map[string]func([]byte) []byte{
		"empty":             func([]byte) []byte { return nil },
		"cut off":           func(b []byte) []byte { return b[:len(b)/2] },
		"zero bytes":        func(b []byte) []byte { return make([]byte, len(b)) },
		"zero at its end":   func(b []byte) []byte { return append(b[:len(b)/2:len(b)/2], make([]byte, len(b)-len(b)/2)...) },
		"zero at its start": func(b []byte) []byte { return append(make([]byte, len(b)/2), b[len(b)/2:]...) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, sealer := t.TempDir(), lifeboatSealer(t)
			crashed := NewLifeboat(dir, "ledger", sealer)
			claim, pair, at := lifeboatPair()
			other := claim
			other.Version = 6 // which is before the torn one
			err := errors.Join(crashed.Prepare(), crashed.Write(claim, pair, at), crashed.Keep(other, pair, at))
			other.Version = 8 // and behind it
			if err = errors.Join(err, crashed.Write(other, pair, at), crashed.lock.Close()); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(crashed.path(claim))
			if err == nil {
				err = os.WriteFile(crashed.path(claim), tear(text), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			next := NewLifeboat(dir, "ledger", sealer)
			if err := next.Prepare(); err != nil {
				t.Fatal(err)
			}
			found, torn, err := next.Load()
			want := Torn{File: filepath.Join(dir, claim.ID+"-7.pair.torn"), TokenID: claim.ID, Version: claim.Version}
			if err != nil || len(found) != 2 || len(torn) != 1 || torn[0] != want {
				t.Fatalf("%d pairs were found, and torn are %v, %v", len(found), torn, err)
			}
			if left, err := os.ReadFile(want.File); err != nil || !bytes.Equal(left, tear(text)) {
				t.Errorf("the torn file has changed: %v", err)
			}
			if exists(crashed.workerDir) {
				t.Error("the worker directory of the crashed one is still there")
			}
			if n, err := next.Count(); err != nil || n != 2 {
				t.Errorf("%d pairs are counted, %v, want 2", n, err)
			}
			if found, torn, err = next.Load(); err != nil || len(found) != 2 || len(torn) != 0 {
				t.Errorf("at the next look %d pairs are found, and torn are %v, %v", len(found), torn, err)
			}
			for _, one := range found {
				err = errors.Join(err, next.Drop(one.Claim))
			}
			if err := errors.Join(err, next.Close()); err != nil || exists(next.workerDir) {
				t.Errorf("the worker directory is still there: %v", err)
			}
		})
	}
}

// TestLifeboatIsTorn: each beginning of a file is torn, and one with zero bytes for its end,
// unless it lacks nothing but its newline. What is whole is not.
func TestLifeboatIsTorn(t *testing.T) {
	t.Parallel()
	claim, pair, at := lifeboatPair()
	text, err := NewLifeboat("", "ledger", lifeboatSealer(t)).seal(claim, pair, at)
	if err != nil {
		t.Fatal(err)
	}
	whole := len(text) - 1
	for n := range whole {
		if !isTorn(text[:n]) || !isTorn(append(text[:n:n], make([]byte, len(text)-n)...)) {
			t.Errorf("a file with %d bytes of %d is not torn", n, len(text))
		}
	}
	for what, is := range map[string][]byte{
		"whole": text, "whole but for its newline": text[:whole], "in a spare file": append(text, bytes.Repeat([]byte{' '}, 100)...),
	} {
		if isTorn(is) {
			t.Errorf("a file is torn that is %s", what)
		}
	}
}

// A pair that cannot be opened stays where it is, whatever the reason, and keeps no pair behind
// it from the database.
func TestLifeboatUnopenable(t *testing.T) {
	t.Parallel()
	claim, pair, at := lifeboatPair()
	sealer := lifeboatSealer(t)
	for name, test := range map[string]struct {
		sealer *Sealer
		damage func([]byte) []byte
		want   any
	}{
		"another key": {sealer: lifeboatSealer(t), want: new(*KeyError)},
		"no JSON":     {sealer: sealer, damage: func(b []byte) []byte { return bytes.Replace(b, []byte("{"), []byte("("), 1) }, want: new(*DamagedError)},
		"another row": {sealer: sealer, damage: func(b []byte) []byte { return bytes.Replace(b, []byte("0d2f8a9e"), []byte("1d2f8a9e"), 1) }, want: new(*DamagedError)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := NewLifeboat(dir, "ledger", sealer).Keep(claim, pair, at); err != nil {
				t.Fatal(err)
			}
			boat, behind := NewLifeboat(dir, "ledger", test.sealer), claim
			behind.ID = "f" + claim.ID[1:]
			if err := boat.Keep(behind, pair, at); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(boat.path(claim))
			if err == nil && test.damage != nil {
				text = test.damage(text)
				err = os.WriteFile(boat.path(claim), text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			rescued, _, err := boat.Load()
			if !errors.As(err, test.want) {
				t.Errorf("error is %v, want a %T", err, test.want)
			}
			if len(rescued) != 1 || rescued[0].Claim.ID != behind.ID {
				t.Errorf("rescued: %d pairs, want the one behind", len(rescued))
			}
			after, err := os.ReadFile(boat.path(claim))
			if err != nil || !bytes.Equal(after, text) {
				t.Errorf("the file has changed: %v", err)
			}
		})
	}
}

func TestLifeboatNowhereToWrite(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	boat := NewLifeboat(filepath.Join(file, "lifeboat"), "ledger", lifeboatSealer(t))
	if err := boat.Prepare(); err == nil {
		t.Error("a directory within a file was made")
	}
	claim, pair, at := lifeboatPair()
	if err := boat.Keep(claim, pair, at); err == nil || errors.Is(err, fs.ErrExist) {
		t.Errorf("a pair was stored nowhere: %v", err)
	}
}
