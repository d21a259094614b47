package cli

import "testing"

// Spans are exported only where somebody says where to.
func TestTracesWanted(t *testing.T) {
	t.Parallel()
	const endpoint, url = "OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"
	for name, c := range map[string]struct {
		env  map[string]string
		want bool
	}{
		"nothing is said":    {nil, false},
		"an endpoint":        {map[string]string{endpoint: url}, true},
		"one of traces":      {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url}, true},
		"switched off":       {map[string]string{endpoint: url, "OTEL_SDK_DISABLED": "true"}, false},
		"no traces, however": {map[string]string{endpoint: url, "OTEL_TRACES_EXPORTER": "none"}, false},
	} {
		if got := tracesWanted(func(name string) string { return c.env[name] }); got != c.want {
			t.Errorf("%s: wanted %t, want %t", name, got, c.want)
		}
	}
}
