package xapi

import (
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
	Endpoint  Endpoint
	Kind      WindowKind
	Limit     int // 0 when X did not say
	Remaining int
	// Reset is when the window opens again by this machine's clock, in whole
	// seconds and rounded up: X's time, corrected by its Date header.
	Reset time.Time
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
	return governing(c.limits.of(e), time.Now())
}

// RateLimits returns every known window, ordered by endpoint and kind.
func (c *Client) RateLimits() []Window {
	all := c.limits.of("")
	slices.SortFunc(all, func(a, b Window) int {
		return strings.Compare(string(a.Endpoint)+" "+string(a.Kind), string(b.Endpoint)+" "+string(b.Kind))
	})
	return all
}

// RateLimited reports whether a window of e is exhausted, and until when.
func (c *Client) RateLimited(e Endpoint) (until time.Time, limited bool) {
	now := time.Now()
	w, ok := governing(c.limits.of(e), now)
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

// window is a Window with its reset by X's clock in epoch seconds. That number is
// the window's identity: the corrected time differs a little from answer to answer.
type window struct {
	Window
	xReset int64
}

type windowKey struct {
	endpoint Endpoint
	kind     WindowKind
}

// limits keeps the last known state of each window of one account.
type limits struct {
	mu      sync.Mutex
	windows map[windowKey]window
}

func newLimits() *limits { return &limits{windows: make(map[windowKey]window)} }

// of returns the windows of e, or all of them for "".
func (l *limits) of(e Endpoint) []Window {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Window
	for key, w := range l.windows {
		if e == "" || key.endpoint == e {
			out = append(out, w.Window)
		}
	}
	return out
}

// merge notes what an answer said. Answers may arrive out of order: a later reset
// belongs to a newer window, and within one window calls only get fewer.
func (l *limits) merge(windows []window, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range windows {
		key := windowKey{w.Endpoint, w.Kind}
		old, known := l.windows[key]
		switch {
		case !known, w.xReset > old.xReset, !now.Before(old.Reset) && now.Before(w.Reset):
			l.windows[key] = w
		case w.xReset == old.xReset:
			old.Remaining = min(old.Remaining, w.Remaining)
			if old.Remaining > 0 && w.Reset.Sub(old.Reset).Abs() > resetJitter {
				old.Reset = w.Reset
			}
			l.windows[key] = old
		}
	}
}

// close notes a window that a 429 proved closed. It replaces what was known, since
// the refusal is stronger than any count.
func (l *limits) close(w window) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := windowKey{w.Endpoint, w.Kind}
	w.xReset = max(w.xReset, l.windows[key].xReset)
	l.windows[key] = w
}

// readWindows reads every window that the answer's headers state in full.
func readWindows(e Endpoint, ans answer) []window {
	var out []window
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
		out = append(out, window{
			Window: Window{Endpoint: e, Kind: f.kind, Limit: int(limit), Remaining: int(remaining), Reset: at},
			xReset: reset,
		})
	}
	return out
}

// closeWindow returns the window that a 429 says is closed. X's headers may claim
// that calls are left, or be missing; the refusal counts all the same. Where no
// window is exhausted the 15-minute one takes the blame, so that an unexplained
// refusal never costs a day. Retry-After is not documented but honoured; without
// any time the window closes for fallbackClosed.
func closeWindow(e Endpoint, ans answer, windows []window) window {
	best := Window{Endpoint: e, Kind: Window15Min}
	for i, w := range windows {
		if i == 0 || governs(w.Window, best, ans.at) && w.Exhausted(ans.at) {
			best = w.Window
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
	return window{Window: best, xReset: best.Reset.Add(-skew(ans)).Unix()}
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
