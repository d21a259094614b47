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

	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/internal/telemetry"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// headerTimeout bounds the headers of a request to a server of ours.
const headerTimeout = 10 * time.Second

// Worker is a running worker: it accepts jobs, runs lanes and keeps tokens.
type Worker struct {
	cfg        Config
	log        *slog.Logger
	conn       *Connection
	ledger     store.Store
	boat       *store.Lifeboat
	worker     *consumers.Worker
	heartbeats *publishers.Heartbeats
	status     *sharedStatus
	service    *control.Service
	metrics    *telemetry.Metrics
	listen     net.Listener
	pprof      net.Listener
	started    time.Time
	// parts run beside the work. leave ends the heartbeats after it.
	parts sync.WaitGroup
	leave context.CancelFunc
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
	w := &Worker{cfg: cfg}
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
	if err := consumers.CheckClock(ctx, w.ledger); err != nil {
		return nil, databaseError(err)
	}
	if w.conn, err = cfg.Connect(ctx, w.log, "jetpost worker "+w.cfg.Worker); err != nil {
		return nil, err
	}
	id, err := w.ledger.LedgerID(ctx)
	if err != nil {
		return nil, databaseError(err)
	}
	w.status = &sharedStatus{place: place{cfg: cfg, conn: w.conn, ledger: w.ledger}}
	if err := w.prepareLifeboat(id); err != nil {
		return nil, err
	}
	if err := w.wire(ctx, id); err != nil {
		return nil, err
	}
	if err := w.worker.Recover(ctx); err != nil {
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

// workerName generates a unique name for leases and logs.
func workerName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "worker"
	}
	return host + "-" + strconv.Itoa(os.Getpid()) + "-" + uuid.NewString()[:8]
}

// wire puts the parts together.
func (w *Worker) wire(ctx context.Context, ledgerID string) (err error) {
	cfg := w.cfg
	w.metrics = newMetrics()
	w.heartbeats = publishers.NewHeartbeats(w.conn.JS, w.conn.Names)
	if _, err := consumers.LedgerSigner(ctx, w.ledger); err != nil {
		return databaseError(err)
	}
	w.worker, err = consumers.NewWorker(ctx, consumers.Config{
		Worker: cfg.Worker, Ledger: w.metrics.Timed(w.ledger), JetStream: w.conn.JS, Topology: cfg.Topology(w.conn.Names, ledgerID),
		Lifeboat: w.boat, ClientID: cfg.X.ClientID, ClientSecret: cfg.X.ClientSecret.Reveal(), Log: w.log,
		XURL: cfg.X.URL, Scale: consumers.Scale{Minute: cfg.X.Minute},
		Roles: cfg.Roles, Slots: cfg.Slots, Lease: cfg.Lease, ExchangeLease: cfg.Refresh.Lease,
		RefreshWindow: cfg.Refresh.Window, RefreshBatch: cfg.Refresh.Batch, RefreshBatchTime: cfg.Refresh.BatchTime,
		Rules: cfg.Rules, PostingLimits: cfg.PostingLimits, Budget: cfg.Budget, MediaAllow: cfg.MediaAllow, KeepFinished: cfg.KeepFinished, Room: throttle(cfg.enoughRoom),
		Observe: w.metrics.Observe, Watch: cfg.Traces.Watch(w.metrics.Watch), Tracer: cfg.Traces.Tracer(),
		Started: w.begin,
	})
	if err != nil {
		return err
	}
	w.service = &control.Service{
		Control: cfg.control(w.conn, w.ledger, w.worker.Outbox(), w.status.get, w.log), Conn: w.conn.Conn,
		Worker: cfg.Worker, Version: ThisBuild().Version, Log: w.log,
		Started: func() {
			w.log.Info("worker.started", "version", ThisBuild().Version, "slots", cfg.Slots, "roles", cfg.Roles)
		},
	}
	return nil
}

// Run works until the context ends, then finishes the calls in flight.
func (w *Worker) Run(ctx context.Context) error {
	w.started = time.Now()
	err := w.worker.Run(ctx)
	if w.leave == nil { // it did not begin
		return err
	}
	w.leave()
	w.parts.Wait()
	w.cfg.Traces.Close(context.WithoutCancel(ctx))
	w.log.Info("worker.stopped")
	return err
}

// begin starts what runs beside the work, until the context ends. The worker has started
// once it answers operations.
func (w *Worker) begin(ctx context.Context) {
	w.giveHeartbeat(ctx)
	// Heartbeats go on until the last call is finished.
	living, leave := context.WithCancel(context.WithoutCancel(ctx))
	w.leave = leave
	w.parts.Go(func() { w.giveHeartbeats(living) })
	if w.cfg.Notify != "" {
		n := &Notifier{URL: w.cfg.Notify, Status: w.status.get, Ledger: w.ledger, Log: w.log}
		w.parts.Go(func() { _ = n.Run(ctx) }) // sharedStatus does not fail
	}
	w.parts.Go(func() {
		if err := w.service.Run(ctx); err != nil {
			w.log.Error("service.failed", "error", err)
		}
	})
	if w.listen != nil {
		w.parts.Go(func() { w.serveHealth(ctx) })
	}
	if w.pprof != nil {
		w.parts.Go(func() { w.servePprof(ctx) })
	}
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

func (w *Worker) has(role string) bool {
	return len(w.cfg.Roles) == 0 || slices.Contains(w.cfg.Roles, role)
}

// fault is what keeps this worker from its work, or nil.
func (w *Worker) fault() error {
	if !w.conn.Conn.IsConnected() {
		return errors.Join(errors.New("NATS is not connected"), w.worker.Err())
	}
	return w.worker.Err()
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
