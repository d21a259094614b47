package tweettext_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"

	"github.com/jetpost/jetpost/xapi/tweettext"
)

func TestSplit(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		text  string
		limit int
		want  []string
	}{
		{"at paragraphs", "One one one.\nTwo two.\n\nThree three three.", 40, []string{"One one one.\nTwo two.", "Three three three."}},
		{"at paragraphs of CRLF", "One one one.\r\n\r\nTwo two two two.", 24, []string{"One one one.", "Two two two two."}},
		{"at sentences", "First one here. The second one is long.", 30, []string{"First one here.", "The second one is long."}},
		{"at sentences, closed", "He said: \"So it is!\" And then he went.", 30, []string{"He said: \"So it is!\"", "And then he went."}},
		{"at sentences, East Asian", "これは文です。これも文です。これは三つ目の文です。", 30, []string{"これは文です。これも文です。", "これは三つ目の文です。"}},
		{"never before a closing quote", "「これはね長い文です。」と言った", 23, []string{"「これはね長い文で", "す。」と言った"}},
		{"at lines", "roses are reddish\nviolets are blue and so", 30, []string{"roses are reddish", "violets are blue and so"}},
		{"at words", "these are some words without an end", 24, []string{"these are some words", "without an end"}},
		{"at words, East Asian", strings.Repeat("漢", 20), 23, []string{strings.Repeat("漢", 11), strings.Repeat("漢", 9)}},
		{"before no small kana", strings.Repeat("か", 11) + "っと", 23, []string{strings.Repeat("か", 10), "かっと"}},
		{"a heading alone is too little", "Heading\n\nthese are some words without a full stop", 40, []string{"Heading\n\nthese are some words without a", "full stop"}},
		{"long word", strings.Repeat("a", 50), 23, []string{strings.Repeat("a", 23), strings.Repeat("a", 23), "aaaa"}},
		{"long word behind a short one", "b " + strings.Repeat("a", 24), 23, []string{"b", strings.Repeat("a", 23), "a"}},
		{"word of just the limit", "b " + strings.Repeat("a", 23), 23, []string{"b", strings.Repeat("a", 23)}},
		{"links stay whole", "aaa http://example.com/" + strings.Repeat("x", 99) + " bbb", 23, []string{"aaa", "http://example.com/" + strings.Repeat("x", 99), "bbb"}},
		{"a link and its comma", "see example.com, please", 24, []string{"see", "example.com,", "please"}},
		{"links without spaces", "見てexample.comを見て", 25, []string{"見て", "example.comを", "見て"}},
		{"families stay whole", strings.Repeat("👨‍👩‍👧‍👦", 12), 23, []string{strings.Repeat("👨‍👩‍👧‍👦", 11), "👨‍👩‍👧‍👦"}},
		{"newer emoji stay whole", strings.Repeat("🧑‍💻", 5), 23, []string{strings.Repeat("🧑‍💻", 4), "🧑‍💻"}},
		{"flags stay whole", "a" + strings.Repeat("🇩🇪", 12), 24, []string{"a" + strings.Repeat("🇩🇪", 11), "🇩🇪"}},
		{"unknown flags stay whole", "aa" + strings.Repeat("🇦🇦", 6), 24, []string{"aa" + strings.Repeat("🇦🇦", 5), "🇦🇦"}},
		{"marks stay with their letter", strings.Repeat("q\u0323", 12), 23, []string{strings.Repeat("q\u0323", 11), "q\u0323"}},
		{"a full no-break line", "aaaaaaaaaaaa\u00A0bbbbbbbbbbb", 23, []string{"aaaaaaaaaaaa\u00A0bbbbbbbbbb", "b"}},
		{"space around", "  a b \n", 280, []string{"a b"}},
		{"space under a mark is something", " \u0301a", 280, []string{" \u0301a"}},
		{"space under a mark ends no word", strings.Repeat("a", 20) + " \u0301bbbb", 23, []string{strings.Repeat("a", 20) + " \u0301b", "bbb"}},
		{"fits", "a  b\n\nc", 280, []string{"a  b\n\nc"}},
		{"nothing", "", 280, nil},
		{"only space", " \n\t\u3000", 280, nil},
		{"the whole text weighs the limit", strings.Repeat("a", 280), 280, []string{strings.Repeat("a", 280)}},
		{"one too many", strings.Repeat("a", 281), 280, []string{strings.Repeat("a", 280), "a"}},
		{"NFC", "cafe\u0301", 280, []string{"caf\u00E9"}},
		// The second part would begin with a link that the whole text has not:
		// it weighs more there, and the third part begins sooner.
		{"a link comes to light", strings.Repeat("a", 22) + "@ab.com" + strings.Repeat("_", 16), 23, []string{strings.Repeat("a", 22) + "@", "ab.com", strings.Repeat("_", 16)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := tweettext.Split(tt.text, tt.limit)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%q", got)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Split (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSplitFails(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		text  string
		limit int
		want  string
	}{
		"limit too small":     {"a", 22, "a link alone weighs 23"},
		"limit negative":      {"a", -1, "the limit is -1"},
		"byte order mark":     {"a\uFEFF", 280, "U+FEFF"},
		"not UTF-8":           {"a\xFF", 280, "not UTF-8"},
		"character too heavy": {"ab c" + strings.Repeat("\u0301\u0323", 50), 23, "the character at byte 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parts, err := tweettext.Split(tt.text, tt.limit)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q and the error %v, want one with %q", parts, err, tt.want)
			}
		})
	}
}

// checkSplit holds what is true of the parts of any text.
func checkSplit(t interface{ Fatalf(string, ...any) }, text string, limit int, parts []string) {
	normal := norm.NFC.String(text)
	links := tweettext.URLs(normal)
	at := 0
	for i, part := range parts {
		if m := tweettext.Measure(part); m.Weight > limit || part == "" {
			t.Fatalf("part %d weighs %d, want 1 to %d: %q", i, m.Weight, limit, part)
		}
		// White space, and nothing else, stands between two parts.
		found := strings.Index(normal[at:], part)
		if found < 0 || strings.ContainsFunc(normal[at:at+found], func(r rune) bool { return !isSpace(r) }) {
			t.Fatalf("part %d does not follow the one before it: %q in %q", i, part, normal[at:])
		}
		from, to := at+found, at+found+len(part)
		if strings.TrimFunc(part, isSpace) != part && !strings.ContainsFunc(part, unicode.IsMark) && !strings.ContainsAny(part, "\u200C\u200D") {
			t.Fatalf("part %d begins or ends with white space: %q", i, part)
		}
		for _, link := range links {
			if link.Start < from && from < link.End || link.Start < to && to < link.End {
				t.Fatalf("part %d begins or ends in the link %q", i, normal[link.Start:link.End])
			}
		}
		at = to
	}
	if rest := strings.TrimFunc(normal[at:], isSpace); rest != "" {
		t.Fatalf("lost %q", rest)
	}
}

func isSpace(r rune) bool { return unicode.IsSpace(r) || r == '\u180E' }

// TestSplitLosesNothing cuts random texts made of what makes cutting hard.
func TestSplitLosesNothing(t *testing.T) {
	t.Parallel()
	pieces := []string{
		" ", "  ", "\n", "\n\n", "\u00A0", "\u3000", "a", "Word", "sentence. ", "end!", "文。", "漢字", "ー", "っ", "カナ",
		"example.com", "http://example.com/a_(b)", "https://t.co/abc", "@", "#", "$A", "-", "_", ".", "/", "(", ")", "👨‍👩‍👧", "🧑‍💻",
		"👍🏽", "🇩🇪", "🇦", "1️⃣", "e\u0301", "\u0301", "\u200D", "क्ष", "각", "한", "\u0600", "\u200E", "😀", "http://", ".com", "x@y.de",
	}
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 120).Draw(t, "pieces"), "")
		limit := rapid.IntRange(2*tweettext.URLWeight, 120).Draw(t, "limit")
		parts, err := tweettext.Split(text, limit)
		if err != nil {
			t.Fatalf("split %q: %v", text, err)
		}
		checkSplit(t, text, limit, parts)
	})
}

// TestSplitKeepsCharacters cuts rows of one character at every limit: each part
// holds whole ones.
func TestSplitKeepsCharacters(t *testing.T) {
	t.Parallel()
	for _, character := range []string{
		"é", "e\u0323\u0302", "क्षि", "नि", "กำ", "각", "\u1100\u1161\u11A8\u11A8", "\u1100가", "🇩🇪", "🇦🇦", "👩🏽‍🚒", "👨‍👩‍👧‍👦", "🧑🏽‍🤝‍🧑🏿",
		"1️⃣", "❤️", "🏴\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F", "\u0600\u0661", "☺\uFE0E", "ｶﾞ", "🤏🏽",
	} {
		t.Run(fmt.Sprintf("%+q", character), func(t *testing.T) {
			t.Parallel()
			character := norm.NFC.String(character)
			text := strings.Repeat(character, 60)
			for limit := tweettext.URLWeight; limit < 60; limit++ {
				parts, err := tweettext.Split(text, limit)
				if err != nil {
					t.Fatal(err)
				}
				checkSplit(t, text, limit, parts)
				for _, part := range parts {
					if strings.ReplaceAll(part, character, "") != "" {
						t.Fatalf("limit %d: %+q is cut in the middle", limit, part)
					}
				}
			}
		})
	}
}

// TestSplitFillsParts makes sure that a text of ordinary words is not cut into
// more posts than it needs.
func TestSplitFillsParts(t *testing.T) {
	t.Parallel()
	parts, err := tweettext.Split(strings.Repeat("A sentence of some words. ", 100), tweettext.MaxWeight)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range parts[:len(parts)-1] {
		if n := len(part); n < 255 { // a sentence less than the limit
			t.Errorf("a part weighs %d only: %q", n, part)
		}
	}
	if !slices.Contains(parts, strings.TrimSpace(strings.Repeat("A sentence of some words. ", 10))) {
		t.Errorf("no part of ten sentences in %q", parts)
	}
}
