package cli

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/consumers/admission"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// workFlags tune a worker, in 'up' and in 'worker'.
type workFlags struct {
	Roles         []string       `enum:"publish,refresh" default:"publish,refresh" help:"What this worker does: ${enum}."`
	Slots         int            `default:"16" help:"Accounts worked on at once."`
	Lease         time.Duration  `default:"60s" help:"How long an account stays with a worker that gives no heartbeat. Every margin of the publish path derives from it."`
	HealthListen  string         `placeholder:"ADDR" help:"Serve /healthz, /readyz and /statusz here."`
	Notify        string         `placeholder:"URL" help:"Post each change of what jetpost status says to this webhook, as JSON with a text. Give it to every worker: one of them tells."`
	RefreshWindow time.Duration  `default:"24h" help:"Refresh tokens that end within it."`
	RefreshBatch  int            `default:"10" help:"Tokens of one batch."`
	BatchTime     time.Duration  `name:"refresh-batch-time" default:"2m" help:"How long one batch may begin exchanges; the rest is left to the next round."`
	ExchangeLease time.Duration  `default:"30s" help:"How long a token stays with a worker that exchanges it and gives no heartbeat. Every margin of token care derives from it."`
	Lifeboat      string         `type:"path" placeholder:"DIR" help:"Where token pairs are kept, sealed, that X gave while the database was away; the next start brings them in (lifeboat in the data directory)."`
	SameText      string         `enum:"allow,warn,refuse" default:"warn" help:"What becomes of a request with a text that another account posts within a day, which X forbids: ${enum}."`
	PostsPerHour  int            `name:"max-posts-per-hour" placeholder:"N" help:"Let no account have more live posts within an hour; what is more waits. A longer thread goes out alone."`
	MinInterval   time.Duration  `placeholder:"DURATION" help:"Wait so long after an account's latest post before its next request is begun; posts of one thread do not wait."`
	ExpireAfter   time.Duration  `placeholder:"DURATION" help:"Fail a request that has not begun so long after it was due."`
	MediaAllow    []netip.Prefix `placeholder:"CIDR,..." help:"Private networks that media urls may reach all the same. Any producer can then read what is there."`
	WorkerName    string         `placeholder:"NAME" help:"Name of this worker in leases and logs."`
}

// Validate refuses what is no default but looks like one to the parts below.
func (f *workFlags) Validate() error {
	var wrong []error
	if f.Slots < 1 {
		wrong = append(wrong, fmt.Errorf("--slots: %d, want 1 at least", f.Slots))
	}
	if f.RefreshWindow <= 0 {
		wrong = append(wrong, fmt.Errorf("--refresh-window: %s, want a time above 0", f.RefreshWindow))
	}
	if f.BatchTime <= 0 {
		wrong = append(wrong, fmt.Errorf("--refresh-batch-time: %s, want a time above 0", f.BatchTime))
	}
	if f.RefreshBatch < 1 {
		wrong = append(wrong, fmt.Errorf("--refresh-batch: %d, want 1 at least", f.RefreshBatch))
	}
	return errors.Join(wrong...)
}

func (f workFlags) apply(cfg *app.Config, data string) {
	cfg.Roles, cfg.Slots, cfg.Lease, cfg.HealthListen = f.Roles, f.Slots, f.Lease, f.HealthListen
	cfg.Notify = f.Notify
	cfg.Refresh.Window, cfg.Refresh.Batch = f.RefreshWindow, f.RefreshBatch
	cfg.Refresh.BatchTime, cfg.Refresh.Lease = f.BatchTime, f.ExchangeLease
	cfg.Lifeboat = cmp.Or(f.Lifeboat, filepath.Join(data, "lifeboat"))
	cfg.MediaAllow, cfg.Worker = f.MediaAllow, f.WorkerName
	cfg.Rules.SameText = consumers.SameText(f.SameText)
	cfg.PostingLimits = admission.PostingLimits{PostsPerHour: f.PostsPerHour, MinInterval: f.MinInterval, ExpireAfter: f.ExpireAfter}
}

// upCmd is 'jetpost up'.
type upCmd struct {
	NATSListen   string `name:"nats-listen" default:"127.0.0.1:4222" placeholder:"ADDR" help:"Where NATS listens (${default})."`
	RefreshCron  string `default:"0 0 */6 * * *" placeholder:"CRON" help:"When due tokens are refreshed: six fields, seconds first (${default})."`
	Sim          bool   `help:"Use a simulated X, with accounts and a data directory of its own: nothing leaves this machine."`
	SimListen    string `default:"127.0.0.1:8090" placeholder:"ADDR" help:"Where the simulated X listens (${default})."`
	WebListen    string `placeholder:"ADDR" help:"Serve the pages with which customers connect their accounts here, for example on 127.0.0.1:8088."`
	scenarioFlag `embed:""`
	roomFlags    `embed:""`
	siteFlags    `embed:""`
	workFlags    `embed:""`
	connectFlags `embed:""`
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
	if c.Scenario != "" && !c.Sim {
		return mistakes("cannot play a scenario", "--scenario: is for a simulated X; add --sim")
	}
	scenario, err := c.read()
	if err != nil {
		return err
	}
	c.workFlags.apply(&cfg, e.data(c.Sim))
	c.siteFlags.apply(&cfg, c.WebListen)
	cfg.Refresh.Cron, cfg.NATS.JobsMiB, cfg.NATS.MediaMiB = c.RefreshCron, c.JobsMiB, c.MediaMiB
	instance := app.InstanceConfig{
		Config: cfg, Data: e.data(c.Sim), NATSListen: c.NATSListen,
		OnNewKey: func(path string) {
			fmt.Fprintf(e.stdout, "made %s: back it up, without it all tokens are lost\n", path)
		},
	}
	if c.Sim {
		// Where its memory was removed, its tokens must be none of those before: they may
		// be spent, and an import would know them again.
		instance.Sim = &xsim.Server{Seed: rand.Uint64(), Logger: e.log}
		instance.SimListen, instance.SimAccounts = c.SimListen, []string{"alice", "bob"}
	}
	h, err := app.Up(e.ctx, instance, e.log)
	if err != nil {
		return err
	}
	defer h.Close()
	if c.Sim {
		if err := instance.Sim.Play(scenario); err != nil { // now that its accounts are there
			return err
		}
	}
	c.welcome(e, h)
	return h.Run(e.ctx)
}

// welcome says on standard output what a newcomer needs next.
func (c *upCmd) welcome(e *env, h *app.Instance) {
	program := filepath.Base(os.Args[0])
	fmt.Fprintf(e.stdout, "NATS listens on %s\n", h.Config.NATS.URL)
	if site, ok := h.Site(); ok {
		fmt.Fprintln(e.stdout, siteText(site))
	}
	if !c.Sim {
		fmt.Fprintf(e.stdout, "next: %s accounts connect NAME\n", program)
		return
	}
	fmt.Fprintf(e.stdout, "simulated X on %s, with the accounts %s\n", h.SimURL, listed(h.SimAccounts))
	fmt.Fprintf(e.stdout, "see what is on it: %s/_sim/\n", h.SimURL)
	fmt.Fprintf(e.stdout, "try: %s publish %s 'Hello' --wait\n", program, h.SimAccounts[0])
}

// maxNamed bounds the names that one line tells.
const maxNamed = 10

// listed is a list of names as people write it: alice, bob and carol.
func listed(names []string) string {
	last := len(names) - 1
	switch {
	case last < 1:
		return strings.Join(names, "")
	case last >= maxNamed:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), len(names)-maxNamed)
	default:
		return strings.Join(names[:last], ", ") + " and " + names[last]
	}
}
