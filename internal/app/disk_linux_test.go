package app_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/disktest"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// diskSize is the size of the disk that a test fills: what an installation needs, and
// three times the room below which it begins nothing.
const diskSize = 3 * health.DiskFull

// diskInstance is 'jetpost up' with a simulated X on a small disk.
type diskInstance struct {
	t        *testing.T
	disk     *disktest.Disk
	sim      *xsim.Server
	instance *app.Instance
	out      *publishers.Publisher
	conn     *app.Connection
	over     chan error // gives what Run returned
	stop     context.CancelFunc
	promised map[string]bool // texts of jobs that the installation has taken
}

func (d *diskInstance) config() app.InstanceConfig {
	return app.InstanceConfig{
		Data: filepath.Join(d.disk.Dir, "data"), NATSListen: "127.0.0.1:0", SimListen: "127.0.0.1:0", Sim: d.sim, SimAccounts: []string{"alice"},
	}
}

func (d *diskInstance) open() {
	h, err := app.Up(d.t.Context(), d.config(), slog.New(slog.DiscardHandler))
	testkit.Must(d.t, err)
	ctx, stop := context.WithCancel(d.t.Context())
	d.instance, d.stop, d.over = h, stop, make(chan error, 1)
	go func() { d.over <- h.Run(ctx) }()
	d.conn, err = h.Config.Connect(d.t.Context(), slog.New(slog.DiscardHandler), "test")
	testkit.Must(d.t, err)
	d.out = publishers.New(d.conn.JS, d.conn.Names)
}

func (d *diskInstance) close() {
	d.stop()
	d.conn.Close()
	d.instance.Close()
}

// until looks every 50 ms until something holds.
func (d *diskInstance) until(what string, holds func() bool) {
	d.t.Helper()
	end, look := time.After(time.Minute), time.NewTicker(50*time.Millisecond)
	defer look.Stop()
	for !holds() {
		select {
		case <-end:
			d.t.Fatalf("a minute is over, and not: %s", what)
		case <-look.C:
		}
	}
}

// posts counts what X has got of each text.
func posts(sim *xsim.Server) map[string]int {
	count := map[string]int{}
	for _, p := range sim.Posts("alice") {
		count[p.Text]++
	}
	return count
}

// A disk that runs full stops everything before it is full, and what waits goes on by
// itself once there is room. One that is full to the last byte costs NATS its streams:
// 'up' ends with an error once there is room, and the next one has everything that
// producers were promised, once.
func TestDiskRunsFull(t *testing.T) {
	t.Parallel()
	disk := disktest.New(t, diskSize)
	if disk == nil {
		return
	}
	d := &diskInstance{t: t, disk: disk, sim: &xsim.Server{Seed: 1}, promised: map[string]bool{}}
	d.open()
	testkit.Must(t, d.publish("with room"))
	d.until("the first is posted", d.allPosted)
	d.runsShort()
	d.runsFull()
	d.close()

	d.sim = &xsim.Server{Seed: 2} // which gets what the first one had
	d.open()
	defer d.close()
	d.keepsPromises()
}

// publish makes a job of one post, and remembers what it was promised.
func (d *diskInstance) publish(text string) error {
	_, err := d.out.Publish(d.t.Context(), jetpost.Request{Account: "alice", Posts: []jetpost.Post{{Text: text}}})
	if err == nil {
		d.promised[text] = true
	}
	return err
}

func (d *diskInstance) allPosted() bool { return len(posts(d.sim)) == len(d.promised) }

// runsShort leaves less room than is needed, and gives it back.
func (d *diskInstance) runsShort() {
	t := d.t
	t.Helper()
	d.disk.Fill(health.DiskFull - 1<<20)
	d.until("status tells of the disk, and the worker", func() bool {
		status, err := d.instance.Config.Status(t.Context(), slog.New(slog.DiscardHandler))
		testkit.Must(t, err)
		return status.Code == "disk_full" && len(status.Workers) > 0 && strings.Contains(status.Workers[0].Faults, "disk:")
	})
	for n := range 20 {
		testkit.Must(t, d.publish(fmt.Sprintf("without room %d", n)))
	}
	testkit.Must(t, d.out.RefreshAccount(t.Context(), "alice", true))
	exchanges := len(d.sim.Exchanges("alice"))
	<-time.After(3 * time.Second) // in which nothing is to happen
	if n, e := len(posts(d.sim)), len(d.sim.Exchanges("alice")); n != 1 || e != exchanges {
		t.Errorf("without room, %d posts are live and %d tokens were exchanged, want 1 and %d", n, e, exchanges)
	}
	status, err := d.instance.Config.Status(t.Context(), slog.New(slog.DiscardHandler))
	testkit.Must(t, err)
	t.Log(status.Sentence())
	if status.QueuedJobs == nil || *status.QueuedJobs != 20 {
		t.Errorf("without room jobs were accepted: %+v", status)
	}
	d.disk.Free()
	d.until("what waited is posted once there is room", d.allPosted)
}

// runsFull leaves no room at all until no job is taken, and gives it back.
func (d *diskInstance) runsFull() {
	t := d.t
	t.Helper()
	d.disk.Fill(0)
	refused := error(nil)
	for n := 0; refused == nil && n < 10_000; n++ {
		refused = d.publish(fmt.Sprintf("full %d %s", n, strings.Repeat("x", 200)))
	}
	t.Logf("after %d jobs: %v", len(d.promised), refused)
	select {
	case err := <-d.over:
		t.Fatalf("it ended while the disk was full: %v", err)
	case <-time.After(3 * time.Second):
	}
	d.disk.Free()
	select {
	case err := <-d.over:
		if !errors.Is(err, app.BrokenError{}) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("with room, it neither goes on nor ends")
	}
}

// keepsPromises posts each job once.
func (d *diskInstance) keepsPromises() {
	t := d.t
	t.Helper()
	d.until("everything is posted", func() bool {
		got := posts(d.sim)
		for text := range d.promised {
			if got[text] == 0 {
				return false
			}
		}
		return true
	})
	for text, n := range posts(d.sim) {
		if n != 1 {
			t.Errorf("%q was posted %d times", text, n)
		}
	}
	t.Logf("%d jobs were promised, %d posts are live", len(d.promised), len(posts(d.sim)))
}

// An installation does not begin where it would stop at once.
func TestUpWithoutRoom(t *testing.T) {
	t.Parallel()
	disk := disktest.New(t, health.DiskFull-1<<20)
	if disk == nil {
		return
	}
	d := &diskInstance{t: t, disk: disk, sim: &xsim.Server{Seed: 1}}
	_, err := app.Up(t.Context(), d.config(), slog.New(slog.DiscardHandler))
	if want := "30 MiB of 31 MiB are free"; err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "32 MiB are needed") || app.Hint(err) == "" {
		t.Errorf("up said %v, want %q with both numbers and what to do", err, want)
	}
}

// What an installation promises its streams is no reason not to begin.
func TestUpWithLittleRoom(t *testing.T) {
	t.Parallel()
	disk := disktest.New(t, 1200<<20)
	if disk == nil {
		return
	}
	d := &diskInstance{t: t, disk: disk, sim: &xsim.Server{Seed: 1}}
	d.open()
	d.close()
}
