package web_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/sqlite"
	"github.com/jetpost/jetpost/web"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

const (
	acme       = "acme"
	returnHost = "app.example"
	returnTo   = "https://app.example/settings?tab=x"
)

// testBundle is the pages on a ledger and a simulated X, with the accounts
// alice and bob on X.
type testBundle struct {
	t      *testing.T
	ledger store.Store
	sim    *xsim.Server
	x      *connector
	site   web.Site
	log    *logs
	clock  clock
}

// clock is the time of the pages; it stands still until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// logs collects what is logged, and the values that must not be in it.
type logs struct {
	mu      sync.Mutex
	text    bytes.Buffer
	secrets []string
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) hide(secrets ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.secrets = append(l.secrets, secrets...)
}

// connector goes the way that the real one goes, without its wake-ups.
type connector struct {
	xapi.OAuth
	// before, where set, runs before the exchange.
	before func(ctx context.Context) error
}

func (c *connector) connect(ctx context.Context, accounts store.Accounts, code control.ConsentCode) (jetpost.Connected, error) {
	if c.before != nil {
		if err := c.before(ctx); err != nil {
			return jetpost.Connected{}, err
		}
	}
	pair, err := c.Exchange(ctx, code.Code, code.Verifier, code.RedirectURI)
	if late := new(xapi.CodeRefusedError); errors.As(err, &late) {
		return jetpost.Connected{}, &control.Error{Code: jetpost.ErrCodeRefused, Err: err}
	}
	if err != nil {
		return jetpost.Connected{}, &control.Error{Code: jetpost.ErrConnectFailed, Err: err}
	}
	me, err := xapi.New(pair.AccessToken, xapi.WithBaseURL(c.BaseURL)).Me(ctx)
	if err != nil {
		return jetpost.Connected{}, err
	}
	_, err = accounts.ImportAccount(ctx, store.Import{
		Name: code.Account, XUserID: me.ID, Username: me.Username, Now: time.Now(), Pair: store.Pair{
			Access: secret.New(pair.AccessToken), Refresh: secret.New(pair.RefreshToken), ExpiresAt: pair.ExpiresAt, Scope: pair.Scope,
		},
	})
	switch {
	case errors.Is(err, store.ErrNameTaken):
		err = &control.Error{Code: jetpost.ErrOtherUser, Err: err}
	case errors.Is(err, store.ErrUserTaken):
		err = &control.Error{Code: jetpost.ErrOtherName, Err: err}
	}
	return jetpost.Connected{Username: me.Username}, err
}

// workers answer as they do over NATS, which is not needed here.
type workers struct{ *control.Control }

func (w workers) LinkGet(ctx context.Context, in jetpost.LinkGet) (jetpost.LinkInfo, error) {
	return told(w.Control.LinkGet(ctx, in))
}

func (w workers) AccountConsent(ctx context.Context, account string, in jetpost.AccountConsent) (jetpost.Consent, error) {
	return told(w.Control.AccountConsent(ctx, account, in))
}

func (w workers) AccountConnect(ctx context.Context, account string, in jetpost.AccountConnect) (jetpost.Connected, error) {
	return told(w.Control.AccountConnect(ctx, account, in))
}

func told[A any](answer A, err error) (A, error) {
	if err != nil {
		err = control.APIError(err)
	}
	return answer, err
}

// stall has the first Connect wait until finish is called, or the test ends.
func (c *connector) stall(t *testing.T) (began <-chan struct{}, finish func()) {
	t.Helper()
	started, wait := make(chan struct{}), make(chan struct{})
	start := sync.OnceFunc(func() { close(started) })
	finish = sync.OnceFunc(func() { close(wait) })
	t.Cleanup(finish)
	c.before = func(context.Context) error {
		start()
		<-wait
		return nil
	}
	return started, finish
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	b := &testBundle{t: t, sim: &xsim.Server{ClientID: "app"}, log: &logs{}, clock: clock{now: time.Now().Truncate(time.Second)}}
	sealer, err := store.NewSealer(store.GenerateKey().Reveal())
	check(t, err)
	path := filepath.Join(t.TempDir(), "ledger.db")
	check(t, sqlite.Migrate(t.Context(), path))
	b.ledger, err = sqlite.Open(t.Context(), path, sealer)
	check(t, err)
	t.Cleanup(func() { check(t, b.ledger.Close()) })
	x := httptest.NewServer(b.sim)
	t.Cleanup(x.Close)
	for _, handle := range []string{"alice", "bob"} {
		_, err := b.sim.AddAccount(xsim.NewAccount{Handle: handle})
		check(t, err)
	}
	b.x = &connector{OAuth: xapi.OAuth{ClientID: "app", BaseURL: x.URL}}
	b.serve("")
	t.Cleanup(b.wantQuietLog)
	return b
}

// serve runs the pages on an address of their own, below a path.
func (b *testBundle) serve(path string) {
	b.t.Helper()
	server := httptest.NewUnstartedServer(nil)
	public, err := web.ParsePublicURL("http://" + server.Listener.Addr().String() + path)
	check(b.t, err)
	b.site = web.Site{Public: public, ReturnHosts: []string{returnHost, "127.0.0.1:3000"}}
	b.sim.RedirectURIs = []string{b.site.RedirectURI()}
	server.Config.Handler = b.handler(b.site)
	server.Start()
	b.t.Cleanup(server.Close)
}

func (b *testBundle) handler(site web.Site) *web.Handler {
	b.t.Helper()
	log := slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h, err := web.New(web.Config{
		Site: site, Now: b.clock.Now, Log: log,
		Workers: workers{control.New(control.Control{Ledger: b.ledger, X: &b.x.OAuth, Connect: b.x.connect, Now: b.clock.Now, Log: log})},
	})
	check(b.t, err)
	return h
}

// wantQuietLog checks that nothing secret was logged, and that something was.
func (b *testBundle) wantQuietLog() {
	b.log.mu.Lock()
	defer b.log.mu.Unlock()
	for _, value := range b.log.secrets {
		if len(value) > len("verifier") && strings.Contains(b.log.text.String(), value) {
			b.t.Errorf("the log has the secret %s:\n%s", value, b.log.text.String())
		}
	}
}

// link makes a link for acme, which works for an hour.
func (b *testBundle) link(returnTo string) string {
	b.t.Helper()
	link, err := b.site.MakeLink(b.t.Context(), b.ledger, web.NewLink{
		Account: acme, Life: time.Hour, ReturnTo: returnTo, Now: b.clock.Now(),
	})
	check(b.t, err)
	b.log.hide(link.URL[strings.LastIndex(link.URL, "/")+1:])
	return link.URL
}

// browser is a person's browser: it stores cookies, and shows every step of a redirect.
type browser struct {
	b   *testBundle
	jar http.CookieJar
	http.Client
}

func (b *testBundle) browser() *browser {
	b.t.Helper()
	jar, err := cookiejar.New(nil)
	check(b.t, err)
	return &browser{b: b, jar: jar, Client: http.Client{
		Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// answer is a response that was read.
type answer struct {
	*http.Response
	body string
}

func (c *browser) do(method, address string, header ...string) answer {
	c.b.t.Helper()
	request, err := http.NewRequestWithContext(c.b.t.Context(), method, address, nil)
	check(c.b.t, err)
	for i := 0; i+1 < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := c.Do(request)
	check(c.b.t, err)
	body, err := io.ReadAll(response.Body)
	check(c.b.t, errors.Join(err, response.Body.Close()))
	for _, cookie := range response.Cookies() {
		c.b.log.hide(cookie.Value)
	}
	return answer{response, string(body)}
}

func (c *browser) get(address string) answer { return c.do(http.MethodGet, address) }

// begin presses the button and returns the address of X's page.
func (c *browser) begin(link string) string {
	c.b.t.Helper()
	a := c.do(http.MethodPost, link)
	c.b.wantStatus(a, http.StatusSeeOther)
	if a.body != "" {
		c.b.t.Errorf("the redirect has a body: %q", a.body)
	}
	c.b.log.hide(query(c.b.t, a.Header.Get("Location"), "state"))
	return a.Header.Get("Location")
}

// consent answers X's page as that user, or denies for "", and returns where X
// sends the browser.
func (c *browser) consent(page, user string) string {
	c.b.t.Helper()
	choice := "&user=" + user
	if user == "" {
		choice = "&deny=true"
	}
	a := c.get(page + choice)
	c.b.wantStatus(a, http.StatusFound)
	back := a.Header.Get("Location")
	if !strings.HasPrefix(back, c.b.site.RedirectURI()+"?") {
		c.b.t.Fatalf("X sends to %s", back)
	}
	if code := query(c.b.t, back, "code"); code != "" {
		c.b.log.hide(code)
	}
	return back
}

// connect goes the whole way and returns the last answer.
func (c *browser) connect(link, user string) answer {
	c.b.t.Helper()
	return c.get(c.consent(c.begin(link), user))
}

func query(t *testing.T, address, name string) string {
	t.Helper()
	u, err := url.Parse(address)
	check(t, err)
	return u.Query().Get(name)
}

func (b *testBundle) wantStatus(a answer, want int) {
	b.t.Helper()
	if a.StatusCode != want {
		b.t.Fatalf("%s %s: status %d, want %d\n%s", a.Request.Method, a.Request.URL.Path, a.StatusCode, want, a.body)
	}
}

// wantPage checks status and words of a page, and that it shows no secret but the
// link's own.
func (b *testBundle) wantPage(a answer, status int, words ...string) {
	b.t.Helper()
	b.wantStatus(a, status)
	for _, want := range words {
		if !strings.Contains(a.body, want) {
			b.t.Errorf("page lacks %q:\n%s", want, a.body)
		}
	}
	for _, name := range []string{"state", "code"} {
		if value := a.Request.URL.Query().Get(name); len(value) > 1 && strings.Contains(a.body, value) {
			b.t.Errorf("the page has the %s:\n%s", name, a.body)
		}
	}
}

// wantAccount checks who is connected as acme; "" for nobody.
func (b *testBundle) wantAccount(username string) {
	b.t.Helper()
	account, err := b.ledger.Account(b.t.Context(), acme)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		b.t.Fatal(err)
	}
	if account.Username != username {
		b.t.Fatalf("acme is %q, want %q", account.Username, username)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConnect(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(""), b.browser()
	page := person.get(link)
	b.wantPage(page, http.StatusOK, `<html lang="en">`, acme, "Publish posts in your name", "Upload images", `<button>`, "another 60 minutes",
		`<form method="post" action="`+strings.TrimPrefix(link, b.site.Public.String())+`">`)
	x := person.begin(link)
	for name, want := range map[string]string{
		"client_id": "app", "redirect_uri": b.site.RedirectURI(), "code_challenge_method": "S256", "scope": strings.Join(xapi.ConsentScopes(), " "),
	} {
		if got := query(t, x, name); got != want {
			t.Errorf("X is asked with %s=%q, want %q", name, got, want)
		}
	}
	back := person.consent(x, "alice")
	b.wantPage(person.get(back), http.StatusOK, "is connected", "@alice", acme)
	b.wantAccount("alice")

	// It works once.
	b.wantPage(person.get(link), http.StatusGone, "was used")
	b.wantPage(person.do(http.MethodPost, link), http.StatusGone, "was used")
	b.wantPage(person.get(back), http.StatusGone, "was used")
	if violations := b.sim.Violations(); len(violations) > 0 {
		t.Errorf("violations: %v", violations)
	}
}

func TestReconnect(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.wantPage(b.browser().connect(b.link(""), "alice"), http.StatusOK, "@alice")
	before, err := b.ledger.Token(t.Context(), acme)
	check(t, err)
	b.wantPage(b.browser().connect(b.link(""), "alice"), http.StatusOK, "@alice")
	after, err := b.ledger.Token(t.Context(), acme)
	check(t, err)
	if after.Version != before.Version+1 {
		t.Errorf("version %d after %d: the tokens were not replaced", after.Version, before.Version)
	}
}

// Nobody brings another X user into an account that is there.
func TestOtherUser(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.wantPage(b.browser().connect(b.link(""), "alice"), http.StatusOK, "@alice")
	before, err := b.ledger.Token(t.Context(), acme)
	check(t, err)
	link, person := b.link(returnTo), b.browser()
	page := person.connect(link, "bob")
	b.wantPage(page, http.StatusConflict, "belongs to another X account",
		`href="https://app.example/settings?account=acme&amp;error=other_user&amp;jetpost=failed&amp;tab=x"`, "Back to app.example")
	after, err := b.ledger.Token(t.Context(), acme)
	check(t, err)
	if after.Version != before.Version {
		t.Error("the tokens of alice were replaced")
	}
	b.wantAccount("alice")
	// The link is not spent by that.
	b.wantStatus(person.connect(link, "alice"), http.StatusSeeOther)
}

func TestOtherName(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.wantPage(b.browser().connect(b.link(""), "alice"), http.StatusOK, "@alice")
	link, err := b.site.MakeLink(t.Context(), b.ledger, web.NewLink{Account: "other", Life: time.Hour, Now: b.clock.Now()})
	check(t, err)
	b.wantPage(b.browser().connect(link.URL, "alice"), http.StatusConflict, "under another name than other")
}

func TestReturn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(returnTo), b.browser()
	denied := person.connect(link, "")
	b.wantStatus(denied, http.StatusSeeOther)
	if got, want := denied.Header.Get("Location"), "https://app.example/settings?account=acme&error=denied&jetpost=failed&tab=x"; got != want {
		t.Errorf("denied: sent to %s, want %s", got, want)
	}
	b.wantAccount("")
	connected := person.connect(link, "alice")
	b.wantStatus(connected, http.StatusSeeOther)
	if got, want := connected.Header.Get("Location"), "https://app.example/settings?account=acme&jetpost=connected&tab=x"; got != want {
		t.Errorf("connected: sent to %s, want %s", got, want)
	}
	b.wantAccount("alice")
}

// A host may leave the list after the link was made.
func TestReturnNotAllowedAnyMore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	check(t, b.ledger.AddLink(t.Context(), store.NewLink{
		Token: secret.New(strings.Repeat("x", 43)), Account: acme, ReturnTo: "https://evil.example/", ExpiresAt: b.clock.Now().Add(time.Hour), Now: b.clock.Now(),
	}))
	page := b.browser().connect(b.site.Public.String()+"/connect/"+strings.Repeat("x", 43), "alice")
	b.wantPage(page, http.StatusOK, "is connected")
	if strings.Contains(page.body, "evil.example") {
		t.Errorf("the page leads there:\n%s", page.body)
	}
}

func TestDenied(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(""), b.browser()
	back := person.consent(person.begin(link), "")
	b.wantPage(person.get(back), http.StatusOK, "You did not allow it")
	b.wantPage(person.get(back), http.StatusBadRequest, "is over")
	b.wantAccount("")
	b.wantPage(person.connect(link, "alice"), http.StatusOK, "@alice")
}

func TestTimes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(""), b.browser()
	b.clock.pass(time.Hour - time.Microsecond)
	b.wantPage(person.get(link), http.StatusOK, "less than a minute")
	inTime := person.begin(link)
	b.clock.pass(time.Microsecond)
	b.wantPage(person.get(link), http.StatusGone, "has expired")
	b.wantPage(person.do(http.MethodPost, link), http.StatusGone, "has expired")
	b.clock.pass(10 * time.Minute)
	b.wantPage(person.get(person.consent(inTime, "alice")), http.StatusOK, "@alice")

	slow := person.begin(b.link(""))
	b.clock.pass(15 * time.Minute)
	b.wantPage(person.get(person.consent(slow, "alice")), http.StatusBadRequest, "is over")
}

func TestUnknownLinks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link := b.link("")
	for _, address := range []string{link[:len(link)-1], link + "x", link[:len(link)-1] + "~", link[:len(link)-2] + "xx", b.site.Public.String() + "/connect/x"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			b.wantPage(b.browser().do(method, address), http.StatusNotFound, "not known")
		}
	}
	b.wantPage(b.browser().get(link+"/"), http.StatusNotFound, "no such page")
	b.wantPage(b.browser().get(b.site.Public.String()+"/"), http.StatusNotFound, "no such page")
}

// Previews and scanners open links before people do.
func TestLookingSpendsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(""), b.browser()
	x := person.begin(link)
	for range 3 {
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			a := b.browser().do(method, link)
			b.wantStatus(a, http.StatusOK)
			if len(a.Cookies()) > 0 {
				t.Errorf("%s sets a cookie", method)
			}
		}
	}
	back := person.consent(x, "alice")
	head := person.do(http.MethodHead, back)
	b.wantStatus(head, http.StatusMethodNotAllowed)
	b.wantAccount("")
	b.wantPage(person.get(back), http.StatusOK, "@alice")
}

// What comes from X is taken by the browser that began alone, with the state
// of that attempt.
func TestForeignBrowsers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(""), b.browser()
	back := person.consent(person.begin(link), "alice")
	b.wantPage(b.browser().get(back), http.StatusForbidden, "not begun in this browser")

	// A victim that is in the middle of an attempt of its own.
	victim := b.browser()
	x := victim.begin(b.link(""))
	b.wantPage(victim.get(back), http.StatusForbidden, "not begun in this browser")
	wrong := strings.Replace(back, query(t, back, "state"), strings.Repeat("A", 43), 1)
	b.wantPage(person.get(wrong), http.StatusBadRequest, "is over")
	swapped := strings.Replace(back, query(t, back, "state"), query(t, x, "state"), 1)
	b.wantPage(person.get(swapped), http.StatusForbidden, "not begun in this browser")
	// The victim's own state with the attacker's code: the code is of another
	// verifier.
	b.wantAccount("")
	b.wantPage(victim.get(swapped), http.StatusBadRequest, "does not accept the answer")
	b.wantAccount("")

	// None of that spent the attempt; the code was, by the victim's.
	b.wantPage(person.get(back), http.StatusBadRequest, "does not accept the answer")
	b.wantPage(person.connect(link, "alice"), http.StatusOK, "@alice")
}

func TestIncompleteAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(""), b.browser()
	back := person.consent(person.begin(link), "alice")
	state, code := query(t, back, "state"), query(t, back, "code")
	for _, q := range []string{
		"", "state=" + state, "code=" + code, "state=" + state + "&code=", "state=&code=" + code, "state=x&code=" + code,
		"state=" + state + "&code=" + code + "&error=access_denied", "state=" + state + "&code=" + strings.Repeat("c", 1025),
	} {
		b.wantPage(person.get(b.site.RedirectURI()+"?"+q), http.StatusBadRequest, "not complete")
	}
	b.wantPage(person.get(back), http.StatusOK, "@alice")
}

// X's own failures leave the link as it is.
func TestFailures(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(""), b.browser()
	again := b.link(returnTo)

	back := person.consent(person.begin(link), "alice")
	refused := strings.Replace(back, "code="+url.QueryEscape(query(t, back, "code")), "error=server_error", 1)
	b.wantPage(person.get(refused), http.StatusBadGateway, "could not ask")

	back = person.consent(person.begin(link), "alice")
	b.wantPage(person.get(strings.Replace(back, "code=", "code=x", 1)), http.StatusBadRequest, "half a minute")

	check(t, b.sim.SetFaults([]xsim.Fault{{Kind: xsim.FaultStatus, Status: http.StatusServiceUnavailable, Endpoint: xsim.EndpointToken}}))
	b.wantPage(person.connect(link, "alice"), http.StatusBadGateway, "did not answer as it should")
	b.wantPage(person.connect(again, "alice"), http.StatusBadGateway, "did not answer as it should", "error=failed", "Back to app.example")
	check(t, b.sim.SetFaults(nil))

	b.x.before = func(context.Context) error {
		return &control.Error{Code: jetpost.ErrScopesMissing, Err: errors.New("no media.write")}
	}
	b.wantPage(person.connect(link, "alice"), http.StatusConflict, "allow all of it")
	b.x.before = nil

	b.wantAccount("")
	b.wantPage(person.connect(link, "alice"), http.StatusOK, "@alice")
}

func TestLedgerAway(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(""), b.browser()
	back := person.consent(person.begin(link), "alice")
	check(t, b.ledger.Close())
	b.wantPage(person.get(link), http.StatusServiceUnavailable, "fault is ours")
	b.wantPage(person.do(http.MethodPost, link), http.StatusServiceUnavailable, "fault is ours")
	b.wantPage(person.get(back), http.StatusServiceUnavailable, "fault is ours")
}

func TestTwoTabs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(""), b.browser()
	older, newer := person.begin(link), person.begin(link)
	b.wantPage(person.get(person.consent(older, "alice")), http.StatusBadRequest, "newer one")
	b.wantPage(person.get(person.consent(newer, "alice")), http.StatusOK, "@alice")
}

// A person who connects two accounts has two links open in one browser.
func TestTwoLinksInOneBrowser(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other, err := b.site.MakeLink(t.Context(), b.ledger, web.NewLink{Account: "other", Life: time.Hour, Now: b.clock.Now()})
	check(t, err)
	person := b.browser()
	first, second := person.begin(b.link("")), person.begin(other.URL)
	b.wantPage(person.get(person.consent(first, "alice")), http.StatusOK, "@alice", acme)
	b.wantPage(person.get(person.consent(second, "bob")), http.StatusOK, "@bob", "other")
}

// Any process finishes what any other one began, and one of them alone.
func TestManyProcesses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	person := b.browser()
	back := person.consent(person.begin(b.link("")), "alice")
	began, finish := b.x.stall(t)
	cookies := person.jar.Cookies(b.site.Public)
	other := b.handler(b.site)
	ask := func(method, path string) *httptest.ResponseRecorder {
		request := httptest.NewRequest(method, path, nil)
		for _, cookie := range cookies {
			request.AddCookie(cookie)
		}
		recorder := httptest.NewRecorder()
		other.ServeHTTP(recorder, request)
		return recorder
	}
	result := make(chan *httptest.ResponseRecorder)
	go func() { result <- ask(http.MethodGet, back) }()
	<-began
	b.wantPage(person.get(back), http.StatusBadRequest, "is over")
	finish()
	if got := <-result; got.Code != http.StatusOK || !strings.Contains(got.Body.String(), "@alice") {
		t.Errorf("status %d:\n%s", got.Code, got.Body)
	}
}

// While one attempt is finished, no other can begin: both would get tokens, and
// X lets live the later ones alone.
func TestBusy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(""), b.browser()
	back := person.consent(person.begin(link), "alice")
	began, finish := b.x.stall(t)
	result := make(chan answer)
	go func() { result <- person.get(back) }()
	<-began
	b.wantPage(b.browser().do(http.MethodPost, link), http.StatusConflict, "just now")
	b.wantPage(b.browser().get(link), http.StatusOK, "Connect your X account")
	finish()
	b.wantPage(<-result, http.StatusOK, "@alice")
}

// A person who closes the tab too early is connected all the same.
func TestPersonLeaves(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(""), b.browser()
	back := person.consent(person.begin(link), "alice")
	leave, gone := context.WithCancel(t.Context())
	b.x.before = func(ctx context.Context) error {
		gone()
		return ctx.Err()
	}
	request, err := http.NewRequestWithContext(leave, http.MethodGet, back, nil)
	check(t, err)
	for _, cookie := range person.jar.Cookies(b.site.Public) {
		request.AddCookie(cookie)
	}
	recorder := httptest.NewRecorder()
	b.handler(b.site).ServeHTTP(recorder, request)
	b.wantAccount("alice")
	b.wantPage(person.get(link), http.StatusGone, "was used")
}

// Another site cannot press the button in a visitor's name.
func TestCrossSite(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link := b.link("")
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"},
	} {
		a := b.browser().do(http.MethodPost, link, header...)
		b.wantPage(a, http.StatusForbidden, "Another site")
		if len(a.Cookies()) > 0 {
			t.Errorf("%v: a cookie is set", header)
		}
	}
	for _, header := range [][]string{
		// Browsers send no origin where the page has no-referrer.
		{"Sec-Fetch-Site", "same-origin", "Origin", "null"}, {"Origin", b.site.Public.String()}, nil,
	} {
		b.wantStatus(b.browser().do(http.MethodPost, link, header...), http.StatusSeeOther)
	}
}

func TestMethodsAndSizes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link := b.link("")
	for _, method := range []string{http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions, http.MethodTrace, "X"} {
		a := b.browser().do(method, link)
		b.wantStatus(a, http.StatusMethodNotAllowed)
		if a.Header.Get("Allow") == "" {
			t.Errorf("%s: the answer does not say what is allowed", method)
		}
	}
	b.wantStatus(b.browser().get(link+"?"+strings.Repeat("x", 5000)), http.StatusRequestURITooLong)
	request := httptest.NewRequest(http.MethodPost, link, strings.NewReader(strings.Repeat("x", 5000)))
	recorder := httptest.NewRecorder()
	b.handler(b.site).ServeHTTP(recorder, request)
	if recorder.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("large body: status %d", recorder.Code)
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	b := setup(t)
	link, person := b.link(returnTo), b.browser()
	x, err := url.Parse(b.x.BaseURL)
	check(t, err)
	form := "form-action 'self' http://" + x.Host + " https://app.example;"
	none := "form-action 'none';"
	begin := person.do(http.MethodPost, link)
	back := person.consent(begin.Header.Get("Location"), "alice")
	for _, test := range []struct {
		name   string
		answer answer
		form   string
	}{
		{"link", person.get(link), form},
		{"head", person.do(http.MethodHead, link), form},
		{"button", begin, none},
		{"unknown", person.get(link + "x"), none},
		{"method", person.do(http.MethodPut, link), none},
		{"callback", person.get(back), none},
		{"used", person.get(link), none},
	} {
		for header, want := range map[string]string{
			"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff",
			"Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; " + test.form + " frame-ancestors 'none'; base-uri 'none'",
		} {
			if got := test.answer.Header.Get(header); got != want {
				t.Errorf("%s: %s is %q, want %q", test.name, header, got, want)
			}
		}
	}
}

// The cookie is one that no other host can set or read.
func TestCookie(t *testing.T) {
	t.Parallel()
	b := setup(t)
	public, err := web.ParsePublicURL("https://connect.example")
	check(t, err)
	b.site.Public = public
	request := httptest.NewRequest(http.MethodPost, b.link(""), nil)
	recorder := httptest.NewRecorder()
	b.handler(b.site).ServeHTTP(recorder, request)
	cookies := recorder.Result().Cookies()
	if len(cookies) != 1 {
		t.Fatalf("%d cookies", len(cookies))
	}
	b.log.hide(cookies[0].Value)
	if ok, err := regexp.MatchString(`^__Host-jetpost_browser=[\w-]{43}; Path=/; Max-Age=900; HttpOnly; Secure; SameSite=Lax$`, cookies[0].String()); err != nil || !ok {
		t.Errorf("the cookie is %s", cookies[0])
	}
}

func TestBelowAPath(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("/on/x")
	link, person := b.link(""), b.browser()
	page := person.get(link)
	b.wantPage(page, http.StatusOK, `action="/on/x/connect/`, `href="/on/x/assets/style.css"`)
	b.wantPage(person.connect(link, "alice"), http.StatusOK, "@alice")
	b.wantStatus(person.get(strings.Replace(link, "/on/x", "", 1)), http.StatusNotFound)
}

func TestAssets(t *testing.T) {
	t.Parallel()
	b := setup(t)
	person := b.browser()
	page := person.get(b.link(""))
	links := regexp.MustCompile(`href="(/assets/[^"]+)"`).FindAllStringSubmatch(page.body, -1)
	if len(links) != 2 {
		t.Fatalf("the page loads %v", links)
	}
	for _, link := range links {
		a := person.get(b.site.Public.String() + link[1])
		b.wantStatus(a, http.StatusOK)
		if a.body == "" || a.Header.Get("Cache-Control") != "public, max-age=600" || strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") {
			t.Errorf("%s: %d bytes, %v", link[1], len(a.body), a.Header)
		}
	}
	for _, path := range []string{"/assets/", "/assets/none", "/assets/..%2fweb.go", "/assets/..%2f..%2fetc%2fpasswd"} {
		b.wantStatus(person.get(b.site.Public.String()+path), http.StatusNotFound)
	}
}

func TestNewWantsEverything(t *testing.T) {
	t.Parallel()
	if _, err := web.New(web.Config{}); err == nil {
		t.Error("a handler was made of nothing")
	}
}

func TestEveryScopeHasWords(t *testing.T) {
	t.Parallel()
	b := setup(t)
	page := b.browser().get(b.link(""))
	for _, scope := range xapi.ConsentScopes() {
		if strings.Contains(page.body, scope) {
			t.Errorf("people read %q", scope)
		}
	}
	if n := strings.Count(page.body, "<li>"); n != len(xapi.ConsentScopes()) {
		t.Errorf("%d lines for %d scopes", n, len(xapi.ConsentScopes()))
	}
}

func TestMakeLinkMistakes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.site.MakeLink(t.Context(), b.ledger, web.NewLink{Account: "Acme!", Life: time.Second, ReturnTo: "https://evil.example", Now: b.clock.Now()})
	var mistakes *web.LinkError
	if !errors.As(err, &mistakes) {
		t.Fatalf("error is %v", err)
	}
	for i, want := range []string{"name ", "ttl: ", "return-to: "} {
		if i >= len(mistakes.Mistakes) || !strings.HasPrefix(mistakes.Mistakes[i], want) {
			t.Errorf("mistakes are %q, want %q among them", mistakes.Mistakes, want)
		}
	}
	if _, err := b.site.MakeLink(t.Context(), b.ledger, web.NewLink{Account: acme, Life: web.MaxLinkLife + 1, Now: b.clock.Now()}); !errors.As(err, &mistakes) {
		t.Errorf("a link for too long: %v", err)
	}
}

func TestCheckReturn(t *testing.T) {
	t.Parallel()
	site := web.Site{ReturnHosts: []string{"app.example", "app.example:8443", "127.0.0.1:3000", "localhost:3000", "[::1]:3000"}}
	for _, good := range []string{
		"https://app.example", "https://app.example/", "https://APP.example/a?b=c#d", "https://app.example:8443/x", "https://app.example//evil.example",
		"http://127.0.0.1:3000/", "http://localhost:3000", "https://localhost:3000", "http://[::1]:3000/",
	} {
		if err := site.CheckReturn(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", "/", "app.example", "//app.example", "//evil.example", "///evil.example", "https:app.example", "https:/app.example", "https:///app.example",
		"http://app.example", "ftp://app.example", "javascript:alert(1)", "javascript://app.example/%0aalert(1)", "data:text/html,x",
		"https://evil.example", "https://app.example.evil.example", "https://evil.app.example", "https://app.example.", "https://app.example:443",
		"https://app.example:", "https://app.example:1", "https://app.example@evil.example", "https://user@app.example", "https://user:pass@app.example",
		"https://evil.example#@app.example", "https://evil.example?@app.example", "https://evil.example/@app.example",
		`https://evil.example\@app.example`, `https://app.example\@evil.example`, `https:\\evil.example`, `\\evil.example`, `/\evil.example`, `https://app.example\.evil.example`,
		`https://app.example/\evil.example`, `https://app.example/"x`, "https://app.example/<x>",
		"https://app.example\t.evil.example", "https://app.example\n", " https://app.example", "https://app.example/ x", "https://app.example/\x00",
		"https://app.example%2eevil.example", "https://app%2eexample", "https://app.exämple", "https://ａpp.example", "https://app.example/ü",
		"http://127.0.0.1", "http://127.0.0.1:3001", "http://127.1:3000", "http://localhost", "http://0.0.0.0:3000", "http://2130706433:3000",
		"https://app.example/" + strings.Repeat("x", 2048),
	} {
		if err := site.CheckReturn(bad); err == nil {
			t.Errorf("%q is allowed", bad)
		}
	}
}

func TestParseReturnHost(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"app.example": "app.example", "App.Example:8443": "app.example:8443", "127.0.0.1:3000": "127.0.0.1:3000", "[::1]:3000": "[::1]:3000"} {
		if got, err := web.ParseReturnHost(text); err != nil || got != want {
			t.Errorf("%q is read as %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "https://app.example", "app.example/", "app.example/x", "*.app.example", "user@app.example", "app.example:", ":80", "app example", "app.example:x", "äpp.example", "app.example?x", "app.example#x"} {
		if got, err := web.ParseReturnHost(text); err == nil {
			t.Errorf("%q is read as %q", text, got)
		}
	}
}

func TestParsePublicURL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"https://connect.example": "https://connect.example", "https://connect.example/": "https://connect.example", "https://h:8443/on/x/": "https://h:8443/on/x",
		"http://127.0.0.1:8088": "http://127.0.0.1:8088", "http://[::1]:8088": "http://[::1]:8088",
	} {
		got, err := web.ParsePublicURL(text)
		if err != nil || got.String() != want {
			t.Errorf("%q is read as %v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "connect.example", "http://connect.example", "http://localhost:8088", "https://localhost", "https://u@h", "https://h?x=y", "https://h?", "https://h#x",
		"https://h/{x}", "https://h/%7bx%7d", "https://h/a/../b", "https://h//x", "ftp://h", "https://", "https://:80",
	} {
		if got, err := web.ParsePublicURL(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}

// Where the page of consent has a name, its form may lead to the hosts below it.
func TestFormLeadsBelowX(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.x.BaseURL = ""
	recorder := httptest.NewRecorder()
	b.handler(b.site).ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, b.link(""), nil))
	if got := recorder.Header().Get("Content-Security-Policy"); !slices.Contains(strings.Split(got, "; "), "form-action 'self' https://x.com https://*.x.com") {
		t.Errorf("the policy is %s", got)
	}
}
