package publishers

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// Defaults of TopologyConfig.
const (
	DefaultReplicas     = 1
	DefaultJobsMaxBytes = 256 << 20 // bytes: 256 MiB
	// DefaultMediaMaxBytes has room for some of X's largest videos: 4 GiB.
	DefaultMediaMaxBytes = 4 << 30
	DefaultRefreshCron   = "0 0 */6 * * *"
	DefaultRefreshTTL    = 6 * time.Hour
	DefaultFailedMaxAge  = 30 * 24 * time.Hour
	DefaultEventsMaxAge  = 7 * 24 * time.Hour
)

// Limits and intervals of the topology that nobody needs to tune.
const (
	minServerVersion = "2.14.0" // the first with cron schedules and reliable sourcing from work queues
	minAPILevel      = 4        // the JetStream API level of that version; the cluster's leader may be older than our server

	maxReplicas   = 5           // nats-server's own limit
	minRefreshTTL = time.Second // nats-server's own limit
	// Streams that are bounded by age are also bounded in bytes, which nats-server
	// reserves when it makes the stream, and in messages, because its memory holds some
	// 350 bytes for each subject. Of events and dead letters the oldest go first; media
	// are refused, as jobs are.
	eventsMaxBytes = 512 << 20 // bytes
	eventsMaxMsgs  = 1_000_000
	failedMaxBytes = 256 << 20 // bytes
	failedMaxMsgs  = 100_000
	mediaMaxMsgs   = 200_000 // pieces of 128 KiB, and one more an object

	refreshMaxMsgs  = 100_000          // ticks, batches and requests: batches of a million tokens
	deadLetterRoom  = 16 << 10         // bytes that a dead letter may add to the original message
	limitsMarkerTTL = time.Minute      // how long a watcher can learn that a key of the limits bucket expired
	ackWait         = 30 * time.Second // until a message whose worker is silent goes to another
	// intakeAckPending is how many jobs of a partition the one worker that reads it may
	// hold: the batch that it accepts, and the next one.
	intakeAckPending = 512
	// intakeAckWait is shorter: a worker that dies over a job blocks its whole
	// partition for this long, and accepting a batch is a single transaction.
	intakeAckWait     = 10 * time.Second
	lanesAckPending   = 10_000 // wake-ups in flight, over all workers
	refreshAckPending = 1_000  // refresh batches in flight, over all workers
	mirrorHeartbeat   = time.Second
	mirrorAckPending  = 1_000 // events on their way to the mirror
	maxRaces          = 100   // compare-and-sets lost in a row
)

// TopologyConfig says what Setup makes. Names may be zero; LedgerID must be
// set; every other zero field means its default.
type TopologyConfig struct {
	Names jetpost.Names
	// LedgerID is the id of the database that the streams belong to.
	LedgerID string
	// Replicas of every stream and bucket: 1, or 3 in a cluster that must
	// outlive one of its servers. Default DefaultReplicas, at most 5.
	Replicas int
	// JobsMaxBytes is the room for jobs that no worker has taken yet. When it is full,
	// producers are refused. Default DefaultJobsMaxBytes.
	JobsMaxBytes int64
	// MediaMaxBytes is the room of the media object store. When it is full, producers
	// are refused. Default DefaultMediaMaxBytes.
	MediaMaxBytes int64
	// RefreshCron is when refresh rounds start: six fields, the first of which
	// is seconds. Default DefaultRefreshCron.
	RefreshCron string
	// RefreshTimeZone of RefreshCron as an IANA name; default UTC.
	RefreshTimeZone string
	// RefreshTTL is how long a tick that no worker reads lives. One interval of
	// RefreshCron keeps ticks from piling up. Default DefaultRefreshTTL, at
	// least 1 s.
	RefreshTTL time.Duration
	// FailedMaxAge is how long dead letters and rejections stay. Default
	// DefaultFailedMaxAge.
	FailedMaxAge time.Duration
	// EventsMaxAge is how long events stay. Default DefaultEventsMaxAge.
	EventsMaxAge time.Duration
}

// complete fills in the defaults and lists every mistake.
func (c TopologyConfig) complete() (TopologyConfig, error) {
	c.Replicas = cmp.Or(c.Replicas, DefaultReplicas)
	c.JobsMaxBytes = cmp.Or(c.JobsMaxBytes, DefaultJobsMaxBytes)
	c.MediaMaxBytes = cmp.Or(c.MediaMaxBytes, DefaultMediaMaxBytes)
	c.RefreshCron = cmp.Or(c.RefreshCron, DefaultRefreshCron)
	c.RefreshTTL = cmp.Or(c.RefreshTTL, DefaultRefreshTTL)
	c.FailedMaxAge = cmp.Or(c.FailedMaxAge, DefaultFailedMaxAge)
	c.EventsMaxAge = cmp.Or(c.EventsMaxAge, DefaultEventsMaxAge)

	var errs []error
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	refuse(c.LedgerID == "", "ledger id: missing")
	refuse(c.Replicas < 1 || c.Replicas > maxReplicas, "replicas: %d, want 1 to %d", c.Replicas, maxReplicas)
	refuse(c.JobsMaxBytes < 0, "jobs max bytes: %d is negative", c.JobsMaxBytes)
	refuse(c.MediaMaxBytes < 0, "media max bytes: %d is negative", c.MediaMaxBytes)
	refuse(c.RefreshTTL < minRefreshTTL, "refresh ttl: %v, want at least %v", c.RefreshTTL, minRefreshTTL)
	refuse(c.FailedMaxAge < time.Second, "failed max age: %v, want at least 1s", c.FailedMaxAge)
	refuse(c.EventsMaxAge < time.Second, "events max age: %v, want at least 1s", c.EventsMaxAge)
	return c, errors.Join(errs...)
}

// streams are the settings of the workers' streams and of those behind the buckets,
// sources before the streams that read from them. Values are spelt as the server
// reports them (-1 for "no limit"), so that they can be compared.
func (c TopologyConfig) streams(maxPayload int64) []jetstream.StreamConfig {
	streams := []jetstream.StreamConfig{
		c.scheduleStream(),
		c.jobsStream(maxPayload),
		c.lanesStream(),
		c.refreshStream(),
		c.failedStream(),
		c.eventsStream(),
		c.limitsStream(),
	}
	for i := range streams {
		streams[i] = c.common(streams[i])
	}
	return streams
}

// common adds what all streams have.
func (c TopologyConfig) common(s jetstream.StreamConfig) jetstream.StreamConfig {
	s.Storage = jetstream.FileStorage
	s.Replicas = c.Replicas
	s.MaxConsumers = -1
	s.MaxMsgs = cmp.Or(s.MaxMsgs, -1)
	s.MaxBytes = cmp.Or(s.MaxBytes, -1)
	s.MaxMsgSize = cmp.Or(s.MaxMsgSize, -1)
	s.MaxMsgsPerSubject = cmp.Or(s.MaxMsgsPerSubject, -1)
	s.Metadata = map[string]string{jetpost.MetadataLedger: c.LedgerID}
	return s
}

func (c TopologyConfig) scheduleStream() jetstream.StreamConfig {
	n := c.Names
	return jetstream.StreamConfig{
		Name:        n.ScheduleStream(),
		Description: "jetpost: wake-ups and the refresh cron. Workers only: whoever may publish here may purge it by header.",
		Subjects:    []string{n.ScheduleWake("*"), n.ScheduleRefresh(), n.DuePublish("*"), n.DueRefresh(">")},
		Retention:   jetstream.WorkQueuePolicy,
		// No MaxAge: it would silently end schedules further in the future.
		AllowMsgSchedules: true,
		AllowRollup:       true, // comes with schedules, asked for or not
		AllowMsgTTL:       true, // carries RefreshTTL from the cron to its ticks
	}
}

func (c TopologyConfig) jobsStream(maxPayload int64) jetstream.StreamConfig {
	n := c.Names
	return jetstream.StreamConfig{
		Name:        n.JobsStream(),
		Description: "jetpost: jobs from producers, until a worker has put them into the ledger.",
		Subjects:    []string{n.PublishRequest(""), n.PublishRequest("*")},
		SubjectTransform: &jetstream.SubjectTransformConfig{
			Source:      n.PublishRequest("*"),
			Destination: n.PublishIntake(fmt.Sprintf("{{partition(%d,1)}}", jetpost.Partitions), "{{wildcard(1)}}"),
		},
		Retention: jetstream.WorkQueuePolicy,
		Discard:   jetstream.DiscardNew, // a full queue refuses loudly instead of dropping the oldest job
		MaxBytes:  c.JobsMaxBytes,
		// A job that cannot be accepted must still fit a rejection that says why.
		MaxMsgSize: int32(max(maxPayload-deadLetterRoom, maxPayload/2)),
		// This source never yields a message: the schedule stream has no such subject.
		// It is here because a stream with a source has no window of Nats-Msg-Ids,
		// while any other stream has one of at least 100 ms. Such a window spans all
		// accounts: if two producers both call their job "1", the second would get a
		// good answer and its job would be dropped.
		Sources: []*jetstream.StreamSource{{Name: n.ScheduleStream(), FilterSubject: n.PublishRequest("")}},
	}
}

func (c TopologyConfig) lanesStream() jetstream.StreamConfig {
	n := c.Names
	return jetstream.StreamConfig{
		Name:        n.LanesStream(),
		Description: "jetpost: wake-ups, at most one an account.",
		Subjects:    []string{n.PublishWake("*")},
		Retention:   jetstream.WorkQueuePolicy,
		// A wake-up replaces the one before, so that the number of accounts bounds
		// them.
		MaxMsgsPerSubject: 1,
		Sources:           []*jetstream.StreamSource{drawDue(n, n.DuePublish("*"), n.PublishWake("{{wildcard(1)}}"))},
	}
}

func (c TopologyConfig) refreshStream() jetstream.StreamConfig {
	n := c.Names
	return jetstream.StreamConfig{
		Name:        n.RefreshStream(),
		Description: "jetpost: ticks, batches and single requests of token refreshes, so that a full job queue never stops token care.",
		Subjects:    []string{n.RefreshTick(), n.RefreshBatch(), n.RefreshRequest(), n.RefreshOrder()},
		Retention:   jetstream.WorkQueuePolicy,
		MaxMsgs:     refreshMaxMsgs,
		AllowMsgTTL: true, // without it the ticks' RefreshTTL is ignored
		Sources:     []*jetstream.StreamSource{drawDue(n, n.DueRefresh("tick"), n.RefreshTick())},
	}
}

func (c TopologyConfig) failedStream() jetstream.StreamConfig {
	n := c.Names
	return jetstream.StreamConfig{
		Name:        n.FailedStream(),
		Description: "jetpost: dead letters and rejections, the newest of each.",
		Subjects:    []string{n.PublishFailed("*", "*"), n.PublishRefused("*", "*"), n.RefreshFailed("*")},
		// A request that fails again replaces its dead letter.
		MaxMsgsPerSubject: 1,
		MaxAge:            c.FailedMaxAge,
		MaxBytes:          failedMaxBytes,
		MaxMsgs:           failedMaxMsgs,
		AllowDirect:       true,
	}
}

func (c TopologyConfig) eventsStream() jetstream.StreamConfig {
	n := c.Names
	return jetstream.StreamConfig{
		Name:        n.EventsStream(),
		Description: "jetpost: what happened to requests, accounts and the app.",
		Subjects:    []string{n.AllEvents()},
		MaxAge:      c.EventsMaxAge,
		MaxBytes:    eventsMaxBytes,
		MaxMsgs:     eventsMaxMsgs,
		AllowDirect: true,
	}
}

// limitsStream is a key-value bucket, laid out as NATS' ADR-8 has it.
func (c TopologyConfig) limitsStream() jetstream.StreamConfig {
	n := c.Names
	return jetstream.StreamConfig{
		Name:              "KV_" + n.LimitsBucket(),
		Description:       "jetpost: app pauses and rate windows that all workers share.",
		Subjects:          []string{"$KV." + n.LimitsBucket() + ".>"},
		Discard:           jetstream.DiscardNew,
		MaxMsgsPerSubject: 1,
		AllowRollup:       true,
		DenyDelete:        true,
		// Keys may expire, and their watchers learn of it. Direct reads are off: a
		// follower could answer one with a pause that is over.
		AllowMsgTTL:            true,
		SubjectDeleteMarkerTTL: limitsMarkerTTL,
	}
}

// mediaStream is an object store, laid out as NATS' ADR-20 has it.
func (c TopologyConfig) mediaStream() jetstream.StreamConfig {
	n := c.Names
	return c.common(jetstream.StreamConfig{
		Name:        "OBJ_" + n.MediaBucket(),
		Description: "jetpost: media that producers put there.",
		Subjects:    []string{"$O." + n.MediaBucket() + ".C.>", "$O." + n.MediaBucket() + ".M.>"},
		Discard:     jetstream.DiscardNew,
		MaxBytes:    c.MediaMaxBytes,
		MaxMsgs:     mediaMaxMsgs,
		AllowRollup: true,
		AllowDirect: true,
	})
}

// drawDue takes what fell due from the schedule stream. Only workers can
// publish there, which is why no other stream accepts schedules.
func drawDue(n jetpost.Names, due, as string) *jetstream.StreamSource {
	return &jetstream.StreamSource{
		Name:              n.ScheduleStream(),
		SubjectTransforms: []jetstream.SubjectTransformConfig{{Source: due, Destination: as}},
	}
}

// consumerSpec is a consumer and the stream that it reads.
type consumerSpec struct {
	stream string
	jetstream.ConsumerConfig
}

func (s consumerSpec) String() string { return s.stream + "/" + s.Durable }

func (c TopologyConfig) consumers() []consumerSpec {
	n := c.Names
	spec := func(stream, name, filter string, maxAckPending int, wait time.Duration) consumerSpec {
		return consumerSpec{stream: stream, ConsumerConfig: jetstream.ConsumerConfig{
			Name:          name,
			Durable:       name,
			FilterSubject: filter,
			AckPolicy:     jetstream.AckExplicitPolicy,
			AckWait:       wait,
			MaxDeliver:    -1, // a message is settled by an ack alone, never by having been tried often
			MaxAckPending: maxAckPending,
		}}
	}
	// An account's jobs are all in one partition. One worker at a time reads it and
	// accepts them in the order in which they were stored.
	specs := []consumerSpec{spec(n.JobsStream(), jetpost.ConsumerIntakeAny, n.PublishRequest(""), intakeAckPending, intakeAckWait)}
	for p := range jetpost.Partitions {
		specs = append(specs, spec(n.JobsStream(), jetpost.ConsumerIntake(p), n.PublishIntake(strconv.Itoa(p), ">"), intakeAckPending, intakeAckWait))
	}
	return append(specs,
		spec(n.LanesStream(), jetpost.ConsumerLanes, n.PublishWake("*"), lanesAckPending, ackWait),
		spec(n.RefreshStream(), jetpost.ConsumerRefresh, "", refreshAckPending, ackWait),
	)
}
