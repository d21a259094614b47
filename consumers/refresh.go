package consumers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// DefaultRefreshWindow makes a token due that expires within it.
	DefaultRefreshWindow = 24 * time.Hour
	// DefaultRefreshBatch is how many tokens one message asks to refresh.
	DefaultRefreshBatch = 10
	// exchangeLease is how long a claimed token belongs to its claimer.
	exchangeLease = 30 * time.Second
	// exchangeSendWithin is how long after its claim was asked for an exchange may be sent.
	// With the call's own limit of 10 seconds it ends well before the lease.
	exchangeSendWithin = 10 * time.Second
	// saveBound is how long a pair that X gave is still carried to the
	// database once the worker has to end; before, as long as it takes.
	saveBound = 25 * time.Second
	// lostAnswerMargin is how long before its end a token whose exchange was
	// lost is tried once more. Until then the access token serves.
	lostAnswerMargin = 2 * time.Minute
	// refreshBackoff spreads the next tries of failed refreshes; jittered by
	// up to half.
	refreshBackoff = time.Minute
	// appFaultStop is how long all refreshes stop when X does not accept the
	// app itself.
	appFaultStop = 15 * time.Minute
)

// exchanger trades a refresh token, which X takes only once.
type exchanger interface {
	Refresh(ctx context.Context, refreshToken string) (xapi.TokenPair, error)
}

// refreshRecords publishes what became of refreshes.
type refreshRecords interface {
	Event(ctx context.Context, subject string, e jetpost.Event) error
	RefreshFailed(ctx context.Context, account string, reason jetpost.Reason) error
}

// Refresher exchanges tokens, each at most once a claim. It is the one way to
// a token: a tick, a request by hand and a lane all come through it.
type Refresher struct {
	Tokens  store.Tokens
	X       exchanger
	Gate    *Gate
	Records refreshRecords
	Names   jetpost.Names
	Health  *Health
	Log     *slog.Logger
}

// Fresh returns a token that X should take. With usedVersion 0 it renews one
// that ends within five minutes; with the version of a token that X has just
// refused, it renews that one, unless another worker already did. Where it
// cannot, its error holds the request.
func (r *Refresher) Fresh(ctx context.Context, account string, usedVersion int64) (store.Token, error) {
	now := time.Now()
	token, err := r.Tokens.Token(ctx, account)
	if err != nil {
		return store.Token{}, tokenHold(err, now)
	}
	switch {
	case token.RequiresReauth:
		return store.Token{}, reauthHold()
	case usedVersion == 0 && token.ExpiresAt.After(now.Add(freshMargin)):
		return token, nil
	case usedVersion != 0 && token.Version != usedVersion:
		return token, nil
	}
	if stop, stopped := r.Gate.Stopped(ScopeRefresh, now); stopped {
		return r.useOrHold(token, usedVersion, now, jetpost.CodeAppStopped, stop.Reason.Until, stopDetail(stop.Reason, stop.Reason.Until))
	}
	now = time.Now()
	current, claimed, err := r.Tokens.ClaimToken(ctx, account, token.Version, usedVersion != 0, exchangeLease, now)
	switch {
	case err != nil:
		return store.Token{}, tokenHold(err, now)
	case !claimed && current.RequiresReauth:
		return store.Token{}, reauthHold()
	case !claimed:
		until := current.LeaseUntil
		if current.NextAttemptAt.After(until) {
			until = current.NextAttemptAt
		}
		return r.useOrHold(current, usedVersion, now, jetpost.CodeTokenRefreshFailed, until, "the token is being renewed")
	}
	outcome := r.exchange(ctx, current, now)
	if outcome.err == nil {
		return outcome.token, nil
	}
	if outcome.reauth {
		return store.Token{}, reauthHold()
	}
	return r.useOrHold(current, usedVersion, now, jetpost.CodeTokenRefreshFailed, outcome.next, outcome.err.Error())
}

// useOrHold lets a token serve that still lives and that X has not refused.
func (r *Refresher) useOrHold(token store.Token, usedVersion int64, now time.Time, code jetpost.Code, until time.Time, detail string) (store.Token, error) {
	if token.Version != usedVersion && token.ExpiresAt.After(now.Add(usableMargin)) {
		return token, nil
	}
	if !until.After(now) {
		until = now.Add(backoff(1))
	}
	return store.Token{}, &holdError{Hold(code, until, detail)}
}

func reauthHold() error {
	return &holdError{Hold(jetpost.CodeAccountReauthRequired, time.Time{}, "X no longer accepts the account's tokens; import it again")}
}

// tokenHold tells a key that is missing from a database that cannot be asked.
func tokenHold(err error, now time.Time) error {
	switch {
	case unreadable(err):
		return &holdError{Hold(jetpost.CodeKeyUnavailable, now.Add(undatedStop), err.Error())}
	case errors.Is(err, store.ErrNotFound):
		return reauthHold()
	default:
		return &holdError{Hold(jetpost.CodeTokenRefreshFailed, now.Add(backoff(1)), err.Error())}
	}
}

// unreadable tells tokens that no configured key opens.
func unreadable(err error) bool {
	var key *store.KeyError
	var damaged *store.DamagedError
	return errors.As(err, &key) || errors.As(err, &damaged)
}

// exchanged is what came of one exchange.
type exchanged struct {
	token  store.Token // the new one, where err is nil
	err    error
	reauth bool
	next   time.Time // of the next try, where there is one
}

// exchange trades a claimed token and commits what X said. It runs on a
// context of its own: once the request is on its way, neither a worker that
// stops nor a lane that is lost may keep its answer from the database.
//
// asked is when the claim was asked for. The lease began after it, so a worker
// that was frozen meanwhile never sends a token which another one has claimed.
func (r *Refresher) exchange(ctx context.Context, claim store.Token, asked time.Time) exchanged {
	worker := ctx
	ctx = context.WithoutCancel(ctx)
	log := r.Log.With("account", claim.Account, "token", claim.ID, "version", claim.Version)
	done, err := r.Gate.Allow(time.Now())
	if err != nil {
		return r.fail(worker, log, claim, err)
	}
	pair, err := r.X.Refresh(xapi.WithNotAfter(ctx, asked.Add(exchangeSendWithin)), claim.Refresh.Reveal())
	done(err)
	if err != nil {
		return r.fail(worker, log, claim, err)
	}
	fresh := store.Pair{
		Access: secret.New(pair.AccessToken), Refresh: secret.New(pair.RefreshToken),
		ExpiresAt: pair.ExpiresAt, Scope: pair.Scope,
	}
	if fresh.Scope == "" {
		fresh.Scope = claim.Scope
	}
	now := time.Now()
	if err := r.save(worker, func(ctx context.Context) error { return r.Tokens.SaveToken(ctx, claim, fresh, now) }); err != nil {
		// The pair in hand is the only one that X takes now. If another import
		// fenced us, its pair is newer and this one is not needed.
		log.Error("token.save_failed", "error", err)
		return exchanged{err: fmt.Errorf("save token: %w", err), next: now.Add(backoff(1))}
	}
	log.Info("token.refreshed", "expires_at", fresh.ExpiresAt)
	token := claim
	token.Pair, token.Version, token.RefreshedAt = fresh, claim.Version+1, now
	token.TokenMeta = store.TokenMeta{LastRefreshAt: now}
	return exchanged{token: token}
}

// fail classifies an exchange that brought no pair, and records it.
func (r *Refresher) fail(worker context.Context, log *slog.Logger, claim store.Token, err error) exchanged {
	ctx := context.WithoutCancel(worker)
	now := time.Now()
	failure := store.TokenFailure{Error: err.Error(), NextAttempt: now.Add(jitter(refreshBackoff)), Now: now}
	var (
		grant     *xapi.GrantRefusedError
		app       *xapi.AppAuthError
		limit     *xapi.RateLimitError
		ambiguous *xapi.AmbiguousError
		hold      *holdError
	)
	switch {
	case errors.As(err, &grant):
		// Only this says that the account must be connected again.
		failure.Reauth = true
	case errors.As(err, &app):
		reason := jetpost.Reason{Code: jetpost.CodeAppMisconfigured, Until: now.Add(appFaultStop),
			Detail: "X does not accept the app's client id or secret: " + app.Err.Words()}
		if err := r.Gate.Stop(ctx, ScopeRefresh, reason, now); err != nil {
			log.Error("app.stop_not_shared", "error", err)
		}
		failure.NextAttempt = reason.Until
	case errors.As(err, &limit) && limit.Until.After(now):
		failure.NextAttempt = limit.Until
	case errors.As(err, &ambiguous):
		// The refresh token may be spent. The access token serves on; near its
		// end the one way to find out is to present the token once more.
		if last := claim.ExpiresAt.Add(-lostAnswerMargin); last.After(failure.NextAttempt) {
			failure.NextAttempt = last
		}
	case errors.As(err, &hold):
		failure.NextAttempt = hold.verdict.reason.Until
	}
	if saveErr := r.save(worker, func(ctx context.Context) error { return r.Tokens.SaveTokenFailure(ctx, claim, failure) }); saveErr != nil {
		if errors.Is(saveErr, store.ErrFenced) {
			// Another worker, or an import, brought a newer pair: this failure
			// is about a token that no longer matters.
			return exchanged{err: err, next: now}
		}
		log.Error("token.failure_not_saved", "error", saveErr)
	}
	log.Warn("token.refresh_failed", "error", err, "reauth", failure.Reauth, "next_attempt", failure.NextAttempt)
	r.tell(ctx, log, claim, failure)
	return exchanged{err: err, reauth: failure.Reauth, next: failure.NextAttempt}
}

// tell publishes the failure for operators and, where the user must act, the
// event that says so.
func (r *Refresher) tell(ctx context.Context, log *slog.Logger, claim store.Token, failure store.TokenFailure) {
	reason := jetpost.Reason{Code: jetpost.CodeTokenRefreshFailed, Detail: failure.Error, Until: failure.NextAttempt}
	if failure.Reauth {
		reason = jetpost.Reason{Code: jetpost.CodeAccountReauthRequired, Detail: failure.Error}
		event := jetpost.Event{
			EventID: eventID(fmt.Sprintf("reauth/%s/%d", claim.Account, claim.Version)),
			Type:    jetpost.EventAccountReauthRequired, Time: time.Now().UTC(),
			Account: &jetpost.AccountStatus{Account: claim.Account, Reason: &reason},
		}
		if err := r.Records.Event(ctx, r.Names.EventSubject(event.Type, claim.Account, ""), event); err != nil {
			log.Warn("event.delayed", "error", err)
		}
	}
	if err := r.Records.RefreshFailed(ctx, claim.Account, reason); err != nil {
		log.Warn("event.delayed", "error", err)
	}
}

// save tries a commit until it succeeds or is refused, and gives up only when
// saveBound is over after the worker's context has ended.
func (r *Refresher) save(worker context.Context, commit func(context.Context) error) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(worker))
	defer cancel()
	defer context.AfterFunc(worker, func() { time.AfterFunc(saveBound, cancel) })()
	wait := stallMin
	for {
		err := commit(ctx)
		if settled(err) {
			r.Health.Set("ledger", nil)
			return err
		}
		r.Health.Set("ledger", err)
		if ctx.Err() != nil {
			return err
		}
		pause(ctx, wait)
		wait = min(2*wait, stallMax)
	}
}

// jitter spreads d over d to 1.5 d, so that tokens that failed together are
// not tried together.
func jitter(d time.Duration) time.Duration { return d + rand.N(d/2+1) }

// refreshBells carries batches to whoever is free.
type refreshBells interface {
	Batch(ctx context.Context, batch jetpost.RefreshBatch) error
}

// RefreshHandler handles ticks, batches and single refreshes. A tick opens a
// round and cuts it into batches that all workers share; a batch claims what
// is due then, skipping what others hold.
type RefreshHandler struct {
	Refresher *Refresher
	Bells     refreshBells
	Names     jetpost.Names
	Window    time.Duration // DefaultRefreshWindow where zero
	BatchSize int           // DefaultRefreshBatch where zero
	Log       *slog.Logger
}

func (h *RefreshHandler) window() time.Duration {
	if h.Window == 0 {
		return DefaultRefreshWindow
	}
	return h.Window
}

func (h *RefreshHandler) batchSize() int {
	if h.BatchSize == 0 {
		return DefaultRefreshBatch
	}
	return h.BatchSize
}

// Handle handles one message of the refresh stream.
func (h *RefreshHandler) Handle(ctx context.Context, d Delivery) Verdict {
	subject := h.Names.Trim(d.Subject)
	switch subject[strings.LastIndexByte(subject, '.')+1:] {
	case "tick":
		return h.tick(ctx)
	case "batch":
		var batch jetpost.RefreshBatch
		if err := json.Unmarshal(d.Data, &batch); err != nil {
			h.Log.Warn("refresh.unreadable", "subject", subject, "error", err)
			return Done()
		}
		return h.batch(ctx, batch)
	case "request":
		var request jetpost.RefreshRequest
		body := json.NewDecoder(bytes.NewReader(d.Data))
		body.DisallowUnknownFields() // a misspelt force must not be taken for none
		if err := body.Decode(&request); err != nil {
			h.Log.Warn("refresh.unreadable", "subject", subject, "error", err)
			return Done()
		}
		return h.one(ctx, request)
	default:
		h.Log.Warn("refresh.unreadable", "subject", subject)
		return Done()
	}
}

// tick opens a round. A tick that comes twice opens two; the second finds
// nothing due.
func (h *RefreshHandler) tick(ctx context.Context) Verdict {
	now := time.Now()
	if stop, stopped := h.Refresher.Gate.Stopped(ScopeRefresh, now); stopped {
		h.Log.Warn("refresh.skipped", "code", stop.Reason.Code, "until", stop.Reason.Until)
		return Done()
	}
	round, err := h.Refresher.Tokens.OpenRound(ctx, h.window(), h.batchSize(), now)
	if err != nil {
		return Stall(err)
	}
	h.Log.Info("refresh.round_opened", "round", round.Round, "tokens", round.Total, "batches", round.Batches)
	for n := range round.Batches {
		if err := h.Bells.Batch(ctx, jetpost.RefreshBatch{Round: round.Round, Batch: n}); err != nil {
			return Stall(err)
		}
	}
	if round.Batches == 0 {
		return h.complete(ctx, round)
	}
	return Done()
}

// batch refreshes one batch. Its tokens are exchanged at once, since each is
// claimed for no longer than one exchange takes.
func (h *RefreshHandler) batch(ctx context.Context, batch jetpost.RefreshBatch) Verdict {
	r := h.Refresher
	asked := time.Now()
	tokens, err := h.claim(ctx, batch)
	if err != nil {
		return Stall(err)
	}
	var mu sync.Mutex
	refreshed, failed := 0, 0
	var group errgroup.Group
	for _, token := range tokens {
		group.Go(func() error {
			outcome := r.exchange(ctx, token, asked)
			mu.Lock()
			defer mu.Unlock()
			if outcome.err != nil {
				failed++
			} else {
				refreshed++
			}
			return nil
		})
	}
	_ = group.Wait() // each outcome was recorded with its token
	// Told until it is counted: a second run of the batch would claim others.
	var round store.Round
	err = r.save(ctx, func(ctx context.Context) (err error) {
		round, err = r.Tokens.BatchDone(ctx, batch.Round, batch.Batch, refreshed, failed, 0, time.Now())
		return err
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		h.Log.Warn("refresh.round_unknown", "round", batch.Round)
		return Done()
	case err != nil:
		return Stall(err)
	}
	return h.complete(ctx, round)
}

// claim takes the tokens of a batch: none while refreshes are stopped, since
// what one batch has met all others would meet too.
func (h *RefreshHandler) claim(ctx context.Context, batch jetpost.RefreshBatch) ([]store.Token, error) {
	now := time.Now()
	if stop, stopped := h.Refresher.Gate.Stopped(ScopeRefresh, now); stopped {
		h.Log.Warn("refresh.skipped", "round", batch.Round, "code", stop.Reason.Code, "until", stop.Reason.Until)
		return nil, nil
	}
	tokens, err := h.Refresher.Tokens.ClaimDue(ctx, store.DueClaim{
		Round: batch.Round, Window: h.window(), Limit: h.batchSize(), Lease: exchangeLease, Now: now,
	})
	if unreadable(err) {
		// Those that do not open wait for their key; the others need not.
		h.Log.Error("token.unreadable", "round", batch.Round, "error", err)
		return tokens, nil
	}
	return tokens, err
}

// complete publishes a round's summary once its last batch is counted. What
// was neither refreshed nor failed was skipped: somebody else had renewed it,
// or it could not be tried.
func (h *RefreshHandler) complete(ctx context.Context, round store.Round) Verdict {
	if !round.Completed || round.Announced {
		return Done()
	}
	round.Skipped = max(0, round.Total-round.Refreshed-round.Failed)
	event := jetpost.Event{
		EventID: eventID("round/" + round.Round), Type: jetpost.EventRefreshCompleted,
		Time: time.Now().UTC(), Refresh: &round.RefreshSummary,
	}
	if err := h.Refresher.Records.Event(ctx, h.Names.EventSubject(jetpost.EventRefreshCompleted, "", ""), event); err != nil {
		return Stall(err)
	}
	if err := h.Refresher.Tokens.RoundAnnounced(ctx, round.Round); err != nil {
		return Stall(err)
	}
	h.Log.Info("refresh.completed", "round", round.Round, "total", round.Total,
		"refreshed", round.Refreshed, "failed", round.Failed, "skipped", round.Skipped)
	return Done()
}

// one refreshes one account's token, by hand.
func (h *RefreshHandler) one(ctx context.Context, request jetpost.RefreshRequest) Verdict {
	r := h.Refresher
	if stop, stopped := r.Gate.Stopped(ScopeRefresh, time.Now()); stopped {
		h.Log.Warn("refresh.skipped", "account", request.Account, "code", stop.Reason.Code, "until", stop.Reason.Until)
		return Done()
	}
	token, err := r.Tokens.Token(ctx, request.Account)
	switch {
	case errors.Is(err, store.ErrNotFound):
		h.Log.Warn("refresh.unknown", "account", request.Account)
		return Done()
	case unreadable(err):
		h.Log.Error("token.unreadable", "account", request.Account, "error", err)
		return Done()
	case err != nil:
		return Stall(err)
	}
	now := time.Now()
	if young := now.Before(token.RefreshAfter(token.RefreshedAt)) || token.ExpiresAt.After(now.Add(h.window())); young && !request.Force {
		h.Log.Info("refresh.not_due", "account", request.Account)
		return Done()
	}
	claim, claimed, err := r.Tokens.ClaimToken(ctx, request.Account, token.Version, request.Force, exchangeLease, now)
	switch {
	case err != nil:
		return Stall(err)
	case claimed:
		r.exchange(ctx, claim, now)
	}
	return Done()
}
