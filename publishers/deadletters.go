package publishers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// MaxDeadLetters is how many dead letters List returns if the filter has no Limit.
const MaxDeadLetters = 10_000

// Bounds of what a dead letter adds to the original message. Together with the short
// headers they stay below deadLetterRoom, for which the job stream leaves space.
const (
	maxDetailBytes  = 2 << 10
	maxErrorsBytes  = 8 << 10
	maxSubjectBytes = 1 << 10
)

// DeadLetters publishes what happened: events, dead letters (jobs that failed) and
// rejections (messages that were refused). A person can read a job there and publish it
// again.
//
// A dead letter copies no header of the original message. DeadLetters is safe for
// concurrent use.
type DeadLetters struct {
	js    jetstream.JetStream
	names jetpost.Names
}

// NewDeadLetters writes through js to the installation of that name.
func NewDeadLetters(js jetstream.JetStream, names jetpost.Names) *DeadLetters {
	return &DeadLetters{js: js, names: names}
}

// Event publishes an event on a subject that jetpost.Names made. If it is repeated, it
// is stored again: readers recognise repeats by EventID.
func (r *DeadLetters) Event(ctx context.Context, subject string, e jetpost.Event) error {
	msg := nats.NewMsg(subject)
	var err error
	if msg.Data, err = json.Marshal(e); err == nil {
		setTrace(ctx, msg)
		_, err = send(ctx, r.js, r.names.EventsStream(), msg)
	}
	if err != nil {
		return fmt.Errorf("publish event %s: %w", subject, err)
	}
	return nil
}

// Told is an event and the subject that jetpost.Names made for it.
type Told struct {
	Subject string
	Event   jetpost.Event
	Trace   string // the span that it belongs to, as W3C's traceparent; "" for none
}

// Events publishes many events in their order. It does not wait for the answers: result
// does, and returns the error of each. What is published after Events comes behind them.
func (r *DeadLetters) Events(ctx context.Context, events []Told) (result func() []error) {
	msgs := make([]*nats.Msg, len(events))
	for i, told := range events {
		data, err := json.Marshal(told.Event)
		if err != nil { // an Event holds nothing that JSON cannot encode
			return func() []error {
				return slices.Repeat([]error{fmt.Errorf("publish event %s: %w", told.Subject, err)}, len(events))
			}
		}
		msgs[i] = nats.NewMsg(told.Subject)
		msgs[i].Data = data
		set(msgs[i].Header, HeaderTrace, told.Trace)
	}
	sent := begin(r.js, msgs)
	return func() []error { return sent.wait(ctx, r.names.EventsStream()) }
}

// Failed stores the dead letter of a failed request, with the body that it came with.
// It replaces an earlier dead letter of the same request.
func (r *DeadLetters) Failed(ctx context.Context, status jetpost.RequestStatus, body []byte) error {
	msg := nats.NewMsg(r.names.PublishFailed(status.Account, status.ID))
	msg.Data = body
	if status.Reason != nil {
		setReason(msg.Header, *status.Reason)
	}
	set(msg.Header, jetpost.HeaderAccount, status.Account)
	set(msg.Header, jetpost.HeaderID, status.ID)
	set(msg.Header, jetpost.HeaderPosted, fmt.Sprintf("%d/%d", status.Posted, status.Total))
	set(msg.Header, jetpost.HeaderAttempts, strconv.Itoa(status.Attempts))
	setTime(msg.Header, jetpost.HeaderAccepted, status.AcceptedAt)
	setTime(msg.Header, jetpost.HeaderFailed, status.UpdatedAt)
	setTrace(ctx, msg)
	if _, err := send(ctx, r.js, r.names.FailedStream(), msg); err != nil {
		return fmt.Errorf("store dead letter of request %s of account %s: %w", status.ID, status.Account, err)
	}
	return nil
}

// Refused stores the rejection of a message that never became a request, with the
// subject that its producer published it onto. A repeat replaces it. A list of mistakes
// that is too long for a header loses its end.
func (r *DeadLetters) Refused(ctx context.Context, refusal jetpost.Refusal, subject string, body []byte) error {
	msg := nats.NewMsg(r.names.PublishRefused(refusal.Account, strconv.FormatUint(refusal.Sequence, 10)))
	msg.Data = body
	setReason(msg.Header, jetpost.Reason{Code: refusal.Code, Detail: describe(refusal.Problems)})
	set(msg.Header, jetpost.HeaderAccount, refusal.Account)
	set(msg.Header, jetpost.HeaderID, refusal.ID)
	set(msg.Header, jetpost.HeaderErrors, encodeProblems(refusal.Problems))
	setTime(msg.Header, jetpost.HeaderAccepted, refusal.Stored)
	setTime(msg.Header, jetpost.HeaderFailed, time.Now())
	set(msg.Header, jetpost.HeaderSubject, oneLine(subject, maxSubjectBytes))
	setTrace(ctx, msg)
	if _, err := send(ctx, r.js, r.names.FailedStream(), msg); err != nil {
		return fmt.Errorf("store rejection of message %d: %w", refusal.Sequence, err)
	}
	return nil
}

// RefreshFailed stores an account's last refresh failure.
func (r *DeadLetters) RefreshFailed(ctx context.Context, account string, reason jetpost.Reason) error {
	msg := nats.NewMsg(r.names.RefreshFailed(account))
	setReason(msg.Header, reason)
	set(msg.Header, jetpost.HeaderAccount, account)
	setTime(msg.Header, jetpost.HeaderFailed, time.Now())
	if _, err := send(ctx, r.js, r.names.FailedStream(), msg); err != nil {
		return fmt.Errorf("store failed refresh of account %s: %w", account, err)
	}
	return nil
}

// DeadLetter is a job that failed, or the rejection of a message.
type DeadLetter struct {
	Subject  string
	Sequence uint64 // its place in the failed stream
	Time     time.Time
	// Refused is true for a rejection.
	Refused bool
	Account string // empty if it could not be read
	ID      string // empty if it could not be read
	Code    jetpost.Code
	Detail  string
	// Problems of a rejected message.
	Problems []jetpost.Problem
	// Posted is "2/5": posts live of all, of a failed request.
	Posted   string
	Attempts int
	Accepted time.Time // when the request was accepted, or the message stored
	Failed   time.Time
	// Origin is the subject of a rejected message.
	Origin string
	Body   []byte // as the producer sent it
}

// DeadLetterFilter selects dead letters and rejections; zero fields match everything.
type DeadLetterFilter struct {
	Account string
	ID      string
	Code    jetpost.Code
	Since   time.Time // stored at or after
	Limit   int       // the oldest ones, at most this many; 0 means MaxDeadLetters
}

// List reads dead letters and rejections, oldest first.
func (r *DeadLetters) List(ctx context.Context, f DeadLetterFilter) ([]DeadLetter, error) {
	stream, err := r.stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	f.Limit = cmp.Or(f.Limit, MaxDeadLetters)
	account, id := cmp.Or(f.Account, "*"), cmp.Or(f.ID, "*")
	var deadLetters []DeadLetter
	// The subject of a rejection has no id, so all of its account are read.
	for _, subject := range []string{r.names.PublishFailed(account, id), r.names.PublishRefused(account, "*")} {
		found, err := r.read(ctx, stream, subject, f)
		if err != nil {
			return nil, fmt.Errorf("list records on %s: %w", subject, err)
		}
		deadLetters = append(deadLetters, found...)
	}
	slices.SortFunc(deadLetters, func(a, b DeadLetter) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return deadLetters[:min(len(deadLetters), f.Limit)], nil
}

// read goes from one message to the next by sequence, which needs no consumer on the
// server and cannot miss the end.
func (r *DeadLetters) read(ctx context.Context, stream jetstream.Stream, subject string, f DeadLetterFilter) ([]DeadLetter, error) {
	var deadLetters []DeadLetter
	for sequence := uint64(1); len(deadLetters) < f.Limit; {
		msg, err := ask(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
			return stream.GetMsg(ctx, sequence, jetstream.WithGetMsgSubject(subject))
		})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return nil, err
		}
		sequence = msg.Sequence + 1
		if deadLetter := r.decode(msg); f.picks(deadLetter) {
			deadLetters = append(deadLetters, deadLetter)
		}
	}
	return deadLetters, nil
}

func (f DeadLetterFilter) picks(r DeadLetter) bool {
	return (f.Account == "" || f.Account == r.Account) &&
		(f.ID == "" || f.ID == r.ID) &&
		(f.Code == "" || f.Code == r.Code) &&
		!r.Time.Before(f.Since)
}

// decode reads a dead letter. It leaves out headers that have another form than ours.
func (r *DeadLetters) decode(msg *jetstream.RawStreamMsg) DeadLetter {
	h := msg.Header
	deadLetter := DeadLetter{
		Subject:  msg.Subject,
		Sequence: msg.Sequence,
		Time:     msg.Time,
		Refused:  strings.HasPrefix(r.names.Trim(msg.Subject), "publish.refused."),
		Account:  h.Get(jetpost.HeaderAccount),
		ID:       h.Get(jetpost.HeaderID),
		Code:     jetpost.Code(h.Get(jetpost.HeaderCode)),
		Detail:   h.Get(jetpost.HeaderDetail),
		Posted:   h.Get(jetpost.HeaderPosted),
		Accepted: getTime(h, jetpost.HeaderAccepted),
		Failed:   getTime(h, jetpost.HeaderFailed),
		Origin:   h.Get(jetpost.HeaderSubject),
		Body:     msg.Data,
	}
	if n, err := strconv.Atoi(h.Get(jetpost.HeaderAttempts)); err == nil {
		deadLetter.Attempts = n
	}
	var problems []jetpost.Problem
	if json.Unmarshal([]byte(h.Get(jetpost.HeaderErrors)), &problems) == nil {
		deadLetter.Problems = problems
	}
	return deadLetter
}

// Drop deletes a dead letter, and only the one that was listed: a newer one of the same
// request stays. It is no error if the dead letter is gone.
func (r *DeadLetters) Drop(ctx context.Context, deadLetter DeadLetter) error {
	stream, err := r.stream(ctx)
	if err != nil {
		return fmt.Errorf("drop dead letter: %w", err)
	}
	_, err = ask(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, stream.DeleteMsg(ctx, deadLetter.Sequence)
	})
	if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
		// The server gives the same answer for a message that is gone.
		_, again := ask(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
			return stream.GetMsg(ctx, deadLetter.Sequence)
		})
		if errors.Is(again, jetstream.ErrMsgNotFound) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("drop dead letter %s: %w", deadLetter.Subject, err)
	}
	return nil
}

func (r *DeadLetters) stream(ctx context.Context) (jetstream.Stream, error) {
	return ask(ctx, func(ctx context.Context) (jetstream.Stream, error) {
		return r.js.Stream(ctx, r.names.FailedStream())
	})
}

// set leaves out a header without a value.
func set(h nats.Header, name, value string) {
	if value != "" {
		h.Set(name, value)
	}
}

func setReason(h nats.Header, reason jetpost.Reason) {
	set(h, jetpost.HeaderCode, string(reason.Code))
	set(h, jetpost.HeaderDetail, oneLine(reason.Detail, maxDetailBytes))
}

func setTime(h nats.Header, name string, t time.Time) {
	if !t.IsZero() {
		h.Set(name, t.UTC().Format(time.RFC3339Nano))
	}
}

func getTime(h nats.Header, name string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, h.Get(name))
	if err != nil {
		return time.Time{}
	}
	return t
}

func describe(problems []jetpost.Problem) string {
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = strings.TrimSpace(p.Pointer + " " + p.Message)
	}
	return strings.Join(lines, "; ")
}

// encodeProblems returns a JSON list of as many problems as fit.
func encodeProblems(problems []jetpost.Problem) string {
	var fit []json.RawMessage
	size := len("[]")
	for _, p := range problems {
		b, err := json.Marshal(p)
		if size += len(b) + len(","); err != nil || size > maxErrorsBytes {
			break
		}
		fit = append(fit, b)
	}
	list, err := json.Marshal(fit)
	if err != nil || len(fit) == 0 {
		return ""
	}
	return string(list)
}

// oneLine returns text that fits a header: white space folded, cut at a character.
func oneLine(s string, maxBytes int) string {
	s = strings.ToValidUTF8(strings.Join(strings.Fields(s), " "), "\uFFFD")
	if len(s) <= maxBytes {
		return s
	}
	const ellipsis = "…"
	return strings.ToValidUTF8(s[:maxBytes-len(ellipsis)], "") + ellipsis
}
