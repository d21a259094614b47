package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	sqlNextDeletion = `
UPDATE lanes SET unpublish_at = (SELECT min(unpublish_at) FROM requests WHERE account = ?1 AND unpublish_at IS NOT NULL) WHERE account = ?1`
	sqlRetryDeletions = `
UPDATE requests SET unpublish_at = ?2
WHERE account = ?1 AND unpublish_at > ?2`
	sqlUnpublishing = sqlFromRequests + ` WHERE account = ?1 AND unpublish_at IS NOT NULL ORDER BY unpublish_at LIMIT 1`
	sqlDeleted      = `SELECT post_id FROM posts WHERE post_id IN (SELECT value FROM json_each(?1)) AND deleted_at IS NOT NULL`
)

// retryDeletions makes the account's waiting deletions due: what they wait for may have
// happened.
func retryDeletions(ctx context.Context, tx *sql.Tx, account string, now time.Time) error {
	n, err := changed(ctx, tx, sqlRetryDeletions, account, micros(now))
	if err == nil && n > 0 {
		_, err = tx.ExecContext(ctx, sqlNextDeletion, account)
	}
	return err
}

// Unpublish implements store.Control.
func (s *Store) Unpublish(ctx context.Context, key store.Key, now time.Time) (before jetpost.State, err error) {
	_, err = s.move(ctx, "unpublish request", key, func(_ rules.LaneRow, r *rules.Row) (rules.Change, error) {
		before = r.Status.State
		return r.Unpublish(now)
	})
	return before, err
}

// Unpublishing implements store.Lanes.
func (s *Store) Unpublishing(ctx context.Context, lane store.Claim) (record store.Record, found bool, err error) {
	err = s.view(ctx, "find deletions", func(ctx context.Context, tx *sql.Tx) error {
		if _, err := readGenerations(ctx, tx, lane); err != nil {
			return err
		}
		rows, err := collect(ctx, tx, scanRequest, sqlUnpublishing, lane.Account)
		if found = len(rows) > 0; !found || err != nil {
			return err
		}
		err = readPosts(ctx, tx, rows[0])
		record = rows[0].Told()
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
func (s *Store) Deleted(ctx context.Context, postIDs []string) (deleted []string, err error) {
	ids, err := json.Marshal(append([]string{}, postIDs...))
	if err != nil {
		return nil, fmt.Errorf("find deleted posts: %w", err)
	}
	err = s.view(ctx, "find deleted posts", func(ctx context.Context, tx *sql.Tx) error {
		deleted, err = collect(ctx, tx, scanText, sqlDeleted, string(ids))
		return err
	})
	return deleted, err
}

// deletionColumn is NULL if nobody asked for a deletion.
func deletionColumn(d *store.Deletion) (any, error) {
	if d == nil {
		return nil, nil
	}
	text, err := json.Marshal(d)
	return string(text), err
}

func readDeletion(column []byte, nextAt time.Time) (*store.Deletion, error) {
	if column == nil {
		return nil, nil
	}
	d := &store.Deletion{NextAt: nextAt}
	return d, json.Unmarshal(column, d)
}
