package cli

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// workFlags configure a worker, in 'up' and in 'worker'.
type workFlags struct {
	Roles               []string      `enum:"publish,refresh" default:"publish,refresh" help:"Roles of this worker: ${enum}."`
	Slots               int           `default:"16" help:"Number of accounts that the worker processes at once."`
	Lease               time.Duration `default:"60s" help:"Lease of an account: how long it stays with a worker that no longer renews it. All margins of the publish path derive from it."`
	HealthListen        string        `placeholder:"ADDR" help:"Listening address for /healthz, /readyz, /statusz and /metrics. Default: none."`
	Pprof               string        `placeholder:"ADDR" help:"Loopback address for profiles, at /debug/pprof/. They show what is in memory. Default: none."`
	Notify              string        `placeholder:"URL" help:"Webhook for each change of the status, as JSON with a text. Set it on every worker; only one of them posts."`
	RefreshWindow       time.Duration `default:"24h" help:"Refresh tokens that end within this time."`
	RefreshBatch        int           `default:"10" help:"Number of tokens in a refresh batch."`
	BatchTime           time.Duration `name:"refresh-batch-time" default:"2m" help:"How long a batch may start new exchanges. The other tokens are left to the next round."`
	ExchangeLease       time.Duration `default:"30s" help:"Lease of a token during its exchange. All margins of token care derive from it."`
	Lifeboat            string        `type:"path" placeholder:"DIR" help:"Directory for new token pairs, encrypted, until the database has stored them. It must outlive the worker. Default: lifeboat in the data directory."`
	SameText            string        `enum:"allow,warn,refuse" default:"warn" help:"How to treat a request with a text that another account posts within a day, which X forbids: ${enum}."`
	MonthlyLimit        float64       `placeholder:"USD" help:"Highest estimated cost of all accounts' posts in a month, in US dollars; further requests wait for the next month. Default: no limit."`
	AccountMonthlyLimit float64       `placeholder:"USD" help:"The same for each account that has no limit of its own ('jetpost accounts limit'). Default: no limit."`

	PostsPerHour int           `name:"max-posts-per-hour" placeholder:"N" help:"Highest number of posts per account and hour; further requests wait. A longer thread goes out alone. Default: no limit."`
	MinInterval  time.Duration `placeholder:"DURATION" help:"Shortest time between an account's latest post and the start of its next request. It does not apply within a thread. Default: none."`
	ExpireAfter  time.Duration `placeholder:"DURATION" help:"Fail a request, as expired, if it has not started this long after it was due. Default: never."`
	keepFlag     `embed:""`
	MediaAllow   []netip.Prefix `placeholder:"CIDR" help:"Private networks that media URLs and webhooks may reach. Any producer can then read from them."`
	WorkerName   string         `placeholder:"NAME" help:"Name of this worker in leases and logs."`
}

// Validate rejects values that the parts below treat as unset.
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
	cfg.Notify, cfg.Pprof = f.Notify, f.Pprof
	cfg.Refresh.Window, cfg.Refresh.Batch = f.RefreshWindow, f.RefreshBatch
	cfg.Refresh.BatchTime, cfg.Refresh.Lease = f.BatchTime, f.ExchangeLease
	cfg.Lifeboat = cmp.Or(f.Lifeboat, filepath.Join(data, "lifeboat"))
	cfg.KeepFinished = time.Duration(f.KeepFinished)
	cfg.MediaAllow, cfg.Worker = f.MediaAllow, f.WorkerName
	cfg.Rules.SameText = consumers.SameText(f.SameText)
	cfg.Budget = consumers.Budget{App: micros(f.MonthlyLimit), Account: micros(f.AccountMonthlyLimit)}
	cfg.PostingLimits = consumers.PostingLimits{PostsPerHour: f.PostsPerHour, MinInterval: f.MinInterval, ExpireAfter: f.ExpireAfter}
}

// micros is an amount in US dollars in millionths.
func micros(usd float64) int64 { return int64(math.Round(usd * store.MicrosPerDollar)) }

// upCmd is 'jetpost up'.
type upCmd struct {
	NATSListen     string `name:"nats-listen" default:"127.0.0.1:4222" placeholder:"ADDR" help:"Listening address of NATS (${default})."`
	RefreshCron    string `default:"0 0 */6 * * *" placeholder:"CRON" help:"Schedule of token refreshes: six fields, seconds first (${default})."`
	Sim            bool   `help:"Use a simulated X, with accounts and a data directory of its own (${simdata}). Nothing leaves this machine."`
	SimListen      string `default:"127.0.0.1:8090" placeholder:"ADDR" help:"Listening address of the simulated X (${default})."`
	WebListen      string `placeholder:"ADDR" help:"Listening address of the pages on which customers connect their accounts, for example 127.0.0.1:8088. Default: none; with --sim 127.0.0.1:8088, or another port where it is in use, with the dashboard. 'off' serves none."`
	scenarioFlag   `embed:""`
	roomFlags      `embed:""`
	siteFlags      `embed:""`
	dashboardFlags `embed:""`
	workFlags      `embed:""`
	dataFlags      `embed:""`
	prefixFlag     `embed:""`
	xURLFlag       `embed:""`
	clientFlag     `embed:""`
	tierFlag       `embed:""`

	anyPort bool   // the pages may have another port than the usual one
	newKey  string // path of a key that was made
}

// AfterApply passes on the connection flags that it uses: NATS is its own.
func (c *upCmd) AfterApply(chosen *connectFlags) error {
	chosen.dataFlags, chosen.prefixFlag, chosen.xURLFlag = c.dataFlags, c.prefixFlag, c.xURLFlag
	chosen.clientFlag, chosen.tierFlag = c.clientFlag, c.tierFlag
	return nil
}

const (
	// usualPages is where the dashboard of a simulated X is, unless it is in use.
	usualPages = "127.0.0.1:8088"
	// noPages is the address of none.
	noPages = "off"
)

// servePages has a simulated X come with its dashboard, unless somebody says otherwise.
func (c *upCmd) servePages() {
	switch {
	case c.WebListen == noPages:
		c.WebListen = ""
	case c.WebListen == "" && c.PublicURL == "" && c.Sim:
		c.WebListen, c.Dashboard, c.anyPort = usualPages, true, true
	}
}

// Run runs everything until it is told to stop.
func (c *upCmd) Run(e *env) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	if os.Getenv("NATS_URL") != "" {
		return &exitError{code: exitUsage, err: &app.HintError{
			Err: fmt.Errorf("'up' runs its own NATS, but NATS_URL is set"), Help: "unset NATS_URL, or run: jetpost worker",
		}}
	}
	if c.Scenario != "" && !c.Sim {
		return mistakes("cannot play a scenario", "--scenario: is for a simulated X; add --sim")
	}
	scenario, err := c.read()
	if err != nil {
		return err
	}
	if cfg.Traces, err = e.traces(); err != nil {
		return err
	}
	c.workFlags.apply(&cfg, e.data(c.Sim))
	c.servePages()
	if c.Dashboard && c.WebListen == "" {
		return mistakes("cannot serve the dashboard", "--dashboard: needs an address; add --web-listen 127.0.0.1:8088")
	}
	c.siteFlags.apply(&cfg, c.WebListen)
	c.dashboardFlags.apply(&cfg)
	cfg.Web.AnyPort = c.anyPort
	cfg.Refresh.Cron, cfg.NATS.JobsMiB, cfg.NATS.MediaMiB = c.RefreshCron, c.JobsMiB, c.MediaMiB
	instance := app.InstanceConfig{
		Config: cfg, Data: e.data(c.Sim), NATSListen: c.NATSListen,
		OnNewKey: func(path string) {
			if c.newKey = path; !c.Sim {
				c.tellKey(e)
			}
		},
	}
	if c.Sim {
		// If its stored data was removed, its tokens must differ from the earlier ones: those
		// may be spent, and an import recognises them.
		instance.Sim = &xsim.Server{Seed: rand.Uint64(), Logger: e.log}
		instance.SimListen, instance.SimAccounts = c.SimListen, []string{"alice", "bob"}
	}
	h, err := app.Up(e.ctx, instance, e.log)
	if err != nil {
		if c.Sim && c.newKey != "" { // which is the dashboard's turn else
			c.tellKey(e)
		}
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

// tellKey asks for a backup of a new key.
func (c *upCmd) tellKey(e *env) {
	fmt.Fprintf(e.stdout, "made %s: back it up; without it all tokens are lost\n", c.newKey)
}

// welcome prints the next steps, and first where the dashboard is.
func (c *upCmd) welcome(e *env, h *app.Instance) {
	program := filepath.Base(os.Args[0])
	tellDashboard(e, h.DashboardURL(), h.LoginNeeded())
	fmt.Fprintf(e.stdout, "NATS listens on %s\n", h.Config.NATS.URL)
	if site, ok := h.Site(); ok && !c.anyPort {
		fmt.Fprintln(e.stdout, siteText(site))
	}
	if c.Sim && c.newKey != "" {
		c.tellKey(e)
	}
	if !c.Sim {
		fmt.Fprintf(e.stdout, "next: %s accounts connect NAME\n", program)
		return
	}
	fmt.Fprintf(e.stdout, "simulated X on %s, with the accounts %s\n", h.SimURL, listed(h.SimAccounts))
	fmt.Fprintf(e.stdout, "its posts and accounts: %s/_sim/\n", h.SimURL)
	fmt.Fprintf(e.stdout, "try: %s publish %s 'Hello' --wait\n", program, h.SimAccounts[0])
}

// maxNamed bounds the names in one line.
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
