package xsim

import (
	"strings"
	"testing"
)

func TestWeigh(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		"":                    0,
		"Hello, world! 👋":     16,
		"字":                   2,
		"“quoted” – dash":     15,
		"👨‍👩‍👧‍👦":             2,
		"👍🏽":                  2,
		"🇩🇪🇫🇷":                4,
		"1️⃣":                 2,
		"123":                 3,
		"https://example.com": 23,
		"http://a.co/" + strings.Repeat("x", 500): 23,
		"see example.com/a.":                      28,
		"v1.2.3 and file.go":                      18,
		"me@example.com":                          14,
		"https://localhost":                       17,
		"a https://example.com, b":                28,
	} {
		if got := weigh(text); got != want {
			t.Errorf("%q weighs %d, want %d", text, got, want)
		}
	}
}

func TestRingKeepsTheLast(t *testing.T) {
	t.Parallel()
	var r ring[int]
	for i := range maxRecords + 3 {
		r.add(i, maxRecords)
	}
	list := r.list()
	if len(list) != maxRecords || list[0] != 3 || list[maxRecords-1] != maxRecords+2 {
		t.Errorf("%d entries from %d to %d", len(list), list[0], list[len(list)-1])
	}
}
