package xapi

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// fallbackClosed is how long a 429 that names no time closes its window: the
	// length of X's ordinary window.
	fallbackClosed = 15 * time.Minute
	// maxClosed bounds what headers may claim: X's longest window is a day, and
	// one mangled header must not silence an account for years.
	maxClosed = 48 * time.Hour
	// resetJitter is how far two estimates of one reset may lie apart before the
	// newer one counts. The Date header has whole seconds.
	resetJitter = 2 * time.Second
)

// WindowKind is the kind of a window that X counts an endpoint's calls in.
type WindowKind string

// X's three families of windows. The two of 24 hours are not documented, and
// their headers may be missing.
const (
	Window15Min   WindowKind = "15min"
	WindowUser24h WindowKind = "user_24h"
	WindowApp24h  WindowKind = "app_24h"
)

// Length is how long such a window lasts.
func (k WindowKind) Length() time.Duration {
	if k == Window15Min {
		return fallbackClosed
	}
	return 24 * time.Hour
}

// families lists each kind with the prefix of its headers.
func families() []family {
	return []family{
		{Window15Min, "X-Rate-Limit-"},
		{WindowUser24h, "X-User-Limit-24hour-"},
		{WindowApp24h, "X-App-Limit-24hour-"},
	}
}

type family struct {
	kind   WindowKind
	prefix string
}

// Scope says whose calls a window counts.
type Scope string

// The scopes of a window.
const (
	ScopeAccount Scope = "account"
	ScopeApp     Scope = "app"
)

// Window is one rate window as X last reported it.
type Window struct {
	// Account is the account whose calls it counts, by its name in WithLimits; "" if it
	// counts all of the app.
	Account   string
	Endpoint  Endpoint
	Kind      WindowKind
	Limit     int // 0 when X did not say
	Remaining int
	// Reset is when the window opens again by this machine's clock, in whole
	// milliseconds and rounded up: X's time, corrected by its Date header.
	Reset time.Time
	// XReset is the reset by X's clock, in epoch seconds. It distinguishes a window
	// from the next one: the corrected time differs a little from answer to answer.
	XReset int64
	// Length is how long such a window lasts, where one was seen from its first call
	// on; else 0.
	Length time.Duration
	// Estimated says that X did not report it: Limit is the documented one, and the
	// client has counted the calls.
	Estimated bool
}

// Scope is the app for its 24-hour window, else the account: all calls are made
// with a user's token, for which X counts the 15-minute window per user.
func (w Window) Scope() Scope {
	if w.Kind == WindowApp24h {
		return ScopeApp
	}
	return ScopeAccount
}

// Exhausted reports whether nothing is left and the reset is still ahead of now.
func (w Window) Exhausted(now time.Time) bool {
	return w.Remaining <= 0 && now.Before(w.Reset)
}

// Short reports whether the window has fewer calls left than are needed, or than it ever
// takes. One that is over is not: the next call begins another.
func (w Window) Short(need int, now time.Time) bool {
	if w.Limit > 0 {
		need = min(need, w.Limit)
	}
	return now.Before(w.Reset) && w.Remaining < need
}

// Left is how many calls it takes at a time: those that are left of it or, once it is
// over, all of the next one.
func (w Window) Left(now time.Time) int {
	if now.Before(w.Reset) {
		return w.Remaining
	}
	return w.Limit
}

// RateLimits returns every known window, ordered by endpoint and kind.
func (c *Client) RateLimits() []Window {
	all := c.limits.Counting(c.account, "")
	slices.SortFunc(all, func(a, b Window) int {
		return strings.Compare(string(a.Endpoint)+" "+string(a.Kind), string(b.Endpoint)+" "+string(b.Kind))
	})
	return all
}

// RateLimit returns the window that governs calls to e now: the exhausted one with the
// latest reset, otherwise the one with the fewest calls left. It returns false if X has
// reported no window that is still running.
func (c *Client) RateLimit(e Endpoint) (Window, bool) {
	now := time.Now()
	var governs Window
	known := false
	for _, w := range c.limits.Counting(c.account, e) {
		if !now.Before(w.Reset) {
			continue
		}
		closed := governs.Exhausted(now)
		switch {
		case !known, w.Exhausted(now) && (!closed || w.Reset.After(governs.Reset)), !closed && w.Remaining < governs.Remaining:
			governs, known = w, true
		}
	}
	return governs, known
}

// RateLimited reports whether X would refuse a call to e now, because a window has
// nothing left and its reset is in the future.
func (c *Client) RateLimited(e Endpoint) bool {
	w, known := c.RateLimit(e)
	return known && w.Exhausted(time.Now())
}

// RateShort returns the window of e in which fewer calls are left than are needed, or
// than it ever allows. If there are several, it returns the one with the latest reset.
func (c *Client) RateShort(e Endpoint, need int) (short Window, is bool) {
	now := time.Now()
	for _, w := range c.limits.Counting(c.account, e) {
		if w.Short(need, now) && (!is || w.Reset.After(short.Reset)) {
			short, is = w, true
		}
	}
	return short, is
}

// windowKey is a window among those of its account.
type windowKey struct {
	endpoint Endpoint
	kind     WindowKind
}

func (w Window) key() windowKey { return windowKey{w.Endpoint, w.Kind} }

// Limits is what is known of X's rate windows, of one app with all its accounts.
// The clients of a process share one (WithLimits), so that what X tells one account
// of the app's own windows holds for the others; and so does which names it takes.
type Limits struct {
	changed    func(Window)
	olderNames atomic.Bool // X takes those from before its version 2.167 in reads

	mu      sync.Mutex
	windows map[string]map[windowKey]Window // by account
	clock   clock
}

// NewLimits makes one that knows nothing yet. changed, if not nil, is called with each
// window that an answer of X has changed, and must return at once.
func NewLimits(changed func(Window)) *Limits {
	return &Limits{changed: changed, windows: make(map[string]map[windowKey]Window)}
}

// Learn notes what another process knows of a window.
func (l *Limits) Learn(w Window) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.merge(w, time.Now())
}

// All returns every known window, in no order.
func (l *Limits) All() []Window {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []Window
	for _, windows := range l.windows {
		all = slices.AppendSeq(all, maps.Values(windows))
	}
	return all
}

// Of returns the windows that count calls of the account and of nobody else, or with
// "" those of the app, in no order.
func (l *Limits) Of(account string) []Window {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.windows[account]))
}

// Counting returns the windows that count the account's calls to e, or to any for "",
// those of the app among them.
func (l *Limits) Counting(account string, e Endpoint) []Window {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Window
	for _, whose := range slices.Compact([]string{"", account}) {
		for key, w := range l.windows[whose] {
			if e == "" || key.endpoint == e {
				out = append(out, w)
			}
		}
	}
	return out
}

// documented are X's limits of calls an account may make in 15 minutes, which are
// counted where an answer has no headers.
var documented = map[Endpoint]int{
	EndpointCreatePost:      100,
	EndpointDeletePost:      50,
	EndpointUploadMedia:     500,
	EndpointInitializeMedia: 1875,
	EndpointAppendMedia:     1875,
	EndpointFinalizeMedia:   1875,
	EndpointMediaStatus:     1000,
	EndpointMediaMetadata:   500,
	EndpointMe:              75,
	EndpointUserPosts:       900,
}

// Documented is X's limit of calls to e that an account may make in a window of 15
// minutes; 0 if X documents none.
func Documented(e Endpoint) int { return documented[e] }

// estimate counts one more call in a window that X does not tell of.
func (l *Limits) estimate(account string, e Endpoint, now time.Time) (Window, bool) {
	limit, known := documented[e]
	if !known {
		return Window{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.windows[account][windowKey{e, Window15Min}]
	if now.Before(w.Reset) && !w.Estimated {
		return Window{}, false // the next answer of X reports it
	}
	if !now.Before(w.Reset) {
		reset := ceil(now.Add(fallbackClosed))
		w = Window{Endpoint: e, Kind: Window15Min, Limit: limit, Remaining: limit, Reset: reset, XReset: reset.Unix(), Estimated: true}
	}
	w.Remaining = max(w.Remaining-1, 0)
	return w, true
}

// note takes over what an answer reports. If X answered without the account's window,
// the call is counted.
func (l *Limits) note(account string, e Endpoint, windows []Window, status int, now time.Time) {
	said := func(w Window) bool { return w.Kind == Window15Min }
	if status < http.StatusInternalServerError && !slices.ContainsFunc(windows, said) {
		if w, ok := l.estimate(account, e, now); ok {
			windows = append(windows, w)
		}
	}
	for _, w := range windows {
		w = w.of(account)
		l.mu.Lock()
		changed := l.merge(w, now)
		w = l.windows[w.Account][w.key()]
		l.mu.Unlock()
		if changed && l.changed != nil {
			l.changed(w)
		}
	}
}

// merge reports whether it knew less before. Answers may arrive out of order: a later
// reset belongs to a newer window, and within one window the calls left only decrease.
func (l *Limits) merge(w Window, now time.Time) bool {
	old, known := l.windows[w.Account][w.key()]
	next := old
	switch {
	case !known, w.XReset > old.XReset, !now.Before(old.Reset) && now.Before(w.Reset), old.Estimated && !w.Estimated,
		w.XReset == old.XReset && w.Limit > 0 && w.Limit != old.Limit && !w.Estimated: // X has changed it
		next = w
		// The first answers place X's clock up to a second off.
		if longer := w.Length - old.Length; w.Length == 0 || old.Length > 0 && longer > 0 && longer <= time.Second {
			next.Length = old.Length
		}
	case w.XReset != old.XReset && (!now.Before(w.Reset) || old.Exhausted(now)):
		return false // it is older
	case w.XReset != old.XReset: // X has changed its windows
		next = w
	default:
		next.Remaining = min(old.Remaining, w.Remaining)
		// What is known of X's clock gets better with each answer.
		if d := w.Reset.Sub(old.Reset); d < 0 || old.Remaining > 0 && d > resetJitter {
			next.Reset = w.Reset
		}
	}
	if next == old {
		return false
	}
	l.set(next)
	return true
}

func (l *Limits) set(w Window) {
	if l.windows[w.Account] == nil {
		l.windows[w.Account] = make(map[windowKey]Window)
	}
	l.windows[w.Account][w.key()] = w
}

// close notes a window that a 429 proved closed, and returns it. It replaces what was
// known, since the refusal is stronger than any count.
func (l *Limits) close(account string, w Window) Window {
	w = w.of(account)
	l.mu.Lock()
	old := l.windows[w.Account][w.key()]
	w.XReset, w.Length = max(w.XReset, old.XReset), old.Length
	l.set(w)
	l.mu.Unlock()
	if l.changed != nil {
		l.changed(w)
	}
	return w
}

// of is the window as that account's client has read it.
func (w Window) of(account string) Window {
	if w.Scope() == ScopeAccount {
		w.Account = account
	}
	return w
}

// readWindows reads every window that the answer's headers state in full.
func readWindows(e Endpoint, ans answer) []Window {
	var out []Window
	for _, f := range families() {
		remaining, ok := headerInt(ans.header, f.prefix+"Remaining")
		reset, ok2 := headerInt(ans.header, f.prefix+"Reset")
		if !ok || !ok2 {
			continue
		}
		at := localTime(reset, ans)
		if at.Sub(ans.at) > maxClosed {
			continue
		}
		limit, _ := headerInt(ans.header, f.prefix+"Limit")
		w := Window{Endpoint: e, Kind: f.kind, Limit: int(limit), Remaining: int(remaining), Reset: at, XReset: reset}
		if limit > 0 && remaining == limit-1 && at.After(ans.at) { // this call has opened it
			w.Length = at.Sub(ans.at).Round(time.Second)
		}
		out = append(out, w)
	}
	return out
}

// closeWindow returns the window that a 429 says is closed. X's headers may claim
// that calls are left, or be missing; the refusal counts all the same. Where no
// window is exhausted the 15-minute one takes the blame, so that an unexplained
// refusal never costs a day. Retry-After is not documented but honoured; without
// any time the window closes for fallbackClosed.
func closeWindow(e Endpoint, ans answer, windows []Window) Window {
	best := Window{Endpoint: e, Kind: Window15Min}
	for i, w := range windows {
		if i == 0 || w.Exhausted(ans.at) && (!best.Exhausted(ans.at) || w.Reset.After(best.Reset)) {
			best = w
		}
	}
	retryAt := retryAfter(ans)
	switch {
	case best.Exhausted(ans.at) && retryAt.Before(best.Reset):
		// The window's own reset stays.
	case !retryAt.IsZero():
		best.Reset = retryAt
	case !best.Reset.After(ans.at):
		best.Reset = ceil(ans.at.Add(fallbackClosed))
	}
	best.Remaining = 0
	best.XReset = best.Reset.Add(-ans.skew).Unix()
	return best
}

// retryAfter returns the local time of a Retry-After header, in seconds or as a date,
// and the zero time if there is no valid one.
func retryAfter(ans answer) time.Time {
	var at time.Time
	if secs, ok := headerInt(ans.header, "Retry-After"); ok && secs <= int64(maxClosed/time.Second) {
		at = ceil(ans.at.Add(time.Duration(secs) * time.Second))
	} else if date, err := http.ParseTime(ans.header.Get("Retry-After")); err == nil {
		at = localTime(date.Unix(), ans)
	}
	if !at.After(ans.at) || at.Sub(ans.at) > maxClosed {
		return time.Time{}
	}
	return at
}

// localTime turns a time of X's clock into one of ours. Rounding up errs on the
// side of calling a little late.
func localTime(epoch int64, ans answer) time.Time {
	return ceil(time.Unix(epoch, 0).Add(ans.skew))
}

// clockMemory is how long the date of an answer is used for X's clock, at least.
const clockMemory = 5 * time.Minute

// clock is what is known of X's clock: ours minus X's, at most. An answer's date has
// whole seconds and has been on its way, so each answer alone claims up to a second
// too much; the least of many comes near the truth, and never below it.
type clock struct {
	since       time.Time // of now
	now, before time.Duration

	at      time.Time // of the latest answer
	claimed time.Duration
}

// skew notes an answer's date, and returns how far our clock is ahead of X's.
func (l *Limits) skew(ans answer) time.Duration {
	claimed, dated := dateSkew(ans)
	if !dated {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &l.clock
	switch age := ans.at.Sub(c.since); {
	case age < 0 || age > 2*clockMemory:
		*c = clock{since: ans.at, now: claimed, before: claimed}
	case age > clockMemory:
		*c = clock{since: ans.at, now: claimed, before: c.now}
	default:
		c.now = min(c.now, claimed)
	}
	c.at, c.claimed = ans.at, claimed
	return min(c.now, c.before)
}

// ClockReading is by how much our clock is ahead of X's.
type ClockReading struct{ Least, Most time.Duration }

// dateSlack is how much one answer's date may claim too much: X cuts it to whole
// seconds, and the answer has been on its way.
const dateSlack = 3 * time.Second

// Clock is X's clock by the latest answer. It is unknown after clockMemory: the clocks
// may have been set since.
func (l *Limits) Clock(now time.Time) (ClockReading, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.clock
	if c.at.IsZero() || now.Sub(c.at) > clockMemory {
		return ClockReading{}, false
	}
	return ClockReading{Least: c.claimed - dateSlack, Most: c.claimed}, true
}

// dateSkew is our clock minus X's by the date of one answer.
func dateSkew(ans answer) (skew time.Duration, dated bool) {
	date, err := http.ParseTime(ans.header.Get("Date"))
	if err != nil {
		return 0, false
	}
	return ans.at.Round(0).Sub(date), true
}

// ceil rounds up to whole milliseconds, which is what others keep of a time.
func ceil(t time.Time) time.Time {
	if whole := t.Round(0).Truncate(time.Millisecond); !whole.Equal(t) {
		return whole.Add(time.Millisecond)
	}
	return t.Round(0)
}

// headerInt reads a header that must be a number of at most 12 digits.
func headerInt(h http.Header, name string) (int64, bool) {
	v := strings.TrimSpace(h.Get(name))
	n, err := strconv.ParseInt(v, 10, 64)
	return n, err == nil && n >= 0 && len(v) <= 12
}
