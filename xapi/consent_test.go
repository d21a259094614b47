package xapi

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

const (
	testCode     = "code-that-must-not-leak"
	testVerifier = "verifier-of-43-characters-that-must-not-leak"
	testRedirect = "http://127.0.0.1:8484/callback"
)

func TestAuthorizeURL(t *testing.T) {
	t.Parallel()

	sum := sha256.Sum256([]byte(testVerifier))
	want := url.Values{
		"response_type": {"code"}, "client_id": {"app"}, "redirect_uri": {testRedirect}, "state": {"a state"},
		"scope":          {"tweet.read tweet.write users.read offline.access media.write"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}
	for _, tc := range []struct{ name, base, authorize, want string }{
		{"a proxy, consent at X", "https://proxy.example", "https://x.com/", "https://x.com"},
		{"a simulator", "http://127.0.0.1:8090/", "", "http://127.0.0.1:8090"},
		{"X", "", "", "https://x.com"},
		{"X by name", "https://api.x.com/", "", "https://x.com"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o := &OAuth{ClientID: "app", ClientSecret: testSecret, BaseURL: tc.base, AuthorizeBaseURL: tc.authorize}
			page := o.AuthorizeURL("a state", testVerifier, testRedirect, ConsentScopes())
			got, err := url.Parse(page)
			if err != nil {
				t.Fatal(err)
			}
			if got.Query().Encode() != want.Encode() || got.Path != "/i/oauth2/authorize" || got.Scheme+"://"+got.Host != tc.want {
				t.Errorf("got %s", page)
			}
			if strings.Contains(page, testVerifier) || strings.Contains(page, testSecret) {
				t.Errorf("a secret shows in %s", page)
			}
		})
	}
}

func TestNewVerifier(t *testing.T) {
	t.Parallel()

	one, other := NewVerifier(), NewVerifier()
	if len(one) < 43 || len(one) > 128 || one == other {
		t.Errorf("got %q and %q", one, other)
	}
}

func TestExchange(t *testing.T) {
	t.Parallel()

	const whole = `{"token_type":"bearer","expires_in":7200,"access_token":"A","refresh_token":"R","scope":"tweet.read offline.access"}`
	for _, tc := range []struct {
		name, secret, body string
		want               TokenPair
		lifetime           time.Duration
	}{
		{"confidential", testSecret, whole, TokenPair{AccessToken: "A", RefreshToken: "R", Scope: "tweet.read offline.access"}, 2 * time.Hour},
		{"no offline.access", "", `{"access_token":"A","expires_in":60,"scope":"tweet.read"}`, TokenPair{AccessToken: "A", Scope: "tweet.read"}, time.Minute},
		{"no scope", "", `{"access_token":"A","refresh_token":"R"}`, TokenPair{AccessToken: "A", RefreshToken: "R"}, accessTokenLifetime},
		{"public", "", whole, TokenPair{AccessToken: "A", RefreshToken: "R", Scope: "tweet.read offline.access"}, 2 * time.Hour},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(w http.ResponseWriter, r *http.Request) {
				wantForm(t, r, tc.secret, "/2/oauth2/token", url.Values{
					"grant_type": {"authorization_code"}, "code": {testCode}, "code_verifier": {testVerifier}, "redirect_uri": {testRedirect},
				})
				_, _ = io.WriteString(w, tc.body)
			})
			start := time.Now()
			got, err := b.oauth(tc.secret).Exchange(t.Context(), testCode, testVerifier, testRedirect)
			if err != nil {
				t.Fatal(err)
			}
			if got.ExpiresAt.Before(start.Add(tc.lifetime)) || got.ExpiresAt.After(time.Now().Add(tc.lifetime)) {
				t.Errorf("lives %v, want %v", got.ExpiresAt.Sub(start), tc.lifetime)
			}
			got.ExpiresAt = time.Time{}
			if got != tc.want {
				t.Errorf("got other tokens or scope %q", got.Scope)
			}
		})
	}
}

// wantForm checks a request of the app itself: by HTTP Basic if it has a secret,
// otherwise with its id in the body.
func wantForm(t *testing.T, r *http.Request, secret, path string, want url.Values) {
	t.Helper()
	id, password, basic := r.BasicAuth()
	if secret == "" {
		want.Set("client_id", "app")
	} else if id != "app" || password != secret {
		t.Errorf("got Basic %q %q", id, password)
	}
	if err := r.ParseForm(); err != nil || r.PostForm.Encode() != want.Encode() || basic != (secret != "") {
		t.Errorf("got %v, basic %v, %v", r.PostForm, basic, err)
	}
	if r.Method != http.MethodPost || r.URL.Path != path || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		t.Errorf("got %s %s as %s", r.Method, r.URL.Path, r.Header.Get("Content-Type"))
	}
}

func oauthError(code, description string) string {
	return fmt.Sprintf(`{"error":%q,"error_description":%q}`, code, description)
}

func TestExchangeAnswers(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		name   string
		status int
		body   string
		want   string
	}{
		{"200 empty", 200, "", "Ambiguous"},
		{"200 garbage", 200, testCode + "{", "Ambiguous"},
		{"200 refresh token alone", 200, `{"refresh_token":"` + testRefresh + `"}`, "Ambiguous"},
		{"307", 307, "", "Ambiguous"},
		{"400 client", 400, oauthError("invalid_client", "Unknown client."), "AppAuth"},
		{"400 code", 400, oauthError("invalid_request", "Value passed for the authorization code was invalid."), "CodeRefused"},
		{"400 code echoed", 400, oauthError("invalid_grant", "unknown "+testCode+" with "+testVerifier+" of "+testSecret), "CodeRefused"},
		{"400 grant", 400, oauthError("invalid_grant", ""), "CodeRefused"},
		{"400 html", 400, "<html>", "Unavailable"},
		{"400 parameter", 400, oauthError("invalid_request", "Missing required parameter [code_verifier]."), "AppAuth"},
		{"400 redirect", 400, oauthError("invalid_request", "Value passed for the redirect uri did not match the uri of the authorization code."), "CodeRefused"},
		{"400 verifier", 400, oauthError("invalid_request", "Value passed for the code verifier did not match the code challenge."), "CodeRefused"},
		{"401", 401, oauthError("unauthorized_client", "Missing valid authorization header"), "AppAuth"},
		{"403 client", 403, `{"title":"Client Forbidden","reason":"client-not-enrolled","type":"x/client-forbidden"}`, "App client_not_enrolled"},
		{"404 empty", 404, "", "Unavailable"},
		{"408", 408, "", "Ambiguous"},
		{"429", 429, oauthError("rate_limited", ""), "RateLimit"},
		{"502", 502, "<html>", "Ambiguous"},
		{"503", 503, oauthError("temporarily_unavailable", ""), "Unavailable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, reply(tc.status, tc.body))
			pair, err := b.oauth(testSecret).Exchange(t.Context(), testCode, testVerifier, testRedirect)
			if got := describe(err); got != tc.want || pair != (TokenPair{}) {
				t.Fatalf("got %s, want %s: %v", got, tc.want, err)
			}
			wantHidden(t, err)
			if b.calls.Load() != 1 {
				t.Errorf("the code was sent %d times", b.calls.Load())
			}
		})
	}
}

// wantHidden checks that no secret of these tests shows in an error.
func wantHidden(t *testing.T, err error) {
	t.Helper()
	shown := string(wantAs[*APIError](t, err).Body)
	for e := err; e != nil; e = errors.Unwrap(e) {
		shown += fmt.Sprintf("%v %+v", e, e)
	}
	for _, secret := range []string{testCode, testVerifier, testRefresh, testSecret} {
		if strings.Contains(shown, secret) {
			t.Errorf("%q shows in %s", secret, shown)
		}
	}
}

func TestRevoke(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		name, secret string
		status       int
		body, want   string
	}{
		{"confidential", testSecret, 200, `{"revoked":true}`, "nil"},
		{"public", "", 200, `{"revoked":true}`, "nil"},
		{"307", "", 307, "", "Ambiguous"},
		{"400 client", "", 400, oauthError("invalid_client", "Unknown client."), "AppAuth"},
		{"400 parameter", "", 400, oauthError("invalid_request", "Missing required parameter [client_id]."), "AppAuth"},
		{"400 token", "", 400, oauthError("invalid_request", "Value passed for the token was invalid."), "nil"},
		{"401", testSecret, 401, oauthError("unauthorized_client", "no "+testRefresh+" of "+testSecret), "AppAuth"},
		{"429", "", 429, "", "RateLimit"},
		{"500", "", 500, testRefresh, "Ambiguous"},
		{"503", "", 503, oauthError("temporarily_unavailable", ""), "Unavailable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(w http.ResponseWriter, r *http.Request) {
				wantForm(t, r, tc.secret, "/2/oauth2/revoke", url.Values{"token": {testRefresh}})
				reply(tc.status, tc.body)(w, r)
			})
			err := b.oauth(tc.secret).Revoke(t.Context(), testRefresh)
			if got := describe(err); got != tc.want {
				t.Fatalf("got %s, want %s: %v", got, tc.want, err)
			}
			if err != nil {
				wantHidden(t, err)
			}
			if b.calls.Load() != 1 {
				t.Errorf("the token was sent %d times", b.calls.Load())
			}
		})
	}
}

// For the code of a consent and for a revocation, a lost answer and a request that
// could not be sent have the same error types as for a refresh.
func TestConsentWithoutAnswer(t *testing.T) {
	t.Parallel()

	lost := rawServer(t, func(conn net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
		}
	})
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = dead.Close()
	b := setup(t, reply(200, `{}`))

	for name, ask := range map[string]func(context.Context, *OAuth) error{
		"exchange": func(ctx context.Context, o *OAuth) error {
			_, err := o.Exchange(ctx, testCode, testVerifier, testRedirect)
			return err
		},
		"revoke": func(ctx context.Context, o *OAuth) error { return o.Revoke(ctx, testRefresh) },
	} {
		t.Run(name, func(t *testing.T) {
			wantAs[*AmbiguousError](t, ask(t.Context(), &OAuth{BaseURL: lost}))
			wantAs[*NotSentError](t, ask(t.Context(), &OAuth{BaseURL: "http://" + dead.Addr().String()}))
			wantAs[*NotSentError](t, ask(t.Context(), &OAuth{BaseURL: "no address"}))
			late := WithNotAfter(t.Context(), time.Now().Add(-time.Second))
			if err := ask(late, b.oauth("")); !errors.Is(err, ErrNotAfter) {
				t.Errorf("got %v, want that its time has passed", err)
			}
		})
	}
	_, err = b.oauth("").Exchange(t.Context(), "", testVerifier, testRedirect)
	wantAs[*NotSentError](t, err)
	_, err = b.oauth("").Exchange(t.Context(), testCode, "", testRedirect)
	wantAs[*NotSentError](t, err)
	wantAs[*NotSentError](t, b.oauth("").Revoke(t.Context(), ""))
	if b.calls.Load() != 0 {
		t.Errorf("%d calls were made", b.calls.Load())
	}
}
