// Package forecast estimates when the queues of all accounts will be empty, by the rules of
// the lane and of admission. It makes no calls and changes nothing.
package forecast

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers/admission"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi"
)

// Forecast says when the queues of all accounts will be empty.
type Forecast struct {
	// Now is when the forecast was made.
	Now time.Time `json:"now"`
	// Posts is how many posts are published until DoneAt without a person's help.
	Posts  int       `json:"posts"`
	DoneAt time.Time `json:"done_at,omitzero"`
	// Windows is the largest number of X's rate windows of one kind that the posts of an
	// account, or of the app, need; the current window is the first.
	Windows int `json:"windows"`
	// AtEarliest is true if an app pause without a known end is in force: DoneAt assumes
	// that the next probe ends it.
	AtEarliest bool `json:"at_the_earliest"`
	// Estimated is true if DoneAt depends on windows that X has not reported.
	Estimated bool `json:"estimated"`
	// BlockedPosts is how many posts wait for a person, and BlockedAccounts how many
	// accounts have such posts.
	BlockedPosts    int `json:"blocked_posts"`
	BlockedAccounts int `json:"blocked_accounts"`
	// Expired counts requests whose expires_at passes before they can begin.
	Expired int `json:"expired_requests"`
	// Notes are further remarks, a sentence each.
	Notes []string `json:"notes,omitempty"`
	// Accounts are the accounts with unfinished requests. Blocked ones come first, then
	// those that take longest.
	Accounts []AccountForecast `json:"accounts"`
}

// AccountForecast says when an account's queue will be empty.
type AccountForecast struct {
	Account  string `json:"account"`
	Requests int    `json:"requests"` // unfinished
	Posts    int    `json:"posts"`    // of those requests, not sent yet
	// Windows counts X's windows of 15 minutes that the account's posts need.
	Windows int `json:"windows"`
	// DoneAt is when the last post is published; absent if the queue is blocked.
	DoneAt time.Time `json:"done_at,omitzero"`
	// WaitsFor is the first window that the queue has to wait for, in its current state;
	// absent if the queue waits for none.
	WaitsFor *RateWindow `json:"waits_for,omitempty"`
	// Held is why the first request is held until a known time.
	Held *jetpost.Reason `json:"held,omitempty"`
	// Blocked is why the queue does not move until a person acts.
	Blocked *QueueBlock `json:"blocked,omitempty"`
	Expired int         `json:"expired_requests,omitempty"`
	// Estimated is true if the queue waits for a window that X has not reported.
	Estimated bool `json:"estimated"`
}

// QueueBlock is why a queue waits for a person.
type QueueBlock struct {
	Code jetpost.Code `json:"code"`
	ID   string       `json:"id,omitempty"` // of the request, if one request blocks the queue
	Do   string       `json:"do"`           // set by the caller of New
	// Posts is how many posts wait: those of the request and those queued behind it.
	Posts int `json:"posts"`
}

// Queue is what an account has to send.
type Queue struct {
	Account string
	// Reason keeps the whole account from posting until Reason.Until or, if that is zero,
	// until a person acts. It is nil if nothing does.
	Reason *jetpost.Reason
	Queue  []Queued // in the order of publishing
}

// Queued is an unfinished request, or several equal ones in a row.
type Queued struct {
	ID    string
	Count int // 1 at least
	Posts int
	Live  int // of the posts; 0 where Count is more than 1
	// Begun is true for a request that is due whatever Due says.
	Begun   bool
	Due     time.Time
	Expires time.Time // unless its first post is live before; zero if it never expires
	State   jetpost.State
	Code    jetpost.Code // why it is held or unknown
	Until   time.Time    // the end of its hold; zero if that has none
}

// New estimates when the queues will be empty, by the rules of the publish path: each queue
// is published strictly in order, a request begins only if each window has room for all of
// it or is full, and an app pause holds all accounts. New assumes that calls take no time,
// and that accounts get equal parts of the windows that they share.
func New(now time.Time, queues []Queue, windows []publishers.Window, pauses []publishers.Pause) Forecast {
	d := &drain{f: Forecast{Now: now}, from: now}
	for _, s := range pauses {
		if s.Target == publishers.TargetPublish && s.Active(now) {
			d.pause(s)
		}
	}
	of := map[string][]publishers.Window{}
	for _, w := range windows {
		if w.Endpoint == string(xapi.EndpointCreatePost) {
			of[w.Account] = append(of[w.Account], w)
		}
	}
	for _, w := range of[""] {
		d.app = newMeter(w, now)
	}
	d.queues = make([]queueDrain, 0, len(queues))
	for _, q := range queues {
		if len(q.Queue) > 0 {
			d.queues = append(d.queues, d.queue(q, of[q.Account], now))
			d.act(len(d.queues) - 1)
			d.push(len(d.queues)-1, d.from)
		}
	}
	d.run()
	return d.sum()
}

// meter is a rate window, and the ones that follow it.
type meter struct {
	xapi.Window
	told publishers.Window // as a worker shared it
	// guessed is true if X has not reported the limit or length, and guess if it has not
	// reported the end of the current window.
	guessed, guess bool
	windows        int // into which posts have fallen
	counted        bool
}

func newMeter(w publishers.Window, now time.Time) *meter {
	m := &meter{Window: admission.FromWire(w), told: w, guessed: w.Estimated, guess: w.Estimated}
	if m.Limit <= 0 {
		m.Limit, m.guessed = math.MaxInt, true
		if m.Kind == xapi.Window15Min {
			m.Limit = xapi.Documented(m.Endpoint)
		}
	}
	if m.Length <= 0 {
		m.Length, m.guessed = m.Kind.Length(), true
	}
	m.Remaining = m.Left(now)
	return m
}

// documentedMeter is the window of an account that X has not reported.
func documentedMeter(account string) *meter {
	limit := xapi.Documented(xapi.EndpointCreatePost)
	return newMeter(publishers.Window{
		Account: account, Endpoint: string(xapi.EndpointCreatePost), Kind: string(xapi.Window15Min),
		Limit: limit, Remaining: limit, Estimated: true,
	}, time.Time{})
}

func (m *meter) take(n int, t time.Time) {
	if !t.Before(m.Reset) { // the next call begins a new one
		m.Reset, m.Remaining, m.counted, m.guess = t.Add(m.Length), m.Limit, false, m.guessed
	}
	m.Remaining -= n
	if !m.counted {
		m.windows, m.counted = m.windows+1, true
	}
}

// drain simulates how the queues become empty.
type drain struct {
	f       Forecast
	from    time.Time       // nothing is published before it
	blocked *jetpost.Reason // an app pause that a person has to end
	app     *meter          // nil if X has not reported a window of the app
	queues  []queueDrain
	ready   tickets
	// parked are the queues that wait for the app's window, by how many calls they need
	// of it, so that only the first of each is checked.
	parked  [jetpost.MaxPosts + 1]tickets
	nParked int
	turns   int
}

// queueDrain is the state of one account's queue in the simulation.
type queueDrain struct {
	out    AccountForecast
	reason *jetpost.Reason
	queue  []Queued
	left   int // unsent posts of the queue
	meters []*meter
	last   time.Time // when its latest post was published
	turn   int       // if several queues can go on, the one with the lowest turn does
}

// ticket is when a queue goes on. queue is an index into drain.queues.
type ticket struct {
	at    time.Time
	turn  int
	queue int
}

func (a ticket) before(b ticket) bool {
	if !a.at.Equal(b.at) {
		return a.at.Before(b.at)
	}
	return a.turn < b.turn
}

type tickets []ticket

func (t tickets) Len() int           { return len(t) }
func (t tickets) Less(i, j int) bool { return t[i].before(t[j]) }
func (t tickets) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }
func (t *tickets) Push(x any)        { *t = append(*t, x.(ticket)) }
func (t *tickets) Pop() any {
	old := *t
	last := old[len(old)-1]
	*t = old[:len(old)-1]
	return last
}

func (d *drain) pause(s publishers.Pause) {
	switch {
	case s.NextAt().IsZero():
		d.blocked = &s.Reason
	case s.NextAt().After(d.from):
		d.from = s.NextAt()
	}
	d.f.AtEarliest = d.f.AtEarliest || s.Probed()
}

func (d *drain) queue(q Queue, windows []publishers.Window, now time.Time) queueDrain {
	l := queueDrain{out: AccountForecast{Account: q.Account}, reason: q.Reason, queue: slices.Clone(q.Queue)}
	if d.blocked != nil {
		l.reason = d.blocked
	}
	for _, r := range q.Queue {
		l.out.Requests += r.Count
		l.left += r.Count*r.Posts - r.Live
	}
	l.out.Posts = l.left
	// The window of 15 minutes is the first meter.
	l.meters = []*meter{documentedMeter(q.Account)}
	for _, w := range windows {
		if w.Kind == string(xapi.Window15Min) {
			l.meters[0] = newMeter(w, now)
		} else {
			l.meters = append(l.meters, newMeter(w, now))
		}
	}
	if d.app != nil {
		l.meters = append(l.meters, d.app)
	}
	if r := q.Queue[0]; r.State == jetpost.StateHeld && r.Code != jetpost.CodeAppPaused && r.Until.After(now) && !needsPerson(r) {
		l.out.Held = &jetpost.Reason{Code: r.Code, Until: r.Until}
	}
	return l
}

// act notes that a queue goes on.
func (d *drain) act(queue int) {
	d.turns++
	d.queues[queue].turn = d.turns
}

func (d *drain) push(queue int, at time.Time) {
	heap.Push(&d.ready, ticket{at: at, turn: d.queues[queue].turn, queue: queue})
}

func (d *drain) park(queue, need int) {
	d.nParked++
	heap.Push(&d.parked[need], ticket{turn: d.queues[queue].turn, queue: queue})
}

func (d *drain) run() {
	now := d.from
	for {
		next, found := d.next(now)
		if !found {
			return
		}
		now = next.at
		d.step(next.queue, now)
	}
}

// next removes and returns the first ticket: a ready queue at its time, or a parked queue
// once the app's window has the calls that it needs.
func (d *drain) next(now time.Time) (first ticket, found bool) {
	from := -1
	if len(d.ready) > 0 {
		first, found = d.ready[0], true
	}
	if d.nParked > 0 {
		for need, waiting := range d.parked {
			if len(waiting) == 0 {
				continue
			}
			t := waiting[0]
			t.at = now
			if d.app.Short(need, now) {
				t.at = d.app.Reset
			}
			if !found || t.before(first) {
				first, found, from = t, true, need
			}
		}
	}
	switch {
	case !found:
	case from < 0:
		heap.Pop(&d.ready)
	default:
		d.nParked--
		heap.Pop(&d.parked[from])
	}
	return first, found
}

// step takes the next step with the first request of a queue.
func (d *drain) step(i int, now time.Time) {
	l := &d.queues[i]
	if len(l.queue) == 0 {
		return
	}
	q := &l.queue[0]
	switch {
	case l.reason != nil && l.reason.Until.IsZero():
		l.block(l.reason.Code, "")
		return
	case needsPerson(*q):
		l.block(q.Code, q.ID)
		return
	}
	need := admission.Need(q.Posts, q.Live)
	if at := l.notBefore(q); at.After(now) {
		if m := l.shortest(need, now); m != nil && q.Code == jetpost.CodeRateLimited {
			l.waits(m, d.f.Now)
		}
		d.push(i, at)
		return
	}
	if q.Live == 0 && !q.Expires.IsZero() && !now.Before(q.Expires) {
		l.out.Expired += q.Count
		l.out.Posts -= q.Count * q.Posts
		l.left -= q.Count * q.Posts
		l.queue = l.queue[1:]
		d.push(i, now)
		return
	}
	if m := l.shortest(need, now); m != nil {
		l.waits(m, d.f.Now)
		if m == d.app {
			d.park(i, min(need, m.Limit))
		} else {
			d.push(i, m.Reset)
		}
		return
	}
	n := q.Posts - q.Live
	if q.Posts == 1 && d.app == nil { // no window is shared, so queues need not take turns
		n = q.Count
	}
	for _, m := range l.meters {
		n = min(n, m.Left(now))
	}
	for _, m := range l.meters {
		m.take(n, now)
	}
	l.left -= n
	l.last = now
	if q.Posts == 1 {
		q.Count -= n
	} else if q.Live += n; q.Live == q.Posts {
		q.Live, q.Begun = 0, false
		q.Count--
	}
	if q.Count == 0 {
		l.queue = l.queue[1:]
	}
	d.act(i)
	d.push(i, now)
}

// needsPerson reports whether a request does not go on by itself.
func needsPerson(q Queued) bool {
	switch {
	case q.State == jetpost.StateUnknown:
		return true
	case q.State != jetpost.StateHeld:
		return false
	}
	switch q.Code {
	case jetpost.CodeAccountReauthRequired, jetpost.CodeKeyUnavailable, jetpost.CodePoison, jetpost.CodeNeedsNewerWorker:
		return true // even those that workers check again from time to time
	case jetpost.CodeAppPaused:
		return false // the app pause decides
	default:
		return q.Until.IsZero()
	}
}

// notBefore is when a request may go on, windows aside.
func (l *queueDrain) notBefore(q *Queued) (at time.Time) {
	if l.reason != nil {
		at = l.reason.Until
	}
	if !q.Begun {
		at = later(at, q.Due)
	}
	if q.State == jetpost.StateHeld && q.Code != jetpost.CodeAppPaused {
		at = later(at, q.Until)
	}
	return at
}

func (l *queueDrain) block(code jetpost.Code, id string) {
	l.out.Blocked = &QueueBlock{Code: code, ID: id, Posts: l.left}
}

// shortest returns the window that is short of calls. If there are several, it returns the
// one that resets last.
func (l *queueDrain) shortest(need int, now time.Time) (found *meter) {
	for _, m := range l.meters {
		if m.Short(need, now) && (found == nil || m.Reset.After(found.Reset)) {
			found = m
		}
	}
	return found
}

// waits notes that the queue waits for a window.
func (l *queueDrain) waits(m *meter, at time.Time) {
	if l.out.WaitsFor == nil {
		w := NewRateWindow(m.told, at)
		l.out.WaitsFor = &w
	}
	l.out.Estimated = l.out.Estimated || m.guess
}

func (d *drain) sum() Forecast {
	f := &d.f
	f.Accounts = make([]AccountForecast, 0, len(d.queues))
	for i := range d.queues {
		l := &d.queues[i]
		l.out.Windows = l.meters[0].windows
		if l.out.Blocked == nil {
			l.out.DoneAt = l.last
		} else {
			f.BlockedAccounts++
			f.BlockedPosts += l.out.Blocked.Posts
		}
		f.Posts += l.out.Posts - l.left
		f.Expired += l.out.Expired
		f.DoneAt = later(f.DoneAt, l.last)
		f.Windows = max(f.Windows, l.out.Windows)
		f.Estimated = f.Estimated || l.out.Estimated
		f.Accounts = append(f.Accounts, l.out)
	}
	if d.app != nil {
		f.Windows = max(f.Windows, d.app.windows)
	}
	slices.SortFunc(f.Accounts, func(a, b AccountForecast) int {
		if a, b := a.Blocked != nil, b.Blocked != nil; a != b {
			if a {
				return -1
			}
			return 1
		}
		return cmp.Or(b.DoneAt.Compare(a.DoneAt), cmp.Compare(a.Account, b.Account))
	})
	return *f
}

// later returns the later of two times.
func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
