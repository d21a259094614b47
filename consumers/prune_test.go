package consumers

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

const keepDays = 90 * 24 * time.Hour

func (b *testBundle) pruner(t *testing.T) *pruner {
	t.Helper()
	media, err := publishers.OpenMediaObjects(t.Context(), b.js, b.names)
	testkit.Must(t, err)
	return &pruner{
		Ledger: b.ledger, Media: media, JS: b.js, Names: b.names, Heartbeats: publishers.NewHeartbeats(b.js, b.names),
		Worker: "worker", Keep: keepDays, MediaStays: time.Nanosecond, Log: b.log,
	}
}

// longAgo has a request that was accepted, and failed, before what is kept.
func (b *testBundle) longAgo(t *testing.T, r jetpost.Request) (store.Key, []byte) {
	t.Helper()
	body, err := json.Marshal(r)
	testkit.Must(t, err)
	request, err := jetpost.Decode(r.Account, body)
	testkit.Must(t, err)
	in := Rules{}.acceptance(request, body)
	in.Now = time.Now().Add(-keepDays - time.Hour)
	_, err = b.ledger.Accept(t.Context(), in)
	testkit.Must(t, err)
	_, err = b.ledger.ExpireLate(t.Context(), r.Account, in.Now.Add(time.Minute), 10, in.Now)
	testkit.Must(t, err)
	return in.Key(), body
}

func (b *testBundle) announced(t *testing.T, key store.Key) {
	t.Helper()
	_, err := b.ledger.MarkDelivered(t.Context(), key, b.record(t, key).Status.Revision)
	testkit.Must(t, err)
}

func withObject(id, object string) jetpost.Request {
	return jetpost.Request{Account: "acme", ID: id, Posts: []jetpost.Post{{Text: id, Media: []jetpost.Media{{Object: object}}}}}
}

func (b *testBundle) objects(t *testing.T) (names []string) {
	t.Helper()
	media, err := publishers.OpenMediaObjects(t.Context(), b.js, b.names)
	testkit.Must(t, err)
	list, err := media.List(t.Context())
	testkit.Must(t, err)
	for _, o := range list {
		names = append(names, o.Name)
	}
	slices.Sort(names)
	return names
}

func (b *testBundle) put(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		_, err := b.media.Objects.PutBytes(t.Context(), name, testImage(t))
		testkit.Must(t, err)
	}
}

func round(t *testing.T, p *pruner, dry bool) PruneReport {
	t.Helper()
	report, err := p.Round(t.Context(), dry)
	testkit.Must(t, err)
	return report
}

// TestPrune: what finished long ago goes, and an id of it that comes again posts nothing.
func TestPrune(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	failed, body := b.longAgo(t, withObject("failed", "failed.png"))
	b.announced(t, failed)
	untold, _ := b.longAgo(t, withObject("untold", "untold.png"))
	b.put(t, "failed.png", "untold.png", "waiting.png", "nobodys.png", "twice.png", "deleted.png")
	waiting := b.accept(t, withObject("waiting", "waiting.png"))
	testkit.Must(t, b.media.Objects.Delete(t.Context(), "deleted.png"))

	p := b.pruner(t)
	want := PruneReport{DryRun: true, Requests: 1, Objects: 3, Bytes: 2 * int64(len(testImage(t)))}
	testkit.Equal(t, "a dry run", round(t, p, true), want)
	testkit.Equal(t, "it changed nothing", b.record(t, failed).Pruned, false)

	want.DryRun, want.Objects, want.Bytes = false, 4, 3*int64(len(testImage(t))) // with what only the pruned one named
	testkit.Equal(t, "a round", round(t, p, false), want)
	testkit.Equal(t, "again", round(t, p, false), PruneReport{})
	testkit.Equal(t, "objects", len(b.objects(t)), 2)
	testkit.Equal(t, "kept for who waits and who can be replayed", slices.Equal(b.objects(t), []string{"untold.png", "waiting.png"}), true)
	testkit.Equal(t, "pruned", b.record(t, failed).Pruned, true)
	testkit.Equal(t, "not told yet", b.record(t, untold).Pruned, false)

	take(t, b.intake(), b.job("acme", body))
	testkit.Equal(t, "it came again", b.record(t, failed).Pruned, true)
	b.run(t, b.lane(), "acme")
	b.want(t, waiting, jetpost.StatePublished, "", 1)
	b.texts(t, "acme", "waiting")
	refusals, err := b.ledger.Refusals(t.Context(), 10)
	testkit.Must(t, err)
	testkit.Equal(t, "refusals", len(refusals), 0)
	other, err := json.Marshal(withObject("failed", "other.png"))
	testkit.Must(t, err)
	take(t, b.intake(), b.job("acme", other))
	refusals, err = b.ledger.Refusals(t.Context(), 10)
	testkit.Must(t, err)
	testkit.Equal(t, "refused for", refusals[0].Code, jetpost.CodeIdentityConflict)
}

// TestPruneWaits: nothing is pruned beside a worker that would post it again, beside
// another who prunes, or beside jobs that may name any object.
func TestPruneWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	failed, _ := b.longAgo(t, withObject("failed", "failed.png"))
	b.announced(t, failed)
	b.put(t, "nobodys.png", "young.png")
	p, other := b.pruner(t), b.pruner(t)
	other.Worker = "other"

	testkit.Must(t, p.Heartbeats.Put(t.Context(), publishers.Heartbeat{Worker: "older", Version: "v0"}))
	_, err := p.Round(t.Context(), false)
	old := new(OldWorkerError)
	if !errors.As(err, &old) || old.Worker != "older" {
		t.Errorf("beside an older worker: %v", err)
	}
	testkit.Must(t, p.Heartbeats.Remove(t.Context(), "older"))
	if _, err = other.Round(t.Context(), false); !errors.Is(err, ErrPruning) {
		t.Errorf("beside another who prunes: %v", err)
	}
	testkit.Equal(t, "nothing was pruned", b.record(t, failed).Pruned, false)

	_, err = b.pub.Publish(t.Context(), withObject("job", "nobodys.png"))
	testkit.Must(t, err)
	p.JobsPatience = time.Nanosecond
	report := round(t, p, false)
	testkit.Equal(t, "requests", report.Requests, 1)
	testkit.Equal(t, "objects", report.Objects, 0)
	testkit.Equal(t, "says why", report.MediaKept != "", true)
	testkit.Must(t, b.js.DeleteStream(t.Context(), b.names.JobsStream())) // they are accepted now
	_, err = publishers.Setup(t.Context(), b.js, b.topology(t))
	testkit.Must(t, err)
	p.MediaStays = 0
	testkit.Equal(t, "young ones stay", round(t, p, false), PruneReport{})
	p.MediaStays = time.Nanosecond
	testkit.Equal(t, "objects", round(t, p, false).Objects, 2)

	p.Keep = store.MinKeepFinished - 1
	if _, err := p.Round(t.Context(), true); err == nil {
		t.Error("less than MinKeepFinished is taken")
	}
}

// slowPages does not answer for pages of more than its limit.
type slowPages struct {
	pruneLedger
	limit int
	asked []int
}

func (l *slowPages) Prunable(ctx context.Context, page store.PrunePage) (store.Prunable, error) {
	if l.asked = append(l.asked, page.Limit); page.Limit > l.limit {
		return store.Prunable{}, &store.UnavailableError{Err: context.DeadlineExceeded}
	}
	return l.pruneLedger.Prunable(ctx, page)
}

// TestPruneSmallerPages: a database that answers slowly is asked for less at once, and one
// that does not answer at all ends the round.
func TestPruneSmallerPages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	failed, _ := b.longAgo(t, withObject("failed", "failed.png"))
	b.announced(t, failed)
	p := b.pruner(t)
	slow := &slowPages{pruneLedger: b.ledger, limit: prunePage / 4}
	p.Ledger = slow
	testkit.Equal(t, "requests", round(t, p, false).Requests, 1)
	if want := []int{prunePage, prunePage / 2, prunePage / 4}; !slices.Equal(slow.asked, want) {
		t.Errorf("pages were %v, want %v", slow.asked, want)
	}

	slow.limit = 0
	if _, err := p.Round(t.Context(), false); !store.Unavailable(err) {
		t.Errorf("a database that does not answer: %v", err)
	}
}

// TestPruneInParts: a round that has no time for all prunes one account's at least, leaves
// media alone, and says that there is more.
func TestPruneInParts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.put(t, "nobodys.png")
	for _, account := range []string{"acme", "bolt"} {
		b.account(t, account, 0)
		r := withObject("failed", "failed.png")
		r.Account = account
		failed, _ := b.longAgo(t, r)
		b.announced(t, failed)
	}
	p := b.pruner(t)
	p.Within = time.Nanosecond
	for range 2 {
		testkit.Equal(t, "a part", round(t, p, false), PruneReport{Requests: 1, More: true})
	}
	p.Within = time.Hour
	report := round(t, p, false)
	testkit.Equal(t, "the rest", report, PruneReport{Objects: 1, Bytes: report.Bytes})
}

// TestPruneUploads: of an upload that broke off nothing is left, and one that came under
// the name of a listed object stays whole.
func TestPruneUploads(t *testing.T) {
	t.Parallel()
	b := setup(t)
	media, err := publishers.OpenMediaObjects(t.Context(), b.js, b.names)
	testkit.Must(t, err)
	b.put(t, "twice.png")
	_, err = b.js.Publish(t.Context(), "$O."+b.names.MediaBucket()+".C.broken", []byte("half of it"))
	testkit.Must(t, err)
	listed, err := media.List(t.Context())
	testkit.Must(t, err)
	testkit.Equal(t, "listed", len(listed), 2)
	_, err = b.media.Objects.PutBytes(t.Context(), "twice.png", append(testImage(t), 0))
	testkit.Must(t, err)
	for _, o := range listed {
		testkit.Must(t, media.Remove(t.Context(), o))
	}
	testkit.Equal(t, "left", len(b.objects(t)), 1)
	data, err := b.media.Objects.GetBytes(t.Context(), "twice.png")
	testkit.Must(t, err)
	testkit.Equal(t, "bytes", len(data), len(testImage(t))+1)
	testkit.Equal(t, "messages", b.messages(t, "OBJ_"+b.names.MediaBucket()), 2)
}
