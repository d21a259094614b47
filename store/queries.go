package store

import (
	"context"
	"time"

	"github.com/jetpost/jetpost"
)

// Filter narrows a list; zero fields match everything.
type Filter struct {
	Account string
	ID      string
	State   jetpost.State
	Code    jetpost.Code
	Since   time.Time // accepted at or after
	Limit   int       // default 100
	After   Place     // those behind it in the list; the zero value begins
}

// Place is where a request stands in a list.
type Place struct {
	AcceptedAt time.Time
	Seq        int64
	Account    string
}

// Place is where the request stands in a list.
func (r Record) Place() Place {
	return Place{AcceptedAt: r.Status.AcceptedAt, Seq: r.Seq, Account: r.Account}
}

// CalendarQuery asks for the requests that are or were due from a moment on, and before
// another one.
type CalendarQuery struct {
	Account string // of one account; "" is all
	// After is the place behind which they stand. One with a time alone is before all that
	// are due then.
	After  DuePlace
	Before time.Time
	Limit  int
}

// DuePlace is where a request stands in a calendar.
type DuePlace struct {
	DueAt   time.Time
	Account string
	Seq     int64
}

// DuePlace is where the request stands in a calendar.
func (r Record) DuePlace() DuePlace { return DuePlace{DueAt: r.DueAt, Account: r.Account, Seq: r.Seq} }

// Waiting is an unfinished request in its account's queue, without its content.
type Waiting struct {
	Key
	Seq       int64
	State     jetpost.State
	Code      jetpost.Code // why it is held or unknown; else ""
	DueAt     time.Time
	HoldUntil time.Time
	ExpiresAt time.Time
	// Begun says that the request goes before all that have not begun.
	Begun bool
	// Posts counts its posts, 0 if no worker could read it yet. Live counts those that
	// are live.
	Posts, Live int
}

// LateQueue is the part of an account's queue that was due before a time and is not
// done.
type LateQueue struct {
	Account string
	// Unsent counts the requests of which nothing was sent. Since is when the first of
	// them was due.
	Unsent int
	Since  time.Time
	// Begun counts the others: a post of them is live or may be live, or no worker
	// could read them so far.
	Begun int
}

// MaxSeries bounds what CountCodes and Series count of one kind, so that their duration is
// bounded, too. The posts of an hour are counted without a bound.
const MaxSeries = 10_000

// CodeCount counts the requests of one reason.
type CodeCount struct {
	Code  jetpost.Code
	Count int
	// First and Last are the earliest and the latest of their last changes.
	First, Last time.Time
}

// SeriesQuery asks for a Series.
type SeriesQuery struct {
	Now   time.Time
	Since time.Time // posts from then on are counted
	// Day and Month are since when cost is added up; Month is the earlier one.
	Day, Month time.Time
}

// Series is how much has gone out, and how much is due.
type Series struct {
	// Posts that went live, by the hour since 1970 of their latest intent.
	Posts map[int64]int
	// DueHour and DueDay count unfinished requests that are due within that time of Now,
	// up to MaxSeries.
	DueHour, DueDay int
	// CostDay and CostMonth are the estimates, in millionths of a US dollar, for the
	// requests that were accepted since then and have begun.
	CostDay, CostMonth int64
}

// Queries reads requests and what was refused.
type Queries interface {
	// Request returns one request, or ErrNotFound.
	Request(ctx context.Context, key Key) (Record, error)
	// ListRequests returns requests, the latest accepted first.
	ListRequests(ctx context.Context, filter Filter) ([]Record, error)
	// Calendar returns requests by the time at which they are or were due, the earliest
	// first.
	Calendar(ctx context.Context, q CalendarQuery) ([]Record, error)
	// Waiting returns up to limit unfinished requests behind after, by account, due
	// time and sequence of acceptance. The zero value starts at the first one.
	Waiting(ctx context.Context, after Waiting, limit int) ([]Waiting, error)
	// CountRequests counts requests by state, up to MaxCounted of each.
	CountRequests(ctx context.Context) (map[jetpost.State]int, error)
	// CountCodes counts requests of one state by reason, the largest count first. It looks
	// at the latest MaxSeries of them.
	CountCodes(ctx context.Context, state jetpost.State) ([]CodeCount, error)
	// Series counts what has gone out lately, and what is due.
	Series(ctx context.Context, q SeriesQuery) (Series, error)
	// CountAccountRequests counts those of one account.
	CountAccountRequests(ctx context.Context, account string) (map[jetpost.State]int, error)
	// Late returns, by account, the unfinished requests that were due before a time: of
	// one account, or of all accounts that have such requests if account is "". It
	// counts up to limit of each account, in the order of the queue.
	Late(ctx context.Context, account string, dueBefore time.Time, limit int) ([]LateQueue, error)
	// SameText returns a request of another account that posts one of the texts too
	// near in time. A post of it is live, may be live, or is still to be sent.
	SameText(ctx context.Context, q TextQuery) (Key, bool, error)
	// Refusals returns the latest refusals, newest first.
	Refusals(ctx context.Context, limit int) ([]jetpost.Refusal, error)
}
