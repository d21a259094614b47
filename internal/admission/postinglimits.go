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
	// MaxPostsPerHour bounds PostingLimits.PostsPerHour, because up to that many rows are
	// read before each request.
	MaxPostsPerHour = 1000
	// MinExpireAfter bounds PostingLimits.ExpireAfter, so that a request has time to be
	// processed.
	MinExpireAfter = time.Minute
)

// PostingLimits are limits that the operator sets for every account, so that requests that
// were queued by mistake, or during an outage, are not published all at once. The zero
// value has no limits. They are checked before a request begins; a thread that has begun
// goes on to its end.
type PostingLimits struct {
	// PostsPerHour is how many posts an account may publish within an hour, including
	// those of the request that begins. A thread with more posts is published on its own,
	// once no other post is within the hour.
	PostsPerHour int
	// MinInterval is the least time between an account's latest live post and the begin
	// of its next request.
	MinInterval time.Duration
	// ExpireAfter is how long after its due time a request fails if nothing of it was sent.
	ExpireAfter time.Duration
}

// countPosts reports whether the account's live posts have to be counted.
func (f PostingLimits) countPosts() bool { return f.PostsPerHour > 0 || f.MinInterval > 0 }

// hour is the period of PostsPerHour.
const hour = time.Hour

// TooLate reports whether ExpireAfter has passed before anything of the request was sent.
func (f PostingLimits) TooLate(head *store.Record, now time.Time) (detail string, late bool) {
	sent := func(p store.PostRecord) bool { return p.State != jetpost.PostPending }
	if f.ExpireAfter == 0 || slices.ContainsFunc(head.Posts, sent) || !now.After(head.DueAt.Add(f.ExpireAfter)) {
		return "", false
	}
	return fmt.Sprintf("it was due at %s, and requests expire %s after their due time",
		head.DueAt.UTC().Format(time.RFC3339), f.ExpireAfter), true
}

// postingLimit returns a *WaitError if the posting limits hold a request that has not begun.
func (p *Pass) postingLimit(ctx context.Context, head *store.Record, now time.Time) error {
	f := p.PostingLimits
	if !f.countPosts() || !begins(head) {
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

// begins reports whether the next post is the first of the request, or the first since it
// was retried. A post in doubt is not a begin, because it has to be reconciled.
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

// checksBack is the age up to which live posts count.
func (f PostingLimits) checksBack() time.Duration {
	if f.PostsPerHour == 0 {
		return f.MinInterval
	}
	return max(hour, f.MinInterval)
}

// hold returns the time until which a request with left unsent posts has to wait, and why.
// sent lists when the account's latest live posts were sent, the newest first. A time that
// is not after now means no wait.
func (f PostingLimits) hold(sent []time.Time, left int, now time.Time) (until time.Time, detail string) {
	if len(sent) == 0 {
		return time.Time{}, ""
	}
	if end := sent[0].Add(f.MinInterval); end.After(now) {
		until = end
		detail = fmt.Sprintf("the account's latest post was sent at %s, and the next request begins %s after it",
			sent[0].UTC().Format(time.RFC3339), f.MinInterval)
	}
	if f.PostsPerHour == 0 {
		return until, detail
	}
	// Only the newest room posts may be within the hour.
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
