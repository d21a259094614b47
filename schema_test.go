package jetpost

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/invopop/jsonschema"
)

var update = flag.Bool("update", false, "rewrite the JSON Schemas in docs/contract/v1")

// contractFiles have the types of the contract.
var contractFiles = []string{"jetpost.go", "pause.go", "api.go", "api_types.go", "api_reports.go", "api_tokens.go", "api_users.go", "api_links.go", "api_hooks.go"}

// contractTypes are the JSON documents of the contract. Requests are strict,
// events open: readers must put up with later additions.
var contractTypes = []struct {
	file string
	of   any
	open bool
}{
	{"request.schema.json", Request{}, false},
	{"event.schema.json", Event{}, true},
	{"refresh-request.schema.json", RefreshRequest{}, false},
}

func TestSchema(t *testing.T) {
	t.Parallel()
	for _, c := range contractTypes {
		t.Run(c.file, func(t *testing.T) {
			t.Parallel()
			hold(t, c.file, schema(t, c.of, c.open))
		})
	}
	t.Run(apiSchema, func(t *testing.T) {
		t.Parallel()
		hold(t, apiSchema, operationsSchema(t))
	})
	t.Run(openAPI, func(t *testing.T) {
		t.Parallel()
		hold(t, openAPI, openAPIDocument(t))
	})
}

// hold compares a schema with its file.
func hold(t *testing.T, file string, is any) {
	t.Helper()
	var want bytes.Buffer
	encoder := json.NewEncoder(&want)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(is); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("docs", "contract", "v1", file)
	if *update {
		if err := os.WriteFile(path, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), string(got)); diff != "" {
		t.Errorf("%s is not what the Go types say; run: go test -run TestSchema . -update\n(-types +file):\n%s", path, diff)
	}
}

const apiSchema = "api.schema.json"

// operationsSchema describes the bodies of every operation. Requests are strict, answers
// open.
func operationsSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	api := &jsonschema.Schema{
		Version: jsonschema.Version, Title: "API", Type: "object", Definitions: jsonschema.Definitions{}, Properties: jsonschema.NewProperties(),
		Description: "The bodies of the operations of the control service, by the operation's name.",
	}
	body := func(of any, open bool) *jsonschema.Schema {
		s := schema(t, of, open)
		name := s.Title
		s.Version, s.Title = "", ""
		add := func(name string, def *jsonschema.Schema) {
			if was := api.Definitions[name]; was != nil {
				if diff := cmp.Diff(encoded(t, was), encoded(t, def)); diff != "" {
					t.Errorf("%s is in a request and in an answer, where it differs:\n%s", name, diff)
				}
			}
			api.Definitions[name] = def
		}
		for name, def := range s.Definitions {
			add(name, def)
		}
		s.Definitions = nil
		add(name, s)
		return &jsonschema.Schema{Ref: "#/$defs/" + name}
	}
	for _, o := range Operations() {
		bodies := jsonschema.NewProperties()
		bodies.Set("request", body(o.Request, false))
		bodies.Set("answer", body(o.Answer, true))
		api.Properties.Set(string(o.Operation), &jsonschema.Schema{Type: "object", Properties: bodies})
	}
	api.Properties.Set("error", body(ErrorAnswer{}, true))
	return api
}

func encoded(t *testing.T, of any) string {
	t.Helper()
	text, err := json.Marshal(of)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// schema describes a type: its shape by reflection, its words from the
// comments in jetpost.go, its limits from the constants there.
func schema(t *testing.T, of any, open bool) *jsonschema.Schema {
	t.Helper()
	r := jsonschema.Reflector{
		Anonymous:                 true,
		ExpandedStruct:            true,
		AllowAdditionalProperties: open,
		Mapper:                    func(typ reflect.Type) *jsonschema.Schema { return enum(t, typ) },
	}
	var err error
	if r.CommentMap, err = comments(); err != nil {
		t.Fatal(err)
	}
	s := r.Reflect(of)
	s.Title = reflect.TypeOf(of).Name()
	if s.Properties == nil { // of a type without a field
		s.Properties = jsonschema.NewProperties()
	}
	byType := schemas{s.Title: s}
	for name, def := range s.Definitions {
		byType[name] = def
	}
	for name, def := range byType {
		for p := def.Properties.Oldest(); p != nil; p = p.Next() {
			if p.Value.Description == "" {
				t.Errorf("%s: %s has no comment", name, p.Key)
			}
		}
	}
	if !open {
		byType.limit()
	}
	return s
}

// comments are those of the contract's types and fields, in the words of JSON.
var comments = sync.OnceValues(func() (map[string]string, error) {
	var r jsonschema.Reflector
	for _, file := range contractFiles {
		if err := r.AddGoComments(reflect.TypeFor[Request]().PkgPath(), file); err != nil {
			return nil, err
		}
	}
	jsonWords := goToJSON()
	for key, comment := range r.CommentMap {
		r.CommentMap[key] = jsonWords(comment)
	}
	return r.CommentMap, nil
})

// enum lists the constants of the contract's string types.
func enum(t *testing.T, typ reflect.Type) *jsonschema.Schema {
	t.Helper()
	values := constants(t)[typ.Name()]
	if typ.Kind() != reflect.String || len(values) == 0 {
		return nil
	}
	s := &jsonschema.Schema{Type: "string"}
	for _, v := range values {
		s.Enum = append(s.Enum, v)
	}
	return s
}

// schemas are those of one document, by type.
type schemas map[string]*jsonschema.Schema

// set changes the schema of a field, where the document has it.
func (all schemas) set(typ, field string, change func(s *jsonschema.Schema)) {
	if s, ok := all[typ]; ok {
		p, _ := s.Properties.Get(field)
		change(p)
	}
}

func size(n int) *uint64 { u := uint64(n); return &u }

func bounds(low, high int) func(*jsonschema.Schema) {
	return func(s *jsonschema.Schema) {
		s.Minimum, s.Maximum = json.Number(strconv.Itoa(low)), json.Number(strconv.Itoa(high))
	}
}

func items(low, high int) func(*jsonschema.Schema) {
	return func(s *jsonschema.Schema) {
		s.MaxItems = size(high)
		if low > 0 {
			s.MinItems = size(low)
		}
	}
}

func chars(high int) func(*jsonschema.Schema) {
	return func(s *jsonschema.Schema) { s.MaxLength = size(high) }
}

func match(p pattern) func(*jsonschema.Schema) {
	return func(s *jsonschema.Schema) { s.Pattern = p.String() }
}

// limit writes the limits of requests and operations into their schemas. It says what a
// schema can say; Decode knows the rest.
func (all schemas) limit() {
	all.limitRequest()
	all.limitPost()
	all.limitOperations()
	all.limitTogether()
}

func (all schemas) limitRequest() {
	all.set("Request", "version", bounds(1, Version))
	all.set("Request", "account", match(accountPattern))
	all.set("RefreshRequest", "account", match(accountPattern))
	all.set("Request", "id", match(idPattern))
	all.set("Request", "posts", items(1, MaxPosts))
	all.set("Request", "metadata", func(s *jsonschema.Schema) {
		s.MaxProperties = size(MaxMetadataKeys)
		s.PropertyNames = &jsonschema.Schema{MinLength: size(1), MaxLength: size(MaxMetadataChars)}
		s.AdditionalProperties.MaxLength = size(MaxMetadataChars)
	})
}

func (all schemas) limitPost() {
	all.set("Post", "text", chars(MaxTextChars))
	all.set("Post", "media", items(0, MaxImages))
	all.set("Post", "in_reply_to_post_id", match(postIDPattern))
	all.set("Post", "quote_post_id", match(postIDPattern))
	all.set("Post", "community_id", match(postIDPattern))
	all.set("Post", "reply_settings", func(s *jsonschema.Schema) {
		for _, word := range replySettings() {
			s.Enum = append(s.Enum, word)
		}
	})
	all.set("Media", "url", func(s *jsonschema.Schema) {
		s.Format, s.Pattern, s.MaxLength = "uri", "^https://", size(MaxURLChars)
	})
	all.set("Media", "data", func(s *jsonschema.Schema) {
		s.MinLength, s.MaxLength = size(4), size(base64.StdEncoding.EncodedLen(MaxDataBytes))
	})
	all.set("Media", "object", match(objectPattern))
	all.set("Media", "alt", chars(MaxAltChars))
	all.set("Poll", "options", func(s *jsonschema.Schema) {
		items(MinPollChoices, MaxPollChoices)(s)
		s.Items.MinLength, s.Items.MaxLength = size(1), size(MaxPollChars)
	})
	all.set("Poll", "duration_minutes", bounds(MinPollMinutes, MaxPollMinutes))
}

// limitOperations limits the fields that many operations have.
func (all schemas) limitOperations() {
	for name := range all {
		for field, change := range map[string]func(*jsonschema.Schema){
			"operation_id": match(idPattern), "id": match(idPattern), "post_id": match(postIDPattern),
			"limit": bounds(1, MaxPage), "wait_seconds": bounds(0, MaxWaitSeconds),
			"ids": func(s *jsonschema.Schema) { s.MaxItems, s.Items.Pattern = size(MaxPage), idPattern.String() },
		} {
			if _, has := all[name].Properties.Get(field); has {
				all.set(name, field, change)
			}
		}
	}
	all.set("PauseRequest", "reason", chars(MaxPauseReason))
	all.set("MediaPut", "offset", bounds(0, MaxMediaBytes))
	all.set("MediaPut", "data", func(s *jsonschema.Schema) {
		s.MinLength, s.MaxLength = size(4), size(base64.StdEncoding.EncodedLen(MaxMediaPart))
	})
}

// limitTogether says which fields need or exclude each other.
func (all schemas) limitTogether() {
	has := func(fields ...string) *jsonschema.Schema { return &jsonschema.Schema{Required: fields} }
	if media, ok := all["Media"]; ok {
		media.OneOf = []*jsonschema.Schema{has("url"), has("data"), has("object")}
	}
	if post, ok := all["Post"]; ok {
		post.AnyOf = []*jsonschema.Schema{has("text"), has("media")}
		post.Not = &jsonschema.Schema{AnyOf: []*jsonschema.Schema{has("poll", "media"), has("poll", "quote_post_id"), has("quote_post_id", "media")}}
	}
}

// goToJSON returns a function that puts a Go comment into the words of JSON:
// fields under their JSON names, limits as numbers.
func goToJSON() func(string) string {
	names := map[string]string{
		"MaxPosts": strconv.Itoa(MaxPosts), "MaxImages": strconv.Itoa(MaxImages),
		"MaxDataBytes": strconv.Itoa(MaxDataBytes), "MaxURLChars": strconv.Itoa(MaxURLChars),
		"MaxAltChars": strconv.Itoa(MaxAltChars), "MaxTextChars": strconv.Itoa(MaxTextChars),
		"MaxMetadataKeys": strconv.Itoa(MaxMetadataKeys), "MaxMetadataChars": strconv.Itoa(MaxMetadataChars),
		"MinPollMinutes": strconv.Itoa(MinPollMinutes), "MaxPollMinutes": strconv.Itoa(MaxPollMinutes),
		"MinPollChoices": strconv.Itoa(MinPollChoices), "MaxPollChoices": strconv.Itoa(MaxPollChoices),
		"MaxPollChars": strconv.Itoa(MaxPollChars), "MaxPauseReason": strconv.Itoa(MaxPauseReason),
		"DefaultPage": strconv.Itoa(DefaultPage), "MaxPage": strconv.Itoa(MaxPage),
		"MaxWaitSeconds": strconv.Itoa(MaxWaitSeconds), "MaxMediaPart": strconv.Itoa(MaxMediaPart),
	}
	for _, c := range contractTypes {
		eachField(reflect.TypeOf(c.of), func(goName, jsonName string) { names[goName] = jsonName })
	}
	for _, o := range Operations() {
		for _, body := range []any{o.Request, o.Answer} {
			eachField(reflect.TypeOf(body), func(goName, jsonName string) {
				if names[goName] == "" && jsonName != "-" { // some names are those of other fields, too
					names[goName] = jsonName
				}
			})
		}
	}
	word := regexp.MustCompile(`\b[A-Z]\w+\b`)
	return func(comment string) string {
		comment = string(bytes.Join(bytes.Fields([]byte(comment)), []byte(" ")))
		return word.ReplaceAllStringFunc(comment, func(w string) string {
			if name, ok := names[w]; ok {
				return name
			}
			return w
		})
	}
}

// eachField visits every field of a type and of the types within it.
func eachField(t reflect.Type, visit func(goName, jsonName string)) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t.PkgPath() != reflect.TypeFor[Request]().PkgPath() {
		return
	}
	for i, name := range fieldNames(t) {
		visit(t.Field(i).Name, name)
		eachField(t.Field(i).Type, visit)
	}
}

// constants are the values of every typed string constant of the contract, by
// the name of its type, so that a list that forgot one is found out.
func constants(t *testing.T) map[string][]string {
	t.Helper()
	values, err := readConstants()
	if err != nil {
		t.Fatal(err)
	}
	return values
}

var readConstants = sync.OnceValues(func() (map[string][]string, error) {
	values := make(map[string][]string)
	for _, name := range contractFiles {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || spec.Type == nil {
				return true
			}
			for _, v := range spec.Values {
				if literal, ok := v.(*ast.BasicLit); ok && literal.Kind == token.STRING {
					name := spec.Type.(*ast.Ident).Name
					values[name] = append(values[name], constant.StringVal(constant.MakeFromLiteral(literal.Value, literal.Kind, 0)))
				}
			}
			return true
		})
	}
	return values, nil
})

func TestListsAreComplete(t *testing.T) {
	t.Parallel()
	lists := map[string][]string{
		"State": strs(States()), "Code": strs(Codes()), "EventType": strs(EventTypes()), "ErrorCode": strs(ErrorCodes()),
		"Verb": strs(Verbs()),
	}
	for _, o := range Operations() {
		lists["Operation"] = append(lists["Operation"], string(o.Operation))
	}
	for name, got := range lists {
		if diff := cmp.Diff(constants(t)[name], got); diff != "" {
			t.Errorf("%s (-constants +list):\n%s", name, diff)
		}
	}
}

func strs[S ~string](all []S) []string {
	var out []string
	for _, s := range all {
		out = append(out, string(s))
	}
	return out
}

// TestCallsAreRead: the body of each operation is read as Go writes it, whatever is in it, and
// each change has an operation_id.
func TestCallsAreRead(t *testing.T) {
	t.Parallel()
	for _, o := range Operations() {
		typ := reflect.TypeOf(o.Request)
		if _, has := typ.FieldByName("OperationID"); has != o.Changes {
			t.Errorf("%s changes something: %t, and has an operation_id: %t", o.Operation, o.Changes, has)
		}
		if typ == reflect.TypeFor[Request]() {
			continue // which has tests of its own
		}
		in := reflect.New(typ).Elem()
		for i := range in.NumField() {
			sample(in.Field(i))
		}
		var f findings
		root, err := parse([]byte(encoded(t, in.Interface())), &f)
		if err != nil {
			t.Fatal(err)
		}
		out := reflect.New(typ).Elem()
		f.fill(out, root, "")
		if diff := cmp.Diff(in.Interface(), out.Interface()); diff != "" || f.err(Request{}) != nil {
			t.Errorf("%s (-written +read): %v\n%s", o.Operation, f.err(Request{}), diff)
		}
	}
}

// sample gives a field of a call a value.
func sample(field reflect.Value) {
	switch field.Interface().(type) {
	case bool:
		field.SetBool(true)
	case int:
		field.SetInt(7)
	case float64:
		field.SetFloat(2.5)
	case time.Time:
		field.Set(reflect.ValueOf(time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)))
	case []byte:
		field.SetBytes([]byte("bytes"))
	case map[string]int:
		field.Set(reflect.ValueOf(map[string]int{"acme": 3}))
	default:
		if field.Kind() == reflect.Slice {
			field.Set(reflect.MakeSlice(field.Type(), 1, 1))
			field = field.Index(0)
		}
		field.SetString("word")
	}
}
