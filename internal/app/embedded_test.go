package app

import (
	"os"
	"strings"
	"testing"

	"github.com/jetpost/jetpost"
)

// The contract tells operators what a producer may do, from here.
func TestProducerPermissionsAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/contract/v1/README.md")
	if err != nil {
		t.Fatal(err)
	}
	may := producerPermissions(jetpost.Names{})
	for _, subject := range append(may.Publish.Allow, may.Subscribe.Allow...) {
		if !strings.Contains(string(text), subject) {
			t.Errorf("docs/contract/v1/README.md does not list %s", subject)
		}
	}
}
