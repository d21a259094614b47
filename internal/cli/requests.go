package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// stateRefused lists refused messages. It is not a state of a request.
const stateRefused = "refused"

// requestsCmd is 'jetpost requests'.
type requestsCmd struct {
	List       requestsListCmd       `cmd:"" help:"List requests, the latest first."`
	Show       requestsShowCmd       `cmd:"" help:"Show one request: its posts with links, reason, times and cost."`
	Watch      requestsWatchCmd      `cmd:"" help:"Print events of requests, until the given ones are settled, or until Ctrl-C."`
	Reschedule requestsRescheduleCmd `cmd:"" help:"Move a request that has not started to another time: --at TIME or --at now."`
	Cancel     requestsCancelCmd     `cmd:"" help:"Cancel requests. Posts that are live stay live."`
	Unpublish  requestsUnpublishCmd  `cmd:"" help:"Delete the live posts of a request on X, the last one first, and cancel the rest."`
	Reconcile  requestsReconcileCmd  `cmd:"" help:"Start the timeline checks for a post in doubt again."`
	Resolve    requestsResolveCmd    `cmd:"" help:"Say whether a post in doubt is on X: --posted POST_ID or --not-posted."`
	Verify     requestsVerifyCmd     `cmd:"" help:"Compare the ledger with the accounts' timelines on X. X charges for the reads."`
}

// accountFlag limits a command to one account.
type accountFlag struct {
	Account string `env:"-" placeholder:"NAME" help:"Only requests of this account."`
}

// whoseFlag selects one of several requests with the same id.
type whoseFlag struct {
	Account string `env:"-" placeholder:"NAME" help:"Account of the request; needed if several accounts have a request with that id."`
}

// withLedger opens the ledger for a command that only reads it.
func (e *env) withLedger(read func(context.Context, app.Config, store.Store) error) error {
	cfg, err := e.clientConfig()
	if err != nil {
		return err
	}
	ledger, err := cfg.OpenStore(e.ctx)
	if err != nil {
		return err
	}
	defer func() { _ = ledger.Close() }() // only read from
	return read(e.ctx, cfg, ledger)
}

// withControl opens everything for a command that changes something.
func (e *env) withControl(work func(context.Context, *app.Control) error) error {
	cfg, err := e.clientConfig()
	if err != nil {
		return err
	}
	control, err := cfg.OpenControl(e.ctx, e.log)
	if err != nil {
		return err
	}
	defer control.Close()
	return whichRequest(work(e.ctx, control))
}

type requestsListCmd struct {
	accountFlag
	State     string `env:"-" placeholder:"STATE" help:"Only requests in this state: ${states}; or 'refused' for refused messages."`
	Code      string `env:"-" placeholder:"CODE" help:"Only requests with this reason code: ${codes}."`
	Since     string `env:"-" placeholder:"TIME" help:"Only requests accepted since a time like 2026-12-01T09:00:00Z, or within a duration like 24h."`
	Limit     int    `env:"-" default:"100" help:"Maximum number of requests to list."`
	natsFlags `embed:""`
}

// Run lists requests, or refusals.
func (c *requestsListCmd) Run(e *env) error {
	var wrong []string
	states := append(jetpost.States(), stateRefused)
	if c.State != "" && !slices.Contains(states, jetpost.State(c.State)) {
		wrong = append(wrong, fmt.Sprintf("--state: %q is not a state; use one of %s", c.State, joined(states)))
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
	return e.look(func(ctx context.Context, workers operations) error {
		if c.State == stateRefused { // also of accounts that nobody knows
			return c.refused(ctx, e, workers, code, since)
		}
		found, err := allPages(c.Limit+1, func(limit int, cursor string) ([]jetpost.RequestStatus, string, error) {
			page, err := workers.RequestList(ctx, c.Account, jetpost.RequestList{
				State: jetpost.State(c.State), Code: code, Since: since, Limit: limit, Cursor: cursor,
			})
			return page.Requests, page.Next, err
		})
		if failedAs(err, jetpost.ErrNotFound) {
			return &app.HintError{Err: err, Help: "see: jetpost accounts list"}
		}
		if err != nil {
			return err
		}
		if err := listRequests(e, found[:min(len(found), c.Limit)]); err != nil {
			return err
		}
		c.tellMore(e, len(found))
		return nil
	})
}

// tellMore says on standard error that a list was truncated.
func (c *requestsListCmd) tellMore(e *env, found int) {
	if found > c.Limit {
		fmt.Fprintf(e.stderr, "these are the latest %d; there are more: raise --limit, or narrow the list by --account, --state, --code or --since\n", c.Limit)
	}
}

func listRequests(e *env, found []jetpost.RequestStatus) error {
	return list(e, found, "ACCOUNT\tID\tSTATE\tPOSTED\tACCEPTED\tREASON", func(s jetpost.RequestStatus) string {
		reason := reasonText(s.Reason)
		if s.State == jetpost.StateScheduled {
			reason = "at " + localTime(s.PublishAt)
		}
		posted := fmt.Sprintf("%d/%d", s.Posted, s.Total)
		if n := deletedPosts(s); n > 0 {
			posted += fmt.Sprintf(", %d deleted", n)
		}
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s", s.Account, s.ID, s.State, posted, localTime(s.AcceptedAt), reason)
	})
}

// deletedPosts counts the posts that were deleted since.
func deletedPosts(s jetpost.RequestStatus) (n int) {
	for _, p := range s.Posts {
		if !p.DeletedAt.IsZero() {
			n++
		}
	}
	return n
}

func (c *requestsListCmd) refused(ctx context.Context, e *env, workers operations, code jetpost.Code, since time.Time) error {
	found, err := allPages(c.Limit+1, func(limit int, cursor string) ([]jetpost.Refusal, string, error) {
		page, err := workers.DeadLettersList(ctx, c.Account, jetpost.DeadLettersList{Code: code, Since: since, Limit: limit, Cursor: cursor})
		return page.Refusals, page.Next, err
	})
	if err != nil {
		return err
	}
	if err := listRefusals(e, found[:min(len(found), c.Limit)]); err != nil {
		return err
	}
	c.tellMore(e, len(found))
	return nil
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

// dash is s, or "-" if s is empty.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

type requestsShowCmd struct {
	ID string `arg:"" help:"Id of the request."`
	whoseFlag
	natsFlags `embed:""`
}

// Run shows one request. If several accounts have a request with the id, the error lists
// them.
func (c *requestsShowCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		found, err := workers.RequestGet(ctx, c.Account, jetpost.RequestGet{ID: c.ID})
		if errors.Is(err, store.ErrNotFound) || failedAs(err, jetpost.ErrNotFound) {
			return c.hintRefused(ctx, workers, err)
		}
		if err != nil {
			return err
		}
		if found.Request.Pruned {
			return e.show(found.Request, prunedText(found.Request))
		}
		return e.show(found.Request, requestText(found))
	})
}

// hintRefused tells of an id that is not found because it was refused.
func (c *requestsShowCmd) hintRefused(ctx context.Context, workers operations, notFound error) error {
	page, err := workers.DeadLettersList(ctx, c.Account, jetpost.DeadLettersList{ID: c.ID, Limit: 1})
	if err != nil {
		return err
	}
	for _, r := range page.Refusals {
		return &app.HintError{
			Err:  fmt.Errorf("%w: a message with that id was refused: %s", notFound, r.Code),
			Help: "see why with: jetpost requests list --state refused; " + app.AdviceFor(r.Code, r.Account, r.ID),
		}
	}
	return notFound
}

// requestText is a request, with what keeps its account from posting.
func requestText(found jetpost.RequestDetails) string {
	s, texts, pause, appPauses := found.Request, found.Texts, found.Pause, found.AppPauses
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
		line("next try", localTime(s.NextTryAt))
		line("do", app.AdviceFor(s.Reason.Code, s.Account, s.ID))
	}
	if !s.State.Finished() && pause.Active(time.Now()) && (s.Reason == nil || s.Reason.Code != pause.Reason.Code) {
		line("paused", "its account, "+pauseText(pause))
	}
	for _, p := range appPauses {
		if p.Target == publishers.TargetPublish && !s.State.Finished() && s.Reason == nil {
			line("paused", "the app, "+untilText(p)+": "+reasonText(&p.Reason))
			line("do", app.AdviceFor(p.Reason.Code, "", ""))
		}
	}
	line("posted", fmt.Sprintf("%d of %d", s.Posted, s.Total))
	if u := s.Unpublish; u != nil {
		line("unpublish", unpublishText(s, false))
		line("next try", localTime(u.NextTryAt))
		if u.Reason != nil {
			line("do", app.AdviceFor(u.Reason.Code, s.Account, s.ID))
		}
	}
	line("attempts", strconv.Itoa(s.Attempts))
	if s.CostEstimateUSD > 0 {
		line("cost", "about "+dollars(s.CostEstimateUSD))
	}
	line("accepted", localTime(s.AcceptedAt))
	line("publish at", localTime(s.PublishAt))
	line("expires at", localTime(s.ExpiresAt))
	line("changed", localTime(s.UpdatedAt))
	for _, p := range s.Posts {
		state := string(p.State)
		if !p.DeletedAt.IsZero() {
			state = "deleted"
		}
		words := strings.TrimSpace(fmt.Sprintf("%-7s  %s", state, p.URL))
		if p.Index < len(texts) {
			words = strings.TrimSpace(words + "  " + excerpt(texts[p.Index]))
		}
		line(fmt.Sprintf("post %d", p.Index+1), words)
	}
	return align(rows)
}

type requestsWatchCmd struct {
	IDs       []string      `arg:"" optional:"" name:"id" help:"Ids of the requests. Default: all requests."`
	Account   string        `env:"-" placeholder:"NAME" help:"Only requests of this account; needed if several accounts have a request with that id."`
	Timeout   time.Duration `env:"-" placeholder:"DURATION" help:"Stop watching after this time."`
	natsFlags `embed:""`
}

// Run shows events. With ids it ends as 'publish --wait' does.
func (c *requestsWatchCmd) Run(e *env) error {
	slices.Sort(c.IDs)
	c.IDs = slices.Compact(c.IDs)
	var wrong []string
	if err := jetpost.CheckAccount(c.Account); c.Account != "" && err != nil {
		wrong = append(wrong, err.Error())
	}
	for _, id := range c.IDs {
		if err := jetpost.CheckID(id); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	if c.Timeout < 0 {
		wrong = append(wrong, "--timeout: is negative")
	}
	if err := mistakes("cannot watch", wrong...); err != nil {
		return err
	}
	cfg, err := e.natsConfig()
	if err != nil {
		return err
	}
	conn, err := cfg.Connect(e.ctx, e.log, "jetpost requests watch")
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx := e.ctx
	if c.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, c.Timeout)
		defer stop()
	}
	began := time.Now()
	named, err := conn.Watch(ctx, app.WatchQuery{Account: c.Account, IDs: c.IDs}, (&watcher{e: e, told: map[store.Key]*told{}}).see)
	if err != nil && ctx.Err() == nil {
		return err
	}
	return verdicts(named, time.Since(began).Round(time.Second))
}

// verdicts joins the verdict on each request. The exit code is the most urgent one:
// unknown, then failed, then waiting.
func verdicts(named []app.Waited, waited time.Duration) error {
	var all []error
	code := exitOK
	urgent := []int{exitOK, exitWaiting, exitRequest, exitUnknown}
	for _, w := range named {
		err := verdict(w, waited)
		var exit *exitError
		if !errors.As(err, &exit) {
			continue
		}
		all = append(all, err)
		if slices.Index(urgent, exit.code) > slices.Index(urgent, code) {
			code = exit.code
		}
	}
	if len(all) == 0 {
		return nil
	}
	return &exitError{code: code, err: errors.Join(all...)}
}

// maxTold bounds the requests whose progress a watcher remembers.
const maxTold = 10_000

// watcher prints the events of several requests.
type watcher struct {
	e    *env
	told map[store.Key]*told
}

// told is what was printed about a request.
type told struct {
	progress
	revision int64
}

func (w *watcher) see(event jetpost.Event) {
	switch r := event.Request; {
	case w.e.asJSON():
		_ = w.e.show(event, "") // a closed standard output does not end the watch
	case r != nil:
		w.request(event.Type, r).see(event)
	case event.Refusal != nil:
		f := event.Refusal
		fmt.Fprintf(w.e.stdout, "%s  %s  refused: %s: %s\n", dash(f.Account), dash(f.ID), f.Code, strings.Join(problems(f.Problems), "; "))
	}
}

// request returns the progress to print for an event. An event may come twice; then
// nothing is printed.
func (w *watcher) request(event jetpost.EventType, r *jetpost.RequestStatus) *progress {
	key := store.Key{Account: r.Account, ID: r.ID}
	p := w.told[key]
	if p == nil {
		if len(w.told) >= maxTold {
			clear(w.told)
		}
		p = &told{progress: progress{out: w.e.stdout, name: r.Account + "  " + r.ID + "  "}}
		w.told[key] = p
	}
	if r.Revision <= p.revision {
		return &progress{out: io.Discard}
	}
	p.revision = r.Revision
	p.begun = event != jetpost.EventRequestAccepted // print "accepted" only for this event
	if event == jetpost.EventRequestResumed {
		p.say("resumed")
	}
	return &p.progress
}

type requestsRescheduleCmd struct {
	ID string `arg:"" help:"Id of the request."`
	whoseFlag
	At        string `env:"-" required:"" placeholder:"TIME" help:"New time: now, a time like 2026-12-01T09:00:00Z, or +10m from now."`
	natsFlags `embed:""`
}

// Run moves a request to another time.
func (c *requestsRescheduleCmd) Run(e *env) error {
	at, err := rescheduleTime(c.At, time.Now())
	if err != nil {
		return mistakes("cannot reschedule", "--at: "+err.Error())
	}
	return e.operate(func(ctx context.Context, workers operations) error {
		status, err := workers.RequestReschedule(ctx, c.Account, jetpost.RequestReschedule{ID: c.ID, At: at})
		if err != nil {
			return err
		}
		when := ""
		if status.State == jetpost.StateScheduled {
			when = " for " + localTime(status.PublishAt)
		}
		return e.say(status, "%s  %s  %s%s", status.Account, status.ID, status.State, when)
	})
}

// rescheduleTime parses the new time of a request. A time in the past is an error; "now"
// is allowed.
func rescheduleTime(s string, now time.Time) (time.Time, error) {
	if s == "now" {
		return now, nil
	}
	at, err := moment(s, false, now)
	switch {
	case s == "":
		return at, errors.New("is empty")
	case err != nil:
		return at, fmt.Errorf("%w, nor now", err)
	case !at.After(now):
		return at, fmt.Errorf("%s has passed; use now to publish at once", localTime(at))
	}
	return at, nil
}

type requestsCancelCmd struct {
	IDs []string `arg:"" optional:"" name:"id" help:"Ids of the requests; or use --account, --state, --code, --since or --all."`
	whoseFlag
	State     string `env:"-" placeholder:"STATE" help:"All unfinished requests in this state."`
	Code      string `env:"-" placeholder:"CODE" help:"All unfinished requests with this reason code; 'jetpost requests list --help' lists them."`
	Since     string `env:"-" placeholder:"TIME" help:"All unfinished requests accepted since a time like 2026-12-01T09:00:00Z, or within a duration like 24h."`
	All       bool   `env:"-" help:"All unfinished requests, except those in state unknown."`
	DryRun    bool   `env:"-" help:"Change nothing, and show what will be cancelled."`
	natsFlags `embed:""`
}

// Run cancels one request, or many. It goes on while there are more than one call cancels.
func (c *requestsCancelCmd) Run(e *env) error {
	now := time.Now()
	query, err := c.query(now)
	if err != nil {
		return err
	}
	if len(c.IDs) == 1 && !c.DryRun {
		return e.operate(func(ctx context.Context, workers operations) error {
			status, err := workers.RequestCancel(ctx, c.Account, jetpost.RequestCancel{ID: c.IDs[0]})
			if err != nil {
				return err
			}
			return e.say(status, "%s  %s  %s, %d of %d posts live", status.Account, status.ID, status.State, status.Posted, status.Total)
		})
	}
	return e.operate(func(ctx context.Context, workers operations) error {
		answer := jetpost.CancelAnswer{More: true}
		var all []jetpost.Cancelled
		for answer.More {
			if answer, err = workers.RequestCancelMany(ctx, c.Account, query); err != nil {
				break
			}
			if all = append(all, answer.Cancelled...); c.DryRun {
				break
			}
		}
		if len(all) > 0 {
			if err := list(e, all, "ACCOUNT\tID\tRESULT", cancelledRow); err != nil {
				return err
			}
		}
		switch {
		case err != nil:
			return err
		case answer.More:
			fmt.Fprintf(e.stderr, "these are the latest %d; there are more\n", len(all))
		case len(all) == 0:
			return fmt.Errorf("nothing to cancel: %w", store.ErrNotFound)
		}
		return nil
	})
}

func (c *requestsCancelCmd) query(now time.Time) (jetpost.RequestCancelMany, error) {
	var wrong []string
	filtered := c.State != "" || c.Code != "" || c.Since != ""
	switch {
	case len(c.IDs) > 0 && (filtered || c.All):
		wrong = append(wrong, "give either ids, or --state, --code, --since or --all")
	case len(c.IDs) == 0 && !filtered && c.Account == "" && !c.All:
		wrong = append(wrong, "give ids, or --account, --state, --code or --since, or --all for everything that is unfinished")
	}
	if s := jetpost.State(c.State); s != "" && (s.Finished() || !slices.Contains(jetpost.States(), s)) {
		wrong = append(wrong, fmt.Sprintf("--state: %q is not the state of an unfinished request", s))
	}
	code, err := reasonCode(c.Code)
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	since, err := moment(c.Since, true, now)
	if err != nil {
		wrong = append(wrong, "--since: "+err.Error())
	}
	query := jetpost.RequestCancelMany{IDs: c.IDs, State: jetpost.State(c.State), Code: code, Since: since, All: c.All, DryRun: c.DryRun}
	if len(c.IDs) == 0 { // else what comes meanwhile would be cancelled, too
		query.Before = now
	}
	return query, mistakes("cannot cancel", wrong...)
}

func cancelledRow(r jetpost.Cancelled) string {
	result := r.Detail
	switch {
	case r.Done && r.DryRun:
		result = fmt.Sprintf("would be cancelled: was %s, %d of %d posts live", r.State, r.Posted, r.Total)
	case r.Done:
		result = fmt.Sprintf("cancelled, %d of %d posts live", r.Posted, r.Total)
	}
	return fmt.Sprintf("%s\t%s\t%s", r.Account, r.ID, result)
}

type requestsUnpublishCmd struct {
	ID string `arg:"" help:"Id of the request."`
	whoseFlag
	DryRun    bool `env:"-" help:"Change nothing, and show what will be deleted."`
	natsFlags `embed:""`
}

// Run requests the deletion of a request's posts.
func (c *requestsUnpublishCmd) Run(e *env) error {
	return e.operate(func(ctx context.Context, workers operations) error {
		status, err := workers.RequestUnpublish(ctx, c.Account, jetpost.RequestUnpublish{ID: c.ID, DryRun: c.DryRun})
		if err != nil {
			return err
		}
		return e.say(status, "%s  %s  %s", status.Account, status.ID, unpublishText(status, c.DryRun))
	})
}

// unpublishText is the progress of a deletion or, for a dry run, what it will delete.
func unpublishText(s jetpost.RequestStatus, dry bool) string {
	var live, deleted, doubtful int
	for _, p := range s.Posts {
		switch {
		case p.State == jetpost.PostSending:
			doubtful++
		case !p.DeletedAt.IsZero():
			deleted++
		case p.State == jetpost.PostPosted:
			live++
		}
	}
	switch u := s.Unpublish; {
	case dry:
		text := fmt.Sprintf("would delete %d of %d posts", live, s.Total)
		if doubtful > 0 {
			text += ", and one more if it is live"
		}
		if !s.State.Finished() {
			text += ", and send no more"
		}
		return text
	case u == nil:
		return string(s.State)
	case u.Reason != nil:
		return fmt.Sprintf("%d of %d live posts deleted, then: %s", deleted, deleted+live, reasonText(u.Reason))
	case u.DoneAt.IsZero():
		return fmt.Sprintf("%d of %d live posts deleted; follow it with: jetpost requests watch %s", deleted, deleted+live, s.ID)
	case deleted == 0:
		return fmt.Sprintf("%s, nothing of it was live", s.State)
	default:
		return fmt.Sprintf("done, %s deleted", counted(deleted, "post", "posts"))
	}
}

type requestsReconcileCmd struct {
	ID string `arg:"" help:"Id of the request."`
	whoseFlag
	natsFlags `embed:""`
}

// Run starts the timeline checks for the post in doubt of a request again.
func (c *requestsReconcileCmd) Run(e *env) error {
	return e.operate(func(ctx context.Context, workers operations) error {
		status, err := workers.RequestReconcile(ctx, c.Account, jetpost.RequestReconcile{ID: c.ID})
		if err != nil {
			return err
		}
		return e.say(status, "%s  %s  %s, %d of %d posts live: X is asked as soon as a worker is free", status.Account, status.ID, status.State, status.Posted, status.Total)
	})
}

type requestsResolveCmd struct {
	ID string `arg:"" help:"Id of the request."`
	whoseFlag
	Posted    string `env:"-" placeholder:"POST_ID" help:"The post is on X with this id, the digits at the end of its link. Use this or --not-posted."`
	NotPosted bool   `env:"-" help:"The post is not on X: send it. Use this or --posted."`
	natsFlags `embed:""`
}

var postID = regexp.MustCompile(`^[0-9]{1,19}$`)

// Run settles the post in doubt of a request.
func (c *requestsResolveCmd) Run(e *env) error {
	if c.NotPosted == (c.Posted != "") {
		return mistakes("cannot resolve", "give either --posted POST_ID or --not-posted")
	}
	if !c.NotPosted && !postID.MatchString(c.Posted) {
		return mistakes("cannot resolve", fmt.Sprintf("--posted: %q is not the id of a post, which is 1 to 19 digits", c.Posted))
	}
	return e.operate(func(ctx context.Context, workers operations) error {
		status, err := workers.RequestResolve(ctx, c.Account, jetpost.RequestResolve{ID: c.ID, PostID: c.Posted, NotPosted: c.NotPosted})
		if err != nil {
			return err
		}
		return e.say(status, "%s  %s  %s, %d of %d posts live", status.Account, status.ID, status.State, status.Posted, status.Total)
	})
}
