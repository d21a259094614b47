package publishers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// Report lists what Setup did, with one entry for each thing that it checked.
type Report struct {
	Changes []Change
	// Walled says that producers have NATS accounts of their own.
	Walled bool
}

// Change is one entry of a Report.
type Change struct {
	What   string // "stream JETPOST_JOBS"
	Action string // created, updated or unchanged
}

// The actions of a Change. If several Setups run at once, each may say that it created
// the same thing.
const (
	ActionCreated   = "created"
	ActionUpdated   = "updated"
	ActionUnchanged = "unchanged"
)

// String is one line without its end: the action, padded so that names align, and what
// was changed.
func (c Change) String() string { return fmt.Sprintf("%-9s  %s", c.Action, c.What) }

// String has one line for each change, in the order in which they were made.
func (r Report) String() string {
	var b strings.Builder
	for _, c := range r.Changes {
		fmt.Fprintln(&b, c)
	}
	return b.String()
}

// Setup makes every stream, consumer and bucket of the installation and the refresh
// schedule, or brings their settings up to date. It may run any number of times and in
// many processes at once, and loses no message.
//
// It checks everything before it changes anything: if one stream is not ours
// (*ForeignStreamError) or belongs to another database (*OtherLedgerError), it changes
// none.
func Setup(ctx context.Context, js jetstream.JetStream, cfg TopologyConfig) (Report, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return Report{}, fmt.Errorf("set up NATS: %w", err)
	}
	if err := checkServer(ctx, js); err != nil {
		return Report{}, fmt.Errorf("set up NATS: %w", err)
	}
	places, err := cfg.places(ctx, js)
	if err != nil {
		return Report{}, fmt.Errorf("set up NATS: %w", err)
	}
	for _, p := range places {
		for _, want := range p.streams {
			if _, err := ownStream(ctx, p.js, want.Name, cfg.LedgerID); err != nil {
				return Report{}, fmt.Errorf("set up NATS: %w", err)
			}
		}
	}

	report := Report{Walled: len(places) > 1}
	note := func(what, action string, err error) error {
		if err != nil {
			return fmt.Errorf("set up %s: %w", what, err)
		}
		report.Changes = append(report.Changes, Change{What: what, Action: action})
		return nil
	}
	for _, p := range places {
		for _, want := range p.streams {
			action, err := setupStream(ctx, p.js, want, cfg.LedgerID)
			if err := note("stream "+want.Name+p.where, action, err); err != nil {
				return report, err
			}
		}
		for _, want := range p.consumers {
			action, err := setupConsumer(ctx, p.js, want)
			if err := note("consumer "+want.String(), action, err); err != nil {
				return report, err
			}
		}
	}
	action, err := setupCron(ctx, js, cfg)
	return report, note("schedule "+cfg.Names.ScheduleRefresh(), action, err)
}

// Check reports whether Setup has made everything that workers rely on, for this
// database, on servers that are new enough. It changes nothing. Sizes, ages, replicas
// and the times of the refresh schedule are the operator's and may differ from cfg. It
// fails with *NotSetUpError, which lists everything that is missing or different, or as
// Setup does.
func Check(ctx context.Context, js jetstream.JetStream, cfg TopologyConfig) error {
	cfg, err := cfg.complete()
	if err != nil {
		return fmt.Errorf("check NATS: %w", err)
	}
	if err := checkServer(ctx, js); err != nil {
		return fmt.Errorf("check NATS: %w", err)
	}
	places, err := cfg.places(ctx, js)
	if err != nil {
		return fmt.Errorf("check NATS: %w", err)
	}
	var missing []string
	for _, p := range places {
		for _, want := range p.streams {
			what := "stream " + want.Name + p.where
			got, err := ownStream(ctx, p.js, want.Name, cfg.LedgerID)
			switch {
			case err != nil:
				return fmt.Errorf("check NATS: %w", err)
			case got == nil:
				missing = append(missing, what+" is missing")
			default:
				missing = append(missing, differences(what, *got, mergeStream(*got, keepSizes(want, *got)))...)
			}
		}
	}
	if len(missing) == 0 {
		if missing, err = checkInside(ctx, js, cfg, places); err != nil {
			return fmt.Errorf("check NATS: %w", err)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("check NATS: %w", &NotSetUpError{Missing: missing})
	}
	return nil
}

// checkInside checks consumers and schedules once their streams exist.
func checkInside(ctx context.Context, js jetstream.JetStream, cfg TopologyConfig, places []place) (missing []string, err error) {
	for _, want := range places[0].consumers {
		got, err := findConsumer(ctx, js, want)
		switch {
		case err != nil:
			return nil, err
		case got == nil:
			missing = append(missing, "consumer "+want.String()+" is missing")
		default:
			missing = append(missing, differences("consumer "+want.String(), *got, mergeConsumer(*got, want.ConsumerConfig))...)
		}
	}
	cron, err := lastMessage(ctx, js, cfg.Names.ScheduleStream(), cfg.Names.ScheduleRefresh())
	if err != nil {
		return nil, err
	}
	if cron == nil {
		missing = append(missing, "schedule "+cfg.Names.ScheduleRefresh()+" is missing")
	}
	return missing, nil
}

// place is a NATS account and what belongs in it.
type place struct {
	js        jetstream.JetStream
	where     string // what messages add to the names
	streams   []jetstream.StreamConfig
	consumers []consumerSpec
}

// places are the workers' account and, if producers are kept out of it, the account
// that they read and write.
func (c TopologyConfig) places(ctx context.Context, js jetstream.JetStream) ([]place, error) {
	mirror, err := findMirror(ctx, js, c.Names)
	if err != nil {
		return nil, err
	}
	work := place{js: js, streams: c.streams(js.Conn().MaxPayload()), consumers: c.consumers()}
	if mirror == nil {
		work.streams = append(work.streams, c.mediaStream())
		return []place{work}, nil
	}
	work.consumers = append(work.consumers, c.mirrorConsumer())
	return []place{work, {js: mirror, where: " for producers", streams: []jetstream.StreamConfig{c.eventsMirror(), c.mediaStream()}}}, nil
}

// ownStream finds a stream and makes sure that it is ours. It returns nil if there is
// none.
func ownStream(ctx context.Context, js jetstream.JetStream, name, ledgerID string) (*jetstream.StreamConfig, error) {
	stream, err := ask(ctx, func(ctx context.Context) (jetstream.Stream, error) { return js.Stream(ctx, name) })
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find stream %s: %w", name, err)
	}
	got := stream.CachedInfo().Config
	switch ledger := got.Metadata[jetpost.MetadataLedger]; ledger {
	case ledgerID:
		return &got, nil
	case "":
		return nil, &ForeignStreamError{Stream: name}
	default:
		return nil, &OtherLedgerError{Stream: name, Want: ledgerID, Got: ledger}
	}
}

// setupStream makes the stream, or updates it once it is known to be ours. If a
// creation meets a stream with other settings, another Setup or a foreign client was
// faster, and setupStream reads the stream again.
func setupStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig, ledgerID string) (string, error) {
	for range maxRaces {
		got, err := ownStream(ctx, js, want.Name, ledgerID)
		if err != nil {
			return "", err
		}
		if got == nil {
			made, err := ask(ctx, func(ctx context.Context) (jetstream.Stream, error) { return js.CreateStream(ctx, want) })
			if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
				continue
			}
			if hasCode(err, codeSubjectsOverlap) {
				err = &SubjectsTakenError{Stream: want.Name, Err: err}
			}
			return ActionCreated, verifyStream(made, want, outOfStorage(ctx, js, want, err))
		}
		merged := mergeStream(*got, want)
		if reflect.DeepEqual(*got, merged) {
			return ActionUnchanged, nil
		}
		made, err := ask(ctx, func(ctx context.Context) (jetstream.Stream, error) { return js.UpdateStream(ctx, merged) })
		return ActionUpdated, verifyStream(made, want, outOfStorage(ctx, js, want, err))
	}
	return "", fmt.Errorf("settings changed %d times meanwhile", maxRaces)
}

// outOfStorage reports with both numbers that there is no room for a stream.
func outOfStorage(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig, err error) error {
	if !hasCode(err, codeStorageExceeded, codeResourcesExceeded) {
		return err
	}
	short := &StorageError{Stream: want.Name, Bytes: want.MaxBytes, Err: err}
	if info, err := js.AccountInfo(ctx); err == nil {
		short.Promised = info.ReservedStore
	}
	return short
}

// verifyStream makes sure that the server took every setting: an old server silently
// drops settings that it does not know.
func verifyStream(made jetstream.Stream, want jetstream.StreamConfig, err error) error {
	if err != nil {
		return err
	}
	got := made.CachedInfo().Config
	if ignored := differences("stream "+want.Name, got, mergeStream(got, want)); len(ignored) > 0 {
		return fmt.Errorf("the server did not take all settings: %s", strings.Join(ignored, "; "))
	}
	return nil
}

// mergeStream is got with our settings. It does not change what the server fills in and
// what an operator may choose.
func mergeStream(got, want jetstream.StreamConfig) jetstream.StreamConfig {
	want.Metadata = mergeMetadata(got.Metadata, want.Metadata)
	want.Placement, want.Compression, want.ConsumerLimits = got.Placement, got.Compression, got.ConsumerLimits
	want.FirstSeq, want.PersistMode, want.RePublish = got.FirstSeq, got.PersistMode, got.RePublish
	if len(want.Sources) == 0 {
		// Without sources the server insists on a window; nothing depends on it.
		want.Duplicates = got.Duplicates
	}
	return want
}

// keepSizes is want with the sizes that an operator may have chosen at Setup.
func keepSizes(want, got jetstream.StreamConfig) jetstream.StreamConfig {
	want.Replicas = got.Replicas
	want.MaxAge = got.MaxAge
	want.MaxBytes = got.MaxBytes
	want.MaxMsgs = got.MaxMsgs
	want.MaxMsgSize = got.MaxMsgSize
	want.Description = got.Description
	return want
}

// consumerInfo is the common part of pull and push consumers.
type consumerInfo interface {
	CachedInfo() *jetstream.ConsumerInfo
}

func findConsumer(ctx context.Context, js jetstream.JetStream, want consumerSpec) (*jetstream.ConsumerConfig, error) {
	consumer, err := ask(ctx, func(ctx context.Context) (consumerInfo, error) {
		if want.DeliverSubject != "" {
			return js.PushConsumer(ctx, want.stream, want.Durable)
		}
		return js.Consumer(ctx, want.stream, want.Durable)
	})
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find consumer %s: %w", want, err)
	}
	return &consumer.CachedInfo().Config, nil
}

// setupConsumer does not check the owner: the stream is ours.
func setupConsumer(ctx context.Context, js jetstream.JetStream, want consumerSpec) (string, error) {
	got, err := findConsumer(ctx, js, want)
	if err != nil {
		return "", err
	}
	action, config := ActionCreated, want.ConsumerConfig
	if got != nil {
		action, config = ActionUpdated, mergeConsumer(*got, want.ConsumerConfig)
		if reflect.DeepEqual(*got, config) {
			return ActionUnchanged, nil
		}
	}
	_, err = ask(ctx, func(ctx context.Context) (consumerInfo, error) {
		if config.DeliverSubject != "" {
			return js.CreateOrUpdatePushConsumer(ctx, want.stream, config)
		}
		return js.CreateOrUpdateConsumer(ctx, want.stream, config)
	})
	return action, err
}

// mergeConsumer is got with our settings. It does not change a pause: that is an app
// pause.
func mergeConsumer(got, want jetstream.ConsumerConfig) jetstream.ConsumerConfig {
	want.Metadata = mergeMetadata(got.Metadata, want.Metadata)
	want.Description, want.PauseUntil = got.Description, got.PauseUntil
	want.MaxWaiting, want.Replicas, want.MemoryStorage = got.MaxWaiting, got.Replicas, got.MemoryStorage
	return want
}

func mergeMetadata(got, want map[string]string) map[string]string {
	merged := maps.Clone(got)
	if merged == nil && len(want) > 0 {
		merged = make(map[string]string, len(want))
	}
	maps.Copy(merged, want)
	return merged
}

// differences lists the settings that are not as wanted, by their names in the server's
// API.
func differences[T any](what string, got, want T) []string {
	if reflect.DeepEqual(got, want) {
		return nil
	}
	g, w := fields(got), fields(want)
	names := slices.Sorted(maps.Keys(g))
	for name := range w {
		if _, ok := g[name]; !ok {
			names = append(names, name)
		}
	}
	var diffs []string
	for _, name := range names {
		if string(g[name]) != string(w[name]) {
			diffs = append(diffs, fmt.Sprintf("%s has %s %s, want %s", what, name,
				cmp.Or(string(g[name]), "unset"), cmp.Or(string(w[name]), "unset")))
		}
	}
	return diffs
}

func fields(config any) map[string]json.RawMessage {
	var m map[string]json.RawMessage
	b, err := json.Marshal(config)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		panic(fmt.Sprintf("publishers: settings of type %T are not JSON: %v", config, err))
	}
	return m
}

// setupCron writes the refresh schedule, once even if many callers try: publishing it
// again unchanged could drop the tick that is due at that moment.
func setupCron(ctx context.Context, js jetstream.JetStream, cfg TopologyConfig) (string, error) {
	n := cfg.Names
	msg := nats.NewMsg(n.ScheduleRefresh())
	msg.Header.Set(jetstream.ScheduleHeader, cfg.RefreshCron)
	msg.Header.Set(jetstream.ScheduleTargetHeader, n.DueRefresh("tick"))
	msg.Header.Set(jetstream.ScheduleTTLHeader, cfg.RefreshTTL.String())
	if cfg.RefreshTimeZone != "" {
		msg.Header.Set(jetstream.ScheduleTimeZoneHeader, cfg.RefreshTimeZone)
	}
	for range maxRaces {
		action, sequence := ActionCreated, uint64(0)
		last, err := lastMessage(ctx, js, n.ScheduleStream(), msg.Subject)
		if err != nil {
			return "", err
		}
		if last != nil {
			if sameSchedule(last.Header, msg.Header) {
				return ActionUnchanged, nil
			}
			action, sequence = ActionUpdated, last.Sequence
		}
		_, err = send(ctx, js, n.ScheduleStream(), msg, jetstream.WithExpectLastSequencePerSubject(sequence))
		if lostRace(err) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("write cron %q in time zone %q: %w", cfg.RefreshCron, cfg.RefreshTimeZone, err)
		}
		return action, nil
	}
	return "", fmt.Errorf("schedule changed %d times meanwhile", maxRaces)
}

func sameSchedule(a, b nats.Header) bool {
	for _, name := range []string{
		jetstream.ScheduleHeader, jetstream.ScheduleTargetHeader, jetstream.ScheduleTTLHeader, jetstream.ScheduleTimeZoneHeader,
	} {
		if a.Get(name) != b.Get(name) {
			return false
		}
	}
	return true
}

// lastMessage is the newest message of a subject, which may hold wildcards, or
// nil.
func lastMessage(ctx context.Context, js jetstream.JetStream, stream, subject string) (*jetstream.RawStreamMsg, error) {
	msg, err := ask(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return nil, err
		}
		return s.GetLastMsgForSubject(ctx, subject)
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read last message of %s: %w", subject, err)
	}
	return msg, nil
}

// checkServer refuses servers that are too old: the one we are connected to, and the
// one that leads the cluster's JetStream.
func checkServer(ctx context.Context, js jetstream.JetStream) error {
	info, err := ask(ctx, js.AccountInfo)
	if err != nil {
		return fmt.Errorf("ask for JetStream: %w", err)
	}
	if version := js.Conn().ConnectedServerVersion(); !atLeast(version, minServerVersion) {
		return &ServerVersionError{Got: version, Want: minServerVersion}
	}
	if info.API.Level < minAPILevel {
		return &ServerVersionError{Got: fmt.Sprintf("JetStream API level %d", info.API.Level), Want: minServerVersion}
	}
	return nil
}

// atLeast compares versions such as "2.14.0" and "v2.15.0-RC.1". A pre-release comes
// before its release. An invalid version is too old.
func atLeast(version, least string) bool {
	got, pre, ok := parseVersion(version)
	want, _, _ := parseVersion(least)
	if c := slices.Compare(got[:], want[:]); c != 0 || !ok {
		return ok && c > 0
	}
	return !pre
}

func parseVersion(s string) (numbers [3]int, pre, ok bool) {
	core, _, _ := strings.Cut(strings.TrimPrefix(s, "v"), "+")
	core, suffix, pre := strings.Cut(core, "-")
	parts := strings.Split(core, ".")
	if len(parts) != len(numbers) || pre && suffix == "" {
		return numbers, pre, false
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil {
			return numbers, pre, false
		}
		numbers[i] = int(n)
	}
	return numbers, pre, true
}
