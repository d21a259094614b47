package xsim_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/jetpost/jetpost/internal/xspectest"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// testBundle is one X with one account, reached without sockets.
type testBundle struct {
	*testing.T
	x     *xsim.Server
	spec  *xspectest.Proxy
	grant xsim.Grant
	clock *clock
}

type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	c := &clock{at: time.Date(2026, 11, 23, 12, 0, 0, 300e6, time.UTC)}
	b := with(t, &xsim.Server{Now: c.now})
	b.clock = c
	b.grant = b.account(xsim.NewAccount{Handle: "ann"})
	return b
}

// with is an X of the test's own, without accounts.
func with(t *testing.T, x *xsim.Server) *testBundle {
	t.Helper()
	b := &testBundle{T: t, x: x}
	var err error
	if b.spec, err = xspectest.New("openapi.json", b.x); err != nil {
		t.Fatal(err)
	}
	b.spec.Requests.Store(false) // many are wrong on purpose
	t.Cleanup(func() {
		for _, v := range b.spec.Violations() {
			t.Errorf("an answer is not of X's specification: %s", v)
		}
	})
	return b
}

func (b *testBundle) account(n xsim.NewAccount) xsim.Grant {
	b.Helper()
	g, err := b.x.AddAccount(n)
	if err != nil {
		b.Fatal(err)
	}
	return g
}

// result is an answer, read whole.
type result struct {
	status int
	header http.Header
	body   string
}

func (b *testBundle) try(g xsim.Grant, method, path, contentType, body string) (result, error) {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), method, "https://api.x.com"+path, strings.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+g.AccessToken)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return send(&http.Client{Transport: b.spec}, req)
}

func send(client *http.Client, req *http.Request) (result, error) {
	resp, err := client.Do(req)
	if err != nil {
		return result{}, err
	}
	data, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	return result{resp.StatusCode, resp.Header, string(data)}, err
}

func (b *testBundle) do(g xsim.Grant, method, path, contentType, body string) result {
	b.Helper()
	r, err := b.try(g, method, path, contentType, body)
	if err != nil {
		b.Fatal(err)
	}
	return r
}

func (b *testBundle) create(g xsim.Grant, body string) result {
	b.Helper()
	return b.do(g, "POST", "/2/tweets", "application/json", body)
}

// post creates a post that must succeed and returns its id.
func (b *testBundle) post(g xsim.Grant, text, parent string) string {
	b.Helper()
	body := map[string]any{"text": text}
	if parent != "" {
		body["reply"] = map[string]string{"in_reply_to_tweet_id": parent}
	}
	data, _ := json.Marshal(body)
	r := b.create(g, string(data))
	b.want(r, 201, "")
	return field(b.T, r.body, "data", "id")
}

func (b *testBundle) refresh(token string) result {
	b.Helper()
	return b.do(xsim.Grant{}, "POST", "/2/oauth2/token", "application/x-www-form-urlencoded",
		url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}.Encode())
}

// want compares the status and, unless it is empty, the body.
func (b *testBundle) want(r result, status int, body string) {
	b.Helper()
	if r.status != status || body != "" && r.body != body {
		b.Fatalf("got %d %s\nwant %d %s", r.status, r.body, status, body)
	}
}

func (b *testBundle) wantViolations(kinds ...string) {
	b.Helper()
	got := []string{}
	for _, v := range b.x.Violations() {
		got = append(got, v.Kind)
	}
	if diff := cmp.Diff(append([]string{}, kinds...), got); diff != "" {
		b.Fatalf("violations (-want +got):\n%s\n%+v", diff, b.x.Violations())
	}
}

func (b *testBundle) faults(faults ...xsim.Fault) {
	b.Helper()
	b.spec.Answers.Store(false) // those of faults are what a test makes of them
	if err := b.x.SetFaults(faults); err != nil {
		b.Fatal(err)
	}
}

// field digs a string out of a JSON object.
func field(t *testing.T, body string, path ...string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	for _, name := range path {
		object, _ := v.(map[string]any)
		v = object[name]
	}
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

const (
	unauthorized = `{"title":"Unauthorized","type":"about:blank","status":401,"detail":"Unauthorized"}`
	tooMany      = `{"title":"Too Many Requests","detail":"Too Many Requests","type":"about:blank","status":429}`
	badToken     = `{"error":"invalid_request","error_description":"Value passed for the token was invalid."}`
)

func problem403(detail string) string {
	return `{"detail":"` + detail + `","type":"https://api.x.com/2/problems/not-authorized-for-resource","title":"Forbidden","status":403,"resource_type":"post"}`
}

func TestBearer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.want(b.do(b.grant, "GET", "/2/users/me", "", ""), 200,
		`{"data":{"id":"`+b.grant.ID+`","name":"ann","username":"ann"}}`)
	b.want(b.do(xsim.Grant{AccessToken: "nonsense"}, "GET", "/2/users/me", "", ""), 401, unauthorized)
	b.clock.pass(2 * time.Hour)
	b.want(b.do(b.grant, "GET", "/2/users/me", "", ""), 401, unauthorized)
	b.wantViolations()
}

func TestScopes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.account(xsim.NewAccount{Handle: "reader", Scope: "tweet.read users.read"})
	if g.RefreshToken != "" {
		t.Error("a refresh token without offline.access")
	}
	b.want(b.create(g, `{"text":"no"}`), 403, problem403("You are not permitted to perform this action."))
	b.want(b.do(g, "POST", "/2/media/upload", "application/json", `{}`), 403, "")
	b.want(b.do(g, "GET", "/2/users/me", "", ""), 200, "")
}

func TestUnknownPath(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, path := range []string{"/2/tweets/", "/1.1/statuses/update.json", "/2/users/1/tweets/2"} {
		if r := b.do(b.grant, "GET", path, "", ""); r.status != 501 || !strings.Contains(r.body, "does not model GET "+path) {
			t.Errorf("%s: %d %q, want a 501 that says so", path, r.status, r.body)
		}
	}
	b.wantViolations("malformed_request", "malformed_request", "malformed_request")
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.do(b.grant, "GET", "/2/users/me", "", "")
	if got := r.header.Get("Date"); got != "Mon, 23 Nov 2026 12:00:00 GMT" {
		t.Errorf("Date is %q, want the server's clock", got)
	}
	for _, name := range []string{"X-Transaction-Id", "Api-Version", "Content-Type"} {
		if r.header.Get(name) == "" {
			t.Errorf("no %s", name)
		}
	}
}

// The same exchange over a socket, where a cut is a closed connection.
func TestServeHTTP(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("cut_after_%v", after), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			server := httptest.NewServer(b.x)
			t.Cleanup(server.Close)
			b.faults(xsim.Fault{Kind: xsim.FaultCut, After: after, Times: 1, Endpoint: xsim.EndpointCreatePost})
			create := func() (result, error) {
				req, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/2/tweets", strings.NewReader(`{"text":"over tcp"}`))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+b.grant.AccessToken)
				req.Header.Set("Content-Type", "application/json")
				return send(server.Client(), req)
			}
			if r, err := create(); err == nil {
				t.Fatalf("a cut connection answered %d", r.status)
			}
			if got := len(b.x.Posts("ann")) == 1; got != after {
				t.Errorf("posted is %v, want %v", got, after)
			}
			r, err := create()
			if want := map[bool]int{false: 201, true: 403}[after]; err != nil || r.status != want {
				t.Errorf("after the cut: %d %v, want %d", r.status, err, want)
			}
		})
	}
}

// Over a socket, giving up is what frees the server from a lost answer.
func TestServeHTTPLostAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	server := httptest.NewServer(b.x)
	t.Cleanup(server.Close)
	b.faults(xsim.Fault{Kind: xsim.FaultLostAnswer})
	ctx, giveUp := context.WithTimeout(t.Context(), 10*time.Second)
	defer giveUp()
	req, err := http.NewRequestWithContext(ctx, "POST", server.URL+"/2/tweets", strings.NewReader(`{"text":"lost"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+b.grant.AccessToken)
	req.Header.Set("Content-Type", "application/json")
	failed := make(chan error, 1)
	go func() {
		_, err := send(server.Client(), req)
		failed <- err
	}()
	for len(b.x.Posts("ann")) == 0 && ctx.Err() == nil {
		runtime.Gosched()
	}
	giveUp()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the client's own cancellation", err)
	}
	b.x.Wait()
}

// A client that watches its connection learns that the request has left.
func TestRoundTripTraces(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var seen []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		WroteHeaders:         func() { seen = append(seen, "headers") },
		WroteRequest:         func(httptrace.WroteRequestInfo) { seen = append(seen, "request") },
		GotFirstResponseByte: func() { seen = append(seen, "response") },
	})
	req, err := http.NewRequestWithContext(ctx, "GET", "https://api.x.com/2/users/me", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.x.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if diff := cmp.Diff([]string{"headers", "request", "response"}, seen); diff != "" {
		t.Error(diff)
	}
}

// A client that gives up does not stop what is under way, and a fake clock
// drives all of it.
func TestLatencyOutlivesClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x := &xsim.Server{}
		g, err := x.AddAccount(xsim.NewAccount{Handle: "ann"})
		if err != nil {
			t.Fatal(err)
		}
		if err := x.SetFaults([]xsim.Fault{{Kind: xsim.FaultLatency, DelayMS: 5_000}}); err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: x, Timeout: time.Second}
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://api.x.com/2/tweets", strings.NewReader(`{"text":"late"}`))
		req.Header.Set("Authorization", "Bearer "+g.AccessToken)
		req.Header.Set("Content-Type", "application/json")
		if r, err := send(client, req); err == nil {
			t.Fatalf("answered %d within the timeout", r.status)
		}
		if n := len(x.Posts("")); n != 0 {
			t.Fatalf("%d posts before the latency is over", n)
		}
		x.Wait()
		if n := len(x.Posts("")); n != 1 {
			t.Fatalf("%d posts after it, want 1", n)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			if r, err := b.try(b.grant, "POST", "/2/tweets", "application/json", fmt.Sprintf(`{"text":"n%d"}`, i)); err != nil || r.status != 201 {
				t.Errorf("post %d: %d %v", i, r.status, err)
			}
		})
	}
	group.Wait()
	posts := b.x.Posts("ann")
	if len(posts) != 20 || !slices.IsSortedFunc(posts, func(p, q xsim.Post) int { return strings.Compare(p.ID, q.ID) }) {
		t.Errorf("want 20 posts with growing ids, got %+v", posts)
	}
	b.wantViolations()
}
