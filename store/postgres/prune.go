package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	// prunable is what of the requests r may go that finished before $1. The request of
	// the account's latest live post stays: it is what a timeline must show.
	prunable = `r.state IN ('published', 'failed', 'cancelled') AND r.updated_at < $1 AND (SELECT true FROM outbox WHERE account = r.account AND id = r.id) IS NULL
    AND r.unpublish_at IS NULL AND (r.deletion IS NULL OR r.deletion ->> 'done_at' IS NOT NULL)
    AND NOT EXISTS (SELECT FROM posts WHERE account = r.account AND request_id = r.id AND state = 'sending')
    AND r.id IS DISTINCT FROM (
        SELECT request_id FROM posts WHERE account = r.account AND state = 'posted' AND deleted_at IS NULL ORDER BY sent_at DESC LIMIT 1)`
	// sqlPrunable looks at requests in the order of acceptance, which needs no index of
	// its own, and tells of each whether it may go.
	sqlPrunable = `
SELECT r.account, r.id, r.accepted_at, r.seq, ` + prunable + ` FROM (
    SELECT account, id, accepted_at, seq, state, updated_at, unpublish_at, deletion FROM requests
    WHERE accepted_at < $1 AND (accepted_at, seq, account) > ($2, $3, $4) ORDER BY accepted_at, seq, account LIMIT $5) AS r
ORDER BY r.accepted_at, r.seq, r.account`
	// sqlPrune takes the lane unless somebody has locked it to change a request, and then what of
	// its requests still may go: a row that has changed since the statement began is judged as
	// it is now. Acceptances and a worker's steps (FOR NO KEY UPDATE) change no finished
	// request, and go on. The posts go with their requests; the reference from one to the
	// other is looked at behind both. It is one statement, so that no lock waits for this process.
	sqlPrune = `
WITH locked AS MATERIALIZED (SELECT account FROM lanes WHERE account = $2 FOR KEY SHARE SKIP LOCKED),
gone AS (
    DELETE FROM requests AS r USING locked, unnest($3::text[]) AS asked (id)
    WHERE r.account = locked.account AND r.id = asked.id AND ` + prunable + `
    RETURNING r.account, r.id, r.digest, r.state, r.revision, r.accepted_at, r.updated_at),
posts_gone AS (DELETE FROM posts AS p USING gone WHERE p.account = gone.account AND p.request_id = gone.id),
identities AS (
    INSERT INTO pruned (account, id, digest, state, revision, accepted_at, finished_at)
    SELECT account, id, substring(digest FROM 1 FOR $4), state, revision, accepted_at, updated_at FROM gone RETURNING account)
SELECT (SELECT count(*) FROM identities), (SELECT count(*) = 0 FROM locked)`

	prunedColumns = `account, id, digest, state, revision, accepted_at, finished_at`
	// sqlPruned also finds what is left of a request of an account that was erased.
	sqlPruned = `
SELECT ` + prunedColumns + ` FROM pruned WHERE account = $1 AND id = $2
UNION ALL SELECT $1, $2, ''::bytea, state, 1, erased_at, erased_at FROM erased WHERE identity = $3`
	sqlPrunedRequests = `SELECT ` + prunedColumns + ` FROM pruned WHERE id = $2 AND ($1 = '' OR account = $1) ORDER BY account`

	// sqlMediaUsers finds the name of the field, also where its letters are escaped.
	sqlMediaUsers = `
SELECT account, body FROM requests
WHERE state IN ('scheduled', 'queued', 'publishing', 'held', 'unknown', 'failed')
  AND (position('"object"'::bytea IN body) > 0 OR position('\\u00'::bytea IN body) > 0)`
)

// Prunable implements store.Retention.
func (s *Store) Prunable(ctx context.Context, page store.PrunePage) (out store.Prunable, err error) {
	out.Next = page.After
	seen, err := collect(ctx, s.db, func(row scanner) (none struct{}, err error) {
		var key store.Key
		var goes bool
		err = row.Scan(&key.Account, &key.ID, at{&out.Next.AcceptedAt}, &out.Next.Seq, &goes)
		if out.Next.Account = key.Account; goes {
			out.Keys = append(out.Keys, key)
		}
		return none, err
	}, sqlPrunable, page.FinishedBefore, page.After.AcceptedAt, page.After.Seq, page.After.Account, page.Limit)
	out.Done = len(seen) < page.Limit
	return out, s.wrap("look for what can be pruned", err)
}

// Prune implements store.Retention.
func (s *Store) Prune(ctx context.Context, account string, ids []string, before time.Time) (out store.Pruned, err error) {
	var began time.Time
	err = s.pipeline(ctx, func(_ context.Context, batch *pgx.Batch) error {
		began = time.Now()
		batch.Queue(fmt.Sprintf("set local %s = %d", paramStatement, rules.PruneHold.Milliseconds()))
		batch.Queue(sqlPrune, before, account, ids, rules.DigestKept).QueryRow(func(row pgx.Row) error { return row.Scan(&out.Requests, &out.Busy) })
		batch.Queue(sqlCommit)
		return nil
	})
	if err != nil {
		return store.Pruned{}, s.wrap("prune requests", err)
	}
	out.Held = time.Since(began)
	return out, nil
}

func scanPruned(row scanner) (*rules.Row, error) {
	r := &rules.Row{}
	st := &r.Status
	if err := row.Scan(&r.Account, &r.ID, &r.Digest, &st.State, &st.Revision, at{&st.AcceptedAt}, at{&st.UpdatedAt}); err != nil {
		return nil, err
	}
	return rules.PrunedRow(r.Key, r.Digest, *st), nil
}

// PrunedRequests implements store.Retention.
func (s *Store) PrunedRequests(ctx context.Context, account, id string) ([]store.Record, error) {
	return reportAll(ctx, s, "look for pruned requests", func(row scanner) (store.Record, error) {
		r, err := scanPruned(row)
		if err != nil {
			return store.Record{}, err
		}
		return r.Told(), nil
	}, sqlPrunedRequests, account, id)
}

// MediaUsers implements store.Retention.
func (s *Store) MediaUsers(ctx context.Context, see func(account string, body []byte)) error {
	_, err := reportAll(ctx, s, "look for users of media", func(row scanner) (none struct{}, err error) {
		var account string
		var body []byte
		if err = row.Scan(&account, &body); err == nil {
			see(account, body)
		}
		return none, err
	}, sqlMediaUsers)
	return err
}
