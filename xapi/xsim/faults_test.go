package xsim_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost/xapi/xsim"
)

func TestFaultEffect(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		fault  xsim.Fault
		status int // 0: an error instead of an answer
		effect bool
	}{
		{xsim.Fault{Kind: xsim.FaultCut}, 0, false},
		{xsim.Fault{Kind: xsim.FaultCut, After: true}, 0, true},
		{xsim.Fault{Kind: xsim.FaultGarbage}, 201, true},
		{xsim.Fault{Kind: xsim.FaultNoID}, 201, true},
		{xsim.Fault{Kind: xsim.FaultOutage}, 503, false},
		{xsim.Fault{Kind: xsim.FaultRefuseText, Text: "fault", Detail: "No."}, 403, false},
		{xsim.Fault{Kind: xsim.FaultStatus, Status: 500}, 500, false},
		{xsim.Fault{Kind: xsim.FaultStatus, Status: 500, After: true}, 500, true},
		{xsim.Fault{Kind: xsim.FaultStatus, Status: 502, After: true}, 502, true},
	} {
		t.Run(fmt.Sprintf("%s_%d_after_%v", test.fault.Kind, test.fault.Status, test.fault.After), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.faults(test.fault)
			r, err := b.try(b.grant, "POST", "/2/tweets", "application/json", `{"text":"a fault"}`)
			if err == nil != (test.status != 0) || r.status != test.status {
				t.Errorf("got %d %v, want %d", r.status, err, test.status)
			}
			if err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a cut looks like %v", err)
			}
			if id := field2xx(r); id != "" {
				t.Errorf("the answer has the id %s", id)
			}
			if got := len(b.x.Posts("")) == 1; got != test.effect {
				t.Errorf("posted is %v, want %v", got, test.effect)
			}
			call := b.x.Calls()[0]
			if call.Effect != test.effect || call.Status != test.status || call.Fault != test.fault.Kind {
				t.Errorf("the call log say %+v", call)
			}
			b.wantViolations()
		})
	}
}

// field2xx finds an id in a body that may be garbage.
func field2xx(r result) string {
	if _, rest, ok := strings.Cut(r.body, `"id":"`); ok {
		return rest
	}
	return ""
}

func TestFaultBodies(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		status  int
		variant string
		want    string
	}{
		{402, "", `{"detail":"credits depleted","status":402,"title":"Payment Required","type":"https://api.x.com/2/problems/credits-depleted"}`},
		{402, "legacy", `"title":"CreditsDepleted"`},
		{403, "", `"detail":"You are not permitted to perform this action."`},
		{403, "cashtag", `one cashtag`},
		{403, "client-not-enrolled", `"reason":"client-not-enrolled"`},
		{403, "duplicate", `duplicate content`},
		{403, "parent-gone", `deleted or not visible`},
		{403, "quote-rule", `Quoting this post`},
		{403, "reply-rule", `Reply to this conversation`},
		{403, "spend-cap", `"title":"SpendCapReached"`},
		{404, "", ``},
		{413, "", ``},
		{429, "legacy", `{"errors":[{"code":88,"message":"Rate limit exceeded"}]}`},
		{429, "problem", `/rate-limit-exceeded"`},
		{429, "usage-capped", `"period":"Monthly","scope":"Product"`},
		{503, "", `{"title":"Service Unavailable","detail":"Service Unavailable","type":"https://api.x.com/2/problems/internal-error","status":503}`},
		{504, "", `<html>`},
	} {
		t.Run(fmt.Sprintf("%d_%s", test.status, test.variant), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.faults(xsim.Fault{Kind: xsim.FaultStatus, Status: test.status, Variant: test.variant})
			r := b.create(b.grant, `{"text":"a"}`)
			if r.status != test.status || !strings.Contains(r.body, test.want) || test.want == "" && r.body != "" {
				t.Errorf("%d %s, want %s", r.status, r.body, test.want)
			}
		})
	}
	t.Run("oauth", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.faults(xsim.Fault{Kind: xsim.FaultStatus, Status: 400, Times: 1, Account: "ann", Endpoint: xsim.EndpointToken},
			xsim.Fault{Kind: xsim.FaultStatus, Status: 401, Times: 1})
		b.want(b.refresh(b.grant.RefreshToken), 400, badToken)
		b.want(b.refresh(b.grant.RefreshToken), 401, `{"error":"unauthorized_client","error_description":"Missing valid authorization header"}`)
		b.want(b.refresh(b.grant.RefreshToken), 200, "") // neither touched the token
	})
}

// A 429 by fault closes the window for real, so that waiting for its reset is
// right and calling earlier is not.
func TestFault429ClosesWindow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.faults(xsim.Fault{Kind: xsim.FaultStatus, Status: 429, Times: 1})
	r := b.create(b.grant, `{"text":"a"}`)
	b.want(r, 429, tooMany)
	if got := r.header.Get("x-rate-limit-remaining"); got != "0" {
		t.Errorf("remaining is %s", got)
	}
	b.want(b.create(b.grant, `{"text":"a"}`), 429, tooMany)
	b.wantViolations("call_in_closed_window")
	b.clock.pass(15*time.Minute + time.Second)
	b.post(b.grant, "a", "")

	b.faults(xsim.Fault{Kind: xsim.FaultStatus, Status: 429, Times: 1, Bare: true})
	r = b.create(b.grant, `{"text":"b"}`)
	b.want(r, 429, tooMany)
	if got := r.header.Get("x-rate-limit-remaining"); got != "" {
		t.Errorf("a bare answer says remaining %s", got)
	}
	b.post(b.grant, "b", "")
	b.wantViolations("call_in_closed_window")
}

func TestFaultMatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bob := b.account(xsim.NewAccount{Handle: "bob"})
	b.faults(xsim.Fault{Kind: xsim.FaultStatus, Status: 500, Account: "BOB", Endpoint: xsim.EndpointMe, Skip: 1, Times: 2})
	statuses := func(g xsim.Grant) (got []int) {
		for range 4 {
			got = append(got, b.do(g, "GET", "/2/users/me", "", "").status)
		}
		return got
	}
	if got := fmt.Sprint(statuses(b.grant), statuses(bob)); got != "[200 200 200 200] [200 500 500 200]" {
		t.Error(got)
	}
	b.post(bob, "another endpoint", "")
	if f := b.x.Faults()[0]; f.Seen != 4 || f.Fired != 2 {
		t.Errorf("seen %d, fired %d", f.Seen, f.Fired)
	}
	b.faults(xsim.Fault{Kind: xsim.FaultCut, Text: "boom"})
	b.post(b.grant, "calm", "")
	if _, err := b.try(b.grant, "POST", "/2/tweets", "application/json", `{"text":"boom!"}`); err == nil {
		t.Error("the text did not match")
	}
}

func TestFaultProbabilityIsSeeded(t *testing.T) {
	t.Parallel()
	run := func(seed uint64) string {
		b := with(t, &xsim.Server{Seed: seed})
		b.grant = b.account(xsim.NewAccount{Handle: "ann"})
		b.faults(xsim.Fault{Kind: xsim.FaultStatus, Status: 500, Probability: 0.5})
		var got strings.Builder
		for range 40 {
			fmt.Fprint(&got, b.do(b.grant, "GET", "/2/users/me", "", "").status, " ")
		}
		return got.String()
	}
	one := run(1)
	if one != run(1) || one == run(2) || !strings.Contains(one, "200") || !strings.Contains(one, "500") {
		t.Errorf("seed 1 gives %s", one)
	}
}

func TestFaultLostAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t)
		b.faults(xsim.Fault{Kind: xsim.FaultLostAnswer, Times: 2})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "POST", "https://api.x.com/2/tweets", strings.NewReader(`{"text":"lost"}`))
		req.Header.Set("Authorization", "Bearer "+b.grant.AccessToken)
		req.Header.Set("Content-Type", "application/json")
		if _, err := send(&http.Client{Transport: b.x}, req); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the client's deadline", err)
		}
		b.x.Wait()
		began := time.Now()
		if _, err := b.try(b.grant, "POST", "/2/tweets", "application/json", `{"text":"patient"}`); !errors.Is(err, syscall.ECONNRESET) || time.Since(began) != time.Minute {
			t.Errorf("a patient client got %v after %v", err, time.Since(began))
		}
		if n := len(b.x.Posts("")); n != 2 {
			t.Errorf("%d posts, want 2", n)
		}
	})
}

func TestFaultLatency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t)
		b.faults(xsim.Fault{Kind: xsim.FaultLatency, DelayMS: 1_000}, xsim.Fault{Kind: xsim.FaultLatency, DelayMS: 500, After: true},
			xsim.Fault{Kind: xsim.FaultGarbage})
		began := time.Now()
		b.want(b.create(b.grant, `{"text":"slow"}`), 201, `{"data":{"`)
		if got := time.Since(began); got != 1500*time.Millisecond {
			t.Errorf("took %v", got)
		}
	})
}

func TestSetFaultsRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.faults(xsim.Fault{Kind: xsim.FaultOutage})
	for _, f := range []xsim.Fault{
		{},
		{Kind: "earthquake"},
		{Kind: xsim.FaultCut, Endpoint: "POST /2/x"},
		{Kind: xsim.FaultCut, Probability: 2},
		{Kind: xsim.FaultCut, Skip: -1},
		{Kind: xsim.FaultCut, Status: 500},
		{Kind: xsim.FaultLatency},
		{Kind: xsim.FaultLatency, DelayMS: 3_600_000},
		{Kind: xsim.FaultRefuseText, Text: "a"},
		{Kind: xsim.FaultStatus, Status: 200},
		{Kind: xsim.FaultStatus, Status: 403, Variant: "moon"},
	} {
		if err := b.x.SetFaults([]xsim.Fault{f}); err == nil {
			t.Errorf("%+v was taken", f)
		}
	}
	if got := b.x.Faults(); len(got) != 1 || got[0].Kind != xsim.FaultOutage {
		t.Errorf("faults changed to %+v", got)
	}
}

func TestIdempotencyKeyIsViolation(t *testing.T) {
	t.Parallel()
	b := setup(t)
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://api.x.com/2/tweets", strings.NewReader(`{"text":"a"}`))
	req.Header.Set("Authorization", "Bearer "+b.grant.AccessToken)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", "1")
	r, err := send(&http.Client{Transport: b.x}, req)
	if err != nil {
		t.Fatal(err)
	}
	b.want(r, 201, "")
	b.wantViolations("malformed_request")
}
