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
	Account   string `arg:"" optional:"" help:"Show only the windows of this account and of the app."`
	natsFlags `embed:""`
}

// Run shows X's rate windows and the app pauses in force.
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
	for _, p := range l.Pauses {
		out.WriteString(limitPauseText(p) + "\n")
		if p.Do != "" {
			out.WriteString("  do: " + p.Do + "\n")
		}
	}
	if len(l.Pauses) == 0 {
		out.WriteString("no app pause is in force\n")
	}
	switch {
	case len(l.Windows) > 0:
	case account != "":
		return out.String() + "no rate window of " + account + " or of the app is known: X reported none in the last hour\n"
	default:
		return out.String() + "no rate window is known: X reported none in the last hour\n"
	}
	rows := []string{"ACCOUNT\tENDPOINT\tWINDOW\tLIMIT\tLEFT\tRESET\tSTATE\tSOURCE\tUPDATED"}
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

func limitPauseText(p app.LimitPause) string {
	end := "until somebody resumes it"
	switch {
	case !p.AskedAgain.IsZero():
		wait := time.Duration(p.WaitSeconds * float64(time.Second))
		end = fmt.Sprintf("asked again at %s, after a wait of %s", localTime(p.AskedAgain), wait)
	case !p.Until.IsZero():
		end = "until " + localTime(p.Until)
	}
	return fmt.Sprintf("%s paused since %s, %s: %s", p.Target, localTime(p.Since), end, reasonText(&jetpost.Reason{Code: p.Code, Detail: p.Detail}))
}

func windowRow(w app.RateWindow, now time.Time) string {
	account, limit, left, state := w.Account, strconv.Itoa(w.Limit), strconv.Itoa(w.Remaining), "available"
	if account == "" {
		account = "(app)"
	}
	if !w.Available {
		state = "exhausted until " + localTime(w.Reset)
	}
	if w.Limit == 0 {
		limit = "?"
		if w.Reset.IsZero() {
			left = "?"
		}
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s", account, w.Endpoint, w.Kind, limit, left, localTime(w.Reset), state, w.Source, age(w.ToldAt, now))
}

// age is the time from at to now, as text; "-" if at is zero.
func age(at, now time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return max(now.Sub(at), 0).Round(time.Second).String() + " ago"
}
