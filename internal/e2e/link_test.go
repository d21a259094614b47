package e2e

import (
	"errors"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"syscall"
	"testing"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// visitor is somebody with a link and a browser without a screen, which
// follows every redirect.
type visitor struct {
	s *site
	http.Client
}

func (s *site) visitor() *visitor {
	s.T.Helper()
	jar, err := cookiejar.New(nil)
	testkit.Must(s.T, err)
	return &visitor{s: s, Client: http.Client{Jar: jar}}
}

// press presses the button of a link, and returns X's page.
func (c *visitor) press(link string) (page string) {
	c.s.T.Helper()
	follow := c.CheckRedirect
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	defer func() { c.CheckRedirect = follow }()
	resp, _ := c.ask(http.MethodPost, link)
	if resp.StatusCode != http.StatusSeeOther {
		c.s.T.Fatalf("the button: %s", resp.Status)
	}
	return resp.Header.Get("Location")
}

// sees opens an address and checks the page that it leads to.
func (c *visitor) sees(address string, status int, words string) {
	c.s.T.Helper()
	if resp, page := c.ask(http.MethodGet, address); resp.StatusCode != status || !strings.Contains(page, words) {
		c.s.T.Errorf("%s, want %d and %q:\n%s", resp.Status, status, words, page)
	}
}

func (c *visitor) ask(method, address string) (*http.Response, string) {
	c.s.T.Helper()
	req, err := http.NewRequestWithContext(c.s.T.Context(), method, address, nil)
	testkit.Must(c.s.T, err)
	resp, err := c.Do(req)
	testkit.Must(c.s.T, err)
	text, err := io.ReadAll(resp.Body)
	testkit.Must(c.s.T, errors.Join(err, resp.Body.Close()))
	return resp, html.UnescapeString(string(text))
}

// Pages are processes like others: one may die between the button and the way
// back, and the next one goes on. What X and the ledger make of a consent is what
// 'accounts connect' makes of it; here people are told.
func TestLink(t *testing.T) {
	t.Parallel()
	s, env, _ := newConnectSite(t)
	listen := testkit.ClosedAddress(t)
	env = append(env, "JETPOST_PUBLIC_URL=http://"+listen)
	serve := func(name string) *harness.Process { // with neither a database nor keys
		p := harness.Start(t, name, append(env, "DATABASE_URL=", "HUB_ENCRYPTION_KEY=", "X_CLIENT_ID=", "X_CLIENT_SECRET="), "jetpost", "web", "--listen", listen, "--log-format", "json", "--log-level", "debug")
		p.Until("web.started")
		return p
	}
	link := func(account string) string {
		code, stdout, stderr := harness.RunCommand(t, env, "jetpost", "accounts", "link", account)
		if code != exitOK {
			t.Fatalf("exit code %d\n%s", code, stderr)
		}
		return strings.Split(stdout, "\n")[0]
	}
	worker := harness.Start(t, "worker", env, "jetpost", "worker", "--log-format", "json", "--log-level", "debug")
	worker.Until("worker.started")
	first, c, acme := serve("web-1"), s.visitor(), link("acme")
	page := c.press(acme)
	first.Kill()
	second := serve("web-2")
	c.sees(page+"&user=alice", http.StatusOK, "@alice is now connected under the name acme")
	s.wantConnected("acme", "alice")
	c.sees(acme, http.StatusGone, "was used")

	again := link("acme")
	c.sees(c.press(again)+"&user=bob", http.StatusConflict, "The name acme belongs to another X account")
	s.wantConnected("acme", "alice")
	c.sees(c.press(link("other"))+"&user=alice", http.StatusConflict, "under another name than other")
	s.wantConnected("acme", "alice")
	c.sees(c.press(link("other"))+"&user=carol&grant=tweet.read+users.read", http.StatusConflict, "allow all of it")
	if _, err := s.Ledger.Account(t.Context(), "other"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("account other: %v", err)
	}
	c.sees("http://"+listen+"/healthz", http.StatusOK, `{"status":"ok"}`)

	// Whoever is on the way back while the pages are stopped still arrives.
	last := c.press(link("other")) + "&user=carol"
	s.AtCall(http.MethodPost, "/2/oauth2/token", 1, true, func() {
		second.Signal(syscall.SIGTERM)
		testkit.Eventually(t, "the pages to take no more requests", func() bool {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", listen)
			return err != nil || conn.Close() != nil
		})
	})
	c.sees(last, http.StatusOK, "@carol is now connected under the name other")
	s.wantConnected("other", "carol")
	if code := second.Exit(); code != exitOK {
		t.Errorf("the pages ended with code %d", code)
	}
	s.WantCallLog(nil)
	harness.Stop(worker)
	for _, p := range []*harness.Process{first, second, worker} {
		if log := p.Output(); strings.Contains(log, "xsim-") || strings.Contains(log, acme[strings.LastIndex(acme, "/")+1:]) {
			t.Errorf("a code, a token or a link is logged:\n%s", log)
		}
	}
}

// An account that X has taken away goes on as soon as its owner uses a link.
func TestLinkReconnects(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Lease: longLease, Accounts: []string{"alice"}})
	listen := testkit.ClosedAddress(t)
	env := append(s.Settings(), "JETPOST_PUBLIC_URL=http://"+listen)
	w := s.Worker("worker")
	pages := harness.Start(t, "web", env, "jetpost", "web", "--listen", listen, "--log-format", "json")
	pages.Until("web.started")
	s.Sim.RevokeConsent("alice")
	jobs := harness.MakeJobs(2, []string{"alice"}, harness.One)
	s.Publish(jobs)
	testkit.Eventually(t, "every job to be held", func() bool { return s.Counts()[jetpost.StateHeld] == len(jobs) })
	code, stdout, stderr := harness.RunCommand(t, env, "jetpost", "accounts", "link", "alice")
	if code != exitOK {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	c := s.visitor()
	c.sees(c.press(strings.Split(stdout, "\n")[0])+"&user=alice", http.StatusOK, "@alice is now connected under the name alice")
	s.AllPublished(len(jobs))
	harness.Stop(w, pages)
	s.WantCallLog(jobs)
}
