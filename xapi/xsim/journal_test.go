package xsim_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost/xapi/xsim"
)

// keeping is an X on a journal.
func keeping(t *testing.T, c *clock, path string) *testBundle {
	t.Helper()
	x := &xsim.Server{Now: c.now, RevokeAccessOnRefresh: true}
	if err := x.Keep(path); err != nil {
		t.Fatal(err)
	}
	b := with(t, x)
	b.clock = c
	return b
}

// told is everything that the control API returns.
func (b *testBundle) told() map[string]string {
	b.Helper()
	answers := map[string]string{}
	for _, path := range []string{
		"accounts", "posts", "media", "calls", "exchanges", "counts", "violations", "leniencies", "faults", "limits", "windows",
		"tokens?user=ann", "tokens?user=bob", "consent",
	} {
		answers[path] = b.control("GET", path, "").body
	}
	answers["tokens"] = strings.Join(b.x.IssuedTokens(), " ")
	return answers
}

// again is an X that goes on from the journal of one that was never closed.
func (b *testBundle) again(path string) *testBundle {
	b.Helper()
	next := keeping(b.T, b.clock, path)
	before, after := b.told(), next.told()
	for what := range before {
		if before[what] != after[what] {
			b.Errorf("%s: it was\n%s\nand is\n%s", what, before[what], after[what])
		}
	}
	return next
}

// TestKeep has an X die after each step, and the next one go on from its journal.
func TestKeep(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.jsonl")
	b := keeping(t, &clock{at: time.Date(2026, 11, 23, 12, 0, 0, 300e6, time.UTC)}, path)
	ann := b.account(xsim.NewAccount{Handle: "ann", SubscriptionType: xsim.SubscriptionPremium})
	bob := b.account(xsim.NewAccount{Handle: "bob"})
	b = b.again(path)

	first := b.post(ann, "first", "")
	gone := b.post(ann, "gone", first)
	b.want(b.do(ann, "DELETE", "/2/tweets/"+gone, "", ""), 200, "")
	b = b.again(path)
	b.post(ann, "gone after all", first)
	b.want(b.create(ann, `{"text":"first"}`), 403, "") // a text of before
	b.want(b.create(ann, `{"text":"gone"}`), 403, "")  // a deleted one
	b.wantViolations(xsim.ViolationDuplicateAttempt)

	video := b.initialize(bob, "tweet_video", "video/mp4", len(mp4Bytes))
	b = b.again(path)
	b.want(b.segment(bob, video, 1, mp4Bytes[20:]), 200, "")
	b = b.again(path)
	b.want(b.segment(bob, video, 0, mp4Bytes[:20]), 200, "")
	b = b.again(path)
	b.want(b.do(bob, "POST", "/2/media/upload/"+video+"/finalize", "application/json", "{}"), 200, "") // a leniency
	b = b.again(path)
	if state := b.x.Media("bob")[0].State; state != xsim.MediaPending {
		t.Errorf("the video is %s, want it to be processed", state)
	}
	b.clock.pass(3 * time.Second)
	b.want(b.attach(bob, video), 201, "")
	b.want(b.do(bob, "POST", "/2/media/metadata", "application/json", `{"id":"`+video+`","metadata":{"alt_text":{"text":"A film"}}}`), 200, "")
	b = b.again(path)

	// The second of these is spent, and its use ends the family.
	r := b.refresh(ann.RefreshToken)
	b.want(r, 200, "")
	b = b.again(path)
	b.want(b.do(ann, "GET", "/2/users/me", "", ""), 401, unauthorized)
	next := field(t, r.body, "refresh_token")
	b.want(b.refresh(next), 200, "")
	b = b.again(path)
	b.want(b.refresh(next), 400, badToken)
	b.wantViolations(xsim.ViolationDuplicateAttempt, xsim.ViolationRefreshTokenReused)
	b = b.again(path)
	b.want(b.do(ann, "GET", "/2/users/me", "", ""), 401, unauthorized)

	code := b.consent()
	b = b.again(path)
	b.want(b.exchange(code), 200, "")
	b = b.again(path)
	b.want(b.exchange(code), 400, badCode)
	older := bob
	bob = b.account(xsim.NewAccount{Handle: "bob"})
	b = b.again(path)
	b.want(b.do(older, "GET", "/2/users/me", "", ""), 401, unauthorized)
	b.limits(xsim.Limit{Endpoint: xsim.EndpointMe, Scope: xsim.ScopeUser, Max: 2, WindowMS: 60_000})
	b.want(b.do(bob, "GET", "/2/users/me", "", ""), 200, "")
	b = b.again(path)
	b.want(b.do(bob, "GET", "/2/users/me", "", ""), 200, "")
	b = b.again(path)
	b.want(b.do(bob, "GET", "/2/users/me", "", ""), 429, tooMany)

	b.faults(xsim.Fault{Kind: xsim.FaultRefuseText, Text: "bad", Detail: "no", Times: 1}, xsim.Fault{Kind: xsim.FaultVanish, DelayMS: 1000, Skip: 1})
	b.want(b.create(bob, `{"text":"bad"}`), 403, "")
	b.want(b.create(bob, `{"text":"to vanish"}`), 201, "")
	b.want(b.control("PUT", "accounts?user=bob", `{"state":"locked"}`), 200, "")
	b.want(b.control("PUT", "consent", `{"deny":true}`), 200, "")
	eve, fay := b.account(xsim.NewAccount{Handle: "eve"}), b.account(xsim.NewAccount{Handle: "fay"})
	for _, token := range []string{eve.AccessToken, fay.RefreshToken} {
		b.want(b.do(xsim.Grant{}, "POST", "/2/oauth2/revoke", "application/x-www-form-urlencoded", "token="+token), 200, "")
	}
	b = b.again(path)
	b.want(b.create(bob, `{"text":"more"}`), 403, "")
	for _, revoked := range []xsim.Grant{eve, fay} {
		b.want(b.do(revoked, "GET", "/2/users/me", "", ""), 401, unauthorized)
	}
	b.clock.pass(2 * time.Second)
	b.want(b.control("DELETE", "media?user=bob", ""), 200, "")
	b.want(b.control("DELETE", "tokens?user=bob", ""), 200, "")
	b = b.again(path)
	b.faults()
	b = b.again(path)
	b.want(b.control("POST", "reset", ""), 200, "")
	b = keeping(t, b.clock, path)
	if posts, accounts := b.x.Posts(""), b.x.Accounts(); len(posts)+len(accounts) > 0 {
		t.Errorf("after a reset there are %v, %v", accounts, posts)
	}
}

// TestKeepUnderWay: what X has done is stored before its client learns of it.
func TestKeepUnderWay(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.jsonl")
	b := keeping(t, &clock{at: time.Now()}, path)
	ann := b.account(xsim.NewAccount{Handle: "ann"})
	b.faults(xsim.Fault{Kind: xsim.FaultLostAnswer}) // which is longer than the test
	go func() {
		_, _ = b.try(ann, "POST", "/2/oauth2/token", "application/x-www-form-urlencoded", "grant_type=refresh_token&refresh_token="+ann.RefreshToken)
	}()
	for len(b.x.Exchanges("ann")) == 0 || !b.x.Exchanges("ann")[0].Effect {
		runtime.Gosched()
	}
	next := keeping(t, b.clock, path)
	next.faults()
	next.want(next.refresh(ann.RefreshToken), 400, badToken)
	if first := next.x.Exchanges("ann")[0]; !first.Effect || first.Open || first.Answered {
		t.Errorf("the exchange that nobody heard of is %+v", first)
	}
	next.wantViolations()
}

// TestKeepTornLine: what a process was writing when it died, it had not answered.
func TestKeepTornLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.jsonl")
	b := keeping(t, &clock{at: time.Now()}, path)
	ann := b.account(xsim.NewAccount{Handle: "ann"})
	b.post(ann, "whole", "")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b.post(ann, "torn", "")
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(whole); cut < len(all); cut += 1 + (len(all)-len(whole))/10 {
		torn := filepath.Join(t.TempDir(), "x.jsonl")
		if err := os.WriteFile(torn, all[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second start finds no trace of it
			if posts := keeping(t, b.clock, torn).x.Posts(""); len(posts) != 1 || posts[0].Text != "whole" {
				t.Fatalf("cut after %d of %d bytes there are posts %v", cut, len(all), posts)
			}
		}
	}
}

// TestKeepNotBroken: a file that is no journal stays as it is, and is said to be none.
func TestKeepNotBroken(t *testing.T) {
	t.Parallel()
	head := `{"format":1,"starts":1}` + "\n"
	for name, tt := range map[string]struct{ text, want string }{
		"empty":           {"", "line 1: it is no journal of a simulated X"},
		"another file":    {"hello\n", "line 1: invalid character 'h'"},
		"another format":  {`{"format":2}` + "\n", "line 1: format is 2, want 1"},
		"no format":       {`{}` + "\n", "line 1: format is 0, want 1"},
		"half a line":     {head + `{"posts":[` + "\n" + `{}` + "\n", "line 2: unexpected EOF"},
		"unknown member":  {head + `{"likes":[]}` + "\n", `line 2: json: unknown field "likes"`},
		"nobody's post":   {head + `{"posts":[{"id":"1","author_id":"7"}]}` + "\n", `line 2: post 1 of account "7", which is not there`},
		"nobody's token":  {head + `{"access":[{"of":"7","family":1}]}` + "\n", `line 2: a token of grant 1 of account "7"`},
		"no such grant":   {head + `{"accounts":[{"id":"7","handle":"a","grant":2}]}` + "\n", `line 2: account "7" has no grant 2`},
		"no such upload":  {head + `{"segments":[{"medium":"7"}]}` + "\n", `line 2: a segment of medium "7"`},
		"an id of no use": {head + `{"media":[{"id":"x"}]}` + "\n", `line 2: id "x" is no number`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "x.jsonl")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			err := (&xsim.Server{}).Keep(path)
			var wrong *xsim.JournalError
			if !errors.As(err, &wrong) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
			if text, err := os.ReadFile(path); err != nil || string(text) != tt.text {
				t.Errorf("the file is now %q, %v", text, err)
			}
		})
	}
	if err := setup(t).x.Keep(filepath.Join(t.TempDir(), "x.jsonl")); err == nil {
		t.Error("an X that is in use forgets what it knew")
	}
	if err := (&xsim.Server{}).Keep(filepath.Join(t.TempDir(), "none", "x.jsonl")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in no directory: %v", err)
	}
}

// TestKeepFails: a change that is not in the journal is not said to have been made.
func TestKeepFails(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.jsonl")
	b := keeping(t, &clock{at: time.Now()}, path)
	b.spec.Answers.Store(false) // X has none for this
	ann := b.account(xsim.NewAccount{Handle: "ann"})
	b.post(ann, "kept", "")
	b.x.BreakJournal()
	if r := b.create(ann, `{"text":"lost"}`); r.status != 500 || !strings.Contains(r.body, "write journal") {
		t.Errorf("a post that is not stored is answered %d %s", r.status, r.body)
	}
	if err := os.Rename(filepath.Dir(path), filepath.Dir(path)+"-away"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if r := b.control("PUT", "accounts?user=ann", `{"subscription_type":"Basic"}`); r.status != 500 {
			t.Errorf("a change that is not stored is answered %d %s", r.status, r.body)
		}
	}
	if err := os.Rename(filepath.Dir(path)+"-away", filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	b.post(ann, "kept again", "")
	b = b.again(path)
	if posts := b.x.Posts("ann"); len(posts) != 3 {
		t.Errorf("X has %v, want all three: the failed write did not undo its effect", posts)
	}
	if err := b.x.Close(); err != nil {
		t.Fatal(err)
	}
	b.post(ann, "after the end", "")
}

// TestKeepRewrites: a journal does not grow for ever.
func TestKeepRewrites(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.jsonl")
	b := keeping(t, &clock{at: time.Now()}, path)
	ann := b.account(xsim.NewAccount{Handle: "ann"})
	film := mp4Bytes + strings.Repeat("x", 4<<20-len(mp4Bytes))
	for range 8 {
		id := b.initialize(ann, "tweet_video", "video/mp4", len(film))
		b.want(b.segment(ann, id, 0, film), 200, "")
		b.want(b.finalize(ann, id), 200, "")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 24<<20 {
		t.Errorf("the journal of eight videos, all finalized, has %d bytes", info.Size())
	}
	b.again(path)
}
