package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

const (
	// eraseBatch is how many requests one transaction erases.
	eraseBatch = 100
	// eraseLease is how long a lane belongs to a worker that erases its account.
	eraseLease = 30 * time.Second
	// eraseWait is how long is waited for a lane that another worker holds, before it is
	// asked for again.
	eraseWait = 200 * time.Millisecond
	// eraseEvery is how often a worker looks for accounts of which something is left, and
	// eraseAgain how long after the first time: what other workers were about to write
	// then is written by now.
	eraseEvery = 30 * time.Second
	eraseAgain = time.Minute
	// eraseWithin bounds one account's turn.
	eraseWithin = 10 * time.Minute
)

// Eraser removes what is known of accounts whose owners leave. Whatever it has begun is
// gone on with by any Eraser: it finds out what is left.
type Eraser struct {
	EraserConfig
	media *publishers.MediaObjects
}

// EraserConfig is what an Eraser needs.
type EraserConfig struct {
	Ledger    store.Store
	JetStream jetstream.JetStream
	Names     jetpost.Names
	Outbox    *OutboxRelay
	X         *xapi.OAuth // takes tokens back; nil where nobody here can
	Worker    string      // names the process in the lane's lease
	Log       *slog.Logger
}

// NewEraser makes an eraser.
func NewEraser(ctx context.Context, c EraserConfig) (*Eraser, error) {
	media, err := publishers.OpenMediaObjects(ctx, c.JetStream, c.Names)
	return &Eraser{EraserConfig: c, media: media}, err
}

// Run goes on with what others have left, until the context ends.
func (e *Eraser) Run(ctx context.Context) {
	every := time.NewTicker(eraseEvery)
	defer every.Stop()
	for {
		if err := e.Resume(ctx, time.Now().Add(-eraseAgain)); err != nil && ctx.Err() == nil {
			e.Log.Warn("account.not_erased", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// Resume erases once more what was asked for before a time, and ends it where nothing is
// left.
func (e *Eraser) Resume(ctx context.Context, before time.Time) error {
	all, err := e.Ledger.Erasing(ctx)
	failures := []error{err}
	for _, one := range all {
		if one.AskedAt.After(before) {
			continue
		}
		err := e.Erase(ctx, one)
		if err == nil {
			err = e.Ledger.EndErase(ctx, one.Account)
		}
		if err != nil {
			failures = append(failures, err)
			continue
		}
		e.Log.Info("account.erased", "account", one.Account)
	}
	return errors.Join(failures...)
}

// Erase removes everything of an account that is there. It may be interrupted anywhere and
// called again.
func (e *Eraser) Erase(ctx context.Context, one store.Erasing) error {
	ctx, cancel := context.WithTimeout(ctx, eraseWithin)
	defer cancel()
	account, err := e.Ledger.Account(ctx, one.Account)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return err
	case account.CreatedAt.After(one.AskedAt):
		return nil // it was connected again since: what it has now is another customer's
	default:
		if _, err := e.TakeBack(ctx, one.Account); err != nil {
			e.Log.Warn("token.not_revoked", "account", one.Account, "error", err)
		}
		if err := e.ledger(ctx, one.Account); err != nil {
			return err
		}
	}
	media := &erasedMedia{Eraser: e, account: one.Account}
	if _, err := publishers.EraseAccount(ctx, e.JetStream, e.Names, one.Account, func(job []byte) error { return media.remove(ctx, job) }); err != nil {
		return err
	}
	if err := media.removeOwned(ctx); err != nil {
		return err
	}
	return e.Ledger.EraseRest(ctx, one.Account)
}

// ledger removes the account's requests, with their media, and then the account.
func (e *Eraser) ledger(ctx context.Context, account string) error {
	if err := e.cancel(ctx, account); err != nil {
		return err
	}
	lane, err := e.claim(ctx, account)
	if err != nil {
		return unlessGone(err)
	}
	media := &erasedMedia{Eraser: e, account: account}
	for {
		err := e.Ledger.ExtendLane(ctx, lane, eraseLease, time.Now())
		if err != nil {
			return err
		}
		// Their media first: afterwards nobody knows which they were.
		records, err := e.Ledger.ListRequests(ctx, store.Filter{Account: account, Limit: eraseBatch})
		if err != nil {
			return err
		}
		ids := make([]string, len(records))
		for i, r := range records {
			if err := media.remove(ctx, r.Body); err != nil {
				return err
			}
			ids[i] = r.ID
		}
		if len(ids) > 0 {
			if err := e.Ledger.EraseRequests(ctx, lane, ids, time.Now()); err != nil {
				return err
			}
			continue
		}
		if done, err := e.Ledger.EraseAccount(ctx, lane, time.Now()); done || err != nil {
			return err
		}
	}
}

// unlessGone takes an account that is not there for no error: another eraser was faster.
func unlessGone(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// cancel takes back what is unfinished, and tells so.
func (e *Eraser) cancel(ctx context.Context, account string) error {
	for _, state := range jetpost.States() {
		for !state.Finished() {
			records, err := e.Ledger.ListRequests(ctx, store.Filter{Account: account, State: state, Limit: eraseBatch})
			if err != nil {
				return err
			}
			for _, r := range records {
				if _, err := e.Ledger.Cancel(ctx, r.Key, time.Now()); err != nil && !errors.Is(err, store.ErrNotRunnable) {
					return err
				}
				if err := e.Outbox.Announce(ctx, r.Key); err != nil {
					return err
				}
			}
			if len(records) < eraseBatch {
				break
			}
		}
	}
	return nil
}

// claim takes the account's lane, so that nobody posts any more. A worker that is at it
// stops before its next post, since the account is paused.
func (e *Eraser) claim(ctx context.Context, account string) (store.Claim, error) {
	for {
		lane, claimed, err := e.Ledger.ClaimLane(ctx, account, e.Worker, eraseLease, time.Now())
		if err != nil || claimed {
			return lane, err
		}
		if sleepContext(ctx, eraseWait); ctx.Err() != nil {
			return lane, fmt.Errorf("another worker is at account %s: %w", account, ctx.Err())
		}
	}
}

// TakeBack has X take back the tokens of an account that is being erased, and forgets
// them. It returns whether X confirmed that, and else why not.
func (e *Eraser) TakeBack(ctx context.Context, account string) (revoked bool, words error) {
	token, err := e.Ledger.Token(ctx, account)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case token.Refresh.Empty() && token.Access.Empty():
		return true, nil // it was disconnected before
	case e.X == nil:
		return false, errors.New("X_CLIENT_ID is not set here")
	}
	if err := Revoke(ctx, e.X, token.Refresh.Reveal(), token.Access.Reveal()); err != nil {
		return false, err
	}
	if err := e.Ledger.ForgetPair(ctx, token); err != nil && !errors.Is(err, store.ErrFenced) {
		e.Log.Warn("token.not_forgotten", "account", account, "error", err) // it is dead at X
	}
	return true, nil
}

// Revoke takes tokens back, the one that could bring new ones first.
func Revoke(ctx context.Context, x *xapi.OAuth, refresh, access string) error {
	var failure error
	for _, token := range []string{refresh, access} {
		if token == "" {
			continue
		}
		// What is wrong is mostly wrong with both, and told once.
		if err := x.Revoke(ctx, token); err != nil && (failure == nil || failure.Error() != err.Error()) {
			failure = errors.Join(failure, err)
		}
	}
	return failure
}

// erasedMedia removes the media objects that an account's requests name, and no other
// account's.
type erasedMedia struct {
	*Eraser
	account string
	objects map[string]publishers.MediaObject // by name; nil until one is needed
	others  map[string]bool                   // names that requests of others have
}

// remove removes what a body names.
func (m *erasedMedia) remove(ctx context.Context, body []byte) error {
	names := map[string]bool{}
	objectNames(body, names)
	for name := range names {
		if err := m.list(ctx); err != nil {
			return err
		}
		object, there := m.objects[name]
		if !there || m.others[name] {
			continue
		}
		if err := m.media.Remove(ctx, object); err != nil {
			return err
		}
		delete(m.objects, name)
	}
	return nil
}

// removeOwned removes what was put there for the account alone, whether a request names it or
// not.
func (m *erasedMedia) removeOwned(ctx context.Context) error {
	if err := m.list(ctx); err != nil {
		return err
	}
	for name, object := range m.objects {
		if jetpost.ObjectOwner(name) != m.account || m.others[name] {
			continue
		}
		if err := m.media.Remove(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

func (m *erasedMedia) list(ctx context.Context) error {
	if m.objects != nil {
		return nil
	}
	all, err := m.media.List(ctx)
	if err != nil {
		return err
	}
	others := map[string]bool{}
	err = m.Ledger.MediaUsers(ctx, func(account string, body []byte) {
		if account != m.account {
			objectNames(body, others)
		}
	})
	if err != nil {
		return err
	}
	m.others, m.objects = others, map[string]publishers.MediaObject{}
	for _, object := range all {
		if object.Name != "" {
			m.objects[object.Name] = object
		}
	}
	return nil
}
