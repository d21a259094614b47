package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

func nextAfterClaim(t *testing.T, b *bundle) {
	b.acceptAll(t, "one", "two")
	later := b.acceptance("later", 1)
	later.Request.PublishAt = b.now.Add(time.Hour)
	b.accept(t, later)
	lane := b.claim(t)
	next, ok := lane.Next()
	equal(t, "a claim has a snapshot", ok, true)
	equal(t, "what it sees", next, b.snapshot(t, lane, b.now))
	_, ok = lane.Next()
	equal(t, "it is handed out twice", ok, false)
}

// nextAfterDoubt: a claim's snapshot has all that is known of a post in doubt.
func nextAfterDoubt(t *testing.T, b *bundle) {
	b.acceptAll(t, "doubtful")
	lane := b.claim(t)
	b.begin(t, lane, "doubtful", 0)
	testkit.Must(t, b.st.Conclude(t.Context(), lane, "doubtful", store.Outcome{
		State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeReconciling, Until: b.now},
		PostState: jetpost.PostSending, Checks: 2, AbsentAt: b.now, Now: b.now,
	}))
	b.release(t, lane, b.now)
	lane = b.claim(t)
	next, ok := lane.Next()
	equal(t, "a claim has a snapshot", ok, true)
	equal(t, "the head", next.Head.Posts, b.snapshot(t, lane, b.now).Head.Posts)
}

func nextAfterPosted(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 2))
	b.acceptAll(t, "last")
	lane := b.claim(t)
	_, _ = lane.Next()
	b.publish(t, lane, "thread", 0)
	_, ok := lane.Next()
	equal(t, "an unfinished thread has a snapshot", ok, false)
	b.publish(t, lane, "thread", 1)
	next, ok := lane.Next()
	equal(t, "a finished thread has a snapshot", ok, true)
	equal(t, "what it sees", next, b.snapshot(t, lane, b.now))
	equal(t, "the next head", next.Head.ID, "last")
	b.publish(t, lane, "last", 0)
	next, ok = lane.Next()
	if !ok || next.Head != nil {
		t.Errorf("behind the last one stands %+v, %t", next.Head, ok)
	}
	b.acceptAll(t, "meanwhile")
	released, err := b.st.ReleaseLane(t.Context(), lane, next.Generation, time.Time{}, b.clock(t))
	testkit.Must(t, err)
	equal(t, "released though something woke since", released, false)
}

// following is the intent to send a request behind the head.
func (b *bundle) following(behind store.Record) *store.Following {
	intent := b.intent(0)
	intent.MediaIDs = []string{}
	return &store.Following{ID: behind.ID, Revision: behind.Status.Revision, Intent: intent}
}

// postedThen records the last post of a request, and begins the one behind it.
func (b *bundle) postedThen(t *testing.T, lane store.Claim, id string, post int, behind store.Record) {
	t.Helper()
	_, err := b.st.Posted(t.Context(), lane, id, store.LivePost{Post: post, PostID: postID(id, post), Now: b.now, Following: b.following(behind)})
	testkit.Must(t, err)
}

// follow: the intent of the request behind the head is committed with the head's last
// outcome, as Begin commits it.
func follow(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 2))
	b.acceptAll(t, "second", "third")
	lane := b.claim(t)
	_, _ = lane.Next()
	_, ok := lane.Behind()
	equal(t, "behind nothing that has begun", ok, false)
	b.begin(t, lane, "thread", 0)
	behind, ok := lane.Behind()
	equal(t, "there is one behind", ok, true)
	equal(t, "what is behind", behind, b.request(t, "second"))
	b.postedThen(t, lane, "thread", 0, behind)
	equal(t, "behind an unfinished thread", b.request(t, "second"), behind)
	b.begin(t, lane, "thread", 1)
	behind, ok = lane.Behind()
	for _, id := range []string{"thread", "second"} {
		equal(t, "there is one behind "+id, ok, true)
		begun := behind
		b.postedThen(t, lane, id, map[string]int{"thread": 1}[id], begun)
		behind, ok = lane.Behind()
		next, read := lane.Next()
		equal(t, "a snapshot behind "+id, read, true)
		equal(t, "what it sees", next, b.snapshot(t, store.Claim{Account: acme, Fence: lane.Fence}, b.now))
		equal(t, "state of "+id, b.request(t, id).Status.State, jetpost.StatePublished)
		r := b.request(t, begun.ID)
		equal(t, "what is known of "+begun.ID, fmt.Sprint(next.Head.ID, r.Status.State, r.Status.Revision, r.Status.Attempts, r.Delivered, r.BeganAt.IsZero()),
			fmt.Sprint(begun.ID, jetpost.StatePublishing, begun.Status.Revision+1, 1, begun.Delivered, false))
		p, intent := r.Posts[0], b.intent(0)
		equal(t, "post of "+begun.ID, fmt.Sprint(p.State, p.Attempt, p.ParentID, p.TextHash, p.NotAfter.UTC()),
			fmt.Sprint(jetpost.PostSending, lane.Fence, intent.ParentID, intent.TextHash, intent.NotAfter.UTC()))
	}
	equal(t, "behind the last one", ok, false)
	equal(t, "state", b.posted(t, lane, "third", 0, postID("third", 0)), jetpost.StatePublished)
	next, ok := lane.Next()
	if !ok || next.Head != nil {
		t.Errorf("behind the last one stands %+v, %t", next.Head, ok)
	}
	for _, id := range []string{"second", "third"} {
		equal(t, "attempts of "+id, b.request(t, id).Status.Attempts, 1)
		pending, err := b.st.OutboxPending(t.Context(), b.now.Add(time.Hour), 10)
		testkit.Must(t, err)
		equal(t, "an event of it is pending", slices.Contains(pending, store.Key{Account: acme, ID: id}), true)
	}
}

// followOutOfDate changes what a holder has read of the request behind. The outcome is
// stored, and that request has not begun.
func followOutOfDate(t *testing.T, b *bundle) {
	const free = "UPDATE lanes SET lease_until = NULL, lease_owner = NULL WHERE account = 'acme'"
	other := b.open(t, b.keys)
	b.acceptAll(t, "failed")
	lane := b.claim(t)
	b.begin(t, lane, "failed", 0)
	b.concludePost(t, lane, "failed", jetpost.StateFailed, jetpost.CodeRefusedByX, 0, jetpost.PostFailed)
	b.release(t, lane, time.Time{})
	for what, change := range map[string]func(key store.Key) error{
		"cancelled": func(key store.Key) error { _, err := other.Cancel(t.Context(), key, b.now); return err },
		"rescheduled": func(key store.Key) error {
			_, err := other.Reschedule(t.Context(), key, b.now.Add(time.Hour), b.now)
			return err
		},
		"changed": func(key store.Key) error { // it is still the next one
			_, err := other.Reschedule(t.Context(), key, b.now.Add(-time.Minute), b.now)
			return err
		},
		"paused": func(store.Key) error {
			return other.PauseAccount(t.Context(), acme, jetpost.AccountPause(b.now, time.Time{}, "test"))
		},
		"overtaken": func(store.Key) error { // by one that has begun already
			_, err := other.Replay(t.Context(), store.Key{Account: acme, ID: "failed"}, b.now)
			return err
		},
		"held by another": func(store.Key) error {
			b.ledger.Exec(t, free)
			b.claim(t)
			return nil
		},
	} {
		t.Run(what, func(t *testing.T) {
			first, second := "before "+what, what
			defer func() {
				_, err := other.ResumeAccount(t.Context(), acme, b.now)
				testkit.Must(t, err)
				b.ledger.Exec(t, free)
				for _, id := range []string{second, "failed"} {
					_, _ = other.Cancel(t.Context(), store.Key{Account: acme, ID: id}, b.now) // it may be over
				}
			}()
			b.acceptAll(t, first, second)
			lane := b.claim(t)
			b.begin(t, lane, first, 0)
			behind, _ := lane.Behind()
			equal(t, "behind", behind.ID, second)
			testkit.Must(t, change(store.Key{Account: acme, ID: second}))
			b.postedThen(t, lane, first, 0, behind)
			equal(t, "the outcome", b.request(t, first).Status.State, jetpost.StatePublished)
			r := b.request(t, second)
			equal(t, "post", fmt.Sprint(r.Posts[0].State, r.Status.Attempts), fmt.Sprint(jetpost.PostPending, 0))
			if next, read := lane.Next(); read {
				equal(t, "what the holder sees", next, b.snapshot(t, lane, b.now))
			}
		})
	}
}

// snapshotOutOfDate changes what a holder has read, before it writes.
func snapshotOutOfDate(t *testing.T, b *bundle) {
	other := b.open(t, b.keys)
	act := map[string]func(id string) error{
		"cancelled": func(id string) error {
			_, err := other.Cancel(t.Context(), store.Key{Account: acme, ID: id}, b.now)
			return err
		},
		"paused": func(string) error {
			return other.PauseAccount(t.Context(), acme, jetpost.AccountPause(b.now, time.Time{}, "test"))
		},
		"rescheduled": func(id string) error {
			_, err := other.Reschedule(t.Context(), store.Key{Account: acme, ID: id}, b.now.Add(time.Hour), b.now)
			return err
		},
	}
	for what, change := range act {
		b.acceptAll(t, what)
		lane := b.claim(t)
		equal(t, "head", b.head(t, lane, b.now), what)
		testkit.Must(t, change(what))
		fails(t, "begin of what was "+what, b.st.Begin(t.Context(), lane, what, b.intent(0)), store.ErrNotRunnable)
		equal(t, what, b.request(t, what).Posts[0].State, jetpost.PostPending)
		_, err := other.ResumeAccount(t.Context(), acme, b.now)
		testkit.Must(t, err)
		b.release(t, lane, time.Time{})
		_, err = other.Cancel(t.Context(), store.Key{Account: acme, ID: what}, b.now)
		if err != nil && !errors.Is(err, store.ErrNotRunnable) {
			t.Fatal(err)
		}
	}

	b.acceptAll(t, "in flight") // a cancelled request has one more post told
	lane := b.claim(t)
	b.begin(t, lane, "in flight", 0)
	testkit.Must(t, act["cancelled"]("in flight"))
	equal(t, "state", b.posted(t, lane, "in flight", 0, "x-in-flight"), jetpost.StateCancelled)
	equal(t, "post", b.request(t, "in flight").Posts[0].State, jetpost.PostPosted)
}

// stepsTogether has many lanes write at once, one of which must fail.
func stepsTogether(t *testing.T, b *bundle) {
	const accounts = 20
	lanes := make([]store.Claim, accounts)
	for i := range lanes {
		name := fmt.Sprintf("account-%02d", i)
		b.add(t, name)
		for n := range 3 {
			in := b.acceptance(fmt.Sprint(n), 1)
			in.Request.Account = name
			b.accept(t, in)
		}
	}
	errs := make([]error, accounts)
	var group sync.WaitGroup
	for i := range lanes {
		group.Go(func() { errs[i] = publishThree(t, b, fmt.Sprintf("account-%02d", i), i == accounts/2) })
	}
	group.Wait()
	for i, err := range errs {
		if taken := i == accounts/2; errors.Is(err, store.ErrPostTaken) != taken || !taken && err != nil {
			t.Errorf("account %d: %v", i, err)
		}
	}
	posted := 0
	for i := range accounts {
		for n := range 3 {
			r, err := b.st.Request(t.Context(), store.Key{Account: fmt.Sprintf("account-%02d", i), ID: fmt.Sprint(n)})
			testkit.Must(t, err)
			if r.Status.State == jetpost.StatePublished && r.Posts[0].State == jetpost.PostPosted && r.Status.Attempts == 1 {
				posted++
			}
		}
	}
	equal(t, "published", posted, accounts*3-2)
}

// publishThree publishes an account's three requests; with taken, the second with the
// id of the first.
func publishThree(t *testing.T, b *bundle, account string, taken bool) error {
	lane, ok, err := b.st.ClaimLane(t.Context(), account, "worker", longLease, b.now)
	if err != nil || !ok {
		return fmt.Errorf("claimed %t: %w", ok, err)
	}
	for n := range 3 {
		next, ok := lane.Next()
		if !ok || next.Head == nil || next.Head.ID != fmt.Sprint(n) {
			return fmt.Errorf("request %d is not next: %+v", n, next.Head)
		}
		intent := b.intent(0)
		if err := b.st.Begin(t.Context(), lane, next.Head.ID, intent); err != nil {
			return err
		}
		id := fmt.Sprintf("x-%s-%d", account, n)
		if taken {
			id = "x-" + account + "-0"
		}
		if _, err := b.st.Posted(t.Context(), lane, next.Head.ID, store.LivePost{PostID: id, Now: b.now}); err != nil {
			return err
		}
	}
	next, _ := lane.Next()
	released, err := b.st.ReleaseLane(t.Context(), lane, next.Generation, time.Time{}, b.now)
	if err == nil && (!released || next.Head != nil) {
		return fmt.Errorf("released %t, with %+v left", released, next.Head)
	}
	return err
}

// nextMissesNothing accepts while a holder posts and releases. Its next snapshot has
// what was accepted, or the release is refused, or the lane is due.
func nextMissesNothing(t *testing.T, b *bundle) {
	const rounds = 40
	other := b.open(t, b.keys)
	for n := range rounds {
		b.acceptAll(t, fmt.Sprintf("first-%d", n))
		lane := b.claim(t)
		next, _ := lane.Next()
		testkit.Must(t, b.st.Begin(t.Context(), lane, next.Head.ID, b.intent(0)))
		var group sync.WaitGroup
		group.Go(func() {
			if _, err := other.Accept(t.Context(), b.acceptance(fmt.Sprintf("second-%d", n), 1)); err != nil {
				t.Error(err)
			}
		})
		_, err := b.st.Posted(t.Context(), lane, next.Head.ID, store.LivePost{PostID: fmt.Sprintf("x-%d", n), Now: b.now})
		testkit.Must(t, err)
		next, ok := lane.Next()
		if !ok {
			next = b.snapshot(t, lane, b.now)
		}
		released := false
		if next.Head == nil {
			released, err = b.st.ReleaseLane(t.Context(), lane, next.Generation, time.Time{}, b.clock(t))
			testkit.Must(t, err)
		}
		group.Wait()
		if released {
			equal(t, "a lane that woke after its release is due", b.due(t, b.clock(t)), true)
			lane = b.claim(t)
		}
		equal(t, "head", b.head(t, lane, b.now), fmt.Sprintf("second-%d", n))
		b.publish(t, lane, fmt.Sprintf("second-%d", n), 0)
		b.release(t, lane, time.Time{})
	}
}

// marksWithTheNextStep: what a lane has published is marked by its next begin or its
// release, and a request that has a newer revision by then is reported.
func marksWithTheNextStep(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 2))
	b.acceptAll(t, "next", "last")
	delivered := func(what, id string, want int64) {
		t.Helper()
		equal(t, "delivered of "+id+", "+what, b.request(t, id).Delivered, want)
	}
	told := func(lane store.Claim, id string) int64 {
		t.Helper()
		revision := b.request(t, id).Status.Revision
		equal(t, "the lane takes the mark of "+id, lane.Told(store.Revision{Key: store.Key{Account: acme, ID: id}, Number: revision}), true)
		return revision
	}
	lane := b.claim(t)
	b.publish(t, lane, "thread", 0)
	progress := told(lane, "thread")
	delivered("before the next step", "thread", 0)
	equal(t, "the mark of another one, meanwhile", lane.Told(store.Revision{Key: store.Key{Account: acme, ID: "next"}, Number: 1}), false)
	b.begin(t, lane, "thread", 1) // which is no news itself
	delivered("after the next intent", "thread", progress+1)
	b.posted(t, lane, "thread", 1, postID("thread", 1))
	published := told(lane, "thread")
	b.begin(t, lane, "next", 0)
	delivered("after the intent of another one", "thread", published)
	delivered("without an event", "next", 0)
	b.posted(t, lane, "next", 0, postID("next", 0))
	published = told(lane, "next")
	lane.Untold(store.Key{Account: acme, ID: "thread"}) // of which nothing waits
	b.release(t, lane, time.Time{})
	delivered("after the release", "next", published)
	equal(t, "moved", len(lane.Moved()), 0)

	lane = b.claim(t)
	b.begin(t, lane, "last", 0)
	told(lane, "last")
	_, err := b.open(t, b.keys).Cancel(t.Context(), store.Key{Account: acme, ID: "last"}, b.now)
	testkit.Must(t, err)
	b.release(t, lane, time.Time{})
	last := b.request(t, "last")
	equal(t, "a newer revision waits to be told", last.Delivered < last.Status.Revision, true)
	equal(t, "moved", lane.Moved(), []store.Key{{Account: acme, ID: "last"}})
	equal(t, "moved, again", len(lane.Moved()), 0)

	b.accept(t, b.acceptance("behind a call", 2)) // its event is told while X makes the next post
	lane = b.claim(t)
	b.publish(t, lane, "behind a call", 0)
	progress = b.request(t, "behind a call").Status.Revision
	b.begin(t, lane, "behind a call", 1)
	equal(t, "the lane takes the mark", lane.Told(store.Revision{Key: store.Key{Account: acme, ID: "behind a call"}, Number: progress}), true)
	b.posted(t, lane, "behind a call", 1, postID("behind a call", 1))
	equal(t, "moved by the step itself", len(lane.Moved()), 0)
	record := b.request(t, "behind a call")
	equal(t, "its own event waits to be told", record.Delivered < record.Status.Revision, true)
	b.release(t, lane, time.Time{})

	b.acceptAll(t, "lost")
	lane = b.claimAndDie(t)
	told(lane, "lost")
	b.claim(t)
	_, err = b.st.ReleaseLane(t.Context(), lane, 0, time.Time{}, b.clock(t))
	fails(t, "release of a lane that was lost", err, store.ErrFenced)
	delivered("by a worker that has lost the lane", "lost", 0)
}
