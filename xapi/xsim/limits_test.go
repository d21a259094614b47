package xsim_test

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/jetpost/jetpost/xapi/xsim"
)

func (b *testBundle) limits(limits ...xsim.Limit) {
	b.Helper()
	if err := b.x.SetLimits(limits); err != nil {
		b.Fatal(err)
	}
}

func wantWindow(t *testing.T, h http.Header, prefix string, limit, remaining int, reset time.Time) {
	t.Helper()
	got := fmt.Sprint(h.Get(prefix+"-limit"), h.Get(prefix+"-remaining"), h.Get(prefix+"-reset"))
	want := fmt.Sprint(strconv.Itoa(limit), strconv.Itoa(remaining), strconv.FormatInt(reset.Unix(), 10))
	if got != want {
		t.Errorf("%s: limit, remaining, reset are %s, want %s", prefix, got, want)
	}
}

// Windows begin at the first call and end on a whole second.
func TestRateHeaders(t *testing.T) {
	t.Parallel()
	b := setup(t)
	start := b.clock.now()
	b.clock.pass(time.Minute)
	first := start.Add(time.Minute + 700*time.Millisecond)
	r := b.create(b.grant, `{"text":"a"}`)
	wantWindow(t, r.header, "x-rate-limit", 100, 99, first.Add(15*time.Minute))
	wantWindow(t, r.header, "x-app-limit-24hour", 10_000, 9_999, first.Add(24*time.Hour))
	if r.header.Get("x-user-limit-24hour-limit") != "" {
		t.Error("a window that the defaults do not have")
	}
	b.clock.pass(time.Minute)
	b.want(b.create(b.grant, `{"text":"a"}`), 403, "") // a refused call counts
	bob := b.account(xsim.NewAccount{Handle: "bob"})
	r = b.create(bob, `{"text":"b"}`)
	wantWindow(t, r.header, "x-rate-limit", 100, 99, first.Add(16*time.Minute))
	wantWindow(t, r.header, "x-app-limit-24hour", 10_000, 9_997, first.Add(24*time.Hour))
	b.clock.pass(14 * time.Minute)
	r = b.create(b.grant, `{"text":"c"}`)
	wantWindow(t, r.header, "x-rate-limit", 100, 97, first.Add(15*time.Minute))
	b.clock.pass(700 * time.Millisecond) // exactly the reset
	r = b.create(b.grant, `{"text":"d"}`)
	wantWindow(t, r.header, "x-rate-limit", 100, 99, first.Add(30*time.Minute))
	wantWindow(t, b.do(b.grant, "GET", "/2/users/me", "", "").header, "x-rate-limit", 75, 74, first.Add(30*time.Minute))
}

func TestClosedWindow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.limits(xsim.Limit{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 2, WindowMS: 2_000})
	end := b.clock.now().Truncate(time.Second).Add(3 * time.Second)
	b.post(b.grant, "1", "")
	wantWindow(t, b.create(b.grant, `{"text":"2"}`).header, "x-rate-limit", 2, 0, end)
	b.wantViolations()
	r := b.create(b.grant, `{"text":"3"}`)
	b.want(r, 429, tooMany)
	wantWindow(t, r.header, "x-rate-limit", 2, 0, end)
	b.wantViolations("call_in_closed_window")

	b.clock.pass(end.Sub(b.clock.now()))
	b.post(b.grant, "3", "")
	b.wantViolations("call_in_closed_window")
}

// One account learns of an app window, which is exhausted for all.
func TestClosedAppWindow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bob := b.account(xsim.NewAccount{Handle: "bob"})
	b.limits(xsim.Limit{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeApp24h, Max: 1, WindowMS: 60_000})
	b.post(b.grant, "1", "")
	b.want(b.create(bob, `{"text":"2"}`), 429, tooMany) // crossed the closing answer on the wire
	b.wantViolations()
	b.clock.pass(time.Second)
	b.want(b.create(bob, `{"text":"2"}`), 429, tooMany)
	b.wantViolations("call_in_closed_window")
}

func TestClosedUserDayWindow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.x.ClosedWindowGrace = time.Second
	b.limits(xsim.Limit{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser24h, Max: 1, WindowMS: 60_000})
	r := b.create(b.grant, `{"text":"1"}`)
	wantWindow(t, r.header, "x-user-limit-24hour", 1, 0, b.clock.now().Add(time.Minute+700*time.Millisecond))
	b.want(b.create(b.grant, `{"text":"2"}`), 429, tooMany)
	b.wantViolations() // within the grace
	b.clock.pass(time.Second)
	r = b.create(b.grant, `{"text":"2"}`)
	b.want(r, 429, tooMany)
	if got := r.header.Get("x-rate-limit-remaining"); got != "99" {
		t.Errorf("the quarter's window says %s, want it to look healthy", got)
	}
	b.wantViolations("call_in_closed_window")
}

// Who never got the answer that closed the window could not know.
func TestClosedWindowUntold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.limits(xsim.Limit{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: 1, WindowMS: 60_000})
	b.faults(xsim.Fault{Kind: xsim.FaultCut, After: true, Times: 1})
	if _, err := b.try(b.grant, "POST", "/2/tweets", "application/json", `{"text":"1"}`); err == nil {
		t.Fatal("answered")
	}
	b.want(b.create(b.grant, `{"text":"2"}`), 429, tooMany)
	b.wantViolations()
	b.want(b.create(b.grant, `{"text":"2"}`), 429, tooMany)
	b.wantViolations("call_in_closed_window")
}

func TestSetLimits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.limits(xsim.Limit{Endpoint: xsim.EndpointCreatePost, Scope: xsim.ScopeUser, Max: -1})
	if r := b.create(b.grant, `{"text":"a"}`); r.header.Get("x-rate-limit-limit") != "" || r.header.Get("x-app-limit-24hour-limit") == "" {
		t.Errorf("headers of a window that was taken away, or not of the one left: %v", r.header)
	}
	before := b.x.LimitsInForce()
	err := b.x.SetLimits([]xsim.Limit{
		{Endpoint: "POST /2/x", Scope: xsim.ScopeUser, Max: 1, WindowMS: 1},
		{Endpoint: xsim.EndpointMe, Scope: "week", Max: 1, WindowMS: 1},
		{Endpoint: xsim.EndpointMe, Scope: xsim.ScopeUser, Max: 1},
	})
	if err == nil || fmt.Sprint(before) != fmt.Sprint(b.x.LimitsInForce()) {
		t.Errorf("bad limits were taken: %v", err)
	}
	b.limits()
	if got, want := fmt.Sprint(b.x.LimitsInForce()), fmt.Sprint(xsim.DefaultLimits()); got != want {
		t.Errorf("limits are %s, want the defaults %s", got, want)
	}
}

// The call log has the window that a call was counted in, even if latency separates its
// arrival from that, and the address that was called.
func TestCallCounted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.x.Now = func() time.Time {
		b.clock.pass(time.Millisecond)
		return b.clock.now()
	}
	b.faults(xsim.Fault{Kind: xsim.FaultLatency, DelayMS: 1})
	b.post(b.grant, "a", "")
	call, post := b.x.Calls()[0], b.x.Posts("")[0]
	if !call.Counted.Equal(post.CreatedAt) || !call.Counted.After(call.At) || call.Host != "api.x.com" {
		t.Errorf("the call log say %+v of the post %+v", call, post)
	}
}
