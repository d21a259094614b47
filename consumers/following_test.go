package consumers

import (
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// queue accepts requests of one post each for acme, whose texts are their ids.
func (b *testBundle) queue(t *testing.T, ids ...string) (keys []store.Key) {
	t.Helper()
	b.account(t, "acme", 0)
	for _, id := range ids {
		keys = append(keys, b.accept(t, jetpost.Request{ID: id, Posts: thread(id)}))
	}
	return keys
}

// counting counts the calls of an operation of the ledger.
func counting(op string, n *int) func(string) error {
	return func(got string) error {
		if got == op {
			*n++
		}
		return nil
	}
}

// TestLaneQueueBeginsOnce: of a queue, only the first post's intent is a step of its own.
func TestLaneQueueBeginsOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	keys := b.queue(t, "one", "two", "three")
	begins := 0
	hook := &ledgerHook{Store: b.ledger, before: counting("begin", &begins)}
	b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
	for _, key := range keys {
		r := b.want(t, key, jetpost.StatePublished, "", 1)
		testkit.Equal(t, "attempts", r.Status.Attempts, 1)
		testkit.Equal(t, "event", b.lastEvent(t, key).Type, jetpost.EventRequestPublished)
	}
	b.texts(t, "acme", "one", "two", "three")
	testkit.Equal(t, "begins", begins, 1)
}

// TestLaneQueueWithLimits: where the ledger has to be asked before a request begins, its
// intent waits for that.
func TestLaneQueueWithLimits(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]func(*publishHandler){
		"posts an hour":   func(h *publishHandler) { h.PostingLimits.PostsPerHour = 2 },
		"a month's costs": func(h *publishHandler) { h.Budget.Account = store.MicrosPerDollar },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			keys := b.queue(t, "one", "two", "three")
			begins := 0
			hook := &ledgerHook{Store: b.ledger, before: counting("begin", &begins)}
			b.run(t, b.lane(limit, func(h *publishHandler) { h.Ledger = hook }), "acme")
			live := len(b.x.Posts("acme"))
			testkit.Equal(t, "begins", begins, live)
			if name == "posts an hour" {
				b.want(t, keys[2], jetpost.StateHeld, jetpost.CodePostingLimit, 0)
				b.texts(t, "acme", "one", "two")
			}
		})
	}
}

// TestLaneQueueStops: a worker that is asked to stop sends the post whose intent is
// committed, and begins no other one.
func TestLaneQueueStops(t *testing.T) {
	t.Parallel()
	b := setup(t)
	keys := b.queue(t, "one", "two", "three")
	stopping := make(chan struct{})
	hook := &ledgerHook{Store: b.ledger, before: nth("posted", 1, func() error { close(stopping); return nil })}
	d := b.wake("acme")
	d.Stopping = stopping
	testkit.Must(t, b.lane(func(h *publishHandler) { h.Ledger = hook }).Handle(t.Context(), d))
	b.want(t, keys[1], jetpost.StatePublished, "", 1)
	b.want(t, keys[2], jetpost.StateQueued, "", 0)
	b.texts(t, "acme", "one", "two")
	due, err := b.ledger.DueLanes(t.Context(), time.Now(), 10)
	testkit.Must(t, err)
	testkit.Equal(t, "due lanes", len(due), 1)
}

// TestLaneQueuePausedMeanwhile: an app pause that comes with the commit of the intent holds
// its post: it is not sent, and no doubt is left.
func TestLaneQueuePausedMeanwhile(t *testing.T) {
	t.Parallel()
	b := setup(t)
	keys := b.queue(t, "one", "two")
	var h *publishHandler
	hook := &ledgerHook{Store: b.ledger, after: nth("posted", 1, func() error {
		return h.Gate.Pause(t.Context(), admission.TargetPublish, jetpost.Reason{Code: jetpost.CodePausedByHand, Until: time.Now().Add(time.Hour)}, time.Now())
	})}
	h = b.lane(func(h *publishHandler) { h.Ledger = hook })
	b.run(t, h, "acme")
	b.want(t, keys[0], jetpost.StatePublished, "", 1)
	r := b.want(t, keys[1], jetpost.StateHeld, jetpost.CodeAppPaused, 0)
	testkit.Equal(t, "attempts", r.Status.Attempts, 0)
	testkit.Equal(t, "post", r.Posts[0].State, jetpost.PostPending)
	testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 1)
}

// TestLaneQueueAnswerLost: the outcome and the next intent are committed, and the answer of
// the database is lost. Nothing is in doubt, and each post is sent once.
func TestLaneQueueAnswerLost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	keys := b.queue(t, "one", "two", "three")
	hook := &ledgerHook{Store: b.ledger, after: nth("posted", 1, func() error { return errAway })}
	b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
	for _, key := range keys {
		r := b.want(t, key, jetpost.StatePublished, "", 1)
		testkit.Equal(t, "attempts", r.Status.Attempts, 1)
	}
	b.texts(t, "acme", "one", "two", "three")
}

// TestLaneQueueCancelled: the request behind is cancelled while the head is sent.
func TestLaneQueueCancelled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	keys := b.queue(t, "one", "two", "three")
	hook := &ledgerHook{Store: b.ledger, before: nth("posted", 1, func() error {
		_, err := b.ledger.Cancel(t.Context(), keys[1], time.Now())
		return err
	})}
	b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
	b.want(t, keys[1], jetpost.StateCancelled, "", 0)
	b.texts(t, "acme", "one", "three")
}

// TestLaneQueueExpired: a request that has become too late behind the head is not sent.
func TestLaneQueueExpired(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queue(t, "one")
	late := b.accept(t, jetpost.Request{ID: "late", Posts: thread("late"), ExpiresAt: time.Now().Add(300 * time.Millisecond)})
	hook := &ledgerHook{Store: b.ledger, after: nth("begin", 1, func() error {
		testkit.Eventually(t, "the request is late", func() bool { return time.Now().After(b.record(t, late).Status.ExpiresAt) })
		return nil
	})}
	b.run(t, b.lane(func(h *publishHandler) { h.Ledger = hook }), "acme")
	b.want(t, late, jetpost.StateFailed, jetpost.CodeExpired, 0)
	b.texts(t, "acme", "one")
}

// TestLaneQueueMedia: a request with media begins once they are uploaded.
func TestLaneQueueMedia(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queue(t, "one")
	media := b.accept(t, jetpost.Request{ID: "media", Posts: []jetpost.Post{{Text: "media", Media: []jetpost.Media{{Data: testImage(t), Alt: "grey"}}}}})
	b.run(t, b.lane(), "acme")
	b.want(t, media, jetpost.StatePublished, "", 1)
	b.texts(t, "acme", "one", "media")
	testkit.Equal(t, "media of the last post", len(b.x.Posts("acme")[1].MediaIDs), 1)
}
