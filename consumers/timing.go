package consumers

import (
	"time"

	"github.com/jetpost/jetpost/store"
)

// DefaultLease is how long a lane belongs to a worker that no longer extends its lease.
const DefaultLease = 60 * time.Second

// MinLease is the shortest lease. With a shorter one the margins are too small to enforce.
const MinLease = time.Second

// timing holds the margins of the publish path. Times that bound one part alone stand in its
// file: admission/gate.go, partition.go, sweep.go, upload.go. The margins between workers
// are fractions of the lane's lease, so their order does not depend on its length:
//
//	commit of the intent ............................ 0
//	latest byte to X (write guard) .................. lease * 1/3   20 s
//	latest answer from X (the call's timeout more) .. lease * 7/12  35 s
//	end of the lease, another worker may take over .. lease         60 s
//
// The margins that depend on X are independent of the lease:
//
//	first timeline check after a lost answer ........ 60 s after the latest answer
//	second check, which confirms the absence ........ 30 s later, or
//	if X shows no post made after it ................ 10 min later
//
//	a found post may seem older than its intent by .. 5 s
//	one that keeps a doubt alive by ................. 1 min
//
//	a reply waits for a parent posted just before ... 10 s, repeated for 5 min
type timing struct {
	Lease time.Duration
	Scale
}

// Scale shortens the margins that depend on X, for tests and the demo. The zero value does
// not shorten them, and is the one to use with the real X.
type Scale struct {
	// Minute is how long a minute of X takes.
	Minute time.Duration
}

// Of scales a duration.
func (s Scale) Of(d time.Duration) time.Duration {
	if s.Minute == 0 {
		return d
	}
	return time.Duration(float64(d) * (float64(s.Minute) / float64(time.Minute)))
}

// The margins that depend on X, before they are scaled.
const (
	// timelineLag is how long X's timelines may lag. No timeline check runs before.
	timelineLag = time.Minute
	// confirmFresh is the time between two timeline checks if the first has shown a post
	// made after the one in doubt, and confirmStale if not: without a newer post only time
	// distinguishes a timeline that lags from one without the post. docs/states.md and
	// decision 0012 promise confirmStale.
	confirmFresh = 30 * time.Second
	confirmStale = 10 * time.Minute
	// clockMargin is how much earlier than its intent a post may seem to be made, because
	// the clocks of the database and X differ.
	clockMargin = 5 * time.Second
	// strangerMargin is the same for posts that keep a doubt alive: they are not taken for
	// ours, but ours is not taken for absent because of them.
	strangerMargin = time.Minute
	// repeatsFor is how long after the first doubt about a post a refusal of it as a
	// duplicate leads to another timeline check.
	repeatsFor = 30 * time.Minute
	// firstCheckAgain is the wait after the first timeline check without a result.
	firstCheckAgain = 30 * time.Second
	// replicaWait is how long a reply waits if X does not show its parent yet, and
	// replicaLag how long after the parent was posted that may happen.
	replicaWait = 10 * time.Second
	replicaLag  = 5 * time.Minute
	// appFault is how long refreshes are paused if X does not accept the app and names no
	// end. A token that is younger is not renewed after a 401.
	appFault = 15 * time.Minute
)

func (t timing) lease() time.Duration {
	if t.Lease == 0 {
		return DefaultLease
	}
	return max(t.Lease, MinLease)
}

// sendWithin is how long after the commit of its intent a post may be sent.
func (t timing) sendWithin() time.Duration { return t.lease() / 3 }

// CallTimeout bounds one call to X.
func (t timing) CallTimeout() time.Duration { return t.lease() / 4 }

// answeredBy is when X has answered a post that may have been sent until notAfter, or never
// will.
func (t timing) answeredBy(notAfter time.Time) time.Time { return notAfter.Add(t.CallTimeout()) }

// checkFrom is when the first timeline check for such a post runs.
func (t timing) checkFrom(notAfter time.Time) time.Time {
	return t.answeredBy(notAfter).Add(t.Of(timelineLag))
}

// confirmAfter is how long after a timeline check that found a post absent the second check
// runs.
func (t timing) confirmAfter(fresh bool) time.Duration {
	if fresh {
		return t.Of(confirmFresh)
	}
	return t.Of(confirmStale)
}

func (t timing) clockMargin() time.Duration    { return t.Of(clockMargin) }
func (t timing) strangerMargin() time.Duration { return t.Of(strangerMargin) }
func (t timing) repeatsFor() time.Duration     { return t.Of(repeatsFor) }
func (t timing) replicaWait() time.Duration    { return t.Of(replicaWait) }
func (t timing) replicaLag() time.Duration     { return t.Of(replicaLag) }

// checkAgain is the wait after a number of timeline checks without a result.
//
//	checks  1     2     3     4     5 and on
//	wait    30 s  30 s  1 min 2 min 4 min
func (t timing) checkAgain(checks int) time.Duration {
	return t.Of(firstCheckAgain) << min(max(checks-2, 0), 3)
}

// extendEvery is how often a lane at work extends its lease.
func (t timing) extendEvery() time.Duration { return t.lease() / 4 }

// sweepEvery is how often one worker sweeps.
func (t timing) sweepEvery() time.Duration { return t.lease() / 12 }

// DefaultExchangeLease is how long a worker that exchanges a token has claimed it.
const DefaultExchangeLease = 30 * time.Second

// tokenTiming holds every margin of token refreshes. The margins between workers are
// fractions of the lease of one exchange:
//
//	the claim is asked for .......................... 0
//	latest byte to X (write guard) .................. lease * 1/3   10 s
//	latest answer from X (the call's timeout more) .. lease * 2/3   20 s
//	end of the lease ................................ lease         30 s
//
//	a token is used while another worker renews it, if valid for .... lease       30 s
//	first wait after a failure without a decision of X .............. lease * 2    1 min
//	a token in doubt is tried again before its end by ............... lease * 4    2 min
//	a lane renews a token that expires within ....................... lease * 10   5 min
//
// The margins that depend on X are independent of the lease:
//
//	a 401 renews no token that is younger than ...................... 15 min
//	refreshes are paused if X does not know the app for ............. 15 min
type tokenTiming struct {
	Lease time.Duration
	Scale
}

func (t tokenTiming) lease() time.Duration {
	if t.Lease == 0 {
		return DefaultExchangeLease
	}
	return max(t.Lease, MinLease)
}

// sendWithin is how long after the claim was requested an exchange may be sent.
func (t tokenTiming) sendWithin() time.Duration { return t.lease() / 3 }

// CallTimeout bounds one exchange.
func (t tokenTiming) CallTimeout() time.Duration { return t.lease() / 3 }

func (t tokenTiming) usable() time.Duration   { return t.lease() }
func (t tokenTiming) nearEnd() time.Duration  { return 4 * t.lease() }
func (t tokenTiming) fresh() time.Duration    { return 10 * t.lease() }
func (t tokenTiming) coolDown() time.Duration { return t.Of(appFault) }
func (t tokenTiming) appFault() time.Duration { return t.Of(appFault) }

// firstBackoff is the wait after the first failed exchange.
func (t tokenTiming) firstBackoff() time.Duration { return 2 * t.lease() }

// maxRefreshDoublings bounds the wait between failed exchanges of one token: to about an
// hour if the first wait is a minute.
const maxRefreshDoublings = 6

// backoff is the wait after a number of attempts in a row, at least 1.
func (t tokenTiming) backoff(attempts int) time.Duration {
	return t.firstBackoff() << min(max(attempts, 1)-1, maxRefreshDoublings)
}

// pace is the pace of every claim.
func (t tokenTiming) pace() store.Pace {
	return store.Pace{Lease: t.lease(), NearEnd: t.nearEnd(), Backoff: t.firstBackoff()}
}

// Waits that do not depend on the lease.
const (
	// laneBudget is how long one delivery may occupy a slot.
	laneBudget = 60 * time.Second
	// newerWorkerRetry is how often a request of a later version is checked.
	newerWorkerRetry = 5 * time.Minute
	// keyRetry is how often a request is checked if no key decrypts its account's tokens.
	keyRetry = 15 * time.Minute
	// readsCapped is how long no posts are read once X's cap of reads is reached, if X
	// names no end.
	readsCapped = 15 * time.Minute
)

// maxChecks is how many timeline checks without a result a post in doubt gets, within about
// a quarter of an hour, until a person has to decide.
const maxChecks = 6

// backoffs are the waits after the first, second, ... failure in a row that is the fault of X
// or the network. The last one repeats.
//
//	attempt  1    2     3     4     5      6 and on
//	wait     2 s  10 s  30 s  2 min 10 min 30 min
var backoffs = [...]time.Duration{
	2 * time.Second, 10 * time.Second, 30 * time.Second,
	2 * time.Minute, 10 * time.Minute, 30 * time.Minute,
}

// mediaTries is how many holds in a row, over about five hours, a request gets whose media
// source cannot be read. Then it fails, so that it does not block its account's queue.
const mediaTries = 14

// readTries is how many holds in a row, over about three hours, a post in doubt gets while X
// refuses to show the account's posts. Then a person has to decide.
const readTries = 10

const (
	// forNowWait is the wait after X asks an account to try again later. It doubles each
	// time, up to forNowTries times: from 15 minutes to 4 hours, about 8 hours in total.
	forNowWait  = 15 * time.Minute
	forNowTries = 5
)

// edgeTries is how many holds in a row, over about a day, a call gets that X's edge refuses
// without a message of X. Routing faults pass, but a request that causes the refusal must not
// block its account's queue for ever.
const edgeTries = 52

// backoff returns the wait after a number of failures in a row, at least 1.
func backoff(failures int) time.Duration {
	return backoffs[min(max(failures, 1), len(backoffs))-1]
}
