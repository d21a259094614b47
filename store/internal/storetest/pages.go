package storetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// listPages: pages of any size make the whole list, also where requests of several accounts
// were accepted in one moment.
func listPages(t *testing.T, b *bundle) {
	b.add(t, "beta")
	b.add(t, "gamma-1")
	for n := range 4 {
		for _, account := range []string{"gamma-1", acme, "beta"} {
			in := b.acceptance(fmt.Sprint("r", n), 1)
			in.Request.Account, in.Now = account, b.now.Add(time.Duration(n/2)*time.Second)
			b.accept(t, in)
		}
	}
	names := func(records []store.Record) (list []string) {
		for _, r := range records {
			list = append(list, r.Account+"/"+r.ID)
		}
		return list
	}
	all, err := b.st.ListRequests(t.Context(), store.Filter{})
	testkit.Must(t, err)
	equal(t, "requests", len(all), 12)
	for size := 1; size <= 5; size++ {
		var paged []string
		var after store.Place
		for {
			page, err := b.st.ListRequests(t.Context(), store.Filter{Limit: size, After: after})
			testkit.Must(t, err)
			if len(page) == 0 {
				break
			}
			paged, after = append(paged, names(page)...), page[len(page)-1].Place()
			if len(paged) > len(all) {
				t.Fatalf("pages of %d do not end: %q", size, paged)
			}
		}
		equal(t, fmt.Sprint("pages of ", size), slices.Equal(paged, names(all)), true)
	}
}
