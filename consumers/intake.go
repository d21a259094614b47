package consumers

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// intakeLedger is the ledger's part at the door.
type intakeLedger interface {
	Accept(ctx context.Context, in store.Acceptance) (store.Decision, error)
	SameText(ctx context.Context, q store.TextQuery) (store.Key, bool, error)
	Refuse(ctx context.Context, refusal jetpost.Refusal, body []byte) error
}

// ringer rings an account's doorbell.
type ringer interface {
	Ring(ctx context.Context, account string) error
}

// pinner tells which bytes a request's media have now.
type pinner interface {
	Pin(ctx context.Context, request jetpost.Request) ([][]store.Media, error)
}

// IntakeHandler turns a job into a request in the ledger and rings its
// account's lane. It never calls X, so that a slow account does not delay the
// acceptance of another's jobs.
type IntakeHandler struct {
	Ledger   intakeLedger
	Announce *Announcer
	Bells    ringer
	Media    pinner
	Rules    Rules
	Names    jetpost.Names
	Log      *slog.Logger
}

// Handle accepts, recognises or refuses one job.
func (h *IntakeHandler) Handle(ctx context.Context, d Delivery) error {
	account, subject := h.origin(d.Subject)
	request, err := jetpost.Decode(account, d.Data)
	if err == nil {
		err = h.Rules.Check(request)
	}
	in := h.Rules.acceptance(request, d.Data)
	in.Now = time.Now()

	var invalid *jetpost.InvalidError
	var newer *jetpost.NewerVersionError
	switch {
	case errors.As(err, &invalid):
		return h.refuse(ctx, d, subject, jetpost.Refusal{
			Account: invalid.Account, ID: invalid.ID, Code: jetpost.CodeInvalidRequest, Problems: invalid.Problems,
		})
	case errors.As(err, &newer):
		in.Request = jetpost.Request{Version: newer.Version, Account: newer.Account, ID: newer.ID}
		in.Hold = &jetpost.Reason{
			Code: jetpost.CodeNeedsNewerWorker, Until: in.Now.Add(newerWorkerRetry),
			Detail: fmt.Sprintf("the request is of version %d, this worker knows %d", newer.Version, jetpost.Version),
		}
	case err != nil:
		return fmt.Errorf("decode job: %w", err)
	}
	if in.Hold != nil {
		// What a later version means by equal is not known here: the bytes.
		sum := sha256.Sum256(d.Data)
		in.Digest = sum[:]
	}
	if in.Request.ID == "" {
		in.Request.ID = fmt.Sprintf("m-%d-%d", d.Sequence, d.Stored.UnixNano())
	}
	if in.Media, err = h.Media.Pin(ctx, in.Request); err != nil {
		return err
	}
	return h.accept(ctx, d, subject, in)
}

func (h *IntakeHandler) accept(ctx context.Context, d Delivery, subject string, in store.Acceptance) error {
	key := store.Key{Account: in.Request.Account, ID: in.Request.ID}
	decision, err := h.Ledger.Accept(ctx, in)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return h.refuse(ctx, d, subject, jetpost.Refusal{
			Account: key.Account, ID: key.ID, Code: jetpost.CodeAccountUnknown,
			Problems: []jetpost.Problem{{Pointer: "/account", Message: fmt.Sprintf("no account %q is known; connect it, then replay this job", key.Account)}},
		})
	case err != nil:
		return err
	case decision == store.Conflict:
		return h.refuse(ctx, d, subject, jetpost.Refusal{
			Account: key.Account, ID: key.ID, Code: jetpost.CodeIdentityConflict,
			Problems: []jetpost.Problem{{Pointer: "/id", Message: fmt.Sprintf("id %q arrived before with another body; use a new id for a new job", key.ID)}},
		})
	}
	// A repeat is rung and told again: the first delivery may have died
	// between its commit and here. Both are no-ops where it did not.
	h.Announce.try(ctx, key)
	if err := h.Bells.Ring(ctx, key.Account); err != nil {
		return err
	}
	log := h.Log.With("account", key.Account, "request", key.ID, "posts", len(in.Request.Posts))
	if at := in.Request.PublishAt; !at.IsZero() {
		log = log.With("publish_at", at)
	}
	if decision == store.Repeated {
		log.Info("request.repeated")
		return nil
	}
	log.Info("request.accepted")
	h.warnOfText(ctx, key, in)
	return nil
}

// warnOfText warns of a text that another account posts too. It looks once the
// request is there to be seen: of two that come at once, one at least is told of.
func (h *IntakeHandler) warnOfText(ctx context.Context, key store.Key, in store.Acceptance) {
	if h.Rules.SameText != SameTextWarn && h.Rules.SameText != "" {
		return
	}
	other, found, err := h.Ledger.SameText(ctx, store.TextsOf(in.Request, in.Now))
	if err != nil {
		h.Log.Warn("request.same_text_unknown", "account", key.Account, "request", key.ID, "error", err)
	}
	if found {
		h.Log.Warn("request.same_text", "account", key.Account, "request", key.ID, "other_account", other.Account, "other_request", other.ID)
	}
}

// refuse records a job that nothing will be sent of, in the ledger, in the
// failed stream and as an event.
func (h *IntakeHandler) refuse(ctx context.Context, d Delivery, subject string, r jetpost.Refusal) error {
	r.Sequence, r.Stored = d.Sequence, d.Stored
	if err := h.Ledger.Refuse(ctx, r, d.Data); err != nil {
		return err
	}
	if err := h.Announce.Records.Refused(ctx, r, subject, d.Data); err != nil {
		return err
	}
	h.Log.Warn("request.refused", "account", r.Account, "request", r.ID, "code", r.Code, "sequence", r.Sequence, "problems", len(r.Problems))
	err := h.tellRefused(ctx, r)
	var tooLarge *publishers.TooLargeError
	if errors.As(err, &tooLarge) && len(r.Problems) > 1 {
		// The ledger has them all. One message must not hold up its partition.
		r.Problems = r.Problems[:1]
		err = h.tellRefused(ctx, r)
	}
	if err != nil {
		return err
	}
	return nil
}

func (h *IntakeHandler) tellRefused(ctx context.Context, r jetpost.Refusal) error {
	return h.Announce.Records.Event(ctx, h.Names.RefusedEvent(r.Account, r.Sequence), jetpost.Event{
		EventID: eventID(fmt.Sprintf("refused/%d/%d", r.Sequence, r.Stored.UnixNano())),
		Type:    jetpost.EventRequestRefused, Time: r.Stored, Refusal: &r,
	})
}

// origin reads the account off the stored subject, and tells which subject the
// producer used.
func (h *IntakeHandler) origin(stored string) (account, subject string) {
	tokens := strings.Split(h.Names.Trim(stored), ".")
	if len(tokens) == 4 { // publish.intake.<partition>.<account>
		account = tokens[3]
	}
	return account, h.Names.PublishRequest(account)
}
