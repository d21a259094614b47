package consumers

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers/admission"
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
	kindStop
	kindBlock
)

// decision is what a lane makes of its head. It is a value: settle alone writes it to the
// ledger, and has admission stop the app.
type decision struct {
	kind   kind
	reason jetpost.Reason
	// unruled tells of a failure that it is for words of X's which no rule knows.
	unruled bool
	// checkAt is when a hold is looked at again, where that is not its end.
	checkAt time.Time
}

// goOn says that the ledger is to be looked at again: it knows what is next.
func goOn() decision { return decision{kind: kindGoOn} }

// holdUntil says that the request waits: until then or, where that is zero, until
// something ends the wait.
func holdUntil(code jetpost.Code, until time.Time, detail string) decision {
	return decision{kind: kindHold, reason: jetpost.Reason{Code: code, Detail: detail, Until: until}}
}

// failWith says that the request will not go on by itself.
func failWith(code jetpost.Code, detail string) decision {
	return decision{kind: kindFailed, reason: jetpost.Reason{Code: code, Detail: detail}}
}

// failUnruled says that X will not have it, for a reason that no rule knows: it may be
// about more than this request.
func failUnruled(words string) decision {
	d := failWith(jetpost.CodeRefusedByX, words)
	d.unruled = true
	return d
}

// doubtUntil says that a post may be live: until then nothing more is sent, and then
// X is asked.
func doubtUntil(until time.Time, detail string) decision {
	return decision{kind: kindDoubtful, reason: jetpost.Reason{Code: jetpost.CodeReconciling, Detail: detail, Until: until}}
}

// unknown says that a post may be live, and that X does not show whether it is.
func unknown(detail string) decision {
	return decision{kind: kindUnknown, reason: jetpost.Reason{Code: jetpost.CodeOutcomeUnknown, Detail: detail}}
}

// stopApp says that no account may go on: until then or, where that is zero, until X is
// found to take calls again. The request is held; it neither fails nor counts an attempt.
func stopApp(code jetpost.Code, until time.Time, detail string) decision {
	return decision{kind: kindStop, reason: jetpost.Reason{Code: code, Detail: detail, Until: until}}
}

// blockAccount says that the account may not go on, until X is found to take its calls
// again. The request is held, and the next ones with it.
func blockAccount(code jetpost.Code, detail string) decision {
	return decision{kind: kindBlock, reason: jetpost.Reason{Code: code, Detail: detail}}
}

// String is for logs.
func (d decision) String() string {
	return [...]string{"go on", "hold", "failed", "doubtful", "unknown", "stop", "block"}[d.kind]
}

// situation is what the table may ask about beside the error.
type situation struct {
	now time.Time
	// begun tells that the intent of a post was committed: a doubt is then
	// about that post. Before, nothing that fails can have made a post.
	begun bool
	// doubted tells that an earlier attempt of that post was in doubt, and for how
	// long that is worth another look.
	doubted time.Time
	// renewable tells that the post has media, whose ids X has not refused before.
	renewable bool
	// parentFrom is when to ask again for the post that it replies to; zero unless that one
	// is of this account, and X has taken it a moment ago: then what X calls gone may just
	// not have reached all of X.
	parentFrom time.Time
	// checkFrom is when a doubt about that post can be looked into.
	checkFrom time.Time
	// holds counts the holds in a row so far; it paces the next one.
	holds int
}

// judge is the one table from errors to decisions. docs/x-errors.md has every
// answer of X with what becomes of it.
//
//	error ........................... decision
//	our own word (decidedError) ..... as it says
//	admission, token (WaitError) .... Hold, as it says
//	the worker is to stop ........... go on, which ends the claim
//	nothing left this machine ....... Hold, backoff
//	answer lost, before the intent .. Hold, backoff
//	answer lost, of a post .......... Doubtful
//	429, the account's window ....... Hold until the reset
//	429, the app's window of posts .. Stop until the reset
//	429, the app's other windows .... Hold until the reset
//	usage cap, credits, spend cap,
//	client not enrolled, forbidden,
//	suspended or without writing .... Stop until X's date, else probed
//	account suspended or locked ..... Block, probed
//	401 ............................. Hold; the lane renews the token first
//	401 again and again ............. Block, probed
//	refused: duplicate .............. Failed; Doubtful where an earlier attempt was,
//	                                  Unknown where looks have not ended that
//	refused: its parent is gone ..... Failed; Hold for a moment where that one is of the
//	                                  last minutes and our own
//	refused: try again later ........ Hold, ever longer; Failed after some hours
//	refused: media, rule, text ...... Failed with X's own words
//	routing fault (empty 404, 413) .. Hold, backoff; Failed after a day
//	5xx of a read or an upload ...... Hold, backoff
//	refused: media ids, once ........ Hold for a moment, then another upload
//	processing of media failed ...... Failed with X's own words
//	no media source just now ........ Hold, backoff; Failed after some hours
//	anything else of X .............. Failed with X's own words; three in a row of one
//	                                  account block it, and the same ones to three
//	                                  accounts stop the app (laneRun.unruled)
func judge(err error, s situation) decision {
	var (
		decided      *decidedError
		wait         *admission.WaitError
		notSent      *xapi.NotSentError
		ambiguous    *xapi.AmbiguousError
		limit        *xapi.RateLimitError
		stop         *xapi.AppError
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
			return stopApp(jetpost.CodeAppRateLimited, until, limit.Error())
		}
		return holdUntil(jetpost.CodeRateLimited, until, limit.Error())
	case errors.As(err, &stop):
		until := stop.Until
		if !until.After(s.now) {
			until = time.Time{}
		}
		return stopApp(jetpost.Code(stop.Reason), until, said(stop.Err))
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
		// An error that no rule knows is no proof that nothing was posted.
		return doubtUntil(s.checkFrom, err.Error())
	default:
		return holdUntil(jetpost.CodeXUnavailable, later, err.Error())
	}
}

// judgeRefusal is judge for what X will not do. That equal content was posted
// before says of a first attempt that it is in vain; after one in doubt it says
// that this one may be live.
func judgeRefusal(refused *xapi.RefusedError, s situation) decision {
	switch {
	case refused.Kind == xapi.RefusedDuplicate && !s.doubted.IsZero() && s.now.After(s.doubted):
		return unknown("X refuses it as the repeat of a post that it does not show: " + said(refused.Err))
	case refused.Kind == xapi.RefusedDuplicate && !s.doubted.IsZero():
		return doubtUntil(s.checkFrom, "an earlier attempt may be live, since X refuses this one as its repeat: "+said(refused.Err))
	case refused.Kind == xapi.RefusedDuplicate:
		return failWith(jetpost.CodeDuplicate, said(refused.Err))
	case refused.Kind == xapi.RefusedMediaInvalid && s.renewable:
		return holdUntil(jetpost.CodeMediaProcessing, s.now.Add(renewAfter), "the media are uploaded once more, since X said: "+said(refused.Err))
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

// unruledKinds are those of which only X's words say what they are about.
func unruledKinds() []xapi.RefusedKind {
	return []xapi.RefusedKind{xapi.RefusedPermission, xapi.RefusedAuthentication, xapi.RefusedNotFound, xapi.RefusedInvalid, xapi.RefusedOther}
}

// said is X's own words, or the status where X sent none: a reason is never
// empty.
func said(e *xapi.APIError) string { return cmp.Or(e.Words(), e.Error()) }

// decidedError carries a decision out of a chain of calls.
type decidedError struct{ decision }

func (e *decidedError) Error() string {
	return fmt.Sprintf("%s: %s: %s", e.decision, e.reason.Code, e.reason.Detail)
}

// ours tells our own word from what X or the database said.
func ours(err error) bool {
	var decided *decidedError
	var wait *admission.WaitError
	return errors.As(err, &decided) || errors.As(err, &wait) || errors.Is(err, admission.ErrLeaving)
}

// attempt is what came of advancing a head.
type attempt struct {
	decision
	post int // the post that it is about, whose intent was committed; else -1
	err  error
	// What is to be remembered of a doubtful post.
	looks    int
	absentAt time.Time
	// renewMedia tells that X did not take the ids of its media.
	renewMedia bool
}

func (r *laneRun) settled(d decision) attempt { return attempt{decision: d, post: -1} }

// left is a head that was left for an error, before the intent of a post.
func (r *laneRun) left(head *store.Record, err error) attempt {
	return attempt{decision: judge(err, situation{now: time.Now(), holds: head.Holds}), post: -1, err: err}
}

// tooLate tells that the request is not to be begun any more, before its first post.
func (t *threadRun) tooLate(i int, now time.Time) error {
	if i > 0 {
		return nil
	}
	if end := t.request.ExpiresAt; !end.IsZero() && !now.Before(end) {
		return &decidedError{failWith(jetpost.CodeExpired, "expires_at passed before the first post was begun")}
	}
	due := t.head.Status.PublishAt
	if due.IsZero() {
		due = t.head.Status.AcceptedAt
	}
	if end := t.request.Latest(due); !end.IsZero() && !now.Before(end) {
		return &decidedError{failWith(jetpost.CodeExpired, "it would be more than "+t.request.SkipIfLate+" late, and asks to be skipped then")}
	}
	if detail, late := t.r.h.PostingLimits.TooLate(t.head, now); late {
		return &decidedError{failWith(jetpost.CodeExpired, detail)}
	}
	return nil
}
