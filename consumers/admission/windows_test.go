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
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/xapi"
)

// TestWindowsTold: what one worker tells is what the other one learns.
func TestWindowsTold(t *testing.T) {
	t.Parallel()
	_, js := natstest.Connect(t, natstest.Server(t))
	var names jetpost.Names
	_, err := publishers.Setup(t.Context(), js, publishers.TopologyConfig{Names: names, LedgerID: uuid.NewString()})
	check(t, err)
	board, log := publishers.NewWindows(js, names), slog.New(slog.DiscardHandler)
	one, two := NewWindows(board, log), NewWindows(board, log)
	w := xapi.Window{
		Endpoint: xapi.EndpointCreatePost, Kind: xapi.WindowApp24h, Limit: 10, Remaining: 3,
		Reset: time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond), XReset: 1234, Length: 24 * time.Hour,
	}
	one.Learn(w)
	one.changed(w)
	one.share(t.Context(), "")
	known, err := board.Get(t.Context(), "")
	check(t, err)
	two.Learned(known)
	equal(t, "windows", fmt.Sprint(two.Of("")), fmt.Sprint([]xapi.Window{w}))
	none, err := board.Get(t.Context(), "nobody")
	check(t, err)
	equal(t, "windows of nobody", len(none), 0)
	all, err := board.All(t.Context())
	check(t, err)
	equal(t, "all windows", len(all), 1)
}

// noStore is a WindowStore for one worker alone.
type noStore struct{}

func (noStore) Put(context.Context, string, []publishers.Window) error { return nil }

func (noStore) Get(context.Context, string) ([]publishers.Window, error) { return nil, nil }

// slowStore holds up each put until it is let go.
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

// TestHandOverWaits: a lane is not given away while what is known of its windows is on
// its way, and what is told last is the newest.
func TestHandOverWaits(t *testing.T) {
	t.Parallel()
	board := slowStore{puts: make(chan []publishers.Window), free: make(chan struct{})}
	s := NewWindows(board, slog.New(slog.DiscardHandler))
	learn := func(remaining int) {
		w := xapi.Window{Account: "acme", Endpoint: xapi.EndpointCreatePost, Kind: xapi.Window15Min, Limit: 9, Remaining: remaining, Reset: time.Now().Add(time.Hour), XReset: 7}
		s.Learn(w)
		s.changed(w)
	}
	learn(1)
	var first, second sync.WaitGroup
	first.Go(func() { s.share(t.Context(), "acme") })
	equal(t, "told first", (<-board.puts)[0].Remaining, 1)
	given := make(chan struct{})
	second.Go(func() { s.HandOver(t.Context(), "acme"); close(given) })
	learn(0)
	select {
	case <-given:
		t.Fatal("the lane is given away while its windows are on their way")
	case <-board.puts:
		t.Fatal("two are on their way")
	case <-time.After(50 * time.Millisecond): // which proves nothing where it is too short
	}
	board.free <- struct{}{}
	first.Wait()
	equal(t, "told last", (<-board.puts)[0].Remaining, 0)
	board.free <- struct{}{}
	second.Wait()
}
