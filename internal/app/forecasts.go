package app

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers/forecast"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// What a forecast is made of, and what it tells.
type (
	Forecast        = forecast.Forecast
	AccountForecast = forecast.AccountForecast
	QueueBlock      = forecast.QueueBlock
	Line            = forecast.Queue
	Queued          = forecast.Queued
	RateWindow      = forecast.RateWindow
)

// NewForecast is forecast.New, with what a person can do about each line that does not
// move.
func NewForecast(now time.Time, lines []Line, windows []publishers.Window, stops []publishers.Pause) Forecast {
	f := forecast.New(now, lines, windows, stops)
	for i, a := range f.Accounts {
		if b := a.Blocked; b != nil {
			f.Accounts[i].Blocked.Do = AdviceFor(b.Code, a.Account, b.ID)
		}
	}
	return f
}

// waitingPage is how many unfinished requests are read at once.
const waitingPage = 2000

// Forecast tells when everything that waits is out, if so many single posts were sent
// now for each of those accounts, and changes nothing.
func (d *Control) Forecast(ctx context.Context, added map[string]int) (Forecast, error) {
	accounts, err := d.Ledger.Accounts(ctx)
	if err != nil {
		return Forecast{}, databaseError(err)
	}
	now := time.Now().UTC()
	lines, err := readLines(ctx, d.Ledger, now, accounts, added)
	if err != nil {
		return Forecast{}, err
	}
	windows, stops, err := d.Conn.limits(ctx)
	if err != nil {
		return Forecast{}, err
	}
	fromNATS := factsOfNATS{now: now}
	if fromNATS.read(ctx, d.Conn); fromNATS.err != nil {
		return Forecast{}, fromNATS.err
	}
	var status Status
	facts := health.Facts{Now: now, Accounts: max(len(accounts), 1)}
	fromNATS.tell(&status, &facts)
	f := NewForecast(now, lines, windows, stops)
	if verdict := health.Judge(facts); verdict.State != health.Publishing {
		f.Notes = append(f.Notes, verdict.Sentence())
	}
	if n := status.QueuedJobs; n != nil && *n > 0 {
		f.Notes = append(f.Notes, fmt.Sprintf("not in it: %d jobs that no worker has accepted yet", *n))
	}
	return f, nil
}

// readLines reads what each account has to send, as its lane would take it.
func readLines(ctx context.Context, ledger store.Requests, now time.Time, accounts []store.Account, added map[string]int) ([]Line, error) {
	lines := make([]Line, len(accounts))
	byName := make(map[string]*Line, len(accounts))
	for i, a := range accounts {
		lines[i].Account = a.Name
		switch {
		case a.RequiresReauth:
			lines[i].Reason = &jetpost.Reason{Code: jetpost.CodeAccountReauthRequired}
		case a.Pause.Active(now):
			lines[i].Reason = &jetpost.Reason{Code: a.Pause.Reason.Code, Until: a.Pause.Reason.Until}
		}
		byName[a.Name] = &lines[i]
	}
	var last store.Waiting
	for {
		page, err := ledger.Waiting(ctx, last, waitingPage)
		if err != nil {
			return nil, databaseError(err)
		}
		if len(page) == 0 {
			break
		}
		for _, w := range page {
			if line := byName[w.Account]; line != nil { // else it was connected this moment
				line.Queue = append(line.Queue, queued(w))
			}
		}
		last = page[len(page)-1]
	}
	for account, n := range added {
		line := byName[account]
		if line == nil {
			return nil, &HintError{Err: fmt.Errorf("account %s: %w", account, store.ErrNotFound), Help: AdviceFor(jetpost.CodeAccountUnknown, account, "")}
		}
		// As a job that is sent now, they stand before what is due later.
		line.Queue = append(line.Queue, Queued{Count: n, Posts: 1, Due: now, State: jetpost.StateQueued})
	}
	for i := range lines {
		slices.SortStableFunc(lines[i].Queue, func(a, b Queued) int {
			switch {
			case a.Begun && !b.Begun:
				return -1
			case b.Begun && !a.Begun:
				return 1
			}
			return a.Due.Compare(b.Due)
		})
	}
	return lines, nil
}

func queued(w store.Waiting) Queued {
	return Queued{
		ID: w.ID, Count: 1, Posts: w.Posts, Live: w.Live, Begun: w.Begun, Due: w.DueAt, Expires: w.ExpiresAt,
		State: w.State, Code: w.Code, Until: w.HoldUntil,
	}
}
