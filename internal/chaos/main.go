package chaos

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/jetpost/jetpost/internal/testkit"
)

const (
	exitOK     = 0
	exitFailed = 1 // a promise was broken, or the run itself broke
	exitUsage  = 2
)

// programs are the runs by name, each with its own arguments.
var programs = map[string]func(t testkit.T, c chaosConfig, args []string){
	runTokens: func(t testkit.T, c chaosConfig, args []string) {
		c, plan := tokenArguments(t, c, args)
		runTokenChaos(t, c, plan)
	},
	runPublish: func(t testkit.T, c chaosConfig, args []string) {
		c, plan := publishArguments(t, c, args)
		runPublishChaos(t, c, plan)
	},
	runLimits: func(t testkit.T, c chaosConfig, args []string) {
		c, plan := limitArguments(t, c, args)
		runLimitsChaos(t, c, plan)
	},
	runStandstill: func(t testkit.T, c chaosConfig, args []string) {
		c, plan := standArguments(t, c, args)
		runStandstillChaos(t, c, plan)
	},
}

// Main does the run that the first argument names, with the others, and tells how it goes.
// It returns the exit code.
func Main(args []string, out io.Writer) int {
	if len(args) == 0 || programs[args[0]] == nil {
		fmt.Fprintf(out, "chaos: name a run: %s\n", strings.Join(slices.Sorted(maps.Keys(programs)), ", "))
		return exitUsage
	}
	name := args[0]
	scratch, err := os.MkdirTemp("", "jetpost-chaos-")
	if err != nil {
		fmt.Fprintf(out, "chaos: %v\n", err)
		return exitFailed
	}
	logs, verdict := scratch+"/logs", fmt.Sprintf("chaos %s: FAIL: the run itself broke, see above", name)
	p := &program{name: name, out: out}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.run(func() {
		testkit.Must(p, os.Mkdir(logs, 0o700))
		programs[name](p, chaosConfig{logs: logs, verdict: func(line string) { verdict = line }}, args[1:])
	})
	if !p.Failed() {
		fmt.Fprintln(out, verdict)
		_ = os.RemoveAll(scratch) // nobody is left to tell
		return exitOK
	}
	fmt.Fprintf(out, "the workers' logs are in %s\n%s\n", logs, verdict)
	return exitFailed
}

// program is the testkit.T of a run that is no test.
type program struct {
	name   string
	out    io.Writer
	ctx    context.Context
	cancel func()

	mu       sync.Mutex
	failed   bool
	cleanups []func()
}

// run does it, and then what was put off, the last first.
func (p *program) run(do func()) {
	p.wait(do)
	p.cancel()
	for {
		p.mu.Lock()
		n := len(p.cleanups)
		if n == 0 {
			p.mu.Unlock()
			return
		}
		last := p.cleanups[n-1]
		p.cleanups = p.cleanups[:n-1]
		p.mu.Unlock()
		p.wait(last)
	}
}

// wait gives do a goroutine of its own, which Fatal ends.
func (*program) wait(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	<-done
}

// Name is that of the run.
func (p *program) Name() string { return p.name }

// Helper does nothing: no message names its place.
func (*program) Helper() {}

// Context ends with the run, before what was put off is done.
func (p *program) Context() context.Context { return p.ctx }

// Cleanup puts f off to the end.
func (p *program) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanups = append(p.cleanups, f)
}

// TempDir makes a directory that ends with the run.
func (p *program) TempDir() string {
	dir, err := os.MkdirTemp("", "jetpost-chaos-")
	testkit.Must(p, err)
	p.Cleanup(func() { testkit.Must(p, os.RemoveAll(dir)) })
	return dir
}

// Log tells something.
func (p *program) Log(args ...any) { fmt.Fprintln(p.out, args...) }

// Logf tells something.
func (p *program) Logf(format string, args ...any) { p.Log(fmt.Sprintf(format, args...)) }

// Error tells what is wrong, and has the run fail.
func (p *program) Error(args ...any) {
	p.Log(args...)
	p.Fail()
}

// Errorf is Error, formatted.
func (p *program) Errorf(format string, args ...any) { p.Error(fmt.Sprintf(format, args...)) }

// Fail has the run fail.
func (p *program) Fail() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = true
}

// Failed tells whether the run fails.
func (p *program) Failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// Fatal is Error, and ends the goroutine of the run.
func (p *program) Fatal(args ...any) {
	p.Error(args...)
	runtime.Goexit()
}

// Fatalf is Fatal, formatted.
func (p *program) Fatalf(format string, args ...any) { p.Fatal(fmt.Sprintf(format, args...)) }
