package publishers

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// Bells wake workers: for an account's lane now or at a time, and for a batch
// of a refresh round. A bell carries no truth: it may ring twice, late or
// never, and the ledger says what there is to do.
//
// It is safe for concurrent use.
type Bells struct {
	js    jetstream.JetStream
	names jetpost.Names
}

// NewBells writes through js to the installation of that name.
func NewBells(js jetstream.JetStream, names jetpost.Names) *Bells {
	return &Bells{js: js, names: names}
}

// Ring has some worker look at the account's lane now. A ring that no worker
// has heard yet is replaced: an account has at most one.
func (b *Bells) Ring(ctx context.Context, account string) error {
	msg := nats.NewMsg(b.names.PublishWake(account))
	if _, err := send(ctx, b.js, b.names.LanesStream(), msg); err != nil {
		return fmt.Errorf("ring account %s: %w", account, err)
	}
	return nil
}

// RingAll is Ring of many accounts. It returns the first error; all are tried.
func (b *Bells) RingAll(ctx context.Context, accounts []string) error {
	msgs := make([]*nats.Msg, len(accounts))
	for i, account := range accounts {
		msgs[i] = nats.NewMsg(b.names.PublishWake(account))
	}
	for i, err := range sendAll(ctx, b.js, b.names.LanesStream(), msgs) {
		if err != nil {
			return fmt.Errorf("ring account %s: %w", accounts[i], err)
		}
	}
	return nil
}

// WakeAt rings the account at a time, which may be past, and replaces the
// account's wake-up before. Only the holder of the account's lane may call it:
// it alone knows what the next moment to look is.
func (b *Bells) WakeAt(ctx context.Context, account string, at time.Time) error {
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
func (b *Bells) Batch(ctx context.Context, batch jetpost.RefreshBatch) error {
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
