package publishers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

const (
	// The keys of rate windows in the limits bucket: one for each account, and one for
	// the windows of the whole app.
	appWindows     = "window.app"
	accountWindows = "window.account."
	// windowStays is how long windows stay after their last reset, so that people can
	// still see them.
	windowStays = time.Hour
)

// Window is one of X's rate windows, as the last answer reported it.
type Window struct {
	// Account is whose calls it counts; "" if it counts all of the app.
	Account  string `json:"account,omitempty"`
	Endpoint string `json:"endpoint"` // method and path pattern
	Kind     string `json:"kind"`     // 15min, user_24h or app_24h
	Limit    int    `json:"limit"`    // calls; 0 if X did not say
	// Remaining are the calls left until Reset.
	Remaining int       `json:"remaining"`
	Reset     time.Time `json:"reset"`
	// XReset is the reset by X's own clock, in epoch seconds, which distinguishes a
	// window from the next one.
	XReset int64 `json:"x_reset"`
	// Length is how long such a window was seen to last; 0 if unknown.
	Length time.Duration `json:"length_ns,omitempty"`
	// Estimated says that X did not report it: the limit is the documented one, and
	// jetpost counts the calls.
	Estimated bool `json:"estimated,omitempty"`
	// ToldAt is when a worker has reported it; set when it is read.
	ToldAt time.Time `json:"-"`
}

// Windows are X's rate windows, which all workers share: by them a worker that has not
// called X itself knows what is left. A reader must merge them with what it knows,
// since two workers may store those of the app out of order.
//
// Windows is safe for concurrent use, from any number of processes.
type Windows struct {
	js     jetstream.JetStream
	names  jetpost.Names
	signer Signer

	mu sync.Mutex
	kv jetstream.KeyValue // once it was found, so that each read is one call
}

// NewWindows reads and writes through js in the installation of that name.
func NewWindows(js jetstream.JetStream, names jetpost.Names) *Windows {
	return &Windows{js: js, names: names}
}

// Signed returns the same windows for a holder of the signing key: windows without its
// signature are ignored.
func (s *Windows) Signed(signer Signer) *Windows {
	return &Windows{js: s.js, names: s.names, signer: signer}
}

func windowsKey(account string) string {
	if account == "" {
		return appWindows
	}
	return accountWindows + account
}

// Put shares all windows of an account, or with "" those of the app. They expire some
// time after the last reset.
func (s *Windows) Put(ctx context.Context, account string, windows []Window) error {
	value, err := json.Marshal(windows)
	if err == nil {
		value, err = s.signer.close(windowsKey(account), value)
	}
	if err != nil {
		return fmt.Errorf("encode windows: %w", err)
	}
	var until time.Time
	for _, w := range windows {
		if w.Reset.After(until) {
			until = w.Reset
		}
	}
	ttl := windowStays + max(time.Until(until), 0).Round(time.Second)
	// A key-value client cannot give a key a life of its own with an update.
	msg := &nats.Msg{Subject: "$KV." + s.names.LimitsBucket() + "." + windowsKey(account), Data: value}
	if _, err := send(ctx, s.js, "KV_"+s.names.LimitsBucket(), msg, jetstream.WithMsgTTL(ttl)); err != nil {
		return fmt.Errorf("share windows of %s: %w", whose(account), err)
	}
	return nil
}

func whose(account string) string {
	if account == "" {
		return "the app"
	}
	return account
}

// Get returns the windows of an account, or with "" those of the app, as they were last
// stored, including those that are over.
func (s *Windows) Get(ctx context.Context, account string) ([]Window, error) {
	kv, err := s.bucket(ctx)
	var entry jetstream.KeyValueEntry
	if err == nil {
		entry, err = ask(ctx, func(ctx context.Context) (jetstream.KeyValueEntry, error) {
			return kv.Get(ctx, windowsKey(account))
		})
	}
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read windows of %s: %w", whose(account), err)
	}
	return s.decode(entry), nil
}

// decode treats an invalid list, or one without a valid signature, as empty: X will
// report the windows again.
func (s *Windows) decode(entry jetstream.KeyValueEntry) (windows []Window) {
	if entry.Operation() != jetstream.KeyValuePut {
		return nil
	}
	value, believed := s.signer.open(entry.Key(), entry.Value())
	if !believed || json.Unmarshal(value, &windows) != nil {
		return nil
	}
	for i := range windows {
		windows[i].ToldAt = entry.Created().UTC()
	}
	return windows
}

func (s *Windows) bucket(ctx context.Context) (jetstream.KeyValue, error) {
	s.mu.Lock()
	kv := s.kv
	s.mu.Unlock()
	if kv != nil {
		return kv, nil
	}
	kv, err := ask(ctx, func(ctx context.Context) (jetstream.KeyValue, error) {
		return s.js.KeyValue(ctx, s.names.LimitsBucket())
	})
	if err == nil {
		s.mu.Lock()
		s.kv = kv
		s.mu.Unlock()
	}
	return kv, err
}

// All returns the windows of all accounts and the app, including those that are over,
// by account and endpoint.
func (s *Windows) All(ctx context.Context) ([]Window, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watcher, err := s.watch(ctx, "window.>")
	if err != nil {
		return nil, err
	}
	defer func() { _ = watcher.Stop() }() // fails only if it is gone with its connection
	var all []Window
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("read windows: %w", ctx.Err())
		case entry, ok := <-watcher.Updates():
			switch {
			case !ok:
				return nil, errors.New("read windows: the connection is closed")
			case entry == nil: // all entries have been read
				slices.SortFunc(all, compareWindows)
				return all, nil
			}
			all = append(all, s.decode(entry)...)
		}
	}
}

func compareWindows(a, b Window) int {
	return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Kind, b.Kind))
}

func (s *Windows) watch(ctx context.Context, keys string) (jetstream.KeyWatcher, error) {
	kv, err := s.bucket(ctx)
	var watcher jetstream.KeyWatcher
	if err == nil {
		watcher, err = kv.Watch(ctx, keys, jetstream.IgnoreDeletes())
	}
	if err != nil {
		return nil, fmt.Errorf("watch windows: %w", explain(err))
	}
	return watcher, nil
}

// watchAgain is how often the watch of the app's windows is started again: a watch
// whose bucket was deleted is silent.
const watchAgain = time.Minute

// FollowApp calls learn with the stored windows of the app and returns then. It goes on
// with each change in the background until the context ends.
func (s *Windows) FollowApp(ctx context.Context, learn func([]Window)) error {
	known := make(chan struct{})
	watcher, err := s.watch(ctx, appWindows)
	if err != nil {
		return err
	}
	go func() {
		told := sync.OnceFunc(func() { close(known) })
		for ctx.Err() == nil {
			if watcher != nil {
				s.followFor(ctx, watcher, watchAgain, learn, told)
			}
			if watcher, err = s.watch(ctx, appWindows); err != nil { // what X answers counts anyway
				watcher = nil
				rest(ctx, answerWithin)
			}
		}
	}()
	select {
	case <-known:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("watch windows: %w", ctx.Err())
	}
}

// followFor passes on what a watcher yields for that long, or until it is closed.
func (s *Windows) followFor(ctx context.Context, watcher jetstream.KeyWatcher, d time.Duration, learn func([]Window), told func()) {
	defer func() { _ = watcher.Stop() }() // fails only if it is gone with its connection
	again := time.NewTimer(d)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			return
		case entry, ok := <-watcher.Updates():
			switch {
			case !ok:
				rest(ctx, time.Second)
				return
			case entry == nil: // all entries have been read
				told()
			default:
				learn(s.decode(entry))
			}
		}
	}
}

// rest waits, or returns early when the context ends.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
