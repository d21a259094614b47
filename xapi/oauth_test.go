package xapi

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

const (
	testRefresh = "refresh-token-that-must-not-leak"
	testSecret  = "client-secret-that-must-not-leak"
	testBasic   = "YXBwOmNsaWVudC1zZWNyZXQtdGhhdC1tdXN0LW5vdC1sZWFr" // of the app and its secret
)

func (b *testBundle) oauth(secret string) *OAuth {
	return &OAuth{ClientID: "app", ClientSecret: secret, BaseURL: b.server.URL, HTTPClient: b.hc}
}

func TestRefresh(t *testing.T) {
	t.Parallel()

	const whole = `{"token_type":"bearer","expires_in":7200,"access_token":"A","refresh_token":"R","scope":"tweet.read users.read"}`
	for _, tc := range []struct {
		name, secret, contentType, body string
		want                            TokenPair
		lifetime                        time.Duration
	}{
		{"confidential", testSecret, "application/json", whole, TokenPair{AccessToken: "A", RefreshToken: "R", Scope: "tweet.read users.read"}, 2 * time.Hour},
		{"kept refresh token", "", "application/json", `{"access_token":"A","expires_in":60,"token_type":"bearer"}`, TokenPair{AccessToken: "A", RefreshToken: testRefresh}, time.Minute},
		{"no lifetime", "", "application/json", `{"access_token":"A","refresh_token":"R"}`, TokenPair{AccessToken: "A", RefreshToken: "R"}, accessTokenLifetime},
		{"public, odd label", "", "text/plain", whole, TokenPair{AccessToken: "A", RefreshToken: "R", Scope: "tweet.read users.read"}, 2 * time.Hour},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(w http.ResponseWriter, r *http.Request) {
				want := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {testRefresh}}
				id, secret, basic := r.BasicAuth()
				if tc.secret == "" {
					want.Set("client_id", "app")
				} else if id != "app" || secret != testSecret {
					t.Errorf("got Basic %q %q", id, secret)
				}
				if err := r.ParseForm(); err != nil || r.PostForm.Encode() != want.Encode() || basic != (tc.secret != "") {
					t.Errorf("got %v, basic %v, %v", r.PostForm, basic, err)
				}
				w.Header().Set("Content-Type", tc.contentType)
				_, _ = io.WriteString(w, tc.body)
			})
			start := time.Now()
			got, err := b.oauth(tc.secret).Refresh(t.Context(), testRefresh)
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

func TestRefreshAnswers(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		name   string
		status int
		body   string
		want   string
	}{
		{"200 empty", 200, "", "Ambiguous"},
		{"200 error", 200, oauthError("invalid_request", "x"), "Ambiguous"},
		{"200 garbage", 200, testRefresh + "{", "Ambiguous"},
		{"200 half a pair", 200, `{"refresh_token":"` + testRefresh + `"}`, "Ambiguous"},
		{"307", 307, "", "Ambiguous"},
		{"400 client", 400, oauthError("invalid_client", "Unknown client."), "AppAuth"},
		{"400 grant", 400, oauthError("invalid_grant", ""), "GrantRefused"},
		{"400 html", 400, "<html>", "Unavailable"},
		{"400 parameter", 400, oauthError("invalid_request", "Missing required parameter [client_id]."), "AppAuth"},
		{"400 token", 400, oauthError("invalid_request", "Value passed for the token was invalid."), "GrantRefused"},
		{"400 token echoed", 400, oauthError("invalid_grant", "unknown "+testRefresh+" of "+testSecret), "GrantRefused"},
		{"400 header echoed", 400, oauthError("invalid_grant", "unknown, with "+testBasic), "GrantRefused"},
		{"401", 401, oauthError("unauthorized_client", "Missing valid authorization header"), "AppAuth"},
		{"401 client", 401, oauthError("invalid_client", ""), "AppAuth"},
		{"401 empty", 401, "", "AppAuth"},
		{"403 client", 403, `{"title":"Client Forbidden","reason":"client-not-enrolled","type":"x/client-forbidden"}`, "App client_not_enrolled"},
		{"404 empty", 404, "", "Unavailable"},
		{"408", 408, "", "Ambiguous"},
		{"429", 429, oauthError("rate_limited", ""), "RateLimit"},
		{"502", 502, "<html>", "Ambiguous"},
		{"503 gateway", 503, "", "Ambiguous"},
		{"503", 503, oauthError("temporarily_unavailable", ""), "Unavailable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, reply(tc.status, tc.body))
			pair, err := b.oauth(testSecret).Refresh(t.Context(), testRefresh)
			if got := describe(err); got != tc.want || pair != (TokenPair{}) {
				t.Fatalf("got %s, want %s: %v", got, tc.want, err)
			}
			apiErr := wantAs[*APIError](t, err)
			for e := err; e != nil; e = errors.Unwrap(e) {
				shown := fmt.Sprintf("%v %+v %s", e, e, apiErr.Body)
				if strings.Contains(shown, testRefresh) || strings.Contains(shown, testSecret) || strings.Contains(shown, testBasic) {
					t.Errorf("a secret shows in %s", shown)
				}
			}
			if b.calls.Load() != 1 {
				t.Errorf("the token was sent %d times", b.calls.Load())
			}
			if got, want := IsOutage(err), tc.status >= 500; got != want {
				t.Errorf("outage %v, want %v", got, want)
			}
		})
	}
}

func TestRefreshWithoutAnswer(t *testing.T) {
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

	_, err = (&OAuth{BaseURL: lost}).Refresh(t.Context(), testRefresh)
	wantAs[*AmbiguousError](t, err)
	_, err = (&OAuth{BaseURL: "http://" + dead.Addr().String()}).Refresh(t.Context(), testRefresh)
	wantAs[*NotSentError](t, err)
	_, err = b.oauth("").Refresh(t.Context(), "")
	wantAs[*NotSentError](t, err)
	_, err = b.oauth("").Refresh(WithNotAfter(t.Context(), time.Now().Add(-time.Second)), testRefresh)
	wantAs[*NotSentError](t, err)
	frozen := onConnection(WithNotAfter(t.Context(), time.Now().Add(time.Hour)), freeze)
	_, err = b.oauth("").Refresh(frozen, testRefresh)
	wantAs[*NotSentError](t, err)
	if !errors.Is(err, ErrNotAfter) || b.calls.Load() != 0 {
		t.Errorf("got %v after %d calls", err, b.calls.Load())
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	t.Parallel()

	pair := TokenPair{AccessToken: testToken, RefreshToken: testRefresh, Scope: "tweet.read"}
	app := OAuth{ClientID: "app", ClientSecret: testSecret}
	var out strings.Builder
	for _, v := range []any{pair, &pair, struct{ P TokenPair }{pair}, app, &app} {
		_, _ = fmt.Fprintf(&out, "%v %+v %#v %s %q %x\n", v, v, v, v, v, v)
		slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v)
	}
	encoded, err := json.Marshal(pair)
	if err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "pair", pair, "app", app)
	out.Write(encoded)
	for _, secret := range []string{testToken, testRefresh, testSecret, fmt.Sprintf("%x", testSecret)} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%q shows in:\n%s", secret, out.String())
		}
	}
	if !strings.Contains(out.String(), "tweet.read") {
		t.Error("the scope is no secret")
	}
}
