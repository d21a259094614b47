package consumers

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/postgres"
)

// intakeHook is a ledger that calls a hook before each acceptance.
type intakeHook struct {
	store.Store
	before func(lease store.Lease, in []store.Acceptance) error
}

func (l *intakeHook) AcceptMany(ctx context.Context, lease store.Lease, in []store.Acceptance) ([]store.Received, error) {
	if err := l.before(lease, in); err != nil {
		return nil, err
	}
	return l.Store.AcceptMany(ctx, lease, in)
}

// reader runs a worker that only reads the partitions.
func (b *testBundle) reader(t *testing.T, worker string, h *intakeHandler, opts ...func(*runner)) (stop func()) {
	t.Helper()
	r := &runner{JetStream: b.js, Leases: b.ledger, Worker: worker, Health: &health{}, Log: b.log, Bindings: b.intakes(h)}
	for _, opt := range opts {
		opt(r)
	}
	return b.start(t, r)
}

// publish publishes jobs of one post each.
func (b *testBundle) publish(t *testing.T, account string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		body, err := json.Marshal(jetpost.Request{Account: account, ID: id, Posts: thread(account + " " + id)})
		testkit.Must(t, err)
		_, err = b.pub.PublishRaw(t.Context(), account, body)
		testkit.Must(t, err)
	}
}

// accepted returns the ids of the account's requests in the order of acceptance.
func (b *testBundle) accepted(t *testing.T, account string) (ids []string) {
	t.Helper()
	deadLetters, err := b.ledger.ListRequests(t.Context(), store.Filter{Account: account, Limit: 10_000})
	testkit.Must(t, err)
	slices.SortFunc(deadLetters, func(x, y store.Record) int { return int(x.Seq - y.Seq) })
	for _, r := range deadLetters {
		ids = append(ids, r.ID)
	}
	return ids
}

func numbers(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprint(i))
	}
	return ids
}

// neighbour finds an account in the same partition.
func (b *testBundle) neighbour(t *testing.T, of string) string {
	t.Helper()
	want := b.partition(t, of)
	for i := range 1000 {
		if name := fmt.Sprint("neighbour", i); b.partition(t, name) == want {
			return name
		}
	}
	t.Fatal("no neighbour")
	return ""
}

// partition asks the server for the partition of an account.
func (b *testBundle) partition(t *testing.T, account string) string {
	t.Helper()
	sequence, err := b.pub.PublishRaw(t.Context(), account, []byte(`{}`))
	testkit.Must(t, err)
	stream, err := b.js.Stream(t.Context(), b.names.JobsStream())
	testkit.Must(t, err)
	msg, err := stream.GetMsg(t.Context(), sequence)
	testkit.Must(t, err)
	testkit.Must(t, stream.DeleteMsg(t.Context(), sequence))
	return strings.Split(b.names.Trim(msg.Subject), ".")[2]
}

// TestIntakeOfABacklog: an account's first job waits for a few transactions at most,
// however many jobs another account has before it, and the jobs of each account stay in
// order.
func TestIntakeOfABacklog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	other := b.neighbour(t, "acme")
	b.account(t, other, 0)
	const backlog = 500
	ids := numbers(backlog)
	b.publish(t, "acme", ids...)
	b.publish(t, other, "first")
	var transactions atomic.Int64
	h := b.intake()
	h.Ledger = &intakeHook{b.ledger, func(store.Lease, []store.Acceptance) error { transactions.Add(1); return nil }}
	b.reader(t, "reader", h)
	testkit.Eventually(t, "the other's job is accepted", func() bool { return len(b.accepted(t, other)) == 1 })
	if n, most := transactions.Load(), int64(2*(backlog/batchJobs+1)); n > most {
		t.Errorf("it took %d transactions, want %d at most", n, most)
	}
	testkit.Eventually(t, "all is acknowledged", func() bool { return b.messages(t, b.names.JobsStream()) == 0 })
	testkit.Equal(t, "order", slices.Equal(b.accepted(t, "acme"), ids), true)
	testkit.Equal(t, "events", b.messages(t, b.names.EventsStream()), backlog+1)
	testkit.Equal(t, "wake-ups", b.messages(t, b.names.LanesStream()), 2)
	untold, err := b.ledger.OutboxPending(t.Context(), time.Now().Add(time.Hour), 1)
	testkit.Must(t, err)
	testkit.Equal(t, "untold", len(untold), 0)
}

// TestIntakeWaitsForAnEarlierDelivery: a job that another worker has, which lost the lease
// and may give it back, is accepted before later jobs of its partition.
func TestIntakeWaitsForAnEarlierDelivery(t *testing.T) {
	t.Parallel()
	for _, while := range []string{"before", "while"} {
		t.Run(while, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			consumer, err := b.js.Consumer(t.Context(), b.names.JobsStream(), "intake-"+b.partition(t, "acme"))
			testkit.Must(t, err)
			var batches atomic.Int64
			h := b.intake()
			h.Ledger = &intakeHook{b.ledger, func(store.Lease, []store.Acceptance) error { batches.Add(1); return nil }}
			if while == "while" { // the stranger's pull request comes before ours
				b.publish(t, "acme", "a")
				b.reader(t, "reader", h)
				testkit.Eventually(t, "the first is accepted", func() bool { return len(b.accepted(t, "acme")) == 1 })
			}
			fetched, err := consumer.Fetch(1, jetstream.FetchMaxWait(testkit.Patience))
			testkit.Must(t, err)
			var strange jetstream.Msg
			for n := 0; strange == nil; n++ { // the server alternates between the pull requests
				b.publish(t, "acme", fmt.Sprint("b", n))
				testkit.Eventually(t, "somebody has it", func() bool {
					select {
					case strange = <-fetched.Messages():
						return true
					default:
						return slices.Contains(b.accepted(t, "acme"), fmt.Sprint("b", n))
					}
				})
			}
			var job jetpost.Request
			testkit.Must(t, json.Unmarshal(strange.Data(), &job))
			b.publish(t, "acme", "c", "d")
			if while == "before" {
				b.reader(t, "reader", h)
			}
			testkit.Eventually(t, "the later ones are in hand", func() bool {
				info, err := consumer.Info(t.Context())
				testkit.Must(t, err)
				return info.NumPending == 0
			})
			got := b.accepted(t, "acme")
			if slices.Contains(got, "c") || slices.Contains(got, job.ID) {
				t.Errorf("accepted are %v, while another worker has %s", got, job.ID)
			}
			testkit.Must(t, strange.Nak())
			testkit.Eventually(t, "all is acknowledged", func() bool { return b.messages(t, b.names.JobsStream()) == 0 })
			got = b.accepted(t, "acme")
			at := slices.Index(got, job.ID)
			testkit.Equal(t, "order of "+fmt.Sprint(got), at >= 0 && slices.Equal(got[at:], []string{job.ID, "c", "d"}), true)
		})
	}
}

// TestIntakeLosesItsLease: a worker whose lease is taken in the middle of a batch accepts
// nothing of it. The new holder of the lease does.
func TestIntakeLosesItsLease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	ids := numbers(20)
	b.publish(t, "acme", ids...)
	h := b.intake()
	var lost atomic.Bool
	var tries atomic.Int64 // tries of the first job
	h.Ledger = &intakeHook{b.ledger, func(lease store.Lease, in []store.Acceptance) error {
		if in[0].Request.ID == "0" {
			tries.Add(1)
		}
		if lost.CompareAndSwap(false, true) {
			ctx, now := t.Context(), time.Now()
			testkit.Must(t, b.ledger.DropLeases(ctx, []string{lease.Name}, lease.Owner, now))
			held, err := b.ledger.TakeLeases(ctx, []string{lease.Name}, "other", time.Microsecond, now)
			testkit.Must(t, err)
			testkit.Equal(t, "taken", len(held), 1)
		}
		return nil
	}}
	b.reader(t, "reader", h)
	testkit.Eventually(t, "all is acknowledged", func() bool { return b.messages(t, b.names.JobsStream()) == 0 })
	testkit.Equal(t, "the first try was refused", tries.Load() > 1, true)
	testkit.Equal(t, "order", fmt.Sprint(b.accepted(t, "acme")), fmt.Sprint(ids))
}

// TestIntakeFaultOfALostLease: a fault of a partition is cleared once another worker reads
// it.
func TestIntakeFaultOfALostLease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	health := &health{}
	b.reader(t, "reader", b.intake(), func(r *runner) { r.Health = health })
	consumer := jetpost.ConsumerIntake(0)
	testkit.Eventually(t, "it reads", func() bool {
		info, err := b.js.Consumer(t.Context(), b.names.JobsStream(), consumer)
		testkit.Must(t, err)
		return info.CachedInfo().NumWaiting > 0
	})
	testkit.Must(t, b.js.DeleteConsumer(t.Context(), b.names.JobsStream(), consumer))
	testkit.Eventually(t, "a fault", func() bool { return health.Err() != nil })
	now := time.Now()
	testkit.Must(t, b.ledger.DropLeases(t.Context(), []string{consumer}, "reader", now))
	held, err := b.ledger.TakeLeases(t.Context(), []string{consumer}, "other", time.Hour, now)
	testkit.Must(t, err)
	testkit.Equal(t, "taken", len(held), 1)
	testkit.Eventually(t, "no fault", func() bool { return health.Err() == nil })
}

// TestIntakeHandsOver: one of two workers reads. When it stops, the other one goes on at
// once, and nothing is accepted twice or out of order.
func TestIntakeHandsOver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	var first, second atomic.Int64
	counted := func(n *atomic.Int64) *intakeHandler {
		h := b.intake()
		h.Ledger = &intakeHook{b.ledger, func(store.Lease, []store.Acceptance) error { n.Add(1); return nil }}
		return h
	}
	stop := b.reader(t, "one", counted(&first))
	b.publish(t, "acme", "a")
	testkit.Eventually(t, "the first worker reads", func() bool { return first.Load() == 1 })
	b.reader(t, "two", counted(&second))
	b.publish(t, "acme", "b", "c", "d", "e")
	stop()
	b.publish(t, "acme", "f", "g")
	testkit.Eventually(t, "all is acknowledged", func() bool { return b.messages(t, b.names.JobsStream()) == 0 })
	testkit.Equal(t, "order", strings.Join(b.accepted(t, "acme"), ""), "abcdefg")
	testkit.Equal(t, "the second one reads", second.Load() > 0, true)
}

// TestIntakeBesideASilentDatabase: a worker that reaches NATS, but whose database does not
// answer or refuses, leaves jobs to a healthy worker.
func TestIntakeBesideASilentDatabase(t *testing.T) {
	t.Parallel()
	faults := map[string]func(*pgtest.Proxy){"black hole": (*pgtest.Proxy).Hang, "refused": (*pgtest.Proxy).Refuse}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Migrated(t, postgres.Migrate)
			open := func(url string) func(*testing.T, *store.Sealer) store.Store {
				return func(t *testing.T, sealer *store.Sealer) store.Store {
					t.Helper()
					s, err := postgres.Open(t.Context(), url, sealer)
					testkit.Must(t, err)
					t.Cleanup(func() { _ = s.Close() })
					return s
				}
			}
			b := setupOn(t, open(url))
			b.account(t, "acme", 0)
			proxy := pgtest.NewProxy(t, url)
			ill := open(proxy.URL())(t, b.sealer)
			h := b.intake()
			h.Ledger, h.Announce.Ledger = ill, ill
			asks := func(ledger store.Store) func(*runner) {
				return func(r *runner) {
					r.Leases = ledger
					r.Liveness = &liveness{Health: r.Health, Log: b.log, Answer: func(ctx context.Context) error {
						_, err := ledger.Clock(ctx)
						return err
					}}
				}
			}
			stop := b.reader(t, "ill", h, asks(ill), func(r *runner) { r.StopGrace = time.Second })
			b.publish(t, "acme", "before")
			testkit.Eventually(t, "the first worker reads", func() bool { return len(b.accepted(t, "acme")) == 1 })
			b.reader(t, "well", b.intake(), asks(b.ledger))
			fault(proxy)
			ids := numbers(120)
			b.publish(t, "acme", ids...)
			testkit.Eventually(t, "the other one accepts all", func() bool { return len(b.accepted(t, "acme")) == 1+len(ids) })
			testkit.Equal(t, "order", fmt.Sprint(b.accepted(t, "acme")[1:]), fmt.Sprint(ids))
			proxy.Heal()
			stop()
		})
	}
}

// brokenObject stores an object whose metadata cannot be read.
func (b *testBundle) brokenObject(t *testing.T, name string) {
	t.Helper()
	subject := "$O." + b.names.MediaBucket() + ".M." + base64.URLEncoding.EncodeToString([]byte(name))
	_, err := b.js.Publish(t.Context(), subject, []byte(`{"name":`))
	testkit.Must(t, err)
}

// wantSetAside fails unless the job is rejected as set aside in the ledger, the stream and
// the event.
func (b *testBundle) wantSetAside(t *testing.T, id string, body []byte, why string) {
	t.Helper()
	refusals, err := b.ledger.Refusals(t.Context(), 100)
	testkit.Must(t, err)
	at := slices.IndexFunc(refusals, func(r jetpost.Refusal) bool { return r.ID == id })
	if at < 0 || refusals[at].Code != jetpost.CodeSetAside || !strings.Contains(refusals[at].Problems[0].Message, why) {
		t.Fatalf("refusals are %+v, want %s set aside for %q", refusals, id, why)
	}
	deadLetters, err := b.deadLetters.List(t.Context(), publishers.DeadLetterFilter{ID: id})
	testkit.Must(t, err)
	if len(deadLetters) != 1 || !deadLetters[0].Refused || deadLetters[0].Code != jetpost.CodeSetAside || string(deadLetters[0].Body) != string(body) {
		t.Errorf("records are %+v", deadLetters)
	}
	raw := b.last(t, b.names.EventsStream(), b.names.RefusedEvent(refusals[at].Account, refusals[at].Sequence))
	if raw == nil || !strings.Contains(string(raw.Data), `"set_aside"`) {
		t.Errorf("no event tells of %s", id)
	}
}

// TestIntakeSetsAside: a job that fails by itself, for whatever reason, is set aside, and
// later jobs of its account and partition go on. Eight such jobs do not stop intake.
func TestIntakeSetsAside(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"broken object", "panic", "refused by the database"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			h := b.intake()
			nc, _ := natstest.Connect(t, b.server)
			h.Answers = nc.FlushWithContext // as a worker checks NATS; it needs a context with a deadline
			b.brokenObject(t, "broken")
			why, post := "media object", `{"media":[{"object":"broken"}]}`
			switch how {
			case "panic":
				why, post = "a bug", `{"media":[{"object":"p"}]}`
				h.Media = panicPinner{}
			case "refused by the database":
				why, post = "value too long", `{"text":"poison"}`
				h.Ledger = &intakeHook{b.ledger, func(_ store.Lease, in []store.Acceptance) error {
					if slices.ContainsFunc(in, func(a store.Acceptance) bool { return strings.HasPrefix(a.Request.ID, "poison") }) {
						return errors.New("value too long")
					}
					return nil
				}}
			}
			const poison = 8
			bodies := map[string][]byte{}
			for i := range poison {
				account := fmt.Sprint("acme", i)
				b.account(t, account, 0)
				id := fmt.Sprint("poison", i)
				bodies[id] = fmt.Appendf(nil, `{"id":%q,"posts":[%s]}`, id, post)
				b.publish(t, account, "before")
				_, err := b.pub.PublishRaw(t.Context(), account, bodies[id])
				testkit.Must(t, err)
				b.publish(t, account, "behind")
			}
			b.reader(t, "reader", h)
			testkit.Eventually(t, "all is acknowledged", func() bool { return b.messages(t, b.names.JobsStream()) == 0 })
			for i := range poison {
				id := fmt.Sprint("poison", i)
				b.wantSetAside(t, id, bodies[id], why)
				testkit.Equal(t, "accepted", fmt.Sprint(b.accepted(t, fmt.Sprint("acme", i))), "[before behind]")
			}
		})
	}
}

type panicPinner struct{}

func (panicPinner) Pin(context.Context, jetpost.Request) ([][]store.Media, error) { panic("a bug") }

// TestIntakeCountsOwnFailures: a failure while a dependency does not answer is not counted
// against the job. A worker continues the count of the one before.
func TestIntakeCountsOwnFailures(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.brokenObject(t, "broken")
	body := []byte(`{"id":"poison","posts":[{"media":[{"object":"broken"}]}]}`)
	d := b.job("acme", body)
	away := b.intake()
	away.Answers = func(context.Context) error { return errAway }
	for range 2 * ownFailures {
		done, err := away.HandleBatch(t.Context(), store.Lease{}, []delivery{d})
		wantAway(t, err)
		testkit.Equal(t, "done", done, 0)
	}
	var asked int
	mortal := b.intake()
	mortal.Answers = func(context.Context) error { // the worker dies at the third failure
		if asked++; asked == 3 {
			return errAway
		}
		return nil
	}
	_, err := mortal.HandleBatch(t.Context(), store.Lease{}, []delivery{d})
	wantAway(t, err)
	n, err := b.ledger.JobFailed(t.Context(), store.JobFailure{Sequence: d.Sequence, Stored: d.Stored, Error: "counted"})
	testkit.Must(t, err)
	testkit.Equal(t, "failures with this one", n, 3)
	asked = 0
	last := b.intake()
	last.Answers = func(context.Context) error { asked++; return nil }
	take(t, last, d, b.job("acme", []byte(`{"id":"behind","posts":[{"text":"one"}]}`)))
	testkit.Equal(t, "failures of the last worker", asked, ownFailures-n)
	b.wantSetAside(t, "poison", body, "media object")
	b.want(t, store.Key{Account: "acme", ID: "behind"}, jetpost.StateQueued, "", 0)
}

// TestIntakeLooksTheAccountUpFirst: the media of an unknown account are not read.
func TestIntakeLooksTheAccountUpFirst(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.intake()
	h.Media = panicPinner{}
	take(t, h, b.job("nobody", []byte(`{"id":"one","posts":[{"media":[{"object":"x"}]}]}`)))
	refusals, err := b.ledger.Refusals(t.Context(), 10)
	testkit.Must(t, err)
	testkit.Equal(t, "refused", len(refusals) == 1 && refusals[0].Code == jetpost.CodeAccountUnknown, true)
}

// silentObjects is an object store that does not answer.
type silentObjects struct{ jetstream.ObjectStore }

func (silentObjects) GetInfo(ctx context.Context, _ string, _ ...jetstream.GetObjectInfoOpt) (*jetstream.ObjectInfo, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestIntakeBesideAnObjectStoreAway: while the object store does not answer, jobs that name
// an object wait, and later jobs of their accounts do, too. Jobs of other accounts in the
// partition do not, however many wait.
func TestIntakeBesideAnObjectStoreAway(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"deleted", "silent"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			other := b.neighbour(t, "acme")
			b.account(t, other, 0)
			h := b.intake()
			source := &mediaSource{Objects: b.media.Objects}
			h.Media = source
			ctx, bucket := t.Context(), b.names.MediaBucket()
			if how == "deleted" {
				testkit.Must(t, b.js.DeleteObjectStore(ctx, bucket))
			} else {
				source.Objects = silentObjects{}
			}
			const waiting = batchJobs + 10 // more than are accepted at once
			var want []string
			for i := range waiting {
				id := fmt.Sprint("clip", i)
				_, err := b.pub.PublishRaw(ctx, "acme", fmt.Appendf(nil, `{"id":%q,"posts":[{"media":[{"object":"clip"}]}]}`, id))
				testkit.Must(t, err)
				want = append(want, id)
			}
			b.publish(t, "acme", "behind")
			want = append(want, "behind")
			ids := numbers(20)
			b.publish(t, other, ids...)
			stop := b.reader(t, "reader", h)
			testkit.Eventually(t, "the other account's jobs are accepted", func() bool { return len(b.accepted(t, other)) == len(ids) })
			testkit.Equal(t, "order of the other", fmt.Sprint(b.accepted(t, other)), fmt.Sprint(ids))
			testkit.Equal(t, "accepted meanwhile", len(b.accepted(t, "acme")), 0)
			b.publish(t, other, "later")
			testkit.Eventually(t, "a later one is accepted", func() bool { return len(b.accepted(t, other)) == len(ids)+1 })
			testkit.Equal(t, "accepted meanwhile", len(b.accepted(t, "acme")), 0)
			stop()

			if how == "deleted" {
				_, err := publishers.Setup(ctx, b.js, b.topology(t))
				testkit.Must(t, err)
			}
			_, err := b.media.Objects.PutBytes(ctx, "clip", []byte(mp4Head))
			testkit.Must(t, err)
			b.reader(t, "next", b.intake())
			testkit.Eventually(t, "all is acknowledged", func() bool { return b.messages(t, b.names.JobsStream()) == 0 })
			testkit.Equal(t, "order", fmt.Sprint(b.accepted(t, "acme")), fmt.Sprint(want))
			record := b.record(t, store.Key{Account: "acme", ID: "clip0"})
			testkit.Equal(t, "pinned", len(record.Posts[0].Media) == 1 && record.Posts[0].Media[0].Digest != "", true)
		})
	}
}
