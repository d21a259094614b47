package storetest

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/internal/rules"
)

const (
	// customersWord stands in everything that a customer has written, and is long enough
	// to need pages of its own in a database.
	customersWord = "customers-own-word-"
	leaving       = "leaving"
)

// leave has an account with something in every table that may name it.
func (b *bundle) leave(t *testing.T) {
	t.Helper()
	b.add(t, leaving) // its username is user_leaving
	long := bytes.Repeat([]byte(customersWord), 1000)
	for i := range 3 {
		in := b.leaver(fmt.Sprint("id-", customersWord, i))
		in.Body = append([]byte(fmt.Sprint(i)), long...)
		in.Request.Metadata = map[string]string{"note": customersWord}
		in.Request.Posts[0].Text = customersWord
		b.accept(t, in)
	}
	lane, ok, err := b.st.ClaimLane(t.Context(), leaving, "worker", longLease, b.clock(t))
	testkit.Must(t, err)
	equal(t, "claimed", ok, true)
	id := fmt.Sprint("id-", customersWord, 0)
	testkit.Must(t, b.st.Begin(t.Context(), lane, id, b.intent(0)))
	b.posted(t, lane, id, 0, "live")
	b.release(t, lane, b.now.Add(time.Hour))
	testkit.Must(t, b.st.Refuse(t.Context(), jetpost.Refusal{
		Account: leaving, ID: customersWord, Code: jetpost.CodeInvalidRequest, Stored: b.now, Sequence: 1, Problems: []jetpost.Problem{{Message: customersWord}},
	}, long))
	testkit.Must(t, b.st.AddLink(t.Context(), store.NewLink{Token: secret.New("link-of-the-one-who-leaves"), Account: leaving, ReturnTo: "https://" + customersWord, ExpiresAt: b.now.Add(time.Hour), Now: b.now}))
	mine := b.hook("mine")
	mine.Account, mine.URL = leaving, "https://"+customersWord
	testkit.Must(t, b.st.AddHook(t.Context(), mine, store.NewHookSecret()))
	for name, accounts := range map[string][]string{"own": {leaving}, "shared": {acme, leaving}} {
		token := b.apiToken(name)
		token.Accounts = accounts
		testkit.Must(t, b.st.AddAPIToken(t.Context(), token))
	}
	for name, answer := range map[string]string{
		"cancel": `{"account":"` + leaving + `","metadata":{"note":"` + customersWord + `"}}`, "disconnect": `{"name":"` + leaving + `","x_user_id":"id-leaving","username":"user_leaving"}`,
	} {
		b.operate(t, b.operation(name), func(context.Context, store.Changes) ([]byte, error) { return []byte(answer), nil })
	}
	b.operate(t, b.operation("another's"), func(context.Context, store.Changes) ([]byte, error) { return []byte(`{"account":"acme"}`), nil })
	_, err = b.st.Disconnect(t.Context(), leaving, b.now)
	testkit.Must(t, err)
	testkit.Must(t, b.st.PauseAccount(t.Context(), leaving, jetpost.AccountPause(b.now, time.Time{}, customersWord)))
}

// leaver is a request of the account that leaves.
func (b *bundle) leaver(id string) store.Acceptance {
	in := b.acceptance(id, 1)
	in.Request.Account = leaving
	return in
}

// eraseAll does what an Eraser does.
func (b *bundle) eraseAll(t *testing.T) {
	t.Helper()
	lane, ok, err := b.st.ClaimLane(t.Context(), leaving, "eraser", longLease, b.clock(t))
	testkit.Must(t, err)
	equal(t, "claimed", ok, true)
	done, err := b.st.EraseAccount(t.Context(), lane, b.now)
	testkit.Must(t, err)
	equal(t, "erased with requests", done, false)
	records, err := b.st.ListRequests(t.Context(), store.Filter{Account: leaving})
	testkit.Must(t, err)
	for _, r := range records {
		testkit.Must(t, b.st.EraseRequests(t.Context(), lane, []string{r.ID}, b.now))
	}
	done, err = b.st.EraseAccount(t.Context(), lane, b.now)
	testkit.Must(t, err)
	equal(t, "erased", done, true)
	testkit.Must(t, b.st.EraseRest(t.Context(), leaving))
}

// erase: nothing of an account is left in the database, but that an id of it which comes
// again posts nothing; and nothing of another account is touched.
func erase(t *testing.T, b *bundle) {
	b.acceptAll(t, "stays")
	_, err := b.st.BeginErase(t.Context(), leaving, b.now)
	fails(t, "erase nobody", err, store.ErrNotFound)
	b.leave(t)
	begun, err := b.st.BeginErase(t.Context(), leaving, b.now)
	testkit.Must(t, err)
	equal(t, "begun", begun, store.Erasing{Account: leaving, AskedAt: b.now, Requests: 3, Live: 1})
	for _, word := range []string{customersWord, "user_leaving"} {
		equal(t, word+" is there before", bytes.Contains(b.ledger.Dump(t), []byte(word)), true)
	}
	b.eraseAll(t)
	for _, word := range []string{customersWord, "user_leaving", "id-leaving"} {
		equal(t, word+" is left", bytes.Contains(b.ledger.Dump(t), []byte(word)), false)
	}
	_, err = b.st.Account(t.Context(), leaving)
	fails(t, "account", err, store.ErrNotFound)
	all, err := b.st.Erasing(t.Context())
	testkit.Must(t, err)
	equal(t, "erasing", all, []store.Erasing{{Account: leaving, AskedAt: b.now}})
	testkit.Must(t, b.st.EndErase(t.Context(), leaving))
	_, err = b.st.BeginErase(t.Context(), leaving, b.now)
	fails(t, "erase it again", err, store.ErrNotFound)

	equal(t, "requests of others", b.request(t, "stays").Status.State, jetpost.StateQueued)
	tokens, err := b.st.APITokens(t.Context())
	testkit.Must(t, err)
	equal(t, "API tokens", []any{len(tokens), tokens[0].Name, tokens[0].Accounts}, []any{1, "shared", []string{acme}})
	answer, repeated := b.operate(t, b.operation("cancel"), nil)
	equal(t, "answer of an operation", []any{answer, repeated}, []any{rules.ErasedAnswer, true})
	answer, _ = b.operate(t, b.operation("another's"), nil)
	equal(t, "answer of another's", answer, `{"account":"acme"}`)

	// Somebody comes back under the name.
	b.add(t, leaving)
	id := fmt.Sprint("id-", customersWord, 1)
	for _, one := range []store.Acceptance{b.leaver(id), b.leaver(id)} {
		decision, err := b.st.Accept(t.Context(), one)
		testkit.Must(t, err)
		equal(t, "an old id", decision, store.Repeated)
	}
	record, err := b.st.Request(t.Context(), store.Key{Account: leaving, ID: id})
	testkit.Must(t, err)
	equal(t, "what is known of it", []any{record.Pruned, record.Status.State, len(record.Posts)}, []any{true, jetpost.StateCancelled, 0})
	_, err = b.st.Cancel(t.Context(), record.Key, b.now)
	fails(t, "cancel it", err, store.ErrPruned)
	b.accept(t, b.leaver("new"))
}

// eraseFenced: whoever has lost the lane erases nothing.
func eraseFenced(t *testing.T, b *bundle) {
	b.leave(t)
	_, err := b.st.BeginErase(t.Context(), leaving, b.now)
	testkit.Must(t, err)
	lost, ok, err := b.st.ClaimLane(t.Context(), leaving, "dies", shortLease, b.clock(t))
	testkit.Must(t, err)
	equal(t, "claimed", ok, true)
	testkit.Eventually(t, "the lease to end", func() bool {
		_, ok, err := b.st.ClaimLane(t.Context(), leaving, "other", longLease, b.clock(t))
		testkit.Must(t, err)
		return ok
	})
	id := fmt.Sprint("id-", customersWord, 1)
	fails(t, "erase a request", b.st.EraseRequests(t.Context(), lost, []string{id}, b.now), store.ErrFenced)
	_, err = b.st.EraseAccount(t.Context(), lost, b.now)
	fails(t, "erase the account", err, store.ErrFenced)
	_, err = b.st.Request(t.Context(), store.Key{Account: leaving, ID: id})
	testkit.Must(t, err)
}
