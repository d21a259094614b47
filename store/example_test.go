package store_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/sqlite"
)

// A request enters its account's queue. The worker that claims the lane finds it at the
// front.
func Example() {
	dir, err := os.MkdirTemp("", "ledger")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // the system's own clean-up would do
	if err := acceptAndSnapshot(context.Background(), filepath.Join(dir, "ledger.db")); err != nil {
		fmt.Println(err)
	}
	// Output:
	// accepted: true
	// at the front: launch-1 is queued, 0 of 1 posted
}

func acceptAndSnapshot(ctx context.Context, path string) error {
	sealer, err := store.NewSealer(store.GenerateKey().Reveal())
	if err != nil {
		return err
	}
	if err := sqlite.Migrate(ctx, path); err != nil {
		return err
	}
	ledger, err := sqlite.Open(ctx, path, sealer)
	if err != nil {
		return err
	}
	defer func() { _ = ledger.Close() }() // every change is committed already

	now := time.Now()
	if _, err := ledger.ImportAccount(ctx, store.Import{
		Name: "acme", XUserID: "12", Username: "acme", Now: now,
		Pair: store.Pair{ExpiresAt: now.Add(2 * time.Hour)}, // with its tokens; accepting needs none
	}); err != nil {
		return err
	}
	body := []byte(`{"id": "launch-1", "posts": [{"text": "Hello"}]}`)
	request, err := jetpost.Decode("acme", body)
	if err != nil {
		return err
	}
	decision, err := ledger.Accept(ctx, store.Acceptance{Request: request, Body: body, Digest: request.Digest(), Now: now})
	if err != nil {
		return err
	}
	fmt.Println("accepted:", decision == store.Accepted)

	lane, claimed, err := ledger.ClaimLane(ctx, "acme", "worker-1", time.Minute, now)
	if err != nil || !claimed {
		return err // not claimed: another worker has the lane, and does it all
	}
	snapshot, err := ledger.Snapshot(ctx, lane, now)
	if err != nil {
		return err
	}
	status := snapshot.Head.Status
	fmt.Printf("at the front: %s is %s, %d of %d posted\n", status.ID, status.State, status.Posted, status.Total)
	return nil
}
