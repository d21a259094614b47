package xapi

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
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

// WindowKind tells the windows that X counts an endpoint's calls in.
type WindowKind string

// X's three families of windows. The two of 24 hours are not documented, and
// their headers may be missing.
const (
	Window15Min   WindowKind = "15min"
	WindowUser24h WindowKind = "user_24h"
	WindowApp24h  WindowKind = "app_24h"
)

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
	// Account is whose calls it counts, by the name that WithLimits was given; ""
	// where it counts all of the app.
	Account   string
	Endpoint  Endpoint
	Kind      WindowKind
	Limit     int // 0 when X did not say
	Remaining int
	// Reset is when the window opens again by this machine's clock, in whole
	// seconds and rounded up: X's time, corrected by its Date header.
	Reset time.Time
	// XReset is the reset by X's clock, in epoch seconds. It tells a window from the
	// next one: the corrected time differs a little from answer to answer.
	XReset int64
	// Estimated tells that X did not say: Limit is the one that it documents, and
	// the calls were counted by us.
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

// RateLimit returns the window that governs e: of the exhausted ones the one with
// the latest reset, else the one with the fewest calls left. A window past its
// reset counts only where no other is known. It is false before the first answer.
func (c *Client) RateLimit(e Endpoint) (Window, bool) {
	return governing(c.limits.of(c.account, e), time.Now())
}

// RateLimits returns every known window, ordered by endpoint and kind.
func (c *Client) RateLimits() []Window {
	all := c.limits.of(c.account, "")
	slices.SortFunc(all, func(a, b Window) int {
		return strings.Compare(string(a.Endpoint)+" "+string(a.Kind), string(b.Endpoint)+" "+string(b.Kind))
	})
	return all
}

// RateShort returns the window of e in which fewer calls are left than are needed, or
// than it ever takes: of several the one with the latest reset.
func (c *Client) RateShort(e Endpoint, need int) (short Window, is bool) {
	now := time.Now()
	for _, w := range c.limits.of(c.account, e) {
		wanted := need
		if w.Limit > 0 {
			wanted = min(need, w.Limit)
		}
		if now.Before(w.Reset) && w.Remaining < wanted && (!is || w.Reset.After(short.Reset)) {
			short, is = w, true
		}
	}
	return short, is
}

// RateLimited reports whether a window of e is exhausted, and until when.
func (c *Client) RateLimited(e Endpoint) (until time.Time, limited bool) {
	now := time.Now()
	w, ok := governing(c.limits.of(c.account, e), now)
	if !ok || !w.Exhausted(now) {
		return time.Time{}, false
	}
	return w.Reset, true
}

func governing(windows []Window, now time.Time) (best Window, ok bool) {
	for _, w := range windows {
		if !ok || governs(w, best, now) {
			best, ok = w, true
		}
	}
	return best, ok
}

// governs reports whether a limits more than b does.
func governs(a, b Window, now time.Time) bool {
	if x, y := a.Exhausted(now), b.Exhausted(now); x || y {
		return x && (!y || a.Reset.After(b.Reset))
	}
	if x, y := now.Before(a.Reset), now.Before(b.Reset); x != y {
		return x
	}
	return a.Remaining < b.Remaining
}

type windowKey struct {
	account  string
	endpoint Endpoint
	kind     WindowKind
}

func (w Window) key() windowKey { return windowKey{w.Account, w.Endpoint, w.Kind} }

// Limits is what is known of X's rate windows, of one app with all its accounts.
// The clients of a process share one (WithLimits), so that what X tells one account
// of the app's own windows holds for the others.
type Limits struct {
	changed func(Window)

	mu      sync.Mutex
	windows map[windowKey]Window
}

// NewLimits makes one that knows nothing yet. Where changed is not nil, it is told
// of each window that an answer of X has changed, and must return at once.
func NewLimits(changed func(Window)) *Limits {
	return &Limits{changed: changed, windows: make(map[windowKey]Window)}
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
	return slices.Collect(maps.Values(l.windows))
}

// of returns the windows that count the account's calls to e, or to any for "".
func (l *Limits) of(account string, e Endpoint) []Window {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Window
	for key, w := range l.windows {
		if (e == "" || key.endpoint == e) && (key.account == account || key.account == "") {
			out = append(out, w)
		}
	}
	return out
}

// documented are X's limits of calls an account may make in 15 minutes, which are
// counted where an answer has no headers.
var documented = map[Endpoint]int{
	EndpointCreatePost:      100,
	EndpointUploadMedia:     500,
	EndpointInitializeMedia: 1875,
	EndpointAppendMedia:     1875,
	EndpointFinalizeMedia:   1875,
	EndpointMediaStatus:     1000,
	EndpointMediaMetadata:   500,
	EndpointMe:              75,
	EndpointUserPosts:       900,
}

// estimate counts one more call in a window that X does not tell of.
func (l *Limits) estimate(account string, e Endpoint, now time.Time) (Window, bool) {
	limit, known := documented[e]
	if !known {
		return Window{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.windows[windowKey{account, e, Window15Min}]
	if !now.Before(w.Reset) {
		reset := ceilSecond(now.Add(fallbackClosed))
		w = Window{Endpoint: e, Kind: Window15Min, Limit: limit, Remaining: limit, Reset: reset, XReset: reset.Unix(), Estimated: true}
	}
	w.Remaining = max(w.Remaining-1, 0)
	return w, true
}

// note takes what an answer said. Where it did not say anything of the account's
// window, the call is counted.
func (l *Limits) note(account string, e Endpoint, windows []Window, now time.Time) {
	said := func(w Window) bool { return w.Kind == Window15Min }
	if !slices.ContainsFunc(windows, said) {
		if w, ok := l.estimate(account, e, now); ok {
			windows = append(windows, w)
		}
	}
	for _, w := range windows {
		w = w.of(account)
		l.mu.Lock()
		changed := l.merge(w, now)
		w = l.windows[w.key()]
		l.mu.Unlock()
		if changed && l.changed != nil {
			l.changed(w)
		}
	}
}

// merge tells whether it knew less before. Answers may arrive out of order: a later
// reset belongs to a newer window, and within one window calls only get fewer.
func (l *Limits) merge(w Window, now time.Time) bool {
	old, known := l.windows[w.key()]
	switch {
	case !known, w.XReset > old.XReset, !now.Before(old.Reset) && now.Before(w.Reset):
		l.windows[w.key()] = w
		return true
	case old.Estimated && !w.Estimated:
		l.windows[w.key()] = w
		return true
	case w.XReset != old.XReset:
		return false
	}
	next := old
	next.Remaining = min(old.Remaining, w.Remaining)
	if old.Remaining > 0 && w.Reset.Sub(old.Reset).Abs() > resetJitter {
		next.Reset = w.Reset
	}
	l.windows[w.key()] = next
	return next != old
}

// close notes a window that a 429 proved closed, and returns it. It replaces what was
// known, since the refusal is stronger than any count.
func (l *Limits) close(account string, w Window) Window {
	w = w.of(account)
	l.mu.Lock()
	w.XReset = max(w.XReset, l.windows[w.key()].XReset)
	l.windows[w.key()] = w
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
		out = append(out, Window{Endpoint: e, Kind: f.kind, Limit: int(limit), Remaining: int(remaining), Reset: at, XReset: reset})
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
		if i == 0 || governs(w, best, ans.at) && w.Exhausted(ans.at) {
			best = w
		}
	}
	retryAt := retryAfter(ans)
	switch {
	case best.Exhausted(ans.at) && retryAt.Before(best.Reset):
		// The window's own reset stands.
	case !retryAt.IsZero():
		best.Reset = retryAt
	case !best.Reset.After(ans.at):
		best.Reset = ceilSecond(ans.at.Add(fallbackClosed))
	}
	best.Remaining = 0
	best.XReset = best.Reset.Add(-skew(ans)).Unix()
	return best
}

// retryAfter returns the local time of a Retry-After header, in seconds or as a
// date, and the zero time where there is none that makes sense.
func retryAfter(ans answer) time.Time {
	var at time.Time
	if secs, ok := headerInt(ans.header, "Retry-After"); ok && secs <= int64(maxClosed/time.Second) {
		at = ceilSecond(ans.at.Add(time.Duration(secs) * time.Second))
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
	return ceilSecond(time.Unix(epoch, 0).Add(skew(ans)))
}

// skew is our clock minus X's, or zero where the answer has no date.
func skew(ans answer) time.Duration {
	date, err := http.ParseTime(ans.header.Get("Date"))
	if err != nil {
		return 0
	}
	return ans.at.Round(0).Sub(date)
}

func ceilSecond(t time.Time) time.Time {
	if whole := t.Round(0).Truncate(time.Second); !whole.Equal(t) {
		return whole.Add(time.Second)
	}
	return t.Round(0)
}

// headerInt reads a header that must be a number of at most 12 digits.
func headerInt(h http.Header, name string) (int64, bool) {
	v := strings.TrimSpace(h.Get(name))
	n, err := strconv.ParseInt(v, 10, 64)
	return n, err == nil && n >= 0 && len(v) <= 12
}
