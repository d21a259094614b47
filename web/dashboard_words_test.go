package web

import (
	"testing"

	"github.com/jetpost/jetpost"
)

// TestReasonsHaveWords: people read words for every code, and no code that is gone has any.
func TestReasonsHaveWords(t *testing.T) {
	t.Parallel()
	words := reasons()
	for _, code := range jetpost.Codes() {
		if words[code] == "" {
			t.Errorf("%s has no words", code)
		}
		delete(words, code)
	}
	for code := range words {
		t.Errorf("%s is no code", code)
	}
}

// TestThousands: numbers are read in groups of three digits.
func TestThousands(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 123456: "123,456", 12345678: "12,345,678", -1: "-1", -999: "-999", -1000: "-1,000"} {
		if got := thousands(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
