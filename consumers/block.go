package consumers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// blockWait is the wait before the first probe of an account that X refuses. Each
	// failed probe doubles it, up to maxBlockWait: three probes a day.
	blockWait    = time.Hour
	maxBlockWait = 8 * time.Hour
	// unauthorizedTries is how many holds in a row precede a 401 that blocks the account:
	// about a quarter of an hour.
	unauthorizedTries = 5
	// refusalsInARow is how many requests of an account in a row X refuses with a message
	// that no rule knows before the account is blocked. refusingAccounts is how many
	// accounts get the same message within refusalWindow before the app is paused.
	refusalsInARow   = 3
	refusingAccounts = 3
	refusalWindow    = 10 * time.Minute
	// needsScope is a block that ends when the account is connected again. The scope of
	// the stored token shows that, so no call to X is needed.
	needsScope = jetpost.CodeAccountScopeMissing
)

// blocks reports whether a code is for an answer of X that blocks the whole account.
func blocks(code jetpost.Code) bool { return code.Kind() == jetpost.KindHeldByX }

// liftedAt is when a request that such a pause holds is checked again; zero is never.
func liftedAt(pause store.Pause, now time.Time) time.Time {
	if !pause.Blocked(now) {
		return now
	}
	return pause.NextAt()
}

// block pauses the account for an answer of X, and announces it.
func (r *laneRun) block(ctx context.Context, reason jetpost.Reason) (store.Pause, error) {
	wait := blockWait
	if reason.Code == needsScope || reason.Code == jetpost.CodeAccountRefused {
		wait = 0
	}
	return r.setBlock(ctx, jetpost.BlockedPause(time.Now(), reason.Code, reason.Detail, wait, maxBlockWait))
}

// setBlock stores a pause of the account in the ledger. An empty pause ends the stored one.
func (r *laneRun) setBlock(ctx context.Context, pause store.Pause) (store.Pause, error) {
	was := r.pause
	holds, err := persist(ctx, r, "block", func() (store.Pause, error) {
		return r.h.Ledger.BlockAccount(ctx, r.lane, pause, time.Now())
	})
	if err != nil {
		return store.Pause{}, err
	}
	now := time.Now()
	r.pause = holds
	before, after := was.Blocked(now), holds.Blocked(now)
	switch {
	case after && (!before || was.Reason.Code != holds.Reason.Code):
		r.log.Warn("account.blocked", "code", holds.Reason.Code, "detail", holds.Reason.Detail, "next_probe_at", holds.NextProbeAt)
		r.h.Announce.pauseChanged(ctx, r.lane.Account)
	case before && !after:
		r.log.Info("account.unblocked", "code", was.Reason.Code, "since", was.Since)
		r.h.Announce.pauseChanged(ctx, r.lane.Account)
	}
	return holds, nil
}

// pauseChanged announces the latest change of the account's pause, and leaves a failure to
// the sweeper.
func (a *OutboxRelay) pauseChanged(ctx context.Context, account string) {
	if err := a.AnnouncePauseChanges(ctx, account); err != nil {
		a.Log.Warn("event.delayed", "account", account, "error", err)
	}
}

// AnnouncePauseChanges publishes the latest change of an account's pause or, with "", those
// of all accounts whose latest change is not published yet.
func (a *OutboxRelay) AnnouncePauseChanges(ctx context.Context, account string) error {
	changes, err := a.Ledger.PauseChanges(ctx, account, maxNotices)
	if err != nil {
		return fmt.Errorf("announce pauses: %w", err)
	}
	var failures []error
	for _, change := range changes {
		err := a.DeadLetters.Event(ctx, a.Names.EventSubject(change.Event, change.Account, ""), pauseEvent(change))
		if err == nil {
			err = a.Ledger.MarkPauseChangeTold(ctx, change)
		}
		if err == nil {
			continue
		}
		failures = append(failures, fmt.Errorf("announce pause of account %s: %w", change.Account, err))
		if len(failures) == sweepFailures {
			break
		}
	}
	return errors.Join(failures...)
}

// pauseEvent is the event of a pause change. Its id is the same however often the change is
// published.
func pauseEvent(change store.PauseChange) jetpost.Event {
	e := jetpost.Event{
		EventID: eventID(fmt.Sprintf("turn/%s/%s/%d/%s", change.Account, change.Event, change.At.UnixMicro(), change.Reason.Code)),
		Type:    change.Event, Time: change.At, Account: &jetpost.AccountStatus{Account: change.Account},
	}
	if change.Reason.Code != "" {
		e.Account.Reason = &change.Reason
	}
	return e
}

// lift ends a block of the account if it is over. Once a probe is due, X is asked who the
// account is. If the answer still blocks the account, or if there is no answer, the next
// wait is longer.
func (r *laneRun) lift(ctx context.Context, head *store.Record, request jetpost.Request) error {
	now := time.Now()
	if !r.pause.Blocked(now) {
		return nil
	}
	over, err := r.over(ctx, head, request, now)
	var wait *admission.WaitError
	switch {
	case errors.Is(err, store.ErrFenced), errors.As(err, &wait), errors.Is(err, admission.ErrLeaving):
		return err
	case err != nil:
		reason := r.pause.Reason
		if v := judge(err, situation{now: now}); v.kind == kindBlock {
			reason = v.reason
		}
		_, err = r.block(ctx, reason)
		return err
	case over:
		_, err = r.setBlock(ctx, store.Pause{})
		return err
	}
	return nil
}

// over reports whether a block is over. Its error is the answer of X that keeps it.
func (r *laneRun) over(ctx context.Context, head *store.Record, request jetpost.Request, now time.Time) (bool, error) {
	if r.pause.Reason.Code == needsScope {
		from, _, _ := resume(head)
		token, err := r.h.Tokens.Stored(ctx, head.Account)
		return err == nil && missingScope(token.Scope, request.Posts[from:]) == "", nil
	}
	if !r.pause.Due(now) {
		return false, nil
	}
	token, err := r.h.Tokens.EnsureFresh(ctx, head.Account, 0)
	if err != nil {
		return false, err
	}
	_, err = r.me(ctx, r.h.Client(head.Account, token.Access.Reveal()))
	return err == nil, err
}

// unruled counts a failure with a message of X that no rule knows. The cause may be the
// account or the app. If such failures repeat, the account is blocked until a person acts,
// or the app is paused and probed, so that not all queued requests fail.
func (r *laneRun) unruled(ctx context.Context, id, words string) error {
	n, err := persist(ctx, r, "note refusal", func() (store.Refusals, error) {
		return r.h.Ledger.Refused(ctx, r.lane, id, store.UnruledRefusal{Words: words, Within: refusalWindow, Now: time.Now()})
	})
	if err != nil {
		return err
	}
	if n.Accounts >= refusingAccounts {
		_ = r.pass.Pause(ctx, jetpost.Reason{Code: jetpost.CodeAppRefused, Detail: fmt.Sprintf("X refused posts of %d accounts within %s, saying: %s", n.Accounts, refusalWindow, words)})
	}
	if n.InARow >= refusalsInARow {
		_, err = r.block(ctx, jetpost.Reason{Code: jetpost.CodeAccountRefused, Detail: fmt.Sprintf("X refused %d requests in a row; of the last one it says: %s", n.InARow, words)})
	}
	return err
}

// missingScope is the scope that the posts need and the token lacks, or "". A token without
// a list of scopes is not judged.
func missingScope(granted string, posts []jetpost.Post) string {
	has := strings.Fields(granted)
	media := slices.ContainsFunc(posts, func(p jetpost.Post) bool { return len(p.Media) > 0 })
	switch {
	case len(has) == 0:
		return ""
	case !slices.Contains(has, xapi.ScopePostWrite):
		return xapi.ScopePostWrite
	case media && !slices.Contains(has, xapi.ScopeMediaWrite):
		return xapi.ScopeMediaWrite
	}
	return ""
}
