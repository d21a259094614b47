package xsim_test

import (
	"crypto/sha256"
	"encoding/base64"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost/xapi/xsim"
)

const (
	verifier    = "a-verifier-of-the-least-length-of-43-letters"
	redirectURI = "http://127.0.0.1:1/callback?a=b"
	allScopes   = "tweet.read tweet.write users.read offline.access media.write"
	badCode     = `{"error":"invalid_request","error_description":"Value passed for the authorization code was invalid."}`
)

// asking are the parameters of a page that asks for everything.
func asking() url.Values {
	sum := sha256.Sum256([]byte(verifier))
	return url.Values{
		"response_type": {"code"}, "client_id": {"app"}, "redirect_uri": {redirectURI}, "state": {"<s> & more"}, "scope": {allScopes},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}
}

func (b *testBundle) authorize(q url.Values) result {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "https://x.com/i/oauth2/authorize?"+q.Encode(), nil)
	if err != nil {
		b.Fatal(err)
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	r, err := send(&http.Client{Transport: b.x, CheckRedirect: stay}, req)
	if err != nil {
		b.Fatal(err)
	}
	return r
}

// back wants a redirect to where it was asked for, with the state, and returns
// what else it carries.
func (b *testBundle) back(r result) url.Values {
	b.Helper()
	target, err := url.Parse(r.header.Get("Location"))
	if err != nil || r.status != 302 || !strings.HasPrefix(target.String(), "http://127.0.0.1:1/callback?") {
		b.Fatalf("got %d to %q, %v", r.status, target, err)
	}
	q := target.Query()
	if q.Get("state") != "<s> & more" || q.Get("a") != "b" {
		b.Errorf("came back with %v", q)
	}
	return q
}

// consent has ann consent and returns what her code is exchanged with.
func (b *testBundle) consent() url.Values {
	b.Helper()
	q := asking()
	q.Set("user", "ann")
	code := b.back(b.authorize(q)).Get("code")
	if code == "" {
		b.Fatal("no code came back")
	}
	return url.Values{
		"grant_type": {"authorization_code"}, "client_id": {"app"}, "code": {code}, "redirect_uri": {redirectURI}, "code_verifier": {verifier},
	}
}

func (b *testBundle) exchange(form url.Values) result {
	b.Helper()
	return b.do(xsim.Grant{}, "POST", "/2/oauth2/token", "application/x-www-form-urlencoded", form.Encode())
}

func TestAuthorizeRefuses(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"client_id": "", "code_challenge": "short", "code_challenge_method": "plain", "redirect_uri": "http://localhost:1/callback",
		"response_type": "token", "scope": "tweet.read tweet.rite", "state": strings.Repeat("s", 501),
	} {
		for _, value := range []string{value, ""} {
			t.Run(name+"_"+value[:min(len(value), 9)], func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				b.x.Strict = true
				q := asking()
				q.Set("user", "ann")
				q.Set(name, value)
				r := b.authorize(q)
				if r.status != 400 || !strings.Contains(r.body, "Something went wrong") || r.header.Get("Location") != "" {
					t.Errorf("got %d to %q: %s", r.status, r.header.Get("Location"), r.body)
				}
				b.wantViolations("malformed_request")
			})
		}
	}
	t.Run("unregistered", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.x.ClientID, b.x.RedirectURIs = "app", []string{"http://127.0.0.1:1/callback"}
		q := asking()
		q.Set("user", "ann")
		if r := b.authorize(q); r.status != 400 || !strings.Contains(r.body, "not registered") {
			t.Errorf("another redirect_uri: %d %s", r.status, r.body)
		}
		b.x.RedirectURIs = append(b.x.RedirectURIs, redirectURI)
		b.back(b.authorize(q))
		q.Set("client_id", "other")
		if r := b.authorize(q); r.status != 400 || !strings.Contains(r.body, "no app") {
			t.Errorf("another client: %d %s", r.status, r.body)
		}
		q.Set("client_id", "app")
		q.Set("user", "nobody")
		if r := b.authorize(q); r.status != 400 || !strings.Contains(r.body, "no user nobody") {
			t.Errorf("nobody: %d %s", r.status, r.body)
		}
		b.wantViolations()
	})
}

// The page is a form that any browser can send.
func TestAuthorizePage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(xsim.NewAccount{Handle: "bob"})
	r := b.authorize(asking())
	if r.status != 200 || !strings.HasPrefix(r.header.Get("Content-Type"), "text/html") || !strings.Contains(r.body, `name="viewport"`) {
		t.Fatalf("got %d %s: %s", r.status, r.header.Get("Content-Type"), r.body)
	}
	sent := url.Values{}
	for _, input := range regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`).FindAllStringSubmatch(r.body, -1) {
		sent.Add(html.UnescapeString(input[1]), html.UnescapeString(input[2]))
	}
	if sent.Encode() != asking().Encode() {
		t.Errorf("the form sends %v, want %v", sent, asking())
	}
	var choices []string
	for _, button := range regexp.MustCompile(`<button[^>]* name="([^"]*)" value="([^"]*)">([^<]*)<`).FindAllStringSubmatch(r.body, -1) {
		choices = append(choices, button[3])
		sent := url.Values{button[1]: {button[2]}}
		for name, values := range asking() {
			sent[name] = values
		}
		back := b.back(b.authorize(sent))
		if denied := button[3] == "Deny"; denied != (back.Get("error") == "access_denied") || denied == back.Has("code") {
			t.Errorf("%s comes back with %v", button[3], back)
		}
	}
	if want := []string{"Authorize as @ann", "Authorize as @bob", "Deny"}; !slices.Equal(choices, want) {
		t.Errorf("the page offers %q, want %q", choices, want)
	}
	b.wantViolations()
}

func TestConsent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(xsim.NewAccount{Handle: "bob"})
	b.want(b.control("GET", "consent", ""), 200, `{}`)
	b.want(b.control("PUT", "consent", `{"user":"ANN","scope":"users.read media.write dm.read"}`), 200, "")
	b.want(b.control("GET", "consent", ""), 200, `{"user":"ANN","scope":"users.read media.write dm.read"}`)

	granted := func(q url.Values) (user, scope string) {
		form := b.consent()
		form.Set("code", b.back(b.authorize(q)).Get("code"))
		r := b.exchange(form)
		b.want(r, 200, "")
		me := b.do(xsim.Grant{AccessToken: field(t, r.body, "access_token")}, "GET", "/2/users/me", "", "")
		for _, a := range b.x.Accounts() {
			if strings.Contains(me.body, a.ID) {
				user = a.Handle
			}
		}
		return user, field(t, r.body, "scope")
	}
	if _, scope := granted(asking()); scope != "users.read media.write" {
		t.Errorf("granted %q, want what is asked for and consented to", scope)
	}
	q := asking()
	q.Set("user", "bob")
	q.Set("grant", allScopes)
	if user, scope := granted(q); user != "bob" || scope != allScopes {
		t.Errorf("granted %q by %s, want what the address says", scope, user)
	}
	q.Set("deny", "true")
	if back := b.back(b.authorize(q)); back.Get("error") != "access_denied" || back.Has("code") {
		t.Errorf("denied by the address: %v", back)
	}

	b.want(b.control("PUT", "consent", `{"deny":true}`), 200, "")
	if back := b.back(b.authorize(asking())); back.Get("error") != "access_denied" {
		t.Errorf("denied: %v", back)
	}
	for _, body := range []string{`{"user":"nobody"}`, `{"scope":"tweet.rite"}`, `{"who":"ann"}`} {
		b.want(b.control("PUT", "consent", body), 400, "")
	}
	b.want(b.control("GET", "consent", ""), 200, `{"deny":true}`)
	b.x.Reset()
	b.want(b.control("GET", "consent", ""), 200, `{}`)
}

func TestCodeOfAnotherClient(t *testing.T) {
	t.Parallel()
	b := setup(t)
	form := b.consent()
	form.Set("client_id", "other")
	b.want(b.exchange(form), 400, badCode)
}

func TestCodeWithAnotherRedirectURI(t *testing.T) {
	t.Parallel()
	b := setup(t)
	form := b.consent()
	form.Set("redirect_uri", "http://127.0.0.1:1/callback")
	b.want(b.exchange(form), 400,
		`{"error":"invalid_request","error_description":"Value passed for the redirect uri did not match the uri of the authorization code."}`)
}

func TestCodeWithAnotherVerifier(t *testing.T) {
	t.Parallel()
	b := setup(t)
	form := b.consent()
	form.Set("code_verifier", strings.ToUpper(verifier))
	b.want(b.exchange(form), 400,
		`{"error":"invalid_request","error_description":"Value passed for the code verifier did not match the code challenge."}`)
	form.Set("code_verifier", verifier)
	b.want(b.exchange(form), 400, badCode) // no second guess
	b.wantViolations()
}

func TestCodeBesideFaults(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.faults(xsim.Fault{Kind: xsim.FaultStatus, Status: 401, Account: "ann", Endpoint: xsim.EndpointToken, Times: 1},
		xsim.Fault{Kind: xsim.FaultStatus, Status: 503, Account: "ann", Endpoint: xsim.EndpointRevoke, Times: 1})
	form := b.consent()
	b.want(b.exchange(form), 401, "")
	b.want(b.exchange(form), 200, "")
	token, _ := b.x.CurrentToken("ann")
	revoke := url.Values{"token": {token.AccessToken}}.Encode()
	b.want(b.do(xsim.Grant{}, "POST", "/2/oauth2/revoke", "application/x-www-form-urlencoded", revoke), 503, "")
	b.want(b.do(xsim.Grant{}, "POST", "/2/oauth2/revoke", "application/x-www-form-urlencoded", revoke), 200, "")
	for _, call := range b.x.Calls() {
		if call.Account != b.grant.ID {
			t.Errorf("the call log do not know whose call this was: %+v", call)
		}
	}
}

func TestCodeIsLate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	form := b.consent()
	b.clock.pass(30 * time.Second)
	b.want(b.exchange(form), 400, badCode)
}

func TestCodeWithMissingParameters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	form := b.consent()
	for _, name := range []string{"code", "code_verifier", "redirect_uri"} {
		part := url.Values{}
		for n, v := range form {
			if n != name {
				part[n] = v
			}
		}
		b.want(b.exchange(part), 400, `{"error":"invalid_request","error_description":"Missing required parameter [`+name+`]."}`)
	}
	form.Set("code_verifier", "short")
	b.want(b.exchange(form), 400, "")
	b.wantViolations("malformed_request", "malformed_request", "malformed_request", "malformed_request")
}

func TestCodeWorksOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	form := b.consent()
	b.want(b.do(b.grant, "GET", "/2/users/me", "", ""), 200, "") // an unused code ends nothing
	r := b.exchange(form)
	b.want(r, 200, "")
	if got := field(t, r.body, "scope"); got != allScopes {
		t.Errorf("granted %q, want %q", got, allScopes)
	}
	b.want(b.do(xsim.Grant{AccessToken: field(t, r.body, "access_token")}, "GET", "/2/users/me", "", ""), 200, "")
	b.want(b.do(b.grant, "GET", "/2/users/me", "", ""), 401, unauthorized) // the earlier consent has ended
	b.want(b.exchange(form), 400, badCode)
	b.wantViolations()
}
