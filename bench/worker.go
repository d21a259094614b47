package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/dbos-inc/dbos-transact-golang/dbos"
	"github.com/hibiken/asynq"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// The names of the peers' worker processes.
const (
	peerFloor = "floor"
	peerRiver = "river"
	peerAsynq = "asynq"
	peerDBOS  = "dbos"
	plainly   = "-plain" // without the ledger's writes
)

func named(peer string, plain bool) string {
	if plain {
		return peer + plainly
	}
	return peer
}

// What each peer needs to be as fast as it can be here; their defaults are made
// for load that is spread over minutes.
const (
	riverCooldown = time.Millisecond      // 100 ms: between fetches, and between notifications of an inserter
	asynqCheck    = 10 * time.Millisecond // 1 s: how late an idle worker looks
	dbosPolling   = 10 * time.Millisecond // 1 s: it looks and never listens
)

// ledgerSchema is the one table that makes a crash between a call and its note
// safe: nothing is sent whose intent stands there without an outcome.
const ledgerSchema = `
CREATE TABLE bench_ledger (
    account text NOT NULL, id text NOT NULL, idx integer NOT NULL,
    state text NOT NULL, post_id text, sent_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, id, idx))`

const (
	sqlIntent  = `INSERT INTO bench_ledger (account, id, idx, state) VALUES ($1, $2, $3, 'sending') ON CONFLICT DO NOTHING`
	sqlOutcome = `UPDATE bench_ledger SET state = 'posted', post_id = $4 WHERE account = $1 AND id = $2 AND idx = $3`
	sqlState   = `SELECT state FROM bench_ledger WHERE account = $1 AND id = $2 AND idx = $3`
)

var errDoubt = errors.New("nobody knows whether the post is live")

// hand is what a peer's worker works with.
type hand struct {
	pool  *pgxpool.Pool
	http  *http.Client
	x     string
	slots int
	plain bool
}

// work makes the posts of a job: for each an intent, a call and an outcome.
func (h *hand) work(ctx context.Context, j *job) error {
	for i := range j.Posts {
		if err := h.post(ctx, j, i); err != nil {
			return err
		}
	}
	return nil
}

func (h *hand) post(ctx context.Context, j *job, idx int) error {
	if h.plain {
		_, err := h.call(ctx, j.text(idx))
		return err
	}
	done, err := h.intend(ctx, j, idx)
	if err != nil || done {
		return err
	}
	id, err := h.call(ctx, j.text(idx))
	if err != nil {
		return err
	}
	_, err = h.pool.Exec(ctx, sqlOutcome, j.Account, j.ID, idx, id)
	return err
}

// intend writes down that a post is about to be sent. It is done where its outcome
// is known from before, and in doubt where only its intent is.
func (h *hand) intend(ctx context.Context, j *job, idx int) (done bool, err error) {
	tag, err := h.pool.Exec(ctx, sqlIntent, j.Account, j.ID, idx)
	if err != nil || tag.RowsAffected() == 1 {
		return false, err
	}
	var state string
	if err := h.pool.QueryRow(ctx, sqlState, j.Account, j.ID, idx).Scan(&state); err != nil {
		return false, err
	}
	if state != "posted" {
		return false, errDoubt
	}
	return true, nil
}

// call makes the one call to X.
func (h *hand) call(ctx context.Context, text string) (string, error) {
	body, err := json.Marshal(map[string]string{"text": text})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.x+"/2/tweets", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer bench")
	res, err := h.http.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }() // only read from
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	var out struct {
		Data struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := json.Unmarshal(answer, &out); err != nil || out.Data.ID == "" {
		return "", fmt.Errorf("X answered %d: %s", res.StatusCode, answer)
	}
	return out.Data.ID, nil
}

// runPeer is a peer's worker process, until it is asked to end.
func runPeer(ctx context.Context, name string) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	slots, err := strconv.Atoi(os.Getenv("BENCH_SLOTS"))
	if err != nil {
		return fmt.Errorf("BENCH_SLOTS: %w", err)
	}
	cfg, err := pgxpool.ParseConfig(os.Getenv("BENCH_DATABASE"))
	if err != nil {
		return err
	}
	cfg.MaxConns = int32(min(slots, mostConnections)) + spareConnections
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer pool.Close()
	h := &hand{
		pool: pool, x: os.Getenv("BENCH_X"), slots: slots, plain: name == named(peerRiver, true) || name == named(peerAsynq, true),
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: slots}},
	}
	run := map[string]func(context.Context, *hand, func() error) error{
		peerFloor: runFloor, peerDBOS: runDBOS,
		peerRiver: runRiver, named(peerRiver, true): runRiver,
		peerAsynq: runAsynq, named(peerAsynq, true): runAsynq,
	}[name]
	if run == nil {
		return fmt.Errorf("no peer %q", name)
	}
	return run(ctx, h, func() error { return os.WriteFile(os.Getenv("BENCH_READY"), nil, 0o600) })
}

const (
	mostConnections  = 32 // to PostgreSQL that a peer's slots share
	spareConnections = 8  // for what its library does beside them
)

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

func now() time.Time { return time.Now() }

// runFloor consumes from JetStream, one account's jobs one after another and up
// to so many accounts at once.
func runFloor(ctx context.Context, h *hand, ready func() error) error {
	conn, err := nats.Connect(os.Getenv("BENCH_NATS"))
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	consumer, err := js.CreateOrUpdateConsumer(ctx, floorStream, jetstream.ConsumerConfig{
		Durable: peerFloor, AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Minute, MaxAckPending: floorPending,
	})
	if err != nil {
		return err
	}
	lanes := newFloorLanes(ctx, h)
	consuming, err := consumer.Consume(lanes.take, jetstream.PullMaxMessages(floorPending))
	if err != nil {
		return err
	}
	defer consuming.Stop()
	if err := ready(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

const floorPending = 10_000 // messages that the floor holds

// floorLanes hands each account's jobs to one goroutine at a time.
type floorLanes struct {
	ctx   context.Context //nolint:containedctx // the life of the process
	hand  *hand
	slots chan struct{}
	mu    sync.Mutex
	queue map[string][]jetstream.Msg // those of accounts that are worked on
}

func newFloorLanes(ctx context.Context, h *hand) *floorLanes {
	return &floorLanes{ctx: ctx, hand: h, slots: make(chan struct{}, h.slots), queue: map[string][]jetstream.Msg{}}
}

func (l *floorLanes) take(m jetstream.Msg) {
	account := m.Subject()
	l.mu.Lock()
	waiting, busy := l.queue[account]
	l.queue[account] = append(waiting, m)
	l.mu.Unlock()
	if !busy {
		go l.run(account)
	}
}

func (l *floorLanes) run(account string) {
	l.slots <- struct{}{}
	defer func() { <-l.slots }()
	for {
		l.mu.Lock()
		waiting := l.queue[account]
		if len(waiting) == 0 {
			delete(l.queue, account)
			l.mu.Unlock()
			return
		}
		l.queue[account] = waiting[1:]
		l.mu.Unlock()
		var j job
		if json.Unmarshal(waiting[0].Data(), &j) != nil || l.hand.work(context.WithoutCancel(l.ctx), &j) != nil {
			continue // it comes again
		}
		_ = waiting[0].Ack() // as above
	}
}

// riverJob is a job as River stores it.
type riverJob struct {
	Job job `json:"job"`
}

func (riverJob) Kind() string { return queueName }

type riverWorker struct {
	river.WorkerDefaults[riverJob]
	hand *hand
}

func (w *riverWorker) Work(ctx context.Context, j *river.Job[riverJob]) error {
	return w.hand.work(ctx, &j.Args.Job)
}

func runRiver(ctx context.Context, h *hand, ready func() error) error {
	workers := river.NewWorkers()
	river.AddWorker(workers, &riverWorker{hand: h})
	client, err := river.NewClient(riverpgxv5.New(h.pool), &river.Config{
		Logger: quietLog(), Workers: workers, FetchCooldown: riverCooldown,
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: h.slots}},
	})
	if err != nil {
		return err
	}
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	<-ctx.Done()
	return client.Stop(context.WithoutCancel(ctx))
}

func runAsynq(ctx context.Context, h *hand, ready func() error) error {
	server := asynq.NewServer(asynq.RedisClientOpt{Addr: os.Getenv("BENCH_REDIS")}, asynq.Config{
		Concurrency: h.slots, TaskCheckInterval: asynqCheck, LogLevel: asynq.FatalLevel,
	})
	mux := asynq.NewServeMux()
	mux.HandleFunc(queueName, func(ctx context.Context, t *asynq.Task) error {
		var j job
		if err := json.Unmarshal(t.Payload(), &j); err != nil {
			return err
		}
		return h.work(ctx, &j)
	})
	if err := server.Start(mux); err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	<-ctx.Done()
	server.Shutdown()
	return nil
}

// runDBOS stores the intent in the ledger. DBOS stores the outcome of the step anyway,
// so it is not written twice.
func runDBOS(ctx context.Context, h *hand, ready func() error) error {
	d, err := dbos.NewContext(context.WithoutCancel(ctx), dbos.Config{DatabaseURL: os.Getenv("BENCH_DATABASE"), AppName: queueName, Logger: quietLog()})
	if err != nil {
		return err
	}
	dbos.RegisterWorkflow(d, func(c dbos.Context, j job) (string, error) {
		return dbos.RunAsStep(c, func(ctx context.Context) (string, error) {
			tag, err := h.pool.Exec(ctx, sqlIntent, j.Account, j.ID, 0)
			if err != nil {
				return "", err
			}
			if tag.RowsAffected() == 0 {
				return "", errDoubt
			}
			return h.call(ctx, j.text(0))
		})
	}, dbos.WithWorkflowName(peerDBOS))
	if err := dbos.Launch(d); err != nil {
		return err
	}
	if _, err := dbos.RegisterQueue(d, queueName, dbos.WithWorkerConcurrency(h.slots), dbos.WithQueueBasePollingInterval(dbosPolling)); err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	<-ctx.Done()
	return dbos.Shutdown(d, stopTime)
}

const submitters = 8 // goroutines that hand jobs in, where each is a call

// submitSide hands jobs in by some calls at once.
func submitSide(ctx context.Context, jobs []*job, one func(context.Context, *job) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan *job)
	var all sync.WaitGroup
	for range min(submitters, len(jobs)) {
		all.Go(func() {
			for j := range next {
				j.sent = now()
				if err := one(ctx, j); err != nil {
					cancel(fmt.Errorf("hand job in: %w", err))
				}
			}
		})
	}
	for _, j := range jobs {
		next <- j
	}
	close(next)
	all.Wait()
	return context.Cause(ctx)
}
