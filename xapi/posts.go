package xapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
)

// Post is one post to create. Only Text is always sent; it may be empty only
// beside media.
type Post struct {
	Text            string
	InReplyToPostID string   // "" for a post that is no reply
	QuotePostID     string   // excludes MediaIDs and Poll
	MediaIDs        []string // 1 to 4 of Media.ID, uploaded with the same user's token
	Poll            *Poll
	ReplySettings   string // following, mentionedUsers, subscribers or verified; "" for everyone
	CommunityID     string
	MadeWithAI      bool // discloses AI-generated media
	PaidPartnership bool
}

// Poll is a poll of 2 to 4 options, each of 1 to 25 characters.
type Poll struct {
	Options         []string `json:"options"`
	DurationMinutes int      `json:"duration_minutes"` // 5 to 10080
}

// Created is a post that exists. Text is as X stores it: links are shortened.
type Created struct {
	ID, Text string
	// Windows are the rate windows that the answer reported.
	Windows []Window
}

type wirePost struct {
	Text            string     `json:"text"`
	Reply           *wireReply `json:"reply,omitempty"`
	Media           *wireMedia `json:"media,omitempty"`
	Poll            *Poll      `json:"poll,omitempty"`
	QuoteTweetID    string     `json:"quote_tweet_id,omitempty"`
	ReplySettings   string     `json:"reply_settings,omitempty"`
	CommunityID     string     `json:"community_id,omitempty"`
	MadeWithAI      bool       `json:"made_with_ai,omitempty"`
	PaidPartnership bool       `json:"paid_partnership,omitempty"`
}

type wireReply struct {
	InReplyToTweetID string `json:"in_reply_to_tweet_id"`
}

type wireMedia struct {
	MediaIDs []string `json:"media_ids"`
}

// MarshalJSON writes the post with X's own names. X refuses members it does not
// know and nulls, so that what is empty is left out.
func (p Post) MarshalJSON() ([]byte, error) {
	w := wirePost{
		Text:            p.Text,
		Poll:            p.Poll,
		QuoteTweetID:    p.QuotePostID,
		ReplySettings:   p.ReplySettings,
		CommunityID:     p.CommunityID,
		MadeWithAI:      p.MadeWithAI,
		PaidPartnership: p.PaidPartnership,
	}
	if p.InReplyToPostID != "" {
		w.Reply = &wireReply{InReplyToTweetID: p.InReplyToPostID}
	}
	if len(p.MediaIDs) > 0 {
		w.Media = &wireMedia{MediaIDs: p.MediaIDs}
	}
	return json.Marshal(w)
}

// CreatePost creates one post. X has no key that would make a repetition safe:
// after an AmbiguousError the post may exist.
func (c *Client) CreatePost(ctx context.Context, p Post) (Created, error) {
	body, err := json.Marshal(p)
	if err != nil {
		return Created{}, fmt.Errorf("encode post: %w", err)
	}
	var out struct {
		Data struct {
			ID   string `json:"id"`
			Text string `json:"text"`
		} `json:"data"`
	}
	var told []Window
	err = c.do(ctx, call{
		endpoint:    EndpointCreatePost,
		path:        "/2/tweets",
		contentType: "application/json",
		body:        body,
		effect:      true,
		told:        &told,
	}, &out, func() bool { return out.Data.ID != "" })
	if err != nil {
		return Created{}, err
	}
	return Created{ID: out.Data.ID, Text: out.Data.Text, Windows: told}, nil
}

// DeletePost deletes one post of the user's. It may be repeated: X gives the same
// answer if nothing is left to delete. A *RefusedError of RefusedNotFound says that in
// words.
func (c *Client) DeletePost(ctx context.Context, postID string) error {
	var out struct {
		Data struct {
			Deleted *bool `json:"deleted"` // false if it was gone already
		} `json:"data"`
	}
	return c.do(ctx, call{
		endpoint: EndpointDeletePost,
		path:     "/2/tweets/" + url.PathEscape(postID),
	}, &out, func() bool { return out.Data.Deleted != nil })
}
