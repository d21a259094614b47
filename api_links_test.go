package jetpost_test

import (
	"strings"
	"testing"

	"github.com/jetpost/jetpost"
)

// TestSealCode: a code is opened with the secret of its own attempt, and by nothing else.
func TestSealCode(t *testing.T) {
	t.Parallel()
	keyOf := func(secret string) jetpost.CodeKey {
		key, err := jetpost.NewCodeKey(strings.Repeat(secret, 43))
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	key, other := keyOf("a"), keyOf("b")
	if len(key.State()) != 43 || key.State() == other.State() || key.State() != keyOf("a").State() {
		t.Errorf("states are %s and %s", key.State(), other.State())
	}
	sealed, err := jetpost.SealCode(key.State(), "a code of X")
	if err != nil || strings.Contains(sealed, "code") {
		t.Fatalf("sealed as %s, %v", sealed, err)
	}
	if code, err := key.Open(sealed); err != nil || code != "a code of X" {
		t.Errorf("opened as %q, %v", code, err)
	}
	again, err := jetpost.SealCode(key.State(), "a code of X")
	if err != nil || again == sealed {
		t.Errorf("sealed again as the same: %v", err)
	}
	for what, try := range map[string]string{"sealed for another": sealed, "no ciphertext": "AAAA", "no base64": "%", "empty": ""} {
		if code, err := other.Open(try); err == nil {
			t.Errorf("%s is opened as %q", what, code)
		}
	}
	for _, state := range []string{"", "%", "short", strings.Repeat("A", 43), key.State() + "AAAA"} {
		if sealed, err := jetpost.SealCode(state, "code"); err == nil {
			t.Errorf("sealed for the state %q as %s", state, sealed)
		}
	}
}
