package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// lifeboatSuffix ends the name of every file of a Lifeboat.
const lifeboatSuffix = ".pair.json"

// Lifeboat keeps token pairs that X gave until the database has taken them, one
// sealed pair a file. X takes no other pair of the account, so a process that ends
// before leaves it to the next one. It is safe for concurrent use, also by several
// processes.
type Lifeboat struct {
	dir      string
	ledgerID string
	sealer   *Sealer
}

// NewLifeboat uses a directory, which Prepare makes. Pairs
// belong to one ledger: those of others in the same directory are left alone.
func NewLifeboat(dir, ledgerID string, sealer *Sealer) *Lifeboat {
	return &Lifeboat{dir: dir, ledgerID: ledgerID, sealer: sealer}
}

// Rescued is a pair from a lifeboat.
type Rescued struct {
	Claim Token // its ID, Account and Version alone
	Pair  Pair
	At    time.Time // when X gave it
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
	return filepath.Join(l.dir, fmt.Sprintf("%s-%d%s", claim.ID, claim.Version, lifeboatSuffix))
}

// Prepare makes the directory, and tries whether it can be written to: on the
// day that it is needed it is too late to find out.
func (l *Lifeboat) Prepare() error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return fmt.Errorf("make lifeboat: %w", err)
	}
	probe, err := os.CreateTemp(l.dir, ".*.tmp")
	if err != nil {
		return fmt.Errorf("write to lifeboat: %w", err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// Keep has the pair on disk when it returns.
func (l *Lifeboat) Keep(claim Token, pair Pair, at time.Time) error {
	access, refresh, err := l.sealer.SealPair(claim.ID, pair)
	if err != nil {
		return err
	}
	text, err := json.Marshal(stored{
		Ledger: l.ledgerID, TokenID: claim.ID, Account: claim.Account, Version: claim.Version,
		AccessToken: access, RefreshToken: refresh, ExpiresAt: pair.ExpiresAt, Scope: pair.Scope, At: at,
	})
	if err != nil {
		return err
	}
	if err := writeWhole(l.path(claim), append(text, '\n')); err != nil {
		return fmt.Errorf("write to lifeboat: %w", err)
	}
	return nil
}

// writeWhole writes a file under its name only once it is on disk, and has the
// name on disk too when it returns.
func writeWhole(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".*.tmp") // made with 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Drop removes the pair, which the database has by now, or does not need.
func (l *Lifeboat) Drop(claim Token) error {
	if err := os.Remove(l.path(claim)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Load opens every pair of this ledger. It fails with *KeyError or
// *DamagedError, and leaves every file as it is.
func (l *Lifeboat) Load() (rescued []Rescued, err error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), lifeboatSuffix) {
			continue
		}
		path := filepath.Join(l.dir, entry.Name())
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another process has saved it meanwhile
		}
		if err != nil {
			return nil, err
		}
		one, mine, err := l.open(text)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		if mine {
			rescued = append(rescued, one)
		}
	}
	return rescued, nil
}

// open opens a file's pair, if it is of this ledger.
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
