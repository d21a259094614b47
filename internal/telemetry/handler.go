package telemetry

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// standing collects one Standing.
type standing struct {
	now          time.Time
	at           Standing
	worker       workerSamples
	installation installationSamples
}

// Describe describes nothing: what is collected is not known before.
func (standing) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s standing) Collect(out chan<- prometheus.Metric) {
	s.worker.collect(out, s.at.Worker, s.now)
	s.installation.collect(out, s.at.Installation)
}

// Handler serves everything. It asks for the standing with each scrape; an error is that
// the caller hung up.
func (m *Metrics) Handler(ask func(context.Context) (Standing, error)) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		at, err := ask(r.Context())
		if err != nil {
			return
		}
		one := standing{now: time.Now(), at: at, worker: m.worker, installation: m.installation}
		now := prometheus.NewRegistry()
		now.MustRegister(one)
		promhttp.HandlerFor(prometheus.Gatherers{m.registry, now}, promhttp.HandlerOpts{}).ServeHTTP(rw, r)
	})
}
