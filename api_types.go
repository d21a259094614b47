package jetpost

import (
	"strings"
	"time"
)

// The bodies of operations on requests and accounts. The account of an operation is the
// last token of its subject, and stands in no body.

// Empty is the body of an operation that needs to be told nothing.
type Empty struct{}

// PublishAnswer is what became of a request that was published.
type PublishAnswer struct {
	// Account and ID are the request's identity.
	Account string `json:"account"`
	// ID is the producer's.
	ID string `json:"id"`
	// Sequence is the message's place in the job stream; absent where the request was
	// there before, and nothing was sent.
	Sequence uint64 `json:"sequence,omitempty"`
	// Repeated tells that an equal request of that identity was there before.
	Repeated bool `json:"repeated,omitempty"`
	// Request is set where it was accepted: as it stands.
	Request *RequestStatus `json:"request,omitempty"`
	// Refusal is set where it was refused: nothing of it is published.
	Refusal *Refusal `json:"refusal,omitempty"`
}

// CheckAnswer is what would become of a request that is not published.
type CheckAnswer struct {
	// Account is the request's.
	Account string `json:"account"`
	// ID is the producer's; absent where it has none.
	ID string `json:"id,omitempty"`
	// DryRun is true: nothing was sent.
	DryRun bool `json:"dry_run"`
	// Posts are all its posts, in the order of the thread.
	Posts []CheckedPost `json:"posts"`
	// CostEstimateUSD is what X will charge for all posts, in US dollars.
	CostEstimateUSD float64 `json:"cost_estimate_usd"`
	// PublishAt is the request's own; absent means at once.
	PublishAt time.Time `json:"publish_at,omitzero"`
	// ExpiresAt is the request's own.
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	// Queue is the state in the ledger; absent if the ledger cannot be asked.
	Queue *CheckedQueue `json:"queue,omitempty"`
	// Pause keeps all accounts from posting now.
	Pause *Pause `json:"pause,omitempty"`
	// NotAsked says what could not be asked, and why.
	NotAsked []string `json:"not_asked,omitempty"`
}

// CheckedPost is one post of a CheckAnswer.
type CheckedPost struct {
	// Index counts from 0.
	Index int `json:"index"`
	// Weight is the length of the text as X counts.
	Weight int `json:"weight"`
	// URLs counts the links in the text.
	URLs int `json:"urls"`
	// Media counts its media.
	Media int `json:"media"`
	// CostEstimateUSD is what X will charge for it, in US dollars.
	CostEstimateUSD float64 `json:"cost_estimate_usd"`
}

// CheckedQueue is the account of a request and its position in the queue.
type CheckedQueue struct {
	// State is that of the account's token, as an AccountReport has it; absent where no
	// account of that name is known.
	State string `json:"account_state,omitempty"`
	// Do is what a person can do about it.
	Do string `json:"do,omitempty"`
	// Pause keeps the account from posting.
	Pause Pause `json:"pause,omitzero"`
	// Missing are the permissions without which the account's posts, or those with media,
	// do not begin.
	Missing []string `json:"missing_scopes,omitempty"`
	// Before counts the account's unfinished requests that are due no later.
	Before int `json:"requests_before"`
	// Request is the state of the request that has the id already.
	Request State `json:"request_state,omitempty"`
	// SameText is another account's request with one of the texts. Its names are empty for a
	// caller of another NATS account, and with an API token.
	SameText *RequestName `json:"same_text,omitempty"`
}

// RequestName names a request.
type RequestName struct {
	// Account is the one that it is of.
	Account string `json:"account"`
	// ID is the producer's, or the one that a request without got.
	ID string `json:"id"`
}

// RequestGet asks for one request.
type RequestGet struct {
	// ID is the request's.
	ID string `json:"id"`
}

// RequestDetails is a request with what else a person wants to know of it.
type RequestDetails struct {
	// Request is as it stands.
	Request RequestStatus `json:"request"`
	// Texts are those of its posts; absent where only a newer jetpost can read it.
	Texts []string `json:"texts,omitempty"`
	// Contents are what its posts carry beside their texts, in the same order; absent
	// where none carries anything.
	Contents []PostContent `json:"contents,omitempty"`
	// Pause keeps its account from posting.
	Pause Pause `json:"pause,omitzero"`
	// AppPauses keep all accounts from posting.
	AppPauses []Pause `json:"app_pauses,omitempty"`
}

// PostContent is what a post carries beside its text.
type PostContent struct {
	// Media are its pictures, its GIF or its video.
	Media []MediaContent `json:"media,omitempty"`
	// Options are the choices of its poll.
	Options []string `json:"poll_options,omitempty"`
	// Minutes are how long its poll runs.
	Minutes int `json:"poll_duration_minutes,omitempty"`
}

// MediaContent is a picture, GIF or video of a post. Without URL and Object its bytes stand
// in the request, and are not told.
type MediaContent struct {
	// URL is where the worker fetches it.
	URL string `json:"url,omitempty"`
	// Object is its name in the media object store.
	Object string `json:"object,omitempty"`
	// Alt describes it to people who cannot see it.
	Alt string `json:"alt,omitempty"`
}

// RequestCalendar asks for the requests that are or were due between two times, the
// earliest first. A request is due at its publish_at or, without one, once it is accepted.
type RequestCalendar struct {
	// From is the first moment that counts.
	From time.Time `json:"from"`
	// To is the first moment after it that no longer does.
	To time.Time `json:"to"`
	// Limit is how many are listed at most, 1 to MaxPage; absent means DefaultPage.
	Limit int `json:"limit,omitempty"`
	// Cursor is the Next of the page before; absent begins.
	Cursor string `json:"cursor,omitempty"`
}

// CalendarPage is a part of a calendar.
type CalendarPage struct {
	// Requests are those of this page.
	Requests []CalendarEntry `json:"requests"`
	// Next is the cursor of the page after this one; absent where this is the last.
	Next string `json:"next,omitempty"`
}

// CalendarEntry is a request at its time.
type CalendarEntry struct {
	// DueAt is when the request is or was due. One that was moved is due when it was moved to.
	DueAt time.Time `json:"due_at"`
	// Text is that of its first post, up to MaxCalendarText characters; absent where only a
	// newer jetpost can read it.
	Text string `json:"text,omitempty"`
	// Request is as it stands.
	Request RequestStatus `json:"request"`
}

// MaxCalendarText bounds the text of a calendar's entry.
const MaxCalendarText = 140 // characters

// RequestHistory asks what happened to one request.
type RequestHistory struct {
	// ID is the request's.
	ID string `json:"id"`
	// Limit is how many entries are told at most, the latest ones, 1 to MaxPage; absent
	// means DefaultPage.
	Limit int `json:"limit,omitempty"`
}

// History is what happened to one request, as far as the event stream still has it.
type History struct {
	// Account is the request's.
	Account string `json:"account"`
	// ID is the request's.
	ID string `json:"id"`
	// Entries are told in the order in which they happened.
	Entries []HistoryEntry `json:"entries"`
	// More tells that earlier ones are left out.
	More bool `json:"more,omitempty"`
}

// HistoryEntry is one event of a request, without what the request is about.
type HistoryEntry struct {
	// Type says what happened.
	Type EventType `json:"type"`
	// Time is when it happened.
	Time time.Time `json:"time"`
	// Revision is the request's.
	Revision int64 `json:"revision"`
	// State is where the request then stood.
	State State `json:"state"`
	// Reason says why it waited, failed or was unknown: its detail has X's own words.
	Reason *Reason `json:"reason,omitempty"`
	// Posted counts the posts that were live.
	Posted int `json:"posted"`
	// Attempts counts the posts that were sent to X, answered or not.
	Attempts int `json:"attempts"`
}

// RequestList asks for requests, the latest accepted first. Absent fields match all.
type RequestList struct {
	// State lets only those in this state through.
	State State `json:"state,omitempty"`
	// Code lets only those with this reason through.
	Code Code `json:"code,omitempty"`
	// Since lets only those through that were accepted then or later.
	Since time.Time `json:"since,omitzero"`
	// Limit is how many are listed at most, 1 to MaxPage; absent means DefaultPage.
	Limit int `json:"limit,omitempty"`
	// Cursor is the Next of the page before; absent begins.
	Cursor string `json:"cursor,omitempty"`
}

// The sizes of a page.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// RequestPage is a part of a list of requests.
type RequestPage struct {
	// Requests are those of this page.
	Requests []RequestStatus `json:"requests"`
	// Next is the cursor of the page after this one; absent where this is the last.
	Next string `json:"next,omitempty"`
}

// RequestCounts counts the requests of an account, or of all.
type RequestCounts struct {
	// States counts by state; one without requests is absent. A count of Limit means as
	// many or more.
	States map[State]int `json:"states"`
	// Limit is how many of a state are counted at most.
	Limit int `json:"limit"`
}

// RequestCancel takes a request back; what is live stays live.
type RequestCancel struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// ID is the request's.
	ID string `json:"id"`
}

// RequestCancelMany takes back unfinished requests: those of these ids, or all that the
// other fields let through. What is live stays live.
type RequestCancelMany struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// IDs are those of requests.
	IDs []string `json:"ids,omitempty"`
	// State lets only those in this state through: scheduled, queued, publishing, held or
	// unknown; absent lets all but the unknown through. Not together with IDs.
	State State `json:"state,omitempty"`
	// Code lets only those with this reason through; not together with IDs.
	Code Code `json:"code,omitempty"`
	// Since lets only those through that were accepted then or later; not together with IDs.
	Since time.Time `json:"since,omitzero"`
	// Before lets only those through that were accepted before then: those that an earlier
	// dry run has shown. Not together with IDs.
	Before time.Time `json:"before,omitzero"`
	// All is given where nothing narrows: everything that is unfinished.
	All bool `json:"all,omitempty"`
	// Limit is how many are picked at most, 1 to MaxPage; absent means MaxPage.
	Limit int `json:"limit,omitempty"`
	// DryRun changes nothing, and tells what would be done.
	DryRun bool `json:"dry_run,omitempty"`
}

// CancelAnswer tells what was done.
type CancelAnswer struct {
	// Cancelled has an entry for each request that was picked, the latest accepted first.
	Cancelled []Cancelled `json:"cancelled"`
	// More tells that there are more than Limit.
	More bool `json:"more,omitempty"`
}

// Cancelled tells what was done about one request.
type Cancelled struct {
	// Account is the request's.
	Account string `json:"account"`
	// ID is the request's.
	ID string `json:"id"`
	// Done tells that it was cancelled or, in a dry run, would be.
	Done bool `json:"done"`
	// DryRun tells that nothing was changed.
	DryRun bool `json:"dry_run,omitempty"`
	// State is the request's before.
	State State `json:"state"`
	// Posted counts the posts that are live, and stay so.
	Posted int `json:"posted"`
	// Total counts all posts of the request.
	Total int `json:"total"`
	// Detail is for people, one line.
	Detail string `json:"detail,omitempty"`
}

// RequestReschedule moves a request of which nothing was sent to another time.
type RequestReschedule struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// ID is the request's.
	ID string `json:"id"`
	// At is the new time; absent, or not ahead, means now.
	At time.Time `json:"at,omitzero"`
}

// RequestResolve settles the doubtful post of a request by a person's word.
type RequestResolve struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// ID is the request's.
	ID string `json:"id"`
	// PostID says that the post is live on X with this id.
	PostID string `json:"post_id,omitempty"`
	// NotPosted says that it is not live. One of the two is given.
	NotPosted bool `json:"not_posted,omitempty"`
}

// RequestReconcile has X asked again about the doubtful post of a request.
type RequestReconcile struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// ID is the request's.
	ID string `json:"id"`
}

// RequestUnpublish has what of a request is live deleted on X, and takes back what is not.
type RequestUnpublish struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// ID is the request's.
	ID string `json:"id"`
	// DryRun changes nothing: the answer is the request as it stands.
	DryRun bool `json:"dry_run,omitempty"`
}

// RequestReplay sends back what failed or was refused: the requests of these ids, or
// everything that failed, narrowed by the other fields.
type RequestReplay struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// IDs are those of requests.
	IDs []string `json:"ids,omitempty"`
	// Code lets only those with this reason through; not together with IDs.
	Code Code `json:"code,omitempty"`
	// Since lets only those through that failed then or later; not together with IDs.
	Since time.Time `json:"since,omitzero"`
	// All is given where nothing narrows: everything that failed.
	All bool `json:"all,omitempty"`
	// Limit is how many are picked at most, 1 to MaxPage; absent does not limit them.
	Limit int `json:"limit,omitempty"`
	// DryRun changes nothing, and tells what would be done.
	DryRun bool `json:"dry_run,omitempty"`
}

// ReplayAnswer tells what was done.
type ReplayAnswer struct {
	// Replayed has an entry for each request or refused message that was picked.
	Replayed []Replayed `json:"replayed"`
	// More tells that there are more than Limit.
	More bool `json:"more,omitempty"`
}

// ReplayAction is what became of one thing that a replay picked.
type ReplayAction string

// The actions of a replay.
const (
	ReplayQueued      ReplayAction = "queued"      // the request is back in its account's queue
	ReplayRepublished ReplayAction = "republished" // the refused message is in the job stream again
	ReplayNothing     ReplayAction = "nothing"     // there was nothing to do; Detail says why
)

// Replayed tells what was done about one request or refused message.
type Replayed struct {
	// Account is absent where it could not be read.
	Account string `json:"account,omitempty"`
	// ID is absent where it could not be read.
	ID string `json:"id,omitempty"`
	// Action is what was done.
	Action ReplayAction `json:"action"`
	// DryRun tells that it was not done, and would be.
	DryRun bool `json:"dry_run,omitempty"`
	// State is the request's before.
	State State `json:"state,omitempty"`
	// Left counts the posts that are not live.
	Left int `json:"left"`
	// Total counts all posts of the request.
	Total int `json:"total"`
	// Detail is for people, one line.
	Detail string `json:"detail,omitempty"`
}

// AccountList asks for accounts, by name.
type AccountList struct {
	// State lets only accounts in this state through: ok, paused, refresh_failing,
	// reauth_required or disconnected; absent lets all through.
	State string `json:"state,omitempty"`
	// Limit is how many are listed at most, 1 to MaxPage; absent means DefaultPage.
	Limit int `json:"limit,omitempty"`
	// Cursor is the Next of the page before; absent begins.
	Cursor string `json:"cursor,omitempty"`
}

// AccountPage is a part of the list of accounts.
type AccountPage struct {
	// Accounts are those of this page.
	Accounts []AccountInfo `json:"accounts"`
	// Next is the cursor of the page after this one; absent where this is the last.
	Next string `json:"next,omitempty"`
}

// AccountInfo is an X account and its token, of which no value is told.
type AccountInfo struct {
	// Name is the one under which it was connected.
	Name string `json:"name"`
	// XUserID is X's id of its user.
	XUserID string `json:"x_user_id"`
	// Username is its name on X, without @.
	Username string `json:"username"`
	// CreatedAt is when it was first connected here.
	CreatedAt time.Time `json:"created_at"`
	// Open counts its unfinished requests, up to 1000.
	Open int `json:"open_requests"`
	// TokenExpiresAt is when its access token ends.
	TokenExpiresAt time.Time `json:"token_expires_at"`
	// Pause keeps it from posting.
	Pause Pause `json:"pause,omitzero"`
	// LastRefreshAt is when X last renewed its token.
	LastRefreshAt time.Time `json:"last_refresh_at,omitzero"`
	// RefreshError is why the last exchange of its token came to nothing.
	RefreshError string `json:"refresh_error,omitempty"`
	// RefreshFailedAt is when that was.
	RefreshFailedAt time.Time `json:"refresh_failed_at,omitzero"`
	// ReauthRequired tells that nothing but connecting it again helps.
	ReauthRequired bool `json:"reauth_required,omitempty"`
}

// AccountReport is what is known of one account and its token.
type AccountReport struct {
	// Account is the account itself.
	Account AccountInfo `json:"account"`
	// State is that of its token: ok, renewing, refresh_failing, in_doubt,
	// key_unavailable, reauth_required or disconnected.
	State string `json:"state"`
	// Do is what a person can do, where there is something.
	Do string `json:"do,omitempty"`
	// Scope are the permissions of its token.
	Scope string `json:"scope,omitempty"`
	// Missing are the permissions that posts, or those with media, wait for.
	Missing []string `json:"missing_scopes,omitempty"`
	// Attempts counts the exchanges since the pair was stored.
	Attempts int `json:"attempts,omitempty"`
	// NextAttemptAt is the earliest next exchange after a failure or a doubt.
	NextAttemptAt time.Time `json:"next_attempt_at,omitzero"`
	// InDoubtSince is when the exchange began whose answer was lost.
	InDoubtSince time.Time `json:"in_doubt_since,omitzero"`
	// Retries are the exchanges that were made while its token was in doubt.
	Retries []TokenRetry `json:"retries,omitempty"`
}

// TokenRetry is an exchange of a token in doubt.
type TokenRetry struct {
	// Version is that of the pair.
	Version int64 `json:"version"`
	// Attempt counts the exchanges of that pair.
	Attempt int `json:"attempt"`
	// InDoubtSince is when the first exchange began whose answer was lost.
	InDoubtSince time.Time `json:"in_doubt_since"`
	// StartedAt is when this one began.
	StartedAt time.Time `json:"started_at"`
}

// PauseRequest has an account, or the whole app, post nothing more.
type PauseRequest struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// Until is when it goes on by itself; absent means once somebody resumes it.
	Until time.Time `json:"until,omitzero"`
	// Reason is for those who wonder what their requests wait for: at most
	// MaxPauseReason characters, on one line.
	Reason string `json:"reason,omitempty"`
}

// MaxPauseReason bounds the words that everything which waits for a pause shows.
const MaxPauseReason = 200 // characters

// AccountPaused is an account that somebody has paused.
type AccountPaused struct {
	// Account is its name.
	Account string `json:"account"`
	// Pause is the one that holds.
	Pause Pause `json:"pause"`
}

// AppPaused tells what keeps all accounts from posting.
type AppPaused struct {
	// Pause is the one that holds.
	Pause Pause `json:"pause"`
	// Changed is false where the app was paused already, for at least as long.
	Changed bool `json:"changed"`
}

// ResumeRequest ends the pause of an account, or the pauses of the app.
type ResumeRequest struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// ExpireBefore first fails, as expired, what was due before it and has not begun.
	ExpireBefore time.Time `json:"expire_before,omitzero"`
}

// Resumed tells what a resume has ended.
type Resumed struct {
	// Pauses are the app pauses that were in force.
	Pauses []Pause `json:"pauses,omitempty"`
	// Mended tells what an earlier resume has left behind, a sentence each.
	Mended []string `json:"mended,omitempty"`
	// Account is the one that was resumed.
	Account string `json:"account,omitempty"`
	// Pause is the one that was in force.
	Pause Pause `json:"pause,omitzero"`
	// Expired counts the requests that were failed since they were too late.
	Expired int `json:"expired"`
	// Begun counts those that are as late and go on.
	Begun int `json:"late_and_begun"`
}

// AccountRefresh has an account's token renewed.
type AccountRefresh struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// Force exchanges even a token that is still young.
	Force bool `json:"force,omitempty"`
	// WaitSeconds is how long the outcome is waited for, up to MaxWaitSeconds; absent only
	// asks.
	WaitSeconds int `json:"wait_seconds,omitempty"`
}

// MaxWaitSeconds bounds the wait for the outcome of a refresh.
const MaxWaitSeconds = 110

// AccountDisconnect ends the use of an account: its requests wait until it is connected
// again.
type AccountDisconnect struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
}

// Disconnected is an account that was disconnected.
type Disconnected struct {
	// Name is the account's.
	Name string `json:"name"`
	// XUserID is X's id of its user.
	XUserID string `json:"x_user_id"`
	// Username is its name on X, without @.
	Username string `json:"username"`
	// Open counts its unfinished requests.
	Open int `json:"open_requests"`
	// Revoked tells that X confirmed that it takes the tokens no more.
	Revoked bool `json:"revoked"`
	// NotRevoked says why X did not confirm it.
	NotRevoked string `json:"not_revoked,omitempty"`
}

// AccountRename gives an account another name. Its requests go with it, so that an id which
// has posted posts nothing under the new name. It is a conflict while requests of the account
// are unfinished.
type AccountRename struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
	// To is the new name.
	To string `json:"to"`
}

// AccountRemove forgets an account that is not connected and has no unfinished request. The
// ids of its requests stay known: an account that gets the name later posts none of them.
type AccountRemove struct {
	// OperationID makes a repeat of this change do nothing.
	OperationID string `json:"operation_id,omitempty"`
}

// AccountRemoved is an account that was removed.
type AccountRemoved struct {
	// Name is the one that it had.
	Name string `json:"name"`
	// XUserID is X's id of its user.
	XUserID string `json:"x_user_id"`
	// Username is its name on X, without @.
	Username string `json:"username"`
}

// AccountErase removes what is known of an account whose owner leaves: its token, its
// requests with their texts and media, its events. Requests that are unfinished are
// cancelled first. What is live on X stays there.
type AccountErase struct {
	// OperationID makes a repeat of this change do nothing but go on with it.
	OperationID string `json:"operation_id,omitempty"`
}

// Erased is an account that was erased, or that workers go on erasing.
type Erased struct {
	// Name is the account's.
	Name string `json:"name"`
	// Done tells that everything is removed. Where it is not, workers go on with it.
	Done bool `json:"done"`
	// Requests counts those that it had. Of each a hash of its id stays, so that it is never
	// posted again.
	Requests int `json:"requests"`
	// LivePosts counts those that are live on X, and stay there.
	LivePosts int `json:"live_posts"`
	// DoubtfulPosts counts those of which nobody knows whether they are.
	DoubtfulPosts int `json:"doubtful_posts,omitempty"`
	// Revoked tells that X confirmed that it takes the tokens no more.
	Revoked bool `json:"revoked"`
	// NotRevoked says why X did not confirm it.
	NotRevoked string `json:"not_revoked,omitempty"`
	// Left says what is left to do, where not all is done.
	Left string `json:"left,omitempty"`
}

// The sizes of media.put.
const (
	// MaxMediaBytes bounds a media file: a video of X's largest size.
	MaxMediaBytes = 1000 << 20
	// MaxMediaPart bounds a part of one, which fits a message as NATS takes it by default.
	MaxMediaPart = 512 << 10
)

// MediaPut stores a media file or, where it does not fit one message, a part of it: the parts
// come one after the other, under one operation_id, each once the one before is answered.
type MediaPut struct {
	// OperationID names the file's parts, and makes a repeat of a part do nothing. Without one
	// the file is one part.
	OperationID string `json:"operation_id,omitempty"`
	// Offset is how many bytes of the file came before; absent begins it.
	Offset int `json:"offset,omitempty"`
	// Data are the bytes of this part: standard base64 with padding, 1 to MaxMediaPart bytes
	// decoded.
	Data []byte `json:"data"`
	// More tells that another part follows.
	More bool `json:"more,omitempty"`
}

// MediaStored is what is stored of a media file.
type MediaStored struct {
	// Object is what a post's media names as its object; absent until the last part is there.
	Object string `json:"object,omitempty"`
	// Bytes counts what is stored: the offset of the next part.
	Bytes int `json:"bytes"`
	// SHA256 is that of the whole file, in 64 hexadecimal digits; absent until the last part
	// is there.
	SHA256 string `json:"sha256,omitempty"`
	// Type is the file's, by its first bytes, as image/png; absent until the last part is there.
	Type string `json:"type,omitempty"`
}

// ownedObjects begins the names of the objects of media.put.
const ownedObjects = "media.put/"

// OwnedObject names a file of media.put that the account alone posts or, with "", any.
func OwnedObject(account, id string) string { return ownedObjects + account + "/" + id }

// ObjectOwner is the account that alone posts a media object; "" where any may.
func ObjectOwner(object string) string {
	rest, owned := strings.CutPrefix(object, ownedObjects)
	if !owned {
		return ""
	}
	account, _, _ := strings.Cut(rest, "/")
	return account
}

// AppPrune removes what workers remove by themselves: requests that finished long ago, except
// their ids, and media that no request needs.
type AppPrune struct {
	// OperationID makes a repeat of this change be answered as the first one was.
	OperationID string `json:"operation_id,omitempty"`
	// Keep is how long what has finished is kept whole, a Go duration, 168h at least.
	Keep string `json:"keep"`
	// DryRun removes nothing, and counts what would be.
	DryRun bool `json:"dry_run,omitempty"`
}

// Pruned is what was removed, or would be.
type Pruned struct {
	// DryRun tells that nothing was removed.
	DryRun bool `json:"dry_run"`
	// Requests counts the requests of which the id is left.
	Requests int `json:"requests"`
	// Objects counts the media objects.
	Objects int `json:"media_objects"`
	// Bytes are those of the media objects.
	Bytes int64 `json:"media_bytes"`
	// MediaKept says why no media object was looked at; absent where they were.
	MediaKept string `json:"media_kept,omitempty"`
	// More tells that there was no time for all: another call goes on, and a dry run
	// counted a part.
	More bool `json:"more,omitempty"`
}

// AccountLink makes a one-time link with which a customer connects an account.
type AccountLink struct {
	// OperationID makes a repeat answer with the same link.
	OperationID string `json:"operation_id,omitempty"`
	// TTL is how long it can be used, a Go duration; absent means 1h.
	TTL string `json:"ttl,omitempty"`
	// ReturnTo is where the person is sent afterwards; absent shows a page.
	ReturnTo string `json:"return_to,omitempty"`
	// PublicURL is the address of the pages for people, where the worker has none of its own.
	PublicURL string `json:"public_url,omitempty"`
	// ReturnHosts are where links may return to, where the worker has none of its own.
	ReturnHosts []string `json:"return_hosts,omitempty"`
}

// Link is a one-time link. Its URL is known to its holder alone.
type Link struct {
	// URL is what the customer opens.
	URL string `json:"url"`
	// Account is the name under which the account is connected.
	Account string `json:"account"`
	// ExpiresAt is when it can be used no more.
	ExpiresAt time.Time `json:"expires_at"`
	// ReturnTo is where the person is sent afterwards.
	ReturnTo string `json:"return_to,omitempty"`
}

// DeadLettersList asks for messages that never became requests, and for requests that
// failed, the latest first. Absent fields match all.
type DeadLettersList struct {
	// Kind is refused, which is the default, or failed.
	Kind DeadLetterKind `json:"kind,omitempty"`
	// ID lets only those of this id through.
	ID string `json:"id,omitempty"`
	// Code lets only those with this reason through.
	Code Code `json:"code,omitempty"`
	// Since lets only those through that were stored, or accepted, then or later.
	Since time.Time `json:"since,omitzero"`
	// Limit is how many are listed at most, 1 to MaxPage; absent means DefaultPage.
	Limit int `json:"limit,omitempty"`
	// Cursor is the Next of the page before; absent begins.
	Cursor string `json:"cursor,omitempty"`
}

// DeadLetterKind tells messages that never became requests from requests that failed.
type DeadLetterKind string

// The kinds of dead letters.
const (
	DeadLetterRefused DeadLetterKind = "refused"
	DeadLetterFailed  DeadLetterKind = "failed"
)

// DeadLetterPage is a part of a list of dead letters.
type DeadLetterPage struct {
	// Refusals are those of this page, where refused messages were asked for.
	Refusals []Refusal `json:"refusals,omitempty"`
	// Requests are those of this page, where failed requests were asked for.
	Requests []RequestStatus `json:"requests,omitempty"`
	// Next is the cursor of the page after this one; absent where this is the last.
	Next string `json:"next,omitempty"`
}
