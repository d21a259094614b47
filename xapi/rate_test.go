package xapi

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// ahead is a reset that no test lives to see.
func ahead(t *testing.T) time.Time {
	t.Helper()
	return time.Now().Add(time.Hour)
}

func setWindow(h http.Header, prefix string, limit, remaining int, reset time.Time) {
	h.Set(prefix+"-limit", strconv.Itoa(limit))
	h.Set(prefix+"-remaining", strconv.Itoa(remaining))
	h.Set(prefix+"-reset", strconv.FormatInt(reset.Unix(), 10))
}

// testNow has half a second, so that rounding shows.
func testNow() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 5e8, time.UTC) }

func testAnswer(status int, header http.Header) answer {
	if header == nil {
		header = http.Header{}
	}
	ans := answer{status: status, header: header, at: testNow()}
	ans.skew, _ = dateSkew(ans)
	return ans
}

// TestRateLimit: the window that governs is the closed one that opens last, else the
// one with the fewest calls left; what has ended governs nothing.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	now := time.Now()
	window := func(kind WindowKind, remaining int, in time.Duration) Window {
		return Window{Endpoint: EndpointCreatePost, Kind: kind, Limit: 10, Remaining: remaining, Reset: now.Add(in), XReset: now.Add(in).Unix()}
	}
	for name, tc := range map[string]struct {
		windows []Window
		governs WindowKind // "" for none
		limited bool
	}{
		"nothing known":      {},
		"ended":              {windows: []Window{window(Window15Min, 0, -time.Second)}},
		"fewest left":        {windows: []Window{window(Window15Min, 5, time.Hour), window(WindowUser24h, 3, 2*time.Hour), window(WindowApp24h, 9, time.Hour)}, governs: WindowUser24h},
		"closed before few":  {windows: []Window{window(Window15Min, 1, time.Hour), window(WindowApp24h, 0, time.Minute)}, governs: WindowApp24h, limited: true},
		"closed, opens last": {windows: []Window{window(Window15Min, 0, time.Minute), window(WindowUser24h, 0, time.Hour), window(WindowApp24h, 4, 2*time.Hour)}, governs: WindowUser24h, limited: true},
	} {
		limits := NewLimits(nil)
		for _, w := range tc.windows {
			limits.Learn(w)
		}
		client := New("t", WithLimits(limits, ""))
		got, known := client.RateLimit(EndpointCreatePost)
		if known != (tc.governs != "") || got.Kind != tc.governs || client.RateLimited(EndpointCreatePost) != tc.limited {
			t.Errorf("%s: got %+v, %t, limited %t", name, got, known, client.RateLimited(EndpointCreatePost))
		}
		if _, known := client.RateLimit(EndpointMe); known {
			t.Errorf("%s: another endpoint's window is known", name)
		}
	}
}

// TestAnswersCarryWindows: every result and every error has the windows of the answer
// that it came with.
func TestAnswersCarryWindows(t *testing.T) {
	t.Parallel()
	left, status := 10, http.StatusOK
	b := setup(t, func(w http.ResponseWriter, r *http.Request) {
		left--
		setWindow(w.Header(), "x-rate-limit", 10, left, ahead(t))
		reply(status, `{"data":{"id":"1","text":"t"},"title":"Forbidden","detail":"no"}`)(w, r)
	})
	want := func(what string, got []Window, remaining int) {
		t.Helper()
		if len(got) != 1 || got[0].Remaining != remaining || got[0].Limit != 10 || got[0].Kind != Window15Min {
			t.Errorf("%s: got %+v, want one with %d left", what, got, remaining)
		}
	}
	done, err := b.client.PostThread(t.Context(), []Post{{Text: "a"}, {Text: "b"}}, ThreadOptions{})
	if err != nil || len(done) != 2 {
		t.Fatalf("got %+v, %v", done, err)
	}
	want("first post", done[0].Windows, 9)
	want("second post", done[1].Windows, 8)
	for i, kind := range []string{"image/png", "image/gif"} {
		media, err := b.client.UploadMedia(t.Context(), strings.NewReader("x"), 1, kind)
		if err != nil {
			t.Fatal(err)
		}
		want(kind, media.Windows, []int{7, 4}[i])
	}
	media, err := b.client.MediaStatus(t.Context(), "1")
	if err != nil {
		t.Fatal(err)
	}
	want("status", media.Windows, 3)
	for i, s := range []int{http.StatusForbidden, http.StatusInternalServerError, http.StatusTooManyRequests} {
		status = s
		_, err := b.client.CreatePost(t.Context(), Post{Text: "a"})
		apiErr := wantAs[*APIError](t, err)
		want(http.StatusText(s), apiErr.Windows, 2-i)
		if apiErr.Status != s || len(apiErr.Body) == 0 {
			t.Errorf("got %+v", apiErr)
		}
	}
}

func TestReadWindows(t *testing.T) {
	t.Parallel()

	now := testNow()
	reset := now.Truncate(time.Second).Add(10 * time.Minute)
	t.Run("all families", func(t *testing.T) {
		t.Parallel()
		h := http.Header{}
		setWindow(h, "x-rate-limit", 100, 99, reset)
		setWindow(h, "x-user-limit-24hour", 50, 49, reset)
		setWindow(h, "x-app-limit-24hour", 10, 9, reset)
		var got []Window
		got = append(got, readWindows(EndpointCreatePost, testAnswer(200, h))...)
		want := []Window{
			{Endpoint: EndpointCreatePost, Kind: Window15Min, Limit: 100, Remaining: 99, Reset: reset, XReset: reset.Unix(), Length: 10 * time.Minute},
			{Endpoint: EndpointCreatePost, Kind: WindowUser24h, Limit: 50, Remaining: 49, Reset: reset, XReset: reset.Unix(), Length: 10 * time.Minute},
			{Endpoint: EndpointCreatePost, Kind: WindowApp24h, Limit: 10, Remaining: 9, Reset: reset, XReset: reset.Unix(), Length: 10 * time.Minute},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		for i, scope := range []Scope{ScopeAccount, ScopeAccount, ScopeApp} {
			if want[i].Scope() != scope {
				t.Errorf("%s: scope %s", want[i].Kind, want[i].Scope())
			}
		}
	})
	t.Run("clock ahead of X", func(t *testing.T) {
		t.Parallel()
		h := http.Header{}
		setWindow(h, "x-rate-limit", 100, 99, reset)
		h.Set("Date", now.Add(-time.Hour).Format(http.TimeFormat))
		got := readWindows(EndpointMe, testAnswer(200, h))
		if want := reset.Add(time.Hour + time.Second/2); len(got) != 1 || !got[0].Reset.Equal(want) {
			t.Errorf("got %+v, want a reset at %v", got, want)
		}
	})
	t.Run("unusable", func(t *testing.T) {
		t.Parallel()
		for name, h := range map[string]http.Header{
			"far":         {"X-Rate-Limit-Remaining": {"1"}, "X-Rate-Limit-Reset": {strconv.FormatInt(now.Add(100*time.Hour).Unix(), 10)}},
			"huge":        {"X-Rate-Limit-Remaining": {"1"}, "X-Rate-Limit-Reset": {"99999999999999999"}},
			"negative":    {"X-Rate-Limit-Remaining": {"-1"}, "X-Rate-Limit-Reset": {"1"}},
			"no reset":    {"X-Rate-Limit-Remaining": {"1"}},
			"not numbers": {"X-Rate-Limit-Remaining": {"many"}, "X-Rate-Limit-Reset": {"later"}},
		} {
			if got := readWindows(EndpointMe, testAnswer(200, h)); len(got) != 0 {
				t.Errorf("%s: got %+v", name, got)
			}
		}
	})
}

func TestMergeKeepsNewerState(t *testing.T) {
	t.Parallel()

	now := testNow()
	at := func(remaining int, reset time.Duration) Window {
		r := now.Truncate(time.Second).Add(reset)
		return Window{Endpoint: EndpointMe, Kind: Window15Min, Limit: 100, Remaining: remaining, Reset: r, XReset: r.Unix()}
	}
	const soon, later = time.Minute, 16 * time.Minute
	for name, tc := range map[string]struct {
		old, new, want Window
	}{
		"expired gives way":        {at(0, -soon), at(9, soon), at(9, soon)},
		"later reset wins":         {at(1, soon), at(99, later), at(99, later)},
		"older answer is ignored":  {at(99, later), at(1, -soon), at(99, later)},
		"shorter window":           {at(99, later), at(1, soon), at(1, soon)},
		"closed window stays":      {at(0, later), at(1, soon), at(0, later)},
		"same window counts down":  {at(5, soon), at(4, soon), at(4, soon)},
		"same window, older count": {at(4, soon), at(5, soon), at(4, soon)},
	} {
		l := NewLimits(nil)
		l.merge(tc.old, now)
		l.merge(tc.new, now)
		if diff := cmp.Diff([]Window{tc.want}, l.All()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestMergeIsOneWindowDespiteJitter(t *testing.T) {
	t.Parallel()

	now := testNow()
	first := Window{Endpoint: EndpointMe, Kind: Window15Min, Limit: 100, Remaining: 5, Reset: now.Add(time.Minute), XReset: 7}
	second := Window{Endpoint: EndpointMe, Kind: Window15Min, Limit: 100, Remaining: 4, Reset: now.Add(time.Minute + time.Second), XReset: 7}
	l := NewLimits(nil)
	l.merge(first, now)
	l.merge(second, now)
	if got := l.All(); len(got) != 1 || got[0].Remaining != 4 || !got[0].Reset.Equal(first.Reset) {
		t.Errorf("got %+v", got)
	}
}

func TestCloseWindow(t *testing.T) {
	t.Parallel()

	now := testNow()
	second := now.Truncate(time.Second)
	in := second.Add
	for name, tc := range map[string]struct {
		header func(http.Header)
		kind   WindowKind
		until  time.Time
	}{
		"exhausted app window": {func(h http.Header) {
			setWindow(h, "x-rate-limit", 100, 50, in(time.Minute))
			setWindow(h, "x-app-limit-24hour", 100, 0, in(time.Hour))
		}, WindowApp24h, in(time.Hour)},
		"exhausted beats a shorter retry": {func(h http.Header) {
			setWindow(h, "x-rate-limit", 100, 0, in(time.Minute))
			h.Set("Retry-After", "5")
		}, Window15Min, in(time.Minute)},
		"healthy headers": {func(h http.Header) {
			setWindow(h, "x-rate-limit", 100, 50, in(time.Minute))
			setWindow(h, "x-user-limit-24hour", 100, 10, in(time.Hour))
		}, Window15Min, in(time.Minute)},
		"healthy headers and retry": {func(h http.Header) {
			setWindow(h, "x-rate-limit", 100, 50, in(time.Minute))
			h.Set("Retry-After", "5")
		}, Window15Min, in(5*time.Second + time.Second/2)},
		"no headers": {func(http.Header) {}, Window15Min, in(fallbackClosed + time.Second/2)},
		"passed reset": {func(h http.Header) {
			setWindow(h, "x-rate-limit", 100, 0, in(-time.Minute))
		}, Window15Min, in(fallbackClosed + time.Second/2)},
		"retry date": {func(h http.Header) {
			h.Set("Retry-After", in(time.Minute).Format(http.TimeFormat))
		}, Window15Min, in(time.Minute)},
		"retry too far": {func(h http.Header) { h.Set("Retry-After", "999999999") }, Window15Min, in(fallbackClosed + time.Second/2)},
		"two exhausted": {func(h http.Header) {
			setWindow(h, "x-rate-limit", 100, 0, in(time.Minute))
			setWindow(h, "x-user-limit-24hour", 100, 0, in(time.Hour))
		}, WindowUser24h, in(time.Hour)},
	} {
		h := http.Header{}
		tc.header(h)
		ans := testAnswer(429, h)
		got := closeWindow(EndpointMe, ans, readWindows(EndpointMe, ans))
		if got.Kind != tc.kind || !got.Reset.Equal(tc.until) || !got.Exhausted(now) {
			t.Errorf("%s: got %+v, want %s until %v", name, got, tc.kind, tc.until)
		}
	}
}

// TestRateLimitError follows a 429 with healthy headers to the end: it closes the
// window, an older answer does not open it, and other endpoints stay open.
func TestRateLimitError(t *testing.T) {
	t.Parallel()

	reset := ahead(t)
	status := http.StatusTooManyRequests
	b := setup(t, func(w http.ResponseWriter, r *http.Request) {
		setWindow(w.Header(), "x-rate-limit", 100, 60, reset)
		reply(status, `{"data":{"id":"1"}}`)(w, r)
	})
	_, err := b.client.CreatePost(t.Context(), Post{})
	limited := wantAs[*RateLimitError](t, err)
	if limited.AppWide() || limited.Kind != Window15Min || limited.Until.Before(reset.Truncate(time.Second)) {
		t.Errorf("got %+v", limited)
	}
	w, closed := b.client.RateShort(EndpointCreatePost, 1)
	if !closed || !w.Reset.Equal(limited.Until) {
		t.Errorf("got %v, %v", w, closed)
	}
	status = http.StatusOK
	if _, err := b.client.CreatePost(t.Context(), Post{}); err != nil {
		t.Fatal(err)
	}
	if _, closed := b.client.RateShort(EndpointCreatePost, 1); !closed {
		t.Error("an answer of the same window opened it")
	}
	if _, closed := b.client.RateShort(EndpointMe, 1); closed {
		t.Error("another endpoint is closed too")
	}
	if got := b.client.RateLimits(); len(got) != 1 || got[0].Limit != 100 {
		t.Errorf("got %+v", got)
	}
}

func TestUsageCapLeavesWindowsOpen(t *testing.T) {
	t.Parallel()

	b := setup(t, func(w http.ResponseWriter, r *http.Request) {
		setWindow(w.Header(), "x-rate-limit", 100, 60, ahead(t))
		reply(http.StatusTooManyRequests, `{"title":"UsageCapExceeded"}`)(w, r)
	})
	_, err := b.client.CreatePost(t.Context(), Post{})
	wantAs[*AppError](t, err)
	if _, closed := b.client.RateShort(EndpointCreatePost, 1); closed {
		t.Error("window closed")
	}
}

func TestWindowsConcurrently(t *testing.T) {
	t.Parallel()

	l := NewLimits(nil)
	now := testNow()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			l.note("a", EndpointMe, []Window{{Endpoint: EndpointMe, Kind: Window15Min, Limit: 50, Remaining: 50 - i, Reset: now.Add(time.Minute), XReset: 1}}, http.StatusOK, now)
			_ = fmt.Sprint(l.All())
		})
	}
	wg.Wait()
	if got := l.All(); len(got) != 1 || got[0].Remaining != 1 {
		t.Errorf("got %+v", got)
	}
}

// X's clock is known to a second by one answer, and better by many; what another
// clock claims counts no longer once this one was set.
func TestClock(t *testing.T) {
	t.Parallel()
	l := NewLimits(nil)
	const ms = time.Millisecond
	second := testNow().Truncate(time.Second)
	for i, tc := range []struct{ after, claims, want time.Duration }{
		{0, 900 * ms, 900 * ms},
		{time.Second, 300 * ms, 300 * ms},
		{time.Second, 700 * ms, 300 * ms},
		{clockMemory, 800 * ms, 300 * ms},
		{time.Second, 400 * ms, 300 * ms},
		{clockMemory + time.Second, 700 * ms, 400 * ms},
		{2*clockMemory + time.Second, 500 * ms, 500 * ms},
		{-time.Hour, 600 * ms, 600 * ms}, // our clock was set back
		{time.Second, -time.Hour + 400*ms, -time.Hour + 400*ms},
	} {
		second = second.Add(tc.after)
		h := http.Header{}
		h.Set("Date", second.Format(http.TimeFormat))
		if got := l.skew(answer{header: h, at: second.Add(tc.claims)}); got != tc.want {
			t.Errorf("answer %d: got %s, want %s", i, got, tc.want)
		}
		second = second.Add(min(tc.claims, 0).Truncate(time.Second))
	}
	undated := testAnswer(200, nil)
	if got := l.skew(undated); got != 0 {
		t.Errorf("an answer without a date: %s", got)
	}
}

func TestRateShort(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := NewLimits(nil)
	a, b := New("t", WithLimits(l, "a")), New("t", WithLimits(l, "b"))
	l.Learn(Window{Account: "a", Endpoint: EndpointMe, Kind: Window15Min, Limit: 10, Remaining: 4, Reset: now.Add(time.Minute), XReset: 1})
	l.Learn(Window{Endpoint: EndpointMe, Kind: WindowApp24h, Limit: 3, Remaining: 2, Reset: now.Add(time.Hour), XReset: 1})
	for name, tc := range map[string]struct {
		client *Client
		need   int
		kind   WindowKind // "": no window is short
	}{
		"enough in each":                   {a, 2, ""},
		"short of the app's":               {a, 3, WindowApp24h},
		"of two the one that lasts longer": {a, 5, WindowApp24h},
		"another account's is not its own": {b, 2, ""},
		"the app's is everybody's":         {b, 3, WindowApp24h},
	} {
		short, is := tc.client.RateShort(EndpointMe, tc.need)
		if is != (tc.kind != "") || short.Kind != tc.kind {
			t.Errorf("%s: got %+v, %t", name, short, is)
		}
	}
	// No window ever has more than its limit: a need beyond that waits for a full one.
	l.Learn(Window{Account: "b", Endpoint: EndpointMe, Kind: Window15Min, Limit: 10, Remaining: 10, Reset: now.Add(time.Minute), XReset: 1})
	l.Learn(Window{Endpoint: EndpointMe, Kind: WindowApp24h, Limit: 30, Remaining: 30, Reset: now.Add(2 * time.Hour), XReset: 2})
	if short, is := b.RateShort(EndpointMe, 25); is {
		t.Errorf("a full window is short: %+v", short)
	}
}

func TestWindowLength(t *testing.T) {
	t.Parallel()
	now := testNow()
	l := NewLimits(nil)
	at := func(remaining int, xReset int64, length time.Duration) Window {
		return Window{Account: "a", Endpoint: EndpointMe, Kind: Window15Min, Limit: 10, Remaining: remaining, Reset: now.Add(time.Minute), XReset: xReset, Length: length}
	}
	for _, w := range []Window{at(5, 1, 0), at(9, 2, time.Minute), at(8, 2, 0), at(9, 3, time.Minute+time.Second), at(4, 4, 0)} {
		l.note("a", EndpointMe, []Window{w}, http.StatusOK, now)
	}
	if got := l.Of("a"); len(got) != 1 || got[0].Length != time.Minute || got[0].Remaining != 4 {
		t.Errorf("got %+v, want the length of the window that was seen from its beginning", got)
	}
}

// TestEstimate: if X reports nothing, its documented limit is counted, and only then.
func TestEstimate(t *testing.T) {
	t.Parallel()
	now := time.Now()
	said := Window{Endpoint: EndpointCreatePost, Kind: Window15Min, Limit: 7, Remaining: 5, Reset: now.Add(time.Minute), XReset: now.Add(time.Minute).Unix()}
	l := NewLimits(nil)
	want := func(what string, estimated bool, limit, remaining int) {
		t.Helper()
		got := l.Of("a")
		if len(got) != 1 || got[0].Estimated != estimated || got[0].Limit != limit || got[0].Remaining != remaining {
			t.Errorf("%s: got %+v", what, got)
		}
	}
	for range 2 {
		l.note("a", EndpointCreatePost, nil, http.StatusCreated, now)
	}
	want("nothing said, twice", true, 100, 98)
	l.note("a", EndpointCreatePost, nil, http.StatusBadGateway, now)
	want("not by X", true, 100, 98)
	l.note("a", EndpointCreatePost, []Window{said}, http.StatusCreated, now)
	want("said", false, 7, 5)
	l.note("a", EndpointCreatePost, nil, http.StatusForbidden, now)
	want("nothing said once", false, 7, 5)
	said.Limit, said.Remaining = 20, 17
	l.note("a", EndpointCreatePost, []Window{said}, http.StatusCreated, now)
	want("more allowed in the same window", false, 20, 17)
	l.note("a", EndpointCreatePost, nil, http.StatusCreated, now.Add(2*time.Minute))
	want("nothing said of the next", true, 100, 99)
}
