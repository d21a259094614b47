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

	"golang.org/x/text/unicode/norm"
)

const (
	pageDefault, pageMin, pageMax = 10, 5, 100 // posts
	maxLookupIDs                  = 100

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
	names  []string
	modern bool // post.fields: referenced_posts instead of referenced_tweets, and so on
}

func (f fields) word(old, modern string) string {
	if f.modern {
		return modern
	}
	return old
}

// view is the post as a read shows it.
func (f fields) view(p *post, w *world) map[string]any {
	source := norm.NFC.String(p.Text)
	short, long := source, weigh(source) > maxWeight
	if long {
		runes := []rune(source)
		short = string(runes[:min(len(runes), maxWeight/2-1)]) + "…"
	}
	text, urls := render(short, p)
	v := map[string]any{"id": p.ID, "text": text, f.word("edit_history_tweet_ids", "edit_history_post_ids"): []string{p.ID}}
	for _, name := range f.names {
		switch {
		case name == "author_id":
			v[name] = p.AuthorID
		case name == "conversation_id":
			v[name] = p.conversation
		case name == "created_at":
			v[name] = p.CreatedAt.UTC().Truncate(time.Second).Format(createdFormat)
		case name == "entities" && len(urls) > 0:
			v[name] = map[string]any{"urls": urls}
		case name == "attachments" && len(p.media) > 0:
			v[name] = map[string]any{"media_keys": mediaKeys(p.media)}
		case name == "in_reply_to_user_id" && p.InReplyTo != "":
			v[name] = w.posts[p.InReplyTo].AuthorID
		case name == f.word("referenced_tweets", "referenced_posts") && p.InReplyTo != "":
			v[name] = []map[string]string{{"type": "replied_to", "id": p.InReplyTo}}
		case name == f.word("note_tweet", "note_post") && long:
			full, fullURLs := render(source, p)
			v[name] = map[string]any{"text": full, "entities": map[string]any{"urls": fullURLs}}
		}
	}
	return v
}

// checkQuery refuses parameters that are unknown, empty or given twice.
func checkQuery(q url.Values, known []string) (mistake, bool) {
	for name, values := range q {
		if !slices.Contains(known, name) {
			slices.Sort(known)
			return mistake{name, values[0], fmt.Sprintf("The query parameter [%s] is not one of [%s]", name, strings.Join(known, ","))}, false
		}
		if len(values) != 1 || values[0] == "" {
			return mistake{name, strings.Join(values, ","), "The query parameter [" + name + "] must be given once, and not empty"}, false
		}
	}
	return mistake{}, true
}

// readFields takes post.fields or tweet.fields. Parameters other than these, those
// every read has, and the extra ones are refused.
func readFields(q url.Values, extra ...string) (fields, mistake, bool) {
	known := slices.Concat(extra, []string{"tweet.fields", "post.fields", "expansions", "user.fields", "media.fields", "poll.fields", "place.fields"})
	if m, ok := checkQuery(q, known); !ok {
		return fields{}, m, false
	}
	f, param := fields{modern: q.Has("post.fields")}, "tweet.fields"
	if f.modern {
		param = "post.fields"
	}
	if !q.Has(param) {
		return f, mistake{}, true
	}
	allowed := []string{
		"article", "attachments", "author_id", "card_uri", "community_id", "context_annotations", "conversation_id",
		"created_at", "display_text_range", "edit_controls", "entities", "geo", "id", "in_reply_to_user_id", "lang",
		"media_metadata", "non_public_metrics", "organic_metrics", "paid_partnership", "possibly_sensitive",
		"promoted_metrics", "public_metrics", "reply_settings", "scopes", "source", "text", "withheld",
		f.word("edit_history_tweet_ids", "edit_history_post_ids"), f.word("note_tweet", "note_post"), f.word("referenced_tweets", "referenced_posts"),
	}
	f.names = strings.Split(q.Get(param), ",")
	for _, name := range f.names {
		if !slices.Contains(allowed, name) {
			return f, mistake{param, name, fmt.Sprintf("The `%s` query parameter value [%s] is not one of [%s]", param, name, strings.Join(allowed, ","))}, false
		}
	}
	return f, mistake{}, true
}

// missing is how a read that is otherwise fine tells of what does not exist.
func missing(kind, parameter, id string) map[string]string {
	return map[string]string{
		"value": id, "resource_id": id, "parameter": parameter, "resource_type": kind, "title": "Not Found Error",
		"detail": fmt.Sprintf("Could not find %s with %s: [%s].", kind, parameter, id), "type": typeResourceMissing,
	}
}

// lookUp serves one post by path or many by ids. What is missing is an error
// inside a 200.
func (s *Server) lookUp(c *call) answer {
	q := c.r.URL.Query()
	ids, parameter, extra := []string{c.id}, "id", []string(nil)
	if c.endpoint == EndpointPosts {
		ids, parameter, extra = strings.Split(q.Get("ids"), ","), "ids", []string{"ids"}
	}
	f, m, ok := readFields(q, extra...)
	if !ok {
		return s.malformed(c, m)
	}
	if len(ids) > maxLookupIDs {
		return s.malformed(c, mistake{parameter, strconv.Itoa(len(ids)), "The number of values in the `ids` query parameter list is not between 1 and 100"})
	}
	var found []map[string]any
	var errs []map[string]string
	for _, id := range ids {
		if !isID(id) {
			return s.malformed(c, mistake{parameter, id, fmt.Sprintf("The `%s` query parameter value [%s] is not valid", parameter, id)})
		}
		if p := s.w.posts[id]; p != nil && !p.deleted {
			found = append(found, f.view(p, s.w))
		} else {
			errs = append(errs, missing("tweet", parameter, id))
		}
	}
	body := map[string]any{}
	switch {
	case len(found) > 0 && c.endpoint == EndpointPost:
		body["data"] = found[0]
	case len(found) > 0:
		body["data"] = found
	}
	if len(errs) > 0 {
		body["errors"] = errs
	}
	return jsonAnswer(http.StatusOK, body)
}

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
	q := c.r.URL.Query()
	f, m, ok := readFields(q, "max_results", "pagination_token", "since_id", "until_id", "start_time", "end_time", "exclude")
	if !ok {
		return s.malformed(c, m)
	}
	t, m, ok := readTimelineQuery(q)
	if !ok {
		return s.malformed(c, m)
	}
	a := s.w.accounts[c.id]
	if a == nil {
		return jsonAnswer(http.StatusOK, map[string]any{"errors": []map[string]string{missing("user", "id", c.id)}})
	}
	lag := max(s.TimelineLag, c.plan.lag)
	var visible []*post
	for _, p := range slices.Backward(a.posts) {
		if !p.deleted && !p.CreatedAt.After(c.now.Add(-lag)) && t.shows(p) {
			visible = append(visible, p)
		}
	}
	page, meta := t.page(visible)
	body := map[string]any{"meta": meta}
	if len(page) > 0 {
		views := make([]map[string]any, 0, len(page))
		for _, p := range page {
			views = append(views, f.view(p, s.w))
		}
		body["data"] = views
	}
	return jsonAnswer(http.StatusOK, body)
}

func readTimelineQuery(q url.Values) (timelineQuery, mistake, bool) {
	t := timelineQuery{max: pageDefault}
	bad := func(name string) (timelineQuery, mistake, bool) {
		return t, mistake{name, q.Get(name), fmt.Sprintf("The `%s` query parameter value [%s] is not valid", name, q.Get(name))}, false
	}
	if v := q.Get("max_results"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < pageMin || n > pageMax {
			return bad("max_results")
		}
		t.max = n
	}
	for name, into := range map[string]*int64{"since_id": &t.since, "until_id": &t.until} {
		if v := q.Get(name); v != "" {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil || !isID(v) {
				return bad(name)
			}
			*into = n
		}
	}
	for name, into := range map[string]*time.Time{"start_time": &t.start, "end_time": &t.end} {
		if v := q.Get(name); v != "" {
			at, err := time.Parse(time.RFC3339, v)
			if err != nil {
				return bad(name)
			}
			*into = at
		}
	}
	if v := q.Get("exclude"); v != "" {
		for _, word := range strings.Split(v, ",") {
			if word != "replies" && word != "retweets" {
				return bad("exclude")
			}
			t.excludeReplies = t.excludeReplies || word == "replies"
		}
	}
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

// me serves the account behind the token.
func (s *Server) me(c *call) answer {
	q := c.r.URL.Query()
	if _, m, ok := readFields(q); !ok {
		return s.malformed(c, m)
	}
	a := c.account
	data := map[string]any{"id": a.ID, "name": a.Handle, "username": a.Handle}
	if !q.Has("user.fields") {
		return jsonAnswer(http.StatusOK, map[string]any{"data": data})
	}
	for _, name := range strings.Split(q.Get("user.fields"), ",") {
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
			data[name] = false
		case "affiliation", "confirmed_email", "connection_status", "description", "entities", "id", "is_identity_verified",
			"location", "most_recent_post_id", "most_recent_tweet_id", "name", "parody", "pinned_post_id", "pinned_tweet_id",
			"profile_banner_url", "profile_image_url", "public_metrics", "receives_your_dm", "subscribes_to_you", "subscription",
			"url", "username", "verified_followers_count", "withheld":
			// X's, but nothing to tell here.
		default:
			return s.malformed(c, mistake{"user.fields", name, "The `user.fields` query parameter value [" + name + "] is not valid"})
		}
	}
	return jsonAnswer(http.StatusOK, map[string]any{"data": data})
}
