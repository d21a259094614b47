package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
)

// lookForBarriers has axe-core tell what keeps people out of a page. In the second scheme
// only colours differ.
const lookForBarriers = `axe.run({preload: false, resultTypes: ["violations"], ...(%t ? {} : {runOnly: ["color-contrast", "link-in-text-block"]})}).then(found => found.violations.
	filter(v => v.impact === "serious" || v.impact === "critical").
	flatMap(v => v.nodes.map(n => v.impact + ", " + v.id + ": " + v.help + "\n" + n.html + "\n" + n.failureSummary)))`

// TestDashboardBarriers has axe-core look at every screen, in light and in dark: nothing of it
// is a serious barrier.
func TestDashboardBarriers(t *testing.T) {
	t.Parallel()
	if os.Getenv("JETPOST_TEST_FULL") == "" {
		t.Skip("skipped: it needs npm; set JETPOST_TEST_FULL=1")
	}
	axe := axeCore(t)
	s, _ := troubled(t)
	workers, err := client.New(s.Conn.Conn)
	testkit.Must(t, err)
	_, err = workers.UserAdd(t.Context(), jetpost.UserAdd{Name: roundPerson, Role: jetpost.RoleAdmin, Password: roundPassword})
	testkit.Must(t, err)
	_, err = workers.UserAdd(t.Context(), jetpost.UserAdd{Name: "victor", Role: jetpost.RoleViewer, Password: roundPassword})
	testkit.Must(t, err)
	pages := s.dashboard("--require-login") + "/dashboard/"
	p := newBrowser(t).person(t, desktopWidth)
	look := func(path string) {
		t.Helper()
		p.hopes()
		p.open(pages + path)
		p.meetsNoBarrier(axe)
	}
	look("login")
	p.types(`//input[@name="name"]`, roundPerson)
	p.types(`//input[@name="password"]`, roundPassword)
	p.click(`//form[contains(@action, "/login")]//button`)
	p.shows(roundPerson + ", admin")
	for _, path := range []string{
		"", "calendar", "calendar?view=month", "requests", "requests?state=scheduled", "requests/alice/thread", "requests/alice/failed", "requests/alice/later",
		"requests/bob/doubtful", "requests/alice/thread/unpublish", "cancel?state=scheduled", "replay", "accounts", "accounts/alice", "accounts/carol",
		"accounts/alice/disconnect", "limits", "limits?add_account=alice&add=5", "dead-letters", "dead-letters?kind=failed", "workers", "users", "audit",
	} {
		look(path)
	}
	look("compose?account=alice")
	p.drafts()
	p.meetsNoBarrier(axe)
	look("accounts/carol")
	p.click(`//form[contains(@action, "/links")]//button`)
	for _, next := range []string{`//main//a[contains(@href, "/connect/")]`, `//form[contains(@action, "/connect/")]//button`, `//button[contains(., "@carol")]`} {
		where, err := chromedp.Run(p.ctx, chromedp.Location())
		testkit.Must(t, err)
		testkit.Must(t, chromedp.Do(p.ctx, chromedp.WaitVisible(chromedp.Search(next))))
		p.meetsNoBarrier(axe)
		p.click(next)
		testkit.Eventually(t, "the page after "+where, func() bool {
			now, err := chromedp.Run(p.ctx, chromedp.Location())
			return err == nil && now != where
		})
	}
	p.shows("Your X account is connected")
	p.meetsNoBarrier(axe)
}

// drafts has a thread with a picture that nobody has described, and too long a text.
func (p *person) drafts() {
	p.t.Helper()
	picture, err := harness.Picture()
	testkit.Must(p.t, err)
	path := filepath.Join(p.t.TempDir(), "a.png")
	testkit.Must(p.t, os.WriteFile(path, picture, 0o600))
	p.types(`//input[@name="file-0"]`, path)
	p.shows("One picture has no description")
	testkit.Must(p.t, chromedp.Do(p.ctx, chromedp.Evaluate[chromedp.Void](fmt.Sprintf(
		`{ const f = document.querySelector("[name=text-0]"); f.value = %q; f.dispatchEvent(new Event("input", {bubbles: true})); }`, strings.Repeat("Words of a long post. ", 20)))))
	p.shows("Split into 2 posts")
}

// meetsNoBarrier looks at the page as it is.
func (p *person) meetsNoBarrier(axe string) {
	p.t.Helper()
	testkit.Must(p.t, chromedp.Do(p.ctx, chromedp.Evaluate[chromedp.Void](axe+";0")))
	for i, scheme := range []string{"light", "dark"} {
		p.prefers(scheme)
		found, err := chromedp.Run(p.ctx, chromedp.Evaluate[[]string](fmt.Sprintf(lookForBarriers, i == 0), chromedp.EvalAwaitPromise))
		testkit.Must(p.t, err)
		for _, barrier := range found {
			where, _ := chromedp.Run(p.ctx, chromedp.Location())
			p.t.Errorf("%s, %s: %s", where, scheme, barrier)
		}
	}
}

// axeCore is the code of axe-core, of the version and with the checksum in tools/axe.
func axeCore(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	testkit.Must(t, os.CopyFS(dir, os.DirFS(filepath.Join("..", "..", "tools", "axe"))))
	npm := func(args ...string) (string, error) {
		command := exec.CommandContext(t.Context(), "npm", args...)
		command.Dir = dir
		said, err := command.CombinedOutput()
		return string(said), err
	}
	if said, err := npm("ci", "--ignore-scripts", "--no-audit", "--no-fund"); err != nil {
		if _, unreached := npm("ping"); unreached != nil {
			t.Skip("skipped: npm's registry is not reached")
		}
		t.Fatalf("install axe-core: %v\n%s", err, said)
	}
	code, err := os.ReadFile(filepath.Join(dir, "node_modules", "axe-core", "axe.min.js"))
	testkit.Must(t, err)
	return string(code)
}
