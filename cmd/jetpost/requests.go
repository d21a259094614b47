package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/store"
)

// stateRefused lists what never became a request, which is no state of one.
const stateRefused = "refused"

// maxRefusals bounds the refusals that are looked through.
const maxRefusals = 10_000

// requestsCmd is 'jetpost requests'.
type requestsCmd struct {
	List         requestsListCmd      `cmd:"" help:"List requests, the latest first."`
	Show         requestsShowCmd      `cmd:"" help:"Show one request: its posts with links, its reason, its times."`
	Cancel       requestsCancelCmd    `cmd:"" help:"Take a request back; what is live stays live."`
	Reconcile    requestsReconcileCmd `cmd:"" help:"Look at X again for the doubtful post of a request, now."`
	Resolve      requestsResolveCmd   `cmd:"" help:"Say whether the doubtful post of a request is on X: --posted POST_ID or --not-posted."`
	connectFlags `embed:""`
}

// accountFlag narrows a command to one account.
type accountFlag struct {
	Account string `env:"-" placeholder:"NAME" help:"Only of this account."`
}

// whoseFlag tells requests of one id apart.
type whoseFlag struct {
	Account string `env:"-" placeholder:"NAME" help:"Its account; needed where several accounts have a request of that id."`
}

// withLedger opens the ledger for a command that only reads it.
func (e *env) withLedger(read func(context.Context, store.Store) error) error {
	cfg, err := e.clientConfig()
	if err != nil {
		return err
	}
	ledger, err := cfg.OpenStore(e.ctx)
	if err != nil {
		return err
	}
	defer func() { _ = ledger.Close() }() // only read from
	return read(e.ctx, ledger)
}

// withDesk opens everything for a command that changes something.
func (e *env) withDesk(work func(context.Context, *app.Desk) error) error {
	cfg, err := e.clientConfig()
	if err != nil {
		return err
	}
	desk, err := cfg.OpenDesk(e.ctx, e.log)
	if err != nil {
		return err
	}
	defer desk.Close()
	return whichRequest(work(e.ctx, desk))
}

type requestsListCmd struct {
	accountFlag
	State string `env:"-" placeholder:"STATE" help:"Only in this state; 'refused' lists messages that never became requests."`
	Code  string `env:"-" placeholder:"CODE" help:"Only with this reason code."`
	Since string `env:"-" placeholder:"TIME" help:"Only those accepted since: a time like 2026-12-01T09:00:00Z, or 24h ago."`
	Limit int    `env:"-" default:"100" help:"At most so many (${default})."`
}

// Run lists requests, or refusals.
func (c *requestsListCmd) Run(e *env) error {
	var wrong []string
	states := append(jetpost.States(), stateRefused)
	if c.State != "" && !slices.Contains(states, jetpost.State(c.State)) {
		wrong = append(wrong, fmt.Sprintf("--state: %q is none; use one of %s", c.State, joined(states)))
	}
	code, err := reasonCode(c.Code)
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	since, err := moment(c.Since, true, time.Now())
	if err != nil {
		wrong = append(wrong, "--since: "+err.Error())
	}
	if c.Limit < 1 {
		wrong = append(wrong, "--limit: must be 1 at least")
	}
	if err := mistakes("cannot list", wrong...); err != nil {
		return err
	}
	return e.withLedger(func(ctx context.Context, ledger store.Store) error {
		if c.State == stateRefused {
			return c.refused(ctx, e, ledger, code, since)
		}
		found, err := ledger.ListRequests(ctx, store.Filter{
			Account: c.Account, State: jetpost.State(c.State), Code: code, Since: since, Limit: c.Limit,
		})
		if err != nil {
			return err
		}
		return listRequests(e, found)
	})
}

func listRequests(e *env, found []store.Record) error {
	statuses := make([]jetpost.RequestStatus, len(found))
	for i, r := range found {
		statuses[i] = r.Status
	}
	return list(e, statuses, "ACCOUNT\tID\tSTATE\tPOSTED\tACCEPTED\tREASON", func(s jetpost.RequestStatus) string {
		reason := reasonText(s.Reason)
		if s.State == jetpost.StateScheduled {
			reason = "at " + localTime(s.PublishAt)
		}
		return fmt.Sprintf("%s\t%s\t%s\t%d/%d\t%s\t%s", s.Account, s.ID, s.State, s.Posted, s.Total, localTime(s.AcceptedAt), reason)
	})
}

func (c *requestsListCmd) refused(ctx context.Context, e *env, ledger store.Requests, code jetpost.Code, since time.Time) error {
	found, err := ledger.Refusals(ctx, maxRefusals)
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(r jetpost.Refusal) bool {
		return (c.Account != "" && r.Account != c.Account) || (code != "" && r.Code != code) || r.Stored.Before(since)
	})
	return listRefusals(e, found[:min(len(found), c.Limit)])
}

func listRefusals(e *env, found []jetpost.Refusal) error {
	return list(e, found, "ACCOUNT\tID\tSTORED\tCODE\tMISTAKES", func(r jetpost.Refusal) string {
		mistakes := ""
		if len(r.Problems) > 0 {
			mistakes = problems(r.Problems)[0]
		}
		if more := len(r.Problems) - 1; more > 0 {
			mistakes += fmt.Sprintf(" (and %d more)", more)
		}
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s", dash(r.Account), dash(r.ID), localTime(r.Stored), r.Code, mistakes)
	})
}

// dash stands for what is not known.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

type requestsShowCmd struct {
	ID string `arg:"" help:"Id of the request."`
	whoseFlag
}

// Run shows one request. An id of several accounts lists them.
func (c *requestsShowCmd) Run(e *env) error {
	return e.withLedger(func(ctx context.Context, ledger store.Store) error {
		found, err := app.FindRequest(ctx, ledger, c.Account, c.ID)
		if errors.Is(err, store.ErrNotFound) {
			return c.hintRefused(ctx, ledger, err)
		}
		if err != nil {
			return whichRequest(err)
		}
		return e.show(found.Status, requestText(found))
	})
}

// hintRefused tells of an id that is not found because it was refused.
func (c *requestsShowCmd) hintRefused(ctx context.Context, ledger store.Requests, notFound error) error {
	refusals, err := ledger.Refusals(ctx, maxRefusals)
	if err != nil {
		return err
	}
	for _, r := range refusals {
		if r.ID == c.ID && (c.Account == "" || c.Account == r.Account) {
			return &app.HintError{
				Err:  fmt.Errorf("%w: a message of that id was refused: %s", notFound, r.Code),
				Help: "see why with: jetpost requests list --state refused; " + app.AdviceFor(r.Code, r.Account, r.ID),
			}
		}
	}
	return notFound
}

func requestText(found store.Record) string {
	s, texts := found.Status, postTexts(found)
	var rows []string
	line := func(name, value string) {
		if value != "" && value != "-" {
			rows = append(rows, name+":\t"+value)
		}
	}
	line("request", s.ID)
	line("account", s.Account)
	line("state", string(s.State))
	line("reason", reasonText(s.Reason))
	if s.Reason != nil {
		line("until", localTime(s.Reason.Until))
		line("do", app.AdviceFor(s.Reason.Code, s.Account, s.ID))
	}
	line("posted", fmt.Sprintf("%d of %d", s.Posted, s.Total))
	line("attempts", strconv.Itoa(s.Attempts))
	line("accepted", localTime(s.AcceptedAt))
	line("publish at", localTime(s.PublishAt))
	line("expires at", localTime(s.ExpiresAt))
	line("changed", localTime(s.UpdatedAt))
	for _, p := range s.Posts {
		words := strings.TrimSpace(fmt.Sprintf("%-7s  %s", p.State, p.URL))
		if p.Index < len(texts) {
			words = strings.TrimSpace(words + "  " + excerpt(texts[p.Index]))
		}
		line(fmt.Sprintf("post %d", p.Index+1), words)
	}
	return align(rows)
}

// postTexts are those of a request's posts; none where only a newer jetpost
// can read it.
func postTexts(r store.Record) []string {
	request, err := jetpost.Decode(r.Account, r.Body)
	if err != nil {
		return nil
	}
	texts := make([]string, len(request.Posts))
	for i, p := range request.Posts {
		texts[i] = p.Text
	}
	return texts
}

type requestsCancelCmd struct {
	ID string `arg:"" help:"Id of the request."`
	whoseFlag
}

// Run takes a request back.
func (c *requestsCancelCmd) Run(e *env) error {
	return e.withDesk(func(ctx context.Context, desk *app.Desk) error {
		status, err := desk.Cancel(ctx, c.Account, c.ID)
		if err != nil {
			return err
		}
		return e.say(status, "%s  %s  %s, %d of %d posts live", status.Account, status.ID, status.State, status.Posted, status.Total)
	})
}

type requestsReconcileCmd struct {
	ID string `arg:"" help:"Id of the request."`
	whoseFlag
}

// Run has X asked again about the doubtful post of a request.
func (c *requestsReconcileCmd) Run(e *env) error {
	return e.withDesk(func(ctx context.Context, desk *app.Desk) error {
		status, err := desk.Reconcile(ctx, c.Account, c.ID)
		if err != nil {
			return err
		}
		return e.say(status, "%s  %s  %s, %d of %d posts live: X is asked as soon as a worker is free", status.Account, status.ID, status.State, status.Posted, status.Total)
	})
}

type requestsResolveCmd struct {
	ID string `arg:"" help:"Id of the request."`
	whoseFlag
	Posted    string `env:"-" placeholder:"POST_ID" help:"The post is on X, and this is its id: the digits that end its link. Give this or --not-posted."`
	NotPosted bool   `env:"-" help:"The post is not on X: send it. Give this or --posted."`
}

var postID = regexp.MustCompile(`^[0-9]{1,19}$`)

// Run settles the doubtful post of a request.
func (c *requestsResolveCmd) Run(e *env) error {
	if c.NotPosted == (c.Posted != "") {
		return mistakes("cannot resolve", "give either --posted POST_ID or --not-posted")
	}
	if !c.NotPosted && !postID.MatchString(c.Posted) {
		return mistakes("cannot resolve", fmt.Sprintf("--posted: %q is no id of a post, which is 1 to 19 digits", c.Posted))
	}
	return e.withDesk(func(ctx context.Context, desk *app.Desk) error {
		status, err := desk.Resolve(ctx, c.Account, c.ID, c.Posted)
		if err != nil {
			return err
		}
		return e.say(status, "%s  %s  %s, %d of %d posts live", status.Account, status.ID, status.State, status.Posted, status.Total)
	})
}
