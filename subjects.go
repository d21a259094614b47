package jetpost

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Partitions is the number of partitions of the job stream. An account's jobs are
// always in the same one. Changing the number needs an empty job stream.
const Partitions = 8

// The streams, buckets and consumers, without prefix.
const (
	streamJobs     = "JETPOST_JOBS"     // what producers publish: a work queue that refuses when full
	streamLanes    = "JETPOST_LANES"    // wake-ups, at most one an account
	streamSchedule = "JETPOST_SCHEDULE" // wake-ups and the refresh cron; workers only
	streamRefresh  = "JETPOST_REFRESH"  // ticks, batches and single refreshes
	streamFailed   = "JETPOST_FAILED"   // failed and rejected jobs, as they came, for 30 days
	streamEvents   = "JETPOST_EVENTS"   // what happened, for 7 days
	bucketLimits   = "JETPOST_LIMITS"   // key-value: app pauses, seen by all workers
	bucketMedia    = "JETPOST_MEDIA"    // object store: media that producers put there

	// ConsumerLanes takes wake-ups. It is the consumer that an app pause pauses.
	ConsumerLanes = "lanes"
	// ConsumerRefresh takes ticks, batches and refresh requests.
	ConsumerRefresh = "refresh"
	// ConsumerMirror copies the events into the mirror that producers read, if
	// producers have a NATS account of their own.
	ConsumerMirror = "mirror"
	// ConsumerIntakeAny takes jobs published onto the bare subject.
	ConsumerIntakeAny = "intake-any"
)

// ConsumerHook names the consumer of the events of one webhook.
func ConsumerHook(id string) string { return ConsumerHookPrefix + id }

// ConsumerHookPrefix begins the names of the consumers of webhooks.
const ConsumerHookPrefix = "hook-"

// ConsumerIntake names the consumer of one partition of the job stream.
func ConsumerIntake(partition int) string { return "intake-" + strconv.Itoa(partition) }

// Headers of dead letters and rejections in JETPOST_FAILED. Their body is the original
// message's.
const (
	HeaderCode     = "Jetpost-Code"     // reason code
	HeaderDetail   = "Jetpost-Detail"   // for people, one line
	HeaderErrors   = "Jetpost-Errors"   // JSON list of problems, for rejected jobs
	HeaderAccount  = "Jetpost-Account"  // account, where known
	HeaderID       = "Jetpost-Id"       // request id, where known
	HeaderPosted   = "Jetpost-Posted"   // "2/5": posts live of all
	HeaderAttempts = "Jetpost-Attempts" // posts sent to X
	HeaderAccepted = "Jetpost-Accepted" // RFC 3339, when the job was accepted or stored
	HeaderFailed   = "Jetpost-Failed"   // RFC 3339, when it failed
	HeaderSubject  = "Jetpost-Subject"  // the subject that the producer published onto
)

// MetadataLedger is the stream metadata key that holds the id of the database
// that a stream belongs to.
const MetadataLedger = "jetpost.ledger"

var prefixPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{0,32}$`)

// Names are the streams and subjects of one installation. The zero value has no prefix.
// With a prefix, several installations share one NATS.
type Names struct{ prefix string }

// NewNames refuses a prefix that does not fit both a stream name and a subject token:
// [A-Za-z0-9_-], at most 32 characters.
func NewNames(prefix string) (Names, error) {
	if !prefixPattern.MatchString(prefix) {
		return Names{}, fmt.Errorf("prefix %q: use at most 32 of A-Z a-z 0-9 _ -", prefix)
	}
	return Names{prefix: prefix}, nil
}

func (n Names) stream(name string) string {
	if n.prefix == "" {
		return name
	}
	return n.prefix + "_" + name
}

// subject joins tokens below the prefix.
func (n Names) subject(tokens ...string) string {
	s := strings.Join(tokens, ".")
	if n.prefix == "" {
		return s
	}
	return n.prefix + "." + s
}

// Trim removes the prefix from a subject of this installation.
func (n Names) Trim(subject string) string {
	if n.prefix == "" {
		return subject
	}
	return strings.TrimPrefix(subject, n.prefix+".")
}

// JobsStream holds what producers publish until a worker has accepted it. It refuses
// messages when it is full.
func (n Names) JobsStream() string { return n.stream(streamJobs) }

// LanesStream holds the wake-ups, at most one an account.
func (n Names) LanesStream() string { return n.stream(streamLanes) }

// ScheduleStream holds one scheduled wake-up an account and the refresh cron. A client
// that may publish onto it may also purge it by a header, so only workers may.
func (n Names) ScheduleStream() string { return n.stream(streamSchedule) }

// RefreshStream holds ticks, batches and requests of token refreshes.
func (n Names) RefreshStream() string { return n.stream(streamRefresh) }

// FailedStream holds failed and rejected jobs as they came.
func (n Names) FailedStream() string { return n.stream(streamFailed) }

// EventsStream holds what happened. The last message of a request's subjects
// (RequestEvents) is its state.
func (n Names) EventsStream() string { return n.stream(streamEvents) }

// LimitsBucket is the key-value bucket of the app pauses that all workers share.
func (n Names) LimitsBucket() string { return n.stream(bucketLimits) }

// MediaBucket is the object store for media that are too large for a message. Producers
// put them there.
func (n Names) MediaBucket() string { return n.stream(bucketMedia) }

// WorkAccount is the NATS account of the workers and their streams, if the server
// separates producers from them.
func (n Names) WorkAccount() string { return n.stream("JETPOST") }

// MirrorAccount is the NATS account of what producers read and write: a mirror of
// the events, and media.
func (n Names) MirrorAccount() string { return n.stream("JETPOST_MIRROR") }

// ProducersAccount is the NATS account of producers. It has no JetStream.
func (n Names) ProducersAccount() string { return n.stream("JETPOST_PRODUCERS") }

// CustomerAccount is the NATS account of a producer that posts for X accounts of its own.
func (n Names) CustomerAccount(name string) string { return n.stream("JETPOST_CUSTOMER_" + name) }

// ReaderAccount is the NATS account of a program that hears the events of some X accounts, and
// publishes nothing.
func (n Names) ReaderAccount(name string) string { return n.stream("JETPOST_READER_" + name) }

// MirrorAPI begins the subjects by which workers call the mirror's JetStream.
func (n Names) MirrorAPI() string { return n.subject("jetpost", "mirror", "api") }

// WorkAPI begins the subjects by which the mirror calls the workers' JetStream.
func (n Names) WorkAPI() string { return n.subject("jetpost", "work", "api") }

// MirrorEvents is the subject on which events reach their mirror.
func (n Names) MirrorEvents() string { return n.subject("jetpost", "mirror", "events") }

// PublishRequest is the subject that producers publish an account's jobs onto. Without
// an account it is the bare subject, whose jobs name theirs in the body.
func (n Names) PublishRequest(account string) string {
	if account == "" {
		return n.subject("publish", "request")
	}
	return n.subject("publish", "request", account)
}

// PublishIntake is the subject under which the job stream stores an account's jobs:
// partition and account are tokens, or "*".
func (n Names) PublishIntake(partition, account string) string {
	return n.subject("publish", "intake", partition, account)
}

// PublishWake is the subject of an account's wake-up.
func (n Names) PublishWake(account string) string { return n.subject("publish", "wake", account) }

// ScheduleWake holds the one scheduled wake-up of an account. It fires on DuePublish.
func (n Names) ScheduleWake(account string) string { return n.subject("schedule", "wake", account) }

// DuePublish is the subject on which an account's scheduled wake-up fires.
func (n Names) DuePublish(account string) string { return n.subject("due", "publish", account) }

// ScheduleRefresh holds the refresh cron.
func (n Names) ScheduleRefresh() string { return n.subject("schedule", "refresh") }

// DueRefresh is the subject on which the refresh cron fires: token is "tick" or ">".
func (n Names) DueRefresh(token string) string { return n.subject("due", "refresh", token) }

// RefreshTick opens a refresh round.
func (n Names) RefreshTick() string { return n.subject("refresh", "tick") }

// RefreshBatch carries one batch of a round.
func (n Names) RefreshBatch() string { return n.subject("refresh", "batch") }

// RefreshRequest asks for one account's refresh.
func (n Names) RefreshRequest() string { return n.subject("refresh", "request") }

// RefreshOrder asks for one account's refresh on behalf of the operator, for whom the
// limit of forced refreshes does not apply. Only the workers' account may publish it.
func (n Names) RefreshOrder() string { return n.subject("refresh", "order") }

// PublishFailed holds a failed request's dead letter.
func (n Names) PublishFailed(account, id string) string {
	return n.subject("publish", "failed", account, id)
}

// PublishRefused holds the rejection of a message that never became a request. The
// account is "_" if it could not be read.
func (n Names) PublishRefused(account string, sequence string) string {
	if account == "" {
		account = "_"
	}
	return n.subject("publish", "refused", account, sequence)
}

// RefreshFailed holds an account's last refresh failure.
func (n Names) RefreshFailed(account string) string { return n.subject("refresh", "failed", account) }

// EventSubject is the subject of events of a type, below "jetpost.event". Account and
// id are left out if the event has none.
func (n Names) EventSubject(t EventType, account, id string) string {
	tokens := []string{"jetpost", "event", string(t)}
	if account != "" {
		tokens = append(tokens, account)
	}
	if id != "" {
		tokens = append(tokens, id)
	}
	return n.subject(tokens...)
}

// RefusedEvent is the subject of the refusal of the message with that place in the job
// stream. It has one token more than a request's events, so that a refused repeat never
// hides the state of the request that it repeats.
func (n Names) RefusedEvent(account string, sequence uint64) string {
	if account == "" {
		account = "_"
	}
	return n.EventSubject(EventRequestRefused, account, "sequence."+strconv.FormatUint(sequence, 10))
}

// RequestEvents matches every event of one request. The last message is the request's
// state.
func (n Names) RequestEvents(account, id string) string {
	return n.subject("jetpost", "event", "request", "*", account, id)
}

// AccountEvents matches every event of an account that does not belong to one request.
func (n Names) AccountEvents(account string) string {
	return n.subject("jetpost", "event", "*", "*", account)
}

// Change is an event by its subject and its place in the stream of events.
type Change struct {
	Sequence uint64
	Type     EventType
	// Account and ID are absent where the event has none.
	Account, ID string
}

// ReadEventSubject reads the subject of an event.
func (n Names) ReadEventSubject(subject string) (c Change) {
	tokens := strings.Split(strings.TrimPrefix(n.Trim(subject), "jetpost.event."), ".")
	if len(tokens) < 2 {
		return c
	}
	c.Type = EventType(tokens[0] + "." + tokens[1])
	if len(tokens) > 2 {
		c.Account = tokens[2]
	}
	if len(tokens) == 4 { // a refusal has a token more
		c.ID = tokens[3]
	}
	return c
}

// AllEvents matches every event.
func (n Names) AllEvents() string { return n.subject("jetpost", "event", ">") }
