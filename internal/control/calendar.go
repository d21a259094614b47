package control

import (
	"context"
	"errors"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// RequestCalendar returns a page of the requests that are or were due between two times.
func (c *Control) RequestCalendar(ctx context.Context, account string, in jetpost.RequestCalendar) (jetpost.CalendarPage, error) {
	page := jetpost.CalendarPage{Requests: []jetpost.CalendarEntry{}}
	if in.From.IsZero() || !in.From.Before(in.To) {
		return page, &Error{Code: jetpost.ErrInvalid, Err: errors.New("from and to: want two times, the earlier one first")}
	}
	if account != "" {
		if _, err := c.Ledger.Account(ctx, account); err != nil {
			return page, accountError(account, err)
		}
	}
	q := store.CalendarQuery{Account: account, After: store.DuePlace{DueAt: in.From}, Before: in.To, Limit: pageSize(in.Limit) + 1}
	if err := readCursor(in.Cursor, &q.After); err != nil {
		return page, err
	}
	found, err := c.Ledger.Calendar(ctx, q)
	if err != nil {
		return page, DatabaseError(err)
	}
	found, page.Next = cut(found, in.Limit, store.Record.DuePlace)
	for _, r := range found {
		page.Requests = append(page.Requests, jetpost.CalendarEntry{DueAt: r.DueAt, Text: firstText(r), Request: r.Status})
	}
	return page, nil
}

// firstText is the beginning of a request's first post.
func firstText(r store.Record) string {
	request, err := jetpost.Decode(r.Account, r.Body)
	if err != nil || len(request.Posts) == 0 {
		return ""
	}
	text := []rune(request.Posts[0].Text)
	return string(text[:min(len(text), jetpost.MaxCalendarText)])
}

// contents are what posts carry beside their texts; nil where none carries anything.
func contents(posts []jetpost.Post) []jetpost.PostContent {
	list, some := make([]jetpost.PostContent, len(posts)), false
	for i, p := range posts {
		for _, m := range p.Media {
			list[i].Media = append(list[i].Media, jetpost.MediaContent{URL: m.URL, Object: m.Object, Alt: m.Alt})
		}
		if p.Poll != nil {
			list[i].Options, list[i].Minutes = p.Poll.Options, p.Poll.DurationMinutes
		}
		some = some || len(p.Media) > 0 || p.Poll != nil
	}
	if !some {
		return nil
	}
	return list
}

// RequestHistory returns what happened to a request, as far as NATS still has its events.
func (c *Control) RequestHistory(ctx context.Context, account string, in jetpost.RequestHistory) (jetpost.History, error) {
	history := jetpost.History{Account: account, ID: in.ID, Entries: []jetpost.HistoryEntry{}}
	found, err := FindRequest(ctx, c.Ledger, account, in.ID)
	if pruned := new(PrunedError); errors.As(err, &pruned) {
		found, err = pruned.Record, nil
	}
	if err != nil {
		return history, err
	}
	history.Account = found.Account
	events, more, err := c.publisher.PastEvents(ctx, found.Account, found.ID, pageSize(in.Limit))
	for _, e := range events {
		if r := e.Request; r != nil {
			history.Entries = append(history.Entries, jetpost.HistoryEntry{
				Type: e.Type, Time: e.Time, Revision: r.Revision, State: r.State, Reason: r.Reason, Posted: r.Posted, Attempts: r.Attempts,
			})
		}
	}
	history.More = more
	return history, err
}
