package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/publishers"
)

// refreshCmd is 'jetpost refresh'.
type refreshCmd struct {
	Account   string        `arg:"" optional:"" help:"Account whose token to refresh. Default: all tokens that are due."`
	Force     bool          `env:"-" help:"Refresh the token even if it is not due. Needs an ACCOUNT."`
	Wait      bool          `env:"-" help:"Wait for the outcome. Exit code 1: failed, 5: still waiting."`
	Timeout   time.Duration `env:"-" default:"2m" help:"Timeout of --wait."`
	natsFlags `embed:""`
}

// Run requests the refresh of one account's token, or starts a round.
func (c *refreshCmd) Run(e *env) error {
	if c.Account != "" {
		return waiting(e.operate(func(ctx context.Context, workers operations) error { return c.account(ctx, e, workers) }))
	}
	if c.Force {
		return mistakes("cannot refresh", "--force: needs an ACCOUNT")
	}
	cfg, err := e.natsConfig()
	if err != nil {
		return err
	}
	conn, err := cfg.Connect(e.ctx, e.log, "jetpost refresh")
	if err != nil {
		return err
	}
	defer conn.Close()
	return waiting(c.round(e, conn))
}

// asked is the result of a request for a refresh. An empty Account means all.
type asked struct {
	Account string `json:"account,omitempty"`
	Asked   bool   `json:"asked"`
}

func (c *refreshCmd) account(ctx context.Context, e *env, workers operations) error {
	in := jetpost.AccountRefresh{Force: c.Force}
	if c.Wait {
		in.WaitSeconds = min(max(1, int(c.Timeout.Round(time.Second)/time.Second)), jetpost.MaxWaitSeconds)
	}
	account, err := workers.AccountRefresh(ctx, c.Account, in)
	switch {
	case err != nil:
		return err
	case !c.Wait:
		return e.say(asked{Account: c.Account, Asked: true}, "asked for a refresh of %s", c.Account)
	default:
		return e.say(storedAccount(account), "refreshed %s: its token ends %s", c.Account, localTime(account.TokenExpiresAt))
	}
}

func (c *refreshCmd) round(e *env, conn *app.Connection) error {
	if !c.Wait {
		if err := publishers.New(conn.JS, conn.Names).Tick(e.ctx); err != nil {
			return err
		}
		return e.say(asked{Asked: true}, "asked for a refresh of all tokens that are due")
	}
	summary, err := conn.RefreshRound(e.ctx, c.Timeout)
	if err != nil {
		return err
	}
	if err := e.say(summary, "%d due: %d refreshed, %d failed, %d skipped", summary.Total, summary.Refreshed, summary.Failed, summary.Skipped); err != nil {
		return err
	}
	if summary.Failed > 0 {
		return &app.HintError{Err: fmt.Errorf("%d tokens were not refreshed", summary.Failed), Help: "see why with: jetpost accounts list"}
	}
	return nil
}

// waiting adds the exit code to a wait that timed out.
func waiting(err error) error {
	if errors.Is(err, app.ErrStillWaiting) || failedAs(err, jetpost.ErrStillWaiting) {
		return &exitError{code: exitWaiting, err: &app.HintError{
			Err: err, Help: "check the workers with: jetpost status; a token that is not due is only refreshed with --force",
		}}
	}
	return err
}
