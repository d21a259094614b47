package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// poisonClaims is how many claims in a row may end with the worker's death before the head
// of the lane is taken for the cause.
const poisonClaims = 5

// hearWithin is how long the answer of X to a post waits for that of NATS to the event before.
const hearWithin = 50 * time.Millisecond

// laneWakeups wakes a lane, now or at a time.
type laneWakeups interface {
	waker
	WakeAt(ctx context.Context, account string, at time.Time) error
}

// tokenSource provides the tokens of the publish path.
type tokenSource interface {
	// Stored returns the token as it is stored, even if it has expired.
	Stored(ctx context.Context, account string) (store.Token, error)
	EnsureFresh(ctx context.Context, account string, usedVersion int64) (store.Token, error)
	// Fresh is EnsureFresh for a token that came with the claim.
	Fresh(ctx context.Context, token store.Token, usedVersion int64) (store.Token, error)
}

// publishHandler runs the lane of the account that a wake-up names. It claims the lane,
// publishes what is due, strictly in order, and releases the lane when nothing is left to do
// now. Only the ledger says what is next, never the wake-up.
type publishHandler struct {
	Ledger        laneLedger
	Announce      *OutboxRelay
	Wakeups       laneWakeups
	Tokens        tokenSource
	Gate          *admission.Gate
	Windows       *admission.Windows
	Client        func(account, accessToken string) *xapi.Client
	Media         *mediaSource
	Rules         Rules
	PostingLimits admission.PostingLimits
	Budget        admission.Budget
	Health        *health
	Clocks        *clocks
	Alarms        *alarms // if nil, only schedules wake
	Room          admission.Room
	Names         jetpost.Names
	Timing        timing
	Worker        string // names this worker in leases and logs
	Observe       Observer
	Trace         tracer
	Log           *slog.Logger
}

// Handle runs one lane. If another worker holds the lane, Handle does nothing: the holder
// sees the new generation in the ledger or, if it dies, the sweeper does.
func (h *publishHandler) Handle(ctx context.Context, d delivery) error {
	account := d.Subject[strings.LastIndexByte(d.Subject, '.')+1:]
	lane, claimed, err := h.claim(ctx, d, account)
	switch {
	case errors.Is(err, store.ErrNotFound):
		h.Log.Warn("lane.unknown", "account", account)
		return nil
	case err != nil:
		return err
	case !claimed:
		return nil
	}
	h.Alarms.clear(account)
	run := &laneRun{h: h, d: d, lane: lane, log: h.Log.With("account", account, "fence", lane.Fence), until: time.Now().Add(laneBudget), lost: make(chan struct{})}
	run.pass = &admission.Pass{
		Gate: h.Gate, Windows: h.Windows, PostingLimits: h.PostingLimits, Budget: h.Budget, Ledger: patientLedger{run}, Lane: lane,
		Stopping: d.Stopping, Room: h.Room, CallTimeout: h.Timing.CallTimeout(), Log: run.log,
	}
	stop := run.keepLease(ctx)
	defer stop()
	defer run.drop()
	defer func() { run.hear(false) }()
	h.Windows.Arrive(ctx, lane)
	if err := run.run(ctx); err != nil {
		// Another worker has the lane and goes on with it.
		run.log.Warn("lane.lost", "error", err)
	}
	return nil
}

// claim claims the lane, unless the delivery brings its claim.
func (h *publishHandler) claim(ctx context.Context, d delivery, account string) (store.Claim, bool, error) {
	if d.Claim != nil {
		return *d.Claim, true, nil
	}
	if err := h.ready(); err != nil {
		return store.Claim{}, false, err
	}
	return h.Ledger.ClaimLane(ctx, account, h.Worker, h.Timing.lease(), time.Now())
}

// ready returns an error if this worker may claim no lane now.
func (h *publishHandler) ready() error { return cmp.Or(h.Clocks.Err(), h.Room.Err()) }

// unasked reports whether this worker may claim a lane without a wake-up. During a pause of
// the app no wake-up comes, because lanes would only find the pause.
func (h *publishHandler) unasked() bool {
	_, paused := h.Gate.Paused(admission.TargetPublish, time.Now())
	return !paused && h.ready() == nil
}

// laneRun is one claim of a lane.
type laneRun struct {
	h     *publishHandler
	d     delivery
	lane  store.Claim
	pass  *admission.Pass
	log   *slog.Logger
	until time.Time     // end of this claim's budget
	lost  chan struct{} // closed once another worker is known to have the lane
	pause store.Pause   // as of the latest snapshot
	// unpublishAt is when the lane continues with a deletion, as of the latest snapshot.
	unpublishAt time.Time
	// next is the request whose intent was sent to the ledger with the latest outcome; nil
	// if none was.
	next *threadRun
	// told waits for the answer of NATS to the latest event; nil if none is awaited.
	told func(soon bool, late <-chan time.Time) bool
	// renewed is true if this run has renewed the token after a 401.
	renewed bool
	// filled is the id of the request that this run has filled in (see read).
	filled string
}

// run advances head after head until there is none, the budget is used up or the worker
// stops. It returns an error only if the lane is lost.
func (r *laneRun) run(ctx context.Context) error {
	for {
		now := time.Now()
		snap, read := r.lane.Next()
		if !read {
			var err error
			snap, err = persist(ctx, r, "snapshot", func() (store.Snapshot, error) { return r.h.Ledger.Snapshot(ctx, r.lane, now) })
			if err != nil {
				return err
			}
		}
		r.pause, r.pass.OwnLimit, r.unpublishAt = snap.Pause, snap.MonthlyLimit, snap.UnpublishAt
		r.h.Announce.moved(ctx, r.lane)
		if r.begun(snap.Head) {
			if err := r.advanceTraced(ctx, snap.Head, snap.Generation); err != nil {
				return err
			}
			continue
		}
		goesOn := r.goesOn(now)
		if goesOn && r.deletes(now) {
			if err := r.unpublish(ctx, snap.Generation); err != nil {
				return err
			}
			continue
		}
		head, wakeAt := runnable(snap, now)
		if head != nil && goesOn {
			if err := r.advanceTraced(ctx, head, snap.Generation); err != nil {
				return err
			}
			continue
		}
		if head != nil {
			wakeAt = now
		}
		if at := snap.UnpublishAt; !at.IsZero() && (wakeAt.IsZero() || at.Before(wakeAt)) {
			wakeAt = at
		}
		if err := r.holdQueue(ctx, snap, now); err != nil {
			return err
		}
		if free, err := r.release(ctx, snap, wakeAt, now); err != nil || free {
			return err
		} // else a wake-up came meanwhile: read the ledger again
	}
}

// goesOn reports whether this run may begin something.
func (r *laneRun) goesOn(now time.Time) bool {
	return !r.d.stopping() && !now.After(r.until) && r.h.Room.Err() == nil
}

// deletes reports whether the lane continues with a deletion before anything else.
func (r *laneRun) deletes(now time.Time) bool {
	return !r.unpublishAt.IsZero() && !r.unpublishAt.After(now)
}

// runnable returns the head if it may go on now, or the time when it may; zero means after
// the next wake-up. A head that waits holds back all requests behind it.
func runnable(snap store.Snapshot, now time.Time) (head *store.Record, wakeAt time.Time) {
	if snap.Head == nil {
		return nil, snap.NextDue
	}
	switch snap.Head.Status.State {
	case jetpost.StateUnknown:
		return nil, time.Time{}
	case jetpost.StateHeld:
		until := snap.Head.HoldUntil
		if code := snap.Head.Status.Reason.Code; blocks(code) && code != needsScope { // the block of the account may have ended or changed since
			until = liftedAt(snap.Pause, now)
		}
		if until.IsZero() || until.After(now) {
			return nil, until
		}
	}
	return snap.Head, time.Time{}
}

// advance takes the head as far as possible now.
func (r *laneRun) advance(ctx context.Context, head *store.Record) attempt {
	if t := r.take(head); t != nil {
		return r.renewing(ctx, head, t.token, t.post(ctx, ""))
	}
	now := time.Now()
	if r.lane.LostClaims >= poisonClaims {
		r.lane.LostClaims = 0
		return r.settled(holdUntil(jetpost.CodePoison, time.Time{}, fmt.Sprintf("%d workers in a row died on it", poisonClaims)))
	}
	request, err := jetpost.Decode(head.Account, head.Body)
	var newer *jetpost.NewerVersionError
	switch {
	case errors.As(err, &newer):
		return r.settled(holdUntil(jetpost.CodeNeedsNewerWorker, now.Add(newerWorkerRetry), "the request's version is later than this worker's"))
	case err != nil:
		return r.settled(failWith(jetpost.CodeInvalidRequest, err.Error()))
	case len(head.Posts) == 0:
		return r.read(ctx, head, request)
	}
	t := &threadRun{r: r, head: head, request: request, begun: -1}
	var parent string
	var doubt int
	t.from, parent, doubt = resume(head)
	if doubt >= 0 && now.Before(r.checkFrom(head.Posts[doubt])) {
		return r.doubtful(head, doubt, "the worker that sent it was lost")
	}
	if err := t.tooLate(t.from, now); err != nil && doubt < 0 {
		return r.left(head, err)
	}
	if err := r.lift(ctx, head, request); err != nil {
		return r.left(head, err)
	}
	if err := r.pass.Open(ctx, head, r.pause, r.harmless(head.Account)); err != nil {
		return r.left(head, err)
	}
	token, err := r.token(ctx)
	if err != nil {
		return r.left(head, err)
	}
	t.token, t.client = token, r.h.Client(head.Account, token.Access.Reveal())
	if doubt >= 0 {
		return r.renewing(ctx, head, token, r.reconcile(ctx, t.client, head, doubt, request.Posts[doubt]))
	}
	if scope := missingScope(token.Scope, request.Posts[t.from:]); scope != "" {
		return r.settled(blockAccount(needsScope, "the account was connected without "+scope))
	}
	if err := r.tooLong(ctx, t.client, request.Posts, t.from); err != nil {
		return r.left(head, err)
	}
	return r.renewing(ctx, head, token, t.post(ctx, parent))
}

// token returns the account's token. The first call uses the one that came with the claim.
func (r *laneRun) token(ctx context.Context) (store.Token, error) {
	if token, known := r.lane.Token(); known {
		return r.h.Tokens.Fresh(ctx, token, 0)
	}
	return r.h.Tokens.EnsureFresh(ctx, r.lane.Account, 0)
}

// read fills in a request that an older worker has accepted without being able to read it.
// The lane then reads the ledger again.
func (r *laneRun) read(ctx context.Context, head *store.Record, request jetpost.Request) attempt {
	if err := r.h.Rules.Check(request); err != nil {
		return r.settled(failWith(jetpost.CodeInvalidRequest, err.Error()))
	}
	pins, err := r.h.Media.Pin(ctx, request)
	if err != nil {
		return r.settled(holdUntil(jetpost.CodeMediaUnavailable, time.Now().Add(backoff(head.Holds+1)), err.Error()))
	}
	in := r.h.Rules.acceptance(request, head.Body)
	in.Media = pins
	in.Request.ID = head.ID
	decision, err := persist(ctx, r, "fill in request", func() (store.Decision, error) {
		in.Now = time.Now()
		return r.h.Ledger.Accept(ctx, in)
	})
	if err == nil && decision != store.Accepted && r.filled == head.ID {
		return r.settled(failWith(jetpost.CodeInvalidRequest, "the request has no posts"))
	}
	// A repeat may mean that the answer to an earlier try was lost. The next snapshot
	// shows which it is.
	r.filled = head.ID
	return attempt{decision: goOn(), post: -1, err: err}
}

// resume returns the index of the first post that is not live and the post id that it
// replies to, or the index of the post in doubt, else -1.
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

// renewing renews the token, once in a run, if X did not accept it: it may have been
// replaced or revoked. The head is then tried again at once.
func (r *laneRun) renewing(ctx context.Context, head *store.Record, used store.Token, a attempt) attempt {
	var unauthorized *xapi.UnauthorizedError
	if !errors.As(a.err, &unauthorized) || r.renewed {
		return a
	}
	r.renewed = true
	fresh, err := r.h.Tokens.EnsureFresh(ctx, head.Account, used.Version)
	switch {
	case err != nil:
		a.decision = judge(err, situation{now: time.Now(), holds: head.Holds})
	case fresh.Version != used.Version:
		a.decision = holdUntil(jetpost.CodeXUnavailable, time.Now(), "X refused the token; it was renewed")
	}
	return a
}

// threadRun sends what is left of one request.
type threadRun struct {
	r       *laneRun
	head    *store.Record
	request jetpost.Request
	token   store.Token
	client  *xapi.Client
	uploads *uploads
	from    int       // index of the first post that is sent
	begun   int       // index of the post whose intent is committed and whose outcome is not; else -1
	intent  time.Time // until when that post may be sent
	// permit is of the first post if its intent was committed with the outcome of the
	// request before.
	permit *admission.Permit
}

// post sends the posts in order, each as a reply to the one before it. The steps of a post
// are admission, the commit of the intent, the call, and the commit of the outcome.
func (t *threadRun) post(ctx context.Context, parent string) attempt {
	defer t.drop()
	var err error
	if t.permit == nil {
		err = t.r.pass.Ask(ctx, t.calls(t.from))
	}
	if err == nil {
		t.uploads, err = t.prepare(ctx)
	}
	switch {
	case err != nil && t.begun >= 0:
		return t.ended(ctx, err)
	case err != nil:
		return t.r.left(t.head, err)
	}
	defer t.uploads.end()
	defer t.r.pass.GiveBack(ctx)
	for i := t.from; i < len(t.request.Posts); i++ {
		p := wirePost(t.request.Posts[i])
		p.InReplyToPostID = cmp.Or(parent, p.InReplyToPostID)
		if parent, err = t.send(ctx, i, p); err != nil {
			return t.ended(ctx, fmt.Errorf("post %d of %d: %w", i+1, len(t.request.Posts), err))
		}
	}
	return t.r.settled(goOn())
}

// calls are the calls that post i needs.
func (t *threadRun) calls(i int) admission.Calls {
	c := admission.Calls{Endpoint: xapi.EndpointCreatePost, N: admission.Need(len(t.request.Posts), i)}
	if i == t.from {
		c.SetAside = len(t.request.Posts) - i
	}
	return c
}

// send sends one post.
func (t *threadRun) send(ctx context.Context, i int, p xapi.Post) (postID string, err error) {
	if err := ctx.Err(); err != nil { // the post would not be sent, so its intent is not committed
		return "", &xapi.NotSentError{Err: err}
	}
	permit, notAfter, err := t.intend(ctx, i, &p)
	if err != nil {
		return "", err
	}
	// After a panic the breaker must not wait for an answer.
	defer permit.Done(admission.ErrNotCalled)
	if err := permit.Still(); err != nil {
		return "", err
	}
	created, err := t.client.CreatePost(xapi.WithNotAfter(ctx, notAfter), p)
	t.r.hearSoon()
	if err != nil {
		permit.Done(err)
		return "", err
	}
	return created.ID, t.live(ctx, i, created.ID, permit)
}

// intend commits the intent to send post i, once the call is permitted.
func (t *threadRun) intend(ctx context.Context, i int, p *xapi.Post) (permit *admission.Permit, notAfter time.Time, err error) {
	r := t.r
	if permit := t.permit; permit != nil {
		t.permit = nil
		return permit, t.intent, nil
	}
	if p.MediaIDs, err = t.uploads.ids(i); err != nil {
		return nil, notAfter, err
	}
	tries := 0
	_, err = persist(ctx, r, "begin", func() (_ struct{}, err error) {
		// An upload, or a database that did not answer, may have taken minutes.
		if permit, err = r.pass.Permit(ctx, t.calls(i)); err != nil {
			return struct{}{}, err
		}
		committed := false
		defer func() {
			if !committed { // an error or a panic
				permit.Done(admission.ErrNotCalled)
			}
		}()
		now := time.Now()
		if err = t.tooLate(i, now); err != nil {
			return struct{}{}, err
		}
		tries++
		notAfter = now.Add(r.h.Timing.sendWithin())
		err = r.h.Ledger.Begin(ctx, r.lane, t.head.ID, store.Intent{
			Post: i, ParentID: p.InReplyToPostID, TextHash: store.TextHash(p.Text), MediaIDs: p.MediaIDs,
			NotAfter: notAfter, Now: now, Lease: r.h.Timing.lease(),
		})
		committed = err == nil
		return struct{}{}, err
	})
	switch {
	case errors.Is(err, store.ErrNotRunnable) && tries > 1:
		// An earlier try may have been committed and its answer lost. If there is an
		// intent, it is this worker's, and nothing was sent.
		t.begun, t.intent = i, notAfter
		return nil, notAfter, admission.Wait(jetpost.CodeXUnavailable, time.Now(), "the answer of the database was lost; nothing was sent")
	case errors.Is(err, store.ErrNotRunnable):
		return nil, notAfter, &decidedError{goOn()} // cancelled or paused: read the ledger again
	case err != nil:
		return nil, notAfter, err
	}
	t.begun, t.intent = i, notAfter
	return permit, notAfter, nil
}

// live commits that post i is live. It retries until the ledger answers, and nothing more is
// sent before. Admission hears of the answer after that, because it may have to share it
// with other workers. The intent of the request behind goes with the last outcome of this
// one.
func (t *threadRun) live(ctx context.Context, i int, postID string, permit *admission.Permit) error {
	r := t.r
	if i == len(t.request.Posts)-1 {
		r.next = t.ahead(ctx)
	}
	tries := 0
	state, err := persist(ctx, r, "posted", func() (jetpost.State, error) {
		live := store.LivePost{Post: i, PostID: postID, Now: time.Now()}
		if tries++; tries == 1 { // its intent has one deadline
			live.Following = r.next.following(live.Now)
		}
		return r.h.Ledger.Posted(ctx, r.lane, t.head.ID, live)
	})
	permit.Done(nil)
	if err != nil {
		return err
	}
	t.begun = -1
	t.head.Holds = 0 // as in the ledger
	t.head.Status.Posted++
	t.head.Posts[i].SentAt = t.intent.Add(-r.h.Timing.sendWithin())
	t.sent(i, state)
	tracePost(ctx, i, state)
	r.log.Info("post.published", "request", t.head.ID, "post", i, "post_id", postID, "of", len(t.request.Posts), "state", state)
	r.hear(true) // events of a request keep their order
	r.told = r.h.Announce.wrote(ctx, r.lane, t.head.Key)
	if t.uploading(i + 1) {
		r.hear(false)
	}
	return nil
}

// uploading reports whether the posts from that index on have media, which may delay them.
func (t *threadRun) uploading(from int) bool {
	return slices.ContainsFunc(t.request.Posts[from:], func(p jetpost.Post) bool { return len(p.Media) > 0 })
}

// ended returns the attempt of a thread that ended with an error.
func (t *threadRun) ended(ctx context.Context, err error) attempt {
	s := situation{now: time.Now(), begun: t.begun >= 0, holds: t.head.Holds}
	a := attempt{post: t.begun, err: err}
	if s.begun {
		post := t.head.Posts[t.begun]
		s.renewable = len(t.request.Posts[t.begun].Media) > 0 &&
			!slices.ContainsFunc(post.Media, func(m store.Media) bool { return m.Renewed })
		var refused *xapi.RefusedError
		a.renewMedia = errors.As(err, &refused) && refused.Kind == xapi.RefusedMediaInvalid
		s.checkFrom = t.r.h.Timing.checkFrom(t.intent)
		if refused != nil && refused.Kind == xapi.RefusedParentGone && t.freshParent(ctx, s) {
			s.parentFrom = s.now.Add(t.r.h.Timing.replicaWait())
		}
		if since := post.DoubtSince; !since.IsZero() {
			s.doubted = since.Add(t.r.h.Timing.repeatsFor())
		}
	}
	a.decision = judge(err, s)
	if a.kind == kindHold && a.reason.Code != jetpost.CodeAppPaused && !s.begun {
		t.uploads.finish() // not if a post has begun: its outcome has to be committed at once
	}
	return a
}

// hear waits until NATS has answered to the lane's latest event, of which the lane does not
// wait before it calls X. If soon is true, a step of the lane follows at once.
func (r *laneRun) hear(soon bool) {
	if r.told != nil {
		r.told(soon, nil)
		r.told = nil
	}
}

// hearSoon is hear before an answer of X is committed, which must not wait for NATS.
func (r *laneRun) hearSoon() {
	if r.told != nil && r.told(true, time.After(hearWithin)) {
		r.told = nil
	}
}

// settle applies an attempt to the gate and the ledger, and announces it.
func (r *laneRun) settle(ctx context.Context, head *store.Record, generation int64, a attempt) error {
	if errors.Is(a.err, store.ErrFenced) {
		return a.err
	}
	out, err := r.outcome(ctx, generation, a)
	if err != nil || out.State == "" {
		return err
	}
	r.hear(true)
	_, err = persist(ctx, r, "conclude", func() (struct{}, error) {
		return struct{}{}, r.h.Ledger.Conclude(ctx, r.lane, head.ID, out)
	})
	if err != nil && !errors.Is(err, store.ErrNotRunnable) {
		return err
	}
	if err == nil {
		r.h.Observe.settled(head, out)
	}
	log := outcomeLog(r.log.With("request", head.ID, "state", out.State), out)
	if a.unruled {
		if err := r.unruled(ctx, head.ID, a.reason.Detail); err != nil {
			return err
		}
	}
	log.Info("request.settled", "posted", head.Status.Posted, "of", head.Status.Total)
	r.h.Announce.settled(ctx, r.lane, head.Key)
	return nil
}

// reasonLog adds why something waits, and until when if that is known.
func reasonLog(log *slog.Logger, reason jetpost.Reason) *slog.Logger {
	log = log.With("code", reason.Code, "detail", reason.Detail)
	if !reason.Until.IsZero() {
		log = log.With("until", reason.Until)
	}
	return log
}

// outcomeLog adds why something waits, and when to look again.
func outcomeLog(log *slog.Logger, out store.Outcome) *slog.Logger {
	log = reasonLog(log, out.Reason)
	if !out.CheckAt.IsZero() {
		log = log.With("check_at", out.CheckAt)
	}
	return log
}

// outcome converts an attempt into what the ledger stores, after it has paused the app or
// blocked the account if necessary. The outcome has no state if there is nothing to store.
func (r *laneRun) outcome(ctx context.Context, generation int64, a attempt) (store.Outcome, error) {
	out := store.Outcome{Reason: a.reason, CheckAt: a.checkAt, Post: a.post, Checks: a.checks, AbsentAt: a.absentAt, RenewMedia: a.renewMedia, Generation: generation, Now: time.Now()}
	switch a.kind {
	case kindPause:
		wait := r.pass.Pause(ctx, a.reason)
		out.Reason, out.CheckAt = wait.Reason, wait.CheckAt
		out.State, out.PostState = jetpost.StateHeld, jetpost.PostPending
	case kindBlock:
		pause, err := r.block(ctx, a.reason)
		if err != nil {
			return out, err
		}
		out.Reason, out.CheckAt = pause.Reason, pause.NextAt()
		out.State, out.PostState = jetpost.StateHeld, jetpost.PostPending
	case kindHold:
		out.State, out.PostState = jetpost.StateHeld, jetpost.PostPending
	case kindFailed:
		out.State, out.PostState = jetpost.StateFailed, jetpost.PostFailed
	case kindDoubtful:
		out.State, out.PostState = jetpost.StateHeld, jetpost.PostSending
	case kindUnknown:
		out.State, out.PostState = jetpost.StateUnknown, jetpost.PostSending
	}
	return out, nil
}

// holdQueue holds every request of an account that must be connected again or is blocked,
// and not only the head, so that the status of each request says why it waits.
func (r *laneRun) holdQueue(ctx context.Context, snap store.Snapshot, now time.Time) error {
	if snap.Head == nil || snap.Head.Status.State != jetpost.StateHeld {
		return nil
	}
	if code := snap.Head.Status.Reason.Code; code != jetpost.CodeAccountReauthRequired && !blocks(code) {
		return nil
	}
	for {
		held, err := persist(ctx, r, "hold queue", func() ([]store.Key, error) {
			return r.h.Ledger.HoldQueue(ctx, r.lane, *snap.Head.Status.Reason, snap.Generation, now)
		})
		if err != nil {
			return err
		}
		for _, key := range held {
			r.h.Announce.try(ctx, key)
		}
		if len(held) < store.MaxHoldQueue {
			return nil
		}
	}
}

// release releases the lane. It sets the schedule of the account first, while no other
// worker may write it, so that a newer schedule is never replaced by an older one.
func (r *laneRun) release(ctx context.Context, snap store.Snapshot, wakeAt, now time.Time) (bool, error) {
	account, keeps := r.lane.Account, false
	r.h.Windows.HandOver(ctx, account)
	if wakeAt.After(now) {
		var at time.Time
		at, keeps = r.h.Alarms.schedule(wakeAt, now)
		if err := r.h.Wakeups.WakeAt(ctx, account, at); err != nil {
			r.log.Warn("lane.wake_delayed", "until", wakeAt, "error", err) // the sweeper wakes instead
		}
	}
	r.hear(true)
	free, err := persist(ctx, r, "release", func() (bool, error) {
		return r.h.Ledger.ReleaseLane(ctx, r.lane, snap.Generation, wakeAt, now)
	})
	r.h.Announce.moved(ctx, r.lane)
	if err != nil || !free {
		return false, err
	}
	if keeps {
		r.h.Alarms.set(ctx, account, wakeAt)
	}
	if !wakeAt.IsZero() && !wakeAt.After(now) {
		if err := r.h.Wakeups.Wake(ctx, account); err != nil {
			r.log.Warn("lane.wakeup_not_sent", "error", err)
		}
	}
	return true, nil
}

// wirePost converts a post to the form of X.
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
