package xsim

import (
	_ "embed" // openapi.json
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// openAPI holds the operations that are modelled as X publishes them: its schemas
// and its lists of values. x-older-names has the vocabulary from before 2.167, which
// most clients still send.
//
//go:embed openapi.json
var openAPI []byte

// specification is what the file says of the query parameters, by endpoint and name.
type specification struct {
	query  map[string]map[string]valueSchema
	older  map[string][]string // values of parameters, and of "scopes"
	scopes []string
}

// valueSchema is as much of JSON Schema as X's query parameters use.
type valueSchema struct {
	Ref                string       `json:"$ref"`
	Type               string       `json:"type"`
	Format             string       `json:"format"`
	Pattern            string       `json:"pattern"`
	Enum               []string     `json:"enum"`
	Minimum, Maximum   *int64       // of an integer
	MinItems, MaxItems int          // of an array; MaxItems 0 is none
	MinLength          int          `json:"minLength"` // code points
	Items              *valueSchema `json:"items"`
	required           bool
}

// published is the file, read once.
var published = sync.OnceValue(func() *specification {
	s, err := readSpecification(openAPI)
	if err != nil {
		panic("xsim: openapi.json: " + err.Error())
	}
	return s
})

type wireParameter struct {
	Ref      string      `json:"$ref"`
	Name     string      `json:"name"`
	In       string      `json:"in"`
	Required bool        `json:"required"`
	Schema   valueSchema `json:"schema"`
}

func readSpecification(file []byte) (*specification, error) {
	var doc struct {
		Paths map[string]map[string]struct {
			Parameters []wireParameter `json:"parameters"`
		} `json:"paths"`
		Components struct {
			Parameters map[string]wireParameter `json:"parameters"`
			Schemas    map[string]json.RawMessage
			Security   struct {
				OAuth2UserToken struct {
					Flows struct {
						AuthorizationCode struct {
							Scopes map[string]string `json:"scopes"`
						} `json:"authorizationCode"`
					} `json:"flows"`
				}
			} `json:"securitySchemes"`
		} `json:"components"`
		Older map[string][]string `json:"x-older-names"`
	}
	if err := json.Unmarshal(file, &doc); err != nil {
		return nil, err
	}
	s := &specification{query: map[string]map[string]valueSchema{}, older: doc.Older}
	for scope := range doc.Components.Security.OAuth2UserToken.Flows.AuthorizationCode.Scopes {
		s.scopes = append(s.scopes, scope)
	}
	for path, operations := range doc.Paths {
		for method, operation := range operations {
			known := map[string]valueSchema{}
			for _, p := range operation.Parameters {
				if p.Ref != "" {
					p = doc.Components.Parameters[lastSegment(p.Ref)]
				}
				if p.In != "query" {
					continue
				}
				for _, schema := range []*valueSchema{&p.Schema, p.Schema.Items} {
					if schema == nil || schema.Ref == "" {
						continue
					}
					if err := json.Unmarshal(doc.Components.Schemas[lastSegment(schema.Ref)], schema); err != nil {
						return nil, fmt.Errorf("%s of %s: %w", p.Name, path, err)
					}
				}
				p.Schema.required = p.Required
				known[p.Name] = p.Schema
			}
			name := strings.ToUpper(method) + " " + pathID.ReplaceAllString(path, ":$1")
			s.query[name] = known
		}
	}
	return s, nil
}

var pathID = regexp.MustCompile(`\{(\w+)\}`)

func lastSegment(ref string) string { return ref[strings.LastIndexByte(ref, '/')+1:] }

// checkQuery refuses what the specification does not have: parameters that are
// unknown, empty or given twice, and values that are not of its lists. Names of the
// older vocabulary are a leniency.
func (s *Server) checkQuery(c *call) (mistake, bool) {
	q, known := c.r.URL.Query(), published().query[c.endpoint]
	for _, name := range sortedKeys(q) {
		values := q[name]
		schema, ok := known[name]
		if older := published().older[name]; !ok && known["post.fields"].Type != "" && name == "tweet.fields" {
			schema, ok = valueSchema{Type: "array", Items: &valueSchema{Type: "string", Enum: older}}, true
			if !s.lenient(c, "tweet.fields is post.fields in the specification") {
				ok = false
			}
		}
		if !ok {
			return mistake{name, values[0], fmt.Sprintf("The query parameter [%s] is not one of [%s]", name, strings.Join(sortedKeys(known), ","))}, false
		}
		if len(values) != 1 || values[0] == "" {
			return mistake{name, strings.Join(values, ","), "The query parameter [" + name + "] must be given once, and not empty"}, false
		}
		if m, ok := s.checkValue(c, name, values[0], schema); !ok {
			return m, false
		}
	}
	for _, name := range sortedKeys(known) {
		if known[name].required && !q.Has(name) {
			return mistake{name, "", "The `" + name + "` query parameter can not be empty"}, false
		}
	}
	return mistake{}, true
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func (s *Server) checkValue(c *call, name, value string, schema valueSchema) (mistake, bool) {
	if schema.Type != "array" {
		return schema.checkOne(name, value)
	}
	items := strings.Split(value, ",")
	if n := len(items); n < schema.MinItems || schema.MaxItems > 0 && n > schema.MaxItems {
		return mistake{name, strconv.Itoa(n), fmt.Sprintf("The number of values in the `%s` query parameter list is not between %d and %d", name, max(1, schema.MinItems), schema.MaxItems)}, false
	}
	for _, item := range items {
		m, ok := schema.Items.checkOne(name, item)
		if ok || name != "tweet.fields" && slices.Contains(published().older[name], item) && s.lenient(c, item+" of "+name+" is no name of the specification") {
			continue
		}
		return m, false
	}
	return mistake{}, true
}

// checkOne checks a value that is no list.
func (v valueSchema) checkOne(name, value string) (mistake, bool) {
	bad := mistake{name, value, fmt.Sprintf("The `%s` query parameter value [%s] is not valid", name, value)}
	switch n, err := strconv.ParseInt(value, 10, 64); {
	case v.Enum != nil && !slices.Contains(v.Enum, value):
		bad.message = fmt.Sprintf("The `%s` query parameter value [%s] is not one of [%s]", name, value, strings.Join(v.Enum, ","))
		return bad, false
	case v.Type == "integer" && (err != nil || v.Minimum != nil && n < *v.Minimum || v.Maximum != nil && n > *v.Maximum):
		return bad, false
	case v.Pattern != "" && !regexp.MustCompile(v.Pattern).MatchString(value):
		return bad, false
	case v.Format == "date-time":
		_, err := time.Parse(time.RFC3339, value)
		return bad, err == nil
	default:
		return mistake{}, true
	}
}

// named reports whether a list among the parameters has one of the names.
func named(q url.Values, parameter string, names ...string) bool {
	return slices.ContainsFunc(strings.Split(q.Get(parameter), ","), func(v string) bool { return slices.Contains(names, v) })
}
