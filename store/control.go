package store

import (
	"context"
	"time"

	"github.com/jetpost/jetpost"
)

// ReplayResult is the result of a replay.
type ReplayResult struct {
	// Queued is false if there was nothing to do; the state says why.
	Queued bool
	State  jetpost.State // before the replay
	Left   int           // posts that are not live
	// Unpublished says that somebody asked for the deletion of its posts. It is never
	// sent again.
	Unpublished bool
}

// Control is what people change: requests, queues and pauses.
type Control interface {
	// Replay puts a failed request back into its queue, behind what was accepted
	// before, and makes a held one due where it is. Failed posts become pending; live
	// and doubtful posts stay. ErrNotFound.
	Replay(ctx context.Context, key Key, now time.Time) (ReplayResult, error)
	// Cancel cancels an unfinished request. It returns the earlier state, and
	// ErrNotRunnable for a finished request. The outcome of a post that is being sent
	// is still recorded.
	Cancel(ctx context.Context, key Key, now time.Time) (jetpost.State, error)
	// Reschedule moves an unfinished request of which nothing was sent to another time.
	// A time that is not in the future means now, behind what was accepted before.
	// ErrNotRunnable: the request has begun, is finished or unread; the returned state
	// says which. ErrExpired.
	Reschedule(ctx context.Context, key Key, at, now time.Time) (jetpost.State, error)
	// Resolve settles the doubtful post of an unknown or held request by a person's
	// word: live with postID or, if postID is empty, not live. The request returns to
	// its queue or is published. ErrNotRunnable: nothing of it is doubtful.
	// ErrPostTaken.
	Resolve(ctx context.Context, key Key, postID string, now time.Time) (jetpost.State, error)
	// Reconcile starts the timeline checks for the doubtful post of a request again,
	// from now on and as many as the first time. ErrNotRunnable: nothing of it is
	// doubtful.
	Reconcile(ctx context.Context, key Key, now time.Time) error
	// Unpublish asks for the deletion of every post of the request that is live or may
	// be live, and cancels the request if it is unfinished. It wakes the lane, which
	// continues at once with a deletion that waits or was given up. It returns the
	// earlier state. ErrNotRunnable: nothing of a finished request is live. A deletion
	// that is done stays as it is. ErrNotFound.
	Unpublish(ctx context.Context, key Key, now time.Time) (jetpost.State, error)
	// EndHolds makes the account's requests that are held for the code due now and
	// wakes its lane. It returns how many there were.
	EndHolds(ctx context.Context, account string, code jetpost.Code, now time.Time) (int, error)
	// PauseAccount keeps the account from posting from its commit on: a thread stops
	// before its next post. It replaces an earlier pause, ends the holds for that one
	// (EndHolds with its code) and wakes the lane. ErrNotFound.
	PauseAccount(ctx context.Context, account string, pause Pause) error
	// ResumeAccount ends the account's pause and the holds for it, and wakes the lane.
	// It returns the pause that it ended, the zero value if there was none.
	// ErrNotFound.
	ResumeAccount(ctx context.Context, account string, now time.Time) (Pause, error)
	// ExpireLate fails, with CodeExpired, up to limit requests of an account of which
	// nothing was sent and that were due before a time, in the order of the queue, and
	// wakes its lane. If a worker is about to begin one of them, the first commit of
	// Begin and ExpireLate wins: after ExpireLate the worker sends nothing of it.
	// ErrNotFound: no such account.
	ExpireLate(ctx context.Context, account string, dueBefore time.Time, limit int, now time.Time) ([]Key, error)
}
