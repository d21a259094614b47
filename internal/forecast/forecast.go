// Package forecast tells when the queues of all accounts are out, by the rules of the lane
// and of admission. It asks nobody and changes nothing.
package forecast

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi"
)

// What New tells. Who makes a forecast for people fills in what they can do about each
// queue that does not move.
type (
	Forecast        = jetpost.Forecast
	AccountForecast = jetpost.AccountForecast
	QueueBlock      = jetpost.QueueBlock
	RateWindow      = jetpost.RateWindow
)

// Queue is what an account has to send, in the order of its posts.
type Queue struct {
	Account string
	// Reason keeps the whole account from posting: until its Until or, where that is
	// zero, until a person acts. Nil is none.
	Reason *jetpost.Reason
	Queue  []Queued
}

// Queued is an unfinished request, or several in a row that are equal.
type Queued struct {
	ID    string
	Count int // 1 at least
	Posts int
	Live  int // of the posts; 0 where Count is more than 1
	// Begun tells that it is due, whatever its time.
	Begun   bool
	Due     time.Time
	Expires time.Time // before its first post is live; zero is never
	State   jetpost.State
	Code    jetpost.Code // why it is held or unknown
	Until   time.Time    // the end of its hold; zero where that has none
}

// New tells when the queues are out, by the rules of the publish path: each
// queue strictly in its order, a request begun only where each window takes all of it,
// or as much as it ever takes, and an app pause holds for all. What the calls
// themselves take is left out, and of windows that all accounts share each account
// gets the same part.
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
	for _, l := range queues {
		if len(l.Queue) > 0 {
			d.queues = append(d.queues, d.queue(l, of[l.Account], now))
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
	told publishers.Window // as it was at first
	// guessed tells that its limit or length is not X's, and guess that the present
	// window's end is not.
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

// documentedMeter is the window of an account that X has not told of.
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

// drain lets the queues run out.
type drain struct {
	f       Forecast
	from    time.Time       // before it nothing goes out
	blocked *jetpost.Reason // an app pause that a person has to end
	app     *meter          // nil where X has told of none
	queues  []queueDrain
	ready   tickets
	// parked wait for the app's window, by how many calls they need of it, so that
	// nobody is looked at in vain.
	parked  [jetpost.MaxPosts + 1]tickets
	nParked int
	turns   int
}

// queueDrain is an account's queue as it runs out.
type queueDrain struct {
	out    AccountForecast
	reason *jetpost.Reason
	queue  []Queued
	left   int // posts of the queue
	meters []*meter
	last   time.Time // of its posts
	turn   int       // of several that may go on, the one that did so longest ago does
}

// ticket is a queue's turn.
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

func (d *drain) queue(l Queue, windows []publishers.Window, now time.Time) queueDrain {
	out := queueDrain{out: AccountForecast{Account: l.Account}, reason: l.Reason, queue: slices.Clone(l.Queue)}
	if d.blocked != nil {
		out.reason = d.blocked
	}
	for _, q := range l.Queue {
		out.out.Requests += q.Count
		out.left += q.Count*q.Posts - q.Live
	}
	out.out.Posts = out.left
	// That of 15 minutes is the first one.
	out.meters = []*meter{documentedMeter(l.Account)}
	for _, w := range windows {
		if w.Kind == string(xapi.Window15Min) {
			out.meters[0] = newMeter(w, now)
		} else {
			out.meters = append(out.meters, newMeter(w, now))
		}
	}
	if d.app != nil {
		out.meters = append(out.meters, d.app)
	}
	if q := l.Queue[0]; q.State == jetpost.StateHeld && q.Code != jetpost.CodeAppPaused && q.Until.After(now) && !needsPerson(q) {
		out.out.Held = &jetpost.Reason{Code: q.Code, Until: q.Until}
	}
	return out
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

// next takes the first turn: of those that are ready at their time, and of those that
// wait for the app's window once that takes what they need.
func (d *drain) next(now time.Time) (first ticket, found bool) {
	from := -1
	if len(d.ready) > 0 {
		first, found = d.ready[0], true
	}
	if d.nParked > 0 {
		for need, parked := range d.parked {
			if len(parked) == 0 {
				continue
			}
			t := parked[0]
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

// step lets a queue go on with its head for as long as nothing keeps it.
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
	if q.Posts == 1 && d.app == nil { // nobody has to have a turn in between
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

// needsPerson tells that a request does not move by itself, or, of one that needs newer
// workers, that nobody knows when it does.
func needsPerson(q Queued) bool {
	switch {
	case q.State == jetpost.StateUnknown:
		return true
	case q.State != jetpost.StateHeld, q.Code == jetpost.CodeAppPaused: // the app pause tells
		return false
	case q.Code.Kind() == jetpost.KindHeldForPerson, q.Code == jetpost.CodeNeedsNewerWorker:
		return true // some of them are looked at now and then, and found as they were
	default:
		return q.Until.IsZero()
	}
}

// notBefore is when a request may go on, but for windows.
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

// shortest returns the window that is short of calls; of several the one that lasts
// longest.
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
