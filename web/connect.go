package web

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// attemptLife is how long a person may take on X, with signing in there.
	attemptLife = 15 * time.Minute
	// finishTimeout bounds the exchange of a code and the keeping of what it
	// brings, for which a connector may wait for its database, and closeTimeout
	// what is written after that. The link is busy for as long, and a margin more.
	finishTimeout = 90 * time.Second
	closeTimeout  = 10 * time.Second
	finishLease   = 2 * time.Minute

	// The prefix makes browsers refuse the cookie from other hosts, below or
	// above this one, and without TLS. On a loopback address there is none.
	browserCookie         = "__Host-jetpost_browser"
	loopbackBrowserCookie = "jetpost_browser"

	maxCodeBytes = 1024
)

// MaxAnswerTime is how long the longest request takes: a server must not cut it
// off before.
const MaxAnswerTime = finishLease

// showLink shows what a link is for. It does not use the link up: mail programs and
// chats open links before people do.
func (h *Handler) showLink(w http.ResponseWriter, r *http.Request) {
	token, ok := readToken(r.PathValue("token"))
	if !ok {
		h.show(w, unknownLinkPage())
		return
	}
	link, err := h.cfg.Links.Link(r.Context(), token)
	if err == nil {
		err = link.Over(h.cfg.Now())
	}
	if err != nil {
		h.show(w, h.linkPage(err))
		return
	}
	leads := append([]string{"'self'"}, h.consent...)
	if back := h.returnURL(link); back != nil {
		leads = append(leads, origin(back))
	}
	w.Header().Set("Content-Security-Policy", policy(leads...))
	h.showForm(w, link, h.base+"/connect/"+token.Reveal())
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
	now := h.cfg.Now()
	attempt := store.LinkAttempt{
		State: newToken(), Browser: h.browser(r), Verifier: secret.New(xapi.NewVerifier()), ExpiresAt: now.Add(attemptLife), Now: now,
	}
	link, err := h.cfg.Links.BeginAttempt(r.Context(), token, attempt)
	if err != nil {
		h.show(w, h.linkPage(err))
		return
	}
	h.cfg.Log.Info("connect.begun", "account", link.Account, "link", link.ID)
	http.SetCookie(w, h.cookie(attempt.Browser))
	// A redirect by http.Redirect would write a page with the address in it.
	w.Header().Set("Location", h.cfg.Connector.AuthorizeURL(attempt.State.Reveal(), attempt.Verifier.Reveal(), h.cfg.Site.RedirectURI()))
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
		Name: h.cookieName(), Value: browser.Reveal(), Path: "/", MaxAge: int(attemptLife / time.Second),
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
	lease := finishLease
	if failure != "" { // there is nothing to finish
		lease = 0
	}
	link, verifier, err := h.cfg.Links.TakeAttempt(r.Context(), state, browser, lease, h.cfg.Now())
	switch {
	case err != nil:
		h.show(w, h.attemptPage(err))
	case failure == "access_denied":
		h.cfg.Log.Info("connect.denied", "account", link.Account, "link", link.ID)
		h.conclude(w, link, deniedPage(link.Account))
	case failure != "":
		// The words come from the browser, which can send anything.
		h.cfg.Log.Warn("connect.refused", "account", link.Account, "link", link.ID)
		h.conclude(w, link, failedPage())
	default:
		h.connect(w, r, link, state, code, verifier)
	}
}

// connect exchanges the code. It goes on when the person closes the tab: by then
// X may have given tokens that must not be lost.
func (h *Handler) connect(w http.ResponseWriter, r *http.Request, link store.Link, state secret.String, code string, verifier secret.String) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), finishTimeout)
	defer cancel()
	connected, err := h.cfg.Connector.Connect(ctx, link.Account, code, verifier.Reveal(), h.cfg.Site.RedirectURI())
	settle, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), closeTimeout)
	defer cancel()
	if err != nil {
		h.cfg.Log.Warn("connect.failed", "account", link.Account, "link", link.ID, "error", err)
		if err := h.cfg.Links.GiveUpAttempt(settle, link.ID, state); err != nil {
			h.cfg.Log.Warn("connect.link_stays_busy", "link", link.ID, "lease", finishLease, "error", err)
		}
		h.conclude(w, link, connectPage(link.Account, err))
		return
	}
	h.cfg.Log.Info("connect.done", "account", link.Account, "username", connected.Username, "link", link.ID)
	if err := h.cfg.Links.UseLink(settle, link.ID, h.cfg.Now()); err != nil {
		// The account is connected. What the link could still do is connect the
		// same X user again, until it expires.
		h.cfg.Log.Error("connect.link_not_spent", "account", link.Account, "link", link.ID, "error", err)
	}
	h.conclude(w, link, connectedPage(link.Account, connected.Username))
}

// conclude shows the person the result, or sends them back with it.
func (h *Handler) conclude(w http.ResponseWriter, link store.Link, p result) {
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
func (h *Handler) returnURL(link store.Link) *url.URL {
	if link.ReturnTo == "" {
		return nil
	}
	if err := h.cfg.Site.CheckReturn(link.ReturnTo); err != nil {
		h.cfg.Log.Warn("connect.return_refused", "account", link.Account, "link", link.ID, "error", err)
		return nil
	}
	back, err := url.Parse(link.ReturnTo)
	if err != nil {
		return nil
	}
	return back
}

// linkPage says why a link opens nothing.
func (h *Handler) linkPage(err error) result {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return unknownLinkPage()
	case errors.Is(err, store.ErrLinkUsed):
		return usedPage()
	case errors.Is(err, store.ErrLinkExpired):
		return expiredPage()
	case errors.Is(err, store.ErrLinkBusy):
		return busyPage()
	default:
		h.cfg.Log.Error("connect.ledger_failed", "error", err)
		return unavailablePage()
	}
}

// attemptPage says why an attempt cannot be finished.
func (h *Handler) attemptPage(err error) result {
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrAttemptOver):
		return attemptOverPage()
	case errors.Is(err, store.ErrOtherBrowser):
		return otherBrowserPage()
	default:
		return h.linkPage(err)
	}
}
