package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const sqlSaveBody = `UPDATE requests SET body = ?3, digest = ?4, cost_micros = ?5 WHERE account = ?1 AND id = ?2`

// Rebuild implements store.Recovery.
func (s *Store) Rebuild(ctx context.Context, in store.Rebuilt) (result store.RebuildResult, err error) {
	key := store.Key{Account: in.Status.Account, ID: in.Status.ID}
	err = s.change(ctx, "rebuild request", func(ctx context.Context, tx *sql.Tx) error {
		laneRow, err := readLane(ctx, tx, key.Account)
		if err != nil {
			return err
		}
		r, err := readRequest(ctx, tx, key)
		switch {
		case errors.Is(err, store.ErrNotFound):
			entered, final, change, added := laneRow.EnterRebuilt(in)
			result = added
			if err := addRequest(ctx, tx, entered); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, sqlPlaced, key.Account, laneRow.NextSeq, micros(laneRow.LastDue), 1, micros(in.Gap.Until)); err != nil {
				return err
			}
			return save(ctx, tx, laneRow, final, change)
		case err != nil:
			return err
		}
		result = store.RebuildKnown
		if r.Pruned {
			return nil
		}
		change := r.Rebuild(in)
		if change.Request {
			result = store.RebuildUpdated
		}
		return save(ctx, tx, laneRow, r, change)
	})
	return result, err
}

// Doubt implements store.Recovery.
func (s *Store) Doubt(ctx context.Context, key store.Key, gap store.Gap) (marked bool, err error) {
	_, err = s.move(ctx, "doubt request", key, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
		change, err := r.Doubt(laneRow, gap)
		marked = change.Request
		return change, err
	})
	return marked, err
}
