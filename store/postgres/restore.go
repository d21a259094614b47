package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const sqlForgetNews = `DELETE FROM outbox WHERE account = $1 AND id = $2 AND revision <= $3`

const sqlSaveBody = `UPDATE requests SET body = $3, digest = $4, cost_micros = $5 WHERE account = $1 AND id = $2`

// Rebuild implements store.Recovery.
func (s *Store) Rebuild(ctx context.Context, in store.Rebuilt) (result store.RebuildResult, err error) {
	key := store.Key{Account: in.Status.Account, ID: in.Status.ID}
	err = s.change(ctx, "rebuild request", func(ctx context.Context, tx pgx.Tx) error {
		laneRow, err := s.lockLane(ctx, tx, key.Account)
		if err != nil {
			return err
		}
		r, err := lockRequest(ctx, tx, key)
		switch {
		case errors.Is(err, store.ErrPruned):
			result = store.RebuildKnown
			return nil
		case errors.Is(err, store.ErrNotFound):
			return s.addRebuilt(ctx, tx, &laneRow, in, &result)
		case err != nil:
			return err
		}
		result = store.RebuildKnown
		change := r.Rebuild(in)
		if change.Request {
			result = store.RebuildUpdated
		}
		if err := save(ctx, tx, laneRow, r, change); err != nil {
			return err
		}
		return forgetNews(ctx, tx, r)
	})
	return result, err
}

func (s *Store) addRebuilt(ctx context.Context, tx pgx.Tx, laneRow *rules.LaneRow, in store.Rebuilt, result *store.RebuildResult) error {
	entered, final, change, added := laneRow.EnterRebuilt(in)
	b := rules.NewBatch()
	b.LaneRows[entered.Account], b.Entered = laneRow, []*rules.Row{entered}
	b.LaneWakes[entered.Account] = &rules.LaneWakes{Count: 1, WakeAt: in.Gap.Until}
	if err := s.enter(ctx, tx, b); err != nil {
		return err
	}
	*result = added
	if err := save(ctx, tx, *laneRow, final, change); err != nil {
		return err
	}
	return forgetNews(ctx, tx, final)
}

// forgetNews takes out of the outbox what events have told already.
func forgetNews(ctx context.Context, tx pgx.Tx, r *rules.Row) error {
	_, err := tx.Exec(ctx, sqlForgetNews, r.Account, r.ID, r.Delivered)
	return err
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
