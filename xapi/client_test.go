package xapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const testToken = "access-token-that-must-not-leak"

// testBundle is a Client on a server of the test's own.
type testBundle struct {
	client *Client
	hc     *http.Client
	server *httptest.Server
	calls  atomic.Int64
}

func setup(t *testing.T, handler http.HandlerFunc) *testBundle {
	t.Helper()
	b := &testBundle{}
	b.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.calls.Add(1)
		handler(w, r)
	}))
	t.Cleanup(b.server.Close)
	transport := NewTransport()
	t.Cleanup(transport.CloseIdleConnections)
	b.hc = &http.Client{Transport: transport}
	b.client = New(testToken, WithBaseURL(b.server.URL), WithHTTPClient(b.hc))
	return b
}

// reply answers every request with one status and body.
func reply(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func wantAs[T error](t *testing.T, err error) T {
	t.Helper()
	var target T
	if !errors.As(err, &target) {
		t.Fatalf("got error %T %v, want a %T in it", err, err, target)
	}
	return target
}

func TestCreatePostSendsXsNames(t *testing.T) {
	t.Parallel()

	full := Post{
		Text: "a <b>", InReplyToPostID: "7", QuotePostID: "8", MediaIDs: []string{"9"},
		Poll:          &Poll{Options: []string{"x", "y"}, DurationMinutes: 5},
		ReplySettings: "following", CommunityID: "10", MadeWithAI: true, PaidPartnership: true,
	}
	for _, tc := range []struct {
		name string
		post Post
		want string
	}{
		{"empty", Post{}, `{"text":""}`},
		{"full", full, `{"text":"a <b>","reply":{"in_reply_to_tweet_id":"7"},"media":{"media_ids":["9"]},
			"poll":{"options":["x","y"],"duration_minutes":5},"quote_tweet_id":"8","reply_settings":"following",
			"community_id":"10","made_with_ai":true,"paid_partnership":true}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var got, want map[string]any
			var header http.Header
			b := setup(t, func(w http.ResponseWriter, r *http.Request) {
				header = r.Header
				if r.Method+" "+r.URL.Path != string(EndpointCreatePost) || json.NewDecoder(r.Body).Decode(&got) != nil {
					w.WriteHeader(http.StatusTeapot)
					return
				}
				w.WriteHeader(http.StatusCreated)
				_, _ = io.WriteString(w, `{"data":{"id":"42","text":"a &lt;b&gt;","edit_history_tweet_ids":[""]}}`)
			})
			created, err := b.client.CreatePost(t.Context(), tc.post)
			if err != nil {
				t.Fatal(err)
			}
			if want := (Created{ID: "42", Text: "a &lt;b&gt;"}); !cmp.Equal(created, want) {
				t.Errorf("got %+v, want %+v", created, want)
			}
			if err := json.Unmarshal([]byte(tc.want), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if header.Get("Authorization") != "Bearer "+testToken || header.Get("User-Agent") != "jetpost" {
				t.Errorf("got headers %v", header)
			}
			if header.Get("Idempotency-Key") != "" || header.Get("X-Idempotency-Key") != "" {
				t.Error("an idempotency key lets net/http repeat the post")
			}
		})
	}
}

func TestCreatePostOddSuccess(t *testing.T) {
	t.Parallel()

	for name, body := range map[string]string{
		"errors beside the id": `{"data":{"id":"42","text":"x"},"errors":[{"title":"odd"}]}`,
		"text of another type": `{"data":{"id":"42","text":7}}`,
		"new history name":     `{"data":{"id":"42","text":"x","edit_history_post_ids":["42"]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, reply(http.StatusOK, body))
			created, err := b.client.CreatePost(t.Context(), Post{Text: "x"})
			if err != nil || created.ID != "42" {
				t.Errorf("got %+v, %v", created, err)
			}
		})
	}
}

func TestBodyBounded(t *testing.T) {
	t.Parallel()

	huge := strings.Repeat("x", 2*maxBodyBytes)
	t.Run("error", func(t *testing.T) {
		t.Parallel()
		b := setup(t, reply(http.StatusForbidden, `{"detail":"`+huge+`"}`))
		_, err := b.client.CreatePost(t.Context(), Post{Text: "x"})
		if got := len(wantAs[*APIError](t, err).Body); got != maxBodyBytes {
			t.Errorf("kept %d bytes, want %d", got, maxBodyBytes)
		}
	})
	t.Run("success", func(t *testing.T) {
		t.Parallel()
		b := setup(t, reply(http.StatusCreated, `{"data":{"id":"1","text":"`+huge+`"}}`))
		_, err := b.client.CreatePost(t.Context(), Post{Text: "x"})
		wantAs[*AmbiguousError](t, err)
	})
	t.Run("words", func(t *testing.T) {
		t.Parallel()
		e := &APIError{Detail: strings.Repeat("é", maxWordsBytes)}
		if got := len(e.Words()); got > maxWordsBytes+3 {
			t.Errorf("words have %d bytes", got)
		}
	})
}

func TestDefaults(t *testing.T) {
	t.Parallel()

	c := New(testToken)
	if DefaultBaseURL != "https://api.x.com" || c.base != DefaultBaseURL || c.timeout != DefaultTimeout {
		t.Errorf("got base %q, timeout %v", c.base, c.timeout)
	}
	if transport, ok := c.http.Transport.(*http.Transport); !ok || transport.Protocols.HTTP2() {
		t.Error("want a guarded transport without HTTP/2")
	}
	if s := c.GoString() + c.String(); strings.Contains(s, testToken) {
		t.Errorf("%q holds the token", s)
	}
	o := New(testToken, WithTimeout(1), WithUserAgent("tester"))
	if o.timeout != 1 || o.agent != "tester" {
		t.Errorf("got %v, %q", o.timeout, o.agent)
	}
}

func TestRedirectNotFollowed(t *testing.T) {
	t.Parallel()

	for _, status := range []int{http.StatusMovedPermanently, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "/elsewhere", status)
			})
			_, err := b.client.CreatePost(t.Context(), Post{Text: "x"})
			if got := wantAs[*APIError](t, err).Status; got != status || b.calls.Load() != 1 {
				t.Errorf("got status %d after %d calls", got, b.calls.Load())
			}
			wantAs[*AmbiguousError](t, err)
		})
	}
}

func TestSecretEchoedByXIsTakenOut(t *testing.T) {
	t.Parallel()

	b := setup(t, reply(http.StatusForbidden, `{"detail":"no `+testToken+`"}`))
	_, err := b.client.CreatePost(t.Context(), Post{Text: "x"})
	apiErr := wantAs[*APIError](t, err)
	if strings.Contains(err.Error()+string(apiErr.Body)+apiErr.Detail, testToken) {
		t.Errorf("token shows in %v", err)
	}
}

func TestMe(t *testing.T) {
	t.Parallel()

	b := setup(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/2/users/me" || r.URL.Query().Get("user.fields") != "subscription_type" {
			w.WriteHeader(http.StatusTeapot)
		}
		_, _ = io.WriteString(w, `{"data":{"id":"1","username":"u","name":"N","subscription_type":"Premium"}}`)
	})
	got, err := b.client.Me(t.Context())
	if want := (User{ID: "1", Username: "u", Name: "N", SubscriptionType: "Premium"}); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestCallerCancelled(t *testing.T) {
	t.Parallel()

	b := setup(t, reply(http.StatusCreated, `{}`))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.client.CreatePost(ctx, Post{})
	wantAs[*NotSentError](t, err)
	if IsOutage(err) || b.calls.Load() != 0 {
		t.Errorf("got %v after %d calls", err, b.calls.Load())
	}
}

func TestBadBaseURL(t *testing.T) {
	t.Parallel()

	for _, base := range []string{"api.x.com", "ftp://api.x.com", "https://", "http://[::1", ""} {
		_, err := New(testToken, WithBaseURL(base)).CreatePost(t.Context(), Post{})
		wantAs[*NotSentError](t, err)
		if IsOutage(err) {
			t.Errorf("%q: a wrong address counts as an outage of X: %v", base, err)
		}
	}
}
