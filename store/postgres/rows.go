package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const sqlLockLane = `
SELECT fence, lease_owner IS NOT NULL, generation, next_seq, last_due, paused_at, paused_until, pause_reason, pause_cause, clock_timestamp()
FROM lanes WHERE account = $1 FOR UPDATE`

// lockLane fails with store.ErrNotFound. The holder of a lane's row lock may change its
// requests and posts. Only an account and its token are ever locked before it.
func (s *Store) lockLane(ctx context.Context, tx pgx.Tx, account string) (l rules.LaneRow, err error) {
	err = tx.QueryRow(ctx, sqlLockLane, account).Scan(&l.Fence, &l.Held, &l.Generation, &l.NextSeq, at{&l.LastDue},
		pausedAt{&l.Pause}, at{&l.Pause.Reason.Until}, &l.Pause.Reason.Detail, rules.CauseOf{Pause: &l.Pause}, at{&l.Now})
	if s.callersClock {
		l.Now = time.Time{}
	}
	return l, missing(err, store.ErrNotFound)
}

const (
	requestColumns = `account, id, seq, state, revision, ` + sqlTold + `, event, coalesce(reason_code, ''), reason_detail, reason_until,
    hold_until, holds, attempts, began_at, accepted_at, due_at, publish_at, expires_at, updated_at, metadata, body, digest, cost_micros, trace, deletion, unpublish_at`

	sqlRequest     = `SELECT ` + requestColumns + ` FROM requests WHERE account = $1 AND id = $2`
	sqlLockRequest = sqlRequest + ` FOR UPDATE`
	// sqlPosts reads the posts of many requests: the n-th id is of the n-th
	// account.
	sqlPosts = `
SELECT p.account, p.request_id, p.idx, p.state, p.parent_id, coalesce(p.post_id, ''), p.media_ids, p.text_hash,
       p.sent_at, p.not_after, p.attempt, p.doubt_since, p.looks, p.absent_at, p.media, p.deleted_at
FROM unnest($1::text[], $2::text[]) AS r (account, id) JOIN posts AS p ON p.account = r.account AND p.request_id = r.id
ORDER BY p.idx`
)

// move applies a rule to a request and returns the state after it. It fails with
// store.ErrNotFound and store.ErrPruned.
func (s *Store) move(ctx context.Context, what string, key store.Key, rule func(rules.LaneRow, *rules.Row) (rules.Change, error)) (state jetpost.State, err error) {
	err = s.change(ctx, what, func(ctx context.Context, tx pgx.Tx) error {
		laneRow, err := s.lockLane(ctx, tx, key.Account)
		if err != nil {
			return err
		}
		r, err := lockRequest(ctx, tx, key)
		if err != nil {
			return err
		}
		change, err := rule(laneRow, r)
		if err != nil {
			return err
		}
		state = r.Status.State
		return save(ctx, tx, laneRow, r, change)
	})
	if err != nil {
		return "", err
	}
	return state, nil
}

func lockRequest(ctx context.Context, tx pgx.Tx, key store.Key) (*rules.Row, error) {
	found, err := readRequests(ctx, tx, sqlLockRequest, key.Account, key.ID)
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		_, err := scanPruned(tx.QueryRow(ctx, sqlPruned, key.Account, key.ID, rules.ErasedIdentity(key)))
		if err == nil {
			err = store.ErrPruned
		}
		return nil, missing(err, store.ErrNotFound)
	}
	return found[0], nil
}

// readRecords reads requests in the form of the interface.
func readRecords(ctx context.Context, q querier, query string, args ...any) ([]store.Record, error) {
	found, err := readRequests(ctx, q, query, args...)
	if err != nil {
		return nil, err
	}
	var records []store.Record
	for _, r := range found {
		records = append(records, r.Told())
	}
	return records, nil
}

func readRequests(ctx context.Context, q querier, query string, args ...any) ([]*rules.Row, error) {
	found, err := collect(ctx, q, scanRequest, query, args...)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	byKey := make(map[store.Key]*rules.Row, len(found))
	accounts, ids := make([]string, len(found)), make([]string, len(found))
	for i, r := range found {
		byKey[r.Key] = r
		accounts[i], ids[i] = r.Account, r.ID
	}
	posts, err := collect(ctx, q, scanPost, sqlPosts, accounts, ids)
	if err != nil {
		return nil, err
	}
	for _, p := range posts {
		r := byKey[p.Key]
		r.Posts = append(r.Posts, p.PostRecord)
	}
	return found, nil
}

func scanRequest(row scanner) (*rules.Row, error) {
	var r rules.Row
	var reason jetpost.Reason
	var unpublishAt time.Time
	st := &r.Status
	err := row.Scan(&r.Account, &r.ID, &r.Seq, &st.State, &st.Revision, &r.Delivered, &r.Event,
		&reason.Code, &reason.Detail, at{&reason.Until}, at{&r.HoldUntil}, &r.Holds, &st.Attempts, at{&r.BeganAt},
		at{&st.AcceptedAt}, at{&r.DueAt}, at{&st.PublishAt}, at{&st.ExpiresAt}, at{&st.UpdatedAt}, &st.Metadata, &r.Body, &r.Digest, &r.CostMicros, &r.Trace,
		&r.Deletion, at{&unpublishAt})
	if err != nil {
		return nil, err
	}
	if r.Seq == 0 { // of sqlKnownRequests
		return rules.PrunedRow(r.Key, r.Digest, r.Status), nil
	}
	if reason.Code != "" {
		st.Reason = &reason
	}
	if r.Deletion != nil {
		r.Deletion.NextAt = unpublishAt
	}
	return &r, nil
}

// keyedPost is a post with the key of its request.
type keyedPost struct {
	store.Key
	store.PostRecord
}

func scanPost(row scanner) (p keyedPost, err error) {
	err = row.Scan(&p.Account, &p.ID, &p.Index, &p.State, &p.ParentID, &p.PostID, &p.MediaIDs, &p.TextHash,
		at{&p.SentAt}, at{&p.NotAfter}, &p.Attempt, at{&p.DoubtSince}, &p.Checks, at{&p.AbsentAt}, &p.Media, at{&p.DeletedAt})
	return p, err
}

const (
	sqlSaveRequest = `
UPDATE requests
SET state = $3, revision = $4, event = $5, reason_code = nullif($6, ''), reason_detail = $7, reason_until = $8,
    hold_until = $9, holds = $10, attempts = $11, began_at = $12, due_at = $13, updated_at = $14, publish_at = $15,
    deletion = $16, unpublish_at = $17
WHERE account = $1 AND id = $2`
	sqlSavePost = `
UPDATE posts
SET state = $4, parent_id = $5, post_id = nullif($6, ''), media_ids = coalesce($7::text[], '{}'), text_hash = $8, sent_at = $9, not_after = $10,
    attempt = $11, doubt_since = $12, looks = $13, absent_at = $14, media = $15, deleted_at = $16
WHERE account = $1 AND request_id = $2 AND idx = $3`
	sqlSaveMedia = `
UPDATE posts AS p SET media = v.media FROM unnest($3::integer[], $4::json[]) AS v (idx, media)
WHERE p.account = $1 AND p.request_id = $2 AND p.idx = v.idx`
)

// save writes what the rule changed of a request, its posts and its lane.
func save(ctx context.Context, tx executor, laneRow rules.LaneRow, r *rules.Row, change rules.Change) error {
	if change.Contents {
		if err := saveContents(ctx, tx, r); err != nil {
			return err
		}
	}
	if change.Body {
		if _, err := tx.Exec(ctx, sqlSaveBody, r.Account, r.ID, blob(r.Body), blob(r.Digest), r.CostMicros); err != nil {
			return err
		}
	}
	for _, i := range change.Posts {
		if err := savePost(ctx, tx, r.Key, &r.Posts[i]); err != nil {
			return err
		}
	}
	if err := saveMedia(ctx, tx, r, change.Media); err != nil {
		return err
	}
	if change.Request {
		if err := saveRequest(ctx, tx, r); err != nil {
			return err
		}
		if r.Delivered < r.Status.Revision && !change.Quiet {
			if _, err := tx.Exec(ctx, sqlNews, r.Account, r.ID, r.Delivered, r.Status.Revision, r.Status.UpdatedAt); err != nil {
				return err
			}
		}
	}
	if change.Lease > 0 {
		if _, err := tx.Exec(ctx, sqlExtendLane, r.Account, laneRow.Fence, change.Lease); err != nil {
			return err
		}
	}
	if change.Progress {
		if _, err := tx.Exec(ctx, sqlProgress, r.Account); err != nil {
			return err
		}
	}
	if change.WakeAt.IsZero() {
		return nil
	}
	return wake(ctx, tx, r.Account, change.WakeAt)
}

func saveRequest(ctx context.Context, tx executor, r *rules.Row) error {
	var reason jetpost.Reason
	if r.Status.Reason != nil {
		reason = *r.Status.Reason
	}
	_, err := tx.Exec(ctx, sqlSaveRequest, r.Account, r.ID, r.Status.State, r.Status.Revision, r.Event,
		reason.Code, storable(reason.Detail), moment(reason.Until), moment(r.HoldUntil), r.Holds, r.Status.Attempts,
		moment(r.BeganAt), r.DueAt, r.Status.UpdatedAt, moment(r.Status.PublishAt), r.Deletion, moment(r.UnpublishAt()))
	if err != nil || r.Deletion == nil {
		return err
	}
	_, err = tx.Exec(ctx, sqlNextDeletion, r.Account)
	return err
}

// postConstraint is the constraint that keeps a post on X from being counted as two of
// ours.
const postConstraint = "posts_post_id"

// media is a list in JSON, even an empty one.
func media(list []store.Media) []store.Media { return append([]store.Media{}, list...) }

// savePost fails with store.ErrPostTaken.
func savePost(ctx context.Context, tx executor, key store.Key, p *store.PostRecord) error {
	_, err := tx.Exec(ctx, sqlSavePost, key.Account, key.ID, p.Index, p.State, p.ParentID, p.PostID,
		p.MediaIDs, p.TextHash, moment(p.SentAt), moment(p.NotAfter), p.Attempt, moment(p.DoubtSince), p.Checks, moment(p.AbsentAt), media(p.Media), moment(p.DeletedAt))
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.ConstraintName == postConstraint {
		return fmt.Errorf("post %s: %w", p.PostID, store.ErrPostTaken)
	}
	return err
}

// saveMedia saves the media of these posts in one statement.
func saveMedia(ctx context.Context, tx executor, r *rules.Row, posts []int) error {
	if len(posts) == 0 {
		return nil
	}
	lists := make([]string, len(posts)) // a list of lists would be an array of two dimensions
	for i, post := range posts {
		list, err := json.Marshal(media(r.Posts[post].Media))
		if err != nil {
			return err
		}
		lists[i] = string(list)
	}
	_, err := tx.Exec(ctx, sqlSaveMedia, r.Account, r.ID, posts, lists)
	return err
}
