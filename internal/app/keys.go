package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/jetpost/jetpost/store"
)

// KeyRing reads and changes the encryption keys of a ledger. It also opens a ledger with
// missing keys, because then it is needed.
type KeyRing struct {
	ledger   store.Store
	rotation store.Rotation
}

// OpenKeyRing opens the ledger without a check of the configured keys.
func (c Config) OpenKeyRing(ctx context.Context) (*KeyRing, error) {
	opening, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	ledger, err := c.openUnchecked(opening)
	if err != nil {
		return nil, err
	}
	sealer, err := store.NewSealer(c.Keys.Reveal())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read encryption keys: %w", err), ledger.Close())
	}
	return &KeyRing{ledger: ledger, rotation: store.Rotation{Rows: ledger, Sealer: sealer}}, nil
}

// Close closes the ledger.
func (k *KeyRing) Close() error { return k.ledger.Close() }

// State counts which keys are needed.
func (k *KeyRing) State(ctx context.Context) (store.KeyState, error) {
	state, err := k.rotation.State(ctx)
	return state, databaseError(err)
}

// Verify decrypts every row.
func (k *KeyRing) Verify(ctx context.Context) (store.RotationProgress, error) {
	found, err := k.rotation.Verify(ctx)
	return found, databaseError(err)
}

// Rotate encrypts every row with the first key and, if no row needs another key,
// also the key check value. With an error, it returns the progress so far.
func (k *KeyRing) Rotate(ctx context.Context, tell func(store.RotationProgress)) (store.RotationProgress, error) {
	// A key that belongs to another ledger must not become this one's.
	if err := k.ledger.CheckKeys(ctx); err != nil {
		return store.RotationProgress{}, fmt.Errorf("check encryption keys: %w", databaseError(err))
	}
	done, err := k.rotation.Run(ctx, tell)
	if err == nil {
		err = k.ledger.CheckKeys(ctx)
	}
	return done, databaseError(err)
}
