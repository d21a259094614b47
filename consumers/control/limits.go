package control

import (
	"context"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers/forecast"
	"github.com/jetpost/jetpost/publishers"
)

// NewLimits tells of windows and of those stops that are in force: with an account, of
// its windows and the app's.
func NewLimits(now time.Time, account string, windows []publishers.Window, stops []publishers.Pause) jetpost.Limits {
	l := jetpost.Limits{Now: now, X: jetpost.Breaker{State: "closed"}, Stops: []jetpost.LimitPause{}, Windows: []jetpost.RateWindow{}}
	for _, s := range stops {
		if !s.Active(now) {
			continue
		}
		stop := jetpost.LimitPause{
			Target: s.Target, Code: s.Reason.Code, Detail: s.Reason.Detail, Since: s.Since.UTC(), Until: s.Reason.Until.UTC(),
			AskedAgain: s.NextProbeAt.UTC(), WaitSeconds: s.Wait.Seconds(), Do: Advice(s.Reason.Code),
		}
		if s.Target == publishers.TargetPublish && s.Reason.Code == jetpost.CodeXOutage {
			l.X = jetpost.Breaker{State: "open", Since: s.Since.UTC(), AskedAgain: s.NextAt().UTC()}
		}
		l.Stops = append(l.Stops, stop)
	}
	for _, w := range windows {
		if account == "" || w.Account == "" || w.Account == account {
			l.Windows = append(l.Windows, forecast.NewRateWindow(w, now))
		}
	}
	return l
}

// ReadLimits reads what the workers have told of X's windows and stops.
func ReadLimits(ctx context.Context, js jetstream.JetStream, names jetpost.Names, account string) (jetpost.Limits, error) {
	windows, stops, err := limits(ctx, js, names)
	if err != nil {
		return jetpost.Limits{}, err
	}
	return NewLimits(time.Now().UTC(), account, windows, stops), nil
}

// limits are all windows, and the stops on record.
func limits(ctx context.Context, js jetstream.JetStream, names jetpost.Names) (windows []publishers.Window, stops []publishers.Pause, err error) {
	if stops, err = publishers.NewAppPauses(js, names).All(ctx); err != nil {
		return nil, nil, err
	}
	windows, err = publishers.NewWindows(js, names).All(ctx)
	return windows, stops, err
}

// AppLimits tells what keeps calls from X.
func (c *Control) AppLimits(ctx context.Context, in jetpost.LimitsRequest) (jetpost.Limits, error) {
	return ReadLimits(ctx, c.JS, c.Names, in.Account)
}
