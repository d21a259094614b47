package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const sqlLane = `
SELECT fence, lease_owner IS NOT NULL, generation, next_seq, last_due, paused_at, paused_until, pause_reason, pause_cause FROM lanes WHERE account = ?1`

// readLane fails with store.ErrNotFound.
func readLane(ctx context.Context, tx *sql.Tx, account string) (l rules.LaneRow, err error) {
	err = tx.QueryRowContext(ctx, sqlLane, account).Scan(&l.Fence, &l.Held, &l.Generation, &l.NextSeq, at{&l.LastDue},
		pausedAt{&l.Pause}, at{&l.Pause.Reason.Until}, &l.Pause.Reason.Detail, rules.CauseOf{Pause: &l.Pause})
	return l, missing(err, store.ErrNotFound)
}

const (
	sqlFromRequests = `
SELECT account, id, seq, state, revision, announced, event, coalesce(reason_code, ''), reason_detail, reason_until,
       hold_until, holds, attempts, began_at, accepted_at, due_at, publish_at, expires_at, updated_at, metadata, body, digest, cost_micros, trace, deletion, unpublish_at
FROM requests`
	sqlRequest = sqlFromRequests + ` WHERE account = ?1 AND id = ?2`
	sqlPosts   = `
SELECT idx, state, parent_id, coalesce(post_id, ''), media_ids, text_hash, sent_at, not_after, coalesce(attempt, 0), doubt_since, looks, absent_at, media, deleted_at
FROM posts WHERE account = ?1 AND request_id = ?2 ORDER BY idx`
)

// move applies a rule to a request and returns the state after it. Only one connection
// writes, so nothing changes a row between its read and its save. It fails with
// store.ErrNotFound and store.ErrPruned.
func (s *Store) move(ctx context.Context, what string, key store.Key, rule func(rules.LaneRow, *rules.Row) (rules.Change, error)) (state jetpost.State, err error) {
	err = s.change(ctx, what, func(ctx context.Context, tx *sql.Tx) (err error) {
		state, err = apply(ctx, tx, key, rule)
		return err
	})
	if err != nil {
		return "", err
	}
	return state, nil
}

// apply is move within a transaction.
func apply(ctx context.Context, tx *sql.Tx, key store.Key, rule func(rules.LaneRow, *rules.Row) (rules.Change, error)) (jetpost.State, error) {
	laneRow, err := readLane(ctx, tx, key.Account)
	if err != nil {
		return "", err
	}
	r, err := readRequest(ctx, tx, key)
	if err != nil {
		return "", err
	}
	if r.Pruned {
		return "", store.ErrPruned
	}
	change, err := rule(laneRow, r)
	if err != nil {
		return "", err
	}
	return r.Status.State, save(ctx, tx, laneRow, r, change)
}

// readRequest also reads what is left of one that was pruned. It fails with
// store.ErrNotFound and store.ErrPruned.
func readRequest(ctx context.Context, tx *sql.Tx, key store.Key) (*rules.Row, error) {
	r, err := scanRequest(tx.QueryRowContext(ctx, sqlRequest, key.Account, key.ID))
	if errors.Is(err, sql.ErrNoRows) {
		r, err = scanPruned(tx.QueryRowContext(ctx, sqlPruned, key.Account, key.ID, rules.ErasedIdentity(key)))
		return r, missing(err, store.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return r, readPosts(ctx, tx, r)
}

func readPosts(ctx context.Context, tx *sql.Tx, r *rules.Row) (err error) {
	r.Posts, err = collect(ctx, tx, scanPost, sqlPosts, r.Account, r.ID)
	return err
}

func scanRequest(row scanner) (*rules.Row, error) {
	var r rules.Row
	var reason jetpost.Reason
	var meta, deletion []byte
	var unpublishAt time.Time
	st := &r.Status
	err := row.Scan(&r.Account, &r.ID, &r.Seq, &st.State, &st.Revision, &r.Delivered, &r.Event,
		&reason.Code, &reason.Detail, at{&reason.Until}, at{&r.HoldUntil}, &r.Holds, &st.Attempts, at{&r.BeganAt},
		at{&st.AcceptedAt}, at{&r.DueAt}, at{&st.PublishAt}, at{&st.ExpiresAt}, at{&st.UpdatedAt}, &meta, &r.Body, &r.Digest, &r.CostMicros, &r.Trace,
		&deletion, at{&unpublishAt})
	if err != nil {
		return nil, err
	}
	if reason.Code != "" {
		st.Reason = &reason
	}
	if err := json.Unmarshal(meta, &st.Metadata); err != nil {
		return nil, fmt.Errorf("read metadata of request %s/%s: %w", r.Account, r.ID, err)
	}
	if r.Deletion, err = readDeletion(deletion, unpublishAt); err != nil {
		return nil, fmt.Errorf("read deletion of request %s/%s: %w", r.Account, r.ID, err)
	}
	return &r, nil
}

func scanPost(row scanner) (p store.PostRecord, err error) {
	var ids, media []byte
	err = row.Scan(&p.Index, &p.State, &p.ParentID, &p.PostID, &ids, &p.TextHash, at{&p.SentAt}, at{&p.NotAfter}, &p.Attempt,
		at{&p.DoubtSince}, &p.Checks, at{&p.AbsentAt}, &media, at{&p.DeletedAt})
	if err != nil {
		return store.PostRecord{}, err
	}
	if err := errors.Join(json.Unmarshal(ids, &p.MediaIDs), json.Unmarshal(media, &p.Media)); err != nil {
		return store.PostRecord{}, fmt.Errorf("read media of post %d: %w", p.Index, err)
	}
	return p, nil
}

const (
	sqlSaveRequest = `
UPDATE requests
SET state = ?3, revision = ?4, announced = ?5, event = ?6, reason_code = ?7, reason_detail = ?8, reason_until = ?9,
    hold_until = ?10, holds = ?11, attempts = ?12, began_at = ?13, due_at = ?14, updated_at = ?15, publish_at = ?16,
    deletion = ?17, unpublish_at = ?18
WHERE account = ?1 AND id = ?2`
	sqlSavePost = `
UPDATE posts
SET state = ?4, parent_id = ?5, post_id = nullif(?6, ''), media_ids = ?7, text_hash = ?8, sent_at = ?9, not_after = ?10,
    attempt = nullif(?11, 0), doubt_since = ?12, looks = ?13, absent_at = ?14, media = ?15, deleted_at = ?16
WHERE account = ?1 AND request_id = ?2 AND idx = ?3`
)

// save writes what the rule changed of a request, its posts and its lane.
func save(ctx context.Context, tx *sql.Tx, laneRow rules.LaneRow, r *rules.Row, change rules.Change) error {
	if change.Contents {
		if err := saveContents(ctx, tx, r); err != nil {
			return err
		}
	}
	if change.Body {
		if _, err := tx.ExecContext(ctx, sqlSaveBody, r.Account, r.ID, blob(r.Body), blob(r.Digest), r.CostMicros); err != nil {
			return err
		}
	}
	for _, i := range slices.Concat(change.Posts, change.Media) {
		if err := savePost(ctx, tx, r.Key, &r.Posts[i]); err != nil {
			return err
		}
	}
	if change.Request {
		if err := saveRequest(ctx, tx, r); err != nil {
			return err
		}
	}
	if change.Lease > 0 {
		if _, err := tx.ExecContext(ctx, sqlExtendLane, r.Account, laneRow.Fence, micros(r.Status.UpdatedAt.Add(change.Lease))); err != nil {
			return err
		}
	}
	if change.Progress {
		if _, err := tx.ExecContext(ctx, sqlProgress, r.Account); err != nil {
			return err
		}
	}
	if change.WakeAt.IsZero() {
		return nil
	}
	return wake(ctx, tx, r.Account, change.WakeAt)
}

func saveRequest(ctx context.Context, tx *sql.Tx, r *rules.Row) error {
	code, reason := columns(r.Status.Reason)
	deletion, err := deletionColumn(r.Deletion)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, sqlSaveRequest, r.Account, r.ID, string(r.Status.State), r.Status.Revision, r.Delivered,
		string(r.Event), code, reason.Detail, micros(reason.Until), micros(r.HoldUntil), r.Holds, r.Status.Attempts,
		micros(r.BeganAt), micros(r.DueAt), micros(r.Status.UpdatedAt), micros(r.Status.PublishAt), deletion, micros(r.UnpublishAt()))
	if err != nil || r.Deletion == nil {
		return err
	}
	_, err = tx.ExecContext(ctx, sqlNextDeletion, r.Account)
	return err
}

// columns spreads a reason over its columns; without one, the code is NULL.
func columns(of *jetpost.Reason) (code any, reason jetpost.Reason) {
	if of == nil {
		return nil, jetpost.Reason{}
	}
	return string(of.Code), *of
}

// mediaColumn is a list in JSON, even an empty one.
func mediaColumn(list []store.Media) (string, error) {
	column, err := json.Marshal(append([]store.Media{}, list...))
	return string(column), err
}

// savePost fails with store.ErrPostTaken.
func savePost(ctx context.Context, tx *sql.Tx, key store.Key, p *store.PostRecord) error {
	ids, err := json.Marshal(append([]string{}, p.MediaIDs...))
	if err != nil {
		return err
	}
	media, err := mediaColumn(p.Media)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, sqlSavePost, key.Account, key.ID, p.Index, string(p.State), p.ParentID, p.PostID,
		string(ids), p.TextHash, micros(p.SentAt), micros(p.NotAfter), p.Attempt, micros(p.DoubtSince), p.Checks, micros(p.AbsentAt), media, micros(p.DeletedAt))
	if violatesUnique(err) && p.State == jetpost.PostPosted {
		return fmt.Errorf("post %s: %w", p.PostID, store.ErrPostTaken)
	}
	return err
}
