package consumers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// tokensHook is a ledger that calls hooks before and after each step of an exchange. A hook
// may panic, which simulates the death of the worker.
type tokensHook struct {
	store.Tokens
	save, saved, count func() error
	claim, claimed     func()
	// hangs is true if the database does not answer the commits of an exchange.
	hangs bool
}

// callEnds is when a ledger gives up a call that its database does not answer.
const callEnds = 5 * time.Second

// hung is such a call.
func hung(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, callEnds)
	defer cancel()
	<-bounded.Done()
	return &store.UnavailableError{Database: "test", Err: bounded.Err()}
}

func (h *tokensHook) ClaimToken(ctx context.Context, claim store.TokenClaim) (store.Token, bool, error) {
	step(h.claim)
	token, claimed, err := h.Tokens.ClaimToken(ctx, claim)
	if claimed {
		step(h.claimed)
	}
	return token, claimed, err
}

func (h *tokensHook) SaveToken(ctx context.Context, claim store.Token, pair store.Pair, now time.Time) error {
	if h.hangs {
		return hung(ctx)
	}
	if h.save != nil {
		if err := h.save(); err != nil {
			return err
		}
	}
	if err := h.Tokens.SaveToken(ctx, claim, pair, now); err != nil || h.saved == nil {
		return err
	}
	return h.saved()
}

func (h *tokensHook) SaveTokenFailure(ctx context.Context, claim store.Token, failure store.TokenFailure) error {
	if h.hangs {
		return hung(ctx)
	}
	return h.Tokens.SaveTokenFailure(ctx, claim, failure)
}

func step(hook func()) {
	if hook != nil {
		hook()
	}
}

func (h *tokensHook) BatchDone(ctx context.Context, result store.BatchResult) (store.Round, error) {
	if h.count != nil {
		if err := h.count(); err != nil {
			return store.Round{}, err
		}
	}
	return h.Tokens.BatchDone(ctx, result)
}

// TestRefreshSaveFails: X accepts only the new pair, so its commit is retried for as long
// as the worker lives.
func TestRefreshSaveFails(t *testing.T) {
	t.Parallel()
	t.Run("for long", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := offline(t)
			b.due(t, "acme", time.Minute)
			r := b.bubble()
			back := time.Now().Add(10 * time.Minute)
			r.Tokens = &tokensHook{Tokens: b.ledger, save: func() error {
				if time.Now().Before(back) {
					return errAway
				}
				if err := r.Health.Err(); !errors.Is(err, errAway) {
					t.Errorf("health is %v", err)
				}
				return nil
			}}
			token, err := r.EnsureFresh(t.Context(), "acme", 0)
			testkit.Must(t, err)
			testkit.Equal(t, "version", token.Version, 2)
			b.stored(t, "acme", 1)
			testkit.Must(t, r.Health.Err())
			testkit.Equal(t, "pairs left in the lifeboat", b.afloat(t), 0)
		})
	})
	t.Run("longer than the worker lives", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := offline(t)
			b.due(t, "acme", time.Minute)
			r := b.bubble()
			ctx, cancel := context.WithCancel(t.Context())
			var ended time.Time
			r.Tokens = &tokensHook{Tokens: b.ledger, save: func() error {
				if ended.IsZero() {
					cancel()
					ended = time.Now()
				}
				return errAway
			}}
			if _, err := r.EnsureFresh(ctx, "acme", 1); err == nil {
				t.Error("a pair that was not stored was given out")
			}
			testkit.Equal(t, "pairs in the lifeboat", b.afloat(t), 1)
			testkit.Must(t, b.bubble().Recover(t.Context()))
			b.stored(t, "acme", 1)
			testkit.Equal(t, "pairs left in the lifeboat", b.afloat(t), 0)
			if took := time.Since(ended); took < saveBound || took > saveBound+2*stallMax {
				t.Errorf("given up after %v", took)
			}
		})
	})
}

// TestStopWhileDatabaseHangs: the database accepts the connection and never answers. The
// new pair is soon in the lifeboat, and the worker then stops without waiting.
func TestStopWhileDatabaseHangs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		refused bool // X refuses the exchange instead of granting a pair
		afloat  int
		// after the request to stop, at most
		within time.Duration
	}{
		{name: "a pair in hand", afloat: 1},
		{name: "a failure in hand", refused: true, within: DefaultStopGrace + saveBound + tellWithin},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := offline(t)
				b.due(t, "acme", time.Minute)
				if test.refused {
					b.x.RevokeConsent("acme")
				}
				work, end := context.WithCancel(t.Context())
				stopping := make(chan struct{})
				r := b.bubble()
				r.Tokens, r.Announce, r.Stopping = &tokensHook{Tokens: b.ledger, hangs: true}, hungNews{}, stopping
				var told time.Time
				time.AfterFunc(5*time.Minute, func() {
					told = time.Now()
					close(stopping)
					time.AfterFunc(DefaultStopGrace, end)
				})
				if _, err := r.EnsureFresh(work, "acme", 1); err == nil {
					t.Error("a token that was not stored was given out")
				}
				if took := time.Since(told); told.IsZero() || took > test.within {
					t.Errorf("it ended %v after the stop", took)
				}
				testkit.Equal(t, "pairs in the lifeboat", b.afloat(t), test.afloat)
			})
		})
	}
}

// hungNews is a ledger that does not answer what there is to announce.
type hungNews struct{}

func (hungNews) AnnounceAccounts(ctx context.Context, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}

// afloat counts the pairs in the lifeboat.
func (b *testBundle) afloat(t *testing.T) int {
	t.Helper()
	pairs, _, err := b.lifeboat.Load()
	testkit.Must(t, err)
	return len(pairs)
}

// dies runs a worker that dies on the way.
func dies(t *testing.T, work func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("the worker did not die")
		}
	}()
	work()
}

// exchangeGap is where a worker dies in an exchange, and what is left of the token.
type exchangeGap struct {
	name   string
	tokens tokensHook
	// before and after run before and after X handles the exchange.
	before, after func()
	// away is true if the database does not answer when the pair is saved.
	away bool
	// doubt is true if the token is in doubt after the death.
	doubt bool
	// heard is how many exchanges X has received by then.
	heard int
	// rescued is true if the next worker saves the pair.
	rescued bool
	// lost is true if the account has to be connected again in the end.
	lost bool
	// renewed is true if the pair is already stored.
	renewed bool
}

// TestExchangeGaps: a worker dies in each gap of an exchange. The account goes on while its
// access token is valid, and then X decides. No token is presented twice without an entry
// in the journal.
func TestExchangeGaps(t *testing.T) {
	t.Parallel()
	die := func() { panic("killed") }
	died := func() error { panic("killed") }
	for _, gap := range []exchangeGap{
		{name: "before the claim", tokens: tokensHook{claim: die}},
		{name: "claimed, not sent", tokens: tokensHook{claimed: die}, doubt: true},
		{name: "sent, not arrived", before: die, doubt: true},
		{name: "sent, answered to nobody", after: die, doubt: true, heard: 1, lost: true},
		{name: "answered, database hangs", tokens: tokensHook{save: died}, doubt: true, heard: 1, rescued: true},
		{name: "answered, database away", away: true, doubt: true, heard: 1, rescued: true},
		{name: "committed", tokens: tokensHook{saved: died}, heard: 1, renewed: true},
	} {
		t.Run(gap.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := offline(t, func(s *xsim.Server) { s.KeepFamilyOnReplay = true })
				b.reuse = gap.lost // X's call log takes a killed client for a careless one
				b.due(t, "acme", time.Hour)
				before := b.token(t, "acme")
				b.diesIn(t, gap, before)

				left := b.token(t, "acme")
				testkit.Equal(t, "in doubt", !left.StartedAt.IsZero(), gap.doubt)
				testkit.Equal(t, "requires re-authorising", left.RequiresReauth, false)
				testkit.Equal(t, "exchanges by then", b.calls(xsim.EndpointToken), gap.heard)
				if gap.renewed {
					testkit.Equal(t, "version", left.Version, before.Version+1)
					b.stored(t, "acme", 1)
					return
				}
				testkit.Equal(t, "version", left.Version, before.Version)
				b.goesOnAfter(t, gap, before)
			})
		})
	}
}

// diesIn has a worker exchange the token and die in the gap.
func (b *testBundle) diesIn(t *testing.T, gap exchangeGap, before store.Token) {
	t.Helper()
	victim, hook := b.bubble(), gap.tokens
	if gap.away {
		tries := 0
		hook.save = func() error {
			if tries++; tries > 1 {
				panic("killed")
			}
			return errAway
		}
	}
	hook.Tokens = b.ledger
	victim.Tokens = &hook
	b.hc.Transport = transport(func(r *http.Request) (*http.Response, error) {
		step(gap.before)
		answer, err := b.x.RoundTrip(r)
		step(gap.after)
		return answer, err
	})
	dies(t, func() { _, _ = victim.EnsureFresh(t.Context(), "acme", before.Version) })
	b.hc.Transport = b.x
}

// goesOnAfter has another worker take over a token whose pair is not stored.
func (b *testBundle) goesOnAfter(t *testing.T, gap exchangeGap, before store.Token) {
	t.Helper()
	next := b.bubble()
	testkit.Must(t, next.Recover(t.Context()))
	switch {
	case gap.rescued:
		b.stored(t, "acme", 1)
		testkit.Equal(t, "in doubt", b.token(t, "acme").StartedAt, time.Time{})
	case !gap.doubt:
		b.round(t, b.refresh(next))
		b.stored(t, "acme", 1)
	default:
		b.outlivesDoubt(t, next, before, gap.heard, gap.lost)
	}
}

// outlivesDoubt follows a token in doubt to its end.
func (b *testBundle) outlivesDoubt(t *testing.T, r *refresher, before store.Token, heard int, lost bool) {
	t.Helper()
	h := b.refresh(r)
	for time.Now().Before(before.ExpiresAt.Add(-r.Timing.nearEnd() - time.Second)) {
		token, err := r.EnsureFresh(t.Context(), "acme", 0)
		testkit.Must(t, err)
		testkit.Equal(t, "version that serves", token.Version, before.Version)
		b.round(t, h)
		sleep(10 * time.Second)
	}
	testkit.Equal(t, "exchanges while the access token lives", b.calls(xsim.EndpointToken), heard)
	sleep(2 * time.Second)
	b.round(t, h)
	testkit.Equal(t, "exchanges near its end", b.calls(xsim.EndpointToken), heard+1)
	retries, err := b.ledger.Retries(t.Context(), "acme")
	testkit.Must(t, err)
	testkit.Equal(t, "entries in the journal", len(retries), 1)
	if !lost {
		b.stored(t, "acme", 1)
		return
	}
	testkit.Equal(t, "requires re-authorising", b.token(t, "acme").RequiresReauth, true)
	_, err = r.EnsureFresh(t.Context(), "acme", 0)
	testkit.Equal(t, "code", decisionOf(err).reason.Code, jetpost.CodeAccountReauthRequired)
	b.round(t, h)
	testkit.Equal(t, "exchanges of what X refuses", b.calls(xsim.EndpointToken), heard+1)
}

// TestExchangeCommitAnswerLost: the database stores the pair and its answer is lost. The
// second try finds the pair stored, and nothing is lost.
func TestExchangeCommitAnswerLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := offline(t)
		b.due(t, "acme", time.Minute)
		r := b.bubble()
		lost := false
		r.Tokens = &tokensHook{Tokens: b.ledger, saved: func() error {
			if lost {
				return nil
			}
			lost = true
			return errAway
		}}
		token, err := r.EnsureFresh(t.Context(), "acme", 0)
		testkit.Must(t, err)
		testkit.Equal(t, "version", token.Version, 2)
		b.stored(t, "acme", 1)
		testkit.Equal(t, "pairs left in the lifeboat", b.afloat(t), 0)
	})
}

// TestExchangeLateSuccess: a worker freezes while X's answer is on its way. Another one
// tries the token near its end, is refused and tells the user. Then the first one goes on:
// its pair is valid, and the account recovers by itself.
func TestExchangeLateSuccess(t *testing.T) {
	t.Parallel()
	b := setup(t, func(s *xsim.Server) { s.KeepFamilyOnReplay = true })
	b.reuse = true // the call log cannot know that the answer was not read
	b.due(t, "acme", time.Minute)
	key := b.accept(t, jetpost.Request{ID: "one", Posts: thread("one")})
	frozen := b.refresher()
	frozen.Tokens = &tokensHook{Tokens: b.ledger, save: func() error {
		other := b.refresher()
		other.Tokens = &aheadTokens{Tokens: b.ledger, by: 2 * DefaultExchangeLease}
		_, err := other.EnsureFresh(t.Context(), "acme", 1)
		testkit.Equal(t, "code of the other", decisionOf(err).reason.Code, jetpost.CodeAccountReauthRequired)
		testkit.Equal(t, "requires re-authorising", b.token(t, "acme").RequiresReauth, true)
		b.run(t, b.lane(), "acme")
		b.want(t, key, jetpost.StateHeld, jetpost.CodeAccountReauthRequired, 0)
		return nil
	}}
	_, err := frozen.EnsureFresh(t.Context(), "acme", 0)
	testkit.Must(t, err)
	b.stored(t, "acme", 1)
	testkit.Equal(t, "requires re-authorising", b.token(t, "acme").RequiresReauth, false)
	b.run(t, b.lane(), "acme")
	b.want(t, key, jetpost.StatePublished, "", 1)
	testkit.Must(t, b.relay().AnnounceAccounts(t.Context(), ""))
	for _, event := range []jetpost.EventType{jetpost.EventAccountReauthRequired, jetpost.EventAccountRecovered} {
		testkit.Equal(t, string(event), b.last(t, b.names.EventsStream(), b.names.EventSubject(event, "acme", "")) != nil, true)
	}
}

// aheadTokens is a ledger as a worker sees it after some time.
type aheadTokens struct {
	store.Tokens
	by time.Duration
}

func (a *aheadTokens) ClaimToken(ctx context.Context, claim store.TokenClaim) (store.Token, bool, error) {
	claim.Now = claim.Now.Add(a.by)
	return a.Tokens.ClaimToken(ctx, claim)
}

// TestAccountNewsIsToldOnce: the event of an account is published when it changes, not each
// time that a worker finds it so, and also if it could not be published at once.
func TestAccountNewsIsToldOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.due(t, "acme", time.Minute)
	b.x.RevokeConsent("acme")
	r := b.refresher()
	away := &silentDeadLetters{fail: errAway}
	r.Announce = &OutboxRelay{Ledger: b.ledger, DeadLetters: away, Names: b.names, Log: b.log}
	told := func(event jetpost.EventType) uint64 {
		subject := b.names.EventSubject(event, "acme", "")
		s, err := b.js.Stream(t.Context(), b.names.EventsStream())
		testkit.Must(t, err)
		info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(subject))
		testkit.Must(t, err)
		return info.State.Subjects[subject]
	}
	for range 3 {
		_, err := r.EnsureFresh(t.Context(), "acme", 0)
		testkit.Equal(t, "code", decisionOf(err).reason.Code, jetpost.CodeAccountReauthRequired)
	}
	testkit.Equal(t, "events while NATS is away", told(jetpost.EventAccountReauthRequired), 0)
	sweeper := &sweeper{Ledger: b.ledger, Wakeups: b.wakeups, Announce: b.relay(), Gate: r.Gate, Health: &health{}, Worker: "w", Log: b.log}
	for range 3 {
		testkit.Must(t, sweeper.Sweep(t.Context()))
	}
	testkit.Equal(t, "events of what it requires", told(jetpost.EventAccountReauthRequired), 1)
	b.reconnect(t, "acme")
	for range 3 {
		testkit.Must(t, sweeper.Sweep(t.Context()))
	}
	testkit.Equal(t, "events of the recovery", told(jetpost.EventAccountRecovered), 1)
	testkit.Equal(t, "events of what it required", told(jetpost.EventAccountReauthRequired), 1)
}

// TestEveryHeldJobSaysWhy: every held request of the queue has the reason, not only the
// head.
func TestEveryHeldJobSaysWhy(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.due(t, "acme", time.Minute)
	b.x.RevokeConsent("acme")
	ids := []string{"one", "two", "three"}
	var keys []store.Key
	for _, id := range ids {
		keys = append(keys, b.accept(t, jetpost.Request{ID: id, Posts: thread(id)}))
	}
	b.run(t, b.lane(), "acme")
	keys = append(keys, b.accept(t, jetpost.Request{ID: "four", Posts: thread("four")}))
	b.run(t, b.lane(), "acme")
	for _, key := range keys {
		b.want(t, key, jetpost.StateHeld, jetpost.CodeAccountReauthRequired, 0)
		event := b.lastEvent(t, key)
		testkit.Equal(t, "event of "+key.ID, event.Type, jetpost.EventRequestHeld)
		testkit.Equal(t, "reason told of "+key.ID, event.Request.Reason.Code, jetpost.CodeAccountReauthRequired)
	}
	b.account(t, "acme", 0) // connected again
	b.run(t, b.lane(), "acme")
	b.texts(t, "acme", "one", "two", "three", "four")
}

// TestCoolDown: X refuses a token that was just renewed, as there were hours in which it
// refused all. The token is not renewed again and again.
func TestCoolDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := offline(t)
		b.due(t, "acme", time.Minute)
		r := b.bubble()
		token, err := r.EnsureFresh(t.Context(), "acme", 1)
		testkit.Must(t, err)
		for range 3 {
			same, err := r.EnsureFresh(t.Context(), "acme", token.Version)
			testkit.Must(t, err)
			testkit.Equal(t, "version", same.Version, token.Version)
		}
		testkit.Equal(t, "exchanges", b.calls(xsim.EndpointToken), 1)
		sleep(r.Timing.coolDown())
		other, err := r.EnsureFresh(t.Context(), "acme", token.Version)
		testkit.Must(t, err)
		testkit.Equal(t, "version", other.Version, token.Version+1)
		b.stored(t, "acme", 2)
	})
}

// TestBatchTime: a batch whose time is over begins no exchange. The tokens that are left
// are skipped, and due in the next round.
func TestBatchTime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const accounts = 2 * exchangesAtOnce
	for i := range accounts {
		b.due(t, fmt.Sprint("acme", i), time.Hour)
	}
	h := b.refresh(b.refresher())
	h.BatchSize, h.BatchTime = accounts, time.Nanosecond
	b.round(t, h)
	testkit.Equal(t, "summary", b.summary(t, 1), jetpost.RefreshSummary{Total: accounts, Skipped: accounts})
	h.BatchTime = 0
	b.round(t, h)
	testkit.Equal(t, "summary", b.summary(t, 2), jetpost.RefreshSummary{Total: accounts, Refreshed: accounts})
}

// TestRefreshStoodStill: all calls of a worker that was frozen have failed. That says
// nothing about X, and the rest of the round is refreshed.
func TestRefreshStoodStill(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		stood time.Duration // beyond the timeout of a call
		want  jetpost.RefreshSummary
	}{
		"frozen":      {time.Minute, jetpost.RefreshSummary{Total: 9, Refreshed: 4, Failed: 5}},
		"X is silent": {0, jetpost.RefreshSummary{Total: 9, Failed: 5, Skipped: 4}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := offline(t)
				for i := range admission.BreakerThreshold + 4 {
					b.due(t, fmt.Sprint("acme", i), time.Hour)
				}
				r := b.bubble()
				calls := 0
				b.hc.Transport = transport(func(req *http.Request) (*http.Response, error) {
					if calls++; calls > admission.BreakerThreshold {
						return b.x.RoundTrip(req)
					}
					<-req.Context().Done()
					sleep(test.stood)
					return nil, req.Context().Err()
				})
				var told jetpost.RefreshSummary
				r.DeadLetters = &summaries{silentDeadLetters: &silentDeadLetters{}, last: &told}
				h := b.refresh(r)
				h.BatchSize = 1
				b.round(t, h)
				told.Round = ""
				testkit.Equal(t, "summary", told, test.want)
			})
		})
	}
}

// summaries keeps the last summary of a round.
type summaries struct {
	*silentDeadLetters
	last *jetpost.RefreshSummary
}

func (s *summaries) Event(_ context.Context, _ string, event jetpost.Event) error {
	if event.Refresh != nil {
		*s.last = *event.Refresh
	}
	return nil
}
