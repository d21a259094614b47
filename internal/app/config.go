package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/telemetry"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/postgres"
	"github.com/jetpost/jetpost/store/sqlite"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// DefaultSlots is how many lanes one worker runs at once.
	DefaultSlots = consumers.DefaultSlots
	// MaxSlots bounds it: each slot holds a pull request and at times a
	// database connection.
	MaxSlots = 1024
	// connectTimeout bounds each first connection of a start.
	connectTimeout = 5 * time.Second
	// natsPing is how often a connection to NATS is checked. After natsPings without an
	// answer, in a cluster, another server is taken: one that is cut off closes nothing.
	natsPing  = 5 * time.Second
	natsPings = 2
)

// The roles of a worker.
const (
	RolePublish = consumers.RolePublish
	RoleRefresh = consumers.RoleRefresh
)

// Config is everything that the parts need to know. Validate lists every
// mistake in it.
type Config struct {
	NATS NATSConfig
	// DatabaseURL is postgres://... or sqlite:PATH.
	DatabaseURL secret.String
	// Keys encrypt tokens: 64 hex digits each, comma-separated. The first one encrypts.
	Keys secret.String
	X    XConfig

	Roles []string // RolePublish, RoleRefresh; all where empty
	Slots int      // DefaultSlots where zero
	// Lease is how long a lane belongs to a worker that gives no heartbeat;
	// every margin derives from it. consumers.DefaultLease where zero.
	Lease time.Duration
	// HealthListen is the address of /healthz, /readyz, /statusz and /metrics; none if empty.
	HealthListen string
	// Pprof is the loopback address of /debug/pprof/; none if empty.
	Pprof string
	// Notify is the webhook for each change of the verdict; none if empty.
	Notify  string
	Refresh RefreshConfig
	// Lifeboat is the directory for token pairs that X gave while the database
	// was away. It should outlive the process.
	Lifeboat string
	Web      WebConfig
	// Rules are those of X that requests must follow, and PostingLimits the operator's own.
	Rules         consumers.Rules
	PostingLimits consumers.PostingLimits
	// Budget is what posts of a month may cost.
	Budget consumers.Budget
	// KeepFinished is how long finished requests are kept whole; 0 keeps them forever.
	KeepFinished time.Duration
	// MediaAllow are private networks that media URLs and webhooks may reach.
	MediaAllow []netip.Prefix
	// Traces makes spans of a worker's work, and is closed with the worker; nil makes none.
	Traces *telemetry.Traces
	// Worker names this worker in leases and logs; generated if empty.
	Worker string
	// Force has Setup change the schema although workers run that it stops.
	Force bool
	// instance names the 'jetpost up' of this configuration; "" if there is none.
	instance string
	// natsDir is the store directory of an embedded NATS; "" if there is none.
	natsDir string
}

// NATSConfig says how to reach NATS.
type NATSConfig struct {
	URL      string
	User     string
	Password secret.String
	Creds    string // path of a credentials file
	NKey     string // path of a file with an nkey's seed
	CA       string // path of the certificates that the server's is checked against
	Cert     string // path of our own certificate, whose key is in CertKey
	CertKey  string
	Prefix   string // JETPOST_PREFIX
	Replicas int
	// JobsMiB and MediaMiB are the room for jobs that no worker has taken and for media;
	// 0 for the defaults.
	JobsMiB, MediaMiB int64
	// InProcess connects without a socket, to a server that this process runs.
	InProcess nats.InProcessConnProvider
}

// XConfig says how to reach X, and as which app.
type XConfig struct {
	URL          string // xapi.DefaultBaseURL where empty
	ClientID     string
	ClientSecret secret.String
	// NeedsSecret tells that what runs uses a client secret, so that who joins it
	// must have it too.
	NeedsSecret bool
	// Minute is how long a minute of a simulated X takes (consumers.Scale), for
	// tests and the demo. Beside the real X it is a mistake.
	Minute time.Duration
}

// RefreshConfig tunes token care.
type RefreshConfig struct {
	Cron   string        // publishers' default where empty
	Window time.Duration // consumers.DefaultRefreshWindow where zero
	Batch  int           // consumers.DefaultRefreshBatch where zero
	// BatchTime is how long one batch may begin exchanges;
	// consumers.DefaultRefreshBatchTime where zero.
	BatchTime time.Duration
	// Lease is how long a token belongs to a worker that exchanges it; every
	// margin of token care derives from it. consumers.DefaultExchangeLease where
	// zero.
	Lease time.Duration
}

// HintError is an error that tells what to try.
type HintError struct {
	Err  error
	Help string
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

// Hint tells the operator what to try.
func (e *HintError) Hint() string { return e.Help }

// Hint returns what an operator can try about an error, from whatever part it
// comes, or "".
func Hint(err error) string { return publishers.Hint(err) }

// ConfigError lists every mistake of a configuration.
type ConfigError struct{ Mistakes []string }

func (e *ConfigError) Error() string {
	if len(e.Mistakes) == 1 {
		return "configuration: " + e.Mistakes[0]
	}
	return "configuration:\n  " + strings.Join(e.Mistakes, "\n  ")
}

// Hint tells the operator where to correct them.
func (e *ConfigError) Hint() string {
	return "correct the environment or the flags; both are explained by: jetpost --help"
}

// needs are the parts of a Config that a command uses.
type needs struct{ nats, database, keys, x, web bool }

// Validate checks what a worker needs.
func (c Config) Validate() error {
	return c.validate(needs{nats: true, database: true, keys: true, x: true})
}

func (c Config) validate(n needs) error {
	var mistakes []string
	wrong := func(format string, args ...any) { mistakes = append(mistakes, fmt.Sprintf(format, args...)) }
	if n.nats {
		if c.NATS.InProcess == nil {
			for address := range strings.SplitSeq(c.NATS.URL, ",") {
				checkURL(wrong, "NATS_URL", strings.TrimSpace(address), "nats://host:4222", "nats", "tls", "ws", "wss")
			}
		}
		if _, err := jetpost.NewNames(c.NATS.Prefix); err != nil {
			wrong("JETPOST_PREFIX: %v", err)
		}
		c.NATS.checkFiles(wrong)
	}
	if n.database {
		if _, _, err := databaseKind(c.DatabaseURL.Reveal()); err != nil {
			wrong("DATABASE_URL: %v", err)
		}
	}
	if n.keys {
		if c.Keys.Empty() {
			wrong("HUB_ENCRYPTION_KEY: is missing; make one with: jetpost keys generate")
		} else if _, err := store.NewSealer(c.Keys.Reveal()); err != nil {
			wrong("%v", err)
		}
	}
	if n.x {
		if c.X.ClientID == "" {
			wrong("X_CLIENT_ID: is missing; it is the OAuth 2.0 client id of your app in X's developer console")
		}
		if c.X.NeedsSecret && c.X.ClientSecret.Empty() {
			wrong("X_CLIENT_SECRET: is missing, but the jetpost that runs here has one; set it here too")
		}
		if c.X.URL != "" {
			checkURL(wrong, "X_API_URL", c.X.URL, xapi.DefaultBaseURL, "http", "https")
		}
		if c.X.Minute != 0 && !c.X.simulated() {
			wrong("%s: is for a simulated X, whose time passes as fast as one likes; unset it", SimMinuteVariable)
		}
	}
	if n.web {
		c.Web.check(wrong)
	}
	for _, role := range c.Roles {
		if role != RolePublish && role != RoleRefresh {
			wrong("roles: %q is not a role; use %s, %s or both", role, RolePublish, RoleRefresh)
		}
	}
	if c.Slots < 0 || c.Slots > MaxSlots {
		wrong("slots: %d is not within 1 and %d", c.Slots, MaxSlots)
	}
	if c.Refresh.Window < 0 {
		wrong("refresh window: %s is negative", c.Refresh.Window)
	}
	if c.Refresh.Batch < 0 {
		wrong("refresh batch: %d is negative", c.Refresh.Batch)
	}
	if c.Refresh.BatchTime < 0 {
		wrong("refresh batch time: %s is negative", c.Refresh.BatchTime)
	}
	if c.Refresh.Lease != 0 && c.Refresh.Lease < consumers.MinLease {
		wrong("exchange lease: %s is shorter than %s", c.Refresh.Lease, consumers.MinLease)
	}
	if n := c.PostingLimits.PostsPerHour; n < 0 || n > admission.MaxPostsPerHour {
		wrong("max posts per hour: %d is not within 1 and %d, nor 0, which is no limit", n, admission.MaxPostsPerHour)
	}
	if c.Budget.App < 0 || c.Budget.Account < 0 {
		wrong("monthly limits: are negative; want US dollars, or 0, which is no limit")
	}
	if c.PostingLimits.MinInterval < 0 {
		wrong("min interval: %s is negative", c.PostingLimits.MinInterval)
	}
	if d := c.PostingLimits.ExpireAfter; d != 0 && d < admission.MinExpireAfter {
		wrong("expire after: %s is shorter than %s", d, admission.MinExpireAfter)
	}
	if d := c.KeepFinished; d != 0 && d < store.MinKeepFinished {
		wrong("keep finished: %s is shorter than 7d, which limits and checks of recent posts need; 0 keeps all", d)
	}
	if c.Lease != 0 && c.Lease < consumers.MinLease {
		wrong("lease: %s is shorter than %s", c.Lease, consumers.MinLease)
	}
	if c.Pprof != "" && !listensOnLoopback(c.Pprof) {
		wrong("pprof: %q is no loopback address, such as 127.0.0.1:6060; profiles show what is in memory", c.Pprof)
	}
	if c.Notify != "" && CheckNotify(c.Notify) != nil {
		wrong("notify: is no http or https URL")
	}
	if len(mistakes) > 0 {
		return &ConfigError{Mistakes: mistakes}
	}
	return nil
}

// checkFiles checks that the files of the connection exist.
func (c NATSConfig) checkFiles(wrong func(string, ...any)) {
	for _, file := range []struct{ name, path string }{
		{"NATS_CREDS", c.Creds}, {"NATS_NKEY", c.NKey}, {"NATS_CA", c.CA}, {"NATS_CERT", c.Cert}, {"NATS_KEY", c.CertKey},
	} {
		if file.path == "" {
			continue
		}
		if _, err := os.Stat(file.path); err != nil {
			wrong("%s: %v", file.name, err)
		}
	}
	if (c.Cert == "") != (c.CertKey == "") {
		wrong("NATS_CERT and NATS_KEY: only one is set; a certificate needs its key")
	}
	logins := 0
	for _, login := range []string{c.User, c.Creds, c.NKey} {
		if login != "" {
			logins++
		}
	}
	if logins > 1 {
		wrong("NATS_USER, NATS_CREDS and NATS_NKEY: more than one is set; keep one")
	}
}

// options are how a connection logs in, and what it trusts.
func (c NATSConfig) options() ([]nats.Option, error) {
	var opts []nats.Option
	if c.User != "" {
		opts = append(opts, nats.UserInfo(c.User, c.Password.Reveal()))
	}
	if c.Creds != "" {
		opts = append(opts, nats.UserCredentials(c.Creds))
	}
	if c.NKey != "" {
		nkey, err := nats.NkeyOptionFromSeed(c.NKey)
		if err != nil {
			// The library's error may hold a part of the file.
			return nil, &ConfigError{Mistakes: []string{fmt.Sprintf("NATS_NKEY: %s holds no seed of a user's nkey", c.NKey)}}
		}
		opts = append(opts, nkey)
	}
	if c.CA != "" {
		opts = append(opts, nats.RootCAs(c.CA))
	}
	if c.Cert != "" {
		opts = append(opts, nats.ClientCert(c.Cert, c.CertKey))
	}
	if c.InProcess != nil {
		opts = append(opts, nats.InProcessServer(c.InProcess))
	}
	return opts, nil
}

func checkURL(wrong func(string, ...any), name, value, example string, schemes ...string) {
	if value == "" {
		wrong("%s: is missing; for example %s", name, example)
		return
	}
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		wrong("%s: is not a URL; for example %s", name, example)
		return
	}
	for _, s := range schemes {
		if u.Scheme == s {
			return
		}
	}
	wrong("%s: begins with %q; for example %s", name, u.Scheme, example)
}

// SimMinuteVariable is the one switch that scales the margins which belong to X. It is
// no flag, and does nothing but with a simulated X.
const SimMinuteVariable = "JETPOST_SIM_MINUTE"

// simulatorPath is answered by a simulated X, and not by X.
const simulatorPath = "/_sim/healthz"

// simulated tells whether X may be a simulated one: X itself is https alone.
func (x XConfig) simulated() bool {
	u, err := url.Parse(x.URL)
	return err == nil && u.Scheme == "http"
}

// checkMinute refuses shorter minutes where X does not say that it is simulated.
func (x XConfig) checkMinute(ctx context.Context) error {
	if x.Minute == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, x.URL+simulatorPath, nil)
	if err != nil {
		return fmt.Errorf("ask the simulated X: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		err = resp.Body.Close()
	}
	switch {
	case err != nil:
		return &HintError{fmt.Errorf("ask the simulated X: %w", err), "start it, or unset " + SimMinuteVariable}
	case resp.StatusCode != http.StatusOK:
		return &HintError{fmt.Errorf("%s answers %s to GET %s, and so is no simulated X", x.URL, resp.Status, simulatorPath), "unset " + SimMinuteVariable}
	default:
		return nil
	}
}

// databaseKind tells which store a URL is for, and what to open.
func databaseKind(address string) (kind, target string, err error) {
	switch {
	case address == "":
		return "", "", errors.New("is missing; for example postgres://user:password@host:5432/jetpost or sqlite:/var/lib/jetpost/jetpost.db")
	case strings.HasPrefix(address, "postgres://"), strings.HasPrefix(address, "postgresql://"):
		return "postgres", address, nil
	case strings.HasPrefix(address, "sqlite:") && address != "sqlite:":
		return "sqlite", strings.TrimPrefix(address, "sqlite:"), nil
	default:
		// The value may hold a password: it is not repeated.
		return "", "", errors.New("begins with neither \"postgres://\" nor \"sqlite:\"")
	}
}

// OpenStore opens the ledger and makes sure that the keys are its keys.
func (c Config) OpenStore(ctx context.Context) (store.Store, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	ledger, err := c.openUnchecked(ctx)
	if err != nil {
		return nil, err
	}
	if err := ledger.CheckKeys(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("check encryption keys: %w", err), ledger.Close())
	}
	return ledger, nil
}

// openUnchecked opens the ledger with whatever keys there are.
func (c Config) openUnchecked(ctx context.Context) (store.Store, error) {
	if err := c.validate(needs{database: true, keys: true}); err != nil {
		return nil, err
	}
	sealer, err := store.NewSealer(c.Keys.Reveal())
	if err != nil {
		return nil, fmt.Errorf("read encryption keys: %w", err)
	}
	kind, target, err := databaseKind(c.DatabaseURL.Reveal())
	if err != nil {
		return nil, err
	}
	var ledger store.Store
	if kind == "postgres" {
		ledger, err = postgres.Open(ctx, target, sealer)
	} else {
		ledger, err = sqlite.Open(ctx, target, sealer)
		err = fileError(err)
	}
	if err != nil {
		return nil, databaseError(err)
	}
	return ledger, nil
}

// Migrate brings the database's schema up to date.
func (c Config) Migrate(ctx context.Context) error {
	if err := c.validate(needs{database: true}); err != nil {
		return err
	}
	kind, target, err := databaseKind(c.DatabaseURL.Reveal())
	if err != nil {
		return err
	}
	if kind == "postgres" {
		return databaseError(postgres.Migrate(ctx, target))
	}
	return fileError(sqlite.Migrate(ctx, target))
}

// fileError is databaseError for a database that is a file.
func fileError(err error) error {
	if err == nil || Hint(err) != "" {
		return err
	}
	return &HintError{Err: err, Help: "check that this user may write the database's file and directory, and that the disk has room"}
}

func databaseError(err error) error {
	if err == nil || Hint(err) != "" {
		return err
	}
	return &HintError{Err: err, Help: "check DATABASE_URL, and that the database runs and lets you in"}
}

// Connection is a connection to NATS.
type Connection struct {
	Conn  *nats.Conn
	JS    jetstream.JetStream
	Names jetpost.Names
}

// Close ends the connection.
func (c *Connection) Close() { c.Conn.Close() }

// Connect connects to NATS, and stays connected from then on.
func (c Config) Connect(ctx context.Context, log *slog.Logger, name string, more ...nats.Option) (*Connection, error) {
	if err := c.validate(needs{nats: true}); err != nil {
		return nil, err
	}
	names, err := jetpost.NewNames(c.NATS.Prefix)
	if err != nil {
		return nil, err
	}
	opts := []nats.Option{
		nats.Name(name), nats.Timeout(connectTimeout), nats.MaxReconnects(-1), nats.ReconnectWait(500 * time.Millisecond),
		nats.PingInterval(natsPing), nats.MaxPingsOutstanding(natsPings),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("nats.disconnected", "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("nats.reconnected") }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn("nats.error", "error", err) }),
	}
	login, err := c.NATS.options()
	if err != nil {
		return nil, err
	}
	opts = append(append(opts, login...), more...)
	conn, err := nats.Connect(c.NATS.URL, opts...)
	if err != nil {
		return nil, natsError(c.NATS.URL, err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	return &Connection{Conn: conn, JS: js, Names: names}, nil
}

func natsError(address string, err error) error {
	help := "check NATS_URL, and that nats-server runs there"
	if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) {
		help = "NATS refuses the credentials: check NATS_USER and NATS_PASSWORD, NATS_NKEY or NATS_CREDS"
	}
	return &HintError{Err: fmt.Errorf("connect to NATS at %s: %w", redacted(address), err), Help: help}
}

// redacted is a list of addresses without a password.
func redacted(addresses string) string {
	list := strings.Split(addresses, ",")
	for i, address := range list {
		u, err := url.Parse(strings.TrimSpace(address))
		if err != nil {
			list[i] = "(unreadable)"
			continue
		}
		if _, has := u.User.Password(); u.User != nil && !has {
			u.User = url.User("xxxxx") // a token, which NATS takes as a name
		}
		list[i] = u.Redacted()
	}
	return strings.Join(list, ",")
}

// Topology is what this configuration makes of NATS for a ledger.
func (c Config) Topology(names jetpost.Names, ledgerID string) publishers.TopologyConfig {
	return publishers.TopologyConfig{
		Names: names, LedgerID: ledgerID, Replicas: c.NATS.Replicas, RefreshCron: c.Refresh.Cron,
		JobsMaxBytes: c.NATS.JobsMiB << 20, MediaMaxBytes: c.NATS.MediaMiB << 20,
	}
}

// schemaVersion is that of the schema for which this program is built.
func (c Config) schemaVersion() int64 {
	if kind, _, _ := databaseKind(c.DatabaseURL.Reveal()); kind == "sqlite" {
		return sqlite.SchemaVersion
	}
	return postgres.SchemaVersion
}

// checkUpgrade fails if workers run that the migrations to come would stop.
func (c Config) checkUpgrade(ctx context.Context, log *slog.Logger) error {
	kind, target, err := databaseKind(c.DatabaseURL.Reveal())
	if err != nil {
		return err
	}
	var upgrade store.Upgrade
	if kind == "postgres" {
		upgrade, err = postgres.Upgrade(ctx, target)
	} else {
		upgrade, err = sqlite.Upgrade(ctx, target)
	}
	if err != nil || c.Force || !upgrade.Stops(0) {
		return databaseError(err)
	}
	conn, err := c.Connect(ctx, log, "jetpost setup")
	if err != nil {
		return err
	}
	defer conn.Close()
	heartbeats, err := publishers.NewHeartbeats(conn.JS, conn.Names).All(ctx)
	if missingInNATS(err) {
		return nil // NATS is new: no worker has bound to it
	}
	var stopped []string
	for _, heartbeat := range heartbeats {
		if heartbeat.Age < 3*heartbeatEvery && upgrade.Stops(heartbeat.Schema) {
			stopped = append(stopped, fmt.Sprintf("%s (%s on %s)", heartbeat.Worker, heartbeat.Version, heartbeat.Host))
		}
	}
	if err != nil || len(stopped) == 0 {
		return err
	}
	return &HintError{
		Err: fmt.Errorf("older workers do not survive the new schema: %s", strings.Join(stopped, ", ")),
		Help: "stop them (SIGTERM; one that was killed counts for 15 s), run this again, and start the new version: jobs wait in NATS meanwhile. " +
			"Or change the schema now with --force: they end, or fail until they are stopped",
	}
}

// Setup migrates the database and makes everything in NATS.
func (c Config) Setup(ctx context.Context, log *slog.Logger) (publishers.Report, error) {
	if err := c.validate(needs{nats: true, database: true, keys: true}); err != nil {
		return publishers.Report{}, err
	}
	if err := c.checkUpgrade(ctx, log); err != nil {
		return publishers.Report{}, err
	}
	if err := c.Migrate(ctx); err != nil {
		return publishers.Report{}, err
	}
	ledger, err := c.OpenStore(ctx)
	if err != nil {
		return publishers.Report{}, err
	}
	defer func() { _ = ledger.Close() }() // nothing is pending
	id, err := ledger.LedgerID(ctx)
	if err != nil {
		return publishers.Report{}, databaseError(err)
	}
	conn, err := c.Connect(ctx, log, "jetpost setup")
	if err != nil {
		return publishers.Report{}, err
	}
	defer conn.Close()
	topology := c.Topology(conn.Names, id)
	report, err := publishers.Setup(ctx, conn.JS, topology)
	if err == nil {
		err = keepCron(ctx, conn, ledger, topology)
	}
	return report, c.setupError(err)
}

// keepCron notes the refresh schedule, by which workers put it right. One of them may
// have put back the one before, as that was still noted.
func keepCron(ctx context.Context, conn *Connection, ledger store.Store, topology publishers.TopologyConfig) error {
	cron, err := topology.Cron()
	if err == nil {
		err = consumers.KeepCron(ctx, ledger, cron)
	}
	if err == nil {
		_, err = publishers.SetCron(ctx, conn.JS, topology)
	}
	return err
}

// What nats-server says of settings that it cannot take.
const (
	codeNoPeers        jetstream.ErrorCode = 10005 // too few servers in the cluster
	codeNotClustered   jetstream.ErrorCode = 10074
	codeInvalidPattern jetstream.ErrorCode = 10189 // of a schedule
)

// setupError names the setting that NATS refuses.
func (c Config) setupError(err error) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return err
	}
	switch api.ErrorCode {
	case codeNoPeers, codeNotClustered:
		return &HintError{
			Err:  fmt.Errorf("JetStream here cannot hold %d replicas: %w", max(c.NATS.Replicas, publishers.DefaultReplicas), err),
			Help: "use --replicas 1, or a cluster of that many servers",
		}
	case codeInvalidPattern:
		return &ConfigError{Mistakes: []string{fmt.Sprintf(
			"--refresh-cron: NATS does not take %q; it has six fields, seconds first, for example %q", c.Refresh.Cron, publishers.DefaultRefreshCron)}}
	default:
		return err
	}
}
