package rules

import (
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// Row is a request with its posts, as a driver loads and saves it.
type Row struct {
	store.Record
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
	Media    []int         // indexes of the posts of which the media alone changed
	Lease    time.Duration // from the row's UpdatedAt on; zero leaves the lane's lease alone
	Quiet    bool          // the new revision needs no event
	Progress bool          // forgives the lane the claims that it lost
	WakeAt   time.Time     // brings the lane's next run forward; zero does not wake
}

// clone copies what the rules write to.
func (r *Row) clone() *Row {
	c := *r
	c.Posts = slices.Clone(r.Posts)
	return &c
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
func (r *Row) post(index int) *store.PostRecord {
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

// doubtful returns the post that may be live, of an unknown or held request or of one
// that is being deleted, or nil.
func (r *Row) doubtful() *store.PostRecord {
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
