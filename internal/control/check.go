package control

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/tweettext"
)

// RequestCheck tells what would become of a request, and sends nothing. What cannot be
// asked is part of its answer.
func (c *Control) RequestCheck(ctx context.Context, account string, r jetpost.Request) (jetpost.CheckAnswer, error) {
	r.Account = account
	if err := r.Validate(); err != nil {
		return jetpost.CheckAnswer{}, err
	}
	if err := cmp.Or(c.Rules.Check(r), consumers.OwnObjects(r)); err != nil {
		return jetpost.CheckAnswer{}, err
	}
	answer := NewCheck(r)
	var err error
	if answer.Queue, err = CheckQueue(ctx, c.Ledger, r); err != nil {
		answer.NotAsked = append(answer.NotAsked, NotAskedQueue+oneLine(err))
	} else if answer.Queue.SameText != nil && ownAlone(ctx) {
		answer.Queue.SameText = &jetpost.RequestName{}
	}
	if answer.Pause, err = PublishPause(ctx, c.JS, c.Names); err != nil {
		answer.NotAsked = append(answer.NotAsked, NotAskedPause+oneLine(err))
	}
	return answer, nil
}

// What a CheckAnswer says of what could not be asked.
const (
	NotAskedQueue = "the account's queue: "
	NotAskedPause = "whether the app is paused: "
)

// NewCheck tells what a request alone shows.
func NewCheck(r jetpost.Request) jetpost.CheckAnswer {
	f := jetpost.CheckAnswer{Account: r.Account, ID: r.ID, DryRun: true, PublishAt: r.PublishAt, ExpiresAt: r.ExpiresAt}
	var micros int64
	for i, p := range r.Posts {
		cost := consumers.CostMicros(p)
		micros += cost
		m := tweettext.Measure(p.Text)
		f.Posts = append(f.Posts, jetpost.CheckedPost{
			Index: i, Weight: m.Weight, URLs: m.URLs, Media: len(p.Media), CostEstimateUSD: float64(cost) / store.MicrosPerDollar,
		})
	}
	f.CostEstimateUSD = float64(micros) / store.MicrosPerDollar
	return f
}

// CheckQueue tells what a request would meet in its account's queue.
func CheckQueue(ctx context.Context, ledger store.Store, r jetpost.Request) (*jetpost.CheckedQueue, error) {
	now := time.Now()
	queue := &jetpost.CheckedQueue{}
	report, err := ReportAccount(ctx, ledger, r.Account)
	switch {
	case errors.Is(err, store.ErrNotFound):
		queue.Do = AdviceFor(jetpost.CodeAccountUnknown, r.Account, "")
		return queue, nil
	case err != nil:
		return nil, err
	}
	queue.State, queue.Do, queue.Pause, queue.Missing = report.State, report.Do, report.Pause, report.Missing
	if queue.Before, err = requestsBefore(ctx, ledger, r.Account, later(r.PublishAt, now)); err != nil {
		return nil, err
	}
	other, found, err := ledger.SameText(ctx, store.TextsOf(r, now))
	if err != nil {
		return nil, DatabaseError(err)
	}
	if found {
		queue.SameText = &jetpost.RequestName{Account: other.Account, ID: other.ID}
	}
	if r.ID == "" {
		return queue, nil
	}
	record, err := ledger.Request(ctx, store.Key{Account: r.Account, ID: r.ID})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, DatabaseError(err)
	}
	queue.Request = record.Status.State // "" where there is none
	return queue, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// requestsBefore counts an account's unfinished requests that are due by then.
func requestsBefore(ctx context.Context, ledger store.Queries, account string, due time.Time) (n int, err error) {
	for _, state := range jetpost.States() {
		if state.Finished() {
			continue
		}
		found, err := ledger.ListRequests(ctx, store.Filter{Account: account, State: state, Limit: maxListed})
		if err != nil {
			return 0, DatabaseError(err)
		}
		for _, r := range found {
			if !r.DueAt.After(due) {
				n++
			}
		}
	}
	return n, nil
}

// PublishPause is what keeps all accounts from posting now, or nil.
func PublishPause(ctx context.Context, js jetstream.JetStream, names jetpost.Names) (*publishers.Pause, error) {
	stop, there, err := publishers.NewAppPauses(js, names).Get(ctx, publishers.TargetPublish)
	if err != nil || !there || !stop.Active(time.Now()) {
		return nil, err
	}
	return &stop, nil
}
