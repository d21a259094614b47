package store

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/secret"
)

// ErrTooManyHooks says that there are jetpost.MaxHooks webhooks.
var ErrTooManyHooks = errors.New("there are as many webhooks as possible")

const (
	// HookSecretPrefix begins the secret of a webhook, as the Standard Webhooks
	// specification has it.
	HookSecretPrefix = "whsec_"
	// hookSecretBytes is how much of it nobody can guess.
	hookSecretBytes = 32
)

// Hook is a webhook: which events are sent where, and what became of that.
type Hook struct {
	ID      string
	URL     string
	Account string              // whose events are sent; "" sends all
	Events  []jetpost.EventType // which are sent; none sends all
	// Sealed is its secret, as it is stored. See Hooks.HookSecret.
	Sealed    string
	CreatedAt time.Time
	// DeliveredAt is when the receiver last took an event, FailedAt when a delivery last
	// failed, and Error why.
	DeliveredAt, FailedAt time.Time
	Error                 string
	// FailingSince is when the deliveries began to fail; zero if the last one did not.
	FailingSince time.Time
	Dropped      int       // events that were given up
	DisabledAt   time.Time // zero: it is sent to
}

// HookFailure is a delivery that failed.
type HookFailure struct {
	At      time.Time
	Error   string
	Dropped bool // the event is given up
	Disable bool // nothing more is sent
}

// Hooks stores webhooks.
type Hooks interface {
	// AddHook stores a webhook with its secret, which is sealed. ErrTooManyHooks.
	AddHook(ctx context.Context, hook Hook, secret secret.String) error
	// RemoveHook removes a webhook and returns it as it was. ErrNotFound.
	RemoveHook(ctx context.Context, id string) (Hook, error)
	// EnableHook ends that a webhook is disabled. One that is not stays as it is.
	// ErrNotFound.
	EnableHook(ctx context.Context, id string) (Hook, error)
	// Hooks returns all webhooks, the oldest first.
	Hooks(ctx context.Context) ([]Hook, error)
	// HookSecret opens the secret of a webhook that was read. *KeyError, *DamagedError.
	HookSecret(hook Hook) (secret.String, error)
	// HookDelivered notes that the receiver took an event. ErrNotFound.
	HookDelivered(ctx context.Context, id string, at time.Time) error
	// HookFailed notes a delivery that failed. ErrNotFound.
	HookFailed(ctx context.Context, id string, f HookFailure) error
}

// NewHookSecret makes a secret of the form that the Standard Webhooks specification
// requires.
func NewHookSecret() secret.String {
	key := make([]byte, hookSecretBytes)
	_, _ = rand.Read(key) // never fails: it ends the program instead
	return secret.New(HookSecretPrefix + base64.StdEncoding.EncodeToString(key))
}

// SealHookSecret seals a webhook's secret.
func (s *Sealer) SealHookSecret(id string, plain secret.String) (string, error) {
	return s.Seal(plain, hookContext(id))
}

// OpenHookSecret opens it. *KeyError, *DamagedError.
func (s *Sealer) OpenHookSecret(hook Hook) (secret.String, error) {
	return s.Open(hook.Sealed, hookContext(hook.ID))
}

func hookContext(id string) string { return id + "/hook_secret" }
