package consumers

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// Scope is what a stop of the app stops.
type Scope string

const (
	ScopePublish Scope = "publish"
	ScopeRefresh Scope = "refresh"
)

type kind int

const (
	kindDone kind = iota
	kindHold
	kindFailed
	kindDoubtful
	kindUnknown
	kindStop
)

// Verdict is what a lane makes of its head. It is a value: only the lane writes
// the ledger, only the Gate stops the app.
type Verdict struct {
	kind   kind
	scope  Scope
	reason jetpost.Reason
}

// Done says that nothing is left to do.
func Done() Verdict { return Verdict{kind: kindDone} }

// Hold says that the request waits: until reason.Until or, where that is
// zero, until something ends the wait.
func Hold(code jetpost.Code, until time.Time, detail string) Verdict {
	return Verdict{kind: kindHold, reason: jetpost.Reason{Code: code, Detail: detail, Until: until}}
}

// Failed says that the request will not go on by itself.
func Failed(code jetpost.Code, detail string) Verdict {
	return Verdict{kind: kindFailed, reason: jetpost.Reason{Code: code, Detail: detail}}
}

// Doubtful says that a post may be live: until then nothing more is sent, and then
// X is asked.
func Doubtful(until time.Time, detail string) Verdict {
	return Verdict{kind: kindDoubtful, reason: jetpost.Reason{Code: jetpost.CodeReconciling, Detail: detail, Until: until}}
}

// Unknown says that a post may be live, and that X does not show whether it is.
func Unknown(detail string) Verdict {
	return Verdict{kind: kindUnknown, reason: jetpost.Reason{Code: jetpost.CodeOutcomeUnknown, Detail: detail}}
}

// Stop says that no account may go on. The request is held until then; it
// neither fails nor counts an attempt.
func Stop(scope Scope, code jetpost.Code, until time.Time, detail string) Verdict {
	return Verdict{kind: kindStop, scope: scope, reason: jetpost.Reason{Code: code, Detail: detail, Until: until}}
}

// String is for logs.
func (v Verdict) String() string {
	switch v.kind {
	case kindDone:
		return "done"
	case kindHold:
		return "hold"
	case kindFailed:
		return "failed"
	case kindDoubtful:
		return "doubtful"
	case kindUnknown:
		return "unknown"
	default:
		return "stop"
	}
}

// situation is what the verdict table may ask about beside the error.
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
	// lookFrom is when a doubt about that post can be looked into.
	lookFrom time.Time
	// holds counts the holds in a row so far; it paces the next one.
	holds int
}

// judge is the one table from errors to verdicts. docs/x-errors.md has every
// answer of X with what becomes of it.
//
//	error ........................... verdict
//	our wait (holdError) ............ as it says
//	nothing left this machine ....... Hold, backoff
//	answer lost, before the intent .. Hold, backoff
//	answer lost, of a post .......... Doubtful
//	429, the account's window ....... Hold until the reset
//	429, the app's window of posts .. Stop until the reset
//	429, the app's other windows .... Hold until the reset
//	usage cap, credits, spend cap,
//	client not enrolled ............. Stop until X's date, else probed
//	401 ............................. Hold; the lane renews the token first
//	refused: duplicate .............. Failed; Doubtful where an earlier attempt was,
//	                                  Unknown where looks have not ended that
//	refused: media, rule, text ...... Failed with X's own words
//	routing fault (empty 404, 413) .. Hold, backoff; Failed after a day
//	5xx of a read or an upload ...... Hold, backoff
//	refused: media ids, once ........ Hold for a moment, then another upload
//	processing of media failed ...... Failed with X's own words
//	no media source just now ........ Hold, backoff; Failed after some hours
//	anything else of X .............. Failed with X's own words
func judge(err error, s situation) Verdict {
	var (
		hold         *holdError
		notSent      *xapi.NotSentError
		ambiguous    *xapi.AmbiguousError
		limit        *xapi.RateLimitError
		stop         *xapi.AppStopError
		unauthorized *xapi.UnauthorizedError
		refused      *xapi.RefusedError
		unavailable  *xapi.UnavailableError
		media        *mediaError
		processing   *xapi.ProcessingError
		answer       *xapi.APIError
	)
	later := s.now.Add(backoff(s.holds + 1))
	switch {
	case errors.As(err, &hold):
		return hold.verdict
	case errors.As(err, &media) && media.code != "":
		return Failed(media.code, err.Error())
	case errors.As(err, &processing):
		return Failed(jetpost.CodeMediaInvalid, err.Error())
	case errors.As(err, &media) && s.holds >= mediaTries:
		return Failed(jetpost.CodeMediaUnavailable, err.Error())
	case errors.As(err, &media):
		return Hold(jetpost.CodeMediaUnavailable, later, err.Error())
	case errors.As(err, &notSent):
		return Hold(jetpost.CodeXUnavailable, later, err.Error())
	case errors.As(err, &ambiguous):
		if s.begun {
			return Doubtful(s.lookFrom, err.Error())
		}
		return Hold(jetpost.CodeXUnavailable, later, err.Error())
	case errors.As(err, &limit):
		until := limit.Until
		if !until.After(s.now) {
			until = later
		}
		if limit.AppWide() && limit.Endpoint == xapi.EndpointCreatePost {
			return Stop(ScopePublish, jetpost.CodeAppRateLimited, until, limit.Error())
		}
		return Hold(jetpost.CodeRateLimited, until, limit.Error())
	case errors.As(err, &stop):
		until := stop.Until
		if !until.After(s.now) {
			until = time.Time{}
		}
		return Stop(ScopePublish, jetpost.Code(stop.Reason), until, said(stop.Err))
	case errors.As(err, &unauthorized):
		return Hold(jetpost.CodeXUnavailable, later, "X does not accept the account's token: "+err.Error())
	case errors.As(err, &refused):
		return judgeRefusal(refused, s)
	case errors.As(err, &unavailable):
		if errors.As(err, &answer) && answer.Status < http.StatusInternalServerError && s.holds >= edgeTries {
			return Failed(jetpost.CodeRefusedByX, fmt.Sprintf("given up after %d tries in a row: %s", s.holds+1, err))
		}
		return Hold(jetpost.CodeXUnavailable, later, err.Error())
	case errors.As(err, &answer):
		return Failed(jetpost.CodeRefusedByX, said(answer))
	case s.begun:
		// An error that no rule knows is no proof that nothing was posted.
		return Doubtful(s.lookFrom, err.Error())
	default:
		return Hold(jetpost.CodeXUnavailable, later, err.Error())
	}
}

// judgeRefusal is judge for what X will not do. That equal content was posted
// before says of a first attempt that it is in vain; after one in doubt it says
// that this one may be live.
func judgeRefusal(refused *xapi.RefusedError, s situation) Verdict {
	switch {
	case refused.Kind == xapi.RefusedDuplicate && !s.doubted.IsZero() && s.now.After(s.doubted):
		return Unknown("X refuses it as the repeat of a post that it does not show: " + said(refused.Err))
	case refused.Kind == xapi.RefusedDuplicate && !s.doubted.IsZero():
		return Doubtful(s.lookFrom, "an earlier attempt may be live, since X refuses this one as its repeat: "+said(refused.Err))
	case refused.Kind == xapi.RefusedDuplicate:
		return Failed(jetpost.CodeDuplicate, said(refused.Err))
	case refused.Kind == xapi.RefusedMediaInvalid && s.renewable:
		return Hold(jetpost.CodeMediaProcessing, s.now.Add(renewAfter), "the media are uploaded once more, since X said: "+said(refused.Err))
	default:
		return Failed(jetpost.CodeRefusedByX, said(refused.Err))
	}
}

// said is X's own words, or the status where X sent none: a reason is never
// empty.
func said(e *xapi.APIError) string { return cmp.Or(e.Words(), e.Error()) }

// cause is why a call failed, in X's own words or the network's.
func cause(err error) string {
	var answer *xapi.APIError
	var notSent *xapi.NotSentError
	var lost *xapi.AmbiguousError
	switch {
	case errors.As(err, &answer):
		return said(answer)
	case errors.As(err, &notSent):
		return notSent.Err.Error()
	case errors.As(err, &lost):
		return lost.Err.Error()
	}
	return err.Error()
}

// holdError carries a verdict out of a chain of calls.
type holdError struct{ verdict Verdict }

func (e *holdError) Error() string {
	return fmt.Sprintf("%s: %s: %s", e.verdict, e.verdict.reason.Code, e.verdict.reason.Detail)
}

// settled tells errors of the store that say how things are from those that
// say that the database cannot be asked.
func settled(err error) bool {
	for _, known := range [...]error{store.ErrFenced, store.ErrNotFound, store.ErrNotRunnable, store.ErrPostTaken} {
		if errors.Is(err, known) {
			return true
		}
	}
	var hold *holdError // our own word, given while the ledger was to be asked
	return err == nil || errors.As(err, &hold)
}
