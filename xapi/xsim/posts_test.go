package xsim_test

import (
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost/xapi/xsim"
)

const tooLong = "Your Tweet text is too long. For more information on how Twitter determines text length see https://github.com/twitter/twitter-text."

func invalidRequest(parameters, message string) string {
	if parameters != "" {
		parameters = `"parameters":{` + parameters + `},`
	}
	return `{"errors":[{` + parameters + `"message":"` + message + `"}],"title":"Invalid Request",` +
		`"detail":"One or more parameters to your request was invalid.","type":"https://api.x.com/2/problems/invalid-request"}`
}

func TestCreatePost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.create(b.grant, `{"text":"Hello"}`)
	posts := b.x.Posts("ann")
	if len(posts) != 1 || posts[0].Text != "Hello" || posts[0].AuthorID != b.grant.ID || len(posts[0].ID) != 19 {
		t.Fatalf("%+v", posts)
	}
	b.want(r, 201, `{"data":{"id":"`+posts[0].ID+`","text":"Hello","edit_history_post_ids":["`+posts[0].ID+`"]}}`)
	b.wantViolations()
}

func TestCreatePostMalformed(t *testing.T) {
	t.Parallel()
	const undefined = ": is not defined in the schema and the schema does not allow additional properties"
	exclusive := invalidRequest("", "You can only provide one of poll or quote_tweet_id or direct_message_deep_link or media or card_uri.")
	notObject := invalidRequest("", "Request body must be a JSON object.")
	for _, test := range []struct{ name, body, want string }{
		{"array", `[]`, notObject},
		{"bad_enum", `{"text":"a","reply_settings":"everyone"}`, ""},
		{"bad_media_id", `{"media":{"media_ids":["3_12"]}}`, invalidRequest(`"media.media_ids":["3_12"]`, "Your media IDs are invalid.")},
		{"bad_quote_id", `{"text":"a","quote_tweet_id":""}`, invalidRequest(`"quote_tweet_id":[""]`, "Your quote tweet ID is invalid.")},
		{"bad_reply_id", `{"text":"a","reply":{"in_reply_to_tweet_id":"x"}}`, invalidRequest(`"reply.in_reply_to_tweet_id":["x"]`, "Your reply tweet ID is invalid.")},
		{"bad_tagged_id", `{"media":{"media_ids":["1"],"tagged_user_ids":["ann"]}}`, invalidRequest(`"media.tagged_user_ids":["ann"]`, "Your tagged user IDs are invalid.")},
		{"empty_text", `{"text":" "}`, ""},
		{"five_media", `{"media":{"media_ids":["1","2","3","4","5"]}}`, ""},
		{"forbidden_character", `{"text":"a\ufeff"}`, ""},
		{"missing_reply_id", `{"text":"a","reply":{}}`, ""},
		{"nested_unknown", `{"text":"a","reply":{"in_reply_to_tweet_id":"1","batch":true}}`, invalidRequest(`"reply.batch":["true"]`, "$.reply.batch"+undefined)},
		{"not_json", `text=a`, notObject},
		{"null", `{"text":"a","reply":null}`, ""},
		{"number_id", `{"text":"a","quote_tweet_id":12}`, ""},
		{"poll_and_card", `{"text":"a","card_uri":"c","poll":{"options":["a","b"],"duration_minutes":5}}`, exclusive},
		{"poll_too_short", `{"text":"a","poll":{"options":["a","b"],"duration_minutes":4}}`, ""},
		{"poll_one_option", `{"text":"a","poll":{"options":["a"],"duration_minutes":5}}`, ""},
		{"two_values", `{"text":"a"}{"text":"b"}`, notObject},
		{"unknown", `{"text":"a","idempotency_key":"1"}`, invalidRequest(`"idempotency_key":["1"]`, "$.idempotency_key"+undefined)},
		{"wrong_case", `{"Text":"a"}`, invalidRequest(`"Text":["a"]`, "$.Text"+undefined)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.want(b.create(b.grant, test.body), 400, test.want)
			b.wantViolations("malformed_request")
			if n := len(b.x.Posts("")); n != 0 {
				t.Errorf("%d posts were made", n)
			}
		})
	}
	t.Run("wrong_content_type", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.want(b.do(b.grant, "POST", "/2/tweets", "text/plain", `{"text":"a"}`), 400, notObject)
	})
}

func TestCreatePostAllFields(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.want(b.create(b.grant, `{"text":"a","community_id":"1","reply_settings":"following","made_with_ai":true,"paid_partnership":false,
		"share_with_followers":true,"for_super_followers_only":false,"geo":{"place_id":"p"},
		"poll":{"options":["yes","no"],"duration_minutes":60,"reply_settings":"verified"}}`), 201, "")
	b.wantViolations()
}

func TestCreatePostLength(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.post(b.grant, strings.Repeat("a", 280), "")
	b.want(b.create(b.grant, `{"text":"`+strings.Repeat("a", 281)+`"}`), 403, problem403(tooLong))
	b.x.TooLongStatus = 400
	b.want(b.create(b.grant, `{"text":"`+strings.Repeat("字", 141)+`"}`), 400, "")
	rich := b.account(xsim.NewAccount{Handle: "rich", SubscriptionType: xsim.SubscriptionPremium})
	b.post(rich, strings.Repeat("b", 281), "")
	b.wantViolations()
}

func TestCreatePostRules(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.want(b.create(b.grant, `{"text":"$AAA and $BBB"}`), 403, problem403("Posts are limited to a maximum of one cashtag ($SYMBOL)"))
	b.post(b.grant, "$AAA costs $5", "")
	b.want(b.create(b.grant, `{"text":"a","edit_options":{"previous_post_id":"1"}}`), 403, "")
	b.want(b.create(b.grant, `{"text":"a","nullcast":true}`), 403, "")
	own := b.post(b.grant, "own", "")
	b.want(b.create(b.grant, `{"text":"look","quote_tweet_id":"`+own+`"}`), 403, problem403("Quoting this post is not allowed because you have not been mentioned or are not part of the conversation thread of the post you are quoting."))
	b.want(b.create(b.grant, `{"text":"look","quote_tweet_id":"1"}`), 400, invalidRequest(`"quote_tweet_id":["1"]`, "Your quote tweet ID is invalid."))
	b.x.AllowQuotes = true
	b.want(b.create(b.grant, `{"text":"look","quote_tweet_id":"`+own+`"}`), 201, "")
	b.wantViolations()
}

func TestReplyRule(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bob := b.account(xsim.NewAccount{Handle: "bob"})
	theirs := b.post(bob, "hello all", "")
	reply := func(text, to string) result {
		return b.create(b.grant, `{"text":"`+text+`","reply":{"in_reply_to_tweet_id":"`+to+`"}}`)
	}
	b.want(reply("hi", theirs), 403, problem403("Reply to this conversation is not allowed because you have not been mentioned or otherwise engaged by the author of the post you are replying to."))
	b.want(reply("hi", b.post(bob, "hello @Ann!", "")), 201, "")
	b.x.AllowReplies = true
	b.want(reply("hi there", theirs), 201, "")

	gone := problem403("You attempted to reply to a Tweet that is deleted or not visible to you.")
	mine := b.post(b.grant, "mine", "")
	b.want(b.do(b.grant, "DELETE", "/2/tweets/"+mine, "", ""), 200, `{"data":{"deleted":true}}`)
	b.want(reply("part 2", mine), 403, gone)
	b.want(reply("part 2", "12"), 403, gone)
	b.wantViolations()
}

func TestDelete(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bob := b.account(xsim.NewAccount{Handle: "bob"})
	id := b.post(b.grant, "a", "")
	b.want(b.do(bob, "DELETE", "/2/tweets/"+id, "", ""), 403, problem403("You are not authorized to delete this post."))
	b.want(b.do(b.grant, "DELETE", "/2/tweets/"+id, "", ""), 200, `{"data":{"deleted":true}}`)
	b.want(b.do(b.grant, "DELETE", "/2/tweets/"+id, "", ""), 200, `{"data":{"deleted":false}}`)
	b.want(b.do(b.grant, "DELETE", "/2/tweets/x", "", ""), 400, "")
	if n := len(b.x.Posts("")); n != 0 {
		t.Errorf("%d posts left", n)
	}
}

var duplicate = problem403("You are not allowed to create a Tweet with duplicate content.")

func TestDuplicateFilter(t *testing.T) {
	t.Parallel()
	t.Run("attempt", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.post(b.grant, "once", "")
		b.want(b.create(b.grant, `{"text":"once"}`), 403, duplicate)
		b.wantViolations("duplicate_attempt")
		bob := b.account(xsim.NewAccount{Handle: "bob"})
		b.post(bob, "once", "") // the filter checks one account
		b.wantViolations("duplicate_attempt")
	})
	t.Run("deleted_still_counts", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		id := b.post(b.grant, "once", "")
		b.do(b.grant, "DELETE", "/2/tweets/"+id, "", "")
		b.want(b.create(b.grant, `{"text":"once"}`), 403, duplicate)
		b.wantViolations() // nothing would have been there twice
	})
	t.Run("equal_parts_of_a_thread", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		root := b.post(b.grant, "root", "")
		part := b.post(b.grant, "…", root)
		b.want(b.create(b.grant, `{"text":"…","reply":{"in_reply_to_tweet_id":"`+part+`"}}`), 403, duplicate)
		b.wantViolations() // another place: refused, but nobody's fault
	})
	t.Run("expires", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.x.DuplicateWindow = time.Hour
		b.post(b.grant, "once", "")
		b.clock.pass(time.Hour)
		b.post(b.grant, "once", "")
		b.wantViolations("double_post")
	})
	t.Run("normal_form", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.post(b.grant, "caf\u00e9", "")
		b.want(b.create(b.grant, `{"text":"cafe\u0301"}`), 403, duplicate)
	})
	t.Run("refused_first_attempt", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.faults(xsim.Fault{Kind: xsim.FaultStatus, Status: 503, Times: 1})
		b.want(b.create(b.grant, `{"text":"once"}`), 503, "")
		b.post(b.grant, "once", "")
		b.wantViolations()
	})
}

func TestDoublePost(t *testing.T) {
	t.Parallel()
	t.Run("allowed", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.x.DuplicateWindow, b.x.AllowEqualPosts = -1, true
		b.post(b.grant, "again", "")
		b.post(b.grant, "again", "")
		b.wantViolations()
	})
	t.Run("media_only", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		// A new upload of the same bytes escapes X's filter, but not the call log.
		for range 2 {
			b.want(b.create(b.grant, `{"text":"","media":{"media_ids":["`+b.upload(b.grant, pngBytes)+`"]}}`), 201, "")
		}
		b.wantViolations("double_post")
		b.want(b.create(b.grant, `{"media":{"media_ids":["`+b.upload(b.grant, gifBytes)+`"]}}`), 201, "")
		b.wantViolations("double_post")
	})
	t.Run("other_place", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.x.DuplicateWindow = -1
		one, two := b.post(b.grant, "one", ""), b.post(b.grant, "two", "")
		b.post(b.grant, "#tag", one)
		b.post(b.grant, "#tag", two)
		b.post(b.grant, "#tag", "")
		b.wantViolations()
	})
	t.Run("thread_twice", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.x.DuplicateWindow = -1
		for range 2 {
			b.post(b.grant, "part 2", b.post(b.grant, "part 1", ""))
		}
		b.wantViolations("double_post", "double_post")
	})
}
