package tweettext

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// The limits of X, as weights.
const (
	MaxWeight     = 280    // of a post
	MaxLongWeight = 25_000 // of a post by an account with a subscription
	MaxCashtags   = 1      // of a post; a number, not a weight
	URLWeight     = 23     // of every link
)

// Weights of what is no link. twitter-text has them a hundred times as large
// and divides by its scale in the end; no weight of its makes a fraction.
const (
	lightWeight = 1
	heavyWeight = 2
	emojiWeight = heavyWeight // of a whole sequence
)

// A Measurement is what X sees in a text.
type Measurement struct {
	// Weight of the whole text, white space at its ends included.
	Weight int
	// URLs is the number of links.
	URLs int
	// Cashtags is the number of symbols such as $TWTR, counting repeats. X refuses a
	// post with more than MaxCashtags.
	Cashtags int
	// Invalid says that X refuses the text whatever its weight: it holds U+FEFF, U+FFFE
	// or U+FFFF, or it is not UTF-8.
	Invalid bool
}

// Fits reports whether X takes the text as a post of at most limit, which is MaxWeight
// or MaxLongWeight. An empty text does not fit: only a post with media can be without
// text.
func (m Measurement) Fits(limit int) bool {
	return !m.Invalid && m.Cashtags <= MaxCashtags && 0 < m.Weight && m.Weight <= limit
}

// Measure counts a text. It takes time in proportion to the text's length
// whatever is in it, and no memory for a text in NFC without links.
func Measure(text string) Measurement {
	text = norm.NFC.String(text)
	urls := findURLs(text)
	m := Measurement{URLs: len(urls), Cashtags: cashtags(text), Invalid: invalid(text)}
	for w := (walker{text: text, urls: urls}); w.next(); {
		m.Weight += w.weight
	}
	if strings.Contains(text, ".") {
		f := finder{text: text, known: frozenList, exact: true}
		m.Weight = max(m.Weight, f.weigh())
	}
	return m
}

// A walker goes through a text in NFC by what has a weight of its own: links,
// emoji sequences and code points.
type walker struct {
	text string
	urls []Range // those that begin at end or later
	// settled reports whether every link weighs the same, whatever its top-level
	// domain.
	settled bool

	// What next found: text[start:end], its first code point and its weight.
	start, end int
	first      rune
	weight     int
	isURL      bool
}

func (w *walker) next() bool {
	w.start = w.end
	if w.start == len(w.text) {
		return false
	}
	if len(w.urls) > 0 && w.urls[0].Start == w.start {
		w.end, w.weight, w.isURL = w.urls[0].End, URLWeight, true
		if !w.settled {
			w.weight = weighURL(w.text[w.start:w.end], w.start == 0)
		}
		w.first, _ = utf8.DecodeRuneInString(w.text[w.start:])
		w.urls = w.urls[1:]
		return true
	}
	w.isURL = false
	size := 1
	w.first = rune(w.text[w.start])
	if w.first >= utf8.RuneSelf {
		w.first, size = utf8.DecodeRuneInString(w.text[w.start:])
	}
	w.end, w.weight = w.start+size, weightOf(w.first)
	// Every emoji of several code points has a second one beyond ASCII.
	if w.end < len(w.text) && w.text[w.end] >= utf8.RuneSelf {
		if n := sequence(w.text[w.start:]); n > 0 {
			w.end, w.weight = w.start+n, emojiWeight
		}
	}
	return true
}

// weightOf has the ranges of twitter-text's third configuration.
func weightOf(r rune) int {
	switch {
	case r <= 4351, 8192 <= r && r <= 8205, 8208 <= r && r <= 8223, 8242 <= r && r <= 8247:
		return lightWeight
	default:
		return heavyWeight
	}
}

func invalid(text string) bool {
	return !utf8.ValidString(text) || strings.ContainsFunc(text, refused)
}

// refused has the three characters that no post may hold: the byte order mark, and two
// that are no characters.
func refused(r rune) bool { return r == '\uFEFF' || r == '\uFFFE' || r == '\uFFFF' }

// maxSymbolLetters is how long the symbol behind a $ may be. A class of shares
// may follow it, as in $BRK.B; one that is too long is text behind a cashtag.
const maxSymbolLetters = 6

// cashtags counts the symbols in a text in NFC. One stands at its beginning or
// behind white space, and a space, an ASCII sign or the end follows it.
func cashtags(text string) int {
	n := 0
	for at := 0; ; at++ {
		dollar := strings.IndexByte(text[at:], '$')
		if dollar < 0 {
			return n
		}
		at += dollar
		before, size := utf8.DecodeLastRuneInString(text[:at])
		if (size == 0 || isSpace(before) || isDirectional(before)) && beginsSymbol(text[at+1:]) {
			n++
		}
	}
}

func beginsSymbol(s string) bool {
	letters := letterRun(s)
	if letters == 0 || letters > maxSymbolLetters {
		return false
	}
	s = s[letters:]
	r, size := utf8.DecodeRuneInString(s)
	return size == 0 || isSpace(r) || isASCIISign(r)
}

func letterRun(s string) int {
	n := 0
	for n < len(s) && isASCIILetter(rune(s[n])) {
		n++
	}
	return n
}

func isASCIILetter(r rune) bool { return 'a' <= r|0x20 && r|0x20 <= 'z' }

func isASCIIDigit(r rune) bool { return '0' <= r && r <= '9' }

func isASCIIAlnum(r rune) bool { return isASCIILetter(r) || isASCIIDigit(r) }

func isASCIISign(r rune) bool { return '!' <= r && r <= '~' && !isASCIIAlnum(r) }

// isSpace is Unicode's white space and one that was in it when the rules of
// twitter-text were written.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r == '\u180E' }

// isDirectional has the marks that steer text between left and right. They may
// stand before a link, and end one.
func isDirectional(r rune) bool {
	switch r {
	case '\u061C', '\u200E', '\u200F':
		return true
	}
	return '\u202A' <= r && r <= '\u202E' || '\u2066' <= r && r <= '\u2069'
}
