package store

import (
	"context"
	"time"
)

// MicrosPerDollar converts costs, which are stored as whole numbers.
const MicrosPerDollar = 1_000_000

// Expense is what a request costs by estimate, and the limits that it must keep to. Money
// is in millionths of a US dollar.
type Expense struct {
	ID          string // the request's
	Micros      int64  // of all its posts
	Posts, Live int    // its posts, and those that are live already
	// AppLimit and AccountLimit are the limits of a month; 0 is none.
	AppLimit, AccountLimit int64
	Now                    time.Time
}

// Spent is what a month has cost by estimate, with what is set aside for requests that have
// begun. Money is in millionths of a US dollar.
type Spent struct {
	Granted      bool
	Needs        int64 // for the posts that are left
	App, Account int64 // without Needs
	// Billed says that X has refused a call for want of money: the estimate is too low, and
	// the app's month counts as spent.
	Billed    bool
	MonthEnds time.Time // UTC, by the database's clock
	Limit     int64     // the account's own, told by MonthSpent; 0 is none
}

// MonthEnd is the begin of the month after now's.
func MonthEnd(now time.Time) time.Time {
	now = now.UTC()
	return time.Date(now.Year(), now.Month()+1, 1, 0, 0, 0, 0, time.UTC)
}

// Spending keeps what posts cost in a month, for accounts under a limit.
//
// The cost of a request is set aside when it begins. Once its account's next one begins, it
// is corrected to the posts that went out. Nothing is kept, and nothing counted, while no
// limit is set.
type Spending interface {
	// Spend sets the cost of a request's posts aside, if the month's limits allow it. A
	// request for which it is set aside already is granted. All accounts do so one after
	// the other.
	Spend(ctx context.Context, account string, e Expense) (Spent, error)
	// MonthSpent returns what the month has cost the account, or "" for the app alone.
	MonthSpent(ctx context.Context, account string, now time.Time) (Spent, error)
	// NoteBilled notes that X has refused a call for want of money. It holds until
	// ForgetBilled, and until the month ends.
	NoteBilled(ctx context.Context, now time.Time) error
	ForgetBilled(ctx context.Context, now time.Time) error
	// LimitMonth sets the account's own limit of a month; 0 removes it. ErrNotFound.
	LimitMonth(ctx context.Context, account string, micros int64, now time.Time) error
}
