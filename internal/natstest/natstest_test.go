package natstest

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestServer(t *testing.T) {
	t.Parallel()

	t.Run("each test has its own streams", func(t *testing.T) {
		t.Parallel()
		for range 2 {
			_, js := Connect(t, Server(t))
			info, err := js.AccountInfo(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if info.Streams != 0 {
				t.Fatalf("a new server has %d streams", info.Streams)
			}
			if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
				t.Fatal(err)
			}
		}
	})

	t.Run("listens when asked", func(t *testing.T) {
		t.Parallel()
		s := Server(t, Listen)
		nc, err := nats.Connect(s.ClientURL())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if got := nc.ConnectedServerId(); got != s.ID() {
			t.Fatalf("connected to %s, want %s", got, s.ID())
		}
	})
}
