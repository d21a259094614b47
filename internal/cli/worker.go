package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/jetpost/jetpost/internal/app"
)

// workerCmd is 'jetpost worker'.
type workerCmd struct {
	workFlags    `embed:""`
	connectFlags `embed:""`
}

// Run works until it is told to stop.
func (c *workerCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	if cfg.Traces, err = e.traces(); err != nil {
		return err
	}
	c.apply(&cfg, e.data(false))
	w, err := app.NewWorker(e.ctx, cfg, e.log)
	if err != nil {
		return err
	}
	defer w.Close()
	return w.Run(e.ctx)
}

// roomFlags bound the streams of producers, in 'up' and in 'setup'.
type roomFlags struct {
	JobsMiB  int64 `name:"jobs-mib" env:"JETPOST_JOBS_MIB" default:"256" placeholder:"MIB" help:"Size of the job stream, in MiB (${default}). It holds jobs until a worker accepts them; if it is full, producers are refused."`
	MediaMiB int64 `name:"media-mib" env:"JETPOST_MEDIA_MIB" default:"4096" placeholder:"MIB" help:"Size of the media object store, in MiB (${default}). If it is full, producers are refused."`
}

// Validate checks the sizes.
func (f *roomFlags) Validate() error {
	if f.JobsMiB < 1 || f.MediaMiB < 1 {
		return fmt.Errorf("--jobs-mib, --media-mib: %d and %d, want 1 at least", f.JobsMiB, f.MediaMiB)
	}
	return nil
}

// setupCmd is 'jetpost setup'.
type setupCmd struct {
	roomFlags    `embed:""`
	RefreshCron  string `default:"0 0 */6 * * *" placeholder:"CRON" help:"Schedule of token refreshes: six fields, seconds first (${default})."`
	RestoredFrom string `env:"-" placeholder:"TIME" help:"The database was restored from a backup of this time: update it from the events, and check X's timelines before sending anything that may be live. Stop all workers first."`
	Force        bool   `env:"-" help:"Change the database schema although workers run that do not survive it."`
	Replicas     int    `default:"1" help:"Replicas of each stream: 1, or 3 in a cluster that must survive the loss of a server."`
	natsFlags    `embed:""`
}

// change is one result of setup.
type change struct {
	What   string `json:"what"`
	Action string `json:"action"` // created, updated or unchanged
}

// Run creates or updates everything, and prints the changes. Without a NATS URL it sets up
// the 'jetpost up' on this machine, with the settings of that.
func (c *setupCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	if c.Replicas < 1 {
		return mistakes("cannot set up", fmt.Sprintf("--replicas: %d, want 1 at least", c.Replicas))
	}
	if cfg.NATS.URL == "" {
		if cfg, err = e.clientConfig(); err != nil {
			return err
		}
	}
	cfg.Refresh.Cron, cfg.NATS.Replicas = cmp.Or(cfg.Refresh.Cron, c.RefreshCron), c.Replicas
	cfg.NATS.JobsMiB, cfg.NATS.MediaMiB = cmp.Or(cfg.NATS.JobsMiB, c.JobsMiB), cmp.Or(cfg.NATS.MediaMiB, c.MediaMiB)
	restored, err := moment(c.RestoredFrom, true, time.Now())
	if err != nil || restored.After(time.Now()) {
		return mistakes("cannot set up", fmt.Sprintf("--restored-from: %q is no time that has passed", c.RestoredFrom))
	}
	cfg.Force = c.Force
	report, err := cfg.Setup(e.ctx, e.log)
	if err != nil {
		return err
	}
	if !restored.IsZero() {
		found, err := cfg.Restored(e.ctx, restored, e.log)
		if err != nil {
			return err
		}
		return e.show(found, restoredText(found))
	}
	changes := make([]change, len(report.Changes))
	for i, done := range report.Changes {
		changes[i] = change{What: done.What, Action: done.Action}
	}
	text := report.String()
	if !report.Walled {
		text += app.NoWalls + "\n  do: " + app.NoWallsAdvice + "\n"
	}
	return e.show(changes, text)
}

// healthCmd is 'jetpost health'.
type healthCmd struct {
	URL string `default:"http://127.0.0.1:8080/readyz" help:"URL to check."`
}

const (
	healthTimeout  = 5 * time.Second
	healthMaxBytes = 64 << 10
)

// Run fails unless the worker says that it is ready.
func (c *healthCmd) Run(e *env) error {
	client := &http.Client{Timeout: healthTimeout}
	req, err := http.NewRequestWithContext(e.ctx, http.MethodGet, c.URL, nil)
	if err != nil {
		return &exitError{code: exitUsage, err: err}
	}
	resp, err := client.Do(req)
	if err != nil {
		return &app.HintError{Err: fmt.Errorf("ask worker: %w", err), Help: "start the worker with --health-listen 127.0.0.1:8080, and name that address with --url"}
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	body, err := io.ReadAll(io.LimitReader(resp.Body, healthMaxBytes))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New("not ready: " + strings.TrimSpace(string(body)))
	}
	fmt.Fprintln(e.stdout, strings.TrimSpace(string(body)))
	return nil
}

// versionCmd is 'jetpost version'.
type versionCmd struct{}

// Run prints the version.
func (c *versionCmd) Run(e *env) error {
	build := app.ThisBuild()
	return e.say(build, "%s", build)
}
