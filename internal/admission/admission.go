// Package admission decides whether a call to X may be made. It holds all the conditions
// and the order in which they are checked.
//
//	condition                                        checked by
//	is the worker asked to stop? ................... Ask, Permit
//	has the disk room for the results? ............. Ask, Permit
//	is the account paused? ......................... Open
//	does a posting limit hold the request? ......... Open
//	does a monthly limit hold it? .................. Open
//	is the app paused, and which lane probes
//	whether the pause is over? ..................... Open, Ask, Permit, Still
//	do X's windows have calls left, those in
//	flight not counted? ............................ Ask, Permit
//	are the remaining calls reserved for others? ... Permit
//	does X fail call after call? ................... Permit
//
// Ahead checks all of them, and admits only where none of them needs the ledger.
//
// The account's pause, the posting limits and the monthly limits concern a request as a whole, so they are
// checked before any work on it begins. The breaker is checked last, because it must be
// told how each call ended. While the breaker probes X, it admits a single call, and that
// call must not wait for any other condition.
//
// The renewal of tokens asks the [Gate] alone: an exchange has no window of X, no account's
// pause and no posting limit.
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
	// reserveAgain is how often a lane checks whether calls that other lanes reserved
	// are free again.
	reserveAgain = 50 * time.Millisecond
	// windowOpens is the wait for a window of which only the limit is known, while as
	// many calls are in flight.
	windowOpens = 5 * time.Second
)

// ErrLeaving reports that the worker begins nothing more: it is asked to stop, or its disk
// has no room to record the result of a call.
var ErrLeaving = errors.New("the worker begins nothing more")

// Room returns an error if the disk has no room to record the result of another call, and
// nil if it has. A nil Room always has room.
type Room func() error

// Err checks the room once.
func (r Room) Err() error {
	if r == nil {
		return nil
	}
	return r()
}

// WaitError reports that a call or a request has to wait, why, and until when. If
// Reason.Until is zero, the end is unknown or a person has to act.
type WaitError struct {
	Reason jetpost.Reason
	// CheckAt is when to check again, if that is not Reason.Until.
	CheckAt time.Time
}

func (e *WaitError) Error() string {
	return fmt.Sprintf("hold: %s: %s", e.Reason.Code, e.Reason.Detail)
}

// Wait returns a *WaitError.
func Wait(code jetpost.Code, until time.Time, detail string) error {
	return &WaitError{Reason: jetpost.Reason{Code: code, Detail: detail, Until: until}}
}

// Ledger holds the ledger calls that admission makes. They are retried until the ledger
// answers.
type Ledger interface {
	Reserve(ctx context.Context, lane store.Claim, r store.Reservation) (store.Reserved, error)
	Sent(ctx context.Context, account string, after time.Time, limit int) ([]time.Time, error)
	Spend(ctx context.Context, account string, e store.Expense) (store.Spent, error)
	NoteBilled(ctx context.Context, now time.Time) error
}

// Pass admits the calls of one claim of a lane. The lane and its uploads may use it at the
// same time.
type Pass struct {
	Gate          *Gate
	Windows       *Windows
	PostingLimits PostingLimits
	Budget        Budget
	OwnLimit      int64 // Budget.Account of an account that has one of its own
	Ledger        Ledger
	Lane          store.Claim
	// Stopping is closed once the worker is asked to stop.
	Stopping <-chan struct{}
	// Room is checked before each call: without room no answer could be stored.
	Room Room
	// CallTimeout bounds one call to X.
	CallTimeout time.Duration
	Log         *slog.Logger

	// probing is the time until which this lane may call during a pause, to probe whether
	// the pause is over. It is nil if the lane does not probe.
	probing atomic.Pointer[time.Time]
	// reserved is true while calls of the app's window are reserved for this lane.
	reserved bool

	mu     sync.Mutex
	flying map[xapi.Endpoint]int // calls without an answer yet
}

// Calls describes the calls that a caller wants to make.
type Calls struct {
	Endpoint xapi.Endpoint
	// N is how many calls X's windows must have left. A window whose limit is lower must
	// be full.
	N int
	// SetAside is how many calls of the app's window to reserve until GiveBack, once few
	// are left. 0 reserves none.
	SetAside int
}

// Permit allows one call to X.
type Permit struct {
	pass *Pass
	ctx  context.Context // for sharing what the answer says about X
	e    xapi.Endpoint
	done func(error) // nil if the breaker was not asked
	over bool
}

// Open checks the conditions that concern a request as a whole, before any work on it
// begins. If this lane probes an outage, Open first calls harmless, which makes a call
// that changes nothing at X: a post or a token exchange without an answer is in doubt. Any
// answer ends the outage, even that the token has expired.
func (p *Pass) Open(ctx context.Context, head *store.Record, pause store.Pause, harmless func(context.Context) error) error {
	now := time.Now()
	if pause.Active(now) {
		return &WaitError{Reason: pause.Reason, CheckAt: pause.NextProbeAt}
	}
	if err := p.postingLimit(ctx, head, now); err != nil {
		return err
	}
	if err := p.budget(ctx, head, now); err != nil {
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
	case errors.As(err, &wait), errors.Is(err, ErrLeaving): // no call was made, so the state of X is still unknown
		return err
	case xapi.IsOutage(err):
		return p.paused(ctx, time.Now())
	}
	return nil
}

// Ask returns an error if the calls must not be made now.
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

// Permit admits one call, or returns an error that says why not. The caller must report
// the result of the call with Done.
func (p *Pass) Permit(ctx context.Context, c Calls) (*Permit, error) {
	err := p.Ask(ctx, c)
	if err == nil && c.SetAside > 0 && !p.reserved {
		if err = p.reserve(ctx, c); err == nil {
			err = p.Ask(ctx, c) // the ledger may have taken long to answer
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

// Ahead admits the call that follows the lane's call in flight, whose answer has come but is
// not committed yet. It decides as Open and Permit do, but admits nothing where a condition
// depends on more than this worker knows, or where that answer may change it.
func (p *Pass) Ahead(ctx context.Context, pause store.Pause, c Calls) (*Permit, bool) {
	now := time.Now()
	limited := p.PostingLimits.countPosts() || p.monthly() != (Budget{})
	_, paused := p.Gate.Paused(TargetPublish, now)
	_, scarce := p.Windows.scarce(now)
	p.mu.Lock()
	_, short := p.short(c, now)
	p.mu.Unlock()
	if limited || pause.Active(now) || paused || scarce || short || p.reserved {
		return nil, false
	}
	c.SetAside = 0
	permit, err := p.Permit(ctx, c)
	return permit, err == nil
}

// goesOn reports whether the endpoint continues an upload. The breaker does not stop such
// calls, because the upload would have to start over.
func goesOn(e xapi.Endpoint) bool {
	return e == xapi.EndpointAppendMedia || e == xapi.EndpointFinalizeMedia
}

// Call makes one call if it is admitted.
func Call[T any](ctx context.Context, p *Pass, c Calls, call func() (T, error)) (out T, err error) {
	permit, err := p.Permit(ctx, c)
	if err != nil {
		return out, err
	}
	err = ErrNotCalled // reported if call panics
	defer func() { permit.Done(err) }()
	out, err = call()
	return out, err
}

// Still checks again that the app is not paused, right before a call whose intent was
// committed. Another worker may have paused the app during the commit.
func (m *Permit) Still() error { return m.pass.paused(m.ctx, time.Now()) }

// Done reports how the call ended, with ErrNotCalled if it was not made. Only the first
// report counts.
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

// paused returns an error if the app must not call X now. If a probe of the pause is due,
// one lane of all workers may call.
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

// probes reports whether this lane probes the pause.
func (p *Pass) probes(pause publishers.Pause, now time.Time) bool {
	until := p.probing.Load()
	return pause.Probed() && pause.Worker == p.Gate.worker && until != nil && now.Before(*until)
}

// Pause pauses the app. It returns why and for how long the request waits that caused the
// pause.
func (p *Pass) Pause(ctx context.Context, reason jetpost.Reason) *WaitError {
	now := time.Now()
	if reason.Code == jetpost.CodeCreditsDepleted {
		p.billed(ctx, now)
	}
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

// heard evaluates the result of a call for all workers: X may be down, the pause that this
// lane probes may be over, or the app's window may be used up. Any answer ends an outage. A
// pause that X imposed on the app ends only with a post that X accepts or refuses for its
// content, or with a post that X deletes.
func (p *Pass) heard(ctx context.Context, e xapi.Endpoint, err error) {
	now := time.Now()
	pause, paused := p.Gate.Paused(TargetPublish, now)
	probes := paused && p.probes(pause, now)
	reason, out := p.Gate.Outage()
	var refused *xapi.RefusedError
	switch {
	case xapi.IsOutage(err):
		if out || probes && pause.Reason.Code == jetpost.CodeXOutage {
			p.probing.Store(nil) // even if NATS cannot store the result of the probe
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
		if short && usedUpByApp(w, now) { // so that other lanes do not run into a 429
			p.pauseAll(ctx, windowReason(Calls{Endpoint: e, N: 1}, w, now), now)
		}
	}
}

// Need is how many calls X's windows must have left for a request with the given number of
// posts, of which some are live. A thread begins only if the windows have room for all of
// it, or are full. Once it has begun, each post needs one call.
func Need(posts, live int) int {
	if live > 0 {
		return 1
	}
	return posts
}

// cause is why a call failed, in the words of X or of the network error.
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

// short returns the window that has too few calls left, not counting those in flight. If
// there are several, it returns the one that resets last.
func (p *Pass) short(c Calls, now time.Time) (found xapi.Window, is bool) {
	for _, w := range p.Windows.Counting(p.Lane.Account, c.Endpoint) {
		w.Remaining -= p.flying[c.Endpoint]
		if !now.Before(w.Reset) { // only the limit of the next window is known
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

// take counts a call as in flight.
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

// land ends a call that take counted.
func (p *Pass) land(e xapi.Endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flying[e]--
}

// wait returns how long the calls wait for a window that is short. If it is the app's
// window of posts and used up, the app is paused.
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

// reserve reserves calls of the app's window once few are left: all lanes together must not
// begin more posts than the window has left.
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

// GiveBack releases the reserved calls that were not used.
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

// waitForEnd is the wait of a request for the end of a pause, with that end if it is known.
// CheckAt is early enough to notice a pause that was ended early.
func waitForEnd(pause publishers.Pause, now time.Time) *WaitError {
	wait := &WaitError{Reason: jetpost.Reason{Code: jetpost.CodeAppPaused, Detail: PauseDetail(pause), Until: pause.Reason.Until}}
	wait.CheckAt = now.Add(UndatedPause)
	switch next := pause.NextAt(); {
	case next.IsZero():
	case !next.After(now): // a probe is due, but no lane could take it
		wait.CheckAt = now.Add(probeWait)
	case next.Before(wait.CheckAt):
		wait.CheckAt = next
	}
	return wait
}

// PauseDetail says why the app is paused.
func PauseDetail(pause publishers.Pause) string {
	if pause.Reason.Detail == "" {
		return string(pause.Reason.Code)
	}
	return string(pause.Reason.Code) + ": " + pause.Reason.Detail
}
