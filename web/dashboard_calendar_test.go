package web_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/web"
)

func (x tampered) RequestCalendar(ctx context.Context, account string, in jetpost.RequestCalendar) (jetpost.CalendarPage, error) {
	answer, err := x.Operations.RequestCalendar(ctx, account, in)
	return tamper(x, answer, err)
}

func (x tampered) RequestHistory(ctx context.Context, account string, in jetpost.RequestHistory) (jetpost.History, error) {
	answer, err := x.Operations.RequestHistory(ctx, account, in)
	return tamper(x, answer, err)
}

// planned answers for a calendar with what it has of a day.
type planned struct {
	web.Operations
	entries []jetpost.CalendarEntry
}

func (p planned) RequestCalendar(_ context.Context, account string, in jetpost.RequestCalendar) (page jetpost.CalendarPage, err error) {
	for _, e := range p.entries {
		if e.DueAt.Before(in.From) || !e.DueAt.Before(in.To) || account != "" && account != e.Request.Account {
			continue
		}
		if len(page.Requests) == in.Limit {
			page.Next = "more"
			break
		}
		page.Requests = append(page.Requests, e)
	}
	return page, nil
}

func entryOf(id, due string, state jetpost.State) jetpost.CalendarEntry {
	at, _ := time.Parse(time.RFC3339, due)
	e := jetpost.CalendarEntry{DueAt: at, Text: "text of " + id, Request: jetpost.RequestStatus{Account: "acme", ID: id, State: state}}
	if state == jetpost.StateFailed {
		e.Request.Reason = &jetpost.Reason{Code: jetpost.CodeDuplicate}
	}
	return e
}

// dayOf is the part of a calendar's page that a day has.
func dayOf(t *testing.T, page, date string) string {
	t.Helper()
	_, day, ok := strings.Cut(page, `data-day="`+date+`"`)
	if !ok {
		t.Fatalf("the calendar has no %s\n%s", date, page)
	}
	day, _, _ = strings.Cut(day, "data-day=")
	return day
}

// TestDashboardCalendar: requests stand on the day and at the hour of the reader's zone,
// what failed is marked, and a day without posts says so.
func TestDashboardCalendar(t *testing.T) {
	t.Parallel()
	entries := []jetpost.CalendarEntry{
		entryOf("late", "2026-03-28T23:30:00Z", jetpost.StateScheduled), entryOf("failed", "2026-03-25T10:00:00Z", jetpost.StateFailed),
		entryOf("live", "2026-03-25T09:00:00Z", jetpost.StatePublished),
	}
	for i := range 20 {
		entries = append(entries, entryOf(fmt.Sprint("many", i), fmt.Sprintf("2026-03-26T10:%02d:00Z", i), jetpost.StateQueued))
	}
	b := newDashboard(t, func(cfg *web.DashboardConfig) { cfg.Operations = planned{cfg.Operations, entries} })
	berlin := []string{"Cookie", "zone=Europe/Berlin"}
	page := b.want(http.StatusOK, "24 March to 30 March 2026", http.MethodGet, "/calendar?day=2026-03-24", nil)
	utc, local := dayOf(t, page, "2026-03-28"), dayOf(t, b.want(http.StatusOK, "Times are those of Europe/Berlin", http.MethodGet, "/calendar?day=2026-03-24", nil, berlin...), "2026-03-29")
	if !strings.Contains(utc, "23:30") || !strings.Contains(utc, `value="2026-03-28T23:30"`) || !strings.Contains(utc, "text of late") {
		t.Errorf("in UTC: %s", utc)
	}
	if !strings.Contains(local, "00:30") || !strings.Contains(local, `data-at="2026-03-29T00:30"`) {
		t.Errorf("in Berlin: %s", local)
	}
	if gap := dayOf(t, page, "2026-03-24"); !strings.Contains(gap, "no posts") {
		t.Errorf("a day without posts: %s", gap)
	}
	day := dayOf(t, page, "2026-03-25")
	if !strings.Contains(day, `<span class="state failed">failed</span> X takes the post for a repeat`) || strings.Contains(day, "draggable") || !strings.Contains(day, "text of live") {
		t.Errorf("a day with a failure: %s", day)
	}
	if full := dayOf(t, page, "2026-03-26"); strings.Count(full, `class="entry`) != 15 || !strings.Contains(full, "There are more") {
		t.Errorf("a full day: %s", full)
	}
	month := b.want(http.StatusOK, "March 2026", http.MethodGet, "/calendar?view=month&day=2026-03-27&account=acme", nil)
	if n := strings.Count(month, "data-day="); n != 42 || !strings.Contains(month, `data-day="2026-02-23"`) || !strings.Contains(month, `data-day="2026-04-05"`) {
		t.Errorf("the month shows %d days\n%s", n, month)
	}
	b.want(http.StatusOK, "/ops/calendar?account=acme&amp;day=2026-02-01&amp;view=month", http.MethodGet, "/calendar?view=month&day=2026-03-31&account=acme", nil)
	if other := b.want(http.StatusOK, "", http.MethodGet, "/calendar?day=2026-03-24&account=beta", nil); strings.Contains(other, "text of") {
		t.Errorf("another account's calendar: %s", other)
	}
}

// TestDashboardMoves: a form moves what is scheduled to a time in the reader's zone, once,
// and leads back to where it stood.
func TestDashboardMoves(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, nil)
	b.serve()
	b.scheduled("acme", "one", "text")
	berlin := []string{"Cookie", "zone=Europe/Berlin"}
	const move = "/requests/acme/one/reschedule"
	page := b.want(http.StatusOK, "Publish at, by the clock of Europe/Berlin", http.MethodGet, "/requests/acme/one", nil, berlin...)
	form := b.form(page, move)
	form.Set("at", fmt.Sprintf("%d-07-01T09:30", time.Now().Year()+1))
	b.want(http.StatusSeeOther, "/ops/requests/acme/one?done=reschedule", http.MethodPost, move, form, berlin...)
	if is := b.status("acme", "one"); is.PublishAt.Format("01-02 15:04") != "07-01 07:30" {
		t.Errorf("it is due at %s", is.PublishAt)
	}
	b.want(http.StatusSeeOther, "?done=reschedule", http.MethodPost, move, form, berlin...)
	if is := b.status("acme", "one"); is.Revision != 2 {
		t.Errorf("it was moved twice: revision %d", is.Revision)
	}
	again := func(at, back string) url.Values {
		return url.Values{"operation_id": {client.NewOperationID()}, "at": {at}, "back": {back}}
	}
	b.want(http.StatusBadRequest, "The time cannot be read", http.MethodPost, move, again("<b>", ""))
	b.want(http.StatusBadRequest, "That time has passed", http.MethodPost, move, again(time.Now().Add(-time.Hour).UTC().Format("2006-01-02T15:04"), ""))
	b.want(http.StatusSeeOther, "/ops/calendar?view=week&done=reschedule", http.MethodPost, move, again("2099-01-01T00:00", "/calendar?view=week"))
	for _, evil := range []string{"//evil.example", "https://evil.example/", "/\\evil.example", "evil", "/x\nSet-Cookie: a"} {
		b.want(http.StatusSeeOther, "/ops/requests/acme/one?done=reschedule", http.MethodPost, move, again("2099-01-01T00:00", evil))
	}
	b.want(http.StatusOK, "It has another time.", http.MethodGet, "/calendar?done=reschedule", nil)
	b.want(http.StatusSeeOther, "?done=reschedule", http.MethodPost, move, again("", ""))
	if is := b.status("acme", "one"); is.State != jetpost.StateQueued {
		t.Errorf("moved to now it is %s", is.State)
	}
}

// TestDashboardZone: a reader names a zone without JavaScript, and every page has it.
func TestDashboardZone(t *testing.T) {
	t.Parallel()
	b := newDashboard(t, nil)
	b.serve()
	resp, _ := b.ask(http.MethodGet, "/zone?zone=Asia/Kathmandu&back=/compose", nil)
	if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/ops/compose" || !strings.HasPrefix(resp.Header.Get("Set-Cookie"), "zone=Asia/Kathmandu; Path=/ops/; Max-Age=31536000; SameSite=Strict") {
		t.Errorf("status %d, %q", resp.StatusCode, resp.Header)
	}
	for _, wrong := range []string{"", "Local", "../../etc/passwd", "Nowhere/Town", strings.Repeat("a", 100)} {
		b.want(http.StatusBadRequest, "There is no such time zone", http.MethodGet, "/zone?zone="+url.QueryEscape(wrong), nil)
		b.want(http.StatusOK, "Times are those of UTC", http.MethodGet, "/calendar", nil, "Cookie", "zone="+wrong)
	}
	b.want(http.StatusSeeOther, "/ops/calendar", http.MethodGet, "/zone?zone=UTC&back=https://evil.example", nil)
	b.scheduled("acme", "one", "text")
	for _, path := range append(dashboardPages, "/compose", "/requests/acme/one?done=compose") {
		page := b.want(http.StatusOK, "Times are those of Asia/Kathmandu", http.MethodGet, path, nil, "Cookie", "zone=Asia/Kathmandu")
		back := b.form(page, "/zone").Get("back")
		if of, _, _ := strings.Cut(path, "?"); !strings.HasPrefix(back, of) || strings.Contains(back, "done=") {
			t.Errorf("the zone of %s leads back to %s", path, back)
		}
	}
}
