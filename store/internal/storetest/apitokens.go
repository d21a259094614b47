package storetest

import (
	"context"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

// apiToken is a token that works for an hour.
func (b *bundle) apiToken(name string) store.APIToken {
	digest := sha256.Sum256([]byte(name))
	return store.APIToken{
		Name: name, Digest: digest[:], Accounts: []string{acme, "other"}, Verbs: []jetpost.Verb{jetpost.VerbRead, jetpost.VerbManage},
		CreatedAt: b.now, ExpiresAt: b.now.Add(time.Hour),
	}
}

// apiTokens: a token is kept as it is until it is revoked, and once only.
func apiTokens(t *testing.T, b *bundle) {
	_, err := b.st.APIToken(t.Context(), "one")
	fails(t, "token of no name", err, store.ErrNotFound)
	two, one := b.apiToken("two"), b.apiToken("one")
	testkit.Must(t, b.st.AddAPIToken(t.Context(), two))
	testkit.Must(t, b.st.AddAPIToken(t.Context(), one))
	got, err := b.st.APIToken(t.Context(), "one")
	testkit.Must(t, err)
	equal(t, "token", got, one)
	all, err := b.st.APITokens(t.Context())
	testkit.Must(t, err)
	equal(t, "tokens", all, []store.APIToken{one, two})

	again := b.apiToken("one")
	again.Digest = two.Digest
	fails(t, "second token of a name", b.st.AddAPIToken(t.Context(), again), store.ErrAPITokenExists)

	_, err = b.st.RevokeAPIToken(t.Context(), "three", b.now)
	fails(t, "revoke none", err, store.ErrNotFound)
	one.RevokedAt = b.now.Add(time.Minute)
	for _, later := range []time.Duration{time.Minute, 2 * time.Minute} { // the first one counts
		got, err = b.st.RevokeAPIToken(t.Context(), "one", b.now.Add(later))
		testkit.Must(t, err)
		equal(t, "revoked token", got, one)
	}
	got, err = b.st.APIToken(t.Context(), "one")
	testkit.Must(t, err)
	equal(t, "token", got, one)
	got, err = b.st.APIToken(t.Context(), "two")
	testkit.Must(t, err)
	equal(t, "the other token", got, two)
}

// apiTokensForgotten: a token is forgotten some time after its end, revoked or not.
func apiTokensForgotten(t *testing.T, b *bundle) {
	for _, name := range []string{"ended", "live", "revoked"} {
		token := b.apiToken(name)
		if name == "live" {
			token.ExpiresAt = b.now.Add(2 * rules.APITokenRetention)
		}
		testkit.Must(t, b.st.AddAPIToken(t.Context(), token))
	}
	_, err := b.st.RevokeAPIToken(t.Context(), "revoked", b.now)
	testkit.Must(t, err)
	names := func(after time.Duration, name string) (names []string) {
		token := b.apiToken(name)
		token.CreatedAt, token.ExpiresAt = b.now.Add(after), b.now.Add(2*rules.APITokenRetention)
		testkit.Must(t, b.st.AddAPIToken(t.Context(), token))
		all, err := b.st.APITokens(t.Context())
		testkit.Must(t, err)
		for _, token := range all {
			names = append(names, token.Name)
		}
		return names
	}
	equal(t, "tokens", names(time.Hour+rules.APITokenRetention, "new"), []string{"ended", "live", "new", "revoked"})
	equal(t, "tokens later", names(time.Hour+time.Second+rules.APITokenRetention, "newer"), []string{"live", "new", "newer"})
}

// apiTokenOperation: a token is a part of the operation that makes it.
func apiTokenOperation(t *testing.T, b *bundle) {
	makes := func(ctx context.Context, in store.Changes) ([]byte, error) {
		return []byte("made"), in.AddAPIToken(ctx, b.apiToken("one"))
	}
	for _, repeat := range []bool{false, true} {
		answer, repeated := b.operate(t, b.operation("op"), makes)
		equal(t, "answer", answer, "made")
		equal(t, "repeated", repeated, repeat)
	}
	_, _, err := b.st.Operate(t.Context(), b.operation("other"), func(ctx context.Context, in store.Changes) ([]byte, error) {
		_, err := in.RevokeAPIToken(ctx, "one", b.now)
		testkit.Must(t, err)
		return nil, context.Canceled
	})
	fails(t, "operation that fails", err, context.Canceled)
	got, err := b.st.APIToken(t.Context(), "one")
	testkit.Must(t, err)
	equal(t, "token", got, b.apiToken("one"))
}
