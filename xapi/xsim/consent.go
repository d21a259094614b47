package xsim

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	// codeTTL is how long an authorization code can be exchanged.
	codeTTL = 30 * time.Second

	maxStateChars = 500

	// RFC 7636, 4.1, says how long a verifier is.
	minVerifierChars = 43
	maxVerifierChars = 128
)

// Consent is what the user does on the authorize page. Parameters of the page's
// own address go before it: user, deny=true, and grant for the scope.
type Consent struct {
	// User, by id or handle, answers at once. "" shows the page to a person, who
	// chooses an account or denies.
	User string `json:"user,omitempty"`

	// Deny answers at once that nobody consents.
	Deny bool `json:"deny,omitempty"`

	// Scope is what the user consents to of what is asked for; "" is all of it.
	Scope string `json:"scope,omitempty"`
}

// SetConsent says what visitors of the authorize page do from now on.
func (s *Server) SetConsent(consent Consent) error {
	w := s.lock()
	defer s.unlock()
	if consent.User != "" && w.user(consent.User) == nil {
		return fmt.Errorf("no such user: %q", consent.User)
	}
	if err := consent.validate(); err != nil {
		return err
	}
	w.consent = consent
	w.touch(&w.consent)
	return nil
}

func (c Consent) validate() error {
	if unknown := unknownScopes(c.Scope); len(unknown) > 0 {
		return fmt.Errorf("unknown scopes: %s", strings.Join(unknown, " "))
	}
	return nil
}

// ConsentInForce returns what visitors of the authorize page do.
func (s *Server) ConsentInForce() Consent {
	w := s.lock()
	defer s.unlock()
	return w.consent
}

// unknownScopes are those among the scopes that no app of X can ask for.
func unknownScopes(scope string) []string {
	known := slices.Concat(published().scopes, published().older["scopes"])
	return slices.DeleteFunc(strings.Fields(scope), func(s string) bool { return slices.Contains(known, s) })
}

type authCode struct {
	value       string
	grant       *grant // not in force until the code is exchanged
	clientID    string
	redirectURI string
	challenge   string
	expires     time.Time
	used        bool
}

// authorize is the page that asks for consent. What a client or its operator got
// wrong stays on the page, as at X: there is no address that could be trusted
// with it.
func (s *Server) authorize(c *call) answer {
	q := c.r.URL.Query()
	if mistake := s.checkAuthorize(c, q); mistake != "" {
		s.violate(c, ViolationMalformedRequest, c.endpoint+": "+mistake)
		return page(http.StatusBadRequest, authorizePage{Mistake: mistake})
	}
	if mistake := s.checkRegistered(q); mistake != "" {
		return page(http.StatusBadRequest, authorizePage{Mistake: mistake})
	}
	consent := s.w.consent
	if q.Get("user") != "" {
		consent = Consent{User: q.Get("user"), Scope: consent.Scope}
	}
	if consent.Deny || q.Get("deny") == "true" {
		return redirect(q, "error", "access_denied")
	}
	if consent.User == "" {
		return page(http.StatusOK, s.asking(q))
	}
	a := s.w.user(consent.User)
	if a == nil {
		return page(http.StatusBadRequest, authorizePage{Mistake: "There is no user " + consent.User + "."})
	}
	return redirect(q, "code", s.giveCode(c, a, q, cmp.Or(q.Get("grant"), consent.Scope)))
}

// giveCode consents in the user's name to what is asked for or, where granted is
// not empty, to that part of it.
func (s *Server) giveCode(c *call, a *account, q url.Values, granted string) string {
	g := s.newGrant(a, q.Get("scope"), 0)
	if granted != "" {
		asked, part := strings.Fields(g.scope), strings.Fields(granted)
		g.scope = strings.Join(slices.DeleteFunc(asked, func(s string) bool { return !slices.Contains(part, s) }), " ")
	}
	code := s.secret("code", g)
	given := &authCode{
		value: code, grant: g, clientID: q.Get("client_id"), redirectURI: q.Get("redirect_uri"), challenge: q.Get("code_challenge"), expires: c.now.Add(codeTTL),
	}
	s.w.codes[code] = given
	s.w.touch(given)
	c.account, c.effect = a, true
	return code
}

// checkAuthorize returns what breaks the protocol, "" for nothing.
func (s *Server) checkAuthorize(c *call, q url.Values) string {
	target, err := url.Parse(q.Get("redirect_uri"))
	state := q.Get("state")
	switch {
	case q.Get("response_type") != "code":
		return "response_type must be code."
	case q.Get("code_challenge_method") != "S256" && (q.Get("code_challenge_method") != "s256" || !s.lenient(c, "code_challenge_method in lower case")),
		!regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`).MatchString(q.Get("code_challenge")):
		return "There must be a code_challenge of method S256: 43 characters."
	case state == "" && !s.lenient(c, "a login without state"), len(state) > maxStateChars:
		return fmt.Sprintf("There must be a state of 1 to %d characters.", maxStateChars)
	case q.Get("client_id") == "":
		return "The client_id is missing."
	case err != nil || target.Host == "" || target.Fragment != "",
		target.Hostname() == "localhost" && (target.Port() == "" || target.Scheme != "http" || !s.lenient(c, "a redirect to localhost")):
		return "The redirect_uri must be a whole address without a fragment; on a machine of your own it is http://127.0.0.1, not localhost."
	case len(strings.Fields(q.Get("scope"))) == 0:
		return "The scope is missing."
	}
	if unknown := unknownScopes(q.Get("scope")); len(unknown) > 0 {
		return "There is no scope " + strings.Join(unknown, " ") + "."
	}
	return ""
}

// checkRegistered returns what differs from the app's registration, which is its
// operator's to correct, "" for nothing.
func (s *Server) checkRegistered(q url.Values) string {
	switch {
	case s.ClientID != "" && q.Get("client_id") != s.ClientID:
		return "There is no app with this client_id."
	case len(s.RedirectURIs) > 0 && !slices.Contains(s.RedirectURIs, q.Get("redirect_uri")):
		return "The redirect_uri is not registered with the app."
	default:
		return ""
	}
}

// redirect leads the browser back with one more value.
func redirect(q url.Values, name, value string) answer {
	target, err := url.Parse(q.Get("redirect_uri"))
	if err != nil {
		panic("xsim: redirect_uri was checked: " + err.Error())
	}
	back := target.Query()
	back.Set(name, value)
	if q.Has("state") {
		back.Set("state", q.Get("state"))
	}
	target.RawQuery = back.Encode()
	return answer{status: http.StatusFound, location: target.String()}
}

// exchangeCode trades a code for a pair. Whatever is wrong with the attempt, its
// code is spent.
func (s *Server) exchangeCode(c *call, form url.Values) answer {
	for _, name := range []string{"code", "code_verifier", "redirect_uri"} {
		if form.Get(name) == "" {
			return s.badGrant(c, "Missing required parameter ["+name+"].")
		}
	}
	if n := len(form.Get("code_verifier")); n < minVerifierChars || n > maxVerifierChars && !s.lenient(c, "a code_verifier of more than 128 characters") {
		return s.badGrant(c, fmt.Sprintf("The code_verifier must have %d to %d characters.", minVerifierChars, maxVerifierChars))
	}
	code := s.w.codes[form.Get("code")]
	good := code != nil && !code.used && c.now.Before(code.expires) && clientOf(c, form) == code.clientID
	if code != nil {
		code.used = true // by the first who presents it, and be it for nothing
		s.w.touch(code)
	}
	sum := sha256.Sum256([]byte(form.Get("code_verifier")))
	switch {
	case !good:
		return c.refuse(oauthRefusal(http.StatusBadRequest, "invalid_request", "Value passed for the authorization code was invalid."))
	case form.Get("redirect_uri") != code.redirectURI:
		return c.refuse(oauthRefusal(http.StatusBadRequest, "invalid_request", "Value passed for the redirect uri did not match the uri of the authorization code."))
	case base64.RawURLEncoding.EncodeToString(sum[:]) != code.challenge:
		return c.refuse(oauthRefusal(http.StatusBadRequest, "invalid_request", "Value passed for the code verifier did not match the code challenge."))
	}
	c.effect, c.account, c.grant = true, code.grant.account, code.grant
	s.enforce(code.grant)
	s.issue(code.grant, "", "")
	return pairAnswer(code.grant)
}

// clientOf is the client that a form came from; clientForm has checked it.
func clientOf(c *call, form url.Values) string {
	if id, _, ok := c.r.BasicAuth(); ok {
		if id, err := url.QueryUnescape(id); err == nil {
			return id
		}
	}
	return form.Get("client_id")
}

// authorizePage is what the page shows: a mistake, or the accounts that it asks.
type authorizePage struct {
	Mistake  string
	App      string
	Scopes   []string
	Accounts []Account
	Query    []parameter // to be sent along with the choice
}

type parameter struct{ Name, Value string }

func (s *Server) asking(q url.Values) authorizePage {
	p := authorizePage{App: q.Get("client_id"), Scopes: strings.Fields(q.Get("scope"))}
	for _, a := range s.w.order {
		p.Accounts = append(p.Accounts, a.Account)
	}
	for name, values := range q {
		for _, value := range values {
			p.Query = append(p.Query, parameter{name, value})
		}
	}
	slices.SortFunc(p.Query, func(a, b parameter) int { return cmp.Compare(a.Name, b.Name) })
	return p
}

func page(status int, p authorizePage) answer {
	var body bytes.Buffer
	if err := template.Must(template.New("authorize").Parse(authorizeHTML)).Execute(&body, p); err != nil {
		panic("xsim: write authorize page: " + err.Error())
	}
	return answer{status: status, contentType: htmlType, body: body.Bytes()}
}

// authorizeHTML needs nothing but itself, and fits a phone.
const authorizeHTML = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Simulated X</title>
<style>
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 26rem; padding: 1.5rem 1rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 1rem; }
button { display: block; width: 100%; min-height: 3rem; margin: 0 0 .75rem; font: inherit; border: 1px solid #536471; border-radius: 1.5rem; background: transparent; color: inherit; cursor: pointer; }
button.account { border-color: #0b66c2; background: #0b66c2; color: #fff; font-weight: 600; }
code { font-size: .9rem; }
ul { padding-left: 1.25rem; }
footer { margin-top: 1.5rem; font-size: .875rem; opacity: .8; }
</style>
</head>
<body>
<main>
{{- if .Mistake}}
<h1>Something went wrong</h1>
<p>You weren't able to give access to the app.</p>
<p>{{.Mistake}}</p>
{{- else}}
<h1>The app {{.App}} wants to act for an account</h1>
<p>It asks for:</p>
<ul>
{{- range .Scopes}}
<li><code>{{.}}</code></li>
{{- end}}
</ul>
<form action="/i/oauth2/authorize" method="get">
{{- range .Query}}
<input type="hidden" name="{{.Name}}" value="{{.Value}}">
{{- end}}
{{- range .Accounts}}
<button class="account" name="user" value="{{.ID}}">Authorize as @{{.Handle}}</button>
{{- else}}
<p>This X has no account yet.</p>
{{- end}}
<button name="deny" value="true">Deny</button>
</form>
{{- end}}
</main>
<footer>This is a simulated X. Another account is made with <code>curl -d '{"handle":"NAME"}'</code> and this server's address followed by <code>/_sim/accounts</code>.</footer>
</body>
</html>
`
