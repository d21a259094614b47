package xapi

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// User is an account on X.
type User struct {
	ID, Username, Name string
	// SubscriptionType is Basic, Premium, PremiumPlus or None, and "" where X does
	// not say. It decides how long a post may be.
	SubscriptionType string
}

// Me returns the user that the access token belongs to.
func (c *Client) Me(ctx context.Context) (User, error) {
	var out struct {
		Data struct {
			ID               string `json:"id"`
			Username         string `json:"username"`
			Name             string `json:"name"`
			SubscriptionType string `json:"subscription_type"`
		} `json:"data"`
	}
	err := c.do(ctx, call{
		endpoint: EndpointMe,
		path:     "/2/users/me",
		query:    url.Values{"user.fields": {"subscription_type"}},
	}, &out, func() bool { return out.Data.ID != "" })
	if err != nil {
		return User{}, err
	}
	return User(out.Data), nil
}

// UserPostsQuery bounds a read of a user's posts; its zero value reads the newest.
// Times have whole seconds at X: the span is widened to them.
type UserPostsQuery struct {
	SinceID, UntilID   string // both exclusive
	StartTime, EndTime time.Time
	PaginationToken    string // UserPostsPage.NextToken of the page before
	MaxResults         int    // 5 to 100, 0 for X's default
	// EditHistory asks for UserPost.EarlierIDs too.
	EditHistory bool
}

// values are the query in the names of X's version 2.167, in which what a post refers
// to is an expansion, or in the older ones.
func (q UserPostsQuery) values(older bool) url.Values {
	v := url.Values{"post.fields": {"attachments,conversation_id,created_at,entities,note_post"}, "expansions": {"referenced_posts"}}
	if older {
		v = url.Values{"tweet.fields": {"attachments,conversation_id,created_at,entities,note_tweet,referenced_tweets"}}
	}
	if q.EditHistory && !older { // otherwise X sends it by default
		v.Set("expansions", "referenced_posts,edit_history_post_ids")
	}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	set("since_id", q.SinceID)
	set("until_id", q.UntilID)
	set("pagination_token", q.PaginationToken)
	if !q.StartTime.IsZero() {
		set("start_time", q.StartTime.UTC().Truncate(time.Second).Format(time.RFC3339))
	}
	if !q.EndTime.IsZero() {
		set("end_time", q.EndTime.Add(time.Second-1).Truncate(time.Second).UTC().Format(time.RFC3339))
	}
	if q.MaxResults > 0 {
		set("max_results", strconv.Itoa(q.MaxResults))
	}
	return v
}

// UserPostsPage is one page of a user's posts, newest first.
type UserPostsPage struct {
	Posts              []UserPost
	NewestID, OldestID string
	NextToken          string // "" on the last page
	// Incomplete says that X reported errors beside the posts, so that a missing post
	// may exist nevertheless.
	Incomplete bool
}

// UserPost is a post as X shows it.
type UserPost struct {
	ID string
	// Text is X's: links are shortened, a link to the media is appended, and
	// &, < and > are escaped. Of a long post it is the full text.
	Text            string
	CreatedAt       time.Time // zero where X does not say
	InReplyToPostID string    // "" for a post that is no reply
	QuotedPostID    string
	ConversationID  string
	MediaKeys       []string
	URLs            []URL
	// EarlierIDs are those under which an edited post was known before.
	EarlierIDs []string
}

// URL is a shortened link in a post's text and its target.
type URL struct {
	Short    string // as it is in Text
	Expanded string
	MediaKey string // set on a link to the post's own media
}

// ExpandedText returns the text close to how its author wrote it: links are
// expanded, the link to the post's own media is dropped, and &, < and > are plain.
func (p UserPost) ExpandedText() string {
	// One pass, so that an escaped "&amp;lt;" becomes "&lt;" and no more.
	text := strings.NewReplacer("&lt;", "<", "&gt;", ">", "&amp;", "&").Replace(p.Text)
	var pairs []string
	for _, u := range p.URLs {
		if u.Short == "" {
			continue
		}
		expanded := u.Expanded
		if u.MediaKey != "" || len(p.MediaKeys) > 0 && strings.Contains(expanded, "/status/"+p.ID+"/") {
			expanded = ""
		}
		pairs = append(pairs, u.Short, expanded)
	}
	return strings.TrimSpace(strings.NewReplacer(pairs...).Replace(text))
}

// UserPosts reads one page of a user's posts. It never asks X to leave out replies,
// since all of a thread but its first post are replies. Where X answers 400 it is asked
// once more in its other names; the clients that share Limits remember which it took.
func (c *Client) UserPosts(ctx context.Context, userID string, q UserPostsQuery) (UserPostsPage, error) {
	older := c.limits.olderNames.Load()
	page, err := c.userPosts(ctx, userID, q, older)
	if _, short := c.RateShort(EndpointUserPosts, 1); short || !badRequest(err) {
		return page, err
	}
	other, otherErr := c.userPosts(ctx, userID, q, !older)
	switch {
	case otherErr == nil:
		c.limits.olderNames.Store(!older)
		return other, nil
	case badRequest(otherErr):
		return page, err // it was not the names
	default:
		return other, otherErr
	}
}

func badRequest(err error) bool {
	var refused *RefusedError
	return errors.As(err, &refused) && refused.Err.Status == http.StatusBadRequest
}

func (c *Client) userPosts(ctx context.Context, userID string, q UserPostsQuery, older bool) (UserPostsPage, error) {
	var out wirePage
	err := c.do(ctx, call{
		endpoint: EndpointUserPosts,
		path:     "/2/users/" + url.PathEscape(userID) + "/tweets",
		query:    q.values(older),
		maxBody:  maxPageBytes,
	}, &out, out.complete)
	if err != nil {
		return UserPostsPage{}, err
	}
	return out.page(), nil
}

// wirePage is an answer in the current and in the older names.
type wirePage struct {
	Data []wireUserPost `json:"data"`
	Meta *struct {
		NewestID  string `json:"newest_id"`
		OldestID  string `json:"oldest_id"`
		NextToken string `json:"next_token"`
	} `json:"meta"`
	Errors []struct{} `json:"errors"`
}

// complete distinguishes a page, empty or not, from a 200 that says nothing about the
// posts. Only from the former can it be concluded that a post is absent.
func (w *wirePage) complete() bool {
	return w.Meta != nil && (len(w.Data) > 0 || len(w.Errors) == 0)
}

func (w *wirePage) page() UserPostsPage {
	page := UserPostsPage{
		NewestID:   w.Meta.NewestID,
		OldestID:   w.Meta.OldestID,
		NextToken:  w.Meta.NextToken,
		Incomplete: len(w.Errors) > 0,
	}
	for _, p := range w.Data {
		page.Posts = append(page.Posts, p.post())
	}
	return page
}

type wireUserPost struct {
	ID             string       `json:"id"`
	Text           string       `json:"text"`
	CreatedAt      time.Time    `json:"created_at"`
	ConversationID string       `json:"conversation_id"`
	Entities       wireEntities `json:"entities"`
	Attachments    struct {
		MediaKeys []string `json:"media_keys"`
	} `json:"attachments"`
	NotePost         *wireNote       `json:"note_post"`
	NoteTweet        *wireNote       `json:"note_tweet"`
	ReferencedPosts  []wireReference `json:"referenced_posts"`
	ReferencedTweets []wireReference `json:"referenced_tweets"`
	EditHistoryPosts []string        `json:"edit_history_post_ids"`
	EditHistory      []string        `json:"edit_history_tweet_ids"`
}

type wireNote struct {
	Text     string       `json:"text"`
	Entities wireEntities `json:"entities"`
}

type wireEntities struct {
	URLs []struct {
		URL         string `json:"url"`
		ExpandedURL string `json:"expanded_url"`
		MediaKey    string `json:"media_key"`
	} `json:"urls"`
}

type wireReference struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

func (w wireUserPost) post() UserPost {
	p := UserPost{
		ID:             w.ID,
		Text:           w.Text,
		CreatedAt:      w.CreatedAt,
		ConversationID: w.ConversationID,
		MediaKeys:      w.Attachments.MediaKeys,
	}
	// The outer text of a long post is cut; both lists of links hold for the note,
	// whose own may leave out the link to the media.
	urls := w.Entities.URLs
	for _, note := range []*wireNote{w.NotePost, w.NoteTweet} {
		if note != nil && note.Text != "" {
			p.Text = note.Text
			urls = append(urls, note.Entities.URLs...)
		}
	}
	for _, u := range urls {
		p.URLs = append(p.URLs, URL{Short: u.URL, Expanded: u.ExpandedURL, MediaKey: u.MediaKey})
	}
	for _, id := range append(w.EditHistoryPosts, w.EditHistory...) {
		if id != "" && id != w.ID {
			p.EarlierIDs = append(p.EarlierIDs, id)
		}
	}
	for _, ref := range append(w.ReferencedPosts, w.ReferencedTweets...) {
		switch ref.Type {
		case "replied_to":
			p.InReplyToPostID = ref.ID
		case "quoted":
			p.QuotedPostID = ref.ID
		}
	}
	return p
}
