package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/publishers"
)

// statusCmd is 'jetpost status'.
type statusCmd struct {
	connectFlags `embed:""`
}

// statusTimeout bounds the look at everything.
const statusTimeout = 30 * time.Second

// errNotPublishing is the exit code alone: the sentence is on standard output.
var errNotPublishing = errors.New("posts do not go out")

// Run says in its first line whether posts go out. Exit code 0: they do.
func (c *statusCmd) Run(e *env) error {
	cfg, err := e.clientConfig()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(e.ctx, statusTimeout)
	defer cancel()
	status, err := cfg.Status(ctx, e.log)
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
	for _, stop := range s.Stops {
		if stop.Scope != publishers.ScopePublish { // which the first line tells
			tell(fmt.Sprintf("%s is stopped until %s: %s", stop.Scope, localTime(stop.Reason.Until), reasonText(&stop.Reason)),
				app.Advice(stop.Reason.Code))
		}
	}
	if len(s.Reauth) > 0 {
		do := s.ReauthAdvice()
		if do == s.Do { // which stands above
			do = ""
		}
		tell("accounts to re-authorise: "+strings.Join(s.Reauth, ", "), do)
	}
	for _, p := range s.Paused[:min(len(s.Paused), maxNamed)] {
		tell(fmt.Sprintf("%s is paused %s", p.Account, pauseText(p.Pause)), app.AdviceFor(jetpost.CodeAccountPaused, p.Account, ""))
	}
	if more := len(s.Paused) - maxNamed; more > 0 {
		tell(fmt.Sprintf("and %d more accounts are paused", more), "jetpost accounts list")
	}
	if l := s.Late; l != nil {
		tell(fmt.Sprintf("late: %s not begun, the latest %s after its time", counted(l.Requests, "request is", "requests are"), time.Since(l.Since).Round(time.Minute)),
			"to fail those that are too late, before the others go out: jetpost resume --app --expire-older-than 6h")
	}
	if s.Unwalled {
		tell(app.NoWalls, app.NoWallsAdvice)
	}
	for _, b := range s.Blocked {
		fmt.Fprintf(&out, "blocked: %s by %s request %s: %s\n", b.Account, b.State, b.ID, b.Do)
	}
	if more := s.BlockedTotal - len(s.Blocked); more > 0 {
		fmt.Fprintf(&out, "blocked: and %d more\n", more)
	}
	var rows []string
	for _, state := range jetpost.States() {
		if n := s.Requests[state]; n > 0 {
			rows = append(rows, fmt.Sprintf("%s:\t%d", state, n))
		}
	}
	if s.QueuedJobs != nil {
		rows = append(rows, fmt.Sprintf("jobs not accepted yet:\t%d", *s.QueuedJobs))
	}
	if s.LanesPaused {
		rows = append(rows, "lanes:\tpaused")
	}
	if r := s.LastRefresh; r != nil {
		rows = append(rows, fmt.Sprintf("last refresh round:\t%s, %d of %d refreshed, %d failed",
			localTime(s.LastRefreshAt), r.Refreshed, r.Total, r.Failed))
	}
	return out.String() + align(rows)
}
