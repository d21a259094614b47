package telemetry

import (
	"context"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// Timed is the ledger, whose commits on the way of a job are timed.
func (m *Metrics) Timed(ledger store.Store) store.Store { return timed{ledger, m} }

type timed struct {
	store.Store
	m *Metrics
}

// time notes how long a step took, once it has ended.
func (t timed) time(step string) func() {
	began := time.Now()
	return func() { t.m.ledger.WithLabelValues(step).Observe(time.Since(began).Seconds()) }
}

func (t timed) AcceptMany(ctx context.Context, lease store.Lease, in []store.Acceptance) ([]store.Received, error) {
	defer t.time("accept")()
	return t.Store.AcceptMany(ctx, lease, in)
}

func (t timed) ClaimLane(ctx context.Context, account, worker string, lease time.Duration, now time.Time) (store.Claim, bool, error) {
	defer t.time("claim")()
	return t.Store.ClaimLane(ctx, account, worker, lease, now)
}

func (t timed) Begin(ctx context.Context, lane store.Claim, id string, intent store.Intent) error {
	defer t.time("begin")()
	return t.Store.Begin(ctx, lane, id, intent)
}

func (t timed) Posted(ctx context.Context, lane store.Claim, id string, live store.LivePost) (jetpost.State, error) {
	defer t.time("posted")()
	return t.Store.Posted(ctx, lane, id, live)
}

func (t timed) Conclude(ctx context.Context, lane store.Claim, id string, out store.Outcome) error {
	defer t.time("conclude")()
	return t.Store.Conclude(ctx, lane, id, out)
}

func (t timed) ReleaseLane(ctx context.Context, lane store.Claim, generation int64, wakeAt, now time.Time) (bool, error) {
	defer t.time("release")()
	return t.Store.ReleaseLane(ctx, lane, generation, wakeAt, now)
}

func (t timed) SaveToken(ctx context.Context, claim store.Token, pair store.Pair, now time.Time) error {
	defer t.time("save_token")()
	return t.Store.SaveToken(ctx, claim, pair, now)
}
