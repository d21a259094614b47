package storetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// calendar: requests stand at the time at which they are due, of one account or of all, and
// pages of any size make the whole list, also where several are due at one moment.
func calendar(t *testing.T, b *bundle) {
	b.add(t, "beta")
	day := 24 * time.Hour
	for n, due := range []time.Duration{0, 3 * day, day, day, 2 * day} {
		for _, account := range []string{acme, "beta"} {
			in := b.acceptance(fmt.Sprint("r", n), 1)
			in.Request.Account = account
			if due > 0 {
				in.Request.PublishAt = b.now.Add(due)
			}
			b.accept(t, in)
		}
	}
	_, err := b.st.Reschedule(t.Context(), store.Key{Account: acme, ID: "r1"}, b.now.Add(2*day), b.now)
	testkit.Must(t, err)
	_, err = b.st.Cancel(t.Context(), store.Key{Account: acme, ID: "r4"}, b.now)
	testkit.Must(t, err)
	list := func(account string, from, before time.Duration, size int) (names []string) {
		after := store.DuePlace{DueAt: b.now.Add(from)}
		for {
			page, err := b.st.Calendar(t.Context(), store.CalendarQuery{Account: account, After: after, Before: b.now.Add(before), Limit: size})
			testkit.Must(t, err)
			if len(page) == 0 {
				return names
			}
			for _, r := range page {
				names = append(names, r.Account+"/"+r.ID)
			}
			if after = page[len(page)-1].DuePlace(); len(names) > 100 {
				t.Fatalf("pages of %d do not end: %q", size, names)
			}
		}
	}
	all := []string{"acme/r2", "acme/r3", "beta/r2", "beta/r3", "acme/r1", "acme/r4", "beta/r4"}
	for size := 1; size <= 4; size++ {
		equal(t, fmt.Sprint("pages of ", size), list("", day, 3*day, size), all)
	}
	equal(t, "of one", list("beta", 0, 3*day+time.Second, 10), []string{"beta/r0", "beta/r2", "beta/r3", "beta/r4", "beta/r1"})
	equal(t, "of none", len(list("nobody", 0, 4*day, 10)), 0)
	equal(t, "ends before", slices.Contains(list("", 0, 2*day, 10), "beta/r4"), false)
	found, err := b.st.Calendar(t.Context(), store.CalendarQuery{Account: acme, After: store.DuePlace{DueAt: b.now.Add(2 * day)}, Before: b.now.Add(4 * day), Limit: 10})
	testkit.Must(t, err)
	equal(t, "cancelled, at its time", found[1].Status.State, jetpost.StateCancelled)
}
