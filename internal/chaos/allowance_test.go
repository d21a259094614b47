package chaos

import (
	"math"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/jetpost/jetpost/xapi/xsim"
)

// These tests give the judges of scripts/chaos limits call logs that are written by hand,
// right and wrong ones, since a run of a right program shows of a judge only that it
// does not complain.

const (
	workerHost = "127.0.0.1:1"
	otherHost  = "elsewhere"
)

func byWorker(c xsim.Call) bool { return c.Host == workerHost }

// tick is the time of a call log: seconds after a whole one.
func tick(seconds float64) time.Time {
	return time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC).Add(time.Duration(math.Round(seconds*1e6)) * time.Microsecond)
}

// four calls in four seconds, whose windows last half a second less.
func four() xsim.Limit {
	return xsim.Limit{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 4, WindowMS: 3500}
}

// callsAt are calls of a worker at these seconds.
func callsAt(seconds ...float64) (calls []xsim.Call) {
	for _, s := range seconds {
		calls = append(calls, xsim.Call{
			Endpoint: xsim.EndpointCreatePost, Account: "1", Status: http.StatusCreated, Effect: true, Host: workerHost, At: tick(s), Counted: tick(s),
		})
	}
	return calls
}

func by(host string, calls []xsim.Call) []xsim.Call {
	for i := range calls {
		calls[i].Host = host
	}
	return calls
}

func refused(calls []xsim.Call) []xsim.Call {
	for i := range calls {
		calls[i].Status, calls[i].Effect = http.StatusTooManyRequests, false
	}
	return calls
}

func of(endpoint string, calls []xsim.Call) []xsim.Call {
	for i := range calls {
		calls[i].Endpoint = endpoint
	}
	return calls
}

// burst is n calls from a second on, a hundredth of a second apart.
func burst(second float64, n int) (seconds []float64) {
	for i := range n {
		seconds = append(seconds, second+float64(i)/100)
	}
	return seconds
}

func bursts(n int, seconds ...float64) (all []float64) {
	for _, s := range seconds {
		all = append(all, burst(s, n)...)
	}
	return all
}

func TestWindowsIn(t *testing.T) {
	t.Parallel()
	// The first one opens in mid-second and is longer for it. The call at 4.999 arrives
	// in it and counts in the second.
	calls := callsAt(bursts(2, 0.7)...)
	late := callsAt(4.999)
	late[0].Counted = tick(5.001)
	unauthorized := callsAt(9.2)
	unauthorized[0].Status = http.StatusUnauthorized
	calls = slices.Concat(calls, late, refused(callsAt(6)), unauthorized, callsAt(9.4), of(xsim.EndpointTimeline, callsAt(13.5)))
	windows := windowsIn(calls, four())
	want := []struct {
		opened, end   float64
		made, refused int
	}{{0.7, 5, 2, 0}, {5.001, 9, 1, 1}, {9.4, 13, 1, 0}}
	if len(windows) != len(want) {
		t.Fatalf("%d windows, want %d: %+v", len(windows), len(want), windows)
	}
	for i, w := range want {
		got := windows[i]
		if !got.opened.Equal(tick(w.opened)) || !got.end.Equal(tick(w.end)) || len(got.made) != w.made || len(got.refused) != w.refused {
			t.Errorf("window %d is from %s to %s with %d calls, %d refused; want %+v", i, got.opened, got.end, len(got.made), len(got.refused), w)
		}
	}
}

func TestUseOf(t *testing.T) {
	t.Parallel()
	singles := func(n int) []int { return slices.Repeat([]int{1}, n) }
	tests := []struct {
		name    string
		threads []int
		queued  float64
		until   float64
		calls   []xsim.Call
		used    int
		allowed float64
		windows int
		worst   time.Duration
	}{
		// The first window, and the one that drains the queue, do not count.
		{name: "all", threads: singles(14), until: 20, calls: callsAt(bursts(4, 0.1, 4.1, 8.2, 12.1)[:14]...), used: 8, allowed: 8, windows: 2, worst: 200 * time.Millisecond},
		{name: "one call short", threads: singles(14), until: 20, calls: callsAt(slices.Concat(burst(0.1, 4), burst(4.1, 3), burst(8.1, 4), burst(12.1, 3))...), used: 7, allowed: 8, windows: 2, worst: 100 * time.Millisecond},
		// A first call later than half a second puts off the next reset by a second.
		{name: "late", threads: singles(14), until: 20, calls: callsAt(bursts(4, 0.1, 4.6, 9.1, 13.1)[:14]...), used: 8, allowed: 8.5, windows: 2, worst: 600 * time.Millisecond},
		{name: "window left out", threads: singles(14), until: 20, calls: callsAt(bursts(4, 0.1, 8.1, 12.1, 16.1)[:14]...), used: 8, allowed: 10, windows: 2, worst: 4100 * time.Millisecond},
		// What is not drained has waited until the end; the best client would have
		// drained it.
		{name: "stuck", threads: singles(14), until: 20, calls: callsAt(bursts(4, 0.1, 4.1)...), used: 4, allowed: 10, windows: 1, worst: 100 * time.Millisecond},
		{name: "nothing", threads: singles(14), until: 20},
		{name: "queued late", threads: singles(14), queued: 4.5, until: 20, calls: callsAt(bursts(4, 0.1, 4.1, 8.1, 12.1)[:14]...), used: 4, allowed: 4, windows: 1, worst: 100 * time.Millisecond},
		{name: "drained at once", threads: singles(6), until: 20, calls: callsAt(slices.Concat(burst(0.1, 4), burst(4.1, 2))...), worst: 100 * time.Millisecond},
		// Others take two calls of the second window: nobody could have used those.
		{
			name: "others", threads: singles(12), until: 20,
			calls: slices.Concat(callsAt(burst(0.1, 4)...), by(otherHost, callsAt(burst(4, 2)...)), callsAt(burst(4.1, 2)...), callsAt(bursts(4, 8.1, 12.1)[:6]...)),
			used:  6, allowed: 6, windows: 2, worst: 100 * time.Millisecond,
		},
		{
			name: "others, late", threads: singles(12), until: 20,
			calls: slices.Concat(callsAt(burst(0.1, 4)...), by(otherHost, callsAt(burst(4, 2)...)), callsAt(burst(4.1, 2)...), callsAt(bursts(4, 8.6, 13.1)[:6]...)),
			used:  6, allowed: 6.5, windows: 2, worst: 600 * time.Millisecond,
		},
		// Threads of 3, 3, 2, 6, 1 and 3: a window each for the threes, since two would
		// be cut; the two fits behind neither, the six starts afresh and goes on.
		{
			name: "threads", threads: []int{3, 3, 2, 6, 1, 3}, until: 30,
			calls: callsAt(slices.Concat(burst(0.1, 3), burst(4.1, 3), burst(8.1, 2), burst(12.1, 4), burst(16.1, 3), burst(20.1, 3))...),
			used:  12, allowed: 12, windows: 4, worst: 100 * time.Millisecond,
		},
		// A thread that could have begun waits for the next window.
		{
			name: "thread waits", threads: []int{4, 2, 2, 4, 4}, until: 30,
			calls: callsAt(slices.Concat(burst(0.1, 4), burst(4.1, 2), burst(8.1, 2), burst(12.1, 4), burst(16.1, 4))...),
			used:  8, allowed: 12, windows: 3, worst: 100 * time.Millisecond,
		},
		// One that is under way at the first reset goes on at once.
		{
			name: "thread under way", threads: []int{2, 3, 2, 4, 1}, until: 30,
			calls: callsAt(slices.Concat(burst(0.1, 4), burst(4.1, 3), burst(8.1, 4), burst(12.1, 1))...),
			used:  7, allowed: 7, windows: 2, worst: 100 * time.Millisecond,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			u := useOf(windowsIn(test.calls, four()), four(), demand{threads: test.threads, queued: tick(test.queued), until: tick(test.until)}, byWorker)
			_, worst := middleAndWorst(u.gaps)
			if u.used != test.used || u.allowed != test.allowed || u.windows != test.windows || worst != test.worst {
				t.Errorf("used %d of %v in %d windows, worst gap %s; want %d of %v in %d, %s", u.used, u.allowed, u.windows, worst, test.used, test.allowed, test.windows, test.worst)
			}
		})
	}
}

// A share is that of all accounts together, and none of nothing.
func TestShare(t *testing.T) {
	t.Parallel()
	var u usage
	if u.share() != 0 {
		t.Errorf("the share of nothing is %v", u.share())
	}
	u.add(usage{used: 8, allowed: 8, windows: 2, gaps: []time.Duration{1, 4}})
	u.add(usage{used: 4, allowed: 8, windows: 2, gaps: []time.Duration{3, 2}})
	middle, worst := middleAndWorst(u.gaps)
	if u.share() != 0.75 || u.windows != 4 || middle != 3 || worst != 4 {
		t.Errorf("share %v in %d windows, gaps %d and %d; want 0.75, 4, 3, 4", u.share(), u.windows, middle, worst)
	}
}

func TestWholeThreads(t *testing.T) {
	t.Parallel()
	tests := []struct {
		begun   int
		threads []int
		want    []int
	}{
		{0, nil, []int{0}},
		{0, []int{1, 1, 1, 1, 1}, []int{4, 1}},
		{0, []int{2, 3, 1, 4}, []int{2, 4, 4}},
		{0, []int{9}, []int{4, 4, 1}},
		{0, []int{1, 9, 3}, []int{1, 4, 4, 4}},
		{0, []int{1, 9, 2, 2}, []int{1, 4, 4, 3, 2}},
		{3, []int{1, 2}, []int{4, 2}},
		{6, []int{2, 1}, []int{4, 4, 1}},
	}
	for _, test := range tests {
		if got := wholeThreads(test.begun, test.threads, 4); !slices.Equal(got, test.want) {
			t.Errorf("%d and %v go as %v, want %v", test.begun, test.threads, got, test.want)
		}
	}
}

func TestCutShort(t *testing.T) {
	t.Parallel()
	begin := func(n int, at float64) map[time.Time]int { return map[time.Time]int{tick(at): n} }
	calls := callsAt(burst(0.1, 4)...)
	tests := []struct {
		name   string
		begins map[time.Time]int
		want   int
	}{
		{"fits", begin(3, 0.11), 0},
		{"too long by one", begin(3, 0.12), 1},
		{"longer than the window, at its start", begin(9, 0.1), 0},
		{"longer than the window, behind another", begin(9, 0.11), 1},
		{"one post, at the end", begin(1, 0.13), 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := cutShort(windowsIn(calls, four()), 4, test.begins); len(got) != test.want {
				t.Errorf("found %d, want %d", len(got), test.want)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	full := callsAt(burst(0.1, 4)...)
	disputed := slices.Concat(callsAt(burst(0.1, 2)...), by(otherHost, callsAt(burst(0.2, 2)...)))
	atOnce := refused(callsAt(1, 1.01))
	atOnce[1].At = tick(0.99)
	tests := []struct {
		name                     string
		calls                    []xsim.Call
		together                 time.Duration
		windows, excused, blamed int
	}{
		{name: "none", calls: full},
		{name: "in a full window", calls: slices.Concat(full, refused(callsAt(1))), blamed: 1},
		{name: "in a window of others", calls: slices.Concat(disputed, refused(callsAt(1))), windows: 1, excused: 1},
		{name: "again in a window of others", calls: slices.Concat(disputed, refused(callsAt(1, 2))), windows: 1, excused: 1, blamed: 1},
		{name: "again at once, in an account's", calls: slices.Concat(disputed, atOnce), windows: 1, excused: 1, blamed: 1},
		{name: "on its way, in the app's", calls: slices.Concat(disputed, refused(callsAt(1, 1.05, 1.15))), together: stopsWithin, windows: 1, excused: 2, blamed: 1},
		{name: "in the window after that", calls: slices.Concat(disputed, callsAt(burst(4.1, 4)...), refused(callsAt(5))), windows: 1, blamed: 1},
		{name: "of others", calls: slices.Concat(full, by(otherHost, refused(callsAt(1))))},
		{name: "at a reset, in vain", calls: slices.Concat(full, refused(callsAt(3.99))), blamed: 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			excused, blamed := refusals(windowsIn(test.calls, four()), byWorker, test.together)
			n := 0
			for _, calls := range excused {
				n += len(calls)
			}
			if len(excused) != test.windows || n != test.excused || len(blamed) != test.blamed {
				t.Errorf("%d excused in %d windows, %d blamed; want %d in %d, %d", n, len(excused), len(blamed), test.excused, test.windows, test.blamed)
			}
		})
	}
}

func TestPauseShown(t *testing.T) {
	t.Parallel()
	stop := stopSeen{known: tick(1), end: tick(3)}
	const none = time.Duration(-1)
	tests := []struct {
		name          string
		calls         []xsim.Call
		broken        int
		latest, first time.Duration
	}{
		{"kept", callsAt(0.5, 1.05, 3.04, 3.2), 0, 50 * time.Millisecond, 40 * time.Millisecond},
		{"exactly as late as may be", callsAt(1.1, 3), 0, 100 * time.Millisecond, 0},
		{"too late", callsAt(1.101, 3.04), 1, 0, 40 * time.Millisecond},
		{"before its end", callsAt(2.999, 3.04), 1, 0, 40 * time.Millisecond},
		{"a read", slices.Concat(of(xsim.EndpointTimeline, callsAt(2)), callsAt(3.5)), 1, 0, 500 * time.Millisecond},
		{"an exchange of tokens", of(xsim.EndpointToken, callsAt(2, 3.1)), 0, 0, none},
		{"others", by(otherHost, callsAt(2, 3.1)), 0, 0, none},
		{"never again", callsAt(0.5), 0, 0, none},
		{"by when it began, not by when it counted", func() []xsim.Call {
			calls := callsAt(1.05, 4)
			calls[0].Counted = tick(2)
			return calls
		}(), 0, 50 * time.Millisecond, time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := stop.shown(test.calls, byWorker, stopsWithin)
			if len(got.broken) != test.broken || got.latest != test.latest || got.first != test.first {
				t.Errorf("%d broken, latest %s, first %s; want %d, %s, %s", len(got.broken), got.latest, got.first, test.broken, test.latest, test.first)
			}
		})
	}
}

func TestBegunIn(t *testing.T) {
	t.Parallel()
	calls := slices.Concat(callsAt(1, 2, 2.5, 3), by(otherHost, callsAt(2.2)))
	if got := begunIn(calls, tick(2), tick(3), byWorker); len(got) != 2 || !got[0].At.Equal(tick(2)) || !got[1].At.Equal(tick(2.5)) {
		t.Errorf("found %+v, want those at 2 and 2.5", got)
	}
}
