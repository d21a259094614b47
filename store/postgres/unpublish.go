package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	sqlNextDeletion = `
UPDATE lanes SET unpublish_at = (SELECT min(unpublish_at) FROM requests WHERE account = $1 AND unpublish_at IS NOT NULL) WHERE account = $1`
	sqlRetryDeletions = `
UPDATE requests SET unpublish_at = coalesce($2::timestamptz, statement_timestamp())
WHERE account = $1 AND unpublish_at > coalesce($2::timestamptz, statement_timestamp())`
	sqlHeldGenerations = `SELECT generation FROM lanes WHERE account = $1 AND fence = $2 AND lease_owner IS NOT NULL`
	sqlUnpublishing    = `
SELECT ` + requestColumns + ` FROM requests WHERE account = $1 AND unpublish_at IS NOT NULL ORDER BY unpublish_at LIMIT 1`
	sqlDeleted = `SELECT post_id FROM posts WHERE post_id = ANY ($1::text[]) AND deleted_at IS NOT NULL`
)

// retryDeletions makes the account's waiting deletions due: what they wait for may have
// happened.
func retryDeletions(ctx context.Context, tx pgx.Tx, account string, now any) error {
	n, err := changed(ctx, tx, sqlRetryDeletions, account, now)
	if err == nil && n > 0 {
		_, err = tx.Exec(ctx, sqlNextDeletion, account)
	}
	return err
}

// Unpublish implements store.Control.
func (s *Store) Unpublish(ctx context.Context, key store.Key, now time.Time) (before jetpost.State, err error) {
	_, err = s.move(ctx, "unpublish request", key, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
		before = r.Status.State
		return r.Unpublish(laneRow.At(now))
	})
	return before, err
}

// Unpublishing implements store.Lanes.
func (s *Store) Unpublishing(ctx context.Context, lane store.Claim) (record store.Record, found bool, err error) {
	err = s.view(ctx, "find deletions", func(ctx context.Context, tx pgx.Tx) error {
		var generation int64
		if err := tx.QueryRow(ctx, sqlHeldGenerations, lane.Account, lane.Fence).Scan(&generation); err != nil {
			return missing(err, store.ErrFenced)
		}
		records, err := readRecords(ctx, tx, sqlUnpublishing, lane.Account)
		if found = len(records) > 0; found {
			record = records[0]
		}
		return err
	})
	return record, found, err
}

// PostDeleted implements store.Lanes.
func (s *Store) PostDeleted(ctx context.Context, claim store.Claim, id string, post int, now time.Time) error {
	_, err := s.move(ctx, "record deletion", store.Key{Account: claim.Account, ID: id}, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
		return r.PostDeleted(laneRow, post, now)
	})
	return err
}

// HoldUnpublish implements store.Lanes.
func (s *Store) HoldUnpublish(ctx context.Context, claim store.Claim, id string, out store.Outcome) error {
	_, err := s.move(ctx, "hold deletion", store.Key{Account: claim.Account, ID: id}, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
		return r.HoldUnpublish(laneRow, claim, out)
	})
	return err
}

// Deleted implements store.Lanes.
func (s *Store) Deleted(ctx context.Context, postIDs []string) ([]string, error) {
	deleted, err := collect(ctx, s.db, func(row scanner) (id string, err error) {
		return id, row.Scan(&id)
	}, sqlDeleted, postIDs)
	return deleted, s.wrap("find deleted posts", err)
}
