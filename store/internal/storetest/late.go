package storetest

import (
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// lateWords: a call that was given up may take effect minutes later, after its worker
// or another one has continued. It does no harm then: it is refused, changes nothing,
// or only wakes a lane once more.
func lateWords(t *testing.T, b *bundle) {
	t.Run("Lane", func(t *testing.T) { b.lateLane(t) })
	t.Run("Token", func(t *testing.T) { b.lateToken(t) })
}

func (b *bundle) lateLane(t *testing.T) {
	t.Helper()
	b.acceptAll(t, "first", "second")
	lane := b.claim(t)
	generation := b.snapshot(t, lane, b.now).Generation
	b.publish(t, lane, "first", 0)
	b.begin(t, lane, "second", 0)

	// The lane's own calls from before the post.
	fails(t, "late intent", b.st.Begin(t.Context(), lane, "first", b.intent(0)), store.ErrNotRunnable)
	testkit.Must(t, b.st.Conclude(t.Context(), lane, "first", store.Outcome{
		State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeRateLimited}, Post: 0, PostState: jetpost.PostPending, Generation: generation, Now: b.now,
	}))
	b.state(t, "first", jetpost.StatePublished, "", jetpost.EventRequestPublished)
	fails(t, "late media", b.st.Uploaded(t.Context(), lane, "second", map[int][]store.Media{0: {{ID: "m"}}}), store.ErrNotRunnable)
	latest, err := b.st.MarkDelivered(t.Context(), store.Key{Account: acme, ID: "first"}, 1)
	testkit.Must(t, err)
	equal(t, "an old revision is the latest", latest, false)

	// A release from before the second post frees the lane, and the writer can still
	// store the outcome.
	released, err := b.st.ReleaseLane(t.Context(), lane, generation, time.Time{}, b.now)
	testkit.Must(t, err)
	equal(t, "released", released, true)
	next := b.claim(t)
	fails(t, "late heartbeat", b.st.ExtendLane(t.Context(), lane, longLease, b.now), store.ErrFenced)
	_, err = b.st.ReleaseLane(t.Context(), lane, generation, time.Time{}, b.now)
	fails(t, "late release", err, store.ErrFenced)
	_, err = b.st.Reserve(t.Context(), lane, store.Reservation{Window: "w", Left: 1, Need: 1, Now: b.now})
	fails(t, "late reservation", err, store.ErrFenced)
	_, err = b.st.HoldQueue(t.Context(), lane, jetpost.Reason{Code: jetpost.CodeAccountReauthRequired}, generation, b.now)
	fails(t, "late hold of the queue", err, store.ErrFenced)
	equal(t, "what X answered is reported after all", b.posted(t, lane, "second", 0, "77"), jetpost.StatePublished)
	equal(t, "and reported again", b.posted(t, lane, "second", 0, "77"), jetpost.StatePublished)
	equal(t, "head", b.head(t, next, b.now), "")
}

func (b *bundle) lateToken(t *testing.T) {
	t.Helper()
	old := b.claimOne(t, acme, longLease)
	failure := store.TokenFailure{Error: "late", Outcome: store.ExchangeRefused, Now: b.now}
	fresh := pair("fresh", b.now.Add(time.Hour))
	testkit.Must(t, b.st.SaveToken(t.Context(), old, fresh, b.now))
	testkit.Must(t, b.st.SaveToken(t.Context(), old, fresh, b.now)) // its answer was lost
	fails(t, "late failure", b.st.SaveTokenFailure(t.Context(), old, failure), store.ErrFenced)
	claim := b.claimOne(t, acme, longLease)
	fails(t, "late failure under another's lease", b.st.SaveTokenFailure(t.Context(), old, failure), store.ErrFenced)
	fails(t, "late end of a pair", b.st.ForgetPair(t.Context(), old), store.ErrFenced)
	testkit.Must(t, b.st.SaveToken(t.Context(), old, fresh, b.now)) // an answer that was lost, once more
	fails(t, "late pair of another exchange", b.st.SaveToken(t.Context(), old, pair("stale", b.now.Add(time.Hour)), b.now), store.ErrFenced)
	testkit.Must(t, b.st.SaveToken(t.Context(), claim, pair("fresher", b.now.Add(time.Hour)), b.now))
	fails(t, "late pair", b.st.SaveToken(t.Context(), old, fresh, b.now), store.ErrFenced)
	equal(t, "stored pair", b.token(t, acme).Refresh.Reveal(), "refresh-of-fresher-in-the-clear")
}
