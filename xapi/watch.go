package xapi

import "context"

// Watch sees a call to X from its beginning to its end, for metrics and traces. It
// returns the context of the call, and what is told how the call ended, once.
type Watch func(ctx context.Context, e Endpoint) (context.Context, func(error))

// WithWatch has each call of the client seen.
func WithWatch(w Watch) Option {
	return func(c *Client) { c.watch = w }
}

// see makes a call that is watched; a nil Watch sees nothing.
func (w Watch) see(ctx context.Context, e Endpoint, call func(context.Context) error) error {
	if w == nil {
		return call(ctx)
	}
	ctx, ended := w(ctx, e)
	err := call(ctx)
	ended(err)
	return err
}
