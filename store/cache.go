package store

import "slices"

// ClaimCache is what the holder of a lane knows of it without reading it again: the
// account's pause and the head's row as of the latest step that read or wrote them. A
// driver stores it with the claim, so that the next step need not read them again. The
// statement that writes compares the cached row with the ledger: an outdated snapshot
// costs a second read, never a wrong write.
//
// It belongs to the goroutine that runs the lane.
type ClaimCache struct {
	laneRow  LaneRow
	head     *Row
	snapshot *Snapshot
	wrote    *Record
	token    *Token
	told     Revision // whose mark waits for the next step; zero for none
	moved    []Key
}

// Saw stores a snapshot that was read. If unread, [Claim.Next] hands it out.
func (s *ClaimCache) Saw(laneRow LaneRow, snapshot Snapshot, head *Row, unread bool) {
	if s == nil {
		return
	}
	s.laneRow, s.head, s.snapshot = laneRow, nil, nil
	if head != nil {
		s.head = head.clone()
	}
	if unread {
		s.snapshot = &snapshot
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

// Wrote stores the head as a step has written it, also for [Claim.Wrote].
func (s *ClaimCache) Wrote(head *Row) {
	if s != nil {
		record := head.clone().Told()
		s.head, s.snapshot, s.wrote = head, nil, &record
	}
}

// Forget makes the next step read everything again.
func (s *ClaimCache) Forget() {
	if s != nil {
		s.head, s.snapshot, s.wrote = nil, nil, nil
	}
}

// Mark is the revision that the lane's next step marks as delivered, zero for none.
func (s *ClaimCache) Mark() Revision {
	if s == nil {
		return Revision{}
	}
	return s.told
}

// Marked says that a step has marked it, and whether the request has no newer revision.
func (s *ClaimCache) Marked(told Revision, latest bool) {
	if s == nil || told.Number == 0 {
		return
	}
	s.told = Revision{}
	if !latest {
		s.moved = append(s.moved, told.Key)
	}
}

// Told says that the event of that revision was published. The lane's next step marks
// it together with what it writes. Told returns false if no step can mark it; the
// caller must then call [Outbox.MarkDelivered].
func (l Claim) Told(told Revision) bool {
	s := l.Cache
	if s == nil || s.told.Number != 0 && s.told.Key != told.Key {
		return false
	}
	s.told = told
	return true
}

// Untold drops the pending mark of a request, because a newer revision of it is marked
// otherwise.
func (l Claim) Untold(key Key) {
	if s := l.Cache; s != nil && s.told.Key == key {
		s.told = Revision{}
	}
}

// Moved hands out, once, the requests that had a newer revision when they were marked.
// Their published events may be older than the latest revision and must be published
// again.
func (l Claim) Moved() []Key {
	if l.Cache == nil {
		return nil
	}
	moved := l.Cache.moved
	l.Cache.moved = nil
	return moved
}

// Attach stores the token that was read with the claim or with the front, for [Claim.Token]. A token that
// cannot be opened is not stored: the next reader gets the error.
func (s *Sealer) Attach(lane Claim, sealed SealedToken) {
	if token, err := s.OpenToken(sealed); err == nil {
		lane.Cache.token = &token
	}
}

// Token hands out, once, the account's token as it was when the lane was claimed or its
// front was read.
func (l Claim) Token() (Token, bool) {
	if l.Cache == nil || l.Cache.token == nil {
		return Token{}, false
	}
	token := *l.Cache.token
	l.Cache.token = nil
	return token, true
}

// Wrote hands out, once, that request as the latest step has written it. By now it may
// have moved on.
func (l Claim) Wrote(id string) (Record, bool) {
	if l.Cache == nil || l.Cache.wrote == nil || l.Cache.wrote.ID != id {
		return Record{}, false
	}
	record := *l.Cache.wrote
	l.Cache.wrote = nil
	return record, true
}

// Next hands out, once, the snapshot that was read together with the claim or with the
// outcome of the last post. A release that rests on it is refused if a wake-up came
// after that moment.
func (l Claim) Next() (Snapshot, bool) {
	if l.Cache == nil || l.Cache.snapshot == nil {
		return Snapshot{}, false
	}
	snapshot := *l.Cache.snapshot
	l.Cache.snapshot = nil
	return snapshot, true
}

// clone copies what the rules write to.
func (r *Row) clone() *Row {
	c := *r
	c.Posts = slices.Clone(r.Posts)
	return &c
}
