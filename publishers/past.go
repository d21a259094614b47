package publishers

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// pastBatch is how many events are read at once.
const pastBatch = 500

// PastEvents reads all events that were stored since a time, the oldest first. It returns
// from when on NATS has them, zero where it has all of that time.
func PastEvents(ctx context.Context, js jetstream.JetStream, names jetpost.Names, since time.Time, see func(jetpost.Event)) (from time.Time, err error) {
	stream, err := ask(ctx, func(ctx context.Context) (jetstream.Stream, error) { return js.Stream(ctx, names.EventsStream()) })
	if err != nil {
		return time.Time{}, fmt.Errorf("read events: %w", err)
	}
	state := stream.CachedInfo().State
	switch {
	case state.Msgs == 0: // also where the stream was made anew
		return stream.CachedInfo().TimeStamp, nil
	case state.FirstSeq > 1 && state.FirstTime.After(since):
		from = state.FirstTime
	case state.LastTime.Before(since):
		return time.Time{}, nil
	}
	consumer, err := ask(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		return js.OrderedConsumer(ctx, names.EventsStream(), jetstream.OrderedConsumerConfig{
			DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since, InactiveThreshold: readerIdle,
		})
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("read events: %w", err)
	}
	for last := uint64(0); last < state.LastSeq; {
		batch, err := consumer.Fetch(pastBatch, jetstream.FetchMaxWait(answerWithin))
		if err != nil {
			return time.Time{}, fmt.Errorf("read events: %w", explain(err))
		}
		got := 0
		for msg := range batch.Messages() {
			meta, err := msg.Metadata()
			if err != nil {
				return time.Time{}, fmt.Errorf("read events: %w", err)
			}
			got, last = got+1, meta.Sequence.Stream
			if event, err := decodeEvent(msg.Subject(), msg.Data()); err == nil { // else it is none
				see(event)
			}
		}
		if err := batch.Error(); err != nil && got == 0 {
			return time.Time{}, fmt.Errorf("read events: %w", explain(err))
		}
		if got == 0 {
			break // the last ones were deleted
		}
	}
	return from, nil
}
