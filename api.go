package jetpost

import (
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Operation names one call of the control service, which every worker serves. The
// request's body is a JSON object, and so is the answer's.
type Operation string

// The operations of the control service.
const (
	OpRequestPublish    Operation = "request.publish"
	OpRequestCheck      Operation = "request.check"
	OpRequestGet        Operation = "request.get"
	OpRequestList       Operation = "request.list"
	OpRequestCount      Operation = "request.count"
	OpRequestCalendar   Operation = "request.calendar"
	OpRequestHistory    Operation = "request.history"
	OpRequestCancel     Operation = "request.cancel"
	OpRequestCancelMany Operation = "request.cancel_many"
	OpRequestReschedule Operation = "request.reschedule"
	OpRequestResolve    Operation = "request.resolve"
	OpRequestReconcile  Operation = "request.reconcile"
	OpRequestReplay     Operation = "request.replay"
	OpRequestUnpublish  Operation = "request.unpublish"

	OpAccountList       Operation = "account.list"
	OpAccountGet        Operation = "account.get"
	OpAccountPause      Operation = "account.pause"
	OpAccountResume     Operation = "account.resume"
	OpAccountRefresh    Operation = "account.refresh"
	OpAccountDisconnect Operation = "account.disconnect"
	OpAccountRename     Operation = "account.rename"
	OpAccountRemove     Operation = "account.remove"
	OpAccountLink       Operation = "account.link"
	OpAccountConsent    Operation = "account.consent"
	OpAccountConnect    Operation = "account.connect"
	OpAccountLimit      Operation = "account.limit"
	OpAccountVerify     Operation = "account.verify"
	OpLinkGet           Operation = "link.get"
	OpAccountErase      Operation = "account.erase"

	OpAppStatus   Operation = "app.status"
	OpAppPause    Operation = "app.pause"
	OpAppResume   Operation = "app.resume"
	OpAppLimits   Operation = "app.limits"
	OpAppForecast Operation = "app.forecast"
	OpAppSeries   Operation = "app.series"

	OpAppPrune Operation = "app.prune"

	OpMediaPut Operation = "media.put"

	OpDeadLettersList   Operation = "deadletters.list"
	OpDeadLettersGroups Operation = "deadletters.groups"
	OpWorkersList       Operation = "workers.list"
)

// OfAccount says whether an operation concerns an account, whose name is then the last
// token of its subject.
type OfAccount int

const (
	// OfNone concerns the installation: its subject names no account.
	OfNone OfAccount = iota
	// OfAny concerns one account where its subject names one, and else any.
	OfAny
	// OfOne concerns one account, which its subject always names.
	OfOne
)

// OperationInfo describes one operation.
type OperationInfo struct {
	Operation Operation
	Account   OfAccount
	// Changes tells an operation that changes something, and takes an operation_id.
	Changes bool
	// Within is how long a worker works on it at most.
	Within time.Duration
	// Request and Answer are the zero values of its two bodies.
	Request, Answer any
}

const (
	// callWithin bounds a call that looks at little, and longCallWithin one that looks
	// at much, or waits for what a worker does.
	callWithin     = 10 * time.Second
	longCallWithin = 2 * time.Minute
	// hookTestWithin is longer than a receiver may take.
	hookTestWithin = 25 * time.Second
)

// Operations lists every operation, in the order of its constants.
func Operations() []OperationInfo {
	return []OperationInfo{
		{OpRequestPublish, OfOne, false, callWithin, Request{}, PublishAnswer{}},
		{OpRequestCheck, OfOne, false, callWithin, Request{}, CheckAnswer{}},
		{OpRequestGet, OfAny, false, callWithin, RequestGet{}, RequestDetails{}},
		{OpRequestList, OfAny, false, callWithin, RequestList{}, RequestPage{}},
		{OpRequestCount, OfAny, false, callWithin, Empty{}, RequestCounts{}},
		{OpRequestCalendar, OfAny, false, callWithin, RequestCalendar{}, CalendarPage{}},
		{OpRequestHistory, OfAny, false, callWithin, RequestHistory{}, History{}},
		{OpRequestCancel, OfAny, true, callWithin, RequestCancel{}, RequestStatus{}},
		{OpRequestCancelMany, OfAny, true, longCallWithin, RequestCancelMany{}, CancelAnswer{}},
		{OpRequestReschedule, OfAny, true, callWithin, RequestReschedule{}, RequestStatus{}},
		{OpRequestResolve, OfAny, true, callWithin, RequestResolve{}, RequestStatus{}},
		{OpRequestReconcile, OfAny, true, callWithin, RequestReconcile{}, RequestStatus{}},
		{OpRequestReplay, OfAny, true, longCallWithin, RequestReplay{}, ReplayAnswer{}},
		{OpRequestUnpublish, OfAny, true, callWithin, RequestUnpublish{}, RequestStatus{}},
		{OpAccountList, OfNone, false, callWithin, AccountList{}, AccountPage{}},
		{OpAccountGet, OfOne, false, callWithin, Empty{}, AccountReport{}},
		{OpAccountPause, OfOne, true, callWithin, PauseRequest{}, AccountPaused{}},
		{OpAccountResume, OfOne, true, longCallWithin, ResumeRequest{}, Resumed{}},
		{OpAccountRefresh, OfOne, true, longCallWithin, AccountRefresh{}, AccountInfo{}},
		{OpAccountDisconnect, OfOne, true, longCallWithin, AccountDisconnect{}, Disconnected{}},
		{OpAccountRename, OfOne, true, callWithin, AccountRename{}, AccountInfo{}},
		{OpAccountRemove, OfOne, true, callWithin, AccountRemove{}, AccountRemoved{}},
		{OpAccountLink, OfOne, true, callWithin, AccountLink{}, Link{}},
		{OpAccountConsent, OfOne, true, callWithin, AccountConsent{}, Consent{}},
		{OpAccountConnect, OfOne, true, longCallWithin, AccountConnect{}, Connected{}},
		{OpAccountLimit, OfOne, true, callWithin, AccountLimit{}, MonthSpending{}},
		{OpAccountVerify, OfOne, true, longCallWithin, AccountVerify{}, Verification{}},
		{OpLinkGet, OfNone, false, callWithin, LinkGet{}, LinkInfo{}},
		{OpAccountErase, OfOne, true, longCallWithin, AccountErase{}, Erased{}},
		{OpAppStatus, OfNone, false, callWithin, Empty{}, StatusReport{}},
		{OpAppPause, OfNone, true, callWithin, PauseRequest{}, AppPaused{}},
		{OpAppResume, OfNone, true, longCallWithin, ResumeRequest{}, Resumed{}},
		{OpAppLimits, OfNone, false, callWithin, LimitsRequest{}, Limits{}},
		{OpAppForecast, OfNone, false, longCallWithin, ForecastRequest{}, Forecast{}},
		{OpAppSeries, OfNone, false, longCallWithin, Empty{}, Series{}},
		{OpAppPrune, OfNone, true, longCallWithin, AppPrune{}, Pruned{}},
		{OpMediaPut, OfAny, true, callWithin, MediaPut{}, MediaStored{}},
		{OpDeadLettersList, OfAny, false, callWithin, DeadLettersList{}, DeadLetterPage{}},
		{OpDeadLettersGroups, OfNone, false, callWithin, Empty{}, DeadLetterGroups{}},
		{OpWorkersList, OfNone, false, callWithin, Empty{}, Workers{}},
		{OpTokenCreate, OfNone, true, callWithin, TokenCreate{}, APIToken{}},
		{OpTokenList, OfNone, false, callWithin, TokenList{}, TokenPage{}},
		{OpTokenRevoke, OfNone, true, callWithin, TokenRevoke{}, APIToken{}},
		{OpTokenCheck, OfNone, false, callWithin, TokenCheck{}, APIToken{}},
		{OpUserAdd, OfNone, true, callWithin, UserAdd{}, User{}},
		{OpUserList, OfNone, false, callWithin, UserList{}, UserPage{}},
		{OpUserGet, OfNone, false, callWithin, UserGet{}, User{}},
		{OpUserSet, OfNone, true, callWithin, UserSet{}, User{}},
		{OpUserRemove, OfNone, true, callWithin, UserRemove{}, User{}},
		{OpSessionBegin, OfNone, false, callWithin, SessionBegin{}, Session{}},
		{OpSessionCheck, OfNone, false, callWithin, SessionCheck{}, Session{}},
		{OpSessionEnd, OfNone, false, callWithin, SessionEnd{}, SessionEnded{}},
		{OpAuditList, OfNone, false, callWithin, AuditList{}, AuditPage{}},
		{OpHookCreate, OfAny, true, callWithin, HookCreate{}, HookCreated{}},
		{OpHookList, OfAny, false, callWithin, HookList{}, HookPage{}},
		{OpHookTest, OfAny, false, hookTestWithin, HookTest{}, HookTested{}},
		{OpHookEnable, OfAny, true, callWithin, HookEnable{}, Hook{}},
		{OpHookRemove, OfAny, true, callWithin, HookRemove{}, Hook{}},
	}
}

// Info describes the operation; false where there is none of that name.
func (o Operation) Info() (OperationInfo, bool) {
	for _, info := range Operations() {
		if info.Operation == o {
			return info, true
		}
	}
	return OperationInfo{}, false
}

// Beyond tells an operation on an account that concerns another one, too: whoever is kept to
// some accounts does not call it.
func (o Operation) Beyond() bool { return o == OpAccountRename }

// Service is the name under which the workers' control service is found.
func (n Names) Service() string {
	if n.prefix == "" {
		return "jetpost"
	}
	return n.prefix + "_jetpost"
}

// API is the subject of an operation on an account, which is the last token, or "*" for
// every one. Without an account it concerns any, or the whole installation.
func (n Names) API(o Operation, account string) string {
	tokens := append([]string{"jetpost", "api", "v1"}, strings.Split(string(o), ".")...)
	if account != "" {
		tokens = append(tokens, account)
	}
	return n.subject(tokens...)
}

// AllAPI is the subjects of all operations.
func (n Names) AllAPI() string { return n.subject("jetpost", "api", "v1", ">") }

// ErrorCode says for programs why an operation did not do what was asked.
type ErrorCode string

// The codes of errors. Nothing has changed, but for those that say otherwise.
const (
	ErrInvalid         ErrorCode = "invalid"          // the request breaks the contract; problems names each mistake
	ErrNotFound        ErrorCode = "not_found"        // there is no such account or request
	ErrAmbiguous       ErrorCode = "ambiguous"        // several accounts have a request of that id
	ErrConflict        ErrorCode = "conflict"         // the state of what it is about does not allow it
	ErrBusy            ErrorCode = "busy"             // somebody is at it just now: try again in a moment
	ErrOperationReused ErrorCode = "operation_reused" // the operation_id was used for another request
	ErrRefreshFailed   ErrorCode = "refresh_failed"   // X did not renew the token
	ErrLinkUsed        ErrorCode = "link_used"        // an account was connected with the link
	ErrLinkExpired     ErrorCode = "link_expired"     // the link's time is over
	ErrAttemptOver     ErrorCode = "attempt_over"     // the attempt to connect took too long, was finished before, or a newer one began
	ErrOtherBrowser    ErrorCode = "other_browser"    // somebody else began the attempt
	ErrOtherUser       ErrorCode = "other_user"       // the account is that of another X user than the one who consented
	ErrOtherName       ErrorCode = "other_name"       // the X user who consented is connected under another name
	ErrScopesMissing   ErrorCode = "scopes_missing"   // less was consented to than was asked for
	ErrCodeRefused     ErrorCode = "code_refused"     // X does not accept the code of the consent: it works once, for 30 seconds
	ErrConnectFailed   ErrorCode = "connect_failed"   // X did not exchange the code, or did not say whose consent it is
	ErrStillWaiting    ErrorCode = "still_waiting"    // it was begun, and its end did not come in time
	ErrUnsupported     ErrorCode = "unsupported"      // this worker does not offer it
	ErrUnauthenticated ErrorCode = "unauthenticated"  // there is no such API token, session or password, or it has ended or was revoked
	ErrForbidden       ErrorCode = "forbidden"        // the API token allows neither this operation nor this account
	ErrTooMany         ErrorCode = "too_many"         // too many wrong passwords were tried: wait
	ErrUnavailable     ErrorCode = "unavailable"      // database or NATS do not answer: whether it was done, a repeat with the same operation_id tells
	ErrInternal        ErrorCode = "internal"         // a fault of jetpost: see the workers' logs
)

// ErrorCodes lists every code.
func ErrorCodes() []ErrorCode {
	return []ErrorCode{
		ErrInvalid, ErrNotFound, ErrAmbiguous, ErrConflict, ErrBusy, ErrOperationReused, ErrRefreshFailed,
		ErrLinkUsed, ErrLinkExpired, ErrAttemptOver, ErrOtherBrowser, ErrOtherUser, ErrOtherName, ErrScopesMissing, ErrCodeRefused, ErrConnectFailed,
		ErrStillWaiting, ErrUnsupported, ErrUnauthenticated, ErrForbidden, ErrTooMany, ErrUnavailable, ErrInternal,
	}
}

// APIError is why an operation did not do what was asked.
type APIError struct {
	// Code is for programs.
	Code ErrorCode `json:"code"`
	// Detail is for people, one line; its wording may change.
	Detail string `json:"detail"`
	// What a person can do; absent where there is nothing.
	Help string `json:"hint,omitempty"`
	// Accounts are those that have a request of that id, where the code is ambiguous.
	Accounts []string `json:"accounts,omitempty"`
	// Problems are the mistakes, where the code is invalid.
	Problems []Problem `json:"problems,omitempty"`
}

func (e *APIError) Error() string { return e.Detail }

// Hint is what a person can do, or "".
func (e *APIError) Hint() string { return e.Help }

// Definite tells that the operation was not done, and a repeat would find the same.
func (e *APIError) Definite() bool {
	switch e.Code {
	case ErrBusy, ErrTooMany, ErrStillWaiting, ErrUnsupported, ErrUnavailable, ErrInternal:
		return false
	}
	return true
}

// ErrorAnswer is the answer of an operation that failed.
type ErrorAnswer struct {
	// Error says why.
	Error *APIError `json:"error"`
}

// DecodeCall reads the body of a call as strictly as a request is read: an unknown
// field, one that comes twice or is null is a mistake. An empty body is an empty object.
// It fails with *[InvalidError].
func DecodeCall[T any](body []byte) (value T, err error) {
	if len(body) == 0 {
		body = []byte("{}")
	}
	var f findings
	root, err := parse(body, &f)
	if err != nil {
		f.add("", "%v", err)
		return value, f.err(Request{})
	}
	f.fill(reflect.ValueOf(&value).Elem(), root, "")
	f.checkCall(reflect.ValueOf(value))
	return value, f.err(Request{})
}

// checkCall holds the fields of a call to what they all have in common.
func (f *findings) checkCall(v reflect.Value) {
	for i, name := range fieldNames(v.Type()) {
		at, field := child("", name), v.Field(i)
		switch is := field.Interface().(type) {
		case string:
			switch name {
			case "id":
				if optional := strings.Contains(v.Type().Field(i).Tag.Get("json"), ",omitempty"); is == "" && !optional {
					f.refuse(at, "is missing")
				}
				f.match(at, is, idPattern)
			case "operation_id":
				f.match(at, is, idPattern)
			case "post_id":
				f.match(at, is, postIDPattern)
			case "account":
				f.match(at, is, accountPattern)
			case "url":
				f.httpsURL(at, is)
			}
		case []string:
			if len(is) > MaxPage {
				f.refuse(at, "has %d entries, at most %d are allowed", len(is), MaxPage)
			}
			for n, id := range is {
				if name == "ids" {
					f.match(child(at, strconv.Itoa(n)), id, idPattern)
				}
			}
		case int:
			if most := map[string]int{"limit": MaxPage, "wait_seconds": MaxWaitSeconds, "offset": MaxMediaBytes}[name]; is < 0 || is > most {
				f.refuse(at, "is %d, want 0 to %d", is, most)
			}
		case []byte:
			if len(is) == 0 || len(is) > MaxMediaPart {
				f.refuse(at, "has %d bytes, want 1 to %d", len(is), MaxMediaPart)
			}
		}
	}
}

// Settled tells whether nothing more happens to the request by itself.
func (s RequestStatus) Settled() bool {
	if u := s.Unpublish; u != nil && !u.NextTryAt.IsZero() {
		return false
	}
	return s.State.Finished() || s.State == StateUnknown
}
