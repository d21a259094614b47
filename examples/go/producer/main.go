// Command producer publishes a post of an account and waits until it is live:
//
//	NATS_URL=nats://127.0.0.1:4222 go run ./examples/go/producer alice launch-1 'Hello'
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: producer ACCOUNT ID TEXT")
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		log.Fatal(err)
	}
}

func run(account, id, text string) error {
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL))
	if err != nil {
		return err
	}
	defer nc.Close()
	jp, err := client.New(nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// The id comes from the caller, who keeps it: sent again, it is the same request.
	status, err := jp.PublishAndWait(ctx, account, jetpost.Request{ID: id, Posts: []jetpost.Post{{Text: text}}}, nil)
	var refused *client.RefusedError
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("nothing of it was published: %w", err)
	case err != nil:
		return fmt.Errorf("run this again with the same id: %w", err)
	case status.State != jetpost.StatePublished:
		return fmt.Errorf("request %s is %s", id, status.State)
	}
	for _, post := range status.Posts {
		fmt.Println(post.URL)
	}
	return nil
}
