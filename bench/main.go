package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

func main() {
	if peer := os.Getenv(childVariable); peer != "" {
		exit(runPeer(context.Background(), peer))
	}
	var o options
	flag.BoolVar(&o.quick, "quick", false, "run a small part of everything, in some minutes")
	flag.StringVar(&o.against, "against", os.Getenv("BENCH_AGAINST"), "measure this git revision of jetpost too, in the same run")
	flag.StringVar(&o.only, "only", "", "run only the experiments whose name matches this expression")
	flag.StringVar(&o.out, "out", "", "write BENCHMARKS.md and its plots to this directory; print it where empty")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx, o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

type options struct {
	quick              bool
	against, only, out string
}

func run(ctx context.Context, o options) (err error) {
	only, err := regexp.Compile(o.only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	b, err := newBench(ctx, os.Stderr, o.against)
	if err != nil {
		return err
	}
	size := full()
	if o.quick {
		size = quick()
	}
	defer func() { err = errors.Join(err, b.close()) }()
	err = b.all(ctx, size, only)
	if len(b.report.sections) == 0 {
		return err
	}
	b.report.machine(ctx, b, o)
	return errors.Join(err, b.report.write(os.Stdout, o.out))
}

// bench is what all experiments of a run share.
type bench struct {
	scratch     string
	said        *os.File
	began       time.Time
	load        string // of the machine as it began
	natsProgram string
	binary      string // jetpost of this checkout
	revision    string
	against     string // the binary of another revision, "" for none
	againstName string
	pg          *postgres
	x           *stubX
	report      report
}

// newBench builds what is measured and starts what everything shares.
func newBench(ctx context.Context, said *os.File, against string) (b *bench, err error) {
	b = &bench{said: said, began: time.Now(), load: loadAverage()}
	if b.scratch, err = os.MkdirTemp("", "jetpost-bench-"); err != nil {
		return nil, err
	}
	// PostgreSQL's user has to reach its part of it.
	if err := os.Chmod(b.scratch, 0o711); err != nil { //nolint:gosec // names of files are no secret
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if err := b.build(ctx, against); err != nil {
		return nil, err
	}
	if b.x, err = startX(ctx); err != nil {
		return nil, err
	}
	b.pg, err = startPostgres(ctx, b.scratch)
	return b, err
}

func (b *bench) close() error {
	var err error
	if b.pg != nil {
		err = b.pg.end()
	}
	if b.x != nil {
		err = errors.Join(err, b.x.server.Close())
	}
	return errors.Join(err, os.RemoveAll(b.scratch))
}

// build compiles jetpost and nats-server, and jetpost of another revision.
func (b *bench) build(ctx context.Context, against string) error {
	root, err := output(ctx, ".", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	if b.revision, err = output(ctx, root, "git", "describe", "--always", "--dirty"); err != nil {
		return err
	}
	b.natsProgram = filepath.Join(b.scratch, "nats-server")
	b.say("building jetpost %s and nats-server", b.revision)
	if _, err := output(ctx, filepath.Join(root, "bench"), "go", "build", "-o", b.natsProgram, "github.com/nats-io/nats-server/v2"); err != nil {
		return err
	}
	b.binary = filepath.Join(b.scratch, "jetpost")
	if err := buildJetpost(ctx, root, b.binary); err != nil || against == "" {
		return err
	}
	if b.againstName, err = output(ctx, root, "git", "rev-parse", "--short", against+"^{commit}"); err != nil {
		return err
	}
	b.say("building jetpost %s", b.againstName)
	source := filepath.Join(b.scratch, "source")
	archive := filepath.Join(b.scratch, "source.tar")
	if err := os.Mkdir(source, 0o700); err != nil {
		return err
	}
	if _, err := output(ctx, root, "git", "archive", "-o", archive, b.againstName); err != nil {
		return err
	}
	if _, err := output(ctx, root, "tar", "-xf", archive, "-C", source); err != nil {
		return err
	}
	b.against = filepath.Join(b.scratch, "jetpost-"+b.againstName)
	return buildJetpost(ctx, source, b.against)
}

func buildJetpost(ctx context.Context, root, to string) error {
	_, err := output(ctx, root, "go", "build", "-trimpath", "-tags", "timetzdata", "-o", to, "./cmd/jetpost")
	return err
}

// output runs a program and returns what it prints.
func output(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return "", fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// say shows progress to a person who waits.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.said, "%5.0fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}
