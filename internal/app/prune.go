package app

import (
	"context"
	"errors"
	"time"

	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/control"
)

// Prune removes once what finished that long ago; a dry run only counts it. It fails with
// consumers.ErrPruning inside while another process does so.
func (d *Control) Prune(ctx context.Context, keep time.Duration, dry bool) (consumers.PruneReport, error) {
	if err := (Config{KeepFinished: keep}).validate(needs{}); err != nil {
		return consumers.PruneReport{}, err
	}
	report, err := consumers.Prune(ctx, consumers.PruneConfig{
		Ledger: d.Ledger, JetStream: d.Conn.JS, Names: d.Conn.Names, Worker: workerName(), Keep: keep, Log: d.log,
	}, dry)
	if errors.Is(err, consumers.ErrPruning) {
		err = &HintError{Err: err, Help: "a worker does so every ten minutes by its --keep-finished, and goes on by itself; see what is left with: jetpost prune --dry-run"}
	}
	return report, control.DatabaseError(err)
}
