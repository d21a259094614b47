package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync/atomic"
)

// proxy stands between a worker and PostgreSQL and counts what the server
// answers: a statement ends with CommandComplete, EmptyQueryResponse, an error or
// a suspended portal, and a round trip with ReadyForQuery. BEGIN and COMMIT are
// statements too. It is used where counts are taken, never where time is.
type proxy struct {
	target, address        string
	statements, roundTrips atomic.Int64
}

func newProxy(ctx context.Context, target string) (*proxy, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{target: target, address: l.Addr().String()}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(context.WithoutCancel(ctx), client)
		}
	}()
	return p, nil
}

// serve carries one session. An end of either side ends the other one.
func (p *proxy) serve(ctx context.Context, client net.Conn) {
	defer func() { _ = client.Close() }()
	server, err := new(net.Dialer).DialContext(ctx, "tcp", p.target)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	_ = p.answers(client, server)
}

// A message of the server is a type, a length that counts itself, and a body.
func (p *proxy) answers(client io.Writer, server io.Reader) error {
	in, out := bufio.NewReaderSize(server, 64<<10), bufio.NewWriterSize(client, 64<<10)
	begun := false // the first ReadyForQuery ends the login
	var header [5]byte
	for {
		if _, err := io.ReadFull(in, header[:]); err != nil {
			return errors.Join(err, out.Flush())
		}
		switch header[0] {
		case 'C', 'I', 'E', 's':
			p.statements.Add(1)
		case 'Z':
			if begun {
				p.roundTrips.Add(1)
			}
			begun = true
		}
		if _, err := out.Write(header[:]); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, int64(binary.BigEndian.Uint32(header[1:]))-4); err != nil {
			return err
		}
		if in.Buffered() > 0 {
			continue
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
}
