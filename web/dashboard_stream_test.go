package web

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/testkit"
)

// fed are changes that a test tells.
type fed struct {
	changes chan jetpost.Change
	began   atomic.Int32
	ended   atomic.Int32
}

func (f *fed) follow(ctx context.Context) (uint64, iter.Seq2[jetpost.Change, error], error) {
	f.began.Add(1)
	return 10, func(yield func(jetpost.Change, error) bool) {
		defer f.ended.Add(1)
		for {
			select {
			case <-ctx.Done():
				return
			case change := <-f.changes:
				if change.Sequence == 0 {
					yield(change, errors.New("NATS is away"))
					return
				}
				if !yield(change, nil) {
					return
				}
			}
		}
	}, nil
}

func newFed(t *testing.T) (*fed, *feed) {
	t.Helper()
	f := &fed{changes: make(chan jetpost.Change)}
	l := newFeed(f.follow, slog.New(slog.DiscardHandler))
	l.every, l.retry = time.Millisecond, time.Millisecond
	return f, l
}

func (l *feed) isUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

// TestOneReadsForAll: changes are read once, however many pages there are, and by nobody
// once the last one has left.
func TestOneReadsForAll(t *testing.T) {
	t.Parallel()
	f, l := newFed(t)
	for range 3 {
		if !l.join() {
			t.Fatal("a reader was turned away")
		}
	}
	testkit.Eventually(t, "changes to be read", l.isUp)
	for range 3 {
		l.leave()
	}
	l.running.Wait()
	if began, ended := f.began.Load(), f.ended.Load(); began != 1 || ended != 1 {
		t.Errorf("changes were read %d times, and %d times to the end", began, ended)
	}
	l.join()
	testkit.Eventually(t, "changes to be read again", l.isUp)
	f.changes <- jetpost.Change{} // fails
	testkit.Eventually(t, "another try", func() bool { return f.began.Load() == 3 && l.isUp() })
	l.leave()
	l.close()
	if l.join() {
		t.Error("a reader was let in after the end")
	}
}

// TestLook: a reader hears of what it follows, and of everything that nobody can tell any
// more.
func TestLook(t *testing.T) {
	t.Parallel()
	_, l := newFed(t)
	l.up, l.last, l.from = true, 10, 10
	l.keep(jetpost.Change{Sequence: 11, Account: "acme", ID: "one"})
	l.keep(jetpost.Change{Sequence: 13, Account: "beta", ID: "two"})
	all, acme, two := jetpost.RequestName{}, jetpost.RequestName{Account: "acme"}, jetpost.RequestName{Account: "beta", ID: "two"}
	for _, test := range []struct {
		after   uint64
		follows jetpost.RequestName
		changed bool
	}{
		{10, all, true}, {11, all, true}, {13, all, false}, {12, acme, false}, {10, acme, true}, {11, two, true}, {13, two, false},
		{9, two, true}, {14, all, true},
	} {
		if is := l.look(test.after, test.follows); is.changed != test.changed || is.last != 13 {
			t.Errorf("after %d, of %v: changed %t up to %d", test.after, test.follows, is.changed, is.last)
		}
	}
	l.keep(jetpost.Change{Sequence: 14, Type: jetpost.EventAppPaused})
	if !l.look(13, two).changed {
		t.Error("a pause of the app concerns nobody")
	}
	for n := range 3 * liveKept {
		l.keep(jetpost.Change{Sequence: uint64(15 + n), Account: "acme", ID: "one"})
	}
	if len(l.kept) >= 2*liveKept || !l.look(14, two).changed || l.look(l.last-10, two).changed {
		t.Errorf("%d changes are kept, from %d on", len(l.kept), l.from)
	}
}

// pipes listens for connections within this process, whose two ends wait for each other.
type pipes struct {
	net.Listener
	connections chan net.Conn
}

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p.connections; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error { return nil }

func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestSlowReaderIsDropped: whoever does not read is dropped, and holds up nobody.
func TestSlowReaderIsDropped(t *testing.T) {
	t.Parallel()
	_, l := newFed(t)
	l.beat, l.write = time.Millisecond, 500*time.Millisecond
	d := &Dashboard{feed: l}
	server := &http.Server{Handler: http.HandlerFunc(d.serveLive), ReadHeaderTimeout: time.Minute}
	listener := pipes{connections: make(chan net.Conn)}
	go func() { _ = server.Serve(listener) }() // until the test ends
	t.Cleanup(func() { close(listener.connections); _ = server.Close() })
	open := func() *bufio.Reader {
		t.Helper()
		ours, theirs := net.Pipe()
		t.Cleanup(func() { _ = ours.Close() })
		listener.connections <- theirs
		_, err := fmt.Fprint(ours, "GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
		testkit.Must(t, err)
		from := bufio.NewReader(ours)
		_, err = from.ReadString('\n')
		testkit.Must(t, err)
		return from
	}
	readers := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.readers
	}
	open() // and reads no more
	reads := open()
	testkit.Eventually(t, "the slow one to be dropped", func() bool {
		_, err := reads.ReadString('\n')
		testkit.Must(t, err)
		return readers() == 1
	})
}
