package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	mostTokens = 1_000_000 // calls that each window of the stub still has
	tokenLife  = 7200      // seconds
)

// stubX is an X that takes everything, after a delay, and notes when each post
// came. It is no simulator: it checks nothing but that no post comes twice.
type stubX struct {
	url    string
	server *http.Server
	delay  atomic.Int64 // of each call that makes something, in nanoseconds
	ids    atomic.Int64

	mu    sync.Mutex
	came  map[string]time.Time // by text
	order []string             // texts, as they came
	twice []string
	want  int           // posts to come until reached is closed
	all   chan struct{} // closed by the last of them

	exchanges atomic.Int64
	lastToken atomic.Int64 // when the latest exchange was answered, UnixNano
}

func startX(ctx context.Context) (*stubX, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	x := &stubX{url: "http://" + l.Addr().String()}
	x.reset(0)
	// Ids are as large as X's, and grow.
	x.ids.Store(2_000_000_000_000_000_000)
	x.server = &http.Server{Handler: x, ReadHeaderTimeout: startTime}
	go func() { _ = x.server.Serve(l) }()
	return x, nil
}

// reset forgets everything; each call takes as long from now on.
func (x *stubX) reset(delay time.Duration) {
	x.delay.Store(int64(delay))
	x.exchanges.Store(0)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.came, x.order, x.twice, x.want, x.all = map[string]time.Time{}, nil, nil, 0, nil
}

// expect returns what is closed once so many posts have come since the reset.
func (x *stubX) expect(posts int) <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.want, x.all = posts, make(chan struct{})
	if len(x.came) >= posts {
		close(x.all)
	}
	return x.all
}

func (x *stubX) posts() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.came)
}

// arrivals are when each text came, and which came more than once.
func (x *stubX) arrivals() (came map[string]time.Time, order, twice []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	// A round that was cut goes on while its call log is read.
	return maps.Clone(x.came), slices.Clone(x.order), slices.Clone(x.twice)
}

func (x *stubX) note(text string) {
	now := time.Now()
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, is := x.came[text]; is {
		x.twice = append(x.twice, text)
		return
	}
	x.came[text] = now
	x.order = append(x.order, text)
	if len(x.came) == x.want {
		close(x.all)
	}
}

// ServeHTTP answers each endpoint that jetpost uses.
func (x *stubX) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	switch path := r.URL.Path; {
	case path == "/2/users/me":
		x.answer(w, http.StatusOK, x.me(r))
	case path == "/2/tweets":
		x.post(w, r, body)
	case strings.HasPrefix(path, "/2/media"):
		x.wait(r)
		id := strconv.FormatInt(x.ids.Add(1), 10)
		x.answer(w, http.StatusOK, fmt.Sprintf(`{"data":{"id":%q,"media_key":"3_%s","expires_after_secs":86400}}`, id, id))
	case path == "/2/oauth2/token":
		x.wait(r)
		n := x.exchanges.Add(1)
		x.answer(w, http.StatusOK, fmt.Sprintf(`{"token_type":"bearer","expires_in":%d,"access_token":"access-%d","refresh_token":"refresh-%d","scope":"tweet.read tweet.write users.read offline.access media.write"}`, tokenLife, n, n))
		x.lastToken.Store(time.Now().UnixNano())
	default:
		http.NotFound(w, r)
	}
}

func (x *stubX) post(w http.ResponseWriter, r *http.Request, body []byte) {
	var post struct {
		Text string `json:"text"`
	}
	if json.Unmarshal(body, &post) != nil {
		http.Error(w, "no JSON", http.StatusBadRequest)
		return
	}
	x.note(post.Text)
	x.wait(r)
	var text bytes.Buffer
	_ = json.NewEncoder(&text).Encode(post.Text) // a string always can
	x.answer(w, http.StatusCreated, fmt.Sprintf(`{"data":{"id":"%d","text":%s}}`, x.ids.Add(1), bytes.TrimSpace(text.Bytes())))
}

// me takes the user from the token, which startAccounts has named for it.
func (x *stubX) me(r *http.Request) string {
	name := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer access-of-")
	return fmt.Sprintf(`{"data":{"id":"1%s","username":%q,"name":"bench","subscription_type":"Premium"}}`, strings.TrimLeft(name, "a"), name)
}

func (x *stubX) wait(r *http.Request) {
	if delay := time.Duration(x.delay.Load()); delay > 0 {
		_ = pause(r.Context(), delay) // a client that has gone has its own reasons
	}
}

func (x *stubX) answer(w http.ResponseWriter, status int, body string) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Rate-Limit-Limit", strconv.Itoa(mostTokens))
	h.Set("X-Rate-Limit-Remaining", strconv.Itoa(mostTokens-1))
	h.Set("X-Rate-Limit-Reset", strconv.FormatInt(time.Now().Add(15*time.Minute).Unix(), 10))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // the caller may be dead by now
}
