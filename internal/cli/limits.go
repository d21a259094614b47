package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
)

// limitsCmd is 'jetpost limits'.
type limitsCmd struct {
	Account      string `arg:"" optional:"" help:"Only this account's windows, and the app's."`
	connectFlags `embed:""`
}

// Run shows what keeps calls from X.
func (c *limitsCmd) Run(e *env) error {
	if c.Account != "" {
		if err := jetpost.CheckAccount(c.Account); err != nil {
			return mistakes("cannot show limits", err.Error())
		}
	}
	cfg, err := e.natsConfig()
	if err != nil {
		return err
	}
	limits, err := cfg.Limits(e.ctx, e.log, c.Account)
	if err != nil {
		return err
	}
	return e.show(limits, limitsText(limits, c.Account))
}

func limitsText(l app.Limits, account string) string {
	var out strings.Builder
	out.WriteString(breakerText(l.X) + "\n")
	for _, s := range l.Stops {
		out.WriteString(stopText(s) + "\n")
		if s.Do != "" {
			out.WriteString("  do: " + s.Do + "\n")
		}
	}
	if len(l.Stops) == 0 {
		out.WriteString("no stop is in force\n")
	}
	switch {
	case len(l.Windows) > 0:
	case account != "":
		return out.String() + "no rate window of " + account + " or of the app is known: X has told of none in the last hour\n"
	default:
		return out.String() + "no rate window is known: X has told of none in the last hour\n"
	}
	rows := []string{"ACCOUNT\tENDPOINT\tWINDOW\tLIMIT\tLEFT\tRESET\tSOURCE\tTOLD"}
	for _, w := range l.Windows {
		rows = append(rows, windowRow(w, l.Now))
	}
	return out.String() + align(rows)
}

func breakerText(b app.Breaker) string {
	if b.Since.IsZero() {
		return "X: " + b.State
	}
	return fmt.Sprintf("X: %s since %s, asked again at %s", b.State, localTime(b.Since), localTime(b.AskedAgain))
}

func stopText(s app.LimitPause) string {
	end := "until somebody resumes it"
	switch {
	case !s.AskedAgain.IsZero():
		wait := time.Duration(s.WaitSeconds * float64(time.Second))
		end = fmt.Sprintf("asked again at %s, a wait of %s", localTime(s.AskedAgain), wait)
	case !s.Until.IsZero():
		end = "until " + localTime(s.Until)
	}
	return fmt.Sprintf("stop of %s since %s, %s: %s", s.Target, localTime(s.Since), end, reasonText(&jetpost.Reason{Code: s.Code, Detail: s.Detail}))
}

func windowRow(w app.RateWindow, now time.Time) string {
	account, limit, left, reset := w.Account, strconv.Itoa(w.Limit), strconv.Itoa(w.Remaining), localTime(w.Reset)
	if account == "" {
		account = "(app)"
	}
	if w.Open {
		reset = "open"
	}
	if w.Limit == 0 {
		limit = "?"
		if w.Open {
			left = "?"
		}
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s", account, w.Endpoint, w.Kind, limit, left, reset, w.Source, age(w.ToldAt, now))
}

// age is how long ago that was.
func age(at, now time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return max(now.Sub(at), 0).Round(time.Second).String() + " ago"
}
