package storetest

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// announce marks what is known of requests as told.
func (b *bundle) announce(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		_, err := b.st.MarkDelivered(t.Context(), store.Key{Account: acme, ID: id}, b.request(t, id).Status.Revision)
		testkit.Must(t, err)
	}
}

// prunable is what can be pruned, in pages of two.
func (b *bundle) prunable(t *testing.T, before time.Time) (keys []store.Key) {
	t.Helper()
	page := store.PrunePage{FinishedBefore: before, Limit: 2}
	for {
		found, err := b.st.Prunable(t.Context(), page)
		testkit.Must(t, err)
		keys = append(keys, found.Keys...)
		if found.Done {
			return keys
		}
		page.After = found.Next
	}
}

// prune prunes all that finished before a time, and returns how many that were.
func (b *bundle) prune(t *testing.T, before time.Time) (n int) {
	t.Helper()
	for _, key := range b.prunable(t, before) {
		for {
			got, err := b.st.Prune(t.Context(), key.Account, []string{key.ID}, before)
			if n += got.Requests; err == nil {
				break
			}
			if !store.Unavailable(err) { // else the machine is busy, and it was taken back
				t.Fatal(err)
			}
		}
	}
	return n
}

// finished leaves acme with requests in each final state, all told, and one that was
// published last, which is the account's latest live post. It returns acme's lane.
func (b *bundle) finished(t *testing.T) store.Claim {
	t.Helper()
	b.accept(t, b.acceptance("published", 2))
	b.acceptAll(t, "failed", "cancelled", "latest", "waiting")
	lane := b.claim(t)
	b.publish(t, lane, "published", 0)
	b.publish(t, lane, "published", 1)
	b.begin(t, lane, "failed", 0)
	b.concludePost(t, lane, "failed", jetpost.StateFailed, jetpost.CodeRefusedByX, 0, jetpost.PostFailed)
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "cancelled"}, b.now)
	testkit.Must(t, err)
	intent := b.intent(0)
	intent.Now = b.now.Add(time.Second)
	testkit.Must(t, b.st.Begin(t.Context(), lane, "latest", intent))
	b.posted(t, lane, "latest", 0, postID("latest", 0))
	b.announce(t, "published", "failed", "cancelled", "latest", "waiting")
	return lane
}

// prune leaves identities: an id that comes again is known, and nothing else of it is.
func prune(t *testing.T, b *bundle) {
	b.finished(t)
	later := b.now.Add(time.Hour)
	equal(t, "prunable", len(b.prunable(t, later)), 3)
	equal(t, "nothing is that old", b.prune(t, b.now.Add(-time.Hour)), 0)
	was := b.request(t, "failed")
	equal(t, "pruned", b.prune(t, later), 3)
	equal(t, "pruned again", b.prune(t, later), 0)

	for _, id := range []string{"published", "failed", "cancelled"} {
		got := b.request(t, id)
		equal(t, "state of "+id, got.Status.State, jetpost.State(id))
		equal(t, "pruned "+id, fmt.Sprint(got.Pruned, got.Status.Pruned, len(got.Body), len(got.Posts), got.Status.Total), "true true 0 0 0")
		equal(t, "announced "+id, got.Delivered, got.Status.Revision)
		again := b.acceptance(id, 1)
		decision, err := b.st.Accept(t.Context(), again)
		testkit.Must(t, err)
		equal(t, "equal repeat of "+id, decision, store.Repeated)
		again.Body, again.Digest = []byte("other"), []byte("other digest of "+id)
		decision, err = b.st.Accept(t.Context(), again)
		testkit.Must(t, err)
		equal(t, "other body of "+id, decision, store.Conflict)
		_, err = b.st.Replay(t.Context(), store.Key{Account: acme, ID: id}, later)
		fails(t, "replay of "+id, err, store.ErrPruned)
		_, err = b.st.Cancel(t.Context(), store.Key{Account: acme, ID: id}, later)
		fails(t, "cancel of "+id, err, store.ErrPruned)
	}
	got := b.request(t, "failed")
	equal(t, "times", []time.Time{got.Status.AcceptedAt, got.Status.UpdatedAt}, []time.Time{was.Status.AcceptedAt, was.Status.UpdatedAt})
	equal(t, "revision", got.Status.Revision, was.Status.Revision)
	list, err := b.st.ListRequests(t.Context(), store.Filter{})
	testkit.Must(t, err)
	equal(t, "the rest", ids(list), []string{"waiting", "latest"})
	owned, err := b.st.Owned(t.Context(), []string{postID("published", 0), postID("published", 1), postID("latest", 0)})
	testkit.Must(t, err)
	equal(t, "posts", owned, []string{postID("latest", 0)})
	left, err := b.st.PrunedRequests(t.Context(), "", "published")
	testkit.Must(t, err)
	equal(t, "found by its id", len(left) == 1 && left[0].Account == acme && left[0].Pruned, true)
	left, err = b.st.PrunedRequests(t.Context(), "other", "published")
	testkit.Must(t, err)
	equal(t, "of another account", len(left), 0)
}

func ids(list []store.Record) (all []string) {
	for _, r := range list {
		all = append(all, r.ID)
	}
	return all
}

// pruneKeeps: what has something to do or to tell stays, and so does the latest live post,
// which an account's timeline must show.
func pruneKeeps(t *testing.T, b *bundle) {
	lane := b.finished(t)
	later := b.now.Add(time.Hour)
	b.acceptAll(t, "untold", "doubtful", "deleted")
	b.publish(t, lane, "untold", 0)
	b.publish(t, lane, "deleted", 0)
	b.begin(t, lane, "doubtful", 0)
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "doubtful"}, b.now)
	testkit.Must(t, err)
	b.unpublish(t, "deleted")
	b.announce(t, "doubtful", "deleted")
	equal(t, "pruned", b.prune(t, later), 3)
	for _, id := range []string{"untold", "doubtful", "deleted", "latest", "waiting"} {
		equal(t, id+" stays", b.request(t, id).Pruned, false)
	}
	b.deleted(t, lane, "deleted", 0)
	b.announce(t, "untold", "deleted")
	equal(t, "pruned once nothing is left to do", b.prune(t, later), 2)
	anchor, err := b.st.Anchor(t.Context(), acme)
	testkit.Must(t, err)
	equal(t, "latest live post", anchor.PostID, postID("latest", 0))
}

// pruneUnread: one that no worker could read is known by its bytes.
func pruneUnread(t *testing.T, b *bundle) {
	in := b.acceptance("new", 0)
	sum := sha256.Sum256(in.Body)
	in.Digest, in.Hold = sum[:], &jetpost.Reason{Code: jetpost.CodeNeedsNewerWorker, Until: b.now}
	b.accept(t, in)
	_, err := b.st.Cancel(t.Context(), in.Key(), b.now)
	testkit.Must(t, err)
	b.announce(t, "new")
	equal(t, "pruned", b.prune(t, b.now.Add(time.Hour)), 1)
	decision, err := b.st.Accept(t.Context(), b.acceptance("new", 1)) // by a worker that reads it
	testkit.Must(t, err)
	equal(t, "the same bytes", decision, store.Repeated)
}

// pruneBesideAccept: of ids that come again while they are pruned, none is a new request.
func pruneBesideAccept(t *testing.T, b *bundle) {
	const n = 60
	var all []store.Acceptance
	for i := range n {
		in := b.acceptance(fmt.Sprintf("r%d", i), 1)
		b.accept(t, in)
		_, err := b.st.Cancel(t.Context(), in.Key(), b.now)
		testkit.Must(t, err)
		b.announce(t, in.Request.ID)
		all = append(all, in)
	}
	stop := make(chan struct{})
	again := make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				again <- nil
				return
			default:
			}
			received, err := b.st.AcceptMany(t.Context(), store.Lease{}, all)
			if err != nil {
				again <- err
				return
			}
			if i := slices.IndexFunc(received, func(r store.Received) bool { return r.Decision != store.Repeated }); i >= 0 {
				again <- fmt.Errorf("%s came again, and the decision is %d", all[i].Request.ID, received[i].Decision)
				return
			}
		}
	}()
	pruned := 0
	testkit.Eventually(t, "all are pruned", func() bool {
		pruned += b.prune(t, b.now.Add(time.Hour))
		return pruned >= n
	})
	close(stop)
	testkit.Must(t, <-again)
	equal(t, "pruned", pruned, n)
}

// mediaUsers are requests that may still be posted.
func mediaUsers(t *testing.T, b *bundle) {
	bodies := map[string]string{
		"plain":   `{"posts":[{"text":"no object here: \u00e9"}]}`,
		"names":   `{"posts":[{"media":[{"object":"cat.png"}]}]}`,
		"escapes": `{"posts":[{"media":[{"\u006fbject":"dog.png"}]}]}`,
		"other":   `{"posts":[{"text":"nothing"}]}`,
		"done":    `{"posts":[{"media":[{"object":"done.png"}]}]}`,
		"failing": `{"posts":[{"media":[{"object":"failed.png"}]}]}`,
	}
	for _, id := range []string{"plain", "names", "escapes", "other", "done", "failing"} {
		in := b.acceptance(id, 1)
		in.Body = []byte(bodies[id])
		b.accept(t, in)
	}
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "done"}, b.now)
	testkit.Must(t, err)
	lane := b.claim(t)
	b.conclude(t, lane, "failing", jetpost.StateFailed, jetpost.CodeMediaInvalid, time.Time{})
	var seen []string
	testkit.Must(t, b.st.MediaUsers(t.Context(), func(account string, body []byte) {
		equal(t, "account", account, acme)
		seen = append(seen, string(body))
	}))
	slices.Sort(seen)
	want := []string{bodies["plain"], bodies["names"], bodies["escapes"], bodies["failing"]}
	slices.Sort(want)
	equal(t, "users", seen, want)
}
