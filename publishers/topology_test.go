package publishers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/natstest"
)

const testLedger = "0198-ledger"

// patience is how long a test waits for a fact that must come.
const patience = 30 * time.Second

type testBundle struct {
	server *server.Server
	nc     *nats.Conn
	js     jetstream.JetStream
	names  jetpost.Names
	cfg    TopologyConfig
}

// setup starts a server of the test's own and sets it up, with a prefix, so
// that no test passes by names that ignore it.
func setup(t *testing.T, tune ...func(*TopologyConfig)) *testBundle {
	t.Helper()
	tb := bare(t)
	for _, f := range tune {
		f(&tb.cfg)
	}
	if _, err := Setup(t.Context(), tb.js, tb.cfg); err != nil {
		t.Fatal(err)
	}
	return tb
}

// bare starts a server without setting it up.
func bare(t *testing.T, opts ...func(*server.Options)) *testBundle {
	t.Helper()
	names, err := jetpost.NewNames("test")
	if err != nil {
		t.Fatal(err)
	}
	tb := &testBundle{server: natstest.Server(t, opts...), names: names, cfg: TopologyConfig{Names: names, LedgerID: testLedger}}
	tb.nc, tb.js = natstest.Connect(t, tb.server)
	return tb
}

// next takes the next message of a consumer and acks it.
func (tb *testBundle) next(t *testing.T, stream, consumer string) jetstream.Msg {
	t.Helper()
	c, err := tb.js.Consumer(t.Context(), stream, consumer)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := c.Next(jetstream.FetchMaxWait(patience))
	if err != nil {
		t.Fatalf("next message of %s: %v", consumer, err)
	}
	if err := msg.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	return msg
}

func (tb *testBundle) streamInfo(t *testing.T, name string, opts ...jetstream.StreamInfoOpt) *jetstream.StreamInfo {
	t.Helper()
	stream, err := tb.js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func (tb *testBundle) allStreams(t *testing.T) map[string]jetstream.StreamConfig {
	t.Helper()
	configs := make(map[string]jetstream.StreamConfig)
	lister := tb.js.ListStreams(t.Context())
	for info := range lister.Info() {
		configs[info.Config.Name] = info.Config
	}
	if lister.Err() != nil {
		t.Fatal(lister.Err())
	}
	return configs
}

func actions(r Report) map[string]int {
	counts := make(map[string]int)
	for _, c := range r.Changes {
		counts[c.Action]++
	}
	return counts
}

func TestAtLeast(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{
		"":                 false,
		"2.10.7":           false,
		"2.13.99":          false,
		"2.14":             false,
		"2.14.0":           true,
		"2.14.0+build.7":   true,
		"2.14.0-RC.1":      false,
		"2.14.1-RC.1":      true,
		"2.15.2":           true,
		"2.9.100":          false,
		"3.0.0-dev":        true,
		"latest":           false,
		"v2.14.0":          true,
		"2.14.x":           false,
		"99999999999.14.0": false,
	} {
		if got := atLeast(version, minServerVersion); got != want {
			t.Errorf("atLeast(%q): %v, want %v", version, got, want)
		}
	}
}

func TestCheckAcceptsTuning(t *testing.T) {
	t.Parallel()
	tb := setup(t, func(c *TopologyConfig) {
		c.JobsMaxBytes, c.EventsMaxAge, c.RefreshCron = 1<<20, time.Hour, "0 0 0 * * *"
	})
	plain := TopologyConfig{Names: tb.names, LedgerID: testLedger}
	if err := Check(t.Context(), tb.js, plain); err != nil {
		t.Fatal(err)
	}
}

func TestCheckChangesNothing(t *testing.T) {
	t.Parallel()
	tb := bare(t)
	err := Check(t.Context(), tb.js, tb.cfg)
	notSetUp, ok := errors.AsType[*NotSetUpError](err)
	if !ok {
		t.Fatalf("got %v, want *NotSetUpError", err)
	}
	if got, want := len(notSetUp.Missing), len(tb.cfg.streams(0))+1; got != want {
		t.Errorf("%d things are missing, want all %d streams and the bucket of media: %v", got, want, notSetUp.Missing)
	}
	if !strings.Contains(Hint(err), "jetpost setup") {
		t.Errorf("hint %q does not name the command", Hint(err))
	}
	if made := tb.allStreams(t); len(made) != 0 {
		t.Errorf("Check made %v", made)
	}
}

// TestCheckFindsDifferences: what is missing or different is named, and Setup heals it.
func TestCheckFindsDifferences(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	ctx := t.Context()
	if err := tb.js.DeleteConsumer(ctx, tb.names.JobsStream(), jetpost.ConsumerIntake(3)); err != nil {
		t.Fatal(err)
	}
	lanes, err := tb.js.Consumer(ctx, tb.names.LanesStream(), jetpost.ConsumerLanes)
	if err != nil {
		t.Fatal(err)
	}
	config := lanes.CachedInfo().Config
	config.MaxAckPending = 7
	if _, err := tb.js.UpdateConsumer(ctx, tb.names.LanesStream(), config); err != nil {
		t.Fatal(err)
	}
	err = Check(ctx, tb.js, tb.cfg)
	notSetUp, ok := errors.AsType[*NotSetUpError](err)
	if !ok {
		t.Fatalf("got %v, want *NotSetUpError", err)
	}
	want := []string{
		"consumer test_JETPOST_JOBS/intake-3 is missing",
		"consumer test_JETPOST_LANES/lanes has max_ack_pending 7, want 10000",
	}
	if diff := cmp.Diff(want, notSetUp.Missing); diff != "" {
		t.Error(diff)
	}

	// A stream setting that something depends on.
	events := tb.allStreams(t)[tb.names.LanesStream()]
	events.MaxMsgsPerSubject = -1
	if _, err := tb.js.UpdateStream(ctx, events); err != nil {
		t.Fatal(err)
	}
	err = Check(ctx, tb.js, tb.cfg)
	if want := "stream test_JETPOST_LANES has max_msgs_per_subject -1, want 1"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}

	// Setup heals all of it.
	report, err := Setup(ctx, tb.js, tb.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := actions(report); got[ActionCreated] != 1 || got[ActionUpdated] != 2 {
		t.Errorf("Setup did\n%s", report)
	}
	if err := Check(ctx, tb.js, tb.cfg); err != nil {
		t.Error(err)
	}
}

func TestCheckJetStreamDisabled(t *testing.T) {
	t.Parallel()
	tb := bare(t, func(o *server.Options) { o.JetStream = false })
	err := Check(t.Context(), tb.js, tb.cfg)
	if _, ok := errors.AsType[*NoJetStreamError](err); !ok || Hint(err) == "" {
		t.Fatalf("got %v, want *NoJetStreamError", err)
	}
}

func TestCheckJetStreamNotOfAccount(t *testing.T) {
	t.Parallel()
	js := withoutJetStream(t)
	err := Check(t.Context(), js, TopologyConfig{LedgerID: testLedger})
	if _, ok := errors.AsType[*NoJetStreamError](err); !ok || Hint(err) == "" {
		t.Fatalf("got %v, want *NoJetStreamError", err)
	}
}

// TestCheckListsMistakes of the config, all of them.
func TestCheckListsMistakes(t *testing.T) {
	t.Parallel()
	err := Check(t.Context(), nil, TopologyConfig{Replicas: 6, RefreshTTL: time.Millisecond, JobsMaxBytes: -1, EventsMaxAge: -1, FailedMaxAge: 1})
	for _, want := range []string{"ledger id", "replicas", "refresh ttl", "jobs max bytes", "events max age", "failed max age"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %q", err, want)
		}
	}
}

// withoutJetStream connects to an account that has no JetStream, on a server
// that has.
func withoutJetStream(t *testing.T) jetstream.JetStream {
	t.Helper()
	plain := server.NewAccount("plain")
	s := natstest.Server(t, func(o *server.Options) {
		o.Accounts = []*server.Account{plain}
		o.Users = []*server.User{{Username: "plain", Password: "plain", Account: plain}}
	})
	_, js := natstest.Connect(t, s, nats.UserInfo("plain", "plain"))
	return js
}

// TestSetupBuckets: they open with the client library.
func TestSetupBuckets(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	kv, err := tb.js.KeyValue(t.Context(), tb.names.LimitsBucket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Create(t.Context(), "window.acme", []byte("1"), jetstream.KeyTTL(time.Minute)); err != nil {
		t.Errorf("keys cannot expire: %v", err)
	}
	store, err := tb.js.ObjectStore(t.Context(), tb.names.MediaBucket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutString(t.Context(), "o", "bytes"); err != nil {
		t.Fatal(err)
	}
	if got, err := store.GetString(t.Context(), "o"); err != nil || got != "bytes" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestSetupReplacesCronOnce, where ten do it at once.
func TestSetupReplacesCronOnce(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	cfg := tb.cfg
	cfg.RefreshCron, cfg.RefreshTimeZone = "0 30 3 * * *", "Europe/Berlin"
	cfg, err := cfg.complete()
	if err != nil {
		t.Fatal(err)
	}
	counts := make(chan string, 10)
	var wg sync.WaitGroup
	for range cap(counts) {
		wg.Go(func() {
			action, err := setupCron(t.Context(), tb.js, cfg)
			if err != nil {
				t.Error(err)
			}
			counts <- action
		})
	}
	wg.Wait()
	close(counts)
	got := make(map[string]int)
	for action := range counts {
		got[action]++
	}
	if got[ActionUpdated] != 1 || got[ActionUnchanged] != 9 {
		t.Errorf("got %v, want one update", got)
	}
	cron, err := lastMessage(t.Context(), tb.js, tb.names.ScheduleStream(), tb.names.ScheduleRefresh())
	if err != nil {
		t.Fatal(err)
	}
	if got := cron.Header.Get(jetstream.ScheduleHeader); got != cfg.RefreshCron {
		t.Errorf("cron is %q", got)
	}
}

func TestSetupCronOpensRounds(t *testing.T) {
	t.Parallel()
	tb := setup(t, func(c *TopologyConfig) { c.RefreshCron = "* * * * * *" })
	for range 2 {
		msg := tb.next(t, tb.names.RefreshStream(), jetpost.ConsumerRefresh)
		if msg.Subject() != tb.names.RefreshTick() {
			t.Fatalf("got %s, want %s", msg.Subject(), tb.names.RefreshTick())
		}
	}
}

func TestSetupCronTicksDoNotPileUp(t *testing.T) {
	t.Parallel()
	tb := setup(t, func(c *TopologyConfig) { c.RefreshCron, c.RefreshTTL = "* * * * * *", time.Second })
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	deadline := time.After(patience)
	for tb.streamInfo(t, tb.names.RefreshStream()).State.FirstSeq < 2 {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatal("the first tick, which nobody read, never went away")
		}
	}
}

// TestSetupRefusesCron that is none.
func TestSetupRefusesCron(t *testing.T) {
	t.Parallel()
	tb := bare(t)
	tb.cfg.RefreshCron = "every now and then"
	_, err := Setup(t.Context(), tb.js, tb.cfg)
	if err == nil || !strings.Contains(err.Error(), tb.cfg.RefreshCron) {
		t.Fatalf("got %v, want an error that names the cron", err)
	}
}

func TestSetupLeavesForeignStreams(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"test_JETPOST_EVENTS", "KV_test_JETPOST_LIMITS", "OBJ_test_JETPOST_MEDIA"} {
		tb := bare(t)
		if _, err := tb.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{"theirs"}}); err != nil {
			t.Fatal(err)
		}
		before := tb.allStreams(t)
		for what, err := range map[string]error{
			"Check": Check(t.Context(), tb.js, tb.cfg),
			"Setup": func() error { _, err := Setup(t.Context(), tb.js, tb.cfg); return err }(),
		} {
			foreign, ok := errors.AsType[*ForeignStreamError](err)
			if !ok || foreign.Stream != name || Hint(err) == "" {
				t.Errorf("%s with %s: got %v, want *ForeignStreamError", what, name, err)
			}
		}
		if diff := cmp.Diff(before, tb.allStreams(t)); diff != "" {
			t.Errorf("streams were touched: %s", diff)
		}
	}
}

func TestSetupNamesForeignSubjects(t *testing.T) {
	t.Parallel()
	tb := bare(t)
	if _, err := tb.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "THEIRS", Subjects: []string{"test.publish.>"}}); err != nil {
		t.Fatal(err)
	}
	_, err := Setup(t.Context(), tb.js, tb.cfg)
	taken, ok := errors.AsType[*SubjectsTakenError](err)
	if !ok || taken.Stream != tb.names.JobsStream() || Hint(err) == "" {
		t.Fatalf("got %v, want *SubjectsTakenError", err)
	}
}

// TestSetupKeepsState: messages, pauses and an operator's choices.
func TestSetupKeepsState(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	ctx := t.Context()
	if _, err := New(tb.js, tb.names).PublishRaw(ctx, "acme", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := NewAppPauses(tb.js, tb.names).Set(ctx, Pause{Target: TargetPublish}); err != nil {
		t.Fatal(err)
	}
	jobs := tb.allStreams(t)[tb.names.JobsStream()]
	jobs.Compression = jetstream.S2Compression
	if _, err := tb.js.UpdateStream(ctx, jobs); err != nil {
		t.Fatal(err)
	}
	tb.cfg.JobsMaxBytes = 2 << 30
	report, err := Setup(ctx, tb.js, tb.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := actions(report); got[ActionUpdated] != 1 || got[ActionCreated] != 0 {
		t.Errorf("Setup did\n%s", report)
	}
	info := tb.streamInfo(t, tb.names.JobsStream())
	if info.Config.MaxBytes != 2<<30 || info.Config.Compression != jetstream.S2Compression || info.State.Msgs != 1 {
		t.Errorf("stream is %+v with %d messages", info.Config, info.State.Msgs)
	}
	lanes, err := tb.js.Consumer(ctx, tb.names.LanesStream(), jetpost.ConsumerLanes)
	if err != nil {
		t.Fatal(err)
	}
	if !lanes.CachedInfo().Paused {
		t.Error("Setup ended the pause")
	}
}

func TestSetupOtherLedger(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	tb.cfg.LedgerID = "another"
	for what, err := range map[string]error{
		"Check": Check(t.Context(), tb.js, tb.cfg),
		"Setup": func() error { _, err := Setup(t.Context(), tb.js, tb.cfg); return err }(),
	} {
		other, ok := errors.AsType[*OtherLedgerError](err)
		if !ok || Hint(err) == "" {
			t.Fatalf("%s: got %v, want *OtherLedgerError", what, err)
		}
		want := OtherLedgerError{Stream: tb.names.ScheduleStream(), Want: "another", Got: testLedger}
		if *other != want {
			t.Errorf("%s: got %+v, want %+v", what, *other, want)
		}
	}
}

func TestSetupExplainsPermissionDenied(t *testing.T) {
	t.Parallel()
	s := natstest.Server(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Deny: []string{"$JS.API.>"}},
		}}}
	})
	quiet := nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
	_, js := natstest.Connect(t, s, nats.UserInfo("u", "p"), quiet)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := Setup(ctx, js, TopologyConfig{LedgerID: testLedger})
	if _, ok := errors.AsType[*NoAnswerError](err); !ok || !strings.Contains(Hint(err), "Permissions Violation") {
		t.Fatalf("got %v with hint %q", err, Hint(err))
	}
}

// TestSetupTenAtOnce, and then once more.
func TestSetupTenAtOnce(t *testing.T) {
	t.Parallel()
	tb := bare(t)
	var wg sync.WaitGroup
	for range 10 {
		_, js := natstest.Connect(t, tb.server)
		wg.Go(func() {
			if _, err := Setup(t.Context(), js, tb.cfg); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := Check(t.Context(), tb.js, tb.cfg); err != nil {
		t.Error(err)
	}
	if n := tb.streamInfo(t, tb.names.ScheduleStream()).State.LastSeq; n != 1 {
		t.Errorf("the refresh schedule was written %d times", n)
	}
	report, err := Setup(t.Context(), tb.js, tb.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := actions(report); got[ActionUnchanged] != len(report.Changes) || len(report.Changes) != 8+11+1 {
		t.Errorf("the last Setup did\n%s", report)
	}
}

// TestSetupTwoInstallations share a server.
func TestSetupTwoInstallations(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	unnamed := TopologyConfig{LedgerID: "another"}
	if _, err := Setup(t.Context(), tb.js, unnamed); err != nil {
		t.Fatal(err)
	}
	if err := Check(t.Context(), tb.js, tb.cfg); err != nil {
		t.Error(err)
	}
}

// A server without the room of a stream is reported with both numbers, and with what to
// do.
func TestSetupWithoutRoom(t *testing.T) {
	t.Parallel()
	tb := bare(t, func(o *server.Options) { o.JetStreamMaxStore, o.JetStreamMaxMemory = 1200<<20, 1<<30 })
	_, err := Setup(t.Context(), tb.js, tb.cfg)
	var short *StorageError
	if !errors.As(err, &short) || short.Bytes != DefaultMediaMaxBytes || short.Promised != DefaultJobsMaxBytes+eventsMaxBytes+failedMaxBytes || Hint(err) == "" {
		t.Errorf("setup said %v", err)
	}
	tb.cfg.MediaMaxBytes = 100 << 20
	if _, err := Setup(t.Context(), tb.js, tb.cfg); err != nil {
		t.Errorf("with less for media: %v", err)
	}
	if err := Check(t.Context(), tb.js, TopologyConfig{Names: tb.names, LedgerID: testLedger}); err != nil {
		t.Errorf("the sizes are the operator's: %v", err)
	}
}

// TestExplainedOnce: an error that has an explanation keeps its words.
func TestExplainedOnce(t *testing.T) {
	t.Parallel()
	once := explain(context.DeadlineExceeded)
	if again := explain(fmt.Errorf("read: %w", once)); again.Error() != "read: "+once.Error() {
		t.Errorf("it says %q", again)
	}
}
