package consumers

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

type kind int

const (
	kindGoOn kind = iota
	kindHold
	kindFailed
	kindDoubtful
	kindUnknown
	kindPause
	kindBlock
)

// decision is what a lane decides about its head. It is only a value: settle writes it to
// the ledger and has admission pause the app.
type decision struct {
	kind   kind
	reason jetpost.Reason
	// unruled marks a failure with a message of X that no rule knows.
	unruled bool
	// checkAt is when a hold is checked again, if that is not its end.
	checkAt time.Time
}

// goOn is the decision to read the ledger again, which says what is next.
func goOn() decision { return decision{kind: kindGoOn} }

// holdUntil is the decision to hold the request until a time or, if that is zero, until
// something ends the hold.
func holdUntil(code jetpost.Code, until time.Time, detail string) decision {
	return decision{kind: kindHold, reason: jetpost.Reason{Code: code, Detail: detail, Until: until}}
}

// failWith is the decision to fail the request.
func failWith(code jetpost.Code, detail string) decision {
	return decision{kind: kindFailed, reason: jetpost.Reason{Code: code, Detail: detail}}
}

// failUnruled is the decision to fail the request with a message of X that no rule knows.
// The cause may be the account or the app.
func failUnruled(words string) decision {
	d := failWith(jetpost.CodeRefusedByX, words)
	d.unruled = true
	return d
}

// doubtUntil is the decision that a post may be live: nothing more is sent until a time, and
// then X is asked.
func doubtUntil(until time.Time, detail string) decision {
	return decision{kind: kindDoubtful, reason: jetpost.Reason{Code: jetpost.CodeReconciling, Detail: detail, Until: until}}
}

// unknown is the decision that a post may be live, and that X does not show whether it is.
func unknown(detail string) decision {
	return decision{kind: kindUnknown, reason: jetpost.Reason{Code: jetpost.CodeOutcomeUnknown, Detail: detail}}
}

// pauseApp is the decision to pause the app until a time or, if that is zero, until a probe
// finds that X accepts calls again. The request is held; it does not fail, and no attempt is
// counted.
func pauseApp(code jetpost.Code, until time.Time, detail string) decision {
	return decision{kind: kindPause, reason: jetpost.Reason{Code: code, Detail: detail, Until: until}}
}

// blockAccount is the decision to block the account until a probe finds that X accepts its
// calls again. The request is held, and those behind it are, too.
func blockAccount(code jetpost.Code, detail string) decision {
	return decision{kind: kindBlock, reason: jetpost.Reason{Code: code, Detail: detail}}
}

// String is for logs.
func (d decision) String() string {
	return [...]string{"go on", "hold", "failed", "doubtful", "unknown", "pause", "block"}[d.kind]
}

// situation is what judge needs to know besides the error.
type situation struct {
	now time.Time
	// begun is true if the intent of a post was committed: a doubt is then about that
	// post. Before that, no failure can have made a post.
	begun bool
	// doubted is set if an earlier attempt of that post was in doubt. It is the time until
	// which another timeline check is worthwhile.
	doubted time.Time
	// renewable is true if the post has media whose ids X has not refused before.
	renewable bool
	// parentFrom is when to try again a reply whose parent X does not find. It is zero
	// unless the parent is a recent post of this account, which X may not have replicated
	// yet.
	parentFrom time.Time
	// checkFrom is when the first timeline check for that post may run.
	checkFrom time.Time
	// holds counts the holds in a row so far. It determines the next backoff.
	holds int
}

// judge is the only table from errors to decisions. docs/x-errors.md lists every answer of
// X with its consequence.
//
//	error ........................... decision
//	our own decision (decidedError) . as it says
//	admission, token (WaitError) .... Hold, as it says
//	the worker is asked to stop ..... go on, which ends the claim
//	nothing left this machine ....... Hold, backoff
//	no answer, before the intent .... Hold, backoff
//	5xx or no answer, of a post ..... Doubtful
//	429, the account's window ....... Hold until the reset
//	429, the app's window of posts .. Pause until the reset
//	429, the app's other windows .... Hold until the reset
//	usage cap, credits, spend cap,
//	client not enrolled, forbidden,
//	suspended or without writing .... Pause until X's date, else probed
//	account suspended or locked ..... Block, probed
//	401 ............................. Hold; the lane renews the token first
//	401 again and again ............. Block, probed
//	refused: duplicate .............. Failed; Doubtful if an earlier attempt was,
//	                                  Unknown if timeline checks have not settled that
//	refused: its parent is gone ..... Failed; Hold for a moment if the parent is ours and
//	                                  of the last minutes
//	refused: try again later ........ Hold, ever longer; Failed after some hours
//	refused: media, rule, text ...... Failed with X's own words
//	routing fault (empty 404, 413) .. Hold, backoff; Failed after a day
//	5xx of a read or an upload ...... Hold, backoff
//	refused: media ids, once ........ Hold for a moment, then another upload
//	processing of media failed ...... Failed with X's own words
//	no media source just now ........ Hold, backoff; Failed after some hours
//	anything else of X .............. Failed with X's own words; three in a row of one
//	                                  account block it, and the same words to three
//	                                  accounts pause the app (laneRun.unruled)
func judge(err error, s situation) decision {
	var (
		decided      *decidedError
		wait         *admission.WaitError
		notSent      *xapi.NotSentError
		ambiguous    *xapi.AmbiguousError
		limit        *xapi.RateLimitError
		app          *xapi.AppError
		account      *xapi.AccountError
		unauthorized *xapi.UnauthorizedError
		refused      *xapi.RefusedError
		unavailable  *xapi.UnavailableError
		media        *mediaError
		processing   *xapi.ProcessingError
		answer       *xapi.APIError
	)
	later := s.now.Add(backoff(s.holds + 1))
	switch {
	case errors.As(err, &decided):
		return decided.decision
	case errors.As(err, &wait):
		return decision{kind: kindHold, reason: wait.Reason, checkAt: wait.CheckAt}
	case errors.Is(err, admission.ErrLeaving):
		return goOn()
	case errors.As(err, &media) && media.code != "":
		return failWith(media.code, err.Error())
	case errors.As(err, &processing):
		return failWith(jetpost.CodeMediaInvalid, err.Error())
	case errors.As(err, &media) && s.holds >= mediaTries:
		return failWith(jetpost.CodeMediaUnavailable, err.Error())
	case errors.As(err, &media):
		return holdUntil(jetpost.CodeMediaUnavailable, later, err.Error())
	case errors.As(err, &notSent):
		return holdUntil(jetpost.CodeXUnavailable, later, err.Error())
	case errors.As(err, &ambiguous):
		if s.begun {
			return doubtUntil(s.checkFrom, err.Error())
		}
		return holdUntil(jetpost.CodeXUnavailable, later, err.Error())
	case errors.As(err, &limit):
		until := limit.Until
		if !until.After(s.now) {
			until = later
		}
		if limit.AppWide() && limit.Endpoint == xapi.EndpointCreatePost {
			return pauseApp(jetpost.CodeAppRateLimited, until, limit.Error())
		}
		return holdUntil(jetpost.CodeRateLimited, until, limit.Error())
	case errors.As(err, &app):
		until := app.Until
		if !until.After(s.now) {
			until = time.Time{}
		}
		return pauseApp(jetpost.Code(app.Reason), until, said(app.Err))
	case errors.As(err, &account):
		return blockAccount(jetpost.Code(account.Reason), said(account.Err))
	case errors.As(err, &unauthorized) && s.holds >= unauthorizedTries:
		return blockAccount(jetpost.CodeAccountUnauthorized, fmt.Sprintf("X does not accept the account's token, after %d tries: %s", s.holds+1, err))
	case errors.As(err, &unauthorized):
		return holdUntil(jetpost.CodeXUnavailable, later, "X does not accept the account's token: "+err.Error())
	case errors.As(err, &refused):
		return judgeRefusal(refused, s)
	case errors.As(err, &unavailable):
		if errors.As(err, &answer) && answer.Status < http.StatusInternalServerError && s.holds >= edgeTries {
			return failWith(jetpost.CodeRefusedByX, fmt.Sprintf("given up after %d tries in a row: %s", s.holds+1, err))
		}
		return holdUntil(jetpost.CodeXUnavailable, later, err.Error())
	case errors.As(err, &answer):
		return failUnruled(said(answer))
	case s.begun:
		// An unknown error does not prove that nothing was posted.
		return doubtUntil(s.checkFrom, err.Error())
	default:
		return holdUntil(jetpost.CodeXUnavailable, later, err.Error())
	}
}

// judgeRefusal is judge for refusals of X. If X refuses a post as a duplicate, the first
// attempt has failed. After an attempt in doubt, the duplicate may be that attempt.
func judgeRefusal(refused *xapi.RefusedError, s situation) decision {
	switch {
	case refused.Kind == xapi.RefusedDuplicate && !s.doubted.IsZero() && s.now.After(s.doubted):
		return unknown("X refuses it as a duplicate of a post that it does not show: " + said(refused.Err))
	case refused.Kind == xapi.RefusedDuplicate && !s.doubted.IsZero():
		return doubtUntil(s.checkFrom, "an earlier attempt may be live, because X refuses this one as a duplicate: "+said(refused.Err))
	case refused.Kind == xapi.RefusedDuplicate:
		return failWith(jetpost.CodeDuplicate, said(refused.Err))
	case refused.Kind == xapi.RefusedMediaInvalid && s.renewable:
		return holdUntil(jetpost.CodeMediaProcessing, s.now.Add(renewAfter), "the media are uploaded once more, because X said: "+said(refused.Err))
	case refused.Kind == xapi.RefusedParentGone && !s.parentFrom.IsZero():
		return holdUntil(jetpost.CodeXUnavailable, s.parentFrom, "X does not show the post to reply to yet: "+said(refused.Err))
	case refused.Kind == xapi.RefusedForNow && s.holds < forNowTries:
		return holdUntil(jetpost.CodeXUnavailable, s.now.Add(forNowWait<<s.holds), said(refused.Err))
	case slices.Contains(unruledKinds(), refused.Kind):
		return failUnruled(said(refused.Err))
	default:
		return failWith(jetpost.CodeRefusedByX, said(refused.Err))
	}
}

// unruledKinds are the refusals whose cause only X's words describe.
func unruledKinds() []xapi.RefusedKind {
	return []xapi.RefusedKind{xapi.RefusedPermission, xapi.RefusedAuthentication, xapi.RefusedNotFound, xapi.RefusedInvalid, xapi.RefusedOther}
}

// said returns X's own words, or the status if X sent none, so that a reason is never empty.
func said(e *xapi.APIError) string { return cmp.Or(e.Words(), e.Error()) }

// decidedError returns a decision through a chain of calls.
type decidedError struct{ decision }

func (e *decidedError) Error() string {
	return fmt.Sprintf("%s: %s: %s", e.decision, e.reason.Code, e.reason.Detail)
}

// ours reports whether err is our own decision, and not an error of X or the database.
func ours(err error) bool {
	var decided *decidedError
	var wait *admission.WaitError
	return errors.As(err, &decided) || errors.As(err, &wait) || errors.Is(err, admission.ErrLeaving)
}

// attempt is the result of advancing a head.
type attempt struct {
	decision
	post int // index of the post it is about, whose intent was committed; else -1
	err  error
	// checks counts the timeline checks for a post in doubt, and absentAt is when the
	// first one found it absent.
	checks   int
	absentAt time.Time
	// renewMedia is true if X refused the ids of the post's media.
	renewMedia bool
}

func (r *laneRun) settled(d decision) attempt { return attempt{decision: d, post: -1} }

// left is the attempt for an error before the intent of a post.
func (r *laneRun) left(head *store.Record, err error) attempt {
	return attempt{decision: judge(err, situation{now: time.Now(), holds: head.Holds}), post: -1, err: err}
}

// tooLate returns a decidedError if the request has expired before its first post.
func (t *threadRun) tooLate(i int, now time.Time) error {
	if i > 0 {
		return nil
	}
	if end := t.request.ExpiresAt; !end.IsZero() && !now.Before(end) {
		return &decidedError{failWith(jetpost.CodeExpired, "expires_at passed before the first post began")}
	}
	due := t.head.Status.PublishAt
	if due.IsZero() {
		due = t.head.Status.AcceptedAt
	}
	if end := t.request.Latest(due); !end.IsZero() && !now.Before(end) {
		return &decidedError{failWith(jetpost.CodeExpired, "it is more than "+t.request.SkipIfLate+" late, and skip_if_late skips it then")}
	}
	if detail, late := t.r.h.PostingLimits.TooLate(t.head, now); late {
		return &decidedError{failWith(jetpost.CodeExpired, detail)}
	}
	return nil
}
