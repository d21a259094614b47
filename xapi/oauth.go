package xapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

const (
	// DefaultExchangeTimeout bounds one exchange of a code or a refresh token, and
	// one revocation.
	DefaultExchangeTimeout = 10 * time.Second
	// accessTokenLifetime is X's, for an answer that leaves it out.
	accessTokenLifetime = 2 * time.Hour

	redacted = "REDACTED"
)

// OAuth is one X app: it asks accounts for their consent, exchanges what comes of
// it, and revokes. Its zero BaseURL is DefaultBaseURL. Its HTTPClient should be on a
// transport from NewTransport and be shared; nil opens new connections.
type OAuth struct {
	ClientID     string
	ClientSecret string // "" for a public client
	BaseURL      string
	// AuthorizeBaseURL is where people are asked for their consent. Where it is
	// empty, that is DefaultAuthorizeBaseURL for X's own BaseURL, and BaseURL for
	// any other: a simulator is all of X at one address.
	AuthorizeBaseURL string
	HTTPClient       *http.Client
	// Timeout bounds one request; DefaultExchangeTimeout where zero.
	Timeout time.Duration
	// Watch sees each exchange of a refresh token; nil sees nothing.
	Watch Watch
}

// String names the app and leaves its secret out of logs.
func (o OAuth) String() string { return "xapi.OAuth(" + o.ClientID + ")" }

// GoString is String.
func (o OAuth) GoString() string { return o.String() }

// LogValue is String.
func (o OAuth) LogValue() slog.Value { return slog.StringValue(o.String()) }

// TokenPair is what an exchange brought. What was exchanged for it is dead by now:
// both tokens must be stored before either is used. However a pair is printed or
// encoded, its tokens read REDACTED.
type TokenPair struct {
	AccessToken string
	// RefreshToken is the exchanged one if a refresh brought no new one. It is "" if a
	// consent brought none: offline.access was not granted.
	RefreshToken string
	ExpiresAt    time.Time
	Scope        string // separated by spaces, "" where X does not say
}

// String shows everything but the tokens.
func (p TokenPair) String() string {
	return fmt.Sprintf("{AccessToken:%s RefreshToken:%s ExpiresAt:%s Scope:%s}",
		redacted, redacted, p.ExpiresAt.Format(time.RFC3339), p.Scope)
}

// GoString is String.
func (p TokenPair) GoString() string { return "xapi.TokenPair" + p.String() }

// LogValue is String.
func (p TokenPair) LogValue() slog.Value { return slog.StringValue(p.String()) }

// MarshalJSON hides the tokens, so that none is stored or sent by accident.
func (p TokenPair) MarshalJSON() ([]byte, error) { return json.Marshal(p.String()) }

// GrantRefusedError says that X does not accept this refresh token: it was used
// before, has expired or was revoked. Another worker's exchange may be the reason.
type GrantRefusedError struct{ Err *APIError }

func (e *GrantRefusedError) Error() string { return "refresh token not accepted: " + e.Err.Error() }
func (e *GrantRefusedError) Unwrap() error { return e.Err }

// AppAuthError says that X does not accept the app: its id or secret is wrong or
// its type was changed. No user is to blame and no token is lost.
type AppAuthError struct{ Err *APIError }

func (e *AppAuthError) Error() string { return "app not accepted: " + e.Err.Error() }
func (e *AppAuthError) Unwrap() error { return e.Err }

// Refresh exchanges a refresh token, which can be used once. It is at most one
// request, bounded by Timeout and by WithNotAfter. After an AmbiguousError the
// token may be spent and its successors lost.
func (o *OAuth) Refresh(ctx context.Context, refreshToken string) (pair TokenPair, err error) {
	if refreshToken == "" {
		// x/oauth2 would refuse as well; nothing is sent.
		return TokenPair{}, &NotSentError{Err: fmt.Errorf("%s: %w: no refresh token", EndpointToken, errRequest)}
	}
	err = o.Watch.see(ctx, EndpointToken, func(ctx context.Context) error {
		pair, err = o.grant(ctx, refusedRefresh, []string{refreshToken}, func(ctx context.Context, conf oauth2.Config) (*oauth2.Token, error) {
			return conf.TokenSource(ctx, &oauth2.Token{RefreshToken: refreshToken}).Token()
		})
		return err
	})
	return pair, err
}

// grant makes one request of the token endpoint through the library, and gives its
// outcome a type. refused returns the error for a 400 that is about what was exchanged,
// or is nil. No error repeats a secret.
func (o *OAuth) grant(ctx context.Context, refused func(*APIError) error, secrets []string,
	ask func(context.Context, oauth2.Config) (*oauth2.Token, error),
) (TokenPair, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout())
	defer cancel()

	exchange := &exchange{hc: o.httpClient(), err: errNotTried}
	conf := oauth2.Config{
		ClientID:     o.ClientID,
		ClientSecret: o.ClientSecret,
		Endpoint:     oauth2.Endpoint{TokenURL: o.base() + "/2/oauth2/token"},
	}
	// The style is set, since the library would otherwise find it out by sending a
	// refused request, and with it the token, a second time.
	conf.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	if o.ClientSecret != "" {
		conf.Endpoint.AuthStyle = oauth2.AuthStyleInHeader
	}
	start := time.Now()
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: exchange})
	token, err := ask(ctx, conf)
	if err != nil {
		// The library's own errors quote the body: only what exchange saw counts.
		return TokenPair{}, o.grantError(exchange, refused, secrets)
	}
	lifetime := accessTokenLifetime
	if token.ExpiresIn > 0 {
		lifetime = time.Duration(token.ExpiresIn) * time.Second
	}
	scope, _ := token.Extra("scope").(string)
	return TokenPair{
		AccessToken:  token.AccessToken,
		RefreshToken: token.RefreshToken,
		ExpiresAt:    start.Add(lifetime),
		Scope:        scope,
	}, nil
}

func (o *OAuth) timeout() time.Duration { return cmp.Or(o.Timeout, DefaultExchangeTimeout) }

// base is the address that requests go to.
func (o *OAuth) base() string { return strings.TrimRight(firstOf(o.BaseURL, DefaultBaseURL), "/") }

func (o *OAuth) httpClient() *http.Client {
	if o.HTTPClient != nil {
		return withoutRedirects(o.HTTPClient)
	}
	return withoutRedirects(&http.Client{Transport: NewTransport()})
}

// grantError types a failed exchange.
func (o *OAuth) grantError(x *exchange, refused func(*APIError) error, secrets []string) error {
	if x.err != nil {
		return unanswered(EndpointToken, x.sent, x.err)
	}
	if x.ans.ok() {
		// Such a body may hold half a pair of live tokens: it goes no further.
		x.ans.body = nil
		return &AmbiguousError{Err: newAPIError(EndpointToken, x.ans)}
	}
	return classifyExchange(newAPIError(EndpointToken, x.ans, append(secrets, o.appSecrets()...)...), x.ans, refused)
}

// appSecrets is the app's secret in every form that a request has. No error repeats one
// of them.
func (o *OAuth) appSecrets() []string {
	if o.ClientSecret == "" {
		return nil
	}
	escaped := url.QueryEscape(o.ClientSecret)
	basic := base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(o.ClientID) + ":" + escaped))
	return []string{o.ClientSecret, escaped, basic}
}

// unanswered types a request that brought no answer.
func unanswered(endpoint Endpoint, sent bool, err error) error {
	err = fmt.Errorf("%s: %w", endpoint, err)
	if !sent {
		return &NotSentError{Err: err}
	}
	return &AmbiguousError{Err: err}
}

// classifyExchange types an answer of the app's own endpoints that is no success.
// What refused says of a 400 goes before the rest.
func classifyExchange(e *APIError, ans answer, refused func(*APIError) error) error {
	if rateLimited(e) {
		closed := closeWindow(e.Endpoint, ans, readWindows(e.Endpoint, ans))
		return &RateLimitError{Window: closed, Until: closed.Reset, Err: e}
	}
	if app := appError(e); app != nil {
		return app
	}
	if e.Status == http.StatusBadRequest {
		if err := refused(e); err != nil {
			return err
		}
	}
	switch {
	case e.Status == http.StatusUnauthorized, e.refusal() && e.spoken():
		return &AppAuthError{Err: e}
	case e.Status == http.StatusServiceUnavailable && e.Title == "temporarily_unavailable":
		return &UnavailableError{Err: e} // the endpoint's own word that it did nothing
	case e.refusal():
		return &UnavailableError{Err: e}
	default:
		// A gateway that fails or points elsewhere says nothing about what happened
		// behind it: the token may be spent.
		return &AmbiguousError{Err: e}
	}
}

// refusedRefresh types a 400 that is about the refresh token.
func refusedRefresh(e *APIError) error {
	if deadToken(e) {
		return &GrantRefusedError{Err: e}
	}
	return nil
}

// deadToken reports whether a 400 is about the token. X says invalid_request for that,
// not OAuth's invalid_grant, and also for a request that is wrong for any token. The
// sentence beside it decides.
func deadToken(e *APIError) bool {
	words := strings.ToLower(e.Detail)
	return e.Title == "invalid_grant" ||
		e.Title == "invalid_request" && strings.Contains(words, "token") && strings.Contains(words, "invalid")
}

// errNotTried is the error until the library has made its request.
var errNotTried = errors.New("exchange not tried")

// exchange is the transport under x/oauth2. It sends one guarded request and keeps
// what came of it, and so the library neither follows a redirect nor decides from
// its own errors what happened.
type exchange struct {
	hc   *http.Client
	ans  answer
	sent bool
	err  error
}

func (x *exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	x.ans, x.sent, x.err = send(x.hc, req, maxBodyBytes)
	if x.err != nil {
		return nil, x.err
	}
	return &http.Response{
		Status:     http.StatusText(x.ans.status),
		StatusCode: x.ans.status,
		// The library would read a body labelled as text as a form, and lose a pair
		// that X sent under a wrong label.
		Header:  http.Header{"Content-Type": {"application/json"}},
		Body:    io.NopCloser(bytes.NewReader(x.ans.body)),
		Request: req,
	}, nil
}
