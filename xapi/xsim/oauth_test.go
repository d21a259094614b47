package xsim_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jetpost/jetpost/xapi/xsim"
)

func TestRefreshRotates(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.refresh(b.grant.RefreshToken)
	now, _ := b.x.CurrentToken("ann")
	b.want(r, 200, `{"token_type":"bearer","expires_in":7200,"access_token":"`+now.AccessToken+`","refresh_token":"`+
		now.RefreshToken+`","scope":"`+xsim.DefaultScope+`"}`)
	if now.RefreshToken == b.grant.RefreshToken || now.AccessToken == b.grant.AccessToken || now.Refreshes != 1 {
		t.Errorf("not rotated: %+v", now)
	}
	b.want(b.do(b.grant, "GET", "/2/users/me", "", ""), 200, "") // the old access token lives on
	b.wantViolations()
}

func TestRefreshReplayKillsFamily(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.want(b.refresh(b.grant.RefreshToken), 200, "")
	now, _ := b.x.CurrentToken(b.grant.ID)
	b.want(b.refresh(b.grant.RefreshToken), 400, badToken)
	b.wantViolations("refresh_token_reused")
	b.want(b.refresh(now.RefreshToken), 400, badToken)
	b.want(b.do(xsim.Grant{AccessToken: now.AccessToken}, "GET", "/2/users/me", "", ""), 401, unauthorized)
	b.wantViolations("refresh_token_reused")

	// New consent brings the same account back.
	again := b.account(xsim.NewAccount{Handle: "Ann"})
	if again.ID != b.grant.ID {
		t.Errorf("a second account for one handle: %+v", again)
	}
	b.want(b.refresh(again.RefreshToken), 200, "")
}

// A client whose answer was lost can do nothing but try again: it is refused,
// and yet has broken no promise.
func TestRefreshReplayAfterLostAnswer(t *testing.T) {
	t.Parallel()
	for _, f := range []xsim.Fault{
		{Kind: xsim.FaultCut, After: true},
		{Kind: xsim.FaultGarbage},
		{Kind: xsim.FaultStatus, Status: 503, After: true},
	} {
		t.Run(f.Kind, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			f.Times, f.Endpoint = 1, xsim.EndpointToken
			b.faults(f)
			form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {b.grant.RefreshToken}}.Encode()
			_, _ = b.try(xsim.Grant{}, "POST", "/2/oauth2/token", "application/x-www-form-urlencoded", form)
			if now, _ := b.x.CurrentToken("ann"); now.Refreshes != 1 {
				t.Fatal("the effect was not made")
			}
			b.want(b.refresh(b.grant.RefreshToken), 400, badToken)
			b.wantViolations()
			if now, _ := b.x.CurrentToken("ann"); !now.Revoked {
				t.Error("the family survived the replay")
			}
		})
	}
}

// Two exchanges of one token at once: the second comes while the first still waits.
func TestRefreshTwiceAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t)
		b.faults(xsim.Fault{Kind: xsim.FaultLatency, DelayMS: 1_000, After: true, Times: 1})
		first := make(chan result, 1)
		go func() { first <- b.refresh(b.grant.RefreshToken) }()
		synctest.Wait()
		b.want(b.refresh(b.grant.RefreshToken), 400, badToken)
		b.want(<-first, 200, "")
		b.wantViolations("refresh_token_reused")
	})
}

// The client gave up before the answer came, and tries once more.
func TestRefreshAgainAfterTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := setup(t)
		b.faults(xsim.Fault{Kind: xsim.FaultLatency, DelayMS: 60_000, After: true, Times: 1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {b.grant.RefreshToken}}.Encode()
		req, _ := http.NewRequestWithContext(ctx, "POST", "https://api.x.com/2/oauth2/token", strings.NewReader(form))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if _, err := send(&http.Client{Transport: b.x}, req); err == nil {
			t.Fatal("answered within the timeout")
		}
		b.want(b.refresh(b.grant.RefreshToken), 400, badToken)
		b.x.Wait()
		b.want(b.refresh(b.grant.RefreshToken), 400, badToken)
		b.wantViolations()
	})
}

func TestRefreshKnobs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.x.KeepFamilyOnReplay, b.x.RevokeAccessOnRefresh, b.x.RefreshTokenTTL = true, true, time.Hour
	b.want(b.refresh(b.grant.RefreshToken), 200, "")
	b.want(b.do(b.grant, "GET", "/2/users/me", "", ""), 401, unauthorized)
	b.want(b.refresh(b.grant.RefreshToken), 400, badToken)
	now, _ := b.x.CurrentToken("ann")
	b.clock.pass(time.Hour)
	b.want(b.refresh(now.RefreshToken), 400, badToken) // expired
}

func TestClientAuthentication(t *testing.T) {
	t.Parallel()
	missing := `{"error":"unauthorized_client","error_description":"Missing valid authorization header"}`
	form := func(b *testBundle) url.Values {
		return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {b.grant.RefreshToken}}
	}
	t.Run("confidential", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.x.ClientID, b.x.ClientSecret = "app", "s cret"
		b.want(b.refresh(b.grant.RefreshToken), 401, missing)
		inBody := form(b)
		inBody.Set("client_id", "app")
		inBody.Set("client_secret", "s cret")
		b.want(b.do(xsim.Grant{}, "POST", "/2/oauth2/token", "application/x-www-form-urlencoded", inBody.Encode()), 401, missing)

		req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://api.x.com/2/oauth2/token", strings.NewReader(form(b).Encode()))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth("app", url.QueryEscape("s cret"))
		r, err := send(&http.Client{Transport: b.x}, req)
		if err != nil {
			t.Fatal(err)
		}
		b.want(r, 200, "")
		b.wantViolations()
	})
	t.Run("public", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.x.ClientID = "app"
		b.want(b.refresh(b.grant.RefreshToken), 400, "")
		withID := form(b)
		withID.Set("client_id", "app")
		b.want(b.do(xsim.Grant{}, "POST", "/2/oauth2/token", "application/x-www-form-urlencoded", withID.Encode()), 200, "")
	})
}

func TestTokenRequestMalformed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.want(b.refresh("unknown"), 400, badToken)
	b.wantViolations()
	b.want(b.do(xsim.Grant{}, "POST", "/2/oauth2/token", "application/json", `{}`), 400, "")
	b.want(b.do(xsim.Grant{}, "POST", "/2/oauth2/token", "application/x-www-form-urlencoded", ""), 400, "")
	b.want(b.do(xsim.Grant{}, "POST", "/2/oauth2/token", "application/x-www-form-urlencoded", "grant_type=password"), 400, "")
	b.wantViolations("malformed_request", "malformed_request", "malformed_request")
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	b := setup(t)
	revoke := func(token string) {
		b.want(b.do(xsim.Grant{}, "POST", "/2/oauth2/revoke", "application/x-www-form-urlencoded", "token="+token), 200, `{"revoked":true}`)
	}
	revoke(b.grant.AccessToken)
	b.want(b.do(b.grant, "GET", "/2/users/me", "", ""), 401, unauthorized)
	revoke(b.grant.RefreshToken)
	b.want(b.refresh(b.grant.RefreshToken), 400, badToken)
	b.wantViolations()
}

func TestAddAccountWithID(t *testing.T) {
	t.Parallel()
	var s xsim.Server
	g, err := s.AddAccount(xsim.NewAccount{Handle: "ada", ID: "77"})
	if err != nil || g.ID != "77" {
		t.Fatalf("AddAccount = %+v, %v; want id 77", g, err)
	}
	if g, err := s.AddAccount(xsim.NewAccount{Handle: "ADA", ID: "77"}); err != nil || g.ID != "77" {
		t.Errorf("the same again = %+v, %v; want id 77", g, err)
	}
	for _, wrong := range []xsim.NewAccount{{Handle: "ada", ID: "78"}, {Handle: "bob", ID: "77"}, {Handle: "eve", ID: "x"}} {
		if g, err := s.AddAccount(wrong); err == nil {
			t.Errorf("AddAccount(%+v) = %+v, want an error", wrong, g)
		}
	}
}
