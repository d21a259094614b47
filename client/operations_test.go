package client_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
)

// TestOperationsAreMethods: the client has a method for each operation, which returns its
// answer.
func TestOperationsAreMethods(t *testing.T) {
	t.Parallel()
	of := reflect.TypeFor[*client.Client]()
	for _, o := range jetpost.Operations() {
		var name strings.Builder
		for _, word := range strings.FieldsFunc(strings.Replace(string(o.Operation), "deadletters", "dead.letters", 1), func(r rune) bool { return r == '.' || r == '_' }) {
			name.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
		method, there := of.MethodByName(name.String())
		if !there || method.Type.Out(0) != reflect.TypeOf(o.Answer) {
			t.Errorf("%s: there is no method %s that returns a %T", o.Operation, name.String(), o.Answer)
		}
	}
}
