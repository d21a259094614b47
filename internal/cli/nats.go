package cli

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
)

// publicNKey is the public key of a user.
var publicNKey = regexp.MustCompile(`^U[A-Z2-7]{55}$`)

// natsCmd is 'jetpost nats'.
type natsCmd struct {
	Config natsConfigCmd `cmd:"" help:"Print a nats-server configuration whose accounts and users limit producers to the contract."`
}

// natsConfigCmd is 'jetpost nats config'.
type natsConfigCmd struct {
	Prefix   string            `placeholder:"NAME" help:"Prefix of the names of all subjects and streams."`
	Customer []string          `placeholder:"ACCOUNT" help:"Add a producer that may publish only for this X account, in a NATS account of its own; NAME=ACCOUNT+ACCOUNT for several. May be repeated."`
	Reader   []string          `placeholder:"NAME=ACCOUNT" help:"Add a program that hears the events of this X account, and can do nothing else; NAME=ACCOUNT+ACCOUNT for several. May be repeated."`
	Allow    []string          `placeholder:"OPERATION" help:"Operation that producers may request for their accounts, instead of request.publish, request.check, request.get, request.cancel and media.put; 'none' for none. May be repeated."`
	NKey     map[string]string `name:"nkey" mapsep:"none" placeholder:"USER=PUBLIC" help:"Authenticate a user by the public key of an nkey instead of a password. May be repeated."`
	Web      bool              `help:"Add the user web for 'jetpost web', which may call operations and nothing else."`
	NoLogin  bool              `help:"Treat clients without a login as the producer."`

	Listen   string `default:"0.0.0.0:4222" placeholder:"ADDR" help:"Listening address for clients (${default})."`
	HTTP     string `name:"http" placeholder:"ADDR" help:"Listening address for monitoring. Default: none."`
	Name     string `default:"jetpost" placeholder:"NAME" help:"Server name, unique in a cluster (${default})."`
	StoreDir string `default:"/data" placeholder:"DIR" help:"JetStream's store directory (${default})."`

	TLSCert string `name:"tls-cert" placeholder:"FILE" help:"Server certificate. Default: no TLS."`
	TLSKey  string `name:"tls-key" placeholder:"FILE" help:"Private key of --tls-cert."`
	TLSCA   string `name:"tls-ca" placeholder:"FILE" help:"CA certificates. If set, clients need a certificate signed by one of them."`

	Cluster       string   `placeholder:"NAME" help:"Cluster name. Three servers, with 'jetpost setup --replicas 3', survive the loss of one."`
	ClusterListen string   `default:"0.0.0.0:6222" placeholder:"ADDR" help:"Listening address for the other servers (${default})."`
	Route         []string `placeholder:"URL" help:"Route to another server, nats-route://host:6222. May be repeated."`
}

// Run prints the configuration, and on standard error the variables that it needs.
func (c *natsConfigCmd) Run(e *env) error {
	walls, err := c.walls()
	if err != nil {
		return err
	}
	if _, err := fmt.Fprint(e.stdout, c.server(), walls.Config()); err != nil {
		return err
	}
	var variables []string
	for _, user := range walls.Users() {
		if c.NKey[user] == "" && (user != "producer" || !c.NoLogin) {
			variables = append(variables, app.PasswordVariable(user))
		}
	}
	if len(variables) > 0 {
		fmt.Fprintf(e.stderr, "nats-server reads from its environment: %s\n  do: give each as a password that begins with a letter, or as its hash by 'nats server passwd'\n", strings.Join(variables, ", "))
	}
	return nil
}

func (c *natsConfigCmd) walls() (app.Walls, error) {
	walls := app.Walls{Web: c.Web, NoLogin: c.NoLogin, Logins: map[string]string{}, Accounts: map[string][]string{}}
	var wrong []string
	var err error
	own := func(flag string, users []string) (names []string) {
		for _, user := range users {
			name, accounts, several := strings.Cut(user, "=")
			names = append(names, name)
			if !several {
				continue
			}
			for account := range strings.SplitSeq(accounts, "+") {
				if err := jetpost.CheckAccount(account); err != nil {
					wrong = append(wrong, flag+": "+err.Error())
				}
				walls.Accounts[name] = append(walls.Accounts[name], account)
			}
		}
		return names
	}
	walls.Customers, walls.Readers = own("--customer", c.Customer), own("--reader", c.Reader)
	if walls.Names, err = jetpost.NewNames(c.Prefix); err != nil {
		wrong = append(wrong, "--"+err.Error())
	}
	for _, name := range c.Allow {
		if walls.Allow = append(walls.Allow, jetpost.Operation(name)); name == "none" {
			walls.Allow = []jetpost.Operation{}
			break
		}
		if err := app.CheckAllowed(jetpost.Operation(name)); err != nil {
			wrong = append(wrong, "--allow: "+err.Error())
		}
	}
	known, variables := map[string]bool{}, map[string]bool{}
	for _, user := range walls.Users() {
		if err := jetpost.CheckAccount(user); err != nil {
			wrong = append(wrong, "--customer, --reader: "+err.Error())
		}
		if variable := app.PasswordVariable(user); variables[variable] {
			wrong = append(wrong, fmt.Sprintf("--customer, --reader: %q has the name of another user, or %s would be the password of both", user, variable))
		}
		known[user], variables[app.PasswordVariable(user)] = true, true
	}
	if c.NoLogin {
		walls.Logins["producer"] = `password: ""`
	}
	for user, key := range c.NKey {
		if !known[user] {
			wrong = append(wrong, fmt.Sprintf("--nkey: there is no user %q", user))
		}
		if !publicNKey.MatchString(key) {
			wrong = append(wrong, fmt.Sprintf("--nkey: %s has no public key of a user, which begins with U", user))
		}
		walls.Logins[user] = "nkey: " + key
	}
	if c.NoLogin && c.NKey["producer"] != "" {
		wrong = append(wrong, "--no-login: the producer has an nkey; keep one of both")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") || (c.TLSCA != "" && c.TLSCert == "") {
		wrong = append(wrong, "--tls-cert: needs --tls-key, and --tls-ca needs both")
	}
	if len(wrong) > 0 {
		return walls, &app.ConfigError{Mistakes: wrong}
	}
	return walls, nil
}

// server is the part of the configuration outside the accounts.
func (c *natsConfigCmd) server() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Made by 'jetpost nats config'.\nlisten: %q\nserver_name: %q\n", c.Listen, c.Name)
	if c.HTTP != "" {
		fmt.Fprintf(&b, "http: %q\n", c.HTTP)
	}
	fmt.Fprintf(&b, "jetstream {store_dir: %q}\n", c.StoreDir)
	if c.TLSCert != "" {
		fmt.Fprintf(&b, "tls {cert_file: %q, key_file: %q", c.TLSCert, c.TLSKey)
		if c.TLSCA != "" {
			fmt.Fprintf(&b, ", ca_file: %q, verify: true", c.TLSCA)
		}
		b.WriteString("}\n")
	}
	if c.Cluster != "" {
		fmt.Fprintf(&b, "cluster {\n  name: %q\n  listen: %q\n", c.Cluster, c.ClusterListen)
		routes := make([]string, len(c.Route))
		for i, route := range c.Route {
			routes[i] = strconv.Quote(route)
		}
		fmt.Fprintf(&b, "  routes: [%s]\n}\n", strings.Join(routes, ", "))
	}
	return b.String()
}
