package consumers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// muteWakeups does nothing: the test runs the lane itself.
type muteWakeups struct{}

func (muteWakeups) Wake(context.Context, string) error              { return nil }
func (muteWakeups) WakeAt(context.Context, string, time.Time) error { return nil }

// doubtBundle is an installation in a bubble, whose account "acme" has a request with a
// post that gets in doubt.
type doubtBundle struct {
	*testBundle
	h   *publishHandler
	key store.Key
}

func doubt(t *testing.T, opts ...func(*xsim.Server)) *doubtBundle {
	t.Helper()
	b := &doubtBundle{testBundle: offline(t, opts...)}
	b.account(t, "acme", 0)
	r := b.bubble()
	b.h = b.lane(func(h *publishHandler) {
		h.Wakeups, h.Tokens, h.Gate = muteWakeups{}, r, r.Gate
		h.Announce = &OutboxRelay{Ledger: b.ledger, DeadLetters: &silentDeadLetters{}, Names: b.names, Log: b.log}
	})
	return b
}

// publish accepts a request of acme and runs its lane once.
func (b *doubtBundle) publish(t *testing.T, id string, posts ...jetpost.Post) {
	t.Helper()
	b.publishFor(t, "acme", id, posts...)
}

func (b *doubtBundle) publishFor(t *testing.T, account, id string, posts ...jetpost.Post) {
	t.Helper()
	r := jetpost.Request{Account: account, ID: id, Posts: posts}
	testkit.Must(t, r.Validate())
	body, err := json.Marshal(r)
	testkit.Must(t, err)
	_, err = b.ledger.Accept(t.Context(), store.Acceptance{Request: r, Body: body, Digest: r.Digest(), Now: time.Now()})
	testkit.Must(t, err)
	b.key = store.Key{Account: account, ID: id}
	b.run(t, b.h, account)
}

// settle lets time pass until the request does not go on by itself. It returns how long
// that took.
func (b *doubtBundle) settle(t *testing.T) (store.Record, time.Duration) {
	t.Helper()
	began := time.Now()
	for time.Since(began) < 12*time.Hour {
		r := b.record(t, b.key)
		switch {
		case r.Status.State.Finished(), r.Status.State == jetpost.StateUnknown:
			return r, time.Since(began)
		case r.HoldUntil.After(time.Now()):
			sleep(time.Until(r.HoldUntil))
		}
		b.run(t, b.h, "acme")
		sleep(time.Second) // an endless loop ends
	}
	t.Fatalf("nothing is settled: %+v", b.record(t, b.key).Status.Reason)
	return store.Record{}, 0
}

// byHand posts as the account's owner, without jetpost.
func (b *doubtBundle) byHand(t *testing.T, text string, images ...[]byte) {
	t.Helper()
	token, _ := b.x.CurrentToken("acme")
	client := xapi.New(token.AccessToken, xapi.WithBaseURL("https://x.test"), xapi.WithHTTPClient(b.hc))
	p := xapi.Post{Text: text}
	for _, data := range images {
		media, err := client.UploadMedia(t.Context(), bytes.NewReader(data), int64(len(data)), "image/png")
		testkit.Must(t, err)
		p.MediaIDs = append(p.MediaIDs, media.ID)
	}
	_, err := client.CreatePost(t.Context(), p)
	testkit.Must(t, err)
}

func (b *doubtBundle) deleteByHand(t *testing.T, id string) {
	t.Helper()
	token, _ := b.x.CurrentToken("acme")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, "https://x.test/2/tweets/"+id, nil)
	testkit.Must(t, err)
	req.Header.Set("Authorization", "Bearer "+token.AccessToken)
	resp, err := b.hc.Do(req)
	testkit.Must(t, err)
	testkit.Must(t, resp.Body.Close())
	testkit.Equal(t, "delete", resp.StatusCode, http.StatusOK)
}

// allowEqual has X accept the same text twice.
func allowEqual(x *xsim.Server) { x.DuplicateWindow, x.AllowEqualPosts = -1, true }

// lost is a fault of the nth post: its answer is lost, before or after the effect.
func lost(n int, made bool) xsim.Fault {
	return xsim.Fault{Kind: xsim.FaultCut, After: made, Endpoint: xsim.EndpointCreatePost, Skip: n - 1, Times: 1}
}

// TestReconcile: every doubt ends by itself if X shows what became of the post.
func TestReconcile(t *testing.T) {
	t.Parallel()
	image := jetpost.Media{Data: testImage(t)}
	tests := []struct {
		name  string
		opt   func(*xsim.Server)
		posts []jetpost.Post
		nth   int
	}{
		{"single post", nil, thread("one"), 1},
		{"first of a thread", nil, thread("one", "two"), 1},
		{"middle of a thread", nil, thread("one", "two", "three"), 2},
		{"last of a thread", nil, thread("one", "two", "three"), 3},
		{"equal text twice in a thread", allowEqual, thread("same", "other", "same"), 3},
		{"equal texts in a row", allowEqual, thread("same", "same", "same"), 2},
		{"links and escapes", nil, thread("a & b <c> \"d\" e\u0301 example.com, https://example.org/x?a=1&b=2 http://example.net/"), 1},
		{"white space", nil, thread("one\n\n  two\tthree "), 1},
		{"long text", nil, thread(strings.Repeat("many words, ", 60)), 1},
		{"image and text", nil, []jetpost.Post{{Text: "look", Media: []jetpost.Media{image}}}, 1},
		{"image alone", nil, []jetpost.Post{{Text: "one"}, {Media: []jetpost.Media{image, image}}}, 2},
		{"poll", nil, []jetpost.Post{{Text: "which?", Poll: &jetpost.Poll{Options: []string{"a", "b"}, DurationMinutes: 60}}}, 1},
	}
	for _, test := range tests {
		for _, made := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, made %t", test.name, made), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var opts []func(*xsim.Server)
					if test.opt != nil {
						opts = append(opts, test.opt)
					}
					b := doubt(t, opts...)
					_, err := b.x.AddAccount(xsim.NewAccount{Handle: "acme", SubscriptionType: xsim.SubscriptionPremium})
					testkit.Must(t, err)
					b.reconnect(t, "acme")
					b.faults(t, lost(test.nth, made))
					b.publish(t, "r", test.posts...)
					b.want(t, b.key, jetpost.StateHeld, jetpost.CodeReconciling, test.nth-1)
					calls := b.calls(xsim.EndpointCreatePost)
					testkit.Equal(t, "calls at the doubt", calls, test.nth)

					r, took := b.settle(t)
					testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
					want := len(test.posts)
					if !made {
						want++
					}
					testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), want)
					limit := 5 * time.Minute
					if !made {
						limit = 15 * time.Minute // no later post proves that the timeline does not lag
					}
					testkit.Equal(t, "soon", took < limit, true)
					posts := b.x.Posts("acme")
					testkit.Equal(t, "posts", len(posts), len(test.posts))
					for i, p := range posts {
						testkit.Equal(t, "id", r.Posts[i].PostID, p.ID)
						if i > 0 {
							testkit.Equal(t, "parent", p.InReplyTo, posts[i-1].ID)
						}
					}
				})
			})
		}
	}
}

// TestReconcileByHand: posts that the account made without jetpost are not taken for its
// own, and do not block it unless they cannot be distinguished.
func TestReconcileByHand(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		before string // posted by hand an hour before
		during string // posted by hand while the post is in doubt
		made   bool
		state  jetpost.State
		posts  int // on X in the end
	}{
		{"equal post earlier that day, not made", "hello", "", false, jetpost.StatePublished, 2},
		{"equal post earlier that day, made", "hello", "", true, jetpost.StatePublished, 2},
		{"another post at that minute, not made", "", "good morning", false, jetpost.StatePublished, 2},
		{"another post at that minute, made", "", "good morning", true, jetpost.StatePublished, 2},
		{"equal post at that minute, not made", "", "hello", false, jetpost.StatePublished, 1}, // the wanted post exists
		{"equal post at that minute, made", "", "hello", true, jetpost.StateUnknown, 2},
		{"similar post at that minute, not made", "", "Hello!", false, jetpost.StateUnknown, 1},
		{"similar post at that minute, made", "", "Hello!", true, jetpost.StateUnknown, 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t, allowEqual)
				b.publish(t, "control", thread("control")...)
				if test.before != "" {
					b.byHand(t, test.before)
				}
				sleep(time.Hour)
				b.faults(t, lost(1, test.made))
				b.publish(t, "r", thread("hello")...)
				if test.during != "" {
					b.byHand(t, test.during)
				}
				r, _ := b.settle(t)
				testkit.Equal(t, "state", r.Status.State, test.state)
				testkit.Equal(t, "posts", len(b.x.Posts("acme")), 1+test.posts)
				if test.state == jetpost.StateUnknown {
					testkit.Equal(t, "code", r.Status.Reason.Code, jetpost.CodeOutcomeUnknown)
				}
			})
		})
	}
}

// TestReconcileAlikeByHand: a post with the same text at another place, or with other
// media, is not ours.
func TestReconcileAlikeByHand(t *testing.T) {
	t.Parallel()
	image := testImage(t)
	tests := []struct {
		name   string
		posts  []jetpost.Post
		byHand func(t *testing.T, b *doubtBundle)
	}{
		{"a reply, and the same words alone", thread("one", "two"), func(t *testing.T, b *doubtBundle) {
			t.Helper()
			b.byHand(t, "two")
		}},
		{"two images, and one", []jetpost.Post{{Media: []jetpost.Media{{Data: image}, {Data: image}}}}, func(t *testing.T, b *doubtBundle) {
			t.Helper()
			b.byHand(t, "", image)
		}},
		{"an image, and another one", []jetpost.Post{{Media: []jetpost.Media{{Data: image}}}}, func(t *testing.T, b *doubtBundle) {
			t.Helper()
			b.byHand(t, "", image)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t, allowEqual)
				b.publish(t, "control", thread("control")...)
				b.faults(t, lost(len(test.posts), false))
				b.publish(t, "r", test.posts...)
				test.byHand(t, b)
				r, _ := b.settle(t)
				testkit.Equal(t, "state", r.Status.State, jetpost.StateUnknown)
				testkit.Equal(t, "posted", r.Status.Posted, len(test.posts)-1)
				testkit.Equal(t, "posts", len(b.x.Posts("acme")), 1+len(test.posts))
			})
		})
	}
}

// TestReconcileDeletedParent: X shows that the reply in doubt does not exist, and then
// refuses it for good.
func TestReconcileDeletedParent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.publish(t, "control", thread("control")...)
		b.faults(t, lost(2, false))
		b.publish(t, "r", thread("one", "two")...)
		b.deleteByHand(t, b.record(t, b.key).Posts[0].PostID)
		r, _ := b.settle(t)
		// The deleted post was the anchor post, which X had to show.
		testkit.Equal(t, "state", r.Status.State, jetpost.StateUnknown)
		testkit.Equal(t, "why", strings.Contains(r.Status.Reason.Detail, "which was live before"), true)
		_, err := b.ledger.Resolve(t.Context(), b.key, "", time.Now())
		testkit.Must(t, err)
		r, _ = b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StateFailed)
		testkit.Equal(t, "code", r.Status.Reason.Code, jetpost.CodeRefusedByX)
		testkit.Equal(t, "posted", r.Status.Posted, 1)
	})
}

// TestReconcileLag: a timeline that lags hides the post and the anchor post, so the check
// has no result.
func TestReconcileLag(t *testing.T) {
	t.Parallel()
	for _, lag := range []time.Duration{50 * time.Second, 4 * time.Minute} {
		for _, made := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, made %t", lag, made), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					b := doubt(t, func(x *xsim.Server) { x.TimelineLag = lag })
					b.faults(t, lost(2, made))
					b.publish(t, "r", thread("one", "two")...)
					r, _ := b.settle(t)
					testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
					testkit.Equal(t, "posts", len(b.x.Posts("acme")), 2)
				})
			})
		}
	}
}

// TestReconcileUniformLag: whatever the lease, and if X's timelines lag by up to nine
// minutes, a live post is not sent again: not even if the post before it is already shown
// and this one is not.
func TestReconcileUniformLag(t *testing.T) {
	t.Parallel()
	lags := []time.Duration{13 * time.Second, 130 * time.Second}
	for lag := time.Duration(0); lag <= 9*time.Minute; lag += 45 * time.Second {
		lags = append(lags, lag)
	}
	for _, lease := range []time.Duration{6 * time.Second, DefaultLease} {
		for _, lag := range lags {
			t.Run(fmt.Sprintf("lease %v, lag %v", lease, lag), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					b := doubt(t, allowEqual, func(x *xsim.Server) { x.TimelineLag = lag })
					b.h.Timing.Lease = lease
					b.publish(t, "control", thread("control")...)
					sleep(lease * 2 / 3)
					b.faults(t, lost(1, true))
					b.publish(t, "r", thread("one")...)
					b.settle(t)
					b.texts(t, "acme", "control", "one")
				})
			})
		}
	}
}

// TestReconcileFirstPostEver: an account that never posted has no anchor post, so its
// timeline gets more time.
func TestReconcileFirstPostEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t, func(x *xsim.Server) { x.TimelineLag = 9 * time.Minute })
		b.faults(t, lost(1, true))
		b.publish(t, "r", thread("one")...)
		r, _ := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 1)
	})
}

// TestReconcileLostAgain: absence is proven as often as necessary, and a check that proves
// it is not one without a result.
func TestReconcileLostAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		fault := lost(2, false)
		fault.Times = maxChecks + 1
		b.faults(t, fault)
		b.publish(t, "r", thread("one", "two")...)
		r, _ := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		b.texts(t, "acme", "one", "two")
	})
}

// TestReconcileOldAnchor: an old anchor post does not reveal a timeline that lags by
// minutes. If X keeps refusing as a duplicate what it does not show, a person has to
// decide, and the tries end.
func TestReconcileOldAnchor(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		opt      func(*xsim.Server)
		lag, age time.Duration
		state    jetpost.State
		words    string
	}{
		{"minutes", allowEqual, 4 * time.Minute, time.Hour, jetpost.StatePublished, ""},
		{"a day", func(x *xsim.Server) { x.AllowEqualPosts = true }, 24 * time.Hour, 25 * time.Hour, jetpost.StateUnknown, "duplicate content"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t, test.opt, func(x *xsim.Server) { x.TimelineLag = test.lag })
				b.publish(t, "control", thread("control")...)
				sleep(test.age)
				b.faults(t, lost(1, true))
				b.publish(t, "r", thread("one")...)
				r, _ := b.settle(t)
				testkit.Equal(t, "state", r.Status.State, test.state)
				if test.words != "" {
					testkit.Equal(t, "X's words", strings.Contains(r.Status.Reason.Detail, test.words), true)
				}
				b.texts(t, "acme", "control", "one")
			})
		})
	}
}

// TestReconcileCommunity: a timeline may omit posts of a community, so a post that it does
// not show may be live.
func TestReconcileCommunity(t *testing.T) {
	t.Parallel()
	for made, want := range map[bool]jetpost.State{false: jetpost.StateUnknown, true: jetpost.StatePublished} {
		t.Run(fmt.Sprintf("made %t", made), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t)
				b.faults(t, lost(1, made))
				b.publish(t, "r", jetpost.Post{Text: "one", CommunityID: "1"})
				r, _ := b.settle(t)
				testkit.Equal(t, "state", r.Status.State, want)
				testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 1)
			})
		})
	}
}

// TestReconcileReadsRefused: while X refuses reads, posts in doubt wait and nothing is
// sent. When X answers reads again, the doubts are settled.
func TestReconcileReadsRefused(t *testing.T) {
	t.Parallel()
	for _, fault := range []xsim.Fault{
		{Kind: xsim.FaultStatus, Status: http.StatusPaymentRequired},
		{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Variant: "spend-cap"},
		{Kind: xsim.FaultStatus, Status: http.StatusTooManyRequests},
		{Kind: xsim.FaultStatus, Status: http.StatusTooManyRequests, Variant: "usage-capped"},
		{Kind: xsim.FaultStatus, Status: http.StatusServiceUnavailable},
		{Kind: xsim.FaultStatus, Status: http.StatusNotFound},
		{Kind: xsim.FaultStatus, Status: http.StatusUnauthorized},
		{Kind: xsim.FaultCut},
		{Kind: xsim.FaultGarbage},
	} {
		for _, made := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %d %s, made %t", fault.Kind, fault.Status, fault.Variant, made), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					b := doubt(t)
					fault.Endpoint = xsim.EndpointTimeline
					b.faults(t, lost(2, made), fault)
					b.publish(t, "r", thread("one", "two")...)
					calls := b.calls(xsim.EndpointCreatePost)
					for range 40 {
						r := b.record(t, b.key)
						testkit.Equal(t, "state", r.Status.State, jetpost.StateHeld)
						testkit.Equal(t, "post", r.Posts[1].State, jetpost.PostSending)
						sleep(max(time.Until(r.HoldUntil), time.Minute))
						b.run(t, b.h, "acme")
					}
					testkit.Equal(t, "calls while reads are refused", b.calls(xsim.EndpointCreatePost), calls)
					b.faults(t)
					b.h.Gate.Learn(publishers.Pauses{Revision: 1 << 20}) // a person resumes
					r, _ := b.settle(t)
					testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
					testkit.Equal(t, "posts", len(b.x.Posts("acme")), 2)
				})
			})
		}
	}
}

// TestReconcileReadsRefusedForGood: a read that X keeps refusing does not block its account
// for ever: a person decides, and the reason has X's words.
func TestReconcileReadsRefusedForGood(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]xsim.Fault{
		"not permitted": {Kind: xsim.FaultStatus, Status: http.StatusForbidden, Detail: "Not for you."},
		"bad request":   {Kind: xsim.FaultStatus, Status: http.StatusBadRequest, Type: "https://api.x.com/2/problems/invalid-request", Detail: "Not for you."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t)
				fault.Endpoint = xsim.EndpointTimeline
				b.faults(t, lost(1, true), fault)
				b.publish(t, "r", thread("one")...)
				r, took := b.settle(t)
				testkit.Equal(t, "state", r.Status.State, jetpost.StateUnknown)
				testkit.Equal(t, "post", r.Posts[0].State, jetpost.PostSending)
				if detail := r.Status.Reason.Detail; !strings.Contains(detail, "Not for you.") {
					t.Errorf("the reason is without X's words: %q", detail)
				}
				if took < time.Hour || took > 4*time.Hour {
					t.Errorf("it took %v", took)
				}
				b.faults(t)
				testkit.Must(t, b.ledger.Reconcile(t.Context(), b.key, time.Now()))
				r, _ = b.settle(t)
				testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
			})
		})
	}
}

// TestReconcileOlderNames: an X that knows only the field names from before 2.167 is asked
// with those.
func TestReconcileOlderNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := doubt(t)
		b.faults(t, lost(2, true), xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusBadRequest, Endpoint: xsim.EndpointTimeline, Query: "post.fields"})
		b.publish(t, "r", thread("one", "two")...)
		r, _ := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		testkit.Equal(t, "posts", len(b.x.Posts("acme")), 2)
	})
}

// truncated removes parts of each timeline answer, as a test requires.
func truncated(x http.RoundTripper, spoil func(page map[string]any)) transport {
	return func(req *http.Request) (*http.Response, error) {
		resp, err := x.RoundTrip(req)
		if err != nil || !strings.HasSuffix(req.URL.Path, "/tweets") || req.Method != http.MethodGet {
			return resp, err
		}
		var page map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&page); err != nil {
			return nil, err
		}
		_ = resp.Body.Close()
		spoil(page)
		body, err := json.Marshal(page)
		if err != nil {
			return nil, err
		}
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		resp.Header.Del("Content-Length")
		return resp, nil
	}
}

// TestReconcileTruncated: an incomplete read, of whatever kind, proves nothing.
func TestReconcileTruncated(t *testing.T) {
	t.Parallel()
	spoils := map[string]func(page map[string]any){
		"errors beside the posts": func(page map[string]any) {
			page["errors"] = []any{map[string]any{"title": "Not Found Error", "type": "resource-not-found", "detail": "gone"}}
			page["data"] = []any{}
		},
		"no meta":          func(page map[string]any) { delete(page, "meta"); delete(page, "data") },
		"more pages ahead": func(page map[string]any) { page["data"] = []any{}; page["meta"].(map[string]any)["next_token"] = "n0" },
		"no times": func(page map[string]any) {
			for _, p := range page["data"].([]any) {
				delete(p.(map[string]any), "created_at")
			}
		},
	}
	for name, spoil := range spoils {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t)
				whole := false
				b.hc.Transport = truncated(b.x, func(page map[string]any) {
					if !whole {
						spoil(page)
					}
				})
				b.faults(t, lost(2, true))
				b.publish(t, "r", thread("one", "two")...)
				for range maxChecks - 1 {
					r := b.record(t, b.key)
					testkit.Equal(t, "state", r.Status.State, jetpost.StateHeld)
					sleep(time.Until(r.HoldUntil))
					b.run(t, b.h, "acme")
				}
				testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 2)
				whole = true
				r, _ := b.settle(t)
				testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
				testkit.Equal(t, "posts", len(b.x.Posts("acme")), 2)
			})
		})
	}
}

// during runs a function while the answer to the nth timeline read is on its way.
func during(x http.RoundTripper, n int, do func()) transport {
	reads := 0
	return func(req *http.Request) (*http.Response, error) {
		resp, err := x.RoundTrip(req)
		if req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, "/tweets") {
			if reads++; reads == n {
				do()
			}
		}
		return resp, err
	}
}

// TestReconcileOvertaken: a change between a timeline check and its commit overrules the
// check. The lane goes on at once if the worker still has it.
func TestReconcileOvertaken(t *testing.T) {
	t.Parallel()
	resolve := func(id string) func(t *testing.T, b *doubtBundle, _ *ledgerHook) {
		return func(t *testing.T, b *doubtBundle, _ *ledgerHook) {
			t.Helper()
			_, err := b.ledger.Resolve(t.Context(), b.key, id, time.Now())
			testkit.Must(t, err)
		}
	}
	cancel := func(t *testing.T, b *doubtBundle, _ *ledgerHook) {
		t.Helper()
		_, err := b.ledger.Cancel(t.Context(), b.key, time.Now())
		testkit.Must(t, err)
	}
	takeOver := func(t *testing.T, b *doubtBundle, hook *ledgerHook) {
		t.Helper()
		hook.expire(t)
		_, claimed, err := b.ledger.ClaimLane(t.Context(), "acme", "another", time.Second, time.Now())
		testkit.Must(t, err)
		testkit.Equal(t, "claimed", claimed, true)
	}
	tests := []struct {
		name  string
		made  bool
		check int
		do    func(t *testing.T, b *doubtBundle, hook *ledgerHook)
		state jetpost.State
		post  jetpost.PostState
		posts int // on X
	}{
		{"resolved as another post, made", true, 1, resolve("77"), jetpost.StatePublished, jetpost.PostPosted, 1},
		{"resolved as not live, made", true, 1, resolve(""), jetpost.StatePublished, jetpost.PostPosted, 1},
		{"resolved as a post, not made", false, 2, resolve("77"), jetpost.StatePublished, jetpost.PostPosted, 0},
		{"resolved as not live, not made", false, 1, resolve(""), jetpost.StatePublished, jetpost.PostPosted, 1},
		{"cancelled, made", true, 1, cancel, jetpost.StateCancelled, jetpost.PostPosted, 1},
		{"cancelled, not made", false, 2, cancel, jetpost.StateCancelled, jetpost.PostPending, 0},
		{"taken over, made", true, 1, takeOver, jetpost.StatePublished, jetpost.PostPosted, 1},
		{"taken over, not made", false, 2, takeOver, jetpost.StatePublished, jetpost.PostPosted, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := doubt(t)
				hook := &ledgerHook{Store: b.ledger}
				b.h.Ledger = hook
				b.hc.Transport = during(b.x, test.check, func() { test.do(t, b, hook) })
				b.publish(t, "control", thread("control")...)
				b.faults(t, lost(1, test.made))
				b.publish(t, "r", thread("one")...)
				r, _ := b.settle(t)
				testkit.Equal(t, "state", r.Status.State, test.state)
				testkit.Equal(t, "post", r.Posts[0].State, test.post)
				testkit.Equal(t, "posts", len(b.x.Posts("acme")), 1+test.posts)
				b.publish(t, "next", thread("next")...)
				b.want(t, b.key, jetpost.StatePublished, "", 1)
			})
		})
	}
}

// TestReconcileLateAnswer: X's answer arrives late, at a worker that has lost the lane,
// while another worker's check does not find the post.
func TestReconcileLateAnswer(t *testing.T) {
	t.Parallel()
	for _, nth := range []int{1, 2} {
		for _, made := range []bool{false, true} {
			t.Run(fmt.Sprintf("check %d, made %t", nth, made), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					b := doubt(t)
					hook := &ledgerHook{Store: b.ledger}
					b.h.Ledger = hook
					var sender store.Claim
					b.hc.Transport = during(b.x, nth, func() {
						if made {
							_, err := b.ledger.Posted(t.Context(), sender, "r", store.LivePost{PostID: b.x.Posts("acme")[1].ID, Now: time.Now()})
							testkit.Must(t, err)
							return
						}
						testkit.Must(t, b.ledger.Conclude(t.Context(), sender, "r", store.Outcome{State: jetpost.StateHeld, PostState: jetpost.PostPending, Now: time.Now()}))
					})
					b.publish(t, "control", thread("control")...)
					sleep(30 * time.Minute)
					b.faults(t, lost(1, made), xsim.Fault{Kind: xsim.FaultTimelineLag, DelayMS: 180_000})
					b.publish(t, "r", thread("one", "two")...)
					sender = hook.lane
					r, _ := b.settle(t)
					testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
					b.texts(t, "acme", "control", "one", "two")
				})
			})
		}
	}
}

// TestReconcileEarlierAttempt: a post found from an attempt before the latest one is older
// than the stored intent, and it still has to be the anchor post of the next doubt.
func TestReconcileEarlierAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		// X shows it late and refuses to accept it again.
		b := doubt(t, func(x *xsim.Server) { x.AllowEqualPosts, x.TimelineLag = true, 13*time.Minute })
		b.publish(t, "control", thread("control")...)
		sleep(time.Hour)
		b.faults(t, lost(1, true))
		b.publish(t, "r", thread("one")...)
		r, _ := b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		b.faults(t, lost(1, false))
		b.publish(t, "r2", thread("two")...)
		r, _ = b.settle(t)
		testkit.Equal(t, "state", r.Status.State, jetpost.StatePublished)
		b.texts(t, "acme", "control", "one", "two")
	})
}
