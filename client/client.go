// Package client is for programs that publish with jetpost, and look after what they have
// published: it needs a connection to NATS, and neither a database nor keys.
//
// Each operation of the contract is a method, which one of the workers carries out. Which
// of them a user may call, and for which accounts, NATS's permissions say. A context of
// [jetpost.WithActor] states who asks, for the audit log.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/jetpost/jetpost"
)

// Error is why an operation was not done.
type Error = jetpost.APIError

// answerSlack is how much later than a worker gives up an answer is given up.
const answerSlack = 2 * time.Second

// Client calls the operations of one installation. It is safe for concurrent use. The
// connection stays the caller's.
type Client struct {
	nc    *nats.Conn
	names jetpost.Names
}

// Option changes how a client works.
type Option func(*Client) error

// WithPrefix is for an installation that shares its NATS with others: its JETPOST_PREFIX.
func WithPrefix(prefix string) Option {
	return func(c *Client) (err error) {
		c.names, err = jetpost.NewNames(prefix)
		return err
	}
}

// New calls the workers of the installation that nc leads to.
func New(nc *nats.Conn, options ...Option) (*Client, error) {
	c := &Client{nc: nc}
	for _, option := range options {
		if err := option(c); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// NewOperationID makes an id for a change. A method makes one by itself where there is
// none; whoever wants to repeat a change after the end of the program chooses it before.
func NewOperationID() string { return uuid.NewString() }

// call asks one of the workers, and asks again, until ctx ends, while an answer is lost: a
// change takes effect once. Without a deadline of the caller's it asks once. The error is
// an *Error.
func call[Out any](ctx context.Context, c *Client, o jetpost.Operation, account string, in any) (out Out, err error) {
	info, _ := o.Info()
	if account != "" {
		if err := jetpost.CheckAccount(account); err != nil {
			return out, &Error{Code: jetpost.ErrInvalid, Detail: err.Error()}
		}
	} else if info.Account == jetpost.OfOne {
		return out, &Error{Code: jetpost.ErrInvalid, Detail: fmt.Sprintf("%s: no account is named", o)}
	}
	body, err := json.Marshal(in)
	if err != nil {
		return out, &Error{Code: jetpost.ErrInvalid, Detail: err.Error()}
	}
	_, patient := ctx.Deadline()
	for {
		attempt, cancel := context.WithTimeout(ctx, info.Within+answerSlack)
		msg, err := c.ask(attempt, o, account, body)
		cancel()
		switch {
		case err == nil:
			return decode[Out](msg.Data)
		case patient && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			continue
		}
		return out, noAnswer(o, err)
	}
}

// ask sends a call, with who asks for it where the context says so.
func (c *Client) ask(ctx context.Context, o jetpost.Operation, account string, body []byte) (*nats.Msg, error) {
	msg := &nats.Msg{Subject: c.names.API(o, account), Data: body}
	if actor := jetpost.ActorOf(ctx); actor != "" {
		msg.Header = nats.Header{jetpost.HeaderActor: {actor}}
	}
	return c.nc.RequestMsgWithContext(ctx, msg)
}

// decode reads an answer.
func decode[Out any](body []byte) (out Out, err error) {
	var failed jetpost.ErrorAnswer
	err = json.Unmarshal(body, &failed)
	if err == nil && failed.Error != nil {
		return out, failed.Error
	}
	if err == nil {
		err = json.Unmarshal(body, &out)
	}
	if err != nil {
		return out, &Error{Code: jetpost.ErrInternal, Detail: "read answer: " + err.Error()}
	}
	return out, nil
}

// noAnswer tells why nobody has answered.
func noAnswer(o jetpost.Operation, err error) *Error {
	e := &Error{Code: jetpost.ErrUnavailable, Detail: fmt.Sprintf("%s: %v", o, err)}
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		e.Detail = fmt.Sprintf("%s: no worker answers", o)
		e.Help = "start a worker, or wait until one runs; a NATS account that does not import the operation gets no answer either"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		e.Detail = fmt.Sprintf("%s: no answer came in time", o)
		e.Help = "ask again with the same operation_id; a user without permission gets no answer either"
	}
	return e
}

// once gives a change an id where it has none.
func once(id string) string {
	if id == "" {
		return NewOperationID()
	}
	return id
}
