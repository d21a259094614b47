package xapi

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestUserPostsQuery(t *testing.T) {
	t.Parallel()

	var got url.Values
	var path string
	b := setup(t, func(w http.ResponseWriter, r *http.Request) {
		got, path = r.URL.Query(), r.URL.EscapedPath()
		reply(http.StatusOK, `{"meta":{"result_count":0}}`)(w, r)
	})
	at := time.Date(2026, 3, 1, 12, 0, 0, 5e8, time.FixedZone("", 3600))
	q := UserPostsQuery{SinceID: "1", UntilID: "9", StartTime: at, EndTime: at, PaginationToken: "p", MaxResults: 5}
	page, err := b.client.UserPosts(t.Context(), "7/..", q)
	if err != nil || len(page.Posts) != 0 || page.Incomplete {
		t.Errorf("got %+v, %v", page, err)
	}
	want := url.Values{
		"since_id": {"1"}, "until_id": {"9"}, "pagination_token": {"p"}, "max_results": {"5"},
		"start_time": {"2026-03-01T11:00:00Z"}, "end_time": {"2026-03-01T11:00:01Z"},
		"post.fields": {"attachments,conversation_id,created_at,entities,note_post"}, "expansions": {"referenced_posts"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if path != "/2/users/7%2F../tweets" {
		t.Errorf("got path %s", path)
	}
	if _, err := b.client.UserPosts(t.Context(), "7", UserPostsQuery{}); err != nil || len(got) != 2 {
		t.Errorf("a zero query sent %v, %v", got, err)
	}
	if _, err := b.client.UserPosts(t.Context(), "7", UserPostsQuery{EditHistory: true}); err != nil || got.Get("expansions") != "referenced_posts,edit_history_post_ids" {
		t.Errorf("a query of edits sent %v, %v", got, err)
	}
}

// TestUserPostsOtherNames: an X that answers 400 to one vocabulary is asked in the
// other one, and from then on in that alone, by every client of the process.
func TestUserPostsOtherNames(t *testing.T) {
	t.Parallel()
	const bad = `{"errors":[{"message":"invalid value"}],"title":"Invalid Request","detail":"d","type":"https://api.x.com/2/problems/invalid-request"}`
	var takes string
	var asked []string
	b := setup(t, func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"post.fields", "tweet.fields"} {
			if r.URL.Query().Has(name) {
				asked = append(asked, name)
			}
		}
		if r.URL.Query().Has(takes) {
			reply(http.StatusOK, `{"meta":{"result_count":0}}`)(w, r)
			return
		}
		reply(http.StatusBadRequest, bad)(w, r)
	})
	for _, step := range []struct {
		takes string
		asked []string
		fails bool
	}{
		{"post.fields", []string{"post.fields"}, false},
		{"tweet.fields", []string{"post.fields", "tweet.fields"}, false},
		{"tweet.fields", []string{"tweet.fields"}, false},
		{"neither", []string{"tweet.fields", "post.fields"}, true},
		{"post.fields", []string{"tweet.fields", "post.fields"}, false},
		{"post.fields", []string{"post.fields"}, false},
	} {
		takes, asked = step.takes, nil
		again := b.client.Guarded(func(_ Endpoint, do func() error) error { return do() })
		if _, err := again.UserPosts(t.Context(), "7", UserPostsQuery{}); (err != nil) != step.fails {
			t.Errorf("X takes %s: got %v", step.takes, err)
		}
		if diff := cmp.Diff(step.asked, asked); diff != "" {
			t.Errorf("X takes %s: %s", step.takes, diff)
		}
	}
}

// TestUserPostsNames reads the same post in X's current and older names.
func TestUserPostsNames(t *testing.T) {
	t.Parallel()

	want := UserPostsPage{
		Posts: []UserPost{{
			ID: "42", Text: "a &amp;lt; https://t.co/1 long https://t.co/2",
			CreatedAt:       time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
			InReplyToPostID: "41", QuotedPostID: "40", ConversationID: "39", MediaKeys: []string{"3_1"},
			EarlierIDs: []string{"38"},
			URLs: []URL{
				{"https://t.co/2", "https://x.com/u/status/42/photo/1", "3_1"},
				{"https://t.co/1", "https://example.com/?a=1&b=2", ""},
			},
		}},
		NewestID: "42", OldestID: "42", NextToken: "n",
	}
	for note, references := range map[string]string{"note_post": "referenced_posts", "note_tweet": "referenced_tweets"} {
		t.Run(note, func(t *testing.T) {
			t.Parallel()
			b := setup(t, reply(http.StatusOK, `{"data":[{"id":"42","text":"a &amp;lt; https://t.co/1","created_at":"2026-03-01T12:00:00.000Z",
				"conversation_id":"39","attachments":{"media_keys":["3_1"]},
				"entities":{"urls":[{"url":"https://t.co/2","expanded_url":"https://x.com/u/status/42/photo/1","media_key":"3_1"}]},
				"edit_history_`+strings.TrimPrefix(note, "note_")+`_ids":["38","42"],
				"`+references+`":[{"type":"replied_to","id":"41"},{"type":"quoted","id":"40"}],
				"`+note+`":{"text":"a &amp;lt; https://t.co/1 long https://t.co/2","entities":{"urls":[{"url":"https://t.co/1","expanded_url":"https://example.com/?a=1&b=2"}]}}}],
				"meta":{"newest_id":"42","oldest_id":"42","next_token":"n","result_count":1}}`))
			got, err := b.client.UserPosts(t.Context(), "7", UserPostsQuery{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if text := got.Posts[0].ExpandedText(); text != "a &lt; https://example.com/?a=1&b=2 long" {
				t.Errorf("got %q", text)
			}
		})
	}
}

func TestUserPostsCompleteness(t *testing.T) {
	t.Parallel()

	const meta = `"meta":{"result_count":1}`
	for name, tc := range map[string]struct {
		body       string
		incomplete bool
		fails      bool
	}{
		"cut":               {`{"data":[{"id":"1","text":"x"}],"meta"`, false, true},
		"errors only":       {`{"errors":[{"title":"Not Found Error"}],` + meta + `}`, false, true},
		"no meta":           {`{"data":[{"id":"1"}]}`, false, true},
		"odd type":          {`{"data":[{"id":"1","text":7}],` + meta + `}`, false, true},
		"posts and errors":  {`{"data":[{"id":"1"}],"errors":[{"title":"t"}],` + meta + `}`, true, false},
		"posts, all things": {`{"data":[{"id":"1"}],` + meta + `}`, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, reply(http.StatusOK, tc.body))
			page, err := b.client.UserPosts(t.Context(), "7", UserPostsQuery{})
			if tc.fails {
				wantAs[*UnavailableError](t, err)
			} else if err != nil || page.Incomplete != tc.incomplete || len(page.Posts) != 1 {
				t.Errorf("got %+v, %v", page, err)
			}
		})
	}
}

func TestExpandedText(t *testing.T) {
	t.Parallel()

	for name, tc := range map[string]struct {
		post UserPost
		want string
	}{
		"foreign photo stays": {UserPost{ID: "1", Text: "https://t.co/a", MediaKeys: []string{"3_1"}, URLs: []URL{{"https://t.co/a", "https://x.com/u/status/2/photo/1", ""}}}, "https://x.com/u/status/2/photo/1"},
		"only media":          {UserPost{ID: "1", Text: "https://t.co/a", MediaKeys: []string{"3_1"}, URLs: []URL{{"https://t.co/a", "https://x.com/u/status/1/photo/1", ""}}}, ""},
		"unescaped once":      {UserPost{Text: "&amp;amp; &lt;3 &copy;"}, "&amp; <3 &copy;"},
	} {
		if got := tc.post.ExpandedText(); got != tc.want {
			t.Errorf("%s: got %q, want %q", name, got, tc.want)
		}
	}
}
