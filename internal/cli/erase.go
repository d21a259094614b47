package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
)

type accountsEraseCmd struct {
	Name string `arg:"" help:"Account."`
	Yes  bool   `env:"-" help:"Do not ask for confirmation."`

	appFlags `embed:""`
}

// Help is the long help text.
func (*accountsEraseCmd) Help() string {
	return "Cancels what is unfinished, takes the tokens back at X, and removes the account's tokens, requests, media and events from the database " +
		"and from NATS. To delete its posts on X, use 'jetpost requests unpublish' first. It cannot be undone."
}

// eraseWithin is how long a command waits until everything is removed; workers go on with
// it after that.
const eraseWithin = 10 * time.Minute

// Run erases an account after a confirmation.
func (c *accountsEraseCmd) Run(e *env) error {
	return e.operate(func(ctx context.Context, workers operations) error {
		question := fmt.Sprintf("Erase %s? Its tokens, requests, media and events are removed, and this cannot be undone. Its posts on X stay there.", c.Name)
		if err := e.confirm(c.Yes, "erase", question); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, eraseWithin)
		defer cancel()
		erased, err := workers.AccountErase(ctx, c.Name, jetpost.AccountErase{OperationID: client.NewOperationID()})
		if err != nil {
			return err
		}
		if err := e.show(erased, erasedText(erased)); err != nil {
			return err
		}
		if !erased.Done {
			return fmt.Errorf("not everything of %s is removed yet, and workers go on with it: %s", c.Name, erased.Left)
		}
		return nil
	})
}

func erasedText(r jetpost.Erased) string {
	text := ""
	if r.Done {
		text = fmt.Sprintf("erased %s: of its %s only hashes of the ids are left\n", r.Name, counted(r.Requests, "request", "requests"))
	}
	if r.LivePosts > 0 {
		text += fmt.Sprintf("%s live on X and stay there\n", counted(r.LivePosts, "post is", "posts are"))
	}
	if r.DoubtfulPosts > 0 {
		text += fmt.Sprintf("of %s nobody knows whether X has it: look at the account's timeline\n", counted(r.DoubtfulPosts, "post", "posts"))
	}
	if !r.Revoked && r.NotRevoked != "" {
		text += fmt.Sprintf("X did not confirm that its tokens were revoked: %s\n  do: withdraw the app's access on X: Settings, Security and account access, Apps and sessions, Connected apps\n", r.NotRevoked)
	}
	return text
}
