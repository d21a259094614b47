// Command watcher prints what happens to the requests of an account, or of all, as it
// happens:
//
//	NATS_URL=nats://127.0.0.1:4222 go run ./examples/go/watcher alice
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/nats-io/nats.go"

	"github.com/jetpost/jetpost/client"
)

func main() {
	account := "" // of all
	if len(os.Args) > 1 {
		account = os.Args[1]
	}
	if err := run(account); err != nil {
		log.Fatal(err)
	}
}

func run(account string) error {
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL))
	if err != nil {
		return err
	}
	defer nc.Close()
	jp, err := client.New(nc)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	events, err := jp.Watch(ctx, client.Watch{Account: account})
	if err != nil {
		return err
	}
	log.Print("watching") // from here on nothing is missed while the connection holds
	for event, err := range events {
		switch {
		case err != nil:
			log.Print(err)
		case event.Request != nil:
			fmt.Println(event.Type, event.Request.Account, event.Request.ID, event.Request.State)
		case event.Refusal != nil:
			fmt.Println(event.Type, event.Refusal.Account, event.Refusal.ID, event.Refusal.Code)
		}
	}
	return nil
}
