package storetest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// pauseAccount: from its commit on no post is begun by any worker. The outcome of a
// post that is being sent is still recorded.
func pauseAccount(t *testing.T, b *bundle) {
	b.add(t, "beta")
	b.accept(t, b.acceptance("thread", 3))
	lane := b.claim(t)
	b.publish(t, lane, "thread", 0)
	b.begin(t, lane, "thread", 1)
	snapshot := b.snapshot(t, lane, b.now)
	equal(t, "pause before", snapshot.Pause, store.Pause{})
	equal(t, "account's before", b.account(t, acme).Pause, store.Pause{})

	pause := jetpost.AccountPause(b.now, b.now.Add(time.Hour), "a word\nof ours")
	testkit.Must(t, b.st.PauseAccount(t.Context(), acme, pause))
	after := b.snapshot(t, lane, b.now)
	equal(t, "pause", after.Pause, pause)
	equal(t, "account's", b.account(t, acme).Pause, pause)
	equal(t, "another account's", b.account(t, "beta").Pause, store.Pause{})
	all, err := b.st.Accounts(t.Context())
	testkit.Must(t, err)
	equal(t, "in the list", all[0].Pause, pause)
	if after.Generation == snapshot.Generation {
		t.Error("the lane did not wake, so its holder continues with its old snapshot")
	}
	equal(t, "post on its way", b.posted(t, lane, "thread", 1, "p1"), jetpost.StatePublishing)
	before := b.request(t, "thread")
	fails(t, "next post", b.st.Begin(t.Context(), lane, "thread", b.intent(2)), store.ErrNotRunnable)
	equal(t, "request", b.request(t, "thread"), before)
	intent := b.intent(2)
	intent.Now = pause.Reason.Until
	testkit.Must(t, b.st.Begin(t.Context(), lane, "thread", intent)) // it has ended by itself
	equal(t, "pause that has ended", b.account(t, acme).Pause, pause)

	fails(t, "no such account", b.st.PauseAccount(t.Context(), "nobody", pause), store.ErrNotFound)
	_, err = b.st.ResumeAccount(t.Context(), "nobody", b.now)
	fails(t, "no such account", err, store.ErrNotFound)
}

// pauseReplaced: a pause holds until the end that was last set, and no longer.
func pauseReplaced(t *testing.T, b *bundle) {
	b.acceptAll(t, "head", "limited")
	lane := b.claim(t)
	long, short := b.now.Add(time.Hour), b.now.Add(time.Minute)
	testkit.Must(t, b.st.PauseAccount(t.Context(), acme, jetpost.AccountPause(b.now, long, "long")))
	b.conclude(t, lane, "head", jetpost.StateHeld, jetpost.CodeAccountPaused, long)
	b.conclude(t, lane, "limited", jetpost.StateHeld, jetpost.CodeRateLimited, long)
	b.release(t, lane, long)
	equal(t, "lane is due before", b.due(t, b.now), false)
	testkit.Must(t, b.st.PauseAccount(t.Context(), acme, jetpost.AccountPause(b.now, short, "")))
	equal(t, "pause", b.account(t, acme).Pause, jetpost.AccountPause(b.now, short, ""))
	equal(t, "the hold for the first one ends", b.request(t, "head").HoldUntil, b.now)
	equal(t, "another hold", b.request(t, "limited").HoldUntil, long)
	equal(t, "lane is due", b.due(t, b.now), true)
}

func resumeAccount(t *testing.T, b *bundle) {
	resume := func() store.Pause {
		before, err := b.st.ResumeAccount(t.Context(), acme, b.now)
		testkit.Must(t, err)
		return before
	}
	equal(t, "pause where there is none", resume(), store.Pause{})
	b.acceptAll(t, "head", "limited")
	lane := b.claim(t)
	pause := jetpost.AccountPause(b.now, time.Time{}, "for now")
	testkit.Must(t, b.st.PauseAccount(t.Context(), acme, pause))
	generation := b.snapshot(t, lane, b.now).Generation
	b.conclude(t, lane, "head", jetpost.StateHeld, jetpost.CodeAccountPaused, time.Time{})
	b.conclude(t, lane, "limited", jetpost.StateHeld, jetpost.CodeRateLimited, b.now.Add(time.Hour))
	b.release(t, lane, time.Time{})
	equal(t, "lane is due before", b.due(t, b.now), false)
	equal(t, "pause", resume(), pause)
	equal(t, "the second time", resume(), store.Pause{})
	equal(t, "account's", b.account(t, acme).Pause, store.Pause{})
	equal(t, "end of the hold", b.request(t, "head").HoldUntil, b.now)
	equal(t, "another hold", b.request(t, "limited").HoldUntil, b.now.Add(time.Hour))
	equal(t, "lane is due", b.due(t, b.now), true)

	// A worker that saw the pause before it ended holds for a moment only.
	lane = b.claim(t)
	testkit.Must(t, b.st.Conclude(t.Context(), lane, "head", store.Outcome{
		State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeAccountPaused}, Post: -1, Generation: generation, Now: b.now,
	}))
	equal(t, "end of a hold by an old snapshot", b.request(t, "head").HoldUntil, b.now)
	equal(t, "what goes out", b.publish(t, lane, "head", 0), jetpost.StatePublished)
}

// blockAccount: what X says pauses the account until X, asked more and more rarely,
// takes its calls; a person's pause stays.
func blockAccount(t *testing.T, b *bundle) {
	b.now = b.now.Truncate(time.Millisecond) // as probes are planned
	b.acceptAll(t, "head", "behind")
	lane := b.claim(t)
	block := func(at time.Time, p func(time.Time) store.Pause) store.Pause {
		t.Helper()
		holds, err := b.st.BlockAccount(t.Context(), lane, p(at), at)
		testkit.Must(t, err)
		equal(t, "the account's", b.account(t, acme).Pause.Reason, holds.Reason)
		equal(t, "the account's next probe", b.account(t, acme).Pause.NextProbeAt, holds.NextProbeAt)
		return holds
	}
	suspended := func(at time.Time) store.Pause {
		return jetpost.BlockedPause(at, jetpost.CodeAccountSuspended, "X's words", time.Hour, 3*time.Hour)
	}
	over := func(time.Time) store.Pause { return store.Pause{} }
	generation := b.snapshot(t, lane, b.now).Generation
	first := block(b.now, suspended)
	equal(t, "code", first.Reason.Code, jetpost.CodeAccountSuspended)
	equal(t, "first probe", first.NextProbeAt, b.now.Add(time.Hour))
	equal(t, "its own lane does not wake", b.snapshot(t, lane, b.now).Generation, generation)
	equal(t, "in a snapshot", b.snapshot(t, lane, b.now).Pause.Wait, time.Hour)
	fails(t, "a post", b.st.Begin(t.Context(), lane, "head", b.intent(0)), store.ErrNotRunnable)
	b.conclude(t, lane, "head", jetpost.StateHeld, jetpost.CodeAccountSuspended, time.Time{})
	second := block(first.NextProbeAt, suspended)
	equal(t, "second probe", second.NextProbeAt, first.NextProbeAt.Add(2*time.Hour))
	third := block(second.NextProbeAt, suspended)
	equal(t, "third probe", third.NextProbeAt, second.NextProbeAt.Add(3*time.Hour))
	equal(t, "since", third.Since, first.Since)

	at := third.NextProbeAt
	ended := block(at, over)
	equal(t, "holds", ended.Active(at), false)
	equal(t, "end of the hold", b.request(t, "head").HoldUntil, at)
	again := block(at.Add(time.Minute), suspended)
	equal(t, "probe after it came back", again.NextProbeAt, at.Add(time.Minute).Add(3*time.Hour))
	before, err := b.st.ResumeAccount(t.Context(), acme, at)
	testkit.Must(t, err)
	equal(t, "what was resumed", before.Reason.Code, jetpost.CodeAccountSuspended)

	byHand := jetpost.AccountPause(b.now, time.Time{}, "a person's")
	testkit.Must(t, b.st.PauseAccount(t.Context(), acme, byHand))
	equal(t, "a person's pause", block(at, suspended), byHand)
	equal(t, "a person's pause", block(at, over), byHand)
	b.release(t, lane, time.Time{})
	_, err = b.st.BlockAccount(t.Context(), lane, suspended(at), at)
	fails(t, "without the lane", err, store.ErrFenced)
}

// pauseSteps are changes of pauses, each some time after the one before.
type pauseSteps struct {
	*bundle
	lane store.Claim
	at   time.Time
}

// pauseChanges: the last change of each account's pause is pending until it is marked.
func pauseChanges(t *testing.T, b *bundle) {
	b.add(t, "beta")
	s := &pauseSteps{bundle: b, lane: b.claim(t), at: b.now}
	s.resume(t)
	s.block(t, "")
	equal(t, "changes without a pause", len(s.untold(t, "")), 0)
	s.tellBlocks(t)
	s.tellPauses(t)
}

func (s *pauseSteps) untold(t *testing.T, account string) (list []string) {
	t.Helper()
	all, err := s.st.PauseChanges(t.Context(), account, 10)
	testkit.Must(t, err)
	for _, change := range all {
		list = append(list, strings.TrimSpace(fmt.Sprint(change.Account, " ", change.Event, " ", change.Reason.Code)))
	}
	return list
}

// tell marks the change of acme.
func (s *pauseSteps) tell(t *testing.T) (change store.PauseChange) {
	t.Helper()
	all, err := s.st.PauseChanges(t.Context(), acme, 10)
	testkit.Must(t, err)
	equal(t, "changes of acme", len(all), 1)
	testkit.Must(t, s.st.MarkPauseChangeTold(t.Context(), all[0]))
	equal(t, "changes once marked", len(s.untold(t, acme)), 0)
	return all[0]
}

// block begins a block of acme or, without a code, ends it.
func (s *pauseSteps) block(t *testing.T, code jetpost.Code) {
	t.Helper()
	s.at = s.at.Add(2 * time.Hour)
	p := store.Pause{}
	if code != "" {
		p = jetpost.BlockedPause(s.at, code, "X's words", time.Hour, time.Hour)
	}
	_, err := s.st.BlockAccount(t.Context(), s.lane, p, s.at)
	testkit.Must(t, err)
}

func (s *pauseSteps) resume(t *testing.T) {
	t.Helper()
	s.at = s.at.Add(time.Second)
	_, err := s.st.ResumeAccount(t.Context(), acme, s.at)
	testkit.Must(t, err)
}

func (s *pauseSteps) pause(t *testing.T, account, words string) jetpost.Pause {
	t.Helper()
	s.at = s.at.Add(time.Second)
	p := jetpost.AccountPause(s.at, s.at.Add(24*time.Hour), words)
	testkit.Must(t, s.st.PauseAccount(t.Context(), account, p))
	return p
}

func (s *pauseSteps) tellBlocks(t *testing.T) {
	t.Helper()
	s.block(t, jetpost.CodeAccountLocked)
	equal(t, "changes by a block", s.untold(t, ""), []string{"acme account.blocked account_locked"})
	blocked := s.tell(t)
	equal(t, "its words", blocked.Reason.Detail, "X's words")
	equal(t, "it has its time", blocked.At.IsZero(), false)
	s.block(t, jetpost.CodeAccountLocked)
	equal(t, "changes if X says it again", len(s.untold(t, "")), 0)
	s.block(t, jetpost.CodeAccountSuspended)
	equal(t, "changes if X says another thing", s.untold(t, ""), []string{"acme account.blocked account_suspended"})
	s.tell(t)
	s.block(t, "")
	equal(t, "changes once it is over", s.untold(t, ""), []string{"acme account.unblocked"})
	unblocked := s.tell(t)
	equal(t, "no reason", unblocked.Reason, jetpost.Reason{})
	s.block(t, "")
	equal(t, "changes after it was over", len(s.untold(t, "")), 0)
}

func (s *pauseSteps) tellPauses(t *testing.T) {
	t.Helper()
	p := s.pause(t, acme, "a word\nof ours")
	equal(t, "changes by a pause", s.untold(t, acme), []string{"acme account.paused account_paused"})
	equal(t, "reason of the pause", s.tell(t).Reason, p.Reason)
	s.pause(t, acme, "another")
	equal(t, "changes by another pause", s.untold(t, acme), []string{"acme account.paused account_paused"})
	old, err := s.st.PauseChanges(t.Context(), acme, 1)
	testkit.Must(t, err)
	s.resume(t)
	s.pause(t, "beta", "")
	both := []string{"acme account.resumed", "beta account.paused account_paused"}
	equal(t, "the last change of each", s.untold(t, ""), both)
	testkit.Must(t, s.st.MarkPauseChangeTold(t.Context(), old[0]))
	equal(t, "the last change of each, after a late mark", s.untold(t, ""), both)
	first, err := s.st.PauseChanges(t.Context(), "", 1)
	testkit.Must(t, err)
	equal(t, "changes up to the limit", len(first), 1)
	s.tell(t)
	equal(t, "changes of another account", s.untold(t, ""), both[1:])
	s.resume(t)
	equal(t, "changes without a pause to end", s.untold(t, ""), both[1:])
}

// refused: refusals that no rule knows count by request, until X takes a post or a
// person resumes the account, and by their words for a while.
func refused(t *testing.T, b *bundle) {
	b.acceptAll(t, "one", "two", "three")
	lane, other := b.claim(t), b.claimOther(t, "other")
	now := b.now
	count := func(what string, lane store.Claim, id, words string, inARow, accounts int) {
		t.Helper()
		n, err := b.st.Refused(t.Context(), lane, id, store.UnruledRefusal{Words: words, Within: time.Minute, Now: now})
		testkit.Must(t, err)
		equal(t, what, n, store.Refusals{InARow: inARow, Accounts: accounts})
	}
	count("the first", lane, "one", "words", 1, 1)
	count("the same again", lane, "one", "words", 1, 1)
	count("another", lane, "two", "other words", 2, 1)
	count("another account's", other, "one", "words", 1, 2)
	now = now.Add(2 * time.Minute)
	count("after a while", lane, "three", "words", 3, 1)

	b.now = now.Add(time.Second)
	b.publish(t, lane, "one", 0)
	now = b.now.Add(time.Second)
	count("after a post", lane, "two", "words", 1, 1)
	_, err := b.st.ResumeAccount(t.Context(), acme, now)
	testkit.Must(t, err)
	count("after a person's word", lane, "three", "words", 1, 1)
	b.release(t, lane, time.Time{})
	_, err = b.st.Refused(t.Context(), lane, "two", store.UnruledRefusal{Words: "words", Within: time.Minute, Now: now})
	fails(t, "without the lane", err, store.ErrFenced)
}

// lateQueues reads the part of acme's queue that was due before now.
func (b *bundle) lateQueues(t *testing.T, account string) []store.LateQueue {
	t.Helper()
	laneRows, err := b.st.Late(t.Context(), account, b.now, store.MaxOpen)
	testkit.Must(t, err)
	return laneRows
}

// fillLate makes a queue of acme that has every kind of request that was due a day ago, and
// returns its lane, which is held all the time.
func (b *bundle) fillLate(t *testing.T, dayAgo time.Time) store.Claim {
	t.Helper()
	accept := func(account, id string, due time.Time, posts int) {
		in := b.acceptance(id, posts)
		in.Request.Account = account
		in.Now = due.Add(-time.Hour)
		in.Request.PublishAt = due
		b.accept(t, in)
	}
	for i, id := range []string{"scheduled", "held", "tried", "sending", "half", "doubt", "done", "cancelled"} {
		accept(acme, id, dayAgo.Add(time.Duration(i)*time.Minute), 2)
	}
	unread := b.acceptance("unread", 1)
	unread.Now, unread.Hold = dayAgo, &jetpost.Reason{Code: jetpost.CodeNeedsNewerWorker}
	b.accept(t, unread)
	accept(acme, "in time", b.now, 1)
	accept(acme, "ahead", b.now.Add(time.Hour), 1)
	accept("beta", "other", dayAgo.Add(-time.Hour), 1)

	lane := b.claim(t)
	b.conclude(t, lane, "held", jetpost.StateHeld, jetpost.CodeAccountReauthRequired, time.Time{})
	b.begin(t, lane, "tried", 0)
	b.concludePost(t, lane, "tried", jetpost.StateHeld, jetpost.CodeRateLimited, 0, jetpost.PostPending)
	b.publish(t, lane, "half", 0)
	b.conclude(t, lane, "half", jetpost.StateHeld, jetpost.CodeRateLimited, time.Time{})
	b.doubt(t, lane, "doubt", 0)
	b.publish(t, lane, "done", 0)
	b.publish(t, lane, "done", 1)
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "cancelled"}, b.now)
	testkit.Must(t, err)
	b.begin(t, lane, "sending", 0)
	return lane
}

// expireLate: requests that were due too long ago and of which nothing was sent fail;
// all others stay.
func expireLate(t *testing.T, b *bundle) {
	b.add(t, "beta")
	b.add(t, "idle")
	dayAgo := b.now.Add(-24 * time.Hour)
	lane := b.fillLate(t, dayAgo)
	want := store.LateQueue{Account: acme, Unsent: 3, Since: dayAgo, Begun: 4}
	other := store.LateQueue{Account: "beta", Unsent: 1, Since: dayAgo.Add(-time.Hour)}
	equal(t, "late", b.lateQueues(t, ""), []store.LateQueue{want, other})
	equal(t, "late of one", b.lateQueues(t, acme), []store.LateQueue{want})
	equal(t, "late of one without any", len(b.lateQueues(t, "idle")), 0)

	before := map[string]store.Record{}
	for _, id := range []string{"sending", "half", "doubt", "done", "cancelled", "unread", "in time", "ahead"} {
		before[id] = b.request(t, id)
	}
	generation := b.snapshot(t, lane, b.now).Generation
	expire := func(limit int) (ids []string) {
		keys, err := b.st.ExpireLate(t.Context(), acme, b.now, limit, b.now.Add(time.Second))
		testkit.Must(t, err)
		for _, key := range keys {
			ids = append(ids, key.ID)
		}
		return ids
	}
	equal(t, "expired first", expire(2), []string{"scheduled", "held"})
	if b.snapshot(t, lane, b.now).Generation == generation {
		t.Error("the lane did not wake, though its head may be gone")
	}
	equal(t, "expired then", expire(2), []string{"tried"})
	generation = b.snapshot(t, lane, b.now).Generation
	equal(t, "expired at last", len(expire(2)), 0)
	equal(t, "wake-ups if nothing expires", b.snapshot(t, lane, b.now).Generation, generation)
	for id, record := range before {
		equal(t, "request "+id, b.request(t, id), record)
	}
	equal(t, "late after that", b.lateQueues(t, ""), []store.LateQueue{{Account: acme, Begun: 4}, other})
	record := b.state(t, "held", jetpost.StateFailed, jetpost.CodeExpired, jetpost.EventRequestFailed)
	equal(t, "posts", postStates(record), []jetpost.PostState{jetpost.PostPending, jetpost.PostPending})
	equal(t, "revision", record.Status.Revision, int64(3))
	untold, err := b.st.OutboxPending(t.Context(), b.now.Add(time.Minute), 100)
	testkit.Must(t, err)
	told := true
	for _, key := range untold {
		told = told && key.ID != "held"
	}
	equal(t, "its event is delivered already", told, false)

	// A replay sends it now: it is no longer late.
	b.replay(t, "held", b.now)
	equal(t, "late after the replay", b.lateQueues(t, acme), []store.LateQueue{{Account: acme, Begun: 4}})
	equal(t, "expired after the replay", len(expire(10)), 0)
	_, err = b.st.ExpireLate(t.Context(), "nobody", b.now, 1, b.now)
	fails(t, "no such account", err, store.ErrNotFound)
}

// expireWhileWorkedOn: a worker that has seen the request at the front and uploads its
// media does not send it, and what it found does not count.
func expireWhileWorkedOn(t *testing.T, b *bundle) {
	b.acceptAll(t, "one", "behind")
	lane := b.claim(t)
	equal(t, "head", b.head(t, lane, b.now), "one")
	keys, err := b.st.ExpireLate(t.Context(), acme, b.now.Add(time.Microsecond), 1, b.now)
	testkit.Must(t, err)
	equal(t, "expired", fmt.Sprint(keys), "[{acme one}]")
	fails(t, "begin", b.st.Begin(t.Context(), lane, "one", b.intent(0)), store.ErrNotRunnable)
	b.conclude(t, lane, "one", jetpost.StateHeld, jetpost.CodeMediaUnavailable, b.now.Add(time.Hour))
	b.state(t, "one", jetpost.StateFailed, jetpost.CodeExpired, jetpost.EventRequestFailed)
	equal(t, "head then", b.head(t, lane, b.now), "behind")
	equal(t, "next", b.publish(t, lane, "behind", 0), jetpost.StatePublished)
}

// expireConcurrently: each request is sent or expires, never both.
func expireConcurrently(t *testing.T, b *bundle) {
	const requests = 24
	stores := []store.Store{b.st, b.open(t, b.keys)}
	ids := make([]string, requests)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
	}
	b.acceptAll(t, ids...)
	lane := b.claim(t)
	var sent, expired [requests]bool
	atOnce(t, 2, func(i int) (bool, error) {
		if i == 0 {
			for n := requests - 1; n >= 0; n-- { // from the end, to meet the other one
				err := stores[0].Begin(t.Context(), lane, ids[n], b.intent(0))
				if err == nil {
					sent[n] = true
					_, err = stores[0].Posted(t.Context(), lane, ids[n], store.LivePost{PostID: "x-" + ids[n], Now: b.now})
				}
				if err != nil && !errors.Is(err, store.ErrNotRunnable) {
					return false, err
				}
			}
			return true, nil
		}
		for {
			keys, err := stores[1].ExpireLate(t.Context(), acme, b.now.Add(time.Second), 1, b.now)
			if err != nil || len(keys) == 0 {
				return true, err
			}
			for _, key := range keys {
				var n int
				if _, err := fmt.Sscan(key.ID, &n); err != nil {
					return false, err
				}
				expired[n] = true
			}
		}
	})
	for n, id := range ids {
		if sent[n] == expired[n] {
			t.Errorf("request %s: that it was sent and that it expired are both %t", id, sent[n])
		}
		want := jetpost.StatePublished
		if expired[n] {
			want = jetpost.StateFailed
		}
		equal(t, "state of "+id, b.request(t, id).Status.State, want)
	}
}

func sent(t *testing.T, b *bundle) {
	b.add(t, "beta")
	b.accept(t, b.acceptance("thread", 2))
	b.acceptAll(t, "one", "refused", "doubt")
	lane := b.claim(t)
	start := b.now
	for i, post := range []struct {
		id    string
		index int
	}{{"thread", 0}, {"thread", 1}, {"one", 0}} {
		b.now = start.Add(time.Duration(i) * time.Minute)
		b.publish(t, lane, post.id, post.index)
	}
	b.begin(t, lane, "refused", 0)
	b.concludePost(t, lane, "refused", jetpost.StateFailed, jetpost.CodeRefusedByX, 0, jetpost.PostFailed)
	b.doubt(t, lane, "doubt", 0)
	read := func(account string, after time.Time, limit int) (minutes []int) {
		times, err := b.st.Sent(t.Context(), account, after, limit)
		testkit.Must(t, err)
		for _, at := range times {
			minutes = append(minutes, int(at.Sub(start)/time.Minute))
		}
		return minutes
	}
	equal(t, "all", read(acme, start.Add(-time.Hour), 10), []int{2, 1, 0})
	equal(t, "limit", read(acme, start.Add(-time.Hour), 2), []int{2, 1})
	equal(t, "after", read(acme, start, 10), []int{2, 1})
	equal(t, "another account's", len(read("beta", start.Add(-time.Hour), 10)), 0)
}
