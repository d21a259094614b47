package publishers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// The scopes of a stop. With the first the lanes' consumer is paused, too.
const (
	ScopePublish = jetpost.ScopePublish
	ScopeRefresh = jetpost.ScopeRefresh
	ScopeMedia   = jetpost.ScopeMedia
)

var scopes = [...]string{ScopePublish, ScopeRefresh, ScopeMedia}

// pauseForever is how long the lanes' consumer pauses for a stop without an
// end: longer than any installation lives.
const pauseForever = 100 * 365 * 24 * time.Hour

// stopPrefix begins the keys of stops in the limits bucket.
const stopPrefix = "stop."

// Stop is a pause of the whole app.
type Stop = jetpost.Pause

// Picture is what stops there are, as of a revision of the bucket.
type Picture struct {
	Stops    []Stop // sorted by scope
	Revision uint64
}

// Stops are the stops of the whole app, one a scope, which all workers share.
// The bucket is the truth; the pause of the lanes' consumer is its effect.
// Messages that a worker has already pulled are not held back by it, so workers
// must look at the stops, too.
//
// Stops are safe for concurrent use, from any number of processes.
type Stops struct {
	js    jetstream.JetStream
	names jetpost.Names
	seal  Seal
}

// NewStops writes through js to the installation of that name.
func NewStops(js jetstream.JetStream, names jetpost.Names) *Stops {
	return &Stops{js: js, names: names}
}

// Sealed are the same stops to whoever has the seal: one that was not sealed with it is
// none.
func (s *Stops) Sealed(seal Seal) *Stops { return &Stops{js: s.js, names: s.names, seal: seal} }

// Set stops a scope and returns the stop that now holds. Of several the one
// that ends last holds: a worker that saw the shorter limit must not shorten
// another's stop. One that prolongs a stop keeps its Since.
//
// A stop that is new, or ends later than before, is told as an event. On an
// error the stop may be set: Set it again.
func (s *Stops) Set(ctx context.Context, stop Stop) (holds Stop, changed bool, err error) {
	if !slices.Contains(scopes[:], stop.Scope) {
		return Stop{}, false, fmt.Errorf("stop %q: want scope %s, %s or %s", stop.Scope, ScopePublish, ScopeRefresh, ScopeMedia)
	}
	kv, err := s.bucket(ctx)
	if err == nil {
		holds, changed, err = s.write(ctx, kv, stop)
	}
	if err == nil {
		err = s.align(ctx, kv, stop.Scope)
	}
	if err == nil && changed {
		err = s.tell(ctx, jetpost.EventAppStopped, holds)
	}
	if err != nil {
		return Stop{}, false, fmt.Errorf("stop %s: %w", stop.Scope, err)
	}
	return holds, changed, nil
}

// tell publishes that a scope was stopped or resumed.
func (s *Stops) tell(ctx context.Context, t jetpost.EventType, stop Stop) error {
	return NewRecords(s.js, s.names).Event(ctx, s.names.EventSubject(t, "", ""), jetpost.Event{
		EventID: uuid.NewString(), Type: t, Time: time.Now().UTC(),
		App: &jetpost.AppStatus{Scope: stop.Scope, Reason: &stop.Reason, NextProbeAt: stop.NextProbeAt},
	})
}

// Clear ends a stop for everybody before its time, whether or not there is one.
func (s *Stops) Clear(ctx context.Context, scope string) error {
	kv, err := s.bucket(ctx)
	var was Stop
	if err == nil {
		was, _, err = s.read(ctx, kv, scope)
	}
	if err == nil {
		err = s.end(ctx, kv, scope, was)
	}
	if err != nil {
		return fmt.Errorf("resume %s: %w", scope, err)
	}
	return nil
}

// End ends this very stop, which was read before. It returns false where another one
// stands by now, or none.
func (s *Stops) End(ctx context.Context, stop Stop) (bool, error) {
	kv, err := s.bucket(ctx)
	if err == nil {
		err = s.end(ctx, kv, stop.Scope, stop, jetstream.LastRevision(stop.Revision))
	}
	switch {
	case lostRace(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("resume %s: %w", stop.Scope, err)
	}
	return true, nil
}

// end removes a stop, and tells that it is over.
func (s *Stops) end(ctx context.Context, kv jetstream.KeyValue, scope string, was Stop, opts ...jetstream.KVDeleteOpt) error {
	_, err := ask(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, kv.Delete(ctx, stopPrefix+scope, opts...)
	})
	if err == nil {
		err = s.align(ctx, kv, scope)
	}
	if err == nil && was.Scope != "" {
		err = s.tell(ctx, jetpost.EventAppResumed, was)
	}
	return err
}

// Probe lets a worker find out, until then, whether a stop is over. Of several that
// ask at once one may. It tells of the stop as it is now.
func (s *Stops) Probe(ctx context.Context, scope, worker string, now, until time.Time) (stop Stop, mine bool, err error) {
	kv, err := s.bucket(ctx)
	var revision uint64
	if err == nil {
		stop, revision, err = s.read(ctx, kv, scope)
	}
	if err == nil && stop.Due(now) {
		claimed := stop
		claimed.Worker, claimed.NextProbeAt = worker, until.UTC().Truncate(time.Millisecond)
		claimed.Revision, err = s.put(ctx, kv, claimed, revision)
		switch {
		case err == nil:
			stop, mine = claimed, true
			err = s.align(ctx, kv, scope)
		case lostRace(err):
			stop, _, err = s.read(ctx, kv, scope)
		}
	}
	if err != nil {
		return Stop{}, false, fmt.Errorf("probe %s: %w", scope, err)
	}
	return stop, mine, nil
}

// All are the stops on record, also those that have ended by themselves.
func (s *Stops) All(ctx context.Context) (all []Stop, err error) {
	for _, scope := range scopes {
		stop, there, err := s.Get(ctx, scope)
		if err != nil {
			return nil, err
		}
		if there {
			all = append(all, stop)
		}
	}
	return all, nil
}

// Get is the stop of a scope, also where it has ended by itself; false where
// there is none.
func (s *Stops) Get(ctx context.Context, scope string) (Stop, bool, error) {
	kv, err := s.bucket(ctx)
	if err != nil {
		return Stop{}, false, fmt.Errorf("read stop %s: %w", scope, err)
	}
	stop, _, err := s.read(ctx, kv, scope)
	if err != nil {
		return Stop{}, false, fmt.Errorf("read stop %s: %w", scope, err)
	}
	return stop, stop.Scope != "", nil
}

// Watch yields all stops: once as they are, complete, and
// again after every change. A slow reader misses pictures, but never the
// newest. The channel is closed when ctx ends or the connection is closed for
// good.
func (s *Stops) Watch(ctx context.Context) (<-chan Picture, error) {
	kv, err := s.bucket(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch stops: %w", err)
	}
	watcher, err := kv.Watch(ctx, stopPrefix+"*")
	if err != nil {
		return nil, fmt.Errorf("watch stops: %w", explain(err))
	}
	pictures := make(chan Picture)
	go s.watch(ctx, watcher, pictures)
	return pictures, nil
}

func (s *Stops) watch(ctx context.Context, watcher jetstream.KeyWatcher, pictures chan<- Picture) {
	defer close(pictures)
	defer func() { _ = watcher.Stop() }() // fails only where it is gone with its connection

	stops := make(map[string]Stop)
	complete := false
	var picture Picture
	var out chan<- Picture // nil, which blocks, while there is nothing new to tell
	for {
		select {
		case <-ctx.Done():
			return
		case out <- picture:
			out = nil
			continue
		case entry, ok := <-watcher.Updates():
			if !ok {
				return
			}
			if entry == nil { // all that there was has been told
				complete = true
			} else {
				s.apply(stops, entry)
				picture.Revision = max(picture.Revision, entry.Revision())
			}
		}
		if complete {
			picture.Stops = slices.SortedFunc(maps.Values(stops), func(a, b Stop) int { return cmp.Compare(a.Scope, b.Scope) })
			out = pictures
		}
	}
}

func (s *Stops) apply(stops map[string]Stop, entry jetstream.KeyValueEntry) {
	scope := strings.TrimPrefix(entry.Key(), stopPrefix)
	if entry.Operation() == jetstream.KeyValuePut {
		if stop := s.decode(scope, entry); stop.Scope != "" {
			stops[scope] = stop
			return
		}
	}
	delete(stops, scope)
}

// write stores the stop that stands once it is set.
func (s *Stops) write(ctx context.Context, kv jetstream.KeyValue, stop Stop) (holds Stop, changed bool, err error) {
	for range maxRaces {
		current, revision, err := s.read(ctx, kv, stop.Scope)
		if err != nil {
			return Stop{}, false, err
		}
		next, changed := stop.Upon(current)
		if !changed {
			return current, false, nil
		}
		next.Revision, err = s.put(ctx, kv, next, revision)
		if lostRace(err) {
			continue
		}
		return next, err == nil, err
	}
	return Stop{}, false, fmt.Errorf("stop changed %d times meanwhile", maxRaces)
}

// put stores a stop in place of the one of that revision, 0 for none.
func (s *Stops) put(ctx context.Context, kv jetstream.KeyValue, stop Stop, revision uint64) (uint64, error) {
	value, err := json.Marshal(stop)
	if err == nil {
		value, err = s.seal.close(stopPrefix+stop.Scope, value)
	}
	if err != nil {
		return 0, fmt.Errorf("encode stop: %w", err)
	}
	return ask(ctx, func(ctx context.Context) (uint64, error) {
		if revision == 0 {
			return kv.Create(ctx, stopPrefix+stop.Scope, value)
		}
		return kv.Update(ctx, stopPrefix+stop.Scope, value, revision)
	})
}

// align makes the lanes' consumer pause as the stop on record says. The last
// call to the consumer wins, so each looks once more afterwards: whoever was
// overtaken by a later stop, or by its end, applies that one.
func (s *Stops) align(ctx context.Context, kv jetstream.KeyValue, scope string) error {
	if scope != ScopePublish {
		return nil
	}
	stop, revision, err := s.read(ctx, kv, scope)
	for range maxRaces {
		if err != nil {
			return err
		}
		if err := s.pause(ctx, stop, stop.Scope != ""); err != nil {
			return fmt.Errorf("pause consumer %s: %w", jetpost.ConsumerLanes, err)
		}
		applied := revision
		if stop, revision, err = s.read(ctx, kv, scope); err == nil && revision == applied {
			return nil
		}
	}
	return fmt.Errorf("stop changed %d times meanwhile", maxRaces)
}

func (s *Stops) pause(ctx context.Context, stop Stop, stopped bool) error {
	_, err := ask(ctx, func(ctx context.Context) (*jetstream.ConsumerPauseResponse, error) {
		stream := s.names.LanesStream()
		if !stopped {
			return s.js.ResumeConsumer(ctx, stream, jetpost.ConsumerLanes)
		}
		until := stop.NextAt()
		if until.IsZero() {
			until = time.Now().Add(pauseForever)
		}
		return s.js.PauseConsumer(ctx, stream, jetpost.ConsumerLanes, until)
	})
	return err
}

// read is the stop on record and the revision of what stands there, 0 where that is
// nothing. What is not believed is the zero stop.
func (s *Stops) read(ctx context.Context, kv jetstream.KeyValue, scope string) (Stop, uint64, error) {
	entry, err := ask(ctx, func(ctx context.Context) (jetstream.KeyValueEntry, error) {
		return kv.Get(ctx, stopPrefix+scope)
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Stop{}, 0, nil
	}
	if err != nil {
		return Stop{}, 0, err
	}
	return s.decode(scope, entry), entry.Revision(), nil
}

// decode believes only what the seal is upon. It takes a value that cannot be read for a stop without an end:
// somebody wanted to stop something, and a person can resume. An older worker says a
// probe in other words, which are believed.
func (s *Stops) decode(scope string, entry jetstream.KeyValueEntry) Stop {
	value, believed := s.seal.open(entry.Key(), entry.Value())
	if !believed {
		return Stop{}
	}
	var is struct {
		Stop
		Probe bool `json:"probe"`
	}
	if err := json.Unmarshal(value, &is); err != nil {
		is.Stop = Stop{Reason: jetpost.Reason{Code: jetpost.CodeAppStopped, Detail: "unreadable stop: " + err.Error()}, Since: entry.Created()}
	}
	if is.Probe && is.NextProbeAt.IsZero() {
		is.NextProbeAt, is.Reason.Until = is.Reason.Until, time.Time{}
	}
	is.Scope, is.Revision = scope, entry.Revision()
	return is.Stop
}

func (s *Stops) bucket(ctx context.Context) (jetstream.KeyValue, error) {
	return ask(ctx, func(ctx context.Context) (jetstream.KeyValue, error) {
		return s.js.KeyValue(ctx, s.names.LimitsBucket())
	})
}
