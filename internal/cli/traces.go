package cli

import (
	"cmp"
	"os"
	"strings"

	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/telemetry"
)

// traces are exported where the environment says so; else nil.
func (e *env) traces() (*telemetry.Traces, error) {
	if !tracesWanted(os.Getenv) {
		return nil, nil
	}
	return telemetry.NewTraces(e.ctx, app.ThisBuild().Version, e.log)
}

// tracesWanted tells whether the standard variables of OpenTelemetry say where spans are
// to be exported to.
func tracesWanted(getenv func(string) string) bool {
	if strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") || getenv("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return cmp.Or(getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), getenv("OTEL_EXPORTER_OTLP_ENDPOINT")) != ""
}
