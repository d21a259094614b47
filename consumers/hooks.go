package consumers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
)

const (
	// hooksEvery is how often a worker looks which webhooks there are, and hooksTidy how
	// often for consumers of those that are gone.
	hooksEvery = 2 * time.Second
	hooksTidy  = time.Minute
	// hookAckWait is longer than a delivery may take: the event of a worker that died goes
	// to another one after it.
	hookAckWait = 2 * hookTimeout
	// hookPull is how long a worker waits for an event before it asks again.
	hookPull = 30 * time.Second
	// hookTries is how often an event is sent at most: some 3 days of hookDelay.
	hookTries = 295
	// hookPatience is how long a webhook may fail before it is disabled.
	hookPatience = 5 * 24 * time.Hour
	// hookNoteEvery is how often successes are noted. Failures, and the first success after
	// them, are noted each time.
	hookNoteEvery = 10 * time.Second
	// hookClocks is by how much the clocks of workers and NATS may differ: events from then
	// on before a webhook was made are sent, too.
	hookClocks = 2 * time.Second
	// hookAgain is how much of what was delivered is sent again after NATS has lost the
	// consumer.
	hookAgain = time.Minute
)

// hookDelay is the wait after so many tries.
func hookDelay(tries uint64) time.Duration {
	delays := [...]time.Duration{
		5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute,
	}
	delay := delays[min(max(tries, 1), uint64(len(delays)))-1]
	// Receivers of many webhooks are not called all at once.
	return delay*4/5 + rand.N(delay*2/5)
}

// HookLedger holds the ledger calls of the delivery.
type HookLedger interface {
	Hooks(ctx context.Context) ([]store.Hook, error)
	HookSecret(hook store.Hook) (secret.String, error)
	HookDelivered(ctx context.Context, id string, at time.Time) error
	HookFailed(ctx context.Context, id string, f store.HookFailure) error
}

// hooks delivers events to the receivers of webhooks. Each webhook has a consumer that
// hands out one event at a time, to any worker: so a receiver gets its events in order, and
// a slow one delays no other.
type hooks struct {
	Ledger HookLedger
	JS     jetstream.JetStream
	Names  jetpost.Names
	Sender *HookSender
	Log    *slog.Logger

	// These are hooksEvery, hookAckWait, hookDelay and hookTries, but in tests.
	Every, AckWait time.Duration
	Delay          func(tries uint64) time.Duration
	Tries          uint64

	readers map[string]*hookReader
	parts   sync.WaitGroup
	tidyAt  time.Time
}

// newHooks makes the delivery as workers have it.
func newHooks(ledger HookLedger, js jetstream.JetStream, names jetpost.Names, sender *HookSender, log *slog.Logger) *hooks {
	return &hooks{
		Ledger: ledger, JS: js, Names: names, Sender: sender, Log: log,
		Every: hooksEvery, AckWait: hookAckWait, Delay: hookDelay, Tries: hookTries, readers: map[string]*hookReader{},
	}
}

// Run delivers until the context ends.
func (h *hooks) Run(ctx context.Context) {
	defer h.parts.Wait()
	every := time.NewTicker(h.Every)
	defer every.Stop()
	for {
		if err := h.look(ctx); err != nil && ctx.Err() == nil {
			h.Log.Debug("hooks.not_read", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// look starts and ends readers, so that each webhook which is not disabled has one.
func (h *hooks) look(ctx context.Context) error {
	all, err := h.Ledger.Hooks(ctx)
	if err != nil {
		return err // those that read go on
	}
	wanted := map[string]bool{}
	for _, hook := range all {
		if !hook.DisabledAt.IsZero() {
			continue
		}
		wanted[hook.ID] = true
		if r := h.readers[hook.ID]; r != nil {
			if r.hook.Load().Account == hook.Account {
				r.hook.Store(&hook)
				continue
			}
			r.stop() // the account has another name
		}
		reading, stop := context.WithCancel(ctx)
		r := &hookReader{hooks: h, stop: stop, log: h.Log.With("hook", hook.ID)}
		r.hook.Store(&hook)
		h.readers[hook.ID] = r
		h.parts.Go(func() { r.Run(reading) })
	}
	for id, r := range h.readers {
		if !wanted[id] {
			r.stop()
			delete(h.readers, id)
		}
	}
	if now := time.Now(); now.After(h.tidyAt) {
		h.tidyAt = now.Add(hooksTidy)
		return h.tidy(ctx)
	}
	return nil
}

// tidy deletes the consumers of webhooks that are gone: whoever removed one may have died
// before it deleted the consumer.
func (h *hooks) tidy(ctx context.Context) error {
	stream, err := h.JS.Stream(ctx, h.Names.EventsStream())
	if err != nil {
		return fmt.Errorf("look for consumers of webhooks: %w", err)
	}
	var names []string
	list := stream.ConsumerNames(ctx)
	for name := range list.Name() {
		if strings.HasPrefix(name, jetpost.ConsumerHookPrefix) {
			names = append(names, name)
		}
	}
	if list.Err() != nil || len(names) == 0 {
		return list.Err()
	}
	all, err := h.Ledger.Hooks(ctx) // after the list: none of these is younger than that
	for _, name := range names {
		known := slices.ContainsFunc(all, func(hook store.Hook) bool { return jetpost.ConsumerHook(hook.ID) == name })
		if err == nil && !known {
			err = stream.DeleteConsumer(ctx, name)
		}
	}
	return err
}

// hookReader delivers the events of one webhook.
type hookReader struct {
	*hooks
	hook atomic.Pointer[store.Hook] // as it was last read
	stop context.CancelFunc
	log  *slog.Logger

	failing bool
	notedAt time.Time // the last success that was noted
}

// Run delivers until the context ends.
func (r *hookReader) Run(ctx context.Context) {
	for ctx.Err() == nil {
		consumer, err := r.consumer(ctx)
		if err == nil {
			err = r.read(ctx, consumer)
		}
		if ctx.Err() == nil {
			r.log.Debug("hook.not_read", "error", err)
			sleepContext(ctx, r.Every)
		}
	}
}

// consumer finds the webhook's consumer, or makes it. One that is at hand knows what was
// delivered.
func (r *hookReader) consumer(ctx context.Context) (jetstream.Consumer, error) {
	hook := r.hook.Load()
	name := jetpost.ConsumerHook(hook.ID)
	subjects := HookSubjects(r.Names, hook.Account, hook.Events)
	consumer, err := r.JS.Consumer(ctx, r.Names.EventsStream(), name)
	if err == nil {
		config := consumer.CachedInfo().Config
		if len(subjects) == 1 && config.FilterSubject == subjects[0] || slices.Equal(config.FilterSubjects, subjects) {
			return consumer, nil
		}
		config.FilterSubject, config.FilterSubjects = "", subjects // the account has another name
		return r.JS.UpdateConsumer(ctx, r.Names.EventsStream(), config)
	}
	if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, err
	}
	start := hook.CreatedAt.Add(-hookClocks)
	if again := hook.DeliveredAt.Add(-hookAgain); again.After(start) {
		start = again
	}
	return r.JS.CreateConsumer(ctx, r.Names.EventsStream(), jetstream.ConsumerConfig{
		Durable: name, Description: "jetpost: events for a webhook",
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &start,
		FilterSubjects: subjects,
		AckPolicy:      jetstream.AckExplicitPolicy, AckWait: r.AckWait, MaxDeliver: -1,
		MaxAckPending: 1, // in order, over all workers, also while an event waits for its next try
	})
}

// HookSubjects are those of the events of a webhook.
func HookSubjects(names jetpost.Names, account string, types []jetpost.EventType) (subjects []string) {
	if len(types) == 0 {
		if account == "" {
			return []string{names.AllEvents()}
		}
		return []string{names.AccountEvents(account), names.AccountEvents(account) + ".>"}
	}
	for _, t := range types {
		subject := names.EventSubject(t, account, "")
		of, _, _ := strings.Cut(string(t), ".")
		if of == "request" || of == "account" && account == "" {
			subject += ".>"
		}
		subjects = append(subjects, subject)
	}
	return subjects
}

// read delivers events until there is nothing to read from, or the context ends.
func (r *hookReader) read(ctx context.Context, consumer jetstream.Consumer) error {
	for {
		pulling, cancel := context.WithTimeout(ctx, hookPull)
		msg, err := consumer.Next(jetstream.FetchContext(pulling))
		timedOut := pulling.Err() != nil
		cancel()
		switch {
		case err == nil:
			if err := r.deliver(ctx, msg); err != nil {
				return err
			}
		case ctx.Err() != nil || !timedOut:
			return err
		}
	}
}

// deliver sends one event. An error is one of NATS.
func (r *hookReader) deliver(ctx context.Context, msg jetstream.Msg) error {
	hook := *r.hook.Load()
	meta, err := msg.Metadata()
	if err != nil {
		return err
	}
	var event struct {
		EventID string            `json:"event_id"`
		Type    jetpost.EventType `json:"type"`
	}
	if err := json.Unmarshal(msg.Data(), &event); err != nil || event.EventID == "" || !concerns(r.Names, hook, msg.Subject(), event.Type) {
		r.log.Error("hook.event_skipped", "subject", msg.Subject())
		return msg.Term()
	}
	key, err := r.Ledger.HookSecret(hook)
	if err == nil {
		err = r.Sender.Send(ctx, hook, key, event.EventID, msg.Data())
	}
	if ctx.Err() != nil { // whoever goes on sends it again, unless the receiver has taken it
		if err == nil {
			return msg.Ack()
		}
		return msg.Nak()
	}
	if err == nil {
		r.succeeded(ctx, hook)
		return msg.Ack()
	}
	failure, answered := errors.AsType[*HookError](err)
	if !answered { // the secret cannot be opened, which is not the receiver's fault
		failure = &HookError{Err: err}
	}
	drop := answered && meta.NumDelivered >= r.Tries
	r.failed(ctx, hook, event.EventID, failure, store.HookFailure{Dropped: drop, Disable: failure.Gone || answered && tooLong(hook)})
	if drop {
		return msg.Term()
	}
	return msg.NakWithDelay(max(r.Delay(meta.NumDelivered), failure.RetryAfter))
}

// concerns tells whether an event is one of a webhook. Its consumer has others never; what
// leaves the installation is looked at twice.
func concerns(names jetpost.Names, hook store.Hook, subject string, t jetpost.EventType) bool {
	of, is := strings.CutPrefix(subject, names.EventSubject(t, "", ""))
	if !is || len(hook.Events) > 0 && !slices.Contains(hook.Events, t) {
		return false
	}
	account, _, _ := strings.Cut(strings.TrimPrefix(of, "."), ".")
	return hook.Account == "" || account == hook.Account
}

// succeeded notes a success, but not each of many.
func (r *hookReader) succeeded(ctx context.Context, hook store.Hook) {
	now := time.Now()
	recovered := r.failing || !hook.FailingSince.IsZero()
	if !recovered && now.Sub(r.notedAt) < hookNoteEvery {
		return
	}
	if recovered {
		r.log.Info("hook.recovered")
	}
	r.failing, r.notedAt = false, now
	r.noted(r.Ledger.HookDelivered(ctx, hook.ID, now))
}

// tooLong tells of a webhook whose last delivery failed that this has been so for days.
func tooLong(hook store.Hook) bool {
	return !hook.FailingSince.IsZero() && time.Since(hook.FailingSince) >= hookPatience
}

// failed notes a failure.
func (r *hookReader) failed(ctx context.Context, hook store.Hook, event string, err error, f store.HookFailure) {
	f.At, f.Error = time.Now(), strings.Join(strings.Fields(err.Error()), " ")
	switch {
	case f.Disable:
		r.log.Warn("hook.disabled", "error", f.Error)
	case f.Dropped:
		r.log.Warn("hook.event_dropped", "event", event, "error", f.Error)
	case !r.failing:
		r.log.Warn("hook.failing", "event", event, "error", f.Error)
	}
	r.failing = true
	r.noted(r.Ledger.HookFailed(ctx, hook.ID, f))
}

// noted logs what could not be noted. It is no reason to deliver nothing.
func (r *hookReader) noted(err error) {
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		r.log.Warn("hook.not_noted", "error", err)
	}
}
