package rules

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// These are the rules by which a request moves. A driver locks and loads the rows, applies
// one rule and writes what its Change names, all in one transaction. A rule that fails has
// changed nothing.
//
//	rule         from                   to                        revision   wakes
//	Enter        (new)                  queued, scheduled, held   first      when due
//	AcceptAgain  held, as unreadable    queued, scheduled         next       when due
//	RefuseText   just accepted          failed                    the same   when due
//	Begin        unfinished, no doubt   publishing                next       no
//	Posted       in doubt               queued; last: published   next       now
//	             cancelled              the same                  next       after a takeover
//	             any other              the same; last: published next       after a takeover
//	Conclude     unfinished             held, failed, unknown     if news    no
//	             cancelled              the same                  if a post  no
//	 by the one  finished               the same                  next       now
//	 before      in doubt, not made     queued                    next       now
//	             unfinished, refused    failed                    next       now
//	             any other, not made    the same                  no         now
//	HoldBehind   scheduled, queued      held                      next       no
//	Replay       failed, held           queued                    next       now
//	Cancel       unfinished             cancelled                 next       now
//	Reschedule   nothing sent           queued, scheduled         next       when due
//	Expire       nothing sent           failed                    next       now, by the driver
//	Resolve      in doubt               queued; last: published   next       now
//	Reconcile    in doubt               held                      next       now
//	Unpublish    unfinished             cancelled                 next       now
//	             finished               the same                  next       now
//	PostDeleted  finished               the same                  next       no
//	HoldUnpub…   finished               the same                  if news    no
//
// In doubt is an unknown or a held request with a post that is still sending, or a
// request whose deletion was asked for. The latter stays finished, whatever it turns
// out to be. Nothing sent is a scheduled, queued or held request whose posts are all
// pending.

// sameHold is how far the ends of two holds for the same reason may differ before an
// event reports the second one.
const sameHold = time.Second

// Begin is the rule of [store.Lanes.Begin]. It refuses a post whose predecessor is not
// live yet: a thread goes out in order or it stops. It also checks here that the
// account is not paused, since nothing may be sent once a pause was committed.
func (r *Row) Begin(laneRow LaneRow, claim store.Claim, intent store.Intent) (Change, error) {
	now := laneRow.At(intent.Now)
	// The caller's guard started just before the call. Now is later.
	intent.NotAfter = intent.NotAfter.Add(now.Sub(intent.Now))
	intent.Now = now
	switch {
	case !laneRow.HeldBy(claim):
		return Change{}, store.ErrFenced
	case !r.runnable(intent.Post), r.putOff(intent.Now), laneRow.Pause.Active(intent.Now):
		return Change{}, store.ErrNotRunnable
	}
	p := &r.Posts[intent.Post]
	p.State, p.ParentID, p.TextHash, p.MediaIDs = jetpost.PostSending, intent.ParentID, intent.TextHash, intent.MediaIDs
	p.SentAt, p.NotAfter, p.Attempt = intent.Now, intent.NotAfter, claim.Fence

	// The start of publishing needs no event, but the end of a hold does. An event that
	// is still to be published stays pending.
	event, quiet := r.Event, r.Status.State != jetpost.StateHeld
	if !quiet {
		event = jetpost.EventRequestResumed
	} else if r.Delivered == r.Status.Revision {
		r.Delivered++
	}
	r.move(jetpost.StatePublishing, event, nil)
	r.Status.Attempts++
	r.begun(intent.Now)
	r.revise(intent.Now)
	return Change{Request: true, Posts: []int{intent.Post}, Lease: intent.Lease, Quiet: quiet}, nil
}

// runnable reports whether that post is the next one to be sent.
func (r *Row) runnable(post int) bool {
	p := r.post(post)
	if p == nil || p.State != jetpost.PostPending || suspected(p) || r.Status.State.Finished() || r.Status.State == jetpost.StateUnknown {
		return false
	}
	for _, earlier := range r.Posts[:post] {
		if earlier.State != jetpost.PostPosted {
			return false
		}
	}
	return true
}

// Posted is the rule of [store.Lanes.Posted]. A cancelled request stays cancelled, with
// one more live post. So does a failed one, unless that was its last post.
func (r *Row) Posted(laneRow LaneRow, claim store.Claim, live store.LivePost) (Change, error) {
	post, postID, now := live.Post, live.PostID, laneRow.At(live.Now)
	p := r.post(post)
	switch {
	case p != nil && p.State == jetpost.PostPosted && p.PostID == postID:
		return Change{}, nil
	case p == nil, p.State == jetpost.PostPosted, p.Attempt == 0,
		p.Attempt != claim.Fence && laneRow.Fence != claim.Fence:
		return Change{}, store.ErrFenced
	}
	change := Change{Request: true, Posts: []int{post}, Progress: true}
	inDoubt := r.doubtful() != nil
	if inDoubt || laneRow.Fence != claim.Fence {
		change.WakeAt = now // the lane's present holder does not know it yet
	}
	p.State, p.PostID = jetpost.PostPosted, postID
	r.Holds = 0
	r.begun(now)
	switch state := r.Status.State; {
	case state == jetpost.StateCancelled:
	case r.left() == 0:
		r.move(jetpost.StatePublished, jetpost.EventRequestPublished, nil)
	case inDoubt:
		r.move(jetpost.StateQueued, jetpost.EventRequestResumed, nil)
		change.Posts = append(change.Posts, r.suspectNext(laneRow, post, now)...)
	case state != jetpost.StateFailed:
		r.Event = jetpost.EventRequestProgress
	}
	r.revise(now)
	return change, nil
}

// Conclude is the rule of [store.Lanes.Conclude].
func (r *Row) Conclude(laneRow LaneRow, claim store.Claim, out store.Outcome) (Change, error) {
	out.Now = laneRow.At(out.Now)
	if !laneRow.HeldBy(claim) {
		return r.concludeLate(claim, out)
	}
	if r.putOff(out.Now) {
		return Change{}, nil
	}
	change := Change{Request: true}
	if p := r.post(out.Post); p != nil {
		if outdates(p, out) {
			return Change{}, nil
		}
		r.settle(p, out)
		change.Posts = []int{out.Post}
		if out.PostState == jetpost.PostPending {
			change.Posts = append(change.Posts, r.unsuspect(out.Post+1)...)
		}
	}
	if r.conclude(out, laneRow.Generation) {
		r.revise(out.Now)
	}
	return change, nil
}

// outdates reports whether the doubt about the post was settled while the worker was
// still in it. A pending post may still turn out to have failed.
func outdates(p *store.PostRecord, out store.Outcome) bool {
	switch p.State {
	case jetpost.PostSending:
		return false
	case jetpost.PostPending:
		return out.PostState == jetpost.PostSending
	default:
		return true
	}
}

// settle stores what is known of a post. An attempt by which X made nothing does not
// count.
func (r *Row) settle(p *store.PostRecord, out store.Outcome) {
	p.Checks, p.AbsentAt = out.Checks, out.AbsentAt
	if out.RenewMedia {
		renewMedia(p)
	}
	switch {
	case out.PostState == jetpost.PostSending && p.DoubtSince.IsZero():
		p.DoubtSince = p.SentAt
	case p.State == jetpost.PostSending && out.PostState == jetpost.PostPending:
		r.Status.Attempts--
	}
	p.State = out.PostState
}

// renewMedia forgets the ids that X does not take, but not the digests that the bytes
// must have.
func renewMedia(p *store.PostRecord) {
	for i, m := range p.Media {
		p.Media[i] = store.Media{Digest: m.Digest, Renewed: true}
	}
}

// Uploaded is the rule of [store.Lanes.Uploaded].
func (r *Row) Uploaded(laneRow LaneRow, claim store.Claim, media map[int][]store.Media) (Change, error) {
	if !laneRow.HeldBy(claim) {
		return Change{}, store.ErrFenced
	}
	posts := slices.Sorted(maps.Keys(media))
	for _, post := range posts {
		if p := r.post(post); p == nil || p.State != jetpost.PostPending || r.Status.State.Finished() {
			return Change{}, store.ErrNotRunnable
		}
	}
	for _, post := range posts {
		r.Posts[post].Media = media[post]
	}
	return Change{Media: posts}, nil
}

// concludeLate accepts from a worker that has lost the lane what only this worker can
// know: that X did not make the post that it sent. The lane wakes, because its present
// holder does not know that. A failed post cannot be skipped, so its request fails in
// whatever state it is. A post that X did not make is pending again, for the lane's
// holder to send.
func (r *Row) concludeLate(claim store.Claim, out store.Outcome) (Change, error) {
	p := r.post(out.Post)
	fact := out.PostState == jetpost.PostPending || out.PostState == jetpost.PostFailed
	if !fact || p == nil || p.State != jetpost.PostSending || p.Attempt != claim.Fence {
		return Change{}, store.ErrFenced
	}
	inDoubt := r.doubtful() != nil
	r.settle(p, out)
	news := true
	switch state := r.Status.State; {
	case state.Finished():
	case out.PostState == jetpost.PostFailed:
		r.move(jetpost.StateFailed, jetpost.EventRequestFailed, &out.Reason)
	case inDoubt:
		r.move(jetpost.StateQueued, jetpost.EventRequestResumed, nil)
	default:
		news = false
	}
	if news {
		r.revise(out.Now)
	}
	return Change{Request: true, Posts: []int{out.Post}, WakeAt: out.Now}, nil
}

// conclude moves the request and reports whether that needs an event. A finished
// request stays as it is, and a hold that is just the same again needs no event.
func (r *Row) conclude(out store.Outcome, generation int64) bool {
	if r.Status.State.Finished() {
		return r.Status.State == jetpost.StateCancelled && out.Post >= 0
	}
	switch out.State {
	case jetpost.StateHeld:
		return r.hold(out, generation)
	case jetpost.StateUnknown:
		r.move(out.State, jetpost.EventRequestUnknown, &out.Reason)
	default:
		r.move(out.State, jetpost.EventRequestFailed, &out.Reason)
	}
	return true
}

func (r *Row) hold(out store.Outcome, generation int64) (news bool) {
	news = r.Status.State != jetpost.StateHeld || r.Status.Reason.Code != out.Reason.Code ||
		r.Status.Reason.Until.Sub(out.Reason.Until).Abs() >= sameHold
	if news {
		r.move(jetpost.StateHeld, jetpost.EventRequestHeld, &out.Reason)
	}
	if !patient(out) {
		r.Holds++
	}
	r.HoldUntil = cmp.Or(out.CheckAt, out.Reason.Until)
	if r.HoldUntil.IsZero() && generation != out.Generation {
		r.HoldUntil = out.Now
	}
	return news
}

// patient reports whether nothing fails in a hold: the number of such holds does not
// say how often something was tried. Timeline checks for a post in doubt have a count
// of their own.
func patient(out store.Outcome) bool {
	switch out.Reason.Code {
	case jetpost.CodeMediaProcessing, jetpost.CodeRateLimited, jetpost.CodeAppPaused, jetpost.CodeAccountPaused, jetpost.CodePostingLimit,
		jetpost.CodeAccountSuspended, jetpost.CodeAccountLocked, jetpost.CodeAccountScopeMissing, jetpost.CodeAccountUnauthorized, jetpost.CodeAccountRefused:
		return true
	case jetpost.CodeReconciling:
		return out.Post >= 0
	default:
		return false
	}
}

// HoldBehind is the rule of [store.Lanes.HoldQueue], for a request that waits
// behind the head.
func (r *Row) HoldBehind(laneRow LaneRow, claim store.Claim, reason jetpost.Reason, generation int64, now time.Time) (Change, error) {
	return r.Conclude(laneRow, claim, store.Outcome{State: jetpost.StateHeld, Reason: reason, Post: -1, Generation: generation, Now: now})
}

// Replay is the rule of [store.Control.Replay].
func (r *Row) Replay(laneRow LaneRow, now time.Time) (store.ReplayResult, Change) {
	now = laneRow.At(now)
	result := store.ReplayResult{State: r.Status.State, Left: r.left()}
	switch {
	case r.Deletion != nil:
		result.Unpublished = true
		return result, Change{}
	case r.bodiless():
		return result, Change{}
	case r.Status.State == jetpost.StateFailed:
		// The request left the queue when it failed, and joins it at the end.
		r.DueAt = latest(latest(now, laneRow.LastDue), r.Status.PublishAt)
		r.BeganAt = time.Time{}
	case r.Status.State != jetpost.StateHeld || r.unread():
		return result, Change{}
	}
	result.Queued = true
	change := Change{Request: true, WakeAt: now}
	for i := range r.Posts {
		if p := &r.Posts[i]; p.State == jetpost.PostFailed {
			p.State = jetpost.PostPending
			change.Posts = append(change.Posts, i)
		}
	}
	r.Holds = 0
	r.move(jetpost.StateQueued, jetpost.EventRequestResumed, nil)
	r.revise(now)
	return result, change
}

// Cancel is the rule of [store.Control.Cancel]. It wakes the lane, since the request may
// have blocked others.
func (r *Row) Cancel(now time.Time) (Change, error) {
	if r.Status.State.Finished() {
		return Change{}, store.ErrNotRunnable
	}
	r.move(jetpost.StateCancelled, jetpost.EventRequestCancelled, nil)
	r.revise(now)
	return Change{Request: true, WakeAt: now}, nil
}

// Reschedule is the rule of [store.Control.Reschedule]. An earlier finding about the
// request, such as a hold, is dropped: it is found again when the request is due.
func (r *Row) Reschedule(laneRow LaneRow, at, now time.Time) (Change, error) {
	now = laneRow.At(now)
	if !r.unsent() {
		return Change{}, store.ErrNotRunnable
	}
	ahead := at.After(now)
	if expires := r.Status.ExpiresAt; !expires.IsZero() && !latest(at, now).Before(expires) {
		return Change{}, store.ErrExpired
	}
	r.BeganAt, r.Holds = time.Time{}, 0
	if ahead {
		r.DueAt, r.Status.PublishAt = at, at
		r.move(jetpost.StateScheduled, jetpost.EventRequestScheduled, nil)
	} else {
		r.DueAt, r.Status.PublishAt = latest(now, laneRow.LastDue), time.Time{}
		r.move(jetpost.StateQueued, jetpost.EventRequestAccepted, nil)
	}
	r.revise(now)
	return Change{Request: true, WakeAt: r.DueAt}, nil
}

// Expire is the rule of [store.Control.ExpireLate]. The posts stay pending, so that a replay
// sends them.
func (r *Row) Expire(dueBefore, now time.Time) (Change, error) {
	if !r.unsent() || !r.DueAt.Before(dueBefore) {
		return Change{}, store.ErrNotRunnable
	}
	r.move(jetpost.StateFailed, jetpost.EventRequestFailed, &jetpost.Reason{
		Code: jetpost.CodeExpired, Detail: fmt.Sprintf("it was due at %s, and somebody found that too late to send it", r.DueAt.UTC().Format(time.RFC3339)),
	})
	r.revise(now)
	return Change{Request: true}, nil
}

// unsent reports whether the request still waits and no post of it was sent or may have
// been sent.
func (r *Row) unsent() bool {
	switch r.Status.State {
	case jetpost.StateScheduled, jetpost.StateQueued, jetpost.StateHeld:
		sent := func(p store.PostRecord) bool { return p.State != jetpost.PostPending }
		return len(r.Posts) > 0 && !slices.ContainsFunc(r.Posts, sent)
	default:
		return false
	}
}

// putOff reports whether the request was rescheduled while a worker was at it: a
// request that has not begun is worked on only once it is due.
func (r *Row) putOff(now time.Time) bool { return r.BeganAt.IsZero() && r.DueAt.After(now) }

// Resolve is the rule of [store.Control.Resolve].
func (r *Row) Resolve(laneRow LaneRow, postID string, now time.Time) (Change, error) {
	now = laneRow.At(now)
	p := r.doubtful()
	if p == nil {
		return Change{}, store.ErrNotRunnable
	}
	p.State = jetpost.PostPending
	if postID != "" {
		p.State, p.PostID = jetpost.PostPosted, postID
	}
	change := Change{Request: true, Posts: []int{p.Index}, WakeAt: now}
	if r.Deletion != nil {
		r.deleteAt(now)
		r.revise(now)
		return change, nil
	}
	r.Holds = 0
	r.move(jetpost.StateQueued, jetpost.EventRequestResumed, nil)
	switch {
	case r.left() == 0:
		r.move(jetpost.StatePublished, jetpost.EventRequestPublished, nil)
	case postID != "":
		change.Posts = append(change.Posts, r.suspectNext(laneRow, p.Index, now)...)
	default:
		change.Posts = append(change.Posts, r.unsuspect(p.Index+1)...)
	}
	r.revise(now)
	return change, nil
}

// Reconcile is the rule of [store.Control.Reconcile].
func (r *Row) Reconcile(now time.Time) (Change, error) {
	p := r.doubtful()
	if p == nil {
		return Change{}, store.ErrNotRunnable
	}
	p.Checks, p.AbsentAt = 0, time.Time{}
	if r.Deletion != nil {
		r.deleteAt(now)
		r.revise(now)
		return Change{Request: true, Posts: []int{p.Index}, WakeAt: now}, nil
	}
	r.Holds = 0
	r.move(jetpost.StateHeld, jetpost.EventRequestHeld, &jetpost.Reason{
		Code: jetpost.CodeReconciling, Detail: "somebody asked to check X again", Until: now,
	})
	r.HoldUntil = now
	r.revise(now)
	return Change{Request: true, Posts: []int{p.Index}, WakeAt: now}, nil
}
