package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

// keep: only a caller that knows the stored version replaces a value.
func keep(t *testing.T, b *bundle) {
	stored := func() []store.Desired {
		all, err := b.st.Desired(t.Context())
		testkit.Must(t, err)
		return all
	}
	put := func(k store.Desired) bool {
		ok, err := b.st.Keep(t.Context(), k)
		testkit.Must(t, err)
		return ok
	}
	equal(t, "stored at first", len(stored()), 0)
	equal(t, "a version that never existed", put(store.Desired{Name: "pause.publish", Value: []byte("x"), Version: 3}), false)
	equal(t, "the first", put(store.Desired{Name: "pause.publish", Value: []byte("one")}), true)
	equal(t, "a second first", put(store.Desired{Name: "pause.publish", Value: []byte("two")}), false)
	equal(t, "the next", put(store.Desired{Name: "pause.publish", Value: []byte{0, 1}, Version: 1}), true)
	equal(t, "one behind", put(store.Desired{Name: "pause.publish", Value: []byte("old"), Version: 1}), false)
	equal(t, "another name", put(store.Desired{Name: "cron", Value: []byte("c")}), true)
	equal(t, "stored", stored(), []store.Desired{{Name: "cron", Value: []byte("c"), Version: 1}, {Name: "pause.publish", Value: []byte{0, 1}, Version: 2}})
}

func keepConcurrently(t *testing.T, b *bundle) {
	for version := range int64(3) {
		won := atOnce(t, 10, func(i int) (bool, error) {
			return b.st.Keep(t.Context(), store.Desired{Name: "cron", Value: []byte{byte(i)}, Version: version})
		})
		equal(t, "of ten that replace the same", won, 1)
	}
}

func (b *bundle) progress(t *testing.T) store.Progress {
	t.Helper()
	p, err := b.st.Progress(t.Context(), store.ProgressQuery{Now: b.now, LateBefore: b.now.Add(-time.Hour), Blocked: 2})
	testkit.Must(t, err)
	return p
}

func progressEmpty(t *testing.T, b *bundle) {
	empty := b.progress(t)
	equal(t, "holders", len(empty.Holders), 0)
	empty.Holders = nil
	equal(t, "progress", empty, store.Progress{Accounts: 1})
}

// progress: what has moved last, and what should have moved.
func progress(t *testing.T, b *bundle) {
	b.add(t, "beta")
	early := func(id string, ago time.Duration, posts int) store.Acceptance {
		in := b.acceptance(id, posts)
		in.Now = b.now.Add(-ago)
		return in
	}
	b.accept(t, early("first", 3*time.Hour, 2))
	b.accept(t, early("second", 2*time.Hour, 1))
	b.accept(t, early("now", time.Minute, 1))
	other := early("other", 10*time.Minute, 1)
	other.Request.Account = "beta"
	b.accept(t, other)
	p := b.progress(t)
	equal(t, "lane that is due", p.DueAccount, acme)
	equal(t, "since", p.DueSince, b.now.Add(-3*time.Hour))
	equal(t, "untold since", p.UntoldSince, b.now.Add(-3*time.Hour))
	equal(t, "accepted", p.AcceptedAt, b.now.Add(-time.Minute))
	equal(t, "posted", p.PostedAt, time.Time{})
	equal(t, "late", []any{p.LateRequests, p.LateSince}, []any{2, b.now.Add(-3 * time.Hour)})

	lane := b.claim(t)
	b.publish(t, lane, "first", 0)
	p = b.progress(t)
	equal(t, "lane that nobody holds", []any{p.DueAccount, p.DueSince}, []any{"beta", b.now.Add(-10 * time.Minute)})
	equal(t, "holders", p.Holders, []store.Holder{{Worker: "worker", Lanes: 1}})
	equal(t, "posted", p.PostedAt, b.request(t, "first").Posts[0].SentAt)
	equal(t, "late, and not begun", []any{p.LateRequests, p.LateSince}, []any{1, b.now.Add(-2 * time.Hour)})

	for i, stored := range []time.Time{b.now, b.now.Add(-time.Minute), b.now.Add(-rules.ProgressRefusals)} {
		testkit.Must(t, b.st.Refuse(t.Context(), jetpost.Refusal{Code: jetpost.CodeInvalidRequest, Sequence: uint64(i), Stored: stored}, nil))
	}
	equal(t, "refused within the hour", b.progress(t).Refused, 2)
}

// progressStanding: which accounts post nothing at present.
func progressStanding(t *testing.T, b *bundle) {
	for _, name := range []string{"beta", "gamma", "over"} {
		b.add(t, name)
	}
	paused := jetpost.AccountPause(b.now, b.now.Add(time.Hour), "why")
	testkit.Must(t, b.st.PauseAccount(t.Context(), "beta", paused))
	testkit.Must(t, b.st.PauseAccount(t.Context(), "over", jetpost.AccountPause(b.now.Add(-time.Hour), b.now, "")))
	_, err := b.st.Disconnect(t.Context(), "gamma", b.now)
	testkit.Must(t, err)
	p := b.progress(t)
	equal(t, "accounts", p.Accounts, 4)
	equal(t, "standing", p.Standing, []store.Standing{{Account: "beta", Pause: paused}, {Account: "gamma", Reauth: true}})
}

// progressBlocked: an account that waits for a person is one entry, however much waits.
func progressBlocked(t *testing.T, b *bundle) {
	for _, name := range []string{"beta", "gamma"} {
		lane := b.claimOther(t, name)
		in := b.acceptance("only", 1)
		in.Request.Account = name
		b.accept(t, in)
		testkit.Must(t, b.st.Conclude(t.Context(), lane, "only", store.Outcome{
			State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeAccountReauthRequired}, Post: -1, Now: b.now,
		}))
	}
	b.acceptAll(t, "first", "second", "third")
	lane := b.claim(t)
	b.conclude(t, lane, "first", jetpost.StateHeld, jetpost.CodeRateLimited, b.now.Add(time.Hour))
	equal(t, "a hold that ends by itself blocks nobody", b.progress(t).BlockedAccounts, 2)
	b.doubt(t, lane, "first", 0)
	p := b.progress(t)
	equal(t, "accounts", p.BlockedAccounts, 3)
	equal(t, "blocked", p.Blocked, []store.BlockedQueue{
		{Key: store.Key{Account: acme, ID: "first"}, State: jetpost.StateUnknown, Code: jetpost.CodeOutcomeUnknown, Waiting: 3},
		{Key: store.Key{Account: "beta", ID: "only"}, State: jetpost.StateHeld, Code: jetpost.CodeAccountReauthRequired, Waiting: 1},
	})
}

// progressBlockedCodes: the account of a held request waits for a person if its code says
// so, and else not.
func progressBlockedCodes(t *testing.T, b *bundle) {
	b.acceptAll(t, "one")
	lane := b.claim(t)
	for _, code := range jetpost.Codes() {
		blocked := 0
		switch code.Kind() {
		case jetpost.KindHeldForPerson:
			blocked = 1
		case jetpost.KindHeld, jetpost.KindHeldByX:
		default:
			continue // no request is held for it
		}
		b.conclude(t, lane, "one", jetpost.StateHeld, code, time.Time{})
		equal(t, "accounts that wait for a person, by "+string(code), b.progress(t).BlockedAccounts, blocked)
	}
}

// fits: a program goes on until the schema is one for newer programs alone.
func fits(t *testing.T, b *bundle) {
	var schema *store.SchemaError
	if _, err := b.st.Keep(t.Context(), store.Desired{Name: store.DesiredOldestSchema, Value: []byte("1")}); err != nil || b.st.Fits(t.Context()) != nil {
		t.Errorf("a schema for programs of before: %v, %v", err, b.st.Fits(t.Context()))
	}
	_, err := b.st.Keep(t.Context(), store.Desired{Name: store.DesiredOldestSchema, Value: []byte("999"), Version: 1})
	if newer := b.st.Fits(t.Context()); err != nil || !errors.As(newer, &schema) || schema.Found != 999 {
		t.Errorf("a schema for newer programs: %v, %v", err, newer)
	}
}
