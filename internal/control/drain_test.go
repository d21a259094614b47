package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/internal/forecast"
	"github.com/jetpost/jetpost/publishers"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// in is so many seconds after noon.
func in(seconds int) time.Time { return noon.Add(time.Duration(seconds) * time.Second) }

// window is one of posts that X has told of, which ends so many seconds after noon.
func window(account, kind string, limit, left, end, length int) publishers.Window {
	return publishers.Window{
		Account: account, Endpoint: "POST /2/tweets", Kind: kind, Limit: limit, Remaining: left, Reset: in(end),
		Length: time.Duration(length) * time.Second,
	}
}

func singles(n int) forecast.Queued {
	return forecast.Queued{Count: n, Posts: 1, Due: noon, State: jetpost.StateQueued}
}

func thread(posts, live int) forecast.Queued {
	return forecast.Queued{Count: 1, Posts: posts, Live: live, Begun: live > 0, Due: noon, State: jetpost.StateQueued}
}

func held(q forecast.Queued, code jetpost.Code, until time.Time) forecast.Queued {
	q.ID, q.State, q.Code, q.Until = "held", jetpost.StateHeld, code, until
	return q
}

func queueOf(account string, queue ...forecast.Queued) forecast.Queue {
	return forecast.Queue{Account: account, Queue: queue}
}

// told is a forecast on a line for each thing that it tells, in seconds after noon.
func told(f jetpost.Forecast) string {
	seconds := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return fmt.Sprint(t.Sub(noon).Seconds())
	}
	lines := []string{fmt.Sprintf("%d posts, %d windows, %s", f.Posts, f.Windows, seconds(f.DoneAt))}
	note := func(is bool, words string) {
		if is {
			lines[len(lines)-1] += ", " + words
		}
	}
	note(f.AtEarliest, "at the earliest")
	note(f.Estimated, "estimated")
	note(f.BlockedPosts > 0, fmt.Sprintf("%d blocked of %d", f.BlockedPosts, f.BlockedAccounts))
	note(f.Expired > 0, fmt.Sprintf("%d expired", f.Expired))
	for _, a := range f.Accounts {
		lines = append(lines, fmt.Sprintf("%s: %d/%d, %d, %s", a.Account, a.Requests, a.Posts, a.Windows, seconds(a.DoneAt)))
		if w := a.WaitsFor; w != nil {
			note(true, fmt.Sprintf("%s %d/%d", w.Kind, w.Remaining, w.Limit))
			note(!w.Reset.IsZero(), "until "+seconds(w.Reset))
		}
		if a.Held != nil {
			note(true, fmt.Sprintf("%s until %s", a.Held.Code, seconds(a.Held.Until)))
		}
		if a.Blocked != nil {
			note(true, fmt.Sprintf("%s %q blocks %d", a.Blocked.Code, a.Blocked.ID, a.Blocked.Posts))
		}
	}
	return strings.Join(lines, "\n")
}

func due(q forecast.Queued, seconds int) forecast.Queued {
	q.Due, q.State = in(seconds), jetpost.StateScheduled
	return q
}

func expires(q forecast.Queued, seconds int) forecast.Queued {
	q.Expires = in(seconds)
	return q
}

// reason has the whole account wait.
func reason(l forecast.Queue, code jetpost.Code, until time.Time) forecast.Queue {
	l.Reason = &jetpost.Reason{Code: code, Until: until}
	return l
}

// appPause ends at a time, or where that is zero, by hand.
func appPause(code jetpost.Code, until time.Time) publishers.Pause {
	return publishers.Pause{Target: publishers.TargetPublish, Reason: jetpost.Reason{Code: code, Until: until}, Since: in(-60)}
}

// probed is a pause whose next probe is at a time.
func probed(code jetpost.Code, at time.Time) publishers.Pause {
	return publishers.Pause{Target: publishers.TargetPublish, Reason: jetpost.Reason{Code: code}, Since: in(-60), NextProbeAt: at}
}

// never is the end of what a person must end.
var never time.Time

type forecastCase struct {
	name    string
	queues  []forecast.Queue
	windows []publishers.Window
	pauses  []publishers.Pause
	want    string
}

// windowCases are of windows of one account.
func windowCases() []forecastCase {
	return []forecastCase{
		{"nothing", []forecast.Queue{queueOf("a")}, nil, nil, "0 posts, 0 windows, never"},
		{
			"all that fits goes at once", []forecast.Queue{queueOf("a", singles(5))},
			[]publishers.Window{window("a", "15min", 10, 5, 60, 900)}, nil, "5 posts, 1 windows, 0\na: 5/5, 1, 0",
		},
		{
			"what is left of the present window, then whole ones", []forecast.Queue{queueOf("a", singles(26))},
			[]publishers.Window{window("a", "15min", 10, 4, 60, 900)}, nil,
			"26 posts, 4 windows, 1860\na: 26/26, 4, 1860, 15min 4/10, until 60",
		},
		{
			"a window begins with its first call", []forecast.Queue{queueOf("a", due(singles(11), 100))},
			[]publishers.Window{window("a", "15min", 10, 0, 60, 900)}, nil,
			"11 posts, 2 windows, 1000\na: 11/11, 2, 1000, 15min 0/10, until 60",
		},
		{
			"a length that was not seen is the documented one", []forecast.Queue{queueOf("a", singles(21))},
			[]publishers.Window{window("a", "15min", 10, 0, 60, 0)}, nil,
			"21 posts, 3 windows, 1860, estimated\na: 21/21, 3, 1860, 15min 0/10, until 60",
		},
		{
			"a window that X has not told of", []forecast.Queue{queueOf("a", singles(250))}, nil, nil,
			"250 posts, 3 windows, 1800, estimated\na: 250/250, 3, 1800, 15min 100/100",
		},
		{
			"a limit that X has not told of", []forecast.Queue{queueOf("a", singles(150))},
			[]publishers.Window{window("a", "15min", 0, 0, 60, 900)}, nil,
			"150 posts, 2 windows, 960, estimated\na: 150/150, 2, 960, 15min 0/0, until 60",
		},
		{
			"windows of other endpoints do not count", []forecast.Queue{queueOf("a", singles(1))},
			[]publishers.Window{{Account: "a", Endpoint: "GET /2/users/me", Kind: "15min", Limit: 1, Reset: in(60)}}, nil,
			"1 posts, 1 windows, 0\na: 1/1, 1, 0",
		},
		{
			"an account has several windows", []forecast.Queue{queueOf("a", singles(21))},
			[]publishers.Window{window("a", "15min", 10, 10, 60, 900), window("a", "user_24h", 15, 15, 5000, 86400)}, nil,
			"21 posts, 3 windows, 5000\na: 21/21, 3, 5000, 15min 10/10, until 60",
		},
	}
}

// shareCases are of threads, and of the window that all accounts share.
func shareCases() []forecastCase {
	return []forecastCase{
		{
			"a thread is begun where all of it goes out", []forecast.Queue{queueOf("a", thread(4, 0), singles(1))},
			[]publishers.Window{window("a", "15min", 10, 3, 60, 900)}, nil,
			"5 posts, 1 windows, 60\na: 2/5, 1, 60, 15min 3/10, until 60",
		},
		{
			"a begun one needs one", []forecast.Queue{queueOf("a", thread(5, 1))},
			[]publishers.Window{window("a", "15min", 10, 3, 60, 900)}, nil,
			"4 posts, 2 windows, 60\na: 1/4, 2, 60, 15min 3/10, until 60",
		},
		{
			"one that no window takes goes over several", []forecast.Queue{queueOf("a", thread(25, 0))},
			[]publishers.Window{window("a", "15min", 10, 9, 60, 900)}, nil,
			"25 posts, 3 windows, 1860\na: 1/25, 3, 1860, 15min 9/10, until 60",
		},
		{
			"the app's window is shared, each gets the same part", []forecast.Queue{queueOf("a", singles(4)), queueOf("b", singles(2)), queueOf("c", singles(1))},
			[]publishers.Window{window("", "app_24h", 100, 5, 60, 86400)}, nil,
			"7 posts, 2 windows, 60\na: 4/4, 1, 60, app_24h 5/100, until 60\nb: 2/2, 1, 0\nc: 1/1, 1, 0",
		},
		{
			"what does not fit into the app's window lets others by", []forecast.Queue{queueOf("a", thread(3, 0)), queueOf("b", singles(1), singles(1))},
			[]publishers.Window{window("", "app_24h", 5, 2, 60, 86400)}, nil,
			"5 posts, 2 windows, 60\na: 1/3, 1, 60, app_24h 2/5, until 60\nb: 2/2, 1, 0",
		},
	}
}

// holdCases are of what goes on at a time, or when it is looked at.
func holdCases() []forecastCase {
	return []forecastCase{
		{
			"a time that lies ahead", []forecast.Queue{queueOf("a", singles(1), due(singles(1), 30))},
			nil, nil, "2 posts, 1 windows, 30\na: 2/2, 1, 30",
		},
		{
			"what waits holds up what is due behind it", []forecast.Queue{queueOf("a", held(singles(1), jetpost.CodeXUnavailable, in(40)), due(singles(1), 30))},
			nil, nil, "2 posts, 1 windows, 40\na: 2/2, 1, 40, x_unavailable until 40",
		},
		{
			"a hold for a window names it", []forecast.Queue{queueOf("a", held(singles(1), jetpost.CodeRateLimited, in(60)))},
			[]publishers.Window{window("a", "15min", 10, 0, 60, 900)}, nil,
			"1 posts, 1 windows, 60\na: 1/1, 1, 60, 15min 0/10, until 60, rate_limited until 60",
		},
		{
			"an app pause that is over holds nobody", []forecast.Queue{queueOf("a", held(singles(1), jetpost.CodeAppPaused, in(40)))},
			nil, []publishers.Pause{appPause(jetpost.CodeUsageCapped, in(-1))}, "1 posts, 1 windows, 0\na: 1/1, 1, 0",
		},
		{
			"an app pause holds all until its end", []forecast.Queue{queueOf("a", singles(1)), queueOf("b", due(singles(1), 600))},
			nil, []publishers.Pause{appPause(jetpost.CodeAppRateLimited, in(300))}, "2 posts, 1 windows, 600\nb: 1/1, 1, 600\na: 1/1, 1, 300",
		},
		{
			"a probed one until its next probe", []forecast.Queue{queueOf("a", singles(1))},
			nil, []publishers.Pause{probed(jetpost.CodeXOutage, in(300))}, "1 posts, 1 windows, 300, at the earliest\na: 1/1, 1, 300",
		},
		{
			"a pause of refreshes holds no posts", []forecast.Queue{queueOf("a", singles(1))},
			nil, []publishers.Pause{{Target: publishers.TargetRefresh, Reason: jetpost.Reason{Code: jetpost.CodeAppMisconfigured}}},
			"1 posts, 1 windows, 0\na: 1/1, 1, 0",
		},
		{
			"an account that is held until a time", []forecast.Queue{reason(queueOf("a", singles(3)), jetpost.CodeXUnavailable, in(9))},
			nil, nil, "3 posts, 1 windows, 9\na: 3/3, 1, 9",
		},
	}
}

// blockCases are of what only a person can end.
func blockCases() []forecastCase {
	return []forecastCase{
		{
			"one that a person must end", []forecast.Queue{queueOf("a", singles(1))},
			nil, []publishers.Pause{appPause(jetpost.CodeUsageCapped, never)},
			"0 posts, 0 windows, never, 1 blocked of 1\na: 1/1, 0, never, usage_capped \"\" blocks 1",
		},
		{
			"an account that must be connected again", []forecast.Queue{reason(queueOf("a", singles(3)), jetpost.CodeAccountReauthRequired, never), queueOf("b", singles(1))},
			nil, nil, "1 posts, 1 windows, 0, 3 blocked of 1\na: 3/3, 0, never, account_reauth_required \"\" blocks 3\nb: 1/1, 1, 0",
		},
		{
			"what is before a block goes out", []forecast.Queue{queueOf("a", singles(2), held(thread(3, 0), jetpost.CodePoison, never), singles(1))},
			nil, nil, "2 posts, 1 windows, 0, 4 blocked of 1\na: 4/6, 1, never, poison \"held\" blocks 4",
		},
		{
			"a hold that is only looked at needs a person too", []forecast.Queue{queueOf("a", held(singles(1), jetpost.CodeKeyUnavailable, in(900)))},
			nil, nil, "0 posts, 0 windows, never, 1 blocked of 1\na: 1/1, 0, never, key_unavailable \"held\" blocks 1",
		},
		{
			"an outcome that nobody knows", []forecast.Queue{queueOf("a", forecast.Queued{
				ID: "u", Count: 1, Posts: 2, Live: 1, Begun: true, Due: noon, State: jetpost.StateUnknown, Code: jetpost.CodeOutcomeUnknown,
			}, singles(1))},
			nil, nil, "0 posts, 0 windows, never, 2 blocked of 1\na: 2/2, 0, never, outcome_unknown \"u\" blocks 2",
		},
	}
}

// expiryCases are of requests with an end.
func expiryCases() []forecastCase {
	return []forecastCase{
		{
			"what expires before its turn takes no call", []forecast.Queue{queueOf("a", singles(1), expires(thread(2, 0), 60), expires(singles(1), 61))},
			[]publishers.Window{window("a", "15min", 2, 1, 60, 900)}, nil,
			"2 posts, 2 windows, 60, 1 expired\na: 3/2, 2, 60, 15min 1/2, until 60",
		},
		{
			"what has begun does not expire", []forecast.Queue{queueOf("a", expires(thread(3, 1), 30))},
			[]publishers.Window{window("a", "15min", 2, 0, 60, 900)}, nil,
			"2 posts, 1 windows, 60\na: 1/2, 1, 60, 15min 0/2, until 60",
		},
	}
}

func TestForecast(t *testing.T) {
	t.Parallel()
	for _, test := range slices.Concat(windowCases(), shareCases(), holdCases(), blockCases(), expiryCases()) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := told(control.NewForecast(noon, test.queues, test.windows, test.pauses)); got != test.want {
				t.Errorf("forecast:\n%s\nwant:\n%s", got, test.want)
			}
		})
	}
}

// A hold without a known end blocks its queue by its code, whenever it is looked at again.
func TestForecastBlocksByCode(t *testing.T) {
	t.Parallel()
	for _, code := range jetpost.Codes() {
		if kind := code.Kind(); kind != jetpost.KindHeld && kind != jetpost.KindHeldByX && kind != jetpost.KindHeldForPerson {
			continue // no request is held for it
		}
		blocks := code.Kind() == jetpost.KindHeldForPerson || code == jetpost.CodeNeedsNewerWorker
		f := control.NewForecast(noon, []forecast.Queue{queueOf("a", held(singles(1), code, in(900)))}, nil, nil)
		if (f.BlockedAccounts == 1) != blocks {
			t.Errorf("%s: %s", code, told(f))
		}
	}
}

// The forecast says what comes of looking each second who may go on.
func TestForecastIsWhatHappens(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		queues, windows, pauses := drawQueues(t)
		f := control.NewForecast(noon, queues, windows, pauses)
		want := simulate(queues, windows, pauses)
		for _, a := range f.Accounts {
			got := outcome{posts: a.Posts, windows: a.Windows, done: a.DoneAt, expired: a.Expired}
			if a.Blocked != nil {
				got.posts -= a.Blocked.Posts
				got.blocked = true
			}
			if got != *want[a.Account] {
				t.Errorf("%s: forecast %+v, what happens %+v", a.Account, got, *want[a.Account])
			}
		}
	})
}

func drawQueues(t *rapid.T) (queues []forecast.Queue, windows []publishers.Window, pauses []publishers.Pause) {
	draw := func(low, high int, what string) int { return rapid.IntRange(low, high).Draw(t, what) }
	maybe := func(what string) bool { return draw(0, 3, what) == 0 }
	shared := draw(0, 1, "app window") == 0
	account := func(name string) {
		l := forecast.Queue{Account: name}
		for range draw(1, 5, "requests") {
			q := forecast.Queued{Count: 1, Posts: draw(1, 6, "posts"), Due: in(-draw(0, 5, "due before")), State: jetpost.StateQueued}
			if q.Posts == 1 {
				q.Count = draw(1, 7, "count")
			}
			if len(l.Queue) == 0 && q.Posts > 1 && maybe("begun") {
				q.Live, q.Begun = draw(1, q.Posts-1, "live"), true
			}
			// Of a queue that waits for the app's window it is noticed with its turn.
			if !shared && maybe("expires") {
				q.Expires = in(draw(0, 60, "expiry"))
			}
			switch {
			case maybe("scheduled"):
				q.Due = in(draw(0, 40, "due"))
			case maybe("held"):
				q = held(q, jetpost.CodeXUnavailable, in(draw(0, 30, "hold")))
			case draw(0, 30, "blocked") == 0:
				q = held(q, jetpost.CodePoison, time.Time{})
			}
			l.Queue = append(l.Queue, q)
		}
		queues = append(queues, l)
	}
	draws := func(account, kind string, most int) {
		limit := draw(1, most, "limit")
		windows = append(windows, window(account, kind, limit, draw(0, limit, "left"), draw(-3, 20, "reset"), draw(1, 15, "length")))
	}
	for _, name := range []string{"a", "b", "c", "d"}[:draw(1, 4, "accounts")] {
		account(name)
		draws(name, "15min", 8)
		if maybe("user window") {
			draws(name, "user_24h", 9)
		}
	}
	if shared {
		draws("", "app_24h", 12)
	}
	if maybe("pause") {
		pauses = []publishers.Pause{{
			Target: publishers.TargetPublish, Reason: jetpost.Reason{Code: jetpost.CodeUsageCapped, Until: in(draw(1, 30, "pause"))}, Since: noon,
		}}
	}
	return queues, windows, pauses
}

// outcome is what becomes of a queue.
type outcome struct {
	posts, windows int
	done           time.Time
	expired        int
	blocked        bool
}

// naive is an account as it is simulated.
type naive struct {
	outcome
	requests []forecast.Queued
	turn     int
	windows  []*naiveWindow
	until    time.Time // it is held for a window
}

type naiveWindow struct {
	publishers.Window
	used bool
}

// simulate looks each second who may go on, and lets the one that waits for longest
// send one post more.
func simulate(queues []forecast.Queue, told []publishers.Window, pauses []publishers.Pause) map[string]*outcome {
	accounts := map[string]*naive{}
	var order []*naive
	var shared []*naiveWindow
	for _, w := range told {
		if w.Account == "" {
			shared = append(shared, &naiveWindow{Window: w})
		}
	}
	for _, l := range queues {
		n := &naive{windows: slices.Clone(shared), turn: len(order)}
		for _, q := range l.Queue {
			for range q.Count {
				q.Count = 1
				n.requests = append(n.requests, q)
			}
		}
		for _, w := range told {
			if w.Account == l.Account {
				n.windows = append(n.windows, &naiveWindow{Window: w})
			}
		}
		accounts[l.Account], order = n, append(order, n)
	}
	turn := len(order)
	for second := range 5000 {
		now := in(second)
		if len(pauses) > 0 && now.Before(pauses[0].Reason.Until) {
			continue
		}
		for {
			slices.SortFunc(order, func(a, b *naive) int { return a.turn - b.turn })
			i := slices.IndexFunc(order, func(n *naive) bool { return n.goOn(now) })
			if i < 0 {
				break
			}
			turn++
			order[i].turn = turn
		}
	}
	out := map[string]*outcome{}
	for name, n := range accounts {
		if len(n.requests) > 0 {
			n.blocked, n.done = true, time.Time{}
		}
		out[name] = &n.outcome
	}
	return out
}

// goOn lets an account begin its head or go on with it, if it may.
func (n *naive) goOn(now time.Time) bool {
	if len(n.requests) == 0 || now.Before(n.until) {
		return false
	}
	q := &n.requests[0]
	switch {
	case q.State == jetpost.StateHeld && (q.Until.IsZero() || now.Before(q.Until)):
		return false
	case !q.Begun && now.Before(q.Due):
		return false
	case q.Live == 0 && !q.Expires.IsZero() && !now.Before(q.Expires):
		n.expired++
		n.requests = n.requests[1:]
		return n.goOn(now)
	}
	need := 1
	if q.Live == 0 {
		need = q.Posts
	}
	for _, w := range n.windows {
		if now.Before(w.Reset) && w.Remaining < min(need, w.Limit) && w.Reset.After(n.until) {
			n.until = w.Reset
		}
	}
	if now.Before(n.until) {
		return false
	}
	for left := true; left && q.Live < q.Posts; {
		for _, w := range n.windows {
			if !now.Before(w.Reset) {
				w.Reset, w.Remaining, w.used = now.Add(w.Length), w.Limit, false
			}
			if w.Remaining--; w.Remaining == 0 {
				left = false
			}
			if w.Kind == "15min" && !w.used {
				n.outcome.windows++
			}
			w.used = true
		}
		q.Live++
		n.posts++
	}
	n.done = now
	if q.Live == q.Posts {
		n.requests = n.requests[1:]
	}
	return true
}

// BenchmarkForecast is of 100,000 requests of 10,000 accounts, with a window that all
// of them share and one that nobody does.
func BenchmarkForecast(b *testing.B) {
	const accounts, requests = 10_000, 100_000
	queues := make([]forecast.Queue, accounts)
	windows := []publishers.Window{window("", "app_24h", 10_000, 500, 600, 86400)}
	for i := range queues {
		queues[i].Account = fmt.Sprintf("account-%d", i)
		windows = append(windows, window(queues[i].Account, "15min", 100, i%100, 600, 900))
		for n := range requests / accounts {
			queues[i].Queue = append(queues[i].Queue, thread(1+(i+n)%25, 0))
		}
	}
	for _, c := range []struct {
		name    string
		windows []publishers.Window
	}{{"shared", windows}, {"apart", windows[1:]}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if f := control.NewForecast(noon, queues, c.windows, nil); f.Posts == 0 {
					b.Fatal("nothing goes out")
				}
			}
		})
	}
}
