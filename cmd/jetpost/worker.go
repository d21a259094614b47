package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// workerCmd is 'jetpost worker'.
type workerCmd struct {
	workFlags `embed:""`
}

// Run works until it is told to stop.
func (c *workerCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	c.apply(&cfg)
	w, err := app.NewWorker(e.ctx, cfg, e.log)
	if err != nil {
		return err
	}
	defer w.Close()
	return w.Run(e.ctx)
}

// setupCmd is 'jetpost setup'.
type setupCmd struct {
	RefreshCron string `default:"0 0 */6 * * *" placeholder:"CRON" help:"When due tokens are refreshed: six fields, seconds first (${default})."`
}

// Run makes or updates everything, and says what it did.
func (c *setupCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	cfg.Refresh.Cron = c.RefreshCron
	report, err := cfg.Setup(e.ctx, e.log)
	if err != nil {
		return err
	}
	fmt.Fprintln(e.stdout, strings.TrimSpace(report.String()))
	return nil
}

// simCmd is 'jetpost sim'.
type simCmd struct {
	Listen string `default:"127.0.0.1:8090" placeholder:"ADDR" help:"Where to listen (${default})."`
}

// Run serves the simulator until it is told to stop.
func (c *simCmd) Run(e *env) error {
	listener, err := app.Listen(e.ctx, c.Listen, "--listen")
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "simulated X on http://%s\n", listener.Addr())
	return app.Serve(e.ctx, listener, &xsim.Server{Logger: e.log})
}

// healthCmd is 'jetpost health'.
type healthCmd struct {
	URL string `default:"http://127.0.0.1:8080/readyz" help:"What to ask (${default})."`
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
		return &app.HintError{Err: fmt.Errorf("ask worker: %w", err), Help: "is it started with --health-listen?"}
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
	_, err := fmt.Fprintln(e.stdout, app.Version())
	return err
}
