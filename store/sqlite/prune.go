package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
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

	// What is asked for is a list of ids, in JSON.
	sqlPrune = `
INSERT INTO pruned (account, id, digest, state, revision, accepted_at, finished_at)
SELECT account, id, substr(digest, 1, ?4), state, revision, accepted_at, updated_at FROM requests AS r
WHERE r.account = ?2 AND r.id IN (SELECT value FROM json_each(?3)) AND ` + prunable + ` RETURNING id`
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

// Prunable implements store.Retention.
func (s *Store) Prunable(ctx context.Context, page store.PrunePage) (out store.Prunable, err error) {
	out.Next = page.After
	err = s.view(ctx, "look for what can be pruned", func(ctx context.Context, tx *sql.Tx) error {
		seen, err := collect(ctx, tx, func(row scanner) (none struct{}, err error) {
			var key store.Key
			var goes bool
			err = row.Scan(&key.Account, &key.ID, at{&out.Next.AcceptedAt}, &out.Next.Seq, &goes)
			if out.Next.Account = key.Account; goes {
				out.Keys = append(out.Keys, key)
			}
			return none, err
		}, sqlPrunable, micros(page.FinishedBefore), page.After.AcceptedAt.UnixMicro(), page.After.Seq, page.After.Account, page.Limit)
		out.Done = len(seen) < page.Limit
		return err
	})
	return out, err
}

// Prune implements store.Retention. Whoever writes waits for it, and for no longer than
// it tells.
func (s *Store) Prune(ctx context.Context, account string, ids []string, before time.Time) (out store.Pruned, err error) {
	list, err := json.Marshal(ids)
	if err != nil {
		return out, err
	}
	var began time.Time
	err = s.change(ctx, "prune requests", func(ctx context.Context, tx *sql.Tx) error {
		began = time.Now()
		ctx, cancel := context.WithTimeout(ctx, rules.PruneHold)
		defer cancel()
		gone, err := collect(ctx, tx, func(row scanner) (id string, err error) {
			return id, row.Scan(&id)
		}, sqlPrune, micros(before), account, string(list), rules.DigestKept)
		for _, id := range gone {
			for _, drop := range [...]string{sqlDropPosts, sqlDropRequest} {
				if err == nil {
					_, err = tx.ExecContext(ctx, drop, account, id)
				}
			}
		}
		out.Requests = len(gone)
		return err
	})
	if err != nil {
		return store.Pruned{}, err
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
