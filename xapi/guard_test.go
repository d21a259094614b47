package xapi

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// onConnection returns a context that runs f when a request made with it has its
// connection, armed and not yet written to: the moment at which a stopped process
// does the most harm.
func onConnection(ctx context.Context, f func(info httptrace.GotConnInfo)) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: f})
}

// freeze makes the request's time pass while it holds its connection.
func freeze(info httptrace.GotConnInfo) {
	conn := info.Conn
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	f := conn.(*guardedConn).flight.Load()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.notAfter.wall = time.Now().Add(-time.Second)
}

const created = `{"data":{"id":"1","text":""}}`

func TestGuardRefusesWithinTheConnection(t *testing.T) {
	t.Parallel()

	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int64
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				reply(http.StatusCreated, created)(w, r)
			}))
			transport := NewTransport()
			if scheme == "https" {
				server.StartTLS()
				transport.TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig
			} else {
				server.Start()
			}
			t.Cleanup(server.Close)
			t.Cleanup(transport.CloseIdleConnections)
			c := New(testToken, WithBaseURL(server.URL), WithHTTPClient(&http.Client{Transport: transport}))

			// Once on a fresh connection, then on one that a request has used, then
			// without a guard again.
			for i, frozen := range []bool{true, false, true, false, false} {
				ctx := WithNotAfter(t.Context(), time.Now().Add(time.Hour))
				if frozen {
					ctx = onConnection(ctx, freeze)
				} else if i == 4 {
					ctx = t.Context()
				}
				before := calls.Load()
				_, err := c.CreatePost(ctx, Post{Text: "x"})
				if !frozen {
					if err != nil || calls.Load() != before+1 {
						t.Fatalf("request %d: %v after %d calls", i, err, calls.Load()-before)
					}
					continue
				}
				wantAs[*NotSentError](t, err)
				if !errors.Is(err, ErrNotAfter) || IsOutage(err) || calls.Load() != before {
					t.Errorf("request %d: got %v after %d calls", i, err, calls.Load()-before)
				}
			}
		})
	}
}

// TestProxyKeepsTheGuard: nothing is written late through a proxy, either, and what was
// written to the proxy itself does not count.
func TestProxyKeepsTheGuard(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		reply(http.StatusCreated, created)(w, r)
	}))
	t.Cleanup(server.Close)
	var status atomic.Int64
	status.Store(http.StatusOK)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		there, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
		if err != nil || status.Load() != http.StatusOK {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		here, read, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n") // the client sends nothing before
		go func() {
			_, _ = io.Copy(there, read)
			_ = there.Close()
		}()
		_, _ = io.Copy(here, there)
		_ = here.Close()
	}))
	t.Cleanup(proxy.Close)
	address, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := NewTransport()
	t.Cleanup(transport.CloseIdleConnections)
	transport.TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig
	transport.Proxy = http.ProxyURL(address) // loopback addresses are not proxied by the environment
	c := New(testToken, WithBaseURL(server.URL), WithHTTPClient(&http.Client{Transport: transport}))
	send := func(ctx context.Context) error {
		_, err := c.CreatePost(WithNotAfter(ctx, time.Now().Add(time.Hour)), Post{Text: "x"})
		return err
	}
	if err := send(t.Context()); err != nil || calls.Load() != 1 {
		t.Fatalf("%v after %d calls", err, calls.Load())
	}
	transport.CloseIdleConnections() // a fresh one next
	err = send(onConnection(t.Context(), freeze))
	wantAs[*NotSentError](t, err)
	if !errors.Is(err, ErrNotAfter) || calls.Load() != 1 {
		t.Errorf("late: got %v after %d calls", err, calls.Load()-1)
	}
	status.Store(http.StatusForbidden)
	err = send(t.Context())
	wantAs[*NotSentError](t, err)
	if want := "proxy " + address.Host + " does not connect"; !strings.Contains(err.Error(), want) || !IsOutage(err) {
		t.Errorf("refused: got %v, want %q in it", err, want)
	}
}

func TestGuardLeavesReusedConnectionClean(t *testing.T) {
	t.Parallel()

	b := setup(t, reply(http.StatusCreated, created))
	var conn net.Conn
	ctx := onConnection(WithNotAfter(t.Context(), time.Now().Add(time.Hour)), func(info httptrace.GotConnInfo) { conn = info.Conn })
	if _, err := b.client.CreatePost(ctx, Post{}); err != nil {
		t.Fatal(err)
	}
	if conn.(*guardedConn).flight.Load() != nil {
		t.Error("the guard outlives its request")
	}
	var reused bool
	ctx = onConnection(t.Context(), func(info httptrace.GotConnInfo) { reused = info.Reused })
	if _, err := b.client.CreatePost(ctx, Post{}); err != nil || !reused {
		t.Errorf("got %v, reused %v", err, reused)
	}
}

func TestGuardPassedBeforeSending(t *testing.T) {
	t.Parallel()

	b := setup(t, reply(http.StatusCreated, created))
	_, err := b.client.CreatePost(WithNotAfter(t.Context(), time.Now().Add(-time.Second)), Post{})
	wantAs[*NotSentError](t, err)
	if !errors.Is(err, ErrNotAfter) || b.calls.Load() != 0 {
		t.Errorf("got %v after %d calls", err, b.calls.Load())
	}
}

func TestNotAfterClocks(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		d := notAfter(WithNotAfter(t.Context(), start.Add(time.Minute)))
		if d.passed(start) || d.passed(start.Add(time.Minute)) || !d.passed(start.Add(time.Minute+1)) {
			t.Error("one clock: wrong moment")
		}
		// The wall clock was set back by an hour: the monotonic one still counts.
		back := deadline{wall: d.wall.Add(time.Hour), monotonic: d.monotonic}
		// The machine slept: the monotonic clock lost an hour.
		slept := deadline{wall: d.wall, monotonic: d.monotonic.Add(time.Hour)}
		for _, d := range []deadline{back, slept} {
			if !d.passed(start.Add(time.Minute + 1)) {
				t.Errorf("%+v: one clock suffices", d)
			}
		}
	})
}

func TestNotAfterStricterWins(t *testing.T) {
	t.Parallel()

	now := time.Now()
	soon, late := now.Add(time.Minute), now.Add(time.Hour)
	for _, ctx := range []context.Context{
		WithNotAfter(WithNotAfter(t.Context(), soon), late),
		WithNotAfter(WithNotAfter(t.Context(), late), soon),
		WithNotAfter(WithNotAfter(t.Context(), soon), time.Time{}),
	} {
		if got := notAfter(ctx).wall; !got.Equal(soon) {
			t.Errorf("got %v, want %v", got, soon)
		}
	}
}

// TestMain is a publisher in a process of its own where the environment says so.
func TestMain(m *testing.M) {
	if base := os.Getenv(publisherBase); base != "" {
		publisherProcess(base, os.Getenv(publisherStops), os.Getenv(publisherGuarded) != "")
		return
	}
	m.Run()
}

const (
	publisherBase    = "XAPI_TEST_PUBLISHER_BASE"
	publisherStops   = "XAPI_TEST_PUBLISHER_STOPS"
	publisherGuarded = "XAPI_TEST_PUBLISHER_GUARDED"

	// sendWithin is how long after its intent a publisher may send.
	sendWithin = 600 * time.Millisecond
)

// stops are the places at which a publisher is stopped: each after the intent, and
// before a byte has left.
var stops = map[string]func(stop func()) *httptrace.ClientTrace{
	"before the call": nil,
	"before the connection": func(stop func()) *httptrace.ClientTrace {
		return &httptrace.ClientTrace{GetConn: func(string) { stop() }}
	},
	"on the connection": func(stop func()) *httptrace.ClientTrace {
		return &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { stop() }}
	},
	"between header and body": func(stop func()) *httptrace.ClientTrace { return &httptrace.ClientTrace{WroteHeaders: stop} },
}

// publisherProcess does what a worker does: it says until when it may send, and
// sends, with the timeout that a worker has. On the way it says that it can be
// stopped, and goes on when it reads a line.
func publisherProcess(base, place string, guarded bool) {
	stop := sync.OnceFunc(func() {
		fmt.Println("stop") //nolint:forbidigo // to the parent
		_, _ = os.Stdin.Read(make([]byte, 1))
	})
	client := New(testToken, WithBaseURL(base), WithTimeout(sendWithin*3/4))
	notAfter := time.Now().Add(sendWithin)
	text, _ := json.Marshal(notAfter)
	ctx := context.Background()
	if guarded {
		ctx = WithNotAfter(ctx, notAfter)
	}
	if trace := stops[place]; trace != nil {
		ctx = httptrace.WithClientTrace(ctx, trace(stop))
	} else {
		stop()
	}
	_, err := client.CreatePost(ctx, Post{Text: string(text)})
	var notSent *NotSentError
	fmt.Println(errors.As(err, &notSent)) //nolint:forbidigo // to the parent
}

// TestStoppedProcessIsNeverLate stops real processes between their intent and the
// write, and continues them when it is too late. With the guard no post arrives late.
// Without it some do despite their timeouts, so it is the guard that holds.
func TestStoppedProcessIsNeverLate(t *testing.T) {
	t.Parallel()
	const each = 10 // processes stopped at each place
	for name, guarded := range map[string]bool{"guarded": true, "unguarded": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var arrived, late, notSent, stopped atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				at := time.Now()
				var post struct{ Text string }
				var notAfter time.Time
				if err := errors.Join(json.NewDecoder(r.Body).Decode(&post), json.Unmarshal([]byte(post.Text), &notAfter)); err != nil {
					t.Errorf("read post: %v", err)
				}
				arrived.Add(1)
				if at.After(notAfter) {
					late.Add(1)
				}
				reply(http.StatusCreated, created)(w, r)
			}))
			t.Cleanup(server.Close)
			atOnce := make(chan struct{}, 10)
			var all sync.WaitGroup
			for place := range stops {
				for range each {
					atOnce <- struct{}{}
					all.Go(func() {
						defer func() { <-atOnce }()
						wasStopped, sent := stopPublisher(t, server.URL, place, guarded)
						if wasStopped {
							stopped.Add(1)
						}
						if !sent {
							notSent.Add(1)
						}
					})
				}
			}
			all.Wait()
			total := int64(each * len(stops))
			t.Logf("of %d processes %d were stopped, %d posts arrived, %d of them late", total, stopped.Load(), arrived.Load(), late.Load())
			switch {
			case stopped.Load() < total*3/4: // a loaded machine may be too slow for some
				t.Errorf("only %d were stopped on their way", stopped.Load())
			case guarded && (late.Load() > 0 || notSent.Load() != total-arrived.Load()):
				t.Errorf("%d arrived late, %d were said not to be sent; want none late, and all %d that did not arrive not sent",
					late.Load(), notSent.Load(), total-arrived.Load())
			case !guarded && late.Load() == 0:
				t.Error("no post came late: this test sees nothing")
			}
		})
	}
}

// stopPublisher runs a publisher, stops it where it asks for that, and continues it
// when it may send no more. It returns whether it was stopped in time, and what it says
// of its post.
func stopPublisher(t *testing.T, base, place string, guarded bool) (stopped, sent bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), publisherBase+"="+base, publisherStops+"="+place)
	if guarded {
		cmd.Env = append(cmd.Env, publisherGuarded+"=yes")
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(err, outErr, cmd.Start()); err != nil {
		t.Errorf("start publisher: %v", err)
		return false, false
	}
	lines := bufio.NewScanner(out)
	answer := ""
	for lines.Scan() {
		if answer = lines.Text(); answer != "stop" {
			continue
		}
		stopped = true
		var status syscall.WaitStatus
		err := cmd.Process.Signal(syscall.SIGSTOP)
		if err == nil {
			_, err = syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
		}
		_, writeErr := io.WriteString(in, "\n") // it reads this when it goes on
		<-time.After(sendWithin)                // since it said so: its time was up before
		if err := errors.Join(err, writeErr, cmd.Process.Signal(syscall.SIGCONT)); err != nil || !status.Stopped() {
			t.Errorf("stop publisher: %v, %v", status, err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("publisher: %v", err)
	}
	return stopped, answer != "true"
}

// rawServer answers each connection with serve, below HTTP.
func rawServer(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn)
			_ = conn.Close()
		}
	}()
	return "http://" + l.Addr().String()
}

// TestDroppedKeepAliveIsNotReplayed takes a second post whole on a used connection
// and hangs up. Only the first two requests may ever arrive.
func TestDroppedKeepAliveIsNotReplayed(t *testing.T) {
	t.Parallel()

	var requests atomic.Int64
	base := rawServer(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for range 2 {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			if requests.Add(1) == 1 {
				_, _ = io.WriteString(conn, "HTTP/1.1 201 Created\r\nContent-Length: 29\r\n\r\n"+created)
			}
		}
	})
	c := New(testToken, WithBaseURL(base))
	if _, err := c.CreatePost(t.Context(), Post{}); err != nil {
		t.Fatal(err)
	}
	_, err := c.CreatePost(t.Context(), Post{})
	wantAs[*AmbiguousError](t, err)
	if !IsOutage(err) || requests.Load() != 2 {
		t.Errorf("got %v after %d requests", err, requests.Load())
	}
}

func TestLostAnswers(t *testing.T) {
	t.Parallel()

	read := func(conn net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
		}
	}
	for name, serve := range map[string]func(net.Conn){
		"closed":  read,
		"garbage": func(conn net.Conn) { read(conn); _, _ = io.WriteString(conn, "hello\r\n\r\n") },
		"body cut": func(conn net.Conn) {
			read(conn)
			_, _ = io.WriteString(conn, "HTTP/1.1 201 Created\r\nContent-Length: 29\r\n\r\n"+created[:9])
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := New(testToken, WithBaseURL(rawServer(t, serve)))
			_, err := c.CreatePost(t.Context(), Post{})
			wantAs[*AmbiguousError](t, err)
			_, err = c.Me(t.Context())
			wantAs[*UnavailableError](t, err)
		})
	}
}

func TestTimeoutIsAmbiguous(t *testing.T) {
	t.Parallel()

	release := make(chan struct{})
	b := setup(t, func(w http.ResponseWriter, r *http.Request) { <-release })
	defer close(release)
	ctx, cancel := context.WithCancelCause(t.Context())
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { cancel(context.DeadlineExceeded) },
	})
	_, err := b.client.CreatePost(ctx, Post{})
	wantAs[*AmbiguousError](t, err)
	if !IsOutage(err) {
		t.Errorf("no outage: %v", err)
	}
}

func TestNothingSent(t *testing.T) {
	t.Parallel()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := l.Addr().String()
	_ = l.Close()
	plain := rawServer(t, func(conn net.Conn) { _, _ = io.WriteString(conn, "no TLS here\r\n\r\n") })
	for name, base := range map[string]string{
		"dial": "http://" + refused,
		"dns":  "http://no-such-host.invalid",
		"tls":  strings.Replace(plain, "http:", "https:", 1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := New(testToken, WithBaseURL(base)).CreatePost(t.Context(), Post{})
			wantAs[*NotSentError](t, err)
			if !IsOutage(err) {
				t.Errorf("no outage: %v", err)
			}
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestForeignTransport has a transport without our connections: what it reports
// counts, and silence proves nothing.
func TestForeignTransport(t *testing.T) {
	t.Parallel()

	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		report func(*httptrace.ClientTrace)
		sent   bool
	}{
		"connected":     {func(h *httptrace.ClientTrace) { h.GetConn("x"); h.GotConn(httptrace.GotConnInfo{}) }, false},
		"dial failed":   {func(h *httptrace.ClientTrace) { h.GetConn("x") }, false},
		"silent":        {func(*httptrace.ClientTrace) {}, true},
		"wrote headers": {func(h *httptrace.ClientTrace) { h.GetConn("x"); h.GotConn(httptrace.GotConnInfo{}); h.WroteHeaders() }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := New(testToken, WithHTTPClient(&http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				tc.report(httptrace.ContextClientTrace(r.Context()))
				return nil, boom
			})}))
			_, err := c.CreatePost(t.Context(), Post{})
			if !errors.Is(err, boom) {
				t.Fatalf("got %v", err)
			}
			if tc.sent {
				wantAs[*AmbiguousError](t, err)
			} else {
				wantAs[*NotSentError](t, err)
			}
		})
	}
}

// TestFlightStaysOver checks that a "nothing was sent" cannot become untrue.
func TestFlightStaysOver(t *testing.T) {
	t.Parallel()

	ours, theirs := net.Pipe()
	defer func() { _ = theirs.Close() }()
	// A guard that fails must not leave both ends waiting: the deadlines end them at
	// once.
	if err := errors.Join(ours.SetDeadline(time.Now()), theirs.SetDeadline(time.Now())); err != nil {
		t.Fatal(err)
	}
	conn := &guardedConn{Conn: ours}
	f := newFlight(t.Context())
	f.traced = true
	f.arm(conn)
	if sent, _ := f.abort(io.EOF); sent {
		t.Fatal("sent, though nothing was written")
	}
	if _, err := conn.Write([]byte("late")); !errors.Is(err, errOver) {
		t.Errorf("got %v", err)
	}
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("connection open: %v", err)
	}
}

// TestFlightCountsWriteUnderWay covers a write that has begun and not returned.
func TestFlightCountsWriteUnderWay(t *testing.T) {
	t.Parallel()

	f := newFlight(t.Context())
	f.traced = true
	if err := f.admit(); err != nil {
		t.Fatal(err)
	}
	if sent, _ := f.abort(io.EOF); !sent {
		t.Error("a write under way may have sent something")
	}
	failed := newFlight(t.Context())
	failed.traced = true
	_ = failed.admit()
	failed.written(0)
	if sent, _ := failed.abort(io.EOF); sent {
		t.Error("a write that took no byte sent nothing")
	}
}
