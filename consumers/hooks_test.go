package consumers

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// receiver is a program that takes webhooks. Its answer is chosen by the event and by how
// often that came.
type receiver struct {
	*httptest.Server
	answer func(w http.ResponseWriter, r *http.Request, e jetpost.Event, times int)

	mu     sync.Mutex
	events []jetpost.Event // as they came
	bodies [][]byte
	heads  []http.Header
}

func newReceiver(t *testing.T, answer func(w http.ResponseWriter, r *http.Request, e jetpost.Event, times int)) *receiver {
	t.Helper()
	r := &receiver{answer: answer}
	r.Server = website(t, "127.0.0.1", r.take)
	return r
}

func (r *receiver) take(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var e jetpost.Event
	if err == nil {
		err = json.Unmarshal(body, &e)
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	times := 1
	for _, before := range r.events {
		if before.EventID == e.EventID {
			times++
		}
	}
	r.events, r.bodies, r.heads = append(r.events, e), append(r.bodies, body), append(r.heads, req.Header)
	r.mu.Unlock()
	if r.answer != nil {
		r.answer(w, req, e, times)
	}
}

// got are the ids of the requests of what came, in order.
func (r *receiver) got() (ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Request != nil {
			ids = append(ids, e.Request.ID)
		} else {
			ids = append(ids, string(e.Type))
		}
	}
	return ids
}

// verified holds every delivery to the Standard Webhooks specification, by its own library,
// and to the event's own id.
func (r *receiver) verified(t *testing.T, key secret.String) {
	t.Helper()
	wh, err := standardwebhooks.NewWebhook(key.Reveal())
	testkit.Must(t, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, body := range r.bodies {
		testkit.Must(t, wh.Verify(body, r.heads[i]))
		testkit.Equal(t, "webhook-id", r.heads[i].Get("Webhook-Id"), r.events[i].EventID)
		if wh.Verify(append(body, ' '), r.heads[i]) == nil {
			t.Error("another body has the signature")
		}
	}
}

func (r *receiver) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(r.Certificate())
	return pool
}

// sender reaches the receiver, and trusts it.
func (r *receiver) sender() *HookSender {
	s := NewHookSender(loopback)
	s.internet.roots, s.timeout = r.roots(), time.Second
	s.kept = s.direct()
	return s
}

// addHook stores a webhook.
func (b *testBundle) addHook(t *testing.T, id, url, account string, types ...jetpost.EventType) (store.Hook, secret.String) {
	t.Helper()
	hook := store.Hook{ID: id, URL: url, Account: account, Events: types, CreatedAt: time.Now().UTC()}
	key := store.NewHookSecret()
	testkit.Must(t, b.ledger.AddHook(t.Context(), hook, key))
	return hook, key
}

// deliver has a worker deliver until the returned function is called, or the test ends.
func (b *testBundle) deliver(t *testing.T, js jetstream.JetStream, sender *HookSender, opts ...func(*hooks)) (stop func()) {
	t.Helper()
	h := newHooks(b.ledger, js, b.names, sender, b.log)
	h.Every, h.AckWait, h.Delay = 20*time.Millisecond, 2*time.Second, func(uint64) time.Duration { return time.Millisecond }
	for _, opt := range opts {
		opt(h)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); h.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); testkit.Wait(t, "the end of the delivery", done) })
	t.Cleanup(stop)
	return stop
}

// tell publishes an event of a request.
func (b *testBundle) tell(t *testing.T, kind jetpost.EventType, account, id string) {
	t.Helper()
	testkit.Must(t, b.deadLetters.Event(t.Context(), b.names.EventSubject(kind, account, id), jetpost.Event{
		EventID: eventID(account + id + string(kind)), Type: kind, Time: time.Now().UTC(), Request: &jetpost.RequestStatus{Account: account, ID: id},
	}))
}

func (b *testBundle) hook(t *testing.T, id string) (found store.Hook) {
	t.Helper()
	all, err := b.ledger.Hooks(t.Context())
	testkit.Must(t, err)
	i := slices.IndexFunc(all, func(h store.Hook) bool { return h.ID == id })
	if i < 0 {
		t.Fatalf("there is no webhook %s", id)
	}
	return all[i]
}

// hears waits until these have come, and nothing else.
func (r *receiver) hears(t *testing.T, want ...string) {
	t.Helper()
	testkit.Eventually(t, "the events "+strings.Join(want, " "), func() bool { return len(r.got()) >= len(want) })
	testkit.Equal(t, "events", fmt.Sprint(r.got()), fmt.Sprint(want))
}

// TestHookDelivers: each receiver is sent the events of its account and types, as they are
// in the stream, in their order, signed; and its secret is in no log.
func TestHookDelivers(t *testing.T) {
	t.Parallel()
	for name, open := range gapDatabases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupOn(t, open)
			var log bytes.Buffer
			b.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			everything, one := newReceiver(t, nil), newReceiver(t, nil)
			_, keyOfAll := b.addHook(t, "all", everything.URL, "")
			_, key := b.addHook(t, "one", one.URL, "acme", jetpost.EventRequestPublished, jetpost.EventAccountPaused)
			b.tell(t, jetpost.EventRequestAccepted, "acme", "1")
			b.tell(t, jetpost.EventRequestPublished, "other", "2")
			sender := everything.sender()
			sender.roots.AddCert(one.Certificate())
			stop := b.deliver(t, b.js, sender)
			b.tell(t, jetpost.EventRequestPublished, "acme-2", "3") // which begins with the name
			b.tell(t, jetpost.EventRequestPublished, "acme", "4")
			testkit.Must(t, b.deadLetters.Event(t.Context(), b.names.EventSubject(jetpost.EventAppPaused, "", ""), jetpost.Event{EventID: "app", Type: jetpost.EventAppPaused}))
			testkit.Must(t, b.deadLetters.Event(t.Context(), b.names.EventSubject(jetpost.EventAccountPaused, "acme", ""), jetpost.Event{EventID: "account", Type: jetpost.EventAccountPaused}))
			everything.hears(t, "1", "2", "3", "4", "app.paused", "account.paused")
			one.hears(t, "4", "account.paused")
			everything.verified(t, keyOfAll)
			one.verified(t, key)
			msg, err := b.js.Stream(t.Context(), b.names.EventsStream())
			testkit.Must(t, err)
			stored, err := msg.GetMsg(t.Context(), 1)
			testkit.Must(t, err)
			testkit.Equal(t, "body", string(everything.bodies[0]), string(stored.Data))
			testkit.Eventually(t, "the note", func() bool { return !b.hook(t, "one").DeliveredAt.IsZero() })
			stop()
			for _, k := range []secret.String{key, keyOfAll} {
				if strings.Contains(log.String(), strings.TrimPrefix(k.Reveal(), store.HookSecretPrefix)) {
					t.Error("a secret is in the log")
				}
			}
		})
	}
}

// TestHookRetries: what a receiver does not take is sent again under the same id, and what
// comes after it waits; failures are seen until it takes one.
func TestHookRetries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	looked := make(chan struct{})
	r := newReceiver(t, func(w http.ResponseWriter, req *http.Request, _ jetpost.Event, times int) {
		switch times {
		case 1:
			http.Error(w, "out\x1b[31m of\norder", http.StatusInternalServerError)
		case 2:
			http.Redirect(w, req, "https://169.254.169.254/latest", http.StatusTemporaryRedirect)
		case 3:
			<-looked
			w.WriteHeader(http.StatusTooManyRequests)
		}
	})
	_, key := b.addHook(t, "one", r.URL, "")
	b.tell(t, jetpost.EventRequestAccepted, "acme", "1")
	b.tell(t, jetpost.EventRequestAccepted, "acme", "2")
	sender := r.sender()
	sender.timeout = patience
	b.deliver(t, b.js, sender)
	testkit.Eventually(t, "the third try", func() bool { return len(r.got()) == 3 })
	hook := b.hook(t, "one")
	testkit.Equal(t, "error", hook.Error, "the receiver answered 307 Temporary Redirect, and redirects are not followed")
	testkit.Equal(t, "failing", !hook.FailingSince.IsZero() && !hook.FailedAt.Before(hook.FailingSince) && hook.DisabledAt.IsZero(), true)
	looked <- struct{}{}
	testkit.Eventually(t, "the second event's third try", func() bool { return len(r.got()) == 7 })
	looked <- struct{}{}
	r.hears(t, "1", "1", "1", "1", "2", "2", "2", "2")
	r.verified(t, key)
	testkit.Eventually(t, "its success", func() bool { return b.hook(t, "one").FailingSince.IsZero() })
}

// TestHookGone: a receiver that answers 410, or that has failed for days, is sent nothing
// more until somebody enables its webhook; then it is sent what waited.
func TestHookGone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	gone := newReceiver(t, func(w http.ResponseWriter, _ *http.Request, e jetpost.Event, times int) {
		if e.Request.ID == "1" && times == 1 {
			w.WriteHeader(http.StatusGone)
		}
	})
	dead := newReceiver(t, func(w http.ResponseWriter, _ *http.Request, _ jetpost.Event, _ int) {
		w.WriteHeader(http.StatusBadGateway)
	})
	b.addHook(t, "gone", gone.URL, "")
	b.addHook(t, "dead", dead.URL, "")
	testkit.Must(t, b.ledger.HookFailed(t.Context(), "dead", store.HookFailure{At: time.Now().Add(-hookPatience), Error: "days ago"}))
	b.tell(t, jetpost.EventRequestAccepted, "acme", "1")
	b.tell(t, jetpost.EventRequestAccepted, "acme", "2")
	sender := gone.sender()
	sender.roots.AddCert(dead.Certificate())
	b.deliver(t, b.js, sender, func(h *hooks) { h.Delay = func(uint64) time.Duration { return 200 * time.Millisecond } })
	for _, id := range []string{"gone", "dead"} {
		testkit.Eventually(t, id+" to be disabled", func() bool { return !b.hook(t, id).DisabledAt.IsZero() })
	}
	gone.hears(t, "1")
	dead.hears(t, "1")
	_, err := b.ledger.EnableHook(t.Context(), "gone")
	testkit.Must(t, err)
	gone.hears(t, "1", "1", "2")
}

// TestHookDrops: an event that a receiver never takes is sent no more one day, and the
// next one follows.
func TestHookDrops(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request, e jetpost.Event, _ int) {
		if e.Request.ID == "poison" {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	b.addHook(t, "one", r.URL, "")
	b.tell(t, jetpost.EventRequestAccepted, "acme", "poison")
	b.tell(t, jetpost.EventRequestAccepted, "acme", "next")
	b.deliver(t, b.js, r.sender(), func(h *hooks) { h.Tries = 3 })
	r.hears(t, "poison", "poison", "poison", "next")
	testkit.Equal(t, "dropped", b.hook(t, "one").Dropped, 1)
}

// TestHookSlowReceiver: one receiver that does not answer delays no other one.
func TestHookSlowReceiver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	end := make(chan struct{})
	slow := newReceiver(t, func(http.ResponseWriter, *http.Request, jetpost.Event, int) { <-end })
	quick := newReceiver(t, nil)
	t.Cleanup(func() { close(end) })
	b.addHook(t, "slow", slow.URL, "")
	b.addHook(t, "quick", quick.URL, "")
	sender := slow.sender()
	sender.roots.AddCert(quick.Certificate())
	sender.timeout = patience
	b.deliver(t, b.js, sender)
	b.tell(t, jetpost.EventRequestAccepted, "acme", "1")
	testkit.Eventually(t, "the slow one", func() bool { return len(slow.got()) == 1 })
	for _, id := range []string{"2", "3"} {
		b.tell(t, jetpost.EventRequestAccepted, "acme", id)
	}
	quick.hears(t, "1", "2", "3")
	testkit.Equal(t, "events of the slow one", len(slow.got()), 1)
}

// TestHookWorkerDies: the event that a worker was about to deliver when it died is
// delivered by another one, and one worker at a time delivers to a receiver.
func TestHookWorkerDies(t *testing.T) {
	t.Parallel()
	b := setup(t)
	end := make(chan struct{})
	r := newReceiver(t, func(_ http.ResponseWriter, _ *http.Request, _ jetpost.Event, times int) {
		if times == 1 {
			<-end
		}
	})
	t.Cleanup(func() { close(end) })
	_, key := b.addHook(t, "one", r.URL, "")
	b.tell(t, jetpost.EventRequestAccepted, "acme", "1")
	sender := r.sender()
	sender.timeout = patience
	nc, js := natstest.Connect(t, b.server)
	b.deliver(t, js, sender)
	testkit.Eventually(t, "the first try", func() bool { return len(r.got()) == 1 })
	b.deliver(t, b.js, r.sender())
	b.tell(t, jetpost.EventRequestAccepted, "acme", "2")
	nc.Close() // as of a worker that was killed
	testkit.Eventually(t, "another worker", func() bool { return len(r.got()) >= 2 })
	testkit.Equal(t, "again", r.got()[1], "1")
	testkit.Eventually(t, "the next event", func() bool { return slices.Contains(r.got(), "2") })
	r.verified(t, key)
}

// TestHookConsumers: the consumer of a webhook that is gone is deleted, and one that NATS
// has lost is made again.
func TestHookConsumers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := newReceiver(t, nil)
	b.addHook(t, "stays", r.URL, "")
	_, err := b.js.CreateConsumer(t.Context(), b.names.EventsStream(), jetstream.ConsumerConfig{Durable: jetpost.ConsumerHook("gone")})
	testkit.Must(t, err)
	_, err = b.js.CreateConsumer(t.Context(), b.names.EventsStream(), jetstream.ConsumerConfig{Durable: "others"})
	testkit.Must(t, err)
	b.tell(t, jetpost.EventRequestAccepted, "acme", "1")
	b.deliver(t, b.js, r.sender())
	r.hears(t, "1")
	testkit.Eventually(t, "the end of the consumer", func() bool {
		_, err := b.js.Consumer(t.Context(), b.names.EventsStream(), jetpost.ConsumerHook("gone"))
		return errors.Is(err, jetstream.ErrConsumerNotFound)
	})
	_, err = b.js.Consumer(t.Context(), b.names.EventsStream(), "others")
	testkit.Must(t, err)
	testkit.Must(t, b.js.DeleteConsumer(t.Context(), b.names.EventsStream(), jetpost.ConsumerHook("stays")))
	b.tell(t, jetpost.EventRequestAccepted, "acme", "2")
	testkit.Eventually(t, "the event after that", func() bool { return slices.Contains(r.got(), "2") })
	_, err = b.ledger.RemoveHook(t.Context(), "stays")
	testkit.Must(t, err)
}

// TestHookRenamedAccount: the receiver of an account's events is sent those under its new
// name.
func TestHookRenamedAccount(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	r := newReceiver(t, nil)
	b.addHook(t, "one", r.URL, "acme")
	b.deliver(t, b.js, r.sender())
	b.tell(t, jetpost.EventRequestAccepted, "acme", "1")
	r.hears(t, "1")
	testkit.Must(t, b.ledger.RenameAccount(t.Context(), "acme", "acme-2", time.Now()))
	testkit.Eventually(t, "the consumer to have the name", func() bool {
		consumer, err := b.js.Consumer(t.Context(), b.names.EventsStream(), jetpost.ConsumerHook("one"))
		testkit.Must(t, err)
		return slices.Contains(consumer.CachedInfo().Config.FilterSubjects, b.names.AccountEvents("acme-2"))
	})
	b.tell(t, jetpost.EventRequestAccepted, "acme", "others")
	b.tell(t, jetpost.EventRequestAccepted, "acme-2", "2")
	r.hears(t, "1", "2")
}

// TestHookHostileReceivers: whatever a receiver does, a delivery ends, and its error is
// short and on one line.
func TestHookHostileReceivers(t *testing.T) {
	t.Parallel()
	endless := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			for {
				if _, err := w.Write(bytes.Repeat([]byte("no\x00\x1b]0;"), 1000)); err != nil {
					return
				}
			}
		}
	}
	hook := store.Hook{ID: "one"}
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"hangs": {func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // a server notices only then that the client is gone
			<-r.Context().Done()
		}, "no answer within"},
		"endless":      {endless(http.StatusOK), ""},
		"endless fail": {endless(http.StatusTeapot), "418 I'm a teapot: no]0;no]0;"},
		"headers": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 2*maxAnswerHeaders))
		}, "exceed"},
		"redirects": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://169.254.169.254/latest/meta-data", http.StatusFound)
		}, "redirects are not followed"},
		"breaks off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "call the receiver"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &receiver{Server: website(t, "127.0.0.1", test.answer)}
			hook.URL = r.URL + "/?token=secret"
			err := r.sender().Send(t.Context(), hook, store.NewHookSecret(), "id", []byte("{}"))
			switch {
			case test.want == "":
				testkit.Must(t, err)
			case err == nil || !strings.Contains(err.Error(), test.want):
				t.Errorf("got %v, want %q", err, test.want)
			case len(err.Error()) > 300 || strings.ContainsAny(err.Error(), "\x00\x1b\n") || strings.Contains(err.Error(), "secret"):
				t.Errorf("the error is %q", err)
			}
		})
	}
}

// TestHookPrivateAddress: no private address is reached, nor one without TLS.
func TestHookPrivateAddress(t *testing.T) {
	t.Parallel()
	r := newReceiver(t, nil)
	sender := r.sender()
	sender.Private = nil
	hook := store.Hook{ID: "one", URL: r.URL}
	err := sender.Send(t.Context(), hook, store.NewHookSecret(), "id", []byte("{}"))
	if !errors.Is(err, errPrivate) {
		t.Errorf("a loopback address: %v", err)
	}
	for _, url := range []string{"https://169.254.169.254/", "https://[::1]/", "https://[fd00:ec2::254]/", "https://10.0.0.1/"} {
		hook.URL = url
		if err := sender.Send(t.Context(), hook, store.NewHookSecret(), "id", []byte("{}")); !errors.Is(err, errPrivate) {
			t.Errorf("%s: %v", url, err)
		}
	}
	hook.URL = strings.Replace(r.URL, "https", "http", 1)
	if err := sender.Send(t.Context(), hook, store.NewHookSecret(), "id", []byte("{}")); err == nil || len(r.got()) > 0 {
		t.Errorf("without TLS: %v", err)
	}
}

// TestHookAnswers: what an answer says of the next try.
func TestHookAnswers(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		status int
		after  string
		want   *HookError
	}{
		{200, "", nil}, {204, "5", nil}, {299, "", nil},
		{410, "", &HookError{Gone: true}},
		{429, "120", &HookError{RetryAfter: 2 * time.Minute}},
		{503, "Tue, 01 Dec 2026 09:05:00 GMT", &HookError{RetryAfter: 5 * time.Minute}},
		{503, "Tue, 01 Dec 2026 08:00:00 GMT", &HookError{}},
		{503, "4000000000", &HookError{RetryAfter: maxRetryAfter}},
		{503, "-5", &HookError{}}, {503, "soon", &HookError{}}, {404, "", &HookError{}}, {100, "", &HookError{}},
	} {
		err := judgeHook(&http.Response{StatusCode: test.status, Header: http.Header{"Retry-After": {test.after}}}, nil, now)
		got, failed := errors.AsType[*HookError](err)
		if failed != (test.want != nil) || failed && (got.Gone != test.want.Gone || got.RetryAfter != test.want.RetryAfter) {
			t.Errorf("%d %q: got %+v, want %+v", test.status, test.after, got, test.want)
		}
	}
	total := time.Duration(0)
	for tries := range uint64(hookTries - 1) {
		delay := hookDelay(tries + 1)
		if total += delay; delay < 4*time.Second || delay > 18*time.Minute {
			t.Errorf("the wait after try %d is %s", tries+1, delay)
		}
	}
	if total < 60*time.Hour || total > 84*time.Hour {
		t.Errorf("all tries take %s", total)
	}
}
