package consumers

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// sharePart is the part of a window's limit that may be used up before the other
	// workers hear of it: 1/20. Its end they hear of at once.
	sharePart = 20
	// nearEnd is the part, 1/10, of a window's limit below which every call counts.
	nearEnd = 10
	// shareWithin bounds how long a lane is kept for telling the next worker.
	shareWithin = 2 * time.Second
)

// windowBoard is where windows are kept for all workers.
type windowBoard interface {
	Put(ctx context.Context, w publishers.Window) error
}

// Windows are X's rate windows, as all workers know them. What an answer of X tells
// here is shared as soon as it matters elsewhere: when a window is new or used up,
// after each twentieth of it, and when a lane that is near a window's end is given
// away.
type Windows struct {
	*xapi.Limits
	board windowBoard
	log   *slog.Logger
	wake  chan struct{}

	mu sync.Mutex
	// told is what the others know, and behind what they do not know yet; due is the
	// part of it that they should.
	told, behind map[windowID]xapi.Window
	due          map[windowID]bool
}

type windowID struct {
	account  string
	endpoint xapi.Endpoint
	kind     xapi.WindowKind
}

func idOf(w xapi.Window) windowID { return windowID{w.Account, w.Endpoint, w.Kind} }

// NewWindows shares windows by the board.
func NewWindows(board windowBoard, log *slog.Logger) *Windows {
	s := &Windows{
		board: board, log: log, wake: make(chan struct{}, 1),
		told: map[windowID]xapi.Window{}, behind: map[windowID]xapi.Window{}, due: map[windowID]bool{},
	}
	s.Limits = xapi.NewLimits(s.changed)
	return s
}

// Learned takes a window from the board.
func (s *Windows) Learned(w publishers.Window) {
	window := xapi.Window{
		Account: w.Account, Endpoint: xapi.Endpoint(w.Endpoint), Kind: xapi.WindowKind(w.Kind), Limit: w.Limit,
		Remaining: w.Remaining, Reset: w.Reset, XReset: w.XReset, Estimated: w.Estimated,
	}
	s.mu.Lock()
	s.told[idOf(window)] = window
	s.mu.Unlock()
	s.Learn(window)
}

// changed notes what an answer of X has changed.
func (s *Windows) changed(w xapi.Window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := idOf(w)
	s.behind[id] = w
	told, known := s.told[id]
	if known && told.XReset == w.XReset && w.Remaining > 0 && told.Remaining-w.Remaining < max(w.Limit/sharePart, 1) {
		return
	}
	s.due[id] = true
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run shares what is due until the context ends.
func (s *Windows) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		s.share(ctx, func(id windowID, _ xapi.Window) bool { return s.due[id] })
	}
}

// Handover tells the others of the account's windows that are near their end, before
// one of them takes the lane.
func (s *Windows) Handover(ctx context.Context, account string) {
	ctx, cancel := context.WithTimeout(ctx, shareWithin)
	defer cancel()
	s.share(ctx, func(id windowID, w xapi.Window) bool { return id.account == account && w.Remaining < w.Limit/nearEnd })
}

// share tells the others of some windows. What cannot be told is told later, with
// the next change: a worker that does not know of it is corrected by X.
func (s *Windows) share(ctx context.Context, which func(windowID, xapi.Window) bool) {
	s.mu.Lock()
	var tell []xapi.Window
	for id, w := range s.behind {
		if which(id, w) {
			tell = append(tell, w)
			delete(s.behind, id)
			delete(s.due, id)
		}
	}
	s.mu.Unlock()
	for _, w := range tell {
		err := s.board.Put(ctx, publishers.Window{
			Account: w.Account, Endpoint: string(w.Endpoint), Kind: string(w.Kind), Limit: w.Limit,
			Remaining: w.Remaining, Reset: w.Reset, XReset: w.XReset, Estimated: w.Estimated,
		})
		if err != nil {
			s.log.Warn("window.not_shared", "account", w.Account, "endpoint", w.Endpoint, "window", w.Kind, "error", err)
			continue
		}
		s.mu.Lock()
		s.told[idOf(w)] = w
		s.mu.Unlock()
	}
}
