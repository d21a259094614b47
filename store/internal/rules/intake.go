package rules

import (
	"bytes"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// Enter makes the row of a new request and takes its place from the lane's row.
func (l *LaneRow) Enter(in store.Acceptance) *Row {
	in.Now = l.At(in.Now)
	r := &Row{Record: store.Record{Key: store.Key{Account: in.Request.Account, ID: in.Request.ID}, Seq: l.NextSeq, Body: in.Body, Trace: in.Trace}}
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
func entry(in store.Acceptance) (jetpost.State, jetpost.EventType) {
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
func (r *Row) read(in store.Acceptance) {
	r.Status.PublishAt, r.Status.ExpiresAt = in.Request.PublishAt, in.Request.ExpiresAt
	r.Status.Metadata, r.Digest, r.CostMicros = in.Request.Metadata, in.Digest, in.CostMicros
	if in.Hold != nil {
		return
	}
	r.Posts = make([]store.PostRecord, len(in.Request.Posts))
	for i := range r.Posts {
		r.Posts[i] = store.PostRecord{Index: i, State: jetpost.PostPending, TextHash: store.TextHash(in.Request.Posts[i].Text)}
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
func (r *Row) AcceptAgain(in store.Acceptance) (store.Decision, Change) {
	if r.Pruned {
		if r.repeats(in) {
			return store.Repeated, Change{}
		}
		return store.Conflict, Change{}
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
		return store.Accepted, Change{Request: true, Contents: true, WakeAt: r.DueAt}
	case same || bytes.Equal(r.Digest, in.Digest):
		return store.Repeated, Change{}
	default:
		return store.Conflict, Change{}
	}
}

// LatestOf is the time of the latest of some acceptances, when all of them are due that are
// due at once.
func LatestOf(in []store.Acceptance) (now time.Time) {
	for i := range in {
		if in[i].Now.After(now) {
			now = in[i].Now
		}
	}
	return now
}

// Batch is the rule of [store.Intake.AcceptMany]. It holds the lanes and requests that
// the acceptances name, as a driver has read them, and afterwards what the driver must
// write.
type Batch struct {
	LaneRows map[string]*LaneRow // of the accounts that exist
	Rows     map[store.Key]*Row  // of the requests that exist; those that enter join them

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
	return &Batch{LaneRows: map[string]*LaneRow{}, Rows: map[store.Key]*Row{}, Changes: map[*Row]Change{}, LaneWakes: map[string]*LaneWakes{}}
}

// Judge judges the acceptances in their order.
func (b *Batch) Judge(in []store.Acceptance) []store.Decision {
	decisions := make([]store.Decision, len(in))
	for i := range in {
		decisions[i] = b.judge(in[i])
	}
	return decisions
}

// Received is the result of the acceptances.
func (b *Batch) Received(in []store.Acceptance, decisions []store.Decision) []store.Received {
	out := make([]store.Received, len(in))
	for i := range in {
		out[i].Decision = decisions[i]
		if r := b.Rows[in[i].Key()]; r != nil {
			out[i].Record = r.Told()
		}
	}
	return out
}

func (b *Batch) judge(in store.Acceptance) store.Decision {
	laneRow := b.LaneRows[in.Request.Account]
	if laneRow == nil {
		return store.NoAccount
	}
	in.Now = laneRow.At(in.Now)
	r := b.Rows[in.Key()]
	if r == nil {
		r = laneRow.Enter(in)
		b.Rows[r.Key] = r
		b.Entered = append(b.Entered, r)
		b.wake(r)
		return store.Accepted
	}
	decision, change := r.AcceptAgain(in)
	if r.bodiless() {
		decision, change = r.acceptBody(*laneRow, in)
	}
	if decision != store.Accepted {
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

// SameTextWithin is how near in time two accounts' posts of one text count as the same
// content for X.
const SameTextWithin = 24 * time.Hour

// TextSpan is the time within which a post of the same text is too near.
func TextSpan(q store.TextQuery) (from, to time.Time) {
	due := latest(q.DueAt, q.Now)
	return due.Add(-SameTextWithin), due.Add(SameTextWithin)
}
