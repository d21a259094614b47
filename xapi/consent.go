package xapi

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/oauth2"
)

// DefaultAuthorizeBaseURL is where X asks people for their consent.
const DefaultAuthorizeBaseURL = "https://x.com"

// The scopes without which X refuses posts, and the uploads that go with them.
const (
	ScopePostWrite  = "tweet.write"
	ScopeMediaWrite = "media.write"
)

// ConsentScopes are what an account must consent to, so that posts with media
// can be made for it, and its tokens be renewed without it.
func ConsentScopes() []string {
	return []string{"tweet.read", ScopePostWrite, "users.read", "offline.access", ScopeMediaWrite}
}

// CodeRefusedError says that X gives no tokens for this consent: its code was used
// before or is older than 30 seconds, or the verifier or the redirect URI are not
// those that the consent was asked for with.
type CodeRefusedError struct{ Err *APIError }

func (e *CodeRefusedError) Error() string { return "authorization code not accepted: " + e.Err.Error() }
func (e *CodeRefusedError) Unwrap() error { return e.Err }

// NewVerifier makes the secret of one consent (PKCE): its hash goes through the
// browser with AuthorizeURL, and Exchange proves with it that both are of one party.
func NewVerifier() string { return oauth2.GenerateVerifier() }

// AuthorizeURL is the page on which X asks for consent to the scopes. From there
// the browser comes to redirectURI, which must be registered with the app exactly,
// with the state, 500 characters at most, and a code or an error.
func (o *OAuth) AuthorizeURL(state, verifier, redirectURI string, scopes []string) string {
	conf := oauth2.Config{
		ClientID: o.ClientID, RedirectURL: redirectURI, Scopes: scopes,
		Endpoint: oauth2.Endpoint{AuthURL: o.authorizeBase() + "/i/oauth2/authorize"},
	}
	return conf.AuthCodeURL(state, oauth2.S256ChallengeOption(verifier))
}

func (o *OAuth) authorizeBase() string {
	base := o.base()
	switch {
	case o.AuthorizeBaseURL != "":
		return strings.TrimRight(o.AuthorizeBaseURL, "/")
	case base == DefaultBaseURL:
		return DefaultAuthorizeBaseURL
	default:
		return base
	}
}

// Exchange trades the code of a consent, which can be used once and for 30 seconds.
// It is at most one request, bounded by Timeout and by WithNotAfter. X ends
// earlier pairs of the same user and app with it, so that after an AmbiguousError
// the user must be asked again.
func (o *OAuth) Exchange(ctx context.Context, code, verifier, redirectURI string) (TokenPair, error) {
	if code == "" || verifier == "" {
		return TokenPair{}, &NotSentError{Err: fmt.Errorf("%s: %w: no code or no verifier", EndpointToken, errRequest)}
	}
	return o.grant(ctx, refusedCode, []string{code, verifier}, func(ctx context.Context, conf oauth2.Config) (*oauth2.Token, error) {
		conf.RedirectURL = redirectURI
		return conf.Exchange(ctx, code, oauth2.VerifierOption(verifier))
	})
}

// refusedCode types a 400 that is about this consent alone. What is missing in
// every such request is not: then the app is at fault.
func refusedCode(e *APIError) error {
	words := strings.ToLower(e.Detail)
	about := false
	for _, part := range []string{"authorization code", "code verifier", "redirect uri"} {
		about = about || strings.Contains(words, part)
	}
	if e.Title == "invalid_grant" || e.Title == "invalid_request" && about {
		return &CodeRefusedError{Err: e}
	}
	return nil
}

// Revoke ends a token at X. nil says that X no longer accepts it, even if X never knew
// it. It is at most one request, bounded by Timeout and by WithNotAfter, and may be
// repeated. After an AmbiguousError the token may be alive or dead.
func (o *OAuth) Revoke(ctx context.Context, token string) error {
	if token == "" {
		return &NotSentError{Err: fmt.Errorf("%s: %w: no token", EndpointRevoke, errRequest)}
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout())
	defer cancel()
	req, err := o.revokeRequest(ctx, token)
	if err != nil {
		return &NotSentError{Err: fmt.Errorf("%s: %w: %w", EndpointRevoke, errRequest, err)}
	}
	ans, sent, err := send(o.httpClient(), req, maxBodyBytes)
	if err != nil {
		return unanswered(EndpointRevoke, sent, err)
	}
	if ans.ok() {
		return nil
	}
	e := newAPIError(EndpointRevoke, ans, append(o.appSecrets(), token)...)
	if e.Status == http.StatusBadRequest && deadToken(e) {
		return nil
	}
	return classifyExchange(e, ans, func(*APIError) error { return nil })
}

// revokeRequest identifies the app as the token endpoint expects it: by HTTP Basic if
// it has a secret, otherwise in the body.
func (o *OAuth) revokeRequest(ctx context.Context, token string) (*http.Request, error) {
	form := url.Values{"token": {token}}
	if o.ClientSecret == "" {
		form.Set("client_id", o.ClientID)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.base()+"/2/oauth2/revoke", strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if o.ClientSecret != "" {
		req.SetBasicAuth(url.QueryEscape(o.ClientID), url.QueryEscape(o.ClientSecret))
	}
	return req, nil
}
