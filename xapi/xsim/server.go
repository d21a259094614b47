package xsim

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Endpoints by the names that limits, faults and the call log use: X's own form in its
// table of rate limits.
const (
	EndpointAuthorize  = "GET /i/oauth2/authorize"
	EndpointToken      = "POST /2/oauth2/token"
	EndpointRevoke     = "POST /2/oauth2/revoke"
	EndpointCreatePost = "POST /2/tweets"
	EndpointDeletePost = "DELETE /2/tweets/:id"
	EndpointPosts      = "GET /2/tweets"
	EndpointPost       = "GET /2/tweets/:id"
	EndpointTimeline   = "GET /2/users/:id/tweets"
	EndpointMe         = "GET /2/users/me"
	EndpointUser       = "GET /2/users/:id"
	EndpointUserByName = "GET /2/users/by/username/:username"
	EndpointUpload     = "POST /2/media/upload"
	EndpointInitialize = "POST /2/media/upload/initialize"
	EndpointAppend     = "POST /2/media/upload/:id/append"
	EndpointFinalize   = "POST /2/media/upload/:id/finalize"
	EndpointStatus     = "GET /2/media/upload"
	EndpointMetadata   = "POST /2/media/metadata"
)

const (
	// maxBodyBytes is where the edge answers 413 without a body. It leaves room
	// for the largest image as base64, so that the API itself can refuse it.
	maxBodyBytes = 24 << 20

	// firstID gives ids nineteen digits, as today's have, even if a fake clock is
	// before X's epoch.
	firstID = int64(1_000_000_000_000_000_000)

	// snowflakeEpochMS is the instant, in Unix milliseconds, X's ids count from.
	snowflakeEpochMS = int64(1_288_834_974_657)

	apiVersion = "2.167"
)

// Server is X in memory. The zero value is ready and strict. Set the fields
// before the first call; afterwards use the methods, which are safe for
// concurrent use.
type Server struct {
	// Now is the server's clock for windows, expiry and dates; nil means time.Now.
	// Delays always use package time.
	Now func() time.Time

	// Logger gets one debug line a call; nil is silent.
	Logger *slog.Logger

	// Seed feeds the faults' probabilities, token values and transaction ids.
	Seed uint64

	// ClientID and ClientSecret are the registered app. With a secret, the app is
	// confidential: token and revoke calls need HTTP Basic. With an id alone, it
	// is public: client_id is needed in the body. With neither, any client is accepted.
	ClientID     string
	ClientSecret string

	// RedirectURIs are registered with the app: the authorize page takes these
	// alone, to the letter. Without any it takes all but localhost.
	RedirectURIs []string

	// AccessTokenTTL is the life of an access token; 0 means two hours.
	AccessTokenTTL time.Duration

	// RefreshTokenTTL is the life of a refresh token; 0 means 180 days.
	RefreshTokenTTL time.Duration

	// RevokeAccessOnRefresh ends the old access token when its pair is rotated.
	// By default it serves until it expires.
	RevokeAccessOnRefresh bool

	// KeepFamilyOnReplay makes a replayed refresh token merely refused. By default
	// the replay kills its family, which is the worst that was reported of X.
	KeepFamilyOnReplay bool

	// Limits are laid over [DefaultLimits]; see [Limit].
	Limits []Limit

	// ClosedWindowGrace is how long after an answer that closed a window a call
	// into it is still forgiven as having been under way; 0 forgives none.
	ClosedWindowGrace time.Duration

	// DuplicateWindow is how long an account may not repeat a text; 0 means 24
	// hours, negative switches the filter off.
	DuplicateWindow time.Duration

	// AllowEqualPosts keeps the call log from calling equal posts a violation, for
	// tests that mean to post one text twice. The duplicate filter is separate.
	AllowEqualPosts bool

	// TimelineLag is how long a new post is missing from its author's timeline.
	// Lookups by id see it at once.
	TimelineLag time.Duration

	// MediaTTL is the life of an uploaded medium; 0 means 24 hours. A chunked upload
	// has fifteen days to be finalized, and its medium this life from then on.
	MediaTTL time.Duration

	// MediaProcessing is how long a finalized GIF or video is not ready, a third of it
	// pending and the rest in progress; 0 means 3 seconds, negative none.
	MediaProcessing time.Duration

	// MaxAppendBytes is the largest media part of an append, as it is sent; 0 means
	// 4 MiB. The edge answers 413 without a body to more, as X's does to 5 MiB.
	MaxAppendBytes int

	// AllowReplies and AllowQuotes lift the rules against replying to, and
	// quoting, posts of others.
	AllowReplies bool
	AllowQuotes  bool

	// ReplicaLag is for how long a new post is "deleted or not visible" to a reply,
	// its author's own too.
	ReplicaLag time.Duration

	// Strict refuses what X's specification does not have although X is believed to
	// take it from clients that are widely used; see [Leniency].
	Strict bool

	// TooLongStatus is the status for a text over the limit: 0 means 403. Both
	// 403 and 400 have been seen.
	TooLongStatus int

	// Bounds in bytes that tests lower; 0 means maxPictureBytes, and journalSlack.
	mostPictures int
	journalSlack int64

	mu      sync.Mutex
	w       *world
	rand    *rand.Rand
	lastID  int64
	running sync.WaitGroup
	journal *journal // nil where nothing outlives the process

	stage    sync.Mutex // taken before mu: steps come between calls
	scenario *scenario  // nil for none
}

// world is everything Reset forgets.
type world struct {
	accounts map[string]*account
	handles  map[string]*account // by lower-case handle
	order    []*account

	access  map[string]*accessToken
	refresh map[string]*refreshToken
	codes   map[string]*authCode
	consent Consent // on the authorize page

	posts     map[string]*post
	postOrder []*post
	media     map[string]*medium
	mediaList []*medium

	pictures     []*medium // those whose bytes are stored, the oldest first
	pictureBytes int
	mostPictures int // bytes

	limits  []Limit
	windows map[windowKey]*window
	faults  []Fault
	callLog callLog

	unkept *[]any // what was touched since the last line of the journal; nil without one
}

// lock takes the mutex and makes sure that there is a world.
func (s *Server) lock() *world {
	s.mu.Lock()
	if s.rand == nil {
		s.rand = rand.New(rand.NewPCG(s.Seed, 0x78))
		s.lastID = firstID
	}
	if s.w == nil {
		s.w = s.newWorld()
	}
	return s.w
}

// unlock has what was changed under the lock in the journal before anybody hears of it.
func (s *Server) unlock() {
	if s.journal != nil && s.w != nil {
		s.keepChanges()
	}
	s.mu.Unlock()
}

func (s *Server) newWorld() *world {
	w := &world{
		accounts: map[string]*account{},
		handles:  map[string]*account{},
		access:   map[string]*accessToken{},
		refresh:  map[string]*refreshToken{},
		codes:    map[string]*authCode{},
		posts:    map[string]*post{},
		media:    map[string]*medium{},
		limits:   overlay(DefaultLimits(), s.Limits),
		windows:  map[windowKey]*window{},

		mostPictures: cmp.Or(s.mostPictures, maxPictureBytes),
	}
	if s.journal != nil {
		w.unkept = new([]any)
	}
	return w
}

// Reset forgets accounts, posts, media, windows, faults and the call log. Limits are
// again those of the field. Ids and token values go on, so that nothing old can be
// mistaken for something new.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.unlock()
	s.w = nil
	if s.journal != nil {
		s.w = s.newWorld()
		s.journal.rewrite(s.snapshot())
	}
}

// Wait returns when no call is under way. A synctest bubble needs it at its
// end where a client gave up on an answer that latency still holds.
func (s *Server) Wait() { s.running.Wait() }

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now().UTC()
	}
	return time.Now().UTC()
}

// nextID returns a snowflake: time in the high bits, always larger than the
// last. The caller holds the lock.
func (s *Server) nextID() string {
	s.lastID = max(s.lastID+1, (s.now().UnixMilli()-snowflakeEpochMS)<<22)
	return strconv.FormatInt(s.lastID, 10)
}

// passID keeps later ids above one that was given out.
func (s *Server) passID(id string) error {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return fmt.Errorf("id %q is no number", id)
	}
	s.lastID = max(s.lastID, n)
	return nil
}

// call is one request on its way through the server.
type call struct {
	r        *http.Request
	body     []byte
	endpoint string // "" for a path X does not have
	id       string // the path's id, if any
	text     string // the post's text, for faults that depend on it
	arrived  time.Time
	now      time.Time
	world    *world // in which it arrived: Reset may come before its end
	account  *account
	grant    *grant
	plan     plan
	windows  []*window
	shut     []*window // those of which the answer's headers say that nothing is left
	effect   bool
	refused  bool          // the refresh token or code is not accepted
	exchange *presentation // the call in the account's call log, if it presents a token of X's
	spent    *refreshToken // the one that the call exchanged
}

// answer is what the client gets: a response, or, if cut, a dead connection.
type answer struct {
	status      int
	contentType string
	location    string
	body        []byte
	header      http.Header
	cut         bool
}

// errCut is what RoundTrip returns for a cut connection: a reset while reading,
// as a real transport reports it, which proves nothing about the effect.
func errCut() error {
	return &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
}

// ServeHTTP implements [http.Handler]. A cut connection is closed with a reset.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.running.Add(1)
	defer s.running.Done()
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBodyBytes+1))
	if err != nil {
		return // The client left before its request was whole: nothing happens.
	}
	a := s.exchange(r, body)
	if a.cut {
		cut(w)
		return
	}
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.status)
	if _, err := w.Write(a.body); err != nil && s.Logger != nil {
		s.Logger.Debug("xsim.client_left", "path", r.URL.Path, "error", err)
	}
}

// cut closes the connection without an answer. Without linger the peer sees a
// reset, as behind a dying proxy.
func cut(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // HTTP/2 and recorders: net/http's own way to drop an exchange.
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// RoundTrip implements [http.RoundTripper] without a socket. If the request's
// context ends first, its error is returned at once, while the effect goes on
// as it would behind a real connection.
func (s *Server) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := readAndClose(r.Body)
	if err != nil {
		return nil, fmt.Errorf("read request body: %w", err)
	}
	ctx := r.Context()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	traceWritten(ctx)

	done := make(chan answer, 1)
	s.running.Go(func() { done <- s.exchange(r, body) })
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case a := <-done:
		if a.cut {
			return nil, errCut()
		}
		if t := httptrace.ContextClientTrace(ctx); t != nil && t.GotFirstResponseByte != nil {
			t.GotFirstResponseByte()
		}
		return a.response(r), nil
	}
}

// traceWritten reports to a client that watches its connection that the request has
// left, since nothing else in memory does.
func traceWritten(ctx context.Context) {
	t := httptrace.ContextClientTrace(ctx)
	if t == nil {
		return
	}
	if t.WroteHeaders != nil {
		t.WroteHeaders()
	}
	if t.WroteRequest != nil {
		t.WroteRequest(httptrace.WroteRequestInfo{})
	}
}

func readAndClose(body io.ReadCloser) ([]byte, error) {
	if body == nil {
		return nil, nil
	}
	data, err := io.ReadAll(io.LimitReader(body, maxBodyBytes+1))
	return data, errors.Join(err, body.Close())
}

func (a answer) response(r *http.Request) *http.Response {
	return &http.Response{
		Status:     fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)),
		StatusCode: a.status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        a.header,
		Body:          io.NopCloser(bytes.NewReader(a.body)),
		ContentLength: int64(len(a.body)),
		Request:       r,
	}
}

// exchange answers one request. Waiting happens between the locked steps,
// never inside them.
func (s *Server) exchange(r *http.Request, body []byte) answer {
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, "/_sim/"):
		return s.control(r, body)
	case r.Method == http.MethodGet && (path == "/" || path == "/_sim"): // a person who looks for the page
		return answer{status: http.StatusSeeOther, header: http.Header{"Location": {"/_sim/"}}}
	case path == "/favicon.ico": // a browser, not a client of X's
		return answer{status: http.StatusNotFound}
	}
	c := s.arrive(r, body)
	pause(c.plan.before)
	a := s.perform(c)
	pause(c.plan.after)
	if c.plan.kind() == FaultLostAnswer {
		hang(r.Context(), c.plan.fault.delay())
		a.cut = true
	}
	s.leave(c, a)
	if err := s.journalError(); err != nil {
		a = internalError(http.StatusInternalServerError, err.Error()) // nobody may rely on what was done
		a.header = http.Header{"Content-Type": {a.contentType}}
	}
	return a
}

// pause delays a call whether or not its client still waits.
func pause(d time.Duration) {
	if d > 0 {
		<-time.After(d)
	}
}

// hang waits for the client to give up, but not for ever.
func hang(ctx context.Context, limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// arrive says who calls what, and which faults will meet the call.
func (s *Server) arrive(r *http.Request, body []byte) *call {
	c := &call{r: r, body: body, arrived: s.now()} // before the locks, for which it may have to wait
	c.endpoint, c.id = route(r.Method, r.URL.Path)
	if c.endpoint == EndpointCreatePost {
		c.text = textOf(body)
	}
	s.stage.Lock()
	defer s.stage.Unlock()
	s.recognize(c)
	s.step(c)
	w := s.lock()
	defer s.unlock()
	c.world = w
	s.identify(c) // A step may have taken its token away.
	c.plan = w.plan(c, s.rand)
	w.present(c)
	return c
}

// recognize finds out who calls.
func (s *Server) recognize(c *call) {
	s.lock()
	defer s.unlock()
	s.identify(c)
}

// perform makes the effect and decides the answer.
func (s *Server) perform(c *call) answer {
	s.keepTime()
	w := s.lock()
	defer s.unlock()
	c.now = s.now()
	s.identify(c) // Latency may have outlived the token.
	a := s.decide(c)
	a = c.plan.spoil(c, a)
	a.header = s.headers(c, a)
	w.record(c, a)
	c.exchange.decided(c, a)
	if s.Logger != nil {
		s.Logger.Debug("xsim.call", "endpoint", c.endpoint, "path", c.r.URL.Path, "account", c.accountID(),
			"status", a.status, "effect", c.effect, "fault", c.plan.kind())
	}
	return a
}

// leave notes what the client now knows, which is nothing if it never got the answer.
func (s *Server) leave(c *call, a answer) {
	s.lock()
	defer s.unlock()
	delivered := !a.cut && c.r.Context().Err() == nil
	if delivered {
		now := s.now()
		for _, win := range c.shut {
			win.tell(now)
			c.touch(win)
		}
	}
	c.exchange.left(c, delivered && !c.plan.hidesAnswer())
	if c.spent != nil {
		c.spent.answered, c.spent.by = delivered && !c.plan.hidesAnswer(), nil
		c.touch(c.spent)
	}
}

// decide walks X's doors in order: edge, token, window, rules, effect. The
// faults that strike before the effect stand at the door they imitate.
func (s *Server) decide(c *call) answer {
	switch {
	case c.plan.kind() == FaultOutage:
		return problemAnswer(http.StatusServiceUnavailable, "")
	case c.plan.kind() == FaultCut && !c.plan.fault.After:
		return answer{cut: true}
	case len(c.body) > maxBodyBytes, c.endpoint == EndpointAppend && s.tooLarge(c):
		return answer{status: http.StatusRequestEntityTooLarge}
	case c.endpoint == "":
		s.violate(c, ViolationMalformedRequest, "no such endpoint: "+c.r.Method+" "+c.r.URL.Path)
		return notModelled(c.r)
	}
	if c.r.Header.Get("Idempotency-Key") != "" || c.r.Header.Get("X-Idempotency-Key") != "" {
		s.violate(c, ViolationMalformedRequest, "an idempotency key means nothing to X, but makes some transports replay")
	}
	handle, scopes := s.handler(c.endpoint)
	if scopes != nil {
		if c.account == nil {
			return problemAnswer(http.StatusUnauthorized, "")
		}
		if !s.admit(c) {
			return problemAnswer(http.StatusTooManyRequests, "")
		}
		if a, barred := c.account.barred(); barred {
			return a
		}
		if !c.grant.allows(scopes) {
			return forbidden(detailNotPermitted)
		}
	}
	if a, struck := s.strike(c); struck {
		return a
	}
	return handle(c)
}

// handler returns the endpoint's work and the scopes it needs; nil scopes mean
// that no bearer token is asked for.
func (s *Server) handler(endpoint string) (func(*call) answer, []string) {
	read := []string{"tweet.read", "users.read"}
	write := []string{"tweet.read", "tweet.write", "users.read"}
	switch endpoint {
	case EndpointAuthorize:
		return s.authorize, nil
	case EndpointToken:
		return s.token, nil
	case EndpointRevoke:
		return s.revoke, nil
	case EndpointCreatePost:
		return s.createPost, write
	case EndpointDeletePost:
		return s.deletePost, write
	case EndpointPosts:
		return s.lookUp, read
	case EndpointPost:
		return s.lookUp, read
	case EndpointTimeline:
		return s.timeline, read
	case EndpointMe, EndpointUser, EndpointUserByName:
		return s.users, read
	}
	return s.mediaHandler(endpoint), []string{"media.write"}
}

func (s *Server) mediaHandler(endpoint string) func(*call) answer {
	switch endpoint {
	case EndpointUpload:
		return s.upload
	case EndpointInitialize:
		return s.initialize
	case EndpointAppend:
		return s.appendSegment
	case EndpointFinalize:
		return s.finalize
	case EndpointStatus:
		return s.status
	default:
		return s.describe
	}
}

// route finds the endpoint of a path exactly: X forgives no trailing slash.
func route(method, path string) (endpoint, id string) {
	if path == "/2/oauth2/authorize" { // as the specification has it
		path = "/i/oauth2/authorize"
	}
	name := method + " " + path
	if isEndpoint(name) && !strings.Contains(name, ":") {
		return name, ""
	}
	seg := strings.Split(path, "/")
	switch {
	case len(seg) == 4 && seg[1] == "2" && seg[2] == "tweets":
		name, id = method+" /2/tweets/:id", seg[3]
	case len(seg) == 4 && seg[1] == "2" && seg[2] == "users":
		name, id = method+" /2/users/:id", seg[3]
	case len(seg) == 6 && strings.HasPrefix(path, "/2/users/by/username/"):
		name, id = method+" /2/users/by/username/:username", seg[5]
	case len(seg) == 5 && seg[1] == "2" && seg[2] == "users" && seg[4] == "tweets":
		name, id = method+" /2/users/:id/tweets", seg[3]
	case len(seg) == 6 && strings.HasPrefix(path, "/2/media/upload/"):
		name, id = method+" /2/media/upload/:id/"+seg[5], seg[4]
	}
	if id == "" || !isEndpoint(name) {
		return "", ""
	}
	return name, id
}

func isEndpoint(name string) bool {
	switch name {
	case EndpointAuthorize, EndpointToken, EndpointRevoke, EndpointCreatePost, EndpointDeletePost, EndpointPosts,
		EndpointPost, EndpointTimeline, EndpointMe, EndpointUser, EndpointUserByName, EndpointUpload, EndpointInitialize, EndpointAppend,
		EndpointFinalize, EndpointStatus, EndpointMetadata:
		return true
	}
	return false
}

// headers are those of every answer of X, and the call's windows.
func (s *Server) headers(c *call, a answer) http.Header {
	h := http.Header{}
	h.Set("Date", c.now.UTC().Format(http.TimeFormat))
	h.Set("Api-Version", apiVersion)
	h.Set("X-Transaction-Id", fmt.Sprintf("%016x", s.rand.Uint64()))
	if a.contentType != "" {
		h.Set("Content-Type", a.contentType)
	}
	if a.location != "" {
		h.Set("Location", a.location)
	}
	if len(c.windows) > 0 {
		h.Set("X-Access-Level", "read-write")
	}
	if !c.plan.bare() {
		for _, win := range c.windows {
			win.write(h)
			if win.closed() {
				c.shut = append(c.shut, win)
			}
		}
	}
	return h
}

func (c *call) accountID() string {
	if c.account == nil {
		return ""
	}
	return c.account.ID
}
