package web

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
)

const (
	// finishTimeout bounds the exchange of a code and the keeping of what it brings, for
	// which a worker may wait for its database.
	finishTimeout = 100 * time.Second

	// The prefix makes browsers refuse the cookie from other hosts, below or
	// above this one, and without TLS. On a loopback address there is none.
	browserCookie         = "__Host-jetpost_browser"
	loopbackBrowserCookie = "jetpost_browser"
	// browserLife is longer than any attempt.
	browserLife = 15 * time.Minute

	maxCodeBytes = 1024
)

// MaxAnswerTime is how long the longest request takes: a server must not cut it
// off before.
const MaxAnswerTime = finishTimeout + requestTimeout + 5*time.Second

// showLink shows what a link is for. It does not use the link up: mail programs and
// chats open links before people do.
func (h *Handler) showLink(w http.ResponseWriter, r *http.Request) {
	token, ok := readToken(r.PathValue("token"))
	if !ok {
		h.show(w, unknownLinkPage())
		return
	}
	link, err := h.cfg.Workers.LinkGet(r.Context(), jetpost.LinkGet{Link: digest(token)})
	if err != nil {
		h.show(w, h.linkPage(err))
		return
	}
	leads := append([]string{"'self'"}, sources(link.ConsentAt)...)
	if back := h.returnURL(link); back != nil {
		leads = append(leads, origin(back))
	}
	w.Header().Set("Content-Security-Policy", policy(leads...))
	h.showForm(w, link, h.base+"/connect/"+token.Reveal())
}

// digest is what leaves this process of a value that nobody else can know.
func digest(value secret.String) string {
	sum := sha256.Sum256([]byte(value.Reveal()))
	return hex.EncodeToString(sum[:])
}

// begin makes an attempt and sends the person to X.
func (h *Handler) begin(w http.ResponseWriter, r *http.Request) {
	// Another site must not press the button in a visitor's name.
	if err := h.crossSite.Check(r); err != nil {
		h.show(w, crossSitePage())
		return
	}
	token, ok := readToken(r.PathValue("token"))
	if !ok {
		h.show(w, unknownLinkPage())
		return
	}
	link, err := h.cfg.Workers.LinkGet(r.Context(), jetpost.LinkGet{Link: digest(token)})
	if err != nil {
		h.show(w, h.linkPage(err))
		return
	}
	browser := h.browser(r)
	attempt, err := h.cfg.Workers.AccountConsent(r.Context(), link.Account, jetpost.AccountConsent{
		Link: digest(token), Browser: digest(browser), RedirectURI: h.cfg.Site.RedirectURI(),
	})
	if err != nil {
		h.show(w, h.linkPage(err))
		return
	}
	h.cfg.Log.Info("connect.begun", "account", link.Account, "link", digest(token))
	http.SetCookie(w, h.cookie(browser))
	// A redirect by http.Redirect would write a page with the address in it.
	w.Header().Set("Location", attempt.Page)
	w.WriteHeader(http.StatusSeeOther)
}

// browser is what the attempts of this browser are known by. It stays the same
// while it lives, so that attempts with two links can stand beside each other.
func (h *Handler) browser(r *http.Request) secret.String {
	if known, ok := h.knownBrowser(r); ok {
		return known
	}
	return newToken()
}

func (h *Handler) knownBrowser(r *http.Request) (secret.String, bool) {
	cookie, err := r.Cookie(h.cookieName())
	if err != nil {
		return secret.String{}, false
	}
	return readToken(cookie.Value)
}

func (h *Handler) cookieName() string {
	if h.cfg.Site.Public.Scheme == "https" {
		return browserCookie
	}
	return loopbackBrowserCookie
}

// cookie is sent back on the way from X, which is a top-level navigation from
// another site: what is stricter than Lax would not be.
func (h *Handler) cookie(browser secret.String) *http.Cookie {
	return &http.Cookie{
		Name: h.cookieName(), Value: browser.Reveal(), Path: "/", MaxAge: int(browserLife / time.Second),
		Secure: h.cfg.Site.Public.Scheme == "https", HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
}

// finish takes what X sent back. The state must be that of the link's newest attempt,
// and the browser the one that began it. Otherwise an attacker could make a victim's
// browser finish an attempt of the attacker, and so connect the victim's X account
// under the attacker's name; or finish an attempt that a victim began.
func (h *Handler) finish(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet { // HEAD, which must change nothing
		w.Header().Set("Allow", http.MethodGet)
		h.show(w, methodPage())
		return
	}
	query := r.URL.Query()
	state, ok := readToken(query.Get("state"))
	code, failure := query.Get("code"), query.Get("error")
	if !ok || (code == "") == (failure == "") || len(code) > maxCodeBytes {
		h.show(w, incompletePage())
		return
	}
	browser, ok := h.knownBrowser(r)
	if !ok {
		h.show(w, otherBrowserPage())
		return
	}
	link, err := h.cfg.Workers.LinkGet(r.Context(), jetpost.LinkGet{State: state.Reveal(), Browser: digest(browser)})
	if err != nil {
		h.show(w, h.linkPage(err))
		return
	}
	end := jetpost.AccountConnect{State: state.Reveal(), Browser: digest(browser), RedirectURI: h.cfg.Site.RedirectURI()}
	if code != "" {
		if end.Code, err = jetpost.SealCode(end.State, code); err != nil {
			h.show(w, incompletePage())
			return
		}
	}
	h.connect(w, r, link, end, failure)
}

// connect ends the attempt. It goes on when the person closes the tab: by then X may have
// given tokens that must not be lost.
func (h *Handler) connect(w http.ResponseWriter, r *http.Request, link jetpost.LinkInfo, end jetpost.AccountConnect, failure string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), finishTimeout)
	defer cancel()
	connected, err := h.cfg.Workers.AccountConnect(ctx, link.Account, end)
	switch code := codeOf(err); {
	case code == jetpost.ErrAttemptOver, code == jetpost.ErrOtherBrowser, code == jetpost.ErrLinkUsed:
		h.show(w, h.linkPage(err)) // somebody else was faster
	case err != nil:
		h.cfg.Log.Warn("connect.failed", "account", link.Account, "error", err)
		h.conclude(w, link, connectPage(link.Account, code))
	case failure == "access_denied":
		h.cfg.Log.Info("connect.denied", "account", link.Account)
		h.conclude(w, link, deniedPage(link.Account))
	case failure != "":
		// The words come from the browser, which can send anything.
		h.cfg.Log.Warn("connect.refused", "account", link.Account)
		h.conclude(w, link, failedPage())
	default:
		h.cfg.Log.Info("connect.done", "account", link.Account, "username", connected.Username)
		h.conclude(w, link, connectedPage(link.Account, connected.Username))
	}
}

// conclude shows the person the result, or sends them back with it.
func (h *Handler) conclude(w http.ResponseWriter, link jetpost.LinkInfo, p result) {
	back := h.returnURL(link)
	if back == nil {
		h.show(w, p)
		return
	}
	query := back.Query()
	query.Del("error")
	query.Set("account", link.Account)
	query.Set("jetpost", "connected")
	if p.Code != "" {
		query.Set("jetpost", "failed")
		query.Set("error", p.Code)
	}
	back.RawQuery = query.Encode()
	if p.Explain {
		p.Back, p.BackHost = back.String(), back.Host
		h.show(w, p)
		return
	}
	w.Header().Set("Location", back.String())
	w.WriteHeader(http.StatusSeeOther)
}

// returnURL is where to send a person after a link, or nil where it has no such
// address or one that is not allowed any more.
func (h *Handler) returnURL(link jetpost.LinkInfo) *url.URL {
	if link.ReturnTo == "" {
		return nil
	}
	if err := h.cfg.Site.CheckReturn(link.ReturnTo); err != nil {
		h.cfg.Log.Warn("connect.return_refused", "account", link.Account, "error", err)
		return nil
	}
	back, err := url.Parse(link.ReturnTo)
	if err != nil {
		return nil
	}
	return back
}

// linkPage says why a link opens nothing, or an attempt cannot be ended.
func (h *Handler) linkPage(err error) result {
	switch codeOf(err) {
	case jetpost.ErrNotFound:
		return unknownLinkPage()
	case jetpost.ErrLinkUsed:
		return usedPage()
	case jetpost.ErrLinkExpired:
		return expiredPage()
	case jetpost.ErrBusy:
		return busyPage()
	case jetpost.ErrAttemptOver:
		return attemptOverPage()
	case jetpost.ErrOtherBrowser:
		return otherBrowserPage()
	default:
		h.cfg.Log.Error("connect.workers_failed", "error", err)
		return unavailablePage()
	}
}
