package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/dbos-inc/dbos-transact-golang/dbos"
	"github.com/hibiken/asynq"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// The producers' half of each peer. What works is in worker.go, in processes of
// their own.

const (
	floorStream  = "BENCH_FLOOR"
	floorSubject = "floor.request."
	queueName    = "bench"
)

// floorSide is the least that does what jetpost promises for a single post: a job
// consumed from JetStream, its intent and its outcome committed, one call.
type floorSide struct {
	base
	prod *producer
}

func (f *floorSide) ordered() bool { return true }

func (f *floorSide) start(ctx context.Context, w workload) (err error) {
	if f.nats, err = startNATS(ctx, f.bench.scratch, f.bench.natsProgram); err != nil {
		return err
	}
	if f.database, err = f.bench.pg.database(ctx); err != nil {
		return err
	}
	if err := execute(ctx, f.directURL(), ledgerSchema); err != nil {
		return err
	}
	if f.prod, err = newProducer(f.nats.url); err != nil {
		return err
	}
	if _, err := f.prod.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: floorStream, Subjects: []string{floorSubject + "*"}, Retention: jetstream.WorkQueuePolicy,
	}); err != nil {
		return fmt.Errorf("make stream: %w", err)
	}
	return f.peer(ctx, w, peerFloor)
}

func (f *floorSide) submit(ctx context.Context, jobs []*job) error {
	return f.prod.submit(ctx, jobs, func(j *job) (string, []byte, error) {
		body, err := json.Marshal(j)
		return floorSubject + j.Account, body, err
	})
}

func (f *floorSide) close(ctx context.Context) error {
	f.prod.close()
	f.prod = nil
	return f.base.close(ctx)
}

// riverSide is River, without or with the two writes that make a crash safe.
type riverSide struct {
	base
	plain  bool
	pool   *pgxpool.Pool
	client *river.Client[pgx.Tx]
}

func (r *riverSide) ordered() bool { return false }

func (r *riverSide) start(ctx context.Context, w workload) (err error) {
	if r.database, err = r.bench.pg.database(ctx); err != nil {
		return err
	}
	if err := execute(ctx, r.directURL(), ledgerSchema); err != nil {
		return err
	}
	if r.pool, err = pgxpool.New(ctx, r.directURL()); err != nil {
		return err
	}
	driver := riverpgxv5.New(r.pool)
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: quietLog()})
	if err != nil {
		return fmt.Errorf("make River's schema: %w", err)
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("make River's schema: %w", err)
	}
	if r.client, err = river.NewClient(driver, &river.Config{Logger: quietLog(), FetchCooldown: riverCooldown}); err != nil {
		return fmt.Errorf("make River's client: %w", err)
	}
	return r.peer(ctx, w, named(peerRiver, r.plain))
}

const riverBatch = 500 // jobs that one insert brings

func (r *riverSide) submit(ctx context.Context, jobs []*job) error {
	for len(jobs) > 0 {
		n := min(riverBatch, len(jobs))
		params := make([]river.InsertManyParams, n)
		for i, j := range jobs[:n] {
			params[i] = river.InsertManyParams{Args: riverJob{*j}}
			j.sent = now()
		}
		if _, err := r.client.InsertMany(ctx, params); err != nil {
			return fmt.Errorf("insert jobs: %w", err)
		}
		jobs = jobs[n:]
	}
	return nil
}

func (r *riverSide) close(ctx context.Context) error {
	if r.pool != nil {
		r.pool.Close()
	}
	return r.base.close(ctx)
}

// asynqSide is Asynq on a Redis that syncs its file each second.
type asynqSide struct {
	base
	plain  bool
	client *asynq.Client
}

func (a *asynqSide) ordered() bool { return false }

func (a *asynqSide) start(ctx context.Context, w workload) (err error) {
	if a.redis, a.address, err = startRedis(ctx, a.bench.scratch); err != nil {
		return err
	}
	if a.database, err = a.bench.pg.database(ctx); err != nil {
		return err
	}
	if err := execute(ctx, a.directURL(), ledgerSchema); err != nil {
		return err
	}
	a.client = asynq.NewClient(asynq.RedisClientOpt{Addr: a.address})
	return a.peer(ctx, w, named(peerAsynq, a.plain))
}

func (a *asynqSide) submit(ctx context.Context, jobs []*job) error {
	return submitSide(ctx, jobs, func(ctx context.Context, j *job) error {
		body, err := json.Marshal(j)
		if err != nil {
			return err
		}
		_, err = a.client.EnqueueContext(ctx, asynq.NewTask(queueName, body), asynq.TaskID(j.ID))
		return err
	})
}

func (a *asynqSide) close(ctx context.Context) error {
	if a.client != nil {
		_ = a.client.Close() // nothing waits in it
	}
	return a.base.close(ctx)
}

// dbosSide is DBOS Transact: a queue of durable workflows with one step each, in
// front of which the intent is written, since DBOS would run a step again whose
// outcome it does not know.
type dbosSide struct {
	base
	client dbos.Client
}

func (d *dbosSide) ordered() bool { return false }

func (d *dbosSide) start(ctx context.Context, w workload) (err error) {
	if d.database, err = d.bench.pg.database(ctx); err != nil {
		return err
	}
	if err := execute(ctx, d.directURL(), ledgerSchema); err != nil {
		return err
	}
	// The worker makes the schema that the client needs.
	if err := d.peer(ctx, w, peerDBOS); err != nil {
		return err
	}
	d.client, err = dbos.NewClient(ctx, dbos.ClientConfig{DatabaseURL: d.directURL(), AppName: queueName, Logger: quietLog()})
	return err
}

func (d *dbosSide) submit(ctx context.Context, jobs []*job) error {
	return submitSide(ctx, jobs, func(_ context.Context, j *job) error {
		_, err := dbos.Enqueue[string](d.client, queueName, peerDBOS, *j, dbos.WithEnqueueWorkflowID(j.ID))
		return err
	})
}

func (d *dbosSide) close(ctx context.Context) error {
	if d.client != nil {
		_ = dbos.Shutdown(d.client, stopTime) // nothing waits in it
	}
	return d.base.close(ctx)
}
