package jetpost

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/invopop/jsonschema"
)

// openAPI is the document that package web/api serves, beside the schemas.
const openAPI = "../../../web/api/openapi.json"

// openAPIDocument describes the operations over HTTP: their bodies are those of
// api.schema.json.
func openAPIDocument(t *testing.T) any {
	t.Helper()
	type object = map[string]any
	api := operationsSchema(t)
	content := func(s *jsonschema.Schema) object { return object{"application/json": object{"schema": s}} }
	failed, _ := api.Properties.Get("error")
	account := object{
		"name": "account", "in": "path", "required": true, "description": "Account that the operation concerns.",
		"schema": object{"type": "string", "pattern": accountPattern.String()},
	}
	paths := object{}
	for _, o := range Operations() {
		if o.Operation.Verb() == "" {
			continue
		}
		bodies, _ := api.Properties.Get(string(o.Operation))
		request, _ := bodies.Properties.Get("request")
		answer, _ := bodies.Properties.Get("answer")
		path, id := "/api/v1/"+string(o.Operation), strings.ReplaceAll(string(o.Operation), ".", "_")
		body := content(request)
		if o.Operation == OpMediaPut { // or the file itself, of any size
			body["application/octet-stream"] = object{"schema": object{"type": "string", "format": "binary"}}
		}
		operation := func(id string, parameters ...object) object {
			is := object{
				"operationId": id, "description": fmt.Sprintf("Needs an API token that allows %s.", o.Operation.Verb()), "x-verb": o.Operation.Verb(),
				"requestBody": object{"required": false, "content": body},
				"responses": object{
					"200":     object{"description": "What was done, or is known.", "content": content(answer)},
					"default": object{"description": "Why it was not done.", "content": content(failed)},
				},
			}
			if len(parameters) > 0 {
				is["parameters"] = parameters
			}
			return object{"post": is}
		}
		if o.Account != OfOne {
			paths[path] = operation(id)
		}
		if o.Account == OfOne {
			paths[path+"/{account}"] = operation(id, account)
		} else if o.Account == OfAny {
			paths[path+"/{account}"] = operation(id+"_of_account", account)
		}
	}
	document := object{
		"openapi":    "3.1.0",
		"info":       object{"title": "jetpost", "version": "1", "description": "The operations of jetpost over HTTP."},
		"security":   []object{{"token": []string{}}},
		"paths":      paths,
		"components": object{"schemas": api.Definitions, "securitySchemes": object{"token": object{"type": "http", "scheme": "bearer"}}},
	}
	text, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	return json.RawMessage(bytes.ReplaceAll(text, []byte(`"#/$defs/`), []byte(`"#/components/schemas/`)))
}
