package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// expireBatch is how many late requests are failed in one transaction.
const expireBatch = 500

// AccountPause has an account post nothing more until a time or, where that is zero,
// until somebody resumes it. It replaces an earlier pause. store.ErrNotFound.
func (c *Control) AccountPause(ctx context.Context, account string, in jetpost.PauseRequest) (jetpost.AccountPaused, error) {
	op, err := call(jetpost.OpAccountPause, account, in.OperationID, in)
	if err == nil {
		err = checkPause(in, op.Now)
	}
	if err != nil {
		return jetpost.AccountPaused{}, err
	}
	paused, repeated, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.AccountPaused, error) {
		p := jetpost.AccountPaused{Account: account, Pause: jetpost.AccountPause(wholeMillis(op.Now), wholeMillis(in.Until), in.Reason)}
		return p, accountError(account, ledger.PauseAccount(ctx, account, p.Pause))
	})
	if err != nil || repeated {
		return paused, err
	}
	return paused, c.turned(ctx, account, "paused")
}

// checkPause refuses a time that has passed, and words that would spoil a line.
func checkPause(in jetpost.PauseRequest, now time.Time) error {
	var wrong []string
	if !in.Until.IsZero() && !in.Until.After(now) {
		wrong = append(wrong, "until has passed")
	}
	if n := utf8.RuneCountInString(in.Reason); n > jetpost.MaxPauseReason {
		wrong = append(wrong, fmt.Sprintf("reason has %d characters, at most %d are allowed", n, jetpost.MaxPauseReason))
	}
	if strings.ContainsFunc(in.Reason, func(r rune) bool { return !unicode.IsPrint(r) }) {
		wrong = append(wrong, "reason holds characters that cannot be printed")
	}
	if len(wrong) > 0 {
		return &Error{Code: jetpost.ErrInvalid, Err: errors.New(strings.Join(wrong, "; "))}
	}
	return nil
}

// turned tells that an account was paused or resumed, and has a worker look at it.
func (c *Control) turned(ctx context.Context, name, what string) error {
	if err := errors.Join(c.OutboxRelay.AnnouncePauseChanges(ctx, name), c.wake(ctx, name)); err != nil {
		return &Error{
			Code: jetpost.ErrUnavailable, Err: fmt.Errorf("tell that account %s is %s: %w", name, what, err),
			Help: "it is " + what + "; a worker tells it once NATS takes that",
		}
	}
	return nil
}

func (c *Control) wake(ctx context.Context, account string) error {
	if err := c.wakeups.Wake(ctx, account); err != nil {
		return fmt.Errorf("wake lane of %s: %w", account, err)
	}
	return nil
}

// AppPause has no account post anything until a time or, where that is zero, until
// somebody resumes the app. It returns the pause that holds then: where the app was
// paused already, and for longer, that one, unchanged.
func (c *Control) AppPause(ctx context.Context, in jetpost.PauseRequest) (jetpost.AppPaused, error) {
	op, err := call(jetpost.OpAppPause, "", in.OperationID, in)
	if err == nil {
		err = checkPause(in, op.Now)
	}
	if err != nil {
		return jetpost.AppPaused{}, err
	}
	pauses, err := c.appPauses(ctx)
	if err != nil {
		return jetpost.AppPaused{}, err
	}
	pause := publishers.Pause{
		Target: publishers.TargetPublish, Since: op.Now,
		Reason: jetpost.Reason{Code: jetpost.CodePausedByHand, Detail: in.Reason, Until: wholeMillis(in.Until)},
	}
	planned, repeated, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (p jetpost.AppPaused, err error) {
		p.Pause, p.Changed, err = pauses.Plan(ctx, ledger, pause)
		return p, DatabaseError(err)
	})
	if err != nil || repeated {
		return planned, err
	}
	holds, changed, err := pauses.Set(ctx, pause)
	if err != nil {
		return jetpost.AppPaused{}, err
	}
	paused := jetpost.AppPaused{Pause: holds, Changed: changed}
	c.answered(ctx, op, paused)
	return paused, nil
}

// wholeMillis is a time as every part can keep it.
func wholeMillis(t time.Time) time.Time { return t.Truncate(time.Millisecond) }

// AppResume ends every pause of the app before its time; the workers let go what it
// held. Before that, requests that were due before a time and of which nothing was sent
// fail, unless it is zero.
func (c *Control) AppResume(ctx context.Context, in jetpost.ResumeRequest) (jetpost.Resumed, error) {
	var r jetpost.Resumed
	op, err := call(jetpost.OpAppResume, "", in.OperationID, in)
	if err != nil {
		return r, err
	}
	if was, repeated, err := done[jetpost.Resumed](ctx, c, op); repeated || err != nil {
		return was, err
	}
	if err := c.expireLate(ctx, "", in.ExpireBefore, &r); err != nil {
		return r, err
	}
	pauses, err := c.appPauses(ctx)
	if err != nil {
		return r, err
	}
	if r.Mended, err = pauses.Mend(ctx, op.Now); err != nil {
		return r, err
	}
	var stands []publishers.Pause
	for _, target := range publishers.Targets() {
		pause, there, err := pauses.Bucket.Get(ctx, target)
		if err != nil {
			return r, err
		}
		if there {
			stands = append(stands, pause)
		}
	}
	resumed, repeated, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.Resumed, error) {
		out := r
		if err := ledger.ForgetBilled(ctx, op.Now); err != nil {
			return out, DatabaseError(err)
		}
		ended, err := pauses.PlanEnd(ctx, ledger, stands)
		for _, pause := range ended {
			if pause.Active(op.Now) {
				out.Pauses = append(out.Pauses, pause)
			}
		}
		return out, DatabaseError(err)
	})
	if err != nil || repeated {
		return resumed, err
	}
	for _, target := range publishers.Targets() {
		if err := pauses.Bucket.Clear(ctx, target); err != nil {
			return resumed, err
		}
	}
	return resumed, nil
}

// appPauses is where the app is paused and resumed.
func (c *Control) appPauses(ctx context.Context) (*consumers.AppPauseControl, error) {
	signer, err := consumers.LedgerSigner(ctx, c.Ledger)
	if err != nil {
		return nil, DatabaseError(err)
	}
	return &consumers.AppPauseControl{Bucket: publishers.NewAppPauses(c.JS, c.Names).Signed(signer), Ledger: c.Ledger, Log: c.Log}, nil
}

// AccountResume ends an account's pause, and the wait of what it held. Before that,
// late requests fail as in AppResume. store.ErrNotFound.
func (c *Control) AccountResume(ctx context.Context, account string, in jetpost.ResumeRequest) (jetpost.Resumed, error) {
	r := jetpost.Resumed{Account: account}
	op, err := call(jetpost.OpAccountResume, account, in.OperationID, in)
	if err != nil {
		return r, err
	}
	if was, repeated, err := done[jetpost.Resumed](ctx, c, op); repeated || err != nil {
		return was, err
	}
	if err := c.expireLate(ctx, account, in.ExpireBefore, &r); err != nil {
		return r, err
	}
	resumed, repeated, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.Resumed, error) {
		out := r
		pause, err := ledger.ResumeAccount(ctx, account, op.Now)
		if pause.Active(op.Now) {
			out.Pause = pause
		}
		return out, accountError(account, err)
	})
	if err != nil || repeated || resumed.Pause.Since.IsZero() {
		return resumed, err
	}
	return resumed, c.turned(ctx, account, "resumed")
}

// expireLate fails what is too late, of one account or, with "", of all, and tells
// so. It does so in many transactions: where it ends in the middle, a repeat goes on.
func (c *Control) expireLate(ctx context.Context, account string, dueBefore time.Time, r *jetpost.Resumed) error {
	if dueBefore.IsZero() {
		return nil
	}
	lines, err := c.Ledger.Late(ctx, account, dueBefore, 1) // who has any
	if err != nil {
		return DatabaseError(err)
	}
	for _, line := range lines {
		for more := true; more; {
			keys, err := c.Ledger.ExpireLate(ctx, line.Account, dueBefore, expireBatch, time.Now())
			if err != nil {
				return DatabaseError(err)
			}
			for _, key := range keys {
				if err := c.OutboxRelay.Announce(ctx, key); err != nil {
					c.Log.Warn("event.delayed", "account", key.Account, "request", key.ID, "error", err)
				}
			}
			r.Expired += len(keys)
			more = len(keys) == expireBatch
		}
		if err := c.wake(ctx, line.Account); err != nil {
			return err
		}
	}
	if len(lines) == 0 {
		return nil
	}
	left, err := c.Ledger.Late(ctx, account, dueBefore, maxLate)
	for _, line := range left {
		r.Begun += line.Begun
	}
	return DatabaseError(err)
}

// maxLate bounds the late requests of one account that are counted.
const maxLate = 1000
