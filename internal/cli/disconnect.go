package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
)

// maxReplyBytes bounds the answer to a question.
const maxReplyBytes = 64

type accountsDisconnectCmd struct {
	Name string `arg:"" help:"Account."`
	Yes  bool   `env:"-" help:"Do not ask for confirmation."`

	appFlags `embed:""`
}

// Run disconnects an account after a confirmation.
func (c *accountsDisconnectCmd) Run(e *env) error {
	return e.operate(func(ctx context.Context, workers operations) error {
		account, err := workers.AccountGet(ctx, c.Name)
		if err != nil {
			return err
		}
		of := account.Account
		question := fmt.Sprintf("Disconnect %s, which is @%s? X will no longer accept its tokens, and its %s until it is connected again.",
			of.Name, of.Username, waitingJobs(of.Open))
		if err := e.confirm(c.Yes, "disconnect", question); err != nil {
			return err
		}
		done, err := workers.AccountDisconnect(ctx, c.Name, jetpost.AccountDisconnect{})
		if err != nil {
			return err
		}
		if words := done.NotRevoked; !done.Revoked {
			done.NotRevoked = "" // the error has them
			return errors.Join(&app.NotRevokedError{Account: c.Name, Words: words}, c.showJSON(e, done))
		}
		return e.say(done, "disconnected %s, which is @%s: X no longer accepts its tokens, and its %s until it is connected again", done.Name, done.Username, waitingJobs(done.Open))
	})
}

// showJSON prints the partial result as JSON.
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

// confirm asks a person whether to go on, unless --yes has said so. Without a terminal there
// is nobody to ask.
func (e *env) confirm(yes bool, verb, question string) error {
	switch {
	case yes:
		return nil
	case !isTerminal(e.stdin):
		return mistakes("cannot "+verb, "there is no terminal to ask for confirmation: add --yes")
	}
	fmt.Fprint(e.stderr, question+" [y/N] ")
	return confirmed(e.stdin)
}

// confirmed reads the answer, and fails unless it is yes.
func confirmed(stdin io.Reader) error {
	line, _ := bufio.NewReader(io.LimitReader(stdin, maxReplyBytes)).ReadString('\n') // no line counts as no
	if reply := strings.ToLower(strings.TrimSpace(line)); reply != "y" && reply != "yes" {
		return &exitError{code: exitFailed, err: errors.New("not confirmed: nothing has changed")}
	}
	return nil
}
