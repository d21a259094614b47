package web

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/tweettext"
)

// Media is the object store in which pictures of posts lie: *publishers.Publisher is one.
type Media interface {
	// PutMedia stores a file and returns the name that a post has for it.
	PutMedia(ctx context.Context, r io.Reader) (object string, err error)
	// GetMedia opens a file.
	GetMedia(ctx context.Context, object string) (io.ReadCloser, error)
}

// segment is a part of a post's text: words, or a link as X shows it.
type segment struct{ Text, Link string }

// maxShownLink bounds what X shows of a link.
const maxShownLink = 27 // characters

// segments cuts a text, which may be cut off, at its links.
func segments(text string) (list []segment) {
	at := 0
	for _, link := range tweettext.URLs(text) {
		if link.Start > at {
			list = append(list, segment{Text: text[at:link.Start]})
		}
		list = append(list, linked(text[link.Start:link.End]))
		at = link.End
	}
	if at < len(text) {
		list = append(list, segment{Text: text[at:]})
	}
	return list
}

// linked is a link as X shows it: without its protocol, and shortened.
func linked(text string) segment {
	link := text
	if !strings.Contains(text, "://") {
		link = "https://" + text
	}
	_, shows, _ := strings.Cut(link, "://")
	shows = strings.TrimSuffix(strings.TrimPrefix(shows, "www."), "/")
	if utf8.RuneCountInString(shows) > maxShownLink {
		shows = string([]rune(shows)[:maxShownLink]) + "…"
	}
	return segment{Text: shows, Link: link}
}

// picture is a medium of a post.
type picture struct {
	Source string // where it is shown from; "" where this page cannot show it
	From   string // where the worker reads it, in words
	Alt    string
}

const (
	// maxShownAlts bounds the descriptions of pictures on a page, and minShownAlt is what is
	// shown of one beyond that.
	maxShownAlts = 4000 // characters
	minShownAlt  = 40
	// maxSource bounds the address of a picture.
	maxSource = 400 // bytes
)

// pictures are the media of a post. alts is how much may be shown of their descriptions.
func (p page) pictures(media []jetpost.MediaContent, alts *int) (list []picture) {
	for _, m := range media[:min(len(media), jetpost.MaxImages)] {
		is := picture{From: "a file within the request", Alt: cut(m.Alt, max(*alts, minShownAlt))}
		*alts -= utf8.RuneCountInString(is.Alt)
		switch {
		case m.Object != "":
			is.From = "the media store"
			if source := p.Base + "/media/" + url.PathEscape(m.Object); p.hasMedia && len(source) <= maxSource {
				is.Source = source
			}
		case m.URL != "":
			is.From = "another site"
			if u, err := url.Parse(m.URL); err == nil && u.Host != "" {
				is.From = cut(u.Host, minShownAlt)
			}
		}
		list = append(list, is)
	}
	return list
}

// threaded is a thread as X will show it.
type threaded struct {
	Name  string // the account's
	User  string // its name on X
	Badge string // stands for its picture
	Posts []post
}

func thread(account, username string, posts []post) threaded {
	t := threaded{Name: account, User: cut(username, minShownAlt), Posts: posts[:min(len(posts), jetpost.MaxPosts)]}
	first, _ := utf8.DecodeRuneInString(account)
	t.Badge = strings.ToUpper(string(first))
	return t
}

// happened is an entry of a request's history.
type happened struct {
	jetpost.HistoryEntry
	page
	Words string
	Why   string // the reason in words
}

// maxHistory bounds the entries of a history on a page.
const maxHistory = 20

func (p page) history(h jetpost.History) (list []happened) {
	entries := h.Entries[max(0, len(h.Entries)-maxHistory):]
	for _, e := range entries {
		is := happened{HistoryEntry: e, page: p, Words: eventWords(e)}
		if e.Reason != nil {
			is.Why = reasonWords(e.Reason.Code)
		}
		list = append(list, is)
	}
	slices.Reverse(list) // the latest first
	return list
}

// eventWords are what people read for an event.
func eventWords(e jetpost.HistoryEntry) string {
	words := map[jetpost.EventType]string{
		jetpost.EventRequestAccepted:     "accepted",
		jetpost.EventRequestScheduled:    "scheduled",
		jetpost.EventRequestHeld:         "waits",
		jetpost.EventRequestResumed:      "goes on",
		jetpost.EventRequestProgress:     "a post went live",
		jetpost.EventRequestPublished:    "published",
		jetpost.EventRequestFailed:       "failed",
		jetpost.EventRequestUnknown:      "in doubt",
		jetpost.EventRequestCancelled:    "cancelled",
		jetpost.EventRequestUnpublishing: "its posts are being deleted",
		jetpost.EventRequestUnpublished:  "its posts are deleted",
	}[e.Type]
	if words == "" {
		words = cut(strings.ReplaceAll(strings.TrimPrefix(string(e.Type), "request."), "_", " "), minShownAlt)
	}
	return words
}

// maxPicture bounds a picture that is shown or taken in: X's largest is a GIF.
const maxPicture = xapi.MaxGIFBytes

// pictureKind is the type of a picture that X takes and browsers show; "" is another file.
func pictureKind(data []byte) string {
	switch kind := http.DetectContentType(data); kind {
	case "image/png", "image/jpeg", "image/gif", "image/webp":
		return kind
	}
	return ""
}

// media shows a picture from the object store. Other files it does not show.
func (d *Dashboard) media(r *http.Request) (shown, error) {
	if d.cfg.Media == nil {
		return shown{}, notThere()
	}
	file, err := d.cfg.Media.GetMedia(r.Context(), r.PathValue("object"))
	if err != nil {
		return shown{}, &jetpost.APIError{Code: jetpost.ErrNotFound, Detail: "There is no such file, or it cannot be read now.", Help: "see the request that names it"}
	}
	data, err := io.ReadAll(io.LimitReader(file, maxPicture+1))
	if err = errors.Join(err, file.Close()); err != nil {
		return shown{}, err
	}
	kind := pictureKind(data)
	if kind == "" || len(data) > maxPicture {
		return shown{}, &jetpost.APIError{Code: jetpost.ErrNotFound, Detail: "It is no picture that can be shown here.", Help: "see the post on X once it is live"}
	}
	return shown{kind: kind, file: bytes.NewReader(data)}, nil
}

// details adds to a request's page what its thread looks like, who posts it and what
// happened to it. What cannot be told is left out.
func (d *Dashboard) details(r *http.Request, p *requestPage, contents []jetpost.PostContent) {
	account, id := p.Request.Account, p.Request.ID
	alts := maxShownAlts
	for i := range p.Posts {
		if i < len(contents) {
			p.Posts[i].add(p.page, contents[i], &alts)
		}
	}
	username := ""
	if report, err := d.cfg.Operations.AccountGet(r.Context(), account); err == nil {
		username = report.Account.Username
	}
	p.Thread = thread(account, username, p.Posts)
	past, err := d.cfg.Operations.RequestHistory(r.Context(), account, jetpost.RequestHistory{ID: id, Limit: maxHistory})
	if err != nil {
		p.Silent = err.Error()
	}
	p.History, p.Earlier = p.history(past), past.More
	p.CanMove = movable(p.Request.RequestStatus)
	at := p.Request.PublishAt
	if at.IsZero() {
		at = p.now.Add(time.Hour)
	}
	p.MoveTo = at.In(p.zone).Format(localLayout)
}

// add fills in what a post carries beside its text.
func (p *post) add(on page, content jetpost.PostContent, alts *int) {
	p.Pictures = on.pictures(content.Media, alts)
	for _, option := range content.Options[:min(len(content.Options), jetpost.MaxPollChoices)] {
		p.Poll = append(p.Poll, cut(option, jetpost.MaxPollChars))
	}
	if len(p.Poll) > 0 {
		p.PollEnds = span(time.Duration(content.Minutes) * time.Minute)
	}
}
