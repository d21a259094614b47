package tweettext_test

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/text/unicode/norm"

	"github.com/jetpost/jetpost/xapi/tweettext"
)

// link is what every link weighs, in sums that show where a weight comes from.
const link = 23

// A weighing is a text and its weight, worked out by hand from the rules.
type weighing struct {
	text string
	want int
}

// weigh checks every case, and the same text in each other normal form that has
// the same form NFC.
func weigh(t *testing.T, tests []weighing) {
	t.Helper()
	for i, tt := range tests {
		t.Run(fmt.Sprintf("%02d %.40q", i, tt.text), func(t *testing.T) {
			t.Parallel()
			if got := tweettext.Measure(tt.text).Weight; got != tt.want {
				t.Errorf("%q weighs %d, want %d (links: %q)", tt.text, got, tt.want, cutOut(tt.text))
			}
			if got := tweettext.Measure(norm.NFD.String(tt.text)).Weight; got != tt.want {
				t.Errorf("%q weighs %d in NFD, want %d", tt.text, got, tt.want)
			}
		})
	}
}

// cutOut lists the links in a text.
func cutOut(text string) []string {
	var links []string
	for _, r := range tweettext.URLs(text) {
		links = append(links, text[r.Start:r.End])
	}
	return links
}

func TestMeasureCharacters(t *testing.T) {
	t.Parallel()
	weigh(t, []weighing{
		{"", 0},
		{"a", 1},
		{"Hello, world!", 13},
		{"Hello, world! 👋", 14 + 2},
		{"  ", 2},
		{"a\nb\tc", 5},
		{"ÄÖÜ", 3},
		{"Ελληνικά", 8},
		{"Привет", 6},
		{"שלום", 4},
		{"سلام", 4},
		{"नमस्ते", 6}, // six code points
		{"สวัสดี", 6},
		{"\u10FF", 1}, // the last of the first light range
		{"\u1100", 2},
		{"\u1FFF", 2},
		{"\u2000", 1 + 0}, // NFC makes U+2002 of it, as light
		{"\u2003", 1},
		{"\u200D", 1}, // the last of the second
		{"\u200E", 2}, // directional marks
		{"\u200F", 2},
		{"\u202A\u202C", 4},
		{"\u2066a\u2069", 5},
		{"\u061C", 1}, // one of the first range
		{"\u2010", 1}, // the third
		{"\u201F", 1},
		{"“quoted” – and ‘quoted’ — so", 28},
		{"\u2020", 2},
		{"…", 2},
		{"\u2031", 2},
		{"\u2032", 1}, // the fourth
		{"\u2037", 1},
		{"\u2038", 2},
		{"€", 2},
		{"™", 2},
		{"©", 1},
		{"®", 1},
		{"日本語", 6},
		{"한국어", 6},
		{"中文。", 6},
		{"ｆｕｌｌ", 8},
		{"ﾊﾝ", 4},
		{"𝒳", 2},
		{"𠮷野家", 6},
		{"\U000F0000", 2}, // private use
		{strings.Repeat("a", 280), 280},
		{strings.Repeat("語", 140), 280},
	})
}

func TestMeasureNormalizes(t *testing.T) {
	t.Parallel()
	weigh(t, []weighing{
		{"caf\u00E9", 4},
		{"cafe\u0301", 4},
		{"a\u0308o\u0308u\u0308", 3},
		{"\u212B", 1},             // the unit ångström becomes the letter Å
		{"\u2126", 1},             // and ohm becomes omega
		{"\u1112\u1161\u11AB", 2}, // jamo become one syllable
		{"ば", 2},
		{"は\u3099", 2},
		{"q\u0301", 2},           // no letter of its own
		{"e\u0301\u0323", 2 + 1}, // ẹ, beyond the light range, and an accent
		{"\u0344", 2},            // becomes two marks
		{"\uF900", 2},            // becomes another ideograph
		{"Ｅ\u0301", 3},
		{"http://example.com/cafe\u0301", link},
		{"http://cafe\u0301.com", link},
		{"cafe\u0301 example.com", 5 + link},
	})
}

func TestMeasureEmoji(t *testing.T) {
	t.Parallel()
	weigh(t, []weighing{
		{"😀", 2},
		{"😀😀", 4},
		{"a😀b", 4},
		{"☺", 2},
		{"☺\uFE0F", 2},
		{"☺\uFE0E", 2 + 2}, // text style: two characters
		{"❤️", 2},
		{"⭐️", 2},
		{"⚡️⚡️", 4},
		{"©️", 2},
		{"®️", 2},
		{"™️", 2},
		{"a\uFE0F", 1 + 2},
		{"語\uFE0F", 2 + 2},
		{"👍", 2},
		{"👍🏽", 2},
		{"👍🏽👍🏿", 4},
		{"☝🏻", 2},
		{"☝️", 2},
		{"🏽", 2},
		{"a🏽", 3},
		{"🍕🏽", 4}, // pizza has no skin
		{"✌🏿✌️", 4},
		{"1️⃣", 2},
		{"1⃣", 2},
		{"#️⃣*️⃣", 4},
		{"12️⃣", 1 + 2},
		{"1️", 1 + 2},
		{"a⃣", 1 + 2},
		{"1", 1},
		{"🇩🇪", 2},
		{"🇩🇪🇫🇷", 4},
		{"🇩", 2},
		{"🇩🇪🇫", 4},
		{"🇦🇦", 4}, // no country
		{"🇪🇺🇺🇳🇽🇰", 6},
		{"🇦🇦🇩🇪", 2 + 2 + 2}, // A, AD, E
		{"🏴\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F", 2},
		{"🏴\U000E0067\U000E0062\U000E0073\U000E0063\U000E0074\U000E007F", 2},
		{"🏴\U000E0067\U000E0062\U000E0077\U000E006C\U000E0073\U000E007F", 2},
		{"🏴\U000E0075\U000E0073\U000E0074\U000E0078\U000E007F", 6 * 2}, // Texas is no emoji of all
		{"🏴", 2},
	})
}

// Emoji that joiners make of several, as Emoji 11 has them.
func TestMeasureEmojiJoined(t *testing.T) {
	t.Parallel()
	weigh(t, []weighing{
		{"🏳️‍🌈", 2},
		{"🏴‍☠️", 2},
		{"👨‍👩‍👧‍👦", 2},
		{"👨‍👩‍👧‍👦👨‍👩‍👧‍👦", 4},
		{"👩‍👩‍👦", 2},
		{"👨‍👦", 2},
		{"👩‍👧‍👧", 2},
		{"👨‍👦‍👧", 2 + 1 + 2}, // a boy before a girl is no family
		{"👩‍👨‍👦", 2 + 1 + 2}, // nor a woman before a man
		{"👨‍👩", 2 + 1 + 2},   // nor two without a child
		{"👨‍👩‍👧‍", 2 + 1},    // a joiner with nothing behind it
		{"👩‍❤️‍👨", 2},
		{"👩‍❤️‍💋‍👩", 2},
		{"👨‍❤️‍💋‍👨", 2},
		{"👨‍❤️‍👩", 2 + 1 + 2 + 1 + 2},
		{"👩‍💻", 2},
		{"👩🏾‍💻", 2},
		{"👨‍⚕️", 2},
		{"👨🏻‍✈️", 2},
		{"👩‍🦰", 2},
		{"👩‍🍕", 2 + 1 + 2},
		{"🏃‍♀️", 2},
		{"🏃🏽‍♂️", 2},
		{"🕵️‍♀️", 2},
		{"🕵🏿‍♀️", 2},
		{"🕵\u200D♀️", 2 + 1 + 2}, // without a style the detective is text
		{"🤷‍♂️🤷", 4},
		{"🧟‍♂️", 2},
		{"👯‍♀️", 2},
		{"🏃‍♀", 2 + 1 + 2}, // without its variation selector
		{"🧑‍💻", 2 + 1 + 2}, // these are newer than Emoji 11
		{"🐻‍❄️", 2 + 1 + 2},
		{"❤️‍🔥", 2 + 1 + 2},
		{"🏳️‍⚧️", 2 + 1 + 2 + 2},
		{"🤏🏽", 2 + 2},
		{"🥱", 2},
		{"😀️", 2 + 2},
		{"👋 hi 👋🏿", 2 + 4 + 2},
		{"http://example.com/1️⃣", link + 2 + 2}, // the path takes the digit
	})
}

// Of the 676 pairs of letters, 258 are the flag of a region.
func TestMeasureFlags(t *testing.T) {
	t.Parallel()
	flags := 0
	for a := '🇦'; a <= '🇿'; a++ {
		for b := '🇦'; b <= '🇿'; b++ {
			switch n := tweettext.Measure(string([]rune{a, b})).Weight; n {
			case 2:
				flags++
			case 4:
			default:
				t.Errorf("%c%c weighs %d, want 2 or 4", a, b, n)
			}
		}
	}
	if flags != 258 {
		t.Errorf("%d pairs weigh as one emoji, want 258", flags)
	}
}

func TestMeasureURLsWithProtocol(t *testing.T) {
	t.Parallel()
	weigh(t, []weighing{
		{"http://example.com", link},
		{"https://example.com", link},
		{"HTTPS://EXAMPLE.COM/A", link},
		{"HtTp://example.com", link},
		{"http://t.co", link},
		{"ftp://example.com", 6 + 11}, // after a slash a bare host is no link
		{"http://example", 14},
		{"http://localhost", 16},
		{"http://127.0.0.1/", 17},
		{"http://example.nosuch", 21},
		{"http://www.example.co.uk", link},
		{"http://sub_domain.example.com", link},
		{"http://foo_bar.com", 18},
		{"http://-example.com", 19},
		{"http://example-.com", 19},
		{"http://a-b.example.com", link},
		{"http://example.com.", link + 1},
		{"http://example.com, and", link + 5},
		{"(http://example.com)", link + 2},
		{"\"http://example.com\"", link + 2},
		{"http://example.com:8080", link},
		{"http://example.com:8080/path", link},
		{"http://example.com:", link + 1},
		{"http://example.com:x", link + 2},
		{"http://example.com/", link},
		{"http://example.com/path.", link + 1},
		{"http://example.com/path!", link + 1},
		{"http://example.com/a,b", link},
		{"http://example.com/path...", link + 3},
		{"http://example.com/~user/", link},
		{"http://example.com/@user/status", link},
		{"http://example.com/a#b", link},
		{"http://example.com#b", link + 2}, // a fragment needs a path
		{"http://example.com/a?b=c", link},
		{"http://example.com?b=c", link},
		{"http://example.com/a?", link + 1},
		{"http://example.com/?b=c&d=e.", link + 1},
		{"http://example.com/?q=(a)", link + 1}, // a query does not end with it
		{"http://example.com/a_(b)", link},
		{"http://example.com/a_(b(c)d)/e", link},
		{"http://example.com/a_(b", link + 2}, // the underscore may end a path
		{"http://example.com/a()", link + 2},
		{"http://example.com/a(b())", link + 5},
		{"(http://example.com/a)", link + 2},
		{"http://example.com/(a(b(c)))", link + 9}, // one pair too deep
		{"http://example.com/a\u2013b", link},
		{"http://example.com/путь", link},
		{"http://example.com/straße", link},
		{"http://example.com/日本", link + 4},
		{"http://example.com/a b", link + 2},
		{"http://example.comの", link + 2},
		{"見てhttp://example.com/を", 4 + link + 2},
	})
}

// What may stand before and behind a link.
func TestMeasureURLsInText(t *testing.T) {
	t.Parallel()
	weigh(t, []weighing{
		{"ahttp://example.com", 19},
		{"1http://example.com", 19},
		{"@http://example.com", 19},
		{"#http://example.com", 19},
		{"$http://example.com", 19},
		{".http://example.com", 1 + link},
		{"-http://example.com", 1 + link},
		{"_http://example.com", 1 + link},
		{"/http://example.com", 1 + link},
		{"\u200Ehttp://example.com\u200E", 2 + link + 2},
		{"\u202Ahttp://example.com\u202C", 2 + link + 2},
		{"http://example.com\u200Eexample.org", link + 2 + link},
		{"http://example.com@x.de", 23}, // no host ends before @
		{"http://user:pass@example.com", 28},
		{"http://example.com http://example.com", 2*link + 1},
		{"http://example.com,http://example.com", 2*link + 1},
		{"http://example.com/http://example.org", link},
	})
}

func TestMeasureURLsOfAllScripts(t *testing.T) {
	t.Parallel()
	weigh(t, []weighing{
		{"http://exampleǄ.com", link},
		{"http://日本語.com", link},
		{"http://日本語.jp/x", link},
		{"http://例え.テスト", 7 + 2*2 + 1 + 3*2}, // a top-level domain for tests, which is gone
		{"http://пример.рф", link},
		{"http://ПРИМЕР.РФ", link},
		{"http://example.みんな", link},
		{"http://example.みんなの", link + 2},
		{"http://xn--e1afmkfd.xn--p1ai", link},
		{"http://example.xn--nosuch", link}, // any punycode is taken
		{"http://müller.de", link},
		{"http://😀.com", link},
		{"http://name.ck", link}, // a country without second-level names
		{"http://name.onion", link},
		{"http://example.com/😀", link + 2},
	})
}

func TestMeasureBareHosts(t *testing.T) {
	t.Parallel()
	weigh(t, []weighing{
		{"example.com", link},
		{"Example.COM", link},
		{"www.example.com", link},
		{"see readme.md", 4 + link},
		{"asp.net", link},
		{"t.co", link},
		{"is.gd", link},
		{"example.co.jp", link},
		{"node.js", 7},
		{"e.g. this", 9},
		{"U.S.A.", 6},
		{"1.5", 3},
		{"v1.2.3", 6},
		{"127.0.0.1", 9},
		{"end.Start", 9},
		{"a..b", 4},
		{"...", 3},
		{"example..com", 12},
		{".example.com", 12},
		{"-example.com", 12},
		{"_example.com", 12},
		{"/example.com", 12},
		{"@example.com", 12},
		{"#example.com", 12},
		{"$example.com", 12},
		{"user@example.com", 16},
		{"first.last@example.com", 22},
		{"first.bar@example.com", 21}, // bar is a top-level domain
		{"user+tag@example.com", 20},
		{"example.com@x", 13},
		{"example.com+x", 13},
		{"example.com-x", 13},
		{"example.com_x", link + 2},
		{"example.com/x", link},
		{"example.com/", link},
		{"example.com/a?b=c", link},
		{"example.com/a#b", link},
		{"example.com:80", link + 3},
		{"example.com:80/x", link},
		{"example.com?b=c", link + 4},
		{"example.com#b", link + 2},
		{"example.com.", link + 1},
		{"example.com, example.org!", link + 2 + link + 1},
		{"example.com,example.org", link + 1 + link},
		{"(example.com)", link + 2},
		{"\"example.com\"", link + 2},
		{"example.com's", link + 2},
		{"example.commerce", 16},
		{"foo_bar.com", 11},
		{"foo_bar.example.com", 4 + link}, // only what is behind the underscore
		{"my-site.de", link},
		{"example.comを見て", link + 6},
		{"見てexample.comを", 4 + link + 2},
		{"見て、example.com。", 6 + link + 2},
		{"a.comとb.com", link + 2 + link},
		{"a.comとb.com/x", link + 2 + link},
		{"日本語.com", 6 + 4},
		{"日本語.jp", 6 + 3},
		{"公式-example.com", 4 + 1 + link},
		{"です.example.com", 4 + 1 + link},
		{"müller.de", link},
		{"example.みんな", link},
		{"пример.рф", 6 + 1 + 2},
		{"example.рф", link},
		{"example.भारतम्", link}, // and not the shorter भारत
		{"vorlage.vermögensberater", link},
		{"xn--e1afmkfd.xn--p1ai", link},
		{"http//example.com", 17},
		{"😀example.com😀", 2 + link + 2},
		{"\u200Fexample.com\u200F", 2 + link + 2},
		{"example.com\nexample.com", 2*link + 1},
		{"co.uk", link},
		{"com", 3},
		{".com", 4},
	})
}

// label is a name of a host of n bytes.
func label(n int) string { return strings.Repeat("a", n) }

func TestMeasureLongURLs(t *testing.T) {
	t.Parallel()
	const site = "http://example.com/"
	umlauts := func(n int) string { return "ü" + label(n-1) }
	weigh(t, []weighing{
		{"http://" + label(63) + ".com", link},
		{"http://" + label(64) + ".com", 7 + 64 + 4},
		{label(63) + ".com", link},
		{label(64) + ".com", 68},
		{"http://" + label(64) + ".example.com", 7 + 64 + 12},
		// An ü and n letters become "xn--", the letters and "-" with three more.
		{"http://" + umlauts(56) + ".com", link}, // 63 bytes
		{"http://" + umlauts(57) + ".com", 7 + 57 + 4},
		{umlauts(56) + ".com", link + 1}, // the ü is before the link
		{"a " + umlauts(56) + ".com", 2 + link},
		{umlauts(57) + ".com", 57 + 4},
		{"http://" + strings.Repeat("語", 56) + ".com", link}, // 63 bytes
		{"http://" + strings.Repeat("語", 57) + ".com", 7 + 2*57 + 4},
		{"http://" + strings.Repeat("語", 64) + ".com", 7 + 128 + 4},
		// A bare host is a link however long the words before it.
		{strings.Repeat("語", 70) + "example.com", 140 + link},
		{site + label(4096-len(site)), link},
		{site + label(4097-len(site)), 4097},
		{"example.com/" + label(4096-len("https://example.com/")), link},
		{"example.com/" + label(4097-len("https://example.com/")), 4097 - len("https://")},
		{site + strings.Repeat("ж", 4096-len(site)), link}, // UTF-16 units, not bytes
		{"https://t.co/" + label(10), link},
		{"https://t.co/" + label(40), link},
		{"https://t.co/" + label(41), 13 + 41},
		{"https://t.co/" + label(41) + "?a=b", 13 + 41 + 4},
		{"https://t.co/abc/def", link + 4},
		{"https://t.co/abc-def", link + 4},
		{"https://t.co/abc?d=e", link},
		{"https://t.co/abc#d", link + 2},
		{"HTTPS://T.CO/abc/def", link + 4},
		{"https://t.co/", link},
		{"https://t.co/-a", link},
		{"https://x.t.co/abc/def", link},
		{"t.co/" + label(41), link}, // without a protocol it is any other
	})
}

func TestMeasureInvalid(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"": false, "a": false, "\uFFFD": false, "\x00": false,
		"\uFEFF": true, "a\uFFFEb": true, "\uFFFF": true, "a\xFF": true, "\xED\xA0\x80": true,
		"http://example.com/\uFEFF": true,
	} {
		m := tweettext.Measure(text)
		if m.Invalid != want {
			t.Errorf("%q: invalid is %v, want %v", text, m.Invalid, want)
		}
		if m.Invalid && m.Fits(tweettext.MaxWeight) {
			t.Errorf("%q is invalid and fits", text)
		}
	}
}

func TestFits(t *testing.T) {
	t.Parallel()
	tests := []struct {
		text  string
		limit int
		want  bool
	}{
		{"", tweettext.MaxWeight, false},
		{"a", tweettext.MaxWeight, true},
		{strings.Repeat("a", 280), tweettext.MaxWeight, true},
		{strings.Repeat("a", 281), tweettext.MaxWeight, false},
		{strings.Repeat("語", 141), tweettext.MaxWeight, false},
		{strings.Repeat("a", 25_000), tweettext.MaxLongWeight, true},
		{strings.Repeat("a", 25_001), tweettext.MaxLongWeight, false},
		{"$A", tweettext.MaxWeight, true},
		{"$A $B", tweettext.MaxWeight, false},
	}
	for _, tt := range tests {
		if got := tweettext.Measure(tt.text).Fits(tt.limit); got != tt.want {
			t.Errorf("%.20q fits %d: %v, want %v", tt.text, tt.limit, got, tt.want)
		}
	}
}

func TestMeasureCashtags(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		"":              0,
		"$":             0,
		"$ A":           0,
		"$A":            1,
		"$twtr":         1,
		"$TWTR":         1,
		"$ABCDEF":       1,
		"$ABCDEFG":      0,
		"$BRK.B":        1,
		"$BRK_AB":       1,
		"$BRK.ABC":      1, // $BRK and a sentence without a space
		"$TWTR.":        1,
		"$TWTR, $AAPL":  2,
		"$TWTR $TWTR":   2,
		"$TWTR$AAPL":    1,
		"($TWTR)":       0,
		"a$TWTR":        0,
		"US$5":          0,
		"$5":            0,
		"$5M":           0,
		"$A1":           0,
		"$TWTR\n$AAPL":  2,
		"\u200E$TWTR":   1,
		"\u3000$TWTR":   1,
		"$TWTR語":        0,
		"語$TWTR":        0,
		"$$TWTR":        0,
		"$CAFÉ":         0,
		"$CAFE\u0301":   0, // the same
		"$TWTR!":        1,
		"buy $TWTR now": 1,
	} {
		if got := tweettext.Measure(text).Cashtags; got != want {
			t.Errorf("%q has %d cashtags, want %d", text, got, want)
		}
	}
}

func TestURLs(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		"":                                nil,
		"no link.":                        nil,
		"a example.com b":                 {"example.com"},
		"http://a.com/x, b.org.":          {"http://a.com/x", "b.org"},
		"a.comとb.com/x?y=z":               {"a.com", "b.com/x?y=z"},
		"公式-example.com":                  {"example.com"},
		"foo_bar.example.com/x":           {"bar.example.com/x"},
		"a.com?x=b.com":                   {"a.com"},
		"a.com_b.com c.com":               {"a.com", "c.com"},
		"a.com/(b c.com)":                 {"a.com/", "c.com"},
		"a.com/x語b.com":                   {"a.com/x", "b.com"},
		"https://t.co/abc/x.com":          {"https://t.co/abc"},
		"x.y.z.com.nosuch a.com":          {"x.y.z.com", "a.com"},
		"http://a.com/語b.com":             {"http://a.com/", "b.com"},
		"語_foo.com":                       nil,
		"語_a.foo.com":                     {"a.foo.com"},
		"cafe\u0301 a.com":                {"a.com"}, // ranges of the text as it is given
		"e\u0301e\u0301.com/e\u0301 a.de": {"e\u0301e\u0301.com/e\u0301", "a.de"},
		"http://a.com/\u212B.":            {"http://a.com/\u212B"},
	} {
		got := cutOut(text)
		if strings.Join(got, " | ") != strings.Join(want, " | ") {
			t.Errorf("%q has the links %q, want %q", text, got, want)
		}
		if n := tweettext.Measure(text).URLs; n != len(want) {
			t.Errorf("%q has %d links, want %d", text, n, len(want))
		}
	}
}
