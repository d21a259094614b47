// Package admission is the one place that knows what can keep a call from X, and in
// which order that is asked.
//
//	what is asked                              asked by
//	is the worker to stop? ................... Ask, Permit
//	has its disk room for what comes of it? .. Ask, Permit
//	is the account paused? ................... Open
//	does a posting limit of the operator hold it? ..... Open
//	is the app stopped, and who finds out
//	whether that is over? .................... Open, Ask, Permit, Still
//	do X's windows have calls left, those in
//	flight not counted? ...................... Ask, Permit
//	are they set aside for others? ........... Permit
//	does X fail call after call? ............. Permit
//
// The pause and the posting limit concern a request as a whole, before anything is done for it.
// The breaker is last, since it alone has to be told how a call ended: while X is found
// out about it lets one call through, which must not wait for anything else.
package admission

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// reserveAgain is how often a lane looks whether calls that others had set aside
	// are free.
	reserveAgain = 50 * time.Millisecond
	// windowOpens is the wait for a window of which nothing is known but its size, all
	// of which is in flight.
	windowOpens = 5 * time.Second
)

// ErrLeaving says that the worker is asked to stop, or has no room to write down what
// comes of a call, and begins nothing more.
var ErrLeaving = errors.New("the worker begins nothing more")

// Room tells why nothing may be begun that has to be written down, in an error, or nil
// where there is room enough. A nil Room has enough.
type Room func() error

// Err looks once.
func (r Room) Err() error {
	if r == nil {
		return nil
	}
	return r()
}

// WaitError says that something must not be done now: until when and why. Without an
// Until nobody knows the end, or it waits for somebody to act.
type WaitError struct {
	Reason jetpost.Reason
	// CheckAt is when to look again, where that is not the end.
	CheckAt time.Time
}

func (e *WaitError) Error() string {
	return fmt.Sprintf("hold: %s: %s", e.Reason.Code, e.Reason.Detail)
}

// Wait makes a *WaitError.
func Wait(code jetpost.Code, until time.Time, detail string) error {
	return &WaitError{Reason: jetpost.Reason{Code: code, Detail: detail, Until: until}}
}

// Ledger is the ledger's part in admission. It answers, however long that takes.
type Ledger interface {
	Reserve(ctx context.Context, lane store.Claim, r store.Reservation) (store.Reserved, error)
	Sent(ctx context.Context, account string, after time.Time, limit int) ([]time.Time, error)
}

// Pass admits the calls that are made in one claim of a lane. Its uploads may ask
// beside the lane.
type Pass struct {
	Gate          *Gate
	Windows       *Windows
	PostingLimits PostingLimits
	Ledger        Ledger
	Lane          store.Claim
	// Stopping is closed once the worker is asked to stop.
	Stopping <-chan struct{}
	// Room is looked at before each call: without it no answer could be kept.
	Room Room
	// CallTimeout bounds one call to X.
	CallTimeout time.Duration
	Log         *slog.Logger

	// probing is until when this lane may call in spite of a stop, to find out whether it
	// is over; nil for not at all.
	probing atomic.Pointer[time.Time]
	// reserved tells that calls of the app's window are set aside.
	reserved bool

	mu     sync.Mutex
	flying map[xapi.Endpoint]int // calls without an answer yet
}

// Calls are what is asked for.
type Calls struct {
	Endpoint xapi.Endpoint
	// N is how many calls X's windows must have left, or as many as they ever take.
	N int
	// SetAside is how many of the app's window are to be set aside, near its end, until
	// GiveBack; 0 asks for none.
	SetAside int
}

// Permit lets one call to X be made.
type Permit struct {
	pass *Pass
	ctx  context.Context // of what the answer says to the others
	e    xapi.Endpoint
	done func(error) // nil where the breaker was not asked
	over bool
}

// Open asks what concerns a request as a whole, before anything is done for it. Where an
// outage is to be found out about, harmless is called first, which asks X for something
// that changes nothing: a post or a token exchange that X does not answer would be in
// doubt. Any answer will do, even that the token has ended.
func (p *Pass) Open(ctx context.Context, head *store.Record, pause store.Pause, harmless func(context.Context) error) error {
	now := time.Now()
	if pause.Active(now) {
		return &WaitError{Reason: pause.Reason, CheckAt: pause.NextProbeAt}
	}
	if err := p.postingLimit(ctx, head, now); err != nil {
		return err
	}
	if err := p.paused(ctx, now); err != nil {
		return err
	}
	if pause, paused := p.Gate.Paused(TargetPublish, now); !paused || pause.Reason.Code != jetpost.CodeXOutage || !p.probes(pause, now) {
		return nil
	}
	err := harmless(ctx)
	var wait *WaitError
	switch {
	case errors.As(err, &wait), errors.Is(err, ErrLeaving): // X was not asked, so nothing is known yet
		return err
	case xapi.IsOutage(err):
		return p.paused(ctx, time.Now())
	}
	return nil
}

// Ask tells why such calls must not be made now, if they must not.
func (p *Pass) Ask(ctx context.Context, c Calls) error {
	select {
	case <-p.Stopping:
		return ErrLeaving
	default:
	}
	if p.Room.Err() != nil {
		return ErrLeaving
	}
	now := time.Now()
	if err := p.paused(ctx, now); err != nil {
		return err
	}
	p.mu.Lock()
	w, short := p.short(c, now)
	p.mu.Unlock()
	if short {
		return p.wait(ctx, c, w, now)
	}
	return nil
}

// Permit lets one call be made, or tells why not. The caller tells its Done how the call
// ended.
func (p *Pass) Permit(ctx context.Context, c Calls) (*Permit, error) {
	err := p.Ask(ctx, c)
	if err == nil && c.SetAside > 0 && !p.reserved {
		if err = p.reserve(ctx, c); err == nil {
			err = p.Ask(ctx, c) // the ledger may have been away for long
		}
	}
	if err == nil {
		err = p.take(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	done, err := p.Gate.Allow(time.Now())
	if err != nil && !goesOn(c.Endpoint) {
		p.land(c.Endpoint)
		return nil, err
	}
	return &Permit{pass: p, ctx: ctx, e: c.Endpoint, done: done}, nil
}

// goesOn tells the calls of an upload under way, which would have to begin anew: an open
// breaker does not keep them.
func goesOn(e xapi.Endpoint) bool {
	return e == xapi.EndpointAppendMedia || e == xapi.EndpointFinalizeMedia
}

// Call makes one call, if it is admitted.
func Call[T any](ctx context.Context, p *Pass, c Calls, call func() (T, error)) (out T, err error) {
	permit, err := p.Permit(ctx, c)
	if err != nil {
		return out, err
	}
	err = ErrNotCalled // said of a panic
	defer func() { permit.Done(err) }()
	out, err = call()
	return out, err
}

// Still is the second look, right before a call whose intent was committed: that may have
// taken longer than others needed to stop the app.
func (m *Permit) Still() error { return m.pass.paused(m.ctx, time.Now()) }

// Done tells how the call ended, ErrNotCalled where it was not made. The first word counts.
func (m *Permit) Done(err error) {
	if m.over {
		return
	}
	m.over = true
	m.pass.land(m.e)
	if m.done == nil {
		return
	}
	m.done(err)
	m.pass.heard(m.ctx, m.e, err)
}

// stopped tells whether the app must not call X now. Where it is time to find out whether
// a stop is over, one lane of all may call.
func (p *Pass) paused(ctx context.Context, now time.Time) error {
	pause, paused := p.Gate.Paused(TargetPublish, now)
	if paused && pause.Due(now) {
		if within := 2 * p.CallTimeout; p.Gate.Probe(ctx, pause, within, now) {
			until := now.Add(within)
			p.probing.Store(&until)
			p.Log.Info("app.probed", "code", pause.Reason.Code, "since", pause.Since)
		}
		pause, paused = p.Gate.Paused(TargetPublish, now)
	}
	if !paused || p.probes(pause, now) {
		return nil
	}
	return waitForEnd(pause, now)
}

// probes tells whether this lane finds out whether a stop is over.
func (p *Pass) probes(pause publishers.Pause, now time.Time) bool {
	until := p.probing.Load()
	return pause.Probed() && pause.Worker == p.Gate.worker && until != nil && now.Before(*until)
}

// Pause stops the app, and returns why and for how long a request waits that has met it.
func (p *Pass) Pause(ctx context.Context, reason jetpost.Reason) *WaitError {
	now := time.Now()
	p.pauseAll(ctx, reason, now)
	pause, paused := p.Gate.Paused(TargetPublish, now)
	if !paused {
		pause = publishers.Pause{Reason: reason}
	}
	return waitForEnd(pause, now)
}

func (p *Pass) pauseAll(ctx context.Context, reason jetpost.Reason, now time.Time) {
	if err := p.Gate.Pause(ctx, TargetPublish, reason, now); err != nil {
		p.Log.Error("app.pause_not_shared", "error", err)
	}
}

// heard makes of what came of a call what it says of X as a whole: that it fails, that a
// stop which was probed is over, or that the app's window is used up. Of an outage each
// answer tells that it is over; of what X refuses the app, only a post that it takes, or
// refuses for what that says, and one that it deletes.
func (p *Pass) heard(ctx context.Context, e xapi.Endpoint, err error) {
	now := time.Now()
	pause, paused := p.Gate.Paused(TargetPublish, now)
	probes := paused && p.probes(pause, now)
	reason, out := p.Gate.Outage()
	var refused *xapi.RefusedError
	switch {
	case xapi.IsOutage(err):
		if out || probes && pause.Reason.Code == jetpost.CodeXOutage {
			p.probing.Store(nil) // though NATS may not be told what the probe has brought
			reason.Detail += ", last: " + cause(err)
			p.pauseAll(ctx, reason, now)
		}
	case !probes || saysNothing(err):
	case pause.Reason.Code == jetpost.CodeXOutage, e == xapi.EndpointCreatePost && (err == nil || errors.As(err, &refused)), e == xapi.EndpointDeletePost && err == nil:
		p.probing.Store(nil)
		if err := p.Gate.End(ctx, pause); err != nil {
			p.Log.Error("app.resume_not_shared", "error", err)
		}
	}
	if err == nil && e == xapi.EndpointCreatePost {
		p.mu.Lock()
		w, short := p.short(Calls{Endpoint: e, N: 1}, now)
		p.mu.Unlock()
		if short && usedUpByApp(w, now) { // the others must not find out by a 429
			p.pauseAll(ctx, windowReason(Calls{Endpoint: e, N: 1}, w, now), now)
		}
	}
}

// Need is how many calls X's windows must have left for a request with so many posts, of
// which some are live: a thread is begun only where all of it goes out, or as much as a
// window ever takes; once it is begun it goes on.
func Need(posts, live int) int {
	if live > 0 {
		return 1
	}
	return posts
}

// cause is why a call failed, in X's own words or the network's.
func cause(err error) string {
	var answer *xapi.APIError
	var notSent *xapi.NotSentError
	var lost *xapi.AmbiguousError
	switch {
	case errors.As(err, &answer):
		return cmp.Or(answer.Words(), answer.Error())
	case errors.As(err, &notSent):
		return notSent.Err.Error()
	case errors.As(err, &lost):
		return lost.Err.Error()
	}
	return err.Error()
}

// short returns the window that has too few calls left, those in flight not counted; of
// several the one that lasts longest.
func (p *Pass) short(c Calls, now time.Time) (found xapi.Window, is bool) {
	for _, w := range p.Windows.Counting(p.Lane.Account, c.Endpoint) {
		w.Remaining -= p.flying[c.Endpoint]
		if !now.Before(w.Reset) { // nothing is known of the next one but its size
			w.Remaining, w.Reset = w.Limit-p.flying[c.Endpoint], now.Add(windowOpens)
			if w.Limit == 0 {
				continue
			}
		}
		if w.Short(c.N, now) && (!is || w.Reset.After(found.Reset)) {
			found, is = w, true
		}
	}
	return found, is
}

// take counts a call that is about to be made.
func (p *Pass) take(ctx context.Context, c Calls) error {
	now := time.Now()
	p.mu.Lock()
	w, short := p.short(c, now)
	if !short {
		if p.flying == nil {
			p.flying = map[xapi.Endpoint]int{}
		}
		p.flying[c.Endpoint]++
	}
	p.mu.Unlock()
	if short {
		return p.wait(ctx, c, w, now)
	}
	return nil
}

// land counts a call that is over.
func (p *Pass) land(e xapi.Endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flying[e]--
}

// wait says how long a window that is short is waited for. Where it is the app's, of
// posts, and used up, that stops all.
func (p *Pass) wait(ctx context.Context, c Calls, w xapi.Window, now time.Time) error {
	reason := windowReason(c, w, now)
	if usedUpByApp(w, now) {
		return p.Pause(ctx, reason)
	}
	return &WaitError{Reason: reason}
}

func usedUpByApp(w xapi.Window, now time.Time) bool {
	return w.Endpoint == xapi.EndpointCreatePost && w.Scope() == xapi.ScopeApp && w.Exhausted(now)
}

// windowReason is why calls wait for a window's reset.
func windowReason(c Calls, w xapi.Window, now time.Time) jetpost.Reason {
	reason := jetpost.Reason{Code: jetpost.CodeRateLimited, Until: w.Reset}
	if usedUpByApp(w, now) {
		reason.Code = jetpost.CodeAppRateLimited
	}
	what := "calls"
	if c.Endpoint == xapi.EndpointCreatePost {
		what = "posts"
	}
	switch {
	case w.Exhausted(now):
		reason.Detail = fmt.Sprintf("%d %s in a window of %s are used up", w.Limit, what, w.Kind)
	default:
		reason.Detail = fmt.Sprintf("%d of %d %s are left in a window of %s", w.Remaining, w.Limit, what, w.Kind)
	}
	switch {
	case c.Endpoint != xapi.EndpointCreatePost && c.N > 1:
		reason.Detail += fmt.Sprintf(", and %d are needed: %s", c.N, c.Endpoint)
	case c.Endpoint != xapi.EndpointCreatePost:
		reason.Detail += ": " + string(c.Endpoint)
	case c.N > 1 && !w.Exhausted(now):
		reason.Detail += fmt.Sprintf(", and the thread has %d", c.N)
	}
	return reason
}

// reserve sets aside what is needed of the app's window, where that comes to its end: all
// lanes together must not begin more than it has left.
func (p *Pass) reserve(ctx context.Context, c Calls) error {
	patience := time.Now().Add(p.CallTimeout)
	for {
		now := time.Now()
		w, scarce := p.Windows.scarce(now)
		if !scarce {
			return nil
		}
		need := min(c.SetAside, w.Limit)
		got, err := p.Ledger.Reserve(ctx, p.Lane, store.Reservation{
			Window: string(w.Endpoint), XReset: w.XReset, Left: w.Remaining, Need: need, Now: now,
		})
		if err != nil || got.Granted {
			p.reserved = err == nil
			return err
		}
		if now.Before(w.Reset) {
			w.Remaining = got.Left
			p.Windows.Learn(w)
		}
		switch err := p.Ask(ctx, c); {
		case err != nil:
			return err
		case got.Left < need:
			until := now.Add(probeWait)
			if w.Reset.After(until) {
				until = w.Reset
			}
			return Wait(jetpost.CodeRateLimited, until, fmt.Sprintf(
				"%d of %d posts are left in the app's window, and %d are needed", got.Left, w.Limit, need))
		case now.After(patience):
			return Wait(jetpost.CodeRateLimited, now.Add(probeWait), "what is left of the app's window is set aside for others")
		}
		again := time.NewTimer(reserveAgain) // calls are in flight
		select {
		case <-ctx.Done():
		case <-again.C:
		}
		again.Stop()
	}
}

// GiveBack gives back what was set aside and not used.
func (p *Pass) GiveBack(ctx context.Context) {
	if !p.reserved {
		return
	}
	p.reserved = false
	w, _ := p.Windows.scarce(time.Now())
	_, err := p.Ledger.Reserve(ctx, p.Lane, store.Reservation{
		Window: string(w.Endpoint), XReset: w.XReset, Left: w.Remaining, Now: time.Now(),
	})
	if err != nil {
		p.Log.Debug("lane.reservation_kept", "error", err) // its lease ends it
	}
}

// waitForEnd is why a stop holds a request, with the stop's end where that is known. It is
// looked at again then, but soon enough to notice that somebody has ended it before.
func waitForEnd(pause publishers.Pause, now time.Time) *WaitError {
	wait := &WaitError{Reason: jetpost.Reason{Code: jetpost.CodeAppPaused, Detail: PauseDetail(pause), Until: pause.Reason.Until}}
	wait.CheckAt = now.Add(UndatedPause)
	switch next := pause.NextAt(); {
	case next.IsZero():
	case !next.After(now): // it is to be probed, but nobody can
		wait.CheckAt = now.Add(probeWait)
	case next.Before(wait.CheckAt):
		wait.CheckAt = next
	}
	return wait
}

// PauseDetail says what stopped the app.
func PauseDetail(pause publishers.Pause) string {
	if pause.Reason.Detail == "" {
		return string(pause.Reason.Code)
	}
	return string(pause.Reason.Code) + ": " + pause.Reason.Detail
}
