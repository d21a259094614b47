package web

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
)

// tab is a list of requests in one state.
type tab struct {
	State   jetpost.State // empty for all
	Name    string
	Count   int
	AtLeast bool // there may be more than Count
	Counted bool
	Current bool
	Query   string
}

type requestsPage struct {
	page
	Tabs     []tab
	Account  string
	State    jetpost.State
	Filters  filters
	Reasons  []option
	CanMany  string // cancel or replay, which can be done to all of the list; "" neither
	Requests []row
	Next     string // the query of the page after this one
	First    string // the query of the first page, on a later one
}

// row is a request in a list.
type row struct {
	jetpost.RequestStatus
	page
	Named string // the reason in words
}

// Size is how many posts it has, and how many of them are live.
func (r row) Size() string {
	switch {
	case r.Pruned:
		return "no longer kept whole"
	case r.Total == 1 && r.Posted == 1:
		return "1 post, live"
	case r.Total == 1:
		return "1 post"
	case r.Posted == 0:
		return fmt.Sprintf("%d posts", r.Total)
	}
	return fmt.Sprintf("%d posts, %d live", r.Total, r.Posted)
}

// OfAccount tells that its account is why it waits or failed.
func (r row) OfAccount() bool {
	return r.Reason != nil && (strings.HasPrefix(string(r.Reason.Code), "account_") || r.Reason.Code == jetpost.CodeTokenRefreshFailed)
}

func (p page) rows(requests []jetpost.RequestStatus) (rows []row) {
	for _, r := range requests {
		named := ""
		if r.Reason != nil {
			named = reasonWords(r.Reason.Code)
		}
		rows = append(rows, row{r, p, named})
	}
	return rows
}

// requests lists requests; with an id it leads to that one.
func (d *Dashboard) requests(r *http.Request) (shown, error) {
	query := r.URL.Query()
	account, state, id := strings.TrimSpace(query.Get("account")), jetpost.State(query.Get("state")), strings.TrimSpace(query.Get("id"))
	if id != "" {
		return d.find(r, account, id)
	}
	p := requestsPage{page: d.page(r, "requests", "Requests"), Account: account, State: state}
	d.follow(&p.page, jetpost.RequestName{Account: account})
	f, err := readFilters(query)
	if err != nil {
		return shown{}, err
	}
	p.Filters, p.Reasons, p.CanMany = f, reasonOptions(f.Code), many(state)
	list, err := d.cfg.Operations.RequestList(r.Context(), account, jetpost.RequestList{State: state, Code: f.Code, Since: f.since, Limit: pageSize, Cursor: query.Get("cursor")})
	if err != nil {
		return shown{}, err
	}
	counts := jetpost.RequestCounts{}
	switch {
	case f.Code != "" || f.Since != "": // no counts are of these
	case account == "":
		counts, err = d.counts(r.Context())
	default:
		counts, err = d.cfg.Operations.RequestCount(r.Context(), account)
	}
	if err != nil {
		return shown{}, err
	}
	p.Requests, p.Tabs = p.rows(list.Requests), states(counts, f)
	if list.Next != "" {
		p.Next = f.with(map[string]string{"cursor": list.Next})
	}
	if query.Get("cursor") != "" {
		p.First = cmp.Or(f.Query(), "?")
	}
	return shown{name: "requests.html", data: p}, nil
}

// many is what can be done to all requests of a state.
func many(state jetpost.State) string {
	switch {
	case state == jetpost.StateFailed:
		return "replay"
	case state.Finished(), state == jetpost.StateUnknown:
		return ""
	}
	return "cancel"
}

// option is one of a list to choose from.
type option struct {
	Value, Words string
	Chosen       bool
}

// reasonOptions are those of a list of requests: of those that are held, failed or unknown.
func reasonOptions(chosen jetpost.Code) (list []option) {
	for _, code := range jetpost.Codes() {
		list = append(list, option{string(code), reasonWords(code), code == chosen})
	}
	return list
}

// states has a tab for all requests, and one for each state, each with the same filters.
// Counts without a limit are none.
func states(counts jetpost.RequestCounts, f filters) (tabs []tab) {
	current := f.State
	for _, of := range append([]jetpost.State{""}, jetpost.States()...) {
		n := counts.States[of]
		f.State = of
		tabs = append(tabs, tab{
			State: of, Name: cmp.Or(string(of), "all"), Count: n, AtLeast: n >= counts.Limit, Counted: of != "" && counts.Limit > 0,
			Current: of == current, Query: f.Query(),
		})
	}
	return tabs
}

// find leads to the request with that id.
func (d *Dashboard) find(r *http.Request, account, id string) (shown, error) {
	found, err := d.cfg.Operations.RequestGet(r.Context(), account, jetpost.RequestGet{ID: id})
	return shown{to: requestPath(found.Request.Account, found.Request.ID)}, err
}

type requestPage struct {
	page
	Request row
	Posts   []post
	// Waits are what keeps its account from posting, in words.
	Waits []waits
	// Unpublish is how far the deletion of its posts is, in words.
	Unpublish string
	Metadata  [][2]string
	Thread    threaded
	// History is what happened, the latest first, and Earlier tells that there is more.
	History []happened
	Earlier bool
	Silent  string // why there is no history
	// MoveTo is the time that the form to move it begins with, in the zone.
	MoveTo string
	// What can be asked for, as it stands.
	CanCancel, CanMove, CanReplay, CanSettle, CanUnpublish bool
}

// post is one post of a request.
type post struct {
	jetpost.PostStatus
	Number int
	State  string
	Lane   string // the state in a word
	Text   string
	Parts  []segment // of the text
	Cut    bool      // there is more of the text
	Known  bool      // the text is

	Pictures []picture
	Poll     []string // the choices
	PollEnds string   // after it is live
}

// waits is a pause.
type waits struct {
	Text   string
	Detail string
	Until  time.Time
	// To leads to where it can be ended, below the base.
	To string
}

// maxShownText bounds a post's text, and maxShownWords another one, on a page.
const (
	maxShownText  = 600 // characters
	maxShownWords = 160
)

// request shows one request.
func (d *Dashboard) request(r *http.Request) (shown, error) {
	found, err := d.cfg.Operations.RequestGet(r.Context(), r.PathValue("account"), jetpost.RequestGet{ID: r.PathValue("id")})
	if err != nil {
		return shown{}, err
	}
	p := requestPage{page: d.page(r, "requests", "Request "+found.Request.ID)}
	p.Said = said(r)
	d.follow(&p.page, jetpost.RequestName{Account: found.Request.Account, ID: found.Request.ID})
	p.Request = p.rows([]jetpost.RequestStatus{found.Request})[0]
	p.Posts, p.Waits = posts(found), pauses(found, p.now)
	for _, name := range slices.Sorted(maps.Keys(found.Request.Metadata)) {
		p.Metadata = append(p.Metadata, [2]string{cut(name, 100), cut(found.Request.Metadata[name], 100)})
	}
	if u := found.Request.Unpublish; u != nil {
		p.Unpublish = unpublishWords(u)
	}
	is := found.Request
	doubtful := slices.ContainsFunc(is.Posts, func(p jetpost.PostStatus) bool { return p.State == jetpost.PostSending })
	p.CanCancel = !is.State.Finished() && is.State != jetpost.StateUnknown
	p.CanReplay = is.State == jetpost.StateFailed && !is.Pruned
	p.CanSettle = is.State == jetpost.StateUnknown || is.State == jetpost.StateHeld && doubtful
	p.CanUnpublish = live(is) > 0
	d.details(r, &p, found.Contents)
	return shown{name: "request.html", data: p}, nil
}

// live counts the posts of a request that can be seen on X.
func live(r jetpost.RequestStatus) (n int) {
	for _, p := range r.Posts {
		if p.State == jetpost.PostPosted && p.DeletedAt.IsZero() {
			n++
		}
	}
	return n
}

func posts(found jetpost.RequestDetails) (list []post) {
	for i, status := range found.Request.Posts {
		p := post{PostStatus: status, Number: i + 1, State: string(status.State)}
		if !status.DeletedAt.IsZero() {
			p.State = "deleted"
		}
		p.Lane = p.State
		switch {
		case p.State == string(jetpost.PostPosted):
			p.Lane = "live"
		case p.State == string(jetpost.PostPending):
			p.Lane = "not sent yet"
		case p.State == string(jetpost.PostSending) && found.Request.State == jetpost.StateUnknown:
			p.State, p.Lane = string(jetpost.StateUnknown), "in doubt"
		}
		if i < len(found.Texts) {
			p.Known, p.Text = true, cut(found.Texts[i], maxShownText)
			p.Cut = p.Text != found.Texts[i]
			p.Parts = segments(p.Text)
		}
		list = append(list, p)
	}
	return list
}

// pauses are those that keep an unfinished request from going on.
func pauses(found jetpost.RequestDetails, now time.Time) (list []waits) {
	if found.Request.State.Finished() {
		return nil
	}
	told := found.Request.Reason != nil && found.Request.Reason.Code == found.Pause.Reason.Code
	if found.Pause.Active(now) && !told {
		list = append(list, waits{"Its account is paused: " + reasonWords(found.Pause.Reason.Code) + ".", found.Pause.Reason.Detail, found.Pause.Reason.Until, accountPath(found.Request.Account)})
	}
	for _, p := range found.AppPauses[:min(len(found.AppPauses), maxFew)] {
		list = append(list, waits{"Every account waits: " + reasonWords(p.Reason.Code) + ".", p.Reason.Detail, p.Reason.Until, "/limits"})
	}
	return list
}

func unpublishWords(u *jetpost.UnpublishStatus) string {
	switch {
	case !u.DoneAt.IsZero():
		return "nothing of it is left on X"
	case u.Reason != nil:
		return "waits: " + reasonWords(u.Reason.Code)
	default:
		return "its posts are being deleted"
	}
}

// confirmUnpublish asks before what is live is deleted on X.
func (d *Dashboard) confirmUnpublish(r *http.Request) (shown, error) {
	if d.cfg.ReadOnly {
		return shown{}, readOnly()
	}
	account, id := r.PathValue("account"), r.PathValue("id")
	if _, err := d.cfg.Operations.RequestUnpublish(r.Context(), account, jetpost.RequestUnpublish{ID: id, DryRun: true}); err != nil {
		return shown{}, err
	}
	found, err := d.cfg.Operations.RequestGet(r.Context(), account, jetpost.RequestGet{ID: id})
	p := requestPage{page: d.page(r, "requests", "Delete the posts of "+id+"?")}
	p.Request, p.Posts = p.rows([]jetpost.RequestStatus{found.Request})[0], posts(found)
	return shown{name: "unpublish.html", data: p}, err
}

// changeRequest carries out a button of a request's page.
func (d *Dashboard) changeRequest(r *http.Request, operation string) (shown, error) {
	account, id, action := r.PathValue("account"), r.PathValue("id"), r.PathValue("action")
	var err error
	switch o := d.cfg.Operations; action {
	case "cancel":
		_, err = o.RequestCancel(r.Context(), account, jetpost.RequestCancel{OperationID: operation, ID: id})
	case "reconcile":
		_, err = o.RequestReconcile(r.Context(), account, jetpost.RequestReconcile{OperationID: operation, ID: id})
	case "unpublish":
		_, err = o.RequestUnpublish(r.Context(), account, jetpost.RequestUnpublish{OperationID: operation, ID: id})
	case "posted", "not-posted":
		in := jetpost.RequestResolve{OperationID: operation, ID: id, NotPosted: action == "not-posted"}
		if !in.NotPosted {
			if in.PostID = postID(r.PostFormValue("post")); in.PostID == "" {
				return shown{}, &jetpost.APIError{Code: jetpost.ErrInvalid, Detail: "The address or the id of the post is missing.", Help: "go back, and paste the address of the post on X"}
			}
		}
		_, err = o.RequestResolve(r.Context(), account, in)
	case "reschedule":
		return d.reschedule(r, account, id, operation)
	case "replay":
		return d.replay(r, account, id, operation)
	default:
		err = notThere()
	}
	return shown{to: requestPath(account, id) + "?done=" + action}, err
}

// postID reads what people have of a post: its id, or its address on X.
func postID(text string) string {
	text, _, _ = strings.Cut(strings.TrimSpace(text), "?")
	if _, after, ok := strings.Cut(text, "/status/"); ok {
		text, _, _ = strings.Cut(after, "/")
	}
	return text
}

// replay sends back what of a request failed.
func (d *Dashboard) replay(r *http.Request, account, id, operation string) (shown, error) {
	answer, err := d.cfg.Operations.RequestReplay(r.Context(), account, jetpost.RequestReplay{OperationID: operation, IDs: []string{id}})
	if err != nil {
		return shown{}, err
	}
	for _, is := range answer.Replayed {
		if is.Action == jetpost.ReplayNothing {
			return shown{}, &jetpost.APIError{Code: jetpost.ErrConflict, Detail: is.Detail, Help: "see the request"}
		}
	}
	return shown{to: requestPath(account, id) + "?done=replay"}, nil
}
