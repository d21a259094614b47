package xsim

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Scope says who shares a window, and which headers report it.
type Scope string

// The scopes. Their names fix the headers only: every length can be set.
const (
	// ScopeUser counts one account's calls: x-rate-limit-*.
	ScopeUser Scope = "user"
	// ScopeUser24h counts one account's calls over a day: x-user-limit-24hour-*.
	// X shows it on some accounts only, so no default has it.
	ScopeUser24h Scope = "user_24h"
	// ScopeApp24h counts all accounts' calls over a day: x-app-limit-24hour-*.
	ScopeApp24h Scope = "app_24h"
)

const (
	quarterMS = int64(15 * time.Minute / time.Millisecond)
	dayMS     = int64(24 * time.Hour / time.Millisecond)
)

// Limit is one rate window. In a list given to the server it takes the place of
// the default with the same endpoint and scope; a negative Max takes the window
// away. A window ends on the first whole second after WindowMS.
type Limit struct {
	Endpoint string `json:"endpoint"` // one of the Endpoint constants
	Scope    Scope  `json:"scope"`
	Max      int    `json:"max"`       // calls
	WindowMS int64  `json:"window_ms"` // milliseconds, 1 at least
}

// DefaultLimits are X's published numbers for calls with user tokens.
func DefaultLimits() []Limit {
	return []Limit{
		{EndpointCreatePost, ScopeUser, 100, quarterMS},
		{EndpointCreatePost, ScopeApp24h, 10_000, dayMS},
		{EndpointDeletePost, ScopeUser, 50, quarterMS},
		{EndpointPosts, ScopeUser, 5_000, quarterMS},
		{EndpointPost, ScopeUser, 900, quarterMS},
		{EndpointTimeline, ScopeUser, 900, quarterMS},
		{EndpointMe, ScopeUser, 75, quarterMS},
		{EndpointUser, ScopeUser, 900, quarterMS},
		{EndpointUserByName, ScopeUser, 900, quarterMS},
		{EndpointUpload, ScopeUser, 500, quarterMS},
		{EndpointUpload, ScopeApp24h, 50_000, dayMS},
		{EndpointInitialize, ScopeUser, 1_875, quarterMS},
		{EndpointInitialize, ScopeApp24h, 180_000, dayMS},
		{EndpointAppend, ScopeUser, 1_875, quarterMS},
		{EndpointAppend, ScopeApp24h, 180_000, dayMS},
		{EndpointFinalize, ScopeUser, 1_875, quarterMS},
		{EndpointFinalize, ScopeApp24h, 180_000, dayMS},
		{EndpointStatus, ScopeUser, 1_000, quarterMS},
		{EndpointStatus, ScopeApp24h, 100_000, dayMS},
		{EndpointMetadata, ScopeUser, 500, quarterMS},
		{EndpointMetadata, ScopeApp24h, 50_000, dayMS},
	}
}

// SetLimits lays the list over the defaults and starts every window anew.
// The error lists every mistake; then nothing has changed.
func (s *Server) SetLimits(limits []Limit) error {
	if err := validateLimits(limits); err != nil {
		return err
	}
	w := s.lock()
	defer s.unlock()
	w.limits = overlay(DefaultLimits(), limits)
	w.windows = map[windowKey]*window{}
	w.touch(&w.limits)
	return nil
}

func validateLimits(limits []Limit) error {
	var errs []error
	for i, l := range limits {
		switch {
		case !isEndpoint(l.Endpoint):
			errs = append(errs, fmt.Errorf("limit %d: unknown endpoint %q", i, l.Endpoint))
		case l.Scope != ScopeUser && l.Scope != ScopeUser24h && l.Scope != ScopeApp24h:
			errs = append(errs, fmt.Errorf("limit %d: unknown scope %q", i, l.Scope))
		case l.Max >= 0 && l.WindowMS < 1:
			errs = append(errs, fmt.Errorf("limit %d: window_ms is %d, want 1 at least", i, l.WindowMS))
		}
	}
	return errors.Join(errs...)
}

// LimitsInForce returns the defaults as changed by the field or SetLimits.
func (s *Server) LimitsInForce() []Limit {
	w := s.lock()
	defer s.unlock()
	return slices.Clone(w.limits)
}

// Window is a rate window that is open.
type Window struct {
	Limit
	Account string    `json:"account"` // the account's id, "" where all share it
	Used    int       `json:"used"`    // calls
	Ends    time.Time `json:"ends"`
}

// Windows returns the windows that are open, by endpoint.
func (s *Server) Windows() []Window {
	w := s.lock()
	defer s.unlock()
	list, now := []Window{}, s.now()
	for _, win := range w.windows {
		if now.Before(win.end) {
			list = append(list, Window{win.limit, win.key.account, win.used, win.end})
		}
	}
	slices.SortFunc(list, func(a, b Window) int {
		return cmp.Or(cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Account, b.Account), cmp.Compare(a.Scope, b.Scope))
	})
	return list
}

func overlay(base, over []Limit) []Limit {
	for _, l := range over {
		base = slices.DeleteFunc(base, func(b Limit) bool { return b.Endpoint == l.Endpoint && b.Scope == l.Scope })
		if l.Max >= 0 {
			base = append(base, l)
		}
	}
	return base
}

type windowKey struct {
	endpoint string
	scope    Scope
	account  string // "" where all accounts share it
}

// window counts the calls since the first one.
type window struct {
	limit Limit
	key   windowKey
	used  int
	end   time.Time
	told  time.Time // when an answer first said that nothing is left; zero if none has
}

func (w *window) closed() bool { return w.used >= w.limit.Max }

// tell records that the client has read that nothing is left.
func (w *window) tell(now time.Time) {
	if w.told.IsZero() {
		w.told = now
	}
}

// knew says whether a call that arrived then should have stayed at home. Calls
// of other accounts may cross the closing answer on the wire, so a window that all share
// forgives the very instant; an account's own calls follow one another.
func (w *window) knew(arrived time.Time, grace time.Duration) bool {
	if w.told.IsZero() {
		return false
	}
	from := w.told.Add(grace)
	return arrived.After(from) || arrived.Equal(from) && w.limit.Scope != ScopeApp24h
}

func (w *window) write(h http.Header) {
	prefix := "X-Rate-Limit-"
	switch w.limit.Scope {
	case ScopeUser24h:
		prefix = "X-User-Limit-24hour-"
	case ScopeApp24h:
		prefix = "X-App-Limit-24hour-"
	}
	h.Set(prefix+"Limit", strconv.Itoa(w.limit.Max))
	h.Set(prefix+"Remaining", strconv.Itoa(max(0, w.limit.Max-w.used)))
	h.Set(prefix+"Reset", strconv.FormatInt(w.end.Unix(), 10))
}

// admit counts the call in each of its windows. If one is exhausted, the call is
// counted in none, and a client that had learnt of that violates the rules.
func (s *Server) admit(c *call) bool {
	c.windows = s.w.windowsOf(c)
	open := true
	for _, win := range c.windows {
		if !win.closed() {
			continue
		}
		open = false
		if win.knew(c.arrived, s.ClosedWindowGrace) {
			s.violate(c, ViolationCallInClosedWindow, fmt.Sprintf("%s: the %s window of %d is closed until %s",
				c.endpoint, win.limit.Scope, win.limit.Max, win.end.UTC().Format(time.RFC3339)))
		}
	}
	if open {
		for _, win := range c.windows {
			win.used++
			s.w.touch(win)
		}
	}
	return open
}

// windowsOf returns the call's windows, opening those that have ended or never began.
func (w *world) windowsOf(c *call) []*window {
	var found []*window
	for _, l := range w.limits {
		if l.Endpoint != c.endpoint {
			continue
		}
		key := windowKey{l.Endpoint, l.Scope, c.account.ID}
		if l.Scope == ScopeApp24h {
			key.account = ""
		}
		win := w.windows[key]
		if win == nil || !c.now.Before(win.end) {
			end := c.now.Add(time.Duration(l.WindowMS) * time.Millisecond)
			if whole := end.Truncate(time.Second); whole.Before(end) {
				end = whole.Add(time.Second)
			}
			win = &window{limit: l, key: key, end: end}
			w.windows[key] = win
			w.touch(win)
		}
		found = append(found, win)
	}
	return found
}

// exhaust closes the account's own window, so that a 429 made by a fault is as
// true afterwards as one of X's.
func (c *call) exhaust() {
	for _, win := range c.windows {
		if win.limit.Scope == ScopeUser {
			win.used = win.limit.Max
		}
	}
}
