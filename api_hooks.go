package jetpost

import "time"

// Operations on webhooks, by which events are sent to programs over HTTPS.
const (
	OpHookCreate Operation = "hook.create"
	OpHookList   Operation = "hook.list"
	OpHookTest   Operation = "hook.test"
	OpHookEnable Operation = "hook.enable"
	OpHookRemove Operation = "hook.remove"
)

// MaxHooks bounds the webhooks of an installation.
const MaxHooks = 100

// EventHookTest is the type of the event that hook.test sends. It is sent to that receiver
// alone, and is in no stream.
const EventHookTest = "hook.test"

// HookCreate makes a webhook. One whose subject names an account is sent the events of
// that account alone.
type HookCreate struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// URL is the receiver's: https, with a host, without user name and password.
	URL string `json:"url"`
	// Events are the types that are sent; absent means all.
	Events []EventType `json:"events,omitempty"`
}

// HookCreated is a webhook that was made, with what its receiver checks signatures with.
type HookCreated struct {
	// Hook is the webhook.
	Hook Hook `json:"hook"`
	// Secret signs what is sent, as whsec_ and base64. It is told here alone.
	Secret string `json:"secret"`
}

// Hook is what is known of a webhook.
type Hook struct {
	// ID names it.
	ID string `json:"id"`
	// URL is the receiver's, without its query.
	URL string `json:"url"`
	// Account is the one whose events are sent; absent means those of all, and of the app.
	Account string `json:"account,omitempty"`
	// Events are the types that are sent; absent means all.
	Events []EventType `json:"events,omitempty"`
	// CreatedAt is when it was made: earlier events are not sent.
	CreatedAt time.Time `json:"created_at"`
	// DeliveredAt is when the receiver last took an event.
	DeliveredAt time.Time `json:"delivered_at,omitzero"`
	// FailedAt is when a delivery last failed.
	FailedAt time.Time `json:"failed_at,omitzero"`
	// LastError is why, for people.
	LastError string `json:"last_error,omitempty"`
	// FailingSince is when the deliveries began to fail; absent where the last one did not.
	FailingSince time.Time `json:"failing_since,omitzero"`
	// Dropped counts the events that the receiver did not take for 3 days, which are sent
	// no more.
	Dropped int `json:"dropped,omitempty"`
	// DisabledAt is when it was disabled: nothing is sent until somebody enables it.
	DisabledAt time.Time `json:"disabled_at,omitzero"`
	// Pending counts the events that wait; absent where NATS cannot be asked.
	Pending *uint64 `json:"pending,omitempty"`
}

// HookList asks for webhooks, the oldest first.
type HookList struct {
	// Limit is how many are listed at most, 1 to MaxPage; absent means DefaultPage.
	Limit int `json:"limit,omitempty"`
	// Cursor is the Next of the page before; absent begins.
	Cursor string `json:"cursor,omitempty"`
}

// HookPage is a part of the list of webhooks.
type HookPage struct {
	// Hooks are those of this page.
	Hooks []Hook `json:"hooks"`
	// Next is the cursor of the page after this one; absent where this is the last.
	Next string `json:"next,omitempty"`
}

// HookTest sends an event of the type hook.test now.
type HookTest struct {
	// ID is the webhook's.
	ID string `json:"id"`
}

// HookTested tells what the receiver answered.
type HookTested struct {
	// ID is the webhook's.
	ID string `json:"id"`
	// EventID is that of the event that was sent.
	EventID string `json:"event_id"`
	// Delivered tells that the receiver took it.
	Delivered bool `json:"delivered"`
	// Failure is why it did not, for people.
	Failure string `json:"failure,omitempty"`
}

// HookEnable has a webhook that was disabled send again what waits for it.
type HookEnable struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// ID is the webhook's.
	ID string `json:"id"`
}

// HookRemove ends a webhook. What waits for it is not sent.
type HookRemove struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// ID is the webhook's.
	ID string `json:"id"`
}
