package web

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
)

// button leads to what helps, or does it.
type button struct {
	Text string
	To   string // of a page, below the base
	Post string // of a form, below the base
}

// buttonFor is what helps first, by the worst cause.
func buttonFor(s jetpost.StatusReport) *button {
	switch code := s.Code; {
	case code == "":
		return nil
	case code == "paused":
		return &button{Text: "Resume posting", Post: "/app/resume"}
	case code == "no_account":
		return &button{Text: "Connect an account", To: "/accounts"}
	case code == "all_reauth", code == "all_blocked":
		return &button{Text: "See the accounts", To: "/accounts"}
	case strings.HasSuffix(code, "_paused"):
		return &button{Text: "See the limits", To: "/limits"}
	default:
		return &button{Text: "See the workers", To: "/workers"}
	}
}

// The picture of a chart, in its own units.
const (
	barWidth    = 10
	barGap      = 2
	chartHeight = 60
)

// chart has a bar for each hour.
type chart struct {
	Width, Height int
	Bars          []bar
	Total, Most   int
}

type bar struct {
	X, Y, Width, Height int
	Words               string
}

func newChart(s jetpost.Series, in *time.Location) *chart {
	hours := s.Published[:min(len(s.Published), jetpost.SeriesHours)]
	c := &chart{Width: len(hours) * barWidth, Height: chartHeight}
	for _, h := range hours {
		c.Total, c.Most = c.Total+h.Posts, max(c.Most, h.Posts)
	}
	for i, h := range hours {
		height := 0
		if h.Posts > 0 {
			height = max(h.Posts*chartHeight/c.Most, 1)
		}
		c.Bars = append(c.Bars, bar{i*barWidth + barGap/2, chartHeight - height, barWidth - barGap, height, fmt.Sprintf("%s: %d", h.Start.In(in).Format("15:04 MST"), h.Posts)})
	}
	return c
}

// heldFor counts the requests that are held for one reason.
type heldFor struct {
	Code  jetpost.Code
	Words string
	Count int
}

// heldReasons are those of held requests, the most frequent first.
func heldReasons(s jetpost.Series) (list []heldFor) {
	for code, n := range s.Held {
		list = append(list, heldFor{code, reasonWords(code), n})
	}
	slices.SortFunc(list, func(a, b heldFor) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Code, b.Code)) })
	return list[:min(len(list), 2*maxFew)]
}

// backlog is when all that waits is out.
type backlog struct {
	jetpost.Forecast
	page
}

// Few are the accounts that are done last.
func (b backlog) Few() []jetpost.AccountForecast {
	return b.Accounts[:min(len(b.Accounts), maxForecast)]
}

// Others counts the accounts beside the few.
func (b backlog) Others() int { return len(b.Accounts) - len(b.Few()) + b.MoreAccounts }

// FewNotes are what else there is to know of it.
func (b backlog) FewNotes() []string { return b.Notes[:min(len(b.Notes), maxFew)] }

// BlockedFor is why the queue of an account does not move, in words.
func (b backlog) BlockedFor(a jetpost.AccountForecast) string {
	if a.Blocked == nil {
		return ""
	}
	return reasonWords(a.Blocked.Code)
}

// firstStep is one of the way from nothing to the first post.
type firstStep struct {
	Text string
	To   string // below the base
	Done bool
}

// firstSteps lead to the first post.
func firstSteps(s jetpost.StatusReport) []firstStep {
	alive := slices.ContainsFunc(s.Workers, func(w jetpost.WorkerReport) bool { return w.Alive })
	return []firstStep{
		{"A worker runs", "/workers", alive},
		{"An account is connected", "/accounts", s.Code != "no_account"},
		{"Write the first post, and watch it go live", "/compose", false},
	}
}

// whatIf is what is thought to be sent now.
type whatIf struct {
	Account string
	Posts   string
}

// maxWhatIf bounds the posts that are thought to be sent.
const maxWhatIf = 100_000

// whatIf finds out when all is out, with what the page's form adds.
func (d *Dashboard) whatIf(r *http.Request, p *limitsPage) {
	query := r.URL.Query()
	p.WhatIf = whatIf{strings.TrimSpace(query.Get("add_account")), strings.TrimSpace(query.Get("add"))}
	var f jetpost.Forecast
	var err error
	known := true
	switch posts, failed := strconv.Atoi(p.WhatIf.Posts); {
	case p.WhatIf.Account == "" || p.WhatIf.Posts == "":
		f, known, err = d.forecast(r.Context())
	case failed != nil || posts < 1 || posts > maxWhatIf:
		p.Wrong = fmt.Sprintf("Write a number of posts, 1 to %d.", maxWhatIf)
		return
	default:
		f, err = d.cfg.Operations.AppForecast(r.Context(), jetpost.ForecastRequest{Add: map[string]int{p.WhatIf.Account: posts}, Limit: maxForecast})
	}
	switch {
	case err != nil:
		p.Wrong = err.Error()
	case known:
		p.Forecast = &backlog{f, p.page}
	}
}
