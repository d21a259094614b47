package e2e

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// Profiles are there for this machine, and nowhere else.
func TestPprof(t *testing.T) {
	t.Parallel()
	s := newSite(t, siteConfig{database: sqliteURL(t), lease: longLease, refreshCron: never})
	for _, address := range []string{"0.0.0.0:0", ":0", "192.0.2.1:6060"} {
		code, _, stderr := s.run("worker", "--pprof", address)
		if code != exitUsage || !strings.Contains(stderr, "is no loopback address") {
			t.Errorf("--pprof %s: exit code %d\n%s", address, code, stderr)
		}
	}
	address := closedAddress(t)
	w := s.worker("worker", "--pprof", address)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/debug/pprof/goroutine?debug=1", nil)
	must(t, err)
	response, err := http.DefaultClient.Do(request)
	must(t, err)
	body, err := io.ReadAll(response.Body)
	must(t, err)
	must(t, response.Body.Close())
	if response.StatusCode != http.StatusOK || !strings.Contains(string(body), "servePprof") {
		t.Errorf("profile of goroutines: %s\n%s", response.Status, body)
	}
	stop(w)
}
