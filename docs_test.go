package jetpost

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestContractPageNamesEverything(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/contract/v1/README.md")
	for _, c := range contractTypes {
		eachField(reflect.TypeOf(c.of), func(_, name string) { mentions(t, page, name) })
	}
	api := read(t, "docs/contract/v1/api.md")
	for name, values := range constants(t) {
		on := page
		switch name {
		case "Operation", "ErrorCode", "DeadLetterKind", "Verb", "Role", "Deviation": // those of the control service
			on = api
		case "ReplayAction": // which tell what was done
			continue
		}
		for _, value := range values {
			mentions(t, on, value)
		}
	}
	for _, word := range replySettings() {
		mentions(t, page, word)
	}
}

// TestAPIPageNamesEverything: the page of the control service has a row for each operation,
// with what its subject names, and one for each code.
func TestAPIPageNamesEverything(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/contract/v1/api.md")
	words := map[OfAccount]string{OfNone: "no", OfAny: "optional", OfOne: "yes"}
	for _, o := range Operations() {
		if row := fmt.Sprintf("\n| `%s` | %s | ", o.Operation, words[o.Account]); !strings.Contains(page, row) {
			t.Errorf("there is no row %q", row)
		}
	}
	for _, code := range ErrorCodes() {
		if row := fmt.Sprintf("\n| `%s` | ", code); !strings.Contains(page, row) {
			t.Errorf("there is no row %q", row)
		}
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

// TestCodesHaveKinds: every code has one, and the page explains it in the section of that
// kind.
func TestCodesHaveKinds(t *testing.T) {
	t.Parallel()
	sections := map[CodeKind]string{
		KindRefused: "Refused: it never became a request", KindHeld: "Held: goes on by itself", KindHeldByX: "Held: X refuses the account",
		KindHeldForPerson: "Held: a person must act", KindFailed: "Failed", KindUnknown: "Unknown", KindAppPause: "App pauses",
	}
	under := map[string]string{} // a heading, by the codes with a row below it
	for _, section := range strings.Split(read(t, "docs/states.md"), "\n### ") {
		heading, text, _ := strings.Cut(section, "\n")
		for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\|").FindAllStringSubmatch(text, -1) {
			under[row[1]] = heading
		}
	}
	for _, code := range constants(t)["Code"] {
		kind := Code(code).Kind()
		if kind == KindNone {
			t.Errorf("%s has no kind", code)
		} else if under[code] != sections[kind] {
			t.Errorf("%s stands below %q, want %q", code, under[code], sections[kind])
		}
	}
}

// TestDocumentsNameProofs: a test, or a script, that a document names is there.
func TestDocumentsNameProofs(t *testing.T) {
	t.Parallel()
	tests := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (?:\([^)]*\) )?((?:Test|Benchmark|Fuzz)\w+)\(`)
	for _, path := range filesLike(t, "_test.go") {
		for _, name := range declared.FindAllStringSubmatch(read(t, path), -1) {
			tests[name[1]] = true
		}
	}
	named := regexp.MustCompile("`((?:Test|Benchmark|Fuzz)[A-Z]\\w*)|`\\./(scripts/\\w[\\w-]*)")
	proofs := 0
	for _, page := range documents(t) {
		for _, name := range named.FindAllStringSubmatch(read(t, page), -1) {
			proofs++
			if name[1] != "" && !tests[name[1]] {
				t.Errorf("%s names %s, which is no test", page, name[1])
			}
			if _, err := os.Stat(name[2]); name[2] != "" && err != nil {
				t.Errorf("%s names ./%s, which is no script", page, name[2])
			}
		}
	}
	if proofs < 100 {
		t.Errorf("found %d names of tests and scripts; are they no longer seen?", proofs)
	}
}

// TestDocumentsLink: a link within the repository leads to a file, and to a heading of it.
func TestDocumentsLink(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)\s]*)\)`)
	links := 0
	for _, page := range documents(t) {
		for _, found := range link.FindAllStringSubmatch(read(t, page), -1) {
			target, anchor, _ := strings.Cut(found[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			links++
			to := page
			if target != "" {
				to = filepath.Join(filepath.Dir(page), target)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s links to %s: %v", page, found[1], err)
			} else if anchor != "" && !headings(t, to)[anchor] {
				t.Errorf("%s links to %s, where no such heading is", page, found[1])
			}
		}
	}
	if links < 50 {
		t.Errorf("found %d links; are they no longer seen?", links)
	}
}

// headings are those of a page, as their links name them.
func headings(t *testing.T, page string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(read(t, page), -1) {
		name := regexp.MustCompile(`[^\w\- ]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		out[strings.ReplaceAll(name, " ", "-")] = true
	}
	return out
}

// documents are the pages that say what holds now.
func documents(t *testing.T) []string {
	t.Helper()
	return slices.DeleteFunc(filesLike(t, ".md"), func(path string) bool { return path == "CHANGELOG.md" })
}

// filesLike are the files of the repository with that ending.
func filesLike(t *testing.T, ending string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && strings.HasSuffix(path, ending) {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
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
