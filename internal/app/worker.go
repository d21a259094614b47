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
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// intakeSlots is how many jobs of one partition a worker accepts at once.
	// One keeps the order of an account's jobs.
	intakeSlots = 1
	// refreshSlots is how many messages of the refresh stream a worker handles
	// at once; each may be a batch of tokens.
	refreshSlots = 2
	// headerTimeout bounds the headers of a request to a server of ours.
	headerTimeout = 10 * time.Second
	// rescueInterval is how often a worker looks for what others that are gone left
	// in the lifeboat: sooner than their leases of tokens end.
	rescueInterval = 10 * time.Second
)

// Worker is a running worker: it accepts jobs, runs lanes and keeps tokens.
type Worker struct {
	cfg    Config
	log    *slog.Logger
	conn   *Connection
	ledger store.Store
	gate   *consumers.Gate
	// windows are X's, as told to all workers by board.
	windows *consumers.Windows
	board   *publishers.Windows
	tokens  *consumers.Refresher
	boat    *store.Lifeboat
	runner  *consumers.Runner
	sweep   *consumers.Sweeper
	stops   *publishers.Stops
	health  *consumers.Health
	listen  net.Listener
}

// NewWorker checks everything that a worker depends on and binds to it. It
// starts nothing yet; whatever is wrong is an error here.
func NewWorker(ctx context.Context, cfg Config, log *slog.Logger) (_ *Worker, err error) {
	if err := cfg.Validate(); err != nil {
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
	if err := publishers.Check(ctx, w.conn.JS, cfg.Topology(w.conn.Names, id)); err != nil {
		return nil, err
	}
	if err := w.prepareLifeboat(id); err != nil {
		return nil, err
	}
	if err := w.wire(ctx); err != nil {
		return nil, err
	}
	if err := w.tokens.Recover(ctx); err != nil {
		return nil, lifeboatError(err)
	}
	return w, nil
}

// prepareLifeboat makes sure that there is a place for token pairs that the
// database does not take.
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

// rescue brings in what workers that are gone left in the lifeboat, again and again
// until the context ends.
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

// workerName tells workers apart in leases and logs.
func workerName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "worker"
	}
	return host + "-" + strconv.Itoa(os.Getpid()) + "-" + uuid.NewString()[:8]
}

// checkClock refuses a clock that would hold or send at the wrong time.
func checkClock(ctx context.Context, ledger store.Ledger) error {
	before := time.Now()
	there, err := ledger.Clock(ctx)
	if err != nil {
		return databaseError(err)
	}
	after := time.Now()
	if there.Before(before.Add(-maxSkew)) || there.After(after.Add(maxSkew)) {
		return &HintError{
			Err:  fmt.Errorf("this machine's clock is %s off the database's", before.Sub(there).Round(time.Millisecond)),
			Help: "set both clocks, for instance with NTP",
		}
	}
	return nil
}

// wire puts the parts together.
func (w *Worker) wire(ctx context.Context) error {
	cfg, names, js := w.cfg, w.conn.Names, w.conn.JS
	timing := consumers.Timing{Lease: cfg.Lease}
	objects, err := js.ObjectStore(ctx, names.MediaBucket())
	if err != nil {
		return fmt.Errorf("open media store: %w", err)
	}
	hc := &http.Client{Transport: xapi.NewTransport()}
	base := cfg.X.URL
	if base == "" {
		base = xapi.DefaultBaseURL
	}
	bells := publishers.NewBells(js, names)
	records := publishers.NewRecords(js, names)
	w.stops = publishers.NewStops(js, names)
	w.gate = consumers.NewGate(w.stops, cfg.Worker, cfg.Lease/2, w.log)
	w.board = publishers.NewWindows(js, names)
	w.windows = consumers.NewWindows(w.board, w.log)
	announcer := &consumers.Announcer{Ledger: w.ledger, Records: records, Names: names, Log: w.log}
	care := consumers.TokenTiming{Lease: cfg.Refresh.Lease}
	w.tokens = &consumers.Refresher{
		Tokens: w.ledger, Gate: w.gate, Records: records, Announce: announcer, Lifeboat: w.boat,
		Names: names, Health: w.health, Timing: care, Log: w.log,
		X: &xapi.OAuth{
			ClientID: cfg.X.ClientID, ClientSecret: cfg.X.ClientSecret.Reveal(), BaseURL: base, HTTPClient: hc, Timeout: care.CallTimeout(),
		},
	}
	media := &consumers.MediaSource{Objects: objects, Allow: cfg.MediaAllow}
	intake := &consumers.IntakeHandler{Ledger: w.ledger, Announce: announcer, Bells: bells, Media: media, Rules: cfg.Rules, Names: names, Log: w.log}
	publish := &consumers.PublishHandler{
		Ledger: w.ledger, Announce: announcer, Bells: bells, Tokens: w.tokens, Gate: w.gate,
		Windows: w.windows,
		Client: func(account, token string) *xapi.Client {
			return xapi.New(token, xapi.WithBaseURL(base), xapi.WithHTTPClient(hc), xapi.WithTimeout(timing.CallTimeout()),
				xapi.WithLimits(w.windows.Limits, account))
		},
		Media: media, Rules: cfg.Rules, Fuses: cfg.Fuses, Health: w.health, Names: names, Timing: timing, Worker: cfg.Worker, Log: w.log,
	}
	refresh := &consumers.RefreshHandler{
		Refresher: w.tokens, Bells: bells, Names: names,
		Window: cfg.Refresh.Window, BatchSize: cfg.Refresh.Batch, BatchTime: cfg.Refresh.BatchTime, Log: w.log,
	}
	w.runner = &consumers.Runner{JetStream: js, Health: w.health, Log: w.log}
	if w.has(RolePublish) {
		for p := range jetpost.Partitions {
			w.bind(names.JobsStream(), jetpost.ConsumerIntake(p), intakeSlots, intake)
		}
		w.bind(names.JobsStream(), jetpost.ConsumerIntakeAny, intakeSlots, intake)
		slots := cfg.Slots
		if slots == 0 {
			slots = DefaultSlots
		}
		w.bind(names.LanesStream(), jetpost.ConsumerLanes, slots, publish)
		w.sweep = &consumers.Sweeper{
			Ledger: w.ledger, Bells: bells, Announce: announcer, Gate: w.gate, Health: w.health, Timing: timing, Worker: cfg.Worker, Log: w.log,
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

func (w *Worker) has(role string) bool {
	return len(w.cfg.Roles) == 0 || slices.Contains(w.cfg.Roles, role)
}

// Run works until the context ends, then finishes the calls in flight.
func (w *Worker) Run(ctx context.Context) error {
	w.tokens.Stopping = ctx.Done()
	background, cancel := context.WithCancel(ctx)
	defer cancel()
	stops, err := w.stops.Watch(background)
	if err != nil {
		return err
	}
	var parts sync.WaitGroup
	// The stops that stand are known before the first delivery.
	select {
	case <-ctx.Done():
		return nil
	case known := <-stops:
		w.gate.Learn(known)
	}
	if err := w.board.FollowApp(background, w.windows.Learned); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	parts.Go(func() { w.windows.Run(background) })
	parts.Go(func() { w.rescue(background) })
	parts.Go(func() {
		for known := range stops {
			w.gate.Learn(known)
		}
	})
	if w.sweep != nil {
		parts.Go(func() { w.sweep.Run(background) })
	}
	if w.listen != nil {
		parts.Go(func() { w.serveHealth(background) })
	}
	w.log.Info("worker.started", "version", Version(), "slots", w.cfg.Slots, "roles", w.cfg.Roles)
	err = w.runner.Run(ctx)
	cancel()
	parts.Wait()
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
	if w.listen != nil {
		_ = w.listen.Close() // closed already by a run
	}
}

// serveHealth answers /healthz while the process lives, and /readyz with 200
// while nothing is wrong, else with 503 and what it is.
func (w *Worker) serveHealth(ctx context.Context) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) { answer(rw, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		err := w.health.Err()
		if !w.conn.Conn.IsConnected() {
			err = errors.Join(errors.New("NATS is not connected"), err)
		}
		if err != nil {
			answer(rw, http.StatusServiceUnavailable, err.Error())
			return
		}
		answer(rw, http.StatusOK, "ready")
	})
	if err := Serve(ctx, w.listen, mux); err != nil {
		w.log.Error("health.failed", "error", err)
	}
}

func answer(rw http.ResponseWriter, status int, text string) {
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	_ = json.NewEncoder(rw).Encode(map[string]string{"status": text}) // the caller hung up
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
