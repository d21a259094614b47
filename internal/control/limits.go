package control

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/forecast"
	"github.com/jetpost/jetpost/publishers"
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
	l, err := ReadLimits(ctx, c.JS, c.Names, in.Account)
	if in.Limit > 0 && len(l.Windows) > in.Limit {
		slices.SortStableFunc(l.Windows, func(a, b jetpost.RateWindow) int {
			return cmp.Or(first(!a.Available, !b.Available), first(a.Account == "", b.Account == ""))
		})
		l.MoreWindows = len(l.Windows) - in.Limit
		l.Windows = l.Windows[:in.Limit]
	}
	return l, err
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
