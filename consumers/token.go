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
	"github.com/jetpost/jetpost/consumers/admission"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// errStoodStill tells of a call that was over long before it could be ended.
var errStoodStill = errors.New("this process stood still meanwhile")

const (
	// tellWithin bounds telling of a failure, which the sweeper does else.
	tellWithin = 5 * time.Second
	// saveBound is how long that is still tried once the worker has to end; before,
	// as long as it takes.
	saveBound = 5 * time.Second
)

// exchanger trades a refresh token, which X takes only once.
type exchanger interface {
	Refresh(ctx context.Context, refreshToken string) (xapi.TokenPair, error)
}

// refreshDeadLetters publishes what became of refreshes.
type refreshDeadLetters interface {
	Event(ctx context.Context, subject string, e jetpost.Event) error
	RefreshFailed(ctx context.Context, account string, reason jetpost.Reason) error
}

// accountNews tells what the ledger says an account requires.
type accountNews interface {
	AnnounceAccounts(ctx context.Context, account string) error
}

// lifeboat keeps pairs that the database has not taken yet.
type lifeboat interface {
	Keep(claim store.Token, pair store.Pair, now time.Time) error
	Drop(claim store.Token) error
	Load() ([]store.Rescued, error)
}

// Refresher exchanges tokens, each at most once a claim. It is the one way to
// a token: a tick, a request by hand and a lane all come through it.
type Refresher struct {
	Tokens      store.Tokens
	X           exchanger
	Gate        *admission.Gate
	DeadLetters refreshDeadLetters
	Announce    accountNews
	Lifeboat    lifeboat
	Names       jetpost.Names
	Health      *Health
	// Room is looked at before each exchange: X's answer has to be kept.
	Room   admission.Room
	Timing TokenTiming
	Log    *slog.Logger
	// Stopping is closed when the worker is asked to stop: a pair that lies in the
	// lifeboat is then left there.
	Stopping <-chan struct{}
}

// Stored returns the account's token as it is.
func (r *Refresher) Stored(ctx context.Context, account string) (store.Token, error) {
	return r.Tokens.Token(ctx, account)
}

// EnsureFresh returns a token that X should take. With usedVersion 0 it renews
// one that ends soon; with the version of a token that X has just refused, it
// renews that one, unless another worker already did. One that was renewed only
// a while ago comes back as it is: each exchange is a chance to lose the
// account, and X has answered 401 to everybody for hours. Where there is no
// token to use, its error holds the request.
func (r *Refresher) EnsureFresh(ctx context.Context, account string, usedVersion int64) (store.Token, error) {
	token, err := r.Tokens.Token(ctx, account)
	if err != nil {
		return store.Token{}, tokenHold(err, time.Now())
	}
	return r.Fresh(ctx, token, usedVersion)
}

// Fresh is EnsureFresh for a token that was read a moment ago.
func (r *Refresher) Fresh(ctx context.Context, token store.Token, usedVersion int64) (store.Token, error) {
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
	if stop, stopped := r.Gate.Paused(admission.TargetRefresh, now); stopped {
		return r.useOrHold(token, refused, jetpost.CodeAppPaused, stop.NextAt(), admission.PauseDetail(stop))
	}
	return r.renew(ctx, token, refused)
}

// renew exchanges a token, unless somebody else does or did.
func (r *Refresher) renew(ctx context.Context, token store.Token, refused bool) (store.Token, error) {
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
		detail := cmp.Or(current.RefreshError, "a worker was lost while it renewed the token")
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

// useOrHold lets a token serve that still lives and that X has not refused. A
// hold lasts until a next try is possible.
func (r *Refresher) useOrHold(token store.Token, refused bool, code jetpost.Code, until time.Time, detail string) (store.Token, error) {
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

// tokenHold tells a key that is missing from a database that cannot be asked.
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
		log.Error("token.save_failed", "error", err)
		return exchanged{err: fmt.Errorf("save token: %w", err), next: time.Now().Add(backoff(1))}
	}
	log.Info("token.refreshed", "expires_at", pair.ExpiresAt)
	token := claim
	token.Pair, token.Version, token.RefreshedAt = pair, claim.Version+1, now
	token.TokenMeta = store.TokenMeta{LastRefreshAt: now}
	return exchanged{token: token}
}

// evidence is what an exchange says about X. One that took much longer than it
// may says nothing: this process stood still, and as it goes on all its calls
// have failed. Were X blamed for that, a worker that was frozen would skip the
// batches of the whole round in no time, which others could have refreshed.
func (r *Refresher) evidence(err error, took time.Duration) error {
	if err != nil && took > r.Timing.CallTimeout()*21/20 {
		return errStoodStill
	}
	return err
}

// keep commits a pair. It is the only one that X takes now, so it goes into the
// lifeboat before the database is asked, which may neither answer nor fail: a worker
// that stops or is killed meanwhile leaves it there to the next one. The database is
// asked until then. store.ErrFenced says that a newer pair is there.
func (r *Refresher) keep(ctx context.Context, log *slog.Logger, claim store.Token, pair store.Pair, now time.Time) error {
	afloat := false
	if r.Lifeboat != nil {
		if err := r.Lifeboat.Keep(claim, pair, now); err != nil {
			log.Error("token.not_in_lifeboat", "error", err)
		} else {
			afloat = true
		}
	}
	told := false
	err := r.carry(ctx, func(ctx context.Context, leave func()) error {
		err := r.Tokens.SaveToken(ctx, claim, pair, now)
		if !settled(err) && afloat && !told {
			told = true
			log.Warn("token.in_lifeboat", "error", err)
			leave()
		}
		return err
	})
	if afloat && settled(err) {
		if err := r.Lifeboat.Drop(claim); err != nil {
			log.Warn("token.lifeboat_not_emptied", "error", err) // the next start finds that it is not needed
		}
	}
	return err
}

// Recover commits the pairs that earlier workers of this machine had to leave
// in the lifeboat. One that is older than what is stored is let go.
func (r *Refresher) Recover(ctx context.Context) error {
	rescued, err := r.Lifeboat.Load()
	if err != nil {
		return fmt.Errorf("load lifeboat: %w", err)
	}
	for _, one := range rescued {
		log := r.Log.With("account", one.Claim.Account, "token", one.Claim.ID, "version", one.Claim.Version)
		err := r.Tokens.SaveToken(ctx, one.Claim, one.Pair, one.At)
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
	return nil
}

// fail records an exchange that brought no pair, and tells of it.
func (r *Refresher) fail(worker context.Context, log *slog.Logger, claim store.Token, err error) exchanged {
	ctx := context.WithoutCancel(worker)
	now := time.Now()
	failure, stop := r.judge(err, claim, now)
	if stop.Code != "" {
		if err := r.Gate.Pause(ctx, admission.TargetRefresh, stop, now); err != nil {
			log.Error("app.pause_not_shared", "error", err)
		}
	}
	saveErr := r.save(worker, func(ctx context.Context) error {
		// A database that was away may take it long after: a round that was opened
		// meanwhile did not count this token, and must not find it due.
		failure.Now = time.Now()
		if soonest := failure.Now.Add(r.Timing.lease()); failure.NextAttempt.Before(soonest) {
			failure.NextAttempt = soonest
		}
		return r.Tokens.SaveTokenFailure(ctx, claim, failure)
	})
	if saveErr != nil {
		if errors.Is(saveErr, store.ErrFenced) {
			// Another worker, or an import, brought a newer pair: this failure
			// is about a token that no longer matters.
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

// judge is the one table from what the token endpoint said to what is left of
// the claim. docs/x-errors.md has every answer with what becomes of it.
//
//	error ........................... outcome   next attempt          stop
//	grant refused ................... refused   never                 no
//	answer lost, 5xx, no pair in it . unknown   near the token's end  no
//	app not accepted ................ nothing   after the stop        15 minutes
//	usage cap, credits, enrolment ... nothing   after the stop        X's date, else 15 minutes
//	429 ............................. nothing   at the reset          no
//	our own wait (breaker) .......... nothing   at its end            no
//	not sent, X says: not now ....... nothing   backoff               no
func (r *Refresher) judge(err error, claim store.Token, now time.Time) (store.TokenFailure, jetpost.Reason) {
	failure := store.TokenFailure{Error: err.Error(), NextAttempt: now.Add(jitter(r.Timing.backoff(claim.Attempts))), Now: now}
	var (
		grant     *xapi.GrantRefusedError
		ambiguous *xapi.AmbiguousError
		app       *xapi.AppAuthError
		appError  *xapi.AppError
		limit     *xapi.RateLimitError
		wait      *admission.WaitError
		stop      jetpost.Reason
	)
	switch {
	case errors.As(err, &grant):
		failure.Outcome = store.ExchangeRefused
	case errors.As(err, &ambiguous):
		failure.Outcome = store.ExchangeUnknown
	case errors.As(err, &app):
		stop = jetpost.Reason{Code: jetpost.CodeAppMisconfigured, Detail: "X does not accept the app's client id or secret: " + app.Err.Words()}
	case errors.As(err, &appError):
		stop = jetpost.Reason{Code: jetpost.Code(appError.Reason), Until: appError.Until, Detail: appError.Err.Words()}
	case errors.As(err, &limit) && limit.Until.After(now):
		failure.NextAttempt = limit.Until.Add(rand.N(r.Timing.lease()))
	case errors.As(err, &wait):
		failure.NextAttempt = wait.Reason.Until
	}
	if stop.Code != "" {
		if !stop.Until.After(now) {
			stop.Until = now.Add(r.Timing.appFault())
		}
		failure.NextAttempt = stop.Until
	}
	return failure, stop
}

// tell publishes the failure for operators and, where the user must act, the
// event that says so.
func (r *Refresher) tell(ctx context.Context, log *slog.Logger, account string, failure store.TokenFailure, next time.Time) {
	reason := jetpost.Reason{Code: jetpost.CodeTokenRefreshFailed, Detail: failure.Error, Until: next}
	if failure.Outcome == store.ExchangeRefused {
		reason.Code = jetpost.CodeAccountReauthRequired
		if err := r.Announce.AnnounceAccounts(ctx, account); err != nil {
			log.Warn("event.delayed", "error", err) // the sweeper tells it
		}
	}
	if err := r.DeadLetters.RefreshFailed(ctx, account, reason); err != nil {
		log.Warn("event.delayed", "error", err)
	}
}

// save tries a commit until it succeeds or is refused, and gives up only when
// saveBound is over after the worker's context has ended.
func (r *Refresher) save(worker context.Context, commit func(context.Context) error) error {
	return r.carry(worker, func(ctx context.Context, _ func()) error { return commit(ctx) })
}

// carry is save for a commit that may call leave: what it commits is safe elsewhere,
// and is left there when the worker stops.
func (r *Refresher) carry(worker context.Context, commit func(ctx context.Context, leave func()) error) error {
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
		err := commit(ctx, leave) // each call of the ledger ends by itself
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
