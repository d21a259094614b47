package testkit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

const (
	// Patience bounds each wait for a fact; a loaded machine needs much of it.
	Patience = 3 * time.Minute
	// AskAgain is how often a fact is asked for.
	AskAgain = 20 * time.Millisecond
)

// T is what helpers ask of a test. *testing.T has it, and so has a program that does what
// a test does. Fatal and Fatalf end the goroutine of the test.
type T interface {
	Name() string
	Helper()
	Context() context.Context
	Cleanup(f func())
	TempDir() string
	Log(args ...any)
	Logf(format string, args ...any)
	Error(args ...any)
	Errorf(format string, args ...any)
	Fail()
	Failed() bool
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// Must ends the test with an error.
func Must(t T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Equal wants two values to be the same.
func Equal[V comparable](t T, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// Eventually waits for a fact.
func Eventually(t T, what string, is func() bool) {
	t.Helper()
	end := time.After(Patience)
	again := time.NewTicker(AskAgain)
	defer again.Stop()
	for !is() {
		select {
		case <-again.C:
		case <-end:
			t.Fatalf("waited %s in vain for %s", Patience, what)
		}
	}
}

// Wait waits for a channel to be closed.
func Wait(t T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(Patience):
		t.Fatalf("waited %s in vain for %s", Patience, what)
	}
}

// ClosedAddress is a port of this machine that nobody listens on, for a server that must
// be told its port. It is none of those that systems hand out themselves, so that it stays
// free until that server takes it.
func ClosedAddress(t T) string {
	t.Helper()
	const lowest, beyond, tries = 15_000, 32_000, 100
	var err error
	for range tries {
		address := fmt.Sprintf("127.0.0.1:%d", lowest+rand.IntN(beyond-lowest))
		var l net.Listener
		if l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", address); err == nil {
			Must(t, l.Close())
			return address
		}
	}
	t.Fatalf("find a free port: %v", err)
	return ""
}
