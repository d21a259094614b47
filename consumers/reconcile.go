package consumers

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/text/unicode/norm"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/tweettext"
)

// pagePosts and maxPages bound one timeline check, because X charges for each post read.
const (
	pagePosts = 100
	maxPages  = 5
)

// checkFrom is when the first timeline check for a post in doubt may run.
func (r *laneRun) checkFrom(post store.PostRecord) time.Time {
	return r.h.Timing.checkFrom(post.NotAfter)
}

// doubtful holds a request with a post in doubt until a timeline check may run.
func (r *laneRun) doubtful(head *store.Record, i int, why string) attempt {
	post := head.Posts[i]
	return attempt{decision: doubtUntil(r.checkFrom(post), maybeLive(head, i, why)), post: i, checks: post.Checks, absentAt: post.AbsentAt}
}

func maybeLive(head *store.Record, i int, why string) string {
	return fmt.Sprintf("post %d of %d may be live: %s", i+1, len(head.Posts), why)
}

// freshParent reports whether the begun post replies to a post of ours of the last minutes:
// the post before it or, for the first post, one of another request.
func (t *threadRun) freshParent(ctx context.Context, s situation) bool {
	if t.begun > 0 {
		return s.now.Before(t.head.Posts[t.begun-1].SentAt.Add(t.r.h.Timing.replicaLag()))
	}
	parent := t.request.Posts[0].InReplyToPostID
	if !madeAt(parent).After(s.now.Add(-t.r.h.Timing.replicaLag())) || s.holds >= int(replicaLag/replicaWait) {
		return false
	}
	owned, err := persist(ctx, t.r, "read parent", func() ([]string, error) { return t.r.h.Ledger.Owned(ctx, []string{parent}) })
	if err != nil || len(owned) == 0 {
		return false
	}
	deleted, err := persist(ctx, t.r, "read parent", func() ([]string, error) { return t.r.h.Ledger.Deleted(ctx, owned) })
	return err == nil && len(deleted) == 0
}

// madeAt is when X made a post. The time is in the upper bits of the post's id. It is zero if
// postID is not an id of X.
func madeAt(postID string) time.Time {
	id, err := strconv.ParseInt(postID, 10, 64)
	if err != nil || id <= 0 {
		return time.Time{}
	}
	const idEpochMS = 1_288_834_974_657 // the epoch of X's ids, in Unix milliseconds
	return time.UnixMilli(id>>22 + idEpochMS)
}

// reconcile settles a post in doubt with a timeline check of the account on X. The post is
// live if exactly one post on the timeline can be it. It is absent if two checks, some time
// apart, show all posts of that time, including the anchor post, and none that can be it. A
// check without a result is followed by another one, and after maxChecks a person has to
// decide.
func (r *laneRun) reconcile(ctx context.Context, client *xapi.Client, head *store.Record, i int, ours jetpost.Post) attempt {
	post := head.Posts[i]
	now := time.Now()
	if err := r.pass.Ask(ctx, admission.Calls{Endpoint: xapi.EndpointUserPosts, N: 1}); err != nil {
		return r.left(head, err)
	}
	anchor, err := persist(ctx, r, "anchor post", func() (store.Anchor, error) { return r.h.Ledger.Anchor(ctx, head.Account) })
	if err != nil {
		return attempt{decision: goOn(), post: -1, err: err}
	}
	search := newSearch(r.h.Timing, post, ours, anchor)
	if err := r.readTimeline(ctx, client, search); err != nil {
		decided := judgeRead(err, situation{now: time.Now(), holds: head.Holds})
		if decided.kind == kindUnknown {
			return attempt{decision: decided, post: i, checks: post.Checks, absentAt: post.AbsentAt}
		}
		return attempt{decision: decided, post: -1, err: err}
	}
	owned, err := persist(ctx, r, "owned", func() ([]string, error) { return r.h.Ledger.Owned(ctx, search.ids()) })
	if err != nil {
		return attempt{decision: goOn(), post: -1, err: err}
	}
	found := search.judge(owned)
	if found.verdict == foundLive {
		return r.adopt(ctx, head, i, found.postID)
	}
	r.log.Info("post.looked_for", "request", head.ID, "post", i, "check", post.Checks+1, "found", found.verdict, "seen", search.seen, "why", found.why)
	if found.verdict == foundAbsent {
		return r.absent(post, i, now, search.later)
	}
	checks, detail := post.Checks+1, maybeLive(head, i, found.why)
	if checks >= maxChecks {
		return attempt{decision: unknown(detail), post: i, checks: checks}
	}
	return attempt{decision: doubtUntil(now.Add(r.h.Timing.checkAgain(checks)), detail), post: i, checks: checks}
}

// absent is the attempt after a timeline check that found the post absent. A second check
// has to confirm it, and then the post is sent again. Neither counts as a check without a
// result. If X shows a post that was made later, its timeline does not lag, so the second
// check may follow sooner.
func (r *laneRun) absent(post store.PostRecord, i int, now time.Time, fresh bool) attempt {
	first := post.AbsentAt
	if first.IsZero() {
		first = now
	}
	if confirm := first.Add(r.h.Timing.confirmAfter(fresh)); now.Before(confirm) {
		again := doubtUntil(confirm, fmt.Sprintf("post %d is not on X; one more timeline check has to confirm it", i+1))
		return attempt{decision: again, post: i, checks: post.Checks, absentAt: first}
	}
	return attempt{decision: holdUntil(jetpost.CodeReconciling, now, fmt.Sprintf("post %d is not on X", i+1)), post: i}
}

// judgeRead is the decision about a timeline check that failed. An error of the read says
// nothing about the post, which stays in doubt, so the request waits. If X keeps refusing the
// read itself, a person has to decide.
func judgeRead(err error, s situation) decision {
	v := judge(err, s)
	switch {
	case v.kind == kindPause && (v.reason.Code == jetpost.CodeAppRateLimited || v.reason.Code == jetpost.CodeUsageCapped):
		// Only the reads are used up: posting goes on.
		until := v.reason.Until
		if until.IsZero() {
			until = s.now.Add(readsCapped)
		}
		return holdUntil(jetpost.CodeRateLimited, until, v.reason.Detail)
	case v.kind == kindHold, v.kind == kindPause, v.kind == kindBlock, v.kind == kindGoOn:
		return v
	case s.holds >= readTries:
		return unknown("X does not show the account's posts: " + v.reason.Detail)
	default:
		return holdUntil(jetpost.CodeReconciling, s.now.Add(backoff(s.holds+1)), "X does not show the account's posts: "+v.reason.Detail)
	}
}

// adopt commits that a post on X is ours.
func (r *laneRun) adopt(ctx context.Context, head *store.Record, i int, postID string) attempt {
	state, err := persist(ctx, r, "posted", func() (jetpost.State, error) {
		return r.h.Ledger.Posted(ctx, r.lane, head.ID, store.LivePost{Post: i, PostID: postID, Now: time.Now()})
	})
	if errors.Is(err, store.ErrFenced) {
		// Another worker has the lane, or a person has named another post. The next
		// read of the ledger shows which.
		err = nil
	} else if err == nil {
		r.h.Observe.tell(DoubtEnded, DoubtFound, 0)
		if state.Finished() {
			r.h.Observe.tell(RequestSettled, string(state), 0)
		}
		r.log.Info("post.found", "request", head.ID, "post", i, "post_id", postID, "of", len(head.Posts), "state", state)
		r.h.Announce.try(ctx, head.Key)
	}
	return attempt{decision: goOn(), post: -1, err: err}
}

// readTimeline reads the account's posts, the newest first, back to search.from.
func (r *laneRun) readTimeline(ctx context.Context, client *xapi.Client, s *search) error {
	query := xapi.UserPostsQuery{StartTime: s.from, MaxResults: pagePosts}
	for range maxPages {
		page, err := admission.Call(ctx, r.pass, admission.Calls{Endpoint: xapi.EndpointUserPosts, N: 1}, func() (xapi.UserPostsPage, error) {
			return client.UserPosts(ctx, s.anchor.XUserID, query)
		})
		if err != nil {
			return err
		}
		if s.add(page) {
			return nil
		}
		query.PaginationToken = page.NextToken
	}
	return nil // incomplete, so the check has no result
}

// search is one timeline check for one post.
type search struct {
	timing timing
	post   store.PostRecord
	quoted string // id of the post that ours quotes
	text   string
	bare   string // text without its links
	anchor store.Anchor
	since  time.Time // of the first intent that may have made it
	until  time.Time // when X has answered the latest intent, or never will
	from   time.Time // how far back the check goes

	community bool // ours goes to a community, whose posts a timeline may omit

	seen     int  // number of posts
	control  bool // X showed the anchor post, or there is none
	later    bool // X showed a post made after any that can be ours
	covered  bool // X showed all posts since the first intent
	complete bool // covered, with the anchor post or the end of the timeline
	partly   bool // X omitted something
	matches  []xapi.UserPost
	similar  []xapi.UserPost // not equal, but it may be ours
}

func newSearch(timing timing, post store.PostRecord, ours jetpost.Post, anchor store.Anchor) *search {
	s := &search{timing: timing, post: post, quoted: ours.QuotePostID, text: plainText(ours.Text), bare: withoutLinks(ours.Text), anchor: anchor, since: post.SentAt, until: timing.answeredBy(post.NotAfter), community: ours.CommunityID != ""}
	if !post.DoubtSince.IsZero() && post.DoubtSince.Before(s.since) {
		s.since = post.DoubtSince
	}
	s.from = s.since
	if anchor.PostID != "" && anchor.SentAt.Before(s.from) {
		s.from = anchor.SentAt
	}
	s.from = s.from.Add(-timing.strangerMargin())
	s.control = anchor.PostID == ""
	return s
}

// add evaluates a page, and reports whether it was the last one needed.
func (s *search) add(page xapi.UserPostsPage) bool {
	s.partly = s.partly || page.Incomplete
	for _, p := range page.Posts {
		s.seen++
		if p.ID == s.anchor.PostID {
			s.control = true
			continue
		}
		if p.CreatedAt.IsZero() {
			s.partly = true
			continue
		}
		s.later = s.later || p.CreatedAt.After(s.until.Add(s.timing.clockMargin()))
		s.covered = s.covered || p.CreatedAt.Before(s.since.Add(-s.timing.strangerMargin()))
		s.weigh(p)
	}
	last := page.NextToken == ""
	s.covered = s.covered || last
	s.complete = last || s.covered && s.control
	return s.complete
}

// weigh keeps a post that is ours or may be. X gives times in whole seconds, and may show a
// post on two pages.
func (s *search) weigh(p xapi.UserPost) {
	switch {
	case slices.Contains(s.ids(), p.ID):
	case p.CreatedAt.Before(s.since.Add(-s.timing.strangerMargin()).Truncate(time.Second)):
	case s.matchesFully(p) && !p.CreatedAt.Before(s.since.Add(-s.timing.clockMargin()).Truncate(time.Second)):
		s.matches = append(s.matches, p)
	case s.resembles(p):
		s.similar = append(s.similar, p)
	}
}

func (s *search) matchesFully(p xapi.UserPost) bool {
	// A link to a post, at the end of a text, quotes it.
	quotes := p.QuotedPostID == s.quoted || s.quoted == "" && linksTo(lastWord(s.text), p.QuotedPostID)
	ours, theirs := s.texts(p)
	switch {
	case p.InReplyToPostID != s.post.ParentID, !quotes, ours != theirs:
		return false
	default:
		return s.text != "" || s.sameMedia(p)
	}
}

// texts returns the plain texts of both posts, without what X may have added: the link to the
// quoted post, and the mentions at the start of a reply.
func (s *search) texts(p xapi.UserPost) (ours, theirs string) {
	ours, theirs = s.text, plainText(p.ExpandedText())
	if p.QuotedPostID != "" {
		ours, theirs = withoutLinkTo(ours, p.QuotedPostID), withoutLinkTo(theirs, p.QuotedPostID)
	}
	return s.withoutMentions(ours, theirs, p)
}

func (s *search) withoutMentions(ours, theirs string, p xapi.UserPost) (string, string) {
	if s.post.ParentID != "" {
		ours = leadingMentions.ReplaceAllString(ours, "")
	}
	if p.InReplyToPostID != "" {
		theirs = leadingMentions.ReplaceAllString(theirs, "")
	}
	return ours, theirs
}

// EqualText reports whether a post on X has the text of ours, except for the changes that X
// makes to a text.
func EqualText(record store.PostRecord, ours jetpost.Post, theirs xapi.UserPost) bool {
	a, b := newSearch(timing{}, record, ours, store.Anchor{}).texts(theirs)
	return a == b
}

// SamePost reports whether a post on X can be ours: it has the same text or, without a text,
// the same media, and it replies to and quotes the same posts.
func SamePost(record store.PostRecord, ours jetpost.Post, theirs xapi.UserPost) bool {
	return newSearch(timing{}, record, ours, store.Anchor{}).matchesFully(theirs)
}

// sameMedia compares only the media. The key of a medium consists of its kind and its id.
func (s *search) sameMedia(p xapi.UserPost) bool {
	if len(p.MediaKeys) != len(s.post.MediaIDs) {
		return false
	}
	for _, key := range p.MediaKeys {
		_, id, _ := strings.Cut(key, "_")
		if !slices.Contains(s.post.MediaIDs, id) {
			return false
		}
	}
	return true
}

// resembles reports whether a post is so similar to ours that ours must not be taken for
// absent: the same letters in another form or with other links, the first letters of a long
// text that X has truncated, or media or a link without a text.
func (s *search) resembles(p xapi.UserPost) bool {
	if ours, theirs := s.texts(p); letters(ours) != "" && letters(ours) == letters(theirs) {
		return true
	}
	linked := p
	linked.URLs = nil
	text := linked.ExpandedText()
	shown := plainText(shortLink.ReplaceAllString(text, ""))
	ours, theirs := s.withoutMentions(s.bare, shown, p)
	ours, theirs = letters(ours), letters(theirs)
	switch {
	case ours == "" && theirs == "":
		return (len(s.post.MediaIDs) > 0 || s.bare != s.text) == (len(p.MediaKeys) > 0 || shortLink.MatchString(text))
	case strings.HasSuffix(shown, "…") && tweettext.Measure(s.text).Weight > tweettext.MaxWeight:
		return theirs != "" && strings.HasPrefix(ours, theirs)
	default:
		return ours == theirs
	}
}

func (s *search) ids() []string {
	var ids []string
	for _, p := range slices.Concat(s.matches, s.similar) {
		ids = append(ids, p.ID)
	}
	return ids
}

// finding is the result of a timeline check.
type finding struct {
	verdict string
	postID  string // for foundLive
	why     string // for the others
}

const (
	foundLive    = "live"
	foundAbsent  = "absent"
	foundNothing = "nothing certain"
)

// judge returns the result of the check. It ignores posts that the ledger has for other
// requests.
func (s *search) judge(owned []string) finding {
	foreign := func(p xapi.UserPost) bool { return slices.Contains(owned, p.ID) }
	matches := slices.DeleteFunc(slices.Clone(s.matches), foreign)
	similar := slices.DeleteFunc(slices.Clone(s.similar), foreign)
	switch {
	case len(matches) == 1 && len(similar) == 0 && s.covered && !s.partly:
		return finding{verdict: foundLive, postID: matches[0].ID}
	case len(matches) > 1:
		return finding{verdict: foundNothing, why: fmt.Sprintf("%d posts on X can be it, among them %s", len(matches), matches[0].ID)}
	case len(similar) > 0:
		return finding{verdict: foundNothing, why: "post " + similar[0].ID + " on X resembles it"}
	case !s.complete, s.partly:
		return finding{verdict: foundNothing, why: "X did not show all posts of that time"}
	case s.community:
		return finding{verdict: foundNothing, why: "X may omit posts of a community from the timeline"}
	case !s.control:
		return finding{verdict: foundNothing, why: "X does not show post " + s.anchor.PostID + ", which was live before"}
	default:
		return finding{verdict: foundAbsent, why: "no post on X can be it"}
	}
}

var (
	scheme          = regexp.MustCompile(`(?i)https?://`)
	shortLink       = regexp.MustCompile(`(?i)https?://t\.co/[a-z0-9]*`)
	leadingMentions = regexp.MustCompile(`^(?:@\w+ )+`)
)

// plainText normalizes a text, so that the author's version and X's version are equal: X adds
// a missing scheme to a link, and may add a slash to a host or write it in lower case.
func plainText(text string) string {
	words := strings.Fields(norm.NFC.String(text))
	for i, word := range words {
		words[i] = plainWord(scheme.ReplaceAllString(word, ""))
	}
	return strings.Join(words, " ")
}

func plainWord(word string) string {
	link := strings.TrimRight(word, `.,:;!?'")]`)
	mark := word[len(link):]
	link = strings.TrimSuffix(link, "/")
	host := len(link)
	if i := strings.IndexAny(link, "/?#"); i >= 0 {
		host = i
	}
	if strings.Contains(link[:host], ".") {
		link = strings.ToLower(link[:host]) + link[host:]
	}
	return link + mark
}

// withoutLinks is the plain text without the parts that X turns into links.
func withoutLinks(text string) string {
	for _, link := range slices.Backward(tweettext.URLs(text)) {
		text = text[:link.Start] + text[link.End:]
	}
	return plainText(text)
}

func lastWord(text string) string { return text[strings.LastIndexByte(text, ' ')+1:] }

// withoutLinkTo removes a link to a post from the end of a plain text.
func withoutLinkTo(text, postID string) string {
	if last := lastWord(text); linksTo(last, postID) {
		return strings.TrimSuffix(text[:len(text)-len(last)], " ")
	}
	return text
}

// linksTo reports whether a word is a link to the post.
func linksTo(word, postID string) bool {
	_, rest, found := strings.Cut(word, "/status/"+postID)
	return found && (rest == "" || !unicode.IsDigit(rune(rest[0])))
}

// letters are the letters and digits of a text, in lower case.
func letters(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, text)
}
