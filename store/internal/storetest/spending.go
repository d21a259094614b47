package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// expense is what a request of so many posts costs, at ten each, of which some are live.
func (b *bundle) expense(id string, posts, live int, app, account int64) store.Expense {
	return store.Expense{ID: id, Micros: int64(10 * posts), Posts: posts, Live: live, AppLimit: app, AccountLimit: account, Now: b.now}
}

func (b *bundle) spend(t *testing.T, account string, e store.Expense) store.Spent {
	t.Helper()
	spent, err := b.st.Spend(t.Context(), account, e)
	testkit.Must(t, err)
	return spent
}

// spending: the cost of a request is set aside once, for the account and the app, and is
// corrected to what went out.
func spending(t *testing.T, b *bundle) {
	b.add(t, "beta")
	b.acceptAll(t, "failed", "next")
	spent := b.spend(t, acme, b.expense("failed", 1, 0, 100, 30))
	equal(t, "spent", spent, store.Spent{Granted: true, Needs: 10, MonthEnds: store.MonthEnd(b.now)})
	again := b.spend(t, acme, b.expense("failed", 1, 0, 1, 1))
	equal(t, "spent again", again, store.Spent{Granted: true, Needs: 10, App: 10, Account: 10, MonthEnds: store.MonthEnd(b.now)})
	equal(t, "more than is left of the account", b.spend(t, acme, b.expense("next", 3, 0, 100, 39)).Granted, false)
	equal(t, "more than is left of the app", b.spend(t, "beta", b.expense("x", 3, 0, 39, 0)).Granted, false)
	equal(t, "as much as is left", b.spend(t, "beta", b.expense("x", 3, 0, 40, 30)).Granted, true)

	lane := b.claim(t)
	b.begin(t, lane, "failed", 0)
	b.concludePost(t, lane, "failed", jetpost.StateFailed, jetpost.CodeRefusedByX, 0, jetpost.PostFailed)
	corrected := b.spend(t, acme, b.expense("next", 3, 0, 60, 30))
	equal(t, "after a request of which nothing went out", corrected, store.Spent{Granted: true, Needs: 30, App: 30, MonthEnds: store.MonthEnd(b.now)})
	// What is replayed is set aside again, but for what is live.
	equal(t, "replayed", b.spend(t, acme, b.expense("thread", 3, 2, 0, 40)), store.Spent{Granted: true, Needs: 10, App: 60, Account: 30, MonthEnds: store.MonthEnd(b.now)})
	month, err := b.st.MonthSpent(t.Context(), "", b.now)
	testkit.Must(t, err)
	equal(t, "the app's month", month, store.Spent{App: 70, MonthEnds: store.MonthEnd(b.now)})

	// Another month begins with nothing.
	later := b.expense("later", 1, 0, 10, 10)
	later.Now = store.MonthEnd(b.now)
	equal(t, "in the next month", b.spend(t, "beta", later), store.Spent{Granted: true, Needs: 10, MonthEnds: store.MonthEnd(later.Now)})
}

// spendingLimits: an account's own limit stands in its snapshot, and what waits for a limit
// is due once it is changed.
func spendingLimits(t *testing.T, b *bundle) {
	b.acceptAll(t, "held")
	lane := b.claim(t)
	equal(t, "limit", b.snapshot(t, lane, b.now).MonthlyLimit, int64(0))
	b.conclude(t, lane, "held", jetpost.StateHeld, jetpost.CodePostingLimit, b.now.Add(time.Hour))
	testkit.Must(t, b.st.LimitMonth(t.Context(), acme, 7, b.now))
	equal(t, "hold", b.request(t, "held").HoldUntil, b.now)
	equal(t, "limit, set", b.snapshot(t, lane, b.now).MonthlyLimit, int64(7))
	month, err := b.st.MonthSpent(t.Context(), acme, b.now)
	testkit.Must(t, err)
	equal(t, "month", month, store.Spent{Limit: 7, MonthEnds: store.MonthEnd(b.now)})
	testkit.Must(t, b.st.LimitMonth(t.Context(), acme, 0, b.now))
	equal(t, "limit, removed", b.snapshot(t, lane, b.now).MonthlyLimit, int64(0))
	fails(t, "limit of nobody", b.st.LimitMonth(t.Context(), "nobody", 7, b.now), store.ErrNotFound)

	testkit.Must(t, b.st.NoteBilled(t.Context(), b.now))
	equal(t, "after X has refused for want of money", b.spend(t, acme, b.expense("held", 1, 0, 100, 0)).Granted, false)
	equal(t, "without a limit of the app", b.spend(t, acme, b.expense("held", 1, 0, 0, 100)).Granted, true)
	testkit.Must(t, b.st.ForgetBilled(t.Context(), b.now))
	equal(t, "forgotten", b.spend(t, acme, b.expense("other", 1, 0, 100, 0)).Granted, true)
}

// spendingConcurrently: what many accounts set aside at once is never more than the limit.
func spendingConcurrently(t *testing.T, b *bundle) {
	const askers, limit = 8, 50
	stores := make([]store.Store, askers)
	for i := range askers {
		b.add(t, fmt.Sprint("asker-", i))
		stores[i] = b.open(t, b.keys)
	}
	granted := atOnce(t, askers, func(i int) (bool, error) {
		spent, err := stores[i].Spend(t.Context(), fmt.Sprint("asker-", i), b.expense("r", 1, 0, limit, 0))
		return spent.Granted, err
	})
	equal(t, "granted", granted, limit/10)
}
