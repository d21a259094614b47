package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
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
	return e.operate(func(ctx context.Context, workers operations) error {
		plan, err := planVerify(ctx, workers, c.Account, since)
		if err != nil {
			return err
		}
		if err := c.confirm(e, plan); err != nil {
			return err
		}
		wrong := 0
		for _, account := range plan.accounts {
			found, err := workers.AccountVerify(ctx, account, jetpost.AccountVerify{Since: since})
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

// verifyPlan is what a comparison reads from X. X charges for each post that it shows.
type verifyPlan struct {
	accounts []string // those with posts
	jetpost.Verification
}

// planVerify plans the comparison of one account or, with "", of all, without calling X.
func planVerify(ctx context.Context, workers operations, account string, since time.Time) (plan verifyPlan, err error) {
	names := []string{account}
	if account == "" {
		accounts, err := allPages(math.MaxInt, func(limit int, cursor string) ([]jetpost.AccountInfo, string, error) {
			page, err := workers.AccountList(ctx, jetpost.AccountList{Limit: limit, Cursor: cursor})
			return page.Accounts, page.Next, err
		})
		if err != nil {
			return plan, err
		}
		names = nil
		for _, a := range accounts {
			names = append(names, a.Name)
		}
	}
	for _, name := range names {
		one, err := workers.AccountVerify(ctx, name, jetpost.AccountVerify{Since: since, DryRun: true})
		if err != nil {
			return plan, err
		}
		if one.Posts == 0 {
			continue
		}
		plan.accounts = append(plan.accounts, name)
		plan.Posts += one.Posts
		plan.CostEstimateUSD += one.CostEstimateUSD
		plan.MaxCostUSD += one.MaxCostUSD
	}
	return plan, nil
}

// confirm prints the cost and asks for confirmation. Without a terminal it fails unless
// --yes is set.
func (c *requestsVerifyCmd) confirm(e *env, plan verifyPlan) error {
	if plan.Posts == 0 {
		return e.note("nothing to verify: the ledger has no posts of that time")
	}
	cost := fmt.Sprintf("%s of %s to look for: X charges %s for showing them, more for what others posted, and %s at most, for %s it shows of each",
		counted(plan.Posts, "post", "posts"), counted(len(plan.accounts), "account", "accounts"), dollars(plan.CostEstimateUSD), dollars(plan.MaxCostUSD), "the newest 3,200 that")
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

func verificationText(v jetpost.Verification) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s checked, %d on X", v.Account, counted(v.Checked, "post", "posts"), v.Read)
	for _, kind := range []jetpost.Deviation{jetpost.PostMissing, jetpost.PostDoubled, jetpost.PostUndeleted, jetpost.PostChanged, jetpost.PostForeign} {
		if n := v.Count(kind); n > 0 || kind == jetpost.PostMissing || kind == jetpost.PostDoubled {
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
