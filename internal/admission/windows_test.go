package admission

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi"
)

// TestWindowsTold: the windows that one worker stores are those that another one reads.
func TestWindowsTold(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	var names jetpost.Names
	_, err := publishers.Setup(t.Context(), js, publishers.TopologyConfig{Names: names, LedgerID: uuid.NewString()})
	check(t, err)
	stored, log := publishers.NewWindows(js, names), slog.New(slog.DiscardHandler)
	one, two := NewWindows(stored, log), NewWindows(stored, log)
	w := xapi.Window{
		Endpoint: xapi.EndpointCreatePost, Kind: xapi.WindowApp24h, Limit: 10, Remaining: 3,
		Reset: time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond), XReset: 1234, Length: 24 * time.Hour,
	}
	one.Learn(w)
	one.changed(w)
	one.share(t.Context(), "")
	known, err := stored.Get(t.Context(), "")
	check(t, err)
	two.Learned(known)
	testkit.Equal(t, "windows", fmt.Sprint(two.Of("")), fmt.Sprint([]xapi.Window{w}))
	none, err := stored.Get(t.Context(), "nobody")
	check(t, err)
	testkit.Equal(t, "windows of nobody", len(none), 0)
	all, err := stored.All(t.Context())
	check(t, err)
	testkit.Equal(t, "all windows", len(all), 1)
}

// noStore is a WindowStore for a single worker.
type noStore struct{}

func (noStore) Put(context.Context, string, []publishers.Window) error { return nil }

func (noStore) Get(context.Context, string) ([]publishers.Window, error) { return nil, nil }

// slowStore blocks each Put until it is released.
type slowStore struct {
	noStore
	puts chan []publishers.Window
	free chan struct{}
}

func (b slowStore) Put(_ context.Context, _ string, windows []publishers.Window) error {
	b.puts <- windows
	<-b.free
	return nil
}

// TestHandOverWaits: a lane is not released while its windows are being stored, and the
// newest windows are stored last.
func TestHandOverWaits(t *testing.T) {
	t.Parallel()
	stored := slowStore{puts: make(chan []publishers.Window), free: make(chan struct{})}
	s := NewWindows(stored, slog.New(slog.DiscardHandler))
	learn := func(remaining int) {
		w := xapi.Window{Account: "acme", Endpoint: xapi.EndpointCreatePost, Kind: xapi.Window15Min, Limit: 9, Remaining: remaining, Reset: time.Now().Add(time.Hour), XReset: 7}
		s.Learn(w)
		s.changed(w)
	}
	learn(1)
	var first, second sync.WaitGroup
	first.Go(func() { s.share(t.Context(), "acme") })
	testkit.Equal(t, "stored first", (<-stored.puts)[0].Remaining, 1)
	given := make(chan struct{})
	second.Go(func() { s.HandOver(t.Context(), "acme"); close(given) })
	learn(0)
	select {
	case <-given:
		t.Fatal("the lane is released while its windows are being stored")
	case <-stored.puts:
		t.Fatal("two calls of Put at the same time")
	case <-time.After(50 * time.Millisecond): // too short a wait proves nothing
	}
	stored.free <- struct{}{}
	first.Wait()
	testkit.Equal(t, "stored last", (<-stored.puts)[0].Remaining, 0)
	stored.free <- struct{}{}
	second.Wait()
}
