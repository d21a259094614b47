package store

import (
	"context"
	"time"

	"github.com/jetpost/jetpost"
)

// Snapshot is the front of a lane's queue at one moment.
type Snapshot struct {
	// Generation is the lane's counter of changes at the time of the snapshot.
	Generation int64
	// Pause is the account's latest pause, even if it has already ended.
	Pause Pause
	// Head is the first due unfinished request, in any state; nil if none is due. The
	// order is: the request that has begun, then the earlier of due time and
	// acceptance, then the sequence of acceptance.
	Head *Record
	// NextDue is the earliest due time in the future; zero if there is none.
	NextDue time.Time
	// UnpublishAt is when the lane continues with the earliest of its deletions; zero
	// if none waits for it.
	UnpublishAt time.Time
	// MonthlyLimit is what the account's own posts of a month may cost, in millionths of a
	// US dollar; 0 if it has no limit of its own.
	MonthlyLimit int64
}

// Intent says that a post is about to be sent.
type Intent struct {
	Post     int
	ParentID string
	TextHash []byte
	MediaIDs []string
	NotAfter time.Time
	Now      time.Time
	// Lease is the new length of the lane's lease, from now.
	Lease time.Duration
}

// Outcome moves a request to held, failed or unknown.
type Outcome struct {
	State  jetpost.State
	Reason jetpost.Reason // Until bounds a hold; zero holds until something ends it
	// CheckAt is when a hold is tried again, if that is not its end.
	CheckAt time.Time
	// Post is the index of the post that the outcome is about, and PostState is what is
	// known of it: pending (X made nothing; the attempt does not count), failed, or
	// sending (doubtful). Post is -1 if the outcome is about no post.
	Post      int
	PostState jetpost.PostState
	// Checks and AbsentAt are the post's new values.
	Checks   int
	AbsentAt time.Time
	// RenewMedia says that X does not take the ids of the post's media. The ids are
	// then forgotten, once.
	RenewMedia bool
	// Generation is that of the snapshot on which the outcome rests. A hold without an
	// end is over at once if a wake-up came after that snapshot, so that what ends the
	// hold is never missed.
	Generation int64
	Now        time.Time
}

// LivePost is a post of a request that X made.
type LivePost struct {
	Post   int    // its index in the request
	PostID string // X's
	Now    time.Time
	// Following is committed with it; nil if nothing is.
	Following *Following
}

// Following is the intent to send the first post of the request behind one that is done. It
// is committed together with the outcome of that one's last post, or not at all. That post
// has no media.
type Following struct {
	ID       string
	Revision int64 // of the request, as the caller knows it
	Intent   Intent
}

// UnruledRefusal is what X said, in words that no rule knows, when it refused a post.
type UnruledRefusal struct {
	Words  string
	Within time.Duration // how far back refusals in the same words count
	Now    time.Time
}

// Refusals counts what X has refused in words that no rule knows.
type Refusals struct {
	// InARow counts such requests of the account since X took a post of it or a person
	// resumed it.
	InARow int
	// Accounts counts the accounts that got the same words lately.
	Accounts int
}

// Anchor is what the ledger knows of an account's posts on X, to search its timeline
// from a known post on.
type Anchor struct {
	XUserID string
	// PostID is the latest post that is known to be live, "" if there is none.
	PostID string
	SentAt time.Time // of the first intent that may have made it
}

// Reservation asks for calls of one of X's windows that all accounts share.
type Reservation struct {
	Window string // its name
	XReset int64  // its end by X's clock in epoch seconds, which tells it from the next window
	Left   int    // the calls that X says are left
	Need   int    // the calls that are wanted; 0 gives back the reserved ones
	Now    time.Time
}

// Reserved is the result of a Reservation.
type Reserved struct {
	Granted bool
	Left    int // the calls that X says are left, as far as any worker has reported
}

// MaxHoldQueue is how many requests one call of HoldQueue holds.
const MaxHoldQueue = 500

// Lanes is what the holder of a lane reads and writes. A Claim is the right to that.
//
// Each method that takes a Claim fails with ErrFenced once another worker has claimed
// the lane. Only X's answer to an intent is accepted from the intent's writer even then
// (see Posted and Conclude). A lane's WakeAt is when it should run next. Acceptance and
// every call that ends a hold bring it forward to their time, and a release sets it.
// Wake-ups and schedules are therefore mere hints.
type Lanes interface {
	// ClaimLane takes the lane if no live lease holds it, and reads a snapshot of it
	// (see [Claim.Next]). ErrNotFound: no such account.
	ClaimLane(ctx context.Context, account, worker string, lease time.Duration, now time.Time) (Claim, bool, error)
	// ExtendLane renews the lease for its full length.
	ExtendLane(ctx context.Context, lane Claim, lease time.Duration, now time.Time) error
	// ReleaseLane frees the lane and sets when it should next run (zero: with the next
	// wake-up). If a wake-up came after the snapshot of that generation, it keeps the
	// lane and returns false.
	ReleaseLane(ctx context.Context, lane Claim, generation int64, wakeAt, now time.Time) (bool, error)
	// DueLanes returns up to limit accounts whose lane should run now and has no live
	// lease.
	DueLanes(ctx context.Context, now time.Time, limit int) ([]string, error)
	// Snapshot reads the front of the lane's queue.
	Snapshot(ctx context.Context, lane Claim, now time.Time) (Snapshot, error)
	// Begin commits the intent to send one pending post, makes the request publishing
	// and extends the lease. It reads the request behind it (see [Claim.Behind]).
	// ErrNotRunnable: the request was cancelled or postponed, its account was paused, or
	// that post is not pending.
	Begin(ctx context.Context, lane Claim, id string, intent Intent) error
	// Posted commits that X made the post. It accepts that from the writer of the
	// latest intent, even after another worker took the lane, since X's answer is true;
	// and from the lane's present holder, which may have found on X what another worker
	// sent. With the last post the request is published. An unknown request returns to
	// the queue and its lane wakes. Repeating the call changes nothing. If the request
	// is done, Posted reads a snapshot of the lane (see [Claim.Next]). If the request is
	// done and the front of the lane is then that of live.Following, still in that
	// revision, Posted commits its intent as Begin does; the snapshot shows whether it
	// has. ErrFenced: the caller has neither written the post's latest intent nor holds
	// the lane. ErrPostTaken.
	Posted(ctx context.Context, lane Claim, id string, live LivePost) (jetpost.State, error)
	// Conclude moves the request. If the request was finished meanwhile, it stays so,
	// and only the post's state is stored. Nothing changes if the outcome is out of
	// date: the post turned out to be live meanwhile, or it is known not to be live
	// although the outcome doubts it, or the request was postponed.
	//
	// After another worker took the lane, Conclude accepts one thing: that X did not
	// make a post (pending or failed), from the writer of the post's latest intent,
	// while the post is still sending. It then stores the post's state and wakes the
	// lane. Of the request it changes only this: with a failed post an unfinished
	// request fails; with a pending post an unknown request returns to the queue.
	// Everything else fails with ErrFenced.
	Conclude(ctx context.Context, lane Claim, id string, out Outcome) error
	// Uploaded stores what is known of the media of posts that are still to be sent, by the
	// posts' index, of all of them or of none. No event reports that. ErrNotRunnable: one of
	// those posts is not pending, or its request is finished.
	Uploaded(ctx context.Context, lane Claim, id string, media map[int][]Media) error
	// Reserve reserves calls of a window that all accounts share for the lane, in place
	// of those that it had, until it reserves others, is released or its lease ends.
	// They are granted only if all reserved calls fit into what is left. ErrFenced.
	Reserve(ctx context.Context, lane Claim, r Reservation) (Reserved, error)
	// Sent returns when the account's live posts were sent, after a time, the latest
	// first, up to limit.
	Sent(ctx context.Context, account string, after time.Time, limit int) ([]time.Time, error)
	// HoldQueue holds every due request of the lane that waits behind its head, for the
	// head's reason. It returns those that it newly holds: up to MaxHoldQueue, the
	// first ones first. As with Conclude, a hold without an end is over at once if a
	// wake-up came after the snapshot.
	HoldQueue(ctx context.Context, lane Claim, reason jetpost.Reason, generation int64, now time.Time) ([]Key, error)
	// Refused records the refusal of a post of the request, and counts how often X did
	// so lately. ErrFenced: the caller does not hold
	// the lane.
	Refused(ctx context.Context, lane Claim, id string, refusal UnruledRefusal) (Refusals, error)
	// BlockAccount pauses the account for what X has said of it. With the zero pause it
	// ends that pause, as ResumeAccount does. A person's pause stays. A pause that ended
	// stays on record, so that X is asked as rarely as before if the same refusal comes
	// back soon. It returns the pause that holds afterwards. ErrFenced.
	BlockAccount(ctx context.Context, lane Claim, pause Pause, now time.Time) (Pause, error)
	// Anchor returns the anchor of the account's timeline checks, or ErrNotFound. A
	// deleted post is no anchor post.
	Anchor(ctx context.Context, account string) (Anchor, error)
	// Owned returns those of the posts on X that are recorded for a post of ours,
	// including deleted ones.
	Owned(ctx context.Context, postIDs []string) ([]string, error)
	// Deleted returns those of the posts on X that are ours and were deleted.
	Deleted(ctx context.Context, postIDs []string) ([]string, error)
	// Unpublishing returns the request whose deletion the lane continues with first, at
	// [Snapshot].UnpublishAt.
	Unpublishing(ctx context.Context, lane Claim) (Record, bool, error)
	// PostDeleted commits that X no longer has the post. It is accepted from any worker
	// that found that, since it stays true after another worker took the lane.
	// Repeating the call changes nothing. ErrNotRunnable: that post is not live, or
	// nobody asked for its deletion.
	PostDeleted(ctx context.Context, lane Claim, id string, post int, now time.Time) error
	// HoldUnpublish makes a deletion wait until out's CheckAt or the end of its reason
	// if out's state is held. With another state it gives the deletion up until
	// somebody asks again. If out is about a post in doubt, it stores what is known of
	// that post, as Conclude does.
	HoldUnpublish(ctx context.Context, lane Claim, id string, out Outcome) error
}
