package rules

import "github.com/jetpost/jetpost/store"

// ClaimCache is the memory of a claim: the account's pause and the head's row as of the
// latest step that read or wrote them. A driver stores it with the claim, so that the next
// step need not read them again. The statement that writes compares the cached row with the
// ledger: an outdated snapshot costs a second read, never a wrong write.
//
// It belongs to the goroutine that runs the lane. What the drivers call may be called on
// nil, which forgets everything.
type ClaimCache struct {
	laneRow  LaneRow
	head     *Row
	behind   *Row // behind the head, as of the head's intent
	snapshot *store.Snapshot
	wrote    *store.Record
	token    *store.Token
	told     store.Revision // whose mark waits for the next step; zero for none
	moved    []store.Key
}

var _ store.ClaimMemory = (*ClaimCache)(nil)

// CacheOf is the claim's cache, nil if it was built by hand.
func CacheOf(claim store.Claim) *ClaimCache {
	s, _ := claim.Memory.(*ClaimCache)
	return s
}

// Saw stores a snapshot that was read. If unread, Next hands it out.
func (s *ClaimCache) Saw(laneRow LaneRow, snapshot store.Snapshot, head *Row, unread bool) {
	if s == nil {
		return
	}
	s.laneRow, s.head, s.behind, s.snapshot = laneRow, nil, nil, nil
	if head != nil {
		s.head = head.clone()
	}
	if unread {
		s.snapshot = &snapshot
	}
}

// SawBehind stores the request behind the head; nil if there is none.
func (s *ClaimCache) SawBehind(row *Row) {
	if s != nil {
		s.behind = row
	}
}

// Follow returns the row of the request behind the head as the intent leaves it, if the
// holder may begin it.
func (s *ClaimCache) Follow(claim store.Claim, f *store.Following) (*Row, Change, bool) {
	if s == nil || f == nil || f.Intent.Post != 0 || len(f.Intent.MediaIDs) > 0 || s.behind == nil || s.behind.ID != f.ID || s.behind.Status.Revision != f.Revision {
		return nil, Change{}, false
	}
	row := s.behind.clone()
	change, err := row.Begin(s.laneRow, claim, f.Intent)
	plain := change.Request && change.Quiet && change.WakeAt.IsZero() && row.Status.Reason == nil
	return row, change, err == nil && plain
}

// SawToken stores the token that was read with the claim or with the front. A token that
// cannot be opened is not stored: the next reader gets the error.
func (s *ClaimCache) SawToken(sealer *store.Sealer, sealed store.SealedToken) {
	if s == nil {
		return
	}
	if token, err := sealer.OpenToken(sealed); err == nil {
		s.token = &token
	}
}

// Head returns a copy of the head's row if the head is that request and its row was
// read.
func (s *ClaimCache) Head(id string) (LaneRow, *Row, bool) {
	if s == nil || s.head == nil || s.head.ID != id {
		return LaneRow{}, nil, false
	}
	return s.laneRow, s.head.clone(), true
}

// Write stores the head as a step has written it, also for Wrote.
func (s *ClaimCache) Write(head *Row) {
	if s != nil {
		record := head.clone().Told()
		s.head, s.snapshot, s.wrote = head, nil, &record
	}
}

// Forget makes the next step read everything again.
func (s *ClaimCache) Forget() {
	if s != nil {
		s.head, s.behind, s.snapshot, s.wrote = nil, nil, nil, nil
	}
}

// Mark is the revision that the lane's next step marks as delivered, zero for none.
func (s *ClaimCache) Mark() store.Revision {
	if s == nil {
		return store.Revision{}
	}
	return s.told
}

// Marked says that a step has marked it, and whether the request has no newer revision.
func (s *ClaimCache) Marked(told store.Revision, latest bool) {
	if s == nil || told.Number == 0 {
		return
	}
	s.told = store.Revision{}
	if !latest {
		s.moved = append(s.moved, told.Key)
	}
}

// Next implements store.ClaimMemory.
func (s *ClaimCache) Next() (store.Snapshot, bool) { return handOut(&s.snapshot) }

// Behind implements store.ClaimMemory. The row stays, for Follow.
func (s *ClaimCache) Behind() (store.Record, bool) {
	if s.behind == nil {
		return store.Record{}, false
	}
	return s.behind.clone().Told(), true
}

// Token implements store.ClaimMemory.
func (s *ClaimCache) Token() (store.Token, bool) { return handOut(&s.token) }

// Wrote implements store.ClaimMemory.
func (s *ClaimCache) Wrote(id string) (store.Record, bool) {
	if s.wrote == nil || s.wrote.ID != id {
		return store.Record{}, false
	}
	return handOut(&s.wrote)
}

// handOut takes what is there, if it is.
func handOut[T any](of **T) (out T, found bool) {
	if found = *of != nil; found {
		out, *of = **of, nil
	}
	return out, found
}

// Told implements store.ClaimMemory.
func (s *ClaimCache) Told(told store.Revision) bool {
	if s.told.Number != 0 && s.told.Key != told.Key {
		return false
	}
	s.told = told
	return true
}

// Untold implements store.ClaimMemory.
func (s *ClaimCache) Untold(key store.Key) {
	if s.told.Key == key {
		s.told = store.Revision{}
	}
}

// Moved implements store.ClaimMemory.
func (s *ClaimCache) Moved() []store.Key {
	moved := s.moved
	s.moved = nil
	return moved
}
