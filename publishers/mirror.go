package publishers

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// findMirror returns the JetStream of the account where producers read and write, or
// nil if they share the workers' account.
func findMirror(ctx context.Context, js jetstream.JetStream, names jetpost.Names) (jetstream.JetStream, error) {
	mirror, err := jetstream.NewWithAPIPrefix(js.Conn(), names.MirrorAPI())
	if err != nil {
		return nil, fmt.Errorf("open JetStream of the mirror: %w", err)
	}
	_, err = ask(ctx, mirror.AccountInfo)
	switch {
	case err == nil:
		return mirror, nil
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled): // nobody answers there
		return nil, nil
	default:
		return nil, fmt.Errorf("look for the mirror: %w", err)
	}
}

// Walled reports whether NATS separates producers by accounts of their own. Without
// them, a client that may publish may also change everything that workers rely on.
func Walled(ctx context.Context, js jetstream.JetStream, names jetpost.Names) (bool, error) {
	mirror, err := findMirror(ctx, js, names)
	return mirror != nil, err
}

// MediaStore is the object store of media, in whichever account it is. It reads objects
// message by message and needs no consumer.
func MediaStore(ctx context.Context, js jetstream.JetStream, names jetpost.Names) (jetstream.ObjectStore, error) {
	mirror, err := findMirror(ctx, js, names)
	if err != nil {
		return nil, err
	}
	if mirror != nil {
		js = mirror
	}
	store, err := ask(ctx, func(ctx context.Context) (jetstream.ObjectStore, error) {
		return js.ObjectStore(ctx, names.MediaBucket())
	})
	if err != nil {
		return nil, fmt.Errorf("open media store: %w", err)
	}
	stream, err := ask(ctx, func(ctx context.Context) (jetstream.Stream, error) { return js.Stream(ctx, "OBJ_"+names.MediaBucket()) })
	if err != nil {
		return nil, fmt.Errorf("open media store: %w", err)
	}
	return &mediaStore{ObjectStore: store, stream: stream, bucket: names.MediaBucket()}, nil
}

// mediaStore reads an object by asking for each of its chunks. The client library makes
// a consumer push them, which does not work between accounts.
type mediaStore struct {
	jetstream.ObjectStore
	stream jetstream.Stream
	bucket string
}

// Get implements [jetstream.ObjectStore]. It follows no link.
func (s *mediaStore) Get(ctx context.Context, name string, _ ...jetstream.GetObjectOpt) (jetstream.ObjectResult, error) {
	info, err := s.GetInfo(ctx, name)
	if err != nil {
		return nil, err
	}
	if info.Opts != nil && info.Opts.Link != nil {
		return nil, jetstream.ErrCantGetBucket
	}
	return &object{ctx: ctx, stream: s.stream, info: info, chunks: "$O." + s.bucket + ".C." + info.NUID, digest: sha256.New()}, nil
}

// object is one object as it is read.
type object struct {
	ctx    context.Context
	stream jetstream.Stream
	info   *jetstream.ObjectInfo
	chunks string // the subject of its chunks
	next   uint64 // the place in the stream from which the next chunk is searched
	read   uint32 // chunks
	left   []byte // of the chunk that was read last
	digest hash.Hash
	err    error
}

func (o *object) Info() (*jetstream.ObjectInfo, error) { return o.info, nil }
func (o *object) Error() error {
	if errors.Is(o.err, io.EOF) {
		return nil
	}
	return o.err
}
func (o *object) Close() error { return nil }

// Read implements [io.Reader].
func (o *object) Read(p []byte) (int, error) {
	for len(o.left) == 0 && o.err == nil {
		o.left, o.err = o.chunk()
	}
	if len(o.left) == 0 {
		return 0, o.err
	}
	n := copy(p, o.left)
	o.left = o.left[n:]
	return n, nil
}

// chunk reads the next chunk, or returns io.EOF after the last one, once all of them
// match the object's digest.
func (o *object) chunk() ([]byte, error) {
	if o.read == o.info.Chunks {
		sum := "SHA-256=" + base64.URLEncoding.EncodeToString(o.digest.Sum(nil))
		if strings.TrimRight(sum, "=") != strings.TrimRight(o.info.Digest, "=") {
			return nil, jetstream.ErrDigestMismatch
		}
		return nil, io.EOF
	}
	msg, err := ask(o.ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
		return o.stream.GetMsg(ctx, o.next, jetstream.WithGetMsgSubject(o.chunks))
	})
	if err != nil {
		return nil, fmt.Errorf("read chunk %d of %d: %w", o.read+1, o.info.Chunks, err)
	}
	o.next = msg.Sequence + 1
	o.read++
	o.digest.Write(msg.Data)
	return msg.Data, nil
}

// eventsMirror is the copy of the events that producers read. It has no subjects of its
// own, so it holds exactly what the workers' stream holds.
func (c TopologyConfig) eventsMirror() jetstream.StreamConfig {
	n := c.Names
	return c.common(jetstream.StreamConfig{
		Name:        n.EventsStream(),
		Description: "jetpost: the events, for producers.",
		MaxAge:      c.EventsMaxAge,
		AllowDirect: true,
		Mirror: &jetstream.StreamSource{
			Name:     n.EventsStream(),
			External: &jetstream.ExternalStream{APIPrefix: n.WorkAPI()},
			// A mirror that made its consumer itself would need the right to make any
			// consumer.
			Consumer: &jetstream.StreamConsumerSource{Name: jetpost.ConsumerMirror, DeliverSubject: n.MirrorEvents()},
		},
	})
}

// mirrorConsumer is the consumer that feeds the mirror of the events.
func (c TopologyConfig) mirrorConsumer() consumerSpec {
	n := c.Names
	return consumerSpec{stream: n.EventsStream(), ConsumerConfig: jetstream.ConsumerConfig{
		Name: jetpost.ConsumerMirror, Durable: jetpost.ConsumerMirror,
		DeliverSubject: n.MirrorEvents(),
		AckPolicy:      jetstream.AckFlowControlPolicy,
		FlowControl:    true, IdleHeartbeat: mirrorHeartbeat,
		MaxDeliver: -1, MaxAckPending: mirrorAckPending,
	}}
}
