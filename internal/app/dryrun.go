package app

import (
	"context"
	"log/slog"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/consumers/control"
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
	line, err := c.checkLine(ctx, r)
	if err != nil {
		f.NotAsked = append(f.NotAsked, control.NotAskedLine+oneLine(err))
	}
	f.Line = line
	if f.Stop, err = c.publishStop(ctx, log); err != nil {
		f.NotAsked = append(f.NotAsked, control.NotAskedStop+oneLine(err))
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

func (c Config) checkLine(ctx context.Context, r jetpost.Request) (*jetpost.CheckedLine, error) {
	ledger, err := c.OpenStore(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ledger.Close() }() // only read from
	return control.CheckLine(ctx, ledger, r)
}

func (c Config) publishStop(ctx context.Context, log *slog.Logger) (*publishers.Pause, error) {
	conn, err := c.Connect(ctx, log, "jetpost publish --dry-run")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return control.PublishStop(ctx, conn.JS, conn.Names)
}
