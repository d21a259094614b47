package xapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

const (
	// DefaultExchangeTimeout bounds one exchange of a refresh token.
	DefaultExchangeTimeout = 10 * time.Second
	// accessTokenLifetime is X's, for an answer that leaves it out.
	accessTokenLifetime = 2 * time.Hour

	redacted = "REDACTED"
)

// OAuth exchanges refresh tokens for one X app. Its zero BaseURL is DefaultBaseURL.
// Its HTTPClient should be on a transport from NewTransport and be shared; nil
// opens new connections.
type OAuth struct {
	ClientID     string
	ClientSecret string // "" for a public client
	BaseURL      string
	HTTPClient   *http.Client
	// Timeout bounds one exchange; DefaultExchangeTimeout where zero.
	Timeout time.Duration
}

// String names the app and keeps its secret out of logs.
func (o OAuth) String() string { return "xapi.OAuth(" + o.ClientID + ")" }

// GoString is String.
func (o OAuth) GoString() string { return o.String() }

// LogValue is String.
func (o OAuth) LogValue() slog.Value { return slog.StringValue(o.String()) }

// TokenPair is what an exchange brought. The refresh token that was exchanged is
// dead by now: both tokens must be stored before either is used. However a pair is
// printed or encoded, its tokens read REDACTED.
type TokenPair struct {
	AccessToken  string
	RefreshToken string // the one exchanged, where X sent no new one
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
func (o *OAuth) Refresh(ctx context.Context, refreshToken string) (TokenPair, error) {
	if refreshToken == "" {
		// x/oauth2 would refuse as well; nothing is sent.
		return TokenPair{}, &NotSentError{Err: fmt.Errorf("%s: %w: no refresh token", EndpointToken, errRequest)}
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(o.Timeout, DefaultExchangeTimeout))
	defer cancel()

	exchange := &exchange{hc: o.httpClient(), err: errNotTried}
	conf := oauth2.Config{
		ClientID:     o.ClientID,
		ClientSecret: o.ClientSecret,
		Endpoint:     oauth2.Endpoint{TokenURL: strings.TrimRight(firstOf(o.BaseURL, DefaultBaseURL), "/") + "/2/oauth2/token"},
	}
	// The style is set, since the library would otherwise find it out by sending a
	// refused request, and with it the token, a second time.
	conf.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	if o.ClientSecret != "" {
		conf.Endpoint.AuthStyle = oauth2.AuthStyleInHeader
	}
	start := time.Now()
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: exchange})
	token, err := conf.TokenSource(ctx, &oauth2.Token{RefreshToken: refreshToken}).Token()
	if err != nil {
		// The library's own errors quote the body: only what exchange saw counts.
		return TokenPair{}, o.refreshError(exchange, refreshToken)
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

func (o *OAuth) httpClient() *http.Client {
	if o.HTTPClient != nil {
		return withoutRedirects(o.HTTPClient)
	}
	return withoutRedirects(&http.Client{Transport: NewTransport()})
}

// refreshError types a failed exchange.
func (o *OAuth) refreshError(x *exchange, refreshToken string) error {
	if x.err != nil {
		err := fmt.Errorf("%s: %w", EndpointToken, x.err)
		if !x.sent {
			return &NotSentError{Err: err}
		}
		return &AmbiguousError{Err: err}
	}
	if x.ans.ok() {
		// Such a body may hold half a pair of live tokens: it goes no further.
		x.ans.body = nil
		return &AmbiguousError{Err: newAPIError(EndpointToken, x.ans)}
	}
	apiErr := newAPIError(EndpointToken, x.ans, refreshToken, o.ClientSecret)
	if rateLimited(apiErr) {
		closed := closeWindow(EndpointToken, x.ans, readWindows(EndpointToken, x.ans))
		return &RateLimitError{Window: closed.Window, Until: closed.Reset, Err: apiErr}
	}
	return classifyExchange(apiErr)
}

// classifyExchange types an answer of the token endpoint that is neither a success
// nor a rate limit.
func classifyExchange(e *APIError) error {
	if stop := appStop(e); stop != nil {
		return stop
	}
	switch {
	case e.Status == http.StatusUnauthorized:
		return &AppAuthError{Err: e}
	case e.Status == http.StatusBadRequest && refusedGrant(e):
		return &GrantRefusedError{Err: e}
	case e.refusal() && e.spoken():
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

// refusedGrant reports whether a 400 is about the token. X says invalid_request for
// that, not OAuth's invalid_grant, and invalid_request also for a request that is
// wrong for any token: then the sentence beside it tells.
func refusedGrant(e *APIError) bool {
	words := strings.ToLower(e.Detail)
	return e.Title == "invalid_grant" ||
		e.Title == "invalid_request" && strings.Contains(words, "token") && strings.Contains(words, "invalid")
}

// errNotTried stands until the library has made its request.
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
