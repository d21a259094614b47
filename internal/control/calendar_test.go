package control_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/store"
)

// accept takes a request into the ledger.
func (b *bundle) accept(r jetpost.Request) {
	b.Helper()
	r.Account = "acme"
	body, err := json.Marshal(r)
	b.must(err)
	_, err = b.ledger.Accept(b.Context(), store.Acceptance{Request: r, Body: body, Digest: r.Digest(), Now: time.Now()})
	b.must(err)
}

// TestRequestCalendar: the calendar has what is due between two times, in pages, with the
// beginning of its text; and it says what of a question is wrong.
func TestRequestCalendar(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	day := time.Now().Add(24 * time.Hour).Truncate(24 * time.Hour)
	for n := range 5 {
		b.accept(jetpost.Request{ID: fmt.Sprint("r", n), PublishAt: day.Add(time.Duration(n) * 6 * time.Hour), Posts: []jetpost.Post{{Text: fmt.Sprint("text ", n)}}})
	}
	in := jetpost.RequestCalendar{From: day, To: day.Add(24 * time.Hour), Limit: 3}
	page, err := b.client.RequestCalendar(t.Context(), "", in)
	b.must(err)
	if in.Cursor = page.Next; len(page.Requests) != 3 || in.Cursor == "" {
		t.Fatalf("the first page has %d requests, next %q", len(page.Requests), page.Next)
	}
	if e := page.Requests[1]; e.Request.ID != "r1" || !e.DueAt.Equal(day.Add(6*time.Hour)) || e.Text != "text 1" || e.Request.State != jetpost.StateScheduled {
		t.Errorf("the second entry is %+v", e)
	}
	page, err = b.client.RequestCalendar(t.Context(), "acme", in)
	b.must(err)
	if len(page.Requests) != 1 || page.Requests[0].Request.ID != "r3" || page.Next != "" {
		t.Errorf("the last page is %+v", page)
	}
	for name, wrong := range map[string]jetpost.RequestCalendar{
		"no times": {}, "backwards": {From: in.To, To: in.From}, "cursor": {From: in.From, To: in.To, Cursor: "x"}, "limit": {From: in.From, To: in.To, Limit: -1},
	} {
		if _, err := b.client.RequestCalendar(t.Context(), "", wrong); code(err) != jetpost.ErrInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	in.Cursor = ""
	if _, err := b.client.RequestCalendar(t.Context(), "nobody", in); code(err) != jetpost.ErrNotFound {
		t.Errorf("an account that is not there: %v", err)
	}
}

// TestRequestHistory: a request's history is what its events said, the latest of them, and
// its details are what its posts carry.
func TestRequestHistory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.serve("one", nil)
	b.accept(jetpost.Request{ID: "rich", PublishAt: time.Now().Add(time.Hour), Posts: []jetpost.Post{
		{Text: "first", Media: []jetpost.Media{{Data: []byte("bytes"), Alt: "a square"}, {Object: "file"}}},
		{Text: "second", Poll: &jetpost.Poll{Options: []string{"yes", "no"}, DurationMinutes: 5}},
	}})
	for hours := range 3 {
		_, err := b.client.RequestReschedule(t.Context(), "acme", jetpost.RequestReschedule{ID: "rich", At: time.Now().Add(time.Duration(hours+2) * time.Hour)})
		b.must(err)
	}
	_, err := b.client.RequestCancel(t.Context(), "acme", jetpost.RequestCancel{ID: "rich"})
	b.must(err)
	history, err := b.client.RequestHistory(t.Context(), "", jetpost.RequestHistory{ID: "rich"})
	b.must(err)
	last := len(history.Entries) - 1
	if history.Account != "acme" || last < 3 || history.More || history.Entries[last].Type != jetpost.EventRequestCancelled || history.Entries[last].Revision != b.status("rich").Revision {
		t.Errorf("the history is %+v", history)
	}
	few, err := b.client.RequestHistory(t.Context(), "acme", jetpost.RequestHistory{ID: "rich", Limit: 2})
	b.must(err)
	if len(few.Entries) != 2 || !few.More || few.Entries[1] != history.Entries[last] {
		t.Errorf("the latest two are %+v", few)
	}
	if _, err := b.client.RequestHistory(t.Context(), "acme", jetpost.RequestHistory{ID: "none"}); code(err) != jetpost.ErrNotFound {
		t.Errorf("a request that is not there: %v", err)
	}
	details, err := b.client.RequestGet(t.Context(), "acme", jetpost.RequestGet{ID: "rich"})
	b.must(err)
	if c := details.Contents; len(c) != 2 || c[0].Media[0] != (jetpost.MediaContent{Alt: "a square"}) || c[0].Media[1].Object != "file" || len(c[1].Options) != 2 || c[1].Minutes != 5 {
		t.Errorf("the contents are %+v", c)
	}
}

// code is that of an operation's error.
func code(err error) jetpost.ErrorCode {
	if told := (*client.Error)(nil); errors.As(err, &told) {
		return told.Code
	}
	return ""
}
