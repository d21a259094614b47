package publishers

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

const (
	// heartbeatPrefix begins the keys of workers in the limits bucket.
	heartbeatPrefix = "worker."
	// HeartbeatTTL is how long the last heartbeat of a silent worker stays.
	HeartbeatTTL = time.Hour
)

// Heartbeat is a worker's heartbeat. The last one stays for HeartbeatTTL.
type Heartbeat struct {
	Worker    string    `json:"worker"`
	Host      string    `json:"host"`
	Version   string    `json:"version"`
	Schema    int64     `json:"schema"` // the version of the database's schema for which the worker is built
	Roles     []string  `json:"roles"`
	Slots     int       `json:"slots"`      // accounts that it works on at once
	Used      int       `json:"slots_used"` // accounts that it works on now
	StartedAt time.Time `json:"started_at"`
	// Faults is what keeps the worker from its work, "" if nothing does.
	Faults string `json:"faults,omitempty"`
	Disks  []Disk `json:"disks,omitempty"`
	// KnowsPruned says that the worker knows the ids of pruned requests.
	KnowsPruned bool `json:"knows_pruned"`
	// Age is how long ago NATS stored the heartbeat, by its own clock; set when it is
	// read.
	Age time.Duration `json:"-"`
}

// Disk is the room on which something of the installation lies.
type Disk = jetpost.Disk

// Heartbeats are the workers' heartbeats, in the limits bucket.
//
// Heartbeats are safe for concurrent use, from any number of processes.
type Heartbeats struct {
	js    jetstream.JetStream
	names jetpost.Names
}

// NewHeartbeats reads and writes through js in the installation of that name.
func NewHeartbeats(js jetstream.JetStream, names jetpost.Names) *Heartbeats {
	return &Heartbeats{js: js, names: names}
}

// heartbeatKey is a valid key for any name of a worker.
func heartbeatKey(worker string) string {
	return heartbeatPrefix + base64.RawURLEncoding.EncodeToString([]byte(worker))
}

// Put stores a heartbeat.
func (s *Heartbeats) Put(ctx context.Context, heartbeat Heartbeat) error {
	value, err := json.Marshal(heartbeat)
	if err != nil {
		return fmt.Errorf("encode heartbeat: %w", err)
	}
	msg := &nats.Msg{Subject: "$KV." + s.names.LimitsBucket() + "." + heartbeatKey(heartbeat.Worker), Data: value}
	if _, err := send(ctx, s.js, "KV_"+s.names.LimitsBucket(), msg, jetstream.WithMsgTTL(HeartbeatTTL)); err != nil {
		return fmt.Errorf("give heartbeat: %w", err)
	}
	return nil
}

// probeStays is how long the message of a Probe stays.
const probeStays = time.Minute

// Probe finds out whether NATS stores a message.
func (s *Heartbeats) Probe(ctx context.Context) error {
	msg := &nats.Msg{Subject: "$KV." + s.names.LimitsBucket() + ".probe"}
	if _, err := send(ctx, s.js, "KV_"+s.names.LimitsBucket(), msg, jetstream.WithMsgTTL(probeStays)); err != nil {
		return fmt.Errorf("store a message: %w", err)
	}
	return nil
}

// Remove deletes a worker's heartbeat, because the worker ends.
func (s *Heartbeats) Remove(ctx context.Context, worker string) error {
	_, err := ask(ctx, func(ctx context.Context) (struct{}, error) {
		kv, err := s.js.KeyValue(ctx, s.names.LimitsBucket())
		if err == nil {
			err = kv.Delete(ctx, heartbeatKey(worker))
		}
		return struct{}{}, err
	})
	if err != nil {
		return fmt.Errorf("take heartbeat away: %w", err)
	}
	return nil
}

// All returns the last heartbeat of each worker, by name.
func (s *Heartbeats) All(ctx context.Context) ([]Heartbeat, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The clock of the server that has stamped the heartbeats.
	stream, err := ask(ctx, func(ctx context.Context) (jetstream.Stream, error) {
		return s.js.Stream(ctx, "KV_"+s.names.LimitsBucket())
	})
	if err != nil {
		return nil, fmt.Errorf("read heartbeats: %w", err)
	}
	now := stream.CachedInfo().TimeStamp
	kv, err := ask(ctx, func(ctx context.Context) (jetstream.KeyValue, error) {
		return s.js.KeyValue(ctx, s.names.LimitsBucket())
	})
	var watcher jetstream.KeyWatcher
	if err == nil {
		watcher, err = kv.Watch(ctx, heartbeatPrefix+"*", jetstream.IgnoreDeletes())
	}
	if err != nil {
		return nil, fmt.Errorf("read heartbeats: %w", explain(err))
	}
	defer func() { _ = watcher.Stop() }() // fails only if it is gone with its connection
	var all []Heartbeat
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("read heartbeats: %w", explain(ctx.Err()))
		case entry, ok := <-watcher.Updates():
			switch {
			case !ok:
				return nil, errors.New("read heartbeats: the connection is closed")
			case entry == nil: // all entries have been read
				slices.SortFunc(all, func(a, b Heartbeat) int { return cmp.Compare(a.Worker, b.Worker) })
				return all, nil
			}
			var heartbeat Heartbeat
			if json.Unmarshal(entry.Value(), &heartbeat) == nil { // an unreadable entry is no heartbeat
				heartbeat.Age = max(now.Sub(entry.Created()), 0)
				all = append(all, heartbeat)
			}
		}
	}
}
