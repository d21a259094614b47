package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// workFlags tune a worker, in 'up' and in 'worker'.
type workFlags struct {
	Roles         []string      `enum:"publish,refresh" default:"publish,refresh" help:"What this worker does: ${enum}."`
	Slots         int           `default:"16" help:"Accounts worked on at once."`
	Lease         time.Duration `default:"60s" help:"How long an account stays with a worker that gives no sign of life. Every margin of the publish path derives from it."`
	HealthListen  string        `placeholder:"ADDR" help:"Serve /healthz and /readyz here."`
	RefreshWindow time.Duration `default:"24h" help:"Refresh tokens that end within it."`
	RefreshBatch  int           `default:"10" help:"Tokens of one batch."`
	PrivateMedia  bool          `help:"Let media urls reach private networks. Any producer can then read what this machine can reach."`
	WorkerName    string        `placeholder:"NAME" help:"Name of this worker in leases and logs."`
}

func (f workFlags) apply(cfg *app.Config) {
	cfg.Roles, cfg.Slots, cfg.Lease, cfg.HealthListen = f.Roles, f.Slots, f.Lease, f.HealthListen
	cfg.Refresh.Window, cfg.Refresh.Batch = f.RefreshWindow, f.RefreshBatch
	cfg.AllowPrivateMedia, cfg.Worker = f.PrivateMedia, f.WorkerName
}

// upCmd is 'jetpost up'.
type upCmd struct {
	NATSListen  string `name:"nats-listen" default:"127.0.0.1:4222" placeholder:"ADDR" help:"Where NATS listens (${default})."`
	RefreshCron string `default:"0 0 */6 * * *" placeholder:"CRON" help:"When due tokens are refreshed: six fields, seconds first (${default})."`
	Sim         bool   `help:"Use a simulated X: nothing leaves this machine. Do not mix it with real accounts in one data directory."`
	SimListen   string `default:"127.0.0.1:8090" placeholder:"ADDR" help:"Where the simulated X listens (${default})."`
	workFlags   `embed:""`
}

// Run runs everything until it is told to stop.
func (c *upCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	if cfg.NATS.URL != "" {
		return &exitError{code: exitUsage, err: &app.HintError{
			Err: fmt.Errorf("'up' brings its own NATS, but NATS_URL is set"), Help: "unset NATS_URL, or run: jetpost worker",
		}}
	}
	c.apply(&cfg)
	cfg.Refresh.Cron = c.RefreshCron
	house := app.HouseConfig{Config: cfg, Data: e.data(), NATSListen: c.NATSListen}
	if c.Sim {
		house.Sim, house.SimListen, house.SimAccounts = &xsim.Server{}, c.SimListen, []string{"alice", "bob"}
	}
	h, err := app.Up(e.ctx, house, e.log)
	if err != nil {
		return err
	}
	defer h.Close()
	c.welcome(e, h)
	return h.Run(e.ctx)
}

// welcome says on standard output what a newcomer needs next.
func (c *upCmd) welcome(e *env, h *app.House) {
	if h.KeyNew {
		fmt.Fprintf(e.stdout, "made %s: back it up, without it all tokens are lost\n", filepath.Join(e.data(), "encryption.key"))
	}
	fmt.Fprintf(e.stdout, "NATS listens on %s\n", h.Config.NATS.URL)
	if c.Sim {
		fmt.Fprintf(e.stdout, "simulated X on %s, with the accounts alice and bob\n", h.SimURL)
		fmt.Fprintf(e.stdout, "try: %s publish alice 'Hello' --wait\n", filepath.Base(os.Args[0]))
		return
	}
	fmt.Fprintf(e.stdout, "next: %s accounts import < accounts.jsonl\n", filepath.Base(os.Args[0]))
}
