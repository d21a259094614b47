package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// jetpostSide drives the binary of one revision: with PostgreSQL and nats-server
// beside it, or 'jetpost up', which brings its own NATS and SQLite.
type jetpostSide struct {
	base
	binary string
	sqlite bool
	env    []string
	data   string
	prod   *producer
}

const (
	commandTime = 5 * time.Minute // an import of thousands of accounts
	// longLife is the life of tokens that need no care while something is measured.
	longLife = 30 * 24 * time.Hour
)

func (j *jetpostSide) ordered() bool { return true }

func (j *jetpostSide) start(ctx context.Context, w workload) (err error) {
	if j.data, err = os.MkdirTemp(j.bench.scratch, "jetpost-*"); err != nil {
		return err
	}
	j.env = environment("HOME="+j.data, "X_API_URL="+j.bench.x.url, "X_CLIENT_ID=bench")
	if j.sqlite {
		err = j.up(ctx, w)
	} else {
		err = j.cluster(ctx, w)
	}
	if err != nil {
		return err
	}
	if err := j.accounts(ctx, w); err != nil {
		return err
	}
	j.prod, err = newProducer(j.nats.url)
	return err
}

// cluster starts a nats-server, a database, and workers on them.
func (j *jetpostSide) cluster(ctx context.Context, w workload) (err error) {
	if j.nats, err = startNATS(ctx, j.bench.scratch, j.bench.natsProgram); err != nil {
		return err
	}
	if j.database, err = j.bench.pg.database(ctx); err != nil {
		return err
	}
	key, err := j.command(ctx, "", "keys", "generate")
	if err != nil {
		return err
	}
	j.env = append(j.env, "NATS_URL="+j.nats.url, "DATABASE_URL="+j.databaseURL(w), "HUB_ENCRYPTION_KEY="+strings.TrimSpace(key))
	if _, err := j.command(ctx, "", "setup"); err != nil {
		return err
	}
	for i := range w.workers {
		if err := j.run(ctx, w, "worker", "--worker-name", "bench-"+strconv.Itoa(i), "--data", filepath.Join(j.data, strconv.Itoa(i))); err != nil {
			return err
		}
	}
	return nil
}

// up starts everything in one process. Its NATS tells no counts.
func (j *jetpostSide) up(ctx context.Context, w workload) error {
	address, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	j.nats = &natsServer{url: "nats://" + address}
	j.env = append(j.env, "JETPOST_DATA="+j.data)
	return j.run(ctx, w, "up", "--nats-listen", address)
}

// run starts a process of jetpost's and waits until it says that it is ready.
func (j *jetpostSide) run(ctx context.Context, w workload, args ...string) error {
	health, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	args = append(args, "--slots", strconv.Itoa(w.slots), "--health-listen", health)
	if w.roles != "" {
		args = append(args, "--roles", w.roles)
	}
	p, err := start(ctx, j.bench.scratch, "jetpost-"+args[0], syscall.SIGTERM, func(cmd *exec.Cmd) { cmd.Env = j.env }, j.binary, args...)
	if err != nil {
		return err
	}
	j.workers = append(j.workers, p)
	return p.until(ctx, "readiness", func() bool { return ready(ctx, "http://"+health+"/readyz") })
}

func ready(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	return res.Body.Close() == nil && res.StatusCode == http.StatusOK
}

// accounts imports all accounts of a workload.
func (j *jetpostSide) accounts(ctx context.Context, w workload) error {
	life := w.life
	if life == 0 {
		life = longLife
	}
	var lines strings.Builder
	for _, name := range accountNames(w.accounts) {
		lines.WriteString(importLine(name, time.Now().Add(life)))
	}
	if _, err := j.command(ctx, lines.String(), "accounts", "import"); err != nil {
		return err
	}
	if w.life != 0 {
		return nil
	}
	return j.settle(ctx)
}

// command runs the command line to its end.
func (j *jetpostSide) command(ctx context.Context, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, j.binary, args...)
	cmd.Env, cmd.Stdin = j.env, strings.NewReader(stdin)
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return "", fmt.Errorf("jetpost %s: %w\n%s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

func (j *jetpostSide) submit(ctx context.Context, jobs []*job) error {
	return j.prod.submit(ctx, jobs, func(jb *job) (string, []byte, error) {
		body, err := jb.body()
		return "publish.request." + jb.Account, body, err
	})
}

func (j *jetpostSide) settle(ctx context.Context) error {
	if j.sqlite {
		return pause(ctx, quietFor)
	}
	return j.base.settle(ctx)
}

func (j *jetpostSide) counts(ctx context.Context) (counts, error) {
	if j.sqlite {
		return counts{}, nil
	}
	return j.base.counts(ctx)
}

func (j *jetpostSide) parts() map[string][]*process {
	if j.sqlite {
		return map[string][]*process{"worker": j.workers}
	}
	return j.base.parts()
}

func (j *jetpostSide) close(ctx context.Context) error {
	j.prod.close()
	j.prod = nil
	if j.sqlite {
		j.nats = nil // it ends with its process
	}
	err := j.base.close(ctx)
	return errors.Join(err, os.RemoveAll(j.data))
}

// producer publishes jobs onto a JetStream as any producer may.
type producer struct {
	conn *nats.Conn
	js   jetstream.JetStream
}

const mostPending = 512 // publishes that wait for their acknowledgement

func newProducer(url string) (*producer, error) {
	conn, err := nats.Connect(url)
	if err != nil {
		return nil, fmt.Errorf("connect producer: %w", err)
	}
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(mostPending))
	return &producer{conn: conn, js: js}, err
}

func (p *producer) close() {
	if p != nil {
		p.conn.Close()
	}
}

// tick opens a refresh round, as the schedule does.
func (p *producer) tick(ctx context.Context) error {
	if _, err := p.js.Publish(ctx, "refresh.tick", nil); err != nil {
		return fmt.Errorf("publish refresh tick: %w", err)
	}
	return nil
}

// submit publishes and waits until every one is acknowledged.
func (p *producer) submit(ctx context.Context, jobs []*job, encode func(*job) (string, []byte, error)) error {
	futures := make([]jetstream.PubAckFuture, 0, len(jobs))
	for _, jb := range jobs {
		subject, body, err := encode(jb)
		if err != nil {
			return err
		}
		jb.sent = time.Now()
		f, err := p.js.PublishMsgAsync(&nats.Msg{Subject: subject, Data: body}, jetstream.WithStallWait(startTime))
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		futures = append(futures, f)
	}
	for _, f := range futures {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			return fmt.Errorf("publish: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
