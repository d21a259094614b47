package consumers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/admission/admissiontest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// errorRow is a row of a table in docs/x-errors.md.
type errorRow map[string]string

// errorTable reads the rows below a heading, by the names of the header row.
func errorTable(t *testing.T, heading string) (rows []errorRow) {
	t.Helper()
	text, err := os.ReadFile("../docs/x-errors.md")
	testkit.Must(t, err)
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

// answers returns an HTTP answer; header has names and values alternately.
func answers(status int, body string, header ...string) transport {
	return func(r *http.Request) (*http.Response, error) {
		h := http.Header{"Content-Type": {"application/json"}}
		for i := 0; i < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}
}

// breaks is a connection that fails after the request was written.
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
		// These two are decided before any byte is sent: see callsOut.
		"dial": xapi.NewTransport(),
		"late": xapi.NewTransport(),
	}
}

// errorReader is the end of a connection in the middle of an answer.
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
			if name == "dial" || name == "late" { // real sockets, which do not work in a bubble
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

// tokenAnswer has X give the answer of a row, and compares the result with the row.
func tokenAnswer(t *testing.T, row errorRow) {
	t.Helper()
	b := offline(t)
	b.due(t, "acme", time.Hour)
	before := b.token(t, "acme")
	r := b.bubble()
	stops := &admissiontest.PauseStore{}
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
	testkit.Equal(t, "outcome", outcome, row["outcome"])
	stop := stops.Pause.Reason.Code
	if stop != "" {
		testkit.Equal(t, "target of the pause", stops.Pause.Target, publishers.TargetRefresh)
		testkit.Equal(t, "the pause is in force", paused(r.Gate, admission.TargetRefresh), true)
	}
	testkit.Equal(t, "pause", string(stop), row["pause"])
	testkit.Equal(t, "next try", nextTry(left, before, r, asked, stop), row["next try"])
	wantLeft(t, left, before, row["outcome"], row["case"])
}

// lateExchanger is a worker that is frozen between its claim and the exchange.
type lateExchanger struct{ *xapi.OAuth }

func (x lateExchanger) Refresh(ctx context.Context, token string) (xapi.TokenPair, error) {
	return x.OAuth.Refresh(xapi.WithNotAfter(ctx, time.Now().Add(-time.Second)), token)
}

// nextTry names when the token will be tried again.
func nextTry(left, before store.Token, r *refresher, asked time.Time, stop jetpost.Code) string {
	wait := left.NextAttemptAt.Sub(asked)
	backoff := r.Timing.firstBackoff()
	switch {
	case left.NextAttemptAt.IsZero():
		return ""
	case left.NextAttemptAt.Equal(before.ExpiresAt.Add(-r.Timing.nearEnd())):
		return "near end"
	case stop != "":
		return "after the pause"
	case wait >= backoff && wait <= 2*backoff:
		return "backoff"
	case wait >= 6*time.Minute && wait <= 8*time.Minute:
		return "reset"
	case wait >= 15*time.Minute && wait <= 17*time.Minute:
		return "window"
	}
	return wait.String()
}

// wantLeft checks the stored pair and its state.
func wantLeft(t *testing.T, left, before store.Token, outcome, name string) {
	t.Helper()
	if outcome != "stored" {
		testkit.Equal(t, "pair is as before", left.Refresh == before.Refresh && left.Access == before.Access, true)
		if left.RefreshError == "" || left.RefreshFailedAt.IsZero() || strings.Contains(left.RefreshError, "fresh-") {
			t.Errorf("remembered: %q at %v", left.RefreshError, left.RefreshFailedAt)
		}
		return
	}
	refresh := "fresh-refresh"
	if name == "pair-no-refresh-token" {
		refresh = before.Refresh.Reveal()
	}
	testkit.Equal(t, "access token", left.Access.Reveal(), "fresh-access")
	testkit.Equal(t, "refresh token", left.Refresh.Reveal(), refresh)
	if life := left.ExpiresAt.Sub(left.RefreshedAt); life < 2*time.Hour-time.Minute || life > 2*time.Hour {
		t.Errorf("the pair lives for %v", life)
	}
}

// TestAuthorizationCodeAnswers runs every row of the other table. The tests of commands and
// pages check what a person is told.
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
				testkit.Equal(t, "outcome", codeOutcome(pair, err), row["outcome"])
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
		stop        *xapi.AppError
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
		return "app paused"
	case errors.As(err, &ambiguous):
		return "unknown"
	case errors.As(err, &limit), errors.As(err, &unavailable):
		return "not now"
	}
	return err.Error()
}

// says answers a request that was read completely; header has names and values alternately.
func says(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// hangsUp resets the connection after the request was read.
func hangsUp(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

// cuts ends the connection in the middle of an answer.
func cuts(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		says(status, body[:len(body)/2])(w, r)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// unheard stands for cases that are decided before X has read anything: see postScene.
func unheard(http.ResponseWriter, *http.Request) { panic("X has heard of it") }

const (
	oldProblems = "https://api.twitter.com/2/problems/"
	problems    = "https://api.x.com/2/problems/"
	liveMedia   = `{"data":{"id":"1888888888888888888","media_key":"3_1888888888888888888","size":70,"expires_after_secs":86400}}`
)

// livePost is X's answer to a post that it made.
func livePost(id string) string {
	return `{"data":{"id":"` + id + `","text":"one","edit_history_tweet_ids":[""]}}`
}

// problem is a problem document of X.
func problem(status int, title, detail, kind string, more ...string) string {
	return fmt.Sprintf(`{"title":%q,"detail":%q,"type":%q,"status":%d%s}`, title, detail, kind, status, strings.Join(more, ""))
}

// invalid is X's answer to an invalid request.
func invalid(message string) http.HandlerFunc {
	return says(400, `{"errors":[{"parameters":{"x":["1"]},"message":"`+message+`"}],`+
		`"title":"Invalid Request","detail":"One or more parameters to your request was invalid.","type":"`+oldProblems+`invalid-request"}`)
}

func forbidden(detail string) http.HandlerFunc {
	return says(403, problem(403, "Forbidden", detail, "about:blank"))
}

// coded is a 403 in X's older form.
func coded(code int, message string) http.HandlerFunc {
	return says(403, fmt.Sprintf(`{"errors":[{"code":%d,"message":%q}]}`, code, message))
}

// commonAnswers are the answers that X gives to any call that changes something, by the
// names of their cases.
func commonAnswers(now time.Time) map[string]http.HandlerFunc {
	reset := strconv.FormatInt(now.Add(7*time.Minute).Unix(), 10)
	limited := func(body string, header ...string) http.HandlerFunc { return says(429, body, header...) }
	ordinary := problem(429, "Too Many Requests", "Too Many Requests", "about:blank")
	plenty := []string{"X-Rate-Limit-Limit", "100", "X-Rate-Limit-Remaining", "99", "X-Rate-Limit-Reset", reset}
	used := func(window string) []string {
		return append(plenty[:len(plenty):len(plenty)], window+"Limit", "100", window+"Remaining", "0", window+"Reset", reset)
	}
	const usage = `{"title":"UsageCapExceeded","detail":"Usage cap exceeded: Monthly product cap",`
	return map[string]http.HandlerFunc{
		"redirect":                 says(302, "", "Location", "/elsewhere"),
		"bad-request-empty":        says(400, ""),
		"bad-request-html":         says(400, page, "Content-Type", "text/html"),
		"bad-request-list":         says(400, `{"errors":[{"message":"Something in the request is wrong."}]}`),
		"bad-request-legacy":       says(400, `{"errors":[{"code":214,"message":"Bad request."}]}`),
		"bad-request-code":         says(400, `{"code":214,"message":"Bad request."}`),
		"bad-request-oauth":        says(400, `{"error":"invalid_request","error_description":"The request is not valid."}`),
		"bad-request-problem":      says(400, problem(400, "Invalid Request", "The request is not valid.", problems+"invalid-request"), "Content-Type", "application/problem+json"),
		"unauthorized":             says(401, problem(401, "Unauthorized", "Unauthorized", "about:blank")),
		"unauthorized-legacy":      says(401, `{"errors":[{"code":89,"message":"Invalid or expired token."}]}`),
		"unauthorized-empty":       says(401, ""),
		"unauthorized-for-long":    says(401, problem(401, "Unauthorized", "Unauthorized", "about:blank")),
		"suspended":                says(403, problem(403, "Forbidden", "The user used for authentication is suspended", oldProblems+"user-suspended")),
		"suspended-legacy":         coded(64, "Your account is suspended and is not permitted to access this feature."),
		"locked":                   coded(326, "To protect our users from spam and other malicious activity, this account is temporarily locked. Please log in to https://x.com to unlock your account."),
		"read-only":                coded(261, "Application cannot perform write actions. Contact X Platform Operations for assistance."),
		"read-only-problem":        says(403, problem(403, "Forbidden", "Your client app is not configured with the appropriate oauth1 app permissions for this endpoint.", oldProblems+"oauth1-permissions")),
		"read-only-level":          says(403, problem(403, "Forbidden", "You are not permitted to perform this action.", "about:blank"), "X-Access-Level", "read"),
		"app-suspended":            coded(416, "Invalid / suspended application"),
		"client-forbidden":         says(403, problem(403, "Client Forbidden", "This endpoint is for official clients alone.", oldProblems+"client-forbidden", `,"reason":"official-client-forbidden"`)),
		"credits":                  says(402, `{"title":"CreditsDepleted","detail":"Your enrolled account [1] does not have any credits to fulfill this request.","type":"`+oldProblems+`credits"}`),
		"credits-2026":             says(402, problem(402, "Payment Required", "credits depleted", problems+"credits-depleted")),
		"credits-empty":            says(402, ""),
		"spend-cap":                says(403, `{"title":"SpendCapReached","detail":"Your enrolled account [1] has reached its billing cycle spend cap.","reset_date":"2099-01-01","type":"`+oldProblems+`credits"}`),
		"spend-cap-undated":        says(403, `{"title":"SpendCapReached","detail":"Your enrolled account [1] has reached its billing cycle spend cap.","type":"`+oldProblems+`credits"}`),
		"not-permitted":            forbidden("You are not permitted to perform this action."),
		"token-kind":               says(403, problem(403, "Unsupported Authentication", "Authenticating with OAuth 2.0 Application-Only is forbidden for this endpoint.", oldProblems+"unsupported-authentication")),
		"not-enrolled":             says(403, problem(403, "Client Forbidden", "Enrol the app.", oldProblems+"client-forbidden", `,"reason":"client-not-enrolled"`)),
		"forbidden-new":            forbidden("Something that X never said before."),
		"forbidden-oauth":          says(403, `{"error":"forbidden","error_description":"Not this, please."}`),
		"forbidden-empty":          says(403, ""),
		"forbidden-html":           says(403, page, "Content-Type", "text/html"),
		"forbidden-cut":            cuts(403, problem(403, "Forbidden", "You are not permitted to perform this action.", "about:blank")),
		"not-found-empty":          says(404, ""),
		"not-found-for-long":       says(404, ""),
		"not-found-problem":        says(404, problem(404, "Not Found Error", "There is nothing of that name.", problems+"resource-not-found")),
		"request-timeout":          says(408, ""),
		"too-large-empty":          says(413, ""),
		"unprocessable":            says(422, problem(422, "Unprocessable", "It cannot be processed.", "about:blank")),
		"rate-limited":             limited(ordinary),
		"rate-limited-legacy":      limited(`{"errors":[{"code":88,"message":"Rate limit exceeded"}]}`),
		"rate-limited-problem":     limited(problem(429, "Too Many", "Rate limit exceeded", problems+"rate-limit-exceeded")),
		"rate-limited-problem-old": limited(problem(429, "Too Many", "Rate limit exceeded", oldProblems+"rate-limit-exceeded")),
		"rate-limited-oauth":       limited(`{"error":"rate_limited","error_description":"Not so fast."}`),
		"rate-limited-empty":       limited(""),
		"rate-limited-html":        limited(page, "Content-Type", "text/html"),
		"rate-limited-reset":       limited(ordinary, "X-Rate-Limit-Limit", "100", "X-Rate-Limit-Remaining", "0", "X-Rate-Limit-Reset", reset),
		"rate-limited-plenty":      limited(ordinary, plenty...),
		"rate-limited-retry-after": limited(ordinary, "Retry-After", "420"),
		"rate-limited-day":         limited(ordinary, used("X-User-Limit-24hour-")...),
		"rate-limited-app":         limited(ordinary, used("X-App-Limit-24hour-")...),
		"usage-capped":             limited(usage+`"type":"`+problems+`usage-capped","period":"Monthly","scope":"Product"}`, plenty...),
		"usage-capped-old":         limited(usage + `"type":"` + oldProblems + `usage-capped","period":"Daily","scope":"Account"}`),
		"internal":                 says(500, problem(500, "Internal Server Error", "Something is broken. This is usually a temporary error.", "about:blank")),
		"internal-empty":           says(500, ""),
		"bad-gateway":              says(502, page, "Content-Type", "text/html"),
		"unavailable":              says(503, problem(503, "Service Unavailable", "Service Unavailable", "about:blank")),
		"unavailable-legacy":       says(503, `{"errors":[{"code":130,"message":"Over capacity"}]}`),
		"temporarily-unavailable":  says(503, `{"error":"temporarily_unavailable","error_description":"Try again later."}`),
		"gateway-timeout":          says(504, page, "Content-Type", "text/html"),
		"reset":                    hangsUp,
		"timeout":                  func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"dial":                     unheard,
		"no-such-host":             unheard,
		"tls":                      unheard,
	}
}

// postingAnswers are the cases of the posting table. If X makes a post, it has that id.
func postingAnswers(now time.Time, id string) map[string]http.HandlerFunc {
	const duplicate = "You are not allowed to create a Tweet with duplicate content."
	const tooLong = "Your Tweet text is too long. For more information on how Twitter determines text length see https://github.com/twitter/twitter-text."
	const automated = "This request looks like it might be automated. To protect our users from spam and other malicious activity, we can't complete this action right now. Please try again later."
	const cashtags = "Posts are limited to a maximum of one cashtag ($SYMBOL)"
	live := livePost(id)
	cases := commonAnswers(now)
	maps.Copy(cases, map[string]http.HandlerFunc{
		"created":                says(201, live),
		"created-2026":           says(201, `{"data":{"id":"`+id+`","text":"one","edit_history_post_ids":["`+id+`"]}}`),
		"created-as-text":        says(201, live, "Content-Type", "text/plain"),
		"created-ok":             says(200, live),
		"created-with-errors":    says(201, strings.TrimSuffix(live, "}")+`,"errors":[{"title":"Field Hydration Failure","detail":"A field is missing.","type":"`+problems+`field-hydration-failure"}]}`),
		"created-odd":            says(201, `{"data":{"id":"`+id+`","text":7}}`),
		"no-id":                  says(201, `{"data":{"text":"one"}}`),
		"no-data":                says(201, `{}`),
		"errors-only":            says(201, `{"errors":[{"title":"Internal","detail":"Something is broken."}]}`),
		"empty":                  says(201, ""),
		"garbage":                says(201, live[:40]),
		"garbage-ok":             says(200, live[:40]),
		"html":                   says(200, page, "Content-Type", "text/html"),
		"no-content":             says(204, ""),
		"media-ids":              invalid("Your media IDs are invalid."),
		"exclusive":              invalid("You can only provide one of poll or quote_tweet_id or direct_message_deep_link or media or card_uri."),
		"reply-id":               invalid("Your reply tweet ID is invalid."),
		"quote-id":               invalid("Your quote tweet ID is invalid."),
		"tagged-ids":             invalid("Your tagged user IDs are invalid."),
		"no-object":              invalid("Request body must be a JSON object."),
		"too-long":               invalid(tooLong),
		"too-long-forbidden":     forbidden(tooLong),
		"duplicate":              forbidden(duplicate),
		"duplicate-legacy":       says(403, `{"errors":[{"code":187,"message":"Status is a duplicate."}]}`),
		"duplicate-after-doubt":  forbidden(duplicate),
		"duplicate-after-hold":   forbidden(duplicate),
		"duplicate-after-replay": forbidden(duplicate),
		"reply-rule":             forbidden("Reply to this conversation is not allowed because you have not been mentioned or otherwise engaged by the author of the post you are replying to."),
		"quote-rule":             forbidden("Quoting this post is not allowed because you have not been mentioned or are not part of the conversation thread of the post you are quoting."),
		"cashtags":               forbidden(cashtags),
		"cashtags-authorization": says(403, problem(403, "Authorization Error", cashtags, "about:blank")),
		"video-too-long":         forbidden("This user is not allowed to post a video longer than 2 minutes."),
		"automated":              coded(226, automated),
		"automated-for-long":     coded(226, automated),
		"parent-gone":            forbidden("You attempted to reply to a Tweet that is deleted or not visible to you."),
		"cut-body":               cuts(201, live),
		"late":                   unheard,
	})
	return cases
}

// mediaAnswers are the cases of the media table.
func mediaAnswers(now time.Time) map[string]http.HandlerFunc {
	cases := commonAnswers(now)
	maps.Copy(cases, map[string]http.HandlerFunc{
		"uploaded":             says(200, liveMedia),
		"uploaded-created":     says(201, liveMedia),
		"uploaded-with-errors": says(200, strings.TrimSuffix(liveMedia, "}")+`,"errors":[{"title":"Field Hydration Failure","detail":"A field is missing."}]}`),
		"described":            says(200, `{"data":{"id":"1888888888888888888","associated_metadata":{"alt_text":{"text":"x"}}}}`),
		"no-id":                says(200, `{"data":{"media_key":"3_1888888888888888888"}}`),
		"errors-only":          says(200, `{"errors":[{"title":"Internal","detail":"Something is broken."}]}`),
		"empty":                says(200, ""),
		"garbage":              says(200, liveMedia[:30]),
		"html":                 says(200, page, "Content-Type", "text/html"),
		"no-content":           says(204, ""),
		"cut-body":             cuts(200, liveMedia),
		"media-invalid":        invalid("media type unrecognized."),
	})
	return cases
}

// runRows runs each row of a table, and fails if a row has no case or a case no row.
func runRows[C any](t *testing.T, heading string, cases map[string]C, run func(*testing.T, errorRow)) {
	t.Helper()
	seen := map[string]bool{}
	for _, row := range errorTable(t, heading) {
		name := row["case"]
		if seen[name] {
			t.Errorf("row %q is there twice", name)
		}
		_, there := cases[name]
		if seen[name] = true; !there {
			t.Errorf("row %q has no case", name)
			continue
		}
		t.Run(name, func(t *testing.T) { t.Parallel(); run(t, row) })
	}
	for name := range cases {
		if !seen[name] {
			t.Errorf("case %q has no row", name)
		}
	}
}

// TestPostingAnswers runs every row of the posting table.
func TestPostingAnswers(t *testing.T) {
	t.Parallel()
	b := offline(t) // one ledger, with an account for each row
	runRows(t, "Posting", postingAnswers(time.Now(), "1"), func(t *testing.T, row errorRow) {
		t.Helper()
		if row["case"] == "late" { // no socket is used, so time may jump
			synctest.Test(t, func(t *testing.T) { newScene(t, offline(t), row, xapi.EndpointCreatePost).freeze(t) })
			return
		}
		s := newScene(t, b, row, xapi.EndpointCreatePost)
		s.answer = postingAnswers(time.Now(), s.postID)[row["case"]]
		s.connect(t)
		attempts := 0
		switch row["case"] {
		case "duplicate-after-doubt":
			s.earlier(t, says(503, ""), jetpost.StateHeld)
			_, err := s.ledger.Resolve(t.Context(), s.key, "", time.Now())
			testkit.Must(t, err)
			attempts = 1
		case "duplicate-after-hold":
			s.earlier(t, says(404, ""), jetpost.StateHeld)
			s.endHold(t, s.key, jetpost.CodeXUnavailable)
		case "duplicate-after-replay":
			s.earlier(t, s.answer, jetpost.StateFailed)
			_, err := s.ledger.Replay(t.Context(), s.key, time.Now())
			testkit.Must(t, err)
			attempts = 1
		}
		if row["counts"] == "yes" {
			attempts++
		}
		testkit.Equal(t, "attempts", s.advance(t).Status.Attempts, attempts)
	})
}

// TestMediaAnswers runs every row of the media table, at each call of the row.
func TestMediaAnswers(t *testing.T) {
	t.Parallel()
	calls := map[string][]xapi.Endpoint{
		"upload": {xapi.EndpointUploadMedia}, "metadata": {xapi.EndpointMediaMetadata},
		"both": {xapi.EndpointUploadMedia, xapi.EndpointMediaMetadata},
	}
	b := offline(t)
	runRows(t, "Media", mediaAnswers(time.Now()), func(t *testing.T, row errorRow) {
		t.Helper()
		if len(calls[row["call"]]) == 0 {
			t.Errorf("no call is named %q", row["call"])
		}
		for _, call := range calls[row["call"]] {
			t.Run(string(call), func(t *testing.T) {
				t.Parallel()
				s := newScene(t, b, row, call)
				s.answer = mediaAnswers(time.Now())[row["case"]]
				s.connect(t)
				r := s.advance(t)
				testkit.Equal(t, "attempt is counted", r.Status.Attempts == 1, r.Status.State == jetpost.StatePublished)
			})
		}
	})
}

// segmentAnswers are the cases of the table of segments: X's answers to each step, in
// order, the last one repeated. Other steps succeed.
func segmentAnswers() map[string]map[xapi.Endpoint][]http.HandlerFunc {
	const (
		initialize, segment, finalize = xapi.EndpointInitializeMedia, xapi.EndpointAppendMedia, xapi.EndpointFinalizeMedia
		status, post                  = xapi.EndpointMediaStatus, xapi.EndpointCreatePost
	)
	type steps = map[xapi.Endpoint][]http.HandlerFunc
	answers := func(list ...http.HandlerFunc) []http.HandlerFunc { return list }
	info := func(info string) http.HandlerFunc {
		return says(200, `{"data":{"id":"1","media_key":"13_1","size":9,"expires_after_secs":86400,"processing_info":`+info+`}}`)
	}
	pending := info(`{"state":"pending","check_after_secs":7}`)
	failed, words := info(`{"state":"failed","progress_percent":9}`), info(`{"state":"failed","error":{"code":1,"name":"InvalidMedia","message":"file is invalid"}}`)
	away, limited := says(503, problem(503, "Service Unavailable", "Service Unavailable", "about:blank")), says(429, "")
	return map[string]steps{
		"plain":                    {},
		"initialize-refused":       {initialize: answers(invalid("media type unrecognized."))},
		"initialize-unavailable":   {initialize: answers(away)},
		"initialize-limited":       {initialize: answers(limited)},
		"initialize-no-id":         {initialize: answers(says(200, `{"data":{}}`))},
		"append-no-content":        {segment: answers(says(204, ""))},
		"append-once-unavailable":  {segment: answers(away, says(200, `{}`))},
		"append-unavailable":       {segment: answers(away, away, away, away, says(200, `{}`))},
		"append-too-large":         {segment: answers(says(413, ""))},
		"append-refused":           {segment: answers(invalid("The segment is not valid."))},
		"append-limited":           {segment: answers(limited)},
		"finalize-lost":            {finalize: answers(away)},
		"finalize-lost-processing": {finalize: answers(away), status: answers(pending)},
		"finalize-lost-twice":      {finalize: answers(away), status: answers(away)},
		"finalize-refused":         {finalize: answers(invalid("Segments do not add up to provided total file size."))},
		"processing":               {finalize: answers(pending)},
		"processing-untimed":       {finalize: answers(info(`{"state":"in_progress"}`))},
		"processing-failed":        {finalize: answers(failed)},
		"processing-failed-words":  {finalize: answers(words)},
		"status-ready":             {finalize: answers(pending)},
		"status-succeeded":         {finalize: answers(pending), status: answers(info(`{"state":"succeeded","progress_percent":100}`))},
		"status-in-progress":       {finalize: answers(pending), status: answers(info(`{"state":"in_progress","check_after_secs":7}`))},
		"status-failed":            {finalize: answers(pending), status: answers(failed)},
		"status-unavailable":       {finalize: answers(pending), status: answers(away)},
		"status-limited":           {finalize: answers(pending), status: answers(limited)},
		"status-gone":              {finalize: answers(pending), status: answers(says(404, problem(404, "Not Found", "There is nothing of that name.", problems+"resource-not-found")))},
		"media-ids":                {post: answers(invalid("Your media IDs are invalid."))},
		"media-ids-again":          {post: answers(invalid("Your media IDs are invalid."))},
	}
}

// TestSegmentAnswers runs every row of the table of segments.
func TestSegmentAnswers(t *testing.T) {
	t.Parallel()
	runRows(t, "Media in segments", segmentAnswers(), func(t *testing.T, row errorRow) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			b := doubt(t)
			answers := segmentAnswers()[row["case"]]
			b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
				call := xapi.Endpoint(r.Method + " " + strings.Replace(r.URL.Path, "/1/", "/:id/", 1))
				answer := says(200, liveMedia)
				switch left := answers[call]; {
				case len(left) > 1:
					answer, answers[call] = left[0], left[1:]
				case len(left) == 1:
					answer = left[0]
				case call == xapi.EndpointInitializeMedia, call == xapi.EndpointFinalizeMedia, call == xapi.EndpointMediaStatus:
					answer = says(200, `{"data":{"id":"1","media_key":"13_1"}}`)
				case call == xapi.EndpointCreatePost:
					answer = says(201, livePost("7"))
				}
				w := httptest.NewRecorder()
				answer(w, r)
				return w.Result(), nil
			})
			b.publish(t, "one", jetpost.Post{Text: "one", Media: []jetpost.Media{{Data: file(mp4Head, 100)}}})
			if strings.HasPrefix(row["case"], "status-") || row["case"] == "media-ids-again" {
				held := b.want(t, b.key, jetpost.StateHeld, jetpost.CodeMediaProcessing, 0)
				sleep(time.Until(held.HoldUntil))
				b.run(t, b.h, "acme")
			}
			r := b.record(t, b.key)
			became := became(r, publishers.Pause{})
			testkit.Equal(t, "verdict", became.verdict, row["verdict"])
			testkit.Equal(t, "code", became.code, row["code"])
			testkit.Equal(t, "until", untilWhat(became.until, time.Now(), r.Holds), row["until"])
			for i, words := range strings.Split(row["answer"], `"`) {
				if i%2 == 1 && !strings.Contains(r.Status.Reason.Detail, words) {
					t.Errorf("X's words %q are not in the reason: %s", words, r.Status.Reason.Detail)
				}
			}
		})
	})
}

// postScene is one account with one request whose lane gets the answer of a row.
type postScene struct {
	*testBundle
	row    errorRow
	call   xapi.Endpoint    // the call that gets the answer; X accepts the others
	answer http.HandlerFunc // X's answer to that call
	silent chan struct{}    // closed when X has received it and does not answer
	postID string           // the post that X makes
	key    store.Key
	stops  *admissiontest.PauseStore
	lane   *publishHandler

	heard, strayed atomic.Int64 // calls of that kind, and calls to nowhere
}

func newScene(t *testing.T, b *testBundle, row errorRow, call xapi.Endpoint) *postScene {
	t.Helper()
	s := &postScene{
		testBundle: b, row: row, call: call, silent: make(chan struct{}),
		stops: &admissiontest.PauseStore{}, key: store.Key{Account: row["case"] + "-" + strings.TrimPrefix(path.Base(string(call)), ":"), ID: "one"},
	}
	s.postID = s.account(t, s.key.Account, 0).ID // any number that no other row has
	request := jetpost.Request{Account: s.key.Account, ID: s.key.ID, Posts: thread("one")}
	if call == xapi.EndpointUploadMedia || call == xapi.EndpointMediaMetadata {
		request.Posts[0].Media = []jetpost.Media{{Data: testImage(t), Alt: "x"}}
	}
	body, err := json.Marshal(request)
	testkit.Must(t, err)
	_, err = s.ledger.Accept(t.Context(), store.Acceptance{Request: request, Body: body, Digest: request.Digest(), Now: time.Now()})
	testkit.Must(t, err)
	tokens := s.bubble()
	tokens.Gate = newGate(s.stops)
	s.lane = s.testBundle.lane(func(h *publishHandler) {
		h.Tokens, h.Gate, h.Wakeups = tokens, tokens.Gate, deafWakeups{}
		h.Announce = &OutboxRelay{Ledger: s.ledger, DeadLetters: &silentDeadLetters{}, Names: s.names, Log: s.log}
	})
	return s
}

// deafWakeups wakes no lane.
type deafWakeups struct{}

func (deafWakeups) Wake(context.Context, string) error              { return nil }
func (deafWakeups) WakeAt(context.Context, string, time.Time) error { return nil }

// ServeHTTP is X.
func (s *postScene) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	switch call := endpointOf(r); call {
	case s.call:
		s.heard.Add(1)
		if s.row["case"] == "timeout" {
			close(s.silent)
		}
		s.answer(w, r)
	case xapi.EndpointUploadMedia, xapi.EndpointMediaMetadata:
		says(200, liveMedia)(w, r)
	case xapi.EndpointCreatePost:
		says(201, livePost(s.postID))(w, r)
	default:
		s.strayed.Add(1)
	}
}

// endpointOf names the call by X's pattern.
func endpointOf(r *http.Request) xapi.Endpoint {
	return xapi.Endpoint(r.Method + " " + idInPath.ReplaceAllString(r.URL.Path, ":id"))
}

// connect makes the lane's calls to X through real sockets. In some rows the calls do not
// arrive there.
func (s *postScene) connect(t *testing.T) {
	t.Helper()
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	x, secured := httptest.NewUnstartedServer(s), httptest.NewUnstartedServer(http.HandlerFunc(unheard))
	x.Config.ErrorLog, secured.Config.ErrorLog = quiet, quiet
	x.Start()
	secured.StartTLS() // with a certificate that is not trusted
	wire := xapi.NewTransport()
	t.Cleanup(func() { wire.CloseIdleConnections(); x.Close(); secured.Close() })
	s.through(func(r *http.Request) (*http.Response, error) {
		r.URL.Scheme, r.URL.Host = "http", x.Listener.Addr().String()
		if endpointOf(r) == s.call {
			switch s.row["case"] {
			case "dial":
				r.URL.Host = "127.0.0.1:1"
			case "no-such-host":
				r.URL.Host = "no..such..host"
			case "tls":
				r.URL.Scheme, r.URL.Host = "https", secured.Listener.Addr().String()
			case "timeout":
				r = r.WithContext(&outOfTime{Context: r.Context(), over: s.silent})
			}
		}
		return wire.RoundTrip(r)
	})
}

// through makes the lane's calls with that transport.
func (s *postScene) through(wire transport) {
	s.lane.Client = func(account, token string) *xapi.Client {
		return xapi.New(token, xapi.WithBaseURL("https://x.test"), xapi.WithHTTPClient(&http.Client{Transport: wire}), xapi.WithLimits(s.lane.Windows.Limits, account))
	}
}

// outOfTime is a context that ends after X has read the request.
type outOfTime struct {
	context.Context
	over chan struct{}
}

func (c *outOfTime) Done() <-chan struct{} { return c.over }

func (c *outOfTime) Err() error {
	select {
	case <-c.over:
		return context.DeadlineExceeded
	default:
		return c.Context.Err()
	}
}

// earlier is an attempt before the one of the row.
func (s *postScene) earlier(t *testing.T, answer http.HandlerFunc, leaves jetpost.State) {
	t.Helper()
	row := s.answer
	s.answer = answer
	s.run(t, s.lane, s.key.Account)
	s.answer = row
	testkit.Equal(t, "state before", s.record(t, s.key).Status.State, leaves)
	s.heard.Store(0)
}

// freeze stops the worker between the commit of its intent and the call, for longer than
// the call may be sent.
func (s *postScene) freeze(t *testing.T) {
	t.Helper()
	s.through(func(*http.Request) (*http.Response, error) { s.heard.Add(1); return nil, io.EOF })
	s.lane.Ledger = &ledgerHook{Store: s.ledger, after: nth("begin", 1, func() error {
		sleep(s.lane.Timing.sendWithin() + time.Second)
		return nil
	})}
	testkit.Equal(t, "attempts", s.advance(t).Status.Attempts, 0)
}

// advance runs the lane, and compares the state of the request with the row.
func (s *postScene) advance(t *testing.T) store.Record {
	t.Helper()
	heard := s.tries(t)
	asked := time.Now()
	s.run(t, s.lane, s.key.Account)
	r := s.record(t, s.key)
	testkit.Equal(t, "calls", s.heard.Load(), heard)
	testkit.Equal(t, "calls to elsewhere", s.strayed.Load(), 0)

	became := became(r, s.stops.Pause)
	testkit.Equal(t, "verdict", became.verdict, s.row["verdict"])
	testkit.Equal(t, "code", became.code, s.row["code"])
	testkit.Equal(t, "until", untilWhat(became.until, asked, r.Holds), s.row["until"])
	testkit.Equal(t, "post", r.Posts[0].State, map[string]jetpost.PostState{
		"published": jetpost.PostPosted, "failed": s.failedPost(), "doubtful": jetpost.PostSending,
		"held": jetpost.PostPending, "pause": jetpost.PostPending, "blocked": jetpost.PostPending,
	}[became.verdict])
	if r.Status.Reason == nil {
		testkit.Equal(t, "id of the post", r.Posts[0].PostID, s.postID)
		return r
	}
	s.wantWords(t, r.Status.Reason)
	return r
}

// tries has X give the answer as often as the row requires before, and returns how many
// calls follow.
func (s *postScene) tries(t *testing.T) (heard int64) {
	t.Helper()
	heard = 1
	switch s.row["case"] {
	case "dial", "no-such-host", "tls", "late":
		heard = 0
	case "unauthorized", "unauthorized-legacy", "unauthorized-empty":
		heard = 2 // the second time with a new token
	case "not-found-for-long", "unauthorized-for-long", "automated-for-long":
		tries := edgeTries
		if s.row["case"] == "automated-for-long" {
			tries = forNowTries
		}
		if s.row["case"] == "unauthorized-for-long" {
			tries = unauthorizedTries - 1 // the first one renews the token and holds twice
		}
		for range tries {
			s.run(t, s.lane, s.key.Account)
			if s.call == xapi.EndpointDeletePost {
				_, err := s.ledger.EndHolds(t.Context(), s.key.Account, jetpost.CodeXUnavailable, time.Now())
				testkit.Must(t, err)
				s.lane.Windows = admission.NewWindows(s.windows, s.log) // a day has more of them
				continue
			}
			s.endHold(t, s.key, jetpost.CodeXUnavailable)
		}
		s.heard.Store(0)
	}
	return heard
}

// wantWords fails unless the reason contains X's words of the row.
func (s *postScene) wantWords(t *testing.T, reason *jetpost.Reason) {
	t.Helper()
	detail := strings.TrimPrefix(reason.Detail, string(s.stops.Pause.Reason.Code))
	for i, words := range strings.Split(s.row["answer"], `"`) {
		if i%2 == 1 && !strings.Contains(detail, words) {
			t.Errorf("X's words %q are not in the reason: %s", words, detail)
		}
	}
	if len(detail) < len("401") {
		t.Errorf("the reason says nothing: %q", detail)
	}
}

// failedPost is the state of a post whose request failed: refused itself, or never begun.
func (s *postScene) failedPost() jetpost.PostState {
	if s.call == xapi.EndpointCreatePost {
		return jetpost.PostFailed
	}
	return jetpost.PostPending
}

// outcome is the result of a request, in a row's words.
type outcome struct {
	verdict, code string
	until         time.Time
}

func became(r store.Record, stop publishers.Pause) outcome {
	o := outcome{verdict: string(r.Status.State), until: r.HoldUntil}
	if r.Status.Reason != nil {
		o.code = string(r.Status.Reason.Code)
	}
	switch {
	case r.Status.State == jetpost.StateHeld && r.Status.Reason.Code == jetpost.CodeReconciling:
		o.verdict = "doubtful"
	case r.Status.State == jetpost.StateHeld && blocks(r.Status.Reason.Code):
		o.verdict = "blocked"
	case r.Status.State == jetpost.StateHeld && r.Status.Reason.Code == jetpost.CodeAppPaused && stop.Target == string(admission.TargetPublish):
		o = outcome{"pause", string(stop.Reason.Code), stop.NextAt()}
	}
	return o
}

// untilWhat names the end of a wait that began after asked.
func untilWhat(until, asked time.Time, holds int) string {
	now := time.Now().Add(2 * time.Second)    // X's times are rounded up
	within := func(wait time.Duration) bool { // pauses are stored to the millisecond
		return !until.Before(asked.Add(wait-time.Millisecond)) && !until.After(now.Add(wait))
	}
	switch {
	case until.IsZero():
		return ""
	case until.Equal(time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)):
		return "X's date"
	case until.Sub(asked) > 6*time.Minute && until.Sub(asked) < 8*time.Minute:
		return "reset"
	case within(timing{}.checkFrom(time.Time{}.Add(timing{}.sendWithin())).Sub(time.Time{})):
		return "check"
	case within(15 * time.Minute):
		return "15 minutes"
	case within(blockWait):
		return "an hour"
	case within(backoff(holds)):
		return "backoff"
	}
	return until.Sub(asked).String()
}
