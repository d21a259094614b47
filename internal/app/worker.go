package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/consumers/admission"
	"github.com/jetpost/jetpost/consumers/control"
	"github.com/jetpost/jetpost/internal/telemetry"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// refreshSlots is how many messages of the refresh stream a worker handles
	// at once; each may be a batch of tokens.
	refreshSlots = 2
	// headerTimeout bounds the headers of a request to a server of ours.
	headerTimeout = 10 * time.Second
	// rescueInterval is how often a worker checks the lifeboat for pairs of workers that
	// are gone: sooner than their leases of tokens end.
	rescueInterval = 10 * time.Second
)

// Worker is a running worker: it accepts jobs, runs lanes and keeps tokens.
type Worker struct {
	cfg    Config
	log    *slog.Logger
	conn   *Connection
	ledger store.Store
	gate   *admission.Gate
	// windows are X's rate windows; shared publishes them to all workers.
	windows *admission.Windows
	shared  *publishers.Windows
	tokens  *consumers.Refresher
	boat    *store.Lifeboat
	runner  *consumers.Runner
	sweep   *consumers.Sweeper
	pruner  *consumers.Pruner // nil where nothing is pruned
	alarms  *consumers.Alarms
	// relay collects marks, which Run flushes at the end.
	relay      *consumers.OutboxRelay
	pauses     *consumers.AppPauseControl
	heartbeats *publishers.Heartbeats
	lanes      *counted // counts the used slots
	health     *consumers.Health
	clocks     *consumers.Clocks
	status     *sharedStatus
	service    *control.Service
	metrics    *telemetry.Metrics
	media      *consumers.MediaSource
	listen     net.Listener
	pprof      net.Listener
	started    time.Time
}

// NewWorker checks everything that a worker depends on, and binds to it. It
// starts nothing yet.
func NewWorker(ctx context.Context, cfg Config, log *slog.Logger) (_ *Worker, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := cfg.X.checkMinute(ctx); err != nil {
		return nil, err
	}
	w := &Worker{cfg: cfg, health: &consumers.Health{}}
	if w.cfg.Worker == "" {
		w.cfg.Worker = workerName()
	}
	w.log = log.With("worker", w.cfg.Worker)
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if cfg.HealthListen != "" {
		if w.listen, err = Listen(ctx, cfg.HealthListen, "--health-listen"); err != nil {
			return nil, err
		}
	}
	if cfg.Pprof != "" {
		if w.pprof, err = Listen(ctx, cfg.Pprof, "--pprof"); err != nil {
			return nil, err
		}
	}
	if w.ledger, err = cfg.OpenStore(ctx); err != nil {
		return nil, err
	}
	if err := checkClock(ctx, w.ledger); err != nil {
		return nil, err
	}
	if w.conn, err = cfg.Connect(ctx, w.log, "jetpost worker "+w.cfg.Worker); err != nil {
		return nil, err
	}
	id, err := w.ledger.LedgerID(ctx)
	if err != nil {
		return nil, databaseError(err)
	}
	w.status = &sharedStatus{place: place{cfg: cfg, conn: w.conn, ledger: w.ledger}}
	topology := cfg.Topology(w.conn.Names, id)
	if err := publishers.Check(ctx, w.conn.JS, topology); err != nil {
		return nil, err
	}
	if err := w.prepareLifeboat(id); err != nil {
		return nil, err
	}
	if err := w.wire(ctx, topology); err != nil {
		return nil, err
	}
	if err := w.tokens.Recover(ctx); err != nil {
		return nil, lifeboatError(err)
	}
	return w, nil
}

// prepareLifeboat prepares the directory for token pairs that the database cannot store
// yet.
func (w *Worker) prepareLifeboat(ledgerID string) error {
	if w.cfg.Lifeboat == "" {
		return &ConfigError{Mistakes: []string{"--lifeboat: no directory is given"}}
	}
	sealer, err := store.NewSealer(w.cfg.Keys.Reveal())
	if err != nil {
		return fmt.Errorf("read encryption keys: %w", err)
	}
	w.boat = store.NewLifeboat(w.cfg.Lifeboat, ledgerID, sealer)
	return lifeboatError(w.boat.Prepare())
}

func lifeboatError(err error) error {
	if err == nil || Hint(err) != "" {
		return err
	}
	return &HintError{Err: err, Help: "let this user write there, or choose with --lifeboat a directory that outlives the worker"}
}

// rescue regularly recovers the pairs of workers that are gone from the lifeboat, until
// the context ends.
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
			w.log.Warn("lifeboat.not_emptied", "error", err)
		}
	}
}

// workerName generates a unique name for leases and logs.
func workerName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "worker"
	}
	return host + "-" + strconv.Itoa(os.Getpid()) + "-" + uuid.NewString()[:8]
}

// checkClock fails if this machine's clock differs from the database's.
func checkClock(ctx context.Context, ledger store.Ledger) error {
	if _, err := ledger.Clock(ctx); err != nil {
		return databaseError(err)
	}
	clocks := &consumers.Clocks{Database: ledger.Clock, Health: &consumers.Health{}, Log: slog.New(slog.DiscardHandler)}
	clocks.Compare(ctx)
	return clocks.Err()
}

// natsClock reads the clock of the server that leads the wake-ups.
func (w *Worker) natsClock(ctx context.Context) (time.Time, error) {
	lanes, err := w.conn.JS.Consumer(ctx, w.conn.Names.LanesStream(), jetpost.ConsumerLanes)
	if err != nil {
		return time.Time{}, fmt.Errorf("read clock of NATS: %w", err)
	}
	return lanes.CachedInfo().TimeStamp, nil
}

// wire puts the parts together.
func (w *Worker) wire(ctx context.Context, topology publishers.TopologyConfig) error {
	cfg, names, js := w.cfg, w.conn.Names, w.conn.JS
	scale := consumers.Scale{Minute: cfg.X.Minute}
	timing := consumers.Timing{Lease: cfg.Lease, Scale: scale}
	objects, err := publishers.MediaStore(ctx, js, names)
	if err != nil {
		return err
	}
	hc := &http.Client{Transport: xapi.NewTransport()}
	base := cfg.X.URL
	if base == "" {
		base = xapi.DefaultBaseURL
	}
	wakeups := publishers.NewWakeups(js, names)
	deadLetters := publishers.NewDeadLetters(js, names)
	if w.pauses, err = control.AppPauseControl(ctx, w.conn.JS, w.conn.Names, w.ledger, w.log); err != nil {
		return err
	}
	signer, err := consumers.LedgerSigner(ctx, w.ledger)
	if err != nil {
		return databaseError(err)
	}
	w.heartbeats = publishers.NewHeartbeats(js, names)
	w.gate = admission.NewGate(w.pauses, cfg.Worker, cfg.Lease/2, w.log)
	w.shared = publishers.NewWindows(js, names).Signed(signer)
	w.windows = admission.NewWindows(w.shared, w.log)
	w.clocks = &consumers.Clocks{Database: w.ledger.Clock, NATS: w.natsClock, X: w.windows.Limits.Clock, Health: w.health, Log: w.log}
	w.metrics = newMetrics()
	watch, tracer := cfg.Traces.Watch(w.metrics.Watch), consumers.Tracer{Tracer: cfg.Traces.Tracer()}
	ledger := w.metrics.Timed(w.ledger)
	relay := &consumers.OutboxRelay{Ledger: w.ledger, DeadLetters: deadLetters, Names: names, Log: w.log, MarkAfter: consumers.DefaultMarkAfter}
	w.relay = relay
	care := consumers.TokenTiming{Lease: cfg.Refresh.Lease, Scale: scale}
	w.tokens = &consumers.Refresher{
		Tokens: ledger, Gate: w.gate, DeadLetters: deadLetters, Announce: relay, Lifeboat: w.boat,
		Names: names, Health: w.health, Room: cfg.enoughRoom, Timing: care, Observe: w.metrics.Observe, Log: w.log,
		X: &xapi.OAuth{
			ClientID: cfg.X.ClientID, ClientSecret: cfg.X.ClientSecret.Reveal(), BaseURL: base, HTTPClient: hc, Timeout: care.CallTimeout(),
			Watch: watch,
		},
	}
	media := &consumers.MediaSource{Objects: objects, Allow: cfg.MediaAllow}
	w.media = media
	intake := &consumers.IntakeHandler{Ledger: ledger, Announce: relay, Wakeups: wakeups, Media: media, Rules: cfg.Rules, Names: names, Observe: w.metrics.Observe, Trace: tracer, Log: w.log}
	intake.Answers = func(ctx context.Context) error {
		if _, err := objects.Status(ctx); err != nil {
			return fmt.Errorf("ask media store: %w", err)
		}
		return w.answers(ctx)
	}
	w.alarms = &consumers.Alarms{Wakeups: wakeups, Here: w.clocks.Here, Log: w.log}
	publish := &consumers.PublishHandler{
		Ledger: ledger, Announce: relay, Wakeups: wakeups, Tokens: w.tokens, Gate: w.gate,
		Windows: w.windows,
		Client: func(account, token string) *xapi.Client {
			return xapi.New(token, xapi.WithBaseURL(base), xapi.WithHTTPClient(hc), xapi.WithTimeout(timing.CallTimeout()),
				xapi.WithLimits(w.windows.Limits, account), xapi.WithWatch(watch))
		},
		Alarms: w.alarms, Observe: w.metrics.Observe, Trace: tracer,
		Media: media, Rules: cfg.Rules, PostingLimits: cfg.PostingLimits, Health: w.health, Clocks: w.clocks, Room: cfg.enoughRoom, Names: names, Timing: timing, Worker: cfg.Worker, Log: w.log,
	}
	refresh := &consumers.RefreshHandler{
		Refresher: w.tokens, Wakeups: wakeups, Names: names,
		Window: cfg.Refresh.Window, BatchSize: cfg.Refresh.Batch, BatchTime: cfg.Refresh.BatchTime, Log: w.log,
	}
	w.runner = &consumers.Runner{
		JetStream: js, Leases: w.ledger, Worker: cfg.Worker, Health: w.health, Log: w.log,
		Liveness: &consumers.Liveness{Answer: w.answers, Health: w.health, Log: w.log},
	}
	w.service = &control.Service{
		Control: cfg.control(w.conn, w.ledger, relay, w.status.get, w.log), Conn: w.conn.Conn,
		Worker: cfg.Worker, Version: ThisBuild().Version, Log: w.log,
	}
	if w.has(RolePublish) {
		for p := range jetpost.Partitions {
			w.bindPartition(names.JobsStream(), jetpost.ConsumerIntake(p), intake)
		}
		w.bindPartition(names.JobsStream(), jetpost.ConsumerIntakeAny, intake)
		slots := cfg.Slots
		if slots == 0 {
			slots = DefaultSlots
		}
		w.lanes = &counted{Handler: publish}
		w.bind(names.LanesStream(), jetpost.ConsumerLanes, slots, w.lanes)
		w.sweep = &consumers.Sweeper{
			Ledger: w.ledger, Wakeups: wakeups, Announce: relay, Gate: w.gate, Health: w.health, Timing: timing, Worker: cfg.Worker, Log: w.log,
			Upkeep: &consumers.Upkeep{Pauses: w.pauses, Ledger: w.ledger, JS: js, Topology: topology, Health: w.health, Log: w.log},
		}
	}
	if w.has(RolePublish) && cfg.KeepFinished > 0 {
		if w.pruner, err = newPruner(ctx, w.conn, w.ledger, cfg, w.log); err != nil {
			return err
		}
	}
	if w.has(RoleRefresh) {
		w.bind(names.RefreshStream(), jetpost.ConsumerRefresh, refreshSlots, refresh)
	}
	return nil
}

func (w *Worker) bind(stream, consumer string, slots int, h consumers.Handler) {
	w.runner.Bindings = append(w.runner.Bindings, consumers.Binding{Stream: stream, Consumer: consumer, Slots: slots, Handler: h})
}

func (w *Worker) bindPartition(stream, consumer string, h consumers.BatchHandler) {
	w.runner.Bindings = append(w.runner.Bindings, consumers.Binding{Stream: stream, Consumer: consumer, Batch: h})
}

// answers checks that the database and NATS answer, and that the disks have free space.
func (w *Worker) answers(ctx context.Context) error {
	if err := w.cfg.enoughRoom(); err != nil {
		return err
	}
	began := time.Now()
	_, err := w.ledger.LedgerID(ctx)
	if w.metrics.DatabaseAnswered(time.Since(began)); err != nil {
		return err
	}
	began = time.Now()
	err = w.conn.Conn.FlushWithContext(ctx)
	if w.metrics.NATSAnswered(time.Since(began)); err != nil {
		return fmt.Errorf("ask NATS: %w", err)
	}
	return nil
}

func (w *Worker) has(role string) bool {
	return len(w.cfg.Roles) == 0 || slices.Contains(w.cfg.Roles, role)
}

// Run works until the context ends, then finishes the calls in flight.
func (w *Worker) Run(ctx context.Context) error {
	w.tokens.Stopping = ctx.Done()
	background, cancel := context.WithCancel(ctx)
	w.started = time.Now()
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	parts.Go(func() { w.pauses.Follow(background, w.gate, w.health) })
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
	w.giveHeartbeat(background)
	// Heartbeats go on until the last call is finished.
	living, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	parts.Go(func() { w.giveHeartbeats(living) })
	if w.cfg.Notify != "" {
		n := &Notifier{URL: w.cfg.Notify, Status: w.status.get, Ledger: w.ledger, Log: w.log}
		parts.Go(func() { _ = n.Run(background) }) // sharedStatus does not fail
	}
	parts.Go(func() {
		if err := w.service.Run(background); err != nil {
			w.log.Error("service.failed", "error", err)
		}
	})
	parts.Go(func() { w.rescue(background) })
	parts.Go(func() { w.clocks.Run(background) })
	if w.sweep != nil {
		parts.Go(func() { w.sweep.Run(background) })
	}
	if w.pruner != nil {
		parts.Go(func() { w.pruner.Run(background) })
	}
	if w.listen != nil {
		parts.Go(func() { w.serveHealth(background) })
	}
	if w.pprof != nil {
		parts.Go(func() { w.servePprof(background) })
	}
	w.log.Info("worker.started", "version", ThisBuild().Version, "slots", w.cfg.Slots, "roles", w.cfg.Roles)
	err := w.runner.Run(ctx)
	w.alarms.Stop()
	w.relay.Flush(context.WithoutCancel(ctx))
	cancel()
	leave()
	parts.Wait()
	w.cfg.Traces.Close(context.WithoutCancel(ctx))
	w.log.Info("worker.stopped")
	return err
}

// Close frees what NewWorker opened.
func (w *Worker) Close() {
	if w.conn != nil {
		w.conn.Close()
	}
	if w.ledger != nil {
		if err := w.ledger.Close(); err != nil {
			w.log.Warn("ledger.close_failed", "error", err)
		}
	}
	if w.boat != nil {
		if err := w.boat.Close(); err != nil {
			w.log.Warn("lifeboat.close_failed", "error", err)
		}
	}
	for _, l := range []net.Listener{w.listen, w.pprof} {
		if l != nil {
			_ = l.Close() // closed already by a run
		}
	}
}

// serveHealth answers /healthz while the process lives; /readyz with 200 while nothing
// keeps this worker from its work, else with 503 and what it is; and /statusz with what
// 'jetpost status' says of the whole installation, with 200 only where that is
// PUBLISHING; and /metrics to Prometheus.
func (w *Worker) serveHealth(ctx context.Context) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) {
		answer(rw, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		if err := w.fault(); err != nil {
			answer(rw, http.StatusServiceUnavailable, map[string]string{"status": err.Error()})
			return
		}
		answer(rw, http.StatusOK, map[string]string{"status": "ready"})
	})
	mux.HandleFunc("GET /statusz", func(rw http.ResponseWriter, r *http.Request) {
		s, err := w.status.get(r.Context())
		if err != nil {
			return // the caller hung up
		}
		code := http.StatusOK
		if !s.Publishing {
			code = http.StatusServiceUnavailable
		}
		answer(rw, code, s)
	})
	mux.Handle("GET /metrics", w.metrics.Handler(w.standing))
	if err := Serve(ctx, w.listen, mux); err != nil {
		w.log.Error("health.failed", "error", err)
	}
}

// fault is what keeps this worker from its work, or nil.
func (w *Worker) fault() error {
	if !w.conn.Conn.IsConnected() {
		return errors.Join(errors.New("NATS is not connected"), w.health.Err())
	}
	return w.health.Err()
}

func answer(rw http.ResponseWriter, status int, value any) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(value) // the caller hung up
}

// Listen opens a port, or says by which flag to choose another.
func Listen(ctx context.Context, address, flag string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, &HintError{
			Err:  err, // it names the address
			Help: "the address may be in use: choose another with " + flag,
		}
	}
	return l, nil
}

// Serve serves a handler until the context ends.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}
