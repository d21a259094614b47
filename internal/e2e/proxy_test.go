package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/jetpost/jetpost/internal/e2e/harness"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/testkit"
)

// Where nothing but a proxy leads out, whose TLS is of an authority of one's own, X's API
// and a medium's URL are reached by HTTPS_PROXY and SSL_CERT_FILE.
func TestThroughProxy(t *testing.T) {
	t.Parallel()
	x, site := net.IPv4(192, 0, 2, 1), net.IPv4(192, 0, 2, 2) // addresses for documents, of nobody
	o := newOwnNATS(t)
	ca, certFile, keyFile := pki(t, x, site)
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	testkit.Must(t, err)
	serve := func(h http.Handler) string {
		s := httptest.NewUnstartedServer(h)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	picture, err := harness.Picture()
	testkit.Must(t, err)
	there := map[string]string{
		x.String() + ":443":    serve(o.sim),
		site.String() + ":443": serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(picture) })),
	}
	var mu sync.Mutex
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Host)
		mu.Unlock()
		out, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", there[r.Host])
		if err != nil {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		in, read, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n") // the client sends nothing before
		go func() {
			_, _ = io.Copy(out, read)
			_ = out.Close()
		}()
		_, _ = io.Copy(in, out)
		_ = in.Close()
	}))
	t.Cleanup(proxy.Close)
	o.reach = settings{"NATS_URL": natstest.Server(t, natstest.Listen).ClientURL(), "HTTPS_PROXY": proxy.URL, "NO_PROXY": "", "SSL_CERT_FILE": ca["NATS_CA"]}
	o.database["X_API_URL"] = "https://" + x.String()

	o.want(true, o.database, "setup")
	o.bring(o.database, "acme")
	worker := o.worker(o.database)
	body := func(id string, host net.IP) string {
		text, err := json.Marshal(map[string]any{"account": "acme", "id": id, "posts": []any{map[string]any{"text": id, "media": []any{map[string]any{"url": fmt.Sprintf("https://%s/picture", host)}}}}})
		testkit.Must(t, err)
		path := filepath.Join(t.TempDir(), "request.json")
		testkit.Must(t, os.WriteFile(path, text, 0o600))
		return path
	}
	o.want(true, o.database, "publish", "--file", body("outside", site), "--wait")
	o.want(false, o.database, "publish", "--file", body("inside", net.IPv4(10, 0, 0, 1)), "--wait")
	harness.Stop(worker)
	posts := o.sim.Posts("acme")
	if len(posts) != 1 || len(posts[0].MediaIDs) != 1 {
		t.Errorf("X has %+v, want one post with a medium", posts)
	}
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(asked)
	if got := slices.Compact(asked); !slices.Equal(got, []string{x.String() + ":443", site.String() + ":443"}) {
		t.Errorf("the proxy was asked for %q", got)
	}
}
