package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

// linkToken is long enough to be searched for.
const linkToken = "token-of-a-link-in-the-clear"

// linkID is the id of the link with that token.
func linkID(token string) string { return store.LinkID(store.LinkDigest(secret.New(token))) }

// addLink stores a link for acme that is valid for an hour, and returns its id.
func (b *bundle) addLink(t *testing.T, token string) string {
	t.Helper()
	testkit.Must(t, b.st.AddLink(t.Context(), store.NewLink{
		Token: secret.New(token), Account: acme, ReturnTo: "https://app.example/done", ExpiresAt: b.now.Add(time.Hour), Now: b.now,
	}))
	return linkID(token)
}

// attempt is one of a browser, with a name of its own.
func (b *bundle) attempt(name, browser string) store.LinkAttempt {
	return store.LinkAttempt{
		State: store.LinkDigest(secret.New("state-" + name)), Browser: store.LinkDigest(secret.New("browser-" + browser)),
		Verifier: secret.New("verifier-" + name + "-in-the-clear"), ExpiresAt: b.now.Add(10 * time.Minute), Now: b.now,
	}
}

func (b *bundle) beginAttempt(t *testing.T, id string, attempt store.LinkAttempt) store.Link {
	t.Helper()
	link, err := b.st.BeginAttempt(t.Context(), id, attempt)
	testkit.Must(t, err)
	return link
}

func (b *bundle) take(t *testing.T, a store.LinkAttempt, lease time.Duration, now time.Time) (store.Link, error) {
	t.Helper()
	looked, lookErr := b.st.AttemptLink(t.Context(), a.State, a.Browser, now)
	link, verifier, err := b.st.TakeAttempt(t.Context(), a.State, a.Browser, lease, now)
	for _, why := range []error{store.ErrNotFound, store.ErrOtherBrowser, store.ErrLinkUsed, store.ErrAttemptOver} {
		if errors.Is(lookErr, why) != errors.Is(err, why) || err == nil && looked != link {
			t.Errorf("the attempt is that of %+v, %v; taken %+v, %v", looked, lookErr, link, err)
		}
	}
	if err == nil {
		equal(t, "verifier", verifier.Reveal(), a.Verifier.Reveal())
	} else if link != (store.Link{}) || !verifier.Empty() {
		t.Errorf("a link or verifier is handed out beside the error %v", err)
	}
	return link, err
}

func links(t *testing.T, b *bundle) {
	_, err := b.st.Link(t.Context(), linkID("another"))
	fails(t, "link of no token", err, store.ErrNotFound)
	token := b.addLink(t, linkToken)
	link, err := b.st.Link(t.Context(), token)
	testkit.Must(t, err)
	want := store.Link{
		ID: link.ID, Account: acme, ReturnTo: "https://app.example/done", CreatedAt: b.now, ExpiresAt: b.now.Add(time.Hour),
	}
	equal(t, "link", link, want)
	if len(link.ID) != 64 {
		t.Errorf("id %q, want a hash", link.ID)
	}
	fails(t, "using no link", b.st.UseLink(t.Context(), "none", b.now), store.ErrNotFound)

	attempt := b.attempt("first", "one")
	equal(t, "link of the attempt", b.beginAttempt(t, token, attempt), want)
	equal(t, "link, begun", mustLink(t, b, token), want)
	taken, err := b.take(t, attempt, longLease, b.now)
	testkit.Must(t, err)
	equal(t, "link of the taken attempt", taken, want)
	testkit.Must(t, b.st.UseLink(t.Context(), link.ID, b.now.Add(time.Minute)))
	testkit.Must(t, b.st.UseLink(t.Context(), link.ID, b.now.Add(2*time.Minute)))
	want.UsedAt = b.now.Add(time.Minute)
	equal(t, "link, used", mustLink(t, b, token), want)
	_, err = b.st.BeginAttempt(t.Context(), token, b.attempt("second", "one"))
	fails(t, "attempt with a used link", err, store.ErrLinkUsed)
	_, err = b.take(t, attempt, longLease, b.now)
	fails(t, "the attempt again", err, store.ErrLinkUsed)
}

func mustLink(t *testing.T, b *bundle, id string) store.Link {
	t.Helper()
	link, err := b.st.Link(t.Context(), id)
	testkit.Must(t, err)
	return link
}

func linkAttemptOnce(t *testing.T, b *bundle) {
	token := b.addLink(t, linkToken)
	_, err := b.st.BeginAttempt(t.Context(), linkID("another"), b.attempt("first", "one"))
	fails(t, "attempt with no link", err, store.ErrNotFound)
	first := b.attempt("first", "one")
	link := b.beginAttempt(t, token, first)

	_, err = b.take(t, b.attempt("other", "one"), longLease, b.now)
	fails(t, "another state", err, store.ErrNotFound)
	foreign := first
	foreign.Browser = store.LinkDigest(secret.New("browser-two"))
	_, err = b.take(t, foreign, longLease, b.now)
	fails(t, "another browser", err, store.ErrOtherBrowser)
	_, err = b.take(t, first, longLease, first.ExpiresAt)
	fails(t, "too late", err, store.ErrAttemptOver)

	// None of these spent it.
	_, err = b.take(t, first, longLease, b.now)
	testkit.Must(t, err)
	_, err = b.take(t, first, longLease, b.now)
	fails(t, "a second time", err, store.ErrAttemptOver)
	second := b.attempt("second", "one")
	_, err = b.st.BeginAttempt(t.Context(), token, second)
	fails(t, "attempt while one is being finished", err, store.ErrLinkBusy)

	testkit.Must(t, b.st.GiveUpAttempt(t.Context(), link.ID, second.State))
	_, err = b.st.BeginAttempt(t.Context(), token, second)
	fails(t, "attempt after another was given up", err, store.ErrLinkBusy)
	testkit.Must(t, b.st.GiveUpAttempt(t.Context(), link.ID, first.State))
	b.beginAttempt(t, token, second)
	_, err = b.take(t, first, longLease, b.now)
	fails(t, "what was given up", err, store.ErrNotFound)
	_, err = b.take(t, second, longLease, b.now)
	testkit.Must(t, err)
}

// Several tabs: the newest attempt is the only one.
func linkAttemptNewest(t *testing.T, b *bundle) {
	token := b.addLink(t, linkToken)
	first, second := b.attempt("first", "one"), b.attempt("second", "one")
	b.beginAttempt(t, token, first)
	b.beginAttempt(t, token, second)
	_, err := b.take(t, first, longLease, b.now)
	fails(t, "the older attempt", err, store.ErrNotFound)
	_, err = b.take(t, second, longLease, b.now)
	testkit.Must(t, err)
}

// A person who pressed the button in time may finish.
func linkAttemptTimes(t *testing.T, b *bundle) {
	token := b.addLink(t, linkToken)
	end := b.now.Add(time.Hour)
	late := b.attempt("late", "one")
	late.Now, late.ExpiresAt = end.Add(-time.Microsecond), end.Add(time.Minute)
	b.beginAttempt(t, token, late)
	tooLate := b.attempt("too-late", "one")
	tooLate.Now = end
	_, err := b.st.BeginAttempt(t.Context(), token, tooLate)
	fails(t, "attempt with an expired link", err, store.ErrLinkExpired)
	_, err = b.take(t, late, longLease, end.Add(time.Second))
	testkit.Must(t, err)
}

// A process that died while finishing locks nobody out.
func linkAttemptLease(t *testing.T, b *bundle) {
	token := b.addLink(t, linkToken)
	first, second := b.attempt("first", "one"), b.attempt("second", "one")
	link := b.beginAttempt(t, token, first)
	_, err := b.take(t, first, shortLease, b.clock(t))
	testkit.Must(t, err)
	testkit.Eventually(t, "the end of the lease", func() bool {
		second.Now = b.clock(t)
		_, err = b.st.BeginAttempt(t.Context(), token, second)
		return !errors.Is(err, store.ErrLinkBusy)
	})
	testkit.Must(t, err)
	// What the first one brings after all is true: an account was connected.
	testkit.Must(t, b.st.UseLink(t.Context(), link.ID, b.now))
	_, err = b.take(t, second, longLease, b.now)
	fails(t, "the second attempt", err, store.ErrLinkUsed)
}

func linkAttemptConcurrently(t *testing.T, b *bundle) {
	token := b.addLink(t, linkToken)
	stores := []store.Store{b.st, b.open(t, b.keys)}
	// The connections of a pool are opened by the first rounds.
	for round := range 5 {
		attempt := b.attempt(fmt.Sprint(round), "one")
		link := b.beginAttempt(t, token, attempt)
		takers := atOnce(t, 16, func(i int) (bool, error) {
			_, _, err := stores[i%2].TakeAttempt(t.Context(), attempt.State, attempt.Browser, longLease, b.now)
			if errors.Is(err, store.ErrAttemptOver) {
				return false, nil
			}
			return err == nil, err
		})
		equal(t, "takers of one attempt", takers, 1)
		testkit.Must(t, b.st.GiveUpAttempt(t.Context(), link.ID, attempt.State))
	}
}

func linkForgets(t *testing.T, b *bundle) {
	const old = rules.MaxForgottenLinks + 1
	for i := range old {
		b.addLink(t, fmt.Sprint("old-", i))
	}
	addAt := func(token string, now time.Time) {
		testkit.Must(t, b.st.AddLink(t.Context(), store.NewLink{Token: secret.New(token), Account: acme, ExpiresAt: now.Add(time.Hour), Now: now}))
	}
	left := func() (n int) {
		for i := range old {
			switch _, err := b.st.Link(t.Context(), linkID(fmt.Sprint("old-", i))); {
			case err == nil:
				n++
			case !errors.Is(err, store.ErrNotFound):
				t.Fatal(err)
			}
		}
		return n
	}
	now := b.now.Add(time.Hour + rules.LinkRetention) // as old as they may become
	addAt("new-1", now)
	equal(t, "links before any is old", left(), old)
	addAt("new-2", now.Add(time.Microsecond))
	equal(t, "links after one call", left(), 1)
	addAt("new-3", now.Add(time.Microsecond))
	equal(t, "links after two", left(), 0)
	mustLink(t, b, linkID("new-1"))
}

func linkSecrets(t *testing.T, b *bundle) {
	token := b.addLink(t, linkToken)
	b.beginAttempt(t, token, b.attempt("first", "one"))
	dump := b.ledger.Dump(t)
	if !bytes.Contains(dump, []byte("https://app.example/done")) {
		t.Fatal("the dump does not even hold where to return to: it shows nothing")
	}
	for _, value := range []string{linkToken, "verifier-first"} {
		if bytes.Contains(dump, []byte(value)) {
			t.Errorf("%s is stored in the clear", value)
		}
	}
	// A verifier opens with its own row and key alone.
	other := b.addLink(t, linkToken+"-too")
	second := b.attempt("second", "one")
	b.beginAttempt(t, other, second)
	b.ledger.Exec(t, `UPDATE connect_links SET attempt_verifier = (SELECT min(attempt_verifier) FROM connect_links)`)
	var damaged *store.DamagedError
	_, errFirst := b.take(t, b.attempt("first", "one"), longLease, b.now)
	_, errSecond := b.take(t, second, longLease, b.now)
	if errors.As(errFirst, &damaged) == errors.As(errSecond, &damaged) {
		t.Errorf("the same verifier in two rows: errors are %v and %v, want one *store.DamagedError", errFirst, errSecond)
	}
	var wrong *store.KeyError
	third := b.attempt("third", "one")
	b.beginAttempt(t, b.addLink(t, "third"), third)
	stranger := b.open(t, store.GenerateKey().Reveal())
	if _, _, err := stranger.TakeAttempt(t.Context(), third.State, third.Browser, longLease, b.now); !errors.As(err, &wrong) {
		t.Errorf("another key: error is %v, want a KeyError", err)
	}
	_, err := b.take(t, third, longLease, b.now)
	testkit.Must(t, err)
}
