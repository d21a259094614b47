package web_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/store/sqlite"
	"github.com/jetpost/jetpost/web"
)

// The pages are mounted where their public address points to, and a link is made
// for a customer.
func Example() {
	dir, err := os.MkdirTemp("", "ledger")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // the system's own clean-up would do
	if err := mountAndLink(context.Background(), filepath.Join(dir, "ledger.db")); err != nil {
		fmt.Println(err)
	}
	// Output:
	// register https://app.example/x/connect/callback
	// a link for acme, back to https://app.example/settings
}

func mountAndLink(ctx context.Context, path string) error {
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

	public, err := web.ParsePublicURL("https://app.example/x")
	if err != nil {
		return err
	}
	site := web.Site{Public: public, ReturnHosts: []string{"app.example"}}
	nc, err := nats.Connect("nats://127.0.0.1:1", nats.RetryOnFailedConnect(true)) // where the workers are
	if err != nil {
		return err
	}
	defer nc.Close()
	workers, err := client.New(nc)
	if err != nil {
		return err
	}
	pages, err := web.New(web.Config{Site: site, Workers: workers, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(public.Path+"/", pages)
	fmt.Println("register", site.RedirectURI())

	link, err := site.MakeLink(ctx, ledger, web.NewLink{
		Account: "acme", Life: web.DefaultLinkLife, ReturnTo: "https://app.example/settings", Now: time.Now(),
	})
	if err != nil {
		return err
	}
	fmt.Printf("a link for %s, back to %s\n", link.Account, link.ReturnTo)
	return nil
}
