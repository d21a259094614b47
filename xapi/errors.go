package xapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strings"
	"time"
)

// maxWordsBytes bounds what an error quotes from X.
const maxWordsBytes = 1 << 10

// APIError is an answer of X that is no success. It is reached with errors.As
// through each of this package's errors that came with an answer.
type APIError struct {
	Endpoint Endpoint
	Status   int
	// Type, Title and Detail are the members of a problem document, empty if X sent
	// none. Title and Detail hold OAuth's error and error_description.
	Type, Title, Detail string
	// Problem is the last path segment of Type, which outlived a change of host.
	Problem string
	// Code is the number of the older error form, 0 for none.
	Code int
	// Messages are the texts of the errors list.
	Messages []string
	// Reason distinguishes the kinds of a client-forbidden problem.
	Reason string
	// ResetDate is the day on which a spend cap ends, as X wrote it.
	ResetDate string
	// AccessLevel is what the app may do for this user, by X's header.
	AccessLevel string
	// TransactionID is what X's support asks for.
	TransactionID string
	// Body is the answer as it came, cut at 64 KiB, without this request's secrets.
	Body []byte
	// Windows are the rate windows that the answer reported.
	Windows []Window
}

func (e *APIError) Error() string {
	s := fmt.Sprintf("%s: %d", e.Endpoint, e.Status)
	if text := http.StatusText(e.Status); text != "" {
		s += " " + text
	}
	if words := e.Words(); words != "" {
		s += ": " + words
	}
	return s
}

// Words returns X's own words: the detail and the messages beside it, else the
// title. They are empty for an empty body or a page of HTML.
func (e *APIError) Words() string {
	words := e.Detail
	for _, m := range e.Messages {
		if !strings.Contains(words, m) {
			words += " " + m
		}
	}
	if words = strings.TrimSpace(words); words == "" {
		words = e.Title
	}
	if len(words) > maxWordsBytes {
		words = strings.ToValidUTF8(words[:maxWordsBytes], "") + "..."
	}
	return words
}

// wireError is the union of the error forms that X is known to send. The forms are
// recognised by their members, since neither content types nor bodies are reliable.
type wireError struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Detail    string `json:"detail"`
	Reason    string `json:"reason"`
	ResetDate string `json:"reset_date"`
	Code      int    `json:"code"`
	Message   string `json:"message"`
	Errors    []struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
		Detail  string `json:"detail"`
		Type    string `json:"type"`
	} `json:"errors"`
	OAuthError       string `json:"error"`
	OAuthDescription string `json:"error_description"`
}

// newAPIError reads an answer's error. A secret that X echoed is taken out first.
func newAPIError(e Endpoint, ans answer, secrets ...string) *APIError {
	body := ans.body[:min(len(ans.body), maxBodyBytes)]
	for _, s := range secrets {
		if s != "" {
			body = bytes.ReplaceAll(body, []byte(s), []byte(redacted))
		}
	}
	// A member of an unexpected type is skipped and the rest still decoded; what
	// cannot be read at all leaves the members empty.
	var w wireError
	_ = json.Unmarshal(body, &w)

	apiErr := &APIError{
		Endpoint:      e,
		Status:        ans.status,
		Type:          w.Type,
		Title:         firstOf(w.Title, w.OAuthError),
		Detail:        firstOf(w.Detail, w.OAuthDescription, w.Message),
		Code:          w.Code,
		Reason:        w.Reason,
		ResetDate:     w.ResetDate,
		AccessLevel:   ans.header.Get("X-Access-Level"),
		TransactionID: ans.header.Get("X-Transaction-Id"),
		Body:          body,
	}
	for _, item := range w.Errors {
		if m := firstOf(item.Message, item.Detail); m != "" {
			apiErr.Messages = append(apiErr.Messages, m)
		}
		if apiErr.Code == 0 {
			apiErr.Code = item.Code
		}
		apiErr.Type = firstOf(apiErr.Type, item.Type)
	}
	if strings.Contains(apiErr.Type, "/") {
		apiErr.Problem = path.Base(apiErr.Type)
	}
	return apiErr
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// NotSentError says that no byte of the request left, so that it may be sent
// again: the connection could not be made, or the write guard refused.
type NotSentError struct{ Err error }

func (e *NotSentError) Error() string { return "not sent: " + e.Err.Error() }
func (e *NotSentError) Unwrap() error { return e.Err }

// AmbiguousError says that the request may or may not have had its effect: the answer
// was lost, was a 5xx, or was a success that names nothing. It must not be sent again
// before X has been asked. Err is an *APIError if there was an answer.
type AmbiguousError struct{ Err error }

func (e *AmbiguousError) Error() string { return "outcome unknown: " + e.Err.Error() }
func (e *AmbiguousError) Unwrap() error { return e.Err }

// UnavailableError says that nothing was changed and that the same request may succeed
// later. It covers reads and repeatable writes that failed with a 5xx or without an
// answer, and refusals by X's edge without X's own words, such as an empty 404 or 413.
// Err is an *APIError if there was an answer.
type UnavailableError struct{ Err error }

func (e *UnavailableError) Error() string { return "unavailable: " + e.Err.Error() }
func (e *UnavailableError) Unwrap() error { return e.Err }

// RateLimitError is a 429: Window is closed until Until, by this machine's clock.
type RateLimitError struct {
	Window
	Until time.Time
	Err   *APIError
}

func (e *RateLimitError) Error() string {
	return fmt.Sprintf("%v (window %s closed until %s)", e.Err, e.Kind, e.Until.UTC().Format(time.RFC3339))
}
func (e *RateLimitError) Unwrap() error { return e.Err }

// AppWide reports whether the closed window is the app's, so that every other
// account is limited too.
func (e *RateLimitError) AppWide() bool { return e.Scope() == ScopeApp }

// AppReason says why X refuses everything from the app.
type AppReason string

// The reasons of an AppError.
const (
	AppUsageCapped       AppReason = "usage_capped"
	AppCreditsDepleted   AppReason = "credits_depleted"
	AppSpendCapReached   AppReason = "spend_cap_reached"
	AppClientNotEnrolled AppReason = "client_not_enrolled"
	// AppReadOnly: the app's settings give it no permission to write.
	AppReadOnly AppReason = "app_read_only"
	// AppSuspended: X has suspended the app.
	AppSuspended AppReason = "app_suspended"
	// AppClientForbidden: X does not let this app use what it called.
	AppClientForbidden AppReason = "client_forbidden"
)

// AppError says that X refuses the whole app. The request is as good as
// before and blameless. Until is the day a spend cap ends, else zero for unknown:
// the rate headers of such an answer say nothing about it.
type AppError struct {
	Reason AppReason
	Until  time.Time
	Err    *APIError
}

func (e *AppError) Error() string { return fmt.Sprintf("app refused (%s): %v", e.Reason, e.Err) }
func (e *AppError) Unwrap() error { return e.Err }

// AccountReason says why X refuses everything from one account.
type AccountReason string

// The reasons of an AccountError.
const (
	AccountSuspended AccountReason = "account_suspended"
	// AccountLocked: until its owner has logged in on X.
	AccountLocked AccountReason = "account_locked"
)

// AccountError says that X refuses the whole account. The request is as good as before
// and blameless; such things are lifted at times.
type AccountError struct {
	Reason AccountReason
	Err    *APIError
}

func (e *AccountError) Error() string {
	return fmt.Sprintf("account refused (%s): %v", e.Reason, e.Err)
}
func (e *AccountError) Unwrap() error { return e.Err }

// UnauthorizedError is a 401. One is no proof that the user revoked the app: a
// token may have just been replaced, and X has answered 401 to everybody for hours.
type UnauthorizedError struct{ Err *APIError }

func (e *UnauthorizedError) Error() string { return "token not accepted: " + e.Err.Error() }
func (e *UnauthorizedError) Unwrap() error { return e.Err }

// RefusedKind says what X objects to.
type RefusedKind string

// The kinds of a RefusedError.
const (
	// RefusedDuplicate: equal content was posted before. After an attempt whose
	// outcome is unknown it hints that the attempt succeeded.
	RefusedDuplicate RefusedKind = "duplicate"
	// RefusedMediaInvalid: X says so of nearly every trouble with media, also of
	// an id that expired; a fresh upload may help.
	RefusedMediaInvalid RefusedKind = "media_invalid"
	// RefusedParentGone: the post to reply to is deleted or not visible.
	RefusedParentGone RefusedKind = "parent_gone"
	// RefusedForNow: X takes it for automated, and asks to try again later.
	RefusedForNow  RefusedKind = "for_now"
	RefusedTooLong RefusedKind = "too_long"
	// RefusedRule: replies and quotes without a mention, cashtags, video length.
	RefusedRule RefusedKind = "rule"
	// RefusedPermission: X's catch-all, sent among others for a missing scope, a
	// locked account or a long post without Premium.
	RefusedPermission RefusedKind = "permission"
	// RefusedAuthentication: the endpoint does not take this kind of token.
	RefusedAuthentication RefusedKind = "authentication"
	RefusedNotFound       RefusedKind = "not_found"
	// RefusedInvalid: any other 400.
	RefusedInvalid RefusedKind = "invalid"
	RefusedOther   RefusedKind = "other"
)

// RefusedError says that X understood the request and will not do it, now or
// later.
type RefusedError struct {
	Kind RefusedKind
	Err  *APIError
}

func (e *RefusedError) Error() string { return fmt.Sprintf("refused (%s): %v", e.Kind, e.Err) }
func (e *RefusedError) Unwrap() error { return e.Err }

// IsOutage reports whether err is a failure of X or of the network: a 5xx, or no answer
// at all. A refusal, a limit and a request that this process withheld are not, whatever
// wraps them.
func IsOutage(err error) bool {
	var apiErr *APIError
	if errors.As(err, &apiErr) {
		return apiErr.Status >= 500
	}
	for _, own := range []error{context.Canceled, ErrNotAfter, errRequest} {
		if errors.Is(err, own) {
			return false
		}
	}
	var notSent *NotSentError
	var ambiguous *AmbiguousError
	var unavailable *UnavailableError
	return errors.As(err, &notSent) || errors.As(err, &ambiguous) || errors.As(err, &unavailable)
}

// rateLimited reports whether waiting for a window helps. A usage cap is a 429 too,
// and outlasts every window.
func rateLimited(e *APIError) bool {
	return e.Status == http.StatusTooManyRequests && appError(e) == nil
}

// classify types every answer that is neither a success nor a rate limit. The
// status decides first; words only tell the kinds of one status apart.
func classify(e *APIError, effect bool) error {
	if app := appError(e); app != nil {
		return app
	}
	if account := wholeRefusal(e); account != nil {
		return account
	}
	switch {
	case e.Status == http.StatusUnauthorized:
		return &UnauthorizedError{Err: e}
	case e.Status == http.StatusBadRequest, e.refusal() && e.spoken():
		return &RefusedError{Kind: refusedKind(e), Err: e}
	case e.refusal() || !effect:
		return &UnavailableError{Err: e}
	default:
		return &AmbiguousError{Err: e}
	}
}

// refusal reports whether the status proves that nothing was done. A 408 does
// not: it comes from a server that gave up waiting, and so do redirects and 5xx
// leave open how far the request got.
func (e *APIError) refusal() bool {
	return e.Status >= 400 && e.Status < 500 && e.Status != http.StatusRequestTimeout
}

// spoken reports whether the answer has words of X in it, and does not come from
// the edge in front.
func (e *APIError) spoken() bool { return e.Words() != "" || e.Type != "" }

// appError returns the *AppError of an answer, or nil. Only three statuses can be one,
// and only whole sentences of X's, so that no text in a refused post can pause the app.
func appError(e *APIError) *AppError {
	title := strings.ToLower(strings.ReplaceAll(e.Title, " ", ""))
	app := &AppError{Err: e}
	spendCap := title == "spendcapreached" || e.ResetDate != ""
	credits := e.Problem == "credits" || e.Problem == "credits-depleted" || title == "creditsdepleted"
	switch {
	case e.Status == http.StatusTooManyRequests && (e.Problem == "usage-capped" || title == "usagecapexceeded"):
		app.Reason = AppUsageCapped
	case e.Status == http.StatusPaymentRequired && !spendCap,
		e.Status == http.StatusForbidden && credits && !spendCap:
		app.Reason = AppCreditsDepleted
	case (e.Status == http.StatusPaymentRequired || e.Status == http.StatusForbidden) && spendCap:
		app.Reason = AppSpendCapReached
		app.Until = parseResetDate(e.ResetDate)
	default:
		app = nil
		_ = errors.As(wholeRefusal(e), &app) // otherwise it is not about the app
	}
	return app
}

// whole is one answer of X that is about all that an account or the app may do. Each
// member that is set is a mark of it; one is enough.
type whole struct {
	code    int    // of the older error form
	problem string // the last segment of the type
	reason  string // of a client-forbidden problem
	words   string // all of a sentence that X is known to use, in small letters
	level   string // of access
	account AccountReason
	app     AppReason
}

// wholeRefusals is the one table of them, for the status 403 alone; the first that fits
// counts.
var wholeRefusals = []whole{
	{code: 64, problem: "user-suspended", words: "user used for authentication is suspended", account: AccountSuspended},
	{code: 326, words: "this account is temporarily locked", account: AccountLocked},
	{reason: "client-not-enrolled", app: AppClientNotEnrolled},
	{problem: "client-forbidden", app: AppClientForbidden},
	{code: 261, problem: "oauth1-permissions", words: "application cannot perform write actions", level: "read", app: AppReadOnly},
	{code: 416, words: "invalid / suspended application", app: AppSuspended},
}

// wholeRefusal returns the *AccountError or *AppError of an answer, or nil.
func wholeRefusal(e *APIError) error {
	if e.Status != http.StatusForbidden {
		return nil
	}
	words := strings.ToLower(e.Words())
	for _, w := range wholeRefusals {
		switch {
		case w.code != 0 && w.code == e.Code, w.problem != "" && w.problem == e.Problem, w.reason != "" && w.reason == e.Reason,
			w.words != "" && strings.Contains(words, w.words), w.level != "" && w.level == e.AccessLevel && e.spoken():
		default:
			continue
		}
		if w.account != "" {
			return &AccountError{Reason: w.account, Err: e}
		}
		return &AppError{Reason: w.app, Err: e}
	}
	return nil
}

// parseResetDate reads the day a billing cycle begins, in UTC.
func parseResetDate(s string) time.Time {
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil {
			return t
		}
	}
	return time.Time{}
}

// refusedKind names what X objects to, by X's number if there is one, otherwise by X's
// known sentences. Unknown words only cost the name.
func refusedKind(e *APIError) RefusedKind {
	words := strings.ToLower(e.Words())
	has := func(phrases ...string) bool {
		for _, p := range phrases {
			if strings.Contains(words, p) {
				return true
			}
		}
		return false
	}
	switch {
	case e.Code == 187, has("duplicate content"):
		return RefusedDuplicate
	case e.Code == 385, has("reply to a tweet that is deleted", "reply to a post that is deleted", "reply tweet id is invalid", "reply post id is invalid"):
		return RefusedParentGone
	case e.Code == 226, has("looks like it might be automated"):
		return RefusedForNow
	case e.Code == 186, has("text is too long"):
		return RefusedTooLong
	case has("media ids are invalid"):
		return RefusedMediaInvalid
	case has("have not been mentioned", "cashtag", "post a video longer than"):
		return RefusedRule
	case e.Problem == "unsupported-authentication":
		return RefusedAuthentication
	case has("not permitted to perform this action"), e.Problem == "not-authorized-for-resource":
		return RefusedPermission
	case e.Status == http.StatusNotFound:
		return RefusedNotFound
	case e.Status == http.StatusBadRequest:
		return RefusedInvalid
	default:
		return RefusedOther
	}
}
