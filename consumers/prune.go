package consumers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

const (
	// mediaStays is how long an object is kept that no request names: its job may still
	// be on its way.
	mediaStays = 24 * time.Hour

	// pruneEvery is how often a worker prunes. The lease outlasts that, so that the same
	// one goes on with it.
	pruneEvery = 10 * time.Minute
	pruneLease = 3 * pruneEvery
	// prunePage is how many requests are looked at together.
	prunePage = 2000
	// pruneTarget is how long a batch should hold the lock of its lane: batches grow while
	// they take less than half of it, and shrink where they take more.
	pruneTarget                       = 30 * time.Millisecond
	pruneLeast, pruneFirst, pruneMost = 10, 50, 1000 // requests of a batch, all of one account
	pruneRest                         = 1            // times as long as a batch took is rested after it
	// A locked lane is tried pruneTries times with its page, and once more in each pass.
	pruneTries, pruneLocked    = 5, 50 * time.Millisecond
	prunePasses                = 10
	pruneTryAgain              = 200 * time.Millisecond // after a page or a batch that was not answered
	pruneRenew                 = time.Minute
	jobsPatience, jobsLookEach = time.Minute, time.Second
)

// pruneLeaseName names the lease of whoever prunes.
const pruneLeaseName = "prune"

// ErrPruning says that another process prunes just now.
var ErrPruning = errors.New("another process prunes just now")

// pruneLedger is the ledger's part.
type pruneLedger interface {
	TryLease(ctx context.Context, name, owner string, d time.Duration, now time.Time) (bool, error)
	DropLeases(ctx context.Context, names []string, owner string, now time.Time) error
	store.Retention
}

// mediaObjects is the media object store.
type mediaObjects interface {
	List(ctx context.Context) ([]publishers.MediaObject, error)
	Remove(ctx context.Context, object publishers.MediaObject) error
}

// pruner removes what finished long ago: of requests all but their identities, and media
// objects that no request needs. One process at a time does so.
type pruner struct {
	Ledger     pruneLedger
	Media      mediaObjects
	JS         jetstream.JetStream
	Names      jetpost.Names
	Heartbeats *publishers.Heartbeats
	Worker     string
	// Keep is how long requests are kept once they have finished.
	Keep time.Duration
	// MediaStays is how long a media object is kept at least; a day where zero.
	MediaStays time.Duration
	// JobsPatience is how long is waited for jobs to be accepted; a minute where zero.
	JobsPatience time.Duration
	// Within is how long a round prunes requests, and media only if it has come to their end;
	// zero sets no bound.
	Within time.Duration
	Log    *slog.Logger

	renewAt time.Time
	until   time.Time // the round's bound
}

// PruneConfig is what pruning needs.
type PruneConfig struct {
	Ledger    store.Store
	JetStream jetstream.JetStream
	Names     jetpost.Names
	Worker    string // names the process in the lease
	// Keep is how long requests are kept once they have finished.
	Keep time.Duration
	// Within is how long requests are pruned, at least one account's; zero sets no bound.
	Within time.Duration
	Log    *slog.Logger
}

// Prune removes once what finished that long ago; a dry run only counts it. It fails with
// ErrPruning while another process prunes; with an error it says how far it came.
func Prune(ctx context.Context, c PruneConfig, dry bool) (PruneReport, error) {
	p, err := newPruner(ctx, c)
	if err != nil {
		return PruneReport{DryRun: dry}, err
	}
	defer func() {
		if !dry {
			_ = p.Ledger.DropLeases(context.WithoutCancel(ctx), []string{pruneLeaseName}, p.Worker, time.Now()) // it runs out
		}
	}()
	return p.Round(ctx, dry)
}

func newPruner(ctx context.Context, c PruneConfig) (*pruner, error) {
	media, err := publishers.OpenMediaObjects(ctx, c.JetStream, c.Names)
	if err != nil {
		return nil, err
	}
	return &pruner{
		Ledger: c.Ledger, Media: media, JS: c.JetStream, Names: c.Names, Heartbeats: publishers.NewHeartbeats(c.JetStream, c.Names),
		Worker: c.Worker, Keep: c.Keep, Within: c.Within, Log: c.Log,
	}, nil
}

// PruneReport is what a round came to.
type PruneReport struct {
	DryRun   bool  `json:"dry_run"`
	Requests int   `json:"requests"`      // pruned or, in a dry run, to be pruned
	Objects  int   `json:"media_objects"` // removed, or to be removed
	Bytes    int64 `json:"media_bytes"`   // of these
	// MediaKept says why no media object was looked at, "" where they were.
	MediaKept string `json:"media_kept,omitempty"`
	// More says that the time ended before the requests did: another round goes on.
	More bool `json:"more,omitempty"`
}

// Run prunes again and again until the context ends.
func (p *pruner) Run(ctx context.Context) {
	every := time.NewTicker(pruneEvery)
	defer every.Stop()
	for {
		done, err := p.Round(ctx, false)
		switch {
		case ctx.Err() != nil:
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteWithin)
			defer cancel()
			if err := p.Ledger.DropLeases(last, []string{pruneLeaseName}, p.Worker, time.Now()); err != nil {
				p.Log.Debug("prune.lease_left", "error", err)
			}
			return
		case errors.Is(err, ErrPruning):
		case err != nil:
			p.Log.Warn("prune.failed", "requests", done.Requests, "error", err)
		case done.Requests+done.Objects > 0:
			p.Log.Info("prune.done", "requests", done.Requests, "media_objects", done.Objects, "media_bytes", done.Bytes)
		}
		select {
		case <-ctx.Done():
		case <-every.C:
		}
	}
}

// Round prunes once. A dry run only counts. It fails with ErrPruning where another process
// prunes; with an error it says how far it came.
func (p *pruner) Round(ctx context.Context, dry bool) (report PruneReport, err error) {
	report.DryRun = dry
	if p.Keep < store.MinKeepFinished {
		return report, fmt.Errorf("finished requests are to be kept for %s, want %s at least", p.Keep, store.MinKeepFinished)
	}
	if !dry {
		p.renewAt = time.Time{}
		if err := errors.Join(p.hold(ctx), p.everybodyKnows(ctx)); err != nil {
			return report, err
		}
	}
	if p.until = (time.Time{}); p.Within > 0 {
		p.until = time.Now().Add(p.Within)
	}
	if report.Requests, err = p.requests(ctx, dry); err != nil || p.over() {
		report.More = err == nil
		return report, err
	}
	return report, p.media(ctx, &report)
}

// hold takes or renews the lease.
func (p *pruner) hold(ctx context.Context) error {
	now := time.Now()
	if now.Before(p.renewAt) {
		return nil
	}
	mine, err := p.Ledger.TryLease(ctx, pruneLeaseName, p.Worker, pruneLease, now)
	if err == nil && !mine {
		err = ErrPruning
	}
	p.renewAt = now.Add(pruneRenew)
	return err
}

// OldWorkerError says that a worker runs that would take the id of a pruned request for a
// new one.
type OldWorkerError struct{ Worker, Version string }

func (e *OldWorkerError) Error() string {
	return fmt.Sprintf("worker %s of version %s does not know pruned requests, and would post one again whose id comes again", e.Worker, e.Version)
}

// Hint tells the operator what to do.
func (*OldWorkerError) Hint() string {
	return "finish the upgrade; a worker that was killed is forgotten after " + publishers.HeartbeatTTL.String()
}

// everybodyKnows fails with *OldWorkerError while a worker of an earlier version may live.
func (p *pruner) everybodyKnows(ctx context.Context) error {
	heartbeats, err := p.Heartbeats.All(ctx)
	for _, heartbeat := range heartbeats {
		if !heartbeat.KnowsPruned {
			return &OldWorkerError{Worker: heartbeat.Worker, Version: heartbeat.Version}
		}
	}
	return err
}

// over reports whether the round's time has ended.
func (p *pruner) over() bool { return !p.until.IsZero() && !time.Now().Before(p.until) }

func (p *pruner) requests(ctx context.Context, dry bool) (n int, err error) {
	before := time.Now().Add(-p.Keep)
	size := pruneFirst
	for range prunePasses {
		done, busy, err := p.pass(ctx, before, &size, dry)
		if n += done; err != nil || busy == 0 || p.over() {
			return n, err
		}
	}
	return n, nil
}

// pass reads all requests once, page by page, and prunes a page account by account: only
// one lane is locked at a time. It returns how many requests it pruned, and how many it
// passed over. size is how many of an account are pruned together.
func (p *pruner) pass(ctx context.Context, before time.Time, size *int, dry bool) (n, busy int, err error) {
	page := store.PrunePage{FinishedBefore: before, Limit: prunePage}
	for {
		found, err := p.look(ctx, &page)
		if err != nil {
			return n, busy, err
		}
		left := map[string][]string{}
		for _, key := range found.Keys {
			left[key.Account] = append(left[key.Account], key.ID)
		}
		if dry {
			n, left = n+len(found.Keys), nil
		}
		for try := range pruneTries {
			if try > 0 && len(left) > 0 {
				sleepContext(ctx, pruneLocked)
			}
			for account, ids := range left {
				done, locked, err := p.account(ctx, account, ids, before, size)
				if n += done; err != nil || p.over() {
					return n, busy, err
				}
				if left[account] = locked; len(locked) == 0 {
					delete(left, account)
				}
			}
		}
		for _, ids := range left {
			busy += len(ids)
		}
		if page.After = found.Next; found.Done || p.over() {
			return n, busy, nil
		}
	}
}

// look reads a page, and a smaller one if the database does not answer in time.
func (p *pruner) look(ctx context.Context, page *store.PrunePage) (found store.Prunable, err error) {
	for range pruneTries {
		if found, err = p.Ledger.Prunable(ctx, *page); !store.Unavailable(err) {
			return found, err
		}
		page.Limit = max(page.Limit/2, pruneLeast)
		sleepContext(ctx, pruneTryAgain)
	}
	return found, err
}

// account prunes requests of one account, batch by batch. If its lane is locked, it
// returns those that are left.
func (p *pruner) account(ctx context.Context, account string, ids []string, before time.Time, size *int) (n int, left []string, err error) {
	failed := 0
	for len(ids) > 0 {
		if err := p.hold(ctx); err != nil {
			return n, nil, err
		}
		batch := ids[:min(*size, len(ids))]
		began := time.Now()
		done, err := p.Ledger.Prune(ctx, account, batch, before)
		took := time.Since(began)
		switch {
		case store.Unavailable(err) && failed < pruneTries:
			failed++
			*size = max(*size/2, pruneLeast)
			sleepContext(ctx, pruneTryAgain)
			continue
		case err != nil:
			return n, nil, err
		}
		p.Log.Debug("prune.batch", "account", account, "asked", len(batch), "pruned", done.Requests, "locked", done.Busy,
			"held_ms", done.Held.Milliseconds(), "took_ms", took.Milliseconds())
		sleepContext(ctx, pruneRest*took)
		if done.Busy {
			return n, ids, ctx.Err()
		}
		failed, n, ids = 0, n+done.Requests, ids[len(batch):]
		switch {
		case done.Held > pruneTarget:
			*size = max(*size/2, pruneLeast)
		case done.Held < pruneTarget/2 && len(batch) == *size:
			*size = min(*size*2, pruneMost)
		}
	}
	return n, nil, ctx.Err()
}

// media removes what no request needs. What is listed before all jobs of that moment are
// accepted, and before the ledger is read, cannot be what such a job names.
func (p *pruner) media(ctx context.Context, report *PruneReport) error {
	all, err := p.Media.List(ctx)
	if err != nil {
		return err
	}
	var old []publishers.MediaObject
	for _, object := range all {
		if time.Since(object.StoredAt) > cmp.Or(p.MediaStays, mediaStays) {
			old = append(old, object)
		}
	}
	if len(old) == 0 {
		return nil
	}
	if err := p.jobsAccepted(ctx); err != nil {
		report.MediaKept = err.Error()
		return ctx.Err()
	}
	named, err := p.named(ctx)
	if err != nil {
		return err
	}
	for _, object := range old {
		if object.Name != "" && named[object.Name] {
			continue
		}
		if !report.DryRun {
			if err := errors.Join(p.hold(ctx), p.Media.Remove(ctx, object)); err != nil {
				return err
			}
		}
		report.Objects++
		report.Bytes += int64(object.Size)
	}
	return nil
}

// named are the media objects that a request names which is unfinished, or which failed
// and can be replayed.
func (p *pruner) named(ctx context.Context) (map[string]bool, error) {
	named := map[string]bool{}
	err := p.Ledger.MediaUsers(ctx, func(_ string, body []byte) { objectNames(body, named) })
	return named, err
}

// objectNames finds what a body names, also one that only a newer worker can read: every
// value of a field of that name counts.
func objectNames(body []byte, named map[string]bool) {
	var value any
	if json.Unmarshal(body, &value) != nil {
		return // it was accepted by nobody
	}
	var walk func(any)
	walk = func(value any) {
		switch v := value.(type) {
		case []any:
			for _, one := range v {
				walk(one)
			}
		case map[string]any:
			for key, one := range v {
				if name, is := one.(string); is && key == "object" {
					named[name] = true
				}
				walk(one)
			}
		}
	}
	walk(value)
}

// jobsAccepted waits until every job is in the ledger that NATS has stored by now.
func (p *pruner) jobsAccepted(ctx context.Context) error {
	patience := cmp.Or(p.JobsPatience, jobsPatience)
	waiting, stop := context.WithTimeout(ctx, patience)
	defer stop()
	var last uint64
	for {
		stream, err := p.JS.Stream(ctx, p.Names.JobsStream())
		if err != nil {
			return fmt.Errorf("look at the job stream: %w", err)
		}
		state := stream.CachedInfo().State
		last = cmp.Or(last, state.LastSeq)
		if state.Msgs == 0 || state.FirstSeq > last {
			return nil
		}
		if sleepContext(waiting, jobsLookEach); waiting.Err() != nil {
			return fmt.Errorf("jobs of more than %s ago are not accepted yet, and may name any object", patience)
		}
	}
}
