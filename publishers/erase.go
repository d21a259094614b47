package publishers

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/jetpost/jetpost"
)

// EraseAccount deletes every message of an account from the streams, also from the mirror
// that producers read, and overwrites it in their files. see is called with the body of
// each job before that; an error of it ends the erasing. It returns how many messages it
// has deleted.
func EraseAccount(ctx context.Context, js jetstream.JetStream, names jetpost.Names, account string, see func(job []byte) error) (n int, err error) {
	mirror, err := findMirror(ctx, js, names)
	if err != nil {
		return 0, fmt.Errorf("erase messages of account %s: %w", account, err)
	}
	events := []string{names.AccountEvents(account), names.AccountEvents(account) + ".>"}
	type part struct {
		js       jetstream.JetStream
		stream   string
		jobs     bool
		subjects []string
	}
	parts := []part{
		{js, names.JobsStream(), true, []string{names.PublishIntake("*", account)}},
		{js, names.FailedStream(), true, []string{names.PublishFailed(account, "*"), names.PublishRefused(account, "*"), names.RefreshFailed(account)}},
		{js, names.LanesStream(), false, []string{names.PublishWake(account)}},
		{js, names.ScheduleStream(), false, []string{names.ScheduleWake(account), names.DuePublish(account)}},
		{js, names.EventsStream(), false, events},
	}
	if mirror != nil {
		parts = append(parts, part{mirror, names.EventsStream(), false, events})
	}
	for _, p := range parts {
		stream, err := ask(ctx, func(ctx context.Context) (jetstream.Stream, error) { return p.js.Stream(ctx, p.stream) })
		for _, subject := range p.subjects {
			var some int
			if err == nil {
				some, err = eraseSubject(ctx, stream, subject, func(job []byte) error {
					if !p.jobs {
						return nil
					}
					return see(job)
				})
			}
			n += some
		}
		if err != nil {
			return n, fmt.Errorf("erase messages of account %s from %s: %w", account, p.stream, err)
		}
	}
	return n, nil
}

// eraseSubject goes from one message to the next. A message that is gone meanwhile is no
// error.
func eraseSubject(ctx context.Context, stream jetstream.Stream, subject string, see func([]byte) error) (n int, err error) {
	for sequence := uint64(1); ; {
		msg, err := ask(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
			return stream.GetMsg(ctx, sequence, jetstream.WithGetMsgSubject(subject))
		})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return n, nil
		}
		if err == nil {
			sequence = msg.Sequence + 1
			err = see(msg.Data)
		}
		if err == nil {
			_, err = ask(ctx, func(ctx context.Context) (struct{}, error) {
				return struct{}{}, stream.SecureDeleteMsg(ctx, msg.Sequence)
			})
		}
		switch {
		case err == nil:
			n++
		case !errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful):
			return n, err
		}
	}
}
