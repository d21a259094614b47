package app

import (
	"context"
	"log/slog"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers/forecast"
	"github.com/jetpost/jetpost/publishers"
)

// Limits are what keeps calls from X now, as far as the workers have told.
type Limits struct {
	// Now is when they were read.
	Now time.Time `json:"now"`
	// X tells whether the workers leave it alone since it fails.
	X       Breaker               `json:"x"`
	Stops   []LimitPause          `json:"stops"`
	Windows []forecast.RateWindow `json:"windows"`
}

// Breaker is what the workers together make of X's health.
type Breaker struct {
	State string `json:"state"` // closed, or open: X is left alone
	// Since, and AskedAgain, when one call finds out whether X is back, are those of
	// an open one.
	Since      time.Time `json:"since,omitzero"`
	AskedAgain time.Time `json:"asked_again,omitzero"`
}

// LimitPause is a stop in force.
type LimitPause struct {
	Target string       `json:"target"`
	Code   jetpost.Code `json:"code"`
	Detail string       `json:"detail,omitempty"`
	Since  time.Time    `json:"since"`
	// Until is its end; absent where a person has to end it, or where X is asked.
	Until time.Time `json:"until,omitzero"`
	// AskedAgain is when one worker finds out whether it is over, if nobody knows its
	// end. If it is not, the next wait is twice as long as WaitSeconds.
	AskedAgain  time.Time `json:"asked_again,omitzero"`
	WaitSeconds float64   `json:"wait_seconds,omitempty"`
	Do          string    `json:"do,omitempty"`
}

// NewLimits tells of windows and of those stops that are in force: with an account, of
// its windows and the app's.
func NewLimits(now time.Time, account string, windows []publishers.Window, stops []publishers.Pause) Limits {
	l := Limits{Now: now, X: Breaker{State: "closed"}, Stops: []LimitPause{}, Windows: []forecast.RateWindow{}}
	for _, s := range stops {
		if !s.Active(now) {
			continue
		}
		stop := LimitPause{
			Target: s.Target, Code: s.Reason.Code, Detail: s.Reason.Detail, Since: s.Since.UTC(), Until: s.Reason.Until.UTC(),
			AskedAgain: s.NextProbeAt.UTC(), WaitSeconds: s.Wait.Seconds(), Do: Advice(s.Reason.Code),
		}
		if s.Target == publishers.TargetPublish && s.Reason.Code == jetpost.CodeXOutage {
			l.X = Breaker{State: "open", Since: s.Since.UTC(), AskedAgain: s.NextAt().UTC()}
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

// Limits reads what the workers have told of X's windows and stops.
func (c Config) Limits(ctx context.Context, log *slog.Logger, account string) (Limits, error) {
	if err := c.validate(needs{nats: true}); err != nil {
		return Limits{}, err
	}
	conn, err := c.Connect(ctx, log, "jetpost limits")
	if err != nil {
		return Limits{}, err
	}
	defer conn.Close()
	windows, stops, err := conn.limits(ctx)
	if err != nil {
		return Limits{}, err
	}
	return NewLimits(time.Now().UTC(), account, windows, stops), nil
}

// limits are all windows, and the stops on record.
func (c *Connection) limits(ctx context.Context) (windows []publishers.Window, stops []publishers.Pause, err error) {
	if stops, err = publishers.NewAppPauses(c.JS, c.Names).All(ctx); err != nil {
		return nil, nil, err
	}
	windows, err = publishers.NewWindows(c.JS, c.Names).All(ctx)
	return windows, stops, err
}
