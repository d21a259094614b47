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
	// sharePart is the part of an app's window that may be used up before the other
	// workers hear of it: a hundredth.
	sharePart = 100
	// scarcePart and scarceCalls tell when calls of an app's window are set aside
	// before they are made: once a quarter is left, or what workers may have in flight
	// together.
	scarcePart  = 4
	scarceCalls = 1000
	// shareEvery is how often the app's windows are told though little of them was used,
	// for people who look at them.
	shareEvery = 5 * time.Second
	// shareWithin bounds how long a lane is kept for telling the next worker.
	shareWithin = 2 * time.Second
)

// WindowStore is where windows are kept for all workers.
type WindowStore interface {
	Put(ctx context.Context, account string, windows []publishers.Window) error
	Get(ctx context.Context, account string) ([]publishers.Window, error)
}

// Windows are X's rate windows, as all workers know them. Those of an account are
// used by one lane at a time: they are told when it is given away and asked for when
// it was elsewhere before, and told at once where nothing is left. Those of the app
// are told as they are used, and watched by all.
type Windows struct {
	*xapi.Limits
	board WindowStore
	log   *slog.Logger
	wake  chan struct{}

	mu sync.Mutex
	// behind are the accounts, or "" for the app, of whose windows this worker knows
	// more than it has told; due are those that are to be told at once.
	behind, due map[string]bool
	// told is what the others know of the app's windows.
	told map[xapi.Endpoint]xapi.Window
	// fences are those of the lanes as this worker has held them last.
	fences map[string]int64
	// sharing are those that are being told, until the channel is closed.
	sharing map[string]chan struct{}
}

// NewWindows shares windows by the board.
func NewWindows(board WindowStore, log *slog.Logger) *Windows {
	s := &Windows{
		board: board, log: log, wake: make(chan struct{}, 1),
		behind: map[string]bool{}, due: map[string]bool{}, told: map[xapi.Endpoint]xapi.Window{}, fences: map[string]int64{},
		sharing: map[string]chan struct{}{},
	}
	s.Limits = xapi.NewLimits(s.changed)
	return s
}

// changed notes what an answer of X has changed.
func (s *Windows) changed(w xapi.Window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behind[w.Account] = true
	if w.Remaining > 0 {
		if w.Account != "" {
			return // its lane tells
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

// Learned takes windows from the board.
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

// Run shares what is due until the context ends.
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

// Arrive learns what other workers know of the account's windows, where one of them
// has had the lane since this one.
func (s *Windows) Arrive(ctx context.Context, lane store.Claim) {
	s.mu.Lock()
	last, known := s.fences[lane.Account]
	s.fences[lane.Account] = lane.Fence
	s.mu.Unlock()
	if known && last == lane.Fence-1 {
		return
	}
	windows, err := s.board.Get(ctx, lane.Account)
	if err != nil { // X corrects what this worker believes
		s.log.Warn("windows.not_read", "account", lane.Account, "error", err)
		return
	}
	s.Learned(windows)
}

// HandOver tells the others of the account's windows, before one of them takes the
// lane.
func (s *Windows) HandOver(ctx context.Context, account string) {
	ctx, cancel := context.WithTimeout(ctx, shareWithin)
	defer cancel()
	s.share(ctx, account)
}

// share tells what the others do not know. What cannot be told is told with the next
// change: a worker that does not know of it is corrected by X.
func (s *Windows) share(ctx context.Context, account string) {
	s.mu.Lock()
	for s.sharing[account] != nil { // what is told last is the newest, and told once this returns
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
	if err := s.board.Put(ctx, account, windows); err != nil {
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

// scarce is the app's window of posts where its calls must be set aside before they are
// made. One that is over stands for the next, of which nothing is known yet.
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

// OnWire is a window as workers tell it to each other.
func OnWire(w xapi.Window) publishers.Window {
	return publishers.Window{
		Account: w.Account, Endpoint: string(w.Endpoint), Kind: string(w.Kind), Limit: w.Limit,
		Remaining: w.Remaining, Reset: w.Reset, XReset: w.XReset, Length: w.Length, Estimated: w.Estimated,
	}
}

// FromWire is a window that another worker has told.
func FromWire(w publishers.Window) xapi.Window {
	return xapi.Window{
		Account: w.Account, Endpoint: xapi.Endpoint(w.Endpoint), Kind: xapi.WindowKind(w.Kind), Limit: w.Limit,
		Remaining: w.Remaining, Reset: w.Reset, XReset: w.XReset, Length: w.Length, Estimated: w.Estimated,
	}
}
