package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

func claimLane(t *testing.T, b *bundle) {
	first := b.claim(t)
	_, ok, err := b.st.ClaimLane(t.Context(), acme, "other", longLease, b.clock(t))
	testkit.Must(t, err)
	equal(t, "claim of a lane that is held", ok, false)
	b.release(t, first, time.Time{})
	second := b.claim(t)
	if second.Fence <= first.Fence || second.Account != acme {
		t.Errorf("claim %+v follows %+v", second, first)
	}
	_, _, err = b.st.ClaimLane(t.Context(), "nobody", "worker", longLease, b.now)
	fails(t, "no such account", err, store.ErrNotFound)
}

func claimLaneConcurrently(t *testing.T, b *bundle) {
	stores := []store.Store{b.st, b.open(t, b.keys)}
	winners := atOnce(t, 8, func(i int) (bool, error) {
		_, ok, err := stores[i%2].ClaimLane(t.Context(), acme, fmt.Sprint(i), longLease, b.now)
		return ok, err
	})
	equal(t, "winners", winners, 1)
}

func claimLaneCountsLostClaims(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 3))
	equal(t, "first claim", b.claimAndDie(t).LostClaims, 0)
	equal(t, "after one", b.claimAndDie(t).LostClaims, 1)
	lane := b.claimAndDie(t)
	equal(t, "after two", lane.LostClaims, 2)
	lane = b.claim(t)
	equal(t, "after three", lane.LostClaims, 3)
	b.release(t, lane, time.Time{})
	equal(t, "after a release", b.claimAndDie(t).LostClaims, 0)

	lane = b.claim(t)
	equal(t, "after one more", lane.LostClaims, 1)
	b.publish(t, lane, "thread", 0)
	testkit.Must(t, b.st.ExtendLane(t.Context(), lane, shortLease, b.clock(t)))
	equal(t, "after a claim that brought a post", b.claim(t).LostClaims, 0)
}

func extendLane(t *testing.T, b *bundle) {
	lane := b.claim(t)
	testkit.Must(t, b.st.ExtendLane(t.Context(), lane, shortLease, b.clock(t)))
	next := b.claim(t) // the length is counted anew, not added
	fails(t, "extending a lost lane", b.st.ExtendLane(t.Context(), lane, longLease, b.now), store.ErrFenced)

	testkit.Must(t, b.st.ExtendLane(t.Context(), next, shortLease, b.clock(t)))
	last := b.claimAndDie(t)
	testkit.Must(t, b.st.ExtendLane(t.Context(), last, longLease, b.clock(t))) // late, but nobody took it
	_, ok, err := b.st.ClaimLane(t.Context(), acme, "other", longLease, b.clock(t))
	testkit.Must(t, err)
	equal(t, "claim of an extended lane", ok, false)
}

func fences(t *testing.T, b *bundle) {
	b.acceptAll(t, "one")
	old := b.claimAndDie(t)
	lane := b.claim(t)
	generation := b.snapshot(t, lane, b.now).Generation
	before := b.request(t, "one")
	writes := []struct {
		name string
		run  func() error
	}{
		{"begin", func() error { return b.st.Begin(t.Context(), old, "one", b.intent(0)) }},
		{"conclude", func() error {
			return b.st.Conclude(t.Context(), old, "one", store.Outcome{
				State: jetpost.StateFailed, Reason: jetpost.Reason{Code: jetpost.CodeExpired}, Post: -1, Generation: generation, Now: b.now,
			})
		}},
		{"extend", func() error { return b.st.ExtendLane(t.Context(), old, longLease, b.now) }},
		{"snapshot", func() error {
			_, err := b.st.Snapshot(t.Context(), old, b.now)
			return err
		}},
		{"posted", func() error {
			_, err := b.st.Posted(t.Context(), old, "one", store.LivePost{PostID: "p", Now: b.now})
			return err
		}},
		{"release", func() error {
			_, err := b.st.ReleaseLane(t.Context(), old, generation, time.Time{}, b.now)
			return err
		}},
	}
	for _, write := range writes {
		fails(t, write.name+" after a takeover", write.run(), store.ErrFenced)
	}
	equal(t, "request", b.request(t, "one"), before)
	b.begin(t, lane, "one", 0)
}

func releaseLane(t *testing.T, b *bundle) {
	b.acceptAll(t, "one")
	lane := b.claim(t)
	generation := b.snapshot(t, lane, b.now).Generation
	b.acceptAll(t, "two")
	released, err := b.st.ReleaseLane(t.Context(), lane, generation, time.Time{}, b.now)
	testkit.Must(t, err)
	equal(t, "released though something woke", released, false)
	b.begin(t, lane, "one", 0) // the lane is still held

	wakeAt := b.now.Add(time.Hour)
	b.release(t, lane, wakeAt)
	equal(t, "due before", b.due(t, wakeAt.Add(-time.Second)), false)
	equal(t, "due then", b.due(t, wakeAt), true)
	b.release(t, b.claim(t), time.Time{})
	equal(t, "due without a time", b.due(t, b.now.Add(100*time.Hour)), false)
	b.acceptAll(t, "three")
	equal(t, "due after a wake-up", b.due(t, b.now), true)
}

func dueLanes(t *testing.T, b *bundle) {
	list := func(now time.Time, limit int) []string {
		names, err := b.st.DueLanes(t.Context(), now, limit)
		testkit.Must(t, err)
		return names
	}
	for i, name := range []string{"third", "second", "first"} {
		b.add(t, name)
		in := b.acceptance("x", 1)
		in.Request.Account, in.Now = name, b.now.Add(-time.Duration(i)*time.Minute)
		b.accept(t, in)
	}
	later := b.acceptance("later", 1)
	later.Request.PublishAt = b.now.Add(time.Hour)
	b.accept(t, later)
	equal(t, "due lanes", list(b.now, 10), []string{"first", "second", "third"})
	equal(t, "limit", list(b.now, 2), []string{"first", "second"})
	equal(t, "due lanes an hour later", list(b.now.Add(time.Hour), 10), []string{"first", "second", "third", acme})

	_, ok, err := b.st.ClaimLane(t.Context(), "second", "worker", longLease, b.clock(t))
	testkit.Must(t, err)
	equal(t, "claimed", ok, true)
	equal(t, "due lanes that nobody holds", list(b.now, 10), []string{"first", "third"})
	_, ok, err = b.st.ClaimLane(t.Context(), "first", "worker", shortLease, b.clock(t))
	testkit.Must(t, err)
	equal(t, "claimed", ok, true)
	testkit.Eventually(t, "a lane whose holder died is due again", func() bool {
		names := list(b.clock(t), 10)
		return len(names) == 2 && names[0] == "first"
	})
}

func snapshotHead(t *testing.T, b *bundle) {
	lane := b.claim(t)
	empty := b.snapshot(t, lane, b.now)
	if empty.Head != nil || !empty.NextDue.IsZero() {
		t.Fatalf("front of an empty lane: %+v", empty)
	}
	early := b.acceptance("scheduled", 1)
	early.Request.PublishAt = b.now.Add(time.Minute)
	b.accept(t, early)
	in := b.acceptance("begun", 2)
	in.Now = b.now.Add(2 * time.Minute)
	b.accept(t, in)
	snapshot := b.snapshot(t, lane, b.now)
	if snapshot.Generation == empty.Generation || snapshot.Head != nil {
		t.Fatalf("front of a lane with nothing due: %+v, generation before %d", snapshot, empty.Generation)
	}
	equal(t, "next due", snapshot.NextDue, b.now.Add(time.Minute))

	b.publish(t, lane, "begun", 0) // what has begun goes on, though another is due earlier
	then := b.now.Add(3 * time.Minute)
	snapshot = b.snapshot(t, lane, then)
	equal(t, "head", *snapshot.Head, b.request(t, "begun"))
	equal(t, "head by a clock that is behind", b.head(t, lane, b.now), "begun")
	b.conclude(t, lane, "begun", jetpost.StateHeld, jetpost.CodeRateLimited, then.Add(time.Hour))
	equal(t, "a held head stays", b.head(t, lane, then), "begun")
	b.doubt(t, lane, "begun", 1)
	equal(t, "an unknown head stays", b.head(t, lane, then), "begun")
	b.concludePost(t, lane, "begun", jetpost.StateFailed, jetpost.CodeRefusedByX, 1, jetpost.PostFailed)
	equal(t, "a failed head leaves", b.head(t, lane, then), "scheduled")
}

func begin(t *testing.T, b *bundle) {
	b.acceptAll(t, "one")
	lane := b.claim(t)
	intent := b.intent(0)
	intent.Lease = shortLease
	testkit.Must(t, b.st.Begin(t.Context(), lane, "one", intent))
	record := b.state(t, "one", jetpost.StatePublishing, "", jetpost.EventRequestAccepted)
	equal(t, "post", record.Posts[0], store.PostRecord{
		Index: 0, State: jetpost.PostSending, ParentID: "parent-0", Media: []store.Media{}, MediaIDs: []string{"m1", "m2"}, TextHash: []byte{1, 0},
		SentAt: b.now, NotAfter: b.now.Add(15 * time.Second), Attempt: lane.Fence,
	})
	equal(t, "attempts", record.Status.Attempts, 1)
	equal(t, "status of the post", record.Status.Posts[0].State, jetpost.PostSending)
	b.claim(t) // the lease has the length that the intent gave it
}

// uploaded stores what is known of a post's media until it is sent, and forgets the ids
// that X does not take.
func uploaded(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("one", 2))
	lane := b.claim(t)
	before := b.request(t, "one").Status
	media := []store.Media{
		{Digest: "d", ID: "m1", ExpiresAt: b.now.Add(time.Hour), UploadedAt: b.now, CheckAt: b.now.Add(time.Second), Described: true},
		{ID: "m2"},
	}
	testkit.Must(t, b.st.Uploaded(t.Context(), lane, "one", map[int][]store.Media{1: media}))
	record := b.request(t, "one")
	equal(t, "media", record.Posts[1].Media, media)
	equal(t, "of another post", record.Posts[0].Media, []store.Media{})
	equal(t, "what events show", record.Status, before)
	fails(t, "no such post", b.st.Uploaded(t.Context(), lane, "one", map[int][]store.Media{2: media}), store.ErrNotRunnable)
	b.begin(t, lane, "one", 0)
	fails(t, "sent already", b.st.Uploaded(t.Context(), lane, "one", map[int][]store.Media{0: media}), store.ErrNotRunnable)
	b.posted(t, lane, "one", 0, "p0")
	b.begin(t, lane, "one", 1)
	equal(t, "media of a post on its way", b.request(t, "one").Posts[1].Media, media)
	testkit.Must(t, b.st.Conclude(t.Context(), lane, "one", store.Outcome{
		State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeMediaProcessing}, Post: 1, PostState: jetpost.PostPending,
		RenewMedia: true, Now: b.now,
	}))
	equal(t, "media that X does not take", b.request(t, "one").Posts[1].Media, []store.Media{{Digest: "d", Renewed: true}, {Renewed: true}})
	b.release(t, lane, time.Time{})
	next := b.claim(t)
	fails(t, "fenced", b.st.Uploaded(t.Context(), lane, "one", map[int][]store.Media{1: media}), store.ErrFenced)
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "one"}, b.now)
	testkit.Must(t, err)
	fails(t, "taken back", b.st.Uploaded(t.Context(), next, "one", map[int][]store.Media{1: media}), store.ErrNotRunnable)
}

// uploadedTogether stores the media of several posts in one call, or none of them.
func uploadedTogether(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("one", 4))
	lane := b.claim(t)
	known := func() (lists [][]store.Media) {
		for _, p := range b.request(t, "one").Posts {
			lists = append(lists, p.Media)
		}
		return lists
	}
	older, newer := []store.Media{{ID: "m1"}, {}}, []store.Media{{ID: "m1", Described: true}, {ID: "m2", ExpiresAt: b.now.Add(time.Hour)}}
	testkit.Must(t, b.st.Uploaded(t.Context(), lane, "one", map[int][]store.Media{1: older, 2: {{ID: "m3"}}}))
	testkit.Must(t, b.st.Uploaded(t.Context(), lane, "one", map[int][]store.Media{0: {{ID: "m0"}}, 1: newer, 3: {}}))
	want := [][]store.Media{{{ID: "m0"}}, newer, {{ID: "m3"}}, {}}
	equal(t, "media", known(), want)
	fails(t, "one post too many", b.st.Uploaded(t.Context(), lane, "one", map[int][]store.Media{1: older, 3: older, 4: older}), store.ErrNotRunnable)
	equal(t, "media after that", known(), want)
	b.begin(t, lane, "one", 0)
	fails(t, "one is on its way", b.st.Uploaded(t.Context(), lane, "one", map[int][]store.Media{0: older, 1: older}), store.ErrNotRunnable)
	equal(t, "media in the end", known(), want)
}

func beginIsNoNews(t *testing.T, b *bundle) {
	b.acceptAll(t, "told", "untold", "resumed")
	lane := b.claim(t)
	key := func(id string) store.Key { return store.Key{Account: acme, ID: id} }
	_, err := b.st.MarkDelivered(t.Context(), key("told"), 1)
	testkit.Must(t, err)
	b.conclude(t, lane, "resumed", jetpost.StateHeld, jetpost.CodeRateLimited, b.now)
	_, err = b.st.MarkDelivered(t.Context(), key("resumed"), 2)
	testkit.Must(t, err)
	for _, id := range []string{"told", "untold", "resumed"} {
		b.begin(t, lane, id, 0)
	}
	b.state(t, "resumed", jetpost.StatePublishing, "", jetpost.EventRequestResumed)
	keys, err := b.st.OutboxPending(t.Context(), b.now.Add(time.Minute), 10)
	testkit.Must(t, err)
	got := make(map[string]bool)
	for _, k := range keys {
		got[k.ID] = true
	}
	equal(t, "events to be published", got, map[string]bool{"untold": true, "resumed": true})
}

func beginNotRunnable(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 3))
	b.acceptAll(t, "cancelled", "unknown")
	lane := b.claim(t)
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "cancelled"}, b.now)
	testkit.Must(t, err)
	b.publish(t, lane, "thread", 0)
	b.begin(t, lane, "thread", 1)
	b.doubt(t, lane, "unknown", 0)
	refused := []struct {
		id   string
		post int
	}{{"cancelled", 0}, {"thread", 0}, {"thread", 1}, {"thread", 2}, {"thread", 3}, {"unknown", 0}}
	for _, r := range refused {
		err := b.st.Begin(t.Context(), lane, r.id, b.intent(r.post))
		fails(t, fmt.Sprintf("post %d of %s", r.post, r.id), err, store.ErrNotRunnable)
	}
}

func posted(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 2))
	lane := b.claim(t)
	b.conclude(t, lane, "thread", jetpost.StateHeld, jetpost.CodeXUnavailable, b.now)
	generation := b.snapshot(t, lane, b.now).Generation
	equal(t, "first post", b.publish(t, lane, "thread", 0), jetpost.StatePublishing)
	record := b.state(t, "thread", jetpost.StatePublishing, "", jetpost.EventRequestProgress)
	equal(t, "post", record.Status.Posts[0],
		jetpost.PostStatus{State: jetpost.PostPosted, PostID: "x-thread-0", URL: jetpost.PostURL("x-thread-0")})
	equal(t, "holds", record.Holds, 0)
	equal(t, "told again", b.posted(t, lane, "thread", 0, "x-thread-0"), jetpost.StatePublishing)
	equal(t, "record after that", b.request(t, "thread"), record)
	equal(t, "last post", b.publish(t, lane, "thread", 1), jetpost.StatePublished)
	record = b.state(t, "thread", jetpost.StatePublished, "", jetpost.EventRequestPublished)
	equal(t, "posted of total and attempts",
		[]int{record.Status.Posted, record.Status.Total, record.Status.Attempts}, []int{2, 2, 2})
	equal(t, "wake-ups by the holder's own work", b.snapshot(t, lane, b.now).Generation, generation)
	if b.head(t, lane, b.now) != "" {
		t.Error("a published request is still at the head")
	}
}

func postedAdopted(t *testing.T, b *bundle) {
	b.acceptAll(t, "one")
	dead := b.claim(t)
	b.begin(t, dead, "one", 0)
	testkit.Must(t, b.st.ExtendLane(t.Context(), dead, shortLease, b.clock(t)))
	holder := b.claim(t)
	equal(t, "found on X by the present holder", b.posted(t, holder, "one", 0, "found"), jetpost.StatePublished)
	equal(t, "the same by its sender", b.posted(t, dead, "one", 0, "found"), jetpost.StatePublished)
}

func postedAfterTakeover(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("late", 2))
	b.acceptAll(t, "again")
	old := b.claim(t)
	b.begin(t, old, "late", 0)
	b.begin(t, old, "again", 0)
	testkit.Must(t, b.st.ExtendLane(t.Context(), old, shortLease, b.clock(t)))
	lane := b.claim(t)
	generation := b.snapshot(t, lane, b.now).Generation
	equal(t, "late truth", b.posted(t, old, "late", 0, "p0"), jetpost.StatePublishing)
	if b.snapshot(t, lane, b.now).Generation == generation {
		t.Error("the lane did not wake, so its holder continues with its old snapshot")
	}
	fails(t, "next post by the old worker", b.st.Begin(t.Context(), old, "late", b.intent(1)), store.ErrFenced)

	b.concludePost(t, lane, "again", jetpost.StateHeld, jetpost.CodeXUnavailable, 0, jetpost.PostPending)
	b.begin(t, lane, "again", 0)
	_, err := b.st.Posted(t.Context(), old, "again", store.LivePost{PostID: "p", Now: b.now})
	fails(t, "post whose latest intent is another's", err, store.ErrFenced)
}

func postedAfterUnknown(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 2))
	lane := b.claim(t)
	b.doubt(t, lane, "thread", 0)
	b.release(t, lane, time.Time{})
	equal(t, "lane is due before", b.due(t, b.now), false)
	equal(t, "late truth", b.posted(t, lane, "thread", 0, "p0"), jetpost.StateQueued)
	b.state(t, "thread", jetpost.StateQueued, "", jetpost.EventRequestResumed)
	equal(t, "lane is due", b.due(t, b.now), true)
	lane = b.claim(t)
	b.doubt(t, lane, "thread", 1)
	equal(t, "late truth of the last", b.posted(t, lane, "thread", 1, "p1"), jetpost.StatePublished)
}

func postedTaken(t *testing.T, b *bundle) {
	b.acceptAll(t, "one", "two")
	lane := b.claim(t)
	b.begin(t, lane, "one", 0)
	b.posted(t, lane, "one", 0, "p")
	b.begin(t, lane, "two", 0)
	_, err := b.st.Posted(t.Context(), lane, "two", store.LivePost{PostID: "p", Now: b.now})
	fails(t, "post of another request", err, store.ErrPostTaken)
	equal(t, "its state", b.request(t, "two").Posts[0].State, jetpost.PostSending)
}

func concludeHeld(t *testing.T, b *bundle) {
	b.acceptAll(t, "one")
	lane := b.claim(t)
	until := b.now.Add(time.Hour)
	steps := []struct {
		name     string
		code     jetpost.Code
		until    time.Time
		revision int64
		holds    int // those in which something failed
	}{
		{"first", jetpost.CodeXUnavailable, until, 2, 1},
		{"just the same", jetpost.CodeXUnavailable, until, 2, 2},
		{"the same but for a moment", jetpost.CodeXUnavailable, until.Add(900 * time.Millisecond), 2, 3},
		{"longer", jetpost.CodeXUnavailable, until.Add(time.Minute), 3, 4},
		{"for a window", jetpost.CodeRateLimited, until.Add(time.Minute), 4, 4},
		{"for a pause", jetpost.CodeAppPaused, until.Add(time.Minute), 5, 4},
		{"for X's processing", jetpost.CodeMediaProcessing, until.Add(time.Minute), 6, 4},
		{"for a source", jetpost.CodeMediaUnavailable, until.Add(time.Minute), 7, 5},
		{"without an end", jetpost.CodeMediaUnavailable, time.Time{}, 8, 6},
		{"without an end again", jetpost.CodeMediaUnavailable, time.Time{}, 8, 7},
	}
	for _, step := range steps {
		b.conclude(t, lane, "one", jetpost.StateHeld, step.code, step.until)
		record := b.state(t, "one", jetpost.StateHeld, step.code, jetpost.EventRequestHeld)
		equal(t, step.name+": revision", record.Status.Revision, step.revision)
		equal(t, step.name+": end", record.HoldUntil, step.until)
		equal(t, step.name+": holds", record.Holds, step.holds)
	}
	b.begin(t, lane, "one", 0)
	equal(t, "end of the hold", b.request(t, "one").HoldUntil, time.Time{})
	for _, hold := range []struct {
		name        string
		post, holds int
	}{{"a timeline check without a result", 0, 7}, {"a refused timeline check", -1, 8}} {
		testkit.Must(t, b.st.Conclude(t.Context(), lane, "one", store.Outcome{
			State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeReconciling, Until: until},
			Post: hold.post, PostState: jetpost.PostSending, Now: b.now,
		}))
		equal(t, hold.name+": holds", b.request(t, "one").Holds, hold.holds)
	}
}

func concludeEndlessHold(t *testing.T, b *bundle) {
	b.acceptAll(t, "one")
	lane := b.claim(t)
	generation := b.snapshot(t, lane, b.now).Generation
	// The end of the hold comes between the snapshot and the hold.
	_, err := b.st.EndHolds(t.Context(), acme, jetpost.CodeAccountReauthRequired, b.now)
	testkit.Must(t, err)
	later := b.now.Add(time.Minute)
	hold := store.Outcome{
		State: jetpost.StateHeld, Reason: jetpost.Reason{Code: jetpost.CodeAccountReauthRequired}, Post: -1, Generation: generation, Now: later,
	}
	testkit.Must(t, b.st.Conclude(t.Context(), lane, "one", hold))
	equal(t, "end of a hold with a wake-up before", b.request(t, "one").HoldUntil, later)
	released, err := b.st.ReleaseLane(t.Context(), lane, generation, time.Time{}, later)
	testkit.Must(t, err)
	equal(t, "released", released, false)

	hold.Reason.Until = later.Add(time.Hour)
	testkit.Must(t, b.st.Conclude(t.Context(), lane, "one", hold))
	equal(t, "end of a hold that has one", b.request(t, "one").HoldUntil, hold.Reason.Until)
	b.conclude(t, lane, "one", jetpost.StateHeld, jetpost.CodeAccountReauthRequired, time.Time{})
	equal(t, "end of a hold without a wake-up before", b.request(t, "one").HoldUntil, time.Time{})
}

func concludeFailed(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("thread", 3))
	lane := b.claim(t)
	b.fail(t, lane, "thread")
	record := b.state(t, "thread", jetpost.StateFailed, jetpost.CodeRefusedByX, jetpost.EventRequestFailed)
	equal(t, "posts", postStates(record), []jetpost.PostState{jetpost.PostPosted, jetpost.PostFailed, jetpost.PostPending})
	equal(t, "head", b.head(t, lane, b.now), "")
}

func concludeUnknown(t *testing.T, b *bundle) {
	b.acceptAll(t, "one", "behind")
	lane := b.claim(t)
	b.doubt(t, lane, "one", 0)
	record := b.state(t, "one", jetpost.StateUnknown, jetpost.CodeOutcomeUnknown, jetpost.EventRequestUnknown)
	equal(t, "posts", postStates(record), []jetpost.PostState{jetpost.PostSending})
	equal(t, "head", b.head(t, lane, b.now), "one")
}

func concludePending(t *testing.T, b *bundle) {
	b.acceptAll(t, "one")
	lane := b.claim(t)
	b.begin(t, lane, "one", 0)
	b.concludePost(t, lane, "one", jetpost.StateHeld, jetpost.CodeXUnavailable, 0, jetpost.PostPending)
	record := b.request(t, "one")
	equal(t, "posts", postStates(record), []jetpost.PostState{jetpost.PostPending})
	equal(t, "attempts", record.Status.Attempts, 0)
	b.concludePost(t, lane, "one", jetpost.StateHeld, jetpost.CodeXUnavailable, 0, jetpost.PostPending)
	equal(t, "attempts of a post that was not sent", b.request(t, "one").Status.Attempts, 0)
	equal(t, "next try", b.publish(t, lane, "one", 0), jetpost.StatePublished)
}

// overtaken begins the first post of each request and lets another worker take the
// lane.
func (b *bundle) overtaken(t *testing.T, ids ...string) (old, lane store.Claim) {
	t.Helper()
	old = b.claim(t)
	for _, id := range ids {
		b.begin(t, old, id, 0)
	}
	testkit.Must(t, b.st.ExtendLane(t.Context(), old, shortLease, b.clock(t)))
	return old, b.claim(t)
}

// late is an outcome that is reported after a takeover.
func (b *bundle) late(state jetpost.State, code jetpost.Code, post int, postState jetpost.PostState) store.Outcome {
	return store.Outcome{State: state, Reason: jetpost.Reason{Code: code}, Post: post, PostState: postState, Now: b.now}
}

func concludeAfterTakeover(t *testing.T, b *bundle) {
	b.acceptAll(t, "running", "unknown", "cancelled")
	old, lane := b.overtaken(t, "running", "unknown", "cancelled")
	b.concludePost(t, lane, "unknown", jetpost.StateUnknown, jetpost.CodeOutcomeUnknown, 0, jetpost.PostSending)
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "cancelled"}, b.now)
	testkit.Must(t, err)
	for name, doubtful := range map[string]store.Outcome{
		"about no post": b.late(jetpost.StateHeld, jetpost.CodeXUnavailable, -1, jetpost.PostPending),
		"in doubt":      b.late(jetpost.StateUnknown, jetpost.CodeOutcomeUnknown, 0, jetpost.PostSending),
	} {
		before := b.request(t, "unknown")
		fails(t, "outcome "+name, b.st.Conclude(t.Context(), old, "unknown", doubtful), store.ErrFenced)
		equal(t, "request", b.request(t, "unknown"), before)
	}

	unmade := b.late(jetpost.StateHeld, jetpost.CodeXUnavailable, 0, jetpost.PostPending)
	for id, event := range map[string]jetpost.EventType{
		"running": jetpost.EventRequestAccepted, "unknown": jetpost.EventRequestResumed, "cancelled": jetpost.EventRequestCancelled,
	} {
		generation := b.snapshot(t, lane, b.now).Generation
		testkit.Must(t, b.st.Conclude(t.Context(), old, id, unmade))
		state := map[string]jetpost.State{
			"running": jetpost.StatePublishing, "unknown": jetpost.StateQueued, "cancelled": jetpost.StateCancelled,
		}[id]
		record := b.state(t, id, state, "", event)
		equal(t, "posts of "+id, postStates(record), []jetpost.PostState{jetpost.PostPending})
		equal(t, "attempts of "+id, record.Status.Attempts, 0)
		if b.snapshot(t, lane, b.now).Generation == generation {
			t.Errorf("%s: the lane did not wake, so its holder continues with its old snapshot", id)
		}
		fails(t, "the same again", b.st.Conclude(t.Context(), old, id, unmade), store.ErrFenced)
	}
	running := b.request(t, "running")
	b.concludePost(t, lane, "running", jetpost.StateUnknown, jetpost.CodeOutcomeUnknown, 0, jetpost.PostSending)
	equal(t, "request after its holder's doubt", b.request(t, "running"), running)

	b.begin(t, lane, "running", 0)
	fails(t, "post whose latest intent is another's", b.st.Conclude(t.Context(), old, "running", unmade), store.ErrFenced)
	b.posted(t, lane, "running", 0, "p")
	equal(t, "next", b.publish(t, lane, "unknown", 0), jetpost.StatePublished)
}

func concludeAfterTakeoverRefused(t *testing.T, b *bundle) {
	b.acceptAll(t, "running", "unknown", "cancelled", "behind")
	old, lane := b.overtaken(t, "running", "unknown", "cancelled")
	b.concludePost(t, lane, "unknown", jetpost.StateUnknown, jetpost.CodeOutcomeUnknown, 0, jetpost.PostSending)
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "cancelled"}, b.now)
	testkit.Must(t, err)
	refused := b.late(jetpost.StateFailed, jetpost.CodeRefusedByX, 0, jetpost.PostFailed)
	for _, id := range []string{"running", "unknown", "cancelled"} {
		generation := b.snapshot(t, lane, b.now).Generation
		testkit.Must(t, b.st.Conclude(t.Context(), old, id, refused))
		record := b.request(t, id)
		equal(t, "posts of "+id, postStates(record), []jetpost.PostState{jetpost.PostFailed})
		equal(t, "attempts of "+id, record.Status.Attempts, 1)
		if b.snapshot(t, lane, b.now).Generation == generation {
			t.Errorf("%s: the lane did not wake, so its queue stands still", id)
		}
	}
	b.state(t, "running", jetpost.StateFailed, jetpost.CodeRefusedByX, jetpost.EventRequestFailed)
	b.state(t, "unknown", jetpost.StateFailed, jetpost.CodeRefusedByX, jetpost.EventRequestFailed)
	b.state(t, "cancelled", jetpost.StateCancelled, "", jetpost.EventRequestCancelled)
	equal(t, "head", b.head(t, lane, b.now), "behind")
	equal(t, "replay", b.replay(t, "unknown", b.now), store.ReplayResult{Queued: true, State: jetpost.StateFailed, Left: 1})
}

func concludeOutOfDate(t *testing.T, b *bundle) {
	b.accept(t, b.acceptance("settled", 2))
	b.acceptAll(t, "cancelled")
	old := b.claim(t)
	b.begin(t, old, "settled", 0)
	testkit.Must(t, b.st.ExtendLane(t.Context(), old, shortLease, b.clock(t)))
	lane := b.claim(t)
	b.posted(t, old, "settled", 0, "p0") // while the holder decides that it cannot know
	before := b.request(t, "settled")
	b.concludePost(t, lane, "settled", jetpost.StateUnknown, jetpost.CodeOutcomeUnknown, 0, jetpost.PostSending)
	equal(t, "request", b.request(t, "settled"), before)

	b.begin(t, lane, "cancelled", 0)
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "cancelled"}, b.now)
	testkit.Must(t, err)
	b.concludePost(t, lane, "cancelled", jetpost.StateFailed, jetpost.CodeRefusedByX, 0, jetpost.PostFailed)
	record := b.state(t, "cancelled", jetpost.StateCancelled, "", jetpost.EventRequestCancelled)
	equal(t, "posts", postStates(record), []jetpost.PostState{jetpost.PostFailed})
	equal(t, "attempts", record.Status.Attempts, 1)
}

// reserve reserves calls of a window that all accounts share.
func reserve(t *testing.T, b *bundle) {
	ask := func(lane store.Claim, xReset int64, left, need int) store.Reserved {
		t.Helper()
		got, err := b.st.Reserve(t.Context(), lane, store.Reservation{Window: "posts", XReset: xReset, Left: left, Need: need, Now: b.clock(t)})
		testkit.Must(t, err)
		return got
	}
	want := func(what string, got store.Reserved, granted bool, left int) {
		t.Helper()
		equal(t, what, got, store.Reserved{Granted: granted, Left: left})
	}
	other := b.claimOther(t, "bolt")
	lane := b.claim(t)
	want("four of ten", ask(lane, 1, 10, 4), true, 10)
	want("more than is free", ask(other, 1, 10, 7), false, 10)
	want("all that is free", ask(other, 1, 10, 6), true, 10)
	want("others instead of those it had", ask(other, 1, 10, 5), true, 10)
	want("what X has reported to any worker", ask(lane, 1, 9, 4), true, 9)
	want("an older count", ask(other, 1, 10, 6), false, 9) // and gives up what it had
	want("more, as the other has none", ask(lane, 1, 9, 9), true, 9)
	want("given back", ask(lane, 1, 9, 0), true, 9)
	want("all that is left", ask(other, 1, 9, 9), true, 9)
	want("a newer window", ask(other, 2, 20, 1), true, 20)
	want("of an older one", ask(lane, 1, 3, 1), true, 20)

	want("before its release", ask(lane, 2, 20, 19), true, 20)
	want("beside it", ask(other, 2, 20, 2), false, 20)
	b.release(t, lane, time.Time{})
	want("after its release", ask(other, 2, 20, 2), true, 20)
	_, err := b.st.Reserve(t.Context(), lane, store.Reservation{Window: "posts", XReset: 2, Left: 20, Need: 1, Now: b.now})
	fails(t, "by a lane that was released", err, store.ErrFenced)

	dead := b.claim(t)
	want("before its death", ask(dead, 2, 20, 18), true, 20)
	testkit.Must(t, b.st.ExtendLane(t.Context(), dead, shortLease, b.clock(t)))
	b.claim(t)
	want("after its death", ask(other, 2, 20, 20), true, 20)
}

// reserveConcurrently lets many lanes ask at once: no more is granted than is left.
func reserveConcurrently(t *testing.T, b *bundle) {
	stores := []store.Store{b.st, b.open(t, b.keys)}
	var lanes []store.Claim
	for i := range 8 {
		lanes = append(lanes, b.claimOther(t, fmt.Sprint("bolt", i)))
	}
	granted := atOnce(t, len(lanes), func(i int) (bool, error) {
		got, err := stores[i%2].Reserve(t.Context(), lanes[i], store.Reservation{Window: "posts", XReset: 1, Left: 5, Need: 1, Now: b.now})
		return got.Granted, err
	})
	equal(t, "granted", granted, 5)
}

// claimOther claims the lane of another account, which it adds.
func (b *bundle) claimOther(t *testing.T, account string) store.Claim {
	t.Helper()
	b.add(t, account)
	lane, ok, err := b.st.ClaimLane(t.Context(), account, "worker", longLease, b.clock(t))
	testkit.Must(t, err)
	equal(t, "claim of "+account, ok, true)
	return lane
}
