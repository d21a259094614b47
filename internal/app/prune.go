package app

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/consumers/control"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// newPruner prunes as the worker that the configuration names.
func newPruner(ctx context.Context, conn *Connection, ledger store.Store, cfg Config, log *slog.Logger) (*consumers.Pruner, error) {
	media, err := publishers.OpenMediaObjects(ctx, conn.JS, conn.Names)
	if err != nil {
		return nil, err
	}
	return &consumers.Pruner{
		Ledger: ledger, Media: media, JS: conn.JS, Names: conn.Names, Heartbeats: publishers.NewHeartbeats(conn.JS, conn.Names),
		Worker: cfg.Worker, Keep: cfg.KeepFinished, Log: log,
	}, nil
}

// Prune removes once what finished that long ago; a dry run only counts it. It fails with
// consumers.ErrPruning inside while another process does so.
func (d *Control) Prune(ctx context.Context, keep time.Duration, dry bool) (consumers.PruneReport, error) {
	if err := (Config{KeepFinished: keep}).validate(needs{}); err != nil {
		return consumers.PruneReport{}, err
	}
	p, err := newPruner(ctx, d.Conn, d.Ledger, Config{Worker: workerName(), KeepFinished: keep}, d.log)
	if err != nil {
		return consumers.PruneReport{}, err
	}
	defer func() {
		if !dry {
			_ = d.Ledger.DropLeases(context.WithoutCancel(ctx), []string{consumers.PruneLease}, p.Worker, time.Now()) // it runs out
		}
	}()
	report, err := p.Round(ctx, dry)
	if errors.Is(err, consumers.ErrPruning) {
		err = &HintError{Err: err, Help: "a worker does so every ten minutes by its --keep-finished, and goes on by itself; see what is left with: jetpost prune --dry-run"}
	}
	return report, control.DatabaseError(err)
}
