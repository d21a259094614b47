package xsim_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/jetpost/jetpost/xapi/xsim"
)

const formType = "application/x-www-form-urlencoded"

// present presents a refresh token to the host, whatever comes of it.
func (b *testBundle) present(host, refreshToken string) {
	b.Helper()
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refreshToken}}.Encode()
	req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, "https://"+host+"/2/oauth2/token", strings.NewReader(form))
	if err != nil {
		b.Error(err)
		return
	}
	req.Header.Set("Content-Type", formType)
	_, _ = send(&http.Client{Transport: b.x}, req) // a fault may leave it without an answer
}

// wantExchanges compares the call log of a user with what should be there, times aside.
func (b *testBundle) wantExchanges(user string, want ...xsim.Exchange) {
	b.Helper()
	if diff := cmp.Diff(want, b.x.Exchanges(user), cmpopts.IgnoreFields(xsim.Exchange{}, "At"), cmpopts.EquateEmpty()); diff != "" {
		b.Errorf("exchanges of %q (-want +got):\n%s", user, diff)
	}
}

func TestExchangesNameTokensByTheirPlace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := b.account(xsim.NewAccount{Handle: "bob"})
	current := func() string { token, _ := b.x.CurrentToken("ann"); return token.RefreshToken }

	b.present("one.test:1", b.grant.RefreshToken)
	second := current()
	b.present("two.test:2", second)
	again := b.account(xsim.NewAccount{Handle: "ann"})
	b.present("one.test:1", second)
	b.present("one.test:1", again.RefreshToken)
	b.present("one.test:1", other.RefreshToken)
	b.present("one.test:1", "never given out")

	ann := []xsim.Exchange{
		{Account: again.ID, Family: 1, Rotation: 0, Host: "one.test:1", Status: 200, Effect: true, Answered: true},
		{Account: again.ID, Family: 1, Rotation: 1, Host: "two.test:2", Status: 200, Effect: true, Answered: true},
		{Account: again.ID, Family: 1, Rotation: 1, Host: "one.test:1", Status: 400, Refused: true, Answered: true},
		{Account: again.ID, Family: 2, Rotation: 0, Host: "one.test:1", Status: 200, Effect: true, Answered: true},
	}
	bob := xsim.Exchange{Account: other.ID, Family: 1, Rotation: 0, Host: "one.test:1", Status: 200, Effect: true, Answered: true}
	b.wantExchanges("ann", ann...)
	b.wantExchanges(other.ID, bob)
	b.wantExchanges("", append(ann, bob)...)
	if b.x.Exchanges("nobody") != nil {
		t.Error("a user who is not there has exchanges")
	}
	for token, want := range map[string][2]int{b.grant.RefreshToken: {1, 0}, second: {1, 1}, again.RefreshToken: {2, 0}, current(): {2, 1}} {
		if family, rotation, ok := b.x.Locate(token); !ok || family != want[0] || rotation != want[1] {
			t.Errorf("Locate = %d, %d, %t; want %v", family, rotation, ok, want)
		}
	}
	if _, _, ok := b.x.Locate(again.AccessToken); ok {
		t.Error("Locate knows an access token")
	}
}

func TestExchangesTellWhatTheClientKnows(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault xsim.Fault
		want  xsim.Exchange
	}{
		"cut after":     {xsim.Fault{Kind: xsim.FaultCut, After: true}, xsim.Exchange{Fault: "cut", Effect: true}},
		"cut before":    {xsim.Fault{Kind: xsim.FaultCut}, xsim.Exchange{Fault: "cut"}},
		"garbage":       {xsim.Fault{Kind: xsim.FaultGarbage}, xsim.Exchange{Fault: "garbage", Status: 200, Effect: true}},
		"latency":       {xsim.Fault{Kind: xsim.FaultLatency, DelayMS: 1}, xsim.Exchange{Fault: "latency", Status: 200, Effect: true, Answered: true}},
		"lost answer":   {xsim.Fault{Kind: xsim.FaultLostAnswer, DelayMS: 1}, xsim.Exchange{Fault: "lost_answer", Effect: true}},
		"outage":        {xsim.Fault{Kind: xsim.FaultOutage}, xsim.Exchange{Fault: "outage", Status: 503, Answered: true}},
		"status after":  {xsim.Fault{Kind: xsim.FaultStatus, Status: 503, After: true}, xsim.Exchange{Fault: "status", Status: 503, Effect: true}},
		"status before": {xsim.Fault{Kind: xsim.FaultStatus, Status: 429}, xsim.Exchange{Fault: "status", Status: 429, Answered: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.faults(test.fault)
			b.present("one.test:1", b.grant.RefreshToken)
			b.x.Wait()
			test.want.Account, test.want.Family, test.want.Host = b.grant.ID, 1, "one.test:1"
			b.wantExchanges("ann", test.want)
		})
	}
}

// A client that is frozen or slow has an exchange open; one that left gets no answer.
func TestExchangeUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t)
		b.faults(xsim.Fault{Kind: xsim.FaultLatency, DelayMS: 1_000}, xsim.Fault{Kind: xsim.FaultLatency, DelayMS: 1_000, After: true})
		go b.present("one.test:1", b.grant.RefreshToken)
		synctest.Wait()
		open := xsim.Exchange{Account: b.grant.ID, Family: 1, Host: "one.test:1", Fault: "latency", Open: true}
		b.wantExchanges("ann", open)
		b.x.Wait()
		done := open
		done.Open, done.Status, done.Effect, done.Answered = false, 200, true, true
		b.wantExchanges("ann", done)
	})
}

func TestExchangesOfCodes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	form := b.consent()
	code := form.Get("code")
	for range 2 {
		b.do(xsim.Grant{}, "POST", "/2/oauth2/token", formType, form.Encode())
	}
	b.wantExchanges("ann",
		xsim.Exchange{Account: b.grant.ID, Family: 2, Code: true, Host: "api.x.com", Status: 200, Effect: true, Answered: true},
		xsim.Exchange{Account: b.grant.ID, Family: 2, Code: true, Host: "api.x.com", Status: 400, Refused: true, Answered: true},
	)
	now, _ := b.x.CurrentToken("ann")
	if family, rotation, ok := b.x.Locate(now.RefreshToken); !ok || family != 2 || rotation != 0 {
		t.Errorf("Locate = %d, %d, %t; want the first of family 2", family, rotation, ok)
	}
	want := []string{b.grant.AccessToken, b.grant.RefreshToken, now.AccessToken, now.RefreshToken, code}
	slices.Sort(want)
	if got := b.x.IssuedTokens(); !slices.Equal(got, want) {
		t.Errorf("%d tokens were issued, want %d, a spent code among them", len(got), len(want))
	}
}

func TestExchangesAreBounded(t *testing.T) {
	t.Parallel()
	const presented = 1_003
	b := setup(t)
	for range presented {
		b.present("one.test:1", b.grant.RefreshToken)
		b.clock.pass(time.Millisecond)
	}
	list := b.x.Exchanges("ann")
	if len(list) != 1_000 || list[0].Effect {
		t.Errorf("%d exchanges are stored, the first with effect %t; want the last 1000", len(list), list[0].Effect)
	}
	if !slices.IsSortedFunc(list, func(a, b xsim.Exchange) int { return a.At.Compare(b.At) }) {
		t.Error("the oldest is not first")
	}
}

func TestControlExchanges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.want(b.control("GET", "exchanges", ""), 200, `[]`)
	b.want(b.control("GET", "exchanges?user=ann", ""), 200, `[]`)
	b.want(b.control("GET", "exchanges?user=nobody", ""), 404, "")
	b.refresh(b.grant.RefreshToken)
	want := fmt.Sprintf(`[{"account":%q,"family":1,"rotation":0,"at":"2026-11-23T12:00:00.3Z","host":"api.x.com","status":200,"effect":true,"refused":false,"answered":true}]`, b.grant.ID)
	b.want(b.control("GET", "exchanges?user=ann", ""), 200, want)
	var all []xsim.Exchange
	if err := json.Unmarshal([]byte(b.control("GET", "exchanges", "").body), &all); err != nil || len(all) != 1 {
		t.Errorf("exchanges of all: %+v, %v", all, err)
	}
	for _, token := range b.x.IssuedTokens() {
		if strings.Contains(b.control("GET", "exchanges", "").body, token) {
			t.Error("the call log of exchanges hold a token")
		}
	}
}
