package rules

import (
	"bytes"
	"crypto/sha256"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
)

// PruneHold bounds each statement of Prune that holds locks.
const PruneHold = 60 * time.Millisecond

// DigestKept is how many bytes of a pruned request's digest are kept: enough that no
// other body has the same ones.
const DigestKept = 16

// PrunedRow is the row of a request of which only this is left.
func PrunedRow(key store.Key, digest []byte, status jetpost.RequestStatus) *Row {
	return &Row{Record: store.Record{Key: key, Pruned: true, Event: finalEvent(status.State), Delivered: status.Revision, Status: status}, Digest: digest}
}

func finalEvent(state jetpost.State) jetpost.EventType {
	switch state {
	case jetpost.StatePublished:
		return jetpost.EventRequestPublished
	case jetpost.StateFailed:
		return jetpost.EventRequestFailed
	default:
		return jetpost.EventRequestCancelled
	}
}

// repeats tells whether an acceptance is of the body that the pruned request had. One
// that no worker could read has the digest of its bytes.
func (r *Row) repeats(in store.Acceptance) bool {
	raw := sha256.Sum256(in.Body)
	if len(r.Digest) == 0 { // its body was lost before
		return true
	}
	return bytes.Equal(r.Digest, keptDigest(in.Digest)) || bytes.Equal(r.Digest, keptDigest(raw[:]))
}

func keptDigest(digest []byte) []byte { return digest[:min(len(digest), DigestKept)] }
