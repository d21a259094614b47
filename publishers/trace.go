package publishers

import (
	"context"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/propagation"
)

// HeaderTrace is the header of a job, an event or a record that names the span which
// published it, as W3C has it.
const HeaderTrace = "traceparent"

// setTrace has a message name the span of its context, if there is one.
func setTrace(ctx context.Context, msg *nats.Msg) {
	propagation.TraceContext{}.Inject(ctx, headerCarrier{msg.Header})
}

// headerCarrier keeps to the name as W3C spells it: NATS tells names by their case.
type headerCarrier struct{ nats.Header }

func (c headerCarrier) Set(name, value string) {
	if name == HeaderTrace {
		c.Header.Set(name, value)
	}
}

func (c headerCarrier) Keys() []string { return nil } // which only reading asks for
