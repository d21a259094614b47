package consumers

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// OutboxLedger holds the ledger calls of the outbox.
type OutboxLedger interface {
	store.Outbox
	Request(ctx context.Context, key store.Key) (store.Record, error)
}

// maxNotices bounds the accounts whose changes are published at once.
const maxNotices = 1000

// DeadLetters publishes events, dead letters and rejections.
type DeadLetters interface {
	Event(ctx context.Context, subject string, e jetpost.Event) error
	Events(ctx context.Context, events []publishers.Told) (result func() []error)
	Failed(ctx context.Context, status jetpost.RequestStatus, body []byte) error
	Refused(ctx context.Context, refusal jetpost.Refusal, subject string, body []byte) error
}

// OutboxRelay publishes the state of requests and accounts, at least once. A change that was
// committed and not published is published later by the sweeper.
type OutboxRelay struct {
	Ledger      OutboxLedger
	DeadLetters DeadLetters
	Names       jetpost.Names
	Log         *slog.Logger
	// MarkAfter is how long accepted requests wait to be marked as delivered together. A
	// request that a lane of this worker publishes a newer event of meanwhile needs no
	// mark. Zero marks at once.
	MarkAfter time.Duration

	mu      sync.Mutex
	waiting map[store.Key]stored // to mark
}

// stored is the revision of a request whose event NATS has, and when NATS said so.
type stored struct {
	revision int64
	at       time.Time
}

// defaultMarkAfter is less than the time after which the sweeper publishes an event that is
// not marked, and more than a request takes that is published without waiting.
const defaultMarkAfter = eventPatience / 2

// markTogether is how many requests are marked in one statement.
const markTogether = 256

// Announce publishes the request's latest event, and its dead letter if it failed.
func (a *OutboxRelay) Announce(ctx context.Context, key store.Key) error {
	rec, err := a.Ledger.Request(ctx, key)
	if err == nil && rec.Delivered < rec.Status.Revision {
		err = a.tell(ctx, rec)
	}
	if err != nil {
		return fmt.Errorf("announce %s/%s: %w", key.Account, key.ID, err)
	}
	return nil
}

// tell publishes the event of a record that was just read or written, and marks it.
func (a *OutboxRelay) tell(ctx context.Context, rec store.Record) error {
	if err := a.publish(ctx, rec); err != nil {
		return err
	}
	return a.mark(ctx, rec)
}

// mark records that the event was published. The last message of a request's subjects has
// to be its state. If the request has moved on meanwhile, its newer event is published
// again, because another worker may have published it before the older one.
func (a *OutboxRelay) mark(ctx context.Context, rec store.Record) error {
	latest, err := a.Ledger.MarkDelivered(ctx, rec.Key, rec.Status.Revision)
	if err != nil || latest {
		return err
	}
	if rec, err = a.Ledger.Request(ctx, rec.Key); err != nil {
		return err
	}
	return a.tell(ctx, rec)
}

func (a *OutboxRelay) publish(ctx context.Context, rec store.Record) error {
	ctx = traced(ctx, rec.Trace)
	if rec.Status.State == jetpost.StateFailed && rec.Deletion == nil { // a deleted request is not replayed
		if err := a.DeadLetters.Failed(ctx, rec.Status, rec.Body); err != nil {
			return err
		}
	}
	told := a.event(&rec)
	return a.DeadLetters.Event(ctx, told.Subject, told.Event)
}

// event is the event for the state of a request.
func (a *OutboxRelay) event(rec *store.Record) publishers.Told {
	return publishers.Told{Subject: a.Names.EventSubject(rec.Event, rec.Account, rec.ID), Trace: rec.Trace, Event: jetpost.Event{
		// The id of a change is the same however often it is published.
		EventID: eventID(fmt.Sprintf("request/%s/%s/%d", rec.Account, rec.ID, rec.Status.Revision)),
		Type:    rec.Event, Time: rec.Status.UpdatedAt, Request: &rec.Status,
	}}
}

// announceAll publishes the events of many requests, and leaves a failure to the sweeper. A
// request that has moved on meanwhile is published again: the last message of a request's
// subjects has to be its state. The answers are waited for by finish: what is published in
// between comes behind these events.
func (a *OutboxRelay) announceAll(ctx context.Context, records []store.Record) (finish func()) {
	var events []publishers.Told
	var revisions []store.Revision
	for i := range records {
		rec := &records[i]
		switch {
		case rec.Delivered >= rec.Status.Revision:
		case rec.Status.State == jetpost.StateFailed: // with its dead letter
			a.try(ctx, rec.Key)
		default:
			events, revisions = append(events, a.event(rec)), append(revisions, store.Revision{Key: rec.Key, Number: rec.Status.Revision})
		}
	}
	if len(events) == 0 {
		return func() {}
	}
	result := a.DeadLetters.Events(ctx, events)
	return func() { a.announced(ctx, revisions, result()) }
}

// announced marks the events that were published.
func (a *OutboxRelay) announced(ctx context.Context, revisions []store.Revision, errs []error) {
	told, now := map[store.Key]stored{}, time.Now()
	for i, err := range errs {
		if err == nil {
			told[revisions[i].Key] = stored{revision: revisions[i].Number, at: now}
			continue
		}
		a.Log.Warn("event.delayed", "account", revisions[i].Account, "request", revisions[i].ID, "error", err)
	}
	if a.MarkAfter > 0 {
		a.later(ctx, told)
		return
	}
	a.markMany(ctx, told)
}

// markMany marks events as delivered. A request that has moved on meanwhile is published again if
// its newer event may have come before the one of here: another worker may have published it,
// and an event that no server has answered to is repeated after others of its connection.
func (a *OutboxRelay) markMany(ctx context.Context, told map[store.Key]stored) {
	for keys := range slices.Chunk(slices.Collect(maps.Keys(told)), markTogether) {
		revisions := make([]store.Revision, len(keys))
		for i, key := range keys {
			revisions[i] = store.Revision{Key: key, Number: told[key].revision}
		}
		rest, err := a.Ledger.MarkManyDelivered(ctx, revisions)
		if err != nil {
			a.Log.Warn("event.delayed", "requests", len(revisions), "error", err)
		}
		for _, key := range rest {
			rec, err := a.Ledger.Request(ctx, key)
			if err == nil && (rec.Delivered < rec.Status.Revision || rec.Status.UpdatedAt.Before(told[key].at)) {
				err = a.tell(ctx, rec)
			}
			if err != nil {
				a.Log.Warn("event.delayed", "account", key.Account, "request", key.ID, "error", err)
			}
		}
	}
}

// later collects events to be marked together. If the worker dies meanwhile, the sweeper
// publishes them again.
func (a *OutboxRelay) later(ctx context.Context, told map[store.Key]stored) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(told) > 0 && len(a.waiting) == 0 {
		a.waiting = map[store.Key]stored{}
		ctx := context.WithoutCancel(ctx)
		time.AfterFunc(a.MarkAfter, func() { a.Flush(ctx) })
	}
	for key, one := range told {
		if one.revision >= a.waiting[key].revision {
			a.waiting[key] = one
		}
	}
}

// Flush marks the collected events.
func (a *OutboxRelay) Flush(ctx context.Context) {
	a.mu.Lock()
	told := a.waiting
	a.waiting = nil
	a.mu.Unlock()
	a.markMany(ctx, told)
}

// newer drops the pending mark of a request of which a newer event was published.
func (a *OutboxRelay) newer(key store.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.waiting, key)
}

// try announces the request and leaves a failure to the sweeper.
func (a *OutboxRelay) try(ctx context.Context, key store.Key) {
	if err := a.Announce(ctx, key); err != nil {
		a.Log.Warn("event.delayed", "account", key.Account, "request", key.ID, "error", err)
	}
}

// wrote publishes the request as the lane's latest step has written it. It does not wait for
// the answer of NATS: heard does, until late, and returns false if there is none by then. If
// soon is true, a step of the lane follows at once and marks the event (see [store.Claim.Told]).
func (a *OutboxRelay) wrote(ctx context.Context, lane store.Claim, key store.Key) (heard func(soon bool, late <-chan time.Time) bool) {
	rec, known := lane.Wrote(key.ID)
	if !known {
		a.settled(ctx, lane, key)
		return func(bool, <-chan time.Time) bool { return true }
	}
	result := a.DeadLetters.Events(ctx, []publishers.Told{a.event(&rec)})
	answer := make(chan error, 1)
	go func() { answer <- result()[0] }()
	return func(soon bool, late <-chan time.Time) bool {
		var err error
		select {
		case err = <-answer:
		case <-late:
			return false
		}
		if err == nil {
			a.newer(key)
			if !soon || !lane.Told(store.Revision{Key: key, Number: rec.Status.Revision}) {
				err = a.mark(ctx, rec)
			}
		}
		if err != nil {
			a.Log.Warn("event.delayed", "account", key.Account, "request", key.ID, "error", err)
		}
		return true
	}
}

// settled announces the request after a change that is not a step of a post.
func (a *OutboxRelay) settled(ctx context.Context, lane store.Claim, key store.Key) {
	lane.Untold(key) // a newer revision is marked here
	a.try(ctx, key)
}

// moved publishes requests again that moved on while the lane published their events.
func (a *OutboxRelay) moved(ctx context.Context, lane store.Claim) {
	for _, key := range lane.Moved() {
		rec, err := a.Ledger.Request(ctx, key)
		if err == nil {
			err = a.tell(ctx, rec)
		}
		if err != nil {
			a.Log.Warn("event.delayed", "account", key.Account, "request", key.ID, "error", err)
		}
	}
}

// AnnounceAccounts publishes that an account must be connected again, or was: of one account
// or, with "", of all accounts whose latest change is not published yet.
func (a *OutboxRelay) AnnounceAccounts(ctx context.Context, account string) error {
	notices, err := a.Ledger.Notices(ctx, account, maxNotices)
	if err != nil {
		return fmt.Errorf("announce accounts: %w", err)
	}
	for _, notice := range notices {
		event := jetpost.Event{
			EventID: eventID(fmt.Sprintf("account/%s/%d/%t", notice.Account, notice.Version, notice.Required)),
			Type:    jetpost.EventAccountRecovered, Time: notice.At,
			Account: &jetpost.AccountStatus{Account: notice.Account},
		}
		if notice.Required {
			event.Type = jetpost.EventAccountReauthRequired
			event.Account.Reason = &jetpost.Reason{Code: jetpost.CodeAccountReauthRequired, Detail: notice.Error}
		}
		err := a.DeadLetters.Event(ctx, a.Names.EventSubject(event.Type, notice.Account, ""), event)
		if err == nil {
			err = a.Ledger.MarkNoticed(ctx, notice)
		}
		if err != nil {
			return fmt.Errorf("announce account %s: %w", notice.Account, err)
		}
	}
	return nil
}

// eventID derives an id from a change. It is the same on every worker.
func eventID(about string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("jetpost:event:"+about)).String()
}
