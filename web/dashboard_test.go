package web_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/net/html"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/sqlite"
	"github.com/jetpost/jetpost/web"
)

// dashboardBundle is a dashboard on a control service with a ledger of its own, which has
// the accounts acme and beta.
type dashboardBundle struct {
	*testing.T
	nats   *server.Server
	ledger store.Store
	client *client.Client
	url    string // of the dashboard's base
	// dashboard is the one that is served there.
	dashboard *web.Dashboard
}

func newDashboard(t *testing.T, change func(*web.DashboardConfig)) *dashboardBundle {
	t.Helper()
	b := &dashboardBundle{T: t, nats: natstest.Server(t)}
	path := filepath.Join(t.TempDir(), "ledger.db")
	testkit.Must(t, sqlite.Migrate(t.Context(), path))
	sealer, err := store.NewSealer(store.GenerateKey().Reveal())
	testkit.Must(t, err)
	b.ledger, err = sqlite.Open(t.Context(), path, sealer)
	testkit.Must(t, err)
	t.Cleanup(func() { _ = b.ledger.Close() })
	id, err := b.ledger.LedgerID(t.Context())
	testkit.Must(t, err)
	nc, js := natstest.Connect(t, b.nats)
	_, err = publishers.Setup(t.Context(), js, publishers.TopologyConfig{LedgerID: id})
	testkit.Must(t, err)
	for i, name := range []string{"acme", "beta"} {
		_, err = b.ledger.ImportAccount(t.Context(), store.Import{Name: name, XUserID: fmt.Sprint(i + 1), Username: name, Now: time.Now(), Pair: store.Pair{
			Access: secret.New("access" + name), Refresh: secret.New("refresh" + name), ExpiresAt: time.Now().Add(time.Hour),
		}})
		testkit.Must(t, err)
	}
	b.client, err = client.New(nc)
	testkit.Must(t, err)
	return b.mount(change)
}

// mount is another dashboard on the same service.
func (b *dashboardBundle) mount(change func(*web.DashboardConfig)) *dashboardBundle {
	b.Helper()
	public, err := web.ParsePublicURL("http://127.0.0.1:8088")
	testkit.Must(b.T, err)
	cfg := web.DashboardConfig{Operations: b.client, Log: slog.New(slog.DiscardHandler), Base: "/ops", Site: web.Site{Public: public}, Changes: b.client.Changes}
	if change != nil {
		change(&cfg)
	}
	d, err := web.NewDashboard(cfg)
	testkit.Must(b.T, err)
	s := httptest.NewServer(d)
	b.Cleanup(s.Close)
	b.Cleanup(d.Close) // first: its streams last for as long as they are read
	mounted := *b
	mounted.url, mounted.dashboard = s.URL+"/ops", d
	return &mounted
}

// serve has a worker serve operations until the test ends.
func (b *dashboardBundle) serve() {
	b.Helper()
	nc, js := natstest.Connect(b.T, b.nats)
	log := slog.New(slog.DiscardHandler)
	relay := &consumers.OutboxRelay{Ledger: b.ledger, DeadLetters: publishers.NewDeadLetters(js, jetpost.Names{}), Log: log}
	c := control.Control{Ledger: b.ledger, JS: js, OutboxRelay: relay, Log: log}
	c.Status = func(ctx context.Context) (jetpost.StatusReport, error) {
		counts, err := b.ledger.CountRequests(ctx)
		return jetpost.StatusReport{Publishing: true, State: "PUBLISHING", Summary: "PUBLISHING", Requests: counts}, err
	}
	c.Link = func(ctx context.Context, links control.LinkKeeper, account string, in jetpost.AccountLink) (jetpost.Link, error) {
		public, err := web.ParsePublicURL(in.PublicURL)
		if err != nil {
			return jetpost.Link{}, err
		}
		link, err := web.Site{Public: public}.MakeLink(ctx, links, web.NewLink{Account: account, Life: web.DefaultLinkLife, Now: time.Now()})
		return jetpost.Link(link), err
	}
	s := &control.Service{Control: control.New(c), Conn: nc, Worker: "one", Version: "v1.2.3", Log: log}
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) }) // it ends with its connection
	b.Cleanup(func() { cancel(); running.Wait() })
	testkit.Eventually(b.T, "the operations to be served", func() bool {
		_, err := b.client.RequestCount(b.Context(), "")
		return err == nil
	})
}

// scheduled accepts a request that is due tomorrow.
func (b *dashboardBundle) scheduled(account, id, text string) {
	b.Helper()
	r := jetpost.Request{Account: account, ID: id, PublishAt: time.Now().Add(24 * time.Hour), Posts: []jetpost.Post{{Text: text}}}
	body, err := json.Marshal(r)
	testkit.Must(b.T, err)
	_, err = b.ledger.Accept(b.Context(), store.Acceptance{Request: r, Body: body, Digest: r.Digest(), Now: time.Now()})
	testkit.Must(b.T, err)
}

func (b *dashboardBundle) status(account, id string) jetpost.RequestStatus {
	b.Helper()
	record, err := b.ledger.Request(b.Context(), store.Key{Account: account, ID: id})
	testkit.Must(b.T, err)
	return record.Status
}

// ask sends a request to the dashboard, follows nothing, and returns what came back.
func (b *dashboardBundle) ask(method, path string, form url.Values, header ...string) (*http.Response, string) {
	b.Helper()
	r, err := http.NewRequestWithContext(b.Context(), method, b.url+path, strings.NewReader(form.Encode()))
	testkit.Must(b.T, err)
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		if r.Header.Set(header[i], header[i+1]); header[i] == "Host" {
			r.Host = header[i+1]
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	testkit.Must(b.T, err)
	text, err := io.ReadAll(resp.Body)
	testkit.Must(b.T, err)
	testkit.Must(b.T, resp.Body.Close())
	return resp, string(text)
}

// want asks, and checks the status and a part of the page.
func (b *dashboardBundle) want(status int, part, method, path string, form url.Values, header ...string) string {
	b.Helper()
	resp, text := b.ask(method, path, form, header...)
	if resp.StatusCode != status || !strings.Contains(text+" "+resp.Header.Get("Location"), part) {
		b.Errorf("%s %s: status %d, want %d and %q\n%s", method, path, resp.StatusCode, status, part, text)
	}
	return text
}

var hiddenField = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`)

// form is a form of a page, as a browser would send it.
func (b *dashboardBundle) form(page, action string) url.Values {
	b.Helper()
	_, form, ok := strings.Cut(page, `action="/ops`+action+`"`)
	if !ok {
		b.Fatalf("the page has no form %s\n%s", action, page)
	}
	form, _, _ = strings.Cut(form, "</form>")
	values := url.Values{}
	for _, m := range hiddenField.FindAllStringSubmatch(form, -1) {
		values.Set(html.UnescapeString(m[1]), html.UnescapeString(m[2]))
	}
	return values
}

var dashboardPages = []string{
	"/", "/requests", "/requests?state=scheduled&account=acme", "/requests/acme/one", "/accounts", "/accounts/acme", "/limits", "/limits?account=acme",
	"/dead-letters", "/dead-letters?kind=failed", "/requests/acme/one/unpublish", "/calendar", "/calendar?view=month",
	"/users", "/audit", "/audit?account=acme", "/accounts/acme/disconnect",
	"/workers", "/cancel?account=acme", "/replay?account=acme",
	"/limits?add_account=acme&add=5", "/requests?code=rate_limited&since=2026-01-01",
}

// TestDashboardChangesOnce: a form that is sent twice takes effect once, at once or late.
func TestDashboardChangesOnce(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, nil)
	b.serve()
	b.scheduled("acme", "one", "text")
	page := b.want(http.StatusOK, "What you can do", http.MethodGet, "/requests/acme/one", nil)
	form := b.form(page, "/requests/acme/one/cancel")
	var clicks sync.WaitGroup
	for range 4 {
		clicks.Go(func() {
			b.want(http.StatusSeeOther, "/ops/requests/acme/one?done=cancel", http.MethodPost, "/requests/acme/one/cancel", form)
		})
	}
	clicks.Wait()
	b.want(http.StatusSeeOther, "?done=cancel", http.MethodPost, "/requests/acme/one/cancel", form)
	if is := b.status("acme", "one"); is.State != jetpost.StateCancelled || is.Revision != 2 {
		t.Errorf("it is %s, of revision %d", is.State, is.Revision)
	}
	b.want(http.StatusOK, "Cancelled. What is live stays live.", http.MethodGet, "/requests/acme/one?done=cancel", nil)

	pause := b.form(b.want(http.StatusOK, "", http.MethodGet, "/accounts/acme", nil), "/accounts/acme/pause")
	pause.Set("reason", "lunch")
	b.want(http.StatusSeeOther, "?done=pause", http.MethodPost, "/accounts/acme/pause", pause)
	resume := b.form(b.want(http.StatusOK, "lunch", http.MethodGet, "/accounts/acme", nil), "/accounts/acme/resume")
	b.want(http.StatusSeeOther, "?done=resume", http.MethodPost, "/accounts/acme/resume", resume)
	b.want(http.StatusSeeOther, "?done=pause", http.MethodPost, "/accounts/acme/pause", pause) // late
	if account, err := b.ledger.Account(t.Context(), "acme"); err != nil || account.Pause.Active(time.Now()) {
		t.Errorf("a late repeat has paused the account again, %v", err)
	}
	link := b.form(b.want(http.StatusOK, "", http.MethodGet, "/accounts", nil), "/links")
	link.Set("account", "newcomer")
	b.want(http.StatusOK, "http://127.0.0.1:8088/connect/", http.MethodPost, "/links", link)
	b.want(http.StatusConflict, "ask for another one", http.MethodPost, "/links", link)
}

// TestDashboardEmpty: an installation without a request has none, which is known.
func TestDashboardEmpty(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, nil)
	b.serve()
	page := b.want(http.StatusOK, "Nothing does.", http.MethodGet, "/", nil)
	for _, part := range []string{"<strong>0</strong> failed", "Nothing is scheduled.", "nothing was posted yet", "<dt>being sent</dt><dd>0</dd>"} {
		if !strings.Contains(page, part) {
			t.Errorf("the overview has no %q\n%s", part, page)
		}
	}
	b.want(http.StatusOK, "There are none.", http.MethodGet, "/requests", nil)
	b.want(http.StatusOK, "Nobody is asked to log in", http.MethodGet, "/users", nil)
}

// TestDashboardRefusals: what a dashboard does not do, and how it says so.
func TestDashboardRefusals(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, nil)
	b.serve()
	b.scheduled("acme", "one", "text")
	b.scheduled("acme", "twin", "text")
	b.scheduled("beta", "twin", "text")
	const cancel = "/requests/acme/one/cancel"
	form := func() url.Values { return url.Values{"operation_id": {client.NewOperationID()}} }
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}, {"Origin", "null"},
	} {
		b.want(http.StatusForbidden, "Another site sent you here", http.MethodPost, cancel, form(), header...)
	}
	for _, host := range []string{"evil.example", "evil.example:8088", "127.0.0.1.evil.example", "10.0.0.1"} {
		b.want(http.StatusMisdirectedRequest, "not served under this name", http.MethodGet, "/", nil, "Host", host)
		b.want(http.StatusMisdirectedRequest, "not served under this name", http.MethodPost, cancel, form(), "Host", host)
	}
	b.want(http.StatusBadRequest, "no operation_id", http.MethodPost, cancel, nil)
	b.want(http.StatusBadRequest, "operation_id", http.MethodPost, cancel, url.Values{"operation_id": {"<b>"}})
	b.want(http.StatusMethodNotAllowed, "", http.MethodDelete, cancel, nil)
	b.want(http.StatusNotFound, "Nothing is at this address", http.MethodPost, "/requests/acme/one/explode", form())
	b.want(http.StatusNotFound, "", http.MethodPost, "/requests/acme/none/cancel", form())
	b.want(http.StatusConflict, "Which one?", http.MethodGet, "/requests?id=twin", nil)
	b.want(http.StatusSeeOther, "/ops/requests/beta/twin", http.MethodGet, "/requests?id=twin&account=beta", nil)
	b.want(http.StatusBadRequest, "no such state", http.MethodGet, "/requests?state=%3Cb%3E", nil)
	b.want(http.StatusBadRequest, "The address or the id", http.MethodPost, "/requests/acme/one/posted", form())
	b.want(http.StatusConflict, "none of its posts is in doubt", http.MethodPost, "/requests/acme/one/not-posted", form())
	for _, path := range []string{"/assets/..%2fdashboard.go", "/assets/%2e%2e", "/nothing", "/requests/acme/one/"} {
		b.want(http.StatusNotFound, "Nothing is at this address", http.MethodGet, path, nil)
	}
	b.want(http.StatusBadRequest, "", http.MethodGet, "/requests/..%2facme/one", nil)
	if is := b.status("acme", "one"); is.Revision != 1 {
		t.Errorf("the request is %s, of revision %d", is.State, is.Revision)
	}
	resp, _ := b.ask(http.MethodGet, "/nothing", nil)
	for name, want := range map[string]string{
		"X-Frame-Options": "DENY", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
		"Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; script-src 'self'; connect-src 'self'",
	} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// TestDashboardReadOnly: no page has a form that changes something, and none is taken.
func TestDashboardReadOnly(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, func(cfg *web.DashboardConfig) { cfg.ReadOnly = true })
	b.serve()
	b.scheduled("acme", "one", "text")
	for _, path := range dashboardPages {
		_, page := b.ask(http.MethodGet, path, nil)
		if strings.Contains(page, `method="post"`) {
			t.Errorf("%s has a button", path)
		}
	}
	form := url.Values{"operation_id": {"op"}, "account": {"acme"}}
	for _, path := range []string{"/requests/acme/one/cancel", "/requests/acme/one/unpublish", "/accounts/acme/pause", "/accounts/acme/refresh", "/links", "/cancel", "/replay", "/app/pause"} {
		b.want(http.StatusForbidden, "--read-only", http.MethodPost, path, form)
	}
	if is := b.status("acme", "one"); is.Revision != 1 {
		t.Errorf("the request is %s", is.State)
	}
}

// TestDashboardWithoutWorkers: while nobody answers the page says so, and the change can
// be asked for again as the same one.
func TestDashboardWithoutWorkers(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, nil)
	b.scheduled("acme", "one", "text")
	const cancel = "/requests/acme/one/cancel"
	b.want(http.StatusServiceUnavailable, "start a worker", http.MethodGet, "/", nil)
	first := url.Values{"operation_id": {client.NewOperationID()}}
	again := b.form(b.want(http.StatusServiceUnavailable, "Ask again", http.MethodPost, cancel, first), cancel)
	if again.Get("operation_id") != first.Get("operation_id") {
		t.Errorf("it is asked for again as %s, at first as %s", again, first)
	}
	b.serve()
	b.want(http.StatusSeeOther, "?done=cancel", http.MethodPost, cancel, again)
	if is := b.status("acme", "one"); is.State != jetpost.StateCancelled {
		t.Errorf("the request is %s", is.State)
	}
}

// tampered passes the answers of the real service on, with every text in them replaced,
// and lists filled.
type tampered struct {
	web.Operations
	text string
	name string // in place of a text that is a name or an address; text where empty
	page int    // entries of a list that has pages
	many int    // and of one that has none
}

// names are the fields whose length the contract bounds.
var names = []string{"Account", "ID", "Name", "Reauth", "URL"}

// tamper changes an answer.
func tamper[A any](x tampered, answer A, err error) (A, error) {
	switch any(answer).(type) {
	case jetpost.StatusReport, jetpost.Limits:
	default:
		x.many = x.page
	}
	x.fill(reflect.ValueOf(&answer).Elem(), 0)
	return answer, err
}

// fill sets all that is reachable from a value. Lists within lists are short.
func (x tampered) fill(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.String:
		switch v.Interface().(type) {
		case jetpost.State, jetpost.PostState: // what the pages tell apart
		default:
			v.SetString(x.text)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			field := v.Type().Field(i).Name
			if field == "MaxWait" {
				continue
			}
			inner := x
			if x.name != "" && slices.Contains(names, field) {
				inner.text = x.name
			}
			inner.fill(v.Field(i), depth)
		}
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		x.fill(v.Elem(), depth)
	case reflect.Slice:
		if v.Len() == 0 {
			many := x.many
			if depth > 0 {
				many = min(many, 25)
			}
			v.Set(reflect.MakeSlice(v.Type(), many, many))
		}
		for i := range v.Len() {
			x.fill(v.Index(i), depth+1)
		}
	case reflect.Map:
		if v.Type().Key().Kind() == reflect.String && v.Type().Elem().Kind() == reflect.String {
			v.Set(reflect.MakeMap(v.Type()))
			v.SetMapIndex(reflect.ValueOf(x.text).Convert(v.Type().Key()), reflect.ValueOf(x.text).Convert(v.Type().Elem()))
		}
	}
}

func (x tampered) RequestGet(ctx context.Context, account string, in jetpost.RequestGet) (jetpost.RequestDetails, error) {
	answer, err := x.Operations.RequestGet(ctx, account, in)
	return tamper(x, answer, err)
}

func (x tampered) RequestList(ctx context.Context, account string, in jetpost.RequestList) (jetpost.RequestPage, error) {
	answer, err := x.Operations.RequestList(ctx, account, in)
	return tamper(x, answer, err)
}

func (x tampered) AccountList(ctx context.Context, in jetpost.AccountList) (jetpost.AccountPage, error) {
	answer, err := x.Operations.AccountList(ctx, in)
	return tamper(x, answer, err)
}

func (x tampered) AccountGet(ctx context.Context, account string) (jetpost.AccountReport, error) {
	answer, err := x.Operations.AccountGet(ctx, account)
	return tamper(x, answer, err)
}

func (x tampered) AccountLink(ctx context.Context, account string, in jetpost.AccountLink) (jetpost.Link, error) {
	answer, err := x.Operations.AccountLink(ctx, account, in)
	return tamper(x, answer, err)
}

func (x tampered) AccountPause(context.Context, string, jetpost.PauseRequest) (answer jetpost.AccountPaused, err error) {
	return answer, &jetpost.APIError{
		Code: jetpost.ErrInvalid, Detail: x.text, Help: x.text, Accounts: []string{x.text}, Problems: []jetpost.Problem{{Pointer: x.text, Message: x.text}},
	}
}

func (x tampered) UserList(ctx context.Context, in jetpost.UserList) (jetpost.UserPage, error) {
	answer, err := x.Operations.UserList(ctx, in)
	return tamper(x, answer, err)
}

func (x tampered) AuditList(ctx context.Context, in jetpost.AuditList) (jetpost.AuditPage, error) {
	answer, err := x.Operations.AuditList(ctx, in)
	return tamper(x, answer, err)
}

func (x tampered) UserAdd(context.Context, jetpost.UserAdd) (answer jetpost.User, err error) {
	return answer, &jetpost.APIError{Code: jetpost.ErrConflict, Detail: x.text, Help: x.text}
}

func (x tampered) AppStatus(ctx context.Context) (jetpost.StatusReport, error) {
	answer, err := x.Operations.AppStatus(ctx)
	return tamper(x, answer, err)
}

func (x tampered) AppLimits(ctx context.Context, in jetpost.LimitsRequest) (jetpost.Limits, error) {
	answer, err := x.Operations.AppLimits(ctx, in)
	return tamper(x, answer, err)
}

func (x tampered) RequestCancelMany(ctx context.Context, account string, in jetpost.RequestCancelMany) (jetpost.CancelAnswer, error) {
	answer, err := x.Operations.RequestCancelMany(ctx, account, in)
	return tamper(x, answer, err)
}

func (x tampered) RequestReplay(ctx context.Context, account string, in jetpost.RequestReplay) (jetpost.ReplayAnswer, error) {
	answer, err := x.Operations.RequestReplay(ctx, account, in)
	return tamper(x, answer, err)
}

func (x tampered) AppForecast(ctx context.Context, in jetpost.ForecastRequest) (jetpost.Forecast, error) {
	answer, err := x.Operations.AppForecast(ctx, in)
	return tamper(x, answer, err)
}

func (x tampered) AppSeries(ctx context.Context) (jetpost.Series, error) {
	answer, err := x.Operations.AppSeries(ctx)
	answer.Held = map[jetpost.Code]int{jetpost.Code(x.text): 1}
	return tamper(x, answer, err)
}

func (x tampered) DeadLettersGroups(ctx context.Context) (jetpost.DeadLetterGroups, error) {
	answer, err := x.Operations.DeadLettersGroups(ctx)
	return tamper(x, answer, err)
}

func (x tampered) WorkersList(ctx context.Context) (jetpost.Workers, error) {
	answer, err := x.Operations.WorkersList(ctx)
	return tamper(x, answer, err)
}

func (x tampered) DeadLettersList(ctx context.Context, account string, in jetpost.DeadLettersList) (jetpost.DeadLetterPage, error) {
	answer, err := x.Operations.DeadLettersList(ctx, account, in)
	return tamper(x, answer, err)
}

// TestDashboardEscapes: whatever the texts of the service are, no page has an element, an
// attribute or an address of theirs.
func TestDashboardEscapes(t *testing.T) {
	t.Parallel()
	service := newDashboard(t, nil)
	service.serve()
	service.scheduled("acme", "one", "text")
	for _, text := range []string{
		`<pwn>x</pwn><script>pwn()</script>`, `"><pwn a="`, `' onclick='pwn()`, `" onclick="pwn()`, `javascript:pwn()`, `x onfocus=pwn() autofocus`,
		`</title><pwn>`, `--><pwn>`, `{{pwn}}<pwn>`, "\x00<pwn>", `//pwn.example/`, `\" onclick=pwn()`, `data:text/html,<pwn>`, `</textarea></q><pwn>`,
	} {
		b := service.mount(func(cfg *web.DashboardConfig) {
			cfg.Operations = tampered{Operations: cfg.Operations, text: text, page: 2, many: 2}
		})
		var pages []string
		for _, path := range dashboardPages {
			pages = append(pages, b.want(http.StatusOK, "", http.MethodGet, path, nil))
		}
		for _, q := range []string{"/requests?account=", "/accounts?name=", "/requests?id=", "/dead-letters?kind=failed&account=", "/limits?account=", "/requests?state=", "/requests?cursor=", "/audit?actor=", "/audit?operation=", "/audit?account=", "/users?cursor="} {
			_, page := b.ask(http.MethodGet, q+url.QueryEscape(text), nil)
			pages = append(pages, page)
		}
		form := url.Values{"operation_id": {client.NewOperationID()}, "account": {"acme"}, "id": {text}, text: {text}}
		pages = append(pages, b.want(http.StatusBadRequest, "", http.MethodPost, "/accounts/acme/pause", form), b.want(http.StatusOK, "A link for", http.MethodPost, "/links", form))
		pages = append(pages, b.want(http.StatusConflict, "", http.MethodPost, "/users", form))
		asks := service.mount(func(cfg *web.DashboardConfig) { cfg.Login.Required = true })
		_, asked := asks.ask(http.MethodGet, "/login?to="+url.QueryEscape("/"+text), nil)
		_, refused := asks.ask(http.MethodPost, "/login", url.Values{"name": {text}, "password": {text}, "to": {"/" + text}})
		pages = append(pages, asked, refused)
		for _, page := range pages {
			b.harmless(text, page)
		}
	}
}

// harmless checks that a page has no element, attribute or address of a text.
func (b *dashboardBundle) harmless(text, page string) {
	b.Helper()
	tokens := html.NewTokenizer(bytes.NewBufferString(page))
	for {
		switch tokens.Next() {
		case html.ErrorToken:
			return
		case html.StartTagToken, html.SelfClosingTagToken:
			tag := tokens.Token()
			ours := false // of scripts and pictures
			for _, a := range tag.Attr {
				ours = ours || a.Key == "src" && (strings.HasPrefix(a.Val, "/ops/assets/") || tag.Data == "img" && strings.HasPrefix(a.Val, "/ops/media/"))
			}
			if tag.Data == "pwn" || (tag.Data == "script" || tag.Data == "img") && !ours {
				b.Errorf("%q becomes %s", text, tag)
			}
			for _, a := range tag.Attr {
				u, err := url.Parse(a.Val)
				leads := a.Key != "href" || err == nil && (u.Scheme == "" || u.Scheme == "http" || u.Scheme == "https")
				if strings.HasPrefix(a.Key, "on") || a.Key == "style" || !leads || a.Key == "action" && !strings.HasPrefix(a.Val, "/ops/") {
					b.Errorf("%q becomes %s", text, tag)
				}
			}
		}
	}
}

// TestDashboardPagesAreSmall: no page is larger than 200 kB, whatever the service says.
func TestDashboardPagesAreSmall(t *testing.T) {
	t.Parallel()
	service := newDashboard(t, nil)
	service.serve()
	service.scheduled("acme", "one", "text")
	for name, x := range map[string]tampered{
		"long texts":  {text: strings.Repeat(`"`, 5000), name: strings.Repeat("w", 63), page: 25, many: 3},
		"long lists":  {text: strings.Repeat("w", 60), page: 50, many: 300},
		"all at once": {text: strings.Repeat(`"`, 1000), name: strings.Repeat("w", 128), page: 25, many: 300},
	} {
		t.Run(name, func(t *testing.T) {
			b := service.mount(func(cfg *web.DashboardConfig) {
				x.Operations = cfg.Operations
				cfg.Operations = x
			})
			for _, path := range dashboardPages {
				if resp, page := b.ask(http.MethodGet, path, nil); len(page) > 200_000 || resp.StatusCode != http.StatusOK {
					t.Errorf("%s has %d bytes, status %d", path, len(page), resp.StatusCode)
				}
			}
		})
	}
}
