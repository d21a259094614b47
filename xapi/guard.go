package xapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

const (
	dialTimeout         = 10 * time.Second
	tlsHandshakeTimeout = 10 * time.Second
	keepAlivePeriod     = 15 * time.Second
	// idleConnTimeout is short, since a connection that X has silently dropped
	// turns the next post on it into one with an unknown outcome.
	idleConnTimeout        = 30 * time.Second
	maxIdleConns           = 100
	maxResponseHeaderBytes = 64 << 10
)

// ErrNotAfter says that the time given to WithNotAfter had passed, so that the
// connection refused to write the request.
var ErrNotAfter = errors.New("write refused: its time has passed")

// errOver refuses a write that comes after the request was given up.
var errOver = errors.New("write refused: its request is over")

// NewTransport returns a transport whose connections can prove what they wrote. They
// refuse every byte of a request after the time given to WithNotAfter, and count the
// bytes, so that a failure can be distinguished from a doubt.
//
// It speaks HTTP/1.1 only: there a connection carries one request at a time, and
// a write belongs to exactly one of them.
func NewTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlivePeriod}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &guardedConn{Conn: conn}, nil
		},
		OnProxyConnectResponse: ProxyAnswer,
		Protocols:              protocols,
		TLSHandshakeTimeout:    tlsHandshakeTimeout,
		IdleConnTimeout:        idleConnTimeout,
		MaxIdleConns:           maxIdleConns,
		MaxIdleConnsPerHost:    maxIdleConns,
		MaxResponseHeaderBytes: maxResponseHeaderBytes,
	}
}

// ProxyAnswer is an http.Transport's OnProxyConnectResponse that names the proxy which
// refuses to connect: net/http gives the words of its status alone.
func ProxyAnswer(_ context.Context, proxy *url.URL, connect *http.Request, answer *http.Response) error {
	if answer.StatusCode == http.StatusOK {
		return nil
	}
	return fmt.Errorf("proxy %s does not connect to %s: %s", proxy.Host, connect.Host, answer.Status)
}

// deadline is one moment on two clocks. The wall clock may be set back while a request
// is under way, and the monotonic one may pause while the machine sleeps. The one that
// runs out first counts.
type deadline struct {
	wall      time.Time
	monotonic time.Time
}

func (d deadline) passed(now time.Time) bool {
	return !d.wall.IsZero() && (now.Round(0).After(d.wall) || now.After(d.monotonic))
}

type notAfterKey struct{}

// WithNotAfter returns a context whose requests write nothing after t.
//
// A context's own deadline does not promise that: a process that was stopped and
// continued can send before its timers fire. Here the connection checks the clock in
// each Write. A guard set earlier in ctx stays if it is stricter; a zero t sets none.
func WithNotAfter(ctx context.Context, t time.Time) context.Context {
	if t.IsZero() {
		return ctx
	}
	wall := t.Round(0)
	if outer := notAfter(ctx); !outer.wall.IsZero() && !outer.wall.After(wall) {
		return ctx
	}
	now := time.Now()
	return context.WithValue(ctx, notAfterKey{}, deadline{wall: wall, monotonic: now.Add(wall.Sub(now.Round(0)))})
}

func notAfter(ctx context.Context) deadline {
	d, _ := ctx.Value(notAfterKey{}).(deadline)
	return d
}

// flight follows one request through the transport, over more than one
// connection when net/http replaces a dead one before anything was written.
type flight struct {
	notAfter deadline

	mu      sync.Mutex
	conn    *guardedConn // the connection the request was last given
	traced  bool         // the transport reports what it does
	foreign bool         // its connection is not ours and counts nothing
	writing bool         // a Write has been let through and has not returned
	wrote   bool         // at least one byte left
	over    bool         // no write is let through any more
	refused error        // why a write was not let through
}

func newFlight(ctx context.Context) *flight {
	return &flight{notAfter: notAfter(ctx)}
}

func (f *flight) late() error {
	if f.notAfter.passed(time.Now()) {
		return ErrNotAfter
	}
	return nil
}

// trace returns ctx with hooks that arm each connection the request is given.
func (f *flight) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.traced = true
		},
		GotConn:      func(info httptrace.GotConnInfo) { f.arm(info.Conn) },
		WroteHeaders: f.wroteUnseen,
		WroteRequest: func(httptrace.WroteRequestInfo) { f.wroteUnseen() },
	})
}

// arm prepares the connection below any layers of TLS. Every request does so, also
// one without a time, and thereby removes what an earlier request left.
func (f *flight) arm(conn net.Conn) {
	for {
		layer, ok := conn.(*tls.Conn)
		if !ok {
			break
		}
		conn = layer.NetConn()
	}
	guarded, ok := conn.(*guardedConn)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.foreign = !ok
	if ok {
		f.conn = guarded
		guarded.flight.Store(f)
	}
}

// wroteUnseen counts the transport's own report where the connection cannot be
// asked. Our connections know better: net/http reports headers as written when
// they only reached its buffer.
func (f *flight) wroteUnseen() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.foreign {
		f.wrote = true
	}
}

// admit lets one Write through, or says why not.
func (f *flight) admit() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return errOver
	}
	if f.refused = f.late(); f.refused != nil {
		return f.refused
	}
	f.writing = true
	return nil
}

func (f *flight) written(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writing = false
	f.wrote = f.wrote || n > 0
}

// abort ends a flight that brought no answer and reports whether a byte of it may
// have left. From then on nothing is let through, so that a "no" stays true. The
// cause is err, unless a write was refused: net/http then often reports only what
// the refusal did to its reading side.
func (f *flight) abort(err error) (sent bool, cause error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
	if f.refused != nil {
		err = f.refused
	}
	return !f.traced || f.wrote || f.writing, err
}

// land disarms the connection, unless the next request has it already.
func (f *flight) land() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil {
		f.conn.flight.CompareAndSwap(f, nil)
	}
}

// guardedConn asks the request it carries before each write.
type guardedConn struct {
	net.Conn
	flight atomic.Pointer[flight]
}

func (c *guardedConn) Write(b []byte) (int, error) {
	f := c.flight.Load()
	if f == nil {
		return c.Conn.Write(b)
	}
	if err := f.admit(); err != nil {
		_ = c.Close()
		return 0, err
	}
	n, err := c.Conn.Write(b)
	f.written(n)
	return n, err
}
