package app

import (
	"cmp"
	"context"

	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/internal/telemetry"
)

func newMetrics() *telemetry.Metrics {
	build := ThisBuild()
	return telemetry.NewMetrics(telemetry.Build{Version: build.Version, Commit: build.Commit, Go: build.Go})
}

// standing is how this worker and the installation stand. What it asks NATS and the
// database is asked together with /statusz.
func (w *Worker) standing(ctx context.Context) (telemetry.Standing, error) {
	status, err := w.status.get(ctx)
	if err != nil {
		return telemetry.Standing{}, err
	}
	worker := telemetry.Worker{
		Ready: w.fault() == nil, Pools: w.ledger.Pools(), Windows: w.worker.AppWindows(), Spool: w.worker.Spooled(),
	}
	if w.has(RolePublish) {
		worker.Slots, worker.Lanes = cmp.Or(w.cfg.Slots, DefaultSlots), w.worker.Lanes()
	}
	for _, d := range w.cfg.disks() {
		worker.Disks = append(worker.Disks, health.Disk{What: d.What, Path: d.Path, Free: d.Free, Total: d.Total})
	}
	if worker.Lifeboat, err = w.boat.Count(); err != nil {
		w.log.Warn("lifeboat.not_counted", "error", err)
	}
	return telemetry.Standing{Worker: worker, Installation: status.installation()}, nil
}

// installation is the status as metrics have it.
func (s *Status) installation() telemetry.Installation {
	i := telemetry.Installation{Facts: s.facts, Verdict: s.Verdict, Requests: s.Requests, RefreshedAt: s.LastRefreshAt}
	for _, paused := range s.Paused {
		if paused.Pause.ByHand() {
			i.Paused++
		}
	}
	for _, pause := range s.AppPauses {
		i.AppPauses = append(i.AppPauses, telemetry.AppPause{Target: pause.Target, Code: pause.Reason.Code})
	}
	return i
}
