package control

import (
	"context"
	"errors"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// WorkersList tells of the workers by their last heartbeats.
func (c *Control) WorkersList(ctx context.Context) (jetpost.Workers, error) {
	heartbeats, err := publishers.NewHeartbeats(c.JS, c.Names).All(ctx)
	list := jetpost.Workers{Workers: []jetpost.WorkerReport{}}
	for _, s := range heartbeats {
		list.Workers = append(list.Workers, WorkerReport(s, c.AliveWithin))
	}
	return list, err
}

// WorkerReport is a worker by its last heartbeat.
func WorkerReport(s publishers.Heartbeat, aliveWithin time.Duration) jetpost.WorkerReport {
	return jetpost.WorkerReport{
		Worker: s.Worker, Host: s.Host, Version: s.Version, Roles: s.Roles, Slots: s.Slots, Used: s.Used, StartedAt: s.StartedAt,
		Faults: s.Faults, Disks: s.Disks, Alive: s.Age <= aliveWithin, AgeSeconds: s.Age.Seconds(),
	}
}

// AppSeries tells how much has gone out lately, and how much waits.
func (c *Control) AppSeries(ctx context.Context) (jetpost.Series, error) {
	now := time.Now().UTC()
	began := now.Truncate(time.Hour).Add(-(jetpost.SeriesHours - 1) * time.Hour)
	counted, err := c.Ledger.Series(ctx, store.SeriesQuery{
		Now: now, Since: began, Day: now.Truncate(24 * time.Hour), Month: time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC),
	})
	if err != nil {
		return jetpost.Series{}, DatabaseError(err)
	}
	held, err := c.Ledger.CountCodes(ctx, jetpost.StateHeld)
	if err != nil {
		return jetpost.Series{}, DatabaseError(err)
	}
	series := jetpost.Series{
		Now: now, DueHour: counted.DueHour, DueDay: counted.DueDay, Held: map[jetpost.Code]int{}, Limit: store.MaxSeries,
		CostTodayUSD: dollars(counted.CostDay), CostMonthUSD: dollars(counted.CostMonth),
	}
	for hour := range jetpost.SeriesHours {
		start := began.Add(time.Duration(hour) * time.Hour)
		series.Published = append(series.Published, jetpost.HourCount{Start: start, Posts: counted.Posts[start.Unix()/int64(time.Hour/time.Second)]})
	}
	for _, h := range held {
		series.Held[h.Code] = h.Count
	}
	return series, nil
}

// dollars are so many millionths.
func dollars(micros int64) float64 { return float64(micros) / 1e6 }

// AppStatus tells whether posts go out and, if not, why.
func (c *Control) AppStatus(ctx context.Context) (jetpost.StatusReport, error) {
	if c.Status == nil {
		return jetpost.StatusReport{}, &Error{Code: jetpost.ErrUnsupported, Err: errors.New("status: nobody here gathers it")}
	}
	return c.Status(ctx)
}
