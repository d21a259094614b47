package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	kongcompletion "github.com/jotaen/kong-completion"
	"github.com/lmittmann/tint"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
)

// Exit codes. They are part of the command line's contract.
const (
	exitOK       = 0
	exitFailed   = 1 // failure
	exitUsage    = 2 // the command line or the configuration is wrong
	exitNotFound = 3 // no such account or request
	exitRequest  = 4 // the request failed or was refused
	exitWaiting  = 5 // the request is still waiting
	exitUnknown  = 6 // it is unknown whether a post is live

	exitInterrupted = 130 // a signal ended the demo, a rotation or a wait; the number is the shells' own
)

// cli is the command line: flags, environment and help in one place. Each flag
// can also be set as JETPOST_<FLAG>.
type cli struct {
	Output    string `short:"o" enum:"text,json" default:"text" help:"Output format: ${enum}."`
	LogLevel  string `enum:"debug,info,warn,error" default:"info" help:"Lowest level to log: ${enum}."`
	LogFormat string `enum:"auto,text,json" default:"auto" help:"Log format: ${enum}; auto is coloured text on a terminal, else JSON."`

	ConfigFile kong.ConfigFlag `name:"config" placeholder:"FILE" help:"JSON file with flags by their names, as {\"slots\": 32}. The command line and the environment go before it."`

	PrintVersion kong.VersionFlag `name:"version" env:"-" help:"Print the version and exit."`

	Demo     demoCmd     `cmd:"" help:"Demonstrate jetpost on a simulated X, in about half a minute."`
	Up       upCmd       `cmd:"" help:"Run everything on this machine: NATS, database and worker in one process."`
	Worker   workerCmd   `cmd:"" help:"Run a worker with an existing NATS and database."`
	Web      webCmd      `cmd:"" help:"Serve the pages on which customers connect their accounts."`
	Sim      simCmd      `cmd:"" help:"Run a simulated X, for your own tests."`
	Setup    setupCmd    `cmd:"" help:"Create or update the database schema and the streams, consumers and buckets in NATS."`
	NATS     natsCmd     `cmd:"" name:"nats" help:"Print a configuration for your own nats-server."`
	Publish  publishCmd  `cmd:"" help:"Publish a post or a thread."`
	Requests requestsCmd `cmd:"" help:"List, show, watch, reschedule, cancel, unpublish and settle requests."`
	Replay   replayCmd   `cmd:"" help:"Send failed and refused requests again, without the posts that are live."`
	Prune    pruneCmd    `cmd:"" help:"Remove requests that finished long ago, except their ids, and media that no request needs. Workers do this, too."`
	Refresh  refreshCmd  `cmd:"" help:"Refresh tokens now: all that are due, or those of one account."`
	Accounts accountsCmd `cmd:"" help:"Connect, show, import, rename, disconnect, remove and erase accounts."`
	Pause    pauseCmd    `cmd:"" help:"Pause publishing of one account or of all accounts. A post that is already being sent may still go out."`
	Resume   resumeCmd   `cmd:"" help:"End a pause of an account or of the app now."`
	Tokens   tokensCmd   `cmd:"" help:"Create, list and revoke the API tokens with which programs call operations over HTTP."`
	Hooks    hooksCmd    `cmd:"" help:"Add, list, test, enable and remove webhooks, to which events are sent."`
	Users    usersCmd    `cmd:"" help:"Add, list and remove the users of the dashboard, and set their roles and passwords."`
	Audit    auditCmd    `cmd:"" help:"List who changed what."`
	Keys     keysCmd     `cmd:"" help:"Generate, show and rotate encryption keys."`
	Forecast forecastCmd `cmd:"" help:"Show when the queues of all accounts will be empty."`
	Limits   limitsCmd   `cmd:"" help:"Show X's rate windows and the app pauses in force."`
	Status   statusCmd   `cmd:"" help:"Show whether posts go out, and if not, why."`
	Workers  workersCmd  `cmd:"" help:"List the workers, including those whose heartbeats stopped within the last hour."`
	Config   configCmd   `cmd:"" help:"Show the settings, and where each comes from."`
	Doctor   doctorCmd   `cmd:"" help:"Check everything that a worker needs before you start it."`
	Health   healthCmd   `cmd:"" help:"Check whether a worker is ready; for container health checks."`
	Version  versionCmd  `cmd:"" help:"Print the version."`

	Completion completionCmd `cmd:"" help:"Print the completion script for bash, zsh or fish."`
}

// completionCmd is 'jetpost completion'.
type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"Shell: ${enum}."`
}

// Help is the long help text.
func (*completionCmd) Help() string {
	return "For the present shell: source <(jetpost completion bash). For every shell, add that line to ~/.bashrc or ~/.zshrc; for fish, " +
		"add jetpost completion fish | source to ~/.config/fish/config.fish."
}

// Run prints the script.
func (c *completionCmd) Run(ctx *kong.Context) error {
	return (&kongcompletion.Completion{Shell: c.Shell, Code: true}).Run(ctx)
}

// The connection flags, for commands that use more and more of them. Secrets come only from
// the environment, or from a file that <NAME>_FILE names, because other users can read a
// command line.
type (
	// dataFlags are those of commands that use the database alone.
	dataFlags struct {
		Data string `group:"Connection" type:"path" placeholder:"DIR" help:"Data directory of 'jetpost up' (${data}). Other commands use it to find the running 'jetpost up'."`
	}
	// natsFlags are those of commands that ask the workers, or NATS itself.
	natsFlags struct {
		dataFlags `embed:""`
		NATS      string `group:"Connection" name:"nats" env:"NATS_URL" placeholder:"URL" help:"NATS server or servers, nats://host:4222, comma-separated."`
		NATSUser  string `group:"Connection" name:"nats-user" env:"NATS_USER" placeholder:"USER" help:"NATS user. The password is read from NATS_PASSWORD."`
		Creds     string `group:"Connection" name:"nats-creds" env:"NATS_CREDS" placeholder:"FILE" help:"NATS credentials file."`
		NKey      string `group:"Connection" name:"nats-nkey" env:"NATS_NKEY" placeholder:"FILE" help:"File with the seed of a NATS nkey."`
		CA        string `group:"Connection" name:"nats-ca" env:"NATS_CA" placeholder:"FILE" help:"CA certificates for the NATS server. Default: the system's."`
		Cert      string `group:"Connection" name:"nats-cert" env:"NATS_CERT" placeholder:"FILE" help:"Client certificate for NATS, with its key in --nats-key."`
		CertKey   string `group:"Connection" name:"nats-key" env:"NATS_KEY" placeholder:"FILE" help:"Private key of --nats-cert."`

		prefixFlag `embed:""`
	}
	prefixFlag struct {
		Prefix string `group:"Connection" placeholder:"NAME" help:"Prefix of the names of all subjects and streams, if several installations share one NATS."`
	}
	// readFlags are those of commands that also read from X with the accounts' tokens.
	readFlags struct {
		natsFlags `embed:""`
		xURLFlag  `embed:""`
	}
	xURLFlag struct {
		XAPIURL string `group:"Connection" name:"x-api-url" env:"X_API_URL" placeholder:"URL" help:"URL of X's API, to use a simulator."`
	}
	// appFlags are those of commands that are the app to X.
	appFlags struct {
		readFlags  `embed:""`
		clientFlag `embed:""`
	}
	clientFlag struct {
		ClientID string `group:"Connection" name:"x-client-id" env:"X_CLIENT_ID" placeholder:"ID" help:"OAuth 2.0 client id of your X app."`
	}
	// tierFlag is for commands that know X's rules for posts.
	tierFlag struct {
		XTier string `group:"Connection" name:"x-tier" enum:"self-serve,enterprise" default:"self-serve" help:"Tier of your X app, ${enum}. Only Enterprise apps may quote posts."`
	}
	// connectFlags are all of them.
	connectFlags struct {
		appFlags `embed:""`
		tierFlag `embed:""`
	}
)

// AfterApply passes the flags of the selected command to env, as those below do.
func (f *dataFlags) AfterApply(chosen *connectFlags) error { chosen.dataFlags = *f; return nil }

func (f *natsFlags) AfterApply(chosen *connectFlags) error { chosen.natsFlags = *f; return nil }

func (f *readFlags) AfterApply(chosen *connectFlags) error { chosen.readFlags = *f; return nil }

func (f *appFlags) AfterApply(chosen *connectFlags) error { chosen.appFlags = *f; return nil }

func (f *connectFlags) AfterApply(chosen *connectFlags) error { *chosen = *f; return nil }

// exitError is an error with its own exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// env is the environment of a command: everything but its own flags.
type env struct {
	ctx     context.Context
	cli     *cli
	connect *connectFlags
	log     *slog.Logger
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
}

// Main runs the command that the arguments, without the program's name, say. It returns
// the exit code.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var c cli
	var connect connectFlags
	fail := func(err error) int { return report(stderr, err, c.Output == "json" || asksJSON(args)) }
	if err := tidyEnvironment(os.Environ(), setVariable); err != nil {
		return fail(&exitError{code: exitUsage, err: err})
	}
	exited := -1
	parser, err := kong.New(&c,
		kong.Name("jetpost"),
		kong.Description("jetpost keeps the tokens of many X accounts alive and publishes posts and threads for them from NATS JetStream.\n\n"+
			"To try it: jetpost demo\n\n"+
			"Secrets are read from the environment, or from the file that <NAME>_FILE names: "+
			strings.Join(SecretNames(), ", ")+". DATABASE_PASSWORD is used if DATABASE_URL has no password."),
		kong.Vars{"data": defaultData(), "simdata": simData(), "states": joined(jetpost.States()), "codes": joined(jetpost.Codes()), "version": app.ThisBuild().String()},
		kong.Bind(&connect),
		kong.DefaultEnvars("JETPOST"),
		kong.Configuration(readSettings),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }),
	)
	if err != nil {
		return fail(err)
	}
	kongcompletion.Register(parser)
	if exited >= 0 { // a shell asked for completions
		return exited
	}
	switch {
	case len(args) == 0:
		args = []string{"--help"}
	case args[0] == "help":
		args = append(args[1:], "--help")
	}
	parsed, err := parser.Parse(args)
	if exited >= 0 { // --help, --version
		return exited
	}
	if err != nil {
		return fail(&exitError{code: exitUsage, err: &app.HintError{Err: err, Help: "see: " + helpFor(err)}})
	}
	// The first signal ends the command in order. The second one has its default effect and
	// ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	ctx = jetpost.WithActor(ctx, actor())
	err = parsed.Run(&env{ctx: ctx, cli: &c, connect: &connect, log: logger(&c, stderr), stdin: stdin, stdout: stdout, stderr: stderr})
	return fail(err)
}

// actor is who runs the command, for the audit log, as far as the system tells.
func actor() string {
	name := os.Getenv("USER")
	if is, err := user.Current(); err == nil {
		name = is.Username
	}
	return "cli:" + name
}

// helpFor is the --help of the command whose arguments could not be parsed.
func helpFor(err error) string {
	words := []string{"jetpost"}
	if parse := new(kong.ParseError); errors.As(err, &parse) {
		for _, path := range parse.Context.Path {
			if path.Command != nil {
				words = append(words, path.Command.Name)
			}
		}
	}
	return strings.Join(append(words, "--help"), " ")
}

// asksJSON tells whether a command line that could not be parsed asked for JSON.
func asksJSON(args []string) bool {
	for i, arg := range args {
		if arg == "--output=json" || arg == "-ojson" || ((arg == "-o" || arg == "--output") && i+1 < len(args) && args[i+1] == "json") {
			return true
		}
	}
	return os.Getenv("JETPOST_OUTPUT") == "json"
}

// failure is an error as JSON.
type failure struct {
	Code   string `json:"code"` // by the exit code, see failureCodes
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"` // what to do
}

// failureCodes name the exit codes.
var failureCodes = map[int]string{
	exitFailed: "failed", exitUsage: "usage", exitNotFound: "not_found", exitRequest: "request_failed",
	exitWaiting: "waiting", exitUnknown: "unknown", exitInterrupted: "interrupted",
}

// report prints the error and its hint, and returns the exit code.
func report(stderr io.Writer, err error, asJSON bool) int {
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	if asJSON {
		encoder := json.NewEncoder(stderr)
		encoder.SetEscapeHTML(false)
		_ = encoder.Encode(map[string]failure{"error": {Code: failureCodes[code], Detail: err.Error(), Hint: app.Hint(err)}}) // standard error is closed: nothing else can be done
		return code
	}
	fmt.Fprintf(stderr, "jetpost: %v\n", err)
	if hint := app.Hint(err); hint != "" {
		fmt.Fprintf(stderr, "  do: %s\n", hint)
	}
	return code
}

func exitCode(err error) int {
	var exit *exitError
	var config *app.ConfigError
	switch {
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &config):
		return exitUsage
	case errors.Is(err, store.ErrNotFound), failedAs(err, jetpost.ErrNotFound):
		return exitNotFound
	default:
		return exitFailed
	}
}

func logger(c *cli, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo
	}
	terminal := isTerminal(w)
	if c.LogFormat == "json" || (c.LogFormat == "auto" && !terminal) {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: time.TimeOnly, NoColor: !terminal}))
}

// isTerminal tells whether a stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull) // a character device as well
	return err != nil || !os.SameFile(info, null)
}

// defaultData is the default data directory of 'up'.
func defaultData() string {
	if dir := os.Getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "jetpost")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "jetpost-data"
	}
	return filepath.Join(home, ".local", "share", "jetpost")
}

// simData is the default data directory of 'up --sim', separate from that of real accounts.
func simData() string { return defaultData() + "-sim" }

// data is the data directory of 'up'.
func (e *env) data(simulated bool) string {
	switch {
	case e.connect.Data != "":
		return e.connect.Data
	case simulated:
		return simData()
	default:
		return defaultData()
	}
}

// config reads the configuration that all commands share.
func (e *env) config() (app.Config, error) {
	f := e.connect
	cfg := app.Config{
		NATS: app.NATSConfig{
			URL: f.NATS, User: f.NATSUser, Creds: f.Creds, NKey: f.NKey, CA: f.CA, Cert: f.Cert, CertKey: f.CertKey, Prefix: f.Prefix,
		},
		X:     app.XConfig{URL: f.XAPIURL, ClientID: f.ClientID},
		Rules: consumers.Rules{Enterprise: f.XTier == "enterprise"},
	}
	var mistakes []string
	if minute := os.Getenv(app.SimMinuteVariable); minute != "" {
		var err error
		if cfg.X.Minute, err = time.ParseDuration(minute); err != nil {
			mistakes = append(mistakes, app.SimMinuteVariable+": "+err.Error())
		}
	}
	var password secret.String
	fields := []*secret.String{&cfg.DatabaseURL, &cfg.Keys, &cfg.X.ClientSecret, &cfg.NATS.Password, &password}
	for i, name := range SecretNames() {
		value, err := secretFromEnv(name)
		if err != nil {
			mistakes = append(mistakes, err.Error())
		}
		*fields[i] = value
	}
	if len(mistakes) > 0 {
		return app.Config{}, &app.ConfigError{Mistakes: mistakes}
	}
	cfg.DatabaseURL = withPassword(cfg.DatabaseURL, password)
	return cfg, nil
}

// withPassword adds a password to a URL that has a user without one. It returns any other
// URL, including an invalid one, as it is.
func withPassword(address, password secret.String) secret.String {
	u, err := url.Parse(address.Reveal())
	if err != nil || password.Empty() || u.User == nil {
		return address
	}
	if _, has := u.User.Password(); has {
		return address
	}
	u.User = url.UserPassword(u.User.Username(), password.Reveal())
	return secret.New(u.String())
}

// clientConfig is the configuration of a command that uses a running installation:
// a 'jetpost up' on this machine, or the one that the environment names. The two
// are never mixed.
func (e *env) clientConfig() (app.Config, error) {
	cfg, err := e.natsConfig()
	if err == nil && cfg.NATS.URL != "" && cfg.DatabaseURL.Empty() {
		return cfg, &exitError{code: exitUsage, err: &app.HintError{
			Err:  errors.New("NATS_URL is set, but not to a 'jetpost up' on this machine, and DATABASE_URL is missing"),
			Help: "set DATABASE_URL and HUB_ENCRYPTION_KEY too, or unset NATS_URL",
		}}
	}
	return cfg, err
}

// natsConfig is clientConfig for a command that needs no database.
func (e *env) natsConfig() (app.Config, error) {
	cfg, err := e.config()
	if err != nil {
		return cfg, err
	}
	dirs := []string{e.data(false)}
	if e.connect.Data == "" {
		dirs = append(dirs, simData())
	}
	cfg, running, err := cfg.Running(dirs...)
	named := cfg.NATS.URL != "" || !cfg.DatabaseURL.Empty()
	if several := new(app.SeveralError); errors.As(err, &several) {
		return cfg, &exitError{code: exitUsage, err: err}
	}
	switch died := new(app.DiedError); {
	case running || (err != nil && !errors.As(err, &died)):
		return cfg, err
	case named:
		return cfg, nil
	case err != nil:
		return cfg, &exitError{code: exitUsage, err: err}
	}
	return cfg, &exitError{code: exitUsage, err: &app.HintError{
		Err:  fmt.Errorf("no jetpost runs on %s, and neither NATS_URL nor DATABASE_URL is set", strings.Join(dirs, " or ")),
		Help: "start one with: jetpost up --sim    or set NATS_URL, DATABASE_URL and HUB_ENCRYPTION_KEY",
	}}
}

// SecretNames are the variables of the environment that hold secrets.
func SecretNames() []string {
	return []string{"DATABASE_URL", "HUB_ENCRYPTION_KEY", "X_CLIENT_SECRET", "NATS_PASSWORD", "DATABASE_PASSWORD"}
}

// setVariable sets a variable of the environment. It removes an empty one, so that the
// flag has its default.
func setVariable(name, value string) error {
	if value == "" {
		return os.Unsetenv(name)
	}
	return os.Setenv(name, value)
}

// tidyEnvironment removes spaces, line ends and a pair of quotes around the values of
// our variables, which env files and shells can leave there. It fails for a password in
// quotes, because the quotes may be part of it.
func tidyEnvironment(environ []string, set func(name, value string) error) error {
	var wrong []string
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		ours := strings.HasPrefix(name, "JETPOST_") || slices.Contains(variables(), strings.TrimSuffix(name, "_FILE"))
		if !ours {
			continue
		}
		tidy := strings.TrimSpace(value)
		if bare := unquoted(tidy); bare != tidy {
			if strings.HasSuffix(name, "_PASSWORD") {
				wrong = append(wrong, fmt.Sprintf("%s: is in quotes; remove them or, if they are part of the password, put it into the file that %s_FILE names", name, name))
				continue
			}
			tidy = bare
		}
		if tidy == value && tidy != "" {
			continue
		}
		if err := set(name, tidy); err != nil {
			return err
		}
	}
	if len(wrong) > 0 {
		return &app.ConfigError{Mistakes: wrong}
	}
	return nil
}

// unquoted is s without the pair of quotes around it.
func unquoted(s string) string {
	if last := len(s) - 1; last > 0 && s[0] == s[last] && (s[0] == '"' || s[0] == '\'') {
		return strings.TrimSpace(s[1:last])
	}
	return s
}

// variables are our environment variables without the prefix JETPOST_.
func variables() []string {
	return append(SecretNames(), "NATS_URL", "NATS_USER", "NATS_CREDS", "NATS_NKEY", "NATS_CA", "NATS_CERT", "NATS_KEY", "X_API_URL", "X_CLIENT_ID")
}

// secretFromEnv reads a secret from NAME, or from the file in NAME_FILE.
func secretFromEnv(name string) (secret.String, error) {
	value, path := os.Getenv(name), os.Getenv(name+"_FILE")
	switch {
	case value != "" && path != "":
		return secret.String{}, fmt.Errorf("%s and %s_FILE: are both set; keep one", name, name)
	case path != "":
		text, err := os.ReadFile(path)
		if err != nil {
			return secret.String{}, fmt.Errorf("%s_FILE: %w", name, err)
		}
		return secret.New(strings.TrimSpace(string(text))), nil
	default:
		return secret.New(strings.TrimSpace(value)), nil
	}
}
