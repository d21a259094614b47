package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jetpost/jetpost/internal/testkit"
)

func RunCommand(t testkit.T, env []string, program string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), CommandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
	// What a killed command leaves running must not keep the test waiting.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %s %v: %v", program, args, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// Process is a process of the test's own, which ends with the test at the
// latest. Its output is shown if the test fails.
type Process struct {
	t    testkit.T
	Name string
	Cmd  *exec.Cmd
	Log  string        // path
	Done chan struct{} // closed when it has ended
}

func Start(t testkit.T, name string, env []string, program string, args ...string) *Process {
	t.Helper()
	p, err := Launch(t, name, filepath.Join(t.TempDir(), name+".log"), env, program, args...)
	testkit.Must(t, err)
	t.Cleanup(func() {
		<-p.Done
		text := p.Output()
		for _, bad := range []string{"WARNING: DATA RACE", "delivery.panic", "goroutine 1 ["} {
			if strings.Contains(text, bad) {
				t.Errorf("%s: its log has %q", name, bad)
			}
		}
		if t.Failed() {
			t.Logf("%s wrote:\n%s", name, text[max(0, len(text)-maxLogBytes):])
		}
	})
	return p
}

// Launch is start without a look at the output, for any goroutine.
func Launch(t testkit.T, name, log string, env []string, program string, args ...string) (*Process, error) {
	t.Helper()
	p := &Process{t: t, Name: name, Log: log, Done: make(chan struct{})}
	out, err := os.Create(p.Log)
	if err != nil {
		return nil, err
	}
	p.Cmd = exec.CommandContext(t.Context(), program, args...) // killed when the test ends
	p.Cmd.Env, p.Cmd.Stdout, p.Cmd.Stderr = env, out, out
	_, err = p.Cmd.StdinPipe() // its end is the end of this process
	if err == nil {
		err = p.Cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	go func() {
		_ = p.Cmd.Wait() // the exit code tells the same
		_ = out.Close()
		close(p.Done)
	}()
	return p, nil
}

func (p *Process) Output() string {
	text, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Entries are the log's lines of one message.
func (p *Process) Entries(message string) []map[string]any {
	var found []map[string]any
	for line := range strings.Lines(p.Output()) {
		var entry map[string]any
		if json.Unmarshal([]byte(line), &entry) == nil && entry["msg"] == message {
			found = append(found, entry)
		}
	}
	return found
}

// Until waits for a log message.
func (p *Process) Until(message string) {
	p.t.Helper()
	testkit.Eventually(p.t, p.Name+" to log "+message, func() bool {
		select {
		case <-p.Done:
			p.t.Fatalf("%s ended with code %d before it logged %s", p.Name, p.Cmd.ProcessState.ExitCode(), message)
		default:
		}
		return len(p.Entries(message)) > 0
	})
}

// Signal sends a signal. It may be called on any goroutine. A process that is told to
// freeze has done so when signal returns: on a busy machine its threads run on for a
// moment, in which they could commit what is on its way.
func (p *Process) Signal(sig syscall.Signal) {
	if err := p.Cmd.Process.Signal(sig); err != nil {
		p.t.Errorf("send %s to %s: %v", sig, p.Name, err)
		return
	}
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for late := time.After(testkit.Patience); sig == syscall.SIGSTOP && p.runs(); {
		select {
		case <-again.C:
		case <-late:
			p.t.Errorf("%s does not freeze", p.Name)
			return
		}
	}
}

// runs tells whether a thread of the process is not frozen, as far as Linux tells.
func (p *Process) runs() bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Cmd.Process.Pid))
	return slices.ContainsFunc(threads, func(name string) bool {
		stat, err := os.ReadFile(name)
		return err == nil && !bytes.Contains(stat, []byte(") T "))
	})
}

// Exit waits for the end and returns the exit code, -1 after a signal.
func (p *Process) Exit() int {
	p.t.Helper()
	select {
	case <-p.Done:
		return p.Cmd.ProcessState.ExitCode()
	case <-time.After(testkit.Patience):
		p.t.Fatalf("%s does not end", p.Name)
		return 0
	}
}

// Kill ends the process as a power cut would.
func (p *Process) Kill() {
	p.t.Helper()
	p.Signal(syscall.SIGKILL)
	p.Exit()
}

// Stop ends processes as an operator would.
func Stop(processes ...*Process) {
	for _, p := range processes {
		p.Signal(syscall.SIGTERM)
	}
	for _, p := range processes {
		p.t.Helper()
		if code := p.Exit(); code != 0 {
			p.t.Errorf("%s ended with code %d, want 0", p.Name, code)
		}
	}
}
