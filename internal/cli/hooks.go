package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/jetpost/jetpost"
)

// hooksCmd is 'jetpost hooks'.
type hooksCmd struct {
	Add       hooksAddCmd    `cmd:"" help:"Add a webhook and print the secret that signs what it sends, once."`
	List      hooksListCmd   `cmd:"" help:"List webhooks, with their last delivery and error and what waits for them."`
	Test      hooksTestCmd   `cmd:"" help:"Send an event of the type hook.test now, and show what the receiver answers."`
	Enable    hooksEnableCmd `cmd:"" help:"Have a webhook that was disabled send again what waits for it."`
	Remove    hooksRemoveCmd `cmd:"" help:"Remove a webhook. What waits for it is not sent."`
	natsFlags `embed:""`
}

type hooksAddCmd struct {
	URL     string              `arg:"" help:"URL of the receiver, https://..."`
	Events  []jetpost.EventType `env:"-" placeholder:"TYPE" help:"Types of events that are sent, such as request.published,request.failed. Default: all."`
	Account string              `env:"-" placeholder:"NAME" help:"Send the events of this account alone. Default: those of all, and of the app."`
}

// Run adds a webhook.
func (c *hooksAddCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		made, err := workers.HookCreate(ctx, c.Account, jetpost.HookCreate{URL: c.URL, Events: c.Events})
		switch {
		case failedAs(err, jetpost.ErrInvalid):
			return mistakes("cannot add a webhook", err.Error())
		case err != nil:
			return err
		}
		return e.show(made, fmt.Sprintf("%s\n%s signs what it sends; the secret is not shown again\n", made.Secret, made.Hook.ID))
	})
}

type hooksListCmd struct{}

// Run lists all webhooks.
func (*hooksListCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		hooks, err := allPages(jetpost.MaxHooks, func(limit int, cursor string) ([]jetpost.Hook, string, error) {
			page, err := workers.HookList(ctx, "", jetpost.HookList{Limit: limit, Cursor: cursor})
			return page.Hooks, page.Next, err
		})
		if err != nil {
			return err
		}
		return list(e, hooks, "ID\tSTATE\tPENDING\tDELIVERED\tFAILED\tACCOUNT\tEVENTS\tURL\tERROR", func(h jetpost.Hook) string {
			return strings.Join([]string{
				h.ID, hookState(h), hookPending(h), localTime(h.DeliveredAt), localTime(h.FailedAt), orAll(h.Account), orAll(eventsText(h.Events)),
				excerpt(h.URL), dash(excerpt(h.LastError)),
			}, "\t")
		})
	})
}

func hookState(h jetpost.Hook) string {
	state := "ok"
	switch {
	case !h.DisabledAt.IsZero():
		state = "DISABLED " + localTime(h.DisabledAt)
	case !h.FailingSince.IsZero():
		state = "FAILING since " + localTime(h.FailingSince)
	}
	if h.Dropped > 0 {
		state += fmt.Sprintf(", %d dropped", h.Dropped)
	}
	return state
}

func hookPending(h jetpost.Hook) string {
	if h.Pending == nil {
		return "?"
	}
	return fmt.Sprint(*h.Pending)
}

func eventsText(types []jetpost.EventType) string {
	words := make([]string, len(types))
	for i, t := range types {
		words[i] = string(t)
	}
	return strings.Join(words, ",")
}

func orAll(text string) string {
	if text == "" {
		return "all"
	}
	return text
}

type hooksTestCmd struct {
	ID string `arg:"" help:"Webhook."`
}

// Run sends a test.
func (c *hooksTestCmd) Run(e *env) error {
	return e.operate(func(ctx context.Context, workers operations) error {
		tested, err := workers.HookTest(ctx, "", jetpost.HookTest{ID: c.ID})
		if err != nil {
			return err
		}
		if tested.Delivered {
			return e.say(tested, "the receiver took event %s", tested.EventID)
		}
		if e.asJSON() {
			err = e.show(tested, "")
		}
		if err == nil {
			err = fmt.Errorf("the receiver did not take the event: %s", tested.Failure)
		}
		return err
	})
}

type hooksEnableCmd struct {
	ID string `arg:"" help:"Webhook."`
}

// Run enables a webhook.
func (c *hooksEnableCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		hook, err := workers.HookEnable(ctx, "", jetpost.HookEnable{ID: c.ID})
		if err != nil {
			return err
		}
		return e.say(hook, "enabled %s", c.ID)
	})
}

type hooksRemoveCmd struct {
	ID string `arg:"" help:"Webhook."`
}

// Run removes a webhook.
func (c *hooksRemoveCmd) Run(e *env) error {
	return e.look(func(ctx context.Context, workers operations) error {
		hook, err := workers.HookRemove(ctx, "", jetpost.HookRemove{ID: c.ID})
		if err != nil {
			return err
		}
		return e.say(hook, "removed %s", c.ID)
	})
}
