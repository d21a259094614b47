package consumers

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// postingLimited is an installation in a bubble whose lanes have these posting limits.
func postingLimited(t *testing.T, postingLimits admission.PostingLimits, opts ...func(*xsim.Server)) *doubtBundle {
	t.Helper()
	b := doubt(t, opts...)
	b.h.PostingLimits = postingLimits
	return b
}

// held fails unless the request is held for that reason until then, and nothing of it was
// tried.
func (b *doubtBundle) held(t *testing.T, id string, code jetpost.Code, until time.Time, detail string) {
	t.Helper()
	r := b.record(t, store.Key{Account: "acme", ID: id})
	testkit.Equal(t, "state of "+id, r.Status.State, jetpost.StateHeld)
	testkit.Equal(t, "reason of "+id, fmt.Sprint(r.Status.Reason.Code, ": ", r.Status.Reason.Detail), fmt.Sprint(code, ": ", detail))
	testkit.Equal(t, "end told of "+id, r.Status.Reason.Until.Equal(until), true)
	testkit.Equal(t, "end of "+id, r.HoldUntil.Equal(until), true)
	testkit.Equal(t, "failures of "+id, r.Holds, 0)
}

// sentAt is when a post was sent according to the ledger.
func (b *doubtBundle) sentAt(t *testing.T, id string, post int) time.Time {
	t.Helper()
	return b.record(t, store.Key{Account: "acme", ID: id}).Posts[post].SentAt
}

func (b *doubtBundle) published(t *testing.T, id string, posts int) {
	t.Helper()
	b.want(t, store.Key{Account: "acme", ID: id}, jetpost.StatePublished, "", posts)
}

// TestSkipIfLate: a request with skip_if_late expires after that time, counted from its
// publish_at or, without one, from its acceptance.
func TestSkipIfLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		begin := time.Now().Truncate(time.Second)
		pause := func() {
			testkit.Must(t, b.ledger.PauseAccount(t.Context(), "acme", jetpost.AccountPause(time.Now(), time.Time{}, "holidays")))
		}
		resume := func() {
			_, err := b.ledger.ResumeAccount(t.Context(), "acme", time.Now())
			testkit.Must(t, err)
			b.run(t, b.h, "acme")
		}
		send := func(id string, at time.Time, skip string) store.Key {
			r := jetpost.Request{Account: "acme", ID: id, Posts: thread(id), PublishAt: at, SkipIfLate: skip}
			testkit.Must(t, r.Validate())
			body, err := json.Marshal(r)
			testkit.Must(t, err)
			_, err = b.ledger.Accept(t.Context(), store.Acceptance{Request: r, Body: body, Digest: r.Digest(), Now: time.Now()})
			testkit.Must(t, err)
			return store.Key{Account: "acme", ID: id}
		}
		pause()
		now := send("now", time.Time{}, "15m")
		soon := send("soon", begin.Add(10*time.Minute), "15m")
		patient := send("patient", time.Time{}, "")
		sleep(20 * time.Minute)
		resume()
		b.want(t, now, jetpost.StateFailed, jetpost.CodeExpired, 0)
		b.want(t, soon, jetpost.StatePublished, "", 1)
		b.want(t, patient, jetpost.StatePublished, "", 1)
		status := b.record(t, now).Status
		testkit.Equal(t, "the reason", strings.Contains(status.Reason.Detail, "15m"), true)
	})
}

func TestPostingLimitPostsPerHour(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := postingLimited(t, admission.PostingLimits{PostsPerHour: 3})
		b.publish(t, "two", thread("a1", "a2")...)
		sleep(10 * time.Minute)
		b.publish(t, "one", thread("b")...)
		b.published(t, "one", 1)
		first, last := b.sentAt(t, "two", 0), b.sentAt(t, "one", 0)
		b.publish(t, "more", thread("c")...)
		until := first.Add(time.Hour)
		b.held(t, "more", jetpost.CodePostingLimit, until, "3 of 3 posts an hour are used, and it needs 1")
		b.publish(t, "long", thread("d1", "d2", "d3", "d4")...)
		testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 3)
		sleep(time.Until(until) - time.Microsecond)
		b.run(t, b.h, "acme")
		b.held(t, "more", jetpost.CodePostingLimit, until, "3 of 3 posts an hour are used, and it needs 1")
		sleep(time.Microsecond)
		b.run(t, b.h, "acme")
		b.published(t, "more", 1)

		// A thread longer than the hourly limit is published on its own, and completely.
		b.held(t, "long", jetpost.CodePostingLimit, b.sentAt(t, "more", 0).Add(time.Hour), "2 of 3 posts an hour are used, and it needs 3")
		sleep(time.Until(last.Add(time.Hour)))
		b.run(t, b.h, "acme")
		testkit.Equal(t, "calls while it waits", b.calls(xsim.EndpointCreatePost), 4)
		b.settle(t)
		b.published(t, "long", 4)
		b.texts(t, "acme", "a1", "a2", "b", "c", "d1", "d2", "d3", "d4")
	})
}

func TestPostingLimitMinInterval(t *testing.T) {
	t.Parallel()
	const interval = 90 * time.Minute
	synctest.Test(t, func(t *testing.T) {
		b := postingLimited(t, admission.PostingLimits{MinInterval: interval, PostsPerHour: 100})
		b.publish(t, "thread", thread("a1", "a2", "a3")...)
		b.published(t, "thread", 3) // its posts do not wait
		last := b.sentAt(t, "thread", 2)
		sleep(70 * time.Minute) // beyond the hour
		b.publish(t, "next", thread("b")...)
		b.held(t, "next", jetpost.CodePostingLimit, last.Add(interval),
			fmt.Sprintf("the account's latest post was sent at %s, and the next request begins 1h30m0s after it", last.UTC().Format(time.RFC3339)))
		b.settle(t)
		b.published(t, "next", 1)
		if gap := b.sentAt(t, "next", 0).Sub(last); gap < interval || gap > interval+time.Second {
			t.Errorf("it was sent %s after the last one", gap)
		}
	})
}

// TestPostingLimitSparesThreads: a thread that has begun goes on as soon as it can. A
// retried request begins again.
func TestPostingLimitSparesThreads(t *testing.T) {
	t.Parallel()
	const interval = 5 * time.Hour
	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := postingLimited(t, admission.PostingLimits{MinInterval: interval, PostsPerHour: 1})
			b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusTooManyRequests, Endpoint: xsim.EndpointCreatePost, Skip: 1, Times: 1})
			b.publish(t, "thread", thread("one", "two", "three")...)
			b.want(t, b.key, jetpost.StateHeld, jetpost.CodeRateLimited, 1)
			_, waited := b.settle(t)
			b.published(t, "thread", 3)
			testkit.Equal(t, "went on in time", waited < interval, true)
		})
	})
	t.Run("in doubt", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := postingLimited(t, admission.PostingLimits{MinInterval: interval, PostsPerHour: 1})
			b.faults(t, lost(2, true))
			b.publish(t, "thread", thread("one", "two", "three")...)
			_, waited := b.settle(t)
			b.published(t, "thread", 3)
			testkit.Equal(t, "went on in time", waited < interval, true)
		})
	})
	t.Run("in doubt from the first post on", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := postingLimited(t, admission.PostingLimits{})
			b.publish(t, "before", thread("before")...)
			b.faults(t, lost(1, true))
			b.publish(t, "thread", thread("one", "two")...)
			b.h.PostingLimits = admission.PostingLimits{MinInterval: interval, PostsPerHour: 1} // by a worker that was started later
			_, waited := b.settle(t)
			b.published(t, "thread", 2)
			testkit.Equal(t, "went on in time", waited < interval, true)
		})
	})
	t.Run("replayed", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := postingLimited(t, admission.PostingLimits{PostsPerHour: 3})
			b.faults(t, xsim.Fault{Kind: xsim.FaultRefuseText, Text: "two", Detail: "No.", Times: 1})
			b.publish(t, "thread", thread("one", "two", "three")...)
			b.want(t, b.key, jetpost.StateFailed, jetpost.CodeRefusedByX, 1)
			b.publish(t, "other", thread("other")...)
			b.published(t, "other", 1)
			_, err := b.ledger.Replay(t.Context(), store.Key{Account: "acme", ID: "thread"}, time.Now())
			testkit.Must(t, err)
			b.run(t, b.h, "acme")
			b.held(t, "thread", jetpost.CodePostingLimit, b.sentAt(t, "thread", 0).Add(time.Hour), "2 of 3 posts an hour are used, and it needs 2")
			b.key.ID = "thread"
			b.settle(t)
			b.published(t, "thread", 3)
			b.texts(t, "acme", "one", "other", "two", "three")
		})
	})
}

func TestPostingLimitExpireAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := postingLimited(t, admission.PostingLimits{ExpireAfter: time.Hour})
		b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusTooManyRequests, Endpoint: xsim.EndpointCreatePost, Skip: 1, Times: 1})
		b.publish(t, "begun", thread("one", "two")...)
		b.want(t, b.key, jetpost.StateHeld, jetpost.CodeRateLimited, 1)
		pause := jetpost.AccountPause(time.Now(), time.Now().Add(90*time.Minute).Truncate(time.Second), "")
		testkit.Must(t, b.ledger.PauseAccount(t.Context(), "acme", pause))
		b.publish(t, "late", thread("late")...)
		sleep(time.Until(pause.Reason.Until.Add(-time.Hour)))
		b.publish(t, "in-time", thread("in time")...)
		due := b.record(t, store.Key{Account: "acme", ID: "late"}).DueAt
		sleep(time.Until(pause.Reason.Until))
		b.run(t, b.h, "acme")
		b.published(t, "begun", 2) // a thread that has begun goes on, however late
		key := store.Key{Account: "acme", ID: "late"}
		r := b.want(t, key, jetpost.StateFailed, jetpost.CodeExpired, 0)
		testkit.Equal(t, "detail", r.Status.Reason.Detail,
			"it was due at "+due.UTC().Format(time.RFC3339)+", and requests expire 1h0m0s after their due time")
		testkit.Equal(t, "attempts", r.Status.Attempts, 0)
		b.published(t, "in-time", 1)
		_, err := b.ledger.Replay(t.Context(), key, time.Now())
		testkit.Must(t, err)
		b.run(t, b.h, "acme")
		b.published(t, "late", 1)
		b.texts(t, "acme", "one", "two", "in time", "late")
	})
}

// TestPostingLimitExpireAfterPause: an expired request fails during a pause, not after it.
func TestPostingLimitExpireAfterPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := postingLimited(t, admission.PostingLimits{ExpireAfter: time.Hour})
		b.h.Gate.Learn(publishers.Pauses{Pauses: []publishers.Pause{{
			Target: publishers.TargetPublish, Reason: jetpost.Reason{Code: jetpost.CodeUsageCapped, Until: time.Now().Add(10 * time.Hour)},
		}}})
		b.publish(t, "late", thread("late")...)
		b.want(t, b.key, jetpost.StateHeld, jetpost.CodeAppPaused, 0)
		r, waited := b.settle(t)
		testkit.Equal(t, "reason", r.Status.Reason.Code, jetpost.CodeExpired)
		testkit.Equal(t, "before the pause ends", waited < 2*time.Hour, true)
	})
}

// TestPostingLimitExpireAfterSparesSlowThreads: only the first post of a thread has to be
// in time.
func TestPostingLimitExpireAfterSparesSlowThreads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := postingLimited(t, admission.PostingLimits{ExpireAfter: time.Hour})
		b.h.Ledger = &ledgerHook{Store: b.ledger, after: nth("posted", 1, func() error { sleep(90 * time.Minute); return nil })}
		b.publish(t, "slow", thread("one", "two")...)
		b.published(t, "slow", 2)
	})
}

// TestPostingLimitExpireAfterOutage: the database answers again hours later, while a worker
// still has the request as its head.
func TestPostingLimitExpireAfterOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := postingLimited(t, admission.PostingLimits{ExpireAfter: time.Hour})
		b.h.Ledger = &ledgerHook{Store: b.ledger, before: nth("begin", 1, func() error { sleep(2 * time.Hour); return errAway })}
		b.publish(t, "late", thread("late")...)
		b.want(t, b.key, jetpost.StateFailed, jetpost.CodeExpired, 0)
		testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 0)
	})
}

// TestPausedAccount: nothing of the account is tried during its pause, and it goes on by
// itself after that.
func TestPausedAccount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := postingLimited(t, admission.PostingLimits{})
		until := time.Now().Add(time.Hour).Truncate(time.Second)
		testkit.Must(t, b.ledger.PauseAccount(t.Context(), "acme", jetpost.AccountPause(time.Now(), until, "for an audit")))
		b.publish(t, "one", thread("one")...)
		b.publish(t, "two", thread("two")...)
		b.held(t, "one", jetpost.CodeAccountPaused, until, "for an audit")
		b.want(t, store.Key{Account: "acme", ID: "two"}, jetpost.StateQueued, "", 0)
		for endpoint := range b.x.Counts() {
			testkit.Equal(t, "calls to "+endpoint, b.calls(endpoint), 0)
		}
		sleep(time.Until(until) - time.Millisecond)
		b.run(t, b.h, "acme")
		b.held(t, "one", jetpost.CodeAccountPaused, until, "for an audit")
		sleep(time.Millisecond)
		b.run(t, b.h, "acme")
		b.texts(t, "acme", "one", "two")

		testkit.Must(t, b.ledger.PauseAccount(t.Context(), "acme", jetpost.AccountPause(time.Now(), time.Time{}, "")))
		b.publish(t, "three", thread("three")...)
		b.held(t, "three", jetpost.CodeAccountPaused, time.Time{}, "")
		sleep(100 * time.Hour)
		b.run(t, b.h, "acme")
		b.texts(t, "acme", "one", "two")
		b.account(t, "acme", 0) // its token has expired meanwhile
		_, err := b.ledger.ResumeAccount(t.Context(), "acme", time.Now())
		testkit.Must(t, err)
		b.run(t, b.h, "acme")
		b.texts(t, "acme", "one", "two", "three")
	})
}

// TestPausedInMidThread: once a pause is committed no further post is sent, at whatever
// step the worker is.
func TestPausedInMidThread(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		hook   func(*ledgerHook, func() error)
		posted int
	}{
		{"before an intent", func(l *ledgerHook, do func() error) { l.before = nth("begin", 2, do) }, 1},
		{"before the first intent", func(l *ledgerHook, do func() error) { l.before = nth("begin", 1, do) }, 0},
		{"while a post is on its way", func(l *ledgerHook, do func() error) { l.before = nth("posted", 1, do) }, 1},
		{"after a post", func(l *ledgerHook, do func() error) { l.after = nth("posted", 2, do) }, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := postingLimited(t, admission.PostingLimits{})
				hook := &ledgerHook{Store: b.ledger}
				test.hook(hook, func() error {
					return b.ledger.PauseAccount(t.Context(), "acme", jetpost.AccountPause(time.Now(), time.Time{}, "a person paused it"))
				})
				b.h.Ledger = hook
				b.publish(t, "thread", thread("one", "two", "three")...)
				r := b.want(t, b.key, jetpost.StateHeld, jetpost.CodeAccountPaused, test.posted)
				testkit.Equal(t, "attempts", r.Status.Attempts, test.posted)
				testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), test.posted)
				b.held(t, "thread", jetpost.CodeAccountPaused, time.Time{}, "a person paused it")
				_, err := b.ledger.ResumeAccount(t.Context(), "acme", time.Now())
				testkit.Must(t, err)
				b.run(t, b.h, "acme")
				b.published(t, "thread", 3)
				b.texts(t, "acme", "one", "two", "three")
			})
		})
	}
}

// TestPausedApp: a pause by hand outlasts the pauses that X causes, and tokens are
// refreshed meanwhile.
func TestPausedApp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", time.Minute) // its token is due
	now := time.Now()
	pause := publishers.Pause{Target: publishers.TargetPublish, Since: now, Reason: jetpost.Reason{Code: jetpost.CodePausedByHand, Detail: "for an audit"}}
	_, _, err := b.pauses.Set(t.Context(), pause)
	testkit.Must(t, err)
	testkit.Equal(t, "consumer paused", b.paused(t), true)
	h := b.lane()
	h.Gate.Learn(publishers.Pauses{Pauses: []publishers.Pause{pause}})
	testkit.Must(t, h.Gate.Pause(t.Context(), admission.TargetPublish, jetpost.Reason{Code: jetpost.CodeUsageCapped, Until: now.Add(time.Hour)}, now))
	holds, _, err := b.pauses.Get(t.Context(), publishers.TargetPublish)
	testkit.Must(t, err)
	testkit.Equal(t, "what pauses the app", holds.Reason, pause.Reason)

	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	b.run(t, h, "acme") // a message that was already on its way
	r := b.want(t, key, jetpost.StateHeld, jetpost.CodeAppPaused, 0)
	if !strings.Contains(r.Status.Reason.Detail, "paused_by_hand: for an audit") {
		t.Errorf("detail is %q", r.Status.Reason.Detail)
	}
	_, err = h.Tokens.EnsureFresh(t.Context(), "acme", 0)
	testkit.Must(t, err)
	testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 1)
	testkit.Equal(t, "posts", b.calls(xsim.EndpointCreatePost), 0)
}

// TestRoom: without room on the disk no intent and no exchange begins, not even in the
// middle of a thread. With room again, everything goes on.
func TestRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := postingLimited(t, admission.PostingLimits{})
		none := errors.New("no room")
		var full atomic.Bool
		room := func() error {
			if full.Load() {
				return none
			}
			return nil
		}
		hook := &ledgerHook{Store: b.ledger}
		hook.after = nth("posted", 1, func() error { full.Store(true); return nil })
		b.h.Ledger, b.h.Room = hook, room
		b.publish(t, "thread", thread("one", "two", "three")...)
		r, err := b.ledger.Request(t.Context(), b.key)
		testkit.Must(t, err)
		testkit.Equal(t, "posted", r.Status.Posted, 1)
		testkit.Equal(t, "attempts", r.Status.Attempts, 1)
		testkit.Equal(t, "handled", b.h.Handle(t.Context(), b.wake("acme")), none)

		token, err := b.ledger.Token(t.Context(), "acme")
		testkit.Must(t, err)
		tokens := b.bubble()
		tokens.Room = room
		if _, err := tokens.EnsureFresh(t.Context(), "acme", token.Version); err == nil || !strings.Contains(err.Error(), none.Error()) {
			t.Errorf("a refused token: %v", err)
		}
		refresh := &refreshHandler{Refresher: tokens, Names: b.names, Log: b.log}
		testkit.Equal(t, "asked by hand", refresh.one(t.Context(), jetpost.RefreshRequest{Account: "acme", Force: true}, true), none)
		_, err = refresh.claim(t.Context(), jetpost.RefreshBatch{}, 1)
		testkit.Equal(t, "a batch", err, none)
		testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 0)

		full.Store(false)
		b.run(t, b.h, "acme")
		b.published(t, "thread", 3)
		b.texts(t, "acme", "one", "two", "three")
		testkit.Must(t, refresh.one(t.Context(), jetpost.RefreshRequest{Account: "acme", Force: true}, true))
		testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 1)
	})
}
