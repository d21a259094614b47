package tweettext_test

import (
	"strings"
	"testing"

	"golang.org/x/text/unicode/norm"

	"github.com/jetpost/jetpost/xapi/tweettext"
)

// seeds are texts from which a fuzzer comes quickly to the corners.
func seeds() []string {
	return []string{
		"", "Hello, world! 👋", "see http://example.com/a_(b)?c=d. And example.org!", "https://t.co/abc/def",
		"日本語example.comを見て。http://例え.みんな/path", "cafe\u0301.com/e\u0301 \u1112\u1161\u11AB", "👨‍👩‍👧‍👦👩🏽‍🚒🇩🇪🇦🇦1️⃣🏴‍☠️🧑‍💻",
		"$TWTR $BRK.B a$b \u200Eexample.com\u202C", "a.com_b.com-c.com..d.com@e.com#f.com", "\xFF\uFEFF\uFFFE.com",
		"One.\n\nTwo two. Three?\r\nFour", strings.Repeat("a", 300) + "@b.com", strings.Repeat("e\u0301\u0323", 40), "a.com/(((b.com/(c)d.com",
	}
}

func FuzzMeasure(f *testing.F) {
	for _, seed := range seeds() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m := tweettext.Measure(text)
		if m.Weight < 0 || (m.Weight == 0) != (text == "") {
			t.Fatalf("%q weighs %d", text, m.Weight)
		}
		normal := norm.NFC.String(text)
		if n := tweettext.Measure(normal); n.Weight != m.Weight || n.URLs != m.URLs || n.Cashtags != m.Cashtags {
			t.Fatalf("%q measures %+v, and in NFC %+v", text, m, n)
		}
		urls := tweettext.URLs(text)
		if len(urls) != m.URLs || m.Weight < tweettext.URLWeight*len(urls) {
			t.Fatalf("%q measures %+v, and has %d links", text, m, len(urls))
		}
		end := 0
		for _, r := range urls {
			if r.Start < end || r.End <= r.Start || r.End > len(text) {
				t.Fatalf("%q: link at %+v, and the one before it ends at %d", text, r, end)
			}
			if end = r.End; !strings.Contains(text[r.Start:r.End], ".") {
				t.Fatalf("%q is no link", text[r.Start:r.End])
			}
		}
	})
}

func FuzzSplit(f *testing.F) {
	for _, seed := range seeds() {
		f.Add(seed, byte(0))
		f.Add(seed, byte(255))
	}
	f.Fuzz(func(t *testing.T, text string, above byte) {
		limit := tweettext.URLWeight + int(above)
		parts, err := tweettext.Split(text, limit)
		if err != nil {
			if len(parts) > 0 {
				t.Fatalf("an error, and parts: %v", err)
			}
			return
		}
		checkSplit(t, text, limit, parts)
	})
}
