package telemetry

import (
	"context"
	"errors"
	"time"

	"github.com/jetpost/jetpost/xapi"
)

// Watch counts calls to X. It is an xapi.Watch.
func (m *Metrics) Watch(ctx context.Context, e xapi.Endpoint) (context.Context, func(error)) {
	began := time.Now()
	return ctx, func(err error) {
		m.callResults.WithLabelValues(string(e), CallOutcome(err)).Inc()
		m.callTimes.WithLabelValues(string(e)).Observe(time.Since(began).Seconds())
	}
}

// CallOutcome is what came of a call to X, in one word.
func CallOutcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, new(*xapi.NotSentError)):
		return "not_sent"
	case errors.As(err, new(*xapi.AmbiguousError)):
		return "lost"
	case errors.As(err, new(*xapi.RateLimitError)):
		return "rate_limited"
	case errors.As(err, new(*xapi.UnauthorizedError)), errors.As(err, new(*xapi.GrantRefusedError)):
		return "unauthorized"
	case errors.As(err, new(*xapi.UnavailableError)):
		return "unavailable"
	case errors.As(err, new(*xapi.AppError)), errors.As(err, new(*xapi.AppAuthError)), errors.As(err, new(*xapi.AccountError)):
		return "forbidden"
	default:
		return "refused"
	}
}
