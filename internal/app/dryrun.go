package app

import (
	"context"
	"log/slog"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/publishers"
)

// DryRun asks the ledger and NATS what a request would meet, and changes
// nothing. What cannot be asked is part of its answer.
func (c Config) DryRun(ctx context.Context, log *slog.Logger, r jetpost.Request) jetpost.CheckAnswer {
	if c.DatabaseURL.Empty() {
		if f, err := c.checkByWorkers(ctx, log, r); err == nil {
			return f
		}
	}
	f := control.NewCheck(r)
	queue, err := c.checkQueue(ctx, r)
	if err != nil {
		f.NotAsked = append(f.NotAsked, control.NotAskedQueue+oneLine(err))
	}
	f.Queue = queue
	if f.Pause, err = c.publishPause(ctx, log); err != nil {
		f.NotAsked = append(f.NotAsked, control.NotAskedPause+oneLine(err))
	}
	return f
}

// checkByWorkers is what a worker tells.
func (c Config) checkByWorkers(ctx context.Context, log *slog.Logger, r jetpost.Request) (f jetpost.CheckAnswer, err error) {
	conn, err := c.Connect(ctx, log, "jetpost publish --dry-run")
	if err != nil {
		return f, err
	}
	defer conn.Close()
	workers, err := client.New(conn.Conn, client.WithPrefix(c.NATS.Prefix))
	if err != nil {
		return f, err
	}
	return workers.RequestCheck(ctx, r.Account, r)
}

func (c Config) checkQueue(ctx context.Context, r jetpost.Request) (*jetpost.CheckedQueue, error) {
	ledger, err := c.OpenStore(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ledger.Close() }() // only read from
	return control.CheckQueue(ctx, ledger, r)
}

func (c Config) publishPause(ctx context.Context, log *slog.Logger) (*publishers.Pause, error) {
	conn, err := c.Connect(ctx, log, "jetpost publish --dry-run")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return control.PublishPause(ctx, conn.JS, conn.Names)
}
