package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

// maxGroup is how many steps one statement takes: more than there are slots.
const maxGroup = 256

// lockedFor is how long the steps of many lanes wait for a lane that somebody has locked, as
// PostgreSQL's setting. After that each is sent alone, at the same time as the others.
const lockedFor = "250ms"

// act is what a step does to its lane.
type act string

const (
	actClaim   act = "claim"   // takes a lane that nobody holds, and reads its front
	actWrite   act = "write"   // writes the head and one post of it, for the holder
	actRelease act = "release" // frees the lane, unless a wake-up came
)

// step is one act of a worker on one lane. The steps of many lanes are sent as one
// statement, so that they share its start, its round trip and its synced commit.
type step struct {
	act     act
	account string
	now     time.Time
	fence   int64 // of the holder; not of a claim
	owner   string
	claim   string        // its id
	before  []string      // the ids of this worker's claims that got no answer
	lease   time.Duration // zero leaves it unchanged

	// Of a write: the row that the head becomes, if the ledger still has it in that
	// revision and the account's pause is as the holder knows it.
	row      *rules.Row
	revision int64
	post     int
	pause    store.Pause
	progress bool // forgives the lane the claims that it lost
	quiet    bool // the new revision needs no event if the one before was delivered
	// begins says that the write is an intent, whose post may be sent for that long.
	begins bool
	within time.Duration
	next   bool // reads the front of the lane behind the head
	// follows is the request whose first post the write begins if it is then the front of
	// the lane, in that revision; nil if it begins none.
	follows    *rules.Row
	followsWas int64
	// told is a revision of a request of the lane that is marked as delivered; not by a
	// claim.
	told store.Revision

	// Of a release.
	generation int64
	wakeAt     time.Time
}

// stepped is the result of a step; the zero value if the ledger refused it.
type stepped struct {
	at       time.Time
	found    bool // there is such a lane, and it was free or is the holder's
	fence    int64
	lost     int // claims
	released bool
	wrote    bool
	latest   bool // the marked request has no newer revision
	laneRow  rules.LaneRow
	read     bool
	followed bool
	snapshot store.Snapshot
	head     *rules.Row
	token    *store.SealedToken // where the front was read
}

// gather sends together what many callers ask for while the statement before is under
// way. They share its start, its round trip and its synced commit.
type gather[Q, A any] struct {
	patience *time.Duration // of a call
	key      func(Q) string
	// send answers a group. Its keys differ and are sorted.
	send func(group []*asked[Q, A])
	// late, if set, gets the answers that came after their callers had given up.
	late func(context.Context, A)

	mu      sync.Mutex
	waiting []*asked[Q, A]
	busy    bool
}

// asked is one question and its result.
type asked[Q, A any] struct {
	ctx    context.Context // outlives the caller's: the questions of many callers go together
	ask    Q
	answer A
	err    error
	done   chan struct{}
	over   bool // its caller has given up
	apart  bool // it waits for somebody's lock, beside no other
}

// do asks one question, within the time of a call. A question that was given up while
// under way may still take effect, like any statement whose answer is lost.
func (g *gather[Q, A]) do(ctx context.Context, ask Q) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, *g.patience)
	defer cancel()
	w := &asked[Q, A]{ask: ask, ctx: context.WithoutCancel(ctx), done: make(chan struct{})}
	g.mu.Lock()
	g.waiting = append(g.waiting, w)
	if !g.busy {
		g.busy = true
		go g.run()
	}
	g.mu.Unlock()
	select {
	case <-w.done:
		return w.answer, w.err
	case <-ctx.Done():
		if !g.giveUp(w) {
			return w.answer, w.err
		}
		var none A
		return none, ctx.Err()
	}
}

// giveUp takes back a question that was not sent yet. It returns false if the answer has
// just come.
func (g *gather[Q, A]) giveUp(w *asked[Q, A]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-w.done:
		return false
	default:
	}
	w.over = true
	g.waiting = slices.DeleteFunc(g.waiting, func(other *asked[Q, A]) bool { return other == w })
	return true
}

// answered hands out an answer.
func (g *gather[Q, A]) answered(w *asked[Q, A]) {
	g.mu.Lock()
	close(w.done)
	over := w.over
	g.mu.Unlock()
	if over && w.err == nil && g.late != nil {
		g.late(w.ctx, w.answer)
	}
}

// run sends group after group until nothing waits.
func (g *gather[Q, A]) run() {
	for {
		group := g.take()
		if group == nil {
			return
		}
		g.send(group)
		for _, w := range group {
			if w.apart = lockTaken(w.err); w.apart {
				go g.alone(w)
				continue
			}
			g.answered(w)
		}
	}
}

// alone sends a question whose statement met a lock that somebody holds for long. Meanwhile the
// others go on without it.
func (g *gather[Q, A]) alone(w *asked[Q, A]) {
	g.mu.Lock()
	over := w.over
	g.mu.Unlock()
	if !over {
		g.send([]*asked[Q, A]{w})
	}
	g.answered(w)
}

// take returns the questions of one statement, in the order in which every transaction
// locks lanes. A second question with the same key waits for the next statement.
func (g *gather[Q, A]) take() (group []*asked[Q, A]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	keys := map[string]bool{}
	var rest []*asked[Q, A]
	for _, w := range g.waiting {
		key := g.key(w.ask)
		if len(group) == maxGroup || keys[key] {
			rest = append(rest, w)
			continue
		}
		keys[key] = true
		group = append(group, w)
	}
	g.waiting = rest
	g.busy = len(group) > 0
	slices.SortFunc(group, func(a, b *asked[Q, A]) int { return strings.Compare(g.key(a.ask), g.key(b.ask)) })
	return group
}

// waitingStep is a step under way.
type waitingStep = asked[step, stepped]

// together answers questions by one call or, if the ledger refuses that, each alone, so
// that one's failure is never another's. A ledger that does not answer is asked only
// once.
func together[Q, A any](group []*asked[Q, A], send func([]*asked[Q, A]) error) {
	err := send(group)
	if err == nil {
		return
	}
	alone := len(group) > 1 && !unavailable(err)
	for i, w := range group {
		if w.err = err; alone {
			w.err = send(group[i : i+1])
		}
	}
}

// sqlStep takes a step on each of many lanes. It reads as of the statement's beginning.
// The lanes are locked in one order, and each is then judged as it is at that moment.
// "fresh" says that nothing happened to it in between; only then the front that was
// read is handed out.
const sqlStep = `
WITH input AS MATERIALIZED (
    SELECT t.account, act, coalesce(at, statement_timestamp()) AS at, fence, owner, claim, lease,
        id, was, pause_since, pause_until, progress, quiet, next, done, want_generation, wake,
        state, revision, event, holds, attempts,
        idx, post_state, parent, post, media_ids, hash, attempt, begins * interval '1 microsecond' AS begins,
        string_to_array(before, ' ')::uuid[] AS before, told_id, told,
        then_id, then_was, then_revision, then_attempts, then_parent, then_hash, then_begins * interval '1 microsecond' AS then_begins
    FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::text[], $6::uuid[], $7::bigint[],
        $8::text[], $9::bigint[], $10::timestamptz[], $11::timestamptz[], $12::boolean[], $13::boolean[], $14::boolean[], $15::text[],
        $16::bigint[], $17::timestamptz[],
        $18::text[], $19::bigint[], $20::text[], $21::integer[], $22::integer[],
        $23::integer[], $24::text[], $25::text[], $26::text[], $27::json[], $28::bytea[], $29::bigint[], $30::bigint[], $31::text[], $32::text[], $33::bigint[],
        $34::text[], $35::bigint[], $36::bigint[], $37::integer[], $38::text[], $39::bytea[], $40::bigint[])
    AS t (account, act, at, fence, owner, claim, lease,
        id, was, pause_since, pause_until, progress, quiet, next, done,
        want_generation, wake,
        state, revision, event, holds, attempts,
        idx, post_state, parent, post, media_ids, hash, attempt, begins, before, told_id, told,
        then_id, then_was, then_revision, then_attempts, then_parent, then_hash, then_begins)
), seen AS MATERIALIZED (
    SELECT i.*, l.generation, l.fence AS lane_fence, CASE WHEN t.follows THEN t.behind ELSE f.id END AS head, d.due AS next_due,
        coalesce(t.follows, false) AS follows,
        i.act <> 'write' OR EXISTS (SELECT FROM requests AS r WHERE r.account = i.account AND r.id = i.id AND r.revision = i.was) AS matches
    FROM input AS i
    CROSS JOIN LATERAL (SELECT generation, fence FROM lanes WHERE account = i.account LIMIT 1) AS l
    LEFT JOIN LATERAL (SELECT coalesce(
        (SELECT id FROM requests WHERE account = i.account AND id <> i.done AND began_at IS NOT NULL AND ` + unfinished + `
         ORDER BY due_at, seq LIMIT 1),
        (SELECT id FROM requests WHERE account = i.account AND id <> i.done AND due_at <= i.at AND ` + unfinished + `
         ORDER BY due_at, seq LIMIT 1)) AS id WHERE i.next) AS f ON true
    LEFT JOIN LATERAL (SELECT
        EXISTS (SELECT FROM requests AS r WHERE r.account = i.account AND r.id = i.then_id AND r.revision = i.then_was) AS follows,
        (SELECT id FROM requests WHERE account = i.account AND id <> i.done AND id <> i.then_id AND due_at <= i.at AND ` + unfinished + `
         ORDER BY due_at, seq LIMIT 1) AS behind WHERE f.id = i.then_id) AS t ON true
    LEFT JOIN LATERAL (SELECT min(due_at) AS due FROM requests
        WHERE account = i.account AND due_at > i.at AND ` + unfinished + ` AND i.next) AS d ON true
), patience AS MATERIALIZED (
    SELECT set_config('lock_timeout', $41, true) AS bound
), locked AS MATERIALIZED (
    SELECT account, generation, fence FROM lanes WHERE account = ANY ($1) AND (SELECT bound IS NOT NULL FROM patience) ORDER BY account FOR NO KEY UPDATE
), lane AS (
    UPDATE lanes AS l SET
        fence       = CASE WHEN s.act = 'claim' THEN l.fence + 1 ELSE l.fence END,
        lost_claims = CASE WHEN s.act = 'claim' AND l.claim_id = ANY (s.before) THEN l.lost_claims
                           WHEN s.act = 'claim' THEN l.lost_claims + 1
                           WHEN s.progress OR s.act = 'release' AND l.generation = s.want_generation THEN 0 ELSE l.lost_claims END,
        reserved    = CASE WHEN s.act = 'claim' OR s.act = 'release' AND l.generation = s.want_generation THEN 0 ELSE l.reserved END,
        lease_owner = CASE WHEN s.act = 'claim' THEN s.owner
                           WHEN s.act = 'release' AND l.generation = s.want_generation THEN NULL ELSE l.lease_owner END,
        claim_id    = CASE WHEN s.act = 'claim' THEN s.claim ELSE l.claim_id END,
        lease_until = CASE WHEN s.act = 'release' AND l.generation = s.want_generation THEN NULL
                           WHEN s.lease > 0 THEN clock_timestamp() + s.lease * interval '1 microsecond' ELSE l.lease_until END,
        wake_at     = CASE WHEN s.act = 'release' AND l.generation = s.want_generation THEN s.wake ELSE l.wake_at END
    FROM seen AS s JOIN locked AS k ON k.account = s.account
    WHERE l.account = s.account AND CASE s.act
        WHEN 'claim' THEN l.lease_until IS NULL OR l.lease_until <= clock_timestamp() OR l.claim_id = ANY (s.before)
        WHEN 'write' THEN l.fence = s.fence AND l.lease_owner IS NOT NULL AND s.matches
            AND l.paused_at IS NOT DISTINCT FROM s.pause_since AND l.paused_until IS NOT DISTINCT FROM s.pause_until
            AND (s.begins IS NULL OR l.paused_at IS NULL OR l.paused_until <= s.at)
        ELSE l.fence = s.fence AND l.lease_owner IS NOT NULL END
    RETURNING s.*, l.fence AS new_fence, l.lost_claims AS lost, l.lease_owner IS NULL AS released,
        l.paused_at, l.paused_until, l.pause_reason, l.pause_cause, l.unpublish_at, l.monthly_limit, k.generation = s.generation AND k.fence = s.lane_fence AS fresh
), row AS (
    SELECT account, id, was, at, state, revision, event, holds, attempts, idx, post_state, parent, post, media_ids, hash, attempt, begins
    FROM lane WHERE act = 'write'
    UNION ALL
    SELECT account, then_id, then_was, at, 'publishing', then_revision, NULL, NULL, then_attempts, 0, 'sending', then_parent, '', '[]', then_hash, new_fence, then_begins
    FROM lane WHERE act = 'write' AND follows AND fresh
), wrote AS (
    UPDATE requests AS r SET state = row.state, revision = row.revision, event = coalesce(row.event, r.event),
        reason_code = NULL, reason_detail = '', reason_until = NULL, hold_until = NULL, holds = coalesce(row.holds, r.holds),
        attempts = row.attempts, began_at = coalesce(r.began_at, row.at), updated_at = row.at
    FROM row WHERE r.account = row.account AND r.id = row.id AND r.revision = row.was
    RETURNING r.account, r.id
), post AS (
    UPDATE posts AS p SET state = row.post_state, parent_id = row.parent, post_id = nullif(row.post, ''), text_hash = row.hash,
        media_ids = ARRAY(SELECT json_array_elements_text(row.media_ids)), attempt = row.attempt,
        sent_at = CASE WHEN row.begins IS NULL THEN p.sent_at ELSE row.at END,
        not_after = coalesce(row.at + row.begins, p.not_after)
    FROM row JOIN wrote ON wrote.account = row.account AND wrote.id = row.id
    WHERE p.account = row.account AND p.request_id = row.id AND p.idx = row.idx
), news AS (
    INSERT INTO outbox (account, id, announced, revision, since, updated_at)
    SELECT lane.account, lane.id, lane.was, lane.revision, lane.at, lane.at
    FROM lane JOIN wrote ON wrote.account = lane.account AND wrote.id = lane.id WHERE NOT lane.quiet
    ON CONFLICT (account, id) DO UPDATE SET revision = excluded.revision, updated_at = excluded.updated_at
), marked AS (
    DELETE FROM outbox AS o USING lane WHERE lane.told > 0 AND o.account = lane.account AND o.id = lane.told_id AND o.revision <= lane.told
        AND (lane.quiet OR lane.told_id <> lane.id)
)
SELECT lane.account AS lane, lane.new_fence, lane.lost, lane.released, wrote.account IS NOT NULL, lane.told_id = lane.id OR coalesce(
        (SELECT revision = lane.told FROM requests AS r WHERE lane.told > 0 AND r.account = lane.account AND r.id = lane.told_id), true),
    lane.next AND lane.fresh AND lane.follows = (after.id IS NOT NULL),
    after.id IS NOT NULL, lane.generation, lane.paused_at, lane.paused_until, lane.pause_reason, lane.pause_cause, lane.unpublish_at, coalesce(lane.monthly_limit, 0), lane.next_due, lane.at, h.id IS NOT NULL, h.posts,
    ` + headColumns + `
FROM lane LEFT JOIN wrote ON wrote.account = lane.account AND wrote.id = lane.id
LEFT JOIN wrote AS after ON after.account = lane.account AND after.id = lane.then_id
LEFT JOIN LATERAL (SELECT r.*, ` + sqlTold + ` AS told_of,
    (SELECT json_agg(json_build_object('Index', p.idx, 'State', p.state, 'ParentID', p.parent_id, 'PostID', coalesce(p.post_id, ''),
        'MediaIDs', p.media_ids, 'TextHash', encode(p.text_hash, 'base64'), 'SentAt', p.sent_at, 'NotAfter', p.not_after, 'Attempt', p.attempt,
        'DoubtSince', p.doubt_since, 'Checks', p.looks, 'AbsentAt', p.absent_at, 'Media', p.media) ORDER BY p.idx)
     FROM posts AS p WHERE p.account = r.account AND p.request_id = r.id) AS posts
    FROM requests AS r WHERE lane.next AND lane.fresh AND r.account = lane.account AND r.id = lane.head) AS h ON true`

// headColumns are requestColumns of a head that may not be there.
const headColumns = `coalesce(h.account, ''), coalesce(h.id, ''), coalesce(h.seq, 0), coalesce(h.state, ''), coalesce(h.revision, 0), coalesce(h.told_of, 0),
    coalesce(h.event, ''), coalesce(h.reason_code, ''), coalesce(h.reason_detail, ''), h.reason_until, h.hold_until, coalesce(h.holds, 0),
    coalesce(h.attempts, 0), h.began_at, h.accepted_at, h.due_at, h.publish_at, h.expires_at, h.updated_at, h.metadata, h.body, h.digest, coalesce(h.cost_micros, 0), coalesce(h.trace, '')`

// execSteps sends one statement and shares out what it returns. With it goes a second
// one, for the tokens of the lanes whose front is read: one round trip and one transaction.
func (s *Store) execSteps(group []*waitingStep) (err error) {
	ctx, cancel := context.WithTimeout(group[0].ctx, s.patience.call)
	defer cancel()
	batch := &pgx.Batch{}
	s.queueSteps(batch, group)
	return s.pool.SendBatch(ctx, batch).Close()
}

// queueSteps adds the two statements to a batch.
func (s *Store) queueSteps(batch *pgx.Batch, group []*waitingStep) {
	byLane := make(map[string]*waitingStep, len(group))
	var readers []string
	for _, w := range group {
		byLane[w.ask.account] = w
		w.answer, w.err = stepped{}, nil
		if w.ask.next && !w.ask.begins && w.ask.follows == nil {
			readers = append(readers, w.ask.account)
		}
	}
	batch.Queue(sqlStep, s.columns(group)...).Query(func(rows pgx.Rows) error {
		_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) {
			account, out, err := scanStep(row)
			if err == nil {
				byLane[account].answer = out
			}
			return struct{}{}, err
		})
		return err
	})
	if len(readers) > 0 {
		batch.Queue(sqlTokens, readers).Query(func(rows pgx.Rows) error {
			tokens, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (store.SealedToken, error) { return scanToken(row) })
			for i := range tokens {
				byLane[tokens[i].Account].answer.token = &tokens[i]
			}
			return err
		})
	}
}

// lockPatience is how long a statement may wait for lanes that others have locked, as
// PostgreSQL's setting: not long beside other lanes, and else as long as any statement.
func lockPatience(group []*waitingStep) string {
	if group[0].apart {
		return "0"
	}
	return lockedFor
}

// columns turns steps into the arrays of sqlStep. A time that is not given is the
// server's present time.
func (s *Store) columns(group []*waitingStep) []any {
	var (
		accounts, acts, owners, before, ids, dones, states, events []string
		postStates, parents, posts, mediaIDs, toldIDs              []string
		claims                                                     []*string
		at, since, until, wakes                                    []*time.Time
		fences, leases, was, generation, revisions, attempt, told  []int64
		begins                                                     []*int64
		thenIDs, thenParents                                       []*string
		thenWas, thenRevisions, thenBegins                         []*int64
		thenAttempts                                               []*int32
		thenHashes                                                 [][]byte
		holds, attempts, idx                                       []int32
		progress, quiet, next                                      []bool
		hashes                                                     [][]byte
	)
	for _, asked := range group {
		w := &asked.ask
		accounts, acts, fences, owners = append(accounts, w.account), append(acts, string(w.act)), append(fences, w.fence), append(owners, w.owner)
		if s.callersClock {
			at = append(at, instant(w.now))
		} else {
			at = append(at, nil)
		}
		claims, before = append(claims, text(w.claim)), append(before, strings.Join(w.before, " "))
		leases, was = append(leases, w.lease.Microseconds()), append(was, w.revision)
		since, until = append(since, instant(w.pause.Since)), append(until, instant(w.pause.Reason.Until))
		progress, quiet, next = append(progress, w.progress), append(quiet, w.quiet), append(next, w.next)
		generation, wakes = append(generation, w.generation), append(wakes, instant(w.wakeAt))
		row, post, done := w.row, store.PostRecord{}, ""
		if row == nil {
			row = &rules.Row{}
		} else {
			post = row.Posts[w.post]
			if w.begins || row.Status.State.Finished() {
				done = row.ID
			}
		}
		var then struct {
			id, parent            *string
			was, revision, begins *int64
			attempts              *int32
			hash                  []byte
		}
		if f := w.follows; f != nil {
			first := f.Posts[0]
			then.id, then.parent, then.hash = &f.ID, &first.ParentID, first.TextHash
			then.was, then.revision, then.begins = &w.followsWas, &f.Status.Revision, new(w.within.Microseconds())
			then.attempts = new(int32(f.Status.Attempts))
		}
		thenIDs, thenParents, thenHashes = append(thenIDs, then.id), append(thenParents, then.parent), append(thenHashes, then.hash)
		thenWas, thenRevisions, thenBegins = append(thenWas, then.was), append(thenRevisions, then.revision), append(thenBegins, then.begins)
		thenAttempts = append(thenAttempts, then.attempts)
		ids, dones = append(ids, row.ID), append(dones, done)
		toldIDs, told = append(toldIDs, w.told.ID), append(told, w.told.Number)
		states, revisions, events = append(states, string(row.Status.State)), append(revisions, row.Status.Revision), append(events, string(row.Event))
		holds, attempts = append(holds, int32(row.Holds)), append(attempts, int32(row.Status.Attempts))
		idx, postStates, parents = append(idx, int32(post.Index)), append(postStates, string(post.State)), append(parents, post.ParentID)
		list, _ := json.Marshal(append([]string{}, post.MediaIDs...)) // which cannot fail
		posts, mediaIDs, hashes = append(posts, post.PostID), append(mediaIDs, string(list)), append(hashes, post.TextHash)
		attempt = append(attempt, post.Attempt)
		if w.begins {
			begins = append(begins, new(w.within.Microseconds()))
		} else {
			begins = append(begins, nil)
		}
	}
	return []any{
		accounts, acts, at, fences, owners, claims, leases,
		ids, was, since, until, progress, quiet, next, dones,
		generation, wakes,
		states, revisions, events, holds, attempts,
		idx, postStates, parents, posts, mediaIDs, hashes, attempt, begins, before, toldIDs, told,
		thenIDs, thenWas, thenRevisions, thenAttempts, thenParents, thenHashes, thenBegins, lockPatience(group),
	}
}

// text is the array form of a text that may be missing.
func text(t string) *string {
	if t == "" {
		return nil
	}
	return &t
}

func scanStep(row scanner) (account string, out stepped, err error) {
	out.found = true
	var there bool
	var posts []byte
	head := &rules.Row{}
	var reason jetpost.Reason
	st := &head.Status
	pause := &out.laneRow.Pause
	err = row.Scan(&account, &out.fence, &out.lost, &out.released, &out.wrote, &out.latest, &out.read,
		&out.followed, &out.snapshot.Generation, pausedAt{pause}, at{&pause.Reason.Until}, &pause.Reason.Detail, rules.CauseOf{Pause: pause}, at{&out.snapshot.UnpublishAt}, &out.snapshot.MonthlyLimit, at{&out.snapshot.NextDue}, at{&out.at}, &there, &posts,
		&head.Account, &head.ID, &head.Seq, &st.State, &st.Revision, &head.Delivered, &head.Event,
		&reason.Code, &reason.Detail, at{&reason.Until}, at{&head.HoldUntil}, &head.Holds, &st.Attempts, at{&head.BeganAt},
		at{&st.AcceptedAt}, at{&head.DueAt}, at{&st.PublishAt}, at{&st.ExpiresAt}, at{&st.UpdatedAt}, &st.Metadata, &head.Body, &head.Digest, &head.CostMicros, &head.Trace)
	if err != nil {
		return "", stepped{}, err
	}
	out.laneRow.Fence, out.laneRow.Held, out.laneRow.Generation = out.fence, !out.released, out.snapshot.Generation
	out.snapshot.Pause = out.laneRow.Pause
	if !there {
		return account, out, nil
	}
	if reason.Code != "" {
		st.Reason = &reason
	}
	if posts != nil {
		if err := json.Unmarshal(posts, &head.Posts); err != nil {
			return "", stepped{}, err
		}
		for i := range head.Posts {
			toUTC(&head.Posts[i])
		}
	}
	told := head.Told()
	out.head, out.snapshot.Head = head, &told
	return account, out, nil
}

// toUTC gives a post that came as JSON the form of one that came as columns.
func toUTC(p *store.PostRecord) {
	for _, t := range []*time.Time{&p.SentAt, &p.NotAfter, &p.DoubtSince, &p.AbsentAt} {
		*t = t.UTC()
	}
}

// violates reports whether the constraint of that name refused a row.
func violates(err error, constraint string) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.ConstraintName == constraint
}
