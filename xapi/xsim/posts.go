package xsim

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/text/unicode/norm"
)

const duplicateWindowDefault = 24 * time.Hour

// Post is a post that exists.
type Post struct {
	ID        string    `json:"id"`
	AuthorID  string    `json:"author_id"`
	Text      string    `json:"text"`        // as it was sent
	InReplyTo string    `json:"in_reply_to"` // the parent's id, "" for none
	MediaIDs  []string  `json:"media_ids"`
	CreatedAt time.Time `json:"created_at"`
}

type post struct {
	Post
	author       *account
	media        []*medium
	conversation string   // id of the thread's first post
	place        [32]byte // see placeOf
	deleted      bool
	stored       string    // the text as X stores it: NFC, and lines ended by LF
	vanishes     time.Time // when X takes it away by itself; zero for never
}

// Posts returns what exists, in order of creation: of the user, named by id or
// handle, or of all for "". It is empty for an unknown user.
func (s *Server) Posts(user string) []Post {
	w := s.lock()
	defer s.unlock()
	from := w.postOrder
	if user != "" {
		from = nil
		if a := w.user(user); a != nil {
			from = a.posts
		}
	}
	list := make([]Post, 0, len(from))
	for _, p := range from {
		if !p.gone(s.now()) {
			list = append(list, p.Post)
		}
	}
	return list
}

// postRequest holds the fields that mean something here; the schema has
// already refused what X does not know.
type postRequest struct {
	Text  string `json:"text"`
	Reply *struct {
		To string `json:"in_reply_to_tweet_id"`
	} `json:"reply"`
	Media *struct {
		IDs []string `json:"media_ids"`
	} `json:"media"`
	QuoteID  string          `json:"quote_tweet_id"`
	Nullcast bool            `json:"nullcast"`
	Edit     json.RawMessage `json:"edit_options"`
}

// textOf reads a post's text from a body that may still turn out to be wrong.
func textOf(body []byte) string {
	var req postRequest
	if json.Unmarshal(body, &req) != nil {
		return ""
	}
	return req.Text
}

func (s *Server) createPost(c *call) answer {
	req, m, ok := readPost(c)
	if !ok {
		return s.malformed(c, m)
	}
	p := &post{author: c.account}
	p.Text, p.AuthorID, p.CreatedAt, p.MediaIDs = req.Text, c.account.ID, c.now, []string{}
	p.stored = stored(req.Text)
	if c.plan.vanish != nil {
		p.vanishes = c.now.Add(c.plan.vanish.delay())
	}
	if refused, ok := s.checkText(c, req); !ok {
		return refused
	}
	if refused, ok := s.attachParent(c, p, req); !ok {
		return refused
	}
	if refused, ok := s.attachMedia(c, p, req); !ok {
		return refused
	}
	p.place = placeOf(p, s.w.posts[p.InReplyTo])
	if s.repeats(c, p) {
		return forbidden(detailDuplicate)
	}
	s.keep(c, p)

	text, _ := render(p.stored, p)
	return jsonAnswer(http.StatusCreated, map[string]any{"data": struct {
		ID      string   `json:"id"`
		Text    string   `json:"text"`
		History []string `json:"edit_history_post_ids"`
	}{p.ID, text, []string{p.ID}}})
}

// stored is a text as X stores it.
func stored(text string) string {
	return norm.NFC.String(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text))
}

// gone reports whether the post was deleted, by its author or by X.
func (p *post) gone(now time.Time) bool {
	return p.deleted || !p.vanishes.IsZero() && !now.Before(p.vanishes)
}

// readPost checks the body against the schema and the rules about which fields
// go together.
func readPost(c *call) (postRequest, mistake, bool) {
	var req postRequest
	object, m, ok := c.readJSON(createPostSchema(), &req)
	if !ok {
		return req, m, false
	}
	exclusive := 0
	for _, name := range []string{"poll", "quote_tweet_id", "direct_message_deep_link", "media", "card_uri"} {
		if _, given := object[name]; given {
			exclusive++
		}
	}
	if exclusive > 1 {
		return req, mistake{message: messageExclusive}, false
	}
	if strings.TrimSpace(req.Text) == "" && req.Media == nil {
		return req, mistake{"text", req.Text, "$.text: is missing but it is required unless media is provided"}, false
	}
	if strings.ContainsAny(req.Text, "\ufffe\ufeff\uffff") {
		return req, mistake{"text", req.Text, "$.text: contains invalid characters"}, false
	}
	return req, mistake{}, true
}

// checkText holds the rules that need no other posts.
func (s *Server) checkText(c *call, req postRequest) (answer, bool) {
	most := maxWeight
	if c.account.premium() {
		most = maxLongWeight
	}
	switch {
	case weigh(stored(req.Text)) > most:
		return refusal(cmp.Or(s.TooLongStatus, http.StatusForbidden), detailTooLong), false
	case countCashtags(req.Text) > 1:
		return forbidden(detailCashtags), false
	case req.Nullcast, req.Edit != nil:
		return forbidden(detailNotPermitted), false
	}
	return answer{}, true
}

func (a *account) premium() bool { return a.SubscriptionType != SubscriptionNone }

// attachParent finds the posts that this one answers or quotes.
func (s *Server) attachParent(c *call, p *post, req postRequest) (answer, bool) {
	if req.QuoteID != "" {
		quoted := s.w.posts[req.QuoteID]
		if quoted == nil || quoted.gone(c.now) || quoted.author.hides(c.account) {
			return invalid(mistake{"quote_tweet_id", req.QuoteID, messageQuoteID}), false
		}
		if !s.AllowQuotes {
			return forbidden(detailQuoteRule), false
		}
	}
	if req.Reply == nil {
		return answer{}, true
	}
	parent := s.w.posts[req.Reply.To]
	switch {
	case parent == nil, parent.gone(c.now), parent.author.hides(c.account),
		c.now.Sub(parent.CreatedAt) < max(s.ReplicaLag, c.plan.replicaLag):
		return forbidden(detailParentGone), false
	case parent.author != c.account && !s.AllowReplies && !mentions(parent.Text, c.account.Handle):
		return forbidden(detailReplyRule), false
	}
	p.InReplyTo, p.conversation = parent.ID, parent.conversation
	return answer{}, true
}

// attachMedia looks up the media as strictly as X does: one message for
// everything that can be wrong with them.
func (s *Server) attachMedia(c *call, p *post, req postRequest) (answer, bool) {
	if req.Media == nil {
		return answer{}, true
	}
	for _, id := range req.Media.IDs {
		m := s.mediumOf(c, id)
		if m == nil || m.state(c.now) != MediaSucceeded || strings.HasPrefix(m.Category, "dm_") || slices.Contains(p.media, m) {
			return invalid(mistake{"media.media_ids", id, messageMediaIDs}), false
		}
		p.media = append(p.media, m)
	}
	if len(p.media) > 1 && slices.ContainsFunc(p.media, func(m *medium) bool { return m.Category != "tweet_image" }) {
		return invalid(mistake{"media.media_ids", strings.Join(req.Media.IDs, ","), messageMediaIDs}), false
	}
	p.MediaIDs = req.Media.IDs
	return answer{}, true
}

// placeOf sums up what makes two posts of an account the same post sent twice:
// text, media bytes, and the place of the parent. So the second part of a thread
// that was started twice is equal to the second part of the first, although
// their parents' ids differ.
func placeOf(p *post, parent *post) [32]byte {
	h := sha256.New()
	if parent != nil {
		h.Write(parent.place[:])
	}
	h.Write(encode([]string{p.AuthorID, p.stored}))
	for _, m := range p.media {
		h.Write([]byte(m.SHA256))
	}
	return [32]byte(h.Sum(nil))
}

// repeats is the duplicate filter. Like X's it compares only the account's texts,
// wherever they were posted and whether or not they still exist. Without a text it
// compares the media ids, which a new upload changes.
func (s *Server) repeats(c *call, p *post) bool {
	span := cmp.Or(s.DuplicateWindow, duplicateWindowDefault)
	last, seen := c.account.texts[p.repeatKey()]
	if !seen || span < 0 || c.now.Sub(last) >= span {
		return false
	}
	if first := c.account.places[p.place]; first != nil && !s.AllowEqualPosts {
		s.violate(c, ViolationDuplicateAttempt, "the post equals "+first.ID+" and was refused")
	}
	return true
}

func (p *post) repeatKey() string {
	if p.Text == "" {
		return "media " + strings.Join(p.MediaIDs, " ")
	}
	return "text " + p.stored
}

// keep makes the post exist.
func (s *Server) keep(c *call, p *post) {
	if first := c.account.places[p.place]; first != nil && !first.gone(c.now) && !s.AllowEqualPosts {
		s.violate(c, ViolationDoublePost, "the new post equals "+first.ID)
	}
	p.ID = s.nextID()
	if p.conversation == "" {
		p.conversation = p.ID
	}
	c.effect = true
	s.w.insert(p)
	s.w.touch(p)
}

// insert gives a post its place in the world, be it gone by now.
func (w *world) insert(p *post) {
	a := p.author
	if first := a.places[p.place]; !p.deleted && (first == nil || first.gone(p.CreatedAt)) {
		a.places[p.place] = p
	}
	a.texts[p.repeatKey()] = p.CreatedAt
	a.posts = append(a.posts, p)
	w.posts[p.ID] = p
	w.postOrder = append(w.postOrder, p)
}

func (s *Server) deletePost(c *call) answer {
	if !isID(c.id) {
		return s.malformed(c, mistake{"id", c.id, "The `id` query parameter value [" + c.id + "] is not valid"})
	}
	p := s.w.posts[c.id]
	if p != nil && p.author != c.account {
		return forbidden("You are not authorized to delete this post.")
	}
	if p != nil && !p.gone(c.now) {
		p.deleted, c.effect = true, true
		s.w.touch(p)
		if c.account.places[p.place] == p {
			delete(c.account.places, p.place)
		}
	}
	return jsonAnswer(http.StatusOK, map[string]any{"data": map[string]bool{"deleted": c.effect}})
}
