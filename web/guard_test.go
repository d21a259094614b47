package web_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/web"
)

const (
	loginCookie  = "jetpost_session"
	userPassword = "correct horse battery"
)

// withLogin is a dashboard that asks for a login, with the users viewer, editor and admin.
func withLogin(t *testing.T, change func(*web.DashboardConfig)) *dashboardBundle {
	t.Helper()
	b := newDashboard(t, func(cfg *web.DashboardConfig) {
		cfg.Login.Required = true
		if change != nil {
			change(cfg)
		}
	})
	b.serve()
	b.scheduled("acme", "one", "text")
	// A hash that takes next to nothing keeps the tests quick.
	encode, salt := base64.RawStdEncoding.EncodeToString, []byte("sixteen bytes of")
	hash := fmt.Sprintf("$argon2id$v=%d$m=8,t=1,p=1$%s$%s", argon2.Version, encode(salt), encode(argon2.IDKey([]byte(userPassword), salt, 1, 8, 1, 32)))
	for _, role := range jetpost.Roles() {
		testkit.Must(t, b.ledger.AddUser(t.Context(), store.User{Name: string(role), Role: role, PasswordHash: hash, CreatedAt: time.Now(), PasswordAt: time.Now()}))
	}
	return b
}

// cookie is the header of a session of that user, which began so long ago.
func (b *dashboardBundle) cookie(user string, ago time.Duration) []string {
	b.Helper()
	secret := client.NewOperationID()
	digest := sha256.Sum256([]byte(secret))
	testkit.Must(b.T, b.ledger.AddSession(b.Context(), store.Session{Digest: digest[:], User: user, CreatedAt: time.Now().Add(-ago)}))
	return []string{"Cookie", loginCookie + "=" + secret}
}

// login sends the form of the login, and returns the cookie that came back.
func (b *dashboardBundle) login(name, password string, header ...string) (*http.Response, *http.Cookie) {
	b.Helper()
	resp, _ := b.ask(http.MethodPost, "/login", url.Values{"name": {name}, "password": {password}, "to": {"/accounts?cursor="}}, header...)
	for _, c := range resp.Cookies() {
		return resp, c
	}
	return resp, nil
}

// sample is a path of a route, whose change is none that there is.
func sample(path string) string {
	return strings.NewReplacer("{$}", "", "{account}", "acme", "{id}", "one", "{action}", "none", "{user}", "viewer", "{file}", "dashboard.css").Replace(path)
}

// answers asks for a route and returns the status and headers, without the rest.
func (b *dashboardBundle) answers(route web.Route, header ...string) (int, http.Header) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel() // ends a stream
	method := route.Method
	if method == "" {
		method = http.MethodGet
	}
	form := url.Values{"operation_id": {client.NewOperationID()}}.Encode()
	r, err := http.NewRequestWithContext(ctx, method, b.url+sample(route.Path), strings.NewReader(form))
	testkit.Must(b.T, err)
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	testkit.Must(b.T, err)
	testkit.Must(b.T, resp.Body.Close())
	return resp.StatusCode, resp.Header
}

// TestDashboardRoles: each route, and so each one that is added, is open to its role and
// those above it alone. Nobody who has not logged in gets anything but the login.
func TestDashboardRoles(t *testing.T) {
	t.Parallel()
	b := withLogin(t, nil)
	var opened []string
	for _, route := range b.dashboard.Routes() {
		name := route.Method + " " + route.Path
		if route.Role == web.Open {
			opened = append(opened, name)
			continue
		}
		if status, _ := b.answers(route); status != http.StatusUnauthorized {
			t.Errorf("%s without a session: status %d", name, status)
		}
		for _, role := range jetpost.Roles() {
			status, _ := b.answers(route, b.cookie(string(role), 0)...)
			denied := status == http.StatusUnauthorized || status == http.StatusForbidden
			if denied == role.Allows(route.Role) || role == jetpost.RoleViewer && route.Method == http.MethodPost && !denied {
				t.Errorf("%s, which needs %s, as %s: status %d", name, route.Role, role, status)
			}
		}
	}
	if want := []string{"GET /login", "POST /login", "POST /logout", "GET /assets/{file}", "GET /assets/vendor/{file}"}; !slices.Equal(opened, want) {
		t.Errorf("anybody may ask for %q, want %q", opened, want)
	}
	for _, path := range []string{"/requests", "/nothing", "/users"} {
		resp, _ := b.ask(http.MethodGet, path, nil, "Accept", "text/html")
		if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusSeeOther || got != "/ops/login?to="+url.QueryEscape(path) {
			t.Errorf("%s leads to %s, status %d", path, got, resp.StatusCode)
		}
	}
	if is := b.status("acme", "one"); is.Revision != 1 {
		t.Errorf("the request is %s, of revision %d", is.State, is.Revision)
	}
}

// TestDashboardForeignForms: no change, login or logout is taken from another site, and no
// page can be framed. A session's cookie is neither sent there nor read by a script.
func TestDashboardForeignForms(t *testing.T) {
	t.Parallel()
	b := withLogin(t, nil)
	admin := b.cookie("admin", 0)
	for _, route := range b.dashboard.Routes() {
		if route.Method == http.MethodPost {
			for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}} {
				if status, _ := b.answers(route, append(header, admin...)...); status != http.StatusForbidden {
					t.Errorf("%s of %v: status %d", route.Path, header, status)
				}
			}
		}
		_, header := b.answers(route, admin...)
		if policy := header.Get("Content-Security-Policy"); header.Get("X-Frame-Options") != "DENY" || !strings.Contains(policy, "frame-ancestors 'none'") ||
			!strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
			t.Errorf("%s %s: headers %v", route.Method, route.Path, header)
		}
	}
}

// TestDashboardLogin: a session begins with a password, and ends with its logout, its time,
// its user's next password, or its user. A cookie that somebody has kept opens nothing then.
func TestDashboardLogin(t *testing.T) {
	t.Parallel()
	b := withLogin(t, nil)
	if resp, c := b.login("admin", userPassword+"!"); resp.StatusCode != http.StatusUnauthorized || c != nil {
		t.Errorf("wrong password: status %d, cookie %v", resp.StatusCode, c)
	}
	if resp, c := b.login("nobody", userPassword); resp.StatusCode != http.StatusUnauthorized || c != nil {
		t.Errorf("unknown user: status %d, cookie %v", resp.StatusCode, c)
	}
	resp, c := b.login("admin", userPassword)
	if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/ops/accounts?cursor=" {
		t.Fatalf("login: status %d, leads to %s", resp.StatusCode, resp.Header.Get("Location"))
	}
	if c.Name != loginCookie || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Secure || c.Path != "/" {
		t.Errorf("the cookie is %v", c)
	}
	kept := []string{"Cookie", c.Name + "=" + c.Value}
	page := b.want(http.StatusOK, "Log out", http.MethodGet, "/users", nil, kept...)
	if strings.Contains(page, "Nobody is asked to log in") {
		t.Error("a page that asked for a login says that it did not")
	}
	if strings.Contains(page, c.Value) {
		t.Error("a page shows the session's secret")
	}
	b.want(http.StatusSeeOther, "/ops/login", http.MethodPost, "/logout", nil, kept...)
	b.want(http.StatusUnauthorized, "Log in first", http.MethodGet, "/users", nil, kept...)
	b.want(http.StatusUnauthorized, "Log in first", http.MethodPost, "/accounts/acme/pause", url.Values{"operation_id": {"op"}}, kept...)

	b.want(http.StatusOK, "", http.MethodGet, "/", nil, b.cookie("viewer", jetpost.SessionIdle-time.Hour)...)
	b.want(http.StatusUnauthorized, "", http.MethodGet, "/", nil, b.cookie("viewer", jetpost.SessionIdle)...)
	for _, header := range []string{loginCookie + "=", loginCookie + "=" + strings.Repeat("A", 43), "__Host-jetpost=" + c.Value, loginCookie + "=" + strings.Repeat("A", 9000)} {
		b.want(http.StatusUnauthorized, "", http.MethodGet, "/", nil, "Cookie", header)
	}
	editor, admin := b.cookie("editor", 0), b.cookie("admin", 0)
	form := func(more ...string) url.Values {
		v := url.Values{"operation_id": {client.NewOperationID()}}
		for i := 0; i < len(more); i += 2 {
			v.Set(more[i], more[i+1])
		}
		return v
	}
	b.want(http.StatusNotFound, "", http.MethodPost, "/requests/acme/one/none", form(), editor...)
	b.want(http.StatusSeeOther, "?done=role", http.MethodPost, "/users/editor/role", form("role", "viewer"), admin...)
	b.want(http.StatusForbidden, "yours is viewer", http.MethodPost, "/requests/acme/one/none", form(), editor...)
	b.want(http.StatusSeeOther, "?done=password", http.MethodPost, "/users/editor/password", form("password", "another password"), admin...)
	b.want(http.StatusUnauthorized, "", http.MethodGet, "/", nil, editor...)
	viewer := b.cookie("viewer", 0)
	b.want(http.StatusSeeOther, "?done=remove", http.MethodPost, "/users/viewer/remove", form(), admin...)
	b.want(http.StatusUnauthorized, "", http.MethodGet, "/", nil, viewer...)
	b.want(http.StatusSeeOther, "?done=add", http.MethodPost, "/users", form("name", "new", "role", "viewer", "password", userPassword), admin...)
	if resp, c := b.login("new", userPassword); resp.StatusCode != http.StatusSeeOther || c == nil {
		t.Errorf("a new user: status %d", resp.StatusCode)
	}
	b.want(http.StatusOK, "by user:admin", http.MethodGet, "/audit", nil, admin...)
}

// TestDashboardLoginTarget: a login leads to a page of the dashboard, and nowhere else.
func TestDashboardLoginTarget(t *testing.T) {
	t.Parallel()
	b := withLogin(t, nil)
	for _, to := range []string{"https://evil.example", "//evil.example", `/\evil.example`, "javascript:alert(1)", "evil", "/\tevil", "/%0d%0aSet-Cookie:x"} {
		resp, _ := b.ask(http.MethodPost, "/login", url.Values{"name": {"viewer"}, "password": {userPassword}, "to": {to}})
		where, err := url.Parse(resp.Header.Get("Location"))
		if err != nil || where.Host != "" || where.Scheme != "" || !strings.HasPrefix(where.Path, "/ops/") || len(resp.Cookies()) != 1 {
			t.Errorf("%q leads to %q, cookies %v", to, resp.Header.Get("Location"), resp.Cookies())
		}
	}
}

// TestDashboardAttempts: after some wrong passwords the right one opens nothing either, of
// that user from that address; and what others try counts for nobody else.
func TestDashboardAttempts(t *testing.T) {
	t.Parallel()
	b := withLogin(t, func(cfg *web.DashboardConfig) {
		cfg.Login.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	})
	from := func(address string) []string { return []string{"X-Forwarded-For", "203.0.113.9, " + address} }
	for _, name := range []string{"admin", "nobody"} {
		for i := range 10 {
			if resp, _ := b.login(name, "wrong", from("198.51.100.1")...); resp.StatusCode != http.StatusUnauthorized {
				t.Fatalf("attempt %d of %s: status %d", i, name, resp.StatusCode)
			}
		}
		if resp, c := b.login(name, userPassword, from("198.51.100.1")...); resp.StatusCode != http.StatusTooManyRequests || c != nil {
			t.Errorf("%s after ten: status %d", name, resp.StatusCode)
		}
	}
	for _, try := range []struct{ name, address string }{{"admin", "198.51.100.2"}, {"viewer", "198.51.100.1"}} {
		if resp, _ := b.login(try.name, userPassword, from(try.address)...); resp.StatusCode != http.StatusSeeOther {
			t.Errorf("%s from %s: status %d", try.name, try.address, resp.StatusCode)
		}
	}
}

// TestDashboardBehindHTTPS: the cookie goes over https alone, and no neighbour can plant one.
func TestDashboardBehindHTTPS(t *testing.T) {
	t.Parallel()
	b := withLogin(t, func(cfg *web.DashboardConfig) { cfg.Login.Secure = true })
	_, c := b.login("viewer", userPassword)
	if c == nil || c.Name != "__Host-jetpost" || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteStrictMode {
		t.Fatalf("the cookie is %v", c)
	}
	b.want(http.StatusOK, "", http.MethodGet, "/", nil, "Cookie", c.Name+"="+c.Value)
	b.want(http.StatusUnauthorized, "", http.MethodGet, "/", nil, "Cookie", loginCookie+"="+c.Value)
}

// TestDashboardTrustedHeader: a name in the header counts where a trusted proxy sends it,
// and from no other address.
func TestDashboardTrustedHeader(t *testing.T) {
	t.Parallel()
	const header = "X-Forwarded-User"
	mounted := withLogin(t, nil)
	behind := func(proxy string, role jetpost.Role) *dashboardBundle {
		return mounted.mount(func(cfg *web.DashboardConfig) {
			cfg.Login = web.LoginConfig{Required: true, Header: header, HeaderRole: role, Proxies: []netip.Prefix{netip.MustParsePrefix(proxy)}}
		})
	}
	untrusted, trusted, strict := behind("10.0.0.0/8", jetpost.RoleAdmin), behind("127.0.0.0/8", jetpost.RoleViewer), behind("127.0.0.0/8", "")
	untrusted.want(http.StatusUnauthorized, "", http.MethodGet, "/", nil, header, "admin")
	untrusted.want(http.StatusUnauthorized, "", http.MethodGet, "/", nil, header, "admin", "X-Forwarded-For", "10.0.0.1")
	trusted.want(http.StatusOK, "Audit log", http.MethodGet, "/", nil, header, "admin")
	trusted.want(http.StatusOK, "stranger, viewer", http.MethodGet, "/", nil, header, "stranger")
	trusted.want(http.StatusForbidden, "yours is viewer", http.MethodGet, "/users", nil, header, "stranger")
	trusted.want(http.StatusUnauthorized, "", http.MethodGet, "/", nil)
	strict.want(http.StatusForbidden, "There is no user stranger", http.MethodGet, "/", nil, header, "stranger")
	strict.want(http.StatusOK, "editor, editor", http.MethodGet, "/", nil, header, "editor")
	for _, name := range []string{"", "a b", "<b>", strings.Repeat("a", 101)} {
		strict.want(http.StatusForbidden, "names nobody", http.MethodGet, "/", nil, header, name)
	}
	strict.want(http.StatusSeeOther, "", http.MethodPost, "/requests/acme/one/cancel", url.Values{"operation_id": {"op"}}, header, "editor")
	noted, err := mounted.client.AuditList(t.Context(), jetpost.AuditList{Operation: "request.cancel"})
	if err != nil || len(noted.Entries) != 1 || noted.Entries[0].Actor != "proxy:editor" || noted.Entries[0].Target != "one" {
		t.Errorf("noted %+v, %v", noted, err)
	}
}

// TestDashboardHidesTexts: with --hide-texts no page has what a producer wrote.
func TestDashboardHidesTexts(t *testing.T) {
	t.Parallel()
	const text = "a confidential launch"
	shows := newDashboard(t, nil)
	shows.serve()
	shows.scheduled("acme", "one", text)
	hides := shows.mount(func(cfg *web.DashboardConfig) { cfg.HideTexts = true })
	shows.want(http.StatusOK, text, http.MethodGet, "/requests/acme/one", nil)
	for _, path := range dashboardPages {
		if _, page := hides.ask(http.MethodGet, path, nil); strings.Contains(page, text) {
			t.Errorf("%s shows it:\n%s", path, page)
		}
	}
	hides.want(http.StatusOK, "(hidden)", http.MethodGet, "/requests/acme/one", nil)
}

// ending is a control service whose sessions end.
type ending struct {
	web.Operations
	over atomic.Bool
}

func (e *ending) SessionCheck(context.Context, jetpost.SessionCheck) (jetpost.Session, error) {
	if e.over.Load() {
		return jetpost.Session{}, &jetpost.APIError{Code: jetpost.ErrUnauthenticated}
	}
	return jetpost.Session{User: "anna", Role: jetpost.RoleViewer}, nil
}

// TestDashboardStreamEnds: a stream begins with a session alone, and ends soon after it.
func TestDashboardStreamEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		operations := &ending{}
		d, err := web.NewDashboard(web.DashboardConfig{Operations: operations, Log: slog.New(slog.DiscardHandler), Base: "/ops", Login: web.LoginConfig{Required: true}})
		testkit.Must(t, err)
		web.Stream(d, "/stream", jetpost.RoleViewer, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			<-r.Context().Done()
		})
		open := func(cookie string) (*httptest.ResponseRecorder, time.Duration) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/ops/stream", nil)
			if cookie != "" {
				r.Header.Set("Cookie", cookie)
			}
			w, began := httptest.NewRecorder(), time.Now()
			d.ServeHTTP(w, r)
			return w, time.Since(began)
		}
		if w, _ := open(""); w.Code != http.StatusUnauthorized {
			t.Errorf("without a session: status %d", w.Code)
		}
		logout := time.AfterFunc(time.Hour+time.Second, func() { operations.over.Store(true) })
		defer logout.Stop()
		if w, lasted := open(loginCookie + "=secret"); w.Code != http.StatusOK || lasted < time.Hour || lasted > time.Hour+time.Second+web.SessionCheckEvery {
			t.Errorf("with a session: status %d, for %s", w.Code, lasted)
		}
	})
}

// TestDashboardPathTricks: no way of writing an address leads past the login, out of the
// assets, or out of the dashboard.
func TestDashboardPathTricks(t *testing.T) {
	t.Parallel()
	b := withLogin(t, nil)
	for _, path := range []string{
		"/users", "//users", "/./users", "/x/../users", "/assets/../users", "/assets/..%2fusers", "/assets/%2e%2e/users", "/login/../users", "/login/%2e%2e/users",
		"/%75sers", "/users/", "/users%00", "/users;x", "/users%2f", `/login\..\users`, "/assets/dashboard.css/../../users", "/login//..//users", "/users?/login", "/users#/login",
		"/../ops/users", "/assets/..%2f..%2ftemplates%2flayout.html", "/assets/%2e%2e%2fguard.go", "/assets/", "/assets/.", "/assets/..",
	} {
		resp, text := b.ask(http.MethodGet, path, nil, "Accept", "text/html")
		switch resp.StatusCode {
		case http.StatusSeeOther, http.StatusMovedPermanently, http.StatusTemporaryRedirect:
			where, err := url.Parse(resp.Header.Get("Location"))
			if err != nil || where.Host != "" || !strings.HasPrefix(where.Path, "/ops/") {
				t.Errorf("%s leads to %s", path, resp.Header.Get("Location"))
			}
		case http.StatusNotFound, http.StatusBadRequest, http.StatusUnauthorized:
		default:
			t.Errorf("%s: status %d", path, resp.StatusCode)
		}
		if strings.Contains(text, "password set") || strings.Contains(text, "package web") || strings.Contains(text, "{{") {
			t.Errorf("%s shows\n%s", path, text)
		}
	}
}
