package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jetpost/jetpost/internal/app"
)

// maxReplyBytes bounds the answer to a question.
const maxReplyBytes = 64

type accountsDisconnectCmd struct {
	Name string `arg:"" help:"Account."`
	Yes  bool   `env:"-" help:"Do not ask."`
}

// Run disconnects an account, once somebody has said that it shall be.
func (c *accountsDisconnectCmd) Run(e *env) error {
	return e.withControl(func(ctx context.Context, control *app.Control) error {
		connector, err := control.Connector()
		if err != nil {
			return err
		}
		account, err := app.ReportAccount(ctx, control.Ledger, c.Name)
		if err != nil {
			return err
		}
		if err := c.confirm(e, account); err != nil {
			return err
		}
		done, err := connector.Disconnect(ctx, c.Name)
		if done.Name == "" {
			return err
		}
		if err != nil {
			return errors.Join(err, c.showJSON(e, done))
		}
		return e.say(done, "disconnected %s, which is @%s: X takes its tokens no more, and its %s until it is connected again", done.Name, done.Username, waitingJobs(done.Open))
	})
}

// showJSON tells a program what was done although not all of it was.
func (c *accountsDisconnectCmd) showJSON(e *env, done app.Disconnected) error {
	if !e.asJSON() {
		return nil
	}
	return e.show(done, "")
}

func waitingJobs(n int) string {
	switch n {
	case 0:
		return "jobs wait"
	case 1:
		return "open request waits"
	default:
		return fmt.Sprintf("%d open requests wait", n)
	}
}

// confirm asks a person; without a terminal there is nobody to ask.
func (c *accountsDisconnectCmd) confirm(e *env, account app.AccountReport) error {
	if c.Yes {
		return nil
	}
	if !isTerminal(e.stdin) {
		return mistakes("cannot disconnect", "without a terminal nobody can be asked: add --yes")
	}
	fmt.Fprintf(e.stderr, "Disconnect %s, which is @%s? X will take its tokens no more, and its %s until it is connected again. [y/N] ",
		account.Name, account.Username, waitingJobs(account.Open))
	return confirmed(e.stdin)
}

// confirmed reads a person's yes.
func confirmed(stdin io.Reader) error {
	line, _ := bufio.NewReader(io.LimitReader(stdin, maxReplyBytes)).ReadString('\n') // no line is no yes
	if reply := strings.ToLower(strings.TrimSpace(line)); reply != "y" && reply != "yes" {
		return &exitError{code: exitFailed, err: errors.New("not confirmed: nothing has changed")}
	}
	return nil
}
