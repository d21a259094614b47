package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/web"
)

// siteFlags are the address of the pages, and the hosts that their links may return to.
type siteFlags struct {
	PublicURL   string   `name:"public-url" placeholder:"URL" help:"Public https address of the pages. Register URL/connect/callback as a callback URI in X's developer console."`
	ReturnHosts []string `placeholder:"HOST" help:"Hosts that links may return to, exactly as in the address: app.example.com, 127.0.0.1:3000."`
}

// apply sets the listening and the public address of the pages.
func (f siteFlags) apply(cfg *app.Config, listen string) {
	cfg.Web = app.WebConfig{Listen: listen, PublicURL: f.PublicURL, ReturnHosts: f.ReturnHosts}
}

// dashboardFlags have the dashboard served beside the pages.
type dashboardFlags struct {
	Dashboard    bool         `help:"Serve the dashboard as well, at /dashboard/. On a loopback address it needs no login; for any other one make a user first: jetpost users add NAME --role admin."`
	ReadOnly     bool         `name:"read-only" env:"JETPOST_DASHBOARD_READ_ONLY" help:"Let the dashboard show everything and change nothing."`
	HideTexts    bool         `name:"hide-texts" env:"JETPOST_DASHBOARD_HIDE_TEXTS" help:"Let the dashboard show neither texts nor metadata of requests."`
	RequireLogin bool         `name:"require-login" env:"JETPOST_DASHBOARD_REQUIRE_LOGIN" help:"Ask for a login to the dashboard on a loopback address, too."`
	UserHeader   string       `name:"trusted-user-header" placeholder:"NAME" help:"Header in which a trusted proxy names who has logged in there, for example X-Forwarded-User."`
	UserRole     jetpost.Role `name:"trusted-user-role" placeholder:"ROLE" help:"Role of those whom the proxy names and who are no users: viewer, editor or admin. Default: they are not let in."`
	Proxies      []string     `name:"trusted-proxies" placeholder:"CIDR" help:"Addresses or networks of the proxies whose user header and X-Forwarded-For are believed."`
}

// apply sets the dashboard of the pages.
func (f dashboardFlags) apply(cfg *app.Config) {
	w := &cfg.Web
	w.Dashboard, w.ReadOnly, w.HideTexts, w.RequireLogin = f.Dashboard, f.ReadOnly, f.HideTexts, f.RequireLogin
	w.TrustedUserHeader, w.TrustedUserRole, w.TrustedProxies = f.UserHeader, f.UserRole, f.Proxies
}

// webCmd is 'jetpost web'.
type webCmd struct {
	Listen         string `aliases:"web-listen" env:"JETPOST_WEB_LISTEN" default:"127.0.0.1:8088" placeholder:"ADDR" help:"Listening address (${default}). Put a TLS proxy in front of it."`
	siteFlags      `embed:""`
	dashboardFlags `embed:""`
	appFlags       `embed:""`
}

// Run serves the pages until it is told to stop.
func (c *webCmd) Run(e *env) error {
	cfg, err := e.natsConfig()
	if err != nil {
		return err
	}
	c.siteFlags.apply(&cfg, c.Listen)
	c.dashboardFlags.apply(&cfg)
	w, err := app.NewWeb(e.ctx, cfg, e.log)
	if err != nil {
		return err
	}
	defer w.Close()
	tellDashboard(e, w.DashboardURL(), w.LoginNeeded())
	fmt.Fprintln(e.stdout, siteText(w.Site))
	return w.Run(e.ctx)
}

// tellDashboard prints where the dashboard is, if there is one.
func tellDashboard(e *env, address string, login bool) {
	switch {
	case address == "":
	case login:
		fmt.Fprintf(e.stdout, "dashboard on %s, with a login; make users with: jetpost users add NAME --role ROLE\n", address)
	default:
		fmt.Fprintf(e.stdout, "dashboard on %s\n", address)
	}
}

// siteText is the public address and the redirect URI of the pages.
func siteText(site web.Site) string {
	return fmt.Sprintf("pages on %s; redirect URI for X's developer console: %s", site.Public, site.RedirectURI())
}

// accountsLinkCmd is 'jetpost accounts link'.
type accountsLinkCmd struct {
	Name      string        `arg:"" help:"Name of the account, new or existing."`
	TTL       time.Duration `name:"ttl" env:"-" default:"1h" placeholder:"DURATION" help:"How long the link works (${default})."`
	ReturnTo  string        `name:"return-to" env:"-" placeholder:"URL" help:"Address to which the customer is sent afterwards, on one of the --return-hosts."`
	siteFlags `embed:""`
	natsFlags `embed:""`
}

// Run makes a link, and prints it with its expiry.
func (c *accountsLinkCmd) Run(e *env) error {
	cfg, err := e.natsConfig()
	if err != nil {
		return err
	}
	site, err := cfg.LinkSite(app.WebConfig{PublicURL: c.PublicURL, ReturnHosts: c.ReturnHosts})
	if err != nil {
		return err
	}
	return e.look(func(ctx context.Context, workers operations) error {
		link, err := workers.AccountLink(ctx, c.Name, jetpost.AccountLink{
			TTL: c.TTL.String(), ReturnTo: c.ReturnTo, PublicURL: site.Public.String(), ReturnHosts: site.ReturnHosts,
		})
		if failedAs(err, jetpost.ErrInvalid) {
			return mistakes("cannot make a link", strings.Split(strings.TrimPrefix(err.Error(), "cannot make a link: "), "; ")...)
		}
		if err != nil {
			return err
		}
		return e.show(link, fmt.Sprintf("%s\nuntil %s\n", link.URL, localTime(link.ExpiresAt)))
	})
}
