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

// The targets of an app pause. The first one pauses the lanes' consumer, too.
const (
	TargetPublish = jetpost.TargetPublish
	TargetRefresh = jetpost.TargetRefresh
	TargetMedia   = jetpost.TargetMedia
)

var targets = [...]string{TargetPublish, TargetRefresh, TargetMedia}

// pauseForever is how long the lanes' consumer pauses for an app pause without an end:
// longer than any installation lives.
const pauseForever = 100 * 365 * 24 * time.Hour

// pausePrefix begins the keys of app pauses in the limits bucket.
const pausePrefix = "pause."

// Pause is a pause of the whole app.
type Pause = jetpost.Pause

// Pauses are the app pauses as of a revision of the bucket.
type Pauses struct {
	Pauses   []Pause // sorted by target
	Revision uint64
}

// AppPauses are the pauses of the whole app, one for each target, which all workers
// share. The ledger is the truth; the bucket is the copy that workers watch, and the pause
// of the lanes' consumer is its effect. That does not hold back messages that a worker has
// already pulled, so workers must check the app pauses, too.
//
// AppPauses is safe for concurrent use, from any number of processes.
type AppPauses struct {
	js     jetstream.JetStream
	names  jetpost.Names
	signer Signer
}

// NewAppPauses writes through js to the installation of that name.
func NewAppPauses(js jetstream.JetStream, names jetpost.Names) *AppPauses {
	return &AppPauses{js: js, names: names}
}

// Signed returns the same pauses for a holder of the signing key: a pause without its
// signature is ignored.
func (s *AppPauses) Signed(signer Signer) *AppPauses {
	return &AppPauses{js: s.js, names: s.names, signer: signer}
}

// Set pauses a target and returns the pause that now holds. The pause that ends last
// wins: a worker that saw the shorter limit must not shorten another's pause. A pause
// that prolongs another one has its Since.
//
// An event reports a pause that is new or ends later than before. After an error the
// pause may be set: call Set again.
func (s *AppPauses) Set(ctx context.Context, pause Pause) (holds Pause, changed bool, err error) {
	if !slices.Contains(targets[:], pause.Target) {
		return Pause{}, false, fmt.Errorf("pause %q: want target %s, %s or %s", pause.Target, TargetPublish, TargetRefresh, TargetMedia)
	}
	kv, err := s.bucket(ctx)
	if err == nil {
		holds, changed, err = s.write(ctx, kv, pause)
	}
	if err == nil {
		err = s.align(ctx, kv, pause.Target)
	}
	if err == nil && changed {
		err = s.tell(ctx, jetpost.EventAppPaused, holds)
	}
	if err != nil {
		return Pause{}, false, fmt.Errorf("pause %s: %w", pause.Target, err)
	}
	return holds, changed, nil
}

// tell publishes that a target was paused or resumed.
func (s *AppPauses) tell(ctx context.Context, t jetpost.EventType, pause Pause) error {
	return NewDeadLetters(s.js, s.names).Event(ctx, s.names.EventSubject(t, "", ""), jetpost.Event{
		EventID: uuid.NewString(), Type: t, Time: time.Now().UTC(),
		App: &jetpost.AppStatus{Target: pause.Target, Reason: &pause.Reason, NextProbeAt: pause.NextProbeAt},
	})
}

// Clear ends a pause for all workers before its time, whether or not there is one.
func (s *AppPauses) Clear(ctx context.Context, target string) error {
	kv, err := s.bucket(ctx)
	var was Pause
	if err == nil {
		was, _, err = s.read(ctx, kv, target)
	}
	if err == nil {
		err = s.end(ctx, kv, target, was)
	}
	if err != nil {
		return fmt.Errorf("resume %s: %w", target, err)
	}
	return nil
}

// End ends exactly this pause, which was read before. It returns false if another
// pause, or none, is stored by now.
func (s *AppPauses) End(ctx context.Context, pause Pause) (bool, error) {
	kv, err := s.bucket(ctx)
	if err == nil {
		err = s.end(ctx, kv, pause.Target, pause, jetstream.LastRevision(pause.Revision))
	}
	switch {
	case lostRace(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("resume %s: %w", pause.Target, err)
	}
	return true, nil
}

// end removes a pause and publishes that it is over.
func (s *AppPauses) end(ctx context.Context, kv jetstream.KeyValue, target string, was Pause, opts ...jetstream.KVDeleteOpt) error {
	_, err := ask(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, kv.Delete(ctx, pausePrefix+target, opts...)
	})
	if err == nil {
		err = s.align(ctx, kv, target)
	}
	if err == nil && was.Target != "" {
		err = s.tell(ctx, jetpost.EventAppResumed, was)
	}
	return err
}

// Probe lets a worker find out, until then, whether a pause is over. If several workers
// ask at once, one of them may. It returns the pause as it is now.
func (s *AppPauses) Probe(ctx context.Context, target, worker string, now, until time.Time) (pause Pause, mine bool, err error) {
	kv, err := s.bucket(ctx)
	var revision uint64
	if err == nil {
		pause, revision, err = s.read(ctx, kv, target)
	}
	if err == nil && pause.Due(now) {
		claimed := pause
		claimed.Worker, claimed.NextProbeAt = worker, until.UTC().Truncate(time.Millisecond)
		claimed.Revision, err = s.put(ctx, kv, claimed, revision)
		switch {
		case err == nil:
			pause, mine = claimed, true
			err = s.align(ctx, kv, target)
		case lostRace(err):
			pause, _, err = s.read(ctx, kv, target)
		}
	}
	if err != nil {
		return Pause{}, false, fmt.Errorf("probe %s: %w", target, err)
	}
	return pause, mine, nil
}

// All returns the pauses on record, including those that have ended by themselves.
func (s *AppPauses) All(ctx context.Context) (all []Pause, err error) {
	for _, target := range targets {
		pause, there, err := s.Get(ctx, target)
		if err != nil {
			return nil, err
		}
		if there {
			all = append(all, pause)
		}
	}
	return all, nil
}

// Get returns the pause of a target, even if it has ended by itself; false if there is
// none.
func (s *AppPauses) Get(ctx context.Context, target string) (Pause, bool, error) {
	kv, err := s.bucket(ctx)
	if err != nil {
		return Pause{}, false, fmt.Errorf("read pause %s: %w", target, err)
	}
	pause, _, err := s.read(ctx, kv, target)
	if err != nil {
		return Pause{}, false, fmt.Errorf("read pause %s: %w", target, err)
	}
	return pause, pause.Target != "", nil
}

// Watch yields all pauses: once as they are, complete, and again after every change. A
// slow reader misses snapshots, but never the newest. The channel is closed when ctx
// ends or the connection is closed for good.
func (s *AppPauses) Watch(ctx context.Context) (<-chan Pauses, error) {
	kv, err := s.bucket(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch pauses: %w", err)
	}
	watcher, err := kv.Watch(ctx, pausePrefix+"*")
	if err != nil {
		return nil, fmt.Errorf("watch pauses: %w", explain(err))
	}
	snapshots := make(chan Pauses)
	go s.watch(ctx, watcher, snapshots)
	return snapshots, nil
}

func (s *AppPauses) watch(ctx context.Context, watcher jetstream.KeyWatcher, snapshots chan<- Pauses) {
	defer close(snapshots)
	defer func() { _ = watcher.Stop() }() // fails only if it is gone with its connection

	pauses := make(map[string]Pause)
	complete := false
	var shown Pauses
	var out chan<- Pauses // nil, which blocks, while there is nothing new
	for {
		select {
		case <-ctx.Done():
			return
		case out <- shown:
			out = nil
			continue
		case entry, ok := <-watcher.Updates():
			if !ok {
				return
			}
			if entry == nil { // all entries have been read
				complete = true
			} else {
				s.apply(pauses, entry)
				shown.Revision = max(shown.Revision, entry.Revision())
			}
		}
		if complete {
			shown.Pauses = slices.SortedFunc(maps.Values(pauses), func(a, b Pause) int { return cmp.Compare(a.Target, b.Target) })
			out = snapshots
		}
	}
}

func (s *AppPauses) apply(pauses map[string]Pause, entry jetstream.KeyValueEntry) {
	target := strings.TrimPrefix(entry.Key(), pausePrefix)
	if entry.Operation() == jetstream.KeyValuePut {
		if pause := s.decode(target, entry); pause.Target != "" {
			pauses[target] = pause
			return
		}
	}
	delete(pauses, target)
}

// write stores the pause that holds once it is set.
func (s *AppPauses) write(ctx context.Context, kv jetstream.KeyValue, pause Pause) (holds Pause, changed bool, err error) {
	for range maxRaces {
		current, revision, err := s.read(ctx, kv, pause.Target)
		if err != nil {
			return Pause{}, false, err
		}
		next, changed := pause.Upon(current)
		if !changed {
			return current, false, nil
		}
		next.Revision, err = s.put(ctx, kv, next, revision)
		if lostRace(err) {
			continue
		}
		return next, err == nil, err
	}
	return Pause{}, false, fmt.Errorf("pause changed %d times meanwhile", maxRaces)
}

// put stores a pause in place of the one with that revision, 0 for none.
func (s *AppPauses) put(ctx context.Context, kv jetstream.KeyValue, pause Pause, revision uint64) (uint64, error) {
	value, err := json.Marshal(pause)
	if err == nil {
		value, err = s.signer.close(pausePrefix+pause.Target, value)
	}
	if err != nil {
		return 0, fmt.Errorf("encode pause: %w", err)
	}
	return ask(ctx, func(ctx context.Context) (uint64, error) {
		if revision == 0 {
			return kv.Create(ctx, pausePrefix+pause.Target, value)
		}
		return kv.Update(ctx, pausePrefix+pause.Target, value, revision)
	})
}

// align pauses the lanes' consumer as the pause on record says. The last call to the
// consumer wins, so each caller reads the record again afterwards: a caller that was
// overtaken by a later pause, or by its end, applies that one.
func (s *AppPauses) align(ctx context.Context, kv jetstream.KeyValue, target string) error {
	if target != TargetPublish {
		return nil
	}
	pause, revision, err := s.read(ctx, kv, target)
	for range maxRaces {
		if err != nil {
			return err
		}
		if err := s.pause(ctx, pause, pause.Target != ""); err != nil {
			return fmt.Errorf("pause consumer %s: %w", jetpost.ConsumerLanes, err)
		}
		applied := revision
		if pause, revision, err = s.read(ctx, kv, target); err == nil && revision == applied {
			return nil
		}
	}
	return fmt.Errorf("pause changed %d times meanwhile", maxRaces)
}

func (s *AppPauses) pause(ctx context.Context, pause Pause, paused bool) error {
	_, err := ask(ctx, func(ctx context.Context) (*jetstream.ConsumerPauseResponse, error) {
		stream := s.names.LanesStream()
		if !paused {
			return s.js.ResumeConsumer(ctx, stream, jetpost.ConsumerLanes)
		}
		until := pause.NextAt()
		if until.IsZero() {
			until = time.Now().Add(pauseForever)
		}
		return s.js.PauseConsumer(ctx, stream, jetpost.ConsumerLanes, until)
	})
	return err
}

// read returns the pause on record and the revision of its entry, 0 if there is none.
// An entry without a valid signature is the zero pause.
func (s *AppPauses) read(ctx context.Context, kv jetstream.KeyValue, target string) (Pause, uint64, error) {
	entry, err := ask(ctx, func(ctx context.Context) (jetstream.KeyValueEntry, error) {
		return kv.Get(ctx, pausePrefix+target)
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Pause{}, 0, nil
	}
	if err != nil {
		return Pause{}, 0, err
	}
	return s.decode(target, entry), entry.Revision(), nil
}

// decode accepts only signed values. A value that cannot be read is a pause without an
// end: somebody wanted to pause something, and a person can resume. An older worker
// writes a probe in another form, which is accepted.
func (s *AppPauses) decode(target string, entry jetstream.KeyValueEntry) Pause {
	value, believed := s.signer.open(entry.Key(), entry.Value())
	if !believed {
		return Pause{}
	}
	var is struct {
		Pause
		Probe bool `json:"probe"`
	}
	if err := json.Unmarshal(value, &is); err != nil {
		is.Pause = Pause{Reason: jetpost.Reason{Code: jetpost.CodeAppPaused, Detail: "unreadable pause: " + err.Error()}, Since: entry.Created()}
	}
	if is.Probe && is.NextProbeAt.IsZero() {
		is.NextProbeAt, is.Reason.Until = is.Reason.Until, time.Time{}
	}
	is.Target, is.Revision = target, entry.Revision()
	return is.Pause
}

func (s *AppPauses) bucket(ctx context.Context) (jetstream.KeyValue, error) {
	return ask(ctx, func(ctx context.Context) (jetstream.KeyValue, error) {
		return s.js.KeyValue(ctx, s.names.LimitsBucket())
	})
}
