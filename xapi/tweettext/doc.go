// Package tweettext counts a text as X does, finds the links in it, and cuts a
// long one into posts.
//
// X counts by weight rather than by characters. It follows the third set of
// rules of its open twitter-text library:
//
//	a link, however long               23
//	a sequence that is one emoji        2
//	Latin, Greek, Cyrillic, Arabic …    1   U+0000 to U+10FF, and the spaces, joiners,
//	                                        dashes and quotes at U+2000 to U+200D,
//	                                        U+2010 to U+201F and U+2032 to U+2037
//	everything else                     2
//
// The text is brought into Unicode's form NFC first. A host without a protocol is a
// link, too, if it ends in an existing top-level domain: "see readme.md" weighs 27. A
// text may not hold U+FEFF, U+FFFE or U+FFFF.
//
// Nobody outside X can know its count in every corner. Where the rules leave
// room, the higher count is taken, so that what fits here fits there:
//
//   - Sequences that came after Emoji 11, such as a gender-neutral profession,
//     are counted part by part, as the published library does.
//   - The port and query behind a bare host without a path are text beside the
//     link. So is what follows the slug of a t.co link.
//   - A bare host in the middle of unspaced Chinese or Japanese is a link, no
//     matter how long the words around it are.
//   - Top-level domains are those of the Public Suffix List, those of the library's
//     own list, which is older, and any in punycode. Where one list alone has it, both
//     readings are weighed.
//
// The lower count is taken in one place: © and ® weigh 1 where no variation
// selector makes emoji of them.
//
// The package never asks X, shortens a link or changes a word. It knows nothing
// of media, polls and mentions, which X counts by other rules.
package tweettext
