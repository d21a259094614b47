package consumers

import (
	"encoding/json"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// cents is an amount as a Budget has it.
func cents(n float64) int64 { return int64(n * store.MicrosPerDollar / 100) }

// spend accepts a request of an account, with its cost, and runs its lane once.
func (b *doubtBundle) spend(t *testing.T, account, id string, posts ...jetpost.Post) store.Key {
	t.Helper()
	r := jetpost.Request{Account: account, ID: id, Posts: posts}
	body, err := json.Marshal(r)
	testkit.Must(t, err)
	in := Rules{}.acceptance(r, body)
	in.Now = time.Now()
	_, err = b.ledger.Accept(t.Context(), in)
	testkit.Must(t, err)
	b.run(t, b.h, account)
	return store.Key{Account: account, ID: id}
}

// over fails unless the request is held by a monthly limit until the next month, and looked
// at again before that.
func (b *doubtBundle) over(t *testing.T, key store.Key, detail string) {
	t.Helper()
	r := b.want(t, key, jetpost.StateHeld, jetpost.CodePostingLimit, 0)
	testkit.Equal(t, "detail of "+key.ID, r.Status.Reason.Detail, detail)
	testkit.Equal(t, "end of "+key.ID, r.Status.Reason.Until, store.MonthEnd(time.Now()))
	if again := time.Until(r.HoldUntil); again <= 0 || again > 15*time.Minute {
		t.Errorf("%s is looked at again after %s", key.ID, again)
	}
}

// again runs the lane of an account whose request is due to be looked at again.
func (b *doubtBundle) again(t *testing.T, key store.Key) {
	t.Helper()
	sleep(time.Until(b.record(t, key).HoldUntil))
	b.run(t, b.h, key.Account)
}

// TestMonthlyLimits: a request waits for the next month if its posts would cost more than is
// left of the account's month or the app's. What did not go out is given back, and a limit
// that is raised lets go at once.
func TestMonthlyLimits(t *testing.T) {
	t.Parallel()
	t.Run("of an account", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := doubt(t)
			b.h.Budget = admission.Budget{Account: cents(5)}
			b.want(t, b.spend(t, "acme", "two", thread("a", "b")...), jetpost.StatePublished, "", 2) // 3 cents
			b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusForbidden, Endpoint: xsim.EndpointCreatePost, Times: 1})
			b.want(t, b.spend(t, "acme", "refused", thread("no")...), jetpost.StateFailed, jetpost.CodeRefusedByX, 0)
			b.faults(t)
			b.want(t, b.spend(t, "acme", "three", thread("c")...), jetpost.StatePublished, "", 1) // 4.5 cents
			over := b.spend(t, "acme", "over", thread("d")...)
			b.over(t, over, "the month's limit of the account is $0.05, of which $0.04 are spent or set aside by estimate, and it needs $0.01")
			b.again(t, over)
			b.over(t, over, "the month's limit of the account is $0.05, of which $0.04 are spent or set aside by estimate, and it needs $0.01")
			testkit.Must(t, b.ledger.LimitMonth(t.Context(), "acme", cents(6), time.Now()))
			b.run(t, b.h, "acme")
			b.want(t, over, jetpost.StatePublished, "", 1)

			next := b.spend(t, "acme", "next", thread("e")...)
			b.over(t, next, "the month's limit of the account is $0.06, of which $0.06 are spent or set aside by estimate, and it needs $0.01")
			sleep(time.Until(store.MonthEnd(time.Now())))
			b.reconnect(t, "acme")
			b.run(t, b.h, "acme")
			b.want(t, next, jetpost.StatePublished, "", 1)
			b.texts(t, "acme", "a", "b", "c", "d", "e")
		})
	})
	t.Run("of the app", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := doubt(t)
			b.account(t, "bolt", 0)
			b.h.Budget = admission.Budget{App: cents(3)}
			b.want(t, b.spend(t, "acme", "one", thread("a")...), jetpost.StatePublished, "", 1)
			b.want(t, b.spend(t, "bolt", "one", thread("b")...), jetpost.StatePublished, "", 1)
			over := b.spend(t, "acme", "over", thread("c")...)
			b.over(t, over, "the month's limit of the app is $0.03, of which $0.03 are spent or set aside by estimate, and it needs $0.01")
			b.h.Budget.App = cents(4.5)
			b.again(t, over)
			b.want(t, over, jetpost.StatePublished, "", 1)
		})
	})
	t.Run("that X corrects", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := doubt(t)
			b.h.Budget = admission.Budget{App: cents(100)}
			b.faults(t, xsim.Fault{Kind: xsim.FaultStatus, Status: http.StatusPaymentRequired, Endpoint: xsim.EndpointCreatePost, Times: 1})
			broke := b.spend(t, "acme", "broke", thread("a")...)
			b.want(t, broke, jetpost.StateHeld, jetpost.CodeAppPaused, 0)
			b.account(t, "bolt", 0)
			other := b.spend(t, "bolt", "other", thread("b")...)
			b.over(t, other, "X has refused posts for want of money, so that the month's limit of the app, $1.00, counts as spent")
			calls := b.calls(xsim.EndpointCreatePost)
			testkit.Must(t, b.ledger.ForgetBilled(t.Context(), time.Now()))
			b.again(t, other)
			testkit.Equal(t, "calls before somebody has resumed the app", calls, 1)
			b.want(t, other, jetpost.StatePublished, "", 1)
		})
	})
}
