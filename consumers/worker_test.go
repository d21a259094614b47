package consumers

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/publishers"
)

// config is the least that a worker needs, and the address of X.
func (b *testBundle) config(t *testing.T) Config {
	t.Helper()
	id, err := b.ledger.LedgerID(t.Context())
	testkit.Must(t, err)
	server := httptest.NewServer(b.x)
	t.Cleanup(server.Close)
	return Config{
		Worker: "worker", Ledger: b.ledger, JetStream: b.js, Topology: publishers.TopologyConfig{Names: b.names, LedgerID: id},
		Lifeboat: b.lifeboat, ClientID: "app", Log: b.log, XURL: server.URL,
	}
}

// TestNewWorker runs a worker as another program does, by its required settings alone: it
// publishes a job, with a token that it has to renew first, and stops with its context.
func TestNewWorker(t *testing.T) {
	t.Parallel()
	b := setup(t)
	testkit.Must(t, b.lifeboat.Prepare())
	t.Cleanup(func() { testkit.Must(t, b.lifeboat.Close()) })
	b.due(t, "acme", 0)
	_, err := b.pub.Publish(t.Context(), jetpost.Request{Account: "acme", ID: "r", Posts: thread("one", "two")})
	testkit.Must(t, err)
	w, err := NewWorker(t.Context(), b.config(t))
	testkit.Must(t, err)
	testkit.Must(t, w.Err())

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	testkit.Eventually(t, "the request is published", func() bool { return b.counts(t)[jetpost.StatePublished] == 1 })
	stop()
	testkit.Must(t, <-ended)
	b.texts(t, "acme", "one", "two")
	testkit.Equal(t, "lanes that run", w.Lanes(), 0)
}

// TestNewWorkerRefuses: a worker without what it needs, or beside another ledger, does not
// begin.
func TestNewWorkerRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, test := range map[string]struct {
		spoil func(*Config)
		want  string
	}{
		"nothing is set": {func(c *Config) { *c = Config{} }, "set Worker, Ledger, JetStream, Topology.LedgerID, Lifeboat, ClientID, Log"},
		"no lifeboat":    {func(c *Config) { c.Lifeboat = nil }, "set Lifeboat"},
		"another ledger": {func(c *Config) { c.Topology.LedgerID = "00000000-0000-4000-8000-000000000000" }, "belongs to another database"},
		"not set up":     {func(c *Config) { c.Topology.Names = names(t, "other") }, "not set up"},
	} {
		cfg := b.config(t)
		test.spoil(&cfg)
		if _, err := NewWorker(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func names(t *testing.T, prefix string) jetpost.Names {
	t.Helper()
	n, err := jetpost.NewNames(prefix)
	testkit.Must(t, err)
	return n
}
