package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/publishers"
)

const (
	// heartbeatEvery is how often a worker gives a heartbeat; three may be lost before
	// it counts as silent.
	heartbeatEvery = 5 * time.Second
	// heartbeatWithin bounds the giving of one, and the last word of a worker that stops.
	heartbeatWithin = 3 * time.Second
)

// counted counts the deliveries at work.
type counted struct {
	consumers.Handler
	used atomic.Int64
}

// Handle implements consumers.Handler.
func (c *counted) Handle(ctx context.Context, d consumers.Delivery) error {
	c.used.Add(1)
	defer c.used.Add(-1)
	return c.Handler.Handle(ctx, d)
}

// giveSign gives one heartbeat.
func (w *Worker) giveSign(ctx context.Context) {
	once, cancel := context.WithTimeout(ctx, heartbeatWithin)
	defer cancel()
	if err := w.heartbeats.Put(once, w.heartbeat()); err != nil && ctx.Err() == nil {
		w.log.Warn("sign.failed", "error", err)
	}
}

// giveSigns gives heartbeats until the context ends, and then takes the last one
// away: who stops as told has not fallen silent.
func (w *Worker) giveSigns(ctx context.Context) {
	every := time.NewTicker(heartbeatEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), heartbeatWithin)
			defer cancel()
			if err := w.heartbeats.Remove(last, w.cfg.Worker); err != nil {
				w.log.Debug("sign.left", "error", err)
			}
			return
		case <-every.C:
			w.giveSign(ctx)
		}
	}
}

func (w *Worker) heartbeat() publishers.Heartbeat {
	s := publishers.Heartbeat{
		Worker: w.cfg.Worker, Version: ThisBuild().Version, Roles: w.cfg.Roles, StartedAt: w.started.UTC(), Disks: w.cfg.disks(),
	}
	s.Host, _ = os.Hostname() // else it has none
	if len(s.Roles) == 0 {
		s.Roles = []string{RolePublish, RoleRefresh}
	}
	if slices.Contains(s.Roles, RolePublish) {
		s.Slots = cmp.Or(w.cfg.Slots, DefaultSlots)
		s.Used = int(w.lanes.used.Load())
	}
	if err := w.health.Err(); err != nil {
		s.Faults = oneLine(err)
	}
	return s
}

// disks measures the room where this process keeps something.
func (c Config) disks() (found []publishers.Disk) {
	places := []struct{ what, path string }{{"lifeboat", c.Lifeboat}}
	if path, is := strings.CutPrefix(c.DatabaseURL.Reveal(), "sqlite:"); is {
		places = append(places, struct{ what, path string }{"database", filepath.Dir(path)})
	}
	if c.natsDir != "" {
		places = append(places, struct{ what, path string }{"NATS", c.natsDir})
	}
	for _, place := range places {
		if place.path == "" {
			continue
		}
		if disk, err := room(place.what, place.path); err == nil {
			found = append(found, disk)
		}
	}
	return found
}

// DiskError says that a disk has too little room for anything to be begun that must be
// written down.
type DiskError struct{ publishers.Disk }

func (e *DiskError) Error() string {
	return fmt.Sprintf("disk: %d MiB of %d MiB are free at %s (%s), and %d MiB are needed", e.Free>>20, e.Total>>20, e.Path, e.What, health.DiskFull>>20)
}

// Hint tells the operator what to do.
func (*DiskError) Hint() string { return "make room, or move it to a larger disk" }

// enoughRoom fails with *DiskError where less than health.DiskFull is free on a disk on
// which this process keeps something. One that cannot be measured has enough.
func (c Config) enoughRoom() error {
	for _, d := range c.disks() {
		if d.Free < health.DiskFull {
			return &DiskError{d}
		}
	}
	return nil
}

// room measures a file system by a directory on it, or by the nearest above it that is
// there.
func room(what, path string) (publishers.Disk, error) {
	var s syscall.Statfs_t
	for {
		err := syscall.Statfs(path, &s)
		if err == nil {
			return publishers.Disk{What: what, Path: path, Free: s.Bavail * uint64(s.Bsize), Total: s.Blocks * uint64(s.Bsize)}, nil
		}
		if up := filepath.Dir(path); errors.Is(err, syscall.ENOENT) && up != path {
			path = up
			continue
		}
		return publishers.Disk{}, err
	}
}
