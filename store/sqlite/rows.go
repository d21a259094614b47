package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// request is a row of requests with its posts. As one connection writes, a
// method reads it, changes it in memory and saves it, all in one transaction.
type request struct {
	store.Record
	beganAt time.Time // of the first intent; zero before
}

const (
	sqlFromRequests = `
SELECT account, id, seq, state, revision, announced, event, coalesce(reason_code, ''), reason_detail, reason_until,
       hold_until, holds, attempts, began_at, accepted_at, due_at, publish_at, expires_at, updated_at, metadata, body
FROM requests`
	sqlRequest = sqlFromRequests + ` WHERE account = ?1 AND id = ?2`
	sqlPosts   = `
SELECT idx, state, parent_id, coalesce(post_id, ''), media_ids, text_hash, sent_at, not_after, coalesce(attempt, 0)
FROM posts WHERE account = ?1 AND request_id = ?2 ORDER BY idx`
)

// readRequest fails with store.ErrNotFound.
func readRequest(ctx context.Context, tx *sql.Tx, key store.Key) (*request, error) {
	r, err := scanRequest(tx.QueryRowContext(ctx, sqlRequest, key.Account, key.ID))
	if err != nil {
		return nil, missing(err, store.ErrNotFound)
	}
	return r, readPosts(ctx, tx, r)
}

func readPosts(ctx context.Context, tx *sql.Tx, r *request) (err error) {
	r.Posts, err = collect(ctx, tx, scanPost, sqlPosts, r.Account, r.ID)
	return err
}

func scanRequest(row scanner) (*request, error) {
	var r request
	var reason jetpost.Reason
	var meta []byte
	st := &r.Status
	err := row.Scan(&r.Account, &r.ID, &r.Seq, &st.State, &st.Revision, &r.Announced, &r.Event,
		&reason.Code, &reason.Detail, at{&reason.Until}, at{&r.HoldUntil}, &r.Holds, &st.Attempts, at{&r.beganAt},
		at{&st.AcceptedAt}, at{&r.DueAt}, at{&st.PublishAt}, at{&st.ExpiresAt}, at{&st.UpdatedAt}, &meta, &r.Body)
	if err != nil {
		return nil, err
	}
	if reason.Code != "" {
		st.Reason = &reason
	}
	if err := json.Unmarshal(meta, &st.Metadata); err != nil {
		return nil, fmt.Errorf("read metadata of request %s/%s: %w", r.Account, r.ID, err)
	}
	if len(st.Metadata) == 0 {
		st.Metadata = nil
	}
	st.Account, st.ID = r.Account, r.ID
	return &r, nil
}

func scanPost(row scanner) (p store.PostRecord, err error) {
	var media []byte
	err = row.Scan(&p.Index, &p.State, &p.ParentID, &p.PostID, &media, &p.TextHash, at{&p.SentAt}, at{&p.NotAfter}, &p.Attempt)
	if err != nil {
		return store.PostRecord{}, err
	}
	if err := json.Unmarshal(media, &p.MediaIDs); err != nil {
		return store.PostRecord{}, fmt.Errorf("read media of post %d: %w", p.Index, err)
	}
	return p, nil
}

// record completes what is told of the posts and returns the row as the
// interface wants it.
func (r *request) record() store.Record {
	r.Status.Posts = make([]jetpost.PostStatus, 0, len(r.Posts))
	r.Status.Posted, r.Status.Total = 0, len(r.Posts)
	for _, p := range r.Posts {
		told := jetpost.PostStatus{Index: p.Index, State: p.State, PostID: p.PostID}
		if p.State == jetpost.PostPosted {
			told.URL = jetpost.PostURL(p.PostID)
			r.Status.Posted++
		}
		r.Status.Posts = append(r.Status.Posts, told)
	}
	return r.Record
}

// move puts the request into a state. Whatever it waited for is over.
func (r *request) move(state jetpost.State, event jetpost.EventType, reason *jetpost.Reason) {
	r.Status.State, r.Event, r.Status.Reason = state, event, reason
	r.HoldUntil = time.Time{}
}

// post returns the post of that index, or nil.
func (r *request) post(index int) *store.PostRecord {
	if index < 0 || index >= len(r.Posts) {
		return nil
	}
	return &r.Posts[index]
}

// left counts the posts that are not live.
func (r *request) left() (n int) {
	for _, p := range r.Posts {
		if p.State != jetpost.PostPosted {
			n++
		}
	}
	return n
}

const (
	sqlSaveRequest = `
UPDATE requests
SET state = ?3, revision = ?4, announced = ?5, event = ?6, reason_code = ?7, reason_detail = ?8, reason_until = ?9,
    hold_until = ?10, holds = ?11, attempts = ?12, began_at = ?13, due_at = ?14, updated_at = ?15
WHERE account = ?1 AND id = ?2`
	sqlSavePost = `
UPDATE posts
SET state = ?4, parent_id = ?5, post_id = nullif(?6, ''), media_ids = ?7, text_hash = ?8, sent_at = ?9, not_after = ?10,
    attempt = nullif(?11, 0)
WHERE account = ?1 AND request_id = ?2 AND idx = ?3`
)

// saveRevision saves the request as a new revision, whose event is still to be
// published.
func saveRevision(ctx context.Context, tx *sql.Tx, r *request, now time.Time) error {
	r.Status.Revision++
	r.Status.UpdatedAt = now
	return saveRequest(ctx, tx, r)
}

func saveRequest(ctx context.Context, tx *sql.Tx, r *request) error {
	var code any
	var reason jetpost.Reason
	if r.Status.Reason != nil {
		reason = *r.Status.Reason
		code = string(reason.Code)
	}
	_, err := tx.ExecContext(ctx, sqlSaveRequest, r.Account, r.ID, string(r.Status.State), r.Status.Revision, r.Announced,
		string(r.Event), code, reason.Detail, micros(reason.Until), micros(r.HoldUntil), r.Holds, r.Status.Attempts,
		micros(r.beganAt), micros(r.DueAt), micros(r.Status.UpdatedAt))
	return err
}

// savePost fails with store.ErrPostTaken.
func savePost(ctx context.Context, tx *sql.Tx, key store.Key, p *store.PostRecord) error {
	media, err := json.Marshal(append([]string{}, p.MediaIDs...))
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, sqlSavePost, key.Account, key.ID, p.Index, string(p.State), p.ParentID, p.PostID,
		string(media), p.TextHash, micros(p.SentAt), micros(p.NotAfter), p.Attempt)
	if violatesUnique(err) && p.State == jetpost.PostPosted {
		return fmt.Errorf("post %s: %w", p.PostID, store.ErrPostTaken)
	}
	return err
}
