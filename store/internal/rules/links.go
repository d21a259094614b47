package rules

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"time"

	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
)

// verifierColumn is sealed for its own place.
const verifierColumn = "/attempt_verifier"

// ParseLinkID returns the digest of an id. The result for an invalid id matches no
// link.
func ParseLinkID(id string) ([]byte, error) {
	digest, err := hex.DecodeString(id)
	if err != nil || len(digest) != sha256.Size {
		return nil, store.ErrNotFound
	}
	return digest, nil
}

// MayBegin says why no attempt may begin now, or nil.
func MayBegin(link store.Link, busy bool, now time.Time) error {
	if err := link.Over(now); err != nil {
		return err
	}
	if busy {
		return store.ErrLinkBusy
	}
	return nil
}

// StoredAttempt is an attempt as it is stored, with its link.
type StoredAttempt struct {
	store.Link
	Browser   []byte // digest
	Verifier  string // sealed; "" once the attempt was taken
	ExpiresAt time.Time
}

// MayTake says why a browser may not take the attempt now, or nil. It fails with
// store.ErrOtherBrowser, store.ErrLinkUsed or store.ErrAttemptOver.
func (a StoredAttempt) MayTake(browser []byte, now time.Time) error {
	switch {
	case subtle.ConstantTimeCompare(a.Browser, browser) != 1:
		return store.ErrOtherBrowser
	case !a.UsedAt.IsZero():
		return store.ErrLinkUsed
	case a.Verifier == "" || !now.Before(a.ExpiresAt):
		return store.ErrAttemptOver
	}
	return nil
}

// Take opens the verifier for a browser that may take the attempt now. It fails as MayTake
// does, and with *store.KeyError or *store.DamagedError.
func (a StoredAttempt) Take(s *store.Sealer, browser []byte, now time.Time) (verifier secret.String, err error) {
	if err := a.MayTake(browser, now); err != nil {
		return secret.String{}, err
	}
	return s.Open(a.Verifier, a.ID+verifierColumn)
}

// SealVerifier seals a verifier for the row of the link of that id.
func SealVerifier(s *store.Sealer, id string, verifier secret.String) (string, error) {
	return s.Seal(verifier, id+verifierColumn)
}
