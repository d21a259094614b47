package app_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	diff "github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/telemetry"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

var updateTrace = flag.Bool("update", false, "rewrite the trace in docs/OPERATING.md")

// lockedBuffer is a log that several goroutines write.
type lockedBuffer struct {
	mu  sync.Mutex
	log bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log.Write(p)
}

// One trace goes from its producer through holds and a replay to each call at X, and the
// page for operators shows it.
func TestTraceOfHeldReplayedThread(t *testing.T) {
	t.Parallel()
	const second, third = "the second post", "the third post"
	sim, spans, logged := &xsim.Server{}, tracetest.NewInMemoryExporter(), &lockedBuffer{}
	traces := telemetry.ExportTraces(sdktrace.WithSyncer(keptSpans{spans}))
	cfg := app.InstanceConfig{
		Config: app.Config{X: app.XConfig{Minute: 50 * time.Millisecond}, Lease: 4 * time.Second, Traces: traces},
		Data:   t.TempDir(), NATSListen: "127.0.0.1:0", SimListen: "127.0.0.1:0", Sim: sim, SimAccounts: []string{"alice"},
	}
	log := slog.New(slog.NewJSONHandler(logged, nil))
	h, err := app.Up(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := sim.SetFaults([]xsim.Fault{
		{Kind: xsim.FaultCut, Endpoint: xsim.EndpointCreatePost, Text: second, Times: 1},
		{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Variant: "duplicate", Endpoint: xsim.EndpointCreatePost, Text: third, Times: 1},
	}); err != nil {
		t.Fatal(err)
	}
	running, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(running) }()

	control, err := h.Config.OpenControl(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	ctx, producer := traces.Tracer().Start(t.Context(), "newsletter", trace.WithSpanKind(trace.SpanKindProducer))
	request := jetpost.Request{Account: "alice", ID: "t1", Posts: []jetpost.Post{{Text: "the first post"}, {Text: second}, {Text: third}}}
	if _, err := publishers.New(control.Conn.JS, control.Conn.Names).Publish(ctx, request); err != nil {
		t.Fatal(err)
	}
	producer.End()
	key := store.Key{Account: "alice", ID: "t1"}
	reach(t, control, key, jetpost.StateFailed)
	if _, err := control.Ledger.Replay(t.Context(), key, time.Now()); err != nil {
		t.Fatal(err)
	}
	reach(t, control, key, jetpost.StatePublished)
	id := producer.SpanContext().TraceID().String()
	wantEventTraced(t, control, id)
	end()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	for _, message := range []string{"request.accepted", "post.published", "request.settled"} {
		wantLogged(t, logged.log.Bytes(), message, id)
	}
	wantShown(t, tree(t, spans.GetSpans()))
}

// reach waits until a request is in a state, and that is told.
func reach(t *testing.T, control *app.Control, key store.Key, state jetpost.State) {
	t.Helper()
	late := time.After(3 * time.Minute)
	for {
		r, err := control.Ledger.Request(t.Context(), key)
		if err == nil && r.Status.State == state && r.Delivered == r.Status.Revision {
			return
		}
		select {
		case <-late:
			t.Fatalf("%s does not become %s", key.ID, state)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// keptSpans keeps its spans when it is shut down.
type keptSpans struct{ *tracetest.InMemoryExporter }

func (keptSpans) Shutdown(context.Context) error { return nil }

// wantEventTraced fails unless the last event names the trace.
func wantEventTraced(t *testing.T, control *app.Control, id string) {
	t.Helper()
	stream, err := control.Conn.JS.Stream(t.Context(), control.Conn.Names.EventsStream())
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetLastMsgForSubject(t.Context(), control.Conn.Names.EventSubject(jetpost.EventRequestPublished, "alice", "t1"))
	if err != nil {
		t.Fatal(err)
	}
	if parent := msg.Header.Get("traceparent"); !strings.Contains(parent, id) {
		t.Errorf("the event's traceparent is %q, want trace %s", parent, id)
	}
}

// wantLogged fails unless all records of that message name the trace.
func wantLogged(t *testing.T, log []byte, message, id string) {
	t.Helper()
	found := 0
	for line := range bytes.Lines(log) {
		var record struct {
			Msg   string
			Trace string `json:"trace_id"`
		}
		if err := json.Unmarshal(line, &record); err != nil {
			t.Fatal(err)
		}
		if record.Msg != message {
			continue
		}
		if found++; record.Trace != id {
			t.Errorf("%s has trace_id %q, want %s", message, record.Trace, id)
		}
	}
	if found == 0 {
		t.Errorf("nothing was logged as %s", message)
	}
}

// tree is a trace as text: a line for each span, below the one that it belongs to.
func tree(t *testing.T, spans tracetest.SpanStubs) string {
	t.Helper()
	slices.SortStableFunc(spans, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	below := map[trace.SpanID][]tracetest.SpanStub{}
	for _, s := range spans {
		if s.SpanContext.TraceID() != spans[0].SpanContext.TraceID() {
			t.Errorf("%s is in a trace of its own", s.Name)
		}
		below[s.Parent.SpanID()] = append(below[s.Parent.SpanID()], s)
	}
	var out strings.Builder
	var write func(parent trace.SpanID, indent string)
	write = func(parent trace.SpanID, indent string) {
		last := ""
		for _, s := range below[parent] {
			line := strings.TrimRight(fmt.Sprintf("%-32s %s", indent+s.Name, about(s)), " ")
			// A lane that was looked at too early says the same once more.
			if len(below[s.SpanContext.SpanID()]) == 0 && line == last {
				continue
			}
			last = line
			fmt.Fprintln(&out, line)
			write(s.SpanContext.SpanID(), indent+"  ")
		}
	}
	write(trace.SpanID{}, "")
	return out.String()
}

// about is what of a span is the same each time.
func about(s tracetest.SpanStub) string {
	attributes := map[string]string{}
	for _, a := range s.Attributes {
		attributes[string(a.Key)] = a.Value.String()
	}
	var words []string
	for _, e := range s.Events {
		for _, a := range e.Attributes {
			if a.Key == "jetpost.post" {
				words = append(words, "post "+a.Value.String()+" "+e.Name)
			}
		}
	}
	outcome := cmp.Or(attributes["jetpost.outcome"], attributes["jetpost.state"])
	if code := attributes["jetpost.code"]; code != "" {
		outcome += ": " + code
	}
	if outcome != "" {
		words = append(words, outcome)
	}
	return strings.Join(words, ", ")
}

// wantShown fails unless docs/OPERATING.md shows the trace.
func wantShown(t *testing.T, text string) {
	t.Helper()
	const page, begin, end = "../../docs/OPERATING.md", "<!-- made by go test ./internal/app -run Trace -update -->\n```\n", "```\n<!-- end of the trace -->\n"
	old, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, found := strings.Cut(string(old), begin)
	shown, tail, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s lacks %q or %q", page, begin, end)
	}
	if *updateTrace {
		if err := os.WriteFile(page, []byte(head+begin+text+end+tail), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := diff.Diff(shown, text); d != "" {
		t.Errorf("%s shows another trace; rewrite it with -update\n(-shown +got):\n%s", page, d)
	}
}
