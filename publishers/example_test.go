package publishers_test

import (
	"context"
	"fmt"
	"log"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
)

// A producer publishes a thread and keeps the receipt.
func ExamplePublisher_Publish() {
	if err := publishThread(context.Background()); err != nil {
		log.Fatal(err, "\n", publishers.Hint(err))
	}
}

func publishThread(ctx context.Context) error {
	nc, err := nats.Connect(nats.DefaultURL)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}

	receipt, err := publishers.New(js, jetpost.Names{}).Publish(ctx, jetpost.Request{
		Account: "acme",
		ID:      "launch-1", // publishing it again is safe: the same id is the same job
		Posts:   []jetpost.Post{{Text: "Hello"}, {Text: "second post of the thread"}},
	})
	if err != nil {
		return err
	}
	fmt.Println("stored as job", receipt.Sequence)
	return nil
}
