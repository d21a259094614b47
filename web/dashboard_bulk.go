package web

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
)

// maxBulk is how many requests one button changes.
const maxBulk = 500

// filters are those of a list of requests, and of what is done to all of it.
type filters struct {
	Account string
	State   jetpost.State
	Code    jetpost.Code
	Since   string // as the field of the form has it
	since   time.Time
}

// readFilters reads the filters of a page's address or of a form.
func readFilters(from url.Values) (filters, error) {
	f := filters{
		Account: strings.TrimSpace(from.Get("account")), State: jetpost.State(from.Get("state")), Code: jetpost.Code(from.Get("code")), Since: from.Get("since"),
	}
	wrong := func(detail, help string) (filters, error) {
		return filters{}, &jetpost.APIError{Code: jetpost.ErrInvalid, Detail: detail, Help: help}
	}
	if f.State != "" && !slices.Contains(jetpost.States(), f.State) {
		return wrong("There is no such state.", "choose one of the tabs")
	}
	if f.Code != "" && !slices.Contains(jetpost.Codes(), f.Code) {
		return wrong("There is no such reason.", "choose one of the list")
	}
	if f.Since != "" {
		var err error
		if f.since, err = time.Parse(time.DateOnly, f.Since); err != nil {
			return wrong("That is no day.", "write it as 2026-12-31")
		}
	}
	return f, nil
}

// Query is the address of the page with these filters, from "?" on; "" without any.
func (f filters) Query() string { return f.with(nil) }

func (f filters) with(more map[string]string) string {
	query := url.Values{}
	for name, value := range map[string]string{"account": f.Account, "state": string(f.State), "code": string(f.Code), "since": f.Since} {
		if value != "" {
			query.Set(name, value)
		}
	}
	for name, value := range more {
		query.Set(name, value)
	}
	if len(query) == 0 {
		return ""
	}
	return "?" + query.Encode()
}

// Fields are the filters as hidden fields.
func (f filters) Fields() (fields [][2]string) {
	for _, field := range [][2]string{{"account", f.Account}, {"state", string(f.State)}, {"code", string(f.Code)}, {"since", f.Since}} {
		if field[1] != "" {
			fields = append(fields, field)
		}
	}
	return fields
}

// Words say what the filters let through.
func (f filters) Words() string {
	var words []string
	if f.State != "" {
		words = append(words, "that are "+string(f.State))
	}
	if f.Account != "" {
		words = append(words, "of account "+f.Account)
	}
	if f.Code != "" {
		words = append(words, "because "+reasonWords(f.Code))
	}
	if f.Since != "" {
		words = append(words, "since "+f.Since)
	}
	return strings.Join(words, ", ")
}

// bulkPage shows what is done to many requests, before and afterwards.
type bulkPage struct {
	page
	Filters filters
	Action  string // cancel or replay
	Before  string // requests that were accepted before then are meant
	Done    bool
	Rows    []bulkRow
	Changes int // of the rows: those that are changed
	Others  int // those that are not
	Hidden  int // rows that are not shown
	More    bool
	Most    int
}

type bulkRow struct {
	Account, ID string
	State       jetpost.State
	Does        bool
	Words       string
}

// bulk is a page about many requests. Its table has the first rows.
func (d *Dashboard) bulk(r *http.Request, action string, f filters, rows []bulkRow, more, done bool) bulkPage {
	p := bulkPage{page: d.page(r, "requests", "Cancel many"), Filters: f, Action: action, Done: done, More: more, Most: maxBulk}
	if action == "replay" {
		p.Title, p.Section = "Send many again", "dead-letters"
	}
	for _, r := range rows {
		if r.Does {
			p.Changes++
		} else {
			p.Others++
		}
	}
	p.Hidden = max(len(rows)-pageSize, 0)
	p.Rows = rows[:min(len(rows), pageSize)]
	return p
}

func (f filters) cancel(operation string) jetpost.RequestCancelMany {
	return jetpost.RequestCancelMany{OperationID: operation, State: f.State, Code: f.Code, Since: f.since, All: true, Limit: maxBulk}
}

// previewCancel shows which requests would be cancelled.
func (d *Dashboard) previewCancel(r *http.Request) (shown, error) {
	f, err := readFilters(r.URL.Query())
	if err != nil {
		return shown{}, err
	}
	in := f.cancel("")
	in.DryRun, in.Before = true, d.cfg.Now().UTC()
	answer, err := d.cfg.Operations.RequestCancelMany(r.Context(), f.Account, in)
	p := d.bulk(r, "cancel", f, cancelRows(answer), answer.More, false)
	p.Before = in.Before.Format(time.RFC3339Nano)
	return shown{name: "bulk.html", data: p}, err
}

// cancelMany cancels what the preview has shown: what came since is left alone.
func (d *Dashboard) cancelMany(r *http.Request, operation string) (shown, error) {
	f, err := readFilters(r.PostForm)
	if err != nil {
		return shown{}, err
	}
	in := f.cancel(operation)
	if in.Before, err = time.Parse(time.RFC3339Nano, r.PostFormValue("before")); err != nil {
		return shown{}, &jetpost.APIError{Code: jetpost.ErrInvalid, Detail: "The form does not say which requests were shown.", Help: "open its page again"}
	}
	answer, err := d.cfg.Operations.RequestCancelMany(r.Context(), f.Account, in)
	return shown{name: "bulk.html", data: d.bulk(r, "cancel", f, cancelRows(answer), answer.More, true)}, err
}

func cancelRows(answer jetpost.CancelAnswer) (rows []bulkRow) {
	for _, c := range answer.Cancelled {
		words := c.Detail
		switch {
		case c.Done && c.Posted > 0:
			words = "what is live stays live"
		case c.Done:
			words = "nothing of it is live"
		}
		rows = append(rows, bulkRow{c.Account, c.ID, c.State, c.Done, words})
	}
	return rows
}

func (f filters) replay(operation string, dry bool) jetpost.RequestReplay {
	in := jetpost.RequestReplay{OperationID: operation, Code: f.Code, Since: f.since, Limit: maxBulk, DryRun: dry}
	in.All = f.Account == "" && f.Code == "" && f.Since == ""
	return in
}

// previewReplay shows which requests and messages would be sent again.
func (d *Dashboard) previewReplay(r *http.Request) (shown, error) {
	f, err := readFilters(r.URL.Query())
	if err != nil {
		return shown{}, err
	}
	f.State = "" // what can be sent again has failed or was refused
	answer, err := d.cfg.Operations.RequestReplay(r.Context(), f.Account, f.replay("", true))
	return shown{name: "bulk.html", data: d.bulk(r, "replay", f, replayRows(answer), answer.More, false)}, err
}

// replayMany sends back what failed or was refused.
func (d *Dashboard) replayMany(r *http.Request, operation string) (shown, error) {
	f, err := readFilters(r.PostForm)
	if err != nil {
		return shown{}, err
	}
	f.State = ""
	answer, err := d.cfg.Operations.RequestReplay(r.Context(), f.Account, f.replay(operation, false))
	return shown{name: "bulk.html", data: d.bulk(r, "replay", f, replayRows(answer), answer.More, true)}, err
}

func replayRows(answer jetpost.ReplayAnswer) (rows []bulkRow) {
	for _, one := range answer.Replayed {
		rows = append(rows, bulkRow{one.Account, one.ID, one.State, one.Action != jetpost.ReplayNothing, one.Detail})
	}
	return rows
}
