package rules

import (
	"time"

	"github.com/jetpost/jetpost/store"
)

// OpenExpense is what was set aside for a request, as a driver has read it.
type OpenExpense struct {
	ID, Month string
	Micros    int64 // set aside
	Cost      int64 // of the whole request
	Posts     int   // its posts
	Live      int   // those that were live when it was set aside
	LiveNow   int
	Finished  bool // or no longer known
}

// Correction is by how much the posts that went out have cost more than was set aside,
// mostly less.
func (o OpenExpense) Correction() int64 {
	return part(o.Cost, o.LiveNow-o.Live, o.Posts) - o.Micros
}

// part is what some posts of a request cost, at its average.
func part(cost int64, posts, of int) int64 {
	if of == 0 {
		return 0
	}
	return cost * int64(max(posts, 0)) / int64(of)
}

// Month names a month.
func Month(now time.Time) string { return now.UTC().Format("2006-01") }

// Spend is the rule of [store.Spending.Spend]: it judges the expense by what the month has
// cost.
func Spend(e store.Expense, app, account int64, billed bool, now time.Time) store.Spent {
	s := store.Spent{Needs: part(e.Micros, e.Posts-e.Live, e.Posts), App: app, Account: account, Billed: billed, MonthEnds: store.MonthEnd(now)}
	fits := func(limit, spent int64) bool { return limit == 0 || spent+s.Needs <= limit }
	s.Granted = fits(e.AppLimit, app) && fits(e.AccountLimit, account) && (e.AppLimit == 0 || !billed)
	return s
}
