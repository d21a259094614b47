package xsim

import (
	"maps"
	"strconv"
	"time"
	"unique"
)

// The kinds of violation: what a correct client never does.
const (
	// ViolationDoublePost: a post was created although the same account has an
	// equal one that still exists: same text, same media bytes, and same place,
	// which is the same parent, or a parent that is itself equal by this rule.
	ViolationDoublePost = "double_post"

	// ViolationDuplicateAttempt: the duplicate filter refused a post that otherwise was
	// a double_post, so only luck saved the account. An equal text at another place,
	// such as the same last line in two threads, is refused by the filter, but is no
	// violation; nor is repeating a deleted post.
	ViolationDuplicateAttempt = "duplicate_attempt"

	// ViolationRefreshTokenReused: a refresh token came again although the answer with
	// its successor had reached the client, or the client still waited for it. If that
	// answer was cut, lost or spoiled, or the client had given up, the token is refused
	// just the same, but that is no violation: the client cannot do anything else. A
	// client that dies between reading the answer and storing it looks like a careless
	// one, and is recorded.
	ViolationRefreshTokenReused = "refresh_token_reused"

	// ViolationCallInClosedWindow: a call into a window of which an answer had
	// already said, to this account or for an app's window to any, that nothing is
	// left, more than [Server.ClosedWindowGrace] before the call arrived.
	ViolationCallInClosedWindow = "call_in_closed_window"

	// ViolationMalformedRequest: a path, parameter, header or body that breaks the
	// published schema.
	ViolationMalformedRequest = "malformed_request"
)

// maxRecords bounds the stored calls and violations. Older ones are dropped, while the
// counts go on.
const maxRecords = 10_000

// Call is one request that reached the server.
type Call struct {
	Endpoint string    `json:"endpoint"` // "" for an unknown path
	Method   string    `json:"method"`
	Path     string    `json:"path"`
	Account  string    `json:"account"`         // the account's id, "" if unknown
	Status   int       `json:"status"`          // 0 where no answer was given
	Effect   bool      `json:"effect"`          // something was created, changed or removed
	Fault    string    `json:"fault,omitempty"` // the kind of fault that struck
	At       time.Time `json:"at"`              // when the call arrived
	// Counted is when X handled the call. Windows open, end and count by this moment,
	// which latency separates from At, and it is a post's CreatedAt.
	Counted time.Time `json:"counted"`
	Host    string    `json:"host"` // the address that the client called
}

// Violation is one broken promise.
type Violation struct {
	Kind    string    `json:"kind"`
	Account string    `json:"account"` // the account's id, "" if unknown
	Detail  string    `json:"detail"`  // never holds a token
	At      time.Time `json:"at"`
}

// Leniency is something that X's specification does not have and that X is believed
// to take all the same, since clients that are widely used send it.
type Leniency struct {
	Endpoint string    `json:"endpoint"`
	Account  string    `json:"account"` // the account's id, "" if unknown
	What     string    `json:"what"`
	At       time.Time `json:"at"`
}

type callLog struct {
	leniencies ring[Leniency]
	calls      ring[Call]
	violations ring[Violation]
	counts     map[string]map[string]int
}

func (w *world) record(c *call, a answer) {
	call := Call{
		Endpoint: c.endpoint, Method: c.r.Method, Path: c.r.URL.Path, Account: c.accountID(),
		Status: a.status, Effect: c.effect, Fault: c.plan.kind(), At: c.arrived,
		Counted: c.now, Host: unique.Make(c.r.Host).Value(),
	}
	if call.Fault == FaultLostAnswer {
		call.Status = 0
	}
	w.callLog.add(call)
	w.touch(&call)
}

func (b *callLog) add(call Call) {
	b.calls.add(call, maxRecords)
	if b.counts == nil {
		b.counts = map[string]map[string]int{}
	}
	if b.counts[call.Endpoint] == nil {
		b.counts[call.Endpoint] = map[string]int{}
	}
	b.counts[call.Endpoint][strconv.Itoa(call.Status)]++
}

// violate records a violation. The caller holds the lock.
func (s *Server) violate(c *call, kind, detail string) {
	violation := Violation{Kind: kind, Account: c.accountID(), Detail: detail, At: c.arrived}
	s.w.callLog.violations.add(violation, maxRecords)
	s.w.touch(&violation)
	if s.Logger != nil {
		s.Logger.Warn("xsim.violation", "kind", kind, "account", c.accountID(), "detail", detail)
	}
}

// lenient records what the specification does not have, and reports whether it is
// accepted. The caller holds the lock.
func (s *Server) lenient(c *call, what string) bool {
	if s.Strict {
		return false
	}
	leniency := Leniency{Endpoint: c.endpoint, Account: c.accountID(), What: what, At: c.arrived}
	s.w.callLog.leniencies.add(leniency, maxRecords)
	s.w.touch(&leniency)
	return true
}

// Leniencies returns the last 10,000, oldest first.
func (s *Server) Leniencies() []Leniency {
	w := s.lock()
	defer s.unlock()
	return w.callLog.leniencies.list()
}

// Calls returns the last 10,000 calls, oldest first.
func (s *Server) Calls() []Call {
	w := s.lock()
	defer s.unlock()
	return w.callLog.calls.list()
}

// Counts returns the number of calls by endpoint and status; status "0" counts
// calls that got no answer.
func (s *Server) Counts() map[string]map[string]int {
	w := s.lock()
	defer s.unlock()
	counts := make(map[string]map[string]int, len(w.callLog.counts))
	for endpoint, byStatus := range w.callLog.counts {
		counts[endpoint] = maps.Clone(byStatus)
	}
	return counts
}

// Violations returns the last 10,000 violations, oldest first.
func (s *Server) Violations() []Violation {
	w := s.lock()
	defer s.unlock()
	return w.callLog.violations.list()
}

// ring is a buffer of the last entries, up to the limit that each add names.
type ring[T any] struct {
	entries []T
	next    int // the place of the oldest entry once the ring is full
}

func (r *ring[T]) add(v T, limit int) {
	if len(r.entries) < limit {
		r.entries = append(r.entries, v)
		return
	}
	r.entries[r.next] = v
	r.next = (r.next + 1) % limit
}

func (r *ring[T]) list() []T {
	list := make([]T, 0, len(r.entries))
	return append(append(list, r.entries[r.next:]...), r.entries[:r.next]...)
}
