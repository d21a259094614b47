package store_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/store"
)

const place = "0190-row/access_token"

func newSealer(t *testing.T, keys ...string) *store.Sealer {
	t.Helper()
	sealer, err := store.NewSealer(strings.Join(keys, ","))
	if err != nil {
		t.Fatal(err)
	}
	return sealer
}

func seal(t *testing.T, s *store.Sealer, value string) string {
	t.Helper()
	sealed, err := s.Seal(secret.New(value), place)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestSealerOpensWhatItSealed(t *testing.T) {
	t.Parallel()
	s := newSealer(t, store.GenerateKey().Reveal())
	for _, value := range []string{"", "a token", strings.Repeat("long ", 1000)} {
		sealed := seal(t, s, value)
		if !strings.HasPrefix(sealed, "jp1."+s.KeyID()+".") || value != "" && strings.Contains(sealed, value) {
			t.Errorf("%q is sealed as %q", value, sealed)
		}
		if again := seal(t, s, value); again == sealed {
			t.Error("sealing twice gives the same text: the nonce is not random")
		}
		opened, err := s.Open(sealed, place)
		if err != nil || opened.Reveal() != value {
			t.Errorf("opened %q as %q, %v", value, opened.Reveal(), err)
		}
	}
	if _, err := s.Seal(secret.New("x"), ""); err == nil {
		t.Error("a value was sealed for no place")
	}
}

func TestSealerRotates(t *testing.T) {
	t.Parallel()
	older, newer := store.GenerateKey().Reveal(), store.GenerateKey().Reveal()
	before, after := newSealer(t, older), newSealer(t, newer, " "+older+" ")
	sealed := seal(t, before, "value")
	if opened, err := after.Open(sealed, place); err != nil || opened.Reveal() != "value" {
		t.Errorf("the second key opens %q, %v", opened.Reveal(), err)
	}
	if ids := after.KeyIDs(); len(ids) != 2 || ids[0] != after.KeyID() || ids[1] != before.KeyID() {
		t.Errorf("key ids are %v", ids)
	}
	var missing *store.KeyError
	if _, err := before.Open(seal(t, after, "value"), place); !errors.As(err, &missing) {
		t.Fatalf("a key that is not configured: error is %v, want a KeyError", err)
	}
	if missing.KeyID != after.KeyID() || !strings.Contains(missing.Hint(), store.KeyVariable) {
		t.Errorf("the error names key %s and hints %q", missing.KeyID, missing.Hint())
	}
}

func TestSealerFindsDamage(t *testing.T) {
	t.Parallel()
	s := newSealer(t, store.GenerateKey().Reveal())
	sealed := seal(t, s, "value")
	other := "A"
	if sealed[20:21] == other {
		other = "B"
	}
	tests := map[string]struct{ sealed, place string }{
		"another place":  {sealed, "0190-row/refresh_token"},
		"changed":        {sealed[:20] + other + sealed[21:], place},
		"clear text":     {"value", place},
		"cut":            {sealed[:len(sealed)-8], place},
		"empty":          {"", place},
		"no base64":      {sealed + "!", place},
		"no ciphertext":  {"jp1." + s.KeyID() + ".", place},
		"no key id":      {"jp1.." + sealed[13:], place},
		"strange key id": {"jp1.ZZZZZZZZ." + sealed[13:], place},
	}
	for name, test := range tests {
		var damaged *store.DamagedError
		if _, err := s.Open(test.sealed, test.place); !errors.As(err, &damaged) || damaged.Context != test.place {
			t.Errorf("%s: error is %v, want a DamagedError of %s", name, err, test.place)
		}
	}
}

func TestMatchKeyCheck(t *testing.T) {
	t.Parallel()
	const ledger = "0190-ledger"
	older, newer := store.GenerateKey().Reveal(), store.GenerateKey().Reveal()
	before, both, after := newSealer(t, older), newSealer(t, newer, older), newSealer(t, newer)
	keyCheck, err := before.MatchKeyCheck(ledger, "", false)
	if err != nil || keyCheck == "" {
		t.Fatalf("key check value of a new ledger is %q, %v", keyCheck, err)
	}
	tests := []struct {
		name   string
		sealer *store.Sealer
		needed bool
		moves  bool
	}{
		{"SameKey", before, false, false},
		{"OlderKeyNeeded", both, true, false},
		{"OlderKeyNotNeeded", both, false, true},
	}
	for _, test := range tests {
		next, err := test.sealer.MatchKeyCheck(ledger, keyCheck, test.needed)
		if err != nil || (next != "") != test.moves {
			t.Errorf("%s: next key check value is %q, %v", test.name, next, err)
		}
		if _, err := after.MatchKeyCheck(ledger, next, false); next != "" && err != nil {
			t.Errorf("%s: the newer key alone does not open the next key check value: %v", test.name, err)
		}
	}
	var missing *store.KeyError
	if _, err := after.MatchKeyCheck(ledger, keyCheck, false); !errors.As(err, &missing) {
		t.Errorf("the newer key alone: error is %v, want a KeyError", err)
	}
}

// TestMatchKeyCheckOfOldLedger: up to schema version 8 the value was bound to the column's
// old name.
func TestMatchKeyCheckOfOldLedger(t *testing.T) {
	t.Parallel()
	const ledger = "0190-ledger"
	older, newer := store.GenerateKey().Reveal(), store.GenerateKey().Reveal()
	old, err := newSealer(t, older).Seal(secret.New(ledger), ledger+"/canary")
	if err != nil {
		t.Fatal(err)
	}
	if next, err := newSealer(t, older).MatchKeyCheck(ledger, old, false); next != "" || err != nil {
		t.Errorf("the same key: got %q, %v", next, err)
	}
	next, err := newSealer(t, newer, older).MatchKeyCheck(ledger, old, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newSealer(t, newer).MatchKeyCheck(ledger, next, false); err != nil {
		t.Errorf("the newer key alone: %v", err)
	}
	var damaged *store.DamagedError
	if _, err := newSealer(t, older).MatchKeyCheck("another", old, false); !errors.As(err, &damaged) {
		t.Errorf("the value of another ledger: error is %v, want a DamagedError", err)
	}
}

func TestNewSealerListsMistakes(t *testing.T) {
	t.Parallel()
	good := store.GenerateKey().Reveal()
	tests := []struct {
		name, keys string
		want       []string
	}{
		{"Empty", " ", []string{"is empty"}},
		{"EmptyEntry", good + ",", []string{"key 2 of 2: has 0 characters"}},
		{"Many", strings.Repeat(good+",", 16) + good, []string{"17 keys"}},
		{"NotHex", strings.Repeat("zy", 32), []string{"key 1 of 1: holds characters that are no hex digits"}},
		{"Repeated", good + "," + good, []string{"key 2 of 2: repeats"}},
		{"Several", "abc," + good + "," + good[:63] + "x", []string{"key 1 of 3: has 3 characters", "key 3 of 3: holds"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := store.NewSealer(test.keys)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range append(test.want, store.KeyVariable) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			for entry := range strings.SplitSeq(test.keys, ",") {
				if len(entry) > 2 && strings.Contains(err.Error(), entry) || strings.Contains(err.Error(), "'z'") {
					t.Errorf("error %q shows key material", err)
				}
			}
		})
	}
}
