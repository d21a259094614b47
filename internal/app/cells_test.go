package app

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/natstest"
	"github.com/jetpost/jetpost/internal/secret"
	"github.com/jetpost/jetpost/internal/testkit"
	"github.com/jetpost/jetpost/store"
)

// scalingBlock is a configuration of docs/SCALING.md, by its first line.
func scalingBlock(t *testing.T, begins string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/SCALING.md")
	testkit.Must(t, err)
	block := regexp.MustCompile("(?s)```\n(# " + regexp.QuoteMeta(begins) + ".*?)```").FindSubmatch(page)
	if block == nil {
		t.Fatalf("docs/SCALING.md has no configuration %q", begins)
	}
	return string(block[1])
}

// serveConfig starts a server with a configuration, on ports of its own.
func serveConfig(t *testing.T, config string, jetStream bool) *server.Server {
	t.Helper()
	var o server.Options
	testkit.Must(t, o.ProcessConfigString(config))
	natstest.Listen(&o)
	return natstest.Server(t, func(made *server.Options) {
		o.JetStream, o.StoreDir, o.NoLog, o.NoSigs = jetStream, made.StoreDir, true, true
		*made = o
	})
}

// TestCells: with the configurations of docs/SCALING.md, producers publish at a hub onto the
// one subject of the contract. Each account's jobs reach one of two installations, always the
// same, and so do operations; live events of both come back.
func TestCells(t *testing.T) {
	t.Parallel()
	const cells, accounts = 2, 20
	leaves := testkit.ClosedAddress(t)
	hub := serveConfig(t, strings.NewReplacer("$NATS_PRODUCER_PASSWORD", "secret", "0.0.0.0:7422", leaves).Replace(scalingBlock(t, "hub.conf")), false)
	var work [cells]*Connection
	for i := range cells {
		names, err := jetpost.NewNames(fmt.Sprint(i))
		testkit.Must(t, err)
		walls := Walls{Names: names, Logins: map[string]string{}}
		for _, user := range NATSUsers() {
			walls.Logins[user] = fmt.Sprintf("password: %q", testPassword)
		}
		leaf := strings.NewReplacer("hub:7422", leaves, "PASSWORD", "secret", "0_", fmt.Sprint(i, "_")).Replace(scalingBlock(t, "nats.conf of cell 0"))
		s := serveConfig(t, walls.Config()+leaf, true)
		cfg := Config{
			NATS:        NATSConfig{URL: s.ClientURL(), User: setupUser, Password: secret.New(testPassword), Prefix: fmt.Sprint(i)},
			DatabaseURL: secret.New("sqlite:" + filepath.Join(t.TempDir(), databaseFile)), Keys: store.GenerateKey(),
		}
		_, err = cfg.Setup(t.Context(), slog.New(slog.DiscardHandler))
		testkit.Must(t, err)
		work[i], err = cfg.Connect(t.Context(), slog.New(slog.DiscardHandler), "test")
		testkit.Must(t, err)
		t.Cleanup(work[i].Close)
		_, err = work[i].Conn.Subscribe(names.API(jetpost.OpRequestGet, "*"), func(m *nats.Msg) { _ = m.Respond([]byte(names.JobsStream())) })
		testkit.Must(t, err)
		testkit.Must(t, work[i].Conn.Flush())
	}
	nc, err := nats.Connect(hub.ClientURL(), nats.UserInfo(producerUser, "secret"))
	testkit.Must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	testkit.Must(t, err)
	testkit.Eventually(t, "the cells to join the hub", func() bool { return hub.NumLeafNodes() == cells })

	found := map[string]int{}
	for i := range 2 * accounts {
		account := fmt.Sprint("acct", i%accounts)
		ack, err := js.Publish(t.Context(), "publish.request."+account, fmt.Appendf(nil, `{"id":"%d","posts":[{"text":"Hello"}]}`, i))
		testkit.Must(t, err)
		found[ack.Stream]++
		answer, err := nc.Request("jetpost.api.v1.request.get."+account, []byte(`{"id":"1"}`), testkit.Patience)
		if err != nil || string(answer.Data) != ack.Stream {
			t.Errorf("jobs of %s are in %s, and its operations at %v, %v", account, ack.Stream, answer, err)
		}
	}
	live, err := nc.SubscribeSync("*.jetpost.event.>")
	testkit.Must(t, err)
	testkit.Must(t, nc.Flush())
	for i, cell := range work {
		jobs, err := cell.JS.Stream(t.Context(), cell.Names.JobsStream())
		testkit.Must(t, err)
		info, err := jobs.Info(t.Context(), jetstream.WithSubjectFilter(">"))
		testkit.Must(t, err)
		n := found[cell.Names.JobsStream()]
		if n == 0 || int(info.State.Msgs) != n || n != 2*len(info.State.Subjects) {
			t.Errorf("cell %d has %d jobs of %d accounts, where %d were stored", i, info.State.Msgs, len(info.State.Subjects), n)
		}
		subject := cell.Names.EventSubject(jetpost.EventRequestPublished, "acme", "1")
		testkit.Eventually(t, "an event of the cell at the hub", func() bool {
			testkit.Must(t, cell.Conn.Publish(subject, []byte("{}")))
			event, err := live.NextMsg(answerWithin)
			return err == nil && event.Subject == subject
		})
	}
}
