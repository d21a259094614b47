package admission

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// sharePart is the part of the app's window that may be used before the change is
	// shared with the other workers: a hundredth.
	sharePart = 100
	// Calls of the app's window are reserved before they are made once 1/scarcePart of
	// its limit or scarceCalls are left, whichever is more. scarceCalls is as many as all
	// workers may have in flight together.
	scarcePart  = 4
	scarceCalls = 1000
	// shareEvery is how often the app's windows are shared even if little of them was
	// used, so that status commands show them.
	shareEvery = 5 * time.Second
	// shareWithin bounds how long a lane is kept to share its windows.
	shareWithin = 2 * time.Second
)

// WindowStore stores windows for all workers.
type WindowStore interface {
	Put(ctx context.Context, account string, windows []publishers.Window) error
	Get(ctx context.Context, account string) ([]publishers.Window, error)
}

// Windows are X's rate windows, shared between all workers. One lane at a time uses the
// windows of an account. They are stored when the lane is released, or at once if no call
// is left, and they are read when another worker held the lane before. The windows of the
// app are stored as they are used, and all workers watch them.
type Windows struct {
	*xapi.Limits
	store WindowStore
	log   *slog.Logger
	wake  chan struct{}

	mu sync.Mutex
	// behind are the accounts, or "" for the app, whose windows have changed since they
	// were stored. due are those that have to be stored at once.
	behind, due map[string]bool
	// told holds the app's windows as they are stored.
	told map[xapi.Endpoint]xapi.Window
	// fences holds the fence of each account's lane when this worker last held it.
	fences map[string]int64
	// sharing holds the accounts whose windows are being stored. Each channel is closed
	// when that ends.
	sharing map[string]chan struct{}
}

// NewWindows returns windows that are shared through the store.
func NewWindows(windows WindowStore, log *slog.Logger) *Windows {
	s := &Windows{
		store: windows, log: log, wake: make(chan struct{}, 1),
		behind: map[string]bool{}, due: map[string]bool{}, told: map[xapi.Endpoint]xapi.Window{}, fences: map[string]int64{},
		sharing: map[string]chan struct{}{},
	}
	s.Limits = xapi.NewLimits(s.changed)
	return s
}

// changed notes that an answer of X has changed a window.
func (s *Windows) changed(w xapi.Window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behind[w.Account] = true
	if w.Remaining > 0 {
		if w.Account != "" {
			return // HandOver shares it
		}
		if told := s.told[w.Endpoint]; told.XReset == w.XReset && told.Remaining-w.Remaining < max(w.Limit/sharePart, 1) {
			return
		}
	}
	s.due[w.Account] = true
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Learned takes over windows from the store.
func (s *Windows) Learned(windows []publishers.Window) {
	for _, w := range windows {
		window := FromWire(w)
		if w.Account == "" {
			s.mu.Lock()
			s.told[window.Endpoint] = window
			s.mu.Unlock()
		}
		s.Learn(window)
	}
}

// Run shares windows that are due until the context ends.
func (s *Windows) Run(ctx context.Context) {
	every := time.NewTicker(shareEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			s.share(ctx, "")
		case <-s.wake:
		}
		s.mu.Lock()
		due := s.due
		s.due = map[string]bool{}
		s.mu.Unlock()
		for account := range due {
			s.share(ctx, account)
		}
	}
}

// Arrive reads the account's windows from the store if another worker has held the lane
// since this one.
func (s *Windows) Arrive(ctx context.Context, lane store.Claim) {
	s.mu.Lock()
	last, known := s.fences[lane.Account]
	s.fences[lane.Account] = lane.Fence
	s.mu.Unlock()
	if known && last == lane.Fence-1 {
		return
	}
	windows, err := s.store.Get(ctx, lane.Account)
	if err != nil { // the next answer of X corrects the windows
		s.log.Warn("windows.not_read", "account", lane.Account, "error", err)
		return
	}
	s.Learned(windows)
}

// HandOver shares the account's windows before another worker takes the lane.
func (s *Windows) HandOver(ctx context.Context, account string) {
	ctx, cancel := context.WithTimeout(ctx, shareWithin)
	defer cancel()
	s.share(ctx, account)
}

// share stores the account's windows if they have changed. If that fails, they are stored
// with the next change; until then the answers of X correct the other workers.
func (s *Windows) share(ctx context.Context, account string) {
	s.mu.Lock()
	for s.sharing[account] != nil { // so that the newest windows are stored last, before this returns
		other := s.sharing[account]
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
	}
	behind := s.behind[account]
	if !behind {
		s.mu.Unlock()
		return
	}
	delete(s.behind, account)
	told := make(chan struct{})
	s.sharing[account] = told
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.sharing, account)
		s.mu.Unlock()
		close(told)
	}()
	known := s.Of(account)
	windows := make([]publishers.Window, len(known))
	news := map[xapi.Endpoint]xapi.Window{}
	for i, w := range known {
		windows[i] = OnWire(w)
		news[w.Endpoint] = w
	}
	if err := s.store.Put(ctx, account, windows); err != nil {
		s.log.Warn("windows.not_shared", "account", account, "error", err)
		s.mu.Lock()
		s.behind[account] = true
		s.mu.Unlock()
		return
	}
	if account == "" {
		s.mu.Lock()
		maps.Copy(s.told, news)
		s.mu.Unlock()
	}
}

// scarce returns the app's window of posts, and whether its calls have to be reserved before
// they are made. If the window is over, it returns the next one, of which only the limit is
// known.
func (s *Windows) scarce(now time.Time) (w xapi.Window, is bool) {
	for _, w := range s.Of("") {
		if w.Endpoint != xapi.EndpointCreatePost || w.Limit == 0 {
			continue
		}
		if !now.Before(w.Reset) {
			w.Remaining, w.XReset = w.Limit, w.XReset+1
		}
		return w, w.Remaining <= max(w.Limit/scarcePart, scarceCalls)
	}
	return xapi.Window{}, false
}

// OnWire converts a window into the form that workers share.
func OnWire(w xapi.Window) publishers.Window {
	return publishers.Window{
		Account: w.Account, Endpoint: string(w.Endpoint), Kind: string(w.Kind), Limit: w.Limit,
		Remaining: w.Remaining, Reset: w.Reset, XReset: w.XReset, Length: w.Length, Estimated: w.Estimated,
	}
}

// FromWire converts a window that a worker has shared.
func FromWire(w publishers.Window) xapi.Window {
	return xapi.Window{
		Account: w.Account, Endpoint: xapi.Endpoint(w.Endpoint), Kind: xapi.WindowKind(w.Kind), Limit: w.Limit,
		Remaining: w.Remaining, Reset: w.Reset, XReset: w.XReset, Length: w.Length, Estimated: w.Estimated,
	}
}
