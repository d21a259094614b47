package consumers_test

import (
	"context"
	"log/slog"
	"os"
	"os/signal"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/sqlite"
)

// A worker that only accepts jobs. Other workers, with a PublishHandler on the lanes,
// publish them.
func ExampleRunner() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := acceptJobs(ctx, "ledger.db", os.Getenv("HUB_ENCRYPTION_KEY"), log); err != nil {
		log.Error("accept jobs", "error", err)
	}
}

// acceptJobs stores jobs in the ledger until ctx ends. The database and the streams must
// exist: see sqlite.Migrate and publishers.Setup.
func acceptJobs(ctx context.Context, path, keys string, log *slog.Logger) error {
	sealer, err := store.NewSealer(keys)
	if err != nil {
		return err
	}
	ledger, err := sqlite.Open(ctx, path, sealer)
	if err != nil {
		return err
	}
	defer func() { _ = ledger.Close() }() // every change is already committed
	nc, err := nats.Connect(nats.DefaultURL)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}

	var names jetpost.Names // no prefix
	objects, err := js.ObjectStore(ctx, names.MediaBucket())
	if err != nil {
		return err
	}
	intake := &consumers.IntakeHandler{
		Ledger: ledger,
		Announce: &consumers.OutboxRelay{
			Ledger: ledger, DeadLetters: publishers.NewDeadLetters(js, names), Names: names, Log: log,
		},
		Wakeups: publishers.NewWakeups(js, names), Media: &consumers.MediaSource{Objects: objects}, Names: names, Log: log,
	}
	runner := &consumers.Runner{Leases: ledger, Worker: "worker-1", JetStream: js, Health: &consumers.Health{}, Log: log}
	for partition := range jetpost.Partitions {
		runner.Bindings = append(runner.Bindings, consumers.Binding{
			Stream: names.JobsStream(), Consumer: jetpost.ConsumerIntake(partition),
			Batch: intake, // only one worker reads a partition, so an account's jobs stay in order
		})
	}
	return runner.Run(ctx)
}
