package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// lane is the row of a lane. Who has locked it may change the lane's requests
// and posts; nothing else is ever locked before it.
type lane struct {
	fence   int64
	held    bool // by the claim of that fence, even if its lease ran out
	rings   int64
	nextSeq int64
	lastDue time.Time
}

// heldBy tells whether nobody has claimed the lane since, and it was not
// released.
func (l lane) heldBy(claim store.Lane) bool { return l.held && l.fence == claim.Fence }

const sqlLockLane = `
SELECT fence, lease_owner IS NOT NULL, rings, next_seq, last_due FROM lanes WHERE account = $1 FOR UPDATE`

// lockLane fails with store.ErrNotFound.
func lockLane(ctx context.Context, tx pgx.Tx, account string) (l lane, err error) {
	err = tx.QueryRow(ctx, sqlLockLane, account).Scan(&l.fence, &l.held, &l.rings, &l.nextSeq, at{&l.lastDue})
	return l, missing(err, store.ErrNotFound)
}

// request is a row of requests with its posts. A method locks it, changes it
// in memory and saves it, all in one transaction.
type request struct {
	store.Record
	beganAt time.Time // of the first intent; zero before
	digest  []byte
}

const (
	requestColumns = `account, id, seq, state, revision, announced, event, coalesce(reason_code, ''), reason_detail, reason_until,
    hold_until, holds, attempts, began_at, accepted_at, due_at, publish_at, expires_at, updated_at, metadata, body, digest`

	sqlRequest     = `SELECT ` + requestColumns + ` FROM requests WHERE account = $1 AND id = $2`
	sqlLockRequest = sqlRequest + ` FOR UPDATE`
	// sqlPosts reads the posts of many requests: the n-th id is of the n-th
	// account.
	sqlPosts = `
SELECT p.account, p.request_id, p.idx, p.state, p.parent_id, coalesce(p.post_id, ''), p.media_ids, p.text_hash,
       p.sent_at, p.not_after, p.attempt
FROM unnest($1::text[], $2::text[]) AS r (account, id) JOIN posts AS p ON p.account = r.account AND p.request_id = r.id
ORDER BY p.idx`
)

// changeRequest runs f on a request whose lane, row and posts are locked. It
// fails with store.ErrNotFound.
func (s *Store) changeRequest(ctx context.Context, what string, key store.Key, f func(pgx.Tx, lane, *request) error) error {
	return s.change(ctx, what, func(tx pgx.Tx) error {
		line, err := lockLane(ctx, tx, key.Account)
		if err != nil {
			return err
		}
		r, err := lockRequest(ctx, tx, key)
		if err != nil {
			return err
		}
		return f(tx, line, r)
	})
}

func lockRequest(ctx context.Context, tx pgx.Tx, key store.Key) (*request, error) {
	found, err := readRequests(ctx, tx, sqlLockRequest, key.Account, key.ID)
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, store.ErrNotFound
	}
	return found[0], nil
}

// readRecords reads requests as the interface wants them.
func readRecords(ctx context.Context, q querier, query string, args ...any) ([]store.Record, error) {
	found, err := readRequests(ctx, q, query, args...)
	if err != nil {
		return nil, err
	}
	var records []store.Record
	for _, r := range found {
		records = append(records, r.record())
	}
	return records, nil
}

func readRequests(ctx context.Context, q querier, query string, args ...any) ([]*request, error) {
	found, err := collect(ctx, q, scanRequest, query, args...)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	byKey := make(map[store.Key]*request, len(found))
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

func scanRequest(row scanner) (*request, error) {
	var r request
	var reason jetpost.Reason
	st := &r.Status
	err := row.Scan(&r.Account, &r.ID, &r.Seq, &st.State, &st.Revision, &r.Announced, &r.Event,
		&reason.Code, &reason.Detail, at{&reason.Until}, at{&r.HoldUntil}, &r.Holds, &st.Attempts, at{&r.beganAt},
		at{&st.AcceptedAt}, at{&r.DueAt}, at{&st.PublishAt}, at{&st.ExpiresAt}, at{&st.UpdatedAt}, &st.Metadata, &r.Body, &r.digest)
	if err != nil {
		return nil, err
	}
	if reason.Code != "" {
		st.Reason = &reason
	}
	if len(st.Metadata) == 0 {
		st.Metadata = nil
	}
	st.Account, st.ID = r.Account, r.ID
	return &r, nil
}

// keyedPost is a post with the request that it belongs to.
type keyedPost struct {
	store.Key
	store.PostRecord
}

func scanPost(row scanner) (p keyedPost, err error) {
	err = row.Scan(&p.Account, &p.ID, &p.Index, &p.State, &p.ParentID, &p.PostID, &p.MediaIDs, &p.TextHash,
		at{&p.SentAt}, at{&p.NotAfter}, &p.Attempt)
	return p, err
}

// record completes what is told of the posts and returns the row as the
// interface wants it.
func (r *request) record() store.Record {
	st := &r.Status
	st.Posts = make([]jetpost.PostStatus, 0, len(r.Posts))
	for _, p := range r.Posts {
		told := jetpost.PostStatus{Index: p.Index, State: p.State, PostID: p.PostID}
		if p.State == jetpost.PostPosted {
			told.URL = jetpost.PostURL(p.PostID)
		}
		st.Posts = append(st.Posts, told)
	}
	st.Total = len(r.Posts)
	st.Posted = st.Total - r.left()
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

// doubtful returns the post of an unknown request that may be live, or nil.
func (r *request) doubtful() *store.PostRecord {
	if r.Status.State != jetpost.StateUnknown {
		return nil
	}
	for i := range r.Posts {
		if r.Posts[i].State == jetpost.PostSending {
			return &r.Posts[i]
		}
	}
	return nil
}

const (
	sqlSaveRequest = `
UPDATE requests
SET state = $3, revision = $4, announced = $5, event = $6, reason_code = nullif($7, ''), reason_detail = $8, reason_until = $9,
    hold_until = $10, holds = $11, attempts = $12, began_at = $13, due_at = $14, updated_at = $15
WHERE account = $1 AND id = $2`
	sqlSavePost = `
UPDATE posts
SET state = $4, parent_id = $5, post_id = nullif($6, ''), media_ids = coalesce($7::text[], '{}'), text_hash = $8, sent_at = $9, not_after = $10,
    attempt = $11
WHERE account = $1 AND request_id = $2 AND idx = $3`
)

// saveRevision saves the request as a new revision, whose event is still to be
// published.
func saveRevision(ctx context.Context, tx pgx.Tx, r *request, now time.Time) error {
	r.Status.Revision++
	r.Status.UpdatedAt = now
	return saveRequest(ctx, tx, r)
}

func saveRequest(ctx context.Context, tx pgx.Tx, r *request) error {
	var reason jetpost.Reason
	if r.Status.Reason != nil {
		reason = *r.Status.Reason
	}
	_, err := tx.Exec(ctx, sqlSaveRequest, r.Account, r.ID, r.Status.State, r.Status.Revision, r.Announced, r.Event,
		reason.Code, storable(reason.Detail), moment(reason.Until), moment(r.HoldUntil), r.Holds, r.Status.Attempts,
		moment(r.beganAt), r.DueAt, r.Status.UpdatedAt)
	return err
}

// postConstraint is the one that keeps a post on X from being taken for two of
// ours.
const postConstraint = "posts_post_id"

// savePost fails with store.ErrPostTaken.
func savePost(ctx context.Context, tx pgx.Tx, key store.Key, p *store.PostRecord) error {
	_, err := tx.Exec(ctx, sqlSavePost, key.Account, key.ID, p.Index, p.State, p.ParentID, p.PostID,
		p.MediaIDs, p.TextHash, moment(p.SentAt), moment(p.NotAfter), p.Attempt)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.ConstraintName == postConstraint {
		return fmt.Errorf("post %s: %w", p.PostID, store.ErrPostTaken)
	}
	return err
}
