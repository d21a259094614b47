package storetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

// partition is the name of a lease.
const partition = "intake-0"

// lease waits for the lease of the partition.
func (b *bundle) lease(t *testing.T, owner string, d time.Duration) (lease store.Lease) {
	t.Helper()
	testkit.Eventually(t, "lease of "+owner, func() bool {
		held, err := b.st.TakeLeases(t.Context(), []string{partition}, owner, d, b.clock(t))
		testkit.Must(t, err)
		if len(held) > 0 {
			lease = held[0]
		}
		return len(held) > 0
	})
	return lease
}

// leases: one owner holds a lease; each owner, and each time, has another fence.
func leases(t *testing.T, b *bundle) {
	names := []string{"a", "b", "c"}
	take := func(owner string, d time.Duration, names ...string) []store.Lease {
		held, err := b.st.TakeLeases(t.Context(), names, owner, d, b.clock(t))
		testkit.Must(t, err)
		slices.SortFunc(held, func(x, y store.Lease) int { return int(x.Name[0]) - int(y.Name[0]) })
		return held
	}
	first := take("one", longLease, "a", "b")
	equal(t, "taken", len(first), 2)
	equal(t, "lease", first[0], store.Lease{Name: "a", Owner: "one", Fence: 1})
	equal(t, "renewed", take("one", longLease, "a", "b"), first)
	equal(t, "what is free", take("two", longLease, names...), []store.Lease{{Name: "c", Owner: "two", Fence: 1}})
	testkit.Must(t, b.st.DropLeases(t.Context(), names, "two", b.clock(t)))
	equal(t, "the dropped one alone", take("three", longLease, names...), []store.Lease{{Name: "c", Owner: "three", Fence: 2}})
	testkit.Must(t, b.st.DropLeases(t.Context(), []string{"a"}, "one", b.clock(t)))
	equal(t, "the owner's own, anew", take("one", longLease, "a"), []store.Lease{{Name: "a", Owner: "one", Fence: 2}})

	take("one", shortLease, "a")
	testkit.Eventually(t, "taking over one that ran out", func() bool { return len(take("two", longLease, "a")) == 1 })

	stores := []store.Store{b.st, b.open(t, b.keys)}
	winners := atOnce(t, 8, func(i int) (bool, error) {
		held, err := stores[i%2].TakeLeases(t.Context(), []string{"raced"}, fmt.Sprint(i), longLease, b.now)
		return len(held) == 1, err
	})
	equal(t, "winners of a race", winners, 1)
}

// acceptMany: each request gets its own decision, and all of an account their order.
func acceptMany(t *testing.T, b *bundle) {
	b.add(t, "beta")
	b.acceptAll(t, "old")
	beta, nobody, later, held := b.acceptance("1", 1), b.acceptance("1", 1), b.acceptance("3", 2), b.acceptance("held", 0)
	beta.Request.Account, nobody.Request.Account = "beta", "nobody"
	later.Request.PublishAt = b.now.Add(time.Hour)
	later.Request.Metadata = map[string]string{"zero": "\x00", "quote": `"{}`}
	later.Media = [][]store.Media{nil, {{}, {Digest: "d"}}}
	held.Hold = &jetpost.Reason{Code: jetpost.CodeNeedsNewerWorker, Until: b.now.Add(time.Minute), Detail: "later"}
	other := b.acceptance("1", 1)
	other.Body, other.Digest = []byte("else"), []byte("else")
	in := []store.Acceptance{
		b.acceptance("1", 1), nobody, beta, b.acceptance("old", 1), b.acceptance("1", 1), other, later, held, b.acceptance("2", 3),
	}
	want := []store.Decision{
		store.Accepted, store.NoAccount, store.Accepted, store.Repeated, store.Repeated, store.Conflict, store.Accepted, store.Accepted, store.Accepted,
	}
	lease := b.lease(t, "one", longLease)
	for again := range 2 { // the worker died before it could acknowledge them
		out, err := b.st.AcceptMany(t.Context(), lease, in)
		testkit.Must(t, err)
		for i, r := range out {
			decision := want[i]
			if again == 1 && decision == store.Accepted {
				decision = store.Repeated
			}
			equal(t, fmt.Sprintf("decision on %d, try %d", i, again), r.Decision, decision)
			if decision != store.NoAccount {
				record := b.record(t, in[i].Key())
				equal(t, fmt.Sprintf("record of %d", i), r.Record.Status.Revision, record.Status.Revision)
				equal(t, fmt.Sprintf("state of %d", i), r.Record.Status.State, record.Status.State)
				equal(t, fmt.Sprintf("posts of %d", i), len(r.Record.Posts), len(record.Posts))
			}
		}
	}
	for seq, id := range []string{"old", "1", "3", "held", "2"} {
		equal(t, "sequence of "+id, b.request(t, id).Seq, int64(seq+1))
	}
	equal(t, "metadata", b.request(t, "3").Status.Metadata, later.Request.Metadata)
	equal(t, "media", b.request(t, "3").Posts[1].Media, later.Media[1])
	equal(t, "due", b.request(t, "3").DueAt, later.Request.PublishAt)
	equal(t, "hold", b.request(t, "held").Status.Reason.Detail, "later")
	equal(t, "sequence of another account", b.record(t, beta.Key()).Seq, int64(1))
	due, err := b.st.DueLanes(t.Context(), b.now, 10)
	testkit.Must(t, err)
	equal(t, "due", slices.Contains(due, "beta"), true)
	testkit.Eventually(t, "one wake-up", func() bool {
		lane, ok, err := b.st.ClaimLane(t.Context(), "beta", "worker", longLease, b.clock(t))
		testkit.Must(t, err)
		return ok && b.snapshot(t, lane, b.now).Generation == 1
	})
	empty, err := b.st.AcceptMany(t.Context(), lease, nil)
	testkit.Must(t, err)
	equal(t, "none", len(empty), 0)
}

func (b *bundle) record(t *testing.T, key store.Key) store.Record {
	t.Helper()
	record, err := b.st.Request(t.Context(), key)
	testkit.Must(t, err)
	return record
}

// acceptClaims: an acceptance that asks for its account's lane gets it as ClaimLane gives it,
// if nobody holds it.
func acceptClaims(t *testing.T, b *bundle) {
	asks := func(account, id string) store.Acceptance { // one after the other, as a worker reads them
		in := b.acceptance(id, 1)
		in.Request.Account, in.Now = account, b.clock(t)
		in.Claim = &store.LaneClaim{Worker: "worker", Lease: longLease}
		return in
	}
	acceptAll := func(in ...store.Acceptance) []store.Received {
		t.Helper()
		out, err := b.st.AcceptMany(t.Context(), store.Lease{}, in)
		testkit.Must(t, err)
		return out
	}
	b.add(t, "beta")
	b.acceptAll(t, "first")
	silent := asks("beta", "1")
	silent.Claim = nil
	out := acceptAll(asks(acme, "second"), silent, asks("nobody", "1"), asks(acme, "third"))
	for i, claims := range []bool{true, false, false, false} { // once for each account
		equal(t, fmt.Sprint("a claim of ", i), out[i].Claim != nil, claims)
	}
	lane := *out[0].Claim
	_, held, err := b.st.ClaimLane(t.Context(), acme, "another", longLease, b.clock(t))
	testkit.Must(t, err)
	equal(t, "claimed by another", held, false)
	snapshot, read := lane.Next()
	equal(t, "read with the claim", read, true)
	equal(t, "what it sees", snapshot, b.snapshot(t, store.Claim{Account: acme, Fence: lane.Fence}, b.clock(t)))
	equal(t, "head", snapshot.Head.ID, "first")
	if token, known := lane.Token(); known {
		equal(t, "token", token.Access.Reveal(), pair(acme, b.now).Access.Reveal())
	}
	equal(t, "lost claims", lane.LostClaims, 0)
	b.begin(t, lane, "first", 0)

	equal(t, "a claim of a held lane", acceptAll(asks(acme, "fourth"))[0].Claim == nil, true)
	equal(t, "its request", b.request(t, "fourth").Status.State, jetpost.StateQueued)
	b.posted(t, lane, "first", 0, "100")
	b.release(t, lane, time.Time{})
	repeated := acceptAll(asks(acme, "fourth"))[0] // the worker died before it could acknowledge it
	equal(t, "decision", repeated.Decision, store.Repeated)
	equal(t, "its claim", repeated.Claim != nil, true)
	equal(t, "fence", repeated.Claim.Fence, lane.Fence+1)

	lease := b.lease(t, "one", longLease)
	lease.Fence++
	_, err = b.st.AcceptMany(t.Context(), lease, []store.Acceptance{asks("beta", "2")})
	fails(t, "the owner before", err, store.ErrFenced)
	_, free, err := b.st.ClaimLane(t.Context(), "beta", "another", longLease, b.clock(t))
	testkit.Must(t, err)
	equal(t, "free after a failure", free, true)
}

// acceptManyFenced: a worker that lost its lease accepts nothing more, and its
// successor finds what was accepted before.
func acceptManyFenced(t *testing.T, b *bundle) {
	first := b.lease(t, "one", longLease)
	testkit.Must(t, b.st.DropLeases(t.Context(), []string{partition}, "one", b.clock(t)))
	_, err := b.st.AcceptMany(t.Context(), first, []store.Acceptance{b.acceptance("1", 1)})
	testkit.Must(t, err) // it is over, but nobody else has it
	second := b.lease(t, "two", longLease)
	_, err = b.st.AcceptMany(t.Context(), first, []store.Acceptance{b.acceptance("1", 1), b.acceptance("2", 1)})
	fails(t, "the owner before", err, store.ErrFenced)
	_, err = b.st.Request(t.Context(), store.Key{Account: acme, ID: "2"})
	fails(t, "nothing of it", err, store.ErrNotFound)
	out, err := b.st.AcceptMany(t.Context(), second, []store.Acceptance{b.acceptance("1", 1), b.acceptance("2", 1)})
	testkit.Must(t, err)
	equal(t, "first", out[0].Decision, store.Repeated)
	equal(t, "second", out[1].Decision, store.Accepted)
	testkit.Must(t, b.st.DropLeases(t.Context(), []string{partition}, "two", b.clock(t).Add(-time.Microsecond)))
	third := b.lease(t, "two", longLease) // the same worker, but it may have been another's meanwhile
	_, err = b.st.AcceptMany(t.Context(), second, []store.Acceptance{b.acceptance("3", 1)})
	fails(t, "its lease before", err, store.ErrFenced)
	_, err = b.st.AcceptMany(t.Context(), third, []store.Acceptance{b.acceptance("3", 1)})
	testkit.Must(t, err)
}

// acceptManyAtOnce: batches with the same accounts, in other orders, neither block each
// other nor accept anything twice.
func acceptManyAtOnce(t *testing.T, b *bundle) {
	const accounts, batches = 8, 8
	var in []store.Acceptance
	for i := range accounts {
		name := fmt.Sprint("at-once-", i)
		b.add(t, name)
		one := b.acceptance("one", 2)
		one.Request.Account = name
		in = append(in, one)
	}
	stores := []store.Store{b.st, b.open(t, b.keys)}
	accepted := make([]int, batches)
	atOnce(t, batches, func(i int) (bool, error) {
		mine := slices.Clone(in)
		if i%2 == 0 {
			slices.Reverse(mine)
		}
		out, err := stores[i%2].AcceptMany(t.Context(), store.Lease{}, mine)
		for _, r := range out {
			if r.Decision == store.Accepted {
				accepted[i]++
			}
		}
		return err == nil, err
	})
	sum := 0
	for _, n := range accepted {
		sum += n
	}
	equal(t, "accepted", sum, accounts)
}

// acceptManyRefusesTexts: if two requests of one batch have the same text, the second
// one fails.
func acceptManyRefusesTexts(t *testing.T, b *bundle) {
	b.add(t, "beta")
	first, second, third := b.texts(acme, "first", "same"), b.texts("beta", "second", "same"), b.texts("beta", "third", "other")
	in := []store.Acceptance{first, second, third}
	for i := range in {
		in[i].RefuseSameText = true
	}
	out, err := b.st.AcceptMany(t.Context(), store.Lease{}, in)
	testkit.Must(t, err)
	for i, want := range []jetpost.State{jetpost.StateQueued, jetpost.StateFailed, jetpost.StateQueued} {
		equal(t, fmt.Sprint("decision ", i), out[i].Decision, store.Accepted)
		equal(t, fmt.Sprint("state ", i), out[i].Record.Status.State, want)
		equal(t, fmt.Sprint("stored state ", i), b.record(t, in[i].Key()).Status.State, want)
	}
}

// acceptManyFindsTexts: the result of a new request names another account's request
// with the same text, also one of the same batch. A repeat and a request that does not
// ask get none.
func acceptManyFindsTexts(t *testing.T, b *bundle) {
	b.add(t, "beta")
	first, second, third := b.texts(acme, "first", "same"), b.texts("beta", "second", "else", "same"), b.texts("beta", "third", "other")
	silent := b.texts("beta", "silent", "same")
	in := []store.Acceptance{first, second, third, silent, b.texts(acme, "wordless", "")}
	for i := range in {
		in[i].RefuseSameText, in[i].FindSameText = false, in[i].Request.ID != "silent"
	}
	for again := range 2 {
		out, err := b.st.AcceptMany(t.Context(), store.Lease{}, in)
		testkit.Must(t, err)
		for i, want := range []store.Key{second.Key(), first.Key(), {}, {}, {}} {
			if again > 0 {
				want = store.Key{}
			}
			testkit.Must(t, out[i].SameTextErr)
			if other := out[i].SameText; i == 0 && again == 0 && other.ID == silent.Request.ID {
				continue // it has the same text too
			}
			equal(t, fmt.Sprintf("same text as %s, try %d", in[i].Request.ID, again), out[i].SameText, want)
		}
	}
}

// jobFailed counts by the place of a job, for any caller, and forgets old counts.
func jobFailed(t *testing.T, b *bundle) {
	failed := func(st store.Store, sequence uint64, stored time.Time) int {
		n, err := st.JobFailed(t.Context(), store.JobFailure{Sequence: sequence, Stored: stored, Error: "panic\x00"})
		testkit.Must(t, err)
		return n
	}
	other := b.open(t, b.keys)
	equal(t, "first", failed(b.st, 7, b.now), 1)
	equal(t, "of another worker", failed(other, 7, b.now), 2)
	equal(t, "of another job", failed(b.st, 8, b.now), 1)
	equal(t, "of a stream that was made anew", failed(b.st, 7, b.now.Add(time.Second)), 1)
	equal(t, "a sequence beyond 63 bits", failed(b.st, 1<<63+7, b.now), 1)
	failed(b.st, 9, b.now.Add(rules.RefusalRetention+time.Minute))
	equal(t, "forgotten", failed(b.st, 7, b.now), 1)
}

// markManyDelivered marks the revisions that are still the latest, and returns the
// others.
func markManyDelivered(t *testing.T, b *bundle) {
	b.acceptAll(t, "1", "2", "3")
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "2"}, b.now)
	testkit.Must(t, err)
	told := func(ids ...string) (all []store.Revision) {
		for _, id := range ids {
			all = append(all, store.Revision{Key: store.Key{Account: acme, ID: id}, Number: 1})
		}
		return all
	}
	rest, err := b.st.MarkManyDelivered(t.Context(), told("3", "2", "1", "none"))
	testkit.Must(t, err)
	equal(t, "the rest", rest, []store.Key{{Account: acme, ID: "2"}, {Account: acme, ID: "none"}})
	for id, want := range map[string]bool{"1": true, "2": false, "3": true} {
		r := b.request(t, id)
		equal(t, "all of "+id+" was told", r.Delivered == r.Status.Revision, want)
	}

	// The begin of a request needs no event, but its acceptance does.
	b.add(t, "beta")
	for _, how := range []string{"many", "one"} {
		in := b.acceptance(how, 2)
		in.Request.Account = "beta"
		b.accept(t, in)
		lane, _, err := b.st.ClaimLane(t.Context(), "beta", "worker", longLease, b.clock(t))
		testkit.Must(t, err)
		mark := func(number int64) bool {
			if how == "one" {
				latest, err := b.st.MarkDelivered(t.Context(), in.Key(), number)
				testkit.Must(t, err)
				return latest
			}
			rest, err := b.st.MarkManyDelivered(t.Context(), []store.Revision{{Key: in.Key(), Number: number}})
			testkit.Must(t, err)
			return len(rest) == 0
		}
		testkit.Must(t, b.st.Begin(t.Context(), lane, how, b.intent(0)))
		equal(t, "begun only", mark(1), true)
		equal(t, "delivered", b.record(t, in.Key()).Delivered, int64(2))
		_, err = b.st.Posted(t.Context(), lane, how, store.LivePost{PostID: postID(how, 0), Now: b.now})
		testkit.Must(t, err)
		equal(t, "posted since", mark(2), false)
		testkit.Must(t, b.st.Begin(t.Context(), lane, how, b.intent(1)))
		equal(t, "posted, and begun since", mark(3), false)
		_, err = b.st.Posted(t.Context(), lane, how, store.LivePost{Post: 1, PostID: postID(how, 1), Now: b.now})
		testkit.Must(t, err)
		next, _ := lane.Next()
		_, err = b.st.ReleaseLane(t.Context(), lane, next.Generation, time.Time{}, b.clock(t))
		testkit.Must(t, err)
	}
}
