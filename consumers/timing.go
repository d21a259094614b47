package consumers

import "time"

// DefaultLease is how long a lane belongs to a worker that gives no more
// signs of life.
const DefaultLease = 60 * time.Second

// MinLease keeps the margins that are cut from a lease measurable.
const MinLease = time.Second

// Timing holds every margin of the publish path. All derive from the length
// of the lane's lease, so that a test or a demo can shrink them together and
// their order stays:
//
//	commit of the intent ............................ 0
//	latest byte to X (write guard) .................. lease * 1/3   20 s
//	latest answer from X (the call's timeout more) .. lease * 7/12  35 s
//	end of the lease, another worker may take over .. lease         60 s
type Timing struct{ Lease time.Duration }

func (t Timing) lease() time.Duration {
	if t.Lease == 0 {
		return DefaultLease
	}
	return max(t.Lease, MinLease)
}

// sendWithin is how long after the commit of its intent a post may be sent.
func (t Timing) sendWithin() time.Duration { return t.lease() / 3 }

// CallTimeout bounds one call to X.
func (t Timing) CallTimeout() time.Duration { return t.lease() / 4 }

// extendEvery is how often a lane at work prolongs its lease.
func (t Timing) extendEvery() time.Duration { return t.lease() / 4 }

// sweepEvery is how often one worker looks for lanes that nobody rang.
func (t Timing) sweepEvery() time.Duration { return t.lease() / 12 }

// Waits that do not depend on the lease.
const (
	// laneBudget is how long one delivery may keep a slot while others wait.
	laneBudget = 60 * time.Second
	// newerWorkerRetry is how often a request of a later version is looked at.
	newerWorkerRetry = 5 * time.Minute
	// renewAgain is how young a renewed token must not be for a 401 to have it
	// renewed once more.
	renewAgain = 15 * time.Minute
	// undatedStop is how long the app stops where X names no end.
	undatedStop = 15 * time.Minute
	// freshMargin is how long an access token must still live to be used
	// without renewing it first.
	freshMargin = 5 * time.Minute
	// usableMargin is how long it must live to be used while another worker
	// renews it.
	usableMargin = 30 * time.Second
)

// backoffs are the waits after the first, second, ... failure in a row that
// is X's or the network's; the last one repeats.
//
//	attempt  1    2     3     4     5      6 and on
//	wait     2 s  10 s  30 s  2 min 10 min 30 min
var backoffs = [...]time.Duration{
	2 * time.Second, 10 * time.Second, 30 * time.Second,
	2 * time.Minute, 10 * time.Minute, 30 * time.Minute,
}

// mediaTries is how many holds in a row a media source that cannot be read is
// given, some five hours, before it stops holding up its account's line.
const mediaTries = 14

// backoff returns the wait after failures failures in a row, 1 at least.
func backoff(failures int) time.Duration {
	return backoffs[min(max(failures, 1), len(backoffs))-1]
}
