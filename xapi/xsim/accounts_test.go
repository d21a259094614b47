package xsim_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost/xapi/xsim"
)

// change changes ann by the control API.
func (b *testBundle) change(body string) {
	b.Helper()
	b.want(b.control(http.MethodPut, "accounts?user=ann", body), 200, "")
}

// TestAccountStates: what an account is decides what X answers, and it passes.
func TestAccountStates(t *testing.T) {
	t.Parallel()
	for state, words := range map[string]string{
		"suspended": "The user used for authentication is suspended",
		"locked":    `"code":326`,
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.change(`{"state":"` + state + `"}`)
			for name, r := range map[string]result{
				"post": b.create(b.grant, `{"text":"a"}`), "read": b.do(b.grant, "GET", "/2/users/me", "", ""),
			} {
				if r.status != 403 || !strings.Contains(r.body, words) {
					t.Errorf("%s: %d %s", name, r.status, r.body)
				}
			}
			b.want(b.refresh(b.grant.RefreshToken), 200, "")
			b.change(`{"state":""}`)
			token, _ := b.x.CurrentToken("ann")
			b.post(xsim.Grant{AccessToken: token.AccessToken}, "a", "")
		})
	}
}

func TestAccountProtected(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.post(b.grant, "secret, for @bob", "")
	bob := b.account(xsim.NewAccount{Handle: "bob"})
	b.change(`{"state":"protected"}`)
	b.want(b.create(bob, `{"text":"r","reply":{"in_reply_to_tweet_id":"`+id+`"}}`), 403, problem403("You attempted to reply to a Tweet that is deleted or not visible to you."))
	for _, path := range []string{"/2/tweets/" + id, "/2/users/" + b.grant.ID + "/tweets"} {
		if r := b.do(bob, "GET", path, "", ""); !strings.Contains(r.body, "not-authorized-for-resource") || strings.Contains(r.body, "secret") {
			t.Errorf("%s: %s", path, r.body)
		}
		if r := b.do(b.grant, "GET", path, "", ""); !strings.Contains(r.body, "secret") {
			t.Errorf("%s of one's own: %s", path, r.body)
		}
	}
	b.post(b.grant, "mine", id)
}

// TestScopeDropped: tokens that were given out know fewer scopes at once.
func TestScopeDropped(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.change(`{"scope":"tweet.read tweet.write users.read offline.access"}`)
	b.post(b.grant, "text", "")
	b.want(b.do(b.grant, "POST", "/2/media/upload", "application/json", `{}`), 403, "")
	if scope := field(t, b.refresh(b.grant.RefreshToken).body, "scope"); strings.Contains(scope, "media.write") {
		t.Errorf("the next token has %q", scope)
	}
	for _, body := range []string{`{"state":"odd"}`, `{"scope":"tweet.rite"}`, `{"subscription_type":"Gold"}`, `{"handle":"x"}`} {
		b.want(b.control(http.MethodPut, "accounts?user=ann", body), 400, "")
	}
	b.want(b.control(http.MethodPut, "accounts?user=nobody", `{}`), 404, "")
}

func TestReplicaLag(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.faults(xsim.Fault{Kind: xsim.FaultReplicaLag, DelayMS: 30_000})
	root := b.post(b.grant, "root", "")
	reply := `{"text":"reply","reply":{"in_reply_to_tweet_id":"` + root + `"}}`
	b.want(b.create(b.grant, reply), 403, problem403("You attempted to reply to a Tweet that is deleted or not visible to you."))
	b.clock.pass(30 * time.Second)
	b.want(b.create(b.grant, reply), 201, "")
	b.wantViolations()
}

// TestVanish: a post is there after its 201, and then it is not.
func TestVanish(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.faults(xsim.Fault{Kind: xsim.FaultVanish, Text: "spam", DelayMS: 60_000})
	id := b.post(b.grant, "spam", "")
	b.post(b.grant, "ham", id)
	b.clock.pass(time.Minute)
	if posts := b.x.Posts("ann"); len(posts) != 1 || posts[0].Text != "ham" {
		t.Errorf("got %+v", posts)
	}
	if r := b.do(b.grant, "GET", "/2/tweets/"+id, "", ""); !strings.Contains(r.body, "resource-not-found") {
		t.Errorf("got %s", r.body)
	}
	b.want(b.create(b.grant, `{"text":"on","reply":{"in_reply_to_tweet_id":"`+id+`"}}`), 403, "")
	b.clock.pass(24 * time.Hour)
	b.faults()
	b.post(xsim.Grant{AccessToken: field(t, b.refresh(b.grant.RefreshToken).body, "access_token")}, "spam", "")
	b.wantViolations()
}

// TestFaultOwnBody: type and body of any answer can be chosen.
func TestFaultOwnBody(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault xsim.Fault
		want  string
	}{
		"problem": {xsim.Fault{Status: 403, Type: "https://api.x.com/2/problems/odd", Title: "Odd", Detail: "d"}, `{"detail":"d","status":403,"title":"Odd","type":"https://api.x.com/2/problems/odd"}`},
		"code":    {xsim.Fault{Status: 403, Code: 226, Detail: "d"}, `{"errors":[{"code":226,"message":"d"}]}`},
		"both":    {xsim.Fault{Status: 403, Code: 226, Type: "about:blank", Detail: "d"}, `{"code":226,"detail":"d","status":403,"title":"Forbidden","type":"about:blank"}`},
		"body":    {xsim.Fault{Status: 418, Body: "<p>", ContentType: "text/html"}, `<p>`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			test.fault.Kind = xsim.FaultStatus
			b.faults(test.fault)
			b.want(b.create(b.grant, `{"text":"a"}`), test.fault.Status, test.want)
		})
	}
	b := setup(t)
	for _, fault := range []xsim.Fault{
		{Status: 403, Body: "a", Type: "b"}, {Status: 403, Type: "a", Variant: "locked"}, {Status: 99, Body: "a"}, {Status: 403, Variant: "odd"},
	} {
		fault.Kind = xsim.FaultStatus
		if err := b.x.SetFaults([]xsim.Fault{fault}); err == nil {
			t.Errorf("%+v is taken", fault)
		}
	}
}

// TestFaultQuery: a fault can depend on the query.
func TestFaultQuery(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.faults(xsim.Fault{Kind: xsim.FaultStatus, Status: 400, Query: "user.fields=verified,name"})
	b.want(b.do(b.grant, "GET", "/2/users/me?user.fields=verified%2Cname", "", ""), 400, "")
	b.want(b.do(b.grant, "GET", "/2/users/me?user.fields=name", "", ""), 200, "")
}

// TestLeniencies: what widely used clients send beyond the specification is accepted
// and recorded, and refused by a strict X.
func TestLeniencies(t *testing.T) {
	t.Parallel()
	login := func(change func(url.Values)) func(b *testBundle) result {
		return func(b *testBundle) result {
			q := asking()
			q.Set("user", "ann")
			change(q)
			return b.authorize(q)
		}
	}
	jsonToken := func(b *testBundle) result {
		body, _ := json.Marshal(map[string]string{"grant_type": "refresh_token", "refresh_token": b.grant.RefreshToken})
		return b.do(xsim.Grant{}, "POST", "/2/oauth2/token", "application/json", string(body))
	}
	for name, call := range map[string]func(b *testBundle) result{
		"localhost":     login(func(q url.Values) { q.Set("redirect_uri", "http://localhost:3000/callback") }),
		"lower case":    login(func(q url.Values) { q.Set("code_challenge_method", "s256") }),
		"no state":      login(func(q url.Values) { q.Del("state") }),
		"token in JSON": jsonToken,
		"older names": func(b *testBundle) result {
			return b.do(b.grant, "GET", "/2/tweets?ids=1&tweet.fields=author_id", "", "")
		},
		"older expansion": func(b *testBundle) result {
			return b.do(b.grant, "GET", "/2/tweets?ids=1&expansions=referenced_tweets.id", "", "")
		},
		"revoke in JSON": func(b *testBundle) result {
			return b.do(xsim.Grant{}, "POST", "/2/oauth2/revoke", "application/json", `{"token":"`+b.grant.AccessToken+`"}`)
		},
		"finalize {}": func(b *testBundle) result {
			id := b.initialize(b.grant, "tweet_image", "image/png", len(pngBytes))
			b.want(b.segment(b.grant, id, 0, string(pngBytes)), 200, "")
			return b.do(b.grant, "POST", "/2/media/upload/"+id+"/finalize", "application/json", "{}")
		},
		"media without a file name": func(b *testBundle) result {
			return b.do(b.grant, "POST", "/2/media/upload", "multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=\"media_category\"\r\n\r\ntweet_image\r\n"+
				"--x\r\nContent-Disposition: form-data; name=\"media\"\r\n\r\n"+string(pngBytes)+"\r\n--x--\r\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			if r := call(b); r.status != 200 && r.status != 302 {
				t.Errorf("got %d %s", r.status, r.body)
			}
			b.wantViolations()
			if n := len(b.x.Leniencies()); n != 1 {
				t.Errorf("%d leniencies are recorded: %+v", n, b.x.Leniencies())
			}
			b = setup(t)
			b.x.Strict = true
			if r := call(b); r.status != 400 {
				t.Errorf("a strict X answers %d %s", r.status, r.body)
			}
			b.wantViolations("malformed_request")
			if list := b.x.Leniencies(); len(list) > 0 {
				t.Errorf("a strict X is lenient: %+v", list)
			}
		})
	}
}

// TestSpecificationScopes: every scope of the specification can be asked for.
func TestSpecificationScopes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	q := asking()
	q.Set("user", "ann")
	q.Set("scope", "broadcast.read broadcast.write timeline.read "+allScopes)
	b.back(b.authorize(q))
	b.wantViolations()
}

// TestUsers: accounts are found by id and by name.
func TestUsers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	want := `{"data":{"id":"` + b.grant.ID + `","name":"ann","username":"ann"}}`
	b.want(b.do(b.grant, "GET", "/2/users/"+b.grant.ID, "", ""), 200, want)
	b.want(b.do(b.grant, "GET", "/2/users/by/username/ANN", "", ""), 200, want)
	if r := b.do(b.grant, "GET", "/2/users/by/username/eve", "", ""); r.status != 200 || !strings.Contains(r.body, "resource-not-found") {
		t.Errorf("nobody: %d %s", r.status, r.body)
	}
	b.wantViolations()
}

// TestLines: X stores line ends as LF, however they were sent.
func TestLines(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if got := field(t, b.create(b.grant, `{"text":"a\r\nb\rc"}`).body, "data", "text"); got != "a\nb\nc" {
		t.Errorf("got %q", got)
	}
	b.want(b.create(b.grant, `{"text":"a\nb\nc"}`), 403, "")
}

// TestExpansions: what a post names comes with it, once.
func TestExpansions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	root := b.post(b.grant, "root", "")
	media := b.upload(b.grant, pngBytes)
	b.want(b.create(b.grant, `{"text":"x","reply":{"in_reply_to_tweet_id":"`+root+`"},"media":{"media_ids":["`+media+`"]}}`), 201, "")
	r := b.do(b.grant, "GET", "/2/users/"+b.grant.ID+"/tweets?expansions=author_id,attachments.media_keys,referenced_posts&media.fields=width", "", "")
	var got struct {
		Includes map[string][]map[string]any `json:"includes"`
	}
	if err := json.Unmarshal([]byte(r.body), &got); err != nil {
		t.Fatal(err)
	}
	if in := got.Includes; len(in["users"]) != 1 || len(in["media"]) != 1 || in["media"][0]["width"] != 3.0 || len(in["posts"]) != 1 || in["posts"][0]["text"] != "root" {
		t.Errorf("got %s", r.body)
	}
}
