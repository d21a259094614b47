package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	// resealRows is how many token rows one statement of a rotation changes: so few
	// that no refresh waits for it.
	resealRows = 200
	// maxPasses bounds the passes of one rotation. A further pass is for rows that
	// changed while they were sealed again. A worker that still has another first key
	// seals with that key for as long as it runs.
	maxPasses = 3
	// maxUnopened bounds how many rows are named.
	maxUnopened = 20
)

// Rotation seals every token, and the secret of every webhook, with the first key while workers run. A row that a worker
// changes meanwhile is read again. A row that cannot be opened stays as it is.
type Rotation struct {
	Rows   Keys
	Sealer *Sealer
}

// RotationProgress is how far a rotation has come and what it found.
type RotationProgress struct {
	Total    int `json:"total"`    // token rows, as counted at the start
	Seen     int `json:"seen"`     // of the current pass
	Resealed int `json:"resealed"` // of all passes
	// Behind counts the rows that can be opened and are not sealed with the first key.
	// After a rotation these are rows that workers with another first key have sealed
	// meanwhile.
	Behind int `json:"behind"`
	// Locked counts the rows that need a key that is not configured. Damaged counts the
	// rows that cannot be opened although no other key is needed. The first ones are
	// named.
	Locked   int           `json:"locked"`
	Damaged  int           `json:"damaged"`
	Unopened []UnopenedRow `json:"unopened,omitempty"`
}

// Left counts the rows that cannot be opened.
func (p RotationProgress) Left() int { return p.Locked + p.Damaged }

// UnopenedRow is a row that no configured key opens, or that is damaged.
type UnopenedRow struct {
	Account string `json:"account"`
	Error   string `json:"error"`
	// MissingKey is the id of the key that it needs; "" if it is damaged.
	MissingKey string `json:"missing_key,omitempty"`
}

// Run seals all rows with the first key and reports its progress after each statement.
// It can be interrupted and run again at any time. No row needs another key only if
// Behind and Left are zero.
func (r Rotation) Run(ctx context.Context, tell func(RotationProgress)) (done RotationProgress, err error) {
	uses, err := r.Rows.KeyUses(ctx)
	if err != nil {
		return done, err
	}
	for _, use := range uses {
		done.Total += use.Rows
	}
	for range maxPasses {
		if err := r.pass(ctx, &done, tell); err != nil {
			return done, err
		}
		// A pass says nothing of rows that changed after it read them.
		others, err := r.others(ctx)
		if err != nil {
			return done, err
		}
		if done.Behind = max(0, others-done.Left()); done.Behind == 0 {
			break
		}
	}
	return done, nil
}

// others counts the rows that are not sealed with the first key alone.
func (r Rotation) others(ctx context.Context) (rows int, err error) {
	uses, err := r.Rows.KeyUses(ctx)
	for _, use := range uses {
		if use.AccessKey != r.Sealer.KeyID() || use.RefreshKey != r.Sealer.KeyID() {
			rows += use.Rows
		}
	}
	return rows, err
}

// pass reads all rows once.
func (r Rotation) pass(ctx context.Context, done *RotationProgress, tell func(RotationProgress)) error {
	done.Seen, done.Locked, done.Damaged, done.Unopened = 0, 0, 0, nil
	for after := ""; ; {
		rows, err := r.Rows.SealedTokens(ctx, after, resealRows)
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			break
		}
		after = rows[len(rows)-1].ID
		changed := make([]Resealed, 0, len(rows))
		for _, row := range rows {
			if r.Sealer.sealedFirst(row) {
				continue
			}
			resealed, err := r.Sealer.reseal(row)
			if err != nil {
				done.leave(row.Account, err)
				continue
			}
			changed = append(changed, resealed)
		}
		n, err := r.Rows.Reseal(ctx, changed)
		if err != nil {
			return err
		}
		done.Seen += len(rows)
		done.Resealed += n
		tell(*done)
	}
	hooks, err := r.Rows.Hooks(ctx)
	for _, hook := range hooks {
		if err == nil && KeyIDOf(hook.Sealed) != r.Sealer.KeyID() {
			err = r.hook(ctx, hook, done)
		}
		done.Seen++
	}
	if len(hooks) > 0 && err == nil {
		tell(*done)
	}
	return err
}

// hook seals the secret of a webhook with the first key.
func (r Rotation) hook(ctx context.Context, hook Hook, done *RotationProgress) error {
	plain, err := r.Sealer.OpenHookSecret(hook)
	if err != nil {
		done.leave("webhook "+hook.ID, err)
		return nil
	}
	sealed, err := r.Sealer.SealHookSecret(hook.ID, plain)
	if err != nil {
		return err
	}
	changed, err := r.Rows.ResealHook(ctx, hook, sealed)
	if changed {
		done.Resealed++
	}
	return err
}

// Verify opens every row and changes nothing.
func (r Rotation) Verify(ctx context.Context) (RotationProgress, error) {
	var done RotationProgress
	for after := ""; ; {
		rows, err := r.Rows.SealedTokens(ctx, after, resealRows)
		if err != nil {
			return done, err
		}
		if len(rows) == 0 {
			break
		}
		for _, row := range rows {
			if _, err := r.Sealer.OpenToken(row); err != nil {
				done.leave(row.Account, err)
			} else if !r.Sealer.sealedFirst(row) {
				done.Behind++
			}
		}
		done.Seen += len(rows)
		after = rows[len(rows)-1].ID
	}
	hooks, err := r.Rows.Hooks(ctx)
	for _, hook := range hooks {
		if _, err := r.Sealer.OpenHookSecret(hook); err != nil {
			done.leave("webhook "+hook.ID, err)
		} else if KeyIDOf(hook.Sealed) != r.Sealer.KeyID() {
			done.Behind++
		}
		done.Seen++
	}
	done.Total = done.Seen
	return done, err
}

// leave counts a row that cannot be opened and names the first ones.
func (p *RotationProgress) leave(account string, err error) {
	row := UnopenedRow{Account: account, Error: err.Error()}
	if missing := new(KeyError); errors.As(err, &missing) {
		p.Locked++
		row.MissingKey = missing.KeyID
	} else {
		p.Damaged++
	}
	if len(p.Unopened) < maxUnopened {
		p.Unopened = append(p.Unopened, row)
	}
}

// sealedFirst reports whether both values are sealed with the first key.
func (s *Sealer) sealedFirst(row SealedToken) bool {
	for _, sealed := range []string{row.SealedAccess, row.SealedRefresh} {
		if id, _, ok := splitSealed(sealed); !ok || id != s.KeyID() {
			return false
		}
	}
	return true
}

// reseal seals a row's pair with the first key. It fails with *KeyError or
// *DamagedError.
func (s *Sealer) reseal(row SealedToken) (Resealed, error) {
	token, err := s.OpenToken(row)
	if err != nil {
		return Resealed{}, err
	}
	access, refresh, err := s.SealPair(row.ID, token.Pair)
	return Resealed{Old: row, Access: access, Refresh: refresh}, err
}

// KeyState says which keys a ledger needs. Each of its rows is sealed with the first
// key, or behind, locked or damaged.
type KeyState struct {
	// Keys are the configured keys, the first key first, and then the missing ones.
	Keys []KeyCount `json:"keys"`
	Rows int        `json:"rows"`
	// Behind counts rows that still must be sealed with the first key, Locked those
	// that need a key that is not configured, and Damaged those with a value that names
	// no key. Verify finds out whether the others can be opened.
	Behind  int `json:"behind"`
	Locked  int `json:"locked"`
	Damaged int `json:"damaged"`
	// KeyCheck is the key that must be configured at a start. It is "" if the key check
	// value is damaged and on a ledger that was never checked.
	KeyCheck        string `json:"key_check,omitempty"`
	KeyCheckDamaged bool   `json:"key_check_damaged,omitempty"`
}

// KeyCount is one key and how many rows need it.
type KeyCount struct {
	ID         string `json:"id"`
	Configured bool   `json:"configured"`
	Seals      bool   `json:"seals"`
	Rows       int    `json:"rows"` // that need it
}

// State counts which keys are needed. It opens only the key check value, as a start
// does.
func (r Rotation) State(ctx context.Context) (state KeyState, err error) {
	uses, err := r.Rows.KeyUses(ctx)
	if err != nil {
		return state, err
	}
	needed := map[string]int{}
	for _, use := range uses {
		state.count(use, r.Sealer)
		needed[use.AccessKey] += use.Rows
		if use.RefreshKey != use.AccessKey {
			needed[use.RefreshKey] += use.Rows
		}
	}
	delete(needed, "") // what names no key
	ledger, keyCheck, err := r.Rows.KeyCheck(ctx)
	if err != nil {
		return state, err
	}
	if keyCheck != "" {
		_, err := r.Sealer.MatchKeyCheck(ledger, keyCheck, true)
		state.KeyCheckDamaged = errors.As(err, new(*DamagedError))
	}
	if state.KeyCheck = KeyIDOf(keyCheck); state.KeyCheck != "" {
		needed[state.KeyCheck] += 0 // needed at a start at least
	}
	for i, id := range r.Sealer.KeyIDs() {
		state.Keys = append(state.Keys, KeyCount{ID: id, Configured: true, Seals: i == 0, Rows: needed[id]})
		delete(needed, id)
	}
	for _, id := range slices.Sorted(maps.Keys(needed)) {
		state.Keys = append(state.Keys, KeyCount{ID: id, Rows: needed[id]})
	}
	return state, nil
}

// count adds the rows of one use of keys.
func (s *KeyState) count(use KeyUse, sealer *Sealer) {
	s.Rows += use.Rows
	ids := [...]string{use.AccessKey, use.RefreshKey}
	switch {
	case slices.ContainsFunc(ids[:], sealer.lacks):
		s.Locked += use.Rows
	case slices.Contains(ids[:], ""):
		s.Damaged += use.Rows
	case use.AccessKey != sealer.KeyID() || use.RefreshKey != sealer.KeyID():
		s.Behind += use.Rows
	}
}

// Verified returns the state together with what Verify found out about the rows.
func (s KeyState) Verified(found RotationProgress) KeyState {
	s.Rows, s.Behind, s.Locked, s.Damaged = found.Total, found.Behind, found.Locked, found.Damaged
	return s
}

// Missing are the keys that are needed and not configured.
func (s KeyState) Missing() (ids []string) {
	for _, key := range s.Keys {
		if !key.Configured {
			ids = append(ids, key.ID)
		}
	}
	return ids
}

// Next says in one sentence what to do.
func (s KeyState) Next() string {
	const sealed = "every row is sealed with the first key"
	switch missing := s.Missing(); {
	case len(missing) == 1:
		return fmt.Sprintf("key %s is missing: add it to %s, behind the first, and restart the workers", missing[0], KeyVariable)
	case len(missing) > 1:
		return fmt.Sprintf("keys %s are missing: add them to %s, behind the first, and restart the workers", strings.Join(missing, ", "), KeyVariable)
	case s.KeyCheckDamaged:
		return "the key check value, which is opened at every start, is damaged: restore the table ledger from a backup"
	case s.Behind > 0:
		return "not every row is sealed with the first key: once all workers have it first, run jetpost keys rotate"
	case s.Damaged > 0:
		return "some rows are damaged: restore them from a backup, or connect their accounts again"
	case s.KeyCheck != "" && s.KeyCheck != s.Keys[0].ID:
		return sealed + ", but the key check value is not: run jetpost keys rotate to finish"
	case len(s.Keys) > 1:
		return sealed + ": the others can be removed from " + KeyVariable
	default:
		return sealed + ", which is the only one"
	}
}

// KeyUse is how many token rows are sealed with which keys. One row may be sealed with
// two keys.
type KeyUse struct {
	AccessKey, RefreshKey string // key ids; "" for a value that names none
	Rows                  int
}

// Resealed is a token row whose pair was sealed with another key.
type Resealed struct {
	Old             SealedToken
	Access, Refresh string
}

// Keys is the part of the database that changing encryption keys needs. It sees only
// ciphertext.
type Keys interface {
	// KeyUses counts the token rows by their keys. Two entries may have the same keys.
	KeyUses(ctx context.Context) ([]KeyUse, error)
	// KeyCheck returns the ledger's id and its key check value, "" if there is none
	// yet.
	KeyCheck(ctx context.Context) (ledgerID, keyCheck string, err error)
	// SealedTokens returns up to limit token rows with ids greater than after, in the
	// order of their ids. An empty after starts at the first row.
	SealedTokens(ctx context.Context, after string, limit int) ([]SealedToken, error)
	// Reseal replaces the ciphertext of each row that nobody holds and that still has
	// the ciphertext that was read, and returns how many rows it replaced. Nothing else
	// of a row changes: it is the same pair.
	Reseal(ctx context.Context, rows []Resealed) (int, error)
	// Hooks returns all webhooks.
	Hooks(ctx context.Context) ([]Hook, error)
	// ResealHook replaces the sealed secret of a webhook that still has the one that was
	// read, and tells whether it did.
	ResealHook(ctx context.Context, hook Hook, sealed string) (bool, error)
}
