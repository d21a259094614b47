package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startTime = 30 * time.Second // until a process answers
	stopTime  = 60 * time.Second // until it has ended after it was asked to
	askAgain  = 5 * time.Millisecond
	tick      = 10 * time.Millisecond // of the kernel's account of CPU time, USER_HZ
)

// process is a program that runs for a while, with all that it starts.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string // the file that its output goes to
	done chan error
	stop syscall.Signal // what asks it to end
}

// start runs a program until it is ended. It dies with the benchmark, whatever becomes
// of that.
func start(ctx context.Context, dir, name string, stop syscall.Signal, prepare func(*exec.Cmd), program string, args ...string) (*process, error) {
	log, err := os.CreateTemp(dir, name+"-*.log")
	if err != nil {
		return nil, fmt.Errorf("make log of %s: %w", name, err)
	}
	defer func() { _ = log.Close() }() // the process has its own
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if prepare != nil {
		prepare(cmd)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log.Name(), done: make(chan error, 1), stop: stop}
	go func() { p.done <- cmd.Wait() }()
	return p, nil
}

// until waits for a fact about a process that is starting.
func (p *process) until(ctx context.Context, what string, fact func() bool) error {
	deadline := time.Now().Add(startTime)
	for !fact() {
		select {
		case err := <-p.done:
			p.done <- err
			return fmt.Errorf("%s ended before %s: %w\n%s", p.name, what, err, p.tail())
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: no %s within %s\n%s", p.name, what, startTime, p.tail())
		}
		if err := pause(ctx, askAgain); err != nil {
			return err
		}
	}
	return nil
}

// end asks a process to finish, and waits until it has.
func (p *process) end() error {
	if p == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(p.stop) // it may have ended
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	select {
	case err := <-p.done:
		if exit := new(exec.ExitError); err == nil || errors.As(err, &exit) {
			return nil // a signal may be its way to end
		}
		return err
	case <-timer.C:
		return errors.Join(fmt.Errorf("%s did not stop within %s", p.name, stopTime), p.cmd.Process.Kill())
	}
}

const maxTail = 2000 // bytes of a log that an error shows

func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-maxTail):])
}

// cpu is what a process and its descendants have used so far, ended ones too.
func (p *process) cpu() time.Duration {
	if p == nil {
		return 0
	}
	var total time.Duration
	for _, pid := range tree(p.cmd.Process.Pid) {
		total += cpuOf(pid)
	}
	return total
}

// rss is the memory that a process and its descendants hold, in bytes. Pages
// that they share count for each.
func (p *process) rss() int64 {
	var total int64
	for _, pid := range tree(p.cmd.Process.Pid) {
		total += rssOf(pid)
	}
	return total
}

func tree(root int) []int {
	pids := []int{root}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", root))
	for _, file := range files {
		text, _ := os.ReadFile(file) // it may have ended
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, tree(pid)...)
			}
		}
	}
	return pids
}

// cpuOf adds utime, stime and those of children that were waited for.
func cpuOf(pid int) (used time.Duration) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold spaces; the 14th field is the 12th after it.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	for _, field := range fields[11:15] {
		n, _ := strconv.ParseInt(field, 10, 64)
		used += time.Duration(n) * tick
	}
	return used
}

func rssOf(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// pause waits, unless everything ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// freeAddress is a local address that nobody listens on at the moment.
func freeAddress(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// answers reports whether something listens there.
func answers(ctx context.Context, address string) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}
