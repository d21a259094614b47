package consumers

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// errorRow is a row of a table in docs/x-errors.md.
type errorRow map[string]string

// errorTable reads the rows below a heading, by the names in its head.
func errorTable(t *testing.T, heading string) (rows []errorRow) {
	t.Helper()
	text, err := os.ReadFile("../docs/x-errors.md")
	check(t, err)
	_, section, found := strings.Cut(string(text), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("there is no section %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var names []string
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		switch {
		case !strings.HasPrefix(line, "|"), strings.HasPrefix(line, "|---"):
		case names == nil:
			for _, cell := range cells {
				names = append(names, strings.TrimSpace(cell))
			}
		default:
			row := errorRow{}
			for i, cell := range cells {
				row[names[i]] = strings.Trim(strings.TrimSpace(cell), "`")
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// answers makes an HTTP answer; header is names and values in turn.
func answers(status int, body string, header ...string) transport {
	return func(r *http.Request) (*http.Response, error) {
		h := http.Header{"Content-Type": {"application/json"}}
		for i := 0; i < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}
}

// breaks is a connection that ends in an error once the request was written.
func breaks(err error) transport {
	return func(r *http.Request) (*http.Response, error) { return nil, err }
}

const (
	freshPair = `{"token_type":"bearer","expires_in":7200,"access_token":"fresh-access","refresh_token":"fresh-refresh","scope":"tweet.read"}`
	page      = `<html><body><h1>Bad Gateway</h1></body></html>`
)

// tokenAnswers are the cases of the table, by name.
func tokenAnswers(now time.Time) map[string]http.RoundTripper {
	oauth := func(code, words string) string {
		return `{"error":"` + code + `","error_description":"` + words + `"}`
	}
	reset := strconv.FormatInt(now.Add(7*time.Minute).Unix(), 10)
	return map[string]http.RoundTripper{
		"pair":                    answers(200, freshPair),
		"pair-as-text":            answers(200, freshPair, "Content-Type", "text/plain"),
		"pair-no-refresh-token":   answers(200, `{"token_type":"bearer","expires_in":7200,"access_token":"fresh-access","scope":"tweet.read"}`),
		"pair-no-expiry":          answers(200, `{"token_type":"bearer","access_token":"fresh-access","refresh_token":"fresh-refresh"}`),
		"empty":                   answers(200, ""),
		"garbage":                 answers(200, `{"token_type":"bearer","access_tok`),
		"html":                    answers(200, page, "Content-Type", "text/html"),
		"no-access-token":         answers(200, `{"token_type":"bearer","expires_in":7200,"refresh_token":"fresh-refresh"}`),
		"created":                 answers(201, freshPair),
		"no-content":              answers(204, ""),
		"redirect":                answers(302, "", "Location", "https://elsewhere.test/"),
		"token-invalid":           answers(400, oauth("invalid_request", "Value passed for the token was invalid.")),
		"invalid-grant":           answers(400, oauth("invalid_grant", "The refresh token is invalid.")),
		"client-id-missing":       answers(400, oauth("invalid_request", "Missing required parameter [client_id].")),
		"grant-unsupported":       answers(400, oauth("unsupported_grant_type", "The grant type is not supported.")),
		"bad-request-empty":       answers(400, ""),
		"basic-missing":           answers(401, oauth("unauthorized_client", "Missing valid authorization header")),
		"unauthorized":            answers(401, `{"title":"Unauthorized","type":"about:blank","status":401,"detail":"Unauthorized"}`),
		"credits":                 answers(402, `{"title":"CreditsDepleted","detail":"Your enrolled account [1] does not have any credits to fulfill this request.","type":"https://api.twitter.com/2/problems/credits"}`),
		"credits-2026":            answers(402, `{"detail":"credits depleted","status":402,"title":"Payment Required","type":"https://api.x.com/2/problems/credits-depleted"}`),
		"spend-cap":               answers(403, `{"title":"SpendCapReached","detail":"Your enrolled account [1] has reached its billing cycle spend cap.","reset_date":"2099-01-01","type":"https://api.twitter.com/2/problems/credits"}`),
		"not-enrolled":            answers(403, `{"title":"Client Forbidden","detail":"Enrol the app.","reason":"client-not-enrolled","type":"https://api.twitter.com/2/problems/client-forbidden"}`),
		"forbidden-empty":         answers(403, ""),
		"not-found-empty":         answers(404, ""),
		"request-timeout":         answers(408, ""),
		"too-large-empty":         answers(413, ""),
		"rate-limited":            answers(429, oauth("rate_limited", "Too many requests."), "X-Rate-Limit-Limit", "50", "X-Rate-Limit-Remaining", "0", "X-Rate-Limit-Reset", reset),
		"rate-limited-problem":    answers(429, `{"title":"Too Many Requests","detail":"Too Many Requests","type":"about:blank","status":429}`),
		"usage-capped":            answers(429, `{"title":"UsageCapExceeded","detail":"Usage cap exceeded: Monthly product cap","type":"https://api.twitter.com/2/problems/usage-capped","period":"Monthly","scope":"Product"}`),
		"internal":                answers(500, `{"title":"Internal Server Error","detail":"Something is broken.","type":"about:blank","status":500}`),
		"bad-gateway":             answers(502, page, "Content-Type", "text/html"),
		"temporarily-unavailable": answers(503, oauth("temporarily_unavailable", "Try again later.")),
		"unavailable":             answers(503, `{"title":"Service Unavailable","detail":"Service Unavailable","type":"about:blank","status":503}`),
		"gateway-timeout":         answers(504, page, "Content-Type", "text/html"),
		"timeout": transport(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}),
		"reset": breaks(&net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}),
		"cut-body": transport(func(r *http.Request) (*http.Response, error) {
			answer, err := answers(200, "")(r)
			answer.Body = io.NopCloser(io.MultiReader(strings.NewReader(freshPair[:60]), errorReader{io.ErrUnexpectedEOF}))
			return answer, err
		}),
		// These two are decided before a byte leaves: see callsOut.
		"dial": xapi.NewTransport(),
		"late": xapi.NewTransport(),
	}
}

// errorReader is the end of a connection in mid-answer.
type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

// TestTokenEndpointAnswers runs every row of the table.
func TestTokenEndpointAnswers(t *testing.T) {
	t.Parallel()
	cases := tokenAnswers(time.Now())
	rows := errorTable(t, "Token endpoint")
	seen := map[string]bool{}
	for _, row := range rows {
		name := row["case"]
		if seen[name] = true; cases[name] == nil {
			t.Errorf("row %q has no case", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "dial" || name == "late" { // real sockets, which stop a bubble's clock
				tokenAnswer(t, row)
				return
			}
			synctest.Test(t, func(t *testing.T) { tokenAnswer(t, row) })
		})
	}
	for name := range cases {
		if !seen[name] {
			t.Errorf("case %q has no row", name)
		}
	}
}

// tokenAnswer has X give the answer of a row, and compares what is left with
// what the row says.
func tokenAnswer(t *testing.T, row errorRow) {
	t.Helper()
	b := offline(t)
	b.due(t, "acme", time.Hour)
	before := b.token(t, "acme")
	r := b.bubble()
	stops := &board{}
	r.Gate = newGate(stops)
	asked := time.Now()
	b.hc.Transport = tokenAnswers(asked)[row["case"]]
	x := r.X.(*xapi.OAuth)
	switch row["case"] {
	case "dial":
		x.BaseURL = "http://127.0.0.1:1"
	case "late":
		heard := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("X has heard of it") }))
		defer heard.Close()
		x.BaseURL = heard.URL
		r.X = lateExchanger{x}
	}
	token, err := r.EnsureFresh(t.Context(), "acme", before.Version)
	left := b.token(t, "acme")

	outcome := "nothing"
	switch {
	case err == nil && token.Version == before.Version+1:
		outcome = "stored"
	case left.RequiresReauth:
		outcome = "refused"
	case !left.StartedAt.IsZero():
		outcome = "unknown"
	}
	equal(t, "outcome", outcome, row["outcome"])
	stop := stops.stop.Reason.Code
	if stop != "" {
		equal(t, "scope of the stop", stops.stop.Scope, publishers.ScopeRefresh)
		equal(t, "stop holds", stopped(r.Gate, ScopeRefresh), true)
	}
	equal(t, "stop", string(stop), row["stop"])
	equal(t, "next try", nextTry(left, before, r, asked, stop), row["next try"])
	wantLeft(t, left, before, row["outcome"], row["case"])
}

// lateExchanger is a worker that is frozen between its claim and the exchange.
type lateExchanger struct{ *xapi.OAuth }

func (x lateExchanger) Refresh(ctx context.Context, token string) (xapi.TokenPair, error) {
	return x.OAuth.Refresh(xapi.WithNotAfter(ctx, time.Now().Add(-time.Second)), token)
}

// nextTry names when the token will be tried again.
func nextTry(left, before store.Token, r *Refresher, asked time.Time, stop jetpost.Code) string {
	wait := left.NextAttemptAt.Sub(asked)
	backoff := r.Timing.firstBackoff()
	switch {
	case left.NextAttemptAt.IsZero():
		return ""
	case left.NextAttemptAt.Equal(before.ExpiresAt.Add(-r.Timing.nearEnd())):
		return "near end"
	case stop != "":
		return "after the stop"
	case wait >= backoff && wait <= 2*backoff:
		return "backoff"
	case wait >= 6*time.Minute && wait <= 8*time.Minute:
		return "reset"
	case wait >= 15*time.Minute && wait <= 17*time.Minute:
		return "window"
	}
	return wait.String()
}

// wantLeft checks the pair that is stored, and what is remembered.
func wantLeft(t *testing.T, left, before store.Token, outcome, name string) {
	t.Helper()
	if outcome != "stored" {
		equal(t, "pair is as before", left.Refresh == before.Refresh && left.Access == before.Access, true)
		if left.RefreshError == "" || left.RefreshFailedAt.IsZero() || strings.Contains(left.RefreshError, "fresh-") {
			t.Errorf("remembered: %q at %v", left.RefreshError, left.RefreshFailedAt)
		}
		return
	}
	refresh := "fresh-refresh"
	if name == "pair-no-refresh-token" {
		refresh = before.Refresh.Reveal()
	}
	equal(t, "access token", left.Access.Reveal(), "fresh-access")
	equal(t, "refresh token", left.Refresh.Reveal(), refresh)
	if life := left.ExpiresAt.Sub(left.RefreshedAt); life < 2*time.Hour-time.Minute || life > 2*time.Hour {
		t.Errorf("the pair lives for %v", life)
	}
}

// TestAuthorizationCodeAnswers runs every row of the other table. What a person
// is told of each is for the commands and pages to test.
func TestAuthorizationCodeAnswers(t *testing.T) {
	t.Parallel()
	cases := tokenAnswers(time.Now())
	for name, words := range map[string]string{
		"code-invalid":   "Value passed for the authorization code was invalid.",
		"verifier-wrong": "Value passed for the code verifier did not match the code challenge.",
		"redirect-wrong": "Value passed for the redirect uri did not match the uri of the authorization code.",
	} {
		cases[name] = answers(400, `{"error":"invalid_request","error_description":"`+words+`"}`)
	}
	seen := map[string]bool{}
	for _, row := range errorTable(t, "Authorization code") {
		name := row["case"]
		if seen[name] = true; cases[name] == nil {
			t.Errorf("row %q has no case", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				x := &xapi.OAuth{ClientID: "app", BaseURL: "https://x.test", HTTPClient: &http.Client{Transport: cases[name]}}
				pair, err := x.Exchange(t.Context(), "the-code-of-this-consent", xapi.NewVerifier(), "http://127.0.0.1:8484/callback")
				equal(t, "outcome", codeOutcome(pair, err), row["outcome"])
			})
		})
	}
	for _, name := range []string{"code-invalid", "verifier-wrong", "redirect-wrong", "pair", "pair-no-refresh-token", "unavailable"} {
		if !seen[name] {
			t.Errorf("case %q has no row", name)
		}
	}
}

func codeOutcome(pair xapi.TokenPair, err error) string {
	var (
		code        *xapi.CodeRefusedError
		app         *xapi.AppAuthError
		stop        *xapi.AppStopError
		ambiguous   *xapi.AmbiguousError
		limit       *xapi.RateLimitError
		unavailable *xapi.UnavailableError
	)
	switch {
	case err == nil && pair.AccessToken != "" && pair.RefreshToken != "":
		return "tokens"
	case err == nil && pair.AccessToken != "":
		return "tokens, refused by the check of scopes"
	case errors.As(err, &code):
		return "code refused"
	case errors.As(err, &app):
		return "app refused"
	case errors.As(err, &stop):
		return "app stopped"
	case errors.As(err, &ambiguous):
		return "unknown"
	case errors.As(err, &limit), errors.As(err, &unavailable):
		return "not now"
	}
	return err.Error()
}
