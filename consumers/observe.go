package consumers

import (
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// Observer is told what handlers do, as they do it. It must return at once, and be safe
// for concurrent use. A nil Observer is told nothing.
type Observer func(Observation)

// Observation is one thing that happened.
type Observation struct {
	What What
	// Label is of a bounded set, which What names; never an account or an id.
	Label string
	// Took is the time that What names; 0 where it names none.
	Took time.Duration
}

// What happened.
type What int

// The kinds of observations, with their Label and Took.
const (
	JobAccepted    What = iota + 1 // Took: since NATS stored the job
	JobRepeated                    // an equal job came again
	JobRefused                     // Label: the code
	RequestSettled                 // Label: published, failed or unknown
	RequestHeld                    // Label: the code
	PostSettled                    // Label: a PostOutcome
	FirstPostSent                  // Took: since its request was due
	DoubtEnded                     // Label: a DoubtEnd
	TokenExchanged                 // Label: an ExchangeEnd

	// The answers to what a worker asks every two seconds, with Took.
	DatabaseAnswered
	NATSAnswered
)

// What became of a post that was sent, as Label of PostSettled.
const (
	PostLive     = "posted"   // X has it
	PostRefused  = "refused"  // X will not have it
	PostNotMade  = "not_made" // X made nothing, and it is tried again
	PostInDoubt  = "in_doubt" // the answer was lost, or the worker that sent it
	PostDeletion = "deleted"  // it was deleted on request
)

// PostOutcomes lists them.
func PostOutcomes() []string {
	return []string{PostLive, PostRefused, PostNotMade, PostInDoubt, PostDeletion}
}

// How a doubt about a post ended, as Label of DoubtEnded.
const (
	DoubtFound   = "found"   // X shows the post
	DoubtAbsent  = "absent"  // X is proven not to have it
	DoubtUnknown = "unknown" // X does not show which: a person decides
)

// DoubtEnds lists them.
func DoubtEnds() []string { return []string{DoubtFound, DoubtAbsent, DoubtUnknown} }

// How an exchange of a token ended, as Label of TokenExchanged.
const (
	ExchangeBrought = "refreshed" // a fresh pair is stored
	ExchangeRefused = "refused"   // X does not take the refresh token: connect the account again
	ExchangeUnknown = "unknown"   // the answer was lost
	ExchangeNothing = "nothing"   // X did nothing, or was not reached
	ExchangeUnsaved = "unsaved"   // the fresh pair is in the lifeboat, or a newer one is stored
)

// ExchangeEnds lists them.
func ExchangeEnds() []string {
	return []string{ExchangeBrought, ExchangeRefused, ExchangeUnknown, ExchangeNothing, ExchangeUnsaved}
}

func (o Observer) tell(what What, label string, took time.Duration) {
	if o != nil {
		o(Observation{What: what, Label: label, Took: took})
	}
}

// settled tells what became of a request.
func (o Observer) settled(head *store.Record, out store.Outcome) {
	switch {
	case out.State != jetpost.StateHeld:
		o.tell(RequestSettled, string(out.State), 0)
	case head.Status.State != jetpost.StateHeld || waitsFor(head) != out.Reason.Code: // else it goes on waiting
		o.tell(RequestHeld, string(out.Reason.Code), 0)
	}
	o.post(head, out)
}

// post tells what became of the post that an outcome is about, if it is about one. The
// head is as it was read: of a post whose intent was committed since, it knows nothing.
func (o Observer) post(head *store.Record, out store.Outcome) {
	if out.Post < 0 {
		return
	}
	doubtful := head.Posts[out.Post].State == jetpost.PostSending
	switch {
	case out.PostState == jetpost.PostFailed:
		o.tell(PostSettled, PostRefused, 0)
	case out.PostState == jetpost.PostPending && doubtful:
		o.tell(DoubtEnded, DoubtAbsent, 0)
	case out.PostState == jetpost.PostPending:
		o.tell(PostSettled, PostNotMade, 0)
	case !doubtful || waitsFor(head) != jetpost.CodeReconciling:
		o.tell(PostSettled, PostInDoubt, 0)
	}
	if out.State == jetpost.StateUnknown {
		o.tell(DoubtEnded, DoubtUnknown, 0)
	}
}

// waitsFor is why a request was held, or its deletion, as it was read.
func waitsFor(head *store.Record) jetpost.Code {
	reason := head.Status.Reason
	if head.Deletion != nil {
		reason = head.Deletion.Reason
	}
	if reason == nil {
		return ""
	}
	return reason.Code
}

// exchanged tells of an exchange that brought no pair.
func (o Observer) exchanged(outcome store.ExchangeOutcome) {
	o.tell(TokenExchanged, [...]string{
		store.ExchangeNothing: ExchangeNothing, store.ExchangeUnknown: ExchangeUnknown, store.ExchangeRefused: ExchangeRefused,
	}[outcome], 0)
}

// sent tells of post i, which is live.
func (t *threadRun) sent(i int, state jetpost.State) {
	observe := t.r.h.Observe
	observe.tell(PostSettled, PostLive, 0)
	if i == 0 {
		observe.tell(FirstPostSent, "", t.head.Posts[i].SentAt.Sub(t.head.DueAt))
	}
	if state.Finished() {
		observe.tell(RequestSettled, string(state), 0)
	}
}
