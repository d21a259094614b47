package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/jetpost/jetpost/xapi"
)

// tracerName is the name of all our spans' scope.
const tracerName = "github.com/jetpost/jetpost"

// closeWithin bounds the export of the last spans.
const closeWithin = 3 * time.Second

// Traces makes spans, and exports them. Its nil makes none.
type Traces struct{ provider *sdktrace.TracerProvider }

// NewTraces exports spans by OTLP over HTTP, to where the standard variables of
// OpenTelemetry say, sampled and named as they say.
func NewTraces(ctx context.Context, version string, log *slog.Logger) (*Traces, error) {
	// The library has one handler a process for what goes wrong meanwhile.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces.not_exported", "error", err) }))
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("export traces: %w", err)
	}
	named, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "jetpost"), attribute.String("service.version", version)),
		resource.WithTelemetrySDK(), resource.WithHost(), resource.WithFromEnv()) // the environment goes first
	if err != nil {
		return nil, fmt.Errorf("name what is traced: %w", err)
	}
	return ExportTraces(sdktrace.WithBatcher(exporter), sdktrace.WithResource(named)), nil
}

// ExportTraces exports spans as the options say.
func ExportTraces(options ...sdktrace.TracerProviderOption) *Traces {
	return &Traces{sdktrace.NewTracerProvider(options...)}
}

// Tracer is nil where no spans are made.
func (t *Traces) Tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer(tracerName)
}

// Close exports what is left, for a moment at most.
func (t *Traces) Close(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, closeWithin)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		otel.Handle(err)
	}
}

// Watch makes a span of each call to X, below the one of its context, beside what other
// sees.
func (t *Traces) Watch(other xapi.Watch) xapi.Watch {
	if t == nil {
		return other
	}
	tracer := t.Tracer()
	return func(ctx context.Context, e xapi.Endpoint) (context.Context, func(error)) {
		method, path, _ := strings.Cut(string(e), " ")
		ctx, span := tracer.Start(ctx, string(e), trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(attribute.String("http.request.method", method), attribute.String("url.template", path)))
		ctx, ended := other(ctx, e)
		return ctx, func(err error) {
			span.SetAttributes(attribute.String("jetpost.outcome", CallOutcome(err)))
			if err != nil {
				span.SetStatus(codes.Error, err.Error())
			}
			span.End()
			ended(err)
		}
	}
}
