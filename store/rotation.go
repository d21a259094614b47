package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

const (
	// resealRows is how many token rows one statement of a rotation changes: few
	// enough that no refresh waits for it.
	resealRows = 200
	// maxPasses bounds the passes of one rotation. A further one is for rows that
	// changed while they were sealed anew, which are hours apart for each token.
	maxPasses = 10
	// maxUnopened bounds the rows that are named.
	maxUnopened = 20
)

// Rotation seals every token with the first key, while workers run. A row that
// a worker changes meanwhile is looked at again; one that does not open stays
// as it is.
type Rotation struct {
	Rows   Keys
	Sealer *Sealer
}

// RotationProgress is how far a rotation has come.
type RotationProgress struct {
	Total    int `json:"total"`    // token rows, as counted at the start
	Seen     int `json:"seen"`     // of the present pass
	Resealed int `json:"resealed"` // of all passes
	// Left counts the rows that do not open; the first ones are named.
	Left     int           `json:"left"`
	Unopened []UnopenedRow `json:"unopened,omitempty"`
}

// UnopenedRow is a row that no configured key opens, or that is damaged.
type UnopenedRow struct {
	Account string `json:"account"`
	Error   string `json:"error"`
	// MissingKey is the id of the key that it needs; "" where it is damaged.
	MissingKey string `json:"missing_key,omitempty"`
}

// Run seals all rows anew, and tells its progress after each statement. It may
// be ended and run again at any time.
func (r Rotation) Run(ctx context.Context, tell func(RotationProgress)) (RotationProgress, error) {
	var done RotationProgress
	uses, err := r.Rows.KeyUses(ctx)
	if err != nil {
		return done, err
	}
	for _, use := range uses {
		done.Total += use.Rows
	}
	for range maxPasses {
		raced, err := r.pass(ctx, &done, tell)
		if err != nil || raced == 0 {
			return done, err
		}
	}
	return done, errors.New("rows change as fast as they are sealed: is a worker still running with another first key?")
}

// pass goes through all rows once, and returns how many changed meanwhile.
func (r Rotation) pass(ctx context.Context, done *RotationProgress, tell func(RotationProgress)) (raced int, err error) {
	done.Seen, done.Left, done.Unopened = 0, 0, nil
	for after := ""; ; {
		rows, err := r.Rows.SealedTokens(ctx, after, resealRows)
		if err != nil || len(rows) == 0 {
			return raced, err
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
			return raced, err
		}
		raced += len(changed) - n
		done.Seen += len(rows)
		done.Resealed += n
		tell(*done)
	}
}

// Verify opens every row, and changes nothing.
func (r Rotation) Verify(ctx context.Context) (RotationProgress, error) {
	var done RotationProgress
	for after := ""; ; {
		rows, err := r.Rows.SealedTokens(ctx, after, resealRows)
		if err != nil || len(rows) == 0 {
			done.Total = done.Seen
			return done, err
		}
		for _, row := range rows {
			if _, err := r.Sealer.OpenToken(row); err != nil {
				done.leave(row.Account, err)
			}
		}
		done.Seen += len(rows)
		after = rows[len(rows)-1].ID
	}
}

func (p *RotationProgress) leave(account string, err error) {
	p.Left++
	if len(p.Unopened) >= maxUnopened {
		return
	}
	row := UnopenedRow{Account: account, Error: err.Error()}
	if missing := new(KeyError); errors.As(err, &missing) {
		row.MissingKey = missing.KeyID
	}
	p.Unopened = append(p.Unopened, row)
}

// sealedFirst tells whether both values are sealed with the first key.
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

// KeyState is where a ledger stands with its keys.
type KeyState struct {
	// Keys are the configured ones, the one that seals first, and then those
	// that are missing.
	Keys   []KeyCount `json:"keys"`
	Rows   int        `json:"rows"`
	Canary string     `json:"canary_key,omitempty"`
	// Damaged counts rows that name no key. Whether the others open is for
	// Verify to say.
	Damaged int `json:"damaged"`
}

// KeyCount is one key and what needs it.
type KeyCount struct {
	ID         string `json:"id"`
	Configured bool   `json:"configured"`
	Seals      bool   `json:"seals"`
	Rows       int    `json:"rows"` // that need it
}

// State counts which keys are needed, and opens nothing.
func (r Rotation) State(ctx context.Context) (state KeyState, err error) {
	uses, err := r.Rows.KeyUses(ctx)
	if err != nil {
		return state, err
	}
	if state.Canary, err = r.Rows.CanaryKey(ctx); err != nil {
		return state, err
	}
	rows := map[string]int{}
	for _, use := range uses {
		state.Rows += use.Rows
		if !isKeyID(use.AccessKey) || !isKeyID(use.RefreshKey) {
			state.Damaged += use.Rows
			continue
		}
		rows[use.AccessKey] += use.Rows
		if use.RefreshKey != use.AccessKey {
			rows[use.RefreshKey] += use.Rows
		}
	}
	for i, id := range r.Sealer.KeyIDs() {
		state.Keys = append(state.Keys, KeyCount{ID: id, Configured: true, Seals: i == 0, Rows: rows[id]})
		delete(rows, id)
	}
	if id := state.Canary; id != "" && !slices.Contains(r.Sealer.KeyIDs(), id) {
		rows[id] += 0 // it is needed at a start, if by nothing else
	}
	for id, n := range rows {
		state.Keys = append(state.Keys, KeyCount{ID: id, Rows: n})
	}
	slices.SortFunc(state.Keys[len(r.Sealer.KeyIDs()):], func(a, b KeyCount) int { return b.Rows - a.Rows })
	return state, nil
}

// Missing are the keys that something needs and nobody has configured.
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
	first := s.Keys[0]
	others := len(s.Keys) > 1
	switch missing := s.Missing(); {
	case len(missing) > 0:
		return fmt.Sprintf("the key %s is missing: add it to %s, behind the first, and restart the workers", missing[0], KeyVariable)
	case s.Damaged > 0:
		return "some rows are damaged: restore them from a backup, or connect their accounts again"
	case first.Rows < s.Rows:
		return "not every row is sealed with the first key: once all workers have it, run jetpost keys rotate"
	case others && s.Canary != first.ID && s.Canary != "":
		return "every row is sealed with the first key; run jetpost keys rotate once more to finish"
	case others:
		return "every row is sealed with the first key: the others can be removed from " + KeyVariable
	default:
		return "every row is sealed with the one key"
	}
}
