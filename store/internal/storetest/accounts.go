package storetest

import (
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// shop adds an API token for acme and another account, and returns the accounts that it
// names now.
func (b *bundle) shop(t *testing.T) func() []string {
	t.Helper()
	testkit.Must(t, b.st.AddAPIToken(t.Context(), store.APIToken{
		Name: "shop", Digest: make([]byte, 32), Accounts: []string{acme, "acme2"}, Verbs: []jetpost.Verb{jetpost.VerbRead}, CreatedAt: b.now, ExpiresAt: b.now.Add(time.Hour),
	}))
	return func() []string {
		token, err := b.st.APIToken(t.Context(), "shop")
		testkit.Must(t, err)
		return token.Accounts
	}
}

// settled leaves acme without anything unfinished, untold or held: with a request that is
// live, and one that was pruned.
func (b *bundle) settled(t *testing.T) {
	t.Helper()
	lane := b.finished(t)
	fails(t, "rename of an account with a request that waits", b.st.RenameAccount(t.Context(), acme, "new", b.now), store.ErrUnfinished)
	fails(t, "removal of a connected account", b.st.RemoveAccount(t.Context(), acme, b.now), store.ErrConnected)
	_, err := b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "waiting"}, b.now)
	testkit.Must(t, err)
	fails(t, "rename of an account whose lane is held", b.st.RenameAccount(t.Context(), acme, "new", b.now), store.ErrAccountBusy)
	b.release(t, lane, time.Time{})
	fails(t, "rename before all is told", b.st.RenameAccount(t.Context(), acme, "new", b.now), store.ErrAccountBusy)
	b.announce(t, "waiting")
	equal(t, "pruned", b.prune(t, b.now.Add(time.Hour)), 4)
	fails(t, "rename of nobody", b.st.RenameAccount(t.Context(), "nobody", "new", b.now), store.ErrNotFound)
	fails(t, "removal of nobody", b.st.RemoveAccount(t.Context(), "nobody", b.now), store.ErrNotFound)
}

// repeats wants the ids of acme's finished requests to be known under a name.
func (b *bundle) repeats(t *testing.T, name string) {
	t.Helper()
	for _, id := range []string{"published", "latest"} {
		again := b.acceptance(id, 1)
		again.Request.Account = name
		decision, err := b.st.Accept(t.Context(), again)
		testkit.Must(t, err)
		equal(t, "repeat of "+id+" for "+name, decision, store.Repeated)
	}
}

// renameAccount: everything of an account goes with it, so that no id posts again.
func renameAccount(t *testing.T, b *bundle) {
	b.settled(t)
	b.add(t, "other")
	named := b.shop(t)
	was := b.account(t, acme)
	b.spend(t, acme, b.expense("spent", 1, 0, 100, 100))
	fails(t, "a name that is used", b.st.RenameAccount(t.Context(), acme, "other", b.now), store.ErrNameTaken)
	testkit.Must(t, b.st.RenameAccount(t.Context(), acme, "new", b.now))
	_, err := b.st.Account(t.Context(), acme)
	fails(t, "the old name", err, store.ErrNotFound)
	is := b.account(t, "new")
	equal(t, "user", is.XUserID, was.XUserID)
	month, err := b.st.MonthSpent(t.Context(), "new", b.now)
	testkit.Must(t, err)
	equal(t, "spent", month, store.Spent{App: 10, Account: 10, MonthEnds: store.MonthEnd(b.now)})
	token, err := b.st.Token(t.Context(), "new")
	testkit.Must(t, err)
	equal(t, "token", token.Refresh.Reveal(), pair(acme, b.now).Refresh.Reveal())
	b.repeats(t, "new")
	live, err := b.st.Request(t.Context(), store.Key{Account: "new", ID: "latest"})
	testkit.Must(t, err)
	equal(t, "post", live.Status.Posts[0].PostID, postID("latest", 0))
	equal(t, "API token", named(), []string{"new", "acme2"})

	next := b.acceptance("next", 1)
	next.Request.Account = "new"
	b.accept(t, next)
	lane, ok, err := b.st.ClaimLane(t.Context(), "new", "worker", longLease, b.clock(t))
	testkit.Must(t, err)
	equal(t, "claimed", ok, true)
	equal(t, "head", b.head(t, lane, b.now.Add(time.Minute)), "next")
	// The name is free.
	result, err := b.st.ImportAccount(t.Context(), store.Import{Name: acme, XUserID: "9", Username: "nine", Pair: pair("nine", b.now.Add(time.Hour)), Now: b.now})
	testkit.Must(t, err)
	equal(t, "import", result, store.AccountCreated)
}

// removeAccount: only the identities of its requests stay, for the next account of that name.
func removeAccount(t *testing.T, b *bundle) {
	b.settled(t)
	named := b.shop(t)
	b.spend(t, acme, b.expense("spent", 1, 0, 100, 100))
	_, err := b.st.Disconnect(t.Context(), acme, b.now)
	testkit.Must(t, err)
	fails(t, "removal before that is told", b.st.RemoveAccount(t.Context(), acme, b.now), store.ErrAccountBusy)
	notices, err := b.st.Notices(t.Context(), acme, 1)
	testkit.Must(t, err)
	testkit.Must(t, b.st.MarkNoticed(t.Context(), notices[0]))
	testkit.Must(t, b.st.RemoveAccount(t.Context(), acme, b.now))
	accounts, err := b.st.Accounts(t.Context())
	testkit.Must(t, err)
	equal(t, "accounts", len(accounts), 0)
	list, err := b.st.ListRequests(t.Context(), store.Filter{})
	testkit.Must(t, err)
	equal(t, "requests", len(list), 0)
	month, err := b.st.MonthSpent(t.Context(), acme, b.now)
	testkit.Must(t, err)
	equal(t, "spent", month, store.Spent{App: 10, MonthEnds: store.MonthEnd(b.now)})
	equal(t, "API token", named(), []string{"acme2"})

	b.add(t, "other")
	fails(t, "a name of which identities are left", b.st.RenameAccount(t.Context(), "other", acme, b.now), store.ErrNameTaken)
	b.add(t, acme)
	b.repeats(t, acme)
}
