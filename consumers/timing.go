package consumers

import (
	"time"

	"github.com/jetpost/jetpost/store"
)

// DefaultLease is how long a lane belongs to a worker that gives no more
// heartbeats.
const DefaultLease = 60 * time.Second

// MinLease keeps the margins that are cut from a lease measurable.
const MinLease = time.Second

// Timing holds every margin of the publish path. Those that are between workers
// derive from the length of the lane's lease, so that their order stays whatever it
// is:
//
//	commit of the intent ............................ 0
//	latest byte to X (write guard) .................. lease * 1/3   20 s
//	latest answer from X (the call's timeout more) .. lease * 7/12  35 s
//	end of the lease, another worker may take over .. lease         60 s
//
// Those that belong to X are its own, since X knows nothing of our lease:
//
//	first look for a post whose answer was lost ..... 60 s after the latest answer
//	second look, which confirms that it is absent ... 30 s later, or
//	where X shows no post made after it ............. 10 min later
//
//	a post found may seem older than its intent by .. 5 s
//	one that keeps a doubt alive by ................. 1 min
//
//	a reply to a post of a moment ago waits for it .. 10 s, again and again for 5 min
type Timing struct {
	Lease time.Duration
	Scale
}

// Scale makes what belongs to X pass faster, for tests and the demo: against the
// real X it is the zero value, which is true to life.
type Scale struct {
	// Minute is how long a minute of X takes.
	Minute time.Duration
}

// Of is how long something of X takes.
func (s Scale) Of(d time.Duration) time.Duration {
	if s.Minute == 0 {
		return d
	}
	return time.Duration(float64(d) * (float64(s.Minute) / float64(time.Minute)))
}

// The margins that belong to X, before they are scaled.
const (
	// timelineLag is for how long X's timelines may lag behind without a doubt
	// taking any harm: no look comes before.
	timelineLag = time.Minute
	// confirmFresh is the distance of two looks of which the first has shown a post
	// made after the one in doubt, confirmStale of others: where X shows no post that
	// is newer, nothing but time tells a timeline that lags from one without the post.
	// README promises the latter.
	confirmFresh = 30 * time.Second
	confirmStale = 10 * time.Minute
	// clockMargin is how much earlier than its intent a post may seem to be made,
	// since the database's clock and X's differ.
	clockMargin = 5 * time.Second
	// strangerMargin is the same for posts that keep a doubt alive: those are not
	// taken for ours, but ours is not called absent beside them.
	strangerMargin = time.Minute
	// repeatsFor is for how long after the first doubt about a post X's refusal of it
	// as a duplicate leads to another look.
	repeatsFor = 30 * time.Minute
	// firstCheckAgain is the wait after the first look that did not settle a doubt.
	firstCheckAgain = 30 * time.Second
	// replicaWait is how long a reply waits whose parent X has just taken and does not show
	// yet, and replicaLag for how long after that post X's word is not taken for good.
	replicaWait = 10 * time.Second
	replicaLag  = 5 * time.Minute
	// appFault is how long the app pauses at first where X names no end of what is
	// wrong with it, and for how long a 401 renews no token that is younger.
	appFault = 15 * time.Minute
)

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

// answeredBy is when X has answered to a post that may have been sent until notAfter,
// or will not any more.
func (t Timing) answeredBy(notAfter time.Time) time.Time { return notAfter.Add(t.CallTimeout()) }

// checkFrom is when such a post is looked for.
func (t Timing) checkFrom(notAfter time.Time) time.Time {
	return t.answeredBy(notAfter).Add(t.Of(timelineLag))
}

// confirmAfter is how long after a look that did not find a post another one has to
// confirm that.
func (t Timing) confirmAfter(fresh bool) time.Duration {
	if fresh {
		return t.Of(confirmFresh)
	}
	return t.Of(confirmStale)
}

func (t Timing) clockMargin() time.Duration    { return t.Of(clockMargin) }
func (t Timing) strangerMargin() time.Duration { return t.Of(strangerMargin) }
func (t Timing) repeatsFor() time.Duration     { return t.Of(repeatsFor) }
func (t Timing) replicaWait() time.Duration    { return t.Of(replicaWait) }
func (t Timing) replicaLag() time.Duration     { return t.Of(replicaLag) }

// checkAgain is the wait after a number of looks that did not settle a doubt.
//
//	looks  1     2     3     4     5 and on
//	wait   30 s  30 s  1 min 2 min 4 min
func (t Timing) checkAgain(looks int) time.Duration {
	return t.Of(firstCheckAgain) << min(max(looks-2, 0), 3)
}

// extendEvery is how often a lane at work prolongs its lease.
func (t Timing) extendEvery() time.Duration { return t.lease() / 4 }

// sweepEvery is how often one worker looks for lanes that nobody woke.
func (t Timing) sweepEvery() time.Duration { return t.lease() / 12 }

// DefaultExchangeLease is how long a token belongs to a worker that exchanges
// it and gives no more heartbeats.
const DefaultExchangeLease = 30 * time.Second

// TokenTiming holds every margin of token care. Those between workers derive from the
// lease of one exchange, as those of a lane do from its own:
//
//	the claim is asked for .......................... 0
//	latest byte to X (write guard) .................. lease * 1/3   10 s
//	latest answer from X (the call's timeout more) .. lease * 2/3   20 s
//	end of the lease ................................ lease         30 s
//
//	a token is used while it is renewed elsewhere, if it lives for .. lease       30 s
//	first wait after a failure that was none of X's words ........... lease * 2    1 min
//	a token in doubt is tried again, before its end ................. lease * 4    2 min
//	a lane renews a token that ends within .......................... lease * 10   5 min
//
// Those that belong to X are its own:
//
//	a 401 renews no token that is younger than ...................... 15 min
//	refreshes stop when X does not know the app ..................... 15 min
type TokenTiming struct {
	Lease time.Duration
	Scale
}

func (t TokenTiming) lease() time.Duration {
	if t.Lease == 0 {
		return DefaultExchangeLease
	}
	return max(t.Lease, MinLease)
}

// sendWithin is how long after its claim was asked for an exchange may be sent.
func (t TokenTiming) sendWithin() time.Duration { return t.lease() / 3 }

// CallTimeout bounds one exchange.
func (t TokenTiming) CallTimeout() time.Duration { return t.lease() / 3 }

func (t TokenTiming) usable() time.Duration   { return t.lease() }
func (t TokenTiming) nearEnd() time.Duration  { return 4 * t.lease() }
func (t TokenTiming) fresh() time.Duration    { return 10 * t.lease() }
func (t TokenTiming) coolDown() time.Duration { return t.Of(appFault) }
func (t TokenTiming) appFault() time.Duration { return t.Of(appFault) }

// firstBackoff is the wait after the first exchange that came to nothing.
func (t TokenTiming) firstBackoff() time.Duration { return 2 * t.lease() }

// maxRefreshDoublings bounds the wait between exchanges of one token that come
// to nothing: to about an hour, of a first one of a minute.
const maxRefreshDoublings = 6

// backoff is the wait after so many attempts in a row, 1 at least.
func (t TokenTiming) backoff(attempts int) time.Duration {
	return t.firstBackoff() << min(max(attempts, 1)-1, maxRefreshDoublings)
}

// pace is that of every claim.
func (t TokenTiming) pace() store.Pace {
	return store.Pace{Lease: t.lease(), NearEnd: t.nearEnd(), Backoff: t.firstBackoff()}
}

// Waits that do not depend on the lease.
const (
	// laneBudget is how long one delivery may keep a slot while others wait.
	laneBudget = 60 * time.Second
	// newerWorkerRetry is how often a request of a later version is looked at.
	newerWorkerRetry = 5 * time.Minute
	// keyRetry is how often a request is looked at whose account's tokens no key opens.
	keyRetry = 15 * time.Minute
	// readsCapped is how long X is not asked for posts once a cap of them is reached, where
	// X names no end.
	readsCapped = 15 * time.Minute
)

// maxChecks is how many looks in vain may leave a post in doubt until a person has to
// say, in about a quarter of an hour.
const maxChecks = 6

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

// readTries is how many holds in a row a post in doubt is given, some three hours,
// while X refuses to show the account's posts. Then a person has to say.
const readTries = 10

const (
	// forNowWait is how long an account is left alone which X asks to try again later,
	// doubled each time up to forNowTries: 15 minutes to 4 hours, about 8 in all.
	forNowWait  = 15 * time.Minute
	forNowTries = 5
)

// edgeTries is how many holds in a row a call is given, about a day, that X's
// edge refuses without a word of X. Routing faults pass; a request that is itself
// the cause must not hold up its account's line for ever.
const edgeTries = 52

// backoff returns the wait after failures failures in a row, 1 at least.
func backoff(failures int) time.Duration {
	return backoffs[min(max(failures, 1), len(backoffs))-1]
}
