package publishers

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// pauseMargin is how far the end of the pause of the lanes' consumer may differ from
// that of the app pause: NATS and JSON round it.
const pauseMargin = time.Second

// Targets are all targets of an app pause.
func Targets() []string { return slices.Clone(targets[:]) }

// Restore stores an app pause again that was in the bucket and is lost, or was replaced
// by an entry without a valid signature, unless a valid one is there by now. It
// publishes no event: that was done when the pause was set.
func (s *AppPauses) Restore(ctx context.Context, pause Pause) (restored bool, err error) {
	kv, err := s.bucket(ctx)
	var is Pause
	var revision uint64
	if err == nil {
		is, revision, err = s.read(ctx, kv, pause.Target)
	}
	if err == nil && is.Target == "" {
		_, err = s.put(ctx, kv, pause, revision)
		restored = err == nil
	}
	if lostRace(err) {
		err = nil
	}
	if err == nil {
		err = s.align(ctx, kv, pause.Target)
	}
	if err != nil {
		return false, fmt.Errorf("restore pause %s: %w", pause.Target, err)
	}
	return restored, nil
}

// Settle pauses the lanes' consumer as the pause on record says, if it differs. It
// returns the difference, "" if there was none.
func (s *AppPauses) Settle(ctx context.Context, now time.Time) (wrong string, err error) {
	kv, err := s.bucket(ctx)
	var pause Pause
	if err == nil {
		pause, _, err = s.read(ctx, kv, TargetPublish)
	}
	var lanes jetstream.Consumer
	if err == nil {
		lanes, err = ask(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
			return s.js.Consumer(ctx, s.names.LanesStream(), jetpost.ConsumerLanes)
		})
	}
	if err == nil {
		info := lanes.CachedInfo()
		if wrong = pauseDiffers(info, pause, pause.Target != "", now); wrong != "" {
			err = s.align(ctx, kv, TargetPublish)
		}
	}
	if err != nil {
		return "", fmt.Errorf("settle pause of consumer %s: %w", jetpost.ConsumerLanes, err)
	}
	return wrong, nil
}

// Sweep removes entries without a valid signature from the keys of app pauses. It
// returns their targets.
func (s *AppPauses) Sweep(ctx context.Context) (removed []string, err error) {
	kv, err := s.bucket(ctx)
	for _, target := range targets {
		var pause Pause
		var revision uint64
		if err == nil {
			pause, revision, err = s.read(ctx, kv, target)
		}
		if err != nil {
			return removed, fmt.Errorf("find forged pauses: %w", err)
		}
		if revision == 0 || pause.Target != "" {
			continue
		}
		_, err = ask(ctx, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, kv.Delete(ctx, pausePrefix+target, jetstream.LastRevision(revision))
		})
		if lostRace(err) {
			err = nil // somebody has set a pause there
			continue
		}
		if err == nil {
			removed = append(removed, target)
		}
	}
	return removed, err
}

// pauseDiffers says in which way the consumer does not pause as it should.
func pauseDiffers(info *jetstream.ConsumerInfo, pause Pause, paused bool, now time.Time) string {
	ends := pause.Reason.Until // a pause that is over counts as none
	wanted := paused && (ends.IsZero() || ends.After(now.Add(pauseMargin)))
	switch {
	case !paused && info.Paused:
		return "it is paused, and no app pause holds"
	case wanted && !info.Paused:
		return "it is not paused, and " + pause.Target + " is paused"
	case !wanted || !info.Paused:
		return ""
	}
	end := now.Add(info.PauseRemaining)
	if ends.IsZero() && info.PauseRemaining < pauseForever/2 || !ends.IsZero() && end.Sub(ends).Abs() > 2*pauseMargin {
		return "its pause does not end with the app pause"
	}
	return ""
}

// Cron is the refresh schedule.
type Cron struct {
	Cron     string        `json:"cron"`
	TimeZone string        `json:"time_zone,omitempty"`
	TTL      time.Duration `json:"ttl_ns"`
}

// Cron is the schedule that Setup makes with this configuration.
func (c TopologyConfig) Cron() (Cron, error) {
	c, err := c.complete()
	return Cron{Cron: c.RefreshCron, TimeZone: c.RefreshTimeZone, TTL: c.RefreshTTL}, err
}

// WithCron is the configuration with that schedule.
func (c TopologyConfig) WithCron(cron Cron) TopologyConfig {
	c.RefreshCron, c.RefreshTimeZone, c.RefreshTTL = cron.Cron, cron.TimeZone, cron.TTL
	return c
}

// ReadCron reads the schedule as it is in NATS, and since when; nil if there is none
// that opens refresh rounds.
func ReadCron(ctx context.Context, js jetstream.JetStream, names jetpost.Names) (*Cron, time.Time, error) {
	msg, err := lastMessage(ctx, js, names.ScheduleStream(), names.ScheduleRefresh())
	if err != nil || msg == nil || msg.Header.Get(jetstream.ScheduleTargetHeader) != names.DueRefresh("tick") {
		return nil, time.Time{}, err
	}
	cron := Cron{Cron: msg.Header.Get(jetstream.ScheduleHeader), TimeZone: msg.Header.Get(jetstream.ScheduleTimeZoneHeader)}
	if cron.TTL, err = time.ParseDuration(msg.Header.Get(jetstream.ScheduleTTLHeader)); err != nil {
		return nil, time.Time{}, nil //nolint:nilerr // it is not ours
	}
	return &cron, msg.Time, nil
}

// SetCron makes the schedule in NATS that of the configuration, and reports whether it
// was another one, or missing.
func SetCron(ctx context.Context, js jetstream.JetStream, cfg TopologyConfig) (changed bool, err error) {
	if cfg, err = cfg.complete(); err != nil {
		return false, err
	}
	action, err := setupCron(ctx, js, cfg)
	return err == nil && action != ActionUnchanged, err
}
