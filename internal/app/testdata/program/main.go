// Command program is what a customer might write: it knows the contract and the client,
// and is built as a module of its own by TestProgramOfAnotherModule.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(url, user, password string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	nc, err := nats.Connect(url, nats.UserInfo(user, password), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		return err
	}
	defer nc.Close()
	jp, err := client.New(nc)
	if err != nil {
		return err
	}
	live, err := jp.PublishAndWait(ctx, "acme", jetpost.Request{ID: "one", Posts: []jetpost.Post{{Text: "Hello"}}}, nil)
	if err != nil {
		return err
	}
	fmt.Println("published:", live.State, live.Posted)

	watching, stop := context.WithCancel(ctx)
	defer stop()
	events, err := jp.Watch(watching, client.Watch{Account: "acme", ID: "two"})
	if err != nil {
		return err
	}
	later := jetpost.Request{ID: "two", PublishAt: time.Now().Add(time.Hour), Posts: []jetpost.Post{{Text: "Later"}}}
	if _, err := jp.RequestPublish(ctx, "acme", later); err != nil {
		return err
	}
	if _, err := jp.RequestCancel(ctx, "acme", jetpost.RequestCancel{ID: "two"}); err != nil {
		return err
	}
	for event, err := range events {
		if err != nil {
			return err
		}
		fmt.Println("event:", event.Type)
		if event.Type == jetpost.EventRequestCancelled {
			break
		}
	}
	replayed, err := jp.RequestReplay(ctx, "acme", jetpost.RequestReplay{IDs: []string{"two"}})
	if err != nil {
		return err
	}
	fmt.Println("replay:", replayed.Replayed[0].Action, replayed.Replayed[0].Detail)
	paused, err := jp.AccountPause(ctx, "acme", jetpost.PauseRequest{Reason: "lunch"})
	if err != nil {
		return err
	}
	fmt.Println("paused:", paused.Pause.Reason.Detail)
	resumed, err := jp.AccountResume(ctx, "acme", jetpost.ResumeRequest{})
	if err != nil {
		return err
	}
	fmt.Println("resumed:", resumed.Pause.Reason.Detail)
	var failed *client.Error
	if _, err = jp.AccountDisconnect(ctx, "acme", jetpost.AccountDisconnect{}); errors.As(err, &failed) {
		fmt.Println("disconnect:", failed.Code)
	}
	if _, err = jp.RequestGet(ctx, "other", jetpost.RequestGet{ID: "one"}); errors.As(err, &failed) {
		fmt.Println("another account:", failed.Code)
	}
	return nil
}
