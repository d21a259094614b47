package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const window = 24 * time.Hour

func identity(t *testing.T, b *bundle) {
	id, err := b.st.LedgerID(t.Context())
	testkit.Must(t, err)
	if _, err := uuid.Parse(id); err != nil {
		t.Errorf("ledger id %q: %v", id, err)
	}
	again, err := b.open(t, b.keys).LedgerID(t.Context())
	testkit.Must(t, err)
	equal(t, "id of the same ledger", again, id)
}

func checkKeys(t *testing.T, b *bundle) {
	testkit.Must(t, b.st.CheckKeys(t.Context()))
	testkit.Must(t, b.st.CheckKeys(t.Context()))
	other := store.GenerateKey().Reveal()
	var wrong *store.KeyError
	if err := b.open(t, other).CheckKeys(t.Context()); !errors.As(err, &wrong) {
		t.Fatalf("another key: error is %v, want a KeyError", err)
	}
	equal(t, "missing key", wrong.KeyID, keyID(t, b.keys))
	testkit.Must(t, b.open(t, other+","+b.keys).CheckKeys(t.Context()))
}

func checkKeysAfterRotation(t *testing.T, b *bundle) {
	testkit.Must(t, b.st.CheckKeys(t.Context()))
	newer := store.GenerateKey().Reveal()
	both := b.open(t, newer+","+b.keys)
	testkit.Must(t, both.CheckKeys(t.Context()))
	var wrong *store.KeyError
	if err := b.open(t, newer).CheckKeys(t.Context()); !errors.As(err, &wrong) {
		t.Fatalf("a token needs the old key: error is %v, want a KeyError", err)
	}
	claim, _, err := both.ClaimToken(t.Context(), b.tokenClaim(t, acme, longLease))
	testkit.Must(t, err)
	testkit.Must(t, both.SaveToken(t.Context(), claim, pair("next", b.now.Add(time.Hour)), b.now))
	testkit.Must(t, both.CheckKeys(t.Context()))
	testkit.Must(t, b.open(t, newer).CheckKeys(t.Context()))
}

func keyID(t *testing.T, keys string) string {
	t.Helper()
	sealer, err := store.NewSealer(keys)
	testkit.Must(t, err)
	return sealer.KeyID()
}

func tryLease(t *testing.T, b *bundle) {
	try := func(name, owner string, d time.Duration) bool {
		ok, err := b.st.TryLease(t.Context(), name, owner, d, b.clock(t))
		testkit.Must(t, err)
		return ok
	}
	equal(t, "first", try("sweep", "one", longLease), true)
	equal(t, "another owner", try("sweep", "two", longLease), false)
	equal(t, "another name", try("round", "two", longLease), true)
	equal(t, "renewed", try("sweep", "one", shortLease), true)
	testkit.Eventually(t, "taking over a lease that ran out", func() bool { return try("sweep", "two", longLease) })
	equal(t, "the owner before", try("sweep", "one", longLease), false)

	stores := []store.Store{b.st, b.open(t, b.keys)}
	winners := atOnce(t, 8, func(i int) (bool, error) {
		return stores[i%2].TryLease(t.Context(), "raced", fmt.Sprint(i), longLease, b.now)
	})
	equal(t, "winners of a race", winners, 1)
}

func importAccount(t *testing.T, b *bundle) {
	equal(t, "account", b.account(t, acme), store.Account{
		Name: acme, XUserID: "id-acme", Username: "user_acme", CreatedAt: b.now, TokenExpiresAt: b.now.Add(2 * time.Hour),
	})
	token := b.token(t, acme)
	if _, err := uuid.Parse(token.ID); err != nil {
		t.Errorf("token id %q: %v", token.ID, err)
	}
	want := store.Token{
		ID: token.ID, Account: acme, Pair: pair(acme, b.now.Add(2*time.Hour)), Version: 1, RefreshedAt: b.now,
	}
	if diff := cmp.Diff(want, token, secrets()); diff != "" {
		t.Errorf("token (-want +got):\n%s", diff)
	}
	_, err := b.st.Token(t.Context(), "nobody")
	fails(t, "token of no account", err, store.ErrNotFound)
}

func importAccountAgain(t *testing.T, b *bundle) {
	claim := b.claimOne(t, acme, longLease)
	testkit.Must(t, b.st.SaveToken(t.Context(), claim, pair("second", b.now.Add(time.Hour)), b.now))
	claim = b.claimOne(t, acme, longLease)
	testkit.Must(t, b.st.SaveTokenFailure(t.Context(), claim,
		store.TokenFailure{Error: "refused", Outcome: store.ExchangeRefused, NextAttempt: b.now.Add(time.Hour), Now: b.now}))
	b.acceptAll(t, "waiting", "other")
	lane := b.claim(t)
	b.conclude(t, lane, "waiting", jetpost.StateHeld, jetpost.CodeAccountReauthRequired, time.Time{})
	b.conclude(t, lane, "other", jetpost.StateHeld, jetpost.CodePoison, time.Time{})
	b.release(t, lane, time.Time{})
	equal(t, "lane is due before", b.due(t, b.now), false)

	result, err := b.importPair(t, pair("third", b.now.Add(3*time.Hour)), b.now)
	testkit.Must(t, err)
	equal(t, "result", result, store.TokenReplaced)
	account := b.account(t, acme)
	equal(t, "user name", account.Username, "renamed")
	equal(t, "failures", account.TokenMeta, store.TokenMeta{LastRefreshAt: b.now})
	token := b.token(t, acme)
	equal(t, "version", token.Version, int64(3))
	equal(t, "next attempt", token.NextAttemptAt, time.Time{})
	equal(t, "access token", token.Access.Reveal(), "access-of-third-in-the-clear")
	equal(t, "hold ended", b.request(t, "waiting").HoldUntil, b.now)
	equal(t, "other hold", b.request(t, "other").HoldUntil, time.Time{})
	equal(t, "lane is due after", b.due(t, b.now), true)

	claim = b.claimOne(t, acme, shortLease)
	testkit.Eventually(t, "import after a lease that ran out", func() bool {
		result, err = b.importPair(t, pair("fourth", b.now.Add(3*time.Hour)), b.clock(t))
		return !errors.Is(err, store.ErrTokenBusy)
	})
	testkit.Must(t, err)
	equal(t, "result then", result, store.TokenReplaced)
	equal(t, "lease", b.token(t, acme).LeaseID, "")
	fails(t, "saving what the import replaced", b.st.SaveToken(t.Context(), claim, pair("late", b.now), b.now), store.ErrFenced)
}

// importPair imports acme, whose user has got another name since.
func (b *bundle) importPair(t *testing.T, pair store.Pair, now time.Time) (store.ImportResult, error) {
	t.Helper()
	return b.st.ImportAccount(t.Context(), store.Import{Name: acme, XUserID: "id-acme", Username: "renamed", Pair: pair, Now: now})
}

// requireReauth makes X refuse acme's token, and holds a request for that.
func (b *bundle) requireReauth(t *testing.T, claim store.Token) {
	t.Helper()
	testkit.Must(t, b.st.SaveTokenFailure(t.Context(), claim, store.TokenFailure{Error: "refused", Outcome: store.ExchangeRefused, Now: b.now}))
	b.acceptAll(t, "waiting")
	lane := b.claim(t)
	b.conclude(t, lane, "waiting", jetpost.StateHeld, jetpost.CodeAccountReauthRequired, time.Time{})
	b.release(t, lane, time.Time{})
	equal(t, "lane is due before", b.due(t, b.now), false)
}

// The result of an exchange under way must find the row as it was claimed; otherwise
// the only living pair could be lost.
func importAccountBusy(t *testing.T, b *bundle) {
	claim := b.claimOne(t, acme, longLease)
	before := b.token(t, acme)
	_, err := b.importPair(t, pair("second", b.now.Add(3*time.Hour)), b.clock(t))
	fails(t, "import while the token is exchanged", err, store.ErrTokenBusy)
	if diff := cmp.Diff(before, b.token(t, acme), secrets()); diff != "" {
		t.Errorf("token (-before +after):\n%s", diff)
	}
	equal(t, "user name", b.account(t, acme).Username, "user_acme")
	testkit.Must(t, b.st.SaveToken(t.Context(), claim, pair("fresh", b.now.Add(time.Hour)), b.now))
	result, err := b.importPair(t, pair("second", b.now.Add(3*time.Hour)), b.clock(t))
	testkit.Must(t, err)
	equal(t, "result after the exchange", result, store.TokenReplaced)
}

// A pair from a new consent is the living one, whatever an exchange of the old pair
// still brings.
func importAccountConsented(t *testing.T, b *bundle) {
	claim := b.claimOne(t, acme, longLease)
	result, err := b.st.ImportAccount(t.Context(), store.Import{
		Name: acme, XUserID: "id-acme", Username: "renamed", Pair: pair("second", b.now.Add(3*time.Hour)), Consented: true, Now: b.now,
	})
	testkit.Must(t, err)
	equal(t, "result", result, store.TokenReplaced)
	fails(t, "what the exchange brought", b.st.SaveToken(t.Context(), claim, pair("late", b.now), b.now), store.ErrFenced)
	fails(t, "that X refused it",
		b.st.SaveTokenFailure(t.Context(), claim, store.TokenFailure{Error: "refused", Outcome: store.ExchangeRefused, Now: b.now}), store.ErrFenced)
	token := b.token(t, acme)
	equal(t, "stored pair", token.Refresh.Reveal(), "refresh-of-second-in-the-clear")
	equal(t, "lease", token.LeaseID, "")
	equal(t, "start of an exchange", token.StartedAt, time.Time{})
	equal(t, "requires re-authorising", token.RequiresReauth, false)

	// Nothing overwrites what a missing key opens.
	var missing *store.KeyError
	_, err = b.open(t, store.GenerateKey().Reveal()).ImportAccount(t.Context(), store.Import{
		Name: acme, XUserID: "id-acme", Username: "renamed", Pair: pair("third", b.now.Add(3*time.Hour)), Consented: true, Now: b.now,
	})
	if !errors.As(err, &missing) {
		t.Errorf("consent over a row of another key: error is %v, want a KeyError", err)
	}
	equal(t, "stored pair", b.token(t, acme).Refresh.Reveal(), "refresh-of-second-in-the-clear")
}

func importAccountUnchanged(t *testing.T, b *bundle) {
	same := func(what, imported string) {
		before := b.token(t, acme)
		result, err := b.importPair(t, pair(imported, b.now.Add(9*time.Hour)), b.clock(t))
		testkit.Must(t, err)
		equal(t, "result "+what, result, store.TokenUnchanged)
		if diff := cmp.Diff(before, b.token(t, acme), secrets()); diff != "" {
			t.Errorf("token %s (-before +after):\n%s", what, diff)
		}
	}
	same("before any exchange", acme)
	claim := b.claimOne(t, acme, longLease)
	same("in an exchange", acme)
	testkit.Must(t, b.st.SaveToken(t.Context(), claim, pair("fresh", b.now.Add(time.Hour)), b.now))
	same("after an exchange", acme)
	equal(t, "user name", b.account(t, acme).Username, "renamed")

	b.requireReauth(t, b.claimOne(t, acme, longLease))
	same("that X refuses", acme)
	equal(t, "hold", b.request(t, "waiting").HoldUntil, time.Time{})
	equal(t, "lane is due", b.due(t, b.clock(t)), false)
	result, err := b.importPair(t, pair("second", b.now.Add(3*time.Hour)), b.now)
	testkit.Must(t, err)
	equal(t, "result of another pair", result, store.TokenReplaced)
	same("of the second import", "second")
}

func importAccountTaken(t *testing.T, b *bundle) {
	_, err := b.st.ImportAccount(t.Context(), store.Import{Name: acme, XUserID: "stranger", Pair: pair("x", b.now), Now: b.now})
	fails(t, "name of another user", err, store.ErrNameTaken)
	_, err = b.st.ImportAccount(t.Context(), store.Import{Name: "alias", XUserID: "id-acme", Pair: pair("x", b.now), Now: b.now})
	fails(t, "user of another name", err, store.ErrUserTaken)
	equal(t, "version", b.token(t, acme).Version, int64(1))
	_, err = b.st.Account(t.Context(), "alias")
	fails(t, "refused account", err, store.ErrNotFound)
}

func accounts(t *testing.T, b *bundle) {
	b.add(t, "zeta")
	b.add(t, "alpha")
	b.acceptAll(t, "open", "held", "done")
	lane := b.claim(t)
	b.publish(t, lane, "done", 0)
	b.conclude(t, lane, "held", jetpost.StateHeld, jetpost.CodeRateLimited, b.now.Add(time.Hour))
	all, err := b.st.Accounts(t.Context())
	testkit.Must(t, err)
	var names []string
	for _, a := range all {
		names = append(names, fmt.Sprint(a.Name, a.Open))
	}
	equal(t, "accounts and their open requests", names, []string{"acme2", "alpha0", "zeta0"})
	equal(t, "one of them", b.account(t, acme), all[0])
	_, err = b.st.Account(t.Context(), "nobody")
	fails(t, "no such account", err, store.ErrNotFound)
}

func tokensAreSealed(t *testing.T, b *bundle) {
	claim := b.claimOne(t, acme, longLease)
	testkit.Must(t, b.st.SaveToken(t.Context(), claim, pair("second", b.now.Add(time.Hour)), b.now))
	dump := b.ledger.Dump(t)
	if !bytes.Contains(dump, []byte("user_acme")) {
		t.Fatal("the dump does not even hold the user name: it shows nothing")
	}
	for _, value := range []string{"access-of-acme", "refresh-of-acme", "access-of-second", "refresh-of-second"} {
		if bytes.Contains(dump, []byte(value)) {
			t.Errorf("%s is stored in the clear", value)
		}
	}
}

func tokenUnopenable(t *testing.T, b *bundle) {
	stranger := b.open(t, store.GenerateKey().Reveal())
	var wrong *store.KeyError
	if _, err := stranger.Token(t.Context(), acme); !errors.As(err, &wrong) {
		t.Errorf("another key: error is %v, want a KeyError", err)
	}
	if _, _, err := stranger.ClaimToken(t.Context(), b.tokenClaim(t, acme, longLease)); !errors.As(err, &wrong) {
		t.Errorf("claim with another key: error is %v, want a KeyError", err)
	}
	equal(t, "lease", b.token(t, acme).LeaseID, "")
	b.ledger.Exec(t, "UPDATE oauth_tokens SET access_token = refresh_token")
	var damaged *store.DamagedError
	if _, err := b.st.Token(t.Context(), acme); !errors.As(err, &damaged) {
		t.Errorf("a column's value in another column: error is %v, want a DamagedError", err)
	}
}

func claimDueRule(t *testing.T, b *bundle) {
	const hour = time.Hour
	fail := func(failure store.TokenFailure) func(*testing.T, string) {
		return func(t *testing.T, name string) {
			failure.Error, failure.Now = "failed", b.now
			// The claim's lease is so short that only its outcome holds the token.
			testkit.Must(t, b.st.SaveTokenFailure(t.Context(), b.claimOne(t, name, shortLease), failure))
		}
	}
	lease := func(d time.Duration) func(*testing.T, string) {
		return func(t *testing.T, name string) { b.claimOne(t, name, d) }
	}
	cases := []struct {
		name    string
		got     time.Duration // before now
		expires time.Duration // after now
		act     func(*testing.T, string)
		due     bool
	}{
		{"backoff", 5 * hour, hour, fail(store.TokenFailure{NextAttempt: b.now.Add(hour)}), false},
		{"backoff_over", 5 * hour, hour, fail(store.TokenFailure{NextAttempt: b.now}), true},
		{"beyond_window", 100 * hour, window + hour, nil, false},
		{"expired", 5 * hour, -3 * hour, nil, true},
		{"leased", 5 * hour, hour, lease(longLease), false},
		{"lost_answer", 5 * hour, hour, fail(store.TokenFailure{Outcome: store.ExchangeUnknown}), false},
		{"lost_answer_near_end", 5 * hour, nearEnd, fail(store.TokenFailure{Outcome: store.ExchangeUnknown}), true},
		{"lost_worker", 5 * hour, hour, lease(shortLease), false},
		{"lost_worker_near_end", 5 * hour, nearEnd, lease(shortLease), true},
		{"old", hour + time.Minute, hour - time.Minute, nil, true},
		{"reauth", 5 * hour, hour, fail(store.TokenFailure{Outcome: store.ExchangeRefused, NextAttempt: b.now.Add(-hour)}), false},
		{"young", hour - time.Minute, hour + time.Minute, nil, false},
	}
	var want []string
	for _, rule := range cases {
		b.addToken(t, rule.name, b.now.Add(-rule.got), b.now.Add(rule.expires))
		if rule.act != nil {
			rule.act(t, rule.name)
		}
		if rule.due {
			want = append(want, rule.name)
		}
	}
	now := b.clock(t)
	round, err := b.st.OpenRound(t.Context(), uuid.NewString(), window, 3, now)
	testkit.Must(t, err)
	equal(t, "tokens of the round", round.Total, len(want))
	tokens, err := b.st.ClaimDue(t.Context(), store.DueClaim{Round: round.Round, Limit: 100, Pace: pace(longLease), Now: now})
	testkit.Must(t, err)
	equal(t, "due tokens", namesOf(tokens), want)
	for _, token := range tokens {
		retries, err := b.st.Retries(t.Context(), token.Account)
		testkit.Must(t, err)
		lost := strings.HasPrefix(token.Account, "lost_")
		equal(t, token.Account+" is retried, and in the journal", []bool{!token.InDoubtSince.IsZero(), len(retries) == 1}, []bool{lost, lost})
		if token.LeaseID == "" || !token.LeaseUntil.After(now) || token.Access.Reveal() != "access-of-"+token.Account+"-in-the-clear" {
			t.Errorf("token of %s is claimed with lease %q until %s", token.Account, token.LeaseID, token.LeaseUntil)
		}
	}
}

// namesOf returns the accounts of tokens by name.
func namesOf(tokens []store.Token) (names []string) {
	for _, token := range tokens {
		names = append(names, token.Account)
	}
	slices.Sort(names)
	return names
}

// addDue imports n accounts whose tokens are due, the first one first.
func (b *bundle) addDue(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		b.addToken(t, fmt.Sprintf("due-%02d", i), b.now.Add(-5*time.Hour), b.now.Add(time.Duration(i)*time.Minute))
	}
}

func (b *bundle) claimDue(t *testing.T, round string, limit int) []store.Token {
	t.Helper()
	tokens, err := b.st.ClaimDue(t.Context(), store.DueClaim{Round: round, Limit: limit, Pace: pace(longLease), Now: b.clock(t)})
	testkit.Must(t, err)
	return tokens
}

func (b *bundle) openRound(t *testing.T, batchSize int) store.Round {
	t.Helper()
	round, err := b.st.OpenRound(t.Context(), uuid.NewString(), window, batchSize, b.clock(t))
	testkit.Must(t, err)
	return round
}

func claimDueOrder(t *testing.T, b *bundle) {
	b.addDue(t, 3)
	round := b.openRound(t, 2).Round
	var order []string
	for _, limit := range []int{2, 2} {
		tokens := b.claimDue(t, round, limit)
		for _, token := range tokens {
			order = append(order, token.Account)
		}
		order = append(order, "|")
	}
	equal(t, "order of claims", strings.Join(order, " "), "due-00 due-01 | due-02 |")
}

func claimDueOnceARound(t *testing.T, b *bundle) {
	b.addDue(t, 1)
	failAll := func(tokens []store.Token) {
		for _, token := range tokens {
			testkit.Must(t, b.st.SaveTokenFailure(t.Context(), token, store.TokenFailure{Error: "x", Now: b.clock(t)}))
		}
	}
	first, second := b.openRound(t, 10).Round, b.openRound(t, 10).Round
	claims := func(what, round string, want int) {
		tokens := b.claimDue(t, round, 10)
		equal(t, what, len(tokens), want)
		failAll(tokens)
	}
	claims("tokens of the first round", first, 1)
	claims("tokens of it again", first, 0)
	claims("tokens of a round that was open meanwhile", second, 0)
	third := b.openRound(t, 10).Round
	claims("tokens of a late batch", first, 0)
	claims("tokens of a new round", third, 1)
	claims("tokens of no round", uuid.NewString(), 0)
}

func claimDueConcurrently(t *testing.T, b *bundle) {
	const tokens, workers = 24, 8
	b.addDue(t, tokens)
	round := b.openRound(t, 3).Round
	stores := []store.Store{b.st, b.open(t, b.keys)}
	var mu sync.Mutex
	times := make(map[string]int)
	now := b.clock(t)
	atOnce(t, workers, func(i int) (bool, error) {
		for {
			got, err := stores[i%2].ClaimDue(t.Context(),
				store.DueClaim{Round: round, Limit: 2, Pace: pace(longLease), Now: now})
			if err != nil || len(got) == 0 {
				return true, err
			}
			mu.Lock()
			for _, token := range got {
				times[token.Account]++
			}
			mu.Unlock()
		}
	})
	equal(t, "claimed tokens", len(times), tokens)
	for name, n := range times {
		if n != 1 {
			t.Errorf("token of %s was claimed %d times", name, n)
		}
	}
}

// A token that cannot be opened was not presented to X: its claim leaves no doubt and
// no journal entry, and the token is due again as soon as its key is back.
func claimDueUnopenable(t *testing.T, b *bundle) {
	b.addDue(t, 3)
	claim := func(st store.Store, round string) ([]store.Token, error) {
		return st.ClaimDue(t.Context(), store.DueClaim{Round: round, Limit: 10, Pace: pace(longLease), Now: b.clock(t)})
	}
	b.ledger.Exec(t, "UPDATE oauth_tokens SET access_token = refresh_token WHERE user_id = 'due-01'")
	tokens, err := claim(b.st, b.openRound(t, 10).Round)
	var damaged *store.DamagedError
	if !errors.As(err, &damaged) {
		t.Errorf("error is %v, want a DamagedError", err)
	}
	equal(t, "tokens that open", namesOf(tokens), []string{"due-00", "due-02"})
	for _, token := range tokens {
		testkit.Must(t, b.st.SaveTokenFailure(t.Context(), token, store.TokenFailure{Error: "x", NextAttempt: b.now, Now: b.now}))
	}

	stranger := b.open(t, store.GenerateKey().Reveal())
	for range 2 {
		round := b.openRound(t, 10).Round
		tokens, err := claim(stranger, round)
		var missing *store.KeyError
		if len(tokens) > 0 || !errors.As(err, &missing) {
			t.Fatalf("claim with another key: %d tokens, error is %v, want a KeyError", len(tokens), err)
		}
		tokens, err = claim(stranger, round)
		testkit.Must(t, err)
		equal(t, "tokens of the same round again", len(tokens), 0)
	}
	token := b.token(t, "due-00")
	equal(t, "in doubt since", token.StartedAt, time.Time{})
	equal(t, "lease", token.LeaseID, "")
	equal(t, "failure names the key", strings.Contains(token.RefreshError, keyID(t, b.keys)), true)
	retries, err := b.st.Retries(t.Context(), "due-00")
	testkit.Must(t, err)
	equal(t, "retries", len(retries), 0)
	tokens, err = claim(b.st, b.openRound(t, 10).Round)
	equal(t, "tokens once the key is back", namesOf(tokens), []string{"due-00", "due-02"})
	if !errors.As(err, &damaged) {
		t.Errorf("error is %v, want a DamagedError", err)
	}
}

func claimToken(t *testing.T, b *bundle) {
	claim := func(version int64, force bool) bool {
		token, ok, err := b.st.ClaimToken(t.Context(), store.TokenClaim{
			Account: acme, UsedVersion: version, Force: force, Pace: pace(longLease), Now: b.clock(t),
		})
		testkit.Must(t, err)
		equal(t, "account of the row", token.Account, acme)
		if ok && (token.LeaseID == "" || token.StartedAt.IsZero() || token.Attempts == 0) {
			t.Fatalf("a claim with lease %q, started at %v, attempt %d", token.LeaseID, token.StartedAt, token.Attempts)
		}
		return ok
	}
	equal(t, "another version", claim(2, true), false)
	equal(t, "young", claim(1, false), true)
	equal(t, "leased", claim(1, true), false)
	held := b.token(t, acme)
	testkit.Must(t, b.st.SaveTokenFailure(t.Context(), held,
		store.TokenFailure{Error: "x", NextAttempt: b.now.Add(time.Hour), Now: b.now}))
	equal(t, "before the next attempt", claim(1, false), false)
	equal(t, "before the next attempt, by force", claim(1, true), true)
	held = b.token(t, acme)
	equal(t, "attempts", held.Attempts, 2)
	equal(t, "doubt after nothing happened", held.InDoubtSince, time.Time{})
	testkit.Must(t, b.st.SaveTokenFailure(t.Context(), held, store.TokenFailure{Error: "x", Outcome: store.ExchangeRefused, Now: b.now}))
	equal(t, "in need of re-authorising", claim(1, true), false)
	_, _, err := b.st.ClaimToken(t.Context(), store.TokenClaim{Account: "nobody", UsedVersion: 1, Force: true, Pace: pace(longLease), Now: b.now})
	fails(t, "no such account", err, store.ErrNotFound)
	retries, err := b.st.Retries(t.Context(), acme)
	testkit.Must(t, err)
	equal(t, "journal", len(retries), 0)
}

// A lost worker and a lost answer leave the same: a token in doubt, whose next exchange
// comes near its end and is journalled first.
func claimInDoubt(t *testing.T, b *bundle) {
	for _, name := range []string{"lost_worker", "lost_answer"} {
		b.addToken(t, name, b.now.Add(-5*time.Hour), b.now.Add(time.Hour))
		claim := b.claimOne(t, name, shortLease)
		equal(t, "next attempt of "+name, claim.NextAttemptAt, claim.ExpiresAt.Add(-nearEnd))
		if name == "lost_answer" {
			testkit.Must(t, b.st.SaveTokenFailure(t.Context(), claim, store.TokenFailure{Error: "x", Outcome: store.ExchangeUnknown, NextAttempt: b.now, Now: b.now}))
		}
		left := b.token(t, name)
		equal(t, "start of the exchange of "+name, left.StartedAt, claim.StartedAt)
		equal(t, "next attempt left by "+name, left.NextAttemptAt, claim.NextAttemptAt)

		ask := store.TokenClaim{Account: name, UsedVersion: 1, Pace: pace(longLease), Now: b.clock(t)}
		try := func(what string, change func(*store.TokenClaim), want bool) (token store.Token) {
			one := ask
			change(&one)
			token, ok, err := b.st.ClaimToken(t.Context(), one)
			testkit.Must(t, err)
			equal(t, name+" claimed "+what, ok, want)
			return token
		}
		try("while its access token serves", func(*store.TokenClaim) {}, false)
		try("by force", func(c *store.TokenClaim) { c.Force = true }, false)
		retry := try("near its end", func(c *store.TokenClaim) { c.Now = left.NextAttemptAt }, true)
		equal(t, "doubt of the retry of "+name, retry.InDoubtSince, claim.StartedAt)
		retries, err := b.st.Retries(t.Context(), name)
		testkit.Must(t, err)
		equal(t, "journal of "+name, retries, []store.Retry{{Version: 1, Attempt: 2, InDoubtSince: claim.StartedAt, StartedAt: left.NextAttemptAt}})

		// Nothing happened this time. That says nothing of the exchange before.
		testkit.Must(t, b.st.SaveTokenFailure(t.Context(), retry, store.TokenFailure{Error: "x", NextAttempt: b.now.Add(time.Minute), Now: b.now}))
		equal(t, "doubt that stays of "+name, b.token(t, name).StartedAt, claim.StartedAt)
		again := try("after its backoff", func(c *store.TokenClaim) { c.Now = b.now.Add(time.Minute) }, true)
		testkit.Must(t, b.st.SaveToken(t.Context(), again, pair("next-"+name, b.now.Add(2*time.Hour)), b.now))
		saved := b.token(t, name)
		equal(t, "doubt after a success of "+name, saved.StartedAt, time.Time{})
		equal(t, "attempts after a success of "+name, saved.Attempts, 0)
	}
}

// X refuses the access token of a token in doubt. It then need not wait for its end,
// but further attempts are paced as usual.
func claimInDoubtAgain(t *testing.T, b *bundle) {
	first := b.claimOne(t, acme, shortLease)
	now := b.clock(t)
	ask := store.TokenClaim{Account: acme, UsedVersion: 1, Refused: true, Pace: pace(shortLease), Now: now}
	retry, ok, err := b.st.ClaimToken(t.Context(), ask)
	testkit.Must(t, err)
	equal(t, "claimed", ok, true)
	equal(t, "in doubt since", retry.InDoubtSince, first.StartedAt)
	equal(t, "next attempt", retry.NextAttemptAt, retry.StartedAt.Add(shortLease+2*backoff))
	ask.Now = b.clock(t)
	_, ok, err = b.st.ClaimToken(t.Context(), ask)
	testkit.Must(t, err)
	equal(t, "claimed before the next attempt", ok, false)
	for attempt := 3; attempt < 12; attempt++ {
		ask.Now = b.token(t, acme).NextAttemptAt
		again, ok, err := b.st.ClaimToken(t.Context(), ask)
		testkit.Must(t, err)
		equal(t, "claimed at the next attempt", ok, true)
		equal(t, "attempt", again.Attempts, attempt)
		wait := backoff << min(attempt-1, rules.MaxBackoffDoublings)
		equal(t, "next attempt", again.NextAttemptAt, again.StartedAt.Add(shortLease+wait))
	}
}

func claimTokenConcurrently(t *testing.T, b *bundle) {
	stores := []store.Store{b.st, b.open(t, b.keys)}
	winners := atOnce(t, 8, func(i int) (bool, error) {
		_, ok, err := stores[i%2].ClaimToken(t.Context(), store.TokenClaim{Account: acme, UsedVersion: 1, Pace: pace(longLease), Now: b.now})
		return ok, err
	})
	equal(t, "winners", winners, 1)
}

func disconnect(t *testing.T, b *bundle) {
	testkit.Must(t, b.st.SaveToken(t.Context(), b.claimOne(t, acme, longLease), pair("second", b.now.Add(time.Hour)), b.now))
	later := b.now.Add(time.Minute)
	token, err := b.st.Disconnect(t.Context(), acme, later)
	testkit.Must(t, err)
	equal(t, "pair to revoke", token.Refresh.Reveal(), "refresh-of-second-in-the-clear")
	want := store.TokenMeta{LastRefreshAt: b.now, RefreshError: store.Disconnected, RefreshFailedAt: later, RequiresReauth: true}
	equal(t, "metadata", token.TokenMeta, want)
	account := b.account(t, acme)
	equal(t, "metadata of the account", account.TokenMeta, want)
	equal(t, "disconnected", account.Disconnected(), true)
	_, claimed, err := b.st.ClaimToken(t.Context(), b.tokenClaim(t, acme, longLease))
	testkit.Must(t, err)
	equal(t, "claimed", claimed, false)
	told, err := b.st.Notices(t.Context(), acme, 10)
	testkit.Must(t, err)
	equal(t, "notices", told, []store.Notice{{Account: acme, Required: true, Error: store.Disconnected, Version: 3, At: later}})

	again, err := b.st.Disconnect(t.Context(), acme, later)
	testkit.Must(t, err)
	equal(t, "pair to revoke once more", again.Refresh.Reveal(), "refresh-of-second-in-the-clear")
	b.acceptAll(t, "waiting")
	lane := b.claim(t)
	b.conclude(t, lane, "waiting", jetpost.StateHeld, jetpost.CodeAccountReauthRequired, time.Time{})
	b.release(t, lane, time.Time{})
	result, err := b.importPair(t, pair("third", later.Add(time.Hour)), later)
	testkit.Must(t, err)
	equal(t, "connected again", result, store.TokenReplaced)
	equal(t, "metadata then", b.account(t, acme).TokenMeta, store.TokenMeta{LastRefreshAt: b.now})
	equal(t, "hold ended", b.request(t, "waiting").HoldUntil, later)

	_, err = b.st.Disconnect(t.Context(), "nobody", later)
	fails(t, "no such account", err, store.ErrNotFound)
}

// An exchange under way would bring a pair that nobody revokes.
func disconnectBusy(t *testing.T, b *bundle) {
	claim := b.claimOne(t, acme, longLease)
	before := b.token(t, acme)
	_, err := b.st.Disconnect(t.Context(), acme, b.clock(t))
	fails(t, "disconnecting while the token is exchanged", err, store.ErrTokenBusy)
	if diff := cmp.Diff(before, b.token(t, acme), secrets()); diff != "" {
		t.Errorf("token (-before +after):\n%s", diff)
	}
	testkit.Must(t, b.st.SaveToken(t.Context(), claim, pair("fresh", b.now.Add(time.Hour)), b.now))
	_, err = b.st.Disconnect(t.Context(), acme, b.clock(t))
	testkit.Must(t, err)
}

// What a presumed dead worker brings does not connect the account again.
func disconnectInDoubt(t *testing.T, b *bundle) {
	claim := b.claimOne(t, acme, shortLease)
	testkit.Eventually(t, "disconnecting after a lease that ran out", func() bool {
		_, err := b.st.Disconnect(t.Context(), acme, b.clock(t))
		if !errors.Is(err, store.ErrTokenBusy) {
			testkit.Must(t, err)
		}
		return err == nil
	})
	fails(t, "what the exchange brought", b.st.SaveToken(t.Context(), claim, pair("late", b.now), b.now), store.ErrFenced)
	token := b.token(t, acme)
	equal(t, "disconnected", token.Disconnected(), true)
	equal(t, "lease", token.LeaseID, "")
	equal(t, "start of an exchange", token.StartedAt, time.Time{})
	equal(t, "next attempt", token.NextAttemptAt, time.Time{})
}

func forgetPair(t *testing.T, b *bundle) {
	fails(t, "of an account that is connected", b.st.ForgetPair(t.Context(), b.token(t, acme)), store.ErrFenced)
	equal(t, "pair of an account that is connected", b.token(t, acme).Access.Empty(), false)
	token, err := b.st.Disconnect(t.Context(), acme, b.now)
	testkit.Must(t, err)
	newer, err := b.st.Disconnect(t.Context(), acme, b.now)
	testkit.Must(t, err)
	fails(t, "of an earlier version", b.st.ForgetPair(t.Context(), token), store.ErrFenced)
	testkit.Must(t, b.st.ForgetPair(t.Context(), newer))
	got := b.token(t, acme)
	equal(t, "pair is empty", got.Access.Empty() && got.Refresh.Empty(), true)
	equal(t, "disconnected", got.Disconnected(), true)
}

func saveToken(t *testing.T, b *bundle) {
	claim := b.claimOne(t, acme, longLease)
	testkit.Must(t, b.st.SaveTokenFailure(t.Context(), claim,
		store.TokenFailure{Error: "x", NextAttempt: b.now.Add(time.Minute), Now: b.now}))
	claim = b.claimOne(t, acme, longLease)
	later := b.now.Add(time.Minute)
	next := pair("next", later.Add(2*time.Hour))
	testkit.Must(t, b.st.SaveToken(t.Context(), claim, next, later))
	want := store.Token{
		ID: claim.ID, Account: acme, Pair: next, Version: 2, RefreshedAt: later, TokenMeta: store.TokenMeta{LastRefreshAt: later},
	}
	if diff := cmp.Diff(want, b.token(t, acme), secrets()); diff != "" {
		t.Errorf("token (-want +got):\n%s", diff)
	}
	testkit.Must(t, b.st.SaveToken(t.Context(), claim, next, later.Add(time.Second))) // its answer may have been lost
	if diff := cmp.Diff(want, b.token(t, acme), secrets()); diff != "" {
		t.Errorf("token after the same again (-want +got):\n%s", diff)
	}
	fails(t, "saving another pair", b.st.SaveToken(t.Context(), claim, pair("other", later.Add(2*time.Hour)), later), store.ErrFenced)
}

func saveTokenAfterLease(t *testing.T, b *bundle) {
	first := b.claimOne(t, acme, shortLease)
	second := b.claimOne(t, acme, longLease)
	fails(t, "failure of the claim before",
		b.st.SaveTokenFailure(t.Context(), first, store.TokenFailure{Error: "x", Now: b.now}), store.ErrFenced)
	testkit.Must(t, b.st.SaveToken(t.Context(), first, pair("first", b.now.Add(time.Hour)), b.now))
	fails(t, "success of an older version",
		b.st.SaveToken(t.Context(), second, pair("second", b.now.Add(time.Hour)), b.now), store.ErrFenced)
	fails(t, "failure of an older version",
		b.st.SaveTokenFailure(t.Context(), second, store.TokenFailure{Error: "x", Outcome: store.ExchangeRefused, Now: b.now}), store.ErrFenced)
	token := b.token(t, acme)
	equal(t, "stored pair", token.Refresh.Reveal(), "refresh-of-first-in-the-clear")
	equal(t, "requires re-authorising", token.RequiresReauth, false)
}

// A claim whose lease ran out may bring the good pair after another claim was refused.
// No other call tells the requests that wait for the account.
func saveTokenEndsHolds(t *testing.T, b *bundle) {
	slow := b.claimOne(t, acme, shortLease)
	b.requireReauth(t, b.claimOne(t, acme, longLease))
	lane := b.claim(t)
	b.acceptAll(t, "other")
	b.conclude(t, lane, "other", jetpost.StateHeld, jetpost.CodePoison, time.Time{})
	b.release(t, lane, time.Time{})
	later := b.now.Add(time.Minute)
	testkit.Must(t, b.st.SaveToken(t.Context(), slow, pair("fresh", later.Add(time.Hour)), later))
	equal(t, "requires re-authorising", b.token(t, acme).RequiresReauth, false)
	equal(t, "end of the hold", b.request(t, "waiting").HoldUntil, later)
	equal(t, "end of another hold", b.request(t, "other").HoldUntil, time.Time{})
	equal(t, "lane is due", b.due(t, later), true)

	lane = b.claim(t)
	generation := b.snapshot(t, lane, later).Generation
	testkit.Must(t, b.st.SaveToken(t.Context(), b.claimOne(t, acme, longLease), pair("next", later.Add(time.Hour)), later))
	equal(t, "wake-ups by a refresh that ends nothing", b.snapshot(t, lane, later).Generation, generation)
}

// saveTokensTogether: of pairs that are saved at once, each is saved or refused by its own
// row. One claim is outdated, one pair is there already, one account had to be connected
// again.
func saveTokensTogether(t *testing.T, b *bundle) {
	const tokens = 20
	b.addDue(t, tokens)
	const fenced, repeated, reauth = 3, 7, 11
	slow := b.claimOne(t, "due-11", shortLease)
	b.requireReauth(t, b.claimOne(t, "due-11", longLease))
	next := func(i int) store.Pair { return pair(fmt.Sprintf("next-%02d", i), b.now.Add(2*time.Hour)) }
	claims := make([]store.Token, tokens)
	for i := range claims {
		if i == reauth {
			claims[i] = slow
			continue
		}
		claims[i] = b.claimOne(t, fmt.Sprintf("due-%02d", i), longLease)
	}
	testkit.Must(t, b.st.SaveToken(t.Context(), claims[fenced], pair("first", b.now.Add(2*time.Hour)), b.now))
	testkit.Must(t, b.st.SaveToken(t.Context(), claims[repeated], next(repeated), b.now))
	errs := make([]error, tokens)
	var group sync.WaitGroup
	for i, claim := range claims {
		group.Go(func() { errs[i] = b.st.SaveToken(t.Context(), claim, next(i), b.now) })
	}
	group.Wait()
	for i, err := range errs {
		token := b.token(t, claims[i].Account)
		want := store.Token{
			ID: claims[i].ID, Account: claims[i].Account, Pair: next(i), Version: 2, RefreshedAt: b.now, TokenMeta: store.TokenMeta{LastRefreshAt: b.now},
		}
		if i == fenced {
			fails(t, "an outdated claim", err, store.ErrFenced)
			want.Pair = pair("first", b.now.Add(2*time.Hour))
		} else {
			testkit.Must(t, err)
		}
		if diff := cmp.Diff(want, token, secrets()); diff != "" {
			t.Errorf("token %d (-want +got):\n%s", i, diff)
		}
	}
}

func saveTokenFailure(t *testing.T, b *bundle) {
	testkit.Must(t, b.st.SaveToken(t.Context(), b.claimOne(t, acme, longLease), pair("next", b.now.Add(time.Hour)), b.now))
	later := b.now.Add(time.Minute)
	claim := b.claimOne(t, acme, longLease)
	for range 2 { // the answer may be lost
		testkit.Must(t, b.st.SaveTokenFailure(t.Context(), claim, store.TokenFailure{Error: "no answer", NextAttempt: later.Add(time.Minute), Now: later}))
	}
	token := b.token(t, acme)
	equal(t, "metadata", token.TokenMeta, store.TokenMeta{LastRefreshAt: b.now, RefreshError: "no answer", RefreshFailedAt: later})
	equal(t, "next attempt", token.NextAttemptAt, later.Add(time.Minute))
	equal(t, "lease", token.LeaseID, "")
	equal(t, "version", token.Version, int64(2))

	next := b.claimOne(t, acme, longLease)
	fails(t, "a failure of the claim before", b.st.SaveTokenFailure(t.Context(), claim, store.TokenFailure{Error: "late", Now: later}), store.ErrFenced)
	testkit.Must(t, b.st.SaveTokenFailure(t.Context(), next, store.TokenFailure{Error: "refused", Outcome: store.ExchangeRefused, Now: later}))
	fails(t, "a failure of the claim before", b.st.SaveTokenFailure(t.Context(), claim, store.TokenFailure{Error: "late", Now: later}), store.ErrFenced)
	equal(t, "metadata of the account", b.account(t, acme).TokenMeta,
		store.TokenMeta{LastRefreshAt: b.now, RefreshError: "refused", RefreshFailedAt: later, RequiresReauth: true})
}

func openRound(t *testing.T, b *bundle) {
	empty := b.openRound(t, 10)
	equal(t, "empty round", empty, store.Round{RefreshSummary: jetpost.RefreshSummary{Round: empty.Round}, Completed: true})
	b.addDue(t, 5)
	round := b.openRound(t, 2)
	equal(t, "round", round, store.Round{RefreshSummary: jetpost.RefreshSummary{Round: round.Round, Total: 5}, Batches: 3})
	if _, err := b.st.OpenRound(t.Context(), uuid.NewString(), window, 0, b.now); err == nil {
		t.Error("a round of batches of nothing was opened")
	}
	_, err := b.st.BatchDone(t.Context(), store.BatchResult{Round: round.Round, Batch: 1, Refreshed: 2, Now: b.now})
	testkit.Must(t, err)
	b.addToken(t, "late", b.now.Add(-5*time.Hour), b.now)
	again, err := b.st.OpenRound(t.Context(), round.Round, window, 1, b.now)
	testkit.Must(t, err)
	round.Refreshed = 2
	equal(t, "round that is opened again", again, round)
}

// openRoundCountsLeased: a round may claim a held token that is due once the lease is
// over, so it is counted.
func openRoundCountsLeased(t *testing.T, b *bundle) {
	b.addToken(t, "held", b.now.Add(-5*time.Hour), b.now.Add(-time.Hour))
	now := b.clock(t)
	claim, ok, err := b.st.ClaimToken(t.Context(), store.TokenClaim{
		Account: "held", UsedVersion: 1, Pace: pace(time.Hour), Now: now.Add(-61 * time.Minute), // its answer came late
	})
	testkit.Must(t, err)
	equal(t, "claimed", ok, true)
	equal(t, "next attempt is over", claim.NextAttemptAt.Before(now), true)
	equal(t, "tokens of the round", b.openRound(t, 10).Total, 1)
}

func openRoundForgets(t *testing.T, b *bundle) {
	b.addDue(t, 1)
	old := b.openRound(t, 1)
	done := func() (store.Round, error) {
		return b.st.BatchDone(t.Context(), store.BatchResult{Round: old.Round, Refreshed: 1, Now: b.now})
	}
	_, err := done()
	testkit.Must(t, err)
	openAfter := func(age time.Duration) {
		_, err := b.st.OpenRound(t.Context(), uuid.NewString(), window, 1, b.now.Add(age))
		testkit.Must(t, err)
	}
	b.claimOne(t, acme, shortLease)
	b.claimOne(t, acme, shortLease) // a retry
	retries := func() int {
		list, err := b.st.Retries(t.Context(), acme)
		testkit.Must(t, err)
		return len(list)
	}
	openAfter(rules.RoundRetention - time.Hour)
	equal(t, "journal of that time", retries(), 1)
	kept, err := done()
	testkit.Must(t, err)
	equal(t, "batches of a round that is not old yet", kept.Refreshed, 1)
	openAfter(rules.RoundRetention + time.Hour)
	_, err = done()
	fails(t, "batch of an old round", err, store.ErrNotFound)
	equal(t, "journal that is old", retries(), 0)
	fails(t, "summary of an old round", b.st.RoundDelivered(t.Context(), old.Round), store.ErrNotFound)
}

func batchDone(t *testing.T, b *bundle) {
	b.addDue(t, 3)
	round := b.openRound(t, 2)
	done := func(batch, refreshed, failed, skipped int) store.Round {
		got, err := b.st.BatchDone(t.Context(), store.BatchResult{
			Round: round.Round, Batch: batch, Refreshed: refreshed, Failed: failed, Skipped: skipped, Now: b.now,
		})
		testkit.Must(t, err)
		return got
	}
	half := store.Round{RefreshSummary: jetpost.RefreshSummary{Round: round.Round, Total: 3, Refreshed: 1, Failed: 1}, Batches: 2}
	equal(t, "one batch", done(1, 1, 1, 0), half)
	equal(t, "reported twice, and differently", done(1, 0, 0, 2), half)
	whole := half
	whole.Skipped, whole.Completed = 1, true
	equal(t, "the other batch", done(0, 0, 0, 1), whole)
	testkit.Must(t, b.st.RoundDelivered(t.Context(), round.Round))
	whole.Delivered = true
	equal(t, "reported again after the end", done(0, 0, 0, 1), whole)
	_, err := b.st.BatchDone(t.Context(), store.BatchResult{Round: uuid.NewString(), Refreshed: 1, Now: b.now})
	fails(t, "no such round", err, store.ErrNotFound)
}

func notices(t *testing.T, b *bundle) {
	told := func(account string) []store.Notice {
		list, err := b.st.Notices(t.Context(), account, 10)
		testkit.Must(t, err)
		return append([]store.Notice{}, list...)
	}
	none := []store.Notice{}
	refuse := func() {
		testkit.Must(t, b.st.SaveTokenFailure(t.Context(), b.claimOne(t, acme, longLease),
			store.TokenFailure{Error: "refused", Outcome: store.ExchangeRefused, Now: b.now}))
	}
	renew := func(name string) store.Token {
		claim := b.claimOne(t, acme, longLease)
		testkit.Must(t, b.st.SaveToken(t.Context(), claim, pair(name, b.now.Add(time.Hour)), b.now))
		return claim
	}
	equal(t, "notices of nothing", told(""), none)
	renew("second")
	equal(t, "notices of a success", told(""), none)
	refuse()
	required := store.Notice{Account: acme, Required: true, Error: "refused", Version: 2, At: b.now}
	equal(t, "notices of a refusal", told(""), []store.Notice{required})
	equal(t, "notices of it alone", told(acme), []store.Notice{required})
	equal(t, "notices of another", told("nobody"), none)
	testkit.Must(t, b.st.MarkNoticed(t.Context(), required))
	equal(t, "notices once marked", told(""), none)

	_, err := b.importPair(t, pair("third", b.now.Add(time.Hour)), b.now)
	testkit.Must(t, err)
	recovered := store.Notice{Account: acme, Version: 3, At: b.now}
	equal(t, "notices of the recovery", told(""), []store.Notice{recovered})
	// A late call marks the old state: the present one is reported again.
	testkit.Must(t, b.st.MarkNoticed(t.Context(), recovered))
	testkit.Must(t, b.st.MarkNoticed(t.Context(), required))
	equal(t, "notices after a late mark", told(""), []store.Notice{recovered})
	testkit.Must(t, b.st.MarkNoticed(t.Context(), recovered))

	// The same if the account is refused once more: the old mark does not count for the
	// new notice.
	refuse()
	again := store.Notice{Account: acme, Required: true, Error: "refused", Version: 3, At: b.now}
	testkit.Must(t, b.st.MarkNoticed(t.Context(), required))
	equal(t, "notices after a late mark of the same", told(""), []store.Notice{again})
	fails(t, "notice of nobody", b.st.MarkNoticed(t.Context(), store.Notice{Account: "nobody"}), store.ErrNotFound)
}

// importOverMissingKey: a pair that no configured key opens is not overwritten, since
// it can be opened again once the key is back. A damaged one may be overwritten.
func importOverMissingKey(t *testing.T, b *bundle) {
	stranger := b.open(t, store.GenerateKey().Reveal())
	in := store.Import{Name: acme, XUserID: "id-acme", Username: "renamed", Now: b.clock(t)}
	again, other := in, in
	again.Pair, other.Pair = pair(acme, b.now.Add(time.Hour)), pair("second", b.now.Add(time.Hour))
	sealed := b.sealed(t, acme)
	for _, in := range []store.Import{again, other} {
		var missing *store.KeyError
		if _, err := stranger.ImportAccount(t.Context(), in); !errors.As(err, &missing) {
			t.Errorf("import over a row of another key: error is %v, want a KeyError", err)
		}
		equal(t, "ciphertext", b.sealed(t, acme), sealed)
		equal(t, "user name", b.account(t, acme).Username, "user_acme")
	}

	b.ledger.Exec(t, "UPDATE oauth_tokens SET access_token = refresh_token")
	sealed = b.sealed(t, acme)
	var damaged *store.DamagedError
	if _, err := b.st.ImportAccount(t.Context(), again); !errors.As(err, &damaged) {
		t.Errorf("the same import over a damaged row: error is %v, want a DamagedError", err)
	}
	equal(t, "ciphertext", b.sealed(t, acme), sealed)
	result, err := b.st.ImportAccount(t.Context(), other)
	testkit.Must(t, err)
	equal(t, "import over a damaged row", result, store.TokenReplaced)
	equal(t, "pair", b.token(t, acme).Access.Reveal(), "access-of-second-in-the-clear")
}

// importOverHalfARow: one value is damaged, and the other one can be opened again once
// its key is back.
func importOverHalfARow(t *testing.T, b *bundle) {
	for _, column := range []string{"access_token", "refresh_token"} {
		b.add(t, column)
		b.ledger.Exec(t, "UPDATE oauth_tokens SET "+column+" = 'jp1.nonsense' WHERE user_id = '"+column+"'")
		_, err := b.open(t, store.GenerateKey().Reveal()).ImportAccount(t.Context(), store.Import{
			Name: column, XUserID: "id-" + column, Pair: pair("second", b.now.Add(time.Hour)), Now: b.clock(t),
		})
		var missing *store.KeyError
		if !errors.As(err, &missing) {
			t.Errorf("%s is damaged: error is %v, want a KeyError", column, err)
		}
	}
}

// sealed returns the ciphertext of an account's token.
func (b *bundle) sealed(t *testing.T, account string) [2]string {
	t.Helper()
	rows, err := b.st.SealedTokens(t.Context(), "", 1000)
	testkit.Must(t, err)
	for _, row := range rows {
		if row.Account == account {
			return [2]string{row.SealedAccess, row.SealedRefresh}
		}
	}
	t.Fatalf("no row of %s", account)
	return [2]string{}
}

// rotation returns a rotation that seals with the first of the keys.
func (b *bundle) rotation(t *testing.T, keys string) store.Rotation {
	t.Helper()
	sealer, err := store.NewSealer(keys)
	testkit.Must(t, err)
	return store.Rotation{Rows: b.open(t, keys), Sealer: sealer}
}

func quietly(store.RotationProgress) {}

func rotate(t *testing.T, b *bundle) {
	testkit.Must(t, b.st.CheckKeys(t.Context()))
	b.addDue(t, 5)
	newer, older := store.GenerateKey().Reveal(), b.keys
	r := b.rotation(t, newer+","+older)
	claim := b.claimOne(t, "due-00", longLease)
	b.requireReauth(t, b.claimOne(t, acme, longLease))
	before := map[string]store.Token{}
	for _, name := range []string{acme, "due-00", "due-01"} {
		before[name] = b.token(t, name)
	}
	state, err := r.State(t.Context())
	testkit.Must(t, err)
	equal(t, "state before", state, store.KeyState{Rows: 6, KeyCheck: keyID(t, older), Keys: []store.KeyCount{
		{ID: keyID(t, newer), Configured: true, Seals: true}, {ID: keyID(t, older), Configured: true, Rows: 6},
	}, Behind: 6})
	told := 0
	done, err := r.Run(t.Context(), func(store.RotationProgress) { told++ })
	testkit.Must(t, err)
	equal(t, "done", done, store.RotationProgress{Total: 6, Seen: 6, Resealed: 6})
	equal(t, "progress was reported", told > 0, true)
	done, err = r.Run(t.Context(), quietly)
	testkit.Must(t, err)
	equal(t, "done again", done, store.RotationProgress{Total: 6, Seen: 6})

	both := b.open(t, newer+","+older)
	testkit.Must(t, both.CheckKeys(t.Context()))
	alone := b.open(t, newer)
	testkit.Must(t, alone.CheckKeys(t.Context()))
	for name, want := range before {
		got, err := alone.Token(t.Context(), name)
		testkit.Must(t, err)
		if diff := cmp.Diff(want, got, secrets()); diff != "" {
			t.Errorf("token of %s (-before +after):\n%s", name, diff)
		}
	}
	testkit.Must(t, alone.SaveToken(t.Context(), claim, pair("next", b.now.Add(time.Hour)), b.now))
	var wrong *store.KeyError
	if err := b.st.CheckKeys(t.Context()); !errors.As(err, &wrong) {
		t.Errorf("the old key alone: error is %v, want a KeyError", err)
	}
}

// rotateRaced: a worker saves a pair between the read of a row and its reseal. The pair
// wins, and its row is resealed after all.
func rotateRaced(t *testing.T, b *bundle) {
	newer := store.GenerateKey().Reveal()
	claim := b.claimOne(t, acme, longLease)
	r := b.rotation(t, newer+","+b.keys)
	r.Rows = &racedRows{Keys: r.Rows, between: func() {
		testkit.Must(t, b.st.SaveToken(t.Context(), claim, pair("fresh", b.now.Add(time.Hour)), b.now)) // with the old key
	}}
	done, err := r.Run(t.Context(), quietly)
	testkit.Must(t, err)
	equal(t, "rows sealed anew", done.Resealed, 1)
	token, err := b.open(t, newer).Token(t.Context(), acme)
	testkit.Must(t, err)
	equal(t, "pair", token.Refresh.Reveal(), "refresh-of-fresh-in-the-clear")
	equal(t, "version", token.Version, int64(2))
}

// racedRows runs a function between the first read and what follows.
type racedRows struct {
	store.Keys
	between func()
}

func (r *racedRows) SealedTokens(ctx context.Context, after string, limit int) ([]store.SealedToken, error) {
	rows, err := r.Keys.SealedTokens(ctx, after, limit)
	if r.between != nil && len(rows) > 0 {
		r.between()
		r.between = nil
	}
	return rows, err
}

// rotateBehind: a worker that still has the old key first saves a pair in a row that
// was resealed already. The old key then stays in use.
func rotateBehind(t *testing.T, b *bundle) {
	testkit.Must(t, b.st.CheckKeys(t.Context()))
	newer, older := store.GenerateKey().Reveal(), b.keys
	for _, test := range []struct{ saves, behind int }{{1, 0}, {100, 1}} {
		r, saved := b.rotation(t, newer+","+older), 0
		done, err := r.Run(t.Context(), func(store.RotationProgress) {
			if saved < test.saves {
				saved++
				testkit.Must(t, b.st.SaveToken(t.Context(), b.claimWith(t, b.open(t, older+","+newer)), pair("fresh", b.now.Add(time.Hour)), b.now))
			}
		})
		testkit.Must(t, err)
		equal(t, fmt.Sprintf("rows behind after %d saves", saved), done.Behind, test.behind)
		state, err := r.State(t.Context())
		testkit.Must(t, err)
		equal(t, "rows behind by the database", state.Behind, test.behind)
		equal(t, "the old key can go", strings.Contains(state.Verified(done).Next(), "can be removed"), false)
	}
	_, err := b.rotation(t, newer+","+older).Run(t.Context(), quietly)
	testkit.Must(t, err)
	testkit.Must(t, b.open(t, newer+","+older).CheckKeys(t.Context()))
	state, err := b.rotation(t, newer+","+older).State(t.Context())
	testkit.Must(t, err)
	equal(t, "the old key can go", strings.Contains(state.Next(), "can be removed"), true)
}

// claimWith claims acme's token by a store with other keys.
func (b *bundle) claimWith(t *testing.T, st store.Store) store.Token {
	t.Helper()
	token, err := st.Token(t.Context(), acme)
	testkit.Must(t, err)
	claim, ok, err := st.ClaimToken(t.Context(), store.TokenClaim{
		Account: acme, UsedVersion: token.Version, Force: true, Pace: pace(longLease), Now: b.clock(t),
	})
	testkit.Must(t, err)
	equal(t, "claimed", ok, true)
	return claim
}

// keyState: each row is counted once, and each key by what needs it.
func keyState(t *testing.T, b *bundle) {
	testkit.Must(t, b.st.CheckKeys(t.Context()))
	newer, lost := store.GenerateKey().Reveal(), store.GenerateKey().Reveal()
	both, strange := b.open(t, newer+","+b.keys), b.open(t, lost)
	for name, st := range map[string]store.Store{"first": both, "mixed": b.st, "locked": strange, "half": strange, "tail": b.st, "text": b.st} {
		_, err := st.ImportAccount(t.Context(), store.Import{Name: name, XUserID: "id-" + name, Pair: pair(name, b.now.Add(time.Hour)), Now: b.now})
		testkit.Must(t, err)
	}
	sealer, err := store.NewSealer(newer)
	testkit.Must(t, err)
	rows, err := b.st.SealedTokens(t.Context(), "", 100)
	testkit.Must(t, err)
	for _, row := range rows {
		access, _, err := sealer.SealPair(row.ID, pair("mixed", b.now))
		testkit.Must(t, err)
		b.ledger.Exec(t, "UPDATE oauth_tokens SET access_token = '"+access+"' WHERE user_id = 'mixed' AND id = '"+row.ID+"'")
	}
	b.ledger.Exec(t, "UPDATE oauth_tokens SET access_token = 'jp1.nonsense' WHERE user_id IN ('half', 'text')")
	b.ledger.Exec(t, "UPDATE oauth_tokens SET refresh_token = 'jp1."+sealer.KeyID()+"' WHERE user_id = 'tail'")
	b.ledger.Exec(t, "UPDATE oauth_tokens SET refresh_token = access_token WHERE user_id = 'acme'")

	r := b.rotation(t, newer+","+b.keys)
	state, err := r.State(t.Context())
	testkit.Must(t, err)
	want := store.KeyState{
		Keys: []store.KeyCount{
			{ID: keyID(t, newer), Configured: true, Seals: true, Rows: 2}, // first, mixed
			{ID: keyID(t, b.keys), Configured: true, Rows: 4},             // acme, mixed, tail, text
			{ID: keyID(t, lost), Rows: 2},                                 // half, locked
		},
		Rows: 7, Behind: 2, Locked: 2, Damaged: 2, KeyCheck: keyID(t, b.keys),
	}
	equal(t, "state", state, want)
	equal(t, "next", strings.HasPrefix(state.Next(), "key "+keyID(t, lost)+" is missing"), true)
	found, err := r.Verify(t.Context())
	testkit.Must(t, err)
	want.Behind, want.Damaged = 1, 3 // acme cannot be opened
	equal(t, "state once everything was opened", state.Verified(found), want)
}

// keyStateMixed: a row with one value of the first key still needs the other key.
func keyStateMixed(t *testing.T, b *bundle) {
	testkit.Must(t, b.st.CheckKeys(t.Context()))
	newer, older := store.GenerateKey().Reveal(), b.sealed(t, acme)
	r := b.rotation(t, newer+","+b.keys)
	_, err := r.Run(t.Context(), quietly)
	testkit.Must(t, err)
	testkit.Must(t, b.open(t, newer+","+b.keys).CheckKeys(t.Context()))
	b.ledger.Exec(t, "UPDATE oauth_tokens SET refresh_token = '"+older[1]+"'")
	state, err := r.State(t.Context())
	testkit.Must(t, err)
	equal(t, "rows behind", state.Behind, 1)
	equal(t, "the old key can go", strings.Contains(state.Next(), "can be removed"), false)
	done, err := r.Run(t.Context(), quietly)
	testkit.Must(t, err)
	equal(t, "done", done, store.RotationProgress{Total: 1, Seen: 1, Resealed: 1})
}

// keyStateOfKeyCheck: nothing starts without a key check value that can be opened.
func keyStateOfKeyCheck(t *testing.T, b *bundle) {
	r := b.rotation(t, b.keys)
	state := func() store.KeyState {
		state, err := r.State(t.Context())
		testkit.Must(t, err)
		return state
	}
	equal(t, "key check value of a ledger that was never checked", state().KeyCheck+fmt.Sprint(state().KeyCheckDamaged), "false")
	testkit.Must(t, b.st.CheckKeys(t.Context()))
	equal(t, "key check value", state().KeyCheck+fmt.Sprint(state().KeyCheckDamaged), keyID(t, b.keys)+"false")
	for _, keyCheck := range []string{"'jp1.nonsense'", "substr(key_check, 1, 40)"} {
		b.ledger.Exec(t, "UPDATE ledger SET key_check = "+keyCheck)
		equal(t, "key check value is damaged: "+keyCheck, state().KeyCheckDamaged, true)
		equal(t, "next", strings.HasPrefix(state().Next(), "the key check value"), true)
	}
}

// lostKey: what docs/OPERATING.md says of a key that is lost for good.
func lostKey(t *testing.T, b *bundle) {
	testkit.Must(t, b.st.CheckKeys(t.Context()))
	lost := keyID(t, b.keys)
	stranger := b.open(t, store.GenerateKey().Reveal())
	b.addHook(t, "one")
	b.ledger.Exec(t, "DELETE FROM hooks WHERE secret LIKE 'jp1."+lost+".%'")
	b.ledger.Exec(t, "UPDATE oauth_tokens SET access_token = 'jp1.lost', refresh_token = 'jp1.lost'"+
		" WHERE access_token LIKE 'jp1."+lost+".%' OR refresh_token LIKE 'jp1."+lost+".%'")
	b.ledger.Exec(t, "UPDATE ledger SET key_check = NULL")
	testkit.Must(t, stranger.CheckKeys(t.Context()))
	result, err := stranger.ImportAccount(t.Context(), store.Import{
		Name: acme, XUserID: "id-acme", Pair: pair("second", b.now.Add(time.Hour)), Now: b.clock(t),
	})
	testkit.Must(t, err)
	equal(t, "result", result, store.TokenReplaced)
	token, err := stranger.Token(t.Context(), acme)
	testkit.Must(t, err)
	equal(t, "pair", token.Access.Reveal(), "access-of-second-in-the-clear")
}

// rotateUnopenable: rows that cannot be opened stay as they are, and are named; a
// missing key is told from damage.
func rotateUnopenable(t *testing.T, b *bundle) {
	b.addDue(t, 3)
	lost := store.GenerateKey().Reveal()
	strange := b.open(t, lost)
	_, err := strange.ImportAccount(t.Context(), store.Import{
		Name: "locked", XUserID: "id-locked", Pair: pair("locked", b.now.Add(time.Hour)), Now: b.now,
	})
	testkit.Must(t, err)
	b.ledger.Exec(t, "UPDATE oauth_tokens SET access_token = refresh_token WHERE user_id = 'due-01'")
	b.ledger.Exec(t, "UPDATE oauth_tokens SET access_token = 'jp1.nonsense' WHERE user_id = 'due-02'")
	want := map[string][2]string{}
	for _, name := range []string{"locked", "due-01", "due-02"} {
		want[name] = b.sealed(t, name)
	}
	newer := store.GenerateKey().Reveal()
	r := b.rotation(t, newer+","+b.keys)
	done, err := r.Run(t.Context(), quietly)
	testkit.Must(t, err)
	equal(t, "rows sealed anew", done.Resealed, 2)
	equal(t, "rows left", []int{done.Locked, done.Damaged, done.Behind}, []int{1, 2, 0})
	missing := map[string]string{}
	for _, row := range done.Unopened {
		missing[row.Account] = row.MissingKey
	}
	equal(t, "their keys", missing, map[string]string{"locked": keyID(t, lost), "due-01": "", "due-02": ""})
	for name, text := range want {
		equal(t, "ciphertext of "+name, b.sealed(t, name), text)
	}
	state, err := r.State(t.Context())
	testkit.Must(t, err)
	equal(t, "keys that are missing", state.Missing(), []string{keyID(t, lost)})
	equal(t, "damaged rows", state.Damaged, 1)
	verified, err := r.Verify(t.Context())
	testkit.Must(t, err)
	equal(t, "rows that do not open", []int{verified.Total, verified.Left()}, []int{5, 3})
}
