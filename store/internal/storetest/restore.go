package storetest

import (
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

func (b *bundle) gap() store.Gap {
	return store.Gap{Since: b.now.Add(-time.Hour), Until: b.now.Add(time.Minute)}
}

// told is what the last event of a request of acme said, with so many of its posts live.
func (b *bundle) told(id string, state jetpost.State, event jetpost.EventType, total, posted int) store.Rebuilt {
	st := jetpost.RequestStatus{Account: acme, ID: id, Revision: 7, State: state, Total: total, Posted: posted, Attempts: posted, AcceptedAt: b.now, UpdatedAt: b.now}
	for i := range total {
		p := jetpost.PostStatus{Index: i, State: jetpost.PostPending}
		if i < posted {
			p.State, p.PostID = jetpost.PostPosted, postID(id, i)
		}
		st.Posts = append(st.Posts, p)
	}
	return store.Rebuilt{Status: st, Event: event, Gap: b.gap()}
}

func (b *bundle) rebuild(t *testing.T, in store.Rebuilt, want store.RebuildResult) {
	t.Helper()
	got, err := b.st.Rebuild(t.Context(), in)
	testkit.Must(t, err)
	equal(t, "rebuilt "+in.Status.ID, got, want)
}

func (b *bundle) doubtful(t *testing.T, id string, want bool) {
	t.Helper()
	got, err := b.st.Doubt(t.Context(), store.Key{Account: acme, ID: id}, b.gap())
	testkit.Must(t, err)
	equal(t, "in doubt: "+id, got, want)
}

// rebuild: what events tell is known again, and their posts are nobody else's.
func rebuild(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("half", 2))
	b.acceptAll(t, "whole")
	b.rebuild(t, b.told("whole", jetpost.StatePublished, jetpost.EventRequestPublished, 1, 1), store.RebuildUpdated)
	b.rebuild(t, b.told("whole", jetpost.StatePublished, jetpost.EventRequestPublished, 1, 1), store.RebuildKnown)
	record := b.state(t, "whole", jetpost.StatePublished, "", jetpost.EventRequestPublished)
	equal(t, "revision", record.Status.Revision, int64(7))
	equal(t, "told before", record.Delivered, int64(7))
	b.rebuild(t, b.told("half", jetpost.StatePublishing, jetpost.EventRequestProgress, 2, 1), store.RebuildUpdated)
	equal(t, "posts", postStates(b.request(t, "half")), []jetpost.PostState{jetpost.PostPosted, jetpost.PostPending})
	b.rebuild(t, b.told("new", jetpost.StatePublished, jetpost.EventRequestPublished, 2, 2), store.RebuildAdded)
	b.rebuild(t, b.told("gone", jetpost.StateCancelled, jetpost.EventRequestCancelled, 1, 0), store.RebuildAdded)
	owned, err := b.st.Owned(t.Context(), []string{postID("whole", 0), postID("half", 0), postID("new", 1)})
	testkit.Must(t, err)
	equal(t, "owned", len(owned), 3)
	for _, id := range []string{"new", "gone"} {
		decision, err := b.st.Accept(t.Context(), b.acceptance(id, 1))
		testkit.Must(t, err)
		equal(t, id+" comes again", decision, store.Repeated)
	}
	in := b.told("x", jetpost.StatePublished, jetpost.EventRequestPublished, 1, 1)
	in.Status.Account = "nobody"
	_, err = b.st.Rebuild(t.Context(), in)
	fails(t, "no such account", err, store.ErrNotFound)
	b.acceptAll(t, "behind")
	equal(t, "its place", b.request(t, "behind").Seq > b.request(t, "gone").Seq, true)
}

// rebuildLostBody: an unfinished request without its body stands in nobody's way, and goes
// on once it comes again.
func rebuildLostBody(t *testing.T, b *bundle) {
	b.acceptAll(t, "behind")
	b.rebuild(t, b.told("lost", jetpost.StatePublishing, jetpost.EventRequestProgress, 3, 1), store.RebuildBodyLost)
	b.state(t, "lost", jetpost.StateFailed, jetpost.CodeBodyLost, jetpost.EventRequestFailed)
	result, err := b.st.Replay(t.Context(), store.Key{Account: acme, ID: "lost"}, b.now)
	testkit.Must(t, err)
	equal(t, "replayed", result.Queued, false)
	lane := b.claim(t)
	equal(t, "the queue goes on", b.head(t, lane, b.now), "behind")
	decision, err := b.st.Accept(t.Context(), b.acceptance("lost", 2))
	testkit.Must(t, err)
	equal(t, "with fewer posts", decision, store.Conflict)
	b.accept(t, b.acceptance("lost", 3))
	record := b.state(t, "lost", jetpost.StateHeld, jetpost.CodeReconciling, jetpost.EventRequestHeld)
	equal(t, "posts", postStates(record), []jetpost.PostState{jetpost.PostPosted, jetpost.PostSending, jetpost.PostPending})
	equal(t, "body", string(record.Body), "body of lost")
	decision, err = b.st.Accept(t.Context(), b.acceptance("lost", 3))
	testkit.Must(t, err)
	equal(t, "again", decision, store.Repeated)
}

// doubtRestored: each post of a request that may have been sent is looked for before it is sent.
func doubtRestored(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 3))
	ahead := b.acceptance("ahead", 1)
	ahead.Request.PublishAt = b.now.Add(time.Hour)
	b.accept(t, ahead)
	b.doubtful(t, "ahead", false)
	b.state(t, "ahead", jetpost.StateScheduled, "", jetpost.EventRequestScheduled)
	b.doubtful(t, "thread", true)
	record := b.state(t, "thread", jetpost.StateHeld, jetpost.CodeReconciling, jetpost.EventRequestHeld)
	equal(t, "looked for since", record.Posts[0].SentAt, b.gap().Since)
	equal(t, "until", record.Posts[0].NotAfter, b.gap().Until)
	lane := b.claim(t)
	equal(t, "head", b.head(t, lane, b.now.Add(time.Minute)), "thread")
	for i := range 2 {
		fails(t, "is not sent", b.st.Begin(t.Context(), lane, "thread", b.intent(i)), store.ErrNotRunnable)
		b.posted(t, lane, "thread", i, postID("thread", i)) // it was found
		record = b.state(t, "thread", jetpost.StateHeld, jetpost.CodeReconciling, jetpost.EventRequestHeld)
		equal(t, "what the next replies to", record.Posts[i+1].ParentID, postID("thread", i))
	}
	equal(t, "with the last", b.posted(t, lane, "thread", 2, postID("thread", 2)), jetpost.StatePublished)
	_, err := b.st.Doubt(t.Context(), store.Key{Account: acme, ID: "thread"}, b.gap())
	fails(t, "it is finished", err, store.ErrNotRunnable)
}

// doubtAbsent: where a post is not there, none that replies to it is.
func doubtAbsent(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 3))
	b.acceptAll(t, "resolved")
	b.doubtful(t, "thread", true)
	b.doubtful(t, "resolved", true)
	lane := b.claim(t)
	b.posted(t, lane, "thread", 0, postID("thread", 0))
	testkit.Must(t, b.st.Conclude(t.Context(), lane, "thread", store.Outcome{
		State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeReconciling, Until: b.now}, Post: 1, PostState: jetpost.PostPending, Now: b.now,
	}))
	equal(t, "published", b.publish(t, lane, "thread", 1), jetpost.StatePublishing)
	equal(t, "published", b.publish(t, lane, "thread", 2), jetpost.StatePublished)
	_, err := b.st.Resolve(t.Context(), store.Key{Account: acme, ID: "resolved"}, "", b.now)
	testkit.Must(t, err)
	equal(t, "sent after a person's word", b.publish(t, lane, "resolved", 0), jetpost.StatePublished)
}

// doubtSettled: a person says that a post is live which nobody is known to have begun, and
// a check that finds nothing leaves its request unknown.
func doubtSettled(t *testing.T, b *bundle) {
	b.acceptAll(t, "live", "unknown")
	b.doubtful(t, "live", true)
	b.doubtful(t, "unknown", true)
	state, err := b.st.Resolve(t.Context(), store.Key{Account: acme, ID: "live"}, postID("live", 0), b.now)
	testkit.Must(t, err)
	equal(t, "state", state, jetpost.StatePublished)
	b.concludePost(t, b.claim(t), "unknown", jetpost.StateUnknown, jetpost.CodeOutcomeUnknown, 0, jetpost.PostSending)
	b.state(t, "unknown", jetpost.StateUnknown, jetpost.CodeOutcomeUnknown, jetpost.EventRequestUnknown)
}
