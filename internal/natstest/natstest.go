package natstest

import (
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost/internal/testkit"
)

// readyWithin is how long a server may take to start before its test fails.
// An idle machine needs milliseconds; a loaded one gets patience.
const readyWithin = 30 * time.Second

// Listen gives the server a TCP listener on a free port of 127.0.0.1, for
// tests that need a client URL (Server.ClientURL) or several processes. Without
// it a server is reached in process only.
func Listen(o *server.Options) {
	o.DontListen = false
	o.Host = "127.0.0.1"
	o.Port = server.RANDOM_PORT
}

// Server starts a server with JetStream in a directory of its own and stops it
// when the test ends. An option that clears StoreDir or JetStream gets what it
// asks for.
func Server(t testkit.T, opts ...func(*server.Options)) *server.Server {
	t.Helper()
	o := &server.Options{
		DontListen: true,
		JetStream:  true,
		StoreDir:   t.TempDir(),
		NoLog:      true,
		NoSigs:     true,
	}
	for _, opt := range opts {
		opt(o)
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatalf("natstest: make server: %v", err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(readyWithin) {
		t.Fatalf("natstest: server not ready within %v", readyWithin)
	}
	return s
}

// Connect connects to the server in process, whether or not it listens, and
// closes the connection when the test ends, before the server stops. It keeps
// reconnecting for as long as the test lives. Options such as nats.UserInfo are
// the test's.
func Connect(t testkit.T, s *server.Server, opts ...nats.Option) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect("", append([]nats.Option{nats.InProcessServer(s), nats.MaxReconnects(-1)}, opts...)...)
	if err != nil {
		t.Fatalf("natstest: connect: %v", err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatalf("natstest: open JetStream: %v", err)
	}
	return nc, js
}
