package store

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
)

// This file is for the drivers: the rules by which a request moves, the same for every
// database. A driver locks and loads the rows, applies one rule and writes what its
// Change names, all in one transaction. A rule reads no clock and no database. A rule
// that fails has changed nothing.
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

// MicrosPerDollar converts costs, which are stored as whole numbers.
const MicrosPerDollar = 1_000_000

// sameHold is how far the ends of two holds for the same reason may differ before an
// event reports the second one.
const sameHold = time.Second

// LaneRow is the row of a lane, as far as the rules need it.
type LaneRow struct {
	Fence      int64
	Held       bool // by the claim of that fence, even if its lease ran out
	Generation int64
	NextSeq    int64 // of the next acceptance
	// LastDue is the latest due time given to a request that was due at once.
	LastDue time.Time
	Pause   Pause
	// Now is the database's clock, if it has one of its own. That clock judges then,
	// not the callers'.
	Now time.Time
}

// At is the time by which to judge.
func (l LaneRow) At(callers time.Time) time.Time {
	if l.Now.IsZero() {
		return callers
	}
	return l.Now
}

// HeldBy reports whether the claim still holds the lane: nobody has claimed it since,
// and it was not released.
func (l LaneRow) HeldBy(claim Claim) bool { return l.Held && l.Fence == claim.Fence }

// Block is the rule of [Lanes.BlockAccount]. It returns the pause that holds
// afterwards, and whether that is another one. A pause that ended stays on record, so
// that X is asked as rarely as before if the same refusal comes back soon.
func (l LaneRow) Block(p Pause, now time.Time) (holds Pause, changed bool) {
	was, now := l.Pause, l.At(now)
	if p.Target == "" {
		if was.ByHand() || !was.Active(now) {
			return was, false
		}
		was.Reason.Until = now
		return was, true
	}
	shift := now.Sub(p.Since) // the caller's clock judges nothing
	p.Since = now
	if p.Probed() {
		p.NextProbeAt = p.NextProbeAt.Add(shift)
	}
	if !was.Active(now) && now.Sub(was.Reason.Until) > was.Wait {
		was = Pause{}
	}
	was.Worker, p.Worker = laneHolder, laneHolder
	holds, changed = p.Upon(was)
	holds.Worker = ""
	return holds, changed
}

// CauseOf reads and writes the part of a pause that comes from X: its code, and when X
// is asked again.
type CauseOf struct{ Pause *Pause }

// cause is its stored form.
type cause struct {
	Code        jetpost.Code  `json:"code"`
	NextProbeAt time.Time     `json:"next_probe_at,omitzero"`
	Wait        time.Duration `json:"wait_ns,omitempty"`
}

// String is the stored form, "" for a person's pause.
func (c CauseOf) String() string {
	p := c.Pause
	if p.Target == "" || p.ByHand() {
		return ""
	}
	text, _ := json.Marshal(cause{p.Reason.Code, p.NextProbeAt, p.Wait}) // which cannot fail
	return string(text)
}

// Scan implements sql.Scanner.
func (c CauseOf) Scan(value any) error {
	text, ok := value.(string)
	if !ok {
		return fmt.Errorf("the cause of a pause is stored as %T", value)
	}
	if text == "" {
		return nil
	}
	var x cause
	if err := json.Unmarshal([]byte(text), &x); err != nil {
		return fmt.Errorf("read cause of pause: %w", err)
	}
	c.Pause.Reason.Code, c.Pause.NextProbeAt, c.Pause.Wait = x.Code, x.NextProbeAt, x.Wait
	return nil
}

// laneHolder is the worker of an account's pause: only the lane's holder asks X whether
// the pause is over.
const laneHolder = "lane"

// Row is a request with its posts, as a driver loads and saves it.
type Row struct {
	Record
	Digest []byte
	// CostMicros is in millionths of a US dollar; zero if unknown.
	CostMicros int64
}

// Change names what a rule wants written; the zero value is nothing.
type Change struct {
	Request bool // the request's own row
	// Contents is what only reading the body shows: publish_at, expires_at, metadata
	// and digest, and every post, all of them new.
	Contents bool
	Body     bool          // the body, with its digest and cost
	Posts    []int         // indexes of the posts that changed
	Lease    time.Duration // from the row's UpdatedAt on; zero leaves the lane's lease alone
	Quiet    bool          // the new revision needs no event
	Progress bool          // forgives the lane the claims that it lost
	WakeAt   time.Time     // brings the lane's next run forward; zero does not wake
}

// Enter makes the row of a new request and takes its place from the lane's row.
func (l *LaneRow) Enter(in Acceptance) *Row {
	in.Now = l.At(in.Now)
	r := &Row{Record: Record{Key: Key{Account: in.Request.Account, ID: in.Request.ID}, Seq: l.NextSeq, Body: in.Body, Trace: in.Trace}}
	l.NextSeq++
	r.DueAt = in.Request.PublishAt
	if !in.Request.PublishAt.After(in.Now) {
		// Never before an earlier acceptance, even one by a worker whose clock is
		// ahead.
		l.LastDue = latest(in.Now, l.LastDue)
		r.DueAt = l.LastDue
	}
	r.Status.AcceptedAt = in.Now
	r.read(in)
	state, event := entry(in)
	r.move(state, event, in.Hold)
	if in.Hold != nil {
		r.HoldUntil, r.Holds = in.Hold.Until, 1
	}
	r.revise(in.Now)
	return r
}

// entry is the state in which a request enters its queue, and the event that reports
// it.
func entry(in Acceptance) (jetpost.State, jetpost.EventType) {
	switch {
	case in.Hold != nil:
		return jetpost.StateHeld, jetpost.EventRequestHeld
	case in.Request.PublishAt.After(in.Now):
		return jetpost.StateScheduled, jetpost.EventRequestScheduled
	default:
		return jetpost.StateQueued, jetpost.EventRequestAccepted
	}
}

// read takes over what the acceptance says of the body. A request that this worker
// cannot read has no posts yet.
func (r *Row) read(in Acceptance) {
	r.Status.PublishAt, r.Status.ExpiresAt = in.Request.PublishAt, in.Request.ExpiresAt
	r.Status.Metadata, r.Digest, r.CostMicros = in.Request.Metadata, in.Digest, in.CostMicros
	if in.Hold != nil {
		return
	}
	r.Posts = make([]PostRecord, len(in.Request.Posts))
	for i := range r.Posts {
		r.Posts[i] = PostRecord{Index: i, State: jetpost.PostPending, TextHash: TextHash(in.Request.Posts[i].Text)}
		if i < len(in.Media) {
			r.Posts[i].Media = in.Media[i]
		}
	}
}

// RefuseText fails a request that was just accepted, because another account's request posts
// the same text. It does not say which: that is none of this account's business. No event has
// reported it yet.
func (r *Row) RefuseText() {
	r.move(jetpost.StateFailed, jetpost.EventRequestFailed, &jetpost.Reason{
		Code: jetpost.CodeSameText, Detail: "a request of another account has a post of the same text within a day",
	})
}

// AcceptAgain judges a request whose identity is known. Equal bytes are the same
// request even if the digests differ: a worker that cannot read the request computes
// another digest than one that can. A request that becomes readable keeps its place.
func (r *Row) AcceptAgain(in Acceptance) (Decision, Change) {
	if r.Pruned {
		if r.repeats(in) {
			return Repeated, Change{}
		}
		return Conflict, Change{}
	}
	same := bytes.Equal(r.Body, in.Body)
	switch {
	case same && r.unread() && in.Hold == nil:
		r.read(in)
		state, _ := entry(in)
		r.move(state, jetpost.EventRequestResumed, nil)
		r.Holds = 0
		r.DueAt = latest(r.DueAt, in.Request.PublishAt)
		r.revise(in.Now)
		return Accepted, Change{Request: true, Contents: true, WakeAt: r.DueAt}
	case same || bytes.Equal(r.Digest, in.Digest):
		return Repeated, Change{}
	default:
		return Conflict, Change{}
	}
}

// Batch is the rule of [Intake.AcceptMany]. It holds the lanes and requests that the
// acceptances name, as a driver has read them, and afterwards what the driver must
// write.
type Batch struct {
	LaneRows map[string]*LaneRow // of the accounts that exist
	Rows     map[Key]*Row        // of the requests that exist; those that enter join them

	Entered   []*Row                // in the order of their sequences
	Changes   map[*Row]Change       // of requests that were there
	LaneWakes map[string]*LaneWakes // of accounts with something new in their queue
}

// LaneWakes is what many acceptances do to a lane: how often they wake it, and when it
// should run.
type LaneWakes struct {
	Count  int
	WakeAt time.Time
}

// NewBatch is a batch without anything read yet.
func NewBatch() *Batch {
	return &Batch{LaneRows: map[string]*LaneRow{}, Rows: map[Key]*Row{}, Changes: map[*Row]Change{}, LaneWakes: map[string]*LaneWakes{}}
}

// Judge judges the acceptances in their order.
func (b *Batch) Judge(in []Acceptance) []Decision {
	decisions := make([]Decision, len(in))
	for i := range in {
		decisions[i] = b.judge(in[i])
	}
	return decisions
}

// Received is the result of the acceptances.
func (b *Batch) Received(in []Acceptance, decisions []Decision) []Received {
	out := make([]Received, len(in))
	for i := range in {
		out[i].Decision = decisions[i]
		if r := b.Rows[in[i].Key()]; r != nil {
			out[i].Record = r.Told()
		}
	}
	return out
}

func (b *Batch) judge(in Acceptance) Decision {
	laneRow := b.LaneRows[in.Request.Account]
	if laneRow == nil {
		return NoAccount
	}
	in.Now = laneRow.At(in.Now)
	r := b.Rows[in.Key()]
	if r == nil {
		r = laneRow.Enter(in)
		b.Rows[r.Key] = r
		b.Entered = append(b.Entered, r)
		b.wake(r)
		return Accepted
	}
	decision, change := r.AcceptAgain(in)
	if r.bodiless() {
		decision, change = r.acceptBody(*laneRow, in)
	}
	if decision != Accepted {
		return decision
	}
	if !slices.Contains(b.Entered, r) {
		b.Changes[r] = change
	}
	b.wake(r)
	return decision
}

func (b *Batch) wake(r *Row) {
	woken := b.LaneWakes[r.Account]
	if woken == nil {
		woken = &LaneWakes{WakeAt: r.DueAt}
		b.LaneWakes[r.Account] = woken
	}
	woken.Count++
	if r.DueAt.Before(woken.WakeAt) {
		woken.WakeAt = r.DueAt
	}
}

// Begin is the rule of [Lanes.Begin]. It refuses a post whose predecessor is not
// live yet: a thread goes out in order or it stops. It also checks here that the
// account is not paused, since nothing may be sent once a pause was committed.
func (r *Row) Begin(laneRow LaneRow, claim Claim, intent Intent) (Change, error) {
	now := laneRow.At(intent.Now)
	// The caller's guard started just before the call. Now is later.
	intent.NotAfter = intent.NotAfter.Add(now.Sub(intent.Now))
	intent.Now = now
	switch {
	case !laneRow.HeldBy(claim):
		return Change{}, ErrFenced
	case !r.runnable(intent.Post), r.putOff(intent.Now), laneRow.Pause.Active(intent.Now):
		return Change{}, ErrNotRunnable
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
	if p == nil || p.State != jetpost.PostPending || p.suspected() || r.Status.State.Finished() || r.Status.State == jetpost.StateUnknown {
		return false
	}
	for _, earlier := range r.Posts[:post] {
		if earlier.State != jetpost.PostPosted {
			return false
		}
	}
	return true
}

// Posted is the rule of [Lanes.Posted]. A cancelled request stays cancelled, with
// one more live post. So does a failed one, unless that was its last post.
func (r *Row) Posted(laneRow LaneRow, claim Claim, live LivePost) (Change, error) {
	post, postID, now := live.Post, live.PostID, laneRow.At(live.Now)
	p := r.post(post)
	switch {
	case p != nil && p.State == jetpost.PostPosted && p.PostID == postID:
		return Change{}, nil
	case p == nil, p.State == jetpost.PostPosted, p.Attempt == 0,
		p.Attempt != claim.Fence && laneRow.Fence != claim.Fence:
		return Change{}, ErrFenced
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

// Conclude is the rule of [Lanes.Conclude].
func (r *Row) Conclude(laneRow LaneRow, claim Claim, out Outcome) (Change, error) {
	out.Now = laneRow.At(out.Now)
	if !laneRow.HeldBy(claim) {
		return r.concludeLate(claim, out)
	}
	if r.putOff(out.Now) {
		return Change{}, nil
	}
	change := Change{Request: true}
	if p := r.post(out.Post); p != nil {
		if p.outdates(out) {
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
func (p *PostRecord) outdates(out Outcome) bool {
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
func (r *Row) settle(p *PostRecord, out Outcome) {
	p.Checks, p.AbsentAt = out.Checks, out.AbsentAt
	if out.RenewMedia {
		p.renewMedia()
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
func (p *PostRecord) renewMedia() {
	for i, m := range p.Media {
		p.Media[i] = Media{Digest: m.Digest, Renewed: true}
	}
}

// Uploaded is the rule of [Lanes.Uploaded].
func (r *Row) Uploaded(laneRow LaneRow, claim Claim, post int, media []Media) (Change, error) {
	p := r.post(post)
	switch {
	case !laneRow.HeldBy(claim):
		return Change{}, ErrFenced
	case p == nil || p.State != jetpost.PostPending || r.Status.State.Finished():
		return Change{}, ErrNotRunnable
	}
	p.Media = media
	return Change{Posts: []int{post}}, nil
}

// concludeLate accepts from a worker that has lost the lane what only this worker can
// know: that X did not make the post that it sent. The lane wakes, because its present
// holder does not know that. A failed post cannot be skipped, so its request fails in
// whatever state it is. A post that X did not make is pending again, for the lane's
// holder to send.
func (r *Row) concludeLate(claim Claim, out Outcome) (Change, error) {
	p := r.post(out.Post)
	fact := out.PostState == jetpost.PostPending || out.PostState == jetpost.PostFailed
	if !fact || p == nil || p.State != jetpost.PostSending || p.Attempt != claim.Fence {
		return Change{}, ErrFenced
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
func (r *Row) conclude(out Outcome, generation int64) bool {
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

func (r *Row) hold(out Outcome, generation int64) (news bool) {
	news = r.Status.State != jetpost.StateHeld || r.Status.Reason.Code != out.Reason.Code ||
		r.Status.Reason.Until.Sub(out.Reason.Until).Abs() >= sameHold
	if news {
		r.move(jetpost.StateHeld, jetpost.EventRequestHeld, &out.Reason)
	}
	if !out.patient() {
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
func (o Outcome) patient() bool {
	switch o.Reason.Code {
	case jetpost.CodeMediaProcessing, jetpost.CodeRateLimited, jetpost.CodeAppPaused, jetpost.CodeAccountPaused, jetpost.CodePostingLimit,
		jetpost.CodeAccountSuspended, jetpost.CodeAccountLocked, jetpost.CodeAccountScopeMissing, jetpost.CodeAccountUnauthorized, jetpost.CodeAccountRefused:
		return true
	case jetpost.CodeReconciling:
		return o.Post >= 0
	default:
		return false
	}
}

// HoldBehind is the rule of [Lanes.HoldQueue], for a request that waits
// behind the head.
func (r *Row) HoldBehind(laneRow LaneRow, claim Claim, reason jetpost.Reason, generation int64, now time.Time) (Change, error) {
	return r.Conclude(laneRow, claim, Outcome{State: jetpost.StateHeld, Reason: reason, Post: -1, Generation: generation, Now: now})
}

// Replay is the rule of [Control.Replay].
func (r *Row) Replay(laneRow LaneRow, now time.Time) (ReplayResult, Change) {
	now = laneRow.At(now)
	result := ReplayResult{State: r.Status.State, Left: r.left()}
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

// Cancel is the rule of [Control.Cancel]. It wakes the lane, since the request may
// have blocked others.
func (r *Row) Cancel(now time.Time) (Change, error) {
	if r.Status.State.Finished() {
		return Change{}, ErrNotRunnable
	}
	r.move(jetpost.StateCancelled, jetpost.EventRequestCancelled, nil)
	r.revise(now)
	return Change{Request: true, WakeAt: now}, nil
}

// Reschedule is the rule of [Control.Reschedule]. An earlier finding about the
// request, such as a hold, is dropped: it is found again when the request is due.
func (r *Row) Reschedule(laneRow LaneRow, at, now time.Time) (Change, error) {
	now = laneRow.At(now)
	if !r.unsent() {
		return Change{}, ErrNotRunnable
	}
	ahead := at.After(now)
	if expires := r.Status.ExpiresAt; !expires.IsZero() && !latest(at, now).Before(expires) {
		return Change{}, ErrExpired
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

// Expire is the rule of [Control.ExpireLate]. The posts stay pending, so that a replay
// sends them.
func (r *Row) Expire(dueBefore, now time.Time) (Change, error) {
	if !r.unsent() || !r.DueAt.Before(dueBefore) {
		return Change{}, ErrNotRunnable
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
		sent := func(p PostRecord) bool { return p.State != jetpost.PostPending }
		return len(r.Posts) > 0 && !slices.ContainsFunc(r.Posts, sent)
	default:
		return false
	}
}

// putOff reports whether the request was rescheduled while a worker was at it: a
// request that has not begun is worked on only once it is due.
func (r *Row) putOff(now time.Time) bool { return r.BeganAt.IsZero() && r.DueAt.After(now) }

// Resolve is the rule of [Control.Resolve].
func (r *Row) Resolve(laneRow LaneRow, postID string, now time.Time) (Change, error) {
	now = laneRow.At(now)
	p := r.doubtful()
	if p == nil {
		return Change{}, ErrNotRunnable
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

// Told completes the representation of the request and its posts that events carry. The
// list of posts is never nil, so that it is encoded as a list.
func (r *Row) Told() Record {
	st := &r.Status
	st.Account, st.ID, st.Pruned = r.Account, r.ID, r.Pruned
	st.CostEstimateUSD = float64(r.CostMicros) / MicrosPerDollar
	if len(st.Metadata) == 0 {
		st.Metadata = nil
	}
	st.Posts = make([]jetpost.PostStatus, 0, len(r.Posts))
	for _, p := range r.Posts {
		told := jetpost.PostStatus{Index: p.Index, State: p.State, PostID: p.PostID, DeletedAt: p.DeletedAt}
		if p.State == jetpost.PostPosted {
			told.URL = jetpost.PostURL(p.PostID)
		}
		st.Posts = append(st.Posts, told)
	}
	st.LateBySeconds = 0
	if !st.PublishAt.IsZero() {
		st.LateBySeconds = int64(max(0, st.AcceptedAt.Sub(st.PublishAt)) / time.Second)
	}
	st.Total = len(r.Posts)
	st.Posted = st.Total - r.left()
	st.Unpublish = nil
	if d := r.Deletion; d != nil {
		st.Unpublish = &jetpost.UnpublishStatus{AskedAt: d.AskedAt, DoneAt: d.DoneAt, Reason: knownEnd(d.Reason), NextTryAt: d.NextAt}
	}
	told := r.Record
	told.Status.Reason, told.Status.NextTryAt = r.shownReason()
	return told
}

// shownReason is the reason as events show it, and when a held request is tried again.
// The reason has an end only if the end of the wait is known.
func (r *Row) shownReason() (reason *jetpost.Reason, nextTryAt time.Time) {
	reason = r.Status.Reason
	if r.Status.State != jetpost.StateHeld || reason == nil {
		return reason, time.Time{}
	}
	next := cmp.Or(r.HoldUntil, reason.Until)
	if known := knownEnd(reason); known != reason {
		return known, next
	}
	if next.Equal(reason.Until) {
		next = time.Time{}
	}
	return reason, next
}

// knownEnd is the reason without the time of the next try, if that time is not the end
// of the wait.
func knownEnd(reason *jetpost.Reason) *jetpost.Reason {
	if reason == nil || !slices.Contains(triedAgain(), reason.Code) {
		return reason
	}
	without := *reason
	without.Until = time.Time{}
	return &without
}

// triedAgain are the codes of waits that end when a try succeeds, whenever that is.
func triedAgain() []jetpost.Code {
	return []jetpost.Code{
		jetpost.CodeXUnavailable, jetpost.CodeMediaUnavailable, jetpost.CodeMediaProcessing, jetpost.CodeTokenRefreshFailed,
		jetpost.CodeNeedsNewerWorker, jetpost.CodeReconciling, jetpost.CodeKeyUnavailable,
	}
}

// move puts the request into a state and ends whatever it waited for.
func (r *Row) move(state jetpost.State, event jetpost.EventType, reason *jetpost.Reason) {
	r.Status.State, r.Event, r.Status.Reason = state, event, reason
	r.HoldUntil = time.Time{}
}

// revise makes a new revision, whose event must still be published.
func (r *Row) revise(now time.Time) {
	r.trackDeletion(now)
	r.Status.Revision++
	r.Status.UpdatedAt = now
}

// begun puts the request before all that have not begun.
func (r *Row) begun(now time.Time) {
	if r.BeganAt.IsZero() {
		r.BeganAt = now
	}
}

// unread reports whether no worker could read the request so far.
func (r *Row) unread() bool { return r.Status.State == jetpost.StateHeld && len(r.Posts) == 0 }

// post returns the post with that index, or nil.
func (r *Row) post(index int) *PostRecord {
	if index < 0 || index >= len(r.Posts) {
		return nil
	}
	return &r.Posts[index]
}

// left counts the posts that are not live.
func (r *Row) left() (n int) {
	for _, p := range r.Posts {
		if p.State != jetpost.PostPosted {
			n++
		}
	}
	return n
}

// Reconcile is the rule of [Control.Reconcile].
func (r *Row) Reconcile(now time.Time) (Change, error) {
	p := r.doubtful()
	if p == nil {
		return Change{}, ErrNotRunnable
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

// doubtful returns the post that may be live, of an unknown or held request or of one
// that is being deleted, or nil.
func (r *Row) doubtful() *PostRecord {
	if r.Status.State != jetpost.StateUnknown && r.Status.State != jetpost.StateHeld && r.Deletion == nil {
		return nil
	}
	for i := range r.Posts {
		if r.Posts[i].State == jetpost.PostSending {
			return &r.Posts[i]
		}
	}
	return nil
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
