package web

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// maxFew bounds each short list of the overview.
	maxFew = 5
	// maxDue is how many scheduled requests are looked through for those that are due next.
	maxDue = 200
	// maxWorkers bounds the workers on the overview.
	maxWorkers = 6
	// maxWindows bounds the windows on a page.
	maxWindows = pageSize
)

type overviewPage struct {
	page
	Status   jetpost.StatusReport
	Queued   uint64                // jobs that no worker has accepted
	Causes   []jetpost.StatusCause // all but the worst, which the sentence has
	Pauses   []waits
	Unknown  []row
	Failed   []row
	Reauth   []string
	Paused   []accountRow
	Blocked  []jetpost.Blocked
	Workers  []jetpost.WorkerReport
	More     more
	States   []tab
	InFlight *int // requests that are being sent; nil where that was not told
	Due      []row
	DueAmong int // how many were looked through, where there are more
	Windows  []window
	Button   *button // what helps first
	Chart    *chart  // nil while it is being counted
	Series   jetpost.Series
	Held     []heldFor
	Backlog  *backlog // nil while it is being calculated
	First    []firstStep
	// Silent are the parts that were not told, and why.
	Silent []string
}

// more counts what the short lists leave out.
type more struct{ Failed, Unknown, Reauth, Paused, Workers int }

// Calm tells that nothing needs a person.
func (p overviewPage) Calm() bool {
	return len(p.Causes)+len(p.Pauses)+len(p.Unknown)+len(p.Failed)+len(p.Reauth)+len(p.Paused)+len(p.Blocked) == 0
}

// Headline is the verdict in a few words.
func (p overviewPage) Headline() string {
	words := map[string]string{
		"PUBLISHING": "Posts go out", "DEGRADED": "Posts go out, but something needs a person",
		"PAUSED": "All posting is paused", "NOT PUBLISHING": "Posts do not go out",
	}[p.Status.State]
	switch {
	case p.Status.State == "PUBLISHING" && !p.Calm():
		words = "Posts go out, but something needs a person"
	case p.Status.State == "PUBLISHING" && p.First != nil:
		words = "Ready for the first post"
	}
	return cmp.Or(words, p.Status.Summary)
}

// Reason is that of the verdict; a code that stands for it is told in words.
func (p overviewPage) Reason() string {
	return cmp.Or(reasons()[jetpost.Code(p.Status.Reason)], p.Status.Reason)
}

// Tone is the colour of the verdict.
func (p overviewPage) Tone() string {
	switch {
	case p.Status.State == "PUBLISHING" && p.Calm():
		return "good"
	case p.Status.Publishing:
		return "fair"
	}
	return "bad"
}

// overview tells whether all is well, and what needs a person.
func (d *Dashboard) overview(r *http.Request) (shown, error) {
	p := overviewPage{page: d.page(r, "overview", "Overview")}
	var unknown, failed, due jetpost.RequestPage
	var limits jetpost.Limits
	var counts jetpost.RequestCounts
	var told [7]error
	d.follow(&p.page, jetpost.RequestName{})
	asking, ctx := errgroup.WithContext(r.Context())
	asking.Go(func() (err error) {
		p.Status, err = d.status(ctx)
		return err
	})
	lists := []struct {
		state jetpost.State
		limit int
		into  *jetpost.RequestPage
	}{{jetpost.StateUnknown, maxFew, &unknown}, {jetpost.StateFailed, maxFew, &failed}, {jetpost.StateScheduled, maxDue, &due}}
	for i, list := range lists {
		asking.Go(func() error {
			*list.into, told[i] = d.cfg.Operations.RequestList(ctx, "", jetpost.RequestList{State: list.state, Limit: list.limit})
			return nil
		})
	}
	asking.Go(func() error {
		limits, told[3] = d.cfg.Operations.AppLimits(ctx, jetpost.LimitsRequest{Limit: maxWindows})
		return nil
	})
	asking.Go(func() error {
		counts, told[4] = d.counts(ctx)
		return nil
	})
	asking.Go(func() error {
		var known bool
		if p.Series, known, told[5] = d.series(ctx); known {
			p.Chart, p.Held = newChart(p.Series, p.zone), heldReasons(p.Series)
		}
		return nil
	})
	asking.Go(func() error {
		var f jetpost.Forecast
		var known bool
		if f, known, told[6] = d.forecast(ctx); known {
			p.Backlog = &backlog{f, p.page}
		}
		return nil
	})
	if err := asking.Wait(); err != nil {
		return shown{}, err
	}
	for _, err := range told {
		if err != nil && !slices.Contains(p.Silent, err.Error()) {
			p.Silent = append(p.Silent, err.Error())
		}
	}
	p.Unknown, p.Failed = p.rows(unknown.Requests), p.rows(failed.Requests)
	p.attention(counts.States)
	p.States = states(counts, filters{})[1:]
	if told[4] == nil {
		p.InFlight = new(counts.States[jetpost.StatePublishing])
	}
	p.dueSoon(due)
	p.Windows = p.windows(limits, true)
	p.Button = buttonFor(p.Status)
	if p.Status.LastPost.IsZero() && told[4] == nil && len(counts.States) == 0 {
		p.First = firstSteps(p.Status)
	}
	return shown{name: "overview.html", data: p}, nil
}

// attention fills in what needs a person.
func (p *overviewPage) attention(counts map[jetpost.State]int) {
	s := p.Status
	if s.QueuedJobs != nil {
		p.Queued = *s.QueuedJobs
	}
	p.Causes = s.Causes[min(1, len(s.Causes)):min(1+maxFew, len(s.Causes))]
	for _, pause := range s.AppPauses[:min(len(s.AppPauses), maxFew)] {
		p.Pauses = append(p.Pauses, waits{"No account may " + targetWords(pause.Target) + ": " + reasonWords(pause.Reason.Code) + ".", pause.Reason.Detail, pause.Reason.Until, "/limits"})
	}
	p.Workers = s.Workers[:min(len(s.Workers), maxWorkers)]
	p.Reauth = s.Reauth[:min(len(s.Reauth), maxFew)]
	for _, paused := range s.Paused[:min(len(s.Paused), maxFew)] {
		p.Paused = append(p.Paused, p.account(jetpost.AccountInfo{Name: paused.Account, Pause: paused.Pause}, "ok"))
	}
	for _, b := range s.Blocked {
		// What is unknown, and who must be connected again, is listed already.
		if b.State != jetpost.StateUnknown && !slices.Contains(s.Reauth, b.Account) && len(p.Blocked) < maxFew {
			p.Blocked = append(p.Blocked, b)
		}
	}
	p.More = more{
		Failed: counts[jetpost.StateFailed] - len(p.Failed), Unknown: counts[jetpost.StateUnknown] - len(p.Unknown),
		Reauth: len(s.Reauth) - len(p.Reauth), Paused: len(s.Paused) - len(p.Paused), Workers: len(s.Workers) - len(p.Workers),
	}
}

// dueSoon picks the scheduled requests whose time comes first.
func (p *overviewPage) dueSoon(due jetpost.RequestPage) {
	slices.SortFunc(due.Requests, func(a, b jetpost.RequestStatus) int { return a.PublishAt.Compare(b.PublishAt) })
	p.Due = p.rows(due.Requests[:min(len(due.Requests), maxFew)])
	if due.Next != "" {
		p.DueAmong = len(due.Requests)
	}
}

// targetWords are what a pause of the app keeps accounts from.
func targetWords(target string) string {
	switch target {
	case jetpost.TargetRefresh:
		return "renew its token"
	case jetpost.TargetMedia:
		return "upload media"
	default:
		return "post"
	}
}

// window is one of X's rate windows.
type window struct {
	jetpost.RateWindow
	page
	Words  string // the endpoint's
	Length string
	Used   int // of Limit
}

// windows are the exhausted ones first; a few only those that tell the most.
func (p page) windows(limits jetpost.Limits, few bool) (list []window) {
	all := slices.Clone(limits.Windows)
	slices.SortStableFunc(all, func(a, b jetpost.RateWindow) int {
		switch {
		case a.Available != b.Available && b.Available:
			return -1
		case a.Available != b.Available:
			return 1
		default:
			first := func(w jetpost.RateWindow) int { return strings.Index(w.Endpoint, string(xapi.EndpointCreatePost)) }
			return cmp.Or(strings.Compare(a.Account, b.Account), first(b)-first(a)) // the app's own first, and of each account that of posts
		}
	})
	for _, w := range all {
		if few && (len(list) == maxFew || w.Available && w.Account != "") {
			continue
		}
		length := map[string]string{"15min": "15 minutes", "user_24h": "24 hours", "app_24h": "24 hours"}[w.Kind]
		if list = append(list, window{w, p, endpointWords(w.Endpoint), length, max(w.Limit-w.Remaining, 0)}); len(list) == maxWindows {
			break
		}
	}
	return list
}

type limitsPage struct {
	page
	Account string
	Limits  jetpost.Limits
	Pauses  []limitPause
	Windows []window
	More    int
	ByHand  bool // somebody has paused the app
	// WhatIf is what is thought to be sent, and Forecast when all is out then; nil while
	// that is being calculated.
	WhatIf   whatIf
	Forecast *backlog
	Wrong    string // why there is none
}

type limitPause struct {
	jetpost.LimitPause
	Holds, Why string
}

// limits shows what keeps calls from X.
func (d *Dashboard) limits(r *http.Request) (shown, error) {
	account := strings.TrimSpace(r.URL.Query().Get("account"))
	limits, err := d.cfg.Operations.AppLimits(r.Context(), jetpost.LimitsRequest{Account: account, Limit: maxWindows})
	if err != nil {
		return shown{}, err
	}
	p := limitsPage{page: d.page(r, "limits", "Limits"), Account: account, Limits: limits}
	p.Said = said(r)
	d.follow(&p.page, jetpost.RequestName{})
	d.whatIf(r, &p)
	for _, pause := range limits.Pauses[:min(len(limits.Pauses), maxFew)] { // one for each target at most
		p.ByHand = p.ByHand || pause.Code == jetpost.CodePausedByHand
		p.Pauses = append(p.Pauses, limitPause{pause, targetWords(pause.Target), reasonWords(pause.Code)})
	}
	p.Windows = p.windows(limits, false)
	p.More = len(limits.Windows) - len(p.Windows) + limits.MoreWindows
	return shown{name: "limits.html", data: p}, nil
}

type deadLettersPage struct {
	page
	Kind     jetpost.DeadLetterKind
	Account  string
	Refusals []refusal
	Requests []row
	Next     string // cursor of the page after this one
	Later    bool
	Filters  filters
	// Groups are those of all, on the first page; Counting that they are not known yet.
	Groups   []group
	Counting bool
	Most     int // how many of each kind are counted
}

// group is what failed or was refused for one reason.
type group struct {
	jetpost.DeadLetterGroup
	page
	Why   string
	Query string
}

type refusal struct {
	jetpost.Refusal
	Why  string
	More int // mistakes that are not shown
}

// deadLetters lists messages that never became requests, or requests that failed.
func (d *Dashboard) deadLetters(r *http.Request) (shown, error) {
	query := r.URL.Query()
	p := deadLettersPage{
		page: d.page(r, "dead-letters", "Dead letters"), Account: strings.TrimSpace(query.Get("account")), Later: query.Get("cursor") != "", Kind: jetpost.DeadLetterRefused,
	}
	if jetpost.DeadLetterKind(query.Get("kind")) == jetpost.DeadLetterFailed {
		p.Kind = jetpost.DeadLetterFailed
	}
	d.follow(&p.page, jetpost.RequestName{})
	var err error
	if p.Filters, err = readFilters(query); err != nil {
		return shown{}, err
	}
	list, err := d.list(r.Context(), p, query.Get("cursor"))
	if err != nil {
		return shown{}, err
	}
	if p.Account == "" && !p.Later {
		groups, known, err := d.groups(r.Context())
		if err != nil {
			return shown{}, err
		}
		p.Counting, p.Most = !known, groups.Limit
		for _, g := range groups.Groups[:min(len(groups.Groups), pageSize)] {
			g.Kind, g.Code = jetpost.DeadLetterKind(cut(string(g.Kind), maxName)), jetpost.Code(cut(string(g.Code), maxName))
			query := url.Values{"kind": {string(g.Kind)}, "code": {string(g.Code)}}
			p.Groups = append(p.Groups, group{g, p.page, reasonWords(g.Code), "?" + query.Encode()})
		}
	}
	for _, of := range list.Refusals {
		is := refusal{Refusal: of, Why: reasonWords(of.Code), More: max(len(of.Problems)-maxProblems, 0)}
		is.Problems = of.Problems[:min(len(of.Problems), maxProblems)]
		p.Refusals = append(p.Refusals, is)
	}
	p.Requests, p.Next = p.rows(list.Requests), list.Next
	return shown{name: "deadletters.html", data: p}, nil
}

// maxProblems bounds the mistakes that are shown of one message.
const maxProblems = 1

func (d *Dashboard) list(ctx context.Context, p deadLettersPage, cursor string) (jetpost.DeadLetterPage, error) {
	return d.cfg.Operations.DeadLettersList(ctx, p.Account, jetpost.DeadLettersList{Kind: p.Kind, Code: p.Filters.Code, Since: p.Filters.since, Limit: pageSize / 2, Cursor: cursor})
}
