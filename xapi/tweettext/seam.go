package tweettext

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// A seam is the text before a possible cut without white space. It decides whether and
// how strongly the text may be cut there. Its zero value is the start of a text.
//
// It never cuts where Unicode's rules for grapheme clusters (UAX 29) do not, and
// joins a little more than they do: that needs fewer tables.
type seam struct {
	last    rune
	regions bool // an odd number of the letters of flags
	linked  bool // a sign that joins the consonants around it, as Devanagari has
	isURL   bool
	stop    stop
}

// A stop is the end of a sentence.
type stop int

const (
	noStop    stop = iota
	plainStop      // one that white space follows
	wideStop       // one of East Asia, which needs none
)

// pass moves the seam behind what a walker has found.
func (s *seam) pass(w *walker) {
	found := w.text[w.start:w.end]
	s.last, _ = utf8.DecodeLastRuneInString(found)
	s.isURL = w.isURL
	switch {
	case w.isURL || !isRegional(w.first):
		s.regions = false
	case s.last == w.first && len(found) == utf8.RuneLen(w.first):
		s.regions = !s.regions
	}
	if !extends(s.last) {
		s.linked = false
	} else if unicode.Is(unicode.Mn, s.last) {
		const virama = 9 // a combining class
		s.linked = s.linked || norm.NFC.PropertiesString(string(s.last)).CCC() == virama
	}
	switch {
	case w.isURL:
		s.stop = noStop
	case strings.ContainsRune(".!?…", s.last):
		s.stop = plainStop
	case isWideStop(s.last):
		s.stop = wideStop
	case !isCloser(s.last):
		s.stop = noStop
	}
}

// joins reports whether a character cannot be cut off from what is before it.
func (s *seam) joins(r rune) bool {
	switch {
	case extends(r), s.last == '\u200D', prepends(s.last), s.regions && isRegional(r):
		return true
	case s.linked:
		return unicode.IsLetter(r)
	default:
		return joinsHangul(s.last, r)
	}
}

// strength is how strongly a text without white space may be cut before what a
// walker has found: East Asian scripts let a line end behind nearly every letter.
func (s *seam) strength(w *walker) strength {
	switch {
	case s.stop == wideStop && !isWideStop(w.first) && !isCloser(w.first):
		return endOfSentence
	case (s.isURL || isWide(s.last)) && (w.isURL || isWideLetter(w.first)):
		return endOfWord
	default:
		return endOfCharacter
	}
}

// carriesMarks reports whether s begins with a mark, which makes a space before it
// visible.
func carriesMarks(s string) bool {
	r, _ := utf8.DecodeRuneInString(s)
	return extends(r)
}

// extends reports whether a code point belongs to the character before it.
func extends(r rune) bool {
	switch {
	case r < 0x0300: // the first mark
		return false
	case unicode.Is(unicode.M, r), isSkinTone(r):
		return true
	case 0xE0020 <= r && r <= 0xE007F: // tags, which spell the flags of regions
		return true
	}
	switch r {
	case '\u200C', '\u200D', '\uFF9E', '\uFF9F', '\u0E33', '\u0EB3':
		return true
	}
	return false
}

// prepends reports whether a code point belongs to the character after it.
func prepends(r rune) bool {
	if r < 0x0600 {
		return false
	}
	return unicode.Is(unicode.Prepended_Concatenation_Mark, r) || strings.ContainsRune(
		"\u0D4E\U000111C2\U000111C3\U0001193F\U00011941\U00011A3A\U00011A84\U00011A85\U00011A86\U00011A87\U00011A88\U00011A89\U00011D46", r)
}

// joinsHangul reports whether two code points belong to one syllable.
func joinsHangul(before, r rune) bool {
	isLeading := 0x1100 <= before && before <= 0x115F || 0xA960 <= before && before <= 0xA97C
	switch {
	case 0x1160 <= r && r <= 0x11FF, 0xD7B0 <= r && r <= 0xD7FB: // a vowel or a final
		return true
	case 0x1100 <= r && r <= 0x115F, 0xA960 <= r && r <= 0xA97C, 0xAC00 <= r && r <= 0xD7A3:
		return isLeading
	default:
		return false
	}
}

func isWideStop(r rune) bool { return strings.ContainsRune("。！？．｡", r) }

// isCloser reports whether a character can follow a full stop and still belong to its
// sentence.
func isCloser(r rune) bool {
	return strings.ContainsRune("\"')]}", r) || unicode.In(r, unicode.Pe, unicode.Pf)
}

// isWide has the letters of Chinese and Japanese and the signs that close a
// phrase in them.
func isWide(r rune) bool {
	return isWideLetter(r) || strings.ContainsRune("ーぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮ々、，；：", r) ||
		r >= 0x3000 && (isWideStop(r) || isCloser(r))
}

// isWideLetter has those of them with which a line may begin.
func isWideLetter(r rune) bool {
	return unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana) &&
		!strings.ContainsRune("ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮ々", r)
}
