package publishers

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// answerWithin bounds each call to NATS. A replicated stream may have to elect
// a leader before it answers, which takes some 5 s after a server is lost.
const answerWithin = 10 * time.Second

// Error codes of the server that the client library has no name for.
const (
	codeStoreFailed       jetstream.ErrorCode = 10077 // a stream with DiscardNew is full
	codeStorageExceeded   jetstream.ErrorCode = 10047 // the account's or server's storage is used up
	codeResourcesExceeded jetstream.ErrorCode = 10023 // the server has no room left
	codeSubjectsOverlap   jetstream.ErrorCode = 10065 // another stream has the subjects
)

// Hint is what an operator can try about an error of this or any other package with
// hints, or "" if there is nothing better than its message.
func Hint(err error) string {
	if e, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		return e.Hint()
	}
	return ""
}

// ServerVersionError: the NATS server is too old, or does not report its version.
type ServerVersionError struct {
	Got  string // as the server gave it
	Want string // the oldest version that is new enough
}

func (e *ServerVersionError) Error() string {
	return fmt.Sprintf("NATS server is version %q, need %s or newer", e.Got, e.Want)
}

// Hint implements [Hint].
func (e *ServerVersionError) Hint() string {
	return "upgrade every nats-server of the cluster to " + e.Want + " or newer"
}

// NoJetStreamError: the server or the account has no JetStream.
type NoJetStreamError struct{ Err error }

func (e *NoJetStreamError) Error() string { return "JetStream is not available: " + e.Err.Error() }
func (e *NoJetStreamError) Unwrap() error { return e.Err }

// Hint implements [Hint].
func (e *NoJetStreamError) Hint() string {
	return "start nats-server with --jetstream, and enable JetStream for the account that this user belongs to"
}

// NoAnswerError: NATS did not answer in time. A client cannot distinguish this from a
// denied permission, since the server only drops what it denies.
type NoAnswerError struct{ Err error }

func (e *NoAnswerError) Error() string { return "NATS did not answer in time: " + e.Err.Error() }
func (e *NoAnswerError) Unwrap() error { return e.Err }

// Hint implements [Hint].
func (e *NoAnswerError) Hint() string {
	return "check that NATS can be reached and its cluster has a leader; a user without permission gets no answer either: " +
		`look for "Permissions Violation" in the server's log`
}

// NotSetUpError: something that Setup makes is missing or different.
type NotSetUpError struct {
	Missing []string // one entry for each thing
	Err     error    // NATS' own error, if there is one
}

func (e *NotSetUpError) Error() string {
	return "NATS is not set up for jetpost: " + strings.Join(e.Missing, "; ")
}
func (e *NotSetUpError) Unwrap() error { return e.Err }

// Hint implements [Hint].
func (e *NotSetUpError) Hint() string { return "run: jetpost setup" }

// ForeignStreamError: jetpost did not make the existing stream of that name. It stayed
// untouched.
type ForeignStreamError struct{ Stream string }

func (e *ForeignStreamError) Error() string {
	return fmt.Sprintf("stream %s was not made by jetpost", e.Stream)
}

// Hint implements [Hint].
func (e *ForeignStreamError) Hint() string {
	return "set JETPOST_PREFIX to give this installation names of its own, or remove the stream if nobody needs it"
}

// SubjectsTakenError: another stream already has the subjects of our stream, which was
// not made.
type SubjectsTakenError struct {
	Stream string
	Err    error
}

func (e *SubjectsTakenError) Error() string {
	return fmt.Sprintf("another stream takes subjects of stream %s: %v", e.Stream, e.Err)
}
func (e *SubjectsTakenError) Unwrap() error { return e.Err }

// Hint implements [Hint].
func (e *SubjectsTakenError) Hint() string {
	return "set JETPOST_PREFIX to give this installation subjects of its own"
}

// StorageError: NATS cannot reserve the room of a stream.
type StorageError struct {
	Stream   string
	Bytes    int64  // of the stream on each server
	Promised uint64 // bytes reserved for the account's other streams
	Err      error
}

func (e *StorageError) Error() string {
	return fmt.Sprintf("NATS has no room of %d MiB for stream %s beside the %d MiB that it has promised to others: %v", e.Bytes>>20, e.Stream, e.Promised>>20, e.Err)
}
func (e *StorageError) Unwrap() error { return e.Err }

// Hint implements [Hint].
func (e *StorageError) Hint() string {
	return "make room on the disk of nats-server, raise its max_file_store or the account's limit, or ask for less with --jobs-mib and --media-mib"
}

// OtherLedgerError: the stream was set up for another database. It stayed untouched.
type OtherLedgerError struct{ Stream, Want, Got string }

func (e *OtherLedgerError) Error() string {
	return fmt.Sprintf("this NATS belongs to another database: stream %s has ledger %s, the database is %s", e.Stream, e.Got, e.Want)
}

// Hint implements [Hint].
func (e *OtherLedgerError) Hint() string {
	return "check DATABASE_URL and NATS_URL; to run two installations on one NATS, give each a JETPOST_PREFIX"
}

// QueueFullError: the stream has no room. Nothing was stored; the caller may
// try again later.
type QueueFullError struct {
	Stream string
	Err    error
}

func (e *QueueFullError) Error() string { return fmt.Sprintf("stream %s is full: %v", e.Stream, e.Err) }
func (e *QueueFullError) Unwrap() error { return e.Err }

// Hint implements [Hint].
func (e *QueueFullError) Hint() string {
	return "check that workers are running and take jobs, or give the job stream more bytes with jetpost setup"
}

// TooLargeError: the message is larger than the stream or the server takes.
// Nothing was stored.
type TooLargeError struct {
	Bytes int // of the body
	Err   error
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("message of %d bytes is too large: %v", e.Bytes, e.Err)
}
func (e *TooLargeError) Unwrap() error { return e.Err }

// Hint implements [Hint].
func (e *TooLargeError) Hint() string {
	return "leave media out of the message: name a URL, or an object in the media store; or raise max_payload of nats-server and run jetpost setup"
}

// ask bounds one call to NATS and explains its error.
func ask[T any](ctx context.Context, call func(context.Context) (T, error)) (T, error) {
	bounded, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	v, err := call(bounded)
	return v, explain(err)
}

// send publishes a message and waits until the stream has stored it.
func send(ctx context.Context, js jetstream.JetStream, stream string, msg *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ack, err := ask(ctx, func(ctx context.Context) (*jetstream.PubAck, error) {
		return js.PublishMsg(ctx, msg, opts...)
	})
	if err != nil {
		return nil, refusal(err, stream, msg)
	}
	if ack.Stream != stream { // a stream that no part of jetpost reads
		return nil, &ForeignStreamError{Stream: ack.Stream}
	}
	return ack, nil
}

// sendAll publishes messages in their order without waiting for the answer to one
// before it sends the next, and returns the error of each.
func sendAll(ctx context.Context, js jetstream.JetStream, stream string, msgs []*nats.Msg) []error {
	return begin(js, msgs).wait(ctx, stream)
}

// sending are messages on their way to a stream, in their order.
type sending struct {
	msgs    []*nats.Msg
	futures []jetstream.PubAckFuture
	errs    []error
}

// begin hands messages to the connection. Whatever it is given after that comes behind them.
func begin(js jetstream.JetStream, msgs []*nats.Msg) *sending {
	s := &sending{msgs: msgs, futures: make([]jetstream.PubAckFuture, len(msgs)), errs: make([]error, len(msgs))}
	for i, msg := range msgs {
		var err error
		if s.futures[i], err = js.PublishMsgAsync(msg); err != nil {
			s.errs[i] = explain(err)
		}
	}
	return s
}

// wait waits for the answers, and returns the error of each message.
func (s *sending) wait(ctx context.Context, stream string) []error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	for i, future := range s.futures {
		if future == nil {
			continue
		}
		select {
		case ack := <-future.Ok():
			if ack.Stream != stream {
				s.errs[i] = &ForeignStreamError{Stream: ack.Stream}
			}
		case err := <-future.Err():
			s.errs[i] = refusal(err, stream, s.msgs[i])
		case <-ctx.Done():
			s.errs[i] = explain(ctx.Err())
		}
	}
	return s.errs
}

// refusal explains why a stream did not take a message.
func refusal(err error, stream string, msg *nats.Msg) error {
	switch {
	case hasCode(err, codeStoreFailed, codeStorageExceeded, codeResourcesExceeded):
		return &QueueFullError{Stream: stream, Err: err}
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrNoResponders):
		return &NotSetUpError{Missing: []string{"no stream takes " + msg.Subject}, Err: err}
	case errors.Is(err, jetstream.ErrStreamMessageExceedsMaximum), errors.Is(err, nats.ErrMaxPayload):
		return &TooLargeError{Bytes: len(msg.Data), Err: err}
	}
	return explain(err)
}

// explain gives a type of its own to each error that an operator can act on.
func explain(err error) error {
	switch {
	case Hint(err) != "": // by a call within this one
		return err
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return &NoJetStreamError{Err: err}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return &NoAnswerError{Err: err}
	case errors.Is(err, jetstream.ErrBucketNotFound), errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrConsumerNotFound):
		return &NotSetUpError{Missing: []string{strings.TrimPrefix(err.Error(), "nats: ")}, Err: err}
	}
	return err
}

// hasCode reports whether the server refused with one of the codes.
func hasCode(err error, codes ...jetstream.ErrorCode) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return false
	}
	for _, code := range codes {
		if api.ErrorCode == code {
			return true
		}
	}
	return false
}

// lostRace reports whether a compare-and-set found a newer message than it expected.
// Replicated streams answer with a code of their own.
func lostRace(err error) bool {
	return errors.Is(err, jetstream.ErrKeyRevisionMismatch) || errors.Is(err, jetstream.ErrKeyExists) ||
		hasCode(err, jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// foundSequence is the sequence of the message that a lost race has found; 0 if the
// server does not report it.
func foundSequence(err error) uint64 {
	api, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return 0
	}
	_, number, _ := strings.Cut(api.Description, "wrong last sequence: ")
	sequence, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return 0
	}
	return sequence
}
