package consumers_test

import (
	"context"
	"log/slog"
	"os"
	"os/signal"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/sqlite"
)

// A worker within another program, until that is interrupted.
func ExampleNewWorker() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := work(ctx, "ledger.db", "lifeboat", log); err != nil {
		log.Error("work", "error", err)
	}
}

// work runs a worker on a ledger. The database and the streams must exist: see
// sqlite.Migrate and publishers.Setup.
func work(ctx context.Context, path, lifeboat string, log *slog.Logger) error {
	sealer, err := store.NewSealer(os.Getenv("HUB_ENCRYPTION_KEY"))
	if err != nil {
		return err
	}
	ledger, err := sqlite.Open(ctx, path, sealer)
	if err != nil {
		return err
	}
	defer func() { _ = ledger.Close() }() // every change is already committed
	id, err := ledger.LedgerID(ctx)
	if err != nil {
		return err
	}
	boat := store.NewLifeboat(lifeboat, id, sealer)
	if err := boat.Prepare(); err != nil {
		return err
	}
	defer func() { _ = boat.Close() }() // what lies in it is already synced
	nc, err := nats.Connect(nats.DefaultURL)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	worker, err := consumers.NewWorker(ctx, consumers.Config{
		Worker: "worker-1", Ledger: ledger, JetStream: js, Topology: publishers.TopologyConfig{LedgerID: id}, Lifeboat: boat,
		ClientID: os.Getenv("X_CLIENT_ID"), ClientSecret: os.Getenv("X_CLIENT_SECRET"), Log: log,
	})
	if err != nil {
		return err
	}
	return worker.Run(ctx)
}
