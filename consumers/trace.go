package consumers

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/publishers"
	"github.com/jetpost/jetpost/store"
)

// The attributes of spans. Of each, what jetpost's own words mean by it.
const (
	attrAccount = attribute.Key("jetpost.account")
	attrRequest = attribute.Key("jetpost.request")
	attrState   = attribute.Key("jetpost.state")
	attrCode    = attribute.Key("jetpost.code")
	attrDetail  = attribute.Key("jetpost.detail")
	attrPost    = attribute.Key("jetpost.post") // its number, from 1
)

// tracer makes the spans of what handlers do. Without one they make none, and what a
// producer has told of its trace is passed on.
type tracer struct{ trace.Tracer }

// start begins a span below the one that parent names, as W3C's traceparent, or in a trace
// of its own.
func (t tracer) start(ctx context.Context, parent, name string, kind trace.SpanKind, about ...attribute.KeyValue) (context.Context, trace.Span) {
	ctx = traced(ctx, parent)
	if t.Tracer == nil {
		return ctx, trace.SpanFromContext(ctx)
	}
	return t.Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(about...))
}

// traced is the context of the span that parent names; of none where that is nothing.
func traced(ctx context.Context, parent string) context.Context {
	ctx = trace.ContextWithSpan(ctx, noop.Span{})
	if parent == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{publishers.HeaderTrace: parent})
}

// traceparent names the span of a context; "" where there is none.
func traceparent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[publishers.HeaderTrace]
}

// logTrace is a log whose records name the trace of a context, if there is one.
func logTrace(ctx context.Context, log *slog.Logger) *slog.Logger {
	if c := trace.SpanContextFromContext(ctx); c.HasTraceID() {
		return log.With("trace_id", c.TraceID().String())
	}
	return log
}

// over ends a span, with why it went wrong.
func over(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// beginTrace has a job accepted in a span. The ledger keeps it, so that whoever publishes
// the request goes on below it.
func (h *intakeHandler) beginTrace(ctx context.Context, j *job) {
	var account string
	if account = j.in.Request.Account; j.refusal != nil {
		account = j.refusal.Account
	}
	ctx, j.span = h.Trace.start(ctx, j.delivery.Trace, "accept", trace.SpanKindConsumer, attrAccount.String(account))
	j.in.Trace = traceparent(ctx)
	j.log = logTrace(ctx, h.Log)
}

// endTrace ends a job's span, once it is known what became of it.
func (j *job) endTrace(err error) {
	switch {
	case j.refusal != nil:
		j.span.SetAttributes(attrState.String("refused"), attrCode.String(string(j.refusal.Code)))
	default:
		j.span.SetAttributes(attrRequest.String(j.in.Request.ID))
	}
	over(j.span, err)
}

// advanceTraced takes the head as far as it goes now, in a span of its trace, and settles
// what came of it.
func (r *laneRun) advanceTraced(ctx context.Context, head *store.Record, generation int64) error {
	ctx, span := r.h.Trace.start(ctx, head.Trace, "publish", trace.SpanKindInternal,
		attrAccount.String(head.Account), attrRequest.String(head.ID), attribute.Int64("jetpost.fence", r.lane.Fence))
	log := r.log
	r.log = logTrace(ctx, log)
	defer func() { r.log = log }()
	a := r.advance(ctx, head)
	err := r.settle(ctx, head, generation, a)
	tellTrace(span, a)
	over(span, err)
	return err
}

// tellTrace tells what came of a head.
func tellTrace(span trace.Span, a attempt) {
	if a.kind == kindGoOn {
		return
	}
	span.SetAttributes(attrState.String(a.decision.String()), attrCode.String(string(a.reason.Code)), attrDetail.String(a.reason.Detail))
	if a.post >= 0 {
		span.SetAttributes(attrPost.Int(a.post + 1))
	}
}

// tracePost notes on the span of a request that a post of it is live.
func tracePost(ctx context.Context, i int, state jetpost.State) {
	trace.SpanFromContext(ctx).AddEvent("posted", trace.WithAttributes(attrPost.Int(i+1), attrState.String(string(state))))
}
