package consumers

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// TestWorkersPublishInOrder tests the whole publish path: producers, two workers, several
// accounts, real NATS, and concurrent wake-ups.
func TestWorkersPublishInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const requests = 6
	accounts := []string{"acme", "bolt", "coil"}
	want := map[string][]string{}
	for _, account := range accounts {
		b.account(t, account, 0)
	}
	for i := range requests {
		for _, account := range accounts {
			texts := []string{fmt.Sprintf("%s %d", account, i), fmt.Sprintf("%s %d, more", account, i)}
			want[account] = append(want[account], texts...)
			_, err := b.pub.Publish(t.Context(), jetpost.Request{Account: account, ID: fmt.Sprint(i), Posts: thread(texts...)})
			testkit.Must(t, err)
		}
	}
	for _, name := range []string{"one", "two"} {
		b.work(t, b.lane(func(h *publishHandler) { h.Worker = name }))
	}
	testkit.Eventually(t, "everything is published", func() bool { return b.counts(t)[jetpost.StatePublished] == requests*len(accounts) })
	for _, account := range accounts {
		b.texts(t, account, want[account]...)
		for i, p := range b.x.Posts(account) {
			parent := ""
			if i%2 == 1 {
				parent = b.x.Posts(account)[i-1].ID
			}
			testkit.Equal(t, "parent of "+p.Text, p.InReplyTo, parent)
		}
	}
}

// work runs a worker's intake and lanes until the test ends.
func (b *testBundle) work(t *testing.T, h *publishHandler) (stop func()) {
	t.Helper()
	bindings := append(b.intakes(b.intake()), binding{Stream: b.names.LanesStream(), Consumer: jetpost.ConsumerLanes, Slots: 3, Handler: h})
	return b.start(t, &runner{JetStream: b.js, Leases: b.ledger, Worker: h.Worker, Health: &health{}, Log: b.log, Bindings: bindings})
}

// intakes binds every partition's consumer.
func (b *testBundle) intakes(h *intakeHandler) []binding {
	var bindings []binding
	for p := range jetpost.Partitions {
		bindings = append(bindings, binding{Stream: b.names.JobsStream(), Consumer: jetpost.ConsumerIntake(p), Batch: h})
	}
	return bindings
}

func (b *testBundle) counts(t *testing.T) map[jetpost.State]int {
	t.Helper()
	counts, err := b.ledger.CountRequests(t.Context())
	testkit.Must(t, err)
	return counts
}

// TestUntilIsAnEnd: an event has an until if the end of a wait is known, and none
// otherwise.
func TestUntilIsAnEnd(t *testing.T) {
	t.Parallel()
	end := time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond)
	for name, c := range map[string]struct {
		pause jetpost.Reason
		ends  bool
		probe bool
	}{
		"X names the end":             {jetpost.Reason{Code: jetpost.CodeUsageCapped, Until: end}, true, false},
		"X names none":                {jetpost.Reason{Code: jetpost.CodeCreditsDepleted}, false, true},
		"a person, until a time":      {jetpost.Reason{Code: jetpost.CodePausedByHand, Until: end}, true, false},
		"a person, until they resume": {jetpost.Reason{Code: jetpost.CodePausedByHand}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			h := b.lane()
			if c.probe || c.ends && c.pause.Code != jetpost.CodePausedByHand {
				testkit.Must(t, h.Gate.Pause(t.Context(), admission.TargetPublish, c.pause, time.Now()))
			} else {
				_, _, err := b.pauses.Set(t.Context(), publishers.Pause{Target: publishers.TargetPublish, Reason: c.pause, Since: time.Now()})
				testkit.Must(t, err)
				b.learn(t, h.Gate)
			}
			key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
			b.run(t, h, "acme")
			r := b.want(t, key, jetpost.StateHeld, jetpost.CodeAppPaused, 0)
			testkit.Equal(t, "it is checked again", r.HoldUntil.After(time.Now()), true)

			var told jetpost.Event
			testkit.Must(t, json.Unmarshal(b.last(t, b.names.EventsStream(), b.names.EventSubject(jetpost.EventAppPaused, "", "")).Data, &told))
			testkit.Equal(t, "app.paused says its end", told.App.Reason.Until.Equal(end), c.ends)
			testkit.Equal(t, "app.paused says an until", !told.App.Reason.Until.IsZero(), c.ends)
			testkit.Equal(t, "app.paused says when X is asked", told.App.NextProbeAt.After(time.Now()), c.probe)
			held := b.lastEvent(t, key)
			testkit.Equal(t, "request.held says its end", held.Request.Reason.Until.Equal(end), c.ends)
			testkit.Equal(t, "request.held says an until", !held.Request.Reason.Until.IsZero(), c.ends)
		})
	}
}

// TestNextTryIsNoEnd: if only a try can end a wait, its event has the time of the next try,
// and no until.
func TestNextTryIsNoEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.faults(t, xsim.Fault{Kind: xsim.FaultOutage})
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	b.run(t, b.lane(), "acme")
	r := b.want(t, key, jetpost.StateHeld, jetpost.CodeReconciling, 0)
	held := b.lastEvent(t, key).Request
	testkit.Equal(t, "request.held says no until", held.Reason.Until.IsZero(), true)
	testkit.Equal(t, "its next try", held.NextTryAt.Equal(r.HoldUntil) && held.NextTryAt.After(time.Now()), true)
}

// TestSecondCheck: the app is paused while an intent is committed. The post is not sent,
// and is pending again.
func TestSecondCheck(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	h := b.lane()
	h.Ledger = &ledgerHook{Store: b.ledger, after: nth("begin", 1, func() error {
		now := time.Now()
		return h.Gate.Pause(t.Context(), admission.TargetPublish, jetpost.Reason{Code: jetpost.CodeUsageCapped, Until: now.Add(time.Hour)}, now)
	})}
	b.run(t, h, "acme")
	r := b.want(t, key, jetpost.StateHeld, jetpost.CodeAppPaused, 0)
	testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 0)
	testkit.Equal(t, "post", r.Posts[0].State, jetpost.PostPending)
	testkit.Equal(t, "attempts", r.Status.Attempts, 0)
}

// TestThreadKeepsFirstPostsOwnParent: a thread may reply to a post of another account.
func TestThreadKeepsFirstPostsOwnParent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.accept(t, jetpost.Request{ID: "root", Posts: thread("root")})
	h := b.lane()
	b.run(t, h, "acme")
	root := b.x.Posts("acme")[0].ID
	posts := thread("one", "two")
	posts[0].InReplyToPostID = root
	key := b.accept(t, jetpost.Request{ID: "thread", Posts: posts})
	b.run(t, h, "acme")
	r := b.want(t, key, jetpost.StatePublished, "", 2)
	testkit.Equal(t, "parent of the first", r.Posts[0].ParentID, root)
	testkit.Equal(t, "parent of the second", r.Posts[1].ParentID, r.Posts[0].PostID)
}

// TestThreadCommitsNoIntentAfterItsContext: no intent is committed after the context has
// ended.
func TestThreadCommitsNoIntentAfterItsContext(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("one", "two")})
	ctx, cancel := context.WithCancel(t.Context())
	intents := 0
	hook := &ledgerHook{
		Store:  b.ledger,
		before: func(op string) error { intents += strings.Count(op, "begin"); return nil },
		after:  nth("posted", 1, func() error { cancel(); return nil }),
	}
	testkit.Must(t, b.lane(func(h *publishHandler) { h.Ledger = hook }).Handle(ctx, b.wake("acme")))
	testkit.Equal(t, "intents", intents, 1)
	b.texts(t, "acme", "one")
	testkit.Equal(t, "post", b.record(t, key).Posts[1].State, jetpost.PostPending)
}

// TestLaneLateAnswer: a worker that lost its lane while X answered still commits the answer
// of X, and then writes nothing more.
func TestLaneLateAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("one", "two")})
	hook := &ledgerHook{Store: b.ledger}
	answered, goOn := make(chan struct{}), make(chan struct{})
	hook.before = nth("posted", 1, func() error { close(answered); <-goOn; return nil })
	old := make(chan struct{})
	go func() {
		defer close(old)
		b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
	}()
	<-answered
	hook.expire(t)
	next := b.lane(func(h *publishHandler) { h.Worker = "next" })
	b.run(t, next, "acme")
	b.want(t, key, jetpost.StateHeld, jetpost.CodeReconciling, 0)
	close(goOn)
	<-old
	b.want(t, key, jetpost.StateQueued, "", 1)
	b.texts(t, "acme", "one")
	b.run(t, next, "acme")
	b.want(t, key, jetpost.StatePublished, "", 2)
	b.texts(t, "acme", "one", "two")
}

// TestLaneFenced: a worker that was frozen before it committed its intent finds its lane
// taken, and neither sends nor writes anything.
func TestLaneFenced(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"begin", "conclude", "release"} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
			if op == "conclude" {
				b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Times: 1})
			}
			hook := &ledgerHook{Store: b.ledger}
			frozen, thaw := make(chan struct{}), make(chan struct{})
			hook.before = nth(op, 1, func() error { close(frozen); <-thaw; return nil })
			old := make(chan struct{})
			go func() {
				defer close(old)
				b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
			}()
			<-frozen
			hook.expire(t)
			b.run(t, b.lane(func(h *publishHandler) { h.Worker = "next" }), "acme")
			before := b.record(t, key)
			close(thaw)
			<-old
			if op == "conclude" {
				// X refused it, and the next worker found it in doubt. An answer of X is
				// true whichever worker brings it.
				testkit.Equal(t, "state before", before.Status.State, jetpost.StateHeld)
				testkit.Equal(t, "posts", len(b.x.Posts("acme")), 0)
				b.want(t, key, jetpost.StateFailed, jetpost.CodeRefusedByX, 0)
				return
			}
			after := b.record(t, key)
			testkit.Equal(t, "revision", after.Status.Revision, before.Status.Revision)
			testkit.Equal(t, "state", after.Status.State, before.Status.State)
			b.texts(t, "acme", "one")
		})
	}
}

func TestLaneRefusedInMidThread(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	const words = "You are not permitted to say that."
	b.faults(t, xsim.Fault{Kind: xsim.FaultRefuseText, Text: "three", Detail: words})
	key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("one", "two", "three", "four", "five")})
	other := b.accept(t, jetpost.Request{ID: "other", Posts: thread("other")})
	h := b.lane()
	b.run(t, h, "acme")
	r := b.want(t, key, jetpost.StateFailed, jetpost.CodeRefusedByX, 2)
	testkit.Equal(t, "X's own words", r.Status.Reason.Detail, words)
	testkit.Equal(t, "refused post", r.Posts[2].State, jetpost.PostFailed)
	b.want(t, other, jetpost.StatePublished, "", 1) // a failed request does not block the queue
	b.texts(t, "acme", "one", "two", "other")
	testkit.Equal(t, "event", b.lastEvent(t, key).Type, jetpost.EventRequestFailed)
	deadLetters, err := b.deadLetters.List(t.Context(), publishers.DeadLetterFilter{})
	testkit.Must(t, err)
	if len(deadLetters) != 1 || deadLetters[0].Posted != "2/5" || deadLetters[0].Detail != words || string(deadLetters[0].Body) != string(r.Body) {
		t.Errorf("records are %+v", deadLetters)
	}

	b.faults(t)
	for i := range 2 {
		result, err := b.ledger.Replay(t.Context(), key, time.Now())
		testkit.Must(t, err)
		testkit.Equal(t, "queued", result.Queued, i == 0)
		b.run(t, h, "acme")
		b.want(t, key, jetpost.StatePublished, "", 5)
		b.texts(t, "acme", "one", "two", "other", "three", "four", "five")
	}
	testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 7)
}

// TestLaneAccountWindow: the account waits until the reset that X names, and then goes on
// by itself. No call is made in between.
func TestLaneAccountWindow(t *testing.T) {
	t.Parallel()
	b := setup(t, func(x *xsim.Server) {
		x.Limits = []xsim.Limit{{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 2, WindowMS: 1000}}
	})
	b.account(t, "acme", 0)
	b.account(t, "bolt", 0)
	key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("one", "two", "three")})
	other := b.accept(t, jetpost.Request{Account: "bolt", ID: "x", Posts: thread("bolt")})
	h := b.lane()
	b.run(t, h, "acme")
	r := b.want(t, key, jetpost.StateHeld, jetpost.CodeRateLimited, 2)
	testkit.Equal(t, "attempts", r.Status.Attempts, 2)
	b.run(t, h, "acme") // woken too early
	b.run(t, h, "bolt")
	b.want(t, other, jetpost.StatePublished, "", 1)
	b.work(t, h)
	testkit.Eventually(t, "the thread goes on", func() bool { return b.record(t, key).Status.State == jetpost.StatePublished })
	b.texts(t, "acme", "one", "two", "three")
	testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 4)
}

// TestLaneAccount429: a 429 that no window predicted counts no attempt.
func TestLaneAccount429(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusTooManyRequests, Endpoint: xsim.EndpointCreatePost, Times: 1})
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	h := b.lane()
	for range 3 {
		b.run(t, h, "acme")
		r := b.want(t, key, jetpost.StateHeld, jetpost.CodeRateLimited, 0)
		testkit.Equal(t, "attempts", r.Status.Attempts, 0)
		testkit.Equal(t, "post", r.Posts[0].State, jetpost.PostPending)
		if !r.HoldUntil.After(time.Now()) {
			t.Errorf("held until %v", r.HoldUntil)
		}
	}
	testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 1)
}

func TestLaneAppWindow(t *testing.T) {
	t.Parallel()
	b := setup(t, func(x *xsim.Server) {
		x.Limits = []xsim.Limit{{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeApp24h, Max: 2, WindowMS: 2000}}
	})
	b.account(t, "acme", 0)
	b.account(t, "bolt", 0)
	key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("one", "two", "three")})
	other := b.accept(t, jetpost.Request{Account: "bolt", ID: "x", Posts: thread("bolt")})
	h := b.lane()
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StateHeld, jetpost.CodeAppPaused, 2)
	testkit.Equal(t, "consumer paused", b.paused(t), true)
	b.run(t, h, "bolt") // a message that was already on its way
	b.want(t, other, jetpost.StateHeld, jetpost.CodeAppPaused, 0)
	b.work(t, h)
	testkit.Eventually(t, "all goes on", func() bool { return b.counts(t)[jetpost.StatePublished] == 2 })
	b.texts(t, "acme", "one", "two", "three")
	b.texts(t, "bolt", "bolt")
	testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 4)
}

func TestLaneAppPauses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		status  int
		variant string
		code    jetpost.Code
	}{
		{"client not enrolled", http.StatusForbidden, "client-not-enrolled", jetpost.CodeClientNotEnrolled},
		{"credits", http.StatusPaymentRequired, "", jetpost.CodeCreditsDepleted},
		{"credits, legacy", http.StatusPaymentRequired, "legacy", jetpost.CodeCreditsDepleted},
		{"spend cap", http.StatusForbidden, "spend-cap", jetpost.CodeSpendCapReached},
		{"usage cap", http.StatusTooManyRequests, "usage-capped", jetpost.CodeUsageCapped},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			b.account(t, "bolt", 0)
			b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: test.status, Variant: test.variant})
			key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
			other := b.accept(t, jetpost.Request{Account: "bolt", ID: "x", Posts: thread("bolt")})
			h := b.lane()
			b.run(t, h, "acme")
			b.run(t, h, "bolt")
			for _, k := range []store.Key{key, other} {
				r := b.want(t, k, jetpost.StateHeld, jetpost.CodeAppPaused, 0)
				testkit.Equal(t, "attempts", r.Status.Attempts, 0)
				if !strings.Contains(r.Status.Reason.Detail, string(test.code)) || !r.HoldUntil.After(time.Now()) {
					t.Errorf("held until %v: %s", r.HoldUntil, r.Status.Reason.Detail)
				}
			}
			testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 1)
			testkit.Equal(t, "consumer paused", b.paused(t), true)
			pause, _, err := b.pauses.Get(t.Context(), publishers.TargetPublish)
			testkit.Must(t, err)
			testkit.Equal(t, "code of the pause", pause.Reason.Code, test.code)

			b.faults(t)
			testkit.Must(t, b.pauses.Clear(t.Context(), publishers.TargetPublish))
			another := b.lane() // whose gate does not know of the pause
			for _, account := range []string{"acme", "bolt"} {
				_, err := b.ledger.EndHolds(t.Context(), account, jetpost.CodeAppPaused, time.Now())
				testkit.Must(t, err)
				b.run(t, another, account)
			}
			b.texts(t, "acme", "one")
			b.texts(t, "bolt", "bolt")
		})
	}
}

// TestLanePauseWithoutEnd: when a person resumes the app, not every lane is woken, so lanes
// check again by themselves.
func TestLanePauseWithoutEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	h := b.lane()
	testkit.Must(t, h.Gate.Pause(t.Context(), admission.TargetPublish, jetpost.Reason{Code: jetpost.CodeAppPaused}, time.Now()))
	b.run(t, h, "acme")
	r := b.want(t, key, jetpost.StateHeld, jetpost.CodeAppPaused, 0)
	if !r.HoldUntil.After(time.Now()) {
		t.Errorf("held until %v", r.HoldUntil)
	}
	testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 0)
}

func TestLaneUnauthorized(t *testing.T) {
	t.Parallel()
	t.Run("for long", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.account(t, "acme", 0)
		b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusUnauthorized, Endpoint: xsim.EndpointCreatePost})
		key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
		h := b.lane()
		for range 2 { // the second time it is woken too early
			b.run(t, h, "acme")
			r := b.want(t, key, jetpost.StateHeld, jetpost.CodeXUnavailable, 0)
			testkit.Equal(t, "attempts", r.Status.Attempts, 0)
			if !r.HoldUntil.After(time.Now()) {
				t.Errorf("held until %v", r.HoldUntil)
			}
		}
		testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 2)
		testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 1)
	})
	t.Run("once", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.account(t, "acme", 0)
		b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusUnauthorized, Endpoint: xsim.EndpointCreatePost, Skip: 1, Times: 1})
		key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("one", "two")})
		b.run(t, b.lane(), "acme")
		b.want(t, key, jetpost.StatePublished, "", 2)
		b.texts(t, "acme", "one", "two")
		testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 1)
	})
}

// TestLaneDialFails: a call that provably did not leave this machine is made again.
func TestLaneDialFails(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	var reachable atomic.Bool
	closed := xapi.NewTransport()
	t.Cleanup(closed.CloseIdleConnections)
	b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
		if reachable.Load() {
			return b.x.RoundTrip(r)
		}
		r.URL.Scheme, r.URL.Host = "http", "127.0.0.1:1"
		return closed.RoundTrip(r)
	})
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	h := b.lane()
	b.run(t, h, "acme")
	r := b.want(t, key, jetpost.StateHeld, jetpost.CodeXUnavailable, 0)
	testkit.Equal(t, "post", r.Posts[0].State, jetpost.PostPending)
	testkit.Equal(t, "attempts", r.Status.Attempts, 0)
	reachable.Store(true)
	b.endHold(t, key, jetpost.CodeXUnavailable)
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StatePublished, "", 1)
	b.texts(t, "acme", "one")
}

// endHold ends a hold early.
func (b *testBundle) endHold(t *testing.T, key store.Key, code jetpost.Code) {
	t.Helper()
	n, err := b.ledger.EndHolds(t.Context(), key.Account, code, time.Now())
	testkit.Must(t, err)
	testkit.Equal(t, "holds ended", n, 1)
}

func TestLaneLostAnswer(t *testing.T) {
	t.Parallel()
	for _, fault := range []xsim.Fault{
		{Kind: xsim.FaultCut},
		{Kind: xsim.FaultCut, After: true},
		{Kind: xsim.FaultGarbage},
		{Kind: xsim.FaultNoID},
		{Kind: xsim.FaultStatus, Status: http.StatusServiceUnavailable},
		{Kind: xsim.FaultStatus, Status: http.StatusInternalServerError, After: true},
	} {
		t.Run(fmt.Sprintf("%s %d after %t", fault.Kind, fault.Status, fault.After), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			fault.Endpoint, fault.Skip, fault.Times = xsim.EndpointCreatePost, 1, 1
			b.faults(t, fault)
			key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("one", "two", "three")})
			behind := b.accept(t, jetpost.Request{ID: "behind", Posts: thread("behind")})
			h := b.lane()
			for range 2 {
				b.run(t, h, "acme")
				b.want(t, key, jetpost.StateHeld, jetpost.CodeReconciling, 1)
			}
			b.want(t, behind, jetpost.StateQueued, "", 0)
			testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 2)
		})
	}
}

func TestLaneExpired(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	now := time.Now()
	late := b.accept(t, jetpost.Request{ID: "late", Posts: thread("late"), PublishAt: now.Add(-time.Minute), ExpiresAt: now.Add(-time.Second)})
	begun := b.accept(t, jetpost.Request{ID: "begun", Posts: thread("one", "two"), ExpiresAt: now.Add(time.Second)})
	// The first post is in time. The deadline passes before the second one.
	hook := &ledgerHook{Store: b.ledger}
	hook.after = nth("posted", 1, func() error {
		testkit.Eventually(t, "the deadline passes", func() bool { return time.Now().After(now.Add(time.Second)) })
		panic("the worker died here")
	})
	func() {
		defer func() { testkit.Equal(t, "panic", recover() != nil, true) }()
		b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
	}()
	hook.expire(t)
	b.run(t, b.lane(), "acme")
	b.want(t, late, jetpost.StateFailed, jetpost.CodeExpired, 0)
	b.want(t, begun, jetpost.StatePublished, "", 2)
	b.texts(t, "acme", "one", "two")
}

func TestLaneCancelledInMidThread(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("one", "two", "three")})
	other := b.accept(t, jetpost.Request{ID: "other", Posts: thread("other")})
	hook := &ledgerHook{Store: b.ledger}
	hook.before = nth("posted", 2, func() error { // X already has the second post
		_, err := b.ledger.Cancel(t.Context(), key, time.Now())
		return err
	})
	b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
	b.want(t, key, jetpost.StateCancelled, "", 2)
	b.want(t, other, jetpost.StatePublished, "", 1)
	b.texts(t, "acme", "one", "two", "other")
	event := b.lastEvent(t, key)
	testkit.Equal(t, "event", event.Type, jetpost.EventRequestCancelled)
	testkit.Equal(t, "posts told", event.Request.Posted, 2)
}

func TestLanePoison(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "deadly", Posts: thread("deadly")})
	hook := &ledgerHook{Store: b.ledger, before: func(op string) error {
		if op == "begin" {
			panic("deadly")
		}
		return nil
	}}
	h := b.lane(func(h *publishHandler) { h.Ledger = hook })
	for range poisonClaims {
		func() {
			defer func() { testkit.Equal(t, "panic", recover(), any("deadly")) }()
			b.run(t, h, "acme")
		}()
		b.want(t, key, jetpost.StateQueued, "", 0)
		hook.expire(t)
	}
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StateHeld, jetpost.CodePoison, 0)
	hook.before = nil
	_, err := b.ledger.Replay(t.Context(), key, time.Now())
	testkit.Must(t, err)
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StatePublished, "", 1)
}

func TestLaneNewerVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	body := fmt.Sprintf(`{"version":%d,"id":"new","posts":["in words of tomorrow"]}`, jetpost.Version+1)
	take(t, b.intake(), b.job("acme", []byte(body)))
	key := store.Key{Account: "acme", ID: "new"}
	h := b.lane()
	for range 2 {
		b.run(t, h, "acme")
		b.want(t, key, jetpost.StateHeld, jetpost.CodeNeedsNewerWorker, 0)
		b.endHold(t, key, jetpost.CodeNeedsNewerWorker)
	}
	testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 0)
}

// TestLaneReadsAtLast: a request that an older worker could not read is published once a
// newer worker runs the lane.
func TestLaneReadsAtLast(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	now := time.Now()
	_, err := b.ledger.Accept(t.Context(), store.Acceptance{
		Request: jetpost.Request{Account: "acme", ID: "new"}, Body: []byte(`{"posts":[{"text":"one"},{"text":"two"}]}`), Digest: []byte("of the bytes"),
		Hold: &jetpost.Reason{Code: jetpost.CodeNeedsNewerWorker, Until: now}, Now: now,
	})
	testkit.Must(t, err)
	behind := b.accept(t, jetpost.Request{ID: "behind", Posts: thread("behind")})
	b.run(t, b.lane(), "acme")
	b.want(t, store.Key{Account: "acme", ID: "new"}, jetpost.StatePublished, "", 2)
	b.want(t, behind, jetpost.StatePublished, "", 1)
	b.texts(t, "acme", "one", "two", "behind")
}

// TestLaneWokenDuringRelease: if a request is accepted while the lane is being released,
// the holder must see it.
func TestLaneWokenDuringRelease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	first := b.accept(t, jetpost.Request{ID: "first", Posts: thread("first")})
	var late store.Key
	hook := &ledgerHook{Store: b.ledger}
	hook.before = nth("release", 1, func() error {
		late = b.accept(t, jetpost.Request{ID: "late", Posts: thread("late")})
		b.run(t, b.lane(func(h *publishHandler) { h.Worker = "other" }), "acme") // the wake-up, handled by another worker
		return nil
	})
	b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
	b.want(t, first, jetpost.StatePublished, "", 1)
	b.want(t, late, jetpost.StatePublished, "", 1)
	b.texts(t, "acme", "first", "late")
}

// TestLaneImportDuringHold: an import that ends a hold without an end comes right before
// that hold is committed.
func TestLaneImportDuringHold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", time.Minute)
	b.x.RevokeConsent("acme")
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	hook := &ledgerHook{Store: b.ledger}
	hook.before = nth("conclude", 1, func() error {
		b.account(t, "acme", 0)
		return nil
	})
	b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
	b.want(t, key, jetpost.StatePublished, "", 1)
}

// TestLaneReauth: the account is held without an end, and without calls, until it is
// imported again.
func TestLaneReauth(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", time.Minute)
	b.x.RevokeConsent("acme")
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	h := b.lane()
	for range 2 {
		b.run(t, h, "acme")
		r := b.want(t, key, jetpost.StateHeld, jetpost.CodeAccountReauthRequired, 0)
		testkit.Equal(t, "hold without an end", r.HoldUntil.IsZero(), true)
	}
	testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 1)
	b.account(t, "acme", 0)
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StatePublished, "", 1)
}

// TestLaneDatabaseAway: the commit of X's answer is retried until the ledger answers, and
// nothing is sent before.
func TestLaneDatabaseAway(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("one", "two")})
	away := 3
	h := b.lane()
	hook := &ledgerHook{Store: b.ledger, before: func(op string) error {
		if op != "posted" || away == 0 {
			return nil
		}
		away--
		testkit.Equal(t, "calls while the database is away", b.calls(xsim.EndpointCreatePost), 1)
		testkit.Equal(t, "unhealthy", away == 2 || h.Health.Err() != nil, true)
		return errAway
	}}
	h.Ledger = hook
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StatePublished, "", 2)
	b.texts(t, "acme", "one", "two")
	testkit.Must(t, h.Health.Err())
}

// TestLaneCommitAnswerLost: the commit was made and its answer was lost. The lane finds
// that out by itself, and no post is in doubt.
func TestLaneCommitAnswerLost(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"begin", "conclude", "posted", "release"} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			if op == "conclude" {
				b.faults(t, xsim.Fault{Kind: xsim.FaultRefuseText, Text: "two", Detail: "no", Times: 1})
			}
			key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("one", "two")})
			hook := &ledgerHook{Store: b.ledger, after: nth(op, 1, func() error { return errAway })}
			b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
			if op == "conclude" {
				b.want(t, key, jetpost.StateFailed, jetpost.CodeRefusedByX, 1)
				return
			}
			r := b.want(t, key, jetpost.StatePublished, "", 2)
			testkit.Equal(t, "attempts", r.Status.Attempts, 2)
			b.texts(t, "acme", "one", "two")
		})
	}
}

// TestLanePostTaken: an id that another request has cannot be stored. A person has to
// decide.
func TestLanePostTaken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	hook := &ledgerHook{Store: b.ledger, before: nth("posted", 1, func() error { return fmt.Errorf("post 1: %w", store.ErrPostTaken) })}
	b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
	b.want(t, key, jetpost.StateHeld, jetpost.CodeReconciling, 0)
}

// TestLaneStopping: a worker that is asked to stop finishes the call in flight, begins no
// other one and leaves the lane to the next worker.
func TestLaneStopping(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("one", "two")})
	stopping := make(chan struct{})
	hook := &ledgerHook{Store: b.ledger, before: nth("posted", 1, func() error { close(stopping); return nil })}
	d := b.wake("acme")
	d.Stopping = stopping
	testkit.Must(t, b.lane(func(h *publishHandler) { h.Ledger = hook }).Handle(t.Context(), d))
	b.want(t, key, jetpost.StatePublishing, "", 1)
	b.texts(t, "acme", "one")
	due, err := b.ledger.DueLanes(t.Context(), time.Now(), 10)
	testkit.Must(t, err)
	testkit.Equal(t, "due lanes", len(due), 1)
	b.work(t, b.lane()) // handles its wake-up
	testkit.Eventually(t, "another worker goes on", func() bool { return b.record(t, key).Status.State == jetpost.StatePublished })
	b.texts(t, "acme", "one", "two")
}

// TestLaneSchedules: publish_at is ahead, so the lane sets its schedule.
func TestLaneSchedules(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	at := time.Now().Add(time.Second)
	later := b.accept(t, jetpost.Request{ID: "later", Posts: thread("later"), PublishAt: at})
	now := b.accept(t, jetpost.Request{ID: "now", Posts: thread("now")})
	h := b.lane()
	b.run(t, h, "acme")
	b.want(t, later, jetpost.StateScheduled, "", 0)
	b.want(t, now, jetpost.StatePublished, "", 1)
	b.work(t, h)
	testkit.Eventually(t, "the hour comes", func() bool { return b.record(t, later).Status.State == jetpost.StatePublished })
	if created := b.x.Posts("acme")[1].CreatedAt; created.Before(at) {
		t.Errorf("published %v early", at.Sub(created))
	}
}

// TestLaneOutage: after five failures in a row the app is paused. Calls that X never saw
// are not in doubt.
func TestLaneOutage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.lane()
	b.faults(t, xsim.Fault{Kind: xsim.FaultOutage})
	var keys []store.Key
	for i := range admission.BreakerThreshold + 1 {
		account := fmt.Sprintf("acme%d", i)
		b.account(t, account, 0)
		keys = append(keys, b.accept(t, jetpost.Request{Account: account, ID: "one", Posts: thread("one")}))
		b.run(t, h, account)
	}
	for _, key := range keys[:admission.BreakerThreshold] {
		b.want(t, key, jetpost.StateHeld, jetpost.CodeReconciling, 0)
	}
	b.want(t, keys[admission.BreakerThreshold], jetpost.StateHeld, jetpost.CodeAppPaused, 0)
	testkit.Equal(t, "consumer paused", b.paused(t), true)
	testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), admission.BreakerThreshold)
}

// TestLanePanicInHalfOpen: a worker that panics in the call that probes X must be able to
// probe again.
func TestLanePanicInHalfOpen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	h := b.lane(func(h *publishHandler) { h.Gate = admission.NewGate(b.pauses, "worker", time.Nanosecond, b.log) })
	trip(t, h.Gate)
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	hook := &ledgerHook{Store: b.ledger, before: nth("begin", 1, func() error { panic("here") })}
	h.Ledger = hook
	func() {
		defer func() { testkit.Equal(t, "panic", recover(), any("here")) }()
		b.run(t, h, "acme")
	}()
	hook.expire(t)
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StatePublished, "", 1)
}

// TestLanesAtOnce has many workers handle wake-ups of one account: one of them works.
func TestLanesAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	var want []string
	for i := range 5 {
		text := fmt.Sprint("post ", i)
		want = append(want, text)
		b.accept(t, jetpost.Request{ID: fmt.Sprint(i), Posts: thread(text)})
	}
	var workers sync.WaitGroup
	for i := range 8 {
		workers.Go(func() {
			h := b.lane(func(h *publishHandler) { h.Worker = fmt.Sprint(i) })
			for range 5 {
				if err := h.Handle(t.Context(), b.wake("acme")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	workers.Wait()
	b.run(t, b.lane(), "acme")
	b.texts(t, "acme", want...)
}

// TestLaneUnknownAccount: a wake-up of an account that does not exist is ignored.
func TestLaneUnknownAccount(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.run(t, b.lane(), "nobody")
	h := b.lane(func(h *publishHandler) {
		h.Ledger = &ledgerHook{Store: b.ledger, before: func(string) error { return errAway }}
	})
	wantAway(t, h.Handle(t.Context(), b.wake("nobody")))
}

// TestLaneEndsWithItsContext: a worker whose context ends leaves a ledger that does not
// answer to the next worker.
func TestLaneEndsWithItsContext(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	ctx, cancel := context.WithCancel(t.Context())
	hook := &ledgerHook{Store: b.ledger, before: func(op string) error {
		if op == "posted" {
			cancel()
			return errAway
		}
		return nil
	}}
	testkit.Must(t, b.lane(func(h *publishHandler) { h.Ledger = hook }).Handle(ctx, b.wake("acme")))
	b.texts(t, "acme", "one")
	testkit.Equal(t, "post", b.record(t, key).Posts[0].State, jetpost.PostSending)
}

// stopDuringUpload runs a lane whose upload takes so long that something happens meanwhile.
// No post may begin after it.
func stopDuringUpload(t *testing.T, during func(h *publishHandler, stopping chan struct{})) {
	t.Helper()
	b := setup(t)
	b.account(t, "acme", 0)
	stopping := make(chan struct{})
	var h *publishHandler
	b.hc = &http.Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, "/2/media/upload") {
			during(h, stopping)
		}
		return b.x.RoundTrip(r)
	})}
	h = b.lane()
	b.accept(t, jetpost.Request{ID: "a", Posts: []jetpost.Post{{Text: "hi", Media: []jetpost.Media{{Data: testImage(t)}}}}})
	d := b.wake("acme")
	d.Stopping = stopping
	testkit.Must(t, h.Handle(t.Context(), d))
	testkit.Equal(t, "posts sent after it", b.calls(xsim.EndpointCreatePost), 0)
}

func TestLaneStopsDuringUpload(t *testing.T) {
	t.Parallel()
	t.Run("app", func(t *testing.T) {
		t.Parallel()
		stopDuringUpload(t, func(h *publishHandler, _ chan struct{}) {
			now := time.Now()
			testkit.Must(t, h.Gate.Pause(t.Context(), admission.TargetPublish, jetpost.Reason{Code: jetpost.CodeUsageCapped, Until: now.Add(time.Hour)}, now))
		})
	})
	t.Run("worker", func(t *testing.T) {
		t.Parallel()
		stopDuringUpload(t, func(_ *publishHandler, stopping chan struct{}) { close(stopping) })
	})
}

// lostAccept commits, and loses the first answer.
type lostAccept struct {
	*ledgerHook
	n atomic.Int64
}

func (l *lostAccept) Accept(ctx context.Context, in store.Acceptance) (store.Decision, error) {
	d, err := l.Store.Accept(ctx, in)
	if err == nil && l.n.Add(1) == 1 {
		return 0, errAway
	}
	return d, err
}

func TestLaneReadsAtLastDespiteLostAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	body, err := json.Marshal(jetpost.Request{Version: 1, Account: "acme", ID: "a", Posts: thread("hi")})
	testkit.Must(t, err)
	past := time.Now().Add(-time.Hour)
	_, err = b.ledger.Accept(t.Context(), store.Acceptance{
		Request: jetpost.Request{Account: "acme", ID: "a"}, Body: body, Digest: []byte("old"),
		Hold: &jetpost.Reason{Code: jetpost.CodeNeedsNewerWorker, Until: past}, Now: past,
	})
	testkit.Must(t, err)
	h := b.lane(func(h *publishHandler) { h.Ledger = &lostAccept{ledgerHook: &ledgerHook{Store: b.ledger}} })
	b.run(t, h, "acme")
	b.want(t, store.Key{Account: "acme", ID: "a"}, jetpost.StatePublished, "", 1)
}

// X refused the post, but the lane was taken over before the answer was committed.
func TestLaneKnownRefusalIsNoDoubt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	hook := &ledgerHook{Store: b.ledger}
	key := b.accept(t, jetpost.Request{ID: "a", Posts: thread("hi")})
	b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: 429, Endpoint: xsim.EndpointCreatePost, Times: 1, Bare: true})
	two := b.lane()
	hook.before = nth("conclude", 1, func() error { hook.expire(t); b.run(t, two, "acme"); return nil })
	b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
	if r := b.record(t, key); r.Status.Reason != nil && r.Status.Reason.Code == jetpost.CodeReconciling {
		t.Errorf("in doubt though X's 429 proved that nothing was posted: %+v", r.Status.Reason)
	}
}

// A pause with a distant end may be ended by a person long before it.
func TestLaneNoticesClearedPause(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.accept(t, jetpost.Request{ID: "a", Posts: thread("hi")})
	h := b.lane()
	now := time.Now()
	testkit.Must(t, h.Gate.Pause(t.Context(), admission.TargetPublish, jetpost.Reason{Code: jetpost.CodeSpendCapReached, Until: now.Add(20 * 24 * time.Hour)}, now))
	b.run(t, h, "acme")
	testkit.Must(t, b.pauses.Clear(t.Context(), string(admission.TargetPublish)))
	due, err := b.ledger.DueLanes(t.Context(), now.Add(admission.UndatedPause+time.Minute), 10)
	testkit.Must(t, err)
	testkit.Equal(t, "lanes that check again", len(due), 1)
}

// Each exchange risks losing the account: a 401 that a fresh token does not fix must not
// cause further exchanges.
func TestLaneLasting401RenewsOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "a", Posts: thread("hi")})
	b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: 401, Endpoint: xsim.EndpointCreatePost})
	h := b.lane()
	for range 4 {
		b.run(t, h, "acme")
		_, err := b.ledger.Replay(t.Context(), key, time.Now()) // as if the hold were over
		testkit.Must(t, err)
	}
	testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 1)
}
