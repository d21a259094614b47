package e2e_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// readmeTime bounds one command of the README.
const readmeTime = 5 * time.Minute

// TestREADME runs every console block of the README and of the simulator's page, in
// order, as a reader would: in the repository, with an empty data directory. A line "..."
// stands for any lines, and "..." within a line for anything.
func TestREADME(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	buildNATSCommand(t, root, bin)
	// The README installs the program that the other page uses, and ends before, since
	// both have the same ports.
	for _, page := range []string{"README.md", "docs/SIMULATOR.md"} {
		t.Run(page, func(t *testing.T) {
			commands := readConsole(t, root, page)
			if len(commands) == 0 {
				t.Fatal("there is no console block")
			}
			env := append(quietEnv(), "XDG_DATA_HOME="+t.TempDir(), "GOBIN="+bin, "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			for _, c := range commands {
				c.run(t, root, env)
			}
		})
	}
}

// consoleCommand is one command of a console block and what it must print.
type consoleCommand struct {
	page string
	line int
	text string
	want []string
}

func readConsole(t *testing.T, root, page string) []*consoleCommand {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	var commands []*consoleCommand
	inside := false
	for i, line := range strings.Split(string(text), "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case !inside:
		case strings.HasPrefix(line, "$ "):
			commands = append(commands, &consoleCommand{page: page, line: i + 1, text: strings.TrimPrefix(line, "$ ")})
		case len(commands) == 0:
			t.Fatalf("%s:%d: output before any command", page, i+1)
		default:
			last := commands[len(commands)-1]
			last.want = append(last.want, line)
		}
	}
	return commands
}

// pattern is what the whole output must look like.
func (c *consoleCommand) pattern() *regexp.Regexp {
	var p strings.Builder
	p.WriteString(`\A`)
	for _, line := range c.want {
		if line == "..." {
			p.WriteString(`(?:.*\n)*?`)
			continue
		}
		p.WriteString(strings.ReplaceAll(regexp.QuoteMeta(strings.TrimRight(line, " ")), `\.\.\.`, `.*`) + ` *\n`)
	}
	p.WriteString(`\z`)
	return regexp.MustCompile(p.String())
}

// serves tells a command that stays until it is stopped.
func (c *consoleCommand) serves() bool {
	return strings.HasPrefix(c.text, "jetpost up") || strings.HasPrefix(c.text, "jetpost sim")
}

// asks tells a command that only reads, and that a reader would type again if
// what it shows is not there yet.
func (c *consoleCommand) asks() bool {
	return strings.HasPrefix(c.text, "jetpost requests list") || strings.HasPrefix(c.text, "jetpost status")
}

func (c *consoleCommand) run(t *testing.T, dir string, env []string) {
	t.Helper()
	if c.serves() {
		c.serve(t, dir, env)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), readmeTime)
	defer cancel()
	want := c.pattern()
	for {
		var out, logs syncBuffer
		cmd := c.command(ctx, dir, env, &out, &logs)
		err := cmd.Run()
		if err == nil && want.MatchString(out.String()) {
			return
		}
		if !c.asks() || ctx.Err() != nil {
			t.Fatalf("%s:%d: %q: %v; it printed\n%s\nwant\n%s\nerrors\n%s",
				c.page, c.line, c.text, err, out.String(), strings.Join(c.want, "\n"), logs.String())
		}
	}
}

// serve leaves the command running until the test ends, once it has printed
// what it must.
func (c *consoleCommand) serve(t *testing.T, dir string, env []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), readmeTime)
	var out, logs syncBuffer
	cmd := c.command(ctx, dir, env, &out, &logs)
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatalf("%s:%d: %q: %v", c.page, c.line, c.text, err)
	}
	var result error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		result = cmd.Wait()
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	want := c.pattern()
	for {
		more := out.changed()
		if want.MatchString(out.String()) {
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s:%d: %q ended: %v\n%s%s", c.page, c.line, c.text, result, out.String(), logs.String())
		case <-more:
		}
	}
}

func (c *consoleCommand) command(ctx context.Context, dir string, env []string, stdout, stderr io.Writer) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "bash", "-c", c.text)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, stdout, stderr
	// The command may be a child of the shell: both must end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	return cmd
}

// syncBuffer collects output and tells when there is more.
type syncBuffer struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.more != nil {
		close(b.more)
		b.more = nil
	}
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *syncBuffer) changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.more == nil {
		b.more = make(chan struct{})
	}
	return b.more
}

// buildNATSCommand builds the nats command line at the version that tools/ pins.
func buildNATSCommand(t *testing.T, root, dir string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "build", "-C", filepath.Join(root, "tools", "natscli"),
		"-o", filepath.Join(dir, "nats"), "github.com/nats-io/natscli/nats").CombinedOutput()
	if err != nil {
		t.Fatalf("build the nats command line: %v\n%s", err, out)
	}
}

// quietEnv is the environment without what configures jetpost or nats.
func quietEnv() []string {
	var env []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		switch {
		case strings.HasPrefix(name, "JETPOST_"), strings.HasPrefix(name, "NATS_"), strings.HasPrefix(name, "X_"),
			name == "DATABASE_URL", name == "HUB_ENCRYPTION_KEY", name == "XDG_DATA_HOME", name == "PATH", name == "GOBIN":
			continue
		}
		env = append(env, entry)
	}
	return env
}
