package forecast

import (
	"time"

	"github.com/jetpost/jetpost/publishers"
)

// RateWindow is a rate window of X, as a worker last shared it.
type RateWindow struct {
	// Account is the account whose calls it counts; absent if it counts all calls of the
	// app.
	Account  string `json:"account,omitempty"`
	Endpoint string `json:"endpoint"` // method and path pattern
	Kind     string `json:"kind"`     // 15min, user_24h or app_24h
	// Limit and Remaining are numbers of calls. A limit of 0 is unknown.
	Limit     int `json:"limit"`
	Remaining int `json:"remaining"`
	// Open tells that the last window is over: the next call begins one.
	Open  bool      `json:"open"`
	Reset time.Time `json:"reset,omitzero"` // absent where Open
	// LengthSeconds is how long such a window was seen to last; absent where it was not.
	LengthSeconds float64 `json:"length_seconds,omitempty"`
	// Source is x if X has reported the window. It is estimated if not: then Limit is the
	// documented limit, and the workers have counted their calls.
	Source string `json:"source"`
	// ToldAt is when a worker shared the window; absent if none has.
	ToldAt time.Time `json:"told_at,omitzero"`
}

// The sources of a RateWindow.
const (
	sourceX         = "x"
	sourceEstimated = "estimated"
)

// NewRateWindow returns the state of a window at the time now.
func NewRateWindow(w publishers.Window, now time.Time) RateWindow {
	r := RateWindow{
		Account: w.Account, Endpoint: w.Endpoint, Kind: w.Kind, Limit: w.Limit, Remaining: w.Remaining,
		Reset: w.Reset.UTC(), LengthSeconds: w.Length.Seconds(), Source: sourceX, ToldAt: w.ToldAt,
	}
	if w.Estimated {
		r.Source = sourceEstimated
	}
	if !now.Before(w.Reset) {
		r.Open, r.Remaining, r.Reset = true, w.Limit, time.Time{}
	}
	return r
}
