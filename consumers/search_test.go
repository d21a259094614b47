package consumers

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// TestSearch: a post is found in spite of the changes that X makes to its text.
func TestSearch(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	long := strings.Repeat("many words, ", 60)
	short := func(expanded string) []xapi.URL {
		return []xapi.URL{{Short: "https://t.co/abcdefghij", Expanded: expanded}}
	}
	tests := []struct {
		name   string
		text   string
		parent string
		quotes string
		media  []string
		shown  xapi.UserPost
		want   string
	}{
		{name: "equal", text: "hello", shown: xapi.UserPost{Text: "hello"}, want: foundLive},
		{name: "another", text: "hello", shown: xapi.UserPost{Text: "good morning"}, want: foundAbsent},
		{name: "another link", text: "hello a.com", shown: xapi.UserPost{Text: "good morning https://t.co/abcdefghij", URLs: short("http://a.com")}, want: foundAbsent},
		{name: "the mention that a reply begins with", text: "thanks", parent: "7", shown: xapi.UserPost{Text: "@some_one @else thanks", InReplyToPostID: "7"}, want: foundLive},
		{name: "a mention in both", text: "@else thanks", parent: "7", shown: xapi.UserPost{Text: "@some_one @else thanks", InReplyToPostID: "7"}, want: foundLive},
		{name: "a mention that is no reply's", text: "thanks", shown: xapi.UserPost{Text: "@else thanks"}, want: foundAbsent},
		{name: "a link that makes a quote", text: "Look https://x.com/a/status/77", shown: xapi.UserPost{Text: "Look https://t.co/abcdefghij", QuotedPostID: "77", URLs: short("https://twitter.com/a/status/77")}, want: foundLive},
		{name: "a link with a query that makes a quote", text: "Look https://x.com/a/status/77?s=20", shown: xapi.UserPost{Text: "Look https://t.co/abcdefghij", QuotedPostID: "77", URLs: short("https://x.com/a/status/77")}, want: foundLive},
		{name: "a link alone that makes a quote", text: "https://x.com/a/status/77", shown: xapi.UserPost{Text: "https://t.co/abcdefghij", QuotedPostID: "77", URLs: short("https://x.com/a/status/77")}, want: foundLive},
		{name: "a quote of another post", text: "Look https://x.com/a/status/77", shown: xapi.UserPost{Text: "Look https://t.co/abcdefghij", QuotedPostID: "78", URLs: short("https://x.com/a/status/78")}, want: foundNothing},
		{name: "a quote", text: "Look", quotes: "77", shown: xapi.UserPost{Text: "Look https://t.co/abcdefghij", QuotedPostID: "77", URLs: short("https://x.com/a/status/77")}, want: foundLive},
		{name: "a quote whose link its author wrote", text: "Look https://x.com/a/status/77", quotes: "77", shown: xapi.UserPost{Text: "Look https://t.co/abcdefghij", QuotedPostID: "77", URLs: short("https://x.com/a/status/77")}, want: foundLive},
		{name: "a quote without its reference", text: "Look", quotes: "77", shown: xapi.UserPost{Text: "Look https://t.co/abcdefghij", URLs: short("https://x.com/a/status/77")}, want: foundNothing},
		{name: "a host in capitals", text: "go HTTPS://Example.COM/Path now", shown: xapi.UserPost{Text: "go https://t.co/abcdefghij now", URLs: short("https://example.com/Path")}, want: foundLive},
		{name: "a bare host in capitals", text: "go Example.COM, now", shown: xapi.UserPost{Text: "go https://t.co/abcdefghij, now", URLs: short("http://example.com/")}, want: foundLive},
		{name: "a host in punycode", text: "see https://bücher.de/x", shown: xapi.UserPost{Text: "see https://t.co/abcdefghij", URLs: short("https://xn--bcher-kva.de/x")}, want: foundNothing},
		{name: "a path that X escapes", text: "see https://example.com/é", shown: xapi.UserPost{Text: "see https://t.co/abcdefghij", URLs: short("https://example.com/%C3%A9")}, want: foundNothing},
		{name: "a port that X drops", text: "see https://example.com:443/", shown: xapi.UserPost{Text: "see https://t.co/abcdefghij", URLs: short("https://example.com")}, want: foundNothing},
		{name: "a short link that X resolves", text: "see https://t.co/0123456789", shown: xapi.UserPost{Text: "see https://t.co/abcdefghij", URLs: short("https://example.com/a")}, want: foundNothing},
		{name: "a link that X does not tell", text: "see example.com", shown: xapi.UserPost{Text: "see https://t.co/abcdefghij"}, want: foundNothing},
		{name: "a link alone that X does not tell", text: "example.com", shown: xapi.UserPost{Text: "https://t.co/abcdefghij"}, want: foundNothing},
		{name: "media whose link X does not tell", text: "look", media: []string{"5"}, shown: xapi.UserPost{Text: "look https://t.co/abcdefghij", MediaKeys: []string{"3_5"}}, want: foundNothing},
		{name: "media alone whose link X does not tell", media: []string{"5"}, shown: xapi.UserPost{Text: "https://t.co/abcdefghij", MediaKeys: []string{"3_5"}}, want: foundNothing},
		{name: "media alone whose keys X does not tell", media: []string{"5"}, shown: xapi.UserPost{Text: "https://t.co/abcdefghij"}, want: foundNothing},
		{name: "a long post of which X tells the beginning", text: long, shown: xapi.UserPost{Text: long[:270] + "… https://t.co/abcdefghij", URLs: short("https://x.com/i/web/status/100")}, want: foundNothing},
		{name: "the beginning, cut within a link", text: long[:270] + "example.com/abc" + long, shown: xapi.UserPost{Text: long[:270] + "https://t.co/abc…"}, want: foundNothing},
		{name: "the beginning of another long post", text: long, shown: xapi.UserPost{Text: "o" + long[:270] + "… https://t.co/abcdefghij", URLs: short("https://x.com/i/web/status/100")}, want: foundAbsent},
		{name: "invisible characters", text: "hel\u200blo\u200d", shown: xapi.UserPost{Text: "hello"}, want: foundNothing},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			post := store.PostRecord{ParentID: test.parent, SentAt: at, MediaIDs: test.media}
			ours := jetpost.Post{Text: test.text, QuotePostID: test.quotes}
			anchor := store.Anchor{XUserID: "1", PostID: "9", SentAt: at.Add(-time.Hour)}
			s := newSearch(timing{}, post, ours, anchor)
			test.shown.ID, test.shown.CreatedAt = "100", at.Add(time.Second).Truncate(time.Second)
			testkit.Equal(t, "last page", s.add(xapi.UserPostsPage{Posts: []xapi.UserPost{test.shown, {ID: "9", CreatedAt: anchor.SentAt}}}), true)
			f := s.judge(nil)
			testkit.Equal(t, "verdict", f.verdict, test.want)
		})
	}
}

// TestSearchPages: a live post is found even if the anchor post is further back than the
// check goes, and if X shows the post on two pages. Such a check does not prove absence.
func TestSearchPages(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	ours := xapi.UserPost{ID: "100", Text: "hello", CreatedAt: at}
	pages := []xapi.UserPostsPage{
		{Posts: []xapi.UserPost{{ID: "101", Text: "later", CreatedAt: at.Add(time.Second)}, ours}, NextToken: "a"},
		{NextToken: "b"},
		{Posts: []xapi.UserPost{ours, {ID: "98", Text: "earlier", CreatedAt: at.Add(-time.Hour)}}, NextToken: "c"},
	}
	tests := []struct {
		name       string
		owned      []string
		incomplete bool
		want       string
	}{
		{"live", nil, false, foundLive},
		{"recorded for another", []string{"100"}, false, foundNothing},
		{"with errors", nil, true, foundNothing},
	}
	for _, test := range tests {
		s := newSearch(timing{}, store.PostRecord{SentAt: at}, jetpost.Post{Text: "hello"}, store.Anchor{PostID: "9", SentAt: at.Add(-24 * time.Hour)})
		for i, page := range pages {
			page.Incomplete = test.incomplete
			testkit.Equal(t, "last page", s.add(page), false)
			if i == 1 {
				testkit.Equal(t, "before all was shown", s.judge(nil).verdict, foundNothing)
			}
		}
		testkit.Equal(t, test.name, s.judge(test.owned).verdict, test.want)
	}
}

// TestJudgeReadWindow: a window of the reads does not hold posts, not even if it is the
// app's.
func TestJudgeReadWindow(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	limit := &xapi.RateLimitError{Window: xapi.Window{Kind: xapi.WindowApp24h}, Until: now.Add(time.Hour), Err: &xapi.APIError{Status: http.StatusTooManyRequests}}
	v := judgeRead(limit, situation{now: now})
	testkit.Equal(t, "verdict", v.String(), "hold")
	testkit.Equal(t, "code", v.reason.Code, jetpost.CodeRateLimited)
	testkit.Equal(t, "until", v.reason.Until, limit.Until)

	capped := judgeRead(&xapi.AppError{Reason: xapi.AppUsageCapped, Err: &xapi.APIError{Status: http.StatusTooManyRequests}}, situation{now: now})
	testkit.Equal(t, "verdict of a cap of reads", capped.String(), "hold")
	credits := judgeRead(&xapi.AppError{Reason: xapi.AppCreditsDepleted, Err: &xapi.APIError{Status: http.StatusPaymentRequired}}, situation{now: now})
	testkit.Equal(t, "verdict without credits, which posts need too", credits.String(), "pause")
}
