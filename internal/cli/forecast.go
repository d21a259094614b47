package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/control"
)

// maxForecast is how many accounts a forecast lists, unless all are wanted.
const maxForecast = 20

// forecastCmd is 'jetpost forecast'.
type forecastCmd struct {
	Add       []string `env:"-" sep:"none" placeholder:"N@ACCOUNT" help:"Add N single posts of an account, as if they were sent now: 500@acme. May be repeated."`
	All       bool     `env:"-" help:"List all accounts, not only the 20 that finish last."`
	natsFlags `embed:""`
}

// Run shows when the queues of all accounts will be empty.
func (c *forecastCmd) Run(e *env) error {
	added := map[string]int{}
	var wrong []string
	for _, add := range c.Add {
		account, n, err := parseAdd(add)
		if err != nil {
			wrong = append(wrong, err.Error())
			continue
		}
		added[account] += n
		if added[account] > control.MaxAdded {
			wrong = append(wrong, fmt.Sprintf("--add: more than %s posts of %s", thousands(control.MaxAdded), account))
		}
	}
	if err := mistakes("cannot forecast", wrong...); err != nil {
		return err
	}
	return e.operate(func(ctx context.Context, workers operations) error {
		f, err := workers.AppForecast(ctx, jetpost.ForecastRequest{Add: added})
		if err != nil {
			return err
		}
		limit := maxForecast
		if c.All {
			limit = len(f.Accounts)
		}
		return e.show(f, forecastText(f, limit))
	})
}

// parseAdd reads N@ACCOUNT.
func parseAdd(s string) (account string, n int, err error) {
	number, account, found := strings.Cut(s, "@")
	n, err = strconv.Atoi(number)
	switch {
	case !found || err != nil || n < 1:
		return "", 0, fmt.Errorf("--add: %q is not a number of posts and an account; want one like 500@acme", s)
	case n > control.MaxAdded:
		return "", 0, fmt.Errorf("--add: %q: at most %s posts can be added", s, thousands(control.MaxAdded))
	}
	if err := jetpost.CheckAccount(account); err != nil {
		return "", 0, fmt.Errorf("--add: %q: %w", s, err)
	}
	return account, n, nil
}

func forecastText(f app.Forecast, limit int) string {
	var out strings.Builder
	out.WriteString(forecastSentence(f) + "\n")
	if f.BlockedPosts > 0 || f.BlockedAccounts > 0 {
		fmt.Fprintf(&out, "%s of %s do not move until a person acts\n", things(f.BlockedPosts, "post"), things(f.BlockedAccounts, "account"))
	}
	if f.Expired > 0 {
		fmt.Fprintf(&out, "%s will expire before their turn\n", things(f.Expired, "request"))
	}
	if f.Estimated {
		out.WriteString("~ is estimated with the documented limit, 100 posts in 15 minutes per account, where X has not reported the window yet\n")
	}
	for _, note := range f.Notes {
		out.WriteString(note + "\n")
	}
	if len(f.Accounts) == 0 {
		return out.String()
	}
	rows := []string{"ACCOUNT\tREQUESTS\tPOSTS\tWINDOWS\tDONE\tWAITS FOR"}
	for _, a := range f.Accounts[:min(len(f.Accounts), limit)] {
		rows = append(rows, fmt.Sprintf("%s\t%d\t%d\t%d\t%s\t%s", a.Account, a.Requests, a.Posts, a.Windows, doneText(a), waitText(a)))
	}
	out.WriteString(align(rows))
	if more := len(f.Accounts) - limit; more > 0 {
		fmt.Fprintf(&out, "and %s that finish earlier; list them with --all\n", things(more, "account"))
	}
	return out.String()
}

func forecastSentence(f app.Forecast) string {
	moving := 0
	for _, a := range f.Accounts {
		if a.Blocked == nil || a.Posts > a.Blocked.Posts {
			moving++
		}
	}
	if f.Posts == 0 {
		return "no posts are waiting to go out"
	}
	verb := "are"
	if f.Posts == 1 {
		verb = "is"
	}
	when := localTime(f.DoneAt)
	if f.Estimated {
		when = "~" + when
	}
	if f.AtEarliest {
		when += " at the earliest"
	}
	return fmt.Sprintf("%s of %s %s out by %s, after %s", things(f.Posts, "post"), things(moving, "account"), verb, when, things(f.Windows, "window"))
}

func doneText(a app.AccountForecast) string {
	switch {
	case a.Blocked != nil:
		return "BLOCKED"
	case a.Estimated:
		return "~" + localTime(a.DoneAt)
	default:
		return localTime(a.DoneAt)
	}
}

func waitText(a app.AccountForecast) string {
	switch {
	case a.Blocked != nil:
		return fmt.Sprintf("%s: %s", a.Blocked.Code, a.Blocked.Do)
	case a.WaitsFor != nil:
		w := a.WaitsFor
		text := fmt.Sprintf("%s, %s: %d of %d left", w.Endpoint, w.Kind, w.Remaining, w.Limit)
		if w.Account == "" {
			text = "the app's " + text
		}
		if !w.Reset.IsZero() {
			text += " until " + localTime(w.Reset)
		}
		return text
	case a.Held != nil:
		return fmt.Sprintf("%s until %s", a.Held.Code, localTime(a.Held.Until))
	default:
		return "-"
	}
}

// things is a number with its noun: "1 post", "2,000 posts".
func things(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return thousands(n) + " " + one + "s"
}

// thousands is a number in groups of three digits.
func thousands(n int) string {
	digits := strconv.Itoa(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
