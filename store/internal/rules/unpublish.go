package rules

import (
	"cmp"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// These are the rules by which a request's posts are deleted. The deletion is stored
// beside the request. The request is finished from then on and keeps its state.

// UnpublishAt is when a lane continues with the deletion, zero for never.
func (r *Row) UnpublishAt() time.Time {
	if r.Deletion == nil {
		return time.Time{}
	}
	return r.Deletion.NextAt
}

// Unpublish is the rule of [store.Control.Unpublish].
func (r *Row) Unpublish(now time.Time) (Change, error) {
	finished := r.Status.State.Finished()
	switch {
	case r.Deletion != nil && !r.Deletion.Open():
		return Change{}, nil
	case finished && !r.undeleted():
		return Change{}, store.ErrNotRunnable
	case !finished:
		r.move(jetpost.StateCancelled, jetpost.EventRequestCancelled, nil)
	}
	if r.undeleted() {
		r.Event = jetpost.EventRequestUnpublishing
	}
	r.Deletion = &store.Deletion{AskedAt: now, NextAt: now}
	r.revise(now)
	return Change{Request: true, WakeAt: now}, nil
}

// PostDeleted is the rule of [store.Lanes.PostDeleted].
func (r *Row) PostDeleted(laneRow LaneRow, post int, now time.Time) (Change, error) {
	now = laneRow.At(now)
	p := r.post(post)
	switch {
	case p == nil, p.State != jetpost.PostPosted, r.Deletion == nil:
		return Change{}, store.ErrNotRunnable
	case !p.DeletedAt.IsZero():
		return Change{}, nil
	}
	p.DeletedAt = now
	r.deleteAt(now)
	r.revise(now)
	return Change{Request: true, Posts: []int{post}, Progress: true}, nil
}

// HoldUnpublish is the rule of [store.Lanes.HoldUnpublish].
func (r *Row) HoldUnpublish(laneRow LaneRow, claim store.Claim, out store.Outcome) (Change, error) {
	out.Now = laneRow.At(out.Now)
	switch {
	case !laneRow.HeldBy(claim):
		return Change{}, store.ErrFenced
	case !r.Deletion.Open():
		return Change{}, store.ErrNotRunnable
	}
	change := Change{Request: true}
	if p := r.post(out.Post); p != nil {
		if outdates(p, out) {
			return Change{}, nil
		}
		r.settle(p, out)
		change.Posts = []int{out.Post}
	}
	d := *r.Deletion
	news := d.Reason == nil || d.Reason.Code != out.Reason.Code || len(change.Posts) > 0
	d.Reason, d.NextAt = &out.Reason, time.Time{}
	if out.State == jetpost.StateHeld {
		d.NextAt = cmp.Or(out.CheckAt, out.Reason.Until)
		if out.Reason.Until.IsZero() && laneRow.Generation != out.Generation {
			d.NextAt = out.Now // what it waits for may have happened
		}
	}
	if !patient(out) {
		d.Holds++
	}
	r.Deletion = &d
	if news {
		r.Event = jetpost.EventRequestUnpublishing
		r.revise(out.Now)
	}
	return change, nil
}

// deleteAt makes the deletion continue at that time, as after progress.
func (r *Row) deleteAt(at time.Time) {
	d := *r.Deletion
	d.Reason, d.Holds, d.NextAt = nil, 0, at
	r.Deletion = &d
	r.Event = jetpost.EventRequestUnpublishing
}

// trackDeletion ends the deletion with the last post, and resumes it if a late answer
// shows one more live post.
func (r *Row) trackDeletion(now time.Time) {
	switch left := r.undeleted(); {
	case r.Deletion == nil || left == r.Deletion.Open():
		return
	case left:
		r.deleteAt(now)
		r.Deletion.DoneAt = time.Time{}
	default:
		d := *r.Deletion
		d.DoneAt, d.NextAt, d.Reason, d.Holds = now, time.Time{}, nil, 0
		r.Deletion = &d
		if slices.ContainsFunc(r.Posts, func(p store.PostRecord) bool { return !p.DeletedAt.IsZero() }) {
			r.Event = jetpost.EventRequestUnpublished
		}
	}
}

// undeleted reports whether a post is live or may be live.
func (r *Row) undeleted() bool {
	return slices.ContainsFunc(r.Posts, func(p store.PostRecord) bool {
		return p.State == jetpost.PostSending || p.State == jetpost.PostPosted && p.DeletedAt.IsZero()
	})
}
