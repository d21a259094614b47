package tweettext_test

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"flag"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/jetpost/jetpost/xapi/tweettext"
)

// weights names another table than the one in the repository; scripts/weights does.
var weights = flag.String("weights", "testdata/weights.jsonl.gz", "texts with their weights, an array a line")

// leastTexts is how many texts the table has at least.
const leastTexts = 20_000

// TestWeights: no text weighs less than X's own library says; scripts/weights has made
// the table with it. Where more is counted than by the library, a text that X takes is
// refused, which is bounded here as well.
func TestWeights(t *testing.T) {
	t.Parallel()
	file, err := os.Open(*weights)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	var lines io.Reader = file
	if strings.HasSuffix(*weights, ".gz") {
		if lines, err = gzip.NewReader(file); err != nil {
			t.Fatal(err)
		}
	}
	texts, less, more := 0, 0, 0
	for scanner := bufio.NewScanner(lines); scanner.Scan(); texts++ {
		var text string
		var want int
		if err := json.Unmarshal(scanner.Bytes(), &[]any{&text, &want}); err != nil {
			t.Fatal(err)
		}
		switch got := tweettext.Measure(text).Weight; {
		case got < want:
			if less++; less <= 20 {
				t.Errorf("%q weighs %d, less than %d", text, got, want)
			}
		case got > want:
			more++
		}
	}
	t.Logf("%d texts: %d weigh less than X's library says, %d more", texts, less, more)
	if less > 0 || texts < leastTexts {
		t.Errorf("%d of %d texts weigh less", less, texts)
	}
	const mostOver = 10 // of a hundred; these texts are all corners
	if more > texts*mostOver/100 {
		t.Errorf("%d of %d texts weigh more", more, texts)
	}
}
