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
