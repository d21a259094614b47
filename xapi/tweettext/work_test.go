package tweettext_test

import (
	"strings"
	"testing"

	"github.com/jetpost/jetpost/xapi/tweettext"
)

// TestWorkIsLinear holds the work for a text to its length: whatever makes a
// search start over, it does so a few times at a place and not once for each
// place before it. It counts looks, since times say nothing on a busy machine.
func TestWorkIsLinear(t *testing.T) {
	t.Parallel()
	const (
		longText = 1 << 16
		// looks is the most for a byte: a run of host characters is found,
		// divided, searched and cut, and a path can be tried before that.
		looks = 6
		// walks is the most for a byte of a part, which is tried at one size and
		// then at smaller ones.
		walks = 6
	)
	for name, piece := range hostile() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := strings.Repeat(piece, longText/len(piece))
			if n := tweettext.URLWork(text); n > looks*len(text) {
				t.Errorf("the search for links looks %d times at %d bytes", n, len(text))
			}
			if n := tweettext.SplitWork(text, tweettext.MaxWeight); n > walks*len(text) {
				t.Errorf("the split walks over %d bytes of %d", n, len(text))
			}
		})
	}
}
