package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
)

// TestDashboardRound: with nothing but a browser somebody logs in, connects an account,
// writes a thread with a picture and sees it go live, moves another one, meets a failure and
// sends it again, reconnects an account that X has taken away, pauses and resumes, and logs
// out. Whatever the browser finds wrong on the way fails the test.
func TestDashboardRound(t *testing.T) {
	t.Parallel()
	newRound(t, mouse{}).goesRound()
}

// TestDashboardRoundByKeyboard: all of it is done with Tab, Enter, Space and the arrow keys,
// and the focus is seen wherever a key is pressed.
func TestDashboardRoundByKeyboard(t *testing.T) {
	t.Parallel()
	if os.Getenv("JETPOST_TEST_FULL") == "" {
		t.Skip("skipped: TestDashboardRound does the same with a mouse; set JETPOST_TEST_FULL=1")
	}
	newRound(t, keyboard{}).goesRound()
}

const (
	// roundAccount is connected to roundUser on X by roundPerson.
	roundAccount, roundUser = "shop", "alice"
	roundPerson             = "vera"
	roundPassword           = "correct horse battery"
	// roundZone is the reader's: its times are on no other hour's.
	roundZone = "America/St_Johns"
)

// round is somebody who looks after 'up --sim' with a browser alone.
type round struct {
	*person
	by      hands
	pages   string         // the dashboard's address, with a slash
	x       *upSite        // the simulated X of it
	workers *client.Client // a colleague's way
	posts   []string       // that ought to be on X
}

// newRound begins with an installation that knows an admin, and no account.
func newRound(t *testing.T, by hands) *round {
	t.Helper()
	data := t.TempDir()
	env := harness.Environment(t, map[string]string{"JETPOST_DATA": data})
	a := up("--data", data, "--web-listen", "127.0.0.1:0", "--dashboard", "--require-login", "--log-format", "json")
	instance := harness.Start(t, "up", env, "jetpost", a.args...)
	instance.Until("worker.started")
	instance.Until("web.started")
	cfg, _, err := app.Config{}.Running(data)
	testkit.Must(t, err)
	conn, err := cfg.Connect(t.Context(), slog.New(slog.DiscardHandler), "test")
	testkit.Must(t, err)
	t.Cleanup(conn.Close)
	r := &round{
		by: by, x: &upSite{t: t, sim: cfg.X.URL},
		pages: fmt.Sprintf("http://%s/dashboard/", instance.Entries("web.started")[0]["listen"]),
	}
	r.workers, err = client.New(conn.Conn)
	testkit.Must(t, err)
	testkit.Eventually(t, "the worker to answer", func() bool {
		_, err := r.workers.RequestCount(t.Context(), "")
		return err == nil
	})
	_, err = r.workers.UserAdd(t.Context(), jetpost.UserAdd{Name: roundPerson, Role: jetpost.RoleAdmin, Password: roundPassword})
	testkit.Must(t, err)
	for _, name := range []string{"alice", "bob"} { // those that 'up --sim' begins with
		_, err = r.workers.AccountDisconnect(t.Context(), name, jetpost.AccountDisconnect{})
		testkit.Must(t, err)
		_, err = r.workers.AccountRemove(t.Context(), name, jetpost.AccountRemove{})
		testkit.Must(t, err)
	}
	r.person = newBrowser(t).person(t, desktopWidth)
	t.Cleanup(r.tellsWhere)
	r.does(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: roundZone})
		if err == nil {
			_, err = cdp.Call(ctx, target, page.SetInterceptFileChooserDialog, page.SetInterceptFileChooserDialogParams{Enabled: true})
		}
		return err
	}))
	return r
}

// goesRound takes one step after the other, until one fails.
func (r *round) goesRound() {
	whole := r.t
	for _, step := range []struct {
		name string
		take func(*round)
	}{
		{"log in", (*round).logsIn},
		{"first run", (*round).meetsNothing},
		{"connect", (*round).connects},
		{"publish", (*round).publishes},
		{"move", (*round).moves},
		{"replay", (*round).replays},
		{"reconnect", (*round).reconnects},
		{"pause the account", (*round).pausesAccount},
		{"pause the app", (*round).pausesApp},
		{"log out", (*round).logsOut},
	} {
		good := whole.Run(step.name, func(t *testing.T) {
			r.t, r.x.t = t, t
			r.hopes()
			step.take(r)
			r.hasNoMistakes()
		})
		if r.t, r.x.t = whole, whole; !good {
			return
		}
	}
}

// logsIn opens a page, and gets there once somebody has logged in.
func (r *round) logsIn() {
	r.open(r.pages + "accounts")
	r.fill(`//input[@name="name"]`, roundPerson)
	r.fill(`//input[@name="password"]`, roundPassword)
	r.sends("login")
	r.shows(roundPerson + ", admin")
	testkit.Equal(r.t, "the page after the login", r.where(), r.pages+"accounts")
}

// meetsNothing sees what is to be done first.
func (r *round) meetsNothing() {
	r.goes("")
	r.shows("no account is connected")
	r.finds(`[...document.querySelectorAll(".steps > li")].map(s => s.className).join() === "done,,"`)
	r.press(verdictLink)
	r.finds(`location.pathname.endsWith("/accounts")`)
}

// verdictLink leads to what helps first.
const verdictLink = `//*[contains(@class, "verdict")]//a`

// connects makes a link and uses it.
func (r *round) connects() {
	r.fill(`//form[contains(@action, "/links")]//input[@name="account"]`, roundAccount)
	r.consents()
	r.open(r.pages)
	r.finds(`document.querySelector(".verdict.good") !== null`)
	r.finds(`[...document.querySelectorAll(".steps > li")].map(s => s.className).join() === "done,done,"`)
}

// consents makes a link, and goes the way through X's page of consent.
func (r *round) consents() {
	r.t.Helper()
	r.sends("links")
	r.press(`//main//a[contains(@href, "/connect/")]`)
	r.press(`//form[contains(@action, "/connect/")]//button`)
	r.press(fmt.Sprintf(`//button[contains(., "@%s")]`, roundUser))
	r.finds(`document.querySelector("h1.good") !== null`)
}

// publishes writes a thread of two posts, one with a picture, and sees it go live without
// loading its page again: a colleague has the account wait until it is watched.
func (r *round) publishes() {
	r.writes("Hello from https://example.com/a", len("Hello from ")+23)
	r.shows("$0.200")
	path := filepath.Join(r.t.TempDir(), "a.png")
	picture, err := harness.Picture()
	testkit.Must(r.t, err)
	testkit.Must(r.t, os.WriteFile(path, picture, 0o600))
	r.pick(`//input[@name="file-0"]`, path)
	r.shows("One picture has no description")
	r.focuses("alt-0-0")
	r.fill(`//input[@name="alt-0-0"]`, "A square that turns from blue to red")
	r.press(`//button[@value="add"]`)
	r.focuses("text-1")
	r.fill(`//textarea[@name="text-1"]`, "And a second post.")
	r.counts(1, 18)
	r.finds(`!document.querySelector("#outcome").textContent.includes("no description")`)
	_, err = r.workers.AccountPause(r.t.Context(), roundAccount, jetpost.PauseRequest{Reason: "wait for it"})
	testkit.Must(r.t, err)
	r.submits()
	r.shows("somebody has paused the account")
	r.marked(true)
	r.press(`//button[@id="live"]`)
	r.marked(false)
	r.press(`//button[@id="live"]`)
	r.marked(true)
	_, err = r.workers.AccountResume(r.t.Context(), roundAccount, jetpost.ResumeRequest{})
	testkit.Must(r.t, err)
	r.goesLive("Hello from https://example.com/a", "And a second post.")
	r.finds(`document.querySelector(".pictures img").naturalWidth === 64 && document.querySelector(".pictures img").alt.startsWith("A square")`)
}

// moves takes a request to the next day of the calendar, where it keeps its hour.
func (r *round) moves() {
	zone, err := time.LoadLocation(roundZone)
	testkit.Must(r.t, err)
	at := time.Now().In(zone).AddDate(0, 0, 2)
	at = time.Date(at.Year(), at.Month(), at.Day(), 9, 30, 0, 0, zone)
	next := at.AddDate(0, 0, 1)
	r.writes("Later.", 6)
	r.does(r.by.at(`//input[@name="at"]`), chromedp.KeyEvent(at.Format("01022006")+kb.ArrowRight+"0930a"))
	r.finds(fmt.Sprintf(`document.querySelector("[name=at]").value === %q`, at.Format("2006-01-02T15:04")))
	r.submits()
	r.goes("calendar")
	r.finds(fmt.Sprintf(`document.querySelector("[data-zone]").dataset.zone === %q`, roundZone))
	r.does(r.by.move(fmt.Sprintf(`//li[@data-day=%q]//li[contains(@class, "entry")]`, at.Format(time.DateOnly)), fmt.Sprintf(`//li[@data-day=%q]`, next.Format(time.DateOnly))))
	r.said("reschedule")
	r.finds(fmt.Sprintf(`document.querySelector('[data-day="%s"] .entry.scheduled .when')?.textContent === "09:30"`, next.Format(time.DateOnly)))
	list, err := r.workers.RequestList(r.t.Context(), roundAccount, jetpost.RequestList{State: jetpost.StateScheduled})
	testkit.Must(r.t, err)
	if len(list.Requests) != 1 || !list.Requests[0].PublishAt.Equal(next) {
		r.t.Errorf("scheduled are %+v, want one for %s", list.Requests, next)
	}
}

// replays meets a refusal of X, in its words, finds it again, and sends the post once more.
func (r *round) replays() {
	r.sim(http.MethodPut, "/_sim/faults", `[{"kind":"refuse_text","text":"refuse me","detail":"You cannot say that."}]`)
	r.writes("refuse me", 9)
	r.submits()
	r.shows("You cannot say that.")
	r.sim(http.MethodPut, "/_sim/faults", `[]`)
	r.goes("")
	r.press(`//li[.//span[contains(@class, "state failed")]]//a[contains(@href, "/requests/")]`)
	r.sends("replay")
	r.said("replay")
	r.goesLive("refuse me")
}

// reconnects has X take the account away, and connects it again.
func (r *round) reconnects() {
	r.sim(http.MethodDelete, "/_sim/tokens?user="+roundUser, "")
	r.writes("Is anybody there?", 17)
	r.submits()
	r.shows("the account must be connected again")
	waits := r.where()
	r.goes("")
	r.shows("every account must be connected again")
	r.press(verdictLink)
	r.press(accountLink)
	r.consents()
	r.open(waits)
	r.goesLive("Is anybody there?")
}

// accountLink leads to the account.
const accountLink = `//main//a[contains(@href, "/accounts/` + roundAccount + `")]`

// pausesAccount has what is written wait until the account goes on.
func (r *round) pausesAccount() {
	r.goes("accounts")
	r.press(accountLink)
	r.fill(`//form[contains(@action, "/pause")]//input[@name="reason"]`, "a holiday")
	r.sends("pause")
	r.said("pause")
	r.writes("Back again.", 11)
	r.shows("The account is paused: somebody has paused the account.")
	r.submits()
	r.shows("somebody has paused the account")
	waits := r.where()
	r.goes("accounts")
	r.press(accountLink)
	r.sends("resume")
	r.said("resume")
	r.open(waits)
	r.goesLive("Back again.")
}

// pausesApp has all accounts wait, and lets them go on from the overview.
func (r *round) pausesApp() {
	r.goes("limits")
	r.fill(`//form[contains(@action, "/pause")]//input[@name="reason"]`, "a fire drill")
	r.sends("pause")
	r.said("app-pause")
	r.writes("It was a drill.", 15)
	r.submits()
	r.shows("a fire drill")
	waits := r.where()
	r.goes("")
	r.shows("a fire drill")
	r.sends("app/resume")
	r.said("app-resume")
	r.open(waits)
	r.goesLive("It was a drill.")
}

// logsOut sees who did all that, and afterwards nothing any more, not even on the way back.
func (r *round) logsOut() {
	r.goes("audit")
	r.shows("app.resume")
	r.shows("by user:" + roundPerson)
	r.sends("logout")
	r.finds(`location.pathname.endsWith("/login")`)
	r.does(chromedp.NavigateBack())
	r.finds(`location.pathname.endsWith("/login") && document.querySelector("[name=password]") !== null`)
}

// writes begins a thread with a text, which is counted while it is written.
func (r *round) writes(text string, weight int) {
	r.t.Helper()
	r.goes("compose")
	r.does(r.by.at(`//select[@name="account"]`), chromedp.KeyEvent(roundAccount))
	r.fill(`//textarea[@name="text-0"]`, text)
	r.counts(0, weight)
}

// submits publishes the thread, and comes to its page.
func (r *round) submits() {
	r.t.Helper()
	r.press(`//button[@value="publish"]`)
	r.said("compose")
}

// counts waits until a post of the draft has that weight.
func (r *round) counts(post, weight int) {
	r.t.Helper()
	r.finds(fmt.Sprintf(`document.querySelector("#count-%d")?.textContent.startsWith("%d of 280")`, post, weight))
}

// goesLive waits until the request on the page is live, without loading the page again, and
// checks what else is on X.
func (r *round) goesLive(posts ...string) {
	r.t.Helper()
	r.does(chromedp.Evaluate[chromedp.Void](`window.stays = true`))
	r.finds(fmt.Sprintf(`window.stays === true && document.querySelectorAll(".thread .state.posted").length === %d`, len(posts)))
	r.posts = append(r.posts, posts...)
	if got := r.x.texts(roundUser); !slices.Equal(got, r.posts) {
		r.t.Errorf("on X is %q, want %q", got, r.posts)
	}
}

// goes opens a page by its link.
func (r *round) goes(page string) {
	r.t.Helper()
	r.does(chromedp.Evaluate[chromedp.Void](`window.left = true`))
	r.press(fmt.Sprintf(`//header//a[@href="/dashboard/%s"]`, page))
	r.finds(fmt.Sprintf(`window.left !== true && document.readyState === "complete" && document.querySelector("header [aria-current]")?.getAttribute("href") === "/dashboard/%s"`, page))
}

// sends presses the button of a form, by the address that it is sent to.
func (r *round) sends(to string) {
	r.t.Helper()
	r.press(fmt.Sprintf(`//form[contains(@action, "/%s")]//button`, to))
}

// said waits until the page says what was just done.
func (r *round) said(done string) {
	r.t.Helper()
	r.finds(fmt.Sprintf(`new URLSearchParams(location.search).get("done") === %q && document.querySelector(".said") !== null`, done))
}

// press presses a link or a button.
func (r *round) press(what string) {
	r.t.Helper()
	r.does(r.by.press(what))
}

// fill writes into a field, in place of what it has.
func (r *round) fill(field, text string) {
	r.t.Helper()
	r.does(r.by.at(field), chromedp.KeyEvent("a", chromedp.KeyModifiers(chromedp.ModifierCtrl)), chromedp.KeyEvent(text))
}

// pick chooses a file in the dialog that the system opens for a field.
func (r *round) pick(field, path string) {
	r.t.Helper()
	dialog, err := chromedp.Run(r.ctx, chromedp.WaitEvent(page.FileChooserOpened, nil, r.by.press(field)))
	testkit.Must(r.t, err)
	r.does(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, dom.SetFileInputFiles, dom.SetFileInputFilesParams{Files: []string{path}, BackendNodeID: dialog.BackendNodeID})
		return err
	}))
}

// does something with the page.
func (r *round) does(what ...action) {
	r.t.Helper()
	if err := chromedp.Do(r.ctx, what...); err != nil {
		r.t.Fatalf("on %s: %v", r.where(), err)
	}
}

// finds waits until a condition holds on the page.
func (r *round) finds(condition string) {
	r.t.Helper()
	testkit.Eventually(r.t, condition, func() bool {
		is, err := chromedp.Run(r.ctx, chromedp.Evaluate[bool](condition))
		return err == nil && is
	})
}

// focuses waits until the page goes on with a field by itself.
func (r *round) focuses(name string) {
	r.t.Helper()
	r.finds(fmt.Sprintf(`document.activeElement?.name === %q`, name))
}

// marked waits until the page says that it is live, or that it is not.
func (r *round) marked(live bool) {
	r.t.Helper()
	r.finds(fmt.Sprintf(`document.querySelector("#live").classList.contains("on") === %t && document.querySelector("#live").checkVisibility()`, live))
}

// where is the address of the page.
func (r *round) where() string {
	r.t.Helper()
	where, _ := chromedp.Run(r.ctx, chromedp.Location())
	return where
}

// tellsWhere shows the page on which a test failed.
func (r *round) tellsWhere() {
	if !r.t.Failed() {
		return
	}
	r.hopes()
	text, err := chromedp.Run(r.ctx, chromedp.Evaluate[string](`location.href + "\n" + document.body.innerText`))
	r.t.Logf("the page is %s %v", text, err)
}

// sim asks the simulated X for a change.
func (r *round) sim(method, path, body string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.x.sim+path, strings.NewReader(body))
	testkit.Must(r.t, err)
	resp, err := http.DefaultClient.Do(req)
	testkit.Must(r.t, err)
	testkit.Must(r.t, resp.Body.Close())
	if resp.StatusCode >= http.StatusBadRequest {
		r.t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

type action = chromedp.Action[chromedp.Void]

// hands are a way to use a page. Places are XPaths.
type hands interface {
	// press presses a link, a button or a field.
	press(what string) action
	// at has the keys go into a field.
	at(field string) action
	// move takes a request of the calendar to the next day, which is named.
	move(entry, day string) action
}

// mouse is in the hands of most people.
type mouse struct{}

func (mouse) press(what string) action { return chromedp.Click(chromedp.Search(what)) }
func (mouse) at(field string) action {
	return chromedp.Focus(chromedp.Search(field), chromedp.NodeVisible)
}
func (mouse) move(entry, day string) action {
	return chromedp.DragAndDrop(chromedp.Search(entry), chromedp.Search(day))
}

// keyboard is all that some people have.
type keyboard struct{}

const (
	// maxTabs is how often Tab is pressed to come to any place of a page.
	maxTabs = 200
	// whereFocus tells whether the focus is at a place, and is seen there. "skip" is the link
	// that leads past what is on each page.
	whereFocus = `(() => {
		const is = document.activeElement, what = document.evaluate(%q, document, null, XPathResult.FIRST_ORDERED_NODE_TYPE, null).singleNodeValue;
		if (is && is === what) {
			return is.matches(":focus-visible") && getComputedStyle(is).outlineStyle !== "none" ? "there" : "unseen";
		}
		return is?.matches(".skip") && document.querySelector("main").contains(what) ? "skip" : "";
	})()`
)

func (keyboard) at(field string) action {
	return func(ctx context.Context, target *chromedp.Target) (none chromedp.Void, err error) {
		if _, err := chromedp.WaitVisible(chromedp.Search(field))(ctx, target); err != nil {
			return none, err
		}
		for range maxTabs {
			key := kb.Tab
			switch is, err := chromedp.Evaluate[string](fmt.Sprintf(whereFocus, field))(ctx, target); {
			case err != nil || is == "there":
				return none, err
			case is == "unseen":
				return none, fmt.Errorf("nobody sees that %s has the focus", field)
			case is == "skip":
				key = kb.Enter
			}
			if _, err := chromedp.KeyEvent(key)(ctx, target); err != nil {
				return none, err
			}
		}
		return none, fmt.Errorf("%s is not reached with Tab", field)
	}
}

func (k keyboard) press(what string) action {
	key := " "
	if last := what[strings.LastIndex(what, "//")+2:]; last == "a" || strings.HasPrefix(last, "a[") {
		key = kb.Enter // Space would scroll
	}
	return chromedp.Steps(k.at(what), chromedp.KeyEvent(key))
}

// move changes its mind once: it begins with the wrong day.
func (k keyboard) move(entry, _ string) action {
	return chromedp.Steps(k.at(entry+"/a"), chromedp.KeyEvent(" "+kb.ArrowLeft+kb.Escape), chromedp.KeyEvent(" "+kb.ArrowRight+" "))
}
