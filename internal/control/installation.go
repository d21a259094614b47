package control

import (
	"context"
	"errors"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
)

// WorkersList tells of the workers by their last heartbeats.
func (c *Control) WorkersList(ctx context.Context) (jetpost.Workers, error) {
	heartbeats, err := publishers.NewHeartbeats(c.JS, c.Names).All(ctx)
	list := jetpost.Workers{Workers: []jetpost.WorkerReport{}}
	for _, s := range heartbeats {
		list.Workers = append(list.Workers, WorkerReport(s, c.AliveWithin))
	}
	return list, err
}

// WorkerReport is a worker by its last heartbeat.
func WorkerReport(s publishers.Heartbeat, aliveWithin time.Duration) jetpost.WorkerReport {
	return jetpost.WorkerReport{
		Worker: s.Worker, Host: s.Host, Version: s.Version, Roles: s.Roles, Slots: s.Slots, Used: s.Used, StartedAt: s.StartedAt,
		Faults: s.Faults, Disks: s.Disks, Alive: s.Age <= aliveWithin, AgeSeconds: s.Age.Seconds(),
	}
}

// AppStatus tells whether posts go out and, if not, why.
func (c *Control) AppStatus(ctx context.Context) (jetpost.StatusReport, error) {
	if c.Status == nil {
		return jetpost.StatusReport{}, &Error{Code: jetpost.ErrUnsupported, Err: errors.New("status: nobody here gathers it")}
	}
	return c.Status(ctx)
}
