package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/consumers"
)

// Spec is a metric as docs/METRICS.md lists it.
type Spec struct {
	Name   string
	Type   string // counter, gauge or histogram
	Of     string // worker: what this worker has done or has; installation: the same on each worker
	Labels []string
	Help   string
}

// What a metric is about.
const (
	ofWorker       = "worker"
	ofInstallation = "installation"
)

// lags are the buckets of what may take from a moment to a day, in seconds; calls those
// of what ends within half a minute.
var (
	lags  = []float64{0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 24 * 3600}
	calls = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}
)

// Metrics counts what a worker does, and shows it together with how the worker and the
// installation stand. It is safe for concurrent use.
type Metrics struct {
	// Specs are all metrics but those of the Go runtime and the process.
	Specs    []Spec
	registry *prometheus.Registry

	accepted, repeated                                            prometheus.Counter
	refused, settled, held, posts, doubts, exchanges, callResults *prometheus.CounterVec
	acceptLag, sendLag, database, nats                            prometheus.Histogram
	callTimes, ledger                                             *prometheus.HistogramVec

	worker       workerSamples
	installation installationSamples
}

// Build says which program it is.
type Build struct{ Version, Commit, Go string }

// NewMetrics makes the metrics of one worker.
func NewMetrics(build Build) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "jetpost_build_info", Help: "1, with which program this is.",
	}, []string{"version", "commit", "go_version"})
	m.add(info, Spec{"jetpost_build_info", "gauge", ofWorker, []string{"version", "commit", "go_version"}, "1, with which program this is."})
	info.WithLabelValues(build.Version, build.Commit, build.Go).Set(1)

	m.accepted = m.counter("jetpost_jobs_accepted_total", "Jobs accepted as requests.").WithLabelValues()
	m.repeated = m.counter("jetpost_jobs_repeated_total", "Equal jobs that came again, and changed nothing.").WithLabelValues()
	m.refused = m.counter("jetpost_jobs_refused_total", "Jobs refused, by code.", "code")
	m.settled = m.counter("jetpost_requests_settled_total", "Requests that became published, failed or unknown.", "state")
	m.held = m.counter("jetpost_requests_held_total", "Requests that began to wait, by code.", "code")
	m.posts = m.counter("jetpost_posts_total", "Posts by what became of them: posted, refused, not_made (X made nothing, and it is tried again), in_doubt, deleted.", "outcome")
	m.doubts = m.counter("jetpost_doubts_ended_total", "Doubts about posts, by how workers ended them: found (on X), absent, unknown (a person decides).", "end")
	m.exchanges = m.counter("jetpost_token_exchanges_total", "Exchanges of tokens: refreshed, refused, unknown (the answer was lost), nothing (X did nothing), unsaved (the pair is in the lifeboat, or a newer one is stored).", "outcome")
	m.callResults = m.counter("jetpost_x_calls_total", "Calls to X by endpoint, and by what came of them.", "endpoint", "outcome")
	m.callTimes = m.histogram("jetpost_x_call_duration_seconds", "Time of a call to X.", calls, "endpoint")
	m.acceptLag = m.histogram("jetpost_accept_lag_seconds", "From the moment at which NATS stored a job to its acceptance.", lags).WithLabelValues().(prometheus.Histogram)
	m.sendLag = m.histogram("jetpost_send_lag_seconds", "From the moment at which a request was due to the sending of its first post.", lags).WithLabelValues().(prometheus.Histogram)
	m.ledger = m.histogram("jetpost_ledger_duration_seconds", "Time of a step of intake, lane or token in the database, its commit included.", calls, "step")
	m.database = m.histogram("jetpost_database_latency_seconds", "Time of the question to the database that a worker asks every two seconds.", calls).WithLabelValues().(prometheus.Histogram)
	m.nats = m.histogram("jetpost_nats_latency_seconds", "Time of the question to NATS that a worker asks every two seconds.", calls).WithLabelValues().(prometheus.Histogram)
	m.worker, m.installation = m.workerSamples(), m.installationSamples()
	m.begin()
	return m
}

// begin has counters that have not counted yet read 0, so that their first step is seen.
func (m *Metrics) begin() {
	for _, code := range jetpost.Codes() {
		switch code.Kind() {
		case jetpost.KindRefused:
			m.refused.WithLabelValues(string(code))
		case jetpost.KindHeld, jetpost.KindHeldByX, jetpost.KindHeldForPerson:
			m.held.WithLabelValues(string(code))
		}
	}
	for _, state := range []jetpost.State{jetpost.StatePublished, jetpost.StateFailed, jetpost.StateUnknown} {
		m.settled.WithLabelValues(string(state))
	}
	for counter, labels := range map[*prometheus.CounterVec][]string{
		m.posts: consumers.PostOutcomes(), m.doubts: consumers.DoubtEnds(), m.exchanges: consumers.ExchangeEnds(),
	} {
		for _, label := range labels {
			counter.WithLabelValues(label)
		}
	}
}

func (m *Metrics) add(c prometheus.Collector, s Spec) {
	m.registry.MustRegister(c)
	m.Specs = append(m.Specs, s)
}

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.add(c, Spec{name, "counter", ofWorker, labels, help})
	return c
}

func (m *Metrics) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	c := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	m.add(c, Spec{name, "histogram", ofWorker, labels, help})
	return c
}

// Observe is a consumers.Observer.
func (m *Metrics) Observe(o consumers.Observation) {
	switch o.What {
	case consumers.JobAccepted:
		m.accepted.Inc()
		m.acceptLag.Observe(seconds(o.Took))
	case consumers.JobRepeated:
		m.repeated.Inc()
	case consumers.JobRefused:
		m.refused.WithLabelValues(o.Label).Inc()
	case consumers.RequestSettled:
		m.settled.WithLabelValues(o.Label).Inc()
	case consumers.RequestHeld:
		m.held.WithLabelValues(o.Label).Inc()
	case consumers.PostSettled:
		m.posts.WithLabelValues(o.Label).Inc()
	case consumers.FirstPostSent:
		m.sendLag.Observe(seconds(o.Took))
	case consumers.DoubtEnded:
		m.doubts.WithLabelValues(o.Label).Inc()
	case consumers.TokenExchanged:
		m.exchanges.WithLabelValues(o.Label).Inc()
	case consumers.DatabaseAnswered:
		m.database.Observe(o.Took.Seconds())
	case consumers.NATSAnswered:
		m.nats.Observe(o.Took.Seconds())
	}
}

// seconds of a time that two clocks have told, which may differ a little.
func seconds(d time.Duration) float64 { return max(d, 0).Seconds() }
