package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
)

// whomFlags select one account, or all of them.
type whomFlags struct {
	Account string `arg:"" optional:"" help:"Account; or give --app."`
	App     bool   `env:"-" help:"Every account of the app."`
}

func (f whomFlags) mistake() string {
	switch {
	case f.App && f.Account != "":
		return "give either an ACCOUNT or --app"
	case !f.App && f.Account == "":
		return "give an ACCOUNT, or --app for all of them"
	default:
		return ""
	}
}

// pauseCmd is 'jetpost pause'.
type pauseCmd struct {
	whomFlags
	Until     string `env:"-" placeholder:"TIME" help:"End the pause at this time: 2026-12-01T09:00:00Z, or +10m from now. Without it the pause lasts until jetpost resume."`
	Reason    string `env:"-" placeholder:"TEXT" help:"Why. Every request that waits shows it."`
	natsFlags `embed:""`
}

// Run pauses an account, or the whole app.
func (c *pauseCmd) Run(e *env) error {
	until, reason, err := c.read(time.Now())
	if err != nil {
		return err
	}
	return e.operate(func(ctx context.Context, workers operations) error {
		if c.App {
			return c.app(ctx, e, workers, until, reason)
		}
		paused, err := workers.AccountPause(ctx, c.Account, jetpost.PauseRequest{Until: until, Reason: reason})
		if err != nil {
			return err
		}
		return e.say(paused, "%s is paused %s\n  do: %s", c.Account, pauseText(paused.Pause), app.AdviceFor(jetpost.CodeAccountPaused, c.Account, ""))
	})
}

func (c *pauseCmd) app(ctx context.Context, e *env, workers operations, until time.Time, reason string) error {
	paused, err := workers.AppPause(ctx, jetpost.PauseRequest{Until: until, Reason: reason})
	if err != nil {
		return err
	}
	pause := paused.Pause
	text := "the app is paused " + pauseText(pause)
	if !paused.Changed { // the present pause lasts at least as long as the one asked for
		text = "the app was already paused, " + untilText(pause) + ": " + reasonText(&pause.Reason)
	}
	return e.say(pause, "%s\n  do: %s", text, app.Advice(jetpost.CodePausedByHand))
}

// read parses the flags. It refuses a time in the past, and a reason that does not print
// on one line.
func (c *pauseCmd) read(now time.Time) (until time.Time, reason string, err error) {
	var wrong []string
	if mistake := c.mistake(); mistake != "" {
		wrong = append(wrong, mistake)
	}
	until, err = moment(c.Until, false, now)
	switch {
	case err != nil:
		wrong = append(wrong, "--until: "+err.Error())
	case !until.IsZero() && !until.After(now):
		wrong = append(wrong, fmt.Sprintf("--until: %s has passed", localTime(until)))
	}
	reason = strings.Join(strings.Fields(c.Reason), " ")
	if n := utf8.RuneCountInString(reason); n > jetpost.MaxPauseReason {
		wrong = append(wrong, fmt.Sprintf("--reason: has %d characters, at most %d are allowed", n, jetpost.MaxPauseReason))
	}
	if !utf8.ValidString(reason) || strings.ContainsFunc(reason, func(r rune) bool { return !unicode.IsPrint(r) }) {
		wrong = append(wrong, "--reason: holds characters that cannot be printed")
	}
	return until, reason, mistakes("cannot pause", wrong...)
}

// pauseText is the end and the reason of a pause.
func pauseText(p jetpost.Pause) string {
	text := untilText(p)
	if !p.ByHand() {
		return "since X says " + reasonText(&p.Reason) + "; " + text
	}
	if p.Reason.Detail != "" {
		text += ": " + p.Reason.Detail
	}
	return text
}

func untilText(p jetpost.Pause) string {
	if p.Probed() {
		return "X is asked again at " + localTime(p.NextProbeAt)
	}
	until := p.Reason.Until
	if until.IsZero() {
		if p.Reason.Code == jetpost.CodeAccountScopeMissing {
			return "until it is connected again"
		}
		return "until somebody resumes it"
	}
	return "until " + localTime(until)
}

// resumeCmd is 'jetpost resume'.
type resumeCmd struct {
	whomFlags
	ExpireOlderThan time.Duration `env:"-" placeholder:"DURATION" help:"First fail, as expired, requests that were due longer ago than this and have not begun. jetpost replay still sends them."`
	natsFlags       `embed:""`
}

// Help is the long help text.
func (c *resumeCmd) Help() string {
	return "With an ACCOUNT, end the pause of that account. With --app, end jetpost pause --app and every pause that an answer " +
		"of X began: use it after you bought credits, raised a cap or corrected the app's settings."
}

// Run ends the pause of an account or of the app, and says which pauses it ended.
func (c *resumeCmd) Run(e *env) error {
	var wrong []string
	if mistake := c.mistake(); mistake != "" {
		wrong = append(wrong, mistake)
	}
	if c.ExpireOlderThan < 0 {
		wrong = append(wrong, "--expire-older-than: is negative")
	}
	if err := mistakes("cannot resume", wrong...); err != nil {
		return err
	}
	return e.operate(func(ctx context.Context, workers operations) error {
		var done app.Resumed
		var err error
		var in jetpost.ResumeRequest
		if c.ExpireOlderThan > 0 {
			in.ExpireBefore = time.Now().Add(-c.ExpireOlderThan)
		}
		if c.App {
			done, err = workers.AppResume(ctx, in)
		} else {
			done, err = workers.AccountResume(ctx, c.Account, in)
		}
		if err != nil && done.Expired > 0 {
			err = errors.Join(err, fmt.Errorf("%s failed before that as expired", counted(done.Expired, "request", "requests")))
		}
		if err != nil {
			return err
		}
		return e.show(done, c.text(done))
	})
}

func (c *resumeCmd) text(done app.Resumed) string {
	var text strings.Builder
	if c.ExpireOlderThan > 0 {
		fmt.Fprintf(&text, "%s, due more than %s ago, failed as expired\n", counted(done.Expired, "request", "requests"), c.ExpireOlderThan)
	}
	if done.Expired > 0 {
		text.WriteString("  do: see them with jetpost requests list --state failed --code expired; send one late with jetpost replay ID\n")
	}
	if done.Begun > 0 {
		fmt.Fprintf(&text, "%s, as late, had begun: left alone\n", counted(done.Begun, "request", "requests"))
	}
	switch {
	case !c.App && done.Pause.Since.IsZero():
		fmt.Fprintf(&text, "%s was not paused\n", c.Account)
	case !c.App && !done.Pause.ByHand():
		fmt.Fprintf(&text, "resumed %s, of which X had said: %s\n", c.Account, reasonText(&done.Pause.Reason))
	case !c.App:
		fmt.Fprintf(&text, "resumed %s, which was paused %s\n", c.Account, pauseText(done.Pause))
	case len(done.Pauses) == 0 && len(done.Mended) == 0:
		text.WriteString("nothing was paused\n")
	}
	for _, what := range done.Mended {
		fmt.Fprintf(&text, "repaired: %s\n", what)
	}
	for _, pause := range done.Pauses {
		fmt.Fprintf(&text, "resumed %s, which was paused: %s\n", pause.Target, reasonText(&pause.Reason))
	}
	return text.String()
}
