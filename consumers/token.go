package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// errStoodStill reports a call whose time had passed while this process was frozen.
var errStoodStill = errors.New("this process was frozen during the call")

const (
	// tellWithin bounds publishing a failure. If that fails, the sweeper publishes it.
	tellWithin = 5 * time.Second
	// saveBound is how long a commit is retried after the worker has to end. Until then
	// it is retried without a bound.
	saveBound = 5 * time.Second
)

// exchanger exchanges a refresh token, which X accepts only once.
type exchanger interface {
	Refresh(ctx context.Context, refreshToken string) (xapi.TokenPair, error)
}

// refreshDeadLetters publishes the results of refreshes.
type refreshDeadLetters interface {
	Event(ctx context.Context, subject string, e jetpost.Event) error
	RefreshFailed(ctx context.Context, account string, reason jetpost.Reason) error
}

// accountNews publishes whether an account must be connected again.
type accountNews interface {
	AnnounceAccounts(ctx context.Context, account string) error
}

// refresher exchanges tokens, at most once per claim. Ticks, requests by hand and lanes all
// get tokens from it.
type refresher struct {
	Tokens      store.Tokens
	X           exchanger
	Gate        *admission.Gate
	DeadLetters refreshDeadLetters
	Announce    accountNews
	Lifeboat    lifeboat
	Names       jetpost.Names
	Health      *health
	// Room is checked before each exchange, because X's answer has to be stored.
	Room    admission.Room
	Timing  tokenTiming
	Observe Observer
	Log     *slog.Logger
	// Stopping is closed when the worker is asked to stop. A pair in the lifeboat then
	// stays there.
	Stopping <-chan struct{}
}

// Stored returns the account's token as it is stored.
func (r *refresher) Stored(ctx context.Context, account string) (store.Token, error) {
	return r.Tokens.Token(ctx, account)
}

// EnsureFresh returns a token that X should accept. With usedVersion 0 it renews a token that
// expires soon. With the version of a token that X has just refused, it renews that token,
// unless another worker already did. A token that was renewed recently is returned as it is,
// because each exchange risks losing the account, and there were hours in which X answered
// every call with 401. If there is no usable token, the error is a *admission.WaitError.
func (r *refresher) EnsureFresh(ctx context.Context, account string, usedVersion int64) (store.Token, error) {
	token, err := r.Tokens.Token(ctx, account)
	if err != nil {
		return store.Token{}, tokenHold(err, time.Now())
	}
	return r.Fresh(ctx, token, usedVersion)
}

// Fresh is EnsureFresh for a token that was just read.
func (r *refresher) Fresh(ctx context.Context, token store.Token, usedVersion int64) (store.Token, error) {
	now := time.Now()
	refused := usedVersion != 0 && token.Version == usedVersion
	switch {
	case token.RequiresReauth:
		return store.Token{}, reauthHold()
	case usedVersion == 0 && token.ExpiresAt.After(now.Add(r.Timing.fresh())):
		return token, nil
	case usedVersion != 0 && !refused:
		return token, nil
	case refused && now.Sub(token.LastRefreshAt) < r.Timing.coolDown():
		return token, nil
	}
	if pause, paused := r.Gate.Paused(admission.TargetRefresh, now); paused {
		return r.useOrHold(token, refused, jetpost.CodeAppPaused, pause.NextAt(), admission.PauseDetail(pause))
	}
	return r.renew(ctx, token, refused)
}

// renew exchanges a token, unless another worker does or did.
func (r *refresher) renew(ctx context.Context, token store.Token, refused bool) (store.Token, error) {
	asked := time.Now()
	if err := r.Room.Err(); err != nil {
		return r.useOrHold(token, refused, jetpost.CodeTokenRefreshFailed, asked.Add(backoff(1)), err.Error())
	}
	current, claimed, err := r.Tokens.ClaimToken(ctx, store.TokenClaim{
		Account: token.Account, UsedVersion: token.Version, Refused: refused, Pace: r.Timing.pace(), Now: asked,
	})
	switch {
	case err != nil:
		return store.Token{}, tokenHold(err, asked)
	case !claimed && current.RequiresReauth:
		return store.Token{}, reauthHold()
	case !claimed && current.Version != token.Version:
		return current, nil
	case !claimed && current.LeaseUntil.After(time.Now()):
		return r.useOrHold(current, refused, jetpost.CodeTokenRefreshFailed, current.LeaseUntil, "the token is being renewed")
	case !claimed:
		detail := cmp.Or(current.RefreshError, "a worker died while it renewed the token")
		return r.useOrHold(current, refused, jetpost.CodeTokenRefreshFailed, current.NextAttemptAt, detail)
	}
	outcome := r.exchange(ctx, current, asked)
	switch {
	case outcome.err == nil:
		return outcome.token, nil
	case outcome.reauth:
		return store.Token{}, reauthHold()
	default:
		return r.useOrHold(current, refused, jetpost.CodeTokenRefreshFailed, outcome.next, outcome.err.Error())
	}
}

// useOrHold returns the token if it is still valid and X has not refused it, else a
// *admission.WaitError until the next try is possible.
func (r *refresher) useOrHold(token store.Token, refused bool, code jetpost.Code, until time.Time, detail string) (store.Token, error) {
	now := time.Now()
	if !refused && token.ExpiresAt.After(now.Add(r.Timing.usable())) {
		return token, nil
	}
	if !until.After(now) {
		until = now.Add(backoff(1))
	}
	return store.Token{}, admission.Wait(code, until, detail)
}

func reauthHold() error {
	return admission.Wait(jetpost.CodeAccountReauthRequired, time.Time{}, "the account has no tokens that X accepts: connect it again")
}

// tokenHold converts a ledger error into a *admission.WaitError.
func tokenHold(err error, now time.Time) error {
	switch {
	case unreadable(err):
		return admission.Wait(jetpost.CodeKeyUnavailable, now.Add(keyRetry), err.Error())
	case errors.Is(err, store.ErrNotFound):
		return reauthHold()
	default:
		return admission.Wait(jetpost.CodeTokenRefreshFailed, now.Add(backoff(1)), err.Error())
	}
}

// unreadable reports whether err is for a token that no configured key decrypts.
func unreadable(err error) bool {
	var key *store.KeyError
	var damaged *store.DamagedError
	return errors.As(err, &key) || errors.As(err, &damaged)
}

// exchanged is the result of one exchange.
type exchanged struct {
	token  store.Token // the new one, if err is nil
	err    error
	reauth bool      // the account must be connected again
	next   time.Time // of the next try, if there is one
}

// exchange exchanges a claimed token and commits the answer of X. It is not cancelled with
// ctx: once the request is sent, its answer has to reach the database, even if the worker
// stops or the lane is lost.
//
// asked is when the claim was requested. The lease began later, so a worker that was frozen
// meanwhile never sends a token that another worker has claimed.
func (r *refresher) exchange(ctx context.Context, claim store.Token, asked time.Time) exchanged {
	log := r.Log.With("account", claim.Account, "token", claim.ID, "version", claim.Version, "attempt", claim.Attempts)
	if !claim.InDoubtSince.IsZero() {
		log = log.With("in_doubt_since", claim.InDoubtSince)
	}
	done, err := r.Gate.Allow(time.Now())
	if err != nil {
		return r.fail(ctx, log, claim, err)
	}
	began := time.Now()
	answer, err := r.X.Refresh(xapi.WithNotAfter(context.WithoutCancel(ctx), asked.Add(r.Timing.sendWithin())), claim.Refresh.Reveal())
	done(r.evidence(err, time.Since(began)))
	if err != nil {
		return r.fail(ctx, log, claim, err)
	}
	now := time.Now()
	pair := store.Pair{
		Access: secret.New(answer.AccessToken), Refresh: secret.New(answer.RefreshToken),
		ExpiresAt: answer.ExpiresAt, Scope: answer.Scope,
	}
	if pair.Scope == "" {
		pair.Scope = claim.Scope
	}
	log.Debug("token.answered")
	if err := r.keep(ctx, log, claim, pair, now); err != nil {
		r.Observe.tell(TokenExchanged, ExchangeUnsaved, 0)
		log.Error("token.save_failed", "error", err)
		return exchanged{err: fmt.Errorf("save token: %w", err), next: time.Now().Add(backoff(1))}
	}
	r.Observe.tell(TokenExchanged, ExchangeBrought, 0)
	log.Info("token.refreshed", "expires_at", pair.ExpiresAt)
	token := claim
	token.Pair, token.Version, token.RefreshedAt = pair, claim.Version+1, now
	token.TokenMeta = store.TokenMeta{LastRefreshAt: now}
	return exchanged{token: token}
}

// evidence is the error of an exchange as the breaker counts it. If the exchange took much
// longer than its timeout, the process was frozen, and the failure says nothing about X.
// Counting such failures trips the breaker of a worker that was frozen, which then skips
// batches that other workers could refresh.
func (r *refresher) evidence(err error, took time.Duration) error {
	if err != nil && took > r.Timing.CallTimeout()*21/20 {
		return errStoodStill
	}
	return err
}

// keep commits a token pair. X accepts only this pair now, so it is in the lifeboat before
// the database is asked, which may not answer. If the worker stops or dies before the
// commit, the next worker reads the pair from the lifeboat. The commit is retried until then.
// The error is store.ErrFenced if a newer pair is stored.
func (r *refresher) keep(ctx context.Context, log *slog.Logger, claim store.Token, pair store.Pair, now time.Time) (err error) {
	in := r.writePair(log, claim, pair, now)
	over := false // stays so if this worker dies
	defer func() { in.end(over) }()
	told := false
	err = r.carry(ctx, func(ctx context.Context, leave func()) error {
		err := r.Tokens.SaveToken(ctx, claim, pair, now)
		if !settled(err) && !told && in.sync() {
			told = true
			log.Warn("token.in_lifeboat", "error", err)
			leave()
		}
		return err
	})
	over = settled(err)
	return err
}

// Recover commits the pairs that are in the lifeboat. They are those that this worker could
// not commit, those of earlier workers, and those of other containers that share the
// directory. It runs at the start and every 10 seconds after that. A pair that is older
// than the stored one is dropped. One that cannot be opened is reported when the others are
// saved. What is left of pairs that a crash of the machine took is logged.
func (r *refresher) Recover(ctx context.Context) error {
	rescued, torn, unopened := r.Lifeboat.Load()
	for _, one := range torn {
		r.Log.Error("token.torn", "token", one.TokenID, "version", one.Version, "file", one.File)
	}
	for _, one := range rescued {
		log := r.Log.With("account", one.Claim.Account, "token", one.Claim.ID, "version", one.Claim.Version)
		err := r.Tokens.SaveToken(ctx, one.Claim, one.Pair, one.At)
		if errors.Is(err, store.ErrFenced) {
			err = r.saveOnOlder(ctx, one)
		}
		switch {
		case err == nil:
			log.Info("token.rescued", "expires_at", one.Pair.ExpiresAt)
		case errors.Is(err, store.ErrFenced):
			log.Info("token.rescue_not_needed")
		default:
			return fmt.Errorf("save token of %s from the lifeboat: %w", one.Claim.Account, err)
		}
		if err := r.Lifeboat.Drop(one.Claim); err != nil {
			return fmt.Errorf("empty lifeboat: %w", err)
		}
	}
	if unopened != nil {
		return fmt.Errorf("load lifeboat: %w", unopened)
	}
	return nil
}

// saveOnOlder saves a pair that is newer than the stored one, though that is of an older version
// than the pair's: the database was restored from a backup, or a standby took over. It fails with
// ErrFenced if the stored pair is not older, or the account was disconnected.
func (r *refresher) saveOnOlder(ctx context.Context, one store.Rescued) error {
	there, err := r.Tokens.Token(ctx, one.Claim.Account)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return store.ErrFenced
	case err != nil:
		return err
	case there.ID != one.Claim.ID || there.Version >= one.Claim.Version || !there.RefreshedAt.Before(one.At) || there.Disconnected():
		return store.ErrFenced
	}
	return r.Tokens.SaveToken(ctx, there, one.Pair, one.At)
}

// fail stores a failed exchange, and publishes it.
func (r *refresher) fail(worker context.Context, log *slog.Logger, claim store.Token, err error) exchanged {
	ctx := context.WithoutCancel(worker)
	now := time.Now()
	failure, pause := r.judge(err, claim, now)
	r.Observe.exchanged(failure.Outcome)
	if pause.Code != "" {
		if err := r.Gate.Pause(ctx, admission.TargetRefresh, pause, now); err != nil {
			log.Error("app.pause_not_shared", "error", err)
		}
	}
	saveErr := r.save(worker, func(ctx context.Context) error {
		// If the database did not answer for long, a new round may have begun. It did
		// not count this token, so it must not find the token due.
		failure.Now = time.Now()
		if soonest := failure.Now.Add(r.Timing.lease()); failure.NextAttempt.Before(soonest) {
			failure.NextAttempt = soonest
		}
		return r.Tokens.SaveTokenFailure(ctx, claim, failure)
	})
	if saveErr != nil {
		if errors.Is(saveErr, store.ErrFenced) {
			// Another worker, or an import, has stored a newer pair, so this
			// failure does not matter any more.
			log.Info("token.failure_outdated", "error", err)
			return exchanged{err: err, next: now}
		}
		log.Error("token.failure_not_saved", "error", saveErr)
	}
	_, next := failure.Leaves(claim)
	reauth := failure.Outcome == store.ExchangeRefused
	log.Warn("token.refresh_failed", "error", err, "outcome", failure.Outcome, "next_attempt", next)
	ctx, over := context.WithTimeout(ctx, tellWithin)
	defer over()
	r.tell(ctx, log, claim.Account, failure, next)
	return exchanged{err: err, reauth: reauth, next: next}
}

// judge is the only table from answers of the token endpoint to token failures.
// docs/x-errors.md lists every answer with its consequence.
//
//	error ........................... outcome   next attempt          pause
//	grant refused ................... refused   never                 no
//	answer lost, 5xx, no pair in it . unknown   near the token's end  no
//	app not accepted ................ nothing   after the pause       15 minutes
//	usage cap, credits, enrolment ... nothing   after the pause       X's date, else 15 minutes
//	429 ............................. nothing   at the reset          no
//	our own wait (breaker) .......... nothing   at its end            no
//	not sent, X says: not now ....... nothing   backoff               no
func (r *refresher) judge(err error, claim store.Token, now time.Time) (store.TokenFailure, jetpost.Reason) {
	failure := store.TokenFailure{Error: err.Error(), NextAttempt: now.Add(jitter(r.Timing.backoff(claim.Attempts))), Now: now}
	var (
		grant     *xapi.GrantRefusedError
		ambiguous *xapi.AmbiguousError
		app       *xapi.AppAuthError
		appError  *xapi.AppError
		limit     *xapi.RateLimitError
		wait      *admission.WaitError
		pause     jetpost.Reason
	)
	switch {
	case errors.As(err, &grant):
		failure.Outcome = store.ExchangeRefused
	case errors.As(err, &ambiguous):
		failure.Outcome = store.ExchangeUnknown
	case errors.As(err, &app):
		pause = jetpost.Reason{Code: jetpost.CodeAppMisconfigured, Detail: "X does not accept the app's client id or secret: " + app.Err.Words()}
	case errors.As(err, &appError):
		pause = jetpost.Reason{Code: jetpost.Code(appError.Reason), Until: appError.Until, Detail: appError.Err.Words()}
	case errors.As(err, &limit) && limit.Until.After(now):
		failure.NextAttempt = limit.Until.Add(rand.N(r.Timing.lease()))
	case errors.As(err, &wait):
		failure.NextAttempt = wait.Reason.Until
	}
	if pause.Code != "" {
		if !pause.Until.After(now) {
			pause.Until = now.Add(r.Timing.appFault())
		}
		failure.NextAttempt = pause.Until
	}
	return failure, pause
}

// tell publishes the failure for operators and, if the account must be connected again, the
// event that says so.
func (r *refresher) tell(ctx context.Context, log *slog.Logger, account string, failure store.TokenFailure, next time.Time) {
	reason := jetpost.Reason{Code: jetpost.CodeTokenRefreshFailed, Detail: failure.Error, Until: next}
	if failure.Outcome == store.ExchangeRefused {
		reason.Code = jetpost.CodeAccountReauthRequired
		if err := r.Announce.AnnounceAccounts(ctx, account); err != nil {
			log.Warn("event.delayed", "error", err) // the sweeper publishes it
		}
	}
	if err := r.DeadLetters.RefreshFailed(ctx, account, reason); err != nil {
		log.Warn("event.delayed", "error", err)
	}
}

// save retries a commit until it succeeds or the ledger refuses it. It gives up saveBound
// after the worker's context has ended.
func (r *refresher) save(worker context.Context, commit func(context.Context) error) error {
	return r.carry(worker, func(ctx context.Context, _ func()) error { return commit(ctx) })
}

// carry is save for a commit that may call leave. After leave, carry gives up as soon as the
// worker stops, because the data is safe elsewhere.
func (r *refresher) carry(worker context.Context, commit func(ctx context.Context, leave func()) error) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(worker))
	defer cancel()
	defer context.AfterFunc(worker, func() { time.AfterFunc(saveBound, cancel) })()
	leave := func() {
		go func() {
			select {
			case <-r.Stopping:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	wait := stallMin
	for {
		err := commit(ctx, leave) // each ledger call has its own timeout
		if settled(err) {
			r.Health.Set("ledger", nil)
			return err
		}
		r.Health.Set("ledger", err)
		if ctx.Err() != nil {
			return err
		}
		sleepContext(ctx, wait)
		wait = min(2*wait, stallMax)
	}
}

// jitter returns a random duration from d to 1.5 d, so that tokens that failed together are
// not tried together.
func jitter(d time.Duration) time.Duration { return d + rand.N(d/2+1) }
