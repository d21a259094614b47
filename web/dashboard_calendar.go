package web

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost"
)

const (
	// zoneCookie keeps the reader's time zone, and zoneSeconds is for how long.
	zoneCookie  = "zone"
	zoneSeconds = 365 * 24 * 60 * 60
	maxZone     = 64 // characters of a zone's name

	// weekEntries and monthEntries bound what a calendar shows of a day.
	weekEntries  = 15
	monthEntries = 4
	// askDays is how many days of a calendar are asked for at once.
	askDays = 7

	dayLayout = "2006-01-02"
	// localLayout is how browsers write a time without a zone.
	localLayout = "2006-01-02T15:04"
)

// location reads the name of a time zone.
func location(name string) (*time.Location, bool) {
	if name == "" || name == "Local" || len(name) > maxZone {
		return nil, false
	}
	zone, err := time.LoadLocation(name)
	return zone, err == nil
}

// zone is the reader's time zone: the one in the form, if that was read, else the cookie's,
// else UTC.
func zone(r *http.Request) *time.Location {
	if is, ok := location(r.PostForm.Get(zoneCookie)); ok {
		return is
	}
	if cookie, err := r.Cookie(zoneCookie); err == nil {
		if is, ok := location(cookie.Value); ok {
			return is
		}
	}
	return time.UTC
}

// setZone keeps the zone that the reader names, and goes back.
func (d *Dashboard) setZone(r *http.Request) (shown, error) {
	name := strings.TrimSpace(r.URL.Query().Get(zoneCookie))
	if _, ok := location(name); !ok {
		return shown{}, &jetpost.APIError{Code: jetpost.ErrInvalid, Detail: "There is no such time zone.", Help: "name one such as Europe/Berlin, or UTC"}
	}
	return shown{to: back(r.URL.Query().Get("back"), "/calendar"), cookie: &http.Cookie{
		Name: zoneCookie, Value: name, Path: d.cfg.Base + "/", MaxAge: zoneSeconds, SameSite: http.SameSiteStrictMode,
	}}, nil
}

// back is the page of the dashboard that a form names, or another one where it names none.
func back(path, other string) string {
	u, err := url.Parse(path)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || !strings.HasPrefix(u.Path, "/") || strings.HasPrefix(u.Path, "//") || !plain(path) {
		return other
	}
	return path
}

type calendarPage struct {
	page
	View    string // week or month
	Account string
	Heading string
	Days    []day
	Names   []string // of the days of a week
	// Previous, This and Following are the queries of other calendars, and Week and Month
	// those of the other views.
	Previous, This, Following, Week, Month string
}

// day is a day of a calendar.
type day struct {
	Date, Name string
	Today      bool
	Outside    bool // of the month
	Entries    []calendarEntry
	More       bool // than the entries

	from, to time.Time
}

// calendarEntry is a request on its day.
type calendarEntry struct {
	jetpost.CalendarEntry
	page
	Clock, Local string
	Movable      bool
	Wrong        bool // a person should look at it
	Named        string
}

// calendar shows a week or a month of requests, by the days of the reader's zone.
func (d *Dashboard) calendar(r *http.Request) (shown, error) {
	query := r.URL.Query()
	p := calendarPage{page: d.page(r, "calendar", "Calendar"), View: "week", Account: strings.TrimSpace(query.Get("account"))}
	p.Said = said(r)
	in := p.zone
	if query.Get("view") == "month" {
		p.View = "month"
	}
	at, err := time.ParseInLocation(dayLayout, query.Get("day"), in)
	if err != nil {
		at = p.now.In(in)
	}
	p.lay(at)
	most := map[string]int{"week": weekEntries, "month": monthEntries}[p.View]
	asking, ctx := errgroup.WithContext(r.Context())
	asking.SetLimit(askDays)
	for i := range p.Days {
		asking.Go(func() error {
			is := &p.Days[i]
			list, err := d.cfg.Operations.RequestCalendar(ctx, p.Account, jetpost.RequestCalendar{From: is.from, To: is.to, Limit: most})
			is.More = list.Next != ""
			for _, e := range list.Requests[:min(len(list.Requests), most)] {
				is.Entries = append(is.Entries, p.entry(e))
			}
			return err
		})
	}
	return shown{name: "calendar.html", data: p}, asking.Wait()
}

// lay fills in the seven days from a time on, or the month around it, and where its links lead.
func (p *calendarPage) lay(at time.Time) {
	year, month, date := at.Date()
	monday := func(t time.Time) int { return (int(t.Weekday()) + 6) % 7 } // days since
	midnight := func(year int, month time.Month, date int) time.Time {
		return time.Date(year, month, date, 0, 0, 0, 0, at.Location())
	}
	first, many := midnight(year, month, date), 7 // what comes is ahead, also on a Sunday
	before, after := midnight(year, month, date-7), midnight(year, month, date+7)
	p.Heading = fmt.Sprintf("%s to %s", first.Format("2 January"), first.AddDate(0, 0, 6).Format("2 January 2006"))
	if p.View == "month" {
		begins := midnight(year, month, 1)
		first = midnight(year, month, 1-monday(begins))
		many = 7 * ((monday(begins) + midnight(year, month+1, 0).Day() + 6) / 7)
		before, after = midnight(year, month-1, 1), midnight(year, month+1, 1)
		p.Heading = at.Format("January 2006")
	}
	today := p.now.In(at.Location()).Format(dayLayout)
	year0, month0, date0 := first.Date()
	for n := range many {
		from := midnight(year0, month0, date0+n)
		is := day{Date: from.Format(dayLayout), Name: from.Format("Mon 2 Jan"), from: from, to: midnight(year0, month0, date0+n+1)}
		is.Today, is.Outside = is.Date == today, p.View == "month" && from.Month() != month
		p.Days = append(p.Days, is)
		if n < 7 {
			p.Names = append(p.Names, from.Format("Monday"))
		}
	}
	on := func(view string, t time.Time) string { return p.query(view, t.Format(dayLayout)) }
	p.Previous, p.Following, p.This = on(p.View, before), on(p.View, after), p.query(p.View, "")
	p.Week, p.Month, p.Back = on("week", at), on("month", at), "/calendar"+on(p.View, at)
}

// query is that of a calendar.
func (p *calendarPage) query(view, day string) string {
	query := url.Values{"view": {view}}
	for name, value := range map[string]string{"day": day, "account": p.Account} {
		if value != "" {
			query.Set(name, value)
		}
	}
	return "?" + query.Encode()
}

func (p *calendarPage) entry(e jetpost.CalendarEntry) calendarEntry {
	at := e.DueAt.In(p.zone)
	is := calendarEntry{CalendarEntry: e, page: p.page, Clock: at.Format("15:04"), Local: at.Format(localLayout)}
	is.Movable = !p.ReadOnly && movable(e.Request)
	is.Text = cut(e.Text, maxCalendarWords)
	switch e.Request.State {
	case jetpost.StateFailed, jetpost.StateUnknown, jetpost.StateHeld:
		is.Wrong = true
		if e.Request.Reason != nil {
			is.Named = reasonWords(e.Request.Reason.Code)
		}
	}
	return is
}

// maxCalendarWords bounds the text of an entry.
const maxCalendarWords = 60 // characters

// movable tells whether the time of a request may still be changed, as far as it shows:
// nothing of it was sent.
func movable(r jetpost.RequestStatus) bool {
	switch r.State {
	case jetpost.StateScheduled, jetpost.StateQueued:
	case jetpost.StateHeld:
		for _, post := range r.Posts {
			if post.State != jetpost.PostPending {
				return false
			}
		}
	default:
		return false
	}
	return r.Posted == 0
}

// readTime reads a time that a form has without a zone; "" is none.
func readTime(r *http.Request, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{localLayout, localLayout + ":05"} {
		if at, err := time.ParseInLocation(layout, text, zone(r)); err == nil {
			return at.UTC(), nil
		}
	}
	return time.Time{}, &jetpost.APIError{Code: jetpost.ErrInvalid, Detail: "The time cannot be read.", Help: "go back, and choose a date and a time"}
}

// reschedule moves a request to the time in the form, or to now. A time that has passed is
// not taken for now: who drags a request to today may not mean to send it.
func (d *Dashboard) reschedule(r *http.Request, account, id, operation string) (shown, error) {
	at, err := readTime(r, r.PostFormValue("at"))
	if err != nil {
		return shown{}, err
	}
	if !at.IsZero() && at.Before(d.cfg.Now().Truncate(time.Minute)) {
		return shown{}, &jetpost.APIError{
			Code: jetpost.ErrInvalid, Detail: "That time has passed.", Help: "go back, and choose a later one; the request's page has a button that publishes it now",
		}
	}
	to := back(r.PostFormValue("back"), requestPath(account, id))
	mark := "?"
	if strings.Contains(to, "?") {
		mark = "&"
	}
	_, err = d.cfg.Operations.RequestReschedule(r.Context(), account, jetpost.RequestReschedule{OperationID: operation, ID: id, At: at})
	return shown{to: to + mark + "done=reschedule"}, err
}
