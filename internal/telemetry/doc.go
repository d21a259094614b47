// Package telemetry tells how a worker and its installation do: in metrics, which
// Prometheus scrapes (docs/METRICS.md has each of them), and in traces, which are exported
// by OpenTelemetry.
package telemetry
