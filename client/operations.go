package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/jetpost/jetpost"
)

// RequestPublish publishes a request of the account and returns once a worker has accepted
// or refused it. The request needs an id: published again under it, it is one request. A
// request that is stored, and that no worker has taken yet, is an *Error whose code is
// still_waiting.
func (c *Client) RequestPublish(ctx context.Context, account string, r jetpost.Request) (jetpost.PublishAnswer, error) {
	return call[jetpost.PublishAnswer](ctx, c, jetpost.OpRequestPublish, account, r)
}

// RequestCheck tells what would become of a request, and sends nothing.
func (c *Client) RequestCheck(ctx context.Context, account string, r jetpost.Request) (jetpost.CheckAnswer, error) {
	return call[jetpost.CheckAnswer](ctx, c, jetpost.OpRequestCheck, account, r)
}

// RequestGet returns a request of the account or, with "", of any.
func (c *Client) RequestGet(ctx context.Context, account string, in jetpost.RequestGet) (jetpost.RequestDetails, error) {
	return call[jetpost.RequestDetails](ctx, c, jetpost.OpRequestGet, account, in)
}

// RequestList returns a page of requests, the latest accepted first, of the account or,
// with "", of all.
func (c *Client) RequestList(ctx context.Context, account string, in jetpost.RequestList) (jetpost.RequestPage, error) {
	return call[jetpost.RequestPage](ctx, c, jetpost.OpRequestList, account, in)
}

// RequestCount counts the requests of the account or, with "", of all by state.
func (c *Client) RequestCount(ctx context.Context, account string) (jetpost.RequestCounts, error) {
	return call[jetpost.RequestCounts](ctx, c, jetpost.OpRequestCount, account, jetpost.Empty{})
}

// RequestCalendar returns a page of the requests that are or were due between two times,
// the earliest first; of all accounts where none is named.
func (c *Client) RequestCalendar(ctx context.Context, account string, in jetpost.RequestCalendar) (jetpost.CalendarPage, error) {
	return call[jetpost.CalendarPage](ctx, c, jetpost.OpRequestCalendar, account, in)
}

// RequestHistory returns what happened to a request.
func (c *Client) RequestHistory(ctx context.Context, account string, in jetpost.RequestHistory) (jetpost.History, error) {
	return call[jetpost.History](ctx, c, jetpost.OpRequestHistory, account, in)
}

// RequestCancel takes a request back; what is live stays live.
func (c *Client) RequestCancel(ctx context.Context, account string, in jetpost.RequestCancel) (jetpost.RequestStatus, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.RequestStatus](ctx, c, jetpost.OpRequestCancel, account, in)
}

// RequestCancelMany takes back unfinished requests, by their ids or by what they have in
// common.
func (c *Client) RequestCancelMany(ctx context.Context, account string, in jetpost.RequestCancelMany) (jetpost.CancelAnswer, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.CancelAnswer](ctx, c, jetpost.OpRequestCancelMany, account, in)
}

// RequestReschedule moves a request of which nothing was sent to another time.
func (c *Client) RequestReschedule(ctx context.Context, account string, in jetpost.RequestReschedule) (jetpost.RequestStatus, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.RequestStatus](ctx, c, jetpost.OpRequestReschedule, account, in)
}

// RequestResolve settles the doubtful post of a request by a person's word.
func (c *Client) RequestResolve(ctx context.Context, account string, in jetpost.RequestResolve) (jetpost.RequestStatus, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.RequestStatus](ctx, c, jetpost.OpRequestResolve, account, in)
}

// RequestReconcile has X asked again about the doubtful post of a request.
func (c *Client) RequestReconcile(ctx context.Context, account string, in jetpost.RequestReconcile) (jetpost.RequestStatus, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.RequestStatus](ctx, c, jetpost.OpRequestReconcile, account, in)
}

// RequestReplay sends back what failed or was refused.
func (c *Client) RequestReplay(ctx context.Context, account string, in jetpost.RequestReplay) (jetpost.ReplayAnswer, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.ReplayAnswer](ctx, c, jetpost.OpRequestReplay, account, in)
}

// RequestUnpublish has what of a request is live deleted on X.
func (c *Client) RequestUnpublish(ctx context.Context, account string, in jetpost.RequestUnpublish) (jetpost.RequestStatus, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.RequestStatus](ctx, c, jetpost.OpRequestUnpublish, account, in)
}

// AccountList returns a page of accounts, by name.
func (c *Client) AccountList(ctx context.Context, in jetpost.AccountList) (jetpost.AccountPage, error) {
	return call[jetpost.AccountPage](ctx, c, jetpost.OpAccountList, "", in)
}

// AccountGet tells what is known of an account and its token.
func (c *Client) AccountGet(ctx context.Context, account string) (jetpost.AccountReport, error) {
	return call[jetpost.AccountReport](ctx, c, jetpost.OpAccountGet, account, jetpost.Empty{})
}

// AccountPause has an account post nothing more.
func (c *Client) AccountPause(ctx context.Context, account string, in jetpost.PauseRequest) (jetpost.AccountPaused, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.AccountPaused](ctx, c, jetpost.OpAccountPause, account, in)
}

// AccountResume ends an account's pause.
func (c *Client) AccountResume(ctx context.Context, account string, in jetpost.ResumeRequest) (jetpost.Resumed, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.Resumed](ctx, c, jetpost.OpAccountResume, account, in)
}

// AccountRefresh has an account's token renewed.
func (c *Client) AccountRefresh(ctx context.Context, account string, in jetpost.AccountRefresh) (jetpost.AccountInfo, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.AccountInfo](ctx, c, jetpost.OpAccountRefresh, account, in)
}

// AccountDisconnect ends the use of an account.
func (c *Client) AccountDisconnect(ctx context.Context, account string, in jetpost.AccountDisconnect) (jetpost.Disconnected, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.Disconnected](ctx, c, jetpost.OpAccountDisconnect, account, in)
}

// AccountRename gives an account another name, with everything that it has.
func (c *Client) AccountRename(ctx context.Context, account string, in jetpost.AccountRename) (jetpost.AccountInfo, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.AccountInfo](ctx, c, jetpost.OpAccountRename, account, in)
}

// AccountRemove forgets an account, except the ids of its requests.
func (c *Client) AccountRemove(ctx context.Context, account string, in jetpost.AccountRemove) (jetpost.AccountRemoved, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.AccountRemoved](ctx, c, jetpost.OpAccountRemove, account, in)
}

// AccountLink makes a one-time link with which a customer connects an account.
func (c *Client) AccountLink(ctx context.Context, account string, in jetpost.AccountLink) (jetpost.Link, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.Link](ctx, c, jetpost.OpAccountLink, account, in)
}

// LinkGet returns a one-time link that still opens something.
func (c *Client) LinkGet(ctx context.Context, in jetpost.LinkGet) (jetpost.LinkInfo, error) {
	return call[jetpost.LinkInfo](ctx, c, jetpost.OpLinkGet, "", in)
}

// AccountConsent begins an attempt to connect an account.
func (c *Client) AccountConsent(ctx context.Context, account string, in jetpost.AccountConsent) (jetpost.Consent, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.Consent](ctx, c, jetpost.OpAccountConsent, account, in)
}

// AccountConnect ends an attempt with the code that X sent back, which jetpost.SealCode
// seals.
func (c *Client) AccountConnect(ctx context.Context, account string, in jetpost.AccountConnect) (jetpost.Connected, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.Connected](ctx, c, jetpost.OpAccountConnect, account, in)
}

// AccountLimit sets what an account's posts of a month may cost by estimate.
func (c *Client) AccountLimit(ctx context.Context, account string, in jetpost.AccountLimit) (jetpost.MonthSpending, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.MonthSpending](ctx, c, jetpost.OpAccountLimit, account, in)
}

// AccountVerify compares an account's posts with its timeline on X, which X charges for.
func (c *Client) AccountVerify(ctx context.Context, account string, in jetpost.AccountVerify) (jetpost.Verification, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.Verification](ctx, c, jetpost.OpAccountVerify, account, in)
}

// AccountErase removes what is known of an account, except hashes of the ids of its
// requests. Where not all is done when it returns, a worker goes on with it.
func (c *Client) AccountErase(ctx context.Context, account string, in jetpost.AccountErase) (jetpost.Erased, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.Erased](ctx, c, jetpost.OpAccountErase, account, in)
}

// AppStatus tells whether posts go out and, if not, why.
func (c *Client) AppStatus(ctx context.Context) (jetpost.StatusReport, error) {
	return call[jetpost.StatusReport](ctx, c, jetpost.OpAppStatus, "", jetpost.Empty{})
}

// AppPause has no account post anything.
func (c *Client) AppPause(ctx context.Context, in jetpost.PauseRequest) (jetpost.AppPaused, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.AppPaused](ctx, c, jetpost.OpAppPause, "", in)
}

// AppResume ends every pause of the app.
func (c *Client) AppResume(ctx context.Context, in jetpost.ResumeRequest) (jetpost.Resumed, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.Resumed](ctx, c, jetpost.OpAppResume, "", in)
}

// AppLimits tells what keeps calls from X.
func (c *Client) AppLimits(ctx context.Context, in jetpost.LimitsRequest) (jetpost.Limits, error) {
	return call[jetpost.Limits](ctx, c, jetpost.OpAppLimits, "", in)
}

// AppForecast tells when everything that waits is out.
func (c *Client) AppForecast(ctx context.Context, in jetpost.ForecastRequest) (jetpost.Forecast, error) {
	return call[jetpost.Forecast](ctx, c, jetpost.OpAppForecast, "", in)
}

// DeadLettersList returns a page of messages that never became requests, or of requests
// that failed, of the account or, with "", of all.
func (c *Client) DeadLettersList(ctx context.Context, account string, in jetpost.DeadLettersList) (jetpost.DeadLetterPage, error) {
	return call[jetpost.DeadLetterPage](ctx, c, jetpost.OpDeadLettersList, account, in)
}

// AppSeries tells how much has gone out lately, and how much waits.
func (c *Client) AppSeries(ctx context.Context) (jetpost.Series, error) {
	return call[jetpost.Series](ctx, c, jetpost.OpAppSeries, "", jetpost.Empty{})
}

// DeadLettersGroups counts what failed or was refused by reason.
func (c *Client) DeadLettersGroups(ctx context.Context) (jetpost.DeadLetterGroups, error) {
	return call[jetpost.DeadLetterGroups](ctx, c, jetpost.OpDeadLettersGroups, "", jetpost.Empty{})
}

// WorkersList tells of the workers by their last heartbeats.
func (c *Client) WorkersList(ctx context.Context) (jetpost.Workers, error) {
	return call[jetpost.Workers](ctx, c, jetpost.OpWorkersList, "", jetpost.Empty{})
}

// AppPrune removes once what finished long ago, as workers do by themselves.
func (c *Client) AppPrune(ctx context.Context, in jetpost.AppPrune) (jetpost.Pruned, error) {
	in.OperationID = once(in.OperationID)
	return call[jetpost.Pruned](ctx, c, jetpost.OpAppPrune, "", in)
}

// partRoom is what a message has beside the bytes of a part of a media file.
const partRoom = 4 << 10

// MediaPut stores a media file, which posts of the account or, with "", of any name as their
// object. It reads to the file's end, part by part, and makes nothing of a file that it cannot
// read whole.
func (c *Client) MediaPut(ctx context.Context, account string, file io.Reader) (jetpost.MediaStored, error) {
	size := max(1, min(jetpost.MaxMediaPart, int(c.nc.MaxPayload()-partRoom)/4*3)) // in base64
	from, part := bufio.NewReaderSize(file, size), make([]byte, size)
	in := jetpost.MediaPut{OperationID: NewOperationID()}
	fail := func(format string, args ...any) (jetpost.MediaStored, error) {
		return jetpost.MediaStored{}, &Error{Code: jetpost.ErrInvalid, Detail: fmt.Sprintf(format, args...)}
	}
	for {
		n, err := 0, error(nil)
		for n < size && err == nil { // not io.ReadFull, which takes a file that is cut off for a whole one
			var read int
			read, err = from.Read(part[n:])
			n += read
		}
		if err == nil {
			_, err = from.Peek(1)
		}
		in.More = err == nil
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return fail("read media file: %v", err)
		case n == 0:
			return fail("the media file is empty")
		case in.Offset+n > jetpost.MaxMediaBytes:
			return fail("the media file has more than %d bytes", jetpost.MaxMediaBytes)
		}
		in.Data = part[:n]
		stored, err := call[jetpost.MediaStored](ctx, c, jetpost.OpMediaPut, account, in)
		if err != nil || !in.More {
			return stored, err
		}
		in.Offset = stored.Bytes
	}
}
