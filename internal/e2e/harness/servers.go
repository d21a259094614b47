package harness

import (
	"bytes"
	"context"
	"image"
	"image/color"
	"image/png"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/jetpost/jetpost/internal/testkit"
)

// natsServer runs a NATS server, until it is told to stop, is killed or the process that
// started it ends: NATSServerCommand DIR PORT, or NATSServerCommand CONFIG.
func natsServer() {
	options := &server.Options{ServerName: "e2e", Host: "127.0.0.1", JetStream: true, StoreDir: os.Args[1]}
	var err error
	if len(os.Args) == 2 {
		options, err = server.ProcessConfigFile(os.Args[1])
	} else {
		options.Port, err = strconv.Atoi(os.Args[2])
	}
	if err != nil {
		panic(err)
	}
	options.NoSigs = true
	s, err := server.NewServer(options)
	if err != nil {
		panic(err)
	}
	s.ConfigureLogger()
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM) //nolint:forbidigo // a process of its own
	defer cancel()
	s.Start()
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	<-stop.Done()
	s.Shutdown()
	s.WaitForShutdown()
}

// StartNATS runs a server on a directory and port and waits until it listens.
func StartNATS(t testkit.T, dir, address string) *Process {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	testkit.Must(t, err)
	p := Start(t, "nats-server", os.Environ(), NATSServerCommand, dir, port)
	testkit.Eventually(t, "nats-server to listen", func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	return p
}

// HoldPort holds a port.
func HoldPort(t testkit.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	t.Cleanup(func() { _ = l.Close() }) // it may be closed already
	return l
}

// Picture draws a small PNG.
func Picture() ([]byte, error) {
	const side = 64
	img := image.NewRGBA(image.Rect(0, 0, side, side))
	for y := range side {
		for x := range side {
			img.Set(x, y, color.RGBA{R: uint8(4 * x), G: 120, B: uint8(255 - 4*y), A: 255})
		}
	}
	var out bytes.Buffer
	err := png.Encode(&out, img)
	return out.Bytes(), err
}
