package jetpost

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// maxDepth bounds how deep a message nests. Version 1 needs six levels. More leaves
// room for later versions, of which only the identity is read.
const maxDepth = 32 // objects and arrays within each other

// ByteOrderMark is what some editors put before a text. It has no meaning here and is
// skipped.
const ByteOrderMark = "\uFEFF"

// LineFeeds returns a text whose lines all end in LF, as X stores it.
func LineFeeds(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
}

// kind is the kind of a JSON value, in the words of a message.
type kind string

const (
	kindObject  kind = "an object"
	kindArray   kind = "an array"
	kindString  kind = "a string"
	kindNumber  kind = "a number"
	kindBoolean kind = "a boolean"
	kindNull    kind = "null"
)

// node is a JSON value that keeps what encoding/json drops when it fills a Go
// type: the order and the repeats of members, and what kind each value was.
type node struct {
	kind    kind
	word    string   // of a string its value, of a number its digits
	truth   bool     // of a boolean
	members []member // of an object, without repeats
	items   []node   // of an array
}

type member struct {
	name  string
	value node
}

// member returns the null node if there is no such member.
func (n node) member(name string) node {
	for _, m := range n.members {
		if m.name == name {
			return m.value
		}
	}
	return node{kind: kindNull}
}

// parse reads a body that must be one JSON object. A mistake in the body as a whole is
// an error; a repeated member is a finding.
func parse(body []byte, f *findings) (node, error) {
	body = bytes.TrimPrefix(body, []byte(ByteOrderMark))
	if len(bytes.TrimSpace(body)) == 0 {
		return node{}, errors.New("is empty, want a JSON object")
	}
	if at := invalidUTF8(body); at >= 0 {
		return node{}, fmt.Errorf("is not UTF-8 at %s", position(body, at))
	}
	// The decoder's tokens alone do not show what follows the object.
	var whole json.RawMessage
	if err := json.Unmarshal(body, &whole); err != nil {
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			// Offset counts the bytes read, including the offending one.
			return node{}, fmt.Errorf("is not JSON at %s: %w", position(body, int(syntax.Offset)-1), err)
		}
		return node{}, fmt.Errorf("is not JSON: %w", err)
	}
	t := tree{Decoder: json.NewDecoder(bytes.NewReader(body)), body: body, found: f}
	t.UseNumber()
	root, err := t.value("", 0)
	if err == nil && root.kind != kindObject {
		err = fmt.Errorf("is %s, want %s", root.kind, kindObject)
	}
	return root, err
}

// tree reads a body into nodes.
type tree struct {
	*json.Decoder
	body  []byte
	found *findings
}

// value reads the next value, which is nested in depth others.
func (t *tree) value(at string, depth int) (node, error) {
	before := t.InputOffset()
	token, err := t.Token()
	if err != nil {
		return node{}, fmt.Errorf("is not JSON: %w", err)
	}
	switch token := token.(type) {
	case json.Delim:
		if depth == maxDepth {
			return node{}, fmt.Errorf("nests deeper than %d levels", maxDepth)
		}
		if token == '{' {
			return t.object(at, depth)
		}
		return t.array(at, depth)
	case string:
		if halfPair(t.body[before:t.InputOffset()]) {
			t.found.spoil(at, "holds half of a \\u surrogate pair, which is no character")
		}
		return node{kind: kindString, word: token}, nil
	case json.Number:
		return node{kind: kindNumber, word: token.String()}, nil
	case bool:
		return node{kind: kindBoolean, truth: token}, nil
	default:
		return node{kind: kindNull}, nil
	}
}

func (t *tree) object(at string, depth int) (node, error) {
	n := node{kind: kindObject}
	seen := make(map[string]bool)
	for t.More() {
		name, err := t.value(at, depth)
		if err != nil {
			return n, err
		}
		place := child(at, name.word)
		value, err := t.value(place, depth+1)
		if err != nil {
			return n, err
		}
		if seen[name.word] {
			t.found.add(place, "the field %s stands here twice", quote(name.word))
			continue
		}
		seen[name.word] = true
		n.members = append(n.members, member{name.word, value})
	}
	_, err := t.Token() // the closing brace
	return n, err
}

func (t *tree) array(at string, depth int) (node, error) {
	n := node{kind: kindArray}
	for t.More() {
		item, err := t.value(child(at, strconv.Itoa(len(n.items))), depth+1)
		if err != nil {
			return n, err
		}
		n.items = append(n.items, item)
	}
	_, err := t.Token() // the closing bracket
	return n, err
}

// escapes matches every escape of a JSON string; only half of a surrogate pair
// fills the group.
var escapes = regexp.MustCompile(`\\[^u]|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u([dD][89a-fA-F])..|\\u....`)

// halfPair reports whether a JSON string escapes half of a surrogate pair.
// encoding/json would silently turn that into U+FFFD.
func halfPair(quoted []byte) bool {
	if !bytes.Contains(quoted, []byte(`\u`)) {
		return false
	}
	return slices.ContainsFunc(escapes.FindAllSubmatch(quoted, -1), func(m [][]byte) bool { return m[1] != nil })
}

// invalidUTF8 is the offset of the first byte that is not UTF-8, or -1.
func invalidUTF8(b []byte) int {
	for at := 0; at < len(b); {
		r, size := utf8.DecodeRune(b[at:])
		if r == utf8.RuneError && size == 1 {
			return at
		}
		at += size
	}
	return -1
}

// position names a place by line and column, both from 1, as editors do.
func position(body []byte, at int) string {
	before := body[:max(at, 0)]
	start := bytes.LastIndexByte(before, '\n') + 1
	return fmt.Sprintf("line %d, column %d", bytes.Count(before, []byte("\n"))+1, utf8.RuneCount(before[start:])+1)
}

// fill copies a node into a Go value like encoding/json, but strictly: names match
// exactly, kinds fit, and null is allowed nowhere. v is settable.
func (f *findings) fill(v reflect.Value, n node, at string) {
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	want := kindOf(v)
	if n.kind != want {
		advice := "want " + string(want)
		if n.kind == kindNull {
			advice = "leave it out"
		}
		f.spoil(at, "is %s, %s", n.kind, advice)
		return
	}
	switch target := v.Addr().Interface().(type) {
	case *string:
		*target = n.word
	case *bool:
		*target = n.truth
	case *int:
		f.fillInt(target, n.word, at)
	case *float64:
		f.fillFloat(target, n.word, at)
	case *time.Time:
		f.fillTime(target, n.word, at)
	case *[]byte:
		f.fillBytes(target, n.word, at)
	default:
		f.fillMany(v, n, at)
	}
}

// fillMany fills a value that has members or items.
func (f *findings) fillMany(v reflect.Value, n node, at string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(n.word)
	case reflect.Struct:
		f.fillStruct(v, n, at)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for _, m := range n.members {
			value := reflect.New(v.Type().Elem()).Elem()
			f.fill(value, m.value, child(at, m.name))
			v.SetMapIndex(reflect.ValueOf(m.name), value)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), len(n.items), len(n.items)))
		for i, item := range n.items {
			f.fill(v.Index(i), item, child(at, strconv.Itoa(i)))
		}
	}
}

func (f *findings) fillStruct(v reflect.Value, n node, at string) {
	names := fieldNames(v.Type())
	for _, m := range n.members {
		place := child(at, m.name)
		i := slices.Index(names, m.name)
		switch {
		case i < 0:
			f.add(place, "unknown field %s; %s", quote(m.name), suggest(m.name, names))
		case m.value.kind == kindString && m.value.word == "" && m.name != "text" && m.name != "alt":
			// Go would take an empty string for an absent field: an id that a template
			// left empty would silently be no identity.
			f.spoil(place, "is empty, leave it out")
		default:
			f.fill(v.Field(i), m.value, place)
		}
	}
}

// kindOf is the kind of JSON value that fills a Go value. The contract has no other
// types.
func kindOf(v reflect.Value) kind {
	switch v.Interface().(type) {
	case string, time.Time, []byte:
		return kindString
	case bool:
		return kindBoolean
	case int, float64:
		return kindNumber
	}
	switch v.Kind() {
	case reflect.String: // of a type of its own
		return kindString
	case reflect.Slice:
		return kindArray
	}
	return kindObject
}

func (f *findings) fillInt(target *int, digits, at string) {
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil {
		f.spoil(at, "is %s, want a whole number of at most 9 digits", digits[:min(len(digits), maxQuoted)])
		return
	}
	*target = int(n)
}

func (f *findings) fillFloat(target *float64, digits, at string) {
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		f.spoil(at, "is %s, want a smaller number", digits[:min(len(digits), maxQuoted)])
		return
	}
	*target = n
}

func (f *findings) fillTime(target *time.Time, s, at string) {
	var t time.Time
	// UnmarshalText takes RFC 3339 only. time.Parse also takes what resembles it.
	if err := t.UnmarshalText([]byte(s)); err != nil {
		f.spoil(at, "is %s, want a time as in RFC 3339, for example 2026-12-01T09:00:00Z", quote(s))
		return
	}
	if t.IsZero() {
		f.spoil(at, "is in the year 1, want %d to %d", minYear, maxYear)
		return
	}
	*target = t.UTC()
}

func (f *findings) fillBytes(target *[]byte, s, at string) {
	b, err := base64.StdEncoding.DecodeString(s)
	switch {
	case strings.HasPrefix(s, "data:"):
		f.spoil(at, "is a data URL, want the base64 alone")
	case err != nil:
		f.spoil(at, "is not standard base64 with padding: %v", err)
	case len(b) == 0:
		f.spoil(at, "is empty, leave it out")
	default:
		*target = b
	}
}

// fieldNames are the JSON names of a struct's fields, in their order.
func fieldNames(t reflect.Type) []string {
	names := make([]string, t.NumField())
	for i := range names {
		names[i], _, _ = strings.Cut(t.Field(i).Tag.Get("json"), ",")
	}
	return names
}

// suggest names the field that was probably meant, or all fields.
func suggest(unknown string, names []string) string {
	fold := func(s string) string {
		return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(s))
	}
	got := fold(unknown[:min(len(unknown), maxQuoted)])
	best, least := "", len(got)/3+2 // edits: fewer than these
	for _, name := range names {
		if d := distance(got, fold(name)); d < least {
			best, least = name, d
		}
	}
	if best == "" {
		return "known here: " + strings.Join(names, ", ")
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// distance counts the edits (insert, delete, replace a byte) between two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			edit := diagonal
			if a[i] != b[j] {
				edit = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], edit
		}
	}
	return row[len(b)]
}
