package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

// Servers run as a user would start them, but for what would hit one round and
// not the next: a checkpoint is never due while something is measured.
const postgresSettings = "-c max_connections=300 -c checkpoint_timeout=1h -c max_wal_size=16GB -c unix_socket_directories="

// postgres is one server for a whole run. Each measurement has a database of
// its own.
type postgres struct {
	*process
	address string
	proxy   *proxy
	made    atomic.Int64
}

func startPostgres(ctx context.Context, scratch string) (*postgres, error) {
	bin, err := postgresBinaries()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(scratch, "postgres")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	who, err := postgresUser()
	if err != nil {
		return nil, err
	}
	if who != nil {
		if err := os.Chown(dir, int(who.Uid), int(who.Gid)); err != nil {
			return nil, err
		}
	}
	as := func(cmd *exec.Cmd) {
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who, Pdeathsig: syscall.SIGQUIT}
	}
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", filepath.Join(dir, "data"), "-U", "bench", "-A", "trust", "--encoding=UTF8", "--locale=C.UTF-8")
	as(initdb)
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make PostgreSQL's data: %w\n%s", err, out)
	}
	pg := &postgres{}
	if pg.address, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(pg.address)
	args := append(strings.Fields(postgresSettings), "-D", filepath.Join(dir, "data"), "-p", port, "-c", "listen_addresses=127.0.0.1")
	// SIGINT is PostgreSQL's fast shutdown.
	if pg.process, err = start(ctx, scratch, "postgres", syscall.SIGINT, as, filepath.Join(bin, "postgres"), args...); err != nil {
		return nil, err
	}
	if err := pg.until(ctx, "an answer", func() bool { return pg.exec(ctx, "SELECT 1") == nil }); err != nil {
		return nil, errors.Join(err, pg.end())
	}
	pg.proxy, err = newProxy(ctx, pg.address)
	return pg, err
}

func postgresBinaries() (string, error) {
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", err
	}
	dirs = append(filepath.SplitList(os.Getenv("PATH")), dirs...)
	for _, dir := range dirs {
		_, initdb := os.Stat(filepath.Join(dir, "initdb"))
		_, server := os.Stat(filepath.Join(dir, "postgres"))
		if initdb == nil && server == nil {
			return dir, nil
		}
	}
	return "", errors.New("no PostgreSQL here: apt-get install postgresql")
}

// postgresUser is the user that PostgreSQL runs as, since it refuses to be root.
func postgresUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	found, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root: %w", err)
	}
	uid, err := strconv.ParseUint(found.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(found.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, err
}

func (pg *postgres) url(address, database string) string {
	return "postgres://bench@" + address + "/" + database + "?sslmode=disable"
}

func (pg *postgres) exec(ctx context.Context, sql string) error {
	return execute(ctx, pg.url(pg.address, "postgres"), sql)
}

func execute(ctx context.Context, url string, statements ...string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // the statements' errors say it
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%w in:\n%s", err, sql)
		}
	}
	return nil
}

// database makes an empty one, and returns its name.
func (pg *postgres) database(ctx context.Context) (string, error) {
	name := fmt.Sprintf("bench%d", pg.made.Add(1))
	return name, pg.exec(ctx, "CREATE DATABASE "+name)
}

// drop removes a database, whatever has ended the run.
func (pg *postgres) drop(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	return pg.exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
}

// counts are PostgreSQL's counters for a database, and for the server if there is no
// finer one. A session reports its own when it ends.
func (pg *postgres) counts(ctx context.Context, database string) (c counts, err error) {
	conn, err := pgx.Connect(ctx, pg.url(pg.address, "postgres"))
	if err != nil {
		return c, err
	}
	defer func() { _ = conn.Close(ctx) }() // only read from
	err = conn.QueryRow(ctx, `
SELECT (SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1), wal_sync, wal_bytes::bigint FROM pg_stat_wal`, database).
		Scan(&c.Transactions, &c.Syncs, &c.WALBytes)
	c.Statements, c.RoundTrips = pg.proxy.statements.Load(), pg.proxy.roundTrips.Load()
	return c, err
}

// natsServer is a fresh nats-server with JetStream.
type natsServer struct {
	*process
	url, monitor string
}

func startNATS(ctx context.Context, scratch, program string) (*natsServer, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	monitor, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(scratch, "nats-*")
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(address)
	_, monitorPort, _ := net.SplitHostPort(monitor)
	n := &natsServer{url: "nats://" + address, monitor: "http://" + monitor}
	n.process, err = start(ctx, scratch, "nats-server", syscall.SIGTERM, nil, program, "-a", "127.0.0.1", "-p", port, "-m", monitorPort, "-js", "-sd", dir)
	if err != nil {
		return nil, err
	}
	if err := n.until(ctx, "an answer", func() bool { return answers(ctx, address) && answers(ctx, monitor) }); err != nil {
		return nil, errors.Join(err, n.end())
	}
	return n, nil
}

// messages are those that clients have sent to the server so far.
func (n *natsServer) messages(ctx context.Context) (int64, error) {
	if n == nil {
		return 0, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.monitor+"/varz", nil)
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("ask nats-server: %w", err)
	}
	defer func() { _ = res.Body.Close() }() // only read from
	var varz struct {
		InMsgs int64 `json:"in_msgs"`
	}
	return varz.InMsgs, json.NewDecoder(res.Body).Decode(&varz)
}

// quietFor is how long nothing may move until everything counts as published.
const (
	quietFor  = 400 * time.Millisecond
	quietMost = 8 // messages that an idle worker may send meanwhile
	quietTime = 30 * time.Second
)

// quiet waits until workers have published all their events.
func (n *natsServer) quiet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quietTime)
	defer cancel()
	for before := int64(-quietMost); ; {
		now, err := n.messages(ctx)
		if err != nil || now-before < quietMost {
			return err
		}
		before = now
		if err := pause(ctx, quietFor); err != nil {
			return err
		}
	}
}

// startRedis runs a Redis that appends to its file and syncs it each second.
func startRedis(ctx context.Context, scratch string) (*process, string, error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, "", errors.New("no redis-server here: apt-get install redis-server")
	}
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, "", err
	}
	dir, err := os.MkdirTemp(scratch, "redis-*")
	if err != nil {
		return nil, "", err
	}
	_, port, _ := net.SplitHostPort(address)
	p, err := start(ctx, scratch, "redis-server", syscall.SIGTERM, nil, program, "--bind", "127.0.0.1", "--port", port, "--dir", dir,
		"--save", "", "--appendonly", "yes", "--appendfsync", "everysec")
	if err != nil {
		return nil, "", err
	}
	client := redis.NewClient(&redis.Options{Addr: address})
	defer func() { _ = client.Close() }() // only asked whether it is there
	if err := p.until(ctx, "an answer", func() bool { return client.Ping(ctx).Err() == nil }); err != nil {
		return nil, "", errors.Join(err, p.end())
	}
	return p, address, nil
}
