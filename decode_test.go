package jetpost_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/jetpost/jetpost"
)

// full is a body that sets every field. What excludes another field stands in
// another post.
const full = `{
	"version": 1, "account": "acme", "id": "launch-2026_11",
	"posts": [
		{"text": "Hi <you> & \"me\" \u2028 \ud83d\ude80\n\ttab", "in_reply_to_post_id": "17",
		 "reply_settings": "mentionedUsers", "community_id": "19", "made_with_ai": true, "paid_partnership": true,
		 "media": [{"url": "https://example.com/cat.png?a=1", "alt": "A cat"}, {"data": "aGVsbG8="}, {"object": "cats/2.png"}]},
		{"text": "Which?", "poll": {"options": ["this", "that"], "duration_minutes": 60}},
		{"text": "Look", "quote_post_id": "18"}
	],
	"publish_at": "2026-12-01T10:00:00.5+01:00", "expires_at": "2026-12-01T12:00:00Z",
	"metadata": {"campaign": "42", "a/b~c": "\n"}
}`

func fullRequest() jetpost.Request {
	return jetpost.Request{
		Version: 1, Account: "acme", ID: "launch-2026_11",
		Posts: []jetpost.Post{
			{
				Text: "Hi <you> & \"me\" \u2028 \U0001F680\n\ttab", InReplyToPostID: "17",
				ReplySettings: "mentionedUsers", CommunityID: "19", MadeWithAI: true, PaidPartnership: true,
				Media: []jetpost.Media{
					{URL: "https://example.com/cat.png?a=1", Alt: "A cat"}, {Data: []byte("hello")}, {Object: "cats/2.png"},
				},
			},
			{Text: "Which?", Poll: &jetpost.Poll{Options: []string{"this", "that"}, DurationMinutes: 60}},
			{Text: "Look", QuotePostID: "18"},
		},
		PublishAt: time.Date(2026, 12, 1, 9, 0, 0, 500_000_000, time.UTC),
		ExpiresAt: time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC),
		Metadata:  map[string]string{"campaign": "42", "a/b~c": "\n"},
	}
}

func TestDecode(t *testing.T) {
	t.Parallel()
	for _, subject := range []string{"", "acme"} {
		got, err := jetpost.Decode(subject, []byte(full))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fullRequest(), got); diff != "" {
			t.Errorf("subject %q (-want +got):\n%s", subject, diff)
		}
		if got.PublishAt.Location() != time.UTC {
			t.Errorf("publish_at is in %v, want UTC", got.PublishAt.Location())
		}
	}
}

func TestDecodeFillsInWhatIsAbsent(t *testing.T) {
	t.Parallel()
	got, err := jetpost.Decode("acme", []byte(`{"posts":[{"text":"hi","media":[]},{"text":"","media":[{"object":"a","alt":""}]}],"metadata":{}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := jetpost.Request{Version: 1, Account: "acme", Posts: []jetpost.Post{{Text: "hi"}, {Media: []jetpost.Media{{Object: "a"}}}}}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// post wraps the fields of one post into an otherwise good request.
func post(fields string) string { return `{"posts":[{` + fields + `}]}` }

// mistake is a body with mistakes, and what Decode tells of them.
type mistake struct {
	name    string
	subject string // "acme" where empty, none where "-"
	body    string
	want    []string // pointer, blank, message
}

// tellEveryMistake wants Decode to tell every mistake of each body.
func tellEveryMistake(t *testing.T, cases []mistake) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := jetpost.Decode(subjectOr(c.subject), []byte(c.body))
			invalid, ok := errors.AsType[*jetpost.InvalidError](err)
			if !ok {
				t.Fatalf("got %v, want *InvalidError", err)
			}
			if diff := cmp.Diff(c.want, lines(invalid.Problems)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeTellsMistakesOfForm(t *testing.T) {
	t.Parallel()
	tellEveryMistake(t, []mistake{
		{name: "body empty", body: " \n", want: []string{` is empty, want a JSON object`}},
		{name: "body is an array", body: `[]`, want: []string{` is an array, want an object`}},
		{name: "body is cut off", body: `{"posts":[`, want: []string{` is not JSON at line 1, column 10: unexpected end of JSON input`}},
		{name: "body is malformed", body: "{\n  \"ü\": 1,\n  'posts': []}", want: []string{` is not JSON at line 3, column 3: invalid character '\'' looking for beginning of object key string`}},
		{name: "body is not UTF-8", body: "{\"posts\":\n[{\"text\":\"\xff\"}]}", want: []string{` is not UTF-8 at line 2, column 11`}},
		{name: "body nests too deep", body: `{"x":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}`, want: []string{` nests deeper than 32 levels`}},
		{name: "body nests far too deep", body: strings.Repeat("[", 20_000), want: []string{` is not JSON at line 1, column 10001: invalid character '[' exceeded max depth`}},
		{name: "body trails data", body: post(`"text":"hi"`) + "\n{}", want: []string{` is not JSON at line 2, column 1: invalid character '{' after top-level value`}},
		{name: "duplicate fields", body: `{"posts":[{"text":"a","text":"b"}],"id":"1","id":"2","metadata":{"a/b":"1","a/b":"2"}}`, want: []string{
			`/posts/0/text the field "text" stands here twice`,
			`/id the field "id" stands here twice`,
			`/metadata/a~1b the field "a/b" stands here twice`,
		}},
		{name: "nulls", body: `{"id":null,"posts":[null,{"text":null,"poll":null}],"publish_at":null}`, want: []string{
			`/id is null, leave it out`,
			`/posts/0 is null, leave it out`,
			`/posts/1/text is null, leave it out`,
			`/posts/1/poll is null, leave it out`,
			`/publish_at is null, leave it out`,
		}},
		{name: "unknown fields", body: `{"posts":[{"text":"a","Text":"b","replySettings":"verified","image":"x"}],"publishAt":"x","meta-data":{},"posst":1,"acount":1,"versionn":1,"` + strings.Repeat("x", 600) + `":1}`, want: []string{
			`/posts/0/Text unknown field "Text"; did you mean "text"?`,
			`/posts/0/replySettings unknown field "replySettings"; did you mean "reply_settings"?`,
			`/posts/0/image unknown field "image"; known here: text, media, in_reply_to_post_id, quote_post_id, reply_settings, community_id, poll, made_with_ai, paid_partnership`,
			`/publishAt unknown field "publishAt"; did you mean "publish_at"?`,
			`/meta-data unknown field "meta-data"; did you mean "metadata"?`,
			`/posst unknown field "posst"; did you mean "posts"?`,
			`/acount unknown field "acount"; did you mean "account"?`,
			`/versionn unknown field "versionn"; did you mean "version"?`,
			` unknown field "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…"; known here: version, account, id, posts, publish_at, expires_at, skip_if_late, metadata`,
		}},
		{name: "version", body: `{"version":0,"posts":[{"text":"hi"}]}`, want: []string{`/version is 0, want 1`}},
		{name: "version negative", body: `{"version":-1,"posts":[{"text":"hi"}]}`, want: []string{`/version is -1, want 1`}},
		{name: "version no integer", body: `{"version":1.5,"posts":[{"text":"hi"}]}`, want: []string{`/version is 1.5, want a whole number of at most 9 digits`}},
		{name: "version newer, identity broken", subject: "-", body: `{"version":2,"id":["a"],"posts":7}`, want: []string{
			`/id is an array, want a string`,
			`/account is missing: name the account here or in the subject`,
		}},
		{name: "wrong kinds", body: `{"posts":[7,{"text":{},"media":"x","poll":[],"made_with_ai":"yes"}],"metadata":[],"id":1}`, want: []string{
			`/posts/0 is a number, want an object`,
			`/posts/1/text is an object, want a string`,
			`/posts/1/media is a string, want an array`,
			`/posts/1/poll is an array, want an object`,
			`/posts/1/made_with_ai is a string, want a boolean`,
			`/metadata is an array, want an object`,
			`/id is a number, want a string`,
		}},
		{name: "wrong kinds within", body: post(`"text":"?","media":["x",{"url":1}],"poll":{"options":[1,"b"],"duration_minutes":"5"}`), want: []string{
			`/posts/0/media/0 is a string, want an object`,
			`/posts/0/media/1/url is a number, want a string`,
			`/posts/0/poll/options/0 is a number, want a string`,
			`/posts/0/poll/duration_minutes is a string, want a number`,
			`/posts/0/poll cannot stand together with media or quote_post_id`,
		}},
	})
}

func TestDecodeTellsMistakesOfRequest(t *testing.T) {
	t.Parallel()
	tellEveryMistake(t, []mistake{
		{name: "account differs", body: `{"account":"other","posts":[{"text":"hi"}]}`, want: []string{`/account is "other", but the subject names "acme"`}},
		{name: "account missing", subject: "-", body: post(`"text":"hi"`), want: []string{`/account is missing: name the account here or in the subject`}},
		{name: "account of no pattern", subject: "-", body: `{"account":"Acme Inc","posts":[{"text":"hi"}]}`, want: []string{`/account is "Acme Inc", want 1 to 63 of a-z 0-9 _ -`}},
		{name: "account of no pattern in the subject", subject: "ACME", body: post(`"text":"hi"`), want: []string{`/account is "ACME" in the subject, want 1 to 63 of a-z 0-9 _ -`}},
		{name: "account of the wrong kind", subject: "-", body: `{"account":7,"posts":[{"text":"hi"}]}`, want: []string{`/account is a number, want a string`}},
		{name: "expiry before publishing", body: `{"posts":[{"text":"a"}],"publish_at":"2026-12-01T09:00:00Z","expires_at":"2026-12-01T10:00:00+01:00"}`, want: []string{`/expires_at is not after publish_at`}},
		{name: "id empty", body: `{"id":"","posts":[{"text":"hi"}]}`, want: []string{`/id is empty, leave it out`}},
		{name: "id of no pattern", body: `{"id":"a b","posts":[{"text":"hi"}]}`, want: []string{`/id is "a b", want 1 to 128 of A-Z a-z 0-9 _ -`}},
		{name: "id too long", body: `{"id":"` + strings.Repeat("x", 129) + `","posts":[{"text":"hi"}]}`, want: []string{`/id is "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…", want 1 to 128 of A-Z a-z 0-9 _ -`}},
		{name: "metadata", body: `{"posts":[{"text":"hi"}],"metadata":{"":"x","n":1,"null":null,"\u0001":"x","long":"` + strings.Repeat("x", 513) + `","` + strings.Repeat("k", 513) + `":""}}`, want: []string{
			`/metadata/n is a number, want a string`,
			`/metadata/null is null, leave it out`,
			`/metadata has an empty key`,
			`/metadata has the key "\x01", which is not plain text`,
			`/metadata has a key of 513 characters, at most 512 are allowed`,
			`/metadata/long is 513 characters long, at most 512 are allowed`,
		}},
		{name: "metadata too many", body: `{"posts":[{"text":"hi"}],"metadata":` + manyKeys(33) + `}`, want: []string{`/metadata has 33 entries, at most 32 are allowed`}},
		{name: "posts empty", body: `{"posts":[]}`, want: []string{`/posts is missing or empty, want 1 to 25 posts`}},
		{name: "posts missing", body: `{}`, want: []string{`/posts is missing or empty, want 1 to 25 posts`}},
		{name: "posts too many", body: `{"posts":[` + strings.Repeat(`{"text":"a"},`, 25) + `{"text":"a"}]}`, want: []string{`/posts has 26 posts, at most 25 are allowed`}},
		{name: "times", body: `{"posts":[{"text":"a"}],"publish_at":"tomorrow","expires_at":"2026-12-01T9:00:00Z"}`, want: []string{`/publish_at is "tomorrow", want a time as in RFC 3339, for example 2026-12-01T09:00:00Z`}},
		{name: "skip if late", body: `{"posts":[{"text":"a"}],"skip_if_late":"soon"}`, want: []string{`/skip_if_late is "soon", want a duration such as 15m, from 1s to 8760h`}},
		{name: "times out of range", body: `{"posts":[{"text":"a"}],"publish_at":"0001-01-01T00:00:00Z","expires_at":"9999-12-31T23:59:59-01:00"}`, want: []string{
			`/publish_at is in the year 1, want 1970 to 9999`,
			`/expires_at is in the year 10000, want 1970 to 9999`,
		}},
	})
}

func TestDecodeTellsMistakesOfPost(t *testing.T) {
	t.Parallel()
	poll := func(fields string) string { return post(`"text":"?","poll":{` + fields + `}`) }
	tellEveryMistake(t, []mistake{
		{name: "control characters", body: post(`"text":"a\u0000b","media":[{"object":"x","alt":"\u0007"}]`), want: []string{
			`/posts/0/text is not plain text: use UTF-8 without control characters other than line feed and tab`,
			`/posts/0/media/0/alt is not plain text: use UTF-8 without control characters other than line feed and tab`,
		}},
		{name: "half a surrogate pair", body: post(`"text":"\\ud83d \ud83d\ude80 \ud83d!"`), want: []string{`/posts/0/text holds half of a \u surrogate pair, which is no character`}},
		{name: "ids of X", body: post(`"text":"a","in_reply_to_post_id":"x","quote_post_id":"12345678901234567890","community_id":"-1"`), want: []string{
			`/posts/0/in_reply_to_post_id is "x", want an id of X, 1 to 19 digits`,
			`/posts/0/quote_post_id is "12345678901234567890", want an id of X, 1 to 19 digits`,
			`/posts/0/community_id is "-1", want an id of X, 1 to 19 digits`,
		}},
		{name: "poll bounds", body: poll(`"options":["a"],"duration_minutes":4`), want: []string{
			`/posts/0/poll/options has 1 choices, want 2 to 4`,
			`/posts/0/poll/duration_minutes is 4, want 5 to 10080`,
		}},
		{name: "poll choices", body: poll(`"options":["a"," ","","` + strings.Repeat("x", 26) + `","e"],"duration_minutes":10081`), want: []string{
			`/posts/0/poll/options has 5 choices, want 2 to 4`,
			`/posts/0/poll/options/1 is empty`,
			`/posts/0/poll/options/2 is empty`,
			`/posts/0/poll/options/3 is 26 characters long, at most 25 are allowed`,
			`/posts/0/poll/duration_minutes is 10081, want 5 to 10080`,
		}},
		{name: "poll empty", body: poll(``), want: []string{
			`/posts/0/poll/options has 0 choices, want 2 to 4`,
			`/posts/0/poll/duration_minutes is 0, want 5 to 10080`,
		}},
		{name: "poll with media and quote", body: post(`"text":"?","quote_post_id":"1","media":[{"object":"a"}],"poll":{"options":["a","b"],"duration_minutes":5}`), want: []string{
			`/posts/0/quote_post_id cannot stand together with media`,
			`/posts/0/poll cannot stand together with media or quote_post_id`,
		}},
		{name: "quote with media", body: post(`"text":"a","quote_post_id":"1","media":[{"object":"a"}]`), want: []string{`/posts/0/quote_post_id cannot stand together with media`}},
		{name: "reply in mid-thread", body: `{"posts":[{"text":"a","in_reply_to_post_id":"1"},{"text":"b","in_reply_to_post_id":"1"}]}`, want: []string{`/posts/1/in_reply_to_post_id may stand in the first post only: each later one replies to the post before it`}},
		{name: "reply settings", body: post(`"text":"a","reply_settings":"everyone"`), want: []string{`/posts/0/reply_settings is "everyone", want one of following, mentionedUsers, subscribers, verified`}},
		{name: "text empty", body: `{"posts":[{},{"text":" \n"},{"text":"","media":[]}]}`, want: []string{
			`/posts/0/text is missing or empty, which only a post with media may be`,
			`/posts/1/text is missing or empty, which only a post with media may be`,
			`/posts/2/text is missing or empty, which only a post with media may be`,
		}},
		{name: "text of no characters", body: `{"posts":[{"text":"a\ufeff"},{"text":"\ufffe b"},{"text":"\uffff"},{"text":"\ufffd \u200b"}]}`, want: []string{
			`/posts/0/text holds U+FEFF, U+FFFE or U+FFFF, which X refuses in a post`,
			`/posts/1/text holds U+FEFF, U+FFFE or U+FFFF, which X refuses in a post`,
			`/posts/2/text holds U+FEFF, U+FFFE or U+FFFF, which X refuses in a post`,
		}},
		{name: "text too long", body: post(`"text":"` + strings.Repeat("é", 25_001) + `"`), want: []string{`/posts/0/text is 25001 characters long, at most 25000 are allowed`}},
	})
}

func TestDecodeTellsMistakesOfMedia(t *testing.T) {
	t.Parallel()
	media := func(fields string) string { return post(`"media":[{` + fields + `}]`) }
	tellEveryMistake(t, []mistake{
		{name: "alt too long", body: media(`"object":"a","alt":"` + strings.Repeat("é", 1001) + `"`), want: []string{`/posts/0/media/0/alt is 1001 characters long, at most 1000 are allowed`}},
		{name: "data empty", body: media(`"data":""`), want: []string{`/posts/0/media/0/data is empty, leave it out`}},
		{name: "data is a data URL", body: media(`"data":"data:image/png;base64,AAAA"`), want: []string{`/posts/0/media/0/data is a data URL, want the base64 alone`}},
		{name: "data is not base64", body: media(`"data":"ab_-"`), want: []string{`/posts/0/media/0/data is not standard base64 with padding: illegal base64 data at input byte 2`}},
		{name: "data too large", body: media(`"data":"` + base64.StdEncoding.EncodeToString(make([]byte, jetpost.MaxDataBytes+1)) + `"`), want: []string{`/posts/0/media/0/data is 524289 bytes decoded, at most 524288 are allowed: use url or object`}},
		{name: "media of no source", body: media(`"alt":"a"`), want: []string{`/posts/0/media/0 names 0 sources, want exactly one of url, data and object`}},
		{name: "media of two sources", body: media(`"url":"https://example.com/a","object":"b"`), want: []string{`/posts/0/media/0 names 2 sources, want exactly one of url, data and object`}},
		{name: "media of the wrong kind", body: post(`"media":"x"`), want: []string{`/posts/0/media is a string, want an array`}},
		{name: "media too many", body: post(`"media":[` + strings.Repeat(`{"object":"a"},`, 4) + `{"object":"a"}]`), want: []string{`/posts/0/media has 5 entries, at most 4 are allowed`}},
		{name: "object of no pattern", body: media(`"object":"my cat.png"`), want: []string{`/posts/0/media/0/object is "my cat.png", want 1 to 255 printable ASCII characters, no space`}},
		{name: "URL not absolute", body: media(`"url":"https:///cat.png"`), want: []string{`/posts/0/media/0/url is not an absolute URL: want https:// and a host`}},
		{name: "URL not https", body: media(`"url":"http://user:pw@example.com/cat.png"`), want: []string{`/posts/0/media/0/url is not an absolute URL: want https:// and a host`}},
		{name: "URL with a password", body: media(`"url":"https://user:pw@example.com/cat.png"`), want: []string{`/posts/0/media/0/url holds a user name or password, which it must not`}},
		{name: "URL of no form", body: media(`"url":"https://exa mple.com/"`), want: []string{`/posts/0/media/0/url is not a URL`}},
		{name: "URL too long", body: media(`"url":"https://example.com/` + strings.Repeat("x", 2029) + `"`), want: []string{`/posts/0/media/0/url is 2049 characters long, at most 2048 are allowed`}},
	})
}

func subjectOr(s string) string {
	switch s {
	case "":
		return "acme"
	case "-":
		return ""
	}
	return s
}

func lines(problems []jetpost.Problem) []string {
	var all []string
	for _, p := range problems {
		all = append(all, p.Pointer+" "+p.Message)
	}
	return all
}

func manyKeys(n int) string {
	keys := make(map[string]string, n)
	for i := range n {
		keys[fmt.Sprint(i)] = ""
	}
	b, _ := json.Marshal(keys)
	return string(b)
}

func TestInvalidErrorIsBounded(t *testing.T) {
	t.Parallel()
	body := `{"id":"a","posts":[` + strings.Repeat(`7,`, 59) + `7]}`
	_, err := jetpost.Decode("acme", []byte(body))
	invalid, ok := errors.AsType[*jetpost.InvalidError](err)
	if !ok {
		t.Fatalf("got %v, want *InvalidError", err)
	}
	if invalid.Account != "acme" || invalid.ID != "a" {
		t.Errorf("identity %q %q, want acme a", invalid.Account, invalid.ID)
	}
	if n := len(invalid.Problems); n != jetpost.MaxProblems+1 {
		t.Fatalf("%d problems, want %d", n, jetpost.MaxProblems+1)
	}
	// The sixty posts, and that there are too many of them.
	want := jetpost.Problem{Message: "and 11 more"}
	if last := invalid.Problems[jetpost.MaxProblems]; last != want {
		t.Errorf("last problem %+v, want %+v", last, want)
	}
}

func TestInvalidErrorNamesOnlyWhatFitsASubject(t *testing.T) {
	t.Parallel()
	cases := []struct{ name, subject, body, account, id string }{
		{"account of the subject wins", "acme", `{"account":"other","id":"a"}`, "acme", "a"},
		{"broken body keeps the subject's", "acme", `{`, "acme", ""},
		{"nothing fits", "", `{"account":"*.>","id":"a.b"}`, "", ""},
		{"subject does not fit", "A", `{"account":"acme","id":"a"}`, "acme", "a"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := jetpost.Decode(c.subject, []byte(c.body))
			invalid, ok := errors.AsType[*jetpost.InvalidError](err)
			if !ok {
				t.Fatalf("got %v, want *InvalidError", err)
			}
			if invalid.Account != c.account || invalid.ID != c.id {
				t.Errorf("identity %q %q, want %q %q", invalid.Account, invalid.ID, c.account, c.id)
			}
		})
	}
}

func TestInvalidErrorReadsAsOneLine(t *testing.T) {
	t.Parallel()
	_, err := jetpost.Decode("acme", []byte(`{"id":7,"posts":[]}`))
	want := "invalid request: /id is a number, want a string; /posts is missing or empty, want 1 to 25 posts"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestDecodeKeepsNewerVersions(t *testing.T) {
	t.Parallel()
	body := `{"version":2,"id":"a","posts":"of another shape","novelty":` + strings.Repeat("[", 31) + "null" + strings.Repeat("]", 31) + `}`
	_, err := jetpost.Decode("acme", []byte(body))
	newer, ok := errors.AsType[*jetpost.NewerVersionError](err)
	if !ok {
		t.Fatalf("got %v, want *NewerVersionError", err)
	}
	want := jetpost.NewerVersionError{Account: "acme", ID: "a", Version: 2}
	if *newer != want {
		t.Errorf("got %+v, want %+v", *newer, want)
	}
}

func TestValidateRefusesWhatJSONCannotHold(t *testing.T) {
	t.Parallel()
	r := fullRequest()
	r.Version = jetpost.Version + 1
	r.Posts[0].Text = "\xff"
	r.PublishAt = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)
	r.ExpiresAt = time.Time{}
	invalid, ok := errors.AsType[*jetpost.InvalidError](r.Validate())
	if !ok {
		t.Fatalf("got %v, want *InvalidError", r.Validate())
	}
	want := []string{
		"/version is 2, want 1",
		"/posts/0/text is not plain text: use UTF-8 without control characters other than line feed and tab",
		"/publish_at is in the year 10000, want 1970 to 9999",
	}
	if diff := cmp.Diff(want, lines(invalid.Problems)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The digest of a stored request must be found again by every later build, so
// its value is pinned: escapes, order of fields and all.
func TestDigestIsPinned(t *testing.T) {
	t.Parallel()
	const want = "c9f45b96e866a6878586174290cf1b6dfa2be6497ba62f078652affbd70370dd"
	// Pinned when a post could still have media and a quote; the digest does not ask.
	r := fullRequest()
	r.Posts = r.Posts[:2]
	r.Posts[0].QuotePostID = "18"
	if got := hex.EncodeToString(r.Digest()); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDigestKnowsEveryField(t *testing.T) {
	t.Parallel()
	base := fullRequest()
	var places []string
	alter(reflect.ValueOf(&base).Elem(), "request", func(place string) bool {
		places = append(places, place)
		return false
	})
	for i, place := range places {
		r, next := fullRequest(), 0
		alter(reflect.ValueOf(&r).Elem(), "request", func(string) bool { next++; return next == i+1 })
		if bytes.Equal(r.Digest(), base.Digest()) {
			t.Errorf("%s does not matter to the digest", place)
		}
	}
}

// alter walks all that v holds and changes each place for which do says so.
func alter(v reflect.Value, place string, do func(place string) bool) {
	if at, ok := v.Interface().(time.Time); ok {
		if do(place) {
			v.Set(reflect.ValueOf(at.Add(time.Nanosecond)))
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			alter(v.Field(i), place+"."+v.Type().Field(i).Name, do)
		}
	case reflect.Slice:
		for i := range v.Len() {
			alter(v.Index(i), fmt.Sprintf("%s[%d]", place, i), do)
		}
		if do(place + "[]") {
			v.Set(reflect.Append(v, reflect.New(v.Type().Elem()).Elem()))
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			if do(place + "[" + key.String() + "]") {
				v.SetMapIndex(key, reflect.ValueOf("changed"))
			}
		}
		if do(place + "[]") {
			v.SetMapIndex(reflect.ValueOf("new"), reflect.ValueOf(""))
		}
	case reflect.Pointer:
		if !v.IsNil() {
			alter(v.Elem(), place, do)
		} else if do(place) {
			v.Set(reflect.New(v.Type().Elem()))
		}
	case reflect.String:
		if do(place) {
			v.SetString(v.String() + "x")
		}
	case reflect.Bool:
		if do(place) {
			v.SetBool(!v.Bool())
		}
	case reflect.Int:
		if do(place) {
			v.SetInt(v.Int() + 1)
		}
	case reflect.Uint8:
		if do(place) {
			v.SetUint(v.Uint() + 1)
		}
	default:
		panic("no way to alter " + place)
	}
}

// drawRequest draws a valid request or, where sloppy, one that may break any
// rule that a Go value can break on its way through JSON.
func drawRequest(t *rapid.T, sloppy bool) jetpost.Request {
	pick := func(label string, good, bad []string) string {
		if sloppy {
			good = append(append([]string{}, good...), bad...)
		}
		return rapid.SampledFrom(good).Draw(t, label)
	}
	number := func(label string, low, high int) int {
		if sloppy {
			low, high = low-1, high+1
		}
		return rapid.IntRange(low, high).Draw(t, label)
	}
	words := rapid.StringOfN(rapid.RuneFrom([]rune("ab é<&\u2028\U0001F680\n\t\ufffd\"\\/~")), 0, 20, -1)
	hidden := []string{"", "\x00", "\r\n", "\u0085"}
	postID := func(label string) string {
		return pick(label, []string{"", "1", "1234567890123456789"}, []string{"x", "12345678901234567890"})
	}
	instant := func(label string, day int) time.Time {
		zone := time.FixedZone("", rapid.IntRange(-12, 14).Draw(t, label+" zone")*3600)
		return time.Date(2026, 12, day, 9, 0, 0, rapid.IntRange(0, 999_999_999).Draw(t, label), zone)
	}
	r := jetpost.Request{
		Version: number("version", 0, 0),
		Account: pick("account", []string{"a", "acme_2-x"}, []string{"", "A", "a.b", "*"}),
		ID:      pick("id", []string{"", "a", "A_b-9"}, []string{"a b", "é", strings.Repeat("x", 129)}),
		Posts:   []jetpost.Post{},
	}
	for i := range number("posts", 1, 3) {
		p := jetpost.Post{
			Text:          pick("text", []string{"x", "x " + words.Draw(t, "words")}, append(hidden, " ")),
			QuotePostID:   postID("quote"),
			CommunityID:   postID("community"),
			ReplySettings: pick("reply settings", []string{"", "following", "verified"}, []string{"everyone"}),
			MadeWithAI:    rapid.Bool().Draw(t, "ai"),
		}
		if i == 0 || sloppy {
			p.InReplyToPostID = postID("parent")
		}
		for range number("media", 0, 4) {
			m := jetpost.Media{Alt: pick("alt", []string{"", "A cat"}, hidden)}
			switch rapid.IntRange(0, 2).Draw(t, "source") {
			case 0:
				m.URL = pick("url", []string{"https://example.com/a?b=%20"}, []string{"", "http://example.com", "https://", "https://u:p@example.com", ":"})
			case 1:
				m.Data = rapid.SliceOfN(rapid.Byte(), number("size", 1, 9), -1).Draw(t, "data")[:1]
			default:
				m.Object = pick("object", []string{"a/b.png"}, []string{"", "a b", "é"})
			}
			p.Media = append(p.Media, m)
		}
		if len(p.Media) > 0 && !sloppy {
			p.QuotePostID = ""
		}
		alone := len(p.Media) == 0 && p.QuotePostID == ""
		if (alone || sloppy) && rapid.Bool().Draw(t, "poll?") {
			p.Poll = &jetpost.Poll{Options: []string{}, DurationMinutes: number("minutes", 5, 10_080)}
			for range number("options", 2, 4) {
				p.Poll.Options = append(p.Poll.Options, pick("option", []string{"this", "that"}, hidden))
			}
		}
		r.Posts = append(r.Posts, p)
	}
	if rapid.Bool().Draw(t, "publish?") {
		r.PublishAt = instant("publish", number("day", 2, 8))
	}
	if rapid.Bool().Draw(t, "expires?") {
		r.ExpiresAt = instant("expires", 10-number("days", 0, 0)*9)
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "metadata") {
		if r.Metadata == nil {
			r.Metadata = map[string]string{}
		}
		r.Metadata[pick("key", []string{"k", "a/b~c"}, hidden)+fmt.Sprint(i)] = pick("value", []string{"", "v"}, hidden)
	}
	return r
}

func TestDecodeAndValidateAgree(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t, true)
		body, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		_, decodeErr := jetpost.Decode("", body)
		if diff := cmp.Diff(r.Validate(), decodeErr); diff != "" {
			t.Fatalf("%s\n(-Validate +Decode):\n%s", body, diff)
		}
	})
}

func TestNotationDoesNotMatter(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t, false)
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var fields map[string]any
		if err := json.Unmarshal(body, &fields); err != nil {
			t.Fatal(err)
		}
		subject := rapid.SampledFrom([]string{"", r.Account}).Draw(t, "subject")
		if subject != "" && rapid.Bool().Draw(t, "account in the subject alone") {
			delete(fields, "account")
		}
		for _, name := range []string{"publish_at", "expires_at"} {
			if s, ok := fields[name].(string); ok {
				fields[name] = inZone(t, s)
			}
		}
		var other bytes.Buffer
		rewrite(t, &other, fields)
		got, err := jetpost.Decode(subject, other.Bytes())
		if err != nil {
			t.Fatalf("%s: %v", other.Bytes(), err)
		}
		if !bytes.Equal(got.Digest(), r.Digest()) {
			t.Fatalf("digests differ:\n%s\n%s", body, other.Bytes())
		}
	})
}

func inZone(t *rapid.T, s string) string {
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t.Fatal(err)
	}
	return at.In(time.FixedZone("", rapid.IntRange(-12*60, 14*60).Draw(t, "zone")*60)).Format(time.RFC3339Nano)
}

// rewrite encodes v with its keys in any order, and white space and escapes as
// no encoder would have them.
func rewrite(t *rapid.T, b *bytes.Buffer, v any) {
	blank := func() { b.WriteString(rapid.SampledFrom([]string{"", " ", "\r\n\t"}).Draw(t, "blank")) }
	blank()
	defer blank()
	switch v := v.(type) {
	case map[string]any:
		var keys []string
		for key := range v {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		b.WriteByte('{')
		for i, key := range rapid.Permutation(keys).Draw(t, "keys") {
			if i > 0 {
				b.WriteByte(',')
			}
			rewrite(t, b, key)
			b.WriteByte(':')
			rewrite(t, b, v[key])
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			rewrite(t, b, item)
		}
		b.WriteByte(']')
	case string:
		b.WriteByte('"')
		for _, unit := range utf16.Encode([]rune(v)) {
			fmt.Fprintf(b, `\u%04x`, unit)
		}
		b.WriteByte('"')
	default:
		if err := json.NewEncoder(b).Encode(v); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("", []byte(full))
	f.Add("acme", []byte(`{"posts":[{"text":"hi"}]}`))
	f.Add("acme", []byte(`{"version":2,"id":"a"}`))
	f.Add("ACME", []byte(`{"id":null,"posts":[{"txet":"\ud83d","media":[{"url":"http://x"}]}],"metadata":{"~/":1}}`))
	f.Add("", []byte("{\"posts\":[7],\n}"))
	f.Fuzz(func(t *testing.T, subject string, body []byte) {
		r, err := jetpost.Decode(subject, body)
		if invalid, ok := errors.AsType[*jetpost.InvalidError](err); ok {
			if n := len(invalid.Problems); n == 0 || n > jetpost.MaxProblems+1 {
				t.Fatalf("%d problems", n)
			}
			for _, p := range invalid.Problems {
				if p.Message == "" || p.Pointer != "" && p.Pointer[0] != '/' || !utf8.ValidString(p.Pointer+p.Message) {
					t.Fatalf("problem %+q", p)
				}
			}
			return
		}
		if newer, ok := errors.AsType[*jetpost.NewerVersionError](err); ok {
			if newer.Version <= jetpost.Version || newer.Account == "" {
				t.Fatalf("%+v", newer)
			}
			return
		}
		if err != nil {
			t.Fatalf("error of no known type: %v", err)
		}
		if err := r.Validate(); err != nil {
			t.Fatalf("accepted, but not valid: %v", err)
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		r2, err := jetpost.Decode("", again)
		if err != nil {
			t.Fatalf("encoded again: %v", err)
		}
		if !bytes.Equal(r.Digest(), r2.Digest()) {
			t.Fatalf("digest changed on the way through\n%s", again)
		}
	})
}

func TestCheckAccount(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "acme-2_b", strings.Repeat("x", 63)} {
		if err := jetpost.CheckAccount(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "Acme", "a b", "a.b", "a\n", "é", strings.Repeat("x", 64)} {
		if err := jetpost.CheckAccount(name); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
}

// TestDecodeAsPeopleSend: a byte order mark is skipped, and all line ends become LF.
func TestDecodeAsPeopleSend(t *testing.T) {
	t.Parallel()
	r, err := jetpost.Decode("acme", []byte("\uFEFF"+`{"posts": [{"text": "one\r\ntwo\rthree\n", "media": [{"object": "x", "alt": "a\r\nb"}]}]}`+"\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.Posts[0].Text+"|"+r.Posts[0].Media[0].Alt, "one\ntwo\nthree\n|a\nb"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	lf, err := jetpost.Decode("acme", []byte(`{"posts": [{"text": "one\ntwo\nthree\n", "media": [{"object": "x", "alt": "a\nb"}]}]}`))
	if err != nil || !bytes.Equal(lf.Digest(), r.Digest()) {
		t.Errorf("the same text with other line ends is another request: %v", err)
	}
	if _, err := jetpost.Decode("acme", []byte(`{"posts": [{"text": "one\ufefftwo"}]}`)); err == nil {
		t.Error("a byte order mark within a text was taken")
	}
}
