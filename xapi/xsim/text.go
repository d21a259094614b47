package xsim

import (
	"encoding/binary"
	"hash/fnv"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	maxWeight     = 280
	maxLongWeight = 25_000 // for accounts with a subscription
	linkWeight    = 23
)

// weigh counts a text as X does: links are 23, emoji sequences 2, most Western
// characters 1, all others 2.
func weigh(text string) int {
	total, from := 0, 0
	for _, l := range findLinks(text) {
		total += weighPlain(text[from:l.start]) + linkWeight
		from = l.end
	}
	return total + weighPlain(text[from:])
}

func weighPlain(text string) int {
	runes := []rune(text)
	total := 0
	for i := 0; i < len(runes); {
		if n := emojiLength(runes[i:]); n > 1 {
			total += 2
			i += n
			continue
		}
		total += weight(runes[i])
		i++
	}
	return total
}

func weight(r rune) int {
	switch {
	case r <= 4351, r >= 8192 && r <= 8205, r >= 8208 && r <= 8223, r >= 8242 && r <= 8247:
		return 1
	}
	return 2
}

const (
	zeroWidthJoiner = 0x200d
	emojiVariation  = 0xfe0f
	enclosingKeycap = 0x20e3
)

// emojiLength returns how many runes at the start of the text are one emoji by
// shape: a flag, a keycap, or pictographs with modifiers, joined by U+200D; 0 for none.
func emojiLength(r []rune) int {
	regional := func(r rune) bool { return r >= 0x1f1e6 && r <= 0x1f1ff }
	if len(r) > 1 && regional(r[0]) && regional(r[1]) {
		return 2
	}
	if strings.ContainsRune("0123456789#*", r[0]) {
		switch {
		case len(r) > 2 && r[1] == emojiVariation && r[2] == enclosingKeycap:
			return 3
		case len(r) > 1 && r[1] == enclosingKeycap:
			return 2
		}
		return 0
	}
	n := 0
	for n < len(r) && isPictograph(r[n]) {
		n++
		for n < len(r) && isModifier(r[n]) {
			n++
		}
		if n+1 >= len(r) || r[n] != zeroWidthJoiner || !isPictograph(r[n+1]) {
			break
		}
		n++
	}
	return n
}

func isPictograph(r rune) bool {
	switch {
	case r == 0xa9, r == 0xae, r == 0x203c, r == 0x2049, r == 0x2122, r == 0x2139, r == 0x3030, r == 0x303d, r == 0x3297, r == 0x3299:
		return true
	case r >= 0x2190 && r <= 0x27bf, r >= 0x2900 && r <= 0x2bff:
		return true
	}
	return r >= 0x1f000 && r <= 0x1faff && !isModifier(r)
}

// isModifier covers skin tones, the emoji variation, and the tags of regional flags.
func isModifier(r rune) bool {
	return r == emojiVariation || r >= 0x1f3fb && r <= 0x1f3ff || r >= 0xe0020 && r <= 0xe007f
}

// link is a span of bytes that X turns into a t.co link.
type link struct {
	start, end int
	expanded   string // with its protocol
}

// findLinks finds http(s) URLs, and bare domains of the best known suffixes.
func findLinks(text string) []link {
	var found []link
	for i := 0; i < len(text); {
		if end := linkEnd(text, i); end > i {
			expanded := text[i:end]
			if !hasProtocol(expanded) {
				expanded = "http://" + expanded
			}
			found = append(found, link{i, end, expanded})
			i = end
			continue
		}
		_, size := utf8.DecodeRuneInString(text[i:])
		i += size
	}
	return found
}

func hasProtocol(text string) bool {
	lower := strings.ToLower(text[:min(len(text), len("https://"))])
	return strings.HasPrefix(lower, "http://") || strings.HasPrefix(lower, "https://")
}

// linkEnd returns where a link that begins at i ends, or i if none does.
func linkEnd(text string, i int) int {
	if i > 0 && (isHostByte(text[i-1]) || strings.IndexByte("@$#_/", text[i-1]) >= 0) {
		return i
	}
	host, protocol := i, hasProtocol(text[i:])
	if protocol {
		host += strings.Index(text[i:], "://") + len("://")
	}
	end := host
	for end < len(text) && isHostByte(text[end]) {
		end++
	}
	for end > host && (text[end-1] == '.' || text[end-1] == '-') {
		end--
	}
	if end < len(text) && text[end] == '@' || !isHost(text[host:end], protocol) {
		return i
	}
	if rest := text[end:]; len(rest) > 1 && rest[0] == ':' && rest[1] >= '0' && rest[1] <= '9' {
		end++
		for end < len(text) && text[end] >= '0' && text[end] <= '9' {
			end++
		}
	}
	if end < len(text) && strings.IndexByte("/?#", text[end]) >= 0 {
		stop := end
		for stop < len(text) && text[stop] > ' ' && text[stop] < 0x7f && strings.IndexByte("<>\"{}|\\^`", text[stop]) < 0 {
			stop++
		}
		end += len(strings.TrimRight(text[end:stop], ".,:;!?'\")]"))
	}
	return end
}

func isHostByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '.' || b == '-'
}

// isHost says whether X would link the host. Without a protocol the suffix must
// be a known one.
func isHost(host string, protocol bool) bool {
	labels := strings.Split(strings.ToLower(host), ".")
	if len(labels) < 2 {
		return false
	}
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' {
			return false
		}
	}
	suffix := labels[len(labels)-1]
	if !protocol {
		return slices.Contains([]string{
			"com", "net", "org", "edu", "gov", "info", "io", "dev", "app", "ai", "co", "me", "tv", "xyz", "de", "uk", "fr", "eu", "us", "jp", "ws",
		}, suffix)
	}
	return len(suffix) > 1 && strings.Trim(suffix, "0123456789") != ""
}

// shorten is the t.co link of a URL: always the same, and 23 bytes long.
func shorten(url string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	h := fnv.New64a()
	h.Write([]byte(url))
	n := binary.BigEndian.Uint64(h.Sum(nil))
	slug := make([]byte, 10)
	for i := range slug {
		slug[i] = digits[n%uint64(len(digits))]
		n /= uint64(len(digits))
	}
	return "https://t.co/" + string(slug)
}

// countCashtags counts $SYMBOL: one to six letters after a dollar sign that
// begins a word.
func countCashtags(text string) int {
	count := 0
	for _, word := range strings.Fields(text) {
		symbol, ok := strings.CutPrefix(word, "$")
		symbol = strings.TrimRight(symbol, ".,:;!?'\")]")
		letters := strings.Trim(strings.ToUpper(symbol), "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
		if ok && letters && len(symbol) >= 1 && len(symbol) <= 6 {
			count++
		}
	}
	return count
}

// mentions says whether the text names the handle with an @.
func mentions(text, handle string) bool {
	words := strings.FieldsFunc(strings.ToLower(text), func(r rune) bool {
		return r != '@' && r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
	})
	return slices.Contains(words, "@"+strings.ToLower(handle))
}
