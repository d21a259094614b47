package store

import (
	"context"
	"crypto/sha256"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
)

// Acceptance is a decoded request that intake is about to accept.
type Acceptance struct {
	Request jetpost.Request // with account and id filled in
	Body    []byte          // as it arrived
	Digest  []byte          // of the decoded request; equal digests are an equal body
	// Hold is set for a request that this worker cannot read yet. It is accepted as
	// held, without posts.
	Hold *jetpost.Reason
	// Media are the known digests of the posts' media, by post.
	Media [][]Media
	// CostMicros is an estimate of what X will charge for the request, in millionths of
	// a US dollar; zero if unknown.
	CostMicros int64
	// Trace is the span that accepts the request, as W3C traceparent, or its producer's; ""
	// if there is none.
	Trace string
	// RefuseSameText makes a new request fail with CodeSameText if another account
	// posts one of its texts within a day.
	RefuseSameText bool
	// FindSameText makes the result name a request of another account that posts one of
	// the texts.
	FindSameText bool
	// Claim asks for the account's lane with the acceptance; nil does not. Of several
	// acceptances of an account, the first that asks counts.
	Claim *LaneClaim
	Now   time.Time
}

// LaneClaim names who claims a lane, and for how long (see [Lanes.ClaimLane]).
type LaneClaim struct {
	Worker string
	Lease  time.Duration
}

// Key is the identity of the request.
func (a Acceptance) Key() Key { return Key{Account: a.Request.Account, ID: a.Request.ID} }

// TextQuery asks for another account's posts of one of these texts.
type TextQuery struct {
	Account string   // its posts do not count
	Hashes  [][]byte // TextHash of each
	DueAt   time.Time
	Now     time.Time
}

// TextsOf returns a query for other accounts' posts with the request's texts.
func TextsOf(r jetpost.Request, now time.Time) TextQuery {
	q := TextQuery{Account: r.Account, DueAt: r.PublishAt, Now: now}
	for _, p := range r.Posts {
		if hash := TextHash(p.Text); hash != nil {
			q.Hashes = append(q.Hashes, hash)
		}
	}
	return q
}

// TextHash is what the ledger stores of a post's text: its SHA-256. It is nil if there
// is no text or only white space.
func TextHash(text string) []byte {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}

// Decision is the result of an Acceptance.
type Decision int

const (
	Accepted  Decision = iota + 1 // a new request
	Repeated                      // the same again: nothing was done
	Conflict                      // the same identity with another body: nothing was done
	NoAccount                     // no such account: nothing was done
)

// Received is the result of one of many acceptances.
type Received struct {
	Decision Decision
	// Record is the current request; it is empty if the account is unknown.
	Record Record
	// SameText is a request of another account with one of the texts, if that was asked
	// for and there is one. If two such requests are accepted at once, at least one of
	// them names the other. SameTextErr is the error of that query.
	SameText    Key
	SameTextErr error
	// Claim is the claim of the account's lane, as of all acceptances; nil if it was not
	// asked for, if somebody holds the lane, or if a text may be refused.
	Claim *Claim
}

// JobFailure is a failure that the job itself caused: everything that it depends on
// answered. Sequence and Stored are its place in the stream.
type JobFailure struct {
	Sequence uint64
	Stored   time.Time
	Error    string
}

// Intake stores jobs as requests in the queues of their accounts.
type Intake interface {
	// Accept stores a request and its posts and wakes its lane, in one transaction. The
	// same bytes are an equal body, whatever the digests. A request that was accepted
	// with Hold becomes readable when its body is accepted again without Hold; it keeps
	// its place. ErrNotFound: no such account.
	Accept(ctx context.Context, in Acceptance) (Decision, error)
	// AcceptMany accepts requests in their order in one transaction, each with its own
	// decision, for the holder of the lease. ErrFenced: another owner took the lease,
	// and nothing was accepted. The zero lease is not checked. With the acceptance of a
	// request it claims the account's lane where that is asked for and nobody holds it.
	AcceptMany(ctx context.Context, lease Lease, in []Acceptance) ([]Received, error)
	// JobFailed counts a failure of a job and returns how many it has had. It deletes
	// counts that are older than 30 days.
	JobFailed(ctx context.Context, f JobFailure) (int, error)
	// Refuse records a message that never became a request, once per place in the
	// stream. It deletes those that the stream took 30 days before this one.
	Refuse(ctx context.Context, refusal jetpost.Refusal, body []byte) error
}
