package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// hook is a webhook without what became of it.
func (b *bundle) hook(id string) store.Hook {
	return store.Hook{
		ID: id, URL: "https://example.com/" + id, Account: acme,
		Events: []jetpost.EventType{jetpost.EventRequestPublished, jetpost.EventRequestFailed}, CreatedAt: b.now,
	}
}

func (b *bundle) addHook(t *testing.T, id string) secret.String {
	t.Helper()
	plain := store.NewHookSecret()
	testkit.Must(t, b.st.AddHook(t.Context(), b.hook(id), plain))
	return plain
}

// theHook is the only webhook, without its secret.
func (b *bundle) theHook(t *testing.T) store.Hook {
	t.Helper()
	all, err := b.st.Hooks(t.Context())
	testkit.Must(t, err)
	equal(t, "webhooks", len(all), 1)
	all[0].Sealed = ""
	return all[0]
}

// hooks: a webhook is kept as it is, with its secret sealed, and what became of it.
func hooks(t *testing.T, b *bundle) {
	plain := b.addHook(t, "one")
	equal(t, "hook", b.theHook(t), b.hook("one"))
	if dump := b.ledger.Dump(t); bytes.Contains(dump, []byte(plain.Reveal())) || bytes.Contains(dump, []byte(strings.TrimPrefix(plain.Reveal(), store.HookSecretPrefix))) {
		t.Error("the secret is stored in the clear")
	}
	all, err := b.st.Hooks(t.Context())
	testkit.Must(t, err)
	got, err := b.st.HookSecret(all[0])
	testkit.Must(t, err)
	equal(t, "secret", got.Reveal(), plain.Reveal())
	all[0].ID = "two" // as if it were another one's
	_, err = b.st.HookSecret(all[0])
	failsAs[*store.DamagedError](t, "secret of another one", err)

	want, at := b.hook("one"), func(minutes int) time.Time { return b.now.Add(time.Duration(minutes) * time.Minute) }
	testkit.Must(t, b.st.HookFailed(t.Context(), "one", store.HookFailure{At: at(1), Error: "first"}))
	testkit.Must(t, b.st.HookFailed(t.Context(), "one", store.HookFailure{At: at(2), Error: "second", Dropped: true}))
	want.FailedAt, want.FailingSince, want.Error, want.Dropped = at(2), at(1), "second", 1
	equal(t, "failing", b.theHook(t), want)
	testkit.Must(t, b.st.HookDelivered(t.Context(), "one", at(3)))
	testkit.Must(t, b.st.HookDelivered(t.Context(), "one", at(2))) // told late
	want.DeliveredAt, want.FailingSince = at(3), time.Time{}
	equal(t, "recovered", b.theHook(t), want)
	testkit.Must(t, b.st.HookFailed(t.Context(), "one", store.HookFailure{At: at(4), Error: "gone", Disable: true}))
	testkit.Must(t, b.st.HookFailed(t.Context(), "one", store.HookFailure{At: at(5), Error: "late", Disable: true}))
	want.FailedAt, want.FailingSince, want.Error, want.DisabledAt = at(5), at(4), "late", at(4)
	equal(t, "disabled", b.theHook(t), want)

	enabled, err := b.st.EnableHook(t.Context(), "one")
	testkit.Must(t, err)
	enabled.Sealed, want.DisabledAt, want.FailingSince = "", time.Time{}, time.Time{}
	equal(t, "enabled", enabled, want)
	removed, err := b.st.RemoveHook(t.Context(), "one")
	testkit.Must(t, err)
	equal(t, "removed", removed.ID, "one")
	for what, err := range map[string]error{
		"remove": second(b.st.RemoveHook(t.Context(), "one")), "enable": second(b.st.EnableHook(t.Context(), "one")),
		"delivered": b.st.HookDelivered(t.Context(), "one", b.now), "failed": b.st.HookFailed(t.Context(), "one", store.HookFailure{At: b.now}),
	} {
		fails(t, what+" of none", err, store.ErrNotFound)
	}
}

// hooksRenamed: a webhook goes with the account that gets another name.
func hooksRenamed(t *testing.T, b *bundle) {
	b.addHook(t, "one")
	testkit.Must(t, b.st.RenameAccount(t.Context(), acme, "renamed", b.now))
	equal(t, "account", b.theHook(t).Account, "renamed")
}

func second[A any](_ A, err error) error { return err }

// hooksBounded: there are so many webhooks and no more, also where two come at once, and
// one that an operation makes and fails leaves nothing behind.
func hooksBounded(t *testing.T, b *bundle) {
	for i := range jetpost.MaxHooks - 1 {
		b.addHook(t, fmt.Sprint("hook", i))
	}
	yes := atOnce(t, 4, func(i int) (bool, error) {
		err := b.st.AddHook(t.Context(), b.hook(fmt.Sprint("last", i)), store.NewHookSecret())
		if err != nil {
			fails(t, "one too many", err, store.ErrTooManyHooks)
		}
		return err == nil, nil
	})
	equal(t, "added", yes, 1)
	_, _, err := b.st.Operate(t.Context(), b.operation("op"), func(ctx context.Context, in store.Changes) ([]byte, error) {
		if _, err := in.RemoveHook(ctx, "hook0"); err != nil {
			return nil, err
		}
		all, err := in.Hooks(ctx)
		testkit.Must(t, err)
		equal(t, "without it", len(all), jetpost.MaxHooks-1)
		return nil, in.AddHook(ctx, b.hook("hook1"), store.NewHookSecret()) // there is one
	})
	if err == nil {
		t.Error("two webhooks have one id")
	}
	all, err := b.st.Hooks(t.Context())
	testkit.Must(t, err)
	equal(t, "webhooks after a failed operation", len(all), jetpost.MaxHooks)
}

// hooksRotate: the secrets of webhooks move to another key with the tokens, and count
// among what needs a key.
func hooksRotate(t *testing.T, b *bundle) {
	plain := b.addHook(t, "one")
	testkit.Must(t, b.st.CheckKeys(t.Context()))
	newer := store.GenerateKey().Reveal()
	r := b.rotation(t, newer+","+b.keys)
	state, err := r.State(t.Context())
	testkit.Must(t, err)
	equal(t, "rows and behind", []int{state.Rows, state.Behind}, []int{2, 2})
	done, err := r.Run(t.Context(), quietly)
	testkit.Must(t, err)
	equal(t, "done", done, store.RotationProgress{Total: 2, Seen: 2, Resealed: 2})
	found, err := r.Verify(t.Context())
	testkit.Must(t, err)
	equal(t, "verified", found, store.RotationProgress{Total: 2, Seen: 2})

	other := b.open(t, newer)
	all, err := other.Hooks(t.Context())
	testkit.Must(t, err)
	got, err := other.HookSecret(all[0])
	testkit.Must(t, err)
	equal(t, "secret", got.Reveal(), plain.Reveal())
	_, err = b.st.HookSecret(all[0])
	failsAs[*store.KeyError](t, "with the old key", err)
	locked, err := b.rotation(t, b.keys).Verify(t.Context())
	testkit.Must(t, err)
	equal(t, "locked without the new key", []int{locked.Locked, len(locked.Unopened)}, []int{2, 2})
}

func failsAs[E error](t *testing.T, what string, err error) {
	t.Helper()
	if _, is := errors.AsType[E](err); !is {
		t.Errorf("%s: got %v", what, err)
	}
}
