package cli

import (
	"context"
	"errors"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/client"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/internal/control"
	"github.com/jetpost/jetpost/store"
)

// operations are what a worker carries out for a command, or the command itself where it
// has the database at hand.
type operations interface {
	RequestCheck(ctx context.Context, account string, r jetpost.Request) (jetpost.CheckAnswer, error)
	RequestGet(ctx context.Context, account string, in jetpost.RequestGet) (jetpost.RequestDetails, error)
	RequestList(ctx context.Context, account string, in jetpost.RequestList) (jetpost.RequestPage, error)
	RequestCancel(ctx context.Context, account string, in jetpost.RequestCancel) (jetpost.RequestStatus, error)
	RequestCancelMany(ctx context.Context, account string, in jetpost.RequestCancelMany) (jetpost.CancelAnswer, error)
	RequestReschedule(ctx context.Context, account string, in jetpost.RequestReschedule) (jetpost.RequestStatus, error)
	RequestResolve(ctx context.Context, account string, in jetpost.RequestResolve) (jetpost.RequestStatus, error)
	RequestReconcile(ctx context.Context, account string, in jetpost.RequestReconcile) (jetpost.RequestStatus, error)
	RequestReplay(ctx context.Context, account string, in jetpost.RequestReplay) (jetpost.ReplayAnswer, error)
	RequestUnpublish(ctx context.Context, account string, in jetpost.RequestUnpublish) (jetpost.RequestStatus, error)
	AccountList(ctx context.Context, in jetpost.AccountList) (jetpost.AccountPage, error)
	AccountGet(ctx context.Context, account string) (jetpost.AccountReport, error)
	AccountPause(ctx context.Context, account string, in jetpost.PauseRequest) (jetpost.AccountPaused, error)
	AccountResume(ctx context.Context, account string, in jetpost.ResumeRequest) (jetpost.Resumed, error)
	AccountRefresh(ctx context.Context, account string, in jetpost.AccountRefresh) (jetpost.AccountInfo, error)
	AccountDisconnect(ctx context.Context, account string, in jetpost.AccountDisconnect) (jetpost.Disconnected, error)
	AccountRename(ctx context.Context, account string, in jetpost.AccountRename) (jetpost.AccountInfo, error)
	AccountRemove(ctx context.Context, account string, in jetpost.AccountRemove) (jetpost.AccountRemoved, error)
	AccountLink(ctx context.Context, account string, in jetpost.AccountLink) (jetpost.Link, error)
	AccountConsent(ctx context.Context, account string, in jetpost.AccountConsent) (jetpost.Consent, error)
	AccountConnect(ctx context.Context, account string, in jetpost.AccountConnect) (jetpost.Connected, error)
	AccountLimit(ctx context.Context, account string, in jetpost.AccountLimit) (jetpost.MonthSpending, error)
	AccountVerify(ctx context.Context, account string, in jetpost.AccountVerify) (jetpost.Verification, error)
	AccountErase(ctx context.Context, account string, in jetpost.AccountErase) (jetpost.Erased, error)
	AppStatus(ctx context.Context) (jetpost.StatusReport, error)
	AppPause(ctx context.Context, in jetpost.PauseRequest) (jetpost.AppPaused, error)
	AppResume(ctx context.Context, in jetpost.ResumeRequest) (jetpost.Resumed, error)
	AppPrune(ctx context.Context, in jetpost.AppPrune) (jetpost.Pruned, error)
	AppForecast(ctx context.Context, in jetpost.ForecastRequest) (jetpost.Forecast, error)
	DeadLettersList(ctx context.Context, account string, in jetpost.DeadLettersList) (jetpost.DeadLetterPage, error)
	TokenCreate(ctx context.Context, in jetpost.TokenCreate) (jetpost.APIToken, error)
	TokenList(ctx context.Context, in jetpost.TokenList) (jetpost.TokenPage, error)
	TokenRevoke(ctx context.Context, in jetpost.TokenRevoke) (jetpost.APIToken, error)
	UserAdd(ctx context.Context, in jetpost.UserAdd) (jetpost.User, error)
	UserList(ctx context.Context, in jetpost.UserList) (jetpost.UserPage, error)
	UserSet(ctx context.Context, in jetpost.UserSet) (jetpost.User, error)
	UserRemove(ctx context.Context, in jetpost.UserRemove) (jetpost.User, error)
	AuditList(ctx context.Context, in jetpost.AuditList) (jetpost.AuditPage, error)
	HookCreate(ctx context.Context, account string, in jetpost.HookCreate) (jetpost.HookCreated, error)
	HookList(ctx context.Context, account string, in jetpost.HookList) (jetpost.HookPage, error)
	HookTest(ctx context.Context, account string, in jetpost.HookTest) (jetpost.HookTested, error)
	HookEnable(ctx context.Context, account string, in jetpost.HookEnable) (jetpost.Hook, error)
	HookRemove(ctx context.Context, account string, in jetpost.HookRemove) (jetpost.Hook, error)
}

var (
	_ operations = (*client.Client)(nil)
	_ operations = (*control.Control)(nil)
)

// workersWithin is how long a worker may take to say that it is there.
const workersWithin = 2 * time.Second

// operate has a worker carry out what a command asks for or, where none answers, does it
// on the database, if that is configured.
func (e *env) operate(work func(context.Context, operations) error) error {
	return e.byWorkers(work, func() error {
		return e.withControl(func(ctx context.Context, direct *app.Control) error { return work(ctx, direct.Control) })
	})
}

// look is operate for what only reads the ledger, and so needs no NATS beside it.
func (e *env) look(work func(context.Context, operations) error) error {
	return e.byWorkers(work, func() error {
		return e.withLedger(func(ctx context.Context, cfg app.Config, ledger store.Store) error {
			return whichRequest(work(ctx, control.New(control.Control{Ledger: ledger, Log: e.log, Link: cfg.MakeLink})))
		})
	})
}

// byWorkers calls the workers, where they answer or there is no database.
func (e *env) byWorkers(work func(context.Context, operations) error, direct func() error) error {
	cfg, err := e.natsConfig()
	if err != nil || cfg.NATS.URL == "" {
		return direct() // which tells what is missing
	}
	conn, err := cfg.Connect(e.ctx, e.log, "jetpost command line")
	if err != nil {
		if cfg.DatabaseURL.Empty() {
			return err
		}
		return direct()
	}
	defer conn.Close()
	asking, cancel := context.WithTimeout(e.ctx, workersWithin)
	_, err = conn.Conn.RequestWithContext(asking, "$SRV.PING."+conn.Names.Service(), nil)
	cancel()
	if err != nil && !cfg.DatabaseURL.Empty() {
		return direct()
	}
	workers, err := client.New(conn.Conn, client.WithPrefix(cfg.NATS.Prefix))
	if err != nil {
		return err
	}
	return whichRequest(work(e.ctx, workers))
}

// failedAs tells an error of an operation by its code.
func failedAs(err error, code jetpost.ErrorCode) bool {
	var told *client.Error
	var own *control.Error
	return errors.As(err, &told) && told.Code == code || errors.As(err, &own) && own.Code == code
}

// allPages collects the pages of a list until there are so many.
func allPages[T any](most int, page func(limit int, cursor string) ([]T, string, error)) (all []T, err error) {
	cursor := ""
	for len(all) < most {
		some, next, err := page(min(most-len(all), jetpost.MaxPage), cursor)
		if err != nil {
			return nil, err
		}
		if all = append(all, some...); next == "" {
			break
		}
		cursor = next
	}
	return all, nil
}
