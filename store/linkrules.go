package store

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"time"

	"github.com/jetpost/jetpost/internal/secret"
)

// This file is for the drivers: the parts of links that are the same for every
// database.

// verifierColumn is sealed for its own place.
const verifierColumn = "/attempt_verifier"

// LinkDigest is what is stored of a link's token, state or browser. Each is random and
// too long to be guessed, so a plain hash hides it. A lookup by the hash reveals
// nothing by its duration.
func LinkDigest(value secret.String) []byte {
	sum := sha256.Sum256([]byte(value.Reveal()))
	return sum[:]
}

// LinkID is the id of the link whose token has that digest.
func LinkID(digest []byte) string { return hex.EncodeToString(digest) }

// ParseLinkID returns the digest of an id. The result for an invalid id matches no
// link.
func ParseLinkID(id string) ([]byte, error) {
	digest, err := hex.DecodeString(id)
	if err != nil || len(digest) != sha256.Size {
		return nil, ErrNotFound
	}
	return digest, nil
}

// Over says why the link opens nothing any more; it returns nil while the link is
// valid.
func (l Link) Over(now time.Time) error {
	switch {
	case !l.UsedAt.IsZero():
		return ErrLinkUsed
	case !now.Before(l.ExpiresAt):
		return ErrLinkExpired
	default:
		return nil
	}
}

// MayBegin says why no attempt may begin now, or nil.
func (l Link) MayBegin(busy bool, now time.Time) error {
	if err := l.Over(now); err != nil {
		return err
	}
	if busy {
		return ErrLinkBusy
	}
	return nil
}

// StoredAttempt is an attempt as it is stored, with its link.
type StoredAttempt struct {
	Link
	Browser   []byte // digest
	Verifier  string // sealed; "" once the attempt was taken
	ExpiresAt time.Time
}

// MayTake says why a browser may not take the attempt now, or nil. It fails with
// ErrOtherBrowser, ErrLinkUsed or ErrAttemptOver.
func (a StoredAttempt) MayTake(browser []byte, now time.Time) error {
	switch {
	case subtle.ConstantTimeCompare(a.Browser, browser) != 1:
		return ErrOtherBrowser
	case !a.UsedAt.IsZero():
		return ErrLinkUsed
	case a.Verifier == "" || !now.Before(a.ExpiresAt):
		return ErrAttemptOver
	}
	return nil
}

// Take opens the verifier for a browser that may take the attempt now. It fails as MayTake
// does, and with *KeyError or *DamagedError.
func (a StoredAttempt) Take(s *Sealer, browser []byte, now time.Time) (verifier secret.String, err error) {
	if err := a.MayTake(browser, now); err != nil {
		return secret.String{}, err
	}
	return s.Open(a.Verifier, a.ID+verifierColumn)
}

// SealVerifier seals a verifier for the row of the link of that id.
func (s *Sealer) SealVerifier(id string, verifier secret.String) (string, error) {
	return s.Seal(verifier, id+verifierColumn)
}
