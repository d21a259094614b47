package consumers

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost/consumers/admission"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

const (
	// watchFor is how long a watch may be silent before it is begun again: one whose
	// bucket was deleted says nothing.
	watchFor = time.Minute
	// checkEvery is how often the streams, the consumers and the schedule are compared
	// with what they should be; the stops and their pause are with each sweep.
	checkEvery = 30 * time.Second
	// upkeepWithin bounds one round of upkeep: the sweep that follows is not kept from
	// its work by a NATS that does not answer.
	upkeepWithin = 15 * time.Second
	// noteWithin bounds one look into the ledger for a stop, or a note there.
	noteWithin = 5 * time.Second
	// noteRaces is how often a note in the ledger is tried that others overtake.
	noteRaces = 10

	// The names of what is kept.
	desiredPauses     = "pause." // and the target
	desiredCron       = "cron"
	desiredSigningKey = "signing_key"
)

// pauseBucket is the bucket in NATS, with the pause of the lanes' consumer.
type pauseBucket interface {
	admission.PauseStore
	Get(ctx context.Context, target string) (publishers.Pause, bool, error)
	Clear(ctx context.Context, target string) error
	Restore(ctx context.Context, pause publishers.Pause) (bool, error)
	Settle(ctx context.Context, now time.Time) (string, error)
	Sweep(ctx context.Context) ([]string, error)
	Watch(ctx context.Context) (<-chan publishers.Pauses, error)
}

// keeper is the ledger's part.
type desiredStore interface {
	Desired(ctx context.Context) ([]store.Desired, error)
	Keep(ctx context.Context, k store.Desired) (bool, error)
}

// AppPauseControl is where the app is stopped and resumed. The ledger holds the stops, and the
// bucket, which all workers watch, is their copy: what one of them was not told, or has
// lost, Mend tells it. A stop is told to the bucket first, since that is what stops
// the others; the end of one to the ledger first, so that nothing brings it back.
//
// It is safe for concurrent use, from any number of processes.
type AppPauseControl struct {
	Bucket pauseBucket
	Ledger desiredStore
	Log    *slog.Logger
	// Silence is how long a watch may be silent; watchFor where zero.
	Silence time.Duration
}

// desiredPause is a stop as the ledger holds it.
type desiredPause struct {
	Pause publishers.Pause `json:"pause"`
	// Told tells that it stood in the bucket.
	Told bool `json:"told"`
	// Ended tells that it is over, since EndedAt.
	Ended   bool      `json:"ended"`
	EndedAt time.Time `json:"ended_at,omitzero"`

	version int64
}

// holds tells whether the bucket should have it.
func (k desiredPause) holds(now time.Time) bool {
	return k.version > 0 && !k.Ended && k.Pause.Active(now)
}

// same tells whether two are one stop in one state, wherever they were read.
func same(a, b publishers.Pause) bool {
	a.Revision, b.Revision, a.MaxWait, b.MaxWait = 0, 0, 0, 0
	one, err := json.Marshal(a)
	other, otherErr := json.Marshal(b)
	return err == nil && otherErr == nil && string(one) == string(other)
}

func (b *AppPauseControl) desired(ctx context.Context) (map[admission.Target]desiredPause, error) {
	ctx, cancel := context.WithTimeout(ctx, noteWithin)
	defer cancel()
	all, err := b.Ledger.Desired(ctx)
	if err != nil {
		return nil, err
	}
	pauses := map[admission.Target]desiredPause{}
	for _, k := range all {
		target, is := strings.CutPrefix(k.Name, desiredPauses)
		if !is {
			continue
		}
		pause := desiredPause{}
		if err := json.Unmarshal(k.Value, &pause); err != nil {
			return nil, fmt.Errorf("read kept stop %s: %w", target, err)
		}
		pause.version, pause.Pause.Target = k.Version, target
		pauses[admission.Target(target)] = pause
	}
	return pauses, nil
}

// keep notes a stop in place of the one with its version.
func (b *AppPauseControl) keep(ctx context.Context, k desiredPause) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, noteWithin)
	defer cancel()
	value, err := json.Marshal(k)
	if err != nil {
		return false, fmt.Errorf("encode stop: %w", err)
	}
	return b.Ledger.Keep(ctx, store.Desired{Name: desiredPauses + k.Pause.Target, Value: value, Version: k.version})
}

// note changes what the ledger holds of a target, whoever else does so too.
func (b *AppPauseControl) note(ctx context.Context, target admission.Target, change func(desiredPause) (desiredPause, bool)) error {
	for range noteRaces {
		all, err := b.desired(ctx)
		if err != nil {
			return err
		}
		is := all[target]
		next, changed := change(is)
		if !changed {
			return nil
		}
		next.version, next.Pause.Target = is.version, string(target)
		if ok, err := b.keep(ctx, next); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("stop %s changed %d times meanwhile", target, noteRaces)
}

// resumed tells whether the app was resumed since the stop was wanted, so that one
// which could not be told before is not to be told any more.
func (b *AppPauseControl) resumed(ctx context.Context, pause publishers.Pause) bool {
	if time.Since(pause.Since) < noteWithin {
		return false
	}
	all, err := b.desired(ctx)
	is := all[admission.Target(pause.Target)]
	return err == nil && is.Ended && is.EndedAt.After(pause.Since)
}

// Set implements the gate's board. Where NATS cannot be told the stop is kept, and
// Mend tells it. A stop that came late, and was resumed before, is none.
func (b *AppPauseControl) Set(ctx context.Context, pause publishers.Pause) (publishers.Pause, bool, error) {
	if b.resumed(ctx, pause) {
		return publishers.Pause{}, false, nil
	}
	holds, changed, err := b.Bucket.Set(ctx, pause)
	keptErr := b.note(ctx, admission.Target(pause.Target), func(is desiredPause) (desiredPause, bool) {
		if err == nil {
			return desiredPause{Pause: holds, Told: true}, is.Ended || !is.Told || !same(is.Pause, holds)
		}
		was := is.Pause
		if !is.holds(pause.Since) {
			was = publishers.Pause{}
		}
		next, changed := pause.Upon(was)
		return desiredPause{Pause: next}, changed
	})
	switch {
	case err != nil && keptErr == nil:
		return publishers.Pause{}, false, fmt.Errorf("%w; the stop is kept in the ledger, and told once NATS answers", err)
	case err != nil:
		return publishers.Pause{}, false, errors.Join(err, keptErr)
	case keptErr != nil: // Mend copies it
		b.Log.Warn("app.pause_not_stored", "target", pause.Target, "error", keptErr)
	}
	return holds, changed, nil
}

// Probe implements the gate's board. Who probes is the bucket's alone.
func (b *AppPauseControl) Probe(ctx context.Context, target, worker string, now, until time.Time) (publishers.Pause, bool, error) {
	return b.Bucket.Probe(ctx, target, worker, now, until)
}

// End implements the gate's board.
func (b *AppPauseControl) End(ctx context.Context, pause publishers.Pause) (bool, error) {
	if err := b.tombstone(ctx, pause); err != nil {
		return false, fmt.Errorf("resume %s: %w", pause.Target, err)
	}
	ended, err := b.Bucket.End(ctx, pause)
	if err != nil || ended {
		return ended, err
	}
	// Another one stands by now.
	_, err = b.mendTarget(ctx, admission.Target(pause.Target), time.Now())
	return false, err
}

func (b *AppPauseControl) tombstone(ctx context.Context, pause publishers.Pause) error {
	return b.note(ctx, admission.Target(pause.Target), func(is desiredPause) (desiredPause, bool) {
		return desiredPause{Pause: pause, Told: true, Ended: true, EndedAt: time.Now()}, !is.Ended || !same(is.Pause, pause)
	})
}

// Clear ends the stop of a target for everybody, whether or not there is one, and
// returns it.
func (b *AppPauseControl) Clear(ctx context.Context, target admission.Target) (was publishers.Pause, err error) {
	pause, there, err := b.Bucket.Get(ctx, string(target))
	if err != nil {
		return publishers.Pause{}, err
	}
	err = b.note(ctx, target, func(is desiredPause) (desiredPause, bool) {
		if !there && is.version > 0 && !is.Ended {
			pause = is.Pause // which the bucket was not told of, or has lost
		}
		return desiredPause{Pause: pause, Told: true, Ended: true, EndedAt: time.Now()}, is.version > 0 || there
	})
	if err != nil {
		return publishers.Pause{}, fmt.Errorf("resume %s: %w", target, err)
	}
	return pause, b.Bucket.Clear(ctx, string(target))
}

// Mend compares the ledger, the bucket and the pause of the lanes' consumer, and makes
// each what it should be. It returns a sentence for each thing that was wrong.
func (b *AppPauseControl) Mend(ctx context.Context, now time.Time) (mended []string, err error) {
	forged, err := b.Bucket.Sweep(ctx)
	for _, target := range forged {
		mended = append(mended, "what stood for a stop of "+target+" was written by no worker")
	}
	failures := []error{err}
	for _, target := range publishers.Targets() {
		what, err := b.mendTarget(ctx, admission.Target(target), now)
		if what != "" {
			mended = append(mended, what)
		}
		failures = append(failures, err)
	}
	wrong, err := b.Bucket.Settle(ctx, now)
	if wrong != "" {
		mended = append(mended, "the pause of the consumer lanes: "+wrong)
	}
	return mended, errors.Join(append(failures, err)...)
}

// mendTarget reads the bucket first: a stop that is resumed after that has ended in the
// ledger, too, once it is read there.
func (b *AppPauseControl) mendTarget(ctx context.Context, target admission.Target, now time.Time) (mended string, err error) {
	pause, there, err := b.Bucket.Get(ctx, string(target))
	if err != nil {
		return "", err
	}
	all, err := b.desired(ctx)
	if err != nil {
		return "", err
	}
	is := all[target]
	name := "the stop of " + string(target)
	switch {
	case there && is.Ended && (same(is.Pause, pause) || pause.Since.Add(noteWithin).Before(is.EndedAt)):
		if ended, err := b.Bucket.End(ctx, pause); err != nil || !ended {
			return "", err
		}
		return name + " had been resumed, and was not ended", nil
	case is.holds(now) && !is.Told:
		holds, _, err := b.Bucket.Set(ctx, is.Pause)
		if err != nil {
			return "", err
		}
		_, err = b.keep(ctx, desiredPause{Pause: holds, Told: true, version: is.version})
		return name + " had not been told", err
	case there && !same(is.Pause, pause):
		// A worker that could not reach the ledger has set it, or it is being probed.
		_, err := b.keep(ctx, desiredPause{Pause: pause, Told: true, version: is.version})
		return "", err
	case !there && is.holds(now):
		if restored, err := b.Bucket.Restore(ctx, is.Pause); err != nil || !restored {
			return "", err
		}
		return name + " was lost", nil
	case !there && is.version > 0 && !is.Ended:
		is.Ended, is.EndedAt = true, is.Pause.Reason.Until
		_, err := b.keep(ctx, is)
		return "", err
	}
	return "", nil
}

// complete adds to a picture of the bucket what the ledger knows to stand: the bucket
// may be one that was made anew. Where the ledger cannot be asked, what was known
// before stands.
func (b *AppPauseControl) complete(ctx context.Context, view publishers.Pauses, before []publishers.Pause) publishers.Pauses {
	pauses, err := DesiredPauses(ctx, b.Ledger, time.Now())
	if err != nil {
		b.Log.Warn("app.pauses_not_compared", "error", err)
		pauses = before
	}
	return with(view, pauses)
}

// with is a picture with those of the stops in addition whose scopes it does not show.
func with(view publishers.Pauses, pauses []publishers.Pause) publishers.Pauses {
	shown := view.Pauses
	for _, pause := range pauses {
		if !slices.ContainsFunc(shown, func(s publishers.Pause) bool { return s.Target == pause.Target }) {
			view.Pauses = append(slices.Clone(view.Pauses), pause)
		}
	}
	return view
}

// DesiredPauses are the stops in force, as the ledger has them.
func DesiredPauses(ctx context.Context, ledger desiredStore, now time.Time) (pauses []publishers.Pause, err error) {
	all, err := (&AppPauseControl{Ledger: ledger}).desired(ctx)
	for _, target := range publishers.Targets() {
		if is := all[admission.Target(target)]; is.holds(now) {
			pauses = append(pauses, is.Pause)
		}
	}
	return pauses, err
}

// Follow tells a gate of the stops, at once and with each change, until the context
// ends. A watch that ends, or is silent for a minute, is begun again; until it is, the
// ledger tells.
func (b *AppPauseControl) Follow(ctx context.Context, gate *admission.Gate, health *Health) {
	var last publishers.Pauses
	learn := func(view publishers.Pauses) {
		// What is new counts at once; what is missing, once the ledger says that it is over.
		gate.Learn(with(view, last.Pauses))
		last = b.complete(ctx, view, last.Pauses)
		if ctx.Err() == nil {
			gate.Learn(last)
		}
	}
	for ctx.Err() == nil {
		err := b.watch(ctx, cmp.Or(b.Silence, watchFor), learn)
		if ctx.Err() != nil {
			return
		}
		health.Set("stops", err)
		if err != nil {
			b.Log.Warn("stops.watch_failed", "error", err)
			learn(publishers.Pauses{Revision: last.Revision})
			pause(ctx, stallMax)
		}
	}
}

// watch passes pictures on until none has come for that long, or no more can. An
// error says that it could not begin.
func (b *AppPauseControl) watch(ctx context.Context, silence time.Duration, learn func(publishers.Pauses)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	snapshots, err := b.Bucket.Watch(ctx)
	if err != nil {
		return err
	}
	silent := time.NewTimer(silence)
	defer silent.Stop()
	seen := false
	for {
		select {
		case view, ok := <-snapshots:
			if !ok {
				if !seen {
					return errors.New("the watch of stops ended before it told anything")
				}
				return nil
			}
			learn(view)
			seen = true
			silent.Reset(silence)
		case <-silent.C:
			if !seen {
				return errors.New("the watch of stops tells nothing")
			}
			return nil
		}
	}
}

// Upkeep compares what stands in NATS with what should, and mends what workers may:
// the stops, the pause of the lanes' consumer, the refresh schedule. Streams and
// consumers it only reports.
type Upkeep struct {
	Pauses *AppPauseControl
	Ledger desiredStore
	JS     jetstream.JetStream
	// Topology is what Setup makes for this ledger.
	Topology publishers.TopologyConfig
	Health   *Health
	Log      *slog.Logger

	checked time.Time
}

// Run looks after everything once.
func (u *Upkeep) Run(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, upkeepWithin)
	defer cancel()
	mended, err := u.Pauses.Mend(ctx, now)
	for _, what := range mended {
		u.Log.Warn("upkeep.mended", "what", what)
	}
	if now.Sub(u.checked) < checkEvery {
		return err
	}
	u.checked = now
	changed, cronErr := MendCron(ctx, u.JS, u.Ledger, u.Topology)
	if changed {
		u.Log.Warn("upkeep.mended", "what", "the refresh schedule was another one, or was lost")
	}
	checkErr := publishers.Check(ctx, u.JS, u.Topology)
	u.Health.Set("setup", checkErr)
	if checkErr != nil {
		u.Log.Error("upkeep.not_set_up", "error", checkErr, "do", publishers.Hint(checkErr))
	}
	return errors.Join(err, cronErr)
}

// Rest forgets what it has reported: another worker looks after everything.
func (u *Upkeep) Rest() {
	u.Health.Set("setup", nil)
	u.checked = time.Time{}
}

// LedgerSigner is the seal of this ledger, which the first to ask makes.
func LedgerSigner(ctx context.Context, ledger desiredStore) (publishers.Signer, error) {
	for range noteRaces {
		all, err := ledger.Desired(ctx)
		if err != nil {
			return publishers.Signer{}, err
		}
		for _, k := range all {
			var key []byte
			if k.Name != desiredSigningKey {
				continue
			}
			if err := json.Unmarshal(k.Value, &key); err != nil || len(key) != publishers.SigningKeySize {
				return publishers.Signer{}, errors.New("the key that stops are sealed with cannot be read in the ledger")
			}
			return publishers.NewSigner(key), nil
		}
		key := make([]byte, publishers.SigningKeySize)
		rand.Read(key)
		value, err := json.Marshal(key)
		if err != nil {
			return publishers.Signer{}, fmt.Errorf("encode key: %w", err)
		}
		if _, err := ledger.Keep(ctx, store.Desired{Name: desiredSigningKey, Value: value}); err != nil {
			return publishers.Signer{}, err
		}
	}
	return publishers.Signer{}, fmt.Errorf("the key that stops are sealed with changed %d times meanwhile", noteRaces)
}

// DesiredCron is the refresh schedule that the ledger holds; nil where it holds none yet.
func DesiredCron(ctx context.Context, ledger desiredStore) (*publishers.Cron, int64, error) {
	all, err := ledger.Desired(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, k := range all {
		if k.Name == desiredCron {
			var cron publishers.Cron
			if err := json.Unmarshal(k.Value, &cron); err != nil {
				return nil, 0, fmt.Errorf("read kept schedule: %w", err)
			}
			return &cron, k.Version, nil
		}
	}
	return nil, 0, nil
}

// KeepCron notes the refresh schedule of the configuration, which NATS has taken.
func KeepCron(ctx context.Context, ledger desiredStore, cron publishers.Cron) error {
	value, err := json.Marshal(cron)
	if err != nil {
		return fmt.Errorf("encode schedule: %w", err)
	}
	for range noteRaces {
		is, version, err := DesiredCron(ctx, ledger)
		if err != nil || is != nil && *is == cron {
			return err
		}
		if ok, err := ledger.Keep(ctx, store.Desired{Name: desiredCron, Value: value, Version: version}); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("kept schedule changed %d times meanwhile", noteRaces)
}

// MendCron makes the refresh schedule in NATS the one that the ledger holds. A ledger
// that holds none yet takes over what stands there.
func MendCron(ctx context.Context, js jetstream.JetStream, ledger desiredStore, cfg publishers.TopologyConfig) (changed bool, err error) {
	is, _, err := DesiredCron(ctx, ledger)
	if err != nil {
		return false, err
	}
	if is == nil {
		if is, _, err = publishers.ReadCron(ctx, js, cfg.Names); err != nil {
			return false, err
		}
		if is == nil {
			cron, err := cfg.Cron()
			if err != nil {
				return false, err
			}
			is = &cron
		}
		if err := KeepCron(ctx, ledger, *is); err != nil {
			return false, err
		}
	}
	return publishers.SetCron(ctx, js, cfg.WithCron(*is))
}
