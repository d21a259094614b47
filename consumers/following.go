package consumers

import (
	"context"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi/tweettext"
)

// ahead returns the request behind this one, whose last post X has just made, if its first
// post may be sent at once and needs nothing but a call to X. Otherwise it returns nil, and
// the request is prepared once this outcome is committed.
func (t *threadRun) ahead(ctx context.Context) *threadRun {
	r, now := t.r, time.Now()
	head, there := r.lane.Behind()
	if !there || !r.goesOn(now) || r.pause.Blocked(now) || r.deletes(now) {
		return nil
	}
	if state := head.Status.State; state != jetpost.StateQueued && state != jetpost.StateScheduled {
		return nil
	}
	request, err := jetpost.Decode(head.Account, head.Body)
	next := &threadRun{r: r, head: &head, request: request, token: t.token, client: t.client, begun: -1}
	if err != nil || len(head.Posts) == 0 || len(head.Posts) != len(request.Posts) || next.uploading(0) || next.tooLate(0, now) != nil {
		return nil
	}
	if slices.ContainsFunc(request.Posts[1:], func(p jetpost.Post) bool { return tweettext.Measure(p.Text).Weight > tweettext.MaxWeight }) {
		return nil // the account may have no subscription
	}
	permit, admitted := r.pass.Ahead(ctx, r.pause, next.calls(0))
	if !admitted {
		return nil
	}
	next.permit = permit
	return next
}

// following returns the intent of the first post; nil if there is no such request.
func (t *threadRun) following(now time.Time) *store.Following {
	if t == nil {
		return nil
	}
	t.intent = now.Add(t.r.h.Timing.sendWithin())
	p := wirePost(t.request.Posts[0])
	return &store.Following{ID: t.head.ID, Revision: t.head.Status.Revision, Intent: store.Intent{
		ParentID: p.InReplyToPostID, TextHash: store.TextHash(p.Text), NotAfter: t.intent, Now: now, Lease: t.r.h.Timing.lease(),
	}}
}

// begun reports whether the head is the request whose intent went with the outcome before,
// and the ledger has that intent. If it has not, the call is not made.
func (r *laneRun) begun(head *store.Record) bool {
	t := r.next
	if t == nil {
		return false
	}
	if head != nil && head.ID == t.head.ID && head.Posts[0].State == jetpost.PostSending && head.Posts[0].Attempt == r.lane.Fence {
		return true
	}
	r.drop()
	return false
}

// take hands out, once, the request that has begun.
func (r *laneRun) take(head *store.Record) *threadRun {
	t := r.next
	if t == nil {
		return nil
	}
	r.next, t.head, t.begun = nil, head, 0
	return t
}

// drop gives back the permit of a call that is not made.
func (r *laneRun) drop() {
	if r.next != nil {
		r.next.drop()
		r.next = nil
	}
}

func (t *threadRun) drop() {
	if t.permit != nil {
		t.permit.Done(admission.ErrNotCalled)
		t.permit = nil
	}
}
