package jetpost

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

func TestContractPageNamesEverything(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/contract/v1/README.md")
	for _, c := range contractTypes {
		eachField(reflect.TypeOf(c.of), func(_, name string) { mentions(t, page, name) })
	}
	for _, values := range constants(t) {
		for _, value := range values {
			mentions(t, page, value)
		}
	}
	for _, word := range replySettings() {
		mentions(t, page, word)
	}
}

// Each example is one of the contract's documents, strictly read.
func TestContractPageExamples(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/contract/v1/README.md")
	blocks := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(page, -1)
	inline := regexp.MustCompile(`publish\.request\.acme '(.*)'`).FindAllStringSubmatch(page, -1)
	requests, events, refreshes := 0, 0, 0
	for _, block := range append(blocks, inline...) {
		body := []byte(block[1])
		var err error
		switch {
		case strings.Contains(block[1], `"event_id"`):
			events++
			err = strict(body, new(Event))
		case strings.Contains(block[1], `"posts"`):
			requests++
			_, err = Decode("acme", body)
		default:
			refreshes++
			err = strict(body, new(RefreshRequest))
		}
		if err != nil {
			t.Errorf("%v in:\n%s", err, body)
		}
	}
	if requests < 3 || events < 1 || refreshes < 1 {
		t.Errorf("found %d requests, %d events, %d refreshes; is an example no longer seen?", requests, events, refreshes)
	}
}

func TestStatesPageExplainsEverything(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/states.md")
	for _, name := range append(strs(States()), strs(Codes())...) {
		// A row of its own, not merely a mention.
		if n := strings.Count(page, "\n| `"+name+"` |"); n != 1 {
			t.Errorf("%q has %d rows, want 1", name, n)
		}
	}
	for _, name := range constants(t)["PostState"] {
		mentions(t, page, name)
	}
	next := 0
	for _, code := range strs(Codes()) {
		at := strings.Index(page, "\n| `"+code+"` |")
		if at < next {
			t.Errorf("%q does not stand in the order of Codes", code)
		}
		next = at
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func mentions(t *testing.T, page, name string) {
	t.Helper()
	if !strings.Contains(page, "`"+name+"`") {
		t.Errorf("`%s` is not mentioned", name)
	}
}

func strict(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	return d.Decode(into)
}
