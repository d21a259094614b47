package control

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// pendingWithin bounds the look at what waits for webhooks.
const pendingWithin = 3 * time.Second

// HookCreate makes a webhook for the events of the account or, with "", of all. A repeat is
// told the same secret.
func (c *Control) HookCreate(ctx context.Context, account string, in jetpost.HookCreate) (jetpost.HookCreated, error) {
	op, err := call(jetpost.OpHookCreate, account, in.OperationID, in)
	if err == nil {
		err = checkHook(account, in)
	}
	if err != nil {
		return jetpost.HookCreated{}, err
	}
	made, _, err := operate(ctx, c, op, func(ctx context.Context, ledger store.Changes) (jetpost.Hook, error) {
		hook := store.Hook{ID: "hook-" + strings.ToLower(rand.Text()[:12]), URL: in.URL, Account: account, Events: in.Events, CreatedAt: op.Now.UTC().Truncate(time.Microsecond)}
		err := ledger.AddHook(ctx, hook, store.NewHookSecret())
		if errors.Is(err, store.ErrTooManyHooks) {
			return jetpost.Hook{}, conflict("remove one with: jetpost hooks remove", "there are %d webhooks, which is the most", jetpost.MaxHooks)
		}
		return hookOf(hook), err
	})
	if err != nil {
		return jetpost.HookCreated{}, err
	}
	hook, err := findHook(ctx, c.Ledger, "", made.ID)
	if err != nil {
		return jetpost.HookCreated{}, err
	}
	secret, err := c.Ledger.HookSecret(hook)
	return jetpost.HookCreated{Hook: made, Secret: secret.Reveal()}, err
}

// checkHook refuses types that are never sent.
func checkHook(account string, in jetpost.HookCreate) error {
	if in.URL == "" {
		return &Error{Code: jetpost.ErrInvalid, Err: errors.New("url: is missing")}
	}
	for _, t := range in.Events {
		of, _, _ := strings.Cut(string(t), ".")
		switch {
		case !slices.Contains(jetpost.EventTypes(), t):
			return &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("events: %q is none of %v", t, jetpost.EventTypes())}
		case account != "" && of != "request" && of != "account":
			return &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("events: %q concerns no account", t)}
		}
	}
	return nil
}

// hookOf is a webhook as the contract has it.
func hookOf(h store.Hook) jetpost.Hook {
	return jetpost.Hook{
		ID: h.ID, URL: withoutQuery(h.URL), Account: h.Account, Events: h.Events, CreatedAt: h.CreatedAt, DeliveredAt: h.DeliveredAt, FailedAt: h.FailedAt,
		LastError: h.Error, FailingSince: h.FailingSince, Dropped: h.Dropped, DisabledAt: h.DisabledAt,
	}
}

// withoutQuery leaves out what of an address may be a secret.
func withoutQuery(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	u.RawQuery, u.Fragment = "", ""
	return u.String()
}

// hookReader is the part of the ledger that lists webhooks.
type hookReader interface {
	Hooks(ctx context.Context) ([]store.Hook, error)
}

// findHook finds a webhook of the account or, with "", any.
func findHook(ctx context.Context, ledger hookReader, account, id string) (store.Hook, error) {
	all, err := ledger.Hooks(ctx)
	if err != nil {
		return store.Hook{}, DatabaseError(err)
	}
	for _, hook := range all {
		if hook.ID == id && (account == "" || hook.Account == account) {
			return hook, nil
		}
	}
	return store.Hook{}, &Error{Code: jetpost.ErrNotFound, Err: fmt.Errorf("webhook %s: %w", id, store.ErrNotFound), Help: "see the ids with: jetpost hooks list"}
}

// HookList returns a page of webhooks, the oldest first, of the account or, with "", all.
func (c *Control) HookList(ctx context.Context, account string, in jetpost.HookList) (jetpost.HookPage, error) {
	page := jetpost.HookPage{Hooks: []jetpost.Hook{}}
	var after string
	if err := readCursor(in.Cursor, &after); err != nil {
		return page, err
	}
	all, err := c.Ledger.Hooks(ctx)
	if err != nil {
		return page, DatabaseError(err)
	}
	all = all[slices.IndexFunc(all, func(h store.Hook) bool { return h.ID == after })+1:]
	all = slices.DeleteFunc(all, func(h store.Hook) bool { return account != "" && h.Account != account })
	all, page.Next = cut(all, in.Limit, func(h store.Hook) string { return h.ID })
	ctx, cancel := context.WithTimeout(ctx, pendingWithin)
	defer cancel()
	for _, h := range all {
		hook := hookOf(h)
		hook.Pending = c.pending(ctx, h.ID)
		page.Hooks = append(page.Hooks, hook)
	}
	return page, nil
}

// pending counts what waits for a webhook; nil where NATS does not tell.
func (c *Control) pending(ctx context.Context, id string) *uint64 {
	if c.JS == nil || ctx.Err() != nil {
		return nil
	}
	consumer, err := c.JS.Consumer(ctx, c.Names.EventsStream(), jetpost.ConsumerHook(id))
	if err != nil {
		return nil
	}
	info := consumer.CachedInfo()
	n := info.NumPending + uint64(info.NumAckPending)
	return &n
}

// HookTest sends an event of the type hook.test to a receiver, now and once.
func (c *Control) HookTest(ctx context.Context, account string, in jetpost.HookTest) (jetpost.HookTested, error) {
	if c.Hooks == nil {
		return jetpost.HookTested{}, &Error{Code: jetpost.ErrUnsupported, Err: errors.New("test of a webhook: nobody here sends any"), Help: "start a worker"}
	}
	hook, err := findHook(ctx, c.Ledger, account, in.ID)
	if err != nil {
		return jetpost.HookTested{}, err
	}
	secret, err := c.Ledger.HookSecret(hook)
	if err != nil {
		return jetpost.HookTested{}, err
	}
	tested := jetpost.HookTested{ID: hook.ID, EventID: uuid.NewString()}
	event, err := json.Marshal(jetpost.Event{EventID: tested.EventID, Type: jetpost.EventHookTest, Time: time.Now().UTC()})
	if err != nil {
		return tested, err
	}
	if err := c.Hooks.Send(ctx, hook, secret, tested.EventID, event); err != nil {
		tested.Failure = oneLine(err)
		return tested, nil
	}
	tested.Delivered = true
	return tested, nil
}

// HookEnable ends that a webhook is disabled.
func (c *Control) HookEnable(ctx context.Context, account string, in jetpost.HookEnable) (jetpost.Hook, error) {
	op, err := call(jetpost.OpHookEnable, account, in.OperationID, in)
	if err != nil {
		return jetpost.Hook{}, err
	}
	answer, _, err := operate(ctx, c, op, changeHook(account, in.ID, store.Changes.EnableHook))
	return answer, err
}

// HookRemove ends a webhook.
func (c *Control) HookRemove(ctx context.Context, account string, in jetpost.HookRemove) (jetpost.Hook, error) {
	op, err := call(jetpost.OpHookRemove, account, in.OperationID, in)
	if err != nil {
		return jetpost.Hook{}, err
	}
	answer, _, err := operate(ctx, c, op, changeHook(account, in.ID, store.Changes.RemoveHook))
	if err == nil && c.JS != nil {
		// Workers do so, too, should this fail.
		if err := c.JS.DeleteConsumer(ctx, c.Names.EventsStream(), jetpost.ConsumerHook(in.ID)); err != nil {
			c.Log.Debug("hook.consumer_left", "hook", in.ID, "error", err)
		}
	}
	return answer, err
}

// changeHook changes a webhook of the account or, with "", any.
func changeHook(account, id string, change func(store.Changes, context.Context, string) (store.Hook, error)) func(context.Context, store.Changes) (jetpost.Hook, error) {
	return func(ctx context.Context, ledger store.Changes) (jetpost.Hook, error) {
		if _, err := findHook(ctx, ledger, account, id); err != nil {
			return jetpost.Hook{}, err
		}
		hook, err := change(ledger, ctx, id)
		return hookOf(hook), err
	}
}
