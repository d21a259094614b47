package rules

import (
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// suspected tells a post that was never tried and may be live, of a restored request.
func suspected(p *store.PostRecord) bool {
	return p.State == jetpost.PostPending && p.Attempt == 0 && !p.DoubtSince.IsZero()
}

// suspect has all posts that are not live looked for, from the first one on. It returns
// those that changed.
func (r *Row) suspect(line LaneRow, gap store.Gap) (changed []int) {
	for i := range r.Posts {
		p := &r.Posts[i]
		if p.State == jetpost.PostPosted {
			continue
		}
		if p.DoubtSince.IsZero() || p.DoubtSince.After(gap.Since) {
			p.DoubtSince = gap.Since
		}
		p.State, p.Attempt, p.NotAfter, p.SentAt = jetpost.PostPending, 0, gap.Until, gap.Since
		changed = append(changed, i)
	}
	if len(changed) > 0 {
		r.lookFor(line, changed[0], gap.Until)
	}
	return changed
}

// lookFor holds the request until a post of it was looked for.
func (r *Row) lookFor(line LaneRow, post int, now time.Time) {
	p := &r.Posts[post]
	p.State, p.Attempt, p.Checks, p.AbsentAt = jetpost.PostSending, max(line.Fence, 1), 0, time.Time{}
	p.ParentID = r.parent(post)
	r.Holds = 0
	r.begun(now)
	r.Status.Attempts++ // as of one whose answer was lost
	r.move(jetpost.StateHeld, jetpost.EventRequestHeld, &jetpost.Reason{
		Code: jetpost.CodeReconciling, Detail: "the database was restored; the account's posts are looked at first", Until: now,
	})
	r.HoldUntil = now
}

// parent is what a post replies to, "" where that is nothing.
func (r *Row) parent(post int) string {
	if post > 0 {
		return r.Posts[post-1].PostID
	}
	request, err := jetpost.Decode(r.Account, r.Body)
	if err != nil || len(request.Posts) == 0 {
		return ""
	}
	return request.Posts[0].InReplyToPostID
}

// Doubt is the rule of [store.Recovery.Doubt].
func (r *Row) Doubt(line LaneRow, gap store.Gap) (Change, error) {
	switch {
	case r.Status.State.Finished(), len(r.Posts) == 0:
		return Change{}, store.ErrNotRunnable
	case r.BeganAt.IsZero() && r.DueAt.After(gap.Until):
		return Change{}, nil
	}
	posts := r.suspect(line, gap)
	r.revise(gap.Until)
	return Change{Request: true, Posts: posts, WakeAt: gap.Until}, nil
}

// Rebuild is the rule of [store.Recovery.Rebuild] for a request that is there.
func (r *Row) Rebuild(in store.Rebuilt) Change {
	st := in.Status
	if st.Revision <= r.Status.Revision || len(r.Posts) > 0 && len(r.Posts) != len(st.Posts) {
		return Change{}
	}
	change := Change{Request: true}
	for i, p := range st.Posts {
		if i < len(r.Posts) && rebuild(&r.Posts[i], p, in.Gap) {
			change.Posts = append(change.Posts, i)
		}
	}
	r.Status.Revision, r.Delivered, r.Status.Attempts, r.Status.UpdatedAt = st.Revision, st.Revision, st.Attempts, st.UpdatedAt
	if !st.PublishAt.IsZero() {
		r.Status.PublishAt, r.DueAt = st.PublishAt, st.PublishAt
	}
	if st.Posted > 0 {
		r.begun(in.Gap.Since)
	}
	if st.State.Finished() {
		r.begun(in.Gap.Since)
		r.move(st.State, in.Event, st.Reason)
	}
	if u := st.Unpublish; u != nil {
		r.Deletion = &store.Deletion{AskedAt: u.AskedAt, DoneAt: u.DoneAt, Reason: u.Reason}
		if u.DoneAt.IsZero() {
			r.Deletion.NextAt = in.Gap.Until
		}
	}
	return change
}

// rebuild takes over what an event tells of a post, and says whether that is news.
func rebuild(p *store.PostRecord, told jetpost.PostStatus, gap store.Gap) bool {
	switch {
	case told.State == jetpost.PostPosted && (p.State != jetpost.PostPosted || !told.DeletedAt.Equal(p.DeletedAt)):
		p.State, p.PostID, p.DeletedAt = told.State, told.PostID, told.DeletedAt
		if p.SentAt.IsZero() {
			p.SentAt, p.NotAfter = gap.Since, gap.Until
		}
	case told.State == jetpost.PostFailed && p.State != jetpost.PostFailed:
		p.State = told.State
	default:
		return false
	}
	p.Attempt = max(p.Attempt, 1)
	return true
}

// EnterRebuilt makes the row of a request that is not there: as it enters, and as it is in
// the end, which the change tells from it.
func (l *LaneRow) EnterRebuilt(in store.Rebuilt) (entered, final *Row, change Change, result store.RebuildResult) {
	st := in.Status
	r := &Row{Record: store.Record{Key: store.Key{Account: st.Account, ID: st.ID}, Seq: l.NextSeq, Body: in.Body}, Digest: in.Digest}
	l.NextSeq++
	r.Status = jetpost.RequestStatus{
		State: jetpost.StateQueued, Revision: 1, AcceptedAt: st.AcceptedAt, PublishAt: st.PublishAt, ExpiresAt: st.ExpiresAt, Metadata: st.Metadata,
	}
	r.CostMicros, r.Event, r.DueAt = int64(st.CostEstimateUSD*store.MicrosPerDollar), jetpost.EventRequestAccepted, latest(st.AcceptedAt, st.PublishAt)
	for i := range st.Posts {
		r.Posts = append(r.Posts, store.PostRecord{Index: i, State: jetpost.PostPending})
	}
	entered = r.clone()
	r.Status.Revision = 0 // whatever is told is news
	change = r.Rebuild(in)
	if st.State.Finished() {
		return entered, r, change, store.RebuildAdded
	}
	r.begun(in.Gap.Since)
	r.move(jetpost.StateFailed, jetpost.EventRequestFailed, &jetpost.Reason{
		Code: jetpost.CodeBodyLost, Detail: "the database was restored to a time before it was accepted, and its body is lost",
	})
	r.revise(in.Gap.Until)
	return entered, r, change, store.RebuildBodyLost
}

// unsuspect ends the doubt about posts that reply to one which is not there.
func (r *Row) unsuspect(from int) (changed []int) {
	for i := from; i < len(r.Posts); i++ {
		if p := &r.Posts[i]; suspected(p) {
			p.DoubtSince, p.SentAt, p.NotAfter = time.Time{}, time.Time{}, time.Time{}
			changed = append(changed, i)
		}
	}
	return changed
}

// suspectNext has the post behind one that was found looked for, where it may be live too.
func (r *Row) suspectNext(line LaneRow, post int, now time.Time) (changed []int) {
	if p := r.post(post + 1); p == nil || !suspected(p) {
		return nil
	}
	r.lookFor(line, post+1, now)
	return []int{post + 1}
}

// bodiless tells a request that was rebuilt from events.
func (r *Row) bodiless() bool { return len(r.Body) == 0 && !r.Pruned && len(r.Posts) > 0 }

// acceptBody judges an acceptance of a request whose body is lost. Which one it was, nobody
// knows: that it has as many posts has to do.
func (r *Row) acceptBody(line LaneRow, in store.Acceptance) (store.Decision, Change) {
	lost := r.Status.State == jetpost.StateFailed && r.Status.Reason.Code == jetpost.CodeBodyLost
	switch {
	case !lost || in.Hold != nil || r.Deletion != nil:
		return store.Repeated, Change{}
	case len(in.Request.Posts) != len(r.Posts):
		return store.Conflict, Change{}
	}
	r.Body, r.Digest, r.CostMicros = in.Body, in.Digest, in.CostMicros
	for i := range r.Posts {
		r.Posts[i].TextHash = store.TextHash(in.Request.Posts[i].Text)
		if i < len(in.Media) {
			r.Posts[i].Media = in.Media[i]
		}
	}
	posts := r.suspect(line, store.Gap{Since: r.BeganAt, Until: in.Now})
	r.DueAt = latest(in.Now, in.Request.PublishAt)
	r.revise(in.Now)
	return store.Accepted, Change{Request: true, Body: true, Posts: posts, WakeAt: r.DueAt}
}
