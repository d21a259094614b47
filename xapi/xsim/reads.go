package xsim

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	pageDefault = 10 // posts

	// createdFormat is X's: whole seconds, with milliseconds that are always zero.
	createdFormat = "2006-01-02T15:04:05.000Z"
)

// urlEntity is a link of a text. Start and End are code points of the text.
type urlEntity struct {
	Start       int    `json:"start"`
	End         int    `json:"end"`
	URL         string `json:"url"`
	ExpandedURL string `json:"expanded_url"`
	DisplayURL  string `json:"display_url"`
	MediaKey    string `json:"media_key,omitempty"`
}

// render writes a text as X gives it back: t.co links, entities escaped, and a
// link to the media at the end. All media of a post share that one link.
func render(text string, p *post) (string, []urlEntity) {
	var b strings.Builder
	var urls []urlEntity
	escape := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")
	length := func() int { return utf8.RuneCountInString(b.String()) }
	from := 0
	for _, l := range findLinks(text) {
		b.WriteString(escape.Replace(text[from:l.start]))
		short, start := shorten(l.expanded), length()
		b.WriteString(short)
		_, display, _ := strings.Cut(l.expanded, "://")
		urls = append(urls, urlEntity{Start: start, End: length(), URL: short, ExpandedURL: l.expanded, DisplayURL: display})
		from = l.end
	}
	b.WriteString(escape.Replace(text[from:]))
	if len(p.media) == 0 {
		return b.String(), urls
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	page := fmt.Sprintf("https://x.com/%s/status/%s/%s/1", p.author.Handle, p.ID, p.media[0].page())
	short, start := shorten(page), length()
	b.WriteString(short)
	for _, m := range p.media {
		urls = append(urls, urlEntity{start, length(), short, page, "pic.x.com/" + short[len("https://t.co/"):], m.MediaKey})
	}
	return b.String(), urls
}

// fields are what a read asked for, and in which vocabulary.
type fields struct {
	posts, users, media []string // names of the fields
	expansions          []string
	older               bool // tweet.fields: referenced_tweets instead of referenced_posts, and so on
}

func (f fields) word(old, modern string) string {
	if f.older {
		return old
	}
	return modern
}

// readFields takes what a query that was checked asks for.
func readFields(q url.Values) fields {
	list := func(name string) []string {
		return strings.FieldsFunc(q.Get(name), func(r rune) bool { return r == ',' })
	}
	f := fields{posts: list("post.fields"), users: list("user.fields"), media: list("media.fields"), expansions: list("expansions")}
	if q.Has("tweet.fields") || !q.Has("post.fields") && slices.ContainsFunc(f.expansions, func(e string) bool { return strings.Contains(e, "tweet") && !strings.HasPrefix(e, "attachments.") }) {
		f.older, f.posts = true, append(list("tweet.fields"), f.posts...)
	}
	return f
}

// view is the post as a read shows it.
func (f fields) view(p *post, w *world) map[string]any {
	short, long := p.stored, weigh(p.stored) > maxWeight
	if long {
		runes := []rune(p.stored)
		short = string(runes[:min(len(runes), maxWeight/2-1)]) + "…"
	}
	text, urls := render(short, p)
	v := map[string]any{"id": p.ID, "text": text}
	if f.older {
		v["edit_history_tweet_ids"] = []string{p.ID}
	}
	// In the older vocabulary the ids of others are fields, in 2.167 they come with
	// the expansion alone.
	for _, name := range slices.Concat(f.posts, f.expansions) {
		switch {
		case name == "author_id":
			v[name] = p.AuthorID
		case name == "username":
			v[name] = p.author.Handle
		case name == "conversation_id":
			v[name] = p.conversation
		case name == "created_at":
			v[name] = p.CreatedAt.UTC().Truncate(time.Second).Format(createdFormat)
		case name == "edit_history_post_ids":
			v[name] = []string{p.ID}
		case name == "entities" && len(urls) > 0:
			v[name] = map[string]any{"urls": urls}
		case (name == "attachments" || name == "attachments.media_keys") && len(p.media) > 0:
			v["attachments"] = map[string]any{"media_keys": mediaKeys(p.media)}
		case name == "in_reply_to_user_id" && p.InReplyTo != "":
			v[name] = w.posts[p.InReplyTo].AuthorID
		case strings.HasPrefix(name, f.word("referenced_tweets", "referenced_posts")) && p.InReplyTo != "":
			v[f.word("referenced_tweets", "referenced_posts")] = []map[string]string{{"type": "replied_to", "id": p.InReplyTo}}
		case name == f.word("note_tweet", "note_post") && long:
			full, fullURLs := render(p.stored, p)
			v[name] = map[string]any{"text": full, "entities": map[string]any{"urls": fullURLs}}
		case name == "lang":
			v[name] = "en"
		case name == "public_metrics":
			v[name] = map[string]int{f.word("retweet_count", "repost_count"): 0, "reply_count": 0, "like_count": 0, "quote_count": 0, "bookmark_count": 0, "impression_count": 0}
		case name == "possibly_sensitive":
			v[name] = false
		}
	}
	return v
}

// includes are the objects that the expansions of the posts name, each once.
func (f fields) includes(posts []*post, w *world, now time.Time) map[string]any {
	var users []*account
	var related []*post
	var media []*medium
	for _, p := range posts {
		parent := w.posts[p.InReplyTo]
		for _, name := range f.expansions {
			switch {
			case name == "author_id":
				users = append(users, p.author)
			case name == "in_reply_to_user_id" && parent != nil:
				users = append(users, parent.author)
			case (name == "referenced_posts" || strings.HasPrefix(name, "referenced_tweets.id")) && parent != nil && !parent.gone(now):
				related = append(related, parent)
				if name == "referenced_tweets.id.author_id" {
					users = append(users, parent.author)
				}
			case name == "attachments.media_keys":
				media = append(media, p.media...)
			}
		}
	}
	included := map[string]any{}
	if users = distinct(users); len(users) > 0 {
		included["users"] = mapped(users, func(a *account) map[string]any { return a.view(f.users, now) })
	}
	if related = distinct(related); len(related) > 0 {
		included[f.word("tweets", "posts")] = mapped(related, func(p *post) map[string]any { return f.view(p, w) })
	}
	if media = distinct(media); len(media) > 0 {
		included["media"] = mapped(media, func(m *medium) map[string]any { return m.view(f.media) })
	}
	return included
}

func distinct[T comparable](list []T) []T {
	var once []T
	for _, v := range list {
		if !slices.Contains(once, v) {
			once = append(once, v)
		}
	}
	return once
}

func mapped[T, V any](list []T, view func(T) V) []V {
	views := make([]V, 0, len(list))
	for _, v := range list {
		views = append(views, view(v))
	}
	return views
}

// answerPosts is what a read of posts answers; one says that it was about one.
func (s *Server) answerPosts(c *call, f fields, posts []*post, one bool, body map[string]any) answer {
	views := mapped(posts, func(p *post) map[string]any { return f.view(p, s.w) })
	switch {
	case len(views) > 0 && one:
		body["data"] = views[0]
	case len(views) > 0:
		body["data"] = views
	}
	if included := f.includes(posts, s.w, c.now); len(included) > 0 {
		body["includes"] = included
	}
	return jsonAnswer(http.StatusOK, body)
}

// missing is the part of a successful read for what does not exist.
func missing(kind, parameter, id string) map[string]string {
	return map[string]string{
		"value": id, "resource_id": id, "parameter": parameter, "resource_type": kind, "title": "Not Found Error",
		"detail": fmt.Sprintf("Could not find %s with %s: [%s].", kind, parameter, id), "type": typeResourceMissing,
	}
}

// hidden is the part of a read for what another account protects.
func hidden(kind, parameter, id string) map[string]string {
	return map[string]string{
		"value": id, "resource_id": id, "parameter": parameter, "resource_type": kind, "title": "Authorization Error",
		"detail": fmt.Sprintf("Sorry, you are not authorized to see the %s with %s: [%s].", kind, parameter, id), "type": typeNotAuthorized,
	}
}

// lookUp serves one post by path or many by ids. What is missing is an error
// inside a 200.
func (s *Server) lookUp(c *call) answer {
	if m, ok := s.checkQuery(c); !ok {
		return s.malformed(c, m)
	}
	q := c.r.URL.Query()
	ids, parameter := []string{c.id}, "id"
	if c.endpoint == EndpointPosts {
		ids, parameter = strings.Split(q.Get("ids"), ","), "ids"
	}
	var found []*post
	var errs []map[string]string
	for _, id := range ids {
		if !isID(id) {
			return s.malformed(c, mistake{parameter, id, fmt.Sprintf("The `%s` query parameter value [%s] is not valid", parameter, id)})
		}
		switch p := s.w.posts[id]; {
		case p == nil || p.gone(c.now):
			errs = append(errs, missing("post", parameter, id))
		case p.author.hides(c.account):
			errs = append(errs, hidden("post", parameter, id))
		default:
			found = append(found, p)
		}
	}
	body := map[string]any{}
	if len(errs) > 0 {
		body["errors"] = errs
	}
	return s.answerPosts(c, readFields(q), found, c.endpoint == EndpointPost, body)
}

// firstPostTime is the earliest that a timeline can be asked for.
func firstPostTime() time.Time { return time.Date(2010, time.November, 6, 0, 0, 0, 0, time.UTC) }

// timelineQuery is which posts of a timeline were asked for.
type timelineQuery struct {
	max            int
	since, until   int64 // exclusive ids, 0 for none
	start, end     time.Time
	excludeReplies bool
	older, newer   int64 // what a pagination token stands for: ids below, or above
}

// timeline serves a user's posts, newest first.
func (s *Server) timeline(c *call) answer {
	if m, ok := s.checkQuery(c); !ok {
		return s.malformed(c, m)
	}
	q := c.r.URL.Query()
	t, m, ok := readTimelineQuery(q, c.now)
	if !ok {
		return s.malformed(c, m)
	}
	a := s.w.accounts[c.id]
	if a == nil {
		return jsonAnswer(http.StatusOK, map[string]any{"errors": []map[string]string{missing("user", "id", c.id)}})
	}
	if a.hides(c.account) {
		return jsonAnswer(http.StatusOK, map[string]any{"errors": []map[string]string{hidden("user", "id", c.id)}})
	}
	lag := max(s.TimelineLag, c.plan.lag)
	var visible []*post
	for _, p := range slices.Backward(a.posts) {
		if !p.gone(c.now) && !p.CreatedAt.After(c.now.Add(-lag)) && t.shows(p) {
			visible = append(visible, p)
		}
	}
	page, meta := t.page(visible)
	return s.answerPosts(c, readFields(q), page, false, map[string]any{"meta": meta})
}

func readTimelineQuery(q url.Values, now time.Time) (timelineQuery, mistake, bool) {
	t := timelineQuery{max: pageDefault}
	bad := func(name string) (timelineQuery, mistake, bool) {
		return t, mistake{name, q.Get(name), fmt.Sprintf("The `%s` query parameter value [%s] is not valid", name, q.Get(name))}, false
	}
	if v := q.Get("max_results"); v != "" {
		t.max, _ = strconv.Atoi(v) // checked, as all the others
	}
	for name, into := range map[string]*int64{"since_id": &t.since, "until_id": &t.until} {
		*into, _ = strconv.ParseInt(q.Get(name), 10, 64)
	}
	for name, into := range map[string]*time.Time{"start_time": &t.start, "end_time": &t.end} {
		*into, _ = time.Parse(time.RFC3339, q.Get(name))
		if q.Has(name) && into.Before(firstPostTime()) && now.After(firstPostTime()) { // a fake clock may stand before it
			return bad(name)
		}
	}
	switch {
	case q.Has("start_time") && q.Has("end_time") && !t.start.Before(t.end):
		return bad("start_time")
	case q.Has("since_id") && q.Has("until_id") && t.since >= t.until:
		return bad("since_id")
	}
	t.excludeReplies = named(q, "exclude", "replies")
	if v := q.Get("pagination_token"); v != "" && !t.readToken(v) {
		return bad("pagination_token")
	}
	return t, mistake{}, true
}

// Tokens are "n" or "p" and an id: the page of older posts, or of newer ones.
func (t *timelineQuery) readToken(token string) bool {
	id, err := strconv.ParseInt(token[1:], 36, 64)
	switch {
	case err != nil:
		return false
	case token[0] == 'n':
		t.older = id
	case token[0] == 'p':
		t.newer = id
	default:
		return false
	}
	return true
}

func pageToken(kind string, p *post) string { return kind + strconv.FormatInt(p.number(), 36) }

// number is the id for comparing. Ids are the server's own, and so always parse.
func (p *post) number() int64 {
	n, _ := strconv.ParseInt(p.ID, 10, 64)
	return n
}

func (t *timelineQuery) shows(p *post) bool {
	n := p.number()
	switch {
	case t.since != 0 && n <= t.since, t.until != 0 && n >= t.until:
		return false
	case !t.start.IsZero() && p.CreatedAt.Before(t.start), !t.end.IsZero() && !p.CreatedAt.Before(t.end):
		return false
	}
	return !t.excludeReplies || p.InReplyTo == ""
}

type pageMeta struct {
	ResultCount   int    `json:"result_count"`
	NewestID      string `json:"newest_id,omitempty"`
	OldestID      string `json:"oldest_id,omitempty"`
	NextToken     string `json:"next_token,omitempty"`
	PreviousToken string `json:"previous_token,omitempty"`
}

// page cuts the token's page out of what is visible, newest first.
func (t *timelineQuery) page(visible []*post) ([]*post, pageMeta) {
	from, to := 0, len(visible)
	if t.older != 0 {
		from = slices.IndexFunc(visible, func(p *post) bool { return p.number() < t.older })
		if from < 0 {
			from = to
		}
	}
	if t.newer != 0 {
		if i := slices.IndexFunc(visible, func(p *post) bool { return p.number() <= t.newer }); i >= 0 {
			to = i
		}
		from = max(0, to-t.max)
	}
	to = min(to, from+t.max)
	page := visible[from:to]
	meta := pageMeta{ResultCount: len(page)}
	if len(page) == 0 {
		return page, meta
	}
	first, last := page[0], page[len(page)-1]
	meta.NewestID, meta.OldestID = first.ID, last.ID
	if to < len(visible) {
		meta.NextToken = pageToken("n", last)
	}
	if from > 0 {
		meta.PreviousToken = pageToken("p", first)
	}
	return page, meta
}

// users serves the account behind the token, or the one that the path names.
func (s *Server) users(c *call) answer {
	if m, ok := s.checkQuery(c); !ok {
		return s.malformed(c, m)
	}
	a, parameter := c.account, "id"
	switch c.endpoint {
	case EndpointUser:
		a = s.w.accounts[c.id]
	case EndpointUserByName:
		a, parameter = s.w.handles[strings.ToLower(c.id)], "username"
	}
	if a == nil {
		return jsonAnswer(http.StatusOK, map[string]any{"errors": []map[string]string{missing("user", parameter, c.id)}})
	}
	return jsonAnswer(http.StatusOK, map[string]any{"data": a.view(readFields(c.r.URL.Query()).users, c.now)})
}

// live counts the account's posts that exist.
func (a *account) live(now time.Time) int {
	n := 0
	for _, p := range a.posts {
		if !p.gone(now) {
			n++
		}
	}
	return n
}

// view is the account as a read shows it.
func (a *account) view(names []string, now time.Time) map[string]any {
	data := map[string]any{"id": a.ID, "name": a.Handle, "username": a.Handle}
	for _, name := range names {
		switch name {
		case "created_at":
			data[name] = a.CreatedAt.UTC().Format(createdFormat)
		case "subscription_type":
			data[name] = a.SubscriptionType
		case "verified":
			data[name] = a.premium()
		case "verified_type":
			data[name] = map[bool]string{true: "blue", false: "none"}[a.premium()]
		case "protected":
			data[name] = a.State == AccountProtected
		case "description":
			data[name] = ""
		case "public_metrics":
			data[name] = map[string]int{"followers_count": 0, "following_count": 0, "post_count": a.live(now), "tweet_count": a.live(now), "listed_count": 0}
		}
	}
	return data
}

// view is the medium as a read shows it.
func (m *medium) view(names []string) map[string]any {
	kind := map[string]string{"tweet_gif": "animated_gif"}[m.Category]
	switch {
	case kind != "":
	case m.page() == "video":
		kind = "video"
	default:
		kind = "photo"
	}
	data := map[string]any{"media_key": m.MediaKey, "type": kind}
	for _, name := range names {
		switch {
		case name == "width" && m.width > 0:
			data[name] = m.width
		case name == "height" && m.height > 0:
			data[name] = m.height
		case name == "alt_text" && m.AltText != "":
			data[name] = m.AltText
		}
	}
	return data
}
