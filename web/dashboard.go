package web

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
)

const (
	// readWithin and changeWithin bound what a page waits for the control service: a call
	// whose answer is lost is repeated until then.
	readWithin   = 12 * time.Second
	changeWithin = 25 * time.Second
	// pageSize is how many entries a page lists.
	pageSize = 50
)

// Operations are those of the control service that the dashboard calls: *client.Client has
// them.
type Operations interface {
	RequestGet(ctx context.Context, account string, in jetpost.RequestGet) (jetpost.RequestDetails, error)
	RequestList(ctx context.Context, account string, in jetpost.RequestList) (jetpost.RequestPage, error)
	RequestCount(ctx context.Context, account string) (jetpost.RequestCounts, error)
	RequestCalendar(ctx context.Context, account string, in jetpost.RequestCalendar) (jetpost.CalendarPage, error)
	RequestHistory(ctx context.Context, account string, in jetpost.RequestHistory) (jetpost.History, error)
	RequestCheck(ctx context.Context, account string, r jetpost.Request) (jetpost.CheckAnswer, error)
	RequestPublish(ctx context.Context, account string, r jetpost.Request) (jetpost.PublishAnswer, error)
	RequestReschedule(ctx context.Context, account string, in jetpost.RequestReschedule) (jetpost.RequestStatus, error)
	RequestCancel(ctx context.Context, account string, in jetpost.RequestCancel) (jetpost.RequestStatus, error)
	RequestCancelMany(ctx context.Context, account string, in jetpost.RequestCancelMany) (jetpost.CancelAnswer, error)
	RequestResolve(ctx context.Context, account string, in jetpost.RequestResolve) (jetpost.RequestStatus, error)
	RequestReconcile(ctx context.Context, account string, in jetpost.RequestReconcile) (jetpost.RequestStatus, error)
	RequestReplay(ctx context.Context, account string, in jetpost.RequestReplay) (jetpost.ReplayAnswer, error)
	RequestUnpublish(ctx context.Context, account string, in jetpost.RequestUnpublish) (jetpost.RequestStatus, error)
	AccountList(ctx context.Context, in jetpost.AccountList) (jetpost.AccountPage, error)
	AccountGet(ctx context.Context, account string) (jetpost.AccountReport, error)
	AccountPause(ctx context.Context, account string, in jetpost.PauseRequest) (jetpost.AccountPaused, error)
	AccountResume(ctx context.Context, account string, in jetpost.ResumeRequest) (jetpost.Resumed, error)
	AccountRefresh(ctx context.Context, account string, in jetpost.AccountRefresh) (jetpost.AccountInfo, error)
	AccountDisconnect(ctx context.Context, account string, in jetpost.AccountDisconnect) (jetpost.Disconnected, error)
	AccountLink(ctx context.Context, account string, in jetpost.AccountLink) (jetpost.Link, error)
	AppStatus(ctx context.Context) (jetpost.StatusReport, error)
	AppLimits(ctx context.Context, in jetpost.LimitsRequest) (jetpost.Limits, error)
	AppForecast(ctx context.Context, in jetpost.ForecastRequest) (jetpost.Forecast, error)
	AppSeries(ctx context.Context) (jetpost.Series, error)
	AppPause(ctx context.Context, in jetpost.PauseRequest) (jetpost.AppPaused, error)
	AppResume(ctx context.Context, in jetpost.ResumeRequest) (jetpost.Resumed, error)
	DeadLettersList(ctx context.Context, account string, in jetpost.DeadLettersList) (jetpost.DeadLetterPage, error)
	UserAdd(ctx context.Context, in jetpost.UserAdd) (jetpost.User, error)
	UserList(ctx context.Context, in jetpost.UserList) (jetpost.UserPage, error)
	UserGet(ctx context.Context, in jetpost.UserGet) (jetpost.User, error)
	UserSet(ctx context.Context, in jetpost.UserSet) (jetpost.User, error)
	UserRemove(ctx context.Context, in jetpost.UserRemove) (jetpost.User, error)
	SessionBegin(ctx context.Context, in jetpost.SessionBegin) (jetpost.Session, error)
	SessionCheck(ctx context.Context, in jetpost.SessionCheck) (jetpost.Session, error)
	SessionEnd(ctx context.Context, in jetpost.SessionEnd) (jetpost.SessionEnded, error)
	AuditList(ctx context.Context, in jetpost.AuditList) (jetpost.AuditPage, error)
	DeadLettersGroups(ctx context.Context) (jetpost.DeadLetterGroups, error)
	WorkersList(ctx context.Context) (jetpost.Workers, error)
}

// DashboardConfig says what a Dashboard needs; Operations and Log must be there.
type DashboardConfig struct {
	Operations Operations
	Log        *slog.Logger
	// Base is the path on which the dashboard is mounted, without a slash at its end.
	Base string
	// Media is where pictures of posts lie; nil shows and takes in none.
	Media Media
	// Site is where the links lead that the dashboard makes. Without one it makes none.
	Site Site
	// ReadOnly hides the buttons and refuses every change.
	ReadOnly bool
	// HideTexts shows nothing that producers wrote.
	HideTexts bool
	// Login says who may see the dashboard.
	Login LoginConfig
	// Hosts are the hosts, with their ports, under which browsers reach the dashboard
	// beside this machine's own names. Without a login, whoever names hosts here lets in
	// only those who may see and change everything.
	Hosts []string
	// Changes is what live pages follow: *client.Client has it. Without it pages show what
	// was when they were loaded.
	Changes Changes
	Now     func() time.Time // time.Now where nil
}

// Dashboard serves the operator's pages. It is safe for concurrent use, and keeps nothing but
// the latest answers: what it shows and changes, it asks of the control service.
type Dashboard struct {
	cfg       DashboardConfig
	mux       *http.ServeMux
	crossSite *http.CrossOriginProtection
	pages     map[string]*template.Template
	routes    []Route
	// guarded are the patterns of the routes, and unguarded those without a role, which a
	// dashboard does not have.
	guarded   map[string]bool
	unguarded []Route
	asked     *asked
	feed      *feed // nil where pages are not live
}

// NewDashboard makes a dashboard, to be mounted on its base.
func NewDashboard(cfg DashboardConfig) (*Dashboard, error) {
	if cfg.Operations == nil || cfg.Log == nil {
		return nil, errors.New("make dashboard: want operations and a log")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	pages, err := readDashboard()
	if err != nil {
		return nil, fmt.Errorf("make dashboard: %w", err)
	}
	if cfg.HideTexts {
		cfg.Operations, cfg.Media = hidden{cfg.Operations}, nil
	}
	d := &Dashboard{cfg: cfg, pages: pages, mux: http.NewServeMux(), crossSite: http.NewCrossOriginProtection(), guarded: map[string]bool{}, asked: newAsked()}
	if cfg.Changes != nil {
		d.feed = newFeed(cfg.Changes, cfg.Log)
	}
	d.get("/{$}", d.overview)
	d.get("/requests", d.requests)
	d.get("/requests/{account}/{id}", d.request)
	d.get("/calendar", d.calendar)
	d.get("/zone", d.setZone)
	d.get("/media/{object...}", d.media)
	d.getFor(jetpost.RoleEditor, composePath, d.compose)
	d.post(jetpost.RoleEditor, composePath, d.writeThread)
	d.get("/accounts", d.accounts)
	d.get("/accounts/{account}", d.account)
	d.get("/limits", d.limits)
	d.get("/dead-letters", d.deadLetters)
	d.getFor(jetpost.RoleEditor, "/requests/{account}/{id}/unpublish", d.confirmUnpublish)
	d.post(jetpost.RoleEditor, "/requests/{account}/{id}/{action}", d.changeRequest)
	d.getFor(jetpost.RoleAdmin, "/accounts/{account}/disconnect", d.confirmDisconnect)
	d.post(jetpost.RoleAdmin, "/accounts/{account}/{action}", d.changeAccount)
	d.post(jetpost.RoleAdmin, "/links", d.makeLink)
	d.get("/cancel", d.previewCancel)
	d.post(jetpost.RoleEditor, "/cancel", d.cancelMany)
	d.get("/replay", d.previewReplay)
	d.post(jetpost.RoleEditor, "/replay", d.replayMany)
	d.get("/workers", d.workers)
	d.stream("/live", jetpost.RoleViewer, d.serveLive)
	d.post(jetpost.RoleAdmin, "/app/{action}", d.changeApp)
	d.getFor(jetpost.RoleAdmin, "/users", d.users)
	d.post(jetpost.RoleAdmin, "/users", d.addUser)
	d.post(jetpost.RoleAdmin, "/users/{user}/{action}", d.changeUser)
	d.getFor(jetpost.RoleAdmin, "/audit", d.audit)

	d.handle(Route{http.MethodGet, "/login", open}, d.showLogin)
	d.handle(Route{http.MethodPost, "/login", open}, d.login)
	d.handle(Route{http.MethodPost, "/logout", open}, d.logout)
	for _, dir := range []string{"assets", "assets/vendor"} {
		d.handle(Route{http.MethodGet, "/" + dir + "/{file}", open}, func(w http.ResponseWriter, r *http.Request) {
			if !serveAsset(w, r, dir) {
				d.fail(w, r, notThere())
			}
		})
	}
	d.handle(Route{"", "/", jetpost.RoleViewer}, func(w http.ResponseWriter, r *http.Request) { d.fail(w, r, notThere()) })
	if len(d.unguarded) > 0 {
		return nil, fmt.Errorf("make dashboard: routes need a role: %v", d.unguarded)
	}
	return d, nil
}

func notThere() error {
	return &jetpost.APIError{Code: jetpost.ErrNotFound, Detail: "Nothing is at this address.", Help: "begin with the overview"}
}

// ServeHTTP implements http.Handler.
func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	guard(w.Header(), policy("'self'")+"; script-src 'self'; connect-src 'self'")
	switch {
	case !d.knows(r.Host):
		// The name of another site may lead to this machine: its pages would count as
		// the dashboard's own.
		w.WriteHeader(http.StatusMisdirectedRequest)
		_, _ = fmt.Fprintln(w, "The dashboard is not served under this name.\ndo: open it by its address, for example http://127.0.0.1:8088")
	case r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost:
		w.Header().Set("Allow", "GET, HEAD, POST")
		w.WriteHeader(http.StatusMethodNotAllowed)
	case len(r.URL.RawQuery) > maxQueryBytes:
		w.WriteHeader(http.StatusRequestURITooLong)
	default:
		r.Body = http.MaxBytesReader(w, r.Body, d.bodyLimit(w, r))
		if _, pattern := d.mux.Handler(r); pattern != "" && !d.guarded[pattern] {
			http.Error(w, "This page needs no role, and is therefore not served.", http.StatusInternalServerError)
			return
		}
		d.mux.ServeHTTP(w, r)
	}
}

// knows tells whether the dashboard may be asked for by that host.
func (d *Dashboard) knows(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	return isLoopback(strings.Trim(name, "[]")) || slices.Contains(d.cfg.Hosts, strings.ToLower(host))
}

// shown is a page to show: the name of its template, and what that is about.
type shown struct {
	name string
	data any
	// to is the page to go to instead, below the dashboard's base.
	to string
	// cookie is kept by the browser.
	cookie *http.Cookie
	// file is what is shown as it is, of that kind, instead of a page.
	file io.ReadSeeker
	kind string
}

// get serves a page to every user.
func (d *Dashboard) get(path string, show func(*http.Request) (shown, error)) {
	d.getFor(jetpost.RoleViewer, path, show)
}

// getFor serves a page to users of a role.
func (d *Dashboard) getFor(role jetpost.Role, path string, show func(*http.Request) (shown, error)) {
	d.handle(Route{http.MethodGet, path, role}, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readWithin)
		defer cancel()
		page, err := show(r.WithContext(ctx))
		d.answer(w, r, page, err)
	})
}

// post serves a change to users of a role, which takes effect once however often its form is
// sent.
func (d *Dashboard) post(role jetpost.Role, path string, change func(r *http.Request, operation string) (shown, error)) {
	d.handle(Route{http.MethodPost, path, role}, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), changeWithin)
		defer cancel()
		is, err := change(r.WithContext(ctx), r.PostFormValue(operationField))
		d.asked.expire()
		d.answer(w, r, is, err)
	})
}

// answer shows a page, leads to another one, or says why not.
func (d *Dashboard) answer(w http.ResponseWriter, r *http.Request, is shown, err error) {
	if err == nil && is.cookie != nil {
		http.SetCookie(w, is.cookie)
	}
	switch {
	case err != nil:
		d.fail(w, r, err)
	case is.to != "":
		http.Redirect(w, r, d.cfg.Base+is.to, http.StatusSeeOther)
	case is.file != nil:
		w.Header().Set("Cache-Control", fmt.Sprintf("private, max-age=%d", assetSeconds))
		w.Header().Set("Content-Type", is.kind)
		http.ServeContent(w, r, "", time.Time{}, is.file)
	default:
		d.render(w, http.StatusOK, is)
	}
}

// operationField is the form's field that names a change, and passwordField one that no page
// repeats.
const (
	operationField = "operation_id"
	passwordField  = "password"
)

// forbiddenError is a change that this dashboard does not make for the asker.
type forbiddenError struct{ text, do string }

func (e *forbiddenError) Error() string { return e.text }

func readOnly() error {
	return &forbiddenError{"This dashboard only shows: it was started with --read-only.", "use the jetpost command, or start the dashboard without --read-only"}
}

// page is what each page shows around its own part.
type page struct {
	Base, Section, Title string
	// Who has logged in, and what the user may do; empty where nobody has.
	Who     string
	WhoRole jetpost.Role
	// CanLogOut tells a user with a session from one whom a proxy names.
	CanLogOut bool
	// ReadOnly hides every button, and CanAdmin shows those of admins.
	ReadOnly, CanAdmin bool
	Said               string // what was just done
	// Live is where the page hears of changes, or "": it then has what is marked as live
	// refreshed.
	Live string
	// Zone is that of the times, and Back the page itself, below the base.
	Zone, Back string
	now        time.Time
	zone       *time.Location // in which times are shown
	hasMedia   bool
}

func (d *Dashboard) page(r *http.Request, section, title string) page {
	who, in := visitorOf(r), zone(r)
	back := "/" // what a form has made is no page to go back to
	if r.Method == http.MethodGet {
		query := r.URL.Query()
		query.Del("done")
		back = strings.TrimSuffix(strings.TrimPrefix(r.URL.EscapedPath(), d.cfg.Base)+"?"+query.Encode(), "?")
	}
	return page{
		Zone: in.String(), Back: back, zone: in,
		Base: d.cfg.Base, Section: section, Title: title, Who: who.Name, WhoRole: who.Role, CanLogOut: who.session,
		ReadOnly: d.cfg.ReadOnly || !who.Role.Allows(jetpost.RoleEditor), CanAdmin: !d.cfg.ReadOnly && who.Role.Allows(jetpost.RoleAdmin),
		now: d.cfg.Now(), hasMedia: d.cfg.Media != nil,
	}
}

// failure is why a page is not shown, or a change not made.
type failure struct {
	page
	Text, Do string
	Problems []jetpost.Problem
	// Requests are those of which one may be meant.
	Requests []jetpost.RequestName
	// Login leads to the login.
	Login bool
	// Again repeats a change of which nobody knows whether it was made.
	Again *again
}

// again is a form with the fields of another one.
type again struct {
	Action string
	Fields [][2]string
}

// statusOf is the HTTP status and the title of an error's page.
func statusOf(code jetpost.ErrorCode) (status int, title string) {
	switch code {
	case jetpost.ErrInvalid:
		return http.StatusBadRequest, "That is not complete"
	case jetpost.ErrNotFound:
		return http.StatusNotFound, "Not found"
	case jetpost.ErrAmbiguous:
		return http.StatusConflict, "Which one?"
	case jetpost.ErrConflict, jetpost.ErrOperationReused:
		return http.StatusConflict, "Nothing was changed"
	case jetpost.ErrTooMany:
		return http.StatusTooManyRequests, "That is too often"
	case jetpost.ErrBusy:
		return http.StatusServiceUnavailable, "Somebody is at it just now"
	case jetpost.ErrStillWaiting:
		return http.StatusGatewayTimeout, "It was begun"
	case jetpost.ErrRefreshFailed:
		return http.StatusBadGateway, "X did not renew the token"
	case jetpost.ErrUnsupported:
		return http.StatusNotImplemented, "The workers do not offer this"
	case jetpost.ErrUnavailable:
		return http.StatusServiceUnavailable, "The workers do not answer"
	default:
		return http.StatusInternalServerError, "A fault of jetpost"
	}
}

// fail shows why something was not done.
func (d *Dashboard) fail(w http.ResponseWriter, r *http.Request, err error) {
	f := failure{page: d.page(r, "", "A fault of jetpost"), Text: err.Error()}
	status := http.StatusInternalServerError
	var told *jetpost.APIError
	var forbidden *forbiddenError
	var login *loginError
	switch {
	case errors.As(err, &login):
		status, f.Title, f.Login = http.StatusUnauthorized, "Log in first", true
	case errors.As(err, &forbidden):
		status, f.Title, f.Do = http.StatusForbidden, "Nothing was changed", forbidden.do
		if r.Method != http.MethodPost {
			f.Title = "Not for you"
		}
	case errors.As(err, &told):
		status, f.Title = statusOf(told.Code)
		f.Do, f.Problems = told.Help, told.Problems[:min(len(told.Problems), 10)]
		for _, account := range told.Accounts[:min(len(told.Accounts), pageSize)] {
			f.Requests = append(f.Requests, jetpost.RequestName{Account: account, ID: r.FormValue("id")})
		}
		if r.Method == http.MethodPost && !told.Definite() && !r.PostForm.Has(passwordField) {
			f.Again = &again{Action: r.URL.Path}
			for name, values := range r.PostForm {
				f.Again.Fields = append(f.Again.Fields, [2]string{name, values[0]})
			}
		}
	}
	if status == http.StatusInternalServerError {
		d.cfg.Log.Error("dashboard.failed", "path", r.URL.Path, "error", err)
	}
	d.render(w, status, shown{name: "failed.html", data: f})
}

// requestPath is the address of a request's page, below the base.
func requestPath(account, id string) string {
	return "/requests/" + url.PathEscape(account) + "/" + url.PathEscape(id)
}

func accountPath(account string) string { return "/accounts/" + url.PathEscape(account) }
