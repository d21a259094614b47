package jetpost

import "time"

// Operations on API tokens, with which programs call the other operations over HTTP. They
// are offered over NATS alone.
const (
	OpTokenCreate Operation = "token.create"
	OpTokenList   Operation = "token.list"
	OpTokenRevoke Operation = "token.revoke"
	OpTokenCheck  Operation = "token.check"
)

// Verb is what an API token allows: a group of operations.
type Verb string

// The verbs. None includes another.
const (
	VerbRead    Verb = "read"    // operations that change nothing
	VerbPublish Verb = "publish" // to put media, and to publish, check, move and cancel requests
	VerbManage  Verb = "manage"  // every other change
)

// Verbs lists every verb.
func Verbs() []Verb { return []Verb{VerbRead, VerbPublish, VerbManage} }

// Verb is what a token must allow for the operation. It is empty where no token allows it.
func (o Operation) Verb() Verb {
	info, known := o.Info()
	switch o {
	case OpTokenCreate, OpTokenList, OpTokenRevoke, OpTokenCheck,
		OpUserAdd, OpUserList, OpUserGet, OpUserSet, OpUserRemove, OpSessionBegin, OpSessionCheck, OpSessionEnd:
		return ""
	case OpRequestPublish, OpRequestCheck, OpRequestCancel, OpRequestReschedule, OpMediaPut:
		return VerbPublish
	case OpHookTest: // it changes nothing here, and calls the receiver
		return VerbManage
	}
	switch {
	case !known:
		return ""
	case info.Changes:
		return VerbManage
	}
	return VerbRead
}

// AllAccounts, as the account of an API token, stands for each account and for the
// operations that concern none.
const AllAccounts = "*"

const (
	// MaxTokenAccounts bounds the accounts that a token names.
	MaxTokenAccounts = 100
	// MaxTokenLife bounds the time from now to a token's end.
	MaxTokenLife = 5 * 365 * 24 * time.Hour
)

// TokenCreate makes an API token known. Its maker keeps the secret: the token travels as
// its digest.
type TokenCreate struct {
	// OperationID makes the change take effect once, however often it is asked for.
	OperationID string `json:"operation_id,omitempty"`
	// Name is the token's own, and a part of it: 1 to 64 of a-z 0-9 -.
	Name string `json:"name"`
	// Digest is the SHA-256 of the whole token, in 64 hexadecimal digits.
	Digest string `json:"digest"`
	// Accounts are those that it may name, 1 to MaxTokenAccounts, or * for all.
	Accounts []string `json:"accounts"`
	// Verbs are what it allows, at least one.
	Verbs []Verb `json:"verbs"`
	// ExpiresAt is its end.
	ExpiresAt time.Time `json:"expires_at"`
}

// APIToken is what is known of an API token.
type APIToken struct {
	// Name is the token's own.
	Name string `json:"name"`
	// Accounts are those that it may name, or * for all.
	Accounts []string `json:"accounts"`
	// Verbs are what it allows.
	Verbs []Verb `json:"verbs"`
	// CreatedAt is when it was made known.
	CreatedAt time.Time `json:"created_at"`
	// ExpiresAt is its end.
	ExpiresAt time.Time `json:"expires_at"`
	// RevokedAt is when it was revoked; absent where it was not.
	RevokedAt time.Time `json:"revoked_at,omitzero"`
}

// TokenList asks for API tokens, by name.
type TokenList struct {
	// Limit is how many are listed at most, 1 to MaxPage; absent means DefaultPage.
	Limit int `json:"limit,omitempty"`
	// Cursor is the Next of the page before; absent begins.
	Cursor string `json:"cursor,omitempty"`
}

// TokenPage is a part of the list of API tokens, with those that have ended.
type TokenPage struct {
	// Tokens are those of this page.
	Tokens []APIToken `json:"tokens"`
	// Next is the cursor of the page after this one; absent where this is the last.
	Next string `json:"next,omitempty"`
}

// TokenRevoke ends an API token now.
type TokenRevoke struct {
	// OperationID makes the change take effect once, however often it is asked for.
	OperationID string `json:"operation_id,omitempty"`
	// Name is the token's own.
	Name string `json:"name"`
}

// TokenCheck asks whether an API token allows an operation.
type TokenCheck struct {
	// Name is the one in the token.
	Name string `json:"name"`
	// Digest is the SHA-256 of the whole token, in 64 hexadecimal digits.
	Digest string `json:"digest"`
	// Operation is what is to be called.
	Operation Operation `json:"operation"`
	// Account is the one in its subject; absent where it concerns any, or none.
	Account string `json:"account,omitempty"`
}
