package store

import (
	"context"
	"time"
)

// Claim is a claim of an account's lane. At most one worker holds it.
type Claim struct {
	Account string
	// Fence grows with every claim. Every write in the lane carries it.
	Fence int64
	// LostClaims counts the latest claims in a row whose lease ran out without
	// progress.
	LostClaims int
	// Memory is the driver's. It is nil in a claim that was built by hand, which
	// remembers nothing.
	Memory ClaimMemory
}

// ClaimMemory is what the holder of a lane knows of it without asking the ledger: what was
// read with the claim and what the lane's steps have written since. The methods of [Claim]
// hand it out. It belongs to the goroutine that runs the lane.
type ClaimMemory interface {
	Next() (Snapshot, bool)
	Behind() (Record, bool)
	Token() (Token, bool)
	Wrote(id string) (Record, bool)
	Told(told Revision) bool
	Untold(key Key)
	Moved() []Key
}

// Next hands out, once, the snapshot that was read together with the claim or with the
// outcome of the last post. A release that rests on it is refused if a wake-up came
// after that moment.
func (l Claim) Next() (Snapshot, bool) {
	if l.Memory == nil {
		return Snapshot{}, false
	}
	return l.Memory.Next()
}

// Behind hands out the due request behind the one of which the latest intent was committed,
// as it was at that moment.
func (l Claim) Behind() (Record, bool) {
	if l.Memory == nil {
		return Record{}, false
	}
	return l.Memory.Behind()
}

// Token hands out, once, the account's token as it was when the lane was claimed or its
// front was read.
func (l Claim) Token() (Token, bool) {
	if l.Memory == nil {
		return Token{}, false
	}
	return l.Memory.Token()
}

// Wrote hands out, once, that request as the latest step has written it. By now it may
// have moved on.
func (l Claim) Wrote(id string) (Record, bool) {
	if l.Memory == nil {
		return Record{}, false
	}
	return l.Memory.Wrote(id)
}

// Told says that the event of that revision was published. The lane's next step marks
// it together with what it writes. Told returns false if no step can mark it; the
// caller must then call [Outbox.MarkDelivered].
func (l Claim) Told(told Revision) bool { return l.Memory != nil && l.Memory.Told(told) }

// Untold drops the pending mark of a request, because a newer revision of it is marked
// otherwise.
func (l Claim) Untold(key Key) {
	if l.Memory != nil {
		l.Memory.Untold(key)
	}
}

// Moved hands out, once, the requests that had a newer revision when they were marked.
// Their published events may be older than the latest revision and must be published
// again.
func (l Claim) Moved() []Key {
	if l.Memory == nil {
		return nil
	}
	return l.Memory.Moved()
}

// LaneReleaser holds the calls that FreeLane makes.
type LaneReleaser interface {
	ReleaseLane(ctx context.Context, lane Claim, generation int64, wakeAt, now time.Time) (bool, error)
	Snapshot(ctx context.Context, lane Claim, now time.Time) (Snapshot, error)
}

// FreeLane releases a lane that nothing is to be done on: it is due now, for whoever claims it
// next. A wake-up that comes meanwhile keeps the lane, so FreeLane tries again.
func FreeLane(ctx context.Context, lanes LaneReleaser, lane Claim, now time.Time) error {
	snapshot, read := lane.Next()
	for {
		var err error
		if !read {
			if snapshot, err = lanes.Snapshot(ctx, lane, now); err != nil {
				return err
			}
		}
		if free, err := lanes.ReleaseLane(ctx, lane, snapshot.Generation, now, now); free || err != nil {
			return err
		}
		read = false
	}
}
