package rules

import (
	"time"

	"github.com/jetpost/jetpost/store"
)

// LaneRow is the row of a lane, as far as the rules need it.
type LaneRow struct {
	Fence      int64
	Held       bool // by the claim of that fence, even if its lease ran out
	Generation int64
	NextSeq    int64 // of the next acceptance
	// LastDue is the latest due time given to a request that was due at once.
	LastDue time.Time
	Pause   store.Pause
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
func (l LaneRow) HeldBy(claim store.Claim) bool { return l.Held && l.Fence == claim.Fence }

// Reserve is the rule of [store.Lanes.Reserve]. It returns the result of r if left calls
// are left and other lanes have reserved some of them, and how many calls the lane then has.
func Reserve(r store.Reservation, left, others int) (out store.Reserved, take int) {
	out = store.Reserved{Granted: r.Need == 0 || others+r.Need <= left, Left: left}
	if out.Granted {
		take = r.Need
	}
	return out, take
}
