package consumers

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// limited starts with a window of few posts.
func limited(scope xsim.Scope, posts int, window time.Duration) func(*xsim.Server) {
	return func(x *xsim.Server) {
		x.Limits = []xsim.Limit{{Endpoint: xsim.EndpointCreatePost, Scope: scope, Max: posts, WindowMS: window.Milliseconds()}}
	}
}

// TestThreadWaitsForWindow: a thread begins if the window has room for all of it. A thread
// longer than the limit begins with a full window.
func TestThreadWaitsForWindow(t *testing.T) {
	t.Parallel()
	b := setup(t, limited(xsim.ScopeUser, 3, 2*time.Second))
	b.account(t, "acme", 0)
	first := b.accept(t, jetpost.Request{ID: "first", Posts: thread("a", "b")})
	second := b.accept(t, jetpost.Request{ID: "second", Posts: thread("c", "d")})
	long := b.accept(t, jetpost.Request{ID: "long", Posts: thread("e", "f", "g", "h")})
	h := b.lane()
	b.run(t, h, "acme")
	b.want(t, first, jetpost.StatePublished, "", 2)
	r := b.want(t, second, jetpost.StateHeld, jetpost.CodeRateLimited, 0)
	if want := "1 of 3 posts are left in a window of 15min, and the thread has 2"; r.Status.Reason.Detail != want {
		t.Errorf("held: %s, want: %s", r.Status.Reason.Detail, want)
	}
	b.work(t, h)
	testkit.Eventually(t, "all is published", func() bool { return b.counts(t)[jetpost.StatePublished] == 3 })
	b.texts(t, "acme", "a", "b", "c", "d", "e", "f", "g", "h")
	b.want(t, long, jetpost.StatePublished, "", 4)
	// Posts that share a window: a thread begins only if all of it fits.
	posts := b.x.Posts("acme")
	at := func(i int) time.Time { return posts[i].CreatedAt }
	for _, apart := range []struct{ before, after int }{{1, 2}, {3, 4}, {6, 7}} {
		if wait := at(apart.after).Sub(at(apart.before)); wait < time.Second {
			t.Errorf("%s was sent %s after %s, within its window", posts[apart.after].Text, wait, posts[apart.before].Text)
		}
	}
}

// TestWindowsReachAnotherWorker: a worker that has not called X knows the state of an
// account's windows from the worker before, each time that the lane changes hands.
func TestWindowsReachAnotherWorker(t *testing.T) {
	t.Parallel()
	b := setup(t, limited(xsim.ScopeUser, 4, time.Minute))
	b.account(t, "acme", 0)
	one, two := b.lane(), b.lane(func(h *publishHandler) { h.Windows = admission.NewWindows(b.windows, b.log) })
	for i, h := range []*publishHandler{one, two, one} {
		key := b.accept(t, jetpost.Request{ID: fmt.Sprint(i), Posts: thread(fmt.Sprint(i))})
		b.run(t, h, "acme")
		b.want(t, key, jetpost.StatePublished, "", 1)
	}
	key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("a", "b")})
	b.run(t, two, "acme") // the store says that one call is left, its own count says two
	r := b.want(t, key, jetpost.StateHeld, jetpost.CodeRateLimited, 0)
	third := b.lane(func(h *publishHandler) { h.Windows = admission.NewWindows(b.windows, b.log) })
	_, err := b.ledger.EndHolds(t.Context(), r.Account, r.Status.Reason.Code, time.Now())
	testkit.Must(t, err)
	b.run(t, third, "acme")
	b.want(t, key, jetpost.StateHeld, jetpost.CodeRateLimited, 0)
	testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 3)
}

// share stores windows while the test runs.
func (b *testBundle) share(t *testing.T, w *admission.Windows) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { w.Run(ctx) })
	stop = func() { cancel(); group.Wait() }
	t.Cleanup(stop)
	testkit.Must(t, publishers.NewWindows(b.js, b.names).FollowApp(ctx, w.Learned))
	return stop
}

// learn has a gate watch the pauses while the test runs.
func (b *testBundle) learn(t *testing.T, g *admission.Gate) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	pauses, err := b.pauses.Watch(ctx)
	testkit.Must(t, err)
	g.Learn(<-pauses)
	var group sync.WaitGroup
	group.Go(func() {
		for known := range pauses {
			g.Learn(known)
		}
	})
	t.Cleanup(func() { cancel(); group.Wait() })
}

// TestWindowUsedUpIsKnownAtOnce: a window that one worker has used up is known to another
// one, even if the first still has the lane and dies with it.
func TestWindowUsedUpIsKnownAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, limited(xsim.ScopeUser, 1, time.Minute))
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("a", "b")})
	died := make(chan struct{})
	one := b.lane()
	hook := &ledgerHook{Store: b.ledger, before: nth("conclude", 1, func() error { close(died); panic("dies") })}
	one.Ledger = hook
	stop := b.share(t, one.Windows)
	func() {
		defer func() { testkit.Equal(t, "panic", recover(), any("dies")) }()
		b.run(t, one, "acme")
	}()
	<-died
	testkit.Eventually(t, "the window is told", func() bool {
		known, err := b.windows.Get(t.Context(), "acme")
		return err == nil && len(known) > 0
	})
	stop()
	hook.expire(t)
	b.run(t, b.lane(func(h *publishHandler) { h.Windows = admission.NewWindows(b.windows, b.log) }), "acme")
	b.want(t, key, jetpost.StateHeld, jetpost.CodeRateLimited, 1)
	testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 1)
}

// TestAppWindowShared: workers that post for many accounts at once use the app's window up
// to its last call, and make no call beyond it.
func TestAppWindowShared(t *testing.T) {
	t.Parallel()
	const accounts, requests, limit = 12, 5, 20
	b := setup(t, limited(xsim.ScopeApp24h, limit, 2*time.Second))
	for a := range accounts {
		account := fmt.Sprintf("acme%d", a)
		b.account(t, account, 0)
		for i := range requests {
			b.accept(t, jetpost.Request{Account: account, ID: fmt.Sprint(i), Posts: thread(fmt.Sprint(a, i))})
		}
	}
	b.faults(t, xsim.Fault{Kind: xsim.FaultLatency, DelayMS: 50, Endpoint: xsim.EndpointCreatePost}) // many calls are in flight
	for name := range 2 {
		h := b.lane(func(h *publishHandler) {
			h.Worker = fmt.Sprint(name)
			h.Windows = admission.NewWindows(b.windows, b.log)
			h.Gate = admission.NewGate(b.pauses, h.Worker, 0, b.log)
		})
		b.share(t, h.Windows)
		b.learn(t, h.Gate)
		b.work(t, h)
	}
	testkit.Eventually(t, "all is published", func() bool { return b.counts(t)[jetpost.StatePublished] == requests*accounts })
	if refused := b.x.Counts()[xsim.EndpointCreatePost][fmt.Sprint(http.StatusTooManyRequests)]; refused > 0 {
		t.Errorf("%d calls were refused", refused)
	}
}
