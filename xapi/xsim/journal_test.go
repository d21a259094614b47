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
	x.Bound(32<<10, 512<<10)
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

// kept is an X on a journal that dies after each step.
type kept struct {
	*testBundle
	path     string
	ann, bob xsim.Grant
}

// again has it die, and the next one go on.
func (k *kept) again() {
	k.Helper()
	k.testBundle = k.testBundle.again(k.path)
}

// TestKeep has an X die after each step, and the next one go on from its journal.
func TestKeep(t *testing.T) {
	t.Parallel()
	k := &kept{path: filepath.Join(t.TempDir(), "x.jsonl")}
	k.testBundle = keeping(t, &clock{at: time.Date(2026, 11, 23, 12, 0, 0, 300e6, time.UTC)}, k.path)
	k.ann = k.account(xsim.NewAccount{Handle: "ann", SubscriptionType: xsim.SubscriptionPremium})
	k.bob = k.account(xsim.NewAccount{Handle: "bob"})
	k.again()
	k.keepsPosts()
	k.keepsMedia()
	k.keepsTokens()
	k.keepsConsents()
	k.keepsLimits()
	k.keepsFaults()
	k.keepsDeletions()
	k.keepsNothing()
}

// keepsPosts, deleted ones, and the texts of both.
func (k *kept) keepsPosts() {
	k.Helper()
	first := k.post(k.ann, "first", "")
	gone := k.post(k.ann, "gone", first)
	k.want(k.do(k.ann, "DELETE", "/2/tweets/"+gone, "", ""), 200, "")
	k.again()
	k.post(k.ann, "gone after all", first)
	k.want(k.create(k.ann, `{"text":"first"}`), 403, "") // a text of before
	k.want(k.create(k.ann, `{"text":"gone"}`), 403, "")  // a deleted one
	k.wantViolations(xsim.ViolationDuplicateAttempt)
}

// keepsMedia in each state of their upload.
func (k *kept) keepsMedia() {
	k.Helper()
	video := k.initialize(k.bob, "tweet_video", "video/mp4", len(mp4Bytes))
	k.again()
	k.want(k.segment(k.bob, video, 1, mp4Bytes[20:]), 200, "")
	k.again()
	k.want(k.segment(k.bob, video, 0, mp4Bytes[:20]), 200, "")
	k.again()
	k.want(k.do(k.bob, "POST", "/2/media/upload/"+video+"/finalize", "application/json", "{}"), 200, "") // a leniency
	k.again()
	if state := k.x.Media("bob")[0].State; state != xsim.MediaPending {
		k.Errorf("the video is %s, want it to be processed", state)
	}
	k.clock.pass(3 * time.Second)
	k.want(k.attach(k.bob, video), 201, "")
	k.want(k.do(k.bob, "POST", "/2/media/metadata", "application/json", `{"id":"`+video+`","metadata":{"alt_text":{"text":"A film"}}}`), 200, "")
	k.again()
}

// keepsTokens, spent ones too.
func (k *kept) keepsTokens() {
	k.Helper()
	// The second of these is spent, and its use ends the family.
	r := k.refresh(k.ann.RefreshToken)
	k.want(r, 200, "")
	k.again()
	k.want(k.do(k.ann, "GET", "/2/users/me", "", ""), 401, unauthorized)
	next := field(k.T, r.body, "refresh_token")
	k.want(k.refresh(next), 200, "")
	k.again()
	k.want(k.refresh(next), 400, badToken)
	k.wantViolations(xsim.ViolationDuplicateAttempt, xsim.ViolationRefreshTokenReused)
	k.again()
	k.want(k.do(k.ann, "GET", "/2/users/me", "", ""), 401, unauthorized)
}

// keepsConsents, and that they end earlier ones.
func (k *kept) keepsConsents() {
	k.Helper()
	code := k.consent()
	k.again()
	k.want(k.exchange(code), 200, "")
	k.again()
	k.want(k.exchange(code), 400, badCode)
	older := k.bob
	k.bob = k.account(xsim.NewAccount{Handle: "bob"})
	k.again()
	k.want(k.do(older, "GET", "/2/users/me", "", ""), 401, unauthorized)
}

func (k *kept) keepsLimits() {
	k.Helper()
	k.limits(xsim.Limit{Endpoint: xsim.EndpointMe, Scope: xsim.ScopeUser, Max: 2, WindowMS: 60_000})
	k.want(k.do(k.bob, "GET", "/2/users/me", "", ""), 200, "")
	k.again()
	k.want(k.do(k.bob, "GET", "/2/users/me", "", ""), 200, "")
	k.again()
	k.want(k.do(k.bob, "GET", "/2/users/me", "", ""), 429, tooMany)
}

// keepsFaults, and what accounts are refused.
func (k *kept) keepsFaults() {
	k.Helper()
	k.faults(xsim.Fault{Kind: xsim.FaultRefuseText, Text: "bad", Detail: "no", Times: 1}, xsim.Fault{Kind: xsim.FaultVanish, DelayMS: 1000, Skip: 1})
	k.want(k.create(k.bob, `{"text":"bad"}`), 403, "")
	k.want(k.create(k.bob, `{"text":"to vanish"}`), 201, "")
	k.want(k.control("PUT", "accounts?user=bob", `{"state":"locked"}`), 200, "")
	k.want(k.control("PUT", "consent", `{"deny":true}`), 200, "")
	eve, fay := k.account(xsim.NewAccount{Handle: "eve"}), k.account(xsim.NewAccount{Handle: "fay"})
	for _, token := range []string{eve.AccessToken, fay.RefreshToken} {
		k.want(k.do(xsim.Grant{}, "POST", "/2/oauth2/revoke", "application/x-www-form-urlencoded", "token="+token), 200, "")
	}
	k.again()
	k.want(k.create(k.bob, `{"text":"more"}`), 403, "")
	for _, revoked := range []xsim.Grant{eve, fay} {
		k.want(k.do(revoked, "GET", "/2/users/me", "", ""), 401, unauthorized)
	}
}

// keepsDeletions of posts that vanish, and of what the control API removes.
func (k *kept) keepsDeletions() {
	k.Helper()
	k.clock.pass(2 * time.Second)
	k.want(k.control("DELETE", "media?user=bob", ""), 200, "")
	k.want(k.control("DELETE", "tokens?user=bob", ""), 200, "")
	k.again()
	k.faults()
	k.again()
}

// keepsNothing of before a reset.
func (k *kept) keepsNothing() {
	k.Helper()
	k.want(k.control("POST", "reset", ""), 200, "")
	k.testBundle = keeping(k.T, k.clock, k.path)
	if posts, accounts := k.x.Posts(""), k.x.Accounts(); len(posts)+len(accounts) > 0 {
		k.Errorf("after a reset there are %v, %v", accounts, posts)
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
	film := mp4Bytes + strings.Repeat("x", 64<<10-len(mp4Bytes))
	for range 8 {
		id := b.initialize(ann, "tweet_video", "video/mp4", len(film))
		b.want(b.segment(ann, id, 0, film), 200, "")
		b.want(b.finalize(ann, id), 200, "")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 384<<10 {
		t.Errorf("the journal of eight videos, all finalized, has %d bytes", info.Size())
	}
	b.again(path)
}
