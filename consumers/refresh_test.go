package consumers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission/admissiontest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// due creates an account whose token is due: half of its life is over, and it expires after
// left.
func (b *testBundle) due(t *testing.T, name string, left time.Duration) {
	t.Helper()
	grant, err := b.x.AddAccount(xsim.NewAccount{Handle: name})
	testkit.Must(t, err)
	now := time.Now()
	_, err = b.ledger.ImportAccount(t.Context(), store.Import{
		Name: name, XUserID: grant.ID, Username: name, Now: now.Add(-24 * time.Hour),
		Pair: store.Pair{
			Access: secret.New(grant.AccessToken), Refresh: secret.New(grant.RefreshToken), ExpiresAt: now.Add(left), Scope: grant.Scope,
		},
	})
	testkit.Must(t, err)
}

func (b *testBundle) token(t *testing.T, account string) store.Token {
	t.Helper()
	token, err := b.ledger.Token(t.Context(), account)
	testkit.Must(t, err)
	return token
}

// stored fails unless the ledger holds the pair that is valid at X.
func (b *testBundle) stored(t *testing.T, account string, refreshes int) {
	t.Helper()
	want, _ := b.x.CurrentToken(account)
	got := b.token(t, account)
	if got.Access.Reveal() != want.AccessToken || got.Refresh.Reveal() != want.RefreshToken {
		t.Errorf("the ledger's pair of %s is not the one in force", account)
	}
	testkit.Equal(t, "exchanges of "+account, want.Refreshes, refreshes)
}

func (b *testBundle) refresh(r *refresher) *refreshHandler {
	return &refreshHandler{Refresher: r, Wakeups: b.wakeups, Names: b.names, Log: b.log}
}

func (b *testBundle) wakeup(t *testing.T, subject string, body any) delivery {
	t.Helper()
	data, err := json.Marshal(body)
	testkit.Must(t, err)
	return delivery{Subject: subject, Data: data}
}

// last is the newest message of a subject, or nil.
func (b *testBundle) last(t *testing.T, stream, subject string) *jetstream.RawStreamMsg {
	t.Helper()
	s, err := b.js.Stream(t.Context(), stream)
	testkit.Must(t, err)
	msg, err := s.GetLastMsgForSubject(t.Context(), subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	testkit.Must(t, err)
	return msg
}

// summary waits for the summary of the next round.
func (b *testBundle) summary(t *testing.T, rounds int) jetpost.RefreshSummary {
	t.Helper()
	subject := b.names.EventSubject(jetpost.EventRefreshCompleted, "", "")
	var event jetpost.Event
	testkit.Eventually(t, "the round is completed", func() bool {
		s, err := b.js.Stream(t.Context(), b.names.EventsStream())
		testkit.Must(t, err)
		info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(subject))
		testkit.Must(t, err)
		return info.State.Subjects[subject] >= uint64(rounds)
	})
	testkit.Must(t, json.Unmarshal(b.last(t, b.names.EventsStream(), subject).Data, &event))
	summary := *event.Refresh
	summary.Round = ""
	return summary
}

// TestRefreshRound tests the whole path of a tick, with two workers.
func TestRefreshRound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const accounts = 25
	for i := range accounts {
		b.due(t, fmt.Sprint("acme", i), time.Hour)
	}
	b.account(t, "young", 0)
	for range 2 {
		b.start(t, &runner{JetStream: b.js, Health: &health{}, Log: b.log, Bindings: []binding{
			{Stream: b.names.RefreshStream(), Consumer: jetpost.ConsumerRefresh, Slots: 2, Handler: b.refresh(b.refresher())},
		}})
	}
	testkit.Must(t, b.pub.Tick(t.Context()))
	testkit.Equal(t, "summary", b.summary(t, 1), jetpost.RefreshSummary{Total: accounts, Refreshed: accounts})
	for i := range accounts {
		b.stored(t, fmt.Sprint("acme", i), 1)
	}
	b.stored(t, "young", 0)
	testkit.Must(t, b.pub.Tick(t.Context()))
	testkit.Equal(t, "summary", b.summary(t, 2), jetpost.RefreshSummary{})
	testkit.Must(t, b.pub.RefreshAccount(t.Context(), "young", true))
	testkit.Eventually(t, "the young one is renewed by hand", func() bool {
		token, _ := b.x.CurrentToken("young")
		return token.Refreshes == 1 && b.token(t, "young").Access.Reveal() == token.AccessToken
	})
	testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), accounts+1)
}

// TestForcedRefreshesAreLimited: a producer can force a refresh once in a while, an
// operator each time.
func TestForcedRefreshesAreLimited(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	h := b.refresh(b.refresher())
	force := func(subject string) {
		t.Helper()
		testkit.Must(t, h.Handle(t.Context(), b.wakeup(t, subject, jetpost.RefreshRequest{Account: "acme", Force: true})))
	}
	for range 3 {
		force(b.names.RefreshRequest())
	}
	testkit.Equal(t, "exchanges of three forced by a producer", b.calls(xsim.EndpointToken), 1)
	force(b.names.RefreshOrder())
	testkit.Equal(t, "exchanges after an operator's order", b.calls(xsim.EndpointToken), 2)
}

// TestRefreshGrantRefused: only this account must be connected again, and its token is
// never presented again.
func TestRefreshGrantRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.due(t, "acme", time.Hour)
	b.due(t, "bolt", time.Hour)
	b.x.RevokeConsent("acme")
	h := b.refresh(b.refresher())
	for round := range 2 {
		b.round(t, h)
		want := jetpost.RefreshSummary{Total: 2, Refreshed: 1, Failed: 1}
		if round == 1 {
			want = jetpost.RefreshSummary{}
		}
		testkit.Equal(t, "summary", b.summary(t, round+1), want)
	}
	token := b.token(t, "acme")
	if !token.RequiresReauth || token.RefreshError == "" || token.RefreshFailedAt.IsZero() {
		t.Errorf("token is %+v", token.TokenMeta)
	}
	var event jetpost.Event
	testkit.Must(t, json.Unmarshal(b.last(t, b.names.EventsStream(), b.names.EventSubject(jetpost.EventAccountReauthRequired, "acme", "")).Data, &event))
	testkit.Equal(t, "reason", event.Account.Reason.Code, jetpost.CodeAccountReauthRequired)
	record := b.last(t, b.names.FailedStream(), b.names.RefreshFailed("acme"))
	testkit.Equal(t, "record", record.Header.Get(jetpost.HeaderCode), string(jetpost.CodeAccountReauthRequired))
	testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 2)
	b.stored(t, "bolt", 1)
	if meta := b.token(t, "bolt").TokenMeta; meta.RefreshError != "" || meta.LastRefreshAt.IsZero() {
		t.Errorf("the other token is %+v", meta)
	}
}

// round handles a tick and its batches one after the other.
func (b *testBundle) round(t *testing.T, h *refreshHandler) {
	t.Helper()
	wakeups := &batches{}
	h.Wakeups = wakeups
	testkit.Must(t, h.Handle(t.Context(), b.tick()))
	for _, batch := range wakeups.all {
		testkit.Must(t, h.Handle(t.Context(), b.wakeup(t, b.names.RefreshBatch(), batch)))
	}
}

func (b *testBundle) tick() delivery {
	return delivery{Subject: b.names.RefreshTick(), Sequence: b.seq.Add(1)}
}

// TestTickAgain: the worker of a tick dies after it has opened the round and published some
// of its batches. The tick is redelivered, and it is one round.
func TestTickAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const accounts = 6
	for i := range accounts {
		b.due(t, fmt.Sprint("acme", i), time.Hour)
	}
	h := b.refresh(b.refresher())
	wakeups := &batches{room: 1}
	h.Wakeups, h.BatchSize = wakeups, 2
	tick := b.tick()
	wantAway(t, h.Handle(t.Context(), tick))
	wakeups.room = 10
	testkit.Must(t, h.Handle(t.Context(), tick))
	for _, batch := range wakeups.all {
		testkit.Must(t, h.Handle(t.Context(), b.wakeup(t, b.names.RefreshBatch(), batch)))
	}
	summary := b.summary(t, 1)
	testkit.Equal(t, "tokens of the round", summary.Total, accounts)
	testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), accounts)
	rounds := map[string]bool{}
	for _, batch := range wakeups.all {
		rounds[batch.Round] = true
	}
	testkit.Equal(t, "rounds", len(rounds), 1)
	testkit.Equal(t, "batches", len(wakeups.all), 4)
}

// batches records the published batches, up to a limit if there is one.
type batches struct {
	all  []jetpost.RefreshBatch
	room int
}

func (b *batches) Batch(_ context.Context, batch jetpost.RefreshBatch) error {
	if b.room > 0 && len(b.all) >= b.room {
		return errAway
	}
	b.all = append(b.all, batch)
	return nil
}

// TestRefreshAppRefused: X does not know the app. No account is blamed, and after the first
// batch no other one tries.
func TestRefreshAppRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const accounts = 6
	for i := range accounts {
		b.due(t, fmt.Sprint("acme", i), time.Hour)
	}
	b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusUnauthorized, Endpoint: xsim.EndpointToken})
	r := b.refresher()
	h := b.refresh(r)
	h.BatchSize = 2
	b.round(t, h)
	testkit.Equal(t, "summary", b.summary(t, 1), jetpost.RefreshSummary{Total: accounts, Failed: 2, Skipped: accounts - 2})
	testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 2)
	pause, ok, err := b.pauses.Get(t.Context(), publishers.TargetRefresh)
	testkit.Must(t, err)
	if !ok || pause.Reason.Code != jetpost.CodeAppMisconfigured || !pause.Active(time.Now()) {
		t.Errorf("pause is %+v", pause)
	}
	testkit.Equal(t, "posts are paused, too", b.paused(t), false)
	for i := range accounts {
		account := fmt.Sprint("acme", i)
		testkit.Equal(t, account+" requires re-authorising", b.token(t, account).RequiresReauth, false)
		testkit.Equal(t, "event", b.last(t, b.names.EventsStream(), b.names.EventSubject(jetpost.EventAccountReauthRequired, account, "")) == nil, true)
	}
	b.round(t, h)
	testkit.Must(t, h.Handle(t.Context(), b.wakeup(t, b.names.RefreshRequest(), jetpost.RefreshRequest{Account: "acme0", Force: true})))
	token, err := r.EnsureFresh(t.Context(), "acme0", 0)
	testkit.Must(t, err) // it is valid
	if _, err = r.EnsureFresh(t.Context(), "acme0", token.Version); decisionOf(err).reason.Code != jetpost.CodeAppPaused {
		t.Errorf("a refused token during the pause: %v", err)
	}
	testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 2)
}

// TestRefreshBackoff: a temporary failure delays the token, and the next success clears it.
func TestRefreshBackoff(t *testing.T) {
	t.Parallel()
	closed := xapi.NewTransport()
	for name, fault := range map[string]xsim.Fault{
		"429":   {Kind: xsim.FaultStatus, Status: http.StatusTooManyRequests},
		"dial":  {},
		"empty": {Kind: xsim.FaultStatus, Status: http.StatusNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.due(t, "acme", time.Minute)
			if fault.Kind == "" {
				b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
					r.URL.Scheme, r.URL.Host = "http", "127.0.0.1:1"
					return closed.RoundTrip(r)
				})
			} else {
				b.faults(t, fault)
			}
			r := b.refresher()
			h := b.refresh(r)
			for range 2 {
				b.round(t, h)
				_, err := r.EnsureFresh(t.Context(), "acme", 0)
				testkit.Must(t, err) // it is used meanwhile
			}
			token := b.token(t, "acme")
			if token.RequiresReauth || token.RefreshError == "" || !token.NextAttemptAt.After(time.Now()) || token.LeaseID != "" {
				t.Errorf("token is %+v, next attempt at %v", token.TokenMeta, token.NextAttemptAt)
			}
			b.stored(t, "acme", 0)
			if fault.Kind != "" {
				testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 1)
			}
			testkit.Equal(t, "record", b.last(t, b.names.FailedStream(), b.names.RefreshFailed("acme")) != nil, true)
			b.faults(t)
			b.hc.Transport = b.x
			testkit.Must(t, h.Handle(t.Context(), b.wakeup(t, b.names.RefreshOrder(), jetpost.RefreshRequest{Account: "acme", Force: true})))
			b.stored(t, "acme", 1)
			if token := b.token(t, "acme"); token.RefreshError != "" || !token.RefreshFailedAt.IsZero() || !token.NextAttemptAt.IsZero() || token.LastRefreshAt.IsZero() {
				t.Errorf("after a success the token is %+v, next attempt at %v", token.TokenMeta, token.NextAttemptAt)
			}
		})
	}
}

// silentDeadLetters publishes nothing, and counts.
type silentDeadLetters struct {
	failures, events atomic.Int64
	fail             error
}

func (r *silentDeadLetters) Event(context.Context, string, jetpost.Event) error {
	r.events.Add(1)
	return r.fail
}

func (r *silentDeadLetters) Events(_ context.Context, events []publishers.Told) func() []error {
	r.events.Add(int64(len(events)))
	return func() []error { return slices.Repeat([]error{r.fail}, len(events)) }
}

func (r *silentDeadLetters) Failed(context.Context, jetpost.RequestStatus, []byte) error {
	return r.fail
}

func (r *silentDeadLetters) Refused(context.Context, jetpost.Refusal, string, []byte) error {
	return r.fail
}

func (r *silentDeadLetters) AnnounceAccounts(context.Context, string) error {
	r.events.Add(1)
	return nil
}

func (r *silentDeadLetters) RefreshFailed(context.Context, string, jetpost.Reason) error {
	r.failures.Add(1)
	return nil
}

// bubble returns a refresher without sockets.
func (b *testBundle) bubble() *refresher {
	r := b.refresher()
	deadLetters := &silentDeadLetters{}
	r.Gate, r.DeadLetters, r.Announce = newGate(&admissiontest.PauseStore{}), deadLetters, deadLetters
	return r
}

// TestRefreshAnswerLost: the refresh token may be spent. The access token is used until
// near its end. Then the refresh token is tried once more, and that decides.
func TestRefreshAnswerLost(t *testing.T) {
	t.Parallel()
	for _, made := range []bool{false, true} {
		t.Run(fmt.Sprintf("exchange made %t", made), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := offline(t)
				b.due(t, "acme", time.Hour)
				r := b.bubble()
				h := b.refresh(r)
				b.faults(t, xsim.Fault{Kind: xsim.FaultCut, After: made, Endpoint: xsim.EndpointToken, Times: 1})
				b.round(t, h)
				testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 1)
				first := b.token(t, "acme")
				testkit.Equal(t, "requires re-authorising", first.RequiresReauth, false)
				for time.Now().Before(first.ExpiresAt.Add(-tokenTiming{}.nearEnd() - time.Minute)) {
					token, err := r.EnsureFresh(t.Context(), "acme", 0)
					testkit.Must(t, err)
					testkit.Equal(t, "version", token.Version, first.Version)
					b.round(t, h)
					sleep(time.Minute)
				}
				testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 1)
				sleep(time.Until(first.ExpiresAt.Add(-tokenTiming{}.nearEnd() + time.Second)))
				token, err := r.EnsureFresh(t.Context(), "acme", 0)
				testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 2)
				if made {
					testkit.Equal(t, "code", decisionOf(err).reason.Code, jetpost.CodeAccountReauthRequired)
					testkit.Equal(t, "requires re-authorising", b.token(t, "acme").RequiresReauth, true)
					return
				}
				testkit.Must(t, err)
				testkit.Equal(t, "version", token.Version, first.Version+1)
				b.stored(t, "acme", 1)
			})
		})
	}
}

// TestRefreshOnceForAll: lanes, a tick and a person want a token renewed at the same time.
// X receives one exchange.
func TestRefreshOnceForAll(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.due(t, "acme", time.Minute)
	b.faults(t, xsim.Fault{Kind: xsim.FaultLatency, Endpoint: xsim.EndpointToken, DelayMS: 200})
	old := b.token(t, "acme")
	start := make(chan struct{})
	var all sync.WaitGroup
	for range 8 {
		r := b.refresher()
		all.Go(func() {
			<-start
			token, err := r.EnsureFresh(t.Context(), "acme", 0)
			if err != nil || token.Version != old.Version && token.Version != old.Version+1 {
				t.Errorf("version %d, %v", token.Version, err)
			}
		})
		all.Go(func() {
			<-start
			token, err := r.EnsureFresh(t.Context(), "acme", old.Version)
			if err == nil && token.Version == old.Version {
				t.Error("the token that X has refused came back")
			} else if v := decisionOf(err); err != nil && v.kind != kindHold {
				t.Errorf("a lane that cannot wait gets %v", err)
			}
		})
	}
	all.Go(func() { <-start; b.round(t, b.refresh(b.refresher())) })
	close(start)
	all.Wait()
	b.stored(t, "acme", 1)
	testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 1)
}

// decisionOf is what a lane decides about the error of a token.
func decisionOf(err error) decision {
	if err == nil {
		return goOn()
	}
	return judge(err, situation{now: time.Now()})
}

// TestRefreshOutlivesItsWorker: the worker is asked to end while X answers. The pair is
// stored all the same.
func TestRefreshOutlivesItsWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.due(t, "acme", time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
		cancel()
		return b.x.RoundTrip(r)
	})
	_, err := b.refresher().EnsureFresh(ctx, "acme", 0)
	testkit.Must(t, err)
	b.stored(t, "acme", 1)
}

// TestRefreshFenced: the account is imported again during the exchange. The imported pair
// is newer and stays.
func TestRefreshFenced(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.due(t, "acme", time.Minute)
	b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
		answer, err := b.x.RoundTrip(r)
		b.reconnect(t, "acme")
		return answer, err
	})
	_, err := b.refresher().EnsureFresh(t.Context(), "acme", 1)
	if v := decisionOf(err); v.kind != kindHold {
		t.Errorf("error is %v", err)
	}
	b.stored(t, "acme", 0)
	token, err := b.refresher().EnsureFresh(t.Context(), "acme", 1)
	testkit.Must(t, err)
	testkit.Equal(t, "version", token.Version, 2)
}

// TestRefreshFailureFenced: a refused grant of a token that was replaced meanwhile has no
// consequence.
func TestRefreshFailureFenced(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.due(t, "acme", time.Minute)
	b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
		b.reconnect(t, "acme")
		return b.x.RoundTrip(r)
	})
	_, err := b.refresher().EnsureFresh(t.Context(), "acme", 1)
	testkit.Equal(t, "code", decisionOf(err).reason.Code, jetpost.CodeTokenRefreshFailed)
	testkit.Equal(t, "requires re-authorising", b.token(t, "acme").RequiresReauth, false)
	testkit.Equal(t, "event", b.last(t, b.names.EventsStream(), b.names.EventSubject(jetpost.EventAccountReauthRequired, "acme", "")) == nil, true)
}

// TestRefreshFreshEnough: a token that is valid for long is not renewed, and one that was
// already renewed is not renewed again.
func TestRefreshFreshEnough(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.account(t, "acme", 0)
	r := b.refresher()
	for range 2 {
		_, err := r.EnsureFresh(t.Context(), "acme", 0)
		testkit.Must(t, err)
	}
	testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 0)
	for range 2 {
		token, err := r.EnsureFresh(t.Context(), "acme", 1)
		testkit.Must(t, err)
		testkit.Equal(t, "version", token.Version, 2)
	}
	b.stored(t, "acme", 1)
	if _, err := r.EnsureFresh(t.Context(), "nobody", 0); decisionOf(err).reason.Code != jetpost.CodeAccountReauthRequired {
		t.Errorf("an account without a token: %v", err)
	}
}

// TestRefreshUnreadable: a token that no key decrypts waits for its key, and neither a
// batch nor a request by hand waits with it.
func TestRefreshUnreadable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	mine := b.ledger
	sealer, err := store.NewSealer(store.GenerateKey().Reveal())
	testkit.Must(t, err)
	b.ledger = b.open(t, sealer)
	b.due(t, "locked", time.Minute)
	b.ledger = mine
	b.due(t, "acme", time.Hour)
	b.due(t, "bolt", time.Hour)
	h := b.refresh(b.refresher())
	b.round(t, h)
	testkit.Equal(t, "summary", b.summary(t, 1), jetpost.RefreshSummary{Total: 3, Refreshed: 2, Skipped: 1})
	b.stored(t, "acme", 1)
	b.stored(t, "bolt", 1)
	testkit.Must(t, h.Handle(t.Context(), b.wakeup(t, b.names.RefreshRequest(), jetpost.RefreshRequest{Account: "locked", Force: true})))

	key := b.accept(t, jetpost.Request{Account: "locked", ID: "one", Posts: thread("one")})
	b.run(t, b.lane(), "locked")
	b.want(t, key, jetpost.StateHeld, jetpost.CodeKeyUnavailable, 0)
}

// TestRefreshBatchIsCounted: the database does not answer when a batch is counted. The
// batch is counted once, and claims no tokens of other batches meanwhile.
func TestRefreshBatchIsCounted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 3 {
		b.due(t, fmt.Sprint("acme", i), time.Hour)
	}
	away := 2
	r := b.refresher()
	r.Tokens = &tokensHook{Tokens: b.ledger, count: func() error {
		if away--; away >= 0 {
			return errAway
		}
		return nil
	}}
	h := b.refresh(r)
	h.BatchSize = 2
	b.round(t, h)
	testkit.Equal(t, "summary", b.summary(t, 1), jetpost.RefreshSummary{Total: 3, Refreshed: 3})
}

// TestRefreshStrangeMessages: anyone who may publish requests can publish anything.
func TestRefreshStrangeMessages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	h := b.refresh(b.refresher())
	for _, subject := range []string{b.names.RefreshBatch(), b.names.RefreshRequest(), "refresh.other"} {
		for _, body := range []string{"", "{", `{"account":"nobody","round":"none"}`, "[]"} {
			testkit.Must(t, h.Handle(t.Context(), delivery{Subject: subject, Data: []byte(body)}))
		}
	}
	testkit.Equal(t, "events", b.messages(t, b.names.EventsStream()), 0)
}

// TestRefreshTellsNoToken: whatever X echoes, no token reaches an event or a dead letter.
func TestRefreshTellsNoToken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.due(t, "acme", time.Minute)
	old := b.token(t, "acme").Refresh.Reveal()
	b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
		body := fmt.Sprintf(`{"error":"invalid_request","error_description":"Value passed for the token was invalid: %s"}`, old)
		return &http.Response{StatusCode: http.StatusBadRequest, Header: http.Header{}, Body: io.NopCloser(bytes.NewBufferString(body)), Request: r}, nil
	})
	_, err := b.refresher().EnsureFresh(t.Context(), "acme", 0)
	testkit.Equal(t, "code", decisionOf(err).reason.Code, jetpost.CodeAccountReauthRequired)
	record := b.last(t, b.names.FailedStream(), b.names.RefreshFailed("acme"))
	for _, text := range []string{err.Error(), b.token(t, "acme").RefreshError, fmt.Sprint(record.Header)} {
		if text == "" || bytes.Contains([]byte(text), []byte(old)) {
			t.Errorf("told: %q", text)
		}
	}
}

// frozenTokens is a worker that freezes right after its claim.
type frozenTokens struct {
	store.Tokens
	freeze func()
}

func (f frozenTokens) ClaimToken(ctx context.Context, claim store.TokenClaim) (store.Token, bool, error) {
	token, claimed, err := f.Tokens.ClaimToken(ctx, claim)
	f.freeze()
	return token, claimed, err
}

func TestRefresherFrozenAfterClaimSendsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := offline(t)
		b.due(t, "acme", time.Hour)
		one, two := b.bubble(), b.bubble()
		one.Tokens = frozenTokens{b.ledger, func() {
			sleep(DefaultExchangeLease + time.Second)
			_, err := two.EnsureFresh(t.Context(), "acme", 1)
			testkit.Must(t, err)
		}}
		_, _ = one.EnsureFresh(t.Context(), "acme", 1) // only what X saw counts
		testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 1)
		b.stored(t, "acme", 1)
	})
}

// A gateway's 502 does not say whether the token was spent behind it.
func TestRefresherGatewayErrorIsALostAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := offline(t)
		b.due(t, "acme", time.Hour)
		r := b.bubble()
		b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: 502, After: true, Endpoint: xsim.EndpointToken, Times: 1})
		h := b.refresh(r)
		b.round(t, h)
		sleep(2 * time.Minute)
		b.round(t, h)
		testkit.Equal(t, "exchanges while the access token lives", b.calls(xsim.EndpointToken), 1)
		testkit.Equal(t, "requires reauth", b.token(t, "acme").RequiresReauth, false)
	})
}
