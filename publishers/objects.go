package publishers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
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
	js     jetstream.JetStream
	stream jetstream.Stream
	bucket string
}

// OpenMediaObjects finds the media object store, wherever it lies.
func OpenMediaObjects(ctx context.Context, js jetstream.JetStream, names jetpost.Names) (*MediaObjects, error) {
	objects, err := MediaStore(ctx, js, names)
	if err != nil {
		return nil, err
	}
	return &MediaObjects{js: js, stream: objects.(*mediaStore).stream, bucket: names.MediaBucket()}, nil
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

// MediaPart is a part of a media file that is stored part by part, each by whoever is asked.
type MediaPart struct {
	// Upload names the file's parts: no other file has them.
	Upload string
	Offset int // of the part in the file
	Data   []byte
	// Type is the file's, and told with its first part.
	Type string
}

// MediaPlace is how far a file is stored. It stands with each part, so that nobody has to
// remember it.
type MediaPlace struct {
	Bytes  int    `json:"bytes"`
	Chunks uint32 `json:"chunks"`
	Type   string `json:"type,omitempty"`
	// Digest is the SHA-256 of these bytes, as it goes on with the next ones.
	Digest []byte `json:"digest"`

	sequence uint64 // of the part in the stream
	last     []byte // the part
}

// Sum is the SHA-256 of what is stored.
func (p MediaPlace) Sum() ([]byte, error) {
	digest := sha256.New()
	if err := digest.(encoding.BinaryUnmarshaler).UnmarshalBinary(p.Digest); err != nil {
		return nil, fmt.Errorf("read digest of media: %w", err)
	}
	return digest.Sum(nil), nil
}

// then is the place after one more part.
func (p MediaPlace) then(part MediaPart) (MediaPlace, error) {
	digest := sha256.New()
	if p.Bytes > 0 {
		if err := digest.(encoding.BinaryUnmarshaler).UnmarshalBinary(p.Digest); err != nil {
			return p, fmt.Errorf("read digest of media: %w", err)
		}
	} else {
		p.Type = part.Type
	}
	digest.Write(part.Data)
	p.Bytes, p.Chunks = p.Bytes+len(part.Data), p.Chunks+1
	var err error
	p.Digest, err = digest.(encoding.BinaryMarshaler).MarshalBinary()
	return p, err
}

// PartError says that a part is not the one that comes next.
type PartError struct {
	Bytes int  // that are stored
	Other bool // the part is there, with other bytes
}

func (e *PartError) Error() string {
	if e.Other {
		return "this part of the file is stored, with other bytes"
	}
	return fmt.Sprintf("%d bytes of the file are stored, and the part does not begin there", e.Bytes)
}

const (
	// headerPlace holds a MediaPlace, as JSON.
	headerPlace = "Jetpost-Media"
	// placeTries bounds the looks at a file's place, placeEvery apart: a server of a cluster
	// may tell of one that is over.
	placeTries, placeEvery = 10, 30 * time.Millisecond
)

// PutPart stores the next part of a file. One that is stored already is left alone. It fails
// with *PartError.
func (o *MediaObjects) PutPart(ctx context.Context, part MediaPart) (place MediaPlace, err error) {
	for range placeTries {
		if place, err = o.place(ctx, part.Upload); err != nil {
			return place, o.wrap("store media", err)
		}
		begins := place.Bytes - len(place.last)
		switch {
		case place.Bytes > 0 && part.Offset == begins && bytes.Equal(part.Data, place.last):
			return place, nil
		case part.Offset < place.Bytes:
			return place, &PartError{Bytes: place.Bytes, Other: part.Offset == begins}
		case part.Offset == place.Bytes:
			next, err := o.store(ctx, place, part)
			if !hasCode(err, jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant) {
				return next, o.wrap("store media", err)
			}
		}
		select {
		case <-ctx.Done():
			return place, o.wrap("store media", explain(ctx.Err()))
		case <-time.After(placeEvery):
		}
	}
	return place, &PartError{Bytes: place.Bytes}
}

// place is how far a file is stored.
func (o *MediaObjects) place(ctx context.Context, upload string) (place MediaPlace, err error) {
	msg, err := ask(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
		return o.stream.GetLastMsgForSubject(ctx, o.chunks(upload))
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return place, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(msg.Header.Get(headerPlace)), &place)
	}
	if err != nil {
		return place, err
	}
	place.sequence, place.last = msg.Sequence, msg.Data
	return place, nil
}

// store adds a part behind a place, if nobody has done so since.
func (o *MediaObjects) store(ctx context.Context, place MediaPlace, part MediaPart) (MediaPlace, error) {
	next, err := place.then(part)
	if err != nil {
		return next, err
	}
	text, err := json.Marshal(next)
	if err != nil {
		return next, err
	}
	msg := nats.NewMsg(o.chunks(part.Upload))
	msg.Data = part.Data
	msg.Header.Set(headerPlace, string(text))
	_, err = send(ctx, o.js, "OBJ_"+o.bucket, msg, jetstream.WithExpectLastSequencePerSubject(place.sequence))
	return next, err
}

// Finish makes an object of a file whose parts are all stored. It may be done again.
func (o *MediaObjects) Finish(ctx context.Context, name, upload string, place MediaPlace) error {
	sum, err := place.Sum()
	if err != nil {
		return err
	}
	text, err := json.Marshal(jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{Name: name}, Bucket: o.bucket, NUID: upload, Size: uint64(place.Bytes), Chunks: place.Chunks,
		Digest: "SHA-256=" + base64.URLEncoding.EncodeToString(sum),
	})
	if err != nil {
		return err
	}
	msg := nats.NewMsg("$O." + o.bucket + ".M." + base64.URLEncoding.EncodeToString([]byte(name)))
	msg.Data = text
	msg.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	_, err = send(ctx, o.js, "OBJ_"+o.bucket, msg)
	return o.wrap("store media", err)
}
