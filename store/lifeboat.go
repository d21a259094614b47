package store

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The names in a lifeboat's directory: a worker directory for each process, in it a lock and
// its pairs.
const (
	workerDirPrefix = "worker-"
	workerDirLock   = "lock"
	lifeboatSuffix  = ".pair.json"
	tornSuffix      = ".pair.torn" // of a pair that was lost in a crash of the machine
	halfSuffix      = ".tmp"       // of a file that is not complete yet
	sparePrefix     = ".spare-"
)

// The room that each worker directory reserves for pairs that must be stored on a full
// disk: more pairs than a worker exchanges at once, each with room for the longest
// known tokens.
const (
	spares    = 64
	spareSize = 8 << 10 // bytes
)

// Lifeboat stores token pairs that X gave until the database has taken them, one sealed
// pair a file. X takes no other pair of the account, so a process that ends before that
// leaves the pair to the next one.
//
// A pair that was written outlives its process. Only one that was kept outlives a crash of
// its machine, too. Such a crash leaves an empty file of another one, or part of it.
//
// Any number of processes share a directory, also from several containers. Each has a
// worker directory of its own in it and holds that directory's lock for as long as it
// lives. If nobody holds a worker directory, the first process that checks it takes
// over its pairs. A worker directory has reserved room for the case that the disk is
// full. Lifeboat is safe for concurrent use.
type Lifeboat struct {
	dir       string
	workerDir string // dir itself until Prepare has made one
	lock      *os.File
	ledgerID  string
	sealer    *Sealer
	nameMu    sync.Mutex // of the names of this process's pairs
	spareMu   sync.Mutex // of the spare files
	sparse    bool       // a spare file may be missing
}

// NewLifeboat uses a directory, which Prepare makes. Pairs belong to one ledger; those
// of other ledgers in the same directory stay untouched.
func NewLifeboat(dir, ledgerID string, sealer *Sealer) *Lifeboat {
	return &Lifeboat{dir: dir, workerDir: dir, ledgerID: ledgerID, sealer: sealer}
}

// Rescued is a pair from a lifeboat.
type Rescued struct {
	Claim Token // only its ID, Account and Version
	Pair  Pair
	At    time.Time // when X gave it
}

// Torn is what a crash of the machine left of a pair that was written and not kept. X has
// spent the token of the version before, and the pair is lost.
type Torn struct {
	File    string // where it is now
	TokenID string
	Version int64 // of the pair that was exchanged
}

// stored is a file's content. The tokens are sealed for their row.
type stored struct {
	Ledger       string    `json:"ledger"`
	TokenID      string    `json:"token_id"`
	Account      string    `json:"account"`
	Version      int64     `json:"version"` // of the pair that was exchanged
	AccessToken  string    `json:"access_token"`
	RefreshToken string    `json:"refresh_token"`
	ExpiresAt    time.Time `json:"expires_at"`
	Scope        string    `json:"scope"`
	At           time.Time `json:"at"`
}

func (l *Lifeboat) path(claim Token) string {
	return filepath.Join(l.workerDir, fmt.Sprintf("%s-%d%s", claim.ID, claim.Version, lifeboatSuffix))
}

// Prepare makes the directory and a worker directory in it. That also shows early that
// the directory is writable.
func (l *Lifeboat) Prepare() error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return fmt.Errorf("make lifeboat: %w", err)
	}
	made, err := os.MkdirTemp(l.dir, "."+workerDirPrefix)
	if err != nil {
		return fmt.Errorf("write to lifeboat: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(made, workerDirLock), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("write to lifeboat: %w", err)
	}
	// Other processes see the worker directory only once it is locked.
	workerDir := filepath.Join(l.dir, strings.TrimPrefix(filepath.Base(made), "."))
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("lock lifeboat %s: %w", made, err), lock.Close())
	}
	if err := os.Rename(made, workerDir); err != nil {
		return errors.Join(fmt.Errorf("write to lifeboat: %w", err), lock.Close())
	}
	l.workerDir, l.lock, l.sparse = workerDir, lock, true
	if err := l.setAside(); err != nil {
		return errors.Join(fmt.Errorf("set room aside in lifeboat: %w", err), l.Close())
	}
	return nil
}

// setAside fills up the spare files, if one was used. They hold random bytes, since a
// file system may reserve no room for others. Nothing is synced: after a crash the worker
// directory is not used any more.
func (l *Lifeboat) setAside() error {
	l.spareMu.Lock()
	defer l.spareMu.Unlock()
	if !l.sparse {
		return nil
	}
	for n := range spares {
		path := filepath.Join(l.workerDir, fmt.Sprintf("%s%d%s", sparePrefix, n, halfSuffix))
		if exists(path) {
			continue
		}
		filler := make([]byte, spareSize)
		_, _ = rand.Read(filler) // it never fails
		if err := os.WriteFile(path, filler, 0o600); err != nil {
			return errors.Join(err, os.Remove(path))
		}
	}
	l.sparse = false
	return nil
}

// intoSpare writes a file into reserved room: over a spare file, in place.
func (l *Lifeboat) intoSpare(path string, data []byte) error {
	l.spareMu.Lock()
	defer l.spareMu.Unlock()
	found, err := list(l.workerDir, sparePrefix, halfSuffix)
	switch {
	case err != nil:
		return err
	case len(found) == 0 || len(data) > spareSize:
		return errors.New("no room is set aside for it")
	}
	spare := found[0]
	l.sparse = true // also if it fails from here on
	f, err := os.OpenFile(spare, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	// White space after the data covers the rest of the spare file.
	_, err = f.Write(append(data, bytes.Repeat([]byte{' '}, spareSize-len(data))...))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := l.name(spare, path); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}

// Close leaves the worker directory, with the pairs in it, to other processes.
func (l *Lifeboat) Close() error {
	if l.lock == nil {
		return nil
	}
	return errors.Join(l.clear(l.workerDir), l.lock.Close())
}

// takeOver moves the pairs from worker directories that nobody holds into this one.
func (l *Lifeboat) takeOver() error {
	if l.lock == nil {
		return nil
	}
	if err := l.move(l.dir); err != nil { // where pairs were before there were worker directories
		return err
	}
	workerDirs, err := list(l.dir, workerDirPrefix, "")
	if err != nil {
		return err
	}
	for _, workerDir := range workerDirs {
		if workerDir == l.workerDir {
			continue
		}
		if err := l.empty(workerDir); err != nil {
			return fmt.Errorf("take over %s: %w", workerDir, err)
		}
	}
	return nil
}

// empty moves the pairs out of a worker directory that nobody holds, and removes it.
func (l *Lifeboat) empty(workerDir string) error {
	lock, err := os.OpenFile(filepath.Join(workerDir, workerDirLock), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(workerDir) // left by a process that was killed in clear
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // nothing was written
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(l.move(workerDir), l.clear(workerDir))
}

// move moves this ledger's pairs from a directory into this process's worker directory. A
// crash leaves each pair in one of the two. Each is synced, because its process may have
// died before it did that. If that fails, the database may still take the pair.
func (l *Lifeboat) move(from string) error {
	pairs, err := list(from, "", lifeboatSuffix)
	if err != nil {
		return err
	}
	for _, old := range pairs {
		if l.foreign(old) {
			continue
		}
		_ = syncPath(old)
		if err := l.moveIn(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if len(pairs) > 0 {
		_ = syncPath(l.workerDir)
	}
	return nil
}

// moveIn moves a pair. One of a claim that already has a pair here waits until that one is
// saved.
func (l *Lifeboat) moveIn(old string) error {
	l.nameMu.Lock()
	defer l.nameMu.Unlock()
	now := filepath.Join(l.workerDir, filepath.Base(old))
	if exists(now) {
		return nil
	}
	return os.Rename(old, now)
}

// foreign reports whether a pair belongs to another ledger. An unreadable file does
// not, nor one that is torn: Load names it.
func (l *Lifeboat) foreign(path string) bool {
	var s stored
	text, err := os.ReadFile(path)
	return err == nil && json.Unmarshal(text, &s) == nil && s.Ledger != l.ledgerID
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// list returns the paths of the files with that suffix in a directory: none if there is
// no directory.
func list(dir, prefix, suffix string) (paths []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), prefix) && strings.HasSuffix(entry.Name(), suffix) {
			paths = append(paths, filepath.Join(dir, entry.Name()))
		}
	}
	return paths, nil
}

// clear removes a worker directory whose lock is held, unless there are pairs in it.
func (l *Lifeboat) clear(workerDir string) error {
	left, err := list(workerDir, "", lifeboatSuffix)
	if err != nil || len(left) > 0 {
		return err
	}
	halves, err := list(workerDir, ".", halfSuffix)
	for _, path := range append(halves, filepath.Join(workerDir, workerDirLock), workerDir) {
		if lost := os.Remove(path); lost != nil && !errors.Is(lost, fs.ErrNotExist) {
			err = errors.Join(err, lost)
		}
	}
	return err
}

// Write writes the pair without waiting for the disk.
func (l *Lifeboat) Write(claim Token, pair Pair, at time.Time) error {
	text, err := l.seal(claim, pair, at)
	if err == nil {
		err = l.writeWhole(l.path(claim), text, false)
	}
	if err != nil {
		return fmt.Errorf("write to lifeboat: %w", err)
	}
	return nil
}

// Keep has the pair on disk before it returns, also if the disk is full. It may have been
// written before.
func (l *Lifeboat) Keep(claim Token, pair Pair, at time.Time) error {
	text, err := l.seal(claim, pair, at)
	if err != nil {
		return err
	}
	if err := l.writeWhole(l.path(claim), text, true); err != nil {
		if spared := l.intoSpare(l.path(claim), text); spared != nil {
			return fmt.Errorf("write to lifeboat: %w", errors.Join(err, spared))
		}
	}
	return nil
}

// seal is the content of a pair's file: one line of JSON.
func (l *Lifeboat) seal(claim Token, pair Pair, at time.Time) ([]byte, error) {
	access, refresh, err := l.sealer.SealPair(claim.ID, pair)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(stored{
		Ledger: l.ledgerID, TokenID: claim.ID, Account: claim.Account, Version: claim.Version,
		AccessToken: access, RefreshToken: refresh, ExpiresAt: pair.ExpiresAt, Scope: pair.Scope, At: at,
	})
	return append(text, '\n'), err
}

// writeWhole gives a file its name only once its content is written. With synced, content
// and name are on disk before it returns.
func (l *Lifeboat) writeWhole(path string, data []byte, synced bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".*"+halfSuffix) // made with 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if synced {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = l.name(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if synced {
		return syncPath(filepath.Dir(path))
	}
	return nil
}

// name gives a whole file the name of a pair.
func (l *Lifeboat) name(from, path string) error {
	l.nameMu.Lock()
	defer l.nameMu.Unlock()
	return os.Rename(from, path)
}

// syncPath has a file or a directory on disk before it returns.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Drop removes a pair that the database has by now or does not need.
func (l *Lifeboat) Drop(claim Token) error {
	if err := os.Remove(l.path(claim)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if l.lock != nil {
		_ = l.setAside() // if there is no room now, the next Drop tries again
	}
	return nil
}

// Load opens every pair of this ledger that no other process holds, and reports once what
// is torn. It fails with *KeyError or *DamagedError beside the pairs that it opened, and leaves
// the content of those files as it is.
func (l *Lifeboat) Load() (rescued []Rescued, torn []Torn, err error) {
	if err := l.takeOver(); err != nil {
		return nil, nil, err
	}
	pairs, err := list(l.workerDir, "", lifeboatSuffix)
	if err != nil {
		return nil, nil, err
	}
	var unopened []error
	for _, path := range pairs {
		text, lost, err := l.read(path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // it was saved meanwhile
			continue
		case err != nil:
			return rescued, torn, errors.Join(append(unopened, err)...)
		case lost != nil:
			torn = append(torn, *lost)
			continue
		}
		one, mine, err := l.open(text)
		switch {
		case err != nil: // the others go on
			unopened = append(unopened, fmt.Errorf("open %s: %w", path, err))
		case mine:
			rescued = append(rescued, one)
		}
	}
	return rescued, torn, errors.Join(unopened...)
}

// read reads a pair's file. One that is torn it moves out of the way, where nobody counts
// it or looks for pairs. Nothing can be opened in it, but its removal could not be taken
// back, and on a file system of several machines its content may come later.
func (l *Lifeboat) read(path string) ([]byte, *Torn, error) {
	l.nameMu.Lock() // so that it is still the same file
	defer l.nameMu.Unlock()
	text, err := os.ReadFile(path)
	if err != nil || !isTorn(text) {
		return text, nil, err
	}
	name := strings.TrimSuffix(filepath.Base(path), lifeboatSuffix)
	torn := &Torn{File: filepath.Join(l.dir, name+tornSuffix), TokenID: name}
	if i := strings.LastIndexByte(name, '-'); i >= 0 {
		if version, err := strconv.ParseInt(name[i+1:], 10, 64); err == nil {
			torn.TokenID, torn.Version = name[:i], version
		}
	}
	return nil, torn, os.Rename(path, torn.File)
}

// isTorn reports whether a file is not what was written to it but what a crash of the
// machine leaves of that: nothing, its beginning, or zero bytes in place of some of it. The
// text that was written is one line of JSON, so it has no zero byte, and a newline only at
// its end. A file that is whole, or whole but for that newline, is not torn, nor one with
// another damage.
func isTorn(text []byte) bool {
	return !json.Valid(text) && (bytes.IndexByte(text, '\n') < 0 || bytes.IndexByte(text, 0) >= 0)
}

// Count counts this ledger's pairs in the directory, including those of other processes.
func (l *Lifeboat) Count() (n int, err error) {
	for _, pattern := range []string{"*" + lifeboatSuffix, "*/*" + lifeboatSuffix} {
		pairs, err := filepath.Glob(filepath.Join(l.dir, pattern))
		if err != nil {
			return 0, err
		}
		for _, path := range pairs {
			if !l.foreign(path) {
				n++
			}
		}
	}
	return n, nil
}

// open opens a file's pair if it belongs to this ledger.
func (l *Lifeboat) open(text []byte) (Rescued, bool, error) {
	var s stored
	if err := json.Unmarshal(text, &s); err != nil {
		return Rescued{}, false, &DamagedError{Context: "the lifeboat"}
	}
	if s.Ledger != l.ledgerID {
		return Rescued{}, false, nil
	}
	token, err := l.sealer.OpenToken(SealedToken{
		Token: Token{ID: s.TokenID, Account: s.Account, Version: s.Version}, SealedAccess: s.AccessToken, SealedRefresh: s.RefreshToken,
	})
	if err != nil {
		return Rescued{}, false, err
	}
	pair := token.Pair
	pair.ExpiresAt, pair.Scope = s.ExpiresAt, s.Scope
	return Rescued{Claim: Token{ID: s.TokenID, Account: s.Account, Version: s.Version}, Pair: pair, At: s.At}, true, nil
}
