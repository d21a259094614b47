package consumers

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

const (
	// acceptWithin bounds each attempt to accept a batch, and pinWithin each lookup of an
	// object.
	acceptWithin = 5 * time.Second
	pinWithin    = 2 * time.Second
	// batchBudget is how long a batch may begin more work. It ends before the server
	// redelivers the batch.
	batchBudget = 5 * time.Second
	// ownFailures is how often a job may fail by itself before it is set aside, and
	// ownFailureWait the wait in between.
	ownFailures    = 5
	ownFailureWait = 100 * time.Millisecond
	// objectsAgain is how long no request is made to an object store that did not answer.
	// Each try can delay the whole partition by pinWithin.
	objectsAgain = 5 * time.Second
)

// intakeLedger holds the ledger calls of intake.
type intakeLedger interface {
	Account(ctx context.Context, name string) (store.Account, error)
	AcceptMany(ctx context.Context, lease store.Lease, in []store.Acceptance) ([]store.Received, error)
	JobFailed(ctx context.Context, f store.JobFailure) (int, error)
	store.LaneReleaser
	Refuse(ctx context.Context, refusal jetpost.Refusal, body []byte) error
}

// waker wakes the lane of an account.
type waker interface {
	Wake(ctx context.Context, account string) error
}

// manyWaker wakes the lanes of many accounts at once.
type manyWaker interface {
	WakeAll(ctx context.Context, accounts []string) error
}

// pinner returns the digests of a request's media as they are now.
type pinner interface {
	Pin(ctx context.Context, request jetpost.Request) ([][]store.Media, error)
}

// intakeHandler turns jobs into requests in the ledger and wakes their accounts'
// lanes. It never calls X, so that a slow account does not delay the acceptance of
// another's jobs.
type intakeHandler struct {
	Ledger   intakeLedger
	Announce *OutboxRelay
	Wakeups  manyWaker
	Media    pinner
	Rules    Rules
	Names    jetpost.Names
	// Answers checks that the database, NATS and the object store answer. Only then is a
	// failure counted against the job. If it is nil, they are taken to answer.
	Answers func(context.Context) error
	// Slots are this worker's own, Claim is what a lane is claimed with for them, and May
	// reports whether one may be claimed now. If Slots is nil, lanes are only woken.
	Slots   *direct
	Claim   store.LaneClaim
	May     func() bool
	Observe Observer
	Trace   tracer
	Log     *slog.Logger

	away atomic.Pointer[objectsAway] // the latest fault of the object store
}

// objectsAway is a fault of the object store.
type objectsAway struct {
	err   error
	until time.Time // when the object store is asked again
}

func (e *objectsAway) Error() string { return e.err.Error() }
func (e *objectsAway) Unwrap() error { return e.err }

// waiting lists the jobs of a batch that wait for the object store: those that name an
// object, and all later ones of the same accounts.
type waiting struct {
	accounts  map[string]bool
	sequences map[uint64]bool
	away      *objectsAway // nil while nothing waits
	failure   error        // the error that ended the batch, if any
}

func (w *waiting) Error() string {
	return fmt.Sprintf("%d jobs wait for the object store: %v", len(w.sequences), w.away)
}
func (w *waiting) Unwrap() []error { return []error{w.away, w.failure} }

// has reports whether a delivery waits. A nil waiting has none.
func (w *waiting) has(sequence uint64) bool { return w != nil && w.sequences[sequence] }

// add adds a job, and with it its account.
func (w *waiting) add(j *job, away *objectsAway) {
	if w.away == nil {
		*w = waiting{accounts: map[string]bool{}, sequences: map[uint64]bool{}, away: away}
	}
	w.accounts[j.in.Request.Account], w.sequences[j.Sequence] = true, true
}

// with returns the error of the batch: the error that ended it, and the jobs that wait.
func (w *waiting) with(err error) error {
	if w.away == nil {
		return err
	}
	w.failure = err
	return w
}

// job is a delivery on its way into the ledger.
type job struct {
	delivery
	subject string // the subject that the producer used
	in      store.Acceptance
	refusal *jetpost.Refusal // nil for a valid request
	span    trace.Span       // of the acceptance
	log     *slog.Logger
	place   int // index in its batch
}

func (j *job) refuse(code jetpost.Code, pointer, format string, args ...any) {
	j.refusal = &jetpost.Refusal{Account: j.in.Request.Account, ID: j.in.Request.ID, Code: code,
		Problems: []jetpost.Problem{{Pointer: pointer, Message: fmt.Sprintf(format, args...)}}}
}

// HandleBatch accepts, recognises or refuses each job, in order. The jobs are accepted in
// one transaction. If that fails because of a job, they are accepted one by one. The error
// is a *waiting if some of the jobs counted as done wait for the object store.
func (h *intakeHandler) HandleBatch(ctx context.Context, lease store.Lease, batch []delivery) (done int, err error) {
	end, waits := time.Now().Add(batchBudget), &waiting{}
	for done < len(batch) && time.Now().Before(end) {
		jobs, next, err := h.prepareAll(ctx, batch, done, waits)
		var n int
		if len(jobs) > 0 {
			n, err = h.guarded(jobs[0].delivery, func() (int, error) { return h.accept(ctx, lease, jobs) })
		}
		if n == len(jobs) && next > done && (len(jobs) == 0 || err == nil) {
			done = next
			continue
		}
		if n < len(jobs) {
			done = jobs[n].place
		}
		if dependency(err) {
			return done, waits.with(err)
		}
		// One of the jobs cannot be accepted. Accepting them one by one finds it.
		for last := max(next, done+1); done < last; done++ {
			if time.Now().After(end) {
				break
			}
			if err := h.alone(ctx, lease, batch[done], waits); err != nil {
				return done, waits.with(err)
			}
		}
	}
	return done, waits.with(nil)
}

func (h *intakeHandler) guarded(d delivery, do func() (int, error)) (n int, err error) {
	err = guard(h.Log, d, func() (err error) {
		n, err = do()
		return err
	})
	return n, err
}

// alone accepts one job unless it has to wait. If it fails by itself ownFailures times, it
// is set aside.
func (h *intakeHandler) alone(ctx context.Context, lease store.Lease, d delivery, waits *waiting) error {
	for {
		_, err := h.guarded(d, func() (int, error) {
			jobs, _, err := h.prepareAll(ctx, []delivery{d}, 0, waits)
			if err != nil {
				return 0, err
			}
			return h.accept(ctx, lease, jobs)
		})
		if err == nil || dependency(err) {
			return err
		}
		if away := h.answers(ctx); away != nil {
			return away
		}
		failures, countErr := h.Ledger.JobFailed(ctx, store.JobFailure{Sequence: d.Sequence, Stored: d.Stored, Error: err.Error()})
		if countErr != nil {
			return countErr
		}
		h.Log.Error("job.failed", "subject", d.Subject, "sequence", d.Sequence, "failures", failures, "of", ownFailures, "error", err)
		if failures >= ownFailures {
			return h.setAside(ctx, d, err)
		}
		if sleepContext(ctx, ownFailureWait); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// answers returns an error if a dependency does not answer within probeWithin.
func (h *intakeHandler) answers(ctx context.Context) error {
	if h.Answers == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	return h.Answers(ctx)
}

// setAside refuses a job that no worker can handle, with the error that it failed with.
func (h *intakeHandler) setAside(ctx context.Context, d delivery, cause error) error {
	j := &job{delivery: d}
	j.in.Request.Account, j.subject = h.origin(d.Subject)
	if request, err := jetpost.Decode(j.in.Request.Account, d.Data); err == nil {
		j.in.Request.Account, j.in.Request.ID = request.Account, request.ID
	}
	j.refuse(jetpost.CodeSetAside, "", "workers failed on it %d times: %v", ownFailures, cause)
	h.beginTrace(ctx, j)
	return h.refuse(ctx, j)
}

// prepareAll prepares the jobs from the given index on. It ends at the first one that fails
// and returns its index and error. It skips jobs that wait.
func (h *intakeHandler) prepareAll(ctx context.Context, batch []delivery, from int, waits *waiting) (jobs []*job, next int, err error) {
	for next = from; next < len(batch); next++ {
		var j *job
		err := guard(h.Log, batch[next], func() (err error) {
			j, err = h.prepare(ctx, batch[next], waits)
			return err
		})
		if away := (*objectsAway)(nil); errors.As(err, &away) {
			waits.add(j, away)
			continue
		}
		if err != nil {
			return jobs, next, err
		}
		j.place = next
		h.beginTrace(ctx, j)
		jobs = append(jobs, j)
	}
	return jobs, next, nil
}

// prepare decodes a job and collects what the ledger stores of it. Its error is an
// *objectsAway if the job has to wait.
func (h *intakeHandler) prepare(ctx context.Context, d delivery, waits *waiting) (*job, error) {
	account, subject := h.origin(d.Subject)
	request, err := jetpost.Decode(account, d.Data)
	if err == nil {
		err = cmp.Or(h.Rules.Check(request), OwnObjects(request))
	}
	j := &job{delivery: d, subject: subject, in: h.Rules.acceptance(request, d.Data)}
	j.in.Now = time.Now()
	if waits.accounts[account] || waits.accounts[request.Account] {
		j.in.Request.Account = cmp.Or(request.Account, account)
		return j, waits.away
	}

	var invalid *jetpost.InvalidError
	var newer *jetpost.NewerVersionError
	switch {
	case errors.As(err, &invalid):
		j.refusal = &jetpost.Refusal{Account: invalid.Account, ID: invalid.ID, Code: jetpost.CodeInvalidRequest, Problems: invalid.Problems}
		return j, nil
	case errors.As(err, &newer):
		j.in.Request = jetpost.Request{Version: newer.Version, Account: newer.Account, ID: newer.ID}
		j.in.Hold = &jetpost.Reason{
			Code: jetpost.CodeNeedsNewerWorker, Until: j.in.Now.Add(newerWorkerRetry),
			Detail: fmt.Sprintf("the request is of version %d, this worker knows %d", newer.Version, jetpost.Version),
		}
		// This worker does not know which requests of a later version are equal, so the
		// bytes have to be.
		sum := sha256.Sum256(d.Data)
		j.in.Digest = sum[:]
	case err != nil:
		return nil, fmt.Errorf("decode job: %w", err)
	}
	if j.in.Request.ID == "" {
		j.in.Request.ID = fmt.Sprintf("m-%d-%d", d.Sequence, d.Stored.UnixNano())
	}
	return j, h.pin(ctx, j)
}

// pin stores the digests of the objects that a job names, if its account exists.
func (h *intakeHandler) pin(ctx context.Context, j *job) (err error) {
	if !namesObject(j.in.Request) {
		return nil
	}
	_, err = h.Ledger.Account(ctx, j.in.Request.Account)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil // the ledger refuses the job
	case err != nil:
		return err
	}
	if away := h.away.Load(); away != nil && time.Now().Before(away.until) {
		return away
	}
	j.in.Media, err = h.Media.Pin(ctx, j.in.Request)
	if ctx.Err() != nil || !dependency(err) {
		return err
	}
	away := &objectsAway{err: err, until: time.Now().Add(objectsAgain)}
	h.away.Store(away)
	return away
}

func namesObject(r jetpost.Request) bool {
	return slices.ContainsFunc(r.Posts, func(p jetpost.Post) bool {
		return slices.ContainsFunc(p.Media, func(m jetpost.Media) bool { return m.Object != "" })
	})
}

// accept stores jobs in the ledger and announces them. It returns how many are done.
func (h *intakeHandler) accept(ctx context.Context, lease store.Lease, jobs []*job) (int, error) {
	var in []store.Acceptance
	var of []*job // the job of each acceptance
	for _, j := range jobs {
		if j.refusal == nil {
			in, of = append(in, j.in), append(of, j)
		}
	}
	if len(in) > 0 {
		slots := h.takeSlots(in)
		defer slots.letGo()
		bounded, cancel := context.WithTimeout(ctx, acceptWithin)
		received, err := h.Ledger.AcceptMany(bounded, lease, in)
		cancel()
		if err != nil {
			for _, j := range jobs {
				j.endTrace(err)
			}
			return 0, err
		}
		h.accepted(ctx, of, received, slots)
	}
	for i, j := range jobs {
		if j.refusal == nil {
			j.endTrace(nil)
			continue
		}
		if err := h.refuse(ctx, j); err != nil {
			return i, err
		}
	}
	return len(jobs), nil
}

// takenSlots are the slots that wait for a lane, by its account.
type takenSlots map[string]*turn

// takeSlots takes a slot that waits for a message for each account whose queue these jobs may
// begin, as long as there is one. The lanes are claimed with the acceptance.
func (h *intakeHandler) takeSlots(in []store.Acceptance) takenSlots {
	if h.Slots == nil || !h.May() {
		return nil
	}
	slots := takenSlots{}
	for i := range in {
		account := in[i].Request.Account
		if in[i].Hold != nil || in[i].RefuseSameText || in[i].Request.PublishAt.After(in[i].Now) || slots[account] != nil {
			continue
		}
		slot, taken := h.Slots.take()
		if !taken {
			break
		}
		slots[account], in[i].Claim = slot, &h.Claim
	}
	return slots
}

// letGo lets go of the slots that got no lane.
func (s takenSlots) letGo() {
	for _, slot := range s {
		slot.letGo()
	}
}

// run hands a claimed lane to its slot. If the slot has left, because the acceptance took
// long, run frees the lane, and returns false: it has to be woken.
func (h *intakeHandler) run(ctx context.Context, slots takenSlots, claim *store.Claim) bool {
	if slots[claim.Account].give(delivery{Subject: h.Names.PublishWake(claim.Account), Claim: claim}) {
		return true
	}
	if err := store.FreeLane(context.WithoutCancel(ctx), h.Ledger, *claim, time.Now()); err != nil { // also if the partition is lost
		h.Log.Warn("lane.not_released", "account", claim.Account, "error", err) // its lease ends
	}
	return false
}

// accepted announces what was committed, and runs or wakes the lanes. A failure is left to
// the sweeper. A repeated job is announced and its lane woken again, because the worker that
// accepted it may have died right after the commit. No lane runs before the events of its
// requests are on their way, so that its own come behind them.
func (h *intakeHandler) accepted(ctx context.Context, jobs []*job, received []store.Received, slots takenSlots) {
	var records []store.Record
	var claims []*store.Claim
	woken := map[string]bool{}
	for i, j := range jobs {
		key := j.in.Key()
		if claim := received[i].Claim; claim != nil {
			claims = append(claims, claim)
		}
		switch received[i].Decision {
		case store.NoAccount:
			j.refuse(jetpost.CodeAccountUnknown, "/account", "no account %q is known; connect it, then replay this job", key.Account)
			continue
		case store.Conflict:
			j.refuse(jetpost.CodeIdentityConflict, "/id", "id %q arrived before with another body; use a new id for a new job", key.ID)
			continue
		}
		records = append(records, received[i].Record)
		woken[key.Account] = true
		h.log(j, received[i])
	}
	finish := h.Announce.announceAll(ctx, records)
	for _, claim := range claims {
		if woken[claim.Account] = true; h.run(ctx, slots, claim) {
			delete(woken, claim.Account)
		}
	}
	slots.letGo() // those without a lane wait for nothing else
	defer finish()
	if len(woken) == 0 {
		return
	}
	if err := h.Wakeups.WakeAll(ctx, slices.Collect(maps.Keys(woken))); err != nil {
		h.Log.Warn("lane.wakeup_not_sent", "error", err)
	}
}

func (h *intakeHandler) log(j *job, received store.Received) {
	log := j.log.With("account", j.in.Request.Account, "request", j.in.Request.ID, "posts", len(j.in.Request.Posts))
	if at := j.in.Request.PublishAt; !at.IsZero() {
		log = log.With("publish_at", at)
	}
	if received.Decision == store.Repeated {
		h.Observe.tell(JobRepeated, "", 0)
		log.Info("request.repeated")
		return
	}
	h.Observe.tell(JobAccepted, "", time.Since(j.Stored))
	log.Info("request.accepted")
	if err := received.SameTextErr; err != nil {
		h.Log.Warn("request.same_text_unknown", "account", j.in.Request.Account, "request", j.in.Request.ID, "error", err)
	}
	if other := received.SameText; other.ID != "" {
		h.Log.Warn("request.same_text", "account", j.in.Request.Account, "request", j.in.Request.ID,
			"other_account", other.Account, "other_request", other.ID)
	}
}

// refuse records a rejected job in the ledger, in the failed stream and as an event.
func (h *intakeHandler) refuse(ctx context.Context, j *job) (err error) {
	defer func() { j.endTrace(err) }()
	ctx = traced(ctx, j.in.Trace)
	r := *j.refusal
	r.Sequence, r.Stored = j.Sequence, j.Stored
	if err := h.Ledger.Refuse(ctx, r, j.Data); err != nil {
		return err
	}
	if err := h.Announce.DeadLetters.Refused(ctx, r, j.subject, j.Data); err != nil {
		return err
	}
	h.Observe.tell(JobRefused, string(r.Code), 0)
	j.log.Warn("request.refused", "account", r.Account, "request", r.ID, "code", r.Code, "sequence", r.Sequence, "problems", len(r.Problems))
	err = h.tellRefused(ctx, r)
	var tooLarge *publishers.TooLargeError
	if errors.As(err, &tooLarge) && len(r.Problems) > 1 {
		// The ledger has all problems. A message that is too large must not block its
		// partition.
		r.Problems = r.Problems[:1]
		err = h.tellRefused(ctx, r)
	}
	return err
}

func (h *intakeHandler) tellRefused(ctx context.Context, r jetpost.Refusal) error {
	return h.Announce.DeadLetters.Event(ctx, h.Names.RefusedEvent(r.Account, r.Sequence), jetpost.Event{
		EventID: eventID(fmt.Sprintf("refused/%d/%d", r.Sequence, r.Stored.UnixNano())),
		Type:    jetpost.EventRequestRefused, Time: r.Stored, Refusal: &r,
	})
}

// origin returns the account of the stored subject, and the subject that the producer used.
func (h *intakeHandler) origin(stored string) (account, subject string) {
	tokens := strings.Split(h.Names.Trim(stored), ".")
	if len(tokens) == 4 { // publish.intake.<partition>.<account>
		account = tokens[3]
	}
	return account, h.Names.PublishRequest(account)
}

// dependency reports whether err is a fault of NATS or the database, and not of the job.
func dependency(err error) bool {
	for _, fault := range [...]error{
		context.DeadlineExceeded, context.Canceled, store.ErrFenced,
		nats.ErrTimeout, nats.ErrNoResponders, nats.ErrConnectionClosed, nats.ErrConnectionReconnecting, nats.ErrConnectionDraining, nats.ErrDisconnected,
		nats.ErrStaleConnection, nats.ErrNoServers, jetstream.ErrNoStreamResponse, jetstream.ErrStreamNotFound, jetstream.ErrBucketNotFound,
		jetstream.ErrJetStreamNotEnabled, jetstream.ErrJetStreamNotEnabledForAccount, jetstream.ErrTooManyStalledMsgs,
	} {
		if errors.Is(err, fault) {
			return true
		}
	}
	var (
		full     *publishers.QueueFullError
		unset    *publishers.NotSetUpError
		answer   *publishers.NoAnswerError
		none     *publishers.NoJetStreamError
		foreign  *publishers.ForeignStreamError
		api      *jetstream.APIError
		overload = func() bool { return errors.As(err, &api) && api.Code == http.StatusServiceUnavailable }
	)
	return store.Unavailable(err) || errors.As(err, &full) || errors.As(err, &unset) || errors.As(err, &answer) ||
		errors.As(err, &none) || errors.As(err, &foreign) || overload()
}
