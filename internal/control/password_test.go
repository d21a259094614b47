package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestPassword: a hash opens for its password alone, each hash is another one, and what is
// stored cannot make a comparison cost without a bound.
func TestPassword(t *testing.T) {
	t.Parallel()
	p := newPasswords()
	hash, err := p.hash(t.Context(), "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	other, err := p.hash(t.Context(), "correct horse")
	if err != nil || other == hash {
		t.Errorf("a second hash is %q, %v", other, err)
	}
	for password, want := range map[string]bool{"correct horse": true, "correct horse ": false, "": false, hash: false} {
		if got, err := p.match(t.Context(), password, hash); got != want || err != nil {
			t.Errorf("%q matches: %t, %v", password, got, err)
		}
	}
	if got, err := p.match(t.Context(), "", ""); got || err != nil {
		t.Errorf("a password matches no hash: %t, %v", got, err)
	}
	for _, wrong := range []string{
		"x", strings.Replace(hash, "argon2id", "argon2i", 1), strings.Replace(hash, "m=19456", "m=4294967295", 1), strings.Replace(hash, "t=2", "t=0", 1),
		strings.Replace(hash, "v=19", "v=16", 1), strings.Replace(hash, "p=1", "p=0", 1), hash[:strings.LastIndex(hash, "$")+1], hash + "$",
	} {
		if got, err := p.match(t.Context(), "correct horse", wrong); got || err == nil {
			t.Errorf("%q matches: %t, %v", wrong, got, err)
		}
	}
}

// TestUnknownUserCostsAsMuch: a comparison without a hash, of a user that there is not, waits
// for the same few slots, and makes the same key.
func TestUnknownUserCostsAsMuch(t *testing.T) {
	t.Parallel()
	p := newPasswords()
	hash, err := p.hash(t.Context(), "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	var costs []string
	p.key = func(password, salt []byte, passes, memory uint32, threads uint8, length uint32) []byte {
		costs = append(costs, fmt.Sprintln(len(password), len(salt), passes, memory, threads, length))
		return make([]byte, length) // the key of no hash: it matches nothing all the same
	}
	for _, of := range []string{hash, ""} {
		if got, err := p.match(t.Context(), "wrong", of); got || err != nil {
			t.Errorf("matches: %t, %v", got, err)
		}
	}
	if len(costs) != 2 || costs[0] != costs[1] {
		t.Errorf("the costs of a known and of an unknown user are %q", costs)
	}
	for range maxHashes {
		p.slots <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, of := range []string{hash, ""} {
		if _, err := p.match(ctx, "wrong", of); !errors.Is(err, context.Canceled) {
			t.Errorf("a comparison beside %d others: %v", maxHashes, err)
		}
	}
}
