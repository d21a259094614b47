package control

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/forecast"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// The states of a jetpost.Breaker.
const (
	xReachable   = "reachable"
	xUnreachable = "unreachable"
)

// NewLimits lists windows, and the pauses that are in force at now. If account is not
// empty, the windows are those of the account and of the app.
func NewLimits(now time.Time, account string, windows []publishers.Window, pauses []publishers.Pause) jetpost.Limits {
	l := jetpost.Limits{Now: now, X: jetpost.Breaker{State: xReachable}, Pauses: []jetpost.LimitPause{}, Windows: []jetpost.RateWindow{}}
	for _, s := range pauses {
		if !s.Active(now) {
			continue
		}
		pause := jetpost.LimitPause{
			Target: s.Target, Code: s.Reason.Code, Detail: s.Reason.Detail, Since: s.Since.UTC(), Until: s.Reason.Until.UTC(),
			AskedAgain: s.NextProbeAt.UTC(), WaitSeconds: s.Wait.Seconds(), Do: Advice(s.Reason.Code),
		}
		if s.Target == publishers.TargetPublish && s.Reason.Code == jetpost.CodeXOutage {
			l.X = jetpost.Breaker{State: xUnreachable, Since: s.Since.UTC(), AskedAgain: s.NextAt().UTC()}
		}
		l.Pauses = append(l.Pauses, pause)
	}
	for _, w := range windows {
		if account == "" || w.Account == "" || w.Account == account {
			l.Windows = append(l.Windows, forecast.NewRateWindow(w, now))
		}
	}
	return l
}

// ReadLimits reads X's windows and the app pauses, as the workers have published them.
func ReadLimits(ctx context.Context, js jetstream.JetStream, names jetpost.Names, account string) (jetpost.Limits, error) {
	windows, pauses, err := limits(ctx, js, names)
	if err != nil {
		return jetpost.Limits{}, err
	}
	return NewLimits(time.Now().UTC(), account, windows, pauses), nil
}

// limits reads all windows, and all pauses in the bucket, whether in force or not.
func limits(ctx context.Context, js jetstream.JetStream, names jetpost.Names) (windows []publishers.Window, pauses []publishers.Pause, err error) {
	if pauses, err = publishers.NewAppPauses(js, names).All(ctx); err != nil {
		return nil, nil, err
	}
	windows, err = publishers.NewWindows(js, names).All(ctx)
	return windows, pauses, err
}

// AppLimits returns the limits on calls to X.
func (c *Control) AppLimits(ctx context.Context, in jetpost.LimitsRequest) (jetpost.Limits, error) {
	limits, err := ReadLimits(ctx, c.JS, c.Names, in.Account)
	if err != nil {
		return limits, err
	}
	if in.Limit > 0 && len(limits.Windows) > in.Limit {
		slices.SortStableFunc(limits.Windows, func(a, b jetpost.RateWindow) int {
			return cmp.Or(first(!a.Available, !b.Available), first(a.Account == "", b.Account == ""))
		})
		limits.MoreWindows = len(limits.Windows) - in.Limit
		limits.Windows = limits.Windows[:in.Limit]
	}
	spent, err := c.Ledger.MonthSpent(ctx, in.Account, time.Now())
	if err == nil && (spent.App > 0 || spent.Billed || spent.Limit > 0) {
		limits.Spending = monthSpending(in.Account, spent)
	}
	return limits, DatabaseError(err)
}

// monthSpending is what a month has cost, as the contract has it.
func monthSpending(account string, spent store.Spent) *jetpost.MonthSpending {
	micros := spent.Account
	if account == "" {
		micros = spent.App
	}
	return &jetpost.MonthSpending{
		Account: account, MonthlyUSD: float64(spent.Limit) / store.MicrosPerDollar, SpentUSD: float64(micros) / store.MicrosPerDollar,
		Billed: spent.Billed, MonthEnds: spent.MonthEnds,
	}
}

// maxMonthlyUSD bounds a limit of a month.
const maxMonthlyUSD = 1e9

// AccountLimit sets what an account's posts of a month may cost, and has those go on that
// wait for another limit. store.ErrNotFound.
func (c *Control) AccountLimit(ctx context.Context, account string, in jetpost.AccountLimit) (jetpost.MonthSpending, error) {
	micros := int64(math.Round(in.MonthlyUSD * store.MicrosPerDollar))
	if in.MonthlyUSD < 0 || in.MonthlyUSD > maxMonthlyUSD || in.MonthlyUSD > 0 && micros == 0 {
		return jetpost.MonthSpending{}, &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("monthly_usd: is %v, want US dollars, or 0 for no limit", in.MonthlyUSD)}
	}
	op, err := call(jetpost.OpAccountLimit, account, in.OperationID, in)
	if err != nil {
		return jetpost.MonthSpending{}, err
	}
	answer, repeated, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.MonthSpending, error) {
		if err := ledger.LimitMonth(ctx, account, micros, op.Now); err != nil {
			return jetpost.MonthSpending{}, accountError(account, err)
		}
		spent, err := ledger.MonthSpent(ctx, account, op.Now)
		return *monthSpending(account, spent), DatabaseError(err)
	})
	if err != nil || repeated {
		return answer, err
	}
	if err := c.wake(ctx, account); err != nil { // the sweeper does otherwise
		c.Log.Warn("event.delayed", "account", account, "error", err)
	}
	return answer, nil
}

// first compares what comes first.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
