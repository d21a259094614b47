package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/jetpost/jetpost"
)

// Call has an operation carried out whose bodies are JSON as the contract has them: for
// programs that pass on what others ask for. It asks once, since it knows no operation_id.
// The error is an *[Error].
func (c *Client) Call(ctx context.Context, o jetpost.Operation, account string, body []byte) (json.RawMessage, error) {
	info, known := o.Info()
	switch {
	case !known:
		return nil, &Error{Code: jetpost.ErrUnsupported, Detail: fmt.Sprintf("%s is no operation", o)}
	case account == "" && info.Account == jetpost.OfOne:
		return nil, &Error{Code: jetpost.ErrInvalid, Detail: fmt.Sprintf("%s: no account is named", o)}
	case account != "" && info.Account == jetpost.OfNone:
		return nil, &Error{Code: jetpost.ErrInvalid, Detail: fmt.Sprintf("%s concerns no account", o)}
	case account != "":
		if err := jetpost.CheckAccount(account); err != nil {
			return nil, &Error{Code: jetpost.ErrInvalid, Detail: err.Error()}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, info.Within+answerSlack)
	defer cancel()
	msg, err := c.ask(ctx, o, account, body)
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return nil, &Error{Code: jetpost.ErrInvalid, Detail: fmt.Sprintf("the body has %d bytes, and a message %d at most", len(body), c.nc.MaxPayload())}
	case err != nil:
		return nil, noAnswer(o, err)
	}
	return decode[json.RawMessage](msg.Data)
}
