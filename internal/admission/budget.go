package admission

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// budgetAgain is how often a request that a monthly limit holds is checked again: the limit
// may have been raised, or other requests have cost less than was set aside.
const budgetAgain = 15 * time.Minute

// Budget is what posts of a month may cost by estimate, in millionths of a US dollar. 0 is
// no limit. It is checked before a request begins, whose whole cost is set aside then.
type Budget struct {
	App     int64 // of all accounts
	Account int64 // of each account that has no limit of its own
}

// monthly returns the limits that hold for the lane's account.
func (p *Pass) monthly() Budget {
	limit := p.Budget
	if p.OwnLimit > 0 {
		limit.Account = p.OwnLimit
	}
	return limit
}

// budget returns a *WaitError if a monthly limit holds a request that has not begun.
func (p *Pass) budget(ctx context.Context, head *store.Record, now time.Time) error {
	limit := p.monthly()
	if limit == (Budget{}) || !begins(head) {
		return nil
	}
	spent, err := p.Ledger.Spend(ctx, head.Account, store.Expense{
		ID: head.ID, Micros: int64(math.Round(head.Status.CostEstimateUSD * store.MicrosPerDollar)), Posts: len(head.Posts), Live: head.Status.Posted,
		AppLimit: limit.App, AccountLimit: limit.Account, Now: now,
	})
	if err != nil || spent.Granted {
		return err
	}
	wait := &WaitError{Reason: jetpost.Reason{Code: jetpost.CodePostingLimit, Until: spent.MonthEnds, Detail: overBudget(limit, spent)}}
	if again := now.Add(budgetAgain); again.Before(spent.MonthEnds) {
		wait.CheckAt = again
	}
	return wait
}

// overBudget says which limit holds a request.
func overBudget(limit Budget, spent store.Spent) string {
	usd := func(micros int64) string { return fmt.Sprintf("$%.2f", float64(micros)/store.MicrosPerDollar) }
	over := func(whose string, limit, used int64) string {
		return fmt.Sprintf("the month's limit of %s is %s, of which %s are spent or set aside by estimate, and it needs %s", whose, usd(limit), usd(used), usd(spent.Needs))
	}
	switch {
	case limit.Account > 0 && spent.Account+spent.Needs > limit.Account:
		return over("the account", limit.Account, spent.Account)
	case limit.App > 0 && spent.Billed:
		return fmt.Sprintf("X has refused posts for want of money, so that the month's limit of the app, %s, counts as spent", usd(limit.App))
	}
	return over("the app", limit.App, spent.App)
}

// billed notes that X refuses calls for want of money: the estimate is too low.
func (p *Pass) billed(ctx context.Context, now time.Time) {
	if p.Budget.App == 0 {
		return
	}
	if err := p.Ledger.NoteBilled(ctx, now); err != nil {
		p.Log.Error("app.billed_not_noted", "error", err)
	}
}
