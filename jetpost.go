package jetpost

import (
	"slices"
	"time"
)

// Version is the newest contract version that this package understands. A request of a
// later version is not refused: it is held until a newer worker takes it, so that a
// rolling upgrade fails nothing.
const Version = 1

// Limits of one request. They are checked before anything is stored or sent.
const (
	MaxPosts         = 25                   // posts of one thread
	MaxImages        = 4                    // images of one post
	MaxDataBytes     = 512 << 10            // decoded bytes of one inline media
	MaxURLChars      = 2048                 // characters of one media URL
	MaxAltChars      = 1000                 // characters of one alternative text
	MaxTextChars     = 25_000               // characters of one post before X's own weighted count
	MaxMetadataKeys  = 32                   // entries of Request.Metadata
	MaxMetadataChars = 512                  // characters of one metadata key or value
	MaxSkipIfLate    = 365 * 24 * time.Hour // of Request.SkipIfLate
	MaxPollMinutes   = 7 * 24 * 60          // minutes a poll may run: one week
	MinPollMinutes   = 5                    // minutes a poll must run
	MaxPollChoices   = 4                    // choices of one poll
	MinPollChoices   = 2                    // choices of one poll
	MaxPollChars     = 25                   // characters of one poll choice
)

// MaxProblems bounds the mistakes that one [InvalidError] lists. If there are more, one
// last problem says how many.
const MaxProblems = 50

// A problem quotes at most this much of what the producer wrote.
const (
	maxPointerBytes = 256
	maxMessageBytes = 512
)

// Request is one job: a post, or a thread of posts, for one account.
//
// Its identity is (Account, ID): it is published once, however often it arrives. The
// same identity with an equal body changes nothing. With another body it is refused,
// and the first request stays as it is.
type Request struct {
	// Version of the contract; absent means 1.
	Version int `json:"version,omitempty"`
	// Account is the name under which the X account was imported, [a-z0-9_-]{1,63}. The
	// subject may name it instead; if both do, they must agree.
	Account string `json:"account,omitempty"`
	// ID is chosen by the producer, [A-Za-z0-9_-]{1,128}. A request without
	// one gets an id from its place in the stream, which makes its producer
	// at-least-once: sent twice, it is published twice.
	ID string `json:"id,omitempty"`
	// Posts in the order of the thread, 1 to MaxPosts. Each but the first
	// replies to the one before it.
	Posts []Post `json:"posts"`
	// PublishAt is the earliest moment of the first post; absent means now.
	PublishAt time.Time `json:"publish_at,omitzero"`
	// ExpiresAt fails the request if its first post was not begun by then.
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	// SkipIfLate fails the request if its first post was not begun within this time
	// after PublishAt or, without a PublishAt, after the request was accepted. It is a
	// Go duration such as "15m", from one second to MaxSkipIfLate. If the request is
	// moved to another time, the limit moves along.
	SkipIfLate string `json:"skip_if_late,omitempty"`
	// Metadata is copied into every event without being read: at most MaxMetadataKeys
	// entries whose keys and values have at most MaxMetadataChars characters.
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Post is one post on X. The field names are X's own.
type Post struct {
	// Text is at most MaxTextChars characters; X's own weighted limit, shorter for most
	// accounts, is checked later. X allows one cashtag, and more to Enterprise apps. It
	// may be empty only if there is Media.
	Text string `json:"text,omitempty"`
	// Media is up to MaxImages images, or one GIF, or one video.
	Media []Media `json:"media,omitempty"`
	// InReplyToPostID makes the first post of a request a reply; X allows it
	// to self-serve apps only below posts that mention or quote the account.
	InReplyToPostID string `json:"in_reply_to_post_id,omitempty"`
	// QuotePostID quotes a post, which X reserves to Enterprise apps. It excludes
	// Media and Poll.
	QuotePostID string `json:"quote_post_id,omitempty"`
	// ReplySettings is one of following, mentionedUsers, subscribers, verified;
	// absent lets everyone reply.
	ReplySettings string `json:"reply_settings,omitempty"`
	// CommunityID posts into a community.
	CommunityID string `json:"community_id,omitempty"`
	// Poll excludes Media and QuotePostID.
	Poll *Poll `json:"poll,omitempty"`
	// MadeWithAI labels the media as made with AI.
	MadeWithAI bool `json:"made_with_ai,omitempty"`
	// PaidPartnership labels the post as paid for.
	PaidPartnership bool `json:"paid_partnership,omitempty"`
}

// Media is one picture, GIF or video. Exactly one of URL, Data and Object
// names its bytes, which reach X as they are.
type Media struct {
	// URL is fetched by the worker: https, with a host and without a password,
	// at most MaxURLChars characters.
	URL string `json:"url,omitempty"`
	// Data is the media itself: standard base64 with padding in JSON, at most
	// MaxDataBytes bytes decoded.
	Data []byte `json:"data,omitempty"`
	// Object is a name in the media object store: at most 255 printable ASCII
	// characters, no space.
	Object string `json:"object,omitempty"`
	// Alt describes the media to people who cannot see it, in at most
	// MaxAltChars characters.
	Alt string `json:"alt,omitempty"`
}

// Poll is a poll that closes by itself.
type Poll struct {
	// Options are MinPollChoices to MaxPollChoices choices of at most
	// MaxPollChars characters each.
	Options []string `json:"options"`
	// DurationMinutes is MinPollMinutes to MaxPollMinutes.
	DurationMinutes int `json:"duration_minutes"`
}

// State is where a request stands.
type State string

const (
	StateScheduled  State = "scheduled"  // accepted, its publish_at is in the future
	StateQueued     State = "queued"     // waits in its account's queue
	StatePublishing State = "publishing" // a worker posts it now
	StateHeld       State = "held"       // waits for the reason that it states
	StatePublished  State = "published"  // every post is live; final
	StateFailed     State = "failed"     // will not go on by itself; can be replayed
	StateUnknown    State = "unknown"    // a post may or may not be live; a person decides
	StateCancelled  State = "cancelled"  // taken back; final
)

// States lists every state, in the order in which a request may meet them.
func States() []State {
	return []State{
		StateScheduled, StateQueued, StatePublishing, StateHeld,
		StatePublished, StateFailed, StateUnknown, StateCancelled,
	}
}

// Finished reports whether the request has left its account's queue: nothing of it will
// be posted unless a person asks for it.
func (s State) Finished() bool {
	return s == StatePublished || s == StateFailed || s == StateCancelled
}

// Code says why a request, an account or the whole app waits or failed.
type Code string

// The reason codes. Each is documented, with what to do, in docs/states.md.
const (
	// Refused by intake: nothing was stored as a request.
	CodeInvalidRequest   Code = "invalid_request"   // the body breaks the contract; every mistake is listed
	CodeAccountUnknown   Code = "account_unknown"   // no account of that name was imported
	CodeIdentityConflict Code = "identity_conflict" // the same id arrived before with another body
	CodeSetAside         Code = "set_aside"         // workers failed on it again and again, by no fault of what they depend on

	// Held, with an end that is known or estimated.
	CodeRateLimited        Code = "rate_limited"         // the account's own window at X is used up
	CodePostingLimit       Code = "posting_limit"        // a limit that the operator has set for each account
	CodeAppPaused          Code = "app_paused"           // the whole app is paused; detail says by what
	CodeAccountPaused      Code = "account_paused"       // somebody has paused the account; detail says why
	CodeXUnavailable       Code = "x_unavailable"        // X cannot be reached, or fails
	CodeMediaUnavailable   Code = "media_unavailable"    // a media source cannot be read just now
	CodeMediaProcessing    Code = "media_processing"     // X works on a media file, or has it uploaded again
	CodeTokenRefreshFailed Code = "token_refresh_failed" // X did not renew the account's token just now
	CodeNeedsNewerWorker   Code = "needs_newer_worker"   // the request's version is later than this worker's
	CodeReconciling        Code = "reconciling"          // X's answer to a post was lost; the account's timeline is checked for it

	// Held, with the whole account, for what X says of it; X is asked again from time
	// to time.
	CodeAccountSuspended    Code = "account_suspended"     // X has suspended the account
	CodeAccountLocked       Code = "account_locked"        // X has locked the account until its owner logs in
	CodeAccountUnauthorized Code = "account_unauthorized"  // X does not take the account's tokens, though it renews them
	CodeAccountScopeMissing Code = "account_scope_missing" // the account was connected without a permission that is needed
	CodeAccountRefused      Code = "account_refused"       // X refused three requests in a row, for reasons that are not known

	// Held until a person acts.
	CodeAccountReauthRequired Code = "account_reauth_required" // the account must be connected again
	CodeKeyUnavailable        Code = "key_unavailable"         // no configured key opens the account's tokens
	CodePoison                Code = "poison"                  // workers died on it again and again

	// Failed.
	CodeRefusedByX   Code = "refused_by_x"  // X will not have this post; detail holds X's own words
	CodeDuplicate    Code = "duplicate"     // X refused the post as a repeat of an earlier one
	CodeMediaInvalid Code = "media_invalid" // a media file is of no kind that X takes, or too large
	CodeMediaChanged Code = "media_changed" // a media file is not the one that was accepted
	CodeTextTooLong  Code = "text_too_long" // a post further on in the thread is too long for an account without a subscription
	CodeSameText     Code = "same_text"     // another account posts the same text within a day, and workers are told to refuse that
	CodeExpired      Code = "expired"       // it was too late for the first post: expires_at passed, or the operator's limit for late posts
	CodeBodyLost     Code = "body_lost"     // the database was restored to a time before it was accepted; sent again, it goes on

	// Unknown.
	CodeOutcomeUnknown Code = "outcome_unknown" // X's answer to a post was lost, and X does not show whether the post is live

	// Reasons of an app pause.
	CodePausedByHand      Code = "paused_by_hand"      // somebody has paused it; detail says why
	CodeAppRateLimited    Code = "app_rate_limited"    // the app's own window at X is used up
	CodeUsageCapped       Code = "usage_capped"        // X's usage cap
	CodeCreditsDepleted   Code = "credits_depleted"    // the prepaid credits are used up
	CodeSpendCapReached   Code = "spend_cap_reached"   // the spending limit of the billing cycle
	CodeClientNotEnrolled Code = "client_not_enrolled" // the X app has no package or environment
	CodeAppReadOnly       Code = "app_read_only"       // the X app lacks the permission to write
	CodeAppSuspended      Code = "app_suspended"       // X has suspended the app
	CodeClientForbidden   Code = "client_forbidden"    // X does not let this app use what it calls
	CodeAppRefused        Code = "app_refused"         // X refused posts of three accounts in the same words, which are not known
	CodeXOutage           Code = "x_outage"            // X fails call after call
	CodeAppMisconfigured  Code = "app_misconfigured"   // X does not accept the app's client id or secret
)

// CodeKind says what a code is the reason of, and what ends it. docs/states.md has a section
// for each kind.
type CodeKind int

// The kinds of reason codes.
const (
	KindNone          CodeKind = iota // a code that this version does not know
	KindRefused                       // intake stored nothing as a request
	KindHeld                          // a request waits, and goes on by itself
	KindHeldByX                       // the whole account waits until X, which is asked again, takes it
	KindHeldForPerson                 // a request waits until a person acts
	KindFailed
	KindUnknown
	KindAppPause
)

// codesByKind is the one list of reason codes, in the order in which docs/states.md
// explains them.
var codesByKind = [...][]Code{
	KindRefused: {CodeInvalidRequest, CodeAccountUnknown, CodeIdentityConflict, CodeSetAside},
	KindHeld: {
		CodeRateLimited, CodePostingLimit, CodeAppPaused, CodeAccountPaused, CodeXUnavailable, CodeMediaUnavailable,
		CodeMediaProcessing, CodeTokenRefreshFailed, CodeNeedsNewerWorker, CodeReconciling,
	},
	KindHeldByX:       {CodeAccountSuspended, CodeAccountLocked, CodeAccountUnauthorized, CodeAccountScopeMissing, CodeAccountRefused},
	KindHeldForPerson: {CodeAccountReauthRequired, CodeKeyUnavailable, CodePoison},
	KindFailed: {
		CodeRefusedByX, CodeDuplicate, CodeMediaInvalid, CodeMediaChanged, CodeTextTooLong, CodeSameText, CodeExpired, CodeBodyLost,
	},
	KindUnknown: {CodeOutcomeUnknown},
	KindAppPause: {
		CodePausedByHand, CodeAppRateLimited, CodeUsageCapped, CodeCreditsDepleted, CodeSpendCapReached, CodeClientNotEnrolled,
		CodeAppReadOnly, CodeAppSuspended, CodeClientForbidden, CodeAppRefused, CodeXOutage, CodeAppMisconfigured,
	},
}

// Codes lists every reason code, in the order in which docs/states.md explains
// them.
func Codes() []Code { return slices.Concat(codesByKind[:]...) }

// Kind is the kind of the code.
func (c Code) Kind() CodeKind {
	for kind, codes := range codesByKind {
		if slices.Contains(codes, c) {
			return CodeKind(kind)
		}
	}
	return KindNone
}

// Reason explains a state to a person and, by its code, to a program.
type Reason struct {
	// Code is for programs.
	Code Code `json:"code"`
	// Detail is for people, one line; its wording may change.
	Detail string `json:"detail,omitempty"`
	// Until is when the wait ends by itself; absent if it does not, or if the end is
	// unknown.
	Until time.Time `json:"until,omitzero"`
}

// PostState is where one post of a request stands.
type PostState string

const (
	PostPending PostState = "pending" // not sent
	PostSending PostState = "sending" // may be live: the intent to send it was committed
	PostPosted  PostState = "posted"  // live, with its id
	PostFailed  PostState = "failed"  // refused by X
)

// RequestStatus is the one representation of a request: events, dead letters, the
// command line and the dashboard all show it.
type RequestStatus struct {
	// Account and ID are the request's identity.
	Account string `json:"account"`
	// ID is the producer's, or the one assigned to a request without an id.
	ID string `json:"id"`
	// Revision grows with every change; a reader keeps the largest.
	Revision int64 `json:"revision"`
	// State is where the request stands.
	State State `json:"state"`
	// Reason says why it waits, failed or is unknown.
	Reason *Reason `json:"reason,omitempty"`
	// Posts are all its posts, in the order of the thread.
	Posts []PostStatus `json:"posts"`
	// Posted counts the posts that are live.
	Posted int `json:"posted"`
	// Total counts all posts.
	Total int `json:"total"`
	// Attempts counts posts sent to X, answered or not.
	Attempts int `json:"attempts"`
	// CostEstimateUSD is what X will charge for all its posts, in US dollars, by the
	// prices that were known when it was accepted; absent if unknown.
	CostEstimateUSD float64 `json:"cost_estimate_usd,omitempty"`
	// AcceptedAt is when a worker first stored the request.
	AcceptedAt time.Time `json:"accepted_at"`
	// PublishAt is the request's own, or the one that it was moved to.
	PublishAt time.Time `json:"publish_at,omitzero"`
	// NextTryAt is when a held request is tried again, or its account's timeline
	// checked, if that is not the end of its wait. It is as of this revision; later
	// tries are not reported.
	NextTryAt time.Time `json:"next_try_at,omitzero"`
	// LateBySeconds is by how much publish_at had passed when the request was accepted.
	LateBySeconds int64 `json:"late_by_seconds,omitempty"`
	// ExpiresAt is the request's own.
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	// UpdatedAt is when this revision was written.
	UpdatedAt time.Time `json:"updated_at"`
	// Metadata is the request's own.
	Metadata map[string]string `json:"metadata,omitempty"`
	// Unpublish is set once somebody has asked for the deletion of what is live. The
	// state stays.
	Unpublish *UnpublishStatus `json:"unpublish,omitempty"`
	// Pruned tells that the request finished so long ago that nothing but its identity
	// and its state is kept: posts is empty, and counts are 0.
	Pruned bool `json:"pruned,omitempty"`
}

// UnpublishStatus tells how far the deletion of a request's posts is.
type UnpublishStatus struct {
	// AskedAt is when somebody last asked for it.
	AskedAt time.Time `json:"asked_at"`
	// DoneAt is when nothing of the request was left on X; absent before.
	DoneAt time.Time `json:"done_at,omitzero"`
	// Reason says why it waits, or why it does not continue.
	Reason *Reason `json:"reason,omitempty"`
	// NextTryAt is when it is tried, or tried again; absent once it is done, or if it
	// does not continue by itself.
	NextTryAt time.Time `json:"next_try_at,omitzero"`
}

// PostStatus is one post of a RequestStatus.
type PostStatus struct {
	// Index counts from 0.
	Index int `json:"index"`
	// State is where the post stands.
	State PostState `json:"state"`
	// PostID is X's id of a live post.
	PostID string `json:"post_id,omitempty"`
	// URL is where people find a live post.
	URL string `json:"url,omitempty"`
	// DeletedAt is when a live post was deleted on X, or found to be gone; its state stays.
	DeletedAt time.Time `json:"deleted_at,omitzero"`
}

// PostURL is where people find a post. X redirects it to the author's page.
func PostURL(postID string) string { return "https://x.com/i/status/" + postID }

// EventType names what happened.
type EventType string

const (
	EventRequestAccepted  EventType = "request.accepted"
	EventRequestScheduled EventType = "request.scheduled"
	EventRequestHeld      EventType = "request.held"
	EventRequestResumed   EventType = "request.resumed"
	EventRequestProgress  EventType = "request.progress" // one more post of a thread is live
	EventRequestPublished EventType = "request.published"
	EventRequestFailed    EventType = "request.failed"
	EventRequestRefused   EventType = "request.refused"
	EventRequestUnknown   EventType = "request.unknown"
	EventRequestCancelled EventType = "request.cancelled"

	EventRequestUnpublishing EventType = "request.unpublishing" // its posts are to be deleted: asked for, one more deleted, or waiting
	EventRequestUnpublished  EventType = "request.unpublished"  // its posts are deleted

	EventAccountReauthRequired EventType = "account.reauth_required"
	EventAccountRecovered      EventType = "account.recovered"
	EventAccountPaused         EventType = "account.paused"
	EventAccountResumed        EventType = "account.resumed" // before the end of its pause

	EventAccountBlocked   EventType = "account.blocked"   // paused for what X says of it
	EventAccountUnblocked EventType = "account.unblocked" // X takes its calls again, or somebody says so

	EventAppPaused  EventType = "app.paused"
	EventAppResumed EventType = "app.resumed"

	EventRefreshCompleted EventType = "refresh.completed"
)

// EventTypes lists every event type.
func EventTypes() []EventType {
	return []EventType{
		EventRequestAccepted, EventRequestScheduled, EventRequestHeld, EventRequestResumed, EventRequestProgress,
		EventRequestPublished, EventRequestFailed, EventRequestRefused, EventRequestUnknown, EventRequestCancelled,
		EventRequestUnpublishing, EventRequestUnpublished,
		EventAccountReauthRequired, EventAccountRecovered, EventAccountPaused, EventAccountResumed, EventAccountBlocked, EventAccountUnblocked, EventAppPaused, EventAppResumed, EventRefreshCompleted,
	}
}

// Event says what happened, at least once. A reader that must not act twice remembers
// EventID, or the Revision of the request.
type Event struct {
	// EventID is the same however often the event arrives.
	EventID string `json:"event_id"`
	// Type says what happened, and which one of the objects below is set.
	Type EventType `json:"type"`
	// Time is when it happened.
	Time time.Time `json:"time"`
	// Request is set in every event of a request but its refusal.
	Request *RequestStatus `json:"request,omitempty"`
	// Refusal is set in request.refused.
	Refusal *Refusal `json:"refusal,omitempty"`
	// Account is set in account events.
	Account *AccountStatus `json:"account,omitempty"`
	// App is set in app events.
	App *AppStatus `json:"app,omitempty"`
	// Refresh is set in refresh.completed.
	Refresh *RefreshSummary `json:"refresh,omitempty"`
}

// Refusal records a message that never became a request.
type Refusal struct {
	// Account is absent if it could not be read.
	Account string `json:"account,omitempty"`
	// ID is absent if it could not be read.
	ID string `json:"id,omitempty"`
	// Code is invalid_request, account_unknown, identity_conflict or set_aside.
	Code Code `json:"code"`
	// Problems are the mistakes in the message.
	Problems []Problem `json:"problems"`
	// Sequence is the message's place in the job stream.
	Sequence uint64 `json:"sequence"`
	// Stored is when the job stream took the message.
	Stored time.Time `json:"stored"`
}

// AccountStatus is the account in an account event.
type AccountStatus struct {
	// Account is the name under which it was imported.
	Account string `json:"account"`
	// Reason says why it waits.
	Reason *Reason `json:"reason,omitempty"`
}

// AppStatus is the pause in an app event.
type AppStatus struct {
	// Target is what the pause holds back: publish, refresh or media.
	Target string `json:"target"`
	// Reason says why, and until when if that is known.
	Reason *Reason `json:"reason,omitempty"`
	// NextProbeAt is when X is asked whether the cause is over, if the end is unknown.
	NextProbeAt time.Time `json:"next_probe_at,omitzero"`
}

// RefreshSummary is the outcome of one refresh round.
type RefreshSummary struct {
	// Round names the round.
	Round string `json:"round"`
	// Total counts the tokens that were due.
	Total int `json:"total"`
	// Refreshed counts those that X renewed.
	Refreshed int `json:"refreshed"`
	// Failed counts those that X did not renew.
	Failed int `json:"failed"`
	// Skipped counts those that were not tried.
	Skipped int `json:"skipped"`
}

// RefreshRequest asks for one account's token to be refreshed now. It goes
// onto the subject refresh.request.
type RefreshRequest struct {
	// Account is the name under which the X account was imported.
	Account string `json:"account"`
	// Force exchanges even a token that is still young.
	Force bool `json:"force,omitempty"`
}

// RefreshBatch asks a worker to refresh one batch of a round. Only workers publish it.
type RefreshBatch struct {
	Round string `json:"round"`
	Batch int    `json:"batch"`
}

// Problem is one mistake in a message.
type Problem struct {
	// Pointer is a JSON pointer (RFC 6901) to the place; "" is the whole body.
	Pointer string `json:"pointer"`
	// Message says what is wrong there, and what is expected.
	Message string `json:"message"`
}
