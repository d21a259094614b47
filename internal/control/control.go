package control

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// maxListed bounds what one look into the ledger by hand reads.
const maxListed = 10_000 // requests

// Control carries out the operations of the contract. It is safe for concurrent use.
type Control struct {
	Ledger      store.Store
	JS          jetstream.JetStream
	Names       jetpost.Names
	OutboxRelay *consumers.OutboxRelay
	Rules       consumers.Rules
	Log         *slog.Logger
	// X takes back the tokens of accounts that are disconnected; nil where nobody here
	// can.
	X *xapi.OAuth
	// AliveWithin is how young the last heartbeat of a living worker is.
	AliveWithin time.Duration
	// Status tells whether posts go out, Notes what a forecast leaves out, Link makes a
	// one-time link, Connect exchanges the code of a consent and stores the account, and
	// Verify compares an account's posts with its timeline on X; nil where nobody here can.
	Status  func(ctx context.Context) (jetpost.StatusReport, error)
	Notes   func(ctx context.Context, accounts int) ([]string, error)
	Link    func(ctx context.Context, links LinkKeeper, account string, in jetpost.AccountLink) (jetpost.Link, error)
	Connect func(ctx context.Context, accounts store.Accounts, code ConsentCode) (jetpost.Connected, error)
	Verify  func(ctx context.Context, account store.Account, in jetpost.AccountVerify) (jetpost.Verification, error)
	// Now judges links and attempts; time.Now where nil.
	Now func() time.Time
	// Hooks sends the tests of webhooks; nil where nobody here can.
	Hooks *consumers.HookSender
	// Worker names whoever erases accounts, in leases.
	Worker string

	passwords   *passwords
	wakeups     *publishers.Wakeups
	deadLetters *publishers.DeadLetters
	publisher   *publishers.Publisher
}

// LinkKeeper keeps links that are made.
type LinkKeeper interface {
	AddLink(ctx context.Context, link store.NewLink) error
}

// New completes a Control whose other fields are set.
func New(c Control) *Control {
	c.passwords = newPasswords()
	c.wakeups = publishers.NewWakeups(c.JS, c.Names)
	c.deadLetters = publishers.NewDeadLetters(c.JS, c.Names)
	c.publisher = publishers.New(c.JS, c.Names)
	return &c
}

// call names a change for the ledger: one that is asked for again has the same digest. Its
// target is the id or the name in the body, of what it concerns or becomes. The asker's id is
// the account's own: nobody uses up those of another one.
func call(o jetpost.Operation, account, id string, in any) (store.Operation, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return store.Operation{}, fmt.Errorf("encode %s: %w", o, err)
	}
	var named struct{ ID, Name, To string }
	if err := json.Unmarshal(body, &named); err != nil {
		return store.Operation{}, fmt.Errorf("read %s: %w", o, err)
	}
	if id != "" {
		id = account + "/" + id
	}
	sum := sha256.Sum256([]byte(string(o) + "\x00" + account + "\x00" + string(body)))
	return store.Operation{ID: id, Digest: sum[:], Now: time.Now(), Name: o, Account: account, Target: cmp.Or(named.ID, named.Name, named.To)}, nil
}

// operate makes a change once and keeps its answer with it. That it cannot be made is an
// answer, too, as long as nothing but another state would change that: such a change
// fails before it has changed anything.
func operate[A any](ctx context.Context, c *Control, op store.Operation, change func(context.Context, store.Changes) (A, error)) (answer A, repeated bool, err error) {
	var refusal error
	body, repeated, err := c.Ledger.Operate(ctx, op, func(ctx context.Context, in store.Changes) ([]byte, error) {
		refusal = nil
		answer, err = change(ctx, in)
		if err == nil {
			return kept(ctx, in, op, jetpost.AuditDone, answer)
		}
		is := APIError(err)
		if !is.Definite() {
			return nil, err
		}
		refusal = err
		return kept(ctx, in, op, string(is.Code), jetpost.ErrorAnswer{Error: is})
	})
	switch {
	case err != nil:
		return answer, false, DatabaseError(err)
	case !repeated:
		return answer, false, refusal
	}
	answer, err = decodeAnswer[A](body)
	return answer, true, err
}

// kept notes what became of a change, and is the answer as it is kept.
func kept(ctx context.Context, in store.Changes, op store.Operation, outcome string, answer any) ([]byte, error) {
	if err := note(ctx, in, op, outcome); err != nil {
		return nil, err
	}
	return json.Marshal(answer)
}

// decodeAnswer reads an answer that was kept.
func decodeAnswer[A any](body []byte) (answer A, err error) {
	var refused jetpost.ErrorAnswer
	if err := json.Unmarshal(body, &refused); err == nil && refused.Error != nil {
		return answer, refused.Error
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return answer, fmt.Errorf("read answer that was kept: %w", err)
	}
	return answer, nil
}

// errNotDone ends the look for an operation that was not done.
var errNotDone = errors.New("not done")

// done returns the answer to an operation that was done before, and true.
func done[A any](ctx context.Context, c *Control, op store.Operation) (answer A, was bool, err error) {
	answer, was, err = operate(ctx, c, op, func(context.Context, store.Changes) (A, error) { return answer, errNotDone })
	if errors.Is(err, errNotDone) {
		err = nil
	}
	return answer, was, err
}

// answered replaces the answer that is kept to an operation, for what became of it since.
// Where that fails, a repeat is answered with what was known before.
func (c *Control) answered(ctx context.Context, op store.Operation, answer any) {
	if op.ID == "" {
		return
	}
	body, err := json.Marshal(answer)
	if err == nil {
		err = c.Ledger.AnswerOperation(ctx, op.ID, body)
	}
	if err != nil {
		c.Log.Warn("operation.not_answered", "operation", op.ID, "error", err)
	}
}

// tell announces a change that is committed and has a worker look at it.
func (c *Control) tell(ctx context.Context, key store.Key) {
	err := errors.Join(c.OutboxRelay.Announce(ctx, key), c.wakeups.Wake(ctx, key.Account))
	if err != nil {
		c.Log.Warn("event.delayed", "account", key.Account, "request", key.ID, "error", err)
	}
}
