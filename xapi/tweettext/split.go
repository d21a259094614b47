package tweettext

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Split cuts a text into parts that weigh at most limit each, which is at least
// URLWeight. It cuts where a paragraph ends, else a sentence or line, else a
// word; at one of the stronger ends only if the part is half full by then. A word
// is cut only if it is longer than a part, and never amid a link, an emoji or
// what a reader takes for one character.
//
// White space is dropped where the text is cut and at its ends, and nothing else
// is. The parts are in the form NFC, in which X keeps them. A text of nothing but
// white space has no part.
//
// It fails for a text that X takes in no form, and for one with a character that
// no part can hold, such as a letter under hundreds of marks.
func Split(text string, limit int) ([]string, error) {
	switch {
	case limit < URLWeight:
		return nil, fmt.Errorf("split text: the limit is %d, but a link alone weighs %d", limit, URLWeight)
	case invalid(text):
		return nil, errors.New("split text: it is not UTF-8, or holds U+FEFF, U+FFFE or U+FFFF, which X refuses")
	}
	text = norm.NFC.String(text)
	c := cutter{text: text, urls: findURLs(text), limit: limit}
	var parts []string
	for c.skipSpace(); c.at < len(text); {
		cut, err := c.next()
		if err != nil {
			return nil, err
		}
		parts = append(parts, text[c.at:cut.end])
		c.at = cut.resume
	}
	return parts, nil
}

// A strength tells what ends at a cut.
type strength int

const (
	endOfCharacter strength = iota
	endOfWord
	endOfSentence
	endOfParagraph
)

// A cut is a place at which a text may be cut.
type cut struct {
	end    int // of the part before it
	resume int // where the next part begins, behind white space
	weight int // of the part
	ok     bool
}

// A cutter cuts one part after another off the beginning of a text in NFC.
type cutter struct {
	text   string
	urls   []Range // of the whole text
	at     int     // where the next part begins
	limit  int
	looked int // bytes walked or measured, which a test holds to the text's length
}

// skipSpace goes to the first character that is no white space.
func (c *cutter) skipSpace() {
	for c.at < len(c.text) {
		r, size := utf8.DecodeRuneInString(c.text[c.at:])
		if !isSpace(r) || carriesMarks(c.text[c.at+size:]) {
			return
		}
		c.at += size
	}
}

// next finds the end of the part that begins at c.at. A part is counted as X
// will see it: where a word is cut, what is left of it may be a link, or no
// longer one.
func (c *cutter) next() (cut, error) {
	for len(c.urls) > 0 && c.urls[0].Start < c.at {
		c.urls = c.urls[1:]
	}
	for weight := c.limit; weight > 0; {
		best := c.best(weight)
		if !best.ok {
			break
		}
		c.looked += best.end - c.at
		excess := Measure(c.text[c.at:best.end]).Weight - c.limit
		if excess <= 0 {
			return best, nil
		}
		// Halving bounds the number of tries, and misses no small part.
		weight = min(best.weight-1, max(best.weight-excess, best.weight/2))
	}
	return cut{}, fmt.Errorf("split text: the character at byte %d of its NFC form weighs more than %d; take out some of its marks", c.at, c.limit)
}

// best finds the best cut for a part of at most weight.
func (c *cutter) best(weight int) cut {
	var last [endOfParagraph + 1]cut // that ends so strongly, or more so
	s := scan{walker: walker{text: c.text, end: c.at, urls: c.urls}}
	defer func() { c.looked += s.walker.end - c.at }()
	for s.next() && s.cut.weight <= weight {
		for kind := range s.strength + 1 {
			last[kind] = s.cut
		}
		if s.cut.resume == len(c.text) {
			return s.cut // the rest fits
		}
	}
	for kind := endOfParagraph; kind >= endOfWord; kind-- {
		if last[kind].ok && 2*last[kind].weight >= weight {
			return last[kind]
		}
	}
	if last[endOfWord].ok {
		return last[endOfWord]
	}
	return last[endOfCharacter]
}

// A scan goes through a text, from a character that is no white space, by the
// places at which it may be cut.
type scan struct {
	walker walker
	weight int  // of all that was passed
	seam   seam // behind it
	pause  pause
	done   bool

	// What next found.
	cut      cut
	strength strength
}

// next finds the next cut; the text's end is the last one.
func (s *scan) next() bool {
	w := &s.walker
	for w.next() {
		if !w.isURL && isSpace(w.first) && !carriesMarks(w.text[w.end:]) {
			s.pause.add(w.first, w.start, s.weight)
			s.weight += w.weight
			continue
		}
		found := s.isCut()
		s.weight += w.weight
		s.seam.pass(w)
		s.pause = pause{}
		if found {
			return true
		}
	}
	if s.done {
		return false
	}
	s.done, s.strength = true, endOfParagraph
	s.cut = cut{end: len(w.text), resume: len(w.text), weight: s.weight, ok: true}
	if s.pause.ok {
		s.cut.end, s.cut.weight = s.pause.start, s.pause.weight
	}
	return true
}

// isCut tells whether the text may be cut before what the walker has found, and
// notes where and how strongly.
func (s *scan) isCut() bool {
	w := &s.walker
	switch {
	case s.pause.ok:
		s.cut = cut{end: s.pause.start, resume: w.start, weight: s.pause.weight, ok: true}
		s.strength = s.pause.strength(s.seam.stop != noStop)
		return true
	case s.weight == 0 || s.seam.joins(w.first):
		return false
	}
	s.cut = cut{end: w.start, resume: w.start, weight: s.weight, ok: true}
	s.strength = s.seam.strength(w)
	return true
}

// A pause is white space between two words.
type pause struct {
	start  int  // where it begins
	weight int  // of the text before it
	lines  int  // that end in it
	breaks bool // there is more in it than spaces that keep words together
	ok     bool
}

func (p *pause) add(r rune, at, weight int) {
	if !p.ok {
		p.start, p.weight, p.ok = at, weight, true
	}
	switch r {
	case '\n', '\v', '\f', '\u0085', '\u2028':
		p.lines++
	case '\u2029': // which ends a paragraph by itself
		p.lines += 2
	}
	p.breaks = p.breaks || r != '\u00A0' && r != '\u2007' && r != '\u202F'
}

// strength is how strongly the text before the pause ends, which may have ended
// with a full stop or the like.
func (p *pause) strength(stopped bool) strength {
	switch {
	case p.lines > 1:
		return endOfParagraph
	case p.lines == 1, p.breaks && stopped:
		return endOfSentence
	case p.breaks:
		return endOfWord
	default:
		return endOfCharacter
	}
}
