package telemetry

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/health"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// Standing is how a worker and its installation stand.
type Standing struct {
	Worker       Worker
	Installation Installation
}

// Worker is how one worker stands.
type Worker struct {
	Ready        bool
	Slots, Lanes int // accounts that it may work on, and does
	Pools        []store.Pool
	Disks        []health.Disk
	Windows      []xapi.Window // of the app
	Lifeboat     int           // pairs in its directory
	Spool        int64         // bytes of media
}

// Installation is how the installation stands: as jetpost status has it.
type Installation struct {
	health.Facts
	Verdict     health.Verdict
	Requests    map[jetpost.State]int
	Paused      int // accounts that a person has paused
	AppPauses   []AppPause
	RefreshedAt time.Time // when a refresh round was completed last
}

// AppPause keeps all accounts from one kind of calls.
type AppPause struct {
	Target string
	Code   jetpost.Code
}

// desc describes a gauge, or a counter, that is read as it is scraped.
func (m *Metrics) desc(kind, of, name, help string, labels ...string) sample {
	m.Specs = append(m.Specs, Spec{name, kind, of, labels, help})
	valueType := prometheus.GaugeValue
	if kind == "counter" {
		valueType = prometheus.CounterValue
	}
	return sample{prometheus.NewDesc(name, help, labels, nil), valueType}
}

type sample struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

// collection gathers the samples of one scrape.
type collection chan<- prometheus.Metric

func (c collection) put(s sample, value float64, labels ...string) {
	c <- prometheus.MustNewConstMetric(s.desc, s.kind, value, labels...)
}

// is puts 1 or 0.
func (c collection) is(s sample, is bool, labels ...string) {
	value := 0.0
	if is {
		value = 1
	}
	c.put(s, value, labels...)
}

// moment puts a time in Unix seconds, if there is one.
func (c collection) moment(s sample, t time.Time, labels ...string) {
	if !t.IsZero() {
		c.put(s, float64(t.UnixMilli())/1000, labels...)
	}
}

// age puts how long ago something was, 0 where it is none.
func (c collection) age(s sample, now, t time.Time) {
	if t.IsZero() {
		t = now
	}
	c.put(s, seconds(now.Sub(t)))
}

// workerSamples are those of a Worker.
type workerSamples struct {
	ready, slots, lanes, poolConns, poolMax, poolWaits, poolWaited, diskFree, diskSize,
	windowLeft, windowLimit, windowReset, lifeboat, spool sample
}

func (m *Metrics) workerSamples() workerSamples {
	gauge := func(name, help string, labels ...string) sample {
		return m.desc("gauge", ofWorker, name, help, labels...)
	}
	return workerSamples{
		ready:       gauge("jetpost_worker_ready", "1 while nothing keeps this worker from its work, as /readyz says."),
		slots:       gauge("jetpost_lane_slots", "Accounts that this worker may work on at once."),
		lanes:       gauge("jetpost_lanes_in_use", "Accounts that this worker works on."),
		poolConns:   gauge("jetpost_database_connections", "Connections to the database, by pool and state: in_use, idle.", "pool", "state"),
		poolMax:     gauge("jetpost_database_connections_max", "Connections that the pool may have.", "pool"),
		poolWaits:   m.desc("counter", ofWorker, "jetpost_database_waits_total", "Calls that found no idle connection.", "pool"),
		poolWaited:  m.desc("counter", ofWorker, "jetpost_database_wait_seconds_total", "Time for which those waited.", "pool"),
		diskFree:    gauge("jetpost_disk_free_bytes", "Room where this worker keeps something: lifeboat, database, NATS.", "disk"),
		diskSize:    gauge("jetpost_disk_size_bytes", "Size of that disk.", "disk"),
		windowLeft:  gauge("jetpost_app_window_remaining", "Calls left of the app's window at X, as far as this worker knows.", "endpoint", "window"),
		windowLimit: gauge("jetpost_app_window_limit", "Calls of the whole window.", "endpoint", "window"),
		windowReset: gauge("jetpost_app_window_reset_timestamp_seconds", "End of the window.", "endpoint", "window"),
		lifeboat:    gauge("jetpost_lifeboat_entries", "Token pairs that wait for the database in the lifeboat's directory."),
		spool:       gauge("jetpost_spool_bytes", "Media on their way to X, on this worker's disk."),
	}
}

func (s workerSamples) collect(c collection, w Worker, now time.Time) {
	c.is(s.ready, w.Ready)
	c.put(s.slots, float64(w.Slots))
	c.put(s.lanes, float64(w.Lanes))
	for _, p := range w.Pools {
		c.put(s.poolConns, float64(p.InUse), p.Name, "in_use")
		c.put(s.poolConns, float64(p.Idle), p.Name, "idle")
		c.put(s.poolMax, float64(p.Max), p.Name)
		c.put(s.poolWaits, float64(p.Waits), p.Name)
		c.put(s.poolWaited, p.Waited.Seconds(), p.Name)
	}
	for _, d := range w.Disks {
		c.put(s.diskFree, float64(d.Free), d.What)
		c.put(s.diskSize, float64(d.Total), d.What)
	}
	for _, window := range w.Windows {
		labels := []string{string(window.Endpoint), string(window.Kind)}
		c.put(s.windowLeft, float64(window.Left(now)), labels...)
		c.put(s.windowLimit, float64(window.Limit), labels...)
		c.moment(s.windowReset, window.Reset, labels...)
	}
	c.put(s.lifeboat, float64(w.Lifeboat))
	c.put(s.spool, float64(w.Spool))
}

// installationSamples are those of an Installation: of the verdict, of what NATS tells, and
// of what the database tells.
type installationSamples struct {
	state, cause, databaseUp, natsUp,
	jobsWaiting, jobAge, lanesPaused, appPauses, workers, refreshed, refreshOverdue,
	laneAge, eventAge, requests, accounts, reauth, blocked, paused, lastAccepted, lastPost sample
}

func (m *Metrics) installationSamples() installationSamples {
	gauge := func(name, help string, labels ...string) sample {
		return m.desc("gauge", ofInstallation, name, help, labels...)
	}
	return installationSamples{
		state:          gauge("jetpost_state", "1 for the state that jetpost status says, 0 for the others.", "state"),
		cause:          gauge("jetpost_cause", "1 for each cause that jetpost status names.", "code", "state"),
		databaseUp:     gauge("jetpost_database_up", "1 while the database answers."),
		natsUp:         gauge("jetpost_nats_up", "1 while NATS answers."),
		jobsWaiting:    gauge("jetpost_jobs_waiting", "Jobs that no worker has accepted or refused yet."),
		jobAge:         gauge("jetpost_oldest_job_age_seconds", "How long the oldest of them waits; 0 where there is none."),
		lanesPaused:    gauge("jetpost_lanes_paused", "1 while NATS hands out no lanes."),
		appPauses:      gauge("jetpost_app_pauses", "1 for each thing that keeps all accounts from calls, by target (publish, refresh) and code.", "target", "code"),
		workers:        gauge("jetpost_workers", "Workers by their heartbeats, by state: alive; silent within the last hour.", "state"),
		refreshed:      gauge("jetpost_refresh_completed_timestamp_seconds", "When a refresh round was completed last."),
		refreshOverdue: gauge("jetpost_refresh_overdue_seconds", "For how long the next refresh round should have been completed; 0 where it should not."),
		laneAge:        gauge("jetpost_oldest_due_lane_age_seconds", "How long the oldest account is due that no worker works on; 0 where there is none."),
		eventAge:       gauge("jetpost_oldest_event_age_seconds", "How long the oldest event waits to be published; 0 where there is none."),
		requests:       gauge("jetpost_requests", "Requests in the ledger by state, 100,000 at most of each.", "state"),
		accounts:       gauge("jetpost_accounts", "Accounts that are known."),
		reauth:         gauge("jetpost_accounts_reauth_required", "Accounts that must be connected again."),
		blocked:        gauge("jetpost_accounts_blocked", "Other accounts, whose posts X refuses as they stand."),
		paused:         gauge("jetpost_accounts_paused", "Accounts that a person has paused."),
		lastAccepted:   gauge("jetpost_last_accepted_timestamp_seconds", "When a job was accepted last."),
		lastPost:       gauge("jetpost_last_post_timestamp_seconds", "When the latest live post was sent."),
	}
}

// collect leaves out what nobody knows, since NATS or the database does not answer.
func (s installationSamples) collect(c collection, i Installation) {
	for _, state := range []health.State{health.Publishing, health.Degraded, health.Paused, health.NotPublishing} {
		c.is(s.state, i.Verdict.State == state, string(state))
	}
	var causes []health.Cause
	for _, cause := range i.Verdict.Causes { // two may have one code
		if !slices.ContainsFunc(causes, func(b health.Cause) bool { return b.Code == cause.Code && b.State == cause.State }) {
			causes = append(causes, cause)
			c.put(s.cause, 1, cause.Code, string(cause.State))
		}
	}
	c.is(s.natsUp, i.NATS == nil)
	c.is(s.databaseUp, i.Database == nil)
	for _, pause := range i.AppPauses {
		c.put(s.appPauses, 1, pause.Target, string(pause.Code))
	}
	if i.NATS == nil {
		s.collectNATS(c, i)
	}
	if i.Database == nil {
		s.collectLedger(c, i)
	}
}

func (s installationSamples) collectNATS(c collection, i Installation) {
	c.put(s.jobsWaiting, float64(i.Jobs.Waiting))
	c.age(s.jobAge, i.Now, i.Jobs.Oldest)
	c.is(s.lanesPaused, i.LanesPaused)
	alive := 0
	for _, w := range i.Workers {
		if w.Alive() {
			alive++
		}
	}
	c.put(s.workers, float64(alive), "alive")
	c.put(s.workers, float64(len(i.Workers)-alive), "silent")
	c.moment(s.refreshed, i.RefreshedAt)
	c.age(s.refreshOverdue, i.Now, i.RoundDue)
}

func (s installationSamples) collectLedger(c collection, i Installation) {
	c.age(s.laneAge, i.Now, i.DueSince)
	c.age(s.eventAge, i.Now, i.UntoldSince)
	for _, state := range jetpost.States() {
		c.put(s.requests, float64(i.Requests[state]), string(state))
	}
	c.put(s.accounts, float64(i.Accounts))
	c.put(s.reauth, float64(i.Reauth))
	c.put(s.blocked, float64(i.Blocked))
	c.put(s.paused, float64(i.Paused))
	c.moment(s.lastAccepted, i.AcceptedAt)
	c.moment(s.lastPost, i.PostedAt)
}
