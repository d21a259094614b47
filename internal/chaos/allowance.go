package chaos

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	"github.com/jetpost/jetpost/xapi/xsim"
)

// This file judges X's call log by itself: which windows there were, how
// much of them was used, and what was called that should not have been. It knows X's
// rules and the jobs, and nothing of how workers keep to them.

// callerFunc tells the calls of workers from those that the run makes itself, as
// another program with the same app would.
type callerFunc func(xsim.Call) bool

// rateWindow is one window of X: it opens at the first call after the last one's
// reset, and ends on the first whole second after its length.
type rateWindow struct {
	opened, end time.Time
	made        []xsim.Call // which it has counted
	refused     []xsim.Call // 429s, which count in no window
}

// windowsIn replays the windows of a limit: of one account's calls, or of all where
// the limit is the app's.
func windowsIn(calls []xsim.Call, l xsim.Limit) (windows []rateWindow) {
	calls = slices.DeleteFunc(slices.Clone(calls), func(c xsim.Call) bool {
		return c.Endpoint != l.Endpoint || c.Status == http.StatusUnauthorized // of which no window knows
	})
	slices.SortStableFunc(calls, func(a, b xsim.Call) int { return a.Counted.Compare(b.Counted) })
	for _, c := range calls {
		if n := len(windows); n == 0 || !c.Counted.Before(windows[n-1].end) {
			windows = append(windows, rateWindow{opened: c.Counted, end: wholeSecond(c.Counted.Add(lengthOf(l)))})
		}
		w := &windows[len(windows)-1]
		if c.Status == http.StatusTooManyRequests {
			w.refused = append(w.refused, c)
		} else {
			w.made = append(w.made, c)
		}
	}
	return windows
}

func lengthOf(l xsim.Limit) time.Duration { return time.Duration(l.WindowMS) * time.Millisecond }

// cycleOf is the least time from one reset to the next.
func cycleOf(l xsim.Limit) time.Duration {
	return (lengthOf(l) + time.Second - 1).Truncate(time.Second)
}

func wholeSecond(t time.Time) time.Time {
	if whole := t.Truncate(time.Second); whole.Before(t) {
		return whole.Add(time.Second)
	}
	return t
}

// usage is how much of what X allowed was called, while jobs waited for it.
type usage struct {
	// used are the workers' calls in the windows that count: those after the first
	// reset at which all jobs were queued, but for the last one, in which the queue is
	// drained.
	used int
	// allowed is what the best client would have called in the same time: one that
	// calls at each reset, so that the next is a cycle later, and that begins a thread
	// only where a window has room for it (see wholeThreads). So the time between a
	// reset and the first call counts as far as it puts off the next reset; what was
	// called for others is taken off.
	allowed float64
	windows int
	// gaps are the times from each reset to the next window's first call.
	gaps []time.Duration
}

func (u *usage) add(o usage) {
	u.used += o.used
	u.allowed += o.allowed
	u.windows += o.windows
	u.gaps = append(u.gaps, o.gaps...)
}

// share is 1 for the best client, and 0 where nothing was seen.
func (u usage) share() float64 {
	if u.allowed <= 0 {
		return 0
	}
	return float64(u.used) / u.allowed
}

// demand is what waits for the windows of a limit.
type demand struct {
	threads []int     // how many posts each has, in order
	queued  time.Time // when all were
	until   time.Time // when the call log were closed, drained or not
}

// useOf measures the windows of a limit. Each call of a worker must be the next post.
func useOf(windows []rateWindow, l xsim.Limit, d demand, ours callerFunc) usage {
	first := slices.IndexFunc(windows, func(w rateWindow) bool { return !w.end.Before(d.queued) })
	if first < 0 {
		return usage{}
	}
	done := 0
	for _, w := range windows[:first+1] {
		done += countOf(w.made, ours)
	}
	begun, rest := after(d.threads, done)
	left := begun
	for _, n := range rest {
		left += n
	}
	var u usage
	start, last, foreign := windows[first].end, windows[first].end, 0
	for _, w := range windows[first+1:] {
		if left <= 0 {
			break // called by others alone
		}
		u.gaps = append(u.gaps, w.opened.Sub(last))
		mine := countOf(w.made, ours)
		left -= mine
		if left <= 0 {
			break // drained
		}
		u.used += mine
		foreign += len(w.made) - mine
		u.windows++
		last = w.end
	}
	if left > 0 && last.Before(d.until) {
		last = d.until
	}
	cycles := float64(last.Sub(start)) / float64(cycleOf(l))
	rest = slices.Concat(slices.Repeat([]int{1}, foreign), rest) // which the best client gets no room of
	u.allowed = callsUpTo(wholeThreads(begun, rest, l.Max), cycles) - float64(foreign)
	return u
}

func countOf(calls []xsim.Call, ours callerFunc) (n int) {
	for _, c := range calls {
		if ours(c) {
			n++
		}
	}
	return n
}

// after is what is left of threads when so many posts are made: of one that is begun,
// and the others.
func after(threads []int, made int) (begun int, rest []int) {
	for i, n := range threads {
		switch {
		case made == 0:
			return 0, threads[i:]
		case made < n:
			return n - made, threads[i+1:]
		}
		made -= n
	}
	return 0, nil
}

// wholeThreads is how many calls go into each window by the rule that no thread is cut
// which need not be: in order, a thread begins only where as many calls are left as it
// has posts, or the whole window if it is longer than that; else it waits for the next.
// What is left of a begun thread goes on at once.
func wholeThreads(begun int, threads []int, limit int) []int {
	calls, left := []int{0}, limit
	next := func() { calls, left = append(calls, 0), limit }
	send := func(n int) {
		for ; n > 0; n-- {
			if left == 0 {
				next()
			}
			calls[len(calls)-1]++
			left--
		}
	}
	send(begun)
	for _, n := range threads {
		if left < min(n, limit) {
			next()
		}
		send(n)
	}
	return calls
}

// callsUpTo adds up the calls of so many windows, and of a part of the next.
func callsUpTo(calls []int, windows float64) (sum float64) {
	for _, n := range calls {
		sum += float64(n) * min(1, max(0, windows))
		windows--
	}
	return sum
}

// cutShort are the calls that began a thread although its window had not enough left.
// Begins is how many posts a thread has, by when X counted its first one.
func cutShort(windows []rateWindow, limit int, begins map[time.Time]int) (found []xsim.Call) {
	for _, w := range windows {
		for i, c := range w.made {
			if n, ok := begins[c.Counted]; ok && limit-i < min(n, limit) {
				found = append(found, c)
			}
		}
	}
	return found
}

// refusals sorts the workers' 429s. One a window is excused where others have called
// in it, since a worker's count is wrong then; of a window that many workers share, all
// that begin within a time of the first, for they were on their way. Excused is by
// window, of those in which others have called.
func refusals(windows []rateWindow, ours callerFunc, together time.Duration) (excused [][]xsim.Call, blamed []xsim.Call) {
	for _, w := range windows {
		mine := slices.DeleteFunc(slices.Clone(w.refused), func(c xsim.Call) bool { return !ours(c) })
		if countOf(w.made, ours) == len(w.made) {
			blamed = append(blamed, mine...)
			continue
		}
		n := min(1, len(mine))
		for together > 0 && n < len(mine) && mine[n].At.Before(mine[0].Counted.Add(together)) {
			n++
		}
		excused = append(excused, mine[:n])
		blamed = append(blamed, mine[n:]...)
	}
	return excused, blamed
}

// stopSeen is an app pause as the run knows it.
type stopSeen struct {
	kind string
	// known is when NATS had stored it; where a window paused the app, and nobody
	// stored that, when X refused the first call.
	known time.Time
	// end is the moment that the pause names, or at which NATS had stored that it is
	// over; of a window its reset by X's clock.
	end time.Time
}

// stopShown is what X's call log shows of a pause.
type stopShown struct {
	broken []xsim.Call   // begun too late after it was known, and before its end
	latest time.Duration // after it was known, of the last call that was on its way
	first  time.Duration // after its end, of the first call; -1 for none
}

// shown looks at the workers' calls of any kind but exchanges of tokens, which a pause
// of posts lets go on. Within says until when after it was known a call may begin.
func (s stopSeen) shown(calls []xsim.Call, ours callerFunc, within time.Duration) stopShown {
	shown := stopShown{first: -1}
	for _, c := range calls {
		switch {
		case !ours(c) || c.Endpoint == xsim.EndpointToken || c.At.Before(s.known):
		case !c.At.Before(s.end):
			if since := c.At.Sub(s.end); shown.first < 0 || since < shown.first {
				shown.first = since
			}
		case c.At.Sub(s.known) > within:
			shown.broken = append(shown.broken, c)
		default:
			shown.latest = max(shown.latest, c.At.Sub(s.known))
		}
	}
	return shown
}

// begunIn are the workers' calls that began in a time in which none should.
func begunIn(calls []xsim.Call, from, to time.Time, ours callerFunc) []xsim.Call {
	return slices.DeleteFunc(slices.Clone(calls), func(c xsim.Call) bool {
		return !ours(c) || c.At.Before(from) || !c.At.Before(to)
	})
}

// middleAndWorst are the median, the upper one of two, and the largest; 0 of none.
func middleAndWorst(times []time.Duration) (middle, worst time.Duration) {
	if len(times) == 0 {
		return 0, 0
	}
	sorted := slices.SortedFunc(slices.Values(times), cmp.Compare[time.Duration])
	return sorted[len(sorted)/2], sorted[len(sorted)-1]
}
