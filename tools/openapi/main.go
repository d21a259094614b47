// Command openapi does with a client that is generated from the served OpenAPI document what a
// program needs: it publishes, looks, cancels, replays and pauses. scripts/clients generates
// the rest of this package.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/oapi-codegen/runtime"
)

// The generated code needs the runtime, for parts of paths.
var _ = runtime.StyleParamWithOptions

const (
	account  = "alice"
	patience = 30 * time.Second
	// pollEvery is how often a request is looked at.
	pollEvery = 100 * time.Millisecond
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "wrong generated client:", err)
		os.Exit(1)
	}
	fmt.Println("ok    generated client")
}

func run(ctx context.Context) error {
	c, err := NewClientWithResponses(os.Getenv("JETPOST_URL"), WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
		r.Header.Set("Authorization", "Bearer "+os.Getenv("JETPOST_TOKEN"))
		return nil
	}))
	if err != nil {
		return err
	}
	request := func(id, text string, at *time.Time) Request {
		return Request{Id: &id, PublishAt: at, Posts: []Post{{Text: &text}}}
	}
	if err := publish(ctx, c, request("generated-1", "From a generated client", nil)); err != nil {
		return err
	}
	if err := until(ctx, c, "generated-1", "published"); err != nil {
		return err
	}
	reason, later := "lunch", time.Now().Add(time.Hour)
	paused, err := c.AccountPauseWithResponse(ctx, account, AccountPauseJSONRequestBody{Reason: &reason})
	if err != nil || paused.JSON200 == nil {
		return fmt.Errorf("pause: %w", failed(err, paused.JSONDefault))
	}
	for id, at := range map[string]*time.Time{"generated-2": &later, "generated-3": nil} {
		if err := publish(ctx, c, request(id, "Text of "+id, at)); err != nil {
			return err
		}
	}
	cancelled, err := c.RequestCancelOfAccountWithResponse(ctx, account, RequestCancelOfAccountJSONRequestBody{Id: "generated-2"})
	if err != nil || cancelled.JSON200 == nil || cancelled.JSON200.State != "cancelled" {
		return fmt.Errorf("cancel: %w", failed(err, cancelled.JSONDefault))
	}
	// What is late fails at the end of the pause, and is sent back.
	before := time.Now().Add(time.Minute)
	resumed, err := c.AccountResumeWithResponse(ctx, account, AccountResumeJSONRequestBody{ExpireBefore: &before})
	if err != nil || resumed.JSON200 == nil {
		return fmt.Errorf("resume: %w", failed(err, resumed.JSONDefault))
	}
	replayed, err := c.RequestReplayOfAccountWithResponse(ctx, account, RequestReplayOfAccountJSONRequestBody{Ids: &[]string{"generated-3"}})
	if err != nil || replayed.JSON200 == nil || len(replayed.JSON200.Replayed) != 1 {
		return fmt.Errorf("replay: %w", failed(err, replayed.JSONDefault))
	}
	if err := until(ctx, c, "generated-3", "published"); err != nil {
		return err
	}
	other, err := c.RequestGetOfAccountWithResponse(ctx, "bob", RequestGetOfAccountJSONRequestBody{Id: "generated-1"})
	if err != nil || other.StatusCode() != http.StatusForbidden || other.JSONDefault == nil || other.JSONDefault.Error.Code != "forbidden" {
		return fmt.Errorf("another account answers %d: %w", other.StatusCode(), failed(err, other.JSONDefault))
	}
	return nil
}

func publish(ctx context.Context, c *ClientWithResponses, request Request) error {
	answer, err := c.RequestPublishWithResponse(ctx, account, request)
	if err != nil || answer.JSON200 == nil || answer.JSON200.Request == nil {
		return fmt.Errorf("publish: %w", failed(err, answer.JSONDefault))
	}
	return nil
}

// until looks at a request until it is in a state.
func until(ctx context.Context, c *ClientWithResponses, id, state string) error {
	for {
		answer, err := c.RequestGetOfAccountWithResponse(ctx, account, RequestGetOfAccountJSONRequestBody{Id: id})
		switch {
		case err != nil || answer.JSON200 == nil:
			return fmt.Errorf("get %s: %w", id, failed(err, answer.JSONDefault))
		case string(answer.JSON200.Request.State) == state:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to be %s: %w", id, state, ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}

// failed is why an operation was not done.
func failed(err error, answer *ErrorAnswer) error {
	switch {
	case err != nil:
		return err
	case answer != nil:
		return fmt.Errorf("%s: %s", answer.Error.Code, answer.Error.Detail)
	}
	return errors.New("not as it should be")
}
