package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/crypto/bcrypt"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

const (
	// natsStart bounds the start of the embedded server; one with a million
	// messages takes about a second.
	natsStart = 20 * time.Second
	// watchNATS is how often the embedded server is checked for failed writes.
	watchNATS = 2 * time.Second
	// streamBroken is nats-server's log text when a stream's store could not write: it
	// refuses all writes from then on, even if the disk has space again.
	streamBroken = "Critical write error"
	// natsStore bounds the bytes that the embedded server may reserve for its streams. It
	// is higher than needed: the free space is checked, and streams have their own bounds.
	natsStore = 1 << 40

	keyFile        = "encryption.key"
	lockFile       = "lock"
	databaseFile   = "jetpost.db"
	natsDir        = "nats"
	lifeboatDir    = "lifeboat"
	connectionFile = "connection.json"
	// simulatedFile marks a directory whose accounts belong to a simulated X.
	simulatedFile = "simulated"
	// journalFile has the data of a simulated X.
	journalFile = "x.jsonl"
)

// DataDir is the directory of an installation on one machine. While it is
// open, no other process can open it.
type DataDir struct {
	Path string
	lock *os.File
	// connection is the file that describes the running instance; its lock shows that the
	// instance is running.
	connection *os.File
}

// OpenDataDir creates the directory if it is missing, and locks it: two servers
// on one directory destroy it.
func OpenDataDir(path string) (*DataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, &HintError{Err: fmt.Errorf("make data directory: %w", err), Help: "choose another with --data"}
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, &HintError{Err: fmt.Errorf("open data directory: %w", err), Help: "choose another with --data, or let this user write there"}
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close() // nothing was written
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &HintError{
				Err:  fmt.Errorf("data directory %s is in use by another jetpost", path),
				Help: "stop that one, or choose another directory with --data",
			}
		}
		return nil, fmt.Errorf("lock data directory %s: %w", path, err)
	}
	return &DataDir{Path: path, lock: lock}, nil
}

// Close lets others open the directory.
func (d *DataDir) Close() error { return d.lock.Close() }

// Settle makes sure that a directory holds either real or simulated accounts,
// and marks a new one that is for simulated ones.
func (d *DataDir) Settle(simulated bool) error {
	marked := d.has(simulatedFile)
	switch {
	case simulated && !marked && (d.has(databaseFile) || d.has(natsDir)):
		return &HintError{Err: fmt.Errorf("%s holds real accounts, which a simulated X must not touch", d.Path), Help: "choose another directory with --data, or leave out --sim"}
	case !simulated && marked:
		return &HintError{Err: fmt.Errorf("%s holds simulated accounts, which X does not know", d.Path), Help: "choose another directory with --data, or add --sim"}
	case simulated && !marked:
		text := []byte("The accounts in this directory are of a simulated X.\n")
		if err := writeSecret(filepath.Join(d.Path, simulatedFile), text); err != nil {
			return fmt.Errorf("mark data directory as simulated: %w", err)
		}
	}
	return nil
}

// KeepSim loads the data of a simulated X from the directory, and stores it there from
// then on.
func (d *DataDir) KeepSim(sim *xsim.Server) error {
	err := sim.Keep(filepath.Join(d.Path, journalFile))
	if errors.As(err, new(*xsim.JournalError)) {
		return &HintError{Err: err, Help: "put the file back from a copy, or remove it: the simulated X is empty then"}
	}
	return err
}

// has tells whether a file of that name exists. If that is unknown, it returns true.
func (d *DataDir) has(name string) bool { return exists(filepath.Join(d.Path, name)) }

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// DatabaseURL is the embedded database.
func (d *DataDir) DatabaseURL() secret.String {
	return secret.New("sqlite:" + filepath.Join(d.Path, databaseFile))
}

// Keys reads the directory's encryption key, or makes one. It tells whether it
// is new: without the key, the tokens in the database are lost.
func (d *DataDir) Keys() (keys secret.String, made bool, err error) {
	path := filepath.Join(d.Path, keyFile)
	text, err := os.ReadFile(path)
	switch {
	case err == nil:
		return secret.New(strings.TrimSpace(string(text))), false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return secret.String{}, false, fmt.Errorf("read encryption key: %w", err)
	}
	if d.has(databaseFile) {
		return secret.String{}, false, &HintError{
			Err:  fmt.Errorf("%s is missing, but a database sealed with it is there", path),
			Help: "put the key back from your backup, or give it as HUB_ENCRYPTION_KEY",
		}
	}
	keys = store.GenerateKey()
	if err := writeSecret(path, []byte(keys.Reveal()+"\n")); err != nil {
		return secret.String{}, false, fmt.Errorf("write encryption key: %w", err)
	}
	return keys, true, nil
}

// writeSecret atomically writes a file that only this user can read, and syncs it.
func writeSecret(path string, data []byte) error {
	f, err := placeSecret(path, data)
	if err != nil {
		return err
	}
	return f.Close()
}

// placeSecret is writeSecret for a file that stays open, and locked from before
// it has its name.
func placeSecret(path string, data []byte) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // made with 0600
	if err != nil {
		return nil, err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return f, nil
}

// connection is what other commands on this machine need to reach a running
// installation.
type connection struct {
	NATSURL  string `json:"nats_url"`
	User     string `json:"nats_user"`
	Password string `json:"nats_password"`
	Prefix   string `json:"prefix,omitempty"`
	Database string `json:"database_url"`
	X        string `json:"x_api_url"`
	ClientID string `json:"x_client_id"`
	// What setup makes.
	RefreshCron string `json:"refresh_cron,omitempty"`
	JobsMiB     int64  `json:"jobs_mib,omitempty"`
	MediaMiB    int64  `json:"media_mib,omitempty"`
	// Enterprise tells of which kind the app is.
	Enterprise bool `json:"x_enterprise,omitempty"`
	// The pages for people, where they are served.
	PublicURL   string   `json:"public_url,omitempty"`
	ReturnHosts []string `json:"return_hosts,omitempty"`
	// Confidential tells that X knows the app by a secret, which is not kept here.
	Confidential bool `json:"x_confidential,omitempty"`
}

func (d *DataDir) announce(c connection) error {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	d.connection, err = placeSecret(filepath.Join(d.Path, connectionFile), append(text, '\n'))
	return err
}

func (d *DataDir) withdraw() {
	if d.connection != nil {
		_ = os.Remove(filepath.Join(d.Path, connectionFile))
		_ = d.connection.Close() // the lock ends with the process at the latest
	}
}

// DiedError says that an installation did not end normally, and no longer runs on its
// directory.
type DiedError struct {
	Dir       string
	Simulated bool
}

func (e *DiedError) Error() string { return "the jetpost on " + e.Dir + " has died" }

// Hint tells the operator how to start it again.
func (e *DiedError) Hint() string {
	command := "jetpost up"
	if e.Simulated {
		command += " --sim"
	}
	return "start it again with: " + command + " --data " + e.Dir
}

// readConnection reads what runs on the directory announced. It fails with
// fs.ErrNotExist or *DiedError where nothing runs.
func (d *DataDir) readConnection() (connection, error) {
	var found connection
	f, err := os.Open(filepath.Join(d.Path, connectionFile))
	if err != nil {
		return found, err
	}
	defer func() { _ = f.Close() }() // only read from
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err == nil {
		return found, &DiedError{Dir: d.Path, Simulated: d.has(simulatedFile)}
	}
	return found, json.NewDecoder(f).Decode(&found)
}

// SeveralError says that several installations run on this machine, and that none is
// selected.
type SeveralError struct {
	Dirs  []string
	Names []string // what runs on each
}

func (e *SeveralError) Error() string {
	return "several run on this machine: " + strings.Join(e.Names, "; ")
}

// Hint tells the operator how to select one.
func (e *SeveralError) Hint() string {
	return "say which one with --data " + strings.Join(e.Dirs, " or --data ")
}

// Running replaces what a configuration says of NATS, database and X by the
// installation that runs on one of those directories and tells whether one is there.
// One that does not listen at the NATS which the configuration names is passed over.
// It fails with *SeveralError where more than one may be meant, with *DiedError where
// one should run, and with *ConfigError where the configuration is for another one.
func (c Config) Running(paths ...string) (Config, bool, error) {
	var died error
	var dirs []*DataDir
	var several SeveralError
	var joined connection
	for _, path := range paths {
		dir := &DataDir{Path: path}
		found, err := dir.readConnection()
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case errors.As(err, new(*DiedError)):
			died = cmp.Or(died, err)
		case err != nil:
			return c, false, fmt.Errorf("read connection of the jetpost on %s: %w", path, err)
		case c.NATS.URL == "" || sameServer(c.NATS.URL, found.NATSURL):
			dirs, joined = append(dirs, dir), found
			several.Dirs, several.Names = append(several.Dirs, path), append(several.Names, dir.installation())
		}
	}
	switch len(dirs) {
	case 0:
		return c, false, died
	case 1:
		c, err := c.join(dirs[0], joined)
		return c, true, err
	}
	return c, false, &several
}

// installation names what runs on the directory.
func (d *DataDir) installation() string {
	if d.has(simulatedFile) {
		return "jetpost up on " + d.Path + ", with a simulated X"
	}
	return "jetpost up on " + d.Path + ", with X"
}

// join points a configuration at an installation that runs.
func (c Config) join(dir *DataDir, found connection) (Config, error) {
	var mistakes []string
	if c.NATS.Prefix != "" && c.NATS.Prefix != found.Prefix {
		mistakes = append(mistakes, fmt.Sprintf("--prefix: is %q, but that of the jetpost on %s is %q", c.NATS.Prefix, dir.Path, found.Prefix))
	}
	if !c.DatabaseURL.Empty() && c.DatabaseURL.Reveal() != found.Database {
		mistakes = append(mistakes, fmt.Sprintf("DATABASE_URL: is not the database of the jetpost on %s; unset it, or set NATS_URL to another NATS", dir.Path))
	}
	if len(mistakes) > 0 {
		return c, &ConfigError{Mistakes: mistakes}
	}
	c.instance = dir.installation()
	c.NATS = NATSConfig{
		URL: found.NATSURL, User: found.User, Password: secret.New(found.Password), Prefix: found.Prefix,
		JobsMiB: found.JobsMiB, MediaMiB: found.MediaMiB,
	}
	c.Refresh.Cron = found.RefreshCron
	c.DatabaseURL = secret.New(found.Database)
	c.X.URL, c.X.ClientID, c.X.NeedsSecret = found.X, found.ClientID, found.Confidential
	c.Rules.Enterprise = found.Enterprise
	if !found.Confidential {
		c.X.ClientSecret = secret.String{} // it belongs to another app
	}
	c.Web.PublicURL, c.Web.ReturnHosts = found.PublicURL, found.ReturnHosts
	if c.Keys.Empty() {
		if key, err := os.ReadFile(filepath.Join(dir.Path, keyFile)); err == nil {
			c.Keys = secret.New(strings.TrimSpace(string(key)))
		}
	}
	return c, nil
}

// sameServer tells whether two addresses are of one NATS server, however they
// spell this machine.
func sameServer(a, b string) bool {
	spell := func(address string) string {
		_, hostPort, found := strings.Cut(address, "://")
		if !found {
			hostPort = address
		}
		hostPort = strings.TrimRight(hostPort[strings.LastIndex(hostPort, "@")+1:], "/")
		host, port, err := net.SplitHostPort(hostPort)
		if err != nil { // it has no port
			host, port = strings.Trim(hostPort, "[]"), strconv.Itoa(server.DEFAULT_PORT)
		}
		if ip := net.ParseIP(host); host == "localhost" || (ip != nil && (ip.IsLoopback() || ip.IsUnspecified())) {
			host = "this machine"
		}
		return net.JoinHostPort(host, port)
	}
	return spell(a) == spell(b)
}

// NATSServer is the embedded nats-server.
type NATSServer struct {
	*server.Server
	broken atomic.Bool
}

// BrokenError says that the embedded server accepts no writes any more, although the
// disk has free space.
type BrokenError struct{}

func (BrokenError) Error() string {
	return "NATS could not write, as on a full disk, and accepts no writes until it is restarted; there is free space now"
}

// Hint tells the operator to restart.
func (BrokenError) Hint() string {
	return "start it again: accepted jobs are stored, and jobs that NATS could not store were refused to their producers"
}

// watch returns when the context ends, or with BrokenError when the server accepts no
// writes and the disk has enough free space for a restart.
func (s *NATSServer) watch(ctx context.Context, room func() error) error {
	every := time.NewTicker(watchNATS)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
		if (s.broken.Load() || !s.JetStreamEnabled()) && room() == nil {
			return BrokenError{}
		}
	}
}

// StartNATS runs a nats-server with JetStream in this process. A client
// without credentials is a producer, in the producers' account. The worker's
// password is generated at each start.
func StartNATS(ctx context.Context, dir, listen string, names jetpost.Names, log *slog.Logger) (*NATSServer, NATSConfig, error) {
	host, portText, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, NATSConfig{}, &ConfigError{Mistakes: []string{fmt.Sprintf("--nats-listen: %q is not host:port", listen)}}
	}
	port, err := strconv.Atoi(portText)
	if err != nil || port < 0 || port > 65535 {
		return nil, NATSConfig{}, &ConfigError{Mistakes: []string{fmt.Sprintf("--nats-listen: %q is not a port", portText)}}
	}
	if port == 0 {
		port = server.RANDOM_PORT
	} else {
		// The server reports a port that is in use only in its log.
		probe, err := Listen(ctx, listen, "--nats-listen")
		if err != nil {
			return nil, NATSConfig{}, err
		}
		_ = probe.Close() // it was only a check
	}
	password := store.GenerateKey()
	worker, err := hashed(password)
	if err != nil {
		return nil, NATSConfig{}, err
	}
	walls := Walls{Names: names, NoLogin: true, OneWorker: true, Logins: map[string]string{
		workerUser: fmt.Sprintf("password: %q", worker), producerUser: `password: ""`,
	}}
	if err := moveBehindWalls(filepath.Join(dir, natsDir), names); err != nil {
		return nil, NATSConfig{}, fmt.Errorf("move streams into their NATS accounts: %w", err)
	}
	options := &server.Options{}
	if err := options.ProcessConfigString(walls.Config()); err != nil {
		return nil, NATSConfig{}, fmt.Errorf("configure NATS: %w", err)
	}
	options.ServerName, options.Host, options.Port = "jetpost", host, port
	options.JetStream, options.StoreDir, options.JetStreamMaxStore = true, filepath.Join(dir, natsDir), natsStore
	// An accepted job survives a power cut. This costs speed, which X's limits make
	// irrelevant.
	options.SyncAlways = true
	options.NoSigs = true
	s := &NATSServer{}
	s.Server, err = server.NewServer(options)
	if err != nil {
		return nil, NATSConfig{}, fmt.Errorf("configure NATS: %w", err)
	}
	s.SetLoggerV2(natsLog{log, &s.broken}, false, false, false)
	go s.Start()
	if !s.ReadyForConnections(natsStart) {
		s.Shutdown()
		return nil, NATSConfig{}, &HintError{
			Err:  fmt.Errorf("NATS did not start on %s within %s", listen, natsStart),
			Help: "see the log above; the disk may be full, or the data directory unwritable",
		}
	}
	return s, NATSConfig{URL: s.ClientURL(), User: workerUser, Password: password, InProcess: s.Server}, nil
}

// moveBehindWalls moves the streams of an older installation without NATS accounts into
// these accounts. Its server does not run.
func moveBehindWalls(natsDir string, names jetpost.Names) error {
	account := func(name string) string { return filepath.Join(natsDir, "jetstream", name) }
	media := filepath.Join("streams", "OBJ_"+names.MediaBucket())
	old, work, mirror := account(server.DEFAULT_GLOBAL_ACCOUNT), account(names.WorkAccount()), account(names.MirrorAccount())
	if exists(filepath.Join(old, "streams", names.JobsStream())) && !exists(work) {
		if err := os.Rename(old, work); err != nil {
			return err
		}
	}
	if !exists(filepath.Join(work, media)) || exists(filepath.Join(mirror, media)) {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(mirror, "streams"), 0o750); err != nil {
		return err
	}
	return os.Rename(filepath.Join(work, media), filepath.Join(mirror, media))
}

// hashed is the bcrypt hash of a password, with the lowest cost: the passwords are 256
// random bits, which cannot be guessed.
func hashed(password secret.String) (string, error) {
	hash, err := bcrypt.GenerateFromPassword([]byte(password.Reveal()), bcrypt.MinCost)
	if err != nil {
		return "", fmt.Errorf("hash NATS password: %w", err)
	}
	return string(hash), nil
}

// natsLog forwards the embedded server's warnings and errors to our log.
type natsLog struct {
	log *slog.Logger
	// broken is set for good once the server has said that a stream takes no writes.
	broken *atomic.Bool
}

func (l natsLog) Noticef(format string, v ...any) {
	l.log.Debug("nats.server", "note", fmt.Sprintf(format, v...))
}
func (l natsLog) Tracef(format string, v ...any) {
	l.log.Debug("nats.server", "trace", fmt.Sprintf(format, v...))
}
func (l natsLog) Debugf(format string, v ...any) {
	l.log.Debug("nats.server", "debug", fmt.Sprintf(format, v...))
}
func (l natsLog) Warnf(format string, v ...any) {
	if strings.HasPrefix(format, "Plaintext passwords") {
		return // the producer's, which is empty: it is what no login means
	}
	l.log.Warn("nats.server", "warning", fmt.Sprintf(format, v...))
}
func (l natsLog) Errorf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	if strings.Contains(text, streamBroken) {
		l.broken.Store(true)
	}
	l.log.Error("nats.server", "error", text)
}
func (l natsLog) Fatalf(format string, v ...any) {
	l.log.Error("nats.server", "fatal", fmt.Sprintf(format, v...))
}
