package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// DefaultSlots is how many lanes one worker runs at once.
	DefaultSlots = 16
	// refreshSlots is how many messages of the refresh stream a worker handles at once.
	// Each may be a batch of tokens.
	refreshSlots = 2
	// rescueInterval is how often a worker checks the lifeboat for pairs of workers that
	// are gone: sooner than their leases of tokens end.
	rescueInterval = 10 * time.Second
)

// The roles of a worker.
const (
	RolePublish = "publish" // accepts jobs and runs lanes
	RoleRefresh = "refresh" // keeps tokens alive
)

// PostingLimits are the operator's limits of what an account publishes.
type PostingLimits = admission.PostingLimits

// Budget is what posts of a month may cost by estimate.
type Budget = admission.Budget

// Config is what a worker needs. The fields of the first group are required; the others
// have defaults.
type Config struct {
	// Worker names the worker in leases, heartbeats and logs. No two workers share a name.
	Worker string
	// Ledger is the database, and JetStream is where publishers.Setup was run with Topology
	// for that ledger. The caller closes both after Run.
	Ledger    store.Store
	JetStream jetstream.JetStream
	Topology  publishers.TopologyConfig
	// Lifeboat stores the token pairs that X gave while the database was away. It was
	// prepared by the caller, who closes it after Run.
	Lifeboat *store.Lifeboat
	// ClientID and ClientSecret are those of the X app. A public client has no secret.
	ClientID, ClientSecret string
	Log                    *slog.Logger

	// XURL is the address of X; xapi.DefaultBaseURL if empty.
	XURL string
	// Scale shortens the margins that depend on X. It is for a simulated X only.
	Scale Scale
	// Roles are RolePublish and RoleRefresh; both if empty.
	Roles []string
	// Slots is how many lanes run at once; DefaultSlots if zero.
	Slots int
	// Lease is how long a lane belongs to a worker that no longer extends its lease, and
	// ExchangeLease how long a token belongs to a worker that exchanges it. All margins
	// derive from them. DefaultLease and DefaultExchangeLease if zero.
	Lease, ExchangeLease time.Duration
	// RefreshWindow, RefreshBatch and RefreshBatchTime tune refresh rounds;
	// DefaultRefreshWindow, DefaultRefreshBatch and DefaultRefreshBatchTime if zero.
	RefreshWindow    time.Duration
	RefreshBatch     int
	RefreshBatchTime time.Duration
	// Rules are those of X that requests must follow, and PostingLimits the operator's.
	Rules         Rules
	PostingLimits PostingLimits
	// Budget are the operator's limits of what posts of a month may cost.
	Budget Budget
	// MediaAllow are private networks that media URLs and webhooks may reach; none if empty.
	MediaAllow []netip.Prefix
	// KeepFinished is how long finished requests are kept whole; forever if zero.
	KeepFinished time.Duration
	// Room is checked before each call to X, because its result must be stored.
	Room func() error

	// Started is called once Run knows the app pauses and X's windows, before it takes the
	// first message. Its context ends with Run's, or when Run fails.
	Started func(context.Context)
	// Observe, Watch and Tracer see the work, the calls to X and its spans; any may be nil.
	Observe Observer
	Watch   xapi.Watch
	Tracer  trace.Tracer
}

// check lists what is missing.
func (c *Config) check() error {
	var missing []string
	for _, field := range []struct {
		name string
		set  bool
	}{
		{"Worker", c.Worker != ""}, {"Ledger", c.Ledger != nil}, {"JetStream", c.JetStream != nil},
		{"Topology.LedgerID", c.Topology.LedgerID != ""}, {"Lifeboat", c.Lifeboat != nil}, {"ClientID", c.ClientID != ""}, {"Log", c.Log != nil},
	} {
		if !field.set {
			missing = append(missing, field.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("configure worker: set %s", strings.Join(missing, ", "))
	}
	return nil
}

// has reports whether the worker has a role.
func (c *Config) has(role string) bool { return len(c.Roles) == 0 || slices.Contains(c.Roles, role) }

// Worker accepts jobs, runs lanes and keeps tokens alive.
type Worker struct {
	cfg    Config
	health *health
	gate   *admission.Gate
	pauses *AppPauseControl
	// windows are X's rate windows. shared publishes them to all workers.
	windows *admission.Windows
	shared  *publishers.Windows
	objects jetstream.ObjectStore
	media   *mediaSource
	relay   *OutboxRelay
	clocks  *clocks
	alarms  *alarms
	tokens  *refresher
	oauth   *xapi.OAuth
	lanes   *counted
	sweeper *sweeper // nil without RolePublish
	hooks   *hooks   // the same
	eraser  *Eraser  // the same
	pruner  *pruner  // nil if nothing is pruned
	runner  *runner

	recovered bool
}

// NewWorker puts a worker together. It fails if NATS is not set up for the ledger. Nothing
// runs before Run.
func NewWorker(ctx context.Context, cfg Config) (*Worker, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	js, names := cfg.JetStream, cfg.Topology.Names
	if err := publishers.Check(ctx, js, cfg.Topology); err != nil {
		return nil, err
	}
	w := &Worker{cfg: cfg, health: &health{}}
	var err error
	if w.objects, err = publishers.MediaStore(ctx, js, names); err != nil {
		return nil, err
	}
	signer, err := LedgerSigner(ctx, cfg.Ledger)
	if err != nil {
		return nil, err
	}
	w.pauses = &AppPauseControl{Bucket: publishers.NewAppPauses(js, names).Signed(signer), Ledger: cfg.Ledger, Log: cfg.Log}
	w.gate = admission.NewGate(w.pauses, cfg.Worker, cfg.Lease/2, cfg.Log)
	w.shared = publishers.NewWindows(js, names).Signed(signer)
	w.windows = admission.NewWindows(w.shared, cfg.Log)
	w.clocks = &clocks{Database: cfg.Ledger.Clock, NATS: w.natsClock, X: w.windows.Limits.Clock, Health: w.health, Log: cfg.Log}
	w.media = &mediaSource{Objects: w.objects, internet: internet{Private: cfg.MediaAllow}}
	w.wire(&http.Client{Transport: xapi.NewTransport()})
	if cfg.has(RolePublish) {
		w.hooks = newHooks(cfg.Ledger, js, names, NewHookSender(cfg.MediaAllow), cfg.Log)
		w.eraser, err = NewEraser(ctx, EraserConfig{
			Ledger: cfg.Ledger, JetStream: js, Names: names, Outbox: w.relay, X: w.oauth, Worker: cfg.Worker, Log: cfg.Log,
		})
		if err != nil {
			return nil, err
		}
	}
	if cfg.has(RolePublish) && cfg.KeepFinished > 0 {
		w.pruner, err = newPruner(ctx, PruneConfig{
			Ledger: cfg.Ledger, JetStream: js, Names: names, Worker: cfg.Worker, Keep: cfg.KeepFinished, Log: cfg.Log,
		})
		if err != nil {
			return nil, err
		}
	}
	return w, nil
}

// wire makes the handlers and binds them.
func (w *Worker) wire(hc *http.Client) {
	cfg, js, names := w.cfg, w.cfg.JetStream, w.cfg.Topology.Names
	base := cmp.Or(cfg.XURL, xapi.DefaultBaseURL)
	wakeups, deadLetters := publishers.NewWakeups(js, names), publishers.NewDeadLetters(js, names)
	w.relay = &OutboxRelay{Ledger: cfg.Ledger, DeadLetters: deadLetters, Names: names, Log: cfg.Log, MarkAfter: defaultMarkAfter}
	w.alarms = &alarms{Wakeups: wakeups, Here: w.clocks.Here, Log: cfg.Log}
	exchanges := tokenTiming{Lease: cfg.ExchangeLease, Scale: cfg.Scale}
	w.oauth = &xapi.OAuth{
		ClientID: cfg.ClientID, ClientSecret: cfg.ClientSecret, BaseURL: base, HTTPClient: hc, Timeout: exchanges.CallTimeout(), Watch: cfg.Watch,
	}
	w.tokens = &refresher{
		Tokens: cfg.Ledger, Gate: w.gate, DeadLetters: deadLetters, Announce: w.relay, Lifeboat: cfg.Lifeboat,
		Names: names, Health: w.health, Room: cfg.Room, Timing: exchanges, Observe: cfg.Observe, Log: cfg.Log, X: w.oauth,
	}
	w.runner = &runner{
		JetStream: js, Leases: cfg.Ledger, Worker: cfg.Worker, Health: w.health, Log: cfg.Log,
		Liveness: &liveness{Answer: w.answers, Health: w.health, Log: cfg.Log},
	}
	if cfg.has(RolePublish) {
		lanes, slots := w.bindLanes(wakeups, base, hc)
		w.bindIntake(wakeups, lanes, slots)
	}
	if cfg.has(RoleRefresh) {
		w.bind(names.RefreshStream(), jetpost.ConsumerRefresh, refreshSlots, &refreshHandler{
			Refresher: w.tokens, Wakeups: wakeups, Names: names,
			Window: cfg.RefreshWindow, BatchSize: cfg.RefreshBatch, BatchTime: cfg.RefreshBatchTime, Log: cfg.Log,
		})
	}
}

func (w *Worker) bind(stream, consumer string, slots int, h handler) {
	w.runner.Bindings = append(w.runner.Bindings, binding{Stream: stream, Consumer: consumer, Slots: slots, Handler: h})
}

// bindIntake binds the partitions of the jobs, whose lanes this worker runs itself while it
// has a free slot.
func (w *Worker) bindIntake(wakeups *publishers.Wakeups, lanes *publishHandler, slots *direct) {
	names := w.cfg.Topology.Names
	intake := &intakeHandler{
		Slots: slots, Claim: store.LaneClaim{Worker: lanes.Worker, Lease: lanes.Timing.lease()}, May: lanes.unasked,
		Ledger: w.cfg.Ledger, Announce: w.relay, Wakeups: wakeups, Media: w.media, Rules: w.cfg.Rules, Names: names,
		Answers: w.allAnswer, Observe: w.cfg.Observe, Trace: tracer{w.cfg.Tracer}, Log: w.cfg.Log,
	}
	partition := func(consumer string) {
		w.runner.Bindings = append(w.runner.Bindings, binding{Stream: names.JobsStream(), Consumer: consumer, Batch: intake})
	}
	for p := range jetpost.Partitions {
		partition(jetpost.ConsumerIntake(p))
	}
	partition(jetpost.ConsumerIntakeAny)
}

// bindLanes binds the lanes, and makes the sweeper that repairs them.
func (w *Worker) bindLanes(wakeups *publishers.Wakeups, base string, hc *http.Client) (*publishHandler, *direct) {
	cfg, names := w.cfg, w.cfg.Topology.Names
	timing := timing{Lease: cfg.Lease, Scale: cfg.Scale}
	lanes := &publishHandler{
		Ledger: cfg.Ledger, Announce: w.relay, Wakeups: wakeups, Tokens: w.tokens, Gate: w.gate, Windows: w.windows,
		Client: func(account, token string) *xapi.Client {
			return xapi.New(token, xapi.WithBaseURL(base), xapi.WithHTTPClient(hc), xapi.WithTimeout(timing.CallTimeout()),
				xapi.WithLimits(w.windows.Limits, account), xapi.WithWatch(cfg.Watch))
		},
		Alarms: w.alarms, Observe: cfg.Observe, Trace: tracer{cfg.Tracer}, Media: w.media, Rules: cfg.Rules, PostingLimits: cfg.PostingLimits, Budget: cfg.Budget,
		Health: w.health, Clocks: w.clocks, Room: cfg.Room, Names: names, Timing: timing, Worker: cfg.Worker, Log: cfg.Log,
	}
	w.lanes = &counted{handler: lanes}
	slots := newDirect()
	w.runner.Bindings = append(w.runner.Bindings, binding{
		Stream: names.LanesStream(), Consumer: jetpost.ConsumerLanes, Slots: cmp.Or(cfg.Slots, DefaultSlots), Handler: w.lanes, Direct: slots,
	})
	w.sweeper = &sweeper{
		Ledger: cfg.Ledger, Wakeups: wakeups, Announce: w.relay, Gate: w.gate, Health: w.health, Timing: timing, Worker: cfg.Worker, Log: cfg.Log,
		Upkeep: &upkeep{Pauses: w.pauses, Ledger: cfg.Ledger, JS: cfg.JetStream, Topology: cfg.Topology, Health: w.health, Log: cfg.Log},
	}
	return lanes, slots
}

// counted counts the deliveries in progress.
type counted struct {
	handler
	used atomic.Int64
}

// Handle handles a delivery, and counts it meanwhile.
func (c *counted) Handle(ctx context.Context, d delivery) error {
	c.used.Add(1)
	defer c.used.Add(-1)
	return c.handler.Handle(ctx, d)
}

// Recover stores the token pairs that workers which are gone left in the lifeboat. Run does
// that first if it was not done before, and then regularly.
func (w *Worker) Recover(ctx context.Context) error {
	err := w.tokens.Recover(ctx)
	w.recovered = w.recovered || err == nil
	return err
}

// Run works until the context ends, then finishes the calls in flight. It runs once. It also
// ends, with a *store.SchemaError, when a newer program has migrated the database to a schema
// on which this one cannot go on.
func (w *Worker) Run(ctx context.Context) error {
	ctx, outdated := context.WithCancelCause(ctx)
	defer outdated(nil)
	w.runner.Liveness.Outdated = outdated
	if !w.recovered {
		if err := w.Recover(ctx); err != nil {
			return err
		}
	}
	w.tokens.Stopping = ctx.Done()
	background, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	parts.Go(func() { w.pauses.follow(background, w.gate, w.health) })
	// The pauses in force and the windows must be known before the first delivery.
	select {
	case <-ctx.Done():
		return nil
	case <-w.gate.Informed():
	}
	if err := w.shared.FollowApp(background, w.windows.Learned); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	parts.Go(func() { w.windows.Run(background) })
	if w.cfg.Started != nil {
		w.cfg.Started(background)
	}
	parts.Go(func() { w.rescue(background) })
	parts.Go(func() { w.clocks.Run(background) })
	if w.sweeper != nil {
		parts.Go(func() { w.sweeper.Run(background) })
	}
	if w.pruner != nil {
		parts.Go(func() { w.pruner.Run(background) })
	}
	if w.hooks != nil {
		parts.Go(func() { w.hooks.Run(background) })
	}
	if w.eraser != nil {
		parts.Go(func() { w.eraser.Run(background) })
	}
	err := w.runner.Run(ctx)
	w.alarms.Stop()
	w.relay.Flush(context.WithoutCancel(ctx))
	if cause := context.Cause(ctx); errors.As(cause, new(*store.SchemaError)) {
		return cause
	}
	return err
}

// rescue regularly recovers the pairs of workers that are gone from the lifeboat, until the
// context ends.
func (w *Worker) rescue(ctx context.Context) {
	ticker := time.NewTicker(rescueInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := w.tokens.Recover(ctx); err != nil && ctx.Err() == nil {
			w.cfg.Log.Warn("lifeboat.not_emptied", "error", err)
		}
	}
}

// natsClock reads the clock of the server that leads the wake-ups.
func (w *Worker) natsClock(ctx context.Context) (time.Time, error) {
	lanes, err := w.cfg.JetStream.Consumer(ctx, w.cfg.Topology.Names.LanesStream(), jetpost.ConsumerLanes)
	if err != nil {
		return time.Time{}, fmt.Errorf("read clock of NATS: %w", err)
	}
	return lanes.CachedInfo().TimeStamp, nil
}

// answers checks that the database and NATS answer, and that the disks have free space.
func (w *Worker) answers(ctx context.Context) error {
	if err := admission.Room(w.cfg.Room).Err(); err != nil {
		return err
	}
	began := time.Now()
	err := w.cfg.Ledger.Fits(ctx)
	if w.cfg.Observe.tell(DatabaseAnswered, "", time.Since(began)); err != nil {
		return err
	}
	began = time.Now()
	err = w.cfg.JetStream.Conn().FlushWithContext(ctx)
	if w.cfg.Observe.tell(NATSAnswered, "", time.Since(began)); err != nil {
		return fmt.Errorf("ask NATS: %w", err)
	}
	return nil
}

// allAnswer is answers with the media store.
func (w *Worker) allAnswer(ctx context.Context) error {
	if _, err := w.objects.Status(ctx); err != nil {
		return fmt.Errorf("ask media store: %w", err)
	}
	return w.answers(ctx)
}

// Err joins the faults that keep the worker from its work, or is nil. That NATS is not
// connected is no fault of the worker.
func (w *Worker) Err() error { return w.health.Err() }

// Outbox publishes changes of the ledger that others than the worker have made.
func (w *Worker) Outbox() *OutboxRelay { return w.relay }

// Lanes returns how many lanes run just now.
func (w *Worker) Lanes() int {
	if w.lanes == nil {
		return 0
	}
	return int(w.lanes.used.Load())
}

// AppWindows returns X's rate windows of the app, as far as they are known.
func (w *Worker) AppWindows() []xapi.Window { return w.windows.Of("") }

// Spooled returns the bytes of media on the worker's disk.
func (w *Worker) Spooled() int64 { return w.media.Spooled() }

// CheckClock returns a *SkewError if this machine's clock differs from the ledger's, and the
// ledger's error if that does not answer.
func CheckClock(ctx context.Context, ledger store.Ledger) error {
	if _, err := ledger.Clock(ctx); err != nil {
		return err
	}
	clocks := &clocks{Database: ledger.Clock, Health: &health{}, Log: slog.New(slog.DiscardHandler)}
	clocks.Compare(ctx)
	return clocks.Err()
}
