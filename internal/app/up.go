package app

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/web"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// simClientID is the app as which the simulated X knows us.
const simClientID = "simulator"

// InstanceConfig says what to run on one machine.
type InstanceConfig struct {
	Config
	Data       string // the data directory
	NATSListen string
	// Sim is a simulated X, served on SimListen; nil uses X itself.
	Sim       *xsim.Server
	SimListen string
	// SimAccounts are made in a new installation with a simulated X.
	SimAccounts []string
	// NoWorker leaves the work to processes of their own.
	NoWorker bool
	// OnNewKey, where set, is told the path of an encryption key as soon as it
	// is made: without it the tokens are lost, so it must be backed up.
	OnNewKey func(path string)
}

// Instance is everything on one machine: an embedded NATS, an embedded database,
// a worker and, if asked for, the pages for people and a simulated X.
type Instance struct {
	Config Config // of what runs: for further processes and commands
	SimURL string
	// SimAccounts are the names of the accounts with a simulated X.
	SimAccounts []string

	log    *slog.Logger
	dir    *DataDir
	nats   *NATSServer
	worker *Worker
	web    *Web
	// stopSim ends the simulated X, after everything that calls it.
	stopSim func()
}

// Up starts an instance. If it fails, everything that it started is closed again.
func Up(ctx context.Context, cfg InstanceConfig, log *slog.Logger) (_ *Instance, err error) {
	h := &Instance{log: log, Config: cfg.Config}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	if cfg.Sim != nil && !cfg.DatabaseURL.Empty() {
		return nil, &ConfigError{Mistakes: []string{"--sim: keeps its accounts in a database of its own, but DATABASE_URL is set; unset it"}}
	}
	if h.dir, err = OpenDataDir(cfg.Data); err != nil {
		return nil, err
	}
	if err := h.dir.Settle(cfg.Sim != nil); err != nil {
		return nil, err
	}
	if err := h.findKeys(cfg); err != nil {
		return nil, err
	}
	if h.Config.DatabaseURL.Empty() {
		h.Config.DatabaseURL = h.dir.DatabaseURL()
	}
	h.Config.Lifeboat = cmp.Or(h.Config.Lifeboat, filepath.Join(cfg.Data, lifeboatDir))
	if cfg.Sim != nil {
		if err := h.startSim(ctx, cfg); err != nil {
			return nil, err
		}
	}
	h.Config.natsDir = filepath.Join(cfg.Data, natsDir)
	// Everything that can be found wrong is found before NATS starts.
	if err := h.Config.enoughRoom(); err != nil {
		return nil, err
	}
	if err := h.Config.validate(needs{database: true, keys: true, x: !cfg.NoWorker, web: cfg.Web.Listen != ""}); err != nil {
		return nil, hintSim(h.Config, err)
	}
	names, err := jetpost.NewNames(cfg.NATS.Prefix)
	if err != nil {
		return nil, &ConfigError{Mistakes: []string{"JETPOST_PREFIX: " + err.Error()}}
	}
	nats, natsConfig, err := StartNATS(ctx, cfg.Data, cfg.NATSListen, names, log)
	if err != nil {
		return nil, err
	}
	h.nats = nats
	natsConfig.Prefix, natsConfig.JobsMiB, natsConfig.MediaMiB = cfg.NATS.Prefix, cfg.NATS.JobsMiB, cfg.NATS.MediaMiB
	h.Config.NATS = natsConfig
	h.Config.instance = h.dir.installation()
	setup := h.Config
	setup.Force = true // only the one that holds the directory runs here; the last one may have been killed just now
	if _, err := setup.Setup(ctx, log); err != nil {
		return nil, err
	}
	if cfg.Sim != nil {
		if err := h.peopleSim(ctx, cfg); err != nil {
			return nil, err
		}
	}
	if !cfg.NoWorker {
		if h.worker, err = NewWorker(ctx, h.Config, log); err != nil {
			return nil, err
		}
	}
	if cfg.Web.Listen != "" {
		if h.web, err = NewWeb(ctx, h.Config, log); err != nil {
			return nil, err
		}
	}
	running := connection{
		NATSURL: natsConfig.URL, User: natsConfig.User, Password: natsConfig.Password.Reveal(), Prefix: cfg.NATS.Prefix,
		Database: h.Config.DatabaseURL.Reveal(), X: h.Config.X.URL, ClientID: h.Config.X.ClientID,
		Confidential: !h.Config.X.ClientSecret.Empty(), Enterprise: h.Config.Rules.Enterprise,
		RefreshCron: cfg.Refresh.Cron, JobsMiB: cfg.NATS.JobsMiB, MediaMiB: cfg.NATS.MediaMiB,
	}
	if site, ok := h.Site(); ok {
		running.PublicURL, running.ReturnHosts = site.Public.String(), site.ReturnHosts
	}
	return h, h.dir.announce(running)
}

// findKeys takes the directory's key where the configuration has none.
func (h *Instance) findKeys(cfg InstanceConfig) error {
	if !h.Config.Keys.Empty() {
		return nil
	}
	keys, made, err := h.dir.Keys()
	if made && cfg.OnNewKey != nil {
		cfg.OnNewKey(filepath.Join(cfg.Data, keyFile))
	}
	h.Config.Keys = keys
	return err
}

// hintSim tells those who have no app yet how to begin without one.
func hintSim(c Config, err error) error {
	if c.X.ClientID != "" {
		return err
	}
	return &HintError{Err: err, Help: "set X_CLIENT_ID, or begin without an app of your own: jetpost up --sim"}
}

// startSim serves the simulated X and points the configuration at it.
func (h *Instance) startSim(ctx context.Context, cfg InstanceConfig) error {
	listener, err := Listen(ctx, cfg.SimListen, "--sim-listen")
	if err != nil {
		return err
	}
	if err := h.dir.KeepSim(cfg.Sim); err != nil {
		_ = listener.Close() // nobody has called yet
		return err
	}
	simCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := Serve(simCtx, listener, cfg.Sim); err != nil {
			h.log.Error("sim.failed", "error", err)
		}
	}()
	h.stopSim = func() {
		stop()
		<-ended
		_ = cfg.Sim.Close() // each answer was kept before it was given
	}
	h.SimURL = "http://" + reachable(listener.Addr())
	h.Config.X = XConfig{URL: h.SimURL, ClientID: simClientID, Minute: h.Config.X.Minute}
	return nil
}

// reachable is how this machine reaches what listens on an address.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr.String()
	}
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(tcp.Port))
}

// peopleSim makes the simulator know the accounts of a ledger whose X was forgotten, and
// in a new ledger the accounts that were asked for.
func (h *Instance) peopleSim(ctx context.Context, cfg InstanceConfig) error {
	ledger, err := h.Config.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = ledger.Close() }() // nothing is pending
	known, err := ledger.Accounts(ctx)
	if err != nil {
		return databaseError(err)
	}
	wanted := make([]xsim.NewAccount, 0, len(known)+len(cfg.SimAccounts))
	names := map[string]string{} // by handle
	disconnected := map[string]bool{}
	for _, a := range known {
		disconnected[a.Name] = a.Disconnected()
		names[a.Username] = a.Name
		if _, remembered := cfg.Sim.CurrentToken(a.XUserID); !remembered {
			wanted = append(wanted, xsim.NewAccount{Handle: a.Username, ID: a.XUserID})
		}
	}
	if len(known) == 0 {
		for _, name := range cfg.SimAccounts {
			wanted = append(wanted, xsim.NewAccount{Handle: name})
			names[name] = name
		}
	}
	h.SimAccounts = slices.Sorted(maps.Values(names))
	conn, err := h.Config.Connect(ctx, h.log, "jetpost up")
	if err != nil {
		return err
	}
	defer conn.Close()
	importer := Importer{Ledger: ledger, NATS: conn, XURL: h.SimURL}
	for _, account := range wanted {
		grant, err := cfg.Sim.AddAccount(account)
		if err != nil {
			return fmt.Errorf("make account %s in the simulator: %w", account.Handle, err)
		}
		line := ImportLine{
			Name: names[account.Handle], AccessToken: grant.AccessToken, RefreshToken: grant.RefreshToken,
			ExpiresAt: time.Now().Add(time.Duration(grant.ExpiresIn) * time.Second),
		}
		if disconnected[line.Name] {
			continue // and stays so until somebody connects it
		}
		if _, err := importer.Import(ctx, line); err != nil {
			return err
		}
	}
	return nil
}

// Site is where the pages for people are, if there are any.
func (h *Instance) Site() (web.Site, bool) {
	if h.web == nil {
		return web.Site{}, false
	}
	return h.web.Site, true
}

// DashboardURL is where the dashboard is, or "" where none is served.
func (h *Instance) DashboardURL() string {
	if h.web == nil {
		return ""
	}
	return h.web.DashboardURL()
}

// LoginNeeded tells that the dashboard asks for a login.
func (h *Instance) LoginNeeded() bool { return h.web != nil && h.web.LoginNeeded() }

// Run works until the context ends. It fails with BrokenError where NATS has to be
// started anew.
func (h *Instance) Run(ctx context.Context) error {
	parts, ctx := errgroup.WithContext(ctx)
	if h.worker != nil {
		parts.Go(func() error { return h.worker.Run(ctx) })
	}
	if h.web != nil {
		parts.Go(func() error { return h.web.Run(ctx) })
	}
	parts.Go(func() error { return h.nats.watch(ctx, h.Config.enoughRoom) })
	return parts.Wait()
}

// Close stops what Up started, in the order that loses nothing.
func (h *Instance) Close() {
	if h.web != nil {
		h.web.Close()
	}
	if h.worker != nil {
		h.worker.Close()
	}
	if h.nats != nil {
		h.dir.withdraw()
		h.nats.Shutdown()
		h.nats.WaitForShutdown()
	}
	if h.stopSim != nil {
		h.stopSim()
	}
	if h.dir != nil {
		_ = h.dir.Close() // the lock ends with the process at the latest
	}
}
