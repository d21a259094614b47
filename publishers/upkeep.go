package publishers

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// pauseMargin is how far the end of the pause of the lanes' consumer may be from that
// of the stop: NATS and JSON round it.
const pauseMargin = time.Second

// Targets are all that can be stopped.
func Targets() []string { return slices.Clone(targets[:]) }

// Restore puts a stop back that stood in the bucket and is lost, or was replaced by what
// is not believed, unless one stands there by now. It tells nobody: that was done when the stop was set.
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
		return false, fmt.Errorf("restore stop %s: %w", pause.Target, err)
	}
	return restored, nil
}

// Settle makes the lanes' consumer pause as the stop on record says, where it does not.
// It returns what was wrong, "" where nothing was.
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

// Sweep removes what stands in place of a stop and is not believed. It returns the
// scopes.
func (s *AppPauses) Sweep(ctx context.Context) (removed []string, err error) {
	kv, err := s.bucket(ctx)
	for _, target := range targets {
		var pause Pause
		var revision uint64
		if err == nil {
			pause, revision, err = s.read(ctx, kv, target)
		}
		if err != nil {
			return removed, fmt.Errorf("look for forged stops: %w", err)
		}
		if revision == 0 || pause.Target != "" {
			continue
		}
		_, err = ask(ctx, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, kv.Delete(ctx, pausePrefix+target, jetstream.LastRevision(revision))
		})
		if lostRace(err) {
			err = nil // somebody has set a stop there
			continue
		}
		if err == nil {
			removed = append(removed, target)
		}
	}
	return removed, err
}

// pauseDiffers tells in which way the consumer does not pause as it should.
func pauseDiffers(info *jetstream.ConsumerInfo, pause Pause, paused bool, now time.Time) string {
	ends := pause.Reason.Until // a pause that is over by now is none
	wanted := paused && (ends.IsZero() || ends.After(now.Add(pauseMargin)))
	switch {
	case !paused && info.Paused:
		return "it is paused, and nothing is stopped"
	case wanted && !info.Paused:
		return "it is not paused, and " + pause.Target + " is stopped"
	case !wanted || !info.Paused:
		return ""
	}
	end := now.Add(info.PauseRemaining)
	if ends.IsZero() && info.PauseRemaining < pauseForever/2 || !ends.IsZero() && end.Sub(ends).Abs() > 2*pauseMargin {
		return "its pause does not end with the stop"
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

// ReadCron reads the schedule as it stands in NATS, and since when; nil where there is
// none that opens refresh rounds.
func ReadCron(ctx context.Context, js jetstream.JetStream, names jetpost.Names) (*Cron, time.Time, error) {
	msg, err := lastMessage(ctx, js, names.ScheduleStream(), names.ScheduleRefresh())
	if err != nil || msg == nil || msg.Header.Get(jetstream.ScheduleTargetHeader) != names.DueRefresh("tick") {
		return nil, time.Time{}, err
	}
	cron := Cron{Cron: msg.Header.Get(jetstream.ScheduleHeader), TimeZone: msg.Header.Get(jetstream.ScheduleTimeZoneHeader)}
	if cron.TTL, err = time.ParseDuration(msg.Header.Get(jetstream.ScheduleTTLHeader)); err != nil {
		return nil, time.Time{}, nil //nolint:nilerr // it is none of ours
	}
	return &cron, msg.Time, nil
}

// SetCron makes the schedule in NATS that of the configuration, and tells whether it
// was another one, or none.
func SetCron(ctx context.Context, js jetstream.JetStream, cfg TopologyConfig) (changed bool, err error) {
	if cfg, err = cfg.complete(); err != nil {
		return false, err
	}
	action, err := setupCron(ctx, js, cfg)
	return err == nil && action != ActionUnchanged, err
}
