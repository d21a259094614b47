package xsim_test

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost/xapi/xsim"
)

// TestPage: the page shows what is on X, says nothing that is secret, and takes no word of
// a post for its own.
func TestPage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	root := b.post(b.grant, "one\n<script>alert(1)</script>", "")
	picture := b.upload(b.grant, pngBytes)
	b.want(b.do(b.grant, "POST", "/2/media/metadata", "application/json", `{"id":"`+picture+`","metadata":{"alt_text":{"text":"a \"dot\""}}}`), 200, "")
	b.want(b.create(b.grant, `{"text":"two","reply":{"in_reply_to_tweet_id":"`+root+`"},"media":{"media_ids":["`+picture+`"]}}`), 201, "")
	film := b.chunked(b.grant, "tweet_video", "video/mp4", mp4Bytes)
	b.clock.pass(3 * time.Second)
	b.want(b.attach(b.grant, film), 201, "")
	b.want(b.do(b.grant, "GET", "/2/nothing", "", ""), 501, "")
	b.faults(xsim.Fault{Kind: xsim.FaultRefuseText, Text: "<b>", Detail: "no"})
	b.want(b.do(b.grant, "DELETE", "/2/tweets/"+root, "", ""), 200, "")
	b.change(`{"state":"locked"}`)
	b.play(`{"at_ms":60000,"do":"DELETE /_sim/tokens?user=ann"}`)

	r := b.control("GET", "", "")
	if r.status != 200 || !strings.HasPrefix(r.header.Get("Content-Type"), "text/html") || !strings.Contains(r.header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Fatalf("the page is answered %d %v", r.status, r.header)
	}
	for _, want := range []string{
		"one\n&lt;script&gt;", "@ann", `<img src="/_sim/media/` + picture + `" alt="a &#34;dot&#34;">`, "video/mp4, ", "gone</span>",
		"locked</span>", "refuse_text", "&lt;b&gt;", "malformed_request", "no such endpoint", "DELETE /_sim/tokens?user=ann", "to come", "POST /2/tweets",
		"1 account, 2 posts, ",
	} {
		if !strings.Contains(r.body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, token := range b.x.IssuedTokens() {
		if strings.Contains(r.body, token) {
			t.Error("the page shows a token")
		}
	}
	if r := b.control("GET", "media/"+picture, ""); r.body != string(pngBytes) || r.header.Get("Content-Type") != "image/png" {
		t.Errorf("the picture is %q of %v", r.body, r.header)
	}
	for _, none := range []string{film, "1", ""} {
		b.want(b.control("GET", "media/"+none, ""), 404, "")
	}
	if r := b.control("GET", "page.css", ""); r.header.Get("Content-Type") != "text/css; charset=utf-8" {
		t.Errorf("the style is %v", r.header)
	}
}

// TestPageEmpty: there is a page before there is anything on it.
func TestPageEmpty(t *testing.T) {
	t.Parallel()
	if r := with(t, &xsim.Server{}).control("GET", "", ""); r.status != 200 || !strings.Contains(r.body, "Nobody has posted.") {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestPagePictures: the page has the pictures of the latest posts, also after a restart,
// and the memory does not grow with each.
func TestPagePictures(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.jsonl")
	b := keeping(t, &clock{at: time.Now()}, path)
	ann := b.account(xsim.NewAccount{Handle: "ann"})
	large := append(bytes.Clone(pngBytes), make([]byte, 5<<10-len(pngBytes))...)
	var ids []string
	for range 7 { // of which six are less than the bound
		ids = append(ids, b.upload(ann, large))
	}
	for _, x := range []*testBundle{b, b.again(path)} {
		for i, id := range ids {
			if r := x.control("GET", "media/"+id, ""); (r.status == 200) != (i > 0) || i > 0 && r.body != string(large) {
				t.Errorf("picture %d of seven: %d, %d bytes", i+1, r.status, len(r.body))
			}
		}
	}
}
