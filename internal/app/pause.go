package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/consumers/admission"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// expireBatch is how many late requests are failed in one transaction.
const expireBatch = 500

// Paused is an account that somebody has paused.
type Paused struct {
	Account string      `json:"account"`
	Pause   store.Pause `json:"pause"`
}

// PauseAccount has an account post nothing more until a time or, where that is zero,
// until somebody resumes it. It replaces an earlier pause. store.ErrNotFound.
func (d *Control) PauseAccount(ctx context.Context, name string, until time.Time, reason string) (Paused, error) {
	p := Paused{Account: name, Pause: jetpost.AccountPause(wholeMillis(time.Now()), wholeMillis(until), reason)}
	if err := d.Ledger.PauseAccount(ctx, name, p.Pause); err != nil {
		return Paused{}, accountError(name, err)
	}
	return p, d.turned(ctx, name, "paused")
}

// turned tells that an account was paused or resumed, and has a worker look at it.
func (d *Control) turned(ctx context.Context, name, what string) error {
	if err := errors.Join(d.relay.AnnouncePauseChanges(ctx, name), d.ring(ctx, name)); err != nil {
		return &HintError{Err: fmt.Errorf("tell that account %s is %s: %w", name, what, err), Help: "it is " + what + "; a worker tells it once NATS takes that"}
	}
	return nil
}

func (d *Control) ring(ctx context.Context, account string) error {
	if err := d.Wakeups.Wake(ctx, account); err != nil {
		return fmt.Errorf("ring lane of %s: %w", account, err)
	}
	return nil
}

// PauseApp has no account post anything until a time or, where that is zero, until
// somebody resumes the app. It returns the stop that holds then: where the app was
// stopped already, and for longer, that one, and false.
func (d *Control) PauseApp(ctx context.Context, until time.Time, reason string) (publishers.Pause, bool, error) {
	pauses, err := pauseControl(ctx, d.Conn, d.Ledger, d.log)
	if err != nil {
		return publishers.Pause{}, false, err
	}
	return pauses.Set(ctx, publishers.Pause{
		Target: publishers.TargetPublish, Since: time.Now(),
		Reason: jetpost.Reason{Code: jetpost.CodePausedByHand, Detail: reason, Until: wholeMillis(until)},
	})
}

// wholeMillis is a time as every part can keep it.
func wholeMillis(t time.Time) time.Time { return t.Truncate(time.Millisecond) }

// Resumed tells what a resume has ended.
type Resumed struct {
	// AppPauses of the app that were in force.
	Stops []publishers.Pause `json:"stops,omitempty"`
	// Mended tells what an earlier resume has left behind, a sentence each.
	Mended []string `json:"mended,omitempty"`
	// Account is the one that was resumed, and Pause the one that was in force.
	Account string      `json:"account,omitempty"`
	Pause   store.Pause `json:"pause,omitzero"`
	// Expired counts the requests that were failed since they were too late, and
	// Begun those that are as late and go on.
	Expired int `json:"expired"`
	Begun   int `json:"late_and_begun"`
}

// ResumeApp ends every app pause before its time; the workers let go what it
// held. Before that, requests that were due longer ago than olderThan and of
// which nothing was sent fail, unless it is zero.
func (d *Control) ResumeApp(ctx context.Context, olderThan time.Duration) (r Resumed, err error) {
	if err := d.expireLate(ctx, "", olderThan, &r); err != nil {
		return r, err
	}
	pauses, err := pauseControl(ctx, d.Conn, d.Ledger, d.log)
	if err != nil {
		return r, err
	}
	now := time.Now()
	if r.Mended, err = pauses.Mend(ctx, now); err != nil {
		return r, err
	}
	for _, scope := range publishers.Targets() {
		stop, err := pauses.Clear(ctx, admission.Target(scope))
		if err != nil {
			return r, err
		}
		if stop.Target != "" && stop.Active(now) {
			r.Stops = append(r.Stops, stop)
		}
	}
	return r, nil
}

// pauseControl is where the app is stopped and resumed.
func pauseControl(ctx context.Context, conn *Connection, ledger store.Store, log *slog.Logger) (*consumers.AppPauseControl, error) {
	signer, err := consumers.LedgerSigner(ctx, ledger)
	if err != nil {
		return nil, databaseError(err)
	}
	return &consumers.AppPauseControl{Bucket: publishers.NewAppPauses(conn.JS, conn.Names).Signed(signer), Ledger: ledger, Log: log}, nil
}

// ResumeAccount ends an account's pause, and the wait of what it held. Before that,
// late requests fail as in ResumeApp. store.ErrNotFound.
func (d *Control) ResumeAccount(ctx context.Context, name string, olderThan time.Duration) (Resumed, error) {
	r := Resumed{Account: name}
	if err := d.expireLate(ctx, name, olderThan, &r); err != nil {
		return r, err
	}
	now := time.Now()
	pause, err := d.Ledger.ResumeAccount(ctx, name, now)
	if err != nil {
		return r, accountError(name, err)
	}
	if !pause.Active(now) {
		return r, nil
	}
	r.Pause = pause
	return r, d.turned(ctx, name, "resumed")
}

// expireLate fails what is too late, of one account or, with "", of all, and tells
// so.
func (d *Control) expireLate(ctx context.Context, account string, olderThan time.Duration, r *Resumed) error {
	if olderThan == 0 {
		return nil
	}
	dueBefore := time.Now().Add(-olderThan)
	lines, err := d.Ledger.Late(ctx, account, dueBefore, 1) // who has any
	if err != nil {
		return databaseError(err)
	}
	for _, line := range lines {
		for more := true; more; {
			keys, err := d.Ledger.ExpireLate(ctx, line.Account, dueBefore, expireBatch, time.Now())
			if err != nil {
				return databaseError(err)
			}
			for _, key := range keys {
				if err := d.relay.Announce(ctx, key); err != nil {
					d.log.Warn("event.delayed", "account", key.Account, "request", key.ID, "error", err)
				}
			}
			r.Expired += len(keys)
			more = len(keys) == expireBatch
		}
		if err := d.ring(ctx, line.Account); err != nil {
			return err
		}
	}
	if len(lines) == 0 {
		return nil
	}
	left, err := d.Ledger.Late(ctx, account, dueBefore, maxLate)
	for _, line := range left {
		r.Begun += line.Begun
	}
	return databaseError(err)
}

// maxLate bounds the late requests of one account that are counted.
const maxLate = 1000

// lateAfter is how long after its time a request that has not begun is late.
const lateAfter = 15 * time.Minute

// Late is what would go out late, as far as nothing of it was sent.
type Late struct {
	Requests int `json:"requests"`
	// Since is when the first of them was due.
	Since time.Time `json:"since"`
}
