package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// poisonClaims is how many claims in a row may end by the worker's death
// before its head is taken to be the cause.
const poisonClaims = 5

// laneLedger is the ledger's part in running a lane.
type laneLedger interface {
	Accept(ctx context.Context, in store.Acceptance) (store.Decision, error)
	ClaimLane(ctx context.Context, account, worker string, lease time.Duration, now time.Time) (store.Lane, bool, error)
	ExtendLane(ctx context.Context, lane store.Lane, lease time.Duration, now time.Time) error
	ReleaseLane(ctx context.Context, lane store.Lane, rings int64, wakeAt, now time.Time) (bool, error)
	Look(ctx context.Context, lane store.Lane, now time.Time) (store.Look, error)
	Begin(ctx context.Context, lane store.Lane, id string, intent store.Intent) error
	Posted(ctx context.Context, lane store.Lane, id string, post int, postID string, now time.Time) (jetpost.State, error)
	Conclude(ctx context.Context, lane store.Lane, id string, out store.Outcome) error
	HoldLine(ctx context.Context, lane store.Lane, reason jetpost.Reason, rings int64, now time.Time) ([]store.Key, error)
	Witness(ctx context.Context, account string) (store.Witness, error)
	Owned(ctx context.Context, postIDs []string) ([]string, error)
	Uploaded(ctx context.Context, lane store.Lane, id string, post int, media []store.Media) error
	Reserve(ctx context.Context, lane store.Lane, r store.Reservation) (store.Reserved, error)
	Sent(ctx context.Context, account string, after time.Time, limit int) ([]time.Time, error)
}

// laneBells are the bells of a lane: one that rings now, one that wakes it.
type laneBells interface {
	ringer
	WakeAt(ctx context.Context, account string, at time.Time) error
}

// tokenSource is the one way to a token on the publish path.
type tokenSource interface {
	// Stored is the token as it is, even where it has ended.
	Stored(ctx context.Context, account string) (store.Token, error)
	EnsureFresh(ctx context.Context, account string, usedVersion int64) (store.Token, error)
}

// PublishHandler runs the lane of the account whose doorbell rang: it claims
// it, posts what is due, strictly in order, and frees it when nothing is left
// to do now. Whatever rang, the ledger alone says what is next.
type PublishHandler struct {
	Ledger   laneLedger
	Announce *Announcer
	Bells    laneBells
	Tokens   tokenSource
	Gate     *Gate
	Windows  *Windows
	Client   func(account, accessToken string) *xapi.Client
	Media    *MediaSource
	Rules    Rules
	Fuses    Fuses
	Health   *Health
	Clocks   *Clocks
	Names    jetpost.Names
	Timing   Timing
	Worker   string // names this worker in leases and logs
	Log      *slog.Logger
}

// Handle runs one lane. A lane that another worker holds is left alone: its
// holder sees the ring in the ledger and, should it die, the Sweeper does.
func (h *PublishHandler) Handle(ctx context.Context, d Delivery) Verdict {
	if err := h.Clocks.Err(); err != nil {
		return Stall(err)
	}
	account := d.Subject[strings.LastIndexByte(d.Subject, '.')+1:]
	lane, claimed, err := h.Ledger.ClaimLane(ctx, account, h.Worker, h.Timing.lease(), time.Now())
	switch {
	case errors.Is(err, store.ErrNotFound):
		h.Log.Warn("lane.unknown", "account", account)
		return Done()
	case err != nil:
		return Stall(err)
	case !claimed:
		return Done()
	}
	run := &laneRun{h: h, d: d, lane: lane, log: h.Log.With("account", account, "fence", lane.Fence), until: time.Now().Add(laneBudget), lost: make(chan struct{})}
	stop := run.keepLease(ctx)
	defer stop()
	h.Windows.arrive(ctx, lane)
	if err := run.run(ctx); err != nil {
		// Another worker has the lane: everything is in its hands.
		run.log.Warn("lane.lost", "error", err)
	}
	return Done()
}

// laneRun is one claim of a lane.
type laneRun struct {
	h     *PublishHandler
	d     Delivery
	lane  store.Lane
	log   *slog.Logger
	until time.Time     // end of this claim's budget
	lost  chan struct{} // closed once another worker is known to have the lane
	pause store.Pause   // as of the latest look
	// renewed tells that a 401 already made this run renew the token once.
	renewed bool
	// pass is until when this run may call in spite of a stop, to probe; nil for not
	// at all. Uploads look at it beside the lane.
	pass atomic.Pointer[time.Time]
	// filled is the request that this run has filled in (see read).
	filled string
}

// run takes head after head until there is none, the budget is used up or the
// worker stops. It returns an error only where the lane is no longer its own.
func (r *laneRun) run(ctx context.Context) error {
	for {
		now := time.Now()
		look, err := persist(ctx, r, "look", func() (store.Look, error) { return r.h.Ledger.Look(ctx, r.lane, now) })
		if err != nil {
			return err
		}
		r.pause = look.Pause
		head, wakeAt := runnable(look, now)
		if yield := r.d.stopping() || now.After(r.until); head == nil || yield {
			if head != nil {
				wakeAt = now
			}
			if err := r.holdLine(ctx, look, now); err != nil {
				return err
			}
			free, err := r.release(ctx, look, wakeAt, now)
			if err != nil || free {
				return err
			}
			continue // something rang meanwhile: look again
		}
		rings := look.Rings
		if err := r.settle(ctx, head, rings, r.advance(ctx, head)); err != nil {
			return err
		}
	}
}

// runnable picks what the lane may do now, or says when to look again; zero
// means when something rings. A head that waits holds back all behind it.
func runnable(look store.Look, now time.Time) (head *store.Record, wakeAt time.Time) {
	if look.Head == nil {
		return nil, look.NextDue
	}
	switch look.Head.Status.State {
	case jetpost.StateUnknown:
		return nil, time.Time{}
	case jetpost.StateHeld:
		if look.Head.HoldUntil.IsZero() || look.Head.HoldUntil.After(now) {
			return nil, look.Head.HoldUntil
		}
	}
	return look.Head, time.Time{}
}

// holdLine lets each request of an account that must be connected again say so:
// not only the head, for whoever waits for another one asks about that.
func (r *laneRun) holdLine(ctx context.Context, look store.Look, now time.Time) error {
	if look.Head == nil || look.Head.Status.State != jetpost.StateHeld || look.Head.Status.Reason.Code != jetpost.CodeAccountReauthRequired {
		return nil
	}
	for {
		held, err := persist(ctx, r, "hold line", func() ([]store.Key, error) {
			return r.h.Ledger.HoldLine(ctx, r.lane, *look.Head.Status.Reason, look.Rings, now)
		})
		if err != nil {
			return err
		}
		for _, key := range held {
			r.h.Announce.try(ctx, key)
		}
		if len(held) < store.MaxHoldLine {
			return nil
		}
	}
}

// release frees the lane. Its wake-up is set first, while nobody else may
// write it, so that the account's one schedule is never an older one's.
func (r *laneRun) release(ctx context.Context, look store.Look, wakeAt, now time.Time) (bool, error) {
	account := r.lane.Account
	r.h.Windows.handOver(ctx, account)
	if wakeAt.After(now) {
		if err := r.h.Bells.WakeAt(ctx, account, wakeAt); err != nil {
			r.log.Warn("lane.wake_delayed", "until", wakeAt, "error", err) // the sweeper rings instead
		}
	}
	free, err := persist(ctx, r, "release", func() (bool, error) {
		return r.h.Ledger.ReleaseLane(ctx, r.lane, look.Rings, wakeAt, now)
	})
	if err != nil || !free {
		return false, err
	}
	if !wakeAt.IsZero() && !wakeAt.After(now) {
		if err := r.h.Bells.Ring(ctx, account); err != nil {
			r.log.Warn("lane.ring_delayed", "error", err)
		}
	}
	return true, nil
}

// advance takes the head as far as it goes now.
func (r *laneRun) advance(ctx context.Context, head *store.Record) attempt {
	now := time.Now()
	if r.lane.LostClaims >= poisonClaims {
		r.lane.LostClaims = 0
		return r.settled(Hold(jetpost.CodePoison, time.Time{}, fmt.Sprintf("%d workers in a row died on it", poisonClaims)))
	}
	request, err := jetpost.Decode(head.Account, head.Body)
	var newer *jetpost.NewerVersionError
	switch {
	case errors.As(err, &newer):
		return r.settled(Hold(jetpost.CodeNeedsNewerWorker, now.Add(newerWorkerRetry), "the request's version is later than this worker's"))
	case err != nil:
		return r.settled(Failed(jetpost.CodeInvalidRequest, err.Error()))
	case len(head.Posts) == 0:
		return r.read(ctx, head, request)
	}
	from, parent, doubt := resume(head)
	switch {
	case doubt >= 0 && now.Before(r.lookFrom(head.Posts[doubt])):
		return r.doubtful(head, doubt, "the worker that sent it was lost")
	case doubt < 0 && parent == "" && expired(request, now):
		return r.settled(Failed(jetpost.CodeExpired, lateDetail))
	}
	if a, fused := r.fused(ctx, head, now); fused {
		return a
	}
	if v, stopped := r.stopped(ctx, now); stopped {
		return r.settled(v)
	}
	if v, fails := r.probe(ctx, head.Account); fails {
		return r.settled(v)
	}
	token, err := r.h.Tokens.EnsureFresh(ctx, head.Account, 0)
	if err != nil {
		return r.settled(judge(err, situation{now: time.Now(), holds: head.Holds}))
	}
	client := r.h.Client(head.Account, token.Access.Reveal())
	var a attempt
	if doubt >= 0 {
		a = r.reconcile(ctx, client, head, doubt, request.Posts[doubt])
	} else if v, ends := r.tooLong(ctx, client, request.Posts, from); ends {
		a = r.settled(v)
	} else {
		t := &threadRun{r: r, head: head, request: request, client: client, begun: -1}
		a = t.post(ctx, from, parent)
	}
	var unauthorized *xapi.UnauthorizedError
	if errors.As(a.err, &unauthorized) && !r.renewed {
		// The token may have been replaced, or revoked: it is renewed once, and
		// the head is taken again at once.
		r.renewed = true
		fresh, err := r.h.Tokens.EnsureFresh(ctx, head.Account, token.Version)
		switch {
		case err != nil:
			a.Verdict = judge(err, situation{now: time.Now(), holds: head.Holds})
		case fresh.Version != token.Version:
			a.Verdict = Hold(jetpost.CodeXUnavailable, time.Now(), "X refused the token; it was renewed")
		}
	}
	return a
}

// read fills in a request that an older worker has accepted without being able
// to read it; the lane then looks again.
func (r *laneRun) read(ctx context.Context, head *store.Record, request jetpost.Request) attempt {
	if err := r.h.Rules.Check(request); err != nil {
		return r.settled(Failed(jetpost.CodeInvalidRequest, err.Error()))
	}
	pins, err := r.h.Media.Pin(ctx, request)
	if err != nil {
		return r.settled(Hold(jetpost.CodeMediaUnavailable, time.Now().Add(backoff(head.Holds+1)), err.Error()))
	}
	in := r.h.Rules.acceptance(request, head.Body)
	in.Media = pins
	in.Request.ID = head.ID
	decision, err := persist(ctx, r, "read at last", func() (store.Decision, error) {
		in.Now = time.Now()
		return r.h.Ledger.Accept(ctx, in)
	})
	if err == nil && decision != store.Accepted && r.filled == head.ID {
		return r.settled(Failed(jetpost.CodeInvalidRequest, "the request has no posts"))
	}
	// A repeat may only mean that the answer to an earlier try was lost: the
	// next look tells.
	r.filled = head.ID
	return attempt{Verdict: Done(), post: -1, err: err}
}

// attempt is what came of advancing a head.
type attempt struct {
	Verdict
	post int // the post that it is about, whose intent was committed; else -1
	err  error
	// What is to be remembered of a doubtful post.
	looks    int
	absentAt time.Time
	// renewMedia tells that X did not take the ids of its media.
	renewMedia bool
}

func (r *laneRun) settled(v Verdict) attempt { return attempt{Verdict: v, post: -1} }

// resume finds the first post that is not proven posted, and what it replies to;
// or the one that is in doubt, else -1.
func resume(head *store.Record) (from int, parent string, doubt int) {
	for i, post := range head.Posts {
		switch post.State {
		case jetpost.PostPosted:
			parent = post.PostID
			from = i + 1
		case jetpost.PostSending:
			return 0, "", i
		}
	}
	return from, parent, -1
}

const lateDetail = "expires_at passed before the first post was begun"

func expired(request jetpost.Request, now time.Time) bool {
	return !request.ExpiresAt.IsZero() && !now.Before(request.ExpiresAt)
}

// settle writes what came of it: to the gate, to the ledger, to the world.
func (r *laneRun) settle(ctx context.Context, head *store.Record, rings int64, a attempt) error {
	if errors.Is(a.err, store.ErrFenced) {
		return a.err
	}
	now := time.Now()
	out := store.Outcome{Reason: a.reason, Post: a.post, Looks: a.looks, AbsentAt: a.absentAt, RenewMedia: a.renewMedia, Rings: rings, Now: now}
	switch a.kind {
	case kindStop:
		r.stop(ctx, a.scope, a.reason, now)
		out.State, out.PostState = jetpost.StateHeld, jetpost.PostPending
		out.Reason = stopReason(a.reason, now)
		if stop, stopped := r.h.Gate.Stopped(a.scope, now); stopped {
			out.Reason = stopReason(stop.Reason, now)
		}
	case kindHold:
		out.State, out.PostState = jetpost.StateHeld, jetpost.PostPending
	case kindFailed:
		out.State, out.PostState = jetpost.StateFailed, jetpost.PostFailed
	case kindDoubtful:
		out.State, out.PostState = jetpost.StateHeld, jetpost.PostSending
	case kindUnknown:
		out.State, out.PostState = jetpost.StateUnknown, jetpost.PostSending
	default:
		return nil
	}
	_, err := persist(ctx, r, "conclude", func() (struct{}, error) {
		return struct{}{}, r.h.Ledger.Conclude(ctx, r.lane, head.ID, out)
	})
	if err != nil && !errors.Is(err, store.ErrNotRunnable) {
		return err
	}
	log := r.log.With("request", head.ID, "state", out.State, "code", out.Reason.Code, "detail", out.Reason.Detail)
	if !out.Reason.Until.IsZero() {
		log = log.With("until", out.Reason.Until)
	}
	log.Info("request.settled", "posted", head.Status.Posted, "of", head.Status.Total)
	r.h.Announce.try(ctx, head.Key)
	return nil
}

// stop stops the app.
func (r *laneRun) stop(ctx context.Context, scope Scope, reason jetpost.Reason, now time.Time) {
	if err := r.h.Gate.Stop(ctx, scope, reason, now); err != nil {
		r.log.Error("app.stop_not_shared", "error", err)
	}
}

// stopped tells whether the app must not call X now, and what that makes of a head.
// Where it is time to find out whether a stop is over, one lane of all may call.
func (r *laneRun) stopped(ctx context.Context, now time.Time) (Verdict, bool) {
	gate := r.h.Gate
	stop, stopped := gate.Stopped(ScopePublish, now)
	if stopped && stop.Due(now) {
		if within := 2 * r.h.Timing.CallTimeout(); gate.Probe(ctx, stop, within, now) {
			until := now.Add(within)
			r.pass.Store(&until)
			r.log.Info("app.probed", "code", stop.Reason.Code, "since", stop.Since)
		}
		stop, stopped = gate.Stopped(ScopePublish, now)
	}
	if !stopped || r.probes(stop, now) {
		return Verdict{}, false
	}
	return Verdict{kind: kindHold, reason: stopReason(stop.Reason, now)}, true
}

// probes tells whether this run finds out whether a stop is over.
func (r *laneRun) probes(stop publishers.Stop, now time.Time) bool {
	pass := r.pass.Load()
	return stop.Probe && stop.Worker == r.h.Worker && pass != nil && now.Before(*pass)
}

// allow asks for one call to X. The caller tells done how it ended.
func (r *laneRun) allow(ctx context.Context, e xapi.Endpoint) (done func(error), err error) {
	now := time.Now()
	if v, stopped := r.stopped(ctx, now); stopped {
		return nil, &holdError{v}
	}
	ended, err := r.h.Gate.Allow(now)
	if err != nil {
		return nil, err
	}
	return func(err error) {
		ended(err)
		r.heard(ctx, e, err)
	}, nil
}

// heard makes of what came of a call what it says of X as a whole: that it fails, or
// that a stop which was probed is over. Of an outage each answer tells that; of what
// X refuses the app, only a post that it takes, or refuses for what that says.
func (r *laneRun) heard(ctx context.Context, e xapi.Endpoint, err error) {
	now := time.Now()
	stop, stopped := r.h.Gate.Stopped(ScopePublish, now)
	probes := stopped && r.probes(stop, now)
	reason, out := r.h.Gate.Outage()
	var refused *xapi.RefusedError
	switch {
	case xapi.IsOutage(err):
		if out || probes && stop.Reason.Code == jetpost.CodeXOutage {
			r.pass.Store(nil) // though NATS may not be told what the probe has brought
			reason.Detail += ", last: " + cause(err)
			r.stop(ctx, ScopePublish, reason, now)
		}
	case !probes || saysNothing(err):
	case stop.Reason.Code == jetpost.CodeXOutage, e == xapi.EndpointCreatePost && (err == nil || errors.As(err, &refused)):
		r.pass.Store(nil)
		if err := r.h.Gate.End(ctx, stop); err != nil {
			r.log.Error("app.resume_not_shared", "error", err)
		}
	}
}

// probe asks X for something that changes nothing, where it is to be found out whether
// X is back: a post or a token exchange that X does not answer would be in doubt. Any
// answer will do, even that the token has ended.
func (r *laneRun) probe(ctx context.Context, account string) (v Verdict, fails bool) {
	now := time.Now()
	stop, stopped := r.h.Gate.Stopped(ScopePublish, now)
	if !stopped || !r.probes(stop, now) || stop.Reason.Code != jetpost.CodeXOutage {
		return Verdict{}, false
	}
	token, err := r.h.Tokens.Stored(ctx, account)
	if err != nil {
		return Verdict{}, false // which EnsureFresh makes something of
	}
	_, err = r.me(ctx, r.h.Client(account, token.Access.Reveal()))
	var hold *holdError
	switch {
	case errors.As(err, &hold): // X was not asked, so nothing is known yet
		return hold.verdict, true
	case !xapi.IsOutage(err):
		return Verdict{}, false
	}
	return r.stopped(ctx, time.Now())
}

// stopReason is why a stop holds a head. The head is looked at again at the
// stop's end, but soon enough to notice that somebody has ended it before.
func stopReason(stop jetpost.Reason, now time.Time) jetpost.Reason {
	look := now.Add(undatedStop)
	switch {
	case stop.Until.IsZero():
	case !stop.Until.After(now): // it is to be probed, but nobody can
		look = now.Add(probeWait)
	case stop.Until.Before(look):
		look = stop.Until
	}
	return jetpost.Reason{Code: jetpost.CodeAppStopped, Detail: stopDetail(stop, look), Until: look}
}

// stopDetail says what stopped the app and, where a head is looked at before
// it, the stop's own end.
func stopDetail(stop jetpost.Reason, look time.Time) string {
	detail := string(stop.Code)
	if stop.Detail != "" {
		detail += ": " + stop.Detail
	}
	if stop.Until.After(look) {
		detail += " (stopped until " + stop.Until.UTC().Format(time.RFC3339) + ")"
	}
	return detail
}

// threadRun sends what is left of one request.
type threadRun struct {
	r       *laneRun
	head    *store.Record
	request jetpost.Request
	client  *xapi.Client
	uploads *uploads
	from    int         // index of the first post that is sent
	begun   int         // index of the post whose intent is committed and whose outcome is not; else -1
	intent  time.Time   // until when that intent may be sent
	called  func(error) // tells the gate how the call in flight ended
	// reserved tells that posts of the app's window are set aside.
	reserved bool
}

// post runs the one sequential loop with the ledger before and after each
// post.
func (t *threadRun) post(ctx context.Context, from int, parent string) attempt {
	posts := make([]xapi.Post, len(t.request.Posts))
	for i, p := range t.request.Posts {
		posts[i] = wirePost(p)
	}
	t.from = from
	err := t.check(ctx, from, time.Now())
	if err == nil {
		t.uploads, err = t.prepare(ctx, from)
	}
	if err != nil {
		return attempt{Verdict: judge(err, situation{now: time.Now(), holds: t.head.Holds}), post: -1, err: err}
	}
	defer t.uploads.end()
	// A panic in between must not leave the breaker waiting for an answer.
	defer t.ended(errNotCalled)
	defer t.unreserve(ctx)
	_, err = t.client.PostThread(ctx, posts, xapi.ThreadOptions{From: from, Parent: parent, Before: t.before, After: t.after})
	if err == nil {
		return attempt{Verdict: Done(), post: -1}
	}
	now := time.Now()
	t.ended(err)
	s := situation{now: now, begun: t.begun >= 0, holds: t.head.Holds}
	a := attempt{post: t.begun, err: err}
	if s.begun {
		s.renewable = len(t.request.Posts[t.begun].Media) > 0 &&
			!slices.ContainsFunc(t.head.Posts[t.begun].Media, func(m store.Media) bool { return m.Renewed })
		var refused *xapi.RefusedError
		a.renewMedia = errors.As(err, &refused) && refused.Kind == xapi.RefusedMediaInvalid
		s.lookFrom = t.r.h.Timing.lookFrom(t.intent)
		if since := t.head.Posts[t.begun].DoubtSince; !since.IsZero() {
			s.doubted = since.Add(t.r.h.Timing.repeatsFor())
		}
	}
	a.Verdict = judge(err, s)
	if a.kind == kindHold && a.reason.Code != jetpost.CodeAppStopped && !s.begun {
		t.uploads.finish() // a begun post's end is to be committed at once
	}
	return a
}

// before commits the intent to send post i, unless something says to wait.
func (t *threadRun) before(ctx context.Context, i int, p *xapi.Post) (time.Time, error) {
	h := t.r.h
	if err := t.check(ctx, i, time.Now()); err != nil {
		return time.Time{}, err
	}
	ids, err := t.uploads.ids(i)
	if err != nil {
		return time.Time{}, err
	}
	p.MediaIDs = ids
	if i == t.from {
		if err := t.reserve(ctx, i); err != nil {
			return time.Time{}, err
		}
	}
	if t.called, err = t.r.allow(ctx, xapi.EndpointCreatePost); err != nil {
		return time.Time{}, err
	}
	var notAfter time.Time
	tries := 0
	_, err = persist(ctx, t.r, "begin", func() (struct{}, error) {
		tries++
		now := time.Now()
		// An upload, or a database that was away, may have taken minutes.
		if err := t.check(ctx, i, now); err != nil {
			return struct{}{}, err
		}
		notAfter = now.Add(h.Timing.sendWithin())
		return struct{}{}, h.Ledger.Begin(ctx, t.r.lane, t.head.ID, store.Intent{
			Post: i, ParentID: p.InReplyToPostID, TextHash: store.TextHash(p.Text), MediaIDs: ids,
			NotAfter: notAfter, Now: now, Lease: h.Timing.lease(),
		})
	})
	if err != nil {
		t.ended(errNotCalled)
		switch {
		case errors.Is(err, store.ErrNotRunnable) && tries > 1:
			// An earlier try may have been committed, and its answer lost. The
			// intent, if it is there, is this worker's, and nothing was sent.
			t.begun, t.intent = i, notAfter
			return time.Time{}, &holdError{Hold(jetpost.CodeXUnavailable, time.Now(), "the database lost an answer; nothing was sent")}
		case errors.Is(err, store.ErrNotRunnable):
			return time.Time{}, &holdError{Done()} // cancelled or paused: look again
		}
		return time.Time{}, err
	}
	t.begun, t.intent = i, notAfter
	// The commit may have taken longer than others needed to stop the app.
	if v, stopped := t.r.stopped(ctx, time.Now()); stopped {
		t.ended(errNotCalled)
		return time.Time{}, &holdError{v}
	}
	return notAfter, nil
}

// check says why post i must not be begun now, if it must not.
func (t *threadRun) check(ctx context.Context, i int, now time.Time) error {
	if t.r.d.stopping() {
		return &holdError{Done()}
	}
	if i == 0 && expired(t.request, now) {
		return &holdError{Failed(jetpost.CodeExpired, lateDetail)}
	}
	if v, late := t.r.late(t.head, now); i == 0 && late {
		return &holdError{v}
	}
	if v, stopped := t.r.stopped(ctx, now); stopped {
		return &holdError{v}
	}
	if v, limited := t.limited(t.need(i), now); limited {
		return &holdError{v}
	}
	return nil
}

// after commits that post i is live. X's answer is known: it is told to the
// ledger for as long as that takes, and nothing more is sent before.
func (t *threadRun) after(ctx context.Context, i int, created xapi.Created) error {
	t.ended(nil)
	state, err := persist(ctx, t.r, "posted", func() (jetpost.State, error) {
		return t.r.h.Ledger.Posted(ctx, t.r.lane, t.head.ID, i, created.ID, time.Now())
	})
	if err != nil {
		return err
	}
	t.begun = -1
	t.head.Holds = 0 // as in the ledger
	now := time.Now()
	if v, limited := t.limited(1, now); limited && v.kind == kindStop {
		// The app's window is used up: the others must not find out by a 429.
		t.r.stop(ctx, v.scope, v.reason, now)
	}
	t.r.log.Info("post.published", "request", t.head.ID, "post", i, "post_id", created.ID, "of", len(t.request.Posts), "state", state)
	t.r.h.Announce.try(ctx, t.head.Key)
	return nil
}

// need is how many calls must be left for post i. A thread is begun only where all of
// it goes out, or as much as a window ever takes; once it is begun it goes on.
func (t *threadRun) need(i int) int {
	if i > 0 {
		return 1
	}
	return len(t.request.Posts)
}

// limited tells whether a window of posts has too few calls left.
func (t *threadRun) limited(need int, now time.Time) (Verdict, bool) {
	w, short := t.client.RateShort(xapi.EndpointCreatePost, need)
	if !short {
		return Verdict{}, false
	}
	detail := fmt.Sprintf("%d of %d posts are left in a window of %s", w.Remaining, w.Limit, w.Kind)
	if w.Exhausted(now) {
		detail = fmt.Sprintf("%d posts in a window of %s are used up", w.Limit, w.Kind)
		if w.Scope() == xapi.ScopeApp {
			return Stop(ScopePublish, jetpost.CodeAppRateLimited, w.Reset, detail), true
		}
	} else if need > 1 {
		detail += fmt.Sprintf(", and the thread has %d", need)
	}
	return Hold(jetpost.CodeRateLimited, w.Reset, detail), true
}

// reserve sets aside what the thread needs of the app's window, where that comes to its
// end: all lanes together must not begin more than it has left.
func (t *threadRun) reserve(ctx context.Context, i int) error {
	r, posts := t.r, len(t.request.Posts)-i
	patience := time.Now().Add(r.h.Timing.CallTimeout())
	for {
		now := time.Now()
		w, scarce := r.h.Windows.scarce(now)
		if !scarce {
			return nil
		}
		need := min(posts, w.Limit)
		got, err := persist(ctx, r, "reserve", func() (store.Reserved, error) {
			return r.h.Ledger.Reserve(ctx, r.lane, store.Reservation{
				Window: string(w.Endpoint), XReset: w.XReset, Left: w.Remaining, Need: need, Now: now,
			})
		})
		if err != nil || got.Granted {
			t.reserved = err == nil
			return err
		}
		if now.Before(w.Reset) {
			w.Remaining = got.Left
			r.h.Windows.Learn(w)
		}
		switch err := t.check(ctx, i, now); {
		case err != nil:
			return err
		case got.Left < need:
			until := now.Add(probeWait)
			if w.Reset.After(until) {
				until = w.Reset
			}
			return &holdError{Hold(jetpost.CodeRateLimited, until, fmt.Sprintf(
				"%d of %d posts are left in the app's window, and %d are needed", got.Left, w.Limit, need))}
		case now.After(patience):
			return &holdError{Hold(jetpost.CodeRateLimited, now.Add(probeWait), "what is left of the app's window is set aside for others")}
		}
		pause(ctx, reserveAgain) // calls are in flight
	}
}

// unreserve gives back what was set aside and not used.
func (t *threadRun) unreserve(ctx context.Context) {
	if !t.reserved {
		return
	}
	w, _ := t.r.h.Windows.scarce(time.Now())
	_, err := persist(ctx, t.r, "give back", func() (store.Reserved, error) {
		return t.r.h.Ledger.Reserve(ctx, t.r.lane, store.Reservation{
			Window: string(w.Endpoint), XReset: w.XReset, Left: w.Remaining, Now: time.Now(),
		})
	})
	if err != nil {
		t.r.log.Debug("lane.reservation_kept", "error", err) // its lease ends it
	}
}

// errNotCalled tells the breaker that the call it allowed was not made.
var errNotCalled = errors.New("not called")

// ended tells the gate how the call in flight ended, once.
func (t *threadRun) ended(err error) {
	if t.called != nil {
		t.called(err)
		t.called = nil
	}
}

// wirePost says a post in X's words.
func wirePost(p jetpost.Post) xapi.Post {
	out := xapi.Post{
		Text: p.Text, InReplyToPostID: p.InReplyToPostID, QuotePostID: p.QuotePostID,
		ReplySettings: p.ReplySettings, CommunityID: p.CommunityID,
		MadeWithAI: p.MadeWithAI, PaidPartnership: p.PaidPartnership,
	}
	if p.Poll != nil {
		out.Poll = &xapi.Poll{Options: p.Poll.Options, DurationMinutes: p.Poll.DurationMinutes}
	}
	return out
}

// keepLease prolongs the lane's lease while it is worked on. That it was lost ends
// uploads, and else is found out by the next write, which is refused.
func (r *laneRun) keepLease(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		every := time.NewTicker(r.h.Timing.extendEvery())
		defer every.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-every.C:
				err := r.h.Ledger.ExtendLane(ctx, r.lane, r.h.Timing.lease(), time.Now())
				if errors.Is(err, store.ErrFenced) {
					close(r.lost)
					return
				}
			}
		}
	})
	return func() { cancel(); done.Wait() }
}

// persist asks the ledger until it answers. What X said must not be forgotten
// because the database is away for a while, and nothing more may be sent
// before it is back.
func persist[T any](ctx context.Context, r *laneRun, what string, ask func() (T, error)) (T, error) {
	wait := stallMin
	for {
		out, err := ask()
		if settled(err) {
			r.h.Health.Set("ledger", nil)
			return out, err
		}
		r.h.Health.Set("ledger", err)
		if ctx.Err() != nil {
			return out, fmt.Errorf("%s: %w", what, err)
		}
		r.log.Warn("ledger.unavailable", "what", what, "error", err, "retry_in", wait)
		pause(ctx, wait)
		wait = min(2*wait, stallMax)
	}
}
