package xspectest

import (
	"context"
	"fmt"

	"github.com/getkin/kin-openapi/openapi3"
)

// CheckDocument tells what is wrong with an OpenAPI document, and returns its paths with
// their methods, as "POST /api".
func CheckDocument(ctx context.Context, document []byte) (operations []string, err error) {
	doc, err := openapi3.NewLoader().LoadFromData(document)
	if err != nil {
		return nil, fmt.Errorf("read document: %w", err)
	}
	if err := doc.Validate(ctx); err != nil {
		return nil, fmt.Errorf("document: %w", err)
	}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			operations = append(operations, method+" "+path)
		}
	}
	return operations, nil
}
