package web

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/jetpost/jetpost"
)

type loginPage struct {
	page
	Name, To, Wrong string
}

// showLogin asks who it is.
func (d *Dashboard) showLogin(w http.ResponseWriter, r *http.Request) {
	if !d.cfg.Login.Required {
		http.Redirect(w, r, d.cfg.Base+"/", http.StatusSeeOther)
		return
	}
	d.render(w, http.StatusOK, shown{name: "login.html", data: loginPage{page: d.page(r, "", "Log in"), To: below(r.URL.Query().Get("to"))}})
}

// below is a page of the dashboard to which a login may lead, or "".
func below(to string) string {
	if !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || len(to) > maxAddress || !plain(to) {
		return ""
	}
	return to
}

// login begins a session. Its secret is new each time, so that nobody can make a browser log
// in with one that is known.
func (d *Dashboard) login(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil || !d.cfg.Login.Required {
		d.fail(w, r, notThere())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), changeWithin)
	defer cancel()
	p := loginPage{page: d.page(r, "", "Log in"), Name: strings.TrimSpace(r.PostFormValue("name")), To: below(r.PostFormValue("to"))}
	secret := newToken().Reveal()
	_, err := d.cfg.Operations.SessionBegin(ctx, jetpost.SessionBegin{
		Name: p.Name, Password: r.PostFormValue(passwordField), Address: d.cfg.Login.address(r), Digest: sessionDigest(secret),
	})
	switch codeOf(err) {
	case jetpost.ErrUnauthenticated, jetpost.ErrInvalid:
		p.Wrong = "This name and this password belong to nobody."
		d.render(w, http.StatusUnauthorized, shown{name: "login.html", data: p})
	case jetpost.ErrTooMany:
		p.Wrong = "Wrong passwords were tried too often. Try again in a quarter of an hour."
		d.render(w, http.StatusTooManyRequests, shown{name: "login.html", data: p})
	default:
		if err != nil {
			d.fail(w, r, err)
			return
		}
		if err := d.endSession(r.WithContext(ctx)); err != nil { // the one before in this browser
			d.cfg.Log.Warn("dashboard.session_not_ended", "error", err)
		}
		d.setCookie(w, secret)
		to := p.To
		if to == "" {
			to = "/"
		}
		http.Redirect(w, r, d.cfg.Base+to, http.StatusSeeOther)
	}
}

// logout ends the browser's session everywhere.
func (d *Dashboard) logout(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), changeWithin)
	defer cancel()
	if err := d.endSession(r.WithContext(ctx)); err != nil {
		d.fail(w, r, err)
		return
	}
	d.setCookie(w, "")
	http.Redirect(w, r, d.cfg.Base+"/login", http.StatusSeeOther)
}

// endSession ends the session of the browser's cookie, if it has one.
func (d *Dashboard) endSession(r *http.Request) error {
	cookie, err := r.Cookie(d.cookieName())
	if err != nil {
		return nil //nolint:nilerr // there is none
	}
	ctx := r.Context()
	if who, err := d.visitor(r); err == nil {
		ctx = jetpost.WithActor(ctx, who.actor)
	}
	_, err = d.cfg.Operations.SessionEnd(ctx, jetpost.SessionEnd{Digest: sessionDigest(cookie.Value)})
	return err
}

type usersPage struct {
	page
	Users []userRow
	Next  string
	Later bool
	Roles []jetpost.Role
	// NoLogin tells that nobody is asked to log in here.
	NoLogin bool
}

// userRow is a user in a list.
type userRow struct {
	jetpost.User
	page
	Own   bool           // it is the visitor
	Roles []jetpost.Role // the others
}

// users lists the users of the dashboard.
func (d *Dashboard) users(r *http.Request) (shown, error) {
	cursor := r.URL.Query().Get("cursor")
	list, err := d.cfg.Operations.UserList(r.Context(), jetpost.UserList{Limit: pageSize, Cursor: cursor})
	p := usersPage{page: d.page(r, "users", "Users"), Next: list.Next, Later: cursor != "", Roles: jetpost.Roles(), NoLogin: !d.cfg.Login.Required}
	p.Said = said(r)
	for _, u := range list.Users {
		others := slices.DeleteFunc(jetpost.Roles(), func(role jetpost.Role) bool { return role == u.Role })
		p.Users = append(p.Users, userRow{u, p.page, u.Name == p.Who, others})
	}
	return shown{name: "users.html", data: p}, err
}

// addUser makes a user.
func (d *Dashboard) addUser(r *http.Request, operation string) (shown, error) {
	_, err := d.cfg.Operations.UserAdd(r.Context(), jetpost.UserAdd{
		OperationID: operation, Name: strings.TrimSpace(r.PostFormValue("name")), Role: jetpost.Role(r.PostFormValue("role")), Password: r.PostFormValue(passwordField),
	})
	return shown{to: "/users?done=add"}, err
}

// changeUser carries out a button beside a user.
func (d *Dashboard) changeUser(r *http.Request, operation string) (shown, error) {
	name, action := r.PathValue("user"), r.PathValue("action")
	var err error
	switch o := d.cfg.Operations; action {
	case "role":
		_, err = o.UserSet(r.Context(), jetpost.UserSet{OperationID: operation, Name: name, Role: jetpost.Role(r.PostFormValue("role"))})
	case "password":
		_, err = o.UserSet(r.Context(), jetpost.UserSet{OperationID: operation, Name: name, Password: r.PostFormValue(passwordField)})
	case "remove":
		_, err = o.UserRemove(r.Context(), jetpost.UserRemove{OperationID: operation, Name: name})
	default:
		err = notThere()
	}
	return shown{to: "/users?done=" + action}, err
}

type auditPage struct {
	page
	Entries                   []auditRow
	Actor, Operation, Account string
	Next                      string // the query of the page after this one
	Later                     bool
}

// auditRow is a change in the list.
type auditRow struct {
	jetpost.AuditEntry
	When *moment
}

// audit lists who changed what.
func (d *Dashboard) audit(r *http.Request) (shown, error) {
	query := r.URL.Query()
	p := auditPage{page: d.page(r, "audit", "Audit log"), Later: query.Get("cursor") != ""}
	p.Actor, p.Operation, p.Account = strings.TrimSpace(query.Get("actor")), strings.TrimSpace(query.Get("operation")), strings.TrimSpace(query.Get("account"))
	list, err := d.cfg.Operations.AuditList(r.Context(), jetpost.AuditList{
		Actor: p.Actor, Operation: p.Operation, Account: p.Account, Limit: pageSize, Cursor: query.Get("cursor"),
	})
	for _, entry := range list.Entries {
		p.Entries = append(p.Entries, auditRow{entry, p.At(entry.At)})
	}
	if list.Next != "" {
		next := url.Values{"cursor": {list.Next}}
		for name, value := range map[string]string{"actor": p.Actor, "operation": p.Operation, "account": p.Account} {
			if value != "" {
				next.Set(name, value)
			}
		}
		p.Next = "?" + next.Encode()
	}
	return shown{name: "audit.html", data: p}, err
}
