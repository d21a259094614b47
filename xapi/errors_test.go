package xapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const problems = "https://api.twitter.com/2/problems/"

// knownAnswer is one that X is known to give to a post.
type knownAnswer struct {
	name   string
	status int
	body   string
	want   string // the error's type, and its kind or reason
	words  string
}

const tooLong = "Your Tweet text is too long. For more information on how Twitter determines text length see https://github.com/twitter/twitter-text."

// lostAnswers leave open whether the post was made.
func lostAnswers() []knownAnswer {
	return []knownAnswer{
		{"201 cut", 201, `{"data":{"id":"1`, "Ambiguous", ""},
		{"201 empty", 201, "", "Ambiguous", ""},
		{"201 errors only", 201, `{"errors":[{"title":"t","detail":"d"}]}`, "Ambiguous", "d"},
		{"200 without id", 200, `{"data":{}}`, "Ambiguous", ""},
		{"302", 302, "", "Ambiguous", ""},
		{"408", 408, "", "Ambiguous", ""},
		{"500", 500, `{"title":"Internal Server Error","detail":"Something is broken.","type":"about:blank","status":500}`, "Ambiguous", "Something is broken."},
		{"502 html", 502, "<html>", "Ambiguous", ""},
		{"503", 503, `{"title":"Service Unavailable","detail":"Service Unavailable","type":"about:blank","status":503}`, "Ambiguous", ""},
		{"503 odd types", 503, `{"title":7,"detail":"d","errors":"x"}`, "Ambiguous", "d"},
	}
}

// invalidAnswers refuse what the request says.
func invalidAnswers() []knownAnswer {
	invalid := func(message string) string {
		return `{"errors":[{"parameters":{"x":["1"]},"message":"` + message + `"}],"title":"Invalid Request",
			"detail":"One or more parameters to your request was invalid.","type":"` + problems + `invalid-request"}`
	}
	return []knownAnswer{
		{"400 empty", 400, "", "Refused invalid", ""},
		{"400 exclusive", 400, invalid("You can only provide one of poll or quote_tweet_id or direct_message_deep_link or media or card_uri."), "Refused invalid", ""},
		{"400 media", 400, invalid("Your media IDs are invalid."), "Refused media_invalid",
			"One or more parameters to your request was invalid. Your media IDs are invalid."},
		{"400 object", 400, invalid("Request body must be a JSON object."), "Refused invalid", ""},
		{"400 quote", 400, invalid("Your quote tweet ID is invalid."), "Refused invalid", ""},
		{"400 reply", 400, invalid("Your reply tweet ID is invalid."), "Refused parent_gone", ""},
		{"400 too long", 400, invalid(tooLong), "Refused too_long", ""},
		{"404 empty", 404, "", "Unavailable", ""},
		{"404 problem", 404, `{"title":"Not Found Error","detail":"Could not find user.","type":"https://api.x.com/2/problems/resource-not-found"}`, "Refused not_found", "Could not find user."},
		{"413 empty", 413, "", "Unavailable", ""},
		{"422 error form", 422, `{"code":7,"message":"m"}`, "Refused other", "m"},
	}
}

// forbiddenAnswers refuse the post by X's rules, or are not X's.
func forbiddenAnswers() []knownAnswer {
	forbidden := func(detail string) string {
		return `{"detail":"` + detail + `","type":"about:blank","title":"Forbidden","status":403}`
	}
	return []knownAnswer{
		{"403 cashtag", 403, forbidden("Posts are limited to a maximum of one cashtag ($SYMBOL)"), "Refused rule", ""},
		{"403 cashtag other title", 403, `{"title":"Authorization Error","detail":"Posts are limited to a maximum of one cashtag ($SYMBOL)"}`, "Refused rule", ""},
		{"403 duplicate", 403, forbidden("You are not allowed to create a Tweet with duplicate content."), "Refused duplicate", "You are not allowed to create a Tweet with duplicate content."},
		{"403 duplicate legacy", 403, `{"errors":[{"code":187,"message":"Status is a duplicate."}]}`, "Refused duplicate", "Status is a duplicate."},
		{"403 empty", 403, "", "Unavailable", ""},
		{"403 html", 403, "<html>blocked</html>", "Unavailable", ""},
		{"403 parent", 403, forbidden("You attempted to reply to a Tweet that is deleted or not visible to you."), "Refused parent_gone", ""},
		{"403 permission", 403, forbidden("You are not permitted to perform this action."), "Refused permission", ""},
		{"403 quote rule", 403, forbidden("Quoting this post is not allowed because you have not been mentioned or are not part of the conversation thread of the post you are quoting."), "Refused rule", ""},
		{"403 reply rule", 403, forbidden("Reply to this conversation is not allowed because you have not been mentioned or otherwise engaged by the author of the post you are replying to."), "Refused rule", ""},
		{"403 token kind", 403, `{"title":"Unsupported Authentication","detail":"Authenticating with OAuth 2.0 Application-Only is forbidden for this endpoint.","type":"` + problems + `unsupported-authentication"}`, "Refused authentication", ""},
		{"403 too long", 403, forbidden(tooLong), "Refused too_long", tooLong},
		{"403 unknown", 403, forbidden("Something new."), "Refused other", "Something new."},
		{"403 video", 403, forbidden("This user is not allowed to post a video longer than 2 minutes."), "Refused rule", ""},
	}
}

// limitAnswers concern the token, the app, or how much it may send.
func limitAnswers() []knownAnswer {
	return []knownAnswer{
		{"401", 401, `{"title":"Unauthorized","type":"about:blank","status":401,"detail":"Unauthorized"}`, "Unauthorized", "Unauthorized"},
		{"401 html", 401, "<html>", "Unauthorized", ""},
		{"402 empty", 402, "", "App credits_depleted", ""},
		{"402 new", 402, `{"detail":"credits depleted","status":402,"title":"Payment Required","type":"https://api.x.com/2/problems/credits-depleted"}`, "App credits_depleted", "credits depleted"},
		{"402 old", 402, `{"title":"CreditsDepleted","detail":"Your enrolled account [1] does not have any credits to fulfill this request.","type":"` + problems + `credits"}`, "App credits_depleted", ""},
		{"403 client", 403, `{"title":"Client Forbidden","detail":"d","reason":"client-not-enrolled","type":"` + problems + `client-forbidden"}`, "App client_not_enrolled", "d"},
		{"403 spend cap", 403, `{"title":"SpendCapReached","detail":"Your enrolled account [1] has reached its billing cycle spend cap.","reset_date":"2026-04-14","type":"` + problems + `credits"}`, "App spend_cap_reached 2026-04-14", ""},
		{"429 empty", 429, "", "RateLimit", ""},
		{"429 legacy", 429, `{"errors":[{"code":88,"message":"Rate limit exceeded"}]}`, "RateLimit", "Rate limit exceeded"},
		{"429 plain", 429, `{"title":"Too Many Requests","detail":"Too Many Requests","type":"about:blank","status":429}`, "RateLimit", "Too Many Requests"},
		{"429 problem", 429, `{"title":"t","detail":"Rate limit exceeded","type":"https://api.x.com/2/problems/rate-limit-exceeded"}`, "RateLimit", ""},
		{"429 usage", 429, `{"title":"UsageCapExceeded","detail":"Usage cap exceeded: Monthly product cap","type":"https://api.x.com/2/problems/usage-capped","period":"Monthly","scope":"Product"}`, "App usage_capped", ""},
		{"429 usage old", 429, `{"title":"t","type":"` + problems + `usage-capped"}`, "App usage_capped", "t"},
	}
}

// TestAnswers has a row for each answer X is known to give to a post, in its old
// and its new form.
func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, tc := range slices.Concat(lostAnswers(), invalidAnswers(), forbiddenAnswers(), limitAnswers()) {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Transaction-Id", "tx")
				w.Header().Set("Content-Type", "text/html")
				reply(tc.status, tc.body)(w, r)
			})
			_, err := b.client.CreatePost(t.Context(), Post{Text: "x"})
			if got := describe(err); got != tc.want {
				t.Fatalf("got %s, want %s: %v", got, tc.want, err)
			}
			apiErr := wantAs[*APIError](t, err)
			if apiErr.Status != tc.status || apiErr.TransactionID != "tx" || apiErr.Endpoint != EndpointCreatePost {
				t.Errorf("got %+v", apiErr)
			}
			if tc.words != "" && apiErr.Words() != tc.words {
				t.Errorf("got words %q, want %q", apiErr.Words(), tc.words)
			}
			if got, want := IsOutage(err), tc.status >= 500; got != want {
				t.Errorf("outage %v, want %v", got, want)
			}
			if b.calls.Load() != 1 {
				t.Errorf("sent %d times", b.calls.Load())
			}
		})
	}
}

// describe names an error by its outermost type, which the answer alone decides,
// and its kind or reason.
func describe(err error) string {
	if err == nil {
		return "nil"
	}
	name := strings.TrimSuffix(reflect.TypeOf(err).Elem().Name(), "Error")
	var appErr *AppError
	var refused *RefusedError
	switch {
	case errors.As(err, &appErr):
		name += " " + string(appErr.Reason)
		if !appErr.Until.IsZero() {
			name += " " + appErr.Until.Format(time.DateOnly)
		}
	case errors.As(err, &refused):
		name += " " + string(refused.Kind)
	}
	return name
}

func TestAnswersToReads(t *testing.T) {
	t.Parallel()

	for _, tc := range []struct {
		status int
		body   string
		want   string
	}{
		{200, `{"data":{}}`, "Unavailable"},
		{200, `<html>`, "Unavailable"},
		{401, ``, "Unauthorized"},
		{402, ``, "App credits_depleted"},
		{404, ``, "Unavailable"},
		{429, ``, "RateLimit"},
		{503, ``, "Unavailable"},
	} {
		t.Run(fmt.Sprint(tc.status, tc.body), func(t *testing.T) {
			t.Parallel()
			b := setup(t, reply(tc.status, tc.body))
			_, err := b.client.Me(t.Context())
			if got := describe(err); got != tc.want {
				t.Errorf("got %s, want %s: %v", got, tc.want, err)
			}
		})
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()

	apiErr := &APIError{Endpoint: EndpointCreatePost, Status: 403, Detail: "No."}
	for want, err := range map[string]error{
		"POST /2/tweets: 403 Forbidden: No.":                                                    apiErr,
		"POST /2/tweets: 503 Service Unavailable":                                               &APIError{Endpoint: EndpointCreatePost, Status: 503},
		"app not accepted: POST /2/tweets: 403 Forbidden: No.":                                  &AppAuthError{apiErr},
		"app refused (usage_capped): POST /2/tweets: 403 Forbidden: No.":                        &AppError{Reason: AppUsageCapped, Err: apiErr},
		"outcome unknown: POST /2/tweets: 403 Forbidden: No.":                                   &AmbiguousError{apiErr},
		"refresh token not accepted: POST /2/tweets: 403 Forbidden: No.":                        &GrantRefusedError{apiErr},
		"refused (rule): POST /2/tweets: 403 Forbidden: No.":                                    &RefusedError{RefusedRule, apiErr},
		"token not accepted: POST /2/tweets: 403 Forbidden: No.":                                &UnauthorizedError{apiErr},
		"unavailable: POST /2/tweets: 403 Forbidden: No.":                                       &UnavailableError{apiErr},
		"not sent: POST /2/tweets: 403 Forbidden: No.":                                          &NotSentError{apiErr},
		"POST /2/tweets: 403 Forbidden: No. (window app_24h closed until 1970-01-01T00:00:00Z)": &RateLimitError{Window: Window{Kind: WindowApp24h}, Until: time.Unix(0, 0), Err: apiErr},
	} {
		if got := err.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if !errors.As(err, new(*APIError)) {
			t.Errorf("%T hides the answer", err)
		}
	}
}

func TestIsOutage(t *testing.T) {
	t.Parallel()

	wrap := func(err error) error { return fmt.Errorf("post: %w", err) }
	for name, tc := range map[string]struct {
		err  error
		want bool
	}{
		"cancelled": {&AmbiguousError{context.Canceled}, false},
		"dial":      {&NotSentError{errors.New("dial")}, true},
		"guard":     {&NotSentError{ErrNotAfter}, false},
		"lost read": {&UnavailableError{errors.New("reset")}, true},
		"nil":       {nil, false},
		"other":     {errors.New("disk full"), false},
		"timeout":   {wrap(&AmbiguousError{context.DeadlineExceeded}), true},
	} {
		if got := IsOutage(tc.err); got != tc.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
