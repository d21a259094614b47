package app_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi/xsim"
)

// publishEvery is how often something is published for a watch that has begun.
const publishEvery = 50 * time.Millisecond

// watchTime bounds a watch that would otherwise wait for ever.
const watchTime = time.Minute

// TestWatch: an account's events are seen and no other's, without a database; and
// of two requests that are named, both are waited for, whoever of the accounts
// they are of.
func TestWatch(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithTimeout(t.Context(), watchTime)
	defer stop()
	conn := watchedInstance(ctx, t)
	watchNamed(ctx, t, conn)
	watchAccount(ctx, t, conn)
}

// watchedInstance is 'jetpost up' with two accounts, and a producer's connection to it.
func watchedInstance(ctx context.Context, t *testing.T) *app.Connection {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	h, err := app.Up(ctx, app.InstanceConfig{
		Data: t.TempDir(), NATSListen: "127.0.0.1:0", SimListen: "127.0.0.1:0", Sim: &xsim.Server{}, SimAccounts: []string{"alice", "bob"},
	}, log)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = h.Run(ctx) }) // what it cannot do, the events do not tell
	t.Cleanup(func() {
		running.Wait()
		h.Close()
	})
	cfg := app.Config{NATS: app.NATSConfig{URL: h.Config.NATS.URL}} // a producer's
	conn, err := cfg.Connect(ctx, log, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

func watchPublish(t *testing.T, conn *app.Connection, account, id string) {
	t.Helper()
	_, err := publishers.New(conn.JS, conn.Names).Publish(t.Context(), jetpost.Request{
		Account: account, ID: id, Posts: []jetpost.Post{{Text: id}, {Text: id + " more"}},
	})
	if err != nil {
		t.Error(err)
	}
}

func watchNamed(ctx context.Context, t *testing.T, conn *app.Connection) {
	t.Helper()
	watchPublish(t, conn, "bob", "b1")
	var once sync.Once
	var seen []string
	named, err := conn.Watch(ctx, app.WatchQuery{IDs: []string{"b1", "a1"}}, func(e jetpost.Event) {
		seen = append(seen, fmt.Sprint(e.Request.ID, " ", e.Request.State))
		once.Do(func() { watchPublish(t, conn, "alice", "a1") })
	})
	if err != nil || ctx.Err() != nil || len(named) != 2 {
		t.Fatalf("watch: %v, %v", named, err)
	}
	for i, account := range []string{"bob", "alice"} {
		if w := named[i]; w.Request == nil || w.Request.State != jetpost.StatePublished || w.Receipt.Account != account {
			t.Errorf("the %dth is %+v, want it published by %s", i, w.Request, account)
		}
	}
	for _, want := range []string{"b1 published", "a1 published"} {
		if !slices.Contains(seen, want) {
			t.Errorf("seen %q, want %q in it", seen, want)
		}
	}
}

// watchAccount watches all of an account, from whenever the watch has begun.
func watchAccount(ctx context.Context, t *testing.T, conn *app.Connection) {
	t.Helper()
	watching, done := context.WithCancel(ctx)
	defer done()
	var publishing sync.WaitGroup
	publishing.Go(func() {
		every := time.NewTicker(publishEvery)
		defer every.Stop()
		for n := 2; ; n++ {
			select {
			case <-watching.Done():
				return
			case <-every.C:
				watchPublish(t, conn, "bob", fmt.Sprint("b", n))
				watchPublish(t, conn, "alice", fmt.Sprint("a", n))
			}
		}
	})
	var accounts []string
	_, err := conn.Watch(watching, app.WatchQuery{Account: "alice"}, func(e jetpost.Event) {
		if accounts = append(accounts, e.Request.Account); e.Request.State == jetpost.StatePublished {
			done()
		}
	})
	done()
	publishing.Wait()
	if err != nil || ctx.Err() != nil || len(accounts) == 0 || slices.Contains(accounts, "bob") {
		t.Errorf("seen of %q: %v", accounts, err)
	}
}
