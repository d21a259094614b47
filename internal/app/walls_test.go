package app

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// answerWithin is how long a test waits for an answer that should not matter.
const answerWithin = 200 * time.Millisecond

// startInstance starts the NATS of 'up', set up for a ledger of its own.
func startInstance(t *testing.T) (Config, *Connection) {
	t.Helper()
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	s, reach, err := StartNATS(t.Context(), dir, "127.0.0.1:0", jetpost.Names{}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	cfg := Config{NATS: reach, DatabaseURL: secret.New("sqlite:" + filepath.Join(dir, databaseFile)), Keys: store.GenerateKey()}
	if _, err := cfg.Setup(t.Context(), log); err != nil {
		t.Fatal(err)
	}
	conn, err := cfg.Connect(t.Context(), log, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return cfg, conn
}

// producer connects as a program that was told nothing but the address, or
// that says which user it is.
func producer(t *testing.T, cfg Config, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(cfg.NATS.URL, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// NATS checks no permission on replies: the server's answer to a producer lands
// wherever the producer says, and an empty one is a request that purges.
func TestProducerRepliesDoNoHarm(t *testing.T) {
	t.Parallel()
	for name, login := range map[string][]nats.Option{
		"without a login": nil,
		"with a login":    {nats.UserInfo(producerUser, "")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, conn := startInstance(t)
			nc := producer(t, cfg, login...)
			if err := publishers.NewWakeups(conn.JS, conn.Names).Wake(t.Context(), "acme"); err != nil {
				t.Fatal(err)
			}
			// A job whose acknowledgement is an app pause.
			testkit.Must(t, nc.PublishRequest(conn.Names.PublishRequest("acme"), "$KV."+conn.Names.LimitsBucket()+".pause.publish", []byte(`{"posts":[{"text":"Hello"}]}`)))
			// A read that finds nothing: its answer's body is empty.
			testkit.Must(t, nc.PublishRequest("$JS.API.DIRECT.GET."+conn.Names.EventsStream(), "$JS.API.STREAM.PURGE."+conn.Names.LanesStream(), []byte(`{"last_by_subj":"jetpost.event.none"}`)))
			testkit.Must(t, nc.PublishRequest("$JS.API.DIRECT.GET."+conn.Names.EventsStream(), "$JS.API.STREAM.DELETE."+conn.Names.FailedStream(), []byte(`{"last_by_subj":"jetpost.event.none"}`)))
			testkit.Must(t, nc.Flush())
			// What was answered before this, was answered.
			_, _ = nc.Request("$JS.API.INFO", nil, answerWithin)

			pauses, err := publishers.NewAppPauses(conn.JS, conn.Names).All(t.Context())
			testkit.Must(t, err)
			if len(pauses) > 0 {
				t.Errorf("a producer's job made the app pause %+v", pauses[0])
			}
			lanes, err := conn.JS.Stream(t.Context(), conn.Names.LanesStream())
			testkit.Must(t, err)
			if n := lanes.CachedInfo().State.Msgs; n != 1 {
				t.Errorf("%d wake-ups are left of 1", n)
			}
			var names []string
			for name := range conn.JS.StreamNames(t.Context()).Name() {
				names = append(names, name)
			}
			if !slices.Contains(names, conn.Names.FailedStream()) {
				t.Errorf("%s is gone: there are %q", conn.Names.FailedStream(), names)
			}
		})
	}
}

// walled is a producer beside a worker that walls keep apart.
type walled struct {
	cfg    Config
	worker *Connection
	names  jetpost.Names
	nc     *nats.Conn // the producer's, as js and stream are
	js     jetstream.JetStream
	stream jetstream.Stream // of events
}

// wallEvents is how many events the producer reads in each way.
const wallEvents = 5

// What a producer has, with unmodified clients: jobs, live events, the last event
// of a subject, consumers of every kind, and media.
func TestProducerBehindWalls(t *testing.T) {
	t.Parallel()
	cfg, conn := startInstance(t)
	w := &walled{cfg: cfg, worker: conn, names: conn.Names, nc: producer(t, cfg)}
	var err error
	w.js, err = jetstream.New(w.nc)
	testkit.Must(t, err)
	w.stream, err = w.js.Stream(t.Context(), w.names.EventsStream())
	testkit.Must(t, err)
	w.publishes(t)
	w.hearsLiveEvents(t)
	w.readsLastEvent(t)
	w.consumes(t)
	w.consumesInOrder(t)
	w.isPushed(t)
	w.storesMedia(t)
	w.losesMedia(t)
	w.isSetUpAgain(t)
}

func (w *walled) publishes(t *testing.T) {
	t.Helper()
	if _, err := publishers.New(w.js, w.names).PublishRaw(t.Context(), "acme", []byte(`{"posts":[{"text":"Hello"}]}`)); err != nil {
		t.Errorf("publish a job: %v", err)
	}
}

// hearsLiveEvents subscribes, and the worker publishes events.
func (w *walled) hearsLiveEvents(t *testing.T) {
	t.Helper()
	live, err := w.nc.SubscribeSync(w.names.AllEvents())
	testkit.Must(t, err)
	testkit.Must(t, w.nc.Flush())
	for i := range wallEvents {
		testkit.Must(t, publishers.NewDeadLetters(w.worker.JS, w.names).Event(t.Context(), w.names.EventSubject(jetpost.EventAppResumed, "", ""), jetpost.Event{
			EventID: fmt.Sprint(i), Type: jetpost.EventAppResumed, Time: time.Now().UTC(), App: &jetpost.AppStatus{Target: publishers.TargetPublish},
		}))
	}
	for range wallEvents {
		if _, err := live.NextMsg(testkit.Patience); err != nil {
			t.Fatalf("live events: %v", err)
		}
	}
}

func (w *walled) readsLastEvent(t *testing.T) {
	t.Helper()
	testkit.Eventually(t, "the mirror to have the events", func() bool {
		info, err := w.stream.Info(t.Context())
		return err == nil && info.State.Msgs == wallEvents
	})
	if msg, err := w.stream.GetLastMsgForSubject(t.Context(), w.names.AllEvents()); err != nil || msg.Sequence != wallEvents {
		t.Errorf("last event: %+v, %v", msg, err)
	}
}

func (w *walled) consumes(t *testing.T) {
	t.Helper()
	for name, config := range map[string]jetstream.ConsumerConfig{
		"durable": {Durable: "mine", AckPolicy: jetstream.AckExplicitPolicy}, "ephemeral": {AckPolicy: jetstream.AckExplicitPolicy},
	} {
		consumer, err := w.stream.CreateOrUpdateConsumer(t.Context(), config)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		batch, err := consumer.Fetch(wallEvents, jetstream.FetchMaxWait(testkit.Patience))
		testkit.Must(t, err)
		got := 0
		for msg := range batch.Messages() {
			testkit.Must(t, msg.DoubleAck(t.Context()))
			got++
		}
		if got != wallEvents {
			t.Errorf("%s: %d events, want %d: %v", name, got, wallEvents, batch.Error())
		}
	}
}

func (w *walled) consumesInOrder(t *testing.T) {
	t.Helper()
	for _, filters := range [][]string{nil, {w.names.AllEvents()}, {w.names.EventSubject(jetpost.EventAppResumed, "", ""), w.names.EventSubject(jetpost.EventAppPaused, "", "")}} {
		ordered, err := w.stream.OrderedConsumer(t.Context(), jetstream.OrderedConsumerConfig{FilterSubjects: filters})
		if err != nil {
			t.Errorf("ordered, %d filters: %v", len(filters), err)
			continue
		}
		messages, err := ordered.Messages()
		testkit.Must(t, err)
		for i := range wallEvents {
			if _, err := messages.Next(jetstream.NextMaxWait(testkit.Patience)); err != nil {
				t.Errorf("ordered, %d filters, event %d: %v", len(filters), i, err)
				break
			}
		}
		messages.Stop()
	}
}

// isPushed reads with the older client.
func (w *walled) isPushed(t *testing.T) {
	t.Helper()
	old, err := w.nc.JetStream()
	testkit.Must(t, err)
	pushed, err := old.SubscribeSync(w.names.AllEvents(), nats.BindStream(w.names.EventsStream()), nats.OrderedConsumer())
	testkit.Must(t, err)
	for i := range wallEvents {
		if _, err := pushed.NextMsg(testkit.Patience); err != nil {
			t.Fatalf("push, event %d: %v", i, err)
		}
	}
}

// storesMedia that a worker reads.
func (w *walled) storesMedia(t *testing.T) {
	t.Helper()
	bucket, err := w.js.ObjectStore(t.Context(), w.names.MediaBucket())
	testkit.Must(t, err)
	video := bytes.Repeat([]byte("0123456789"), 100_000)
	for range 2 { // the second replaces the first
		if _, err := bucket.PutBytes(t.Context(), "clip", video); err != nil {
			t.Fatalf("put media: %v", err)
		}
	}
	store, err := publishers.MediaStore(t.Context(), w.worker.JS, w.names)
	testkit.Must(t, err)
	got, err := store.Get(t.Context(), "clip")
	testkit.Must(t, err)
	if read, err := io.ReadAll(got); err != nil || !bytes.Equal(read, video) {
		t.Errorf("a worker reads %d bytes of %d: %v", len(read), len(video), err)
	}
	if object, err := publishers.New(w.js, w.names).PutMedia(t.Context(), bytes.NewReader(video)); err != nil || object == "" {
		t.Errorf("put media as jetpost does: %v", err)
	}
}

// losesMedia that a worker removes.
func (w *walled) losesMedia(t *testing.T) {
	t.Helper()
	objects, err := publishers.OpenMediaObjects(t.Context(), w.worker.JS, w.names)
	testkit.Must(t, err)
	listed, err := objects.List(t.Context())
	testkit.Must(t, err)
	for _, o := range listed {
		if o.Name == "clip" {
			testkit.Must(t, objects.Remove(t.Context(), o))
		}
	}
	if left, err := objects.List(t.Context()); err != nil || len(left) != len(listed)-1 {
		t.Errorf("a worker removes media: %d objects of %d are left: %v", len(left), len(listed), err)
	}
}

func (w *walled) isSetUpAgain(t *testing.T) {
	t.Helper()
	report, err := w.cfg.Setup(t.Context(), slog.New(slog.DiscardHandler))
	testkit.Must(t, err)
	for _, c := range report.Changes {
		if c.Action != publishers.ActionUnchanged {
			t.Errorf("a second setup: %s", c)
		}
	}
	if !report.Walled {
		t.Error("setup does not see the walls")
	}
}

// An installation of 'up' from before there were accounts keeps its jobs and media.
func TestUpMovesBehindWalls(t *testing.T) {
	t.Parallel()
	dir, log, ctx := t.TempDir(), slog.New(slog.DiscardHandler), t.Context()
	cfg := Config{DatabaseURL: secret.New("sqlite:" + filepath.Join(dir, databaseFile)), Keys: store.GenerateKey()}
	old, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: filepath.Join(dir, natsDir), NoLog: true, NoSigs: true,
	})
	testkit.Must(t, err)
	go old.Start()
	if !old.ReadyForConnections(testkit.Patience) {
		t.Fatal("the server did not start")
	}
	cfg.NATS = NATSConfig{URL: old.ClientURL()}
	report, err := cfg.Setup(ctx, log)
	testkit.Must(t, err)
	if report.Walled {
		t.Error("setup sees walls where there are none")
	}
	conn, err := cfg.Connect(ctx, log, "test")
	testkit.Must(t, err)
	if _, err := publishers.New(conn.JS, conn.Names).PublishRaw(ctx, "acme", []byte(`{"posts":[{"text":"Hello"}]}`)); err != nil {
		t.Fatal(err)
	}
	bucket, err := conn.JS.ObjectStore(ctx, conn.Names.MediaBucket())
	testkit.Must(t, err)
	_, err = bucket.PutBytes(ctx, "clip", []byte("bytes"))
	testkit.Must(t, err)
	conn.Close()
	old.Shutdown()
	old.WaitForShutdown()

	for range 2 { // the second start finds it done
		s, reach, err := StartNATS(ctx, dir, "127.0.0.1:0", jetpost.Names{}, log)
		testkit.Must(t, err)
		cfg.NATS = reach
		_, err = cfg.Setup(ctx, log)
		testkit.Must(t, err)
		conn, err = cfg.Connect(ctx, log, "test")
		testkit.Must(t, err)
		jobs, err := conn.JS.Stream(ctx, conn.Names.JobsStream())
		testkit.Must(t, err)
		if n := jobs.CachedInfo().State.Msgs; n != 1 {
			t.Errorf("%d jobs are left of 1", n)
		}
		media, err := publishers.MediaStore(ctx, conn.JS, conn.Names)
		testkit.Must(t, err)
		object, err := media.Get(ctx, "clip")
		testkit.Must(t, err)
		if got, err := io.ReadAll(object); err != nil || string(got) != "bytes" {
			t.Errorf("media have %q: %v", got, err)
		}
		conn.Close()
		s.Shutdown()
		s.WaitForShutdown()
	}
}

// Of a list of addresses no password is shown, and no token.
func TestAddressesAreRedacted(t *testing.T) {
	t.Parallel()
	err := natsError("nats://a:one@h1:4222, nats://b:two@h2:4222,nats://three@h3", nats.ErrNoServers)
	for _, secret := range []string{"one", "two", "three"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%q is in: %v", secret, err)
		}
	}
	if want := "nats://a:xxxxx@h1:4222,nats://b:xxxxx@h2:4222,nats://xxxxx@h3"; !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s in it", err, want)
	}
}
