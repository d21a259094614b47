package storetest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

func acceptRecord(t *testing.T, b *bundle) {
	in := b.acceptance("full", 2)
	in.Request.PublishAt = b.now.Add(-time.Hour) // past: due now, not before what came first
	in.Request.ExpiresAt = b.now.Add(time.Hour)
	in.Request.Metadata = map[string]string{"campaign": "42"}
	in.Media = [][]store.Media{nil, {{}, {Digest: "d"}}}
	in.Request.Posts[1].Text = "text"
	in.CostMicros, in.Trace = 215_000, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	b.accept(t, in)
	equal(t, "record", b.request(t, "full"), store.Record{
		Key: store.Key{Account: acme, ID: "full"}, Seq: 1, Body: in.Body, Trace: in.Trace, DueAt: b.now, Event: jetpost.EventRequestAccepted,
		Posts: []store.PostRecord{
			{Index: 0, State: jetpost.PostPending, MediaIDs: []string{}, Media: []store.Media{}},
			{Index: 1, State: jetpost.PostPending, MediaIDs: []string{}, Media: []store.Media{{}, {Digest: "d"}}, TextHash: store.TextHash("text")},
		},
		Status: jetpost.RequestStatus{
			CostEstimateUSD: 0.215,
			Account:         acme, ID: "full", Revision: 1, State: jetpost.StateQueued, Total: 2,
			Posts:      []jetpost.PostStatus{{Index: 0, State: jetpost.PostPending}, {Index: 1, State: jetpost.PostPending}},
			AcceptedAt: b.now, UpdatedAt: b.now, PublishAt: in.Request.PublishAt, LateBySeconds: 3600, ExpiresAt: in.Request.ExpiresAt,
			Metadata: in.Request.Metadata,
		},
	})
	_, err := b.st.Request(t.Context(), store.Key{Account: acme, ID: "other"})
	fails(t, "no such request", err, store.ErrNotFound)
	equal(t, "lane is due", b.due(t, b.now), true)
	lane := b.claim(t)
	if snapshot, read := lane.Next(); read {
		equal(t, "trace of the head that comes with a claim", snapshot.Head.Trace, in.Trace)
	}
	equal(t, "trace of the head", b.snapshot(t, lane, b.now).Head.Trace, in.Trace)
}

func acceptIdentity(t *testing.T, b *bundle) {
	b.add(t, "beta")
	same := b.acceptance("1", 1)
	otherBody, otherAccount := same, same
	otherBody.Body, otherBody.Digest = []byte("else"), []byte("else")
	otherSpacing := same
	otherSpacing.Body = []byte(" body of 1 ")
	otherAccount.Request.Account = "beta"
	steps := []struct {
		name string
		in   store.Acceptance
		want store.Decision
	}{
		{"first", same, store.Accepted},
		{"again", same, store.Repeated},
		{"another body", otherBody, store.Conflict},
		{"the same, spelled differently", otherSpacing, store.Repeated},
		{"another account", otherAccount, store.Accepted},
	}
	for _, step := range steps {
		got, err := b.st.Accept(t.Context(), step.in)
		testkit.Must(t, err)
		equal(t, step.name, got, step.want)
	}
	record := b.request(t, "1")
	equal(t, "body", string(record.Body), "body of 1")
	equal(t, "revision", record.Status.Revision, int64(1))
	b.acceptAll(t, "2")
	equal(t, "sequence of the next", b.request(t, "2").Seq, int64(2))

	nobody := same
	nobody.Request.Account = "nobody"
	_, err := b.st.Accept(t.Context(), nobody)
	fails(t, "no such account", err, store.ErrNotFound)
}

func acceptConcurrently(t *testing.T, b *bundle) {
	stores := []store.Store{b.st, b.open(t, b.keys)}
	accepted := atOnce(t, 8, func(i int) (bool, error) {
		decision, err := stores[i%2].Accept(t.Context(), b.acceptance("one", 1))
		if err == nil && decision == store.Conflict {
			err = fmt.Errorf("the same request is a conflict")
		}
		return decision == store.Accepted, err
	})
	equal(t, "times accepted", accepted, 1)
}

// drain publishes everything that is due and returns the order.
func (b *bundle) drain(t *testing.T, lane store.Claim, now time.Time) (order []string) {
	t.Helper()
	for {
		id := b.head(t, lane, now)
		if id == "" {
			return order
		}
		equal(t, "state of the published", b.publish(t, lane, id, 0), jetpost.StatePublished)
		order = append(order, id)
	}
}

func acceptOrder(t *testing.T, b *bundle) {
	for i, shift := range []time.Duration{0, -time.Minute, 0, time.Second, -time.Hour, time.Second} {
		in := b.acceptance(fmt.Sprint(i), 1)
		in.Now = b.now.Add(shift) // another worker's clock
		b.accept(t, in)
		if due := b.request(t, "0").DueAt; b.request(t, in.Request.ID).DueAt.Before(due) {
			t.Errorf("request %d is due before the first", i)
		}
	}
	equal(t, "order", b.drain(t, b.claim(t), b.now.Add(time.Minute)), []string{"0", "1", "2", "3", "4", "5"})
}

func acceptScheduled(t *testing.T, b *bundle) {
	at := b.now.Add(time.Hour)
	in := b.acceptance("later", 1)
	in.Request.PublishAt = at
	in.Now = b.now.Add(time.Second) // by a clock that is ahead
	b.accept(t, in)
	equal(t, "due at", b.state(t, "later", jetpost.StateScheduled, "", jetpost.EventRequestScheduled).DueAt, at)
	equal(t, "lane is due", b.due(t, b.now), false)
	equal(t, "lane is due then", b.due(t, at), true)
	b.acceptAll(t, "now")
	equal(t, "due time of an immediate one behind it", b.request(t, "now").DueAt, b.now)
	after := b.acceptance("after", 1)
	after.Now = at.Add(time.Minute)
	b.accept(t, after)
	equal(t, "lane is due, whatever is due later", b.due(t, b.now), true)

	lane := b.claim(t)
	equal(t, "next due", b.snapshot(t, lane, b.now).NextDue, at)
	equal(t, "order now", b.drain(t, lane, b.now), []string{"now"})
	snapshot := b.snapshot(t, lane, b.now)
	if snapshot.Head != nil {
		t.Errorf("%s is at the head before its time", snapshot.Head.ID)
	}
	equal(t, "order then", b.drain(t, lane, at.Add(time.Hour)), []string{"later", "after"})
	equal(t, "next due at the end", b.snapshot(t, lane, b.now).NextDue, time.Time{})
}

func acceptHeld(t *testing.T, b *bundle) {
	unread := b.acceptance("new", 2)
	unread.Hold = &jetpost.Reason{Code: jetpost.CodeNeedsNewerWorker, Detail: "version 2"}
	unread.Digest = []byte("digest of what could be read")
	b.accept(t, unread)
	record := b.state(t, "new", jetpost.StateHeld, jetpost.CodeNeedsNewerWorker, jetpost.EventRequestHeld)
	encoded, err := json.Marshal(record.Status.Posts)
	testkit.Must(t, err)
	equal(t, "encoded posts", string(encoded), "[]")
	equal(t, "end of the hold", record.HoldUntil, time.Time{})
	again, err := b.st.Accept(t.Context(), unread)
	testkit.Must(t, err)
	equal(t, "the same again", again, store.Repeated)
	b.acceptAll(t, "behind")
	lane := b.claim(t)
	equal(t, "head", b.head(t, lane, b.now), "new")

	read := b.acceptance("new", 2)
	read.Now = b.now.Add(time.Minute)
	read.Request.Metadata = map[string]string{"k": "v"}
	read.CostMicros = 30_000
	b.accept(t, read)
	record = b.state(t, "new", jetpost.StateQueued, "", jetpost.EventRequestResumed)
	equal(t, "posts", len(record.Posts), 2)
	equal(t, "metadata", record.Status.Metadata, read.Request.Metadata)
	equal(t, "cost", record.Status.CostEstimateUSD, 0.03)
	equal(t, "revision", record.Status.Revision, int64(2))
	equal(t, "head after", b.head(t, lane, b.now), "new")
	for _, in := range []store.Acceptance{read, unread} {
		again, err := b.st.Accept(t.Context(), in)
		testkit.Must(t, err)
		equal(t, "the same once more", again, store.Repeated)
	}
}

func refuse(t *testing.T, b *bundle) {
	refusal := func(sequence uint64, stored time.Time) jetpost.Refusal {
		return jetpost.Refusal{
			Account: acme, ID: "x", Code: jetpost.CodeInvalidRequest, Sequence: sequence, Stored: stored,
			Problems: []jetpost.Problem{{Pointer: "/posts", Message: "is missing"}},
		}
	}
	// A new stream counts from one again: that is another place.
	first, second, third := refusal(7, b.now), refusal(8, b.now), refusal(7, b.now.Add(time.Hour))
	for _, r := range []jetpost.Refusal{first, second, third, first} {
		testkit.Must(t, b.st.Refuse(t.Context(), r, []byte("not json")))
	}
	all, err := b.st.Refusals(t.Context(), 10)
	testkit.Must(t, err)
	equal(t, "refusals", all, []jetpost.Refusal{third, second, first})
	latest, err := b.st.Refusals(t.Context(), 1)
	testkit.Must(t, err)
	equal(t, "the latest", latest, all[:1])

	bare := refusal(9, b.now.Add(2*time.Hour))
	bare.Problems = nil
	testkit.Must(t, b.st.Refuse(t.Context(), bare, nil))
	latest, err = b.st.Refusals(t.Context(), 1)
	testkit.Must(t, err)
	encoded, err := json.Marshal(latest[0].Problems)
	testkit.Must(t, err)
	equal(t, "encoded problems if there are none", string(encoded), "[]")
	counts, err := b.st.CountRequests(t.Context())
	testkit.Must(t, err)
	equal(t, "requests", len(counts), 0)
}

func refuseForgets(t *testing.T, b *bundle) {
	const old = rules.MaxForgottenRefusals + 1
	refuseAt := func(sequence int, stored time.Time) {
		testkit.Must(t, b.st.Refuse(t.Context(), jetpost.Refusal{Code: jetpost.CodeInvalidRequest, Sequence: uint64(sequence), Stored: stored}, nil))
	}
	left := func() (sequences []uint64) {
		all, err := b.st.Refusals(t.Context(), 2*old)
		testkit.Must(t, err)
		for _, r := range all {
			sequences = append(sequences, r.Sequence)
		}
		return sequences
	}
	for i := range old {
		refuseAt(i, b.now.Add(time.Duration(i)*time.Microsecond))
	}
	young := b.now.Add(time.Hour)
	refuseAt(old, young)
	equal(t, "refusals before any is old", len(left()), old+1)
	now := young.Add(rules.RefusalRetention) // as old as they may become
	refuseAt(old+1, now)
	equal(t, "refusals after one call", left(), []uint64{old + 1, old, old - 1})
	refuseAt(old+2, now)
	equal(t, "refusals after two", left(), []uint64{old + 2, old + 1, old})
}

func endHolds(t *testing.T, b *bundle) {
	b.acceptAll(t, "a", "b", "c")
	lane := b.claim(t)
	b.conclude(t, lane, "a", jetpost.StateHeld, jetpost.CodeKeyUnavailable, time.Time{})
	b.conclude(t, lane, "b", jetpost.StateHeld, jetpost.CodeKeyUnavailable, b.now.Add(time.Hour))
	b.conclude(t, lane, "c", jetpost.StateHeld, jetpost.CodePoison, time.Time{})
	b.release(t, lane, time.Time{})
	later := b.now.Add(time.Minute)
	n, err := b.st.EndHolds(t.Context(), acme, jetpost.CodeKeyUnavailable, later)
	testkit.Must(t, err)
	equal(t, "holds ended", n, 2)
	for id, want := range map[string]time.Time{"a": later, "b": later, "c": {}} {
		equal(t, "end of the hold of "+id, b.request(t, id).HoldUntil, want)
	}
	equal(t, "lane is due before", b.due(t, b.now), false)
	equal(t, "lane is due", b.due(t, later), true)

	lane = b.claim(t)
	generation := b.snapshot(t, lane, later).Generation
	n, err = b.st.EndHolds(t.Context(), acme, jetpost.CodeAccountReauthRequired, later)
	testkit.Must(t, err)
	equal(t, "holds of another code", n, 0)
	if b.snapshot(t, lane, later).Generation == generation {
		t.Error("nothing was held, and nothing woke: a hold that comes at this moment would miss its end")
	}
}

// holdQueue: what holds the head holds all that wait behind it, and each of them has
// the reason.
func holdQueue(t *testing.T, b *bundle) {
	b.acceptAll(t, "head", "second", "limited", "third")
	later := b.acceptance("later", 1)
	later.Request.PublishAt = b.now.Add(time.Hour)
	b.accept(t, later)
	lane := b.claim(t)
	b.conclude(t, lane, "head", jetpost.StateHeld, jetpost.CodeAccountReauthRequired, time.Time{})
	b.conclude(t, lane, "limited", jetpost.StateHeld, jetpost.CodeRateLimited, b.now.Add(time.Hour))
	reason := jetpost.Reason{Code: jetpost.CodeAccountReauthRequired, Detail: "refused"}
	hold := func(now time.Time) (ids []string) {
		keys, err := b.st.HoldQueue(t.Context(), lane, reason, b.snapshot(t, lane, now).Generation, now)
		testkit.Must(t, err)
		for _, key := range keys {
			ids = append(ids, key.ID)
		}
		return ids
	}
	equal(t, "held", hold(b.now), []string{"second", "third"})
	for _, id := range []string{"second", "third"} {
		record := b.state(t, id, jetpost.StateHeld, jetpost.CodeAccountReauthRequired, jetpost.EventRequestHeld)
		equal(t, "end of the hold of "+id, record.HoldUntil, time.Time{})
	}
	b.state(t, "limited", jetpost.StateHeld, jetpost.CodeRateLimited, jetpost.EventRequestHeld)
	b.state(t, "later", jetpost.StateScheduled, "", jetpost.EventRequestScheduled)
	equal(t, "held again", len(hold(b.now)), 0)
	equal(t, "held once it is due", hold(b.now.Add(2*time.Hour)), []string{"later"})

	n, err := b.st.EndHolds(t.Context(), acme, jetpost.CodeAccountReauthRequired, b.now)
	testkit.Must(t, err)
	equal(t, "holds ended", n, 4)
	// A wake-up after the snapshot ends the hold that rests on it.
	b.acceptAll(t, "new")
	keys, err := b.st.HoldQueue(t.Context(), lane, reason, 0, b.now)
	testkit.Must(t, err)
	equal(t, "held by an old snapshot", len(keys), 1)
	equal(t, "end of its hold", b.request(t, "new").HoldUntil, b.now)
	lane.Fence++
	_, err = b.st.HoldQueue(t.Context(), lane, reason, 0, b.now)
	fails(t, "another fence", err, store.ErrFenced)
}

// fail publishes the first post of a thread and lets the second one fail.
func (b *bundle) fail(t *testing.T, lane store.Claim, id string) {
	t.Helper()
	b.publish(t, lane, id, 0)
	b.begin(t, lane, id, 1)
	b.concludePost(t, lane, id, jetpost.StateFailed, jetpost.CodeRefusedByX, 1, jetpost.PostFailed)
}

func (b *bundle) replay(t *testing.T, id string, now time.Time) store.ReplayResult {
	t.Helper()
	result, err := b.st.Replay(t.Context(), store.Key{Account: acme, ID: id}, now)
	testkit.Must(t, err)
	return result
}

// postStates returns the states of a request's posts.
func postStates(record store.Record) (states []jetpost.PostState) {
	for _, p := range record.Posts {
		states = append(states, p.State)
	}
	return states
}

func replayFailed(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 3))
	b.acceptAll(t, "behind")
	lane := b.claim(t)
	b.fail(t, lane, "thread")
	b.release(t, lane, time.Time{})
	later := b.now.Add(time.Minute)
	equal(t, "replay", b.replay(t, "thread", later), store.ReplayResult{Queued: true, State: jetpost.StateFailed, Left: 2})
	record := b.state(t, "thread", jetpost.StateQueued, "", jetpost.EventRequestResumed)
	equal(t, "posts", postStates(record), []jetpost.PostState{jetpost.PostPosted, jetpost.PostPending, jetpost.PostPending})
	equal(t, "post that is live", record.Posts[0].PostID, postID("thread", 0))
	equal(t, "replay of a queued one", b.replay(t, "thread", later), store.ReplayResult{State: jetpost.StateQueued, Left: 2})
	equal(t, "lane is due", b.due(t, later), true)
	lane = b.claim(t)
	equal(t, "head", b.head(t, lane, later), "behind")
	equal(t, "published", b.publish(t, lane, "behind", 0), jetpost.StatePublished)
	equal(t, "head then", b.head(t, lane, later), "thread")
	b.publish(t, lane, "thread", 1)
	equal(t, "last post", b.publish(t, lane, "thread", 2), jetpost.StatePublished)
}

func replayHeld(t *testing.T, b *bundle) {
	b.acceptAll(t, "poisoned", "behind")
	lane := b.claim(t)
	b.begin(t, lane, "poisoned", 0)
	b.conclude(t, lane, "poisoned", jetpost.StateHeld, jetpost.CodePoison, time.Time{})
	later := b.now.Add(time.Minute)
	equal(t, "replay", b.replay(t, "poisoned", later), store.ReplayResult{Queued: true, State: jetpost.StateHeld, Left: 1})
	record := b.state(t, "poisoned", jetpost.StateQueued, "", jetpost.EventRequestResumed)
	equal(t, "a doubtful post stays so", postStates(record), []jetpost.PostState{jetpost.PostSending})
	equal(t, "it keeps its place", b.head(t, lane, later), "poisoned")
}

// What is found wrong before a post is begun, such as its media, fails the request and
// no post of it.
func replayNeverBegun(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 2))
	b.acceptAll(t, "single")
	lane := b.claim(t)
	b.publish(t, lane, "thread", 0)
	later := b.now.Add(time.Minute)
	for id, posts := range map[string][]jetpost.PostState{
		"single": {jetpost.PostPending}, "thread": {jetpost.PostPosted, jetpost.PostPending},
	} {
		testkit.Must(t, b.st.Conclude(t.Context(), lane, id, store.Outcome{
			State: jetpost.StateFailed, Reason: jetpost.Reason{Code: jetpost.CodeMediaInvalid}, Post: -1, PostState: jetpost.PostFailed, Now: b.now,
		}))
		record := b.state(t, id, jetpost.StateFailed, jetpost.CodeMediaInvalid, jetpost.EventRequestFailed)
		equal(t, "posts of "+id, postStates(record), posts)
		equal(t, "replay of "+id, b.replay(t, id, later), store.ReplayResult{Queued: true, State: jetpost.StateFailed, Left: 1})
		equal(t, "posts of "+id+" after the replay", postStates(b.request(t, id)), posts)
		equal(t, id, b.publish(t, lane, id, len(posts)-1), jetpost.StatePublished)
	}
}

func replayNothing(t *testing.T, b *bundle) {
	b.acceptAll(t, "queued", "published", "cancelled", "unknown")
	lane := b.claim(t)
	b.publish(t, lane, "published", 0)
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "cancelled"}, b.now)
	testkit.Must(t, err)
	b.doubt(t, lane, "unknown", 0)
	for _, state := range []jetpost.State{jetpost.StateQueued, jetpost.StatePublished, jetpost.StateCancelled, jetpost.StateUnknown} {
		left := 1
		if state == jetpost.StatePublished {
			left = 0
		}
		before := b.request(t, string(state))
		equal(t, "replay", b.replay(t, string(state), b.now), store.ReplayResult{State: state, Left: left})
		equal(t, "request", b.request(t, string(state)), before)
	}
	_, err = b.st.Replay(t.Context(), store.Key{Account: acme, ID: "none"}, b.now)
	fails(t, "no such request", err, store.ErrNotFound)
}

func cancel(t *testing.T, b *bundle) {
	b.acceptAll(t, "queued", "held", "unknown", "published", "last")
	lane := b.claim(t)
	b.publish(t, lane, "published", 0)
	b.conclude(t, lane, "held", jetpost.StateHeld, jetpost.CodePoison, time.Time{})
	b.doubt(t, lane, "unknown", 0)
	b.release(t, lane, time.Time{})
	for _, state := range []jetpost.State{jetpost.StateQueued, jetpost.StateHeld, jetpost.StateUnknown} {
		before, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: string(state)}, b.now)
		testkit.Must(t, err)
		equal(t, "state before", before, state)
		b.state(t, string(state), jetpost.StateCancelled, "", jetpost.EventRequestCancelled)
	}
	equal(t, "lane is due", b.due(t, b.now), true)
	equal(t, "head", b.head(t, b.claim(t), b.now), "last")
	for _, id := range []string{"queued", "published"} {
		_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: id}, b.now)
		fails(t, "a finished one", err, store.ErrNotRunnable)
	}
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "none"}, b.now)
	fails(t, "no such request", err, store.ErrNotFound)
}

func cancelWhilePublishing(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 2))
	lane := b.claim(t)
	b.begin(t, lane, "thread", 0)
	before, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "thread"}, b.now)
	testkit.Must(t, err)
	equal(t, "state before", before, jetpost.StatePublishing)
	revision := b.request(t, "thread").Status.Revision
	equal(t, "state after the post", b.posted(t, lane, "thread", 0, "p0"), jetpost.StateCancelled)
	record := b.state(t, "thread", jetpost.StateCancelled, "", jetpost.EventRequestCancelled)
	equal(t, "post on its way", record.Status.Posts[0].PostID, "p0")
	if record.Status.Revision <= revision {
		t.Error("the post is no new revision, so nobody would be told")
	}
	fails(t, "next post", b.st.Begin(t.Context(), lane, "thread", b.intent(1)), store.ErrNotRunnable)
}

func resolve(t *testing.T, b *bundle) {
	settle := func(id, postID string) jetpost.State {
		state, err := b.st.Resolve(t.Context(), store.Key{Account: acme, ID: id}, postID, b.now)
		testkit.Must(t, err)
		return state
	}
	b.accept(t, b.acceptance("thread", 2))
	lane := b.claim(t)
	b.doubt(t, lane, "thread", 0)
	b.release(t, lane, time.Time{})
	equal(t, "not live", settle("thread", ""), jetpost.StateQueued)
	record := b.state(t, "thread", jetpost.StateQueued, "", jetpost.EventRequestResumed)
	equal(t, "posts", postStates(record), []jetpost.PostState{jetpost.PostPending, jetpost.PostPending})
	equal(t, "lane is due", b.due(t, b.now), true)
	_, err := b.st.Resolve(t.Context(), store.Key{Account: acme, ID: "thread"}, "", b.now)
	fails(t, "nothing doubtful", err, store.ErrNotRunnable)

	lane = b.claim(t)
	b.doubt(t, lane, "thread", 0)
	equal(t, "live", settle("thread", "p0"), jetpost.StateQueued)
	b.doubt(t, lane, "thread", 1)
	_, err = b.st.Resolve(t.Context(), store.Key{Account: acme, ID: "thread"}, "p0", b.now)
	fails(t, "a post that is recorded already", err, store.ErrPostTaken)
	equal(t, "the last is live", settle("thread", "p1"), jetpost.StatePublished)
	record = b.state(t, "thread", jetpost.StatePublished, "", jetpost.EventRequestPublished)
	equal(t, "posted", record.Status.Posted, 2)
	_, err = b.st.Resolve(t.Context(), store.Key{Account: acme, ID: "none"}, "", b.now)
	fails(t, "no such request", err, store.ErrNotFound)
}

// reconcile: what a lane knows of a doubtful post is stored until somebody asks for new
// checks.
func reconcile(t *testing.T, b *bundle) {
	key := store.Key{Account: acme, ID: "thread"}
	b.accept(t, b.acceptance("thread", 2))
	lane := b.claim(t)
	b.begin(t, lane, "thread", 0)
	first := b.request(t, "thread").Posts[0].SentAt
	absent := b.now.Add(time.Minute)
	until := b.now.Add(time.Hour)
	doubtful := func(checks int, absentAt time.Time) {
		t.Helper()
		testkit.Must(t, b.st.Conclude(t.Context(), lane, "thread", store.Outcome{
			State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeReconciling, Until: until},
			PostState: jetpost.PostSending, Checks: checks, AbsentAt: absentAt, Now: b.now,
		}))
	}
	want := func(state jetpost.PostState, checks int, absentAt time.Time) {
		t.Helper()
		p := b.request(t, "thread").Posts[0]
		equal(t, "state", p.State, state)
		equal(t, "checks", p.Checks, checks)
		equal(t, "absent at", p.AbsentAt.Equal(absentAt), true)
		equal(t, "in doubt since the first intent", p.DoubtSince.Equal(first), true)
	}
	doubtful(0, time.Time{})
	want(jetpost.PostSending, 0, time.Time{})
	doubtful(1, absent)
	want(jetpost.PostSending, 1, absent)

	snapshot, err := b.st.Snapshot(t.Context(), lane, b.now)
	testkit.Must(t, err)
	testkit.Must(t, b.st.Reconcile(t.Context(), key, b.now))
	want(jetpost.PostSending, 0, time.Time{})
	b.state(t, "thread", jetpost.StateHeld, jetpost.CodeReconciling, jetpost.EventRequestHeld)
	equal(t, "hold is over", b.request(t, "thread").HoldUntil.After(b.now), false)
	free, err := b.st.ReleaseLane(t.Context(), lane, snapshot.Generation, time.Time{}, b.now)
	testkit.Must(t, err)
	equal(t, "the lane goes free though it woke", free, false)

	// It is not on X and is sent again. A new doubt is about both intents.
	testkit.Must(t, b.st.Conclude(t.Context(), lane, "thread", store.Outcome{
		State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeReconciling, Until: b.now}, PostState: jetpost.PostPending, Checks: 2, Now: b.now,
	}))
	want(jetpost.PostPending, 2, time.Time{})
	b.now = b.now.Add(time.Minute)
	b.begin(t, lane, "thread", 0)
	doubtful(2, time.Time{})
	want(jetpost.PostSending, 2, time.Time{})
	b.posted(t, lane, "thread", 0, "p0")
	fails(t, "nothing is in doubt", b.st.Reconcile(t.Context(), key, b.now), store.ErrNotRunnable)
	fails(t, "no such request", b.st.Reconcile(t.Context(), store.Key{Account: acme, ID: "none"}, b.now), store.ErrNotFound)
}

// anchor: the latest post of the account that is known to be live, and which posts are
// ours.
func anchor(t *testing.T, b *bundle) {
	read := func() store.Anchor {
		t.Helper()
		w, err := b.st.Anchor(t.Context(), acme)
		testkit.Must(t, err)
		return w
	}
	none := read()
	equal(t, "X user is known", none.XUserID != "", true)
	equal(t, "no post yet", none.PostID, "")
	b.acceptAll(t, "one", "two")
	lane := b.claim(t)
	for i, id := range []string{"one", "two"} {
		b.now = b.now.Add(time.Minute)
		b.begin(t, lane, id, 0)
		b.posted(t, lane, id, 0, fmt.Sprint("p", i))
		w := read()
		equal(t, "latest", w.PostID, fmt.Sprint("p", i))
		equal(t, "sent at", w.SentAt.Equal(b.request(t, id).Posts[0].SentAt), true)
	}
	owned, err := b.st.Owned(t.Context(), []string{"p1", "foreign", "p0"})
	testkit.Must(t, err)
	slices.Sort(owned)
	equal(t, "owned", fmt.Sprint(owned), "[p0 p1]")
	owned, err = b.st.Owned(t.Context(), nil)
	testkit.Must(t, err)
	equal(t, "owned of none", len(owned), 0)
	_, err = b.st.Anchor(t.Context(), "nobody")
	fails(t, "no such account", err, store.ErrNotFound)
}

func listRequests(t *testing.T, b *bundle) {
	b.add(t, "beta")
	for i, id := range []string{"a", "b", "c"} {
		in := b.acceptance(id, 1)
		in.Now = b.now.Add(time.Duration(i) * time.Minute)
		b.accept(t, in)
	}
	other := b.acceptance("a", 1)
	other.Request.Account, other.Now = "beta", b.now.Add(time.Hour)
	b.accept(t, other)
	b.conclude(t, b.claim(t), "b", jetpost.StateHeld, jetpost.CodePoison, time.Time{})

	filters := []struct {
		name   string
		filter store.Filter
		want   []string
	}{
		{"account", store.Filter{Account: acme}, []string{"acme/c", "acme/b", "acme/a"}},
		{"all", store.Filter{}, []string{"beta/a", "acme/c", "acme/b", "acme/a"}},
		{"code", store.Filter{Code: jetpost.CodePoison}, []string{"acme/b"}},
		{"id", store.Filter{ID: "a"}, []string{"beta/a", "acme/a"}},
		{"limit", store.Filter{Limit: 2}, []string{"beta/a", "acme/c"}},
		{"nothing", store.Filter{Account: "nobody"}, nil},
		{"since", store.Filter{Since: b.now.Add(time.Minute)}, []string{"beta/a", "acme/c", "acme/b"}},
		{"state", store.Filter{State: jetpost.StateQueued, Account: acme}, []string{"acme/c", "acme/a"}},
	}
	for _, f := range filters {
		records, err := b.st.ListRequests(t.Context(), f.filter)
		testkit.Must(t, err)
		var got []string
		for _, r := range records {
			got = append(got, r.Account+"/"+r.ID)
		}
		equal(t, f.name, got, f.want)
	}
	records, err := b.st.ListRequests(t.Context(), store.Filter{Account: acme, ID: "b"})
	testkit.Must(t, err)
	equal(t, "a listed record", records[0], b.request(t, "b"))
	counts, err := b.st.CountRequests(t.Context())
	testkit.Must(t, err)
	equal(t, "counts", counts, map[jetpost.State]int{jetpost.StateQueued: 3, jetpost.StateHeld: 1})
	counts, err = b.st.CountAccountRequests(t.Context(), "beta")
	testkit.Must(t, err)
	equal(t, "counts of one account", counts, map[jetpost.State]int{jetpost.StateQueued: 1})
}

func waiting(t *testing.T, b *bundle) {
	b.add(t, "beta")
	equal(t, "waiting of nothing", len(b.waiting(t, 10)), 0)
	b.acceptAll(t, "done", "begun", "held", "next")
	late := b.acceptance("late", 1)
	late.Request.PublishAt = b.now.Add(time.Hour)
	b.accept(t, late)
	thread := b.acceptance("thread", 3)
	thread.Request.Account, thread.Request.ExpiresAt = "beta", b.now.Add(time.Minute)
	b.accept(t, thread)

	lane := b.claim(t)
	b.publish(t, lane, "done", 0)
	b.begin(t, lane, "begun", 0)
	until := b.now.Add(time.Second)
	b.conclude(t, lane, "held", jetpost.StateHeld, jetpost.CodeXUnavailable, until)

	want := []string{
		"acme/begun publishing, begun true, 0 of 1 live",
		"acme/held held x_unavailable, begun false, 0 of 1 live",
		"acme/next queued, begun false, 0 of 1 live",
		"acme/late scheduled, begun false, 0 of 1 live",
		"beta/thread queued, begun false, 0 of 3 live",
	}
	for _, page := range []int{1, 2, 10} {
		list := b.waiting(t, page)
		var got []string
		for _, w := range list {
			state := strings.TrimSpace(fmt.Sprintf("%s %s", w.State, w.Code))
			got = append(got, fmt.Sprintf("%s/%s %s, begun %t, %d of %d live", w.Account, w.ID, state, w.Begun, w.Live, w.Posts))
		}
		equal(t, fmt.Sprintf("waiting in pages of %d", page), got, want)
		equal(t, "due", list[3].DueAt.Equal(late.Request.PublishAt), true)
		equal(t, "held until", list[1].HoldUntil.Equal(until), true)
		equal(t, "held, if not", list[2].HoldUntil.IsZero(), true)
		equal(t, "expires", list[4].ExpiresAt.Equal(thread.Request.ExpiresAt), true)
	}

	other, _, err := b.st.ClaimLane(t.Context(), "beta", "worker", longLease, b.now)
	testkit.Must(t, err)
	testkit.Must(t, b.st.Begin(t.Context(), other, "thread", b.intent(0)))
	_, err = b.st.Posted(t.Context(), other, "thread", store.LivePost{PostID: "p-thread", Now: b.now})
	testkit.Must(t, err)
	equal(t, "live posts of a thread", b.waiting(t, 10)[4].Live, 1)
}

// waiting reads the unfinished requests of all accounts, page by page.
func (b *bundle) waiting(t *testing.T, page int) (all []store.Waiting) {
	t.Helper()
	var last store.Waiting
	for {
		found, err := b.st.Waiting(t.Context(), last, page)
		testkit.Must(t, err)
		if len(found) == 0 {
			return all
		}
		all = append(all, found...)
		last = found[len(found)-1]
	}
}

func outboxPending(t *testing.T, b *bundle) {
	later := b.now.Add(time.Minute)
	list := func(before time.Time, limit int) (ids []string) {
		keys, err := b.st.OutboxPending(t.Context(), before, limit)
		testkit.Must(t, err)
		for _, key := range keys {
			ids = append(ids, key.ID)
		}
		return ids
	}
	mark := func(id string, revision int64) bool {
		latest, err := b.st.MarkDelivered(t.Context(), store.Key{Account: acme, ID: id}, revision)
		testkit.Must(t, err)
		return latest
	}
	b.acceptAll(t, "a")
	in := b.acceptance("b", 1)
	in.Now = b.now.Add(time.Second)
	b.accept(t, in)
	equal(t, "too young", len(list(b.now, 10)), 0)
	equal(t, "pending", list(later, 10), []string{"a", "b"})
	equal(t, "limit", list(later, 1), []string{"a"})
	equal(t, "the latest revision", mark("a", 1), true)
	equal(t, "delivered", b.request(t, "a").Delivered, int64(1))
	equal(t, "pending then", list(later, 10), []string{"b"})

	b.conclude(t, b.claim(t), "b", jetpost.StateHeld, jetpost.CodePoison, time.Time{})
	equal(t, "it moved on", mark("b", 1), false)
	equal(t, "still pending", list(later, 10), []string{"b"})
	equal(t, "the newer one", mark("b", 2), true)
	equal(t, "an older one marked late", mark("b", 1), false)
	equal(t, "pending at the end", len(list(later, 10)), 0)
}

// texts is an acceptance of an account's thread, which refuses the text of another's.
func (b *bundle) texts(account, id string, texts ...string) store.Acceptance {
	in := b.acceptance(id, len(texts))
	in.Request.Account = account
	for i, text := range texts {
		in.Request.Posts[i].Text = text
	}
	in.RefuseSameText = true
	return in
}

// sameText: a text of another account counts if its post is live, may be live or is
// still to be sent, less than a day before or after.
func sameText(t *testing.T, b *bundle) {
	b.add(t, "beta")
	const day = rules.SameTextWithin
	asked := func(account, text string, due time.Duration) string {
		in := b.texts(account, "new", "", "else "+text, text)
		in.Request.PublishAt = b.now.Add(due)
		key, found, err := b.st.SameText(t.Context(), store.TextsOf(in.Request, b.now))
		testkit.Must(t, err)
		equal(t, "found", found, key != store.Key{})
		return key.ID
	}
	later := b.texts(acme, "later", "later")
	later.Request.PublishAt = b.now.Add(2 * day)
	b.accept(t, later)
	for _, id := range []string{"live", "late", "doubt", "waits", "failed", "cancelled", ""} {
		b.accept(t, b.texts(acme, "of "+id, id))
	}
	lane := b.claim(t)
	begin := func(text string, now time.Time) {
		intent := b.intent(0)
		intent.Now, intent.TextHash = now, store.TextHash(text)
		testkit.Must(t, b.st.Begin(t.Context(), lane, "of "+text, intent))
	}
	begin("live", b.now)
	b.posted(t, lane, "of live", 0, "1")
	begin("late", b.now.Add(2*day))
	b.posted(t, lane, "of late", 0, "2")
	begin("doubt", b.now)
	begin("failed", b.now)
	b.concludePost(t, lane, "of failed", jetpost.StateFailed, jetpost.CodeRefusedByX, 0, jetpost.PostFailed)
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "of cancelled"}, b.now)
	testkit.Must(t, err)
	for _, q := range []struct {
		name, account, text string
		due                 time.Duration
		want                string
	}{
		{"cancelled", "beta", "cancelled", 0, ""},
		{"doubt", "beta", "doubt", 0, "of doubt"},
		{"failed", "beta", "failed", 0, ""},
		{"live", "beta", "live", day - time.Second, "of live"},
		{"live, and asked for a day after", "beta", "live", day, ""},
		{"live since the day after tomorrow, and asked for now", "beta", "late", 0, ""},
		{"live since the day after tomorrow", "beta", "late", 3*day - time.Second, "of late"},
		{"none", "beta", "", 0, ""},
		{"of one's own", acme, "waits", 0, ""},
		{"of one's own, live", acme, "live", 0, ""},
		{"of nobody", "beta", "new", 0, ""},
		{"later, and asked for now", "beta", "later", 0, ""},
		{"later, and asked for a day before", "beta", "later", day, ""},
		{"later, and asked for less than a day before", "beta", "later", day + time.Second, "later"},
		{"later, and asked for less than a day after", "beta", "later", 3*day - time.Second, "later"},
		{"later, and asked for a day after", "beta", "later", 3 * day, ""},
		{"waits", "beta", "waits", -time.Hour, "of waits"},
		{"waits, and asked for tomorrow", "beta", "waits", day - time.Minute, "of waits"},
	} {
		equal(t, q.name, asked(q.account, q.text, q.due), q.want)
	}
	twin := b.texts("beta", "twin", "mine", "waits")
	b.accept(t, twin)
	record, err := b.st.Request(t.Context(), store.Key{Account: "beta", ID: "twin"})
	testkit.Must(t, err)
	equal(t, "reason", record.Status.Reason, &jetpost.Reason{
		Code: jetpost.CodeSameText, Detail: "a request of another account has a post of the same text within a day",
	})
	equal(t, "state and event", fmt.Sprint(record.Status.State, record.Event, record.Status.Revision), fmt.Sprint(jetpost.StateFailed, jetpost.EventRequestFailed, 1))
	equal(t, "what was refused is nobody's twin", asked(acme, "mine", 0), "")
	twin.RefuseSameText = false
	twin.Request.ID = "allowed"
	b.accept(t, twin)
	record, err = b.st.Request(t.Context(), store.Key{Account: "beta", ID: "allowed"})
	testkit.Must(t, err)
	equal(t, "state where it is allowed", record.Status.State, jetpost.StateQueued)
}

// sameTextConcurrently: if accounts send one thread at once, one of them posts it.
func sameTextConcurrently(t *testing.T, b *bundle) {
	const accounts, rounds = 6, 20
	stores := []store.Store{b.st, b.open(t, b.keys)}
	for i := range accounts {
		b.add(t, fmt.Sprint("a", i))
	}
	for round := range rounds {
		id := fmt.Sprint(round)
		queued := atOnce(t, accounts, func(i int) (bool, error) {
			texts := []string{"one " + id, "two " + id, "three " + id}
			slices.Reverse(texts[:1+i%3]) // in any order
			in := b.texts(fmt.Sprint("a", i), id, texts...)
			if _, err := stores[i%2].Accept(t.Context(), in); err != nil {
				return false, err
			}
			record, err := b.st.Request(t.Context(), store.Key{Account: in.Request.Account, ID: id})
			return record.Status.State == jetpost.StateQueued, err
		})
		equal(t, "requests that go on in round "+id, queued, 1)
	}
}

func sameTextReadAtLast(t *testing.T, b *bundle) {
	b.add(t, "beta")
	b.accept(t, b.texts("beta", "first", "same"))
	read := b.texts(acme, "new", "same")
	unread := read
	unread.Hold = &jetpost.Reason{Code: jetpost.CodeNeedsNewerWorker}
	unread.Request.Posts = nil
	b.accept(t, unread)
	b.accept(t, read)
	b.state(t, "new", jetpost.StateFailed, jetpost.CodeSameText, jetpost.EventRequestFailed)
}

func (b *bundle) reschedule(t *testing.T, id string, at, now time.Time) {
	t.Helper()
	_, err := b.st.Reschedule(t.Context(), store.Key{Account: acme, ID: id}, at, now)
	testkit.Must(t, err)
}

// reschedule: a request that waits goes out at its new time and lets those behind it go
// first.
func reschedule(t *testing.T, b *bundle) {
	b.acceptAll(t, "queued", "held", "behind")
	lane := b.claim(t)
	// X made nothing of it: it has begun, and nothing was sent.
	b.begin(t, lane, "held", 0)
	b.concludePost(t, lane, "held", jetpost.StateHeld, jetpost.CodeRateLimited, 0, jetpost.PostPending)
	b.release(t, lane, time.Time{})
	at := b.now.Add(time.Hour)
	for i, id := range []string{"queued", "held"} {
		b.reschedule(t, id, at.Add(time.Duration(-i)*time.Minute), b.now.Add(time.Second))
		record := b.state(t, id, jetpost.StateScheduled, "", jetpost.EventRequestScheduled)
		equal(t, "publish at", record.Status.PublishAt, at.Add(time.Duration(-i)*time.Minute))
		equal(t, "due at", record.DueAt, record.Status.PublishAt)
		equal(t, "holds", record.Holds, 0)
	}
	lane = b.claim(t)
	equal(t, "order now", b.drain(t, lane, b.now), []string{"behind"})
	equal(t, "order then", b.drain(t, lane, at), []string{"held", "queued"})
}

func rescheduleEarlier(t *testing.T, b *bundle) {
	for _, id := range []string{"now", "sooner"} {
		in := b.acceptance(id, 1)
		in.Request.PublishAt = b.now.Add(time.Hour)
		in.Request.ExpiresAt = b.now.Add(2 * time.Hour)
		b.accept(t, in)
	}
	equal(t, "lane is due", b.due(t, b.now.Add(time.Minute)), false)
	b.reschedule(t, "sooner", b.now.Add(time.Minute), b.now)
	equal(t, "lane is due at the new time", b.due(t, b.now.Add(time.Minute)), true)
	equal(t, "lane is due before", b.due(t, b.now), false)
	b.reschedule(t, "now", b.now.Add(-time.Hour), b.now)
	record := b.state(t, "now", jetpost.StateQueued, "", jetpost.EventRequestAccepted)
	equal(t, "publish at", record.Status.PublishAt, time.Time{})
	equal(t, "revision", record.Status.Revision, int64(2))
	equal(t, "lane is due now", b.due(t, b.now), true)
	b.acceptAll(t, "after")
	equal(t, "order", b.drain(t, b.claim(t), b.now.Add(time.Minute)), []string{"now", "after", "sooner"})
}

func rescheduleNothing(t *testing.T, b *bundle) {
	expiring := b.acceptance("expiring", 1)
	expiring.Request.ExpiresAt = b.now.Add(time.Hour)
	unread := b.acceptance("unread", 1)
	unread.Hold = &jetpost.Reason{Code: jetpost.CodeNeedsNewerWorker}
	b.accept(t, expiring)
	b.accept(t, unread)
	b.acceptAll(t, "begun", "live", "doubt", "failed", "cancelled")
	b.accept(t, b.acceptance("half", 2))
	lane := b.claim(t)
	b.begin(t, lane, "begun", 0)
	b.publish(t, lane, "live", 0)
	b.publish(t, lane, "half", 0)
	b.conclude(t, lane, "half", jetpost.StateHeld, jetpost.CodeRateLimited, time.Time{})
	b.doubt(t, lane, "doubt", 0)
	b.conclude(t, lane, "failed", jetpost.StateFailed, jetpost.CodeMediaInvalid, time.Time{})
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "cancelled"}, b.now)
	testkit.Must(t, err)
	for id, want := range map[string]jetpost.State{
		"begun": jetpost.StatePublishing, "live": jetpost.StatePublished, "half": jetpost.StateHeld, "doubt": jetpost.StateUnknown,
		"failed": jetpost.StateFailed, "cancelled": jetpost.StateCancelled, "unread": jetpost.StateHeld,
	} {
		before := b.request(t, id)
		state, err := b.st.Reschedule(t.Context(), store.Key{Account: acme, ID: id}, b.now.Add(time.Minute), b.now)
		fails(t, id, err, store.ErrNotRunnable)
		equal(t, "state of "+id, state, want)
		equal(t, id, b.request(t, id), before)
	}
	for _, at := range []time.Duration{time.Hour, 2 * time.Hour} {
		_, err := b.st.Reschedule(t.Context(), store.Key{Account: acme, ID: "expiring"}, b.now.Add(at), b.now)
		fails(t, "past its end", err, store.ErrExpired)
	}
	_, err = b.st.Reschedule(t.Context(), store.Key{Account: acme, ID: "expiring"}, b.now, b.now.Add(time.Hour))
	fails(t, "now, past its end", err, store.ErrExpired)
	b.reschedule(t, "expiring", b.now.Add(time.Hour-time.Microsecond), b.now)
	_, err = b.st.Reschedule(t.Context(), store.Key{Account: acme, ID: "nowhere"}, b.now, b.now)
	fails(t, "no such request", err, store.ErrNotFound)
}

// rescheduleWhileWorkedOn: a worker that has seen the request at the front and uploads
// its media does not send it now, and what it found does not count.
func rescheduleWhileWorkedOn(t *testing.T, b *bundle) {
	b.acceptAll(t, "one")
	lane := b.claim(t)
	equal(t, "head", b.head(t, lane, b.now), "one")
	at := b.now.Add(time.Hour)
	b.reschedule(t, "one", at, b.now)
	fails(t, "begin", b.st.Begin(t.Context(), lane, "one", b.intent(0)), store.ErrNotRunnable)
	testkit.Must(t, b.st.Conclude(t.Context(), lane, "one", store.Outcome{
		State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeMediaUnavailable, Until: b.now}, Post: -1, Now: b.now,
	}))
	b.state(t, "one", jetpost.StateScheduled, "", jetpost.EventRequestScheduled)
	equal(t, "head then", b.head(t, lane, b.now), "")
	equal(t, "what is published in time", b.drain(t, lane, at), []string{"one"})
}
