package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/web"
	"github.com/jetpost/jetpost/web/api"
)

const (
	// maxWebHeader bounds the headers of a request for a page: a link, a cookie
	// and what browsers add.
	maxWebHeader = 32 << 10 // bytes
	// webReadTime bounds the reading of a request, whose body is empty.
	webReadTime = 15 * time.Second
	webIdleTime = 2 * time.Minute
)

// WebConfig is the configuration of the pages for people.
type WebConfig struct {
	Listen string // address; empty serves no pages
	// AnyPort takes another port where that of Listen is in use.
	AnyPort bool
	// PublicURL is the public address of the pages, the base of links and of
	// the redirect URI. If it is empty and Listen is a loopback address, it is that
	// address.
	PublicURL string
	// ReturnHosts are where links may return to.
	ReturnHosts []string
	// Dashboard serves the dashboard as well.
	Dashboard bool
	// ReadOnly has the dashboard change nothing, and HideTexts show nothing that producers
	// wrote.
	ReadOnly, HideTexts bool
	// RequireLogin asks for a login on a loopback address, too; on others there always is one.
	RequireLogin bool
	// TrustedUserHeader is the header in which one of the TrustedProxies, addresses or
	// networks, names who asks; TrustedUserRole is the role of those who are no users.
	TrustedUserHeader string
	TrustedUserRole   jetpost.Role
	TrustedProxies    []string
}

// linkActor is who connects an account with a one-time link, for the audit log.
const linkActor = "link"

// dashboardPath is where the dashboard is, on the address of the pages.
const dashboardPath = "/dashboard"

// headerName is the name of a header.
var headerName = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// checkDashboard lists the mistakes in who may see the dashboard.
func (c WebConfig) checkDashboard(wrong func(string, ...any)) {
	if !c.Dashboard {
		for flag, set := range map[string]bool{
			"--read-only": c.ReadOnly, "--hide-texts": c.HideTexts, "--require-login": c.RequireLogin, "--trusted-user-header": c.TrustedUserHeader != "",
		} {
			if set {
				wrong("%s: is for the dashboard; add --dashboard", flag)
			}
		}
		return
	}
	if _, err := c.proxies(); err != nil {
		wrong("--trusted-proxies: %v", err)
	}
	switch {
	case c.TrustedUserHeader == "" && c.TrustedUserRole != "":
		wrong("--trusted-user-role: is for --trusted-user-header")
	case c.TrustedUserHeader == "":
	case !headerName.MatchString(c.TrustedUserHeader):
		wrong("--trusted-user-header: %q is no name of a header; for example X-Forwarded-User", c.TrustedUserHeader)
	case len(c.TrustedProxies) == 0:
		wrong("--trusted-user-header: whose is believed? name the addresses of the proxy with --trusted-proxies")
	}
	if c.TrustedUserRole != "" && !slices.Contains(jetpost.Roles(), c.TrustedUserRole) {
		wrong("--trusted-user-role: %q is none of %v", c.TrustedUserRole, jetpost.Roles())
	}
}

// proxies are the trusted proxies: addresses, and networks of them.
func (c WebConfig) proxies() (list []netip.Prefix, err error) {
	for _, text := range c.TrustedProxies {
		prefix, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil {
			prefix, err = addr.Prefix(addr.BitLen())
		}
		if err != nil {
			return nil, fmt.Errorf("%q is neither an address nor a network; for example 10.0.0.5 or 10.0.0.0/24", text)
		}
		list = append(list, prefix.Masked())
	}
	return list, nil
}

// exposed tells whether others than the users of this machine reach the pages.
func (c WebConfig) exposed(public *url.URL) bool {
	return !listensOnLoopback(c.Listen) || !listensOnLoopback(net.JoinHostPort(public.Hostname(), "0"))
}

// login says who may see the dashboard.
func (c WebConfig) login(public *url.URL) (web.LoginConfig, error) {
	proxies, err := c.proxies()
	return web.LoginConfig{
		Required: c.RequireLogin || c.TrustedUserHeader != "" || c.exposed(public), Header: c.TrustedUserHeader, HeaderRole: c.TrustedUserRole,
		Proxies: proxies, Secure: public.Scheme == "https",
	}, err
}

// check lists the mistakes in the pages' addresses.
func (c WebConfig) check(wrong func(string, ...any)) {
	c.checkDashboard(wrong)
	switch {
	case c.PublicURL != "":
		if _, err := web.ParsePublicURL(c.PublicURL); err != nil {
			wrong("--public-url: %v", err)
		}
	case c.Listen == "" || !listensOnLoopback(c.Listen):
		wrong("--public-url: is missing; it is the address of the pages for people, for example https://connect.example.com")
	}
	for _, host := range c.ReturnHosts {
		if _, err := web.ParseReturnHost(host); err != nil {
			wrong("--return-hosts: %v", err)
		}
	}
}

func listensOnLoopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// site is the part that the pages and the links to them share.
func (c WebConfig) site() (web.Site, error) {
	var mistakes []string
	c.check(func(format string, args ...any) { mistakes = append(mistakes, fmt.Sprintf(format, args...)) })
	if len(mistakes) > 0 {
		return web.Site{}, &ConfigError{Mistakes: mistakes}
	}
	public, err := web.ParsePublicURL(c.PublicURL)
	if err != nil {
		return web.Site{}, err
	}
	site := web.Site{Public: public}
	for _, text := range c.ReturnHosts {
		host, err := web.ParseReturnHost(text)
		if err != nil {
			return web.Site{}, err
		}
		site.ReturnHosts = append(site.ReturnHosts, host)
	}
	return site, nil
}

// LinkSite is the site of the links that a command makes: the pages of the
// installation that runs on this machine, which the command's flags must match, or
// the site in these flags.
func (c Config) LinkSite(said WebConfig) (web.Site, error) {
	runs := c.Web
	if runs.PublicURL == "" {
		return WebConfig{PublicURL: said.PublicURL, ReturnHosts: said.ReturnHosts}.site()
	}
	site, err := WebConfig{PublicURL: cmp.Or(said.PublicURL, runs.PublicURL), ReturnHosts: said.ReturnHosts}.site()
	if err != nil {
		return web.Site{}, err
	}
	var mistakes []string
	if site.Public.String() != runs.PublicURL {
		mistakes = append(mistakes, fmt.Sprintf("--public-url: is %s, but the jetpost that runs here has its pages on %s", site.Public, runs.PublicURL))
	}
	for _, host := range site.ReturnHosts {
		if !slices.Contains(runs.ReturnHosts, host) {
			mistakes = append(mistakes, fmt.Sprintf("--return-hosts: names %s, but the jetpost that runs here does not", host))
		}
	}
	if len(mistakes) > 0 {
		return web.Site{}, &ConfigError{Mistakes: mistakes}
	}
	if len(site.ReturnHosts) == 0 {
		site.ReturnHosts = runs.ReturnHosts
	}
	return site, nil
}

// Web serves the pages for people, and the operations for programs.
type Web struct {
	Site   web.Site
	log    *slog.Logger
	conn   *Connection
	listen net.Listener
	pages  http.Handler
	api    http.Handler
	// dashboard is nil where none is served.
	dashboard *web.Dashboard
	// exposed tells that others than the users of this machine reach it.
	exposed, loginNeeded bool
}

// DashboardURL is where the dashboard is, or "" where none is served.
func (w *Web) DashboardURL() string {
	if w.dashboard == nil {
		return ""
	}
	if w.exposed {
		return w.Site.Public.String() + dashboardPath + "/"
	}
	return "http://" + w.listen.Addr().String() + w.Site.Public.Path + dashboardPath + "/"
}

// LoginNeeded tells that the dashboard asks for a login.
func (w *Web) LoginNeeded() bool { return w.loginNeeded }

// NewWeb checks everything that the pages depend on but the workers, which may come later.
// It serves nothing yet.
func NewWeb(ctx context.Context, cfg Config, log *slog.Logger) (_ *Web, err error) {
	if err := cfg.validate(needs{nats: true, web: true}); err != nil {
		return nil, err
	}
	w := &Web{log: log}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if w.listen, err = listenWeb(ctx, cfg.Web); err != nil {
		return nil, err
	}
	if cfg.Web.PublicURL == "" {
		cfg.Web.PublicURL = (&url.URL{Scheme: "http", Host: w.listen.Addr().String()}).String()
	}
	if w.Site, err = cfg.Web.site(); err != nil {
		return nil, err
	}
	if w.conn, err = cfg.Connect(ctx, log, "jetpost web", nats.CustomInboxPrefix(webInbox)); err != nil {
		return nil, err
	}
	workers, err := client.New(w.conn.Conn, client.WithPrefix(cfg.NATS.Prefix))
	if err != nil {
		return nil, err
	}
	w.api = api.New(workers, log)
	if w.pages, err = web.New(web.Config{Site: w.Site, Workers: workers, Log: log}); err != nil {
		return nil, err
	}
	if cfg.Web.Dashboard {
		err = w.openDashboard(cfg.Web, workers)
	}
	return w, err
}

// openDashboard makes the dashboard. Others than this machine's users reach it under the
// public address alone, and log in.
func (w *Web) openDashboard(cfg WebConfig, workers *client.Client) error {
	public := w.Site.Public
	login, err := cfg.login(public)
	if err != nil {
		return err
	}
	w.exposed, w.loginNeeded = cfg.exposed(public), login.Required
	var hosts []string
	if w.exposed {
		host := strings.ToLower(public.Host)
		hosts = []string{host, strings.TrimSuffix(host, map[string]string{"https": ":443", "http": ":80"}[public.Scheme])}
	}
	w.dashboard, err = web.NewDashboard(web.DashboardConfig{
		Operations: workers, Log: w.log, Base: public.Path + dashboardPath, Site: w.Site, ReadOnly: cfg.ReadOnly, HideTexts: cfg.HideTexts,
		Login: login, Hosts: hosts, Changes: workers.Changes, Media: pictures{publishers.New(w.conn.JS, w.conn.Names), workers},
	})
	return err
}

// pictures are those of the dashboard's threads. Workers put them there, since the user web
// has no object store, and note who asked.
type pictures struct {
	*publishers.Publisher
	workers *client.Client
}

// PutMedia implements web.Media.
func (p pictures) PutMedia(ctx context.Context, file io.Reader) (object string, err error) {
	stored, err := p.workers.MediaPut(ctx, "", file)
	return stored.Object, err
}

// listenWeb listens for the pages.
func listenWeb(ctx context.Context, c WebConfig) (net.Listener, error) {
	const flag = "--web-listen"
	listener, err := Listen(ctx, c.Listen, flag)
	if host, _, split := net.SplitHostPort(c.Listen); c.AnyPort && split == nil && errors.Is(err, syscall.EADDRINUSE) {
		return Listen(ctx, net.JoinHostPort(host, "0"), flag)
	}
	return listener, err
}

// handler serves everything that listens on the one address. If the public address has
// a path, everything but the health check is below it.
func (w *Web) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) {
		answer(rw, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.Handle(w.Site.Public.Path+api.Path, http.StripPrefix(w.Site.Public.Path, w.api))
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		w.pages.ServeHTTP(rw, r.WithContext(jetpost.WithActor(r.Context(), linkActor)))
	})
	if w.dashboard != nil {
		base := w.Site.Public.Path
		mux.Handle(base+dashboardPath+"/", w.dashboard)
		mux.Handle("GET "+base+"/{$}", http.RedirectHandler(base+dashboardPath+"/", http.StatusSeeOther))
	}
	return mux
}

// Run serves until the context ends. It then completes requests with X's answers, because
// their tokens must be stored.
func (w *Web) Run(ctx context.Context) error {
	server := &http.Server{
		Handler: w.handler(), ReadHeaderTimeout: headerTimeout, ReadTimeout: webReadTime, IdleTimeout: webIdleTime,
		WriteTimeout: web.MaxAnswerTime, MaxHeaderBytes: maxWebHeader, ErrorLog: slog.NewLogLogger(w.log.Handler(), slog.LevelDebug),
	}
	if w.dashboard != nil { // its streams last for as long as they are read
		server.RegisterOnShutdown(w.dashboard.Close)
	}
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		finishing, cancel := context.WithTimeout(context.WithoutCancel(ctx), web.MaxAnswerTime)
		defer cancel()
		ended <- server.Shutdown(finishing)
	})
	w.log.Info("web.started", "listen", w.listen.Addr().String(), "public_url", w.Site.Public.String(), "redirect_uri", w.Site.RedirectURI())
	if err := server.Serve(w.listen); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("serve pages on %s: %w", w.listen.Addr(), err)
	}
	err := <-ended
	w.log.Info("web.stopped")
	return err
}

// Close frees what NewWeb opened.
func (w *Web) Close() {
	if w.listen != nil {
		_ = w.listen.Close() // closed already by a run
	}
	if w.dashboard != nil {
		w.dashboard.Close()
	}
	if w.conn != nil {
		w.conn.Close()
	}
}
