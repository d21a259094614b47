package publishers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// MediaObject is what lies in the media object store, as it stood at one moment.
type MediaObject struct {
	// Name is "" of an upload that broke off: chunks that no object has.
	Name     string
	Size     uint64 // bytes
	StoredAt time.Time

	nuid     string
	subject  string // of its metadata
	sequence uint64
}

// MediaObjects lists and removes objects of the media object store. It asks message by
// message, as [MediaStore] does, and needs no consumer.
type MediaObjects struct {
	stream jetstream.Stream
	bucket string
}

// OpenMediaObjects finds the media object store, wherever it lies.
func OpenMediaObjects(ctx context.Context, js jetstream.JetStream, names jetpost.Names) (*MediaObjects, error) {
	objects, err := MediaStore(ctx, js, names)
	if err != nil {
		return nil, err
	}
	return &MediaObjects{stream: objects.(*mediaStore).stream, bucket: names.MediaBucket()}, nil
}

func (o *MediaObjects) metadata() string           { return "$O." + o.bucket + ".M.>" }
func (o *MediaObjects) chunks(nuid string) string  { return "$O." + o.bucket + ".C." + nuid }
func (o *MediaObjects) chunkOf(subj string) string { return strings.TrimPrefix(subj, o.chunks("")) }
func (o *MediaObjects) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// List returns all objects, those that were deleted and left their metadata, and uploads
// that broke off.
func (o *MediaObjects) List(ctx context.Context) ([]MediaObject, error) {
	// The chunks first: an upload that ends meanwhile has its metadata then.
	info, err := ask(ctx, func(ctx context.Context) (*jetstream.StreamInfo, error) {
		return o.stream.Info(ctx, jetstream.WithSubjectFilter(o.chunks(">")))
	})
	if err != nil {
		return nil, o.wrap("list media objects", err)
	}
	var all []MediaObject
	for sequence := uint64(1); ; {
		msg, err := o.next(ctx, sequence, o.metadata())
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return nil, o.wrap("list media objects", err)
		}
		sequence = msg.Sequence + 1
		var object jetstream.ObjectInfo
		if json.Unmarshal(msg.Data, &object) != nil {
			continue // nobody knows what it is
		}
		delete(info.State.Subjects, o.chunks(object.NUID))
		all = append(all, MediaObject{Name: object.Name, Size: object.Size, StoredAt: msg.Time, nuid: object.NUID, subject: msg.Subject, sequence: msg.Sequence})
	}
	for subject := range info.State.Subjects {
		msg, err := ask(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
			return o.stream.GetLastMsgForSubject(ctx, subject)
		})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, o.wrap("list media objects", err)
		}
		all = append(all, MediaObject{Size: info.State.Subjects[subject] * uint64(len(msg.Data)), StoredAt: msg.Time, nuid: o.chunkOf(subject)})
	}
	return all, nil
}

func (o *MediaObjects) next(ctx context.Context, sequence uint64, subject string) (*jetstream.RawStreamMsg, error) {
	return ask(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
		return o.stream.GetMsg(ctx, sequence, jetstream.WithGetMsgSubject(subject))
	})
}

// Remove removes an object that was listed, and nothing that has its name by now.
func (o *MediaObjects) Remove(ctx context.Context, object MediaObject) error {
	// Its metadata first, since chunks that are left are removed as those of an upload
	// that broke off.
	if object.subject != "" {
		err := o.purge(ctx, jetstream.WithPurgeSubject(object.subject), jetstream.WithPurgeSequence(object.sequence+1))
		if err != nil {
			return o.wrap("remove media object "+object.Name, err)
		}
	}
	return o.wrap("remove media object "+object.Name, o.purge(ctx, jetstream.WithPurgeSubject(o.chunks(object.nuid))))
}

func (o *MediaObjects) purge(ctx context.Context, options ...jetstream.StreamPurgeOpt) error {
	_, err := ask(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, o.stream.Purge(ctx, options...) })
	return err
}
