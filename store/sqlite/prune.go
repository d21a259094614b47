package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"github.com/jetpost/jetpost/store"
)

const (
	// prunable is what of the requests r may go that finished before ?1. The request of
	// the account's latest live post stays: it is what a timeline must show.
	prunable = `r.state IN ('published', 'failed', 'cancelled') AND r.updated_at < ?1 AND r.announced = r.revision
    AND r.unpublish_at IS NULL AND (r.deletion IS NULL OR r.deletion ->> '$.done_at' IS NOT NULL)
    AND NOT EXISTS (SELECT 1 FROM posts WHERE account = r.account AND request_id = r.id AND state = 'sending')
    AND r.id IS NOT (
        SELECT request_id FROM posts WHERE account = r.account AND state = 'posted' AND deleted_at IS NULL ORDER BY sent_at DESC LIMIT 1)`
	// sqlPrunable looks at requests in the order of acceptance, which needs no index of
	// its own, and tells of each whether it may go.
	sqlPrunable = `
SELECT r.account, r.id, r.accepted_at, r.seq, ` + prunable + ` FROM requests AS r
WHERE r.accepted_at < ?1 AND (r.accepted_at, r.seq, r.account) > (?2, ?3, ?4) ORDER BY r.accepted_at, r.seq, r.account LIMIT ?5`

	// What is asked for is a list of pairs of account and id, in JSON.
	listed   = `(SELECT value ->> 0, value ->> 1 FROM json_each(?2))`
	sqlPrune = `
INSERT INTO pruned (account, id, digest, state, revision, accepted_at, finished_at)
SELECT account, id, substr(digest, 1, ?3), state, revision, accepted_at, updated_at FROM requests AS r
WHERE (r.account, r.id) IN ` + listed + ` AND ` + prunable + ` RETURNING account, id`
	sqlDropPosts   = `DELETE FROM posts WHERE account = ?1 AND request_id = ?2`
	sqlDropRequest = `DELETE FROM requests WHERE account = ?1 AND id = ?2`

	prunedColumns = `account, id, digest, state, revision, accepted_at, finished_at`
	// sqlPruned also finds what is left of a request of an account that was erased.
	sqlPruned = `
SELECT ` + prunedColumns + ` FROM pruned WHERE account = ?1 AND id = ?2
UNION ALL SELECT ?1, ?2, x'', state, 1, erased_at, erased_at FROM erased WHERE identity = ?3`
	sqlPrunedRequests = `SELECT ` + prunedColumns + ` FROM pruned WHERE id = ?2 AND (?1 = '' OR account = ?1) ORDER BY account`

	// sqlMediaUsers finds the name of the field, also where its letters are escaped.
	sqlMediaUsers = `
SELECT account, body FROM requests
WHERE state IN ('scheduled', 'queued', 'publishing', 'held', 'unknown', 'failed') AND (instr(body, CAST('"object"' AS BLOB)) > 0 OR instr(body, CAST('\u00' AS BLOB)) > 0)`
)

// Prune implements store.Retention. Whoever writes waits for it, and for no longer than
// it tells.
func (s *Store) Prune(ctx context.Context, b store.PruneBatch) (out store.Pruned, err error) {
	keys := [][2]string{}
	out.Next, out.Done = b.After, true
	err = s.view(ctx, "look for what can be pruned", func(ctx context.Context, tx *sql.Tx) error {
		seen, err := collect(ctx, tx, func(row scanner) (none struct{}, err error) {
			var key [2]string
			var goes bool
			err = row.Scan(&key[0], &key[1], at{&out.Next.AcceptedAt}, &out.Next.Seq, &goes)
			out.Next.Account = key[0]
			if goes {
				keys = append(keys, key)
			}
			return none, err
		}, sqlPrunable, micros(b.FinishedBefore), b.After.AcceptedAt.UnixMicro(), b.After.Seq, b.After.Account, b.Limit)
		out.Done = len(seen) < b.Limit
		return err
	})
	if err != nil || b.DryRun || len(keys) == 0 {
		out.Requests = len(keys)
		return out, err
	}
	list, err := json.Marshal(keys)
	if err != nil {
		return out, err
	}
	out.Requests, out.Held, err = s.prune(ctx, b.FinishedBefore, string(list))
	return out, err
}

func (s *Store) prune(ctx context.Context, before time.Time, list string) (n int, held time.Duration, err error) {
	var began time.Time
	err = s.change(ctx, "prune requests", func(ctx context.Context, tx *sql.Tx) error {
		began = time.Now()
		ctx, cancel := context.WithTimeout(ctx, store.PruneHold)
		defer cancel()
		gone, err := collect(ctx, tx, func(row scanner) (key store.Key, err error) {
			return key, row.Scan(&key.Account, &key.ID)
		}, sqlPrune, micros(before), list, store.DigestKept)
		for _, key := range gone {
			for _, drop := range [...]string{sqlDropPosts, sqlDropRequest} {
				if err == nil {
					_, err = tx.ExecContext(ctx, drop, key.Account, key.ID)
				}
			}
		}
		n = len(gone)
		return err
	})
	return n, time.Since(began), err
}

func scanPruned(row scanner) (*store.Row, error) {
	r := &store.Row{}
	st := &r.Status
	if err := row.Scan(&r.Account, &r.ID, &r.Digest, &st.State, &st.Revision, at{&st.AcceptedAt}, at{&st.UpdatedAt}); err != nil {
		return nil, err
	}
	return store.PrunedRow(r.Key, r.Digest, *st), nil
}

// PrunedRequests implements store.Retention.
func (s *Store) PrunedRequests(ctx context.Context, account, id string) (records []store.Record, err error) {
	err = s.report(ctx, "look for pruned requests", func(ctx context.Context, tx *sql.Tx) error {
		rows, err := collect(ctx, tx, scanPruned, sqlPrunedRequests, account, id)
		for _, r := range rows {
			records = append(records, r.Told())
		}
		return err
	})
	return records, err
}

// MediaUsers implements store.Retention.
func (s *Store) MediaUsers(ctx context.Context, see func(account string, body []byte)) error {
	return s.report(ctx, "look for users of media", func(ctx context.Context, tx *sql.Tx) error {
		_, err := collect(ctx, tx, func(row scanner) (none struct{}, err error) {
			var account string
			var body []byte
			if err = row.Scan(&account, &body); err == nil {
				see(account, body)
			}
			return none, err
		}, sqlMediaUsers)
		return err
	})
}
