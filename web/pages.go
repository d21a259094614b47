package web

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/xapi"
)

//go:embed templates
var templates embed.FS

// The pages there are.
const (
	formPage   = "link.html"
	resultPage = "result.html"
)

// form is the page of a link.
type form struct {
	Base    string
	Action  string
	Account string
	Allowed []string // what is consented to, in words
	Until   time.Time
	Left    string // until then, in words
}

// result is a page that says one thing, and what to do.
type result struct {
	Base   string
	Status int
	Good   bool
	Title  string
	Text   string
	Do     string
	// Code is what the product gets for a failure.
	Code string
	// Explain shows the page also where people would be sent back at once: the
	// product cannot explain as well what they must do.
	Explain        bool
	Back, BackHost string
}

// permissions are what people read for scopes, the most important first.
func permissions() [][2]string {
	return [][2]string{
		{"tweet.write", "Publish posts in your name, and delete them"},
		{"media.write", "Upload images and videos for these posts"},
		{"tweet.read", "See your posts, and others that your account can see"},
		{"users.read", "See your profile, and others that your account can see"},
		{"offline.access", "Stay connected while you are away, until you end it"},
	}
}

// allowed puts scopes into words. One without words is shown as it is: nobody
// shall consent to what was not said.
func allowed(scopes []string) (lines []string) {
	for _, known := range permissions() {
		if at := slices.Index(scopes, known[0]); at >= 0 {
			lines = append(lines, known[1])
			scopes = slices.Delete(slices.Clone(scopes), at, at+1)
		}
	}
	return append(lines, scopes...)
}

func (h *Handler) showForm(w http.ResponseWriter, link jetpost.LinkInfo, action string) {
	h.render(w, http.StatusOK, formPage, form{
		Base: h.base, Action: action, Account: link.Account, Allowed: allowed(xapi.ConsentScopes()),
		Until: link.ExpiresAt, Left: left(link.ExpiresAt.Sub(h.cfg.Now())),
	})
}

// left says roughly how long something lasts, never too long.
func left(d time.Duration) string {
	count := func(n int, unit string) string {
		if n == 1 {
			return "1 " + unit
		}
		return fmt.Sprintf("%d %ss", n, unit)
	}
	switch {
	case d >= 48*time.Hour:
		return count(int(d/(24*time.Hour)), "day")
	case d >= 2*time.Hour:
		return count(int(d/time.Hour), "hour")
	case d >= time.Minute:
		return count(int(d/time.Minute), "minute")
	default:
		return "less than a minute"
	}
}

func (h *Handler) show(w http.ResponseWriter, p result) {
	p.Base = h.base
	h.render(w, p.Status, resultPage, p)
}

// readPages reads the templates, each within the layout.
func readPages() (map[string]*template.Template, error) {
	pages := make(map[string]*template.Template)
	for _, name := range []string{formPage, resultPage} {
		page, err := template.ParseFS(templates, "templates/layout.html", "templates/"+name)
		if err != nil {
			return nil, err
		}
		pages[name] = page
	}
	return pages, nil
}

// render writes a whole page or, should that fail, none.
func (h *Handler) render(w http.ResponseWriter, status int, name string, data any) {
	var body bytes.Buffer
	if err := h.pages[name].ExecuteTemplate(&body, "layout.html", data); err != nil {
		h.cfg.Log.Error("web.page_failed", "page", name, "error", err)
		http.Error(w, "This page cannot be shown.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // the person has left
}

// The texts for people. Each page has one sentence, and what to do.

const (
	openAgain = "Open your link again and press the button once more."
	askAgain  = "Ask whoever sent it to you for a new one."
)

func unknownPage() result {
	return result{Status: http.StatusNotFound, Title: "There is no such page", Text: "Nothing is at this address.", Do: "Check that the address is complete."}
}

func unknownLinkPage() result {
	return result{
		Status: http.StatusNotFound, Title: "This link is not known",
		Text: "It may have been cut off on its way to you, or it is too old.", Do: "Check that you opened the whole link. Else ask whoever sent it to you for a new one.",
	}
}

func usedPage() result {
	return result{
		Status: http.StatusGone, Title: "This link was used", Text: "An X account was connected with it, and it works only once.",
		Do: "If that was you, there is nothing left to do. If it was not, tell whoever sent it to you.",
	}
}

func expiredPage() result {
	return result{Status: http.StatusGone, Title: "This link has expired", Text: "It worked for a limited time only.", Do: askAgain}
}

func busyPage() result {
	return result{
		Status: http.StatusConflict, Title: "This link is being used just now", Text: "An X account is being connected with it, perhaps in another tab.",
		Do: "Wait a minute. If no account is connected then, open your link again.",
	}
}

func unavailablePage() result {
	return result{Status: http.StatusServiceUnavailable, Title: "This does not work just now", Text: "The fault is ours, not yours.", Do: "Open your link again in a few minutes."}
}

func crossSitePage() result {
	return result{Status: http.StatusForbidden, Title: "Nothing was connected", Text: "Another site sent you here.", Do: "Open your link itself, and press the button there."}
}

func methodPage() result {
	return result{Status: http.StatusMethodNotAllowed, Title: "This cannot be done here", Text: "Pages can only be read, and forms be sent.", Do: "Open your link in a browser."}
}

func tooLargePage(status int) result {
	return result{Status: status, Title: "That is too much", Text: "The request is larger than any that this page makes.", Do: openAgain}
}

func incompletePage() result {
	return result{Status: http.StatusBadRequest, Title: "Nothing was connected", Text: "What came back from X is not complete.", Do: openAgain}
}

func attemptOverPage() result {
	return result{
		Status: http.StatusBadRequest, Title: "Nothing was connected",
		Text: "This attempt is over: it took too long, was finished before, or you began a newer one, perhaps in another tab.", Do: "Finish the newer one, or open your link again.",
	}
}

func otherBrowserPage() result {
	return result{
		Status: http.StatusForbidden, Title: "Nothing was connected",
		Text: "This attempt was not begun in this browser.", Do: "Open your link here and press the button yourself. If somebody else gave you the address of that page on X, do not go on there.",
	}
}

func connectedPage(account, username string) result {
	return result{
		Status: http.StatusOK, Good: true, Title: "Your X account is connected",
		Text: fmt.Sprintf("@%s is now connected under the name %s.", username, account), Do: "You can close this page.",
	}
}

func deniedPage(account string) result {
	return result{
		Status: http.StatusOK, Code: "denied", Title: "Nothing was connected",
		Text: "You did not allow it on X, so nothing was changed for " + account + ".", Do: "If that was a mistake, open your link again.",
	}
}

func failedPage() result {
	return result{Status: http.StatusBadGateway, Code: "failed", Explain: true, Title: "Nothing was connected", Text: "X could not ask you for your consent.", Do: "Open your link again in a few minutes."}
}

// connectPage says why an account was not connected. Products get the page's code in the
// address to which people return.
func connectPage(account string, code jetpost.ErrorCode) result {
	const otherAccount = "Sign in to the right account on X, then open your link again."
	p := result{Title: "Nothing was connected", Explain: true, Status: http.StatusConflict}
	switch code {
	case jetpost.ErrOtherUser:
		p.Code, p.Do = "other_user", otherAccount
		p.Text = "The name " + account + " belongs to another X account, not to the one that you signed in with."
	case jetpost.ErrOtherName:
		p.Code, p.Do = "other_name", otherAccount
		p.Text = "This X account is connected already, under another name than " + account + "."
	case jetpost.ErrScopesMissing:
		p.Code, p.Do = "incomplete", "Open your link again, and allow all of it."
		p.Text = "X did not give everything that the page asked for."
	case jetpost.ErrCodeRefused:
		p.Status, p.Code = http.StatusBadRequest, "late"
		p.Text, p.Do = "X does not accept the answer that it sent with you, which it does for half a minute only.", openAgain
	default:
		p.Status, p.Code = http.StatusBadGateway, "failed"
		p.Text, p.Do = "X did not answer as it should.", "Open your link again in a few minutes."
	}
	return p
}
