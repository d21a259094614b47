package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// settings are variables of the environment.
type settings map[string]string

func (s settings) with(more ...settings) settings {
	all := maps.Clone(s)
	for _, m := range more {
		maps.Copy(all, m)
	}
	return all
}

// ownNATS is an installation on nats-servers of one's own, and a simulated X.
type ownNATS struct {
	t        *testing.T
	sim      *xsim.Server
	servers  []*harness.Process
	reach    settings // NATS_URL, and what the connection trusts and shows
	database settings // and everything but NATS
}

func newOwnNATS(t *testing.T) *ownNATS {
	t.Helper()
	o := &ownNATS{t: t, sim: &xsim.Server{}, reach: settings{}}
	x := httptest.NewServer(o.sim)
	t.Cleanup(x.Close)
	o.database = settings{
		"DATABASE_URL": "sqlite:" + filepath.Join(t.TempDir(), "jetpost.db"), "HUB_ENCRYPTION_KEY": store.GenerateKey().Reveal(),
		"X_API_URL": x.URL, "X_CLIENT_ID": "e2e",
	}
	return o
}

// serve starts a server with a configuration.
func (o *ownNATS) serve(config, address string, env settings) {
	o.t.Helper()
	path := filepath.Join(o.t.TempDir(), "nats.conf")
	testkit.Must(o.t, os.WriteFile(path, []byte(config), 0o600))
	o.servers = append(o.servers, harness.Start(o.t, fmt.Sprintf("nats-server-%d", len(o.servers)), harness.Environment(o.t, env), harness.NATSServerCommand, path))
	o.reach["NATS_URL"] = strings.TrimPrefix(o.reach["NATS_URL"]+",nats://"+address, ",")
}

// listening waits for the servers.
func (o *ownNATS) listening() {
	o.t.Helper()
	for address := range strings.SplitSeq(o.reach["NATS_URL"], ",") {
		testkit.Eventually(o.t, address+" to listen", func() bool {
			conn, err := (&net.Dialer{}).DialContext(o.t.Context(), "tcp", strings.TrimPrefix(address, "nats://"))
			return err == nil && conn.Close() == nil
		})
	}
}

// natsConfig is what 'jetpost nats config' prints.
func natsConfig(t *testing.T, args ...string) string {
	t.Helper()
	code, config, stderr := harness.RunCommand(t, harness.Environment(t, nil), "jetpost", append([]string{"nats", "config"}, args...)...)
	if code != exitOK {
		t.Fatalf("jetpost nats config %s: exit code %d\n%s", strings.Join(args, " "), code, stderr)
	}
	return config
}

// want runs a command and compares whether it worked.
func (o *ownNATS) want(works bool, env settings, args ...string) {
	o.t.Helper()
	code, stdout, stderr := harness.RunCommand(o.t, harness.Environment(o.t, o.reach.with(env)), "jetpost", args...)
	if (code == exitOK) != works {
		o.t.Errorf("jetpost %s, as %s: exit code %d\n%s%s", strings.Join(args, " "), env["NATS_USER"]+env["NATS_NKEY"], code, stdout, stderr)
	}
}

// works tells whether a command does.
func (o *ownNATS) works(env settings, args ...string) bool {
	o.t.Helper()
	code, _, _ := harness.RunCommand(o.t, harness.Environment(o.t, o.reach.with(env)), "jetpost", args...)
	return code == exitOK
}

// worker starts one and waits until it works.
func (o *ownNATS) worker(env settings) *harness.Process {
	o.t.Helper()
	p := harness.Start(o.t, "worker", harness.Environment(o.t, o.reach.with(env)), "jetpost", "worker", "--lifeboat", o.t.TempDir(), "--log-format", "json")
	p.Until("worker.started")
	return p
}

// grant makes an account at X, and the line that imports it.
func (o *ownNATS) grant(name string) string {
	o.t.Helper()
	g, err := o.sim.AddAccount(xsim.NewAccount{Handle: name})
	testkit.Must(o.t, err)
	line, err := json.Marshal(app.ImportLine{Name: name, AccessToken: g.AccessToken, RefreshToken: g.RefreshToken, ExpiresAt: time.Now().Add(time.Hour)})
	testkit.Must(o.t, err)
	path := filepath.Join(o.t.TempDir(), "grant")
	testkit.Must(o.t, os.WriteFile(path, line, 0o600))
	return path
}

// bring imports an account.
func (o *ownNATS) bring(env settings, name string) {
	o.t.Helper()
	code, stdout, stderr := harness.RunCommand(o.t, harness.Environment(o.t, o.reach.with(env)), "sh", "-c", "jetpost accounts import <"+o.grant(name))
	if code != exitOK {
		o.t.Fatalf("import %s: exit code %d\n%s%s", name, code, stdout, stderr)
	}
}

// pki makes certificates of one authority for a server, which has more addresses than
// 127.0.0.1, and a client. It returns the variables that show them.
func pki(t *testing.T, more ...net.IP) (client settings, serverCert, serverKey string) {
	t.Helper()
	dir := t.TempDir()
	file := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		testkit.Must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	var authority *x509.Certificate
	var signer *ecdsa.PrivateKey
	pair := func(name string) (cert, key string) {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		testkit.Must(t, err)
		c := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IPAddresses: append(more, net.IPv4(127, 0, 0, 1)), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IsCA: authority == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		}
		if authority == nil {
			authority, signer = c, private
		}
		der, err := x509.CreateCertificate(rand.Reader, c, authority, &private.PublicKey, signer)
		testkit.Must(t, err)
		secret, err := x509.MarshalECPrivateKey(private)
		testkit.Must(t, err)
		return file(name+".pem", "CERTIFICATE", der), file(name+".key", "EC PRIVATE KEY", secret)
	}
	ca, _ := pair("ca")
	serverCert, serverKey = pair("server")
	clientCert, clientKey := pair("client")
	return settings{"NATS_CA": ca, "NATS_CERT": clientCert, "NATS_KEY": clientKey}, serverCert, serverKey
}

// nkey makes a user's nkey: a file with its seed, and its public key.
func nkey(t *testing.T) (path, public string) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	testkit.Must(t, err)
	seed, err := pair.Seed()
	testkit.Must(t, err)
	public, err = pair.PublicKey()
	testkit.Must(t, err)
	path = filepath.Join(t.TempDir(), "user.nk")
	testkit.Must(t, os.WriteFile(path, seed, 0o600))
	return path, public
}

// On a nats-server with the configuration that 'jetpost nats config' prints, each user
// does its own, from setup to the post at X, and no other's.
func TestOwnNATSServer(t *testing.T) {
	t.Parallel()
	t.Run("passwords", func(t *testing.T) {
		t.Parallel()
		o, address := newOwnNATS(t), testkit.ClosedAddress(t)
		logins, passwords := map[string]settings{}, settings{}
		for _, user := range append(app.NATSUsers(), "acme") {
			passwords[app.PasswordVariable(user)] = "secret-of-" + user
			logins[user] = settings{"NATS_USER": user, "NATS_PASSWORD": "secret-of-" + user}
		}
		o.serve(natsConfig(t, "--listen", address, "--store-dir", t.TempDir(), "--customer", "acme"), address, passwords)
		o.roles(logins, 1)
	})
	t.Run("three servers, nkeys and certificates", func(t *testing.T) {
		t.Parallel()
		o := newOwnNATS(t)
		var cert, key string
		o.reach, cert, key = pki(t)
		args := []string{"--customer", "acme", "--cluster", "house", "--tls-cert", cert, "--tls-key", key, "--tls-ca", o.reach["NATS_CA"]}
		logins := map[string]settings{}
		for _, user := range append(app.NATSUsers(), "acme") {
			seed, public := nkey(t)
			logins[user] = settings{"NATS_NKEY": seed}
			args = append(args, "--nkey", user+"="+public)
		}
		const servers = 3
		var listen, routes [servers]string
		for i := range servers {
			listen[i], routes[i] = testkit.ClosedAddress(t), testkit.ClosedAddress(t)
			args = append(args, "--route", "nats-route://"+routes[i])
		}
		for i := range servers {
			o.serve(natsConfig(t, append(args, "--listen", listen[i], "--cluster-listen", routes[i], "--name", fmt.Sprint("n", i), "--store-dir", t.TempDir())...), listen[i], nil)
		}
		o.roles(logins, servers)
	})
}

// roles goes through what each user may do, and what it may not.
func (o *ownNATS) roles(logins map[string]settings, servers int) {
	o.t.Helper()
	as := func(user string) settings { return o.database.with(logins[user]) }
	setup := []string{"setup", "--replicas", fmt.Sprint(servers)}
	o.listening()
	o.want(false, as("producer"), setup...)
	o.want(true, as("setup"), setup...)
	for _, account := range []string{"acme", "other"} {
		o.bring(as("operator"), account)
	}
	worker := o.worker(as("worker"))

	o.want(true, logins["producer"], "publish", "acme", "One", "--id", "one", "--wait")
	if servers > 1 && os.Getenv("JETPOST_TEST_FULL") != "" { // R3 lets one fail, after some seconds
		o.servers[0].Kill()
	}
	testkit.Eventually(o.t, "a post through those that are left", func() bool { // once they have leaders
		return o.works(logins["producer"], "publish", "other", "Two", "--id", "two", "--wait")
	})
	o.want(true, logins["acme"], "publish", "acme", "Three", "--id", "three")
	o.want(false, logins["acme"], "publish", "other", "Four", "--id", "four")
	testkit.Eventually(o.t, "the customer's post", func() bool { return len(o.sim.Posts("acme")) == 2 })
	for account, want := range map[string][]string{"acme": {"One", "Three"}, "other": {"Two"}} {
		var got []string
		for _, post := range o.sim.Posts(account) {
			got = append(got, post.Text)
		}
		wantEqual(o.t, "posts of "+account, strings.Join(got, ", "), strings.Join(want, ", "))
	}

	// A customer has no object store: a worker takes what is too large for a message.
	large := filepath.Join(o.t.TempDir(), "large.gif")
	testkit.Must(o.t, os.WriteFile(large, append([]byte("GIF89a"), make([]byte, jetpost.MaxMediaPart)...), 0o600))
	o.want(true, logins["acme"], "publish", "acme", "Five", "--media", large, "--alt", "nothing", "--id", "five")

	for user, works := range map[string]bool{"operator": true, "producer": false, "acme": false} {
		o.want(works, as(user), "pause", "--app")
		o.want(works, as(user), "resume", "--app")
		o.want(works, as(user), "limits")
		o.want(works, as(user), "workers")
		o.want(works, as(user), "refresh", "other", "--force")
	}
	testkit.Eventually(o.t, "all to go on", func() bool { return o.works(as("operator"), "status") })
	o.want(false, as("producer"), "status")
	o.want(false, as("producer"), "worker", "--lifeboat", o.t.TempDir())
	setup = append(setup, "--jobs-mib", "128") // a change is setup's
	var both sync.WaitGroup                    // who may not gets no answer, and waits for it
	for _, user := range []string{"worker", "operator"} {
		both.Go(func() { o.want(false, as(user), setup...) })
	}
	both.Wait()
	o.want(true, as("setup"), setup...)
	harness.Stop(worker)
}

// jwtServer is a configuration of a nats-server with one account, whose users show
// credentials that the account has signed.
func jwtServer(t *testing.T, listen string) (config, creds string) {
	t.Helper()
	made := func(create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		pair, err := create()
		testkit.Must(t, err)
		public, err := pair.PublicKey()
		testkit.Must(t, err)
		return pair, public
	}
	operator, operatorKey := made(nkeys.CreateOperator)
	account, accountKey := made(nkeys.CreateAccount)
	user, userKey := made(nkeys.CreateUser)
	_, systemKey := made(nkeys.CreateAccount)
	instance := jwt.NewOperatorClaims(operatorKey)
	instance.SystemAccount = systemKey
	operatorJWT, err := instance.Encode(operator)
	testkit.Must(t, err)
	systemJWT, err := jwt.NewAccountClaims(systemKey).Encode(operator)
	testkit.Must(t, err)
	claims := jwt.NewAccountClaims(accountKey)
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}
	accountJWT, err := claims.Encode(operator)
	testkit.Must(t, err)
	userJWT, err := jwt.NewUserClaims(userKey).Encode(account)
	testkit.Must(t, err)
	seed, err := user.Seed()
	testkit.Must(t, err)
	text, err := jwt.FormatUserConfig(userJWT, seed)
	testkit.Must(t, err)
	creds = filepath.Join(t.TempDir(), "user.creds")
	testkit.Must(t, os.WriteFile(creds, text, 0o600))
	return fmt.Sprintf("listen: %q\njetstream {store_dir: %q}\noperator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: {%s: %s, %s: %s}\n",
		listen, t.TempDir(), operatorJWT, systemKey, systemKey, systemJWT, accountKey, accountJWT), creds
}

// Each command takes each kind of login, and the certificates of NATS_CA, NATS_CERT and
// NATS_KEY; without a login none gets in.
func TestEveryCommandLogsIn(t *testing.T) {
	t.Parallel()
	kinds := []string{"password", "nkey", "credentials"}
	if os.Getenv("JETPOST_TEST_FULL") == "" { // they differ in the login alone: one by chance
		kinds = []string{kinds[mathrand.IntN(len(kinds))]}
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			o, address := newOwnNATS(t), testkit.ClosedAddress(t)
			var cert, key string
			o.reach, cert, key = pki(t)
			seed, public := nkey(t)
			args := []string{"--listen", address, "--store-dir", t.TempDir(), "--tls-cert", cert, "--tls-key", key, "--tls-ca", o.reach["NATS_CA"]}
			var config string
			var login settings
			switch kind {
			case "password":
				config, login = natsConfig(t, args...), settings{"NATS_USER": "setup", "NATS_PASSWORD": "secret"}
			case "nkey":
				config, login = natsConfig(t, append(args, "--nkey", "setup="+public)...), settings{"NATS_NKEY": seed}
			default:
				var creds string
				config, creds = jwtServer(t, address)
				config += fmt.Sprintf("tls {cert_file: %q, key_file: %q, ca_file: %q, verify: true}\n", cert, key, o.reach["NATS_CA"])
				login = settings{"NATS_CREDS": creds}
			}
			passwords := settings{}
			for _, user := range app.NATSUsers() {
				passwords[app.PasswordVariable(user)] = "secret"
			}
			o.serve(config, address, passwords)
			o.listening()
			o.commands(login)
		})
	}
}

// commands runs each command that asks NATS, with a login and without.
func (o *ownNATS) commands(login settings) {
	o.t.Helper()
	in, out := o.database.with(login), o.database
	o.want(false, out, "setup")
	o.want(true, in, "setup")
	o.bring(in, "acme")
	o.want(false, out, "worker", "--lifeboat", o.t.TempDir())
	worker := o.worker(in)
	for _, args := range [][]string{
		{"publish", "acme", "Hello", "--id", "hello", "--wait"},
		{"requests", "watch", "hello"},
		{"publish", "acme", "Later", "--id", "later", "--at", "+1h"},
		{"refresh", "acme", "--force", "--wait"},
		{"pause", "acme"}, {"resume", "acme"}, {"pause", "--app"}, {"resume", "--app"},
		{"limits"}, {"forecast"}, {"workers"}, {"status"}, {"doctor", "--lifeboat", o.t.TempDir()},
	} {
		o.want(false, out, args...)
		o.want(true, in, args...)
	}
	testkit.Eventually(o.t, "the request for later", func() bool { return o.works(in, "requests", "show", "later") })
	for _, args := range [][]string{
		{"requests", "reschedule", "later", "--at", "+2h"}, {"requests", "cancel", "later"}, {"replay", "later"},
		{"accounts", "disconnect", "acme", "--yes"},
	} {
		o.want(false, out, args...)
		o.want(true, in, args...)
	}
	harness.Stop(worker)
}
