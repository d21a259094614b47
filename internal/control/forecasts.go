package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/forecast"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// NewForecast is forecast.New, with what a person can do about each queue that does not
// move.
func NewForecast(now time.Time, queues []forecast.Queue, windows []publishers.Window, pauses []publishers.Pause) jetpost.Forecast {
	f := forecast.New(now, queues, windows, pauses)
	for i, a := range f.Accounts {
		if b := a.Blocked; b != nil {
			f.Accounts[i].Blocked.Do = AdviceFor(b.Code, a.Account, b.ID)
		}
	}
	return f
}

// waitingPage is how many unfinished requests are read at once.
const waitingPage = 2000

// MaxAdded bounds what a forecast can add to one account.
const MaxAdded = 1_000_000 // posts

// AppForecast tells when everything that waits is out, if so many single posts were sent
// now for each of those accounts, and changes nothing.
func (c *Control) AppForecast(ctx context.Context, in jetpost.ForecastRequest) (jetpost.Forecast, error) {
	for account, n := range in.Add {
		if n < 1 || n > MaxAdded {
			return jetpost.Forecast{}, &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("add: %d posts of %s are not within 1 and %d", n, account, MaxAdded)}
		}
	}
	accounts, err := c.Ledger.Accounts(ctx)
	if err != nil {
		return jetpost.Forecast{}, DatabaseError(err)
	}
	now := time.Now().UTC()
	queues, err := readQueues(ctx, c.Ledger, now, accounts, in.Add)
	if err != nil {
		return jetpost.Forecast{}, err
	}
	windows, pauses, err := limits(ctx, c.JS, c.Names)
	if err != nil {
		return jetpost.Forecast{}, err
	}
	f := NewForecast(now, queues, windows, pauses)
	if in.Limit > 0 && len(f.Accounts) > in.Limit {
		f.MoreAccounts = len(f.Accounts) - in.Limit
		f.Accounts = f.Accounts[:in.Limit]
	}
	if c.Notes != nil {
		f.Notes, err = c.Notes(ctx, len(accounts))
	}
	return f, err
}

// readQueues reads what each account has to send, as its lane would take it.
func readQueues(ctx context.Context, ledger store.Queries, now time.Time, accounts []store.Account, added map[string]int) ([]forecast.Queue, error) {
	queues := make([]forecast.Queue, len(accounts))
	byName := make(map[string]*forecast.Queue, len(accounts))
	for i, a := range accounts {
		queues[i].Account = a.Name
		switch {
		case a.RequiresReauth:
			queues[i].Reason = &jetpost.Reason{Code: jetpost.CodeAccountReauthRequired}
		case a.Pause.Active(now):
			queues[i].Reason = &jetpost.Reason{Code: a.Pause.Reason.Code, Until: a.Pause.Reason.Until}
		}
		byName[a.Name] = &queues[i]
	}
	var last store.Waiting
	for {
		page, err := ledger.Waiting(ctx, last, waitingPage)
		if err != nil {
			return nil, DatabaseError(err)
		}
		if len(page) == 0 {
			break
		}
		for _, w := range page {
			if queue := byName[w.Account]; queue != nil { // else it was connected this moment
				queue.Queue = append(queue.Queue, queued(w))
			}
		}
		last = page[len(page)-1]
	}
	for account, n := range added {
		queue := byName[account]
		if queue == nil {
			return nil, &Error{Code: jetpost.ErrNotFound, Err: fmt.Errorf("account %s: %w", account, store.ErrNotFound), Help: AdviceFor(jetpost.CodeAccountUnknown, account, "")}
		}
		// As a job that is sent now, they stand before what is due later.
		queue.Queue = append(queue.Queue, forecast.Queued{Count: n, Posts: 1, Due: now, State: jetpost.StateQueued})
	}
	for i := range queues {
		slices.SortStableFunc(queues[i].Queue, func(a, b forecast.Queued) int {
			switch {
			case a.Begun && !b.Begun:
				return -1
			case b.Begun && !a.Begun:
				return 1
			}
			return a.Due.Compare(b.Due)
		})
	}
	return queues, nil
}

func queued(w store.Waiting) forecast.Queued {
	return forecast.Queued{
		ID: w.ID, Count: 1, Posts: w.Posts, Live: w.Live, Begun: w.Begun, Due: w.DueAt, Expires: w.ExpiresAt,
		State: w.State, Code: w.Code, Until: w.HoldUntil,
	}
}
