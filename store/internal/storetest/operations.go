package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const operationLink = "token-of-a-link-that-an-operation-makes"

// change is what an operation does.
type change = func(context.Context, store.Changes) ([]byte, error)

func (b *bundle) operation(id string) store.Operation {
	return store.Operation{ID: id, Digest: []byte("digest of " + id), Now: b.now}
}

func (b *bundle) operate(t *testing.T, op store.Operation, do change) (string, bool) {
	t.Helper()
	answer, repeated, err := b.st.Operate(t.Context(), op, do)
	testkit.Must(t, err)
	return string(answer), repeated
}

// cancels is an operation that cancels a request of acme.
func (b *bundle) cancels(id string) change {
	return func(ctx context.Context, in store.Changes) ([]byte, error) {
		before, err := in.Cancel(ctx, store.Key{Account: acme, ID: id}, b.now)
		return []byte("was " + string(before)), err
	}
}

// operate: an operation is done once, and answered as it was.
func operate(t *testing.T, b *bundle) {
	b.acceptAll(t, "one", "two")
	answer, repeated := b.operate(t, b.operation("op"), b.cancels("one"))
	equal(t, "answer", answer, "was queued")
	equal(t, "repeated", repeated, false)
	b.state(t, "one", jetpost.StateCancelled, "", jetpost.EventRequestCancelled)

	answer, repeated = b.operate(t, b.operation("op"), b.cancels("two"))
	equal(t, "answer again", answer, "was queued")
	equal(t, "repeated", repeated, true)
	equal(t, "the other request", b.request(t, "two").Status.State, jetpost.StateQueued)

	other := b.operation("op")
	other.Digest = []byte("another")
	_, _, err := b.st.Operate(t.Context(), other, b.cancels("two"))
	fails(t, "another operation of that id", err, store.ErrOperationReused)
	equal(t, "the other request", b.request(t, "two").Status.State, jetpost.StateQueued)

	testkit.Must(t, b.st.AnswerOperation(t.Context(), "op", []byte("more")))
	answer, _ = b.operate(t, b.operation("op"), b.cancels("two"))
	equal(t, "answer that was replaced", answer, "more")
	fails(t, "answer to nothing", b.st.AnswerOperation(t.Context(), "none", nil), store.ErrNotFound)

	for range 2 {
		_, repeated = b.operate(t, store.Operation{Now: b.now}, func(context.Context, store.Changes) ([]byte, error) { return nil, nil })
		equal(t, "repeated without an id", repeated, false)
	}
}

// operateFails: of an operation that fails nothing is left, and of a part that fails in
// one that is done neither.
func operateFails(t *testing.T, b *bundle) {
	b.acceptAll(t, "one", "taken", "doubt")
	lane := b.claim(t)
	b.begin(t, lane, "taken", 0)
	b.posted(t, lane, "taken", 0, "p1")
	b.doubt(t, lane, "doubt", 0)
	broken := errors.New("broken")
	_, _, err := b.st.Operate(t.Context(), b.operation("op"), func(ctx context.Context, in store.Changes) ([]byte, error) {
		_, err := b.cancels("one")(ctx, in)
		testkit.Must(t, err)
		record, err := in.Request(ctx, store.Key{Account: acme, ID: "one"})
		testkit.Must(t, err)
		equal(t, "seen within", record.Status.State, jetpost.StateCancelled)
		testkit.Must(t, in.PauseAccount(ctx, acme, jetpost.AccountPause(b.now, time.Time{}, "")))
		return nil, broken
	})
	equal(t, "the change's own error", err == broken, true) //nolint:errorlint // it is returned as it is
	equal(t, "the request", b.request(t, "one").Status.State, jetpost.StateQueued)
	equal(t, "the account", b.account(t, acme).Pause, store.Pause{})

	answer, repeated := b.operate(t, b.operation("op"), func(ctx context.Context, in store.Changes) ([]byte, error) {
		_, err := in.Resolve(ctx, store.Key{Account: acme, ID: "doubt"}, "p1", b.now)
		fails(t, "a post that is taken", err, store.ErrPostTaken)
		return b.cancels("one")(ctx, in)
	})
	equal(t, "answer", answer, "was queued")
	equal(t, "repeated", repeated, false)
	equal(t, "what failed", b.request(t, "doubt").Status.State, jetpost.StateUnknown)
	b.state(t, "one", jetpost.StateCancelled, "", jetpost.EventRequestCancelled)
}

// operateParts: each change that an operation may make is a part of its transaction.
func operateParts(t *testing.T, b *bundle) {
	b.acceptAll(t, "moved", "failed", "live", "doubt")
	lane := b.claim(t)
	b.publish(t, lane, "live", 0)
	b.begin(t, lane, "failed", 0)
	b.concludePost(t, lane, "failed", jetpost.StateFailed, jetpost.CodeRefusedByX, 0, jetpost.PostFailed)
	b.doubt(t, lane, "doubt", 0)
	testkit.Must(t, b.st.PauseAccount(t.Context(), acme, jetpost.AccountPause(b.now, time.Time{}, "")))
	key := func(id string) store.Key { return store.Key{Account: acme, ID: id} }
	begun, used, taken := b.addLink(t, "begun"), b.addLink(t, "used"), b.attempt("taken", "one")
	b.beginAttempt(t, b.addLink(t, "taken"), taken)
	for name, part := range map[string]func(context.Context, store.Changes) error{
		"Reschedule": func(ctx context.Context, in store.Changes) error {
			_, err := in.Reschedule(ctx, key("moved"), b.now.Add(time.Hour), b.now)
			return err
		},
		"Replay": func(ctx context.Context, in store.Changes) error {
			_, err := in.Replay(ctx, key("failed"), b.now)
			return err
		},
		"Unpublish": func(ctx context.Context, in store.Changes) error {
			_, err := in.Unpublish(ctx, key("live"), b.now)
			return err
		},
		"Reconcile": func(ctx context.Context, in store.Changes) error { return in.Reconcile(ctx, key("doubt"), b.now) },
		"ResumeAccount": func(ctx context.Context, in store.Changes) error {
			_, err := in.ResumeAccount(ctx, acme, b.now)
			return err
		},
		"Disconnect": func(ctx context.Context, in store.Changes) error {
			_, err := in.Disconnect(ctx, acme, b.now)
			return err
		},
		"Keep": func(ctx context.Context, in store.Changes) error {
			_, err := in.Keep(ctx, store.Desired{Name: "x", Value: []byte("1")})
			return err
		},
		"ImportAccount": func(ctx context.Context, in store.Changes) error {
			_, err := in.ImportAccount(ctx, store.Import{Name: acme, XUserID: "id-acme", Username: "renamed", Pair: pair("consented", b.now.Add(time.Hour)), Consented: true, Now: b.now})
			return err
		},
		"BeginAttempt": func(ctx context.Context, in store.Changes) error {
			_, err := in.BeginAttempt(ctx, begun, b.attempt("begun", "one"))
			return err
		},
		"TakeAttempt": func(ctx context.Context, in store.Changes) error {
			_, _, err := in.TakeAttempt(ctx, taken.State, taken.Browser, longLease, b.now)
			return err
		},
		"UseLink": func(ctx context.Context, in store.Changes) error { return in.UseLink(ctx, used, b.now) },
		"AddLink": func(ctx context.Context, in store.Changes) error {
			return in.AddLink(ctx, store.NewLink{Token: secret.New(operationLink), Account: acme, ExpiresAt: b.now.Add(time.Hour), Now: b.now})
		},
	} {
		before := b.held(t)
		broken := errors.New("broken")
		_, _, err := b.st.Operate(t.Context(), b.operation(name), func(ctx context.Context, in store.Changes) ([]byte, error) {
			testkit.Must(t, part(ctx, in))
			_, err := in.Account(ctx, acme)
			testkit.Must(t, err)
			_, err = in.Desired(ctx)
			testkit.Must(t, err)
			return nil, broken
		})
		fails(t, name, err, broken)
		equal(t, "what "+name+" leaves of an operation that failed", b.held(t) == before, true)
		_, repeated := b.operate(t, b.operation(name), func(ctx context.Context, in store.Changes) ([]byte, error) { return nil, part(ctx, in) })
		equal(t, name+" repeated", repeated, false)
		equal(t, "what "+name+" changes", b.held(t) == before, false)
	}
}

// held is what the ledger holds that operations may change.
func (b *bundle) held(t *testing.T) string {
	t.Helper()
	requests, err := b.st.ListRequests(t.Context(), store.Filter{})
	testkit.Must(t, err)
	for i := range requests {
		requests[i].Body = nil
	}
	kept, err := b.st.Desired(t.Context())
	testkit.Must(t, err)
	var links []any
	for _, token := range []string{operationLink, "used"} {
		link, err := b.st.Link(t.Context(), linkID(token))
		links = append(links, link, errors.Is(err, store.ErrNotFound))
	}
	for _, attempt := range []string{"begun", "taken"} {
		a := b.attempt(attempt, "one")
		_, err := b.st.AttemptLink(t.Context(), a.State, a.Browser, b.now)
		links = append(links, fmt.Sprint(err))
	}
	account := b.account(t, acme)
	text, err := json.Marshal([]any{requests, kept, links, account})
	testkit.Must(t, err)
	return string(text)
}

// operateConcurrently: of many at once with one id one is done, and all are answered alike.
func operateConcurrently(t *testing.T, b *bundle) {
	const askers = 8
	var all sync.WaitGroup
	answers := make([]string, askers)
	fresh := make([]bool, askers)
	for i := range askers {
		st := b.open(t, b.keys)
		all.Go(func() {
			answer, repeated, err := st.Operate(t.Context(), b.operation("op"), func(ctx context.Context, in store.Changes) ([]byte, error) {
				kept, err := in.Desired(ctx)
				if err != nil {
					return nil, err
				}
				var version int64
				for _, k := range kept {
					if k.Name == "count" {
						version = k.Version
					}
				}
				_, err = in.Keep(ctx, store.Desired{Name: "count", Value: []byte("x"), Version: version})
				return fmt.Appendf(nil, "done by %d", i), err
			})
			if err != nil {
				t.Errorf("operate: %v", err)
			}
			answers[i], fresh[i] = string(answer), !repeated
		})
	}
	all.Wait()
	done := 0
	for i := range askers {
		equal(t, "answer", answers[i], answers[0])
		if fresh[i] {
			done++
		}
	}
	equal(t, "how often it was done", done, 1)
	kept, err := b.st.Desired(t.Context())
	testkit.Must(t, err)
	for _, k := range kept {
		if k.Name == "count" {
			equal(t, "how often it took effect", k.Version, int64(1))
		}
	}
}

// operateForgets: an operation is known for as long as was said, and not for ever.
func operateForgets(t *testing.T, b *bundle) {
	nothing := func(context.Context, store.Changes) ([]byte, error) { return nil, nil }
	at := func(id string, now time.Time) bool {
		t.Helper()
		op := b.operation(id)
		op.Now = now
		_, repeated := b.operate(t, op, nothing)
		return repeated
	}
	at("old", b.now)
	later := b.now.Add(rules.OperationRetention)
	at("young", later)
	equal(t, "known to the last", at("old", later), true)
	at("another", later.Add(time.Minute))
	equal(t, "known once it is forgotten", at("old", later.Add(time.Minute)), false)
	equal(t, "known", at("young", later.Add(time.Minute)), true)
}
