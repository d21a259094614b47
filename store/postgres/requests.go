package postgres

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	// sqlLockLanes locks in one order, so that two batches never deadlock.
	sqlLockLanes = `
SELECT account, fence, lease_owner IS NOT NULL, generation, next_seq, last_due, paused_at, paused_until, pause_reason, pause_cause, clock_timestamp()
FROM lanes WHERE account = ANY ($1::text[]) ORDER BY account FOR NO KEY UPDATE`
	// sqlKnownRequests also reads what is left of pruned and erased ones, which has no sequence.
	// It locks no row, as its lanes are locked: a request that is pruned meanwhile is
	// seen where the snapshot of the statement has it, in one place. LIMIT 1 has each looked up:
	// while few had been pruned, a plan read all of them.
	sqlKnownRequests = `
WITH asked AS (SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[]) AS asked (account, id, identity)),
known AS (SELECT ` + requestColumns + ` FROM requests WHERE (account, id) IN (SELECT account, id FROM asked))
SELECT * FROM known UNION ALL
SELECT p.account, p.id, 0, p.state, p.revision, p.revision, '', '', '', NULL, NULL, 0, 0, NULL, p.accepted_at, p.accepted_at, NULL, NULL, p.finished_at, NULL, '', p.digest, 0, '', NULL, NULL
FROM asked CROSS JOIN LATERAL (SELECT * FROM pruned WHERE account = asked.account AND id = asked.id LIMIT 1) AS p UNION ALL
SELECT account, id, 0, e.state, 1, 1, '', '', '', NULL, NULL, 0, 0, NULL, e.erased_at, e.erased_at, NULL, NULL, e.erased_at, NULL, '', '', 0, '', NULL, NULL
FROM asked CROSS JOIN LATERAL (SELECT * FROM erased WHERE identity = asked.identity LIMIT 1) AS e`
	sqlAddRequests = `
WITH added AS (
INSERT INTO requests (account, id, seq, state, revision, event, reason_code, reason_detail, reason_until, hold_until,
    holds, accepted_at, due_at, publish_at, expires_at, updated_at, metadata, body, digest, cost_micros, trace)
SELECT account, id, seq, state, revision, event, nullif(code, ''), detail, until, hold_until,
    holds, accepted_at, due_at, publish_at, expires_at, accepted_at, metadata::json, body, digest, cost, trace
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::timestamptz[],
    $10::timestamptz[], $11::integer[], $12::timestamptz[], $13::timestamptz[], $14::timestamptz[], $15::timestamptz[], $16::text[],
    $17::bytea[], $18::bytea[], $19::bigint[], $20::text[])
    AS r (account, id, seq, state, revision, event, code, detail, until, hold_until, holds, accepted_at, due_at, publish_at, expires_at,
          metadata, body, digest, cost, trace)
RETURNING account, id, revision, accepted_at)
INSERT INTO outbox (account, id, announced, revision, since, updated_at) SELECT account, id, 0, revision, accepted_at, accepted_at FROM added`
	sqlAddPosts = `
INSERT INTO posts (account, request_id, idx, text_hash, media)
SELECT * FROM unnest($1::text[], $2::text[], $3::integer[], $4::bytea[], $5::json[])`
	// sqlPlaced updates lanes for what entered their queues: the next place, a wake-up
	// for each change, and an earlier next run.
	sqlPlaced = `
UPDATE lanes AS l SET next_seq = v.next_seq, last_due = v.last_due, generation = l.generation + v.generation, wake_at = least(l.wake_at, v.wake_at)
FROM unnest($1::text[], $2::bigint[], $3::timestamptz[], $4::integer[], $5::timestamptz[]) AS v (account, next_seq, last_due, generation, wake_at)
WHERE l.account = v.account`
	// sqlWake counts a change and brings the lane's next run forward to $2, or to now.
	sqlWake = `UPDATE lanes SET generation = generation + 1, wake_at = least(wake_at, coalesce($2::timestamptz, statement_timestamp())) WHERE account = $1`
)

// Accept implements store.Intake.
func (s *Store) Accept(ctx context.Context, in store.Acceptance) (store.Decision, error) {
	out, err := s.AcceptMany(ctx, store.Lease{}, []store.Acceptance{in})
	switch {
	case err != nil:
		return 0, err
	case out[0].Decision == store.NoAccount:
		return 0, s.wrap("accept request", store.ErrNotFound)
	}
	return out[0].Decision, nil
}

const (
	// acceptTogether is how many jobs a call of AcceptMany has at most that shares its
	// transaction with other calls. More jobs cost more than their transaction.
	acceptTogether = 32
	// acceptApart is how long each call has a transaction of its own after a shared one
	// has failed: a call that waits for a locked lane delays the others only once.
	acceptApart = 30 * time.Second
)

// arrival is one call of AcceptMany.
type arrival struct {
	lease store.Lease
	in    []store.Acceptance
}

type waitingArrival = asked[arrival, []store.Received]

// AcceptMany implements store.Intake, in two round trips: reads under its locks, and
// writes. The locks on the lanes put acceptances of an account into one order. Small calls
// for other partitions that come while one is under way share the next transaction.
func (s *Store) AcceptMany(ctx context.Context, lease store.Lease, in []store.Acceptance) (out []store.Received, err error) {
	switch {
	case slices.ContainsFunc(in, func(a store.Acceptance) bool { return a.RefuseSameText }):
		return s.acceptInTurn(ctx, lease, in)
	case len(in) > acceptTogether || time.Now().Before(time.Unix(0, s.apart.Load())):
		w := &waitingArrival{ask: arrival{lease, in}}
		err = s.accept(ctx, []*waitingArrival{w})
		out = w.answer
	default:
		out, err = s.arrivals.do(ctx, arrival{lease, in})
	}
	return out, s.wrap("accept requests", err)
}

// accept accepts the jobs of many calls in one transaction.
func (s *Store) accept(ctx context.Context, group []*waitingArrival) error {
	a := &accepting{s: s, b: rules.NewBatch()}
	for _, w := range group {
		a.in = append(a.in, w.ask.in...)
		if w.ask.lease.Name != "" {
			a.leases = append(a.leases, w.ask.lease)
		}
	}
	err := s.pipeline(ctx, a.read, a.write)
	if err != nil && !a.committed {
		for _, w := range a.claims { // they may have been committed
			s.givenUp.keep(w.ask.account, append(w.ask.before, w.ask.claim))
		}
		if len(group) > 1 {
			s.apart.Store(time.Now().Add(acceptApart).UnixNano())
		}
		return err
	}
	received := a.b.Received(a.in, a.decisions)
	for i, place := range a.asked { // a failed lookup takes nothing back
		received[place].SameText, received[place].SameTextErr = a.found[i], s.wrap("look for equal texts", err)
	}
	for _, w := range a.claims {
		if w.answer.found {
			received[w.place].Claim = new(s.claimed(w.ask.account, w.answer))
		}
	}
	for _, w := range group {
		w.answer, received = received[:len(w.ask.in)], received[len(w.ask.in):]
	}
	return nil
}

// freeClaims frees the lanes that came with an acceptance whose caller has given up, since
// nobody knows of their claims. What it cannot free is free when its lease ends.
func (s *Store) freeClaims(ctx context.Context, received []store.Received) {
	for _, r := range received {
		if r.Claim != nil {
			go func() { _ = store.FreeLane(ctx, s, *r.Claim, time.Now()) }()
		}
	}
}

// accepting is an acceptance of many requests that refuses no text.
type accepting struct {
	s      *Store
	b      *rules.Batch
	leases []store.Lease // in the order of their names
	in     []store.Acceptance

	decisions []store.Decision
	claims    []claiming // of lanes, in the order of their accounts
	committed bool
	asked     []int             // the places of those whose texts are looked up
	found     map[int]store.Key // requests with the same text, by the place in asked
}

// claiming is the claim of a lane, and the place of the acceptance that asks for it.
type claiming struct {
	*waitingStep
	place int
}

// read locks the lanes and reads them, and the requests that exist already.
func (a *accepting) read(_ context.Context, batch *pgx.Batch) error {
	for _, lease := range a.leases {
		batch.Queue(sqlHoldLease, lease.Name, lease.Owner, lease.Fence).Exec(func(tag pgconn.CommandTag) error {
			return fenced(int(tag.RowsAffected()), nil)
		})
	}
	accounts, ids, identities := make([]string, len(a.in)), make([]string, len(a.in)), make([][]byte, len(a.in))
	for i := range a.in {
		key := a.in[i].Key()
		accounts[i], ids[i], identities[i] = key.Account, key.ID, rules.ErasedIdentity(key)
	}
	queue(batch, a.s.scanLaneRow(a.b.LaneRows), sqlLockLanes, accountsOf(a.in))
	queue(batch, func(row scanner) (none struct{}, err error) {
		r, err := scanRequest(row)
		if err == nil {
			a.b.Rows[r.Key] = r
		}
		return none, err
	}, sqlKnownRequests, accounts, ids, identities)
	queue(batch, func(row scanner) (none struct{}, err error) {
		p, err := scanPost(row)
		if r := a.b.Rows[p.Key]; err == nil && r != nil && len(r.Posts) == p.Index { // some came twice
			r.Posts = append(r.Posts, p.PostRecord)
		}
		return none, err
	}, sqlPosts, accounts, ids)
	return nil
}

// write writes what the rules have decided. It looks texts up only after the requests
// are visible: if two come at once, at least one of them is found.
func (a *accepting) write(ctx context.Context, batch *pgx.Batch) error {
	a.decisions = a.b.Judge(a.in)
	if err := a.s.enter(ctx, queued{batch}, a.b); err != nil {
		return err
	}
	a.claim(batch)
	batch.Queue(sqlCommit).Exec(func(pgconn.CommandTag) error {
		a.committed = true
		return nil
	})
	var texts []store.TextQuery
	for i, in := range a.in {
		if in.FindSameText && a.decisions[i] == store.Accepted {
			a.asked, texts = append(a.asked, i), append(texts, store.TextsOf(in.Request, in.Now))
		}
	}
	if arguments := textColumns(texts); len(arguments) > 0 {
		a.found = map[int]store.Key{}
		queue(batch, func(row scanner) (none struct{}, err error) {
			var place int
			var key store.Key
			err = row.Scan(&place, &key.Account, &key.ID)
			a.found[place] = key
			return none, err
		}, sqlSameTexts, arguments...)
	}
	return nil
}

// claim claims the lanes that are asked for. Their rows are locked already.
func (a *accepting) claim(batch *pgx.Batch) {
	asked, now := map[string]bool{}, rules.LatestOf(a.in)
	for i := range a.in {
		account, by := a.in[i].Request.Account, a.in[i].Claim
		if by == nil || asked[account] || a.decisions[i] == store.NoAccount {
			continue
		}
		asked[account] = true
		a.claims = append(a.claims, claiming{place: i, waitingStep: &waitingStep{ask: step{
			act: actClaim, account: account, owner: by.Worker, claim: uuid.NewString(), before: a.s.givenUp.take(account), lease: by.Lease, now: now, next: true,
		}}})
	}
	if len(a.claims) == 0 {
		return
	}
	slices.SortFunc(a.claims, func(a, b claiming) int { return strings.Compare(a.ask.account, b.ask.account) })
	group := make([]*waitingStep, len(a.claims))
	for i, c := range a.claims {
		group[i] = c.waitingStep
	}
	a.s.queueSteps(batch, group)
}

// acceptInTurn accepts one request after the other. A request that may fail for the
// text of another must see all before it.
func (s *Store) acceptInTurn(ctx context.Context, lease store.Lease, in []store.Acceptance) (out []store.Received, err error) {
	err = s.change(ctx, "accept requests", func(ctx context.Context, tx pgx.Tx) error {
		out = nil
		if lease.Name != "" {
			if err := fenced(changed(ctx, tx, sqlHoldLease, lease.Name, lease.Owner, lease.Fence)); err != nil {
				return err
			}
		}
		if err := lockTexts(ctx, tx, in); err != nil {
			return err
		}
		laneRows := map[string]*rules.LaneRow{}
		if _, err := collect(ctx, tx, s.scanLaneRow(laneRows), sqlLockLanes, accountsOf(in)); err != nil {
			return err
		}
		for i := range in {
			received, err := s.acceptOne(ctx, tx, laneRows, in[i:i+1])
			if err != nil {
				return err
			}
			out = append(out, received...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (s *Store) acceptOne(ctx context.Context, tx pgx.Tx, laneRows map[string]*rules.LaneRow, in []store.Acceptance) ([]store.Received, error) {
	b := rules.NewBatch()
	b.LaneRows = laneRows
	found, err := readRequests(ctx, tx, sqlKnownRequests, []string{in[0].Request.Account}, []string{in[0].Request.ID}, [][]byte{rules.ErasedIdentity(in[0].Key())})
	if err != nil {
		return nil, err
	}
	for _, r := range found {
		b.Rows[r.Key] = r
	}
	decisions := b.Judge(in)
	if in[0].RefuseSameText && decisions[0] == store.Accepted {
		if err := refuseText(ctx, tx, b.Rows[in[0].Key()], in[0]); err != nil {
			return nil, err
		}
	}
	if err := s.enter(ctx, tx, b); err != nil {
		return nil, err
	}
	return b.Received(in, decisions), nil
}

// enter writes what a batch has decided.
func (s *Store) enter(ctx context.Context, tx executor, b *rules.Batch) error {
	if err := addRequests(ctx, tx, b.Entered); err != nil {
		return err
	}
	for r, change := range b.Changes {
		change.WakeAt = time.Time{} // with the others, below
		if err := save(ctx, tx, *b.LaneRows[r.Account], r, change); err != nil {
			return err
		}
	}
	return place(ctx, tx, b)
}

// accountsOf are the accounts of acceptances, each once.
func accountsOf(in []store.Acceptance) []string {
	accounts := make([]string, len(in))
	for i := range in {
		accounts[i] = in[i].Request.Account
	}
	slices.Sort(accounts)
	return slices.Compact(accounts)
}

// scanLaneRow reads lanes into a map. Accounts that do not exist are missing in it.
func (s *Store) scanLaneRow(laneRows map[string]*rules.LaneRow) func(scanner) (struct{}, error) {
	return func(row scanner) (none struct{}, err error) {
		var account string
		l := &rules.LaneRow{}
		err = row.Scan(&account, &l.Fence, &l.Held, &l.Generation, &l.NextSeq, at{&l.LastDue},
			pausedAt{&l.Pause}, at{&l.Pause.Reason.Until}, &l.Pause.Reason.Detail, rules.CauseOf{Pause: &l.Pause}, at{&l.Now})
		if s.callersClock {
			l.Now = time.Time{}
		}
		laneRows[account] = l
		return none, err
	}
}

// place updates the lanes for what entered their queues.
func place(ctx context.Context, tx executor, b *rules.Batch) error {
	n := len(b.LaneWakes)
	if n == 0 {
		return nil
	}
	next, generation := make([]int64, n), make([]int, n)
	last, wake := make([]*time.Time, n), make([]*time.Time, n)
	accounts := slices.Sorted(maps.Keys(b.LaneWakes))
	for i, account := range accounts {
		laneRow, woken := b.LaneRows[account], b.LaneWakes[account]
		next[i], generation[i], last[i], wake[i] = laneRow.NextSeq, woken.Count, instant(laneRow.LastDue), instant(woken.WakeAt)
	}
	_, err := tx.Exec(ctx, sqlPlaced, accounts, next, last, generation, wake)
	return err
}

// instant is moment for the elements of a list.
func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func addRequests(ctx context.Context, tx executor, rows []*rules.Row) error {
	n := len(rows)
	if n == 0 {
		return nil
	}
	var (
		accounts, ids, states, events   = make([]string, n), make([]string, n), make([]string, n), make([]string, n)
		codes, details, traces          = make([]string, n), make([]string, n), make([]string, n)
		metadata                        = make([]*string, n)
		seqs, revisions, costs          = make([]int64, n), make([]int64, n), make([]int64, n)
		holds                           = make([]int, n)
		bodies, digests                 = make([][]byte, n), make([][]byte, n)
		untils, holdUntils, acceptedAts = make([]*time.Time, n), make([]*time.Time, n), make([]*time.Time, n)
		dueAts, publishAts, expiresAts  = make([]*time.Time, n), make([]*time.Time, n), make([]*time.Time, n)
	)
	for i, r := range rows {
		st := &r.Status
		accounts[i], ids[i], states[i], events[i] = r.Account, r.ID, string(st.State), string(r.Event)
		if st.Reason != nil {
			codes[i], details[i], untils[i] = string(st.Reason.Code), storable(st.Reason.Detail), instant(st.Reason.Until)
		}
		if len(st.Metadata) > 0 {
			text, err := json.Marshal(st.Metadata)
			if err != nil {
				return err
			}
			metadata[i] = new(string(text))
		}
		seqs[i], revisions[i], costs[i], holds[i] = r.Seq, st.Revision, r.CostMicros, r.Holds
		bodies[i], digests[i], traces[i] = blob(r.Body), blob(r.Digest), r.Trace
		holdUntils[i], acceptedAts[i] = instant(r.HoldUntil), instant(st.AcceptedAt)
		dueAts[i], publishAts[i], expiresAts[i] = instant(r.DueAt), instant(st.PublishAt), instant(st.ExpiresAt)
	}
	_, err := tx.Exec(ctx, sqlAddRequests, accounts, ids, seqs, states, revisions, events, codes, details, untils, holdUntils,
		holds, acceptedAts, dueAts, publishAts, expiresAts, metadata, bodies, digests, costs, traces)
	if err != nil {
		return err
	}
	return addPosts(ctx, tx, rows...)
}

func addPosts(ctx context.Context, tx executor, rows ...*rules.Row) error {
	var accounts, ids, lists []string // a list of lists would be an array of two dimensions
	var places []int
	var hashes [][]byte
	for _, r := range rows {
		for _, p := range r.Posts {
			list, err := json.Marshal(media(p.Media))
			if err != nil {
				return err
			}
			accounts, ids, places = append(accounts, r.Account), append(ids, r.ID), append(places, p.Index)
			hashes, lists = append(hashes, p.TextHash), append(lists, string(list))
		}
	}
	if len(ids) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, sqlAddPosts, accounts, ids, places, hashes, lists)
	return err
}

const (
	// sqlLockTexts makes an acceptance of one of the same texts wait until this one is
	// visible. The keys are sorted, so that two never deadlock.
	sqlLockTexts = `SELECT count(pg_advisory_xact_lock(key)) FROM unnest($1::bigint[]) AS key`
	// OFFSET 0 has the posts found first, by their text: an idle moment's plan took all requests that
	// wait, and looked at the posts of each.
	sqlSameText = `
SELECT found.account, found.request_id FROM unnest($2::bytea[]) AS t (hash) CROSS JOIN LATERAL (
    (SELECT account, request_id FROM posts
     WHERE text_hash = t.hash AND account <> $1 AND state IN ('sending', 'posted') AND sent_at > $3 AND sent_at < $4 LIMIT 1)
    UNION ALL
    (SELECT p.account, p.request_id
     FROM (SELECT account, request_id FROM posts WHERE text_hash = t.hash AND account <> $1 AND state = 'pending' OFFSET 0) AS p
     CROSS JOIN LATERAL (SELECT state, due_at FROM requests WHERE account = p.account AND id = p.request_id OFFSET 0) AS r
     WHERE r.` + unfinished + ` AND greatest(r.due_at, $5) > $3 AND greatest(r.due_at, $5) < $4 LIMIT 1)
) AS found LIMIT 1`
)

// lockTexts locks all texts of a batch before the batch locks a lane.
func lockTexts(ctx context.Context, tx pgx.Tx, in []store.Acceptance) error {
	var keys []int64
	for i := range in {
		if !in[i].RefuseSameText {
			continue
		}
		for _, hash := range store.TextsOf(in[i].Request, in[i].Now).Hashes {
			keys = append(keys, int64(binary.BigEndian.Uint64(hash)))
		}
	}
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	_, err := tx.Exec(ctx, sqlLockTexts, slices.Compact(keys))
	return err
}

// refuseText fails a request whose text another account posts, if that is asked for.
// Two that come at once see each other: the second one fails.
func refuseText(ctx context.Context, tx pgx.Tx, r *rules.Row, in store.Acceptance) error {
	_, found, err := findText(ctx, tx, store.TextsOf(in.Request, in.Now))
	if found {
		r.RefuseText()
	}
	return err
}

func findText(ctx context.Context, q querier, texts store.TextQuery) (other store.Key, found bool, err error) {
	if len(texts.Hashes) == 0 {
		return store.Key{}, false, nil
	}
	from, to := rules.TextSpan(texts)
	keys, err := collect(ctx, q, func(row scanner) (key store.Key, err error) {
		return key, row.Scan(&key.Account, &key.ID)
	}, sqlSameText, texts.Account, texts.Hashes, from, to, texts.Now)
	if err != nil || len(keys) == 0 {
		return store.Key{}, false, err
	}
	return keys[0], true, nil
}

// SameText implements store.Queries.
func (s *Store) SameText(ctx context.Context, q store.TextQuery) (other store.Key, found bool, err error) {
	other, found, err = findText(ctx, s.db, q)
	return other, found, s.wrap("find the same text", err)
}

const sqlSameTexts = `
SELECT q.n, found.account, found.request_id
FROM unnest($1::bigint[], $2::text[], $3::bytea[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[])
    AS q (n, account, hash, from_at, to_at, now_at)
CROSS JOIN LATERAL (
    (SELECT account, request_id FROM posts
     WHERE text_hash = q.hash AND account <> q.account AND state IN ('sending', 'posted') AND sent_at > q.from_at AND sent_at < q.to_at LIMIT 1)
    UNION ALL
    (SELECT p.account, p.request_id
     FROM (SELECT account, request_id FROM posts WHERE text_hash = q.hash AND account <> q.account AND state = 'pending' OFFSET 0) AS p
     CROSS JOIN LATERAL (SELECT state, due_at FROM requests WHERE account = p.account AND id = p.request_id OFFSET 0) AS r
     WHERE r.` + unfinished + ` AND greatest(r.due_at, q.now_at) > q.from_at AND greatest(r.due_at, q.now_at) < q.to_at LIMIT 1)
) AS found`

// textColumns turns queries into the arrays of sqlSameTexts. The arrays are empty if no
// query has a text.
func textColumns(queries []store.TextQuery) []any {
	var places []int
	var accounts []string
	var hashes [][]byte
	var froms, tos, nows []time.Time
	for i, q := range queries {
		from, to := rules.TextSpan(q)
		for _, hash := range q.Hashes {
			places, accounts, hashes = append(places, i), append(accounts, q.Account), append(hashes, hash)
			froms, tos, nows = append(froms, from), append(tos, to), append(nows, q.Now)
		}
	}
	if len(places) == 0 {
		return nil
	}
	return []any{places, accounts, hashes, froms, tos, nows}
}

const sqlSaveContents = `
UPDATE requests SET publish_at = $3, expires_at = $4, metadata = $5, digest = $6, cost_micros = $7 WHERE account = $1 AND id = $2`

// saveContents completes a request that was accepted unread.
func saveContents(ctx context.Context, tx executor, r *rules.Row) error {
	st := &r.Status
	_, err := tx.Exec(ctx, sqlSaveContents, r.Account, r.ID,
		moment(st.PublishAt), moment(st.ExpiresAt), st.Metadata, blob(r.Digest), r.CostMicros)
	if err != nil {
		return err
	}
	return addPosts(ctx, tx, r)
}

// blob keeps an empty value from being stored as NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func wake(ctx context.Context, tx executor, account string, wakeAt any) error {
	_, err := tx.Exec(ctx, sqlWake, account, wakeAt)
	return err
}

const (
	sqlRefuse = `
INSERT INTO refusals (sequence, stored, account, id, code, problems, body) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (sequence, stored) DO NOTHING`
	// sqlForgetRefusals skips refusals that another call is deleting.
	sqlForgetRefusals = `
DELETE FROM refusals WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM refusals WHERE stored < $1 ORDER BY stored, sequence LIMIT $2 FOR UPDATE SKIP LOCKED))`
	sqlRefusals = `
SELECT sequence, stored, account, id, code, problems FROM refusals
ORDER BY stored DESC, sequence DESC LIMIT $1`
)

// Refuse implements store.Intake.
func (s *Store) Refuse(ctx context.Context, refusal jetpost.Refusal, body []byte) error {
	problems := append([]jetpost.Problem{}, refusal.Problems...) // a list, if an empty one
	return s.change(ctx, "record refusal", func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sqlRefuse, int64(refusal.Sequence), refusal.Stored,
			storable(refusal.Account), storable(refusal.ID), refusal.Code, problems, blob(body))
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, sqlForgetRefusals, refusal.Stored.Add(-rules.RefusalRetention), rules.MaxForgottenRefusals)
		return err
	})
}

const (
	sqlJobFailed = `
INSERT INTO intake_failures AS f (sequence, stored, failures, error) VALUES ($1, $2, 1, $3)
ON CONFLICT (stored, sequence) DO UPDATE SET failures = f.failures + 1, error = excluded.error RETURNING failures`
	sqlForgetFailures = `DELETE FROM intake_failures WHERE stored < $1`
)

// JobFailed implements store.Intake.
func (s *Store) JobFailed(ctx context.Context, f store.JobFailure) (failures int, err error) {
	err = s.change(ctx, "count failure of job", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlForgetFailures, f.Stored.Add(-rules.RefusalRetention)); err != nil {
			return err
		}
		return tx.QueryRow(ctx, sqlJobFailed, int64(f.Sequence), f.Stored, storable(f.Error)).Scan(&failures)
	})
	return failures, err
}

// Refusals implements store.Queries.
func (s *Store) Refusals(ctx context.Context, limit int) ([]jetpost.Refusal, error) {
	refusals, err := collect(ctx, s.db, func(row scanner) (r jetpost.Refusal, err error) {
		var sequence int64
		err = row.Scan(&sequence, at{&r.Stored}, &r.Account, &r.ID, &r.Code, &r.Problems)
		r.Sequence = uint64(sequence)
		return r, err
	}, sqlRefusals, limit)
	return refusals, s.wrap("list refusals", err)
}

const sqlEndHolds = `
UPDATE requests SET hold_until = coalesce($3::timestamptz, statement_timestamp())
WHERE account = $1 AND state = 'held' AND reason_code = $2 AND (hold_until IS NULL OR hold_until > coalesce($3::timestamptz, statement_timestamp()))`

// EndHolds implements store.Control.
func (s *Store) EndHolds(ctx context.Context, account string, code jetpost.Code, now time.Time) (n int, err error) {
	err = s.change(ctx, "end holds", func(ctx context.Context, tx pgx.Tx) error {
		n, err = endHolds(ctx, tx, account, code, s.now(now))
		return err
	})
	return n, err
}

// endHolds wakes the lane even if nothing is held: a worker may be about to commit just
// such a hold, and learns by the wake-up that it is already over. The requests stay
// held until they move, so there is nothing to publish.
func endHolds(ctx context.Context, tx pgx.Tx, account string, code jetpost.Code, now any) (int, error) {
	if err := wake(ctx, tx, account, now); err != nil { // first, for its lock
		return 0, err
	}
	if err := retryDeletions(ctx, tx, account, now); err != nil {
		return 0, err
	}
	return changed(ctx, tx, sqlEndHolds, account, code, now)
}

// Replay implements store.Control. A post that may be live stays in doubt.
func (s *Store) Replay(ctx context.Context, key store.Key, now time.Time) (result store.ReplayResult, err error) {
	_, err = s.move(ctx, "replay request", key, func(laneRow rules.LaneRow, r *rules.Row) (change rules.Change, err error) {
		result, change = r.Replay(laneRow, now)
		return change, nil
	})
	return result, err
}

// Cancel implements store.Control.
func (s *Store) Cancel(ctx context.Context, key store.Key, now time.Time) (before jetpost.State, err error) {
	_, err = s.move(ctx, "cancel request", key, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
		before = r.Status.State
		return r.Cancel(laneRow.At(now))
	})
	return before, err
}

// Reschedule implements store.Control.
func (s *Store) Reschedule(ctx context.Context, key store.Key, at, now time.Time) (state jetpost.State, err error) {
	_, err = s.move(ctx, "reschedule request", key, func(laneRow rules.LaneRow, r *rules.Row) (change rules.Change, err error) {
		change, err = r.Reschedule(laneRow, at, now)
		state = r.Status.State
		return change, err
	})
	return state, err
}

// Resolve implements store.Control.
func (s *Store) Resolve(ctx context.Context, key store.Key, postID string, now time.Time) (jetpost.State, error) {
	return s.move(ctx, "resolve request", key, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
		return r.Resolve(laneRow, postID, now)
	})
}

// Reconcile implements store.Control.
func (s *Store) Reconcile(ctx context.Context, key store.Key, now time.Time) error {
	_, err := s.move(ctx, "reconcile request", key, func(laneRow rules.LaneRow, r *rules.Row) (rules.Change, error) {
		return r.Reconcile(laneRow.At(now))
	})
	return err
}

const (
	sqlAnchor = `
SELECT a.x_user_id, coalesce(p.post_id, ''), coalesce(p.doubt_since, p.sent_at)
FROM accounts AS a LEFT JOIN LATERAL (
    SELECT post_id, sent_at, doubt_since FROM posts WHERE account = a.name AND state = 'posted' AND deleted_at IS NULL ORDER BY sent_at DESC LIMIT 1
) AS p ON true
WHERE a.name = $1`
	sqlOwned = `SELECT post_id FROM posts WHERE post_id = ANY ($1::text[])`
)

// Anchor implements store.Lanes.
func (s *Store) Anchor(ctx context.Context, account string) (w store.Anchor, err error) {
	err = s.db.QueryRow(ctx, sqlAnchor, account).Scan(&w.XUserID, &w.PostID, at{&w.SentAt})
	return w, s.wrap("find latest post", missing(err, store.ErrNotFound))
}

// Owned implements store.Lanes.
func (s *Store) Owned(ctx context.Context, postIDs []string) ([]string, error) {
	owned, err := collect(ctx, s.db, func(row scanner) (id string, err error) {
		return id, row.Scan(&id)
	}, sqlOwned, postIDs)
	return owned, s.wrap("find owned posts", err)
}

// Request implements store.Queries.
func (s *Store) Request(ctx context.Context, key store.Key) (record store.Record, err error) {
	err = s.view(ctx, "read request", func(ctx context.Context, tx pgx.Tx) error {
		found, err := readRecords(ctx, tx, sqlRequest, key.Account, key.ID)
		switch {
		case err != nil:
			return err
		case len(found) == 0:
			r, err := scanPruned(tx.QueryRow(ctx, sqlPruned, key.Account, key.ID, rules.ErasedIdentity(key)))
			if err == nil {
				record = r.Told()
			}
			return missing(err, store.ErrNotFound)
		}
		record = found[0]
		return nil
	})
	return record, err
}

const sqlListRequests = `
SELECT ` + requestColumns + ` FROM requests
WHERE ($1 = '' OR account = $1) AND ($2 = '' OR id = $2) AND ($3 = '' OR state = $3) AND ($4 = '' OR reason_code = $4)
  AND ($5::timestamptz IS NULL OR accepted_at >= $5)
  AND accepted_at <= coalesce($7::timestamptz, 'infinity')
  AND ($7::timestamptz IS NULL OR (accepted_at, seq) < ($7, $8) OR (accepted_at = $7 AND seq = $8 AND account > $9))
ORDER BY accepted_at DESC, seq DESC, account LIMIT $6`

// ListRequests implements store.Queries. The statement is planned for each call, since
// the best index depends on which filters are set.
func (s *Store) ListRequests(ctx context.Context, f store.Filter) (list []store.Record, err error) {
	err = s.report(ctx, "list requests", func(ctx context.Context, tx pgx.Tx) error {
		list, err = readRecords(ctx, tx, sqlListRequests, pgx.QueryExecModeCacheDescribe,
			f.Account, f.ID, f.State, f.Code, moment(f.Since), rules.ListLimit(f), moment(f.After.AcceptedAt), f.After.Seq, f.After.Account)
		return err
	})
	return list, err
}

const sqlCalendar = `
SELECT ` + requestColumns + ` FROM requests
WHERE (due_at, account, seq) > ($1::timestamptz, $2, $3) AND due_at < $4 AND ($5 = '' OR account = $5) AND seq > 0
ORDER BY due_at, account, seq LIMIT $6`

// Calendar implements store.Queries. It is planned for each call, as ListRequests is.
func (s *Store) Calendar(ctx context.Context, q store.CalendarQuery) (list []store.Record, err error) {
	err = s.report(ctx, "list calendar", func(ctx context.Context, tx pgx.Tx) error {
		list, err = readRecords(ctx, tx, sqlCalendar, pgx.QueryExecModeCacheDescribe, q.After.DueAt, q.After.Account, q.After.Seq, q.Before, q.Account, q.Limit)
		return err
	})
	return list, err
}

const sqlWaiting = `
SELECT account, id, seq, state, coalesce(reason_code, ''), due_at, hold_until, expires_at, began_at IS NOT NULL, p.posts, p.live
FROM requests AS r CROSS JOIN LATERAL (
    SELECT count(*) AS posts, count(*) FILTER (WHERE p.state = 'posted') AS live
    FROM posts AS p WHERE p.account = r.account AND p.request_id = r.id) AS p
WHERE (account, due_at, seq) > ($1, $2::timestamptz, $3) AND ` + unfinished + `
ORDER BY account, due_at, seq LIMIT $4`

// Waiting implements store.Queries.
func (s *Store) Waiting(ctx context.Context, after store.Waiting, limit int) ([]store.Waiting, error) {
	return reportAll(ctx, s, "list waiting requests", func(row scanner) (w store.Waiting, err error) {
		err = row.Scan(&w.Account, &w.ID, &w.Seq, &w.State, &w.Code, at{&w.DueAt}, at{&w.HoldUntil}, at{&w.ExpiresAt}, &w.Begun, &w.Posts, &w.Live)
		return w, err
	}, sqlWaiting, after.Account, moment(after.DueAt), after.Seq, limit)
}

const sqlCountCodes = `
SELECT coalesce(reason_code, ''), count(*), min(updated_at), max(updated_at) FROM (
    SELECT reason_code, updated_at FROM requests WHERE state = $1 ORDER BY accepted_at DESC, seq DESC LIMIT $2) AS few
GROUP BY reason_code ORDER BY count(*) DESC, reason_code COLLATE "C"`

// CountCodes implements store.Queries.
func (s *Store) CountCodes(ctx context.Context, state jetpost.State) ([]store.CodeCount, error) {
	return reportAll(ctx, s, "count reasons", func(row scanner) (c store.CodeCount, err error) {
		err = row.Scan(&c.Code, &c.Count, at{&c.First}, at{&c.Last})
		return c, err
	}, sqlCountCodes, pgx.QueryExecModeCacheDescribe, state, store.MaxSeries) // planned for the state
}

// Each statement makes one index lookup for each account, or reads a part of one index.
const (
	sqlHours = `
SELECT floor(extract(epoch FROM p.sent_at) / 3600)::bigint AS hour, count(*)
FROM lanes AS l CROSS JOIN LATERAL (
    SELECT sent_at FROM posts WHERE account = l.account AND state = 'posted' AND sent_at >= $1 OFFSET 0) AS p
GROUP BY hour`
	sqlDueSoon = `
SELECT count(*) FILTER (WHERE due_at < $1), count(*) FROM (
    SELECT r.due_at FROM lanes AS l CROSS JOIN LATERAL (
        SELECT due_at FROM requests WHERE account = l.account AND ` + unfinished + ` AND due_at < $2 LIMIT $3) AS r
    LIMIT $3) AS few`
	sqlCost = `
SELECT coalesce(sum(cost_micros) FILTER (WHERE accepted_at >= $1), 0)::bigint, coalesce(sum(cost_micros), 0)::bigint
FROM requests WHERE accepted_at >= $2 AND began_at IS NOT NULL`
)

// Series implements store.Queries.
func (s *Store) Series(ctx context.Context, q store.SeriesQuery) (out store.Series, err error) {
	err = s.report(ctx, "count posts", func(ctx context.Context, tx pgx.Tx) error {
		out = store.Series{Posts: map[int64]int{}}
		_, err := collect(ctx, tx, func(row scanner) (none struct{}, err error) {
			var hour int64
			var n int
			err = row.Scan(&hour, &n)
			out.Posts[hour] = n
			return none, err
		}, sqlHours, q.Since)
		if err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, sqlDueSoon, q.Now.Add(time.Hour), q.Now.Add(24*time.Hour), store.MaxSeries).Scan(&out.DueHour, &out.DueDay); err != nil {
			return err
		}
		return tx.QueryRow(ctx, sqlCost, q.Day, q.Month).Scan(&out.CostDay, &out.CostMonth)
	})
	return out, err
}

const sqlCountRequests = `
SELECT s.state, n.n FROM unnest($1::text[]) AS s (state) CROSS JOIN LATERAL (
    SELECT count(*) AS n FROM (SELECT FROM requests WHERE state = s.state LIMIT $2) AS few) AS n
WHERE n.n > 0`

const sqlCountAccountRequests = `
SELECT s.state, n.n FROM unnest($1::text[]) AS s (state) CROSS JOIN LATERAL (
    SELECT count(*) AS n FROM (SELECT FROM requests WHERE account = $3 AND state = s.state LIMIT $2) AS few) AS n
WHERE n.n > 0`

// CountRequests implements store.Queries.
func (s *Store) CountRequests(ctx context.Context) (map[jetpost.State]int, error) {
	return s.countRequests(ctx, sqlCountRequests, jetpost.States(), store.MaxCounted)
}

// CountAccountRequests implements store.Queries.
func (s *Store) CountAccountRequests(ctx context.Context, account string) (map[jetpost.State]int, error) {
	return s.countRequests(ctx, sqlCountAccountRequests, jetpost.States(), store.MaxCounted, account)
}

func (s *Store) countRequests(ctx context.Context, query string, args ...any) (map[jetpost.State]int, error) {
	type count struct {
		state jetpost.State
		n     int
	}
	counts, err := reportAll(ctx, s, "count requests", func(row scanner) (c count, err error) {
		err = row.Scan(&c.state, &c.n)
		return c, err
	}, query, args...)
	byState := make(map[jetpost.State]int, len(counts))
	for _, c := range counts {
		byState[c.state] = c.n
	}
	return byState, err
}
