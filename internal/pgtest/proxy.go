//go:build unix

package pgtest

import (
	"bytes"
	"context"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jetpost/jetpost/internal/testkit"
)

// Proxy stands between clients and a server, and fails as networks do: it does not
// answer, or loses answers, while both sides keep their connections.
type Proxy struct {
	t        testkit.T
	listener net.Listener
	target   string // URL behind it, of a database
	dial     func(context.Context) (net.Conn, error)

	mu      sync.Mutex
	healed  chan struct{} // closed while bytes pass
	word    string        // what a client sends before answers are lost
	losing  bool          // answers are lost once the word was sent
	lost    bool          // answers are lost
	noted   chan struct{} // closed once the word was sent
	delay   time.Duration // of each answer
	refuses bool          // connections are refused
	conns   map[net.Conn]bool
}

// NewProxy makes a proxy for the server of a database.
func NewProxy(t testkit.T, database string) *Proxy {
	t.Helper()
	return newProxy(t, &Proxy{target: database, dial: func(ctx context.Context) (net.Conn, error) {
		config, err := pgconn.ParseConfig(database)
		if err != nil {
			return nil, err
		}
		network, address := pgconn.NetworkAddress(config.Host, config.Port)
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}})
}

// NewProxyTo makes a proxy for a server at a TCP address.
func NewProxyTo(t testkit.T, address string) *Proxy {
	t.Helper()
	return newProxy(t, &Proxy{dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}})
}

func newProxy(t testkit.T, p *Proxy) *Proxy {
	t.Helper()
	listener := listen(t)
	p.t, p.listener, p.healed, p.conns = t, listener, make(chan struct{}), map[net.Conn]bool{}
	close(p.healed)
	t.Cleanup(func() {
		_ = listener.Close()
		p.Heal()
		p.Cut()
	})
	go p.serve()
	return p
}

// Address is where the proxy listens.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// URL is that of the same database, behind the proxy.
func (p *Proxy) URL() string {
	u, err := url.Parse(p.target)
	if err != nil {
		p.t.Fatal(err)
	}
	query := u.Query()
	query.Del("host")
	query.Set("sslmode", "disable")
	u.Host, u.RawQuery = p.Address(), query.Encode()
	return u.String()
}

// Hang lets nothing pass in either direction, as if packets were dropped. What is sent
// meanwhile arrives after Heal, even if its sender is gone.
func (p *Proxy) Hang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.healed = make(chan struct{})
}

// LoseAnswers drops all answers to clients from the moment at which one sends the word;
// "" for at once. The channel is closed then.
func (p *Proxy) LoseAnswers(word string) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.word, p.losing, p.lost, p.noted = word, true, word == "", make(chan struct{})
	return p.noted
}

// Delay delays each answer by that time.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Refuse cuts all connections and refuses others.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	p.refuses = true
	p.mu.Unlock()
	p.Cut()
}

// Heal ends every fault. What hung arrives.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.losing, p.lost, p.refuses, p.delay = false, false, false, 0
	select {
	case <-p.healed:
	default:
		close(p.healed)
	}
}

// Cut ends all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		_ = conn.Close()
	}
}

func (p *Proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		go p.join(client)
	}
}

// join connects a client to the server.
func (p *Proxy) join(client net.Conn) {
	p.pass(0)
	server, err := p.dial(p.t.Context())
	p.mu.Lock()
	refuses := p.refuses || err != nil
	if !refuses {
		p.conns[client], p.conns[server] = true, true
	}
	p.mu.Unlock()
	if refuses {
		_ = client.Close()
		return
	}
	go p.carry(server, client, p.request)
	p.carry(client, server, p.answer)
}

// carry copies one direction, until its source ends.
func (p *Proxy) carry(to, from net.Conn, let func([]byte) bool) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && let(buffer[:n]) {
			_, _ = to.Write(buffer[:n])
		}
		if err != nil {
			break
		}
	}
	_ = to.Close()
	p.mu.Lock()
	delete(p.conns, to)
	p.mu.Unlock()
}

// request lets what a client sends pass.
func (p *Proxy) request(data []byte) bool {
	p.mu.Lock()
	if p.losing && !p.lost && bytes.Contains(bytes.ToLower(data), []byte(strings.ToLower(p.word))) {
		p.lost = true
		close(p.noted)
	}
	p.mu.Unlock()
	p.pass(0)
	return true
}

// answer lets what the server sends pass, unless it is lost.
func (p *Proxy) answer([]byte) bool {
	p.mu.Lock()
	lost, delay := p.lost, p.delay
	p.mu.Unlock()
	p.pass(delay)
	return !lost
}

// pass waits until bytes may pass.
func (p *Proxy) pass(delay time.Duration) {
	p.mu.Lock()
	healed := p.healed
	p.mu.Unlock()
	<-healed
	if delay > 0 {
		<-time.After(delay)
	}
}
