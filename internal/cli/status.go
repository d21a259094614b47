package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/store"
)

// statusCmd is 'jetpost status'.
type statusCmd struct {
	Notify    string `placeholder:"URL" help:"Keep running, and post each change of the status to this webhook, as JSON with a text."`
	natsFlags `embed:""`
}

// statusTimeout bounds gathering the status.
const statusTimeout = 30 * time.Second

// errNotPublishing sets the exit code: the reason is on standard output.
var errNotPublishing = errors.New("posts do not go out as they should")

// Run prints the status. Its first line says whether posts go out. Exit code 0: they do.
func (c *statusCmd) Run(e *env) error {
	cfg, err := e.natsConfig()
	if err != nil {
		return err
	}
	read := func(ctx context.Context) (app.Status, error) {
		ctx, cancel := context.WithTimeout(ctx, statusTimeout)
		defer cancel()
		return cfg.Status(ctx, e.log)
	}
	if c.Notify != "" {
		if err := app.CheckNotify(c.Notify); err != nil {
			return err
		}
		return (&app.Notifier{URL: c.Notify, Status: read, Log: e.log}).Run(e.ctx)
	}
	status, err := read(e.ctx)
	if err != nil {
		return err
	}
	if err := e.show(status, statusText(status)); err != nil {
		return err
	}
	if !status.Publishing {
		return errNotPublishing
	}
	return nil
}

func statusText(s app.Status) string {
	var out strings.Builder
	tell := func(sentence, do string) {
		out.WriteString(sentence + "\n")
		if do != "" {
			out.WriteString("  do: " + do + "\n")
		}
	}
	tell(s.Summary, s.Do)
	for _, cause := range s.Causes[min(1, len(s.Causes)):] {
		tell(string(cause.State)+": "+cause.Reason, cause.Do)
	}
	if len(s.Reauth) > 0 {
		do := s.ReauthAdvice()
		if do == s.Do { // already printed
			do = ""
		}
		tell("accounts to re-authorise: "+strings.Join(s.Reauth, ", "), do)
	}
	for _, p := range s.Paused[:min(len(s.Paused), maxNamed)] {
		tell(fmt.Sprintf("%s is paused %s", p.Account, pauseText(p.Pause)), app.AdviceFor(p.Pause.Reason.Code, p.Account, ""))
	}
	if more := len(s.Paused) - maxNamed; more > 0 {
		tell(fmt.Sprintf("and %d more accounts are paused", more), "jetpost accounts list")
	}
	if l := s.Late; l != nil {
		tell(fmt.Sprintf("late: %s%s not begun, the latest %s after its time", atLeast(l.Requests, store.MaxProgress), counted(l.Requests, "request is", "requests are"), time.Since(l.Since).Round(time.Minute)),
			"to fail those that are too late before the others go out: jetpost resume --app --expire-older-than 6h")
	}
	if n := s.FailingHooks; n > 0 {
		tell(counted(n, "webhook fails or is disabled", "webhooks fail or are disabled"), "see which and why with: jetpost hooks list")
	}
	if s.Unwalled {
		tell(app.NoWalls, app.NoWallsAdvice)
	}
	for _, b := range s.Blocked {
		behind := ""
		if n := b.Waiting - 1; n > 0 {
			behind = fmt.Sprintf(", and %s%d more behind it", atLeast(b.Waiting, store.MaxProgress), n)
		}
		fmt.Fprintf(&out, "blocked: %s by %s request %s%s: %s\n", b.Account, b.State, b.ID, behind, b.Do)
	}
	if more := s.BlockedTotal - len(s.Blocked); more > 0 {
		fmt.Fprintf(&out, "blocked: and %s\n", counted(more, "more account", "more accounts"))
	}
	return out.String() + align(statusRows(s))
}

// atLeast marks a count that ended at its limit.
func atLeast(n, limit int) string {
	if n >= limit {
		return "at least "
	}
	return ""
}

// statusRows are the counts and times, a row each.
func statusRows(s app.Status) []string {
	var rows []string
	for _, state := range jetpost.States() {
		if n := s.Requests[state]; n > 0 {
			rows = append(rows, fmt.Sprintf("%s:\t%s%d", state, atLeast(n, store.MaxCounted), n))
		}
	}
	if s.QueuedJobs != nil {
		rows = append(rows, fmt.Sprintf("jobs not accepted yet:\t%d", *s.QueuedJobs))
	}
	if s.Refused > 0 {
		rows = append(rows, fmt.Sprintf("refused in the last hour:\t%s%d, see: jetpost requests list --state refused", atLeast(s.Refused, store.MaxProgress), s.Refused))
	}
	if s.LanesPaused {
		rows = append(rows, "lanes:\tpaused")
	}
	if r := s.LastRefresh; r != nil {
		rows = append(rows, fmt.Sprintf("last refresh round:\t%s, %d of %d refreshed, %d failed",
			localTime(s.LastRefreshAt), r.Refreshed, r.Total, r.Failed))
	}
	if !s.LastPost.IsZero() {
		rows = append(rows, "last post:\t"+localTime(s.LastPost))
	}
	if s.Installation != "" {
		rows = append(rows, "installation:\t"+s.Installation)
	}
	return rows
}

// workersCmd is 'jetpost workers'.
type workersCmd struct {
	natsFlags `embed:""`
}

// Run lists the workers, including those whose heartbeats stopped within the hour.
func (c *workersCmd) Run(e *env) error {
	cfg, err := e.natsConfig()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(e.ctx, statusTimeout)
	defer cancel()
	workers, err := cfg.Workers(ctx, e.log)
	if err != nil {
		return err
	}
	return list(e, workers, "WORKER\tSTATE\tHOST\tVERSION\tROLES\tSLOTS\tSTARTED\tFAULTS", func(w app.WorkerHeartbeat) string {
		state, faults := "alive", w.Faults
		if !w.Alive {
			state = "silent for " + time.Duration(w.AgeSeconds*float64(time.Second)).Round(time.Second).String()
		}
		if faults == "" {
			faults = "-"
		}
		return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%d of %d\t%s\t%s", w.Worker, state, w.Host, w.Version,
			strings.Join(w.Roles, ", "), w.Used, w.Slots, localTime(w.StartedAt), excerpt(faults))
	})
}
