package admission

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

const (
	// MaxPostsPerHour bounds Posting limits.PostsPerHour: so many rows are read before each
	// request of an account that has posted as much.
	MaxPostsPerHour = 1000
	// MinExpireAfter bounds Posting limits.ExpireAfter: a request has to get to its turn.
	MinExpireAfter = time.Minute
)

// Posting limits are limits that the operator sets for every account, so that what was
// queued by mistake, or piled up during an outage, does not go out all at once. The
// zero value has none. They are looked at before a request is begun; a thread that
// has begun goes on to its end.
type PostingLimits struct {
	// PostsPerHour is how many posts of an account may be live that were sent within
	// the last hour, those of the request that is begun included. A longer thread
	// goes out alone.
	PostsPerHour int
	// MinInterval is the least time from an account's latest live post to the begin
	// of the next request.
	MinInterval time.Duration
	// ExpireAfter fails a request of which nothing was sent so long after it was due.
	ExpireAfter time.Duration
}

// hour is what PostsPerHour looks back on.
const hour = time.Hour

// TooLate tells whether nothing of the request was sent, and that it is too late for it
// by now.
func (f PostingLimits) TooLate(head *store.Record, now time.Time) (detail string, late bool) {
	sent := func(p store.PostRecord) bool { return p.State != jetpost.PostPending }
	if f.ExpireAfter == 0 || slices.ContainsFunc(head.Posts, sent) || !now.After(head.DueAt.Add(f.ExpireAfter)) {
		return "", false
	}
	return fmt.Sprintf("it was due at %s, and workers begin nothing later than %s after its time",
		head.DueAt.UTC().Format(time.RFC3339), f.ExpireAfter), true
}

// posting limit says how long the operator's posting limits hold a request that has not begun.
func (p *Pass) postingLimit(ctx context.Context, head *store.Record, now time.Time) error {
	f := p.PostingLimits
	if f.PostsPerHour == 0 && f.MinInterval == 0 || !begins(head) {
		return nil
	}
	sent, err := p.Ledger.Sent(ctx, head.Account, now.Add(-f.checksBack()), max(f.PostsPerHour, 1))
	if err != nil {
		return err
	}
	left := len(head.Posts) - head.Status.Posted
	if until, detail := f.hold(sent, left, now); until.After(now) {
		return Wait(jetpost.CodePostingLimit, until, detail)
	}
	return nil
}

// begins tells whether the next post is the request's first, or the first since
// somebody has sent it back. A doubt is none: it is looked into.
func begins(head *store.Record) bool {
	live := false
	for _, p := range head.Posts {
		if p.State == jetpost.PostSending {
			return false
		}
		live = live || p.State == jetpost.PostPosted
	}
	return !live || head.BeganAt.IsZero()
}

// checksBack is how old a live post can be and still matter.
func (f PostingLimits) checksBack() time.Duration {
	if f.PostsPerHour == 0 {
		return f.MinInterval
	}
	return max(hour, f.MinInterval)
}

// hold is until when a request with so many posts left has to wait, and why, by when
// the account's latest live posts were sent, the newest first. An end that is not
// ahead is no wait.
func (f PostingLimits) hold(sent []time.Time, left int, now time.Time) (until time.Time, detail string) {
	if len(sent) == 0 {
		return time.Time{}, ""
	}
	if end := sent[0].Add(f.MinInterval); end.After(now) {
		until = end
		detail = fmt.Sprintf("the account's latest post was sent at %s, and the next request is begun %s after it",
			sent[0].UTC().Format(time.RFC3339), f.MinInterval)
	}
	if f.PostsPerHour == 0 {
		return until, detail
	}
	// All but this many must be older than an hour by then.
	needed := min(left, f.PostsPerHour)
	room := f.PostsPerHour - needed
	used := len(sent)
	for used > 0 && !sent[used-1].After(now.Add(-hour)) {
		used--
	}
	if used <= room {
		return until, detail
	}
	if end := sent[room].Add(hour); end.After(until) {
		until = end
		detail = fmt.Sprintf("%d of %d posts an hour are used, and it needs %d", used, f.PostsPerHour, needed)
	}
	return until, detail
}
