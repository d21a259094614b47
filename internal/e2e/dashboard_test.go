package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// hostile is what a producer, X or a colleague may have written.
const hostile = `<script>document.title="ours"</script><img src=x onerror=alert(1)>`

// troubled is an installation with something in each part of the dashboard, and the
// address of that.
func troubled(t *testing.T) (s *site, address string) {
	t.Helper()
	s = newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: longLease, Minute: 20 * time.Millisecond, Accounts: []string{"alice", "bob", "carol"}})
	testkit.Must(t, s.Sim.SetFaults([]xsim.Fault{
		{Kind: xsim.FaultRefuseText, Text: "refuse me", Detail: "No " + hostile},
		{Kind: xsim.FaultCut, After: true, Endpoint: xsim.EndpointCreatePost, Text: "lose me", Times: 1},
		{Kind: xsim.FaultTimelineLag, DelayMS: (10 * time.Minute).Milliseconds(), Account: "bob"},
	}))
	s.Worker("worker-1", "--same-text", "allow")
	for _, job := range []struct{ account, body string }{
		{"alice", fmt.Sprintf(`{"id":"thread","posts":[{"text":"First, with a link: https://example.com/%s"},{"text":%q}]}`, strings.Repeat("long", 50), hostile)},
		{"alice", `{"id":"failed","posts":[{"text":"It begins."},{"text":"refuse me"}],"metadata":{"<b>campaign":"<i>winter"}}`},
		{"alice", fmt.Sprintf(`{"id":"later","publish_at":%q,"posts":[{"text":"Tomorrow."}]}`, time.Now().Add(20*time.Hour).UTC().Format(time.RFC3339))},
		{"bob", `{"id":"doubtful","posts":[{"text":"lose me"}]}`},
		{"alice", `{"id":"` + strings.Repeat("w", 128) + `","posts":[{"text":""}]}`},
		{"alice", `{"id":"` + strings.Repeat("W", 128) + fmt.Sprintf(`","publish_at":%q,"posts":[{"text":"later"}]}`, time.Now().Add(30*time.Hour).UTC().Format(time.RFC3339))},
	} {
		_, err := s.Conn.JS.Publish(t.Context(), "publish.request."+job.account, []byte(job.body))
		testkit.Must(t, err)
	}
	testkit.Eventually(t, "each request to come to rest", func() bool {
		counts := s.Counts()
		return counts[jetpost.StatePublished] == 1 && counts[jetpost.StateFailed] == 1 && counts[jetpost.StateUnknown] == 1 && counts[jetpost.StateScheduled] == 2
	})
	if code, _, stderr := s.Run("pause", "carol", "--reason", "holiday "+hostile); code != exitOK {
		t.Fatalf("pause: %s", stderr)
	}
	return s, s.dashboard()
}

// dashboard serves the dashboard, and returns the address of the pages.
func (s *site) dashboard(flags ...string) string {
	s.T.Helper()
	args := []string{"web", "--listen", "127.0.0.1:0", "--dashboard", "--log-format", "json"}
	pages := harness.Start(s.T, "web", s.Settings(), "jetpost", append(args, flags...)...)
	pages.Until("web.started")
	return fmt.Sprintf("http://%s", pages.Entries("web.started")[0]["listen"])
}

// TestDashboardInBrowser has a real browser open each page, on a phone and on a desktop, in
// light and dark, and cancel, settle and delete what is there. TestDashboardRound does the
// rest.
func TestDashboardInBrowser(t *testing.T) {
	t.Parallel()
	s, address := troubled(t)
	browser := newBrowser(t)
	paths := []string{
		"", "requests", "requests?state=failed", "requests/alice/thread", "requests/alice/failed", "requests/alice/later", "requests/bob/doubtful",
		"requests/alice/thread/unpublish", "accounts", "accounts/alice", "accounts/carol", "limits", "dead-letters", "dead-letters?kind=failed",
		"accounts/alice/disconnect", "users", "audit", "calendar", "calendar?view=month", "compose?account=alice", "workers",
	}
	for scheme, width := range map[string]int64{"light": phoneWidth, "dark": desktopWidth} {
		p := browser.person(t, width)
		p.prefers(scheme)
		for _, path := range paths {
			p.open(address + "/dashboard/" + path)
			p.wantTitle("jetpost")
		}
	}
	t.Run("changes", func(t *testing.T) {
		p := browser.person(t, phoneWidth)
		p.open(address + "/dashboard/requests/alice/later")
		p.click(`//button[.="Cancel"]`)
		p.shows("Cancelled.")
		wantEqual(t, "state", string(s.Status("alice", "later").State), string(jetpost.StateCancelled))

		p.open(address + "/dashboard/requests/bob/doubtful")
		p.types(`//input[@name="post"]`, "https://x.com/bob/status/"+s.Sim.Posts("bob")[0].ID+"?s=20")
		p.click(`//button[.="It is on X"]`)
		p.shows("Settled: the post is live.")
		wantEqual(t, "state", string(s.Status("bob", "doubtful").State), string(jetpost.StatePublished))

		p.open(address + "/dashboard/requests/alice/thread")
		p.click(`//a[contains(., "Delete on X")]`)
		p.click(`//button[.="Delete them on X"]`)
		p.shows("Its posts are being deleted on X.")
		testkit.Eventually(t, "the posts to be deleted", func() bool { return !s.Status("alice", "thread").Unpublish.DoneAt.IsZero() })
	})
	t.Run("empty tab", func(t *testing.T) {
		p := browser.person(t, phoneWidth)
		p.open(address + "/dashboard/requests?state=held")
		p.shows("There are none that are held.")
	})
	t.Run("skip link", func(t *testing.T) {
		p := browser.person(t, phoneWidth)
		p.open(address + "/dashboard/")
		testkit.Must(t, chromedp.Do(p.ctx, chromedp.KeyEvent("\t")))
		focus, err := chromedp.Run(p.ctx, chromedp.Evaluate[string](`document.activeElement.textContent`))
		testkit.Must(t, err)
		wantEqual(t, "first focus", focus, "Skip to the page")
	})
}

// prefers sets the colour scheme.
func (p *person) prefers(scheme string) {
	p.t.Helper()
	testkit.Must(p.t, chromedp.Do(p.ctx, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		return err
	})))
}

// wantTitle checks that the page is ours still, and has one heading.
func (p *person) wantTitle(program string) {
	p.t.Helper()
	got, err := chromedp.Run(p.ctx, chromedp.Evaluate[string](`document.title.split(" - ").at(-1) + " " + document.querySelectorAll("h1").length + " " + document.querySelectorAll("main script, main img").length`))
	testkit.Must(p.t, err)
	where, _ := chromedp.Run(p.ctx, chromedp.Location())
	wantEqual(p.t, "program, headings, scripts and images of "+where, got, program+" 1 0")
}

// shows waits until the page has a text.
func (p *person) shows(text string) {
	p.t.Helper()
	testkit.Eventually(p.t, "the page to show "+text, func() bool {
		is, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool](fmt.Sprintf(`document.body !== null && document.body.innerText.includes(%q)`, text)))
		return err == nil && is
	})
}

// types writes into a field.
func (p *person) types(field, text string) {
	p.t.Helper()
	testkit.Must(p.t, chromedp.Do(p.ctx, chromedp.SendKeys(chromedp.Search(field), text)))
}

// TestDashboardOfUp: 'up' serves the dashboard, with a simulated X without being asked for,
// and its worker answers it.
func TestDashboardOfUp(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	env := harness.Environment(t, map[string]string{"JETPOST_DATA": data})
	args := up("--data", data).args
	if code, _, stderr := harness.RunCommand(t, env, "jetpost", append(args, "--dashboard", "--web-listen", "off")...); code != exitUsage || !strings.Contains(stderr, "add --web-listen 127.0.0.1:8088") {
		t.Errorf("without an address: exit code %d\n%s", code, stderr)
	}
	instance := harness.Start(t, "up", env, "jetpost", append(args, "--read-only", "--log-format", "json")...)
	instance.Until("worker.started")
	instance.Until("web.started")
	if before, _, _ := strings.Cut(instance.Output(), "dashboard on http://127.0.0.1:"); strings.Contains(before, "NATS listens on") || strings.Contains(before, "made ") {
		t.Errorf("the address of the dashboard is not told first:\n%s", instance.Output())
	}
	var page string
	testkit.Eventually(t, "the worker to answer the dashboard", func() bool {
		var status int
		status, page = get(t, fmt.Sprintf("http://%s/", instance.Entries("web.started")[0]["listen"]))
		return status == http.StatusOK
	})
	if !strings.Contains(page, "Needs a person") || !strings.Contains(page, "read only") {
		t.Errorf("the page is\n%s", page)
	}
}
