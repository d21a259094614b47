package consumers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

func TestRules(t *testing.T) {
	t.Parallel()
	quote := jetpost.Post{Text: "look", QuotePostID: "1"}
	tests := []struct {
		name       string
		enterprise bool
		posts      []jetpost.Post
		want       []string
	}{
		{"a cashtag", false, thread("$TWTR is up", "$5 for $TWTR"), nil},
		{"cashtag twice", false, thread("fine", "$TWTR, or $TWTR"), []string{"/posts/1/text has 2 cashtags, such as $TWTR; X allows 1 in a post"}},
		{"cashtags of an Enterprise app", true, thread("$TWTR or $BRK.B"), nil},
		{"heavy", false, thread("fine", strings.Repeat("文", 12_501)), []string{"/posts/1/text weighs 25002 as X counts, at most 25000 are allowed"}},
		{"just not too heavy", false, thread(strings.Repeat("文", 12_500)), nil},
		{"quote", false, []jetpost.Post{quote}, []string{"/posts/0/quote_post_id is for Enterprise apps, X says; where yours is one, set JETPOST_X_TIER=enterprise"}},
		{"quote of an Enterprise app", true, []jetpost.Post{quote}, nil},
		{"reply, which X judges", false, []jetpost.Post{{Text: "yes", InReplyToPostID: "1"}}, nil},
		{"several mistakes", false, []jetpost.Post{{Text: "$A $B", QuotePostID: "1"}}, []string{
			"/posts/0/text has 2 cashtags, such as $TWTR; X allows 1 in a post",
			"/posts/0/quote_post_id is for Enterprise apps, X says; where yours is one, set JETPOST_X_TIER=enterprise",
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := Rules{Enterprise: test.enterprise}.Check(jetpost.Request{Posts: test.posts})
			want := "<nil>"
			if test.want != nil {
				want = "invalid request: " + strings.Join(test.want, "; ")
			}
			testkit.Equal(t, "mistakes", fmt.Sprint(err), want)
		})
	}
}

func TestCost(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		post jetpost.Post
		want int64
	}{
		{"alt text", jetpost.Post{Text: "see", Media: []jetpost.Media{{Object: "a", Alt: "A cat"}, {Object: "b"}, {Object: "c", Alt: "A dog"}}}, 25_000},
		{"link", jetpost.Post{Text: "see https://example.com/a"}, 200_000},
		{"link without a protocol, twice", jetpost.Post{Text: "see three.ws and readme.md"}, 200_000},
		{"link with an image", jetpost.Post{Text: "example.com", Media: []jetpost.Media{{Object: "a", Alt: "A cat"}}}, 205_000},
		{"media alone", jetpost.Post{Media: []jetpost.Media{{Object: "a"}}}, 15_000},
		{"text", jetpost.Post{Text: "no link.at/all"}, 200_000},
		{"text without a link", jetpost.Post{Text: "e.g. this, i.e. nothing"}, 15_000},
	}
	for _, test := range tests {
		testkit.Equal(t, test.name, CostMicros(test.post), test.want)
	}
}

// TestIntakeRefusesByRule: a job that breaks a rule of X never becomes a request.
func TestIntakeRefusesByRule(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	quote := []byte(`{"id":"quote","posts":[{"text":"one"},{"text":"look","quote_post_id":"1"}]}`)
	tags := []byte(`{"id":"tags","posts":[{"text":"$A $B"}]}`)
	for _, body := range [][]byte{quote, tags} {
		take(t, b.intake(), b.job("acme", body))
	}
	testkit.Equal(t, "requests", len(b.counts(t)), 0)
	refusals, err := b.ledger.Refusals(t.Context(), 10)
	testkit.Must(t, err)
	for _, r := range refusals {
		if r.Code != jetpost.CodeInvalidRequest || r.Account != "acme" || (r.ID != "quote" && r.ID != "tags") || len(r.Problems) != 1 {
			t.Errorf("refusal is %+v", r)
		}
	}
	testkit.Equal(t, "refusals", len(refusals), 2)

	h := b.intake()
	h.Rules.Enterprise = true
	take(t, h, b.job("acme", quote))
	b.want(t, store.Key{Account: "acme", ID: "quote"}, jetpost.StateQueued, "", 0)
}

// TestReadAtLastByRule: the rules also apply to a request that no worker could read before.
func TestReadAtLastByRule(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	for id, post := range map[string]string{"fine": `{"text":"see example.com"}`, "tags": `{"text":"$A $B"}`} {
		body := fmt.Appendf(nil, `{"id":%q,"posts":[%s]}`, id, post)
		_, err := b.ledger.Accept(t.Context(), store.Acceptance{
			Request: jetpost.Request{Version: 99, Account: "acme", ID: id}, Body: body, Digest: []byte("of what could be read"),
			Hold: &jetpost.Reason{Code: jetpost.CodeNeedsNewerWorker, Until: time.Now().Add(-time.Minute)}, Now: time.Now().Add(-time.Hour),
		})
		testkit.Must(t, err)
	}
	b.run(t, b.lane(), "acme")
	tags := b.want(t, store.Key{Account: "acme", ID: "tags"}, jetpost.StateFailed, jetpost.CodeInvalidRequest, 0)
	testkit.Equal(t, "why", strings.Contains(tags.Status.Reason.Detail, "2 cashtags"), true)
	fine := b.want(t, store.Key{Account: "acme", ID: "fine"}, jetpost.StatePublished, "", 1)
	testkit.Equal(t, "cost", fine.Status.CostEstimateUSD, 0.2)
}

// TestThreadTooLong: nothing of a thread is sent if a later post is too long for its
// account, as far as X reports that.
func TestThreadTooLong(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("long ", 60)
	tests := []struct {
		name         string
		subscription string
		texts        []string
		fault        bool // X does not report it
		state        jetpost.State
		code         jetpost.Code
		posted, asks int
	}{
		{"none", xsim.SubscriptionNone, []string{"one", "two", long}, false, jetpost.StateFailed, jetpost.CodeTextTooLong, 0, 1},
		{"none, all short", xsim.SubscriptionNone, []string{"one", "two"}, false, jetpost.StatePublished, "", 2, 0},
		{"none, the first, of which X says in time", xsim.SubscriptionNone, []string{long, "two"}, false, jetpost.StateFailed, jetpost.CodeRefusedByX, 0, 0},
		{"premium", xsim.SubscriptionPremium, []string{"one", "two", long}, false, jetpost.StatePublished, "", 3, 1},
		{"unknown", xsim.SubscriptionNone, []string{"one", "two", long}, true, jetpost.StateFailed, jetpost.CodeRefusedByX, 2, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			grant, err := b.x.AddAccount(xsim.NewAccount{Handle: "acme", SubscriptionType: test.subscription})
			testkit.Must(t, err)
			b.importGrant(t, grant, time.Now())
			if test.fault {
				b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusServiceUnavailable, Endpoint: xsim.EndpointMe})
			}
			key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread(test.texts...)})
			b.run(t, b.lane(), "acme")
			r := b.want(t, key, test.state, test.code, test.posted)
			testkit.Equal(t, "posts at X", len(b.x.Posts("acme")), test.posted)
			testkit.Equal(t, "questions", b.calls(xsim.EndpointMe), test.asks)
			if test.code == jetpost.CodeTextTooLong {
				testkit.Equal(t, "calls", b.calls(xsim.EndpointCreatePost), 0)
				testkit.Equal(t, "attempts", r.Status.Attempts, 0)
				testkit.Equal(t, "reason", r.Status.Reason.Detail,
					"post 3 weighs 300 as X counts, and @acme has no subscription, with which more than 280 are allowed; nothing more was sent")
			}
		})
	}
}

// TestThreadTooLongReplayed: an account that has subscribed meanwhile is asked again.
func TestThreadTooLongReplayed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "thread", Posts: thread("one", strings.Repeat("long ", 60))})
	b.run(t, b.lane(), "acme")
	b.want(t, key, jetpost.StateFailed, jetpost.CodeTextTooLong, 0)
	grant, err := b.x.AddAccount(xsim.NewAccount{Handle: "acme", SubscriptionType: xsim.SubscriptionPremium})
	testkit.Must(t, err)
	b.importGrant(t, grant, time.Now())
	_, err = b.ledger.Replay(t.Context(), key, time.Now())
	testkit.Must(t, err)
	b.run(t, b.lane(), "acme")
	b.want(t, key, jetpost.StatePublished, "", 2)
}

// TestThreadTooLongWaits: if admission does not admit the call, the thread waits.
func TestThreadTooLongWaits(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("long ", 60)
	t.Run("window", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(x *xsim.Server) {
			x.Limits = []xsim.Limit{{Endpoint: xsim.EndpointMe, Scope: xsim.ScopeUser, Max: 1, WindowMS: time.Hour.Milliseconds()}}
		})
		b.account(t, "acme", 0)
		h := b.lane()
		first := b.accept(t, jetpost.Request{ID: "first", Posts: thread("one", long)})
		b.run(t, h, "acme")
		b.want(t, first, jetpost.StateFailed, jetpost.CodeTextTooLong, 0)
		second := b.accept(t, jetpost.Request{ID: "second", Posts: thread("two", long)})
		b.run(t, h, "acme")
		b.want(t, second, jetpost.StateHeld, jetpost.CodeRateLimited, 0)
		testkit.Equal(t, "questions", b.calls(xsim.EndpointMe), 1)
	})
	t.Run("breaker", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := doubt(t)
			b.trip(t)
			b.publish(t, "thread", thread("one", long)...)
			b.want(t, b.key, jetpost.StateHeld, jetpost.CodeXUnavailable, 0)
			testkit.Equal(t, "questions", b.calls(xsim.EndpointMe), 0)
		})
	})
}

// intakeBy is an intake with a rule about the same text, and its log.
func (b *testBundle) intakeBy(rule SameText) (*intakeHandler, *bytes.Buffer) {
	var log bytes.Buffer
	h := b.intake()
	h.Rules.SameText = rule
	h.Log = slog.New(slog.NewJSONHandler(&log, nil))
	return h, &log
}

func TestSameText(t *testing.T) {
	t.Parallel()
	tests := []struct {
		rule        SameText
		warned      bool
		state       jetpost.State
		code        jetpost.Code
		event       jetpost.EventType
		deadLetters int
	}{
		{SameTextAllow, false, jetpost.StateQueued, "", jetpost.EventRequestAccepted, 0},
		{SameTextRefuse, false, jetpost.StateFailed, jetpost.CodeSameText, jetpost.EventRequestFailed, 1},
		{SameTextWarn, true, jetpost.StateQueued, "", jetpost.EventRequestAccepted, 0},
		{"", true, jetpost.StateQueued, "", jetpost.EventRequestAccepted, 0},
	}
	for _, test := range tests {
		t.Run(string(test.rule), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.account(t, "acme", 0)
			b.account(t, "bolt", 0)
			b.accept(t, jetpost.Request{ID: "first", Posts: thread("one", "same")})
			h, log := b.intakeBy(test.rule)
			body, err := json.Marshal(jetpost.Request{Account: "bolt", ID: "second", Posts: thread("other", "same")})
			testkit.Must(t, err)
			d := b.job("bolt", body)
			for range 2 { // the second time it is a repeat, and not logged again
				take(t, h, d)
			}
			key := store.Key{Account: "bolt", ID: "second"}
			r := b.want(t, key, test.state, test.code, 0)
			testkit.Equal(t, "event", b.lastEvent(t, key).Type, test.event)
			testkit.Equal(t, "records", int(b.messages(t, b.names.FailedStream())), test.deadLetters)
			message := `"level":"WARN","msg":"request.same_text","account":"bolt","request":"second","other_account":"acme","other_request":"first"`
			warned := 0
			if test.warned {
				warned = 1
			}
			testkit.Equal(t, "warnings in "+log.String(), strings.Count(log.String(), message), warned)
			testkit.Equal(t, "messages of that kind", strings.Count(log.String(), "same_text"), warned)
			b.run(t, b.lane(), "acme")
			b.run(t, b.lane(), "bolt")
			if test.code == "" {
				b.want(t, key, jetpost.StatePublished, "", 2)
				return
			}
			testkit.Equal(t, "reason", r.Status.Reason.Detail, "a request of another account has a post of the same text within a day")
			testkit.Equal(t, "posts of bolt", len(b.x.Posts("bolt")), 0)

			// A person may want it all the same.
			_, err = b.ledger.Replay(t.Context(), key, time.Now())
			testkit.Must(t, err)
			b.run(t, b.lane(), "bolt")
			b.want(t, key, jetpost.StatePublished, "", 2)
		})
	}
}

// Equal texts of the same account, and posts without text, do not count.
func TestSameTextIsAnothersText(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	b.account(t, "bolt", 0)
	h, log := b.intakeBy(SameTextRefuse)
	image := []jetpost.Post{{Media: []jetpost.Media{{Object: "a"}}}}
	for i, r := range []jetpost.Request{
		{Account: "acme", Posts: thread("mine", "mine")}, {Account: "acme", Posts: thread("mine")},
		{Account: "acme", Posts: image}, {Account: "bolt", Posts: image}, {Account: "bolt", Posts: thread("Mine")},
	} {
		r.ID = fmt.Sprint(i)
		body, err := json.Marshal(r)
		testkit.Must(t, err)
		take(t, h, b.job(r.Account, body))
		b.want(t, store.Key{Account: r.Account, ID: r.ID}, jetpost.StateQueued, "", 0)
	}
	testkit.Equal(t, "log", strings.Contains(log.String(), "same_text"), false)
}

// TestRescheduledWhileWorkedOn: a request that is rescheduled while a worker has read it is
// published at its new time, and once.
func TestRescheduledWhileWorkedOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	key := b.accept(t, jetpost.Request{ID: "moved", Posts: thread("one", "two")})
	b.accept(t, jetpost.Request{ID: "behind", Posts: thread("three")})
	move := func(at time.Time) error {
		_, err := b.ledger.Reschedule(t.Context(), key, at, time.Now())
		return err
	}
	hook := &ledgerHook{Store: b.ledger}
	hook.before = nth("begin", 1, func() error { return move(time.Now().Add(time.Hour)) })
	h := b.lane(func(h *publishHandler) { h.Ledger = hook })
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StateScheduled, "", 0)
	b.texts(t, "acme", "three")
	testkit.Must(t, move(time.Now()))
	b.run(t, h, "acme")
	b.want(t, key, jetpost.StatePublished, "", 2)
	b.texts(t, "acme", "three", "one", "two")
}
