package app_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
)

// The command line and the documentation must not disagree on whether a person
// can do something.
func TestAdviceStandsWhereTheDocumentationHasSome(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/states.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|[^|]*\\|[^|]*\\| ([^|]*) \\|$")
	documented := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = m[2]
	}
	for _, code := range jetpost.Codes() {
		words, ok := documented[string(code)]
		if !ok {
			t.Errorf("%s: no row in docs/states.md", code)
			continue
		}
		onlyWait := strings.HasPrefix(words, "wait") && !strings.Contains(words, "jetpost")
		if advice := app.Advice(code); (advice == "") != onlyWait {
			t.Errorf("Advice(%s) = %q, docs/states.md says %q", code, advice, words)
		}
	}
}
