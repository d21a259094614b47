package xsim_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/jetpost/jetpost/xapi/xsim"
)

func (b *testBundle) control(method, path, body string) result {
	b.Helper()
	return b.do(xsim.Grant{}, method, "/_sim/"+path, "application/json", body)
}

func TestControlAccounts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.control("POST", "accounts", `{"handle":"bob","access_token":"A","refresh_token":"R","access_token_ttl":60,"scope":"tweet.read users.read offline.access"}`)
	bob := b.x.Accounts()[1]
	b.want(r, 201, `{"id":"`+bob.ID+`","handle":"bob","access_token":"A","refresh_token":"R","expires_in":60,"scope":"tweet.read users.read offline.access"}`)
	b.want(b.do(xsim.Grant{AccessToken: "A"}, "GET", "/2/users/me", "", ""), 200, "")
	b.want(b.control("GET", "tokens?user=bob", ""), 200,
		`{"access_token":"A","refresh_token":"R","expires_at":"2026-11-23T12:01:00.3Z","scope":"tweet.read users.read offline.access","revoked":false,"refreshes":0}`)
	b.want(b.control("DELETE", "tokens?user="+bob.ID, ""), 200, `{"revoked":true}`)
	b.want(b.do(xsim.Grant{AccessToken: "A"}, "GET", "/2/users/me", "", ""), 401, unauthorized)
	b.want(b.refresh("R"), 400, badToken)
	if r := b.control("GET", "accounts", ""); !strings.Contains(r.body, `"handle":"bob","created_at":"2026-11-23T12:00:00.3Z","subscription_type":"None"`) || strings.Contains(r.body, "token") {
		t.Errorf("accounts: %s", r.body)
	}
}

func TestControlLists(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, list := range []string{"posts", "posts?user=ann", "media", "calls", "violations", "faults"} {
		b.want(b.control("GET", list, ""), 200, `[]`)
	}
	b.want(b.control("GET", "counts", ""), 200, `{}`)
	b.want(b.control("GET", "healthz", ""), 200, `{"status":"ok"}`)

	root := b.post(b.grant, "one & only", "")
	reply := b.post(b.grant, "two", root)
	b.want(b.control("GET", "posts?user=ann", ""), 200,
		`[{"id":"`+root+`","author_id":"`+b.grant.ID+`","text":"one & only","in_reply_to":"","media_ids":[],"created_at":"2026-11-23T12:00:00.3Z"},`+
			`{"id":"`+reply+`","author_id":"`+b.grant.ID+`","text":"two","in_reply_to":"`+root+`","media_ids":[],"created_at":"2026-11-23T12:00:00.3Z"}]`)
	b.create(b.grant, `{"text":"two","reply":{"in_reply_to_tweet_id":"`+root+`"}}`)
	b.want(b.control("GET", "counts", ""), 200, `{"POST /2/tweets":{"201":2,"403":1}}`)
	b.want(b.control("GET", "violations", ""), 200,
		`[{"kind":"duplicate_attempt","account":"`+b.grant.ID+`","detail":"the post equals `+reply+` and was refused","at":"2026-11-23T12:00:00.3Z"}]`)
	var calls []xsim.Call
	if err := json.Unmarshal([]byte(b.control("GET", "calls", "").body), &calls); err != nil || len(calls) != 3 || calls[2].Status != 403 || calls[2].Effect {
		t.Errorf("calls: %+v %v", calls, err)
	}
}

func TestControlFaultsAndLimits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.want(b.control("PUT", "faults", `[{"kind":"status","status":500,"times":1}]`), 200, "")
	b.want(b.create(b.grant, `{"text":"a"}`), 500, "")
	seen := b.control("GET", "faults", "")
	b.want(seen, 200, `[{"kind":"status","times":1,"status":500,"seen":1,"fired":1}]`)
	b.want(b.control("PUT", "faults", seen.body), 200, "") // what was read can be written, and starts anew
	b.want(b.create(b.grant, `{"text":"a"}`), 500, "")
	b.want(b.control("PUT", "limits", `[{"endpoint":"POST /2/tweets","scope":"user","max":3,"window_ms":2000}]`), 200, "")
	if r := b.create(b.grant, `{"text":"a"}`); r.header.Get("x-rate-limit-limit") != "3" {
		t.Errorf("limit is %s", r.header.Get("x-rate-limit-limit"))
	}
	if r := b.control("GET", "limits", ""); !strings.Contains(r.body, `{"endpoint":"POST /2/tweets","scope":"user","max":3,"window_ms":2000}`) {
		t.Errorf("limits: %s", r.body)
	}
}

func TestControlReset(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.post(b.grant, "a", "")
	b.faults(xsim.Fault{Kind: xsim.FaultOutage})
	b.want(b.control("POST", "reset", ""), 200, `{"reset":true}`)
	for _, list := range []string{"accounts", "posts", "calls", "violations", "faults"} {
		b.want(b.control("GET", list, ""), 200, `[]`)
	}
	b.want(b.do(b.grant, "GET", "/2/users/me", "", ""), 401, unauthorized)
}

func TestControlRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, test := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "posts?user=nobody", "", 404},
		{"GET", "tokens?user=nobody", "", 404},
		{"DELETE", "tokens", "", 404},
		{"GET", "nothing", "", 404},
		{"DELETE", "accounts", "", 404},
		{"POST", "accounts", `{"handle":"bob","name":"Bob"}`, 400},
		{"POST", "accounts", `{"handle":"no spaces"}`, 400},
		{"POST", "accounts", `{"handle":"bob","access_token":"` + b.grant.AccessToken + `"}`, 400},
		{"POST", "accounts", `{"handle":"bob","subscription_type":"gold"}`, 400},
		{"POST", "accounts", ``, 400},
		{"PUT", "faults", `{}`, 400},
		{"PUT", "faults", `[{"kind":"status"}]`, 400},
		{"PUT", "faults", `[{"kind":"cut","when":"now"}]`, 400},
		{"PUT", "limits", `[][]`, 400},
	} {
		r := b.control(test.method, test.path, test.body)
		if r.status != test.status || field(t, r.body, "error") == "" {
			t.Errorf("%s %s %s: %d %s, want %d", test.method, test.path, test.body, r.status, r.body, test.status)
		}
	}
}
