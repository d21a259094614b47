package app_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// diskSize is the size of the disk that a test fills: what an installation needs, and
// three times the room below which it begins nothing.
const diskSize = 3 * health.DiskFull

// smallDisk is a disk of its own, which can be filled.
type smallDisk struct {
	t   *testing.T
	dir string
}

// newSmallDisk mounts one, for which a test must be root on Linux.
func newSmallDisk(t *testing.T, size int) *smallDisk {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatalf("a disk to fill is a small tmpfs, which only root may mount: %v; run this test as root, in a container for instance", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return &smallDisk{t: t, dir: dir}
}

// fill leaves so much room, in bytes, and free gives all of it back.
func (d *smallDisk) fill(left int64) {
	d.t.Helper()
	var s syscall.Statfs_t
	must(d.t, syscall.Statfs(d.dir, &s))
	f, err := os.OpenFile(d.filler(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	must(d.t, err)
	if err := errors.Join(write(f, int64(s.Bavail)*s.Bsize-left), f.Close()); err != nil && left > 0 {
		d.t.Fatal(err)
	}
}

func write(f *os.File, n int64) error {
	block := bytes.Repeat([]byte("x"), 4096)
	for ; n > 0; n -= int64(len(block)) {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return nil
}

func (d *smallDisk) free()          { must(d.t, os.Remove(d.filler())) }
func (d *smallDisk) filler() string { return filepath.Join(d.dir, "filler") }

// diskHouse is 'jetpost up' with a simulated X on a small disk.
type diskHouse struct {
	t     *testing.T
	disk  *smallDisk
	sim   *xsim.Server
	house *app.House
	out   *publishers.Publisher
	conn  *app.Connection
	over  chan error // gives what Run returned
	stop  context.CancelFunc
}

func (d *diskHouse) config() app.HouseConfig {
	return app.HouseConfig{
		Data: filepath.Join(d.disk.dir, "data"), NATSListen: "127.0.0.1:0", SimListen: "127.0.0.1:0", Sim: d.sim, SimAccounts: []string{"alice"},
	}
}

func (d *diskHouse) open() {
	h, err := app.Up(d.t.Context(), d.config(), slog.New(slog.DiscardHandler))
	must(d.t, err)
	ctx, stop := context.WithCancel(d.t.Context())
	d.house, d.stop, d.over = h, stop, make(chan error, 1)
	go func() { d.over <- h.Run(ctx) }()
	d.conn, err = h.Config.Connect(d.t.Context(), slog.New(slog.DiscardHandler), "test")
	must(d.t, err)
	d.out = publishers.New(d.conn.JS, d.conn.Names)
}

func (d *diskHouse) close() {
	d.stop()
	d.conn.Close()
	d.house.Close()
}

// until looks every 50 ms until something holds.
func (d *diskHouse) until(what string, holds func() bool) {
	d.t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			d.t.Fatalf("a minute is over, and not: %s", what)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// posts counts what X has got of each text, over all simulators.
func posts(sims ...*xsim.Server) map[string]int {
	count := map[string]int{}
	for _, sim := range sims {
		for _, p := range sim.Posts("alice") {
			count[p.Text]++
		}
	}
	return count
}

// A disk that runs full stops everything before it is full, and what waits goes on by
// itself once there is room. One that is full to the last byte costs NATS its streams:
// 'up' ends with an error once there is room, and the next one has everything that
// producers were promised, once.
func TestDiskRunsFull(t *testing.T) {
	t.Parallel()
	d := &diskHouse{t: t, disk: newSmallDisk(t, diskSize), sim: &xsim.Server{Seed: 1}}
	d.open()
	promised := map[string]bool{}
	publish := func(text string) error {
		_, err := d.out.Publish(t.Context(), jetpost.Request{Account: "alice", Posts: []jetpost.Post{{Text: text}}})
		if err == nil {
			promised[text] = true
		}
		return err
	}
	first := d.sim
	gone := func() bool { return len(posts(first)) == len(promised) }
	must(t, publish("with room"))
	d.until("the first is posted", gone)

	d.disk.fill(health.DiskFull - 1<<20)
	d.until("status tells of the disk, and the worker", func() bool {
		status, err := d.house.Config.Status(t.Context(), slog.New(slog.DiscardHandler))
		must(t, err)
		return status.Code == "disk_full" && len(status.Workers) > 0 && strings.Contains(status.Workers[0].Faults, "disk:")
	})
	for n := range 20 {
		must(t, publish(fmt.Sprintf("without room %d", n)))
	}
	must(t, d.out.RefreshAccount(t.Context(), "alice", true))
	exchanges := len(first.Exchanges("alice"))
	time.Sleep(3 * time.Second) // nothing is to happen
	if n, e := len(posts(first)), len(first.Exchanges("alice")); n != 1 || e != exchanges {
		t.Errorf("without room, %d posts are live and %d tokens were exchanged, want 1 and %d", n, e, exchanges)
	}
	status, err := d.house.Config.Status(t.Context(), slog.New(slog.DiscardHandler))
	must(t, err)
	t.Log(status.Sentence())
	if status.QueuedJobs == nil || *status.QueuedJobs != 20 {
		t.Errorf("without room jobs were accepted: %+v", status)
	}
	d.disk.free()
	d.until("what waited is posted once there is room", gone)

	d.disk.fill(0)
	refused := error(nil)
	for n := 0; refused == nil && n < 10_000; n++ {
		refused = publish(fmt.Sprintf("full %d %s", n, strings.Repeat("x", 200)))
	}
	t.Logf("after %d jobs: %v", len(promised), refused)
	select {
	case err := <-d.over:
		t.Fatalf("it ended while the disk was full: %v", err)
	case <-time.After(3 * time.Second):
	}
	d.disk.free()
	select {
	case err := <-d.over:
		if !errors.Is(err, app.BrokenError{}) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("with room, it neither goes on nor ends")
	}
	d.close()

	d.sim = &xsim.Server{Seed: 2}
	d.open()
	defer d.close()
	d.until("everything is posted", func() bool {
		got := posts(first, d.sim)
		for text := range promised {
			if got[text] == 0 {
				return false
			}
		}
		return true
	})
	for text, n := range posts(first, d.sim) {
		if n != 1 {
			t.Errorf("%q was posted %d times", text, n)
		}
	}
	t.Logf("%d jobs were promised, %d posts are live", len(promised), len(posts(first, d.sim)))
}

// An installation does not begin where it would stop at once.
func TestUpWithoutRoom(t *testing.T) {
	t.Parallel()
	d := &diskHouse{t: t, disk: newSmallDisk(t, health.DiskFull-1<<20), sim: &xsim.Server{Seed: 1}}
	_, err := app.Up(t.Context(), d.config(), slog.New(slog.DiscardHandler))
	if want := "30 MiB of 31 MiB are free"; err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "32 MiB are needed") || app.Hint(err) == "" {
		t.Errorf("up said %v, want %q with both numbers and what to do", err, want)
	}
}

// What an installation promises its streams is no reason not to begin.
func TestUpWithLittleRoom(t *testing.T) {
	t.Parallel()
	d := &diskHouse{t: t, disk: newSmallDisk(t, 1200<<20), sim: &xsim.Server{Seed: 1}}
	d.open()
	d.close()
}
