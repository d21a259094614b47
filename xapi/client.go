package xapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// DefaultBaseURL is where X serves its API, version 2.
	DefaultBaseURL = "https://api.x.com"

	// DefaultTimeout bounds one call, from waiting for a connection to the last
	// byte of the answer.
	DefaultTimeout = 15 * time.Second

	defaultUserAgent = "jetpost"

	// maxBodyBytes bounds every answer except a page of posts.
	maxBodyBytes = 64 << 10
	// maxPageBytes bounds a page of posts: 100 posts of 25,000 characters with
	// their link entities stay below it.
	maxPageBytes = 16 << 20
)

// Endpoint names one operation of X the way its rate limits are listed: the
// method and the path pattern.
type Endpoint string

// The endpoints this package calls.
const (
	EndpointCreatePost      Endpoint = "POST /2/tweets"
	EndpointDeletePost      Endpoint = "DELETE /2/tweets/:id"
	EndpointUploadMedia     Endpoint = "POST /2/media/upload"
	EndpointInitializeMedia Endpoint = "POST /2/media/upload/initialize"
	EndpointAppendMedia     Endpoint = "POST /2/media/upload/:id/append"
	EndpointFinalizeMedia   Endpoint = "POST /2/media/upload/:id/finalize"
	EndpointMediaStatus     Endpoint = "GET /2/media/upload"
	EndpointMediaMetadata   Endpoint = "POST /2/media/metadata"
	EndpointMe              Endpoint = "GET /2/users/me"
	EndpointUserPosts       Endpoint = "GET /2/users/:id/tweets"
	EndpointToken           Endpoint = "POST /2/oauth2/token"
	EndpointRevoke          Endpoint = "POST /2/oauth2/revoke"
)

// method returns the HTTP method, the first word of the endpoint.
func (e Endpoint) method() string {
	method, _, _ := strings.Cut(string(e), " ")
	return method
}

// Client calls X for one account. It is safe for concurrent use. Make one for
// each account, all on one shared *http.Client.
type Client struct {
	token   string
	base    string
	agent   string
	timeout time.Duration
	http    *http.Client
	limits  *Limits
	account string // in limits
	guard   func(Endpoint, func() error) error
	watch   Watch
}

// Option changes a Client that New is making.
type Option func(*Client)

// WithBaseURL sends requests to another server than DefaultBaseURL.
func WithBaseURL(base string) Option {
	return func(c *Client) { c.base = strings.TrimRight(base, "/") }
}

// WithHTTPClient shares hc's transport and its connections. The transport should come
// from NewTransport: with another one the write guard of WithNotAfter can only check
// the clock before it hands the request over, and fewer failures can be proved to be a
// NotSentError. Redirects are always refused.
func WithHTTPClient(hc *http.Client) Option {
	return func(c *Client) { c.http = withoutRedirects(hc) }
}

// WithUserAgent names the program to X.
func WithUserAgent(agent string) Option {
	return func(c *Client) { c.agent = agent }
}

// WithTimeout bounds each call; DefaultTimeout otherwise.
func WithTimeout(d time.Duration) Option {
	return func(c *Client) { c.timeout = d }
}

// WithLimits shares what is known of rate windows with other clients. The account is
// the caller's name for the owner of the token.
func WithLimits(l *Limits, account string) Option {
	return func(c *Client) { c.limits, c.account = l, account }
}

// New makes a Client that calls X with a user's OAuth 2.0 access token. Without
// WithHTTPClient it opens connections of its own.
func New(accessToken string, opts ...Option) *Client {
	c := &Client{
		token:   accessToken,
		base:    DefaultBaseURL,
		agent:   defaultUserAgent,
		timeout: DefaultTimeout,
		limits:  NewLimits(nil),
	}
	for _, opt := range opts {
		opt(c)
	}
	if c.http == nil {
		c.http = withoutRedirects(&http.Client{Transport: NewTransport()})
	}
	return c
}

// Guarded returns a Client of which guard makes each call to X, by calling do; or does
// not, and returns an error that says why. What is known about the account's rate
// windows is shared.
func (c *Client) Guarded(guard func(e Endpoint, do func() error) error) *Client {
	next := *c
	next.guard = guard
	return &next
}

// String names the server and leaves the access token out of logs.
func (c *Client) String() string { return "xapi.Client(" + c.base + ")" }

// GoString is String: the access token stays out of %#v too.
func (c *Client) GoString() string { return c.String() }

// withoutRedirects copies hc so that a redirect is an answer like any other: a
// post must not be repeated at an address that an answer names.
func withoutRedirects(hc *http.Client) *http.Client {
	plain := *hc
	plain.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &plain
}

// call is one request to make.
type call struct {
	endpoint    Endpoint
	path        string
	query       url.Values
	contentType string
	body        []byte
	maxBody     int64
	// effect marks a request that must not be made twice, so that an answer that
	// is lost or says 5xx leaves its outcome unknown.
	effect bool
	// atLeast is the time that the call needs whatever the client's timeout is.
	atLeast time.Duration
	// told, if set, gets the rate windows that the answer reports.
	told *[]Window
}

// do makes the call, if the guard lets it.
func (c *Client) do(ctx context.Context, cl call, out any, complete func() bool) error {
	perform := func() error {
		return c.watch.see(ctx, cl.endpoint, func(ctx context.Context) error { return c.perform(ctx, cl, out, complete) })
	}
	if c.guard == nil {
		return perform()
	}
	return c.guard(cl.endpoint, perform)
}

// perform makes the call, notes the rate windows of the answer and decodes it into
// out. A 2xx counts only when complete, asked after decoding, agrees; without an
// out, any 2xx will do.
func (c *Client) perform(ctx context.Context, cl call, out any, complete func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, max(c.timeout, cl.atLeast))
	defer cancel()

	req, err := c.newRequest(ctx, cl)
	if err != nil {
		return &NotSentError{Err: fmt.Errorf("%s: %w", cl.endpoint, err)}
	}
	ans, sent, err := send(c.http, req, max(cl.maxBody, maxBodyBytes))
	if err != nil {
		return lost(cl, sent, err)
	}
	ans.skew = c.limits.skew(ans)
	windows := readWindows(cl.endpoint, ans)
	c.limits.note(c.account, cl.endpoint, windows, ans.status, ans.at)
	for i, w := range windows {
		windows[i] = w.of(c.account)
	}
	if cl.told != nil {
		*cl.told = windows
	}

	if !ans.ok() {
		return c.failure(cl, ans, windows)
	}
	if out == nil {
		return nil
	}
	// The id decides, not the status or the neighbours: an answer with an id and
	// an odd field beside it still proves that the post exists.
	err = json.Unmarshal(ans.body, out)
	var odd *json.UnmarshalTypeError
	if (err == nil || cl.effect && errors.As(err, &odd)) && complete() {
		return nil
	}
	apiErr := newAPIError(cl.endpoint, ans, c.token)
	apiErr.Windows = windows
	if cl.effect {
		return &AmbiguousError{Err: apiErr}
	}
	return &UnavailableError{Err: apiErr}
}

// failure types an answer that is not a 2xx. A 429 closes a window even where
// the headers claim that something is left, so that window is noted here.
func (c *Client) failure(cl call, ans answer, windows []Window) error {
	apiErr := newAPIError(cl.endpoint, ans, c.token)
	apiErr.Windows = windows
	if !rateLimited(apiErr) {
		return classify(apiErr, cl.effect)
	}
	closed := c.limits.close(c.account, closeWindow(cl.endpoint, ans, windows))
	return &RateLimitError{Window: closed, Until: closed.Reset, Err: apiErr}
}

// lost types a request without an answer.
func lost(cl call, sent bool, err error) error {
	err = fmt.Errorf("%s: %w", cl.endpoint, err)
	switch {
	case !sent:
		return &NotSentError{Err: err}
	case cl.effect:
		return &AmbiguousError{Err: err}
	default:
		return &UnavailableError{Err: err}
	}
}

// errRequest marks a request that could not even be built.
var errRequest = errors.New("build request")

// newRequest builds the request. It never sets an Idempotency-Key: X ignores it,
// and net/http takes it as leave to repeat a POST on a dead connection.
func (c *Client) newRequest(ctx context.Context, cl call) (*http.Request, error) {
	target := c.base + cl.path
	if len(cl.query) > 0 {
		target += "?" + cl.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, cl.endpoint.method(), target, bytes.NewReader(cl.body))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRequest, err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", c.agent)
	if cl.contentType != "" {
		req.Header.Set("Content-Type", cl.contentType)
	}
	return req, nil
}

// answer is what X said: the body is whole, or cut at its limit or where the
// connection broke. Decoding finds out, so that the status still counts.
type answer struct {
	status int
	header http.Header
	body   []byte
	at     time.Time
	skew   time.Duration // our clock minus X's, as far as is known
}

func (a answer) ok() bool { return a.status >= 200 && a.status <= 299 }

// send makes one guarded request and reads the answer. Without an answer it
// reports whether any part of the request may have left.
func send(hc *http.Client, req *http.Request, maxBody int64) (ans answer, sent bool, err error) {
	if s := req.URL.Scheme; s != "http" && s != "https" || req.URL.Host == "" {
		return answer{}, false, fmt.Errorf("%w: %q is no address of a server", errRequest, req.URL.Redacted())
	}
	if err := req.Context().Err(); err != nil {
		return answer{}, false, err
	}
	f := newFlight(req.Context())
	if err := f.late(); err != nil {
		return answer{}, false, err
	}
	defer f.land()

	res, err := hc.Do(req.WithContext(f.trace(req.Context())))
	if err != nil {
		// The wrapper repeats the address, query and all; the cause says enough.
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		sent, err = f.abort(err)
		return answer{}, sent, err
	}
	defer func() { _ = res.Body.Close() }()
	at := time.Now()
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxBody))
	ans = answer{status: res.StatusCode, header: res.Header, body: body, at: at}
	ans.skew, _ = dateSkew(ans)
	return ans, true, nil
}
