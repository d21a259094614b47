package publishers

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
)

// Signer tells what a worker has written into the limits bucket from what somebody else
// has put there: by an HMAC-SHA256 under a key that only those have who may read the
// ledger. The zero Seal writes without one, and believes everything.
type Signer struct{ key []byte }

// SigningKeySize is the length of a key, in bytes.
const SigningKeySize = 32

// NewSigner is the seal of a key.
func NewSigner(key []byte) Signer { return Signer{key} }

// sealed is a value as it stands in the bucket. A later version of jetpost may add to
// Value what this one does not know: the sum is of its bytes.
type sealed struct {
	MAC   []byte          `json:"mac"`
	Value json.RawMessage `json:"value"`
}

// close is the value for that key of the bucket.
func (s Signer) close(key string, value []byte) ([]byte, error) {
	data, err := json.Marshal(sealed{MAC: s.sum(key, value), Value: value})
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", key, err)
	}
	return data, nil
}

// open is the value that was sealed for that key; false where it was not.
func (s Signer) open(key string, data []byte) ([]byte, bool) {
	var is sealed
	if err := json.Unmarshal(data, &is); err != nil || is.Value == nil {
		return data, len(s.key) == 0
	}
	return is.Value, len(s.key) == 0 || hmac.Equal(is.MAC, s.sum(key, is.Value))
}

// sum is of the key, too: a stop of one scope is none of another.
func (s Signer) sum(key string, value []byte) []byte {
	if len(s.key) == 0 {
		return nil
	}
	mac := hmac.New(sha256.New, s.key)
	mac.Write(append([]byte(key+"\n"), value...))
	return mac.Sum(nil)
}
