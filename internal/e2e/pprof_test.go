package e2e

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/testkit"
)

// Profiles are there for this machine, and nowhere else.
func TestPprof(t *testing.T) {
	t.Parallel()
	s := newSite(t, harness.SiteConfig{Database: sqliteURL(t), Lease: longLease, RefreshCron: never})
	for _, address := range []string{"0.0.0.0:0", ":0", "192.0.2.1:6060"} {
		code, _, stderr := s.Run("worker", "--pprof", address)
		if code != exitUsage || !strings.Contains(stderr, "is no loopback address") {
			t.Errorf("--pprof %s: exit code %d\n%s", address, code, stderr)
		}
	}
	address := testkit.ClosedAddress(t)
	w := s.Worker("worker", "--pprof", address)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/debug/pprof/goroutine?debug=1", nil)
	testkit.Must(t, err)
	response, err := http.DefaultClient.Do(request)
	testkit.Must(t, err)
	body, err := io.ReadAll(response.Body)
	testkit.Must(t, err)
	testkit.Must(t, response.Body.Close())
	if response.StatusCode != http.StatusOK || !strings.Contains(string(body), "servePprof") {
		t.Errorf("profile of goroutines: %s\n%s", response.Status, body)
	}
	harness.Stop(w)
}
