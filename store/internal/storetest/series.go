package storetest

import (
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// series: posts by the hour, what is due, and what it costs.
func series(t *testing.T, b *bundle) {
	b.add(t, "beta")
	hour := func(at time.Time) int64 { return at.Unix() / 3600 }
	q := store.SeriesQuery{Now: b.now, Since: b.now.Add(-time.Hour), Day: b.now.Add(-time.Hour), Month: b.now.Add(-48 * time.Hour)}
	count := func() store.Series {
		t.Helper()
		s, err := b.st.Series(t.Context(), q)
		testkit.Must(t, err)
		return s
	}
	equal(t, "series of nothing", count(), store.Series{Posts: map[int64]int{}})

	add := func(id string, accepted, due time.Duration, cost int64) {
		in := b.acceptance(id, 1)
		in.Now, in.CostMicros = b.now.Add(accepted), cost
		if due > 0 {
			in.Request.PublishAt = b.now.Add(due)
		}
		b.accept(t, in)
	}
	add("yesterday", -24*time.Hour, 0, 1000)
	add("today", -time.Minute, 0, 20)
	add("waits", -time.Minute, 0, 300_000)
	add("soon", 0, 30*time.Minute, 0)
	add("later", 0, 5*time.Hour, 0)
	add("next week", 0, 7*24*time.Hour, 0)
	other := b.acceptance("other", 1)
	other.Request.Account = "beta"
	b.accept(t, other)

	lane := b.claim(t)
	b.publish(t, lane, "yesterday", 0)
	b.publish(t, lane, "today", 0)
	equal(t, "series", count(), store.Series{
		Posts: map[int64]int{hour(b.now): 2}, DueHour: 3, DueDay: 4, CostDay: 20, CostMonth: 1020,
	})
	q.Since = b.now.Add(time.Minute)
	equal(t, "posts since then", len(count().Posts), 0)
}

// countCodes: requests of a state by reason, with the first and the last change.
func countCodes(t *testing.T, b *bundle) {
	b.acceptAll(t, "one", "two", "three", "queued")
	lane := b.claim(t)
	until := b.now.Add(time.Hour)
	b.conclude(t, lane, "one", jetpost.StateHeld, jetpost.CodeXUnavailable, until)
	b.conclude(t, lane, "two", jetpost.StateHeld, jetpost.CodeXUnavailable, until)
	b.conclude(t, lane, "three", jetpost.StateHeld, jetpost.CodeRateLimited, until)
	counts, err := b.st.CountCodes(t.Context(), jetpost.StateHeld)
	testkit.Must(t, err)
	first := b.request(t, "one").Status.UpdatedAt
	equal(t, "reasons", counts, []store.CodeCount{
		{Code: jetpost.CodeXUnavailable, Count: 2, First: first, Last: b.request(t, "two").Status.UpdatedAt},
		{Code: jetpost.CodeRateLimited, Count: 1, First: b.request(t, "three").Status.UpdatedAt, Last: b.request(t, "three").Status.UpdatedAt},
	})
	none, err := b.st.CountCodes(t.Context(), jetpost.StateFailed)
	testkit.Must(t, err)
	equal(t, "reasons of none", len(none), 0)
}

// accountsAfter: pages of accounts make the whole list.
func accountsAfter(t *testing.T, b *bundle) {
	for _, name := range []string{"beta", "a-1", "a_1", "zeta"} {
		b.add(t, name)
	}
	all, err := b.st.Accounts(t.Context())
	testkit.Must(t, err)
	var paged []store.Account
	after := ""
	for range len(all) {
		page, err := b.st.AccountsAfter(t.Context(), after, 2)
		testkit.Must(t, err)
		if len(page) == 0 {
			break
		}
		equal(t, "size of a page", len(page) <= 2, true)
		paged, after = append(paged, page...), page[len(page)-1].Name
	}
	equal(t, "accounts in pages", paged, all)
}
