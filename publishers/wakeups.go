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

// wakesAtOnce is how many rings wait for their answers together.
const wakesAtOnce = 1000

// Wakeups wake workers: for an account's lane now or at a time, and for a batch
// of a refresh round. A wake-up carries no truth: it may ring twice, late or
// never, and the ledger says what there is to do.
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

// Wake has some worker look at the account's lane. A ring that no worker has heard
// yet stands for this one too, and keeps its place in the line: one that were
// replaced would go to its end, and whoever is rung often would never be served.
func (b *Wakeups) Wake(ctx context.Context, account string) error {
	return b.WakeAll(ctx, []string{account})
}

// WakeAll is Ring of many accounts, in that order. It returns the first error; all
// are tried.
func (b *Wakeups) WakeAll(ctx context.Context, accounts []string) error {
	var errs []error
	for page := range slices.Chunk(accounts, wakesAtOnce) {
		errs = append(errs, b.wakePage(ctx, page))
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *Wakeups) wakePage(ctx context.Context, accounts []string) error {
	var failed error
	fail := func(account string, err error) {
		if err != nil && failed == nil {
			failed = fmt.Errorf("ring account %s: %w", account, err)
		}
	}
	waiting := map[string]uint64{} // sequence of the ring that is there
	for i, err := range sendAll(ctx, b.js, b.names.LanesStream(), b.rings(accounts, true)) {
		if lostRace(err) {
			waiting[accounts[i]] = foundSequence(err)
		} else {
			fail(accounts[i], err)
		}
	}
	if len(waiting) == 0 {
		return failed
	}
	// A ring that was delivered may have been heard before what this one is for was
	// there to be seen, although nobody has acknowledged it so far.
	heard, err := b.heard(ctx, waiting)
	if err != nil {
		fail(accounts[0], err)
		return failed
	}
	for i, err := range sendAll(ctx, b.js, b.names.LanesStream(), b.rings(heard, false)) {
		fail(heard[i], err)
	}
	return failed
}

func (b *Wakeups) rings(accounts []string, first bool) []*nats.Msg {
	msgs := make([]*nats.Msg, len(accounts))
	for i, account := range accounts {
		msgs[i] = nats.NewMsg(b.names.PublishWake(account))
		if first {
			msgs[i].Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
		}
	}
	return msgs
}

// heard returns the accounts whose ring was delivered.
func (b *Wakeups) heard(ctx context.Context, waiting map[string]uint64) ([]string, error) {
	lanes, err := ask(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		return b.js.Consumer(ctx, b.names.LanesStream(), jetpost.ConsumerLanes)
	})
	if err != nil {
		return nil, err
	}
	delivered := lanes.CachedInfo().Delivered.Stream
	var heard []string
	for _, account := range slices.Sorted(maps.Keys(waiting)) {
		sequence := waiting[account]
		if sequence == 0 { // a server of a cluster need not tell it
			msg, err := lastMessage(ctx, b.js, b.names.LanesStream(), b.names.PublishWake(account))
			if err != nil {
				return nil, err
			}
			if msg != nil {
				sequence = msg.Sequence
			}
		}
		if sequence <= delivered {
			heard = append(heard, account)
		}
	}
	return heard, nil
}

// WakeAt rings the account at a time, which may be past, and replaces the
// account's wake-up before. Only the holder of the account's lane may call it:
// it alone knows what the next moment to look is.
func (b *Wakeups) WakeAt(ctx context.Context, account string, at time.Time) error {
	msg := nats.NewMsg(b.names.ScheduleWake(account))
	// Written by hand, since the client library's option cuts to whole seconds
	// and so wakes up to a second early.
	msg.Header.Set(jetstream.ScheduleHeader, "@at "+at.UTC().Format(time.RFC3339Nano))
	msg.Header.Set(jetstream.ScheduleTargetHeader, b.names.DuePublish(account))
	if _, err := send(ctx, b.js, b.names.ScheduleStream(), msg); err != nil {
		return fmt.Errorf("schedule wake-up of account %s: %w", account, err)
	}
	return nil
}

// Batch has some worker refresh one batch of a round.
func (b *Wakeups) Batch(ctx context.Context, batch jetpost.RefreshBatch) error {
	msg := nats.NewMsg(b.names.RefreshBatch())
	var err error
	if msg.Data, err = json.Marshal(batch); err == nil {
		_, err = send(ctx, b.js, b.names.RefreshStream(), msg)
	}
	if err != nil {
		return fmt.Errorf("publish batch %d of refresh round %s: %w", batch.Batch, batch.Round, err)
	}
	return nil
}
