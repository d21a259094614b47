package consumers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/pgtest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/postgres"
	"github.com/jetpost/jetpost/xapi/xsim"
)

const (
	// gapLease is the lease of all workers here. It is short, because each gap waits for
	// the lease of a dead worker and for the timeline checks after a doubt.
	gapLease = 2 * time.Second
	// gapMinute is how long a minute of X takes, for those checks.
	gapMinute = gapLease / 4
	// gapsAtOnce bounds how many gaps of one database are tested at the same time. They
	// mostly wait.
	gapsAtOnce = 24
	// gapPatience bounds each wait; some waits take ten leases.
	gapPatience = 2 * time.Minute
	gapPoll     = 50 * time.Millisecond
	// gapTries is how often a gap is tried: on a loaded machine a worker may be too late
	// for a step and take other steps.
	gapTries = 5
	// gapShare is the number of gaps of which one is tested, unless all are.
	gapShare = 9
	// gapAckWait is when the server redelivers the message of a dead worker.
	gapAckWait = 3 * time.Second
)

// gapRun describes what a worker does until it dies.
type gapRun struct {
	name  string
	posts []jetpost.Post // of the one request
	// before are the texts of requests of one post each that are accepted before it.
	before []string
	// work is the part of the worker that runs; its lanes if nil.
	work func(b *testBundle, m *mortal) func(context.Context) error
	once bool // the work ends by itself
	// whole is true if the work goes on to the end of the request.
	whole bool
	// bring delivers the request; if it is nil, the request is already accepted.
	bring func(t *testing.T, b *testBundle, r jetpost.Request)
	// upset sets up the faults at X.
	upset func(t *testing.T, b *testBundle)
	opts  []func(*xsim.Server)
	// unpublish deletes the request's posts, which are gone in the end.
	unpublish bool
	// state is the final state of the request; published if empty. A rejected job never
	// becomes a request.
	state   jetpost.State
	refused bool
	// steps are all steps of the worker, in order.
	steps string
}

// The steps that several runs have in common.
const (
	didClaim       = "claim, token" // a claim includes a snapshot
	didTellWindow  = "$KV.JETPOST_LIMITS.window.account"
	didLast        = didTellWindow + ", release, ack" // the step of the last post includes a snapshot
	didHold        = "conclude, read, jetpost.event.request.held, delivered, snapshot"
	didHoldHeard   = didHold + ", " + didTellWindow + ", schedule.wake, release, ack"
	didHoldUnheard = didHold + ", schedule.wake, release, ack" // X has not answered
	didSearch      = "anchor post, GET /2/users/:id/tweets"
	didPauseApp    = "$KV.JETPOST_LIMITS.pause.publish, $JS.API.CONSUMER.PAUSE.JETPOST_LANES.lanes, jetpost.event.app.paused"
	didSend        = "begin, POST /2/tweets"
)

func didTell(event jetpost.EventType) string { return "jetpost.event." + string(event) } // marked with the next step

func didPost(event jetpost.EventType) string { return didSend + ", posted, " + didTell(event) }

// didFollow is a post whose intent came with the outcome of the request before.
func didFollow(event jetpost.EventType) string { return "POST /2/tweets, posted, " + didTell(event) }

func didFind(event jetpost.EventType) string {
	return "posted, read, " + didTell(event) + ", delivered"
}

func didDelete(event jetpost.EventType) string {
	return "DELETE /2/tweets/:id, deleted, read, " + didTell(event) + ", delivered"
}

func inTurn(steps ...string) string { return strings.Join(steps, ", ") }

func gapRuns(t *testing.T) []gapRun {
	t.Helper()
	return slices.Concat(gapPosts(t), gapLimits(), gapDoubts(), gapDeletions(), gapIntakes(), gapSweeps())
}

// gapPosts are of lanes that nothing holds.
func gapPosts(t *testing.T) []gapRun {
	t.Helper()
	return []gapRun{
		{
			name: "a single post", posts: thread("one"),
			steps: inTurn(didClaim, didPost(jetpost.EventRequestPublished), didLast),
		}, {
			name: "a queue of three", posts: thread("three"), before: []string{"one", "two"},
			steps: inTurn(didClaim, didPost(jetpost.EventRequestPublished), didFollow(jetpost.EventRequestPublished), didFollow(jetpost.EventRequestPublished), didLast),
		}, {
			name:  "a thread behind another post",
			posts: thread("two", "three"), before: []string{"one"},
			steps: inTurn(didClaim, didPost(jetpost.EventRequestPublished), didFollow(jetpost.EventRequestProgress), didPost(jetpost.EventRequestPublished), didLast),
		}, {
			name: "X refuses the second of a queue", posts: thread("two"), before: []string{"one"}, state: jetpost.StateFailed,
			upset: gapFaults(xsim.Fault{Kind: xsim.FaultRefuseText, Text: "two", Detail: "You are not permitted to say that."}),
			steps: inTurn(didClaim, didPost(jetpost.EventRequestPublished), "POST /2/tweets, conclude, refused, read, publish.failed, jetpost.event.request.failed, delivered, snapshot", didLast),
		}, {
			name:  "a thread of three",
			posts: []jetpost.Post{{Text: "one", Media: []jetpost.Media{{Data: testImage(t), Alt: "grey"}}}, {Text: "two"}, {Text: "three"}},
			steps: inTurn(didClaim, "POST /2/media/upload, uploaded, POST /2/media/metadata, uploaded",
				didPost(jetpost.EventRequestProgress), didPost(jetpost.EventRequestProgress), didPost(jetpost.EventRequestPublished), didLast),
		}, {
			name: "X refuses a post", posts: thread("one", "two"), state: jetpost.StateFailed,
			upset: gapFaults(xsim.Fault{Kind: xsim.FaultRefuseText, Text: "two", Detail: "You are not permitted to say that."}),
			steps: inTurn(didClaim, didPost(jetpost.EventRequestProgress), didSend, "conclude, refused, read, publish.failed, jetpost.event.request.failed, delivered, snapshot", didLast),
		},
	}
}

// gapLimits are of windows that end while the thread is posted.
func gapLimits() []gapRun {
	limit := func(scope xsim.Scope, posts int) func(*testing.T, *testBundle) {
		return func(t *testing.T, b *testBundle) {
			t.Helper()
			testkit.Must(t, b.x.SetLimits([]xsim.Limit{
				// with other windows than the answer to the post before
				{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 50, WindowMS: 60_000},
				{Endpoint: xsim.EndpointCreatePost, Scope: scope, Max: posts, WindowMS: 1000},
			}))
		}
	}
	// The state of a window is lost with the worker that received it.
	forget := []func(*xsim.Server){func(x *xsim.Server) { x.ClosedWindowGrace = time.Hour }}
	progress, published := jetpost.EventRequestProgress, jetpost.EventRequestPublished
	return []gapRun{
		{
			name: "a window is used up", posts: thread("one", "two"),
			upset: limit(xsim.ScopeUser, 1), opts: forget,
			steps: inTurn(didClaim, didPost(progress), didHoldHeard, didClaim, didPost(published), didLast),
		}, {
			name: "the app's window is used up", posts: thread("one", "two"),
			upset: limit(xsim.ScopeApp24h, 1), opts: forget,
			steps: inTurn(didClaim, didSend, "posted", didPauseApp, didTell(progress), didHoldHeard,
				didClaim, "reserve", didSend, "posted", didPauseApp, didTell(published), "reserve", didLast),
		}, {
			name: "a 429", posts: thread("one", "two"),
			upset: func(t *testing.T, b *testBundle) {
				t.Helper()
				limit(xsim.ScopeUser, 100)(t, b)
				b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusTooManyRequests, Endpoint: xsim.EndpointCreatePost, Times: 1})
			},
			steps: inTurn(didClaim, didSend, didHoldHeard, didClaim, didPost(progress), didPost(published), didLast),
		},
	}
}

// gapDoubts are of posts that are in doubt on the way.
func gapDoubts() []gapRun {
	progress, resumed, published := jetpost.EventRequestProgress, jetpost.EventRequestResumed, jetpost.EventRequestPublished
	return []gapRun{
		{
			name: "a lost answer of a post that is live", posts: thread("one", "two"),
			upset: gapFaults(lost(1, true)),
			steps: inTurn(didClaim, didSend, didHoldUnheard, didClaim, didSearch, "owned", didFind(resumed), "snapshot, token", didPost(published), didLast),
		}, {
			name: "a lost answer of a post that is not", posts: thread("one", "two"),
			upset: gapFaults(lost(1, false)),
			steps: inTurn(didClaim, didSend, didHoldUnheard, didClaim, didSearch, "owned", didHoldHeard, didClaim, didSearch, "owned, conclude, read, snapshot, token",
				didPost(progress), didPost(published), didLast),
		}, {
			name: "a timeline check is refused", posts: thread("one"),
			upset: func(t *testing.T, b *testBundle) {
				t.Helper()
				testkit.Must(t, b.x.SetLimits([]xsim.Limit{{Endpoint: xsim.EndpointTimeline, Scope: xsim.ScopeUser, Max: 100, WindowMS: 1000}}))
				b.faults(t, lost(1, true), xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusTooManyRequests, Endpoint: xsim.EndpointTimeline, Times: 1})
			},
			steps: inTurn(didClaim, didSend, didHoldUnheard, didClaim, didSearch, didHoldHeard, didClaim, didSearch, "owned", didFind(published), "snapshot", didLast),
		},
	}
}

func gapDeletions() []gapRun {
	return []gapRun{
		{
			name: "a thread is deleted", posts: thread("one", "two"), unpublish: true,
			bring: gapUnpublish(nil),
			steps: inTurn("claim, unpublishing, token", didDelete(jetpost.EventRequestUnpublishing),
				"snapshot, unpublishing, token", didDelete(jetpost.EventRequestUnpublished), "snapshot", didLast),
		}, {
			name: "a thread in doubt is deleted", posts: thread("one", "two"), unpublish: true, state: jetpost.StateCancelled,
			bring: gapUnpublish(gapFaults(lost(2, true))),
			steps: "claim, unpublishing, hold deletion, read, jetpost.event.request.unpublishing, delivered, snapshot, schedule.wake, release, ack",
		},
	}
}

func gapIntakes() []gapRun {
	return []gapRun{
		{
			name: "intake", posts: thread("one", "two"), work: gapIntake, bring: gapJob,
			steps: "accept, jetpost.event.request.accepted, publish.wake, delivered, ack",
		}, {
			// The lane waits in this test until its job is acknowledged. Elsewhere both go on
			// at once.
			name: "a job whose lane its worker runs itself", posts: thread("one", "two"), work: gapDirect, bring: gapJob, whole: true,
			steps: inTurn("accept, jetpost.event.request.accepted, delivered, ack, token",
				didPost(jetpost.EventRequestProgress), didPost(jetpost.EventRequestPublished), didTellWindow, "release"),
		}, {
			name: "intake of a bad job", work: gapIntake, bring: gapJob, refused: true,
			steps: "refuse, publish.refused, jetpost.event.request.refused, ack",
		},
	}
}

func gapSweeps() []gapRun {
	return []gapRun{{
		name: "the sweeper", posts: thread("one"), once: true,
		work: func(b *testBundle, m *mortal) func(context.Context) error {
			s := b.sweeper("victim")
			s.Ledger, s.Announce.Ledger = mortalLedger{m, b.ledger}, mortalLedger{m, b.ledger}
			return s.Sweep
		},
		bring: func(t *testing.T, b *testBundle, r jetpost.Request) { // its worker died before it published anything
			t.Helper()
			body, err := json.Marshal(r)
			testkit.Must(t, err)
			_, err = b.ledger.Accept(t.Context(), store.Acceptance{Request: r, Body: body, Digest: r.Digest(), Now: time.Now().Add(-time.Minute)})
			testkit.Must(t, err)
		},
		steps: "lease, due, publish.wake, held, outbox, notices, pause changes, read, jetpost.event.request.accepted, delivered",
	}}
}

// gapFaults sets up what X does wrong.
func gapFaults(faults ...xsim.Fault) func(*testing.T, *testBundle) {
	return func(t *testing.T, b *testBundle) { t.Helper(); b.faults(t, faults...) }
}

func gapIntake(b *testBundle, m *mortal) func(context.Context) error {
	h := b.intake()
	h.Ledger, h.Announce.Ledger = mortalLedger{m, b.ledger}, mortalLedger{m, b.ledger}
	return b.gapRunner(b.intakes(h)).Run
}

// gapDirect is intake, and a lane of the same worker that waits for it.
func gapDirect(b *testBundle, m *mortal) func(context.Context) error {
	slots, acknowledged := roomFor(1), make(chan struct{})
	slots.patience = time.Hour
	m.after = func(step string) {
		if step == "ack" {
			close(acknowledged)
		}
	}
	lane := b.mortalLane(m)
	h := b.intake()
	h.Ledger, h.Announce.Ledger = mortalLedger{m, b.ledger}, mortalLedger{m, b.ledger}
	h.Slots, h.Claim, h.May = slots, store.LaneClaim{Worker: lane.Worker, Lease: lane.Timing.lease()}, lane.unasked
	waits := handlerFunc(func(ctx context.Context, d delivery) error {
		if d.Claim != nil {
			select {
			case <-acknowledged:
			case <-ctx.Done():
			}
		}
		return lane.Handle(ctx, d)
	})
	return b.gapRunner(append(b.intakes(h), binding{Stream: b.names.LanesStream(), Consumer: jetpost.ConsumerLanes, Slots: 1, Handler: waits, Direct: slots})).Run
}

func gapJob(t *testing.T, b *testBundle, r jetpost.Request) {
	t.Helper()
	body, err := json.Marshal(r)
	testkit.Must(t, err)
	_, err = b.pub.PublishRaw(t.Context(), r.Account, body)
	testkit.Must(t, err)
}

// gapUnpublish accepts a request that another worker publishes, after upset, and whose
// posts are to be deleted.
func gapUnpublish(upset func(*testing.T, *testBundle)) func(*testing.T, *testBundle, jetpost.Request) {
	return func(t *testing.T, b *testBundle, r jetpost.Request) {
		t.Helper()
		key := b.accept(t, r)
		if upset != nil {
			upset(t, b)
		}
		b.run(t, b.lane(func(h *publishHandler) { h.Timing = gapTiming() }), "acme")
		b.purge(t, b.names.LanesStream())
		_, err := b.ledger.Unpublish(t.Context(), key, time.Now())
		testkit.Must(t, err)
		testkit.Must(t, b.wakeups.Wake(t.Context(), "acme"))
	}
}

// gapTiming is the timing of all lanes here.
func gapTiming() timing { return timing{Lease: gapLease, Scale: Scale{Minute: gapMinute}} }

func gapLanes(b *testBundle, m *mortal) func(context.Context) error {
	return b.gapRunner([]binding{{Stream: b.names.LanesStream(), Consumer: jetpost.ConsumerLanes, Slots: 1, Handler: b.mortalLane(m)}}).Run
}

// mortalLane is a lane of the worker that dies.
func (b *testBundle) mortalLane(m *mortal) *publishHandler {
	return b.lane(func(h *publishHandler) {
		h.Ledger, h.Tokens, h.Worker = mortalLedger{m, b.ledger}, mortalTokens{m, h.Tokens}, "victim"
		h.Announce.Ledger, h.Announce.DeadLetters, h.Timing = mortalLedger{m, b.ledger}, inOrder{b.deadLetters}, gapTiming()
	})
}

func (b *testBundle) gapRunner(bindings []binding) *runner {
	// All runners have the same name in leases, so that none waits for a lease to expire.
	return &runner{JetStream: b.js, Leases: b.ledger, Worker: "worker", Health: &health{}, Log: b.log, Bindings: bindings, StopGrace: time.Nanosecond}
}

// gapDatabases opens the ledgers on which a gap is tested.
func gapDatabases() map[string]func(*testing.T, *store.Sealer) store.Store {
	return map[string]func(*testing.T, *store.Sealer) store.Store{
		"SQLite": nil, // the file that every test uses
		"PostgreSQL": func(t *testing.T, sealer *store.Sealer) store.Store {
			t.Helper()
			s, err := postgres.Open(t.Context(), pgtest.Migrated(t, postgres.Migrate), sealer, postgres.CallersClock())
			testkit.Must(t, err)
			t.Cleanup(func() { testkit.Must(t, s.Close()) })
			return s
		},
	}
}

// TestWorkerDiesInAnyGap kills a worker between any two of its steps, or between some of
// them (see sample). A step is a call to the ledger, NATS or X. The steps of a worker that
// does not die must be the listed ones, so no step is forgotten. Another worker takes over.
// In the end each post is on X once and in order, the event of its request says published,
// and nothing is left in the streams.
func TestWorkerDiesInAnyGap(t *testing.T) {
	t.Parallel()
	for name, open := range gapDatabases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Not with t.Parallel, which is bounded by the number of processors: gaps
			// mostly wait.
			free := make(chan struct{}, gapsAtOnce)
			var all sync.WaitGroup
			try := func(run gapRun, g gap) {
				free <- struct{}{}
				all.Go(func() {
					defer func() { <-free }()
					t.Run(run.name+"/"+g.in(run.taken()), func(t *testing.T) { run.diesIn(t, open, g) })
				})
			}
			for _, run := range gapRuns(t) {
				for _, g := range sample(run.gaps()) {
					try(run, g)
				}
			}
			all.Wait()
		})
	}
}

// taken returns the steps of a worker that does not die.
func (run gapRun) taken() []string { return strings.Split(run.steps, ", ") }

// gap is where a worker dies. The moment after a step is the moment before the next one,
// because they look the same from outside.
type gap struct {
	at       int  // index of the first step that is not taken
	onItsWay bool // X still handles the call of that step after the worker has died
}

// gaps returns all moments in which a worker can die, the last of them after its last step.
func (run gapRun) gaps() []gap {
	var gaps []gap
	for at, step := range run.taken() {
		gaps = append(gaps, gap{at: at})
		if step == "POST /2/tweets" {
			gaps = append(gaps, gap{at: at, onItsWay: true})
		}
	}
	return append(gaps, gap{at: len(run.taken())})
}

// sample selects the gaps to test: all of them if JETPOST_TEST_FULL is set, else some
// random ones and the last one, which compares all steps with the listed ones.
func sample(gaps []gap) []gap {
	if os.Getenv("JETPOST_TEST_FULL") != "" {
		return gaps
	}
	last := len(gaps) - 1
	rand.Shuffle(last, func(i, j int) { gaps[i], gaps[j] = gaps[j], gaps[i] })
	return append(gaps[:max(1, last/gapShare)], gaps[last])
}

// in names the gap.
func (g gap) in(steps []string) string {
	switch {
	case g.at == len(steps):
		return "after all"
	case g.onItsWay:
		return fmt.Sprintf("%02d in %s", g.at, steps[g.at])
	default:
		return fmt.Sprintf("%02d before %s", g.at, steps[g.at])
	}
}

// diesIn has a worker die in the gap and another one go on.
func (run gapRun) diesIn(t *testing.T, open func(*testing.T, *store.Sealer) store.Store, g gap) {
	t.Helper()
	want, got := run.taken()[:g.at], []string(nil)
	for range gapTries {
		b := run.begin(t, open)
		if got = run.victim(t, b, g); slices.Equal(got, want) {
			run.goesOn(t, b)
			return
		}
	}
	t.Fatalf("the steps up to the gap are\n%q, want\n%q", got, want)
}

// gapStarts bounds how many installations are set up at the same time: that takes a
// processor, while workers elsewhere have to keep their margins.
var gapStarts = make(chan struct{}, 3)

// begin delivers the request to a worker.
func (run gapRun) begin(t *testing.T, open func(*testing.T, *store.Sealer) store.Store) *testBundle {
	t.Helper()
	gapStarts <- struct{}{}
	defer func() { <-gapStarts }()
	b := setupOn(t, open, run.opts...)
	b.log = slog.New(slog.NewTextHandler(t.Output(), nil))
	b.account(t, "acme", 0)
	b.hurry(t, b.names.JobsStream(), b.names.LanesStream())
	control := b.accept(t, jetpost.Request{ID: "control", Posts: thread("control")}) // an earlier post that X shows in timeline checks
	b.run(t, b.lane(), "acme")
	b.want(t, control, jetpost.StatePublished, "", 1)
	b.purge(t, b.names.LanesStream())
	if run.upset != nil {
		run.upset(t, b)
	}
	for _, text := range run.before {
		b.accept(t, jetpost.Request{Account: "acme", ID: text, Posts: thread(text)})
	}
	request := jetpost.Request{Account: "acme", ID: "gap", Posts: run.posts}
	if run.bring == nil {
		b.accept(t, request)
	} else {
		run.bring(t, b, request)
	}
	return b
}

// goesOn has another worker take over from a dead one.
func (run gapRun) goesOn(t *testing.T, b *testBundle) {
	t.Helper()
	next := b.lane(func(h *publishHandler) { h.Worker, h.Timing = "next", gapTiming() })
	sweeper := b.sweeper("next")
	sweeper.Timing.Lease = 3 * gapLease // it need not be that fast
	b.sweep(t, sweeper)
	stop := b.work(t, next)
	gapJob(t, b, jetpost.Request{Account: "acme", ID: "behind", Posts: thread("behind")})
	run.wantEnd(t, b)
	stop()
	_, free, err := b.ledger.ClaimLane(t.Context(), "acme", "test", time.Minute, time.Now())
	testkit.Must(t, err)
	testkit.Equal(t, "the lane is free", free, true)
}

// victim runs a worker until it dies in the gap, and returns the steps that it took.
func (run gapRun) victim(t *testing.T, b *testBundle, g gap) []string {
	t.Helper()
	m := &mortal{gap: g, dead: make(chan struct{})}
	nc, err := nats.Connect("", nats.InProcessServer(mortalWire{m, b.server}), nats.NoReconnect())
	testkit.Must(t, err)
	js, err := jetstream.New(nc)
	testkit.Must(t, err)
	worker := &testBundle{
		names: b.names, server: b.server, js: js, sealer: b.sealer, ledger: b.ledger, lifeboat: b.lifeboat, x: b.x, media: b.media, log: b.log,
		hc:      &http.Client{Transport: mortalX{m, b.x}},
		wakeups: publishers.NewWakeups(js, b.names), deadLetters: publishers.NewDeadLetters(js, b.names), pauses: publishers.NewAppPauses(js, b.names), windows: publishers.NewWindows(js, b.names),
	}
	work := run.work
	if work == nil {
		work = gapLanes
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := work(worker, m)(ctx); err != nil && !m.isDead() {
			t.Errorf("the worker ended: %v", err)
		}
	}()
	within(t, gapPatience, gapPoll, "the worker's death or the end of its work", func() bool {
		select {
		case <-m.dead:
			return true
		case <-ended:
			return true
		default:
			return run.done(t, b)
		}
	})
	m.die()
	cancel()
	nc.Close()
	<-ended
	return m.taken
}

// inOrder waits for the answers to events at once, so that the steps come in one order.
type inOrder struct{ *publishers.DeadLetters }

func (d inOrder) Events(ctx context.Context, events []publishers.Told) func() []error {
	errs := d.DeadLetters.Events(ctx, events)()
	return func() []error { return errs }
}

// done reports whether nothing is left to do for the worker.
func (run gapRun) done(t *testing.T, b *testBundle) bool {
	t.Helper()
	accepted := b.messages(t, b.names.JobsStream()) == 0
	if run.work != nil && !run.whole {
		return accepted && !run.once
	}
	return accepted && b.rests(t, "gap")
}

func (run gapRun) last() jetpost.EventType {
	if run.unpublish {
		return jetpost.EventRequestUnpublished
	}
	if run.state == jetpost.StateFailed {
		return jetpost.EventRequestFailed
	}
	return jetpost.EventRequestPublished
}

// rests reports whether the request has its final state, all events are published, and
// nothing is left in the streams.
func (b *testBundle) rests(t *testing.T, id string) bool {
	t.Helper()
	key := store.Key{Account: "acme", ID: id}
	r := b.record(t, key)
	if r.Status.State == jetpost.StateHeld && r.Status.Reason.Code == jetpost.CodeXUnavailable && time.Until(r.HoldUntil) > gapLease {
		// On a loaded machine the write guard may refuse a post, and after some timeline
		// checks the next try is half an hour later. The schedule for it is left behind.
		_, err := b.ledger.Replay(t.Context(), key, time.Now())
		testkit.Must(t, err)
		b.hurried = true
	}
	return r.Status.State.Finished() && !r.Deletion.Open() && r.Delivered == r.Status.Revision && b.idle(t)
}

// idle reports whether no job, no wake-up and no schedule is left.
func (b *testBundle) idle(t *testing.T) bool {
	t.Helper()
	const cron = 1 // the schedule of refreshes
	return b.messages(t, b.names.JobsStream()) == 0 && b.messages(t, b.names.LanesStream()) == 0 &&
		(b.messages(t, b.names.ScheduleStream()) == cron || b.hurried)
}

// wantEnd waits for the end of the run, and fails unless it is the expected one.
func (run gapRun) wantEnd(t *testing.T, b *testBundle) {
	t.Helper()
	behind := store.Key{Account: "acme", ID: "behind"}
	within(t, gapPatience, gapPoll, "the request behind is accepted", func() bool {
		_, err := b.ledger.Request(t.Context(), behind)
		return err == nil
	})
	texts := append([]string{"control"}, run.before...)
	defer func() {
		within(t, gapPatience, gapPoll, "the request behind is published", func() bool {
			return b.rests(t, "behind")
		})
		b.want(t, behind, jetpost.StatePublished, "", 1)
		b.texts(t, "acme", append(texts, "behind")...)
		for state, n := range b.counts(t) {
			if !state.Finished() {
				testkit.Equal(t, "requests that are "+string(state), n, 0)
			}
		}
	}()
	if run.refused {
		run.wantRefusal(t, b)
		return
	}
	key := store.Key{Account: "acme", ID: "gap"}
	within(t, gapPatience, gapPoll, "the request comes to its end", func() bool { return b.rests(t, "gap") })
	parent, posted := "", 0
	want := jetpost.StatePublished
	if run.state != "" {
		want = run.state
	}
	r := b.record(t, key)
	testkit.Equal(t, "state", r.Status.State, want)
	live := b.x.Posts("acme")[len(run.before):]
	for i, p := range r.Posts {
		if p.State != jetpost.PostPosted {
			continue
		}
		if run.unpublish {
			testkit.Equal(t, run.posts[i].Text+" is deleted", p.DeletedAt.IsZero(), false)
			posted++
			continue
		}
		texts = append(texts, run.posts[i].Text)
		posted++
		testkit.Equal(t, "id of "+run.posts[i].Text, live[posted].ID, p.PostID)
		testkit.Equal(t, "parent of "+run.posts[i].Text, live[posted].InReplyTo, parent)
		parent = p.PostID
	}
	if want == jetpost.StatePublished {
		testkit.Equal(t, "posts that are live", posted, len(run.posts))
	}
	// An older event may follow it once, and then it follows again.
	within(t, gapPatience, gapPoll, fmt.Sprintf("the last event to be %s, of %d posts", run.last(), posted), func() bool {
		event := b.lastEvent(t, key)
		return event.Type == run.last() && event.Request.Posted == posted
	})
}

func (run gapRun) wantRefusal(t *testing.T, b *testBundle) {
	t.Helper()
	within(t, gapPatience, gapPoll, "the job is acknowledged", func() bool { return b.messages(t, b.names.JobsStream()) == 0 })
	refusals, err := b.ledger.Refusals(t.Context(), 10)
	testkit.Must(t, err)
	testkit.Equal(t, "refusals", len(refusals), 1)
	testkit.Equal(t, "records", b.messages(t, b.names.FailedStream()), 1)
	testkit.Equal(t, "told", b.last(t, b.names.EventsStream(), b.names.RefusedEvent("acme", refusals[0].Sequence)) != nil, true)
}

// hurry has the server redeliver a dead worker's messages soon.
func (b *testBundle) hurry(t *testing.T, streams ...string) {
	t.Helper()
	for _, name := range streams {
		stream, err := b.js.Stream(t.Context(), name)
		testkit.Must(t, err)
		consumers := stream.ListConsumers(t.Context())
		for info := range consumers.Info() {
			info.Config.AckWait = gapAckWait
			_, err := stream.UpdateConsumer(t.Context(), info.Config)
			testkit.Must(t, err)
		}
		testkit.Must(t, consumers.Err())
	}
}

// mortal is a worker that dies before one of its steps. After that nothing from it reaches
// the ledger, NATS or X, and each of its goroutines ends at its next step.
type mortal struct {
	gap  gap
	dead chan struct{}

	after func(step string) // if set, hears of each step that is taken

	mu    sync.Mutex
	taken []string   // the steps so far
	conns []net.Conn // to NATS
}

func (m *mortal) isDead() bool {
	select {
	case <-m.dead:
		return true
	default:
		return false
	}
}

func (m *mortal) die() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.isDead() {
		m.end()
	}
}

// end is die for callers that hold the lock.
func (m *mortal) end() {
	close(m.dead)
	for _, conn := range m.conns {
		_ = conn.Close() // what the client still buffers is not sent
	}
}

// may reports whether the step is taken. A step without a name is a heartbeat, which
// depends only on time.
func (m *mortal) may(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if name == "" || m.isDead() {
		return !m.isDead()
	}
	if len(m.taken) == m.gap.at {
		m.end()
		return false
	}
	m.taken = append(m.taken, name)
	if m.after != nil {
		m.after(name)
	}
	return true
}

func (m *mortal) step(name string) {
	if !m.may(name) {
		runtime.Goexit()
	}
}

// mortalX is the worker's connection to X.
type mortalX struct {
	m *mortal
	x *xsim.Server
}

var idInPath = regexp.MustCompile(`\b\d{6,}\b`)

func (x mortalX) RoundTrip(r *http.Request) (*http.Response, error) {
	if !x.m.may(r.Method + " " + idInPath.ReplaceAllString(r.URL.Path, ":id")) {
		if x.m.gap.onItsWay {
			answer, err := x.x.RoundTrip(r.WithContext(context.WithoutCancel(r.Context())))
			if err == nil {
				_ = answer.Body.Close()
			}
		}
		runtime.Goexit()
	}
	return x.x.RoundTrip(r)
}

// mortalWire is the worker's connection to NATS. It parses the protocol, so that it sees
// every message, whatever interface sent it.
type mortalWire struct {
	m      *mortal
	server *server.Server
}

func (w mortalWire) InProcessConn() (net.Conn, error) {
	conn, err := w.server.InProcessConn()
	if err != nil {
		return nil, err
	}
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	w.m.conns = append(w.m.conns, conn)
	return &mortalConn{conn, w.m}, nil
}

type mortalConn struct {
	net.Conn
	m *mortal
}

// Write passes each operation on, or dies. The client writes complete operations.
func (c *mortalConn) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		line, _, _ := bytes.Cut(b, []byte("\r\n"))
		size, name := len(line)+2, ""
		fields := strings.Fields(string(line))
		if fields[0] == "PUB" || fields[0] == "HPUB" {
			payload, err := strconv.Atoi(fields[len(fields)-1])
			if err != nil {
				return n, err
			}
			name = wireStep(fields[1], string(b[size:size+payload]))
			size += payload + 2
		}
		if !c.m.may(name) {
			return n, net.ErrClosed
		}
		written, err := c.Conn.Write(b[:size])
		n += written
		if err != nil {
			return n, err
		}
		b = b[size:]
	}
	return n, nil
}

// wireStep names what a message does; "" for a request or a heartbeat.
func wireStep(subject, payload string) string {
	for _, asks := range []string{"CONSUMER.MSG.NEXT.", "CONSUMER.INFO.", "STREAM.INFO.", "STREAM.MSG.GET.", "DIRECT.GET."} {
		if strings.HasPrefix(subject, "$JS.API."+asks) {
			return ""
		}
	}
	switch {
	case payload == "+WPI":
		return ""
	case strings.HasPrefix(subject, "$JS.ACK."):
		return "ack"
	default:
		kind, _, _ := strings.Cut(subject, ".acme")
		return kind
	}
}

// mortalTokens is the worker's access to its tokens. TestExchangeGaps tests the gaps of an
// exchange.
type mortalTokens struct {
	m  *mortal
	to tokenSource
}

func (s mortalTokens) Stored(ctx context.Context, account string) (store.Token, error) {
	s.m.step("token as it is")
	return s.to.Stored(ctx, account)
}

func (s mortalTokens) EnsureFresh(ctx context.Context, account string, usedVersion int64) (store.Token, error) {
	s.m.step("token")
	return s.to.EnsureFresh(ctx, account, usedVersion)
}

func (s mortalTokens) Fresh(ctx context.Context, token store.Token, usedVersion int64) (store.Token, error) {
	s.m.step("token")
	return s.to.Fresh(ctx, token, usedVersion)
}

// mortalLedger is the worker's access to the ledger. It embeds nothing, so each method that
// the handlers' interfaces gain must be a step here.
type mortalLedger struct {
	m  *mortal
	to store.Store
}

var _ interface {
	laneLedger
	intakeLedger
	sweepLedger
	OutboxLedger
} = mortalLedger{}

func (l mortalLedger) Accept(ctx context.Context, in store.Acceptance) (store.Decision, error) {
	l.m.step("accept")
	return l.to.Accept(ctx, in)
}

func (l mortalLedger) Refuse(ctx context.Context, refusal jetpost.Refusal, body []byte) error {
	l.m.step("refuse")
	return l.to.Refuse(ctx, refusal, body)
}

func (l mortalLedger) ClaimLane(ctx context.Context, account, worker string, lease time.Duration, now time.Time) (store.Claim, bool, error) {
	l.m.step("claim")
	return l.to.ClaimLane(ctx, account, worker, lease, now)
}

func (l mortalLedger) ExtendLane(ctx context.Context, lane store.Claim, lease time.Duration, now time.Time) error {
	l.m.step("") // depends only on time
	return l.to.ExtendLane(ctx, lane, lease, now)
}

func (l mortalLedger) ReleaseLane(ctx context.Context, lane store.Claim, generation int64, wakeAt, now time.Time) (bool, error) {
	l.m.step("release")
	return l.to.ReleaseLane(ctx, lane, generation, wakeAt, now)
}

func (l mortalLedger) Snapshot(ctx context.Context, lane store.Claim, now time.Time) (store.Snapshot, error) {
	l.m.step("snapshot")
	return l.to.Snapshot(ctx, lane, now)
}

func (l mortalLedger) Begin(ctx context.Context, lane store.Claim, id string, intent store.Intent) error {
	l.m.step("begin")
	return l.to.Begin(ctx, lane, id, intent)
}

func (l mortalLedger) Posted(ctx context.Context, lane store.Claim, id string, live store.LivePost) (jetpost.State, error) {
	l.m.step("posted")
	return l.to.Posted(ctx, lane, id, live)
}

func (l mortalLedger) Conclude(ctx context.Context, lane store.Claim, id string, out store.Outcome) error {
	l.m.step("conclude")
	return l.to.Conclude(ctx, lane, id, out)
}

func (l mortalLedger) BlockAccount(ctx context.Context, lane store.Claim, pause store.Pause, now time.Time) (store.Pause, error) {
	l.m.step("block")
	return l.to.BlockAccount(ctx, lane, pause, now)
}

func (l mortalLedger) Refused(ctx context.Context, lane store.Claim, id string, refusal store.UnruledRefusal) (store.Refusals, error) {
	l.m.step("refused")
	return l.to.Refused(ctx, lane, id, refusal)
}

func (l mortalLedger) HoldQueue(ctx context.Context, lane store.Claim, reason jetpost.Reason, generation int64, now time.Time) ([]store.Key, error) {
	l.m.step("hold queue")
	return l.to.HoldQueue(ctx, lane, reason, generation, now)
}

func (l mortalLedger) Anchor(ctx context.Context, account string) (store.Anchor, error) {
	l.m.step("anchor post")
	return l.to.Anchor(ctx, account)
}

func (l mortalLedger) Owned(ctx context.Context, postIDs []string) ([]string, error) {
	l.m.step("owned")
	return l.to.Owned(ctx, postIDs)
}

func (l mortalLedger) Deleted(ctx context.Context, postIDs []string) ([]string, error) {
	l.m.step("deleted ones")
	return l.to.Deleted(ctx, postIDs)
}

func (l mortalLedger) Unpublishing(ctx context.Context, lane store.Claim) (store.Record, bool, error) {
	l.m.step("unpublishing")
	return l.to.Unpublishing(ctx, lane)
}

func (l mortalLedger) PostDeleted(ctx context.Context, lane store.Claim, id string, post int, now time.Time) error {
	l.m.step("deleted")
	return l.to.PostDeleted(ctx, lane, id, post, now)
}

func (l mortalLedger) HoldUnpublish(ctx context.Context, lane store.Claim, id string, out store.Outcome) error {
	l.m.step("hold deletion")
	return l.to.HoldUnpublish(ctx, lane, id, out)
}

func (l mortalLedger) Uploaded(ctx context.Context, lane store.Claim, id string, media map[int][]store.Media) error {
	l.m.step("uploaded")
	return l.to.Uploaded(ctx, lane, id, media)
}

func (l mortalLedger) Reserve(ctx context.Context, lane store.Claim, r store.Reservation) (store.Reserved, error) {
	l.m.step("reserve")
	return l.to.Reserve(ctx, lane, r)
}

func (l mortalLedger) ListRequests(ctx context.Context, filter store.Filter) ([]store.Record, error) {
	l.m.step("held")
	return l.to.ListRequests(ctx, filter)
}

func (l mortalLedger) EndHolds(ctx context.Context, account string, code jetpost.Code, now time.Time) (int, error) {
	l.m.step("end holds")
	return l.to.EndHolds(ctx, account, code, now)
}

func (l mortalLedger) Spend(ctx context.Context, account string, e store.Expense) (store.Spent, error) {
	l.m.step("spend")
	return l.to.Spend(ctx, account, e)
}

func (l mortalLedger) NoteBilled(ctx context.Context, now time.Time) error {
	l.m.step("note billed")
	return l.to.NoteBilled(ctx, now)
}

func (l mortalLedger) Sent(ctx context.Context, account string, after time.Time, limit int) ([]time.Time, error) {
	l.m.step("sent")
	return l.to.Sent(ctx, account, after, limit)
}

func (l mortalLedger) Account(ctx context.Context, name string) (store.Account, error) {
	l.m.step("account")
	return l.to.Account(ctx, name)
}

func (l mortalLedger) AcceptMany(ctx context.Context, lease store.Lease, in []store.Acceptance) ([]store.Received, error) {
	l.m.step("accept")
	return l.to.AcceptMany(ctx, lease, in)
}

func (l mortalLedger) JobFailed(ctx context.Context, f store.JobFailure) (int, error) {
	l.m.step("job failed")
	return l.to.JobFailed(ctx, f)
}

func (l mortalLedger) MarkManyDelivered(ctx context.Context, told []store.Revision) ([]store.Key, error) {
	l.m.step("delivered")
	return l.to.MarkManyDelivered(ctx, told)
}

func (l mortalLedger) TryLease(ctx context.Context, name, owner string, d time.Duration, now time.Time) (bool, error) {
	l.m.step("lease")
	return l.to.TryLease(ctx, name, owner, d, now)
}

func (l mortalLedger) DueLanes(ctx context.Context, now time.Time, limit int) ([]string, error) {
	l.m.step("due")
	return l.to.DueLanes(ctx, now, limit)
}

func (l mortalLedger) OutboxPending(ctx context.Context, before time.Time, limit int) ([]store.Key, error) {
	l.m.step("outbox")
	return l.to.OutboxPending(ctx, before, limit)
}

func (l mortalLedger) Request(ctx context.Context, key store.Key) (store.Record, error) {
	l.m.step("read")
	return l.to.Request(ctx, key)
}

func (l mortalLedger) MarkDelivered(ctx context.Context, key store.Key, revision int64) (bool, error) {
	l.m.step("delivered")
	return l.to.MarkDelivered(ctx, key, revision)
}

func (l mortalLedger) Notices(ctx context.Context, account string, limit int) ([]store.Notice, error) {
	l.m.step("notices")
	return l.to.Notices(ctx, account, limit)
}

func (l mortalLedger) MarkNoticed(ctx context.Context, notice store.Notice) error {
	l.m.step("noticed")
	return l.to.MarkNoticed(ctx, notice)
}

func (l mortalLedger) PauseChanges(ctx context.Context, account string, limit int) ([]store.PauseChange, error) {
	l.m.step("pause changes")
	return l.to.PauseChanges(ctx, account, limit)
}

func (l mortalLedger) MarkPauseChangeTold(ctx context.Context, change store.PauseChange) error {
	l.m.step("pause change told")
	return l.to.MarkPauseChangeTold(ctx, change)
}
