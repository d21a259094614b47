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
	"sync"
	"syscall"
	"time"

	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/publishers"
)

const (
	// heartbeatEvery is how often a worker gives a heartbeat; three may be lost before
	// it counts as silent.
	heartbeatEvery = 5 * time.Second
	// heartbeatWithin bounds giving a heartbeat, and removing it when a worker stops.
	heartbeatWithin = 3 * time.Second
)

// giveHeartbeat gives one heartbeat.
func (w *Worker) giveHeartbeat(ctx context.Context) {
	once, cancel := context.WithTimeout(ctx, heartbeatWithin)
	defer cancel()
	if err := w.heartbeats.Put(once, w.heartbeat()); err != nil && ctx.Err() == nil {
		w.log.Warn("heartbeat.failed", "error", err)
	}
}

// giveHeartbeats gives heartbeats until the context ends, and then removes the last one,
// so that a worker that was stopped normally does not count as dead.
func (w *Worker) giveHeartbeats(ctx context.Context) {
	every := time.NewTicker(heartbeatEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), heartbeatWithin)
			defer cancel()
			if err := w.heartbeats.Remove(last, w.cfg.Worker); err != nil {
				w.log.Debug("heartbeat.left", "error", err)
			}
			return
		case <-every.C:
			w.giveHeartbeat(ctx)
		}
	}
}

func (w *Worker) heartbeat() publishers.Heartbeat {
	s := publishers.Heartbeat{
		Worker: w.cfg.Worker, Version: ThisBuild().Version, Schema: w.cfg.schemaVersion(), Roles: w.cfg.Roles, StartedAt: w.started.UTC(), Disks: w.cfg.disks(), KnowsPruned: true,
	}
	s.Host, _ = os.Hostname() // empty if unknown
	if len(s.Roles) == 0 {
		s.Roles = []string{RolePublish, RoleRefresh}
	}
	if slices.Contains(s.Roles, RolePublish) {
		s.Slots = cmp.Or(w.cfg.Slots, DefaultSlots)
		s.Used = w.worker.Lanes()
	}
	if err := w.worker.Err(); err != nil {
		s.Faults = oneLine(err)
	}
	return s
}

// disks measures the free space of the disks that this process writes to.
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

// DiskError says that a disk has too little free space to start anything that must be
// stored.
type DiskError struct{ publishers.Disk }

func (e *DiskError) Error() string {
	return fmt.Sprintf("disk: %d MiB of %d MiB are free at %s (%s), and %d MiB are needed", e.Free>>20, e.Total>>20, e.Path, e.What, health.DiskFull>>20)
}

// Hint tells the operator what to do.
func (*DiskError) Hint() string { return "make room, or move it to a larger disk" }

// enoughRoom fails with *DiskError if less than health.DiskFull is free on a disk that
// this process writes to. It ignores disks that cannot be measured.
func (c Config) enoughRoom() error {
	for _, d := range c.disks() {
		if d.Free < health.DiskFull {
			return &DiskError{d}
		}
	}
	return nil
}

// roomInterval is the least time between two measurements of the disks by a worker: far less
// than it takes to write health.DiskFull.
const roomInterval = 100 * time.Millisecond

// throttle returns a check that runs once in roomInterval at most, and returns the latest
// result in between.
func throttle(check func() error) func() error {
	var mu sync.Mutex
	var result error
	var until time.Time
	return func() error {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); !now.Before(until) {
			result, until = check(), now.Add(roomInterval)
		}
		return result
	}
}

// room measures the file system of a directory, or of its nearest existing parent.
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
