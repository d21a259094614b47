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

	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

const (
	// watchFor is how long a watch may be silent before it is started again. A watch whose
	// bucket was deleted stays silent.
	watchFor = time.Minute
	// checkEvery is how often the streams, the consumers and the schedule are compared
	// with their desired state. The app pauses, and the pause of the lanes' consumer, are
	// compared with each sweep.
	checkEvery = 30 * time.Second
	// upkeepWithin bounds one run of upkeep, so that a NATS server that does not answer
	// does not delay the rest of the sweep.
	upkeepWithin = 15 * time.Second
	// noteWithin bounds one read or write of a pause in the ledger.
	noteWithin = 5 * time.Second
	// noteRaces is how often a write to the ledger is retried after another process has
	// changed the same entry.
	noteRaces = 10

	// The names of the desired state.
	desiredPauses     = "pause." // followed by the target
	desiredCron       = "cron"
	desiredSigningKey = "signing_key"
)

// PauseBucket is the bucket in NATS with the app pauses. It also pauses the lanes' consumer.
type PauseBucket interface {
	admission.PauseStore
	Get(ctx context.Context, target string) (publishers.Pause, bool, error)
	Clear(ctx context.Context, target string) error
	Restore(ctx context.Context, pause publishers.Pause) (bool, error)
	Settle(ctx context.Context, now time.Time) (string, error)
	Sweep(ctx context.Context) ([]string, error)
	Watch(ctx context.Context) (<-chan publishers.Pauses, error)
}

// DesiredStore holds the ledger calls about the desired state.
type DesiredStore interface {
	Desired(ctx context.Context) ([]store.Desired, error)
	Keep(ctx context.Context, k store.Desired) (bool, error)
}

// AppPauseControl pauses and resumes the app. The ledger holds the desired pauses. The bucket
// in NATS, which all workers watch, is a copy, and Mend makes the two agree. A pause is
// written to the bucket first, because that makes all workers pause. The end of a pause is
// written to the ledger first, so that Mend does not restore the pause.
//
// It is safe for concurrent use by any number of processes.
type AppPauseControl struct {
	Bucket PauseBucket
	Ledger DesiredStore
	Log    *slog.Logger
	// Silence is how long a watch may be silent; watchFor if zero.
	Silence time.Duration
}

// desiredPause is a pause in the ledger.
type desiredPause struct {
	Pause publishers.Pause `json:"pause"`
	// Told is true once the pause was stored in the bucket.
	Told bool `json:"told"`
	// Ended is true once the pause is over, since EndedAt.
	Ended   bool      `json:"ended"`
	EndedAt time.Time `json:"ended_at,omitzero"`

	version int64
}

// holds reports whether the bucket should have the pause.
func (k desiredPause) holds(now time.Time) bool {
	return k.version > 0 && !k.Ended && k.Pause.Active(now)
}

// same reports whether a and b are the same pause in the same state. Either may be from the
// ledger or from the bucket.
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
			return nil, fmt.Errorf("decode the ledger's pause of %s: %w", target, err)
		}
		pause.version, pause.Pause.Target = k.Version, target
		pauses[admission.Target(target)] = pause
	}
	return pauses, nil
}

// keep writes a pause to the ledger. It returns false if the stored version is another one.
func (b *AppPauseControl) keep(ctx context.Context, k desiredPause) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, noteWithin)
	defer cancel()
	value, err := json.Marshal(k)
	if err != nil {
		return false, fmt.Errorf("encode pause: %w", err)
	}
	return b.Ledger.Keep(ctx, store.Desired{Name: desiredPauses + k.Pause.Target, Value: value, Version: k.version})
}

// note changes the pause of a target in the ledger. It retries if another process changes the
// same pause.
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
	return fmt.Errorf("write pause of %s: other processes changed it %d times meanwhile; try again", target, noteRaces)
}

// resumed reports whether the app was resumed after the time of the pause, which could not be
// stored until now and must not be stored any more.
func (b *AppPauseControl) resumed(ctx context.Context, pause publishers.Pause) bool {
	if time.Since(pause.Since) < noteWithin {
		return false
	}
	all, err := b.desired(ctx)
	is := all[admission.Target(pause.Target)]
	return err == nil && is.Ended && is.EndedAt.After(pause.Since)
}

// Set implements admission.PauseStore. If NATS does not answer, Set stores the pause in the
// ledger, and Mend copies it to the bucket later. A pause that comes late is ignored if the
// app was resumed meanwhile.
func (b *AppPauseControl) Set(ctx context.Context, pause publishers.Pause) (publishers.Pause, bool, error) {
	if b.resumed(ctx, pause) {
		return publishers.Pause{}, false, nil
	}
	holds, changed, err := b.Bucket.Set(ctx, pause)
	noteErr := b.note(ctx, admission.Target(pause.Target), func(is desiredPause) (desiredPause, bool) {
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
	case err != nil && noteErr == nil:
		return publishers.Pause{}, false, fmt.Errorf("%w; the pause is stored in the ledger, and takes effect for all workers once NATS answers", err)
	case err != nil:
		return publishers.Pause{}, false, errors.Join(err, noteErr)
	case noteErr != nil: // Mend copies it
		b.Log.Warn("app.pause_not_stored", "target", pause.Target, "error", noteErr)
	}
	return holds, changed, nil
}

// Probe implements admission.PauseStore. The claim of a probe is stored only in the bucket.
func (b *AppPauseControl) Probe(ctx context.Context, target, worker string, now, until time.Time) (publishers.Pause, bool, error) {
	return b.Bucket.Probe(ctx, target, worker, now, until)
}

// End implements admission.PauseStore.
func (b *AppPauseControl) End(ctx context.Context, pause publishers.Pause) (bool, error) {
	if err := b.tombstone(ctx, pause); err != nil {
		return false, fmt.Errorf("resume %s: %w", pause.Target, err)
	}
	ended, err := b.Bucket.End(ctx, pause)
	if err != nil || ended {
		return ended, err
	}
	// Another pause is stored by now.
	_, err = b.mendTarget(ctx, admission.Target(pause.Target), time.Now())
	return false, err
}

func (b *AppPauseControl) tombstone(ctx context.Context, pause publishers.Pause) error {
	return b.note(ctx, admission.Target(pause.Target), func(is desiredPause) (desiredPause, bool) {
		return desiredPause{Pause: pause, Told: true, Ended: true, EndedAt: time.Now()}, !is.Ended || !same(is.Pause, pause)
	})
}

// Clear ends the pause of a target for all workers and returns it. It is no error if there is
// none.
func (b *AppPauseControl) Clear(ctx context.Context, target admission.Target) (was publishers.Pause, err error) {
	pause, there, err := b.Bucket.Get(ctx, string(target))
	if err != nil {
		return publishers.Pause{}, err
	}
	err = b.note(ctx, target, func(is desiredPause) (desiredPause, bool) {
		if !there && is.version > 0 && !is.Ended {
			pause = is.Pause // the bucket never had it, or has lost it
		}
		return desiredPause{Pause: pause, Told: true, Ended: true, EndedAt: time.Now()}, is.version > 0 || there
	})
	if err != nil {
		return publishers.Pause{}, fmt.Errorf("resume %s: %w", target, err)
	}
	return pause, b.Bucket.Clear(ctx, string(target))
}

// Mend compares the ledger, the bucket and the pause of the lanes' consumer, and corrects
// them. It returns a sentence for each correction.
func (b *AppPauseControl) Mend(ctx context.Context, now time.Time) (mended []string, err error) {
	forged, err := b.Bucket.Sweep(ctx)
	for _, target := range forged {
		mended = append(mended, "the stored pause of "+target+" was not written by a worker")
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

// mendTarget reads the bucket before the ledger: a pause that is resumed after the first read
// has already ended in the ledger at the second one.
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
	name := "the pause of " + string(target)
	switch {
	case there && is.Ended && (same(is.Pause, pause) || pause.Since.Add(noteWithin).Before(is.EndedAt)):
		if ended, err := b.Bucket.End(ctx, pause); err != nil || !ended {
			return "", err
		}
		return name + " was resumed, but was still stored in NATS", nil
	case is.holds(now) && !is.Told:
		holds, _, err := b.Bucket.Set(ctx, is.Pause)
		if err != nil {
			return "", err
		}
		_, err = b.keep(ctx, desiredPause{Pause: holds, Told: true, version: is.version})
		return name + " was not stored in NATS", err
	case there && !same(is.Pause, pause):
		// A worker that could not reach the ledger has set it, or a worker probes it.
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

// complete adds the pauses of the ledger to a snapshot of the bucket, because the bucket may
// have been created again. If the ledger does not answer, it adds those that were known
// before.
func (b *AppPauseControl) complete(ctx context.Context, view publishers.Pauses, before []publishers.Pause) publishers.Pauses {
	pauses, err := DesiredPauses(ctx, b.Ledger, time.Now())
	if err != nil {
		b.Log.Warn("app.pauses_not_compared", "error", err)
		pauses = before
	}
	return with(view, pauses)
}

// with returns a snapshot to which the pauses are added whose targets it does not show.
func with(view publishers.Pauses, pauses []publishers.Pause) publishers.Pauses {
	shown := view.Pauses
	for _, pause := range pauses {
		if !slices.ContainsFunc(shown, func(s publishers.Pause) bool { return s.Target == pause.Target }) {
			view.Pauses = append(slices.Clone(view.Pauses), pause)
		}
	}
	return view
}

// DesiredPauses returns the pauses in force according to the ledger.
func DesiredPauses(ctx context.Context, ledger DesiredStore, now time.Time) (pauses []publishers.Pause, err error) {
	all, err := (&AppPauseControl{Ledger: ledger}).desired(ctx)
	for _, target := range publishers.Targets() {
		if is := all[admission.Target(target)]; is.holds(now) {
			pauses = append(pauses, is.Pause)
		}
	}
	return pauses, err
}

// follow passes the pauses to a gate, at once and with each change, until the context ends. A
// watch that ends, or is silent for a minute, is started again. Meanwhile the pauses are read
// from the ledger.
func (b *AppPauseControl) follow(ctx context.Context, gate *admission.Gate, health *health) {
	var last publishers.Pauses
	learn := func(view publishers.Pauses) {
		// A new pause counts at once. A missing one counts until the ledger says that it has
		// ended.
		gate.Learn(with(view, last.Pauses))
		last = b.complete(ctx, view, last.Pauses)
		if ctx.Err() == nil {
			gate.Learn(last)
		}
	}
	for ctx.Err() == nil {
		err := b.watch(ctx, cmp.Or(b.Silence, watchFor), func(view publishers.Pauses) {
			health.Set("pauses", nil)
			learn(view)
		})
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			health.Set("pauses", err)
			b.Log.Warn("pauses.watch_failed", "error", err)
			learn(publishers.Pauses{Revision: last.Revision})
			sleepContext(ctx, stallMax)
		}
	}
}

// watch passes snapshots to learn until the watch ends or is silent for too long. It returns
// an error if there was no first snapshot.
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
					return errors.New("watch pauses: the watch ended before its first snapshot")
				}
				return nil
			}
			learn(view)
			seen = true
			silent.Reset(silence)
		case <-silent.C:
			if !seen {
				return errors.New("watch pauses: no snapshot has come")
			}
			return nil
		}
	}
}

// upkeep compares NATS with the desired state. It corrects the app pauses, the pause of the
// lanes' consumer and the refresh schedule. Streams and consumers it only reports.
type upkeep struct {
	Pauses *AppPauseControl
	Ledger DesiredStore
	JS     jetstream.JetStream
	// Topology is what Setup creates for this ledger.
	Topology publishers.TopologyConfig
	Health   *health
	Log      *slog.Logger

	checked time.Time
}

// Run checks and corrects everything once.
func (u *upkeep) Run(ctx context.Context, now time.Time) error {
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
	changed, cronErr := mendCron(ctx, u.JS, u.Ledger, u.Topology)
	if changed {
		u.Log.Warn("upkeep.mended", "what", "the refresh schedule was wrong or lost")
	}
	checkErr := publishers.Check(ctx, u.JS, u.Topology)
	u.Health.Set("setup", checkErr)
	if checkErr != nil {
		u.Log.Error("upkeep.not_set_up", "error", checkErr, "do", publishers.Hint(checkErr))
	}
	return errors.Join(err, cronErr)
}

// Rest clears the reported fault, because another worker does the upkeep.
func (u *upkeep) Rest() {
	u.Health.Set("setup", nil)
	u.checked = time.Time{}
}

// LedgerSigner returns the signer of this ledger. The first caller creates its key.
func LedgerSigner(ctx context.Context, ledger DesiredStore) (publishers.Signer, error) {
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
				return publishers.Signer{}, errors.New("read the signing key of pauses from the ledger: it is not a valid key")
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
	return publishers.Signer{}, fmt.Errorf("create the signing key of pauses: other processes changed it %d times meanwhile; try again", noteRaces)
}

// DesiredCron returns the refresh schedule in the ledger and its version; nil if there is none
// yet.
func DesiredCron(ctx context.Context, ledger DesiredStore) (*publishers.Cron, int64, error) {
	all, err := ledger.Desired(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, k := range all {
		if k.Name == desiredCron {
			var cron publishers.Cron
			if err := json.Unmarshal(k.Value, &cron); err != nil {
				return nil, 0, fmt.Errorf("decode the ledger's refresh schedule: %w", err)
			}
			return &cron, k.Version, nil
		}
	}
	return nil, 0, nil
}

// KeepCron stores the configured refresh schedule in the ledger, after NATS has accepted it.
func KeepCron(ctx context.Context, ledger DesiredStore, cron publishers.Cron) error {
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
	return fmt.Errorf("store the refresh schedule: other processes changed it %d times meanwhile; try again", noteRaces)
}

// mendCron sets the refresh schedule in NATS to the one in the ledger. If the ledger has none
// yet, it takes over the one in NATS.
func mendCron(ctx context.Context, js jetstream.JetStream, ledger DesiredStore, cfg publishers.TopologyConfig) (changed bool, err error) {
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
