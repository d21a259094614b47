package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// workload says what a side has to be ready for.
type workload struct {
	accounts int
	slots    int           // jobs worked on at once by a worker
	workers  int           // processes
	delay    time.Duration // of each call to X
	counted  bool          // PostgreSQL is reached through the counting proxy
	life     time.Duration // of the accounts' tokens; as X's where zero
	roles    string        // of jetpost's workers; all where empty
}

// side is one way to do the work. It is started anew, on empty servers, for each
// measurement.
type side interface {
	start(ctx context.Context, w workload) error
	// submit hands jobs in, as fast as a producer of that side can, and returns
	// when all of them are safe.
	submit(ctx context.Context, jobs []*job) error
	// settle waits until all events of what X has are published.
	settle(ctx context.Context) error
	// finish ends the workers in order, so that all that they count is counted.
	finish() error
	// close takes down what start made.
	close(ctx context.Context) error
	// parts are the processes that work, by name.
	parts() map[string][]*process
	counts(ctx context.Context) (counts, error)
	// ordered reports whether posts of an account are in order.
	ordered() bool
}

// base is what all sides share: the servers of one measurement and the workers.
type base struct {
	bench    *bench
	database string // "" where the side has none in PostgreSQL
	nats     *natsServer
	redis    *process
	address  string // of Redis
	workers  []*process
}

func (b *base) parts() map[string][]*process {
	parts := map[string][]*process{"worker": b.workers}
	if b.database != "" {
		parts["PostgreSQL"] = []*process{b.bench.pg.process}
	}
	if b.nats != nil {
		parts["NATS"] = []*process{b.nats.process}
	}
	if b.redis != nil {
		parts["Redis"] = []*process{b.redis}
	}
	return parts
}

func (b *base) finish() error {
	var errs []error
	for _, w := range b.workers {
		errs = append(errs, w.end())
	}
	b.workers = nil
	return errors.Join(errs...)
}

func (b *base) close(ctx context.Context) error {
	err := b.finish()
	if b.nats != nil {
		err = errors.Join(err, b.nats.end())
	}
	err = errors.Join(err, b.redis.end())
	if b.database != "" {
		err = errors.Join(err, b.bench.pg.drop(ctx, b.database))
	}
	*b = base{bench: b.bench}
	return err
}

func (b *base) settle(ctx context.Context) error {
	if b.nats != nil {
		return b.nats.quiet(ctx)
	}
	return pause(ctx, quietFor)
}

func (b *base) counts(ctx context.Context) (c counts, err error) {
	if b.database != "" {
		if c, err = b.bench.pg.counts(ctx, b.database); err != nil {
			return c, err
		}
	}
	c.Messages, err = b.nats.messages(ctx)
	return c, err
}

// databaseURL is where the workers find PostgreSQL.
func (b *base) databaseURL(w workload) string {
	if w.counted {
		return b.bench.pg.url(b.bench.pg.proxy.address, b.database)
	}
	return b.directURL()
}

func (b *base) directURL() string { return b.bench.pg.url(b.bench.pg.address, b.database) }

// environment is this process's, with these settings and none other of jetpost's.
func environment(settings ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		for _, prefix := range []string{"JETPOST_", "NATS_", "DATABASE_URL", "HUB_ENCRYPTION_KEY", "X_", "XDG_", "DBOS_"} {
			if strings.HasPrefix(v, prefix) {
				return true
			}
		}
		return false
	})
	return append(env, settings...)
}

// childVariable names the peer that a process of this program shall be.
const childVariable = "BENCH_PEER"

// peer starts this program as a worker of a peer, in a process of its own so that its
// CPU is counted apart from the producer's.
func (b *base) peer(ctx context.Context, w workload, name string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ready := fmt.Sprintf("%s/ready-%d", b.bench.scratch, time.Now().UnixNano())
	env := environment(childVariable+"="+name, "BENCH_DATABASE="+b.databaseURL(w), "BENCH_X="+b.bench.x.url,
		fmt.Sprintf("BENCH_SLOTS=%d", w.slots), "BENCH_READY="+ready, "BENCH_REDIS="+b.address)
	if b.nats != nil {
		env = append(env, "BENCH_NATS="+b.nats.url)
	}
	p, err := start(ctx, b.bench.scratch, name, syscall.SIGTERM, func(cmd *exec.Cmd) { cmd.Env = env }, self)
	if err != nil {
		return err
	}
	b.workers = append(b.workers, p)
	return p.until(ctx, "readiness", func() bool {
		_, err := os.Stat(ready)
		return err == nil
	})
}
