package publishers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/natstest"
)

func hello(account string) jetpost.Request {
	return jetpost.Request{Account: account, Posts: []jetpost.Post{{Text: "Hello"}}}
}

func TestJobsStreamKeepsAccountInPartition(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	p := New(tb.js, tb.names)
	const accounts, jobs = 40, 3
	for job := range jobs {
		for a := range accounts {
			if _, err := p.PublishRaw(t.Context(), fmt.Sprintf("account-%d", a), fmt.Append(nil, job)); err != nil {
				t.Fatal(err)
			}
		}
	}
	subjects := tb.streamInfo(t, tb.names.JobsStream(), jetstream.WithSubjectFilter(tb.names.PublishIntake("*", "*"))).State.Subjects
	if len(subjects) != accounts {
		t.Errorf("%d accounts lie on %d subjects: %v", accounts, len(subjects), subjects)
	}
	partitions := make(map[string]bool)
	for subject, n := range subjects {
		if n != jobs {
			t.Errorf("%s has %d jobs, want %d", subject, n, jobs)
		}
		partitions[strings.Split(tb.names.Trim(subject), ".")[2]] = true
	}
	if len(partitions) != jetpost.Partitions {
		t.Errorf("%d partitions are used, want %d", len(partitions), jetpost.Partitions)
	}
}

func TestJobsStreamHasConsumerForEveryJob(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	p := New(tb.js, tb.names)
	for _, account := range []string{"", "acme", "a", "zeta", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9"} {
		if _, err := p.PublishRaw(t.Context(), account, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	for subject := range tb.streamInfo(t, tb.names.JobsStream(), jetstream.WithSubjectFilter(">")).State.Subjects {
		consumer := jetpost.ConsumerIntakeAny
		if tokens := strings.Split(tb.names.Trim(subject), "."); len(tokens) == 4 {
			partition, err := strconv.Atoi(tokens[2])
			if err != nil {
				t.Fatal(err)
			}
			consumer = jetpost.ConsumerIntake(partition)
		}
		tb.next(t, tb.names.JobsStream(), consumer)
	}
	if n := tb.streamInfo(t, tb.names.JobsStream()).State.Msgs; n != 0 {
		t.Errorf("%d jobs were given to no consumer", n)
	}
}

// TestJobsStreamRefusesWhatIsTooLarge to record as a dead letter.
func TestJobsStreamRefusesWhatIsTooLarge(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	for what, bytes := range map[string]int64{"stream": tb.nc.MaxPayload() - deadLetterRoom/2, "server": tb.nc.MaxPayload() + 1} {
		_, err := New(tb.js, tb.names).PublishRaw(t.Context(), "acme", make([]byte, bytes))
		if _, ok := errors.AsType[*TooLargeError](err); !ok || Hint(err) == "" {
			t.Errorf("more than the %s takes: got %v, want *TooLargeError", what, err)
		}
	}
	body := make([]byte, tb.nc.MaxPayload()-deadLetterRoom)
	if _, err := New(tb.js, tb.names).PublishRaw(t.Context(), "acme", body); err != nil {
		t.Fatal(err)
	}
	refusal := jetpost.Refusal{Account: "acme", ID: strings.Repeat("i", 128), Code: jetpost.CodeInvalidRequest, Sequence: 1}
	for range 1000 {
		refusal.Problems = append(refusal.Problems, jetpost.Problem{Pointer: "/posts/0/text", Message: strings.Repeat("é", 100)})
	}
	if err := NewDeadLetters(tb.js, tb.names).Refused(t.Context(), refusal, strings.Repeat("s", 4096), body); err != nil {
		t.Errorf("the largest job cannot be recorded: %v", err)
	}
}

// TestJobsStreamRefusesHeaders that reach beyond a job.
func TestJobsStreamRefusesHeaders(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	if _, err := New(tb.js, tb.names).PublishRaw(t.Context(), "acme", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	for _, header := range [][2]string{
		{"Nats-Rollup", "all"},
		{"Nats-Rollup", "sub"},
		{jetstream.ScheduleHeader, "@at 2099-01-01T00:00:00Z"},
		{jetstream.SchedulerHeader, tb.names.ScheduleRefresh()},
		{jetstream.MsgTTLHeader, "1s"},
	} {
		msg := nats.NewMsg(tb.names.PublishRequest("acme"))
		msg.Header.Set(header[0], header[1])
		if header[0] == jetstream.ScheduleHeader {
			msg.Header.Set(jetstream.ScheduleTargetHeader, tb.names.PublishRequest("evil"))
		}
		_, err := tb.js.PublishMsg(t.Context(), msg)
		if _, refused := errors.AsType[*jetstream.APIError](err); !refused {
			t.Errorf("%s: %s: got %v, want a refusal", header[0], header[1], err)
		}
	}
	if n := tb.streamInfo(t, tb.names.JobsStream()).State.Msgs; n != 1 {
		t.Errorf("%d jobs are stored, want the first one alone", n)
	}
}

// TestJobsStreamIgnoresMsgID: two jobs of one Nats-Msg-Id are two jobs.
func TestJobsStreamIgnoresMsgID(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	for _, account := range []string{"one", "two", "one"} {
		ack, err := tb.js.Publish(t.Context(), tb.names.PublishRequest(account), nil, jetstream.WithMsgID("1"))
		if err != nil || ack.Duplicate {
			t.Fatalf("got %+v, %v", ack, err)
		}
	}
	if n := tb.streamInfo(t, tb.names.JobsStream()).State.Msgs; n != 3 {
		t.Errorf("%d jobs are stored, want 3", n)
	}
}

// TestEventsFromNowOn: Events reads from now on, LastEvent the newest.
func TestEventsFromNowOn(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p, deadLetters := New(tb.js, tb.names), NewDeadLetters(tb.js, tb.names)
	tell := func(typ jetpost.EventType, id, eventID string) {
		t.Helper()
		if err := deadLetters.Event(ctx, tb.names.EventSubject(typ, "acme", id), jetpost.Event{EventID: eventID, Type: typ}); err != nil {
			t.Fatal(err)
		}
	}
	tell(jetpost.EventRequestAccepted, "a", "1")
	events, err := p.Events(ctx, tb.names.RequestEvents("acme", "a"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := p.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tell(jetpost.EventRequestProgress, "a", "2")
	tell(jetpost.EventRequestPublished, "b", "3")
	if _, err := tb.js.Publish(ctx, tb.names.EventSubject(jetpost.EventRequestHeld, "acme", "a"), []byte("{")); err != nil {
		t.Fatal(err)
	}
	tell(jetpost.EventRequestPublished, "a", "4")

	var got []string
	for e, err := range events {
		if err != nil {
			e.EventID = "error"
		}
		if got = append(got, e.EventID); len(got) == 3 {
			cancel() // ends the sequence, without an error
		}
	}
	if fmt.Sprint(got) != "[2 error 4]" {
		t.Errorf("read events %v", got)
	}
	for e, err := range all {
		t.Errorf("a sequence goes on after its context: %+v, %v", e, err)
	}

	last, ok, err := p.LastEvent(t.Context(), "acme", "a")
	if err != nil || !ok || last.EventID != "4" {
		t.Errorf("last event is %+v, %v, %v", last, ok, err)
	}
	if _, ok, err := p.LastEvent(t.Context(), "acme", "c"); ok || err != nil {
		t.Errorf("a request without events has one: %v, %v", ok, err)
	}
}

// TestLastAccountEvent: it is the newest of the account alone, and of none of its requests.
func TestLastAccountEvent(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	p, deadLetters := New(tb.js, tb.names), NewDeadLetters(tb.js, tb.names)
	want := func(eventID string) {
		t.Helper()
		last, ok, err := p.LastAccountEvent(t.Context(), "acme")
		if err != nil || ok != (eventID != "") || last.EventID != eventID {
			t.Errorf("last event is %+v, %v, %v, want %q", last, ok, err, eventID)
		}
	}
	for eventID, subject := range map[string]string{
		"1": tb.names.EventSubject(jetpost.EventAccountReauthRequired, "other", ""),
		"2": tb.names.EventSubject(jetpost.EventRequestHeld, "acme", "a"),
	} {
		if err := deadLetters.Event(t.Context(), subject, jetpost.Event{EventID: eventID}); err != nil {
			t.Fatal(err)
		}
	}
	want("")
	for eventID, typ := range map[string]jetpost.EventType{"3": jetpost.EventAccountReauthRequired, "4": jetpost.EventAccountRecovered} {
		if err := deadLetters.Event(t.Context(), tb.names.EventSubject(typ, "acme", ""), jetpost.Event{EventID: eventID, Type: typ}); err != nil {
			t.Fatal(err)
		}
		want(eventID)
	}
	last, _, err := p.LastAccountEvent(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []jetpost.EventType{jetpost.EventAccountPaused, jetpost.EventAccountResumed} {
		if err := deadLetters.Event(t.Context(), tb.names.EventSubject(typ, "acme", ""), jetpost.Event{EventID: "5", Type: typ}); err != nil {
			t.Fatal(err)
		}
		want(last.EventID)
	}
}

// TestEventsSurviveRestart of the server, without a gap.
func TestEventsSurviveRestart(t *testing.T) {
	t.Parallel()
	first := natstest.Server(t, natstest.Listen)
	port := first.Addr().(*net.TCPAddr).Port
	_, js := natstest.Connect(t, first)
	cfg := TopologyConfig{LedgerID: testLedger}
	if _, err := Setup(t.Context(), js, cfg); err != nil {
		t.Fatal(err)
	}
	// The reader is slow to come back, so that the event is there before it.
	nc, err := nats.Connect(first.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	reader, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events, err := New(reader, cfg.Names).Events(ctx)
	if err != nil {
		t.Fatal(err)
	}

	dir := first.StoreDir()
	first.Shutdown()
	first.WaitForShutdown()
	_, js = natstest.Connect(t, natstest.Server(t, natstest.Listen, storeIn(dir), func(o *server.Options) { o.Port = port }))
	want := jetpost.Event{EventID: "1", Type: jetpost.EventAppPaused}
	if err := NewDeadLetters(js, cfg.Names).Event(ctx, cfg.Names.EventSubject(want.Type, "", ""), want); err != nil {
		t.Fatal(err)
	}
	for got, err := range events {
		if err != nil || got.EventID != want.EventID {
			t.Errorf("got %+v, %v", got, err)
		}
		return
	}
	t.Error("the event never came")
}

// TestPublishAssignsID, and returns it with the receipt.
func TestPublishAssignsID(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	receipt, err := New(tb.js, tb.names).Publish(t.Context(), hello("acme"))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := tb.js.Stream(t.Context(), tb.names.JobsStream())
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetMsg(t.Context(), receipt.Sequence)
	if err != nil {
		t.Fatal(err)
	}
	var stored jetpost.Request
	if err := json.Unmarshal(msg.Data, &stored); err != nil {
		t.Fatal(err)
	}
	if receipt.ID == "" || stored.ID != receipt.ID || stored.Account != "acme" || receipt.Account != "acme" {
		t.Errorf("receipt %+v, stored %+v", receipt, stored)
	}
}

// TestPublishRefusesInvalid requests, which no worker would take.
func TestPublishRefusesInvalid(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	_, err := New(tb.js, tb.names).Publish(t.Context(), jetpost.Request{Account: "No Account"})
	if _, ok := errors.AsType[*jetpost.InvalidError](err); !ok {
		t.Fatalf("got %v, want *jetpost.InvalidError", err)
	}
	if n := tb.streamInfo(t, tb.names.JobsStream()).State.Msgs; n != 0 {
		t.Errorf("%d jobs are stored", n)
	}
}

func TestPublishNotSetUp(t *testing.T) {
	t.Parallel()
	tb := bare(t)
	receipt, err := New(tb.js, tb.names).Publish(t.Context(), hello("acme"))
	if _, ok := errors.AsType[*NotSetUpError](err); !ok {
		t.Fatalf("got %v, want *NotSetUpError", err)
	}
	if receipt.ID == "" {
		t.Error("the receipt of a failure has no id to try again with")
	}
}

func TestPublishQueueFull(t *testing.T) {
	t.Parallel()
	const room = 64 << 10
	tb := setup(t, func(c *TopologyConfig) { c.JobsMaxBytes = room })
	p := New(tb.js, tb.names)
	body := make([]byte, 1<<10)
	stored := uint64(0)
	var err error
	for err == nil && stored < room {
		if _, err = p.PublishRaw(t.Context(), "acme", body); err == nil {
			stored++
		}
	}
	full, ok := errors.AsType[*QueueFullError](err)
	if !ok || full.Stream != tb.names.JobsStream() || Hint(err) == "" {
		t.Fatalf("got %v, want *QueueFullError", err)
	}
	if n := tb.streamInfo(t, tb.names.JobsStream()).State.Msgs; n != stored {
		t.Errorf("%d jobs are stored, want all %d that were taken", n, stored)
	}
	if err := p.Tick(t.Context()); err != nil {
		t.Errorf("a full queue stops token care: %v", err)
	}
}

func TestPutMedia(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	p := New(tb.js, tb.names)
	shown := bytes.Repeat([]byte("pixels"), 100_000)
	object, err := p.PutMedia(t.Context(), bytes.NewReader(shown))
	if err != nil {
		t.Fatal(err)
	}
	store, err := tb.js.ObjectStore(t.Context(), tb.names.MediaBucket())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := store.GetBytes(t.Context(), object); err != nil || !bytes.Equal(got, shown) {
		t.Errorf("read %d bytes, %v, want %d", len(got), err, len(shown))
	}
}

func TestRefreshRequestsReachConsumer(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	if err := New(tb.js, tb.names).RefreshAccount(t.Context(), "acme", true); err != nil {
		t.Fatal(err)
	}
	if err := NewWakeups(tb.js, tb.names).Batch(t.Context(), jetpost.RefreshBatch{Round: "r", Batch: 2}); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][2]string{
		{tb.names.RefreshRequest(), `{"account":"acme","force":true}`},
		{tb.names.RefreshBatch(), `{"round":"r","batch":2}`},
	} {
		msg := tb.next(t, tb.names.RefreshStream(), jetpost.ConsumerRefresh)
		if got := [2]string{msg.Subject(), string(msg.Data())}; got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func TestPublisherSurvivesRestart(t *testing.T) {
	t.Parallel()
	tb := setup(t)
	if _, err := New(tb.js, tb.names).Publish(t.Context(), hello("acme")); err != nil {
		t.Fatal(err)
	}
	dir := tb.server.StoreDir()
	tb.server.Shutdown()
	tb.server.WaitForShutdown()
	_, js := natstest.Connect(t, natstest.Server(t, storeIn(dir)))
	if err := Check(t.Context(), js, tb.cfg); err != nil {
		t.Error(err)
	}
	for range 2 { // the window of Nats-Msg-Ids is still off
		if ack, err := js.Publish(t.Context(), tb.names.PublishRequest("acme"), nil, jetstream.WithMsgID("1")); err != nil || ack.Duplicate {
			t.Errorf("got %+v, %v", ack, err)
		}
	}
}

func TestBoundedReader(t *testing.T) {
	t.Parallel()
	for size, fits := range map[int]bool{9: true, 10: true, 11: false} {
		_, err := io.Copy(io.Discard, &boundedReader{r: bytes.NewReader(make([]byte, size)), left: 10})
		if (err == nil) != fits {
			t.Errorf("%d of 10 bytes: got %v", size, err)
		}
	}
}
