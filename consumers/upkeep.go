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
	// bookWithin bounds one look into the ledger for a stop, or a note there.
	bookWithin = 5 * time.Second
	// bookRaces is how often a note in the ledger is tried that others overtake.
	bookRaces = 10

	// The names of what is kept.
	keptStops = "stop." // and the scope
	keptCron  = "cron"
	keptSeal  = "seal"
)

// stopBucket is the bucket in NATS, with the pause of the lanes' consumer.
type stopBucket interface {
	admission.Board
	Get(ctx context.Context, scope string) (publishers.Stop, bool, error)
	Clear(ctx context.Context, scope string) error
	Restore(ctx context.Context, stop publishers.Stop) (bool, error)
	Settle(ctx context.Context, now time.Time) (string, error)
	Sweep(ctx context.Context) ([]string, error)
	Watch(ctx context.Context) (<-chan publishers.Picture, error)
}

// keeper is the ledger's part.
type keeper interface {
	Kept(ctx context.Context) ([]store.Kept, error)
	Keep(ctx context.Context, k store.Kept) (bool, error)
}

// StopBook is where the app is stopped and resumed. The ledger holds the stops, and the
// bucket, which all workers watch, is their copy: what one of them was not told, or has
// lost, Mend tells it. A stop is told to the bucket first, since that is what stops
// the others; the end of one to the ledger first, so that nothing brings it back.
//
// It is safe for concurrent use, from any number of processes.
type StopBook struct {
	Board  stopBucket
	Ledger keeper
	Log    *slog.Logger
	// Silence is how long a watch may be silent; watchFor where zero.
	Silence time.Duration
}

// keptStop is a stop as the ledger holds it.
type keptStop struct {
	Stop publishers.Stop `json:"stop"`
	// Told tells that it stood in the bucket.
	Told bool `json:"told"`
	// Ended tells that it is over, since EndedAt.
	Ended   bool      `json:"ended"`
	EndedAt time.Time `json:"ended_at,omitzero"`

	version int64
}

// holds tells whether the bucket should have it.
func (k keptStop) holds(now time.Time) bool {
	return k.version > 0 && !k.Ended && k.Stop.Active(now)
}

// same tells whether two are one stop in one state, wherever they were read.
func same(a, b publishers.Stop) bool {
	a.Revision, b.Revision, a.MaxWait, b.MaxWait = 0, 0, 0, 0
	one, err := json.Marshal(a)
	other, otherErr := json.Marshal(b)
	return err == nil && otherErr == nil && string(one) == string(other)
}

func (b *StopBook) kept(ctx context.Context) (map[admission.Scope]keptStop, error) {
	ctx, cancel := context.WithTimeout(ctx, bookWithin)
	defer cancel()
	all, err := b.Ledger.Kept(ctx)
	if err != nil {
		return nil, err
	}
	stops := map[admission.Scope]keptStop{}
	for _, k := range all {
		scope, is := strings.CutPrefix(k.Name, keptStops)
		if !is {
			continue
		}
		stop := keptStop{}
		if err := json.Unmarshal(k.Value, &stop); err != nil {
			return nil, fmt.Errorf("read kept stop %s: %w", scope, err)
		}
		stop.version, stop.Stop.Scope = k.Version, scope
		stops[admission.Scope(scope)] = stop
	}
	return stops, nil
}

// keep notes a stop in place of the one with its version.
func (b *StopBook) keep(ctx context.Context, k keptStop) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, bookWithin)
	defer cancel()
	value, err := json.Marshal(k)
	if err != nil {
		return false, fmt.Errorf("encode stop: %w", err)
	}
	return b.Ledger.Keep(ctx, store.Kept{Name: keptStops + k.Stop.Scope, Value: value, Version: k.version})
}

// note changes what the ledger holds of a scope, whoever else does so too.
func (b *StopBook) note(ctx context.Context, scope admission.Scope, change func(keptStop) (keptStop, bool)) error {
	for range bookRaces {
		all, err := b.kept(ctx)
		if err != nil {
			return err
		}
		is := all[scope]
		next, changed := change(is)
		if !changed {
			return nil
		}
		next.version, next.Stop.Scope = is.version, string(scope)
		if ok, err := b.keep(ctx, next); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("stop %s changed %d times meanwhile", scope, bookRaces)
}

// resumed tells whether the app was resumed since the stop was wanted, so that one
// which could not be told before is not to be told any more.
func (b *StopBook) resumed(ctx context.Context, stop publishers.Stop) bool {
	if time.Since(stop.Since) < bookWithin {
		return false
	}
	all, err := b.kept(ctx)
	is := all[admission.Scope(stop.Scope)]
	return err == nil && is.Ended && is.EndedAt.After(stop.Since)
}

// Set implements the gate's board. Where NATS cannot be told the stop is kept, and
// Mend tells it. A stop that came late, and was resumed before, is none.
func (b *StopBook) Set(ctx context.Context, stop publishers.Stop) (publishers.Stop, bool, error) {
	if b.resumed(ctx, stop) {
		return publishers.Stop{}, false, nil
	}
	holds, changed, err := b.Board.Set(ctx, stop)
	keptErr := b.note(ctx, admission.Scope(stop.Scope), func(is keptStop) (keptStop, bool) {
		if err == nil {
			return keptStop{Stop: holds, Told: true}, is.Ended || !is.Told || !same(is.Stop, holds)
		}
		was := is.Stop
		if !is.holds(stop.Since) {
			was = publishers.Stop{}
		}
		next, changed := stop.Upon(was)
		return keptStop{Stop: next}, changed
	})
	switch {
	case err != nil && keptErr == nil:
		return publishers.Stop{}, false, fmt.Errorf("%w; the stop is kept in the ledger, and told once NATS answers", err)
	case err != nil:
		return publishers.Stop{}, false, errors.Join(err, keptErr)
	case keptErr != nil: // Mend copies it
		b.Log.Warn("stop.not_kept", "scope", stop.Scope, "error", keptErr)
	}
	return holds, changed, nil
}

// Probe implements the gate's board. Who probes is the bucket's alone.
func (b *StopBook) Probe(ctx context.Context, scope, worker string, now, until time.Time) (publishers.Stop, bool, error) {
	return b.Board.Probe(ctx, scope, worker, now, until)
}

// End implements the gate's board.
func (b *StopBook) End(ctx context.Context, stop publishers.Stop) (bool, error) {
	if err := b.tombstone(ctx, stop); err != nil {
		return false, fmt.Errorf("resume %s: %w", stop.Scope, err)
	}
	ended, err := b.Board.End(ctx, stop)
	if err != nil || ended {
		return ended, err
	}
	// Another one stands by now.
	_, err = b.mendScope(ctx, admission.Scope(stop.Scope), time.Now())
	return false, err
}

func (b *StopBook) tombstone(ctx context.Context, stop publishers.Stop) error {
	return b.note(ctx, admission.Scope(stop.Scope), func(is keptStop) (keptStop, bool) {
		return keptStop{Stop: stop, Told: true, Ended: true, EndedAt: time.Now()}, !is.Ended || !same(is.Stop, stop)
	})
}

// Clear ends the stop of a scope for everybody, whether or not there is one, and
// returns it.
func (b *StopBook) Clear(ctx context.Context, scope admission.Scope) (was publishers.Stop, err error) {
	stop, there, err := b.Board.Get(ctx, string(scope))
	if err != nil {
		return publishers.Stop{}, err
	}
	err = b.note(ctx, scope, func(is keptStop) (keptStop, bool) {
		if !there && is.version > 0 && !is.Ended {
			stop = is.Stop // which the bucket was not told of, or has lost
		}
		return keptStop{Stop: stop, Told: true, Ended: true, EndedAt: time.Now()}, is.version > 0 || there
	})
	if err != nil {
		return publishers.Stop{}, fmt.Errorf("resume %s: %w", scope, err)
	}
	return stop, b.Board.Clear(ctx, string(scope))
}

// Mend compares the ledger, the bucket and the pause of the lanes' consumer, and makes
// each what it should be. It returns a sentence for each thing that was wrong.
func (b *StopBook) Mend(ctx context.Context, now time.Time) (mended []string, err error) {
	forged, err := b.Board.Sweep(ctx)
	for _, scope := range forged {
		mended = append(mended, "what stood for a stop of "+scope+" was written by no worker")
	}
	failures := []error{err}
	for _, scope := range publishers.Scopes() {
		what, err := b.mendScope(ctx, admission.Scope(scope), now)
		if what != "" {
			mended = append(mended, what)
		}
		failures = append(failures, err)
	}
	wrong, err := b.Board.Settle(ctx, now)
	if wrong != "" {
		mended = append(mended, "the pause of the consumer lanes: "+wrong)
	}
	return mended, errors.Join(append(failures, err)...)
}

// mendScope reads the bucket first: a stop that is resumed after that has ended in the
// ledger, too, once it is read there.
func (b *StopBook) mendScope(ctx context.Context, scope admission.Scope, now time.Time) (mended string, err error) {
	stop, there, err := b.Board.Get(ctx, string(scope))
	if err != nil {
		return "", err
	}
	all, err := b.kept(ctx)
	if err != nil {
		return "", err
	}
	is := all[scope]
	name := "the stop of " + string(scope)
	switch {
	case there && is.Ended && (same(is.Stop, stop) || stop.Since.Add(bookWithin).Before(is.EndedAt)):
		if ended, err := b.Board.End(ctx, stop); err != nil || !ended {
			return "", err
		}
		return name + " had been resumed, and was not ended", nil
	case is.holds(now) && !is.Told:
		holds, _, err := b.Board.Set(ctx, is.Stop)
		if err != nil {
			return "", err
		}
		_, err = b.keep(ctx, keptStop{Stop: holds, Told: true, version: is.version})
		return name + " had not been told", err
	case there && !same(is.Stop, stop):
		// A worker that could not reach the ledger has set it, or it is being probed.
		_, err := b.keep(ctx, keptStop{Stop: stop, Told: true, version: is.version})
		return "", err
	case !there && is.holds(now):
		if restored, err := b.Board.Restore(ctx, is.Stop); err != nil || !restored {
			return "", err
		}
		return name + " was lost", nil
	case !there && is.version > 0 && !is.Ended:
		is.Ended, is.EndedAt = true, is.Stop.Reason.Until
		_, err := b.keep(ctx, is)
		return "", err
	}
	return "", nil
}

// complete adds to a picture of the bucket what the ledger knows to stand: the bucket
// may be one that was made anew. Where the ledger cannot be asked, what was known
// before stands.
func (b *StopBook) complete(ctx context.Context, picture publishers.Picture, before []publishers.Stop) publishers.Picture {
	stops, err := KeptStops(ctx, b.Ledger, time.Now())
	if err != nil {
		b.Log.Warn("stops.not_compared", "error", err)
		stops = before
	}
	return with(picture, stops)
}

// with is a picture with those of the stops in addition whose scopes it does not show.
func with(picture publishers.Picture, stops []publishers.Stop) publishers.Picture {
	shown := picture.Stops
	for _, stop := range stops {
		if !slices.ContainsFunc(shown, func(s publishers.Stop) bool { return s.Scope == stop.Scope }) {
			picture.Stops = append(slices.Clone(picture.Stops), stop)
		}
	}
	return picture
}

// KeptStops are the stops in force, as the ledger has them.
func KeptStops(ctx context.Context, ledger keeper, now time.Time) (stops []publishers.Stop, err error) {
	all, err := (&StopBook{Ledger: ledger}).kept(ctx)
	for _, scope := range publishers.Scopes() {
		if is := all[admission.Scope(scope)]; is.holds(now) {
			stops = append(stops, is.Stop)
		}
	}
	return stops, err
}

// Follow tells a gate of the stops, at once and with each change, until the context
// ends. A watch that ends, or is silent for a minute, is begun again; until it is, the
// ledger tells.
func (b *StopBook) Follow(ctx context.Context, gate *admission.Gate, health *Health) {
	var last publishers.Picture
	learn := func(picture publishers.Picture) {
		// What is new counts at once; what is missing, once the ledger says that it is over.
		gate.Learn(with(picture, last.Stops))
		last = b.complete(ctx, picture, last.Stops)
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
			learn(publishers.Picture{Revision: last.Revision})
			pause(ctx, stallMax)
		}
	}
}

// watch passes pictures on until none has come for that long, or no more can. An
// error says that it could not begin.
func (b *StopBook) watch(ctx context.Context, silence time.Duration, learn func(publishers.Picture)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pictures, err := b.Board.Watch(ctx)
	if err != nil {
		return err
	}
	silent := time.NewTimer(silence)
	defer silent.Stop()
	seen := false
	for {
		select {
		case picture, ok := <-pictures:
			if !ok {
				if !seen {
					return errors.New("the watch of stops ended before it told anything")
				}
				return nil
			}
			learn(picture)
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
	Stops  *StopBook
	Ledger keeper
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
	mended, err := u.Stops.Mend(ctx, now)
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

// LedgerSeal is the seal of this ledger, which the first to ask makes.
func LedgerSeal(ctx context.Context, ledger keeper) (publishers.Seal, error) {
	for range bookRaces {
		all, err := ledger.Kept(ctx)
		if err != nil {
			return publishers.Seal{}, err
		}
		for _, k := range all {
			var key []byte
			if k.Name != keptSeal {
				continue
			}
			if err := json.Unmarshal(k.Value, &key); err != nil || len(key) != publishers.SealKeySize {
				return publishers.Seal{}, errors.New("the key that stops are sealed with cannot be read in the ledger")
			}
			return publishers.NewSeal(key), nil
		}
		key := make([]byte, publishers.SealKeySize)
		rand.Read(key)
		value, err := json.Marshal(key)
		if err != nil {
			return publishers.Seal{}, fmt.Errorf("encode key: %w", err)
		}
		if _, err := ledger.Keep(ctx, store.Kept{Name: keptSeal, Value: value}); err != nil {
			return publishers.Seal{}, err
		}
	}
	return publishers.Seal{}, fmt.Errorf("the key that stops are sealed with changed %d times meanwhile", bookRaces)
}

// KeptCron is the refresh schedule that the ledger holds; nil where it holds none yet.
func KeptCron(ctx context.Context, ledger keeper) (*publishers.Cron, int64, error) {
	all, err := ledger.Kept(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, k := range all {
		if k.Name == keptCron {
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
func KeepCron(ctx context.Context, ledger keeper, cron publishers.Cron) error {
	value, err := json.Marshal(cron)
	if err != nil {
		return fmt.Errorf("encode schedule: %w", err)
	}
	for range bookRaces {
		is, version, err := KeptCron(ctx, ledger)
		if err != nil || is != nil && *is == cron {
			return err
		}
		if ok, err := ledger.Keep(ctx, store.Kept{Name: keptCron, Value: value, Version: version}); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("kept schedule changed %d times meanwhile", bookRaces)
}

// MendCron makes the refresh schedule in NATS the one that the ledger holds. A ledger
// that holds none yet takes over what stands there.
func MendCron(ctx context.Context, js jetstream.JetStream, ledger keeper, cfg publishers.TopologyConfig) (changed bool, err error) {
	is, _, err := KeptCron(ctx, ledger)
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
