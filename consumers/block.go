package consumers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers/admission"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// blockWait is how long an account that X refuses is left alone at first; each time
	// that X says so again it is twice as long, up to maxBlockWait: three times a day.
	blockWait    = time.Hour
	maxBlockWait = 8 * time.Hour
	// unauthorizedTries is how many holds in a row go before a 401 that blocks the
	// account: a quarter of an hour of them.
	unauthorizedTries = 5
	// refusalsInARow are requests of an account that X may refuse in words which no rule
	// knows, before a person is to look; refusingAccounts that hear the same words within
	// refusalWindow say that it is about the app.
	refusalsInARow   = 3
	refusingAccounts = 3
	refusalWindow    = 10 * time.Minute
	// needsScope is what a look at the stored token ends, once the account is connected
	// again, and nothing that X is asked.
	needsScope = jetpost.CodeAccountScopeMissing
)

// blocks tells the reasons that keep a whole account from X, for what X has said of it.
func blocks(code jetpost.Code) bool {
	switch code {
	case jetpost.CodeAccountSuspended, jetpost.CodeAccountLocked, jetpost.CodeAccountUnauthorized, jetpost.CodeAccountRefused, needsScope:
		return true
	}
	return false
}

// liftedAt is when a request that such a pause holds is looked at again; zero is never.
func liftedAt(pause store.Pause, now time.Time) time.Time {
	if !pause.Blocked(now) {
		return now
	}
	return pause.NextAt()
}

// block pauses the account for what X has said of it, and tells so.
func (r *laneRun) block(ctx context.Context, reason jetpost.Reason) (store.Pause, error) {
	wait := blockWait
	if reason.Code == needsScope || reason.Code == jetpost.CodeAccountRefused {
		wait = 0
	}
	return r.setBlock(ctx, jetpost.BlockedPause(time.Now(), reason.Code, reason.Detail, wait, maxBlockWait))
}

// setBlock has the ledger take a pause in, or end the one that there is.
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
		r.h.Announce.turned(ctx, r.lane.Account)
	case before && !after:
		r.log.Info("account.unblocked", "code", was.Reason.Code, "since", was.Since)
		r.h.Announce.turned(ctx, r.lane.Account)
	}
	return holds, nil
}

// turned tells how the account's pause turned, and leaves a failure to the sweeper.
func (a *OutboxRelay) turned(ctx context.Context, account string) {
	if err := a.AnnouncePauseChanges(ctx, account); err != nil {
		a.Log.Warn("event.delayed", "account", account, "error", err)
	}
}

// AnnouncePauseChanges publishes how the pause of an account turned last or, with "", those of all
// whose last turn is not told.
func (a *OutboxRelay) AnnouncePauseChanges(ctx context.Context, account string) error {
	turns, err := a.Ledger.PauseChanges(ctx, account, maxNotices)
	if err != nil {
		return fmt.Errorf("announce pauses: %w", err)
	}
	var failures []error
	for _, turn := range turns {
		err := a.DeadLetters.Event(ctx, a.Names.EventSubject(turn.Event, turn.Account, ""), turnEvent(turn))
		if err == nil {
			err = a.Ledger.MarkPauseChangeTold(ctx, turn)
		}
		if err == nil {
			continue
		}
		failures = append(failures, fmt.Errorf("announce pause of account %s: %w", turn.Account, err))
		if len(failures) == sweepFailures {
			break
		}
	}
	return errors.Join(failures...)
}

// turnEvent has the same id of the same turn, however often it is told.
func turnEvent(turn store.PauseChange) jetpost.Event {
	e := jetpost.Event{
		EventID: eventID(fmt.Sprintf("turn/%s/%s/%d/%s", turn.Account, turn.Event, turn.At.UnixMicro(), turn.Reason.Code)),
		Type:    turn.Event, Time: turn.At, Account: &jetpost.AccountStatus{Account: turn.Account},
	}
	if turn.Reason.Code != "" {
		e.Account.Reason = &turn.Reason
	}
	return e
}

// lift ends the pause of an account that X has asked for, where that is over: X is asked
// who the account is once the time for that has come. An answer that still blocks it
// makes the next wait longer, and so does none.
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

// over finds out whether a pause is over. Its error is what X says against that.
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

// unruled counts a failure for words that no rule knows. They may be about more than the
// request: then the account waits for a person, or the app until X is found to answer, so
// that no queue is burnt.
func (r *laneRun) unruled(ctx context.Context, id, words string) error {
	n, err := persist(ctx, r, "note refusal", func() (store.Refusals, error) {
		return r.h.Ledger.Refused(ctx, r.lane, id, words, refusalWindow, time.Now())
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

// missingScope is the permission that posts need and a token does not have, "" for none.
// Of a token without a list nothing is known.
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
