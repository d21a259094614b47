package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/jetpost/jetpost"
)

const (
	// DefaultCalls is how many operations one worker carries out at once.
	DefaultCalls = 16
	// drainWithin is how long a worker that stops goes on with the operations that it has.
	drainWithin = 15 * time.Second
	// flushWithin is how long a service waits for the server to know of it.
	flushWithin = 10 * time.Second
	// stopWithin is how long a service that stops waits for the last calls that it gets.
	stopWithin = 2 * time.Second
)

// Service serves the operations of a Control over NATS. Of all workers one is asked.
type Service struct {
	Control *Control
	Conn    *nats.Conn
	// Worker and Version tell this one from the others.
	Worker, Version string
	Calls           int // DefaultCalls where zero
	Log             *slog.Logger
	// Started is called, if set, once the service answers, or after flushWithin where NATS does
	// not confirm that.
	Started func()

	slots chan struct{}
	// ctx ends what is under way once nobody waits for it any more.
	ctx context.Context

	mu    sync.Mutex
	stats map[jetpost.Operation]*callStats
}

// callStats are told with the service's own, which know only how long it took to begin.
type callStats struct {
	Answered   int                       `json:"answered"`
	Errors     map[jetpost.ErrorCode]int `json:"errors,omitempty"`
	Processing time.Duration             `json:"processing_ns"`
}

// handler carries out one operation on an account, which is empty for any.
type handler func(ctx context.Context, account string, body []byte) (any, error)

// on makes a handler of a method that takes an account and a body.
func on[In, Out any](do func(context.Context, string, In) (Out, error)) handler {
	return func(ctx context.Context, account string, body []byte) (any, error) {
		in, err := jetpost.DecodeCall[In](body)
		if err != nil {
			return nil, err
		}
		return do(ctx, account, in)
	}
}

// whole makes a handler of a method on the whole installation.
func whole[In, Out any](do func(context.Context, In) (Out, error)) handler {
	return on(func(ctx context.Context, _ string, in In) (Out, error) { return do(ctx, in) })
}

// look makes a handler of a method that needs to be told nothing.
func look[Out any](do func(context.Context) (Out, error)) handler {
	return on(func(ctx context.Context, _ string, _ jetpost.Empty) (Out, error) { return do(ctx) })
}

// request makes a handler of a method that takes a request of the contract.
func request[Out any](do func(context.Context, string, jetpost.Request) (Out, error)) handler {
	return func(ctx context.Context, account string, body []byte) (any, error) {
		r, err := jetpost.Decode(account, body)
		if err != nil {
			return nil, err
		}
		return do(ctx, account, r)
	}
}

// handlers has one for each operation.
func (c *Control) handlers() map[jetpost.Operation]handler {
	return map[jetpost.Operation]handler{
		jetpost.OpRequestPublish: request(c.RequestPublish),
		jetpost.OpRequestCheck:   request(c.RequestCheck),
		jetpost.OpRequestGet:     on(c.RequestGet),
		jetpost.OpRequestList:    on(c.RequestList),
		jetpost.OpRequestCount: on(func(ctx context.Context, account string, _ jetpost.Empty) (jetpost.RequestCounts, error) {
			return c.RequestCount(ctx, account)
		}),
		jetpost.OpRequestCalendar:   on(c.RequestCalendar),
		jetpost.OpRequestHistory:    on(c.RequestHistory),
		jetpost.OpRequestCancel:     on(c.RequestCancel),
		jetpost.OpRequestCancelMany: on(c.RequestCancelMany),
		jetpost.OpRequestReschedule: on(c.RequestReschedule),
		jetpost.OpRequestResolve:    on(c.RequestResolve),
		jetpost.OpRequestReconcile:  on(c.RequestReconcile),
		jetpost.OpRequestReplay:     on(c.RequestReplay),
		jetpost.OpRequestUnpublish:  on(c.RequestUnpublish),
		jetpost.OpAccountList:       whole(c.AccountList),
		jetpost.OpAccountGet: on(func(ctx context.Context, account string, _ jetpost.Empty) (jetpost.AccountReport, error) {
			return c.AccountGet(ctx, account)
		}),
		jetpost.OpAccountPause:      on(c.AccountPause),
		jetpost.OpAccountResume:     on(c.AccountResume),
		jetpost.OpAccountRefresh:    on(c.AccountRefresh),
		jetpost.OpAccountDisconnect: on(c.AccountDisconnect),
		jetpost.OpAccountRename:     on(c.AccountRename),
		jetpost.OpAccountRemove:     on(c.AccountRemove),
		jetpost.OpAccountLink:       on(c.AccountLink),
		jetpost.OpAccountConsent:    on(c.AccountConsent),
		jetpost.OpAccountConnect:    on(c.AccountConnect),
		jetpost.OpAccountLimit:      on(c.AccountLimit),
		jetpost.OpAccountVerify:     on(c.AccountVerify),
		jetpost.OpLinkGet:           whole(c.LinkGet),
		jetpost.OpAccountErase:      on(c.AccountErase),
		jetpost.OpAppStatus:         look(c.AppStatus),
		jetpost.OpAppPause:          whole(c.AppPause),
		jetpost.OpAppResume:         whole(c.AppResume),
		jetpost.OpAppLimits:         whole(c.AppLimits),
		jetpost.OpAppForecast:       whole(c.AppForecast),
		jetpost.OpAppSeries:         look(c.AppSeries),
		jetpost.OpAppPrune:          whole(c.AppPrune),
		jetpost.OpMediaPut:          on(c.MediaPut),
		jetpost.OpDeadLettersList:   on(c.DeadLettersList),
		jetpost.OpDeadLettersGroups: look(c.DeadLettersGroups),
		jetpost.OpWorkersList:       look(c.WorkersList),
		jetpost.OpTokenCreate:       whole(c.TokenCreate),
		jetpost.OpTokenList:         whole(c.TokenList),
		jetpost.OpTokenRevoke:       whole(c.TokenRevoke),
		jetpost.OpTokenCheck:        whole(c.TokenCheck),
		jetpost.OpUserAdd:           whole(c.UserAdd),
		jetpost.OpUserList:          whole(c.UserList),
		jetpost.OpUserGet:           whole(c.UserGet),
		jetpost.OpUserSet:           whole(c.UserSet),
		jetpost.OpUserRemove:        whole(c.UserRemove),
		jetpost.OpSessionBegin:      whole(c.SessionBegin),
		jetpost.OpSessionCheck:      whole(c.SessionCheck),
		jetpost.OpSessionEnd:        whole(c.SessionEnd),
		jetpost.OpAuditList:         whole(c.AuditList),
		jetpost.OpHookCreate:        on(c.HookCreate),
		jetpost.OpHookList:          on(c.HookList),
		jetpost.OpHookTest:          on(c.HookTest),
		jetpost.OpHookEnable:        on(c.HookEnable),
		jetpost.OpHookRemove:        on(c.HookRemove),
	}
}

// operationKey is the metadata key of an endpoint's operation.
const operationKey = "operation"

// told are the stats of an endpoint's operation.
func (s *Service) told(e *micro.Endpoint) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.stats[jetpost.Operation(e.Metadata[operationKey])]
	if of == nil {
		return callStats{}
	}
	is := *of
	is.Errors = maps.Clone(of.Errors)
	return is
}

// count adds an answer to the stats.
func (s *Service) count(o jetpost.Operation, code jetpost.ErrorCode, began time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.stats[o]
	if of == nil {
		of = &callStats{Errors: map[jetpost.ErrorCode]int{}}
		s.stats[o] = of
	}
	of.Answered++
	of.Processing += time.Since(began)
	if code != "" {
		of.Errors[code]++
	}
}

// semantic is a version as NATS's services have it.
var semantic = regexp.MustCompile(`^v?(\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?)`)

// Run serves until ctx ends, and then carries out what it has begun.
func (s *Service) Run(ctx context.Context) error {
	var stopCalls context.CancelFunc
	s.ctx, stopCalls = context.WithCancel(context.WithoutCancel(ctx))
	calls := s.Calls
	if calls == 0 {
		calls = DefaultCalls
	}
	s.slots, s.stats = make(chan struct{}, calls), map[jetpost.Operation]*callStats{}
	version := "0.0.0"
	if m := semantic.FindStringSubmatch(s.Version); m != nil {
		version = m[1]
	}
	names := s.Control.Names
	service, err := micro.AddService(s.Conn, micro.Config{
		Name: names.Service(), Version: version, Description: "jetpost: looks at requests, accounts and the installation, and changes them",
		QueueGroup: names.Service(), Metadata: map[string]string{"worker": s.Worker, "jetpost": s.Version}, StatsHandler: s.told,
	})
	if err != nil {
		stopCalls()
		return fmt.Errorf("serve operations: %w", err)
	}
	if err := s.add(service); err != nil {
		stopCalls()
		return errors.Join(err, service.Stop())
	}
	if err := s.flush(ctx, flushWithin); err != nil && ctx.Err() == nil {
		s.Log.Warn("service.unconfirmed", "error", err) // a connection that comes back subscribes by itself
	}
	if s.Started != nil && ctx.Err() == nil {
		s.Started()
	}
	<-ctx.Done()
	// Calls that the server has sent before it knew are carried out, too.
	time.AfterFunc(drainWithin, stopCalls)
	err = service.Stop()
	if s.Conn.IsConnected() {
		if err := s.flush(s.ctx, stopWithin); err != nil {
			s.Log.Debug("service.unconfirmed", "error", err)
		}
	}
	for range cap(s.slots) { // until no call has one
		s.slots <- struct{}{}
	}
	for range cap(s.slots) {
		<-s.slots
	}
	return err
}

// flush waits until the server has got what was sent, and this process what the server had sent
// before that.
func (s *Service) flush(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return s.Conn.FlushWithContext(ctx) //nolint:wrapcheck // the caller logs it
}

// add serves each operation: with an account as the last token, without one, or both.
func (s *Service) add(service micro.Service) error {
	handlers := s.Control.handlers()
	for _, info := range jetpost.Operations() {
		name := strings.ReplaceAll(string(info.Operation), ".", "-")
		do := handlers[info.Operation]
		for _, account := range []string{"", "*"} {
			if account == "" && info.Account == jetpost.OfOne || account != "" && info.Account == jetpost.OfNone {
				continue
			}
			subject := s.Control.Names.API(info.Operation, account)
			err := service.AddEndpoint(name, micro.HandlerFunc(func(r micro.Request) { s.serve(r, info, do) }),
				micro.WithEndpointSubject(subject), micro.WithEndpointMetadata(map[string]string{operationKey: string(info.Operation)}))
			if err != nil {
				return fmt.Errorf("serve %s: %w", subject, err)
			}
			name += "-account"
		}
	}
	return nil
}

// serve has an operation carried out. While no slot is left it waits, and behind it what
// comes for the same operation.
func (s *Service) serve(r micro.Request, info jetpost.OperationInfo, do handler) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(s.ctx, info.Within)
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		cancel()
		s.answer(r, info, nil, &Error{Code: jetpost.ErrUnavailable, Err: errors.New("the worker carries out too many operations"), Help: "try again in a moment"})
		return
	}
	go func() {
		defer cancel()
		defer func() { <-s.slots }()
		account := strings.TrimPrefix(strings.TrimPrefix(r.Subject(), s.Control.Names.API(info.Operation, "")), ".")
		var out any
		err := checkAccount(account)
		if err == nil {
			out, err = do(jetpost.WithActor(ctx, actorOf(r.Headers())), account, r.Data())
		}
		s.count(info.Operation, s.answer(r, info, out, err), began)
	}()
}

// checkAccount refuses a subject's last token that is no account.
func checkAccount(account string) error {
	if account == "" {
		return nil
	}
	if err := jetpost.CheckAccount(account); err != nil {
		return &Error{Code: jetpost.ErrInvalid, Err: err}
	}
	return nil
}

// answer answers, and returns the code where the answer is an error. It does so by a
// message of its own: a micro.Request is the service's again once its handler has begun.
func (s *Service) answer(r micro.Request, info jetpost.OperationInfo, out any, err error) (code jetpost.ErrorCode) {
	msg := &nats.Msg{Subject: r.Reply()}
	if err == nil {
		msg.Data, err = json.Marshal(out)
	}
	if most := s.Conn.MaxPayload(); err == nil && int64(len(msg.Data)) > most {
		err = &Error{Code: jetpost.ErrInvalid, Err: fmt.Errorf("the answer has %d bytes, and a message %d at most", len(msg.Data), most), Help: "ask for fewer with limit"}
	}
	if err != nil {
		is := APIError(err)
		code = is.Code
		if code == jetpost.ErrInternal {
			s.Log.Error("operation.failed", "operation", info.Operation, "error", err)
		}
		msg.Header = nats.Header{micro.ErrorHeader: {headerText(is.Detail)}, micro.ErrorCodeHeader: {string(code)}}
		if msg.Data, err = json.Marshal(jetpost.ErrorAnswer{Error: is}); err != nil {
			msg.Data = nil // the header tells
		}
	}
	if msg.Subject == "" {
		return code // nobody asks to know
	}
	if err := s.Conn.PublishMsg(msg); err != nil {
		s.Log.Warn("operation.not_answered", "operation", info.Operation, "error", err)
	}
	return code
}

// headerText is a text that fits a header.
func headerText(text string) string {
	const most = 512
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return text
}
