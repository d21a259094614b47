package rules

import (
	"bytes"

	"github.com/jetpost/jetpost/store"
)

// SameOperation compares an operation with the digest of the one that was done under its
// id.
func SameOperation(op store.Operation, digest []byte) error {
	if !bytes.Equal(op.Digest, digest) {
		return store.ErrOperationReused
	}
	return nil
}
