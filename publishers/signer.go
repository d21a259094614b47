package publishers

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
)

// Signer distinguishes what a worker has written into the limits bucket from what
// others have put there, by an HMAC-SHA256 under a key that only readers of the ledger
// have. The zero Signer writes without one, and accepts everything.
type Signer struct{ key []byte }

// SigningKeySize is the length of a key, in bytes.
const SigningKeySize = 32

// NewSigner returns the signer of a key.
func NewSigner(key []byte) Signer { return Signer{key} }

// signed is a signed value as the bucket stores it. A later version of jetpost may add
// fields to Value that this one does not know: the sum is of its bytes.
type signed struct {
	MAC   []byte          `json:"mac"`
	Value json.RawMessage `json:"value"`
}

// close returns the signed value for that key of the bucket.
func (s Signer) close(key string, value []byte) ([]byte, error) {
	data, err := json.Marshal(signed{MAC: s.sum(key, value), Value: value})
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", key, err)
	}
	return data, nil
}

// open returns the value that was signed for that key; false if the signature does not
// match.
func (s Signer) open(key string, data []byte) ([]byte, bool) {
	var is signed
	if err := json.Unmarshal(data, &is); err != nil || is.Value == nil {
		return data, len(s.key) == 0
	}
	return is.Value, len(s.key) == 0 || hmac.Equal(is.MAC, s.sum(key, is.Value))
}

// sum includes the key: a pause of one target is not valid for another.
func (s Signer) sum(key string, value []byte) []byte {
	if len(s.key) == 0 {
		return nil
	}
	mac := hmac.New(sha256.New, s.key)
	mac.Write(append([]byte(key+"\n"), value...))
	return mac.Sum(nil)
}
