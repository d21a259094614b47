package tweettext

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// The code points that join others to one emoji.
const (
	joiner        = "\u200D"
	emojiStyle    = "\uFE0F" // variation selector 16
	enclosingKey  = "\u20E3"
	firstSkinTone = '\U0001F3FB'
	lastSkinTone  = '\U0001F3FF'
)

// sequence returns the length in bytes of the emoji of several code points with
// which s begins, or 0. An emoji that is a single code point needs no mention:
// it weighs as much by itself.
//
// It knows the sequences up to Emoji 11, which X's published library knows. Of
// a later one, each part is counted.
func sequence(s string) int {
	first, size := utf8.DecodeRuneInString(s)
	switch {
	case first < utf8.RuneSelf:
		return keycap(s, first)
	case isRegional(first):
		return flag(s)
	}
	if n := known(s); n > 0 {
		return n
	}
	if n := person(s, first); n > 0 {
		return n
	}
	head := size + styling(s[size:], first)
	if n := gender(s[head:], first, head > size); n > 0 {
		return head + n
	}
	if head > size {
		return head
	}
	return 0
}

// styling is the length of the skin tone or variation selector that belongs to
// the emoji before it.
func styling(s string, base rune) int {
	next, size := utf8.DecodeRuneInString(s)
	switch {
	case isSkinTone(next) && unicode.Is(skinned, base):
		return size
	case strings.HasPrefix(s, emojiStyle) && unicode.Is(styled, base):
		return size
	default:
		return 0
	}
}

func keycap(s string, key rune) int {
	if key != '#' && key != '*' && !isASCIIDigit(key) {
		return 0
	}
	rest := strings.TrimPrefix(s[1:], emojiStyle)
	if !strings.HasPrefix(rest, enclosingKey) {
		return 0
	}
	return len(s) - len(rest) + len(enclosingKey)
}

// flags are the regions whose two letters make a flag; others stay two letters.
const flags = "AC AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ " +
	"BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ " +
	"CA CC CD CF CG CH CI CK CL CM CN CO CP CR CU CV CW CX CY CZ DE DG DJ DK DM DO DZ " +
	"EA EC EE EG EH ER ES ET EU FI FJ FK FM FO FR " +
	"GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU " +
	"IC ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ " +
	"LA LB LC LI LK LR LS LT LU LV LY " +
	"MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ " +
	"NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA " +
	"RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ " +
	"TA TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM UN US UY UZ " +
	"VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW"

const firstRegional, lastRegional = '\U0001F1E6', '\U0001F1FF' // the letters A and Z of flags

func isRegional(r rune) bool { return firstRegional <= r && r <= lastRegional }

func isSkinTone(r rune) bool { return firstSkinTone <= r && r <= lastSkinTone }

// flag is the length of the two letters with which s begins, if they are one.
func flag(s string) int {
	a, size := utf8.DecodeRuneInString(s)
	b, more := utf8.DecodeRuneInString(s[size:])
	if !isRegional(b) {
		return 0
	}
	region := [2]byte{'A' + byte(a-firstRegional), 'A' + byte(b-firstRegional)}
	for i := 0; i < len(flags); i += len("AC ") {
		if flags[i] == region[0] && flags[i+1] == region[1] {
			return size + more
		}
	}
	return 0
}

// known finds the sequences that follow no pattern.
func known(s string) int {
	for _, sequence := range [...]string{
		"\U0001F3F3" + emojiStyle + joiner + "\U0001F308",                        // rainbow flag
		"\U0001F3F4" + joiner + "\u2620" + emojiStyle,                            // pirate flag
		"\U0001F3F4\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F", // England
		"\U0001F3F4\U000E0067\U000E0062\U000E0073\U000E0063\U000E0074\U000E007F", // Scotland
		"\U0001F3F4\U000E0067\U000E0062\U000E0077\U000E006C\U000E0073\U000E007F", // Wales
	} {
		if strings.HasPrefix(s, sequence) {
			return len(sequence)
		}
	}
	return 0
}

// People of sequences; each is four bytes long.
const (
	man   = "👨"
	woman = "👩"
	girl  = "👧"
	boy   = "👦"
)

// roles stand behind a man or a woman and a joiner: professions and hair.
func roles() [20]string {
	return [...]string{
		"\u2695" + emojiStyle, "\u2696" + emojiStyle, "\u2708" + emojiStyle, // health, law, flying
		"🌾", "🍳", "🎓", "🎤", "🎨", "🏫", "🏭", "💻", "💼", "🔧", "🔬", "🚀", "🚒",
		"\U0001F9B0", "\U0001F9B1", "\U0001F9B2", "\U0001F9B3",
	}
}

// person finds a man or woman with others or with a role.
func person(s string, first rune) int {
	if first != '👨' && first != '👩' {
		return 0
	}
	if n := couple(s); n > 0 {
		return n
	}
	if n := family(s); n > 0 {
		return n
	}
	head := len(man) + styling(s[len(man):], first)
	if rest, ok := strings.CutPrefix(s[head:], joiner); ok {
		for _, role := range roles() {
			if strings.HasPrefix(rest, role) {
				return head + len(joiner) + len(role)
			}
		}
	}
	return 0
}

// couple finds two with a heart between them, or a heart and a kiss. A man is
// never followed by a woman, here and in a family a woman never by a man.
func couple(s string) int {
	const heart = joiner + "\u2764" + emojiStyle + joiner
	rest, ok := strings.CutPrefix(s[len(man):], heart)
	if !ok {
		return 0
	}
	rest = strings.TrimPrefix(rest, "💋"+joiner)
	if strings.HasPrefix(rest, man) || strings.HasPrefix(rest, woman) && strings.HasPrefix(s, woman) {
		return len(s) - len(rest) + len(man)
	}
	return 0
}

// family finds one or two parents and one or two children.
func family(s string) int {
	rest := s[len(man):]
	if parent, ok := strings.CutPrefix(rest, joiner+woman); ok {
		rest = parent
	} else if parent, ok := strings.CutPrefix(rest, joiner+man); ok && strings.HasPrefix(s, man) {
		rest = parent
	}
	if child, ok := strings.CutPrefix(rest, joiner+girl); ok {
		rest = strings.TrimPrefix(child, joiner+girl)
		if len(rest) == len(child) { // a girl comes before a boy
			rest = strings.TrimPrefix(child, joiner+boy)
		}
		return len(s) - len(rest)
	}
	if child, ok := strings.CutPrefix(rest, joiner+boy); ok {
		return len(s) - len(strings.TrimPrefix(child, joiner+boy))
	}
	return 0
}

// gender is the length of the sign that makes a man or a woman of the person
// before it, who is styled by a skin tone or a variation selector or not.
func gender(s string, base rune, isStyled bool) int {
	const female, male = joiner + "\u2640" + emojiStyle, joiner + "\u2642" + emojiStyle
	if !strings.HasPrefix(s, female) && !strings.HasPrefix(s, male) {
		return 0
	}
	// Those who are text by themselves need a style to be a person.
	if !unicode.Is(gendered, base) || unicode.Is(styled, base) && !isStyled {
		return 0
	}
	return len(female)
}

// The tables are those of Emoji 11.
var (
	// gendered are the persons of whom there is a man and a woman.
	gendered = &unicode.RangeTable{
		R16: []unicode.Range16{{0x26F9, 0x26F9, 1}},
		R32: []unicode.Range32{
			{0x1F3C3, 0x1F3C4, 1}, {0x1F3CA, 0x1F3CC, 1}, {0x1F46E, 0x1F46F, 1}, {0x1F471, 0x1F471, 1},
			{0x1F473, 0x1F473, 1}, {0x1F477, 0x1F477, 1}, {0x1F481, 0x1F482, 1}, {0x1F486, 0x1F487, 1},
			{0x1F575, 0x1F575, 1}, {0x1F645, 0x1F647, 1}, {0x1F64B, 0x1F64B, 1}, {0x1F64D, 0x1F64E, 1},
			{0x1F6A3, 0x1F6A3, 1}, {0x1F6B4, 0x1F6B6, 1}, {0x1F926, 0x1F926, 1}, {0x1F937, 0x1F939, 1},
			{0x1F93C, 0x1F93E, 1}, {0x1F9B8, 0x1F9B9, 1}, {0x1F9D6, 0x1F9DF, 1},
		},
	}
	// skinned are the emoji that take a skin tone.
	skinned = &unicode.RangeTable{
		R16: []unicode.Range16{{0x261D, 0x261D, 1}, {0x26F9, 0x26F9, 1}, {0x270A, 0x270D, 1}},
		R32: []unicode.Range32{
			{0x1F385, 0x1F385, 1}, {0x1F3C2, 0x1F3C4, 1}, {0x1F3C7, 0x1F3C7, 1}, {0x1F3CA, 0x1F3CC, 1},
			{0x1F442, 0x1F443, 1}, {0x1F446, 0x1F450, 1}, {0x1F466, 0x1F469, 1}, {0x1F46E, 0x1F46E, 1},
			{0x1F470, 0x1F478, 1}, {0x1F47C, 0x1F47C, 1}, {0x1F481, 0x1F483, 1}, {0x1F485, 0x1F487, 1},
			{0x1F4AA, 0x1F4AA, 1}, {0x1F574, 0x1F575, 1}, {0x1F57A, 0x1F57A, 1}, {0x1F590, 0x1F590, 1},
			{0x1F595, 0x1F596, 1}, {0x1F645, 0x1F647, 1}, {0x1F64B, 0x1F64F, 1}, {0x1F6A3, 0x1F6A3, 1},
			{0x1F6B4, 0x1F6B6, 1}, {0x1F6C0, 0x1F6C0, 1}, {0x1F6CC, 0x1F6CC, 1}, {0x1F918, 0x1F91C, 1},
			{0x1F91E, 0x1F91F, 1}, {0x1F926, 0x1F926, 1}, {0x1F930, 0x1F939, 1}, {0x1F93D, 0x1F93E, 1},
			{0x1F9B5, 0x1F9B6, 1}, {0x1F9B8, 0x1F9B9, 1}, {0x1F9D1, 0x1F9DD, 1},
		},
	}
	// styled are the emoji that take a variation selector: those that are text
	// without one, and the older of the others.
	styled = &unicode.RangeTable{
		LatinOffset: 2,
		R16: []unicode.Range16{
			{0x00A9, 0x00A9, 1}, {0x00AE, 0x00AE, 1}, {0x203C, 0x203C, 1}, {0x2049, 0x2049, 1},
			{0x2122, 0x2122, 1}, {0x2139, 0x2139, 1}, {0x2194, 0x2199, 1}, {0x21A9, 0x21AA, 1},
			{0x231A, 0x231B, 1}, {0x2328, 0x2328, 1}, {0x23CF, 0x23CF, 1}, {0x23E9, 0x23EA, 1},
			{0x23ED, 0x23EF, 1}, {0x23F1, 0x23F3, 1}, {0x23F8, 0x23FA, 1}, {0x24C2, 0x24C2, 1},
			{0x25AA, 0x25AB, 1}, {0x25B6, 0x25B6, 1}, {0x25C0, 0x25C0, 1}, {0x25FB, 0x25FE, 1},
			{0x2600, 0x2604, 1}, {0x260E, 0x260E, 1}, {0x2611, 0x2611, 1}, {0x2614, 0x2615, 1},
			{0x2618, 0x2618, 1}, {0x261D, 0x261D, 1}, {0x2620, 0x2620, 1}, {0x2622, 0x2623, 1},
			{0x2626, 0x2626, 1}, {0x262A, 0x262A, 1}, {0x262E, 0x262F, 1}, {0x2638, 0x263A, 1},
			{0x2640, 0x2640, 1}, {0x2642, 0x2642, 1}, {0x2648, 0x2653, 1}, {0x265F, 0x2660, 1},
			{0x2663, 0x2663, 1}, {0x2665, 0x2666, 1}, {0x2668, 0x2668, 1}, {0x267B, 0x267B, 1},
			{0x267E, 0x267F, 1}, {0x2692, 0x2697, 1}, {0x2699, 0x2699, 1}, {0x269B, 0x269C, 1},
			{0x26A0, 0x26A1, 1}, {0x26AA, 0x26AB, 1}, {0x26B0, 0x26B1, 1}, {0x26BD, 0x26BE, 1},
			{0x26C4, 0x26C5, 1}, {0x26C8, 0x26C8, 1}, {0x26CF, 0x26CF, 1}, {0x26D1, 0x26D1, 1},
			{0x26D3, 0x26D4, 1}, {0x26E9, 0x26EA, 1}, {0x26F0, 0x26F5, 1}, {0x26F7, 0x26FA, 1},
			{0x26FD, 0x26FD, 1}, {0x2702, 0x2702, 1}, {0x2708, 0x2709, 1}, {0x270C, 0x270D, 1},
			{0x270F, 0x270F, 1}, {0x2712, 0x2712, 1}, {0x2714, 0x2714, 1}, {0x2716, 0x2716, 1},
			{0x271D, 0x271D, 1}, {0x2721, 0x2721, 1}, {0x2733, 0x2734, 1}, {0x2744, 0x2744, 1},
			{0x2747, 0x2747, 1}, {0x2753, 0x2753, 1}, {0x2757, 0x2757, 1}, {0x2763, 0x2764, 1},
			{0x27A1, 0x27A1, 1}, {0x2934, 0x2935, 1}, {0x2B05, 0x2B07, 1}, {0x2B1B, 0x2B1C, 1},
			{0x2B50, 0x2B50, 1}, {0x2B55, 0x2B55, 1}, {0x3030, 0x3030, 1}, {0x303D, 0x303D, 1},
			{0x3297, 0x3297, 1}, {0x3299, 0x3299, 1},
		},
		R32: []unicode.Range32{
			{0x1F004, 0x1F004, 1}, {0x1F170, 0x1F171, 1}, {0x1F17E, 0x1F17F, 1}, {0x1F202, 0x1F202, 1},
			{0x1F21A, 0x1F21A, 1}, {0x1F22F, 0x1F22F, 1}, {0x1F237, 0x1F237, 1}, {0x1F321, 0x1F321, 1},
			{0x1F324, 0x1F32C, 1}, {0x1F336, 0x1F336, 1}, {0x1F37D, 0x1F37D, 1}, {0x1F396, 0x1F397, 1},
			{0x1F399, 0x1F39B, 1}, {0x1F39E, 0x1F39F, 1}, {0x1F3CB, 0x1F3CE, 1}, {0x1F3D4, 0x1F3DF, 1},
			{0x1F3F3, 0x1F3F3, 1}, {0x1F3F5, 0x1F3F5, 1}, {0x1F3F7, 0x1F3F7, 1}, {0x1F43F, 0x1F43F, 1},
			{0x1F441, 0x1F441, 1}, {0x1F4FD, 0x1F4FD, 1}, {0x1F549, 0x1F54A, 1}, {0x1F56F, 0x1F570, 1},
			{0x1F573, 0x1F579, 1}, {0x1F587, 0x1F587, 1}, {0x1F58A, 0x1F58D, 1}, {0x1F590, 0x1F590, 1},
			{0x1F5A5, 0x1F5A5, 1}, {0x1F5A8, 0x1F5A8, 1}, {0x1F5B1, 0x1F5B2, 1}, {0x1F5BC, 0x1F5BC, 1},
			{0x1F5C2, 0x1F5C4, 1}, {0x1F5D1, 0x1F5D3, 1}, {0x1F5DC, 0x1F5DE, 1}, {0x1F5E1, 0x1F5E1, 1},
			{0x1F5E3, 0x1F5E3, 1}, {0x1F5E8, 0x1F5E8, 1}, {0x1F5EF, 0x1F5EF, 1}, {0x1F5F3, 0x1F5F3, 1},
			{0x1F5FA, 0x1F5FA, 1}, {0x1F6CB, 0x1F6CB, 1}, {0x1F6CD, 0x1F6CF, 1}, {0x1F6E0, 0x1F6E5, 1},
			{0x1F6E9, 0x1F6E9, 1}, {0x1F6F0, 0x1F6F0, 1}, {0x1F6F3, 0x1F6F3, 1},
		},
	}
)
