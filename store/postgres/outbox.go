package postgres

import (
	"context"
	"time"

	"github.com/jetpost/jetpost/store"
)

const (
	// sqlTold is the latest revision of a request that was told of, within a statement
	// that reads requests.
	sqlTold = `coalesce((SELECT announced FROM outbox AS o (of_account, of_id) WHERE of_account = account AND of_id = id), revision)`

	// sqlNews puts a revision into the outbox. Where a row is just leaving, it waits for
	// that, and puts it there again.
	sqlNews = `
INSERT INTO outbox (account, id, announced, revision, since, updated_at) VALUES ($1, $2, $3, $4, $5, $5)
ON CONFLICT (account, id) DO UPDATE SET revision = excluded.revision, updated_at = excluded.updated_at`

	sqlOutboxPending = `
SELECT account, id FROM outbox WHERE since < $1 AND updated_at < $1 ORDER BY since LIMIT $2`

	// sqlMarkDelivered passes over what somebody is changing: that moves on, or is told
	// of again. It returns of each request whether there was no newer revision to be told,
	// as of its beginning: one that came since is told after what was told before.
	sqlMarkDelivered = `
WITH told AS MATERIALIZED (
    SELECT account, id, revision FROM unnest($1::text[], $2::text[], $3::bigint[]) AS v (account, id, revision)
), found AS MATERIALIZED (
    SELECT o.account, o.id FROM told JOIN outbox AS o ON o.account = told.account AND o.id = told.id
    WHERE o.revision <= told.revision ORDER BY o.account, o.id FOR UPDATE OF o SKIP LOCKED
), gone AS (
    DELETE FROM outbox AS o USING found WHERE o.account = found.account AND o.id = found.id
)
SELECT r.account, r.id, r.revision = told.revision OR ` + begunSinceTold + `
FROM told JOIN requests AS r ON r.account = told.account AND r.id = told.id`
	// begunSinceTold tells a request that has done nothing since that revision but begin,
	// of which people are told nothing.
	begunSinceTold = `r.revision = told.revision + 1 AND r.state = 'publishing' AND r.event IN ('request.accepted', 'request.scheduled')`
)

// OutboxPending implements store.Outbox.
func (s *Store) OutboxPending(ctx context.Context, before time.Time, limit int) ([]store.Key, error) {
	keys, err := collect(ctx, s.db, func(row scanner) (key store.Key, err error) {
		err = row.Scan(&key.Account, &key.ID)
		return key, err
	}, sqlOutboxPending, before, limit)
	return keys, s.wrap("list the outbox", err)
}

// MarkDelivered implements store.Outbox.
func (s *Store) MarkDelivered(ctx context.Context, key store.Key, revision int64) (latest bool, err error) {
	latest, err = s.marks.do(ctx, store.Revision{Key: key, Number: revision})
	return latest, s.wrap("mark request announced", err)
}

// takeMarks marks many together.
func (s *Store) takeMarks(group []*asked[store.Revision, bool]) {
	told := make([]store.Revision, len(group))
	for i, w := range group {
		told[i] = w.ask
	}
	latest, err := s.markMany(group[0].ctx, told)
	for _, w := range group {
		var found bool
		if w.answer, found = latest[w.ask.Key]; !found && err == nil {
			w.err = store.ErrNotFound
		} else {
			w.err = err
		}
	}
}

// markMany tells of each request that there is whether it has no newer revision.
func (s *Store) markMany(ctx context.Context, told []store.Revision) (latest map[store.Key]bool, err error) {
	accounts, ids, revisions := make([]string, len(told)), make([]string, len(told)), make([]int64, len(told))
	for i, r := range told {
		accounts[i], ids[i], revisions[i] = r.Account, r.ID, r.Number
	}
	latest = map[store.Key]bool{}
	_, err = collect(ctx, s.db, func(row scanner) (none struct{}, err error) {
		var key store.Key
		var is bool
		err = row.Scan(&key.Account, &key.ID, &is)
		latest[key] = is
		return none, err
	}, sqlMarkDelivered, accounts, ids, revisions)
	return latest, err
}

// MarkManyDelivered implements store.Outbox.
func (s *Store) MarkManyDelivered(ctx context.Context, told []store.Revision) (rest []store.Key, err error) {
	latest, err := s.markMany(ctx, told)
	for _, r := range told {
		if !latest[r.Key] {
			rest = append(rest, r.Key)
		}
	}
	return rest, s.wrap("mark requests announced", err)
}
