package store

import "slices"

// ClaimCache is what the holder of a lane knows of it without asking: the account's pause
// and the head's row as of the latest step that read or wrote them. A driver keeps it
// with the claim, so that the next step need not read again what the holder has read,
// and compares it with the ledger inside the statement that writes: a snapshot that is
// out of date costs a second look, never a wrong write.
//
// It belongs to the goroutine that runs the lane.
type ClaimCache struct {
	laneRow LaneRow
	head    *Row
	look    *Snapshot
	wrote   *Record
	token   *Token
	told    Revision // whose mark waits for the next step; zero for none
	moved   []Key
}

// Saw keeps what a look has read. Unread, the look is handed out by [Claim.Next].
func (s *ClaimCache) Saw(laneRow LaneRow, look Snapshot, head *Row, unread bool) {
	if s == nil {
		return
	}
	s.laneRow, s.head, s.look = laneRow, nil, nil
	if head != nil {
		s.head = head.clone()
	}
	if unread {
		s.look = &look
	}
}

// Head returns a copy of the head's row, where it is that request and was read.
func (s *ClaimCache) Head(id string) (LaneRow, *Row, bool) {
	if s == nil || s.head == nil || s.head.ID != id {
		return LaneRow{}, nil, false
	}
	return s.laneRow, s.head.clone(), true
}

// Wrote keeps the head as a step has written it, for [Claim.Wrote] too.
func (s *ClaimCache) Wrote(head *Row) {
	if s != nil {
		record := head.clone().Told()
		s.head, s.look, s.wrote = head, nil, &record
	}
}

// Forget has the next step read everything anew.
func (s *ClaimCache) Forget() {
	if s != nil {
		s.head, s.look, s.wrote = nil, nil, nil
	}
}

// Mark is what the next step of the lane is to mark as told, zero for nothing.
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

// Told says that the event of that revision was published. The lane's next step marks it
// together with what it writes. It is false where none can: then it is to be marked by
// [Requests.MarkDelivered].
func (l Claim) Told(told Revision) bool {
	s := l.Cache
	if s == nil || s.told.Number != 0 && s.told.Key != told.Key {
		return false
	}
	s.told = told
	return true
}

// Untold takes back what waits to be marked of a request, since a newer revision of it
// is marked otherwise.
func (l Claim) Untold(key Key) {
	if s := l.Cache; s != nil && s.told.Key == key {
		s.told = Revision{}
	}
}

// Moved hands out, once, the requests that had moved on by the time at which they were
// marked: their events may be newer ones, told before, and are to be told again.
func (l Claim) Moved() []Key {
	if l.Cache == nil {
		return nil
	}
	moved := l.Cache.moved
	l.Cache.moved = nil
	return moved
}

// Attach keeps the token that was read with the claim or with the front, for [Claim.Token]. One that cannot
// be opened is left to whoever reads it again.
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

// Next hands out, once, the look that was read together with the claim or with the
// outcome of the last post. It is as of that moment: a release that rests on it is
// refused if anything woke since.
func (l Claim) Next() (Snapshot, bool) {
	if l.Cache == nil || l.Cache.look == nil {
		return Snapshot{}, false
	}
	look := *l.Cache.look
	l.Cache.look = nil
	return look, true
}

// clone copies what the rules write to.
func (r *Row) clone() *Row {
	c := *r
	c.Posts = slices.Clone(r.Posts)
	return &c
}
