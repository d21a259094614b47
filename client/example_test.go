package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
)

// A program publishes, and waits until the post is live.
func ExampleClient_PublishAndWait() {
	nc, err := nats.Connect("nats://127.0.0.1:4222", nats.UserInfo("acme", "password"))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	jp, err := client.New(nc)
	if err != nil {
		log.Print(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.TODO(), time.Minute)
	defer cancel()
	// The id is chosen before the first attempt, and kept for each repeat.
	r := jetpost.Request{ID: "launch-2026-12-01", Posts: []jetpost.Post{{Text: "We are live."}}}
	status, err := jp.PublishAndWait(ctx, "acme", r, nil)
	var refused *client.RefusedError
	switch {
	case errors.As(err, &refused):
		fmt.Println("refused:", refused.Refusal.Code)
	case err != nil:
		log.Print(err)
		return
	default:
		fmt.Println(status.State, status.Posts[0].URL)
	}
}

// A change that is repeated under its operation id takes effect once.
func ExampleClient_RequestCancel() {
	nc, err := nats.Connect("nats://127.0.0.1:4222")
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	jp, err := client.New(nc)
	if err != nil {
		log.Print(err)
		return
	}
	in := jetpost.RequestCancel{OperationID: client.NewOperationID(), ID: "launch-2026-12-01"}
	status, err := jp.RequestCancel(context.TODO(), "acme", in)
	var failed *client.Error
	switch {
	case errors.As(err, &failed) && failed.Code == jetpost.ErrUnavailable:
		fmt.Println("whether it was cancelled, the same call tells later")
	case errors.As(err, &failed):
		fmt.Println(failed.Code, failed.Detail)
	default:
		fmt.Println(status.State)
	}
}

// A program follows what happens to the requests of an account.
func ExampleClient_Watch() {
	nc, err := nats.Connect("nats://127.0.0.1:4222")
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	jp, err := client.New(nc)
	if err != nil {
		log.Print(err)
		return
	}
	events, err := jp.Watch(context.TODO(), client.Watch{Account: "acme"})
	if err != nil {
		log.Print(err)
		return
	}
	for event, err := range events {
		if err != nil {
			log.Print(err)
			continue
		}
		fmt.Println(event.Type)
	}
}
