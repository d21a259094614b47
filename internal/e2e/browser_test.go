package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"

	devtools "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// phoneWidth and desktopWidth are what the pages must fit.
const (
	phoneWidth   = 390
	desktopWidth = 1280
	screenHeight = 844
)

// TestLinkInBrowser has a real browser go the customer's way, since none of the
// simpler ones heeds cookies, form actions and redirects as people's do.
func TestLinkInBrowser(t *testing.T) {
	t.Parallel()
	product := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<!DOCTYPE html><title>Product</title>")
	}))
	t.Cleanup(product.Close)
	host := strings.TrimPrefix(product.URL, "http://")
	data := t.TempDir()
	env := harness.Environment(t, map[string]string{"JETPOST_DATA": data})
	instance := harness.Start(t, "up", env, "jetpost", append(up("--data", data, "--web-listen", "127.0.0.1:0", "--return-hosts", host).args, "--log-format", "json")...)
	instance.Until("worker.started")
	instance.Until("web.started")
	cfg, _, err := app.Config{}.Running(data)
	testkit.Must(t, err)
	addUser(t, cfg.X.URL, "carol")
	browser := newBrowser(t)
	link := func(t *testing.T, account string) string {
		t.Helper()
		code, stdout, stderr := harness.RunCommand(t, env, "jetpost", "accounts", "link", account, "--return-to", product.URL+"/done?tab=x")
		if code != exitOK {
			t.Fatalf("exit code %d\n%s", code, stderr)
		}
		return strings.Split(stdout, "\n")[0]
	}

	t.Run("consent", func(t *testing.T) {
		t.Parallel()
		p := browser.person(t, phoneWidth)
		p.open(link(t, "customer"))
		p.click(`//button[.="Continue to X"]`)
		p.click(`//button[contains(., "@carol")]`)
		p.ends(host, "account=customer&jetpost=connected&tab=x")
		if code, stdout, stderr := harness.RunCommand(t, env, "jetpost", "accounts", "list"); code != exitOK || !strings.Contains(stdout, "customer  @carol") {
			t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
		}
	})
	t.Run("denied", func(t *testing.T) {
		t.Parallel()
		p := browser.person(t, desktopWidth)
		p.open(link(t, "nobody"))
		p.click(`//button[.="Continue to X"]`)
		p.click(`//button[.="Deny"]`)
		p.ends(host, "account=nobody&error=denied&jetpost=failed&tab=x")
		if code, stdout, stderr := harness.RunCommand(t, env, "jetpost", "accounts", "list"); code != exitOK || strings.Contains(stdout, "nobody") {
			t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
		}
	})
}

// addUser makes a user of the simulated X.
func addUser(t *testing.T, x, handle string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, x+"/_sim/accounts", strings.NewReader(fmt.Sprintf(`{"handle":%q}`, handle)))
	testkit.Must(t, err)
	resp, err := http.DefaultClient.Do(req)
	testkit.Must(t, err)
	testkit.Must(t, resp.Body.Close())
	if resp.StatusCode >= http.StatusBadRequest {
		t.Fatalf("make user %s: %s", handle, resp.Status)
	}
}

// browser is a Chromium with a profile of its own.
type browser struct{ ctx context.Context }

func newBrowser(t *testing.T) browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v: install it, on Debian as the package chromium", err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-component-update", true), chromedp.WSURLReadTimeout(testkit.Patience))
	allocated, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, stop := chromedp.NewContext(allocated)
	t.Cleanup(stop)
	testkit.Must(t, chromedp.Do(ctx, chromedp.Navigate("about:blank")))
	return browser{ctx}
}

// person is somebody with cookies and a screen of their own.
type person struct {
	t   *testing.T
	tab context.Context
	ctx context.Context // of the tab, as long as patience lasts
	// over is closed once the test ends, and with it the programs that serve pages.
	over <-chan struct{}

	mu       sync.Mutex
	mistakes []string // that the browser found in our pages
}

func (b browser) person(t *testing.T, width int64) *person {
	t.Helper()
	p := &person{t: t, over: t.Context().Done()}
	var leave context.CancelFunc
	p.tab, leave = chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext(), chromedp.WithListener(p.hear))
	t.Cleanup(leave)
	testkit.Must(t, chromedp.Do(p.tab, chromedp.EmulateViewport(width, screenHeight)))
	p.hopes()
	t.Cleanup(p.hasNoMistakes)
	return p
}

// hopes has patience anew.
func (p *person) hopes() {
	var cancel context.CancelFunc
	p.ctx, cancel = context.WithTimeout(p.tab, testkit.Patience)
	p.t.Cleanup(cancel)
}

// hear notes what the browser finds wrong, such as a breach of a page's own policy, and
// what goes wrong in a page's scripts. X and the product have no icon, which is no mistake
// of ours.
func (p *person) hear(event any) {
	mistake := ""
	switch is := event.(type) {
	case *devtools.EventEntryAdded:
		if is.Entry.Level == devtools.EntryLevelError && !strings.HasSuffix(is.Entry.URL, "/favicon.ico") {
			mistake = fmt.Sprintf("%s (%s)", is.Entry.Text, is.Entry.URL)
		}
	case *runtime.EventExceptionThrown:
		mistake = (&chromedp.ExceptionError{ExceptionDetails: is.ExceptionDetails}).Error()
	case *runtime.EventConsoleAPICalled:
		if is.Type == runtime.ConsoleAPICalledTypeError {
			mistake = "a script has logged an error"
			for _, argument := range is.Args {
				mistake += fmt.Sprintf(" %s %s", argument.Description, argument.Value)
			}
		}
	}
	select {
	case <-p.over:
		return
	default:
	}
	if mistake == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mistakes = append(p.mistakes, mistake)
}

// hasNoMistakes fails the test with what the browser found wrong since the last time.
func (p *person) hasNoMistakes() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, mistake := range p.mistakes {
		p.t.Errorf("the browser says: %s", mistake)
	}
	p.mistakes = nil
}

// open opens a link, whose page must fit the screen.
func (p *person) open(link string) {
	p.t.Helper()
	testkit.Must(p.t, chromedp.Do(p.ctx, chromedp.Navigate(link)))
	p.fits()
}

// fits checks that nothing of the page is beside the screen.
func (p *person) fits() {
	p.t.Helper()
	hidden, err := chromedp.Run(p.ctx, chromedp.Evaluate[int](`document.documentElement.scrollWidth - document.documentElement.clientWidth`))
	testkit.Must(p.t, err)
	if hidden > 0 {
		where, _ := chromedp.Run(p.ctx, chromedp.Location())
		p.t.Errorf("%s is %d pixels wider than the screen", where, hidden)
	}
}

// click presses what an XPath names, once it is there.
func (p *person) click(what string) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, chromedp.Click(chromedp.Search(what))); err != nil {
		where, _ := chromedp.Run(p.ctx, chromedp.Location())
		p.t.Fatalf("press %s on %s: %v", what, where, err)
	}
}

// ends waits until the browser is with the product, with that query.
func (p *person) ends(host, query string) {
	p.t.Helper()
	var at *url.URL
	testkit.Eventually(p.t, "the browser to come to "+host, func() bool {
		where, err := chromedp.Run(p.ctx, chromedp.Location())
		testkit.Must(p.t, err)
		at, err = url.Parse(where)
		testkit.Must(p.t, err)
		return at.Host == host
	})
	if at.RawQuery != query {
		p.t.Errorf("the browser came with %s, want %s", at.RawQuery, query)
	}
}

// TestSimulatorInBrowser has a real browser show the page of the simulated X, with words
// and names that do not break by themselves, on a phone and on a desktop.
func TestSimulatorInBrowser(t *testing.T) {
	t.Parallel()
	x := &xsim.Server{}
	server := httptest.NewServer(x)
	t.Cleanup(server.Close)
	grant, err := x.AddAccount(xsim.NewAccount{Handle: strings.Repeat("a", 63)})
	testkit.Must(t, err)
	picture, err := harness.Picture()
	testkit.Must(t, err)
	client := xapi.New(grant.AccessToken, xapi.WithBaseURL(server.URL))
	var media []string
	for range 3 {
		uploaded, err := client.UploadMedia(t.Context(), bytes.NewReader(picture), int64(len(picture)), "image/png")
		testkit.Must(t, err)
		media = append(media, uploaded.ID)
	}
	parent := ""
	for i, text := range []string{strings.Repeat("w", 270), "<script>document.title = 'ours'</script>", "pictures"} {
		post := xapi.Post{Text: text, InReplyToPostID: parent}
		if i == 2 {
			post.MediaIDs = media
		}
		created, err := client.CreatePost(t.Context(), post)
		testkit.Must(t, err)
		parent = created.ID
	}
	testkit.Must(t, x.SetFaults([]xsim.Fault{{Kind: xsim.FaultRefuseText, Text: strings.Repeat("v", 200), Detail: "no"}}))
	testkit.Must(t, x.Play(xsim.Scenario{Steps: []xsim.Step{{AtMS: 60_000, Do: "DELETE /_sim/media?user=" + strings.Repeat("a", 63)}}}))

	browser := newBrowser(t)
	for name, width := range map[string]int64{"phone": phoneWidth, "desktop": desktopWidth} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := browser.person(t, width)
			p.open(server.URL + "/_sim/")
			shown, err := chromedp.Run(p.ctx, chromedp.Evaluate[[]string](
				`[document.title, ...[...document.images].map(i => i.complete + " " + i.naturalWidth), getComputedStyle(document.querySelector(".post")).display]`))
			testkit.Must(t, err)
			wantEqual(t, "violations", fmt.Sprint(x.Violations()), "[]") // a browser asks for nothing else
			wantEqual(t, "title, pictures and style", strings.Join(shown, ", "), "Simulated X, true 64, true 64, true 64, flex")
		})
	}
}
