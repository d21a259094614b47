package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jetpost/jetpost/internal/app"
)

type requestsVerifyCmd struct {
	accountFlag
	Since string `env:"-" placeholder:"TIME" help:"Only posts sent since a time like 2026-12-01T09:00:00Z, or within a duration like 24h. Default: all that X shows, the newest 3,200 of an account."`
	Yes   bool   `env:"-" help:"Do not ask for confirmation. X charges for each post that it shows."`

	readFlags `embed:""`
}

// Run compares the ledger with what X shows, after a confirmation of the cost.
func (c *requestsVerifyCmd) Run(e *env) error {
	since, err := moment(c.Since, true, time.Now())
	if err != nil {
		return mistakes("cannot verify", "--since: "+err.Error())
	}
	return e.withControl(func(ctx context.Context, control *app.Control) error {
		plan, err := control.PlanVerify(ctx, app.VerifyQuery{Account: c.Account, Since: since})
		if err != nil {
			return err
		}
		if err := c.confirm(e, plan); err != nil {
			return err
		}
		wrong := 0
		for _, account := range plan.Accounts {
			found, err := control.Verify(ctx, plan, account)
			if err != nil {
				return err
			}
			if err := e.show(found, verificationText(found)); err != nil {
				return err
			}
			for _, f := range found.Findings {
				if f.Kind.Wrong() {
					wrong++
				}
			}
		}
		if wrong > 0 {
			return &exitError{code: exitFailed, err: &app.HintError{
				Err: fmt.Errorf("ledger and X differ in %d posts", wrong),
				Help: "look at each on X; if nobody deleted a missing post, X did: send it again under another id; " +
					"delete doubled posts on X",
			}}
		}
		return nil
	})
}

// confirm prints the cost and asks for confirmation. Without a terminal it fails unless
// --yes is set.
func (c *requestsVerifyCmd) confirm(e *env, plan app.VerifyPlan) error {
	if plan.Posts == 0 {
		return e.note("nothing to verify: the ledger has no posts of that time")
	}
	cost := fmt.Sprintf("%s of %s to look for: X charges %s for showing them, more for what others posted, and %s at most, for %s it shows of each",
		counted(plan.Posts, "post", "posts"), counted(len(plan.Accounts), "account", "accounts"), dollars(plan.CostUSD), dollars(plan.MaxCostUSD), "the newest 3,200 that")
	if c.Yes {
		return e.note(cost)
	}
	if !isTerminal(e.stdin) {
		return mistakes("cannot verify", cost+"; there is no terminal to ask for confirmation: add --yes")
	}
	fmt.Fprint(e.stderr, cost+". Go on? [y/N] ")
	if err := confirmed(e.stdin); err != nil {
		return &exitError{code: exitFailed, err: errors.New("not confirmed: X was not asked")}
	}
	return nil
}

// note prints a line on standard error.
func (e *env) note(text string) error {
	_, err := fmt.Fprintln(e.stderr, text)
	return err
}

func verificationText(v app.Verification) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s checked, %d on X", v.Account, counted(v.Checked, "post", "posts"), v.Read)
	for _, kind := range []app.Deviation{app.PostMissing, app.PostDoubled, app.PostUndeleted, app.PostChanged, app.PostForeign} {
		if n := v.Count(kind); n > 0 || kind == app.PostMissing || kind == app.PostDoubled {
			fmt.Fprintf(&b, ", %d %s", n, kind)
		}
	}
	if v.Unchecked > 0 {
		fmt.Fprintf(&b, "; %d unchecked: not on the part of the timeline that X shows", v.Unchecked)
	}
	b.WriteByte('\n')
	var rows []string
	for _, f := range v.Findings {
		whose := "-"
		if f.Index != nil {
			whose = fmt.Sprintf("%s post %d", f.ID, *f.Index+1)
		}
		rows = append(rows, strings.Join([]string{v.Account, string(f.Kind), whose, f.URL, excerpt(f.Text)}, "\t"))
	}
	return b.String() + align(rows)
}
