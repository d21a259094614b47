package publishers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// MaxMediaBytes is the largest medium that PutMedia takes: 1000 MiB, a video.
const MaxMediaBytes = 1000 << 20

// readerIdle is how long the server remembers the place of an event reader that has
// ended or lost its connection.
const readerIdle = time.Minute

// Publisher is a producer: it publishes jobs and media, asks for refreshes and reads
// the results.
//
// It is safe for concurrent use.
type Publisher struct {
	js    jetstream.JetStream
	names jetpost.Names

	mu    sync.Mutex
	media jetstream.ObjectStore // once it was found
}

// New writes through js to the installation of that name. The connection stays
// the caller's.
func New(js jetstream.JetStream, names jetpost.Names) *Publisher {
	return &Publisher{js: js, names: names}
}

// Receipt says that a job is stored.
type Receipt struct {
	Account string `json:"account"`
	ID      string `json:"id"`
	// Sequence is the job's place in the job stream.
	Sequence uint64 `json:"sequence"`
}

// Publish stores a request for its account and returns once it is safe. A
// request without an id gets one.
//
// It fails with *jetpost.InvalidError, *TooLargeError, *QueueFullError or
// *NotSetUpError, none of which stored anything. After any other error, such as
// *NoAnswerError, the job may be stored or not: publish it again under the receipt's
// ID, which is set on errors, too. Two messages with one id are one job.
func (p *Publisher) Publish(ctx context.Context, r jetpost.Request) (Receipt, error) {
	if r.ID == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return Receipt{}, fmt.Errorf("make request id: %w", err)
		}
		r.ID = id.String()
	}
	receipt := Receipt{Account: r.Account, ID: r.ID}
	if err := r.Validate(); err != nil {
		return receipt, fmt.Errorf("publish request: %w", err)
	}
	body, err := json.Marshal(r)
	if err != nil {
		return receipt, fmt.Errorf("encode request %s of account %s: %w", r.ID, r.Account, err)
	}
	receipt.Sequence, err = p.PublishRaw(ctx, r.Account, body)
	return receipt, err
}

// PublishRaw stores a job as it is, valid or not, and returns its place in the
// job stream. Without an account it goes onto the bare subject, and the body
// names the account. It fails as Publish does.
func (p *Publisher) PublishRaw(ctx context.Context, account string, body []byte) (uint64, error) {
	msg := nats.NewMsg(p.names.PublishRequest(account))
	msg.Data = body
	setTrace(ctx, msg)
	// No Nats-Msg-Id: the identity of a job is in its body.
	ack, err := send(ctx, p.js, p.names.JobsStream(), msg)
	if err != nil {
		return 0, fmt.Errorf("publish request of account %q: %w", account, err)
	}
	return ack.Sequence, nil
}

// PutMedia stores a media file and returns its name for jetpost.Media.Object. It reads
// to the end of r, at most MaxMediaBytes, and stores nothing if it fails. Only ctx
// bounds the upload.
func (p *Publisher) PutMedia(ctx context.Context, r io.Reader) (object string, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("make object name: %w", err)
	}
	store, err := p.mediaStore(ctx)
	if err != nil {
		return "", err
	}
	if _, err := store.Put(ctx, jetstream.ObjectMeta{Name: id.String()}, &boundedReader{r: r, left: MaxMediaBytes}); err != nil {
		return "", fmt.Errorf("store media: %w", explain(err))
	}
	return id.String(), nil
}

func (p *Publisher) mediaStore(ctx context.Context) (jetstream.ObjectStore, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	if p.media == nil {
		p.media, err = MediaStore(ctx, p.js, p.names)
	}
	return p.media, err
}

// boundedReader fails at the limit, where io.LimitedReader would end: half a video must
// not look like a whole one.
type boundedReader struct {
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(buf []byte) (int, error) {
	n, err := b.r.Read(buf)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("larger than %d bytes", MaxMediaBytes)
	}
	return n, err
}

// Tick opens a refresh round now, as the schedule does.
func (p *Publisher) Tick(ctx context.Context) error {
	if _, err := send(ctx, p.js, p.names.RefreshStream(), nats.NewMsg(p.names.RefreshTick())); err != nil {
		return fmt.Errorf("publish refresh tick: %w", err)
	}
	return nil
}

// RefreshAccount asks for the refresh of one account's token, by force even of a young
// one. Workers limit how often they do that.
func (p *Publisher) RefreshAccount(ctx context.Context, account string, force bool) error {
	return p.refresh(ctx, p.names.RefreshRequest(), account, force)
}

// OrderRefresh is RefreshAccount for an operator, without that limit. NATS takes
// it from the workers' account alone. Of orders with one operation, where that is not
// empty, one within some minutes is taken.
func (p *Publisher) OrderRefresh(ctx context.Context, account string, force bool, operation string) error {
	var once []jetstream.PublishOpt
	if operation != "" {
		once = append(once, jetstream.WithMsgID("refresh/"+account+"/"+operation))
	}
	return p.refresh(ctx, p.names.RefreshOrder(), account, force, once...)
}

func (p *Publisher) refresh(ctx context.Context, subject, account string, force bool, opts ...jetstream.PublishOpt) error {
	msg := nats.NewMsg(subject)
	var err error
	if msg.Data, err = json.Marshal(jetpost.RefreshRequest{Account: account, Force: force}); err == nil {
		_, err = send(ctx, p.js, p.names.RefreshStream(), msg, opts...)
	}
	if err != nil {
		return fmt.Errorf("ask for refresh of account %s: %w", account, err)
	}
	return nil
}

// Events reads every event from this call on, or only those of the subjects, which must
// not overlap (see [jetpost.Names]). To see all events of a job, call it before
// publishing the job.
//
// The sequence can be ranged over once. It waits for the next event until ctx ends,
// which is no error. An event that cannot be decoded is an error that does not end the
// sequence; any other error does. It resumes without a gap after lost connections.
func (p *Publisher) Events(ctx context.Context, subjects ...string) (iter.Seq2[jetpost.Event, error], error) {
	if len(subjects) == 0 {
		subjects = []string{p.names.AllEvents()}
	}
	consumer, err := ask(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		stream, err := p.js.Stream(ctx, p.names.EventsStream())
		if err != nil {
			return nil, err
		}
		return p.js.OrderedConsumer(ctx, p.names.EventsStream(), jetstream.OrderedConsumerConfig{
			FilterSubjects: subjects,
			// Not DeliverNew: a reader that reconnects before its first event would
			// start again at that moment.
			DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
			OptStartSeq:       stream.CachedInfo().State.LastSeq + 1,
			InactiveThreshold: readerIdle,
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		return nil, fmt.Errorf("read events: %w", explain(err))
	}
	context.AfterFunc(ctx, messages.Stop)
	return func(yield func(jetpost.Event, error) bool) {
		defer messages.Stop()
		for {
			msg, err := messages.Next(jetstream.NextContext(ctx))
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				yield(jetpost.Event{}, fmt.Errorf("read next event: %w", explain(err)))
				return
			}
			if !yield(decodeEvent(msg.Subject(), msg.Data())) {
				return
			}
		}
	}, nil
}

// LastEvent is the newest event of a request, which holds the request's state; false if
// there is none, or none any more.
func (p *Publisher) LastEvent(ctx context.Context, account, id string) (jetpost.Event, bool, error) {
	msg, err := lastMessage(ctx, p.js, p.names.EventsStream(), p.names.RequestEvents(account, id))
	if err != nil || msg == nil {
		return jetpost.Event{}, false, err
	}
	event, err := decodeEvent(msg.Subject, msg.Data)
	return event, err == nil, err
}

// PastEvents reads what happened to a request as far as the stream still has it, in order:
// the latest of them up to a limit, and whether it left earlier ones out. It looks at
// maxPastEvents at most, from the earliest one on.
func (p *Publisher) PastEvents(ctx context.Context, account, id string, limit int) (events []jetpost.Event, more bool, err error) {
	fail := func(err error) ([]jetpost.Event, bool, error) {
		return nil, false, fmt.Errorf("read past events of request %s of account %s: %w", id, account, err)
	}
	stream, err := ask(ctx, func(ctx context.Context) (jetstream.Stream, error) { return p.js.Stream(ctx, p.names.EventsStream()) })
	if err != nil {
		return fail(err)
	}
	subject, next := p.names.RequestEvents(account, id), uint64(0)
	for range maxPastEvents {
		msg, err := ask(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
			return stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(subject))
		})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return events, more, nil
		}
		if err != nil {
			return fail(err)
		}
		next = msg.Sequence + 1
		event, err := decodeEvent(msg.Subject, msg.Data)
		if err != nil {
			return fail(err)
		}
		if events = append(events, event); len(events) > limit {
			events, more = events[1:], true
		}
	}
	return events, more, nil
}

// maxPastEvents bounds the events of one request that are looked at.
const maxPastEvents = 2000

// GetMedia opens a media file that PutMedia or a producer has stored. It fails with
// jetstream.ErrObjectNotFound.
func (p *Publisher) GetMedia(ctx context.Context, object string) (io.ReadCloser, error) {
	store, err := p.mediaStore(ctx)
	if err != nil {
		return nil, err
	}
	file, err := store.Get(ctx, object)
	if err != nil {
		return nil, fmt.Errorf("read media %s: %w", object, explain(err))
	}
	return file, nil
}

// LastAccountEvent returns the latest stored event that says what an account requires;
// false if there is none. Events of pauses do not count.
func (p *Publisher) LastAccountEvent(ctx context.Context, account string) (jetpost.Event, bool, error) {
	var last *jetstream.RawStreamMsg
	for _, t := range []jetpost.EventType{jetpost.EventAccountReauthRequired, jetpost.EventAccountRecovered} {
		msg, err := lastMessage(ctx, p.js, p.names.EventsStream(), p.names.EventSubject(t, account, ""))
		if err != nil {
			return jetpost.Event{}, false, err
		}
		if last == nil || msg != nil && msg.Sequence > last.Sequence {
			last = msg
		}
	}
	if last == nil {
		return jetpost.Event{}, false, nil
	}
	event, err := decodeEvent(last.Subject, last.Data)
	return event, err == nil, err
}

func decodeEvent(subject string, data []byte) (jetpost.Event, error) {
	var e jetpost.Event
	if err := json.Unmarshal(data, &e); err != nil {
		return jetpost.Event{}, fmt.Errorf("decode event on %s: %w", subject, err)
	}
	return e, nil
}
