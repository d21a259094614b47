package jetpost

import (
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"errors"
	"fmt"
	"time"
)

// The bodies of the operations with which the owner of an account on X connects it: by a
// one-time link of account.link, or beside whoever begins. Secrets stay with those who made
// them. A link and a browser travel as their SHA-256, and the code that X sends back
// travels once, to the worker that exchanges it, sealed with the attempt's key.

// LinkGet asks for a one-time link that still opens something: by the link itself, or by
// the attempt that was begun with it.
type LinkGet struct {
	// Link is the SHA-256 of the link's token, in 64 hexadecimal digits; absent where State
	// is set.
	Link string `json:"link,omitempty"`
	// State is what X sent back; Browser comes with it.
	State string `json:"state,omitempty"`
	// Browser is the SHA-256 of what the browser is known by that began the attempt.
	Browser string `json:"browser,omitempty"`
}

// LinkInfo is a one-time link.
type LinkInfo struct {
	// Account is the name under which it connects an account.
	Account string `json:"account"`
	// ReturnTo is where people are sent afterwards; absent shows a page.
	ReturnTo string `json:"return_to,omitempty"`
	// ExpiresAt is its end.
	ExpiresAt time.Time `json:"expires_at"`
	// ConsentAt is where X asks for consent, without a path: https://x.com.
	ConsentAt string `json:"consent_at"`
}

// AccountConsent begins an attempt to connect an account: it makes the address at which X
// asks the account's owner. A newer attempt with the same link replaces it.
type AccountConsent struct {
	// OperationID makes the change take effect once, however often it is asked for.
	OperationID string `json:"operation_id,omitempty"`
	// Link is the SHA-256 of a one-time link's token, in 64 hexadecimal digits; absent where
	// there is no link, and whoever begins sends the owner to X.
	Link string `json:"link,omitempty"`
	// Browser is the SHA-256 of a secret of the browser that begins, 64 hexadecimal digits:
	// nobody else can end the attempt.
	Browser string `json:"browser"`
	// RedirectURI is where X sends the browser back to. It must be registered with the app.
	RedirectURI string `json:"redirect_uri"`
}

// Consent is an attempt that was begun.
type Consent struct {
	// Page is where X asks for the consent.
	Page string `json:"page"`
	// State is what X sends back with its answer. The code is sealed with it: see SealCode.
	State string `json:"state"`
	// ExpiresAt is when the attempt is over.
	ExpiresAt time.Time `json:"expires_at"`
}

// AccountConnect ends an attempt with what X sent back. A worker exchanges the code and
// stores the account's tokens.
type AccountConnect struct {
	// OperationID makes the change take effect once, however often it is asked for.
	OperationID string `json:"operation_id,omitempty"`
	// State is what X sent back.
	State string `json:"state"`
	// Browser is the SHA-256 of the secret with which the attempt was begun.
	Browser string `json:"browser"`
	// Code is what X sent back, sealed by SealCode; absent where X sent none, which gives the
	// attempt up.
	Code string `json:"code,omitempty"`
	// RedirectURI is the one with which the attempt was begun.
	RedirectURI string `json:"redirect_uri"`
}

// ConnectGivenUp is the Result of an attempt without a code.
const ConnectGivenUp = "given_up"

// Connected is an account that was connected.
type Connected struct {
	// Name is the account's.
	Name string `json:"name"`
	// XUserID is the user on X.
	XUserID string `json:"x_user_id,omitempty"`
	// Username is the user's name on X, without the @.
	Username string `json:"username,omitempty"`
	// Result is created, replaced where the account was known, or given_up.
	Result string `json:"result"`
	// Scope lists what was consented to.
	Scope string `json:"scope,omitempty"`
	// TokenExpiresAt is when the access token ends, which is renewed before.
	TokenExpiresAt time.Time `json:"token_expires_at,omitzero"`
}

// codePurpose keeps what is sealed for one purpose from being used for another.
const codePurpose = "jetpost: code of a consent"

// SealCode seals the code that X sent back with a state: the worker that ends the attempt
// can open it, and nobody else. The state is the attempt's public key (X25519); HPKE with
// HKDF-SHA256 and AES-256-GCM (RFC 9180) seals the code, in base64url without padding.
func SealCode(state, code string) (string, error) {
	key, err := base64.RawURLEncoding.DecodeString(state)
	if err != nil {
		return "", errors.New("seal code: the state is none of an attempt")
	}
	public, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("seal code: %w", err)
	}
	sealed, err := hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(codePurpose), []byte(code))
	if err != nil {
		return "", fmt.Errorf("seal code: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sealed), nil
}

// CodeKey opens what SealCode seals for one attempt.
type CodeKey struct{ private hpke.PrivateKey }

// NewCodeKey derives the key of an attempt from its secret, of 256 random bits at least.
func NewCodeKey(secret string) (CodeKey, error) {
	private, err := hpke.DHKEM(ecdh.X25519()).DeriveKeyPair([]byte(secret))
	if err != nil {
		return CodeKey{}, fmt.Errorf("derive key of attempt: %w", err)
	}
	return CodeKey{private: private}, nil
}

// State is what X sends back, and what seals for the key.
func (k CodeKey) State() string {
	return base64.RawURLEncoding.EncodeToString(k.private.PublicKey().Bytes())
}

// Open opens a sealed code.
func (k CodeKey) Open(sealed string) (string, error) {
	text, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil {
		return "", errors.New("open code: it is not sealed")
	}
	code, err := hpke.Open(k.private, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(codePurpose), text)
	if err != nil {
		return "", errors.New("open code: it is not sealed for this attempt")
	}
	return string(code), nil
}
