package tweettext_test

import (
	"fmt"

	"github.com/jetpost/jetpost/xapi/tweettext"
)

// A link weighs 23 and a family 2, however long they are.
func ExampleMeasure() {
	m := tweettext.Measure("Our trip 👨‍👩‍👧‍👦: https://example.com/photos/2026/summer/the-whole-album")
	fmt.Println(m.Weight, m.URLs, m.Fits(tweettext.MaxWeight))
	// Output: 36 1 true
}

func ExampleSplit() {
	parts, err := tweettext.Split("A first sentence, and a second one. "+
		"Then there is a third, whose link example.com/is/never/cut into two.", 60)
	if err != nil {
		fmt.Println(err)
	}
	for _, part := range parts {
		fmt.Println(part)
	}
	// Output:
	// A first sentence, and a second one.
	// Then there is a third, whose link example.com/is/never/cut
	// into two.
}
