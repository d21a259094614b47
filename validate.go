package jetpost

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// pattern is a regular expression with its description for messages.
type pattern struct {
	*regexp.Regexp
	words string
}

// The names and ids of the contract. Accounts and request ids are narrow
// enough to be a token of a NATS subject.
var (
	accountPattern = pattern{regexp.MustCompile(`^[a-z0-9_-]{1,63}$`), "1 to 63 of a-z 0-9 _ -"}
	idPattern      = pattern{regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`), "1 to 128 of A-Z a-z 0-9 _ -"}
	postIDPattern  = pattern{regexp.MustCompile(`^[0-9]{1,19}$`), "an id of X, 1 to 19 digits"}
	objectPattern  = pattern{regexp.MustCompile(`^[!-~]{1,255}$`), "1 to 255 printable ASCII characters, no space"}
)

// CheckAccount reports what is wrong with the name of an account, or nil.
func CheckAccount(name string) error {
	if !accountPattern.MatchString(name) {
		return fmt.Errorf("name %s: use %s", quote(name), accountPattern.words)
	}
	return nil
}

// CheckID reports what is wrong with the id of a request, or nil.
func CheckID(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("id %s: use %s", quote(id), idPattern.words)
	}
	return nil
}

// The years that a time may lie in. The zero time means "absent" in Go, and RFC 3339
// has no year after 9999.
const (
	minYear = 1970
	maxYear = 9999
)

// replySettings are X's words for who may reply.
func replySettings() []string {
	return []string{"following", "mentionedUsers", "subscribers", "verified"}
}

// InvalidError lists every mistake of a request.
type InvalidError struct {
	// Account and ID are empty if they could not be read or break their pattern, so
	// that they always fit into a subject.
	Account string
	ID      string
	// Problems is never empty. It has at most MaxProblems and one entries.
	Problems []Problem
}

func (e *InvalidError) Error() string {
	var b strings.Builder
	b.WriteString("invalid request")
	for i, p := range e.Problems {
		b.WriteString([]string{": ", "; "}[min(i, 1)])
		if p.Pointer != "" {
			b.WriteString(p.Pointer + " ")
		}
		b.WriteString(p.Message)
	}
	return b.String()
}

// Validate reports whether a worker would take the request, by the rules of [Decode]
// for its JSON. It fails with *InvalidError.
//
// It does not check what needs X, a clock or a weighted count: the weighted length of a
// text and its cashtags, the kind of a media file, a time that has passed. Workers
// check the first two before they accept a request.
func (r Request) Validate() error {
	var f findings
	r.check(&f)
	return f.err(r)
}

func (r Request) check(f *findings) {
	if r.Version < 0 || r.Version > Version {
		f.refuse("/version", "is %d, want %d", r.Version, Version)
	}
	r.checkIdentity(f)
	if len(r.Posts) == 0 {
		f.refuse("/posts", "is missing or empty, want 1 to %d posts", MaxPosts)
	}
	if len(r.Posts) > MaxPosts {
		f.refuse("/posts", "has %d posts, at most %d are allowed", len(r.Posts), MaxPosts)
	}
	for i, p := range r.Posts {
		p.check(f, child("/posts", strconv.Itoa(i)), i == 0)
	}
	r.checkTimes(f)
	r.checkMetadata(f)
}

func (r Request) checkIdentity(f *findings) {
	if r.Account == "" {
		f.refuse("/account", "is missing: name the account here or in the subject")
	} else {
		f.match("/account", r.Account, accountPattern)
	}
	f.match("/id", r.ID, idPattern)
}

func (r Request) checkTimes(f *findings) {
	f.year("/publish_at", r.PublishAt)
	f.year("/expires_at", r.ExpiresAt)
	if r.SkipIfLate != "" {
		if d, err := time.ParseDuration(r.SkipIfLate); err != nil || d < time.Second || d > MaxSkipIfLate {
			f.refuse("/skip_if_late", "is %s, want a duration such as 15m, from 1s to %gh", quote(r.SkipIfLate), MaxSkipIfLate.Hours())
		}
	}
	both := !r.PublishAt.IsZero() && !r.ExpiresAt.IsZero()
	if both && !r.ExpiresAt.After(r.PublishAt) {
		f.refuse("/expires_at", "is not after publish_at")
	}
}

// Latest is when it is too late for the first post of a request that is due at that
// time; zero is never.
func (r Request) Latest(due time.Time) time.Time {
	end := r.ExpiresAt
	if d, err := time.ParseDuration(r.SkipIfLate); err == nil && d > 0 {
		if skip := due.Add(d); end.IsZero() || skip.Before(end) {
			end = skip
		}
	}
	return end
}

func (r Request) checkMetadata(f *findings) {
	if n := len(r.Metadata); n > MaxMetadataKeys {
		f.refuse("/metadata", "has %d entries, at most %d are allowed", n, MaxMetadataKeys)
	}
	for _, key := range slices.Sorted(maps.Keys(r.Metadata)) {
		switch n := utf8.RuneCountInString(key); {
		case key == "":
			f.refuse("/metadata", "has an empty key")
		case n > MaxMetadataChars:
			f.refuse("/metadata", "has a key of %d characters, at most %d are allowed", n, MaxMetadataChars)
		case !plain(key):
			f.refuse("/metadata", "has the key %s, which is not plain text", quote(key))
		default:
			f.text(child("/metadata", key), r.Metadata[key], MaxMetadataChars)
		}
	}
}

// refusedChars are characters that X refuses in a text: the byte order mark and two
// code points that are no characters.
const refusedChars = "\uFEFF\uFFFE\uFFFF"

// check checks one post. first says that it opens the thread; the parent of every other
// post is the one before it.
func (p Post) check(f *findings, at string, first bool) {
	f.text(at+"/text", LineFeeds(p.Text), MaxTextChars)
	if strings.ContainsAny(p.Text, refusedChars) {
		f.refuse(at+"/text", "holds U+FEFF, U+FFFE or U+FFFF, which X refuses in a post")
	}
	if strings.TrimSpace(p.Text) == "" && len(p.Media) == 0 && !f.spoilt(at+"/media") {
		f.refuse(at+"/text", "is missing or empty, which only a post with media may be")
	}
	if n := len(p.Media); n > MaxImages {
		f.refuse(at+"/media", "has %d entries, at most %d are allowed", n, MaxImages)
	}
	for i, m := range p.Media {
		m.check(f, child(at+"/media", strconv.Itoa(i)))
	}
	if !first && p.InReplyToPostID != "" {
		f.refuse(at+"/in_reply_to_post_id", "may stand in the first post only: each later one replies to the post before it")
	}
	f.match(at+"/in_reply_to_post_id", p.InReplyToPostID, postIDPattern)
	f.match(at+"/quote_post_id", p.QuotePostID, postIDPattern)
	if len(p.Media) > 0 && p.QuotePostID != "" {
		f.refuse(at+"/quote_post_id", "cannot stand together with media")
	}
	f.match(at+"/community_id", p.CommunityID, postIDPattern)
	if p.ReplySettings != "" && !slices.Contains(replySettings(), p.ReplySettings) {
		f.refuse(at+"/reply_settings", "is %s, want one of %s", quote(p.ReplySettings), strings.Join(replySettings(), ", "))
	}
	if p.Poll == nil {
		return
	}
	if len(p.Media) > 0 || p.QuotePostID != "" {
		f.refuse(at+"/poll", "cannot stand together with media or quote_post_id")
	}
	p.Poll.check(f, at+"/poll")
}

func (m Media) check(f *findings, at string) {
	sources := 0
	for _, named := range []bool{m.URL != "", len(m.Data) > 0, m.Object != ""} {
		if named {
			sources++
		}
	}
	if sources != 1 && !f.spoilt(at+"/url") && !f.spoilt(at+"/data") && !f.spoilt(at+"/object") {
		f.refuse(at, "names %d sources, want exactly one of url, data and object", sources)
	}
	if m.URL != "" {
		f.httpsURL(at+"/url", m.URL)
	}
	if n := len(m.Data); n > MaxDataBytes {
		f.refuse(at+"/data", "is %d bytes decoded, at most %d are allowed: use url or object", n, MaxDataBytes)
	}
	f.match(at+"/object", m.Object, objectPattern)
	f.text(at+"/alt", LineFeeds(m.Alt), MaxAltChars)
}

func (p Poll) check(f *findings, at string) {
	if n := len(p.Options); n < MinPollChoices || n > MaxPollChoices {
		f.refuse(at+"/options", "has %d choices, want %d to %d", n, MinPollChoices, MaxPollChoices)
	}
	for i, option := range p.Options {
		if strings.TrimSpace(option) == "" {
			f.refuse(child(at+"/options", strconv.Itoa(i)), "is empty")
		}
		f.text(child(at+"/options", strconv.Itoa(i)), option, MaxPollChars)
	}
	if m := p.DurationMinutes; m < MinPollMinutes || m > MaxPollMinutes {
		f.refuse(at+"/duration_minutes", "is %d, want %d to %d", m, MinPollMinutes, MaxPollMinutes)
	}
}

// findings collects the mistakes of one request. Reading the JSON spoils places. The
// rules skip a place that was not read, so that one mistake is reported once.
type findings struct {
	problems []Problem
	more     int // beyond MaxProblems
	spoils   map[string]bool
}

// spoil reports a place whose value could not be read.
func (f *findings) spoil(at, format string, args ...any) {
	if f.spoils == nil {
		f.spoils = make(map[string]bool)
	}
	f.spoils[at] = true
	f.add(at, format, args...)
}

// spoilt reports whether the value at the place, or one around it, was not read.
func (f *findings) spoilt(at string) bool {
	for at != "" {
		if f.spoils[at] {
			return true
		}
		at = at[:strings.LastIndexByte(at, '/')]
	}
	return false
}

// refuse reports a value that was read and breaks a rule.
func (f *findings) refuse(at, format string, args ...any) {
	if !f.spoilt(at) {
		f.add(at, format, args...)
	}
}

func (f *findings) add(at, format string, args ...any) {
	if len(f.problems) == MaxProblems {
		f.more++
		return
	}
	f.problems = append(f.problems, Problem{Pointer: clip(at, maxPointerBytes), Message: clip(fmt.Sprintf(format, args...), maxMessageBytes)})
}

// clip bounds what quotes the producer's words: a list of problems must fit a message,
// whatever was in the body.
func clip(s string, maxBytes int) string {
	if len(s) <= maxBytes {
		return s
	}
	for maxBytes > 0 && !utf8.RuneStart(s[maxBytes]) {
		maxBytes--
	}
	return s[:maxBytes] + "…"
}

// err returns nil if nothing was found.
func (f *findings) err(r Request) error {
	if len(f.problems) == 0 {
		return nil
	}
	e := &InvalidError{Problems: slices.Clone(f.problems)}
	if f.more > 0 {
		e.Problems = append(e.Problems, Problem{Message: fmt.Sprintf("and %d more", f.more)})
	}
	if accountPattern.MatchString(r.Account) {
		e.Account = r.Account
	}
	if idPattern.MatchString(r.ID) {
		e.ID = r.ID
	}
	return e
}

// match refuses a value that is set and does not match.
func (f *findings) match(at, s string, want pattern) {
	if s != "" && !want.MatchString(s) {
		f.refuse(at, "is %s, want %s", quote(s), want.words)
	}
}

// text refuses a text that is too long, and characters that are invisible or that
// databases cannot store.
func (f *findings) text(at, s string, limit int) {
	if n := utf8.RuneCountInString(s); n > limit {
		f.refuse(at, "is %d characters long, at most %d are allowed", n, limit)
	}
	if !plain(s) {
		f.refuse(at, "is not plain text: use UTF-8 without control characters other than line feed and tab")
	}
}

// plain reports whether s is UTF-8 without control characters other than line feed and
// tab.
func plain(s string) bool {
	hidden := func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }
	return utf8.ValidString(s) && !strings.ContainsFunc(s, hidden)
}

// httpsURL refuses a URL that a worker would not call. The addresses of its host are
// judged when it is called. The messages never repeat the URL, because it may hold a
// password or a signature.
func (f *findings) httpsURL(at, s string) {
	if n := utf8.RuneCountInString(s); n > MaxURLChars {
		f.refuse(at, "is %d characters long, at most %d are allowed", n, MaxURLChars)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || !plain(s):
		f.refuse(at, "is not a URL")
	case !strings.HasPrefix(s, "https://") || u.Hostname() == "":
		f.refuse(at, "is not an absolute URL: want https:// and a host")
	case u.User != nil:
		f.refuse(at, "holds a user name or password, which it must not")
	}
}

func (f *findings) year(at string, t time.Time) {
	if y := t.UTC().Year(); !t.IsZero() && (y < minYear || y > maxYear) {
		f.refuse(at, "is in the year %d, want %d to %d", y, minYear, maxYear)
	}
}

// maxQuoted bounds what a message quotes of a producer's words.
const maxQuoted = 64 // characters

// quote repeats a value in a message, shortened if it is long.
func quote(s string) string {
	if chars := []rune(s); len(chars) > maxQuoted {
		s = string(chars[:maxQuoted]) + "…"
	}
	return strconv.Quote(s)
}

var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")

// child points to a member or entry of a place, or to the place itself if the key is
// longer than the contract allows.
func child(at, key string) string {
	if utf8.RuneCountInString(key) > MaxMetadataChars {
		return at
	}
	return at + "/" + pointerEscaper.Replace(key)
}
