package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/consumers"
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
	// PublicURL is the public address of the pages, the base of links and of
	// the redirect URI. If it is empty and Listen is a loopback address, it is that
	// address.
	PublicURL string
	// ReturnHosts are where links may return to.
	ReturnHosts []string
	// Dashboard serves the dashboard as well, on a loopback address alone: it knows no users.
	Dashboard bool
	// ReadOnly has the dashboard change nothing.
	ReadOnly bool
}

// dashboardPath is where the dashboard is, on the address of the pages.
const dashboardPath = "/dashboard"

// checkDashboard lists what would let others than the users of this machine reach the
// dashboard.
func (c WebConfig) checkDashboard(wrong func(string, ...any)) {
	if !c.Dashboard {
		if c.ReadOnly {
			wrong("--read-only: is for the dashboard; add --dashboard")
		}
		return
	}
	if !listensOnLoopback(c.Listen) {
		wrong("--dashboard: is served on a loopback address alone, since it knows no users; listen on 127.0.0.1:8088, and reach it from elsewhere by ssh -L 8088:127.0.0.1:8088")
	}
	if public, err := url.Parse(c.PublicURL); err == nil && c.PublicURL != "" && !listensOnLoopback(net.JoinHostPort(public.Hostname(), "0")) {
		wrong("--dashboard: cannot be served beside pages that others reach at %s, since it knows no users; start a jetpost web of its own for it, without --public-url", c.PublicURL)
	}
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
	Site    web.Site
	log     *slog.Logger
	control *Control
	listen  net.Listener
	pages   http.Handler
	api     http.Handler
	// dashboard is nil where none is served.
	dashboard http.Handler
}

// DashboardURL is where the dashboard is, or "" where none is served.
func (w *Web) DashboardURL() string {
	if w.dashboard == nil {
		return ""
	}
	return "http://" + w.listen.Addr().String() + dashboardPath + "/"
}

// NewWeb checks everything that the pages depend on. It serves nothing yet.
func NewWeb(ctx context.Context, cfg Config, log *slog.Logger) (_ *Web, err error) {
	if err := cfg.validate(needs{nats: true, database: true, keys: true, x: true, web: true}); err != nil {
		return nil, err
	}
	w := &Web{log: log}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if w.listen, err = Listen(ctx, cfg.Web.Listen, "--web-listen"); err != nil {
		return nil, err
	}
	if cfg.Web.PublicURL == "" {
		cfg.Web.PublicURL = (&url.URL{Scheme: "http", Host: w.listen.Addr().String()}).String()
	}
	if w.Site, err = cfg.Web.site(); err != nil {
		return nil, err
	}
	if w.control, err = cfg.OpenControl(ctx, log); err != nil {
		return nil, err
	}
	if err := consumers.CheckClock(ctx, w.control.Ledger); err != nil {
		return nil, databaseError(err)
	}
	connector, err := w.control.Connector()
	if err != nil {
		return nil, err
	}
	workers, err := client.New(w.control.Conn.Conn, client.WithPrefix(cfg.NATS.Prefix))
	if err != nil {
		return nil, err
	}
	w.api = api.New(workers, log)
	if w.pages, err = web.New(web.Config{Site: w.Site, Links: w.control.Ledger, Connector: visit{connector}, Log: log}); err != nil {
		return nil, err
	}
	if cfg.Web.Dashboard {
		w.dashboard, err = web.NewDashboard(web.DashboardConfig{
			Operations: workers, Log: w.log, Base: dashboardPath, Site: w.Site, ReadOnly: cfg.Web.ReadOnly,
		})
	}
	return w, err
}

// handler serves everything that listens on the one address. If the public address has
// a path, everything but the health check is below it.
func (w *Web) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) {
		answer(rw, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.Handle(w.Site.Public.Path+api.Path, http.StripPrefix(w.Site.Public.Path, w.api))
	mux.Handle("/", w.pages)
	if w.dashboard != nil {
		mux.Handle(dashboardPath+"/", w.dashboard)
		mux.Handle("GET /{$}", http.RedirectHandler(dashboardPath+"/", http.StatusSeeOther))
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
	if w.control != nil {
		w.control.Close()
	}
}

// visit is a Connector for the people on the pages.
type visit struct{ *Connector }

// Connect implements web.Connector.
func (v visit) Connect(ctx context.Context, account, code, verifier, redirectURI string) (web.Connected, error) {
	connected, err := v.Connector.Connect(ctx, account, code, verifier, redirectURI)
	var wrong *WrongUserError
	var missing *MissingScopesError
	switch {
	case errors.As(err, &wrong) && wrong.Owner != "":
		err = &web.RefusedError{Reason: web.OtherUser, Err: err}
	case errors.As(err, &wrong):
		err = &web.RefusedError{Reason: web.OtherName, Err: err}
	case errors.As(err, &missing):
		err = &web.RefusedError{Reason: web.Incomplete, Err: err}
	}
	return web.Connected{Username: connected.Username}, err
}
