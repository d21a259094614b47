package publishers

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// wakesAtOnce is how many wake-ups wait for their answers together.
const wakesAtOnce = 1000

// Wakeups wake workers: for an account's lane now or at a time, and for a batch of a
// refresh round. A wake-up is only a hint: it may come twice, late or never. The ledger
// says what there is to do.
//
// It is safe for concurrent use.
type Wakeups struct {
	js    jetstream.JetStream
	names jetpost.Names
}

// NewWakeups writes through js to the installation of that name.
func NewWakeups(js jetstream.JetStream, names jetpost.Names) *Wakeups {
	return &Wakeups{js: js, names: names}
}

// Wake makes a worker run the account's lane. If a wake-up of the account is still
// undelivered, it also stands for this one and stays at its place in the stream.
// Replacing it would move it to the end, and an account with frequent wake-ups would
// never be served.
func (w *Wakeups) Wake(ctx context.Context, account string) error {
	return w.WakeAll(ctx, []string{account})
}

// WakeAll is Wake for many accounts, in that order. It returns the first error; all are
// tried.
func (w *Wakeups) WakeAll(ctx context.Context, accounts []string) error {
	var errs []error
	for page := range slices.Chunk(accounts, wakesAtOnce) {
		errs = append(errs, w.wakePage(ctx, page))
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *Wakeups) wakePage(ctx context.Context, accounts []string) error {
	var failed error
	fail := func(account string, err error) {
		if err != nil && failed == nil {
			failed = fmt.Errorf("wake account %s: %w", account, err)
		}
	}
	waiting := map[string]uint64{} // sequence of the wake-up that is there
	for i, err := range sendAll(ctx, w.js, w.names.LanesStream(), w.messages(accounts, true)) {
		if lostRace(err) {
			waiting[accounts[i]] = foundSequence(err)
		} else {
			fail(accounts[i], err)
		}
	}
	if len(waiting) == 0 {
		return failed
	}
	// A delivered wake-up may have been handled before the work for this one was
	// visible, although it has not been acknowledged so far.
	again, err := w.deliveredOf(ctx, waiting)
	if err != nil {
		fail(accounts[0], err)
		return failed
	}
	for i, err := range sendAll(ctx, w.js, w.names.LanesStream(), w.messages(again, false)) {
		fail(again[i], err)
	}
	return failed
}

func (w *Wakeups) messages(accounts []string, first bool) []*nats.Msg {
	msgs := make([]*nats.Msg, len(accounts))
	for i, account := range accounts {
		msgs[i] = nats.NewMsg(w.names.PublishWake(account))
		if first {
			msgs[i].Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
		}
	}
	return msgs
}

// deliveredOf returns those of the waiting accounts whose wake-up was delivered.
func (w *Wakeups) deliveredOf(ctx context.Context, waiting map[string]uint64) ([]string, error) {
	lanes, err := ask(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		return w.js.Consumer(ctx, w.names.LanesStream(), jetpost.ConsumerLanes)
	})
	if err != nil {
		return nil, err
	}
	delivered := lanes.CachedInfo().Delivered.Stream
	var again []string
	for _, account := range slices.Sorted(maps.Keys(waiting)) {
		sequence := waiting[account]
		if sequence == 0 { // a server of a cluster need not report it
			msg, err := lastMessage(ctx, w.js, w.names.LanesStream(), w.names.PublishWake(account))
			if err != nil {
				return nil, err
			}
			if msg != nil {
				sequence = msg.Sequence
			}
		}
		if sequence <= delivered {
			again = append(again, account)
		}
	}
	return again, nil
}

// WakeAt wakes the account at a time, which may be in the past, and replaces the
// account's scheduled wake-up. Only the holder of the account's lane may call it: it
// alone knows when the lane must run next.
func (w *Wakeups) WakeAt(ctx context.Context, account string, at time.Time) error {
	msg := nats.NewMsg(w.names.ScheduleWake(account))
	// Written by hand, since the client library's option cuts to whole seconds and so
	// wakes up to a second early.
	msg.Header.Set(jetstream.ScheduleHeader, "@at "+at.UTC().Format(time.RFC3339Nano))
	msg.Header.Set(jetstream.ScheduleTargetHeader, w.names.DuePublish(account))
	if _, err := send(ctx, w.js, w.names.ScheduleStream(), msg); err != nil {
		return fmt.Errorf("schedule wake-up of account %s: %w", account, err)
	}
	return nil
}

// Batch makes a worker refresh one batch of a round.
func (w *Wakeups) Batch(ctx context.Context, batch jetpost.RefreshBatch) error {
	msg := nats.NewMsg(w.names.RefreshBatch())
	var err error
	if msg.Data, err = json.Marshal(batch); err == nil {
		_, err = send(ctx, w.js, w.names.RefreshStream(), msg)
	}
	if err != nil {
		return fmt.Errorf("publish batch %d of refresh round %s: %w", batch.Batch, batch.Round, err)
	}
	return nil
}
