package publishers

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

const (
	// windowPrefix begins the keys of rate windows in the limits bucket.
	windowPrefix = "window."
	// windowStays is how long a window is kept after its reset, so that people can
	// still see it.
	windowStays = time.Hour
)

// Window is one of X's rate windows, as the last answer told it.
type Window struct {
	// Account is whose calls it counts; "" where it counts all of the app.
	Account  string `json:"account,omitempty"`
	Endpoint string `json:"endpoint"` // method and path pattern
	Kind     string `json:"kind"`     // 15min, user_24h or app_24h
	Limit    int    `json:"limit"`    // calls; 0 where X did not say
	// Remaining are the calls left until Reset.
	Remaining int       `json:"remaining"`
	Reset     time.Time `json:"reset"`
	// XReset is the reset by X's own clock, in epoch seconds, which tells a window
	// from the next one.
	XReset int64 `json:"x_reset"`
	// Estimated tells that X did not say: the limit is the documented one, and the
	// calls are counted by us.
	Estimated bool `json:"estimated,omitempty"`
}

// key is where a window stands. Accounts' names have none of the separators.
func (w Window) key() string {
	whose := "app"
	if w.Account != "" {
		whose = "account." + w.Account
	}
	endpoint := strings.NewReplacer(" ", "", "/", "_", ":", "").Replace(w.Endpoint)
	return windowPrefix + whose + "." + endpoint + "." + w.Kind
}

// Windows are X's rate windows, which all workers share: one that has not called X
// itself knows by them what is left. Whoever reads them merges them, since two
// workers may put the same window out of order.
//
// Windows are safe for concurrent use, from any number of processes.
type Windows struct {
	js    jetstream.JetStream
	names jetpost.Names
}

// NewWindows reads and writes through js in the installation of that name.
func NewWindows(js jetstream.JetStream, names jetpost.Names) *Windows {
	return &Windows{js: js, names: names}
}

// Put shares a window. It is forgotten some time after its reset.
func (s *Windows) Put(ctx context.Context, w Window) error {
	value, err := json.Marshal(w)
	if err != nil {
		return fmt.Errorf("encode window: %w", err)
	}
	ttl := windowStays + max(time.Until(w.Reset), 0).Round(time.Second)
	// A key-value client cannot give a key a life of its own with an update.
	msg := &nats.Msg{Subject: "$KV." + s.names.LimitsBucket() + "." + w.key(), Data: value}
	if _, err := send(ctx, s.js, "KV_"+s.names.LimitsBucket(), msg, jetstream.WithMsgTTL(ttl)); err != nil {
		return fmt.Errorf("share window %s: %w", w.key(), err)
	}
	return nil
}

// All returns the windows that are kept, those that are over too, in no order.
func (s *Windows) All(ctx context.Context) ([]Window, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var all []Window
	err := s.Follow(ctx, func(w Window) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, w)
	})
	if err != nil {
		return nil, err
	}
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(all), nil
}

// Follow calls learn with every window that is kept, and returns then; it goes on
// with each that changes, one at a time, until the context ends or the connection is
// closed for good.
func (s *Windows) Follow(ctx context.Context, learn func(Window)) error {
	kv, err := ask(ctx, func(ctx context.Context) (jetstream.KeyValue, error) {
		return s.js.KeyValue(ctx, s.names.LimitsBucket())
	})
	if err != nil {
		return fmt.Errorf("follow windows: %w", err)
	}
	watcher, err := kv.Watch(ctx, windowPrefix+">", jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("follow windows: %w", explain(err))
	}
	known := make(chan struct{})
	go follow(ctx, watcher, learn, known)
	select {
	case <-known:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("follow windows: %w", ctx.Err())
	}
}

func follow(ctx context.Context, watcher jetstream.KeyWatcher, learn func(Window), known chan<- struct{}) {
	defer func() { _ = watcher.Stop() }() // fails only where it is gone with its connection
	for {
		select {
		case <-ctx.Done():
			return
		case entry, ok := <-watcher.Updates():
			if !ok {
				return
			}
			if entry == nil { // all that there was has been told
				close(known)
				continue
			}
			var w Window
			if json.Unmarshal(entry.Value(), &w) == nil {
				learn(w)
			}
		}
	}
}
