package store

import (
	"context"
	"time"

	"github.com/jetpost/jetpost"
)

// Gap is the time of which a database that was restored knows nothing: what was sent from
// Since until Until may be live although it has nothing of it.
type Gap struct{ Since, Until time.Time }

// Rebuilt is what the events tell of a request.
type Rebuilt struct {
	Status jetpost.RequestStatus
	Event  jetpost.EventType
	// Body is the request's own, nil where it is lost.
	Body   []byte
	Digest []byte // of the body
	Gap    Gap
}

// RebuildResult is what became of a Rebuilt.
type RebuildResult string

// The results of a rebuild.
const (
	RebuildKnown    RebuildResult = "known"     // the ledger knew as much
	RebuildUpdated  RebuildResult = "updated"   // it was there, as it stood earlier
	RebuildAdded    RebuildResult = "added"     // it was not there
	RebuildBodyLost RebuildResult = "body_lost" // it was not there, and goes on once it is sent again
)

// Recovery brings a database that was restored up to what is known elsewhere.
type Recovery interface {
	// Rebuild brings a request to where its events left it, or adds it. One that was
	// unfinished and whose body is lost is added as failed, with CodeBodyLost: accepting it
	// again with as many posts gives it its body, and it goes on where it stood.
	// ErrNotFound: no such account.
	Rebuild(ctx context.Context, r Rebuilt) (RebuildResult, error)
	// Doubt has the account's posts on X looked at before the next post of an unfinished
	// request is sent, and again before the one behind it where that one is found. It is
	// false for a request that is not due by the end of the gap: nothing of it was sent.
	// ErrNotRunnable: no worker could read it yet, or it is finished.
	Doubt(ctx context.Context, key Key, gap Gap) (bool, error)
}

// suspected tells a post that was never tried and may be live, of a restored request.
func (p *PostRecord) suspected() bool {
	return p.State == jetpost.PostPending && p.Attempt == 0 && !p.DoubtSince.IsZero()
}

// suspect has all posts that are not live looked for, from the first one on. It returns
// those that changed.
func (r *Row) suspect(line LaneRow, gap Gap) (changed []int) {
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

// Doubt is the rule of [Recovery.Doubt].
func (r *Row) Doubt(line LaneRow, gap Gap) (Change, error) {
	switch {
	case r.Status.State.Finished(), len(r.Posts) == 0:
		return Change{}, ErrNotRunnable
	case r.BeganAt.IsZero() && r.DueAt.After(gap.Until):
		return Change{}, nil
	}
	posts := r.suspect(line, gap)
	r.revise(gap.Until)
	return Change{Request: true, Posts: posts, WakeAt: gap.Until}, nil
}

// Rebuild is the rule of [Recovery.Rebuild] for a request that is there.
func (r *Row) Rebuild(in Rebuilt) Change {
	st := in.Status
	if st.Revision <= r.Status.Revision || len(r.Posts) > 0 && len(r.Posts) != len(st.Posts) {
		return Change{}
	}
	change := Change{Request: true}
	for i, p := range st.Posts {
		if i < len(r.Posts) && r.Posts[i].rebuild(p, in.Gap) {
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
		r.Deletion = &Deletion{AskedAt: u.AskedAt, DoneAt: u.DoneAt, Reason: u.Reason}
		if u.DoneAt.IsZero() {
			r.Deletion.NextAt = in.Gap.Until
		}
	}
	return change
}

// rebuild takes over what an event tells of a post, and says whether that is news.
func (p *PostRecord) rebuild(told jetpost.PostStatus, gap Gap) bool {
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
func (l *LaneRow) EnterRebuilt(in Rebuilt) (entered, final *Row, change Change, result RebuildResult) {
	st := in.Status
	r := &Row{Record: Record{Key: Key{Account: st.Account, ID: st.ID}, Seq: l.NextSeq, Body: in.Body}, Digest: in.Digest}
	l.NextSeq++
	r.Status = jetpost.RequestStatus{
		State: jetpost.StateQueued, Revision: 1, AcceptedAt: st.AcceptedAt, PublishAt: st.PublishAt, ExpiresAt: st.ExpiresAt, Metadata: st.Metadata,
	}
	r.CostMicros, r.Event, r.DueAt = int64(st.CostEstimateUSD*MicrosPerDollar), jetpost.EventRequestAccepted, latest(st.AcceptedAt, st.PublishAt)
	for i := range st.Posts {
		r.Posts = append(r.Posts, PostRecord{Index: i, State: jetpost.PostPending})
	}
	entered = r.clone()
	r.Status.Revision = 0 // whatever is told is news
	change = r.Rebuild(in)
	if st.State.Finished() {
		return entered, r, change, RebuildAdded
	}
	r.begun(in.Gap.Since)
	r.move(jetpost.StateFailed, jetpost.EventRequestFailed, &jetpost.Reason{
		Code: jetpost.CodeBodyLost, Detail: "the database was restored to a time before it was accepted, and its body is lost",
	})
	r.revise(in.Gap.Until)
	return entered, r, change, RebuildBodyLost
}

// unsuspect ends the doubt about posts that reply to one which is not there.
func (r *Row) unsuspect(from int) (changed []int) {
	for i := from; i < len(r.Posts); i++ {
		if p := &r.Posts[i]; p.suspected() {
			p.DoubtSince, p.SentAt, p.NotAfter = time.Time{}, time.Time{}, time.Time{}
			changed = append(changed, i)
		}
	}
	return changed
}

// suspectNext has the post behind one that was found looked for, where it may be live too.
func (r *Row) suspectNext(line LaneRow, post int, now time.Time) (changed []int) {
	if p := r.post(post + 1); p == nil || !p.suspected() {
		return nil
	}
	r.lookFor(line, post+1, now)
	return []int{post + 1}
}

// bodiless tells a request that was rebuilt from events.
func (r *Row) bodiless() bool { return len(r.Body) == 0 && !r.Pruned && len(r.Posts) > 0 }

// acceptBody judges an acceptance of a request whose body is lost. Which one it was, nobody
// knows: that it has as many posts has to do.
func (r *Row) acceptBody(line LaneRow, in Acceptance) (Decision, Change) {
	lost := r.Status.State == jetpost.StateFailed && r.Status.Reason.Code == jetpost.CodeBodyLost
	switch {
	case !lost || in.Hold != nil || r.Deletion != nil:
		return Repeated, Change{}
	case len(in.Request.Posts) != len(r.Posts):
		return Conflict, Change{}
	}
	r.Body, r.Digest, r.CostMicros = in.Body, in.Digest, in.CostMicros
	for i := range r.Posts {
		r.Posts[i].TextHash = TextHash(in.Request.Posts[i].Text)
		if i < len(in.Media) {
			r.Posts[i].Media = in.Media[i]
		}
	}
	posts := r.suspect(line, Gap{Since: r.BeganAt, Until: in.Now})
	r.DueAt = latest(in.Now, in.Request.PublishAt)
	r.revise(in.Now)
	return Accepted, Change{Request: true, Body: true, Posts: posts, WakeAt: r.DueAt}
}
