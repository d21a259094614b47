package app

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/tweettext"
)

// DryRun is what would become of a request that is not published.
type DryRun struct {
	Account string       `json:"account"`
	ID      string       `json:"id,omitempty"`
	DryRun  bool         `json:"dry_run"`
	Posts   []DryRunPost `json:"posts"`
	// CostEstimateUSD is that of all posts.
	CostEstimateUSD float64 `json:"cost_estimate_usd"`
	// PublishAt is the request's own; absent means at once.
	PublishAt time.Time `json:"publish_at,omitzero"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	// LaneRow is what the ledger tells; nil where it cannot be asked.
	Line *DryRunLine `json:"line,omitempty"`
	// Pause keeps all accounts from posting now.
	Stop *publishers.Pause `json:"stop,omitempty"`
	// NotAsked says what could not be asked, and why.
	NotAsked []string `json:"not_asked,omitempty"`
}

// DryRunPost is one post of a DryRun.
type DryRunPost struct {
	Index           int     `json:"index"`
	Weight          int     `json:"weight"` // as X counts
	URLs            int     `json:"urls"`
	Media           int     `json:"media"`
	CostEstimateUSD float64 `json:"cost_estimate_usd"`
}

// DryRunLine is where a request would stand.
type DryRunLine struct {
	// State is that of the account's token, as AccountReport has it; "" where no
	// account of that name is known.
	State string `json:"account_state,omitempty"`
	Do    string `json:"do,omitempty"`
	// Pause keeps the account from posting.
	Pause store.Pause `json:"pause,omitzero"`
	// Missing are the permissions without which the account's posts, or those with media,
	// do not begin.
	Missing []string `json:"missing_scopes,omitempty"`
	// Before counts the account's unfinished requests that are due no later.
	Before int `json:"requests_before"`
	// Request is the state of the request that has the id already.
	Request jetpost.State `json:"request_state,omitempty"`
	// SameText is another account's request with one of the texts.
	SameText *RequestName `json:"same_text,omitempty"`
}

// RequestName names a request.
type RequestName struct {
	Account string `json:"account"`
	ID      string `json:"id"`
}

// NewDryRun tells what a request alone shows.
func NewDryRun(r jetpost.Request) DryRun {
	f := DryRun{Account: r.Account, ID: r.ID, DryRun: true, PublishAt: r.PublishAt, ExpiresAt: r.ExpiresAt}
	var micros int64
	for i, p := range r.Posts {
		cost := consumers.CostMicros(p)
		micros += cost
		m := tweettext.Measure(p.Text)
		f.Posts = append(f.Posts, DryRunPost{
			Index: i, Weight: m.Weight, URLs: m.URLs, Media: len(p.Media), CostEstimateUSD: float64(cost) / store.MicrosPerDollar,
		})
	}
	f.CostEstimateUSD = float64(micros) / store.MicrosPerDollar
	return f
}

// DryRun asks the ledger and NATS what a request would meet, and changes
// nothing. What cannot be asked is part of its answer.
func (c Config) DryRun(ctx context.Context, log *slog.Logger, r jetpost.Request) DryRun {
	f := NewDryRun(r)
	line, err := c.dryRunLine(ctx, r)
	if err != nil {
		f.NotAsked = append(f.NotAsked, "the account's line: "+oneLine(err))
	}
	f.Line = line
	if f.Stop, err = c.publishStop(ctx, log); err != nil {
		f.NotAsked = append(f.NotAsked, "whether the app is stopped: "+oneLine(err))
	}
	return f
}

func (c Config) dryRunLine(ctx context.Context, r jetpost.Request) (*DryRunLine, error) {
	ledger, err := c.OpenStore(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ledger.Close() }() // only read from
	now := time.Now()
	line := &DryRunLine{}
	report, err := ReportAccount(ctx, ledger, r.Account)
	switch {
	case errors.Is(err, store.ErrNotFound):
		line.Do = AdviceFor(jetpost.CodeAccountUnknown, r.Account, "")
		return line, nil
	case err != nil:
		return nil, err
	}
	line.State, line.Do, line.Pause, line.Missing = report.State, report.Do, report.Pause, report.Missing
	if line.Before, err = requestsBefore(ctx, ledger, r.Account, later(r.PublishAt, now)); err != nil {
		return nil, err
	}
	other, found, err := ledger.SameText(ctx, store.TextsOf(r, now))
	if err != nil {
		return nil, databaseError(err)
	}
	if found {
		line.SameText = &RequestName{Account: other.Account, ID: other.ID}
	}
	if r.ID == "" {
		return line, nil
	}
	record, err := ledger.Request(ctx, store.Key{Account: r.Account, ID: r.ID})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, databaseError(err)
	}
	line.Request = record.Status.State // "" where there is none
	return line, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// requestsBefore counts an account's unfinished requests that are due by then.
func requestsBefore(ctx context.Context, ledger store.Requests, account string, due time.Time) (n int, err error) {
	for _, state := range jetpost.States() {
		if state.Finished() {
			continue
		}
		found, err := ledger.ListRequests(ctx, store.Filter{Account: account, State: state, Limit: maxListed})
		if err != nil {
			return 0, databaseError(err)
		}
		for _, r := range found {
			if !r.DueAt.After(due) {
				n++
			}
		}
	}
	return n, nil
}

// publishStop is what keeps all accounts from posting now, or nil.
func (c Config) publishStop(ctx context.Context, log *slog.Logger) (*publishers.Pause, error) {
	conn, err := c.Connect(ctx, log, "jetpost publish --dry-run")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop, there, err := publishers.NewAppPauses(conn.JS, conn.Names).Get(ctx, publishers.TargetPublish)
	if err != nil || !there || !stop.Active(time.Now()) {
		return nil, err
	}
	return &stop, nil
}
