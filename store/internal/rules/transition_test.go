package rules_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

// Each post of a row is written as one letter.
var postStates = map[rune]jetpost.PostState{
	'p': jetpost.PostPending, 's': jetpost.PostSending, 'l': jetpost.PostPosted, 'f': jetpost.PostFailed,
}

const (
	fence      = 7 // of the claim that every rule gets
	generation = 3 // of the lane's row, and of the snapshot that outcomes rest on
	before     = 5 // revision
)

var (
	start   = time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC) // of acceptance
	now     = start.Add(time.Hour)
	until   = now.Add(time.Hour)
	claim   = store.Claim{Account: "acme", Fence: fence}
	laneRow = rules.LaneRow{Fence: fence, Held: true, Generation: generation, NextSeq: 4, LastDue: start}
	taken   = rules.LaneRow{Fence: fence + 1, Held: true, Generation: generation}
)

// row is a request whose latest event is published. What has posts that were
// sent has begun, by the claim of this fence; what waits says why.
func row(state jetpost.State, posts string) *rules.Row {
	r := &rules.Row{Record: store.Record{
		Key: store.Key{Account: "acme", ID: "x"}, Body: []byte("body"), DueAt: start, Delivered: before, Event: "before",
		Status: jetpost.RequestStatus{State: state, Revision: before, Attempts: 2, AcceptedAt: start},
	}, Digest: []byte("digest")}
	switch state {
	case jetpost.StateHeld:
		r.Status.Reason = &jetpost.Reason{Code: jetpost.CodeRateLimited, Until: until}
		r.HoldUntil, r.Holds = until, 1
	case jetpost.StateFailed, jetpost.StateUnknown:
		r.Status.Reason = &jetpost.Reason{Code: jetpost.CodeRefusedByX}
	}
	for i, letter := range posts {
		p := store.PostRecord{Index: i, State: postStates[letter]}
		if letter != 'p' {
			p.Attempt, r.BeganAt = fence, start
		}
		if letter == 'l' {
			p.PostID = "live"
		}
		r.Posts = append(r.Posts, p)
	}
	return r
}

// result is what a rule made of a row. Fields that do not matter to most rules
// are checked by the tests that they matter to.
type result struct {
	State    jetpost.State
	Event    jetpost.EventType
	Posts    string
	Revision int64
	Holds    int
	Attempts int
	Change   rules.Change
}

func resultOf(r *rules.Row, change rules.Change) result {
	letters := make(map[jetpost.PostState]rune)
	for letter, state := range postStates {
		letters[state] = letter
	}
	got := result{
		State: r.Status.State, Event: r.Event, Revision: r.Status.Revision, Holds: r.Holds, Attempts: r.Status.Attempts, Change: change,
	}
	for _, p := range r.Posts {
		got.Posts += string(letters[p.State])
	}
	return got
}

type rule func(*rules.Row) (rules.Change, error)

func begin(post int) rule {
	return func(r *rules.Row) (rules.Change, error) {
		return r.Begin(laneRow, claim, store.Intent{Post: post, Now: now, Lease: time.Minute})
	}
}

// beginPaused begins the post that is next, of an account with that pause.
func beginPaused(pause store.Pause) rule {
	return func(r *rules.Row) (rules.Change, error) {
		paused := laneRow
		paused.Pause = pause
		return r.Begin(paused, claim, store.Intent{Post: len(r.Posts) - 1, Now: now})
	}
}

func posted(laneRow rules.LaneRow, post int, postID string) rule {
	return func(r *rules.Row) (rules.Change, error) {
		return r.Posted(laneRow, claim, store.LivePost{Post: post, PostID: postID, Now: now})
	}
}

func conclude(out store.Outcome) rule {
	out.Now = now
	return func(r *rules.Row) (rules.Change, error) { return r.Conclude(laneRow, claim, out) }
}

// concludeLate concludes after another worker has claimed the lane.
func concludeLate(out store.Outcome) rule {
	out.Now = now
	return func(r *rules.Row) (rules.Change, error) { return r.Conclude(taken, claim, out) }
}

func replay(r *rules.Row) (rules.Change, error) {
	_, change := r.Replay(laneRow, now)
	return change, nil
}

func cancel(r *rules.Row) (rules.Change, error) { return r.Cancel(now) }

// expire takes what was due before the given time for late.
func expire(dueBefore time.Time) rule {
	return func(r *rules.Row) (rules.Change, error) { return r.Expire(dueBefore, now) }
}

func reconcile(r *rules.Row) (rules.Change, error) { return r.Reconcile(now) }

func reschedule(at time.Time) rule {
	return func(r *rules.Row) (rules.Change, error) { return r.Reschedule(laneRow, at, now) }
}

func resolve(postID string) rule {
	return func(r *rules.Row) (rules.Change, error) { return r.Resolve(rules.LaneRow{}, postID, now) }
}

// Short names, for the rows of rules.
const (
	cancelled, failed, held, published  = jetpost.StateCancelled, jetpost.StateFailed, jetpost.StateHeld, jetpost.StatePublished
	publishing, queued, unknown         = jetpost.StatePublishing, jetpost.StateQueued, jetpost.StateUnknown
	scheduled, isScheduled, isAccepted  = jetpost.StateScheduled, jetpost.EventRequestScheduled, jetpost.EventRequestAccepted
	isHeld, isFailed, isUnknown         = jetpost.EventRequestHeld, jetpost.EventRequestFailed, jetpost.EventRequestUnknown
	isResumed, isPublished, isCancelled = jetpost.EventRequestResumed, jetpost.EventRequestPublished, jetpost.EventRequestCancelled
	isProgress                          = jetpost.EventRequestProgress
)

var (
	saved = rules.Change{Request: true}
	woken = rules.Change{Request: true, WakeAt: now}
	none  time.Time
)

func of(change rules.Change, posts ...int) rules.Change {
	change.Posts = posts
	return change
}

func quietly(change rules.Change) rules.Change {
	change.Quiet = true
	return change
}

func begun(post int) rules.Change {
	return rules.Change{Request: true, Posts: []int{post}, Lease: time.Minute}
}

func live(post int, wakeAtTime time.Time) rules.Change {
	return rules.Change{Request: true, Posts: []int{post}, Progress: true, WakeAt: wakeAtTime}
}

func outcome(state jetpost.State, code jetpost.Code, end time.Time) store.Outcome {
	return store.Outcome{State: state, Reason: jetpost.Reason{Code: code, Until: end}, Post: -1, Generation: generation}
}

func about(state jetpost.State, post int, postState jetpost.PostState) store.Outcome {
	return store.Outcome{State: state, Reason: jetpost.Reason{Code: jetpost.CodeXUnavailable}, Post: post, PostState: postState, Generation: generation}
}

type ruleTest struct {
	name string
	row  *rules.Row
	rule rule
	want result
}

// postRules are of the lane that begins a post, and of X's answer that made it.
func postRules() []ruleTest {
	return []ruleTest{
		{"begin queued", row(queued, "pp"), begin(0), result{publishing, "before", "sp", 6, 0, 3, quietly(begun(0))}},
		{"begin the next", row(publishing, "lp"), begin(1), result{publishing, "before", "ls", 6, 0, 3, quietly(begun(1))}},
		{"begin held", row(held, "lp"), begin(1), result{publishing, isResumed, "ls", 6, 1, 3, begun(1)}},

		{"posted, more to come", row(publishing, "sp"), posted(laneRow, 0, "a"), result{publishing, isProgress, "lp", 6, 0, 2, live(0, none)}},
		{"posted, the last", row(publishing, "ls"), posted(laneRow, 1, "a"), result{published, isPublished, "ll", 6, 0, 2, live(1, none)}},
		{"posted while in doubt", row(held, "sp"), posted(laneRow, 0, "a"), result{queued, isResumed, "lp", 6, 0, 2, live(0, now)}},
		{"posted after a takeover", row(queued, "sp"), posted(taken, 0, "a"), result{queued, isProgress, "lp", 6, 0, 2, live(0, now)}},
		{"posted after unknown", row(unknown, "sp"), posted(laneRow, 0, "a"), result{queued, isResumed, "lp", 6, 0, 2, live(0, now)}},
		{"posted after unknown, the last", row(unknown, "s"), posted(laneRow, 0, "a"), result{published, isPublished, "l", 6, 0, 2, live(0, now)}},
		{"posted after cancelled", row(cancelled, "s"), posted(laneRow, 0, "a"), result{cancelled, "before", "l", 6, 0, 2, live(0, none)}},
		{"posted after failed", row(failed, "sp"), posted(laneRow, 0, "a"), result{failed, "before", "lp", 6, 0, 2, live(0, none)}},
		{"posted after failed, the last", row(failed, "f"), posted(laneRow, 0, "a"), result{published, isPublished, "l", 6, 0, 2, live(0, none)}},
		{"posted again", row(publishing, "lp"), posted(laneRow, 0, "live"), result{publishing, "before", "lp", 5, 0, 2, rules.Change{}}},
	}
}

// outcomeRules are of the lane that concludes what became of a request.
func outcomeRules() []ruleTest {
	return []ruleTest{
		{"held", row(queued, "p"), conclude(outcome(held, jetpost.CodePoison, none)), result{held, isHeld, "p", 6, 1, 2, saved}},
		{"held, the same again", row(held, "p"), conclude(outcome(held, jetpost.CodeRateLimited, until.Add(time.Millisecond))), result{held, "before", "p", 5, 1, 2, saved}},
		{"held, longer", row(held, "p"), conclude(outcome(held, jetpost.CodeRateLimited, until.Add(time.Second))), result{held, isHeld, "p", 6, 1, 2, saved}},
		{"held for another reason", row(held, "p"), conclude(outcome(held, jetpost.CodePoison, until)), result{held, isHeld, "p", 6, 2, 2, saved}},
		{"held, not sent", row(publishing, "s"), conclude(about(held, 0, jetpost.PostPending)), result{held, isHeld, "p", 6, 1, 1, of(saved, 0)}},
		{"held, in doubt", row(publishing, "s"), conclude(about(held, 0, jetpost.PostSending)), result{held, isHeld, "s", 6, 1, 2, of(saved, 0)}},
		{"held by a posting limit", row(queued, "p"), conclude(outcome(held, jetpost.CodePostingLimit, until)), result{held, isHeld, "p", 6, 0, 2, saved}},
		{"held by a pause", row(queued, "p"), conclude(outcome(held, jetpost.CodeAccountPaused, none)), result{held, isHeld, "p", 6, 0, 2, saved}},
		{"held, not even begun", row(queued, "p"), conclude(about(held, 0, jetpost.PostPending)), result{held, isHeld, "p", 6, 1, 2, of(saved, 0)}},
		{"failed", row(publishing, "lsp"), conclude(about(failed, 1, jetpost.PostFailed)), result{failed, isFailed, "lfp", 6, 0, 2, of(saved, 1)}},
		{"unknown", row(held, "s"), conclude(about(unknown, 0, jetpost.PostSending)), result{unknown, isUnknown, "s", 6, 1, 2, of(saved, 0)}},
		{"out of date", row(queued, "lp"), conclude(about(unknown, 0, jetpost.PostSending)), result{queued, "before", "lp", 5, 0, 2, rules.Change{}}},
		{"doubted, but known to be unmade", row(held, "p"), conclude(about(unknown, 0, jetpost.PostSending)), result{held, "before", "p", 5, 1, 2, rules.Change{}}},
		{"doubted, but known to be refused", row(failed, "f"), conclude(about(unknown, 0, jetpost.PostSending)), result{failed, "before", "f", 5, 0, 2, rules.Change{}}},
		{"failed after cancelled", row(cancelled, "s"), conclude(about(failed, 0, jetpost.PostFailed)), result{cancelled, "before", "f", 6, 0, 2, of(saved, 0)}},
		{"held after cancelled", row(cancelled, "p"), conclude(outcome(held, jetpost.CodePoison, none)), result{cancelled, "before", "p", 5, 0, 2, saved}},
	}
}

// lateRules are of a lane that another worker has claimed meanwhile.
func lateRules() []ruleTest {
	return []ruleTest{
		{"not made, after a takeover", row(publishing, "ls"), concludeLate(about(held, 1, jetpost.PostPending)), result{publishing, "before", "lp", 5, 0, 1, of(woken, 1)}},
		{"not made, while in doubt", row(held, "s"), concludeLate(about(held, 0, jetpost.PostPending)), result{queued, isResumed, "p", 6, 1, 1, of(woken, 0)}},
		{"not made, after unknown", row(unknown, "s"), concludeLate(about(held, 0, jetpost.PostPending)), result{queued, isResumed, "p", 6, 0, 1, of(woken, 0)}},
		{"not made, after cancelled", row(cancelled, "s"), concludeLate(about(held, 0, jetpost.PostPending)), result{cancelled, "before", "p", 6, 0, 1, of(woken, 0)}},
		{"refused, after a takeover", row(publishing, "s"), concludeLate(about(failed, 0, jetpost.PostFailed)), result{failed, isFailed, "f", 6, 0, 2, of(woken, 0)}},
		{"refused, while held by another", row(held, "s"), concludeLate(about(failed, 0, jetpost.PostFailed)), result{failed, isFailed, "f", 6, 1, 2, of(woken, 0)}},
		{"refused, after unknown", row(unknown, "lsp"), concludeLate(about(failed, 1, jetpost.PostFailed)), result{failed, isFailed, "lfp", 6, 0, 2, of(woken, 1)}},
		{"refused, after cancelled", row(cancelled, "s"), concludeLate(about(failed, 0, jetpost.PostFailed)), result{cancelled, "before", "f", 6, 0, 2, of(woken, 0)}},
	}
}

// operatorRules are of people, and of the clock.
func operatorRules() []ruleTest {
	return []ruleTest{
		{"replay failed", row(failed, "lfp"), replay, result{queued, isResumed, "lpp", 6, 0, 2, of(woken, 1)}},
		{"replay held", row(held, "s"), replay, result{queued, isResumed, "s", 6, 0, 2, woken}},
		{"replay unread", row(held, ""), replay, result{held, "before", "", 5, 1, 2, rules.Change{}}},
		{"replay queued", row(queued, "p"), replay, result{queued, "before", "p", 5, 0, 2, rules.Change{}}},
		{"replay unknown", row(unknown, "s"), replay, result{unknown, "before", "s", 5, 0, 2, rules.Change{}}},

		{"cancel queued", row(queued, "p"), cancel, result{cancelled, isCancelled, "p", 6, 0, 2, woken}},
		{"cancel unknown", row(unknown, "s"), cancel, result{cancelled, isCancelled, "s", 6, 0, 2, woken}},

		{"expire queued", row(queued, "pp"), expire(now), result{failed, isFailed, "pp", 6, 0, 2, saved}},
		{"expire held", row(held, "p"), expire(now), result{failed, isFailed, "p", 6, 1, 2, saved}},
		{"expire scheduled", row(scheduled, "p"), expire(now), result{failed, isFailed, "p", 6, 0, 2, saved}},

		{"reschedule queued", row(queued, "pp"), reschedule(until), result{scheduled, isScheduled, "pp", 6, 0, 2, rules.Change{Request: true, WakeAt: until}}},
		{"reschedule held", row(held, "p"), reschedule(until), result{scheduled, isScheduled, "p", 6, 0, 2, rules.Change{Request: true, WakeAt: until}}},
		{"reschedule to now", row(scheduled, "p"), reschedule(now), result{queued, isAccepted, "p", 6, 0, 2, woken}},

		{"resolve as not live", row(unknown, "ls"), resolve(""), result{queued, isResumed, "lp", 6, 0, 2, of(woken, 1)}},
		{"resolve as live", row(unknown, "sp"), resolve("a"), result{queued, isResumed, "lp", 6, 0, 2, of(woken, 0)}},
		{"resolve a held one", row(held, "ls"), resolve(""), result{queued, isResumed, "lp", 6, 0, 2, of(woken, 1)}},
		{"resolve the last as live", row(unknown, "ls"), resolve("a"), result{published, isPublished, "ll", 6, 0, 2, of(woken, 1)}},
		{"reconcile unknown", row(unknown, "ls"), reconcile, result{held, isHeld, "ls", 6, 0, 2, of(woken, 1)}},
		{"reconcile held", row(held, "s"), reconcile, result{held, isHeld, "s", 6, 0, 2, of(woken, 0)}},
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	for _, test := range slices.Concat(postRules(), outcomeRules(), lateRules(), operatorRules()) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			change, err := test.rule(test.row)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, resultOf(test.row, change)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			// What the tables of every driver insist on.
			state := test.row.Status.State
			if waits := state == held || state == failed || state == unknown; waits != (test.row.Status.Reason != nil) {
				t.Errorf("%s with reason %v", state, test.row.Status.Reason)
			}
			if state != held && !test.row.HoldUntil.IsZero() {
				t.Errorf("%s until %s", state, test.row.HoldUntil)
			}
		})
	}
}

func TestRulesRefuse(t *testing.T) {
	t.Parallel()
	released := laneRow
	released.Held = false
	tests := []struct {
		name string
		row  *rules.Row
		rule rule
		want error
	}{
		{"begin a cancelled one", row(jetpost.StateCancelled, "p"), begin(0), store.ErrNotRunnable},
		{"begin an unknown one", row(jetpost.StateUnknown, "sp"), begin(1), store.ErrNotRunnable},
		{"begin no post of it", row(queued, "p"), begin(1), store.ErrNotRunnable},
		{"begin the second first", row(queued, "pp"), begin(1), store.ErrNotRunnable},
		{"begin twice", row(publishing, "s"), begin(0), store.ErrNotRunnable},
		{"begin after a takeover", row(queued, "p"), func(r *rules.Row) (rules.Change, error) {
			return r.Begin(taken, claim, store.Intent{Now: now})
		}, store.ErrFenced},
		{"begin after the release", row(queued, "p"), func(r *rules.Row) (rules.Change, error) {
			return r.Begin(released, claim, store.Intent{Now: now})
		}, store.ErrFenced},
		{"begin while the account is paused", row(queued, "p"), beginPaused(jetpost.AccountPause(start, time.Time{}, "")), store.ErrNotRunnable},
		{"begin before the end of a pause", row(publishing, "lp"), beginPaused(jetpost.AccountPause(start, now.Add(1), "")), store.ErrNotRunnable},
		{"cancel a published one", row(jetpost.StatePublished, "l"), cancel, store.ErrNotRunnable},
		{"conclude after a takeover, about no post", row(publishing, "s"), concludeLate(store.Outcome{
			State: jetpost.StateFailed, Post: -1, PostState: jetpost.PostFailed,
		}), store.ErrFenced},
		{"conclude after a takeover, in doubt", row(publishing, "s"), concludeLate(store.Outcome{
			State: jetpost.StateUnknown, PostState: jetpost.PostSending,
		}), store.ErrFenced},
		{"conclude after a takeover, about a post that is sent no more", row(publishing, "lp"), concludeLate(store.Outcome{
			State: jetpost.StateFailed, PostState: jetpost.PostFailed,
		}), store.ErrFenced},
		{"conclude after a takeover, about another's intent", row(publishing, "s"), func(r *rules.Row) (rules.Change, error) {
			return r.Conclude(taken, store.Claim{Fence: fence - 1}, store.Outcome{State: jetpost.StateFailed, PostState: jetpost.PostFailed})
		}, store.ErrFenced},
		{"expire a begun one", row(publishing, "s"), expire(now), store.ErrNotRunnable},
		{"expire a failed one", row(jetpost.StateFailed, "p"), expire(now), store.ErrNotRunnable},
		{"expire a live one", row(jetpost.StateHeld, "lp"), expire(now), store.ErrNotRunnable},
		{"expire an unread one", row(jetpost.StateHeld, ""), expire(now), store.ErrNotRunnable},
		{"expire one in doubt", row(jetpost.StateHeld, "sp"), expire(now), store.ErrNotRunnable},
		{"expire one that is in time", row(queued, "p"), expire(start), store.ErrNotRunnable},
		{"posted by a stranger", row(publishing, "s"), func(r *rules.Row) (rules.Change, error) {
			return r.Posted(taken, store.Claim{Fence: fence - 1}, store.LivePost{PostID: "a", Now: now})
		}, store.ErrFenced},
		{"posted never begun", row(queued, "p"), posted(laneRow, 0, "a"), store.ErrFenced},
		{"posted with another id", row(publishing, "lp"), posted(laneRow, 0, "a"), store.ErrFenced},
		{"posted no post of it", row(publishing, "s"), posted(laneRow, 1, "a"), store.ErrFenced},
		{"reschedule a begun one", row(publishing, "s"), reschedule(until), store.ErrNotRunnable},
		{"reschedule a failed one", row(jetpost.StateFailed, "p"), reschedule(until), store.ErrNotRunnable},
		{"reschedule a live one", row(jetpost.StateHeld, "lp"), reschedule(until), store.ErrNotRunnable},
		{"reschedule an unread one", row(jetpost.StateHeld, ""), reschedule(until), store.ErrNotRunnable},
		{"reschedule one in doubt", row(jetpost.StateHeld, "sp"), reschedule(until), store.ErrNotRunnable},
		{"resolve what is in no doubt", row(publishing, "s"), resolve("a"), store.ErrNotRunnable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			untouched := resultOf(test.row, rules.Change{})
			change, err := test.rule(test.row)
			if !errors.Is(err, test.want) {
				t.Errorf("error is %v, want %v", err, test.want)
			}
			if diff := cmp.Diff(untouched, resultOf(test.row, change)); diff != "" {
				t.Errorf("a refused rule changed the row (-before +after):\n%s", diff)
			}
		})
	}
}

func TestPauseEndsByItself(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		pause store.Pause
		want  bool
	}{
		{"none", store.Pause{}, false},
		{"without an end", jetpost.AccountPause(start, time.Time{}, ""), true},
		{"before its end", jetpost.AccountPause(start, now.Add(1), ""), true},
		{"at its end", jetpost.AccountPause(start, now, ""), false},
	} {
		if got := test.pause.Active(now); got != test.want {
			t.Errorf("%s: active is %t, want %t", test.name, got, test.want)
		}
	}
	if _, err := beginPaused(jetpost.AccountPause(start, now, ""))(row(jetpost.StateQueued, "p")); err != nil {
		t.Errorf("begin at the end of a pause: %v", err)
	}
}

func TestBeginRecordsTheIntent(t *testing.T) {
	t.Parallel()
	r := row(jetpost.StateQueued, "p")
	intent := store.Intent{ParentID: "parent", TextHash: []byte{1}, MediaIDs: []string{"m"}, NotAfter: until, Now: now, Lease: time.Minute}
	if _, err := r.Begin(laneRow, claim, intent); err != nil {
		t.Fatal(err)
	}
	want := store.PostRecord{
		State: jetpost.PostSending, ParentID: "parent", TextHash: []byte{1}, MediaIDs: []string{"m"},
		SentAt: now, NotAfter: until, Attempt: fence,
	}
	if diff := cmp.Diff(want, r.Posts[0]); diff != "" {
		t.Errorf("post (-want +got):\n%s", diff)
	}
	if !r.BeganAt.Equal(now) || !r.Status.UpdatedAt.Equal(now) {
		t.Errorf("began %s and was updated %s, want %s", r.BeganAt, r.Status.UpdatedAt, now)
	}
}

// A begun request needs no event, but it must not hide one that is still pending.
func TestBeginAnnounces(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		state     jetpost.State
		delivered int64
		want      bool // that an event is still to be published
	}{
		{"told", jetpost.StateQueued, before, false},
		{"untold", jetpost.StateQueued, before - 1, true},
		{"end of a hold", jetpost.StateHeld, before, true},
	}
	for _, test := range tests {
		r := row(test.state, "p")
		r.Delivered = test.delivered
		if _, err := begin(0)(r); err != nil {
			t.Fatal(err)
		}
		if got := r.Delivered < r.Status.Revision; got != test.want {
			t.Errorf("%s: an event is to be published: %t, want %t", test.name, got, test.want)
		}
	}
}

func TestHoldEnds(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name       string
		until      time.Time
		generation int64 // of the snapshot
		want       time.Time
	}{
		{"known end", until, generation, until},
		{"known end, and something woke", until, generation - 1, until},
		{"no end", time.Time{}, generation, time.Time{}},
		{"no end, and something woke", time.Time{}, generation - 1, now},
	}
	for _, test := range tests {
		r := row(jetpost.StatePublishing, "p")
		_, err := conclude(store.Outcome{
			State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodePoison, Until: test.until}, Post: -1, Generation: test.generation,
		})(r)
		if err != nil || !r.HoldUntil.Equal(test.want) {
			t.Errorf("%s: held until %s, want %s (%v)", test.name, r.HoldUntil, test.want, err)
		}
	}
}

func TestReplayTakesAPlace(t *testing.T) {
	t.Parallel()
	busy := laneRow
	busy.LastDue = until
	scheduled := row(jetpost.StateFailed, "f")
	scheduled.Status.PublishAt = until.Add(time.Hour)
	tests := []struct {
		name    string
		row     *rules.Row
		laneRow rules.LaneRow
		want    time.Time // when it is due
	}{
		{"failed", row(jetpost.StateFailed, "f"), laneRow, now},
		{"failed, behind what was accepted since", row(jetpost.StateFailed, "f"), busy, until},
		{"failed before its time", scheduled, busy, until.Add(time.Hour)},
		{"held, where it stands", row(jetpost.StateHeld, "f"), busy, start},
	}
	for _, test := range tests {
		failed := test.row.Status.State == jetpost.StateFailed
		result, _ := test.row.Replay(test.laneRow, now)
		if !result.Queued || result.Left != 1 || !test.row.DueAt.Equal(test.want) || test.row.BeganAt.IsZero() != failed {
			t.Errorf("%s: %+v, due %s, began %s, want due %s", test.name, result, test.row.DueAt, test.row.BeganAt, test.want)
		}
	}
}

// What was put off has not begun, even if a worker sent it once and X made nothing.
func TestRescheduleTakesAPlace(t *testing.T) {
	t.Parallel()
	busy := laneRow
	busy.LastDue = until
	for _, test := range []struct {
		name           string
		at, due, wants time.Time
	}{
		{"ahead", until.Add(time.Hour), until.Add(time.Hour), until.Add(time.Hour)},
		{"now, behind what was accepted since", now, until, time.Time{}},
	} {
		r := row(jetpost.StateHeld, "p")
		r.BeganAt, r.Status.PublishAt = start, start
		if _, err := r.Reschedule(busy, test.at, now); err != nil {
			t.Fatal(err)
		}
		if !r.BeganAt.IsZero() || !r.DueAt.Equal(test.due) || !r.Status.PublishAt.Equal(test.wants) {
			t.Errorf("%s: began %s, due %s, publish at %s", test.name, r.BeganAt, r.DueAt, r.Status.PublishAt)
		}
		// A worker that had it at hand writes nothing more before its time.
		early := store.Intent{Now: now, Lease: time.Minute}
		if _, err := r.Begin(laneRow, claim, early); !errors.Is(err, store.ErrNotRunnable) {
			t.Errorf("%s: begin before its time: %v", test.name, err)
		}
		change, err := r.Conclude(laneRow, claim, store.Outcome{State: jetpost.StateFailed, Reason: jetpost.Reason{Code: jetpost.CodeExpired}, Post: -1, Now: now})
		if diff := cmp.Diff(rules.Change{}, change); diff != "" || err != nil || r.Status.State == jetpost.StateFailed {
			t.Errorf("%s: conclude before its time: %v %s", test.name, err, diff)
		}
		early.Now = test.due
		if _, err := r.Begin(laneRow, claim, early); err != nil {
			t.Errorf("%s: begin in time: %v", test.name, err)
		}
	}
}

func acceptance(posts int) store.Acceptance {
	return store.Acceptance{
		Request: jetpost.Request{Account: "acme", ID: "x", Posts: make([]jetpost.Post, posts), Metadata: map[string]string{"k": "v"}},
		Body:    []byte("body"), Digest: []byte("digest"), Now: now,
	}
}

func TestEnter(t *testing.T) {
	t.Parallel()
	hold := jetpost.Reason{Code: jetpost.CodeNeedsNewerWorker, Until: until}
	tests := []struct {
		name               string
		lastDue, publishAt time.Time
		hold               *jetpost.Reason
		state              jetpost.State
		event              jetpost.EventType
		due, lastDueThen   time.Time
	}{
		{"at once", start, time.Time{}, nil, jetpost.StateQueued, jetpost.EventRequestAccepted, now, now},
		{"behind a clock that is ahead", until, time.Time{}, nil, jetpost.StateQueued, jetpost.EventRequestAccepted, until, until},
		{"held", start, time.Time{}, &hold, jetpost.StateHeld, jetpost.EventRequestHeld, now, now},
		{"past", start, start, nil, jetpost.StateQueued, jetpost.EventRequestAccepted, now, now},
		{"scheduled", start, until, nil, jetpost.StateScheduled, jetpost.EventRequestScheduled, until, start},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l, in := laneRow, acceptance(2)
			l.LastDue, in.Request.PublishAt, in.Hold = test.lastDue, test.publishAt, test.hold
			r := l.Enter(in)
			want := &rules.Row{Record: store.Record{
				Key: store.Key{Account: "acme", ID: "x"}, Seq: laneRow.NextSeq, Body: in.Body, DueAt: test.due, Event: test.event,
				Posts: []store.PostRecord{{Index: 0, State: jetpost.PostPending}, {Index: 1, State: jetpost.PostPending}},
				Status: jetpost.RequestStatus{
					State: test.state, Reason: test.hold, Revision: 1, AcceptedAt: now, UpdatedAt: now,
					PublishAt: test.publishAt, Metadata: in.Request.Metadata,
				},
			}, Digest: in.Digest}
			if test.hold != nil {
				want.Posts, want.HoldUntil, want.Holds = nil, until, 1
			}
			if diff := cmp.Diff(want, r); diff != "" {
				t.Errorf("row (-want +got):\n%s", diff)
			}
			if l.NextSeq != laneRow.NextSeq+1 || !l.LastDue.Equal(test.lastDueThen) {
				t.Errorf("lane row is %+v, want the next sequence and %s", l, test.lastDueThen)
			}
		})
	}
}

func TestAcceptAgain(t *testing.T) {
	t.Parallel()
	read, unread := row(jetpost.StateQueued, "p"), row(jetpost.StateHeld, "")
	other, spaced, held := acceptance(1), acceptance(1), acceptance(1)
	other.Body, other.Digest = []byte("else"), []byte("else")
	spaced.Body = []byte(" body ")
	held.Hold, held.Digest = &jetpost.Reason{Code: jetpost.CodeNeedsNewerWorker}, []byte("of what could be read")
	tests := []struct {
		name string
		row  *rules.Row
		in   store.Acceptance
		want store.Decision
	}{
		{"another body", read, other, store.Conflict},
		{"spelled differently", read, spaced, store.Repeated},
		{"the same", read, acceptance(1), store.Repeated},
		{"the same, by a worker that cannot read it", read, held, store.Repeated},
		{"unread, another body", unread, other, store.Conflict},
		{"unread again", unread, held, store.Repeated},
	}
	for _, test := range tests {
		untouched := resultOf(test.row, rules.Change{})
		got, change := test.row.AcceptAgain(test.in)
		if got != test.want {
			t.Errorf("%s: decision is %d, want %d", test.name, got, test.want)
		}
		if diff := cmp.Diff(untouched, resultOf(test.row, change)); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", test.name, diff)
		}
	}

	later := acceptance(2)
	later.Request.PublishAt = until
	got, change := unread.AcceptAgain(later)
	want := result{
		jetpost.StateScheduled, jetpost.EventRequestResumed, "pp", before + 1, 0, 2,
		rules.Change{Request: true, Contents: true, WakeAt: until},
	}
	if diff := cmp.Diff(want, resultOf(unread, change)); diff != "" || got != store.Accepted {
		t.Errorf("read at last: decision is %d (-want +got):\n%s", got, diff)
	}
	if !unread.DueAt.Equal(until) || unread.Status.Metadata["k"] != "v" {
		t.Errorf("read at last: due %s with metadata %v", unread.DueAt, unread.Status.Metadata)
	}
}

func TestTold(t *testing.T) {
	t.Parallel()
	record := row(jetpost.StatePublishing, "ls").Told()
	want := []jetpost.PostStatus{
		{Index: 0, State: jetpost.PostPosted, PostID: "live", URL: jetpost.PostURL("live")},
		{Index: 1, State: jetpost.PostSending},
	}
	if diff := cmp.Diff(want, record.Status.Posts); diff != "" {
		t.Errorf("posts (-want +got):\n%s", diff)
	}
	if st := record.Status; st.Posted != 1 || st.Total != 2 || st.Account != "acme" || st.ID != "x" {
		t.Errorf("status is %+v", st)
	}
	if posts := row(jetpost.StateHeld, "").Told().Status.Posts; posts == nil {
		t.Error("no posts are nil: they would be encoded as null")
	}
}
