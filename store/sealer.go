package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jetpost/jetpost/internal/secret"
)

const (
	// KeyVariable names the environment variable that holds the keys. Errors name it to
	// say where to look.
	KeyVariable = "HUB_ENCRYPTION_KEY"

	keyBytes       = 32 // of one AES-256 key
	keyIDDigits    = 8  // hex digits of a key id
	maxKeys        = 16 // keys of one Sealer; rotation needs two
	sealedPrefix   = "jp1."
	keyCheckColumn = "/key_check"
	// oldKeyCheckColumn was the column's name up to schema version 8. The value of such
	// a ledger is bound to it until it moves to another key.
	oldKeyCheckColumn = "/canary"
	// SealedPrefixBytes is how much of a sealed value is needed to identify its key.
	SealedPrefixBytes = len(sealedPrefix) + keyIDDigits + len(".")
	// keyIDDomain separates the key id, which is printed, from any other use of a hash
	// of the key.
	keyIDDomain = "jetpost key id 1\x00"
)

// KeyError says that a value was sealed with a key that is not configured. The value is
// intact: it can be opened again once the key is back.
type KeyError struct {
	KeyID string // 8 hex digits
}

func (e *KeyError) Error() string {
	return fmt.Sprintf("no configured key has the id %s", e.KeyID)
}

// Hint tells the operator what to do.
func (e *KeyError) Hint() string {
	return fmt.Sprintf("add the key with the id %s to %s, behind a comma if there is a newer one", e.KeyID, KeyVariable)
}

// DamagedError says that a sealed value is malformed, cannot be opened with its own
// key, or is in another row or column than it was sealed for.
type DamagedError struct {
	Context string // row and column, as given to Open
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("sealed value of %s is damaged", e.Context)
}

// Hint tells the operator what to do.
func (e *DamagedError) Hint() string {
	return "restore the row from a backup, or connect the account again"
}

// Sealer turns secrets into text that is safe to store, and back, with AES-256-GCM. A
// sealed value has the form jp1.<key id>.<nonce and ciphertext>. It is bound to its row
// and column, so that ciphertext moved elsewhere cannot be opened. Sealer is safe for
// concurrent use.
type Sealer struct {
	ids   []string // the first seals
	aeads map[string]cipher.AEAD
}

// NewSealer reads a comma-separated list of keys of 64 hex digits each. The first key
// seals, every key opens. The error lists every mistake by the position of the entry
// and never shows any part of a key.
func NewSealer(keys string) (*Sealer, error) {
	if strings.TrimSpace(keys) == "" {
		return nil, fmt.Errorf("%s is empty: want %d hex digits", KeyVariable, 2*keyBytes)
	}
	entries := strings.Split(keys, ",")
	if len(entries) > maxKeys {
		return nil, fmt.Errorf("%s has %d keys: at most %d are possible", KeyVariable, len(entries), maxKeys)
	}
	s := &Sealer{aeads: make(map[string]cipher.AEAD, len(entries))}
	var mistakes []error
	for i, entry := range entries {
		if err := s.add(strings.TrimSpace(entry)); err != nil {
			mistakes = append(mistakes, fmt.Errorf("%s, key %d of %d: %w", KeyVariable, i+1, len(entries), err))
		}
	}
	if len(mistakes) > 0 {
		return nil, errors.Join(mistakes...)
	}
	return s, nil
}

// add adds one key. Its errors describe the entry without quoting it: the error of
// hex.DecodeString would show a character of the key.
func (s *Sealer) add(entry string) error {
	if len(entry) != 2*keyBytes {
		return fmt.Errorf("has %d characters, want %d hex digits", len(entry), 2*keyBytes)
	}
	key, err := hex.DecodeString(entry)
	if err != nil {
		return errors.New("holds characters that are no hex digits")
	}
	id := keyID(key)
	if _, ok := s.aeads[id]; ok {
		return errors.New("repeats an earlier one")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return fmt.Errorf("make cipher: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return fmt.Errorf("make cipher: %w", err)
	}
	s.ids = append(s.ids, id)
	s.aeads[id] = aead
	return nil
}

func keyID(key []byte) string {
	sum := sha256.Sum256(append([]byte(keyIDDomain), key...))
	return hex.EncodeToString(sum[:])[:keyIDDigits]
}

// GenerateKey returns a new random key as NewSealer reads it.
func GenerateKey() secret.String {
	key := make([]byte, keyBytes)
	_, _ = rand.Read(key) // never fails: it ends the program instead
	return secret.New(hex.EncodeToString(key))
}

// KeyID is the id of the key that seals.
func (s *Sealer) KeyID() string { return s.ids[0] }

// KeyIDs are the ids of all keys, the sealing key first.
func (s *Sealer) KeyIDs() []string { return slices.Clone(s.ids) }

// Seal seals a value for one place, named as "<row id>/<column>".
func (s *Sealer) Seal(plain secret.String, context string) (string, error) {
	if context == "" {
		return "", errors.New("seal value: no context given")
	}
	id := s.KeyID()
	sealed := s.aeads[id].Seal(nil, nil, []byte(plain.Reveal()), additional(id, context))
	return sealedPrefix + id + "." + base64.RawURLEncoding.EncodeToString(sealed), nil
}

// Open returns the value that was sealed for that place. It fails with
// *KeyError or *DamagedError.
func (s *Sealer) Open(sealed, context string) (secret.String, error) {
	id, text, ok := splitSealed(sealed)
	if !ok {
		return secret.String{}, &DamagedError{Context: context}
	}
	aead, ok := s.aeads[id]
	if !ok {
		return secret.String{}, &KeyError{KeyID: id}
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return secret.String{}, &DamagedError{Context: context}
	}
	plain, err := aead.Open(nil, nil, data, additional(id, context))
	if err != nil {
		return secret.String{}, &DamagedError{Context: context}
	}
	return secret.New(string(plain)), nil
}

// MatchKeyCheck opens the ledger's key check value ("" on a new ledger). It returns the
// value to store instead, or "" if the value stays. The value moves to the first key
// last of all: while a token still needs another key, a start must notice that this key
// is missing. It fails with *KeyError or *DamagedError.
func (s *Sealer) MatchKeyCheck(ledgerID, keyCheck string, otherKeysNeeded bool) (string, error) {
	if keyCheck != "" {
		_, err := s.Open(keyCheck, ledgerID+keyCheckColumn)
		if errors.As(err, new(*DamagedError)) {
			if _, oldErr := s.Open(keyCheck, ledgerID+oldKeyCheckColumn); oldErr == nil {
				err = nil
			}
		}
		if err != nil {
			return "", err
		}
		if otherKeysNeeded || strings.HasPrefix(keyCheck, sealedPrefix+s.KeyID()+".") {
			return "", nil
		}
	}
	return s.Seal(secret.New(ledgerID), ledgerID+keyCheckColumn)
}

// additional is unambiguous, because every key id has the same length.
func additional(id, context string) []byte { return []byte(id + context) }

// splitSealed splits a sealed value. A value without a well-formed key id is damaged:
// asking the operator for such a key would not help.
func splitSealed(sealed string) (id, text string, ok bool) {
	rest, ok := strings.CutPrefix(sealed, sealedPrefix)
	if !ok {
		return "", "", false
	}
	id, text, ok = strings.Cut(rest, ".")
	return id, text, ok && isKeyID(id)
}

func isKeyID(id string) bool {
	return len(id) == keyIDDigits && strings.Trim(id, "0123456789abcdef") == ""
}

// lacks reports whether the key with that id is not configured.
func (s *Sealer) lacks(id string) bool { return id != "" && s.aeads[id] == nil }

// KeyIDOf is the id of the key that a value was sealed with, or "" if it is no sealed
// value. The first SealedPrefixBytes of the value are enough.
func KeyIDOf(sealed string) string {
	id, _, ok := splitSealed(sealed)
	if !ok {
		return ""
	}
	return id
}
