package consumers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/admission"
	"github.com/jetpost/jetpost/store"
)

const (
	// DefaultRefreshWindow makes a token due that expires within it.
	DefaultRefreshWindow = 24 * time.Hour
	// DefaultRefreshBatch is how many tokens one message asks to refresh.
	DefaultRefreshBatch = 10
	// DefaultRefreshBatchTime is how long one message may begin exchanges.
	DefaultRefreshBatchTime = 2 * time.Minute
	// exchangesAtOnce is how many tokens of a batch are claimed and exchanged together. A
	// claim lasts as long as one exchange may take.
	exchangesAtOnce = 10
)

// refreshWakeups publishes batches, which any free worker takes.
type refreshWakeups interface {
	Batch(ctx context.Context, batch jetpost.RefreshBatch) error
}

// refreshHandler handles ticks, batches and single refreshes. A tick opens a round and
// divides it into batches, which all workers share. A batch claims tokens that are due and
// that no other worker has claimed.
type refreshHandler struct {
	Refresher *refresher
	Wakeups   refreshWakeups
	Names     jetpost.Names
	Window    time.Duration // DefaultRefreshWindow if zero
	BatchSize int           // DefaultRefreshBatch if zero
	// BatchTime is how long a batch may begin exchanges. The next round takes the tokens
	// that are left. DefaultRefreshBatchTime if zero.
	BatchTime time.Duration
	Log       *slog.Logger
}

func (h *refreshHandler) window() time.Duration {
	if h.Window == 0 {
		return DefaultRefreshWindow
	}
	return h.Window
}

func (h *refreshHandler) batchSize() int {
	if h.BatchSize == 0 {
		return DefaultRefreshBatch
	}
	return h.BatchSize
}

func (h *refreshHandler) batchTime() time.Duration {
	if h.BatchTime == 0 {
		return DefaultRefreshBatchTime
	}
	return h.BatchTime
}

// Handle handles one message of the refresh stream.
func (h *refreshHandler) Handle(ctx context.Context, d delivery) error {
	subject := h.Names.Trim(d.Subject)
	switch subject[strings.LastIndexByte(subject, '.')+1:] {
	case "tick":
		return h.tick(ctx, d)
	case "batch":
		var batch jetpost.RefreshBatch
		if err := json.Unmarshal(d.Data, &batch); err != nil {
			h.Log.Warn("refresh.unreadable", "subject", subject, "error", err)
			return nil
		}
		return h.batch(ctx, d, batch)
	case "request", "order":
		var request jetpost.RefreshRequest
		body := json.NewDecoder(bytes.NewReader(d.Data))
		body.DisallowUnknownFields() // a misspelt force must not be ignored
		if err := body.Decode(&request); err != nil {
			h.Log.Warn("refresh.unreadable", "subject", subject, "error", err)
			return nil
		}
		return h.one(ctx, request, strings.HasSuffix(subject, "order"))
	default:
		h.Log.Warn("refresh.unreadable", "subject", subject)
		return nil
	}
}

// tick opens a round and publishes its batches. If a tick is redelivered because its worker
// died, the same round goes on: all its batches are published again, and each is counted
// once. A second round instead would leave the first one incomplete and unreported.
func (h *refreshHandler) tick(ctx context.Context, d delivery) error {
	now := time.Now()
	if pause, paused := h.Refresher.Gate.Paused(admission.TargetRefresh, now); paused {
		reasonLog(h.Log, pause.Reason).Warn("refresh.skipped")
		return nil
	}
	round, err := h.Refresher.Tokens.OpenRound(ctx, roundID(d), h.window(), h.batchSize(), now)
	if err != nil {
		return err
	}
	h.Log.Info("refresh.round_opened", "round", round.Round, "tokens", round.Total, "batches", round.Batches)
	for n := range round.Batches {
		if err := h.Wakeups.Batch(ctx, jetpost.RefreshBatch{Round: round.Round, Batch: n}); err != nil {
			return err
		}
	}
	if round.Batches == 0 {
		return h.complete(ctx, round)
	}
	return nil
}

// roundID is the id of a tick's round. The sequence alone is not unique, because the stream
// may have been created again.
func roundID(d delivery) string {
	return eventID(fmt.Sprintf("tick/%d/%d", d.Sequence, d.Stored.UnixNano()))
}

// batch refreshes one batch, several tokens at once, until it is full, nothing is due, its
// time is over or the worker stops.
func (h *refreshHandler) batch(ctx context.Context, d delivery, batch jetpost.RefreshBatch) error {
	end := time.Now().Add(h.batchTime())
	var done tally
	for left := h.batchSize(); left > 0 && time.Now().Before(end) && !d.stopping(); {
		asked := time.Now()
		tokens, err := h.claim(ctx, batch, min(left, exchangesAtOnce))
		if err != nil && left == h.batchSize() {
			return err
		}
		if len(tokens) == 0 {
			break
		}
		h.exchange(ctx, tokens, asked, &done)
		left -= len(tokens)
	}
	// Retried until it is counted, because a second run of the batch claims other tokens.
	var round store.Round
	err := h.Refresher.save(ctx, func(ctx context.Context) (err error) {
		round, err = h.Refresher.Tokens.BatchDone(ctx, store.BatchResult{
			Round: batch.Round, Batch: batch.Batch, Refreshed: done.refreshed, Failed: done.failed, Now: time.Now(),
		})
		return err
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		h.Log.Warn("refresh.round_unknown", "round", batch.Round)
		return nil
	case err != nil:
		return err
	}
	return h.complete(ctx, round)
}

// tally counts the exchanges of a batch.
type tally struct {
	mu                sync.Mutex
	refreshed, failed int
}

// exchange exchanges tokens concurrently. Each outcome is stored with its token.
func (h *refreshHandler) exchange(ctx context.Context, tokens []store.Token, asked time.Time, done *tally) {
	var group errgroup.Group
	for _, token := range tokens {
		group.Go(func() error {
			outcome := h.Refresher.exchange(ctx, token, asked)
			done.mu.Lock()
			defer done.mu.Unlock()
			if outcome.err != nil {
				done.failed++
			} else {
				done.refreshed++
			}
			return nil
		})
	}
	_ = group.Wait() // none returns an error
}

// claim claims tokens for a batch. It claims none while refreshes are paused or X is
// unreachable.
func (h *refreshHandler) claim(ctx context.Context, batch jetpost.RefreshBatch, limit int) ([]store.Token, error) {
	r := h.Refresher
	if err := r.Room.Err(); err != nil {
		return nil, err
	}
	now := time.Now()
	reason, held := r.Gate.Outage()
	if pause, paused := r.Gate.Paused(admission.TargetRefresh, now); paused {
		reason, held = pause.Reason, true
	}
	if held {
		reasonLog(h.Log, reason).Warn("refresh.skipped", "round", batch.Round)
		return nil, nil
	}
	tokens, err := r.Tokens.ClaimDue(ctx, store.DueClaim{Round: batch.Round, Limit: limit, Pace: r.Timing.pace(), Now: now})
	if unreadable(err) {
		// Tokens that no key decrypts wait for their key, the others go on.
		h.Log.Error("token.unreadable", "round", batch.Round, "error", err)
		return tokens, nil
	}
	return tokens, err
}

// complete publishes the summary of a round once its last batch is counted. Tokens that were
// neither refreshed nor failed count as skipped: they were renewed elsewhere, or could not
// be tried.
func (h *refreshHandler) complete(ctx context.Context, round store.Round) error {
	if !round.Completed || round.Delivered {
		return nil
	}
	round.Skipped = max(0, round.Total-round.Refreshed-round.Failed)
	event := jetpost.Event{
		EventID: eventID("round/" + round.Round), Type: jetpost.EventRefreshCompleted,
		Time: time.Now().UTC(), Refresh: &round.RefreshSummary,
	}
	if err := h.Refresher.DeadLetters.Event(ctx, h.Names.EventSubject(jetpost.EventRefreshCompleted, "", ""), event); err != nil {
		return err
	}
	if err := h.Refresher.Tokens.RoundDelivered(ctx, round.Round); err != nil {
		return err
	}
	h.Log.Info("refresh.completed", "round", round.Round, "total", round.Total,
		"refreshed", round.Refreshed, "failed", round.Failed, "skipped", round.Skipped)
	return nil
}

// forcedPause is how long after an exchange producers cannot force another one.
const forcedPause = 10 * time.Minute

// forcedLately reports whether the latest exchange is too recent for producers to force
// another one. Each exchange risks losing the account, so failed ones count, too.
func forcedLately(token store.Token, now time.Time) bool {
	since := now.Add(-forcedPause)
	return token.LastRefreshAt.After(since) || token.RefreshFailedAt.After(since) || token.StartedAt.After(since)
}

// one refreshes the token of one account, as a producer has requested or an operator has
// ordered.
func (h *refreshHandler) one(ctx context.Context, request jetpost.RefreshRequest, ordered bool) error {
	r := h.Refresher
	if err := r.Room.Err(); err != nil {
		return err
	}
	if pause, paused := r.Gate.Paused(admission.TargetRefresh, time.Now()); paused {
		reasonLog(h.Log, pause.Reason).Warn("refresh.skipped", "account", request.Account)
		return nil
	}
	token, err := r.Tokens.Token(ctx, request.Account)
	switch {
	case errors.Is(err, store.ErrNotFound):
		h.Log.Warn("refresh.unknown", "account", request.Account)
		return nil
	case unreadable(err):
		h.Log.Error("token.unreadable", "account", request.Account, "error", err)
		return nil
	case err != nil:
		return err
	}
	now := time.Now()
	if request.Force && !ordered && forcedLately(token, now) {
		h.Log.Warn("refresh.forced_too_often", "account", request.Account, "pause", forcedPause)
		request.Force = false
	}
	if young := now.Before(token.RefreshAfter(token.RefreshedAt)) || token.ExpiresAt.After(now.Add(h.window())); young && !request.Force {
		h.Log.Info("refresh.not_due", "account", request.Account)
		return nil
	}
	claim, claimed, err := r.Tokens.ClaimToken(ctx, store.TokenClaim{
		Account: request.Account, UsedVersion: token.Version, Force: request.Force, Pace: r.Timing.pace(), Now: now,
	})
	switch {
	case err != nil:
		return err
	case claimed:
		r.exchange(ctx, claim, now)
	default:
		h.Log.Info("refresh.not_due", "account", request.Account, "next_attempt", claim.NextAttemptAt)
	}
	return nil
}
