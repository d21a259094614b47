package xsim_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/jetpost/jetpost/xapi/xsim"
)

// page is a timeline's answer as far as the tests need it.
type page struct {
	Data []struct {
		ID   string `json:"id"`
		Text string `json:"text"`
	} `json:"data"`
	Meta map[string]any `json:"meta"`
}

func (b *testBundle) timeline(query string) page {
	b.Helper()
	r := b.do(b.grant, "GET", "/2/users/"+b.grant.ID+"/tweets?"+query, "", "")
	b.want(r, 200, "")
	var p page
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		b.Fatal(err)
	}
	return p
}

func (p page) texts() string {
	var texts []string
	for _, post := range p.Data {
		texts = append(texts, post.Text)
	}
	return strings.Join(texts, " ")
}

func TestTimelinePages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if r := b.do(b.grant, "GET", "/2/users/"+b.grant.ID+"/tweets", "", ""); r.body != `{"meta":{"result_count":0}}` {
		t.Fatalf("empty timeline: %s", r.body)
	}
	for i := range 12 {
		b.post(b.grant, fmt.Sprintf("n%d", i), "")
	}
	first := b.timeline("max_results=5")
	if first.texts() != "n11 n10 n9 n8 n7" || first.Meta["previous_token"] != nil {
		t.Fatalf("first page: %+v", first)
	}
	second := b.timeline("max_results=5&pagination_token=" + first.Meta["next_token"].(string))
	third := b.timeline("max_results=5&pagination_token=" + second.Meta["next_token"].(string))
	if second.texts() != "n6 n5 n4 n3 n2" || third.texts() != "n1 n0" || third.Meta["next_token"] != nil {
		t.Fatalf("then: %+v %+v", second, third)
	}
	back := b.timeline("max_results=5&pagination_token=" + third.Meta["previous_token"].(string))
	if diff := cmp.Diff(second, back); diff != "" {
		t.Errorf("back from the third page (-want +got):\n%s", diff)
	}
	if n := len(b.timeline("").Data); n != 10 {
		t.Errorf("default page holds %d, want 10", n)
	}
}

func TestTimelineBounds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	start := b.clock.now()
	var ids []string
	for _, text := range []string{"a", "b", "c", "d"} {
		ids = append(ids, b.post(b.grant, text, ""))
		b.clock.pass(time.Minute)
	}
	b.post(b.grant, "part", ids[3])
	at := func(d time.Duration) string { return url.QueryEscape(start.Add(d).Format(time.RFC3339Nano)) }
	for query, want := range map[string]string{
		"exclude=replies,retweets":                   "d c b a",
		"since_id=" + ids[1]:                         "part d c",
		"since_id=" + ids[0] + "&until_id=" + ids[2]: "b",
		"start_time=" + at(2*time.Minute):            "part d c",
		"end_time=" + at(2*time.Minute):              "b a",
	} {
		if got := b.timeline(query).texts(); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	b.wantViolations()
	bad := []string{"max_results=4", "max_results=101", "since_id=x", "start_time=now", "exclude=all", "pagination_token=x1", "limit=5", "tweet.fields=nonsense", "post.fields=referenced_tweets"}
	for i, query := range bad {
		b.want(b.do(b.grant, "GET", "/2/users/"+b.grant.ID+"/tweets?"+query, "", ""), 400, "")
		if n := len(b.x.Violations()); n != i+1 {
			t.Errorf("%s: %d violations, want %d", query, n, i+1)
		}
	}
}

func TestTimelineLag(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.x.TimelineLag = 10 * time.Second
	id := b.post(b.grant, "fresh", "")
	if got := b.timeline("").texts(); got != "" {
		t.Errorf("seen at once: %q", got)
	}
	b.want(b.do(b.grant, "GET", "/2/tweets/"+id, "", ""), 200, `{"data":{"id":"`+id+`","text":"fresh"}}`)
	b.clock.pass(10 * time.Second)
	if got := b.timeline("").texts(); got != "fresh" {
		t.Errorf("after the lag: %q", got)
	}
	b.faults(xsim.Fault{Kind: xsim.FaultTimelineLag, DelayMS: 60_000, Account: "ann"})
	if got := b.timeline("").texts(); got != "" {
		t.Errorf("in spite of the fault: %q", got)
	}
}

func TestTimelineOfNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.do(b.grant, "GET", "/2/users/12/tweets", "", "")
	if r.status != 200 || !strings.Contains(r.body, `"resource_type":"user"`) {
		t.Errorf("%d %s", r.status, r.body)
	}
}

func TestLookUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	one, two := b.post(b.grant, "one", ""), b.post(b.grant, "two", "")
	b.want(b.do(b.grant, "GET", "/2/tweets?ids="+two+",7,"+one, "", ""), 200,
		`{"data":[{"id":"`+two+`","text":"two"},{"id":"`+one+`","text":"one"}],`+
			`"errors":[{"detail":"Could not find post with ids: [7].","parameter":"ids","resource_id":"7","resource_type":"post","title":"Not Found Error",`+
			`"type":"https://api.x.com/2/problems/resource-not-found","value":"7"}]}`)
	if r := b.do(b.grant, "GET", "/2/tweets/7", "", ""); r.status != 200 || strings.Contains(r.body, `"data"`) {
		t.Errorf("missing post: %d %s", r.status, r.body)
	}
	b.wantViolations()
	b.want(b.do(b.grant, "GET", "/2/tweets", "", ""), 400, "")
	b.want(b.do(b.grant, "GET", "/2/tweets?ids="+strings.Repeat("1,", 100)+"1", "", ""), 400, "")
	b.want(b.do(b.grant, "GET", "/2/tweets/x", "", ""), 400, "")
}

// includes are not checked here.
var includes = regexp.MustCompile(`,"includes":.*\}\]\}`)

func TestReadVocabulary(t *testing.T) {
	t.Parallel()
	b := setup(t)
	root := b.post(b.grant, "root", "")
	reply := b.post(b.grant, "reply", root)
	const shared = `"conversation_id":"%[2]s","created_at":"2026-11-23T12:00:00.000Z",%[4]s"id":"%[1]s","in_reply_to_user_id":"%[3]s",%[5]s"text":"reply"}}`
	references := `"referenced_%s":[{"id":"` + root + `","type":"replied_to"}],`
	for query, word := range map[string]string{
		"tweet.fields=created_at,conversation_id,edit_history_tweet_ids,in_reply_to_user_id,referenced_tweets":         "tweets",
		"post.fields=created_at,conversation_id&expansions=edit_history_post_ids,in_reply_to_user_id,referenced_posts": "posts",
	} {
		history := fmt.Sprintf(`"edit_history_%s_ids":["%s"],`, strings.TrimSuffix(word, "s"), reply)
		r := b.do(b.grant, "GET", "/2/tweets/"+reply+"?"+query, "", "")
		r.body = includes.ReplaceAllString(r.body, "")
		b.want(r, 200,
			`{"data":{`+fmt.Sprintf(shared, reply, root, b.grant.ID, history, fmt.Sprintf(references, word)))
	}
	b.wantViolations()
}

func TestReadText(t *testing.T) {
	t.Parallel()
	b := setup(t)
	mediaID := b.upload(b.grant, pngBytes)
	sent := `cafe\u0301 & <b> https://example.com/a?b=c, see`
	r := b.create(b.grant, `{"text":"`+sent+`","media":{"media_ids":["`+mediaID+`"]}}`)
	b.want(r, 201, "")
	id := field(t, r.body, "data", "id")
	r = b.do(b.grant, "GET", "/2/tweets/"+id+"?tweet.fields=entities,attachments", "", "")
	var got struct {
		Data struct {
			Text     string `json:"text"`
			Entities struct {
				URLs []struct {
					Start, End  int
					URL         string `json:"url"`
					ExpandedURL string `json:"expanded_url"`
					MediaKey    string `json:"media_key"`
				} `json:"urls"`
			} `json:"entities"`
			Attachments struct {
				MediaKeys []string `json:"media_keys"`
			} `json:"attachments"`
		} `json:"data"`
	}
	if err := json.Unmarshal([]byte(r.body), &got); err != nil {
		t.Fatal(err)
	}
	urls := got.Data.Entities.URLs
	if len(urls) != 2 || urls[0].ExpandedURL != "https://example.com/a?b=c" || urls[1].ExpandedURL != "https://x.com/ann/status/"+id+"/photo/1" ||
		urls[1].MediaKey != "3_"+mediaID || len(urls[0].URL) != 23 {
		t.Fatalf("entities: %+v", urls)
	}
	if want := "caf\u00e9 &amp; &lt;b&gt; " + urls[0].URL + ", see " + urls[1].URL; got.Data.Text != want {
		t.Errorf("text is %q, want %q", got.Data.Text, want)
	}
	for _, u := range urls {
		if span := string([]rune(got.Data.Text)[u.Start:u.End]); span != u.URL {
			t.Errorf("indices %d..%d hold %q, want %q", u.Start, u.End, span, u.URL)
		}
	}
	if diff := cmp.Diff([]string{"3_" + mediaID}, got.Data.Attachments.MediaKeys); diff != "" {
		t.Error(diff)
	}
	if kept := b.x.Posts("ann")[0].Text; kept != "cafe\u0301 & <b> https://example.com/a?b=c, see" {
		t.Errorf("the call log has %q, want what was sent", kept)
	}
}

func TestReadLongText(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := b.account(xsim.NewAccount{Handle: "rich", SubscriptionType: xsim.SubscriptionPremiumPlus})
	text := strings.Repeat("long ", 100)
	id := b.post(g, text, "")
	r := b.do(g, "GET", "/2/tweets/"+id+"?tweet.fields=note_tweet", "", "")
	if full, cut := field(t, r.body, "data", "note_tweet", "text"), field(t, r.body, "data", "text"); full != text || len(cut) >= len(text) || !strings.HasSuffix(cut, "…") {
		t.Errorf("text %q, note %q", cut, full)
	}
}

func TestMeFields(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.want(b.do(b.grant, "GET", "/2/users/me?user.fields=subscription_type,verified_type", "", ""), 200,
		`{"data":{"id":"`+b.grant.ID+`","name":"ann","subscription_type":"None","username":"ann","verified_type":"none"}}`)
	b.want(b.do(b.grant, "GET", "/2/users/me?user.fields=age", "", ""), 400, "")
	b.wantViolations("malformed_request")
}

// TestSpecificationOperations: each operation of the specification that is modelled answers
// as it says, to what it asks for and to what it does not.
func TestSpecificationOperations(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.spec.Requests.Store(true)
	first := b.post(b.grant, "one & https://example.com", "")
	last := b.post(b.grant, "two", first)
	for i := range 10 {
		last = b.post(b.grant, fmt.Sprintf("more %d", i), last)
	}
	picture, film := b.upload(b.grant, pngBytes), b.chunked(b.grant, "tweet_video", "video/mp4", mp4Bytes)
	moving := b.chunked(b.grant, "tweet_gif", "image/gif", string(gifBytes))
	b.want(b.do(b.grant, "POST", "/2/media/metadata", "application/json", `{"id":"`+picture+`","metadata":{"alt_text":{"text":"a dot"}}}`), 200, "")
	b.clock.pass(3 * time.Second)
	for _, id := range []string{picture, film, moving} {
		b.want(b.status(b.grant, id), 200, "")
		b.want(b.attach(b.grant, id), 201, "")
	}
	for _, path := range []string{
		"/2/tweets/" + first, "/2/tweets?ids=" + first + "," + last + ",1", "/2/users/me", "/2/users/" + b.grant.ID, "/2/users/by/username/ann",
		"/2/users/by/username/nobody", "/2/users/1", "/2/tweets/1", "/2/users/1/tweets", "/2/users/" + b.grant.ID + "/tweets?max_results=5&exclude=replies",
	} {
		b.want(b.do(b.grant, "GET", path, "", ""), 200, "")
	}
	const all = "&expansions=author_id,referenced_posts,attachments.media_keys,in_reply_to_user_id&post.fields=created_at,entities,conversation_id,note_post,public_metrics" +
		"&user.fields=created_at,public_metrics,subscription_type,verified_type&media.fields=width,height,alt_text"
	pages, token := 0, ""
	for ; pages < 5 && (pages == 0 || token != ""); pages++ {
		path := "/2/users/" + b.grant.ID + "/tweets?max_results=5" + all
		if token != "" {
			path += "&pagination_token=" + token
		}
		r := b.do(b.grant, "GET", path, "", "")
		b.want(r, 200, "")
		token = field(t, r.body, "meta", "next_token")
	}
	if pages != 3 {
		t.Errorf("15 posts are on %d pages of 5, want 3", pages)
	}
	b.want(b.do(b.grant, "DELETE", "/2/tweets/"+first, "", ""), 200, "")
	b.want(b.do(b.grant, "DELETE", "/2/tweets/"+first, "", ""), 200, `{"data":{"deleted":false}}`)
	if r := b.do(b.grant, "GET", "/2/users/me?user.fields=public_metrics", "", ""); !strings.Contains(r.body, `"post_count":14`) {
		t.Errorf("of fifteen posts one is deleted: %s", r.body)
	}
	b.wantViolations()

	b.spec.Requests.Store(false)
	bob := b.account(xsim.NewAccount{Handle: "bob"})
	b.want(b.do(bob, "DELETE", "/2/tweets/"+last, "", ""), 403, "")
	for _, wrong := range [][3]string{
		{"POST", "/2/tweets", `{}`}, {"POST", "/2/tweets", `{"text":"a","media":{"media_ids":["1"]}}`}, {"DELETE", "/2/tweets/x", ""}, {"GET", "/2/tweets/x", ""}, {"GET", "/2/tweets", ""},
		{"GET", "/2/users/me?user.fields=x", ""}, {"GET", "/2/users/by/username/ann?x=y", ""}, {"GET", "/2/users/1?x=y", ""}, {"GET", "/2/users/1/tweets?max_results=4", ""},
		{"GET", "/2/media/upload?media_id=1", ""}, {"POST", "/2/media/upload", `{}`}, {"POST", "/2/media/upload/initialize", `{}`}, {"POST", "/2/media/upload/1/append", `{}`},
		{"POST", "/2/media/upload/1/finalize", ""}, {"POST", "/2/media/metadata", `{}`},
	} {
		b.want(b.do(b.grant, wrong[0], wrong[1], "application/json", wrong[2]), 400, "")
	}
	seen := b.spec.Seen()
	for _, operation := range []string{
		"createPosts", "deletePosts", "getPostsById", "getPostsByIds", "getUsersMe", "getUsersById", "getUsersByUsername", "getUsersPosts", "mediaUpload",
		"initializeMediaUpload", "appendMediaUpload", "finalizeMediaUpload", "getMediaUploadStatus", "createMediaMetadata",
	} {
		if seen[operation] < 2 {
			t.Errorf("%s was held to the specification %d times: %v", operation, seen[operation], seen)
		}
	}
}
