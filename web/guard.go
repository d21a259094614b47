package web

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
)

// open is what a route needs that anybody may ask for. No user has it.
const open jetpost.Role = "open"

const (
	// sessionCheckEvery is how often a page that goes on being sent, as events are, checks
	// that its session lasts.
	sessionCheckEvery = 15 * time.Second
	// maxUserHeader bounds the name that a proxy gives a person.
	maxUserHeader = 100 // bytes
)

// LoginConfig says who may see the dashboard. Its zero value lets everybody in who reaches
// it, as an admin.
type LoginConfig struct {
	// Required asks everybody to log in as a user of the installation.
	Required bool
	// Header, where it is set, has the name of a person whom a proxy has let in; only
	// those in Proxies are believed. A person who is a user has that one's role, and
	// anybody else HeaderRole, or none where it is empty.
	Header     string
	HeaderRole jetpost.Role
	// Proxies are those whose Header and X-Forwarded-For count.
	Proxies []netip.Prefix
	// Secure says that browsers reach the dashboard by https alone.
	Secure bool
}

// visitor is who asks for a page.
type visitor struct {
	// Name is the user's; empty where nobody needs to log in.
	Name string
	Role jetpost.Role
	// session tells that the visitor can log out.
	session bool
	actor   string
}

type visitorKey struct{}

// visitorOf is who asks for the page, or nobody on an open one.
func visitorOf(r *http.Request) visitor {
	v, _ := r.Context().Value(visitorKey{}).(visitor)
	return v
}

// Route is a page or a change of the dashboard, and the role that it needs.
type Route struct {
	Method, Path string // the path below the dashboard's base; an empty method is any
	Role         jetpost.Role
}

// handle is the one way onto the mux: whatever is served there needs a role, and every
// change comes from one of our own pages.
func (d *Dashboard) handle(route Route, serve http.HandlerFunc) {
	if route.Role != open && !slices.Contains(jetpost.Roles(), route.Role) {
		d.unguarded = append(d.unguarded, route)
		return
	}
	pattern := strings.TrimSpace(route.Method + " " + d.cfg.Base + route.Path)
	d.routes, d.guarded[pattern] = append(d.routes, route), true
	d.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		r, err := d.admit(r, route.Role)
		var login *loginError
		switch {
		case errors.As(err, &login) && wantsPage(r):
			http.Redirect(w, r, d.cfg.Base+loginPath(r, d.cfg.Base), http.StatusSeeOther)
		case err != nil:
			d.fail(w, r, err)
		default:
			serve(w, r)
		}
	})
}

// loginError says that nobody has logged in.
type loginError struct{}

func (*loginError) Error() string { return "Nobody is logged in here, or the session has ended." }

// wantsPage tells a person who opens a page from a program, a form and a stream.
func wantsPage(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && strings.Contains(r.Header.Get("Accept"), "text/html")
}

// loginPath is the login that leads back to the page, below the base.
func loginPath(r *http.Request, base string) string {
	to := strings.TrimPrefix(r.URL.RequestURI(), base)
	if to == "/" || len(to) > maxAddress {
		return "/login"
	}
	return "/login?" + url.Values{"to": {to}}.Encode()
}

// admit finds out who asks, and lets nobody do what needs another role. The request that it
// returns says who it is.
func (d *Dashboard) admit(r *http.Request, needed jetpost.Role) (*http.Request, error) {
	if r.Method == http.MethodPost {
		if err := d.crossSite.Check(r); err != nil {
			return r, &forbiddenError{"Another site sent you here.", "open the dashboard itself, and press the button there"}
		}
	}
	if needed == open {
		return r, nil
	}
	who, err := d.visitor(r)
	if err != nil {
		return r, err
	}
	r = r.WithContext(jetpost.WithActor(context.WithValue(r.Context(), visitorKey{}, who), who.actor))
	switch {
	case !who.Role.Allows(needed):
		return r, &forbiddenError{
			fmt.Sprintf("This needs the role %s, and yours is %s.", needed, who.Role), "ask an admin, who changes roles on the page Users",
		}
	case r.Method == http.MethodPost && d.cfg.ReadOnly:
		return r, readOnly()
	case r.Method == http.MethodPost:
		return r, readForm(r)
	}
	return r, nil
}

// readForm reads a form that changes something.
func readForm(r *http.Request) error {
	if err := parseForm(r); err != nil {
		return err
	}
	if r.PostFormValue(operationField) == "" {
		return &jetpost.APIError{Code: jetpost.ErrInvalid, Detail: "The form has no operation_id.", Help: "open its page again"}
	}
	return nil
}

// visitor finds out who asks: whom a trusted proxy names, who has a session, or anybody
// where nobody needs to log in.
func (d *Dashboard) visitor(r *http.Request) (visitor, error) {
	login := d.cfg.Login
	if !login.Required {
		return visitor{Role: jetpost.RoleAdmin, actor: "dashboard"}, nil
	}
	if who, named, err := d.named(r); named || err != nil {
		return who, err
	}
	cookie, err := r.Cookie(d.cookieName())
	if err != nil {
		return visitor{}, &loginError{}
	}
	session, err := d.cfg.Operations.SessionCheck(r.Context(), jetpost.SessionCheck{Digest: sessionDigest(cookie.Value)})
	switch {
	case codeOf(err) == jetpost.ErrUnauthenticated:
		return visitor{}, &loginError{}
	case err != nil:
		return visitor{}, err
	}
	return visitor{Name: session.User, Role: session.Role, session: true, actor: "user:" + session.User}, nil
}

// named is whom a trusted proxy names. What another client writes into the header counts
// for nothing.
func (d *Dashboard) named(r *http.Request) (who visitor, named bool, err error) {
	login := d.cfg.Login
	if login.Header == "" || !login.trusts(r.RemoteAddr) {
		return who, false, nil
	}
	values := r.Header.Values(login.Header)
	if len(values) == 0 {
		return who, false, nil
	}
	name := values[0]
	if len(values) > 1 || name == "" || len(name) > maxUserHeader || !plain(name) {
		return who, false, &forbiddenError{"The proxy names nobody that can be read.", "see to the header " + login.Header + " of the proxy"}
	}
	user, err := d.cfg.Operations.UserGet(r.Context(), jetpost.UserGet{Name: name})
	role := user.Role
	if codeOf(err) == jetpost.ErrNotFound {
		role, err = login.HeaderRole, nil
	}
	if err == nil && role == "" {
		err = &forbiddenError{"There is no user " + name + ".", "ask an admin to add you on the page Users"}
	}
	return visitor{Name: name, Role: role, actor: "proxy:" + name}, true, err
}

// codeOf is the code of an operation's error, "" of none and of another one.
func codeOf(err error) jetpost.ErrorCode {
	var told *jetpost.APIError
	if errors.As(err, &told) {
		return told.Code
	}
	return ""
}

// trusts tells whether an address, with its port, is one of the trusted proxies'.
func (l LoginConfig) trusts(remote string) bool {
	addr, err := netip.ParseAddrPort(remote)
	return err == nil && l.contains(addr.Addr())
}

func (l LoginConfig) contains(addr netip.Addr) bool {
	return slices.ContainsFunc(l.Proxies, func(p netip.Prefix) bool { return p.Contains(addr.Unmap()) })
}

// address is where a request comes from: what the outermost trusted proxy saw.
func (l LoginConfig) address(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	if !l.trusts(r.RemoteAddr) {
		return host
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		addr, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			return host
		}
		if host = addr.Unmap().String(); !l.contains(addr) {
			break
		}
	}
	return host
}

// cookieName is the one of the session's cookie. Browsers take one with the prefix from this
// very host over https alone, so that no neighbour can plant another one.
func (d *Dashboard) cookieName() string {
	if d.cfg.Login.Secure {
		return "__Host-jetpost"
	}
	return "jetpost_session"
}

// setCookie has the browser keep a session's secret, or with "" forget it.
func (d *Dashboard) setCookie(w http.ResponseWriter, secret string) {
	cookie := &http.Cookie{
		Name: d.cookieName(), Value: secret, Path: "/", Secure: d.cfg.Login.Secure, HttpOnly: true,
		SameSite: http.SameSiteStrictMode, MaxAge: int(jetpost.SessionLife.Seconds()),
	}
	if secret == "" {
		cookie.MaxAge = -1
	}
	http.SetCookie(w, cookie)
}

func sessionDigest(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// stream serves what goes on being sent until its session ends: a session is checked again
// and again, so that a logout ends it everywhere.
func (d *Dashboard) stream(path string, role jetpost.Role, serve http.HandlerFunc) {
	d.handle(Route{http.MethodGet, path, role}, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		if d.cfg.Login.Required {
			go d.watchSession(ctx, r, role, cancel)
		}
		serve(w, r.WithContext(ctx))
	})
}

// watchSession calls end once the visitor may no longer see what needs the role. While
// nobody answers the stream goes on: it is sent no news then either.
func (d *Dashboard) watchSession(ctx context.Context, r *http.Request, role jetpost.Role, end func()) {
	every := time.NewTicker(sessionCheckEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		asking, cancel := context.WithTimeout(ctx, readWithin)
		who, err := d.visitor(r.WithContext(asking))
		cancel()
		var login *loginError
		var forbidden *forbiddenError
		if errors.As(err, &login) || errors.As(err, &forbidden) || err == nil && !who.Role.Allows(role) {
			end()
			return
		}
	}
}
