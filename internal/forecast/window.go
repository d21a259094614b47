package forecast

import (
	"time"

	"github.com/jetpost/jetpost/publishers"
)

// The sources of a RateWindow.
const (
	sourceX         = "x"
	sourceEstimated = "estimated"
)

// NewRateWindow is a window of X as it stands at a time.
func NewRateWindow(w publishers.Window, now time.Time) RateWindow {
	r := RateWindow{
		Account: w.Account, Endpoint: w.Endpoint, Kind: w.Kind, Limit: w.Limit, Remaining: w.Remaining,
		Reset: w.Reset.UTC(), LengthSeconds: w.Length.Seconds(), Source: sourceX, ToldAt: w.ToldAt,
	}
	if w.Estimated {
		r.Source = sourceEstimated
	}
	if !now.Before(w.Reset) {
		r.Remaining, r.Reset = w.Limit, time.Time{}
	}
	r.Available = r.Reset.IsZero() || r.Remaining > 0
	return r
}
