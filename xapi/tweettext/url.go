package tweettext

import (
	"bytes"
	_ "embed" // tlds.txt
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
	"golang.org/x/text/unicode/norm"
)

// What is longer is no link, and counts as the text that it is.
const (
	maxURLUnits   = 4096 // UTF-16 units, the protocol among them and the host in punycode
	maxLabelBytes = 63   // of one label of the host, in punycode
	maxSlugBytes  = 40   // of the path of a t.co link
	maxTLDRunes   = 24   // of a top-level domain as people write it
)

// A Range is a part of a text, text[Start:End].
type Range struct {
	Start, End int // bytes
}

// URLs finds what X makes a link of, in order. The ranges are those of the text
// as it is given, although X looks at its form NFC.
func URLs(text string) []Range {
	if norm.NFC.IsNormalString(text) {
		return findURLs(text)
	}
	return denormalize(text, findURLs(norm.NFC.String(text)))
}

// denormalize turns ranges of a text's form NFC into ranges of the text. A range
// that ends amid a letter and its marks, where the two forms have no places in
// common, is widened to hold them all.
func denormalize(text string, urls []Range) []Range {
	places := make([]*int, 0, 2*len(urls))
	for i := range urls {
		places = append(places, &urls[i].Start, &urls[i].End)
	}
	var segments norm.Iter
	segments.InitString(norm.NFC, text)
	for normal := 0; !segments.Done() && len(places) > 0; {
		start := segments.Pos()
		segment := segments.Next()
		for len(places) > 0 && *places[0] <= normal+len(segment) {
			inside := *places[0] - normal
			if inside < len(segment) && start+inside <= len(text) && bytes.Equal(segment[:inside], []byte(text[start:start+inside])) {
				*places[0] = start + inside
			} else {
				*places[0] = segments.Pos()
			}
			places = places[1:]
		}
		normal += len(segment)
	}
	return urls
}

// findURLs finds the links of a text in NFC.
func findURLs(text string) []Range {
	f := finder{text: text, known: frozenList | rootZone}
	f.find()
	return f.urls
}

// tldLists says which lists of top-level domains count. twitter-text has one that it
// froze in 2018; which one X's servers go by is not known.
type tldLists uint8

const (
	frozenList tldLists = 1 << iota // twitter-text's
	rootZone                        // today's
)

// weighURL is the weight of a link in a text in NFC: where the lists disagree about its
// top-level domain, that of the reading which weighs more; and so where it is the first
// of its text, of whose first letter twitter-text makes what stands before the link,
// unless that is one of ASCII.
func weighURL(link string, first bool) int {
	heaviest := URLWeight
	readings := []finder{{known: frozenList}, {known: rootZone}, {known: frozenList, exact: true}}
	if !first || isASCIIAlnum(rune(link[0])) {
		readings = readings[:2]
	}
	for _, f := range readings {
		f.text = link
		heaviest = max(heaviest, f.weigh())
	}
	return heaviest
}

// weigh is the weight of the finder's text by what it alone takes for a link.
func (f *finder) weigh() int {
	f.find()
	weight := 0
	for w := (walker{text: f.text, urls: f.urls, settled: true}); w.next(); {
		weight += w.weight
	}
	return weight
}

//go:embed tlds.txt
var frozenNames string

// frozen has the names of twitter-text's list.
var frozen = sync.OnceValue(func() map[string]bool {
	names := make(map[string]bool)
	for name := range strings.Lines(frozenNames) {
		names[strings.TrimSuffix(name, "\n")] = true
	}
	return names
})

// A finder looks for links from the left to the right, as twitter-text's pattern
// does, but never at the same place more than a few times.
type finder struct {
	text  string
	known tldLists // a top-level domain of any of these is one
	// exact finds what twitter-text finds, also where that makes a text lighter: the
	// first character of a text is none of a host where it can be before one, and there
	// is no host in one with a label that is too long.
	exact  bool
	taken  int     // where the last match ended: nothing before it is part of another
	labels []label // of the run that is looked at
	urls   []Range
	looked int // characters looked at, which a test holds to the text's length
}

// A label is a part of a run of host characters, which dots divide.
type label struct {
	start, end int
	// underscore is the place behind the last one in it, or start. With one in
	// it, it can be a subdomain, but not the name before the top-level domain.
	underscore int
	begins     bool // with a letter or the like, neither sign nor nothing
	ends       bool // with one
	tld        int  // length of the top-level domain with which it begins, or 0
	// far is the last label with a top-level domain that a host can reach whose
	// first label this is, other than the next one; or 0.
	far int
}

// find looks only around dots, for there is no host without one.
func (f *finder) find() {
	for at := 0; ; {
		dot := strings.IndexByte(f.text[at:], '.')
		if dot < 0 {
			return
		}
		start, end := at+dot, at+dot
		for start > at {
			r, size := utf8.DecodeLastRuneInString(f.text[at:start])
			if f.looked++; !inHost(r, size) {
				break
			}
			start -= size
		}
		for end < len(f.text) {
			r, size := utf8.DecodeRuneInString(f.text[end:])
			if f.looked++; !inHost(r, size) {
				break
			}
			end += size
		}
		at = f.run(start, end)
	}
}

// run takes the hosts in one run of host characters, and returns where to go on.
func (f *finder) run(start, end int) int {
	if !strings.Contains(strings.TrimRight(f.text[start:end], "."), ".") {
		return end // the end of a sentence, as most dots are
	}
	f.divide(start, end)
	for i, at := 0, start; i+1 < len(f.labels); {
		place, last, ok := f.first(i, at)
		if !ok {
			i++
			at = f.labels[i].start
			continue
		}
		stop := f.labels[last].start + f.labels[last].tld
		f.take(place, i, last, stop)
		if stop == end {
			return f.taken
		}
		i, at = last, stop
	}
	return end
}

// divide finds the labels of a run, and what they are good for.
func (f *finder) divide(start, end int) {
	f.looked += end - start
	f.labels = slices.Grow(f.labels[:0], 1+strings.Count(f.text[start:end], "."))
	for at := start; at <= end; {
		size := strings.IndexByte(f.text[at:end], '.')
		if size < 0 {
			size = end - at
		}
		l := label{start: at, end: at + size, underscore: at}
		if size > 0 {
			s := f.text[at:l.end]
			l.begins, l.ends = s[0] != '-' && s[0] != '_', s[size-1] != '-' && s[size-1] != '_'
			l.underscore += strings.LastIndexByte(s, '_') + 1
			if l.begins && len(f.labels) > 0 {
				l.tld = f.topLevel(f.text[at:], size)
			}
		}
		f.labels = append(f.labels, l)
		at = l.end + 1
	}
	for i := len(f.labels) - 3; i >= 0; i-- {
		next := f.labels[i+1]
		switch {
		case !next.begins || !next.ends:
		case next.far > 0:
			f.labels[i].far = next.far
		case next.underscore == next.start && f.labels[i+2].tld > 0:
			f.labels[i].far = i + 2
		}
	}
}

// first finds the first place in a label, from at on, where a host begins, and
// the label with which it ends.
func (f *finder) first(i, at int) (place, last int, ok bool) {
	l := f.labels[i]
	last = l.far
	if last == 0 {
		if f.labels[i+1].tld == 0 {
			return 0, 0, false
		}
		last, at = i+1, max(at, l.underscore)
	}
	if !l.ends {
		return 0, 0, false
	}
	for at < l.end {
		f.looked++
		r, size := utf8.DecodeRuneInString(f.text[at:])
		if r != '-' && r != '_' && f.mayBegin(at) && !f.eaten(at, size, l.end) {
			return at, last, true
		}
		at += size
	}
	return 0, 0, false
}

// eaten tells whether the first character of a text is the one before a host, as
// twitter-text would have it, though it could be in it.
func (f *finder) eaten(at, size, end int) bool {
	if !f.exact || at > 0 || at+size >= end || !f.mayFollow(size) {
		return false
	}
	next := f.text[size]
	return next != '-' && next != '_'
}

// mayBegin tells whether what stands before a place lets a host begin there.
func (f *finder) mayBegin(at int) bool {
	_, ok := f.protocol(at)
	return ok || f.mayFollow(at) || f.splits(at)
}

// splits tells whether a character is two in UTF-16, of whose first half twitter-text
// makes what stands before a host.
func (f *finder) splits(at int) bool {
	r, _ := utf8.DecodeRuneInString(f.text[at:])
	return r > '\uFFFF' && at >= f.taken
}

// mayFollow tells whether a link may begin at a place: at the text's beginning
// or behind a character that the last one did not take and that is no part of a
// word, mention, hashtag or cashtag.
func (f *finder) mayFollow(at int) bool {
	if at == 0 {
		return true
	}
	r, size := utf8.DecodeLastRuneInString(f.text[:at])
	if at-size < f.taken || isASCIIAlnum(r) || refused(r) {
		return false
	}
	switch r {
	case '@', '＠', '#', '＃', '$':
		return false
	}
	return true
}

// protocol finds where the link begins whose host begins at a place.
func (f *finder) protocol(at int) (int, bool) {
	for _, protocol := range [...]string{"https://", "http://"} {
		start := at - len(protocol)
		if start >= f.taken && strings.EqualFold(f.text[start:at], protocol) && f.mayFollow(start) {
			return start, true
		}
	}
	return 0, false
}

// take adds the link whose host begins at a place in one label and stops in
// another. Whether it is one or not, nothing in it can be part of another.
func (f *finder) take(place, first, last, stop int) {
	end, hasPath := f.tail(stop)
	start, ok := f.protocol(place)
	follows := f.mayFollow(place) // else its first half stands before the host
	f.taken = end
	// What becomes of it aside, the host as a whole must be one.
	_, valid := hostBytes(f.text[place:stop])
	switch {
	case !valid && (ok || f.exact):
		return
	case strings.HasPrefix(f.text[place:stop], "xn--") && !f.hasBare(place, first, last, stop):
		return
	}
	if ok {
		if end = f.cutShort(start, place, stop, end); end > 0 {
			f.add(start, place, stop, end)
		}
		return
	}
	if place > 0 && strings.IndexByte("-_./", f.text[place-1]) >= 0 && follows {
		return
	}
	if !hasPath {
		end = stop
	}
	f.bare(place, first, last, stop, end)
}

// bare adds the links in what could be a host without a protocol. Only parts in
// Latin letters are: "見てexample.comを" has one. The last of them takes the path.
func (f *finder) bare(place, first, last, stop, end int) {
	begin := -1    // of the Latin part at the end of the label, or -1
	var link Range // in that part, as far as it is known
	f.looked += stop - place
	for i := first; i < last; i++ {
		from, to := max(place, f.labels[i].start), f.labels[i].end
		taken := link.End
		// A top-level domain in other letters ends a link as well.
		if foreign := strings.LastIndexFunc(f.text[from:to], isForeign); foreign >= 0 {
			f.addBare(link)
			link, begin = Range{}, -1
			_, size := utf8.DecodeRuneInString(f.text[from+foreign:])
			from += foreign + size
		}
		from = max(from, taken)
		if begin < 0 && from < to {
			begin = to - len(strings.TrimLeft(f.text[from:to], "-"))
		}
		if begin >= to { // nothing but hyphens
			begin = -1
		}
		if next := f.labels[i+1]; begin >= 0 && next.tld > 0 {
			link = Range{begin, next.start + next.tld}
		}
	}
	if link.End == stop {
		f.add(link.Start, link.Start, stop, end)
		return
	}
	f.addBare(link)
}

// hasBare tells whether there is a host in Latin letters in one.
func (f *finder) hasBare(place, first, last, stop int) bool {
	n := len(f.urls)
	f.bare(place, first, last, stop, stop)
	found := len(f.urls) > n
	f.urls = f.urls[:n]
	return found
}

func (f *finder) addBare(link Range) {
	if link.End > 0 {
		f.add(link.Start, link.Start, link.End, link.End)
	}
}

// add adds the link text[start:end] with the host text[host:stop], unless it is
// too long.
func (f *finder) add(start, host, stop, end int) {
	encoded, ok := hostBytes(f.text[host:stop])
	if !ok {
		return
	}
	length := units(f.text[start:host]) + encoded + units(f.text[stop:end])
	if start == host {
		length += len("https://") // which X puts before it
	}
	if length <= maxURLUnits {
		f.urls = append(f.urls, Range{start, end})
	}
}

// hostBytes is the length of a host in punycode; ok tells that no label is too
// long.
func hostBytes(host string) (n int, ok bool) {
	for more := true; more; {
		var name string
		name, host, more = strings.Cut(host, ".")
		size := len(name)
		if !isASCII(name) {
			// No encoding is shorter than what it encodes. Looking first keeps
			// long names away from an encoder that is slow with them.
			if utf8.RuneCountInString(name) > maxLabelBytes {
				return 0, false
			}
			// What begins as punycode is encoded once more, at the same length as
			// what only looks like it.
			if strings.HasPrefix(strings.ToLower(name), "xn--") {
				name = "y" + name[1:]
			}
			encoded, err := idna.Punycode.ToASCII(name)
			if err != nil {
				return 0, false
			}
			size = len(encoded)
		}
		if size > maxLabelBytes {
			return 0, false
		}
		n += size + len(".")
	}
	return n - len("."), true
}

// cutShort returns where a link with a protocol ends: a t.co link with its slug,
// or with the query behind that. It is 0 where the slug makes it no link.
func (f *finder) cutShort(start, host, stop, end int) int {
	if !strings.EqualFold(f.text[host:stop], "t.co") || !strings.HasPrefix(f.text[stop:end], "/") {
		return end
	}
	slug := stop + len("/")
	at := slug
	for at < end && isASCIIAlnum(rune(f.text[at])) {
		at++
	}
	switch {
	case at-slug > maxSlugBytes:
		return 0
	case at == slug || at < end && f.text[at] == '?':
		return end
	}
	return at
}

// tail finds where the port, path and query behind a host end.
func (f *finder) tail(stop int) (end int, hasPath bool) {
	end = stop
	if f.has(':', end) {
		port := end + 1
		for port < len(f.text) && isASCIIDigit(rune(f.text[port])) {
			port++
		}
		if port > end+1 {
			end = port
		}
	}
	if f.has('/', end) {
		end, hasPath = f.path(end), true
	}
	if f.has('?', end) {
		end = f.query(end)
	}
	return end, hasPath
}

// path is where the path ends that begins at a slash: at the last character that
// may be the end of one.
func (f *finder) path(at int) int {
	at += len("/")
	end := at
	for at < len(f.text) {
		f.looked++
		r, size := utf8.DecodeRuneInString(f.text[at:])
		switch {
		case r == '(':
			if size = f.parentheses(at) - at; size < 0 {
				return end
			}
			if end == at { // they end a path only behind what could end it as well
				end = at + size
			}
		case endsPath(r):
			end = at + size
		case !inPath(r):
			return end
		}
		at += size
	}
	return end
}

// parentheses is where the parentheses end that begin at a place in a path, or
// -1 where they hold nothing or are not balanced. They may hold one other pair.
func (f *finder) parentheses(open int) int {
	at := f.pathRun(open + 1)
	isEmpty := at == open+1
	if f.has('(', at) {
		inner := f.pathRun(at + 1)
		if inner == at+1 || !f.has(')', inner) {
			return -1
		}
		at, isEmpty = f.pathRun(inner+1), false
	}
	if isEmpty || !f.has(')', at) {
		return -1
	}
	return at + 1
}

func (f *finder) has(c byte, at int) bool { return at < len(f.text) && f.text[at] == c }

// pathRun is where a run of characters that may stand in a path ends.
func (f *finder) pathRun(at int) int {
	for at < len(f.text) {
		f.looked++
		r, size := utf8.DecodeRuneInString(f.text[at:])
		if !inPath(r) {
			break
		}
		at += size
	}
	return at
}

// query is where the query ends that begins at a question mark: where it begins,
// if nothing follows that may be the end of one.
func (f *finder) query(at int) int {
	end := at
	for at++; at < len(f.text) && inQuery(f.text[at]); at++ {
		if f.looked++; endsQuery(f.text[at]) {
			end = at + 1
		}
	}
	return end
}

// topLevel is the length of the top-level domain with which s begins, or 0. A
// label of that many bytes begins there, but may go on with other words: people
// who write without spaces put them behind a host.
func (f *finder) topLevel(s string, size int) int {
	if n := punycodeRun(s[:size]); n > 0 {
		return n // X takes any
	}
	letters := letterRun(s[:size])
	if letters > 0 && endsTopLevel(s[letters:]) && f.known&listsOf(s[:letters]) != 0 {
		return letters
	}
	if letters == size {
		return 0
	}
	var ends [maxTLDRunes]int // of the label's first code points
	n := 0
	for at := 0; at < size && n < len(ends); n++ {
		_, width := utf8.DecodeRuneInString(s[at:])
		at += width
		ends[n] = at
	}
	for _, end := range slices.Backward(ends[:n]) {
		if end > letters && endsTopLevel(s[end:]) && f.known&listsOf(s[:end]) != 0 {
			return end
		}
	}
	return 0
}

// punycodeRun is the length of the label in punycode with which s begins.
func punycodeRun(s string) int {
	const prefix = "xn--"
	if len(s) <= len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return 0
	}
	n := len(prefix)
	for n < len(s) && (isASCIIAlnum(rune(s[n])) || s[n] == '-') {
		n++
	}
	if n == len(prefix) {
		return 0
	}
	return n
}

// endsTopLevel tells whether a top-level domain may end before s: not amid an
// ASCII word, nor where the host turns out to be the name in an e-mail address.
func endsTopLevel(s string) bool {
	return s == "" || !isASCIIAlnum(rune(s[0])) && strings.IndexByte("@+-", s[0]) < 0
}

// listsOf tells which lists have a label as a top-level domain.
func listsOf(label string) tldLists {
	label = strings.ToLower(label)
	var lists tldLists
	if frozen()[label] {
		lists |= frozenList
	}
	if exists(label) {
		lists |= rootZone
	}
	return lists
}

// exists tells whether a label in small letters is a top-level domain today.
func exists(label string) bool {
	if !isASCII(label) {
		encoded, err := idna.Punycode.ToASCII(label)
		if err != nil {
			return false
		}
		label = encoded
	}
	if _, icann := publicsuffix.PublicSuffix(label); icann {
		return true
	}
	// Some countries have no suffix of one label, such as ck with its *.ck.
	const countryBytes = 2
	if len(label) != countryBytes {
		return false
	}
	_, icann := publicsuffix.PublicSuffix("name." + label)
	return icann
}

// inHost tells whether a character of that many bytes may stand in a host: a
// letter of any script, and nearly everything that is neither an ASCII sign nor
// white space; of the signs a quotation mark and a backtick, which twitter-text forgot.
func inHost(r rune, size int) bool {
	switch {
	case r < utf8.RuneSelf:
		return isASCIIAlnum(r) || r == '.' || r == '-' || r == '_' || r == '"' || r == '`' || r < ' ' && !isSpace(r) || r == '\x7F'
	case r == utf8.RuneError:
		return size > 1 // else it is a byte that is not UTF-8
	default:
		return !isSpace(r) && !isDirectional(r) && !refused(r)
	}
}

// isLatin has the letters that a host without a protocol may have: ASCII, and
// Latin ones with marks.
func isLatin(r rune) bool { return isASCIIAlnum(r) || unicode.Is(accented, r) }

func isForeign(r rune) bool { return !isLatin(r) && r != '-' }

// inPath tells whether a character may stand in a path.
func inPath(r rune) bool {
	return endsPath(r) || r == '\u2013' || r < utf8.RuneSelf && strings.IndexByte("!*';:,.$%[]~@|&", byte(r)) >= 0
}

// endsPath tells whether it may be the last one; a comma or a full stop behind a
// link belongs to the sentence.
func endsPath(r rune) bool {
	if r < utf8.RuneSelf {
		return isASCIIAlnum(r) || strings.IndexByte("+-=_#/", byte(r)) >= 0
	}
	return 0x0400 <= r && r <= 0x04FF || unicode.Is(accented, r) // Cyrillic, or Latin
}

func inQuery(c byte) bool {
	return isASCIIAlnum(rune(c)) || strings.IndexByte("!?*'@();:&=+$/%#[]-_.,~|", c) >= 0
}

func endsQuery(c byte) bool {
	return isASCIIAlnum(rune(c)) || strings.IndexByte("-_&=#/", c) >= 0
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// units is the length of a text in UTF-16, in which X measures links.
func units(s string) int {
	n := 0
	for _, r := range s {
		n += max(1, utf16.RuneLen(r))
	}
	return n
}

// accented are the Latin letters and the marks that hosts and paths may have.
var accented = &unicode.RangeTable{
	R16: []unicode.Range16{
		{0x00C0, 0x00D6, 1}, {0x00D8, 0x00F6, 1}, {0x00F8, 0x024F, 1}, {0x0253, 0x0254, 1},
		{0x0256, 0x0257, 1}, {0x0259, 0x0259, 1}, {0x025B, 0x025B, 1}, {0x0263, 0x0263, 1},
		{0x0268, 0x0268, 1}, {0x026F, 0x026F, 1}, {0x0272, 0x0272, 1}, {0x0289, 0x0289, 1},
		{0x028B, 0x028B, 1}, {0x02BB, 0x02BB, 1}, {0x0300, 0x036F, 1}, {0x1E00, 0x1EFF, 1},
	},
	LatinOffset: 2,
}
